//! A record to append.

use bytes::{Bytes, BytesMut};

use crate::error::{Error, Result};
use crate::wire::{field_bytes, put_bytes, put_head};

/// Field numbers of a record, and of its place in a batch.
pub(crate) mod field {
    pub(crate) const ID: u32 = 1;
    pub(crate) const KEY: u32 = 2;
    pub(crate) const TYPE: u32 = 3;
    pub(crate) const TAG: u32 = 4;
    pub(crate) const HEADER: u32 = 5;
    pub(crate) const CONTENT_TYPE: u32 = 6;
    pub(crate) const PAYLOAD: u32 = 7;
    pub(crate) const ERASURE_KEY: u32 = 8;
    pub(crate) const REDACTED: u32 = 10;
    pub(crate) const HEADER_NAME: u32 = 1;
    pub(crate) const HEADER_VALUE: u32 = 2;
    pub(crate) const RECORD: u32 = 1;
}

/// A record to append. A payload of `None` is a tombstone: compaction takes it as the deletion of its key.
///
/// ```
/// use quipu_client::Record;
///
/// let record = Record::keyed("order-7", "placed").with_type("OrderPlaced").with_tag("eu").with_header("by", "web");
/// assert_eq!(record.payload.as_deref(), Some(&b"placed"[..]));
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// 16 bytes that name the record everywhere, such as [`RecordIds`](crate::RecordIds) makes. `None`: an append session
    /// gives one, and so does the server.
    pub id: Option<[u8; 16]>,
    /// The entity it belongs to: up to 4096 bytes.
    pub key: Option<Bytes>,
    /// What happened, up to 255 bytes. Empty: not said.
    pub record_type: String,
    /// Up to 64 labels, 1 to 255 bytes each.
    pub tags: Vec<String>,
    /// Up to 128 pairs of name (1 to 255 bytes) and value (up to 64 KiB).
    pub headers: Vec<(String, Bytes)>,
    /// Media type of the payload, up to 255 bytes. Empty: not said.
    pub content_type: String,
    /// The content, or `None` for a tombstone.
    pub payload: Option<Bytes>,
    /// Whose data the payload is, 1 to 255 bytes: the server seals it with a key of this name, and once that is destroyed
    /// ([`Client::erase_keys`](crate::Client::erase_keys)) it is unreadable in every copy of the store. Everything else of
    /// the record stays readable: have nothing in key, tags and headers that is to be erased.
    pub erasure_key: Option<String>,
}

impl Record {
    /// A record with just a payload.
    pub fn new(payload: impl Into<Bytes>) -> Self {
        Self { payload: Some(payload.into()), ..Self::default() }
    }

    /// A record of a key.
    pub fn keyed(key: impl Into<Bytes>, payload: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..Self::new(payload) }
    }

    /// The deletion of a key.
    pub fn tombstone(key: impl Into<Bytes>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    /// The same record with its payload sealed with this key.
    #[must_use]
    pub fn with_erasure_key(mut self, erasure_key: impl Into<String>) -> Self {
        self.erasure_key = Some(erasure_key.into());
        self
    }

    /// The same record with an id.
    #[must_use]
    pub fn with_id(mut self, id: [u8; 16]) -> Self {
        self.id = Some(id);
        self
    }

    /// The same record with a type.
    #[must_use]
    pub fn with_type(mut self, record_type: impl Into<String>) -> Self {
        self.record_type = record_type.into();
        self
    }

    /// The same record with one more tag.
    #[must_use]
    pub fn with_tag(mut self, tag: impl Into<String>) -> Self {
        self.tags.push(tag.into());
        self
    }

    /// The same record with one more header.
    #[must_use]
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same record with the media type of its payload.
    #[must_use]
    pub fn with_content_type(mut self, content_type: impl Into<String>) -> Self {
        self.content_type = content_type.into();
        self
    }

    /// How many bytes it has when encoded, as the server counts them.
    #[must_use]
    pub fn encoded_bytes(&self) -> usize {
        let text = |text: &str| if text.is_empty() { 0 } else { field_bytes(text.len()) };
        self.id.map_or(0, |id| field_bytes(id.len()))
            + self.key.as_ref().map_or(0, |key| field_bytes(key.len()))
            + text(&self.record_type)
            + self.tags.iter().map(|tag| field_bytes(tag.len())).sum::<usize>()
            + self.headers.iter().map(|(name, value)| field_bytes(header_bytes(name, value))).sum::<usize>()
            + text(&self.content_type)
            + self.payload.as_ref().map_or(0, |payload| field_bytes(payload.len()))
            + self.erasure_key.as_ref().map_or(0, |key| field_bytes(key.len()))
    }

    /// Appends the record as a field of a batch, with `id` if it has none of its own.
    pub(crate) fn encode(&self, id: Option<[u8; 16]>, out: &mut BytesMut) {
        let given = if self.id.is_none() { id } else { None };
        let length = self.encoded_bytes() + given.map_or(0, |id| field_bytes(id.len()));
        out.reserve(field_bytes(length));
        put_head(out, field::RECORD, length);
        if let Some(id) = self.id.or(given) {
            put_bytes(out, field::ID, &id);
        }
        if let Some(key) = &self.key {
            put_bytes(out, field::KEY, key);
        }
        if !self.record_type.is_empty() {
            put_bytes(out, field::TYPE, self.record_type.as_bytes());
        }
        for tag in &self.tags {
            put_bytes(out, field::TAG, tag.as_bytes());
        }
        for (name, value) in &self.headers {
            put_head(out, field::HEADER, header_bytes(name, value));
            put_bytes(out, field::HEADER_NAME, name.as_bytes());
            if !value.is_empty() {
                put_bytes(out, field::HEADER_VALUE, value);
            }
        }
        if !self.content_type.is_empty() {
            put_bytes(out, field::CONTENT_TYPE, self.content_type.as_bytes());
        }
        if let Some(payload) = &self.payload {
            put_bytes(out, field::PAYLOAD, payload);
        }
        if let Some(erasure_key) = &self.erasure_key {
            put_bytes(out, field::ERASURE_KEY, erasure_key.as_bytes());
        }
    }

    /// Checks the bounds that every server has, so that one bad record does not end a session with good ones.
    pub(crate) fn check(&self) -> Result<()> {
        let bound = |what: &str, actual: usize, range: std::ops::RangeInclusive<usize>| {
            let (least, most) = (*range.start(), *range.end());
            if range.contains(&actual) {
                return Ok(());
            }
            let message = format!("the record's {what} has {actual}; it must be {least} to {most}");
            Err(Error::TooLarge { message, limit: Some(most as u64) })
        };
        bound("key in bytes", self.key.as_ref().map_or(0, Bytes::len), 0..=4096)?;
        bound("type in bytes", self.record_type.len(), 0..=255)?;
        bound("content type in bytes", self.content_type.len(), 0..=255)?;
        if let Some(erasure_key) = &self.erasure_key {
            bound("erasure key in bytes", erasure_key.len(), 1..=255)?;
        }
        bound("number of tags", self.tags.len(), 0..=64)?;
        bound("number of headers", self.headers.len(), 0..=128)?;
        self.tags.iter().try_for_each(|tag| bound("tag in bytes", tag.len(), 1..=255))?;
        self.headers.iter().try_for_each(|(name, value)| {
            bound("header name in bytes", name.len(), 1..=255)?;
            bound("header value in bytes", value.len(), 0..=64 << 10)
        })
    }
}

fn header_bytes(name: &str, value: &Bytes) -> usize {
    // As any protobuf library has it: an empty value is left out.
    field_bytes(name.len()) + if value.is_empty() { 0 } else { field_bytes(value.len()) }
}

/// Just a payload.
impl From<&'static str> for Record {
    fn from(payload: &'static str) -> Self {
        Self::new(payload)
    }
}

/// Just a payload.
impl From<String> for Record {
    fn from(payload: String) -> Self {
        Self::new(payload)
    }
}

/// Just a payload.
impl From<Vec<u8>> for Record {
    fn from(payload: Vec<u8>) -> Self {
        Self::new(payload)
    }
}

/// Just a payload.
impl From<Bytes> for Record {
    fn from(payload: Bytes) -> Self {
        Self::new(payload)
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use quipu_proto::v1;

    use super::*;

    #[test]
    fn a_record_is_encoded_as_prost_encodes_it() {
        let record = Record::keyed("k", vec![7; 300])
            .with_type("t")
            .with_tag("a")
            .with_tag("b")
            .with_header("h", "v")
            .with_header("empty", "")
            .with_content_type("text/plain")
            .with_erasure_key("customer-17");
        let id = [9; 16];
        let mut out = BytesMut::new();
        record.encode(Some(id), &mut out);
        Record::tombstone("k").encode(None, &mut out);
        let batch = v1::RecordBatch::decode(&out[..]).unwrap();
        let first = &batch.records[0];
        assert_eq!(first.id.as_deref(), Some(&id[..]));
        assert_eq!(first.key.as_deref(), Some(&b"k"[..]));
        assert_eq!((&first.r#type[..], &first.content_type[..]), ("t", "text/plain"));
        assert_eq!(first.erasure_key.as_deref(), Some("customer-17"));
        assert_eq!(first.tags, ["a", "b"]);
        assert_eq!(first.headers[1], v1::Header { name: "empty".into(), value: Bytes::new() });
        assert_eq!(first.payload.as_ref().map(Bytes::len), Some(300));
        assert_eq!(batch.records[1].payload, None);
        let mut again = Vec::new();
        v1::RecordBatch { records: batch.records, ..v1::RecordBatch::default() }.encode(&mut again).unwrap();
        assert_eq!(again, out);
    }

    #[test]
    fn a_record_beyond_a_bound_is_refused_before_it_is_sent() {
        assert!(Record::new("").check().is_ok());
        for bad in [
            Record::keyed(vec![0; 4097], ""),
            Record::new("").with_type("x".repeat(256)),
            Record::new("").with_tag(""),
            Record::new("").with_erasure_key(""),
            Record::new("").with_header("", "v"),
        ] {
            assert!(matches!(bad.check(), Err(Error::TooLarge { .. })), "{bad:?}");
        }
    }
}
