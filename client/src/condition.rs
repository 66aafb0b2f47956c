//! Conditions of appends: what must hold for one to be applied, and what is told of those that do not.

use std::fmt;

use prost::Message;
use quipu_proto::v1;
use tonic::Status;
use v1::append_condition_failure::failed_condition::Expected as WireExpected;

use crate::client::{Client, Repeat};
use crate::error::Result;
use crate::read::Filter;

/// The type of the detail that names failed conditions.
const FAILURE_TYPE: &str = "type.googleapis.com/quipu.v1.AppendConditionFailure";

/// What must hold for an append to be applied. See [`Append::require`](crate::Append::require).
#[derive(Clone, Debug, PartialEq)]
pub struct Condition(v1::AppendCondition);

/// What the last revision of a key should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedRevision {
    /// This one.
    Exact(u64),
    /// There is none: no record ever had the key.
    NoStream,
    /// There is one: some record had the key.
    Exists,
    /// Whatever there is: always holds.
    Any,
}

impl Condition {
    /// The last revision of a key is as expected. The append may write the key, or not.
    pub fn revision(topic: impl Into<String>, key: impl Into<Vec<u8>>, expected: ExpectedRevision) -> Self {
        use v1::append_condition::stream_revision::Expected;
        let expected = Some(match expected {
            ExpectedRevision::Exact(revision) => Expected::Exact(revision),
            ExpectedRevision::NoStream => Expected::NoStream(true),
            ExpectedRevision::Exists => Expected::Exists(true),
            ExpectedRevision::Any => Expected::Any(true),
        });
        let revision = v1::append_condition::StreamRevision { key: key.into().into(), expected };
        Self::of(topic, v1::append_condition::Condition::Revision(revision))
    }

    /// The topic's next offset is this.
    pub fn next_offset(topic: impl Into<String>, offset: u64) -> Self {
        Self::of(topic, v1::append_condition::Condition::NextOffset(offset))
    }

    /// No record behind this offset matches the filter; without one, none at all.
    pub fn no_match(topic: impl Into<String>, filter: Filter, after_offset: Option<u64>) -> Self {
        let no_match = v1::append_condition::NoMatch { filter: Some(filter), after_offset };
        Self::of(topic, v1::append_condition::Condition::NoMatch(no_match))
    }

    fn of(topic: impl Into<String>, condition: v1::append_condition::Condition) -> Self {
        Self(v1::AppendCondition { topic: topic.into(), condition: Some(condition) })
    }

    pub(crate) fn into_wire(self) -> v1::AppendCondition {
        self.0
    }
}

impl Client {
    /// Whether these conditions hold now, without appending anything: [`Error::ConditionFailed`](crate::Error::ConditionFailed) if not.
    ///
    /// # Errors
    /// Those of an append, and of the connection.
    pub async fn check(&self, conditions: impl IntoIterator<Item = Condition>) -> Result<()> {
        let conditions = conditions.into_iter().map(Condition::into_wire).collect();
        let request = v1::AppendRequest { conditions, validate_only: true, ..Default::default() };
        let call = || {
            let (mut service, request) = (self.log_service(), self.request(request.clone()));
            async move { service.append(request).await }
        };
        self.call(Repeat::Harmless, call).await.map(drop)
    }
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedCondition {
    /// Its place among the conditions of the append.
    pub number: usize,
    /// The topic that it is about.
    pub topic: String,
    /// What was expected.
    pub expected: Expected,
    /// What there is: the key's last revision, or the next offset. None: the key has none; and where a record matches.
    pub actual: Option<u64>,
    /// The first record that contradicts, if there is one that can be read.
    pub first_conflicting_offset: Option<u64>,
}

/// What a condition expects.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Expected {
    /// Of the last revision of a key.
    Revision(ExpectedRevision),
    /// This next offset.
    NextOffset(u64),
    /// That no record matches.
    NoMatch,
    /// What this client does not know.
    Other,
}

impl FailedCondition {
    /// Whether it never holds again: revisions and offsets only rise. A revision or offset that is still to come, and a match
    /// that compaction may take out, are not final.
    pub(crate) fn is_final(&self) -> bool {
        match (self.expected, self.actual) {
            (Expected::Revision(ExpectedRevision::NoStream), Some(_)) => true,
            (Expected::Revision(ExpectedRevision::Exact(expected)), Some(actual))
            | (Expected::NextOffset(expected), Some(actual)) => actual > expected,
            _ => false,
        }
    }
}

impl fmt::Display for FailedCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "condition {} on topic {}: ", self.number, self.topic)?;
        match self.expected {
            Expected::Revision(ExpectedRevision::Exact(revision)) => {
                write!(f, "the key should have revision {revision}")?;
            }
            Expected::Revision(ExpectedRevision::NoStream) => f.write_str("the key should have no record")?,
            Expected::Revision(ExpectedRevision::Exists) => f.write_str("the key should have a record")?,
            Expected::Revision(ExpectedRevision::Any) => {
                f.write_str("the key may have any record or none")?
            }
            Expected::NextOffset(offset) => write!(f, "the next offset should be {offset}")?,
            Expected::NoMatch => f.write_str("no record should match")?,
            Expected::Other => f.write_str("it does not hold")?,
        }
        match (self.expected, self.actual, self.first_conflicting_offset) {
            (Expected::Revision(_), Some(actual), _) => write!(f, ", and its last revision is {actual}"),
            (Expected::Revision(_), None, _) => f.write_str(", and it never had one"),
            (_, Some(actual), _) => write!(f, ", and is {actual}"),
            (_, None, Some(offset)) => write!(f, ", and the one at offset {offset} does"),
            (_, None, None) => Ok(()),
        }
    }
}

/// What the status of a failed append says of its conditions: those that fit, and how many there are.
pub(crate) fn failure(status: &Status) -> Option<(Vec<FailedCondition>, usize)> {
    let details = tonic_types::Status::decode(status.details()).ok()?.details;
    let detail = details.into_iter().find(|detail| detail.type_url == FAILURE_TYPE)?;
    let failure = v1::AppendConditionFailure::decode(&detail.value[..]).ok()?;
    let count = usize::try_from(failure.failed_count).unwrap_or(usize::MAX);
    Some((failure.failed.into_iter().map(from_wire).collect(), count))
}

fn from_wire(wire: v1::append_condition_failure::FailedCondition) -> FailedCondition {
    let expected = match wire.expected {
        Some(WireExpected::Revision(revision)) => Expected::Revision(ExpectedRevision::Exact(revision)),
        Some(WireExpected::NoStream(_)) => Expected::Revision(ExpectedRevision::NoStream),
        Some(WireExpected::Exists(_)) => Expected::Revision(ExpectedRevision::Exists),
        Some(WireExpected::NextOffset(offset)) => Expected::NextOffset(offset),
        Some(WireExpected::NoMatch(_)) => Expected::NoMatch,
        None => Expected::Other,
    };
    FailedCondition {
        number: usize::try_from(wire.condition).unwrap_or(usize::MAX),
        topic: wire.topic,
        expected,
        actual: wire.actual,
        first_conflicting_offset: wire.first_conflicting_offset,
    }
}
