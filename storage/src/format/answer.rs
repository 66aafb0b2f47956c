//! What an append is known by, and what it was answered: kept so that a repeat of it gets the same answer.
//!
//! ```text
//! answer = protobuf, field 1 for each topic of the append, in order of first mention
//! ```
//!
//! | Field of a topic | Content |
//! |---|---|
//! | 1 | topic id |
//! | 2 | first offset |
//! | 3 | record count |
//! | 4 | append time |
//! | 5 | revisions of the records that have keys, packed varints: a revision, and how many follow one another from it on; and so forth |
//! | 6 | 1: they have revisions, which would take too much room here; the batch has them |
//!
//! The journal has the answer in the frame of the append, the checkpoint as long as it is kept, and it is kept in memory as
//! it stands there.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use super::Invalid;
use super::wire::{Fields, put_message, put_number, put_varint, varint};
use crate::types::{Offset, Revision, Timestamp, TopicId};

/// The longest name of a producer, in bytes.
pub const PRODUCER_NAME_BYTES_MAX: usize = 255;
/// The longest request id, in bytes.
pub const REQUEST_ID_BYTES_MAX: usize = 64;
/// Most topics of an append that has a producer or a request id: its answer is kept.
pub const ANSWER_TOPICS_MAX: usize = 64;
/// Most bytes of revisions in one answer.
pub const ANSWER_REVISION_BYTES_MAX: usize = 256;
/// No answer is longer. Each number but the revisions has at most 10 bytes and a tag.
pub(crate) const ANSWER_BYTES_MAX: usize = ANSWER_TOPICS_MAX * 48 + ANSWER_REVISION_BYTES_MAX;
/// As many records as an append may have with whatever settings.
const RECORDS_MAX: u64 = 10_000_000;

/// Which append of a named producer this is.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Producer {
    /// Its name: 1 to 255 bytes.
    pub name: String,
    /// Whoever takes a producer over begins a higher one: then the one before it is refused.
    pub epoch: u64,
    /// Counts the appends of an epoch, from 0.
    pub sequence: u64,
}

/// What a repeat of an append is recognised by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Identity {
    /// A place in the sequence of a producer.
    Producer(Producer),
    /// An id that its client made up.
    RequestId(Vec<u8>),
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Producer(Producer { name, epoch, sequence }) => {
                write!(f, "sequence {sequence} of epoch {epoch} of producer {name:?}")
            }
            Self::RequestId(id) => write!(f, "request id \"{}\"", id.escape_ascii()),
        }
    }
}

/// An append that has an identity, and what it was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answered {
    /// What it is known by.
    pub identity: Identity,
    /// Of its topics and records: tells a repeat from another append.
    pub body_hash: u64,
    /// The answer.
    pub answer: Answer,
}

/// An answer, encoded.
#[derive(Clone, PartialEq, Eq)]
pub struct Answer(Arc<[u8]>);

/// What an append was answered for one of its topics.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicAnswer {
    /// The topic.
    pub topic: TopicId,
    /// Offset of the first record.
    pub first_offset: Offset,
    /// How many there are.
    pub record_count: u64,
    /// The time they were given.
    pub append_time: Timestamp,
    /// The revisions of those that have a key, in runs that follow one another; `None` if the batch has to be asked.
    pub runs: Option<Vec<Range<u64>>>,
}

impl Answer {
    /// Encodes; revisions that take too much room are left out.
    pub fn new<'a>(
        topics: impl IntoIterator<Item = (TopicId, Offset, u64, Timestamp, &'a [Revision])>,
    ) -> Self {
        let mut room = ANSWER_REVISION_BYTES_MAX;
        let mut out = Vec::with_capacity(32);
        for (topic, first_offset, record_count, append_time, revisions) in topics {
            put_message(&mut out, 1, |out| {
                put_number(out, 1, u64::from(topic.0));
                put_number(out, 2, first_offset.0);
                put_number(out, 3, record_count);
                put_number(out, 4, append_time.0);
                let Some(packed) = packed(revisions, room) else { return put_number(out, 6, 1) };
                if !packed.is_empty() {
                    room -= packed.len();
                    put_message(out, 5, |out| out.extend_from_slice(&packed));
                }
            });
        }
        Self(out.into())
    }

    /// Takes the bytes over, if they are an answer.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let answer = Self(bytes.into());
        answer.parse()?;
        Ok(answer)
    }

    /// As it is stored.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// For each topic of the append, in order of first mention.
    pub fn topics(&self) -> Vec<TopicAnswer> {
        self.parse().expect("it was encoded or looked at before")
    }

    fn parse(&self) -> Result<Vec<TopicAnswer>, Invalid> {
        let mut topics = Vec::with_capacity(1);
        for field in Fields::new(&self.0) {
            match field? {
                (1, value) => topics.push(TopicAnswer::decode(value.bytes()?)?),
                _ => return Err(Invalid::new("unknown field of an answer", 0)),
            }
        }
        Ok(topics)
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, part) in self.topics().iter().enumerate() {
            let TopicAnswer { topic, first_offset, record_count, append_time, runs } = part;
            let next_offset = *first_offset + *record_count;
            let separator = if number > 0 { "; " } else { "" };
            write!(
                f,
                "{separator}topic number {topic}, offsets {first_offset} to {next_offset} (exclusive), time {append_time}"
            )?;
            match runs {
                Some(runs) if runs.is_empty() => {}
                Some(runs) => write!(f, ", revisions {runs:?}")?,
                None => f.write_str(", revisions in the batch")?,
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.topics()).finish()
    }
}

impl TopicAnswer {
    fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let mut topic = TopicId(0);
        let mut numbers = [0; 3];
        let mut runs = Some(Vec::new());
        for field in Fields::new(bytes) {
            match field? {
                (1, value) => topic = TopicId(value.small()?),
                (field @ 2..=4, value) => numbers[field as usize - 2] = value.number()?,
                (5, value) => runs = Some(unpacked(value.bytes()?)?),
                (6, value) => {
                    if value.number()? != 0 {
                        runs = None;
                    }
                }
                _ => return Err(Invalid::new("unknown field of a topic's answer", 0)),
            }
        }
        let [first_offset, record_count, append_time] = numbers;
        let fits = record_count <= RECORDS_MAX && first_offset.checked_add(record_count).is_some();
        let revisions = runs.iter().flatten().fold(0_u64, |sum, run| sum.saturating_add(run.end - run.start));
        if !fits || revisions > record_count {
            return Err(Invalid::new("the numbers of an answer do not fit together", 0));
        }
        Ok(Self {
            topic,
            first_offset: Offset(first_offset),
            record_count,
            append_time: Timestamp(append_time),
            runs,
        })
    }

    /// The revisions of the records that have a key; `None` if the batch has to be asked.
    pub fn revisions(&self) -> Option<Vec<Revision>> {
        Some(self.runs.as_ref()?.iter().cloned().flatten().map(Revision).collect())
    }
}

/// Revisions as runs, unless they take more room than there is.
fn packed(revisions: &[Revision], room: usize) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut rest = revisions;
    while let Some(first) = rest.first() {
        let follows = |pair: &&[Revision]| pair[0].0.checked_add(1) == Some(pair[1].0);
        let count = 1 + rest.windows(2).take_while(follows).count();
        put_varint(&mut out, first.0);
        put_varint(&mut out, count as u64);
        if out.len() > room {
            return None;
        }
        rest = &rest[count..];
    }
    Some(out)
}

fn unpacked(bytes: &[u8]) -> Result<Vec<Range<u64>>, Invalid> {
    let mut runs = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        let (first, next) = varint(bytes, at)?;
        let (count, next) = varint(bytes, next)?;
        let end = first.checked_add(count).filter(|_| count > 0);
        runs.push(first..end.ok_or(Invalid::new("a run of revisions has no end", at))?);
        at = next;
    }
    Ok(runs)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn revisions_of_one_key_take_no_room_and_too_many_of_several_are_left_to_the_batch() {
        let of_one: Vec<_> = (7..100_007).map(Revision).collect();
        let of_many = vec![Revision(0); 200];
        let part = |topic, revisions| (TopicId(topic), Offset(5), 100_000, Timestamp(9), revisions);
        let answer = Answer::new([part(1, &of_one[..]), part(2, &of_many), part(3, &[Revision(4)])]);
        assert!(answer.as_bytes().len() < 64, "{}", answer.as_bytes().len());
        let revisions: Vec<_> = answer.topics().into_iter().map(|topic| topic.revisions()).collect();
        assert_eq!(revisions, [Some(of_one), None, Some(vec![Revision(4)])]);
    }

    #[test]
    fn no_answer_is_longer_than_the_bound() {
        let offset = Offset(u64::MAX - RECORDS_MAX);
        let part =
            |_| (TopicId(u32::MAX), offset, RECORDS_MAX, Timestamp::MAX, &[Revision(u64::MAX - 1); 2][..]);
        let answer = Answer::new((0..ANSWER_TOPICS_MAX).map(part));
        assert!(answer.as_bytes().len() <= ANSWER_BYTES_MAX, "{}", answer.as_bytes().len());
        assert_eq!(Answer::decode(answer.as_bytes()), Ok(answer));
    }

    proptest! {
        #[test]
        fn an_answer_comes_back(
            parts in prop::collection::vec(
                (any::<u32>(), 0..u64::MAX / 2, any::<u64>(), prop::collection::vec(0..50_u64, 0..40)),
                0..5,
            ),
        ) {
            let revisions: Vec<Vec<_>> =
                parts.iter().map(|(.., revisions)| revisions.iter().copied().map(Revision).collect()).collect();
            let encoded = Answer::new(parts.iter().zip(&revisions).map(|((topic, first, time, _), revisions)| {
                (TopicId(*topic), Offset(*first), 40, Timestamp(*time), &revisions[..])
            }));
            let mut room = ANSWER_REVISION_BYTES_MAX;
            let answers = Answer::decode(encoded.as_bytes()).unwrap().topics();
            prop_assert_eq!(answers.len(), parts.len());
            for (answer, ((topic, first, time, _), revisions)) in answers.into_iter().zip(parts.iter().zip(revisions)) {
                let found = (answer.topic.0, answer.first_offset.0, answer.record_count, answer.append_time.0);
                prop_assert_eq!(found, (*topic, *first, 40, *time));
                let bytes = packed(&revisions, usize::MAX).unwrap().len();
                let fits = bytes <= room;
                room -= if fits { bytes } else { 0 };
                prop_assert_eq!(answer.revisions(), fits.then_some(revisions));
            }
        }

        #[test]
        fn any_bytes_are_an_answer_or_an_error(bytes: Vec<u8>) {
            if let Ok(answer) = Answer::decode(&bytes) {
                let _ = answer.topics();
            }
        }
    }
}
