//! A topic as lines of JSON: between the first line and the last one ([`super`]) a record on each; see `format/json.rs`.

use std::fs::File;
use std::io::{Read, Seek as _, Write};

use quipu_proto::v1 as pb;

use super::{Checked, Entry, Lines, Source};
use crate::backend::Item;
use crate::exit::{Failure, Result};
use crate::format::json;
use crate::input::Feed;

/// Writes an archive.
pub(crate) struct Writer<W>(Lines<W>);

impl<W: Write> Writer<W> {
    pub(crate) fn begin(out: W, topic: &pb::Topic) -> Result<Self> {
        Ok(Self(Lines::begin(out, topic)?))
    }

    pub(crate) fn push(&mut self, items: &[Item]) -> Result<()> {
        for item in items {
            json::write(&mut self.0, None, item)?;
            self.0.count(1, item.offset.saturating_add(1));
        }
        Ok(())
    }

    /// Says how many records it has.
    pub(crate) fn end(self) -> Result<(W, u64)> {
        Ok(self.0.end()?)
    }
}

/// Reads an archive.
pub(crate) struct Archive<'a> {
    lines: Checked<'a>,
    records: u64,
    next_offset: Option<u64>,
}

impl Archive<'static> {
    /// Of a file. One that can be read twice is looked at to its end before the first record is handed out.
    pub(crate) fn of_file(mut file: File, name: &str, is_checked: bool) -> Result<Self> {
        let failed = |error: std::io::Error| Failure::file("read", name, &error);
        if is_checked && file.metadata().map_err(failed)?.is_file() {
            let mut lines = Checked::open(feed(file.try_clone().map_err(failed)?), name, true)?;
            let (mut records, mut last) = (0, None);
            while let Some(line) = lines.next()? {
                records += 1;
                last = Some(line);
            }
            let last = last.as_deref().map(json::Line::parse).transpose();
            let last = last.map_err(|message| lines.invalid(&message))?.and_then(|line| line.offset);
            lines.compare(records, last.map(|offset| offset.saturating_add(1)))?;
            file.rewind().map_err(failed)?;
        }
        Self::of(file, name, is_checked)
    }

    /// Of a pipe: whether it is complete shows at its end.
    pub(crate) fn of(input: impl Read + Send + 'static, name: &str, is_checked: bool) -> Result<Self> {
        Ok(Self { lines: Checked::open(feed(input), name, is_checked)?, records: 0, next_offset: None })
    }
}

fn feed(input: impl Read + Send + 'static) -> Feed<'static> {
    Feed::new(input, Box::new(|| Ok(())))
}

impl Source for Archive<'_> {
    fn settings(&self) -> Option<pb::TopicSettings> {
        self.lines.settings
    }

    fn log_start_offset(&self) -> Option<u64> {
        self.lines.log_start_offset
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        let Some(line) = self.lines.next()? else {
            self.lines.compare(self.records, self.next_offset)?;
            return Ok(None);
        };
        let line = json::Line::parse(&line).map_err(|message| self.lines.invalid(&message))?;
        let offset = line.offset;
        let (record, append_time_ms) = line.into_record().map_err(|message| self.lines.invalid(&message))?;
        self.records += 1;
        self.next_offset = offset.map(|offset| offset.saturating_add(1));
        Ok(Some(Entry { offset, append_time_ms, record }))
    }

    fn invalid(&self, message: &str) -> Failure {
        self.lines.invalid(message)
    }

    fn bytes_read(&self) -> u64 {
        self.lines.feed.bytes_read()
    }
}
