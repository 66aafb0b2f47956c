//! Taking stock of a topic, and marking what may go.
//!
//! A segment is looked at in pieces of whole batches: the pieces from the last to the first, each read forwards and
//! judged backwards. Marks are bits, two for each record, numbered within the piece.

use std::sync::Arc;

use super::Rules;
use super::control::Pace;
use super::keys::{KeyHash, KeyHasher, Keys, Verdict};
use super::report::{CompactionReport, DamagedRange};
use crate::erasure::seal;
use crate::error::{Error, Result};
use crate::format::Invalid;
use crate::format::batch::Batch;
use crate::format::checkpoint::SealedSegment;
use crate::format::record::RecordView;
use crate::format::segment::{FOOTER_BYTES, HEADER_BYTES, INDEX_ENTRY_BYTES, INDEX_INTERVAL_BYTES};
use crate::segment::{Found, Segment, SegmentReader};
use crate::topic::TopicInner;
use crate::types::{Offset, Position, Timestamp};

/// How long a piece is, about.
const PIECE_BYTES: u64 = 256 << 10;

/// A bit for each number; those that were never set take no memory.
#[derive(Debug, Default)]
pub(super) struct Bits(Vec<u64>);

impl Bits {
    pub(super) fn get(&self, number: u32) -> bool {
        self.0.get(number as usize / 64).is_some_and(|word| word & 1 << (number % 64) != 0)
    }

    /// Sets it; says whether it was not.
    fn set(&mut self, number: u32) -> bool {
        let word = number as usize / 64;
        if word >= self.0.len() {
            self.0.resize(word + 1, 0);
        }
        let is_new = self.0[word] & 1 << (number % 64) == 0;
        self.0[word] |= 1 << (number % 64);
        is_new
    }

    fn clear(&mut self, others: &Self) {
        self.0.iter_mut().zip(&others.0).for_each(|(word, other)| *word &= !other);
    }

    fn count_without(&self, others: &Self) -> u64 {
        let others = others.0.iter().copied().chain(std::iter::repeat(0));
        self.0.iter().zip(others).map(|(word, other)| u64::from((word & !other).count_ones())).sum()
    }

    fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }
}

/// A run of whole batches.
#[derive(Debug)]
pub(super) struct Piece {
    position: u64,
    end: u64,
    /// No batch here has an earlier offset.
    first_offset: Offset,
    /// The records that go.
    pub(super) goes: Bits,
    /// Those of them that are tombstones which were the latest of their key.
    pub(super) expired: Bits,
    /// The records whose payload was erased, and which stay unless they go for another reason.
    pub(super) erased: Bits,
}

/// What a segment has come to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// Nothing is in the way.
    Intact,
    /// It stays as it is.
    Damaged,
    /// It was trimmed meanwhile.
    Gone,
    /// A new one has taken its place.
    Replaced,
}

/// A segment as this run knows it.
#[derive(Debug)]
pub(super) struct Known {
    pub(super) segment: Arc<Segment>,
    /// Present if it may be rewritten.
    pub(super) sealed: Option<SealedSegment>,
    pub(super) pieces: Vec<Piece>,
    pub(super) state: State,
    data_bytes: u64,
    /// Of all its records, and of those that go.
    record_bytes: u64,
    removed_bytes: u64,
    trimmed: u64,
    erased_bytes: u64,
}

impl Known {
    /// Whether a record goes, or a payload.
    pub(super) fn is_thinner(&self) -> bool {
        self.removed_bytes + self.erased_bytes > 0
    }

    /// How many bytes of batches stay, about.
    pub(super) fn data_after(&self) -> u64 {
        let data = self.data_bytes - HEADER_BYTES as u64;
        if !self.is_thinner() {
            return data;
        }
        let stays = u128::from(data)
            * u128::from(self.record_bytes.saturating_sub(self.removed_bytes + self.erased_bytes));
        u64::try_from(stays / u128::from(self.record_bytes)).unwrap_or(data)
    }

    fn going(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.goes.count()).sum()
    }

    /// Its records are removed by the segment that has taken its place, or would.
    pub(super) fn count_removed(&self, report: &mut CompactionReport) {
        let expired = self.pieces.iter().map(|piece| piece.expired.count()).sum::<u64>();
        report.records_removed.superseded += self.going() - expired - self.trimmed;
        report.records_removed.tombstone_expired += expired;
        report.records_removed.trimmed += self.trimmed;
        let erased = |piece: &Piece| piece.erased.count_without(&piece.goes);
        report.payloads_erased += self.pieces.iter().map(erased).sum::<u64>();
        report.payload_bytes_erased += self.erased_bytes;
    }
}

/// How long a file with so many bytes of batches is, about.
pub(super) fn file_bytes(data: u64) -> u64 {
    let index = data.div_ceil(INDEX_INTERVAL_BYTES) * INDEX_ENTRY_BYTES as u64;
    HEADER_BYTES as u64 + data + index + FOOTER_BYTES as u64
}

/// How reading a piece went.
pub(super) enum Read {
    Whole,
    Damaged(DamagedRange),
    Gone,
}

/// What is marked by: a record with a key.
struct Keyed {
    number: u32,
    hash: KeyHash,
    time: Timestamp,
    is_tombstone: bool,
    bytes: u64,
}

/// See the [module](self).
pub(super) struct Survey {
    pub(super) topic: Arc<TopicInner>,
    rules: Rules,
    /// In order of offsets.
    pub(super) segments: Vec<Known>,
    reader: SegmentReader,
    pub(super) log_start: Offset,
    /// What lies at or behind this offset does not count.
    end: Offset,
}

impl Survey {
    /// Only sealed segments below `covered_end` may be rewritten.
    pub(super) fn begin(
        topic: &Arc<TopicInner>,
        rules: Rules,
        covered_end: Offset,
        report: &mut CompactionReport,
    ) -> Result<Self> {
        let mut survey = Self {
            topic: Arc::clone(topic),
            rules,
            segments: Vec::new(),
            reader: SegmentReader::new(),
            log_start: topic.log_start(),
            end: topic.high_watermark(),
        };
        let mut is_clean = true;
        for segment in topic.segments().iter().filter(|segment| segment.next_offset() > survey.log_start) {
            let (starts, data_bytes) = match segment.pieces(&topic.context, PIECE_BYTES) {
                Ok(pieces) => pieces,
                Err(Error::Io { .. }) if !is_listed(topic, segment) => continue,
                Err(error) => return Err(error),
            };
            let ends = starts.iter().skip(1).map(|(position, _)| *position).chain([data_bytes]);
            let pieces = starts.iter().zip(ends).map(|(&(position, first_offset), end)| Piece {
                position,
                end,
                first_offset,
                goes: Bits::default(),
                expired: Bits::default(),
                erased: Bits::default(),
            });
            let sealed = segment.sealed().filter(|sealed| sealed.next_offset <= covered_end);
            if let Some(sealed) = sealed {
                report.segments_before += 1;
                report.bytes_before += sealed.bytes;
                report.records_before += sealed.record_count;
                is_clean &= !rules.is_young(sealed.last_time);
                if is_clean {
                    report.clean_end = sealed.next_offset;
                }
            }
            survey.segments.push(Known {
                segment: Arc::clone(segment),
                sealed,
                pieces: pieces.collect(),
                state: State::Intact,
                data_bytes,
                record_bytes: 0,
                removed_bytes: 0,
                trimmed: 0,
                erased_bytes: 0,
            });
        }
        Ok(survey)
    }

    /// Marks what may go, in as many passes as it takes.
    pub(super) fn mark(
        &mut self,
        pace: &mut Pace<'_>,
        keys_max: usize,
        report: &mut CompactionReport,
    ) -> Result<()> {
        let hasher = KeyHasher::default();
        let mut keys = Keys::new(keys_max);
        let pass_bytes = self.segments.iter().map(|known| known.data_bytes - HEADER_BYTES as u64).sum();
        while keys.next_pass() {
            report.passes += 1;
            pace.expect(pass_bytes);
            for number in (0..self.segments.len()).rev() {
                self.mark_segment(number, pace, &hasher, &mut keys, report)?;
            }
            let (count, tombstones) = keys.counts();
            report.keys += count;
            report.records_kept.tombstone_young += tombstones;
        }
        if let Some(damaged) = self.segments.iter().position(|known| known.state == State::Damaged) {
            self.hold_tombstones(damaged + 1, report);
        }
        Ok(())
    }

    /// Lets no tombstone go from this segment on: one before it had to stay, and may hold what they deleted.
    pub(super) fn hold_tombstones(&mut self, from: usize, report: &mut CompactionReport) {
        for known in self.segments.iter_mut().skip(from).filter(|known| known.state == State::Intact) {
            for piece in &mut known.pieces {
                report.records_kept.damaged += piece.expired.count();
                piece.goes.clear(&piece.expired);
                piece.expired = Bits::default();
            }
            if known.going() == 0 {
                known.removed_bytes = 0;
            }
        }
    }

    fn mark_segment(
        &mut self,
        number: usize,
        pace: &mut Pace<'_>,
        hasher: &KeyHasher,
        keys: &mut Keys,
        report: &mut CompactionReport,
    ) -> Result<()> {
        let is_first_pass = report.passes == 1;
        let mut pieces = std::mem::take(&mut self.segments[number].pieces);
        let mut records = 0;
        let mut outcome = Ok(());
        for piece in pieces.iter_mut().rev() {
            if self.segments[number].state == State::Gone {
                break;
            }
            outcome = pace.spend(piece.end - piece.position);
            report.bytes_read += piece.end - piece.position;
            if outcome.is_err() {
                break;
            }
            match self.mark_piece(number, piece, is_first_pass, hasher, keys, report) {
                Ok(count) => records += count,
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        let known = &mut self.segments[number];
        known.pieces = pieces;
        outcome?;
        if let Some(sealed) = known.sealed.filter(|_| is_first_pass && known.state == State::Intact)
            && sealed.record_count != records
        {
            // Each batch for itself is intact, but one is missing, or there twice.
            known.state = State::Damaged;
            report.damaged.push(DamagedRange {
                offsets: sealed.base_offset..sealed.next_offset,
                path: known.segment.path.clone(),
                position: Position(0),
                detail: "the segment holds another number of records than its footer says",
            });
        }
        Ok(())
    }

    /// Reads a piece and marks its records; answers how many they are.
    fn mark_piece(
        &mut self,
        number: usize,
        piece: &mut Piece,
        is_first_pass: bool,
        hasher: &KeyHasher,
        keys: &mut Keys,
        report: &mut CompactionReport,
    ) -> Result<u64> {
        let (log_start, end, rules) = (self.log_start, self.end, self.rules);
        let topic = Arc::clone(&self.topic);
        let known = &mut self.segments[number];
        let may_go = known.sealed.is_some();
        let mut count: u32 = 0;
        let mut found = Vec::new();
        let read = read_piece(&mut self.reader, &topic, &known.segment, piece_bounds(piece), |batch| {
            let time = batch.append_time();
            let master_key =
                topic.context.master_key().filter(|_| is_first_pass && batch.header().has_sealed);
            for next in batch.records() {
                let (offset, view) = next?;
                let record = count;
                count += 1;
                let bytes = view.as_bytes().len() as u64;
                let is_erased = master_key.is_some_and(|master_key| seal::is_reclaimable(master_key, &view));
                if may_go && offset >= log_start && is_erased {
                    piece.erased.set(record);
                    known.erased_bytes += view.sealed.map_or(0, |sealed| sealed.len() as u64);
                }
                if offset < log_start {
                    if may_go && is_first_pass && piece.goes.set(record) {
                        known.trimmed += 1;
                        known.removed_bytes += bytes.max(1);
                    }
                } else if let Some(key) = view.key.filter(|_| offset < end) {
                    if may_go && is_first_pass && rules.is_young(time) {
                        report.records_kept.too_young += 1;
                    }
                    let hash = hasher.hash(key);
                    if !rules.erased_only && keys.covers(&hash) {
                        found.push(Keyed {
                            number: record,
                            hash,
                            time,
                            is_tombstone: is_tombstone(&view)
                                || is_erased && crate::planted::erases_as_tombstones(),
                            bytes,
                        });
                    }
                } else if may_go && is_first_pass {
                    report.records_kept.no_key += 1;
                }
                if is_first_pass {
                    known.record_bytes += bytes.max(1);
                }
            }
            Ok(())
        })?;
        for record in found.into_iter().rev() {
            let Some(seen) = keys.seen(record.hash) else { continue };
            let verdict = seen.judge(&rules, may_go, record.is_tombstone, record.time);
            // A key that was put off in the middle of a pass is judged again in another, with the same outcome.
            if verdict != Verdict::Stays && piece.goes.set(record.number) {
                known.removed_bytes += record.bytes.max(1);
            }
            if verdict == Verdict::TombstoneExpired {
                piece.expired.set(record.number);
            }
        }
        match read {
            Read::Whole => {}
            Read::Gone => known.state = State::Gone,
            Read::Damaged(range) => {
                if may_go {
                    known.state = State::Damaged;
                }
                if !report.damaged.contains(&range) {
                    report.damaged.push(range);
                }
            }
        }
        Ok(u64::from(count))
    }

    /// Completes the report with what was not replaced.
    pub(super) fn sum_up(&self, report: &mut CompactionReport) {
        let kept = &mut report.records_kept;
        for known in &self.segments {
            let Some(sealed) = known.sealed else { continue };
            match known.state {
                State::Replaced => continue,
                State::Gone => {
                    report.segments_before -= 1;
                    report.bytes_before -= sealed.bytes;
                    report.records_before -= sealed.record_count;
                    continue;
                }
                State::Damaged => kept.damaged += known.going(),
                State::Intact => kept.not_reached += known.going(),
            }
            report.segments_after += 1;
            report.bytes_after += sealed.bytes;
        }
        let others = kept.no_key + kept.too_young + kept.tombstone_young + kept.damaged + kept.not_reached;
        kept.latest = report.records_before.saturating_sub(report.records_removed.total() + others);
    }

    /// Reads a piece of a segment again, handing over its batches.
    pub(super) fn read(
        &mut self,
        number: usize,
        piece: usize,
        each: impl FnMut(&Batch) -> std::result::Result<(), Invalid>,
    ) -> Result<Read> {
        let known = &self.segments[number];
        let bounds = piece_bounds(&known.pieces[piece]);
        read_piece(&mut self.reader, &self.topic, &known.segment, bounds, each)
    }

    pub(super) fn piece_bytes(&self, number: usize, piece: usize) -> u64 {
        let piece = &self.segments[number].pieces[piece];
        piece.end - piece.position
    }
}

fn is_tombstone(view: &RecordView<'_>) -> bool {
    view.is_tombstone()
}

fn is_listed(topic: &TopicInner, segment: &Arc<Segment>) -> bool {
    topic.segments().iter().any(|listed| Arc::ptr_eq(listed, segment))
}

fn piece_bounds(piece: &Piece) -> (u64, u64, Offset) {
    (piece.position, piece.end, piece.first_offset)
}

/// Reads the batches from one place to another, each verified. Ends at the first damage.
fn read_piece(
    reader: &mut SegmentReader,
    topic: &TopicInner,
    segment: &Arc<Segment>,
    (mut position, end, mut expected): (u64, u64, Offset),
    mut each: impl FnMut(&Batch) -> std::result::Result<(), Invalid>,
) -> Result<Read> {
    // Behind the last piece once more: whether the segment's end is missing.
    while position < end || position >= segment.data_end() {
        let (batch, behind) = match reader.read(segment, &topic.context, position, expected) {
            Ok(Found::Batch(batch, behind)) => (batch, behind),
            Ok(Found::End) => break,
            Err(Error::Corrupt { offsets, path, position, detail, .. }) => {
                return Ok(Read::Damaged(DamagedRange { offsets, path, position, detail }));
            }
            Err(Error::Io { .. }) if !is_listed(topic, segment) => return Ok(Read::Gone),
            Err(error) => return Err(error),
        };
        if let Err(Invalid { detail, .. }) = each(&batch) {
            return Ok(Read::Damaged(DamagedRange {
                offsets: batch.base_offset()..batch.next_offset(),
                path: segment.path.clone(),
                position: Position(position),
                detail,
            }));
        }
        position = behind;
        expected = batch.next_offset();
    }
    Ok(Read::Whole)
}
