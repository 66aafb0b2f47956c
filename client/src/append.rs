//! One append: records for one topic or more, all or nothing.

use bytes::{Bytes, BytesMut};
use prost::Message;
use quipu_proto::v1;

use crate::client::{Client, Repeat, path};
use crate::codec::Encoded;
use crate::condition::Condition;
use crate::error::{Error, Result};
use crate::ids::Random;
use crate::record::Record;
use crate::wire::{field_bytes, put_bytes, put_head};

pub use quipu_proto::v1::Durability;

/// Where records of one topic are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record.
    pub first_offset: u64,
    /// One past the offset of the last record.
    pub next_offset: u64,
    /// Their time, in milliseconds since the Unix epoch.
    pub append_time_ms: u64,
    /// What they survive: at least what was asked for, except in a topic in memory.
    pub durability: Durability,
    /// The revisions of those that have a key, in order. None of a session.
    pub revisions: Vec<u64>,
    /// They had been appended before, under the same request id or sequence of a producer; this is the first answer.
    pub is_duplicate: bool,
}

/// Records for one topic or more, to be appended as one; made by [`Client::append_to`].
#[derive(Clone, Debug)]
#[must_use = "nothing is appended until it is sent"]
pub struct Append {
    client: Client,
    parts: Vec<Part>,
    durability: Durability,
    conditions: Vec<Condition>,
    validate_only: bool,
    producer: Option<v1::Producer>,
    request_id: Option<Bytes>,
}

/// Records for one topic.
#[derive(Clone, Debug)]
struct Part {
    topic: String,
    records: BytesMut,
    fencing_token: Option<u64>,
}

impl Client {
    /// Appends records to a topic, all or nothing, and waits until they are on the server's disk.
    ///
    /// Tried again as [`Retry`](crate::Retry) says, also if it is not known whether it was applied: it has an id by which
    /// the server recognises a repeat. See [`Append::request_id`] for how long it does.
    ///
    /// # Errors
    /// Those of the server and of the connection.
    pub async fn append<R: Into<Record>>(
        &self,
        topic: impl Into<String>,
        records: impl IntoIterator<Item = R>,
    ) -> Result<Appended> {
        let appended = self.append_to(topic, records)?.send().await?;
        appended.into_iter().next().ok_or_else(|| Error::protocol("an answer without its topic"))
    }

    /// Begins an append with more to it: a durability, further topics.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a record beyond its bounds.
    pub fn append_to<R: Into<Record>>(
        &self,
        topic: impl Into<String>,
        records: impl IntoIterator<Item = R>,
    ) -> Result<Append> {
        Append {
            client: self.clone(),
            parts: Vec::new(),
            durability: Durability::Unspecified,
            conditions: Vec::new(),
            validate_only: false,
            producer: None,
            request_id: None,
        }
        .and(topic, records)
    }
}

impl Append {
    /// Adds records for a topic, behind those that were added for it before.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a record beyond its bounds.
    pub fn and<R: Into<Record>>(
        mut self,
        topic: impl Into<String>,
        records: impl IntoIterator<Item = R>,
    ) -> Result<Self> {
        let topic = topic.into();
        let part = self.part(topic);
        for record in records {
            let record = record.into();
            record.check()?;
            record.encode(None, &mut part.records);
        }
        Ok(self)
    }

    fn part(&mut self, topic: String) -> &mut Part {
        let found = self.parts.iter().position(|part| part.topic == topic).unwrap_or_else(|| {
            self.parts.push(Part { topic, records: BytesMut::new(), fencing_token: None });
            self.parts.len() - 1
        });
        &mut self.parts[found]
    }

    /// When to acknowledge. On the disk.
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Appends only if this holds right before it. Any number may be required, of any topics; if any does not hold, nothing
    /// is appended: [`Error::ConditionFailed`] names each.
    pub fn require(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// Names this append, with 1 to 64 bytes that nobody else uses: whoever sends it again under that name, with the same
    /// records to the same topics, gets the first answer, and nothing is appended twice. Without a name of the caller's
    /// own it gets one for its tries, if it is to 64 topics or fewer.
    ///
    /// The server knows the last 16,384 names of all clients. A repeat that comes after so many others is a new append:
    /// use a [`producer`](Self::producer) where that may happen.
    pub fn request_id(mut self, id: impl Into<Bytes>) -> Self {
        self.request_id = Some(id.into());
        self
    }

    /// Makes it the append with this number of a named producer, from 0 without gaps: as with a
    /// [`request_id`](Self::request_id) a repeat gets the first answer, however long ago it was; an empty one if the
    /// producer has made 64 others since. A higher epoch begins with 0 and shuts out whoever has a lower one.
    pub fn producer(mut self, name: impl Into<String>, epoch: u64, sequence: u64) -> Self {
        self.producer = Some(v1::Producer { name: name.into(), epoch, sequence });
        self
    }

    /// Appends only if the topic, to which it has records, has no higher fencing token, and raises the topic's to this. See
    /// [`Client::fence_topic`].
    pub fn fencing_token(mut self, topic: impl Into<String>, token: u64) -> Self {
        self.part(topic.into()).fencing_token = Some(token);
        self
    }

    /// Only checks; appends nothing. The answer has no topics then.
    pub fn validate_only(mut self) -> Self {
        self.validate_only = true;
        self
    }

    /// Sends it and waits for the answer: one for each topic, in order of first mention.
    ///
    /// # Errors
    /// Those of the server and of the connection.
    pub async fn send(self) -> Result<Vec<Appended>> {
        let parts: Vec<_> = self
            .parts
            .into_iter()
            .map(|Part { topic, records, fencing_token }| (topic, records.freeze(), fencing_token))
            .collect();
        let mut options = options(self.durability, self.validate_only);
        options.conditions = self.conditions.into_iter().map(Condition::into_wire).collect();
        options.producer = self.producer;
        options.request_id = self.request_id.unwrap_or_default();
        let is_named = options.producer.is_some() || !options.request_id.is_empty();
        if !is_named && !self.validate_only && parts.len() <= NAMED_TOPICS_MAX {
            options.request_id = Bytes::copy_from_slice(&Random::uid());
        }
        let repeat = match (self.validate_only, &options.producer, options.request_id.is_empty()) {
            (true, ..) => Repeat::Harmless,
            (false, None, true) => Repeat::Never,
            _ => Repeat::Recognised,
        };
        let message = if let [(topic, records, fencing_token)] = &parts[..] {
            request(topic, records.clone(), *fencing_token, &options)
        } else {
            joined(&parts, &options)
        };
        let call = || self.client.unary::<v1::AppendResponse>(path::APPEND, message.clone());
        let response = self.client.call(repeat, call).await?;
        let of_topic = |answer| Appended { is_duplicate: response.duplicate, ..appended(answer) };
        Ok(response.appended.iter().map(of_topic).collect())
    }
}

/// What the server says about one topic.
pub(crate) fn appended(answer: &v1::TopicAppended) -> Appended {
    Appended {
        first_offset: answer.first_offset,
        next_offset: answer.next_offset,
        append_time_ms: answer.append_time_ms,
        durability: answer.durability(),
        revisions: answer.revisions.clone(),
        is_duplicate: false,
    }
}

/// Encoded `AppendRequest` for records of one topic, which are not copied, with all else that `options` has.
pub(crate) fn request(
    topic: &str,
    records: Bytes,
    fencing_token: Option<u64>,
    options: &v1::AppendRequest,
) -> Encoded {
    let rest = v1::TopicAppend {
        records: Vec::new(),
        topic: topic.to_owned(),
        records_crc: Some(crc32fast::hash(&records)),
        fencing_token,
    };
    let mut tail = BytesMut::new();
    rest.encode(&mut tail).expect("a BytesMut grows");
    let mut head = BytesMut::new();
    put_head(&mut head, APPENDS, records.len() + tail.len());
    options.encode(&mut tail).expect("a BytesMut grows");
    Encoded([head.freeze(), records, tail.freeze()])
}

/// Encoded `AppendSessionRequest` with an `AppendRequest`.
pub(crate) fn in_session(Encoded([head, records, tail]): Encoded) -> Encoded {
    const APPEND: u32 = 1;
    let length = head.len() + records.len() + tail.len();
    let mut outer = BytesMut::with_capacity(field_bytes(length) - length + head.len());
    put_head(&mut outer, APPEND, length);
    outer.extend_from_slice(&head);
    Encoded([outer.freeze(), records, tail])
}

/// Most topics of an append whose repeats are recognised.
const NAMED_TOPICS_MAX: usize = 64;
/// Field number of `AppendRequest.appends`.
const APPENDS: u32 = 1;

pub(crate) fn options(durability: Durability, validate_only: bool) -> v1::AppendRequest {
    v1::AppendRequest { durability: durability.into(), validate_only, ..v1::AppendRequest::default() }
}

fn joined(parts: &[(String, Bytes, Option<u64>)], options: &v1::AppendRequest) -> Encoded {
    let mut message = BytesMut::new();
    for (topic, records, fencing_token) in parts {
        let rest = v1::TopicAppend {
            records: Vec::new(),
            topic: topic.clone(),
            records_crc: Some(crc32fast::hash(records)),
            fencing_token: *fencing_token,
        };
        let mut part = BytesMut::with_capacity(records.len() + 64 + topic.len());
        part.extend_from_slice(records);
        rest.encode(&mut part).expect("a BytesMut grows");
        put_bytes(&mut message, APPENDS, &part);
    }
    options.encode(&mut message).expect("a BytesMut grows");
    Encoded([message.freeze(), Bytes::new(), Bytes::new()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(Encoded(pieces): Encoded) -> Vec<u8> {
        pieces.concat()
    }

    #[test]
    fn requests_say_the_same_as_those_that_prost_encodes() {
        let mut records = BytesMut::new();
        Record::keyed("k", "one").encode(None, &mut records);
        Record::new("two").encode(None, &mut records);
        let records = records.freeze();
        let decoded = v1::RecordBatch::decode(records.clone()).unwrap().records;
        let part = |topic: &str| v1::TopicAppend {
            records: decoded.clone(),
            topic: topic.into(),
            records_crc: Some(crc32fast::hash(&records)),
            fencing_token: Some(3),
        };
        let condition = Condition::next_offset("a", 7).into_wire();
        let with_condition =
            v1::AppendRequest { conditions: vec![condition], ..options(Durability::Written, true) };
        let expected = |topics: &[&str]| v1::AppendRequest {
            appends: topics.iter().map(|topic| part(topic)).collect(),
            ..with_condition.clone()
        };
        let one = request("a", records.clone(), Some(3), &with_condition);
        assert_eq!(v1::AppendRequest::decode(&bytes(one.clone())[..]).unwrap(), expected(&["a"]));
        let session = v1::AppendSessionRequest::decode(&bytes(in_session(one))[..]).unwrap();
        assert_eq!(session.append, Some(expected(&["a"])));
        let two = ["a", "b"].map(|topic| (topic.to_owned(), records.clone(), Some(3)));
        let two = joined(&two, &with_condition);
        assert_eq!(v1::AppendRequest::decode(&bytes(two)[..]).unwrap(), expected(&["a", "b"]));
    }
}
