//! Appends records to two topics, all or nothing: `cargo run -p quipu-client --example append [URL]`.
#![allow(clippy::print_stdout, reason = "an example")]

use quipu_client::{Durability, Record};

mod support;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connected = support::connect().await?;
    let client = &connected.client;
    client.topic_or_create("orders").await?;
    client.topic_or_create("invoices").await?;

    // One topic, on the server's disk when this returns.
    let appended = client.append("orders", ["placed", "paid"]).await?;
    println!("orders: offsets {} to {}", appended.first_offset, appended.next_offset);

    // Two topics as one, acknowledged as soon as a killed server would keep them.
    let shipped = Record::keyed("order-7", "shipped").with_type("OrderShipped").with_header("by", "example");
    let append =
        client.append_to("orders", [shipped])?.and("invoices", [Record::keyed("order-7", "12.50")])?;
    for appended in append.durability(Durability::Written).send().await? {
        println!("offset {}, at {} ms", appended.first_offset, appended.append_time_ms);
    }
    Ok(())
}
