//! What is counted: each thing once, and nothing else.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Barrier;

use quipu_storage::{
    Append, Durability, Error, Log, LogSettings, Offset, Record, Start, Store, StoreSettings, TopicSettings,
    Visibility,
};

fn record() -> Record {
    Record::new("x".repeat(1000))
}

fn too_large() -> Record {
    Record::keyed("k".repeat(5000), "x")
}

#[test]
fn a_store_counts_what_was_appended_read_synced_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let store = Store::builder().settings(settings).open(dir.path()).unwrap();
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    let before = store.stats();
    for _ in 0..3 {
        topic.append(&[record(), record()]).unwrap();
    }
    topic.append_with(&[record()], Durability::Written).unwrap();
    assert!(matches!(topic.append(&[too_large()]), Err(Error::RecordTooLarge { .. })));
    assert!(matches!(store.append(Append::new()), Err(Error::InvalidAppend { .. })));
    store.sync().unwrap();
    let stats = store.stats();
    assert_eq!((stats.appends, stats.records_appended), (4, 7));
    // A record that is too large is none of an append yet.
    assert_eq!(stats.appends_refused, 1);
    assert_eq!(stats.append_latency.count, 3, "only those that asked to be synced");
    assert_eq!(stats.sync_latency.count - before.sync_latency.count, 4);
    assert!(stats.append_latency.sum >= stats.append_latency.max);
    assert_eq!((stats.batches_read, stats.records_read, stats.bytes_read), (0, 0, 0));

    assert_eq!(topic.read(Start::Earliest).unwrap().count(), 7);
    let stats = store.stats();
    assert_eq!((stats.batches_read, stats.records_read), (4, 7));
    assert_eq!(stats.bytes_read, stats.bytes_appended);
    assert_eq!(stats.read_latency.count, 0, "they were in memory");

    store.checkpoint().unwrap();
    // Not all of it: what a cursor has read is counted when it goes.
    let mut cursor = topic.cursor(Start::Offset(Offset(2)), Visibility::Synced).unwrap();
    cursor.next_batch().unwrap().unwrap();
    drop(cursor);
    let stats = store.stats();
    assert_eq!((stats.checkpoints, stats.checkpoint_latency.count), (1, 1));
    assert_eq!((stats.batches_read, stats.records_read), (5, 9));
    assert!(stats.read_latency.count > 0);
    assert_eq!(stats.damage_found, 0);
}

#[test]
fn appends_that_share_a_sync_are_counted() {
    const THREADS: u64 = 4;
    const ROUNDS: u64 = 25;
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let store = Store::builder().settings(settings).open(dir.path()).unwrap();
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    let before = store.stats();
    let start = Barrier::new(usize::try_from(THREADS).unwrap());
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| {
                start.wait();
                for _ in 0..ROUNDS {
                    topic.append(&[record()]).unwrap();
                }
            });
        }
    });
    let stats = store.stats();
    assert_eq!(stats.append_latency.count, THREADS * ROUNDS);
    // Each append made a sync or shared one.
    let syncs = stats.sync_latency.count - before.sync_latency.count;
    assert_eq!(syncs + stats.syncs_shared - before.syncs_shared, THREADS * ROUNDS);
}

#[test]
fn a_log_counts_what_was_appended_read_synced_and_refused() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LogSettings { background: false, ..LogSettings::default() };
    let log = Log::builder().settings(settings).open(dir.path().join("log")).unwrap();
    for _ in 0..3 {
        log.append(&[record(), record()]).unwrap();
    }
    log.append_payload(b"alone", Durability::Written).unwrap();
    assert!(matches!(log.append(&[]), Err(Error::InvalidAppend { .. })));
    assert!(matches!(log.append(&[too_large()]), Err(Error::RecordTooLarge { .. })));
    log.sync().unwrap();
    let stats = log.stats();
    assert_eq!((stats.appends, stats.records_appended, stats.appends_refused), (4, 7, 2));
    assert_eq!((stats.append_latency.count, stats.sync_latency.count), (3, 4));
    assert_eq!(log.read(Start::Earliest).unwrap().count(), 7);
    let stats = log.stats();
    assert_eq!((stats.batches_read, stats.records_read), (4, 7));
    assert_eq!(stats.bytes_read, stats.bytes_appended);
    assert!(stats.read_latency.count > 0);
}
