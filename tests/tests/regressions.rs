//! What the harnesses have found once, each as a story of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use quipu_storage::disk::Disk as _;
use quipu_storage::verify::{VerifyOptions, verify};
use quipu_storage::{
    Durability, Error, Offset, Record, Retention, Start, Storage, Store, StoreSettings, Topic, TopicSettings,
    Visibility,
};
use quipu_tests::faulty::{EIO, Fault, FaultyDisk, OpKind};
use quipu_tests::model::TestClock;
use quipu_tests::model::run::{STORE, settings};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

fn open(disk: &SimDisk) -> Store {
    open_with(disk, settings())
}

fn open_with(disk: &SimDisk, settings: StoreSettings) -> Store {
    let clock = TestClock::at(1000);
    Store::builder().settings(settings).disk(Arc::new(disk.clone())).clock(clock).open(STORE).unwrap()
}

/// What a power cut leaves that takes everything it may.
fn cut(disk: &SimDisk) -> SimDisk {
    disk.crash_with(CrashMode::LoseAll, &mut Rng::new(0))
}

fn small_segments() -> TopicSettings {
    TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() }
}

fn append(topic: &Topic, bytes: usize, durability: Durability) -> Offset {
    topic.append_with(&[Record::new(vec![7; bytes])], durability).unwrap().first_offset
}

fn offsets(topic: &Topic) -> Vec<u64> {
    topic.read(Start::Earliest).unwrap().map(|record| record.unwrap().offset().0).collect()
}

/// Nothing but the header of the generation that an opening begins was unsynced, and the next checkpoint referred to
/// it: a power cut then left a checkpoint whose journal was missing.
#[test]
fn a_checkpoint_right_after_opening_survives_a_power_cut() {
    let disk = SimDisk::new();
    let store = open(&disk);
    store.create_topic("t", TopicSettings::default()).unwrap();
    drop(store);
    let store = open(&disk);
    store.checkpoint().unwrap();
    assert_eq!(open(&cut(&disk)).topics().len(), 1);
}

/// A generation without frames was followed by the next one, its file was used again, and the chain was broken.
#[test]
fn a_store_killed_again_and_again_before_it_writes_still_knows_its_journal() {
    let mut disk = SimDisk::new();
    let store = open(&disk);
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    append(&topic, 10, Durability::Synced);
    store.checkpoint().unwrap();
    let mut stores = vec![store];
    for _ in 0..4 {
        disk = disk.after_kill();
        // Not closed before the next one has taken over what it left.
        stores.push(open(&disk));
    }
    assert_eq!(stores.pop().unwrap().topic("t").unwrap().log_end_offset(), Offset(1));
}

/// A segment was synced by one checkpoint and sealed by the next, which did not sync its index and footer: after a
/// power cut readers met a damaged footer.
#[test]
fn the_footer_of_a_segment_that_was_synced_before_it_was_sealed_is_synced_too() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let topic = store.create_topic("t", small_segments()).unwrap();
    append(&topic, 3000, Durability::Synced);
    store.checkpoint().unwrap();
    append(&topic, 3000, Durability::Synced);
    store.checkpoint().unwrap();
    let store = open(&cut(&disk));
    assert_eq!(offsets(&store.topic("t").unwrap()), [0, 1]);
    assert_eq!(store.stats().damage_found, 0);
}

/// A segment's records in the file were trimmed, others of it were still in memory: the segment was forgotten, and
/// with it the acknowledged records on their way to it.
#[test]
fn a_trim_keeps_the_records_of_a_segment_that_are_not_in_its_file_yet() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let topic = store.create_topic("t", small_segments()).unwrap();
    append(&topic, 1000, Durability::Synced);
    store.checkpoint().unwrap();
    append(&topic, 1000, Durability::Synced);
    append(&topic, 3000, Durability::Synced);
    topic.trim(Offset(1)).unwrap();
    store.checkpoint().unwrap();
    assert_eq!(offsets(&topic), [1, 2]);
    assert_eq!(offsets(&open(&cut(&disk)).topic("t").unwrap()), [1, 2]);
}

/// As above, but the trim came with the journal, before the records that it read back had reached their segment.
#[test]
fn a_trim_that_is_read_back_keeps_the_records_of_a_segment_that_are_not_in_its_file_yet() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let topic = store.create_topic("t", small_segments()).unwrap();
    append(&topic, 1000, Durability::Synced);
    store.checkpoint().unwrap();
    append(&topic, 1000, Durability::Synced);
    append(&topic, 1000, Durability::Synced);
    append(&topic, 3000, Durability::Synced);
    topic.trim(Offset(2)).unwrap();
    let disk = cut(&disk);
    let store = open(&disk);
    store.checkpoint().unwrap();
    assert_eq!(offsets(&store.topic("t").unwrap()), [2, 3]);
    assert_eq!(offsets(&open(&cut(&disk)).topic("t").unwrap()), [2, 3]);
}

/// Retention removed a trimmed segment that a crash had left, without a word in the journal; the checkpoint listed it,
/// and the next opening refused the topic because the file was missing.
#[test]
fn a_trimmed_segment_may_be_removed_after_the_checkpoint_that_lists_it() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let topic = store.create_topic("t", small_segments()).unwrap();
    append(&topic, 3000, Durability::Synced);
    append(&topic, 3000, Durability::Synced);
    topic.trim(Offset(1)).unwrap();
    let disk = disk.after_kill();
    let store = open(&disk);
    store.checkpoint().unwrap();
    store.run_retention().unwrap();
    let disk = disk.after_kill();
    assert_eq!(offsets(&open(&disk).topic("t").unwrap()), [1]);
}

/// What topics in memory hold counted as waiting for segments: with more of it than `tail_bytes_max` every append to a
/// topic on disk waited for ever.
#[test]
fn a_large_topic_in_memory_does_not_stop_appends_to_others() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let storage = Storage::Memory { bytes_max: 1 << 20 };
    let memory = store.create_topic("m", TopicSettings { storage, ..TopicSettings::default() }).unwrap();
    for _ in 0..10 {
        append(&memory, 20_000, Durability::Accepted);
    }
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    assert_eq!(append(&topic, 10, Durability::Synced), Offset(0));
    assert_eq!(store.stats().tail_bytes, 10 + 48 + 4);
}

/// The records of a topic that is created, filled and deleted in one stretch of the journal counted for ever as waiting
/// for their segments once they had been read back.
#[test]
fn a_deleted_topic_that_is_read_back_takes_no_memory() {
    let disk = SimDisk::new();
    let store = open(&disk);
    for _ in 0..4 {
        let topic = store.create_topic("t", TopicSettings::default()).unwrap();
        append(&topic, 20_000, Durability::Synced);
        store.delete_topic("t").unwrap();
    }
    let store = open(&disk.after_kill());
    assert_eq!(store.stats().tail_bytes, 0);
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    assert_eq!(append(&topic, 10, Durability::Synced), Offset(0));
}

/// A cursor at a record that a deletion had taken out of memory looked for it for ever.
#[test]
fn reading_a_deleted_topic_ends() {
    let disk = SimDisk::new();
    let store = open(&disk);
    let topic = store.create_topic("t", small_segments()).unwrap();
    let mut cursors = Vec::new();
    for checkpoints in [true, false] {
        append(&topic, 3000, Durability::Synced);
        cursors.push(topic.cursor(Start::Last(1), Visibility::Synced).unwrap());
        if checkpoints {
            store.checkpoint().unwrap();
        }
    }
    store.delete_topic("t").unwrap();
    store.checkpoint().unwrap();
    for mut cursor in cursors {
        assert!(matches!(cursor.next_batch(), Err(Error::TopicNotFound { .. })));
    }
    let mut backwards = topic.batches_backwards(Offset::MAX, Visibility::Synced);
    assert!(matches!(backwards.previous_batch(), Err(Error::TopicNotFound { .. })));
}

/// Records that are not synced yet cannot go; retention said that it had removed nothing, from 0 to 0.
#[test]
fn retention_reports_only_what_it_removed() {
    let disk = SimDisk::new();
    let clock = TestClock::at(1000);
    let builder = Store::builder().settings(settings()).disk(Arc::new(disk)).clock(clock.clone());
    let store = builder.open(STORE).unwrap();
    let retention = Retention { age_max: Some(Duration::from_millis(10)), ..Retention::default() };
    let topic = store.create_topic("t", TopicSettings { retention, ..TopicSettings::default() }).unwrap();
    append(&topic, 10, Durability::Written);
    clock.set(5000);
    assert_eq!(store.run_retention().unwrap(), []);
    store.sync().unwrap();
    assert_eq!(store.run_retention().unwrap()[0].to, Offset(1));
}

/// One segment had been written and the next could not be created: the next attempt began the first one again, and the
/// topic had it twice.
#[test]
fn a_segment_that_was_written_is_not_begun_again_because_the_next_one_failed() {
    let sim = SimDisk::new();
    let disk = FaultyDisk::over_sim(sim);
    let clock = TestClock::at(1000);
    let builder = Store::builder().settings(settings()).disk(Arc::new(disk.clone())).clock(clock);
    let store = builder.open(STORE).unwrap();
    let topic = store.create_topic("t", small_segments()).unwrap();
    for _ in 0..3 {
        append(&topic, 3000, Durability::Synced);
    }
    disk.fail(Fault::of(OpKind::OpenCreate, 2, EIO).below("/store/topics"));
    assert!(matches!(store.checkpoint(), Err(Error::Io { .. })));
    store.checkpoint().unwrap();
    assert_eq!(topic.stats().segments, 3);
    topic.trim(Offset(2)).unwrap();
    assert_eq!((topic.stats().segments, offsets(&topic)), (1, vec![2]));
}

/// A trim is done when the journal has it. That a file could not be removed was reported as if nothing had been trimmed,
/// and the file stayed until the next opening.
#[test]
fn a_trim_whose_files_cannot_be_removed_yet_is_done_and_retention_removes_them() {
    let sim = SimDisk::new();
    let disk = FaultyDisk::over_sim(sim.clone());
    let clock = TestClock::at(1000);
    let builder = Store::builder().settings(settings()).disk(Arc::new(disk.clone())).clock(clock);
    let store = builder.open(STORE).unwrap();
    let topic = store.create_topic("t", small_segments()).unwrap();
    for _ in 0..3 {
        append(&topic, 3000, Durability::Synced);
    }
    store.checkpoint().unwrap();
    disk.fail(Fault::of(OpKind::Remove, 1, EIO));
    topic.trim(Offset(2)).unwrap();
    assert_eq!(topic.log_start_offset(), Offset(2));
    store.run_retention().unwrap();
    assert_eq!(sim.files().keys().filter(|path| path.starts_with("/store/topics")).count(), 1);
}

/// Found by fuzzing: a rewritten segment that was cut to less than its header passed for readable, and its readers
/// reported that its end is missing.
#[test]
fn a_segment_of_any_length_that_verifies_as_readable_is_read_without_an_error() {
    let [golden, _] = quipu_tests::golden::stores();
    let root = Path::new("/store");
    let plant = |cut: Option<(&String, usize)>| {
        let disk = SimDisk::new();
        for (path, bytes) in &golden.files {
            let path_on_disk = root.join(path);
            let mut dirs: Vec<_> = path_on_disk.ancestors().skip(1).collect();
            dirs.reverse();
            for dir in dirs {
                disk.create_dir(dir).unwrap();
            }
            let length = cut.filter(|(name, _)| *name == path).map_or(bytes.len(), |(_, length)| length);
            disk.plant_file(path_on_disk, &bytes[..length]).unwrap();
        }
        disk
    };
    let mut unreadable = 0;
    for (path, bytes) in golden.files.iter().filter(|(path, _)| path.ends_with(".segment")) {
        for length in (0..bytes.len()).step_by(3) {
            let disk = plant(Some((path, length)));
            let report = verify(root, Arc::new(disk.clone()), VerifyOptions::default()).unwrap();
            if !report.is_readable() {
                unreadable += 1;
                continue;
            }
            let store = Store::builder().disk(Arc::new(disk)).settings(settings()).open(root).unwrap();
            for topic in store.topics() {
                for record in topic.read(Start::Earliest).unwrap() {
                    record.unwrap_or_else(|error| panic!("{path} of {length} bytes: {error}"));
                }
            }
        }
    }
    assert!(unreadable > 100, "only {unreadable} cuts cost something");
}
