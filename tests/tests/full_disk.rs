//! A store whose disk is full when it is opened: what it set aside for this is given up.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use quipu_storage::{Durability, Error, Record, Start, Store, StoreSettings, Ticket, TopicSettings};
use quipu_tests::model::run::{STORE, settings};
use quipu_tests::sim::SimDisk;

const RESERVE_BYTES: u64 = 256 << 10;

fn open(disk: &SimDisk, journal_file_bytes: u64) -> quipu_storage::Result<Store> {
    let settings = StoreSettings {
        reserve_bytes: RESERVE_BYTES,
        journal_file_bytes,
        journal_bytes_max: 3 * journal_file_bytes,
        ..settings()
    };
    Store::builder().settings(settings).disk(Arc::new(disk.clone())).open(STORE)
}

/// A killed store of two records, and its disk full but for the reserve.
fn full() -> SimDisk {
    let disk = SimDisk::new();
    let store = open(&disk, 64 << 10).unwrap();
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    topic.append(&[Record::new("first")]).unwrap();
    store.checkpoint().unwrap();
    topic.append(&[Record::new("second")]).unwrap();
    let disk = disk.after_kill();
    disk.set_capacity(Some(disk.used_bytes()));
    disk
}

fn has_reserve(disk: &SimDisk) -> bool {
    disk.files().contains_key(&std::path::Path::new(STORE).join("reserve"))
}

fn assert_whole(store: &Store) {
    let topic = store.topic("t").unwrap();
    let payloads: Vec<_> = topic
        .read(Start::Earliest)
        .unwrap()
        .map(|record| record.unwrap().payload().unwrap().to_vec())
        .collect();
    assert_eq!(payloads, [b"first".to_vec(), b"second".to_vec()]);
}

/// A store that was opened with a larger journal file than before had no room for one, and was not opened: to free some
/// it would have had to be.
#[test]
fn opening_gives_up_the_reserve_for_a_journal_file() {
    let disk = full();
    assert!(has_reserve(&disk));
    let store = open(&disk, 128 << 10).unwrap();
    assert!(!has_reserve(&disk));
    assert_whole(&store);
    disk.set_capacity(None);
    store.checkpoint().unwrap();
    assert!(has_reserve(&disk));
}

/// Who has the lock is written into its file, for which there was no room.
#[test]
fn opening_gives_up_the_reserve_for_the_lock() {
    let disk = full();
    disk.lose_file(format!("{STORE}/lock")).unwrap();
    disk.set_capacity(Some(disk.used_bytes()));
    let store = open(&disk, 64 << 10).unwrap();
    assert_whole(&store);
}

/// A store has one journal file at first. Each opening after a kill needs another, there was no room for one, and so nobody
/// could make any by trimming or deleting.
#[test]
fn a_full_store_can_be_opened_again_and_again_and_topics_deleted() {
    let mut disk = full();
    for _ in 0..3 {
        let store = open(&disk, 64 << 10).unwrap();
        assert_whole(&store);
        disk = disk.after_kill();
        drop(store);
    }
    let store = open(&disk, 1 << 20).unwrap();
    assert_whole(&store);
    let topic = store.topic("t").unwrap();
    let refused = (0..10).find_map(|_| topic.append(&[Record::new(vec![0; 20_000])]).err()).unwrap();
    assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
    store.delete_topic("t").unwrap();
}

/// All files of the journal were in use or set aside for the next opening, none was to become free, and the disk had no room
/// for another: an append waited for ever, and nobody was told that the disk is full.
#[test]
fn an_append_that_no_journal_file_is_left_for_is_told_that_the_disk_is_full() {
    let disk = SimDisk::new();
    let store = open(&disk, 64 << 10).unwrap();
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    disk.set_capacity(Some(disk.used_bytes() + (48 << 10)));
    let mut count: u64 = 0;
    let refused = loop {
        match topic.append(&[Record::new(vec![0; 1000])]) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
        assert!(count < 1000, "the disk does not become full");
    };
    assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
    assert!(store.stats().is_disk_full);
    assert_eq!(topic.read(Start::Earliest).unwrap().count() as u64, count);
    topic.trim(topic.high_watermark()).unwrap();
    disk.set_capacity(None);
    topic.append(&[Record::new(vec![0; 1000])]).unwrap();
    store.checkpoint().unwrap();
    assert!(!store.stats().is_disk_full);
}

#[test]
fn a_disk_that_is_too_full_for_all_that_is_an_error_that_leaves_the_store_as_it_was() {
    let disk = full();
    disk.lose_file(format!("{STORE}/reserve")).unwrap();
    disk.set_capacity(Some(disk.used_bytes()));
    let error = open(&disk, 1 << 20).unwrap_err();
    assert!(matches!(error, Error::DiskFull { .. }), "{error}");
    disk.set_capacity(None);
    assert_whole(&open(&disk, 64 << 10).unwrap());
}

/// Who may not wait was refused for ever: nobody looked whether there is room again.
#[test]
fn appends_that_may_not_wait_are_taken_again_when_there_is_room() {
    let disk = SimDisk::new();
    let settings = StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 192 << 10,
        reserve_bytes: 0,
        background: true,
        ..settings()
    };
    let store = Store::builder().settings(settings).disk(Arc::new(disk.clone())).open(STORE).unwrap();
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    let record = [Record::new(vec![0; 1000])];
    disk.set_capacity(Some(disk.used_bytes() + (48 << 10)));
    while topic.append(&record).is_ok() {}
    assert!(matches!(topic.submit(&record, Durability::Synced), Err(Error::DiskFull { .. })));
    disk.set_capacity(None);
    let begun = Instant::now();
    while let Err(error) = topic.submit(&record, Durability::Synced).and_then(Ticket::wait) {
        assert!(begun.elapsed() < Duration::from_secs(60), "{error}");
        std::thread::yield_now();
    }
}
