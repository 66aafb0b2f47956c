//! What a run of compaction did, or would do.

use std::ops::Range;
use std::path::PathBuf;
use std::time::Duration;

use crate::types::{Offset, Position, Timestamp, TopicName};

/// What a run of compaction did to the sealed segments of a topic that the checkpoint covers; or, if it was a dry
/// run, what it would have done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactionReport {
    /// The topic.
    pub topic: TopicName,
    /// When it began.
    pub time: Timestamp,
    /// How long it took.
    pub duration: Duration,
    /// Whether it only looked.
    pub is_dry_run: bool,
    /// Whether it came to its end. If not, the next run goes on where this one stopped.
    pub is_complete: bool,
    /// Segments that could be compacted, without those that were trimmed meanwhile.
    pub segments_before: u64,
    /// Segments in their place now.
    pub segments_after: u64,
    /// Of those before, how many were replaced.
    pub segments_replaced: u64,
    /// Bytes of the segments before.
    pub bytes_before: u64,
    /// Bytes of the segments now; estimated by a dry run.
    pub bytes_after: u64,
    /// Records in the segments before.
    pub records_before: u64,
    /// Records that went, by reason.
    pub records_removed: RecordsRemoved,
    /// Records that lost the sealed bytes of a payload that was erased, and stayed.
    pub payloads_erased: u64,
    /// Sealed bytes of erased payloads that went, also with their record.
    pub payload_bytes_erased: u64,
    /// Records that stayed, by reason.
    pub records_kept: RecordsKept,
    /// Different keys in the topic, as far as it is in segments.
    pub keys: u64,
    /// How often the topic was read to find the latest records of all keys.
    pub passes: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// What is damaged. Segments with damage were left as they are.
    pub damaged: Vec<DamagedRange>,
    /// What lies before this needs no further run until tombstones in it have become older.
    pub(crate) clean_end: Offset,
}

/// Records that went, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordsRemoved {
    /// Enough newer records of their key are there.
    pub superseded: u64,
    /// Tombstones that were the latest of their key and had become old enough.
    pub tombstone_expired: u64,
    /// They were before the log's start, in a segment that reaches beyond it.
    pub trimmed: u64,
}

impl RecordsRemoved {
    /// All of them.
    pub fn total(&self) -> u64 {
        self.superseded + self.tombstone_expired + self.trimmed
    }
}

/// Records that stayed, by reason.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecordsKept {
    /// Among the latest of their key.
    pub latest: u64,
    /// They have no key.
    pub no_key: u64,
    /// Younger than `lag_min`.
    pub too_young: u64,
    /// Tombstones that are the latest of their key and not yet older than `tombstone_age_max`.
    pub tombstone_young: u64,
    /// They would have gone, but their segment has damage or could not be replaced; or it is a tombstone, and a
    /// segment before it had to stay.
    pub damaged: u64,
    /// They would have gone, but the run ended before.
    pub not_reached: u64,
}

/// A range of offsets that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DamagedRange {
    /// The offsets.
    pub offsets: Range<Offset>,
    /// The file.
    pub path: PathBuf,
    /// Where in the file the damage begins.
    pub position: Position,
    /// What does not hold.
    pub detail: &'static str,
}

impl CompactionReport {
    pub(super) fn new(topic: TopicName, time: Timestamp, is_dry_run: bool) -> Self {
        Self {
            topic,
            time,
            duration: Duration::ZERO,
            is_dry_run,
            is_complete: false,
            segments_before: 0,
            segments_after: 0,
            segments_replaced: 0,
            bytes_before: 0,
            bytes_after: 0,
            records_before: 0,
            records_removed: RecordsRemoved::default(),
            payloads_erased: 0,
            payload_bytes_erased: 0,
            records_kept: RecordsKept::default(),
            keys: 0,
            passes: 0,
            bytes_read: 0,
            damaged: Vec::new(),
            clean_end: Offset::ZERO,
        }
    }
}
