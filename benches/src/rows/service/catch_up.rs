//! Catching up from the disk through a subscription.

use std::rc::Rc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use quipu_client::Event;
use quipu_proto::v1 as pb;
use tokio::runtime::Runtime;

use crate::bare::Wanted;
use crate::bare::client::{Bare, connect, count_records, decoded};
use crate::row::{Bar, Pair, Row, Sample, Scene, Unit};
use crate::rows::store::{Records, open};
use crate::service::{Served, check, runtime};

const TOPIC: &str = "catch-up";
const RECORDS: u64 = 1_000_000;
const RECORD_BYTES: usize = 1024;
/// Records of a batch, and batches of a message: as many as it takes to reach the 256 KiB of a response.
const BATCH_RECORDS: u64 = 100;
const MESSAGE_BATCHES: u64 = 3;
const MESSAGE_RECORDS: u64 = MESSAGE_BATCHES * BATCH_RECORDS;
/// Of a message: payloads, heads of fields, offsets, times and sums.
const MESSAGE_BYTES: u64 = MESSAGE_BATCHES * (BATCH_RECORDS * (RECORD_BYTES as u64 + 6) + 27) + 4;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "service-catch-up/1KiB".into(),
            what: "Subscribe, 1 M records in batches of 100, warm, a client that checks checksums",
            against: "a bare stream of opaque messages of the same sizes",
            unit: Unit::RecordsPerSecond,
            bar: Bar::RatioAtLeast(0.7),
            prepare: Box::new(|scene| {
                let (runtime, served, count) = filled(scene)?;
                let bare = Bare::start(&runtime)?;
                let measured = move || {
                    let begun = Instant::now();
                    served.block_on(checked(&served, count))?;
                    Ok(Sample::rate(count, begun.elapsed()))
                };
                let reference = move || {
                    let begun = Instant::now();
                    bare.block_on(bare.calls().frames(count / MESSAGE_RECORDS, MESSAGE_BYTES))?;
                    Ok(Sample::rate(count, begun.elapsed()))
                };
                Ok(Pair::new(measured, reference))
            }),
        },
        Row {
            name: "service-decode/1KiB".into(),
            what: "the same, a client that decodes every record with prost",
            against: "a bare stream of the same messages, encoded and decoded by prost",
            unit: Unit::RecordsPerSecond,
            bar: Bar::RatioAtLeast(1.0),
            prepare: Box::new(|scene| {
                let (runtime, served, count) = filled(scene)?;
                let channel = runtime.block_on(connect(served.url()))?;
                let bare = Bare::start(&runtime)?;
                let measured = move || {
                    let request = pb::SubscribeRequest { topic: TOPIC.into(), ..Default::default() };
                    let begun = Instant::now();
                    let found = served.block_on(async {
                        let stream = decoded(&channel, "/quipu.v1.LogService/Subscribe", request).await?;
                        count_records(stream, count).await
                    })?;
                    let elapsed = begun.elapsed();
                    ensure!(found == count, "{found} records were found");
                    Ok(Sample::rate(count, elapsed))
                };
                let wanted = Wanted {
                    messages: count / MESSAGE_RECORDS,
                    batches: MESSAGE_BATCHES,
                    records: BATCH_RECORDS,
                    record_bytes: RECORD_BYTES as u64,
                    ..Wanted::default()
                };
                let reference = move || {
                    let begun = Instant::now();
                    let found = bare.block_on(bare.calls().messages(wanted.clone()))?;
                    let elapsed = begun.elapsed();
                    ensure!(found == count, "{found} records were found");
                    Ok(Sample::rate(count, elapsed))
                };
                Ok(Pair::new(measured, reference))
            }),
        },
    ]
}

/// A server with as many records as make whole messages, each of which was read and compared once.
fn filled(scene: &Scene) -> Result<(Rc<Runtime>, Served, u64)> {
    let count = scene.scaled(RECORDS) / MESSAGE_RECORDS * MESSAGE_RECORDS;
    let records = Records::new(RECORD_BYTES);
    let store = open(&scene.dir)?;
    records.fill(&store.topic_or_create(TOPIC)?, count, BATCH_RECORDS)?;
    store.close()?;
    let runtime = runtime()?;
    let served = Served::start(&runtime, &scene.dir)?;
    runtime.block_on(check(served.client(), TOPIC, 0, count, |offset| records.payloads.of(offset)))?;
    Ok((runtime, served, count))
}

/// Follows from the first record until `count` have come. The client compares the checksum of each batch.
async fn checked(served: &Served, count: u64) -> Result<()> {
    let mut subscription = served.client().subscribe(TOPIC).send().await?;
    let mut next = 0;
    while next < count {
        if let Event::Records(batch) = subscription.next().await.context("the subscription ended")?? {
            ensure!(
                batch.first_offset() == next,
                "offset {} where {next} was expected",
                batch.first_offset()
            );
            next += batch.len() as u64;
        }
    }
    Ok(())
}
