//! A record as a line of JSON, and back: what `read --json` prints, and what `export` writes and `import` reads.
//!
//! ```json
//! {"topic":"orders","offset":0,"revision":0,"append_time":"2026-11-22T09:00:00.000Z","id":"…","key":"order-7","type":"placed",
//!  "tags":["eu"],"headers":[{"name":"n","value":"v"}],"content_type":"text/plain","payload":"…"}
//! ```
//!
//! What is absent or empty is left out, and exports have no topic and no revision; without `payload` it is a tombstone,
//! or with `"redacted":"erased"` (or `"locked"`) one whose payload cannot be read. `erasure_key` says whose data it is. A key, header value or payload that is not
//! UTF-8 stands as base64 under `key_base64`, `value_base64` or `payload_base64` instead.

use std::borrow::Cow;
use std::io::{self, Write};

use base64::prelude::{BASE64_STANDARD, Engine as _};
use bytes::Bytes;
use quipu_proto::v1::{Header, Record};
use serde::{Deserialize, Serialize};

use crate::backend::Item;
use crate::units::{parse_time, time_text};

/// A record as it stands in JSON.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Line<'a> {
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    pub(crate) topic: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) offset: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) append_time: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_base64: Option<String>,
    #[serde(default, borrow, rename = "type", skip_serializing_if = "str::is_empty")]
    kind: Cow<'a, str>,
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    tags: Vec<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Vec::is_empty")]
    headers: Vec<HeaderLine<'a>>,
    #[serde(default, borrow, skip_serializing_if = "str::is_empty")]
    content_type: Cow<'a, str>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    payload: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payload_base64: Option<String>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    erasure_key: Option<Cow<'a, str>>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    redacted: Option<Cow<'a, str>>,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct HeaderLine<'a> {
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default, borrow, skip_serializing_if = "Option::is_none")]
    value: Option<Cow<'a, str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    value_base64: Option<String>,
}

/// Text if it is text, else base64.
fn either(bytes: &[u8]) -> (Option<Cow<'_, str>>, Option<String>) {
    match std::str::from_utf8(bytes) {
        Ok(text) => (Some(Cow::Borrowed(text)), None),
        Err(_) => (None, Some(BASE64_STANDARD.encode(bytes))),
    }
}

/// Prints a record; with its topic, if one is given, and then its revision, too.
pub(crate) fn write(out: &mut impl Write, topic: Option<&str>, item: &Item) -> io::Result<()> {
    let record = &item.record;
    let (key, key_base64) = record.key.as_deref().map(either).unwrap_or_default();
    let (payload, payload_base64) = record.payload.as_deref().map(either).unwrap_or_default();
    let headers = record.headers.iter().map(|header| {
        let (value, value_base64) = either(&header.value);
        HeaderLine { name: Cow::Borrowed(&header.name), value, value_base64 }
    });
    let line = Line {
        topic: topic.map(Cow::Borrowed),
        offset: Some(item.offset),
        revision: item.revision.filter(|_| topic.is_some()),
        append_time: Some(time_text(item.append_time_ms)),
        id: record.id.as_ref().map(|_| item.id_text()),
        key,
        key_base64,
        kind: Cow::Borrowed(&record.r#type),
        tags: record.tags.iter().map(|tag| Cow::Borrowed(tag.as_str())).collect(),
        headers: headers.collect(),
        content_type: Cow::Borrowed(&record.content_type),
        payload,
        payload_base64,
        erasure_key: record.erasure_key.as_deref().map(Cow::Borrowed),
        redacted: super::redacted(record).map(Cow::Borrowed),
    };
    serde_json::to_writer(&mut *out, &line).map_err(io::Error::from)?;
    out.write_all(b"\n")
}

impl<'a> Line<'a> {
    /// Reads a line.
    pub(crate) fn parse(line: &'a [u8]) -> Result<Self, String> {
        // A list would be taken for the fields in their order.
        if !line.trim_ascii_start().starts_with(b"{") {
            return Err("it is no object of JSON".into());
        }
        serde_json::from_slice(line).map_err(|error| error.to_string())
    }

    /// The record, and its append time if the line says one.
    pub(crate) fn into_record(self) -> Result<(Record, Option<u64>), String> {
        if let Some(why) = &self.redacted {
            return Err(format!("its payload is {why}: there is nothing to append"));
        }
        let append_time = self.append_time.as_deref().map(|time| {
            let shown = time.parse().ok().or_else(|| parse_time(time));
            shown.ok_or_else(|| format!("append_time {time:?} is no time"))
        });
        let headers = self.headers.into_iter().map(|header| {
            let value = bytes_of("value", header.value, header.value_base64)?.unwrap_or_default();
            Ok(Header { name: header.name.into_owned(), value })
        });
        let record = Record {
            id: self.id.as_deref().map(parse_id).transpose()?,
            key: bytes_of("key", self.key, self.key_base64)?,
            r#type: self.kind.into_owned(),
            tags: self.tags.into_iter().map(Cow::into_owned).collect(),
            headers: headers.collect::<Result<_, String>>()?,
            content_type: self.content_type.into_owned(),
            payload: bytes_of("payload", self.payload, self.payload_base64)?,
            erasure_key: self.erasure_key.map(Cow::into_owned),
            redacted: 0,
        };
        Ok((record, append_time.transpose()?))
    }
}

fn bytes_of(name: &str, text: Option<Cow<'_, str>>, base64: Option<String>) -> Result<Option<Bytes>, String> {
    match (text, base64) {
        (Some(_), Some(_)) => Err(format!("{name} and {name}_base64 cannot both be there")),
        (Some(text), None) => Ok(Some(Bytes::from(text.into_owned()))),
        (None, Some(base64)) => match BASE64_STANDARD.decode(base64) {
            Ok(bytes) => Ok(Some(Bytes::from(bytes))),
            Err(error) => Err(format!("{name}_base64 is no base64: {error}")),
        },
        (None, None) => Ok(None),
    }
}

/// Reads an id: 32 hexadecimal digits, with or without hyphens.
pub(crate) fn parse_id(text: &str) -> Result<Bytes, String> {
    let refuse = || format!("{text:?} is no id: it has 32 hexadecimal digits, as a UUID has");
    let digits: Vec<u32> = text
        .chars()
        .filter(|c| *c != '-')
        .map(|c| c.to_digit(16))
        .collect::<Option<_>>()
        .ok_or_else(refuse)?;
    if digits.len() != 32 {
        return Err(refuse());
    }
    let bytes: Vec<u8> =
        digits.chunks_exact(2).map(|pair| u8::try_from(pair[0] << 4 | pair[1]).unwrap_or(0)).collect();
    Ok(Bytes::from(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn there_and_back(record: Record) {
        let item = Item { offset: 3, append_time_ms: 1_795_338_000_123, revision: None, record };
        let mut out = Vec::new();
        write(&mut out, None, &item).unwrap();
        let line = Line::parse(&out).unwrap();
        assert_eq!(line.offset, Some(3));
        assert_eq!(line.into_record().unwrap(), (item.record, Some(1_795_338_000_123)));
    }

    #[test]
    fn every_record_comes_back_as_it_was() {
        there_and_back(Record::default());
        there_and_back(Record { payload: Some(Bytes::new()), key: Some(Bytes::new()), ..Record::default() });
        there_and_back(Record {
            id: Some(Bytes::from(vec![7; 16])),
            key: Some(Bytes::from_static(b"\xff\0")),
            r#type: "ty\"pe\n".into(),
            tags: vec!["a".into(), "\u{1b}".into()],
            headers: vec![
                Header { name: "n".into(), value: Bytes::from_static(b"\x80") },
                Header { name: "n".into(), value: Bytes::new() },
            ],
            content_type: "x/y".into(),
            erasure_key: Some("customer-17".into()),
            redacted: 0,
            payload: Some(Bytes::from_static(b"{\"a\":\xfe}")),
        });
    }

    #[test]
    fn a_line_that_says_two_things_or_nothing_known_is_refused() {
        for text in [
            r#"{"payload":"a","payload_base64":"YQ=="}"#,
            r#"{"payload_base64":"?"}"#,
            r#"{"id":"12"}"#,
            r#"{"id":"zz"}"#,
            r#"{"append_time":"soon"}"#,
            r#"{"redacted":"erased"}"#,
            r#"{"colour":1}"#,
            "[]",
        ] {
            assert!(Line::parse(text.as_bytes()).and_then(Line::into_record).is_err(), "{text}");
        }
    }
}
