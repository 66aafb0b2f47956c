//! Trims of a bare log: what is told of one that did not go as it should, and readers that are at what it removes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use quipu_storage::disk::Disk;
use quipu_storage::{Error, Log, LogSettings, Offset, Record, Start, Visibility};
use quipu_tests::faulty::{EIO, Fault, FaultyDisk, OpKind};
use quipu_tests::meeting::MeetingDisk;
use quipu_tests::model::TestClock;
use quipu_tests::sim::SimDisk;

const DIR: &str = "/log";

fn open(disk: Arc<dyn Disk>, clock: &Arc<TestClock>) -> Log {
    let settings = LogSettings { segment_bytes_max: 4096, background: false, ..LogSettings::default() };
    Log::builder().settings(settings).disk(disk).clock(clock.clone()).open(DIR).unwrap()
}

/// Thirty records, ten or so in a segment, each a millisecond after the one before.
fn filled(disk: Arc<dyn Disk>) -> Log {
    let clock = TestClock::at(0);
    let log = open(disk, &clock);
    for n in 0..30 {
        clock.set(1000 + n);
        log.append(&[Record::new("x".repeat(300))]).unwrap();
    }
    log
}

fn offsets(log: &Log) -> Vec<u64> {
    log.read(Start::Earliest).unwrap().map(|record| record.unwrap().offset().0).collect()
}

fn segments(disk: &SimDisk) -> usize {
    disk.files().keys().filter(|path| path.extension().is_some_and(|end| end == "segment")).count()
}

/// The log was trimmed for good, and its caller was told that it was not: try again. The files stayed until the next
/// opening, and who waited was not woken.
#[test]
fn a_trim_whose_files_cannot_be_removed_is_done_and_the_next_one_removes_them() {
    let sim = SimDisk::new();
    let disk = FaultyDisk::over_sim(sim.clone());
    let log = filled(Arc::new(disk.clone()));
    let before = segments(&sim);
    let behind = log.cursor(Start::Offset(Offset(5)), Visibility::Synced).unwrap();
    disk.fail(Fault::of(OpKind::Remove, 1, EIO).forever());
    log.trim(Offset(25)).unwrap();
    assert_eq!(log.log_start_offset(), Offset(25));
    assert_eq!(offsets(&log), [25, 26, 27, 28, 29]);
    assert_eq!(segments(&sim), before);
    assert!(behind.wait(Some(Duration::ZERO)).unwrap());
    disk.heal();
    log.trim(Offset(25)).unwrap();
    assert_eq!(segments(&sim), 1);
    assert_eq!(offsets(&log), [25, 26, 27, 28, 29]);
    assert_eq!(offsets(&open(Arc::new(sim.after_kill()), &TestClock::at(0))), [25, 26, 27, 28, 29]);
}

/// The second copy of the identity could not be written: the trim was refused, and made at the next opening.
#[test]
fn a_trim_that_only_one_copy_of_the_identity_has_is_made() {
    for (nth, is_made) in [(1, false), (2, true)] {
        let sim = SimDisk::new();
        filled(Arc::new(sim.clone())).close().unwrap();
        let disk = FaultyDisk::over_sim(sim.clone());
        let log = open(Arc::new(disk.clone()), &TestClock::at(0));
        disk.fail(Fault::of(OpKind::Write, nth, EIO).below("/log/log"));
        assert_eq!(log.trim(Offset(20)).is_ok(), is_made);
        let start = Offset(if is_made { 20 } else { 0 });
        assert_eq!(log.log_start_offset(), start);
        assert_eq!(open(Arc::new(sim.after_kill()), &TestClock::at(0)).log_start_offset(), start);
        // The copy that says less is written first: when that fails, the other one still counts.
        disk.fail(Fault::of(OpKind::Write, 1, EIO).below("/log/log"));
        assert!(matches!(log.trim(Offset(21)), Err(Error::Io { .. })));
        let killed = sim.after_kill();
        assert_eq!(open(Arc::new(killed), &TestClock::at(0)).log_start_offset(), start);
        log.trim(Offset(22)).unwrap();
        assert_eq!(open(Arc::new(sim.after_kill()), &TestClock::at(0)).log_start_offset(), Offset(22));
    }
}

/// A reader was on its way to a segment when that was removed: instead of hearing so, it got an error of the disk, and its
/// iterator ended.
#[test]
fn a_reader_that_meets_a_trim_on_its_way_to_a_segment_is_told_of_the_trim() {
    let sim = SimDisk::new();
    filled(Arc::new(sim.clone())).close().unwrap();
    let disk = MeetingDisk::new(sim);
    let log = open(Arc::new(disk.clone()), &TestClock::at(0));
    let trims = |offset: u64| {
        let log = log.clone();
        disk.before_next(OpKind::OpenRead, DIR, move || log.trim(Offset(offset)).unwrap());
    };

    let mut records = log.read(Start::Earliest).unwrap();
    trims(12);
    let error = records.next().unwrap().unwrap_err();
    assert!(
        matches!(error, Error::OffsetTrimmed { offset: Offset(0), log_start_offset: Offset(12), .. }),
        "{error}"
    );
    assert_eq!(
        records.map(|record| record.unwrap().offset().0).collect::<Vec<_>>(),
        (12..30).collect::<Vec<_>>()
    );
}

#[test]
fn a_search_for_a_time_that_meets_a_trim_goes_on_behind_it() {
    let sim = SimDisk::new();
    filled(Arc::new(sim.clone())).close().unwrap();
    let disk = MeetingDisk::new(sim);
    let log = open(Arc::new(disk.clone()), &TestClock::at(0));
    let of_disk = log.clone();
    disk.before_next(OpKind::OpenRead, DIR, move || of_disk.trim(Offset(15)).unwrap());
    let cursor = log.cursor(Start::Time(quipu_storage::Timestamp(1003)), Visibility::Synced).unwrap();
    assert_eq!(cursor.next_offset(), Offset(15));
}
