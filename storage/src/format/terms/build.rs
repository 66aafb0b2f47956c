//! Writing a term index, term by term.

use super::block::{BLOCK_BYTES, put_text, shared_bytes};
use super::filter::FilterBuilder;
use super::hash::hash;
use super::postings::{INLINE_BYTES_MAX, Revisions, put_list, put_run};
use super::{Kind, TermsFooter, TermsHeader, crc_at};
use crate::format::wire::put_varint;
use crate::types::{Offset, Revision};

/// Makes the bytes of an index. What is done may be [taken](Self::take) while it grows.
#[derive(Debug)]
pub struct TermsBuilder {
    header: TermsHeader,
    seed: u32,
    /// Of the file, from `taken` on.
    out: Vec<u8>,
    taken: u64,
    block: Vec<u8>,
    /// The separator of the block that grows.
    separator: Vec<u8>,
    last_term: Vec<u8>,
    index: Vec<u8>,
    last_separator: Vec<u8>,
    filter: FilterBuilder,
    footer: TermsFooter,
}

impl TermsBuilder {
    /// For an index of at most `terms_max` terms.
    pub fn new(header: TermsHeader, terms_max: u64) -> Self {
        Self {
            header,
            seed: header.seed(),
            out: header.encode().to_vec(),
            taken: 0,
            block: Vec::new(),
            separator: Vec::new(),
            last_term: Vec::new(),
            index: Vec::new(),
            last_separator: Vec::new(),
            filter: FilterBuilder::new(terms_max),
            footer: TermsFooter {
                term_count: 0,
                posting_count: 0,
                index_position: 0,
                index_bytes: 0,
                filter_bytes: 0,
                block_count: 0,
                index_crc: 0,
                filter_crc: 0,
            },
        }
    }

    /// Adds a term, greater than all before it, with its records: at least one, rising, none before the base offset.
    pub fn add(&mut self, term: &[u8], offsets: &[Offset], revisions: Revisions<'_>) {
        let (first, last, count) = (offsets[0], offsets[offsets.len() - 1], offsets.len());
        let place = (count > 2).then(|| self.put_postings(offsets, &revisions));
        self.begin(term);
        put_varint(&mut self.block, count as u64);
        put_varint(&mut self.block, first - self.header.base_offset);
        if count > 1 {
            put_varint(&mut self.block, last - first);
        }
        if term[0] == Kind::Key as u8 {
            let kind = match revisions {
                Revisions::None => 0,
                Revisions::Dense(_) => 1,
                Revisions::Listed(_) => 2,
            };
            put_varint(&mut self.block, kind);
            if let Some(first) = revisions.at(0) {
                put_varint(&mut self.block, first.0);
                if let Revisions::Listed(list) = revisions
                    && count > 1
                {
                    put_varint(&mut self.block, list[count - 1] - first);
                }
            }
        }
        self.block.extend_from_slice(&place.unwrap_or_default());
        self.footer.posting_count += count as u64;
        self.end();
    }

    /// Adds a key of the past, greater than all before it, with its last revision.
    pub fn add_past(&mut self, term: &[u8], last: Revision) {
        self.begin(term);
        put_varint(&mut self.block, 0);
        put_varint(&mut self.block, last.0);
        self.end();
    }

    /// Where the postings are, encoded: they themselves, or where they were written.
    fn put_postings(&mut self, offsets: &[Offset], revisions: &Revisions<'_>) -> Vec<u8> {
        let mut place = Vec::new();
        if offsets.len() <= INLINE_BYTES_MAX {
            let mut list = Vec::new();
            let listed = if let Revisions::Listed(listed) = revisions { Some(*listed) } else { None };
            put_list(&mut list, offsets, listed);
            if list.len() <= INLINE_BYTES_MAX {
                put_varint(&mut place, list.len() as u64);
                place.extend_from_slice(&list);
                return place;
            }
        }
        let position = self.position();
        let (chunks, crc) = put_run(&mut self.out, self.seed, position, offsets, revisions);
        put_varint(&mut place, 0);
        put_varint(&mut place, position);
        put_varint(&mut place, chunks);
        place.extend_from_slice(&crc.to_le_bytes());
        place
    }

    fn begin(&mut self, term: &[u8]) {
        debug_assert!(*self.last_term < *term, "terms are added in order");
        if self.block.is_empty() {
            let length = shared_bytes(&self.last_term, term) + 1;
            self.separator.clear();
            self.separator.extend_from_slice(&term[..length.min(term.len())]);
            self.last_term.clear();
        }
        put_text(&mut self.block, &self.last_term, term);
        self.last_term.clear();
        self.last_term.extend_from_slice(term);
        self.filter.add(hash(self.header.topic, term));
    }

    fn end(&mut self) {
        self.footer.term_count += 1;
        if self.block.len() >= BLOCK_BYTES {
            self.end_block();
        }
    }

    fn end_block(&mut self) {
        if self.block.is_empty() {
            return;
        }
        let position = self.position();
        let crc = crc_at(self.seed, position, &self.block);
        self.block.extend_from_slice(&crc.to_le_bytes());
        put_text(&mut self.index, &self.last_separator, &self.separator);
        put_varint(&mut self.index, position);
        put_varint(&mut self.index, self.block.len() as u64);
        std::mem::swap(&mut self.last_separator, &mut self.separator);
        self.footer.block_count += 1;
        self.out.append(&mut self.block);
    }

    fn position(&self) -> u64 {
        self.taken + self.out.len() as u64
    }

    /// The bytes that are done since they were taken last.
    pub fn take(&mut self) -> Vec<u8> {
        self.taken = self.position();
        std::mem::take(&mut self.out)
    }

    /// How many there are.
    pub fn ready_bytes(&self) -> usize {
        self.out.len()
    }

    /// The rest of the bytes.
    pub fn finish(mut self) -> Vec<u8> {
        self.end_block();
        let position = self.position();
        let filter = self.filter.as_bytes();
        let footer = TermsFooter {
            index_position: position,
            index_bytes: self.index.len() as u64,
            filter_bytes: filter.len() as u64,
            index_crc: crc_at(self.seed, position, &self.index),
            filter_crc: crc_at(self.seed, position + self.index.len() as u64, filter),
            ..self.footer
        };
        self.out.append(&mut self.index);
        self.out.extend_from_slice(filter);
        self.out.extend_from_slice(&footer.encode(self.seed));
        self.out
    }
}
