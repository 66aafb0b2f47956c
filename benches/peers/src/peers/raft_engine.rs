//! raft-engine: one log of many Raft groups, with group commit. A group takes its entries in order, so each writer
//! has a group of its own, as TiKV's regions do.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use protobuf::descriptor::UninterpretedOption;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

use crate::peer::{Log, Mode, Peer, SharedLog};
use crate::workload::{WRITERS, Workload};

/// The group of the one writer.
const GROUP: u64 = 1;

/// How many entries are fetched at once in a replay.
const REPLAY_ENTRIES: u64 = 1024;

pub struct RaftEngine;

impl Peer for RaftEngine {
    fn name(&self) -> &'static str {
        "raft-engine"
    }

    fn can(&self, _workload: Workload) -> bool {
        true
    }

    fn open(&self, dir: &Path, mode: Mode) -> Result<Box<dyn Log>> {
        let engine = open(dir)?;
        let next = engine.last_index(GROUP).map_or(0, |last| last + 1);
        Ok(Box::new(Open { engine, mode, batch: LogBatch::default(), next }))
    }

    fn share(&self, dir: &Path) -> Result<Box<dyn SharedLog>> {
        Ok(Box::new(Shared { engine: open(dir)?, next: std::array::from_fn(|_| AtomicU64::new(0)) }))
    }
}

fn open(dir: &Path) -> Result<Engine> {
    Ok(Engine::open(Config {
        dir: dir.to_str().context("the directory is not UTF-8")?.to_owned(),
        // The payloads do not compress: trying would only cost.
        batch_compression_threshold: ReadableSize(0),
        ..Config::default()
    })?)
}

/// An entry is any protobuf message. This one of the protobuf crate's own has an integer and bytes, like Raft's.
struct Index;

impl MessageExt for Index {
    type Entry = UninterpretedOption;

    fn index(entry: &Self::Entry) -> u64 {
        entry.get_positive_int_value()
    }
}

fn entry(index: u64, record: &[u8]) -> UninterpretedOption {
    let mut entry = UninterpretedOption::new();
    entry.set_positive_int_value(index);
    entry.set_string_value(record.to_vec());
    entry
}

struct Open {
    engine: Engine,
    mode: Mode,
    batch: LogBatch,
    next: u64,
}

impl Log for Open {
    fn append(&mut self, records: &[&[u8]]) -> Result<()> {
        let entries: Vec<_> =
            (self.next..).zip(records).map(|(index, record)| entry(index, record)).collect();
        self.next += records.len() as u64;
        self.batch.add_entries::<Index>(GROUP, &entries)?;
        self.engine.write(&mut self.batch, self.mode == Mode::Durable)?;
        Ok(())
    }

    fn replay(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut groups = self.engine.raft_groups();
        groups.sort_unstable();
        let mut entries = Vec::new();
        for group in groups {
            let first = self.engine.first_index(group).context("an empty group")?;
            let end = self.engine.last_index(group).context("an empty group")? + 1;
            let mut next = first;
            while next < end {
                let to = end.min(next + REPLAY_ENTRIES);
                entries.clear();
                self.engine.fetch_entries_to::<Index>(group, next, to, None, &mut entries)?;
                entries.iter().try_for_each(|entry| visit(entry.get_string_value()))?;
                next = to;
            }
        }
        Ok(())
    }

    fn read(&mut self, number: u64, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let entry = self.engine.get_entry::<Index>(GROUP, number)?.context("no such record")?;
        visit(entry.get_string_value())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.engine.sync()?)
    }
}

struct Shared {
    engine: Engine,
    /// The next index of each writer's group.
    next: [AtomicU64; WRITERS],
}

impl SharedLog for Shared {
    fn append(&self, writer: usize, record: &[u8]) -> Result<()> {
        let group = GROUP + writer as u64;
        let index = self.next[writer].fetch_add(1, Ordering::Relaxed);
        let mut batch = LogBatch::default();
        batch.add_entries::<Index>(group, &[entry(index, record)])?;
        self.engine.write(&mut batch, true)?;
        Ok(())
    }
}
