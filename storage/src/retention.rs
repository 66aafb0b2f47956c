//! Retention: which sealed segments may go, by age, bytes and number of records; of a topic in memory, which batches.
//!
//! It decides and trims; the trim goes through the journal, so that what was removed stays removed. It needs no
//! room on the disk but for that frame, and runs also while appends are refused because the disk is full. A topic in
//! memory needs no frame: after a restart it is empty.

use std::sync::Arc;

use crate::error::Result;
use crate::settings::{Retention, millis};
use crate::store::StoreInner;
use crate::topic::TopicInner;
use crate::types::{Offset, Timestamp, TopicName};

/// What a run of retention removed from a topic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RetentionReport {
    /// The topic.
    pub topic: TopicName,
    /// When.
    pub time: Timestamp,
    /// Where the log started before.
    pub from: Offset,
    /// Where it starts now.
    pub to: Offset,
    /// Which bound was exceeded.
    pub reason: RetentionReason,
}

/// Which bound of [`Retention`] made records go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RetentionReason {
    /// They were too old.
    Age,
    /// The topic had too many bytes.
    Bytes,
    /// The topic had too many records.
    Records,
}

/// What retention knows of a piece of the log that goes as a whole.
#[derive(Clone, Copy, Debug)]
struct Piece {
    next_offset: Offset,
    last_time: Timestamp,
    bytes: u64,
    records: u64,
}

/// How far the log may be cut, and why. `bytes` and `records` are those of all pieces, oldest first.
fn decide(
    retention: &Retention,
    (mut bytes, mut records): (u64, u64),
    pieces: impl Iterator<Item = Piece>,
    now: Timestamp,
) -> Option<(Offset, RetentionReason)> {
    let mut decision = None;
    let mut pieces = pieces.peekable();
    while let Some(piece) = pieces.next() {
        let is_last = pieces.peek().is_none();
        let is_old =
            retention.age_max.is_some_and(|age| now.0.saturating_sub(piece.last_time.0) > millis(age));
        // What is being written goes by age only: the other bounds would empty the topic.
        let reason = if is_old {
            RetentionReason::Age
        } else if !is_last && retention.bytes_max.is_some_and(|bytes_max| bytes > bytes_max) {
            RetentionReason::Bytes
        } else if !is_last && retention.records_max.is_some_and(|most| records - piece.records >= most) {
            RetentionReason::Records
        } else {
            break;
        };
        bytes -= piece.bytes;
        records -= piece.records;
        // One that compaction has emptied has no time and passes for old: it is not why the others went.
        let reason = match decision {
            Some((_, before)) if piece.records == 0 => before,
            _ => reason,
        };
        decision = Some((piece.next_offset, reason));
    }
    decision
}

impl StoreInner {
    /// Applies every topic's retention once; reports what was removed. A topic that cannot be handled does not keep
    /// the others from it; the first error is returned at the end.
    pub(crate) fn run_retention(&self) -> Result<Vec<RetentionReport>> {
        let mut reports = Vec::new();
        let mut outcome = Ok(());
        for topic in self.all_topics() {
            match self.retain(&topic) {
                Ok(report) => reports.extend(report),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome.map(|()| reports)
    }

    fn retain(&self, topic: &Arc<TopicInner>) -> Result<Option<RetentionReport>> {
        let retention = topic.settings.load().retention;
        if topic.segments().first().is_some_and(|segment| segment.next_offset() <= topic.log_start()) {
            // A crash came between a trim and the removal of its files.
            self.remove_trimmed(topic)?;
        }
        if retention == Retention::default() {
            return Ok(None);
        }
        let now = self.context.clock.now();
        let from = topic.log_start();
        let decision = if topic.is_in_memory() {
            decide_in_memory(topic, &retention, now)
        } else {
            let pieces = pieces(topic);
            let bytes = pieces.iter().map(|piece| piece.bytes).sum();
            let records = pieces.iter().map(|piece| piece.records).sum();
            decide(&retention, (bytes, records), pieces.into_iter(), now)
        };
        // What is not synced yet stays.
        let decision = decision.map(|(to, why)| (to.min(topic.high_watermark()), why));
        let Some((to, reason)) = decision.filter(|(to, _)| *to > from) else {
            return Ok(None);
        };
        if topic.is_in_memory() {
            let _writer = self.writer();
            self.context.check_writable()?;
            topic.check_alive()?;
            topic.move_log_start(to);
        } else {
            self.trim(topic, to)?;
        }
        let report = RetentionReport { topic: topic.name.clone(), time: now, from, to, reason };
        *topic.last_retention.lock().expect("no panic under this lock") = Some(report.clone());
        Ok(Some(report))
    }
}

/// In memory each batch is a piece. Looks at those that go and no more, since appends wait meanwhile.
fn decide_in_memory(
    topic: &TopicInner,
    retention: &Retention,
    now: Timestamp,
) -> Option<(Offset, RetentionReason)> {
    let tail = topic.tail();
    let records = tail.head.next_offset - tail.first_offset();
    // What is shown to nobody yet stays.
    let high_watermark = topic.high_watermark();
    let shown = tail.batches().take_while(|batch| batch.next_offset <= high_watermark);
    let pieces = shown.map(|batch| Piece {
        next_offset: batch.next_offset,
        last_time: batch.append_time,
        bytes: batch.bytes.len() as u64,
        records: batch.next_offset - batch.base_offset,
    });
    decide(retention, (tail.bytes(), records), pieces, now)
}

/// The sealed segments, and what is being written as the last piece.
fn pieces(topic: &TopicInner) -> Vec<Piece> {
    let head = topic.head();
    let log_start = topic.log_start();
    let mut pieces: Vec<Piece> = topic
        .segments()
        .iter()
        .filter_map(|segment| segment.sealed())
        .filter(|sealed| sealed.next_offset > log_start)
        .map(|sealed| Piece {
            next_offset: sealed.next_offset,
            last_time: sealed.last_time,
            bytes: sealed.bytes,
            records: sealed.record_count,
        })
        .collect();
    let sealed_end = pieces.last().map_or(log_start, |piece| piece.next_offset);
    if head.next_offset > sealed_end {
        pieces.push(Piece {
            next_offset: head.next_offset,
            last_time: head.last_time,
            bytes: head.active.map_or(0, |active| active.bytes),
            records: head.next_offset - sealed_end,
        });
    }
    pieces
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn log() -> Vec<Piece> {
        (1..=4)
            .map(|n| Piece {
                next_offset: Offset(10 * n),
                last_time: Timestamp(1000 * n),
                bytes: 100,
                records: 10,
            })
            .collect()
    }

    fn cut(retention: Retention, now: u64) -> Option<(u64, RetentionReason)> {
        decide(&retention, (400, 40), log().into_iter(), Timestamp(now)).map(|(to, reason)| (to.0, reason))
    }

    #[test]
    fn without_bounds_nothing_goes() {
        assert_eq!(cut(Retention::default(), u64::MAX), None);
    }

    #[test]
    fn whole_pieces_older_than_the_bound_go() {
        let retention = Retention { age_max: Some(Duration::from_secs(2)), ..Retention::default() };
        assert_eq!(cut(retention, 3000), None);
        assert_eq!(cut(retention, 3001), Some((10, RetentionReason::Age)));
        assert_eq!(cut(retention, 100_000), Some((40, RetentionReason::Age)));
    }

    #[test]
    fn pieces_go_until_the_bytes_are_within_the_bound_but_never_the_one_being_written() {
        let retention = |bytes| Retention { bytes_max: Some(bytes), ..Retention::default() };
        assert_eq!(cut(retention(400), 0), None);
        assert_eq!(cut(retention(399), 0), Some((10, RetentionReason::Bytes)));
        assert_eq!(cut(retention(1), 0), Some((30, RetentionReason::Bytes)));
    }

    #[test]
    fn at_least_as_many_records_stay_as_the_bound_says() {
        let retention = |records| Retention { records_max: Some(records), ..Retention::default() };
        assert_eq!(cut(retention(31), 0), None);
        assert_eq!(cut(retention(30), 0), Some((10, RetentionReason::Records)));
        assert_eq!(cut(retention(1), 0), Some((30, RetentionReason::Records)));
    }
    /// Found by the model: records that had gone because of the bytes were reported as too old, because the piece behind them
    /// had been emptied by compaction.
    #[test]
    fn a_piece_that_compaction_has_emptied_is_not_why_others_went() {
        let mut log = log();
        log[1] = Piece { last_time: Timestamp::ZERO, bytes: 50, records: 0, ..log[1] };
        let retention =
            Retention { age_max: Some(Duration::from_secs(2)), bytes_max: Some(300), ..Retention::default() };
        let decision = decide(&retention, (350, 30), log.into_iter(), Timestamp(3000));
        assert_eq!(decision, Some((Offset(20), RetentionReason::Bytes)));
    }
}
