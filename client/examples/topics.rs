//! Makes, lists, changes and looks after topics: `cargo run -p quipu-client --example topics [URL]`.
#![allow(clippy::print_stdout, reason = "an example")]

use quipu_client::{CompactOptions, Record, v1};
use v1::topic_settings::{Compaction, Retention};

mod support;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connected = support::connect().await?;
    let client = &connected.client;
    client.topic_or_create("prices").await?;

    let retention = Some(Retention { age_max_ms: Some(24 * 3600 * 1000), ..Retention::default() });
    let compaction = Some(Compaction { records_per_key: Some(1), ..Compaction::default() });
    let settings = v1::TopicSettings { retention, compaction, ..v1::TopicSettings::default() };
    client.update_topic("prices", settings, ["retention.age_max_ms", "compaction"]).await?;

    client.append("prices", (0..10).map(|n| Record::keyed("apple", format!("{n}")))).await?;
    println!("the log starts at {}", client.trim_topic("prices", 2).await?);

    let dry = CompactOptions { dry_run: true, ..CompactOptions::default() };
    let report = client.compact_topic("prices", dry).await?.report().await?;
    println!("compaction would remove {:?}", report.records_removed);
    let report = client.verify_topic("prices").await?.report().await?;
    println!("{} records, intact: {}", report.records, report.intact);

    for topic in client.topics("", 100).await? {
        println!("{}: {} to {}", topic.name, topic.log_start_offset, topic.log_end_offset);
    }
    Ok(())
}
