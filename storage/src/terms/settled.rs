//! The last revisions of keys whose segments were sealed lately. A key that is written again and again would otherwise cost
//! a look at the disk with the first append after each roll.
//!
//! One table for each of the last segments, without a gap up to where the recent terms begin: so what the newest of them
//! says of a key is the last that was said. What none of them says has to be looked up. They take a bounded part of the
//! memory over all topics of a store, and a topic that does not use them loses them.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hashbrown::HashTable;

use super::batch_terms::is_key;
use super::map::TermMap;
use super::quick_hash::QuickHash;
use crate::types::{Offset, Revision};

/// Most bytes of all tables of a store.
const BYTES_MAX: usize = 64 << 20;
/// Most tables of a topic: each costs a look for a key that none of them has.
const TABLES_MAX: usize = 8;

/// How long a topic keeps them that nobody appends to, about.
const REST: Duration = Duration::from_secs(60);

/// What all tables of a store take.
#[derive(Debug, Default)]
pub(crate) struct SettledBudget(Arc<AtomicUsize>);

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// That of the newest segment is the last one.
    tables: VecDeque<KeyTable>,
    /// Where its segment ends.
    end: Offset,
    /// Whether something was appended since it was looked at last.
    is_in_use: bool,
    /// Since when nothing was.
    at_rest_since: Option<Instant>,
}

/// The keys of a segment.
#[derive(Debug)]
pub(crate) struct KeyTable {
    /// Numbers of keys by the hashes of their terms.
    table: HashTable<u32>,
    keys: Vec<LastOfKey>,
    terms: Vec<u8>,
    bytes: usize,
    total: Arc<AtomicUsize>,
}

/// Why there is no table of a segment.
#[derive(Debug)]
pub(crate) enum NoTable {
    /// Some of its records could not be read, or have no revisions.
    Unknown,
    /// All tables take as much as they may.
    NoRoom,
}

#[derive(Debug)]
struct LastOfKey {
    hash: QuickHash,
    start: usize,
    end: usize,
    last: Revision,
}

impl KeyTable {
    /// Of a segment with these terms.
    pub(crate) fn new(map: &TermMap, budget: &SettledBudget) -> Result<Self, NoTable> {
        if !map.is_whole() {
            return Err(NoTable::Unknown);
        }
        let of_keys = || map.entries().filter(|(term, _)| is_key(term));
        let (mut count, mut terms_bytes) = (0, 0);
        for (term, _) in of_keys() {
            count += 1;
            terms_bytes += term.len();
        }
        // A place of the hash table has 5 bytes; from 7/16 of them on are used.
        let bytes = terms_bytes + count * (size_of::<LastOfKey>() + 12);
        let total = &budget.0;
        let is_room = |total: usize| total.checked_add(bytes).filter(|total| *total <= BYTES_MAX);
        total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_room).map_err(|_| NoTable::NoRoom)?;
        let mut table = Self {
            table: HashTable::with_capacity(count),
            keys: Vec::with_capacity(count),
            terms: Vec::with_capacity(terms_bytes),
            bytes,
            total: Arc::clone(total),
        };
        for (term, entry) in of_keys() {
            // One of a key without revisions would hide what is known of it from before.
            let last = entry.last().revision.ok_or(NoTable::Unknown)?;
            let hash = entry.hash();
            let number = u32::try_from(table.keys.len()).expect("as the entries of a map");
            let keys = &table.keys;
            table.table.insert_unique(hash.0, number, |&number| keys[number as usize].hash.0);
            let start = table.terms.len();
            table.terms.extend_from_slice(term);
            table.keys.push(LastOfKey { hash, start, end: table.terms.len(), last });
        }
        Ok(table)
    }

    fn last_revision(&self, hash: QuickHash, term: &[u8]) -> Option<Revision> {
        let is_it = |&number: &u32| {
            let key = &self.keys[number as usize];
            key.hash == hash && self.terms[key.start..key.end] == *term
        };
        let number = *self.table.find(hash.0, is_it)?;
        Some(self.keys[number as usize].last)
    }
}

impl Drop for KeyTable {
    fn drop(&mut self) {
        self.total.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Settled {
    /// Takes in the keys of the segment with these offsets. Those of the segments before say nothing any more if its own
    /// are not known, or if there was one between, which was trimmed before it was settled. What is let go of is for the
    /// caller to drop, when no lock is held.
    #[must_use]
    pub(crate) fn push(&mut self, segment: Range<Offset>, table: Option<KeyTable>) -> VecDeque<KeyTable> {
        self.is_in_use = true;
        let is_next = segment.start == self.end && table.is_some();
        self.end = segment.end;
        let kept = if is_next { self.tables.len().min(TABLES_MAX - 1) } else { 0 };
        let rest = self.tables.split_off(self.tables.len() - kept);
        let gone = std::mem::replace(&mut self.tables, rest);
        self.tables.extend(table);
        gone
    }

    /// The last revision of a key, if one of them has it.
    pub(crate) fn last_revision(&self, hash: QuickHash, term: &[u8]) -> Option<Revision> {
        self.tables.iter().rev().find_map(|table| table.last_revision(hash, term))
    }

    /// Lets go of the oldest, if there is one.
    pub(crate) fn take_oldest(&mut self) -> Option<KeyTable> {
        self.tables.pop_front()
    }

    /// Lets go of all.
    #[must_use]
    pub(crate) fn take_all(&mut self) -> VecDeque<KeyTable> {
        std::mem::take(&mut self.tables)
    }

    /// To be called now and then: lets go of all if nothing was appended for a while, so that a topic that rests takes no
    /// memory.
    #[must_use]
    pub(crate) fn age(&mut self, now: Instant) -> VecDeque<KeyTable> {
        if std::mem::take(&mut self.is_in_use) {
            self.at_rest_since = None;
        }
        let since = *self.at_rest_since.get_or_insert(now);
        if now.saturating_duration_since(since) < REST { VecDeque::new() } else { self.take_all() }
    }

    /// Notes that it is in use.
    pub(crate) fn note_use(&mut self) {
        self.is_in_use = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(first: u64, keys: &[&str]) -> TermMap {
        let mut map = TermMap::default();
        for (offset, key) in (first..).zip(keys) {
            map.push_key(key.as_bytes(), Offset(offset), Revision(offset));
        }
        map
    }

    fn last(settled: &Settled, key: &str) -> Option<u64> {
        let term = [b"\x01", key.as_bytes()].concat();
        settled.last_revision(QuickHash::of_term(&term), &term).map(|revision| revision.0)
    }

    /// Takes in the next segment, of so many offsets.
    fn push(settled: &mut Settled, map: &TermMap, budget: &SettledBudget) {
        let segment = settled.end..settled.end + 5;
        drop(settled.push(segment, KeyTable::new(map, budget).ok()));
    }

    #[test]
    fn the_newest_segment_that_has_a_key_says_its_last_revision() {
        let (budget, mut settled) = (SettledBudget::default(), Settled::default());
        push(&mut settled, &map(0, &["a", "b", "a"]), &budget);
        push(&mut settled, &map(10, &["b", "c"]), &budget);
        assert_eq!(["a", "b", "c", "d"].map(|key| last(&settled, key)), [Some(2), Some(10), Some(11), None]);
    }

    #[test]
    fn a_segment_whose_keys_are_not_known_hides_those_before_it() {
        let (budget, mut settled) = (SettledBudget::default(), Settled::default());
        push(&mut settled, &map(0, &["a"]), &budget);
        let mut damaged = map(5, &["b"]);
        damaged.push_unread(Offset(6)..Offset(7));
        push(&mut settled, &damaged, &budget);
        assert_eq!(["a", "b"].map(|key| last(&settled, key)), [None, None]);
        push(&mut settled, &map(10, &["b"]), &budget);
        assert_eq!(["a", "b"].map(|key| last(&settled, key)), [None, Some(10)]);
    }

    #[test]
    fn a_segment_that_was_never_settled_hides_those_before_it() {
        let (budget, mut settled) = (SettledBudget::default(), Settled::default());
        push(&mut settled, &map(0, &["a"]), &budget);
        drop(settled.push(Offset(10)..Offset(12), KeyTable::new(&map(10, &["b"]), &budget).ok()));
        assert_eq!(["a", "b"].map(|key| last(&settled, key)), [None, Some(10)]);
    }

    #[test]
    fn tables_are_bounded_in_number_and_in_bytes_and_leave_nothing_behind() {
        let (budget, mut settled) = (SettledBudget::default(), Settled::default());
        for number in 0..20 {
            push(&mut settled, &map(number, &["a"]), &budget);
        }
        assert_eq!(settled.tables.len(), TABLES_MAX);
        assert!(budget.0.load(Ordering::Relaxed) > 0);
        budget.0.fetch_add(BYTES_MAX, Ordering::Relaxed);
        assert!(matches!(KeyTable::new(&map(0, &["a"]), &budget), Err(NoTable::NoRoom)));
        budget.0.fetch_sub(BYTES_MAX, Ordering::Relaxed);
        drop(settled);
        assert_eq!(budget.0.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_topic_that_rests_keeps_none() {
        let (budget, mut settled) = (SettledBudget::default(), Settled::default());
        push(&mut settled, &map(0, &["a"]), &budget);
        let begun = Instant::now();
        let at = |rests: u32| begun + rests * REST;
        assert!(settled.age(at(0)).is_empty());
        settled.note_use();
        assert!(settled.age(at(2)).is_empty());
        assert_eq!(last(&settled, "a"), Some(0));
        assert_eq!(settled.age(at(3)).len(), 1);
        assert_eq!((last(&settled, "a"), budget.0.load(Ordering::Relaxed)), (None, 0));
    }

    /// A store without threads, and a topic of small segments with records of ten keys.
    fn filled(dir: &std::path::Path) -> (crate::Store, crate::Topic) {
        let settings = crate::StoreSettings { background: false, ..crate::StoreSettings::default() };
        let store = crate::Store::builder().settings(settings).open(dir).unwrap();
        let settings = crate::TopicSettings { segment_bytes_max: 4096, ..crate::TopicSettings::default() };
        let topic = store.create_topic("t", settings).unwrap();
        fill(&topic, 50);
        store.checkpoint().unwrap();
        assert!(taken(&store) > 0);
        (store, topic)
    }

    fn fill(topic: &crate::Topic, count: u64) {
        for number in 0..count {
            let record = crate::Record::keyed(format!("key-{}", number % 10), "x".repeat(500));
            topic.append_with(&[record], crate::Durability::Accepted).unwrap();
        }
    }

    fn taken(store: &crate::Store) -> usize {
        store.handle.inner.context.settled_budget.0.load(Ordering::Relaxed)
    }

    /// Whoever still holds the topic held its tables as well, and nobody else had room for theirs.
    #[test]
    fn a_deleted_topic_takes_no_room_for_tables() {
        let dir = tempfile::tempdir().unwrap();
        let (store, topic) = filled(dir.path());
        store.delete_topic("t").unwrap();
        for _ in 0..3 {
            store.topic_or_create("other").unwrap().append(&[crate::Record::new("x")]).unwrap();
            store.checkpoint().unwrap();
        }
        assert_eq!(taken(&store), 0);
        drop(topic);
    }

    /// All of them went at once, so that a topic of many keys had none every few segments.
    #[test]
    fn when_there_is_no_room_the_oldest_table_makes_some() {
        let dir = tempfile::tempdir().unwrap();
        let (store, topic) = filled(dir.path());
        let before = taken(&store);
        let others = BYTES_MAX - before;
        store.handle.inner.context.settled_budget.0.fetch_add(others, Ordering::Relaxed);
        fill(&topic, 8);
        store.checkpoint().unwrap();
        let after = taken(&store) - others;
        assert!(after >= before / 2, "{after} bytes of {before}");
    }
}
