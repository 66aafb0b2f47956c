//! Filters: which records are wanted, by key, type, tags and headers; and finding them through the indexes.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use crate::cursor::{Cursor, Source, Start, Visibility};
use crate::error::{Error, Result};
use crate::format::record::RecordView;
use crate::format::terms::{Kind, term};
use crate::terms::lookup::{Parts, Postings, Wanted};
use crate::topic::TopicInner;
use crate::types::Offset;

/// Offsets that are fetched at once for one term.
const PAGE: usize = 256;
/// Offsets in one segment that are listed for all prefixes of a filter: with more, its records are read in a row.
const PREFIX_OFFSETS_MAX: usize = 64 << 10;

/// Which records are wanted: those that satisfy every field that is not empty. Without any, all are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// One of these keys.
    pub keys: Vec<Vec<u8>>,
    /// A key that begins with one of these.
    pub key_prefixes: Vec<Vec<u8>>,
    /// One of these types.
    pub types: Vec<String>,
    /// All tags of one of these sets. None of the sets is empty.
    pub tags: Vec<Vec<String>>,
    /// All of these headers.
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Filter {
    /// Most keys, prefixes, types, tags and headers together.
    pub const PARTS_MAX: usize = 256;
    /// Most bytes of all of them.
    pub const BYTES_MAX: usize = 64 << 10;

    /// All records.
    pub fn new() -> Self {
        Self::default()
    }

    /// Those with this key, or another one that is named so.
    #[must_use]
    pub fn key(mut self, key: impl Into<Vec<u8>>) -> Self {
        self.keys.push(key.into());
        self
    }

    /// Those whose key begins with this, or with another one that is named so.
    #[must_use]
    pub fn key_prefix(mut self, prefix: impl Into<Vec<u8>>) -> Self {
        self.key_prefixes.push(prefix.into());
        self
    }

    /// Those of this type, or another one that is named so.
    #[must_use]
    pub fn record_type(mut self, record_type: impl Into<String>) -> Self {
        self.types.push(record_type.into());
        self
    }

    /// Those that have all of these tags, or all of another set that is named so.
    #[must_use]
    pub fn tags<T: Into<String>>(mut self, all: impl IntoIterator<Item = T>) -> Self {
        self.tags.push(all.into_iter().map(Into::into).collect());
        self
    }

    /// Those that have this header, and every other one that is named so.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// Whether a record is wanted.
    pub fn matches(&self, record: &RecordView<'_>) -> bool {
        let is_one = |keys: &[Vec<u8>], holds: &dyn Fn(&[u8], &[u8]) -> bool| {
            keys.is_empty() || record.key.is_some_and(|key| keys.iter().any(|wanted| holds(key, wanted)))
        };
        let has_tag = |wanted: &String| record.tags().any(|tag| tag == wanted);
        let has_header = |(name, value): &(String, Vec<u8>)| {
            record.headers().any(|(found, content)| found == name && content == value)
        };
        is_one(&self.keys, &|key, wanted| key == wanted)
            && is_one(&self.key_prefixes, &|key, prefix| key.starts_with(prefix))
            && (self.types.is_empty() || self.types.iter().any(|wanted| wanted == record.record_type))
            && (self.tags.is_empty() || self.tags.iter().any(|all| all.iter().all(has_tag)))
            && self.headers.iter().all(has_header)
    }

    /// Checks its bounds.
    ///
    /// # Errors
    /// [`Error::InvalidFilter`] says which one it breaks.
    pub fn check(&self) -> Result<()> {
        let of_tags = self.tags.iter().flatten();
        let parts = self.keys.len()
            + self.key_prefixes.len()
            + self.types.len()
            + of_tags.clone().count()
            + self.headers.len();
        let of_keys = self.keys.iter().chain(&self.key_prefixes).map(Vec::len);
        let of_texts = self.types.iter().chain(of_tags).map(String::len);
        let of_headers = self.headers.iter().map(|(name, value)| name.len() + value.len());
        let bytes: usize = of_keys.chain(of_texts).chain(of_headers).sum();
        let invalid = |rule| Err(Error::InvalidFilter { rule });
        if self.tags.iter().any(Vec::is_empty) {
            return invalid("a set of tags has at least one");
        }
        if self.types.iter().any(String::is_empty) {
            return invalid("a type is not empty");
        }
        // No record has one: what comes of a variable that is not set must not look like an answer.
        if self.tags.iter().flatten().any(String::is_empty) {
            return invalid("a tag is not empty");
        }
        if parts > Self::PARTS_MAX {
            return invalid("it has at most 256 keys, prefixes, types, tags and headers together");
        }
        if bytes > Self::BYTES_MAX {
            return invalid("it has at most 64 KiB");
        }
        Ok(())
    }
}

/// Finds the records of a filter one after the other, by offsets that never go back.
///
/// What is in an index is found there: of a filter by keys, types and tags no record is read. Headers are looked for in
/// the records that satisfy the rest; where there is no rest, in all.
#[derive(Debug)]
pub(crate) struct Search {
    /// A record must be in each of them.
    all: Vec<Any>,
    /// Whether the indexes alone do not tell.
    reads_records: bool,
    filter: Filter,
}

/// A record must be in one of them.
#[derive(Debug)]
struct Any(Vec<All>);

/// A record must be in each of them.
#[derive(Debug)]
struct All(Vec<Listed>);

/// The records that have a term, or one that begins with it.
#[derive(Debug)]
struct Listed {
    wanted: Wanted,
    is_prefix: bool,
    /// With more records of a prefix than this, every record counts as one.
    limit: Option<usize>,
    ready: VecDeque<Offset>,
    /// Up to which offset that is all there is; backwards, down to which.
    known_to: Offset,
    /// Offsets at which every record counts as one, behind what is ready.
    all: Range<Offset>,
}

impl Search {
    /// One whose candidates have everything that is asked for but the headers.
    pub(crate) fn new(topic: &TopicInner, filter: &Filter) -> Self {
        Self::with(topic, filter, None)
    }

    /// One for those who look at the records anyway: where to list the records of a prefix would take more than to read
    /// them, every record is a candidate. `None` if the indexes are of no use.
    pub(crate) fn rough(topic: &TopicInner, filter: &Filter) -> Option<Self> {
        let limit = PREFIX_OFFSETS_MAX / filter.key_prefixes.len().max(1);
        Some(Self::with(topic, filter, Some(limit))).filter(|search| !search.all.is_empty())
    }

    /// The same for [`candidate_before`](Self::candidate_before).
    pub(crate) fn backwards(topic: &TopicInner, filter: &Filter) -> Option<Self> {
        let mut search = Self::rough(topic, filter)?;
        let listed = search.all.iter_mut().flat_map(|any| &mut any.0).flat_map(|all| &mut all.0);
        listed.for_each(|listed| listed.known_to = Offset::MAX);
        Some(search)
    }

    fn with(topic: &TopicInner, filter: &Filter, limit: Option<usize>) -> Self {
        let listed = |kind, text: &[u8], is_prefix| {
            let term = term(kind, text);
            let wanted = Wanted::new(topic.uid, term);
            let (ready, zero) = (VecDeque::new(), Offset::ZERO);
            Listed { wanted, is_prefix, limit, ready, known_to: zero, all: zero..zero }
        };
        let one = |listed| All(vec![listed]);
        let of_keys = |keys: &[Vec<u8>], is_prefix| {
            Any(keys.iter().map(|key| one(listed(Kind::Key, key, is_prefix))).collect())
        };
        let types = filter.types.iter().map(|text| one(listed(Kind::Type, text.as_bytes(), false)));
        let of_tags =
            |all: &Vec<String>| All(all.iter().map(|tag| listed(Kind::Tag, tag.as_bytes(), false)).collect());
        let all = [
            of_keys(&filter.keys, false),
            of_keys(&filter.key_prefixes, true),
            Any(types.collect()),
            Any(filter.tags.iter().map(of_tags).collect()),
        ];
        let all: Vec<Any> = all.into_iter().filter(|any| !any.0.is_empty()).collect();
        // Without an index only the records tell which offsets are still there.
        Self { reads_records: !filter.headers.is_empty() || all.is_empty(), all, filter: filter.clone() }
    }

    /// Whether its matches cannot be told from the indexes alone.
    pub(crate) fn reads_records(&self) -> bool {
        self.reads_records
    }

    /// Whether no index told of it that it is one.
    fn is_guess(&self, offset: Offset) -> bool {
        let mut listed = self.all.iter().flat_map(|any| &any.0).flat_map(|all| &all.0);
        listed.any(|listed| listed.all.contains(&offset))
    }

    /// The first offset in `from..to` that the indexes say may be one, or do not know.
    pub(crate) fn candidate(
        &mut self,
        topic: &TopicInner,
        parts: &Parts,
        from: Offset,
        to: Offset,
    ) -> Result<Option<Offset>> {
        let first = first_of_all(from, &mut self.all, |any, from| any.first(topic, parts, from, to))?;
        Ok(first.filter(|offset| *offset < to))
    }

    /// The last offset in `from..before` that the indexes say may be one, or do not know.
    pub(crate) fn candidate_before(
        &mut self,
        topic: &TopicInner,
        parts: &Parts,
        from: Offset,
        before: Offset,
    ) -> Result<Option<Offset>> {
        last_of_all(before, &mut self.all, |any, before| any.last(topic, parts, from, before))
    }

    /// The first match in `from..to`.
    pub(crate) fn first(&mut self, source: &Source, mut from: Offset, to: Offset) -> Result<Option<Offset>> {
        let topic = Arc::clone(&source.inner);
        let mut cursor: Option<Cursor> = None;
        while let Some(offset) = source.with_parts(|parts| self.candidate(&topic, parts, from, to))? {
            if !self.reads_records && !self.is_guess(offset) {
                return Ok(Some(offset));
            }
            let cursor = match &mut cursor {
                Some(cursor) => cursor,
                none => none.insert(Cursor::new(source.clone(), Start::Offset(offset), Visibility::Written)?),
            };
            // Where each record is a candidate they are read in a row.
            if cursor.next_offset() != offset {
                cursor.seek(offset);
            }
            // No filter looks at payloads.
            let Some(batch) = cursor.next_stored_batch()? else { return Ok(None) };
            for next in batch.records() {
                let (found, view) = next?;
                if found < to && self.filter.matches(&view) {
                    return Ok(Some(found));
                }
            }
            from = batch.batch().next_offset();
        }
        Ok(None)
    }
}

/// The first offset from `from` on that is the first of each; `None` if one of them has no more.
fn first_of_all<T>(
    from: Offset,
    all: &mut [T],
    mut first: impl FnMut(&mut T, Offset) -> Result<Option<Offset>>,
) -> Result<Option<Offset>> {
    let mut at = from;
    loop {
        let mut furthest = at;
        for one in &mut *all {
            let Some(offset) = first(one, furthest)? else { return Ok(None) };
            furthest = offset;
        }
        if furthest == at {
            return Ok(Some(at));
        }
        at = furthest;
    }
}

/// The last offset below `before` that is the last of each; `None` if one of them has no more.
fn last_of_all<T>(
    before: Offset,
    all: &mut [T],
    mut last: impl FnMut(&mut T, Offset) -> Result<Option<Offset>>,
) -> Result<Option<Offset>> {
    let mut at = before;
    loop {
        let mut furthest = at;
        for one in &mut *all {
            let Some(offset) = last(one, furthest)? else { return Ok(None) };
            furthest = offset + 1;
        }
        if furthest == at {
            return Ok(Some(at.saturating_sub(1)));
        }
        at = furthest;
    }
}

impl Any {
    fn last(
        &mut self,
        topic: &TopicInner,
        parts: &Parts,
        from: Offset,
        before: Offset,
    ) -> Result<Option<Offset>> {
        let mut last: Option<Offset> = None;
        for all in &mut self.0 {
            let limit = last.map_or(from, |last| last + 1);
            let found =
                last_of_all(before, &mut all.0, |listed, before| listed.last(topic, parts, limit, before))?;
            last = found.or(last);
        }
        Ok(last)
    }

    fn first(
        &mut self,
        topic: &TopicInner,
        parts: &Parts,
        from: Offset,
        to: Offset,
    ) -> Result<Option<Offset>> {
        let mut first: Option<Offset> = None;
        for all in &mut self.0 {
            let limit = first.unwrap_or(to);
            let found =
                first_of_all(from, &mut all.0, |listed, from| listed.first(topic, parts, from, limit))?;
            first = found.or(first);
        }
        Ok(first)
    }
}

impl Listed {
    fn last(
        &mut self,
        topic: &TopicInner,
        parts: &Parts,
        from: Offset,
        before: Offset,
    ) -> Result<Option<Offset>> {
        loop {
            while self.ready.front().is_some_and(|offset| *offset >= before) {
                self.ready.pop_front();
            }
            if let Some(offset) = self.ready.front() {
                return Ok(Some(*offset).filter(|offset| *offset >= from));
            }
            if !self.all.is_empty() && before > self.all.start {
                let last = before.min(self.all.end).saturating_sub(1);
                return Ok(Some(last).filter(|offset| *offset >= from));
            }
            let end = before.min(self.known_to);
            if end <= from {
                return Ok(None);
            }
            if self.is_prefix {
                // One segment at a time, or what is recent.
                let segment = parts.sealed.iter().rev().find(|segment| segment.base_offset < end);
                let begin = segment.map_or(Offset::ZERO, |segment| match segment.next_offset() {
                    next if next < end => next,
                    _ => segment.base_offset,
                });
                let begin = begin.max(from);
                let (found, known_to) =
                    topic.offsets_of_prefix(parts, &self.wanted.term, (begin, end), self.limit)?;
                self.known_to = begin;
                match found.filter(|_| known_to >= end) {
                    Some(found) => self.ready.extend(found.into_iter().rev()),
                    None => self.all = begin..end,
                }
                continue;
            }
            let Postings { found, unread } = topic.postings_before(parts, &self.wanted, (from, end), PAGE)?;
            self.known_to = match (found.last().filter(|_| found.len() >= PAGE), unread) {
                (Some(last), _) => last.offset,
                (None, None) => from,
                // They come when what was found is through.
                (None, Some(unread)) if unread.end < end => unread.end,
                (None, Some(unread)) => {
                    self.all = unread.start..end;
                    unread.start
                }
            };
            self.ready.extend(found.into_iter().map(|posting| posting.offset));
        }
    }

    fn first(
        &mut self,
        topic: &TopicInner,
        parts: &Parts,
        from: Offset,
        to: Offset,
    ) -> Result<Option<Offset>> {
        loop {
            while self.ready.front().is_some_and(|offset| *offset < from) {
                self.ready.pop_front();
            }
            if let Some(offset) = self.ready.front() {
                return Ok(Some(*offset).filter(|offset| *offset < to));
            }
            if !self.all.is_empty() && from < self.all.end {
                return Ok(Some(from.max(self.all.start)).filter(|offset| *offset < to));
            }
            let begin = from.max(self.known_to);
            if begin >= to {
                return Ok(None);
            }
            let (found, known_to) = if self.is_prefix {
                let (found, known_to) =
                    topic.offsets_of_prefix(parts, &self.wanted.term, (begin, to), self.limit)?;
                if found.is_none() {
                    self.all = begin..known_to;
                }
                (found.unwrap_or_default(), known_to)
            } else {
                let Postings { found, unread } = topic.postings(parts, &self.wanted, (begin, to), PAGE)?;
                let known_to = match (found.last().filter(|_| found.len() >= PAGE), unread) {
                    (Some(last), _) => last.offset + 1,
                    (None, None) => to,
                    // They come when what was found is through.
                    (None, Some(unread)) if unread.start > begin => unread.start,
                    (None, Some(unread)) => {
                        self.all = begin..unread.end.min(to);
                        self.all.end
                    }
                };
                (found.into_iter().map(|posting| posting.offset).collect(), known_to)
            };
            self.ready.extend(found);
            self.known_to = known_to;
        }
    }
}

/// The first record behind `after` (all are, if there is none) that matches, as far as readers of this visibility may see.
pub(crate) fn first_match(
    source: &Source,
    filter: &Filter,
    after: Option<Offset>,
    visibility: Visibility,
) -> Result<Option<Offset>> {
    filter.check()?;
    let topic = &source.inner;
    topic.check_alive()?;
    let from = after.map_or(Offset::ZERO, |after| after.saturating_add(1)).max(topic.log_start());
    let end = crate::store::visible_end(topic, visibility);
    Search::new(topic, filter).first(source, from, end)
}
