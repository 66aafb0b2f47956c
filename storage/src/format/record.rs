//! One record, in the protobuf encoding that is also on the wire.
//!
//! ```text
//! message Record {
//!   bytes  id           = 1;   // 16 bytes; absent: derived from topic, time and offset
//!   bytes  key          = 2;   // absent: the record belongs to no stream
//!   string type         = 3;
//!   repeated string tags    = 4;
//!   repeated Header headers = 5;   // message Header { string name = 1; bytes value = 2; }
//!   string content_type = 6;
//!   bytes  payload      = 7;   // absent: a tombstone
//!   string erasure_key  = 8;   // absent: the payload is not sealed
//!   bytes  sealed       = 9;   // in the place of a payload, on disk only: the drawing is in `crate::erasure::seal`
//!   enum   redacted     = 10;  // in the place of a payload that cannot be read, on the wire only
//! }
//! ```
//!
//! Offset, time and revision are not in it: they follow from the batch, so that the bytes of a client are stored
//! and sent as they came. Fields with other numbers are kept and ignored.

use super::Invalid;
use super::wire::{Fields, put_bytes, varint, varint_bytes};

/// Field numbers of a record.
pub mod field {
    #![allow(missing_docs, reason = "the drawing above says it")]
    pub const ID: u32 = 1;
    pub const KEY: u32 = 2;
    pub const TYPE: u32 = 3;
    pub const TAG: u32 = 4;
    pub const HEADER: u32 = 5;
    pub const CONTENT_TYPE: u32 = 6;
    pub const PAYLOAD: u32 = 7;
    pub const ERASURE_KEY: u32 = 8;
    pub const SEALED: u32 = 9;
    pub const REDACTED: u32 = 10;
    pub const HEADER_NAME: u32 = 1;
    pub const HEADER_VALUE: u32 = 2;
    /// Field number of a record in the body of a batch.
    pub const RECORD: u32 = 1;
}

/// What a record may hold at most.
pub mod limit {
    /// Bytes of an id, exactly.
    pub const ID_BYTES: usize = 16;
    /// Bytes of a key.
    pub const KEY_BYTES_MAX: usize = 4096;
    /// Bytes of a type.
    pub const TYPE_BYTES_MAX: usize = 255;
    /// Bytes of one tag.
    pub const TAG_BYTES_MAX: usize = 255;
    /// Tags of a record.
    pub const TAGS_MAX: usize = 64;
    /// Headers of a record.
    pub const HEADERS_MAX: usize = 128;
    /// Bytes of one header's name.
    pub const HEADER_NAME_BYTES_MAX: usize = 255;
    /// Bytes of one header's value.
    pub const HEADER_VALUE_BYTES_MAX: usize = 64 << 10;
    /// Bytes of a content type.
    pub const CONTENT_TYPE_BYTES_MAX: usize = 255;
    /// Bytes of an erasure key; it has one at least.
    pub const ERASURE_KEY_BYTES_MAX: usize = 255;
}

/// Why a payload that was there cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Redaction {
    /// Its erasure key was destroyed: it is gone for good.
    Erased,
    /// It is sealed, and whoever reads has no master key.
    Locked,
}

impl Redaction {
    pub(crate) const fn code(self) -> u64 {
        match self {
            Self::Erased => 1,
            Self::Locked => 2,
        }
    }

    fn from_code(code: u64) -> Result<Self, Invalid> {
        match code {
            1 => Ok(Self::Erased),
            2 => Ok(Self::Locked),
            _ => Err(Invalid::new("an unknown redaction", 0)),
        }
    }
}

/// A record to append.
///
/// A payload of `None` is a tombstone: compaction takes it as the deletion of its key.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Record {
    /// 16 bytes that name the record everywhere; `None` derives one from topic, time and offset.
    pub id: Option<[u8; 16]>,
    /// The entity it belongs to: up to 4096 bytes.
    pub key: Option<Vec<u8>>,
    /// What happened, up to 255 bytes. Empty: not said.
    pub record_type: String,
    /// Up to 64 labels, 1 to 255 bytes each.
    pub tags: Vec<String>,
    /// Up to 128 pairs of name (1 to 255 bytes) and value (up to 64 KiB).
    pub headers: Vec<(String, Vec<u8>)>,
    /// Media type of the payload, up to 255 bytes. Empty: not said.
    pub content_type: String,
    /// The content, or `None` for a tombstone.
    pub payload: Option<Vec<u8>>,
    /// Whose data the payload is, 1 to 255 bytes: it is sealed with a key of this name, and unreadable in every copy once
    /// [`Store::erase`](crate::Store::erase) has destroyed it. Everything else of the record stays as it is.
    pub erasure_key: Option<String>,
}

impl Record {
    /// A record with just a payload.
    pub fn new(payload: impl Into<Vec<u8>>) -> Self {
        Self { payload: Some(payload.into()), ..Self::default() }
    }

    /// A record of a key.
    pub fn keyed(key: impl Into<Vec<u8>>, payload: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..Self::new(payload) }
    }

    /// The deletion of a key.
    pub fn tombstone(key: impl Into<Vec<u8>>) -> Self {
        Self { key: Some(key.into()), ..Self::default() }
    }

    /// The same record with its payload sealed with this key.
    #[must_use]
    pub fn with_erasure_key(mut self, erasure_key: impl Into<String>) -> Self {
        self.erasure_key = Some(erasure_key.into());
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
    pub fn with_header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Whether it has a key, a type or a tag.
    pub(crate) fn has_terms(&self) -> bool {
        self.key.is_some() || !self.record_type.is_empty() || !self.tags.is_empty()
    }

    /// The payload, if there is nothing else.
    #[inline]
    pub(crate) fn payload_alone(&self) -> Option<&[u8]> {
        let is_alone = self.id.is_none()
            && self.key.is_none()
            && self.record_type.is_empty()
            && self.tags.is_empty()
            && self.headers.is_empty()
            && self.content_type.is_empty()
            && self.erasure_key.is_none();
        self.payload.as_deref().filter(|_| is_alone)
    }

    /// How many bytes [`encode`](Self::encode) appends.
    pub fn encoded_bytes(&self) -> usize {
        // Every field number here is below 16: its tag is one byte.
        let of = |bytes: usize| 1 + varint_bytes(bytes as u64) + bytes;
        let text = |text: &str| if text.is_empty() { 0 } else { of(text.len()) };
        let headers: usize =
            self.headers.iter().map(|(name, value)| of(of(name.len()) + of(value.len()))).sum();
        self.id.map_or(0, |id| of(id.len()))
            + self.key.as_ref().map_or(0, |key| of(key.len()))
            + text(&self.record_type)
            + self.tags.iter().map(|tag| of(tag.len())).sum::<usize>()
            + headers
            + text(&self.content_type)
            + self.payload.as_ref().map_or(0, |payload| of(payload.len()))
            + self.erasure_key.as_ref().map_or(0, |key| of(key.len()))
    }

    /// The first bound that the record breaks: what, its size, and the limit.
    pub fn check(&self) -> Result<(), (&'static str, usize, usize)> {
        check_bounds(
            self.key.as_deref(),
            [&self.record_type, &self.content_type],
            self.tags.iter().map(String::len),
            self.headers.iter().map(|(name, value)| (name.len(), value.len())),
            self.erasure_key.as_deref(),
        )
    }

    /// Appends the encoding. Bounds are checked by [`check`](Self::check).
    pub fn encode(&self, out: &mut Vec<u8>) {
        if let Some(id) = &self.id {
            put_bytes(out, field::ID, id);
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
            let of = |bytes: usize| 1 + varint_bytes(bytes as u64) + bytes;
            super::wire::put_varint(out, u64::from(field::HEADER) << 3 | 2);
            super::wire::put_varint(out, (of(name.len()) + of(value.len())) as u64);
            put_bytes(out, field::HEADER_NAME, name.as_bytes());
            put_bytes(out, field::HEADER_VALUE, value);
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
}

/// The fields of a record, borrowed from its bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordView<'a> {
    /// See [`Record::id`].
    pub id: Option<[u8; 16]>,
    /// See [`Record::key`].
    pub key: Option<&'a [u8]>,
    /// See [`Record::record_type`].
    pub record_type: &'a str,
    /// See [`Record::content_type`].
    pub content_type: &'a str,
    /// See [`Record::payload`].
    pub payload: Option<&'a [u8]>,
    /// See [`Record::erasure_key`].
    pub erasure_key: Option<&'a str>,
    /// Why there is no payload although there was one.
    pub redacted: Option<Redaction>,
    /// The payload as it is stored, sealed; readers never see it. Empty: compaction has removed it.
    pub(crate) sealed: Option<&'a [u8]>,
    bytes: &'a [u8],
}

impl<'a> RecordView<'a> {
    /// Decodes a record. Of a field that may stand once, the last one counts, as protobuf has it.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, Invalid> {
        let mut view = Self { bytes, ..Self::default() };
        let mut fields = Fields::new(bytes);
        while let Some(next) = fields.next() {
            let (number, value) = next?;
            let end = fields.position();
            let at = |invalid: Invalid| Invalid { position: end, ..invalid };
            match number {
                field::ID => {
                    let id = value.bytes().map_err(at)?;
                    view.id = Some(id.try_into().map_err(|_| Invalid::new("an id has 16 bytes", end))?);
                }
                field::KEY => view.key = Some(value.bytes().map_err(at)?),
                field::TYPE => view.record_type = value.text().map_err(at)?,
                field::CONTENT_TYPE => view.content_type = value.text().map_err(at)?,
                field::PAYLOAD => view.payload = Some(value.bytes().map_err(at)?),
                field::ERASURE_KEY => view.erasure_key = Some(value.text().map_err(at)?),
                field::SEALED => view.sealed = Some(value.bytes().map_err(at)?),
                field::REDACTED => {
                    let code = value.number().map_err(at)?;
                    view.redacted = Some(Redaction::from_code(code).map_err(at)?);
                }
                field::TAG => drop(value.text().map_err(at)?),
                field::HEADER => drop(header(value.bytes().map_err(at)?).map_err(at)?),
                _ => {}
            }
        }
        Ok(view)
    }

    /// The encoded record.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The tags, in order.
    pub fn tags(&self) -> impl Iterator<Item = &'a str> + use<'a> {
        self.repeated(field::TAG).filter_map(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&'a str, &'a [u8])> + use<'a> {
        self.repeated(field::HEADER).filter_map(|bytes| header(bytes).ok())
    }

    /// Whether it says that its key was deleted: it has no payload, and never had one.
    pub fn is_tombstone(&self) -> bool {
        self.payload.is_none() && self.sealed.is_none() && self.redacted.is_none()
    }

    /// A copy that stands alone. One of a record whose payload cannot be read looks like a tombstone.
    pub fn to_record(&self) -> Record {
        Record {
            id: self.id,
            key: self.key.map(<[u8]>::to_vec),
            record_type: self.record_type.into(),
            tags: self.tags().map(String::from).collect(),
            headers: self.headers().map(|(name, value)| (name.into(), value.to_vec())).collect(),
            content_type: self.content_type.into(),
            payload: self.payload.map(<[u8]>::to_vec),
            erasure_key: self.erasure_key.map(Into::into),
        }
    }

    /// The first bound that the record breaks: what, its size, and the limit.
    pub fn check(&self) -> Result<(), (&'static str, usize, usize)> {
        check_bounds(
            self.key,
            [self.record_type, self.content_type],
            self.tags().map(str::len),
            self.headers().map(|(name, value)| (name.len(), value.len())),
            self.erasure_key,
        )
    }

    fn repeated(&self, wanted: u32) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        Fields::new(self.bytes).filter_map(move |field| match field {
            Ok((number, super::wire::Value::Bytes(bytes))) if number == wanted => Some(bytes),
            _ => None,
        })
    }
}

fn check_bounds(
    key: Option<&[u8]>,
    [record_type, content_type]: [&str; 2],
    tags: impl Iterator<Item = usize>,
    headers: impl Iterator<Item = (usize, usize)>,
    erasure_key: Option<&str>,
) -> Result<(), (&'static str, usize, usize)> {
    use limit::*;
    let bound = |what, actual, max| if actual > max { Err((what, actual, max)) } else { Ok(()) };
    bound("key", key.map_or(0, <[u8]>::len), KEY_BYTES_MAX)?;
    bound("type", record_type.len(), TYPE_BYTES_MAX)?;
    bound("content type", content_type.len(), CONTENT_TYPE_BYTES_MAX)?;
    bound("erasure key", erasure_key.map_or(0, str::len), ERASURE_KEY_BYTES_MAX)?;
    let (mut tag_count, mut header_count) = (0, 0);
    for bytes in tags {
        bound("tag", bytes, TAG_BYTES_MAX)?;
        tag_count += 1;
    }
    bound("list of tags", tag_count, TAGS_MAX)?;
    for (name, value) in headers {
        bound("header name", name, HEADER_NAME_BYTES_MAX)?;
        bound("header value", value, HEADER_VALUE_BYTES_MAX)?;
        header_count += 1;
    }
    bound("list of headers", header_count, HEADERS_MAX)
}

fn header(bytes: &[u8]) -> Result<(&str, &[u8]), Invalid> {
    let (mut name, mut value) = ("", &[][..]);
    for next in Fields::new(bytes) {
        match next? {
            (field::HEADER_NAME, found) => name = found.text()?,
            (field::HEADER_VALUE, found) => value = found.bytes()?,
            _ => {}
        }
    }
    Ok((name, value))
}

/// What records are found by, from an encoded record: its key, its type and its tags. As [`RecordView::decode`] has them,
/// without a look at anything else.
#[inline]
pub(crate) fn terms_of<'a>(
    bytes: &'a [u8],
    mut each_tag: impl FnMut(&'a [u8]),
) -> Result<(Option<&'a [u8]>, &'a [u8]), Invalid> {
    let (mut key, mut record_type) = (None, &[][..]);
    for next in Fields::new(bytes) {
        match next? {
            (field::KEY, value) => key = Some(value.bytes()?),
            (field::TYPE, value) => record_type = value.bytes()?,
            (field::TAG, value) => each_tag(value.bytes()?),
            _ => {}
        }
    }
    Ok((key, record_type))
}

/// What stands in the body of a batch before a payload that is all its record has: tag and length of the record, tag and
/// length of the payload. Up to eight bytes as a number, the first one lowest.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PayloadPrefix {
    pub(crate) bytes: u64,
    pub(crate) len: usize,
}

impl PayloadPrefix {
    /// `None` if the payload is shorter than a prefix can be, or too long for its lengths to have two bytes at most.
    #[inline]
    pub(crate) fn new(payload_bytes: usize) -> Option<Self> {
        if !(8..0x4000 - 4).contains(&payload_bytes) {
            return None;
        }
        let mut prefix = Self { bytes: u64::from(field::RECORD << 3 | 2), len: 1 };
        prefix.put_varint((1 + varint_bytes(payload_bytes as u64) + payload_bytes) as u64);
        prefix.bytes |= u64::from(field::PAYLOAD << 3 | 2) << (8 * prefix.len);
        prefix.len += 1;
        prefix.put_varint(payload_bytes as u64);
        Some(prefix)
    }

    #[inline]
    fn put_varint(&mut self, value: u64) {
        let (bytes, len) = if value < 0x80 { (value, 1) } else { (value & 0x7f | 0x80 | value >> 7 << 8, 2) };
        self.bytes |= bytes << (8 * self.len);
        self.len += len;
    }
}

/// Walks over the records in the body of a batch: `repeated Record records = 1`.
#[derive(Clone, Debug)]
pub struct Records<'a> {
    body: &'a [u8],
    at: usize,
}

impl<'a> Records<'a> {
    /// The records of `body`.
    pub fn new(body: &'a [u8]) -> Self {
        Self { body, at: 0 }
    }

    /// Where the next record's field starts.
    pub fn position(&self) -> usize {
        self.at
    }

    #[inline]
    fn record(&mut self) -> Result<&'a [u8], Invalid> {
        const TAG: u8 = (field::RECORD << 3 | 2) as u8;
        if self.body[self.at] != TAG {
            return Err(Invalid::new("the body of a batch holds records only", self.at));
        }
        let (length, from) = varint(self.body, self.at + 1)?;
        let record = usize::try_from(length)
            .ok()
            .and_then(|length| self.body.get(from..from.checked_add(length)?))
            .ok_or(Invalid::new("a record is longer than its batch", self.at))?;
        self.at = from + record.len();
        Ok(record)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<&'a [u8], Invalid>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.body.len() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.at = self.body.len();
        }
        Some(record)
    }
}

/// How many bytes [`put_record`] appends.
pub fn encoded_field_bytes(record: &Record) -> usize {
    let bytes = record.encoded_bytes();
    1 + varint_bytes(bytes as u64) + bytes
}

/// Appends a record to the body of a batch.
pub fn put_record(body: &mut Vec<u8>, record: &Record) {
    super::wire::put_varint(body, u64::from(field::RECORD) << 3 | 2);
    super::wire::put_varint(body, record.encoded_bytes() as u64);
    record.encode(body);
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    pub(crate) fn any_record() -> impl Strategy<Value = Record> {
        let text = "[a-zA-Zäß0-9]{0,8}";
        (
            any::<Option<[u8; 16]>>(),
            any::<Option<Vec<u8>>>(),
            text,
            prop::collection::vec(text, 0..4),
            prop::collection::vec((text, any::<Vec<u8>>()), 0..4),
            text,
            any::<Option<Vec<u8>>>(),
            prop::option::of("[a-z]{1,8}"),
        )
            .prop_map(|(id, key, record_type, tags, headers, content_type, payload, erasure_key)| {
                Record { id, key, record_type, tags, headers, content_type, payload, erasure_key }
            })
    }

    proptest! {
        #[test]
        fn a_record_comes_back_as_it_was(record in any_record()) {
            let mut bytes = Vec::new();
            record.encode(&mut bytes);
            prop_assert_eq!(bytes.len(), record.encoded_bytes());
            prop_assert_eq!(RecordView::decode(&bytes).unwrap().to_record(), record);
        }

        #[test]
        fn records_of_a_body_come_back_in_order(records in prop::collection::vec(any_record(), 0..5)) {
            let mut body = Vec::new();
            for record in &records {
                put_record(&mut body, record);
            }
            let found: Vec<_> =
                Records::new(&body).map(|r| RecordView::decode(r.unwrap()).unwrap().to_record()).collect();
            prop_assert_eq!(found, records);
        }

        #[test]
        fn the_terms_of_a_record_are_those_of_its_view(records in prop::collection::vec(any_record(), 1..3)) {
            // Two on end are one whose fields stand twice: the last one counts.
            let mut bytes = Vec::new();
            records.iter().for_each(|record| record.encode(&mut bytes));
            let view = RecordView::decode(&bytes).unwrap();
            let mut tags = Vec::new();
            let (key, record_type) = terms_of(&bytes, |tag| tags.push(tag)).unwrap();
            prop_assert_eq!((key, record_type), (view.key, view.record_type.as_bytes()));
            prop_assert_eq!(tags, view.tags().map(str::as_bytes).collect::<Vec<_>>());
        }

        #[test]
        fn any_bytes_are_a_record_or_an_error(bytes: Vec<u8>) {
            if let Ok(view) = RecordView::decode(&bytes) {
                let _ = (view.tags().count(), view.headers().count(), view.check());
            }
            prop_assert!(Records::new(&bytes).count() <= bytes.len());
        }
    }

    #[test]
    fn a_field_of_a_later_version_is_kept_and_ignored() {
        let mut bytes = Vec::new();
        Record::keyed("k", "v").encode(&mut bytes);
        put_bytes(&mut bytes, 90, b"later");
        let view = RecordView::decode(&bytes).unwrap();
        assert_eq!((view.key, view.payload), (Some(&b"k"[..]), Some(&b"v"[..])));
        assert_eq!(view.as_bytes(), bytes);
    }

    #[test]
    fn an_empty_payload_is_not_a_tombstone() {
        let mut bytes = Vec::new();
        Record::new("").encode(&mut bytes);
        assert_eq!(RecordView::decode(&bytes).unwrap().payload, Some(&[][..]));
        assert_eq!(RecordView::decode(&[]).unwrap().payload, None);
    }
}
