//! Power cuts that once lost a store, replayed on the simulated disk. Each test tells the story of its bug.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use quipu_storage::{Record, Start, Store, StoreSettings};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

fn open(disk: &SimDisk) -> Store {
    let settings = StoreSettings { background: false, ..quipu_tests::workload::store_settings() };
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
