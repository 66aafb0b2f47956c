//! LMDB through heed: a B+tree with the record's number as key. No checksums; one write transaction at a time, each
//! with its own sync.
#![allow(unsafe_code, reason = "opening a memory map that others could change is unsafe by heed's rules")]

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use heed::byteorder::BigEndian;
use heed::types::{Bytes, U64};
use heed::{Database, Env, EnvFlags, EnvOpenOptions, PutFlags, RoTxn, WithTls};

use crate::peer::{Log, Mode, Peer, SharedLog};
use crate::workload::Workload;

/// Address space, not memory: more than any workload writes.
const MAP_BYTES: usize = 64 << 30;

type Records = Database<U64<BigEndian>, Bytes>;

pub struct Lmdb;

impl Peer for Lmdb {
    fn name(&self) -> &'static str {
        "lmdb"
    }

    fn can(&self, _workload: Workload) -> bool {
        true
    }

    fn open(&self, dir: &Path, mode: Mode) -> Result<Box<dyn Log>> {
        Ok(Box::new(open(dir, mode)?))
    }

    fn share(&self, dir: &Path) -> Result<Box<dyn SharedLog>> {
        let Open { env, records, next, .. } = open(dir, Mode::Durable)?;
        Ok(Box::new(Shared { env, records, next }))
    }
}

fn open(dir: &Path, mode: Mode) -> Result<Open> {
    let mut options = EnvOpenOptions::new();
    options.map_size(MAP_BYTES);
    if mode == Mode::Buffered {
        // SAFETY: without syncs a power cut may corrupt the file. It is a benchmark's, thrown away afterwards.
        unsafe { options.flags(EnvFlags::NO_SYNC) };
    }
    // SAFETY: the directory is the benchmark's own; nobody else opens or changes the files while they are mapped.
    let env = unsafe { options.open(dir)? };
    let reading = env.read_txn()?;
    let existing: Option<Records> = env.open_database(&reading, None)?;
    let last = existing.map(|records| records.last(&reading)).transpose()?.flatten();
    let next = AtomicU64::new(last.map_or(0, |(number, _)| number + 1));
    drop(reading);
    let records = match existing {
        Some(records) => records,
        None => {
            let mut writing = env.write_txn()?;
            let records = env.create_database(&mut writing, None)?;
            writing.commit()?;
            records
        }
    };
    Ok(Open { env, records, next, reads: None })
}

struct Open {
    env: Env,
    records: Records,
    /// The next record's number.
    next: AtomicU64,
    /// The snapshot that single reads look at: opening one for each read would cost more than the read.
    reads: Option<RoTxn<'static, WithTls>>,
}

/// One transaction; `next` is changed only within it.
fn put(env: &Env, records: Records, next: &AtomicU64, payloads: &[&[u8]]) -> Result<()> {
    let mut writing = env.write_txn()?;
    let first = next.fetch_add(payloads.len() as u64, Ordering::Relaxed);
    for (number, payload) in (first..).zip(payloads) {
        records.put_with_flags(&mut writing, PutFlags::APPEND, &number, payload)?;
    }
    Ok(writing.commit()?)
}

impl Log for Open {
    fn append(&mut self, records: &[&[u8]]) -> Result<()> {
        put(&self.env, self.records, &self.next, records)
    }

    fn replay(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let reading = self.env.read_txn()?;
        for record in self.records.iter(&reading)? {
            visit(record?.1)?;
        }
        Ok(())
    }

    fn prepare_reads(&mut self) -> Result<()> {
        self.reads = Some(self.env.clone().static_read_txn()?);
        Ok(())
    }

    fn read(&mut self, number: u64, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let reading = self.reads.as_ref().context("no snapshot")?;
        visit(self.records.get(reading, &number)?.context("no such record")?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        let Self { env, reads, .. } = *self;
        drop(reads);
        env.force_sync()?;
        env.prepare_for_closing().wait();
        Ok(())
    }
}

struct Shared {
    env: Env,
    records: Records,
    next: AtomicU64,
}

impl SharedLog for Shared {
    fn append(&self, _writer: usize, record: &[u8]) -> Result<()> {
        put(&self.env, self.records, &self.next, &[record])
    }
}
