//! `quipu streams`: the keys of a topic, each with its last revision.

use clap::Args;
use quipu_proto::v1 as pb;
use serde_json::{Value, json};

use crate::args::Global;
use crate::exit::Result;
use crate::key::{Key, ShownKey, put_key};
use crate::output::{Output, Shown};
use crate::units::grouped;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu streams orders
  quipu streams orders --prefix order-7 --json | jq -r .key")]
pub(crate) struct StreamsArgs {
    /// The topic.
    topic: String,
    /// Only keys that begin so, written as they are shown.
    #[arg(long, value_name = "PREFIX", default_value = "", hide_default_value = true)]
    prefix: Key,
}

pub(crate) fn run(global: &Global, args: &StreamsArgs, out: &mut Output) -> Result<()> {
    let backend = global.backend()?;
    let mut is_first = true;
    // Line by line: there may be millions.
    backend.streams(&args.topic, &args.prefix.0, &mut |stream| {
        if out.is_json {
            is_first = false;
            return out.json(&to_json(&stream));
        }
        let (dim, strong) = (out.styles.dim, out.styles.strong);
        if std::mem::take(&mut is_first) {
            let (key, last, records) = ("KEY", "LAST REVISION", "RECORDS");
            out.line(format_args!("{dim}{key:<32} {last:>14} {records:>14} {:>14}{dim:#}", "LAST OFFSET"))?;
        }
        let key = ShownKey(&stream.key).to_string();
        let offset = stream.last_offset.map_or_else(|| "-".into(), |offset| offset.to_string());
        let (last, records) = (stream.last_revision, grouped(stream.record_count));
        out.line(format_args!("{strong}{key:<32}{strong:#} {last:>14} {records:>14} {offset:>14}"))
    })?;
    if is_first {
        out.note(format_args!(
            "there is no record with {} in topic {}",
            if args.prefix.0.is_empty() { "a key" } else { "such a key" },
            Shown(&args.topic)
        ));
    }
    backend.close()
}

fn to_json(stream: &pb::Stream) -> Value {
    let mut line = json!({
        "last_revision": stream.last_revision,
        "records": stream.record_count,
        "first_revision": stream.first_revision,
        "last_offset": stream.last_offset,
    });
    put_key(&stream.key, &mut line);
    line
}
