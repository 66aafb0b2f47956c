//! The bare log on a disk that loses power, fails or rots: see [`quipu_tests::bare_log`].

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use quipu_storage::{Durability, Error, Offset, Record};
use quipu_tests::bare_log::{
    Acked, DIR, check, check_records, cuts, faults, killed, open, rot, segments, text,
};
use quipu_tests::faults::honest as honest_faults;
use quipu_tests::model::run::honest;
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

/// Under a sanitizer each takes far longer: only so many of what there is.
fn part(of: u64) -> u64 {
    std::env::var("QUIPU_LOG_PART").map_or(of, |text| text.parse::<u64>().unwrap().min(of))
}

#[test]
fn a_power_cut_before_any_operation_loses_nothing_that_was_acknowledged() {
    let seeds = part(6);
    let cuts = cuts::run(honest, 1..=seeds);
    assert!(cuts > 500 * seeds, "{cuts} cuts");
}

#[test]
fn a_power_cut_during_recovery_loses_nothing_either() {
    let seeds = part(3);
    let cuts = cuts::run_twice(honest, 20..=19 + seeds);
    assert!(cuts > 160 * seeds, "{cuts} cuts");
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

#[test]
fn a_flipped_bit_in_what_was_synced_is_never_taken_for_a_torn_write() {
    let (refused, told) = rot::flip_bits(400);
    assert!(refused > 10 && told > 10, "{refused} refused, {told} told of");
}

#[test]
fn a_lost_segment_is_noticed() {
    let count = segments(&killed(40, 40)).len();
    assert!(count >= 4);
    for lost in 0..count {
        let disk = killed(40, 40);
        let path = &segments(&disk)[lost];
        disk.lose_file(path).unwrap();
        let error = open(&disk).expect_err(&format!("segment {lost} of {count}"));
        assert!(matches!(error, Error::CorruptFile { .. }), "segment {lost}: {error}");
    }
}

#[test]
fn the_identity_survives_the_loss_of_either_copy_and_not_of_both() {
    for (first, second) in [(true, false), (false, true), (true, true)] {
        let disk = killed(5, 5);
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

#[test]
fn every_operation_fails_once_and_what_was_acknowledged_stays() {
    let shards = 7 - part(6);
    let faults = faults::run(honest_faults, (0, shards));
    assert!(faults > 500 / shards, "{faults} faults");
}

#[test]
fn every_operation_of_the_recovery_fails_once_and_what_was_acknowledged_stays() {
    let every = 7 - part(6);
    let (faults, refused) = faults::run_recovery(honest_faults, every as usize);
    println!("{faults} faults, {refused} openings refused");
    assert!(faults > 1000 / every && refused > 500 / every, "{faults} faults, {refused} openings refused");
}
