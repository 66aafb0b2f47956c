//! Reading a topic forwards, a response's worth at a time, on whatever thread may do it.
//!
//! What is in memory as it is needs no other thread, and is read where the call is served. Everything else may wait for the
//! disk or take a while to decompress: [`Puller`] sends that to a thread that may block, one hop for each response.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;

use quipu_storage::{Error, Filter, FilteredCursor, Offset, ReadBatch, Start, Topic, Visibility};
use tonic::Status;

use crate::batch::{Taken, Wanted, WireBatch, take};
use crate::error::{Problem, status};
use crate::filter;
use crate::request::StartAt;
use crate::shared::Shared;
use crate::stream;

/// Bytes that are looked at in one go on a thread that may block, with a filter that lets nothing pass.
pub(crate) const LOOK_BYTES: usize = 4 << 20;
/// The same where others wait for the thread.
const LOOK_BYTES_IN_MEMORY: usize = 512 << 10;

/// A reader: where it is and what it wants.
#[derive(Debug)]
pub(crate) struct Scan {
    cursor: FilteredCursor,
    /// A batch that did not fit into one response.
    held: Option<ReadBatch>,
    next: Offset,
    filter: Option<Filter>,
    end: Offset,
    records_left: u64,
    /// About how many bytes make a response.
    bytes: usize,
}

/// A response's worth.
#[derive(Debug)]
pub(crate) struct Chunk {
    pub(crate) batches: Vec<WireBatch>,
    /// Records that the filter left out, those included that were passed over without a look.
    pub(crate) left_out: u64,
    pub(crate) then: Then,
    pub(crate) is_from_disk: bool,
}

/// Why a chunk ends where it does.
#[derive(Debug)]
pub(crate) enum Then {
    /// It is large enough.
    More,
    /// What comes next is not in memory.
    Disk,
    /// There is nothing more to see now.
    CaughtUp,
    /// All that was wanted was read.
    Done,
    /// These offsets are gone.
    Gap(Range<Offset>),
    /// It cannot go on.
    Failed(Error),
}

impl Scan {
    pub(crate) fn new(cursor: FilteredCursor, filter: Option<Filter>, bytes: usize) -> Self {
        let next = cursor.next_offset();
        Self { cursor, held: None, next, filter, end: Offset::MAX, records_left: u64::MAX, bytes }
    }

    /// Only up to `end`, and at most so many records.
    pub(crate) fn until(mut self, end: Offset, records_max: u64) -> Self {
        self.end = end;
        self.records_left = records_max;
        self
    }

    /// Everything before this was read or left out.
    pub(crate) fn next_offset(&self) -> Offset {
        self.next
    }

    /// The first offset that is not visible.
    pub(crate) fn visible_end(&self) -> Offset {
        self.cursor.visible_end()
    }

    /// Goes on at `offset`.
    pub(crate) fn seek(&mut self, offset: Offset) {
        self.held = None;
        self.next = offset;
        self.cursor.seek(offset);
    }

    /// When there is more; only after [`Then::CaughtUp`].
    pub(crate) fn poll_ready(
        &mut self,
        task: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<(), Error>> {
        self.cursor.poll_ready(task)
    }

    /// The next chunk; a filter may leave so many records out of it.
    fn chunk(&mut self, is_in_memory: bool, left_out_max: u64) -> Chunk {
        let mut chunk =
            Chunk { batches: Vec::new(), left_out: 0, then: Then::More, is_from_disk: !is_in_memory };
        let look_bytes = if is_in_memory { LOOK_BYTES_IN_MEMORY } else { LOOK_BYTES };
        let (mut bytes, mut looked_at) = (0, 0);
        chunk.then = loop {
            if self.next >= self.end || self.records_left == 0 {
                break Then::Done;
            }
            if bytes >= self.bytes || looked_at >= look_bytes || chunk.left_out >= left_out_max {
                break Then::More;
            }
            let batch = match self.held.take() {
                Some(batch) => batch,
                None => match self.next_batch(is_in_memory, &mut chunk.left_out) {
                    Ok(batch) => batch,
                    // It comes again when the batches are on their way.
                    Err(Then::Gap(_) | Then::Failed(_)) if !chunk.batches.is_empty() => break Then::More,
                    Err(then) => break then,
                },
            };
            let wanted = Wanted {
                filter: self.filter.as_ref(),
                from: self.next.max(batch.from()),
                end: self.end,
                records_max: self.records_left,
            };
            let Taken { batch: taken, next, left_out } = match take(batch.batch(), &wanted) {
                Ok(taken) => taken,
                Err(error) => break Then::Failed(error),
            };
            self.next = self.next.max(next.min(self.end));
            chunk.left_out += left_out;
            looked_at += looked_at_for(&batch, self.filter.as_ref());
            if self.next < batch.batch().next_offset() {
                self.held = Some(batch);
            }
            if let Some(taken) = taken {
                bytes += taken.body.len();
                self.records_left = self.records_left.saturating_sub(taken.record_count);
                chunk.batches.push(taken);
                if self.held.is_some() {
                    break Then::More;
                }
            }
        };
        // Whoever goes on behind these need not look again at what was left out behind them.
        if let Some(last) = chunk.batches.last_mut() {
            last.next_offset = last.next_offset.max(self.next.value());
        }
        chunk
    }

    /// Nothing comes before `offset`; answers how many offsets that are.
    fn pass(&mut self, offset: Offset) -> u64 {
        let next = self.next.max(offset.min(self.end));
        let passed = next.value() - self.next.value();
        self.next = next;
        if self.filter.is_some() { passed } else { 0 }
    }

    fn next_batch(&mut self, is_in_memory: bool, left_out: &mut u64) -> Result<ReadBatch, Then> {
        let found = if is_in_memory { self.cursor.next_batch_in_memory() } else { self.cursor.next_batch() };
        match found {
            Ok(Some(batch)) => {
                *left_out += self.pass(batch.from());
                Ok(batch)
            }
            Ok(None) => {
                // The indexes may have told that nothing comes up to there, or compaction has taken it out.
                *left_out += self.pass(self.cursor.next_offset());
                let is_at_end = self.cursor.next_offset() >= self.cursor.visible_end();
                Err(match is_in_memory {
                    _ if is_at_end => Then::CaughtUp,
                    true => Then::Disk,
                    false => Then::More,
                })
            }
            Err(Error::OffsetTrimmed { offset, log_start_offset, .. }) => {
                Err(Then::Gap(offset..log_start_offset))
            }
            Err(error) => Err(Then::Failed(error)),
        }
    }
}

/// What it costs to look at a batch, in bytes of records that are looked at by a small filter or none.
pub(crate) fn looked_at_for(batch: &ReadBatch, filter: Option<&Filter>) -> usize {
    batch.batch().body().len() * filter.map_or(1, filter::weight)
}

/// Makes a cursor; where that takes a look at the disk, on a thread that may block.
pub(crate) async fn open(
    shared: &Shared,
    topic: &Topic,
    start: StartAt,
    filter: Option<&Filter>,
    visibility: Visibility,
) -> Result<FilteredCursor, Status> {
    let (topic, filter) = (topic.clone(), filter.cloned().unwrap_or_default());
    let open = move |topic: &Topic, start| topic.filtered_cursor(&filter, start, visibility).map_err(status);
    match start {
        StartAt::Stream(key, start) => {
            let open = move || open(&topic, Start::Offset(stream::place(&topic, &key, start, visibility)?));
            shared.read(open).await?
        }
        StartAt::Topic(start @ (Start::Time(_) | Start::Last(_))) => {
            shared.read(move || open(&topic, start)).await?
        }
        StartAt::Topic(start) => open(&topic, start),
    }
}

type Reading = Pin<Box<dyn Future<Output = Result<(Scan, Chunk), Status>> + Send>>;

/// Pulls chunks out of a [`Scan`], where they are to be had.
pub(crate) struct Puller {
    shared: Arc<Shared>,
    /// `None`: it is being read on another thread.
    scan: Option<Scan>,
    reading: Option<Reading>,
    /// The last look into memory took its time and found nothing: others have their turn before the next.
    must_yield: bool,
}

impl Puller {
    pub(crate) fn new(shared: &Arc<Shared>, scan: Scan) -> Self {
        Self { shared: Arc::clone(shared), scan: Some(scan), reading: None, must_yield: false }
    }

    /// The scan, when it is not being read.
    pub(crate) fn scan(&mut self) -> Option<&mut Scan> {
        self.scan.as_mut()
    }

    /// The next chunk. May be dropped and called again: a read that has begun is gone on with.
    pub(crate) async fn pull(&mut self, left_out_max: u64) -> Result<Chunk, Status> {
        loop {
            if let Some(reading) = &mut self.reading {
                let outcome = reading.await;
                self.reading = None;
                let (scan, chunk) = outcome?;
                self.scan = Some(scan);
                return Ok(chunk);
            }
            if std::mem::take(&mut self.must_yield) {
                tokio::task::yield_now().await;
            }
            let Some(scan) = &mut self.scan else {
                return Err(Problem::internal("a read failed before").into());
            };
            let chunk = scan.chunk(true, left_out_max);
            self.must_yield = chunk.batches.is_empty() && matches!(chunk.then, Then::More);
            if !matches!(chunk.then, Then::Disk) || !chunk.batches.is_empty() || chunk.left_out > 0 {
                return Ok(chunk);
            }
            self.reading = self.scan.take().map(|mut scan| {
                let shared = Arc::clone(&self.shared);
                let reading: Reading = Box::pin(async move {
                    let read = move || {
                        let chunk = scan.chunk(false, left_out_max);
                        (scan, chunk)
                    };
                    shared.read(read).await
                });
                reading
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use quipu_proto::v1 as pb;
    use quipu_storage::{Durability, Record, Storage, Store, TopicSettings};

    use super::*;
    use crate::config::Config;
    use crate::error::Violations;

    /// A filter that matches nothing of a large topic in memory once kept its thread until it had seen all of it.
    #[tokio::test]
    async fn a_long_look_into_memory_lets_others_have_their_turn() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("data")).unwrap();
        let storage = Storage::Memory { bytes_max: 1 << 30 };
        let topic =
            store.create_topic("orders", TopicSettings { storage, ..TopicSettings::default() }).unwrap();
        for _ in 0..16 * LOOK_BYTES_IN_MEMORY / (64 << 10) {
            topic.append_with(&[Record::new(vec![0; 64 << 10])], Durability::Accepted).unwrap();
        }
        let shared = Shared::new(store, Config::default());
        // The indexes know nothing of headers.
        let headers = vec![pb::Header { name: "none".into(), ..Default::default() }];
        let wire = pb::Filter { headers, ..Default::default() };
        let filter = filter::from_wire(Some(wire), "filter", &mut Violations::default());
        let cursor =
            topic.filtered_cursor(filter.as_ref().unwrap(), Start::Earliest, Visibility::Written).unwrap();
        let mut puller = Puller::new(&shared, Scan::new(cursor, filter, 256 << 10));
        let turns = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&turns);
        let other = tokio::spawn(async move {
            loop {
                counted.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
            }
        });
        while matches!(puller.pull(u64::MAX).await.unwrap().then, Then::More) {}
        assert_eq!(puller.scan().unwrap().next_offset(), topic.log_end_offset());
        assert!(turns.load(Ordering::Relaxed) >= 15, "{turns:?}");
        other.abort();
    }
}
