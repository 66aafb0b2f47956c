//! What is measured, E1 to E9, one round of one system at a time.
//!
//! Each round of an appending workload starts in an empty directory, calls a few times unmeasured, measures for a
//! while, closes, opens again and compares every byte with what was written. The reading workloads share one loaded
//! directory for each system, whose every byte is compared once before anything is measured, which also warms the
//! page cache.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use quipu_benches::child::Child;
use quipu_benches::latency::Latency;
use quipu_benches::limits::have_memory_at_hand;
use quipu_benches::payload::{Payloads, Random};
use quipu_benches::row::{Sample, Unit};
use quipu_benches::writers;

use crate::peer::{Log, Mode, Peer};

/// The writers of E2.
pub const WRITERS: usize = 64;

/// The records of a call where a call has many.
pub const BATCH: usize = 100;

/// The records of a call while a lot are loaded by a system that must sync each call.
const LOAD_BATCH_DURABLE: usize = 1000;

/// Calls before the clock starts: the first ones create and allocate files.
const WARM_CALLS: u64 = 16;

/// The buffered workloads stop here, before the kernel starts to slow writers down.
const BUFFERED_BYTES_MAX: u64 = 512 << 20;

/// Calls between two looks at the clock, where a call takes little more time than the look.
const CALLS_PER_LOOK: u64 = 64;

/// Bytes at the start of a record of E2 that say whose it is: writer and number.
const STAMP_BYTES: usize = 16;

/// A workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Workload {
    /// One writer, durable.
    E1,
    /// 64 writers, durable.
    E2,
    /// One writer, durable, 100 records a call.
    E3,
    /// One writer, buffered.
    E4,
    /// One writer, buffered, 100 records a call.
    E5,
    /// Replay with checksums verified.
    E6,
    /// Random reads by number.
    E7,
    /// Opening after a clean close.
    E8,
    /// Opening after a kill.
    E8Killed,
    /// Bytes on disk.
    E9,
}

impl Workload {
    /// All, in the order of the report.
    pub const ALL: [Self; 10] = [
        Self::E1,
        Self::E2,
        Self::E3,
        Self::E4,
        Self::E5,
        Self::E6,
        Self::E7,
        Self::E8,
        Self::E8Killed,
        Self::E9,
    ];

    /// As the command line and the report call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::E1 => "E1",
            Self::E2 => "E2",
            Self::E3 => "E3",
            Self::E4 => "E4",
            Self::E5 => "E5",
            Self::E6 => "E6",
            Self::E7 => "E7",
            Self::E8 => "E8",
            Self::E8Killed => "E8-killed",
            Self::E9 => "E9",
        }
    }

    /// One line: what is measured.
    pub fn what(self) -> &'static str {
        match self {
            Self::E1 => "1 writer, durable",
            Self::E2 => "64 writers, durable",
            Self::E3 => "1 writer, durable, 100 a call",
            Self::E4 => "1 writer, buffered",
            Self::E5 => "1 writer, buffered, 100 a call",
            Self::E6 => "replay, checksums verified",
            Self::E7 => "random read by number, p50",
            Self::E8 => "open after a clean close",
            Self::E8Killed => "open after a kill",
            Self::E9 => "bytes on disk for a record, cleanly closed",
        }
    }

    /// What its figures count.
    pub fn unit(self) -> Unit {
        match self {
            Self::E1 | Self::E2 | Self::E3 | Self::E4 | Self::E5 | Self::E6 => Unit::RecordsPerSecond,
            Self::E7 => Unit::Micros,
            Self::E8 | Self::E8Killed => Unit::Millis,
            Self::E9 => Unit::Bytes,
        }
    }

    /// Whether it needs a loaded directory.
    pub fn reads(self) -> bool {
        matches!(self, Self::E6 | Self::E7 | Self::E8 | Self::E9)
    }

    /// The records of one call, where a bare write and sync of as many is the probe.
    pub fn probe_records(self) -> Option<u64> {
        match self {
            Self::E1 | Self::E2 => Some(1),
            Self::E3 => Some(BATCH as u64),
            _ => None,
        }
    }
}

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub struct Scale {
    /// How long an appending workload measures in a round.
    pub time: Duration,
    /// Records in a loaded directory.
    pub records: u64,
    /// Single reads in a round.
    pub reads: u64,
}

/// One round of an appending workload in `dir`, which is empty.
pub fn append_round(
    peer: &dyn Peer,
    workload: Workload,
    dir: &Path,
    payloads: &Payloads,
    scale: Scale,
) -> Result<Sample> {
    match workload {
        Workload::E1 => append_durable::<1>(peer, dir, payloads, scale),
        Workload::E3 => append_durable::<BATCH>(peer, dir, payloads, scale),
        Workload::E4 => append_buffered::<1>(peer, dir, payloads, scale),
        Workload::E5 => append_buffered::<BATCH>(peer, dir, payloads, scale),
        Workload::E2 => append_shared(peer, dir, payloads, scale),
        other => bail!("{} does not append", other.name()),
    }
}

fn append<const N: usize>(log: &mut dyn Log, first: u64, payloads: &Payloads) -> Result<()> {
    log.append(&std::array::from_fn::<_, N, _>(|index| payloads.of(first + index as u64)))
}

fn append_durable<const N: usize>(
    peer: &dyn Peer,
    dir: &Path,
    payloads: &Payloads,
    scale: Scale,
) -> Result<Sample> {
    let mut log = peer.open(dir, Mode::Durable)?;
    let mut next = 0;
    while next < WARM_CALLS * N as u64 {
        append::<N>(&mut *log, next, payloads)?;
        next += N as u64;
    }
    let mut latency = Latency::default();
    let start = Instant::now();
    let (mut before, first) = (start, next);
    while before - start < scale.time {
        append::<N>(&mut *log, next, payloads)?;
        next += N as u64;
        let after = Instant::now();
        latency.record(after - before);
        before = after;
    }
    let sample = Sample::rate(next - first, before - start).with_latency(latency);
    log.close()?;
    check(peer, dir, payloads, next)?;
    Ok(sample)
}

fn append_buffered<const N: usize>(
    peer: &dyn Peer,
    dir: &Path,
    payloads: &Payloads,
    scale: Scale,
) -> Result<Sample> {
    have_memory_at_hand(BUFFERED_BYTES_MAX * 3 / 2);
    let mut log = peer.open(dir, Mode::Buffered)?;
    let mut next = 0;
    while next < WARM_CALLS * N as u64 {
        append::<N>(&mut *log, next, payloads)?;
        next += N as u64;
    }
    let (first, end) = (next, next + BUFFERED_BYTES_MAX / payloads.record_bytes() as u64);
    let start = Instant::now();
    while next < end && start.elapsed() < scale.time {
        for _ in 0..CALLS_PER_LOOK {
            append::<N>(&mut *log, next, payloads)?;
            next += N as u64;
        }
    }
    let sample = Sample::rate(next - first, start.elapsed());
    log.close()?;
    check(peer, dir, payloads, next)?;
    Ok(sample)
}

fn append_shared(peer: &dyn Peer, dir: &Path, payloads: &Payloads, scale: Scale) -> Result<Sample> {
    let log = peer.share(dir)?;
    let run = |time, first: &[u64]| {
        writers::run(WRITERS, time, |writer| {
            let (log, mut record, first) = (&*log, Vec::new(), first[writer]);
            Ok(move |call| {
                stamp(payloads, writer as u64, first + call, &mut record);
                log.append(writer, &record)
            })
        })
    };
    let warm = run(scale.time / 10, &[0; WRITERS])?;
    let load = run(scale.time, &warm.calls)?;
    drop(log);

    // Every writer's records are there, in its order, and nobody else's.
    let expected: Vec<u64> = warm.calls.iter().zip(&load.calls).map(|(warm, calls)| warm + calls).collect();
    let mut seen = [0; WRITERS];
    let mut expected_record = Vec::new();
    let mut log = peer.open(dir, Mode::Durable)?;
    log.replay(&mut |record| {
        let writer: [u8; 8] = record[..8].try_into()?;
        let writer = usize::try_from(u64::from_le_bytes(writer))?;
        ensure!(writer < WRITERS, "a record of no writer");
        stamp(payloads, writer as u64, seen[writer], &mut expected_record);
        ensure!(record == expected_record, "writer {writer}: record {} reads back different", seen[writer]);
        seen[writer] += 1;
        Ok(())
    })?;
    ensure!(seen[..] == expected, "records are missing or too many");
    log.close()?;
    Ok(load.sample(1))
}

/// The payload of `number` with the writer and the number over its start.
fn stamp(payloads: &Payloads, writer: u64, number: u64, record: &mut Vec<u8>) {
    record.clear();
    record.extend_from_slice(&writer.to_le_bytes());
    record.extend_from_slice(&number.to_le_bytes());
    record.extend_from_slice(&payloads.of(writer + number)[STAMP_BYTES..]);
}

/// Opens and compares every byte.
fn check(peer: &dyn Peer, dir: &Path, payloads: &Payloads, records: u64) -> Result<()> {
    let mut log = peer.open(dir, Mode::Durable)?;
    check_open(&mut *log, payloads, records)?;
    log.close()
}

fn check_open(log: &mut dyn Log, payloads: &Payloads, records: u64) -> Result<()> {
    let mut number = 0;
    log.replay(&mut |record| {
        payloads.check(number, record)?;
        number += 1;
        Ok(())
    })?;
    ensure!(number == records, "{number} records read back of {records}");
    Ok(())
}

/// Loads `records` records into `dir`; what is in memory is with the operating system when the log is closed.
pub fn load(peer: &dyn Peer, dir: &Path, payloads: &Payloads, records: u64) -> Result<Box<dyn Log>> {
    let mut log = peer.open(dir, peer.load_mode())?;
    match peer.load_mode() {
        Mode::Durable => load_by::<LOAD_BATCH_DURABLE>(&mut *log, payloads, records)?,
        Mode::Buffered => load_by::<BATCH>(&mut *log, payloads, records)?,
    }
    Ok(log)
}

fn load_by<const N: usize>(log: &mut dyn Log, payloads: &Payloads, records: u64) -> Result<()> {
    let whole = records - records % N as u64;
    for first in (0..whole).step_by(N) {
        append::<N>(log, first, payloads)?;
    }
    (whole..records).try_for_each(|number| append::<1>(log, number, payloads))
}

/// A loaded, cleanly closed directory.
pub struct Loaded {
    dir: PathBuf,
    disk_bytes: u64,
}

impl Loaded {
    /// Loads, closes, opens, compares everything.
    pub fn new(peer: &dyn Peer, dir: PathBuf, payloads: &Payloads, scale: Scale) -> Result<Self> {
        load(peer, &dir, payloads, scale.records)?.close()?;
        let disk_bytes = disk_bytes(&dir)?;
        check(peer, &dir, payloads, scale.records)?;
        Ok(Self { dir, disk_bytes })
    }

    /// One round of the reading workloads.
    pub fn round(
        &self,
        peer: &dyn Peer,
        payloads: &Payloads,
        scale: Scale,
        seed: u64,
    ) -> Result<Vec<(Workload, Sample)>> {
        let mut samples = Vec::new();
        let start = Instant::now();
        let mut log = peer.open(&self.dir, Mode::Durable)?;
        let opened = start.elapsed();
        samples.push((Workload::E8, Sample::of(opened.as_secs_f64() * 1e3)));

        let (mut records, mut bytes, mut firsts) = (0_u64, 0_usize, 0_u64);
        let start = Instant::now();
        log.replay(&mut |record| {
            records += 1;
            bytes += record.len();
            firsts = firsts.wrapping_add(u64::from(record[0]));
            Ok(())
        })?;
        let replayed = start.elapsed();
        ensure!(records == scale.records, "{records} records read of {}", scale.records);
        let expected = (0..records).map(|number| u64::from(payloads.of(number)[0])).sum::<u64>();
        ensure!(firsts == expected, "other records than were loaded");
        ensure!(bytes as u64 == records * payloads.record_bytes() as u64, "records of another size");
        samples.push((Workload::E6, Sample::rate(records, replayed)));

        if peer.can(Workload::E7) {
            log.prepare_reads()?;
            let mut random = Random::new(seed);
            let numbers: Vec<u64> = (0..scale.reads).map(|_| random.below(scale.records)).collect();
            for &number in &numbers {
                log.read(number, &mut |record| payloads.check(number, record))?;
            }
            let mut latency = Latency::default();
            let mut firsts = 0_u64;
            let mut before = Instant::now();
            for &number in &numbers {
                log.read(number, &mut |record| {
                    firsts = firsts.wrapping_add(u64::from(record[0]));
                    Ok(())
                })?;
                let after = Instant::now();
                latency.record(after - before);
                before = after;
            }
            let expected = numbers.iter().map(|&number| u64::from(payloads.of(number)[0])).sum::<u64>();
            ensure!(firsts == expected, "other records than were asked for");
            samples.push((Workload::E7, Sample::of(latency.micros_at(50.0)).with_latency(latency)));
        }
        log.close()?;

        #[expect(clippy::cast_precision_loss, reason = "no directory here counts to 2^53")]
        let bytes_each = self.disk_bytes as f64 / scale.records as f64;
        samples.push((Workload::E9, Sample::of(bytes_each)));
        samples.retain(|(workload, _)| peer.can(*workload));
        Ok(samples)
    }
}

/// The first argument of a child that loads and then waits to be killed; see [`fill_for_ever`].
pub const FILL: &str = "--fill";

/// The word of such a child that everything is loaded.
const READY: &str = "ready";

/// What a child does: loads `dir`, says so, and waits.
pub fn fill_for_ever(peer: &dyn Peer, dir: &Path, payloads: &Payloads, records: u64) -> Result<()> {
    let log = load(peer, dir, payloads, records)?;
    println!("{READY}");
    loop {
        std::thread::park();
        // Never closed: the log must be open when the kill comes.
        let _ = &log;
    }
}

/// One round of opening after a kill, in `dir`, which is empty. A child loads it.
pub fn killed_round(peer: &dyn Peer, dir: &Path, payloads: &Payloads, scale: Scale) -> Result<Sample> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args([FILL, peer.name()]);
    command.args([payloads.record_bytes().to_string(), scale.records.to_string()]);
    command.arg(dir);
    let mut child = Child::spawn(command)?;
    let line = child.line()?;
    ensure!(line == READY, "the child said {line:?}");
    child.kill()?;

    let start = Instant::now();
    let mut log = peer.open(dir, Mode::Durable)?;
    let opened = start.elapsed();
    // What a killed process left to the operating system is all there; what was in its memory is not.
    if peer.can(Workload::E8Killed) {
        check_open(&mut *log, payloads, scale.records)?;
    }
    log.close()?;
    Ok(Sample::of(opened.as_secs_f64() * 1e3))
}

/// Blocks that a directory's files take.
fn disk_bytes(dir: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { disk_bytes(&entry.path())? } else { metadata.blocks() * 512 };
    }
    Ok(bytes)
}
