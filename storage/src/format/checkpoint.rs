//! The checkpoint: the state of the whole store at one journal position, below which segments are synced.
//!
//! ```text
//! file  | copy, padded to 4096 | the same copy again |
//! copy  | preamble (16) | content bytes (8) | crc (4) | 0 (4) | content |
//! ```
//!
//! The second copy starts in the middle of the file, so that damage to one does not take the store with it.
//! `crc` is of the 24 bytes before it and the content. A checkpoint is written aside, synced and renamed.
//!
//! A store that was closed properly also has a file `clean`: preamble (16), journal position (8), crc of the 24 bytes
//! before it (4). While it is there and names the checkpoint's position, the journal ends there. It is removed, and
//! its removal synced, before anything is written again.
//!
//! The content is protobuf:
//!
//! | Field | Content |
//! |---|---|
//! | 1 | store uid |
//! | 2 | journal position |
//! | 3 | generation of the journal file that holds this position |
//! | 4 | the next topic's id |
//! | 5 | each topic: 1 id, 2 uid, 3 name, 4 settings, 5 log start offset, 6 next offset, 7 time of the last append, 8 active segment (base offset, bytes and first time as packed varints), 9 each sealed segment (base offset, rewrites, next offset, bytes, records, first time and last time as packed varints), 10 fencing token |
//! | 6 | each deleted topic whose files may still be there: its id |
//! | 7 | each producer: 1 name, 2 epoch, 3 last sequence, 4 each kept answer, the last one being that of the last sequence: 1 hash of the append's topics and records, 2 the [answer](super::answer) |
//! | 8 | each kept request id, the oldest first: 1 id, 2 and 3 as 1 and 2 of a producer's answer |
//! | 9 | the master key, if the store has one: 1 uid, 2 how many of its keys were destroyed |

use std::sync::Arc;

use super::answer::Answer;
use super::wire::{Fields, put_bytes, put_message, put_number, put_varint, varint};
use super::{HeaderProblem, Invalid, PREAMBLE_BYTES, check_preamble, crc, put_preamble, u32_at, u64_at};
use crate::settings::TopicSettings;
use crate::types::{Offset, Position, Timestamp, TopicId, TopicName, Uid};

const MAGIC: &[u8; 8] = b"QUIPUCKP";
const COPY_HEADER_BYTES: usize = PREAMBLE_BYTES + 16;
const COPY_ALIGNMENT: usize = 4096;

/// A sealed segment, as the checkpoint lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SealedSegment {
    /// Its first offset, which names its file.
    pub base_offset: Offset,
    /// How often compaction has rewritten it, which names its file too.
    pub rewrites: u32,
    /// One past the last offset it covers.
    pub next_offset: Offset,
    /// Length of its file.
    pub bytes: u64,
    /// Records in it.
    pub record_count: u64,
    /// Append time of its first batch.
    pub first_time: Timestamp,
    /// Append time of its last batch.
    pub last_time: Timestamp,
}

impl SealedSegment {
    /// Appends the numbers in order of declaration, as varints.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let numbers = [
            self.base_offset.0,
            u64::from(self.rewrites),
            self.next_offset.0,
            self.bytes,
            self.record_count,
            self.first_time.0,
            self.last_time.0,
        ];
        numbers.iter().for_each(|&number| put_varint(out, number));
    }

    /// Decodes what [`encode`](Self::encode) made.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let [base, rewrites, next, bytes, record_count, first, last] = packed(bytes)?;
        Ok(Self {
            base_offset: Offset(base),
            rewrites: u32::try_from(rewrites).map_err(|_| Invalid::new("a number is too large", 0))?,
            next_offset: Offset(next),
            bytes,
            record_count,
            first_time: Timestamp(first),
            last_time: Timestamp(last),
        })
    }
}

/// The segment that is being written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ActiveSegment {
    /// Its first offset, which names its file.
    pub base_offset: Offset,
    /// Where its next batch goes.
    pub bytes: u64,
    /// Append time of its first batch.
    pub first_time: Timestamp,
}

/// A topic, as the checkpoint lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicState {
    /// Its number.
    pub id: TopicId,
    /// Its uid.
    pub uid: Uid,
    /// Its name.
    pub name: TopicName,
    /// Its settings.
    pub settings: TopicSettings,
    /// The first offset that can be read.
    pub log_start_offset: Offset,
    /// The next offset.
    pub next_offset: Offset,
    /// Time of the last append.
    pub last_time: Timestamp,
    /// The segment being written, if there is one yet.
    pub active: Option<ActiveSegment>,
    /// The others, in order.
    pub sealed: Vec<SealedSegment>,
    /// The lowest fencing token that is taken; 0: there was none yet.
    pub fencing_token: u64,
}

/// A producer, as the checkpoint lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerState {
    /// Its name.
    pub name: String,
    /// The highest epoch.
    pub epoch: u64,
    /// Sequence of its last append.
    pub last_sequence: u64,
    /// Hash and answer of its last appends, in order; those of the last one come last.
    pub answers: std::collections::VecDeque<(u64, Answer)>,
}

/// An append with a request id, as the checkpoint lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestState {
    /// The id.
    pub id: Vec<u8>,
    /// Hash of its topics and records.
    pub body_hash: u64,
    /// What it was answered.
    pub answer: Answer,
}

/// The master key of a store, as the checkpoint and the journal have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MasterKeyState {
    /// Which one.
    pub uid: Uid,
    /// How many of its keys were destroyed at least. A file with fewer is an old copy.
    pub destroyed: u64,
}

impl MasterKeyState {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, 1, &self.uid.0);
        put_number(out, 2, self.destroyed);
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let (mut key, mut destroyed) = (None, 0);
        for field in Fields::new(bytes) {
            match field? {
                (1, value) => key = Some(uid(value.bytes()?)?),
                (2, value) => destroyed = value.number()?,
                _ => return Err(Invalid::new("unknown field of a master key", 0)),
            }
        }
        Ok(Self { uid: key.ok_or(Invalid::new("a master key has no uid", 0))?, destroyed })
    }
}

/// The state of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The store.
    pub store: Uid,
    /// The state is that of the journal up to here.
    pub position: Position,
    /// Generation of the journal file that holds this position.
    pub generation: u64,
    /// The id of the next topic to be created.
    pub next_topic: TopicId,
    /// All topics.
    pub topics: Vec<TopicState>,
    /// Topics whose files may still have to be removed.
    pub deleted: Vec<TopicId>,
    /// All producers.
    pub producers: Vec<Arc<ProducerState>>,
    /// The kept request ids, the oldest first.
    pub request_ids: Vec<Arc<RequestState>>,
    /// The master key, if the store has one.
    pub master_key: Option<MasterKeyState>,
}

/// How the copies of a checkpoint were found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decoded {
    /// The state.
    pub checkpoint: Checkpoint,
    /// What is wrong with one of the copies.
    pub damaged_copy: Option<Invalid>,
}

impl Checkpoint {
    /// The whole file.
    pub fn encode(&self) -> Vec<u8> {
        let mut content = Vec::new();
        self.encode_content(&mut content);
        let copy_bytes = (COPY_HEADER_BYTES + content.len()).next_multiple_of(COPY_ALIGNMENT);
        let mut file = vec![0; 2 * copy_bytes];
        put_preamble(MAGIC, &mut file[..PREAMBLE_BYTES]);
        file[16..24].copy_from_slice(&(content.len() as u64).to_le_bytes());
        let sum = crc(crc(0, &file[..24]), &content);
        file[24..28].copy_from_slice(&sum.to_le_bytes());
        file[COPY_HEADER_BYTES..COPY_HEADER_BYTES + content.len()].copy_from_slice(&content);
        file.copy_within(..copy_bytes, copy_bytes);
        file
    }

    /// Decodes a whole file from whichever copy is intact.
    pub fn decode(file: &[u8]) -> Result<Decoded, HeaderProblem> {
        let middle = file.len() / 2;
        match (Self::decode_copy(&file[..middle]), Self::decode_copy(&file[middle..])) {
            (Ok(checkpoint), Ok(_)) => Ok(Decoded { checkpoint, damaged_copy: None }),
            (Ok(checkpoint), Err(HeaderProblem::Invalid(invalid))) => {
                let invalid = Invalid { position: middle + invalid.position, ..invalid };
                Ok(Decoded { checkpoint, damaged_copy: Some(invalid) })
            }
            (Ok(checkpoint), Err(_)) => {
                Ok(Decoded { checkpoint, damaged_copy: Some(Invalid::new("the copy is blank", middle)) })
            }
            (Err(HeaderProblem::Invalid(invalid)), Ok(checkpoint)) => {
                Ok(Decoded { checkpoint, damaged_copy: Some(invalid) })
            }
            (Err(_), Ok(checkpoint)) => {
                Ok(Decoded { checkpoint, damaged_copy: Some(Invalid::new("the copy is blank", 0)) })
            }
            (Err(newer @ HeaderProblem::Newer(_)), Err(_))
            | (Err(_), Err(newer @ HeaderProblem::Newer(_))) => Err(newer),
            (Err(problem), Err(_)) => Err(problem),
        }
    }

    fn decode_copy(copy: &[u8]) -> Result<Self, HeaderProblem> {
        let invalid = |detail, at| Err(HeaderProblem::Invalid(Invalid::new(detail, at)));
        if copy.len() < COPY_HEADER_BYTES {
            return invalid("the checkpoint is cut off", copy.len());
        }
        let content =
            usize::try_from(u64_at(copy, 16)).ok().and_then(|bytes| copy[COPY_HEADER_BYTES..].get(..bytes));
        let Some(content) = content else {
            return invalid("the checkpoint is longer than its file", 16);
        };
        if crc(crc(0, &copy[..24]), content) != u32_at(copy, 24) {
            return invalid("the checksum of the checkpoint does not match", 24);
        }
        check_preamble(MAGIC, copy)?;
        Self::decode_content(content).map_err(HeaderProblem::Invalid)
    }

    fn encode_content(&self, out: &mut Vec<u8>) {
        put_bytes(out, 1, &self.store.0);
        put_number(out, 2, self.position.0);
        put_number(out, 3, self.generation);
        put_number(out, 4, u64::from(self.next_topic.0));
        for topic in &self.topics {
            put_message(out, 5, |out| topic.encode(out));
        }
        for topic in &self.deleted {
            put_message(out, 6, |out| put_number(out, 1, u64::from(topic.0)));
        }
        for producer in &self.producers {
            put_message(out, 7, |out| producer.encode(out));
        }
        for request in &self.request_ids {
            put_message(out, 8, |out| request.encode(out));
        }
        if let Some(master_key) = &self.master_key {
            put_message(out, 9, |out| master_key.encode(out));
        }
    }

    fn decode_content(content: &[u8]) -> Result<Self, Invalid> {
        let mut checkpoint = Self {
            store: Uid([0; 16]),
            position: Position::ZERO,
            generation: 0,
            next_topic: TopicId(0),
            topics: Vec::new(),
            deleted: Vec::new(),
            producers: Vec::new(),
            request_ids: Vec::new(),
            master_key: None,
        };
        for field in Fields::new(content) {
            match field? {
                (1, value) => checkpoint.store = uid(value.bytes()?)?,
                (2, value) => checkpoint.position = Position(value.number()?),
                (3, value) => checkpoint.generation = value.number()?,
                (4, value) => checkpoint.next_topic = TopicId(value.small()?),
                (5, value) => checkpoint.topics.push(TopicState::decode(value.bytes()?)?),
                (6, value) => {
                    let mut id = TopicId(0);
                    for field in Fields::new(value.bytes()?) {
                        match field? {
                            (1, value) => id = TopicId(value.small()?),
                            _ => return Err(Invalid::new("unknown field of a deleted topic", 0)),
                        }
                    }
                    checkpoint.deleted.push(id);
                }
                (7, value) => checkpoint.producers.push(Arc::new(ProducerState::decode(value.bytes()?)?)),
                (8, value) => checkpoint.request_ids.push(Arc::new(RequestState::decode(value.bytes()?)?)),
                (9, value) => checkpoint.master_key = Some(MasterKeyState::decode(value.bytes()?)?),
                _ => return Err(Invalid::new("unknown field", 0)),
            }
        }
        Ok(checkpoint)
    }
}

const CLEAN_MAGIC: &[u8; 8] = b"QUIPUCLN";
/// Bytes of the file `clean`.
pub const CLEAN_BYTES: usize = PREAMBLE_BYTES + 12;

/// The file `clean` of a store whose journal ends at `position`.
pub fn encode_clean(position: Position) -> [u8; CLEAN_BYTES] {
    let mut out = [0; CLEAN_BYTES];
    put_preamble(CLEAN_MAGIC, &mut out[..PREAMBLE_BYTES]);
    out[16..24].copy_from_slice(&position.0.to_le_bytes());
    let sum = crc(0, &out[..24]);
    out[24..].copy_from_slice(&sum.to_le_bytes());
    out
}

/// Whether `bytes` are the file `clean` of a store whose journal ends at `position`.
pub fn is_clean(bytes: &[u8], position: Position) -> bool {
    bytes == encode_clean(position)
}

impl TopicState {
    fn encode(&self, out: &mut Vec<u8>) {
        put_number(out, 1, u64::from(self.id.0));
        put_bytes(out, 2, &self.uid.0);
        put_bytes(out, 3, self.name.as_str().as_bytes());
        put_message(out, 4, |out| self.settings.encode(out));
        put_number(out, 5, self.log_start_offset.0);
        put_number(out, 6, self.next_offset.0);
        put_number(out, 7, self.last_time.0);
        if let Some(active) = &self.active {
            put_packed(out, 8, &[active.base_offset.0, active.bytes, active.first_time.0]);
        }
        for sealed in &self.sealed {
            put_message(out, 9, |out| sealed.encode(out));
        }
        put_number(out, 10, self.fencing_token);
    }

    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let (mut id, mut topic_uid, mut name, mut settings) = (TopicId(0), None, None, None);
        let mut numbers = [0; 3];
        let (mut active, mut sealed, mut fencing_token) = (None, Vec::new(), 0);
        for field in Fields::new(bytes) {
            match field? {
                (1, value) => id = TopicId(value.small()?),
                (2, value) => topic_uid = Some(uid(value.bytes()?)?),
                (3, value) => name = TopicName::new(value.text()?).ok(),
                (4, value) => settings = Some(TopicSettings::decode(value.bytes()?)?),
                (field @ 5..=7, value) => numbers[field as usize - 5] = value.number()?,
                (8, value) => {
                    let [base, bytes, first] = packed(value.bytes()?)?;
                    active = Some(ActiveSegment {
                        base_offset: Offset(base),
                        bytes,
                        first_time: Timestamp(first),
                    });
                }
                (9, value) => sealed.push(SealedSegment::decode(value.bytes()?)?),
                (10, value) => fencing_token = value.number()?,
                _ => return Err(Invalid::new("unknown field of a topic", 0)),
            }
        }
        let missing = Invalid::new("a topic lacks a field", 0);
        Ok(Self {
            id,
            uid: topic_uid.ok_or(missing)?,
            name: name.ok_or(missing)?,
            settings: settings.ok_or(missing)?,
            log_start_offset: Offset(numbers[0]),
            next_offset: Offset(numbers[1]),
            last_time: Timestamp(numbers[2]),
            active,
            sealed,
            fencing_token,
        })
    }
}

impl ProducerState {
    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, 1, self.name.as_bytes());
        put_number(out, 2, self.epoch);
        put_number(out, 3, self.last_sequence);
        for (body_hash, answer) in &self.answers {
            put_message(out, 4, |out| {
                put_number(out, 1, *body_hash);
                put_bytes(out, 2, answer.as_bytes());
            });
        }
    }

    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let mut producer = Self {
            name: String::new(),
            epoch: 0,
            last_sequence: 0,
            answers: std::collections::VecDeque::new(),
        };
        for field in Fields::new(bytes) {
            match field? {
                (1, value) => producer.name = value.text()?.to_owned(),
                (2, value) => producer.epoch = value.number()?,
                (3, value) => producer.last_sequence = value.number()?,
                (4, value) => {
                    let (mut body_hash, mut answer) = (0, &[][..]);
                    for field in Fields::new(value.bytes()?) {
                        match field? {
                            (1, value) => body_hash = value.number()?,
                            (2, value) => answer = value.bytes()?,
                            _ => return Err(Invalid::new("unknown field of an answer", 0)),
                        }
                    }
                    producer.answers.push_back((body_hash, Answer::decode(answer)?));
                }
                _ => return Err(Invalid::new("unknown field of a producer", 0)),
            }
        }
        if producer.name.is_empty()
            || producer.answers.len() as u64 > producer.last_sequence.saturating_add(1)
        {
            return Err(Invalid::new("a producer has no name, or more answers than appends", 0));
        }
        Ok(producer)
    }
}

impl RequestState {
    fn encode(&self, out: &mut Vec<u8>) {
        put_bytes(out, 1, &self.id);
        put_number(out, 2, self.body_hash);
        put_bytes(out, 3, self.answer.as_bytes());
    }

    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let (mut id, mut body_hash, mut answer) = (&[][..], 0, &[][..]);
        for field in Fields::new(bytes) {
            match field? {
                (1, value) => id = value.bytes()?,
                (2, value) => body_hash = value.number()?,
                (3, value) => answer = value.bytes()?,
                _ => return Err(Invalid::new("unknown field of a request id", 0)),
            }
        }
        Ok(Self { id: id.to_vec(), body_hash, answer: Answer::decode(answer)? })
    }
}

fn uid(bytes: &[u8]) -> Result<Uid, Invalid> {
    bytes.try_into().map(Uid).map_err(|_| Invalid::new("a uid has 16 bytes", 0))
}

fn put_packed(out: &mut Vec<u8>, field: u32, numbers: &[u64]) {
    put_message(out, field, |out| numbers.iter().for_each(|&number| put_varint(out, number)));
}

fn packed<const COUNT: usize>(bytes: &[u8]) -> Result<[u64; COUNT], Invalid> {
    let mut numbers = [0; COUNT];
    let mut at = 0;
    for number in &mut numbers {
        (*number, at) = varint(bytes, at)?;
    }
    if at == bytes.len() { Ok(numbers) } else { Err(Invalid::new("a list of numbers is too long", at)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::Revision;

    fn example() -> Checkpoint {
        let sealed = SealedSegment {
            base_offset: Offset(10),
            rewrites: 2,
            next_offset: Offset(300),
            bytes: 4096,
            record_count: 290,
            first_time: Timestamp(1),
            last_time: Timestamp(2),
        };
        Checkpoint {
            store: Uid([7; 16]),
            position: Position(1 << 40),
            generation: 9,
            next_topic: TopicId(3),
            topics: vec![
                TopicState {
                    id: TopicId(1),
                    uid: Uid([1; 16]),
                    name: TopicName::new("orders").unwrap(),
                    settings: TopicSettings::default(),
                    log_start_offset: Offset(12),
                    next_offset: Offset(400),
                    last_time: Timestamp(77),
                    active: Some(ActiveSegment {
                        base_offset: Offset(300),
                        bytes: 64,
                        first_time: Timestamp(0),
                    }),
                    sealed: vec![sealed; 3],
                    fencing_token: 7,
                },
                TopicState {
                    id: TopicId(2),
                    uid: Uid([2; 16]),
                    name: TopicName::new("a/b").unwrap(),
                    settings: TopicSettings::default(),
                    log_start_offset: Offset(0),
                    next_offset: Offset(0),
                    last_time: Timestamp(0),
                    active: None,
                    sealed: vec![],
                    fencing_token: 0,
                },
            ],
            deleted: vec![TopicId(4)],
            producers: vec![
                Arc::new(ProducerState {
                    name: "idle".into(),
                    epoch: 0,
                    last_sequence: 0,
                    answers: [].into(),
                }),
                Arc::new(ProducerState {
                    name: "writer".into(),
                    epoch: 3,
                    last_sequence: 9,
                    answers: [(0, answer(7)), (u64::MAX, answer(8))].into(),
                }),
            ],
            request_ids: vec![Arc::new(RequestState { id: vec![0, 1], body_hash: 5, answer: answer(9) })],
            master_key: Some(MasterKeyState { uid: Uid([5; 16]), destroyed: 3 }),
        }
    }

    fn answer(offset: u64) -> Answer {
        Answer::new([(TopicId(1), Offset(offset), 1, Timestamp(77), &[Revision(2)][..])])
    }

    /// A later version may keep more of a producer, which an older one must not lose.
    #[test]
    fn what_is_not_known_of_producers_request_ids_and_their_answers_is_refused() {
        let refused = |field: u32, content: &[u8]| {
            let mut bytes = Vec::new();
            put_bytes(&mut bytes, field, content);
            Checkpoint::decode_content(&bytes).is_err()
        };
        assert!(refused(7, &[1 << 3 | 2, 1, b'a', 9 << 3, 1]), "a field of a producer");
        assert!(refused(7, &[1 << 3 | 2, 1, b'a', 4 << 3 | 2, 2, 9 << 3, 1]), "a field of its answer");
        assert!(refused(7, &[2 << 3, 1]), "no name");
        assert!(refused(8, &[9 << 3, 1]), "a field of a request id");
        assert!(refused(8, &[3 << 3 | 2, 2, 9 << 3, 1]), "no answer");
    }

    #[test]
    fn a_checkpoint_comes_back_as_it_was() {
        assert_eq!(
            Checkpoint::decode(&example().encode()),
            Ok(Decoded { checkpoint: example(), damaged_copy: None })
        );
    }

    #[test]
    fn one_damaged_copy_is_survived_and_reported() {
        let file = example().encode();
        let copy_bytes = u64_at(&file, 16) as usize + COPY_HEADER_BYTES;
        for start in [0, file.len() / 2] {
            for bit in
                (start * 8..(start + copy_bytes) * 8).filter(|bit| !(28..32).contains(&(bit / 8 - start)))
            {
                let mut damaged = file.clone();
                damaged[bit / 8] ^= 1 << (bit % 8);
                let decoded = Checkpoint::decode(&damaged).unwrap();
                assert_eq!(decoded.checkpoint, example());
                assert!(decoded.damaged_copy.is_some(), "bit {bit}");
            }
        }
    }

    #[test]
    fn a_cut_checkpoint_is_refused_or_reported() {
        let file = example().encode();
        for cut in (0..file.len()).step_by(97) {
            match Checkpoint::decode(&file[..cut]) {
                Err(_) => {}
                Ok(decoded) => {
                    assert_eq!(decoded.checkpoint, example(), "cut at {cut}");
                    assert!(decoded.damaged_copy.is_some(), "cut at {cut}");
                }
            }
        }
    }

    /// A field that comes twice has its last value, so that a deleted topic is never read as two.
    #[test]
    fn a_deleted_topic_has_one_id() {
        let twice = [6 << 3 | 2, 6, 1 << 3, 9, 1 << 3, 8, 1 << 3, 0];
        let decoded = Checkpoint::decode_content(&twice).unwrap();
        assert_eq!(decoded.deleted, [TopicId(0)]);
        let again = Checkpoint::decode(&decoded.encode()).unwrap();
        assert_eq!(again.checkpoint, decoded);
        assert!(Checkpoint::decode_content(&[6 << 3 | 2, 2, 2 << 3, 9]).is_err(), "an unknown field");
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_checkpoint_or_an_error(bytes: Vec<u8>) {
            let _ = Checkpoint::decode(&bytes);
            let _ = Checkpoint::decode_content(&bytes);
        }
    }
}
