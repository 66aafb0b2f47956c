//! What can be asked of the topic, what it answers, and a plain model of it.

use quipu_storage::{
    Condition, Error, ExpectedRevision, FailedCheck, FailedCondition, Filter, Offset, Record, Revision,
};

/// A record by its key and its tag; the number of the call that appended it is its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Written {
    /// Number of the key.
    pub key: u8,
    /// Number of the tag.
    pub tag: u8,
}

/// A condition, of [`Condition`]s those that the calls use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Of a key.
    Revision(u8, ExpectedRevision),
    /// Of the topic.
    NextOffset(u64),
    /// No record with a tag behind an offset.
    NoTag(u8, Option<u64>),
    /// No record with a tag and a header that every record has behind an offset: the records are looked at, not only the
    /// index.
    NoTagAndHeader(u8, Option<u64>),
}

/// A call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Call {
    /// Appends records if all of this holds.
    Append(Vec<Written>, Vec<Expected>),
    /// Asks for the last revision of a key.
    LastRevision(u8),
    /// Asks for the first record with a tag behind an offset.
    FirstWithTag(u8, Option<u64>),
    /// Reads the records of a key.
    Stream(u8),
    /// Reads all.
    All,
}

/// What a call was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The first offset, and the revisions.
    Appended(u64, Vec<u64>),
    /// The numbers of the conditions that do not hold, and what is there instead.
    Failed(Vec<(usize, Actual)>),
    /// The last revision of a key.
    LastRevision(Option<u64>),
    /// An offset.
    First(Option<u64>),
    /// Offset, revision, and the call that appended it, of each record.
    Records(Vec<(u64, u64, u32)>),
    /// Nothing: it may have happened, now or later, or not.
    Unknown,
}

/// What is there instead of what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actual {
    /// The last revision of the key.
    Revision(Option<u64>),
    /// The next offset.
    NextOffset(u64),
    /// The first record that matches.
    Match(u64),
}

/// The text of a key.
pub fn key(number: u8) -> Vec<u8> {
    format!("key-{number}").into_bytes()
}

fn tag(number: u8) -> String {
    format!("tag-{number}")
}

impl Written {
    /// As a record that the call with this number appends.
    pub fn record(self, call: u32) -> Record {
        Record::keyed(key(self.key), call.to_le_bytes()).with_tag(tag(self.tag)).with_header("all", "yes")
    }
}

impl Expected {
    /// As the store takes it.
    pub fn condition(self) -> Condition {
        let no_match =
            |filter, after: Option<u64>| Condition::NoMatch { filter, after_offset: after.map(Offset) };
        match self {
            Self::Revision(number, expected) => Condition::Revision { key: key(number), expected },
            Self::NextOffset(offset) => Condition::NextOffset(Offset(offset)),
            Self::NoTag(number, after) => no_match(with_tag(number), after),
            Self::NoTagAndHeader(number, after) => no_match(with_tag(number).header("all", "yes"), after),
        }
    }
}

/// All records with a tag.
pub fn with_tag(number: u8) -> Filter {
    Filter::new().tags([tag(number)])
}

impl Actual {
    /// What the store says of a condition that failed.
    pub fn of(failed: &FailedCondition) -> (usize, Self) {
        let actual = match &failed.check {
            FailedCheck::Revision { actual, .. } => Self::Revision(actual.map(|revision| revision.0)),
            FailedCheck::NextOffset { actual, .. } => Self::NextOffset(actual.0),
            FailedCheck::Match { offset } => Self::Match(offset.0),
        };
        (failed.number, actual)
    }
}

impl Answer {
    /// What an append was told by an error; `None` if it was told that it has not happened.
    pub fn of_error(error: &Error) -> Option<Self> {
        match error {
            Error::ConditionFailed { failed } => Some(Self::Failed(failed.iter().map(Actual::of).collect())),
            Error::StorageFailed { .. } => Some(Self::Unknown),
            _ => None,
        }
    }
}

/// The topic as a list of records, each with the call that appended it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Model {
    records: Vec<(Written, u32)>,
}

impl Model {
    /// Does a call and answers what it should have been told.
    pub fn call(&mut self, number: u32, call: &Call) -> Answer {
        match call {
            Call::Append(written, expected) => {
                let failed: Vec<_> = expected
                    .iter()
                    .enumerate()
                    .filter_map(|(number, expected)| Some((number, self.contradiction(*expected)?)))
                    .collect();
                if !failed.is_empty() {
                    return Answer::Failed(failed);
                }
                let first_offset = self.records.len() as u64;
                let revisions = written.iter().map(|written| {
                    let revision = self.count(written.key);
                    self.records.push((*written, number));
                    revision
                });
                let revisions = revisions.collect();
                Answer::Appended(first_offset, revisions)
            }
            Call::LastRevision(key) => Answer::LastRevision(self.count(*key).checked_sub(1)),
            Call::FirstWithTag(tag, after) => Answer::First(self.first_with_tag(*tag, *after)),
            Call::Stream(key) => Answer::Records(self.all(Some(*key))),
            Call::All => Answer::Records(self.all(None)),
        }
    }

    fn count(&self, key: u8) -> u64 {
        self.records.iter().filter(|(written, _)| written.key == key).count() as u64
    }

    fn first_with_tag(&self, tag: u8, after: Option<u64>) -> Option<u64> {
        let first = after.map_or(0, |after| after + 1);
        let mut records = self.records.iter().zip(0_u64..);
        records
            .find(|((written, _), offset)| written.tag == tag && *offset >= first)
            .map(|(_, offset)| offset)
    }

    fn contradiction(&self, expected: Expected) -> Option<Actual> {
        match expected {
            Expected::Revision(key, expected) => {
                let actual = self.count(key).checked_sub(1);
                let holds = match expected {
                    ExpectedRevision::Exact(Revision(revision)) => actual == Some(revision),
                    ExpectedRevision::NoStream => actual.is_none(),
                    ExpectedRevision::Exists => actual.is_some(),
                    ExpectedRevision::Any => true,
                };
                (!holds).then_some(Actual::Revision(actual))
            }
            Expected::NextOffset(offset) => {
                let actual = self.records.len() as u64;
                (offset != actual).then_some(Actual::NextOffset(actual))
            }
            Expected::NoTag(tag, after) | Expected::NoTagAndHeader(tag, after) => {
                self.first_with_tag(tag, after).map(Actual::Match)
            }
        }
    }

    fn all(&self, key: Option<u8>) -> Vec<(u64, u64, u32)> {
        let mut revisions = [0; 256];
        let numbered = self.records.iter().zip(0_u64..).map(|((written, call), offset)| {
            let revision = &mut revisions[usize::from(written.key)];
            *revision += 1;
            (written.key, (offset, *revision - 1, *call))
        });
        numbered.filter(|(of, _)| key.is_none_or(|key| key == *of)).map(|(_, record)| record).collect()
    }
}
