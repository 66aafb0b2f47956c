//! Waking those who wait for more records.
//!
//! A waiter looks at the watermark, registers, looks again, and sleeps; a writer moves the watermark and then
//! looks for waiters. Both sides use sequentially consistent operations on `waiting`, so that one of the two sees
//! the other: no wake-up is lost. Without waiters a wake-up is one load.

use std::task::Waker;
use std::time::{Duration, Instant};

use crate::sync::{AtomicUsize, Mutex, Ordering, Rounds};

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Watch {
    waiting: AtomicUsize,
    rounds: Rounds,
    wakers: Mutex<Wakers>,
}

#[derive(Debug, Default)]
struct Wakers {
    registered: Vec<(u64, Waker)>,
    next_id: u64,
}

impl Watch {
    /// Whether somebody waits. A plain look: whoever changes something under a lock, looks here under the same
    /// lock, and is waited for by those who take that lock between registering and looking at the change, needs no
    /// more than this to know whether to [`notify`](Self::notify).
    pub(crate) fn has_waiters(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) != 0
    }

    /// Wakes all who wait. Call it after the change.
    pub(crate) fn notify(&self) {
        // Orders the change before the look at `waiting`; see `wait_until`.
        crate::sync::fence(Ordering::SeqCst);
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let wakers = {
            let mut wakers = crate::sync::lock(&self.wakers);
            self.waiting.fetch_sub(wakers.registered.len(), Ordering::SeqCst);
            std::mem::take(&mut wakers.registered)
        };
        self.rounds.end();
        wakers.into_iter().for_each(|(_, waker)| waker.wake());
    }

    /// Blocks until `done` holds or the deadline has passed; says whether it holds. No lock is held while `done` looks,
    /// so it may take any.
    pub(crate) fn wait_until(&self, deadline: Option<Instant>, done: impl Fn() -> bool) -> bool {
        if done() {
            return true;
        }
        self.waiting.fetch_add(1, Ordering::SeqCst);
        crate::sync::fence(Ordering::SeqCst);
        let holds = loop {
            // Before the look: a round that ends after it is noticed by the sleep.
            let round = self.rounds.current();
            if done() {
                break true;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                break false;
            }
            self.rounds.wait(round, left.map(|left| left.min(Duration::from_secs(3600))));
        };
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        holds
    }

    /// Registers a waker for the next change, in place of the one registered under `id`; returns the new id. The
    /// caller looks again at what it waits for after this and before it sleeps.
    pub(crate) fn register(&self, id: Option<u64>, waker: &Waker) -> u64 {
        let mut wakers = crate::sync::lock(&self.wakers);
        if let Some(id) = id
            && let Some(slot) = wakers.registered.iter_mut().find(|(slot, _)| *slot == id)
        {
            slot.1.clone_from(waker);
            return id;
        }
        let id = wakers.next_id;
        wakers.next_id += 1;
        wakers.registered.push((id, waker.clone()));
        self.waiting.fetch_add(1, Ordering::SeqCst);
        drop(wakers);
        crate::sync::fence(Ordering::SeqCst);
        id
    }

    /// Forgets a waker, when its owner goes.
    pub(crate) fn forget(&self, id: u64) {
        let mut wakers = crate::sync::lock(&self.wakers);
        let before = wakers.registered.len();
        wakers.registered.retain(|(slot, _)| *slot != id);
        self.waiting.fetch_sub(before - wakers.registered.len(), Ordering::SeqCst);
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
