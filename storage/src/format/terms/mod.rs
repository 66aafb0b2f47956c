//! The term index of a sealed segment: which records have a key, a type or a tag, found without reading the others.
//!
//! A *term* is a kind (one byte: 1 key, 2 type, 3 tag) and behind it the bytes of the key, type or tag.
//!
//! ```text
//! file   | header | postings and blocks ... | block index | filter | footer |
//! ```
//!
//! Header, 64 bytes:
//!
//! ```text
//!  0          16          32            40            48           52        56  60    64
//!  | preamble | topic uid | base offset | next offset | batch hash | content | 0 | crc |
//! ```
//!
//! Magic number `QUIPUTRM`. Base and next offset and `batch hash` are those of the segment's footer, so that the index of
//! another content never verifies. `content`: 1 the terms of a segment, 2 the last revisions of past keys (then the base
//! offset is 0, no record below the next offset counts any more, and the hash is 0). `crc`: of the 60 bytes before it;
//! it is the **seed** of the file. "Bound to position P": a CRC that is begun with the CRC of the 8 bytes of P, begun
//! with the seed. Everything behind the header is bound to where it stands.
//!
//! | Module | Part |
//! |---|---|
//! | [`block`] | blocks of terms in order, and the index of blocks |
//! | [`postings`] | the offsets of the records that have a term |
//! | [`filter`] | which terms are surely not there |
//! | [`hash`] | the hash of a term |
//! | [`build`] | writing all of it |
//!
//! Footer, 80 bytes, the last of the file:
//!
//! ```text
//!  0          16           24              32               40            48             56
//!  | preamble | term count | posting count | index position | index bytes | filter bytes |
//!  56       64            68          72           76    80
//!  | zeros  | block count | index crc | filter crc | crc |
//! ```
//!
//! Magic number `QUIPUTRE`. The filter follows the block index, the footer the filter: index position + index bytes +
//! filter bytes + 80 is the length of the file. `index crc`, `filter crc` and `crc` (of the 76 bytes before it) are bound
//! to their positions.

pub mod block;
pub mod build;
pub mod filter;
pub mod hash;
pub mod postings;

use super::record::limit::KEY_BYTES_MAX;
use super::{HeaderProblem, Invalid, check_preamble, crc, put_preamble, u32_at, u64_at};
use crate::types::{Offset, Uid};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 80;
/// Bytes of the longest term, its kind included.
pub const TERM_BYTES_MAX: usize = 1 + KEY_BYTES_MAX;

const HEADER_MAGIC: &[u8; 8] = b"QUIPUTRM";
const FOOTER_MAGIC: &[u8; 8] = b"QUIPUTRE";

/// What a term is: its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Kind {
    /// The key of a record.
    Key = 1,
    /// Its type.
    Type = 2,
    /// One of its tags.
    Tag = 3,
}

/// The term of `kind` with these bytes.
pub fn term(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    let mut term = Vec::with_capacity(1 + bytes.len());
    term.push(kind as u8);
    term.extend_from_slice(bytes);
    term
}

/// What an index holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// The terms of a segment.
    Segment,
    /// The last revisions of keys whose records were in segments that are gone.
    Past,
}

/// The start of the file: what it is the index of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermsHeader {
    /// What it holds.
    pub content: Content,
    /// The topic.
    pub topic: Uid,
    /// Base offset of the segment.
    pub base_offset: Offset,
    /// Next offset of the segment.
    pub next_offset: Offset,
    /// As in the segment's footer.
    pub batch_hash: u32,
}

impl TermsHeader {
    /// The encoding.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        put_preamble(HEADER_MAGIC, &mut out);
        out[16..32].copy_from_slice(&self.topic.0);
        out[32..40].copy_from_slice(&self.base_offset.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.next_offset.0.to_le_bytes());
        out[48..52].copy_from_slice(&self.batch_hash.to_le_bytes());
        let content: u32 = match self.content {
            Content::Segment => 1,
            Content::Past => 2,
        };
        out[52..56].copy_from_slice(&content.to_le_bytes());
        let sum = crc(0, &out[..60]);
        out[60..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Decodes and verifies.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderProblem> {
        let invalid = |detail, at| Err(HeaderProblem::Invalid(Invalid::new(detail, at)));
        let Some(bytes) = bytes.get(..HEADER_BYTES) else {
            return invalid("the header of the term index is cut off", bytes.len());
        };
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(HeaderProblem::Blank);
        }
        if crc(0, &bytes[..60]) != u32_at(bytes, 60) {
            return invalid("the checksum of the header does not match", 60);
        }
        check_preamble(HEADER_MAGIC, bytes)?;
        let content = match u32_at(bytes, 52) {
            1 => Content::Segment,
            2 => Content::Past,
            _ => return invalid("the index holds something unknown", 52),
        };
        let header = Self {
            content,
            topic: Uid(bytes[16..32].try_into().expect("16 bytes")),
            base_offset: Offset(u64_at(bytes, 32)),
            next_offset: Offset(u64_at(bytes, 40)),
            batch_hash: u32_at(bytes, 48),
        };
        if header.next_offset < header.base_offset {
            return invalid("the offsets of the index do not rise", 40);
        }
        Ok(header)
    }

    /// What the checksums of the file begin with.
    pub fn seed(&self) -> u32 {
        u32_at(&self.encode(), 60)
    }
}

/// The CRC of `bytes`, bound to their place in the file with this seed.
pub fn crc_at(seed: u32, position: u64, bytes: &[u8]) -> u32 {
    crc(crc(seed, &position.to_le_bytes()), bytes)
}

/// The end of the file: what is where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TermsFooter {
    /// Terms in it.
    pub term_count: u64,
    /// Postings of all of them.
    pub posting_count: u64,
    /// Where the index of the blocks begins.
    pub index_position: u64,
    /// Its length.
    pub index_bytes: u64,
    /// Length of the filter, which follows.
    pub filter_bytes: u64,
    /// Blocks of terms.
    pub block_count: u32,
    /// CRC of the index of the blocks.
    pub index_crc: u32,
    /// CRC of the filter.
    pub filter_crc: u32,
}

impl TermsFooter {
    /// The encoding; `seed` is the file's.
    pub fn encode(&self, seed: u32) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        put_preamble(FOOTER_MAGIC, &mut out);
        let numbers =
            [self.term_count, self.posting_count, self.index_position, self.index_bytes, self.filter_bytes];
        for (at, number) in (16..).step_by(8).zip(numbers) {
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        for (at, number) in (64..).step_by(4).zip([self.block_count, self.index_crc, self.filter_crc]) {
            out[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let position = self.index_position + self.index_bytes + self.filter_bytes;
        let sum = crc_at(seed, position, &out[..76]);
        out[76..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Decodes and verifies the last bytes of a file of `file_bytes` with this seed.
    pub fn decode(bytes: &[u8], seed: u32, file_bytes: u64) -> Result<Self, HeaderProblem> {
        let invalid = |detail, at| Err(HeaderProblem::Invalid(Invalid::new(detail, at)));
        let (Some(bytes), Some(position)) =
            (bytes.get(..FOOTER_BYTES), file_bytes.checked_sub(FOOTER_BYTES as u64))
        else {
            return invalid("the footer of the term index is cut off", bytes.len());
        };
        if bytes[..8] != *FOOTER_MAGIC {
            return invalid("there is no footer", 0);
        }
        if crc_at(seed, position, &bytes[..76]) != u32_at(bytes, 76) {
            return invalid("the checksum of the footer does not match", 76);
        }
        check_preamble(FOOTER_MAGIC, bytes)?;
        let footer = Self {
            term_count: u64_at(bytes, 16),
            posting_count: u64_at(bytes, 24),
            index_position: u64_at(bytes, 32),
            index_bytes: u64_at(bytes, 40),
            filter_bytes: u64_at(bytes, 48),
            block_count: u32_at(bytes, 64),
            index_crc: u32_at(bytes, 68),
            filter_crc: u32_at(bytes, 72),
        };
        let before = footer
            .index_position
            .checked_add(footer.index_bytes)
            .and_then(|end| end.checked_add(footer.filter_bytes));
        if before != Some(position) || footer.index_position < HEADER_BYTES as u64 {
            return invalid("the footer belongs to a file of another length", 32);
        }
        Ok(footer)
    }
}

#[cfg(test)]
mod tests;
