//! Postings: the offsets of the records that have a term, rising; of a key with their revisions, if these have gaps.
//!
//! The first offset and the last one, and likewise the revisions, stand with the term. A list of more than two has all
//! behind the first one as varints: for each the distance from the offset before, and where revisions are listed the
//! distance from the revision before. A list of at most 256 bytes stands with its term, a longer one in a run:
//!
//! ```text
//! run    | head of chunk 0 | head of chunk 1 | ... | chunk 0 | chunk 1 | ...
//! head   | first offset (8) | first revision (8), or 0 | bytes (4) | crc (4) |
//! ```
//!
//! A chunk is the list of at most 512 postings behind the first one of it. Its `crc` is bound to its position; that of all
//! heads, bound to the position of the run, stands with the term. Who looks for an offset reads the heads and one chunk.

use super::crc_at;
use crate::format::wire::{put_varint, varint};
use crate::format::{Invalid, u32_at, u64_at};
use crate::types::{Offset, Revision};

/// The longest list that stands with its term.
pub const INLINE_BYTES_MAX: usize = 256;
/// Postings of one chunk.
pub const CHUNK_POSTINGS: usize = 512;
/// Bytes of the head of a chunk.
pub const HEAD_BYTES: usize = 24;

/// A record that has a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Posting {
    /// Its offset.
    pub offset: Offset,
    /// Its revision: of a key, if the records are numbered.
    pub revision: Option<Revision>,
}

/// The revisions of a key's records in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Revisions<'a> {
    /// There are none: the term is no key, or its records are from before there were revisions.
    None,
    /// From this one on, without a gap.
    Dense(Revision),
    /// One for each posting, rising.
    Listed(&'a [Revision]),
}

impl Revisions<'_> {
    /// Of the posting with this number.
    pub fn at(&self, number: usize) -> Option<Revision> {
        match self {
            Self::None => None,
            Self::Dense(first) => Some(first.saturating_add(number as u64)),
            Self::Listed(list) => list.get(number).copied(),
        }
    }

    fn listed(&self) -> Option<&[Revision]> {
        match self {
            Self::Listed(list) => Some(list),
            _ => None,
        }
    }
}

/// How the revisions of a list are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbering {
    /// Not at all.
    None,
    /// Each is one more than the one before.
    Dense,
    /// They stand in the list.
    Listed,
}

/// Appends the list behind the first posting.
pub(super) fn put_list(out: &mut Vec<u8>, offsets: &[Offset], revisions: Option<&[Revision]>) {
    for number in 1..offsets.len() {
        put_varint(out, offsets[number] - offsets[number - 1]);
        if let Some(revisions) = revisions {
            put_varint(out, revisions[number] - revisions[number - 1]);
        }
    }
}

/// Reads the list behind `first`, to the end of `bytes`.
pub fn list(bytes: &[u8], first: Posting, numbering: Numbering) -> Result<Vec<Posting>, Invalid> {
    let mut postings = vec![first];
    let mut at = 0;
    let mut last = first;
    let step = |number: u64, by: u64| {
        (by > 0).then(|| number.checked_add(by)).flatten().ok_or(Invalid::new("postings do not rise", 0))
    };
    while at < bytes.len() {
        let (distance, end) = varint(bytes, at)?;
        at = end;
        last.offset = Offset(step(last.offset.0, distance)?);
        last.revision = match (numbering, last.revision) {
            (Numbering::Dense, Some(revision)) => Some(Revision(step(revision.0, 1)?)),
            (Numbering::Listed, Some(revision)) => {
                let (distance, end) = varint(bytes, at)?;
                at = end;
                Some(Revision(step(revision.0, distance)?))
            }
            _ => None,
        };
        postings.push(last);
    }
    Ok(postings)
}

/// A chunk of a run, as its head tells of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Its first posting.
    pub first: Posting,
    /// Number of that posting in the whole list.
    pub number: u64,
    /// Where it stands in the file.
    pub position: u64,
    /// How long it is.
    pub bytes: u32,
    crc: u32,
}

impl Chunk {
    /// Reads the postings of the chunk, whose bytes are these.
    pub fn postings(&self, seed: u32, bytes: &[u8], numbering: Numbering) -> Result<Vec<Posting>, Invalid> {
        if crc_at(seed, self.position, bytes) != self.crc {
            return Err(Invalid::new("the checksum of a chunk of postings does not match", 0));
        }
        list(bytes, self.first, numbering)
    }
}

/// Reads the heads of a run that stands at `position`. `first_revision` is that of the whole list.
pub fn heads(
    seed: u32,
    (position, crc): (u64, u32),
    bytes: &[u8],
    numbering: Numbering,
    first_revision: Option<Revision>,
) -> Result<Vec<Chunk>, Invalid> {
    if crc_at(seed, position, bytes) != crc || !bytes.len().is_multiple_of(HEAD_BYTES) {
        return Err(Invalid::new("the checksum of the heads of postings does not match", 0));
    }
    let mut at = position.saturating_add(bytes.len() as u64);
    let mut number = 0;
    let chunk = |head: &[u8]| {
        let revision = match numbering {
            Numbering::None => None,
            Numbering::Dense => first_revision.map(|first| first.saturating_add(number)),
            Numbering::Listed => Some(Revision(u64_at(head, 8))),
        };
        let first = Posting { offset: Offset(u64_at(head, 0)), revision };
        let chunk = Chunk { first, number, position: at, bytes: u32_at(head, 16), crc: u32_at(head, 20) };
        at = at.saturating_add(chunk.bytes.into());
        number += CHUNK_POSTINGS as u64;
        chunk
    };
    Ok(bytes.chunks_exact(HEAD_BYTES).map(chunk).collect())
}

/// Appends a run that stands at `position`; returns how many chunks it has and the CRC of their heads.
pub(super) fn put_run(
    out: &mut Vec<u8>,
    seed: u32,
    position: u64,
    offsets: &[Offset],
    revisions: &Revisions<'_>,
) -> (u64, u32) {
    let chunks = offsets.len().div_ceil(CHUNK_POSTINGS);
    let heads_bytes = chunks * HEAD_BYTES;
    let (mut heads, mut lists) = (Vec::with_capacity(heads_bytes), Vec::new());
    for (number, some) in offsets.chunks(CHUNK_POSTINGS).enumerate() {
        let from = number * CHUNK_POSTINGS;
        let listed = revisions.listed().map(|list| &list[from..from + some.len()]);
        let begun = lists.len();
        put_list(&mut lists, some, listed);
        let at = position + (heads_bytes + begun) as u64;
        let bytes = u32::try_from(lists.len() - begun).expect("a chunk is small");
        heads.extend_from_slice(&some[0].0.to_le_bytes());
        heads.extend_from_slice(&listed.map_or(0, |listed| listed[0].0).to_le_bytes());
        heads.extend_from_slice(&bytes.to_le_bytes());
        heads.extend_from_slice(&crc_at(seed, at, &lists[begun..]).to_le_bytes());
    }
    let crc = crc_at(seed, position, &heads);
    out.extend_from_slice(&heads);
    out.extend_from_slice(&lists);
    (chunks as u64, crc)
}
