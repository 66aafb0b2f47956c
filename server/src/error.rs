//! Errors on the wire: each has a status code, a reason that clients branch on, and an outcome.
//!
//! The README of `quipu-proto` has the table. What is mapped here is exhaustive: an [`ErrorKind`] without a decision
//! does not compile.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use quipu_proto::v1 as pb;
use quipu_storage::{Error, ErrorKind};
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt};

use crate::condition;

/// The domain of every error.
pub const DOMAIN: &str = "quipu";
/// When to come back after a bound that others may free soon.
const RETRY_SOON: Duration = Duration::from_millis(100);
/// When to come back after a shutdown began.
const RETRY_LATER: Duration = Duration::from_secs(1);
/// Field violations in one answer; a header has little room.
const VIOLATIONS_MAX: usize = 32;
/// Bytes of all their texts. They come twice, one of them in base64 and the other escaped, in 16 KiB of headers.
const VIOLATION_BYTES_MAX: usize = 2 << 10;
/// Most characters of a value that an answer repeats.
const VALUE_CHARS_MAX: usize = 300;
/// Most characters of a message that names what a request has.
const MESSAGE_CHARS_MAX: usize = 1000;
/// The type of the detail that names failed conditions.
const FAILURE_TYPE: &str = "type.googleapis.com/quipu.v1.AppendConditionFailure";

/// What went wrong with a call.
#[derive(Debug)]
pub(crate) struct Problem {
    code: Code,
    reason: &'static str,
    message: String,
    metadata: HashMap<String, String>,
    retry_after: Option<Duration>,
    is_unknown: bool,
    violations: Vec<FieldViolation>,
    failure: Option<pb::AppendConditionFailure>,
}

impl Problem {
    pub(crate) fn new(code: Code, reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason,
            message: message.into(),
            metadata: HashMap::new(),
            retry_after: None,
            is_unknown: false,
            violations: Vec::new(),
            failure: None,
        }
    }

    pub(crate) fn with(mut self, name: &str, value: impl ToString) -> Self {
        let value = value.to_string().chars().take(VALUE_CHARS_MAX).collect();
        self.metadata.insert(name.into(), value);
        self
    }

    pub(crate) fn retry_after(mut self, delay: Duration) -> Self {
        self.retry_after = Some(delay);
        self
    }

    /// Whether anything was applied is not known.
    pub(crate) fn unknown(mut self) -> Self {
        self.is_unknown = true;
        self
    }

    #[cfg(test)]
    pub(crate) fn is_unknown(&self) -> bool {
        self.is_unknown
    }

    /// The server is going down.
    pub(crate) fn draining() -> Self {
        Self::new(Code::Unavailable, "DRAINING", "the server is shutting down").retry_after(RETRY_LATER)
    }

    /// A bound is reached that is free again soon.
    pub(crate) fn overloaded(what: &str, limit: impl ToString) -> Self {
        let message = format!("{what} is used up; try again shortly");
        Self::new(Code::Unavailable, "OVERLOADED", message)
            .with("what", what)
            .with("limit", limit)
            .retry_after(RETRY_SOON)
    }

    /// The request is larger than any may be.
    pub(crate) fn message_too_large(limit: usize) -> Self {
        let message = format!("the message is larger than {limit} bytes");
        Self::new(Code::InvalidArgument, "MESSAGE_TOO_LARGE", message).with("limit", limit)
    }

    /// The client stopped in the middle of its request.
    pub(crate) fn stalled(time_max: Duration) -> Self {
        let message = format!("no more of the request has come for {time_max:?}");
        Self::new(Code::Unavailable, "REQUEST_STALLED", message)
            .with("limit_ms", time_max.as_millis())
            .retry_after(RETRY_SOON)
    }

    /// Something that is not there yet.
    pub(crate) fn unsupported(feature: &str) -> Self {
        let message = format!("{feature} is not supported by this server");
        Self::new(Code::Unimplemented, "UNSUPPORTED", message).with("feature", feature)
    }

    /// Our own fault.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(Code::Internal, "INTERNAL", message).unknown()
    }
}

impl From<Problem> for Status {
    fn from(problem: Problem) -> Self {
        let Problem { code, reason, message, mut metadata, retry_after, is_unknown, violations, failure } =
            problem;
        let outcome = if is_unknown { "UNKNOWN" } else { "NOT_APPLIED" };
        metadata.insert("outcome".into(), outcome.into());
        let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
        if let Some(delay) = retry_after {
            details.set_retry_info(Some(delay));
        }
        if !violations.is_empty() {
            details.set_bad_request(violations);
        }
        let status = Status::with_error_details(code, message, details);
        match failure {
            Some(failure) => with_detail(&status, FAILURE_TYPE, &failure),
            None => status,
        }
    }
}

/// The status with one more detail.
fn with_detail(status: &Status, type_url: &str, detail: &impl Message) -> Status {
    // Ours: what does not decode has no details.
    let mut whole = tonic_types::Status::decode(status.details()).unwrap_or_default();
    whole.details.push(prost_types::Any { type_url: type_url.into(), value: detail.encode_to_vec() });
    Status::with_details(status.code(), status.message(), whole.encode_to_vec().into())
}

impl From<Error> for Problem {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        let of = |code, reason| Self::new(code, reason, message.clone());
        match &error {
            Error::InvalidTopicName { rule, .. } => {
                let mut violations = Violations::default();
                violations.add("name", *rule);
                violations.into_problem()
            }
            Error::InvalidSetting { setting, rule, .. } => {
                let mut violations = Violations::default();
                violations.add(format!("settings.{}", wire_name(setting)), format!("must be {rule}"));
                violations.into_problem()
            }
            Error::RecordTooLarge { index, what, actual, limit } => {
                of(Code::InvalidArgument, "RECORD_TOO_LARGE")
                    .with("index", index)
                    .with("what", what)
                    .with("actual", actual)
                    .with("limit", limit)
            }
            Error::AppendTooLarge { what, actual, limit } => of(Code::InvalidArgument, "APPEND_TOO_LARGE")
                .with("what", what)
                .with("actual", actual)
                .with("limit", limit),
            Error::InvalidAppend { .. } => of(Code::InvalidArgument, "INVALID_REQUEST"),
            Error::InvalidErasureKey { rule } => {
                let mut violations = Violations::default();
                violations.add("erasure_key", *rule);
                violations.into_problem()
            }
            Error::ErasureKeyDestroyed { index, erasure_key } => {
                of(Code::FailedPrecondition, "ERASURE_KEY_DESTROYED")
                    .with("index", index)
                    .with("erasure_key", erasure_key)
            }
            Error::TooManyErasedKeys { limit, .. } => {
                of(Code::ResourceExhausted, "TOO_MANY_ERASED_KEYS").with("limit", limit)
            }
            Error::MasterKeyMissing => of(Code::FailedPrecondition, "MASTER_KEY_MISSING"),
            Error::InvalidEncoding { position, .. } => {
                of(Code::InvalidArgument, "INVALID_ENCODING").with("position", position)
            }
            Error::InvalidFilter { rule } => {
                let mut violations = Violations::default();
                violations.add("filter", *rule);
                violations.into_problem()
            }
            Error::ConditionFailed { failed } => {
                let mut problem = of(Code::Aborted, "APPEND_CONDITION_FAILED").with("failed", failed.len());
                // Keys are in it, of any length.
                problem.message = problem.message.chars().take(MESSAGE_CHARS_MAX).collect();
                problem.failure = Some(condition::failure(failed));
                problem
            }
            Error::ProducerFenced { producer, epoch, current } => {
                of(Code::FailedPrecondition, "PRODUCER_FENCED")
                    .with("producer", producer)
                    .with("epoch", epoch)
                    .with("current", current)
            }
            Error::SequenceGap { producer, epoch, expected, actual } => {
                of(Code::FailedPrecondition, "PRODUCER_SEQUENCE_GAP")
                    .with("producer", producer)
                    .with("epoch", epoch)
                    .with("expected", expected)
                    .with("actual", actual)
            }
            Error::RequestIdReused { .. } => of(Code::AlreadyExists, "REQUEST_ID_REUSED"),
            Error::TooManyProducers { limit } => {
                of(Code::ResourceExhausted, "TOO_MANY_PRODUCERS").with("limit", limit)
            }
            Error::ProducerNotFound { name } => {
                of(Code::NotFound, "PRODUCER_NOT_FOUND").with("producer", name)
            }
            Error::TopicFenced { topic, token, current } => of(Code::FailedPrecondition, "TOPIC_FENCED")
                .with("topic", topic)
                .with("token", token)
                .with("current", current),
            Error::ConditionTrimmed { number, topic, offset, log_start_offset } => {
                of(Code::OutOfRange, "CONDITION_TRIMMED")
                    .with("condition", number)
                    .with("topic", topic)
                    .with("offset", offset)
                    .with("log_start_offset", log_start_offset)
            }
            Error::TopicNotFound { name } => of(Code::NotFound, "TOPIC_NOT_FOUND").with("topic", name),
            Error::TopicExists { name } => of(Code::AlreadyExists, "TOPIC_EXISTS").with("topic", name),
            Error::TooManyTopics { limit } => {
                of(Code::ResourceExhausted, "TOO_MANY_TOPICS").with("limit", limit)
            }
            Error::OffsetTrimmed { topic, offset, log_start_offset } => {
                of(Code::OutOfRange, "OFFSET_TRIMMED")
                    .with("topic", topic)
                    .with("offset", offset)
                    .with("log_start_offset", log_start_offset)
            }
            Error::OffsetUnwritten { topic, offset, next_offset } => of(Code::OutOfRange, "OFFSET_UNWRITTEN")
                .with("topic", topic)
                .with("offset", offset)
                .with("next_offset", next_offset),
            Error::RevisionUnwritten { topic, revision, next_revision } => {
                of(Code::OutOfRange, "REVISION_UNWRITTEN")
                    .with("topic", topic)
                    .with("revision", revision)
                    .with("next_revision", next_revision)
            }
            Error::SnapshotsRefused { topic, rule } => {
                of(Code::FailedPrecondition, "SNAPSHOTS_REFUSED").with("topic", topic).with("rule", rule)
            }
            Error::Overloaded { what, limit } => of(Code::Unavailable, "OVERLOADED")
                .with("what", what)
                .with("limit", limit)
                .retry_after(RETRY_SOON),
            Error::Closed => Self::draining(),
            Error::AlreadyRunning { what } => {
                of(Code::FailedPrecondition, "ALREADY_RUNNING").with("what", what)
            }
            Error::Cancelled { what } => of(Code::Cancelled, "CANCELLED").with("what", what).unknown(),
            Error::DiskFull { path, .. } => {
                of(Code::ResourceExhausted, "DISK_FULL").with("path", path.display())
            }
            Error::Io { path, .. } => {
                of(Code::Unavailable, "IO_FAILED").with("path", path.display()).retry_after(RETRY_LATER)
            }
            Error::StorageFailed { path, .. } => {
                of(Code::Internal, "STORAGE_FAILED").with("path", path.display()).unknown()
            }
            Error::Corrupt { topic, offsets, path, position, detail } => of(Code::DataLoss, "CORRUPT_RANGE")
                .with("topic", topic)
                .with("from", offsets.start)
                .with("to", offsets.end)
                .with("path", path.display())
                .with("position", position)
                .with("detail", detail),
            Error::KeysUnknown { topic, offsets } => of(Code::DataLoss, "KEYS_UNKNOWN")
                .with("topic", topic)
                .with("from", offsets.start)
                .with("to", offsets.end),
            Error::CorruptFile { path, position, .. } => {
                of(Code::DataLoss, "CORRUPT_FILE").with("path", path.display()).with("position", position)
            }
            Error::TopicRefused { topic, path, .. } => {
                of(Code::DataLoss, "TOPIC_REFUSED").with("topic", topic).with("path", path.display())
            }
            Error::CodecUnavailable { codec } => {
                of(Code::Unimplemented, "CODEC_UNAVAILABLE").with("codec", codec)
            }
            // Those that a later engine may bring, and those of opening a store, which no call meets.
            other => {
                let (code, reason) = match other.kind() {
                    ErrorKind::Invalid => (Code::InvalidArgument, "INVALID_REQUEST"),
                    ErrorKind::NotFound => (Code::NotFound, "NOT_FOUND"),
                    ErrorKind::Exists => (Code::AlreadyExists, "EXISTS"),
                    ErrorKind::OutOfRange => (Code::OutOfRange, "OFFSET_OUT_OF_RANGE"),
                    ErrorKind::Busy => (Code::FailedPrecondition, "BUSY"),
                    ErrorKind::Retry => (Code::Unavailable, "OVERLOADED"),
                    ErrorKind::Conflict => (Code::Aborted, "APPEND_CONDITION_FAILED"),
                    ErrorKind::DiskFull => (Code::ResourceExhausted, "DISK_FULL"),
                    ErrorKind::Damaged => (Code::DataLoss, "CORRUPT_FILE"),
                    ErrorKind::Reopen => (Code::Internal, "STORAGE_FAILED"),
                    ErrorKind::Unsupported => (Code::Unimplemented, "UNSUPPORTED"),
                };
                let problem = of(code, reason);
                match other.kind() {
                    ErrorKind::Retry => problem.retry_after(RETRY_SOON),
                    ErrorKind::Reopen => problem.unknown(),
                    _ => problem,
                }
            }
        }
    }
}

/// A setting of the engine as the proto files call it.
fn wire_name(setting: &str) -> String {
    match setting {
        "storage" => "memory".into(),
        "storage.memory.bytes_max" => "memory.bytes_max".into(),
        name if name.ends_with("age_max") || name.ends_with("_min") => format!("{name}_ms"),
        name => name.into(),
    }
}

/// The engine's errors, as the status of a call.
pub(crate) fn status(error: Error) -> Status {
    Problem::from(error).into()
}

/// What is wrong with a request, all at once.
#[derive(Debug, Default)]
pub(crate) struct Violations {
    found: Vec<FieldViolation>,
    bytes: usize,
    left_out: usize,
}

impl Violations {
    pub(crate) fn add(&mut self, field: impl Into<String>, rule: impl Into<String>) {
        let rule: String = rule.into().chars().take(VALUE_CHARS_MAX).collect();
        let violation = FieldViolation::new(field, rule);
        let bytes = self.bytes + violation.field.len() + violation.description.len();
        if self.found.len() < VIOLATIONS_MAX && bytes <= VIOLATION_BYTES_MAX {
            self.bytes = bytes;
            self.found.push(violation);
        } else {
            self.left_out += 1;
        }
    }

    /// Notes a violation unless `holds`.
    pub(crate) fn require(&mut self, holds: bool, field: impl Into<String>, rule: impl Into<String>) {
        if !holds {
            self.add(field, rule);
        }
    }

    /// Checks a topic's name.
    pub(crate) fn topic_name(&mut self, field: impl Into<String>, name: &str) {
        if let Err(Error::InvalidTopicName { rule, .. }) = quipu_storage::TopicName::new(name) {
            self.add(field, rule);
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    /// Takes those of `others` over.
    pub(crate) fn append(&mut self, others: Self) {
        for violation in others.found {
            self.add(violation.field, violation.description);
        }
        self.left_out += others.left_out;
    }

    /// An error if there is any violation.
    pub(crate) fn finish(self) -> Result<(), Status> {
        if self.found.is_empty() { Ok(()) } else { Err(self.into_problem().into()) }
    }

    /// What to answer; only for violations that there are.
    pub(crate) fn into_problem(self) -> Problem {
        let mut message = String::from("the request is not valid: ");
        for (number, violation) in self.found.iter().enumerate() {
            let separator = if number == 0 { "" } else { "; " };
            message.push_str(&format!("{separator}{}: {}", violation.field, violation.description));
        }
        if self.left_out > 0 {
            message.push_str(&format!("; and {} more", self.left_out));
        }
        let mut problem = Problem::new(Code::InvalidArgument, "INVALID_REQUEST", message);
        problem.violations = self.found;
        problem
    }
}

#[cfg(test)]
mod tests {
    use quipu_storage::{Offset, Position, Revision, TopicName};

    use super::*;

    fn reason(status: &Status) -> (Code, String, String) {
        let info = status.get_details_error_info().expect("every error has it");
        assert_eq!(info.domain, DOMAIN);
        (status.code(), info.reason, info.metadata["outcome"].clone())
    }

    #[test]
    fn every_error_of_the_engine_has_a_code_a_reason_and_an_outcome() {
        let topic = || TopicName::new("orders").expect("a valid name");
        let io = || std::sync::Arc::new(std::io::Error::other("broken"));
        let (action, path) = ("write", std::path::PathBuf::from("/data/journal"));
        let (not, unknown) = ("NOT_APPLIED", "UNKNOWN");
        let table = [
            (Error::TopicNotFound { name: topic() }, Code::NotFound, "TOPIC_NOT_FOUND", not),
            (Error::TopicExists { name: topic() }, Code::AlreadyExists, "TOPIC_EXISTS", not),
            (Error::TooManyTopics { limit: 3 }, Code::ResourceExhausted, "TOO_MANY_TOPICS", not),
            (Error::InvalidAppend { rule: "r" }, Code::InvalidArgument, "INVALID_REQUEST", not),
            (
                Error::InvalidSetting {
                    setting: "segment_bytes_max",
                    value: "1".into(),
                    rule: "more".into(),
                },
                Code::InvalidArgument,
                "INVALID_REQUEST",
                not,
            ),
            (
                Error::RecordTooLarge { index: 1, what: "key", actual: 5000, limit: 4096 },
                Code::InvalidArgument,
                "RECORD_TOO_LARGE",
                not,
            ),
            (
                Error::AppendTooLarge { what: "bytes", actual: 9, limit: 8 },
                Code::InvalidArgument,
                "APPEND_TOO_LARGE",
                not,
            ),
            (
                Error::InvalidEncoding { detail: "d", position: 4 },
                Code::InvalidArgument,
                "INVALID_ENCODING",
                not,
            ),
            (
                Error::OffsetTrimmed { topic: topic(), offset: Offset(1), log_start_offset: Offset(2) },
                Code::OutOfRange,
                "OFFSET_TRIMMED",
                not,
            ),
            (
                Error::OffsetUnwritten { topic: topic(), offset: Offset(3), next_offset: Offset(2) },
                Code::OutOfRange,
                "OFFSET_UNWRITTEN",
                not,
            ),
            (
                Error::RevisionUnwritten {
                    topic: topic(),
                    revision: Revision(3),
                    next_revision: Revision(2),
                },
                Code::OutOfRange,
                "REVISION_UNWRITTEN",
                not,
            ),
            (
                Error::SnapshotsRefused { topic: topic(), rule: "r" },
                Code::FailedPrecondition,
                "SNAPSHOTS_REFUSED",
                not,
            ),
            (Error::DiskFull { action, path: path.clone() }, Code::ResourceExhausted, "DISK_FULL", not),
            (Error::Overloaded { what: "the journal", limit: 1 }, Code::Unavailable, "OVERLOADED", not),
            (Error::Closed, Code::Unavailable, "DRAINING", not),
            (Error::Io { action, path: path.clone(), source: io() }, Code::Unavailable, "IO_FAILED", not),
            (
                Error::StorageFailed { action, path: path.clone(), source: io() },
                Code::Internal,
                "STORAGE_FAILED",
                unknown,
            ),
            (
                Error::Corrupt {
                    topic: topic(),
                    offsets: Offset(1)..Offset(2),
                    path: path.clone(),
                    position: Position(64),
                    detail: "d",
                },
                Code::DataLoss,
                "CORRUPT_RANGE",
                not,
            ),
            (
                Error::KeysUnknown { topic: topic(), offsets: Offset(1)..Offset(2) },
                Code::DataLoss,
                "KEYS_UNKNOWN",
                not,
            ),
            (
                Error::CorruptFile { path: path.clone(), position: Position(1), detail: "d".into() },
                Code::DataLoss,
                "CORRUPT_FILE",
                not,
            ),
            (
                Error::TopicRefused { topic: topic(), path: path.clone(), detail: "d".into() },
                Code::DataLoss,
                "TOPIC_REFUSED",
                not,
            ),
            (
                Error::ErasureKeyDestroyed { index: 0, erasure_key: "customer-17".into() },
                Code::FailedPrecondition,
                "ERASURE_KEY_DESTROYED",
                not,
            ),
            (Error::MasterKeyMissing, Code::FailedPrecondition, "MASTER_KEY_MISSING", not),
            (
                Error::TooManyErasedKeys { path: "master.key".into(), limit: 3 },
                Code::ResourceExhausted,
                "TOO_MANY_ERASED_KEYS",
                not,
            ),
            (Error::AlreadyRunning { what: "compaction" }, Code::FailedPrecondition, "ALREADY_RUNNING", not),
            (Error::Cancelled { what: "compaction" }, Code::Cancelled, "CANCELLED", unknown),
            (Error::CodecUnavailable { codec: "zstd" }, Code::Unimplemented, "CODEC_UNAVAILABLE", not),
            (Error::ReadOnly, Code::FailedPrecondition, "BUSY", not),
            (
                Error::ProducerFenced { producer: "p".into(), epoch: 1, current: 2 },
                Code::FailedPrecondition,
                "PRODUCER_FENCED",
                not,
            ),
            (
                Error::TopicFenced { topic: topic(), token: 1, current: 2 },
                Code::FailedPrecondition,
                "TOPIC_FENCED",
                not,
            ),
            (
                Error::SequenceGap { producer: "p".into(), epoch: 1, expected: 2, actual: 3 },
                Code::FailedPrecondition,
                "PRODUCER_SEQUENCE_GAP",
                not,
            ),
            (Error::RequestIdReused { identity: "i".into() }, Code::AlreadyExists, "REQUEST_ID_REUSED", not),
            (Error::TooManyProducers { limit: 3 }, Code::ResourceExhausted, "TOO_MANY_PRODUCERS", not),
            (Error::ProducerNotFound { name: "p".into() }, Code::NotFound, "PRODUCER_NOT_FOUND", not),
        ];
        for (error, code, name, outcome) in table {
            let text = error.to_string();
            assert_eq!(reason(&status(error)), (code, name.to_owned(), outcome.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_may_succeed_later_says_when_and_a_full_disk_does_not() {
        let delay = |error| status(error).get_details_retry_info().and_then(|info| info.retry_delay);
        assert_eq!(delay(Error::Overloaded { what: "the journal", limit: 1 }), Some(RETRY_SOON));
        assert_eq!(delay(Error::Closed), Some(RETRY_LATER));
        assert_eq!(delay(Error::DiskFull { action: "write", path: "/".into() }), None);
    }

    #[test]
    fn violations_are_told_all_at_once_and_are_bounded() {
        let mut violations = Violations::default();
        for number in 0..VIOLATIONS_MAX + 2 {
            violations.add(format!("field{number}"), "is wrong");
        }
        let status = violations.finish().expect_err("there are some");
        assert_eq!(status.get_details_bad_request().expect("listed").field_violations.len(), VIOLATIONS_MAX);
        assert!(status.message().ends_with("and 2 more"), "{}", status.message());
    }

    /// A request with long wrong names was once answered with headers that no client takes: it saw a broken stream.
    #[test]
    fn whatever_is_wrong_the_answer_fits_into_the_headers_that_clients_take() {
        let mut violations = Violations::default();
        for _ in 0..100 {
            violations.add("update_mask.paths", "\u{1f4a5}".repeat(10_000));
        }
        let status = violations.finish().expect_err("there are some");
        let headers = status.into_http::<()>().headers().clone();
        let bytes: usize = headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum();
        assert!(bytes < 16 << 10, "{bytes}");
    }
}
