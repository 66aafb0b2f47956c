//! A small log that keeps its promises, and the ways to break them on purpose: what the fault tools are tried on.
//!
//! ```text
//!   tinylog write DIR COUNT [BUG]   appends COUNT records; prints "ack N" once record N survives a power cut
//!   tinylog check DIR ACK           exits with 0 if the records 0..=ACK are there, in order and unchanged
//! ```
//!
//! Segments `NNNNNNNN.log` are named by their first record; a record is a CRC, a number and a body made from it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

const BODY_BYTES: usize = 700;
const RECORD_BYTES: usize = 4 + 8 + BODY_BYTES;
const SEGMENT_RECORDS: u64 = 20;
/// How many acknowledgements run ahead of the sync with the bug `ack-early`.
const EARLY_ACKS: u64 = 8;

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Bug {
    #[default]
    None,
    /// Acknowledges before the sync.
    AckEarly,
    /// Never syncs the directory of a new segment.
    NoDirsync,
    /// Acknowledges although the sync failed.
    IgnoreSyncError,
    /// Acknowledges although the write failed.
    IgnoreWriteError,
    /// Dies of an error instead of reporting it.
    PanicOnError,
}

impl Bug {
    fn named(name: &str) -> Option<Self> {
        Some(match name {
            "none" => Self::None,
            "ack-early" => Self::AckEarly,
            "no-dirsync" => Self::NoDirsync,
            "ignore-sync-error" => Self::IgnoreSyncError,
            "ignore-write-error" => Self::IgnoreWriteError,
            "panic-on-error" => Self::PanicOnError,
            _ => return None,
        })
    }
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["write", dir, count] => write(Path::new(dir), count.parse().ok(), Some(Bug::None)),
        ["write", dir, count, bug] => write(Path::new(dir), count.parse().ok(), Bug::named(bug)),
        ["check", dir, ack] => check(Path::new(dir), ack.parse().ok()),
        _ => usage(),
    }
}

fn usage() -> ExitCode {
    eprintln!("tinylog write DIR COUNT [BUG] | tinylog check DIR ACK");
    ExitCode::from(64)
}

fn write(dir: &Path, count: Option<u64>, bug: Option<Bug>) -> ExitCode {
    let (Some(count), Some(bug)) = (count, bug) else { return usage() };
    match append(dir, count, bug) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if bug == Bug::PanicOnError => panic!("{error}"),
        Err(error) => {
            eprintln!("tinylog: {error}");
            ExitCode::from(3)
        }
    }
}

fn check(dir: &Path, ack: Option<i64>) -> ExitCode {
    let Some(ack) = ack else { return usage() };
    match recover(dir) {
        Ok(records) if i128::from(records) > i128::from(ack) => ExitCode::SUCCESS,
        Ok(records) => {
            eprintln!("tinylog: {records} records are left, but {ack} was acknowledged");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("tinylog: {error}");
            ExitCode::from(1)
        }
    }
}

fn append(dir: &Path, count: u64, bug: Bug) -> io::Result<()> {
    fs::create_dir_all(dir)?;
    sync_dir(dir.parent().unwrap_or(dir), bug)?;
    let first = recover(dir)?;
    let mut segment = None;
    for number in first..first + count {
        // A new process starts a new segment: what the last one ends with may be torn.
        let segment = match &mut segment {
            Some(segment) if !number.is_multiple_of(SEGMENT_RECORDS) => segment,
            last => {
                if let Some(full) = last {
                    sync(full, bug)?;
                }
                last.insert(create(dir, number, bug)?)
            }
        };
        match segment.write_all(&record(number)) {
            Err(_) if bug == Bug::IgnoreWriteError => {}
            outcome => outcome?,
        }
        if bug != Bug::AckEarly || number % EARLY_ACKS == 0 {
            sync(segment, bug)?;
        }
        let mut out = io::stdout().lock();
        writeln!(out, "ack {number}")?;
        out.flush()?;
    }
    Ok(())
}

fn create(dir: &Path, first: u64, bug: Bug) -> io::Result<File> {
    let segment = OpenOptions::new().write(true).create(true).truncate(true).open(path(dir, first))?;
    sync_dir(dir, bug)?;
    Ok(segment)
}

fn sync(segment: &File, bug: Bug) -> io::Result<()> {
    match segment.sync_data() {
        Err(_) if bug == Bug::IgnoreSyncError => Ok(()),
        outcome => outcome,
    }
}

fn sync_dir(dir: &Path, bug: Bug) -> io::Result<()> {
    if bug == Bug::NoDirsync { Ok(()) } else { File::open(dir)?.sync_all() }
}

/// How many records are there, from the first on without a gap.
fn recover(dir: &Path) -> io::Result<u64> {
    let mut next = 0;
    loop {
        let bytes = match fs::read(path(dir, next)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(next),
            Err(error) => return Err(error),
        };
        let first = next;
        next +=
            bytes.chunks(RECORD_BYTES).zip(first..).take_while(|(bytes, n)| **bytes == *record(*n)).count()
                as u64;
        if next == first {
            return Ok(next);
        }
    }
}

fn record(number: u64) -> Vec<u8> {
    let mut rest = number.to_le_bytes().to_vec();
    rest.extend(
        (0..BODY_BYTES as u64).map(|at| (at.wrapping_mul(number ^ 0x9E37_79B9) >> 3).to_le_bytes()[0]),
    );
    [crc32fast::hash(&rest).to_le_bytes().to_vec(), rest].concat()
}

fn path(dir: &Path, first: u64) -> PathBuf {
    dir.join(format!("{first:08}.log"))
}
