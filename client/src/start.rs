//! Where a reader starts.

use quipu_proto::v1;
use v1::start_position::{Earliest, Latest, Position};

/// Where a reader starts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Start {
    /// At the first record there is. The default.
    #[default]
    Earliest,
    /// Behind the last record there is.
    Latest,
    /// At this offset.
    Offset(u64),
    /// Behind this offset, which the caller has had.
    After(u64),
    /// At the first record appended at this time or later, in milliseconds since the Unix epoch.
    Time(u64),
    /// At the last so many records.
    Last(u64),
    /// In a stream, the records of the one key of the filter: at the record with this revision, or the first one behind it
    /// that is still there (backwards: before it).
    Revision(u64),
    /// The same, behind this revision, which the caller has had.
    AfterRevision(u64),
    /// The same, at the last so many records of the key.
    LastRevisions(u64),
}

impl From<Start> for v1::StartPosition {
    fn from(start: Start) -> Self {
        let position = match start {
            Start::Earliest => Position::Earliest(Earliest {}),
            Start::Latest => Position::Latest(Latest {}),
            Start::Offset(offset) => Position::Offset(offset),
            Start::After(offset) => Position::AfterOffset(offset),
            Start::Time(time_ms) => Position::TimeMs(time_ms),
            Start::Last(count) => Position::Last(count),
            Start::Revision(revision) => Position::Revision(revision),
            Start::AfterRevision(revision) => Position::AfterRevision(revision),
            Start::LastRevisions(count) => Position::LastRevisions(count),
        };
        Self { position: Some(position) }
    }
}
