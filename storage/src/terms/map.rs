//! The terms of one segment in memory: while it is being filled, and where its index cannot be had from the disk.
//!
//! Of records that could not be read nobody knows the terms. The map knows which these are, so that nobody takes it for
//! all there is: who looks for records has to look at those as well, and is told of the damage; and the last revision of a
//! key is in doubt if they come behind the last record of it that is known.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::ops::Range;

use super::batch_terms::{BatchTerms, TermUse};
use crate::format::Invalid;
use crate::format::batch::Batch;
use crate::format::terms::TermsHeader;
use crate::format::terms::build::TermsBuilder;
use crate::format::terms::postings::{Posting, Revisions};
use crate::types::{Offset, Revision, Uid};

/// For keys that are hashes already.
#[derive(Debug, Default)]
pub(crate) struct Hashed(u64);

/// By hashes of terms.
pub(crate) type ByHash<T> = HashMap<u64, T, BuildHasherDefault<Hashed>>;

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("a hash is one number");
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

/// No entry.
const NONE: u32 = u32::MAX;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct TermMap {
    /// The first entry of each hash; the others of the same hash follow it.
    first: ByHash<u32>,
    entries: Vec<MapEntry>,
    terms: Vec<u8>,
    /// Of postings that are not in an entry itself.
    listed: usize,
    /// Offsets of records whose terms are not known, in order.
    unread: Vec<Range<Offset>>,
}

/// Records that may have a key, behind the last one that is known to have it, and cannot be read: the last of them, from an
/// offset on and below another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Doubt(pub(crate) Option<(Offset, Offset)>);

impl Doubt {
    /// Both; those of `self` come last.
    pub(crate) fn and(self, older: Self) -> Self {
        Self(self.0.or(older.0))
    }
}

/// A term and its records.
#[derive(Debug)]
pub(crate) struct MapEntry {
    start: usize,
    length: u16,
    next: u32,
    offsets: Offsets,
    numbers: Numbers,
}

#[derive(Debug)]
enum Offsets {
    One(Offset),
    Many(Vec<Offset>),
}

/// As [`Revisions`].
#[derive(Debug)]
enum Numbers {
    None,
    Dense(Revision),
    Listed(Vec<Revision>),
}

impl MapEntry {
    pub(crate) fn offsets(&self) -> &[Offset] {
        match &self.offsets {
            Offsets::One(offset) => std::slice::from_ref(offset),
            Offsets::Many(offsets) => offsets,
        }
    }

    pub(crate) fn revisions(&self) -> Revisions<'_> {
        match &self.numbers {
            Numbers::None => Revisions::None,
            Numbers::Dense(first) => Revisions::Dense(*first),
            Numbers::Listed(list) => Revisions::Listed(list),
        }
    }

    pub(crate) fn posting(&self, number: usize) -> Posting {
        Posting { offset: self.offsets()[number], revision: self.revisions().at(number) }
    }

    pub(crate) fn last(&self) -> Posting {
        self.posting(self.offsets().len() - 1)
    }

    fn push(&mut self, offset: Offset, revision: Option<Revision>) {
        let count = self.offsets().len();
        self.number(count, revision);
        match &mut self.offsets {
            Offsets::One(first) => self.offsets = Offsets::Many(vec![*first, offset]),
            Offsets::Many(offsets) => offsets.push(offset),
        }
    }

    /// A record that has no revision has one more than the one before it; or one less than the next that has one.
    fn number(&mut self, count: usize, revision: Option<Revision>) {
        let Some(last) = self.revisions().at(count - 1) else {
            if let Some(revision) = revision {
                self.numbers = Numbers::Dense(revision.saturating_sub(count as u64));
            }
            return;
        };
        // They rise in every store; whatever a damaged one has, they do here.
        let revision = revision.unwrap_or(Revision::ZERO).max(last.saturating_add(1));
        match &mut self.numbers {
            Numbers::Dense(_) if revision == last.saturating_add(1) => {}
            Numbers::Listed(list) => list.push(revision),
            numbers => {
                let Numbers::Dense(first) = numbers else { unreachable!("there was a revision before") };
                let mut list: Vec<_> = (0..count as u64).map(|number| *first + number).collect();
                list.push(revision);
                *numbers = Numbers::Listed(list);
            }
        }
    }
}

impl TermMap {
    /// The record at `offset`, behind all others, has this term. Answers the number of its entry.
    pub(crate) fn push(&mut self, hash: u64, term: &[u8], offset: Offset, revision: Option<Revision>) -> u32 {
        if let Some(number) = self.find(hash, term) {
            self.push_at(number, offset, revision);
            return number;
        }
        let start = self.terms.len();
        self.terms.extend_from_slice(term);
        let numbers = revision.map_or(Numbers::None, Numbers::Dense);
        let length = u16::try_from(term.len()).expect("the bounds of a record are checked");
        let offsets = Offsets::One(offset);
        let number = u32::try_from(self.entries.len()).expect("a segment has fewer terms");
        let next = self.first.insert(hash, number).unwrap_or(NONE);
        self.entries.push(MapEntry { start, length, next, offsets, numbers });
        number
    }

    /// The same for those who know the number of the entry.
    pub(crate) fn push_at(&mut self, number: u32, offset: Offset, revision: Option<Revision>) {
        let entry = &mut self.entries[number as usize];
        // A tag that stands twice is one posting.
        if entry.last().offset < offset {
            entry.push(offset, revision);
            self.listed += 1;
        }
    }

    /// Takes in the records of a batch, behind all others.
    pub(crate) fn push_batch(&mut self, topic: Uid, batch: &Batch) {
        // Its checksums hold, so this cannot be but by a mistake of ours; then too nobody may take it for read.
        if self.try_push_batch(topic, batch).is_err() {
            self.push_unread(batch.base_offset()..batch.next_offset());
        }
    }

    /// These records, behind all others, cannot be read: a range as a reader is told of it.
    pub(crate) fn push_unread(&mut self, offsets: Range<Offset>) {
        if !offsets.is_empty() {
            self.unread.push(offsets);
        }
    }

    /// Whether the terms of all records are known.
    pub(crate) fn is_whole(&self) -> bool {
        self.unread.is_empty()
    }

    /// The first records from `offset` on that could not be read.
    pub(crate) fn unread_from(&self, offset: Offset) -> Option<Range<Offset>> {
        let first = self.unread.partition_point(|range| range.end <= offset);
        self.unread.get(first).cloned()
    }

    /// The last records below `offset` that could not be read.
    pub(crate) fn unread_before(&self, offset: Offset) -> Option<Range<Offset>> {
        let end = self.unread.partition_point(|range| range.start < offset);
        self.unread[..end].last().cloned()
    }

    /// What is in doubt of a key whose last known record here is at this offset. What lies below the log's start was given
    /// up.
    pub(crate) fn doubt(&self, last: Option<Offset>, log_start: Offset) -> Doubt {
        let known_to = last.map_or(log_start, |last| last.max(log_start));
        let last = self.unread.last().filter(|range| range.end > known_to);
        Doubt(last.map(|range| (range.start, range.end)))
    }

    fn try_push_batch(&mut self, topic: Uid, batch: &Batch) -> Result<(), Invalid> {
        let (base, mut terms) = (batch.base_offset(), BatchTerms::default());
        for next in batch.records() {
            let (offset, view) = next?;
            terms.add(topic, offset - base, view.key, view.record_type, view.tags());
        }
        self.push_terms(base, &terms, batch.revisions(), &mut vec![None; terms.count()]);
        Ok(())
    }

    /// Takes in records whose numbers count from `base`, behind all others. In `places` are the entries of their terms, by
    /// the numbers of the terms, as far as they are known.
    pub(crate) fn push_terms(
        &mut self,
        base: Offset,
        terms: &BatchTerms,
        mut revisions: impl Iterator<Item = Revision>,
        places: &mut [Option<u32>],
    ) {
        let mut push = |one: &TermUse, revision| {
            let offset = base + one.record;
            let place = &mut places[one.term as usize];
            match *place {
                Some(number) => self.push_at(number, offset, revision),
                None => {
                    let (hash, term) = terms.term(one.term);
                    // No longer one was ever appended; a damaged store may have one.
                    if term.len() <= usize::from(u16::MAX) {
                        *place = Some(self.push(hash, term, offset, revision));
                    }
                }
            }
        };
        terms.keys().iter().for_each(|one| push(one, revisions.next()));
        terms.others().iter().for_each(|one| push(one, None));
    }

    pub(crate) fn get(&self, hash: u64, term: &[u8]) -> Option<&MapEntry> {
        self.find(hash, term).map(|number| self.entry(number))
    }

    /// The number of a term's entry: it stays the same.
    pub(crate) fn find(&self, hash: u64, term: &[u8]) -> Option<u32> {
        let mut number = *self.first.get(&hash)?;
        while number != NONE {
            let entry = &self.entries[number as usize];
            if self.term_of(entry) == term {
                return Some(number);
            }
            number = entry.next;
        }
        None
    }

    pub(crate) fn entry(&self, number: u32) -> &MapEntry {
        &self.entries[number as usize]
    }

    fn term_of(&self, entry: &MapEntry) -> &[u8] {
        &self.terms[entry.start..entry.start + usize::from(entry.length)]
    }

    /// All terms, in no order.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&[u8], &MapEntry)> {
        self.entries.iter().map(|entry| (self.term_of(entry), entry))
    }

    /// All terms, in order.
    pub(crate) fn sorted(&self) -> Vec<(&[u8], &MapEntry)> {
        let mut sorted: Vec<_> = self.entries().collect();
        sorted.sort_unstable_by_key(|(term, _)| *term);
        sorted
    }

    /// Bytes it takes, about.
    pub(crate) fn memory_bytes(&self) -> usize {
        // A place of the hash table has 17 bytes and is used at least by half.
        self.terms.len()
            + self.entries.len() * (size_of::<MapEntry>() + 24)
            + (self.listed + self.unread.len()) * 16
    }

    /// The bytes of the index. It has no room for what is not known: only that of a [whole](Self::is_whole) map says all.
    pub(crate) fn encode(&self, header: TermsHeader) -> Vec<u8> {
        let mut builder = TermsBuilder::new(header, self.entries.len() as u64);
        for (term, entry) in self.sorted() {
            builder.add(term, entry.offsets(), entry.revisions());
        }
        builder.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn revisions(pushed: &[Option<u64>]) -> Vec<Option<u64>> {
        let mut map = TermMap::default();
        for (offset, revision) in pushed.iter().enumerate() {
            map.push(1, b"\x01key", Offset(offset as u64), revision.map(Revision));
        }
        let entry = map.get(1, b"\x01key").unwrap();
        (0..pushed.len()).map(|number| entry.posting(number).revision.map(|revision| revision.0)).collect()
    }

    #[test]
    fn records_without_a_revision_are_numbered_from_their_neighbours() {
        assert_eq!(revisions(&[None, None]), [None, None]);
        assert_eq!(revisions(&[None, None, Some(7), Some(8)]), [Some(5), Some(6), Some(7), Some(8)]);
        assert_eq!(revisions(&[Some(2), Some(4), None, Some(9)]), [Some(2), Some(4), Some(5), Some(9)]);
    }

    #[test]
    fn terms_of_one_hash_are_told_apart() {
        let mut map = TermMap::default();
        for offset in 0..30_u64 {
            map.push(9, &[1, (offset % 3) as u8], Offset(offset), None);
        }
        for rest in 0..3 {
            let offsets: Vec<_> = map.get(9, &[1, rest]).unwrap().offsets().iter().map(|o| o.0).collect();
            assert_eq!(offsets, (0..10).map(|n| 3 * n + u64::from(rest)).collect::<Vec<_>>());
        }
        assert!(map.get(9, &[1, 3]).is_none());
        assert!(map.get(8, &[1, 0]).is_none());
    }

    #[test]
    fn a_tag_that_a_record_has_twice_is_one_posting() {
        let mut map = TermMap::default();
        map.push(9, b"\x03tag", Offset(4), None);
        map.push(9, b"\x03tag", Offset(4), None);
        assert_eq!(map.get(9, b"\x03tag").unwrap().offsets(), [Offset(4)]);
    }
}
