//! A term over all of a topic: its sealed segments, and what is in memory.

use std::ops::Range;
use std::sync::{Arc, RwLock};

use super::batch_terms::is_key;
use super::file::Unusable;
use super::map::{Doubt, TermMap};
use super::quick_hash::QuickHash;
use super::recent::{Filling, LastSeen, read};
use super::sealed::SealedTerms;
use crate::error::{Error, Result};
use crate::format::terms::hash::hash;
use crate::format::terms::postings::Posting;
use crate::segment::Segment;
use crate::topic::TopicInner;
use crate::types::{Offset, Revision, Uid};

/// A term to look for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    /// As it is in files.
    pub(crate) hash: u64,
    /// As it is in memory.
    pub(crate) quick: QuickHash,
    pub(crate) term: Vec<u8>,
}

impl Wanted {
    /// This term of a topic.
    pub(crate) fn new(topic: Uid, term: Vec<u8>) -> Self {
        Self { hash: hash(topic, &term), quick: QuickHash::of_term(&term), term }
    }
}

/// Everything that knows of the terms of a topic, as it is at one moment.
#[derive(Debug)]
pub(crate) struct Parts {
    /// Segments that have an index, in order.
    pub(crate) sealed: Vec<Arc<Segment>>,
    /// What comes behind.
    pub(crate) recent: Vec<Filling>,
    /// Changes when records with keys come, and when maps go: see [`State`](super::recent::State).
    pub(crate) stamp: (u64, u64),
}

/// One of them.
#[derive(Clone, Copy)]
pub(crate) enum Part<'a> {
    Sealed(&'a Arc<Segment>),
    Recent(&'a RwLock<TermMap>),
}

/// Records that have a term, in the order that was asked for.
#[derive(Debug, Default)]
pub(crate) struct Postings {
    /// As many as were wanted; or all up to where it was to be looked, or to the records that cannot be read.
    pub(crate) found: Vec<Posting>,
    /// Those, if they come next: whether they have the term only reading them would tell.
    pub(crate) unread: Option<Range<Offset>>,
}

/// What a part knows of a term.
#[derive(Clone, Copy, Debug)]
struct Summary {
    count: u64,
    first: Offset,
    last: Offset,
    /// The first and the last one.
    revisions: Option<(Revision, Revision)>,
}

impl Parts {
    /// In the order of offsets.
    pub(crate) fn all(&self) -> impl DoubleEndedIterator<Item = Part<'_>> {
        self.sealed.iter().map(Part::Sealed).chain(self.recent.iter().map(|(_, map)| Part::Recent(map)))
    }
}

impl TopicInner {
    /// What knows of the terms now. Gathers the recent ones if nobody has yet.
    pub(crate) fn parts(self: &Arc<Self>) -> Result<Parts> {
        loop {
            self.gather()?;
            // The recent terms first: what leaves them meanwhile has an index.
            let (from, recent, stamp) = {
                let Some(state) = self.terms.recent.known() else { continue };
                let maps = state.maps.iter().map(|(base, map)| (*base, Arc::clone(map)));
                (state.from, maps.collect(), (state.version, state.gone))
            };
            let segments = self.segments();
            // One that is not sealed is trimmed and only could not be removed.
            let is_below = |segment: &&Arc<Segment>| segment.base_offset < from && segment.sealed().is_some();
            let sealed: Vec<_> = segments.iter().filter(is_below).cloned().collect();
            let are_apart = sealed.last().is_none_or(|segment| segment.next_offset() <= from);
            if are_apart && self.terms.recent.is_known() {
                return Ok(Parts { sealed, recent, stamp });
            }
            // Compaction has merged what is recent into what is not.
            self.terms.recent.forget();
        }
    }

    /// The parts that are in memory, if they have everything from `offset` on; never looks at the disk.
    pub(crate) fn recent_parts(&self, offset: Offset) -> Option<Parts> {
        let state = self.terms.recent.lock();
        (self.terms.recent.is_known() && state.from <= offset).then(|| Parts {
            sealed: Vec::new(),
            recent: state.maps.iter().map(|(base, map)| (*base, Arc::clone(map))).collect(),
            stamp: (state.version, state.gone),
        })
    }

    /// Looks at the parts, and again if segments went meanwhile.
    pub(crate) fn with_parts<T>(self: &Arc<Self>, mut look: impl FnMut(&Parts) -> Result<T>) -> Result<T> {
        loop {
            let parts = self.parts()?;
            match look(&parts) {
                Err(Error::Io { .. })
                    if parts.sealed.iter().any(|segment| !super::is_listed(self, segment)) =>
                {
                    self.check_alive()?;
                }
                outcome => return outcome,
            }
        }
    }

    /// Whether a part may have records with the term, and what of it could not be read: asks only the memory, once the part
    /// was asked before.
    fn glance(
        &self,
        part: Part<'_>,
        wanted: &Wanted,
        unread: impl Fn(&TermMap) -> Option<Range<Offset>>,
    ) -> Result<(bool, Option<Range<Offset>>)> {
        match part {
            Part::Recent(map) => Ok((true, unread(&read(map)))),
            Part::Sealed(segment) => self.ask(segment, |terms| {
                Ok(match terms {
                    SealedTerms::File(file) => (file.may_have(wanted.hash), None),
                    SealedTerms::Map(map) => (true, unread(map)),
                })
            }),
        }
    }

    /// What a part knows of a term, and what is in doubt behind that.
    fn summary(&self, part: Part<'_>, wanted: &Wanted) -> Result<(Option<Summary>, Doubt)> {
        let log_start = self.log_start();
        let of_map = |map: &TermMap| {
            let summary = map.get(wanted.quick, &wanted.term).map(|entry| {
                let (first, last) = (entry.posting(0), entry.last());
                Summary {
                    count: entry.offsets().len() as u64,
                    first: first.offset,
                    last: last.offset,
                    revisions: first.revision.zip(last.revision),
                }
            });
            (summary, map.doubt(summary.map(|summary| summary.last), log_start))
        };
        match part {
            Part::Recent(map) => Ok(of_map(&read(map))),
            Part::Sealed(segment) => self.ask(segment, |terms| {
                Ok(match terms {
                    SealedTerms::Map(map) => of_map(map),
                    SealedTerms::File(file) => {
                        let summary = file.find(wanted.hash, &wanted.term)?.map(|found| Summary {
                            count: found.entry.count,
                            first: found.entry.first,
                            last: found.entry.last,
                            revisions: found.entry.revisions,
                        });
                        (summary, Doubt::default())
                    }
                })
            }),
        }
    }

    /// The last record of a key that has a revision, over these parts and the past.
    pub(crate) fn last_seen<'a>(
        &self,
        parts: impl DoubleEndedIterator<Item = Part<'a>>,
        wanted: &Wanted,
    ) -> Result<LastSeen> {
        let mut seen = LastSeen::default();
        for part in parts.rev() {
            let (summary, doubt) = self.summary(part, wanted)?;
            seen.doubt = seen.doubt.and(doubt);
            if let Some(summary) = summary {
                match summary.revisions {
                    Some((_, last)) => {
                        seen.revision = Some(last);
                        break;
                    }
                    None => seen.unnumbered += summary.count,
                }
            }
        }
        // Also if a record was found: it may be a trimmed one, and a later one that compaction took out is in the past.
        seen.revision = seen.revision.max(self.past_of(wanted)?);
        Ok(seen)
    }

    /// The last revision of a key in the past. A topic in memory has none.
    pub(crate) fn past_of(&self, wanted: &Wanted) -> Result<Option<Revision>> {
        if self.is_in_memory() { Ok(None) } else { self.past_revision(wanted.hash, &wanted.term) }
    }

    /// Which keys records have cannot be told.
    pub(crate) fn keys_unknown(&self, offsets: Range<Offset>) -> Error {
        Error::KeysUnknown { topic: self.name.clone(), offsets }
    }

    /// That, if it leaves a last revision in doubt.
    pub(crate) fn check_doubt(&self, doubt: Doubt) -> Result<()> {
        doubt.0.map_or(Ok(()), |(from, to)| Err(self.keys_unknown(from..to)))
    }

    /// The postings of a term in offsets `from..to`, in order: so many, or all.
    pub(crate) fn postings(
        &self,
        parts: &Parts,
        wanted: &Wanted,
        (from, to): (Offset, Offset),
        limit: usize,
    ) -> Result<Postings> {
        let mut postings = Postings::default();
        let found = &mut postings.found;
        let all: Vec<_> = parts.all().collect();
        for (number, part) in all.iter().enumerate() {
            if found.len() >= limit {
                break;
            }
            if ends_before(*part, from) {
                continue;
            }
            if begins_behind(*part, to) {
                break;
            }
            let (may_have, unread) = self.glance(*part, wanted, |map| map.unread_from(from))?;
            let unread = unread.filter(|unread| unread.start < to);
            if may_have {
                let mut more = self.postings_of(*part, wanted, from, limit - found.len())?;
                let end = unread.as_ref().map_or(to, |unread| unread.start);
                let is_all = more.last().is_none_or(|last| last.offset < end);
                more.truncate(more.partition_point(|posting| posting.offset < end));
                self.number(&all[..number], *part, wanted, &mut more)?;
                found.extend(more);
                if !is_all && unread.is_none() {
                    break;
                }
            }
            if unread.is_some() && found.len() < limit {
                postings.unread = unread;
                break;
            }
        }
        Ok(postings)
    }

    /// The same backwards: those in `from..before`, the last one first.
    pub(crate) fn postings_before(
        &self,
        parts: &Parts,
        wanted: &Wanted,
        (from, before): (Offset, Offset),
        limit: usize,
    ) -> Result<Postings> {
        let mut postings = Postings::default();
        let found = &mut postings.found;
        let all: Vec<_> = parts.all().collect();
        for (number, part) in all.iter().enumerate().rev() {
            if found.len() >= limit || ends_before(*part, from) {
                break;
            }
            if begins_behind(*part, before) {
                continue;
            }
            let (may_have, unread) = self.glance(*part, wanted, |map| map.unread_before(before))?;
            // What cannot be read and lies below the log's start was given up.
            let unread = unread.filter(|unread| unread.end > from.max(self.log_start()));
            if may_have {
                let mut more = self.postings_of_before(*part, wanted, before, limit - found.len())?;
                let start = unread.as_ref().map_or(from, |unread| unread.end);
                more.truncate(more.partition_point(|posting| posting.offset >= start));
                self.number(&all[..number], *part, wanted, &mut more)?;
                found.extend(more);
            }
            if unread.is_some() && found.len() < limit {
                postings.unread = unread;
                break;
            }
        }
        Ok(postings)
    }

    fn postings_of(
        &self,
        part: Part<'_>,
        wanted: &Wanted,
        from: Offset,
        limit: usize,
    ) -> Result<Vec<Posting>> {
        let of_map = |map: &TermMap| {
            let Some(entry) = map.get(wanted.quick, &wanted.term) else { return Vec::new() };
            let offsets = entry.offsets();
            let first = offsets.partition_point(|offset| *offset < from);
            (first..offsets.len()).take(limit).map(|number| entry.posting(number)).collect()
        };
        match part {
            Part::Recent(map) => Ok(of_map(&read(map))),
            Part::Sealed(segment) => self.ask(segment, |terms| match terms {
                SealedTerms::Map(map) => Ok(of_map(map)),
                SealedTerms::File(file) => match file.find(wanted.hash, &wanted.term)? {
                    Some(found) => file.postings(&found, from, limit),
                    None => Ok(Vec::new()),
                },
            }),
        }
    }

    fn postings_of_before(
        &self,
        part: Part<'_>,
        wanted: &Wanted,
        before: Offset,
        limit: usize,
    ) -> Result<Vec<Posting>> {
        let of_map = |map: &TermMap| {
            let Some(entry) = map.get(wanted.quick, &wanted.term) else { return Vec::new() };
            let end = entry.offsets().partition_point(|offset| *offset < before);
            (0..end).rev().take(limit).map(|number| entry.posting(number)).collect()
        };
        match part {
            Part::Recent(map) => Ok(of_map(&read(map))),
            Part::Sealed(segment) => self.ask(segment, |terms| match terms {
                SealedTerms::Map(map) => Ok(of_map(map)),
                SealedTerms::File(file) => match file.find(wanted.hash, &wanted.term)? {
                    Some(found) => file.postings_before(&found, before, limit),
                    None => Ok(Vec::new()),
                },
            }),
        }
    }

    /// Gives records of a key from before there were revisions the ones that they count for.
    fn number(
        &self,
        older: &[Part<'_>],
        part: Part<'_>,
        wanted: &Wanted,
        postings: &mut [Posting],
    ) -> Result<()> {
        let is_numbered = postings.iter().all(|posting| posting.revision.is_some());
        if is_numbered || !is_key(&wanted.term) {
            return Ok(());
        }
        let before = self.last_seen(older.iter().copied(), wanted)?;
        self.check_doubt(before.doubt)?;
        let (_, unread) = self.glance(part, wanted, |map| map.unread_from(Offset::ZERO))?;
        if let Some(unread) = unread.filter(|unread| postings.iter().any(|one| one.offset >= unread.end)) {
            return Err(self.keys_unknown(unread));
        }
        let first = before.last().map_or(Revision::ZERO, |last| last.saturating_add(1));
        let all = self.postings_of(part, wanted, Offset::ZERO, usize::MAX)?;
        for posting in postings {
            let number = all.partition_point(|one| one.offset < posting.offset);
            posting.revision = Some(first.saturating_add(number as u64));
        }
        Ok(())
    }

    /// Where in `from..to` the records of the key begin whose revision is `revision` or higher: before which offset there is
    /// certainly none, and the offset of the first one that is known; `to` if there is none. Between them are records that
    /// cannot be read.
    pub(crate) fn offset_of_revision(
        &self,
        parts: &Parts,
        wanted: &Wanted,
        (from, to): (Offset, Offset),
        revision: Revision,
    ) -> Result<(Offset, Offset)> {
        let all: Vec<_> = parts.all().collect();
        // The first ones that cannot be read, behind the last known record of a lower revision.
        let mut in_doubt: Option<Offset> = None;
        for (number, part) in all.iter().enumerate() {
            if ends_before(*part, from) || begins_behind(*part, to) {
                continue;
            }
            let unread_from = |offset: Offset| {
                let (may_have, unread) = self.glance(*part, wanted, |map| map.unread_from(offset))?;
                Ok::<_, Error>((may_have, unread.map(|unread| unread.start.max(from))))
            };
            let (may_have, unread) = unread_from(from)?;
            let summary = if may_have { self.summary(*part, wanted)?.0 } else { None };
            let Some(summary) = summary else {
                in_doubt = in_doubt.or(unread);
                continue;
            };
            if summary.revisions.is_some_and(|(_, last)| last < revision) {
                in_doubt = unread_from(summary.last.max(from))?.1;
                continue;
            }
            let mut postings = self.postings_of(*part, wanted, from, usize::MAX)?;
            self.number(&all[..number], *part, wanted, &mut postings)?;
            let first = postings.partition_point(|posting| posting.revision < Some(revision));
            in_doubt = match first.checked_sub(1) {
                Some(lower) => unread_from(postings[lower].offset)?.1,
                None => in_doubt.or(unread),
            };
            if let Some(posting) = postings.get(first) {
                let known = posting.offset.min(to);
                let in_doubt = in_doubt.filter(|_| posting.revision != Some(revision));
                return Ok((in_doubt.map_or(known, |in_doubt| in_doubt.min(known)), known));
            }
        }
        Ok((in_doubt.map_or(to, |in_doubt| in_doubt.min(to)), to))
    }

    /// How many records in offsets `from..to` are known to have the term.
    pub(crate) fn count(&self, parts: &Parts, wanted: &Wanted, from: Offset, to: Offset) -> Result<u64> {
        let mut count = 0;
        for part in parts.all() {
            if ends_before(part, from) || begins_behind(part, to) {
                continue;
            }
            if !self.glance(part, wanted, |_| None)?.0 {
                continue;
            }
            count += match self.summary(part, wanted)?.0 {
                None => 0,
                Some(summary) if summary.first >= from && summary.last < to => summary.count,
                Some(_) => {
                    let postings = self.postings_of(part, wanted, from, usize::MAX)?;
                    postings.partition_point(|posting| posting.offset < to) as u64
                }
            };
        }
        Ok(count)
    }

    /// The offsets in `from..to` of the records whose keys begin with a prefix, in order, and up to which offset these are
    /// all. `None` if there are more than `limit`, or if to find them takes a look at every term that is in memory and there
    /// is a limit; or if the records up to there cannot be read.
    pub(crate) fn offsets_of_prefix(
        &self,
        parts: &Parts,
        prefix: &[u8],
        (from, to): (Offset, Offset),
        limit: Option<usize>,
    ) -> Result<(Option<Vec<Offset>>, Offset)> {
        let segment = parts.sealed.iter().find(|segment| segment.next_offset() > from);
        let segment = segment.filter(|segment| segment.base_offset < to);
        if segment.is_none() && limit.is_some() {
            return Ok((None, to));
        }
        let unread = match segment {
            None => parts.recent.iter().find_map(|(_, map)| read(map).unread_from(from)),
            Some(segment) => self.ask(segment, |terms| {
                Ok(match terms {
                    SealedTerms::Map(map) => map.unread_from(from),
                    SealedTerms::File(_) => None,
                })
            })?,
        };
        let to = match unread {
            Some(unread) if unread.start <= from => return Ok((None, unread.end.min(to))),
            Some(unread) => unread.start.min(to),
            None => to,
        };
        let mut offsets = Vec::new();
        let is_wanted = |offset: &Offset| *offset >= from && *offset < to;
        let of_map = |map: &TermMap, offsets: &mut Vec<Offset>| {
            let entries = map.entries().filter(|(term, _)| term.starts_with(prefix));
            entries.for_each(|(_, entry)| offsets.extend(entry.offsets().iter().copied().filter(is_wanted)));
        };
        let mut known_to = to;
        match segment {
            None => parts.recent.iter().for_each(|(_, map)| of_map(&read(map), &mut offsets)),
            Some(segment) => {
                known_to = segment.next_offset().min(to);
                let is_too_many = |count: usize| limit.is_some_and(|limit| count > limit);
                let found = self.ask(segment, |terms| {
                    let mut offsets = Vec::new();
                    match terms {
                        SealedTerms::Map(map) => of_map(map, &mut offsets),
                        SealedTerms::File(file) => {
                            let (mut keys, mut count) = (Vec::new(), 0_usize);
                            file.scan(prefix, |term, entry| {
                                let is_there = term.starts_with(prefix);
                                if is_there && entry.last >= from && entry.first < to {
                                    keys.push(term.to_vec());
                                    count += usize::try_from(entry.count).unwrap_or(usize::MAX);
                                }
                                (is_there || term < prefix) && !is_too_many(count)
                            })?;
                            if is_too_many(count) {
                                return Ok(None);
                            }
                            for key in keys {
                                if let Some(found) = file.find(hash(self.uid, &key), &key)? {
                                    let postings = file.postings(&found, from, usize::MAX)?;
                                    let found = postings.into_iter().map(|posting| posting.offset);
                                    offsets.extend(found.filter(is_wanted));
                                }
                            }
                        }
                    }
                    Ok::<_, Unusable>(Some(offsets).filter(|offsets| !is_too_many(offsets.len())))
                })?;
                let Some(found) = found else { return Ok((None, known_to)) };
                offsets = found;
            }
        }
        offsets.sort_unstable();
        Ok((Some(offsets), known_to))
    }

    /// The keys behind `after` that begin with `prefix`, in order: so many, or all. Both are terms. An error if records that
    /// were not trimmed may have others.
    pub(crate) fn keys(
        &self,
        parts: &Parts,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Vec<u8>>> {
        let is_wanted = |term: &[u8]| term.starts_with(prefix) && after.is_none_or(|after| term > after);
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let log_start = self.log_start();
        let of_map = |map: &TermMap| {
            if let Some(unread) = map.unread_from(log_start) {
                return Err(self.keys_unknown(unread));
            }
            let mut found: Vec<_> =
                map.entries().map(|(term, _)| term).filter(|term| is_wanted(term)).collect();
            if found.len() > limit {
                found.select_nth_unstable(limit);
                found.truncate(limit);
            }
            Ok(found.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>())
        };
        for part in parts.all() {
            let found = match part {
                Part::Recent(map) => of_map(&read(map))?,
                Part::Sealed(segment) => self.ask(segment, |terms| match terms {
                    SealedTerms::Map(map) => of_map(map).map_err(Unusable::Io),
                    SealedTerms::File(file) => {
                        let mut found = Vec::new();
                        file.scan(after.unwrap_or(prefix).max(prefix), |term, _| {
                            if is_wanted(term) {
                                found.push(term.to_vec());
                            }
                            // What comes behind the prefix does not begin with it.
                            found.len() < limit && (term.starts_with(prefix) || term < prefix)
                        })?;
                        Ok::<_, Unusable>(found)
                    }
                })?,
            };
            keys.extend(found);
            keys.sort_unstable();
            keys.dedup();
            keys.truncate(limit);
        }
        Ok(keys)
    }
}

fn ends_before(part: Part<'_>, offset: Offset) -> bool {
    matches!(part, Part::Sealed(segment) if segment.next_offset() <= offset)
}

fn begins_behind(part: Part<'_>, offset: Offset) -> bool {
    matches!(part, Part::Sealed(segment) if segment.base_offset >= offset)
}
