//! The references: what memory, checksum and disk allow at best.
//!
//! | contender | does | stands for |
//! |---|---|---|
//! | [`Memory`] | frame, CRC, copy each record into faulted memory | the least an append can cost |
//! | [`MemoryTwice`] | the same, and one more copy of each batch | a journal and a segment |
//! | [`SyncLoop`] | write, fdatasync, again | what the disk gives one careful writer |
//! | [`SyncGroup`](group::SyncGroup) | many threads, one write and fdatasync for all who wait | what it gives many |
//! | [`CrcPass`] | CRC over files in a map, in large blocks | the least a checked replay can cost |
//! | [`ReadOnce`] | pread every byte of files once | the least a recovery can cost |
//!
//! Each checks what it wrote or read, outside the time it measures.

pub mod group;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::latency::Latency;
use crate::map::Mapped;
use crate::payload::{FRAME_HEADER_BYTES, Payloads};
use crate::row::{Contender, Sample};

/// Memory that the in-memory references write to: larger than any cache.
pub const MEMORY_BYTES: u64 = 256 << 20;

/// The file that [`SyncLoop`] writes to, and goes round in.
pub const SYNC_FILE_BYTES: u64 = 32 << 20;

/// Records between two looks at the clock, where a record takes less time than the look.
const RECORDS_PER_LOOK: usize = 512;

/// Bytes of a block that is checksummed or read in one call.
const BLOCK_BYTES: usize = 1 << 20;

/// Bytes before each record within a batch: its length.
const RECORD_HEADER_BYTES: usize = 4;

/// Memory whose every page is present.
fn faulted(bytes: u64) -> Vec<u8> {
    // Not zero: zeroed memory comes from the kernel untouched.
    vec![1; usize::try_from(bytes).expect("memory has as many bytes as usize can count")]
}

/// Lets the operating system have `bytes` of memory at hand, for files that are about to be written. A virtual machine
/// may have given back what was free; to get it from the host again takes 10 µs a page, 25 times what a page costs
/// otherwise, and the references, whose memory is theirs, would not pay for it.
pub fn have_memory_at_hand(bytes: u64) {
    drop(std::hint::black_box(faulted(bytes)));
}

/// Frames, checksums and copies one record at a time into faulted anonymous memory, round and round.
pub struct Memory {
    memory: Vec<u8>,
    payloads: Payloads,
    time: Duration,
}

impl Memory {
    /// Records of `record_bytes` into `memory_bytes`, for `time` a round.
    pub fn new(record_bytes: usize, memory_bytes: u64, time: Duration) -> Self {
        Self { memory: faulted(memory_bytes), payloads: Payloads::new(record_bytes), time }
    }
}

impl Contender for Memory {
    fn round(&mut self) -> Result<Sample> {
        let frame_bytes = self.payloads.frame_bytes();
        let slots = self.memory.len() / frame_bytes;
        let (mut slot, mut records) = (0, 0_u64);
        let start = Instant::now();
        while start.elapsed() < self.time {
            for _ in 0..RECORDS_PER_LOOK {
                let at = slot * frame_bytes;
                self.payloads.frame(records, &mut self.memory[at..at + frame_bytes]);
                records += 1;
                slot = if slot + 1 == slots { 0 } else { slot + 1 };
            }
        }
        let elapsed = start.elapsed();

        for number in last_of(records, slots) {
            let at = slot_of(number, slots) * frame_bytes;
            self.payloads.check_frame(number, &self.memory[at..at + frame_bytes])?;
        }
        Ok(Sample::rate(records, elapsed))
    }
}

/// What a checksum of [`MemoryTwice`] is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SumOf {
    /// Every record has a frame and a checksum of its own, as in [`Memory`].
    Record,
    /// A batch has one frame and one checksum, and its records have a length each: stricter, for whoever is held
    /// against it; most so with small records.
    ///
    /// ```text
    /// CRC-32 of what follows (4) | bytes of the records (4) | { length (4) | payload } for each record
    /// ```
    Batch,
}

/// Frames and sums batches into faulted memory, and copies what it framed to a second place.
pub struct MemoryTwice {
    journal: Vec<u8>,
    segment: Vec<u8>,
    payloads: Payloads,
    batch_records: u64,
    sum_of: SumOf,
    time: Duration,
}

impl MemoryTwice {
    /// Batches of `batch_records` records into two memories of half of `memory_bytes` each.
    pub fn new(
        record_bytes: usize,
        batch_records: u64,
        sum_of: SumOf,
        memory_bytes: u64,
        time: Duration,
    ) -> Self {
        Self {
            journal: faulted(memory_bytes / 2),
            segment: faulted(memory_bytes / 2),
            payloads: Payloads::new(record_bytes),
            batch_records,
            sum_of,
            time,
        }
    }

    fn batch_bytes(&self) -> Result<usize> {
        let records = usize::try_from(self.batch_records)?;
        Ok(match self.sum_of {
            SumOf::Record => records * self.payloads.frame_bytes(),
            SumOf::Batch => {
                FRAME_HEADER_BYTES + records * (RECORD_HEADER_BYTES + self.payloads.record_bytes())
            }
        })
    }

    fn write_batch(&self, first: u64, out: &mut [u8]) {
        match self.sum_of {
            SumOf::Record => {
                for (number, frame) in (first..).zip(out.chunks_exact_mut(self.payloads.frame_bytes())) {
                    self.payloads.frame(number, frame);
                }
            }
            SumOf::Batch => self.write_batch_with_one_sum(first, out),
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "batches are a few hundred KiB")]
    fn write_batch_with_one_sum(&self, first: u64, out: &mut [u8]) {
        let (header, body) = out.split_at_mut(FRAME_HEADER_BYTES);
        header[4..].copy_from_slice(&(body.len() as u32).to_le_bytes());
        let mut rest = body;
        for number in first..first + self.batch_records {
            let payload = self.payloads.of(number);
            let (length, tail) = rest.split_at_mut(RECORD_HEADER_BYTES);
            let (copy, tail) = tail.split_at_mut(payload.len());
            length.copy_from_slice(&(payload.len() as u32).to_le_bytes());
            copy.copy_from_slice(payload);
            rest = tail;
        }
        let crc = crc32fast::hash(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
    }

    fn check_batch(&self, first: u64, batch: &[u8]) -> Result<()> {
        if self.sum_of == SumOf::Record {
            let mut frames = (first..).zip(batch.chunks(self.payloads.frame_bytes()));
            return frames.try_for_each(|(number, frame)| self.payloads.check_frame(number, frame));
        }
        ensure!(crc32fast::hash(&batch[4..]).to_le_bytes() == batch[..4], "batch of {first}: bad checksum");
        let record_bytes = RECORD_HEADER_BYTES + self.payloads.record_bytes();
        for (number, record) in (first..).zip(batch[FRAME_HEADER_BYTES..].chunks(record_bytes)) {
            self.payloads.check(number, &record[RECORD_HEADER_BYTES..])?;
        }
        Ok(())
    }
}

impl Contender for MemoryTwice {
    fn round(&mut self) -> Result<Sample> {
        let batch_bytes = self.batch_bytes()?;
        let slots = self.journal.len() / batch_bytes;
        let (mut slot, mut batches) = (0, 0_u64);
        // Taken out for the round: `write_batch` wants the rest of `self`.
        let mut journal = std::mem::take(&mut self.journal);
        let start = Instant::now();
        while start.elapsed() < self.time {
            let at = slot * batch_bytes;
            let frame = &mut journal[at..at + batch_bytes];
            self.write_batch(batches * self.batch_records, frame);
            self.segment[at..at + batch_bytes].copy_from_slice(frame);
            batches += 1;
            slot = if slot + 1 == slots { 0 } else { slot + 1 };
        }
        let elapsed = start.elapsed();
        self.journal = journal;

        for batch in last_of(batches, slots) {
            let at = slot_of(batch, slots) * batch_bytes;
            for copy in [&self.journal, &self.segment] {
                self.check_batch(batch * self.batch_records, &copy[at..at + batch_bytes])?;
            }
        }
        Ok(Sample::rate(batches * self.batch_records, elapsed))
    }
}

/// Where [`SyncLoop`] writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyncTo {
    /// A file whose blocks were written with zeros and synced before: fdatasync has only data to write.
    ZeroFilled,
    /// The end of a growing file: fdatasync has the file's new length to write too.
    End,
}

/// One thread: write a call's frames, fdatasync, again.
pub struct SyncLoop {
    path: PathBuf,
    file: File,
    to: SyncTo,
    payloads: Payloads,
    call_records: u64,
    time: Duration,
}

impl SyncLoop {
    /// Frames of `record_bytes`, `call_records` of them to a sync, into a new file in `dir`.
    pub fn new(
        dir: &Path,
        to: SyncTo,
        record_bytes: usize,
        call_records: u64,
        time: Duration,
    ) -> Result<Self> {
        let path = dir.join("sync-loop");
        let file = sync_file(&path, to)?;
        Ok(Self { path, file, to, payloads: Payloads::new(record_bytes), call_records, time })
    }
}

impl Contender for SyncLoop {
    fn round(&mut self) -> Result<Sample> {
        if self.to == SyncTo::End {
            self.file.set_len(0).and_then(|()| self.file.sync_all()).context("empty the file")?;
        }
        let frame_bytes = self.payloads.frame_bytes();
        let mut call = vec![0; frame_bytes * usize::try_from(self.call_records)?];
        // Only the growing file has no end, and it grows by far less in a round than a disk holds.
        let slots = if self.to == SyncTo::End { u64::MAX } else { SYNC_FILE_BYTES / call.len() as u64 };
        let mut latency = Latency::default();
        let mut calls = 0_u64;
        let start = Instant::now();
        let mut before = start;
        while before - start < self.time {
            for (number, frame) in (calls * self.call_records..).zip(call.chunks_mut(frame_bytes)) {
                self.payloads.frame(number, frame);
            }
            let at = calls % slots * call.len() as u64;
            self.file.write_all_at(&call, at).with_context(|| format!("write {}", self.path.display()))?;
            self.file.sync_data().with_context(|| format!("sync {}", self.path.display()))?;
            calls += 1;
            let after = Instant::now();
            latency.record(after - before);
            before = after;
        }
        let elapsed = before - start;

        for number in calls.saturating_sub(slots)..calls {
            let at = number % slots * call.len() as u64;
            self.file.read_exact_at(&mut call, at)?;
            for (record, frame) in (number * self.call_records..).zip(call.chunks(frame_bytes)) {
                self.payloads.check_frame(record, frame)?;
            }
        }
        Ok(Sample::rate(calls * self.call_records, elapsed).with_latency(latency))
    }
}

/// A new file that exists for good, as it is to be written to.
fn sync_file(path: &Path, to: SyncTo) -> Result<File> {
    let file = create(path)?;
    if to == SyncTo::ZeroFilled {
        let zeros = vec![0; BLOCK_BYTES];
        let mut at = 0;
        while at < SYNC_FILE_BYTES {
            file.write_all_at(&zeros, at).with_context(|| format!("fill {}", path.display()))?;
            at += zeros.len() as u64;
        }
    }
    file.sync_all().with_context(|| format!("sync {}", path.display()))?;
    let dir = path.parent().context("it is in a directory")?;
    File::open(dir).and_then(|dir| dir.sync_all()).with_context(|| format!("sync {}", dir.display()))?;
    Ok(file)
}

/// Checksums files in a map, in large blocks. What it is compared with walks the same bytes record by record.
pub struct CrcPass {
    maps: Vec<Mapped>,
    crcs: Vec<u32>,
    records: u64,
    time: Duration,
}

impl CrcPass {
    /// Over finished `files` of the row's own directory, which hold so many `records`.
    pub fn new(files: &[PathBuf], records: u64, time: Duration) -> Result<Self> {
        let maps = files
            .iter()
            .map(|path| Mapped::open(path).with_context(|| format!("map {}", path.display())))
            .collect::<Result<Vec<_>>>()?;
        // Read the other way, so that a wrong byte in the map would be noticed.
        let crcs = files.iter().map(|path| crc_of_file(path)).collect::<Result<Vec<_>>>()?;
        Ok(Self { maps, crcs, records, time })
    }
}

impl Contender for CrcPass {
    fn round(&mut self) -> Result<Sample> {
        let mut passes = 0_u64;
        let start = Instant::now();
        while start.elapsed() < self.time {
            for (map, expected) in self.maps.iter().zip(&self.crcs) {
                let mut crc = crc32fast::Hasher::new();
                map.chunks(BLOCK_BYTES).for_each(|block| crc.update(block));
                ensure!(crc.finalize() == *expected, "the map reads different from the file");
            }
            passes += 1;
        }
        Ok(Sample::rate(passes * self.records, start.elapsed()))
    }
}

/// Reads every byte of files once, in large blocks. The figure is in milliseconds.
pub struct ReadOnce {
    files: Vec<(PathBuf, u32)>,
    block: Vec<u8>,
}

impl ReadOnce {
    /// Of finished `files`.
    pub fn new(files: &[PathBuf]) -> Result<Self> {
        let files =
            files.iter().map(|path| Ok((path.clone(), crc_of_file(path)?))).collect::<Result<Vec<_>>>()?;
        Ok(Self { files, block: vec![0; BLOCK_BYTES] })
    }
}

impl Contender for ReadOnce {
    fn round(&mut self) -> Result<Sample> {
        let mut elapsed = Duration::ZERO;
        for (path, expected) in &self.files {
            let start = Instant::now();
            let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
            elapsed += start.elapsed();
            let (mut at, mut crc) = (0, crc32fast::Hasher::new());
            loop {
                // The checksum that proves the bytes were read is not part of reading them.
                let start = Instant::now();
                let bytes = file.read_at(&mut self.block, at)?;
                elapsed += start.elapsed();
                if bytes == 0 {
                    break;
                }
                crc.update(&self.block[..bytes]);
                at += bytes as u64;
            }
            ensure!(crc.finalize() == *expected, "{} reads different", path.display());
        }
        Ok(Sample::of(elapsed.as_secs_f64() * 1e3))
    }
}

/// Writes a file of `records` frames, for the references that only read.
pub fn write_frames(path: &Path, record_bytes: usize, records: u64) -> Result<()> {
    use io::Write;
    let payloads = Payloads::new(record_bytes);
    let mut frame = vec![0; payloads.frame_bytes()];
    let mut file = io::BufWriter::with_capacity(BLOCK_BYTES, create(path)?);
    for number in 0..records {
        payloads.frame(number, &mut frame);
        file.write_all(&frame).with_context(|| format!("write {}", path.display()))?;
    }
    file.flush().with_context(|| format!("write {}", path.display()))
}

fn create(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(path)
        .with_context(|| format!("create {}", path.display()))
}

fn crc_of_file(path: &Path) -> Result<u32> {
    let mut file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let (mut crc, mut block) = (crc32fast::Hasher::new(), vec![0; BLOCK_BYTES]);
    loop {
        match io::Read::read(&mut file, &mut block).with_context(|| format!("read {}", path.display()))? {
            0 => return Ok(crc.finalize()),
            bytes => crc.update(&block[..bytes]),
        }
    }
}

/// Of `written` things that went round in `slots` places, those still there.
fn last_of(written: u64, slots: usize) -> std::ops::Range<u64> {
    written.saturating_sub(slots as u64)..written
}

#[expect(clippy::cast_possible_truncation, reason = "the remainder is below a usize")]
fn slot_of(number: u64, slots: usize) -> usize {
    (number % slots as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_millis(5);

    #[test]
    fn memory_goes_round_and_checks() {
        let mut memory = Memory::new(100, 1000, TIME);
        assert!(memory.round().unwrap().figure > 0.0);
    }

    #[test]
    fn both_copies_of_a_batch_are_checked() {
        for sum_of in [SumOf::Record, SumOf::Batch] {
            let mut twice = MemoryTwice::new(100, 10, sum_of, 50_000, TIME);
            assert!(twice.round().unwrap().figure > 0.0);
            let mut batch = vec![0; twice.batch_bytes().unwrap()];
            twice.write_batch(20, &mut batch);
            twice.check_batch(20, &batch).unwrap();
            assert!(twice.check_batch(21, &batch).is_err());
            *batch.last_mut().unwrap() ^= 1;
            assert!(twice.check_batch(20, &batch).is_err());
        }
    }

    #[test]
    fn the_sync_loop_counts_its_records_and_their_latencies() {
        let dir = tempfile::tempdir().unwrap();
        for (to, call_records) in [(SyncTo::ZeroFilled, 1), (SyncTo::End, 1), (SyncTo::End, 100)] {
            let mut sync = SyncLoop::new(dir.path(), to, 100, call_records, TIME).unwrap();
            for _ in 0..2 {
                let sample = sync.round().unwrap();
                assert!(sample.figure > 0.0);
                assert!(sample.latency.unwrap().count() > 0);
            }
        }
    }

    #[test]
    fn a_pass_over_files_reads_what_is_in_them() {
        let dir = tempfile::tempdir().unwrap();
        let files: Vec<_> = ["a", "b"].iter().map(|name| dir.path().join(name)).collect();
        files.iter().for_each(|path| write_frames(path, 100, 30_000).unwrap());
        assert!(CrcPass::new(&files, 60_000, TIME).unwrap().round().unwrap().figure > 0.0);

        let mut read = ReadOnce::new(&files).unwrap();
        assert!(read.round().unwrap().figure > 0.0);
        std::fs::write(&files[1], b"changed").unwrap();
        assert!(read.round().is_err(), "other bytes than before");
    }

    #[test]
    fn what_went_round_is_found_where_it_lies() {
        assert_eq!(last_of(3, 10), 0..3);
        assert_eq!(last_of(25, 10), 15..25);
        assert_eq!(slot_of(25, 10), 5);
    }
}
