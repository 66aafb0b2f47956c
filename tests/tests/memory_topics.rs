//! Topics in memory: whoever may not wait does not, and no offset is given twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Waker};
use std::time::Duration;

use quipu_storage::{
    Durability, Offset, Record, Start, Storage, Store, StoreSettings, Topic, TopicSettings, Visibility,
};
use quipu_tests::faulty::{FaultyDisk, OpKind};
use quipu_tests::model::run::{STORE, settings};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

fn open(disk: &FaultyDisk) -> Store {
    Store::builder().settings(settings()).disk(Arc::new(disk.clone())).open(STORE).unwrap()
}

fn create(store: &Store, name: &str) -> Topic {
    let storage = Storage::Memory { bytes_max: 1 << 20 };
    store.create_topic(name, TopicSettings { storage, ..TopicSettings::default() }).unwrap()
}

/// It is promised not to wait, and waited for a sync: offsets were set aside, durably, before the first one was given.
#[test]
fn a_submitted_append_to_a_topic_in_memory_waits_for_no_sync() {
    let sim = SimDisk::new();
    let disk = FaultyDisk::over_sim(sim.clone());
    let store = open(&disk);
    let topic = create(&store, "m");
    let mut task = Context::from_waker(Waker::noop());
    let syncs = disk.op_count_of(OpKind::Sync);
    let mut first = pin!(topic.submit(&[Record::new("first")], Durability::Accepted).unwrap());
    let mut second = pin!(topic.submit(&[Record::new("second")], Durability::Accepted).unwrap());
    assert_eq!(disk.op_count_of(OpKind::Sync), syncs);
    // Until the offsets are set aside nobody is told of any, and nobody sees one.
    assert!(first.as_mut().poll(&mut task).is_pending());
    assert!(second.as_mut().poll(&mut task).is_pending());
    assert_eq!((topic.high_watermark(), topic.log_end_offset()), (Offset(0), Offset(2)));
    let lost = sim.crash_with(CrashMode::LoseAll, &mut Rng::new(0));
    assert_eq!(open(&FaultyDisk::over_sim(lost)).topic("m").unwrap().log_end_offset(), Offset(0));

    store.sync().unwrap();
    assert!(first.as_mut().poll(&mut task).is_ready());
    assert!(second.as_mut().poll(&mut task).is_ready());
    assert_eq!(topic.high_watermark(), Offset(2));
    let syncs = disk.op_count_of(OpKind::Sync);
    let mut third = pin!(topic.submit(&[Record::new("third")], Durability::Accepted).unwrap());
    assert!(third.as_mut().poll(&mut task).is_ready());
    assert_eq!(disk.op_count_of(OpKind::Sync), syncs);
    assert_eq!(topic.read(Start::Earliest).unwrap().count(), 3);
    let lost = sim.crash_with(CrashMode::LoseAll, &mut Rng::new(0));
    let store = open(&FaultyDisk::over_sim(lost));
    let topic = store.topic("m").unwrap();
    assert!(topic.log_end_offset() > Offset(3));
    assert_eq!(topic.log_start_offset(), topic.log_end_offset());
    let next = topic.append_with(&[Record::new("next")], Durability::Accepted).unwrap();
    assert_eq!((next.first_offset + 1, next.durability), (topic.high_watermark(), Durability::Accepted));
}

/// The oldest records went beyond the bound although nobody had been shown them: the log started behind its high watermark.
#[test]
fn records_that_are_shown_to_nobody_yet_are_bounded_and_none_of_them_goes() {
    let disk = FaultyDisk::over_sim(SimDisk::new());
    let store = open(&disk);
    let storage = Storage::Memory { bytes_max: 4096 };
    let topic = store.create_topic("m", TopicSettings { storage, ..TopicSettings::default() }).unwrap();
    let record = [Record::new(vec![0; 1000])];
    let mut taken = 0;
    let refused = loop {
        match topic.submit(&record, Durability::Accepted) {
            Ok(_) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 10, "there is no bound");
    };
    assert!(matches!(refused, quipu_storage::Error::Overloaded { .. }), "{refused}");
    assert_eq!((topic.log_start_offset(), topic.high_watermark()), (Offset(0), Offset(0)));
    // Who may wait makes them visible, and then the oldest go.
    topic.append_with(&record, Durability::Accepted).unwrap();
    assert_eq!(topic.high_watermark(), Offset(taken + 1));
    assert!(topic.log_start_offset() > Offset(0));
    assert_eq!(topic.read(Start::Earliest).unwrap().count() as u64, 4096 / 1000 - 1);
}

/// Together with a topic on disk, in one frame.
#[test]
fn offsets_are_set_aside_in_the_frame_of_an_append_to_several_topics() {
    let sim = SimDisk::new();
    let store = open(&FaultyDisk::over_sim(sim.clone()));
    let memory = create(&store, "m");
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    let append = quipu_storage::Append::new()
        .records(&memory, [&Record::new("in memory")])
        .unwrap()
        .records(&topic, [&Record::new("on disk")])
        .unwrap();
    let appended = store.append(append).unwrap();
    assert_eq!(appended.iter().map(|one| one.next_offset).collect::<Vec<_>>(), [Offset(1), Offset(1)]);
    assert_eq!((memory.high_watermark(), topic.high_watermark()), (Offset(1), Offset(1)));
    let store = open(&FaultyDisk::over_sim(sim.crash_with(CrashMode::LoseAll, &mut Rng::new(0))));
    assert!(store.topic("m").unwrap().log_end_offset() > Offset(1));
    assert_eq!(store.topic("t").unwrap().read(Start::Earliest).unwrap().count(), 1);
}

/// Appends that come while the sync is under way that sets the first offsets aside are seen all the same, also when there
/// is no later sync.
#[test]
fn what_is_appended_while_offsets_are_set_aside_is_seen() {
    for _ in 0..200 {
        let long = Duration::from_secs(3600);
        let settings = StoreSettings { sync_interval: long, ..settings() };
        let disk = Arc::new(SimDisk::new());
        let store = Store::builder().settings(settings).disk(disk).open(STORE).unwrap();
        let topic = create(&store, "m");
        std::thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    for _ in 0..3 {
                        let appended = topic.append_with(&[Record::new("x")], Durability::Accepted).unwrap();
                        assert!(topic.high_watermark() >= appended.next_offset);
                    }
                });
            }
        });
        assert_eq!(topic.high_watermark(), Offset(9));
        let cursor = topic.cursor(Start::Earliest, Visibility::Synced).unwrap();
        assert_eq!(cursor.visible_end(), Offset(9));
    }
}
