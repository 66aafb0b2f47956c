//! Conditions of an append: what must hold for it to be applied.
//!
//! All are checked under the store's writer lock, in the same order in which appends happen: what holds then holds right
//! before the append's records. What needs the disk is looked up before the lock is taken; under it only that is looked at
//! which has come since, in memory ([`Check::renew`]).
//!
//! That one does not hold is told when everything that was written by then is synced, whatever durability the append asked
//! for: it may rest on a record that a power cut would take away, and whoever was told could not find it then. That all hold
//! needs no such wait: the append stands behind what they rest on in the journal, and is not there without it.
//!
//! Against what removes records their meaning is this:
//!
//! - A revision counts every record that a key ever had, also those that were trimmed, retained away or compacted: it never
//!   goes back. So `NoStream` holds only as long as no record ever had the key.
//! - Of records that cannot be read, and whose keys no index knows any more, nothing is guessed: an append with a condition
//!   that they may decide is refused ([`Error::KeysUnknown`], or [`Error::Corrupt`] as a reader would get it). What other records
//!   decide is told as ever: they can only make a revision higher.
//! - `NoMatch` asks about records that are there. One that reaches below the log's start is refused
//!   ([`Error::ConditionTrimmed`]): what was there is not known. A record that compaction took out does not match; for each
//!   one a later record of its key is there, or the key was deleted.

use std::fmt;
use std::sync::Arc;

use crate::Topic;
use crate::cursor::Source;
use crate::error::{Error, Result};
use crate::filter::{Filter, Search};
use crate::format::batch::{Batch, BatchHeader};
use crate::format::terms::{Kind, term};
use crate::terms::lookup::{Part, Parts, Wanted};
use crate::terms::map::Doubt;
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
        /// Those at this offset and before were known. None: none were. One that is not written yet counts as known: what
        /// comes up to it does not contradict.
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
    /// Whatever there is: always holds. Nothing is looked up for it, so it holds also where nobody knows what there is.
    Any,
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
        /// What there is; at least, where records cannot be read that may have the key.
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
                    ExpectedRevision::Any => f.write_str("any record or none"),
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

/// Records that are looked at under the writer lock for one condition, because they came since it was looked up.
const RECORDS_UNDER_LOCK_MAX: u64 = 1024;
/// Bytes of those, where the indexes do not tell.
const BYTES_UNDER_LOCK_MAX: usize = 1 << 20;

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
        /// Not looked up if a recent record has a revision, or one in a segment that was settled lately.
        seen: Option<LastSeen>,
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

    /// All conditions of an append.
    pub(crate) fn all(conditions: Vec<(Topic, Condition)>) -> Result<Vec<Self>> {
        let numbered = conditions.into_iter().enumerate();
        numbered.map(|(number, (topic, condition))| Self::new(number, topic.source(), condition)).collect()
    }

    pub(crate) fn topic(&self) -> &Arc<TopicInner> {
        &self.source.inner
    }

    /// Looks up what needs the disk. No lock is held.
    pub(crate) fn look_up(&mut self) -> Result<()> {
        let topic = Arc::clone(self.topic());
        topic.check_alive()?;
        self.known = match &self.condition {
            Condition::NextOffset(_) | Condition::Revision { expected: ExpectedRevision::Any, .. } => {
                Known::Nothing
            }
            Condition::Revision { key, .. } => {
                let term = term(Kind::Key, key);
                let wanted = Wanted::new(topic.uid, term);
                topic.with_parts(|parts| {
                    let seen = topic.last_seen(parts.sealed.iter().map(Part::Sealed), &wanted)?;
                    Ok(Known::Below { wanted: wanted.clone(), seen: Some(seen), gone: parts.stamp.1 })
                })?
            }
            Condition::NoMatch { filter, .. } => {
                let from = self.first_offset();
                self.check_start(from)?;
                topic.gather()?;
                let (gone, to) = (topic.terms.recent.lock().gone, topic.log_end());
                let begin = match &self.known {
                    // What does not match never will.
                    Known::Searched { first: None, to, .. } => from.max(*to),
                    _ => from,
                };
                let first = match Search::new(&topic, filter).first(&self.source, begin, to) {
                    // Trimmed meanwhile.
                    Err(Error::OffsetTrimmed { .. }) => return self.check_start(from),
                    first => first?,
                };
                Known::Searched { first, to, gone }
            }
        };
        Ok(())
    }

    /// Whether there is nothing to look up, or it was.
    pub(crate) fn is_looked_up(&self) -> bool {
        let needs_no_look = matches!(
            self.condition,
            Condition::NextOffset(_) | Condition::Revision { expected: ExpectedRevision::Any, .. }
        );
        needs_no_look || !matches!(self.known, Known::Nothing)
    }

    /// The same as [`look_up`](Self::look_up) if no disk is needed for it; says whether it is known now. Never waits for
    /// somebody who looks at the disk.
    pub(crate) fn look_up_in_memory(&mut self) -> bool {
        let topic = Arc::clone(self.topic());
        let known = match &self.condition {
            Condition::NextOffset(_) | Condition::Revision { expected: ExpectedRevision::Any, .. } => {
                return true;
            }
            // There is no bound on what is to be looked at.
            Condition::NoMatch { .. } => return false,
            Condition::Revision { key, .. } => topic.terms.recent.known().and_then(|state| {
                let term = term(Kind::Key, key);
                let wanted = Wanted::new(topic.uid, term);
                let seen = match state.last_revision(wanted.quick, &wanted.term, topic.log_start()).revision {
                    Some(_) => None,
                    None if topic.has_nothing_below(state.from) => Some(LastSeen::default()),
                    None => return None,
                };
                Some(Known::Below { wanted, seen, gone: state.gone })
            }),
        };
        let is_known = known.is_some();
        self.known = known.unwrap_or(Known::Nothing);
        is_known
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
            Condition::Revision { expected: ExpectedRevision::Any, .. } => None,
            Condition::Revision { key, expected } => {
                let seen = self.last_seen()?;
                // What cannot be read only adds to it.
                let actual = LastSeen { doubt: Doubt::default(), ..seen }.last();
                let is_decided = match expected {
                    ExpectedRevision::Exact(revision) => actual > Some(*revision),
                    ExpectedRevision::NoStream | ExpectedRevision::Exists => actual.is_some(),
                    ExpectedRevision::Any => true,
                };
                if !is_decided && let Err(error) = topic.check_doubt(seen.doubt) {
                    return Ok(Err(error));
                }
                let holds = match expected {
                    ExpectedRevision::Exact(revision) => actual == Some(*revision),
                    ExpectedRevision::NoStream => actual.is_none(),
                    ExpectedRevision::Exists => actual.is_some(),
                    ExpectedRevision::Any => true,
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
            ExpectedRevision::Exists | ExpectedRevision::Any => return Ok(()),
        };
        if actual.is_none_or(|actual| actual < first) {
            return Ok(());
        }
        let topic = self.topic();
        let bounds = (topic.log_start(), topic.log_end());
        let (_, found) = topic.with_parts(|parts| topic.offset_of_revision(parts, wanted, bounds, first))?;
        *offset = Some(found).filter(|found| *found < bounds.1);
        Ok(())
    }

    fn last_seen(&self) -> Result<LastSeen, Outdated> {
        let Known::Below { wanted, seen, gone } = &self.known else { return Err(Outdated) };
        let recent = &self.topic().terms.recent;
        let state = recent.lock();
        if state.gone != *gone || !recent.is_known() {
            return Err(Outdated);
        }
        let of_recent = state.last_revision(wanted.quick, &wanted.term, self.topic().log_start());
        Ok(match of_recent.revision {
            Some(_) => of_recent,
            None => both(of_recent, seen.ok_or(Outdated)?),
        })
    }

    /// The first match: what was found before, or among the records that have come since, which are in memory. So many at
    /// most: with more, those are to be looked at first without the lock.
    fn first_match(&self, filter: &Filter) -> Result<Result<Option<Offset>>, Outdated> {
        let Known::Searched { first, to, gone } = &self.known else { return Err(Outdated) };
        let topic = self.topic();
        let end = topic.head().next_offset;
        if first.is_some() || end == *to {
            return Ok(Ok(*first));
        }
        if end - *to > RECORDS_UNDER_LOCK_MAX {
            return Err(Outdated);
        }
        // The log may have ended before the first offset that is asked about.
        let from = (*to).max(self.first_offset());
        let mut search = Search::new(topic, filter);
        if search.reads_records() || !filter.key_prefixes.is_empty() {
            // To find a prefix among the terms takes a look at all of them, however few have come.
            return self.first_in_tail(filter, from, end).map(Ok);
        }
        let recent = {
            let state = topic.terms.recent.lock();
            if state.gone != *gone || !topic.terms.recent.is_known() {
                return Err(Outdated);
            }
            state.maps.iter().map(|(base, map)| (*base, Arc::clone(map))).collect()
        };
        let parts = Parts { sealed: Vec::new(), recent, stamp: (0, *gone) };
        Ok(search.candidate(topic, &parts, from, end))
    }

    /// The first record in `from..end` that matches, of those in the tail. If some were flushed by now, or they are many
    /// bytes, they are to be read outside of the lock.
    fn first_in_tail(
        &self,
        filter: &Filter,
        mut from: Offset,
        end: Offset,
    ) -> Result<Option<Offset>, Outdated> {
        let topic = self.topic();
        let mut bytes = 0;
        while from < end {
            let found = topic.tail().find(from).filter(|batch| batch.base_offset <= from).cloned();
            let found = found.ok_or(Outdated)?;
            bytes += found.bytes.len();
            if bytes > BYTES_UNDER_LOCK_MAX {
                return Err(Outdated);
            }
            let header =
                BatchHeader::decode(&found.bytes, topic.seed).expect("the tail holds intact batches only");
            let Ok(batch) = Batch::trusted(header, found.bytes) else { return Err(Outdated) };
            for next in batch.records() {
                // Whoever looks without the lock is told what is wrong with it.
                let Ok((offset, view)) = next else { return Err(Outdated) };
                if offset >= from && filter.matches(&view) {
                    return Ok(Some(offset));
                }
            }
            from = batch.next_offset();
        }
        Ok(None)
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

    fn prefix_check(topic: &Topic) -> Check {
        let filter = Filter::new().key_prefix("seat-");
        let mut check =
            Check::new(0, topic.source(), Condition::NoMatch { filter, after_offset: None }).unwrap();
        check.look_up().unwrap();
        check
    }

    /// To find a prefix every recent term was looked at under the lock, also when one record had come.
    #[test]
    fn a_prefix_is_looked_for_under_the_lock_only_among_what_came_since() {
        let dir = tempfile::tempdir().unwrap();
        let topic = Store::open(dir.path()).unwrap().topic_or_create("seats").unwrap();
        topic.append(&[Record::keyed("other", "x")]).unwrap();
        let check = prefix_check(&topic);
        topic.append(&[Record::keyed("another", "x"), Record::keyed("seat-7", "taken")]).unwrap();
        // Nothing is found where nothing should be looked for.
        topic.inner.terms.recent.lock().maps.clear();
        let failed = check.renew().unwrap().unwrap().unwrap();
        assert_eq!(failed.check, FailedCheck::Match { offset: Offset(2) });
    }

    #[test]
    fn so_much_that_came_since_is_looked_at_before_the_lock_and_only_once() {
        let dir = tempfile::tempdir().unwrap();
        let topic = Store::open(dir.path()).unwrap().topic_or_create("seats").unwrap();
        let large = vec![b'x'; BYTES_UNDER_LOCK_MAX];
        for records in [vec![Record::keyed("other", "x"); 2000], vec![Record::keyed("other", large)]] {
            let mut check = prefix_check(&topic);
            topic.append(&records).unwrap();
            assert!(check.renew().is_err());
            check.look_up().unwrap();
            assert_eq!(check.renew().unwrap().unwrap(), None);
        }
        let mut check = prefix_check(&topic);
        topic.append(&vec![Record::keyed("seat-7", "taken"); 2000]).unwrap();
        let end = topic.log_end_offset();
        check.look_up().unwrap();
        let failed = check.renew().unwrap().unwrap().unwrap();
        assert_eq!(failed.check, FailedCheck::Match { offset: Offset(end.0 - 2000) });
    }
}
