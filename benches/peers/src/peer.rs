//! What a system has to offer to be compared.
//!
//! An adapter is as good a user of its crate as we know how to write, and does only what the workload needs. It
//! never gives up a promise: `Durable` is durable as its crate documents it.

use std::path::Path;

use anyhow::{Result, bail};

use crate::workload::Workload;

/// When an append returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// When the records survive a power cut.
    Durable,
    /// When the records are with the operating system, or in memory where the crate has no such call.
    Buffered,
}

/// A system: how to open it.
pub trait Peer: Sync {
    /// As the report calls it.
    fn name(&self) -> &'static str;

    /// Whether the workload makes sense for it.
    fn can(&self, workload: Workload) -> bool;

    /// The mode in which a lot of records are loaded for the workloads that read.
    fn load_mode(&self) -> Mode {
        Mode::Buffered
    }

    /// Opens what lies in `dir`, which exists, or creates it.
    fn open(&self, dir: &Path, mode: Mode) -> Result<Box<dyn Log>>;

    /// Opens it, durable, for many writers.
    fn share(&self, _dir: &Path) -> Result<Box<dyn SharedLog>> {
        bail!("{} is for one writer", self.name())
    }
}

/// An open system with one writer.
pub trait Log {
    /// Appends all records in one call; they are as safe as the mode says when it returns.
    fn append(&mut self, records: &[&[u8]]) -> Result<()>;

    /// Reads every record in order, with its checksum verified where the crate has one.
    fn replay(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()>;

    /// Builds what the caller of this crate must keep to read by number: positions, where the crate has no index.
    fn prepare_reads(&mut self) -> Result<()> {
        Ok(())
    }

    /// Reads the record `number`, counted from 0.
    fn read(&mut self, number: u64, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let _ = visit;
        bail!("cannot read record {number} alone")
    }

    /// Closes cleanly: everything that was appended is there when it is opened again.
    fn close(self: Box<Self>) -> Result<()>;
}

/// An open system that many threads append to.
pub trait SharedLog: Sync {
    /// Appends one record, durable when it returns.
    fn append(&self, writer: usize, record: &[u8]) -> Result<()>;
}
