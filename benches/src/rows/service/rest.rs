//! A server that nobody talks to.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use quipu_storage::{Durability, Store};

use crate::child::Child;
use crate::row::{Bar, Pair, Row, Sample, Unit};
use crate::rows::store::Records;
use crate::service::{listening, serve};

const TOPICS: usize = 1000;
const TOPIC_RECORDS: u64 = 100;
const RECORD_BYTES: usize = 1024;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "service-rest/memory".into(),
            what: "a server at rest, 1,000 topics with 100 records each: resident memory, program and files included",
            against: "",
            unit: Unit::Bytes,
            bar: Bar::FigureBelow(40.0 * 1024.0 * 1024.0),
            prepare: Box::new(|scene| {
                let (server, time) = (at_rest(&scene.dir)?, scene.round_time());
                Ok(Pair::alone(move || {
                    std::thread::sleep(time);
                    #[expect(clippy::cast_precision_loss, reason = "no memory has 2^53 bytes")]
                    Ok(Sample::of(server.resident_bytes()? as f64))
                }))
            }),
        },
        Row {
            name: "service-rest/cpu".into(),
            what: "the same: processor time, of one processor",
            against: "",
            unit: Unit::Percent,
            // What is shown as 0 %.
            bar: Bar::FigureBelow(0.5),
            prepare: Box::new(|scene| {
                let (server, time) = (at_rest(&scene.dir)?, scene.round_time());
                Ok(Pair::alone(move || {
                    let (before, begun) = (server.cpu_time()?, Instant::now());
                    std::thread::sleep(time);
                    let used = server.cpu_time()? - before;
                    Ok(Sample::of(100.0 * used.as_secs_f64() / begun.elapsed().as_secs_f64()))
                }))
            }),
        },
        Row {
            name: "service-rest/start".into(),
            what: "the same: from starting the process until it listens, after it was stopped",
            against: "",
            unit: Unit::Millis,
            bar: Bar::FigureOnly,
            prepare: Box::new(|scene| {
                fill(&scene.dir)?;
                let dir = scene.dir.clone();
                Ok(Pair::alone(move || {
                    let begun = Instant::now();
                    let mut server = Child::spawn(serve(&dir)?)?;
                    listening(&mut server)?;
                    let elapsed = begun.elapsed();
                    server.stop()?;
                    Ok(Sample::of(elapsed.as_secs_f64() * 1e3))
                }))
            }),
        },
    ]
}

fn at_rest(dir: &Path) -> Result<Child> {
    fill(dir)?;
    let mut server = Child::spawn(serve(dir)?)?;
    listening(&mut server)?;
    Ok(server)
}

/// The topics, each read back.
fn fill(dir: &Path) -> Result<()> {
    let records = Records::new(RECORD_BYTES);
    let store = Store::open(dir)?;
    let mut topics = Vec::new();
    for number in 0..TOPICS {
        let topic = store.create_topic(&format!("topic-{number}"), Default::default())?;
        records.append(&topic, 0, TOPIC_RECORDS, Durability::Written)?;
        topics.push(topic);
    }
    store.close()?;
    let store = Store::open(dir)?;
    for topic in topics {
        let topic = store.topic(topic.name().as_str())?;
        records.check(&topic, 0, TOPIC_RECORDS)?;
    }
    Ok(store.close()?)
}
