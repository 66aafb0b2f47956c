//! The terms of an append's records, found and hashed in the caller's thread, outside of every lock.

use crate::format::terms::Kind;
use crate::format::terms::hash::hash;
use crate::types::Uid;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct BatchTerms {
    /// All terms, one behind the other.
    bytes: Vec<u8>,
    uses: Vec<TermUse>,
    keys: usize,
}

/// A record has a term.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TermUse {
    pub(crate) hash: u64,
    start: usize,
    end: usize,
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
        let mut put = |kind: Kind, text: &[u8]| {
            let start = self.bytes.len();
            self.bytes.push(kind as u8);
            self.bytes.extend_from_slice(text);
            let hash = hash(topic, &self.bytes[start..]);
            self.uses.push(TermUse { hash, start, end: self.bytes.len(), record });
        };
        if let Some(key) = key {
            put(Kind::Key, key);
            self.keys += 1;
        }
        if !record_type.is_empty() {
            put(Kind::Type, record_type.as_bytes());
        }
        tags.for_each(|tag| put(Kind::Tag, tag.as_bytes()));
    }

    /// Whether no record has a term.
    pub(crate) fn is_empty(&self) -> bool {
        self.uses.is_empty()
    }

    /// How many records have a key.
    pub(crate) fn key_count(&self) -> usize {
        self.keys
    }

    /// All uses, in the order of the records.
    pub(crate) fn uses(&self) -> impl Iterator<Item = (&TermUse, &[u8])> {
        self.uses.iter().map(|of_term| (of_term, &self.bytes[of_term.start..of_term.end]))
    }

    /// Those of keys.
    pub(crate) fn keys(&self) -> impl Iterator<Item = (&TermUse, &[u8])> {
        self.uses().filter(|(_, term)| is_key(term))
    }
}

/// Whether a term is a key.
pub(crate) fn is_key(term: &[u8]) -> bool {
    term[0] == Kind::Key as u8
}
