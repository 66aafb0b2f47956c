//! Conditions of appends: what they are in a request, and what a client is told of those that do not hold.

use prost::Message;
use quipu_proto::v1 as pb;
use quipu_storage::{Condition, ExpectedRevision, FailedCheck, FailedCondition, Offset, Revision};

use crate::error::Violations;
use crate::filter;

/// Most conditions of one append.
pub(crate) const CONDITIONS_MAX: usize = 100;
/// Most bytes of all of them, encoded: a filter of many small values takes many times that in memory.
pub(crate) const CONDITION_BYTES_MAX: usize = 128 << 10;
/// Bytes of what is told of those that failed. It comes in base64, in 16 KiB of headers.
const FAILURE_BYTES_MAX: usize = 4 << 10;

/// The conditions of a request, each with the name of its topic.
pub(crate) fn all_from_wire(
    wire: Vec<pb::AppendCondition>,
    violations: &mut Violations,
) -> Vec<(String, Condition)> {
    let of_one = |(number, wire): (usize, pb::AppendCondition)| {
        let field = format!("conditions[{number}]");
        violations.topic_name(format!("{field}.topic"), &wire.topic);
        Some((wire.topic, from_wire(wire.condition, &field, violations)?))
    };
    wire.into_iter().enumerate().filter_map(of_one).collect()
}

fn from_wire(
    wire: Option<pb::append_condition::Condition>,
    field: &str,
    violations: &mut Violations,
) -> Option<Condition> {
    use pb::append_condition::Condition as Wire;
    use pb::append_condition::stream_revision::Expected;
    Some(match wire {
        None => {
            violations.add(field, "must be one of revision, next_offset and no_match");
            return None;
        }
        Some(Wire::NextOffset(offset)) => Condition::NextOffset(Offset(offset)),
        Some(Wire::NoMatch(no_match)) => Condition::NoMatch {
            filter: filter::from_wire(no_match.filter, &format!("{field}.no_match.filter"), violations)
                .unwrap_or_default(),
            after_offset: no_match.after_offset.map(Offset),
        },
        Some(Wire::Revision(revision)) => {
            let expected = match revision.expected {
                Some(Expected::Exact(revision)) => ExpectedRevision::Exact(Revision(revision)),
                Some(Expected::NoStream(true)) => ExpectedRevision::NoStream,
                Some(Expected::Exists(true)) => ExpectedRevision::Exists,
                Some(Expected::Any(true)) => ExpectedRevision::Any,
                Some(Expected::NoStream(false) | Expected::Exists(false) | Expected::Any(false)) | None => {
                    let rule = "must be exact, or one of no_stream, exists and any as true";
                    violations.add(format!("{field}.revision"), rule);
                    return None;
                }
            };
            Condition::Revision { key: revision.key.into(), expected }
        }
    })
}

/// What a client is told of conditions that do not hold.
pub(crate) fn failure(failed: &[FailedCondition]) -> pb::AppendConditionFailure {
    let mut failure = pb::AppendConditionFailure {
        failed: Vec::new(),
        failed_count: u32::try_from(failed.len()).unwrap_or(u32::MAX),
    };
    let mut bytes = 0;
    for failed in failed.iter().map(to_wire) {
        bytes += failed.encoded_len() + 3;
        if bytes > FAILURE_BYTES_MAX {
            break;
        }
        failure.failed.push(failed);
    }
    failure
}

fn to_wire(failed: &FailedCondition) -> pb::append_condition_failure::FailedCondition {
    use pb::append_condition_failure::failed_condition::Expected;
    let (expected, actual) = match &failed.check {
        FailedCheck::Revision { expected, actual, .. } => {
            let expected = match expected {
                ExpectedRevision::Exact(revision) => Some(Expected::Revision(revision.value())),
                ExpectedRevision::NoStream => Some(Expected::NoStream(true)),
                ExpectedRevision::Exists => Some(Expected::Exists(true)),
                // It always holds.
                ExpectedRevision::Any => None,
            };
            (expected, actual.map(Revision::value))
        }
        FailedCheck::NextOffset { expected, actual } => {
            (Some(Expected::NextOffset(expected.value())), Some(actual.value()))
        }
        FailedCheck::Match { .. } => (Some(Expected::NoMatch(true)), None),
    };
    pb::append_condition_failure::FailedCondition {
        condition: u32::try_from(failed.number).unwrap_or(u32::MAX),
        topic: failed.topic.as_str().into(),
        expected,
        actual,
        first_conflicting_offset: failed.check.first_conflicting_offset().map(Offset::value),
    }
}
