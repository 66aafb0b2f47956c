//! The watch under every interleaving of a writer and its waiters: no wake-up is lost.

use std::sync::Arc;

use super::Watch;
use crate::loom_tests::{Sleeper, model};
use crate::sync::{AtomicU64, Ordering};

/// A topic, as far as its readers wait for it.
#[derive(Default)]
struct Topic {
    high_watermark: AtomicU64,
    watch: Watch,
}

impl Topic {
    fn publish(&self, offset: u64) {
        self.high_watermark.store(offset, Ordering::Release);
        self.watch.notify();
    }

    fn has(&self, offset: u64) -> bool {
        self.high_watermark.load(Ordering::Acquire) >= offset
    }

    /// As a thread waits.
    fn block(&self, offset: u64) {
        assert!(self.watch.wait_until(None, || self.has(offset)));
    }

    /// As a task waits: looks, registers, looks again, sleeps.
    fn poll(&self, offset: u64) {
        let (sleeper, waker) = Sleeper::new();
        let mut id = None;
        while !self.has(offset) {
            id = Some(self.watch.register(id, &waker));
            if self.has(offset) {
                break;
            }
            sleeper.sleep();
        }
        if let Some(id) = id {
            self.watch.forget(id);
        }
    }
}

/// A writer that publishes `offsets` one after the other beside `waiters`.
fn publishes_to(offsets: u64, waiters: &'static [fn(&Topic, u64)]) {
    model(move || {
        let topic = Arc::new(Topic::default());
        let threads: Vec<_> = waiters
            .iter()
            .map(|wait| {
                let topic = Arc::clone(&topic);
                loom::thread::spawn(move || wait(&topic, offsets))
            })
            .collect();
        (1..=offsets).for_each(|offset| topic.publish(offset));
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        assert_eq!(topic.watch.waiting.load(Ordering::SeqCst), 0, "everybody has left");
    });
}

#[test]
fn a_thread_that_waits_is_woken() {
    publishes_to(2, &[Topic::block]);
}

#[test]
fn a_task_that_waits_is_woken() {
    publishes_to(2, &[Topic::poll]);
}

#[test]
fn a_thread_and_a_task_that_wait_are_both_woken() {
    publishes_to(1, &[Topic::block, Topic::poll]);
}

#[test]
fn two_threads_that_wait_are_both_woken() {
    publishes_to(1, &[Topic::block, Topic::block]);
}
