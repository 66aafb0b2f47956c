//! `quipu snapshot`: what a stream comes to, kept so that not all of it must be read.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use quipu_client::SnapshotPut;
use quipu_proto::v1 as pb;
use serde_json::json;

use super::publish::{DurabilityArg, parse_header};
use super::show::FormatArgs;
use crate::args::Global;
use crate::backend::Backend;
use crate::exit::{Exit, Failure, Result};
use crate::key::{Key, put_key};
use crate::output::{Output, Shown};

/// More is in no append.
const SNAPSHOT_BYTES_MAX: u64 = 64 << 20;

#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:
  quipu snapshot put accounts --key anna --revision 41 state.json
  quipu snapshot get accounts --key anna --raw
  quipu read accounts --key anna --from-snapshot"
)]
pub(crate) struct SnapshotArgs {
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Keep a file as the snapshot of a stream up to a revision. Nothing is stored if there is a later one.
    Put(PutArgs),
    /// Print the latest snapshot of a stream.
    Get(GetArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu snapshot put accounts --key anna --revision 41 state.json
  echo '{\"balance\":7}' | quipu snapshot put accounts --key anna --revision 41 --type Account.v2

Snapshots of TOPIC are records of the topic TOPIC.snapshots, which the first one makes.")]
pub(crate) struct PutArgs {
    /// The topic of the stream.
    topic: String,
    /// The snapshot, all of it. None or `-`: standard input.
    #[arg(value_name = "FILE", default_value = "-", hide_default_value = true)]
    file: PathBuf,
    /// The key of the stream, written as it is shown.
    #[arg(short, long, value_name = "KEY")]
    key: Key,
    /// The last revision that the snapshot covers.
    #[arg(long, value_name = "N")]
    revision: u64,
    /// Its type: best one that names the form.
    #[arg(long = "type", value_name = "TYPE", default_value = "", hide_default_value = true)]
    kind: String,
    /// A tag. May be given several times.
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<String>,
    /// A header. May be given several times.
    #[arg(short = 'H', long = "header", value_name = "NAME=VALUE", value_parser = parse_header)]
    headers: Vec<(String, String)>,
    /// Its media type.
    #[arg(long, value_name = "TYPE", default_value = "", hide_default_value = true)]
    content_type: String,
    /// When it counts as kept: `synced` survives a power cut, `written` a killed process, `accepted` nothing.
    #[arg(long, value_enum, default_value = "synced")]
    durability: DurabilityArg,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu snapshot get accounts --key anna
  quipu snapshot get accounts --key anna --raw > state.json
  quipu snapshot get accounts --key anna --up-to 40 --json | jq .revision

It is printed as a record of the topic TOPIC.snapshots, but its revision is the last one that it covers.")]
pub(crate) struct GetArgs {
    /// The topic of the stream.
    topic: String,
    /// The key of the stream, written as it is shown.
    #[arg(short, long, value_name = "KEY")]
    key: Key,
    /// The latest one that covers nothing behind this revision. Old ones are pruned.
    #[arg(long, value_name = "N")]
    up_to: Option<u64>,
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn run(global: &Global, args: SnapshotArgs, out: &mut Output) -> Result<()> {
    match args.command {
        SnapshotCommand::Put(args) => put(global, args, out),
        SnapshotCommand::Get(args) => get(global, &args, out),
    }
}

/// The topic with a topic's snapshots.
pub(crate) fn topic_of(topic: &str) -> String {
    format!("{topic}.snapshots")
}

fn put(global: &Global, args: PutArgs, out: &mut Output) -> Result<()> {
    let PutArgs { topic, file, key, revision, kind, tags, headers, content_type, durability } = args;
    let payload = read_all(&file)?;
    let snapshot = pb::Record {
        key: Some(key.0.clone()),
        r#type: kind,
        tags,
        headers: headers.into_iter().map(|(name, value)| pb::Header { name, value: value.into() }).collect(),
        content_type,
        payload: Some(payload.into()),
        ..pb::Record::default()
    };
    let backend = global.backend()?;
    let outcome = backend.put_snapshot(&topic, revision, snapshot, durability.into())?;
    close(&*backend, durability, out)?;
    match outcome {
        outcome if out.is_json => {
            let mut line = json!({"topic": topic_of(&topic), "revision": revision});
            put_key(&key.0, &mut line);
            match outcome {
                SnapshotPut::Stored { offset } => line["offset"] = offset.into(),
                SnapshotPut::Superseded { revision: later } => line["superseded_by"] = later.into(),
            }
            out.json(&line)
        }
        SnapshotPut::Stored { offset } => {
            out.note(format_args!(
                "kept the snapshot of {key} up to revision {revision}, at offset {offset} of {}",
                Shown(&topic_of(&topic))
            ));
            Ok(())
        }
        SnapshotPut::Superseded { revision: later } => {
            out.note(format_args!("nothing was stored: there is a snapshot of {key} up to revision {later}"));
            Ok(())
        }
    }
}

/// What was acknowledged is there, whatever keeps the store from being closed in order.
fn close(backend: &dyn Backend, durability: DurabilityArg, out: &Output) -> Result<()> {
    match backend.close() {
        Err(failure) if !matches!(durability, DurabilityArg::Accepted) => {
            out.warn(format_args!(
                "the snapshot is kept, but the store was not closed in order: {}; whoever opens it next recovers",
                Shown(&failure.message)
            ));
            Ok(())
        }
        outcome => outcome,
    }
}

fn get(global: &Global, args: &GetArgs, out: &mut Output) -> Result<()> {
    let format = args.format.format(global.json)?;
    let backend = global.backend()?;
    let found = backend.snapshot(&args.topic, &args.key.0, args.up_to)?;
    let Some(snapshot) = found else {
        let what = match args.up_to {
            Some(up_to) => format!("no snapshot up to revision {up_to}"),
            None => "no snapshot".into(),
        };
        let message = format!("key {} of topic {} has {what}", args.key, args.topic);
        let hint = format!("`quipu streams {}` shows the keys there are", args.topic);
        return Err(Failure::new(Exit::NotFound, "SNAPSHOT_NOT_FOUND", message).hint(hint));
    };
    format.write(out, &topic_of(&args.topic), &snapshot)?;
    out.flush()?;
    backend.close()
}

fn read_all(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut take = |from: &mut dyn Read| from.take(SNAPSHOT_BYTES_MAX + 1).read_to_end(&mut bytes);
    let (name, outcome) = if path == Path::new("-") {
        ("standard input".to_owned(), take(&mut io::stdin().lock()))
    } else {
        (path.display().to_string(), File::open(path).and_then(|mut file| take(&mut file)))
    };
    outcome.map_err(|error| Failure::file("read", Shown(&name), &error))?;
    if bytes.len() as u64 > SNAPSHOT_BYTES_MAX {
        let message = format!("{name} has more than {SNAPSHOT_BYTES_MAX} bytes, which no append takes");
        return Err(Failure::new(Exit::Usage, "RECORD_TOO_LARGE", message));
    }
    Ok(bytes)
}
