//! open-wal: one writer, sync on commit, segments allocated ahead. Appends stay in memory until the commit, so it
//! has no buffered mode, and it cannot read a single record.

use std::path::Path;

use anyhow::Result;
use open_wal::{Lsn, Wal, WalConfig};

use crate::peer::{Log, Mode, Peer};
use crate::workload::Workload;

pub struct OpenWal;

impl Peer for OpenWal {
    fn name(&self) -> &'static str {
        "open-wal"
    }

    fn can(&self, workload: Workload) -> bool {
        use Workload::{E1, E3, E6, E8, E8Killed, E9};
        matches!(workload, E1 | E3 | E6 | E8 | E8Killed | E9)
    }

    fn load_mode(&self) -> Mode {
        Mode::Durable
    }

    fn open(&self, dir: &Path, _mode: Mode) -> Result<Box<dyn Log>> {
        let (wal, _report) = Wal::open(dir, WalConfig::default())?;
        Ok(Box::new(Open { wal }))
    }
}

struct Open {
    wal: Wal,
}

impl Log for Open {
    fn append(&mut self, records: &[&[u8]]) -> Result<()> {
        for record in records {
            self.wal.append(record)?;
        }
        self.wal.commit()?;
        Ok(())
    }

    fn replay(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut reader = self.wal.reader_from(Lsn(0))?;
        while let Some(record) = reader.next() {
            visit(record?.1)?;
        }
        Ok(())
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(())
    }
}
