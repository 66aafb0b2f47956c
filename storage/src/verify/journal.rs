//! The journal behind the checkpoint, frame by frame.
//!
//! The judgement of a bad frame is the one of [`crate::journal::recovery`]: torn, if no later frame says that it was
//! synced, and then the end. Where the engine refuses to open, the way here goes on at the next intact frame, and the
//! batches behind the damage say which offsets it took.

use std::collections::HashMap;
use std::path::Path;

use bytes::Bytes;

use super::report::Severity;
use super::run::Run;
use super::segment::check_records;
use crate::disk::{Disk, EntryKind, OpenMode};
use crate::error::Result;
use crate::format::batch::{self, Batch, BodyProblem};
use crate::format::checkpoint::Checkpoint;
use crate::format::frame::{Change, FILE_HEADER_BYTES, FileHeader, FrameHeader, FrameProblem};
use crate::format::{FORMAT_VERSION, HeaderProblem};
use crate::journal::HALF_MADE;
use crate::journal::recovery::{
    CUT_SHORT, FoundFile, JournalEnd, chain, check_length, frames, later_mark, read_from,
};
use crate::types::{Offset, Position, TopicId, TopicName, Uid};

/// What the way through the journal must know.
pub(super) struct Journal<'a> {
    pub(super) disk: &'a dyn Disk,
    /// The directory of its files.
    pub(super) dir: &'a Path,
    pub(super) store: Uid,
    pub(super) is_clean: bool,
    /// Up to where it is synced, if the store is open: nothing below may be bad.
    pub(super) synced: Option<Position>,
}

/// A topic, as far as its batches in the journal need it.
struct Tracked {
    name: TopicName,
    seed: u32,
    next_offset: Offset,
}

/// Walks the journal from the checkpoint on and hands over the changes of each frame, up to the first damage that is
/// not a torn end. Says whether there was none.
pub(super) fn check(
    run: &mut Run<'_>,
    journal: &Journal<'_>,
    checkpoint: &Checkpoint,
    mut apply: impl FnMut(Vec<Change>) -> Result<()>,
) -> Result<bool> {
    let files = find(run, journal)?;
    let chain = chain(&files, checkpoint.position, checkpoint.generation);
    if chain.is_empty() {
        let is_new = checkpoint.generation == 0 && files.iter().all(|file| file.header.is_none());
        if !journal.is_clean && !is_new {
            let detail = format!(
                "the journal file of generation {} is missing: the checkpoint needs it from position {} on",
                checkpoint.generation, checkpoint.position
            );
            run.find_in_file(Severity::Unreadable, journal.dir, 0, detail);
            return Ok(false);
        }
        return Ok(true);
    }
    let topics = checkpoint.topics.iter().map(|topic| {
        let seed = batch::seed(topic.uid);
        (topic.id, Tracked { name: topic.name.clone(), seed, next_offset: topic.next_offset })
    });
    let mut walk = Walk { topics: topics.collect(), position: checkpoint.position, is_sound: true };
    for (link, &(number, header)) in chain.iter().enumerate() {
        let file = &files[number];
        let limit = chain.get(link + 1).map(|(_, next)| next.start);
        let limit = match (limit, journal.synced) {
            (Some(limit), Some(synced)) => Some(limit.min(synced)),
            (limit, synced) => limit.or(synced),
        };
        let begin = walk.position.max(header.start);
        let at = FILE_HEADER_BYTES as u64 + (begin - header.start);
        if file.bytes < at && !journal.is_clean {
            run.find_in_file(Severity::Unreadable, &file.path, file.bytes, CUT_SHORT);
            return Ok(false);
        }
        let bytes = match read_from(file, at) {
            Ok(bytes) => bytes,
            Err(error) => {
                run.find_in_file(Severity::Unreadable, &file.path, at, error.to_string());
                return Ok(false);
            }
        };
        run.pace(bytes.len() as u64)?;
        walk.position = begin;
        let part = Part { file, header, begin, bytes, is_last: link + 1 == chain.len(), files: &files };
        if !walk.file(run, journal, &part, limit, &mut apply)? {
            break;
        }
    }
    Ok(walk.is_sound)
}

/// Finds the files and reads their headers.
fn find(run: &mut Run<'_>, journal: &Journal<'_>) -> Result<Vec<FoundFile>> {
    let mut files = Vec::new();
    let entries = match journal.disk.list(journal.dir) {
        Ok(entries) => entries,
        Err(error) => {
            let detail = format!("the journal's directory cannot be listed: {error}");
            run.find_in_file(Severity::Unreadable, journal.dir, 0, detail);
            return Ok(files);
        }
    };
    let mut names: Vec<_> = entries.into_iter().map(|entry| (entry.name, entry.kind)).collect();
    names.sort_by(|(a, _), (b, _)| a.cmp(b));
    for (name, kind) in names {
        let path = journal.dir.join(&name);
        if !name.ends_with(".journal") || kind != EntryKind::File {
            // The latter is a file that is being made, or that a crash left: the next opening removes it.
            if name != "torn-tail" && !name.ends_with(HALF_MADE) {
                run.find_in_file(Severity::Foreign, &path, 0, "the journal does not know this file");
            }
            continue;
        }
        let mut start = [0; FILE_HEADER_BYTES];
        let read = || {
            let file = journal.disk.open(&path, OpenMode::Read)?;
            let bytes = file.len()?;
            file.read_at(&mut start, 0)?;
            Ok::<_, std::io::Error>((file, bytes))
        };
        let mut read = read;
        let (file, bytes) = match read() {
            Ok(found) => found,
            Err(error) => {
                let detail = format!("the journal file cannot be read: {error}");
                run.find_in_file(Severity::Unreadable, &path, 0, detail);
                continue;
            }
        };
        run.report.checked.journal_files += 1;
        // A store that was closed properly needs none of them; another refuses to open.
        let severity = if journal.is_clean { Severity::Redundant } else { Severity::Unreadable };
        let header = match FileHeader::decode(&start).and_then(|header| check_length(bytes).map(|()| header))
        {
            Ok(header) if header.store == journal.store => Some(header),
            Ok(_) => {
                let detail = "the journal file is of another store: the store is refused while it is there";
                run.find_in_file(Severity::Unreadable, &path, 0, detail);
                None
            }
            Err(HeaderProblem::Blank) => None,
            Err(HeaderProblem::Newer(found)) => {
                let detail =
                    format!("the journal file has format version {found}, this build reads {FORMAT_VERSION}");
                run.find_in_file(Severity::Unreadable, &path, 0, detail);
                None
            }
            Err(HeaderProblem::Invalid(invalid)) => {
                run.find_in_file(severity, &path, 0, invalid.detail);
                None
            }
        };
        files.push(FoundFile { path, file, bytes, header });
    }
    Ok(files)
}

/// One file of the chain, read from where the journal is up to now.
struct Part<'a> {
    file: &'a FoundFile,
    header: FileHeader,
    /// Where `bytes` begins.
    begin: Position,
    bytes: Bytes,
    is_last: bool,
    files: &'a [FoundFile],
}

impl Part<'_> {
    fn rest(&self, position: Position) -> Bytes {
        let start = usize::try_from(position - self.begin).unwrap_or(usize::MAX);
        self.bytes.slice(start.min(self.bytes.len())..)
    }

    fn file_position(&self, position: Position) -> u64 {
        FILE_HEADER_BYTES as u64 + (position - self.header.start)
    }

    /// The intact frames behind `position`: where each is, and its mark.
    fn frames_behind(&self, position: Position) -> Vec<(Position, Position)> {
        frames(&self.rest(position), &self.header, position).filter(|(at, _)| *at > position).collect()
    }

    /// Whether a later frame says that everything up to behind `position` was synced.
    fn was_synced(&self, position: Position, behind: &[(Position, Position)]) -> bool {
        behind.iter().any(|(_, synced)| *synced > position)
            || later_mark(self.files, self.header.generation).is_ok_and(|mark| mark > position)
    }
}

/// What is wrong with a batch of a frame, and with which offsets.
struct BadBatch {
    topic: Option<TopicName>,
    offsets: Option<std::ops::Range<Offset>>,
    detail: String,
}

struct Walk {
    topics: HashMap<TopicId, Tracked>,
    position: Position,
    /// Whether no damage was found yet that keeps the store from opening.
    is_sound: bool,
}

impl Walk {
    /// Walks one file, up to `limit` or the last frame. Says whether the journal goes on in the next one.
    fn file(
        &mut self,
        run: &mut Run<'_>,
        journal: &Journal<'_>,
        part: &Part<'_>,
        limit: Option<Position>,
        apply: &mut impl FnMut(Vec<Change>) -> Result<()>,
    ) -> Result<bool> {
        while limit.is_none_or(|limit| self.position < limit) {
            let rest = part.rest(self.position);
            let frame = FrameHeader::decode(&rest, part.header.seed(), part.header.generation, self.position);
            let (frame_bytes, bad) = match frame {
                Err(invalid) => (None, vec![plain(invalid.detail)]),
                Ok(frame) => match frame.changes(&rest) {
                    Err(FrameProblem::Invalid(invalid)) => (None, vec![plain(invalid.detail)]),
                    Err(FrameProblem::UnknownChange(number)) => {
                        let detail = format!("the frame has a change of the later kind {number}");
                        (Some(frame.frame_bytes), vec![plain(detail)])
                    }
                    Ok(changes) => {
                        let bad = self.check_changes(run, &changes);
                        if bad.is_empty() {
                            run.report.checked.frames += 1;
                            self.follow(&changes);
                            if self.is_sound {
                                apply(changes)?;
                            }
                            self.position = self.position + frame.frame_bytes as u64;
                            continue;
                        }
                        (Some(frame.frame_bytes), bad)
                    }
                },
            };
            let behind = part.frames_behind(self.position);
            let is_damage = match journal.synced {
                Some(synced) => self.position < synced,
                None => part.was_synced(self.position, &behind),
            };
            if !is_damage {
                let last = behind.last().map_or(self.position, |(at, _)| *at);
                if last > self.position || frame_bytes.is_some() || !part.is_last {
                    run.report.journal_end = JournalEnd::Torn { bytes: last - self.position };
                }
                return Ok(false);
            }
            self.is_sound = false;
            let place = (&*part.file.path, part.file_position(self.position));
            let what = if behind.is_empty() { "is damaged, or its file is missing" } else { "is damaged" };
            for BadBatch { topic, offsets, detail } in bad {
                run.find_in_topic(
                    Severity::Unreadable,
                    topic.as_ref(),
                    offsets,
                    place,
                    format!("the frame at journal position {} {what}: {detail}", self.position),
                );
            }
            match (frame_bytes, behind.first()) {
                // Its header holds: the next one follows.
                (Some(bytes), _) => {
                    self.forgive(&rest, part);
                    self.position = self.position + bytes as u64;
                }
                (None, Some((next, _))) => self.position = *next,
                (None, None) => return Ok(true),
            }
        }
        Ok(limit.is_some() && limit != journal.synced)
    }

    /// What is wrong with the batches of a frame.
    fn check_changes(&self, run: &mut Run<'_>, changes: &[Change]) -> Vec<BadBatch> {
        let mut bad = Vec::new();
        // Of one frame, a topic may be created by an earlier change.
        let mut next: HashMap<TopicId, Offset> = HashMap::new();
        for change in changes {
            let Change::Batch { topic, bytes, .. } = change else { continue };
            let Some(tracked) = self.topics.get(topic) else {
                bad.push(plain(format!("it has a batch for topic number {topic}, which nobody knows")));
                continue;
            };
            run.report.checked.journal_batches += 1;
            let expected = next.get(topic).copied().unwrap_or(tracked.next_offset);
            let mut note = |offsets, detail: String| {
                bad.push(BadBatch { topic: Some(tracked.name.clone()), offsets: Some(offsets), detail });
            };
            let (offsets, problem) = match Batch::decode(bytes, tracked.seed) {
                Ok(batch) => {
                    run.report.checked.records += u64::from(batch.header().record_count);
                    (batch.base_offset()..batch.next_offset(), check_records(&batch).err())
                }
                Err(BodyProblem::CodecUnavailable(_)) => {
                    run.report.checked.batches_not_decoded += 1;
                    match batch::BatchHeader::decode(bytes, tracked.seed) {
                        Ok(header) => (header.base_offset..header.next_offset(), None),
                        Err(invalid) => (expected..expected, Some(invalid)),
                    }
                }
                Err(BodyProblem::Invalid(invalid)) => {
                    match batch::BatchHeader::decode(bytes, tracked.seed) {
                        Ok(header) => (header.base_offset..header.next_offset(), Some(invalid)),
                        // Only what comes behind can say where it ends.
                        Err(invalid) => (expected..expected + 1, Some(invalid)),
                    }
                }
            };
            if let Some(invalid) = problem {
                note(offsets.clone(), invalid.detail.into());
            } else if offsets.start != expected {
                let (from, to) = (expected.min(offsets.start), expected.max(offsets.start));
                let detail =
                    format!("a batch starts at offset {}, but the next one is {expected}", offsets.start);
                note(from..to, detail);
            }
            next.insert(*topic, offsets.end.max(expected));
        }
        bad
    }

    /// Takes the changes of an intact frame in.
    fn follow(&mut self, changes: &[Change]) {
        for change in changes {
            match change {
                Change::Batch { topic, bytes, .. } => {
                    if let Some(tracked) = self.topics.get_mut(topic)
                        && let Ok(header) = batch::BatchHeader::decode(bytes, tracked.seed)
                    {
                        tracked.next_offset = tracked.next_offset.max(header.next_offset());
                    }
                }
                Change::TopicCreated { topic, uid, name, .. } => {
                    let tracked =
                        Tracked { name: name.clone(), seed: batch::seed(*uid), next_offset: Offset::ZERO };
                    self.topics.insert(*topic, tracked);
                }
                Change::TopicDeleted { topic } => drop(self.topics.remove(topic)),
                Change::OffsetsReserved { topic, next_offset } => {
                    if let Some(tracked) = self.topics.get_mut(topic) {
                        tracked.next_offset = *next_offset;
                    }
                }
                Change::TopicAltered { .. }
                | Change::Trimmed { .. }
                | Change::SegmentsReplaced { .. }
                | Change::Answered(_)
                | Change::Fenced { .. }
                | Change::ProducerForgotten { .. }
                | Change::MasterKey(_) => {}
            }
        }
    }

    /// Goes on behind a frame whose header holds and whose batches do not: what it held was reported.
    fn forgive(&mut self, rest: &Bytes, part: &Part<'_>) {
        let frame = FrameHeader::decode(rest, part.header.seed(), part.header.generation, self.position);
        if let Ok(frame) = frame
            && let Ok(changes) = frame.changes(rest)
        {
            self.follow(&changes);
        }
    }
}

fn plain(detail: impl Into<String>) -> BadBatch {
    BadBatch { topic: None, offsets: None, detail: detail.into() }
}
