//! Compares a store with the state it should have, through every way to read.

use std::collections::BTreeSet;

use quipu_storage::{
    Cursor, Error, Offset, RecordView, Revision, Start, Store, StoredRecord, StreamStart, Timestamp, Topic,
    Visibility,
};

use super::{Check, END, ModelTopic, State};
use crate::ensure;

/// The whole store: every topic, forwards and backwards, to its end.
pub fn store(store: &Store, state: &State) -> Check {
    let names: Vec<_> = store.topics().iter().map(|topic| topic.name().to_string()).collect();
    let expected: Vec<_> = state.topics.keys().cloned().collect();
    ensure!(names == expected, "the topics are {names:?}, not {expected:?}");
    for (name, expected) in &state.topics {
        let topic = store.topic(name).map_err(|error| format!("{name}: {error}"))?;
        whole_topic(&topic, expected)?;
    }
    Ok(())
}

/// Everything that a topic holds.
pub fn whole_topic(topic: &Topic, expected: &ModelTopic) -> Check {
    let name = topic.name();
    ensure!(expected.uid.is_none_or(|uid| uid == topic.uid()), "{name}: another uid");
    ensure!(topic.settings() == expected.settings, "{name}: other settings");
    let mut cursor = open(topic, Start::Earliest, Visibility::Written)?;
    let end = forwards(topic, &mut cursor, expected, u64::MAX)?;
    ensure!(end == expected.log_end(), "{name}: read to {end}, not to {}", expected.log_end());
    backwards(topic, expected, END, Visibility::Written, u64::MAX)?;
    streams(topic, expected)?;
    for offset in expected.log_start..topic.high_watermark().0 {
        // Every record by its offset would take longer than all the rest.
        if offset % 17 == expected.log_start % 17 || offset + 1 == expected.log_end() {
            get(topic, expected, offset)?;
        }
    }
    Ok(())
}

/// Every stream: its records with their revisions, and what is known of it without reading. In a topic in memory keys begin
/// anew when their records are gone, which the model does not know.
pub fn streams(topic: &Topic, expected: &ModelTopic) -> Check {
    let name = topic.name();
    if expected.is_in_memory() {
        return Ok(());
    }
    let failed = |error| format!("{name}: streams: {error}");
    let streams = expected.streams();
    for (key, all) in &streams {
        let is_there = |offset: &u64| *offset >= expected.log_start && !expected.gone.contains(offset);
        let wanted = all.iter().zip(0..).filter(|(offset, _)| is_there(offset));
        let wanted: Vec<_> = wanted.map(|(offset, revision)| (*offset, Some(Revision(revision)))).collect();
        let mut cursor =
            topic.stream_cursor(key, StreamStart::Earliest, Visibility::Written).map_err(failed)?;
        let mut found = Vec::new();
        while let Some(read) = cursor.next_record().map_err(failed)? {
            record(topic, expected, &read)?;
            found.push((read.offset().0, read.revision()));
        }
        ensure!(found == wanted, "{name}: stream {key:?} has {found:?}, not {wanted:?}");
        // The rest shows what is synced.
        if topic.high_watermark() == topic.log_end_offset() {
            let head =
                topic.stream(key).map_err(failed)?.map(|head| (head.last_revision.0, head.record_count));
            let known = Some((all.len() as u64 - 1, wanted.len() as u64));
            ensure!(head == known, "{name}: stream {key:?} has head {head:?}, not {known:?}");
        }
    }
    let listed = topic.streams("", None, usize::MAX).map_err(failed)?;
    let shown = topic.high_watermark().0;
    let is_shown =
        |offset: &u64| *offset >= expected.log_start && *offset < shown && !expected.gone.contains(offset);
    let wanted = streams.iter().filter(|(_, all)| all.iter().any(is_shown)).map(|(key, _)| key);
    ensure!(listed.iter().map(|info| &info.key).eq(wanted), "{name}: the list of streams is {listed:?}");
    Ok(())
}

fn open(topic: &Topic, start: Start, visibility: Visibility) -> Check<Cursor> {
    topic.cursor(start, visibility).map_err(|error| format!("{}: {start:?}: {error}", topic.name()))
}

/// One record is what was sent, at its offset, with its time.
pub fn record(topic: &Topic, expected: &ModelTopic, record: &StoredRecord) -> Check {
    let (name, offset) = (topic.name(), record.offset().0);
    ensure!(
        offset >= expected.log_start && offset < expected.log_end(),
        "{name}: a record at {offset}, but the log is {}..{}",
        expected.log_start,
        expected.log_end()
    );
    let sent = expected.record(offset);
    let shown = expected.shown(offset);
    ensure!(
        shown[..] == record.as_bytes()[..],
        "{name}: another record at {offset}, {:?}: {:.80?}, not {:.80?}",
        record.redacted(),
        record.view(),
        RecordView::decode(&shown)
    );
    let time = record.append_time().0;
    ensure!(sent.time.is_none_or(|sent| sent == time), "{name}: time {time}, not {:?}", sent.time);
    Ok(())
}

/// Nothing between two offsets was passed over but what compaction took out.
fn passed(topic: &Topic, expected: &ModelTopic, from: u64, to: u64) -> Check {
    let name = topic.name();
    ensure!(from <= to, "{name}: {to} after {from}");
    ensure!(expected.is_empty_in(from..to), "{name}: {to} comes where {from} is next");
    Ok(())
}

/// A record that a reader meets, where `gone` says what compaction had taken out before it began to read.
fn met(topic: &Topic, expected: &ModelTopic, gone: &BTreeSet<u64>, found: &StoredRecord) -> Check {
    let offset = found.offset().0;
    ensure!(!gone.contains(&offset), "{}: compaction took {offset} out, and it is there", topic.name());
    record(topic, expected, found)
}

/// Reads on with a cursor, about `records` or to the end: each offset is the next there is. Returns the next.
pub fn forwards(topic: &Topic, cursor: &mut Cursor, expected: &ModelTopic, records: u64) -> Check<u64> {
    forwards_since(topic, cursor, expected, &expected.gone, records)
}

/// The same with a cursor from a time when only `gone` had gone: it may still hold a segment that was replaced since.
pub fn forwards_since(
    topic: &Topic,
    cursor: &mut Cursor,
    expected: &ModelTopic,
    gone: &BTreeSet<u64>,
    records: u64,
) -> Check<u64> {
    let name = topic.name();
    let begin = cursor.next_offset().0;
    let mut next = begin;
    while next - begin < records {
        let batch = cursor.next_batch().map_err(|error| format!("{name}: at {next}: {error}"))?;
        let Some(batch) = batch else {
            passed(topic, expected, next, cursor.next_offset().0)?;
            next = cursor.next_offset().0;
            break;
        };
        for found in batch.owned() {
            let found = found.map_err(|error| format!("{name}: at {next}: {error}"))?;
            passed(topic, expected, next, found.offset().0)?;
            met(topic, expected, gone, &found)?;
            next = found.offset().0 + 1;
        }
        passed(topic, expected, next, cursor.next_offset().0)?;
        next = cursor.next_offset().0;
        ensure!(next <= cursor.visible_end().0, "{name}: read to {next}, which is not visible yet");
    }
    Ok(next)
}

/// Reads about `records` records backwards, from `before` on.
pub fn backwards(
    topic: &Topic,
    expected: &ModelTopic,
    before: Offset,
    visibility: Visibility,
    records: u64,
) -> Check {
    let name = topic.name();
    let end = match visibility {
        Visibility::Synced => topic.high_watermark(),
        Visibility::Written => topic.log_end_offset(),
    };
    let mut next = before.min(end).0.max(expected.log_start);
    let begin = next;
    let mut batches = topic.batches_backwards(before, visibility);
    while begin - next < records {
        let batch = batches.previous_batch().map_err(|error| format!("{name}: below {next}: {error}"))?;
        let Some(batch) = batch else {
            passed(topic, expected, expected.log_start, next)?;
            break;
        };
        for found in batch.owned().into_iter().rev() {
            let found = found.map_err(|error| format!("{name}: below {next}: {error}"))?;
            // A batch may reach beyond what was asked for.
            if found.offset().0 >= next {
                continue;
            }
            passed(topic, expected, found.offset().0 + 1, next)?;
            met(topic, expected, &expected.gone, &found)?;
            next = found.offset().0;
        }
    }
    Ok(())
}

/// The record at a visible offset, or nothing if compaction took it out.
pub fn get(topic: &Topic, expected: &ModelTopic, offset: u64) -> Check {
    let name = topic.name();
    let found = topic.get(Offset(offset)).map_err(|error| format!("{name}: get {offset}: {error}"))?;
    let Some(found) = found else {
        ensure!(expected.gone.contains(&offset), "{name}: there is no record {offset}");
        return Ok(());
    };
    ensure!(found.offset().0 == offset, "{name}: get {offset} gives {}", found.offset());
    met(topic, expected, &expected.gone, &found)
}

/// Where a cursor begins, or the error with its bounds, for every way to say where.
pub fn start(
    topic: &Topic,
    expected: &ModelTopic,
    start: Start,
    visibility: Visibility,
) -> Check<Option<Cursor>> {
    let name = topic.name();
    let first = expected.log_start;
    let end = match visibility {
        Visibility::Synced => topic.high_watermark().0,
        Visibility::Written => expected.log_end(),
    };
    let at = |offset: u64| (first..=end).contains(&offset).then_some(offset);
    let wanted = match start {
        Start::Earliest => Some(first),
        Start::Latest => Some(end),
        Start::Offset(offset) => at(offset.0),
        Start::AfterOffset(offset) => at(offset.0.saturating_add(1)),
        Start::Last(count) => Some(last(expected, first, end, count)),
        Start::Time(time) => Some(first_at(expected, time).clamp(first, end)),
    };
    match (topic.cursor(start, visibility), wanted) {
        (Ok(cursor), Some(wanted)) => {
            let found = cursor.next_offset().0;
            // Where compaction left a gap, any place in it leads to the same record.
            let is_free = matches!(start, Start::Last(_) | Start::Time(_)) && (first..=end).contains(&found);
            let is_same =
                found == wanted || is_free && expected.is_empty_in(found.min(wanted)..found.max(wanted));
            ensure!(is_same, "{name}: {start:?} is {found}, not {wanted} of {first}..{end}");
            Ok(Some(cursor))
        }
        (Err(Error::OffsetTrimmed { log_start_offset, .. }), None) if log_start_offset.0 == first => Ok(None),
        (Err(Error::OffsetUnwritten { next_offset, .. }), None) if next_offset.0 == end => Ok(None),
        (outcome, wanted) => {
            Err(format!("{name}: {start:?} of {first}..{end} is {outcome:?}, not {wanted:?}"))
        }
    }
}

/// The first of the last `count` records before `end` that are still there.
fn last(expected: &ModelTopic, first: u64, end: u64, count: u64) -> u64 {
    let Some(number) = count.checked_sub(1) else { return end };
    let mut there = (first..end).rev().filter(|offset| !expected.gone.contains(offset));
    usize::try_from(number).ok().and_then(|number| there.nth(number)).unwrap_or(first)
}

/// The first record that was appended at `time` or later.
fn first_at(expected: &ModelTopic, time: Timestamp) -> u64 {
    (expected.log_start..expected.log_end())
        .filter(|offset| !expected.gone.contains(offset))
        .find(|&offset| expected.record(offset).time.is_some_and(|found| found >= time.0))
        .unwrap_or(expected.log_end())
}
