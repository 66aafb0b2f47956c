//! Group commit: one sync for all who wait.
//!
//! Whoever needs a sync and finds none running runs it, for everything written so far; whoever finds one running
//! waits, and one of those runs the next. So a lone writer syncs at once, and many writers share: the longer a
//! sync takes, the more of them share the next.
//!
//! Promises:
//!
//! - `wait` returns `Ok` only if a sync that began after the target was written has succeeded.
//! - After a sync has failed no later one is tried, and everybody who waits or comes learns of the failure.
//! - A waiter whose sync is done is woken.

use std::task::Waker;
#[cfg(not(loom))]
use std::time::Duration;
use std::time::Instant;

use crate::error::Error;
use crate::sync::{AtomicBool, AtomicU64, AtomicUsize, Mutex, Ordering, Rounds};

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Commit {
    synced: AtomicU64,
    is_running: AtomicBool,
    has_failed: AtomicBool,
    /// How many have come since the last sync began. Not how many wait: those whom the last sync has served, and who have
    /// not run since, would count among them.
    arrived: AtomicUsize,
    /// How many had come when the last sync began: those will likely be back soon.
    expected: AtomicUsize,
    /// How long the last sync took, in nanoseconds.
    last_sync: AtomicU64,
    /// One round for each sync. Whoever waits sleeps until the round is over, and holds no lock when it wakes: with
    /// many writers most of them have nothing left to do then but to return.
    rounds: Rounds,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failure: Option<Error>,
    wakers: Vec<(u64, u64, Waker)>,
    next_id: u64,
}

impl Commit {
    /// Everything below this position is synced.
    pub(crate) fn synced(&self) -> u64 {
        self.synced.load(Ordering::Acquire)
    }

    /// Sets the position, when a store opens.
    pub(crate) fn start_at(&self, position: u64) {
        self.synced.store(position, Ordering::Release);
    }

    /// Waits until everything below `target` is synced, running `sync` if nobody else does. `sync` syncs everything
    /// written before it is called and returns up to where. Says whether another thread's sync was shared.
    pub(crate) fn wait(&self, target: u64, sync: impl Fn() -> Result<u64, Error>) -> Result<bool, Error> {
        if self.synced() >= target {
            return Ok(true);
        }
        self.arrived.fetch_add(1, Ordering::AcqRel);
        let mut shared = true;
        loop {
            // Before the looks: a round that ends after them is noticed by the sleep.
            let round = self.rounds.current();
            if self.synced() >= target {
                return Ok(shared);
            }
            if self.has_failed.load(Ordering::Acquire) {
                return Err(self.failure());
            }
            if self.is_running.compare_exchange(false, true, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                // The round may have ended between the look and this: then there may be nothing to do.
                let mut wakers = Vec::new();
                if self.synced() < target && !self.has_failed.load(Ordering::Acquire) {
                    shared = false;
                    wakers = self.lead(&sync);
                }
                self.is_running.store(false, Ordering::Release);
                self.rounds.end();
                // Not before: what is woken may itself wait for a sync.
                wakers.into_iter().for_each(Waker::wake);
            } else {
                self.rounds.wait(round, None);
            }
        }
    }

    /// Whether everything below `target` is synced; if not, registers a waker (in place of the one registered under
    /// `id`) that is woken when it is, or when it cannot be.
    pub(crate) fn poll(&self, target: u64, id: &mut Option<u64>, waker: &Waker) -> Option<Result<(), Error>> {
        if self.synced() >= target {
            return Some(Ok(()));
        }
        let mut state = crate::sync::lock(&self.state);
        // Under the lock: whoever syncs takes it afterwards, to find the wakers.
        if self.synced() >= target {
            return Some(Ok(()));
        }
        if let Some(failure) = &state.failure {
            return Some(Err(failure.clone()));
        }
        if let Some(slot) = id.and_then(|id| state.wakers.iter_mut().find(|(_, slot, _)| *slot == id)) {
            slot.2.clone_from(waker);
            return None;
        }
        let new = state.next_id;
        state.next_id += 1;
        state.wakers.push((target, new, waker.clone()));
        *id = Some(new);
        None
    }

    /// Forgets a waker, when its owner goes.
    pub(crate) fn forget(&self, id: u64) {
        crate::sync::lock(&self.state).wakers.retain(|(_, slot, _)| *slot != id);
    }

    /// Everybody who waits or comes learns of `failure`.
    pub(crate) fn fail(&self, failure: Error) {
        self.fail_and_wake_later(failure).into_iter().for_each(Waker::wake);
    }

    /// The same, but tasks are woken by the caller, who holds what they may want.
    #[must_use]
    pub(crate) fn fail_and_wake_later(&self, failure: Error) -> Vec<Waker> {
        let wakers = self.set_failure(failure);
        self.rounds.end();
        wakers
    }

    /// Answers whom to wake.
    fn set_failure(&self, failure: Error) -> Vec<Waker> {
        let mut state = crate::sync::lock(&self.state);
        state.failure.get_or_insert(failure);
        self.has_failed.store(true, Ordering::Release);
        state.wakers.drain(..).map(|(_, _, waker)| waker).collect()
    }

    fn failure(&self) -> Error {
        crate::sync::lock(&self.state).failure.clone().expect("it is set before it is announced")
    }

    /// Runs a sync; answers whom to wake.
    fn lead(&self, sync: &impl Fn() -> Result<u64, Error>) -> Vec<Waker> {
        self.gather();
        self.expected.store(self.arrived.swap(0, Ordering::AcqRel), Ordering::Release);
        let begun = Instant::now();
        let outcome = sync();
        let took = u64::try_from(begun.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.last_sync.store(took, Ordering::Release);
        match outcome {
            Ok(synced) => {
                self.synced.fetch_max(synced, Ordering::AcqRel);
                let mut state = crate::sync::lock(&self.state);
                let done = state.wakers.extract_if(.., |(target, _, _)| *target <= synced);
                done.map(|(_, _, waker)| waker).collect()
            }
            Err(error) => self.set_failure(error),
        }
    }

    /// Lets those who shared the last sync come back, so that this one is worth it; not for longer than a sync
    /// takes, and not at all for a lone writer.
    #[cfg(not(loom))]
    fn gather(&self) {
        let expected = self.expected.load(Ordering::Acquire);
        let patience =
            Duration::from_nanos(self.last_sync.load(Ordering::Acquire)).min(Duration::from_millis(1));
        let begun = Instant::now();
        while self.arrived.load(Ordering::Acquire) < expected && begun.elapsed() < patience {
            std::thread::yield_now();
        }
    }

    #[cfg(loom)]
    fn gather(&self) {}
}

#[cfg(all(test, loom))]
mod loom_tests;
