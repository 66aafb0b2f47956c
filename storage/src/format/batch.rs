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
//! - `codec`: 0 none, 1 LZ4 block, 2 Zstandard.
//! - `flags`: 1 = some record has, or had, a sealed payload, which readers do not get as it is stored. Unknown flags are
//!   refused.
//!
//! `ext` holds what the server knows about the records, protobuf-encoded:
//!
//! | Field | Content |
//! |---|---|
//! | 1 | offset gaps, packed varints: how many offsets are missing before each record. Absent: records are dense |
//! | 2 | revisions, packed varints, one for each record that has a key. Absent: from before there were any |
//! | 3 | producer: name, epoch, sequence (reserved) |
//! | 4 | request id (reserved) |
//! | 5 | bare log only: the position up to which this segment was synced when the batch was written |
//!
//! When compaction takes records out of a batch, field 1 is made anew and of field 2 the entries of the records that
//! stay are kept. Every other field is about the batch as a whole and is copied byte for byte, whether known or not:
//! a repeated producer sequence or request id is still answered although the records it brought are gone. A new field
//! about single records needs a rule here, and a required flag that keeps older versions from breaking it.

use std::borrow::Cow;

use bytes::Bytes;

use super::record::{self, Record, RecordView, Records, put_record};
use super::short_crc;
use super::wire::{Fields, put_bytes, put_number, put_varint, varint};
use super::{ALIGNMENT, Invalid, aligned, crc, u16_at, u32_at, u64_at};
use crate::types::{Offset, Revision, Timestamp, Uid};

/// Bytes of the fixed header.
pub const HEADER_BYTES: usize = 48;
/// No batch is larger, stored or raw, whatever the settings: what a decoder may be made to allocate.
pub const BATCH_BYTES_LIMIT: usize = 64 << 20;
/// Some record of the batch has, or had, a sealed payload.
const FLAG_SEALED: u16 = 1;
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
const EXT_REVISIONS: u32 = 2;
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

    /// `raw` compressed, or `None` if that does not make it smaller, or if this build lacks the codec.
    fn compress(self, raw: &[u8]) -> Option<Vec<u8>> {
        let compressed: Option<Vec<u8>> = match self {
            #[cfg(feature = "lz4")]
            Self::Lz4 => Some(lz4_flex::block::compress(raw)),
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd_compress(raw),
            _ => None,
        };
        compressed.filter(|compressed| compressed.len() < raw.len())
    }

    fn decompress(self, stored: Bytes, raw_bytes: usize) -> Result<Bytes, BodyProblem> {
        if self == Self::None {
            return Ok(stored);
        }
        if !self.is_available() {
            return Err(BodyProblem::CodecUnavailable(self));
        }
        let raw: Option<Vec<u8>> = match self {
            #[cfg(feature = "lz4")]
            Self::Lz4 => lz4_flex::block::decompress(&stored, raw_bytes).ok(),
            #[cfg(feature = "zstd")]
            Self::Zstd => zstd::bulk::decompress(&stored, raw_bytes).ok(),
            _ => None,
        };
        let damaged = || BodyProblem::Invalid(Invalid::new("the body does not decompress", HEADER_BYTES));
        raw.filter(|raw| raw.len() == raw_bytes).map(Bytes::from).ok_or_else(damaged)
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
            has_sealed: false,
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
            has_sealed: false,
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

    /// Notes that some record has a sealed payload; before [`seal`](Self::seal).
    pub fn note_sealed(&mut self) {
        self.header.has_sealed = true;
    }

    /// Notes up to where the segment was synced (bare log); before [`seal`](Self::seal).
    pub fn put_synced_position(&mut self, position: u64) {
        let mut ext = Vec::with_capacity(12);
        put_number(&mut ext, EXT_SYNCED_POSITION, position);
        self.put_ext(&ext);
    }

    /// Notes the revisions of the records that have keys, in place of those that were noted before; before
    /// [`seal`](Self::seal). Nothing else is in `ext`.
    pub fn put_revisions(&mut self, revisions: &[Revision]) {
        let mut packed = Vec::with_capacity(2 * revisions.len());
        revisions.iter().for_each(|revision| put_varint(&mut packed, revision.0));
        let mut ext = Vec::with_capacity(packed.len() + 8);
        put_bytes(&mut ext, EXT_REVISIONS, &packed);
        self.bytes.truncate(self.len());
        let body_at = self.header.body_at();
        if ext.len() == self.header.ext_bytes as usize {
            self.bytes[HEADER_BYTES..body_at].copy_from_slice(&ext);
            return;
        }
        self.bytes.splice(HEADER_BYTES..body_at, ext.iter().copied());
        let small = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
        self.header.ext_bytes = small(ext.len());
        self.header.batch_bytes = small(self.bytes.len());
    }

    /// Adds encoded fields to `ext`; before [`seal`](Self::seal).
    fn put_ext(&mut self, ext: &[u8]) {
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
            short_crc::of_header(seed, &words)
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

    /// The finished batch, without padding, taken out: nothing is left here.
    pub fn take_bytes(&mut self) -> Bytes {
        self.bytes.truncate(self.len());
        std::mem::take(&mut self.bytes).into()
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
pub(super) type Words = [u64; HEADER_BYTES / 8];

#[inline]
pub(super) fn put_words(bytes: &mut [u8], words: &Words) {
    for (place, word) in bytes[..HEADER_BYTES].chunks_exact_mut(8).zip(words) {
        place.copy_from_slice(&word.to_le_bytes());
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
    pub(super) batch_bytes: u32,
    pub(super) raw_bytes: u32,
    pub(super) ext_bytes: u32,
    /// Whether some record has, or had, a sealed payload.
    pub(crate) has_sealed: bool,
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
    #[inline]
    pub(crate) fn decode_unverified(bytes: &[u8]) -> Result<Self, Invalid> {
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
            has_sealed: u16_at(bytes, at::FLAGS) & FLAG_SEALED != 0,
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
        if bytes[at::ENCODING] != ENCODING_PROTOBUF || u16_at(bytes, at::FLAGS) & !FLAG_SEALED != 0 {
            return Err(Invalid::new("unknown encoding or flags", at::ENCODING));
        }
        Ok(header)
    }

    /// As in the drawing, but for the CRC.
    #[inline]
    pub(super) fn words(&self) -> Words {
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        let flags = if self.has_sealed { FLAG_SEALED } else { 0 };
        let kinds = u32::from(ENCODING_PROTOBUF) | u32::from(self.codec.code()) << 8 | u32::from(flags) << 16;
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
        Self::verify_body(header, bytes.slice(..header.batch_bytes()))
    }

    /// Verifies the body of a batch whose header is verified; `bytes` ends with it.
    pub(crate) fn verify_body(header: BatchHeader, bytes: Bytes) -> Result<Self, BodyProblem> {
        if crc(0, &bytes[header.body_at()..]) != header.body_crc && !crate::planted::skips_checksums() {
            let at = header.body_at();
            return Err(BodyProblem::Invalid(Invalid::new("the checksum of a body does not match", at)));
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

    /// The encoded batch with only those records for which `keep`, asked for each in order, answers `true`; `None` if
    /// that is none. Base offset, span, append time and codec stay.
    #[cfg(test)]
    pub(crate) fn thin(&self, seed: u32, mut keep: impl FnMut() -> bool) -> Result<Option<Bytes>, Invalid> {
        self.rewrite(seed, |bytes| Ok(keep().then_some(Cow::Borrowed(bytes))))
    }

    /// The encoded batch with what `each` makes of every record, asked in order; `None` leaves it out. `None` if none is
    /// left. Base offset, span, append time and codec stay, and the revisions of the records that do.
    pub(crate) fn rewrite<'a>(
        &'a self,
        seed: u32,
        mut each: impl FnMut(&'a [u8]) -> Result<Option<Cow<'a, [u8]>>, Invalid>,
    ) -> Result<Option<Bytes>, Invalid> {
        let mut kept = Vec::with_capacity(self.header.record_count as usize);
        let mut deltas = Vec::new();
        let mut stay = Vec::new();
        let mut records = self.records();
        while let Some(next) = records.next_encoded() {
            let (offset, bytes) = next?;
            let made = each(bytes)?;
            kept.push(made.is_some());
            if let Some(bytes) = made {
                let delta = offset - self.header.base_offset;
                deltas.push(u32::try_from(delta).expect("an offset lies within the span of its batch"));
                stay.push(bytes);
            }
        }
        if stay.is_empty() {
            return Ok(None);
        }
        let mut builder = BatchBuilder::sparse(&deltas, self.header.offset_span, self.header.codec, |body| {
            stay.iter().for_each(|bytes| put_bytes(body, record::field::RECORD, bytes));
        });
        builder.put_ext(&self.thin_ext(&kept)?);
        builder.header.has_sealed = self.header.has_sealed;
        builder.seal(seed, self.header.base_offset, self.header.append_time);
        Ok(Some(builder.into_bytes()))
    }

    /// The batch with what `each` makes of every record in its place, not compressed and with nothing sealed: as if it had
    /// been stored so.
    pub(crate) fn with_records<'a, E: From<Invalid>>(
        &'a self,
        seed: u32,
        mut each: impl FnMut(&'a [u8], &mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Self, E> {
        let mut bytes = Vec::with_capacity(self.header.body_at() + self.body.len());
        bytes.extend_from_slice(&self.bytes[..self.header.body_at()]);
        let mut records = self.records();
        let mut record = Vec::new();
        while let Some(next) = records.next_encoded() {
            record.clear();
            each(next?.1, &mut record)?;
            put_bytes(&mut bytes, record::field::RECORD, &record);
        }
        let BatchHeader { ext_bytes, record_count, offset_span, base_offset, append_time, .. } = self.header;
        let mut builder =
            BatchBuilder::finish(bytes, ext_bytes as usize, record_count, offset_span, Codec::None);
        builder.seal(seed, base_offset, append_time);
        let (header, bytes) = (builder.header, builder.into_bytes());
        let body = bytes.slice(header.body_at()..);
        Ok(Self { header, bytes, body })
    }

    /// What stays of `ext` but for the offset gaps, when the records stay that `kept` says.
    fn thin_ext(&self, kept: &[bool]) -> Result<Vec<u8>, Invalid> {
        let ext = &self.bytes[HEADER_BYTES..self.header.body_at()];
        let mut out = Vec::new();
        let mut fields = Fields::new(ext);
        let mut start = 0;
        while let Some(next) = fields.next() {
            match next? {
                (EXT_OFFSET_GAPS, _) => {}
                (EXT_REVISIONS, value) => {
                    let mut rest = value.bytes()?;
                    let mut packed = Vec::new();
                    for (record, is_kept) in self.records().zip(kept) {
                        if record?.1.key.is_none() {
                            continue;
                        }
                        let (revision, end) = varint(rest, 0)?;
                        rest = &rest[end..];
                        if *is_kept {
                            put_varint(&mut packed, revision);
                        }
                    }
                    put_bytes(&mut out, EXT_REVISIONS, &packed);
                }
                _ => out.extend_from_slice(&ext[start..fields.position()]),
            }
            start = fields.position();
        }
        Ok(out)
    }

    fn gaps(&self) -> Option<&[u8]> {
        let ext = &self.bytes[HEADER_BYTES..self.header.body_at()];
        Fields::new(ext).find_map(|field| match field {
            Ok((EXT_OFFSET_GAPS, value)) => value.bytes().ok(),
            _ => None,
        })
    }

    /// The revisions of the records that have keys, in order; none in a batch from before there were any.
    pub fn revisions(&self) -> BatchRevisions<'_> {
        let ext = &self.bytes[HEADER_BYTES..self.header.body_at()];
        let packed = Fields::new(ext).find_map(|field| match field {
            Ok((EXT_REVISIONS, value)) => value.bytes().ok(),
            _ => None,
        });
        BatchRevisions(packed.unwrap_or_default())
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

/// The revisions that a batch notes.
#[derive(Clone, Debug)]
pub struct BatchRevisions<'a>(&'a [u8]);

impl<'a> BatchRevisions<'a> {
    /// Packed varints.
    pub fn as_bytes(&self) -> &'a [u8] {
        self.0
    }
}

impl Iterator for BatchRevisions<'_> {
    type Item = Revision;

    fn next(&mut self) -> Option<Revision> {
        let (revision, end) = varint(self.0, 0).ok()?;
        self.0 = &self.0[end..];
        Some(Revision(revision))
    }
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

    /// Every codec that this build has.
    fn any_codec() -> impl Strategy<Value = Codec> {
        let codecs = [Codec::None, Codec::Lz4, Codec::Zstd].into_iter().filter(|codec| codec.is_available());
        prop::sample::select(codecs.collect::<Vec<_>>())
    }

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
        fn a_batch_comes_back_as_it_was(records in prop::collection::vec(any_record(), 1..20), codec in any_codec()) {
            let bytes = dense(&records, codec);
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

    fn thinned(batch: &Batch, kept: &[bool]) -> Option<Batch> {
        let mut kept = kept.iter().copied();
        let bytes = batch.thin(SEED, || kept.next().unwrap()).unwrap()?;
        Some(Batch::decode(&bytes, SEED).unwrap())
    }

    proptest! {
        #[test]
        fn a_batch_thinned_twice_keeps_offsets_time_span_and_records(
            records in prop::collection::vec((any_record(), any::<bool>(), any::<bool>()), 1..20),
            codec in any_codec(),
        ) {
            let all: Vec<Record> = records.iter().map(|(record, ..)| record.clone()).collect();
            let batch = Batch::decode(&dense(&all, codec), SEED).unwrap();
            let first: Vec<bool> = records.iter().map(|(_, first, _)| *first).collect();
            let second: Vec<bool> = records.iter().filter(|(_, first, _)| *first).map(|(.., second)| *second).collect();
            let once = thinned(&batch, &first);
            prop_assert_eq!(once.is_some(), first.contains(&true));
            let Some(once) = once else { return Ok(()) };
            let twice = thinned(&once, &second);
            prop_assert_eq!(twice.is_some(), second.contains(&true));
            let Some(twice) = twice else { return Ok(()) };
            prop_assert_eq!(
                (twice.base_offset(), twice.next_offset(), twice.append_time()),
                (batch.base_offset(), batch.next_offset(), batch.append_time())
            );
            let found: Vec<_> = twice.records().map(|r| r.unwrap()).map(|(o, v)| (o, v.to_record())).collect();
            let expected: Vec<_> = records
                .into_iter()
                .enumerate()
                .filter(|(_, (_, first, second))| *first && *second)
                .map(|(i, (r, ..))| (Offset(100 + i as u64), r))
                .collect();
            prop_assert_eq!(found, expected);
        }
    }

    #[test]
    fn thinning_keeps_the_revisions_of_what_stays_and_every_field_about_the_batch() {
        let records = [
            Record::keyed("a", "1"),
            Record::new("no key"),
            Record::keyed("b", "2"),
            Record::keyed("a", "3"),
        ];
        let mut builder = BatchBuilder::new(4, Codec::None, 0, |body| {
            records.iter().for_each(|record| put_record(body, record));
        });
        let mut ext = Vec::new();
        put_bytes(&mut ext, EXT_REVISIONS, &[7, 0xac, 0x02, 8]);
        put_bytes(&mut ext, 3, b"producer");
        put_number(&mut ext, 99, 5);
        builder.put_ext(&ext);
        builder.put_synced_position(4096);
        builder.seal(SEED, Offset(100), Timestamp(5));
        let batch = Batch::decode(&builder.into_bytes(), SEED).unwrap();
        let thin = thinned(&batch, &[false, true, true, true]).unwrap();
        let ext = &thin.as_bytes()[HEADER_BYTES..thin.header().body_at()];
        let mut expected = Vec::new();
        put_bytes(&mut expected, EXT_OFFSET_GAPS, &[1, 0, 0]);
        put_bytes(&mut expected, 3, b"producer");
        put_number(&mut expected, 99, 5);
        put_number(&mut expected, EXT_SYNCED_POSITION, 4096);
        let mut with_revisions = Vec::new();
        put_bytes(&mut with_revisions, EXT_OFFSET_GAPS, &[1, 0, 0]);
        put_bytes(&mut with_revisions, EXT_REVISIONS, &[0xac, 0x02, 8]);
        with_revisions.extend_from_slice(&expected[5..]);
        assert_eq!(ext, with_revisions);
        assert_eq!(thin.synced_position(), Some(4096));
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
