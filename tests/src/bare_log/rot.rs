//! Damage in what was synced: never taken for a torn write, never delivered.

use std::path::{Path, PathBuf};

use quipu_storage::format::batch::{self, BatchHeader};
use quipu_storage::format::segment::HEADER_BYTES;
use quipu_storage::{Error, Offset, Start, Uid};

use super::{killed, open, segments, text};
use crate::rng::Rng;
use crate::sim::SimDisk;

/// The batches of a segment: base offset and position.
pub fn batches(disk: &SimDisk, path: &Path, uid: Uid) -> Vec<(u64, u64)> {
    let bytes = disk.read_file(path).unwrap();
    let mut found = Vec::new();
    let mut at = HEADER_BYTES;
    while let Ok(header) = BatchHeader::decode(&bytes[at..], batch::seed(uid)) {
        found.push((header.base_offset.value(), at as u64));
        at += header.stored_bytes();
    }
    found
}

/// Damages the batch with this offset; says where it is.
pub fn damage(disk: &SimDisk, uid: Uid, offset: u64) -> (PathBuf, u64) {
    for path in segments(disk) {
        if let Some((_, at)) = batches(disk, &path, uid).into_iter().find(|(base, _)| *base == offset) {
            disk.flip_bit(&path, (at + 100) * 8).unwrap();
            return (path, at);
        }
    }
    panic!("no batch with offset {offset}");
}

/// The log is not opened, and left as it is; says which file and position are named.
pub fn refused_at(disk: &SimDisk) -> (PathBuf, u64) {
    let before = disk.files();
    match open(disk) {
        Err(Error::CorruptFile { path, position, .. }) => {
            assert_eq!(disk.files(), before, "a refused log is left as it is");
            (path, position.value())
        }
        other => panic!("{other:?}"),
    }
}

/// The uid of a log, from a copy that is opened.
pub fn uid(disk: &SimDisk) -> Uid {
    open(&disk.after_kill()).unwrap().uid()
}

/// A bad batch that a later one says was synced is refused and named.
pub fn a_bad_batch_that_was_synced_is_refused() {
    for bad in 4..8 {
        let disk = killed(8, 13);
        let place = damage(&disk, uid(&disk), bad);
        assert_eq!(refused_at(&disk), place);
    }
}

/// Flips a bit of a log that was closed or killed, `rounds` times. Answers how often that was refused, and how often
/// readers were told.
pub fn flip_bits(rounds: u64) -> (u64, u64) {
    let (mut refused, mut told) = (0, 0);
    for round in 0..rounds {
        let mut rng = Rng::new(round);
        let disk = killed(30, 30);
        // Opening makes all of it synced. A close leaves a footer to open by, a kill does not.
        let log = open(&disk).unwrap();
        let left = disk.after_kill();
        log.close().unwrap();
        drop(log);
        let disk = if round % 2 == 0 { disk } else { left };
        let files = segments(&disk);
        let path = &files[rng.below(files.len() as u64) as usize];
        let bytes = disk.files()[path];
        disk.flip_bit(path, rng.below(bytes * 8)).unwrap();
        match open(&disk) {
            Err(Error::CorruptFile { .. } | Error::NewerFormat { .. } | Error::NotAStore { .. }) => {
                refused += 1;
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
    (refused, told)
}
