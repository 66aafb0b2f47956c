//! Locks and atomics of the parts that loom checks: the real ones, or loom's.
//!
//! A poisoned lock means that a thread of ours panicked while it held it: an invariant is broken, and to go on
//! would be to guess. So the helpers here panic in turn.

use std::time::Duration;

#[cfg(loom)]
pub(crate) use loom::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};
#[cfg(not(loom))]
pub(crate) use std::sync::{
    Condvar, Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked while it held the lock")
}

pub(crate) fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).expect("no thread panicked while it held the lock")
}

#[cfg(not(loom))]
pub(crate) fn wait_for<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    time: Duration,
) -> MutexGuard<'a, T> {
    condition.wait_timeout(guard, time).expect("no thread panicked while it held the lock").0
}

/// Loom has no time: a wait with a deadline is one without.
#[cfg(loom)]
pub(crate) fn wait_for<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    _: Duration,
) -> MutexGuard<'a, T> {
    wait(condition, guard)
}

/// Numbered rounds, to sleep until one is over.
#[cfg(not(loom))]
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    number: std::sync::atomic::AtomicU32,
}

#[cfg(not(loom))]
impl Rounds {
    /// The round that is on.
    pub(crate) fn current(&self) -> u32 {
        self.number.load(Ordering::Acquire)
    }

    /// Ends the round and wakes all who wait for that.
    pub(crate) fn end(&self) {
        self.number.fetch_add(1, Ordering::AcqRel);
        // Fails for no reason that a waiter could be helped with.
        let _ =
            rustix::thread::futex::wake(&self.number, rustix::thread::futex::Flags::PRIVATE, i32::MAX as u32);
    }

    /// Sleeps until `round` is over; may return before.
    pub(crate) fn wait(&self, round: u32) {
        // Interrupted, or over already: the caller looks again either way.
        let _ = rustix::thread::futex::wait(&self.number, rustix::thread::futex::Flags::PRIVATE, round, None);
    }
}

/// The same with what loom knows.
#[cfg(loom)]
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    number: Mutex<u32>,
    over: Condvar,
}

#[cfg(loom)]
impl Rounds {
    pub(crate) fn current(&self) -> u32 {
        *lock(&self.number)
    }

    pub(crate) fn end(&self) {
        *lock(&self.number) += 1;
        self.over.notify_all();
    }

    pub(crate) fn wait(&self, round: u32) {
        let number = lock(&self.number);
        if *number == round {
            drop(wait(&self.over, number));
        }
    }
}
