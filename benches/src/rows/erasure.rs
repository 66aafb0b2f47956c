//! Erasure: what sealing payloads costs an append, and what it takes to destroy a key.

use std::time::Instant;

use anyhow::{Result, ensure};
use quipu_storage::{Record, Redaction, Start, Store, Topic};

use super::append::{Batches, ROUND_BYTES};
use super::store::{Records, open, open_with_master_key};
use crate::latency::Latency;
use crate::row::{Bar, Contender, PAYLOADS, Pair, Row, Sample, Unit};

/// Erasure keys that appends go round: fewer than are kept in memory.
const KEYS: u64 = 1000;
/// Records of one append.
const BATCH: u64 = 100;
/// Keys that are destroyed already.
const DESTROYED: u64 = 1000;
/// Keys that a round destroys, one after the other.
const ROUND_KEYS: u64 = 20;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (record_bytes, variant) in PAYLOADS {
        rows.push(Row {
            name: format!("sealed-append/{variant}"),
            what: "Store, one topic, one thread, batches of 100 sealed with 1000 erasure keys, WRITTEN, bursts of 256 MiB",
            against: "the same, not sealed",
            unit: Unit::RecordsPerSecond,
            bar: Bar::FigureOnly,
            prepare: Box::new(move |scene| {
                let count = scene.scaled(ROUND_BYTES) / record_bytes as u64 / BATCH * BATCH;
                let [sealed, plain] = ["sealed", "plain"].map(|name| scene.dir.join(name));
                std::fs::create_dir_all(&sealed)?;
                let records = Records::sealed(record_bytes, KEYS);
                let sealed = Batches::new(open_with_master_key(&sealed)?, records, count, BATCH)?;
                let plain = Batches::new(open(&plain)?, Records::new(record_bytes), count, BATCH)?;
                Ok(Pair::new(sealed, plain))
            }),
        });
    }
    rows.push(Row {
        name: "erase-key/1k-destroyed".into(),
        what: "Store, one key destroyed where 1000 are already, p50",
        against: "",
        unit: Unit::Micros,
        bar: Bar::FigureOnly,
        prepare: Box::new(|scene| Ok(Pair::alone(Destructions::new(open_with_master_key(&scene.dir)?)?))),
    });
    rows
}

/// Destroys a key again and again.
struct Destructions {
    store: Store,
    topic: Topic,
    next: u64,
}

impl Destructions {
    fn new(store: Store) -> Result<Self> {
        let before: Vec<_> = (0..DESTROYED).map(|number| format!("before-{number}")).collect();
        store.erase(&before.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(Self { topic: store.topic_or_create("erased")?, store, next: 0 })
    }
}

impl Contender for Destructions {
    fn round(&mut self) -> Result<Sample> {
        let names: Vec<_> =
            (self.next..self.next + ROUND_KEYS).map(|number| format!("subject-{number}")).collect();
        let record = |name: &String| Record::new(name.as_bytes()).with_erasure_key(name);
        let first = self.topic.append(&names.iter().map(record).collect::<Vec<_>>())?.first_offset;
        let mut latency = Latency::default();
        for name in &names {
            let before = Instant::now();
            let report = self.store.erase(&[name])?;
            latency.record(before.elapsed());
            ensure!(report.destroyed == 1 && report.is_old_file_overwritten, "{name}: {report:?}");
        }
        self.next += ROUND_KEYS;
        let mut erased = 0;
        for record in self.topic.read(Start::Offset(first))? {
            ensure!(record?.redacted() == Some(Redaction::Erased), "a destroyed key still opens a payload");
            erased += 1;
        }
        ensure!(erased == ROUND_KEYS, "{erased} records are erased");
        Ok(Sample::median(latency))
    }
}
