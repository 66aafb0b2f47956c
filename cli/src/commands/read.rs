//! `quipu read`: a topic as it is now.

use clap::Args;

use super::show::{FilterArgs, FormatArgs, print, warn_of_unsynced};
use super::snapshot;
use crate::args::Global;
use crate::backend::{Backend, Direction, ReadSpec, Step};
use crate::exit::{Exit, Failure, Result};
use crate::format::Format;
use crate::output::Output;
use crate::position::Position;
use crate::template::Template;

#[derive(Debug, Args)]
#[command(after_help = "Positions:
  earliest | latest | 1500 (offset) | -10 (the last 10) | 2h (ago) | 2026-11-22T09:00Z | @1795338000000 (ms)

Examples:
  quipu read orders
  quipu read orders --from 2h --type placed --json | jq -r .payload
  quipu read orders --from -10 -f '%o %k %v\\n'
  quipu read orders --from 1000 --until 2000 --raw > thousand.ndjson
  quipu read orders --reverse --count 1 --key order-7
  quipu read orders --key order-7 --revision 3 -f '%r %y %v\\n'
  quipu read accounts --key anna --from-snapshot")]
pub(crate) struct ReadArgs {
    /// The topic.
    #[arg(required_unless_present = "topic_named", value_name = "TOPIC")]
    topic: Option<String>,
    /// The topic, if it is not the first argument.
    #[arg(short = 't', long = "topic", value_name = "TOPIC", id = "topic_named", conflicts_with = "topic")]
    topic_named: Option<String>,
    /// Where to start. Default: earliest; with --reverse: latest.
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    from: Option<Position>,
    /// Start at this revision of the one --key; with --reverse, go back from it.
    #[arg(long, value_name = "N", requires = "keys", conflicts_with = "from")]
    revision: Option<u64>,
    /// Print the latest snapshot of the one --key first, and then the records behind it. Without a snapshot: all. With
    /// --until it is the latest that covers nothing from there on; with --count it counts as a record.
    #[arg(long, requires = "keys", conflicts_with_all = ["from", "revision", "reverse", "from_beginning", "types", "tags", "headers"])]
    from_snapshot: bool,
    /// Start at the first record there is.
    #[arg(long, conflicts_with = "from", hide = true)]
    from_beginning: bool,
    /// Where to end: before that offset, or before the first record at that time. Default: the end as it is now.
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    until: Option<Position>,
    /// At most N records.
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// From the end to the start. --from is then the last record wanted, --until the first.
    #[arg(short, long)]
    reverse: bool,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    format: FormatArgs,
    /// Short for --template.
    #[arg(short = 'f', value_name = "TEMPLATE", conflicts_with_all = ["template", "raw", "binary", "json"], hide = true)]
    short_template: Option<Template>,
}

pub(crate) fn run(global: &Global, mut args: ReadArgs, out: &mut Output) -> Result<()> {
    if let Some(template) = args.short_template.take() {
        args.format.template = Some(template);
    }
    let format = args.format.format(global.json)?;
    let topic = args.topic.or(args.topic_named).unwrap_or_default();
    let from = args.revision.map(Position::Revision).or(args.from);
    let (start, direction) = match (from, args.reverse) {
        (Some(from), false) => (from, Direction::Forwards),
        (None, false) => (Position::Earliest, Direction::Forwards),
        (Some(from), true) => (from, Direction::Backwards),
        (None, true) => (Position::Latest, Direction::Backwards),
    };
    if args.from_beginning && args.reverse {
        return Err(Failure::usage("--from-beginning and --reverse exclude each other"));
    }
    let backend = global.backend()?;
    let mut spec = ReadSpec {
        topic: topic.clone(),
        start,
        until: args.until,
        records_max: args.count.unwrap_or(0),
        filter: args.filter.filter(),
        sees_written: args.filter.written,
        direction,
    };
    if args.from_snapshot {
        let (start, is_printed) = print_snapshot(&*backend, &spec, &format, out)?;
        spec.start = start;
        if is_printed && spec.records_max == 1 {
            out.flush()?;
            return backend.close();
        }
        spec.records_max = spec.records_max.saturating_sub(u64::from(is_printed));
    }
    let sees_all = spec.sees_written || spec.until.is_some() || spec.records_max > 0;
    print(&topic, backend.reader(spec)?, &format, out)?;
    // Beside a server there are always some on their way.
    if global.data.is_some() && !sees_all {
        warn_of_unsynced(&backend.topic(&topic)?, out);
    }
    Ok(())
}

/// Prints the latest snapshot of the one key, if there is one; says where the records behind it begin, whether there was one,
/// and which records are missing.
fn print_snapshot(
    backend: &dyn Backend,
    spec: &ReadSpec,
    format: &Format,
    out: &mut Output,
) -> Result<(Position, bool)> {
    let key = spec.stream_key("--from-snapshot")?;
    let damaged = |failure: Failure| match failure.exit {
        Exit::Damaged => failure.hint("without --from-snapshot all records of the key are read"),
        _ => failure,
    };
    let snapshot = |up_to| backend.snapshot(&spec.topic, key, up_to).map_err(damaged);
    let (found, none) = match spec.until {
        None => (snapshot(None)?, "there is no snapshot"),
        Some(until) => {
            let last = last_revision_before(backend, spec, until)?;
            let found = last.map(|last| snapshot(Some(last))).transpose()?.flatten();
            (found, "there is no snapshot that covers nothing from --until on")
        }
    };
    let next = match &found {
        Some(found) => {
            format.write(out, &snapshot::topic_of(&spec.topic), found)?;
            found.revision.map_or(0, |revision| revision.saturating_add(1))
        }
        None => {
            out.note(format_args!("{none}: the records of the key follow"));
            0
        }
    };
    // What compaction took out is superseded; what was trimmed is missing. Which of the two it was nobody knows any more.
    if let Some(stream) = backend.stream(&spec.topic, key)? {
        let first = stream.first_revision.unwrap_or(stream.last_revision.saturating_add(1));
        if next < first {
            let last = first - 1;
            out.warn(format_args!(
                "records of the key with revisions {next} to {last} were removed and are missing here"
            ));
        }
    }
    Ok((if found.is_some() { Position::Revision(next) } else { Position::Earliest }, found.is_some()))
}

/// The last revision of the key before the end that is wanted, of the records that are left.
fn last_revision_before(backend: &dyn Backend, spec: &ReadSpec, until: Position) -> Result<Option<u64>> {
    let topic = backend.topic(&spec.topic)?;
    let end = if spec.sees_written { topic.log_end_offset } else { topic.high_watermark };
    let end = backend.offset_of(&spec.topic, until)?.min(end);
    if end <= topic.log_start_offset {
        return Ok(None);
    }
    let mut reader = backend.reader(ReadSpec {
        start: Position::Offset(end - 1),
        until: None,
        records_max: 1,
        direction: Direction::Backwards,
        ..spec.clone()
    })?;
    loop {
        match reader.next()? {
            Step::Records(items) => return Ok(items.first().and_then(|item| item.revision)),
            // A snapshot that is too old is none that is wrong: whoever reads on from it meets the damage.
            Step::Damaged(_) | Step::Gap { .. } | Step::Idle | Step::Resumed { .. } => {}
            Step::DamagedEnd { .. } | Step::End => return Ok(None),
        }
    }
}
