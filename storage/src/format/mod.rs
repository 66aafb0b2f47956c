//! Bytes on disk: every format of the store, and nothing that does I/O.
//!
//! | Module | Format |
//! |---|---|
//! | [`wire`] | the protobuf encoding that records and settings use |
//! | [`record`] | one record |
//! | [`batch`] | a record batch: the unit of write, checksum, compression and acknowledgement |
//! | [`segment`] | header, index and footer of a topic's files |
//! | [`terms`] | the index of a segment's keys, types and tags |
//! | [`frame`] | a frame of the journal, and the header of its files |
//! | [`checkpoint`] | the state of the whole store at one journal position |
//! | [`answer`] | what an append is known by, and what it was answered |
//! | [`master_key`] | what the keys of sealed payloads are derived from; not a file of the store |
//! | [`live`] | how far the writer is, for readers in other processes |
//!
//! All numbers are little-endian. `docs/format.md` is the specification; a decoder answers [`Invalid`] to
//! whatever it cannot vouch for and never panics.

pub mod answer;
pub mod batch;
pub mod checkpoint;
pub mod frame;
pub mod live;
pub mod master_key;
pub(crate) mod payload;
pub mod record;
pub mod segment;
mod short_crc;
pub mod terms;
pub mod wire;

/// The version of every format here. What is newer is refused.
pub const FORMAT_VERSION: u16 = 1;

/// Bytes that are not what their format says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{detail} at byte {position}")]
pub struct Invalid {
    /// What does not hold.
    pub detail: &'static str,
    /// Where, counted from the start of what was decoded.
    pub position: usize,
}

impl Invalid {
    pub(crate) const fn new(detail: &'static str, position: usize) -> Self {
        Self { detail, position }
    }
}

/// Why a file header was not accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeaderProblem {
    /// All zeros: allocated, never written.
    Blank,
    /// Not this format, or damaged.
    Invalid(Invalid),
    /// A later version, or a feature that must be understood and is not.
    Newer(u32),
}

/// Reads fixed-width numbers; the caller has checked the length.
pub(crate) fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// CRC-32 (ISO-HDLC, as in zlib) of `bytes`, going on from `seed`.
pub(crate) fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(seed);
    hasher.update(bytes);
    hasher.finalize()
}

/// Batches and frames start at multiples of this, so that a search for the next intact one can step by it.
pub const ALIGNMENT: usize = 8;

/// `bytes` rounded up to the [`ALIGNMENT`].
pub const fn aligned(bytes: usize) -> usize {
    bytes.next_multiple_of(ALIGNMENT)
}

/// The common start of every file: magic, version, features. 16 bytes.
///
/// ```text
///  0      8        10       12                16
///  | magic | version | 0      | required flags |
/// ```
pub(crate) const PREAMBLE_BYTES: usize = 16;

pub(crate) fn put_preamble(magic: &[u8; 8], out: &mut [u8]) {
    out[..8].copy_from_slice(magic);
    out[8..10].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
    out[10..16].fill(0);
}

/// Checks magic, version and required features. Whether the rest of the header is intact is the caller's to check
/// first: a flipped bit must not read as a newer version.
pub(crate) fn check_preamble(magic: &[u8; 8], bytes: &[u8]) -> Result<(), HeaderProblem> {
    match check_preamble_but_flags(magic, bytes)? {
        0 => Ok(()),
        required => Err(HeaderProblem::Newer(required)),
    }
}

/// The same of a format that has required features: answers which.
pub(crate) fn check_preamble_but_flags(magic: &[u8; 8], bytes: &[u8]) -> Result<u32, HeaderProblem> {
    if bytes[..8] != *magic {
        return Err(HeaderProblem::Invalid(Invalid::new("the magic number is another", 0)));
    }
    let version = u16_at(bytes, 8);
    if version > FORMAT_VERSION {
        return Err(HeaderProblem::Newer(u32::from(version)));
    }
    if version == 0 {
        return Err(HeaderProblem::Invalid(Invalid::new("there is no version 0", 8)));
    }
    Ok(u32_at(bytes, 12))
}
