//! The cases of the bare log's recovery, by the names of the table in its module.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;

use quipu_storage::format::batch::{self, BatchHeader};
use quipu_storage::format::segment::{FOOTER_BYTES, HEADER_BYTES, INDEX_ENTRY_BYTES};
use quipu_storage::{Durability, Error, Log, LogRecovery, Offset, Record, Start, Uid};
use quipu_tests::bare_log::rot::{a_bad_batch_that_was_synced_is_refused, batches, damage, refused_at};
use quipu_tests::bare_log::{DIR, SEGMENT_BYTES, open, segments};
use quipu_tests::sim::SimDisk;

fn text(n: u64) -> String {
    format!("record {n} {}", "y".repeat(300))
}

/// The disk of a process that was killed after it had appended `synced` records, synced them, and appended more up to
/// `end`.
fn killed(synced: u64, end: u64) -> (SimDisk, Uid) {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    for n in 0..end {
        log.append_record(&Record::new(text(n)), Durability::Written).unwrap();
        if n + 1 == synced {
            log.sync().unwrap();
        }
    }
    (disk.after_kill(), log.uid())
}

/// Where the batches of a segment end.
fn data_end(disk: &SimDisk, path: &Path, uid: Uid) -> u64 {
    let last = batches(disk, path, uid).last().unwrap().1;
    let bytes = disk.read_file(path).unwrap();
    let header = BatchHeader::decode(&bytes[usize::try_from(last).unwrap()..], batch::seed(uid)).unwrap();
    last + header.stored_bytes() as u64
}

fn check(log: &Log, end: u64) {
    assert_eq!(log.log_end_offset(), Offset(end));
    assert_eq!(log.high_watermark(), Offset(end));
    let mut next = log.log_start_offset().value();
    for record in log.read(Start::Earliest).unwrap() {
        let record = record.unwrap();
        assert_eq!(record.offset(), Offset(next));
        assert_eq!(record.payload(), Some(text(next).as_bytes()), "record {next}");
        next += 1;
    }
    assert_eq!(next, end);
}

/// Checks, appends more than a segment holds, and checks once more after another opening.
fn check_and_go_on(disk: &SimDisk, log: Log, end: u64) {
    check(&log, end);
    for n in end..end + 15 {
        log.append(&[Record::new(text(n))]).unwrap();
    }
    check(&log, end + 15);
    drop(log);
    check(&open(disk).unwrap(), end + 15);
}

#[test]
fn clean_it_goes_on_behind_the_last_batch() {
    let (disk, _) = killed(5, 8);
    let log = open(&disk).unwrap();
    assert_eq!(log.recovery().torn_bytes, 0);
    assert!(log.recovery().in_doubt_bytes > 0);
    check_and_go_on(&disk, log, 8);
}

#[test]
fn torn_what_is_behind_a_bad_batch_that_was_not_synced_is_taken_away_for_good() {
    for bad in 3..8 {
        let (disk, uid) = killed(3, 8);
        // The first of them says that what is before it was synced; only what is behind it can prove more.
        damage(&disk, uid, bad);
        let log = open(&disk).unwrap();
        assert!(log.recovery().torn_bytes > 0);
        check_and_go_on(&disk, log, bad);
    }
}

#[test]
fn rot_a_bad_batch_that_a_later_one_says_was_synced_is_refused_and_named() {
    a_bad_batch_that_was_synced_is_refused();
}

#[test]
fn rot_a_bad_batch_that_the_identity_file_says_was_synced_is_refused_and_named() {
    let (disk, uid) = killed(5, 5);
    let log = open(&disk).unwrap();
    // Opening syncs what it finds and notes that.
    let disk = disk.after_kill();
    drop(log);
    let place = damage(&disk, uid, 4);
    assert_eq!(refused_at(&disk), place);
}

/// A log with `end` records in one segment, closed.
fn closed(end: u64) -> (SimDisk, Uid) {
    let (disk, uid) = killed(end, end);
    open(&disk).unwrap().close().unwrap();
    (disk, uid)
}

#[test]
fn closed_a_log_goes_on_in_its_last_segment_without_a_look_at_its_batches() {
    let (disk, _) = closed(3);
    let files = segments(&disk);
    let log = open(&disk).unwrap();
    assert_eq!(log.recovery(), &LogRecovery::default());
    assert_eq!(segments(&disk), files);
    check_and_go_on(&disk, log, 3);
}

#[test]
fn closed_a_log_takes_no_more_room_than_its_batches_index_and_footer() {
    let (disk, uid) = closed(3);
    let path = &segments(&disk)[0];
    let index_and_footer = disk.files()[path] - data_end(&disk, path, uid);
    assert_eq!(index_and_footer, (INDEX_ENTRY_BYTES + FOOTER_BYTES) as u64);
}

/// Every opening looked through the zeros of a segment in which nothing was ever written: 64 MiB of them.
#[test]
fn closed_a_segment_without_a_batch_is_no_longer_than_its_header() {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    log.close().unwrap();
    let path = segments(&disk).pop().unwrap();
    assert_eq!(disk.read_file(&path).unwrap().len(), HEADER_BYTES);
    let log = open(&disk).unwrap();
    assert_eq!(log.recovery(), &LogRecovery::default());
    check_and_go_on(&disk, log, 0);
}

#[test]
fn closed_a_segment_that_is_more_than_half_full_stays_sealed() {
    let (disk, uid) = closed(7);
    let path = segments(&disk).pop().unwrap();
    let before = disk.read_file(&path).unwrap();
    assert!(before.len() as u64 > SEGMENT_BYTES / 2, "the test wants a segment that is half full");
    assert_eq!(batches(&disk, &path, uid).len(), 7);
    let log = open(&disk).unwrap();
    assert_eq!(log.recovery(), &LogRecovery::default());
    check_and_go_on(&disk, log, 7);
    assert_eq!(disk.read_file(&path).unwrap(), before);
}

#[test]
fn closed_a_bad_batch_costs_its_own_records_and_no_others() {
    let (disk, uid) = closed(7);
    damage(&disk, uid, 4);
    let log = open(&disk).unwrap();
    log.append(&[Record::new(text(7))]).unwrap();
    let found: Vec<_> = log
        .read(Start::Earliest)
        .unwrap()
        .map(|record| match record {
            Ok(record) => record.offset().value()..record.offset().value() + 1,
            Err(Error::Corrupt { offsets, .. }) => offsets.start.value() + 100..offsets.end.value() + 100,
            Err(error) => panic!("{error}"),
        })
        .collect();
    assert_eq!(found, [0..1, 1..2, 2..3, 3..4, 104..105, 5..6, 6..7, 7..8]);
}

#[test]
fn closed_a_log_with_a_damaged_index_or_footer_is_looked_at_batch_by_batch() {
    let (disk, uid) = closed(3);
    let path = &segments(&disk)[0];
    let bytes = disk.files()[path];
    for bit in (data_end(&disk, path, uid) * 8..bytes * 8).step_by(7) {
        let disk = disk.after_kill();
        disk.flip_bit(path, bit).unwrap();
        let log = open(&disk).unwrap();
        assert_eq!(log.recovery().records_checked, 3, "bit {bit}");
        check_and_go_on(&disk, log, 3);
    }
}

#[test]
fn unsealed_a_segment_gets_the_footer_that_the_crash_kept_from_it() {
    let (disk, uid) = killed(1, 25);
    let path = &segments(&disk)[0];
    let whole = disk.read_file(path).unwrap();
    let end = data_end(&disk, path, uid);
    disk.truncate(path, end).unwrap();
    disk.truncate(path, 8192).unwrap();
    let log = open(&disk).unwrap();
    assert_eq!(disk.read_file(path).unwrap(), whole);
    check_and_go_on(&disk, log, 25);
}

#[test]
fn hollow_a_sealed_segment_with_a_bad_batch_that_was_not_synced_is_active_again() {
    let (disk, uid) = killed(1, 25);
    let (path, _) = damage(&disk, uid, 6);
    assert_eq!(path, segments(&disk)[0]);
    let log = open(&disk).unwrap();
    assert_eq!(segments(&disk), [path]);
    check_and_go_on(&disk, log, 6);
}

#[test]
fn stranded_segments_behind_a_gap_that_was_not_synced_are_removed() {
    let (disk, uid) = killed(1, 40);
    let files = segments(&disk);
    assert!(files.len() >= 4);
    let end = batches(&disk, &files[1], uid)[0].0;
    disk.lose_file(&files[1]).unwrap();
    let log = open(&disk).unwrap();
    assert_eq!(log.recovery().stranded, files[2..]);
    check_and_go_on(&disk, log, end);
}

#[test]
fn missing_a_segment_that_was_synced_is_refused_and_named() {
    let (disk, _) = killed(40, 40);
    let files = segments(&disk);
    for lost in &files {
        let copy = disk.after_kill();
        copy.lose_file(lost).unwrap();
        assert_eq!(refused_at(&copy), (lost.clone(), 0));
    }
}

#[test]
fn half_made_a_segment_without_a_header_keeps_its_batches() {
    let (disk, _) = killed(1, 12);
    let path = segments(&disk).pop().unwrap();
    disk.overwrite(&path, 0, &[0; HEADER_BYTES]).unwrap();
    let log = open(&disk).unwrap();
    check_and_go_on(&disk, log, 12);
}

#[test]
fn half_made_does_not_go_for_a_segment_that_was_synced() {
    let (disk, _) = killed(12, 13);
    let path = segments(&disk).pop().unwrap();
    disk.overwrite(&path, 0, &[0; HEADER_BYTES]).unwrap();
    assert_eq!(refused_at(&disk), (path, 0));
}

#[test]
fn foreign_a_segment_of_another_log_is_refused_and_not_touched() {
    let (disk, _) = killed(1, 12);
    let (other, _) = killed(1, 12);
    let path = segments(&disk).pop().unwrap();
    let theirs = other.read_file(&path).unwrap();
    disk.plant_file(&path, &theirs).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(matches!(&error, Error::NotAStore { path: named, .. } if *named == path), "{error}");
    assert_eq!(disk.read_file(&path).unwrap(), theirs);
}

#[test]
fn trimmed_segments_that_a_crash_brought_back_are_removed_again() {
    let (disk, _) = killed(30, 30);
    let log = open(&disk).unwrap();
    let path = segments(&disk)[0].clone();
    let bytes = disk.read_file(&path).unwrap();
    log.trim(Offset(20)).unwrap();
    drop(log);
    disk.plant_file(&path, &bytes).unwrap();
    let log = open(&disk).unwrap();
    assert!(!segments(&disk).contains(&path));
    assert_eq!(log.log_start_offset(), Offset(20));
    check_and_go_on(&disk, log, 30);
}

#[test]
fn spare_a_file_that_was_to_be_a_segment_is_removed() {
    let (disk, _) = killed(3, 3);
    disk.plant_file(Path::new(DIR).join("next"), b"whatever").unwrap();
    let log = open(&disk).unwrap();
    assert!(!disk.files().contains_key(&Path::new(DIR).join("next")));
    check_and_go_on(&disk, log, 3);
}

#[test]
fn damaged_a_synced_segment_is_read_without_its_footer() {
    let (disk, _) = killed(40, 41);
    let path = segments(&disk)[1].clone();
    let bytes = disk.files()[&path];
    disk.flip_bit(&path, (bytes - FOOTER_BYTES as u64 / 2) * 8).unwrap();
    let log = open(&disk).unwrap();
    assert_eq!(log.recovery().damaged, [path]);
    check_and_go_on(&disk, log, 41);
}

#[test]
fn what_is_not_ours_is_left_alone() {
    let (disk, _) = killed(3, 3);
    let notes = Path::new(DIR).join("notes.txt");
    disk.plant_file(&notes, b"keep").unwrap();
    drop(open(&disk).unwrap());
    assert_eq!(disk.read_file(&notes).unwrap(), b"keep");
}
