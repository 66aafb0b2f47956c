//! `quipu bench`: what a running server does: appends, a replay, and the time from publishing to a follower.
//!
//! It works on a topic of its own, which it makes and deletes, also when it is interrupted.

use std::time::{Duration, Instant};

use clap::Args;
use hdrhistogram::Histogram;
use indicatif::ProgressBar;
use quipu_client::{AppendSession, Client, Durability, Event, ReadEvent, Record, Start, Visibility};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::progress::bytes_bar;
use super::publish::DurabilityArg;
use super::signals::Signals;
use crate::args::Global;
use crate::exit::{Exit, Failure, Result};
use crate::output::Output;
use crate::units::{Size, about_bytes, counted, grouped, now_ms};

/// Latencies are counted from a microsecond to a minute, to three digits.
const LATENCY_MAX_MICROS: u64 = 60_000_000;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu bench
  quipu bench append --records 1000000 --record-bytes 200 --durability written
  quipu bench latency --rate 1000 --seconds 10 --json

Figures are those of client, network and server together, on whatever else the machine does.")]
pub(crate) struct BenchArgs {
    /// What to measure.
    #[arg(value_enum, default_value = "all")]
    what: What,
    /// Records to append and to replay.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u64).range(1..=1_000_000_000))]
    records: u64,
    /// Bytes of a payload.
    #[arg(long, value_name = "SIZE", default_value = "1KiB")]
    record_bytes: Size,
    /// Records of a batch.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    batch_records: u64,
    /// When an append is acknowledged.
    #[arg(long, value_enum, default_value = "synced")]
    durability: DurabilityArg,
    /// Records a second for latency.
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    rate: u64,
    /// How long to measure latency.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// One after the other.
    All,
    /// Batches through an append session, as fast as they are taken.
    Append,
    /// Reading back what was appended, with every record decoded.
    Replay,
    /// From publishing a record until a follower has it.
    Latency,
}

pub(crate) fn run(global: &Global, args: &BenchArgs, out: &mut Output) -> Result<()> {
    if global.data.is_some() {
        return Err(Failure::usage(
            "bench measures a server; `cargo run --release -p quipu-benches` measures the engine",
        ));
    }
    if !(1..=1 << 20).contains(&args.record_bytes.0) {
        return Err(Failure::usage("--record-bytes must be 1 to 1MiB"));
    }
    let remote = global.remote()?;
    let (runtime, client) = remote.parts();
    runtime.block_on(async {
        let topic = format!("quipu-bench-{}-{}", std::process::id(), now_ms());
        let mut signals = Signals::catch()?;
        client.create_topic(&*topic).await?;
        let interrupted = |name| Failure::new(Exit::Interrupted, "CANCELLED", format!("ended by {name}"));
        let outcome = tokio::select! {
            outcome = measure(client, &topic, args, out) => outcome,
            name = signals.next() => Err(interrupted(name)),
        };
        // What was measured is reported also if this fails. It may wait for a server that went away.
        let deleted = tokio::select! {
            deleted = client.delete_topic(&*topic) => deleted.map_err(Failure::from),
            name = signals.next() => Err(interrupted(name)),
        };
        let deleted = deleted.map_err(|failure| {
            failure.hint(format!("topic {topic} is left: `quipu topics delete {topic}` deletes it"))
        });
        match (outcome, deleted) {
            // What is left has to be told first.
            (Err(_), Err(failure)) => Err(failure),
            (outcome, deleted) => outcome.and(deleted),
        }
    })
}

async fn measure(client: &Client, topic: &str, args: &BenchArgs, out: &mut Output) -> Result<()> {
    let does = |what: What| args.what == What::All || args.what == what;
    if does(What::Append) || args.what == What::Replay {
        let report = append(client, topic, args, out).await?;
        if does(What::Append) {
            show("append", &report, out)?;
        }
    }
    if does(What::Replay) {
        let report = replay(client, topic, args, out).await?;
        show("replay", &report, out)?;
    }
    if does(What::Latency) {
        let report = latency(client, topic, args, out).await?;
        show("latency", &report, out)?;
    }
    Ok(())
}

/// What was measured.
struct Report {
    records: u64,
    bytes: u64,
    time: Duration,
    /// In microseconds; of what, `latency_of` says.
    latency: Option<Histogram<u64>>,
    latency_of: &'static str,
}

fn histogram() -> Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, LATENCY_MAX_MICROS, 3)
        .map_err(|error| Failure::new(Exit::Failure, "INTERNAL", error.to_string()))
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(LATENCY_MAX_MICROS)
}

fn payload(args: &BenchArgs) -> bytes::Bytes {
    // Not all the same, so that a codec has something to do.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let bytes = (0..args.record_bytes.0).map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b'a' + (state % 26) as u8
    });
    bytes.collect::<Vec<u8>>().into()
}

async fn session(client: &Client, topic: &str, args: &BenchArgs) -> Result<AppendSession> {
    let builder = client.append_session(topic).durability(Durability::from(args.durability));
    Ok(builder.batch_bytes(1).open().await?)
}

async fn append(client: &Client, topic: &str, args: &BenchArgs, out: &Output) -> Result<Report> {
    let bar = bytes_bar(out, Some(args.records * args.record_bytes.0));
    bar.set_message("append");
    let session = session(client, topic, args).await?;
    let record = Record::new(payload(args));
    let (tickets, mut answers) = mpsc::channel(256);
    let mut latency = histogram()?;
    let waiting = {
        let bar = bar.clone();
        let bytes = args.record_bytes.0;
        tokio::spawn(async move {
            let mut acknowledged = 0;
            while let Some((begun, ticket)) = answers.recv().await {
                let (begun, ticket): (Instant, quipu_client::Ticket) = (begun, ticket);
                let appended = ticket.wait().await?;
                latency.saturating_record(micros(begun.elapsed()));
                let count = appended.next_offset - appended.first_offset;
                acknowledged += count;
                bar.inc(count * bytes);
            }
            Ok::<_, quipu_client::Error>((acknowledged, latency))
        })
    };
    let begun = Instant::now();
    let mut left = args.records;
    while left > 0 {
        let count = left.min(args.batch_records);
        left -= count;
        let batch = std::iter::repeat_n(record.clone(), usize::try_from(count).unwrap_or(1));
        let ticket = session.append_all(batch).await?;
        // Nobody waits any more if one of them failed; its error is told below.
        if tickets.send((Instant::now(), ticket)).await.is_err() {
            break;
        }
    }
    drop(tickets);
    let (records, latency) = joined(waiting.await)??;
    let time = begun.elapsed();
    bar.finish_and_clear();
    let bytes = records * args.record_bytes.0;
    Ok(Report {
        records,
        bytes,
        time,
        latency: Some(latency),
        latency_of: "a batch until it is acknowledged",
    })
}

fn joined<T>(outcome: Result<T, tokio::task::JoinError>) -> Result<T> {
    outcome.map_err(|error| Failure::new(Exit::Failure, "INTERNAL", error.to_string()))
}

async fn replay(client: &Client, topic: &str, args: &BenchArgs, out: &Output) -> Result<Report> {
    let bar = bytes_bar(out, Some(args.records * args.record_bytes.0));
    bar.set_message("replay");
    let begun = Instant::now();
    let mut reading = client.read(topic).visibility(Visibility::Written).send().await?;
    let (mut records, mut bytes) = (0, 0);
    while let Some(event) = reading.next().await {
        if let ReadEvent::Records(batch) = event? {
            for record in &batch {
                bytes += record?.payload().map_or(0, <[u8]>::len) as u64;
            }
            records += batch.len() as u64;
            bar.set_position(bytes);
        }
    }
    bar.finish_and_clear();
    Ok(Report { records, bytes, time: begun.elapsed(), latency: None, latency_of: "" })
}

async fn latency(client: &Client, topic: &str, args: &BenchArgs, out: &Output) -> Result<Report> {
    let visibility = match Durability::from(args.durability) {
        Durability::Synced | Durability::Unspecified => Visibility::Synced,
        Durability::Written | Durability::Accepted => Visibility::Written,
    };
    let count = args.rate * args.seconds;
    let bar = ProgressBar::clone(&bytes_bar(out, Some(count * args.record_bytes.0)));
    bar.set_message("latency");
    let mut subscription = client.subscribe(topic).start(Start::Latest).visibility(visibility).send().await?;
    let session = session(client, topic, args).await?;
    let record = Record::new(payload(args));
    let (sent, mut times) = mpsc::channel::<Instant>(usize::try_from(count).unwrap_or(1));
    let mut latency = histogram()?;
    let following = {
        let (bar, bytes) = (bar.clone(), args.record_bytes.0);
        tokio::spawn(async move {
            let mut received = 0;
            while received < count {
                match subscription.next().await {
                    Some(Ok(Event::Records(batch))) => {
                        for _ in 0..batch.len() {
                            // Sent before the record was, so it is there.
                            if let Some(begun) = times.recv().await {
                                latency.saturating_record(micros(begun.elapsed()));
                            }
                        }
                        received += batch.len() as u64;
                        bar.inc(batch.len() as u64 * bytes);
                    }
                    Some(Ok(_)) => {}
                    Some(Err(error)) => return Err(error),
                    None => break,
                }
            }
            Ok((received, latency))
        })
    };
    let begun = Instant::now();
    let mut ticks = interval(Duration::from_secs(1) / u32::try_from(args.rate).unwrap_or(1));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for _ in 0..count {
        // What is late counts from when it was due: a stall is not hidden by what it kept from being sent.
        let due = ticks.tick().await.into_std();
        if sent.send(due).await.is_err() {
            break;
        }
        let ticket = session.append(record.clone()).await?;
        drop(ticket);
    }
    session.flush().await?;
    let (records, latency) = joined(following.await)??;
    bar.finish_and_clear();
    let bytes = records * args.record_bytes.0;
    let latency_of = "a record from being due until a follower has it";
    Ok(Report { records, bytes, time: begun.elapsed(), latency: Some(latency), latency_of })
}

const QUANTILES: [(&str, f64); 6] =
    [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999), ("max", 1.0)];

fn show(name: &str, report: &Report, out: &mut Output) -> Result<()> {
    let seconds = report.time.as_secs_f64().max(1e-9);
    if out.is_json {
        let quantiles = report.latency.as_ref().map(|latency| {
            let of =
                |(name, quantile): (&str, f64)| (name.to_owned(), latency.value_at_quantile(quantile).into());
            Value::Object(QUANTILES.into_iter().map(of).collect())
        });
        out.json(&json!({
            "bench": name,
            "records": report.records,
            "bytes": report.bytes,
            "seconds": seconds,
            "records_per_second": report.records as f64 / seconds,
            "bytes_per_second": report.bytes as f64 / seconds,
            "latency_micros": quantiles,
        }))?;
        return out.flush();
    }
    let strong = out.styles.strong;
    out.line(format_args!(
        "{strong}{name:<8}{strong:#} {}, {} in {seconds:.2} s: {}/s, {}/s",
        counted(report.records, "record"),
        about_bytes(report.bytes),
        grouped((report.records as f64 / seconds) as u64),
        about_bytes((report.bytes as f64 / seconds) as u64),
    ))?;
    if let Some(latency) = &report.latency {
        draw(latency, report.latency_of, out)?;
    }
    out.flush()
}

/// Quantiles, and how many lie in each power of two.
fn draw(latency: &Histogram<u64>, of: &str, out: &mut Output) -> Result<()> {
    let (dim, key) = (out.styles.dim, out.styles.key);
    out.line(format_args!("{dim}  {of}{dim:#}"))?;
    let shown: Vec<_> = QUANTILES
        .into_iter()
        .map(|(name, quantile)| format!("{name} {}", time(latency.value_at_quantile(quantile))))
        .collect();
    out.line(format_args!("  {}", shown.join("  ")))?;
    let steps: Vec<_> = latency
        .iter_log(1, 2.0)
        .map(|step| (step.value_iterated_to(), step.count_since_last_iteration()))
        .collect();
    let most = steps.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1);
    for (end, count) in steps.into_iter().filter(|(_, count)| *count > 0) {
        let bar = "█".repeat(usize::try_from((count * 40).div_ceil(most)).unwrap_or(0));
        out.line(format_args!(
            "  {:>9}  {key}{bar}{key:#} {}",
            format!("<{}", time(end + 1)),
            grouped(count)
        ))?;
    }
    Ok(())
}

fn time(micros: u64) -> String {
    match micros {
        0..1000 => format!("{micros} µs"),
        1000..1_000_000 => format!("{:.1} ms", micros as f64 / 1e3),
        _ => format!("{:.2} s", micros as f64 / 1e6),
    }
}
