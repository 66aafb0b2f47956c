//! Appends that are calls of their own.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use quipu_client::{Client, Durability};
use quipu_storage::Topic;
use tokio::task::JoinSet;

use crate::bare::client::Bare;
use crate::latency::Latency;
use crate::row::{Bar, Contender, Pair, Row, Sample, Scene, Unit};
use crate::rows::store::{Records, open};
use crate::service::{ClientRecords, Served, runtime};

const RECORD_BYTES: usize = 1024;
/// Bytes of an append's message around its payload: heads of fields, topic and sum.
const AROUND_BYTES: usize = 32;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "service-append/1KiB".into(),
            what: "Append, one in flight, SYNCED, p50",
            against: "the engine's own synced append plus a bare unary call, one after the other",
            unit: Unit::Micros,
            bar: Bar::RatioAtMost(1.2),
            prepare: Box::new(|scene| {
                let runtime = runtime()?;
                let served = Rc::new(Served::start(&runtime, &scene.dir.join("served"))?);
                let mut appends = Appends::new(&served, scene, "append", Durability::Synced, 1)?;
                let p50 = |sample: Sample| Sample::median(sample.latency.unwrap_or_default());
                let store = open(&scene.dir.join("engine"))?;
                let reference = EngineAndCall {
                    bare: Bare::start(&runtime)?,
                    topic: store.topic_or_create("append")?,
                    records: Records::new(RECORD_BYTES),
                    message: vec![7; RECORD_BYTES + AROUND_BYTES].into(),
                    time: scene.round_time(),
                };
                Ok(Pair::new(move || appends.round().map(p50), reference))
            }),
        },
        Row {
            name: "service-append-256/1KiB".into(),
            what: "Append, 256 in flight, SYNCED",
            against: "the same, ACCEPTED",
            unit: Unit::RecordsPerSecond,
            bar: Bar::RatioAtLeast(0.5),
            prepare: Box::new(|scene| {
                let served = Rc::new(Served::start(&runtime()?, &scene.dir)?);
                let synced = Appends::new(&served, scene, "synced", Durability::Synced, 256)?;
                let accepted = Appends::new(&served, scene, "accepted", Durability::Accepted, 256)?;
                Ok(Pair::new(synced, accepted))
            }),
        },
    ]
}

/// Calls for some time, so many at once, over one connection.
struct Appends {
    served: Rc<Served>,
    topic: &'static str,
    durability: Durability,
    in_flight: usize,
    records: Arc<ClientRecords>,
    time: Duration,
    /// The next offset.
    next: u64,
}

impl Appends {
    fn new(
        served: &Rc<Served>,
        scene: &Scene,
        topic: &'static str,
        durability: Durability,
        in_flight: usize,
    ) -> Result<Self> {
        let served = Rc::clone(served);
        served.block_on(served.client().create_topic(topic))?;
        let records = Arc::new(ClientRecords::new(RECORD_BYTES));
        Ok(Self { served, topic, durability, in_flight, records, time: scene.round_time(), next: 0 })
    }
}

impl Contender for Appends {
    fn round(&mut self) -> Result<Sample> {
        let begun = Instant::now();
        let until = begun + self.time;
        let answered: Vec<Answered> = self.served.block_on(async {
            let mut writers = JoinSet::new();
            for writer in 0..self.in_flight {
                let (client, records) = (self.served.client().clone(), Arc::clone(&self.records));
                writers.spawn(write(client, self.topic, self.durability, records, writer, until));
            }
            let mut answered = Vec::new();
            while let Some(written) = writers.join_next().await {
                answered.extend(written??);
            }
            anyhow::Ok(answered)
        })?;
        let elapsed = begun.elapsed();

        let mut latency = Latency::default();
        let mut numbers = vec![None; answered.len()];
        for Answered { offset, number, elapsed } in &answered {
            latency.record(*elapsed);
            let index = offset.checked_sub(self.next).and_then(|index| usize::try_from(index).ok());
            let place =
                index.and_then(|index| numbers.get_mut(index)).context("an offset out of its range")?;
            ensure!(place.replace(*number).is_none(), "offset {offset} was given twice");
        }
        let (first, end) = (self.next, self.next + answered.len() as u64);
        self.next = end;
        let number = |offset: u64| numbers[usize::try_from(offset - first).unwrap_or(0)].unwrap_or(0);
        self.served
            .check_and_trim(self.topic, first, end, |offset| self.records.payloads.of(number(offset)))?;
        Ok(Sample::rate(end - first, elapsed).with_latency(latency))
    }
}

/// An append that was answered.
struct Answered {
    offset: u64,
    /// Which record it was.
    number: u64,
    elapsed: Duration,
}

async fn write(
    client: Client,
    topic: &'static str,
    durability: Durability,
    records: Arc<ClientRecords>,
    writer: usize,
    until: Instant,
) -> Result<Vec<Answered>> {
    let mut answered = Vec::new();
    let mut before = Instant::now();
    while before < until {
        let number = (writer + answered.len()) as u64;
        let append = client.append_to(topic, [records.of(number)])?.durability(durability);
        let offset = append.send().await?.first().context("an answer without its topic")?.first_offset;
        let after = Instant::now();
        answered.push(Answered { offset, number, elapsed: after - before });
        before = after;
    }
    Ok(answered)
}

/// What an append over the network cannot do without, one after the other.
struct EngineAndCall {
    bare: Bare,
    topic: Topic,
    records: Records,
    message: Bytes,
    time: Duration,
}

impl Contender for EngineAndCall {
    fn round(&mut self) -> Result<Sample> {
        let first = self.topic.log_end_offset().value();
        let (topic, time) = (self.topic.clone(), self.time);
        let (calls, message) = (self.bare.calls().clone(), self.message.clone());
        let records: Vec<_> = (0..1024).map(|number| self.records.of(first + number).clone()).collect();
        // On a thread of the runtime, as the appends.
        let latency = self.bare.spawn_and_wait(async move {
            let (mut latency, begun) = (Latency::default(), Instant::now());
            let mut before = begun;
            for record in records.iter().cycle() {
                topic.append(std::slice::from_ref(record))?;
                calls.call(message.clone()).await?;
                let after = Instant::now();
                latency.record(after - before);
                before = after;
                if after - begun >= time {
                    break;
                }
            }
            Ok(latency)
        })?;
        self.records.check(&self.topic, first, first + latency.count())?;
        Ok(Sample::median(latency))
    }
}
