//! commitlog: segments with a mapped index of every record. Its flush does not reach the disk, so it has no durable
//! mode.

use std::path::Path;

use anyhow::{Context, Result, anyhow};
use commitlog::message::{MessageBuf, MessageSet};
use commitlog::{LogOptions, ReadLimit};

use crate::peer::{Log, Mode, Peer};
use crate::workload::Workload;

/// How much is read at once in a replay: as much as the allocator hands out without a map of its own.
const REPLAY_BYTES: usize = 96 << 10;

/// Larger than any call here.
const CALL_BYTES_MAX: usize = 16 << 20;

/// Enough to read the largest record alone; a smaller limit saves reading its neighbours.
const HEADER_BYTES: usize = 20;

pub struct CommitLog;

impl Peer for CommitLog {
    fn name(&self) -> &'static str {
        "commitlog"
    }

    fn can(&self, workload: Workload) -> bool {
        !matches!(workload, Workload::E1 | Workload::E2 | Workload::E3)
    }

    fn open(&self, dir: &Path, _mode: Mode) -> Result<Box<dyn Log>> {
        let mut options = LogOptions::new(dir);
        options.message_max_bytes(CALL_BYTES_MAX);
        let log = commitlog::CommitLog::new(options)?;
        Ok(Box::new(Open { log, batch: MessageBuf::default(), record_bytes: 0 }))
    }
}

struct Open {
    log: commitlog::CommitLog,
    batch: MessageBuf,
    record_bytes: usize,
}

impl Log for Open {
    fn append(&mut self, records: &[&[u8]]) -> Result<()> {
        self.batch.clear();
        for record in records {
            self.batch.push(record).map_err(|error| anyhow!("{error:?}"))?;
        }
        self.log.append(&mut self.batch)?;
        Ok(())
    }

    fn replay(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut next = 0;
        while next < self.log.next_offset() {
            // Reading verifies the checksum of each message.
            let batch = self.log.read(next, ReadLimit::max_bytes(REPLAY_BYTES))?;
            for message in batch.iter() {
                visit(message.payload())?;
                next += 1;
            }
        }
        Ok(())
    }

    fn prepare_reads(&mut self) -> Result<()> {
        // All records here have one size.
        let batch = self.log.read(0, ReadLimit::max_bytes(REPLAY_BYTES))?;
        self.record_bytes = batch.iter().next().context("the log is empty")?.payload().len();
        Ok(())
    }

    fn read(&mut self, number: u64, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        // One byte more than a record: the limit of exactly the last record makes the crate panic.
        let limit = ReadLimit::max_bytes(HEADER_BYTES + self.record_bytes + 1);
        let batch = self.log.read(number, limit)?;
        visit(batch.iter().next().context("no such record")?.payload())
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        Ok(self.log.flush()?)
    }
}
