//! Reading a log: cursors over batches, forwards and backwards, and iterators over records.
//!
//! The same promises as those of a topic's [`Cursor`](crate::Cursor); simpler, because all records are in segments, the
//! offsets are dense, and no segment is ever replaced by another.

use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use super::{Log, LogInner};
use crate::cursor::{Counted, ReadBatch, Start, StoredRecord, Visibility, behind};
use crate::error::{Error, Result};
use crate::format::batch::Batch;
use crate::segment::{Found, Segment, SegmentReader};
use crate::types::{Offset, Timestamp};
use crate::watch::Watch;

/// Reads the batches of a log, with the promises of a topic's [`Cursor`](crate::Cursor).
#[derive(Debug)]
pub struct LogCursor {
    log: Log,
    next: Offset,
    visibility: Visibility,
    /// Where the next batch lies, if that is known.
    place: Option<(Arc<Segment>, u64)>,
    reader: SegmentReader,
    waker: Option<u64>,
    counted: Counted,
}

impl LogCursor {
    pub(super) fn new(log: &Log, start: Start, visibility: Visibility) -> Result<Self> {
        let mut cursor = Self {
            log: log.clone(),
            next: Offset::ZERO,
            visibility,
            place: None,
            reader: SegmentReader::new(),
            waker: None,
            counted: Counted::default(),
        };
        cursor.next = cursor.resolve(start)?;
        Ok(cursor)
    }

    /// The offset of the record that comes next.
    pub fn next_offset(&self) -> Offset {
        self.next
    }

    /// One past the last offset that this cursor may see now.
    pub fn visible_end(&self) -> Offset {
        self.inner().visible_end(self.visibility)
    }

    /// Goes on at `offset`.
    pub fn seek(&mut self, offset: Offset) {
        self.next = offset;
        self.place = None;
    }

    /// The next batch, or `None` if there is none yet.
    ///
    /// # Errors
    /// [`Error::OffsetTrimmed`] if the next record was removed; [`Error::Corrupt`] if it is damaged. The cursor stays
    /// where it is.
    pub fn next_batch(&mut self) -> Result<Option<ReadBatch>> {
        let inner = Arc::clone(&self.log.handle.inner);
        loop {
            inner.check_start(self.next)?;
            if self.next >= self.visible_end() {
                self.counted.report(&inner.context);
                return Ok(None);
            }
            let place = match self.place.take() {
                Some((segment, position)) if self.next < segment.next_offset() => Ok((segment, position)),
                _ => self.locate(&inner),
            };
            let found = place.and_then(|(segment, position)| {
                Ok((self.reader.read(&segment, &inner.context, position, self.next)?, segment))
            });
            match found {
                Ok((Found::Batch(batch, behind), segment)) => {
                    self.counted.count(&batch, &inner.context);
                    let from = self.next;
                    self.next = batch.next_offset();
                    self.place = Some((segment, behind));
                    return Ok(Some(ReadBatch::new(batch, from, inner.context.store)));
                }
                // A segment without its footer ends before its last records: they are lost.
                Ok((Found::End, segment)) => return Err(segment.lost(self.next)),
                // It was trimmed meanwhile: the next round says so.
                Err(_) if self.next < inner.log_start() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The segment with the next offset, and where the batch starts that has it.
    fn locate(&mut self, inner: &LogInner) -> Result<(Arc<Segment>, u64)> {
        let segment = inner.segment_of(self.next);
        let place = segment.seek_offset(&inner.context, self.next)?;
        let (position, _) = self.reader.hop(&segment, &inner.context, place, self.next)?;
        Ok((segment, position))
    }

    /// Blocks until there is a next record, or the time is up; says whether there is one. `None`: for ever.
    ///
    /// # Errors
    /// [`Error::Closed`] when the log is closed; [`Error::StorageFailed`] when it has failed: what can be read still is,
    /// and nothing comes behind it.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        self.watch().wait_until(deadline, || self.is_ready());
        self.readiness()
    }

    /// The same without blocking: the task is woken when it is worth asking again.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn poll_ready(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<()>> {
        let is_ready = self.is_ready() || {
            self.waker = Some(self.watch().register(self.waker, task.waker()));
            self.is_ready()
        };
        if is_ready { Poll::Ready(self.readiness().map(drop)) } else { Poll::Pending }
    }

    fn inner(&self) -> &LogInner {
        &self.log.handle.inner
    }

    fn watch(&self) -> &Watch {
        match self.visibility {
            Visibility::Synced => &self.inner().synced,
            Visibility::Written => &self.inner().written,
        }
    }

    fn is_ready(&self) -> bool {
        let inner = self.inner();
        if self.visibility == Visibility::Written {
            // An append looks for waiters under this lock, and nowhere else: see `Watch::has_waiters`.
            drop(inner.tail());
        }
        self.next < self.visible_end()
            || self.next < inner.log_start()
            || inner.context.is_closed()
            || inner.context.failure().is_some()
    }

    fn readiness(&self) -> Result<bool> {
        if self.next < self.visible_end() || self.next < self.inner().log_start() {
            return Ok(true);
        }
        // In this order: a log that failed and was closed between the two looks has failed.
        let is_closed = self.inner().context.is_closed();
        if let Some(failure) = self.inner().context.failure() {
            return Err(failure.clone());
        }
        if is_closed { Err(Error::Closed) } else { Ok(false) }
    }

    fn resolve(&mut self, start: Start) -> Result<Offset> {
        let inner = Arc::clone(&self.log.handle.inner);
        let (first, end) = (inner.log_start(), self.visible_end());
        let at = |offset: Offset| {
            inner.check_start(offset)?;
            if offset > end {
                return Err(Error::OffsetUnwritten { topic: inner.name.clone(), offset, next_offset: end });
            }
            Ok(offset)
        };
        match start {
            Start::Earliest => Ok(first),
            Start::Latest => Ok(end),
            Start::Offset(offset) => at(offset),
            Start::AfterOffset(offset) => at(offset.saturating_add(1)),
            Start::Time(time) => {
                let found = self.find_time(&inner, time)?;
                // It may have been trimmed meanwhile.
                let first = inner.log_start();
                Ok(found.clamp(first, end.max(first)))
            }
            Start::Last(count) => Ok(end.saturating_sub(count).max(first)),
        }
    }

    /// The first offset appended at `time` or later.
    fn find_time(&mut self, inner: &LogInner, time: Timestamp) -> Result<Offset> {
        for segment in inner.segments.load().iter() {
            if segment.sealed().is_some_and(|sealed| sealed.last_time < time) {
                continue;
            }
            match self.find_time_in(inner, segment, time) {
                Ok(Some(offset)) => return Ok(offset),
                Ok(None) => {}
                // It was trimmed meanwhile, and its file is gone.
                Err(_) if segment.next_offset() <= inner.log_start() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(self.visible_end())
    }

    fn find_time_in(
        &mut self,
        inner: &LogInner,
        segment: &Arc<Segment>,
        time: Timestamp,
    ) -> Result<Option<Offset>> {
        let (mut position, mut expected) = segment.seek_time(&inner.context, time)?;
        while let Found::Batch(batch, behind) =
            self.reader.read(segment, &inner.context, position, expected)?
        {
            if batch.append_time() >= time {
                return Ok(Some(batch.base_offset()));
            }
            position = behind;
            expected = batch.next_offset();
        }
        Ok(None)
    }
}

impl Drop for LogCursor {
    fn drop(&mut self) {
        self.counted.report(&self.log.handle.inner.context);
        if let Some(id) = self.waker {
            self.watch().forget(id);
        }
    }
}

impl LogInner {
    fn check_start(&self, offset: Offset) -> Result<()> {
        let log_start_offset = self.log_start();
        if offset < log_start_offset {
            return Err(Error::OffsetTrimmed { topic: self.name.clone(), offset, log_start_offset });
        }
        Ok(())
    }

    /// The segment that has `offset`, or the first one if that was trimmed meanwhile.
    fn segment_of(&self, offset: Offset) -> Arc<Segment> {
        let segments = self.segments.load();
        let number = segments.partition_point(|segment| segment.base_offset <= offset);
        Arc::clone(&segments[number.saturating_sub(1)])
    }
}

/// Reads a log from its end to its beginning.
#[derive(Debug)]
pub struct LogBackwards {
    log: Log,
    /// What comes next lies below this offset.
    before: Offset,
    reader: SegmentReader,
}

impl LogBackwards {
    pub(super) fn new(log: &Log, before: Offset, visibility: Visibility) -> Self {
        let before = before.min(log.handle.inner.visible_end(visibility));
        Self { log: log.clone(), before, reader: SegmentReader::new() }
    }

    /// Goes on below `offset`.
    pub fn seek(&mut self, offset: Offset) {
        self.before = offset.min(self.before);
    }

    /// The batch before, or `None` at the beginning. Of the batch only the records below the offset asked for
    /// count; the last ones may lie behind it.
    ///
    /// # Errors
    /// [`Error::Corrupt`].
    pub fn previous_batch(&mut self) -> Result<Option<ReadBatch>> {
        let inner = Arc::clone(&self.log.handle.inner);
        loop {
            let from = inner.log_start();
            if self.before <= from {
                return Ok(None);
            }
            match self.last_below(&inner, self.before.saturating_sub(1)) {
                Ok(batch) => {
                    self.before = batch.base_offset();
                    return Ok(Some(ReadBatch::new(batch, from, inner.context.store)));
                }
                Err(_) if self.before <= inner.log_start() => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The batch with `offset`.
    fn last_below(&mut self, inner: &LogInner, offset: Offset) -> Result<Batch> {
        let segment = inner.segment_of(offset);
        let place = segment.seek_offset(&inner.context, offset)?;
        let (position, expected) = self.reader.hop(&segment, &inner.context, place, offset)?;
        match self.reader.read(&segment, &inner.context, position, expected)? {
            Found::Batch(batch, _) => Ok(batch),
            Found::End => Err(segment.lost(offset)),
        }
    }
}

/// Iterates over records; made by [`Log::read`] and [`Log::follow`].
///
/// After an error about a range of offsets, which are damaged or were removed, the next call goes on behind the range: so
/// whoever asks again has been told. Every other error is the last item.
#[derive(Debug)]
pub struct LogRecords {
    cursor: LogCursor,
    ready: std::vec::IntoIter<Result<StoredRecord>>,
    follows: bool,
    has_ended: bool,
}

impl LogRecords {
    pub(super) fn new(cursor: LogCursor, follows: bool) -> Self {
        Self { cursor, ready: Vec::new().into_iter(), follows, has_ended: false }
    }
}

impl Iterator for LogRecords {
    type Item = Result<StoredRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.next() {
                return Some(record);
            }
            if self.has_ended {
                return None;
            }
            match self.cursor.next_batch() {
                Ok(Some(batch)) => self.ready = batch.owned().into_iter(),
                Ok(None) if !self.follows => return None,
                Ok(None) => match self.cursor.wait(None) {
                    Ok(_) => {}
                    Err(Error::Closed) => return None,
                    Err(error) => {
                        self.follows = false;
                        return Some(Err(error));
                    }
                },
                Err(error) => {
                    match behind(&error) {
                        Some(behind) => self.cursor.seek(behind.max(self.cursor.next_offset() + 1)),
                        None => self.has_ended = true,
                    }
                    return Some(Err(error));
                }
            }
        }
    }
}

/// Iterates over records from the last to the first; made by [`Log::read_backwards`].
///
/// After an error about a range of damaged offsets the next call goes on below the range. Every other error is the last
/// item.
#[derive(Debug)]
pub struct LogRecordsBackwards {
    batches: LogBackwards,
    ready: Vec<Result<StoredRecord>>,
    has_ended: bool,
}

impl LogRecordsBackwards {
    pub(super) fn new(batches: LogBackwards) -> Self {
        Self { batches, ready: Vec::new(), has_ended: false }
    }
}

impl Iterator for LogRecordsBackwards {
    type Item = Result<StoredRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.pop() {
                return Some(record);
            }
            if self.has_ended {
                return None;
            }
            let before = self.batches.before;
            match self.batches.previous_batch() {
                Ok(Some(batch)) => {
                    self.ready = batch.owned();
                    self.ready
                        .retain(|record| record.as_ref().map_or(true, |record| record.offset() < before));
                }
                Ok(None) => return None,
                Err(error) => {
                    match &error {
                        Error::Corrupt { offsets, .. } => {
                            self.batches.seek(offsets.start.min(before.saturating_sub(1)));
                        }
                        _ => self.has_ended = true,
                    }
                    return Some(Err(error));
                }
            }
        }
    }
}

/// One record by its offset.
pub(super) fn get(log: &Log, offset: Offset) -> Result<StoredRecord> {
    let mut cursor = LogCursor::new(log, Start::Offset(offset), Visibility::Synced)?;
    cursor.reader = SegmentReader::for_points();
    let next_offset = cursor.visible_end();
    let unwritten = || Error::OffsetUnwritten { topic: log.handle.inner.name.clone(), offset, next_offset };
    let batch = cursor.next_batch()?.ok_or_else(unwritten)?;
    batch.record(offset)?.ok_or_else(unwritten)
}
