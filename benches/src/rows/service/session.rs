//! Appending through a session.

use std::time::Instant;

use anyhow::Result;
use bytes::Bytes;
use quipu_client::Durability;

use crate::bare::client::Bare;
use crate::payload::Random;
use crate::row::{Bar, Contender, Pair, Row, Sample, Unit};
use crate::service::{ClientRecords, Served, runtime};

const TOPIC: &str = "session";
/// Payload bytes of a round.
const ROUND_BYTES: u64 = 256 << 20;
const RECORD_BYTES: usize = 1024;
/// Records of a batch: as many as a session puts together by itself.
const BATCH_RECORDS: u64 = 250;
/// Bytes of a batch's message: payloads, ids, heads of fields, topic and sum.
const MESSAGE_BYTES: usize = BATCH_RECORDS as usize * (RECORD_BYTES + 24) + 32;

pub(super) fn rows() -> Vec<Row> {
    let row = |group: &str, what, batch_records, bar| Row {
        name: format!("{group}/1KiB"),
        what,
        against: "a bare stream of opaque messages as large as its batches, which the server drops",
        unit: Unit::MegabytesPerSecond,
        bar,
        prepare: Box::new(move |scene| {
            let runtime = runtime()?;
            let count = scene.scaled(ROUND_BYTES) / RECORD_BYTES as u64 / BATCH_RECORDS * BATCH_RECORDS;
            let session = Session {
                served: Served::with_topic(&runtime, &scene.dir, TOPIC)?,
                records: ClientRecords::new(RECORD_BYTES),
                batch_records,
                count,
                next: 0,
            };
            let bare = Bare::start(&runtime)?;
            let mut message = vec![0; MESSAGE_BYTES];
            Random::new(1).fill(&mut message);
            let message = Bytes::from(message);
            let reference = move || {
                let begun = Instant::now();
                bare.block_on(bare.calls().send(message.clone(), count / BATCH_RECORDS))?;
                Ok(Sample::bytes_rate(count * RECORD_BYTES as u64, begun.elapsed()))
            };
            Ok(Pair::new(session, reference))
        }),
    };
    vec![
        row(
            "service-session",
            "AppendSession, batches of 250, WRITTEN",
            BATCH_RECORDS,
            Bar::RatioAtLeast(0.5),
        ),
        row("service-session-single", "the same, one record handed over at a time", 1, Bar::FigureOnly),
    ]
}

struct Session {
    served: Served,
    records: ClientRecords,
    /// Records that are handed over together.
    batch_records: u64,
    count: u64,
    next: u64,
}

impl Contender for Session {
    fn round(&mut self) -> Result<Sample> {
        let (first, end) = (self.next, self.next + self.count);
        self.next = end;
        let session = self.served.client().append_session(TOPIC).durability(Durability::Written).open();
        let session = self.served.block_on(session)?;
        let (records, batch) = (&self.records, self.batch_records);
        let elapsed = self.served.block_on(async {
            let begun = Instant::now();
            let mut from = first;
            while from < end {
                // What fails fails the close, too.
                let ticket = if batch == 1 {
                    session.append(records.of(from)).await?
                } else {
                    session.append_all((from..from + batch).map(|number| records.of(number))).await?
                };
                drop(ticket);
                from += batch;
            }
            session.close().await?;
            anyhow::Ok(begun.elapsed())
        })?;
        self.served.check_and_trim(TOPIC, first, end, |offset| records.payloads.of(offset))?;
        Ok(Sample::bytes_rate(self.count * RECORD_BYTES as u64, elapsed))
    }
}
