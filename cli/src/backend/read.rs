//! Reading through the embedded engine.

use quipu_client::ExpectedRevision;
use quipu_storage::{
    Cursor, Error, Filter, FilteredBackwards, FilteredCursor, Offset, ReadBatch, ReadOnlyTopic, Revision,
    Snapshot, Start, StreamCursor, StreamHead, StreamInfo, StreamStart, Timestamp, Topic, Visibility,
};

use super::{Damage, Direction, Item, ReadSpec, Reader, Step, convert, filter};
use crate::exit::{Exit, Failure, Result};
use crate::position::Position;
use crate::requirement::{Requirement, Unmet};

/// A topic of a store that is open for writing, or for reading only.
#[derive(Clone)]
pub(super) enum AnyTopic {
    Writable(Topic),
    ReadOnly(ReadOnlyTopic),
}

impl AnyTopic {
    pub(super) fn cursor(&self, start: Start, visibility: Visibility) -> Result<Cursor> {
        Ok(match self {
            Self::Writable(topic) => topic.cursor(start, visibility),
            Self::ReadOnly(topic) => topic.cursor(start, visibility),
        }?)
    }

    fn filtered(&self, filter: &Filter, start: Start, visibility: Visibility) -> Result<FilteredCursor> {
        Ok(match self {
            Self::Writable(topic) => topic.filtered_cursor(filter, start, visibility),
            Self::ReadOnly(topic) => topic.filtered_cursor(filter, start, visibility),
        }?)
    }

    fn backwards(
        &self,
        filter: &Filter,
        before: Offset,
        visibility: Visibility,
    ) -> Result<FilteredBackwards> {
        Ok(match self {
            Self::Writable(topic) => topic.filtered_backwards(filter, before, visibility),
            Self::ReadOnly(topic) => topic.filtered_backwards(filter, before, visibility),
        }?)
    }

    /// What is known of the stream of a key.
    pub(super) fn stream(&self, key: &[u8]) -> Result<Option<StreamHead>> {
        Ok(match self {
            Self::Writable(topic) => topic.stream(key),
            Self::ReadOnly(topic) => topic.stream(key),
        }?)
    }

    /// The latest snapshot of a stream.
    pub(super) fn snapshot(&self, key: &[u8], up_to: Option<u64>) -> Result<Option<Snapshot>> {
        let up_to = up_to.map(Revision);
        Ok(match self {
            Self::Writable(topic) => topic.snapshot(key, up_to),
            Self::ReadOnly(topic) => topic.snapshot(key, up_to),
        }?)
    }

    /// Whether this does not hold of what can be seen.
    pub(super) fn unmet(&self, number: usize, requirement: &Requirement) -> Result<Option<Unmet>> {
        let end = match self {
            Self::Writable(topic) => topic.high_watermark(),
            Self::ReadOnly(topic) => topic.high_watermark(),
        };
        Ok(match requirement {
            Requirement::NextOffset(expected) => (*expected != end.0).then(|| Unmet {
                number,
                actual: Some(end.0),
                offset: Some(*expected).filter(|expected| *expected < end.0),
            }),
            Requirement::Revision { expected: ExpectedRevision::Any, .. } => None,
            Requirement::Revision { key, expected } => {
                let actual = self.stream(key)?.map(|head| head.last_revision.0);
                let (holds, next) = match expected {
                    ExpectedRevision::Exact(revision) => {
                        (actual == Some(*revision), Some(revision.saturating_add(1)))
                    }
                    ExpectedRevision::NoStream => (actual.is_none(), Some(0)),
                    ExpectedRevision::Exists => (actual.is_some(), None),
                    ExpectedRevision::Any => (true, None),
                };
                let later = next.filter(|next| actual.is_some_and(|actual| actual >= *next));
                let offset = match later.filter(|_| !holds) {
                    None => None,
                    Some(next) => {
                        let offset = self.offset_of_revision(key, next, false, Visibility::Synced)?;
                        Some(offset.0).filter(|offset| *offset < end.0)
                    }
                };
                (!holds).then_some(Unmet { number, actual, offset })
            }
            Requirement::NoMatch { filter, after } => {
                let (offset, log_start_offset) =
                    (after.map_or(0, |after| after.saturating_add(1)), self.log_start_offset());
                if offset < log_start_offset.0 {
                    let message = format!(
                        "a condition asks about records from offset {offset} on, and the log starts at {log_start_offset}"
                    );
                    return Err(Failure::new(Exit::OutOfRange, "CONDITION_TRIMMED", message));
                }
                let (filter, after) = (filter::to_engine(filter), after.map(Offset));
                let found = match self {
                    Self::Writable(topic) => topic.first_match(&filter, after),
                    Self::ReadOnly(topic) => topic.first_match(&filter, after),
                }?;
                found.map(|offset| Unmet { number, actual: None, offset: Some(offset.0) })
            }
        })
    }

    /// Streams behind `after`, so many.
    pub(super) fn streams(
        &self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<StreamInfo>> {
        Ok(match self {
            Self::Writable(topic) => topic.streams(prefix, after, limit),
            Self::ReadOnly(topic) => topic.streams(prefix, after, limit),
        }?)
    }

    fn stream_cursor(&self, key: &[u8], start: StreamStart, visibility: Visibility) -> Result<StreamCursor> {
        Ok(match self {
            Self::Writable(topic) => topic.stream_cursor(key, start, visibility),
            Self::ReadOnly(topic) => topic.stream_cursor(key, start, visibility),
        }?)
    }

    /// The offset where the records of a key with this revision and higher begin; or those with higher ones, to read from
    /// `behind` it.
    fn offset_of_revision(
        &self,
        key: &[u8],
        revision: u64,
        behind: bool,
        visibility: Visibility,
    ) -> Result<Offset> {
        let next = self.stream(key)?.map_or(0, |head| head.last_revision.0.saturating_add(1));
        if revision > next {
            let message =
                format!("revision {revision} of the key is not written yet: the next one is {next}");
            let hint = "`quipu streams` shows the last revision of each key";
            return Err(Failure::new(Exit::OutOfRange, "REVISION_UNWRITTEN", message).hint(hint));
        }
        if behind {
            let before = Revision(revision.saturating_add(1));
            return Ok(match self {
                Self::Writable(topic) => topic.stream_end_before(key, before, visibility),
                Self::ReadOnly(topic) => topic.stream_end_before(key, before, visibility),
            }?);
        }
        Ok(self.stream_cursor(key, Revision(revision).into(), visibility)?.next_offset())
    }

    fn log_start_offset(&self) -> Offset {
        match self {
            Self::Writable(topic) => topic.log_start_offset(),
            Self::ReadOnly(topic) => topic.log_start_offset(),
        }
    }

    /// The offset that a position stands for.
    pub(super) fn offset_of(&self, position: Position, visibility: Visibility) -> Result<Offset> {
        let end = self.cursor(Start::Latest, visibility)?.next_offset();
        Ok(match position {
            Position::Offset(offset) => Offset(offset),
            Position::Earliest => self.log_start_offset(),
            Position::Latest | Position::Revision(_) => end,
            Position::Last(count) => end.saturating_sub(count).max(self.log_start_offset()),
            Position::Time(time) => self.cursor(Start::Time(Timestamp(time)), visibility)?.next_offset(),
        })
    }
}

/// Opens a reader.
pub(super) fn reader(topic: AnyTopic, spec: ReadSpec) -> Result<Box<dyn Reader>> {
    let visibility = if spec.sees_written { Visibility::Written } else { Visibility::Synced };
    if spec.direction == Direction::Backwards {
        return Ok(Box::new(BackwardsReader::new(&topic, spec, visibility)?));
    }
    let filter = filter::to_engine(&spec.filter);
    let start = match spec.start {
        Position::Earliest => Start::Earliest,
        Position::Latest => Start::Latest,
        Position::Offset(offset) => Start::Offset(Offset(offset)),
        Position::Time(time) => Start::Time(Timestamp(time)),
        Position::Last(count) if filter::is_empty(&spec.filter) => Start::Last(count),
        Position::Last(count) => Start::Offset(nth_last_match(&topic, &filter, count, visibility)?),
        Position::Revision(revision) => Start::Offset(topic.offset_of_revision(
            spec.stream_key("--revision")?,
            revision,
            false,
            visibility,
        )?),
    };
    let cursor = topic.filtered(&filter, start, visibility)?;
    let follows = spec.direction == Direction::Follow;
    let (mut end, mut end_time) = (u64::MAX, u64::MAX);
    match spec.until {
        None => {}
        // Records of that time may still come: they are recognised when they do.
        Some(Position::Time(time)) => end_time = time,
        Some(position) => end = topic.offset_of(position, visibility)?.0,
    }
    let mut ends_where_it_ends = false;
    if !follows && cursor.visible_end().0 < end {
        end = cursor.visible_end().0;
        ends_where_it_ends = true;
    }
    let left = if spec.records_max == 0 { u64::MAX } else { spec.records_max };
    Ok(Box::new(ForwardsReader {
        cursor,
        filter,
        end,
        end_time,
        left,
        follows,
        ends_where_it_ends,
        is_idle: false,
    }))
}

/// The offset of the first of the last `count` records that the filter wants.
fn nth_last_match(topic: &AnyTopic, filter: &Filter, count: u64, visibility: Visibility) -> Result<Offset> {
    let mut backwards = topic.backwards(filter, Offset::MAX, visibility)?;
    let mut found = topic.cursor(Start::Latest, visibility)?.next_offset();
    let mut before = Offset::MAX;
    let mut left = count;
    while left > 0 {
        let batch = match backwards.previous_batch() {
            Ok(Some(batch)) => batch,
            Ok(None) if backwards.has_more() => continue,
            Ok(None) => break,
            // The reader that goes forwards from here says so again.
            Err(Error::Corrupt { offsets, .. }) => {
                backwards.seek(offsets.start);
                continue;
            }
            Err(Error::CorruptFile { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let mut offsets = Vec::new();
        for next in batch.records() {
            let (offset, record) = next?;
            if offset < before && filter.matches(&record) {
                offsets.push(offset);
            }
        }
        before = batch.batch().base_offset();
        let taken = offsets.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if let Some(first) = offsets.len().checked_sub(taken).and_then(|at| offsets.get(at)) {
            found = *first;
        }
        left -= taken as u64;
    }
    Ok(found)
}

/// The records of a batch that the filter wants.
fn wanted(batch: &ReadBatch, filter: &Filter) -> Result<Vec<Item>> {
    let takes_all = *filter == Filter::default();
    let mut items = Vec::new();
    for stored in batch.owned() {
        let stored = stored?;
        if takes_all || filter.matches(&stored.view()) {
            items.push(convert::item(&stored));
        }
    }
    Ok(items)
}

struct ForwardsReader {
    cursor: FilteredCursor,
    filter: Filter,
    /// Exclusive.
    end: u64,
    end_time: u64,
    left: u64,
    follows: bool,
    /// Whether `end` is where the topic ended, and not where the caller wants to end.
    ends_where_it_ends: bool,
    /// Whether the caller has been told that there is nothing more right now.
    is_idle: bool,
}

impl Reader for ForwardsReader {
    fn next(&mut self) -> Result<Step> {
        loop {
            if self.left == 0 {
                return Ok(Step::End);
            }
            if self.cursor.next_offset().0 >= self.end {
                let damage = self.cursor.damage().filter(|_| self.ends_where_it_ends);
                return damage.map_or(Ok(Step::End), |damage| Err(damage.into()));
            }
            match self.cursor.next_batch() {
                Ok(Some(batch)) => {
                    self.is_idle = false;
                    if batch.batch().append_time().0 >= self.end_time {
                        self.left = 0;
                        return Ok(Step::End);
                    }
                    let mut items = wanted(&batch, &self.filter)?;
                    items.retain(|item| item.offset < self.end);
                    items.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                    self.left -= items.len() as u64;
                    if !items.is_empty() {
                        return Ok(Step::Records(items));
                    }
                }
                // It looks a part of the topic at a time.
                Ok(None) if self.cursor.next_offset() < self.cursor.visible_end() => {}
                Ok(None) if !self.follows => return Ok(Step::End),
                Ok(None) if !self.is_idle => {
                    self.is_idle = true;
                    return Ok(Step::Idle);
                }
                Ok(None) => {
                    self.cursor.wait(None)?;
                }
                Err(Error::OffsetTrimmed { log_start_offset, .. }) => {
                    let from = self.cursor.next_offset().0;
                    self.cursor.seek(log_start_offset);
                    return Ok(Step::Gap { from, to: log_start_offset.0, reason: "trimmed" });
                }
                Err(error @ Error::Corrupt { .. }) => {
                    return Ok(damaged(&error, |to| self.cursor.seek(to.end)));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn damaged(error: &Error, go_on: impl FnOnce(std::ops::Range<Offset>)) -> Step {
    let message = error.to_string();
    let Error::Corrupt { offsets, .. } = error else { return Step::End };
    go_on(offsets.clone());
    Step::Damaged(Damage { from: offsets.start.0, to: offsets.end.0, message })
}

struct BackwardsReader {
    batches: FilteredBackwards,
    filter: Filter,
    /// Records at this offset and above are not wanted, or were handed out.
    before: u64,
    /// The lowest offset wanted.
    lowest: u64,
    lowest_time: u64,
    left: u64,
}

impl BackwardsReader {
    fn new(topic: &AnyTopic, spec: ReadSpec, visibility: Visibility) -> Result<Self> {
        let before = match spec.start {
            Position::Latest => Offset::MAX,
            Position::Last(_) => {
                return Err(Failure::usage(
                    "--reverse begins at the end already: use --count for the last n",
                ));
            }
            Position::Revision(revision) => {
                topic.offset_of_revision(spec.stream_key("--revision")?, revision, true, visibility)?
            }
            // The start is the highest record wanted.
            position => topic.offset_of(position, visibility)?.saturating_add(1),
        };
        let (mut lowest, mut lowest_time) = (0, 0);
        match spec.until {
            None => {}
            Some(Position::Time(time)) => lowest_time = time,
            Some(position) => lowest = topic.offset_of(position, visibility)?.0,
        }
        let left = if spec.records_max == 0 { u64::MAX } else { spec.records_max };
        let filter = filter::to_engine(&spec.filter);
        let batches = topic.backwards(&filter, before, visibility)?;
        Ok(Self { batches, filter, before: before.0, lowest, lowest_time, left })
    }
}

impl Reader for BackwardsReader {
    fn next(&mut self) -> Result<Step> {
        while self.left > 0 && self.before > self.lowest {
            match self.batches.previous_batch() {
                Ok(Some(batch)) => {
                    let mut items = wanted(&batch, &self.filter)?;
                    items.retain(|item| item.offset < self.before && item.offset >= self.lowest);
                    self.before = batch.batch().base_offset().0;
                    if batch.batch().append_time().0 < self.lowest_time {
                        self.left = 0;
                        break;
                    }
                    items.reverse();
                    items.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                    self.left -= items.len() as u64;
                    if !items.is_empty() {
                        return Ok(Step::Records(items));
                    }
                }
                Ok(None) if self.batches.has_more() => {}
                Ok(None) => break,
                Err(error @ Error::Corrupt { .. }) => {
                    return Ok(damaged(&error, |offsets| self.batches.seek(offsets.start)));
                }
                // Behind the end of what can be read, which comes next.
                Err(error @ Error::CorruptFile { .. }) => {
                    return Ok(Step::DamagedEnd { message: error.to_string() });
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Step::End)
    }
}
