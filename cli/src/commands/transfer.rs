//! `quipu export` and `quipu import`: a whole topic to a file and back.
//!
//! The file is NDJSON. Its first line has the topic's settings, each further one a record with its offset and append time;
//! see `format/json.rs`. Importing into a directory (`--data`) gives every record its offset and time again: the engine
//! gets the times through its clock. A server gives its own times.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::Args;
use prost::Message as _;
use quipu_proto::v1 as pb;
use quipu_storage::Timestamp;
use quipu_storage::clock::Clock;
use serde_json::json;

use super::progress::bytes_bar;
use super::topics::{settings_from_json, settings_json};
use crate::args::Global;
use crate::backend::{Backend, Direction, Embedded, ReadSpec, Step};
use crate::exit::{Exit, Failure, Result};
use crate::format::json;
use crate::input::{Feed, Line};
use crate::output::{Output, Shown};
use crate::position::Position;
use crate::units::grouped;

/// A line has a record as JSON: base64 and escapes make it longer than it is.
const LINE_BYTES_MAX: usize = 64 << 20;
/// Records of one append have at most about so many bytes.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_RECORDS: usize = 10_000;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu export orders orders.ndjson
  quipu export orders | zstd > orders.ndjson.zst
  quipu import orders-copy orders.ndjson --data other-store")]
pub(crate) struct ExportArgs {
    /// The topic.
    topic: String,
    /// The file, which must not exist. None or `-`: standard output.
    file: Option<PathBuf>,
}

pub(crate) fn export(global: &Global, args: &ExportArgs, out: &mut Output) -> Result<()> {
    let backend = global.backend()?;
    let topic = backend.topic(&args.topic)?;
    let file = args.file.as_deref().filter(|path| *path != Path::new("-"));
    let count = match file {
        None => write_topic(&*backend, &topic, out)?,
        Some(path) => {
            let failed = |error: io::Error| Failure::file("write", path.display(), &error);
            let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
            let mut writer = BufWriter::with_capacity(1 << 20, file);
            let count = write_topic(&*backend, &topic, &mut writer)?;
            let file = writer.into_inner().map_err(|error| failed(error.into_error()))?;
            file.sync_all().map_err(failed)?;
            count
        }
    };
    out.note(format_args!("exported {} records of {}", grouped(count), Shown(&args.topic)));
    Ok(())
}

fn write_topic(backend: &dyn Backend, topic: &pb::Topic, out: &mut impl Write) -> Result<u64> {
    let head = json!({
        "quipu_export": 1,
        "topic": topic.name,
        "settings": topic.settings.as_ref().map(settings_json),
        "log_start_offset": topic.log_start_offset,
        "log_end_offset": topic.high_watermark,
    });
    writeln!(out, "{head}")?;
    let mut reader = backend.reader(ReadSpec {
        topic: topic.name.clone(),
        start: Position::Earliest,
        until: None,
        records_max: 0,
        filter: pb::Filter::default(),
        sees_written: false,
        direction: Direction::Forwards,
    })?;
    let mut count = 0;
    loop {
        match reader.next()? {
            Step::Records(items) => {
                for item in &items {
                    json::write(out, None, item)?;
                }
                count += items.len() as u64;
            }
            // Half a topic is no export.
            Step::Gap { from, to, .. } => {
                let message =
                    format!("offsets {from} to {} went while the topic was read", to.saturating_sub(1));
                return Err(Failure::new(Exit::OutOfRange, "OFFSET_TRIMMED", message).hint("export it again"));
            }
            Step::Damaged(damage) => {
                return Err(Failure::new(Exit::Damaged, "CORRUPT_RANGE", damage.message));
            }
            Step::Idle | Step::Resumed { .. } => {}
            Step::End => break,
        }
    }
    out.flush()?;
    Ok(count)
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu import orders orders.ndjson --data store      # offsets and append times as they were
  zstd -dc orders.ndjson.zst | quipu import orders    # into a server: its own times")]
pub(crate) struct ImportArgs {
    /// The topic, which is made and must not exist.
    topic: String,
    /// The file. None or `-`: standard input.
    file: Option<PathBuf>,
    /// Give new offsets, from 0, if those of the file cannot be kept: it begins later, or has gaps.
    #[arg(long)]
    renumber: bool,
}

/// Gives the engine the times of the records that are imported.
#[derive(Debug, Default)]
struct ImportClock(AtomicU64);

impl Clock for ImportClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

pub(crate) fn import(global: &Global, args: &ImportArgs, out: &mut Output) -> Result<()> {
    let clock = Arc::new(ImportClock::default());
    let backend: Box<dyn Backend> = match &global.data {
        Some(dir) => Box::new(Embedded::new(dir).with_clock(Arc::clone(&clock) as Arc<dyn Clock>)),
        None => global.backend()?,
    };
    let path = args.file.as_deref().filter(|path| *path != Path::new("-"));
    let on_wait = Box::new(|| Ok(()));
    let (feed, bytes) = match path {
        None => (Feed::new(io::stdin(), on_wait), None),
        Some(path) => {
            let file = File::open(path).map_err(|error| Failure::file("open", path.display(), &error))?;
            let bytes = file.metadata().ok().map(|metadata| metadata.len());
            (Feed::new(file, on_wait), bytes)
        }
    };
    let bar = bytes_bar(out, bytes);
    let mut lines = Lines { feed, number: 0 };
    let first = lines.next()?;
    let settings =
        first.as_deref().map(head).transpose().map_err(|message| lines.invalid(&message))?.flatten();
    let has_head = settings.is_some();
    backend.create_topic(&args.topic, settings.unwrap_or_default())?;
    let first = first.filter(|_| !has_head);
    let outcome = append_all(&*backend, args, &clock, &mut lines, first, &bar);
    bar.finish_and_clear();
    match outcome {
        Ok(count) => {
            backend.close()?;
            if out.is_json {
                return out.json(&json!({"topic": args.topic, "records": count}));
            }
            out.note(format_args!("imported {} records into {}", grouped(count), Shown(&args.topic)));
            Ok(())
        }
        Err(failure) => {
            // Half a topic is no import.
            let deleted = backend.delete_topic(&args.topic);
            let _ = backend.close();
            Err(match deleted {
                Ok(()) => failure,
                Err(_) => {
                    failure.hint(format!("`quipu topics delete {}` removes what was imported", args.topic))
                }
            })
        }
    }
}

/// The settings, if the line is the first one of an export.
fn head(line: &[u8]) -> Result<Option<pb::TopicSettings>, String> {
    let Ok(value) = serde_json::from_slice::<serde_json::Value>(line) else { return Ok(None) };
    match value.get("quipu_export").map(serde_json::Value::as_u64) {
        None => Ok(None),
        Some(Some(1)) => {
            settings_from_json(value.get("settings").unwrap_or(&serde_json::Value::Null)).map(Some)
        }
        Some(_) => Err("the export was made by a newer version".into()),
    }
}

fn append_all(
    backend: &dyn Backend,
    args: &ImportArgs,
    clock: &ImportClock,
    lines: &mut Lines<'_>,
    first: Option<bytes::Bytes>,
    bar: &indicatif::ProgressBar,
) -> Result<u64> {
    let mut publisher = backend.publisher(&args.topic, pb::Durability::Synced)?;
    let mut batch: Vec<pb::Record> = Vec::new();
    let (mut batch_bytes, mut batch_time, mut next_offset) = (0, None, 0_u64);
    let mut line = first;
    loop {
        if line.is_none() {
            line = lines.next()?;
        }
        let Some(text) = line.take() else { break };
        bar.set_position(lines.feed.bytes_read());
        let parsed = json::Line::parse(&text).map_err(|message| lines.invalid(&message))?;
        if let Some(offset) = parsed.offset.filter(|offset| *offset != next_offset && !args.renumber) {
            let message = format!(
                "the record has offset {offset}, but {next_offset} is next: the topic was trimmed or compacted"
            );
            return Err(lines.invalid(&message).hint("--renumber gives new offsets"));
        }
        let (record, time) = parsed.into_record().map_err(|message| lines.invalid(&message))?;
        let bytes = record.encoded_len() + 16;
        let is_full = batch.len() >= BATCH_RECORDS || batch_bytes + bytes > BATCH_BYTES;
        if !batch.is_empty() && (is_full || time != batch_time) {
            clock.0.fetch_max(batch_time.unwrap_or_else(crate::units::now_ms), Ordering::Relaxed);
            publisher.submit(std::mem::take(&mut batch))?;
            batch_bytes = 0;
        }
        batch_time = time;
        batch_bytes += bytes;
        batch.push(record);
        next_offset += 1;
    }
    if !batch.is_empty() {
        clock.0.fetch_max(batch_time.unwrap_or_else(crate::units::now_ms), Ordering::Relaxed);
        publisher.submit(batch)?;
    }
    publisher.finish()?;
    Ok(publisher.acknowledged().records)
}

struct Lines<'a> {
    feed: Feed<'a>,
    number: u64,
}

impl Lines<'_> {
    /// The next line that is not empty.
    fn next(&mut self) -> Result<Option<bytes::Bytes>> {
        loop {
            let line =
                self.feed.line(LINE_BYTES_MAX).map_err(|error| Failure::file("read", "the input", &error))?;
            self.number += 1;
            match line {
                None => return Ok(None),
                Some(Line::TooLong(bytes)) => {
                    return Err(self.invalid(&format!("it has {bytes} bytes, the limit is {LINE_BYTES_MAX}")));
                }
                Some(Line::Whole(line)) if line.trim_ascii().is_empty() => {}
                Some(Line::Whole(line)) => return Ok(Some(line)),
            }
        }
    }

    fn invalid(&self, message: &str) -> Failure {
        Failure::input(format!("line {}: {message}", self.number))
    }
}
