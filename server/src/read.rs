//! `Read`: what is there now, forwards or backwards, and then how far it came.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use quipu_proto::v1 as pb;
use quipu_storage::{
    Error, Filter, FilteredBackwards, Offset, Start, StreamStart, Timestamp, Topic, Visibility,
};
use tonic::Status;

use crate::batch::{Taken, Wanted, WireBatch, take_backwards};
use crate::error::{Problem, Violations, status};
use crate::filter;
use crate::request::{self, StartAt};
use crate::scan::{self, LOOK_BYTES, Puller, Scan, Then};
use crate::shared::{Counted, Drain, Shared};
use crate::stream;

/// What a read sends.
#[derive(Debug)]
pub(crate) enum ReadEvent {
    Batches(Vec<WireBatch>),
    Gap(pb::Gap),
    End(pb::ReadEnd),
}

/// The reason that a gap of this topic has.
pub(crate) fn gap(topic: &Topic, from: Offset, to: Offset) -> pb::Gap {
    let reason = match topic.settings().storage {
        quipu_storage::Storage::Disk => pb::gap::Reason::Trimmed,
        quipu_storage::Storage::Memory { .. } => pb::gap::Reason::Evicted,
    };
    pb::Gap { from: from.value(), to: to.value(), reason: reason.into() }
}

/// A read that has begun.
pub(crate) struct Read {
    shared: Arc<Shared>,
    topic: Topic,
    visibility: Visibility,
    way: Option<Way>,
    drain: Drain,
    _counted: Counted,
}

enum Way {
    Forwards(Box<Puller>),
    Backwards(Box<Back>),
    /// All was sent but the end.
    End(Offset),
}

/// A reader on its way to older records.
struct Back {
    batches: FilteredBackwards,
    held: Option<(quipu_storage::ReadBatch, Offset)>,
    filter: Option<Filter>,
    floor: Offset,
    records_left: u64,
    lowest: Offset,
    bytes: usize,
}

impl Read {
    pub(crate) async fn begin(shared: &Arc<Shared>, wire: pb::ReadRequest) -> Result<Self, Status> {
        shared.check_not_draining()?;
        let mut violations = Violations::default();
        violations.topic_name("topic", &wire.topic);
        let filter = filter::from_wire(wire.filter, "filter", &mut violations);
        let has_start = wire.start.is_some_and(|start| start.position.is_some());
        let start = request::start(wire.start, filter.as_ref(), &mut violations);
        let visibility = request::visibility(wire.visibility, &mut violations);
        let is_timed = wire.until_time_ms.is_some();
        violations.require(!(wire.backwards && is_timed), "until_time_ms", "is for reading forwards only");
        violations.finish()?;
        let topic = shared.topic(&wire.topic)?;
        let records_max = if wire.records_max == 0 { u64::MAX } else { wire.records_max };
        let bytes = shared.config.response_bytes;
        let way = if wire.backwards {
            let before = before(shared, &topic, has_start, start, visibility).await?;
            Way::Backwards(Box::new(Back {
                batches: backwards(&topic, filter.as_ref(), before, visibility).map_err(status)?,
                held: None,
                filter,
                floor: Offset(wire.until_offset.unwrap_or(0)),
                records_left: records_max,
                lowest: before,
                bytes,
            }))
        } else {
            let cursor = scan::open(shared, &topic, start, filter.as_ref(), visibility).await?;
            let mut end = cursor.visible_end();
            if let Some(until) = wire.until_offset {
                end = end.min(Offset(until));
            }
            if let Some(time) = wire.until_time_ms {
                let until = scan::open(
                    shared,
                    &topic,
                    StartAt::Topic(Start::Time(Timestamp(time))),
                    None,
                    visibility,
                )
                .await?
                .next_offset();
                end = end.min(until);
            }
            let scan = Scan::new(cursor, filter, bytes).until(end, records_max);
            Way::Forwards(Box::new(Puller::new(shared, scan)))
        };
        Ok(Self {
            shared: Arc::clone(shared),
            topic,
            visibility,
            way: Some(way),
            drain: shared.drain(),
            _counted: Counted::new(shared, 1, |counters| &counters.reads),
        })
    }

    /// What to send next; `None` after the end.
    pub(crate) async fn next(&mut self) -> Option<Result<ReadEvent, Status>> {
        let way = self.way.take()?;
        let mut drain = std::mem::replace(&mut self.drain, self.shared.drain());
        let outcome = tokio::select! {
            biased;
            () = drain.begun() => Err(Problem::draining().into()),
            outcome = self.step(way) => outcome,
        };
        let (event, way) = match outcome {
            Ok(next) => next,
            Err(status) => return Some(Err(status)),
        };
        self.way = way;
        if let ReadEvent::Batches(batches) = &event {
            count_sent(&self.shared, batches);
        }
        Some(Ok(event))
    }

    async fn step(&mut self, mut way: Way) -> Result<(ReadEvent, Option<Way>), Status> {
        loop {
            way = match way {
                Way::End(next) => return Ok((self.end(next), None)),
                Way::Forwards(mut puller) => {
                    let chunk = puller.pull(u64::MAX).await?;
                    let scan = puller.scan().ok_or_else(|| Problem::internal("a read is under way"))?;
                    let next = scan.next_offset();
                    let way = match chunk.then {
                        Then::More | Then::Disk => Way::Forwards(puller),
                        Then::Done | Then::CaughtUp => Way::End(next),
                        Then::Failed(error) => return Err(status(error)),
                        // Alone in its chunk, always.
                        Then::Gap(gone) => {
                            scan.seek(gone.end);
                            let gap = ReadEvent::Gap(gap(&self.topic, gone.start, gone.end));
                            return Ok((gap, Some(Way::Forwards(puller))));
                        }
                    };
                    if chunk.batches.is_empty() {
                        way
                    } else {
                        return Ok((ReadEvent::Batches(chunk.batches), Some(way)));
                    }
                }
                Way::Backwards(mut back) => {
                    let read = move || {
                        let outcome = back.chunk();
                        (back, outcome)
                    };
                    let (back, outcome) = self.shared.read(read).await?;
                    let (batches, is_done) = outcome.map_err(status)?;
                    let way = if is_done { Way::End(back.lowest) } else { Way::Backwards(back) };
                    if batches.is_empty() {
                        way
                    } else {
                        return Ok((ReadEvent::Batches(batches), Some(way)));
                    }
                }
            };
        }
    }

    fn end(&self, next: Offset) -> ReadEvent {
        let high_watermark = match self.visibility {
            Visibility::Synced => self.topic.high_watermark(),
            Visibility::Written => self.topic.log_end_offset(),
        };
        ReadEvent::End(pb::ReadEnd {
            next_offset: next.value(),
            log_start_offset: self.topic.log_start_offset().value(),
            high_watermark: high_watermark.value(),
        })
    }
}

/// Notes what goes to a reader.
pub(crate) fn count_sent(shared: &Shared, batches: &[WireBatch]) {
    let records = batches.iter().map(|batch| batch.record_count).sum();
    let bytes = batches.iter().map(|batch| batch.body.len() as u64).sum();
    shared.counters.records_sent.fetch_add(records, Ordering::Relaxed);
    shared.counters.bytes_sent.fetch_add(bytes, Ordering::Relaxed);
}

/// One past the highest record that a read backwards wants.
async fn before(
    shared: &Shared,
    topic: &Topic,
    has_start: bool,
    start: StartAt,
    visibility: Visibility,
) -> Result<Offset, Status> {
    let start = if has_start { start } else { StartAt::Topic(Start::Latest) };
    let (start, is_behind) = match start {
        StartAt::Topic(Start::Latest) => (StartAt::Topic(Start::Latest), true),
        StartAt::Stream(key, StreamStart::Revision(revision)) => {
            let topic = topic.clone();
            let place = move || stream::place_backwards(&topic, &key, revision, visibility);
            return shared.read(place).await?;
        }
        start => (start, false),
    };
    let cursor = scan::open(shared, topic, start, None, visibility).await?;
    let first = cursor.next_offset();
    Ok(if is_behind { first } else { first.saturating_add(1) }.min(cursor.visible_end()))
}

fn backwards(
    topic: &Topic,
    filter: Option<&Filter>,
    before: Offset,
    visibility: Visibility,
) -> Result<FilteredBackwards, Error> {
    topic.filtered_backwards(filter.unwrap_or(&Filter::default()), before, visibility)
}

impl Back {
    /// A response's worth, and whether that was all. Less than that, or nothing, if a filter leaves out much: nobody can
    /// cancel it while it looks.
    fn chunk(&mut self) -> Result<(Vec<WireBatch>, bool), Error> {
        let (mut batches, mut bytes, mut looked_at) = (Vec::new(), 0, 0);
        while bytes < self.bytes && looked_at < LOOK_BYTES {
            if self.records_left == 0 || self.lowest <= self.floor {
                return Ok((batches, true));
            }
            let (batch, before) = match self.held.take() {
                Some(held) => held,
                None => match self.batches.previous_batch() {
                    Ok(Some(batch)) => (batch, self.lowest),
                    Ok(None) => {
                        self.lowest = self.floor.max(self.batches.before()).min(self.lowest);
                        return Ok((batches, !self.batches.has_more()));
                    }
                    // It comes again when these are on their way.
                    Err(_) if !batches.is_empty() => return Ok((batches, false)),
                    Err(error) => return Err(error),
                },
            };
            let wanted = Wanted {
                filter: self.filter.as_ref(),
                from: self.floor.max(batch.from()),
                end: before,
                records_max: self.records_left,
            };
            let Taken { batch: taken, next, .. } = take_backwards(batch.batch(), &wanted)?;
            self.lowest = next;
            looked_at += scan::looked_at_for(&batch, self.filter.as_ref());
            if next > wanted.from.max(batch.batch().base_offset()) {
                self.held = Some((batch, next));
            }
            if let Some(taken) = taken {
                bytes += taken.body.len();
                self.records_left = self.records_left.saturating_sub(taken.record_count);
                batches.push(taken);
                if self.held.is_some() {
                    break;
                }
            }
        }
        Ok((batches, false))
    }
}

#[cfg(test)]
mod tests {
    use quipu_storage::{Durability, Record, Store, TopicSettings};

    use super::*;

    /// One call once looked at the whole topic for a record that is not there: nobody could cancel it, and it kept a
    /// thread from others.
    #[test]
    fn a_read_backwards_that_finds_nothing_looks_at_a_bounded_part_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("data")).unwrap();
        let topic = store.create_topic("orders", TopicSettings::default()).unwrap();
        let records = 4 * LOOK_BYTES as u64 / (64 << 10);
        for _ in 0..records {
            topic.append_with(&[Record::new(vec![0; 64 << 10])], Durability::Accepted).unwrap();
        }
        // The indexes know nothing of headers.
        let headers = vec![pb::Header { name: "none".into(), ..Default::default() }];
        let wire = pb::Filter { headers, ..Default::default() };
        let filter = filter::from_wire(Some(wire), "filter", &mut Violations::default());
        let mut back = Back {
            batches: backwards(&topic, filter.as_ref(), Offset(records), Visibility::Written).unwrap(),
            held: None,
            filter,
            floor: Offset(0),
            records_left: u64::MAX,
            lowest: Offset(records),
            bytes: 256 << 10,
        };
        let mut calls = 0;
        let mut lowest = back.lowest;
        while let (batches, false) = back.chunk().unwrap() {
            assert!(batches.is_empty());
            let looked_at = usize::try_from(lowest.value() - back.lowest.value()).unwrap() * (64 << 10);
            assert!((1..=LOOK_BYTES).contains(&looked_at), "{looked_at}");
            lowest = back.lowest;
            calls += 1;
        }
        assert_eq!((calls, back.lowest), (4, Offset(0)));
        store.close().unwrap();
    }
}
