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
use std::sync::Arc;

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

/// Batches in one chunk at most.
const CHUNK_BATCHES: usize = 256;
/// Bytes in one chunk, about.
const CHUNK_BYTES: u64 = 256 << 10;

/// Some batches in a row. A full chunk does not change any more, so that the flusher takes and drops many batches in
/// one step: whoever appends meanwhile waits for the lock no longer than that.
pub(crate) type Chunk = Arc<Vec<TailBatch>>;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Tail {
    pub(crate) head: Head,
    /// Full chunks, oldest first. None is empty.
    full: VecDeque<Chunk>,
    /// The chunk that grows.
    growing: Vec<TailBatch>,
    growing_bytes: u64,
    /// Batches of the oldest chunk that were dropped already.
    dropped: usize,
    bytes: u64,
}

impl Tail {
    pub(crate) fn new(head: Head) -> Self {
        Self { head, ..Self::default() }
    }

    /// The first offset that is here; the head's next one if none is.
    pub(crate) fn first_offset(&self) -> Offset {
        self.oldest().get(self.dropped).map_or(self.head.next_offset, |batch| batch.base_offset)
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
        self.growing_bytes += bytes.len() as u64;
        self.growing.push(TailBatch { base_offset, next_offset, append_time, segment, bytes });
        if self.growing.len() >= CHUNK_BATCHES || self.growing_bytes >= CHUNK_BYTES {
            self.seal_chunk();
        }
    }

    /// All batches, oldest first.
    pub(crate) fn batches(&self) -> impl Iterator<Item = &TailBatch> {
        self.full.iter().flat_map(|chunk| chunk.iter()).chain(&self.growing).skip(self.dropped)
    }

    /// The batch that covers `offset`, or the first one behind it.
    pub(crate) fn find(&self, offset: Offset) -> Option<&TailBatch> {
        self.first_where(|batch| batch.next_offset > offset)
    }

    /// The first batch appended at `time` or later.
    pub(crate) fn find_time(&self, time: Timestamp) -> Option<&TailBatch> {
        self.first_where(|batch| batch.append_time >= time)
    }

    /// The last batch that starts before `offset`.
    pub(crate) fn find_before(&self, offset: Offset) -> Option<&TailBatch> {
        self.last_where(|batch| batch.base_offset < offset)
    }

    /// One past the last offset here that belongs to the segment with this base offset, if any does.
    pub(crate) fn segment_end(&self, base_offset: Offset) -> Option<Offset> {
        let last = self.last_where(|batch| batch.segment <= base_offset)?;
        (last.segment == base_offset).then_some(last.next_offset)
    }

    /// The first chunks: whole ones, with about `bytes` in all. The first batches of the first one may have been
    /// dropped: they lie below [`first_offset`](Self::first_offset).
    pub(crate) fn front(&mut self, bytes: u64) -> Vec<Chunk> {
        if self.full.is_empty() {
            self.seal_chunk();
        }
        let mut sum = 0;
        let within = |chunk: &&Chunk| {
            let fits = sum < bytes;
            sum += chunk.iter().map(|batch| batch.bytes.len() as u64).sum::<u64>();
            fits
        };
        self.full.iter().take_while(within).cloned().collect()
    }

    /// What is on its way to the segment with this base offset begins a new one instead.
    pub(crate) fn leave_segment(&mut self, base_offset: Offset) {
        let first_offset = self.first_offset();
        let mut begun: Option<ActiveSegment> = None;
        let chunks = self.full.iter_mut().map(Arc::make_mut).chain([&mut self.growing]);
        for batch in chunks.flatten().filter(|batch| batch.base_offset >= first_offset) {
            if batch.segment == base_offset {
                batch.segment = first_offset;
                let begun = begun.get_or_insert(ActiveSegment {
                    base_offset: first_offset,
                    bytes: HEADER_BYTES as u64,
                    first_time: batch.append_time,
                });
                begun.bytes += aligned(batch.bytes.len()) as u64;
            }
        }
        if self.head.active.is_some_and(|active| active.base_offset == base_offset) {
            self.head.active = begun;
        }
    }

    /// Drops the batches below `offset`. Returns how many bytes they had, and chunks that the caller lets go of when
    /// it has released the lock.
    pub(crate) fn drop_below(&mut self, offset: Offset) -> (u64, Vec<Chunk>) {
        self.drop_while(|_, batch| batch.next_offset <= offset)
    }

    /// Drops the batches of segments that end at or before `log_start`; else as [`drop_below`](Self::drop_below).
    pub(crate) fn drop_trimmed(&mut self, log_start: Offset) -> (u64, Vec<Chunk>) {
        let active = self.head.active.map(|active| active.base_offset);
        let (mut bytes, mut gone) = (0, Vec::new());
        while let Some(segment) = self.oldest().get(self.dropped).map(|batch| batch.segment)
            && Some(segment) != active
            && let Some(end) = self.segment_end(segment).filter(|end| *end <= log_start)
        {
            let dropped = self.drop_below(end);
            bytes += dropped.0;
            gone.extend(dropped.1);
        }
        (bytes, gone)
    }

    /// Drops the oldest batches below `limit` until at most `bytes_max` are left, but never the last one; else as
    /// [`drop_below`](Self::drop_below).
    pub(crate) fn drop_beyond(&mut self, bytes_max: u64, limit: Offset) -> (u64, Vec<Chunk>) {
        let end = self.head.next_offset;
        let may_go = |batch: &TailBatch| batch.next_offset < end && batch.next_offset <= limit;
        self.drop_while(|bytes, batch| bytes > bytes_max && may_go(batch))
    }

    fn drop_while(&mut self, goes: impl Fn(u64, &TailBatch) -> bool) -> (u64, Vec<Chunk>) {
        let before = self.bytes;
        let mut gone = Vec::new();
        loop {
            let mut bytes = self.bytes;
            let chunk = self.oldest();
            let mut dropped = self.dropped;
            while let Some(batch) = chunk.get(dropped)
                && goes(bytes, batch)
            {
                bytes -= batch.bytes.len() as u64;
                dropped += 1;
            }
            let is_whole = dropped > 0 && dropped == chunk.len();
            self.bytes = bytes;
            self.dropped = dropped;
            if !is_whole {
                return (before - self.bytes, gone);
            }
            if self.full.is_empty() {
                self.seal_chunk();
            }
            gone.extend(self.full.pop_front());
            self.dropped = 0;
        }
    }

    fn oldest(&self) -> &[TailBatch] {
        self.full.front().map_or(&self.growing, |chunk| chunk)
    }

    fn seal_chunk(&mut self) {
        if !self.growing.is_empty() {
            let capacity = self.growing.len();
            self.full.push_back(Arc::new(std::mem::replace(&mut self.growing, Vec::with_capacity(capacity))));
            self.growing_bytes = 0;
        }
    }

    /// The first batch for which `holds`, which is false up to some batch and true from there on.
    fn first_where(&self, holds: impl Fn(&TailBatch) -> bool) -> Option<&TailBatch> {
        let chunks = self.full.partition_point(|chunk| !holds(&chunk[chunk.len() - 1]));
        let chunk = self.full.get(chunks).map_or(&self.growing[..], |chunk| chunk);
        let skipped = if chunks == 0 { self.dropped } else { 0 };
        chunk.get(chunk.partition_point(|batch| !holds(batch)).max(skipped))
    }

    /// The last batch for which `holds`, which is true up to some batch and false from there on.
    fn last_where(&self, holds: impl Fn(&TailBatch) -> bool) -> Option<&TailBatch> {
        let last_in = |batches: &[TailBatch]| batches.partition_point(&holds).checked_sub(1);
        if let Some(number) = last_in(&self.growing) {
            return self.present(&self.growing, number, self.full.is_empty());
        }
        let chunks = self.full.partition_point(|chunk| holds(&chunk[0]));
        let chunk = &self.full[chunks.checked_sub(1)?];
        self.present(chunk, last_in(chunk)?, chunks == 1)
    }

    /// The batch with this number unless it was dropped.
    fn present<'a>(&self, chunk: &'a [TailBatch], number: usize, is_oldest: bool) -> Option<&'a TailBatch> {
        (!is_oldest || number >= self.dropped).then(|| &chunk[number])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tail(batches: u64) -> Tail {
        let mut tail = Tail::default();
        for n in 0..batches {
            tail.push(Bytes::from(vec![0; 10]), Offset(2 * n + 2), Timestamp(n), false);
        }
        tail
    }

    #[test]
    fn each_batch_is_found_by_its_offsets_and_its_time() {
        let tail = tail(1000);
        for n in 0..1000 {
            for offset in [2 * n, 2 * n + 1] {
                assert_eq!(tail.find(Offset(offset)).unwrap().base_offset, Offset(2 * n));
                assert_eq!(tail.find_before(Offset(offset + 1)).unwrap().base_offset, Offset(2 * n));
            }
            assert_eq!(tail.find_time(Timestamp(n)).unwrap().base_offset, Offset(2 * n));
        }
        assert!(tail.find(Offset(2000)).is_none());
        assert!(tail.find_time(Timestamp(1000)).is_none());
        assert!(tail.find_before(Offset(0)).is_none());
    }

    #[test]
    fn what_is_dropped_is_not_found_and_its_bytes_are_counted() {
        let mut tail = tail(1000);
        let mut left = 10_000;
        for offset in [0, 1, 2, 511, 512, 513, 1001, 1999, 2000] {
            let (bytes, _) = tail.drop_below(Offset(offset));
            left -= bytes;
            assert_eq!(tail.bytes(), left);
            let first = offset / 2 * 2;
            assert_eq!(tail.first_offset(), Offset(first));
            assert_eq!(left, (2000 - first) / 2 * 10);
            assert!(tail.find_before(Offset(first)).is_none());
            assert_eq!(
                tail.find(Offset(0)).map(|batch| batch.base_offset.0),
                (first < 2000).then_some(first)
            );
        }
    }

    #[test]
    fn what_leaves_its_segment_begins_a_new_one_and_the_segments_behind_it_stay() {
        for rolls_at in [5, 400, 2000] {
            let mut tail = Tail::default();
            for n in 0..1000 {
                tail.push(Bytes::from(vec![0; 10]), Offset(2 * n + 2), Timestamp(n), n == rolls_at);
            }
            tail.drop_below(Offset(4));
            tail.leave_segment(Offset(0));
            let moved = rolls_at.min(1000) - 2;
            assert_eq!(tail.segment_end(Offset(4)), Some(Offset(2 * (moved + 2))));
            let active = tail.head.active.unwrap();
            let expected = if rolls_at < 1000 {
                (Offset(2 * rolls_at), 1000 - rolls_at, Timestamp(rolls_at))
            } else {
                (Offset(4), moved, Timestamp(2))
            };
            assert_eq!(active.base_offset, expected.0);
            assert_eq!(active.bytes, HEADER_BYTES as u64 + 16 * expected.1);
            assert_eq!(active.first_time, expected.2);
        }
        let mut empty = Tail::default();
        empty.push(Bytes::from(vec![0; 10]), Offset(2), Timestamp(0), true);
        empty.drop_below(Offset(2));
        empty.leave_segment(Offset(0));
        assert!(empty.head.active.is_none());
    }

    #[test]
    fn a_bound_on_bytes_never_drops_the_last_batch() {
        let mut tail = tail(1000);
        assert_eq!(tail.drop_beyond(95, Offset::MAX).0, 9910);
        assert_eq!(tail.drop_beyond(0, Offset::MAX).0, 80);
        assert_eq!(tail.first_offset(), Offset(1998));
    }

    #[test]
    fn the_front_is_whole_chunks_of_about_the_bytes_asked_for() {
        let mut tail = tail(1000);
        let chunks = tail.front(3000);
        assert_eq!(chunks.iter().map(|chunk| chunk.len()).sum::<usize>(), 512);
        assert_eq!(chunks[0][0].base_offset, Offset(0));
        tail.drop_below(Offset(1024 + 512));
        assert_eq!(tail.front(u64::MAX).iter().map(|chunk| chunk.len()).sum::<usize>(), 232);
    }
}
