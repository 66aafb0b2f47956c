//! The journal: its files and their frames.
//!
//! ```text
//! file  | header, padded to 4096 | frame | frame | ... | zeros, or frames of an earlier use |
//! ```
//!
//! Header, 72 bytes:
//!
//! ```text
//!  0          16          32           40               48         56      64     68    72
//!  | preamble | store uid | generation | start position | previous | epoch | salt | crc |
//! ```
//!
//! A file is used again and again; each use is a *generation*, numbered through over all files. Positions run on
//! over all generations: `start position` is that of the first frame, and where the generation before ends. Thus
//! the chain of files is known from their headers, and what a file holds behind the start of the next one does
//! not count. `salt` is random, `epoch` reserved (0). `crc` is of the 68 bytes before it.
//!
//! Frame, a multiple of 8 bytes:
//!
//! ```text
//!  0     4             8          16                24           32           36       40
//!  | crc | frame bytes | position | synced position | generation | meta bytes | 0      |
//!  40           aligned
//!  | meta, padded | batch, padded | batch, padded | ...
//! ```
//!
//! - `crc`: of bytes 4 to the end of meta, begun with the generation's seed (the CRC of generation and salt).
//!   Batches carry their own checksums.
//! - `position`: the frame's own, so that stale bytes of an earlier generation never verify.
//! - `synced position`: everything before it had been synced when this frame was written. It tells a torn write
//!   (which can only be at or above every such mark) from rot.
//!
//! `meta` is protobuf, one field for each change, applied in order, all or none:
//!
//! | Field | Change | Content |
//! |---|---|---|
//! | 1 | batch | 1 topic id, 2 bytes without padding, 3 whether it starts a new segment |
//! | 2 | topic created | 1 id, 2 uid, 3 name, 4 settings |
//! | 3 | topic altered | 1 id, 4 settings |
//! | 4 | topic deleted | 1 id |
//! | 5 | trimmed | 1 id, 2 log start offset |
//! | 6 | offsets reserved (topics in memory) | 1 id, 2 first offset that is still free |
//! | 7 | segments replaced by compaction | 1 id, 5 the new segment as in a checkpoint: it takes the place of all from its base offset to its next offset |
//! | 8 | an append of a producer was answered | 1 name, 2 epoch, 3 sequence, 4 hash of topics and records, 5 the [answer](super::answer) |
//! | 9 | an append with a request id was answered | 1 id, 4 and 5 as in field 8 |
//! | 10 | a topic's fencing token was raised | 1 id, 2 token |
//! | 11 | a producer was forgotten | 1 name |
//! | 16 | the store has a master key, or keys of it were destroyed | 1 uid, 2 how many were |
//!
//! Fields 12 to 15 are reserved for acknowledgements and leases. Within changes 8, 9, 11 and 16 a field that is not known is
//! refused, as in the checkpoint; in the others it is passed over.

use bytes::Bytes;

use super::answer::{Answer, Answered, Identity, Producer};
use super::checkpoint::{MasterKeyState, SealedSegment};
use super::wire::{Fields, Value, put_bytes, put_message, put_number};
use super::{HeaderProblem, Invalid, aligned, check_preamble, crc, put_preamble, u32_at, u64_at};
use crate::settings::TopicSettings;
use crate::types::{Offset, Position, TopicId, TopicName, Uid};

/// Bytes of a journal file before its first frame.
pub const FILE_HEADER_BYTES: usize = 4096;
/// Bytes of a frame's fixed header.
pub const FRAME_HEADER_BYTES: usize = 40;
/// No frame is larger.
pub const FRAME_BYTES_LIMIT: usize = 128 << 20;
/// The highest number of a change that is known here.
pub(crate) const CHANGE_NUMBER_MAX: u32 = 16;

const MAGIC: &[u8; 8] = b"QUIPUJNL";
const ENCODED_HEADER_BYTES: usize = 72;

/// The start of a journal file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileHeader {
    /// The store it belongs to.
    pub store: Uid,
    /// Which use of a file this is, from 1.
    pub generation: u64,
    /// Position of its first frame.
    pub start: Position,
    /// The generation that it follows.
    pub previous: u64,
    /// Random.
    pub salt: u32,
}

impl FileHeader {
    /// The encoding; the rest of [`FILE_HEADER_BYTES`] is zeros.
    pub fn encode(&self) -> [u8; ENCODED_HEADER_BYTES] {
        let mut out = [0; ENCODED_HEADER_BYTES];
        put_preamble(MAGIC, &mut out);
        out[16..32].copy_from_slice(&self.store.0);
        out[32..40].copy_from_slice(&self.generation.to_le_bytes());
        out[40..48].copy_from_slice(&self.start.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.previous.to_le_bytes());
        out[64..68].copy_from_slice(&self.salt.to_le_bytes());
        let sum = crc(0, &out[..68]);
        out[68..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// Decodes and verifies.
    pub fn decode(bytes: &[u8]) -> Result<Self, HeaderProblem> {
        let bytes = bytes
            .get(..ENCODED_HEADER_BYTES)
            .ok_or(HeaderProblem::Invalid(Invalid::new("the journal header is cut off", bytes.len())))?;
        if bytes.iter().all(|&byte| byte == 0) {
            return Err(HeaderProblem::Blank);
        }
        if crc(0, &bytes[..68]) != u32_at(bytes, 68) {
            return Err(HeaderProblem::Invalid(Invalid::new(
                "the checksum of the journal header does not match",
                68,
            )));
        }
        check_preamble(MAGIC, bytes)?;
        Ok(Self {
            store: Uid(bytes[16..32].try_into().expect("16 bytes")),
            generation: u64_at(bytes, 32),
            start: Position(u64_at(bytes, 40)),
            previous: u64_at(bytes, 48),
            salt: u32_at(bytes, 64),
        })
    }

    /// What the CRCs of its frames begin with.
    pub fn seed(&self) -> u32 {
        crc(crc(0, &self.generation.to_le_bytes()), &self.salt.to_le_bytes())
    }
}

/// A change of the store, as a frame holds it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// A batch was appended.
    Batch {
        /// To which topic.
        topic: TopicId,
        /// The batch, not verified.
        bytes: Bytes,
        /// Whether it starts a new segment.
        rolls: bool,
    },
    /// A topic was created.
    TopicCreated {
        /// Its number.
        topic: TopicId,
        /// Its uid.
        uid: Uid,
        /// Its name.
        name: TopicName,
        /// Its settings.
        settings: TopicSettings,
    },
    /// A topic got other settings.
    TopicAltered {
        /// Its number.
        topic: TopicId,
        /// The new ones.
        settings: TopicSettings,
    },
    /// A topic was deleted.
    TopicDeleted {
        /// Its number.
        topic: TopicId,
    },
    /// A topic's beginning was removed.
    Trimmed {
        /// Its number.
        topic: TopicId,
        /// The first offset that can be read from now on.
        log_start_offset: Offset,
    },
    /// Offsets of a topic in memory were set aside: a later run goes on behind them.
    OffsetsReserved {
        /// Its number.
        topic: TopicId,
        /// The first offset that is still free.
        next_offset: Offset,
    },
    /// Compaction has rewritten a range of sealed segments into one.
    SegmentsReplaced {
        /// The topic's number.
        topic: TopicId,
        /// The new one; it takes the place of all from its base offset to its next offset.
        segment: SealedSegment,
    },
    /// The append of this frame can be repeated.
    Answered(Answered),
    /// A topic's fencing token was raised.
    Fenced {
        /// The topic's number.
        topic: TopicId,
        /// The lowest one that is taken from now on.
        token: u64,
    },
    /// A producer was forgotten.
    ProducerForgotten {
        /// Its name.
        name: String,
    },
    /// The store has a master key, or keys of it were destroyed.
    MasterKey(MasterKeyState),
}

/// A batch to be put into a frame.
#[derive(Clone, Copy, Debug)]
pub struct BatchEntry<'a> {
    /// To which topic.
    pub topic: TopicId,
    /// The batch, without padding.
    pub bytes: &'a [u8],
    /// Whether it starts a new segment.
    pub rolls: bool,
}

/// Where a frame goes.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The seed of the file's generation.
    pub seed: u32,
    /// The file's generation.
    pub generation: u64,
    /// The frame's position.
    pub position: Position,
    /// Up to where the journal is synced.
    pub synced: Position,
}

/// Makes frames, using its memory again.
#[derive(Debug, Default)]
pub struct FrameBuilder {
    /// Header and meta, padded.
    prefix: Vec<u8>,
    meta_bytes: usize,
    frame_bytes: usize,
}

impl FrameBuilder {
    /// Begins a frame.
    pub fn begin(&mut self) {
        self.prefix.clear();
        self.prefix.resize(FRAME_HEADER_BYTES, 0);
        self.frame_bytes = 0;
    }

    /// Adds a batch; its bytes follow the prefix, in the order of these calls, each padded to 8 bytes.
    pub fn put_batch(&mut self, batch: &BatchEntry<'_>) {
        let out = &mut self.prefix;
        let tag = out.len();
        out.extend_from_slice(&[1 << 3 | 2, 0]);
        put_number(out, 1, u64::from(batch.topic.0));
        put_number(out, 2, batch.bytes.len() as u64);
        put_number(out, 3, u64::from(batch.rolls));
        out[tag + 1] = u8::try_from(out.len() - tag - 2).expect("three short numbers");
        self.frame_bytes += aligned(batch.bytes.len());
    }

    /// Adds another change.
    pub fn put(&mut self, change: &Change) {
        let out = &mut self.prefix;
        match change {
            Change::Batch { topic, bytes, rolls } => {
                self.put_batch(&BatchEntry { topic: *topic, bytes, rolls: *rolls });
            }
            Change::TopicCreated { topic, uid, name, settings } => put_message(out, 2, |out| {
                put_number(out, 1, u64::from(topic.0));
                put_bytes(out, 2, &uid.0);
                put_bytes(out, 3, name.as_str().as_bytes());
                put_message(out, 4, |out| settings.encode(out));
            }),
            Change::TopicAltered { topic, settings } => put_message(out, 3, |out| {
                put_number(out, 1, u64::from(topic.0));
                put_message(out, 4, |out| settings.encode(out));
            }),
            Change::TopicDeleted { topic } => {
                put_message(out, 4, |out| put_number(out, 1, u64::from(topic.0)));
            }
            Change::Trimmed { topic, log_start_offset: offset } => put_message(out, 5, |out| {
                put_number(out, 1, u64::from(topic.0));
                put_number(out, 2, offset.0);
            }),
            Change::OffsetsReserved { topic, next_offset: offset } => put_message(out, 6, |out| {
                put_number(out, 1, u64::from(topic.0));
                put_number(out, 2, offset.0);
            }),
            Change::SegmentsReplaced { topic, segment } => put_message(out, 7, |out| {
                put_number(out, 1, u64::from(topic.0));
                put_message(out, 5, |out| segment.encode(out));
            }),
            Change::Answered(answered) => put_answered(out, answered),
            Change::Fenced { topic, token } => put_message(out, 10, |out| {
                put_number(out, 1, u64::from(topic.0));
                put_number(out, 2, *token);
            }),
            Change::ProducerForgotten { name } => {
                put_message(out, 11, |out| put_bytes(out, 1, name.as_bytes()));
            }
            Change::MasterKey(state) => put_message(out, 16, |out| state.encode(out)),
        }
    }

    /// Ends the list of changes; returns the length of the whole frame.
    pub fn finish(&mut self) -> usize {
        self.meta_bytes = self.prefix.len() - FRAME_HEADER_BYTES;
        self.prefix.resize(aligned(self.prefix.len()), 0);
        self.frame_bytes += self.prefix.len();
        self.frame_bytes
    }

    /// Fills in the header; returns header and meta, behind which the batches go.
    pub fn seal(&mut self, place: &Place) -> &[u8] {
        let frame_bytes = u32::try_from(self.frame_bytes).expect("checked against the limit before");
        let meta_bytes = u32::try_from(self.meta_bytes).expect("smaller than the frame");
        self.prefix[4..8].copy_from_slice(&frame_bytes.to_le_bytes());
        self.prefix[8..16].copy_from_slice(&place.position.0.to_le_bytes());
        self.prefix[16..24].copy_from_slice(&place.synced.0.to_le_bytes());
        self.prefix[24..32].copy_from_slice(&place.generation.to_le_bytes());
        self.prefix[32..36].copy_from_slice(&meta_bytes.to_le_bytes());
        let sum = crc(place.seed, &self.prefix[4..FRAME_HEADER_BYTES + self.meta_bytes]);
        self.prefix[..4].copy_from_slice(&sum.to_le_bytes());
        &self.prefix
    }
}

/// The header of a frame, its CRC verified.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Its length; the next frame follows.
    pub frame_bytes: usize,
    /// See the drawing.
    pub synced: Position,
    meta_bytes: usize,
}

impl FrameHeader {
    /// Verifies header and meta of the frame at the start of `bytes`, which is at `position` of a generation.
    pub fn decode(bytes: &[u8], seed: u32, generation: u64, position: Position) -> Result<Self, Invalid> {
        if bytes.len() < FRAME_HEADER_BYTES {
            return Err(Invalid::new("a frame header is cut off", 0));
        }
        if u64_at(bytes, 8) != position.0 || u64_at(bytes, 24) != generation {
            return Err(Invalid::new("a frame is of another position or generation", 8));
        }
        let header = Self {
            frame_bytes: u32_at(bytes, 4) as usize,
            synced: Position(u64_at(bytes, 16)),
            meta_bytes: u32_at(bytes, 32) as usize,
        };
        let fits = header.meta_bytes <= FRAME_BYTES_LIMIT
            && header.frame_bytes <= FRAME_BYTES_LIMIT
            && header.frame_bytes.is_multiple_of(super::ALIGNMENT)
            && aligned(FRAME_HEADER_BYTES + header.meta_bytes) <= header.frame_bytes
            && header.synced <= position;
        if !fits {
            return Err(Invalid::new("the parts of a frame do not fit together", 4));
        }
        let covered = bytes
            .get(4..FRAME_HEADER_BYTES + header.meta_bytes)
            .ok_or(Invalid::new("a frame is cut off", 32))?;
        if crc(seed, covered) != u32_at(bytes, 0) && !crate::planted::skips_checksums() {
            return Err(Invalid::new("the checksum of a frame does not match", 0));
        }
        Ok(header)
    }

    /// The changes of the frame at the start of `bytes`. Batches are cut out but not verified: that takes their
    /// topics' seeds.
    pub fn changes(&self, bytes: &Bytes) -> Result<Vec<Change>, FrameProblem> {
        if bytes.len() < self.frame_bytes {
            return Err(Invalid::new("a frame is cut off", 4).into());
        }
        let meta = &bytes[FRAME_HEADER_BYTES..FRAME_HEADER_BYTES + self.meta_bytes];
        let mut batch_at = aligned(FRAME_HEADER_BYTES + self.meta_bytes);
        let mut changes = Vec::with_capacity(1);
        for field in Fields::new(meta) {
            let (number, value) = field?;
            match number {
                1..=7 | 10 => {}
                16 => {
                    changes.push(Change::MasterKey(MasterKeyState::decode(value.bytes()?)?));
                    continue;
                }
                8 | 9 | 11 => {
                    changes.push(decode_named(number, value.bytes()?)?);
                    continue;
                }
                _ => return Err(FrameProblem::UnknownChange(number)),
            }
            let entry = Entry::decode(value.bytes()?)?;
            changes.push(match number {
                1 => {
                    let end = usize::try_from(entry.number)
                        .ok()
                        .and_then(|length| batch_at.checked_add(length))
                        .filter(|&end| aligned(end) <= self.frame_bytes)
                        .ok_or(Invalid::new("a batch is longer than its frame", batch_at))?;
                    let bytes = bytes.slice(batch_at..end);
                    batch_at = aligned(end);
                    Change::Batch { topic: entry.topic, bytes, rolls: entry.flag }
                }
                2 => Change::TopicCreated {
                    topic: entry.topic,
                    uid: entry.uid.ok_or(Invalid::new("a topic has no uid", 0))?,
                    name: TopicName::new(entry.name).map_err(|_| Invalid::new("a topic has no name", 0))?,
                    settings: TopicSettings::decode(entry.settings)?,
                },
                3 => Change::TopicAltered {
                    topic: entry.topic,
                    settings: TopicSettings::decode(entry.settings)?,
                },
                4 => Change::TopicDeleted { topic: entry.topic },
                5 => Change::Trimmed { topic: entry.topic, log_start_offset: Offset(entry.number) },
                6 => Change::OffsetsReserved { topic: entry.topic, next_offset: Offset(entry.number) },
                7 => Change::SegmentsReplaced {
                    topic: entry.topic,
                    segment: SealedSegment::decode(entry.segment)?,
                },
                _ => Change::Fenced { topic: entry.topic, token: entry.number },
            });
        }
        if batch_at != self.frame_bytes {
            return Err(Invalid::new("a frame holds more than its changes", batch_at).into());
        }
        Ok(changes)
    }
}

fn put_answered(out: &mut Vec<u8>, answered: &Answered) {
    let Answered { identity, body_hash, answer } = answered;
    let field = match identity {
        Identity::Producer(_) => 8,
        Identity::RequestId(_) => 9,
    };
    put_message(out, field, |out| {
        match identity {
            Identity::Producer(Producer { name, epoch, sequence }) => {
                put_bytes(out, 1, name.as_bytes());
                put_number(out, 2, *epoch);
                put_number(out, 3, *sequence);
            }
            Identity::RequestId(id) => put_bytes(out, 1, id),
        }
        put_number(out, 4, *body_hash);
        put_bytes(out, 5, answer.as_bytes());
    });
}

/// Decodes a change that is of no topic. A field that is not known is not passed over: the next checkpoint would be without what
/// a later version keeps of a producer.
fn decode_named(number: u32, bytes: &[u8]) -> Result<Change, FrameProblem> {
    let mut name: &[u8] = &[];
    let mut answer: &[u8] = &[];
    let (mut epoch, mut sequence, mut body_hash) = (0, 0, 0);
    for field in Fields::new(bytes) {
        match field? {
            (1, value) => name = value.bytes()?,
            (2, value) => epoch = value.number()?,
            (3, value) => sequence = value.number()?,
            (4, value) => body_hash = value.number()?,
            (5, value) => answer = value.bytes()?,
            _ => return Err(FrameProblem::UnknownChange(number)),
        }
    }
    let text = || match std::str::from_utf8(name) {
        Ok(name) if !name.is_empty() => Ok(name.to_owned()),
        _ => Err(Invalid::new("a producer has no name", 0)),
    };
    let identity = match number {
        8 => Identity::Producer(Producer { name: text()?, epoch, sequence }),
        9 if name.is_empty() => return Err(Invalid::new("a request has no id", 0).into()),
        9 => Identity::RequestId(name.to_vec()),
        _ => return Ok(Change::ProducerForgotten { name: text()? }),
    };
    Ok(Change::Answered(Answered { identity, body_hash, answer: Answer::decode(answer)? }))
}

/// Why the changes of a frame cannot be had although its checksum holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameProblem {
    /// They are not what the format says.
    Invalid(Invalid),
    /// A later version wrote a change of this number.
    UnknownChange(u32),
}

impl From<Invalid> for FrameProblem {
    fn from(invalid: Invalid) -> Self {
        Self::Invalid(invalid)
    }
}

/// The fields that changes are made of, taken together.
struct Entry<'a> {
    topic: TopicId,
    uid: Option<Uid>,
    number: u64,
    flag: bool,
    name: &'a str,
    settings: &'a [u8],
    segment: &'a [u8],
}

impl<'a> Entry<'a> {
    fn decode(bytes: &'a [u8]) -> Result<Self, Invalid> {
        let mut entry = Self {
            topic: TopicId(0),
            uid: None,
            number: 0,
            flag: false,
            name: "",
            settings: &[],
            segment: &[],
        };
        for field in Fields::new(bytes) {
            match field? {
                (1, value) => entry.topic = TopicId(value.small()?),
                (2, Value::Number(number)) => entry.number = number,
                (2, Value::Bytes(uid)) => entry.uid = uid.try_into().ok().map(Uid),
                (3, Value::Number(flag)) => entry.flag = flag != 0,
                (3, value) => entry.name = value.text()?,
                (4, value) => entry.settings = value.bytes()?,
                (5, value) => entry.segment = value.bytes()?,
                _ => {}
            }
        }
        Ok(entry)
    }
}

/// Decodes whatever bytes: what a fuzzer calls.
pub fn decode_any(bytes: &[u8], seed: u32) {
    let _ = FileHeader::decode(bytes);
    let position = Position(if bytes.len() < 16 { 0 } else { u64_at(bytes, 8) });
    let generation = if bytes.len() < 32 { 0 } else { u64_at(bytes, 24) };
    if let Ok(header) = FrameHeader::decode(bytes, seed, generation, position) {
        drop(header.changes(&Bytes::copy_from_slice(bytes)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Revision, Timestamp};

    const PLACE: Place = Place { seed: 3, generation: 2, position: Position(800), synced: Position(640) };

    fn encoded(changes: &[Change]) -> Bytes {
        let mut builder = FrameBuilder::default();
        builder.begin();
        changes.iter().for_each(|change| builder.put(change));
        let frame_bytes = builder.finish();
        let mut out = builder.seal(&PLACE).to_vec();
        for change in changes {
            if let Change::Batch { bytes, .. } = change {
                out.extend_from_slice(bytes);
                out.resize(aligned(out.len()), 0);
            }
        }
        assert_eq!(out.len(), frame_bytes);
        out.into()
    }

    fn decoded(bytes: &Bytes) -> Result<Vec<Change>, FrameProblem> {
        FrameHeader::decode(bytes, PLACE.seed, PLACE.generation, PLACE.position)?.changes(bytes)
    }

    fn every_change() -> Vec<Change> {
        let topic = TopicId(77);
        vec![
            Change::Batch { topic, bytes: Bytes::from_static(b"thirteen byte"), rolls: true },
            Change::TopicCreated {
                topic,
                uid: Uid([4; 16]),
                name: TopicName::new("a/b").unwrap(),
                settings: TopicSettings::default(),
            },
            Change::Batch { topic, bytes: Bytes::from_static(b"x"), rolls: false },
            Change::TopicAltered { topic, settings: TopicSettings::default() },
            Change::Trimmed { topic, log_start_offset: Offset(9) },
            Change::OffsetsReserved { topic, next_offset: Offset(1 << 40) },
            Change::TopicDeleted { topic },
            Change::SegmentsReplaced {
                topic,
                segment: SealedSegment {
                    base_offset: Offset(1),
                    rewrites: 1,
                    next_offset: Offset(9),
                    bytes: 160,
                    record_count: 0,
                    first_time: Timestamp(0),
                    last_time: Timestamp(0),
                },
            },
            Change::Answered(answered(Identity::Producer(Producer {
                name: "writer".into(),
                epoch: u64::MAX,
                sequence: 0,
            }))),
            Change::Answered(answered(Identity::RequestId(vec![0, 255]))),
            Change::Fenced { topic, token: u64::MAX },
            Change::ProducerForgotten { name: "writer".into() },
            Change::MasterKey(MasterKeyState { uid: Uid([7; 16]), destroyed: u64::MAX }),
        ]
    }

    fn answered(identity: Identity) -> Answered {
        let parts = [(TopicId(7), Offset(3), 2, Timestamp(1), &[Revision(4), Revision(0)][..])];
        Answered { identity, body_hash: u64::MAX, answer: Answer::new(parts) }
    }

    #[test]
    fn an_answer_that_is_none_makes_a_frame_invalid() {
        for field in [8, 9] {
            let mut builder = FrameBuilder::default();
            builder.begin();
            put_message(&mut builder.prefix, field, |out| {
                put_bytes(out, 1, b"name");
                put_bytes(out, 5, &[9 << 3, 1]);
            });
            builder.finish();
            let bytes = Bytes::copy_from_slice(builder.seal(&PLACE));
            assert!(matches!(decoded(&bytes), Err(FrameProblem::Invalid(_))), "field {field}");
        }
    }

    #[test]
    fn what_a_later_version_says_of_a_producer_or_request_id_is_not_passed_over() {
        for (field, name) in [(8, "writer"), (9, "id"), (11, "writer")] {
            let mut builder = FrameBuilder::default();
            builder.begin();
            put_message(&mut builder.prefix, field, |out| {
                put_bytes(out, 1, name.as_bytes());
                put_number(out, 6, 1);
            });
            builder.finish();
            let bytes = Bytes::copy_from_slice(builder.seal(&PLACE));
            assert_eq!(decoded(&bytes), Err(FrameProblem::UnknownChange(field)));
        }
    }

    #[test]
    fn every_change_comes_back() {
        assert_eq!(decoded(&encoded(&every_change())), Ok(every_change()));
        assert_eq!(decoded(&encoded(&[])), Ok(vec![]));
    }

    #[test]
    fn every_flipped_bit_of_header_and_meta_is_noticed() {
        let bytes = encoded(&every_change()[1..2]);
        for bit in 0..bytes.len() * 8 {
            let mut damaged = bytes.to_vec();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let padding = bit / 8 >= FRAME_HEADER_BYTES + u32_at(&bytes, 32) as usize;
            assert!(padding || decoded(&damaged.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn a_frame_at_another_position_or_of_another_generation_does_not_verify() {
        let bytes = encoded(&every_change());
        assert!(FrameHeader::decode(&bytes, 3, 2, Position(808)).is_err());
        assert!(FrameHeader::decode(&bytes, 3, 1, Position(800)).is_err());
        assert!(FrameHeader::decode(&bytes, 4, 2, Position(800)).is_err());
    }

    #[test]
    fn a_change_of_a_later_version_is_told_from_damage() {
        let mut builder = FrameBuilder::default();
        builder.begin();
        put_bytes(&mut builder.prefix, 99, b"later");
        builder.finish();
        let bytes = Bytes::copy_from_slice(builder.seal(&PLACE));
        assert_eq!(decoded(&bytes), Err(FrameProblem::UnknownChange(99)));
    }

    proptest! {
        #[test]
        fn a_file_header_comes_back(uid: [u8; 16], generation: u64, start: u64, previous: u64, salt: u32) {
            let header = FileHeader { store: Uid(uid), generation, start: Position(start), previous, salt };
            prop_assert_eq!(FileHeader::decode(&header.encode()), Ok(header));
        }

        #[test]
        fn any_bytes_are_a_frame_or_an_error(bytes: Vec<u8>) {
            decode_any(&bytes, 3);
        }

        #[test]
        fn any_meta_is_read_or_refused(meta: Vec<u8>) {
            let mut builder = FrameBuilder::default();
            builder.begin();
            builder.prefix.extend_from_slice(&meta);
            builder.finish();
            let bytes = Bytes::copy_from_slice(builder.seal(&PLACE));
            let _ = decoded(&bytes);
        }
    }
}
