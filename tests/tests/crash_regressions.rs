//! Losses that were once found on real disks, replayed on the simulated one. Each test tells the story of its bug.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use quipu_storage::{ErrorKind, Record, Start, Store, StoreSettings, TopicSettings};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

fn open(disk: &SimDisk) -> Store {
    let settings =
        StoreSettings { background: false, reserve_bytes: 0, ..quipu_tests::workload::store_settings() };
    Store::builder().settings(settings).disk(Arc::new(disk.clone())).open("/store").unwrap()
}

#[test]
fn a_checkpoint_right_after_recovery_names_a_journal_file_that_is_there() {
    // Opening begins a new generation of the journal, with a header that no sync had covered. Where nothing was
    // appended the next checkpoint had nothing to sync either, named that generation, and the power cut took the header:
    // the store refused to open.
    let disk = SimDisk::new();
    let store = open(&disk);
    store.topic_or_create("t").unwrap().append(&[Record::new("1")]).unwrap();
    let killed = disk.after_kill();
    let store = open(&killed);
    store.checkpoint().unwrap();
    let cut = killed.crash_with(CrashMode::LoseAll, &mut Rng::new(1));
    let store = open(&cut);
    assert_eq!(store.topic("t").unwrap().read(Start::Earliest).unwrap().count(), 1);
}

#[test]
fn a_disk_that_fills_up_while_segments_are_written_costs_no_record() {
    // One flush wrote the end of a segment, sealed it, and met the full disk at the next segment. The next flush began at
    // the same batches again, created the sealed segment anew over what was in it, and acknowledged records were gone.
    let disk = SimDisk::new();
    let store = open(&disk);
    let settings = TopicSettings { segment_bytes_max: 8192, ..TopicSettings::default() };
    let topic = store.create_topic("t", settings).unwrap();
    let record = |n: u64| Record::new(format!("{n} {}", "x".repeat(700)));
    let (mut next, mut refusals) = (0, 0);
    // Room for one block more each time, so that every place of a flush meets the end of it.
    for blocks in 0..12 {
        // Not a whole number of segments: the first run of a flush continues one.
        for _ in 0..27 {
            topic.append(&[record(next)]).unwrap();
            next += 1;
        }
        disk.set_capacity(Some(disk.used_bytes() + 4096 * blocks));
        for _ in 0..3 {
            if let Err(error) = store.checkpoint() {
                assert_eq!(error.kind(), ErrorKind::DiskFull);
                refusals += 1;
            }
        }
        disk.set_capacity(None);
        store.checkpoint().unwrap();
        let read: Vec<_> = topic.read(Start::Earliest).unwrap().map(|record| record.unwrap()).collect();
        assert_eq!(read.len() as u64, next);
        assert!((0..).zip(&read).all(|(n, read)| read.payload() == record(n).payload.as_deref()));
    }
    assert!(refusals > 3, "the disk was never full");
}
