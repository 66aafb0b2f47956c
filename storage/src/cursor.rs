//! Reading a topic: where to start, a cursor over batches, and iterators over records.
//!
//! A cursor reads segments until it has caught up with the tail, takes recent batches from there, and waits for more
//! without polling. It holds no lock while its user works with what it returned, and what it returned stays valid
//! for as long as it is held.
//!
//! What a cursor promises: offsets rise, none is skipped without a word. Where records were trimmed it answers
//! [`Error::OffsetTrimmed`], where they are damaged [`Error::Corrupt`], each with the bounds; [`Cursor::seek`] goes on
//! behind. Offsets that compaction took out are simply not there.

use std::fmt;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;

use crate::context::Context;
use crate::erasure::seal;
use crate::error::{Error, Result};
use crate::format::batch::{Batch, BatchHeader, BodyProblem, Codec};
use crate::format::record::{RecordView, Redaction};
use crate::segment::{Found, Segment, SegmentReader};
use crate::store::visible_end;
use crate::terms::lookup::Parts;
use crate::topic::TopicInner;
use crate::types::{Offset, Position, Revision, Timestamp, Uid};

/// Keeps a store open, and looks for what another process has done to it.
pub(crate) trait Owner: fmt::Debug + Send + Sync {
    /// Changes when the store's files turn out to have changed behind the reader's back.
    fn version(&self) -> u64 {
        0
    }

    /// Looks for such changes now.
    fn refresh(&self) -> Result<()> {
        Ok(())
    }

    /// What keeps the end of what is there from being known.
    fn damage(&self) -> Option<Error> {
        None
    }
}

/// What is said of offsets that were in the topic and are neither in its tail nor in a segment.
const NOWHERE: &str = "no segment holds them";

/// How often a reader looks again that has met files which another process has just removed.
const LOOKS_MAX: u32 = 8;

/// What a cursor reads, and what keeps it open.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    pub(crate) inner: Arc<TopicInner>,
    pub(crate) owner: Arc<dyn Owner>,
}

impl Source {
    /// Whether it is worth trying again what ended in `error`, at a time when the owner had this `version`.
    pub(crate) fn has_moved_on(&self, looks: &mut u32, version: u64, error: &Error) -> Result<bool> {
        *looks += 1;
        let may_be_over = match error {
            Error::Io { .. } | Error::TopicRefused { .. } => true,
            // The topic may just be set to what a checkpoint says.
            Error::Corrupt { detail, .. } => *detail == NOWHERE,
            _ => false,
        };
        if *looks > LOOKS_MAX || !may_be_over {
            return Ok(false);
        }
        self.owner.refresh()?;
        Ok(self.owner.version() != version)
    }

    /// Looks at what knows of the terms; again, if another process has changed it meanwhile.
    pub(crate) fn with_parts<T>(&self, mut look: impl FnMut(&Parts) -> Result<T>) -> Result<T> {
        let mut looks = 0;
        loop {
            let version = self.owner.version();
            match self.inner.with_parts(&mut look) {
                Err(error) if self.has_moved_on(&mut looks, version, &error)? => {}
                outcome => return outcome,
            }
        }
    }

    /// What keeps it from being known whether there is more from `next` on, behind what is seen.
    fn damage(&self, next: Offset) -> Option<Error> {
        Some(match self.owner.damage()? {
            Error::CorruptFile { path, position, detail } => {
                let detail = format!("{detail}; what topic {} has from offset {next} on", self.inner.name);
                Error::CorruptFile { path, position, detail: format!("{detail} cannot be read") }
            }
            other => other,
        })
    }
}

/// Where to start reading.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// At the first record there is.
    Earliest,
    /// Behind the last record there is.
    Latest,
    /// At this offset.
    Offset(Offset),
    /// Behind this offset.
    AfterOffset(Offset),
    /// At the first record appended at this time or later.
    Time(Timestamp),
    /// At the last so many records.
    Last(u64),
}

impl From<Offset> for Start {
    fn from(offset: Offset) -> Self {
        Self::Offset(offset)
    }
}

/// Which records a reader sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Visibility {
    /// Those that survive a power cut. The default: nothing that was seen can vanish.
    #[default]
    Synced,
    /// Also those that are not synced yet: a power cut may take back what was seen, and give its offset to another
    /// record.
    Written,
}

/// A batch as a cursor returns it: intact, and perhaps entered in its middle.
#[derive(Clone, Debug)]
pub struct ReadBatch {
    batch: Batch,
    from: Offset,
    topic: Uid,
}

impl ReadBatch {
    pub(crate) fn new(batch: Batch, from: Offset, topic: Uid) -> Self {
        Self { batch, from, topic }
    }

    /// The batch, with records before [`from`](Self::from) perhaps.
    pub fn batch(&self) -> &Batch {
        &self.batch
    }

    /// The first offset that was asked for.
    pub fn from(&self) -> Offset {
        self.from
    }

    /// The records from there on, borrowed: the fastest way to look at them.
    pub fn records(&self) -> impl Iterator<Item = Result<(Offset, RecordView<'_>)>> + '_ {
        let from = self.from;
        self.batch.records().filter_map(move |next| match next {
            Ok((offset, _)) if offset < from => None,
            Ok(record) => Some(Ok(record)),
            Err(invalid) => Some(Err(unreadable(invalid))),
        })
    }

    /// The record at `offset`, if the batch has it. Decodes no other, but for those before it in a batch with revisions.
    pub(crate) fn record(&self, offset: Offset) -> Result<Option<StoredRecord>> {
        self.record_with(offset, None)
    }

    /// The same for those who know its revision: they decode no other in any case.
    pub(crate) fn record_with(
        &self,
        offset: Offset,
        known: Option<Revision>,
    ) -> Result<Option<StoredRecord>> {
        let mut revisions = self.batch.revisions();
        let has_revisions = known.is_none() && revisions.clone().next().is_some();
        let mut records = self.batch.records();
        while let Some(next) = records.next_encoded() {
            let (found, bytes) = next.map_err(unreadable)?;
            if found > offset {
                break;
            }
            // Those before it count only where there are revisions to give out.
            let mut revision = known;
            if has_revisions || found == offset {
                let view = RecordView::decode(bytes).map_err(unreadable)?;
                if known.is_none() {
                    revision = view.key.and_then(|_| revisions.next());
                }
            }
            if found == offset {
                return Ok(Some(StoredRecord {
                    offset,
                    append_time: self.batch.append_time(),
                    revision,
                    topic: self.topic,
                    bytes: self.batch.body().slice_ref(bytes),
                }));
            }
        }
        Ok(None)
    }

    /// The records from there on, each with its own hold on the batch's memory.
    pub fn owned(&self) -> Vec<Result<StoredRecord>> {
        let body = self.batch.body();
        let mut revisions = self.batch.revisions();
        let stored = |next| match next {
            Ok((offset, view)) => {
                let view: RecordView<'_> = view;
                let revision = view.key.and_then(|_| revisions.next());
                (offset >= self.from).then(|| {
                    Ok(StoredRecord {
                        offset,
                        append_time: self.batch.append_time(),
                        revision,
                        topic: self.topic,
                        bytes: body.slice_ref(view.as_bytes()),
                    })
                })
            }
            Err(invalid) => Some(Err(unreadable(invalid))),
        };
        self.batch.records().filter_map(stored).collect()
    }
}

/// A batch whose checksums hold was written by us, after a check. So this cannot happen unless the engine has a bug.
fn unreadable(invalid: crate::format::Invalid) -> Error {
    Error::InvalidEncoding { detail: invalid.detail, position: invalid.position }
}

/// A record of a topic. Holds the memory that it lies in; nothing is copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredRecord {
    offset: Offset,
    append_time: Timestamp,
    revision: Option<Revision>,
    topic: Uid,
    bytes: Bytes,
}

impl StoredRecord {
    /// As readers get it, if its batch is [as it is stored](Cursor::next_stored_batch).
    pub(crate) fn opened(self, topic: &TopicInner) -> Result<Self> {
        let bytes = seal::open_record(topic, self.offset, self.bytes)?;
        Ok(Self { bytes, ..self })
    }

    /// Its number in the topic.
    pub fn offset(&self) -> Offset {
        self.offset
    }

    /// When it was appended.
    pub fn append_time(&self) -> Timestamp {
        self.append_time
    }

    /// Its place among the records of its key, if it has one. Of a record from before there were revisions only reading its
    /// stream tells.
    pub fn revision(&self) -> Option<Revision> {
        self.revision
    }

    /// All its fields. Decodes them: keep the view to look at several.
    pub fn view(&self) -> RecordView<'_> {
        RecordView::decode(&self.bytes).expect("it was decoded before it was handed out")
    }

    /// The content, or `None` for a tombstone and for what is [redacted](Self::redacted).
    pub fn payload(&self) -> Option<&[u8]> {
        self.view().payload
    }

    /// The content, with its own hold on the memory.
    pub fn payload_bytes(&self) -> Option<Bytes> {
        self.view().payload.map(|payload| self.bytes.slice_ref(payload))
    }

    /// Why it has no payload although it had one.
    pub fn redacted(&self) -> Option<Redaction> {
        self.view().redacted
    }

    /// The key.
    pub fn key(&self) -> Option<&[u8]> {
        self.view().key
    }

    /// The encoded record.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The id that the record was given, or one derived from topic, time and offset: a UUID of version 7 that no
    /// other record has and that stays the same.
    pub fn id(&self) -> [u8; 16] {
        self.view().id.unwrap_or_else(|| derived_id(self.topic, self.append_time, self.offset))
    }
}

/// ```text
/// 48 bits: time in ms | 4: version 7 | 12: of the topic's uid | 2: variant | 62: offset xor the topic's uid
/// ```
fn derived_id(topic: Uid, time: Timestamp, offset: Offset) -> [u8; 16] {
    let mut id = [0; 16];
    id[..6].copy_from_slice(&time.0.to_be_bytes()[2..]);
    id[6] = 0x70 | topic.0[0] & 0x0f;
    id[7] = topic.0[1];
    let salt = u64::from_be_bytes(topic.0[8..].try_into().expect("eight bytes"));
    let low = (salt ^ offset.0) & (u64::MAX >> 2) | 1 << 63;
    id[8..].copy_from_slice(&low.to_be_bytes());
    id
}

/// Reads the batches of a topic.
///
/// Offsets rise, none is skipped without a word: where records were trimmed it answers [`Error::OffsetTrimmed`], where
/// they are damaged [`Error::Corrupt`], each with the bounds; [`seek`](Self::seek) goes on behind. What it returned
/// stays valid for as long as it is held.
#[derive(Debug)]
pub struct Cursor {
    topic: Source,
    next: Offset,
    visibility: Visibility,
    place: Option<Place>,
    reader: SegmentReader,
    waker: Option<u64>,
    counted: Counted,
}

/// What a cursor has read and not reported yet: the shared counters would be the slowest part of reading a batch.
#[derive(Debug, Default)]
pub(crate) struct Counted {
    batches: u64,
    records: u64,
    bytes: u64,
}

/// Batches between two reports.
const COUNTED_AT_ONCE: u64 = 64;

impl Counted {
    pub(crate) fn count(&mut self, batch: &Batch, context: &Context) {
        self.batches += 1;
        self.records += u64::from(batch.header().record_count);
        self.bytes += batch.as_bytes().len() as u64;
        if self.batches >= COUNTED_AT_ONCE {
            self.report(context);
        }
    }

    pub(crate) fn report(&mut self, context: &Context) {
        let Self { batches, records, bytes } = std::mem::take(self);
        if batches > 0 {
            let counters = &context.counters;
            counters.batches_read.add(batches);
            counters.records_read.add(records);
            counters.bytes_read.add(bytes);
        }
    }
}

/// Where the next batch lies, if that is known.
#[derive(Debug)]
struct Place {
    segment: Arc<Segment>,
    position: u64,
}

impl Cursor {
    pub(crate) fn new(topic: Source, start: Start, visibility: Visibility) -> Result<Self> {
        let mut cursor = Self {
            topic,
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
        visible_end(&self.topic.inner, self.visibility)
    }

    /// For single records here and there.
    pub(crate) fn for_points(mut self) -> Self {
        self.reader = SegmentReader::for_points();
        self
    }

    pub(crate) fn topic(&self) -> &Arc<TopicInner> {
        &self.topic.inner
    }

    pub(crate) fn source(&self) -> &Source {
        &self.topic
    }

    /// What keeps it from being known whether there are more records, if the cursor has got to the end of those that it
    /// sees: the journal of a store that is open for reading only may be damaged there.
    pub fn damage(&self) -> Option<Error> {
        // In this order: what is before the damage is seen before it is told.
        let damage = self.topic.damage(self.next)?;
        (self.next >= self.visible_end()).then_some(damage)
    }

    /// Goes on at `offset`.
    pub fn seek(&mut self, offset: Offset) {
        self.next = offset;
        self.place = None;
    }

    /// The next batch, or `None` if there is none yet.
    ///
    /// # Errors
    /// [`Error::OffsetTrimmed`] if the next record was removed; [`Error::Corrupt`] if it is damaged;
    /// [`Error::CorruptFile`] if the journal is damaged where it comes, which happens only in a store that is open for
    /// reading only. The cursor stays where it is.
    pub fn next_batch(&mut self) -> Result<Option<ReadBatch>> {
        self.next_batch_with(seal::open_batch)
    }

    /// The next batch as it is stored: for those who want one record of it, and [open](StoredRecord::opened) that one, or look
    /// at no payload.
    pub(crate) fn next_stored_batch(&mut self) -> Result<Option<ReadBatch>> {
        self.next_batch_with(|_, batch| Ok(batch))
    }

    fn next_batch_with(
        &mut self,
        open: impl Fn(&TopicInner, Batch) -> Result<Batch>,
    ) -> Result<Option<ReadBatch>> {
        let topic = Arc::clone(&self.topic.inner);
        let mut looks = 0;
        loop {
            let version = self.topic.owner.version();
            // What a deleted topic had in memory is gone, and its files go.
            topic.check_alive()?;
            let log_start_offset = topic.log_start();
            if self.next < log_start_offset {
                return Err(Error::OffsetTrimmed {
                    topic: topic.name.clone(),
                    offset: self.next,
                    log_start_offset,
                });
            }
            if self.next >= self.visible_end() {
                return self.rest();
            }
            let found = match self.step(&topic) {
                Err(error) if self.topic.has_moved_on(&mut looks, version, &error)? => None,
                outcome => outcome.or_else(|error| topic.check_alive().and(Err(error)))?,
            };
            if let Some(batch) = found {
                let batch = open(&topic, batch).inspect_err(|_| self.place = None)?;
                return Ok(Some(self.advance(&topic, batch)));
            }
        }
    }

    /// What there is at the end: nothing, or damage.
    pub(crate) fn rest(&mut self) -> Result<Option<ReadBatch>> {
        self.counted.report(&self.topic.inner.context);
        self.place = None;
        self.reader.release();
        self.damage().map_or(Ok(None), Err)
    }

    /// The next batch if it is in memory as it is: without a look at the disk, and without decompressing or opening what is
    /// sealed, so that it may be called where nothing may block. `None` says nothing about whether there is a next batch.
    ///
    /// # Errors
    /// As [`next_batch`](Self::next_batch).
    pub fn next_batch_in_memory(&mut self) -> Result<Option<ReadBatch>> {
        let topic = Arc::clone(&self.topic.inner);
        topic.check_alive()?;
        if self.next < topic.log_start() || self.next >= self.visible_end() {
            return Ok(None);
        }
        let found = topic.tail().find(self.next).cloned();
        let Some(stored) = found.filter(|batch| batch.base_offset <= self.next) else { return Ok(None) };
        let header =
            BatchHeader::decode(&stored.bytes, topic.seed).expect("the tail holds intact batches only");
        if header.codec != Codec::None || header.has_sealed {
            return Ok(None);
        }
        self.place = None;
        match Batch::trusted(header, stored.bytes) {
            Ok(batch) => Ok(Some(self.advance(&topic, batch))),
            Err(BodyProblem::CodecUnavailable(codec)) => Err(Error::CodecUnavailable { codec: codec.name() }),
            Err(BodyProblem::Invalid(invalid)) => Err(unreadable(invalid)),
        }
    }

    /// Goes on behind `batch` and hands it out.
    fn advance(&mut self, topic: &TopicInner, batch: Batch) -> ReadBatch {
        self.counted.count(&batch, &topic.context);
        let from = std::mem::replace(&mut self.next, batch.next_offset());
        ReadBatch { batch, from, topic: topic.uid }
    }

    /// Looks once where the next batch should be. `None`: look again, from the top.
    fn step(&mut self, topic: &TopicInner) -> Result<Option<Batch>> {
        if let Some(place) = &self.place
            && self.next < place.segment.next_offset()
        {
            let Place { segment, position } = place;
            return match self.reader.read(segment, &topic.context, *position, self.next) {
                Ok(Found::Batch(batch, next_position)) => {
                    self.place = Some(Place { segment: Arc::clone(segment), position: next_position });
                    Ok(Some(batch))
                }
                Ok(Found::End) => {
                    // Compaction took the last records of the segment out.
                    self.next = segment.next_offset();
                    self.place = None;
                    Ok(None)
                }
                Err(Error::Io { .. }) if !is_listed(topic, segment) => {
                    self.place = None;
                    Ok(None)
                }
                Err(error) => {
                    self.place = None;
                    Err(error)
                }
            };
        }
        let found = topic.tail().find(self.next).cloned();
        let in_tail = found.filter(|batch| batch.base_offset <= self.next);
        if let Some(batch) = in_tail {
            self.place = None;
            let header =
                BatchHeader::decode(&batch.bytes, topic.seed).expect("the tail holds intact batches only");
            return match Batch::trusted(header, batch.bytes) {
                Ok(batch) => Ok(Some(batch)),
                Err(BodyProblem::CodecUnavailable(codec)) => {
                    Err(Error::CodecUnavailable { codec: codec.name() })
                }
                Err(BodyProblem::Invalid(invalid)) => Err(unreadable(invalid)),
            };
        }
        self.place = self.locate(topic)?;
        Ok(None)
    }

    /// The place of the batch with the next offset, which has left the tail.
    fn locate(&mut self, topic: &TopicInner) -> Result<Option<Place>> {
        topic.check_files()?;
        let segments = topic.segments();
        let number = segments.partition_point(|segment| segment.base_offset <= self.next);
        let Some(segment) = number.checked_sub(1).map(|number| &segments[number]) else {
            return self.nowhere(topic);
        };
        if self.next >= segment.next_offset() {
            return match segments.get(number) {
                // A gap between segments can only be one that compaction left.
                Some(behind) if topic.tail().first_offset() > self.next => {
                    self.next = behind.base_offset;
                    Ok(None)
                }
                _ => self.nowhere(topic),
            };
        }
        let place = segment
            .seek_offset(&topic.context, self.next)
            .and_then(|place| self.reader.hop(segment, &topic.context, place, self.next));
        match place {
            Ok((position, _)) => Ok(Some(Place { segment: Arc::clone(segment), position })),
            Err(Error::Io { .. }) if !is_listed(topic, segment) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The next offset was not in the tail, and then it was in no segment. So it was removed meanwhile, or lost.
    fn nowhere(&self, topic: &TopicInner) -> Result<Option<Place>> {
        if self.next < topic.log_start() || topic.check_alive().is_err() {
            return Ok(None);
        }
        let end = topic.tail().first_offset().max(self.next + 1);
        Err(lost(topic, self.next..end))
    }

    /// Blocks until there is a next record, or the time is up; says whether there is one. `None`: for ever.
    ///
    /// # Errors
    /// [`Error::Closed`] when the store is closed, [`Error::TopicNotFound`] when the topic is deleted, and
    /// [`Error::StorageFailed`] when the store has failed: what can be read still is, and nothing comes behind it.
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        let topic = &self.topic.inner;
        let deadline = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
        topic.watch.wait_until(deadline, || self.is_ready());
        self.readiness()
    }

    /// The same without blocking: the task is woken when it is worth asking again.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn poll_ready(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<()>> {
        let is_ready = self.is_ready() || {
            self.waker = Some(self.topic.inner.watch.register(self.waker, task.waker()));
            self.is_ready()
        };
        if is_ready { Poll::Ready(self.readiness().map(drop)) } else { Poll::Pending }
    }

    fn is_ready(&self) -> bool {
        let topic = &self.topic.inner;
        self.next < self.visible_end()
            || self.next < topic.log_start()
            || topic.context.is_closed()
            || topic.context.failure().is_some()
            || topic.check_alive().is_err()
            || self.topic.owner.damage().is_some()
    }

    fn readiness(&self) -> Result<bool> {
        let topic = &self.topic.inner;
        if self.next < self.visible_end() || self.next < topic.log_start() {
            return Ok(true);
        }
        // In this order: a store that failed and was closed between the two looks has failed.
        let is_closed = topic.context.is_closed();
        topic.check_alive()?;
        if let Some(failure) = topic.context.failure() {
            return Err(failure.clone());
        }
        if let Some(damage) = self.damage() {
            return Err(damage);
        }
        if is_closed {
            return Err(Error::Closed);
        }
        Ok(false)
    }

    fn resolve(&mut self, start: Start) -> Result<Offset> {
        let topic = Arc::clone(&self.topic.inner);
        topic.check_alive()?;
        let (first, end) = (topic.log_start(), self.visible_end());
        let at = |offset: Offset| {
            let name = || topic.name.clone();
            if offset < first {
                Err(Error::OffsetTrimmed { topic: name(), offset, log_start_offset: first })
            } else if offset > end {
                let unwritten = Error::OffsetUnwritten { topic: name(), offset, next_offset: end };
                Err(self.topic.damage(end).unwrap_or(unwritten))
            } else {
                Ok(offset)
            }
        };
        match start {
            Start::Earliest => Ok(first),
            Start::Latest => Ok(end),
            Start::Offset(offset) => at(offset),
            Start::AfterOffset(offset) => at(offset.saturating_add(1)),
            Start::Time(time) => {
                let mut looks = 0;
                let found = loop {
                    let version = self.topic.owner.version();
                    match self.find_time(time) {
                        Err(error) if self.topic.has_moved_on(&mut looks, version, &error)? => {}
                        outcome => break outcome?,
                    }
                };
                Ok(found.clamp(first, end.max(first)))
            }
            Start::Last(count) => {
                let is_dense = topic.segments().iter().all(|segment| segment.rewrites == 0);
                if is_dense {
                    return Ok(end.saturating_sub(count).max(first));
                }
                // What is behind the end is told to the reader that gets there.
                let mut backwards = Backwards::new(self.topic.clone(), end, self.visibility);
                let (mut left, mut at) = (count, end);
                while left > 0
                    && let Some(batch) = backwards.previous_batch()?
                {
                    let offsets: Vec<_> =
                        batch.batch.records().filter_map(|next| Some(next.ok()?.0)).collect();
                    let taken = offsets.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                    at = offsets[offsets.len() - taken];
                    left -= taken as u64;
                }
                Ok(at.max(first))
            }
        }
    }

    /// The first offset appended at `time` or later.
    fn find_time(&mut self, time: Timestamp) -> Result<Offset> {
        let topic = Arc::clone(&self.topic.inner);
        if self.next == Offset::ZERO {
            self.next = topic.log_start();
        }
        topic.check_files()?;
        // Before the segments: what leaves the tail between the two looks is found in its segment.
        let in_tail = {
            let tail = topic.tail();
            tail.find_time(time).map_or(tail.head.next_offset, |batch| batch.base_offset)
        };
        'again: loop {
            for segment in topic.segments().iter() {
                let is_earlier = segment.sealed().is_some_and(|sealed| sealed.last_time < time);
                if is_earlier || segment.next_offset() <= topic.log_start() {
                    continue;
                }
                match self.find_time_in(&topic, segment, time) {
                    Ok(None) => {}
                    Ok(Some(offset)) => return Ok(offset),
                    // It was replaced or trimmed meanwhile.
                    Err(Error::Io { .. }) if !is_listed(&topic, segment) => continue 'again,
                    Err(error) => return Err(error),
                }
            }
            return Ok(in_tail);
        }
    }

    fn find_time_in(
        &mut self,
        topic: &TopicInner,
        segment: &Arc<Segment>,
        time: Timestamp,
    ) -> Result<Option<Offset>> {
        let (mut position, mut expected) = segment.seek_time(&topic.context, time)?;
        while let Found::Batch(batch, behind) =
            self.reader.read(segment, &topic.context, position, expected)?
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

impl Drop for Cursor {
    fn drop(&mut self) {
        self.counted.report(&self.topic.inner.context);
        if let Some(id) = self.waker {
            self.topic.inner.watch.forget(id);
        }
    }
}

/// These offsets were there and are nowhere.
fn lost(topic: &TopicInner, offsets: std::ops::Range<Offset>) -> Error {
    topic.context.counters.damage_found.add(1);
    let (topic, path) = (topic.name.clone(), topic.dir.clone());
    Error::Corrupt { topic, offsets, path, position: Position::ZERO, detail: NOWHERE }
}

fn is_listed(topic: &TopicInner, segment: &Arc<Segment>) -> bool {
    topic.segments().iter().any(|listed| Arc::ptr_eq(listed, segment))
}

/// Reads a topic from its end to its beginning.
#[derive(Debug)]
pub struct Backwards {
    topic: Source,
    /// What comes next lies below this offset.
    before: Offset,
    /// Whether it begins at the end of what is seen: there may be damage behind it, which is told first.
    is_at_end: bool,
    reader: SegmentReader,
}

impl Backwards {
    pub(crate) fn new(topic: Source, before: Offset, visibility: Visibility) -> Self {
        let end = visible_end(&topic.inner, visibility);
        Self { topic, before: before.min(end), is_at_end: before > end, reader: SegmentReader::new() }
    }

    /// What comes next lies below this offset.
    pub fn before(&self) -> Offset {
        self.before
    }

    pub(crate) fn source(&self) -> &Source {
        &self.topic
    }

    /// Whether there is something to be told of what is behind the end, first of all.
    pub(crate) fn is_damaged_at_end(&self) -> bool {
        self.is_at_end && self.topic.damage(self.before).is_some()
    }

    /// Goes on below `offset`.
    pub fn seek(&mut self, offset: Offset) {
        self.before = offset.min(self.before);
    }

    /// The batch before, or `None` at the beginning. Of the batch only the records below the offset asked for
    /// count; the first one may be followed by others.
    ///
    /// # Errors
    /// [`Error::Corrupt`]. [`Error::CorruptFile`] once, before all else, if the journal of a store that is open for reading
    /// only is damaged behind what is seen: what is before that follows.
    pub fn previous_batch(&mut self) -> Result<Option<ReadBatch>> {
        let topic = Arc::clone(&self.topic.inner);
        if std::mem::take(&mut self.is_at_end)
            && let Some(damage) = self.topic.damage(self.before)
        {
            return Err(damage);
        }
        let mut looks = 0;
        loop {
            let version = self.topic.owner.version();
            topic.check_alive()?;
            let from = topic.log_start();
            if self.before <= from {
                return Ok(None);
            }
            let found = topic.tail().find_before(self.before).cloned();
            let batch = match found {
                Some(batch) => {
                    let header = BatchHeader::decode(&batch.bytes, topic.seed)
                        .expect("the tail holds intact batches only");
                    match Batch::trusted(header, batch.bytes) {
                        Ok(batch) => Some(batch),
                        Err(BodyProblem::CodecUnavailable(codec)) => {
                            return Err(Error::CodecUnavailable { codec: codec.name() });
                        }
                        Err(BodyProblem::Invalid(invalid)) => return Err(unreadable(invalid)),
                    }
                }
                None => {
                    if let Err(error) = topic.check_files() {
                        if self.topic.has_moved_on(&mut looks, version, &error)? {
                            continue;
                        }
                        return Err(error);
                    }
                    let segments = topic.segments();
                    let number = segments.partition_point(|segment| segment.base_offset < self.before);
                    let Some(segment) = number.checked_sub(1).map(|number| &segments[number]) else {
                        return Ok(None);
                    };
                    let end = segment.next_offset();
                    if number == segments.len() && end < self.before && topic.log_start() < self.before {
                        // What comes before this segment must not be taken for what comes next.
                        let error = lost(&topic, end..self.before);
                        if self.topic.has_moved_on(&mut looks, version, &error)? {
                            // A failed disk may have taken the last ones back.
                            self.before = self.before.min(topic.log_end());
                            continue;
                        }
                        return Err(error);
                    }
                    match self.last_below(&topic.context, segment) {
                        Err(Error::Io { .. }) if !is_listed(&topic, segment) => continue,
                        Err(error) if self.topic.has_moved_on(&mut looks, version, &error)? => continue,
                        outcome => outcome.or_else(|error| topic.check_alive().and(Err(error)))?,
                    }
                    .or_else(|| {
                        self.before = segment.base_offset;
                        None
                    })
                }
            };
            let Some(batch) = batch else { continue };
            let batch = seal::open_batch(&topic, batch)?;
            self.before = batch.base_offset();
            return Ok(Some(ReadBatch { batch, from, topic: topic.uid }));
        }
    }

    /// The last batch of a segment that starts below; an error if what lies right below is damaged.
    fn last_below(&mut self, context: &Context, segment: &Arc<Segment>) -> Result<Option<Batch>> {
        let end = self.before.min(segment.next_offset());
        let (mut position, mut expected) = segment.seek_offset(context, self.before.saturating_sub(1))?;
        let mut last = Ok(None);
        while expected < end {
            match self.reader.read(segment, context, position, expected) {
                Ok(Found::Batch(batch, behind)) if batch.base_offset() < self.before => {
                    position = behind;
                    expected = batch.next_offset();
                    last = Ok(Some(batch));
                }
                Ok(Found::Batch(..) | Found::End) => break,
                Err(error) => {
                    let Error::Corrupt { offsets, .. } = &error else { return Err(error) };
                    // What lies behind the damage comes first.
                    let behind = offsets.end;
                    (position, _) = self.reader.hop(segment, context, (position, expected), behind)?;
                    expected = behind;
                    last = Err(error);
                }
            }
        }
        last
    }
}

/// Iterates over records; made by [`Topic::read`](crate::Topic::read) and [`Topic::follow`](crate::Topic::follow).
///
/// After an error about a range of offsets, which are damaged or were removed, the next call goes on behind the range: so
/// whoever asks again has been told. Every other error is the last item; [`cursor`](Self::cursor) then says where it was.
#[derive(Debug)]
pub struct Records {
    cursor: Cursor,
    ready: std::vec::IntoIter<Result<StoredRecord>>,
    follows: bool,
    has_ended: bool,
}

impl Records {
    pub(crate) fn new(cursor: Cursor, follows: bool) -> Self {
        Self { cursor, ready: Vec::new().into_iter(), follows, has_ended: false }
    }

    /// The offset behind the batch that is being read.
    pub fn cursor(&self) -> &Cursor {
        &self.cursor
    }
}

impl Iterator for Records {
    type Item = Result<StoredRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.next() {
                return Some(record);
            }
            if self.has_ended {
                return None;
            }
            let error = match self.cursor.next_batch() {
                Ok(Some(batch)) => {
                    self.ready = batch.owned().into_iter();
                    continue;
                }
                Ok(None) if !self.follows => return None,
                Ok(None) => match self.cursor.wait(None) {
                    Ok(_) => continue,
                    Err(Error::Closed) => return None,
                    Err(error) => error,
                },
                Err(error) => error,
            };
            match behind(&error) {
                Some(behind) => self.cursor.seek(behind.max(self.cursor.next_offset() + 1)),
                None => self.has_ended = true,
            }
            return Some(Err(error));
        }
    }
}

/// Where to go on after an error, if it is about a range of offsets.
pub(crate) fn behind(error: &Error) -> Option<Offset> {
    match error {
        Error::OffsetTrimmed { log_start_offset, .. } => Some(*log_start_offset),
        Error::Corrupt { offsets, .. } => Some(offsets.end),
        _ => None,
    }
}

/// Iterates over records from the last to the first; made by [`Topic::read_backwards`](crate::Topic::read_backwards).
///
/// After an error about a range of damaged offsets the next call goes on below the range. Every other error is the last
/// item.
#[derive(Debug)]
pub struct RecordsBackwards {
    batches: Backwards,
    ready: Vec<Result<StoredRecord>>,
    before: Offset,
    has_ended: bool,
}

impl RecordsBackwards {
    pub(crate) fn new(batches: Backwards) -> Self {
        Self { before: batches.before, batches, ready: Vec::new(), has_ended: false }
    }
}

impl Iterator for RecordsBackwards {
    type Item = Result<StoredRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(record) = self.ready.pop() {
                return Some(record);
            }
            if self.has_ended {
                return None;
            }
            match self.batches.previous_batch() {
                Ok(Some(batch)) => {
                    let before = std::mem::replace(&mut self.before, batch.batch.base_offset());
                    self.ready = batch.owned();
                    self.ready.retain(|record| record.as_ref().map_or(true, |record| record.offset < before));
                }
                Ok(None) => return None,
                Err(error) => {
                    match &error {
                        Error::Corrupt { offsets, .. } => {
                            self.before = offsets.start.min(self.before.saturating_sub(1));
                            self.batches.seek(self.before);
                        }
                        // Of what is behind the end: not told again.
                        Error::CorruptFile { .. } => {}
                        _ => self.has_ended = true,
                    }
                    return Some(Err(error));
                }
            }
        }
    }
}

/// One record by its offset.
pub(crate) fn get(topic: Source, offset: Offset, visibility: Visibility) -> Result<Option<StoredRecord>> {
    let mut cursor = Cursor::new(topic, Start::Offset(offset), visibility)?;
    if let Some(damage) = cursor.damage() {
        return Err(damage);
    }
    if offset >= cursor.visible_end() {
        let next_offset = cursor.visible_end();
        return Err(Error::OffsetUnwritten { topic: cursor.topic.inner.name.clone(), offset, next_offset });
    }
    cursor.reader = SegmentReader::for_points();
    let Some(batch) = cursor.next_stored_batch()? else { return Ok(None) };
    let record = batch.record(offset)?;
    record.map(|record| record.opened(&cursor.topic.inner)).transpose()
}
