//! wal-db: many writers, group commit, a pwrite per append. Reads by byte position, which the caller keeps.

use std::path::Path;

use anyhow::{Context, Result};
use wal_db::{Lsn, Wal};

use crate::peer::{Log, Mode, Peer, SharedLog};
use crate::workload::Workload;

pub struct WalDb;

impl Peer for WalDb {
    fn name(&self) -> &'static str {
        "wal-db"
    }

    fn can(&self, _workload: Workload) -> bool {
        true
    }

    fn open(&self, dir: &Path, mode: Mode) -> Result<Box<dyn Log>> {
        Ok(Box::new(Open { wal: Wal::open(dir.join("log"))?, mode, positions: Vec::new() }))
    }

    fn share(&self, dir: &Path) -> Result<Box<dyn SharedLog>> {
        Ok(Box::new(Shared { wal: Wal::open(dir.join("log"))? }))
    }
}

struct Open {
    wal: Wal,
    mode: Mode,
    positions: Vec<Lsn>,
}

impl Log for Open {
    fn append(&mut self, records: &[&[u8]]) -> Result<()> {
        for record in records {
            let _position = self.wal.append(record)?;
        }
        if self.mode == Mode::Durable {
            self.wal.sync()?;
        }
        Ok(())
    }

    fn replay(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        for record in self.wal.iter()? {
            visit(record?.data())?;
        }
        Ok(())
    }

    fn prepare_reads(&mut self) -> Result<()> {
        self.positions = self.wal.iter()?.map(|record| Ok(record?.lsn())).collect::<Result<_>>()?;
        Ok(())
    }

    fn read(&mut self, number: u64, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let position = *self.positions.get(usize::try_from(number)?).context("no such record")?;
        visit(self.wal.iter_from(position)?.next().context("no record there")??.data())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.wal.sync()?)
    }
}

struct Shared {
    wal: Wal,
}

impl SharedLog for Shared {
    fn append(&self, _writer: usize, record: &[u8]) -> Result<()> {
        let _position = self.wal.append_and_sync(record)?;
        Ok(())
    }
}
