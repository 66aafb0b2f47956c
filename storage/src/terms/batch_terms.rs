//! The terms of an append's records, found and hashed in the caller's thread, outside of every lock.
//!
//! Each term is held once, by a number: the records of an append often have the same type and the same tags, and what is
//! looked up or put in once for all of them costs each of them little.

use super::map::ByHash;
use crate::format::terms::Kind;
use crate::format::terms::hash::hash;
use crate::types::Uid;

/// Places of terms that are recognised before they are hashed.
const RECENT: usize = 64;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct BatchTerms {
    /// All terms, one behind the other.
    bytes: Vec<u8>,
    terms: Vec<BatchTerm>,
    /// The first term of each hash; the others of the same hash follow it.
    first: ByHash<u32>,
    /// One more than the number of a term, by a rough sum of its bytes.
    recent: Vec<u32>,
    keys: Vec<TermUse>,
    others: Vec<TermUse>,
}

/// A term.
#[derive(Clone, Copy, Debug)]
struct BatchTerm {
    hash: u64,
    start: usize,
    end: usize,
    next: Option<u32>,
}

/// A record has a term.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TermUse {
    /// Number of the term.
    pub(crate) term: u32,
    /// Number of the record.
    pub(crate) record: u64,
}

impl BatchTerms {
    /// Takes in the record with this number, behind those before it.
    pub(crate) fn add<'a>(
        &mut self,
        topic: Uid,
        record: u64,
        key: Option<&[u8]>,
        record_type: &str,
        tags: impl Iterator<Item = &'a str>,
    ) {
        if let Some(key) = key {
            let term = self.put(topic, Kind::Key, key);
            self.keys.push(TermUse { term, record });
        }
        if !record_type.is_empty() {
            let term = self.put_recent(topic, Kind::Type, record_type.as_bytes());
            self.others.push(TermUse { term, record });
        }
        for tag in tags {
            let term = self.put_recent(topic, Kind::Tag, tag.as_bytes());
            self.others.push(TermUse { term, record });
        }
    }

    /// The number of a term that is likely to have come before.
    fn put_recent(&mut self, topic: Uid, kind: Kind, text: &[u8]) -> u32 {
        let sum = text.iter().fold(text.len() + kind as usize, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(usize::from(*byte))
        });
        if self.recent.is_empty() {
            self.recent.resize(RECENT, 0);
        }
        let place = sum % RECENT;
        if let Some(number) = self.recent[place].checked_sub(1) {
            let term = self.term(number).1;
            if term[0] == kind as u8 && term[1..] == *text {
                return number;
            }
        }
        let number = self.put(topic, kind, text);
        self.recent[place] = number + 1;
        number
    }

    /// The number of a term.
    fn put(&mut self, topic: Uid, kind: Kind, text: &[u8]) -> u32 {
        let start = self.bytes.len();
        self.bytes.push(kind as u8);
        self.bytes.extend_from_slice(text);
        let (end, hash) = (self.bytes.len(), hash(topic, &self.bytes[start..]));
        let number = u32::try_from(self.terms.len()).expect("the bounds of an append are lower");
        let first = *self.first.entry(hash).or_insert(number);
        let mut last = None;
        if first != number {
            let mut known = Some(first);
            while let Some(number) = known {
                if self.term(number).1 == &self.bytes[start..] {
                    self.bytes.truncate(start);
                    return number;
                }
                (last, known) = (Some(number), self.terms[number as usize].next);
            }
        }
        if let Some(last) = last {
            self.terms[last as usize].next = Some(number);
        }
        self.terms.push(BatchTerm { hash, start, end, next: None });
        number
    }

    /// Whether no record has a term.
    pub(crate) fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// How many terms there are.
    pub(crate) fn count(&self) -> usize {
        self.terms.len()
    }

    /// A term with its hash.
    pub(crate) fn term(&self, number: u32) -> (u64, &[u8]) {
        let term = self.terms[number as usize];
        (term.hash, &self.bytes[term.start..term.end])
    }

    /// The keys of records, in the order of the records.
    pub(crate) fn keys(&self) -> &[TermUse] {
        &self.keys
    }

    /// Their types and tags, in the order of the records.
    pub(crate) fn others(&self) -> &[TermUse] {
        &self.others
    }
}

/// Whether a term is a key.
pub(crate) fn is_key(term: &[u8]) -> bool {
    term[0] == Kind::Key as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_term_is_held_once_and_every_use_of_it_is_known() {
        let mut terms = BatchTerms::default();
        for record in 0..1000_u64 {
            let key = format!("{}", record % 7);
            let tags = [format!("{}", record % 7), format!("{}", record % 300), "all".into()];
            let tags = tags.iter().map(String::as_str);
            terms.add(Uid([7; 16]), record, Some(key.as_bytes()), &key, tags);
        }
        assert_eq!(terms.count(), 7 + 7 + 301);
        let text = |one: &TermUse| String::from_utf8(terms.term(one.term).1[1..].to_vec()).unwrap();
        for (record, one) in (0..).zip(terms.keys()) {
            assert_eq!((one.record, text(one)), (record, format!("{}", record % 7)));
        }
        for (record, of_record) in (0..).zip(terms.others().chunks(4)) {
            let expected = [record % 7, record % 7, record % 300].map(|number: u64| number.to_string());
            assert_eq!(of_record[..3].iter().map(text).collect::<Vec<_>>(), expected);
            assert_eq!((text(&of_record[3]), of_record[3].record), ("all".into(), record));
        }
    }
}
