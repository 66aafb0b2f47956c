//! The terms of an append's records, found and hashed in the caller's thread, outside of every lock.
//!
//! Each key is held once, by a number: it is looked up for its revision, and put in behind that. Types and tags are put in
//! only, which costs less than to find out which of them are the same.

use hashbrown::HashTable;

use super::quick_hash::QuickHash;
use crate::format::record::Record;
use crate::format::terms::Kind;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct BatchTerms {
    keys: Keys,
    others: Others,
}

/// Keys, and which records have them.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    terms: Terms,
    /// Their numbers by their hashes.
    table: HashTable<u32>,
    uses: Vec<KeyUse>,
}

/// A record has a key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct KeyUse {
    /// Number of the key.
    pub(crate) key: u32,
    /// Number of the record.
    pub(crate) record: u64,
}

/// Types and tags of records, as often as they have them.
#[derive(Debug, Default)]
pub(crate) struct Others {
    terms: Terms,
    /// For each the number of the record that has it.
    records: Vec<u64>,
}

/// Terms, one behind the other.
#[derive(Debug, Default)]
struct Terms {
    bytes: Vec<u8>,
    places: Vec<Place>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    hash: QuickHash,
    start: usize,
    end: usize,
}

/// For how many terms there is to be room.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Room {
    keys: usize,
    key_bytes: usize,
    others: usize,
    other_bytes: usize,
}

impl Room {
    /// For those of one more record.
    pub(crate) fn add(&mut self, record: &Record) {
        if let Some(key) = &record.key {
            self.keys += 1;
            self.key_bytes += 1 + key.len();
        }
        let of_type = Some(&record.record_type).filter(|record_type| !record_type.is_empty());
        for text in of_type.into_iter().chain(&record.tags) {
            self.others += 1;
            self.other_bytes += 1 + text.len();
        }
    }

    /// How many of them are keys.
    pub(crate) fn keys(&self) -> usize {
        self.keys
    }
}

impl BatchTerms {
    /// Makes room for more terms: at once, since what grows step by step is copied again and again.
    pub(crate) fn reserve(&mut self, room: Room) {
        let Self { keys, others } = self;
        keys.uses.reserve(room.keys);
        keys.terms.reserve(room.keys, room.key_bytes);
        keys.table.reserve(room.keys, |&number| keys.terms.places[number as usize].hash.0);
        others.records.reserve(room.others);
        others.terms.reserve(room.others, room.other_bytes);
    }

    /// Takes in the record with this number, behind those before it.
    pub(crate) fn add<'a>(
        &mut self,
        record: u64,
        key: Option<&[u8]>,
        record_type: &str,
        tags: impl Iterator<Item = &'a str>,
    ) {
        if let Some(key) = key {
            self.keys.put(key, record);
        }
        if !record_type.is_empty() {
            self.others.put(Kind::Type, record_type, record);
        }
        tags.for_each(|tag| self.others.put(Kind::Tag, tag, record));
    }

    /// Whether no record has a term.
    pub(crate) fn is_empty(&self) -> bool {
        self.keys.uses.is_empty() && self.others.records.is_empty()
    }

    /// The keys of records.
    pub(crate) fn keys(&self) -> &Keys {
        &self.keys
    }

    /// Their types and tags.
    pub(crate) fn others(&self) -> &Others {
        &self.others
    }
}

impl Keys {
    fn put(&mut self, key: &[u8], record: u64) {
        let hash = QuickHash::of(Kind::Key as u8, key);
        let terms = &self.terms;
        let is_it = |&number: &u32| {
            let (known, term) = terms.get(number as usize);
            known == hash && term[1..] == *key
        };
        let key = match self.table.find(hash.0, is_it) {
            Some(&number) => number,
            None => {
                let number = u32::try_from(terms.places.len()).expect("the bounds of an append are lower");
                self.table.insert_unique(hash.0, number, |&number| terms.places[number as usize].hash.0);
                self.terms.push(Kind::Key, key, hash);
                number
            }
        };
        self.uses.push(KeyUse { key, record });
    }

    /// How many keys there are.
    pub(crate) fn count(&self) -> usize {
        self.terms.places.len()
    }

    /// The term of a key with its hash.
    pub(crate) fn term(&self, number: usize) -> (QuickHash, &[u8]) {
        self.terms.get(number)
    }

    /// All of them, by their numbers.
    pub(crate) fn terms(&self) -> impl Iterator<Item = (QuickHash, &[u8])> {
        self.terms.all()
    }

    /// Which record has which, in the order of the records.
    pub(crate) fn uses(&self) -> &[KeyUse] {
        &self.uses
    }
}

impl Others {
    fn put(&mut self, kind: Kind, text: &str, record: u64) {
        self.terms.push(kind, text.as_bytes(), QuickHash::of(kind as u8, text.as_bytes()));
        self.records.push(record);
    }

    /// Terms with their hashes, and which record has which, in the order of the records.
    pub(crate) fn uses(&self) -> impl Iterator<Item = (u64, QuickHash, &[u8])> {
        self.records.iter().zip(self.terms.all()).map(|(record, (hash, term))| (*record, hash, term))
    }
}

impl Terms {
    fn reserve(&mut self, count: usize, bytes: usize) {
        self.places.reserve(count);
        self.bytes.reserve(bytes);
    }

    fn push(&mut self, kind: Kind, text: &[u8], hash: QuickHash) {
        let start = self.bytes.len();
        self.bytes.push(kind as u8);
        self.bytes.extend_from_slice(text);
        self.places.push(Place { hash, start, end: self.bytes.len() });
    }

    fn get(&self, number: usize) -> (QuickHash, &[u8]) {
        let place = self.places[number];
        (place.hash, &self.bytes[place.start..place.end])
    }

    fn all(&self) -> impl Iterator<Item = (QuickHash, &[u8])> {
        self.places.iter().map(|place| (place.hash, &self.bytes[place.start..place.end]))
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
    fn each_key_is_held_once_and_every_use_of_a_term_is_known() {
        let mut terms = BatchTerms::default();
        for record in 0..1000_u64 {
            let key = format!("{}", record % 7);
            let tags = [format!("{}", record % 7), "all".into()];
            terms.add(record, Some(key.as_bytes()), &key, tags.iter().map(String::as_str));
        }
        assert_eq!(terms.keys().count(), 7);
        for (record, one) in (0..).zip(terms.keys().uses()) {
            let key = [b"\x01", format!("{}", record % 7).as_bytes()].concat();
            let expected = (record, (QuickHash::of_term(&key), &key[..]));
            assert_eq!((one.record, terms.keys().term(one.key as usize)), expected);
        }
        let others: Vec<_> = terms.others().uses().collect();
        for (record, of_record) in (0..).zip(others.chunks(3)) {
            let number = format!("{}", record % 7);
            let expected = [("\x02", number.as_str()), ("\x03", &number), ("\x03", "all")];
            for (one, expected) in of_record.iter().zip(expected) {
                let term = [expected.0, expected.1].concat();
                assert_eq!(*one, (record, QuickHash::of_term(term.as_bytes()), term.as_bytes()));
            }
        }
    }
}
