//! Streams: what their indexes cost an append, what they save a reader, and what it takes to make them again.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quipu_storage::{
    Append, Condition, Durability, ExpectedRevision, Filter, Offset, Record, Revision, Start, Store,
    StreamStart, Topic, TopicSettings,
};

use super::store::{files, open};
use crate::child::Child;
use crate::latency::Latency;
use crate::limits::CrcPass;
use crate::payload::{Payloads, Random};
use crate::row::{Bar, Contender, PAYLOADS, Pair, Row, Sample, Scene, Unit};

/// Keys that appends go round.
const KEYS: u64 = 1 << 16;
/// Records of one append.
const BATCH: u64 = 100;
/// Bytes of payload that a round appends.
const ROUND_BYTES: u64 = 64 << 20;
/// Keys of one record in the store that is read from.
const MANY_KEYS: u64 = 10_000_000;
/// The same in the store that it is compared with.
const FEW_KEYS: u64 = 10_000;
/// Streams of ten records among them.
const STREAMS: u64 = 1000;
/// Records of each.
const STREAM_RECORDS: u64 = 10;
/// Segments that each of these stores has, about.
const SEGMENTS: u64 = 20;
/// Records with a tag that a condition asks for.
const MATCHES: u64 = 1_000_000;
/// Bytes of payload whose indexes are made again.
const REBUILT_BYTES: u64 = 1 << 30;

pub(super) fn rows() -> Vec<Row> {
    let mut rows = Vec::new();
    for (record_bytes, variant) in PAYLOADS {
        let row = |group: &str, what, condition, bar| Row {
            name: format!("{group}/{variant}"),
            what,
            against: "the same without key, type and tags",
            unit: Unit::RecordsPerSecond,
            bar,
            prepare: Box::new(move |scene| {
                let side = |name: &str, is_indexed| {
                    Appends::new(
                        &scene.dir.join(name),
                        record_bytes,
                        scene,
                        is_indexed,
                        is_indexed && condition,
                    )
                };
                Ok(Pair::new(side("indexed", true)?, side("plain", false)?))
            }),
        };
        rows.push(row(
            "stream-append",
            "Store, one thread, batches of 100 with a key, a type and two tags each, WRITTEN",
            false,
            Bar::RatioAtLeast(0.6),
        ));
        rows.push(row(
            "stream-exact",
            "the same, each append under a condition on the exact revision of a key",
            true,
            Bar::RatioAtLeast(0.5),
        ));
    }
    let what = "Store, a stream of 10 records among 10 M keys in 20 segments, warm, p99";
    rows.push(Row {
        name: "stream-read/10M-keys".into(),
        what,
        against: "",
        unit: Unit::Micros,
        bar: Bar::FigureBelow(200.0),
        prepare: Box::new(|scene| {
            let dir = scene.dir.join("many");
            Ok(Pair::alone(Among::new(&dir, scene.scaled(MANY_KEYS), scene, Look::Stream)?))
        }),
    });
    rows.push(Row {
        name: "stream-read/against-10k-keys".into(),
        what,
        against: "the same among 10 k keys",
        unit: Unit::Micros,
        bar: Bar::RatioAtMost(3.0),
        prepare: Box::new(|scene| {
            let many = Among::new(&scene.dir.join("many"), scene.scaled(MANY_KEYS), scene, Look::Stream)?;
            let few = Among::new(&scene.dir.join("few"), scene.scaled(FEW_KEYS), scene, Look::Stream)?;
            Ok(Pair::new(many, few))
        }),
    });
    rows.push(Row {
        name: "stream-absent/10M-keys".into(),
        what: "the same store, a key that it does not have, warm, p99",
        against: "",
        unit: Unit::Micros,
        bar: Bar::FigureBelow(50.0),
        prepare: Box::new(|scene| {
            let dir = scene.dir.join("many");
            Ok(Pair::alone(Among::new(&dir, scene.scaled(MANY_KEYS), scene, Look::Absent)?))
        }),
    });
    rows.push(Row {
        name: "stream-no-match/1M".into(),
        what: "Store, append if no record with a tag came after an offset: 1 M before it, WRITTEN, p50",
        against: "the same with a tag of one record",
        unit: Unit::Micros,
        bar: Bar::RatioAtMost(1.5),
        prepare: Box::new(|scene| {
            let store = open(&scene.dir)?;
            let matches = scene.scaled(MATCHES);
            let many = NoMatch::new(&store, "many", matches, matches, scene.round_time())?;
            let one = NoMatch::new(&store, "one", matches, 1, scene.round_time())?;
            Ok(Pair::new(many, one))
        }),
    });
    rows.push(memory());
    for (record_bytes, variant) in PAYLOADS {
        rows.push(Row {
            name: format!("stream-rebuild/{variant}"),
            what: "Store, the indexes of 1 GiB of payload made again: a key, a type and two tags each",
            against: "a plain CRC pass over the same segments in a map",
            unit: Unit::RecordsPerSecond,
            bar: Bar::RatioAtLeast(0.2),
            prepare: Box::new(move |scene| {
                let mut appends = Appends::new(&scene.dir, record_bytes, scene, true, false)?;
                let count = scene.scaled(REBUILT_BYTES) / record_bytes as u64 / BATCH * BATCH;
                appends.append(count)?;
                appends.store.checkpoint()?;
                let reference = CrcPass::new(&files(&scene.dir, ".segment")?, count, scene.round_time())?;
                drop(appends);
                Ok(Pair::new(Rebuilt { dir: scene.dir.clone(), count }, reference))
            }),
        });
    }
    rows
}

fn memory() -> Row {
    Row {
        name: "memory-keys/10M".into(),
        what: "Store, one topic with 10 M keys, all of its indexes in use, then idle: memory beside the page cache",
        against: "",
        unit: Unit::Bytes,
        bar: Bar::FigureBelow(300.0 * 1024.0 * 1024.0),
        prepare: Box::new(|scene| {
            let (dir, keys) = (scene.dir.join("keys"), scene.scaled(MANY_KEYS));
            fill(&open(&dir)?, keys)?;
            Ok(Pair::alone(move || {
                let mut command = Command::new(std::env::current_exe().context("find this program")?);
                command.args(["--child", "idle-keys"]).arg(&dir).arg(keys.to_string());
                let mut child = Child::spawn(command)?;
                ensure!(child.line()? == "ready", "the child is not ready");
                let bytes = child.own_bytes()?;
                child.kill()?;
                Ok(Sample::of(u32::try_from(bytes >> 10).map_or(f64::MAX, f64::from) * 1024.0))
            }))
        }),
    }
}

/// A key out of so many.
pub(crate) fn key(number: u64) -> Vec<u8> {
    format!("key-{number:010}").into_bytes()
}

fn stream_key(number: u64) -> Vec<u8> {
    format!("stream-{number:06}").into_bytes()
}

/// Appends in batches, with keys or without.
struct Appends {
    store: Store,
    topic: Topic,
    payloads: Payloads,
    records: Vec<Record>,
    is_indexed: bool,
    has_condition: bool,
    round_records: u64,
    next: u64,
}

impl Appends {
    fn new(
        dir: &Path,
        record_bytes: usize,
        scene: &Scene,
        is_indexed: bool,
        has_condition: bool,
    ) -> Result<Self> {
        let payloads = Payloads::new(record_bytes);
        let record = |number: u64| {
            let record = Record::new(payloads.of(number));
            if !is_indexed {
                return record;
            }
            Record {
                key: Some(key(number)),
                record_type: format!("type-{}", number % 10),
                tags: vec![format!("tag-{}", number % 1000), "all".into()],
                ..record
            }
        };
        let store = open(dir)?;
        Ok(Self {
            topic: store.topic_or_create("appends")?,
            store,
            records: (0..KEYS).map(record).collect(),
            payloads,
            is_indexed,
            has_condition,
            round_records: scene.scaled(ROUND_BYTES) / record_bytes as u64 / BATCH * BATCH,
            next: 0,
        })
    }

    fn record(&self, number: u64) -> &Record {
        &self.records[usize::try_from(number % KEYS).expect("as many as fit into memory")]
    }

    fn append(&mut self, count: u64) -> Result<()> {
        let end = self.next + count;
        while self.next < end {
            let batch = (self.next..self.next + BATCH).map(|number| self.record(number));
            let mut append = Append::new().durability(Durability::Written).records(&self.topic, batch)?;
            if self.has_condition {
                let key = key(self.next % KEYS);
                let expected = match self.next / KEYS {
                    0 => ExpectedRevision::NoStream,
                    before => ExpectedRevision::Exact(Revision(before - 1)),
                };
                append = append.require(&self.topic, Condition::Revision { key, expected });
            }
            self.store.append(append)?;
            self.next += BATCH;
        }
        Ok(())
    }

    /// Every record by its offset, and some by their keys.
    fn check(&self, first: u64) -> Result<()> {
        let mut records = self.topic.read(Start::Offset(first.into()))?;
        for number in first..self.next {
            let record = records.next().context("the topic ends early")??;
            let payload = self.payloads.of(number % KEYS);
            ensure!(record.payload() == Some(payload), "record {number} has another payload");
            let revision = self.is_indexed.then_some(Revision(number / KEYS));
            ensure!(record.revision() == revision, "record {number} has revision {:?}", record.revision());
        }
        if self.is_indexed {
            for number in (first..self.next).step_by(997) {
                let last = (self.next - 1 - number % KEYS) / KEYS;
                let head = self.topic.stream(key(number % KEYS))?.context("a stream is gone")?;
                ensure!(head.last_revision == Revision(last), "a stream ends at {}", head.last_revision);
            }
        }
        Ok(())
    }
}

impl Contender for Appends {
    fn round(&mut self) -> Result<Sample> {
        let first = self.next;
        let begun = Instant::now();
        self.append(self.round_records)?;
        let elapsed = begun.elapsed();
        self.store.sync()?;
        self.check(first)?;
        self.store.checkpoint()?;
        Ok(Sample::rate(self.round_records, elapsed))
    }
}

/// Many keys of one record each, and among them, from the first segment to the last, streams of ten.
fn fill(store: &Store, keys: u64) -> Result<Topic> {
    // A record takes about this much.
    let segment_bytes_max = (keys * 42 / SEGMENTS).max(64 << 10);
    let topic =
        store.create_topic("keys", TopicSettings { segment_bytes_max, ..TopicSettings::default() })?;
    let part = keys / STREAM_RECORDS;
    for nth in 0..STREAM_RECORDS {
        let mut from = nth * part;
        let end = from + part;
        while from < end {
            let to = (from + 1000).min(end);
            let records: Vec<_> =
                (from..to).map(|number| Record::keyed(key(number), number.to_le_bytes())).collect();
            store.append(Append::new().durability(Durability::Written).records(&topic, &records)?)?;
            from = to;
        }
        let of_streams: Vec<_> =
            (0..STREAMS).map(|number| Record::keyed(stream_key(number), nth.to_le_bytes())).collect();
        store.append(Append::new().durability(Durability::Written).records(&topic, &of_streams)?)?;
    }
    store.checkpoint()?;
    Ok(topic)
}

#[derive(Clone, Copy)]
enum Look {
    Stream,
    Absent,
}

/// Looks for streams among many keys.
struct Among {
    _store: Store,
    topic: Topic,
    look: Look,
    random: Random,
    time: Duration,
}

impl Among {
    fn new(dir: &Path, keys: u64, scene: &Scene, look: Look) -> Result<Self> {
        let store = open(dir)?;
        let topic = fill(&store, keys)?;
        Ok(Self { _store: store, topic, look, random: Random::new(1), time: scene.round_time() })
    }
}

impl Contender for Among {
    fn round(&mut self) -> Result<Sample> {
        let mut latency = Latency::default();
        let begun = Instant::now();
        while begun.elapsed() < self.time {
            match self.look {
                Look::Stream => {
                    let key = stream_key(self.random.below(STREAMS));
                    let before = Instant::now();
                    let records = self
                        .topic
                        .read_stream(&key, StreamStart::Earliest)?
                        .collect::<Result<Vec<_>, _>>()?;
                    latency.record(before.elapsed());
                    ensure!(records.len() as u64 == STREAM_RECORDS, "{} records", records.len());
                    for (record, nth) in records.iter().zip(0_u64..) {
                        ensure!(record.payload() == Some(&nth.to_le_bytes()[..]), "record {nth} is another");
                        ensure!(
                            record.revision() == Some(Revision(nth)),
                            "record {nth} has another revision"
                        );
                    }
                }
                Look::Absent => {
                    let key = format!("absent-{}", self.random.next_u64());
                    let before = Instant::now();
                    let head = self.topic.stream(&key)?;
                    latency.record(before.elapsed());
                    ensure!(head.is_none(), "{key} was found");
                }
            }
        }
        Ok(Sample::of(latency.micros_at(99.0)).with_latency(latency))
    }
}

/// Appends under a condition that looks for a tag behind an offset.
struct NoMatch {
    store: Store,
    topic: Topic,
    after: Offset,
    time: Duration,
}

impl NoMatch {
    /// In a topic of so many records, so many of which have the tag; the last one has.
    fn new(store: &Store, name: &str, count: u64, matches: u64, time: Duration) -> Result<Self> {
        let topic = store.topic_or_create(name)?;
        let (with, without) = (Record::new("x"), Record::new("x"));
        let with = Record { tags: vec!["seat-7".into()], ..with };
        let records: Vec<_> =
            (0..count).map(|number| if number + matches >= count { &with } else { &without }).collect();
        for batch in records.chunks(1000) {
            let records = batch.iter().copied();
            store.append(Append::new().durability(Durability::Written).records(&topic, records)?)?;
        }
        store.checkpoint()?;
        Ok(Self { store: store.clone(), after: topic.log_end_offset().saturating_sub(1), topic, time })
    }
}

impl Contender for NoMatch {
    fn round(&mut self) -> Result<Sample> {
        let mut latency = Latency::default();
        let record = [Record::new("y")];
        let condition =
            |after| Condition::NoMatch { filter: Filter::new().tags(["seat-7"]), after_offset: Some(after) };
        let append = |after| -> Result<Append> {
            let append = Append::new().durability(Durability::Written).records(&self.topic, &record)?;
            Ok(append.require(&self.topic, condition(after)))
        };
        let first = self.topic.log_end_offset();
        let begun = Instant::now();
        let mut count = 0;
        while begun.elapsed() < self.time {
            let append = append(self.after)?;
            let before = Instant::now();
            self.store.append(append)?;
            latency.record(before.elapsed());
            count += 1;
        }
        // And that it would have been refused.
        ensure!(self.store.append(append(self.after.saturating_sub(1))?).is_err(), "the condition holds");
        ensure!(self.topic.log_end_offset().value() == first.value() + count, "not all was appended");
        self.store.checkpoint()?;
        Ok(Sample::median(latency))
    }
}

/// Removes all indexes of a store, opens it and asks for what it does not have: all are made again.
struct Rebuilt {
    dir: PathBuf,
    count: u64,
}

impl Contender for Rebuilt {
    fn round(&mut self) -> Result<Sample> {
        for path in files(&self.dir, ".terms")? {
            std::fs::remove_file(path)?;
        }
        let store = open(&self.dir)?;
        let topic = store.topic("appends")?;
        let begun = Instant::now();
        ensure!(topic.stream("absent")?.is_none(), "an absent key was found");
        let elapsed = begun.elapsed();
        let head = topic.stream(key(0))?.context("a stream is gone")?;
        let last = (self.count - 1) / KEYS;
        ensure!(head.last_revision == Revision(last), "a stream ends at {}", head.last_revision);
        ensure!(!files(&self.dir, ".terms")?.is_empty(), "no index was made");
        store.close()?;
        Ok(Sample::rate(self.count, elapsed))
    }
}
