//! Group commit under every interleaving of two and three threads.

use std::sync::Arc;

use super::Commit;
use crate::error::Error;
use crate::loom_tests::{Sleeper, model};
use crate::sync::{AtomicU64, Ordering};

/// A journal: appends move `written`, and a sync makes durable what was written when it began.
struct Journal {
    commit: Commit,
    written: AtomicU64,
    durable: AtomicU64,
    running: AtomicU64,
    syncs: AtomicU64,
    fails: bool,
}

impl Journal {
    fn new(fails: bool) -> Arc<Self> {
        Arc::new(Self {
            commit: Commit::default(),
            written: AtomicU64::new(0),
            durable: AtomicU64::new(0),
            running: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
            fails,
        })
    }

    fn write(&self) -> u64 {
        self.written.fetch_add(1, Ordering::AcqRel) + 1
    }

    fn sync(&self) -> Result<u64, Error> {
        assert_eq!(self.running.fetch_add(1, Ordering::AcqRel), 0, "one sync at a time");
        self.syncs.fetch_add(1, Ordering::AcqRel);
        let written = self.written.load(Ordering::Acquire);
        if !self.fails {
            self.durable.fetch_max(written, Ordering::AcqRel);
        }
        self.running.fetch_sub(1, Ordering::AcqRel);
        if self.fails { Err(Error::ReadOnly) } else { Ok(written) }
    }

    fn append(&self) -> Result<(), Error> {
        let position = self.write();
        self.commit.wait(position, || self.sync())?;
        assert!(self.durable.load(Ordering::Acquire) >= position, "acknowledged before it was synced");
        Ok(())
    }

    /// As a task does it: polls, and sleeps until it is woken.
    fn poll(&self, position: u64) -> Result<(), Error> {
        let (sleeper, waker) = Sleeper::new();
        let mut id = None;
        loop {
            match self.commit.poll(position, &mut id, &waker) {
                Some(outcome) => return outcome,
                None => sleeper.sleep(),
            }
        }
    }
}

#[test]
fn each_of_three_writers_is_acknowledged_after_a_sync_that_began_after_its_write() {
    model(|| {
        let journal = Journal::new(false);
        let others = [(); 2].map(|()| {
            let journal = Arc::clone(&journal);
            loom::thread::spawn(move || journal.append().unwrap())
        });
        journal.append().unwrap();
        others.into_iter().for_each(|other| other.join().unwrap());
        assert_eq!(journal.commit.synced(), 3);
    });
}

#[test]
fn one_failed_sync_reaches_everybody_and_none_is_tried_again() {
    model(|| {
        let journal = Journal::new(true);
        let others = [(); 2].map(|()| {
            let journal = Arc::clone(&journal);
            loom::thread::spawn(move || journal.append().unwrap_err())
        });
        journal.append().unwrap_err();
        others.into_iter().for_each(|other| drop(other.join().unwrap()));
        assert_eq!(journal.syncs.load(Ordering::Acquire), 1);
        assert_eq!(journal.commit.synced(), 0);
    });
}

#[test]
fn a_task_is_woken_when_another_thread_has_synced_or_failed() {
    for fails in [false, true] {
        model(move || {
            let journal = Journal::new(fails);
            let position = journal.write();
            let task = Arc::clone(&journal);
            let task = loom::thread::spawn(move || task.poll(position).is_err());
            assert_eq!(journal.commit.wait(position, || journal.sync()).is_err(), fails);
            assert_eq!(task.join().unwrap(), fails);
        });
    }
}

#[test]
fn whoever_waits_while_the_store_is_closed_is_woken() {
    model(|| {
        let journal = Journal::new(false);
        let position = journal.write();
        let task = Arc::clone(&journal);
        let task = loom::thread::spawn(move || task.poll(position));
        journal.commit.fail(Error::Closed);
        assert!(matches!(task.join().unwrap(), Err(Error::Closed)));
    });
}
