//! The store: a directory of topics behind one journal.
//!
//! ```text
//! append ─> writer lock: offsets, times ─> journal (one copy) ─> tail of the topic ─> group commit: one fdatasync
//!            ─> high watermark moves, readers wake                       later: tail ─> segments ─> checkpoint
//! ```
//!
//! | Module | What it does |
//! |---|---|
//! | [`open`] | create, recover |
//! | [`append`] | the way of an append, and waiting for it |
//! | [`frame_bound`] | that an append fits into a journal file |
//! | [`repeat`] | appends that are applied once, however often they come |
//! | [`erase`] | the master key, and destroying keys of it |
//! | [`manage`] | create, alter, trim and delete topics |
//! | [`checkpoint`] | from the tails to synced segments, and journal files free again |
//! | [`background`] | the threads that do that without being asked |
//! | [`left_over`] | directories of topics that a crash left unknown |
//!
//! Locks are taken in this order: working, checkpoint, flush of a topic, writer, tail of a topic.

pub(crate) mod append;
pub(crate) mod background;
pub(crate) mod checkpoint;
mod erase;
mod frame_bound;
mod left_over;
pub(crate) mod manage;
pub(crate) mod open;
mod prepared;
mod repeat;
pub(crate) mod ticket;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::task::Waker;
use std::time::Duration;

use crate::commit::Commit;
use crate::context::Context;
use crate::disk::DirLock;
use crate::error::{Error, Result};
use crate::format::checkpoint::MasterKeyState;
use crate::format::frame::FrameBuilder;
use crate::journal::Journal;
use crate::journal::recovery::JournalEnd;
use crate::live::Teller;
use crate::producers::Producers;
use crate::retention::RetentionReport;
use crate::settings::StoreSettings;
use crate::stats::StoreStats;
use crate::topic::TopicInner;
use crate::types::{Offset, Position, TopicId, TopicName, Uid};
use crate::watch::Watch;
use background::Background;

pub use open::StoreBuilder;

/// An open store.
///
/// Cheap to clone; safe to use from any thread. It is closed when [`close`](Self::close) is called or the last clone,
/// topic and cursor is gone.
#[derive(Clone, Debug)]
pub struct Store {
    pub(crate) handle: Arc<Handle>,
}

/// Closes the store when the last of its users goes. The store's threads do not hold it.
#[derive(Debug)]
pub(crate) struct Handle {
    pub(crate) inner: Arc<StoreInner>,
    background: Mutex<Option<Background>>,
    lock: Mutex<Option<Box<dyn DirLock>>>,
    /// How closing it went. Held by the thread that closes it, for as long as that takes.
    closed: Mutex<Option<Result<()>>>,
}

/// What the threads of the store share.
#[derive(Debug)]
pub(crate) struct StoreInner {
    pub(crate) context: Arc<Context>,
    pub(crate) commit: Commit,
    writer: Mutex<Writer>,
    topics: RwLock<HashMap<TopicName, Arc<TopicInner>>>,
    /// Held while a checkpoint is made, and while compaction replaces segments.
    pub(crate) checkpointing: Mutex<()>,
    /// Held for reading by whoever changes files on a caller's behalf, and by compaction; closing waits for it.
    working: RwLock<()>,
    checkpointed: AtomicU64,
    /// Why the last checkpoint failed, if it did.
    checkpoint_error: Mutex<Option<Error>>,
    /// For those who wait for room in the journal or the tails.
    room: Watch,
    pub(crate) wake: background::Wake,
    /// For readers in other processes.
    live: Mutex<Teller>,
    recovery: RecoveryReport,
}

/// Everything that one change after the other goes through.
#[derive(Debug)]
pub(crate) struct Writer {
    pub(crate) journal: Journal,
    frame: FrameBuilder,
    topics: BTreeMap<TopicId, Arc<TopicInner>>,
    next_topic: TopicId,
    /// Deleted topics whose files may still be there. From the frame that deletes a topic on it is in here, so that each
    /// checkpoint names it either as there or as deleted.
    deleted: Vec<Deleted>,
    /// Which appends can be repeated.
    producers: Producers,
    /// What the store knows of its master key.
    master_key: Option<MasterKeyState>,
    /// Topics whose high watermark the next sync moves.
    unsynced: Vec<Arc<TopicInner>>,
}

/// A deleted topic whose files may still be there.
#[derive(Clone, Copy, Debug)]
struct Deleted {
    topic: TopicId,
    /// Whether nobody writes them any more.
    may_go: bool,
}

/// What opening a store found and did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecoveryReport {
    /// Whether the store had been closed properly.
    pub was_clean: bool,
    /// How the journal ended.
    pub journal_end: JournalEnd,
    /// Frames read behind the checkpoint.
    pub frames: u64,
    /// Records in them.
    pub records: u64,
    /// Bytes that were intact but perhaps not on the disk, and were written and synced once more.
    pub in_doubt_bytes: u64,
    /// Where the torn end of the journal was kept.
    pub torn_kept: Option<PathBuf>,
    /// Files with damage that cost nothing.
    pub damaged: Vec<PathBuf>,
    /// How long it took.
    pub duration: Duration,
}

impl StoreInner {
    pub(crate) fn writer(&self) -> MutexGuard<'_, Writer> {
        self.writer.lock().expect("no panic under this lock")
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, Teller> {
        self.live.lock().expect("no panic under this lock")
    }

    pub(crate) fn topic(&self, name: &str) -> Option<Arc<TopicInner>> {
        self.topics.read().expect("no panic under this lock").get(name).cloned()
    }

    pub(crate) fn all_topics(&self) -> Vec<Arc<TopicInner>> {
        self.topics.read().expect("no panic under this lock").values().cloned().collect()
    }

    /// Keeps the store from being closed for as long as this is held: for all that changes files and is not done by
    /// a thread that closing waits for anyway. Not to be taken twice by one thread.
    pub(crate) fn begin_work(&self) -> Result<RwLockReadGuard<'_, ()>> {
        let working = self.working.read().expect("no panic under this lock");
        // Under the lock: when it was closed before, the directory may be somebody else's by now.
        self.context.check_writable()?;
        Ok(working)
    }

    /// Wakes all who wait for what a store that has failed does not do any more. They find out what failed it.
    pub(crate) fn tell_failure(&self, failure: &Error) {
        self.commit.fail(failure.clone());
        self.room.notify();
        self.wake.all();
        for topic in self.all_topics() {
            topic.watch.notify();
        }
    }

    /// Makes everything written so far durable, and lets readers see it; returns up to where.
    pub(crate) fn sync_journal(&self) -> Result<u64> {
        let (work, generation, topics) = {
            let mut writer = self.writer();
            if let Some(failure) = self.context.failure() {
                return Err(failure.clone());
            }
            let topics: Vec<_> = std::mem::take(&mut writer.unsynced)
                .into_iter()
                .map(|topic| {
                    topic.is_unsynced.store(false, Ordering::Relaxed);
                    let end = topic.log_end();
                    (topic, end)
                })
                .collect();
            let work = writer.journal.sync_work().map_err(|error| self.context.fail(error))?;
            (work, writer.journal.generation(), topics)
        };
        let begun = std::time::Instant::now();
        for (file, path) in &work.files {
            self.context.sync_file(&**file, path)?;
        }
        self.context.counters.sync_latency.record(begun.elapsed());
        self.live().synced(work.end, generation);
        for (topic, end) in topics {
            topic.move_high_watermark(end);
            if topic.is_in_memory() {
                self.settle_reserved(&topic, work.end);
            }
        }
        Ok(work.end.0)
    }

    /// Waits until everything below `position` is durable.
    pub(crate) fn wait_synced(&self, position: Position) -> Result<()> {
        if crate::planted::acknowledges_before_sync() {
            return Ok(());
        }
        if self.commit.wait(position.0, || self.sync_journal())? {
            self.context.counters.syncs_shared.add(1);
        }
        Ok(())
    }

    /// Makes all that was written durable.
    pub(crate) fn sync(&self) -> Result<()> {
        let position = self.writer().journal.position();
        self.wait_synced(position)
    }
}

impl Store {
    /// Opens the store in directory `path` with default settings, and creates it if there is none.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it open for writing; [`Error::NotAStore`] if the directory holds
    /// something else; [`Error::CorruptFile`] if the journal or the checkpoint is damaged in a way that a power
    /// cut cannot explain.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().open(path)
    }

    /// To open a store with other settings, another disk or another clock.
    pub fn builder() -> StoreBuilder {
        StoreBuilder::default()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.handle.inner.context.dir
    }

    /// What tells it from every other store.
    pub fn uid(&self) -> Uid {
        self.handle.inner.context.store
    }

    /// The settings that it was opened with.
    pub fn settings(&self) -> &StoreSettings {
        &self.handle.inner.context.settings
    }

    /// What opening it found and did.
    pub fn recovery(&self) -> &RecoveryReport {
        &self.handle.inner.recovery
    }

    /// Makes every earlier append durable, whatever it asked for.
    ///
    /// # Errors
    /// [`Error::StorageFailed`] if the disk cannot: reopen the store.
    pub fn sync(&self) -> Result<()> {
        self.handle.inner.context.check_writable()?;
        self.handle.inner.sync()
    }

    /// Writes all recent records into their segments, syncs these, and frees the journal. Happens by itself as well.
    ///
    /// # Errors
    /// [`Error::DiskFull`], after which everything goes on as before; [`Error::StorageFailed`].
    pub fn checkpoint(&self) -> Result<()> {
        let _working = self.handle.inner.begin_work()?;
        self.handle.inner.checkpoint()
    }

    /// Removes what each topic's retention lets go, and reports it. Happens by itself as well.
    ///
    /// # Errors
    /// The first that was met; topics that could be handled were.
    pub fn run_retention(&self) -> Result<Vec<RetentionReport>> {
        let _working = self.handle.inner.begin_work()?;
        self.handle.inner.run_retention()
    }

    /// Closes the store: no appends from now on, everything synced, a checkpoint. Readers may go on.
    ///
    /// Whoever closes it again, or at the same time, gets the same answer, and not before it is closed. So it is not to be
    /// called by a waker.
    ///
    /// # Errors
    /// What kept it from being closed cleanly. It is closed nevertheless; the next opening recovers.
    pub fn close(&self) -> Result<()> {
        self.handle.close()
    }

    /// Counters and positions at this moment.
    pub fn stats(&self) -> StoreStats {
        let inner = &*self.handle.inner;
        let context = &inner.context;
        let counters = &context.counters;
        let topics = inner.all_topics();
        let (journal_position, journal_files, producers, request_ids) = {
            let writer = inner.writer();
            let Writer { journal, producers, .. } = &*writer;
            let counts = (producers.producer_count() as u64, producers.request_id_count() as u64);
            (journal.position(), journal.files(), counts.0, counts.1)
        };
        StoreStats {
            appends: counters.appends.value(),
            appends_refused: counters.appends_refused.value(),
            appends_repeated: counters.appends_repeated.value(),
            records_appended: counters.records_appended.value(),
            bytes_appended: counters.bytes_appended.value(),
            batches_read: counters.batches_read.value(),
            records_read: counters.records_read.value(),
            bytes_read: counters.bytes_read.value(),
            records_redacted: counters.records_redacted.value(),
            erasure_keys_destroyed: context.master_key().map(|master_key| master_key.destroyed()),
            damage_found: counters.damage_found.value(),
            append_latency: counters.append_latency.snapshot(),
            read_latency: counters.read_latency.snapshot(),
            sync_latency: counters.sync_latency.snapshot(),
            syncs_shared: counters.syncs_shared.value(),
            checkpoints: counters.checkpoints.value(),
            checkpoint_latency: counters.checkpoint_latency.snapshot(),
            tail_bytes: counters.tail_bytes.value(),
            segments_created: counters.segments_created.value(),
            segments_removed: counters.segments_removed.value(),
            journal_position,
            synced_position: Position(inner.commit.synced()),
            checkpoint_position: Position(inner.checkpointed.load(Ordering::Acquire)),
            journal_bytes: journal_files * context.settings.journal_file_bytes,
            journal_files,
            topics: topics.len() as u64,
            producers,
            request_ids,
            segment_bytes: topics
                .iter()
                .flat_map(|topic| {
                    topic.segments().iter().map(|segment| segment.file_bytes()).collect::<Vec<_>>()
                })
                .sum(),
            disk_free_bytes: context.disk.free_bytes(&context.dir).ok(),
            is_disk_full: context.is_disk_full(),
            failure: context.failure().cloned(),
        }
    }
}

impl Handle {
    fn close(&self) -> Result<()> {
        let mut closed = self.closed.lock().expect("no panic under this lock");
        if let Some(outcome) = &*closed {
            return outcome.clone();
        }
        let inner = &*self.inner;
        inner.context.close();
        inner.room.notify();
        let background = self.background.lock().expect("no panic under this lock").take();
        inner.wake.all();
        drop(background);
        // Nobody may touch the directory when its lock is released.
        drop(inner.working.write().expect("no panic under this lock"));
        let outcome = match inner.context.failure() {
            Some(failure) => Err(failure.clone()),
            None => inner.sync().and_then(|()| inner.checkpoint()).and_then(|()| {
                let position = inner.checkpointed.load(Ordering::Acquire);
                open::put_clean(&inner.context, Position(position))
            }),
        };
        // Those who wait are told what failed the store, also when the thread that tells it has not come to it yet.
        let told = inner.context.failure().cloned().unwrap_or(Error::Closed);
        let wakers = inner.commit.fail_and_wake_later(told);
        inner.context.wait_for_alarm();
        inner.context.release();
        let topics = inner.all_topics();
        for topic in &topics {
            // Who cleans its directory at this moment began before the release.
            drop(topic.flush.lock().expect("no panic under this lock"));
            drop(topic.terms.lock_writing());
        }
        // Before the store's: whoever gets that opens the master key next.
        inner.context.master_key().inspect(|master_key| master_key.release());
        *self.lock.lock().expect("no panic under this lock") = None;
        *closed = Some(outcome.clone());
        drop(closed);
        // What is woken may close the store itself.
        wakers.into_iter().for_each(Waker::wake);
        topics.iter().for_each(|topic| topic.watch.notify());
        outcome
    }
}

/// Nobody else changes the files of a store that is open for writing.
impl crate::cursor::Owner for Handle {}

impl Drop for Handle {
    fn drop(&mut self) {
        // Whoever wants to know calls `close`. What is acknowledged is safe either way. If closing panicked, there is no
        // more to be done.
        if !self.closed.is_poisoned() {
            let _ = self.close();
        }
    }
}

/// The offset one past the last one that a reader of this visibility may see.
pub(crate) fn visible_end(topic: &TopicInner, visibility: crate::cursor::Visibility) -> Offset {
    match visibility {
        crate::cursor::Visibility::Synced => topic.high_watermark(),
        crate::cursor::Visibility::Written => topic.log_end(),
    }
}
