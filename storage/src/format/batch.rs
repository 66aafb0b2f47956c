//! A record batch: the unit of write, checksum, compression and acknowledgement.
//!
//! ```text
//!  0            4             8             16             20             24
//!  | header crc | batch bytes | base offset | offset span  | record count |
//!  24            32         36          40          44         45      46      48
//!  | append time | body crc | raw bytes | ext bytes | encoding | codec | flags |
//!  48                        batch bytes
//!  | ext ... | body ...      |  zeros to a multiple of 8
//! ```
//!
//! - `header crc`: CRC-32 of bytes 4 to the end of `ext`, begun with the topic's seed (the CRC-32 of its uid), so
//!   that a batch of another topic never verifies. The base offset is under it, so a misplaced batch does not either.
//! - `body crc`: CRC-32 of the body as stored. It is under the header crc: together they cover every byte, and
//!   the body is summed once, by whoever made it, not again for the journal and the segment.
//! - `batch bytes`: header, ext and body, without padding. `raw bytes`: the body before compression.
//! - `offset span`: last offset - base offset + 1. It stays when compaction takes records out, so that offsets do.
//! - `encoding`: 1 = the body is protobuf `repeated Record records = 1`. Other values are reserved for batches
//!   of other systems, to be stored and served verbatim.
//! - `codec`: 0 none, 1 LZ4 block, 2 Zstandard. `flags`: 0; unknown flags are refused.
//!
//! `ext` holds what the server knows about the records, protobuf-encoded:
//!
//! | Field | Content |
//! |---|---|
//! | 1 | offset gaps, packed varints: how many offsets are missing before each record. Absent: records are dense |
//! | 2 | revisions, packed varints, one for each record that has a key (reserved) |
//! | 3 | producer: name, epoch, sequence (reserved) |
//! | 4 | request id (reserved) |
//! | 5 | bare log only: the position up to which this segment was synced when the batch was written |

use bytes::Bytes;

use super::record::{PayloadPrefix, Record, RecordView, Records, put_record};
use super::wire::{Fields, put_bytes, put_number, put_varint, varint};
use super::{ALIGNMENT, Invalid, aligned, crc, u16_at, u32_at, u64_at};
use crate::types::{Offset, Timestamp, Uid};

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 48;
/// No batch is larger, stored or raw, whatever the settings: what a decoder may be made to allocate.
pub const BATCH_BYTES_LIMIT: usize = 64 << 20;
/// The body holds protobuf records.
pub const ENCODING_PROTOBUF: u8 = 1;

mod at {
    pub(super) const CRC: usize = 0;
    pub(super) const BATCH_BYTES: usize = 4;
    pub(super) const BASE_OFFSET: usize = 8;
    pub(super) const OFFSET_SPAN: usize = 16;
    pub(super) const RECORD_COUNT: usize = 20;
    pub(super) const APPEND_TIME: usize = 24;
    pub(super) const BODY_CRC: usize = 32;
    pub(super) const RAW_BYTES: usize = 36;
    pub(super) const EXT_BYTES: usize = 40;
    pub(super) const ENCODING: usize = 44;
    pub(super) const CODEC: usize = 45;
    pub(super) const FLAGS: usize = 46;
}
const _: () = assert!(at::FLAGS + 2 == HEADER_BYTES && HEADER_BYTES.is_multiple_of(ALIGNMENT));

const EXT_OFFSET_GAPS: u32 = 1;
const EXT_SYNCED_POSITION: u32 = 5;

/// How the body of a batch is compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Codec {
    /// Not at all.
    #[default]
    None,
    /// LZ4 block format.
    Lz4,
    /// Zstandard.
    Zstd,
}

impl Codec {
    /// The name, which is also the crate's feature.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        }
    }

    /// Whether this build has it.
    pub const fn is_available(self) -> bool {
        match self {
            Self::None => true,
            Self::Lz4 => cfg!(feature = "lz4"),
            Self::Zstd => cfg!(feature = "zstd"),
        }
    }

    pub(crate) const fn code(self) -> u8 {
        self as u8
    }

    pub(crate) const fn from_code(code: u8) -> Option<Self> {
        match code {
            0 => Some(Self::None),
            1 => Some(Self::Lz4),
            2 => Some(Self::Zstd),
            _ => None,
        }
    }

    /// `raw` compressed, or `None` if that does not make it smaller.
    fn compress(self, raw: &[u8]) -> Option<Vec<u8>> {
        let compressed = match self {
            Self::None => return None,
            #[cfg(feature = "lz4")]
            Self::Lz4 => lz4_flex::block::compress(raw),
            #[cfg(not(feature = "lz4"))]
            Self::Lz4 => return None,
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd_compress(raw)?,
            #[cfg(not(feature = "zstd"))]
            Self::Zstd => return None,
        };
        (compressed.len() < raw.len()).then_some(compressed)
    }

    fn decompress(self, stored: Bytes, raw_bytes: usize) -> Result<Bytes, BodyProblem> {
        let damaged = || BodyProblem::Invalid(Invalid::new("the body does not decompress", HEADER_BYTES));
        let raw: Vec<u8> = match self {
            Self::None => return Ok(stored),
            #[cfg(feature = "lz4")]
            Self::Lz4 => lz4_flex::block::decompress(&stored, raw_bytes).map_err(|_| damaged())?,
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd::bulk::decompress(&stored, raw_bytes).map_err(|_| damaged())?,
            #[allow(unreachable_patterns, reason = "reached only without the features")]
            codec => return Err(BodyProblem::CodecUnavailable(codec)),
        };
        if raw.len() == raw_bytes { Ok(raw.into()) } else { Err(damaged()) }
    }
}

/// A fresh compressor costs about 17 µs, so each thread keeps one.
#[cfg(feature = "zstd")]
fn zstd_compress(raw: &[u8]) -> Option<Vec<u8>> {
    use std::cell::RefCell;
    thread_local! {
        static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    }
    COMPRESSOR.with_borrow_mut(|compressor| {
        if compressor.is_none() {
            *compressor = zstd::bulk::Compressor::new(3).ok();
        }
        compressor.as_mut()?.compress(raw).ok()
    })
}

/// Why the records of an intact batch cannot be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyProblem {
    /// They are not what the header says.
    Invalid(Invalid),
    /// This build lacks the codec.
    CodecUnavailable(Codec),
}

/// The seed of all header CRCs of a topic.
pub fn seed(topic: Uid) -> u32 {
    crc(0, &topic.0)
}

/// A batch being made: everything but what only the log knows (offset, time), in one piece of memory.
#[derive(Debug)]
pub struct BatchBuilder {
    /// Room for the header, ext and body, and padding perhaps.
    bytes: Vec<u8>,
    header: BatchHeader,
}

impl BatchBuilder {
    /// A dense batch of `record_count` records whose protobuf encoding `fill` appends; it is told about
    /// how many bytes it will write, to reserve them at once.
    pub fn new(record_count: u32, codec: Codec, body_bytes: usize, fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        let mut bytes = Vec::with_capacity(HEADER_BYTES + body_bytes);
        bytes.resize(HEADER_BYTES, 0);
        fill(&mut bytes);
        Self::from_body(bytes, record_count, codec)
    }

    /// A dense batch of `record_count` records. `bytes` has [`HEADER_BYTES`] of room and behind it their protobuf
    /// encoding.
    pub fn from_body(bytes: Vec<u8>, record_count: u32, codec: Codec) -> Self {
        Self::finish(bytes, 0, record_count, record_count, codec)
    }

    /// A batch of nothing yet, to be [filled](Self::fill).
    pub const fn empty() -> Self {
        let header = BatchHeader {
            base_offset: Offset::ZERO,
            offset_span: 0,
            record_count: 0,
            append_time: Timestamp::ZERO,
            codec: Codec::None,
            body_crc: 0,
            batch_bytes: HEADER_BYTES as u32,
            raw_bytes: 0,
            ext_bytes: 0,
        };
        Self { bytes: Vec::new(), header }
    }

    /// Makes this a dense batch of `records`, in the same memory. There are fewer than 2^32.
    pub fn fill(&mut self, records: &[Record], codec: Codec) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        bytes.resize(HEADER_BYTES, 0);
        records.iter().for_each(|record| put_record(&mut bytes, record));
        let record_count = u32::try_from(records.len()).expect("the caller keeps to the bound");
        *self = Self::from_body(bytes, record_count, codec);
    }

    /// A batch of records at the given distances from the base offset (rising), as compaction leaves it.
    /// `offset_span` covers the records that are gone too.
    pub fn sparse(deltas: &[u32], offset_span: u32, codec: Codec, fill: impl FnOnce(&mut Vec<u8>)) -> Self {
        let record_count = u32::try_from(deltas.len()).expect("a batch has fewer than 2^32 records");
        let mut bytes = vec![0; HEADER_BYTES];
        let mut packed = Vec::with_capacity(deltas.len());
        let mut dense = 0;
        for &delta in deltas {
            put_varint(&mut packed, u64::from(delta - dense));
            dense = delta + 1;
        }
        put_bytes(&mut bytes, EXT_OFFSET_GAPS, &packed);
        let ext_bytes = bytes.len() - HEADER_BYTES;
        fill(&mut bytes);
        Self::finish(bytes, ext_bytes, record_count, offset_span, codec)
    }

    fn finish(
        mut bytes: Vec<u8>,
        ext_bytes: usize,
        record_count: u32,
        offset_span: u32,
        codec: Codec,
    ) -> Self {
        let body_at = HEADER_BYTES + ext_bytes;
        let raw_bytes = bytes.len() - body_at;
        let mut used = Codec::None;
        if let Some(compressed) = codec.compress(&bytes[body_at..]) {
            bytes.truncate(body_at);
            bytes.extend_from_slice(&compressed);
            used = codec;
        }
        let small = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        let header = BatchHeader {
            base_offset: Offset::ZERO,
            offset_span,
            record_count,
            append_time: Timestamp::ZERO,
            codec: used,
            body_crc: crc(0, &bytes[body_at..]),
            batch_bytes: small(bytes.len()),
            raw_bytes: small(raw_bytes),
            ext_bytes: small(ext_bytes),
        };
        Self { bytes, header }
    }

    /// Bytes of the batch, without padding.
    #[inline]
    pub fn len(&self) -> usize {
        self.header.batch_bytes as usize
    }

    /// Whether it has no bytes: never.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Notes up to where the segment was synced (bare log); before [`seal`](Self::seal).
    pub fn put_synced_position(&mut self, position: u64) {
        let mut ext = Vec::with_capacity(12);
        put_number(&mut ext, EXT_SYNCED_POSITION, position);
        self.bytes.truncate(self.len());
        let at = self.header.body_at();
        self.bytes.splice(at..at, ext.iter().copied());
        let small = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        self.header.ext_bytes += small(ext.len());
        self.header.batch_bytes = small(self.bytes.len());
    }

    /// Fills in what the log decides, and the header CRC.
    #[inline]
    pub fn seal(&mut self, seed: u32, base_offset: Offset, append_time: Timestamp) {
        debug_assert!(self.bytes.len() >= self.len(), "checked against the limit before");
        let header = &mut self.header;
        header.base_offset = base_offset;
        header.append_time = append_time;
        let words = header.words();
        let header_crc = if header.ext_bytes == 0 {
            // From where the numbers are now, without reading back what is stored here.
            short::crc(seed, &words)
        } else {
            put_words(&mut self.bytes, &words);
            crc(seed, &self.bytes[at::BATCH_BYTES..header.body_at()])
        };
        put_words(
            &mut self.bytes,
            &[words[0] | u64::from(header_crc), words[1], words[2], words[3], words[4], words[5]],
        );
    }

    /// The bytes as they are now, without padding; header and ext are there once [sealed](Self::seal).
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.header.batch_bytes as usize]
    }

    /// The same with padding.
    #[inline]
    pub fn stored_bytes(&mut self) -> &[u8] {
        let stored_bytes = self.header.stored_bytes();
        if self.bytes.len() != stored_bytes {
            self.bytes.resize(stored_bytes, 0);
        }
        &self.bytes
    }

    /// The finished batch, without padding.
    pub fn into_bytes(mut self) -> Bytes {
        self.bytes.truncate(self.len());
        self.bytes.into()
    }

    /// Gives memory back if it has more than `bytes_max`.
    pub fn shrink(&mut self, bytes_max: usize) {
        if self.bytes.capacity() > bytes_max {
            *self = Self::empty();
        }
    }

    /// The header, once [sealed](Self::seal).
    #[inline]
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }
}

/// The words of a header, the first with zeros in place of the CRC.
type Words = [u64; HEADER_BYTES / 8];

#[inline]
fn put_words(bytes: &mut [u8], words: &Words) {
    for (place, word) in bytes[..HEADER_BYTES].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
    }
}

/// CRCs of a few bytes that are at hand as numbers. Every byte has a table of its own, so that all look-ups can happen
/// at once.
mod short {
    use super::Words;

    /// The longest message: a header from its second field on.
    const BYTES_MAX: usize = 44;

    /// What a byte does to the CRC that has so many bytes behind it.
    static BEHIND: [[u32; 256]; BYTES_MAX] = tables();

    const fn tables() -> [[u32; 256]; BYTES_MAX] {
        let mut tables = [[0; 256]; BYTES_MAX];
        let mut byte = 0;
        while byte < 256 {
            let mut value = byte as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 { value >> 1 ^ 0xEDB8_8320 } else { value >> 1 };
                bit += 1;
            }
            tables[0][byte] = value;
            byte += 1;
        }
        let mut behind = 1;
        while behind < BYTES_MAX {
            let mut byte = 0;
            while byte < 256 {
                let before = tables[behind - 1][byte];
                tables[behind][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
                byte += 1;
            }
            behind += 1;
        }
        tables
    }

    /// The CRC of a header without ext, of which `words` are everything but the CRC.
    #[inline]
    pub(super) fn crc(seed: u32, words: &Words) -> u32 {
        of_place(words) ^ of_rest(seed, words)
    }

    /// What offset and time do to it.
    #[inline]
    pub(super) fn of_place(words: &Words) -> u32 {
        pair::<4>(words[1]) ^ pair::<20>(words[3])
    }

    /// What everything else does to it, which can be known earlier.
    #[inline]
    pub(super) fn of_rest(seed: u32, words: &Words) -> u32 {
        let first = part(0, (words[0] >> 32) as u32 ^ !seed);
        !(first ^ pair::<12>(words[2]) ^ pair::<28>(words[4]) ^ pair::<36>(words[5]))
    }

    #[inline]
    fn pair<const AT: usize>(word: u64) -> u32 {
        part(AT, word as u32) ^ part(AT + 4, (word >> 32) as u32)
    }

    /// What the four bytes from `at` on do to the CRC of the longest message. Most numbers of a header are small, and
    /// zeros do nothing.
    #[inline(always)]
    fn part(at: usize, number: u32) -> u32 {
        let behind = BYTES_MAX - 1 - at;
        let low = BEHIND[behind][(number & 0xff) as usize];
        if number < 0x100 {
            return low;
        }
        low ^ BEHIND[behind - 1][(number >> 8 & 0xff) as usize]
            ^ BEHIND[behind - 2][(number >> 16 & 0xff) as usize]
            ^ BEHIND[behind - 3][(number >> 24) as usize]
    }

    /// The CRC of the `len` lowest bytes of `bytes`, 4 to 8.
    #[inline]
    pub(super) fn crc_of_prefix(bytes: u64, len: usize) -> u32 {
        // Zeros before the message change nothing once the start value is in it.
        let message = (bytes ^ u64::from(u32::MAX)) << (8 * (8 - len));
        let mut crc = 0;
        for (number, byte) in message.to_le_bytes().into_iter().enumerate() {
            crc ^= BEHIND[7 - number][byte as usize];
        }
        !crc
    }
}

/// A batch of one record that has a payload and nothing else, not compressed: the shortest way from a record to its
/// batch. The payload stays where it is until it is copied to its place, and is summed there; everything else is
/// numbers, because the processor is slow to read back what it has just stored piece by piece.
#[derive(Debug)]
pub(crate) struct PayloadBatch<'a> {
    payload: &'a [u8],
    prefix: PayloadPrefix,
    header: BatchHeader,
    /// Before it is sealed, only what does not depend on its place.
    header_crc: u32,
}

impl<'a> PayloadBatch<'a> {
    /// `None` if the payload is very short or long.
    #[inline]
    pub(crate) fn new(payload: &'a [u8], seed: u32) -> Option<Self> {
        let prefix = PayloadPrefix::new(payload.len())?;
        let raw_bytes = prefix.len + payload.len();
        let header = BatchHeader {
            base_offset: Offset::ZERO,
            offset_span: 1,
            record_count: 1,
            append_time: Timestamp::ZERO,
            codec: Codec::None,
            body_crc: crc(short::crc_of_prefix(prefix.bytes, prefix.len), payload),
            batch_bytes: (HEADER_BYTES + raw_bytes) as u32,
            raw_bytes: raw_bytes as u32,
            ext_bytes: 0,
        };
        let header_crc = short::of_rest(seed, &header.words());
        Some(Self { payload, prefix, header, header_crc })
    }

    /// As [`BatchBuilder::seal`]; only once.
    #[inline]
    pub(crate) fn seal(&mut self, base_offset: Offset, append_time: Timestamp) {
        self.header.base_offset = base_offset;
        self.header.append_time = append_time;
        self.header_crc ^= short::of_place(&self.header.words());
    }

    #[inline]
    pub(crate) fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The first four bytes.
    #[inline]
    pub(crate) fn header_crc(&self) -> [u8; 4] {
        self.header_crc.to_le_bytes()
    }

    /// Writes the sealed batch with its padding over the whole of `place`.
    #[inline]
    pub(crate) fn store(&self, place: &mut [u8]) {
        let mut words = self.header.words();
        words[0] |= u64::from(self.header_crc);
        let (header, body) = place.split_at_mut(HEADER_BYTES);
        put_words(header, &words);
        // The padding first: what comes later covers what is no padding of it.
        let padding_at = body.len() - ALIGNMENT;
        body[padding_at..].copy_from_slice(&[0; ALIGNMENT]);
        body[..8].copy_from_slice(&self.prefix.bytes.to_le_bytes());
        body[self.prefix.len..self.prefix.len + self.payload.len()].copy_from_slice(self.payload);
    }
}

/// The header of a batch, its CRC verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BatchHeader {
    /// Offset of the first record, or of where it was before compaction.
    pub base_offset: Offset,
    /// Offsets that the batch covers.
    pub offset_span: u32,
    /// Records it holds.
    pub record_count: u32,
    /// When it was appended.
    pub append_time: Timestamp,
    /// How the body is compressed.
    pub codec: Codec,
    /// CRC-32 of the body as stored.
    pub body_crc: u32,
    batch_bytes: u32,
    raw_bytes: u32,
    ext_bytes: u32,
}

impl BatchHeader {
    /// Decodes and verifies header and ext at the start of `bytes`, which may go on behind them. That the
    /// body is there is not looked at.
    #[inline]
    pub fn decode(bytes: &[u8], seed: u32) -> Result<Self, Invalid> {
        let header = Self::decode_unverified(bytes)?;
        let covered = bytes
            .get(at::BATCH_BYTES..HEADER_BYTES + header.ext_bytes as usize)
            .ok_or(Invalid::new("a batch header is cut off", at::EXT_BYTES))?;
        if crate::planted::skips_checksums() {
            return Ok(header);
        }
        if crc(seed, covered) != u32_at(bytes, at::CRC) {
            return Err(Invalid::new("the checksum of a batch header does not match", at::CRC));
        }
        Ok(header)
    }

    /// What the header says, its CRC not looked at; the numbers fit together.
    fn decode_unverified(bytes: &[u8]) -> Result<Self, Invalid> {
        if bytes.len() < HEADER_BYTES {
            return Err(Invalid::new("a batch header is cut off", 0));
        }
        let header = Self {
            base_offset: Offset(u64_at(bytes, at::BASE_OFFSET)),
            offset_span: u32_at(bytes, at::OFFSET_SPAN),
            record_count: u32_at(bytes, at::RECORD_COUNT),
            append_time: Timestamp(u64_at(bytes, at::APPEND_TIME)),
            codec: Codec::from_code(bytes[at::CODEC]).ok_or(Invalid::new("unknown codec", at::CODEC))?,
            body_crc: u32_at(bytes, at::BODY_CRC),
            batch_bytes: u32_at(bytes, at::BATCH_BYTES),
            raw_bytes: u32_at(bytes, at::RAW_BYTES),
            ext_bytes: u32_at(bytes, at::EXT_BYTES),
        };
        let whole = header.batch_bytes as usize;
        if whole > BATCH_BYTES_LIMIT || header.raw_bytes as usize > BATCH_BYTES_LIMIT {
            return Err(Invalid::new("a batch is larger than any may be", at::BATCH_BYTES));
        }
        if whole < HEADER_BYTES || header.ext_bytes as usize > whole - HEADER_BYTES {
            return Err(Invalid::new("the parts of a batch do not fit into it", at::EXT_BYTES));
        }
        if header.offset_span == 0 || header.record_count > header.offset_span {
            return Err(Invalid::new("a batch has more records than offsets", at::OFFSET_SPAN));
        }
        if header.base_offset.0.checked_add(u64::from(header.offset_span)).is_none() {
            return Err(Invalid::new("an offset is out of range", at::BASE_OFFSET));
        }
        if bytes[at::ENCODING] != ENCODING_PROTOBUF || u16_at(bytes, at::FLAGS) != 0 {
            return Err(Invalid::new("unknown encoding or flags", at::ENCODING));
        }
        Ok(header)
    }

    /// As in the drawing, but for the CRC.
    #[inline]
    fn words(&self) -> Words {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let kinds = u32::from(ENCODING_PROTOBUF) | u32::from(self.codec.code()) << 8;
        [
            pair(0, self.batch_bytes),
            self.base_offset.0,
            pair(self.offset_span, self.record_count),
            self.append_time.0,
            pair(self.body_crc, self.raw_bytes),
            pair(self.ext_bytes, kinds),
        ]
    }

    /// Header, ext and body, without padding.
    pub fn batch_bytes(&self) -> usize {
        self.batch_bytes as usize
    }

    /// The body before compression.
    pub fn raw_bytes(&self) -> usize {
        self.raw_bytes as usize
    }

    /// [`batch_bytes`](Self::batch_bytes) with padding: how far the next batch is.
    #[inline]
    pub fn stored_bytes(&self) -> usize {
        aligned(self.batch_bytes as usize)
    }

    /// Where the body starts.
    pub fn body_at(&self) -> usize {
        HEADER_BYTES + self.ext_bytes as usize
    }

    /// One past the last offset that the batch covers.
    pub fn next_offset(&self) -> Offset {
        self.base_offset + u64::from(self.offset_span)
    }
}

/// An intact batch.
#[derive(Clone, Debug)]
pub struct Batch {
    header: BatchHeader,
    /// Header, ext and body as stored.
    bytes: Bytes,
    /// The body, decompressed.
    body: Bytes,
}

impl Batch {
    /// Verifies the batch at the start of `bytes`, which may go on behind it.
    pub fn decode(bytes: &Bytes, seed: u32) -> Result<Self, BodyProblem> {
        let header = BatchHeader::decode(bytes, seed).map_err(BodyProblem::Invalid)?;
        if bytes.len() < header.batch_bytes() {
            return Err(BodyProblem::Invalid(Invalid::new("a batch is cut off", at::BATCH_BYTES)));
        }
        let bytes = bytes.slice(..header.batch_bytes());
        if crc(0, &bytes[header.body_at()..]) != header.body_crc && !crate::planted::skips_checksums() {
            return Err(BodyProblem::Invalid(Invalid::new(
                "the checksum of a body does not match",
                header.body_at(),
            )));
        }
        Self::trusted(header, bytes)
    }

    /// A batch whose checksums are known to hold; `bytes` ends with it.
    pub(crate) fn trusted(header: BatchHeader, bytes: Bytes) -> Result<Self, BodyProblem> {
        let body = header.codec.decompress(bytes.slice(header.body_at()..), header.raw_bytes as usize)?;
        Ok(Self { header, bytes, body })
    }

    /// The header.
    pub fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// First offset that the batch covers.
    pub fn base_offset(&self) -> Offset {
        self.header.base_offset
    }

    /// One past the last offset that the batch covers.
    pub fn next_offset(&self) -> Offset {
        self.header.next_offset()
    }

    /// When it was appended.
    pub fn append_time(&self) -> Timestamp {
        self.header.append_time
    }

    /// Header, ext and body as they are stored.
    pub fn as_bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The records as protobuf `repeated Record records = 1`, decompressed.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    /// The records with their offsets.
    pub fn records(&self) -> BatchRecords<'_> {
        BatchRecords {
            records: Records::new(&self.body),
            gaps: self.gaps().unwrap_or_default(),
            next_offset: self.header.base_offset,
            end: self.header.next_offset(),
            remaining: self.header.record_count,
        }
    }

    fn gaps(&self) -> Option<&[u8]> {
        let ext = &self.bytes[HEADER_BYTES..self.header.body_at()];
        Fields::new(ext).find_map(|field| match field {
            Ok((EXT_OFFSET_GAPS, value)) => value.bytes().ok(),
            _ => None,
        })
    }

    /// The position noted by [`BatchBuilder::put_synced_position`].
    pub fn synced_position(&self) -> Option<u64> {
        synced_position(&self.bytes[HEADER_BYTES..self.header.body_at()])
    }
}

/// The position noted in `ext` by [`BatchBuilder::put_synced_position`].
pub(crate) fn synced_position(ext: &[u8]) -> Option<u64> {
    Fields::new(ext).find_map(|field| match field {
        Ok((EXT_SYNCED_POSITION, value)) => value.number().ok(),
        _ => None,
    })
}

/// Walks over the records of a batch; ends after the first error.
#[derive(Clone, Debug)]
pub struct BatchRecords<'a> {
    records: Records<'a>,
    /// Packed varints, or empty for a dense batch.
    gaps: &'a [u8],
    next_offset: Offset,
    end: Offset,
    remaining: u32,
}

impl<'a> BatchRecords<'a> {
    /// The encoded record and its offset, not yet decoded.
    #[inline]
    pub fn next_encoded(&mut self) -> Option<Result<(Offset, &'a [u8]), Invalid>> {
        if self.remaining == 0 {
            return None;
        }
        self.remaining -= 1;
        let next = self.step();
        if next.is_err() {
            self.remaining = 0;
        }
        Some(next)
    }

    #[inline]
    fn step(&mut self) -> Result<(Offset, &'a [u8]), Invalid> {
        let record =
            self.records.next().unwrap_or(Err(Invalid::new("a batch has fewer records than it says", 0)))?;
        let mut gap = 0;
        if !self.gaps.is_empty() {
            let end;
            (gap, end) = varint(self.gaps, 0)?;
            self.gaps = &self.gaps[end..];
        }
        let offset = Offset(self.next_offset.0.saturating_add(gap));
        if offset >= self.end {
            return Err(Invalid::new("a record lies behind its batch", 0));
        }
        self.next_offset = offset + 1;
        Ok((offset, record))
    }
}

impl<'a> Iterator for BatchRecords<'a> {
    type Item = Result<(Offset, RecordView<'a>), Invalid>;

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let next = self.next_encoded()?;
        Some(next.and_then(|(offset, bytes)| Ok((offset, RecordView::decode(bytes)?))))
    }
}

/// Decodes whatever bytes: what a fuzzer calls.
pub fn decode_any(bytes: &[u8], seed: u32) {
    if let Ok(batch) = Batch::decode(&Bytes::copy_from_slice(bytes), seed) {
        for record in batch.records() {
            drop(record.map(|(_, view)| view.to_record()));
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::record::{Record, put_record, tests::any_record};
    use super::*;

    const SEED: u32 = 7;

    fn dense(records: &[Record], codec: Codec) -> Bytes {
        let count = u32::try_from(records.len()).unwrap();
        let mut builder = BatchBuilder::new(count, codec, 0, |body| {
            records.iter().for_each(|record| put_record(body, record));
        });
        builder.seal(SEED, Offset(100), Timestamp(5));
        builder.into_bytes()
    }

    proptest! {
        #[test]
        fn a_batch_comes_back_as_it_was(records in prop::collection::vec(any_record(), 1..20), lz4: bool) {
            let bytes = dense(&records, if lz4 { Codec::Lz4 } else { Codec::None });
            let batch = Batch::decode(&bytes, SEED).unwrap();
            prop_assert_eq!(batch.next_offset(), Offset(100 + records.len() as u64));
            let found: Vec<_> = batch.records().map(|r| r.unwrap()).map(|(o, v)| (o, v.to_record())).collect();
            let expected: Vec<_> = records.into_iter().enumerate().map(|(i, r)| (Offset(100 + i as u64), r)).collect();
            prop_assert_eq!(found, expected);
        }

        #[test]
        fn a_sparse_batch_keeps_its_offsets(deltas in prop::collection::btree_set(0_u32..1000, 1..20)) {
            let deltas: Vec<u32> = deltas.into_iter().collect();
            let mut builder = BatchBuilder::sparse(&deltas, 1000, Codec::None, |body| {
                for delta in &deltas {
                    put_record(body, &Record::new(delta.to_le_bytes()));
                }
            });
            builder.seal(SEED, Offset(50), Timestamp(5));
            let batch = Batch::decode(&builder.into_bytes(), SEED).unwrap();
            let found: Vec<_> = batch.records().map(|r| r.unwrap().0.0 - 50).collect();
            prop_assert_eq!(found, deltas.iter().map(|&d| u64::from(d)).collect::<Vec<_>>());
            prop_assert_eq!(batch.next_offset(), Offset(1050));
        }

        #[test]
        fn any_bytes_are_a_batch_or_an_error(bytes: Vec<u8>) {
            decode_any(&bytes, SEED);
        }
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let bytes = dense(&[Record::keyed("key", "value"), Record::tombstone("key")], Codec::None);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::decode(&damaged.into(), SEED).is_err(), "bit {bit}");
        }
        for cut in 0..bytes.len() {
            assert!(Batch::decode(&bytes.slice(..cut), SEED).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_batch_of_another_topic_does_not_verify() {
        let bytes = dense(&[Record::new("x")], Codec::None);
        assert!(Batch::decode(&bytes, SEED + 1).is_err());
    }

    #[test]
    fn a_synced_position_is_kept() {
        let mut builder = BatchBuilder::new(1, Codec::None, 0, |body| put_record(body, &Record::new("x")));
        builder.put_synced_position(4096);
        builder.seal(SEED, Offset(0), Timestamp(0));
        let batch = Batch::decode(&builder.into_bytes(), SEED).unwrap();
        assert_eq!(batch.synced_position(), Some(4096));
        assert_eq!(batch.records().count(), 1);
    }
}
