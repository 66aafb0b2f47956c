//! From publishing a record until a follower has it.

use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use quipu_client::{Client, Durability, Event, Start, Visibility};
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::bare::client::Bare;
use crate::latency::Latency;
use crate::row::{Bar, Contender, Pair, Row, Sample, Unit};
use crate::service::{ClientRecords, Served, runtime};

const TOPIC: &str = "tail";
const RECORD_BYTES: usize = 1024;
/// One record each.
const PERIOD: Duration = Duration::from_millis(1);

pub(super) fn rows() -> Vec<Row> {
    vec![Row {
        name: "service-tail/1KiB".into(),
        what: "from publishing to a follower, WRITTEN, 1,000 records a second, p50",
        against: "two bare unary calls with the record, as often",
        unit: Unit::Micros,
        bar: Bar::RatioAtMost(1.5),
        prepare: Box::new(|scene| {
            let runtime = runtime()?;
            let count = scene.round_time().as_millis() as u64;
            let (bare, message) = (Bare::start(&runtime)?, vec![7; RECORD_BYTES]);
            let reference = move || {
                let (calls, message) = (bare.calls().clone(), bytes::Bytes::from(message.clone()));
                bare.spawn_and_wait(async move {
                    let (mut latency, mut clock) = (Latency::default(), clock());
                    for _ in 0..count {
                        clock.tick().await;
                        let begun = Instant::now();
                        calls.call(message.clone()).await?;
                        calls.call(message.clone()).await?;
                        latency.record(begun.elapsed());
                    }
                    Ok(Sample::median(latency))
                })
            };
            Ok(Pair::new(Follower::new(&runtime, &scene.dir, count)?, reference))
        }),
    }]
}

fn clock() -> Interval {
    let mut clock = interval(PERIOD);
    clock.set_missed_tick_behavior(MissedTickBehavior::Delay);
    clock
}

/// A publisher and a follower, with a connection each.
struct Follower {
    served: Served,
    publisher: Client,
    records: ClientRecords,
    count: u64,
    next: u64,
}

impl Follower {
    fn new(runtime: &Rc<Runtime>, dir: &Path, count: u64) -> Result<Self> {
        let served = Served::with_topic(runtime, dir, TOPIC)?;
        let publisher = runtime.block_on(Client::connect(served.url()))?;
        Ok(Self { served, publisher, records: ClientRecords::new(RECORD_BYTES), count, next: 0 })
    }
}

impl Contender for Follower {
    fn round(&mut self) -> Result<Sample> {
        let (first, end) = (self.next, self.next + self.count);
        self.next = end;
        let latency = self.served.block_on(async {
            let session = self.publisher.append_session(TOPIC).durability(Durability::Written).open().await?;
            let follow = self.served.client().subscribe(TOPIC).start(Start::Latest);
            let mut subscription = follow.visibility(Visibility::Written).send().await?;
            let records: Vec<_> = (first..end).map(|number| self.records.of(number)).collect();
            let (sent, mut times) = mpsc::unbounded_channel();
            let publishing = tokio::spawn(async move {
                let mut clock = clock();
                for record in records {
                    clock.tick().await;
                    // Nobody takes it if the follower has failed.
                    let _ = sent.send(Instant::now());
                    // What fails fails the close, too.
                    drop(session.append(record).await?);
                }
                session.close().await
            });
            let following = tokio::spawn(async move {
                let (mut latency, mut next) = (Latency::default(), first);
                while next < end {
                    let event = subscription.next().await.context("the subscription ended")??;
                    let now = Instant::now();
                    let Event::Records(batch) = event else { continue };
                    ensure!(batch.first_offset() == next, "a record is missing");
                    for _ in 0..batch.len() {
                        latency.record(now - times.try_recv().context("what was not sent has come")?);
                    }
                    next += batch.len() as u64;
                }
                Ok(latency)
            });
            publishing.await??;
            following.await?
        })?;
        self.served.check_and_trim(TOPIC, first, end, |offset| self.records.payloads.of(offset))?;
        Ok(Sample::median(latency))
    }
}
