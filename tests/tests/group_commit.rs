//! One sync for all who wait, over all topics: counted, on a disk whose syncs end when they are told to.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use quipu_storage::{Durability, Log, LogSettings, Record, Store, StoreSettings, Topic, TopicSettings};
use quipu_tests::faulty::{FaultyDisk, OpKind};
use quipu_tests::sim::SimDisk;

const TOPICS: usize = 5;
const WAITERS: usize = 24;

fn store(disk: &FaultyDisk) -> (Store, Vec<Topic>) {
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let store = Store::builder().settings(settings).disk(Arc::new(disk.clone())).open("/store").unwrap();
    let create = |n| store.create_topic(&format!("t{n}"), TopicSettings::default()).unwrap();
    let topics = (0..TOPICS).map(create).collect();
    (store, topics)
}

/// The operations that make something durable.
fn syncs(disk: &FaultyDisk) -> u64 {
    disk.op_count_of(OpKind::Sync) + disk.op_count_of(OpKind::SyncDir)
}

#[test]
fn all_who_came_while_a_sync_ran_share_the_next_one_whatever_their_topics() {
    let disk = FaultyDisk::over_sim(SimDisk::new());
    let (store, topics) = store(&disk);
    let shared_before = store.stats().syncs_shared;
    disk.forget_ops();
    disk.hold_syncs();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| topics[0].append(&[Record::new("first")]).unwrap());
        disk.wait_for_syncs(1);
        // Too late for the one that runs: each of them is written behind what that covers.
        let submit = |n: usize| {
            topics[n % TOPICS].submit(&[Record::new(format!("waiter {n}"))], Durability::Synced).unwrap()
        };
        let tickets: Vec<_> = (0..WAITERS).map(submit).collect();
        let waiters: Vec<_> =
            tickets.into_iter().map(|ticket| scope.spawn(|| ticket.wait().unwrap())).collect();
        assert!(topics.iter().all(|topic| topic.high_watermark().0 == 0), "nobody sees what is not synced");
        disk.let_syncs_go();
        first.join().unwrap();
        for waiter in waiters {
            assert_eq!(waiter.join().unwrap()[0].durability, Durability::Synced);
        }
    });
    assert_eq!(syncs(&disk), 2, "{:?}", disk.ops());
    // One of them made the second sync.
    assert_eq!(store.stats().syncs_shared - shared_before, WAITERS as u64 - 1);
    let ends: u64 = topics.iter().map(|topic| topic.high_watermark().0).sum();
    assert_eq!(ends, WAITERS as u64 + 1);
}

#[test]
fn a_lone_writer_makes_one_sync_for_each_append_and_waits_for_nobody() {
    let disk = FaultyDisk::over_sim(SimDisk::new());
    let (store, topics) = store(&disk);
    let shared_before = store.stats().syncs_shared;
    disk.forget_ops();
    for n in 0..50 {
        topics[n % TOPICS].append(&[Record::new("alone")]).unwrap();
        assert_eq!(syncs(&disk), n as u64 + 1);
    }
    assert_eq!(store.stats().syncs_shared, shared_before);
}

#[test]
fn one_append_over_all_topics_makes_one_sync() {
    let disk = FaultyDisk::over_sim(SimDisk::new());
    let (store, topics) = store(&disk);
    disk.forget_ops();
    let mut append = quipu_storage::Append::new();
    for topic in &topics {
        append = append.records(topic, &[Record::new("together")]).unwrap();
    }
    store.append(append).unwrap();
    assert_eq!(syncs(&disk), 1, "{:?}", disk.ops());
}

#[test]
fn those_who_append_to_a_bare_log_while_it_syncs_share_the_next_sync() {
    let disk = FaultyDisk::over_sim(SimDisk::new());
    let settings = LogSettings { background: false, ..LogSettings::default() };
    let log = Log::builder().settings(settings).disk(Arc::new(disk.clone())).open("/log").unwrap();
    log.append(&[Record::new("notes the segment")]).unwrap();
    disk.forget_ops();
    disk.hold_syncs();
    std::thread::scope(|scope| {
        let first = scope.spawn(|| log.append(&[Record::new("first")]).unwrap());
        disk.wait_for_syncs(1);
        for _ in 0..WAITERS {
            log.append_with(&[Record::new("written")], Durability::Written).unwrap();
        }
        let waiters: Vec<_> = (0..WAITERS).map(|_| scope.spawn(|| log.sync().unwrap())).collect();
        disk.let_syncs_go();
        first.join().unwrap();
        waiters.into_iter().for_each(|waiter| waiter.join().unwrap());
    });
    assert_eq!(syncs(&disk), 2, "{:?}", disk.ops());
    assert_eq!(log.high_watermark(), log.log_end_offset());
}
