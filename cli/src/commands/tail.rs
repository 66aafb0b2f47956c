//! `quipu tail`: the last records, and with `-f` each new one.

use clap::Args;

use super::show::{FilterArgs, FormatArgs, print};
use crate::args::Global;
use crate::backend::{Direction, ReadSpec};
use crate::exit::Result;
use crate::output::Output;
use crate::position::Position;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu tail orders
  quipu tail -f orders
  quipu tail -f -n 0 orders --type placed --template '%k %v\\n'
  quipu tail -f orders --from 2026-11-22T09:00Z --json
  quipu tail -f orders --count 1        # waits for one record, and ends")]
pub(crate) struct TailArgs {
    /// The topic.
    #[arg(required_unless_present = "topic_named", value_name = "TOPIC")]
    topic: Option<String>,
    /// The topic, if it is not the first argument.
    #[arg(short = 't', long = "topic", value_name = "TOPIC", id = "topic_named", conflicts_with = "topic")]
    topic_named: Option<String>,
    /// Go on with each new record.
    #[arg(short, long)]
    follow: bool,
    /// The last N records that the filters let through.
    #[arg(short = 'n', long, value_name = "N", default_value_t = 10, conflicts_with = "from")]
    last: u64,
    /// Start here instead (see `quipu read --help`).
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    from: Option<Position>,
    /// Start at this revision of the one --key instead.
    #[arg(long, value_name = "N", requires = "keys", conflicts_with_all = ["from", "last"])]
    revision: Option<u64>,
    /// Where to end: before that offset, or before the first record at that time.
    #[arg(long, value_name = "POSITION", allow_hyphen_values = true)]
    until: Option<Position>,
    /// At most N records.
    #[arg(short = 'c', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    #[command(flatten)]
    filter: FilterArgs,
    #[command(flatten)]
    format: FormatArgs,
}

pub(crate) fn run(global: &Global, args: TailArgs, out: &mut Output) -> Result<()> {
    let format = args.format.format(global.json)?;
    let topic = args.topic.or(args.topic_named).unwrap_or_default();
    let backend = global.backend()?;
    let start = args.revision.map(Position::Revision).or(args.from).unwrap_or(if args.last == 0 {
        Position::Latest
    } else {
        Position::Last(args.last)
    });
    let spec = ReadSpec {
        topic: topic.clone(),
        start,
        until: args.until,
        records_max: args.count.unwrap_or(0),
        filter: args.filter.filter(),
        sees_written: args.filter.written,
        direction: if args.follow { Direction::Follow } else { Direction::Forwards },
    };
    print(&topic, backend.reader(spec)?, &format, out)
}
