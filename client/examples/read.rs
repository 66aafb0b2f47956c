//! Reads what is there, forwards, backwards and by filter: `cargo run -p quipu-client --example read [URL]`.
#![allow(clippy::print_stdout, reason = "an example")]

use quipu_client::{Filter, Record, Start};

mod support;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connected = support::connect().await?;
    let client = &connected.client;
    client.topic_or_create("orders").await?;
    let records = (0..9).map(|n| Record::keyed(format!("order-{}", n % 3), format!("event {n}")));
    client.append("orders", records).await?;

    let filter = Filter { keys: vec!["order-1".into()], ..Filter::default() };
    let mut of_one_order = client.read("orders").filter(filter).start(Start::Earliest).records().await?;
    while let Some(record) = of_one_order.next().await {
        let record = record?;
        println!("{} {}", record.offset(), String::from_utf8_lossy(record.payload().unwrap_or_default()));
    }

    let mut latest = client.read("orders").backwards().records_max(2).records().await?;
    while let Some(record) = latest.next().await {
        println!("back to {}", record?.offset());
    }
    Ok(())
}
