//! The limits themselves, as figures to read: what this machine gave the references today.

use crate::limits::group::SyncGroup;
use crate::limits::{
    CrcPass, MEMORY_BYTES, Memory, MemoryTwice, ReadOnce, SumOf, SyncLoop, SyncTo, write_frames,
};
use crate::row::{Bar, PAYLOADS, Pair, Prepare, Row, Unit};

/// Bytes of the file that is read or checksummed.
const FILE_BYTES: u64 = 256 << 20;

pub(super) fn rows() -> Vec<Row> {
    [memory, memory_twice, memory_twice_batch, sync, sync_64, crc, read]
        .into_iter()
        .flat_map(|rows| PAYLOADS.map(|(record_bytes, variant)| rows(record_bytes, variant)))
        .collect()
}

fn row(group: &str, variant: &str, what: &'static str, unit: Unit, prepare: Prepare) -> Row {
    Row { name: format!("{group}/{variant}"), what, against: "", unit, bar: Bar::FigureOnly, prepare }
}

fn memory(record_bytes: usize, variant: &str) -> Row {
    row(
        "limit-memory",
        variant,
        "frame, CRC and copy of each record into faulted memory",
        Unit::RecordsPerSecond,
        Box::new(move |scene| {
            Ok(Pair::alone(Memory::new(record_bytes, scene.scaled(MEMORY_BYTES), scene.round_time())))
        }),
    )
}

fn memory_twice(record_bytes: usize, variant: &str) -> Row {
    row(
        "limit-memory-twice",
        variant,
        "frame, CRC and copy of each record, and one more copy of each 100",
        Unit::RecordsPerSecond,
        Box::new(move |scene| {
            let (memory, time) = (scene.scaled(MEMORY_BYTES), scene.round_time());
            Ok(Pair::alone(MemoryTwice::new(record_bytes, 100, SumOf::Record, memory, time)))
        }),
    )
}

fn memory_twice_batch(record_bytes: usize, variant: &str) -> Row {
    row(
        "limit-memory-twice-batch",
        variant,
        "one frame and one CRC for 100 records, and two copies",
        Unit::RecordsPerSecond,
        Box::new(move |scene| {
            let (memory, time) = (scene.scaled(MEMORY_BYTES), scene.round_time());
            Ok(Pair::alone(MemoryTwice::new(record_bytes, 100, SumOf::Batch, memory, time)))
        }),
    )
}

fn sync(record_bytes: usize, variant: &str) -> Row {
    row(
        "limit-sync",
        variant,
        "write and fdatasync, one thread, into a zero-filled file",
        Unit::RecordsPerSecond,
        Box::new(move |scene| {
            let time = scene.round_time();
            Ok(Pair::alone(SyncLoop::new(&scene.dir, SyncTo::ZeroFilled, record_bytes, 1, time)?))
        }),
    )
}

fn sync_64(record_bytes: usize, variant: &str) -> Row {
    row(
        "limit-sync-64",
        variant,
        "64 threads that sleep until one of them has written and synced what all have framed",
        Unit::RecordsPerSecond,
        Box::new(move |scene| {
            Ok(Pair::alone(SyncGroup::new(&scene.dir, record_bytes, 64, scene.round_time())?))
        }),
    )
}

fn crc(record_bytes: usize, variant: &str) -> Row {
    row(
        "limit-crc",
        variant,
        "CRC over a file of 256 MiB in a map, page cache warm",
        Unit::RecordsPerSecond,
        Box::new(move |scene| {
            let records = scene.scaled(FILE_BYTES) / record_bytes as u64;
            let path = scene.dir.join("frames");
            write_frames(&path, record_bytes, records)?;
            Ok(Pair::alone(CrcPass::new(&[path], records, scene.round_time())?))
        }),
    )
}

fn read(record_bytes: usize, variant: &str) -> Row {
    row(
        "limit-read",
        variant,
        "pread of a file of 256 MiB, page cache warm",
        Unit::Millis,
        Box::new(move |scene| {
            let path = scene.dir.join("frames");
            write_frames(&path, record_bytes, scene.scaled(FILE_BYTES) / record_bytes as u64)?;
            Ok(Pair::alone(ReadOnce::new(&[path])?))
        }),
    )
}
