//! `quipu inspect`: draws the segments of a store's topics, as its last checkpoint has them.

use clap::Args;
use quipu_storage::format::checkpoint::{Checkpoint, TopicState};
use quipu_storage::{Storage, Store};
use serde_json::{Value, json};

use crate::args::Global;
use crate::exit::{Exit, Failure, Result};
use crate::output::Output;
use crate::units::{Size, Span, about_bytes, counted, grouped, now_ms, time_text};

/// Width of the largest segment's bar.
const BAR_CELLS: u64 = 24;
/// A checkpoint of the most topics there can be has fewer bytes.
const CHECKPOINT_BYTES_MAX: u64 = 4 << 30;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu inspect --data /var/lib/quipu
  quipu inspect --data /var/lib/quipu orders --json

The bar is the size of a segment; the share of records is what compaction left. What the last checkpoint does not
cover is in the journal and counted below the segments.")]
pub(crate) struct InspectArgs {
    /// Only this topic.
    topic: Option<String>,
}

/// A segment, sealed or active.
struct Row {
    base_offset: u64,
    next_offset: Option<u64>,
    records: Option<u64>,
    bytes: u64,
    first_time: u64,
    last_time: Option<u64>,
    rewrites: u32,
    /// The bound of retention that lets it go.
    goes_by: Option<&'static str>,
}

pub(crate) fn run(global: &Global, args: &InspectArgs, out: &mut Output) -> Result<()> {
    let dir = global.data_dir()?;
    // Says in good words what is wrong if it is no store; and has what the journal holds beyond the checkpoint.
    let store = Store::open_read_only(dir)?;
    let path = dir.join("checkpoint");
    let failed = |error: std::io::Error| Failure::file("read", path.display(), &error);
    if std::fs::metadata(&path).map_err(failed)?.len() > CHECKPOINT_BYTES_MAX {
        return Err(Failure::new(Exit::Damaged, "CORRUPT_FILE", format!("{} is too large", path.display())));
    }
    let bytes = std::fs::read(&path).map_err(failed)?;
    let checkpoint = Checkpoint::decode(&bytes)
        .map_err(|problem| {
            let message = format!("{} cannot be read: {problem:?}", path.display());
            Failure::new(Exit::Damaged, "CORRUPT_FILE", message)
        })?
        .checkpoint;
    let mut topics = checkpoint.topics;
    topics.sort_by(|a, b| a.name.cmp(&b.name));
    let is_wanted = |name: &str| args.topic.as_deref().is_none_or(|wanted| wanted == name);
    if let Some(name) = &args.topic {
        // Also one that was made since the checkpoint.
        store.topic(name)?;
    }
    let now = now_ms();
    for state in topics.iter().filter(|topic| is_wanted(topic.name.as_str())) {
        let end = store.topic(state.name.as_str()).map_or(state.next_offset, |topic| topic.log_end_offset());
        let rows = rows(state, now);
        if out.is_json {
            out.json(&topic_json(state, &rows, end.0))?;
        } else {
            draw(state, &rows, end.0, out)?;
        }
    }
    let is_new = |name: &str| !topics.iter().any(|topic| topic.name.as_str() == name);
    for topic in store
        .topics()
        .iter()
        .filter(|topic| is_wanted(topic.name().as_str()) && is_new(topic.name().as_str()))
    {
        let records = topic.log_end_offset() - topic.log_start_offset();
        if out.is_json {
            out.json(
                &json!({"topic": topic.name().as_str(), "segments": [], "records_in_journal": records}),
            )?;
        } else {
            out.line(format_args!(
                "{}: {} in the journal, none in segments yet\n",
                topic.name(),
                counted(records, "record")
            ))?;
        }
    }
    // There may be more behind the damage.
    store.stats().damage.map_or(Ok(()), |damage| Err(damage.into()))
}

fn rows(state: &TopicState, now: u64) -> Vec<Row> {
    let sealed = state.sealed.iter().map(|segment| Row {
        base_offset: segment.base_offset.0,
        next_offset: Some(segment.next_offset.0),
        records: Some(segment.record_count),
        bytes: segment.bytes,
        first_time: segment.first_time.0,
        last_time: Some(segment.last_time.0),
        rewrites: segment.rewrites,
        goes_by: None,
    });
    let active = state.active.iter().map(|segment| Row {
        base_offset: segment.base_offset.0,
        next_offset: None,
        records: None,
        bytes: segment.bytes,
        first_time: segment.first_time.0,
        last_time: None,
        rewrites: 0,
        goes_by: None,
    });
    let mut rows: Vec<Row> = sealed.chain(active).collect();
    mark_retention(state, now, &mut rows);
    rows
}

/// Oldest first, for as long as a bound is exceeded.
fn mark_retention(state: &TopicState, now: u64, rows: &mut [Row]) {
    let retention = &state.settings.retention;
    let mut bytes: u64 = rows.iter().map(|row| row.bytes).sum();
    let end = state.next_offset.0;
    for row in rows {
        let (Some(last_time), Some(next_offset)) = (row.last_time, row.next_offset) else { break };
        let age = std::time::Duration::from_millis(now.saturating_sub(last_time));
        row.goes_by = if retention.age_max.is_some_and(|max| age > max) {
            Some("age")
        } else if retention.bytes_max.is_some_and(|max| bytes > max) {
            Some("bytes")
        } else if retention
            .records_max
            .is_some_and(|max| end.saturating_sub(row.base_offset) > max && next_offset < end)
        {
            Some("records")
        } else {
            None
        };
        if row.goes_by.is_none() {
            break;
        }
        bytes = bytes.saturating_sub(row.bytes);
    }
}

fn draw(state: &TopicState, rows: &[Row], end: u64, out: &mut Output) -> Result<()> {
    let styles = out.styles;
    let (strong, dim, key, bad) = (styles.strong, styles.dim, styles.key, styles.bad);
    let bytes: u64 = rows.iter().map(|row| row.bytes).sum();
    out.line(format_args!(
        "{strong}{}{strong:#}  offsets {} to {end} (exclusive), {}, {}",
        state.name,
        state.log_start_offset,
        counted(rows.len() as u64, "segment"),
        about_bytes(bytes)
    ))?;
    out.line(format_args!("{dim}  {}{dim:#}", policies(state)))?;
    let largest = rows.iter().map(|row| row.bytes).max().unwrap_or(0).max(1);
    for row in rows {
        let cells = usize::try_from((row.bytes * BAR_CELLS).div_ceil(largest)).unwrap_or(0);
        let bar = "█".repeat(cells);
        let width = usize::try_from(BAR_CELLS).unwrap_or(0);
        let offsets = format!(
            "{}..{}",
            row.base_offset,
            row.next_offset.map(|next| next.to_string()).unwrap_or_default()
        );
        let kept = match (row.records, row.next_offset) {
            (Some(records), Some(next)) => {
                let span = next.saturating_sub(row.base_offset).max(1);
                format!("{} ({}%)", counted(records, "record"), records * 100 / span)
            }
            _ => "active".to_owned(),
        };
        let times = match row.last_time {
            Some(last) => format!("{} to {}", time_text(row.first_time), time_text(last)),
            None => format!("from {}", time_text(row.first_time)),
        };
        let rewritten =
            if row.rewrites > 0 { format!(", rewritten {}x", row.rewrites) } else { String::new() };
        let goes = row.goes_by.map(|bound| format!("  {bad}goes by {bound}{bad:#}")).unwrap_or_default();
        out.line(format_args!(
            "  {offsets:<24} {key}{bar}{key:#}{:pad$} {:>10}  {kept:<22} {dim}{times}{rewritten}{dim:#}{goes}",
            "",
            about_bytes(row.bytes),
            pad = width.saturating_sub(cells)
        ))?;
    }
    let waiting = in_journal(state, end);
    if waiting > 0 {
        let records = counted(waiting, "record");
        out.line(format_args!("  {records} in the journal, beyond the last checkpoint"))?;
    }
    out.line("")
}

/// Records that the checkpoint does not cover. Those of a topic in memory are in no file: what the journal has of it are
/// offsets that are reserved.
fn in_journal(state: &TopicState, end: u64) -> u64 {
    match state.settings.storage {
        Storage::Memory { .. } => 0,
        Storage::Disk => end.saturating_sub(state.next_offset.0),
    }
}

fn policies(state: &TopicState) -> String {
    let settings = &state.settings;
    let mut parts =
        vec![format!("sealed at {} or {}", Size(settings.segment_bytes_max), Span(settings.segment_age_max))];
    if let Storage::Memory { bytes_max } = settings.storage {
        parts.push(format!("in memory, {}", Size(bytes_max)));
    }
    let retention = &settings.retention;
    if let Some(age) = retention.age_max {
        parts.push(format!("retention by age {}", Span(age)));
    }
    if let Some(bytes) = retention.bytes_max {
        parts.push(format!("retention by bytes {}", Size(bytes)));
    }
    if let Some(records) = retention.records_max {
        parts.push(format!("retention by records {}", grouped(records)));
    }
    match &settings.compaction {
        Some(compaction) => {
            parts.push(format!("compaction keeps {} of each key", compaction.records_per_key))
        }
        None => parts.push("no compaction".into()),
    }
    parts.join("; ")
}

fn topic_json(state: &TopicState, rows: &[Row], end: u64) -> Value {
    let rows = rows.iter().map(|row| {
        json!({
            "base_offset": row.base_offset,
            "next_offset": row.next_offset,
            "records": row.records,
            "bytes": row.bytes,
            "first_time": time_text(row.first_time),
            "last_time": row.last_time.map(time_text),
            "rewrites": row.rewrites,
            "active": row.next_offset.is_none(),
            "goes_by": row.goes_by,
        })
    });
    json!({
        "topic": state.name.as_str(),
        "directory": state.id.to_string(),
        "log_start_offset": state.log_start_offset.0,
        "log_end_offset": end,
        "records_in_journal": in_journal(state, end),
        "segments": rows.collect::<Vec<_>>(),
    })
}
