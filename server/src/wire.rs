//! The encoding of what is worth it, by hand: appends keep the client's bytes, and batches are spliced into their response
//! as they are stored.
//!
//! ```text
//! AppendRequest   { 1 TopicAppend { 1 Record ..., 2 topic, 3 records_crc, 4 fencing_token } ..., 2 durability, 3 conditions,
//!                   4 producer, 5 request_id, 6 validate_only }
//! ReadResponse    { 1 RecordBatches { 1 RecordBatch { 1 Record ..., 2 first_offset, 3 offsets, 4 append_time_ms,
//!                   5 next_offset, 6 records_crc, 7 revisions } ... } }            SubscribeResponse likewise
//! ```
//!
//! Of a [`WireAppend`] only what surrounds the records is decoded here; the engine scans the records. Everything else is
//! encoded and decoded by prost. A test holds both to the same bytes.

use std::marker::PhantomData;

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use quipu_proto::v1 as pb;
use quipu_storage::Error;
use quipu_storage::format::Invalid;
use quipu_storage::format::wire::{Fields, varint_bytes};
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::{Code, Status};

use crate::append::{APPEND_TOPICS_MAX, WireAppend, WirePart};
use crate::batch::WireBatch;
use crate::condition::{CONDITION_BYTES_MAX, CONDITIONS_MAX};
use crate::error::{Problem, status};
use crate::read::ReadEvent;
use crate::session::SessionRequest;
use crate::snapshot::WirePut;
use crate::subscribe::SubscribeEvent;

/// Memory that a stream of responses begins with, and what is gathered before it is sent on.
const BUFFER_BYTES: usize = 16 << 10;
const GATHERED_BYTES: usize = 64 << 10;

/// Something that is decoded from a message.
pub(crate) trait FromWire: Sized + Send + 'static {
    fn from_wire(message: Bytes) -> Result<Self, Status>;
}

/// Something that is encoded as a message.
pub(crate) trait ToWire: Send + 'static {
    /// How many bytes [`put`](Self::put) appends.
    fn encoded_bytes(&self) -> usize;
    fn put(self, out: &mut impl BufMut);
}

/// The codec of a method.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wire<Response, Request>(PhantomData<fn() -> (Response, Request)>);

impl<Response, Request> Default for Wire<Response, Request> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<Response: ToWire, Request: FromWire> Codec for Wire<Response, Request> {
    type Encode = Response;
    type Decode = Request;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self::default()
    }

    fn decoder(&mut self) -> Self {
        Self::default()
    }
}

impl<Response: ToWire, Request> Encoder for Wire<Response, Request> {
    type Item = Response;
    type Error = Status;

    fn encode(&mut self, item: Response, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.encoded_bytes());
        item.put(out);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, GATHERED_BYTES)
    }
}

impl<Response, Request: FromWire> Decoder for Wire<Response, Request> {
    type Item = Request;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Request>, Status> {
        let bytes = message.remaining();
        Request::from_wire(message.copy_to_bytes(bytes)).map(Some)
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(BUFFER_BYTES, GATHERED_BYTES)
    }
}

/// Messages that prost makes.
macro_rules! by_prost {
    (requests: $($request:ty),*; responses: $($response:ty),*) => {
        $(impl FromWire for $request {
            fn from_wire(message: Bytes) -> Result<Self, Status> {
                Self::decode(message).map_err(|error| malformed(&error))
            }
        })*
        $(impl ToWire for $response {
            fn encoded_bytes(&self) -> usize {
                self.encoded_len()
            }

            fn put(self, out: &mut impl BufMut) {
                self.encode(out).expect("there is room for as much as it said");
            }
        })*
    };
}

by_prost! {
    requests: pb::ReadRequest, pb::SubscribeRequest, pb::GetRecordRequest, pb::GetBoundsRequest, pb::GetStreamRequest,
        pb::ListStreamsRequest, pb::GetSnapshotRequest;
    responses: pb::AppendResponse, pb::AppendSessionResponse, pb::GetRecordResponse, pb::GetBoundsResponse,
        pb::GetStreamResponse, pb::ListStreamsResponse, pb::PutSnapshotResponse, pb::GetSnapshotResponse
}

fn malformed(detail: &impl std::fmt::Display) -> Status {
    Problem::new(Code::InvalidArgument, "MALFORMED_REQUEST", format!("not a request: {detail}")).into()
}

fn invalid(invalid: Invalid) -> Status {
    malformed(&invalid.detail)
}

impl FromWire for WireAppend {
    fn from_wire(message: Bytes) -> Result<Self, Status> {
        let mut append = WireAppend { bytes: message.len(), ..WireAppend::default() };
        let (mut topics, mut conditions, mut condition_bytes) = (0, 0, 0);
        for field in Fields::new(&message) {
            match field.map_err(invalid)? {
                // An empty part takes two bytes of the message and many times that here: beyond the bound they are
                // only counted.
                (1, value) => {
                    topics += 1;
                    let bytes = value.bytes().map_err(invalid)?;
                    if topics <= APPEND_TOPICS_MAX {
                        append.parts.push(part(&message.slice_ref(bytes)).map_err(invalid)?);
                    }
                }
                // An enum is an i32: what does not fit is cut, as protobuf has it.
                (2, value) => append.durability = value.number().map_err(invalid)? as i32,
                (3, value) => {
                    let bytes = value.bytes().map_err(invalid)?;
                    conditions += 1;
                    condition_bytes += bytes.len();
                    if conditions <= CONDITIONS_MAX && condition_bytes <= CONDITION_BYTES_MAX {
                        let condition = pb::AppendCondition::decode(message.slice_ref(bytes));
                        append.conditions.push(condition.map_err(|error| malformed(&error))?);
                    }
                }
                (4, value) => {
                    let bytes = message.slice_ref(value.bytes().map_err(invalid)?);
                    let producer = append.producer.get_or_insert_default();
                    producer.merge(bytes).map_err(|error| malformed(&error))?;
                }
                (5, value) => append.request_id = message.slice_ref(value.bytes().map_err(invalid)?),
                (6, value) => append.validate_only = value.number().map_err(invalid)? != 0,
                _ => {}
            }
        }
        for (what, actual, limit) in [
            ("topics", topics, APPEND_TOPICS_MAX),
            ("conditions", conditions, CONDITIONS_MAX),
            ("bytes of conditions", condition_bytes, CONDITION_BYTES_MAX),
        ] {
            if actual > limit {
                let (actual, limit) = (actual as u64, limit as u64);
                return Err(status(Error::AppendTooLarge { what, actual, limit }));
            }
        }
        Ok(append)
    }
}

fn part(message: &Bytes) -> Result<WirePart, Invalid> {
    let mut part = WirePart::default();
    // The records come in one run, unless a client is strange.
    let mut run = 0..0;
    let mut runs_before: Vec<u8> = Vec::new();
    let mut fields = Fields::new(message);
    let mut start = 0;
    while let Some(field) = fields.next() {
        let end = fields.position();
        match field? {
            (1, value) => {
                value.bytes()?;
                part.record_count += 1;
                if run.end != start {
                    runs_before.extend_from_slice(&message[run]);
                    run = start..end;
                }
                run.end = end;
            }
            (2, value) => value.text()?.clone_into(&mut part.topic),
            (3, value) => part.records_crc = Some(value.small()?),
            (4, value) => part.fencing_token = Some(value.number()?),
            _ => {}
        }
        start = end;
    }
    part.records = if runs_before.is_empty() {
        message.slice(run)
    } else {
        runs_before.extend_from_slice(&message[run]);
        runs_before.into()
    };
    Ok(part)
}

/// [`WireAppend`] in a field of its own, or the name of the session.
impl FromWire for SessionRequest {
    fn from_wire(message: Bytes) -> Result<Self, Status> {
        let (mut append, mut opening) = (None, None);
        for field in Fields::new(&message) {
            match field.map_err(invalid)? {
                (1, value) => join(&mut append, &message, value.bytes().map_err(invalid)?),
                (2, value) => join(&mut opening, &message, value.bytes().map_err(invalid)?),
                _ => {}
            }
        }
        if let Some(opening) = opening {
            let opening = pb::SessionOpening::decode(opening.bytes());
            let opening = opening.map_err(|error| malformed(&error))?;
            return Ok(Self::Opening { opening, has_append: append.is_some() });
        }
        let append = append.map(Joined::bytes).unwrap_or_default();
        WireAppend::from_wire(append).map(Self::Append)
    }
}

impl FromWire for WirePut {
    fn from_wire(message: Bytes) -> Result<Self, Status> {
        let mut put = Self { bytes: message.len(), ..Self::default() };
        let mut record = None;
        for field in Fields::new(&message) {
            match field.map_err(invalid)? {
                (1, value) => value.text().map_err(invalid)?.clone_into(&mut put.topic),
                (2, value) => put.revision = value.number().map_err(invalid)?,
                (3, value) => join(&mut record, &message, value.bytes().map_err(invalid)?),
                (4, value) => put.durability = value.number().map_err(invalid)? as i32,
                _ => {}
            }
        }
        put.record = record.map(Joined::bytes);
        Ok(put)
    }
}

/// The content of a message field. One that comes several times is one in parts, as protobuf has it.
enum Joined {
    Once(Bytes),
    Parts(Vec<u8>),
}

impl Joined {
    fn bytes(self) -> Bytes {
        match self {
            Self::Once(bytes) => bytes,
            Self::Parts(bytes) => bytes.into(),
        }
    }
}

fn join(joined: &mut Option<Joined>, message: &Bytes, content: &[u8]) {
    *joined = Some(match joined.take() {
        None => Joined::Once(message.slice_ref(content)),
        Some(Joined::Once(first)) => Joined::Parts([&first, content].concat()),
        Some(Joined::Parts(mut parts)) => {
            parts.extend_from_slice(content);
            Joined::Parts(parts)
        }
    });
}

/// Bytes of a field with this many bytes of content, for field numbers below 16.
const fn field_bytes(content: usize) -> usize {
    1 + varint_bytes(content as u64) + content
}

/// Bytes of a number field; 0 is left out.
const fn number_bytes(value: u64) -> usize {
    if value == 0 { 0 } else { 1 + varint_bytes(value) }
}

fn put_head(out: &mut impl BufMut, field: u8, content: usize) {
    out.put_u8(field << 3 | 2);
    put_varint(out, content as u64);
}

fn put_number(out: &mut impl BufMut, field: u8, value: u64) {
    if value != 0 {
        out.put_u8(field << 3);
        put_varint(out, value);
    }
}

pub(crate) fn put_varint(out: &mut impl BufMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// Bytes of a packed list of numbers.
fn packed_bytes(values: &[u64]) -> usize {
    values.iter().map(|value| varint_bytes(*value)).sum()
}

fn batch_bytes(batch: &WireBatch) -> usize {
    let offsets = packed_bytes(&batch.offsets);
    batch.body.len()
        + number_bytes(batch.first_offset)
        + if offsets == 0 { 0 } else { field_bytes(offsets) }
        + number_bytes(batch.append_time_ms)
        + number_bytes(batch.next_offset)
        + 1
        + size_of::<u32>()
        + if batch.revisions.is_empty() { 0 } else { field_bytes(batch.revisions.len()) }
}

fn put_batch(out: &mut impl BufMut, batch: &WireBatch) {
    out.put_slice(&batch.body);
    put_number(out, 2, batch.first_offset);
    if !batch.offsets.is_empty() {
        put_head(out, 3, packed_bytes(&batch.offsets));
        batch.offsets.iter().for_each(|offset| put_varint(out, *offset));
    }
    put_number(out, 4, batch.append_time_ms);
    put_number(out, 5, batch.next_offset);
    out.put_u8(6 << 3 | 5);
    out.put_u32_le(batch.records_crc);
    if !batch.revisions.is_empty() {
        put_head(out, 7, batch.revisions.len());
        out.put_slice(&batch.revisions);
    }
}

fn batches_bytes(batches: &[WireBatch]) -> usize {
    batches.iter().map(|batch| field_bytes(batch_bytes(batch))).sum()
}

/// `RecordBatches batches = 1`, of a read's response as of a subscription's.
fn put_batches(out: &mut impl BufMut, batches: &[WireBatch]) {
    put_head(out, 1, batches_bytes(batches));
    for batch in batches {
        put_head(out, 1, batch_bytes(batch));
        put_batch(out, batch);
    }
}

impl ToWire for ReadEvent {
    fn encoded_bytes(&self) -> usize {
        match self {
            Self::Batches(batches) => field_bytes(batches_bytes(batches)),
            Self::Gap(gap) => field_bytes(gap.encoded_len()),
            Self::End(end) => field_bytes(end.encoded_len()),
        }
    }

    fn put(self, out: &mut impl BufMut) {
        use pb::read_response::Event;
        let event = match self {
            Self::Batches(batches) => return put_batches(out, &batches),
            Self::Gap(gap) => Event::Gap(gap),
            Self::End(end) => Event::End(end),
        };
        event.encode(out);
    }
}

impl ToWire for SubscribeEvent {
    fn encoded_bytes(&self) -> usize {
        match self {
            Self::Batches(batches) => field_bytes(batches_bytes(batches)),
            Self::Other(event) => event.encoded_len(),
        }
    }

    fn put(self, out: &mut impl BufMut) {
        match self {
            Self::Batches(batches) => put_batches(out, &batches),
            Self::Other(event) => event.encode(out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(payload: &str) -> pb::Record {
        pb::Record { payload: Some(payload.as_bytes().to_vec().into()), ..Default::default() }
    }

    fn encoded(item: impl ToWire) -> Vec<u8> {
        let foretold = item.encoded_bytes();
        let mut out = Vec::new();
        item.put(&mut out);
        assert_eq!(out.len(), foretold);
        out
    }

    fn records(records: &[pb::Record]) -> Bytes {
        pb::RecordBatch { records: records.to_vec(), ..Default::default() }.encode_to_vec().into()
    }

    #[test]
    fn batches_are_encoded_as_prost_decodes_them() {
        let some = [record("one"), pb::Record::default(), record(&"long".repeat(100))];
        let (mut wire, mut wanted) = (Vec::new(), Vec::new());
        for (first_offset, offsets, time, revisions) in [
            (0, vec![], 0, vec![]),
            (300, vec![300, 305, u64::MAX], 1_700_000_000_000, vec![0, 300, u64::MAX]),
            (u64::MAX - 3, vec![], 1, vec![7]),
        ] {
            let mut packed = Vec::new();
            revisions.iter().for_each(|revision| put_varint(&mut packed, *revision));
            let packed = Bytes::from(packed);
            let batch = WireBatch {
                body: records(&some),
                record_count: 3,
                first_offset,
                offsets: offsets.clone(),
                append_time_ms: time,
                next_offset: first_offset + 3,
                records_crc: 0xdead_beef,
                revisions: packed.clone(),
            };
            wire.push(batch);
            wanted.push(pb::RecordBatch {
                records: some.to_vec(),
                first_offset,
                offsets,
                append_time_ms: time,
                next_offset: first_offset + 3,
                records_crc: Some(0xdead_beef),
                revisions: revisions.clone(),
            });
        }
        let batches = pb::RecordBatches { batches: wanted };
        let read = pb::ReadResponse { event: Some(pb::read_response::Event::Batches(batches.clone())) };
        assert_eq!(encoded(ReadEvent::Batches(wire.clone())), read.encode_to_vec());
        let event = pb::subscribe_response::Event::Batches(batches);
        let subscribed = pb::SubscribeResponse { event: Some(event) };
        assert_eq!(encoded(SubscribeEvent::Batches(wire)), subscribed.encode_to_vec());
    }

    #[test]
    fn other_events_are_encoded_as_prost_does() {
        let gap = pb::Gap { from: 1, to: 300, reason: 1 };
        let response = pb::ReadResponse { event: Some(pb::read_response::Event::Gap(gap)) };
        assert_eq!(encoded(ReadEvent::Gap(gap)), response.encode_to_vec());
        let end = pb::ReadEnd { next_offset: 500, log_start_offset: 0, high_watermark: 500 };
        let response = pb::ReadResponse { event: Some(pb::read_response::Event::End(end)) };
        assert_eq!(encoded(ReadEvent::End(end)), response.encode_to_vec());
        let event = pb::subscribe_response::Event::Draining(pb::Draining { next_offset: 7 });
        let response = pb::SubscribeResponse { event: Some(event) };
        assert_eq!(encoded(SubscribeEvent::Other(event_of(&response))), response.encode_to_vec());
    }

    fn event_of(response: &pb::SubscribeResponse) -> pb::subscribe_response::Event {
        response.event.clone().expect("it has one")
    }

    #[test]
    fn an_append_is_decoded_as_prost_encodes_it() {
        let part = |topic: &str, records_crc: Option<u32>| pb::TopicAppend {
            records: vec![record("a"), record("b")],
            topic: topic.into(),
            records_crc,
            fencing_token: records_crc.map(u64::from),
        };
        let producer = pb::Producer { name: "p".into(), epoch: 1 << 40, sequence: 7 };
        let next_offset = pb::append_condition::Condition::NextOffset(3);
        let conditions = vec![
            pb::AppendCondition::default(),
            pb::AppendCondition { topic: "payments".into(), condition: Some(next_offset) },
        ];
        let request = pb::AppendRequest {
            appends: vec![part("orders", None), part("payments", Some(7))],
            durability: pb::Durability::Written.into(),
            conditions: conditions.clone(),
            producer: Some(producer.clone()),
            request_id: Bytes::from_static(b"x"),
            validate_only: true,
        };
        let message = Bytes::from(request.encode_to_vec());
        let found = WireAppend::from_wire(message.clone()).expect("valid");
        let expected = |topic: &str, records_crc: Option<u32>| WirePart {
            records: records(&[record("a"), record("b")]),
            record_count: 2,
            topic: topic.into(),
            records_crc,
            fencing_token: records_crc.map(u64::from),
        };
        let wanted = WireAppend {
            parts: vec![expected("orders", None), expected("payments", Some(7))],
            durability: pb::Durability::Written.into(),
            conditions,
            producer: Some(producer),
            request_id: Bytes::from_static(b"x"),
            validate_only: true,
            bytes: message.len(),
        };
        assert_eq!(found, wanted);
        let session = pb::AppendSessionRequest { append: Some(request), opening: None }.encode_to_vec();
        let found = SessionRequest::from_wire(session.into()).expect("valid");
        assert!(matches!(found, SessionRequest::Append(append) if append == wanted));
        let plain = WireAppend::from_wire(Bytes::new()).expect("an empty message is one");
        assert_eq!(plain, WireAppend::default());
    }

    #[test]
    fn records_that_do_not_come_in_one_run_are_put_together() {
        let mut message = records(&[record("a")]).to_vec();
        message.extend(pb::TopicAppend { topic: "orders".into(), ..Default::default() }.encode_to_vec());
        message.extend(records(&[record("b")]));
        let found = part(&message.into()).expect("valid");
        assert_eq!(found.record_count, 2);
        assert_eq!((found.topic.as_str(), found.records), ("orders", records(&[record("a"), record("b")])));
    }

    /// A message of empty parts, two bytes each, once took 35 times its size.
    #[test]
    fn parts_beyond_the_bound_are_counted_and_not_kept() {
        let parts = |count: usize| Bytes::from([0x0a, 0x00].repeat(count));
        let append = WireAppend::from_wire(parts(APPEND_TOPICS_MAX)).expect("within the bound");
        assert_eq!(append.parts.len(), APPEND_TOPICS_MAX);
        let Err(error) = WireAppend::from_wire(parts(4 << 20)) else { panic!("beyond the bound") };
        let info = tonic_types::StatusExt::get_details_error_info(&error).expect("every error has it");
        assert_eq!((error.code(), info.reason.as_str()), (Code::InvalidArgument, "APPEND_TOO_LARGE"));
        assert_eq!((info.metadata["what"].as_str(), info.metadata["actual"].as_str()), ("topics", "4194304"));
    }

    #[test]
    fn conditions_beyond_a_bound_are_counted_and_not_kept() {
        let many = [0x1a, 0x00].repeat(4 << 20);
        let no_match = pb::append_condition::NoMatch {
            filter: Some(pb::Filter { keys: vec![Bytes::new(); CONDITION_BYTES_MAX], ..Default::default() }),
            after_offset: None,
        };
        let condition = Some(pb::append_condition::Condition::NoMatch(no_match));
        let conditions = vec![pb::AppendCondition { topic: "t".into(), condition }];
        let large = pb::AppendRequest { conditions, ..Default::default() }.encode_to_vec();
        for (message, wanted) in [(many, "conditions"), (large, "bytes of conditions")] {
            let Err(error) = WireAppend::from_wire(message.into()) else { panic!("beyond the bound") };
            let info = tonic_types::StatusExt::get_details_error_info(&error).expect("every error has it");
            assert_eq!((info.reason.as_str(), info.metadata["what"].as_str()), ("APPEND_TOO_LARGE", wanted));
        }
    }

    #[test]
    fn an_append_of_a_session_that_comes_in_pieces_is_put_together() {
        let request = |topic: &str| pb::AppendRequest {
            appends: vec![pb::TopicAppend { topic: topic.into(), ..Default::default() }],
            ..Default::default()
        };
        let mut message = Vec::new();
        for topic in ["a", "b", "c"] {
            let piece = pb::AppendSessionRequest { append: Some(request(topic)), opening: None };
            piece.encode(&mut message).expect("there is room");
        }
        let Ok(SessionRequest::Append(found)) = SessionRequest::from_wire(message.into()) else {
            panic!("an append");
        };
        assert_eq!(found.parts.iter().map(|part| part.topic.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    }

    #[test]
    fn whatever_bytes_come_are_an_append_or_an_error() {
        let request = pb::AppendRequest {
            appends: vec![pb::TopicAppend {
                records: vec![record("a")],
                topic: "t".into(),
                records_crc: Some(1),
                fencing_token: Some(300),
            }],
            producer: Some(pb::Producer { name: "p".into(), epoch: 1, sequence: 2 }),
            ..Default::default()
        };
        let whole = request.encode_to_vec();
        for at in 0..whole.len() {
            for byte in 0..=u8::MAX {
                let mut changed = whole.clone();
                changed[at] = byte;
                let ours = WireAppend::from_wire(changed.clone().into());
                let theirs = pb::AppendRequest::decode(&changed[..]);
                if let (Ok(ours), Ok(theirs)) = (&ours, &theirs) {
                    let topics: Vec<_> = theirs.appends.iter().map(|part| part.topic.as_str()).collect();
                    assert_eq!(ours.parts.iter().map(|part| part.topic.as_str()).collect::<Vec<_>>(), topics);
                    assert_eq!((&ours.producer, &ours.request_id), (&theirs.producer, &theirs.request_id));
                }
            }
            let _ = WireAppend::from_wire(Bytes::copy_from_slice(&whole[..at]));
        }
    }
}
