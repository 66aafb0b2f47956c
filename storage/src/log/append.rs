//! The way of an append, and of a sync.
//!
//! 1. Encode and sum the records, in the caller's thread and outside of every lock, into memory that the thread keeps.
//! 2. Take the lock of the tail; begin the next segment if this one is full.
//! 3. Give offset and time, seal the batch.
//! 4. Copy it into the active segment. If that fails nothing was applied.
//! 5. Release the lock; wait for the sync if the caller wants it.
//!
//! A sync makes durable, in this order: the segments sealed since the last one, the directory, the active segment. So a
//! synced batch means that everything before it is synced. If there is a new segment, the identity file learns of it
//! before anybody is told.

use std::cell::RefCell;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use super::active::{Active, FILL_AHEAD_BYTES};
use super::{Log, LogInner};
use crate::disk::File;
use crate::error::{Error, Result};
use crate::format::aligned;
use crate::format::batch::{BATCH_BYTES_LIMIT, BatchBuilder, Codec};
use crate::format::payload::PayloadBatch;
use crate::format::record::Record;
use crate::format::segment::HEADER_BYTES;
use crate::settings::Durability;
use crate::store::append::Appended;
use crate::types::{Offset, Timestamp};

/// What noting the synced position may add to a batch.
const MARK_BYTES_MAX: usize = 16;
/// A thread keeps its memory for batches up to this size.
const BATCH_BYTES_KEPT: usize = 1 << 20;
/// The thread that works ahead is told whenever so many bytes more were appended.
const ADVANCE_BYTES: u64 = 1 << 20;
/// The next file is prepared when the active segment has room for no more than this many times what is filled ahead.
const NEXT_AT_FILLS: u64 = 4;
/// The thread that syncs is woken when so many sealed segments wait for it.
pub(super) const UNSYNCED_SEGMENTS_MAX: usize = 8;

thread_local! {
    static BATCH: RefCell<BatchBuilder> = const { RefCell::new(BatchBuilder::empty()) };
}

/// Everything that one append after the other goes through.
#[derive(Debug)]
pub(super) struct Tail {
    pub(super) active: Active,
    pub(super) next_offset: Offset,
    last_time: Timestamp,
    /// What the next batch says: up to there this segment, and all before it, were synced.
    mark: Option<u64>,
    /// Sealed segments that were not synced since. The files stay open: the kernel reports a failed write-back to
    /// those who had the file open.
    pub(super) unsynced: Vec<(Arc<dyn File>, PathBuf)>,
    is_dir_unsynced: bool,
    /// The thread that works ahead is told when the segment has come this far.
    advance_at: u64,
    /// Up to here an append is nothing but its batch: nobody has to be told of anything, nothing has to be noted, begun or
    /// refused. An append that goes further finds out what is to be done.
    plain_to: u64,
    appends: u64,
    records_appended: u64,
    bytes_appended: u64,
}

impl Tail {
    /// Everything in it is synced.
    pub(super) fn new(active: Active, next_offset: Offset, last_time: Timestamp) -> Self {
        Self {
            mark: Some(active.position()),
            active,
            next_offset,
            last_time,
            unsynced: Vec::new(),
            is_dir_unsynced: false,
            advance_at: 0,
            plain_to: 0,
            appends: 0,
            records_appended: 0,
            bytes_appended: 0,
        }
    }

    /// The next append looks whether it may go on.
    pub(super) fn interrupt(&mut self) {
        self.plain_to = 0;
    }

    pub(super) fn counts(&self) -> (u64, u64, u64, Timestamp) {
        (self.appends, self.records_appended, self.bytes_appended, self.last_time)
    }
}

impl Log {
    /// Appends records, all or none, and returns when they are on the disk.
    ///
    /// # Errors
    /// Everything but [`Error::StorageFailed`] means that nothing was appended.
    pub fn append(&self, records: &[Record]) -> Result<Appended> {
        self.append_with(records, Durability::Synced)
    }

    /// The same with another durability. What is appended is in the page cache at least.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    #[inline]
    pub fn append_with(&self, records: &[Record], durability: Durability) -> Result<Appended> {
        self.handle.inner.append(records, durability)
    }

    /// Appends one record.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    #[inline]
    pub fn append_record(&self, record: &Record, durability: Durability) -> Result<Appended> {
        let inner = &self.handle.inner;
        let appended = record.payload_alone().and_then(|payload| inner.append_payload(payload, durability));
        match appended {
            Some(appended) => Ok(appended),
            None => inner.append(std::slice::from_ref(record), durability),
        }
    }

    /// Appends one record that has this payload and nothing else: the least work that an append can be.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    #[inline]
    pub fn append_payload(&self, payload: &[u8], durability: Durability) -> Result<Appended> {
        let inner = &self.handle.inner;
        match inner.append_payload(payload, durability) {
            Some(appended) => Ok(appended),
            None => inner.append(&[Record::new(payload)], durability),
        }
    }

    /// Makes every earlier append durable, whatever it asked for.
    ///
    /// # Errors
    /// [`Error::StorageFailed`] if the disk cannot: reopen the log.
    pub fn sync(&self) -> Result<()> {
        let inner = &self.handle.inner;
        inner.context.check_writable()?;
        inner.sync()
    }
}

/// Where an append went.
#[derive(Clone, Copy)]
struct Place {
    first_offset: Offset,
    append_time: Timestamp,
}

impl LogInner {
    /// All five steps for the record and the moment that need least: a payload and nothing else, no sync, nothing to be
    /// done before. `None`: nothing was done.
    #[inline]
    fn append_payload(&self, payload: &[u8], durability: Durability) -> Option<Appended> {
        if durability == Durability::Synced || self.settings.codec != Codec::None {
            return None;
        }
        let mut batch = PayloadBatch::new(payload, self.seed)?;
        if batch.header().raw_bytes() as u64 > self.settings.append_bytes_max {
            return None;
        }
        let now = self.context.clock.now();
        let mut tail = self.tail();
        let tail_ = &mut *tail;
        if tail_.active.position() + batch.header().stored_bytes() as u64 > tail_.plain_to {
            return None;
        }
        let first_offset = tail_.next_offset;
        let append_time = now.max(tail_.last_time);
        let seal = |batch: &mut PayloadBatch<'_>| batch.seal(first_offset, append_time);
        if !tail_.active.write_payload(&mut batch, seal) {
            return None;
        }
        let next_offset = first_offset + 1;
        let bytes = batch.header().batch_bytes() as u64;
        if self.appended(tail_, next_offset, append_time, bytes) {
            drop(tail);
            self.written.notify();
        }
        Some(Appended {
            first_offset,
            next_offset,
            append_time,
            durability: Durability::Written,
            revisions: Vec::new(),
        })
    }

    /// What follows when a batch is in the segment. Says whether somebody waits for it.
    #[inline]
    fn appended(&self, tail: &mut Tail, next_offset: Offset, append_time: Timestamp, bytes: u64) -> bool {
        tail.appends += 1;
        tail.records_appended += next_offset - tail.next_offset;
        tail.bytes_appended += bytes;
        tail.next_offset = next_offset;
        tail.last_time = append_time;
        self.log_end.store(next_offset.0, Ordering::Release);
        // Under the lock: see `Watch::has_waiters`.
        self.written.has_waiters()
    }

    /// All five steps.
    fn append(&self, records: &[Record], durability: Durability) -> Result<Appended> {
        let begun = (durability == Durability::Synced).then(Instant::now);
        let now = self.context.clock.now();
        let is_for_sync = begun.is_some();
        let place = BATCH.with_borrow_mut(|batch| self.encode_and_write(batch, records, now, is_for_sync));
        let Place { first_offset, append_time } = place.map_err(|error| {
            self.context.counters.appends_refused.add(1);
            *error
        })?;
        let next_offset = first_offset + records.len() as u64;
        if let Some(begun) = begun {
            self.wait_synced(next_offset)?;
            self.context.counters.append_latency.record(begun.elapsed());
        }
        // What is in the segment is in the page cache.
        let durability = durability.max(Durability::Written);
        Ok(Appended { first_offset, next_offset, append_time, durability, revisions: Vec::new() })
    }

    /// Steps 1 to 4. The error is boxed for the sake of what is returned without one: it stays in registers.
    #[inline]
    fn encode_and_write(
        &self,
        batch: &mut BatchBuilder,
        records: &[Record],
        now: Timestamp,
        is_for_sync: bool,
    ) -> Result<Place, Box<Error>> {
        let too_large = |what, actual, limit| Err(Box::new(Error::AppendTooLarge { what, actual, limit }));
        if records.is_empty() {
            return Err(Box::new(Error::InvalidAppend { rule: "it needs at least one record" }));
        }
        if records.len() as u64 > self.settings.append_records_max {
            return too_large("records", records.len() as u64, self.settings.append_records_max);
        }
        for (index, record) in records.iter().enumerate() {
            if record.erasure_key.is_some() {
                return Err(Box::new(Error::InvalidAppend {
                    rule: "a bare log has no keys to seal payloads with",
                }));
            }
            record.check().map_err(|(what, actual, limit)| {
                Box::new(Error::RecordTooLarge { index, what, actual, limit })
            })?;
        }
        batch.fill(records, self.settings.codec);
        let raw_bytes = batch.header().raw_bytes() as u64;
        if raw_bytes > self.settings.append_bytes_max {
            return too_large("bytes", raw_bytes, self.settings.append_bytes_max);
        }
        if batch.len() > BATCH_BYTES_LIMIT {
            return too_large("bytes of a batch", batch.len() as u64, BATCH_BYTES_LIMIT as u64);
        }
        let place = self.write(batch, now, is_for_sync);
        batch.shrink(BATCH_BYTES_KEPT);
        place
    }

    /// Steps 2 to 4.
    #[inline]
    fn write(
        &self,
        batch: &mut BatchBuilder,
        now: Timestamp,
        is_for_sync: bool,
    ) -> Result<Place, Box<Error>> {
        let record_count = u64::from(batch.header().record_count);
        let mut tail = self.tail();
        tail.interrupt();
        self.context.check_writable()?;
        if tail.active.is_full((aligned(batch.len()) + MARK_BYTES_MAX) as u64) {
            self.roll(&mut tail, batch.len())?;
        }
        let tail_ = &mut *tail;
        if let Some(position) = tail_.mark.take() {
            batch.put_synced_position(position);
        }
        let first_offset = tail_.next_offset;
        let append_time = now.max(tail_.last_time);
        batch.seal(self.seed, first_offset, append_time);
        if let Err(error) = tail_.active.write(batch, is_for_sync) {
            return Err(Box::new(self.refuse(Error::io(
                "write segment",
                tail_.active.segment.path(),
                error,
            ))));
        }
        let bytes = batch.len() as u64;
        let has_waiters = self.appended(tail_, first_offset + record_count, append_time, bytes);
        if tail_.active.position() >= tail_.advance_at {
            self.advance(tail_);
        }
        tail_.plain_to = tail_.active.ready_to().min(tail_.advance_at);
        drop(tail);
        if has_waiters {
            self.written.notify();
        }
        Ok(Place { first_offset, append_time })
    }

    /// A write was refused. A full disk leaves everything as it was, whatever else is final.
    #[cold]
    fn refuse(&self, error: Error) -> Error {
        match error {
            Error::Io { action, path, source } => {
                self.context.fail(Error::StorageFailed { action, path, source })
            }
            other => other,
        }
    }

    /// Tells the thread that works ahead where the batches are.
    #[cold]
    fn advance(&self, tail: &mut Tail) {
        let position = tail.active.position();
        tail.advance_at = position + ADVANCE_BYTES;
        let left = self.settings.segment_bytes_max.saturating_sub(position);
        self.ahead.advance(&tail.active.fill, position, left <= NEXT_AT_FILLS * FILL_AHEAD_BYTES);
    }

    /// Begins the next segment, for a batch of `batch_bytes` at least. Until it has begun nothing has changed.
    #[cold]
    fn roll(&self, tail: &mut Tail, batch_bytes: usize) -> Result<()> {
        let data_bytes = (HEADER_BYTES + aligned(batch_bytes + MARK_BYTES_MAX)) as u64;
        // Its file is too small for this batch; a larger one takes its place, under the same name.
        let replaces = tail.active.position() == HEADER_BYTES as u64;
        let prepared = self.ahead.take(&self.context, data_bytes)?;
        let new_segment = |fresh: &_, capacity| {
            Self::new_segment(&self.context, &self.name, self.seed, fresh, capacity, false)
        };
        let limit = self.settings.segment_bytes_max;
        let active = Active::begin(&self.context, prepared, tail.next_offset, limit, replaces, new_segment)?;
        let segment = Arc::clone(&active.segment);
        let before = std::mem::replace(&mut tail.active, active);
        if replaces {
            self.update_segments(|segments| {
                segments.pop();
                segments.push(Arc::clone(&segment));
            });
        } else {
            let sealed = before.seal(self.context.store, self.seed);
            let (file, sealed, writer) = sealed.map_err(|error| self.context.fail(error))?;
            tail.unsynced.push((file, sealed.path.clone()));
            self.ahead.end(writer);
            self.update_segments(|segments| segments.push(Arc::clone(&segment)));
        }
        tail.is_dir_unsynced = true;
        // If all before it is synced, its first batch can say so.
        let is_synced = self.commit.synced() == tail.next_offset.0;
        tail.mark = is_synced.then_some(HEADER_BYTES as u64);
        self.unsynced_segments.store(tail.unsynced.len(), Ordering::Release);
        if tail.unsynced.len() >= UNSYNCED_SEGMENTS_MAX {
            self.wake.notify();
        }
        self.advance(tail);
        Ok(())
    }

    /// Makes everything appended so far durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.wait_synced(Offset(self.log_end.load(Ordering::Acquire)))
    }

    fn wait_synced(&self, target: Offset) -> Result<()> {
        if crate::planted::acknowledges_before_sync() {
            return Ok(());
        }
        let shared = self.commit.wait(target.0, || self.sync_once())?;
        if shared {
            self.context.counters.syncs_shared.add(1);
        }
        Ok(())
    }

    /// One sync, of everything appended before. Only one runs at a time.
    fn sync_once(&self) -> Result<u64> {
        self.try_sync().inspect_err(|_| self.tail().interrupt())
    }

    fn try_sync(&self) -> Result<u64> {
        let context = &*self.context;
        let begun = Instant::now();
        let (unsynced, is_dir_unsynced, file, segment, position, end) = {
            let mut tail = self.tail();
            if let Some(failure) = context.failure() {
                return Err(failure.clone());
            }
            (
                std::mem::take(&mut tail.unsynced),
                std::mem::take(&mut tail.is_dir_unsynced),
                Arc::clone(&tail.active.file),
                Arc::clone(&tail.active.segment),
                tail.active.position(),
                tail.next_offset,
            )
        };
        self.unsynced_segments.store(0, Ordering::Release);
        for (file, path) in &unsynced {
            context.sync_file(&**file, path)?;
        }
        if is_dir_unsynced {
            context.sync_dir(&context.dir)?;
        }
        context.sync_file(&*file, segment.path())?;
        if is_dir_unsynced {
            // Once for each segment: so its loss would be noticed, and opening need not look at those before it.
            self.note_synced(segment.base_offset, position)?;
        }
        {
            let mut tail = self.tail();
            if Arc::ptr_eq(&tail.active.segment, &segment) {
                tail.mark = Some(position);
                tail.interrupt();
            }
        }
        self.high_watermark.fetch_max(end.0, Ordering::AcqRel);
        self.synced.notify();
        context.counters.sync_latency.record(begun.elapsed());
        Ok(end.0)
    }
}
