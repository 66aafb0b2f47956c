//! Streams: the records of one key of a topic, in order, numbered by revisions from 0.
//!
//! A stream is read through the indexes of the topic's segments: no other record is looked at but those in the same
//! batches. What a reader of a stream promises is what a [`Cursor`] promises of a topic: offsets and revisions rise, none
//! is skipped without a word, but for those that compaction took out.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use crate::cursor::{Cursor, ReadBatch, Source, Start, StoredRecord, Visibility, behind};
use crate::error::{Error, Result};
use crate::format::terms::postings::Posting;
use crate::format::terms::{Kind, term};
use crate::store::visible_end;
use crate::terms::lookup::{Parts, Postings, Wanted};
use crate::types::{Offset, Revision, Timestamp};

/// Postings that are fetched at once.
const PAGE: usize = 256;
/// Keys that are looked at for one page of streams.
const KEYS_AT_ONCE: usize = 4096;

/// What is known of a stream without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHead {
    /// The revision of its last record, also when that was removed: the next one has one more.
    pub last_revision: Revision,
    /// Offset of the last record that can be read, if one can.
    pub last_offset: Option<Offset>,
    /// Revision of the first record that can be read, if one can.
    pub first_revision: Option<Revision>,
    /// Records that can be read.
    pub record_count: u64,
}

/// A stream of a topic, as [`Topic::streams`](crate::Topic::streams) lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// The key.
    pub key: Vec<u8>,
    /// What is known of it.
    pub head: StreamHead,
}

/// Where to start reading a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamStart {
    /// At the first record that can be read.
    Earliest,
    /// Behind the last record there is.
    Latest,
    /// At this revision, or at the first one behind it that can be read.
    Revision(Revision),
    /// Behind this revision.
    AfterRevision(Revision),
    /// At the first record appended at this time or later.
    Time(Timestamp),
    /// At the last so many records.
    Last(usize),
}

impl From<Revision> for StreamStart {
    fn from(revision: Revision) -> Self {
        Self::Revision(revision)
    }
}

pub(crate) fn wanted(source: &Source, key: &[u8]) -> Wanted {
    let term = term(Kind::Key, key);
    Wanted::new(source.inner.uid, term)
}

/// What is known of the stream of a key, as far as readers of this visibility may see.
pub(crate) fn head(source: &Source, key: &[u8], visibility: Visibility) -> Result<Option<StreamHead>> {
    let topic = &source.inner;
    topic.check_alive()?;
    let wanted = wanted(source, key);
    source.with_parts(|parts| {
        let (start, end) = (topic.log_start(), visible_end(topic, visibility));
        let Postings { mut found, unread } = topic.postings_before(parts, &wanted, (Offset::ZERO, end), 1)?;
        if let Some(unread) = unread {
            return Err(topic.keys_unknown(unread));
        }
        let Some(last) = found.pop() else {
            return Ok(topic.past_of(&wanted)?.map(|last_revision| StreamHead {
                last_revision,
                last_offset: None,
                first_revision: None,
                record_count: 0,
            }));
        };
        let (mut from, mut first) = (start, None);
        while first.is_none() {
            let Postings { mut found, unread } = topic.postings(parts, &wanted, (from, end), 1)?;
            first = found.pop();
            // What cannot be read is not the first one that can.
            let Some(unread) = unread else { break };
            from = unread.end;
        }
        Ok(Some(StreamHead {
            last_revision: last.revision.max(topic.past_of(&wanted)?).unwrap_or_default(),
            last_offset: first.map(|_| last.offset),
            first_revision: first.and_then(|first| first.revision),
            record_count: topic.count(parts, &wanted, start, end)?,
        }))
    })
}

/// Below which offset all records of a key lie that have a revision below `before`, as far as such are known: where reading
/// them backwards begins.
pub(crate) fn end_before(
    source: &Source,
    key: &[u8],
    before: Revision,
    visibility: Visibility,
) -> Result<Offset> {
    let topic = &source.inner;
    topic.check_alive()?;
    let wanted = wanted(source, key);
    source.with_parts(|parts| {
        let bounds = (topic.log_start(), visible_end(topic, visibility));
        Ok(topic.offset_of_revision(parts, &wanted, bounds, before)?.1)
    })
}

/// Some streams of a topic, as [`Topic::streams_page`](crate::Topic::streams_page) finds them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StreamPage {
    /// In the order of keys.
    pub streams: Vec<StreamInfo>,
    /// The key behind which the next page begins; none if this was the last one.
    pub next_after: Option<Vec<u8>>,
}

/// The streams whose keys begin with `prefix` and come behind `after`, in the order of keys, at most `limit`. Those of
/// which no record can be read are left out.
pub(crate) fn list(
    source: &Source,
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: usize,
    visibility: Visibility,
) -> Result<Vec<StreamInfo>> {
    let mut streams = Vec::new();
    let mut after = after.map(<[u8]>::to_vec);
    while streams.len() < limit {
        let page = page(source, prefix, after.as_deref(), limit - streams.len(), visibility)?;
        streams.extend(page.streams);
        let Some(next) = page.next_after else { break };
        after = Some(next);
    }
    Ok(streams)
}

/// The same of so many keys: there may be any number of which no record can be read.
pub(crate) fn page(
    source: &Source,
    prefix: &[u8],
    after: Option<&[u8]>,
    limit: usize,
    visibility: Visibility,
) -> Result<StreamPage> {
    let topic = &source.inner;
    topic.check_alive()?;
    let prefix = term(Kind::Key, prefix);
    let mut after = after.map(|after| term(Kind::Key, after));
    let mut page = StreamPage::default();
    let mut looked_at = 0;
    loop {
        let wanted = (limit - page.streams.len()).min(PAGE);
        if wanted == 0 || looked_at >= KEYS_AT_ONCE {
            page.next_after = after.map(|after| after[1..].to_vec());
            return Ok(page);
        }
        let keys = source.with_parts(|parts| topic.keys(parts, &prefix, after.as_deref(), wanted))?;
        let Some(last) = keys.last() else { return Ok(page) };
        after = Some(last.clone());
        looked_at += keys.len();
        for key in keys {
            let key = key[1..].to_vec();
            if let Some(head) = head(source, &key, visibility)?.filter(|head| head.record_count > 0) {
                page.streams.push(StreamInfo { key, head });
            }
        }
    }
}

/// Reads the records of a stream.
#[derive(Debug)]
pub struct StreamCursor {
    /// Reads the batches, and waits for more.
    cursor: Cursor,
    wanted: Wanted,
    /// No record below is wanted any more.
    next: Offset,
    /// No smaller one is wanted.
    first_revision: Revision,
    /// What comes next, and up to which offset that is all.
    ready: VecDeque<Posting>,
    known_to: Offset,
    /// As it is stored.
    held: Option<ReadBatch>,
}

impl StreamCursor {
    pub(crate) fn new(
        source: Source,
        key: &[u8],
        start: StreamStart,
        visibility: Visibility,
    ) -> Result<Self> {
        let wanted = wanted(&source, key);
        let topic = Arc::clone(&source.inner);
        let mut first_revision = Revision::ZERO;
        let at = match start {
            StreamStart::Latest => Start::Latest,
            StreamStart::Time(time) => Start::Time(time),
            _ => Start::Earliest,
        };
        let cursor = Cursor::new(source, at, visibility)?.for_points();
        let mut next = cursor.next_offset();
        match start {
            StreamStart::Revision(revision) => first_revision = revision,
            StreamStart::AfterRevision(revision) => first_revision = revision.saturating_add(1),
            StreamStart::Last(count) => {
                let end = cursor.visible_end();
                let Postings { found, unread } = cursor
                    .source()
                    .with_parts(|parts| topic.postings_before(parts, &wanted, (next, end), count))?;
                let first = found.last().map_or(end, |posting| posting.offset);
                // Some of the last may be among those that cannot be read.
                next = unread.map_or(first, |unread| unread.start.max(next));
            }
            StreamStart::Earliest | StreamStart::Latest | StreamStart::Time(_) => {}
        }
        if first_revision > Revision::ZERO {
            let bounds = (next, cursor.visible_end());
            let place = |parts: &Parts| topic.offset_of_revision(parts, &wanted, bounds, first_revision);
            (next, _) = cursor.source().with_parts(place)?;
        }
        let ready = VecDeque::new();
        Ok(Self { cursor, wanted, next, first_revision, ready, known_to: next, held: None })
    }

    /// One past the last offset that this cursor may see now.
    pub fn visible_end(&self) -> Offset {
        self.cursor.visible_end()
    }

    /// No record of the stream below this offset comes any more.
    pub fn next_offset(&self) -> Offset {
        self.next
    }

    /// Goes on at `offset`.
    pub fn seek(&mut self, offset: Offset) {
        self.next = offset;
        self.ready.clear();
        self.known_to = offset;
    }

    /// The next record, or `None` if there is none yet.
    ///
    /// # Errors
    /// As [`Cursor::next_batch`], also where records are damaged of which no index knows whether they are of the stream; and
    /// what keeps an index from being made that is missing.
    pub fn next_record(&mut self) -> Result<Option<StoredRecord>> {
        loop {
            let Some(posting) = self.ready.front().copied() else {
                if !self.look_ahead()? {
                    return Ok(None);
                }
                continue;
            };
            // It may have been taken out since its offset was found.
            let record = self.read(posting)?;
            self.ready.pop_front();
            self.next = if self.ready.is_empty() { self.known_to } else { posting.offset + 1 };
            if let Some(record) = record.filter(|record| record.revision() >= Some(self.first_revision)) {
                return Ok(Some(record));
            }
        }
    }

    /// Fetches the postings behind those that are known; says whether to look again, or there are none.
    fn look_ahead(&mut self) -> Result<bool> {
        let topic = Arc::clone(self.cursor.topic());
        topic.check_alive()?;
        let log_start_offset = topic.log_start();
        if self.next < log_start_offset {
            let (topic, offset) = (topic.name.clone(), self.next);
            return Err(Error::OffsetTrimmed { topic, offset, log_start_offset });
        }
        // What is to be told about the end is the cursor's.
        self.cursor.seek(self.next);
        let end = self.visible_end();
        if self.next >= end {
            return self.cursor.damage().map_or(Ok(false), Err);
        }
        let bounds = (self.next, end);
        let Postings { found, unread } =
            self.cursor.source().with_parts(|parts| topic.postings(parts, &self.wanted, bounds, PAGE))?;
        self.known_to = match (found.last(), &unread) {
            (Some(last), None) if found.len() >= PAGE => last.offset + 1,
            (_, Some(unread)) => unread.start.max(self.next),
            (_, None) => end,
        };
        self.ready.extend(found);
        if self.ready.is_empty() {
            self.next = self.known_to;
            self.cursor.seek(self.next);
            if unread.is_some() {
                self.read_unread(self.next)?;
                return Ok(true);
            }
        }
        Ok(!self.ready.is_empty())
    }

    /// The record at `offset` could not be read when its terms were looked for. That is told as reading tells it; if it can
    /// be read by now its terms are looked for again.
    fn read_unread(&mut self, offset: Offset) -> Result<()> {
        self.cursor.seek(offset);
        self.cursor.next_batch()?;
        self.cursor.topic().forget_terms(offset);
        Ok(())
    }

    fn read(&mut self, Posting { offset, revision }: Posting) -> Result<Option<StoredRecord>> {
        let covers =
            |held: &ReadBatch| held.batch().base_offset() <= offset && offset < held.batch().next_offset();
        if !self.held.as_ref().is_some_and(covers) {
            self.cursor.seek(offset);
            self.held = self.cursor.next_stored_batch()?;
        }
        let Some(held) = self.held.as_ref().filter(|held| covers(held)) else { return Ok(None) };
        let record = held.record_with(offset, revision)?;
        record.map(|record| record.opened(self.cursor.topic())).transpose()
    }

    /// Blocks until it is worth asking for the next record again, or the time is up; says which. `None`: for ever. Any
    /// record of the topic ends the wait.
    ///
    /// # Errors
    /// As [`Cursor::wait`].
    pub fn wait(&mut self, timeout: Option<Duration>) -> Result<bool> {
        self.held = None;
        self.cursor.seek(self.next);
        self.cursor.wait(timeout)
    }

    /// The same without blocking: the task is woken when it is worth asking again.
    ///
    /// # Errors
    /// As [`Cursor::wait`].
    pub fn poll_ready(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<()>> {
        self.held = None;
        self.cursor.seek(self.next);
        self.cursor.poll_ready(task)
    }
}

/// Iterates over the records of a stream; made by [`Topic::read_stream`](crate::Topic::read_stream) and
/// [`Topic::follow_stream`](crate::Topic::follow_stream).
///
/// After an error about a range of offsets the next call goes on behind the range. Every other error is the last item.
#[derive(Debug)]
pub struct StreamRecords {
    cursor: StreamCursor,
    follows: bool,
    until: Option<Timestamp>,
    has_ended: bool,
}

impl StreamRecords {
    pub(crate) fn new(cursor: StreamCursor, follows: bool) -> Self {
        Self { cursor, follows, until: None, has_ended: false }
    }

    /// Ends before the first record that was appended later than this.
    #[must_use]
    pub fn until(mut self, time: Timestamp) -> Self {
        self.until = Some(time);
        self
    }

    /// Where it is.
    pub fn cursor(&self) -> &StreamCursor {
        &self.cursor
    }
}

impl Iterator for StreamRecords {
    type Item = Result<StoredRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.has_ended {
            let error = match self.cursor.next_record() {
                Ok(Some(record)) if self.until.is_some_and(|until| record.append_time() > until) => {
                    self.has_ended = true;
                    return None;
                }
                Ok(Some(record)) => return Some(Ok(record)),
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
        None
    }
}

/// Iterates over the records of a stream from the last to the first; made by
/// [`Topic::read_stream_backwards`](crate::Topic::read_stream_backwards).
///
/// After an error about a range of damaged offsets the next call goes on below the range. Every other error is the last
/// item.
#[derive(Debug)]
pub struct StreamRecordsBackwards {
    points: StreamCursor,
    /// What comes next lies below.
    before: Offset,
    ready: VecDeque<Posting>,
    has_ended: bool,
}

impl StreamRecordsBackwards {
    /// From the last record with a revision below `before` on.
    pub(crate) fn new(
        source: Source,
        key: &[u8],
        before: Option<Revision>,
        visibility: Visibility,
    ) -> Result<Self> {
        let end = match before {
            Some(before) => Some(end_before(&source, key, before, visibility)?),
            None => None,
        };
        let points = StreamCursor::new(source, key, StreamStart::Latest, visibility)?;
        let before = end.unwrap_or(points.next_offset());
        Ok(Self { points, before, ready: VecDeque::new(), has_ended: false })
    }

    fn previous(&mut self) -> Result<Option<StoredRecord>> {
        loop {
            let Some(posting) = self.ready.pop_front() else {
                let topic = Arc::clone(self.points.cursor.topic());
                topic.check_alive()?;
                let bounds = (topic.log_start(), self.before);
                let (source, wanted) = (self.points.cursor.source(), &self.points.wanted);
                let Postings { found, unread } =
                    source.with_parts(|parts| topic.postings_before(parts, wanted, bounds, PAGE))?;
                self.ready.extend(found);
                match unread.filter(|_| self.ready.is_empty()) {
                    Some(unread) => self.points.read_unread(unread.start.max(bounds.0))?,
                    None if self.ready.is_empty() => return Ok(None),
                    None => {}
                }
                continue;
            };
            self.before = posting.offset;
            match self.points.read(posting) {
                Ok(Some(record)) => return Ok(Some(record)),
                Ok(None) => {}
                // It went meanwhile, and all before it.
                Err(Error::OffsetTrimmed { .. }) => return Ok(None),
                Err(error) => return Err(error),
            }
        }
    }
}

impl Iterator for StreamRecordsBackwards {
    type Item = Result<StoredRecord>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.has_ended {
            return None;
        }
        match self.previous() {
            Ok(record) => record.map(Ok),
            Err(error) => {
                match &error {
                    Error::Corrupt { offsets, .. } => {
                        self.before = offsets.start.min(self.before);
                        self.ready.clear();
                    }
                    _ => self.has_ended = true,
                }
                Some(Err(error))
            }
        }
    }
}
