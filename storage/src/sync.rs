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
    Mutex, MutexGuard,
    atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence},
};

pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panicked while it held the lock")
}

#[cfg(loom)]
fn wait<'a, T>(condition: &Condvar, guard: MutexGuard<'a, T>) -> MutexGuard<'a, T> {
    condition.wait(guard).expect("no thread panicked while it held the lock")
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

    /// Sleeps until `round` is over, or for so long; may return before.
    pub(crate) fn wait(&self, round: u32, time: Option<Duration>) {
        let time = time.map(|time| rustix::time::Timespec {
            tv_sec: i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        });
        // Interrupted, late, or over already: the caller looks again either way.
        let flags = rustix::thread::futex::Flags::PRIVATE;
        let _ = rustix::thread::futex::wait(&self.number, flags, round, time.as_ref());
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

    /// Loom has no time: a wait with an end is one without.
    pub(crate) fn wait(&self, round: u32, _: Option<Duration>) {
        let number = lock(&self.number);
        if *number == round {
            drop(wait(&self.over, number));
        }
    }
}
