//! Waking those who wait for more records.
//!
//! A waiter looks at the watermark, registers, looks again, and sleeps; a writer moves the watermark and then
//! looks for waiters. Both sides use sequentially consistent operations on `waiting`, so that one of the two sees
//! the other: no wake-up is lost. Without waiters a wake-up is one load.

use std::task::Waker;
use std::time::{Duration, Instant};

use crate::sync::{AtomicUsize, Condvar, Mutex, Ordering};

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Watch {
    waiting: AtomicUsize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    wakers: Vec<(u64, Waker)>,
    next_id: u64,
}

impl Watch {
    /// Wakes all who wait. Call it after the change.
    pub(crate) fn notify(&self) {
        // Orders the change before the look at `waiting`; see `wait_until`.
        crate::sync::fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let wakers = {
            let mut state = crate::sync::lock(&self.state);
            self.waiting.fetch_sub(state.wakers.len(), Ordering::SeqCst);
            std::mem::take(&mut state.wakers)
        };
        self.changed.notify_all();
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Blocks until `done` holds or the deadline has passed; says whether it holds.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>, done: impl Fn() -> bool) -> bool {
        if done() {
            return true;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        crate::sync::fence(Ordering::SeqCst);
        let mut state = crate::sync::lock(&self.state);
        let holds = loop {
            if done() {
                break true;
            }
            match deadline {
                None => state = crate::sync::wait(&self.changed, state),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        break false;
                    }
                    state = crate::sync::wait_for(&self.changed, state, left.min(Duration::from_secs(3600)));
                }
            }
        };
        drop(state);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        holds
    }

    /// Registers a waker for the next change, in place of the one registered under `id`; returns the new id. The
    /// caller looks again at what it waits for after this and before it sleeps.
    pub(crate) fn register(&self, id: Option<u64>, waker: &Waker) -> u64 {
        let mut state = crate::sync::lock(&self.state);
        if let Some(id) = id
            && let Some(slot) = state.wakers.iter_mut().find(|(slot, _)| *slot == id)
        {
            slot.1.clone_from(waker);
            return id;
        }
        let id = state.next_id;
        state.next_id += 1;
        state.wakers.push((id, waker.clone()));
        self.waiting.fetch_add(1, Ordering::SeqCst);
        drop(state);
        crate::sync::fence(Ordering::SeqCst);
        id
    }

    /// Forgets a waker, when its owner goes.
    pub(crate) fn forget(&self, id: u64) {
        let mut state = crate::sync::lock(&self.state);
        let before = state.wakers.len();
        state.wakers.retain(|(slot, _)| *slot != id);
        self.waiting.fetch_sub(before - state.wakers.len(), Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
