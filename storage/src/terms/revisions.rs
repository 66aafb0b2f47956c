//! The revisions of an append's records.
//!
//! They are found before the writer lock is taken, because that may need the disk, and looked at again under it: nothing
//! but the recent terms can have changed meanwhile, which are in memory.

use std::collections::HashMap;
use std::sync::Arc;

use super::batch_terms::BatchTerms;
use super::lookup::{Part, Wanted};
use super::recent::LastSeen;
use crate::error::Result;
use crate::topic::TopicInner;
use crate::types::Revision;

/// What was found.
#[derive(Debug, Default)]
pub(crate) struct Numbered {
    /// One for each record that has a key.
    pub(crate) revisions: Vec<Revision>,
    /// What the sealed segments and the past say of keys that had no numbered record among the recent ones.
    below: HashMap<Vec<u8>, LastSeen>,
    stamp: (u64, u64),
}

/// That what was found holds no more.
#[derive(Debug)]
pub(crate) struct Outdated;

impl Numbered {
    /// Looks the keys up. No lock is held.
    pub(crate) fn new(topic: &Arc<TopicInner>, terms: &BatchTerms) -> Result<Self> {
        if terms.key_count() == 0 {
            return Ok(Self::default());
        }
        topic.with_parts(|parts| {
            let mut numbered = Self { stamp: parts.stamp, ..Self::default() };
            let mut lasts: HashMap<&[u8], Option<Revision>> = HashMap::new();
            for (of_term, term) in terms.keys() {
                let next = match lasts.get(term) {
                    Some(last) => *last,
                    None => {
                        let wanted = Wanted { hash: of_term.hash, term: term.to_vec() };
                        let recent =
                            topic.terms.recent.lock().last_revision(of_term.hash, term, topic.log_start());
                        let seen = match recent.revision {
                            Some(_) => recent,
                            None => {
                                let below =
                                    topic.last_seen(parts.sealed.iter().map(Part::Sealed), &wanted)?;
                                numbered.below.insert(wanted.term, below);
                                both(recent, below)
                            }
                        };
                        seen.last()
                    }
                };
                let revision = next.map_or(Revision::ZERO, |last| last.saturating_add(1));
                lasts.insert(term, Some(revision));
                numbered.revisions.push(revision);
            }
            Ok(numbered)
        })
    }

    /// The same if all is in memory that must be known. Never looks at the disk, nor waits for somebody who does.
    pub(crate) fn in_memory(topic: &TopicInner, terms: &BatchTerms) -> Option<Self> {
        let state = topic.terms.recent.known()?;
        let mut numbered = Self { stamp: (state.version, state.gone), ..Self::default() };
        let mut lasts: HashMap<&[u8], Option<Revision>> = HashMap::new();
        for (of_term, term) in terms.keys() {
            let next = match lasts.get(term) {
                Some(last) => *last,
                None => {
                    let recent = state.last_revision(of_term.hash, term, topic.log_start());
                    match recent.revision {
                        Some(_) => recent.last(),
                        None if topic.has_nothing_below(state.from) => {
                            numbered.below.insert(term.to_vec(), LastSeen::default());
                            recent.last()
                        }
                        None => return None,
                    }
                }
            };
            let revision = next.map_or(Revision::ZERO, |last| last.saturating_add(1));
            lasts.insert(term, Some(revision));
            numbered.revisions.push(revision);
        }
        Some(numbered)
    }

    /// Looks again, under the writer lock. Says whether anything has changed.
    pub(crate) fn renew(&mut self, topic: &TopicInner, terms: &BatchTerms) -> Result<bool, Outdated> {
        if terms.key_count() == 0 {
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
        let mut lasts: HashMap<&[u8], Revision> = HashMap::new();
        let mut has_changed = false;
        for ((of_term, term), known) in terms.keys().zip(&mut self.revisions) {
            let last = match lasts.get(term) {
                Some(last) => Some(*last),
                None => {
                    let recent = state.last_revision(of_term.hash, term, topic.log_start());
                    match (recent.revision, self.below.get(term)) {
                        (Some(_), _) => recent.last(),
                        (None, Some(below)) => both(recent, *below).last(),
                        (None, None) => return Err(Outdated),
                    }
                }
            };
            let revision = last.map_or(Revision::ZERO, |last| last.saturating_add(1));
            has_changed |= revision != *known;
            *known = revision;
            lasts.insert(term, revision);
        }
        self.stamp = stamp;
        Ok(has_changed)
    }
}

/// What is seen of a key altogether.
pub(crate) fn both(recent: LastSeen, below: LastSeen) -> LastSeen {
    LastSeen {
        revision: below.revision,
        unnumbered: recent.unnumbered + below.unnumbered,
        doubt: recent.doubt.and(below.doubt),
    }
}
