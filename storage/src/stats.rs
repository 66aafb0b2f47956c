//! What the store counts, as plain data.
//!
//! The engine counts into atomics; [`StoreStats`] and [`TopicStats`] are copies taken at one moment, to be turned
//! into whatever metrics a program has.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::compaction::CompactionReport;
use crate::retention::RetentionReport;
use crate::types::{Offset, Position, Timestamp, TopicId, TopicName};

/// A number that only rises.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// The same where a lock keeps others from adding at the same time: cheaper by far.
    pub(crate) fn add_alone(&self, count: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + count, Ordering::Relaxed);
    }

    pub(crate) fn sub(&self, count: u64) {
        self.0.fetch_sub(count, Ordering::Relaxed);
    }

    pub(crate) fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Values are counted in buckets whose width is an eighth of their size.
const BUCKETS_PER_DOUBLING: u64 = 8;
const BUCKETS: usize = (65 - 3) * BUCKETS_PER_DOUBLING as usize;

/// Counts durations in nanoseconds.
#[derive(Debug)]
pub(crate) struct Histogram {
    buckets: Box<[AtomicU64; BUCKETS]>,
    sum: AtomicU64,
    max: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: Box::new([const { AtomicU64::new(0) }; BUCKETS]),
            sum: AtomicU64::new(0),
            max: AtomicU64::new(0),
        }
    }
}

fn bucket_of(value: u64) -> usize {
    if value < BUCKETS_PER_DOUBLING {
        return value as usize;
    }
    let doublings = u64::from(63 - value.leading_zeros()) - 3;
    (doublings * BUCKETS_PER_DOUBLING + (value >> doublings)) as usize
}

/// The largest value of a bucket.
fn bucket_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < 2 * BUCKETS_PER_DOUBLING {
        return bucket;
    }
    let doublings = bucket / BUCKETS_PER_DOUBLING - 1;
    let lead = bucket - doublings * BUCKETS_PER_DOUBLING;
    (((u128::from(lead) + 1) << doublings) - 1).min(u128::from(u64::MAX)) as u64
}

impl Histogram {
    pub(crate) fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(nanos)].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(nanos, Ordering::Relaxed);
        self.max.fetch_max(nanos, Ordering::Relaxed);
    }

    pub(crate) fn snapshot(&self) -> LatencyStats {
        let counts: Vec<u64> = self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        LatencyStats {
            count: counts.iter().sum(),
            sum: Duration::from_nanos(self.sum.load(Ordering::Relaxed)),
            max: Duration::from_nanos(self.max.load(Ordering::Relaxed)),
            counts,
        }
    }
}

/// How long something took, over all times.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LatencyStats {
    /// How often.
    pub count: u64,
    /// All durations together.
    pub sum: Duration,
    /// The longest.
    pub max: Duration,
    counts: Vec<u64>,
}

impl LatencyStats {
    /// The duration within which the given share (0 to 1) of all stayed, at most an eighth too long.
    pub fn quantile(&self, share: f64) -> Duration {
        let wanted = (share.clamp(0.0, 1.0) * self.count as f64).ceil() as u64;
        let mut seen = 0;
        for (bucket, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted.max(1) {
                return Duration::from_nanos(bucket_end(bucket)).min(self.max);
            }
        }
        self.max
    }

    /// Pairs of upper bound and count, for every bucket that has any.
    pub fn buckets(&self) -> impl Iterator<Item = (Duration, u64)> + '_ {
        self.counts
            .iter()
            .enumerate()
            .filter(|&(_, &count)| count > 0)
            .map(|(bucket, &count)| (Duration::from_nanos(bucket_end(bucket)), count))
    }
}

/// What the store counts while it runs.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) appends: Counter,
    pub(crate) appends_refused: Counter,
    pub(crate) appends_repeated: Counter,
    pub(crate) records_appended: Counter,
    pub(crate) bytes_appended: Counter,
    pub(crate) batches_read: Counter,
    pub(crate) records_read: Counter,
    pub(crate) bytes_read: Counter,
    pub(crate) damage_found: Counter,
    pub(crate) records_redacted: Counter,
    pub(crate) append_latency: Histogram,
    pub(crate) read_latency: Histogram,
    pub(crate) sync_latency: Histogram,
    pub(crate) syncs_shared: Counter,
    pub(crate) checkpoints: Counter,
    pub(crate) checkpoint_latency: Histogram,
    pub(crate) tail_bytes: Counter,
    pub(crate) segment_files_open: Counter,
    pub(crate) segments_created: Counter,
    pub(crate) segments_removed: Counter,
}

/// The state of a store at one moment. Counts begin at opening.
#[derive(Clone, Debug)]
pub struct StoreStats {
    /// Appends that were applied.
    pub appends: u64,
    /// Appends that were refused.
    pub appends_refused: u64,
    /// Appends that had been applied before, and were answered with the first answer.
    pub appends_repeated: u64,
    /// Records appended.
    pub records_appended: u64,
    /// Bytes of all appended batches, as stored.
    pub bytes_appended: u64,
    /// Batches read by cursors.
    pub batches_read: u64,
    /// Records in them.
    pub records_read: u64,
    /// Bytes of them, as stored.
    pub bytes_read: u64,
    /// How often a reader met damage.
    pub damage_found: u64,
    /// From the call of an append to its acknowledgement, for those that asked to be synced: others would spend more on
    /// the clock than on the append.
    pub append_latency: LatencyStats,
    /// How long it took until a piece of a segment, of up to 256 KiB or one batch, was in memory for a reader. It has many
    /// batches, if they are small.
    pub read_latency: LatencyStats,
    /// Duration of journal syncs.
    pub sync_latency: LatencyStats,
    /// Synced appends that shared another one's sync.
    pub syncs_shared: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
    /// Their duration.
    pub checkpoint_latency: LatencyStats,
    /// Bytes of records that wait in memory for their segments.
    pub tail_bytes: u64,
    /// Segments created.
    pub segments_created: u64,
    /// Segments removed by retention, trimming, compaction and deletion.
    pub segments_removed: u64,
    /// Records that were read without their payload: erased, or locked.
    pub records_redacted: u64,
    /// Erasure keys that were destroyed, if the store was opened with its master key.
    pub erasure_keys_destroyed: Option<u64>,
    /// Where the journal ends.
    pub journal_position: Position,
    /// Up to where the journal is synced.
    pub synced_position: Position,
    /// The last checkpoint.
    pub checkpoint_position: Position,
    /// Bytes of all journal files.
    pub journal_bytes: u64,
    /// Journal files, in use and free.
    pub journal_files: u64,
    /// Topics.
    pub topics: u64,
    /// Named producers.
    pub producers: u64,
    /// Request ids that are known.
    pub request_ids: u64,
    /// Bytes of all segments.
    pub segment_bytes: u64,
    /// Bytes still free on the disk, if it tells.
    pub disk_free_bytes: Option<u64>,
    /// Whether appends are refused because the disk is full.
    pub is_disk_full: bool,
    /// What failed the store, if it has failed.
    pub failure: Option<crate::error::Error>,
}

/// The state of a topic at one moment.
#[derive(Clone, Debug)]
pub struct TopicStats {
    /// Its number.
    pub id: TopicId,
    /// Its name.
    pub name: TopicName,
    /// The first offset that can be read.
    pub log_start_offset: Offset,
    /// The first offset not yet visible to readers.
    pub high_watermark: Offset,
    /// The next offset to be assigned.
    pub log_end_offset: Offset,
    /// Time of the last append.
    pub last_append_time: Timestamp,
    /// Segments, the active one included.
    pub segments: u64,
    /// Bytes of the segments.
    pub segment_bytes: u64,
    /// Bytes of records that wait in memory for their segment, or of all records of a topic in memory.
    pub tail_bytes: u64,
    /// Records appended since opening.
    pub records_appended: u64,
    /// Bytes of their batches, as stored.
    pub bytes_appended: u64,
    /// What the last run of retention that removed anything did.
    pub last_retention: Option<RetentionReport>,
    /// What the last run of compaction did.
    pub last_compaction: Option<CompactionReport>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_value_lies_in_its_bucket_which_is_at_most_an_eighth_wide(value: u64) {
            let bucket = bucket_of(value);
            prop_assert!(bucket < BUCKETS);
            prop_assert!(value <= bucket_end(bucket));
            prop_assert!(bucket == 0 || value > bucket_end(bucket - 1));
            prop_assert!(bucket_end(bucket) - value <= value / 8);
        }
    }

    #[test]
    fn quantiles_are_found() {
        let histogram = Histogram::default();
        (1..=1000).for_each(|micros| histogram.record(Duration::from_micros(micros)));
        let stats = histogram.snapshot();
        assert_eq!(stats.count, 1000);
        assert!((500..570).contains(&stats.quantile(0.5).as_micros()), "{:?}", stats.quantile(0.5));
        assert_eq!(stats.quantile(1.0), Duration::from_millis(1));
    }
}
