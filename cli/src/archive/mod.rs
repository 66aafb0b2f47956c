//! What `quipu export` writes and `quipu import` reads: a topic in a file of lines ([`ndjson`]) or a directory of segments
//! ([`segments`]).
//!
//! Both have a list of lines of JSON. The first one says what it is and has the topic's settings, the last one how many
//! records there are and the checksum of the lines before it, each with its `\n`:
//!
//! ```json
//! {"quipu_export":2,"topic":"orders","settings":{…},"log_start_offset":0}
//! …
//! {"quipu_export_end":{"records":3,"next_offset":3,"crc32":"89abcdef"}}
//! ```
//!
//! So an export that is cut off anywhere, or has another byte anywhere, is told from a whole one.

pub(crate) mod ndjson;
pub(crate) mod segments;

use std::io::{self, Write};

use bytes::Bytes;
use quipu_proto::v1 as pb;
use serde_json::{Value, json};

use crate::commands::topics::{settings_from_json, settings_json};
use crate::exit::{Failure, Result};
use crate::input::{Feed, Line};

/// The version of both forms.
const VERSION: u64 = 2;
/// A line has a record as JSON: base64 and escapes make it longer than it is.
const LINE_BYTES_MAX: usize = 64 << 20;
const END: &[u8] = b"{\"quipu_export_end\"";

/// A record of an archive, and what its topic knew about it.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) offset: Option<u64>,
    pub(crate) append_time_ms: Option<u64>,
    pub(crate) record: pb::Record,
}

/// Hands out the records of an archive, in order. Ends without an error only if all of it was there and intact.
pub(crate) trait Source {
    /// The settings of the topic, if the archive says them.
    fn settings(&self) -> Option<pb::TopicSettings>;
    /// Where the topic began, if the archive says it.
    fn log_start_offset(&self) -> Option<u64>;
    /// The next record.
    fn next(&mut self) -> Result<Option<Entry>>;
    /// The failure that the record handed out last is not what it must be.
    fn invalid(&self, message: &str) -> Failure;
    /// How far it is.
    fn bytes_read(&self) -> u64;
}

/// Writes the list of lines.
struct Lines<W> {
    out: W,
    sum: crc32fast::Hasher,
    records: u64,
    next_offset: u64,
}

impl<W: Write> Lines<W> {
    /// Writes the first line.
    fn begin(out: W, topic: &pb::Topic) -> io::Result<Self> {
        let mut lines =
            Self { out, sum: crc32fast::Hasher::new(), records: 0, next_offset: topic.log_start_offset };
        let head = json!({
            "quipu_export": VERSION,
            "topic": topic.name,
            "settings": topic.settings.as_ref().map(settings_json),
            "log_start_offset": topic.log_start_offset,
        });
        writeln!(lines, "{head}")?;
        Ok(lines)
    }

    /// Counts what the lines written so far have.
    fn count(&mut self, records: u64, next_offset: u64) {
        self.records += records;
        self.next_offset = next_offset;
    }

    /// Writes the last line; says how many records there are.
    fn end(mut self) -> io::Result<(W, u64)> {
        let end = json!({"quipu_export_end": {
            "records": self.records,
            "next_offset": self.next_offset,
            "crc32": format!("{:08x}", self.sum.finalize()),
        }});
        writeln!(self.out, "{end}")?;
        self.out.flush()?;
        Ok((self.out, self.records))
    }
}

impl<W: Write> Write for Lines<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.out.write(bytes)?;
        self.sum.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

/// What the last line says.
struct End {
    records: u64,
    next_offset: u64,
    crc32: u32,
}

/// Reads the list of lines and holds it against its last line.
struct Checked<'a> {
    feed: Feed<'a>,
    /// What messages call it.
    name: String,
    /// Whether head and end must be there and fit. If not, everything that is there is taken.
    is_checked: bool,
    number: u64,
    sum: crc32fast::Hasher,
    settings: Option<pb::TopicSettings>,
    log_start_offset: Option<u64>,
    /// The first line, if it is no head.
    first: Option<Bytes>,
    end: Option<End>,
}

impl<'a> Checked<'a> {
    /// Reads the first line.
    fn open(feed: Feed<'a>, name: &str, is_checked: bool) -> Result<Self> {
        let mut lines = Self {
            feed,
            name: name.into(),
            is_checked,
            number: 0,
            sum: crc32fast::Hasher::new(),
            settings: None,
            log_start_offset: None,
            first: None,
            end: None,
        };
        let Some(first) = lines.line()? else {
            return if is_checked { Err(lines.refuse("it is empty")) } else { Ok(lines) };
        };
        let head = serde_json::from_slice::<Value>(&first).unwrap_or_default();
        match head.get("quipu_export").map(Value::as_u64) {
            Some(Some(VERSION)) => {}
            Some(Some(1)) if !is_checked => {}
            Some(Some(1)) => {
                return Err(lines
                    .refuse("it was made by a build whose exports have no end, so nothing tells whether it is whole")
                    .hint("--unchecked imports what is there"));
            }
            Some(_) => return Err(lines.invalid("the export was made by a newer version")),
            None if is_checked => {
                return Err(lines.refuse("its first line is not that of an export").hint(
                    "`quipu publish --format ndjson` takes lines of JSON; --unchecked imports records without head and end",
                ));
            }
            None => {
                lines.first = Some(first);
                return Ok(lines);
            }
        }
        let settings = settings_from_json(head.get("settings").unwrap_or(&Value::Null));
        lines.log_start_offset = head.get("log_start_offset").and_then(Value::as_u64);
        lines.settings = Some(settings.map_err(|message| lines.invalid(&message))?);
        Ok(lines)
    }

    /// The next line between the first and the last; `None` behind the last, if everything fits.
    fn next(&mut self) -> Result<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Ok(Some(first));
        }
        if self.end.is_some() {
            return Ok(None);
        }
        let sum = self.sum.clone();
        let Some(line) = self.line()? else {
            return if self.is_checked {
                Err(self.refuse(&format!("it is cut off behind line {}: its end is missing", self.number)))
            } else {
                Ok(None)
            };
        };
        if !line.starts_with(END) {
            return Ok(Some(line));
        }
        if !self.is_checked {
            return self.next();
        }
        let end = end_of(&line)
            .ok_or_else(|| self.refuse(&format!("line {}, its end, is damaged", self.number)))?;
        let actual = sum.finalize();
        if actual != end.crc32 {
            let expected = end.crc32;
            return Err(self.refuse(&format!(
                "it was changed: its lines have checksum {actual:08x}, not {expected:08x}, as its end says"
            )));
        }
        if self.line()?.is_some() {
            return Err(self.refuse(&format!("it goes on behind its end, at line {}", self.number)));
        }
        self.end = Some(end);
        Ok(None)
    }

    /// Holds what was found against what the last line says.
    fn compare(&self, records: u64, next_offset: Option<u64>) -> Result<()> {
        match &self.end {
            Some(end)
                if end.records != records || next_offset.is_some_and(|next| next != end.next_offset) =>
            {
                let (expected, next) = (end.records, end.next_offset);
                Err(self.refuse(&format!(
                    "it has {records} records, but its end says {expected}, up to offset {next} (exclusive)"
                )))
            }
            _ => Ok(()),
        }
    }

    /// The next line that is not empty, summed up.
    fn line(&mut self) -> Result<Option<Bytes>> {
        loop {
            let line = self.feed.line(LINE_BYTES_MAX);
            let line = line.map_err(|error| Failure::file("read", &self.name, &error))?;
            match line {
                None => return Ok(None),
                Some(Line::TooLong(bytes)) => {
                    self.number += 1;
                    return Err(self.invalid(&format!("it has {bytes} bytes, the limit is {LINE_BYTES_MAX}")));
                }
                Some(Line::Whole(line)) => {
                    self.number += 1;
                    self.sum.update(&line);
                    self.sum.update(b"\n");
                    if !line.trim_ascii().is_empty() {
                        return Ok(Some(line));
                    }
                }
            }
        }
    }

    /// The whole of it is not what it must be.
    fn refuse(&self, message: &str) -> Failure {
        Failure::input(format!("{} is no complete export: {message}", self.name))
    }

    /// The line read last is not what it must be.
    fn invalid(&self, message: &str) -> Failure {
        Failure::input(format!("{}, line {}: {message}", self.name, self.number))
    }
}

fn end_of(line: &[u8]) -> Option<End> {
    let value = serde_json::from_slice::<Value>(line).ok()?;
    let end = value.get("quipu_export_end")?;
    Some(End {
        records: end.get("records")?.as_u64()?,
        next_offset: end.get("next_offset")?.as_u64()?,
        crc32: u32::from_str_radix(end.get("crc32")?.as_str()?, 16).ok()?,
    })
}
