//! The body of a request on its way in: bounds what the messages of one connection may have in memory while they are not
//! complete, and how long they may stay so.
//!
//! A message is put together in memory before it is decoded. A client that opens many streams and sends the first part of
//! a large message on each would otherwise hold as much as all of them may have, for as long as it likes.
//!
//! ```text
//! body = (1 byte: compressed? | 4 bytes: length, big-endian | message) ...
//! ```

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::body::Body;

use crate::connection::HeldByConnection;
use crate::error::Problem;

/// Bytes before each message.
const PREFIX_BYTES: usize = 5;
/// So much more of a message gives its client time for the next; a byte now and then does not.
const PROGRESS_BYTES: usize = 1 << 10;

/// See the [module](self).
pub(crate) struct IncomingBody {
    inner: Body,
    place: Place,
    held: Held,
    stall: Stall,
}

/// How long the client has let us wait for more of a message.
struct Stall {
    time_max: Duration,
    /// While we wait.
    timer: Option<Pin<Box<Sleep>>>,
    /// That have come since the timer was set.
    bytes: usize,
    /// A message has to come; behind it the client may be silent.
    is_expected: bool,
}

impl Stall {
    fn came(&mut self, bytes: usize, has_completed: bool) {
        self.bytes += bytes;
        if has_completed || self.bytes >= PROGRESS_BYTES {
            self.timer = None;
            self.bytes = 0;
        }
        self.is_expected &= !has_completed;
    }

    /// Whether it is too long now.
    fn poll(&mut self, is_incomplete: bool, task: &mut Context<'_>) -> bool {
        if !is_incomplete && !self.is_expected {
            return false;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(self.time_max)));
        timer.as_mut().poll(task).is_ready()
    }
}

/// What is bounded.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Of incomplete messages on one connection.
    pub(crate) bytes_max: usize,
    /// For more of a message to come.
    pub(crate) stall_time_max: Duration,
}

/// What one stream holds of its connection's bytes; given back when it goes.
struct Held {
    bytes: usize,
    of_connection: Arc<HeldByConnection>,
    limit: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.of_connection.request_bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Held {
    fn add(&mut self, bytes: usize) -> Result<(), Status> {
        self.bytes += bytes;
        let before = self.of_connection.request_bytes.fetch_add(bytes, Ordering::Relaxed);
        if before + bytes > self.limit {
            let what = "the bytes of incomplete messages on one connection";
            return Err(Problem::overloaded(what, self.limit).into());
        }
        Ok(())
    }

    fn release(&mut self) {
        self.of_connection.request_bytes.fetch_sub(std::mem::take(&mut self.bytes), Ordering::Relaxed);
    }
}

/// Where in the sequence of messages the body is.
#[derive(Debug, Default)]
struct Place {
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Bytes that the message still lacks, when its prefix is complete.
    lacking: usize,
}

impl Place {
    /// A message has come in part.
    fn is_inside(&self) -> bool {
        self.prefix_bytes > 0
    }

    /// Goes over `data`; answers how many of its bytes belong to a message that is not complete.
    fn advance(&mut self, mut data: &[u8]) -> (usize, bool) {
        let mut incomplete = 0;
        let mut has_completed = false;
        while !data.is_empty() {
            if self.prefix_bytes < PREFIX_BYTES {
                self.prefix[self.prefix_bytes] = data.get_u8();
                self.prefix_bytes += 1;
                incomplete += 1;
                if self.prefix_bytes < PREFIX_BYTES {
                    continue;
                }
                let [_, length @ ..] = self.prefix;
                self.lacking = u32::from_be_bytes(length) as usize;
            } else {
                let taken = data.len().min(self.lacking);
                data.advance(taken);
                self.lacking -= taken;
                incomplete += taken;
            }
            if self.lacking == 0 {
                self.prefix_bytes = 0;
                incomplete = 0;
                has_completed = true;
            }
        }
        (incomplete, has_completed)
    }
}

impl IncomingBody {
    /// With `is_one_message` its first message is waited for only so long too; between those of a stream of requests
    /// the client may take its time.
    pub(crate) fn new(
        inner: Body,
        of_connection: &Arc<HeldByConnection>,
        config: Limits,
        is_one_message: bool,
    ) -> Self {
        let held = Held { bytes: 0, of_connection: Arc::clone(of_connection), limit: config.bytes_max };
        let stall =
            Stall { time_max: config.stall_time_max, timer: None, bytes: 0, is_expected: is_one_message };
        Self { inner, place: Place::default(), held, stall }
    }
}

impl HttpBody for IncomingBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        let frame = Pin::new(&mut this.inner).poll_frame(task);
        if frame.is_pending() && this.stall.poll(this.place.is_inside(), task) {
            return Poll::Ready(Some(Err(Problem::stalled(this.stall.time_max).into())));
        }
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            let (incomplete, has_completed) = this.place.advance(data);
            this.stall.came(data.len(), has_completed);
            if has_completed {
                this.held.release();
            }
            if let Err(status) = this.held.add(incomplete) {
                return Poll::Ready(Some(Err(status)));
            }
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_a_body_is_cut_what_is_incomplete_is_known() {
        let mut body = Vec::new();
        for length in [0_usize, 3, 300, 1] {
            body.push(0);
            body.extend(u32::try_from(length).unwrap().to_be_bytes());
            body.extend(vec![7; length]);
        }
        let ends = [5, 13, 318, 324];
        assert_eq!(body.len(), ends[3]);
        for first in 0..=body.len() {
            for second in [first, (first + 7).min(body.len()), body.len()] {
                let (mut place, mut held) = (Place::default(), 0);
                for (piece, end) in [(&body[..first], first), (&body[first..second], second)] {
                    let (incomplete, has_completed) = place.advance(piece);
                    held = if has_completed { incomplete } else { held + incomplete };
                    let complete = ends.iter().rev().find(|complete| **complete <= end).copied().unwrap_or(0);
                    assert_eq!(held, end - complete, "cut at {first} and {second}");
                }
            }
        }
    }

    #[test]
    fn what_a_stream_held_is_given_back_when_it_goes() {
        let of_connection = Arc::new(HeldByConnection::default());
        let mut held = Held { bytes: 0, of_connection: Arc::clone(&of_connection), limit: 10 };
        held.add(8).expect("within the limit");
        assert!(held.add(8).is_err());
        drop(held);
        assert_eq!(of_connection.request_bytes.load(Ordering::Relaxed), 0);
    }
}
