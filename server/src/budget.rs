//! The bytes of appends that are on their way, over all calls and sessions, bounded together.
//!
//! A single append for which there is no room is refused. A session waits for room, each in its turn, and reads no further
//! meanwhile, so that HTTP/2 holds its client off. Sessions together get three quarters: bulk loads leave room for single
//! appends.
//!
//! Nobody waits for ever: what holds room is with the engine, and gives it back when that has answered, whatever clients
//! do. Therefore what holds room or waits for it must be polled even if its client reads nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Budget {
    all: Share,
    of_sessions: Share,
    waiting: AtomicU64,
}

/// Room that is held, until it is dropped.
#[derive(Debug)]
pub(crate) struct Room {
    _of_all: OwnedSemaphorePermit,
    _of_sessions: Option<OwnedSemaphorePermit>,
}

#[derive(Debug)]
struct Share {
    bytes: Arc<Semaphore>,
    limit: u32,
}

impl Share {
    fn new(limit: usize) -> Self {
        let limit = u32::try_from(limit).unwrap_or(u32::MAX);
        Self { bytes: Arc::new(Semaphore::new(limit as usize)), limit }
    }

    /// One that is larger than all there is takes all there is.
    fn of(&self, bytes: usize) -> u32 {
        u32::try_from(bytes).unwrap_or(u32::MAX).min(self.limit)
    }

    fn try_take(&self, bytes: usize) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.bytes).try_acquire_many_owned(self.of(bytes)).ok()
    }

    async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let permit = Arc::clone(&self.bytes).acquire_many_owned(self.of(bytes)).await;
        permit.expect("it is never closed")
    }
}

impl Budget {
    pub(crate) fn new(limit: usize) -> Self {
        let of_sessions = Share::new((limit / 4 * 3).max(1));
        Self { all: Share::new(limit), of_sessions, waiting: AtomicU64::new(0) }
    }

    /// Room for a single append, if there is any.
    pub(crate) fn try_take(&self, bytes: usize) -> Option<Room> {
        Some(Room { _of_all: self.all.try_take(bytes)?, _of_sessions: None })
    }

    /// Room for an append of a session, if there is any and no other session waits for it.
    pub(crate) fn try_take_for_session(&self, bytes: usize) -> Option<Room> {
        let of_sessions = self.of_sessions.try_take(bytes)?;
        let of_all = self.all.try_take(of_sessions.num_permits())?;
        Some(Room { _of_all: of_all, _of_sessions: Some(of_sessions) })
    }

    /// The same when there is room.
    pub(crate) async fn take_for_session(&self, bytes: usize) -> Room {
        let _waiting = Waiting::new(&self.waiting);
        // In this order: what waits for the others' room holds none of it.
        let of_sessions = self.of_sessions.take(bytes).await;
        let of_all = self.all.take(of_sessions.num_permits()).await;
        Room { _of_all: of_all, _of_sessions: Some(of_sessions) }
    }

    /// Bytes that are held.
    pub(crate) fn in_flight(&self) -> u64 {
        u64::from(self.all.limit).saturating_sub(self.all.bytes.available_permits() as u64)
    }

    /// Sessions that wait.
    pub(crate) fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }
}

/// Counts who waits; also those who give up.
struct Waiting<'a>(&'a AtomicU64);

impl<'a> Waiting<'a> {
    fn new(count: &'a AtomicU64) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test]
    async fn sessions_leave_a_quarter_to_single_appends_and_wait_in_turn() {
        let budget = Budget::new(100);
        let first = budget.try_take_for_session(70).expect("there is room");
        assert!(budget.try_take_for_session(6).is_none());
        let mut large = Box::pin(budget.take_for_session(40));
        assert!(poll!(&mut large).is_pending());
        let mut small = Box::pin(budget.take_for_session(1));
        assert!(poll!(&mut small).is_pending(), "a small one does not overtake");
        assert_eq!((budget.waiting(), budget.in_flight()), (2, 70));
        let single = budget.try_take(30).expect("sessions leave as much");
        assert!(budget.try_take(1).is_none());
        drop(first);
        drop(single);
        let (_large, _small) = (large.await, small.await);
        assert_eq!((budget.waiting(), budget.in_flight()), (0, 41));
    }

    #[tokio::test]
    async fn one_that_is_larger_than_all_goes_when_it_is_alone() {
        let budget = Budget::new(100);
        let small = budget.try_take(1).expect("there is room");
        assert!(budget.try_take(1000).is_none());
        let mut session = Box::pin(budget.take_for_session(1000));
        assert!(poll!(&mut session).is_ready(), "sessions' part is free, and so is as much of all");
        drop((small, session));
        assert!(budget.try_take(1000).is_some());
        assert_eq!(budget.in_flight(), 0);
    }
}
