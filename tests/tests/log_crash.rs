//! The bare log on a disk that loses power: before every operation, into every kind of remains.
//!
//! After each cut: it opens, the offsets are dense, what was acknowledged as synced is there and has not changed, what
//! was trimmed stays away, and appends go on.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu_storage::disk::Disk;
use quipu_storage::{Durability, Error, Log, LogSettings, Offset, Record, Start};
use quipu_tests::faulty::{EIO, ENOSPC, Effect, Fault, FaultyDisk};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

const DIR: &str = "/log";

fn settings() -> LogSettings {
    LogSettings { segment_bytes_max: 4096, background: false, ..LogSettings::default() }
}

fn open(disk: &SimDisk) -> quipu_storage::Result<Log> {
    Log::builder().settings(settings()).disk(Arc::new(disk.clone())).open(DIR)
}

fn text(n: u64) -> String {
    format!("record {n} {}", "x".repeat((n * 37 % 700) as usize))
}

/// What a run knows for certain.
#[derive(Clone, Copy, Debug, Default)]
struct Acked {
    synced: u64,
    trimmed: u64,
    /// Trims that may or may not have come through.
    trim_asked: u64,
}

/// Appends, syncs, trims, closes and opens again, until the power goes. Tells of each acknowledgement.
fn work(disk: &SimDisk, seed: u64, mut acked: impl FnMut(Acked)) -> quipu_storage::Result<()> {
    let mut rng = Rng::new(seed);
    let mut known = Acked::default();
    for _ in 0..3 {
        let log = open(disk)?;
        let mut end = log.log_end_offset().value();
        for _ in 0..14 {
            match rng.below(10) {
                0..5 => {
                    let count = rng.below(4) + 1;
                    let records: Vec<_> = (end..end + count).map(|n| Record::new(text(n))).collect();
                    end = log.append_with(&records, Durability::Written)?.next_offset.value();
                }
                5..8 => {
                    end = log.append(&[Record::new(text(end))])?.next_offset.value();
                    known.synced = end;
                }
                8 => {
                    log.sync()?;
                    known.synced = end;
                }
                _ => {
                    let offset = log.log_start_offset().value().midpoint(log.high_watermark().value());
                    known.trim_asked = known.trim_asked.max(offset);
                    acked(known);
                    log.trim(Offset(offset))?;
                    known.trimmed = known.trimmed.max(offset);
                }
            }
            acked(known);
        }
        log.close()?;
        known.synced = end;
        acked(known);
    }
    Ok(())
}

/// Opens, checks, appends, and checks again.
fn check(disk: &SimDisk, acked: Acked, what: &str) {
    let log = open(disk).unwrap_or_else(|error| panic!("{what}: {error}"));
    let (start, end) = (log.log_start_offset().value(), log.log_end_offset().value());
    assert_eq!(log.high_watermark().value(), end, "{what}");
    assert!(end >= acked.synced, "{what}: {} were synced, {end} are left", acked.synced);
    assert!(start >= acked.trimmed && start <= acked.trim_asked, "{what}: starts at {start}: {acked:?}");
    check_records(&log, start, end, what);
    for n in end..end + 12 {
        assert_eq!(log.append(&[Record::new(text(n))]).unwrap().first_offset, Offset(n), "{what}");
    }
    check_records(&log, start, end + 12, what);
    log.close().unwrap_or_else(|error| panic!("{what}: {error}"));
    let log = open(disk).unwrap_or_else(|error| panic!("{what}: again: {error}"));
    check_records(&log, start, end + 12, what);
}

fn check_records(log: &Log, start: u64, end: u64, what: &str) {
    let mut expected = start..end;
    for record in log.read(Start::Earliest).unwrap() {
        let record = record.unwrap_or_else(|error| panic!("{what}: {error}"));
        let n = expected.next().unwrap_or_else(|| panic!("{what}: too many"));
        assert_eq!(record.offset().value(), n, "{what}");
        assert_eq!(record.payload(), Some(text(n).as_bytes()), "{what}: record {n}");
    }
    assert!(expected.is_empty(), "{what}: {expected:?} are missing");
}

/// A run with a copy of the disk before each of its operations, and what was acknowledged by then.
fn cut_everywhere(seed: u64) -> Vec<(u64, SimDisk, Acked)> {
    let disk = SimDisk::new();
    (1..5000).for_each(|number| disk.crash_at(number));
    let mut acks = vec![(0, Acked::default())];
    work(&disk, seed, |acked| acks.push((disk.ops(), acked))).unwrap();
    let snapshots = disk.take_snapshots();
    assert!(snapshots.len() > 150, "the run is worth cutting: {}", snapshots.len());
    snapshots
        .into_iter()
        .map(|(number, snapshot)| {
            // Acknowledged before operation `number` began; a trim may have been asked for and be under way.
            let reached = acks.partition_point(|(ops, _)| *ops < number);
            let asked = acks.get(reached).map_or(0, |(_, acked)| acked.trim_asked);
            let mut acked = acks[reached - 1].1;
            acked.trim_asked = acked.trim_asked.max(asked);
            (number, snapshot, acked)
        })
        .collect()
}

#[test]
fn a_power_cut_before_any_operation_loses_nothing_that_was_acknowledged() {
    for seed in 1..=6 {
        for (number, snapshot, acked) in cut_everywhere(seed) {
            let mut rng = Rng::new(seed * 10_000 + number);
            for mode in [CrashMode::KeepAll, CrashMode::LoseAll] {
                let left = snapshot.crash_with(mode, &mut rng);
                check(&left, acked, &format!("seed {seed}, operation {number}, {mode:?}"));
            }
            for roll in 0..3 {
                let left = snapshot.crash(&mut rng);
                check(&left, acked, &format!("seed {seed}, operation {number}, roll {roll}"));
            }
        }
    }
}

#[test]
fn a_power_cut_during_recovery_loses_nothing_either() {
    let mut cuts = 0;
    for seed in 20..=22 {
        for (number, snapshot, acked) in cut_everywhere(seed).into_iter().step_by(5) {
            let mut rng = Rng::new(seed * 10_000 + number);
            let left = snapshot.crash(&mut rng);
            // Recover a copy first to know how many operations that takes.
            let rehearsal = left.after_kill();
            let before = rehearsal.ops();
            drop(open(&rehearsal).unwrap());
            for at in (before + 1..=rehearsal.ops()).step_by(2) {
                let halting = left.after_kill();
                halting.halt_at(halting.ops() + at - before);
                let opened = open(&halting);
                drop(opened);
                let what = format!("seed {seed}, operation {number}, cut at {at} of the recovery");
                check(&halting.crash(&mut rng), acked, &what);
                cuts += 1;
            }
        }
    }
    assert!(cuts > 500, "{cuts} cuts");
}

#[test]
fn a_killed_process_loses_nothing_that_was_written() {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    for n in 0..40 {
        log.append_record(&Record::new(text(n)), Durability::Written).unwrap();
        let left = disk.after_kill();
        check(&left, Acked { synced: n + 1, ..Acked::default() }, &format!("after record {n}"));
    }
}

/// The page cache shows what a failed sync did not write; after a reopening it must not count as synced.
#[test]
fn after_a_failed_sync_nothing_is_taken_and_reopening_makes_what_is_seen_durable() {
    for seed in 0..40 {
        let disk = SimDisk::new();
        let log = open(&disk).unwrap();
        for n in 0..10 {
            log.append(&[Record::new(text(n))]).unwrap();
        }
        for n in 10..10 + seed % 25 {
            log.append_record(&Record::new(text(n)), Durability::Written).unwrap();
        }
        let end = 10 + seed % 25;
        disk.fail_next_sync(None, 5).unwrap();
        let error = log.append(&[Record::new(text(end))]).unwrap_err();
        assert!(matches!(error, Error::StorageFailed { .. }), "{error}");
        assert!(matches!(log.append(&[Record::new("no")]), Err(Error::StorageFailed { .. })));
        assert!(matches!(log.sync(), Err(Error::StorageFailed { .. })));
        assert_eq!(log.high_watermark(), Offset(10), "nobody has seen what is not synced");
        check_records(&log, 0, 10, "reads go on");
        drop(log);
        let log = open(&disk).unwrap();
        assert_eq!(log.high_watermark(), Offset(end + 1));
        drop(log);
        let mut rng = Rng::new(seed);
        for left in [disk.crash_with(CrashMode::LoseAll, &mut rng), disk.crash(&mut rng)] {
            check(&left, Acked { synced: end + 1, ..Acked::default() }, &format!("seed {seed}"));
        }
    }
}

#[test]
fn a_full_disk_refuses_appends_only_and_trimming_makes_room() {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    let mut end = 0;
    for n in 0..30 {
        log.append(&[Record::new(text(n))]).unwrap();
        end = n + 1;
    }
    disk.set_capacity(Some(disk.used_bytes()));
    let refused = loop {
        match log.append(&[Record::new(text(end))]) {
            Ok(appended) => end = appended.next_offset.value(),
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::DiskFull { .. }), "{refused}");
    check_records(&log, 0, end, "full");
    let start = end - 3;
    log.trim(Offset(start)).unwrap();
    for n in end..end + 5 {
        assert_eq!(log.append(&[Record::new(text(n))]).unwrap().first_offset, Offset(n));
    }
    check_records(&log, start, end + 5, "trimmed");
    log.close().unwrap();
    check(&disk, Acked { synced: end + 5, trimmed: start, trim_asked: start }, "reopened");
}

fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files().into_keys().filter(|path| path.extension().is_some_and(|e| e == "segment")).collect()
}

fn written(count: u64) -> SimDisk {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    for n in 0..count {
        log.append(&[Record::new(text(n))]).unwrap();
    }
    // A process that dies writes no last note.
    disk.after_kill()
}

#[test]
fn a_flipped_bit_in_what_was_synced_is_never_taken_for_a_torn_write() {
    let (mut refused, mut told) = (0, 0);
    for round in 0..400 {
        let mut rng = Rng::new(round);
        let disk = written(30);
        // Opening makes all of it synced. A close leaves a footer to open by, a kill does not.
        let log = open(&disk).unwrap();
        let is_closed = round % 2 == 0;
        let left = disk.after_kill();
        log.close().unwrap();
        drop(log);
        let disk = if is_closed { disk } else { left };
        let files = segments(&disk);
        let path = &files[rng.below(files.len() as u64) as usize];
        let bytes = disk.files()[path];
        disk.flip_bit(path, rng.below(bytes * 8)).unwrap();
        match open(&disk) {
            Err(Error::CorruptFile { .. } | Error::NewerFormat { .. } | Error::NotAStore { .. }) => {
                refused += 1
            }
            Err(error) => panic!("round {round}: {error}"),
            Ok(log) => {
                assert_eq!(log.log_end_offset(), Offset(30), "round {round}");
                let mut next = 0;
                for record in log.read(Start::Earliest).unwrap() {
                    match record {
                        Ok(record) => {
                            assert_eq!(record.offset(), Offset(next), "round {round}");
                            assert_eq!(record.payload(), Some(text(next).as_bytes()), "round {round}");
                            next += 1;
                        }
                        Err(Error::Corrupt { offsets, .. }) => {
                            assert_eq!(offsets.start, Offset(next), "round {round}");
                            next = offsets.end.value();
                            told += 1;
                        }
                        Err(error) => panic!("round {round}: {error}"),
                    }
                }
                assert_eq!(next, 30, "round {round}");
            }
        }
    }
    assert!(refused > 10 && told > 10, "{refused} refused, {told} told of");
}

#[test]
fn a_lost_segment_is_noticed() {
    let count = segments(&written(40)).len();
    assert!(count >= 4);
    for lost in 0..count {
        let disk = written(40);
        let path = &segments(&disk)[lost];
        disk.lose_file(path).unwrap();
        let error = open(&disk).expect_err(&format!("segment {lost} of {count}"));
        assert!(matches!(error, Error::CorruptFile { .. }), "segment {lost}: {error}");
    }
}

#[test]
fn the_identity_survives_the_loss_of_either_copy_and_not_of_both() {
    for (first, second) in [(true, false), (false, true), (true, true)] {
        let disk = written(5);
        let path = Path::new(DIR).join("log");
        for (lost, at) in [(first, 0), (second, 4096)] {
            if lost {
                disk.overwrite(&path, at, &[0xee; 64]).unwrap();
            }
        }
        match open(&disk) {
            Ok(log) => {
                assert!(!(first && second));
                check_records(&log, 0, 5, "one copy");
            }
            Err(error) => assert!(first && second && matches!(error, Error::CorruptFile { .. }), "{error}"),
        }
    }
}

const STUBBORN_RECORDS: u64 = 60;

/// A run on a disk that fails once, as an application sees it: it repeats what was refused, and opens again what
/// failed. Returns how many records were acknowledged as synced, and how many were perhaps appended.
fn stubborn_work(disk: &Arc<FaultyDisk>) -> (u64, u64) {
    let (mut synced, mut tried) = (0, 0);
    let mut patience = 200;
    while synced < STUBBORN_RECORDS {
        patience -= 1;
        assert!(patience > 0, "no way on after {synced} records");
        let disk: Arc<FaultyDisk> = Arc::clone(disk);
        let Ok(log) = Log::builder().settings(settings()).disk(disk).open(DIR) else { continue };
        let mut end = log.log_end_offset().value();
        assert!(end >= synced && end <= tried.max(synced), "{synced} synced, {tried} tried, {end} found");
        while end < STUBBORN_RECORDS {
            tried = tried.max(end + 1);
            let durability = if end.is_multiple_of(3) { Durability::Synced } else { Durability::Written };
            match log.append_with(&[Record::new(text(end))], durability) {
                Ok(appended) => {
                    assert_eq!(appended.first_offset, Offset(end));
                    end += 1;
                    if durability == Durability::Synced {
                        synced = end;
                    }
                }
                Err(Error::StorageFailed { .. }) => break,
                Err(_) => {
                    assert_eq!(log.log_end_offset(), Offset(end), "nothing was applied");
                    patience -= 1;
                }
            }
            if end == 20 && log.log_start_offset() == Offset::ZERO {
                let _ = log.trim(Offset(synced.min(7)));
            }
        }
        if end == STUBBORN_RECORDS && log.close().is_ok() {
            synced = STUBBORN_RECORDS;
        }
    }
    (synced, tried)
}

#[test]
fn every_operation_fails_once_and_what_was_acknowledged_stays() {
    let rehearsal = FaultyDisk::over_sim(SimDisk::new());
    stubborn_work(&Arc::new(rehearsal.clone()));
    let count = rehearsal.op_count();
    assert!(count > 150, "{count}");
    for nth in 1..=count {
        for (error, effect) in [
            (EIO, Effect::Nothing),
            (ENOSPC, Effect::Nothing),
            (ENOSPC, Effect::Prefix(100)),
            (EIO, Effect::Whole),
        ] {
            let sim = SimDisk::new();
            // Whoever chose the directory made it: one whose own name is lost cannot be helped from inside.
            sim.create_dir(Path::new(DIR)).and_then(|()| sim.sync_dir(Path::new("/"))).unwrap();
            let disk = Arc::new(FaultyDisk::over_sim(sim.clone()));
            disk.fail(Fault::any(nth, error).after(effect));
            let (synced, _) = stubborn_work(&disk);
            let what = format!("operation {nth} fails with {error} after {effect:?}");
            let trims = Acked { synced, trimmed: 0, trim_asked: 7 };
            check(&sim.crash_with(CrashMode::LoseAll, &mut Rng::new(nth)), trims, &what);
        }
    }
}
