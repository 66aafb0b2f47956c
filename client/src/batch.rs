//! Records that were read: a batch as it came, looked into where it lies.

use std::ops::Range;

use bytes::{Bytes, BytesMut};
use quipu_proto::v1;

use crate::erasure::Redaction;
use crate::error::{Error, Result};
use crate::record::{Record, field};
use crate::wire::{Fields, Malformed, Value, varint};

/// Field numbers of a batch.
mod batch_field {
    pub(super) const FIRST_OFFSET: u32 = 2;
    pub(super) const OFFSETS: u32 = 3;
    pub(super) const APPEND_TIME_MS: u32 = 4;
    pub(super) const NEXT_OFFSET: u32 = 5;
    pub(super) const RECORDS_CRC: u32 = 6;
    pub(super) const REVISIONS: u32 = 7;
}

/// Records of one topic that lie one behind the other, checked against the checksum that came with them.
///
/// The records are slices of the message that brought them: holding one holds its message in memory.
#[derive(Clone, Debug)]
pub struct RecordBatch {
    /// The `records` fields, tags and lengths included.
    records: Bytes,
    count: usize,
    first_offset: u64,
    offsets: Vec<u64>,
    append_time_ms: u64,
    next_offset: u64,
    revisions: Vec<u64>,
}

impl RecordBatch {
    /// Takes the batch that is the encoded `message`, and compares its checksum.
    pub(crate) fn decode(message: Bytes) -> Result<Self> {
        let malformed = |detail: Malformed| Error::protocol(format!("a batch of records: {detail}"));
        let mut batch = Self {
            records: Bytes::new(),
            count: 0,
            first_offset: 0,
            offsets: Vec::new(),
            append_time_ms: 0,
            next_offset: 0,
            revisions: Vec::new(),
        };
        let mut expected = None;
        // Records stand one behind the other, unless somebody between the server and us has encoded the message anew.
        let mut runs: Vec<Range<usize>> = Vec::new();
        let mut fields = Fields::new(&message);
        loop {
            let start = fields.position();
            let Some(next) = fields.next() else { break };
            let (number, value) = next.map_err(malformed)?;
            match number {
                field::RECORD => {
                    value.range().map_err(malformed)?;
                    batch.count += 1;
                    match runs.last_mut() {
                        Some(run) if run.end == start => run.end = fields.position(),
                        _ => runs.push(start..fields.position()),
                    }
                }
                batch_field::FIRST_OFFSET => batch.first_offset = value.number().map_err(malformed)?,
                batch_field::OFFSETS => numbers(&message, value, &mut batch.offsets).map_err(malformed)?,
                batch_field::APPEND_TIME_MS => batch.append_time_ms = value.number().map_err(malformed)?,
                batch_field::NEXT_OFFSET => batch.next_offset = value.number().map_err(malformed)?,
                batch_field::RECORDS_CRC => expected = Some(value.number().map_err(malformed)? as u32),
                batch_field::REVISIONS => {
                    numbers(&message, value, &mut batch.revisions).map_err(malformed)?;
                }
                _ => {}
            }
        }
        batch.records = match &runs[..] {
            [] => return Err(malformed("it has no records")),
            [run] => message.slice(run.clone()),
            runs => {
                let mut joined = BytesMut::new();
                runs.iter().for_each(|run| joined.extend_from_slice(&message[run.clone()]));
                joined.freeze()
            }
        };
        if !(batch.offsets.is_empty() || batch.offsets.len() == batch.count) {
            return Err(malformed("it has not as many offsets as records"));
        }
        if batch.first_offset.checked_add(batch.count as u64).is_none() {
            return Err(malformed("its offsets end beyond the last there can be"));
        }
        if let Some(expected) = expected {
            let actual = crc32fast::hash(&batch.records);
            if actual != expected {
                return Err(Error::Damaged { first_offset: batch.first_offset, expected, actual });
            }
        }
        Ok(batch)
    }

    /// How many records there are: at least one.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.count
    }

    /// The encoded records: protobuf `repeated Record records = 1`.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.records
    }

    /// Offset of the first of these records.
    #[must_use]
    pub fn first_offset(&self) -> u64 {
        self.first_offset
    }

    /// Where reading goes on: one past the last offset that the batch covers, also over records that a filter or
    /// compaction left out (backwards: the lowest offset that it covers).
    #[must_use]
    pub fn next_offset(&self) -> u64 {
        self.next_offset
    }

    /// When the records were appended, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn append_time_ms(&self) -> u64 {
        self.append_time_ms
    }

    /// The records.
    #[must_use]
    pub fn iter(&self) -> Records {
        Records { batch: self.clone(), at: 0, index: 0, keyed: 0 }
    }

    fn offset(&self, index: usize) -> u64 {
        self.offsets.get(index).copied().unwrap_or(self.first_offset + index as u64)
    }
}

impl IntoIterator for RecordBatch {
    type Item = Result<StoredRecord>;
    type IntoIter = Records;

    fn into_iter(self) -> Records {
        Records { batch: self, at: 0, index: 0, keyed: 0 }
    }
}

impl IntoIterator for &RecordBatch {
    type Item = Result<StoredRecord>;
    type IntoIter = Records;

    fn into_iter(self) -> Records {
        self.iter()
    }
}

/// The records of a batch, decoded as they are asked for; ends after the first that cannot be read.
#[derive(Clone, Debug)]
pub struct Records {
    batch: RecordBatch,
    at: usize,
    index: usize,
    /// Those of them that had a key.
    keyed: usize,
}

impl Iterator for Records {
    type Item = Result<StoredRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        let bytes = &self.batch.records;
        let from = self.at;
        // The first walk has seen them all. Somebody else may write a tag in more bytes than it needs.
        let mut fields = Fields::new(&bytes[from..]);
        let field = fields.next()?;
        self.at = from + fields.position();
        let offset = self.batch.offset(self.index);
        let record = field.and_then(|(_, value)| value.range()).and_then(|range| {
            StoredRecord::decode(
                bytes.slice(from + range.start..from + range.end),
                offset,
                self.batch.append_time_ms,
            )
        });
        let record = record.map(|mut record| {
            if record.key.is_some() {
                record.revision = self.batch.revisions.get(self.keyed).copied();
                self.keyed += 1;
            }
            record
        });
        self.index += 1;
        Some(record.map_err(|detail| {
            self.at = bytes.len();
            Error::protocol(format!("record {offset}: {detail}"))
        }))
    }
}

/// A record that was read: a slice of the message that brought it.
#[derive(Clone, Debug)]
pub struct StoredRecord {
    bytes: Bytes,
    offset: u64,
    append_time_ms: u64,
    revision: Option<u64>,
    id: Option<[u8; 16]>,
    key: Option<Range<usize>>,
    record_type: Range<usize>,
    content_type: Range<usize>,
    payload: Option<Range<usize>>,
    erasure_key: Option<Range<usize>>,
    redacted: Option<Redaction>,
}

impl StoredRecord {
    pub(crate) fn decode(bytes: Bytes, offset: u64, append_time_ms: u64) -> Result<Self, Malformed> {
        let mut record = Self {
            bytes: Bytes::new(),
            offset,
            append_time_ms,
            revision: None,
            id: None,
            key: None,
            record_type: 0..0,
            content_type: 0..0,
            payload: None,
            erasure_key: None,
            redacted: None,
        };
        let text = |range: Range<usize>| {
            std::str::from_utf8(&bytes[range.clone()]).map(|_| range).map_err(|_| "text is not UTF-8")
        };
        for next in Fields::new(&bytes) {
            let (number, value) = next?;
            match number {
                field::ID => {
                    let id = bytes[value.range()?].try_into().map_err(|_| "an id has 16 bytes")?;
                    record.id = Some(id);
                }
                field::KEY => record.key = Some(value.range()?),
                field::TYPE => record.record_type = text(value.range()?)?,
                field::TAG => {
                    text(value.range()?)?;
                }
                field::HEADER => drop(header(&bytes, value.range()?)?),
                field::CONTENT_TYPE => record.content_type = text(value.range()?)?,
                field::PAYLOAD => record.payload = Some(value.range()?),
                field::ERASURE_KEY => record.erasure_key = Some(text(value.range()?)?),
                field::REDACTED => record.redacted = Redaction::from_number(value.number()?),
                _ => {}
            }
        }
        record.bytes = bytes;
        Ok(record)
    }

    /// Its number in the topic.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// When it was appended, in milliseconds since the Unix epoch.
    #[must_use]
    pub fn append_time_ms(&self) -> u64 {
        self.append_time_ms
    }

    /// Its place among all records that its key ever had, from 0; none without a key.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.revision
    }

    /// The id that the writer gave. `None`: it gave none.
    #[must_use]
    pub fn id(&self) -> Option<[u8; 16]> {
        self.id
    }

    /// The entity that it belongs to.
    #[must_use]
    pub fn key(&self) -> Option<&[u8]> {
        self.key.clone().map(|range| &self.bytes[range])
    }

    /// What happened. Empty: not said.
    #[must_use]
    pub fn record_type(&self) -> &str {
        self.text(&self.record_type)
    }

    /// Media type of the payload. Empty: not said.
    #[must_use]
    pub fn content_type(&self) -> &str {
        self.text(&self.content_type)
    }

    /// The content. `None`: a tombstone, or it is [redacted](Self::redacted).
    #[must_use]
    pub fn payload(&self) -> Option<&[u8]> {
        self.payload.clone().map(|range| &self.bytes[range])
    }

    /// The content as a slice of the message, not copied.
    #[must_use]
    pub fn payload_bytes(&self) -> Option<Bytes> {
        self.payload.clone().map(|range| self.bytes.slice(range))
    }

    /// Whose data the payload is, if it is sealed.
    #[must_use]
    pub fn erasure_key(&self) -> Option<&str> {
        self.erasure_key.as_ref().map(|range| self.text(range))
    }

    /// Why there is no payload although there was one.
    #[must_use]
    pub fn redacted(&self) -> Option<Redaction> {
        self.redacted
    }

    /// The labels, in order.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.repeated(field::TAG).filter_map(|range| std::str::from_utf8(&self.bytes[range]).ok())
    }

    /// The headers, in order.
    pub fn headers(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.repeated(field::HEADER).filter_map(|range| header(&self.bytes, range).ok())
    }

    /// The encoded record, as the writer sent it.
    #[must_use]
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// A record to append that says the same. One of a record whose payload cannot be read is a tombstone: look at
    /// [`redacted`](Self::redacted) first.
    #[must_use]
    pub fn to_record(&self) -> Record {
        Record {
            id: self.id,
            key: self.key.clone().map(|range| self.bytes.slice(range)),
            record_type: self.record_type().into(),
            tags: self.tags().map(String::from).collect(),
            headers: self
                .headers()
                .map(|(name, value)| (name.into(), Bytes::copy_from_slice(value)))
                .collect(),
            content_type: self.content_type().into(),
            payload: self.payload_bytes(),
            erasure_key: self.erasure_key().map(String::from),
        }
    }

    fn repeated(&self, wanted: u32) -> impl Iterator<Item = Range<usize>> {
        Fields::new(&self.bytes).filter_map(move |next| match next {
            Ok((number, Value::Bytes(range))) if number == wanted => Some(range),
            _ => None,
        })
    }

    fn text(&self, range: &Range<usize>) -> &str {
        std::str::from_utf8(&self.bytes[range.clone()]).expect("checked when it was decoded")
    }
}

/// Name and value of the header that lies at `range`.
fn header(bytes: &[u8], range: Range<usize>) -> Result<(&str, &[u8]), Malformed> {
    let message = &bytes[range];
    let (mut name, mut content) = ("", &[][..]);
    for next in Fields::new(message) {
        match next? {
            (field::HEADER_NAME, value) => {
                name = std::str::from_utf8(&message[value.range()?]).map_err(|_| "text is not UTF-8")?;
            }
            (field::HEADER_VALUE, value) => content = &message[value.range()?],
            _ => {}
        }
    }
    Ok((name, content))
}

/// Adds the numbers of a repeated field, packed or not.
fn numbers(message: &[u8], value: Value, out: &mut Vec<u64>) -> Result<(), Malformed> {
    match value {
        Value::Number(number) => out.push(number),
        Value::Bytes(range) => {
            let (packed, mut at) = (&message[..range.end], range.start);
            while at < range.end {
                let (number, next) = varint(packed, at)?;
                out.push(number);
                at = next;
            }
        }
    }
    Ok(())
}

/// What a message of a read or a subscription holds: batches, or something small that prost decodes.
pub(crate) enum Content<T> {
    /// The batches, in their order.
    Batches(Vec<RecordBatch>),
    /// Another event.
    Other(T),
}

/// Takes the message of a read or a subscription; the field of its batches is number 1 in both.
pub(crate) fn content<T: prost::Message + Default>(message: &Bytes) -> Result<Content<T>> {
    const BATCHES: u32 = 1;
    let malformed = |detail: Malformed| Error::protocol(format!("an event: {detail}"));
    let first = Fields::new(message).next().transpose().map_err(malformed)?;
    let Some((BATCHES, value)) = first else {
        let other = T::decode(message.clone()).map_err(|error| Error::protocol(error.to_string()))?;
        return Ok(Content::Other(other));
    };
    let batches = message.slice(value.range().map_err(malformed)?);
    let mut decoded = Vec::new();
    for next in Fields::new(&batches) {
        let (number, value) = next.map_err(malformed)?;
        if number == BATCHES {
            decoded.push(RecordBatch::decode(batches.slice(value.range().map_err(malformed)?))?);
        }
    }
    Ok(Content::Batches(decoded))
}

/// The record of a message that prost decoded.
pub(crate) fn stored(
    record: &v1::Record,
    offset: u64,
    append_time_ms: u64,
    revision: Option<u64>,
) -> Result<StoredRecord> {
    let bytes = prost::Message::encode_to_vec(record).into();
    let stored = StoredRecord::decode(bytes, offset, append_time_ms).map_err(Error::protocol)?;
    Ok(StoredRecord { revision, ..stored })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{Just, ProptestConfig, Strategy, any, prop_oneof, proptest};
    use prost::Message;

    use super::*;

    fn batch(records: &[Record]) -> v1::RecordBatch {
        let mut body = BytesMut::new();
        records.iter().for_each(|record| record.encode(None, &mut body));
        let mut batch = v1::RecordBatch::decode(&body[..]).unwrap();
        batch.records_crc = Some(crc32fast::hash(&body));
        batch.first_offset = 40;
        batch.next_offset = 40 + records.len() as u64;
        batch.append_time_ms = 99;
        batch
    }

    fn three() -> Vec<Record> {
        vec![
            Record::keyed("k", "one").with_id([3; 16]).with_type("t").with_content_type("c"),
            Record::tombstone("k").with_tag("a").with_tag("b"),
            Record::new(vec![7; 1000]).with_header("n", "v").with_header("n", ""),
        ]
    }

    fn decode(batch: &v1::RecordBatch) -> Result<RecordBatch> {
        RecordBatch::decode(batch.encode_to_vec().into())
    }

    #[test]
    fn records_come_back_as_they_were_without_a_copy_of_the_payload() {
        let message = Bytes::from(batch(&three()).encode_to_vec());
        let decoded = RecordBatch::decode(message.clone()).unwrap();
        let records: Vec<StoredRecord> = decoded.iter().map(Result::unwrap).collect();
        assert_eq!(records.iter().map(StoredRecord::to_record).collect::<Vec<_>>(), three());
        assert_eq!(records.iter().map(StoredRecord::offset).collect::<Vec<_>>(), [40, 41, 42]);
        assert!(records.iter().all(|record| record.append_time_ms() == 99));
        let payload = records[2].payload_bytes().unwrap();
        assert!(message.as_ptr_range().contains(&payload.as_ptr()));
    }

    #[test]
    fn revisions_are_those_of_the_records_that_have_a_key() {
        let records =
            [Record::new("x"), Record::keyed("k", "one"), Record::new("y"), Record::keyed("l", "two")];
        let revisions = |known: Vec<u64>| {
            let batch = v1::RecordBatch { revisions: known, ..batch(&records) };
            decode(&batch).unwrap().iter().map(|record| record.unwrap().revision()).collect::<Vec<_>>()
        };
        assert_eq!(revisions(vec![7, 300]), [None, Some(7), None, Some(300)]);
        assert_eq!(revisions(vec![]), [None; 4]);
    }

    #[test]
    fn a_flipped_bit_in_any_record_is_found() {
        let good = batch(&three()).encode_to_vec();
        let body = {
            let decoded = RecordBatch::decode(good.clone().into()).unwrap();
            decoded.as_bytes().len()
        };
        for at in 0..body {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert!(RecordBatch::decode(bad.into()).is_err(), "byte {at}");
        }
    }

    #[test]
    fn offsets_that_are_not_dense_are_given_to_their_records() {
        let mut sparse = batch(&three());
        sparse.offsets = vec![40, 47, 300];
        sparse.next_offset = 301;
        let decoded = decode(&sparse).unwrap();
        assert_eq!(decoded.iter().map(|record| record.unwrap().offset()).collect::<Vec<_>>(), [40, 47, 300]);
        sparse.offsets.pop();
        assert!(matches!(decode(&sparse), Err(Error::Protocol { .. })));
    }

    #[test]
    fn records_between_other_fields_are_put_together() {
        let whole = batch(&three());
        let one = |index: usize| v1::RecordBatch {
            records: vec![whole.records[index].clone()],
            ..v1::RecordBatch::default()
        };
        let rest = v1::RecordBatch { records: Vec::new(), ..whole.clone() };
        let mut message = one(0).encode_to_vec();
        message.extend(rest.encode_to_vec());
        message.extend(one(1).encode_to_vec());
        message.extend(one(2).encode_to_vec());
        let decoded = RecordBatch::decode(message.into()).unwrap();
        let records: Vec<Record> = decoded.iter().map(|record| record.unwrap().to_record()).collect();
        assert_eq!(records, three());
    }

    /// Looks at everything that can be looked at.
    fn look_at(message: &Bytes) {
        if let Ok(decoded) = RecordBatch::decode(message.clone()) {
            let _ = (decoded.next_offset(), decoded.append_time_ms());
            let records: Vec<Result<StoredRecord>> = decoded.iter().collect();
            assert!(records.len() <= decoded.len());
            records.into_iter().filter_map(Result::ok).for_each(|record| drop(record.to_record()));
        }
        let _ = content::<v1::SubscribeResponse>(message);
        let _ = content::<v1::ReadResponse>(message);
    }

    // Records were found behind a tag of one byte: a server that wrote it in two made the client panic.
    #[test]
    fn a_tag_in_more_bytes_than_it_needs_is_read_as_well() {
        let record = three().swap_remove(0);
        let mut plain = BytesMut::new();
        record.encode(None, &mut plain);
        assert_eq!(plain[0], 0x0a);
        for padding in [&[0x8a, 0x00][..], &[0x8a, 0x80, 0x00], &[0x8a, 0x80, 0x80, 0x80, 0x80, 0x00]] {
            let message: Bytes = [padding, &plain[1..]].concat().into();
            let records: Vec<StoredRecord> =
                RecordBatch::decode(message).unwrap().iter().map(Result::unwrap).collect();
            assert!(records.iter().map(StoredRecord::to_record).eq(std::iter::once(record.clone())));
        }
        look_at(&Bytes::from_static(&[0x8a, 0x00, 0x00]));
    }

    /// A varint, in more bytes than it needs.
    fn varints() -> impl Strategy<Value = Vec<u8>> {
        let number = prop_oneof![0..12_u64, any::<u64>(), Just(u64::MAX)];
        (number, 0..4_usize).prop_map(|(number, padding)| padded(number, padding))
    }

    fn padded(number: u64, padding: usize) -> Vec<u8> {
        let mut out = BytesMut::new();
        crate::wire::put_varint(&mut out, number);
        let mut out = out.to_vec();
        for _ in 0..padding {
            *out.last_mut().unwrap() |= 0x80;
            out.push(0);
        }
        out
    }

    /// Something like messages: fields of known and unknown numbers and kinds, within each other, with tags and lengths
    /// in more bytes than they need, and lengths that lie.
    fn messages() -> impl Strategy<Value = Vec<u8>> {
        let leaf = prop_oneof![
            proptest::collection::vec(any::<u8>(), 0..20),
            varints(),
            Just(batch(&three()).encode_to_vec()),
            Just(vec![3; 16]),
        ];
        leaf.prop_recursive(4, 64, 6, |inner| {
            let number = prop_oneof![4 => 1..9_u64, 1 => any::<u64>()];
            let kind = prop_oneof![4 => Just(2_u64), 2 => Just(0), 1 => 0..8_u64];
            let lie = prop_oneof![8 => Just(0_u64), 1 => any::<u64>()];
            let field = (number, kind, 0..3_usize, 0..3_usize, lie, inner);
            let field = field.prop_map(|(number, kind, tag_padding, length_padding, lie, content)| {
                let mut out = padded(number.wrapping_mul(8) | kind, tag_padding);
                if kind == 2 {
                    out.extend(padded((content.len() as u64).wrapping_add(lie), length_padding));
                }
                out.extend(content);
                out
            });
            proptest::collection::vec(field, 0..6).prop_map(|fields| fields.concat())
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(20_000) })]

        #[test]
        fn no_message_at_all_makes_the_decoder_panic(message in messages()) {
            look_at(&message.into());
        }

        #[test]
        fn no_bytes_at_all_make_the_decoder_panic(message in proptest::collection::vec(any::<u8>(), 0..64)) {
            look_at(&message.into());
        }
    }

    #[test]
    fn any_bytes_are_decoded_or_refused() {
        let good = batch(&three()).encode_to_vec();
        let mut random = crate::ids::Random::new();
        for _ in 0..20_000 {
            let mut bad = good.clone();
            for _ in 0..1 + random.next() % 4 {
                let at = (random.next() % bad.len() as u64) as usize;
                bad[at] = random.next() as u8;
            }
            bad.truncate(1 + (random.next() % good.len() as u64) as usize);
            look_at(&bad.into());
        }
    }
}
