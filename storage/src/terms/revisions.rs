//! The revisions of an append's records.
//!
//! They are found before the writer lock is taken, because that may need the disk, and looked at again under it: nothing
//! but the recent terms can have changed meanwhile, which are in memory.

use std::sync::Arc;

use super::batch_terms::BatchTerms;
use super::lookup::{Part, Wanted};
use super::recent::{LastSeen, State};
use crate::error::Result;
use crate::topic::TopicInner;
use crate::types::{Offset, Revision};

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Numbered {
    /// One for each record that has a key.
    pub(crate) revisions: Vec<Revision>,
    pub(crate) places: Places,
    /// What the sealed segments and the past say of keys that had no numbered record among the recent ones: by the numbers
    /// of their terms, which rise.
    below: Vec<(u32, LastSeen)>,
    stamp: (u64, u64),
}

/// Where in the map of a segment the entries of an append's terms are, as far as that is known.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Which map it is: the segment's, and how often maps had gone by then. One that was gathered anew has other entries.
    map: Option<(Offset, u64)>,
    entries: Vec<Option<u32>>,
}

impl Places {
    /// Those in this map, by the numbers of the terms.
    pub(crate) fn of(&mut self, map: (Offset, u64), terms: &BatchTerms) -> &mut [Option<u32>] {
        if self.map != Some(map) {
            self.map = Some(map);
            self.entries.clear();
        }
        self.entries.resize(terms.count(), None);
        &mut self.entries
    }
}

/// That what was found holds no more.
#[derive(Debug)]
pub(crate) struct Outdated;

impl Numbered {
    /// Looks the keys up. No lock is held.
    pub(crate) fn new(topic: &Arc<TopicInner>, terms: &BatchTerms) -> Result<Self> {
        if terms.keys().is_empty() {
            return Ok(Self::default());
        }
        topic.with_parts(|parts| {
            let mut numbered = Self { stamp: parts.stamp, ..Self::default() };
            numbered.count(terms, |below, places| {
                let mut last = {
                    let state = topic.terms.recent.lock();
                    recent(&state, topic, terms, places)
                };
                for (number, seen) in last.iter_mut().enumerate() {
                    let number = u32::try_from(number).expect("as the numbers of terms");
                    if let Some(of_recent) = seen.filter(|seen| seen.revision.is_none()) {
                        let (hash, term) = terms.term(number);
                        let wanted = Wanted { hash, term: term.to_vec() };
                        let of_sealed = topic.last_seen(parts.sealed.iter().map(Part::Sealed), &wanted)?;
                        below.push((number, of_sealed));
                        *seen = Some(both(of_recent, of_sealed));
                    }
                }
                Ok(last)
            })?;
            Ok(numbered)
        })
    }

    /// The same if all is in memory that must be known. Never looks at the disk, nor waits for somebody who does.
    pub(crate) fn in_memory(topic: &TopicInner, terms: &BatchTerms) -> Option<Self> {
        let state = topic.terms.recent.known()?;
        let mut numbered = Self { stamp: (state.version, state.gone), ..Self::default() };
        let counted = numbered.count(terms, |below, places| {
            let last = recent(&state, topic, terms, places);
            let is_new = |seen: &Option<LastSeen>| seen.is_some_and(|seen| seen.revision.is_none());
            if last.iter().any(is_new) && !topic.has_nothing_below(state.from) {
                return Err(Outdated);
            }
            let new = (0..).zip(&last).filter(|(_, seen)| is_new(seen));
            below.extend(new.map(|(number, _)| (number, LastSeen::default())));
            Ok(last)
        });
        counted.is_ok().then_some(numbered)
    }

    /// Looks again, under the writer lock. Says whether anything has changed.
    pub(crate) fn renew(&mut self, topic: &TopicInner, terms: &BatchTerms) -> Result<bool, Outdated> {
        if terms.keys().is_empty() {
            return Ok(false);
        }
        let state = topic.terms.recent.lock();
        let stamp = (state.version, state.gone);
        if stamp == self.stamp {
            return Ok(false);
        }
        if stamp.1 != self.stamp.1 {
            return Err(Outdated);
        }
        let has_changed = self.count(terms, |below, places| {
            let mut last = recent(&state, topic, terms, places);
            for (number, seen) in (0..).zip(&mut last) {
                if let Some(of_recent) = seen.filter(|seen| seen.revision.is_none()) {
                    let known = below.binary_search_by_key(&number, |(number, _)| *number);
                    *seen = Some(both(of_recent, below[known.map_err(|_| Outdated)?].1));
                }
            }
            Ok(last)
        })?;
        self.stamp = stamp;
        Ok(has_changed)
    }

    /// Counts on from what `look` finds of each key. Says whether anything has changed.
    fn count<E>(
        &mut self,
        terms: &BatchTerms,
        look: impl FnOnce(&mut Vec<(u32, LastSeen)>, &mut Places) -> Result<Vec<Option<LastSeen>>, E>,
    ) -> Result<bool, E> {
        let found = look(&mut self.below, &mut self.places)?;
        let mut lasts: Vec<_> = found.into_iter().map(|seen| seen.and_then(LastSeen::last)).collect();
        let mut has_changed = self.revisions.len() != terms.keys().len();
        self.revisions.resize(terms.keys().len(), Revision::ZERO);
        for (one, known) in terms.keys().iter().zip(&mut self.revisions) {
            let last = &mut lasts[one.term as usize];
            let revision = last.map_or(Revision::ZERO, |last| last.saturating_add(1));
            *last = Some(revision);
            has_changed |= revision != *known;
            *known = revision;
        }
        Ok(has_changed)
    }
}

/// What the recent terms say of each key of an append, by the numbers of the terms; and where the keys' entries are.
fn recent(
    state: &State,
    topic: &TopicInner,
    terms: &BatchTerms,
    places: &mut Places,
) -> Vec<Option<LastSeen>> {
    let look = state.look(topic.log_start());
    let mut found = vec![None; terms.count()];
    *places = Places::default();
    let Some(segment) = state.last_base() else {
        terms.keys().iter().for_each(|one| found[one.term as usize] = Some(LastSeen::default()));
        return found;
    };
    let places = places.of((segment, state.gone), terms);
    for one in terms.keys() {
        let number = one.term as usize;
        if found[number].is_none() {
            let (hash, term) = terms.term(one.term);
            let (seen, place) = look.last_revision(hash, term);
            (found[number], places[number]) = (Some(seen), place);
        }
    }
    found
}

/// What is seen of a key altogether.
pub(crate) fn both(recent: LastSeen, below: LastSeen) -> LastSeen {
    LastSeen {
        revision: below.revision,
        unnumbered: recent.unnumbered + below.unnumbered,
        doubt: recent.doubt.and(below.doubt),
    }
}
