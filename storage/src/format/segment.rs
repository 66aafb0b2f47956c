//! A segment: one file of a topic.
//!
//! ```text
//! active    | header | batch | batch | ...
//! sealed    | header | batch | batch | ... | index entries | footer |
//! ```
//!
//! Header, 64 bytes:
//!
//! ```text
//!  0                16          32          48            56      60      64
//!  | preamble       | store uid | topic uid | base offset | epoch | crc   |
//! ```
//!
//! `crc` is the CRC-32 of the 60 bytes before it. `epoch` is reserved (0).
//!
//! Index, one entry of 24 bytes at most every 4 KiB of batches, in rising order of each of its numbers:
//!
//! ```text
//!  0             8                                    16         24
//!  | base offset | append time of the batch           | position |
//! ```
//!
//! Footer, 96 bytes, the last of a sealed file:
//!
//! ```text
//!  0                16          32            40            48           56           64
//!  | preamble       | topic uid | base offset | next offset | first time | last time  |
//!  64           72               80            84             88         92     96
//!  | data bytes | record count   | index count | batch hash   | index crc | crc   |
//! ```
//!
//! `data bytes`: where the batches end and the index begins. `batch hash`: the CRC-32 over the header CRCs of all
//! batches in order, which says whether two segments hold the same. `index crc` is begun with the base offset's
//! CRC. `crc`: of the 92 bytes before it, begun with the topic's seed. The number of batches' bytes up to the
//! footer is `data bytes + 24 * index count`, so a footer at another place does not verify its file.

use super::{HeaderProblem, Invalid, PREAMBLE_BYTES, check_preamble, crc, put_preamble, u32_at, u64_at};
use crate::types::{Offset, Position, Timestamp, Uid};

/// Bytes of the header; the first batch follows.
pub const HEADER_BYTES: usize = 64;
/// Bytes of one index entry.
pub const INDEX_ENTRY_BYTES: usize = 24;
/// Bytes of the footer.
pub const FOOTER_BYTES: usize = 96;
/// There is an index entry for the first batch, and for each that starts this many bytes after the last entry.
pub const INDEX_INTERVAL_BYTES: u64 = 4096;

const HEADER_MAGIC: &[u8; 8] = b"QUIPUSEG";
const FOOTER_MAGIC: &[u8; 8] = b"QUIPUEND";

/// The start of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The store it belongs to.
    pub store: Uid,
    /// The topic it belongs to.
    pub topic: Uid,
    /// The first offset that it can hold.
    pub base_offset: Offset,
}

impl SegmentHeader {
    /// The encoding.
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        put_preamble(HEADER_MAGIC, &mut out);
        out[16..32].copy_from_slice(&self.store.0);
        out[32..48].copy_from_slice(&self.topic.0);
        out[48..56].copy_from_slice(&self.base_offset.0.to_le_bytes());
        let sum = crc(0, &out[..60]);
        out[60..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Decodes and verifies.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderProblem> {
        let bytes = bytes
            .get(..HEADER_BYTES)
            .ok_or(HeaderProblem::Invalid(Invalid::new("the segment header is cut off", bytes.len())))?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(HeaderProblem::Blank);
        }
        if crc(0, &bytes[..60]) != u32_at(bytes, 60) {
            return Err(HeaderProblem::Invalid(Invalid::new(
                "the checksum of the segment header does not match",
                60,
            )));
        }
        check_preamble(HEADER_MAGIC, bytes)?;
        Ok(Self {
            store: Uid(bytes[16..32].try_into().expect("16 bytes")),
            topic: Uid(bytes[32..48].try_into().expect("16 bytes")),
            base_offset: Offset(u64_at(bytes, 48)),
        })
    }
}

/// One entry of an index: a batch and where it starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexEntry {
    /// Base offset of the batch.
    pub base_offset: Offset,
    /// Its append time.
    pub append_time: Timestamp,
    /// Where it starts in the file.
    pub position: Position,
}

impl IndexEntry {
    /// The encoding.
    pub fn encode(&self) -> [u8; INDEX_ENTRY_BYTES] {
        let mut out = [0; INDEX_ENTRY_BYTES];
        out[..8].copy_from_slice(&self.base_offset.0.to_le_bytes());
        out[8..16].copy_from_slice(&self.append_time.0.to_le_bytes());
        out[16..].copy_from_slice(&self.position.0.to_le_bytes());
        out
    }

    /// The entry with the given number in an encoded index, which must have it.
    #[inline]
    pub fn at(index: &[u8], number: usize) -> Self {
        let at = number * INDEX_ENTRY_BYTES;
        Self {
            base_offset: Offset(u64_at(index, at)),
            append_time: Timestamp(u64_at(index, at + 8)),
            position: Position(u64_at(index, at + 16)),
        }
    }
}

/// The CRC of an encoded index.
pub fn index_crc(base_offset: Offset, index: &[u8]) -> u32 {
    crc(crc(0, &base_offset.0.to_le_bytes()), index)
}

/// The end of a sealed segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Footer {
    /// The topic it belongs to.
    pub topic: Uid,
    /// As in the header.
    pub base_offset: Offset,
    /// One past the last offset that it covers.
    pub next_offset: Offset,
    /// Append time of the first batch, or 0 without one.
    pub first_time: Timestamp,
    /// Append time of the last batch, or 0 without one.
    pub last_time: Timestamp,
    /// Where the batches end, counted from the start of the file.
    pub data_bytes: u64,
    /// Records in it.
    pub record_count: u64,
    /// Entries of its index.
    pub index_count: u32,
    /// CRC over the header CRCs of its batches.
    pub batch_hash: u32,
    /// CRC of its index.
    pub index_crc: u32,
}

impl Footer {
    /// The encoding.
    pub fn encode(&self, seed: u32) -> [u8; FOOTER_BYTES] {
        let mut out = [0; FOOTER_BYTES];
        put_preamble(FOOTER_MAGIC, &mut out);
        out[16..32].copy_from_slice(&self.topic.0);
        let numbers = [
            self.base_offset.0,
            self.next_offset.0,
            self.first_time.0,
            self.last_time.0,
            self.data_bytes,
            self.record_count,
        ];
        for (at, number) in (32..).step_by(8).zip(numbers) {
            out[at..at + 8].copy_from_slice(&number.to_le_bytes());
        }
        for (at, number) in (80..).step_by(4).zip([self.index_count, self.batch_hash, self.index_crc]) {
            out[at..at + 4].copy_from_slice(&number.to_le_bytes());
        }
        let sum = crc(seed, &out[..92]);
        out[92..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Decodes and verifies the last bytes of a file of `file_bytes`.
    pub fn decode(bytes: &[u8], seed: u32, file_bytes: u64) -> Result<Self, HeaderProblem> {
        let invalid = |detail, at| Err(HeaderProblem::Invalid(Invalid::new(detail, at)));
        let Some(bytes) = bytes.get(..FOOTER_BYTES) else {
            return invalid("the footer is cut off", bytes.len());
        };
        if bytes[..8] != *FOOTER_MAGIC {
            return invalid("there is no footer", 0);
        }
        if crc(seed, &bytes[..92]) != u32_at(bytes, 92) {
            return invalid("the checksum of the footer does not match", 92);
        }
        check_preamble(FOOTER_MAGIC, &bytes[..PREAMBLE_BYTES])?;
        let footer = Self {
            topic: Uid(bytes[16..32].try_into().expect("16 bytes")),
            base_offset: Offset(u64_at(bytes, 32)),
            next_offset: Offset(u64_at(bytes, 40)),
            first_time: Timestamp(u64_at(bytes, 48)),
            last_time: Timestamp(u64_at(bytes, 56)),
            data_bytes: u64_at(bytes, 64),
            record_count: u64_at(bytes, 72),
            index_count: u32_at(bytes, 80),
            batch_hash: u32_at(bytes, 84),
            index_crc: u32_at(bytes, 88),
        };
        let index_bytes = u64::from(footer.index_count) * INDEX_ENTRY_BYTES as u64;
        let bytes_before = footer.data_bytes.checked_add(index_bytes + FOOTER_BYTES as u64);
        if bytes_before != Some(file_bytes) || footer.data_bytes < HEADER_BYTES as u64 {
            return invalid("the footer belongs to a file of another length", 64);
        }
        if footer.next_offset < footer.base_offset {
            return invalid("the footer's offsets do not rise", 40);
        }
        Ok(footer)
    }
}

/// What grows along with a segment: its index, and the sums for its footer.
#[derive(Clone, Debug)]
pub struct IndexBuilder {
    entries: Vec<u8>,
    indexed_up_to: Option<u64>,
    first_time: Timestamp,
    last_time: Timestamp,
    record_count: u64,
    batch_hash: u32,
    /// Header CRCs that are not in `batch_hash` yet: summing many at once costs a fraction.
    unhashed: Vec<u8>,
    base_offset: Offset,
    next_offset: Offset,
    position: u64,
}

/// Bytes of header CRCs that are summed at once.
const HASHED_AT_ONCE: usize = 4096;

impl IndexBuilder {
    /// For a segment without batches yet.
    pub fn new(base_offset: Offset) -> Self {
        Self {
            entries: Vec::new(),
            indexed_up_to: None,
            first_time: Timestamp::ZERO,
            last_time: Timestamp::ZERO,
            record_count: 0,
            batch_hash: 0,
            unhashed: Vec::new(),
            base_offset,
            next_offset: base_offset,
            position: HEADER_BYTES as u64,
        }
    }

    /// As it was when it wrote `footer`, with these index entries.
    pub fn of_footer(footer: &Footer, entries: Vec<u8>) -> Self {
        let last = entries.len().checked_sub(INDEX_ENTRY_BYTES);
        Self {
            indexed_up_to: last.map(|at| IndexEntry::at(&entries, at / INDEX_ENTRY_BYTES).position.0),
            entries,
            first_time: footer.first_time,
            last_time: footer.last_time,
            record_count: footer.record_count,
            batch_hash: footer.batch_hash,
            unhashed: Vec::new(),
            base_offset: footer.base_offset,
            next_offset: footer.next_offset,
            position: footer.data_bytes,
        }
    }

    /// Takes in the next batch, which starts at [`position`](Self::position) and has `header`, whose encoding
    /// begins with `header_bytes`.
    pub fn push(&mut self, header: &super::batch::BatchHeader, header_bytes: &[u8]) {
        let _ = self.push_and_tell(header, header_bytes);
    }

    /// The same; says whether the batch got an entry.
    #[inline]
    pub(crate) fn push_and_tell(&mut self, header: &super::batch::BatchHeader, header_bytes: &[u8]) -> bool {
        let is_entry_due = self.indexed_up_to.is_none_or(|last| self.position - last >= INDEX_INTERVAL_BYTES);
        if is_entry_due {
            let entry = IndexEntry {
                base_offset: header.base_offset,
                append_time: header.append_time,
                position: Position(self.position),
            };
            self.entries.extend_from_slice(&entry.encode());
            self.indexed_up_to = Some(self.position);
        }
        if self.position == HEADER_BYTES as u64 {
            self.first_time = header.append_time;
        }
        self.last_time = header.append_time;
        self.record_count += u64::from(header.record_count);
        self.unhashed.extend_from_slice(&header_bytes[..4]);
        if self.unhashed.len() >= HASHED_AT_ONCE {
            self.batch_hash = crc(self.batch_hash, &self.unhashed);
            self.unhashed.clear();
        }
        self.next_offset = header.next_offset();
        self.position += header.stored_bytes() as u64;
        is_entry_due
    }

    /// The same for a batch that was found at `position`, behind damage perhaps.
    pub fn push_at(&mut self, position: u64, header: &super::batch::BatchHeader, header_bytes: &[u8]) {
        self.position = position;
        self.push(header, header_bytes);
    }

    /// The next batch goes to `position`: behind damage at the end, perhaps.
    pub fn move_to(&mut self, position: u64) {
        self.position = position;
    }

    /// Where the next batch goes.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// One past the last offset taken in.
    pub fn next_offset(&self) -> Offset {
        self.next_offset
    }

    /// The encoded index so far.
    pub fn entries(&self) -> &[u8] {
        &self.entries
    }

    /// Append times of the first and the last batch.
    pub fn times(&self) -> (Timestamp, Timestamp) {
        (self.first_time, self.last_time)
    }

    /// Records taken in.
    pub fn record_count(&self) -> u64 {
        self.record_count
    }

    /// The footer of the segment if it ends here. `next_offset` may be larger than the last batch's, where
    /// compaction took out what came behind.
    pub fn footer(&self, topic: Uid, next_offset: Offset) -> Footer {
        Footer {
            topic,
            base_offset: self.base_offset,
            next_offset,
            first_time: self.first_time,
            last_time: self.last_time,
            data_bytes: self.position,
            record_count: self.record_count,
            index_count: u32::try_from(self.entries.len() / INDEX_ENTRY_BYTES)
                .expect("bounded by the segment"),
            batch_hash: crc(self.batch_hash, &self.unhashed),
            index_crc: index_crc(self.base_offset, &self.entries),
        }
    }
}

/// The number of the last entry of `index` for which `before` holds, which is true up to some entry and false
/// from there on; `None` if it is false for the first.
pub fn last_entry(index: &[u8], before: impl Fn(IndexEntry) -> bool) -> Option<usize> {
    let (mut low, mut high) = (0, index.len() / INDEX_ENTRY_BYTES);
    while low < high {
        let middle = usize::midpoint(low, high);
        if before(IndexEntry::at(index, middle)) { low = middle + 1 } else { high = middle }
    }
    low.checked_sub(1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::batch::{self, BatchBuilder, BatchHeader, Codec};

    proptest! {
        #[test]
        fn header_and_footer_come_back(uid: [u8; 16], base in 0..1_u64 << 60, span in 0..1_u64 << 60, data in 64_u64..1 << 40, index: u16) {
            let header = SegmentHeader { store: Uid(uid), topic: Uid([9; 16]), base_offset: Offset(base) };
            prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header));
            let footer = Footer {
                topic: Uid(uid), base_offset: Offset(base), next_offset: Offset(base + span), first_time: Timestamp(1),
                last_time: Timestamp(2), data_bytes: data, record_count: span, index_count: index.into(), batch_hash: 5, index_crc: 6,
            };
            let file_bytes = data + u64::from(index) * 24 + 96;
            prop_assert_eq!(Footer::decode(&footer.encode(3), 3, file_bytes), Ok(footer));
            prop_assert!(Footer::decode(&footer.encode(3), 3, file_bytes + 8).is_err());
            prop_assert!(Footer::decode(&footer.encode(3), 4, file_bytes).is_err());
        }

        #[test]
        fn any_bytes_are_a_header_or_an_error(bytes: Vec<u8>, file_bytes: u64) {
            let _ = (SegmentHeader::decode(&bytes), Footer::decode(&bytes, 0, file_bytes));
        }
    }

    #[test]
    fn what_a_footer_brings_back_goes_on_as_what_wrote_it() {
        let header = |offset: u64, bytes| BatchHeader {
            base_offset: Offset(offset),
            append_time: Timestamp(7 + offset),
            ..*BatchBuilder::from_body(vec![0; batch::HEADER_BYTES + bytes], 1, Codec::None).header()
        };
        let mut builder = IndexBuilder::new(Offset(3));
        for offset in 3..40_u64 {
            builder.push(&header(offset, 700), &offset.to_le_bytes());
        }
        let footer = builder.footer(Uid([2; 16]), builder.next_offset());
        let mut again = IndexBuilder::of_footer(&footer, builder.entries().to_vec());
        for offset in 40..90_u64 {
            builder.push(&header(offset, 300), &offset.to_le_bytes());
            again.push(&header(offset, 300), &offset.to_le_bytes());
        }
        assert_eq!(again.entries(), builder.entries());
        let end = builder.next_offset();
        assert_eq!(again.footer(Uid([2; 16]), end), builder.footer(Uid([2; 16]), end));
    }

    #[test]
    fn every_flipped_bit_of_header_and_footer_is_noticed() {
        let header =
            SegmentHeader { store: Uid([1; 16]), topic: Uid([2; 16]), base_offset: Offset(3) }.encode();
        let footer = IndexBuilder::new(Offset(3)).footer(Uid([2; 16]), Offset(3)).encode(0);
        for bit in 0..HEADER_BYTES * 8 {
            let mut damaged = header;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(SegmentHeader::decode(&damaged), Err(HeaderProblem::Invalid(_))), "bit {bit}");
        }
        for bit in 0..FOOTER_BYTES * 8 {
            let mut damaged = footer;
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(matches!(Footer::decode(&damaged, 0, 160), Err(HeaderProblem::Invalid(_))), "bit {bit}");
        }
    }

    #[test]
    fn a_newer_version_is_told_from_damage() {
        let mut header =
            SegmentHeader { store: Uid([1; 16]), topic: Uid([2; 16]), base_offset: Offset(3) }.encode();
        header[8] = 2;
        let sum = crc(0, &header[..60]);
        header[60..].copy_from_slice(&sum.to_le_bytes());
        assert_eq!(SegmentHeader::decode(&header), Err(HeaderProblem::Newer(2)));
    }
}
