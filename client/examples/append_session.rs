//! Appends many records in batches, without waiting for each: `cargo run -p quipu-client --example append_session [URL]`.
#![allow(clippy::print_stdout, reason = "an example")]

use quipu_client::Record;

mod support;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let connected = support::connect().await?;
    let client = &connected.client;
    client.topic_or_create("readings").await?;

    let session = client.append_session("readings").open().await?;
    let mut last = None;
    for number in 0..10_000 {
        let record = Record::keyed(format!("sensor-{}", number % 10), format!("{number}"));
        last = Some(session.append(record).await?);
    }
    if let Some(ticket) = last {
        println!("the last is at offset {}", ticket.wait().await?.first_offset);
    }
    // Waits for what is not answered yet, and says if anything went wrong.
    session.close().await?;
    Ok(())
}
