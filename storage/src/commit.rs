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
use std::time::{Duration, Instant};

use crate::error::Error;
use crate::sync::{AtomicU64, Condvar, Mutex, MutexGuard, Ordering};

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Commit {
    state: Mutex<State>,
    done: Condvar,
    /// Copy of the state's, to be read without the lock.
    synced: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    synced: u64,
    is_running: bool,
    failure: Option<Error>,
    /// Who waits right now, threads and wakers together.
    waiting: usize,
    /// How many waited when the last sync began: those will likely be back soon.
    expected: usize,
    /// How long the last sync took.
    last_sync: Duration,
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
        crate::sync::lock(&self.state).synced = position;
        self.synced.store(position, Ordering::Release);
    }

    /// Waits until everything below `target` is synced, running `sync` if nobody else does. `sync` syncs everything
    /// written before it is called and returns up to where. Says whether another thread's sync was shared.
    pub(crate) fn wait(&self, target: u64, sync: impl Fn() -> Result<u64, Error>) -> Result<bool, Error> {
        let mut shared = true;
        if self.synced() >= target {
            return Ok(shared);
        }
        let mut state = crate::sync::lock(&self.state);
        state.waiting += 1;
        loop {
            if state.synced >= target {
                break;
            }
            if let Some(failure) = &state.failure {
                let failure = failure.clone();
                state.waiting -= 1;
                return Err(failure);
            }
            if state.is_running {
                state = crate::sync::wait(&self.done, state);
            } else {
                shared = false;
                state = self.lead(state, &sync);
            }
        }
        state.waiting -= 1;
        Ok(shared)
    }

    /// Whether everything below `target` is synced; if not, registers a waker (in place of the one registered under
    /// `id`) that is woken when it is, or when it cannot be.
    pub(crate) fn poll(&self, target: u64, id: &mut Option<u64>, waker: &Waker) -> Option<Result<(), Error>> {
        if self.synced() >= target {
            return Some(Ok(()));
        }
        let mut state = crate::sync::lock(&self.state);
        if state.synced >= target {
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
        let mut state = crate::sync::lock(&self.state);
        state.failure.get_or_insert(failure);
        let wakers = std::mem::take(&mut state.wakers);
        drop(state);
        self.done.notify_all();
        wakers.into_iter().for_each(|(_, _, waker)| waker.wake());
    }

    fn lead<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        sync: &impl Fn() -> Result<u64, Error>,
    ) -> MutexGuard<'a, State> {
        state.is_running = true;
        state = self.gather(state);
        state.expected = state.waiting;
        drop(state);
        let begun = Instant::now();
        let outcome = sync();
        let took = begun.elapsed();
        let mut state = crate::sync::lock(&self.state);
        state.is_running = false;
        state.last_sync = took;
        let mut wakers = Vec::new();
        match outcome {
            Ok(synced) => {
                state.synced = state.synced.max(synced);
                self.synced.store(state.synced, Ordering::Release);
                let synced = state.synced;
                wakers.extend(state.wakers.extract_if(.., |(target, _, _)| *target <= synced));
            }
            Err(error) => {
                state.failure.get_or_insert(error);
                wakers.append(&mut state.wakers);
            }
        }
        self.done.notify_all();
        wakers.into_iter().for_each(|(_, _, waker)| waker.wake());
        state
    }

    /// Lets those who shared the last sync come back, so that this one is worth it; not for longer than a
    /// fraction of what a sync takes, and not at all for a lone writer.
    #[cfg(not(loom))]
    fn gather<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        let patience = state.last_sync.min(Duration::from_millis(2)) / 2;
        let begun = Instant::now();
        while state.waiting < state.expected && begun.elapsed() < patience {
            drop(state);
            std::thread::yield_now();
            state = crate::sync::lock(&self.state);
        }
        state
    }

    #[cfg(loom)]
    fn gather<'a>(&'a self, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        state
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
