//! Taking over what a checkpoint says, in a store that another process writes.
//!
//! Here a tail is not flushed: it is dropped when a checkpoint says that its records are in segments. Segments come
//! before the tail goes, so that a reader finds every record in the one or in the other. One thread at a time calls
//! these, and nothing else changes the topic.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::TopicInner;
use super::tail::{Head, Tail};
use crate::format::checkpoint::{SealedSegment, TopicState};
use crate::format::segment::HEADER_BYTES;
use crate::segment::Segment;
use crate::types::Offset;

impl TopicInner {
    /// The checkpoint holds what this topic held a while ago: what is in segments by then leaves the tail.
    /// `replaced` are segments that compaction has made since.
    pub(crate) fn adopt<'a>(&self, state: &TopicState, replaced: impl Iterator<Item = &'a SealedSegment>) {
        self.take_segments(state);
        for sealed in replaced {
            let new = self.new_segment(sealed, true);
            self.replace_segments(&new, sealed.next_offset);
        }
        self.forget_trimmed(self.log_start());
        let (dropped, _) = self.tail().drop_below(state.next_offset);
        self.context.counters.tail_bytes.sub(dropped);
        self.terms.recent.forget();
    }

    /// Goes on where the checkpoint says, whatever was known before.
    pub(crate) fn restart_at(&self, state: &TopicState) {
        self.settings.store(Arc::new(state.settings.clone()));
        self.fencing_token.store(state.fencing_token, Ordering::Relaxed);
        // Before they go from the tail: who looks for them in vain finds out that they are not there now.
        self.log_end.fetch_min(state.next_offset.0, Ordering::AcqRel);
        self.high_watermark.fetch_min(state.next_offset.0, Ordering::AcqRel);
        self.take_segments(state);
        let head = Head { next_offset: state.next_offset, last_time: state.last_time, active: state.active };
        let before = std::mem::replace(&mut *self.tail(), Tail::new(head));
        self.context.counters.tail_bytes.sub(before.bytes());
        self.terms.recent.forget();
        self.log_end.store(state.next_offset.0, Ordering::Release);
        self.high_watermark.store(state.next_offset.0, Ordering::Release);
        self.watch.notify();
    }

    fn take_segments(&self, state: &TopicState) {
        let old = self.segments();
        let mut segments: Vec<Arc<Segment>> =
            state.sealed.iter().map(|sealed| self.same_or_new(&old, sealed, true)).collect();
        if let Some(active) = state.active.filter(|active| active.bytes > HEADER_BYTES as u64) {
            let unsealed = SealedSegment {
                base_offset: active.base_offset,
                rewrites: 0,
                next_offset: state.next_offset,
                bytes: active.bytes,
                record_count: 0,
                first_time: active.first_time,
                last_time: state.last_time,
            };
            segments.push(self.same_or_new(&old, &unsealed, false));
        }
        // The list may be a bit younger than the rest of the checkpoint: what was trimmed meanwhile is not in it.
        let first = segments.first().map_or(state.next_offset, |segment| segment.base_offset);
        let log_start = if self.is_in_memory() { Offset::ZERO } else { first };
        self.log_start.fetch_max(log_start.max(state.log_start_offset).0, Ordering::AcqRel);
        self.update_segments(|list| list.clone_from(&segments));
    }

    /// A segment as `sealed` says: the one that is known, with its map and index, if nothing about it has changed.
    fn same_or_new(&self, old: &[Arc<Segment>], sealed: &SealedSegment, is_sealed: bool) -> Arc<Segment> {
        let known = old.binary_search_by_key(&sealed.base_offset, |segment| segment.base_offset);
        let known = known.ok().map(|number| &old[number]).filter(|segment| match segment.sealed() {
            Some(known) => is_sealed && known == *sealed,
            None => {
                !is_sealed
                    && segment.next_offset() == sealed.next_offset
                    && segment.file_bytes() == sealed.bytes
            }
        });
        known.map_or_else(|| self.new_segment(sealed, is_sealed), Arc::clone)
    }
}
