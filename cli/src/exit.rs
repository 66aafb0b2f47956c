//! How a command ends: a failure with its reason, what to do about it, and the exit code.
//!
//! Exit codes are stable: scripts branch on them. [`EXITS`] is the only list; `--help` prints it, and tests compare it
//! with `docs/cli.md` and with the reasons that are given.

use std::fmt;
use std::io;

use quipu_storage::{Error as StorageError, ErrorKind};

/// The result of everything a command does.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// The exit codes, in rising order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Ok,
    Failure,
    Usage,
    NotFound,
    Conflict,
    Unavailable,
    OutOfRange,
    Busy,
    Damaged,
    DiskFull,
    StorageFailed,
    Input,
    Denied,
    Unsupported,
    Interrupted,
}

/// Code, reasons, and what to do.
pub(crate) const EXITS: &[(Exit, u8, &str, &str)] = &[
    (Exit::Ok, 0, "-", "done; also when the reader of a pipe went away"),
    (Exit::Failure, 1, "IO, INTERNAL", "read the message"),
    (
        Exit::Usage,
        2,
        "USAGE, INVALID_ARGUMENT, RECORD_TOO_LARGE, APPEND_TOO_LARGE, MASTER_KEY_MISSING, MASTER_KEY_REFUSED, SNAPSHOTS_REFUSED",
        "correct the command or the request",
    ),
    (
        Exit::NotFound,
        3,
        "TOPIC_NOT_FOUND, NO_STORE, FILE_NOT_FOUND, PRODUCER_NOT_FOUND, SNAPSHOT_NOT_FOUND, NOT_FOUND",
        "check the name; `topics create` makes a topic",
    ),
    (
        Exit::Conflict,
        4,
        "TOPIC_EXISTS, FILE_EXISTS, EXISTS, APPEND_CONDITION_FAILED, FENCED, PRODUCER_FENCED, TOPIC_FENCED, PRODUCER_SEQUENCE_GAP, REQUEST_ID_REUSED, APPENDED_BEFORE, ERASURE_KEY_DESTROYED",
        "it is there already, or has changed: look again",
    ),
    (
        Exit::Unavailable,
        5,
        "UNREACHABLE, NOT_READY, DRAINING, OVERLOADED, IO_FAILED, TOO_MANY_CONNECTIONS, TOO_MANY_STREAMS, TOO_MANY_SUBSCRIPTIONS, REQUEST_STALLED, OUTCOME_UNKNOWN",
        "try again a little later",
    ),
    (
        Exit::OutOfRange,
        6,
        "OFFSET_TRIMMED, OFFSET_UNWRITTEN, OFFSET_OUT_OF_RANGE, REVISION_UNWRITTEN, CONDITION_TRIMMED",
        "use an offset or a revision within the bounds in the message",
    ),
    (
        Exit::Busy,
        7,
        "LOCKED, LISTEN, BUSY, ALREADY_RUNNING, TOO_MANY_TOPICS, TOO_MANY_PRODUCERS, TOO_MANY_ERASED_KEYS",
        "another process or operation is at it",
    ),
    (
        Exit::Damaged,
        8,
        "CORRUPT_RANGE, KEYS_UNKNOWN, CORRUPT_FILE, TOPIC_REFUSED, CHECKSUM_MISMATCH",
        "restore what the message names",
    ),
    (Exit::DiskFull, 9, "DISK_FULL", "free space: `topics trim`, `topics delete`"),
    (Exit::StorageFailed, 10, "STORAGE_FAILED", "check the disk, then restart the server"),
    (Exit::Input, 11, "INPUT_INVALID", "correct the line that is named, or skip it with --skip-invalid"),
    (Exit::Denied, 12, "UNAUTHENTICATED, ACCESS_DENIED", "use other credentials"),
    (Exit::Unsupported, 13, "UNIMPLEMENTED, NEWER_FORMAT, CODEC_UNAVAILABLE", "use a build that has it"),
    (Exit::Interrupted, 130, "CANCELLED", "stopped by a signal or cancelled"),
];

impl Exit {
    /// The number that the process ends with.
    pub(crate) fn code(self) -> u8 {
        EXITS.iter().find(|row| row.0 == self).map_or(1, |row| row.1)
    }

    /// The exit for a reason, as servers give it in `google.rpc.ErrorInfo`.
    pub(crate) fn of_reason(reason: &str) -> Option<Self> {
        EXITS.iter().find(|row| row.2.split(", ").any(|known| known == reason)).map(|row| row.0)
    }
}

/// Why a command ends without having done what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// In capitals, as in the table of [`EXITS`].
    pub(crate) reason: String,
    pub(crate) message: String,
    /// What to do.
    pub(crate) hint: Option<String>,
    is_silent: bool,
}

impl Failure {
    /// A failure with its exit code and reason.
    pub(crate) fn new(exit: Exit, reason: &str, message: impl Into<String>) -> Self {
        Self { exit, reason: reason.into(), message: message.into(), hint: None, is_silent: false }
    }

    /// The command line asks for something that cannot be.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, "USAGE", message)
    }

    /// A part of the input is not what it should be.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self::new(Exit::Input, "INPUT_INVALID", message)
    }

    /// Ends with that code; everything has been said already.
    pub(crate) fn silent(exit: Exit) -> Self {
        Self { is_silent: true, ..Self::new(exit, "", "") }
    }

    /// The same with what to do.
    #[must_use]
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The same, preceded by what was being done.
    #[must_use]
    pub(crate) fn while_doing(mut self, what: impl fmt::Display) -> Self {
        self.message = format!("{what}: {}", self.message);
        self
    }

    /// Whether nothing is to be said: the reader of the output is gone, or it was said before.
    pub(crate) fn is_silent(&self) -> bool {
        self.is_silent
    }

    /// A file or directory could not be read or written.
    pub(crate) fn file(action: &str, path: impl fmt::Display, error: &io::Error) -> Self {
        let message = format!("cannot {action} {path}: {error}");
        match error.kind() {
            io::ErrorKind::NotFound => Self::new(Exit::NotFound, "FILE_NOT_FOUND", message),
            io::ErrorKind::AlreadyExists => Self::new(Exit::Conflict, "FILE_EXISTS", message),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::new(Exit::DiskFull, "DISK_FULL", message)
            }
            _ => Self::new(Exit::Failure, "IO", message),
        }
    }
}

/// Errors of the output. A closed pipe is no error of ours: whoever read it has seen enough.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Self::silent(Exit::Ok),
            _ => Self::file("write", "the output", &error),
        }
    }
}

impl From<StorageError> for Failure {
    fn from(error: StorageError) -> Self {
        use StorageError as E;
        if let E::Io { source, .. } = &error
            && source.kind() == io::ErrorKind::BrokenPipe
        {
            return Self::silent(Exit::Ok);
        }
        let message = error.to_string();
        let (exit, reason) = match error.kind() {
            ErrorKind::Invalid => match &error {
                E::RecordTooLarge { .. } => (Exit::Usage, "RECORD_TOO_LARGE"),
                E::AppendTooLarge { .. } => (Exit::Usage, "APPEND_TOO_LARGE"),
                E::RequestIdReused { .. } => (Exit::Conflict, "REQUEST_ID_REUSED"),
                E::SnapshotsRefused { .. } => (Exit::Usage, "SNAPSHOTS_REFUSED"),
                _ => (Exit::Usage, "INVALID_ARGUMENT"),
            },
            ErrorKind::NotFound => match &error {
                E::NoStore { .. } => (Exit::NotFound, "NO_STORE"),
                E::ProducerNotFound { .. } => (Exit::NotFound, "PRODUCER_NOT_FOUND"),
                _ => (Exit::NotFound, "TOPIC_NOT_FOUND"),
            },
            ErrorKind::Exists => (Exit::Conflict, "TOPIC_EXISTS"),
            ErrorKind::OutOfRange => match &error {
                E::OffsetTrimmed { .. } => (Exit::OutOfRange, "OFFSET_TRIMMED"),
                E::RevisionUnwritten { .. } => (Exit::OutOfRange, "REVISION_UNWRITTEN"),
                E::ConditionTrimmed { .. } => (Exit::OutOfRange, "CONDITION_TRIMMED"),
                _ => (Exit::OutOfRange, "OFFSET_UNWRITTEN"),
            },
            ErrorKind::Busy => match &error {
                E::AlreadyRunning { .. } => (Exit::Busy, "ALREADY_RUNNING"),
                E::TooManyTopics { .. } => (Exit::Busy, "TOO_MANY_TOPICS"),
                E::TooManyProducers { .. } => (Exit::Busy, "TOO_MANY_PRODUCERS"),
                E::ProducerFenced { .. } => (Exit::Conflict, "PRODUCER_FENCED"),
                E::TopicFenced { .. } => (Exit::Conflict, "TOPIC_FENCED"),
                E::ErasureKeyDestroyed { .. } => (Exit::Conflict, "ERASURE_KEY_DESTROYED"),
                E::TooManyErasedKeys { .. } => (Exit::Busy, "TOO_MANY_ERASED_KEYS"),
                E::MasterKeyMissing => (Exit::Usage, "MASTER_KEY_MISSING"),
                E::MasterKeyRefused { .. } => (Exit::Usage, "MASTER_KEY_REFUSED"),
                E::NotAStore { .. } => (Exit::Usage, "INVALID_ARGUMENT"),
                _ => (Exit::Busy, "LOCKED"),
            },
            ErrorKind::Retry => match &error {
                E::Overloaded { .. } => (Exit::Unavailable, "OVERLOADED"),
                E::Cancelled { .. } => (Exit::Interrupted, "CANCELLED"),
                _ => (Exit::Failure, "IO"),
            },
            ErrorKind::Conflict => match &error {
                E::SequenceGap { .. } => (Exit::Conflict, "PRODUCER_SEQUENCE_GAP"),
                _ => (Exit::Conflict, "APPEND_CONDITION_FAILED"),
            },
            ErrorKind::DiskFull => (Exit::DiskFull, "DISK_FULL"),
            ErrorKind::Damaged => match &error {
                E::Corrupt { .. } => (Exit::Damaged, "CORRUPT_RANGE"),
                E::KeysUnknown { .. } => (Exit::Damaged, "KEYS_UNKNOWN"),
                E::TopicRefused { .. } => (Exit::Damaged, "TOPIC_REFUSED"),
                _ => (Exit::Damaged, "CORRUPT_FILE"),
            },
            ErrorKind::Reopen => (Exit::StorageFailed, "STORAGE_FAILED"),
            ErrorKind::Unsupported => match &error {
                E::CodecUnavailable { .. } => (Exit::Unsupported, "CODEC_UNAVAILABLE"),
                _ => (Exit::Unsupported, "NEWER_FORMAT"),
            },
        };
        let failure = Self::new(exit, reason, message);
        match &error {
            E::TopicNotFound { name } => {
                let hint =
                    format!("`quipu topics list` shows what is there, `quipu topics create {name}` makes it");
                failure.hint(hint)
            }
            E::Locked { .. } => {
                failure.hint("to go through the server that holds it, use --server instead of --data")
            }
            E::NoStore { .. } => {
                failure.hint("`quipu publish --create` and `quipu topics create` make a store")
            }
            E::OffsetTrimmed { .. } => failure.hint("`--from earliest` starts at the first record there is"),
            E::OffsetUnwritten { .. } => {
                failure.hint("`--from latest` starts behind the last record there is")
            }
            E::RevisionUnwritten { .. } => {
                failure.hint("`quipu streams` shows the last revision of each key")
            }
            E::ConditionFailed { failed } => match failed.first() {
                Some(first) => {
                    let offset = first.check.first_conflicting_offset().map(|offset| offset.0);
                    failure.hint(crate::requirement::look_at(first.topic.as_str(), offset))
                }
                None => failure,
            },
            E::NotAStore { .. } => failure.hint("name another directory with --data"),
            _ => failure,
        }
    }
}

/// The table for `--help`.
pub(crate) fn help_table() -> String {
    let mut table = String::from("Exit codes:\n");
    for (_, code, reasons, action) in EXITS {
        table.push_str(&format!("  {code:>3}  {action}\n       {reasons}\n"));
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::path::{Path, PathBuf};

    use tonic::{Code, Status};
    use tonic_types::{ErrorDetails, StatusExt as _};

    use super::*;

    #[test]
    fn every_code_and_every_reason_stands_for_one_exit() {
        let mut reasons: Vec<_> = EXITS.iter().flat_map(|row| row.2.split(", ")).collect();
        let count = reasons.len();
        reasons.sort_unstable();
        reasons.dedup();
        assert_eq!(reasons.len(), count);
        assert!(EXITS.windows(2).all(|rows| rows[0].1 < rows[1].1));
    }

    /// Reasons as they stand in the code, each with its exit.
    fn given() -> Vec<(String, String)> {
        fn files(dir: &Path) -> Vec<PathBuf> {
            let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
            entries.flat_map(|path| if path.is_dir() { files(&path) } else { vec![path] }).collect()
        }
        let word = |text: &str| -> String {
            text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect()
        };
        let mut given = Vec::new();
        for path in files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src")) {
            let source = std::fs::read_to_string(path).unwrap();
            for behind in source.split("Exit::").skip(1) {
                let exit = word(behind);
                let reason = behind[exit.len()..]
                    .strip_prefix(',')
                    .and_then(|rest| rest.trim_start().strip_prefix('"'));
                given.extend(
                    reason.map(|reason| (exit, word(reason))).filter(|(_, reason)| !reason.is_empty()),
                );
            }
        }
        given
    }

    /// What becomes of every error that the contract has.
    fn of_servers() -> Vec<Failure> {
        let contract = include_str!("../../proto/README.md");
        let rows = contract.lines().filter_map(|line| {
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            let [_, _, code, reason, more, _] = cells[..] else { return None };
            let is_name =
                !reason.is_empty() && reason.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_');
            let code = (0..=16).map(Code::from_i32).find(|known| {
                let spelled = format!("{known:?}").to_ascii_uppercase();
                spelled == code.replace('_', "")
            });
            is_name.then(|| (code.expect("a code of gRPC"), reason, more))
        });
        // Some say UNKNOWN only in some cases.
        rows.flat_map(|(code, reason, more)| {
            let outcomes = ["NOT_APPLIED", "UNKNOWN"].into_iter();
            let outcomes = outcomes.filter(|outcome| *outcome == "NOT_APPLIED" || more.contains(outcome));
            outcomes.map(move |outcome| {
                let quoted = more.split('`').skip(1).step_by(2).map(|name| (name.to_owned(), "1".to_owned()));
                let metadata: HashMap<_, _> = quoted.chain([("outcome".into(), outcome.into())]).collect();
                let details = ErrorDetails::with_error_info(reason, "quipu", metadata);
                Failure::from(quipu_client::Error::from(Status::with_error_details(code, reason, details)))
            })
        })
        .collect()
    }

    #[test]
    fn the_table_has_every_reason_that_is_given_in_its_row_and_no_other() {
        let (given, of_servers) = (given(), of_servers());
        assert!(given.len() > 50 && of_servers.len() > 40, "{} {}", given.len(), of_servers.len());
        let row_of = |reason: &str| EXITS.iter().find(|row| row.2.split(", ").any(|known| known == reason));
        for (exit, reason) in &given {
            let row = row_of(reason).map(|row| format!("{:?}", row.0));
            assert_eq!(row.as_ref(), Some(exit), "{reason}");
        }
        for failure in &of_servers {
            let row = row_of(&failure.reason).map(|row| row.0);
            assert_eq!(row, Some(failure.exit), "{} ({})", failure.reason, failure.message);
        }
        for reason in EXITS.iter().flat_map(|row| row.2.split(", ")).filter(|reason| *reason != "-") {
            let is_given = given.iter().any(|(_, given)| given == reason)
                || of_servers.iter().any(|failure| failure.reason == reason);
            assert!(is_given, "{reason} is never given");
        }
    }

    /// It had none, and no exit code of its own.
    #[test]
    fn what_something_before_the_server_refuses_has_a_reason() {
        for (status, reason) in [
            (Status::unauthenticated("who?"), "UNAUTHENTICATED"),
            (Status::permission_denied("no"), "ACCESS_DENIED"),
            (Status::data_loss("?"), "INTERNAL"),
        ] {
            let failure = Failure::from(quipu_client::Error::from(status));
            assert_eq!((&*failure.reason, Some(failure.exit)), (reason, Exit::of_reason(reason)));
        }
    }

    #[test]
    fn the_manual_has_the_same_table() {
        let manual = include_str!("../../docs/cli.md");
        for (_, code, reasons, action) in EXITS {
            let row = format!("| {code} | {reasons} | {action} |");
            assert!(manual.contains(&row), "docs/cli.md lacks: {row}");
        }
    }
}
