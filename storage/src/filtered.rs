//! Cursors that are led to what a filter may match.
//!
//! Where the indexes tell which records have the keys, types or tags that are asked for, only the batches are read that have
//! such records; all others are passed over. Where they do not (by headers, by prefixes of recent records), every batch is
//! read. Which records of a batch match, [`Filter::matches`] says.
//!
//! What a filtered cursor promises is what a [`Cursor`] promises, of the records that match.

use std::collections::VecDeque;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use crate::cursor::{Backwards, Cursor, ReadBatch, Source, Start, Visibility};
use crate::error::{Error, Result};
use crate::filter::{Filter, Search};
use crate::terms::lookup::Parts;
use crate::topic::TopicInner;
use crate::types::Offset;

/// Candidates that are fetched at once.
const PAGE: usize = 256;
/// Sealed segments whose indexes are asked in one call: one that has none yet is read for it.
const SEGMENTS_AT_ONCE: usize = 16;
/// A batch that begins so near is reached by reading on: to look for its place would take as long.
const NEAR: u64 = 16;

/// Reads the batches of a topic that may have records which match a filter; made by
/// [`Topic::filtered_cursor`](crate::Topic::filtered_cursor).
#[derive(Debug)]
pub struct FilteredCursor {
    cursor: Cursor,
    /// None: the indexes are of no use.
    search: Option<Search>,
    /// Offsets of records that may match; and up to where these are all.
    ready: VecDeque<Offset>,
    known_to: Offset,
}

impl FilteredCursor {
    pub(crate) fn new(source: Source, filter: &Filter, start: Start, visibility: Visibility) -> Result<Self> {
        filter.check()?;
        let search = Search::rough(&source.inner, filter);
        let cursor = Cursor::new(source, start, visibility)?;
        let known_to = cursor.next_offset();
        let cursor = if search.is_some() { cursor.for_points() } else { cursor };
        Ok(Self { cursor, search, ready: VecDeque::new(), known_to })
    }

    /// Every record before this was handed out or does not match.
    pub fn next_offset(&self) -> Offset {
        self.cursor.next_offset()
    }

    /// One past the last offset that this cursor may see now.
    pub fn visible_end(&self) -> Offset {
        self.cursor.visible_end()
    }

    /// Goes on at `offset`, which is not below the next one.
    pub fn seek(&mut self, offset: Offset) {
        self.cursor.seek(offset.max(self.cursor.next_offset()));
    }

    /// The next batch that may have a match, or `None` if there is none yet; or none nearby: then the
    /// [next offset](Self::next_offset) is still below the [visible end](Self::visible_end), and the next call looks
    /// further.
    ///
    /// # Errors
    /// As [`Cursor::next_batch`]; and what keeps an index from being made that is missing.
    pub fn next_batch(&mut self) -> Result<Option<ReadBatch>> {
        if self.search.is_none() || self.go_to_candidate() {
            return self.cursor.next_batch();
        }
        let topic = Arc::clone(self.cursor.topic());
        topic.check_alive()?;
        let (next, end, log_start_offset) = (self.next_offset(), self.visible_end(), topic.log_start());
        if next < log_start_offset {
            return Err(Error::OffsetTrimmed { topic: topic.name.clone(), offset: next, log_start_offset });
        }
        if next >= end {
            // What comes meanwhile is not read before it was looked for.
            return self.cursor.rest();
        }
        let source = self.cursor.source().clone();
        let found = source.with_parts(|parts| {
            let mut sealed = parts.sealed.iter().filter(|segment| segment.next_offset() > next);
            let to = sealed.nth(SEGMENTS_AT_ONCE - 1).map_or(end, |segment| segment.next_offset().min(end));
            self.candidates(&topic, parts, next, to)
        })?;
        self.take(found);
        if self.go_to_candidate() { self.cursor.next_batch() } else { Ok(None) }
    }

    /// The next batch if it and what tells of it are in memory as they are: see [`Cursor::next_batch_in_memory`].
    ///
    /// # Errors
    /// As [`next_batch`](Self::next_batch).
    pub fn next_batch_in_memory(&mut self) -> Result<Option<ReadBatch>> {
        if self.search.is_none() || self.go_to_candidate() {
            return self.cursor.next_batch_in_memory();
        }
        let topic = Arc::clone(self.cursor.topic());
        topic.check_alive()?;
        let (next, end) = (self.next_offset(), self.visible_end());
        if next < topic.log_start() || next >= end {
            return Ok(None);
        }
        let Some(parts) = topic.recent_parts(next) else { return Ok(None) };
        let found = self.candidates(&topic, &parts, next, end)?;
        self.take(found);
        if self.go_to_candidate() { self.cursor.next_batch_in_memory() } else { Ok(None) }
    }

    /// Candidates from `next` on, and up to which offset, at most `to`, these are all.
    fn candidates(
        &mut self,
        topic: &TopicInner,
        parts: &Parts,
        next: Offset,
        to: Offset,
    ) -> Result<(Vec<Offset>, Offset)> {
        let (mut found, mut from) = (Vec::new(), next);
        let Some(search) = &mut self.search else { return Ok((found, next)) };
        while found.len() < PAGE {
            let Some(offset) = search.candidate(topic, parts, from, to)? else { return Ok((found, to)) };
            found.push(offset);
            from = offset + 1;
        }
        Ok((found, from))
    }

    fn take(&mut self, (found, known_to): (Vec<Offset>, Offset)) {
        self.ready.extend(found);
        self.known_to = known_to;
    }

    /// Passes over what does not match. Says whether there is a candidate to go to.
    fn go_to_candidate(&mut self) -> bool {
        let next = self.next_offset();
        while self.ready.front().is_some_and(|offset| *offset < next) {
            self.ready.pop_front();
        }
        match self.ready.front() {
            Some(offset) => {
                if *offset > next + NEAR {
                    self.cursor.seek(*offset);
                }
                true
            }
            None => {
                if next < self.known_to {
                    self.cursor.seek(self.known_to);
                }
                false
            }
        }
    }

    /// Blocks until it is worth asking for the next batch again, or the time is up; says which. `None`: for ever. Any record
    /// of the topic ends the wait.
    ///
    /// # Errors
    /// As [`Cursor::wait`].
    pub fn wait(&self, timeout: Option<Duration>) -> Result<bool> {
        self.cursor.wait(timeout)
    }

    /// The same without blocking: the task is woken when it is worth asking again.
    ///
    /// # Errors
    /// As [`Cursor::wait`].
    pub fn poll_ready(&mut self, task: &mut TaskContext<'_>) -> Poll<Result<()>> {
        self.cursor.poll_ready(task)
    }

    /// What keeps it from being known whether there is more: see [`Cursor::damage`].
    pub fn damage(&self) -> Option<Error> {
        self.cursor.damage()
    }
}

/// The same from the end to the beginning; made by
/// [`Topic::filtered_backwards`](crate::Topic::filtered_backwards).
#[derive(Debug)]
pub struct FilteredBackwards {
    batches: Backwards,
    search: Option<Search>,
    ready: VecDeque<Offset>,
    /// Down to where these are all.
    known_from: Offset,
    has_more: bool,
}

impl FilteredBackwards {
    pub(crate) fn new(
        source: Source,
        filter: &Filter,
        before: Offset,
        visibility: Visibility,
    ) -> Result<Self> {
        filter.check()?;
        let search = Search::backwards(&source.inner, filter);
        let batches = Backwards::new(source, before, visibility);
        let known_from = batches.before();
        Ok(Self { batches, search, ready: VecDeque::new(), known_from, has_more: false })
    }

    /// Every record from here on was handed out or does not match.
    pub fn before(&self) -> Offset {
        self.batches.before()
    }

    /// Goes on below `offset`.
    pub fn seek(&mut self, offset: Offset) {
        self.batches.seek(offset);
    }

    /// Whether there was nothing nearby only, when [`previous_batch`](Self::previous_batch) has said `None`: the next call
    /// looks further.
    pub fn has_more(&self) -> bool {
        self.has_more
    }

    /// The batch before that may have a match, or `None` at the beginning; or none nearby, see
    /// [`has_more`](Self::has_more). See [`Backwards::previous_batch`].
    ///
    /// # Errors
    /// As [`Backwards::previous_batch`]; and what keeps an index from being made that is missing.
    pub fn previous_batch(&mut self) -> Result<Option<ReadBatch>> {
        self.has_more = false;
        let Some(search) = &mut self.search else { return self.batches.previous_batch() };
        let source = self.batches.source().clone();
        let topic = &source.inner;
        let mut has_looked = false;
        loop {
            let before = self.batches.before();
            while self.ready.front().is_some_and(|offset| *offset >= before) {
                self.ready.pop_front();
            }
            if let Some(offset) = self.ready.front() {
                self.batches.seek(*offset + 1);
                return self.batches.previous_batch();
            }
            topic.check_alive()?;
            self.batches.seek(self.known_from);
            let (start, before) = (topic.log_start(), self.batches.before());
            if before <= start || self.batches.is_damaged_at_end() {
                // What is to be told about the end is told first.
                return self.batches.previous_batch();
            }
            if has_looked {
                self.has_more = true;
                return Ok(None);
            }
            has_looked = true;
            let (found, known_from) = source.with_parts(|parts| {
                let mut sealed = parts.sealed.iter().rev().filter(|segment| segment.base_offset < before);
                let furthest = sealed.nth(SEGMENTS_AT_ONCE - 1);
                let from = furthest.map_or(start, |segment| segment.base_offset.max(start));
                let (mut found, mut at) = (Vec::new(), before);
                while found.len() < PAGE {
                    let Some(offset) = search.candidate_before(topic, parts, from, at)? else {
                        return Ok((found, from));
                    };
                    found.push(offset);
                    at = offset;
                }
                Ok((found, at))
            })?;
            self.ready.extend(found);
            self.known_from = known_from;
        }
    }
}
