//! The terms of one segment in memory: while it is being filled, and where its index cannot be had from the disk.
//!
//! Of records that could not be read nobody knows the terms. The map knows which these are, so that nobody takes it for
//! all there is: who looks for records has to look at those as well, and is told of the damage; and the last revision of a
//! key is in doubt if they come behind the last record of it that is known.

use std::ops::Range;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::batch_terms::{Keys, Others};
use super::quick_hash::QuickHash;
use crate::format::Invalid;
use crate::format::batch::Batch;
use crate::format::record::terms_of;
use crate::format::terms::build::TermsBuilder;
use crate::format::terms::postings::{Posting, Revisions};
use crate::format::terms::{Kind, TermsHeader};
use crate::types::{Offset, Revision};

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct TermMap {
    /// Numbers of entries by the hashes of their terms.
    table: HashTable<u32>,
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
    hash: QuickHash,
    start: usize,
    length: u16,
    last: Offset,
    /// All of them, if they are more than the last one.
    offsets: Vec<Offset>,
    numbers: Numbers,
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
        if self.offsets.is_empty() { std::slice::from_ref(&self.last) } else { &self.offsets }
    }

    pub(crate) fn hash(&self) -> QuickHash {
        self.hash
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
        Posting { offset: self.last, revision: self.revisions().at(self.offsets().len() - 1) }
    }

    fn push(&mut self, offset: Offset, revision: Option<Revision>) {
        let count = self.offsets().len();
        self.number(count, revision);
        if self.offsets.is_empty() {
            self.offsets.push(self.last);
        }
        self.offsets.push(offset);
        self.last = offset;
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
    /// An empty one, with room for as many terms as another has.
    pub(crate) fn like(other: &Self) -> Self {
        Self {
            table: HashTable::with_capacity(other.entries.len()),
            entries: Vec::with_capacity(other.entries.len()),
            terms: Vec::with_capacity(other.terms.len()),
            ..Self::default()
        }
    }

    /// The record at `offset`, behind all others, has this term: its kind and the rest of it. Answers the number of its
    /// entry. A term that is longer than any that was ever appended, as a damaged store may have one, is left out.
    fn push(
        &mut self,
        hash: QuickHash,
        (kind, text): (u8, &[u8]),
        offset: Offset,
        revision: Option<Revision>,
    ) -> Option<u32> {
        let length = u16::try_from(1 + text.len()).ok()?;
        let (entries, terms) = (&self.entries, &self.terms);
        let is_it = |&number: &u32| {
            let entry = &entries[number as usize];
            let known = &terms[entry.start..entry.start + usize::from(entry.length)];
            entry.hash == hash && known[0] == kind && known[1..] == *text
        };
        let vacant = match self.table.entry(hash.0, is_it, |&number| entries[number as usize].hash.0) {
            Entry::Occupied(known) => {
                let number = *known.get();
                self.push_at(number, offset, revision);
                return Some(number);
            }
            Entry::Vacant(vacant) => vacant,
        };
        let number = u32::try_from(entries.len()).expect("a segment has fewer terms");
        vacant.insert(number);
        let start = terms.len();
        self.terms.push(kind);
        self.terms.extend_from_slice(text);
        let numbers = revision.map_or(Numbers::None, Numbers::Dense);
        self.entries.push(MapEntry { hash, start, length, last: offset, offsets: Vec::new(), numbers });
        Some(number)
    }

    /// The same for those who know the number of the entry.
    fn push_at(&mut self, number: u32, offset: Offset, revision: Option<Revision>) {
        let entry = &mut self.entries[number as usize];
        // A tag that stands twice is one posting.
        if entry.last < offset {
            entry.push(offset, revision);
            self.listed += 1;
        }
    }

    /// Takes in the records of a batch, behind all others.
    pub(crate) fn push_batch(&mut self, batch: &Batch) {
        // Its checksums hold, so this cannot be but by a mistake of ours; then too nobody may take it for read.
        if self.try_push_batch(batch).is_err() {
            self.push_unread(batch.base_offset()..batch.next_offset());
        }
    }

    fn try_push_batch(&mut self, batch: &Batch) -> Result<(), Invalid> {
        let (mut revisions, mut records) = (batch.revisions(), batch.records());
        while let Some(next) = records.next_encoded() {
            let (offset, bytes) = next?;
            let mut push = |kind: Kind, text: &[u8], revision| {
                let kind = kind as u8;
                self.push(QuickHash::of(kind, text), (kind, text), offset, revision);
            };
            let (key, record_type) = terms_of(bytes, |tag| push(Kind::Tag, tag, None))?;
            if let Some(key) = key {
                push(Kind::Key, key, revisions.next());
            }
            if !record_type.is_empty() {
                push(Kind::Type, record_type, None);
            }
        }
        Ok(())
    }

    /// Takes in the keys of records whose numbers count from `base`, behind all others, and the records' revisions. In
    /// `places` are the entries of the keys, by their numbers, as far as they are known.
    pub(crate) fn push_keys(
        &mut self,
        base: Offset,
        keys: &Keys,
        revisions: &[Revision],
        places: &mut [Option<u32>],
    ) {
        for (one, revision) in keys.uses().iter().zip(revisions) {
            let (offset, revision) = (base + one.record, Some(*revision));
            let place = &mut places[one.key as usize];
            match *place {
                Some(number) => self.push_at(number, offset, revision),
                None => {
                    let (hash, term) = keys.term(one.key as usize);
                    *place = self.push(hash, (term[0], &term[1..]), offset, revision);
                }
            }
        }
    }

    /// The same of types and tags.
    pub(crate) fn push_others(&mut self, base: Offset, others: &Others) {
        for (record, hash, term) in others.uses() {
            self.push(hash, (term[0], &term[1..]), base + record, None);
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

    pub(crate) fn get(&self, hash: QuickHash, term: &[u8]) -> Option<&MapEntry> {
        self.find(hash, term).map(|number| self.entry(number))
    }

    /// The number of a term's entry: it stays the same.
    pub(crate) fn find(&self, hash: QuickHash, term: &[u8]) -> Option<u32> {
        let is_it = |&number: &u32| {
            let entry = &self.entries[number as usize];
            entry.hash == hash && self.term_of(entry) == term
        };
        self.table.find(hash.0, is_it).copied()
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
        // A place of the hash table has 5 bytes; from 7/16 of them on are used.
        self.terms.len()
            + self.entries.len() * (size_of::<MapEntry>() + 10)
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
impl TermMap {
    /// The record at `offset` has this key.
    pub(crate) fn push_key(&mut self, key: &[u8], offset: Offset, revision: Revision) {
        let kind = Kind::Key as u8;
        self.push(QuickHash::of(kind, key), (kind, key), offset, Some(revision));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(map: &mut TermMap, hash: u64, term: &[u8], offset: u64, revision: Option<u64>) {
        map.push(QuickHash(hash), (term[0], &term[1..]), Offset(offset), revision.map(Revision));
    }

    fn revisions(pushed: &[Option<u64>]) -> Vec<Option<u64>> {
        let mut map = TermMap::default();
        for (offset, revision) in (0..).zip(pushed) {
            push(&mut map, 1, b"\x01key", offset, *revision);
        }
        let entry = map.get(QuickHash(1), b"\x01key").unwrap();
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
        for offset in 0..30 {
            push(&mut map, 9, &[1, (offset % 3) as u8], offset, None);
        }
        for rest in 0..3 {
            let entry = map.get(QuickHash(9), &[1, rest]).unwrap();
            let offsets: Vec<_> = entry.offsets().iter().map(|offset| offset.0).collect();
            assert_eq!(offsets, (0..10).map(|n| 3 * n + u64::from(rest)).collect::<Vec<_>>());
        }
        assert!(map.get(QuickHash(9), &[1, 3]).is_none());
        assert!(map.get(QuickHash(8), &[1, 0]).is_none());
    }

    #[test]
    fn a_tag_that_a_record_has_twice_is_one_posting() {
        let mut map = TermMap::default();
        push(&mut map, 9, b"\x03tag", 4, None);
        push(&mut map, 9, b"\x03tag", 4, None);
        assert_eq!(map.get(QuickHash(9), b"\x03tag").unwrap().offsets(), [Offset(4)]);
    }
}
