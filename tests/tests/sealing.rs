//! What a power cut leaves of a segment that was sealed.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::sync::Arc;

use quipu_storage::{Record, Start, Store, StoreSettings, TopicSettings};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

fn open(disk: &SimDisk) -> Store {
    let settings = StoreSettings { background: false, reserve_bytes: 0, ..StoreSettings::default() };
    Store::builder().settings(settings).disk(Arc::new(disk.clone())).open("/store").unwrap()
}

#[test]
fn a_segment_that_was_synced_and_is_sealed_later_is_synced_with_its_footer() {
    // A checkpoint synced the active segment; then the first batch of the next one sealed it. Its file was not on the
    // list for the next sync, and a power cut took the footer of a segment that the checkpoint calls sealed.
    let disk = SimDisk::new();
    let store = open(&disk);
    let settings = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", settings).unwrap();
    topic.append(&[Record::new([1; 3000])]).unwrap();
    store.checkpoint().unwrap();
    topic.append(&[Record::new([2; 3000])]).unwrap();
    store.checkpoint().unwrap();
    let store = open(&disk.crash_with(CrashMode::LoseAll, &mut Rng::new(0)));
    let topic = store.topic("t").unwrap();
    assert_eq!(topic.read(Start::Earliest).unwrap().filter(Result::is_ok).count(), 2);
    assert_eq!(store.stats().damage_found, 0);
}
