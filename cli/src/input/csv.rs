//! A record for each row of CSV. The first row names the columns. The payload is the row as an object of JSON, or one of
//! its columns.

use std::io;

use bytes::Bytes;
use csv::{ByteRecord, Reader, ReaderBuilder};
use quipu_proto::v1 as pb;

use super::fields::Value;
use super::{Entries, Feed, Invalid, Mapping};

pub(super) struct Csv<'a> {
    reader: Reader<Bounded<'a>>,
    mapping: Mapping,
    columns: Vec<String>,
    /// The column of each field that is wanted; `None`: there is none.
    wanted: Option<Vec<Option<usize>>>,
    row: ByteRecord,
    number: u64,
    is_over: bool,
}

/// Keeps a quote that is never closed from taking everything into one row.
struct Bounded<'a> {
    feed: Feed<'a>,
    /// Bytes until the next row is handed out.
    left: usize,
    bytes_max: usize,
    /// Whether there are so many quotes, so far, that one of them may not be closed.
    is_quote_open: bool,
    has_ended: bool,
}

const BUFFER_BYTES: usize = 64 << 10;

impl io::Read for Bounded<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let limit = self.bytes_max;
            return Err(io::Error::other(format!(
                "a row has more than {limit} bytes; is a quote not closed?"
            )));
        }
        let count = self.feed.read(out)?;
        self.left = self.left.saturating_sub(count);
        self.has_ended = count == 0;
        self.is_quote_open ^= out[..count].iter().filter(|&&byte| byte == b'"').count() % 2 == 1;
        Ok(count)
    }
}

impl Bounded<'_> {
    /// Whether a row that went to the end of the input did so because a quote is not closed: then it may have swallowed
    /// others. `texts`: its cells.
    fn swallowed<'t>(&self, mut texts: impl Iterator<Item = &'t [u8]>) -> bool {
        self.has_ended && self.is_quote_open && texts.any(|text| text.contains(&b'\n'))
    }
}

const NOT_CLOSED: &str = "a quote is not closed before the input ends";

impl<'a> Csv<'a> {
    pub(super) fn new(feed: Feed<'a>, mapping: Mapping, bytes_max: usize) -> Self {
        let bounded = Bounded { feed, left: bytes_max, bytes_max, is_quote_open: false, has_ended: false };
        let reader = ReaderBuilder::new().buffer_capacity(BUFFER_BYTES).from_reader(bounded);
        Self {
            reader,
            mapping,
            columns: Vec::new(),
            wanted: None,
            row: ByteRecord::new(),
            number: 0,
            is_over: false,
        }
    }

    /// Reads the first row.
    fn start(&mut self) -> Result<(), Invalid> {
        let header = self.reader.headers().map_err(|error| Invalid::last(message(&error)))?;
        self.columns = header.iter().map(str::to_owned).collect();
        if self.reader.get_ref().swallowed(self.columns.iter().map(String::as_bytes)) {
            return Err(Invalid::last(NOT_CLOSED.to_owned()));
        }
        let mut names = std::collections::HashSet::new();
        if let Some(twice) = self.columns.iter().find(|name| !names.insert(name.as_str())) {
            return Err(Invalid::last(format!(
                "two columns are called {twice:?}: one of them would be lost"
            )));
        }
        let column = |name: &str| self.columns.iter().position(|column| column == name);
        let mut wanted = Vec::new();
        for field in self.mapping.fields() {
            let found = column(&field.name);
            if found.is_none() && !field.is_optional {
                let columns = self.columns.join(", ");
                return Err(Invalid::last(format!("there is no column {:?}, but {columns}", field.name)));
            }
            wanted.push(found);
        }
        self.wanted = Some(wanted);
        Ok(())
    }

    fn record(&self) -> Result<pb::Record, Invalid> {
        let value = |column: &Option<usize>| match column.and_then(|column| self.row.get(column)) {
            None => Value::Missing,
            Some([]) => Value::Null,
            Some(bytes) => Value::One(Bytes::copy_from_slice(bytes)),
        };
        let values = self.wanted.iter().flatten().map(value).collect();
        if self.mapping.payload.is_some() {
            return self.mapping.record(values, Bytes::new());
        }
        let mut object = serde_json::Map::with_capacity(self.columns.len());
        for (name, bytes) in self.columns.iter().zip(&self.row) {
            let text = std::str::from_utf8(bytes).map_err(|_| {
                Invalid::new(format!("column {name:?} is not UTF-8; name one with --payload-field"))
            })?;
            object.insert(name.clone(), text.into());
        }
        let payload = serde_json::Value::Object(object).to_string();
        self.mapping.record(values, payload.into())
    }
}

fn message(error: &csv::Error) -> String {
    error.to_string()
}

impl Entries for Csv<'_> {
    fn next(&mut self) -> Option<Result<pb::Record, Invalid>> {
        if self.is_over {
            return None;
        }
        if self.wanted.is_none()
            && let Err(invalid) = self.start()
        {
            self.is_over = true;
            self.number = 1;
            return Some(Err(invalid));
        }
        let bounded = self.reader.get_mut();
        bounded.left = bounded.bytes_max;
        let outcome = self.reader.read_byte_record(&mut self.row);
        self.number = self.row.position().map_or(self.number + 1, csv::Position::line);
        match outcome {
            Ok(true) if self.reader.get_ref().swallowed(self.row.iter()) => {
                self.is_over = true;
                Some(Err(Invalid::last(NOT_CLOSED.to_owned())))
            }
            Ok(true) => Some(self.record()),
            Ok(false) => None,
            Err(error) if matches!(error.kind(), csv::ErrorKind::UnequalLengths { .. }) => {
                let (columns, cells) = (self.columns.len(), self.row.len());
                Some(Err(Invalid::new(format!("the row has {cells} columns, the first row has {columns}"))))
            }
            Err(error) => {
                self.is_over = true;
                Some(Err(Invalid::last(message(&error))))
            }
        }
    }

    fn number(&self) -> u64 {
        self.number
    }
}
