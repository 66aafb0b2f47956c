//! Conditions of an append: what must hold for it to be applied.
//!
//! All are checked under the store's writer lock, in the same order in which appends happen: what holds then holds right
//! before the append's records. What needs the disk is looked up before the lock is taken; under it only that is looked at
//! which has come since, in memory ([`Check::renew`]).
//!
//! Against what removes records their meaning is this:
//!
//! - A revision counts every record that a key ever had, also those that were trimmed, retained away or compacted: it never
//!   goes back. So `NoStream` holds only as long as no record ever had the key.
//! - `NoMatch` asks about records that are there. One that reaches below the log's start is refused
//!   ([`Error::ConditionTrimmed`]): what was there is not known. A record that compaction took out does not match; for each
//!   one a later record of its key is there, or the key was deleted.

use std::fmt;
use std::sync::Arc;

use crate::cursor::Source;
use crate::error::{Error, Result};
use crate::filter::{Filter, Search};
use crate::format::batch::{Batch, BatchHeader};
use crate::format::terms::{Kind, hash::hash, term};
use crate::terms::lookup::{Part, Parts, Wanted};
use crate::terms::recent::LastSeen;
use crate::terms::revisions::{Outdated, both};
use crate::topic::TopicInner;
use crate::types::{Offset, Revision, TopicName};

/// What must hold for an append to be applied. See [`Append::require`](crate::Append::require).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The last revision of a key is as expected.
    Revision {
        /// The key: one that the append writes, or another.
        key: Vec<u8>,
        /// What is expected.
        expected: ExpectedRevision,
    },
    /// The topic's next offset is this.
    NextOffset(Offset),
    /// No record matches behind an offset.
    NoMatch {
        /// Which records would contradict.
        filter: Filter,
        /// Those at this offset and before were known. None: none were.
        after_offset: Option<Offset>,
    },
}

/// What the last revision of a key should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpectedRevision {
    /// This one.
    Exact(Revision),
    /// There is none: no record ever had the key.
    NoStream,
    /// There is one: some record had the key.
    Exists,
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedCondition {
    /// Its place among the conditions of the append.
    pub number: usize,
    /// The topic that it is about.
    pub topic: TopicName,
    /// What was expected, and what is there.
    pub check: FailedCheck,
}

/// What was expected, and what is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FailedCheck {
    /// A key has another last revision.
    Revision {
        /// The key.
        key: Vec<u8>,
        /// What was expected.
        expected: ExpectedRevision,
        /// What there is.
        actual: Option<Revision>,
        /// The first record that contradicts, if there is one that can be read.
        offset: Option<Offset>,
    },
    /// The topic has another next offset.
    NextOffset {
        /// What was expected.
        expected: Offset,
        /// What it is.
        actual: Offset,
    },
    /// A record matches.
    Match {
        /// The first one.
        offset: Offset,
    },
}

impl FailedCheck {
    /// The first record that contradicts, if there is one that can be read.
    pub fn first_conflicting_offset(&self) -> Option<Offset> {
        match self {
            Self::Revision { offset, .. } => *offset,
            Self::NextOffset { expected, actual } => Some(*expected).filter(|expected| expected < actual),
            Self::Match { offset } => Some(*offset),
        }
    }
}

impl fmt::Display for FailedCondition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "condition {} on topic {}: ", self.number, self.topic)?;
        match &self.check {
            FailedCheck::Revision { key, expected, actual, offset: _ } => {
                write!(f, "key \"{}\" should have ", key.escape_ascii())?;
                match expected {
                    ExpectedRevision::Exact(revision) => write!(f, "revision {revision}"),
                    ExpectedRevision::NoStream => f.write_str("no record"),
                    ExpectedRevision::Exists => f.write_str("a record"),
                }?;
                match actual {
                    Some(actual) => write!(f, " and has revision {actual}"),
                    None => f.write_str(" and has none"),
                }
            }
            FailedCheck::NextOffset { expected, actual } => {
                write!(f, "the next offset should be {expected} and is {actual}")
            }
            FailedCheck::Match { offset } => write!(f, "the record at offset {offset} matches"),
        }
    }
}

/// A condition on its way to being checked.
#[derive(Debug)]
pub(crate) struct Check {
    number: usize,
    source: Source,
    condition: Condition,
    known: Known,
}

/// What was looked up before the writer lock was taken, as long as no recent terms went since.
#[derive(Debug)]
enum Known {
    Nothing,
    /// What sealed segments and the past say of the key.
    Below {
        wanted: Wanted,
        seen: LastSeen,
        gone: u64,
    },
    /// The first match before `to`.
    Searched {
        first: Option<Offset>,
        to: Offset,
        gone: u64,
    },
}

impl Check {
    pub(crate) fn new(number: usize, source: Source, condition: Condition) -> Result<Self> {
        if let Condition::NoMatch { filter, .. } = &condition {
            filter.check()?;
        }
        Ok(Self { number, source, condition, known: Known::Nothing })
    }

    pub(crate) fn topic(&self) -> &Arc<TopicInner> {
        &self.source.inner
    }

    /// Looks up what needs the disk. No lock is held.
    pub(crate) fn look_up(&mut self) -> Result<()> {
        let topic = Arc::clone(self.topic());
        topic.check_alive()?;
        self.known = match &self.condition {
            Condition::NextOffset(_) => Known::Nothing,
            Condition::Revision { key, .. } => {
                let term = term(Kind::Key, key);
                let wanted = Wanted { hash: hash(topic.uid, &term), term };
                topic.with_parts(|parts| {
                    let seen = topic.last_seen(parts.sealed.iter().map(Part::Sealed), &wanted)?;
                    Ok(Known::Below { wanted: wanted.clone(), seen, gone: parts.stamp.1 })
                })?
            }
            Condition::NoMatch { filter, .. } => {
                let from = self.first_offset();
                self.check_start(from)?;
                topic.gather()?;
                let (gone, to) = (topic.terms.recent.lock().gone, topic.log_end());
                let first = match Search::new(&topic, filter).first(&self.source, from, to) {
                    // Trimmed meanwhile.
                    Err(Error::OffsetTrimmed { .. }) => return self.check_start(from),
                    first => first?,
                };
                Known::Searched { first, to, gone }
            }
        };
        Ok(())
    }

    /// The first offset that a query is about.
    fn first_offset(&self) -> Offset {
        match &self.condition {
            Condition::NoMatch { after_offset: Some(after), .. } => after.saturating_add(1),
            _ => Offset::ZERO,
        }
    }

    fn check_start(&self, offset: Offset) -> Result<()> {
        let topic = self.topic();
        let log_start_offset = topic.log_start();
        if offset < log_start_offset {
            let (number, topic) = (self.number, topic.name.clone());
            return Err(Error::ConditionTrimmed { number, topic, offset, log_start_offset });
        }
        Ok(())
    }

    /// Checks it under the writer lock: answers what does not hold, or that something must be looked up again.
    pub(crate) fn renew(&self) -> Result<Result<Option<FailedCondition>>, Outdated> {
        let topic = self.topic();
        let failed = match &self.condition {
            Condition::NextOffset(expected) => {
                let (expected, actual) = (*expected, topic.head().next_offset);
                (expected != actual).then_some(FailedCheck::NextOffset { expected, actual })
            }
            Condition::Revision { key, expected } => {
                let actual = self.last_revision()?;
                let holds = match expected {
                    ExpectedRevision::Exact(revision) => actual == Some(*revision),
                    ExpectedRevision::NoStream => actual.is_none(),
                    ExpectedRevision::Exists => actual.is_some(),
                };
                let (key, expected) = (key.clone(), *expected);
                (!holds).then_some(FailedCheck::Revision { key, expected, actual, offset: None })
            }
            Condition::NoMatch { filter, .. } => {
                if let Err(error) = self.check_start(self.first_offset()) {
                    return Ok(Err(error));
                }
                match self.first_match(filter)? {
                    Ok(first) => first.map(|offset| FailedCheck::Match { offset }),
                    Err(error) => return Ok(Err(error)),
                }
            }
        };
        let named = |check| FailedCondition { number: self.number, topic: topic.name.clone(), check };
        Ok(Ok(failed.map(named)))
    }

    /// Finds the record that a failed check is about, for the one who is told. No lock is held.
    pub(crate) fn locate(&self, failed: &mut FailedCheck) -> Result<()> {
        let FailedCheck::Revision { expected, actual, offset, .. } = failed else { return Ok(()) };
        let Known::Below { wanted, .. } = &self.known else { return Ok(()) };
        let first = match expected {
            ExpectedRevision::Exact(revision) => revision.saturating_add(1),
            ExpectedRevision::NoStream => Revision::ZERO,
            ExpectedRevision::Exists => return Ok(()),
        };
        if actual.is_none_or(|actual| actual < first) {
            return Ok(());
        }
        let topic = self.topic();
        let bounds = (topic.log_start(), topic.log_end());
        let found = topic.with_parts(|parts| topic.offset_of_revision(parts, wanted, bounds, first))?;
        *offset = Some(found).filter(|found| *found < bounds.1);
        Ok(())
    }

    fn last_revision(&self) -> Result<Option<Revision>, Outdated> {
        let Known::Below { wanted, seen, gone } = &self.known else { return Err(Outdated) };
        let recent = &self.topic().terms.recent;
        let state = recent.lock();
        if state.gone != *gone || !recent.is_known() {
            return Err(Outdated);
        }
        let of_recent = state.last_revision(wanted.hash, &wanted.term);
        Ok(if of_recent.revision.is_some() { of_recent.last() } else { both(of_recent, *seen).last() })
    }

    /// The first match: what was found before, or among the records that have come since, which are in memory.
    fn first_match(&self, filter: &Filter) -> Result<Result<Option<Offset>>, Outdated> {
        let Known::Searched { first, to, gone } = &self.known else { return Err(Outdated) };
        let topic = self.topic();
        let end = topic.head().next_offset;
        if first.is_some() || end == *to {
            return Ok(Ok(*first));
        }
        let recent = {
            let state = topic.terms.recent.lock();
            if state.gone != *gone || !topic.terms.recent.is_known() {
                return Err(Outdated);
            }
            state.maps.iter().map(|(base, map)| (*base, Arc::clone(map))).collect()
        };
        let parts = Parts { sealed: Vec::new(), recent, stamp: (0, *gone) };
        let mut search = Search::new(topic, filter);
        // The log may have ended before the first offset that is asked about.
        let mut from = (*to).max(self.first_offset());
        loop {
            let offset = match search.candidate(topic, &parts, from, end) {
                Ok(Some(offset)) => offset,
                outcome => return Ok(outcome),
            };
            if !search.reads_records() {
                return Ok(Ok(Some(offset)));
            }
            // If it was flushed by now it is to be read outside of the lock.
            let found = topic.tail().find(offset).filter(|batch| batch.base_offset <= offset).cloned();
            let found = found.ok_or(Outdated)?;
            let header =
                BatchHeader::decode(&found.bytes, topic.seed).expect("the tail holds intact batches only");
            let Ok(batch) = Batch::trusted(header, found.bytes) else { return Err(Outdated) };
            let matching = batch.records().flatten().find(|(at, view)| *at >= offset && filter.matches(view));
            if let Some((offset, _)) = matching {
                return Ok(Ok(Some(offset)));
            }
            from = batch.next_offset();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Record, Store};

    /// The log had ended before the first offset of the question when it was looked at first. Then everything that came
    /// meanwhile was taken for an answer.
    #[test]
    fn a_match_at_the_offset_that_was_known_is_none_although_it_came_after_the_first_look() {
        let dir = tempfile::tempdir().unwrap();
        let topic = Store::open(dir.path()).unwrap().topic_or_create("seats").unwrap();
        let filter = Filter::new().tags(["seat-7"]);
        let condition = Condition::NoMatch { filter, after_offset: Some(Offset(0)) };
        let mut check = Check::new(0, topic.source(), condition).unwrap();
        check.look_up().unwrap();
        topic.append(&[Record::new("taken").with_tag("seat-7")]).unwrap();
        assert_eq!(check.renew().unwrap().unwrap(), None);
        topic.append(&[Record::new("taken twice").with_tag("seat-7")]).unwrap();
        let failed = check.renew().unwrap().unwrap().unwrap();
        assert_eq!(failed.check, FailedCheck::Match { offset: Offset(1) });
    }
}
