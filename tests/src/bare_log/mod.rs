//! The bare log on a disk that loses power, fails or rots.
//!
//! What is found wrong is a panic: who plants a bug catches it.
//!
//! | Module | What it does |
//! |---|---|
//! | [`cuts`] | the power goes before each operation, also before each of the recovery |
//! | [`faults`] | each operation fails once, also each of the recovery |
//! | [`rot`] | damage in what was synced |

#![allow(clippy::unwrap_used, reason = "a harness that cannot go on fails")]

pub mod cuts;
pub mod faults;
pub mod rot;

use std::path::PathBuf;
use std::sync::Arc;

use quipu_storage::disk::Disk;
use quipu_storage::{Durability, Log, LogSettings, Offset, Record, Start};

use crate::sim::SimDisk;

/// Where the log lies.
pub const DIR: &str = "/log";

/// Length of a segment.
pub const SEGMENT_BYTES: u64 = 4096;

/// Small segments, and no threads: the same calls make the same operations.
pub fn settings() -> LogSettings {
    LogSettings { segment_bytes_max: SEGMENT_BYTES, background: false, ..LogSettings::default() }
}

/// Opens the log on any disk.
///
/// # Errors
/// As [`quipu_storage::LogBuilder::open`].
pub fn open_on(disk: Arc<dyn Disk>) -> quipu_storage::Result<Log> {
    Log::builder().settings(settings()).disk(disk).open(DIR)
}

/// Opens it on a simulated one.
///
/// # Errors
/// As [`open_on`].
pub fn open(disk: &SimDisk) -> quipu_storage::Result<Log> {
    open_on(Arc::new(disk.clone()))
}

/// What the record with this offset holds.
pub fn text(n: u64) -> String {
    format!("record {n} {}", "x".repeat((n * 37 % 700) as usize))
}

/// What a run knows for certain.
#[derive(Clone, Copy, Debug, Default)]
pub struct Acked {
    /// Everything before is synced.
    pub synced: u64,
    /// Everything before is trimmed.
    pub trimmed: u64,
    /// Trims that may or may not have come through.
    pub trim_asked: u64,
}

/// Checks, appends, closes, opens and checks again.
pub fn check(disk: &SimDisk, acked: Acked, what: &str) {
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

/// The log holds exactly these records.
pub fn check_records(log: &Log, start: u64, end: u64, what: &str) {
    let mut expected = start..end;
    for record in log.read(Start::Earliest).unwrap() {
        let record = record.unwrap_or_else(|error| panic!("{what}: {error}"));
        let n = expected.next().unwrap_or_else(|| panic!("{what}: too many"));
        assert_eq!(record.offset().value(), n, "{what}");
        assert_eq!(record.payload(), Some(text(n).as_bytes()), "{what}: record {n}");
    }
    assert!(expected.is_empty(), "{what}: {expected:?} are missing");
}

/// The segment files.
pub fn segments(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files().into_keys().filter(|path| path.extension().is_some_and(|e| e == "segment")).collect()
}

/// The disk of a process that was killed after it had appended `synced` records, synced them, and appended more up to
/// `end`. It has written no last note.
pub fn killed(synced: u64, end: u64) -> SimDisk {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    for n in 0..end {
        log.append_record(&Record::new(text(n)), Durability::Written).unwrap();
        if n + 1 == synced {
            log.sync().unwrap();
        }
    }
    disk.after_kill()
}
