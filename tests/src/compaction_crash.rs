//! Power cuts and failures at every disk operation of compaction, and of what goes on around it.
//!
//! What is found wrong is a panic: who plants a bug catches it.

#![allow(clippy::unwrap_used, reason = "a harness that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quipu_storage::disk::Disk;
use quipu_storage::{
    Codec, Compaction, Error, ErrorKind, Offset, Record, Start, Store, StoreSettings, Topic, TopicSettings,
};

use crate::faulty::{EIO, ENOSPC, Fault, FaultyDisk, OpKind};
use crate::model::TestClock;
use crate::rng::Rng;
use crate::sim::{CrashMode, SimDisk};

fn open(disk: &SimDisk, clock: &Arc<TestClock>) -> quipu_storage::Result<Store> {
    open_on(Arc::new(disk.clone()), clock)
}

fn open_on(disk: Arc<dyn Disk>, clock: &Arc<TestClock>) -> quipu_storage::Result<Store> {
    let settings = StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 256 << 10,
        append_bytes_max: 4 << 10,
        reserve_bytes: 0,
        background: false,
        ..StoreSettings::default()
    };
    Store::builder().settings(settings).disk(disk).clock(Arc::<TestClock>::clone(clock)).open("/store")
}

fn settings(codec: Codec) -> TopicSettings {
    let compaction = Compaction {
        tombstone_age_max: Duration::from_secs(10),
        bytes_per_second_max: 0,
        ..Compaction::default()
    };
    TopicSettings { segment_bytes_max: 4096, codec, compaction: Some(compaction), ..TopicSettings::default() }
}

/// What a reader sees.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    log_start: Offset,
    log_end: Offset,
    records: BTreeMap<Offset, Record>,
}

impl Seen {
    fn of(topic: &Topic) -> Self {
        let records = topic.read(Start::Earliest).unwrap().map(|record| {
            let record = record.unwrap();
            (record.offset(), record.view().to_record())
        });
        Self {
            log_start: topic.log_start_offset(),
            log_end: topic.high_watermark(),
            records: records.collect(),
        }
    }

    /// Whether a crash between `before` and `after` may leave this: what both have is there, and nothing else than
    /// what one of them has.
    fn check_between(&self, before: &Self, after: &Self) {
        assert!(
            [before.log_start, after.log_start].contains(&self.log_start),
            "the log starts at {}",
            self.log_start
        );
        assert!((before.log_end..=after.log_end).contains(&self.log_end), "the log ends at {}", self.log_end);
        for (offset, record) in &self.records {
            let known = before.records.get(offset).or_else(|| after.records.get(offset));
            assert_eq!(known, Some(record), "offset {offset} shows what was never there");
        }
        for (offset, record) in &before.records {
            let must_be_there = after.records.contains_key(offset);
            assert!(!must_be_there || self.records.get(offset) == Some(record), "offset {offset} is lost");
        }
    }

    /// The latest record of each key.
    fn latest(&self) -> BTreeMap<Vec<u8>, Record> {
        self.records.values().map(|record| (record.key.clone().unwrap(), record.clone())).collect()
    }
}

/// Versions of seven keys and their deletions, and keys that come once.
pub fn append(topic: &Topic, numbers: std::ops::Range<u64>) {
    for n in numbers {
        let key = format!("key {}", n % 7);
        let record =
            if n % 11 == 10 { Record::tombstone(key) } else { Record::keyed(key, format!("{n:0>150}")) };
        // One batch with several records now and then, so that batches are thinned too.
        let mut records = vec![record];
        if n % 5 == 0 {
            records.push(Record::keyed(format!("once {n}"), "stays"));
        }
        topic.append(&records).unwrap();
    }
}

/// Something that is done to the topic, by its name.
pub type Step = (&'static str, fn(&Store, &Topic, &TestClock));

/// Runs `steps` and cuts the power before each `every`th disk operation of each, in several ways. Answers how many cuts
/// there were.
pub fn sweep(wrap: fn(SimDisk) -> Arc<dyn Disk>, codec: Codec, steps: &[Step], every: u64) -> u64 {
    let disk = SimDisk::new();
    let clock = TestClock::at(1_000_000);
    let store = open_on(wrap(disk.clone()), &clock).unwrap();
    let topic = store.create_topic("t", settings(codec)).unwrap();
    append(&topic, 0..80);
    let mut cuts = 0;
    for (name, step) in steps {
        let before = Seen::of(&topic);
        let first = disk.ops() + 1;
        // As many as it can be; those that are not reached cost nothing.
        (first..first + 3000).for_each(|number| disk.crash_at(number));
        step(&store, &topic, &clock);
        let after = Seen::of(&topic);
        let last = disk.ops();
        assert!(last < first + 3000, "{name} has more operations than are looked at");
        let reached = disk.take_snapshots().into_iter().filter(|(number, _)| *number <= last);
        for (number, snapshot) in reached.filter(|(number, _)| number % every == 0) {
            use CrashMode::{KeepAll, LoseAll, Random};
            let modes = [KeepAll, LoseAll, Random, Random, Random, Random, Random, Random];
            for (round, mode) in modes.into_iter().enumerate() {
                let what =
                    format!("{name}: {mode:?} before operation {number} ({first} to {last}), round {round}");
                check(
                    &snapshot.crash_with(mode, &mut Rng::new(number * 10 + round as u64)),
                    &clock,
                    &before,
                    &after,
                    &what,
                );
                cuts += 1;
            }
        }
    }
    cuts
}

fn check(disk: &SimDisk, clock: &Arc<TestClock>, before: &Seen, after: &Seen, what: &str) {
    let store = open(disk, clock).unwrap_or_else(|error| panic!("{what}: {error}"));
    let topic = store.topic("t").unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = Seen::of(&topic);
    found.check_between(before, after);
    assert_eq!(store.stats().damage_found, 0);
    // It goes on as if nothing had happened.
    append(&topic, found.log_end.0 * 7 + 1..found.log_end.0 * 7 + 2);
    let expected = Seen::of(&topic);
    let report = topic.compact().unwrap();
    assert!(report.is_complete && report.damaged.is_empty(), "{report:?}");
    let compacted = Seen::of(&topic);
    compacted.check_between(&expected, &compacted);
    let (mut latest, kept) = (expected.latest(), compacted.latest());
    latest.retain(|key, record| record.payload.is_some() || kept.contains_key(key));
    assert_eq!(kept, latest);
    let files = disk.files().into_keys().filter(|path| path.starts_with(Path::new("/store/topics")));
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "segment")).count();
    assert_eq!(files as u64, topic.stats().segments, "{:?}", disk.files());
    drop(topic);
    store.close().unwrap();
    drop(store);
    let store = open(disk, clock).unwrap();
    assert_eq!(Seen::of(&store.topic("t").unwrap()), compacted);
}

/// The exception to the rule that a failed sync fails the store, and what makes it safe: what was not synced is in nobody's
/// place, then or later.
pub fn fail_the_sync_of_a_new_segment() {
    let sim = SimDisk::new();
    let disk = FaultyDisk::over_sim(sim.clone());
    let clock = TestClock::at(1_000_000);
    let store = open_on(Arc::new(disk.clone()), &clock).unwrap();
    let topic = store.create_topic("t", settings(Codec::None)).unwrap();
    append(&topic, 0..80);
    store.checkpoint().unwrap();
    let before = (Seen::of(&topic), sim.files());
    for removal_fails in [false, true] {
        disk.fail(Fault::of(OpKind::Sync, 1, EIO).below("/store/topics"));
        if removal_fails {
            disk.fail(Fault::of(OpKind::Remove, 1, EIO).below("/store/topics"));
        }
        assert_eq!(topic.compact().unwrap_err().kind(), ErrorKind::Retry);
        disk.heal();
        assert_eq!(Seen::of(&topic), before.0);
        assert_eq!(sim.files().len(), before.1.len() + usize::from(removal_fails));
        assert!(store.stats().failure.is_none());
    }
    assert!(topic.compact().unwrap().is_complete);
    let compacted = Seen::of(&topic);
    let left = open(&sim.crash_with(CrashMode::LoseAll, &mut Rng::new(0)), &clock).unwrap();
    assert_eq!(Seen::of(&left.topic("t").unwrap()), compacted);
    assert_eq!(left.stats().damage_found, 0);
}

/// Compacts.
pub fn compact(_: &Store, topic: &Topic, _: &TestClock) {
    topic.compact().unwrap();
}

/// Lets each `every`th operation of compaction fail: nothing is lost, not even if the power goes then, and the next run
/// goes on. Answers how many runs failed.
pub fn fail_each_operation(wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>, every: u64) -> u64 {
    let clock = TestClock::at(1_000_000);
    let mut failed: u64 = 0;
    for (nth, error) in (1..).flat_map(|step| [(step * every, EIO), (step * every, ENOSPC)]) {
        let sim = SimDisk::new();
        let disk = FaultyDisk::over_sim(sim.clone());
        let store = open_on(wrap(Arc::new(disk.clone())), &clock).unwrap();
        let topic = store.create_topic("t", settings(Codec::None)).unwrap();
        append(&topic, 0..80);
        // So that what fails is compaction, or the small checkpoint that it begins with.
        store.checkpoint().unwrap();
        let before = Seen::of(&topic);
        disk.forget_ops();
        disk.fail(Fault::any(nth, error));
        let outcome = topic.compact();
        if disk.fault_count() == 0 {
            assert!(nth > 20, "only {nth} operations");
            break;
        }
        disk.heal();
        failed += u64::from(outcome.is_err());
        let is_failed = matches!(&outcome, Err(error) if error.kind() == ErrorKind::Reopen);
        assert_eq!(is_failed, store.stats().failure.is_some());
        if is_failed {
            assert!(matches!(topic.append(&[Record::new("x")]), Err(Error::StorageFailed { .. })));
        } else {
            let found = Seen::of(&topic);
            found.check_between(&before, &found);
            let report = topic.compact().unwrap();
            assert!(report.is_complete && report.damaged.is_empty(), "{report:?}");
            append(&topic, 80..81);
        }
        // What the compacted log comes to, from a store on which nothing failed.
        let reference = SimDisk::new();
        let good = open(&reference, &clock).unwrap();
        let good = good.create_topic("t", settings(Codec::None)).unwrap();
        append(&good, 0..80);
        good.compact().unwrap();
        let after = Seen::of(&good);
        let crashed = sim.crash(&mut Rng::new(nth));
        let recovered = open(&crashed, &clock).unwrap();
        let found = Seen::of(&recovered.topic("t").unwrap());
        if is_failed {
            found.check_between(&before, &after);
        } else {
            assert_eq!(found, Seen::of(&topic));
        }
    }
    failed
}
