//! Follows a topic: `cargo run -p quipu-client --example subscribe [URL]`.
#![allow(clippy::print_stdout, reason = "an example")]

use quipu_client::{Event, Start};

mod support;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connected = support::connect().await?;
    let client = &connected.client;
    client.topic_or_create("orders").await?;
    client.append("orders", ["placed", "paid"]).await?;

    let mut subscription = client.subscribe("orders").start(Start::Earliest).send().await?;
    while let Some(event) = subscription.next().await {
        match event? {
            Event::Records(batch) => {
                for record in batch {
                    let record = record?;
                    let payload = String::from_utf8_lossy(record.payload().unwrap_or_default()).into_owned();
                    println!("{} {payload}", record.offset());
                    if payload == "shipped" {
                        return Ok(());
                    }
                }
            }
            Event::CaughtUp { next_offset } => {
                println!("all there was, up to {next_offset}; now what comes");
                client.append("orders", ["shipped"]).await?;
            }
            Event::Gap(gap) => println!("records {} to {} are gone", gap.from, gap.to),
            Event::Resumed { next_offset } => println!("the connection was lost; on with {next_offset}"),
            Event::Progress(_) | Event::FellBehind(_) => {}
        }
    }
    Ok(())
}
