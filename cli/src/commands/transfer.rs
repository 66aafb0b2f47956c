//! `quipu export` and `quipu import`: a whole topic to a file or a directory and back; see [`crate::archive`].
//!
//! Importing into a directory (`--data`) gives every record its offset and time again: the engine gets the times through
//! its clock. A server gives its own times.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use clap::{Args, ValueEnum};
use prost::Message as _;
use quipu_proto::v1 as pb;
use quipu_storage::Timestamp;
use quipu_storage::clock::Clock;
use serde_json::json;

use super::progress::bytes_bar;
use super::show::warn_of_unsynced;
use crate::archive::{Entry, Source, ndjson, segments};
use crate::args::Global;
use crate::backend::{Backend, Direction, Item, Publisher, ReadSpec, Step};
use crate::exit::{Exit, Failure, Result};
use crate::format::redacted;
use crate::output::{Output, Shown};
use crate::position::Position;
use crate::units::{counted, now_ms};

/// Records of one append have at most about so many bytes.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_RECORDS: usize = 10_000;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum ExportFormat {
    /// Lines of JSON.
    Ndjson,
    /// A directory of segments, the files that a store keeps.
    Segments,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu export orders orders.ndjson
  quipu export orders | zstd > orders.ndjson.zst
  quipu export orders orders-export --format segments
  quipu import orders-copy orders.ndjson --data other-store")]
pub(crate) struct ExportArgs {
    /// The topic.
    topic: String,
    /// The file or directory, which must not exist. None or `-`: standard output.
    file: Option<PathBuf>,
    /// What to write.
    #[arg(short = 'F', long, value_enum, default_value = "ndjson")]
    format: ExportFormat,
}

pub(crate) fn export(global: &Global, args: &ExportArgs, out: &mut Output) -> Result<()> {
    let file = args.file.as_deref().filter(|path| *path != Path::new("-"));
    if args.format == ExportFormat::Segments && file.is_none() {
        return Err(Failure::usage("segments need a directory: name one that does not exist"));
    }
    let backend = global.backend()?;
    let topic = backend.topic(&args.topic)?;
    let count = match (args.format, file) {
        (ExportFormat::Ndjson, None) => {
            let mut writer = ndjson::Writer::begin(&mut *out, &topic)?;
            for_each(&*backend, &topic, |items| writer.push(&items))?;
            writer.end()?.1
        }
        (ExportFormat::Ndjson, Some(path)) => {
            let failed = |error: io::Error| Failure::file("write", path.display(), &error);
            let file = OpenOptions::new().write(true).create_new(true).open(path).map_err(failed)?;
            or_remove(export_file(&*backend, &topic, file).map_err(|failure| named(failure, path)), || {
                fs::remove_file(path)
            })?
        }
        (ExportFormat::Segments, Some(path)) => {
            let mut writer = segments::Writer::begin(path, &topic)?;
            let outcome = for_each(&*backend, &topic, |items| writer.push(items)).and_then(|()| writer.end());
            or_remove(outcome, || fs::remove_dir_all(path))?
        }
        (ExportFormat::Segments, None) => 0,
    };
    warn_of_unsynced(&topic, out);
    if out.is_json && file.is_some() {
        return out.json(&json!({"topic": args.topic, "records": count}));
    }
    out.note(format_args!("exported {} of {}", counted(count, "record"), Shown(&args.topic)));
    Ok(())
}

fn export_file(backend: &dyn Backend, topic: &pb::Topic, file: File) -> Result<u64> {
    let mut writer = ndjson::Writer::begin(BufWriter::with_capacity(1 << 20, file), topic)?;
    for_each(backend, topic, |items| writer.push(&items))?;
    let (writer, count) = writer.end()?;
    let file = writer.into_inner().map_err(io::IntoInnerError::into_error)?;
    file.sync_all()?;
    Ok(count)
}

/// Says which file could not be written, where it says that the output could not.
fn named(mut failure: Failure, path: &Path) -> Failure {
    failure.message =
        failure.message.replace("cannot write the output", &format!("cannot write {}", path.display()));
    failure
}

/// Half an export is none: what we made is removed.
fn or_remove<T>(outcome: Result<T>, remove: impl FnOnce() -> io::Result<()>) -> Result<T> {
    if outcome.is_err() {
        // It has no end, so nobody takes it for a whole one.
        let _ = remove();
    }
    outcome
}

/// Hands the records of the topic to `each`, in order.
fn for_each(
    backend: &dyn Backend,
    topic: &pb::Topic,
    mut each: impl FnMut(Vec<Item>) -> Result<()>,
) -> Result<()> {
    let mut reader = backend.reader(ReadSpec {
        topic: topic.name.clone(),
        start: Position::Earliest,
        until: None,
        records_max: 0,
        filter: pb::Filter::default(),
        sees_written: false,
        direction: Direction::Forwards,
    })?;
    loop {
        match reader.next()? {
            Step::Records(items) => each(items)?,
            // Half a topic is no export.
            Step::Gap { from, to, .. } => {
                let message =
                    format!("offsets {from} to {} went while the topic was read", to.saturating_sub(1));
                return Err(Failure::new(Exit::OutOfRange, "OFFSET_TRIMMED", message).hint("export it again"));
            }
            Step::Damaged(damage) => {
                return Err(Failure::new(Exit::Damaged, "CORRUPT_RANGE", damage.message));
            }
            Step::DamagedEnd { message } => return Err(Failure::new(Exit::Damaged, "CORRUPT_FILE", message)),
            Step::Idle | Step::Resumed { .. } => {}
            Step::End => return Ok(()),
        }
    }
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu import orders orders.ndjson --data store      # offsets and append times as they were
  quipu import orders orders-export                   # a directory of segments
  zstd -dc orders.ndjson.zst | quipu import orders    # into a server: its own times")]
pub(crate) struct ImportArgs {
    /// The topic, which is made and must not exist.
    topic: String,
    /// The file, or the directory of segments. None or `-`: standard input.
    file: Option<PathBuf>,
    /// Give new offsets, from 0, if those of the file cannot be kept: it begins later, or has gaps.
    #[arg(long)]
    renumber: bool,
    /// Take lines that are no whole export: changed by hand, cut off, or made by something else. What is there is imported.
    #[arg(long)]
    unchecked: bool,
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
    // What can be looked at twice is found to be whole before anything is written.
    let (mut source, bytes) = open(args)?;
    let clock = Arc::new(ImportClock::default());
    let backend: Box<dyn Backend> = match &global.data {
        Some(dir) => Box::new(global.embedded(dir).with_clock(Arc::clone(&clock) as Arc<dyn Clock>)),
        None => global.backend()?,
    };
    let bar = bytes_bar(out, bytes);
    backend.create_topic(&args.topic, source.settings().unwrap_or_default())?;
    let mut count = 0;
    let outcome = backend.publisher(&args.topic, pb::Durability::Synced, None).and_then(|publisher| {
        let mut loader = Loader { publisher, clock: &clock, batch: Vec::new(), bytes: 0, time: None };
        let loaded = load(&mut loader, &mut *source, args.renumber, &bar);
        count = loader.publisher.acknowledged().records;
        loaded
    });
    bar.finish_and_clear();
    let Err(failure) = outcome else {
        backend.close()?;
        if out.is_json {
            return out.json(&json!({"topic": args.topic, "records": count}));
        }
        out.note(format_args!("imported {} into {}", counted(count, "record"), Shown(&args.topic)));
        return Ok(());
    };
    // Half a topic is no import.
    let deleted = backend.delete_topic(&args.topic);
    let _ = backend.close();
    Err(explain(failure, &args.topic, count, deleted.is_ok()))
}

/// Says what became of the records that were imported before the failure.
fn explain(mut failure: Failure, topic: &str, count: u64, is_deleted: bool) -> Failure {
    let (records, were) = (counted(count, "record"), if count == 1 { "was" } else { "were" });
    failure.message.push_str(&match is_deleted {
        true => format!("; {records} had been imported and {were} deleted again: there is no topic {topic}"),
        false => format!("; {records} {were} imported and not deleted again"),
    });
    if is_deleted { failure } else { failure.hint(format!("`quipu topics delete {topic}` removes them")) }
}

/// What to read, and how many bytes it has if that is known.
fn open(args: &ImportArgs) -> Result<(Box<dyn Source>, Option<u64>)> {
    let Some(path) = args.file.as_deref().filter(|path| *path != Path::new("-")) else {
        let archive = ndjson::Archive::of(io::stdin(), "standard input", !args.unchecked)?;
        return Ok((Box::new(archive), None));
    };
    let failed = |error: io::Error| Failure::file("open", path.display(), &error);
    let file = File::open(path).map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if metadata.is_dir() {
        if args.unchecked {
            return Err(Failure::usage("--unchecked is for lines: segments are always checked"));
        }
        let archive = segments::Archive::open(path)?;
        let bytes = archive.bytes();
        return Ok((Box::new(archive), Some(bytes)));
    }
    let archive = ndjson::Archive::of_file(file, &path.display().to_string(), !args.unchecked)?;
    Ok((Box::new(archive), Some(metadata.len()).filter(|_| metadata.is_file())))
}

/// Appends records in batches, each of one time.
struct Loader<'a> {
    publisher: Box<dyn Publisher + 'a>,
    clock: &'a ImportClock,
    batch: Vec<pb::Record>,
    bytes: usize,
    time: Option<u64>,
}

impl Loader<'_> {
    fn push(&mut self, record: pb::Record, time: Option<u64>) -> Result<()> {
        let bytes = record.encoded_len() + 16;
        let is_full = self.batch.len() >= BATCH_RECORDS || self.bytes + bytes > BATCH_BYTES;
        if is_full || time != self.time {
            self.flush()?;
        }
        self.time = time;
        self.bytes += bytes;
        self.batch.push(record);
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.clock.0.fetch_max(self.time.unwrap_or_else(now_ms), Ordering::Relaxed);
        self.bytes = 0;
        self.publisher.submit(std::mem::take(&mut self.batch))
    }
}

fn load(
    loader: &mut Loader<'_>,
    source: &mut dyn Source,
    renumbers: bool,
    bar: &indicatif::ProgressBar,
) -> Result<()> {
    let outcome = (|| {
        let mut next_offset = 0_u64;
        while let Some(Entry { offset, append_time_ms, record }) = source.next()? {
            // It would become the deletion of its key.
            if let Some(why) = redacted(&record) {
                let at = offset.map_or_else(String::new, |offset| format!(" of offset {offset}"));
                return Err(
                    source.invalid(&format!("the payload of the record{at} is {why}: it cannot be imported"))
                );
            }
            bar.set_position(source.bytes_read());
            if let Some(offset) = offset.filter(|offset| *offset != next_offset && !renumbers) {
                let message = format!(
                    "the record has offset {offset}, but {next_offset} is next: the topic was trimmed or compacted"
                );
                return Err(source.invalid(&message).hint("--renumber gives new offsets"));
            }
            loader.push(record, append_time_ms)?;
            next_offset += 1;
        }
        match source.log_start_offset() {
            Some(start) if start > 0 && next_offset == 0 && !renumbers => {
                let message =
                    format!("it has no records, and the next one had offset {start}: the topic was trimmed");
                Err(source.invalid(&message).hint("--renumber makes a topic that begins at offset 0"))
            }
            _ => loader.flush(),
        }
    })();
    // Also after a failure: it is said how much was imported.
    outcome.and(loader.publisher.finish())
}
