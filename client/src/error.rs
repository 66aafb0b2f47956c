//! What can go wrong, and whether anything was applied.

use std::collections::HashMap;
use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::condition::{self, FailedCondition};

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What a call that failed has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Nothing: it may be tried again.
    NotApplied,
    /// Nobody knows: look before you try again.
    Unknown,
}

/// A field of a request that the server refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The field, as the proto files name it.
    pub field: String,
    /// What it must be.
    pub description: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.description)
    }
}

/// Everything that can go wrong. [`Error::outcome`] says whether anything was applied, [`Error::is_transient`] whether
/// to wait and try again.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No topic has that name.
    #[error("there is no topic {topic}")]
    TopicNotFound {
        /// The name.
        topic: String,
    },
    /// A topic has that name already.
    #[error("there is a topic {topic} already")]
    TopicExists {
        /// The name.
        topic: String,
    },
    /// The offset is below the first one that is still there.
    #[error("{message}; the first offset is {earliest}")]
    OffsetTrimmed {
        /// The first offset that can be read.
        earliest: u64,
        /// What the server said.
        message: String,
    },
    /// The offset lies beyond the end.
    #[error("{message}; the next offset is {next_offset}")]
    OffsetUnwritten {
        /// The next offset to be written, as far as this reader may see.
        next_offset: u64,
        /// What the server said.
        message: String,
    },
    /// The revision lies beyond the next one of the key.
    #[error("{message}")]
    RevisionUnwritten {
        /// The revision that the next record of the key gets, as far as this reader may see.
        next_revision: u64,
        /// What the server said.
        message: String,
    },
    /// Conditions of an append do not hold: nothing was appended. Read again what the decision was based on, and decide
    /// anew.
    #[error("{message}")]
    ConditionFailed {
        /// Those that do not hold, in order; the first ones, if the answer had no room for all.
        failed: Vec<FailedCondition>,
        /// How many there are.
        failed_count: usize,
        /// What the server said.
        message: String,
    },
    /// An append is not the next one of its producer. Nothing was appended.
    #[error("{message}")]
    SequenceGap {
        /// The sequence that comes next; 0 if the server does not know the producer, or not in that epoch.
        expected: u64,
        /// What the server said.
        message: String,
    },
    /// Somebody has taken the producer over with a higher epoch.
    #[error("{message}")]
    ProducerFenced {
        /// The epoch that counts.
        current: u64,
        /// What the server said.
        message: String,
    },
    /// Somebody has taken the topic over with a higher fencing token.
    #[error("{message}")]
    TopicFenced {
        /// The token that counts.
        current: u64,
        /// What the server said.
        message: String,
    },
    /// Other records were appended under that request id or sequence.
    #[error("{message}")]
    RequestIdReused {
        /// What the server said.
        message: String,
    },
    /// The server knows as many producers as it may.
    #[error("{message}")]
    TooManyProducers {
        /// What the server said.
        message: String,
    },
    /// There is no such producer.
    #[error("there is no producer {producer:?}")]
    ProducerNotFound {
        /// Its name.
        producer: String,
    },
    /// These records of a producer were appended before, so long ago that the server does not know any more where.
    #[error("appended before; where is not known any more")]
    AppendedBefore,
    /// The request breaks rules: all of those that the server found.
    #[error("{message}")]
    Invalid {
        /// What the server said, all that is in `violations` included.
        message: String,
        /// Which fields.
        violations: Vec<Violation>,
    },
    /// A record or an append has more than it may.
    #[error("{message}")]
    TooLarge {
        /// What is too large, and the bound.
        message: String,
        /// The bound, if it is known.
        limit: Option<u64>,
    },
    /// The records that reached the server are not those whose checksum was sent: they were damaged on the way.
    #[error("damaged on the way to the server: {message}")]
    ChecksumMismatch {
        /// What the server said.
        message: String,
    },
    /// The server's disk is full. Reads, trims and deletions go on.
    #[error("the server's disk is full: {message}")]
    DiskFull {
        /// What the server said.
        message: String,
    },
    /// The server has more to do than it can take.
    #[error("the server is overloaded: {message}")]
    Overloaded {
        /// When to try again.
        retry_after: Option<Duration>,
        /// What the server said.
        message: String,
    },
    /// The caller exceeded its rate.
    #[error("over the rate limit: {message}")]
    RateLimited {
        /// When to try again.
        retry_after: Option<Duration>,
        /// What the server said.
        message: String,
    },
    /// The server starts or stops.
    #[error("the server is not ready: {message}")]
    NotReady {
        /// When to try again.
        retry_after: Option<Duration>,
        /// What the server said.
        message: String,
    },
    /// Stored records are damaged. Everything else stays readable.
    #[error("stored records are damaged: {message}")]
    CorruptRange {
        /// The first damaged offset, if it is known.
        from: Option<u64>,
        /// One past the last damaged offset, if it is known.
        to: Option<u64>,
        /// What the server said.
        message: String,
    },
    /// The server's disk failed. It takes no appends until it is restarted.
    #[error("the server's storage has failed: {message}")]
    StorageFailed {
        /// What the server said.
        message: String,
    },
    /// This server does not offer that.
    #[error("not offered by this server: {message}")]
    Unimplemented {
        /// What the server said.
        message: String,
    },
    /// The build of this server lacks a codec.
    #[error("not offered by this server: {message}")]
    CodecUnavailable {
        /// The codec.
        codec: String,
        /// What the server said.
        message: String,
    },
    /// Any other refusal of the server.
    #[error("{message} ({reason})")]
    Refused {
        /// The reason as the server names it; empty if it named none.
        reason: String,
        /// The gRPC status code.
        code: Code,
        /// What the server said.
        message: String,
        /// What it added, by name.
        metadata: HashMap<String, String>,
        /// Whether anything was applied.
        outcome: Outcome,
    },
    /// No connection could be made: nothing was sent.
    #[error("cannot connect: {message}")]
    Connect {
        /// What went wrong.
        message: String,
    },
    /// The connection was lost, or the server said something that is no answer.
    #[error("the connection was lost: {message}")]
    Disconnected {
        /// What went wrong.
        message: String,
    },
    /// No answer came in time.
    #[error("no answer in time: {message}")]
    TimedOut {
        /// To what.
        message: String,
    },
    /// Records were sent and never answered, and it could not be found out whether they are there.
    #[error("sent, but not known to be appended: {cause}")]
    Unknown {
        /// What ended the tries.
        cause: Box<Error>,
    },
    /// The session ended before these records were sent.
    #[error("not sent: {cause}")]
    NotSent {
        /// What ended the session.
        cause: Box<Error>,
    },
    /// Records between two others are gone: trimmed or removed by retention while the reader was on its way. Reading
    /// goes on behind them.
    #[error("records {from} to {to} (exclusive) are gone")]
    RecordsGone {
        /// The first missing offset.
        from: u64,
        /// One past the last missing offset.
        to: u64,
    },
    /// The records that reached the client are not those that were appended.
    #[error(
        "damaged on the way to the client: records from offset {first_offset} have checksum {actual:08x}, not {expected:08x}"
    )]
    Damaged {
        /// The first offset of the batch.
        first_offset: u64,
        /// The checksum that came with it.
        expected: u32,
        /// The checksum of what came.
        actual: u32,
    },
    /// The server sent what this client does not understand.
    #[error("the server's message makes no sense: {detail}")]
    Protocol {
        /// What is wrong with it.
        detail: String,
    },
    /// An upcaster, or what takes events in, does not know what to make of one.
    #[error("the event at offset {offset} is not understood: {message}")]
    EventNotUnderstood {
        /// Where it is.
        offset: u64,
        /// What it said.
        message: String,
    },
    /// A state cannot be made from the events of its stream, because some are gone and no snapshot covers them.
    #[error(
        "the events of key {key:?} of topic {topic} from revision {from} on are gone, and no snapshot covers them"
    )]
    HistoryGone {
        /// The topic.
        topic: String,
        /// The key, as far as it is text.
        key: String,
        /// The first revision that is missing.
        from: u64,
    },
    /// Another runner of the projection has moved its position: what this one has in mind may be outdated. Open the projection
    /// anew. The commit that ends so was not applied. Also of a commit behind one of which nobody knows whether it was applied:
    /// the next call of [`Projection::next`](crate::Projection::next) finds that out.
    #[error("projection {name:?} has moved on without this runner; open it anew")]
    ProjectionReplaced {
        /// Its name.
        name: String,
    },
    /// The topic of a projection was deleted and made again, perhaps while it ran: its position means nothing there.
    #[error("topic {topic} is another one than projection {name:?} has read; begin anew with a rebuild")]
    ProjectionOutdated {
        /// The name of the projection.
        name: String,
        /// The topic.
        topic: String,
    },
    /// The session was closed.
    #[error("the session was closed")]
    Closed,
}

impl Error {
    /// Whether the call that failed has changed anything.
    #[must_use]
    pub fn outcome(&self) -> Outcome {
        match self {
            Self::Refused { outcome, .. } => *outcome,
            Self::StorageFailed { .. }
            | Self::Disconnected { .. }
            | Self::TimedOut { .. }
            | Self::Unknown { .. }
            | Self::AppendedBefore
            | Self::Protocol { .. } => Outcome::Unknown,
            _ => Outcome::NotApplied,
        }
    }

    /// Whether it may pass by itself, so that trying again later makes sense (for an append only if the
    /// [outcome](Self::outcome) allows it).
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(
            self,
            Self::Overloaded { .. }
                | Self::RateLimited { .. }
                | Self::NotReady { .. }
                | Self::Connect { .. }
                | Self::Disconnected { .. }
                | Self::TimedOut { .. }
                | Self::Refused { code: Code::Unavailable, .. }
        )
    }

    /// How long the server asked to wait.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Overloaded { retry_after, .. }
            | Self::RateLimited { retry_after, .. }
            | Self::NotReady { retry_after, .. } => *retry_after,
            _ => None,
        }
    }

    /// Whether it tells of an append that no earlier try of it was applied either, nor will be.
    pub(crate) fn denies_earlier(&self) -> bool {
        // Conditions are looked at only if it was not. It may still be under way, though, so one of them has to fail for good.
        match self {
            Self::ConditionFailed { failed, .. } => failed.iter().any(FailedCondition::is_final),
            _ => false,
        }
    }

    pub(crate) fn protocol(detail: impl Into<String>) -> Self {
        Self::Protocol { detail: detail.into() }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        match status.get_details_error_info() {
            Some(info) if info.domain == "quipu" => of_server(&status, &info.reason, info.metadata),
            _ => of_transport(&status),
        }
    }
}

/// An error that the server explains.
fn of_server(status: &Status, reason: &str, metadata: HashMap<String, String>) -> Error {
    let message = status.message().to_owned();
    let retry_after = status.get_details_retry_info().and_then(|info| info.retry_delay);
    let number = |name: &str| metadata.get(name).and_then(|value| value.parse::<u64>().ok());
    let topic = || metadata.get("topic").cloned().unwrap_or_default();
    let outcome = match metadata.get("outcome").map(String::as_str) {
        Some("NOT_APPLIED") => Outcome::NotApplied,
        _ => Outcome::Unknown,
    };
    let known = match (reason, status.code()) {
        ("TOPIC_NOT_FOUND", _) => Some(Error::TopicNotFound { topic: topic() }),
        ("TOPIC_EXISTS", _) => Some(Error::TopicExists { topic: topic() }),
        ("OFFSET_TRIMMED", _) => number("log_start_offset")
            .map(|earliest| Error::OffsetTrimmed { earliest, message: message.clone() }),
        ("OFFSET_UNWRITTEN", _) => number("next_offset")
            .map(|next_offset| Error::OffsetUnwritten { next_offset, message: message.clone() }),
        ("REVISION_UNWRITTEN", _) => number("next_revision")
            .map(|next_revision| Error::RevisionUnwritten { next_revision, message: message.clone() }),
        ("APPEND_CONDITION_FAILED", _) => condition::failure(status).map(|(failed, failed_count)| {
            Error::ConditionFailed { failed, failed_count, message: message.clone() }
        }),
        ("PRODUCER_SEQUENCE_GAP", _) => {
            number("expected").map(|expected| Error::SequenceGap { expected, message: message.clone() })
        }
        ("PRODUCER_FENCED", _) => {
            number("current").map(|current| Error::ProducerFenced { current, message: message.clone() })
        }
        ("TOPIC_FENCED", _) => {
            number("current").map(|current| Error::TopicFenced { current, message: message.clone() })
        }
        ("REQUEST_ID_REUSED", _) => Some(Error::RequestIdReused { message: message.clone() }),
        ("TOO_MANY_PRODUCERS", _) => Some(Error::TooManyProducers { message: message.clone() }),
        ("PRODUCER_NOT_FOUND", _) => {
            Some(Error::ProducerNotFound { producer: metadata.get("producer").cloned().unwrap_or_default() })
        }
        ("CHECKSUM_MISMATCH", _) => Some(Error::ChecksumMismatch { message: message.clone() }),
        ("DISK_FULL", _) => Some(Error::DiskFull { message: message.clone() }),
        ("OVERLOADED", _) => Some(Error::Overloaded { retry_after, message: message.clone() }),
        ("RATE_LIMITED", _) => Some(Error::RateLimited { retry_after, message: message.clone() }),
        ("NOT_READY" | "DRAINING", _) => Some(Error::NotReady { retry_after, message: message.clone() }),
        ("CORRUPT_RANGE", _) => {
            Some(Error::CorruptRange { from: number("from"), to: number("to"), message: message.clone() })
        }
        ("STORAGE_FAILED", _) => Some(Error::StorageFailed { message: message.clone() }),
        (reason, _) if reason.ends_with("_TOO_LARGE") => {
            Some(Error::TooLarge { message: message.clone(), limit: number("limit") })
        }
        ("CODEC_UNAVAILABLE", _) => Some(Error::CodecUnavailable {
            codec: metadata.get("codec").cloned().unwrap_or_default(),
            message: message.clone(),
        }),
        (_, Code::Unimplemented) => Some(Error::Unimplemented { message: message.clone() }),
        (_, Code::InvalidArgument) => {
            let violations = status
                .get_details_bad_request()
                .map(|bad| bad.field_violations)
                .unwrap_or_default()
                .into_iter()
                .map(|violation| Violation { field: violation.field, description: violation.description })
                .collect();
            Some(Error::Invalid { message: message.clone(), violations })
        }
        _ => None,
    };
    // What the server says about the outcome counts for more than what we expect of the reason.
    known.filter(|error| outcome == Outcome::NotApplied || error.outcome() == outcome).unwrap_or(
        Error::Refused { reason: reason.to_owned(), code: status.code(), message, metadata, outcome },
    )
}

/// An error that tonic or something between us and the server made.
fn of_transport(status: &Status) -> Error {
    let mut message = status.message().to_owned();
    let mut source = status.source();
    while let Some(cause) = source {
        if cause.is::<tonic::ConnectError>() {
            return Error::Connect { message: chain(cause) };
        }
        let text = cause.to_string();
        if !message.contains(&text) {
            message = format!("{message}: {text}");
        }
        source = cause.source();
    }
    match status.code() {
        Code::Unimplemented => Error::Unimplemented { message },
        Code::DeadlineExceeded => Error::TimedOut { message },
        Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled | Code::Aborted => {
            Error::Disconnected { message }
        }
        code => Error::Refused {
            reason: String::new(),
            code,
            message,
            metadata: HashMap::new(),
            outcome: Outcome::Unknown,
        },
    }
}

/// An error with its causes.
pub(crate) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let next = cause.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn refused(code: Code, reason: &str, metadata: &[(&str, &str)]) -> Error {
        let metadata: HashMap<String, String> =
            metadata.iter().map(|&(name, value)| (name.into(), value.into())).collect();
        let mut details = ErrorDetails::new();
        details.set_error_info(reason, "quipu", metadata).set_retry_info(Some(Duration::from_millis(70)));
        Status::with_error_details(code, "words", details).into()
    }

    #[test]
    fn reasons_become_variants_with_what_came_along() {
        let applied = ("outcome", "NOT_APPLIED");
        let error = refused(Code::NotFound, "TOPIC_NOT_FOUND", &[("topic", "t"), applied]);
        assert!(matches!(&error, Error::TopicNotFound { topic } if topic == "t"), "{error:?}");
        let error = refused(Code::OutOfRange, "OFFSET_TRIMMED", &[("log_start_offset", "7"), applied]);
        assert!(matches!(&error, Error::OffsetTrimmed { earliest: 7, .. }), "{error:?}");
        let error = refused(Code::Unavailable, "OVERLOADED", &[applied]);
        assert_eq!(error.retry_after(), Some(Duration::from_millis(70)));
        assert!(error.is_transient() && error.outcome() == Outcome::NotApplied);
    }

    #[test]
    fn the_server_has_the_last_word_on_the_outcome_and_silence_means_unknown() {
        let error = refused(Code::ResourceExhausted, "DISK_FULL", &[("outcome", "UNKNOWN")]);
        assert_eq!(error.outcome(), Outcome::Unknown);
        let error = refused(Code::ResourceExhausted, "DISK_FULL", &[]);
        assert_eq!(error.outcome(), Outcome::Unknown);
        let error = refused(Code::Internal, "SOMETHING_NEW", &[("outcome", "NOT_APPLIED")]);
        assert_eq!(error.outcome(), Outcome::NotApplied);
        assert_eq!(Error::from(Status::unavailable("gone")).outcome(), Outcome::Unknown);
    }

    #[test]
    fn a_refused_storage_failure_of_which_nothing_was_applied_keeps_its_reason() {
        let error = refused(Code::Internal, "STORAGE_FAILED", &[("outcome", "NOT_APPLIED")]);
        assert!(matches!(error, Error::StorageFailed { .. }), "{error:?}");
    }

    /// A try whose answer was lost may be waiting in the server. That the conditions of the next try did not hold was taken
    /// for a proof that the first would never be applied, also where they could hold a moment later.
    #[test]
    fn failed_conditions_deny_an_earlier_try_only_if_they_can_never_hold_again() {
        use crate::condition::{Expected, ExpectedRevision};

        let denies = |conditions: &[(Expected, Option<u64>)]| {
            let failed = conditions.iter().enumerate().map(|(number, &(expected, actual))| FailedCondition {
                number,
                topic: "t".into(),
                expected,
                actual,
                first_conflicting_offset: None,
            });
            let (failed, message) = (failed.collect::<Vec<_>>(), "words".into());
            Error::ConditionFailed { failed_count: failed.len(), failed, message }.denies_earlier()
        };
        let exact = |revision| Expected::Revision(ExpectedRevision::Exact(revision));
        let no_stream = Expected::Revision(ExpectedRevision::NoStream);
        let passed = [(exact(3), Some(4)), (no_stream, Some(0)), (Expected::NextOffset(3), Some(4))];
        let to_come = [
            (exact(3), Some(2)),
            (exact(0), None),
            (Expected::Revision(ExpectedRevision::Exists), None),
            (Expected::NextOffset(3), Some(2)),
            (Expected::NoMatch, None),
            (Expected::Other, Some(9)),
        ];
        for condition in passed {
            assert!(denies(&[condition]), "{condition:?}");
            assert!(denies(&[to_come[0], condition]), "one is enough: {condition:?}");
        }
        for condition in to_come {
            assert!(!denies(&[condition]), "{condition:?}");
        }
        assert!(!denies(&[]));
    }
}
