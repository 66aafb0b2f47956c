//! Blocks: terms in the order of their bytes, and the index that tells in which block a term would be.
//!
//! ```text
//! block  | entry | entry | ... | crc (4) |
//! ```
//!
//! A block has about 4 KiB, at least one entry; its `crc` is bound to its position. An entry, all numbers varints:
//!
//! | Part | Where |
//! |---|---|
//! | how many bytes the term shares with the one before it in the block, how many more it has, and these | always |
//! | record count: records of the segment that have the term; 0 in an index of past keys | always |
//! | last revision | record count 0; and nothing else then |
//! | first offset − base offset | |
//! | last offset − first offset | record count > 1 |
//! | revisions: 0 none, 1 without gaps, 2 listed | keys |
//! | first revision | revisions 1 and 2 |
//! | last revision − first revision | revisions 2, record count > 1 |
//! | bytes of the list of postings, and the list; or 0, position and chunk count of a run, CRC of its heads (4 bytes) | record count > 2 |
//!
//! The block index has for each block: how many bytes its separator shares with the one before, how many more it has, and
//! these; position and bytes of the block, its CRC included. The separator is the shortest beginning of the block's first
//! term that is greater than the last term of the block before.

use std::ops::Range;

use super::postings::{HEAD_BYTES, Numbering};
use super::{Kind, TERM_BYTES_MAX, crc_at};
use crate::format::wire::{put_varint, varint};
use crate::format::{Invalid, u32_at};
use crate::types::{Offset, Revision};

/// A block is closed when it has so many bytes.
pub const BLOCK_BYTES: usize = 4096;
/// No block is longer.
pub const BLOCK_BYTES_MAX: usize = 16 << 10;

/// What is known of a term.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Records that have it; 0: a past key.
    pub count: u64,
    /// The first of them.
    pub first: Offset,
    /// The last of them.
    pub last: Offset,
    /// First and last revision.
    pub revisions: Option<(Revision, Revision)>,
    /// How the revisions in between are told.
    pub numbering: Numbering,
    /// Where the offsets in between are.
    pub postings: Place,
}

/// Where the postings of a term are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// First and last are all.
    Ends,
    /// These bytes of the block.
    Inline(Range<usize>),
    /// A run of its own.
    Run {
        /// Where it stands in the file.
        position: u64,
        /// How long its heads are.
        heads_bytes: u64,
        /// The CRC of its heads.
        crc: u32,
    },
}

/// Walks over the entries of a block.
#[derive(Debug)]
pub struct Block<'a> {
    bytes: &'a [u8],
    at: usize,
    base_offset: Offset,
    term: Vec<u8>,
}

impl<'a> Block<'a> {
    /// A block of a file with this seed, as it stands at `position`, its CRC included. `base_offset` is the segment's.
    pub fn new(seed: u32, position: u64, bytes: &'a [u8], base_offset: Offset) -> Result<Self, Invalid> {
        let content = bytes.len().checked_sub(4).filter(|_| bytes.len() <= BLOCK_BYTES_MAX);
        let content = content.ok_or(Invalid::new("a block of terms has another length", 0))?;
        if crc_at(seed, position, &bytes[..content]) != u32_at(bytes, content) {
            return Err(Invalid::new("the checksum of a block of terms does not match", content));
        }
        Ok(Self { bytes: &bytes[..content], at: 0, base_offset, term: Vec::new() })
    }

    /// The term of the last entry.
    pub fn term(&self) -> &[u8] {
        &self.term
    }

    /// Goes to the next entry; `None` at the end.
    pub fn step(&mut self) -> Result<Option<Entry>, Invalid> {
        if self.at == self.bytes.len() {
            return Ok(None);
        }
        self.at = step_text(self.bytes, self.at, &mut self.term)?;
        if self.term.is_empty() {
            return Err(Invalid::new("a term has no kind", self.at));
        }
        self.entry().map(Some)
    }

    /// The entry of `term`, if the block has it.
    pub fn find(mut self, term: &[u8]) -> Result<Option<Entry>, Invalid> {
        while let Some(entry) = self.step()? {
            match self.term.as_slice().cmp(term) {
                std::cmp::Ordering::Less => {}
                std::cmp::Ordering::Equal => return Ok(Some(entry)),
                std::cmp::Ordering::Greater => break,
            }
        }
        Ok(None)
    }

    fn number(&mut self) -> Result<u64, Invalid> {
        let (number, end) = varint(self.bytes, self.at)?;
        self.at = end;
        Ok(number)
    }

    fn entry(&mut self) -> Result<Entry, Invalid> {
        let too_large = Invalid::new("a number is out of range", self.at);
        let count = self.number()?;
        if count == 0 {
            let last = Revision(self.number()?);
            return Ok(Entry {
                count,
                first: Offset::ZERO,
                last: Offset::ZERO,
                revisions: Some((last, last)),
                numbering: Numbering::None,
                postings: Place::Ends,
            });
        }
        let first = self.base_offset.0.checked_add(self.number()?).ok_or(too_large)?;
        let span = if count > 1 { self.number()? } else { 0 };
        let last = first.checked_add(span).filter(|_| span >= count - 1).ok_or(too_large)?;
        let numbering = if self.term[0] == Kind::Key as u8 { self.number()? } else { 0 };
        let numbering = match numbering {
            0 => Numbering::None,
            1 => Numbering::Dense,
            2 => Numbering::Listed,
            _ => return Err(Invalid::new("revisions are told in an unknown way", self.at)),
        };
        let mut revisions = None;
        if numbering != Numbering::None {
            let first = self.number()?;
            let span = match numbering {
                Numbering::Listed if count > 1 => self.number()?,
                _ => count - 1,
            };
            let last = first.checked_add(span).filter(|_| span >= count - 1).ok_or(too_large)?;
            revisions = Some((Revision(first), Revision(last)));
        }
        let postings = if count > 2 { self.place()? } else { Place::Ends };
        let (first, last) = (Offset(first), Offset(last));
        Ok(Entry { count, first, last, revisions, numbering, postings })
    }

    fn place(&mut self) -> Result<Place, Invalid> {
        let inline = usize::try_from(self.number()?).unwrap_or(usize::MAX);
        let cut_off = Invalid::new("postings are cut off", self.at);
        if inline > 0 {
            let end = self.at.checked_add(inline).filter(|&end| end <= self.bytes.len()).ok_or(cut_off)?;
            return Ok(Place::Inline(std::mem::replace(&mut self.at, end)..end));
        }
        let position = self.number()?;
        let heads_bytes = self.number()?.checked_mul(HEAD_BYTES as u64).ok_or(cut_off)?;
        let crc_at = self.at;
        self.at = crc_at.checked_add(4).filter(|&end| end <= self.bytes.len()).ok_or(cut_off)?;
        Ok(Place::Run { position, heads_bytes, crc: u32_at(self.bytes, crc_at) })
    }
}

/// Appends `text`, of which what it shares with `before` is left out.
pub(super) fn put_text(out: &mut Vec<u8>, before: &[u8], text: &[u8]) {
    let shared = shared_bytes(before, text);
    put_varint(out, shared as u64);
    put_varint(out, (text.len() - shared) as u64);
    out.extend_from_slice(&text[shared..]);
}

pub(super) fn shared_bytes(a: &[u8], b: &[u8]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Turns `text` into the one at `at`; returns where that ends.
fn step_text(bytes: &[u8], at: usize, text: &mut Vec<u8>) -> Result<usize, Invalid> {
    let (shared, more_at) = varint(bytes, at)?;
    let (more, from) = varint(bytes, more_at)?;
    let within = |number: u64, most: usize| usize::try_from(number).ok().filter(|&number| number <= most);
    let found = within(shared, text.len()).zip(within(more, bytes.len() - from));
    let Some((shared, more)) = found.filter(|(shared, more)| shared + more <= TERM_BYTES_MAX) else {
        return Err(Invalid::new("a term is longer than its block", at));
    };
    let is_first = at == 0;
    let is_greater = is_first || bytes[from..from + more] > text[shared..];
    if !is_greater {
        return Err(Invalid::new("terms are out of order", at));
    }
    text.truncate(shared);
    text.extend_from_slice(&bytes[from..from + more]);
    Ok(from + more)
}

/// The index of blocks, in memory.
#[derive(Clone, Debug, Default)]
pub struct BlockIndex {
    /// All separators, one behind the other.
    separators: Vec<u8>,
    blocks: Vec<BlockPlace>,
}

/// Where a block is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockPlace {
    separator_end: usize,
    /// Where it begins in the file.
    pub position: u64,
    /// How long it is, its CRC included.
    pub bytes: u32,
}

impl BlockIndex {
    /// Reads an encoded index, whose checksum holds. All blocks lie before `end`.
    pub fn decode(bytes: &[u8], block_count: u32, end: u64) -> Result<Self, Invalid> {
        let mut index = Self::default();
        let mut at = 0;
        let mut separator = Vec::new();
        while at < bytes.len() {
            let begun = at;
            at = step_text(bytes, at, &mut separator)?;
            let (position, bytes_at) = varint(bytes, at)?;
            let (length, behind) = varint(bytes, bytes_at)?;
            at = behind;
            let is_within = position.checked_add(length).is_some_and(|block_end| block_end <= end);
            let length = u32::try_from(length).ok().filter(|_| is_within);
            let bytes = length.filter(|&length| length as usize <= BLOCK_BYTES_MAX);
            let bytes = bytes.ok_or(Invalid::new("a block of terms lies behind the blocks", begun))?;
            index.separators.extend_from_slice(&separator);
            index.blocks.push(BlockPlace { separator_end: index.separators.len(), position, bytes });
        }
        if index.blocks.len() != block_count as usize {
            return Err(Invalid::new("the index has another number of blocks", 0));
        }
        index.separators.shrink_to_fit();
        index.blocks.shrink_to_fit();
        Ok(index)
    }

    /// The number of the block where `term` would be; `None` if it lies before all of them.
    pub fn find(&self, term: &[u8]) -> Option<usize> {
        let separator = |number: usize| {
            let begin = number.checked_sub(1).map_or(0, |before| self.blocks[before].separator_end);
            &self.separators[begin..self.blocks[number].separator_end]
        };
        let (mut low, mut high) = (0, self.blocks.len());
        while low < high {
            let middle = low.midpoint(high);
            if separator(middle) <= term { low = middle + 1 } else { high = middle }
        }
        low.checked_sub(1)
    }

    /// The blocks in order.
    pub fn blocks(&self) -> &[BlockPlace] {
        &self.blocks
    }

    /// Bytes it takes in memory.
    pub fn memory_bytes(&self) -> usize {
        self.separators.capacity() + self.blocks.capacity() * size_of::<BlockPlace>()
    }
}
