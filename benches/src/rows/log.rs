//! The bare log: the least that an append can cost here.

use std::fs::OpenOptions;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quipu_storage::{Durability, Log, LogSettings, Offset, Start, Visibility};

use crate::limits::{MEMORY_BYTES, Memory, have_memory_at_hand};
use crate::payload::Payloads;
use crate::row::{Bar, Contender, PAYLOADS, Pair, Row, Sample, Unit};

/// Bytes of payloads that go into one log before it is checked, removed, and another one begun.
const LOG_BYTES: u64 = 256 << 20;

/// Records between two looks at the clock, where a record takes less time than the look.
const RECORDS_PER_LOOK: u64 = 512;

pub(super) fn rows() -> Vec<Row> {
    PAYLOADS.into_iter().map(|(record_bytes, variant)| append(record_bytes, variant)).collect()
}

fn append(record_bytes: usize, variant: &str) -> Row {
    Row {
        name: format!("log-append/{variant}"),
        what: "one thread, one record an append, nothing synced",
        against: "frame, CRC and copy into faulted memory",
        unit: Unit::RecordsPerSecond,
        bar: Bar::RatioAtLeast(0.6),
        prepare: Box::new(move |scene| {
            Ok(Pair::new(
                Append::new(scene.dir.join("log"), record_bytes, scene.scaled(LOG_BYTES), scene.round_time()),
                Memory::new(record_bytes, scene.scaled(MEMORY_BYTES), scene.round_time()),
            ))
        }),
    }
}

/// Appends to a fresh log until it has so many bytes, checks and removes it, and again, for the time of a round.
struct Append {
    dir: PathBuf,
    payloads: Payloads,
    log_records: u64,
    time: Duration,
}

impl Append {
    fn new(dir: PathBuf, record_bytes: usize, log_bytes: u64, time: Duration) -> Self {
        let payloads = Payloads::new(record_bytes);
        Self { dir, payloads, log_records: log_bytes / record_bytes as u64, time }
    }

    /// Appends to a new log for the rest of the round at most; how many, and how long it took.
    fn fill(&self, left: Duration) -> Result<(u64, Duration)> {
        let settings = LogSettings { sync_interval: Duration::from_secs(3600), ..LogSettings::default() };
        // And some more for what belongs to the pages.
        have_memory_at_hand(self.log_records * self.payloads.record_bytes() as u64 * 3 / 2);
        let log = Log::builder().settings(settings).open(&self.dir).context("open the log")?;
        let mut count = 0;
        let start = Instant::now();
        while count < self.log_records && start.elapsed() < left {
            for _ in 0..RECORDS_PER_LOOK {
                log.append_payload(self.payloads.of(count), Durability::Accepted)?;
                count += 1;
            }
        }
        let elapsed = start.elapsed();
        self.check(&log, count)?;
        self.empty()?;
        Ok((count, elapsed))
    }

    fn check(&self, log: &Log, count: u64) -> Result<()> {
        let mut cursor = log.cursor(Start::Earliest, Visibility::Written)?;
        let mut next = 0;
        while let Some(batch) = cursor.next_batch()? {
            for record in batch.records() {
                let (offset, view) = record?;
                ensure!(offset == Offset(next), "record {next} has offset {offset}");
                self.payloads.check(next, view.payload.context("a record without a payload")?)?;
                next += 1;
            }
        }
        ensure!(next == count, "{count} records were appended, {next} are there");
        Ok(())
    }

    /// Cuts the checked segments, to which nothing is stored any more: closing the log would sync them, for longer
    /// than the round takes.
    fn empty(&self) -> Result<()> {
        for entry in std::fs::read_dir(&self.dir)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == "segment") {
                OpenOptions::new().write(true).open(&path)?.set_len(0)?;
            }
        }
        Ok(())
    }

    fn remove(&self) -> Result<()> {
        std::fs::remove_dir_all(&self.dir).with_context(|| format!("remove {}", self.dir.display()))
    }
}

impl Contender for Append {
    fn round(&mut self) -> Result<Sample> {
        let (mut records, mut elapsed) = (0, Duration::ZERO);
        while elapsed < self.time {
            let (count, took) = self.fill(self.time - elapsed)?;
            self.remove()?;
            records += count;
            elapsed += took;
        }
        Ok(Sample::rate(records, elapsed))
    }
}
