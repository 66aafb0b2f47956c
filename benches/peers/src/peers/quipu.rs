//! quipu, twice: the bare log, which is what its peers are, and a topic of a store, which has the journal that topics
//! share.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use quipu_storage::{
    Durability, LogSettings, Offset, Record, Start, Store, StoreSettings, Topic, Visibility,
};

use crate::peer::{Log, Mode, Peer, SharedLog};
use crate::workload::Workload;

fn durability(mode: Mode) -> Durability {
    match mode {
        Mode::Durable => Durability::Synced,
        Mode::Buffered => Durability::Written,
    }
}

/// Records that are filled again for each call, as a caller would who has no records yet.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
}

impl Batch {
    fn of(&mut self, payloads: &[&[u8]]) -> &[Record] {
        self.records.resize_with(payloads.len().max(self.records.len()), Record::default);
        for (record, payload) in self.records.iter_mut().zip(payloads) {
            let content = record.payload.get_or_insert_default();
            content.clear();
            content.extend_from_slice(payload);
        }
        &self.records[..payloads.len()]
    }
}

/// The bare log.
pub struct QuipuLog;

fn open_log(dir: &Path) -> Result<quipu_storage::Log> {
    // The other systems leave it to the operating system when to write what nobody waits for.
    let settings = LogSettings { sync_interval: Duration::from_secs(3600), ..LogSettings::default() };
    Ok(quipu_storage::Log::builder().settings(settings).open(dir)?)
}

impl Peer for QuipuLog {
    fn name(&self) -> &'static str {
        crate::report::OURS
    }

    fn can(&self, _workload: Workload) -> bool {
        true
    }

    fn open(&self, dir: &Path, mode: Mode) -> Result<Box<dyn Log>> {
        Ok(Box::new(OpenLog { log: open_log(dir)?, durability: durability(mode), batch: Batch::default() }))
    }

    fn share(&self, dir: &Path) -> Result<Box<dyn SharedLog>> {
        Ok(Box::new(SharedQuipuLog { log: open_log(dir)? }))
    }
}

struct OpenLog {
    log: quipu_storage::Log,
    durability: Durability,
    batch: Batch,
}

impl Log for OpenLog {
    fn append(&mut self, records: &[&[u8]]) -> Result<()> {
        match records {
            [payload] => self.log.append_payload(payload, self.durability)?,
            payloads => self.log.append_with(self.batch.of(payloads), self.durability)?,
        };
        Ok(())
    }

    fn replay(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut cursor = self.log.cursor(Start::Earliest, Visibility::Written)?;
        while let Some(batch) = cursor.next_batch()? {
            for record in batch.records() {
                visit(record?.1.payload.context("a record without a payload")?)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, number: u64, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        visit(self.log.get(Offset(number))?.payload().context("a record without a payload")?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.log.close()?)
    }
}

struct SharedQuipuLog {
    log: quipu_storage::Log,
}

impl SharedLog for SharedQuipuLog {
    fn append(&self, _writer: usize, record: &[u8]) -> Result<()> {
        self.log.append_payload(record, Durability::Synced)?;
        Ok(())
    }
}

/// A topic of a store.
pub struct QuipuStore;

fn open_topic(dir: &Path) -> Result<(Store, Topic)> {
    // As above; and with a journal that a round does not fill, because the others have none beside their log.
    let settings = StoreSettings {
        sync_interval: Duration::from_secs(3600),
        journal_file_bytes: 64 << 20,
        journal_bytes_max: 2 << 30,
        tail_bytes_max: 256 << 20,
        ..StoreSettings::default()
    };
    let store = Store::builder().settings(settings).open(dir)?;
    let topic = store.topic_or_create("peers")?;
    Ok((store, topic))
}

impl Peer for QuipuStore {
    fn name(&self) -> &'static str {
        "quipu-store"
    }

    fn can(&self, _workload: Workload) -> bool {
        true
    }

    fn open(&self, dir: &Path, mode: Mode) -> Result<Box<dyn Log>> {
        let (store, topic) = open_topic(dir)?;
        Ok(Box::new(OpenTopic { store, topic, durability: durability(mode), batch: Batch::default() }))
    }

    fn share(&self, dir: &Path) -> Result<Box<dyn SharedLog>> {
        let (_, topic) = open_topic(dir)?;
        Ok(Box::new(SharedTopic { topic }))
    }
}

struct OpenTopic {
    store: Store,
    topic: Topic,
    durability: Durability,
    batch: Batch,
}

impl Log for OpenTopic {
    fn append(&mut self, records: &[&[u8]]) -> Result<()> {
        self.topic.append_with(self.batch.of(records), self.durability)?;
        Ok(())
    }

    fn replay(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut cursor = self.topic.cursor(Start::Earliest, Visibility::Written)?;
        while let Some(batch) = cursor.next_batch()? {
            for record in batch.records() {
                visit(record?.1.payload.context("a record without a payload")?)?;
            }
        }
        Ok(())
    }

    fn read(&mut self, number: u64, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let record = self.topic.get(Offset(number))?.context("no such record")?;
        visit(record.payload().context("a record without a payload")?)
    }

    fn close(self: Box<Self>) -> Result<()> {
        Ok(self.store.close()?)
    }
}

struct SharedTopic {
    topic: Topic,
}

impl SharedLog for SharedTopic {
    fn append(&self, _writer: usize, record: &[u8]) -> Result<()> {
        self.topic.append(&[Record::new(record)])?;
        Ok(())
    }
}
