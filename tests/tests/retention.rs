//! When retention runs, and what it removes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;

use quipu_storage::{
    Durability, Error, Offset, Record, Retention, RetentionReason, Start, Storage, Store, StoreSettings,
    Topic, TopicSettings,
};
use quipu_tests::faulty::OpKind;
use quipu_tests::meeting::MeetingDisk;
use quipu_tests::model::TestClock;
use quipu_tests::model::run::{STORE, settings};
use quipu_tests::sim::SimDisk;

/// Nobody waits so long unless it is for ever.
const FOR_EVER: Duration = Duration::from_secs(30);

/// The setting was checked, documented, and looked at by nobody.
#[test]
fn retention_runs_when_little_is_free_on_the_disk() {
    let sim = SimDisk::new();
    let disk = MeetingDisk::new(sim.clone());
    let clock = TestClock::at(1000);
    let day = Duration::from_secs(24 * 3600);
    let settings = StoreSettings {
        background: true,
        retention_interval: day,
        checkpoint_interval: day,
        free_bytes_min: 1 << 20,
        ..settings()
    };
    let builder = Store::builder().settings(settings).disk(Arc::new(disk.clone())).clock(clock.clone());
    let store = builder.open(STORE).unwrap();
    let retention = Retention { bytes_max: Some(1), ..Retention::default() };
    let of_topic = TopicSettings { retention, segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", of_topic).unwrap();
    for _ in 0..3 {
        topic.append(&[Record::new([7; 3000])]).unwrap();
    }
    store.checkpoint().unwrap();
    let (removes, removed) = channel();
    disk.before_next(OpKind::Remove, format!("{STORE}/topics"), move || removes.send(()).unwrap());
    sim.set_capacity(Some(sim.used_bytes() + (2 << 20)));
    assert!(!store.stats().is_disk_full);
    assert!(removed.try_recv().is_err());
    sim.set_capacity(Some(sim.used_bytes() + (1 << 19)));
    removed.recv_timeout(FOR_EVER).expect("nobody looks");
    store.close().unwrap();
    assert_eq!(topic.log_start_offset(), Offset(2));
}

fn in_memory(retention: Retention) -> (Store, Topic, Arc<TestClock>) {
    let clock = TestClock::at(0);
    let builder = Store::builder().settings(settings()).disk(Arc::new(SimDisk::new())).clock(clock.clone());
    let store = builder.open(STORE).unwrap();
    let storage = Storage::Memory { bytes_max: 1 << 20 };
    let topic =
        store.create_topic("m", TopicSettings { storage, retention, ..TopicSettings::default() }).unwrap();
    // Two records in a batch of 52 bytes and more, a second after the one before.
    for number in 0..300 {
        clock.set(1000 * number);
        topic.append_with(&[Record::new([7; 100]), Record::new([7; 100])], Durability::Accepted).unwrap();
    }
    (store, topic, clock)
}

/// Of a topic in memory all was taken for one piece that is being written: bounds on bytes and records removed nothing, and
/// age removed nothing or all.
#[test]
fn the_oldest_batches_of_a_topic_in_memory_go_by_every_bound() {
    let none = Retention::default();
    let cases = [
        (Retention { age_max: Some(Duration::from_secs(10)), ..none }, 600 - 22, RetentionReason::Age),
        (Retention { records_max: Some(21), ..none }, 600 - 22, RetentionReason::Records),
        (Retention { bytes_max: Some(5 * 260), ..none }, 600 - 10, RetentionReason::Bytes),
        (Retention { bytes_max: Some(1), ..none }, 600 - 2, RetentionReason::Bytes),
    ];
    for (retention, start, reason) in cases {
        let (store, topic, clock) = in_memory(retention);
        let position = store.stats().journal_position;
        let reports = store.run_retention().unwrap();
        assert_eq!(reports.len(), 1);
        assert_eq!((reports[0].from, reports[0].to, reports[0].reason), (Offset(0), Offset(start), reason));
        assert_eq!(topic.log_start_offset(), Offset(start));
        let offsets: Vec<_> = topic.read(Start::Earliest).unwrap().map(|r| r.unwrap().offset().0).collect();
        assert_eq!(offsets, (start..600).collect::<Vec<_>>());
        assert!(matches!(topic.get(Offset(start - 1)), Err(Error::OffsetTrimmed { .. })));
        assert_eq!(store.run_retention().unwrap(), []);
        assert_eq!(store.stats().journal_position, position, "it needs no frame");
        if reason == RetentionReason::Age {
            clock.set(400_000);
            assert_eq!(store.run_retention().unwrap()[0].to, Offset(600));
        }
        assert_eq!(topic.append(&[Record::new("next")]).unwrap().first_offset, Offset(600));
    }
}
