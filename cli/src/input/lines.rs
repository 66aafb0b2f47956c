//! A record for each line. Its end, `\n` or `\r\n`, is not part of it.

use bytes::Bytes;
use quipu_proto::v1 as pb;

use super::feed::Line;
use super::{Entries, Feed, Invalid, Mapping};

pub(super) struct Lines<'a> {
    feed: Feed<'a>,
    mapping: Mapping,
    bytes_max: usize,
    number: u64,
}

impl<'a> Lines<'a> {
    pub(super) fn new(feed: Feed<'a>, mapping: Mapping, bytes_max: usize) -> Self {
        Self { feed, mapping, bytes_max, number: 0 }
    }

    fn record(&self, line: Bytes) -> Result<pb::Record, Invalid> {
        let mut record = self.mapping.constant.clone();
        let Some(separator) = &self.mapping.key_separator else {
            record.payload = Some(line);
            return Ok(record);
        };
        let place = find(&line, separator.as_bytes());
        let place =
            place.ok_or_else(|| Invalid::new(format!("there is no key: {separator:?} is missing")))?;
        record.key = Some(line.slice(..place));
        record.payload = Some(line.slice(place + separator.len()..));
        Ok(record)
    }
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len().max(1)).position(|window| window == wanted)
}

impl Entries for Lines<'_> {
    fn next(&mut self) -> Option<Result<pb::Record, Invalid>> {
        let line = match next_line(&mut self.feed, self.bytes_max, &mut self.number)? {
            Ok(line) => line,
            Err(invalid) => return Some(Err(invalid)),
        };
        Some(self.record(line))
    }

    fn number(&self) -> u64 {
        self.number
    }
}

/// The next line, counted.
pub(super) fn next_line(
    feed: &mut Feed<'_>,
    bytes_max: usize,
    number: &mut u64,
) -> Option<Result<Bytes, Invalid>> {
    let line = match feed.line(bytes_max) {
        Ok(line) => line?,
        Err(error) => return Some(Err(Invalid::last(error.to_string()))),
    };
    *number += 1;
    Some(match line {
        Line::Whole(line) if line.last() == Some(&b'\r') => Ok(line.slice(..line.len() - 1)),
        Line::Whole(line) => Ok(line),
        Line::TooLong(bytes) => Err(Invalid::new(format!("it has {bytes} bytes, the limit is {bytes_max}"))),
    })
}
