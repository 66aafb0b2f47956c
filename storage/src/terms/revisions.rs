//! The revisions of an append's records.
//!
//! They are found before the writer lock is taken, because that may need the disk, and looked at again under it: nothing
//! but the recent terms can have changed meanwhile, which are in memory.

use std::sync::Arc;

use super::batch_terms::Keys;
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
    /// What the sealed segments and the past say of keys that had no numbered record among the recent ones, nor in a segment
    /// that was settled lately: by the numbers of their terms, which rise.
    below: Vec<(u32, LastSeen)>,
    stamp: (u64, u64),
}

/// Where in the map of a segment the entries of an append's keys are, as far as that is known.
#[derive(Debug, Default)]
pub(crate) struct Places {
    /// Which map it is: the segment's, and how often maps had gone by then. One that was gathered anew has other entries.
    map: Option<(Offset, u64)>,
    entries: Vec<Option<u32>>,
}

impl Places {
    /// Those in this map, by the numbers of the keys.
    pub(crate) fn of(&mut self, map: (Offset, u64), keys: &Keys) -> &mut [Option<u32>] {
        if self.map != Some(map) {
            self.map = Some(map);
            self.entries.clear();
        }
        self.entries.resize(keys.count(), None);
        &mut self.entries
    }
}

/// That what was found holds no more.
#[derive(Debug)]
pub(crate) struct Outdated;

impl Numbered {
    /// Looks the keys up. No lock is held.
    pub(crate) fn new(topic: &Arc<TopicInner>, keys: &Keys) -> Result<Self> {
        if keys.uses().is_empty() {
            return Ok(Self::default());
        }
        topic.with_parts(|parts| {
            let mut numbered = Self { stamp: parts.stamp, ..Self::default() };
            let mut lasts = {
                let state = topic.terms.recent.lock();
                numbered.look(&state, topic, keys)
            };
            for (number, seen) in lasts.iter_mut().enumerate().filter(|(_, seen)| seen.revision.is_none()) {
                let wanted = Wanted::new(topic.uid, keys.term(number).1.to_vec());
                let below = topic.last_seen(parts.sealed.iter().map(Part::Sealed), &wanted)?;
                numbered.below.push((index(number), below));
                *seen = both(*seen, below);
            }
            numbered.count(keys, &lasts);
            Ok(numbered)
        })
    }

    /// The same if all is in memory that must be known. Never looks at the disk, nor waits for somebody who does.
    pub(crate) fn in_memory(topic: &TopicInner, keys: &Keys) -> Option<Self> {
        let state = topic.terms.recent.known()?;
        let mut numbered = Self { stamp: (state.version, state.gone), ..Self::default() };
        let lasts = numbered.look(&state, topic, keys);
        let new = lasts.iter().enumerate().filter(|(_, seen)| seen.revision.is_none());
        numbered.below.extend(new.map(|(number, _)| (index(number), LastSeen::default())));
        if !numbered.below.is_empty() && !topic.has_nothing_below(state.from) {
            return None;
        }
        drop(state);
        numbered.count(keys, &lasts);
        Some(numbered)
    }

    /// Looks again, under the writer lock. Says whether anything has changed.
    pub(crate) fn renew(&mut self, topic: &TopicInner, keys: &Keys) -> Result<bool, Outdated> {
        if keys.uses().is_empty() {
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
        let mut lasts = self.look(&state, topic, keys);
        drop(state);
        for (number, seen) in lasts.iter_mut().enumerate().filter(|(_, seen)| seen.revision.is_none()) {
            let known = self.below.binary_search_by_key(&index(number), |(number, _)| *number);
            *seen = both(*seen, self.below[known.map_err(|_| Outdated)?].1);
        }
        self.stamp = stamp;
        Ok(self.count(keys, &lasts))
    }

    /// What the recent terms say of each key, by the numbers of the terms. Notes where the keys' entries are.
    fn look(&mut self, state: &State, topic: &TopicInner, keys: &Keys) -> Vec<LastSeen> {
        let look = state.look(topic.log_start());
        self.places = Places::default();
        let segment = state.last_base();
        let places = segment.map(|segment| self.places.of((segment, state.gone), keys));
        let mut seen = Vec::with_capacity(keys.count());
        match places {
            None => seen.extend(keys.terms().map(|(hash, term)| look.last_revision(hash, term).0)),
            Some(places) => {
                for ((hash, term), place) in keys.terms().zip(places) {
                    let (last, number) = look.last_revision(hash, term);
                    *place = number;
                    seen.push(last);
                }
            }
        }
        seen
    }

    /// Counts on from the last records of the keys. Says whether anything has changed.
    fn count(&mut self, keys: &Keys, lasts: &[LastSeen]) -> bool {
        let next = |last: LastSeen| last.last().map_or(Revision::ZERO, |last| last.saturating_add(1));
        let mut next: Vec<_> = lasts.iter().map(|last| next(*last)).collect();
        let mut has_changed = self.revisions.len() != keys.uses().len();
        self.revisions.resize(keys.uses().len(), Revision::ZERO);
        for (one, known) in keys.uses().iter().zip(&mut self.revisions) {
            let next = &mut next[one.key as usize];
            has_changed |= next != known;
            *known = *next;
            *next = next.saturating_add(1);
        }
        has_changed
    }
}

fn index(number: usize) -> u32 {
    u32::try_from(number).expect("as the numbers of terms")
}

/// What is seen of a key altogether.
pub(crate) fn both(recent: LastSeen, below: LastSeen) -> LastSeen {
    LastSeen {
        revision: below.revision,
        unnumbered: recent.unnumbered + below.unnumbered,
        doubt: recent.doubt.and(below.doubt),
    }
}
