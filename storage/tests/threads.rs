//! Many threads at once, with settings so small that everything happens all the time.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use quipu_storage::{
    Durability, Record, Start, Store, StoreSettings, Timestamp, TopicSettings, Visibility, clock::Clock,
};

fn small() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 256 << 10,
        append_bytes_max: 16 << 10,
        tail_bytes_max: 64 << 10,
        reserve_bytes: 0,
        ..StoreSettings::default()
    }
}

fn open(dir: &Path) -> Store {
    Store::builder().settings(small()).open(dir).unwrap()
}

fn small_segments() -> TopicSettings {
    TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() }
}

/// Stands still until it is set.
#[derive(Debug, Default)]
struct Hand(AtomicU64);

impl Clock for Hand {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::SeqCst))
    }
}

#[test]
fn a_reader_of_a_closed_store_leaves_the_files_of_the_next_one_alone() {
    // A topic's files are checked when it is first read, and what is unknown is removed: by a reader that was left
    // over from a closed store, that was what the store that had been opened since had written.
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.create_topic("t", small_segments()).unwrap();
    topic.append(&[Record::new("first")]).unwrap();
    store.close().unwrap();
    let closed = open(dir.path());
    let left_over = closed.topic("t").unwrap();
    closed.close().unwrap();

    let store = open(dir.path());
    let topic = store.topic("t").unwrap();
    for _ in 0..20 {
        topic.append(&[Record::new("x".repeat(1000))]).unwrap();
    }
    store.checkpoint().unwrap();
    assert_eq!(left_over.read(Start::Earliest).unwrap().count(), 1);
    assert_eq!(topic.read(Start::Earliest).unwrap().filter(Result::is_ok).count(), 21);
    store.close().unwrap();
    let store = open(dir.path());
    let topic = store.topic("t").unwrap();
    assert_eq!(topic.read(Start::Earliest).unwrap().map(Result::unwrap).count(), 21);
}

#[test]
fn a_time_is_found_while_its_batch_goes_from_memory_to_its_segment() {
    // The segments were looked at first and then the tail: a batch that moved between the two looks was in neither,
    // and reading began behind it.
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Hand::default());
    let store = Store::builder().settings(small()).clock(clock.clone()).open(dir.path()).unwrap();
    let topic = store.create_topic("t", small_segments()).unwrap();
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_done.load(Ordering::SeqCst) {
                store.checkpoint().unwrap();
            }
        });
        scope.spawn(|| {
            for n in 0..3000 {
                clock.0.store(n, Ordering::SeqCst);
                topic.append_with(&[Record::new("x".repeat(100))], Durability::Accepted).unwrap();
            }
            is_done.store(true, Ordering::SeqCst);
        });
        scope.spawn(|| {
            while !is_done.load(Ordering::SeqCst) {
                let end = topic.log_end_offset();
                for back in 1..5 {
                    let offset = end.saturating_sub(back);
                    if offset < end {
                        let found =
                            topic.cursor(Start::Time(Timestamp(offset.0)), Visibility::Written).unwrap();
                        assert_eq!(found.next_offset(), offset);
                    }
                }
            }
        });
    });
}

#[test]
fn the_journal_keeps_its_bound_however_many_append_at_once() {
    // Each of many appenders that found no room made a file, and none saw those that the others were making.
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.create_topic("t", small_segments()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(|| {
                for _ in 0..50 {
                    topic.append_with(&[Record::new("x".repeat(8000))], Durability::Written).unwrap();
                }
            });
        }
    });
    assert!(store.stats().journal_bytes <= 256 << 10, "{:?}", store.stats());
}
