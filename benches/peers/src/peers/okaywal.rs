//! okaywal: many writers, group commit. It recycles its files once their entries are checkpointed elsewhere; here
//! they never are, so that what was written can be read back. It reads only while it recovers, so the workloads
//! that read leave it out.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use anyhow::{Result, anyhow};
use okaywal::{Configuration, Entry, EntryId, LogManager, SegmentReader, WriteAheadLog};

use crate::peer::{Log, Mode, Peer, SharedLog};
use crate::workload::Workload;

/// Filled with zeros when the log is created: enough for a round of most workloads.
const PREALLOCATE_BYTES: u32 = 256 << 20;

pub struct OkayWal;

impl Peer for OkayWal {
    fn name(&self) -> &'static str {
        "okaywal"
    }

    fn can(&self, workload: Workload) -> bool {
        matches!(workload, Workload::E1 | Workload::E2 | Workload::E3)
    }

    fn open(&self, dir: &Path, _mode: Mode) -> Result<Box<dyn Log>> {
        Ok(Box::new(open(dir)?))
    }

    fn share(&self, dir: &Path) -> Result<Box<dyn SharedLog>> {
        Ok(Box::new(open(dir)?))
    }
}

fn open(dir: &Path) -> Result<Open> {
    let recovered = Recovered::default();
    let log = Configuration::default_for(dir)
        .preallocate_bytes(PREALLOCATE_BYTES)
        .checkpoint_after_bytes(u64::MAX)
        .open(recovered.clone())?;
    Ok(Open { log, recovered })
}

struct Open {
    log: WriteAheadLog,
    recovered: Recovered,
}

impl Open {
    fn append_entry(&self, records: &[&[u8]]) -> Result<()> {
        let mut entry = self.log.begin_entry()?;
        for record in records {
            entry.write_chunk(record)?;
        }
        entry.commit()?;
        Ok(())
    }
}

impl Log for Open {
    fn append(&mut self, records: &[&[u8]]) -> Result<()> {
        self.append_entry(records)
    }

    fn replay(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let records = self.recovered.records.lock().map_err(|_| anyhow!("recovery panicked"))?;
        records.iter().try_for_each(|record| visit(record))
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.log.shutdown()?)
    }
}

impl SharedLog for Open {
    fn append(&self, _writer: usize, record: &[u8]) -> Result<()> {
        self.append_entry(&[record])
    }
}

/// Keeps what recovery shows.
#[derive(Clone, Debug, Default)]
struct Recovered {
    records: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl LogManager for Recovered {
    fn recover(&mut self, entry: &mut Entry<'_>) -> io::Result<()> {
        if let (Some(chunks), Ok(mut records)) = (entry.read_all_chunks()?, self.records.lock()) {
            records.extend(chunks);
        }
        Ok(())
    }

    fn checkpoint_to(
        &mut self,
        _last_checkpointed_id: EntryId,
        _checkpointed_entries: &mut SegmentReader,
        _wal: &WriteAheadLog,
    ) -> io::Result<()> {
        Err(io::Error::other("nothing is checkpointed here"))
    }
}
