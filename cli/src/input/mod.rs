//! What `publish` reads: entries of a stream, made into records.

mod csv;
mod feed;
pub(crate) mod fields;
mod lines;
mod ndjson;
mod prefixed;

use quipu_proto::v1 as pb;

pub(crate) use feed::{Feed, Line};
pub(crate) use fields::Mapping;

/// How the input is divided into records.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum InputFormat {
    /// By the file's name: .ndjson and .jsonl, .csv, .bin; everything else are lines.
    Auto,
    /// A record for each line.
    Lines,
    /// A record for each line, which is JSON.
    Ndjson,
    /// A record for each row; the first row names the columns.
    Csv,
    /// A record behind its length: four bytes, big-endian.
    Binary,
}

impl InputFormat {
    /// What a file of that name holds.
    pub(crate) fn of_path(path: &std::path::Path) -> Self {
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("ndjson" | "jsonl") => Self::Ndjson,
            Some("csv") => Self::Csv,
            Some("bin") => Self::Binary,
            _ => Self::Lines,
        }
    }
}

/// An entry that is no record.
#[derive(Debug)]
pub(crate) struct Invalid {
    pub(crate) message: String,
    /// Whether the next entry can be found.
    pub(crate) can_go_on: bool,
}

impl Invalid {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), can_go_on: true }
    }

    pub(crate) fn last(message: impl Into<String>) -> Self {
        Self { message: message.into(), can_go_on: false }
    }
}

/// Finds the entries of an input.
pub(crate) trait Entries {
    /// The next one as a record, or `None` at the end.
    fn next(&mut self) -> Option<Result<pb::Record, Invalid>>;
    /// What an entry is called in messages.
    fn noun(&self) -> &'static str {
        "line"
    }
    /// Number of the entry that was handed out last, from 1; of a line, as an editor counts.
    fn number(&self) -> u64;
}

/// Opens an input. No entry may have more than `entry_bytes_max` bytes.
pub(crate) fn entries<'a>(
    format: InputFormat,
    feed: Feed<'a>,
    mapping: Mapping,
    entry_bytes_max: usize,
) -> Box<dyn Entries + 'a> {
    let feed = if format == InputFormat::Binary { feed } else { feed.of_text() };
    match format {
        InputFormat::Auto | InputFormat::Lines => Box::new(lines::Lines::new(feed, mapping, entry_bytes_max)),
        InputFormat::Ndjson => Box::new(ndjson::Ndjson::new(feed, mapping, entry_bytes_max)),
        InputFormat::Csv => Box::new(csv::Csv::new(feed, mapping, entry_bytes_max)),
        InputFormat::Binary => Box::new(prefixed::Prefixed::new(feed, mapping, entry_bytes_max)),
    }
}
