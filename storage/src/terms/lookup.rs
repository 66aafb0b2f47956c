//! A term over all of a topic: its sealed segments, and what is in memory.

use std::sync::{Arc, RwLock};

use super::batch_terms::is_key;
use super::file::Unusable;
use super::map::TermMap;
use super::recent::{Filling, LastSeen, read};
use super::sealed::SealedTerms;
use crate::error::{Error, Result};
use crate::format::terms::hash::hash;
use crate::format::terms::postings::Posting;
use crate::segment::Segment;
use crate::topic::TopicInner;
use crate::types::{Offset, Revision};

/// A term to look for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) hash: u64,
    pub(crate) term: Vec<u8>,
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
                let state = self.terms.recent.lock();
                let maps = state.maps.iter().map(|(base, map)| (*base, Arc::clone(map)));
                (state.from, maps.collect(), (state.version, state.gone))
            };
            let segments = self.segments();
            let sealed: Vec<_> =
                segments.iter().filter(|segment| segment.base_offset < from).cloned().collect();
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

    /// Whether a part may have records with the term: asks only the memory, once the part was asked before.
    fn may_have(&self, part: Part<'_>, wanted: &Wanted) -> Result<bool> {
        match part {
            Part::Recent(_) => Ok(true),
            Part::Sealed(segment) => self.ask(segment, |terms| {
                Ok(match terms {
                    SealedTerms::File(file) => file.may_have(wanted.hash),
                    SealedTerms::Map(_) => true,
                })
            }),
        }
    }

    fn summary(&self, part: Part<'_>, wanted: &Wanted) -> Result<Option<Summary>> {
        let of_map = |map: &TermMap| {
            map.get(wanted.hash, &wanted.term).map(|entry| {
                let (first, last) = (entry.posting(0), entry.last());
                Summary {
                    count: entry.offsets().len() as u64,
                    first: first.offset,
                    last: last.offset,
                    revisions: first.revision.zip(last.revision),
                }
            })
        };
        match part {
            Part::Recent(map) => Ok(of_map(&read(map))),
            Part::Sealed(segment) => self.ask(segment, |terms| {
                Ok(match terms {
                    SealedTerms::Map(map) => of_map(map),
                    SealedTerms::File(file) => file.find(wanted.hash, &wanted.term)?.map(|found| Summary {
                        count: found.entry.count,
                        first: found.entry.first,
                        last: found.entry.last,
                        revisions: found.entry.revisions,
                    }),
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
        let mut unnumbered = 0;
        for part in parts.rev() {
            if let Some(summary) = self.summary(part, wanted)? {
                match summary.revisions {
                    Some((_, last)) => return Ok(LastSeen { revision: Some(last), unnumbered }),
                    None => unnumbered += summary.count,
                }
            }
        }
        if self.is_in_memory() {
            return Ok(LastSeen { revision: None, unnumbered });
        }
        Ok(LastSeen { revision: self.past_revision(wanted.hash, &wanted.term)?, unnumbered })
    }

    /// The postings of a term in offsets `from..to`, in order: so many, or all.
    pub(crate) fn postings(
        &self,
        parts: &Parts,
        wanted: &Wanted,
        (from, to): (Offset, Offset),
        limit: usize,
    ) -> Result<Vec<Posting>> {
        let mut postings = Vec::new();
        let all: Vec<_> = parts.all().collect();
        for (number, part) in all.iter().enumerate() {
            if postings.len() >= limit {
                break;
            }
            if ends_before(*part, from) || !self.may_have(*part, wanted)? {
                continue;
            }
            let mut more = self.postings_of(*part, wanted, from, limit - postings.len())?;
            self.number(&all[..number], *part, wanted, &mut more)?;
            let end = more.partition_point(|posting| posting.offset < to);
            postings.extend_from_slice(&more[..end]);
            if end < more.len() {
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
    ) -> Result<Vec<Posting>> {
        let mut postings = Vec::new();
        let all: Vec<_> = parts.all().collect();
        for (number, part) in all.iter().enumerate().rev() {
            if postings.len() >= limit || ends_before(*part, from) {
                break;
            }
            if begins_behind(*part, before) || !self.may_have(*part, wanted)? {
                continue;
            }
            let mut more = self.postings_of_before(*part, wanted, before, limit - postings.len())?;
            self.number(&all[..number], *part, wanted, &mut more)?;
            postings.extend(more.into_iter().take_while(|posting| posting.offset >= from));
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
            let Some(entry) = map.get(wanted.hash, &wanted.term) else { return Vec::new() };
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
            let Some(entry) = map.get(wanted.hash, &wanted.term) else { return Vec::new() };
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
        let before = self.last_seen(older.iter().copied(), wanted)?.last();
        let first = before.map_or(Revision::ZERO, |last| last.saturating_add(1));
        let all = self.postings_of(part, wanted, Offset::ZERO, usize::MAX)?;
        for posting in postings {
            let number = all.partition_point(|one| one.offset < posting.offset);
            posting.revision = Some(first.saturating_add(number as u64));
        }
        Ok(())
    }

    /// The first offset in `from..to` of a record of the key whose revision is `revision` or higher; `to` if there is none.
    pub(crate) fn offset_of_revision(
        &self,
        parts: &Parts,
        wanted: &Wanted,
        (from, to): (Offset, Offset),
        revision: Revision,
    ) -> Result<Offset> {
        let all: Vec<_> = parts.all().collect();
        for (number, part) in all.iter().enumerate() {
            if ends_before(*part, from) || !self.may_have(*part, wanted)? {
                continue;
            }
            let Some(summary) = self.summary(*part, wanted)? else { continue };
            if summary.revisions.is_some_and(|(_, last)| last < revision) {
                continue;
            }
            let mut postings = self.postings_of(*part, wanted, from, usize::MAX)?;
            self.number(&all[..number], *part, wanted, &mut postings)?;
            let first = postings.partition_point(|posting| posting.revision < Some(revision));
            if let Some(posting) = postings.get(first) {
                return Ok(posting.offset.min(to));
            }
        }
        Ok(to)
    }

    /// How many records in offsets `from..to` have the term.
    pub(crate) fn count(&self, parts: &Parts, wanted: &Wanted, from: Offset, to: Offset) -> Result<u64> {
        let mut count = 0;
        for part in parts.all() {
            if ends_before(part, from) || begins_behind(part, to) || !self.may_have(part, wanted)? {
                continue;
            }
            count += match self.summary(part, wanted)? {
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
    /// is a limit.
    pub(crate) fn offsets_of_prefix(
        &self,
        parts: &Parts,
        prefix: &[u8],
        (from, to): (Offset, Offset),
        limit: Option<usize>,
    ) -> Result<(Option<Vec<Offset>>, Offset)> {
        let mut offsets = Vec::new();
        let is_wanted = |offset: &Offset| *offset >= from && *offset < to;
        let of_map = |map: &TermMap, offsets: &mut Vec<Offset>| {
            let entries = map.entries().filter(|(term, _)| term.starts_with(prefix));
            entries.for_each(|(_, entry)| offsets.extend(entry.offsets().iter().copied().filter(is_wanted)));
        };
        let mut known_to = to;
        let segment = parts.sealed.iter().find(|segment| segment.next_offset() > from);
        match segment.filter(|segment| segment.base_offset < to) {
            None if limit.is_some() => return Ok((None, to)),
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

    /// The keys behind `after` that begin with `prefix`, in order: so many, or all. Both are terms.
    pub(crate) fn keys(
        &self,
        parts: &Parts,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Vec<u8>>> {
        let is_wanted = |term: &[u8]| term.starts_with(prefix) && after.is_none_or(|after| term > after);
        let mut keys: Vec<Vec<u8>> = Vec::new();
        let of_map = |map: &TermMap| {
            let mut found: Vec<_> =
                map.entries().map(|(term, _)| term).filter(|term| is_wanted(term)).collect();
            if found.len() > limit {
                found.select_nth_unstable(limit);
                found.truncate(limit);
            }
            found.into_iter().map(<[u8]>::to_vec).collect::<Vec<_>>()
        };
        for part in parts.all() {
            let found = match part {
                Part::Recent(map) => of_map(&read(map)),
                Part::Sealed(segment) => self.ask(segment, |terms| match terms {
                    SealedTerms::Map(map) => Ok(of_map(map)),
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
