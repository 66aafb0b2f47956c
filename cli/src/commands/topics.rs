//! `quipu topics`: everything about topics but their records.

mod settings;
mod upkeep;

use clap::{Args, Subcommand};
use quipu_proto::v1 as pb;
use serde_json::{Value, json};

use crate::args::Global;
use crate::backend::Backend;
use crate::exit::{Failure, Result};
use crate::output::{Output, Shown};
use crate::position::Position;
use crate::units::{Size, Span, about_bytes, counted, grouped, time_text};
use settings::{AlterArgs, SettingsArgs};
pub(crate) use settings::{settings_from_json, settings_json};
use upkeep::{CompactArgs, VerifyArgs};

#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:
  quipu topics create orders --retention-age-max 30d --codec lz4
  quipu topics create prices --compact --compaction-lag-min 1h
  quipu topics alter orders --retention-bytes-max 10GiB --retention-age-max none
  quipu topics trim orders --before 7d
  quipu topics compact prices --dry-run"
)]
pub(crate) struct TopicsArgs {
    #[command(subcommand)]
    command: TopicsCommand,
}

#[derive(Debug, Subcommand)]
enum TopicsCommand {
    /// Create a topic.
    #[command(after_help = "Examples:
  quipu topics create orders --retention-age-max 30d --codec lz4
  quipu topics create prices --compact --compaction-lag-min 1h --if-missing
  quipu topics create recent --memory 64MiB")]
    Create {
        /// 1 to 255 of A-Z a-z 0-9 . _ -, in levels separated by /.
        topic: String,
        /// Do nothing if it exists already.
        #[arg(long)]
        if_missing: bool,
        #[command(flatten)]
        settings: SettingsArgs,
    },
    /// List topics by name.
    #[command(visible_alias = "ls")]
    #[command(after_help = "Examples:
  quipu topics list
  quipu topics list eu/ --json | jq -r .name")]
    List {
        /// Only names that begin so.
        #[arg(default_value = "", hide_default_value = true)]
        prefix: String,
    },
    /// Show a topic's settings, bounds, size, and what retention and compaction did last.
    #[command(after_help = "Examples:
  quipu topics describe orders
  quipu topics describe orders --json | jq .settings")]
    Describe {
        /// The topic.
        topic: String,
    },
    /// Change settings. What is not named stays; `none` takes a setting back to its default.
    Alter(AlterArgs),
    /// Delete a topic with all its records, for good.
    #[command(after_help = "Examples:
  quipu topics delete orders
  quipu topics delete orders --if-exists")]
    Delete {
        /// The topic.
        topic: String,
        /// Do nothing if there is none.
        #[arg(long)]
        if_exists: bool,
    },
    /// Remove the records before an offset or time, for good.
    #[command(after_help = "Examples:
  quipu topics trim orders --before 1500     # 1500 is the first one that stays
  quipu topics trim orders --before 7d
  quipu topics trim orders --before -1000    # the last thousand stay")]
    Trim {
        /// The topic.
        topic: String,
        /// The first record that stays: an offset, a time, a duration ago, -N for the last N, or latest for none.
        #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
        before: Position,
    },
    /// Keep the latest records of each key, now.
    Compact(CompactArgs),
    /// Look at every checksum and offset of a topic.
    Verify(VerifyArgs),
}

pub(crate) fn run(global: &Global, args: TopicsArgs, out: &mut Output) -> Result<()> {
    let backend = global.backend()?;
    let backend = &*backend;
    match args.command {
        TopicsCommand::Create { topic, if_missing, settings } => {
            create(backend, &topic, if_missing, &settings, out)
        }
        TopicsCommand::List { prefix } => list(backend, &prefix, out),
        TopicsCommand::Describe { topic } => describe(backend, &topic, out),
        TopicsCommand::Alter(args) => alter(backend, &args, out),
        TopicsCommand::Delete { topic, if_exists } => match backend.delete_topic(&topic) {
            Err(failure) if if_exists && failure.reason == "TOPIC_NOT_FOUND" => deleted(&topic, false, out),
            Err(failure) => Err(failure),
            Ok(()) => deleted(&topic, true, out),
        },
        TopicsCommand::Trim { topic, before } => trim(backend, &topic, before, out),
        TopicsCommand::Compact(args) => upkeep::compact(backend, args, out),
        TopicsCommand::Verify(args) => upkeep::verify(backend, &args, out),
    }?;
    backend.close()
}

fn deleted(name: &str, is_deleted: bool, out: &mut Output) -> Result<()> {
    if out.is_json {
        return out.json(&json!({"topic": name, "deleted": is_deleted}));
    }
    if is_deleted {
        out.note(format_args!("deleted {}", Shown(name)));
    }
    Ok(())
}

fn create(
    backend: &dyn Backend,
    name: &str,
    if_missing: bool,
    settings: &SettingsArgs,
    out: &mut Output,
) -> Result<()> {
    let topic = match backend.create_topic(name, settings.settings()) {
        Err(failure) if if_missing && failure.reason == "TOPIC_EXISTS" => {
            if out.is_json {
                out.json(&topic_json(&backend.topic(name)?))?;
            }
            return Ok(());
        }
        outcome => outcome?,
    };
    if out.is_json {
        return out.json(&topic_json(&topic));
    }
    out.note(format_args!("created {}", Shown(&topic.name)));
    Ok(())
}

fn alter(backend: &dyn Backend, args: &AlterArgs, out: &mut Output) -> Result<()> {
    let mut settings = backend.topic(&args.topic)?.settings.unwrap_or_default();
    let paths = args.change(&mut settings)?;
    if paths.is_empty() {
        return Err(Failure::usage("name at least one setting to change"));
    }
    let topic = backend.update_topic(&args.topic, settings, &paths)?;
    if out.is_json {
        return out.json(&topic_json(&topic));
    }
    out.note(format_args!("changed {}: {}", Shown(&topic.name), paths.join(", ")));
    Ok(())
}

fn list(backend: &dyn Backend, prefix: &str, out: &mut Output) -> Result<()> {
    if out.is_json {
        return backend.topics(prefix, &mut |topic| out.json(&topic_json(&topic)));
    }
    let styles = out.styles;
    let (dim, strong) = (styles.dim, styles.strong);
    let mut is_first = true;
    // Line by line: there may be a hundred thousand.
    backend.topics(prefix, &mut |topic| {
        if std::mem::take(&mut is_first) {
            out.line(format_args!(
                "{dim}{:<32} {:>14} {:>14} {:>14}{dim:#}",
                "TOPIC", "RECORDS", "FIRST OFFSET", "NEXT OFFSET"
            ))?;
        }
        let records = grouped(topic.log_end_offset.saturating_sub(topic.log_start_offset));
        let (first, next) = (topic.log_start_offset, topic.log_end_offset);
        out.line(format_args!("{strong}{:<32}{strong:#} {records:>14} {first:>14} {next:>14}", topic.name))
    })?;
    if is_first && !prefix.is_empty() {
        out.note(format_args!("there is no topic whose name begins with {}", Shown(prefix)));
    } else if is_first {
        out.note("there are no topics; `quipu topics create NAME` makes one");
    }
    Ok(())
}

fn trim(backend: &dyn Backend, name: &str, before: Position, out: &mut Output) -> Result<()> {
    let offset = match before {
        Position::Offset(offset) => offset,
        position => backend.offset_of(name, position)?,
    };
    let log_start_offset = backend.trim_topic(name, offset)?;
    if out.is_json {
        return out.json(&json!({"topic": name, "log_start_offset": log_start_offset}));
    }
    out.note(format_args!("{} starts at offset {log_start_offset} now", Shown(name)));
    Ok(())
}

/// A topic as JSON.
pub(crate) fn topic_json(topic: &pb::Topic) -> Value {
    let uid: String = topic.uid.iter().map(|byte| format!("{byte:02x}")).collect();
    json!({
        "name": topic.name,
        "uid": uid,
        "settings": topic.settings.as_ref().map(settings_json),
        "log_start_offset": topic.log_start_offset,
        "high_watermark": topic.high_watermark,
        "log_end_offset": topic.log_end_offset,
        "fencing_token": topic.fencing_token,
    })
}

fn describe(backend: &dyn Backend, name: &str, out: &mut Output) -> Result<()> {
    let status = backend.topic_status(name)?;
    let topic = status.topic.clone().unwrap_or_default();
    if out.is_json {
        let mut value = topic_json(&topic);
        if let Value::Object(object) = &mut value {
            object.insert("segments".into(), status.segments.into());
            object.insert("segment_bytes".into(), status.segment_bytes.into());
            object.insert("tail_bytes".into(), status.tail_bytes.into());
            object.insert("subscribers".into(), status.subscribers.into());
            let last = Some(status.last_append_time_ms).filter(|time| *time > 0);
            object.insert("last_append_time".into(), last.map(time_text).into());
            object.insert(
                "last_retention".into(),
                status.last_retention.as_ref().map(upkeep::retention_json).into(),
            );
            object.insert(
                "last_compaction".into(),
                status.last_compaction.as_ref().map(upkeep::report_json).into(),
            );
        }
        return out.json(&value);
    }
    let settings = topic.settings.unwrap_or_default();
    let mut row = |name: &str, value: String| {
        let dim = out.styles.dim;
        out.line(format_args!("{dim}{name:<24}{dim:#} {value}"))
    };
    let (first, high, next) = (topic.log_start_offset, topic.high_watermark, topic.log_end_offset);
    row("topic", Shown(&topic.name).to_string())?;
    row("offsets", format!("{first} to {next} (exclusive), synced up to {high}"))?;
    row("segments", format!("{} with {}", status.segments, about_bytes(status.segment_bytes)))?;
    row("in memory", about_bytes(status.tail_bytes))?;
    let last = status.last_append_time_ms;
    row("last append", if last == 0 { "none".into() } else { time_text(last) })?;
    row("subscribers", status.subscribers.to_string())?;
    if topic.fencing_token > 0 {
        row("fencing token", topic.fencing_token.to_string())?;
    }
    if let Some(memory) = &settings.memory {
        row("memory", Size(memory.bytes_max).to_string())?;
    }
    row("segment_bytes_max", Size(settings.segment_bytes_max).to_string())?;
    let span = |millis: u64| Span(std::time::Duration::from_millis(millis)).to_string();
    row("segment_age_max", span(settings.segment_age_max_ms))?;
    row("codec", settings::codec_name(settings.codec()).into())?;
    let retention = settings.retention.unwrap_or_default();
    let none = || "none".to_owned();
    row("retention.age_max", retention.age_max_ms.map_or_else(none, span))?;
    row("retention.bytes_max", retention.bytes_max.map_or_else(none, |bytes| Size(bytes).to_string()))?;
    row("retention.records_max", retention.records_max.map_or_else(none, grouped))?;
    match &settings.compaction {
        None => row("compaction", none())?,
        Some(compaction) => {
            row("compaction", format!("keeps {} of each key", compaction.records_per_key.unwrap_or(1)))?;
            row("compaction.lag_min", span(compaction.lag_min_ms.unwrap_or(0)))?;
            row("compaction.tombstone_age_max", compaction.tombstone_age_max_ms.map_or_else(none, span))?;
        }
    }
    if let Some(report) = &status.last_retention {
        let (time, to) = (time_text(report.time_ms), report.to);
        row(
            "last retention",
            format!("{time}: offsets {} to {to} (exclusive) went by {}", report.from, report.reason),
        )?;
    }
    if let Some(report) = &status.last_compaction {
        let removed: u64 = report.records_removed.values().sum();
        let (time, before) = (time_text(report.time_ms), counted(report.records_before, "record"));
        row("last compaction", format!("{time}: {} of {before} went", grouped(removed)))?;
    }
    Ok(())
}
