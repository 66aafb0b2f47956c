//! Writing what stays of some neighbouring segments into a new one, and putting it in their place.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io::IoSlice;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::control::Pace;
use super::report::CompactionReport;
use super::survey::{Known, Read, State, Survey, file_bytes};
use crate::disk::{File, OpenMode};
use crate::erasure::seal;
use crate::error::{Error, Result};
use crate::format::batch::{Batch, BatchHeader};
use crate::format::checkpoint::SealedSegment;
use crate::format::frame::Change;
use crate::format::segment::{HEADER_BYTES, IndexBuilder, SegmentHeader};
use crate::format::terms::{Kind, term};
use crate::format::{Invalid, aligned};
use crate::segment::{Segment, file_name};
use crate::store::StoreInner;
use crate::terms::map::TermMap;
use crate::topic::TopicInner;
use crate::types::{Offset, Revision};

/// How much is written at once.
const WRITE_BYTES: usize = 1 << 20;

/// What decides which neighbours become one.
#[derive(Clone, Copy, Debug)]
struct Neighbour {
    /// Its batches, when it is rewritten.
    bytes: u64,
    /// Whether a record goes.
    is_thinner: bool,
    /// Whether it may be rewritten at all.
    is_free: bool,
}

/// The first neighbours, at or behind `from`, that are worth a new segment: because records go, or because they are
/// small and fit into one. One that loses nothing and is more than half of a full one is not written again.
fn next_group(neighbours: &[Neighbour], from: usize, bytes_max: u64) -> Option<Range<usize>> {
    let mut start = from;
    while start < neighbours.len() {
        let mut bytes = 0;
        let fits = |neighbour: &&Neighbour| {
            let is_first = bytes == 0;
            bytes += neighbour.bytes;
            let is_worth_it = neighbour.is_thinner || neighbour.bytes <= bytes_max / 2;
            neighbour.is_free && is_worth_it && (is_first || bytes <= bytes_max)
        };
        let count = neighbours[start..].iter().take_while(fits).count();
        let group = start..start + count;
        if count > 1 || neighbours[group.clone()].iter().any(|neighbour| neighbour.is_thinner) {
            return Some(group);
        }
        start += count.max(1);
    }
    None
}

fn neighbours(segments: &[Known]) -> Vec<Neighbour> {
    let neighbour = |known: &Known| Neighbour {
        bytes: known.data_after(),
        is_thinner: known.is_thinner(),
        is_free: known.state == State::Intact
            && known.sealed.is_some_and(|sealed| sealed.rewrites < u32::MAX),
    };
    segments.iter().map(neighbour).collect()
}

impl StoreInner {
    /// Rewrites what the survey has marked, oldest first.
    pub(super) fn rewrite(
        &self,
        survey: &mut Survey,
        pace: &mut Pace<'_>,
        report: &mut CompactionReport,
    ) -> Result<()> {
        let bytes_max = survey.topic.settings.load().segment_bytes_max;
        let mut from = 0;
        // Asked for again each time: what turns out to be damaged or gone stands between its neighbours from then on.
        while let Some(group) =
            next_group(&neighbours(&survey.segments), from, bytes_max - HEADER_BYTES as u64)
        {
            pace.check()?;
            from = group.start;
            if report.is_dry_run {
                from = group.end;
                let data = survey.segments[group.clone()].iter().map(Known::data_after).sum();
                settle(survey, group, file_bytes(data), report);
            } else if let Some((written, sealed)) = self.rewrite_group(survey, group, pace, report)? {
                from = written.end;
                settle(survey, written, sealed.bytes, report);
                pace.segment_written();
            }
        }
        Ok(())
    }

    /// Writes a group into a new segment, or the first part of it if it turns out to be too large, and puts it in
    /// place. `None` if something was found that forbids it; it is noted in the survey.
    fn rewrite_group(
        &self,
        survey: &mut Survey,
        group: Range<usize>,
        pace: &mut Pace<'_>,
        report: &mut CompactionReport,
    ) -> Result<Option<(Range<usize>, SealedSegment)>> {
        let bytes_max = survey.topic.settings.load().segment_bytes_max;
        let first = survey.segments[group.start].sealed.expect("a group has sealed segments only");
        let mut output = Output::create(&survey.topic, first.base_offset, first.rewrites + 1)?;
        let mut written = group.start..group.start;
        for number in group {
            let is_first = written.is_empty();
            if !is_first && output.index.position() + survey.segments[number].data_after() > bytes_max {
                break;
            }
            match copy_segment(survey, number, &mut output, pace, report)? {
                Read::Whole => written.end = number + 1,
                Read::Gone => {
                    survey.segments[number].state = State::Gone;
                    return Ok(None);
                }
                Read::Damaged(range) => {
                    report.damaged.push(range);
                    survey.segments[number].state = State::Damaged;
                    survey.hold_tombstones(number + 1, report);
                    return Ok(None);
                }
            }
        }
        let next_offset = survey.segments[written.end - 1].segment.next_offset();
        let sealed = output.finish(next_offset)?;
        pace.check()?;
        survey.topic.keep_removed(next_offset, std::mem::take(&mut output.removed))?;
        let inputs: Vec<_> =
            survey.segments[written.clone()].iter().map(|known| Arc::clone(&known.segment)).collect();
        if self.replace(&survey.topic, &inputs, output, &sealed)? {
            return Ok(Some((written, sealed)));
        }
        for known in &mut survey.segments[written] {
            known.state = State::Gone;
        }
        Ok(None)
    }

    /// Puts a new segment in the place of others, durably, and removes these. `Ok(false)` if they are not all there any
    /// more.
    fn replace(
        &self,
        topic: &Arc<TopicInner>,
        inputs: &[Arc<Segment>],
        mut output: Output,
        sealed: &SealedSegment,
    ) -> Result<bool> {
        loop {
            let checkpointing = self.checkpointing.lock().expect("no panic under this lock");
            let mut flush = topic.lock_flush()?;
            // While the flush lock is held, deleting the topic does not get as far as its directory.
            topic.check_alive()?;
            self.context.sync_dir(&topic.dir)?;
            let Some(writer) = self.writer_for_change()? else {
                drop(flush);
                drop(checkpointing);
                self.make_room_for_change()?;
                continue;
            };
            topic.check_alive()?;
            let segments = topic.segments();
            let is_first = |segment: &Arc<Segment>| Arc::ptr_eq(segment, &inputs[0]);
            let listed =
                segments.iter().position(is_first).and_then(|at| segments.get(at..at + inputs.len()));
            let are_listed = listed.is_some_and(|listed| {
                listed.iter().zip(inputs).all(|(listed, input)| Arc::ptr_eq(listed, input))
            });
            if !are_listed || sealed.next_offset <= topic.log_start() {
                return Ok(false);
            }
            // From here on recovery may find the change, so the file must be there.
            output.is_kept = true;
            let change = Change::SegmentsReplaced { topic: topic.id, segment: *sealed };
            let new = topic.new_segment(sealed, true);
            let replaced =
                self.change_with(writer, &change, |_| topic.replace_segments(&new, sealed.next_offset))?;
            for segment in replaced {
                // What cannot be removed now is not listed any more: the next opening removes it.
                if self.context.disk.remove(&segment.path).is_ok() {
                    topic.remove_terms(&segment);
                    self.context.counters.segments_removed.add(1);
                }
            }
            flush.is_dir_unsynced = true;
            drop(flush);
            drop(checkpointing);
            topic.put_terms(&new, &output.terms);
            return Ok(true);
        }
    }
}

/// Notes that a group has one new segment of so many bytes in its place, or would have.
fn settle(survey: &mut Survey, group: Range<usize>, bytes: u64, report: &mut CompactionReport) {
    report.segments_replaced += group.len() as u64;
    report.segments_after += 1;
    report.bytes_after += bytes;
    for known in &mut survey.segments[group] {
        known.state = State::Replaced;
        known.count_removed(report);
    }
}

/// Copies what stays of a segment.
fn copy_segment(
    survey: &mut Survey,
    number: usize,
    output: &mut Output,
    pace: &mut Pace<'_>,
    report: &mut CompactionReport,
) -> Result<Read> {
    for piece in 0..survey.segments[number].pieces.len() {
        let bytes = survey.piece_bytes(number, piece);
        pace.expect(bytes);
        pace.spend(bytes)?;
        report.bytes_read += bytes;
        let goes = std::mem::take(&mut survey.segments[number].pieces[piece].goes);
        let expired = std::mem::take(&mut survey.segments[number].pieces[piece].expired);
        let erased = std::mem::take(&mut survey.segments[number].pieces[piece].erased);
        let (seed, log_start) = (survey.topic.seed, survey.log_start);
        let mut record = 0;
        let read = survey.read(number, piece, |batch| {
            let from = record;
            record += batch.header().record_count;
            if !(from..record).any(|record| goes.get(record) || erased.get(record)) {
                output.push(batch);
                return Ok(());
            }
            output.note_removed(batch, |number, offset| offset < log_start || expired.get(from + number))?;
            let mut numbers = from..record;
            let each = |bytes| {
                let number = numbers.next().unwrap_or(record);
                if goes.get(number) {
                    return Ok(None);
                }
                let stays = if erased.get(number) { seal::reclaimed(bytes)? } else { Cow::Borrowed(bytes) };
                Ok(Some(stays))
            };
            if let Some(bytes) = batch.rewrite(seed, each)? {
                output.push_encoded(&bytes, seed);
            }
            Ok(())
        });
        survey.segments[number].pieces[piece].goes = goes;
        survey.segments[number].pieces[piece].expired = expired;
        survey.segments[number].pieces[piece].erased = erased;
        match read? {
            Read::Whole => output.write_if_long()?,
            other => return Ok(other),
        }
    }
    Ok(Read::Whole)
}

/// A new segment, being written aside. It is removed again unless it is kept.
#[derive(Debug)]
struct Output {
    topic: Arc<TopicInner>,
    path: PathBuf,
    file: Arc<dyn File>,
    rewrites: u32,
    index: IndexBuilder,
    /// What is not in the file yet.
    buffer: Vec<u8>,
    written: u64,
    /// The terms of what is in it.
    terms: TermMap,
    /// Keys of which this may remove the last record, with its revision.
    removed: BTreeMap<Vec<u8>, Revision>,
    is_kept: bool,
}

impl Output {
    fn create(topic: &Arc<TopicInner>, base_offset: Offset, rewrites: u32) -> Result<Self> {
        let context = &topic.context;
        let path = topic.dir.join(file_name(base_offset, rewrites));
        let mut flush = topic.lock_flush()?;
        // A topic that is deleted from now on still has the file removed with all others.
        topic.check_alive()?;
        context.check_writable()?;
        let create = || match context.disk.open(&path, OpenMode::Create) {
            // Of a run that could not remove it.
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                context.disk.remove(&path)?;
                context.disk.open(&path, OpenMode::Create)
            }
            outcome => outcome,
        };
        flush.is_dir_unsynced = true;
        let file = create().map_err(|error| Error::io("create segment", &path, error))?;
        drop(flush);
        context.counters.segments_created.add(1);
        let header = SegmentHeader { store: context.store, topic: topic.uid, base_offset };
        Ok(Self {
            topic: Arc::clone(topic),
            path,
            file,
            rewrites,
            index: IndexBuilder::new(base_offset),
            buffer: header.encode().to_vec(),
            written: 0,
            terms: TermMap::default(),
            removed: BTreeMap::new(),
            is_kept: false,
        })
    }

    /// Takes in a batch as it is.
    fn push(&mut self, batch: &Batch) {
        self.terms.push_batch(batch);
        self.put(batch.header(), batch.as_bytes());
    }

    fn push_encoded(&mut self, bytes: &Bytes, seed: u32) {
        let batch = Batch::decode(bytes, seed).expect("it was just encoded");
        self.push(&batch);
    }

    /// Takes down the revisions of the records of a batch that `are_last_perhaps` answers `true` for, by number and offset.
    fn note_removed(
        &mut self,
        batch: &Batch,
        are_last_perhaps: impl Fn(u32, Offset) -> bool,
    ) -> Result<(), Invalid> {
        let mut revisions = batch.revisions();
        for (number, next) in (0..).zip(batch.records()) {
            let (offset, view) = next?;
            let Some(key) = view.key else { continue };
            let Some(revision) = revisions.next() else { break };
            if are_last_perhaps(number, offset) {
                self.removed.insert(term(Kind::Key, key), revision);
            }
        }
        Ok(())
    }

    fn put(&mut self, header: &BatchHeader, bytes: &[u8]) {
        self.index.push(header, &bytes[..4]);
        self.buffer.extend_from_slice(bytes);
        let padded = self.buffer.len() - bytes.len() + aligned(bytes.len());
        self.buffer.resize(padded, 0);
    }

    fn write_if_long(&mut self) -> Result<()> {
        if self.buffer.len() >= WRITE_BYTES { self.write() } else { Ok(()) }
    }

    fn write(&mut self) -> Result<()> {
        self.file
            .write_at(&[IoSlice::new(&self.buffer)], self.written)
            .map_err(|error| Error::io("write segment", &self.path, error))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes index and footer, and syncs the file.
    fn finish(&mut self, next_offset: Offset) -> Result<SealedSegment> {
        let footer = self.index.footer(self.topic.uid, next_offset);
        self.buffer.extend_from_slice(self.index.entries());
        self.buffer.extend_from_slice(&footer.encode(self.topic.seed));
        self.write()?;
        // Nothing depends on this file yet: a failed sync costs only the file. It is never put in place, also not by a
        // later run, whose sync would not make up for this one: that begins with a new file.
        match self.file.sync() {
            Err(error) if !crate::planted::ignores_sync_errors() => {
                return Err(Error::io("sync segment", &self.path, error));
            }
            _ => {}
        }
        Ok(SealedSegment {
            base_offset: footer.base_offset,
            rewrites: self.rewrites,
            next_offset,
            bytes: self.written,
            record_count: footer.record_count,
            first_time: footer.first_time,
            last_time: footer.last_time,
        })
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        let is_ours =
            self.topic.context.failure().is_none() && !self.topic.is_deleted.load(Ordering::Acquire);
        if !self.is_kept && is_ours {
            // If this fails the next opening removes it.
            let _ = self.topic.context.disk.remove(&self.path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Groups of a log: each letter is a segment of so many hundreds of bytes (of 1000) that loses records (upper
    /// case) or not (lower case), `x` one that must stay: a = 1, b = 2, ...
    fn groups(log: &str) -> Vec<[usize; 2]> {
        let neighbour = |letter: char| Neighbour {
            bytes: 100 * (u64::from(letter.to_ascii_lowercase() as u8) - u64::from(b'a') + 1),
            is_thinner: letter.is_ascii_uppercase(),
            is_free: letter != 'x',
        };
        let neighbours: Vec<_> = log.chars().map(neighbour).collect();
        let mut groups = Vec::new();
        let mut from = 0;
        while let Some(group) = next_group(&neighbours, from, 1000) {
            from = group.end;
            groups.push([group.start, group.end]);
        }
        groups
    }

    #[test]
    fn a_log_that_loses_nothing_and_has_no_small_neighbours_is_left_alone() {
        assert_eq!(groups(""), [[0; 2]; 0]);
        assert_eq!(groups("jjij"), [[0; 2]; 0]);
        assert_eq!(groups("ejfjd"), [[0; 2]; 0]);
    }

    #[test]
    fn what_loses_records_is_rewritten_together_with_what_fits() {
        assert_eq!(groups("jJj"), [[1, 2]]);
        assert_eq!(groups("AAAJ"), [[0, 3], [3, 4]]);
        assert_eq!(groups("DDD"), [[0, 2], [2, 3]]);
        assert_eq!(groups("bAb"), [[0, 3]]);
    }

    #[test]
    fn small_neighbours_become_one_until_it_is_full() {
        assert_eq!(groups("abc"), [[0, 3]]);
        assert_eq!(groups("eee"), [[0, 2]]);
        assert_eq!(groups("aja"), [[0; 2]; 0]);
    }

    #[test]
    fn nothing_is_merged_over_a_segment_that_must_stay() {
        assert_eq!(groups("axA"), [[2, 3]]);
        assert_eq!(groups("aaxaa"), [[0, 2], [3, 5]]);
    }
}
