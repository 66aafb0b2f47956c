//! A topic: a named, totally ordered log of the store.
//!
//! ```text
//! log_start_offset <= high_watermark <= log_end_offset
//! ```
//!
//! | Module | What it does |
//! |---|---|
//! | [`tail`] | the recent end, in memory |
//! | [`flush`] | from the tail into segments |
//! | [`files`] | whether the files are those that the store knows of |
//! | [`strand`] | where records go whose segment cannot take them |
//! | [`adopt`] | taking over what a checkpoint of another process says |

pub(crate) mod adopt;
pub(crate) mod files;
pub(crate) mod flush;
pub(crate) mod strand;
pub(crate) mod tail;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use arc_swap::ArcSwap;
use bytes::Bytes;

use crate::compaction::CompactionReport;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::format::batch;
use crate::format::checkpoint::{SealedSegment, TopicState};
use crate::format::segment::HEADER_BYTES;
use crate::retention::RetentionReport;
use crate::segment::{Segment, file_name};
use crate::settings::{Storage, TopicSettings};
use crate::stats::{Counter, TopicStats};
use crate::terms::TopicTerms;
use crate::terms::batch_terms::BatchTerms;
use crate::terms::recent::Recent;
use crate::terms::revisions::Places;
use crate::types::{Offset, Revision, Timestamp, TopicId, TopicName, Uid};
use crate::watch::Watch;
use flush::Flush;
use tail::{Head, Tail};

/// A topic as the store holds it. See the [module](self).
#[derive(Debug)]
pub(crate) struct TopicInner {
    pub(crate) id: TopicId,
    pub(crate) uid: Uid,
    pub(crate) name: TopicName,
    /// What the header CRCs of its batches begin with.
    pub(crate) seed: u32,
    pub(crate) dir: PathBuf,
    pub(crate) context: Arc<Context>,
    pub(crate) settings: ArcSwap<TopicSettings>,
    pub(crate) memory_bytes_max: Option<u64>,
    log_start: AtomicU64,
    high_watermark: AtomicU64,
    log_end: AtomicU64,
    tail: Mutex<Tail>,
    /// In order of offsets; the last one may be active. Replaced as a whole.
    segments: ArcSwap<Vec<Arc<Segment>>>,
    pub(crate) flush: Mutex<Flush>,
    are_files_checked: AtomicBool,
    pub(crate) watch: Watch,
    pub(crate) is_deleted: AtomicBool,
    /// Whether the next sync has to move this topic's high watermark. Guarded by the store's writer lock.
    pub(crate) is_unsynced: AtomicBool,
    /// Offsets of a topic in memory that the journal has set aside. Guarded by the store's writer lock.
    pub(crate) reserved: AtomicU64,
    /// Where the frame ends that has set them aside, or 0 when it is known to be synced. Guarded in the same way.
    pub(crate) reserved_at: AtomicU64,
    /// The lowest fencing token that is taken. Guarded by the store's writer lock.
    pub(crate) fencing_token: AtomicU64,
    pub(crate) records_appended: Counter,
    pub(crate) bytes_appended: Counter,
    pub(crate) last_retention: Mutex<Option<RetentionReport>>,
    pub(crate) last_compaction: Mutex<Option<CompactionReport>>,
    pub(crate) is_compacting: AtomicBool,
    /// Sealed segments that end here or before are in the checkpoint on disk: recovery never writes them again.
    checkpointed_end: AtomicU64,
    pub(crate) terms: TopicTerms,
}

impl TopicInner {
    /// A topic as the checkpoint describes it, or a new one. Touches no file.
    pub(crate) fn new(context: &Arc<Context>, state: &TopicState) -> Self {
        let dir = context.topic_dir(state.id);
        let seed = batch::seed(state.uid);
        let capacity = map_capacity(context, &state.settings);
        let open = |sealed: &SealedSegment, is_sealed| {
            let path = dir.join(file_name(sealed.base_offset, sealed.rewrites));
            Arc::new(Segment::new(path, state.name.clone(), seed, capacity, sealed, is_sealed))
        };
        // One that is trimmed may have been removed since, without a further word in the journal.
        let is_trimmed = |sealed: &&SealedSegment| sealed.next_offset <= state.log_start_offset;
        let mut segments: Vec<_> = state
            .sealed
            .iter()
            .filter(|sealed| !is_trimmed(sealed))
            .map(|sealed| open(sealed, true))
            .collect();
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
            segments.push(open(&unsealed, false));
        }
        let head = Head { next_offset: state.next_offset, last_time: state.last_time, active: state.active };
        let topic = Self {
            id: state.id,
            uid: state.uid,
            name: state.name.clone(),
            seed,
            dir,
            context: Arc::clone(context),
            settings: ArcSwap::from_pointee(state.settings.clone()),
            memory_bytes_max: match state.settings.storage {
                Storage::Memory { bytes_max } => Some(bytes_max),
                Storage::Disk => None,
            },
            log_start: AtomicU64::new(state.log_start_offset.0),
            high_watermark: AtomicU64::new(state.next_offset.0),
            log_end: AtomicU64::new(state.next_offset.0),
            tail: Mutex::new(Tail::new(head)),
            segments: ArcSwap::from_pointee(segments),
            flush: Mutex::new(Flush::new(state)),
            are_files_checked: AtomicBool::new(false),
            watch: Watch::default(),
            is_deleted: AtomicBool::new(false),
            is_unsynced: AtomicBool::new(false),
            reserved: AtomicU64::new(state.next_offset.0),
            reserved_at: AtomicU64::new(0),
            fencing_token: AtomicU64::new(state.fencing_token),
            records_appended: Counter::default(),
            bytes_appended: Counter::default(),
            last_retention: Mutex::new(None),
            last_compaction: Mutex::new(None),
            is_compacting: AtomicBool::new(false),
            checkpointed_end: AtomicU64::new(0),
            terms: TopicTerms::new(match state.settings.storage {
                Storage::Memory { .. } => Recent::known_from(state.next_offset),
                Storage::Disk => Recent::default(),
            }),
        };
        topic.set_checkpointed(state);
        topic
    }

    /// The checkpoint on disk has this state.
    pub(crate) fn set_checkpointed(&self, state: &TopicState) {
        let end = state.sealed.last().map_or(Offset::ZERO, |sealed| sealed.next_offset);
        self.checkpointed_end.fetch_max(end.0, Ordering::AcqRel);
    }

    /// Up to where segments are sealed and in the checkpoint on disk.
    pub(crate) fn checkpointed_end(&self) -> Offset {
        Offset(self.checkpointed_end.load(Ordering::Acquire))
    }

    /// Whether its records are in memory only. Fixed at creation.
    pub(crate) fn is_in_memory(&self) -> bool {
        self.memory_bytes_max.is_some()
    }

    pub(crate) fn log_start(&self) -> Offset {
        Offset(self.log_start.load(Ordering::Acquire))
    }

    pub(crate) fn high_watermark(&self) -> Offset {
        Offset(self.high_watermark.load(Ordering::Acquire))
    }

    pub(crate) fn log_end(&self) -> Offset {
        Offset(self.log_end.load(Ordering::Acquire))
    }

    pub(crate) fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().expect("no panic under this lock")
    }

    pub(crate) fn segments(&self) -> Arc<Vec<Arc<Segment>>> {
        self.segments.load_full()
    }

    pub(crate) fn head(&self) -> Head {
        self.tail().head
    }

    /// Takes in a batch that the journal holds now. Under the store's writer lock.
    pub(crate) fn push(&self, bytes: Bytes, next_offset: Offset, append_time: Timestamp, rolls: bool) {
        let recent = &self.terms.recent;
        let (base_offset, segment) = self.take_in(bytes.clone(), next_offset, append_time, rolls);
        recent.push_batch(self, segment.unwrap_or(base_offset), &bytes);
        self.log_end.store(next_offset.0, Ordering::Release);
    }

    /// The same for those who know the terms of its records, and the revisions of those that have keys.
    pub(crate) fn push_with(
        &self,
        bytes: Bytes,
        next_offset: Offset,
        append_time: Timestamp,
        rolls: bool,
        (terms, revisions, places): (&BatchTerms, &[Revision], &mut Places),
    ) {
        let (base_offset, segment) = self.take_in(bytes, next_offset, append_time, rolls);
        if !terms.is_empty() {
            let recent = &self.terms.recent;
            let segment = segment.unwrap_or_else(|| recent.segment_in_memory(base_offset));
            recent.push(segment, base_offset, terms, (revisions, places));
        }
        // Readers look for terms up to here.
        self.log_end.store(next_offset.0, Ordering::Release);
        if self.is_in_memory() {
            self.terms.recent.drop_below(self.log_start());
        }
    }

    /// Answers where the batch begins, and its segment if it gets into one.
    fn take_in(
        &self,
        bytes: Bytes,
        next_offset: Offset,
        append_time: Timestamp,
        rolls: bool,
    ) -> (Offset, Option<Offset>) {
        let length = bytes.len() as u64;
        let (base_offset, segment) = {
            let mut tail = self.tail();
            let base_offset = tail.head.next_offset;
            tail.push(bytes, next_offset, append_time, rolls);
            if self.is_in_memory() {
                self.bound_memory(&mut tail);
            } else {
                self.context.counters.tail_bytes.add(length);
            }
            (base_offset, tail.head.active.map(|active| active.base_offset).filter(|_| !self.is_in_memory()))
        };
        if rolls {
            self.terms.recent.roll();
        }
        self.bytes_appended.add_alone(length);
        (base_offset, segment)
    }

    /// A topic in memory has a bound of its own, and waits for no segment: what is beyond it goes, the oldest first. Not
    /// what is shown to nobody yet, or the log would start behind what can be read; see
    /// [`is_out_of_memory`](Self::is_out_of_memory).
    fn bound_memory(&self, tail: &mut Tail) {
        let Some(bytes_max) = self.memory_bytes_max else { return };
        drop(tail.drop_beyond(bytes_max, self.high_watermark()));
        self.log_start.fetch_max(tail.first_offset().0, Ordering::AcqRel);
    }

    /// Whether a topic in memory holds as much as it may of what is shown to nobody yet. Under the store's writer lock.
    pub(crate) fn is_out_of_memory(&self) -> bool {
        let is_unsettled = self.reserved_at.load(Ordering::Relaxed) != 0;
        is_unsettled && self.memory_bytes_max.is_some_and(|bytes_max| self.tail().bytes() > bytes_max)
    }

    /// Everything that a topic in memory holds is shown from now on. Under the store's writer lock.
    pub(crate) fn show_all(&self) {
        self.move_high_watermark(self.log_end());
        self.bound_memory(&mut self.tail());
    }

    /// Forgets what waits in memory: the topic was deleted. Nobody flushes it meanwhile.
    pub(crate) fn drop_tail(&self) {
        let (dropped, _) = self.tail().drop_below(Offset::MAX);
        if !self.is_in_memory() {
            self.context.counters.tail_bytes.sub(dropped);
        }
    }

    /// What is below `offset` is synced: readers may see it.
    pub(crate) fn move_high_watermark(&self, offset: Offset) {
        self.high_watermark.fetch_max(offset.0, Ordering::AcqRel);
        self.watch.notify();
    }

    /// The log starts at `offset` from now on. Files go later. Under the store's writer lock.
    pub(crate) fn move_log_start(&self, offset: Offset) {
        self.log_start.fetch_max(offset.0, Ordering::AcqRel);
        {
            let mut tail = self.tail();
            if self.is_in_memory() {
                drop(tail.drop_below(offset));
            }
            if offset == tail.head.next_offset {
                // Nothing is left in the active segment: the next batch starts a new one, and this one can go.
                tail.head.active = None;
            }
        }
        self.watch.notify();
    }

    /// Goes on at `offset`: a topic in memory after a restart.
    pub(crate) fn skip_to(&self, offset: Offset) {
        self.tail().head.next_offset = offset;
        self.log_start.store(offset.0, Ordering::Release);
        self.log_end.store(offset.0, Ordering::Release);
        self.high_watermark.store(offset.0, Ordering::Release);
        self.reserved.store(offset.0, Ordering::Release);
    }

    /// Changes the list of segments. Callers hold the flush lock, so that changes do not overtake each other.
    pub(crate) fn update_segments(&self, change: impl Fn(&mut Vec<Arc<Segment>>)) {
        self.segments.rcu(|segments| {
            let mut segments = Vec::clone(segments);
            change(&mut segments);
            segments
        });
    }

    /// Takes segments that hold nothing but trimmed records out of the list; returns them. What is still on its way to
    /// a segment counts: if any of it is not trimmed, the segment stays, and else it need not get there any more.
    /// `log_start` is where a durable trim says that the log starts.
    pub(crate) fn forget_trimmed(&self, log_start: Offset) -> Vec<Arc<Segment>> {
        let trimmed: Vec<_> = {
            let mut tail = self.tail();
            let active = tail.head.active.map(|active| active.base_offset);
            let is_trimmed = |segment: &Arc<Segment>| {
                let end = tail.segment_end(segment.base_offset).unwrap_or(segment.next_offset());
                end <= log_start && Some(segment.base_offset) != active
            };
            let trimmed = self.segments().iter().filter(|segment| is_trimmed(segment)).cloned().collect();
            if !self.is_in_memory() {
                let (dropped, _) = tail.drop_trimmed(log_start);
                self.context.counters.tail_bytes.sub(dropped);
            }
            trimmed
        };
        if !trimmed.is_empty() {
            let is_trimmed = |segment: &Arc<Segment>| trimmed.iter().any(|gone| Arc::ptr_eq(gone, segment));
            self.update_segments(|segments| segments.retain(|segment| !is_trimmed(segment)));
        }
        trimmed
    }

    /// Puts `new` into the list in place of all segments from its base offset up to `next_offset`; returns those.
    pub(crate) fn replace_segments(&self, new: &Arc<Segment>, next_offset: Offset) -> Vec<Arc<Segment>> {
        let is_replaced = |segment: &Arc<Segment>| {
            segment.base_offset >= new.base_offset && segment.base_offset < next_offset
        };
        let replaced: Vec<_> =
            self.segments().iter().filter(|segment| is_replaced(segment)).cloned().collect();
        self.update_segments(|segments| {
            segments.retain(|segment| !is_replaced(segment));
            let number = segments.partition_point(|segment| segment.base_offset < new.base_offset);
            segments.insert(number, Arc::clone(new));
        });
        replaced
    }

    /// A segment of this topic, not in the list yet.
    pub(crate) fn new_segment(&self, sealed: &SealedSegment, is_sealed: bool) -> Arc<Segment> {
        let path = self.dir.join(file_name(sealed.base_offset, sealed.rewrites));
        let capacity = map_capacity(&self.context, &self.settings.load());
        Arc::new(Segment::new(path, self.name.clone(), self.seed, capacity, sealed, is_sealed))
    }

    /// An error if the topic was deleted.
    pub(crate) fn check_alive(&self) -> Result<()> {
        if self.is_deleted.load(Ordering::Acquire) {
            return Err(Error::TopicNotFound { name: self.name.clone() });
        }
        Ok(())
    }

    /// The sealed segments, for the checkpoint: those before the active one of `head`.
    pub(crate) fn state(&self, head: &Head, log_start: Offset, fencing_token: u64) -> TopicState {
        let limit = head.active.map_or(head.next_offset, |active| active.base_offset);
        let segments = self.segments();
        // A topic in memory is empty after a restart, and goes on behind every offset it may have given.
        let reserved = self.is_in_memory().then(|| Offset(self.reserved.load(Ordering::Relaxed)));
        TopicState {
            id: self.id,
            uid: self.uid,
            name: self.name.clone(),
            settings: TopicSettings::clone(&self.settings.load()),
            log_start_offset: reserved.unwrap_or(log_start),
            next_offset: reserved.unwrap_or(head.next_offset),
            last_time: head.last_time,
            active: head.active.filter(|_| reserved.is_none()),
            sealed: segments
                .iter()
                .filter(|segment| segment.base_offset < limit)
                .filter_map(|s| s.sealed())
                .collect(),
            fencing_token,
        }
    }

    pub(crate) fn stats(&self) -> TopicStats {
        let segments = self.segments();
        let tail = self.tail();
        TopicStats {
            id: self.id,
            name: self.name.clone(),
            log_start_offset: self.log_start(),
            high_watermark: self.high_watermark(),
            log_end_offset: self.log_end(),
            last_append_time: tail.head.last_time,
            segments: segments.len() as u64,
            segment_bytes: segments.iter().map(|segment| segment.file_bytes()).sum(),
            tail_bytes: tail.bytes(),
            records_appended: self.records_appended.value(),
            bytes_appended: self.bytes_appended.value(),
            last_retention: self.last_retention.lock().expect("no panic under this lock").clone(),
            last_compaction: self.last_compaction.lock().expect("no panic under this lock").clone(),
        }
    }
}

/// How far segments are mapped. A larger batch than a segment may hold gets a segment of its own.
fn map_capacity(context: &Context, settings: &TopicSettings) -> u64 {
    settings.segment_bytes_max.max(context.settings.append_bytes_max * 2) + (1 << 16)
}
