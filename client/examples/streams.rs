//! Decides on what a stream says, and appends only if it still says so: `cargo run -p quipu-client --example streams [URL]`.
#![allow(clippy::print_stdout, reason = "an example")]

use quipu_client::{Client, Condition, Error, ExpectedRevision, Record, Start};

mod support;

/// Adds to a counter, whoever else does at the same time; returns the new count.
async fn increment(client: &Client, key: &str) -> Result<u64, Error> {
    loop {
        let (mut count, mut expected) = (0, ExpectedRevision::NoStream);
        let mut records =
            client.read_stream("counters", key).start(Start::LastRevisions(1)).records().await?;
        while let Some(record) = records.next().await {
            let record = record?;
            count = String::from_utf8_lossy(record.payload().unwrap_or_default()).parse().unwrap_or(0);
            expected = record.revision().map_or(expected, ExpectedRevision::Exact);
        }
        let next = Record::keyed(key.to_owned(), (count + 1).to_string());
        let append = client.append_to("counters", [next])?;
        match append.require(Condition::revision("counters", key, expected)).send().await {
            Ok(_) => return Ok(count + 1),
            // Somebody was faster: look again.
            Err(Error::ConditionFailed { failed, .. }) => {
                failed.iter().for_each(|failed| println!("{failed}"))
            }
            Err(error) => return Err(error),
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connected = support::connect().await?;
    let client = &connected.client;
    client.topic_or_create("counters").await?;

    let tasks: Vec<_> = (0..4)
        .map(|number| {
            let client = client.clone();
            tokio::spawn(async move { increment(&client, ["apples", "pears"][number % 2]).await })
        })
        .collect();
    for task in tasks {
        println!("counted to {}", task.await??);
    }

    let mut pages = client.stream_pages("counters", "");
    while let Some(streams) = pages.next().await? {
        for stream in streams {
            let key = String::from_utf8_lossy(&stream.key);
            println!("{key}: revision {}, {} records", stream.last_revision, stream.record_count);
        }
    }
    Ok(())
}
