//! Appending to a store: in batches without a sync, and synced by one and by many writers.

use std::time::Instant;

use anyhow::Result;
use quipu_storage::{Durability, Store, Topic};

use super::store::{Records, open};
use crate::limits::{MEMORY_BYTES, MemoryTwice, SumOf, SyncLoop, SyncTo, have_memory_at_hand};
use crate::row::{Bar, Contender, PAYLOADS, Pair, Row, Sample, Unit};
use crate::writers;

/// Bytes that a round of unsynced batches appends.
pub(super) const ROUND_BYTES: u64 = 256 << 20;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    let batches = "Store, one topic, one thread, batches of 100, WRITTEN, bursts of 256 MiB";
    let single = "Store, one topic, one thread, one record per append, WRITTEN, bursts";
    let twice = "framing + CRC + memcpy of each record, and another memcpy";
    for (record_bytes, variant) in PAYLOADS {
        let row = |group: &str, what, against, batch, sum_of, bar| Row {
            name: format!("{group}/{variant}"),
            what,
            against,
            unit: Unit::RecordsPerSecond,
            bar,
            prepare: Box::new(move |scene| {
                let records =
                    scene.scaled(ROUND_BYTES) / record_bytes as u64 / if batch == 1 { 8 } else { 1 };
                let (memory, time) = (scene.scaled(MEMORY_BYTES), scene.round_time());
                let reference = MemoryTwice::new(record_bytes, batch, sum_of, memory, time);
                let batches = Batches::new(open(&scene.dir)?, Records::new(record_bytes), records, batch)?;
                Ok(Pair::new(batches, reference))
            }),
        };
        rows.extend([
            row("store-batch", batches, twice, 100, SumOf::Record, Bar::RatioAtLeast(0.5)),
            row(
                "store-batch-one-crc",
                batches,
                "one frame and one CRC for each batch, and two memcpy",
                100,
                SumOf::Batch,
                Bar::FigureOnly,
            ),
            row("store-single", single, twice, 1, SumOf::Record, Bar::FigureOnly),
        ]);
    }
    for (record_bytes, variant) in PAYLOADS {
        rows.push(Row {
            name: format!("sync-one/{variant}"),
            what: "Store, one writer, one record per append, SYNCED",
            against: "bare write + fdatasync of one thread",
            unit: Unit::RecordsPerSecond,
            bar: Bar::RatioAtLeast(0.9),
            prepare: Box::new(move |scene| {
                let synced = Synced::new(open(&scene.dir)?, record_bytes, 1, 1, scene.round_time())?;
                let bare =
                    SyncLoop::new(&scene.dir, SyncTo::ZeroFilled, record_bytes, 1, scene.round_time())?;
                Ok(Pair::new(synced, bare))
            }),
        });
    }
    rows.push(Row {
        name: "sync-64/1KiB".into(),
        what: "Store, 64 writers, one record per append, SYNCED",
        against: "bare write + fdatasync of one thread",
        unit: Unit::RecordsPerSecond,
        bar: Bar::RatioAtLeast(15.0),
        prepare: Box::new(move |scene| {
            let synced = Synced::new(open(&scene.dir)?, 1024, 64, 1, scene.round_time())?;
            let bare = SyncLoop::new(&scene.dir, SyncTo::ZeroFilled, 1024, 1, scene.round_time())?;
            Ok(Pair::new(synced, bare))
        }),
    });
    rows.push(Row {
        name: "sync-512-topics/1KiB".into(),
        what: "Store, 64 writers over 512 topics, SYNCED",
        against: "the same over 1 topic",
        unit: Unit::RecordsPerSecond,
        bar: Bar::RatioAtLeast(0.7),
        prepare: Box::new(move |scene| {
            let many = Synced::new(open(&scene.dir.join("many"))?, 1024, 64, 512, scene.round_time())?;
            let one = Synced::new(open(&scene.dir.join("one"))?, 1024, 64, 1, scene.round_time())?;
            Ok(Pair::new(many, one))
        }),
    });
    rows
}

/// Bursts of unsynced batches; between them the disk catches up.
pub(super) struct Batches {
    store: Store,
    topic: Topic,
    records: Records,
    round_records: u64,
    batch: u64,
    next: u64,
}

impl Batches {
    pub(super) fn new(store: Store, records: Records, round_records: u64, batch: u64) -> Result<Self> {
        let topic = store.topic_or_create("batches")?;
        let mut batches = Self { store, topic, records, round_records, batch, next: 0 };
        // Every journal file is used once before the clock starts: from then on they are used again.
        for _ in 0..2 {
            batches.round()?;
        }
        Ok(batches)
    }
}

impl Contender for Batches {
    fn round(&mut self) -> Result<Sample> {
        let first = self.next;
        // For the tail, the journal and the segments.
        have_memory_at_hand(3 * self.round_records * self.records.payloads.record_bytes() as u64);
        let begun = Instant::now();
        while self.next < first + self.round_records {
            self.records.append(&self.topic, self.next, self.next + self.batch, Durability::Written)?;
            self.next += self.batch;
        }
        let elapsed = begun.elapsed();
        self.records.check(&self.topic, first, self.next)?;
        self.store.checkpoint()?;
        self.records.check(&self.topic, first, self.next)?;
        self.topic.trim(self.next.into())?;
        Ok(Sample::rate(self.next - first, elapsed))
    }
}

/// Writers that each wait for the disk.
struct Synced {
    topics: Vec<Topic>,
    records: Records,
    writers: usize,
    time: std::time::Duration,
}

impl Synced {
    fn new(
        store: Store,
        record_bytes: usize,
        writers: usize,
        topics: usize,
        time: std::time::Duration,
    ) -> Result<Self> {
        let topics = (0..topics)
            .map(|number| Ok(store.topic_or_create(&format!("topic-{number}"))?))
            .collect::<Result<Vec<_>>>()?;
        let mut synced = Self { topics, records: Records::new(record_bytes), writers, time };
        // Not measured: the files of the journal are created, and filled with zeros.
        synced.round()?;
        Ok(synced)
    }
}

impl Contender for Synced {
    fn round(&mut self) -> Result<Sample> {
        let starts: Vec<u64> = self.topics.iter().map(|topic| topic.log_end_offset().value()).collect();
        let (topics, records) = (&self.topics, &self.records);
        let load = writers::run(self.writers, self.time, |writer| {
            let mut topic = writer * 7 % topics.len();
            Ok(move |nth: u64| {
                topic = (topic + 1) % topics.len();
                Ok(topics[topic].append(std::slice::from_ref(records.of(nth))).map(drop)?)
            })
        })?;
        let mut found = 0;
        for (topic, start) in self.topics.iter().zip(starts) {
            for record in topic.read(quipu_storage::Start::Offset(start.into()))? {
                let record = record?;
                anyhow::ensure!(
                    (0..1024).any(|n| record.payload() == Some(self.records.payloads.of(n))),
                    "an unknown record"
                );
                found += 1;
            }
        }
        anyhow::ensure!(found == load.calls.iter().sum::<u64>(), "{found} records were found");
        // Journal files are used again from now on, as in a store that has run for a while.
        self.topics[0].store().checkpoint()?;
        Ok(load.sample(1))
    }
}
