//! What an append answers when it is written: a ticket for the sync.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use super::Handle;
use super::append::Appended;
use crate::error::Result;
use crate::types::Position;

/// An append that was written and may still have to be synced.
///
/// Wait for it with [`wait`](Self::wait), or as a future. It may also be dropped: the records are synced in any case.
#[derive(Debug)]
#[must_use = "without waiting for it nothing is known about the append"]
pub struct Ticket {
    pub(super) handle: Arc<Handle>,
    pub(super) position: Position,
    /// Whether it is done only when everything below `position` is synced.
    pub(super) awaits_sync: bool,
    pub(super) appended: Vec<Appended>,
    pub(super) waker: Option<u64>,
    /// For the latency of those that wait for the disk; the others would spend more on the clock than on the append.
    pub(super) begun: Option<Instant>,
}

impl Ticket {
    /// Where the records are, whether they are durable yet or not.
    pub fn appended(&self) -> &[Appended] {
        &self.appended
    }

    /// Blocks until the append is as durable as was asked for; one answer for each topic, in order of first mention.
    ///
    /// # Errors
    /// [`Error::StorageFailed`](crate::Error::StorageFailed): whether the records survive is known when the store is reopened.
    pub fn wait(mut self) -> Result<Vec<Appended>> {
        let inner = &self.handle.inner;
        if self.awaits_sync {
            inner.wait_synced(self.position)?;
        }
        self.record_latency();
        Ok(std::mem::take(&mut self.appended))
    }
}

impl Ticket {
    fn record_latency(&self) {
        if let Some(begun) = self.begun {
            self.handle.inner.context.counters.append_latency.record(begun.elapsed());
        }
    }
}

impl Future for Ticket {
    type Output = Result<Vec<Appended>>;

    fn poll(mut self: Pin<&mut Self>, task: &mut TaskContext<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        let inner = &this.handle.inner;
        if this.awaits_sync {
            match inner.commit.poll(this.position.0, &mut this.waker, task.waker()) {
                Some(Ok(())) => {}
                Some(Err(error)) => return Poll::Ready(Err(error)),
                None => {
                    inner.wake.sync.signal();
                    return Poll::Pending;
                }
            }
        }
        this.record_latency();
        Poll::Ready(Ok(std::mem::take(&mut this.appended)))
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(id) = self.waker {
            self.handle.inner.commit.forget(id);
        }
    }
}
