//! What the rows about the store have in common.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use quipu_storage::{Append, Durability, Record, Start, Store, StoreSettings, Topic, Visibility};

use crate::payload::Payloads;

/// Records of the payloads that all rows use, made once.
pub(super) struct Records {
    pub(super) payloads: Payloads,
    records: Vec<Record>,
}

impl Records {
    pub(super) fn new(record_bytes: usize) -> Self {
        let payloads = Payloads::new(record_bytes);
        let records = (0..1024).map(|number| Record::new(payloads.of(number))).collect();
        Self { payloads, records }
    }

    /// The same with payloads that are sealed, with so many erasure keys in turn.
    pub(super) fn sealed(record_bytes: usize, erasure_keys: u64) -> Self {
        let mut records = Self::new(record_bytes);
        for (number, record) in (0..).zip(&mut records.records) {
            record.erasure_key = Some(format!("subject-{}", number % erasure_keys));
        }
        records
    }

    /// Record `number`.
    pub(super) fn of(&self, number: u64) -> &Record {
        &self.records[usize::try_from(number % 1024).expect("below 1024")]
    }

    /// Appends records `from..to` as one batch.
    pub(super) fn append(&self, topic: &Topic, from: u64, to: u64, durability: Durability) -> Result<()> {
        let batch = (from..to).map(|number| self.of(number));
        topic.store().append(Append::new().durability(durability).records(topic, batch)?)?;
        Ok(())
    }

    /// Fills a topic with records `0..count` in batches.
    pub(super) fn fill(&self, topic: &Topic, count: u64, batch: u64) -> Result<()> {
        let mut from = 0;
        while from < count {
            let to = (from + batch).min(count);
            self.append(topic, from, to, Durability::Written)?;
            from = to;
        }
        Ok(topic.store().sync()?)
    }

    /// Reads offsets `from..to` of a topic and compares every byte; record `n` is at offset `n`.
    pub(super) fn check(&self, topic: &Topic, from: u64, to: u64) -> Result<()> {
        let mut cursor = topic.cursor(Start::Offset(from.into()), Visibility::Written)?;
        let mut next = from;
        while next < to {
            let batch = cursor.next_batch()?.context("the topic ends early")?;
            for record in batch.records() {
                let (offset, view) = record?;
                ensure!(offset.value() == next, "offset {offset} where {next} was expected");
                self.payloads.check(next, view.payload.context("a record has no payload")?)?;
                next += 1;
            }
        }
        Ok(())
    }
}

/// A store in `dir` with the default settings but for a journal that a round does not fill: what is measured is the
/// engine, not the moment when the disk has to catch up.
pub(super) fn open(dir: &Path) -> Result<Store> {
    Ok(Store::builder().settings(settings()).open(dir)?)
}

/// The same with a master key, both in `dir`.
pub(super) fn open_with_master_key(dir: &Path) -> Result<Store> {
    let master_key = dir.join("master.key");
    let builder = Store::builder().settings(settings()).master_key(master_key).create_master_key(true);
    Ok(builder.open(dir.join("store"))?)
}

fn settings() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 << 20,
        journal_bytes_max: 2 << 30,
        tail_bytes_max: 256 << 20,
        ..StoreSettings::default()
    }
}

/// All files below a directory whose names end so.
pub(super) fn files(dir: &Path, suffix: &str) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path(), suffix)?);
        } else if entry.file_name().to_string_lossy().ends_with(suffix) {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
