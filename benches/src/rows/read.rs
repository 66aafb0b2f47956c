//! Reading from a store: all of it, and one record here and there.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use quipu_storage::{Store, Topic};

use super::store::{Records, files, open};
use crate::latency::Latency;
use crate::limits::CrcPass;
use crate::payload::Random;
use crate::row::{Bar, Contender, PAYLOADS, Pair, Row, Sample, Unit};

/// Records that are read.
const RECORDS: u64 = 1_000_000;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (record_bytes, variant) in PAYLOADS {
        rows.push(Row {
            name: format!("read-seq/{variant}"),
            what: "Store, every batch of 1 M records in order, checksums verified, warm",
            against: "a plain CRC pass over the same files in a map",
            unit: Unit::RecordsPerSecond,
            bar: Bar::RatioAtLeast(0.7),
            prepare: Box::new(move |scene| {
                let (store, topic, records) = filled(scene, record_bytes, 100)?;
                let segments = files(&scene.dir, ".segment")?;
                let count = topic.log_end_offset().value();
                let reference = CrcPass::new(&segments, count, scene.round_time())?;
                let decode = false;
                Ok(Pair::new(
                    Sequential { _store: store, topic, records, decode, time: scene.round_time() },
                    reference,
                ))
            }),
        });
        rows.push(Row {
            name: format!("read-records/{variant}"),
            what: "the same, and every record decoded",
            against: "",
            unit: Unit::RecordsPerSecond,
            bar: Bar::FigureOnly,
            prepare: Box::new(move |scene| {
                let (store, topic, records) = filled(scene, record_bytes, 100)?;
                let decode = true;
                Ok(Pair::alone(Sequential {
                    _store: store,
                    topic,
                    records,
                    decode,
                    time: scene.round_time(),
                }))
            }),
        });
    }
    for (record_bytes, variant) in PAYLOADS {
        for (batch, kind) in [(1, "single"), (100, "batched")] {
            rows.push(Row {
                name: format!("read-random/{variant}-{kind}"),
                what: "Store, random records by offset among 1 M, checksums verified, warm, p99",
                against: "",
                unit: Unit::Micros,
                bar: Bar::FigureBelow(20.0),
                prepare: Box::new(move |scene| {
                    let (store, topic, records) = filled(scene, record_bytes, batch)?;
                    Ok(Pair::alone(RandomReads {
                        _store: store,
                        topic,
                        records,
                        random: Random::new(1),
                        time: scene.round_time(),
                    }))
                }),
            });
        }
    }
    rows
}

fn filled(scene: &crate::row::Scene, record_bytes: usize, batch: u64) -> Result<(Store, Topic, Records)> {
    let store = open(&scene.dir)?;
    let topic = store.topic_or_create("read")?;
    let records = Records::new(record_bytes);
    records.fill(&topic, scene.scaled(RECORDS), batch)?;
    store.checkpoint()?;
    Ok((store, topic, records))
}

struct Sequential {
    _store: Store,
    topic: Topic,
    records: Records,
    decode: bool,
    time: std::time::Duration,
}

impl Contender for Sequential {
    fn round(&mut self) -> Result<Sample> {
        let count = self.topic.log_end_offset().value();
        let (mut found, mut bytes) = (0, 0);
        let begun = Instant::now();
        while begun.elapsed() < self.time {
            let mut cursor = self.topic.cursor(quipu_storage::Start::Earliest, Default::default())?;
            while let Some(batch) = cursor.next_batch()? {
                found += u64::from(batch.batch().header().record_count);
                if self.decode {
                    for record in batch.records() {
                        bytes += record?.1.payload.context("a record has no payload")?.len() as u64;
                    }
                }
            }
        }
        let elapsed = begun.elapsed();
        let payload_bytes = found * self.records.payloads.record_bytes() as u64;
        ensure!(found % count == 0 && (!self.decode || bytes == payload_bytes));
        self.records.check(&self.topic, 0, count)?;
        Ok(Sample::rate(found, elapsed))
    }
}

struct RandomReads {
    _store: Store,
    topic: Topic,
    records: Records,
    random: Random,
    time: std::time::Duration,
}

impl Contender for RandomReads {
    fn round(&mut self) -> Result<Sample> {
        let count = self.topic.log_end_offset().value();
        let mut latency = Latency::default();
        let begun = Instant::now();
        while begun.elapsed() < self.time {
            let offset = self.random.next_u64() % count;
            let before = Instant::now();
            let record = self.topic.get(offset.into())?.context("the record is gone")?;
            latency.record(before.elapsed());
            self.records.payloads.check(offset, record.payload().context("a record has no payload")?)?;
        }
        Ok(Sample::of(latency.micros_at(99.0)).with_latency(latency))
    }
}
