//! What can go wrong, and what to do about it.
//!
//! Each [`Error`] carries what the person on call needs; [`Error::kind`] answers "what do I do?". An error means
//! that nothing was applied, unless its kind is [`ErrorKind::Reopen`].

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::condition::FailedCondition;
use crate::types::{Offset, Position, Revision, TopicName};

/// The result of everything that can fail here.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What to do about an [`Error`]. Exhaustive on purpose: whoever maps it must decide about each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request can never succeed as it is: correct it.
    Invalid,
    /// What it names does not exist.
    NotFound,
    /// What it names exists already.
    Exists,
    /// The offset is outside what the topic holds; the error has the bounds.
    OutOfRange,
    /// Somebody else holds it, or it is in a state that forbids this: resolve that first.
    Busy,
    /// A bound was reached for now: try again a little later.
    Retry,
    /// What it was conditional on does not hold: read again, and decide anew.
    Conflict,
    /// The disk is full: free space. Reading, trimming and deleting go on.
    DiskFull,
    /// Stored bytes are damaged: restore that range from elsewhere. Everything else stays readable.
    Damaged,
    /// The disk failed the store. It takes no appends until it is reopened, and whether the append that met the
    /// failure survives is not known before that.
    Reopen,
    /// Written by a newer version, or needs a feature that this build lacks: use a build that has it.
    Unsupported,
}

/// Everything that can go wrong.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A topic name breaks a rule.
    #[error("topic name {name:?} is not allowed: {rule}")]
    InvalidTopicName {
        /// The name, cut at 64 characters.
        name: String,
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A setting is out of its bounds.
    #[error("setting {setting} is {value}, but it must be {rule}")]
    InvalidSetting {
        /// The setting's name.
        setting: &'static str,
        /// The value that was given.
        value: String,
        /// What it must be.
        rule: String,
    },
    /// A record breaks a bound or a rule.
    #[error("record {index} of the append: {what} has {actual} bytes, the limit is {limit}")]
    RecordTooLarge {
        /// Place of the record in the append.
        index: usize,
        /// Which part of it.
        what: &'static str,
        /// Its size.
        actual: usize,
        /// The bound.
        limit: usize,
    },
    /// An append breaks a rule.
    #[error("the append is not allowed: {rule}")]
    InvalidAppend {
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A filter breaks a rule.
    #[error("the filter is not allowed: {rule}")]
    InvalidFilter {
        /// The rule it breaks.
        rule: &'static str,
    },
    /// What an append was conditional on does not hold. Nothing was appended.
    #[error("the append was conditional, and {} of its conditions do not hold: {}", failed.len(), list(failed))]
    ConditionFailed {
        /// Every condition that does not hold.
        failed: Vec<FailedCondition>,
    },
    /// Whether an append's condition holds cannot be told, because records that it is about were removed.
    #[error(
        "condition {number} of the append reaches below the start of topic {topic}: it asks from offset {offset} on, \
        and the log starts at {log_start_offset}"
    )]
    ConditionTrimmed {
        /// Place of the condition in the append.
        number: usize,
        /// The topic.
        topic: TopicName,
        /// The first offset that it is about.
        offset: Offset,
        /// The first offset that can be read.
        log_start_offset: Offset,
    },
    /// A producer of a higher epoch has taken the name over. Nothing was appended now; whether an earlier try of the same
    /// append was applied, this does not say.
    #[error("producer {producer:?} was replaced: its epoch is {current}, and the append names {epoch}")]
    ProducerFenced {
        /// The producer's name.
        producer: String,
        /// The epoch that the append names.
        epoch: u64,
        /// The one that counts.
        current: u64,
    },
    /// The topic has a higher fencing token: whoever has it has taken over. Nothing was appended.
    #[error("topic {topic} was taken over: its fencing token is {current}, and the append has {token}")]
    TopicFenced {
        /// The topic.
        topic: TopicName,
        /// The token that the append has.
        token: u64,
        /// The lowest one that is taken.
        current: u64,
    },
    /// An append of a producer is not the one that comes next. Nothing was appended.
    #[error(
        "the append is number {actual} of epoch {epoch} of producer {producer:?}, where {expected} comes next; append what is \
         missing first, or begin a higher epoch with 0"
    )]
    SequenceGap {
        /// The producer's name.
        producer: String,
        /// The epoch that the append names.
        epoch: u64,
        /// The sequence that comes next.
        expected: u64,
        /// The one that the append has.
        actual: u64,
    },
    /// Another append was applied under the same sequence or request id. Nothing was appended.
    #[error(
        "{identity} was used for an append of other records or to other topics; take a new one for another append"
    )]
    RequestIdReused {
        /// What was used again.
        identity: String,
    },
    /// The store knows as many producers as it may, and none of them is temporary.
    #[error(
        "the store knows {limit} producers, which is its limit (producers_max): forget one that is not used any more"
    )]
    TooManyProducers {
        /// The bound.
        limit: usize,
    },
    /// There is no producer of that name.
    #[error("there is no producer {name:?}")]
    ProducerNotFound {
        /// The name.
        name: String,
    },
    /// An erasure key breaks a rule.
    #[error("an erasure key is not allowed: {rule}")]
    InvalidErasureKey {
        /// The rule it breaks.
        rule: &'static str,
    },
    /// A record names an erasure key that was destroyed: nothing can be sealed with it ever again. Nothing was appended.
    #[error("record {index} of the append: its erasure key {erasure_key:?} was destroyed; take another one")]
    ErasureKeyDestroyed {
        /// Place of the record in the append, among those for its topic.
        index: usize,
        /// The key's name.
        erasure_key: String,
    },
    /// As many keys were destroyed as can be.
    #[error("of the master key at {path} {limit} keys can be destroyed at most, and these would be more", path = path.display())]
    TooManyErasedKeys {
        /// The master key.
        path: PathBuf,
        /// The bound.
        limit: u64,
    },
    /// The store was opened without a master key, which sealing and erasing take.
    #[error("payloads are sealed and erased with a master key: open the store with its own")]
    MasterKeyMissing,
    /// The master key is not one that the store can be opened with.
    #[error("the master key {path} is refused: {detail}", path = path.display())]
    MasterKeyRefused {
        /// The file.
        path: PathBuf,
        /// Why, and what to do about it.
        detail: String,
    },
    /// This build can neither seal nor erase.
    #[error("this build lacks erasure; use one with the feature \"erasure\"")]
    ErasureUnavailable,
    /// An append is too large.
    #[error("the append has {actual} {what}, the limit is {limit}")]
    AppendTooLarge {
        /// What is too large: records, bytes or topics; or what the journal or a batch would hold of it, with the revisions of
        /// its keys.
        what: &'static str,
        /// How much there is.
        actual: u64,
        /// The bound.
        limit: u64,
    },
    /// The encoded records of an append are not what they should be.
    #[error("the encoded records cannot be read: {detail} at byte {position}")]
    InvalidEncoding {
        /// What is wrong.
        detail: &'static str,
        /// Where.
        position: usize,
    },
    /// No topic has that name.
    #[error("there is no topic {name}")]
    TopicNotFound {
        /// The name.
        name: TopicName,
    },
    /// A topic has that name already.
    #[error("there is a topic {name} already")]
    TopicExists {
        /// The name.
        name: TopicName,
    },
    /// The store holds as many topics as it may.
    #[error("the store holds {limit} topics, which is its limit (topics_max)")]
    TooManyTopics {
        /// The bound.
        limit: usize,
    },
    /// The offset is below the first one that is still there.
    #[error("offset {offset} of topic {topic} was removed: the log starts at {log_start_offset}")]
    OffsetTrimmed {
        /// The topic.
        topic: TopicName,
        /// The offset asked for.
        offset: Offset,
        /// The first offset that can be read.
        log_start_offset: Offset,
    },
    /// The offset lies beyond the end.
    #[error("offset {offset} of topic {topic} is not written yet: the next one is {next_offset}")]
    OffsetUnwritten {
        /// The topic.
        topic: TopicName,
        /// The offset asked for.
        offset: Offset,
        /// The next offset to be written, as far as this reader may see.
        next_offset: Offset,
    },
    /// The revision lies beyond the last one of its key.
    #[error(
        "revision {revision} of the key is not written yet: the next one of topic {topic} is {next_revision}"
    )]
    RevisionUnwritten {
        /// The topic.
        topic: TopicName,
        /// The revision asked for.
        revision: Revision,
        /// The one that the next record of the key gets.
        next_revision: Revision,
    },
    /// The topic is none of which there are snapshots.
    #[error("topic {topic} takes no snapshots: {rule}")]
    SnapshotsRefused {
        /// The topic.
        topic: TopicName,
        /// Why, and what to do about it.
        rule: &'static str,
    },
    /// The directory is held by another process or another store of this one.
    #[error("the store at {path} is in use by {holder}; close it there, or open it read-only", path = path.display())]
    Locked {
        /// The directory.
        path: PathBuf,
        /// What the holder wrote about itself: its process id and program.
        holder: String,
    },
    /// There is no store at that path.
    #[error("there is no store at {path}", path = path.display())]
    NoStore {
        /// The directory.
        path: PathBuf,
    },
    /// The directory holds files that are not a store of ours.
    #[error("{path} is not a store of quipu: {detail}", path = path.display())]
    NotAStore {
        /// The directory or file.
        path: PathBuf,
        /// What was found.
        detail: String,
    },
    /// The store was opened for reading only.
    #[error("the store is open for reading only")]
    ReadOnly,
    /// The store, topic or reader was closed.
    #[error("the store was closed")]
    Closed,
    /// The journal or the memory for recent records is full until earlier appends have reached their segments.
    #[error("the store is catching up: {what} is full ({limit} bytes); try again shortly")]
    Overloaded {
        /// What is full.
        what: &'static str,
        /// Its bound, in bytes.
        limit: u64,
    },
    /// An operation that excludes this one is running.
    #[error("{what} is running already")]
    AlreadyRunning {
        /// The operation.
        what: &'static str,
    },
    /// A long operation was cancelled by its caller.
    #[error("{what} was cancelled")]
    Cancelled {
        /// The operation.
        what: &'static str,
    },
    /// The disk has no room.
    #[error("the disk is full: {action} {path}", path = path.display())]
    DiskFull {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
    },
    /// The disk refused an operation that touched nothing acknowledged.
    #[error("cannot {action} {path}: {source}", path = path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// A write or a sync failed. The store takes no appends until it is reopened.
    #[error("the store has failed and must be reopened: cannot {action} {path}: {source}", path = path.display())]
    StorageFailed {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: Arc<io::Error>,
    },
    /// Records are damaged on the disk.
    #[error("offsets {from} to {to} (exclusive) of topic {topic} are damaged: {detail} in {path} at position {position}",
        from = offsets.start, to = offsets.end, path = path.display())]
    Corrupt {
        /// The topic.
        topic: TopicName,
        /// The offsets that cannot be trusted; what starts at its end is intact again.
        offsets: Range<Offset>,
        /// The file.
        path: PathBuf,
        /// Where in the file the damage begins.
        position: Position,
        /// What does not hold.
        detail: &'static str,
    },
    /// Which keys records have is not known: they are damaged, and so is the index that told. No last revision can be told
    /// of a key that they may have.
    #[error("offsets {from} to {to} (exclusive) of topic {topic} are damaged, and the index that knew the keys of their \
        records is gone: the last revision of a key that may be among them is not known; restore the segment, or give \
        them up by trimming the topic to offset {to}", from = offsets.start, to = offsets.end)]
    KeysUnknown {
        /// The topic.
        topic: TopicName,
        /// The offsets that cannot be read.
        offsets: Range<Offset>,
    },
    /// A file of the store, other than a range of records, is damaged.
    #[error("{path} is damaged at position {position}: {detail}", path = path.display())]
    CorruptFile {
        /// The file.
        path: PathBuf,
        /// Where.
        position: Position,
        /// What does not hold.
        detail: String,
    },
    /// A topic's files do not fit together; the topic is refused until they do, the rest of the store is not. They are
    /// looked at again each time, and what was appended before is kept.
    #[error("topic {topic} is refused: {detail} ({path})", path = path.display())]
    TopicRefused {
        /// The topic.
        topic: TopicName,
        /// The file or directory.
        path: PathBuf,
        /// What is missing or foreign, and what to do about it.
        detail: String,
    },
    /// Written by a newer version.
    #[error("{path} has format version {found}, this build reads up to {supported}; use a newer build", path = path.display())]
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version, or the number of a feature it requires.
        found: u32,
        /// The newest version known here.
        supported: u32,
    },
    /// A batch is, or the batches of a topic were to be, compressed with a codec that this build lacks.
    #[error("this build lacks the codec {codec}; use one with the feature {codec:?}")]
    CodecUnavailable {
        /// The codec, which is the name of the crate's feature.
        codec: &'static str,
    },
}

fn list(failed: &[FailedCondition]) -> String {
    failed.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Error {
    /// What to do about it.
    pub fn kind(&self) -> ErrorKind {
        use Error as E;
        match self {
            E::InvalidTopicName { .. }
            | E::InvalidSetting { .. }
            | E::RecordTooLarge { .. }
            | E::InvalidAppend { .. }
            | E::InvalidFilter { .. }
            | E::AppendTooLarge { .. }
            | E::InvalidEncoding { .. }
            | E::SnapshotsRefused { .. }
            | E::InvalidErasureKey { .. }
            | E::RequestIdReused { .. } => ErrorKind::Invalid,
            E::TopicNotFound { .. } | E::NoStore { .. } | E::ProducerNotFound { .. } => ErrorKind::NotFound,
            E::TopicExists { .. } => ErrorKind::Exists,
            E::OffsetTrimmed { .. }
            | E::OffsetUnwritten { .. }
            | E::RevisionUnwritten { .. }
            | E::ConditionTrimmed { .. } => ErrorKind::OutOfRange,
            E::ConditionFailed { .. } | E::SequenceGap { .. } => ErrorKind::Conflict,
            E::Locked { .. }
            | E::NotAStore { .. }
            | E::ReadOnly
            | E::Closed
            | E::AlreadyRunning { .. }
            | E::TooManyTopics { .. }
            | E::TooManyProducers { .. }
            | E::ProducerFenced { .. }
            | E::TopicFenced { .. }
            | E::ErasureKeyDestroyed { .. }
            | E::TooManyErasedKeys { .. }
            | E::MasterKeyMissing
            | E::MasterKeyRefused { .. } => ErrorKind::Busy,
            E::Overloaded { .. } | E::Cancelled { .. } | E::Io { .. } => ErrorKind::Retry,
            E::DiskFull { .. } => ErrorKind::DiskFull,
            E::Corrupt { .. } | E::KeysUnknown { .. } | E::CorruptFile { .. } | E::TopicRefused { .. } => {
                ErrorKind::Damaged
            }
            E::StorageFailed { .. } => ErrorKind::Reopen,
            E::NewerFormat { .. } | E::CodecUnavailable { .. } | E::ErasureUnavailable => {
                ErrorKind::Unsupported
            }
        }
    }

    /// An operation on a file failed and nothing acknowledged depends on it.
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        let path = path.into();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { action, path },
            _ => Self::Io { action, path, source: Arc::new(source) },
        }
    }

    /// An operation on a file failed and the store cannot go on.
    pub(crate) fn failed(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::StorageFailed { action, path: path.into(), source: Arc::new(source) }
    }
}
