//! A store that has failed or is being closed, and those who wait for it: nobody waits for what will not come, and all
//! are told the same.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::future::Future as _;
use std::path::Path;
use std::pin::pin;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Barrier, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use quipu_storage::disk::Disk as _;

use quipu_storage::{
    Append, Durability, ErrorKind, Log, LogSettings, Record, Start, Store, StoreSettings, TopicSettings,
    Visibility,
};
use quipu_tests::faulty::{EIO, Fault, FaultyDisk, OpKind};
use quipu_tests::sim::SimDisk;

/// Nobody waits so long unless it is for ever.
const FOR_EVER: Duration = Duration::from_secs(30);

fn disk() -> FaultyDisk {
    let sim = SimDisk::new();
    sim.create_dir(Path::new("/store")).unwrap();
    FaultyDisk::over_sim(sim)
}

/// Does nothing by itself in the time that a test takes, with its threads or without.
fn open(disk: &FaultyDisk, background: bool) -> Store {
    let long = Duration::from_secs(3600);
    let settings = StoreSettings {
        background,
        sync_interval: long,
        checkpoint_interval: long,
        retention_interval: long,
        ..StoreSettings::default()
    };
    Store::builder().settings(settings).disk(Arc::new(disk.clone())).open("/store").unwrap()
}

/// Tells when it is woken.
struct Bell(Sender<()>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        // The test may be over.
        let _ = self.0.send(());
    }
}

fn bell() -> (Waker, Receiver<()>) {
    let (sender, rung) = channel();
    (Waker::from(Arc::new(Bell(sender))), rung)
}

/// A follower slept on when the store had failed: what it waited for was more records, the end of the topic or of the
/// store, and none of them came.
#[test]
fn a_follower_learns_that_the_store_has_failed() {
    for background in [false, true] {
        let disk = disk();
        let store = open(&disk, background);
        let topic = store.create_topic("t", TopicSettings::default()).unwrap();
        topic.append(&[Record::new("first")]).unwrap();
        let (sender, followed) = channel();
        let of_follower = topic.clone();
        let follower = std::thread::spawn(move || {
            for record in of_follower.follow(Start::Earliest).unwrap() {
                sender.send(record.map(|record| record.offset().0)).unwrap();
            }
        });
        assert_eq!(followed.recv_timeout(FOR_EVER).unwrap().unwrap(), 0);

        disk.fail(Fault::of(OpKind::Sync, 1, EIO));
        assert_eq!(topic.append(&[Record::new("second")]).unwrap_err().kind(), ErrorKind::Reopen);

        let heard = followed.recv_timeout(FOR_EVER).expect("it waits for ever");
        assert_eq!(heard.unwrap_err().kind(), ErrorKind::Reopen);
        follower.join().unwrap();
        assert!(followed.try_recv().is_err(), "after the error it ends");

        // What is there is still read; and only then comes the failure.
        let mut cursor = topic.cursor(Start::Earliest, Visibility::Synced).unwrap();
        assert!(cursor.wait(None).unwrap());
        cursor.next_batch().unwrap().unwrap();
        assert_eq!(cursor.wait(None).unwrap_err().kind(), ErrorKind::Reopen);
        assert_eq!(store.close().unwrap_err().kind(), ErrorKind::Reopen);
        assert_eq!(cursor.wait(None).unwrap_err().kind(), ErrorKind::Reopen);
    }
}

/// The failure was met by the thread that makes checkpoints, and nobody else ever called the store again.
#[test]
fn a_task_that_polls_a_cursor_is_woken_when_a_checkpoint_fails() {
    let disk = disk();
    let store = open(&disk, false);
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    topic.append(&[Record::new("first")]).unwrap();
    let mut cursor = topic.cursor(Start::Latest, Visibility::Synced).unwrap();
    let (waker, rung) = bell();
    let mut task = Context::from_waker(&waker);
    assert!(cursor.poll_ready(&mut task).is_pending());

    disk.fail(Fault::of(OpKind::Sync, 1, EIO).below("/store/topics"));
    assert_eq!(store.checkpoint().unwrap_err().kind(), ErrorKind::Reopen);

    rung.recv_timeout(FOR_EVER).expect("it waits for ever");
    let Poll::Ready(Err(error)) = cursor.poll_ready(&mut task) else { panic!("it is to wait on") };
    assert_eq!(error.kind(), ErrorKind::Reopen);
}

/// The thread that syncs ends when the store has failed. A ticket that was awaited, and whose sync had not begun, was then
/// waited for until the store was closed, if what had failed was not a sync of the journal.
#[test]
fn a_ticket_that_is_awaited_is_refused_when_another_append_fails_the_store() {
    for background in [false, true] {
        let disk = disk();
        let store = open(&disk, background);
        let topic = store.create_topic("t", TopicSettings::default()).unwrap();
        let record = Record::new("in doubt");
        let append = Append::new().durability(Durability::Synced).records(&topic, [&record]).unwrap();
        let mut ticket = pin!(store.submit(append).unwrap());
        let (waker, rung) = bell();
        let mut task = Context::from_waker(&waker);
        if !background {
            // Nobody syncs for it.
            assert!(ticket.as_mut().poll(&mut task).is_pending());
        }

        disk.fail(Fault::of(OpKind::WriterWrite, 1, EIO).below("/store/journal"));
        let other = topic.append_with(&[Record::new("refused")], Durability::Written);
        assert_eq!(other.unwrap_err().kind(), ErrorKind::Reopen);

        if !background {
            rung.recv_timeout(FOR_EVER).expect("it waits for ever");
        }
        loop {
            match ticket.as_mut().poll(&mut task) {
                Poll::Ready(outcome) => {
                    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Reopen);
                    break;
                }
                Poll::Pending => rung.recv_timeout(FOR_EVER).expect("it waits for ever"),
            }
        }
    }
}

#[test]
fn a_follower_learns_that_the_log_has_failed() {
    for background in [false, true] {
        let disk = disk();
        let settings = LogSettings { background, ..LogSettings::default() };
        let log = Log::builder().settings(settings).disk(Arc::new(disk.clone())).open("/store/log").unwrap();
        log.append(&[Record::new("first")]).unwrap();
        let (sender, followed) = channel();
        let of_follower = log.clone();
        let follower = std::thread::spawn(move || {
            for record in of_follower.follow(Start::Earliest).unwrap() {
                sender.send(record.map(|record| record.offset().0)).unwrap();
            }
        });
        assert_eq!(followed.recv_timeout(FOR_EVER).unwrap().unwrap(), 0);

        disk.fail(Fault::of(OpKind::Sync, 1, EIO));
        assert_eq!(log.append(&[Record::new("second")]).unwrap_err().kind(), ErrorKind::Reopen);

        let heard = followed.recv_timeout(FOR_EVER).expect("it waits for ever");
        assert_eq!(heard.unwrap_err().kind(), ErrorKind::Reopen);
        follower.join().unwrap();
        assert_eq!(log.close().unwrap_err().kind(), ErrorKind::Reopen);
    }
}

/// The second one was told that all was well, while the first was still at work, or after it had failed.
#[test]
fn whoever_closes_a_store_at_the_same_time_or_again_is_told_the_same() {
    for round in 0..40 {
        let disk = disk();
        let store = open(&disk, round % 4 < 2);
        let topic = store.create_topic("t", TopicSettings::default()).unwrap();
        topic.append_with(&[Record::new("written")], Durability::Written).unwrap();
        let fails = round % 2 == 0;
        if fails {
            disk.fail(Fault::of(OpKind::Sync, 1, EIO));
        }
        let start = Barrier::new(3);
        let one_at_a_time = Mutex::new(());
        let close = || {
            start.wait();
            let outcome = store.close();
            // It is closed, and not only about to be.
            let _one = one_at_a_time.lock().unwrap();
            drop(disk.lock(Path::new("/store/lock"), "a test").expect("the lock is still held"));
            outcome.map_err(|error| error.to_string())
        };
        let outcomes = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..2).map(|_| scope.spawn(close)).collect();
            start.wait();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        let again = store.close().map_err(|error| error.to_string());
        assert_eq!(again.is_err(), fails, "{again:?}");
        assert_eq!(outcomes, [again.clone(), again]);
    }
}

/// The thread that tells of a failure had not come to it when the store was closed: whoever waited then was told that the
/// store had been closed, and never that it had failed.
#[test]
fn a_ticket_is_told_what_failed_the_store_although_it_was_closed_at_once() {
    for _ in 0..20 {
        let disk = disk();
        let store = open(&disk, false);
        let topic = store.create_topic("t", TopicSettings::default()).unwrap();
        let append = Append::new().records(&topic, [&Record::new("in doubt")]).unwrap();
        let mut polled = pin!(store.submit(append).unwrap());
        let append = Append::new().records(&topic, [&Record::new("in doubt too")]).unwrap();
        let waited = store.submit(append).unwrap();

        disk.fail(Fault::of(OpKind::WriterWrite, 1, EIO).below("/store/journal"));
        let failure = topic.append_with(&[Record::new("refused")], Durability::Written).unwrap_err();
        assert_eq!(failure.kind(), ErrorKind::Reopen);
        let told = failure.to_string();

        assert_eq!(store.close().unwrap_err().to_string(), told);
        let (waker, _rung) = bell();
        let Poll::Ready(outcome) = polled.as_mut().poll(&mut Context::from_waker(&waker)) else {
            panic!("it is to wait on")
        };
        assert_eq!(outcome.unwrap_err().to_string(), told);
        assert_eq!(waited.wait().unwrap_err().to_string(), told);
        assert_eq!(store.sync().unwrap_err().to_string(), told);
        assert_eq!(store.close().unwrap_err().to_string(), told);
    }
}
