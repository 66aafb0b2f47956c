//! `quipu publish`: input becomes records, records become batches, and each batch is appended as one.
//!
//! Batches of a pipe or a terminal are sent as soon as there is nothing more to read; so a line is published when it is
//! there, and a file in full batches. What has been acknowledged is always a prefix of the input; when something fails,
//! the message says with which `--skip` to go on.
//!
//! With `--producer` a batch is what the input and the bounds say, whatever the time: so it is the same when the input is
//! given again, and has the same sequence. What is published already is left out but for the last batch, by which the
//! store sees whether the input is the same.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Instant;

use clap::Args;
use indicatif::ProgressBar;
use prost::Message as _;
use quipu_client::ExpectedRevision;
use quipu_proto::v1 as pb;
use quipu_storage::TEMPORARY_PREFIX;

use super::progress::bytes_bar;
use crate::args::Global;
use crate::backend::{Acknowledged, Backend, ProducerAt, Publisher};
use crate::exit::{Exit, Failure, Result};
use crate::input::fields::FieldName;
use crate::input::{Entries, Feed, InputFormat, Mapping, entries};
use crate::key::Key;
use crate::output::{Output, Shown};
use crate::requirement::{REQUIREMENTS_MAX, Requirement, parse_expected, parse_no_match};
use crate::units::{Size, about_bytes, batches, counted, grouped};

/// What an append takes by default, less what a record's other fields may add.
const ENTRY_BYTES_MAX: u64 = 8 << 20;
/// Of input that is published as one append.
const WHOLE_BYTES_MAX: u64 = ENTRY_BYTES_MAX / 2;
const WHOLE_RECORDS_MAX: usize = 100_000;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu publish logs < /var/log/syslog
  quipu publish orders --create --format ndjson --key-field customer.id --type-field kind orders.ndjson
  quipu publish orders --format csv --key-field order_id --header-field source --tag-field region? orders.csv
  printf 'k1:hello\\nk2:world\\n' | quipu publish pairs --key-separator :
  tail -f app.log | quipu publish logs --durability written
  echo paid | quipu publish orders --key order-7 --expect-revision 3
  echo claimed | quipu publish seats --tag seat-12 --no-match tag=seat-12,after=200
  quipu publish orders --producer import-2026-07 --format ndjson orders.ndjson")]
pub(crate) struct PublishArgs {
    /// The topic.
    #[arg(required_unless_present = "topic_named", value_name = "TOPIC")]
    topic: Option<String>,
    /// The input. None or `-`: standard input.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The topic, if it is not the first argument.
    #[arg(short = 't', long = "topic", value_name = "TOPIC", id = "topic_named")]
    topic_named: Option<String>,
    /// Create the topic (and with --data the store) if it does not exist.
    #[arg(long)]
    create: bool,
    /// How the input is divided into records.
    #[arg(short = 'F', long, value_enum, default_value = "auto")]
    format: InputFormat,
    /// When a batch counts as published: `synced` survives a power cut, `written` a killed process, `accepted` nothing.
    #[arg(long, value_enum, default_value = "synced")]
    durability: DurabilityArg,
    /// The key of all records, written as it is shown: `\\` for a backslash, `\xHH` for a byte.
    #[arg(short, long, value_name = "KEY")]
    key: Option<Key>,
    /// Field with the key. `a.b` is field b in field a; `a?` may be missing. This goes for every --*-field.
    #[arg(long, value_name = "FIELD", conflicts_with_all = ["key", "key_separator"])]
    key_field: Option<FieldName>,
    /// Of lines: what comes before this is the key, what comes behind is the payload.
    #[arg(short = 'K', long, value_name = "TEXT", conflicts_with = "key")]
    key_separator: Option<String>,
    /// The type of all records.
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// Field with the type.
    #[arg(long, value_name = "FIELD", conflicts_with = "kind")]
    type_field: Option<FieldName>,
    /// Field with the time of the event: RFC 3339 or milliseconds since the Unix epoch. It becomes the header `time`;
    /// the append time is given by the store.
    #[arg(long, value_name = "FIELD")]
    time_field: Option<FieldName>,
    /// Field with the id: 32 hexadecimal digits, as of a UUID.
    #[arg(long, value_name = "FIELD")]
    id_field: Option<FieldName>,
    /// Field that becomes the payload, instead of the whole entry. null is a tombstone.
    #[arg(long, value_name = "FIELD")]
    payload_field: Option<FieldName>,
    /// Seal all payloads with this erasure key: `quipu erase` makes them unreadable for good.
    #[arg(long, value_name = "KEY")]
    erasure_key: Option<String>,
    /// Field with the erasure key.
    #[arg(long, value_name = "FIELD", conflicts_with = "erasure_key")]
    erasure_key_field: Option<FieldName>,
    /// A header of all records. May be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,
    /// A header from a field: `source`, or `origin=source` for another name. May be given several times.
    #[arg(long = "header-field", value_name = "[NAME=]FIELD", value_parser = parse_header_field)]
    header_fields: Vec<(String, FieldName)>,
    /// A tag of all records. May be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// Field with a tag, or a list of tags. May be given several times.
    #[arg(long = "tag-field", value_name = "FIELD")]
    tag_fields: Vec<FieldName>,
    /// Media type of the payloads.
    #[arg(long, value_name = "TYPE", default_value = "", hide_default_value = true)]
    content_type: String,
    /// Pass over entries that are no records, and count them.
    #[arg(long)]
    skip_invalid: bool,
    /// Pass over the first N entries: those that were published before. Only with one input.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    skip: u64,
    /// Send a batch when it has so many bytes.
    #[arg(long, value_name = "SIZE", default_value = "256KiB")]
    batch_bytes: Size,
    /// Send a batch when it has so many records.
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=100_000))]
    batch_records: u64,
    /// Refuse entries with more bytes.
    #[arg(long, value_name = "SIZE", default_value = "8MiB")]
    entry_bytes_max: Size,
    /// Publish only if this is the last revision of the key, which all records of the input have: a revision, `no-stream` (no
    /// record ever had it), `exists`, or `any`, which always holds. Checked with the first batch; input that could have other
    /// keys, because they are taken from it, is published as one append, or nothing of it is.
    #[arg(long, value_name = "REVISION", value_parser = parse_expected, conflicts_with = "dry_run")]
    expect_revision: Option<ExpectedRevision>,
    /// Publish only if this is the topic's next offset. Checked with the first batch.
    #[arg(long, value_name = "OFFSET", conflicts_with = "dry_run")]
    expect_next_offset: Option<u64>,
    /// Publish only if no record behind offset `after` (without it, none at all) has all of these: `tag=`, `type=`, `key=`; a
    /// name may come several times: of tags all, of types and keys any. May be given several times. Checked with the first
    /// batch.
    #[arg(long = "no-match", value_name = "NAME=VALUE,...", value_parser = parse_no_match, conflicts_with = "dry_run")]
    no_matches: Vec<Requirement>,
    /// Publish only if the topic has no higher fencing token, and raise the topic's to this: a writer with a lower one is
    /// shut out. Checked with each batch.
    #[arg(long, value_name = "N", conflicts_with = "dry_run")]
    fencing_token: Option<u64>,
    /// Publish the input exactly once under this name: when it is killed, run it again with the same name, input and batch
    /// sizes. Batches of a pipe are full, too.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["dry_run", "skip", "expect_revision", "expect_next_offset", "no_matches", "fencing_token"])]
    producer: Option<String>,
    /// Begin anew with another input, and shut out whoever publishes under a lower one: one more than `producers list` shows.
    #[arg(long, value_name = "N", requires = "producer")]
    producer_epoch: Option<u64>,
    /// Read and check the input, and publish nothing.
    #[arg(long)]
    dry_run: bool,
}

/// See [`pb::Durability`].
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum DurabilityArg {
    Synced,
    Written,
    Accepted,
}

impl From<DurabilityArg> for pb::Durability {
    fn from(durability: DurabilityArg) -> Self {
        match durability {
            DurabilityArg::Synced => Self::Synced,
            DurabilityArg::Written => Self::Written,
            DurabilityArg::Accepted => Self::Accepted,
        }
    }
}

pub(crate) fn parse_header(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write a header as NAME=VALUE".into()),
    }
}

fn parse_header_field(text: &str) -> Result<(String, FieldName), String> {
    let (name, field) = text.split_once('=').unwrap_or((text.strip_suffix('?').unwrap_or(text), text));
    if name.is_empty() {
        return Err("write it as FIELD or NAME=FIELD".into());
    }
    Ok((name.into(), field.parse()?))
}

impl PublishArgs {
    /// The topic, and the inputs.
    fn split(&mut self) -> (String, Vec<PathBuf>) {
        let mut files = std::mem::take(&mut self.files);
        let topic = match (self.topic_named.take(), self.topic.take()) {
            (Some(topic), first) => {
                files.splice(0..0, first.map(PathBuf::from));
                topic
            }
            (None, first) => first.unwrap_or_default(),
        };
        if files.is_empty() {
            files.push("-".into());
        }
        (topic, files)
    }

    fn mapping(&self) -> Mapping {
        let constant = pb::Record {
            key: self.key.as_ref().map(|key| key.0.clone()),
            r#type: self.kind.clone().unwrap_or_default(),
            tags: self.tags.clone(),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| pb::Header { name: name.clone(), value: value.clone().into() })
                .collect(),
            content_type: self.content_type.clone(),
            erasure_key: self.erasure_key.clone(),
            ..pb::Record::default()
        };
        Mapping {
            key: self.key_field.clone(),
            kind: self.type_field.clone(),
            time: self.time_field.clone(),
            id: self.id_field.clone(),
            payload: self.payload_field.clone(),
            erasure_key: self.erasure_key_field.clone(),
            tags: self.tag_fields.clone(),
            headers: self.header_fields.clone(),
            key_separator: self.key_separator.clone(),
            constant,
        }
    }

    fn check(&self, format: InputFormat) -> Result<()> {
        let has_fields = !self.mapping().fields().is_empty();
        let is_structured = matches!(format, InputFormat::Ndjson | InputFormat::Csv);
        if has_fields && !is_structured {
            return Err(Failure::usage("fields need --format ndjson or csv: other input has none"));
        }
        if self.key_separator.is_some() && is_structured {
            return Err(Failure::usage("--key-separator is for lines; use --key-field"));
        }
        if self.key_separator.as_deref() == Some("") {
            return Err(Failure::usage("--key-separator needs at least one character"));
        }
        if let Some(name) = &self.producer
            && (name.is_empty() || name.starts_with(TEMPORARY_PREFIX))
        {
            return Err(Failure::usage(
                "--producer needs a name that does not begin with ~: those are temporary",
            ));
        }
        if !(1..=64 << 20).contains(&self.entry_bytes_max.0) || !(1..=64 << 20).contains(&self.batch_bytes.0)
        {
            return Err(Failure::usage("--entry-bytes-max and --batch-bytes must be 1 to 64MiB"));
        }
        let conditions = self.no_matches.len()
            + usize::from(self.expect_revision.is_some())
            + usize::from(self.expect_next_offset.is_some());
        if conditions > REQUIREMENTS_MAX {
            return Err(Failure::usage(format!("an append has at most {REQUIREMENTS_MAX} conditions")));
        }
        Ok(())
    }
}

pub(crate) fn run(global: &Global, mut args: PublishArgs, out: &mut Output) -> Result<()> {
    let (topic, files) = args.split();
    if args.skip > 0 && files.len() > 1 {
        return Err(Failure::usage("--skip needs a single input"));
    }
    if args.producer.is_some() && files.len() > 1 {
        return Err(Failure::usage("--producer needs a single input"));
    }
    for file in &files {
        args.check(format_of(args.format, file))?;
        look_at(file)?;
    }
    let begun = Instant::now();
    let backend = if args.dry_run { None } else { Some(global.backend()?) };
    let (publisher, published): (Box<dyn Publisher + '_>, _) = match &backend {
        Some(backend) => open(&**backend, &topic, &args)?,
        None => (Box::new(NoPublisher::default()), 0),
    };
    let bar = bytes_bar(out, total_bytes(&files));
    let shared = Rc::new(RefCell::new(Batcher::new(publisher, published, &args, bar.clone())));
    let outcome = files.iter().try_for_each(|file| publish_file(&shared, file, &args, out));
    let batcher = &mut *shared.borrow_mut();
    // Also after a failure: what was handed over before it may still be acknowledged.
    let finished = if outcome.is_err() && (batcher.is_named || batcher.is_whole) {
        // What is left of the input would make the batch a full one, or may have the key that is expected.
        batcher.publisher.finish()
    } else {
        batcher.finish().and_then(|()| batcher.check_published())
    };
    bar.finish_and_clear();
    let done = batcher.publisher.acknowledged();
    let outcome = outcome.and(finished).map_err(|failure| match (&args.producer, files.len()) {
        (Some(name), _) => explain_named(failure, name),
        (None, 1) => batcher.explain(failure, args.skip),
        (None, _) => failure,
    });
    let outcome =
        outcome.and_then(|()| backend.as_ref().map_or(Ok(()), |backend| close(&**backend, &args, out)));
    if outcome.is_ok() || done.records > 0 {
        report(out, &topic, &args, done, batcher, begun)?;
    }
    outcome
}

/// Says how to go on after a failure of a publisher that has a name.
fn explain_named(mut failure: Failure, name: &str) -> Failure {
    // What says already what to do about it.
    if failure.exit == Exit::Ok || failure.reason == "APPENDED_BEFORE" {
        return failure;
    }
    let go_on = match &*failure.reason {
        "REQUEST_ID_REUSED" => format!(
            "what producer {name} published is not this input in these batches; for another input take another name or a higher --producer-epoch"
        ),
        "PRODUCER_FENCED" => "somebody publishes under a higher epoch".to_owned(),
        // The next run finds out what is there: nobody has to look before.
        "OUTCOME_UNKNOWN" => {
            failure.hint = None;
            "the same command finds out what is published, and goes on behind it".to_owned()
        }
        _ => "the same command goes on where this one ended".to_owned(),
    };
    failure.hint = Some(match failure.hint {
        Some(hint) => format!("{hint}; {go_on}"),
        None => go_on,
    });
    failure
}

/// What was acknowledged is there, whatever keeps the store from being closed in order; only what was merely accepted may
/// not be.
fn close(backend: &dyn Backend, args: &PublishArgs, out: &Output) -> Result<()> {
    match backend.close() {
        Err(failure) if !matches!(args.durability, DurabilityArg::Accepted) => {
            out.warn(format_args!(
                "the records are published, but the store was not closed in order: {}; whoever opens it next recovers",
                Shown(&failure.message)
            ));
            Ok(())
        }
        outcome => outcome,
    }
}

/// Where to publish, and how many batches of the input are published already.
fn open<'a>(
    backend: &'a dyn Backend,
    topic: &str,
    args: &PublishArgs,
) -> Result<(Box<dyn Publisher + 'a>, u64)> {
    if args.create {
        match backend.create_topic(topic, pb::TopicSettings::default()) {
            Err(failure) if failure.reason != "TOPIC_EXISTS" => return Err(failure),
            _ => {}
        }
    }
    let with_hint = |mut failure: Failure| {
        if matches!(&*failure.reason, "TOPIC_NOT_FOUND" | "NO_STORE") {
            failure.hint = Some("--create creates what is missing".into());
        }
        failure
    };
    let (producer, published) = match &args.producer {
        Some(name) => {
            let known = backend.producer(name).map_err(with_hint)?;
            let (at, published) = place(name, args.producer_epoch, known);
            (Some(at), published)
        }
        None => (None, 0),
    };
    let mut publisher = backend.publisher(topic, args.durability.into(), producer).map_err(with_hint)?;
    if let Some(token) = args.fencing_token {
        publisher.fence(token);
    }
    Ok((publisher, published))
}

/// Where a producer goes on: with the last batch that it has published, which is looked at once more.
fn place(name: &str, epoch: Option<u64>, known: Option<pb::ProducerState>) -> (ProducerAt, u64) {
    let known_epoch = known.as_ref().map_or(0, |known| known.epoch);
    let epoch = epoch.unwrap_or(known_epoch);
    let last = known.filter(|known| known.epoch == epoch).map(|known| known.last_sequence);
    let at = ProducerAt { name: name.to_owned(), epoch, next_sequence: last.unwrap_or(0) };
    (at, last.map_or(0, |last| last.saturating_add(1)))
}

/// Finds out before anything is published that an input is not there or cannot be read. A pipe is opened only once.
fn look_at(path: &Path) -> Result<()> {
    if path == Path::new("-") {
        return Ok(());
    }
    let look = || match std::fs::metadata(path)? {
        metadata if metadata.is_file() => File::open(path).map(drop),
        metadata if metadata.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        _ => Ok(()),
    };
    look().map_err(|error: io::Error| Failure::file("open", Shown(&path.display().to_string()), &error))
}

fn format_of(format: InputFormat, path: &Path) -> InputFormat {
    match format {
        InputFormat::Auto => InputFormat::of_path(path),
        format => format,
    }
}

/// Of all files together; `None` if one of them is none.
fn total_bytes(files: &[PathBuf]) -> Option<u64> {
    files
        .iter()
        .map(|file| std::fs::metadata(file).ok().filter(std::fs::Metadata::is_file).map(|file| file.len()))
        .sum()
}

fn publish_file(shared: &Shared<'_>, path: &Path, args: &PublishArgs, out: &Output) -> Result<()> {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    let bar = shared.borrow().bar.clone();
    let on_wait = {
        // The batcher holds no feed: nothing keeps itself alive.
        let shared = Rc::clone(shared);
        Box::new(move || {
            shared.borrow_mut().flush_for_wait().map_err(|()| io::Error::other("publishing failed"))
        })
    };
    let feed = if path == Path::new("-") {
        Feed::new(bar.wrap_read(io::stdin()), on_wait)
    } else {
        let open = |path| {
            let file = File::open(path)?;
            if file.metadata()?.is_dir() { Err(io::ErrorKind::IsADirectory.into()) } else { Ok(file) }
        };
        let file = open(path).map_err(|error| Failure::file("open", Shown(&name), &error))?;
        Feed::new(bar.wrap_read(file), on_wait)
    };
    let entry_bytes_max = usize::try_from(args.entry_bytes_max.0).unwrap_or(usize::MAX);
    let mut entries = entries(format_of(args.format, path), feed, args.mapping(), entry_bytes_max);
    let mut count = 0;
    while let Some(next) = entries.next() {
        if let Some(failure) = shared.borrow_mut().failure.take() {
            return Err(failure);
        }
        count += 1;
        if count <= args.skip {
            continue;
        }
        match next {
            Ok(record) => match check(&record) {
                Ok(()) => shared.borrow_mut().push(record)?,
                Err(message) => refuse(shared, &name, &*entries, &message, true, args, out)?,
            },
            Err(invalid) => refuse(shared, &name, &*entries, &invalid.message, invalid.can_go_on, args, out)?,
        }
    }
    // The input may have ended because of it.
    shared.borrow_mut().failure.take().map_or(Ok(()), Err)
}

/// What the engine would refuse: here the line can still be named.
fn check(record: &pb::Record) -> Result<(), String> {
    use quipu_storage::format::record::limit;
    let bound = |what: &str, actual: usize, limit: usize| {
        if actual > limit {
            Err(format!("its {what} has {actual} bytes, the limit is {limit}"))
        } else {
            Ok(())
        }
    };
    let count = |what: &str, actual: usize, limit: usize| {
        if actual > limit { Err(format!("it has {actual} {what}, the limit is {limit}")) } else { Ok(()) }
    };
    bound("key", record.key.as_ref().map_or(0, bytes::Bytes::len), limit::KEY_BYTES_MAX)?;
    bound("type", record.r#type.len(), limit::TYPE_BYTES_MAX)?;
    bound("content type", record.content_type.len(), limit::CONTENT_TYPE_BYTES_MAX)?;
    count("tags", record.tags.len(), limit::TAGS_MAX)?;
    for tag in &record.tags {
        bound("tag", tag.len(), limit::TAG_BYTES_MAX)?;
    }
    count("headers", record.headers.len(), limit::HEADERS_MAX)?;
    for header in &record.headers {
        bound("header name", header.name.len(), limit::HEADER_NAME_BYTES_MAX)?;
        bound("header value", header.value.len(), limit::HEADER_VALUE_BYTES_MAX)?;
    }
    // An append adds a tag and a length to it.
    let (actual, most) = (record.encoded_len() as u64, ENTRY_BYTES_MAX - 16);
    if actual > most { Err(format!("the record has {actual} bytes, the limit is {most}")) } else { Ok(()) }
}

fn refuse(
    shared: &Shared<'_>,
    name: &str,
    entries: &dyn Entries,
    message: &str,
    can_go_on: bool,
    args: &PublishArgs,
    out: &Output,
) -> Result<()> {
    if args.skip_invalid && can_go_on {
        shared.borrow_mut().skipped += 1;
        out.note(format_args!(
            "{}, {} {}: {}",
            Shown(name),
            entries.noun(),
            entries.number(),
            Shown(message)
        ));
        return Ok(());
    }
    let failure = Failure::input(format!("{name}, {} {}: {message}", entries.noun(), entries.number()));
    Err(if can_go_on {
        failure.hint("--skip-invalid passes over entries that are no records")
    } else {
        failure
    })
}

fn report(
    out: &mut Output,
    topic: &str,
    args: &PublishArgs,
    done: Acknowledged,
    batcher: &Batcher<'_>,
    begun: Instant,
) -> Result<()> {
    // The batch that was looked at once more is not published by this run.
    let repeated = batcher.repeated_records.min(done.records);
    let first_offset = done.first_offset.map(|first| first + repeated).filter(|_| done.records > repeated);
    let done = Acknowledged { records: done.records - repeated, first_offset, ..done };
    if out.is_json {
        return out.json(&serde_json::json!({
            "topic": topic,
            "records": done.records,
            "published_before": batcher.left_out_records,
            "invalid": batcher.skipped,
            "first_offset": done.first_offset,
            "next_offset": done.first_offset.map(|_| done.next_offset),
            "dry_run": args.dry_run,
        }));
    }
    let seconds = begun.elapsed().as_secs_f64().max(1e-6);
    let rate = grouped((done.records as f64 / seconds) as u64);
    let records = counted(done.records, "record");
    let what = if args.dry_run {
        format!("{records} could be published to topic {}; this was a dry run: none was", Shown(topic))
    } else {
        format!("published {records}, topic {}", Shown(topic))
    };
    let offsets = match done.first_offset {
        Some(first) if first + 1 == done.next_offset => format!(", offset {first}"),
        Some(first) => format!(", offsets {first} to {}", done.next_offset - 1),
        None => String::new(),
    };
    let invalid = match batcher.skipped {
        0 => String::new(),
        count => format!(", {count} passed over"),
    };
    let before = match batcher.left_out_records {
        0 => String::new(),
        count => format!(", {count} published before"),
    };
    out.note(format_args!(
        "{what}{offsets} ({}, {rate}/s){invalid}{before}",
        about_bytes(batcher.bytes_total)
    ));
    Ok(())
}

type Shared<'a> = Rc<RefCell<Batcher<'a>>>;

/// Gathers records into batches and hands them over.
struct Batcher<'a> {
    publisher: Box<dyn Publisher + 'a>,
    batch: Vec<pb::Record>,
    bytes: u64,
    bytes_max: u64,
    records_max: usize,
    bytes_total: u64,
    /// Entries that were no records.
    skipped: u64,
    /// For each batch that was handed over: records up to its end, and entries passed over by then.
    handed_over: VecDeque<(u64, u64)>,
    records_total: u64,
    /// Batches are the same whenever the input is given.
    is_named: bool,
    /// Batches that are published already and still to come; the last of them is handed over all the same.
    published: u64,
    /// Records of those.
    left_out_records: u64,
    /// Of those, the records of the batch that was handed over all the same.
    repeated_records: u64,
    /// What the first batch is published under.
    requirements: Vec<Requirement>,
    /// Of the key, which all have.
    expect_revision: Option<ExpectedRevision>,
    one_key: Option<Option<bytes::Bytes>>,
    /// All of the input is one batch: only at its end is it known to be of one key.
    is_whole: bool,
    /// What failed while the input was waited for.
    failure: Option<Failure>,
    /// Over the bytes of the input, which is read a little ahead.
    bar: ProgressBar,
}

impl<'a> Batcher<'a> {
    fn new(publisher: Box<dyn Publisher + 'a>, published: u64, args: &PublishArgs, bar: ProgressBar) -> Self {
        Self {
            publisher,
            batch: Vec::new(),
            bytes: 0,
            bytes_max: args.batch_bytes.0,
            records_max: usize::try_from(args.batch_records).unwrap_or(usize::MAX),
            bytes_total: 0,
            skipped: 0,
            handed_over: VecDeque::new(),
            records_total: 0,
            is_named: args.producer.is_some(),
            published,
            left_out_records: 0,
            repeated_records: 0,
            requirements: {
                let next_offset = args.expect_next_offset.map(Requirement::NextOffset);
                next_offset.into_iter().chain(args.no_matches.iter().cloned()).collect()
            },
            expect_revision: args.expect_revision,
            one_key: None,
            is_whole: args.expect_revision.is_some()
                && (args.key_field.is_some() || args.key_separator.is_some()),
            failure: None,
            bar,
        }
    }

    fn push(&mut self, record: pb::Record) -> Result<()> {
        if self.expect_revision.is_some() {
            self.check_key(&record)?;
        }
        let bytes = record.encoded_len() as u64;
        if self.is_whole {
            self.check_room(bytes)?;
        } else if self.bytes + bytes > ENTRY_BYTES_MAX / 2 {
            self.flush()?;
        }
        self.bytes += bytes;
        self.bytes_total += bytes;
        self.batch.push(record);
        if !self.is_whole && (self.bytes >= self.bytes_max || self.batch.len() >= self.records_max) {
            self.flush()?;
        }
        Ok(())
    }

    /// With --expect-revision the input is of one key.
    fn check_key(&mut self, record: &pb::Record) -> Result<()> {
        let key = &record.key;
        if key.is_none() {
            return Err(Failure::usage(
                "--expect-revision needs records with a key: give --key or --key-field",
            ));
        }
        if self.one_key.get_or_insert_with(|| key.clone()) != key {
            return Err(Failure::usage("--expect-revision is for input of one key, and here is another one"));
        }
        Ok(())
    }

    /// Input that is one append has to fit into one.
    fn check_room(&self, bytes: u64) -> Result<()> {
        let is_first = self.batch.is_empty();
        if is_first || (self.bytes + bytes <= WHOLE_BYTES_MAX && self.batch.len() < WHOLE_RECORDS_MAX) {
            return Ok(());
        }
        let message = format!(
            "--expect-revision publishes input that its keys are taken from as one append, which has at most {} and {}",
            counted(WHOLE_RECORDS_MAX as u64, "record"),
            about_bytes(WHOLE_BYTES_MAX),
        );
        Err(Failure::usage(message).hint("nothing was published; with --key there is no such limit"))
    }

    /// What the first batch is published under.
    fn requirements(&mut self) -> Vec<Requirement> {
        let of_key = self.one_key.clone().flatten().zip(self.expect_revision);
        let of_key = of_key.map(|(key, expected)| Requirement::Revision { key: key.to_vec(), expected });
        of_key.into_iter().chain(std::mem::take(&mut self.requirements)).collect()
    }

    fn flush(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.bytes = 0;
        let batch = std::mem::take(&mut self.batch);
        if self.published > 0 {
            self.published -= 1;
            self.left_out_records += batch.len() as u64;
            if self.published > 0 {
                return Ok(());
            }
            self.repeated_records = batch.len() as u64;
        }
        if self.handed_over.is_empty() {
            let requirements = self.requirements();
            self.publisher.require(requirements);
        }
        self.records_total += batch.len() as u64;
        self.handed_over.push_back((self.records_total, self.skipped));
        let outcome = self.publisher.submit(batch);
        let done = self.publisher.acknowledged().records;
        // The last one that is wholly acknowledged stays: it says where to go on.
        while self.handed_over.get(1).is_some_and(|(records, _)| *records <= done) {
            self.handed_over.pop_front();
        }
        outcome
    }

    /// Before waiting for input: everything so far is published and acknowledged.
    fn flush_for_wait(&mut self) -> Result<(), ()> {
        if self.is_named || self.is_whole {
            return Ok(());
        }
        let outcome = self.flush().and_then(|()| self.publisher.finish());
        outcome.map_err(|failure| self.failure = Some(failure))
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        self.publisher.finish()
    }

    /// At the end of the input: whether it was all of what is published.
    fn check_published(&self) -> Result<()> {
        if self.published == 0 {
            return Ok(());
        }
        let message = format!("the input ends {} before what is published", batches(self.published));
        Err(Failure::new(Exit::Conflict, "REQUEST_ID_REUSED", message))
    }

    /// Says how to go on after a failure.
    fn explain(&self, mut failure: Failure, skipped_before: u64) -> Failure {
        let done = self.publisher.acknowledged().records;
        if failure.exit == Exit::Ok || done == 0 {
            return failure;
        }
        let reached = self.handed_over.iter().rev().find(|(records, _)| *records <= done);
        let skipped = reached.map_or(self.skipped, |(_, skipped)| *skipped);
        let skip = skipped_before + done + skipped;
        // Where it is not known what is there, to skip what is known to be may publish the rest twice.
        let go_on = if failure.exit == Exit::Unavailable && failure.reason == "OUTCOME_UNKNOWN" {
            format!("records known to be published: {done}")
        } else {
            format!("records published before: {done}; --skip {skip} goes on behind them")
        };
        failure.hint = Some(match failure.hint {
            Some(hint) => format!("{hint}; {go_on}"),
            None => go_on,
        });
        failure
    }
}

/// Counts what would be published.
#[derive(Default)]
struct NoPublisher(u64);

impl Publisher for NoPublisher {
    fn require(&mut self, _requirements: Vec<Requirement>) {}

    fn fence(&mut self, _token: u64) {}

    fn submit(&mut self, records: Vec<pb::Record>) -> Result<()> {
        self.0 += records.len() as u64;
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        Ok(())
    }

    fn acknowledged(&self) -> Acknowledged {
        Acknowledged { records: self.0, first_offset: None, next_offset: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever has a name was told to read the topic first, and in the same breath that he need not.
    #[test]
    fn a_publisher_with_a_name_is_told_one_thing_to_do() {
        let doubt = Failure::new(Exit::Unavailable, "OUTCOME_UNKNOWN", "nobody knows").hint("read the topic");
        let hint = explain_named(doubt, "import").hint.unwrap();
        assert!(!hint.contains("read") && hint.contains("the same command"), "{hint}");
        let before = Failure::from(quipu_client::Error::AppendedBefore);
        let hint = explain_named(before, "import").hint.unwrap();
        assert_eq!(hint.matches("the same command").count(), 1, "{hint}");
        let away = Failure::new(Exit::Unavailable, "UNREACHABLE", "gone").hint("start a server");
        let hint = explain_named(away, "import").hint.unwrap();
        assert!(hint.starts_with("start a server; the same command"), "{hint}");
    }
}
