//! One append: records for one topic or more, all or nothing.

use bytes::{Bytes, BytesMut};
use prost::Message;
use quipu_proto::v1;

use crate::client::{Client, Repeat, path};
use crate::codec::Encoded;
use crate::condition::Condition;
use crate::error::{Error, Result};
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
    /// Their time, in milliseconds since the Unix epoch. 0: not known, for records of a session that were found in the
    /// topic after a lost connection.
    pub append_time_ms: u64,
    /// What they survive: at least what was asked for, except in a topic in memory.
    pub durability: Durability,
    /// The revisions of those that have a key, in order. None of a session.
    pub revisions: Vec<u64>,
}

/// Records for one topic or more, to be appended as one; made by [`Client::append_to`].
#[derive(Clone, Debug)]
#[must_use = "nothing is appended until it is sent"]
pub struct Append {
    client: Client,
    parts: Vec<(String, BytesMut)>,
    durability: Durability,
    conditions: Vec<Condition>,
    validate_only: bool,
}

impl Client {
    /// Appends records to a topic, all or nothing, and waits until they are on the server's disk.
    ///
    /// Not tried again if it is not known whether it was applied: see [`Error::outcome`]. An
    /// [append session](Self::append_session) finds out and goes on.
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
        let found = self.parts.iter().position(|(name, _)| *name == topic).unwrap_or_else(|| {
            self.parts.push((topic, BytesMut::new()));
            self.parts.len() - 1
        });
        for record in records {
            let record = record.into();
            record.check()?;
            record.encode(None, &mut self.parts[found].1);
        }
        Ok(self)
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
        let parts: Vec<(String, Bytes)> =
            self.parts.into_iter().map(|(topic, records)| (topic, records.freeze())).collect();
        let mut options = options(self.durability, self.validate_only);
        options.conditions = self.conditions.into_iter().map(Condition::into_wire).collect();
        let message = if let [(topic, records)] = &parts[..] {
            request(topic, records.clone(), &options)
        } else {
            joined(&parts, &options)
        };
        let call = || self.client.unary::<v1::AppendResponse>(path::APPEND, message.clone());
        let response = self.client.call(Repeat::Never, call).await?;
        Ok(response.appended.iter().map(appended).collect())
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
    }
}

/// Encoded `AppendRequest` for records of one topic, which are not copied, with all else that `options` has.
pub(crate) fn request(topic: &str, records: Bytes, options: &v1::AppendRequest) -> Encoded {
    let rest = v1::TopicAppend {
        records: Vec::new(),
        topic: topic.to_owned(),
        records_crc: Some(crc32fast::hash(&records)),
        fencing_token: None,
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

/// Field number of `AppendRequest.appends`.
const APPENDS: u32 = 1;

pub(crate) fn options(durability: Durability, validate_only: bool) -> v1::AppendRequest {
    v1::AppendRequest { durability: durability.into(), validate_only, ..v1::AppendRequest::default() }
}

fn joined(parts: &[(String, Bytes)], options: &v1::AppendRequest) -> Encoded {
    let mut message = BytesMut::new();
    for (topic, records) in parts {
        let rest = v1::TopicAppend {
            records: Vec::new(),
            topic: topic.clone(),
            records_crc: Some(crc32fast::hash(records)),
            fencing_token: None,
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
            fencing_token: None,
        };
        let condition = Condition::next_offset("a", 7).into_wire();
        let with_condition =
            v1::AppendRequest { conditions: vec![condition], ..options(Durability::Written, true) };
        let expected = |topics: &[&str]| v1::AppendRequest {
            appends: topics.iter().map(|topic| part(topic)).collect(),
            ..with_condition.clone()
        };
        let one = request("a", records.clone(), &with_condition);
        assert_eq!(v1::AppendRequest::decode(&bytes(one.clone())[..]).unwrap(), expected(&["a"]));
        let session = v1::AppendSessionRequest::decode(&bytes(in_session(one))[..]).unwrap();
        assert_eq!(session.append, Some(expected(&["a"])));
        let two = [("a".to_owned(), records.clone()), ("b".to_owned(), records.clone())];
        let two = joined(&two, &with_condition);
        assert_eq!(v1::AppendRequest::decode(&bytes(two)[..]).unwrap(), expected(&["a", "b"]));
    }
}
