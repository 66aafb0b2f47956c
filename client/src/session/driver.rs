//! The task of a session: one stream at a time, from the opening to the loss of it, and again.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use quipu_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::batch::Batch;
use super::settle::{Mark, settle};
use super::{Shared, answered};
use crate::append::{Appended, in_session, options, request};
use crate::client::{Client, in_time, path};
use crate::codec::Encoded;
use crate::error::{Error, Outcome, Result};
use crate::ids::Random;
use crate::retry::Backoff;

/// Most batches that are sent and not answered, however small.
const UNANSWERED_MAX: usize = 1024;

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Driver {
    client: Client,
    shared: Arc<Shared>,
    session_id: [u8; 16],
    epoch: u64,
    stream: Option<Stream>,
    /// Sent on `stream` and not answered, in order.
    sent: VecDeque<(Batch, usize)>,
    /// To be sent before anything that is queued: what a lost stream had not answered.
    backlog: VecDeque<Batch>,
    mark: Option<Mark>,
    backoff: Backoff,
}

/// A session's stream that is open.
#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<Encoded>,
    responses: Streaming<Bytes>,
    granted_bytes: usize,
}

/// Why the work on a stream came to its end.
enum End {
    /// Everything is answered, and nothing more will come.
    Done,
    /// It broke.
    Lost(Error),
}

impl Driver {
    /// Opens the first stream.
    pub(super) async fn start(client: Client, shared: Arc<Shared>) -> Result<Self> {
        let backoff = Backoff::new(client.settings.retry);
        let mut driver = Self {
            client,
            shared,
            session_id: Random::uid(),
            epoch: 0,
            stream: None,
            sent: VecDeque::new(),
            backlog: VecDeque::new(),
            mark: None,
            backoff,
        };
        loop {
            match driver.connect().await {
                Ok(()) => return Ok(driver),
                Err(error) => driver.backoff.wait(error).await?,
            }
        }
    }

    /// Works until the session is closed or fails.
    pub(super) async fn run(mut self) {
        loop {
            let error = match self.work().await {
                End::Done => return,
                End::Lost(error) => error,
            };
            // A refusal is the answer to the first that is not answered, and nothing behind it was applied.
            let is_refused = !error.is_transient() && error.outcome() == Outcome::NotApplied;
            // In front of what was about to be sent.
            for (mut batch, _) in std::mem::take(&mut self.sent).into_iter().rev() {
                batch.was_sent &= !is_refused;
                self.backlog.push_front(batch);
            }
            match self.recover(error).await {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Waits and connects until there is a stream again; hands back an error that will not pass. `false`: there is nothing
    /// left to do.
    async fn recover(&mut self, mut error: Error) -> Result<bool> {
        tracing::debug!(topic = self.shared.settings.topic, %error, "append session interrupted");
        if error.is_transient() && self.backlog.is_empty() {
            // A session that has nothing to send survives an outage of any length.
            if !self.has_work().await {
                return Ok(false);
            }
            self.backoff.succeeded();
        }
        loop {
            self.backoff.wait(error).await?;
            match self.connect().await {
                Ok(()) => return Ok(true),
                Err(again) => error = again,
            }
        }
    }

    /// Waits until there is something to send, `true`, or the session is closed without that.
    async fn has_work(&self) -> bool {
        loop {
            {
                let state = self.shared.state();
                if state.open.count() > 0 || !state.queued.is_empty() {
                    return true;
                }
                if state.is_closing {
                    return false;
                }
            }
            self.shared.work.notified().await;
        }
    }

    /// Opens a stream and settles what earlier ones have left.
    async fn connect(&mut self) -> Result<()> {
        self.epoch += 1;
        let (requests, outgoing) = mpsc::channel(UNANSWERED_MAX + 1);
        let opening = v1::AppendSessionRequest {
            append: None,
            opening: Some(v1::SessionOpening {
                session_id: Bytes::copy_from_slice(&self.session_id),
                epoch: self.epoch,
            }),
        };
        requests.try_send(Encoded::message(&opening)).expect("it is empty");
        let time = self.client.settings.request_timeout;
        let open = self.client.both_streams(path::APPEND_SESSION, ReceiverStream::new(outgoing));
        let mut stream = Stream { requests, responses: open.await?, granted_bytes: 0 };
        let greeting = async {
            while !stream.response().await?.opened {}
            Ok::<_, Error>(())
        };
        in_time(time, "to the opening of a session", greeting).await?;
        let shared = &self.shared;
        let applied = |batch: Batch, appended: Appended| resolve(shared, batch, appended);
        let topic = &shared.settings.topic;
        settle(&self.client, topic, &mut self.mark, &mut self.backlog, applied).await?;
        if self.backlog.is_empty() {
            self.backoff.succeeded();
        }
        self.stream = Some(stream);
        Ok(())
    }

    /// Sends and takes answers until the stream is lost or nothing is left to do.
    async fn work(&mut self) -> End {
        let mut stream = self.stream.take().expect("it was connected");
        loop {
            let (is_done, linger_until) = match self.send(&stream) {
                Ok(state) => state,
                // The stream's answer says why nothing more can be sent.
                Err(lost) => match stream.response().await {
                    Err(error) => return End::Lost(error),
                    Ok(response) => match self.take(&response) {
                        Ok(()) => return End::Lost(lost),
                        Err(error) => return End::Lost(error),
                    },
                },
            };
            if is_done {
                return End::Done;
            }
            let linger = async {
                match linger_until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                response = stream.response() => {
                    let taken = response.and_then(|response| self.take(&response));
                    if let Err(error) = taken {
                        return End::Lost(error);
                    }
                }
                () = self.shared.work.notified() => {}
                () = linger => {}
            }
        }
    }

    /// Sends what may be sent. Says whether the session is over, or until when the open batch may wait.
    fn send(&mut self, stream: &Stream) -> Result<(bool, Option<tokio::time::Instant>)> {
        let mut bytes: usize = self.sent.iter().map(|(_, bytes)| bytes).sum();
        loop {
            let next = match self.backlog.pop_front() {
                Some(batch) => Some(batch),
                None => {
                    let mut state = self.shared.state();
                    let is_idle = self.sent.is_empty() && state.queued.is_empty();
                    let linger_until = state.open.since().map(|since| since + self.shared.settings.linger);
                    let is_due = linger_until.is_some_and(|at| at <= tokio::time::Instant::now());
                    if is_idle || is_due || state.is_flushing || state.is_closing {
                        state.seal();
                    }
                    let next = state.queued.pop_front();
                    if next.is_none() {
                        let is_done = state.is_closing && self.sent.is_empty();
                        let linger_until =
                            state.open.since().map(|since| since + self.shared.settings.linger);
                        return Ok((is_done, linger_until));
                    }
                    next
                }
            };
            let Some(mut batch) = next else { continue };
            let settings = &self.shared.settings;
            let message = in_session(request(
                &settings.topic,
                batch.records.clone(),
                &options(settings.durability, false),
            ));
            let length = message.len();
            let has_room = self.sent.is_empty()
                || (bytes + length <= stream.granted_bytes && self.sent.len() < UNANSWERED_MAX);
            if !has_room {
                self.backlog.push_front(batch);
                // An answer makes room.
                return Ok((false, None));
            }
            // Before it is given away: from now on it may be applied.
            batch.was_sent = true;
            self.sent.push_back((batch, length));
            bytes += length;
            if stream.requests.try_send(message).is_err() {
                return Err(Error::Disconnected { message: "the session's stream was closed".into() });
            }
        }
    }

    fn take(&mut self, response: &v1::AppendSessionResponse) -> Result<()> {
        let Some(answer) = &response.response else { return Ok(()) };
        let appended = answered(answer)?;
        let (batch, _) =
            self.sent.pop_front().ok_or_else(|| Error::protocol("an answer to nothing that was asked"))?;
        if appended.next_offset.checked_sub(appended.first_offset) != Some(batch.count) {
            let error = Error::protocol("an answer for another number of records");
            batch.failed(&error);
            return Err(error);
        }
        self.backoff.succeeded();
        if let Some(mark) = &mut self.mark {
            mark.answered(appended.next_offset);
        }
        resolve(&self.shared, batch, appended);
        Ok(())
    }

    /// Ends the session: everything that is not answered gets the error.
    fn fail(self, error: &Error) {
        tracing::debug!(topic = self.shared.settings.topic, %error, "append session ended");
        let mut state = self.shared.state();
        state.seal();
        state.failed = Some(error.clone());
        state.buffered_bytes = 0;
        let queued = std::mem::take(&mut state.queued);
        drop(state);
        for batch in self.backlog.into_iter().chain(queued) {
            batch.failed(error);
        }
        self.shared.room.notify_waiters();
    }
}

impl Stream {
    /// The next response; its grant is noted.
    async fn response(&mut self) -> Result<v1::AppendSessionResponse> {
        let message =
            self.responses.message().await?.ok_or_else(|| Error::Disconnected {
                message: "the session ended without a status".into(),
            })?;
        let response =
            v1::AppendSessionResponse::decode(message).map_err(|error| Error::protocol(error.to_string()))?;
        if response.granted_bytes > 0 {
            self.granted_bytes = usize::try_from(response.granted_bytes).unwrap_or(usize::MAX);
        }
        Ok(response)
    }
}

/// Hands an answer to the tickets of a batch, and its room to others.
fn resolve(shared: &Shared, batch: Batch, appended: Appended) {
    shared.state().buffered_bytes -= batch.records.len();
    batch.applied(appended);
    shared.room.notify_waiters();
}
