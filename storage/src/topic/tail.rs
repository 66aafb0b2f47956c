//! The recent end of a topic, in memory.
//!
//! A batch enters the tail when it is in the journal, and leaves it when it is in its segment; what readers ask
//! for is in the one or in the other. In a topic in memory nothing leaves but what exceeds the bound.
//!
//! ```text
//! log start ....... segments ....... | tail: batches in memory | log end
//!                                    first_offset
//! ```

use std::collections::VecDeque;

use bytes::Bytes;

use crate::format::aligned;
use crate::format::checkpoint::ActiveSegment;
use crate::format::segment::HEADER_BYTES;
use crate::settings::{TopicSettings, millis};
use crate::types::{Offset, Timestamp};

/// A batch on its way to its segment.
#[derive(Clone, Debug)]
pub(crate) struct TailBatch {
    pub(crate) base_offset: Offset,
    pub(crate) next_offset: Offset,
    pub(crate) append_time: Timestamp,
    /// The segment it belongs to.
    pub(crate) segment: Offset,
    /// The encoded batch, verified, without padding.
    pub(crate) bytes: Bytes,
}

/// Where the next append of a topic goes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Head {
    pub(crate) next_offset: Offset,
    pub(crate) last_time: Timestamp,
    pub(crate) active: Option<ActiveSegment>,
}

impl Head {
    /// Whether a batch of `bytes` appended at `time` starts a new segment.
    pub(crate) fn rolls(&self, settings: &TopicSettings, bytes: usize, time: Timestamp) -> bool {
        let Some(active) = &self.active else { return true };
        let is_empty = active.bytes <= HEADER_BYTES as u64;
        !is_empty
            && (active.bytes + aligned(bytes) as u64 > settings.segment_bytes_max
                || time.0.saturating_sub(active.first_time.0) > millis(settings.segment_age_max))
    }

    /// Goes on behind a batch.
    pub(crate) fn advance(&mut self, bytes: usize, next_offset: Offset, time: Timestamp, rolls: bool) {
        let base_offset = self.next_offset;
        let begun = ActiveSegment { base_offset, bytes: HEADER_BYTES as u64, first_time: time };
        let active = match &mut self.active {
            Some(active) if !rolls => active,
            active => active.insert(begun),
        };
        active.bytes += aligned(bytes) as u64;
        self.next_offset = next_offset;
        self.last_time = time;
    }
}

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Tail {
    pub(crate) head: Head,
    batches: VecDeque<TailBatch>,
    bytes: u64,
}

impl Tail {
    pub(crate) fn new(head: Head) -> Self {
        Self { head, ..Self::default() }
    }

    /// The first offset that is here; the head's next one if none is.
    pub(crate) fn first_offset(&self) -> Offset {
        self.batches.front().map_or(self.head.next_offset, |batch| batch.base_offset)
    }

    /// Bytes of all batches.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes a batch in and moves the head behind it.
    pub(crate) fn push(&mut self, bytes: Bytes, next_offset: Offset, append_time: Timestamp, rolls: bool) {
        let base_offset = self.head.next_offset;
        self.head.advance(bytes.len(), next_offset, append_time, rolls);
        let segment = self.head.active.map_or(base_offset, |active| active.base_offset);
        self.bytes += bytes.len() as u64;
        self.batches.push_back(TailBatch { base_offset, next_offset, append_time, segment, bytes });
    }

    /// The batch that covers `offset`, or the first one behind it.
    pub(crate) fn find(&self, offset: Offset) -> Option<&TailBatch> {
        let number = self.batches.partition_point(|batch| batch.next_offset <= offset);
        self.batches.get(number)
    }

    /// The last batch that starts before `offset`.
    pub(crate) fn find_before(&self, offset: Offset) -> Option<&TailBatch> {
        let number = self.batches.partition_point(|batch| batch.base_offset < offset);
        self.batches.get(number.checked_sub(1)?)
    }

    /// One past the last offset here that belongs to the segment with this base offset, if any does.
    pub(crate) fn segment_end(&self, base_offset: Offset) -> Option<Offset> {
        let behind = self.batches.partition_point(|batch| batch.segment <= base_offset);
        let last = self.batches.get(behind.checked_sub(1)?)?;
        (last.segment == base_offset).then_some(last.next_offset)
    }

    /// The first batch appended at `time` or later.
    pub(crate) fn find_time(&self, time: Timestamp) -> Option<&TailBatch> {
        let number = self.batches.partition_point(|batch| batch.append_time < time);
        self.batches.get(number)
    }

    /// The first batches: at most `count`, and about `bytes`.
    pub(crate) fn front(&self, count: usize, bytes: u64) -> Vec<TailBatch> {
        let mut sum = 0;
        let within = |batch: &&TailBatch| {
            let fits = sum < bytes;
            sum += batch.bytes.len() as u64;
            fits
        };
        self.batches.iter().take(count).take_while(within).cloned().collect()
    }

    /// Drops the batches below `offset`; returns how many bytes they had.
    pub(crate) fn drop_below(&mut self, offset: Offset) -> u64 {
        let before = self.bytes;
        while self.batches.front().is_some_and(|batch| batch.next_offset <= offset) {
            if let Some(batch) = self.batches.pop_front() {
                self.bytes -= batch.bytes.len() as u64;
            }
        }
        before - self.bytes
    }

    /// Drops the batches of segments that end at or before `log_start`; returns how many bytes they had.
    pub(crate) fn drop_trimmed(&mut self, log_start: Offset) -> u64 {
        let active = self.head.active.map(|active| active.base_offset);
        let mut dropped = 0;
        while let Some(segment) = self.batches.front().map(|batch| batch.segment)
            && Some(segment) != active
            && let Some(end) = self.segment_end(segment).filter(|end| *end <= log_start)
        {
            dropped += self.drop_below(end);
        }
        dropped
    }

    /// Drops the oldest batches until at most `bytes_max` are left, but never the last one; returns the bytes
    /// dropped.
    pub(crate) fn drop_beyond(&mut self, bytes_max: u64) -> u64 {
        let before = self.bytes;
        while self.bytes > bytes_max && self.batches.len() > 1 {
            if let Some(batch) = self.batches.pop_front() {
                self.bytes -= batch.bytes.len() as u64;
            }
        }
        before - self.bytes
    }
}
