//! What an append answers when it is written: a ticket for the sync. And what it answers if that would have blocked.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use super::Handle;
use super::append::{Appended, Outcome, Written};
use super::prepared::{Patience, Prepared};
use super::repeat::Repeat;
use crate::error::Result;
use crate::types::Position;

/// An append that was written and may still have to be synced; or one that is refused, because conditions did not hold or its
/// producer, request id or fencing token keeps it out, of which it is not certain yet that what this rests on stays.
///
/// Wait for it with [`wait`](Self::wait), or as a future. It may also be dropped: the records are synced in any case.
#[derive(Debug)]
#[must_use = "without waiting for it nothing is known about the append"]
pub struct Ticket {
    handle: Arc<Handle>,
    position: Position,
    /// Whether it is done only when everything below `position` is synced.
    awaits_sync: bool,
    outcome: Result<Vec<Appended>>,
    is_duplicate: bool,
    /// Revisions of it have to be read yet.
    unread: Option<Repeat>,
    waker: Option<u64>,
    /// For the latency of those that wait for the disk; the others would spend more on the clock than on the append.
    begun: Option<Instant>,
}

impl Ticket {
    pub(super) fn new(handle: Arc<Handle>, written: Written, begun: Option<Instant>) -> Self {
        let Written { position, awaits_sync, outcome } = written;
        let (mut is_duplicate, mut unread) = (false, None);
        let outcome = match outcome {
            Outcome::Appended(appended) => Ok(appended),
            Outcome::Refused(error) => Err(error),
            Outcome::Repeat(repeat) => {
                handle.inner.context.counters.appends_repeated.add(1);
                let (appended, lacks_revisions) = repeat.appended();
                (is_duplicate, unread) = (true, lacks_revisions.then_some(repeat));
                Ok(appended)
            }
        };
        Self { handle, position, awaits_sync, outcome, is_duplicate, unread, waker: None, begun }
    }

    /// Where the records are, whether they are durable yet or not. Nowhere if the append [was refused](Self::is_refused),
    /// and without the revisions if it [reads](Self::reads).
    pub fn appended(&self) -> &[Appended] {
        self.outcome.as_deref().unwrap_or_default()
    }

    /// Whether conditions of the append did not hold, or its producer, request id or fencing token keeps it out, so that nothing
    /// was appended and never will be. Why, waiting tells, when everything that it rests on is synced: what is said of the
    /// store stays true after a power cut, whatever durability was asked for.
    pub fn is_refused(&self) -> bool {
        // A repeat was applied, whatever became of reading its answer.
        self.outcome.is_err() && !self.is_duplicate
    }

    /// Whether it had been applied before: then [`appended`](Self::appended) is the answer of that time, or empty if it is
    /// one of a [`producer`](crate::Append::producer) that is not kept any more.
    pub fn is_duplicate(&self) -> bool {
        self.is_duplicate
    }

    /// Whether waiting for it reads a file: of a repeat of a large append the revisions stand in its batch only. Who may not
    /// block has others [read](Self::read) them.
    pub fn reads(&self) -> bool {
        self.unread.is_some()
    }

    /// Reads what waiting for it would read. If that cannot be read, waiting tells the error.
    pub fn read(mut self) -> Self {
        self.read_revisions();
        self
    }

    fn read_revisions(&mut self) {
        if let (Some(repeat), Ok(appended)) = (self.unread.take(), &mut self.outcome)
            && let Err(error) = repeat.read(appended)
        {
            self.outcome = Err(error);
        }
    }

    /// Blocks until the append is as durable as was asked for; one answer for each topic, in order of first mention.
    ///
    /// # Errors
    /// Why it [was refused](Self::is_refused), such as [`Error::ConditionFailed`](crate::Error::ConditionFailed): nothing was
    /// appended. [`Error::StorageFailed`](crate::Error::StorageFailed): whether the records survive is known
    /// when the store is reopened. Of a repeat that [reads](Self::reads), also that its revisions cannot be read: it had been
    /// applied, and may be repeated once more.
    pub fn wait(mut self) -> Result<Vec<Appended>> {
        let inner = &self.handle.inner;
        if self.awaits_sync {
            inner.wait_synced(self.position)?;
        }
        self.take_outcome()
    }

    fn take_outcome(&mut self) -> Result<Vec<Appended>> {
        if let Some(begun) = self.begun.filter(|_| !self.is_refused()) {
            self.handle.inner.context.counters.append_latency.record(begun.elapsed());
        }
        self.read_revisions();
        std::mem::replace(&mut self.outcome, Ok(Vec::new()))
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
        Poll::Ready(this.take_outcome())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if let Some(id) = self.waker {
            self.handle.inner.commit.forget(id);
        }
    }
}

/// What came of an append that was not to block.
#[derive(Debug)]
#[must_use = "the append may be postponed, or have to be synced"]
pub enum Submission {
    /// It was written, or it had been before.
    Submitted(Ticket),
    /// It would have blocked.
    Postponed(Postponed),
}

/// An append of which nothing was applied yet: the disk is to be read for it, its conditions do not hold (to tell which may
/// take the disk), or there is no room, or none without a sync.
#[derive(Debug)]
#[must_use = "nothing was appended yet"]
pub struct Postponed {
    pub(super) handle: Arc<Handle>,
    pub(super) prepared: Prepared,
    pub(super) begun: Option<Instant>,
}

impl Postponed {
    /// Goes on with it, blocking where it must: see [`Store::begin`](crate::Store::begin).
    ///
    /// # Errors
    /// As [`Store::begin`](crate::Store::begin).
    pub fn begin(self) -> Result<Ticket> {
        self.start(Patience::Room)
    }

    pub(super) fn try_submit(mut self) -> Result<Submission> {
        Ok(match self.write(Patience::None)? {
            Some(written) => Submission::Submitted(Ticket::new(self.handle, written, self.begun)),
            None => Submission::Postponed(self),
        })
    }

    pub(super) fn start(mut self, patience: Patience) -> Result<Ticket> {
        let written = self.write(patience)?.expect("only one without patience is postponed");
        Ok(Ticket::new(self.handle, written, self.begun))
    }

    fn write(&mut self, patience: Patience) -> Result<Option<Written>> {
        let inner = &self.handle.inner;
        let written = inner.write(&mut self.prepared, patience);
        if matches!(written, Err(_) | Ok(Some(Written { outcome: Outcome::Refused(_), .. }))) {
            inner.context.counters.appends_refused.add(1);
        }
        written
    }
}
