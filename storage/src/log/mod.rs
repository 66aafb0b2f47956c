//! One log in one directory, with its own sync and no journal: for those who want one set of files and the least work
//! per append. Batches, segments, errors and readers are those of a topic.
//!
//! ```text
//! append ─> encode and sum, no lock ─> lock: offset, time, one copy into the active segment ─> sync, shared by all
//!            who wait ─> high watermark moves, readers wake
//! ```
//!
//! ```text
//! dir/ lock                           whoever has the log open
//!      log                            identity, start, known to be synced (see `identity`)
//!      00000000000000000000-0.segment ...
//!      next                           the file of the next segment
//! ```
//!
//! | Module | What it does |
//! |---|---|
//! | `identity` | which log it is, where it starts |
//! | [`open`] | create, open, close |
//! | [`recovery`], `scan` | what is found, and what is done about it |
//! | [`append`] | the way of an append, and of a sync |
//! | `active`, `ahead` | the segment being written, and what is done before it is needed |
//! | [`read`] | cursors and iterators |
//! | `trim` | dropping what is old |
//!
//! What a log promises is what a store promises of a topic: a synced append makes every earlier one durable; readers see
//! what is synced unless they ask for what is written; a failed write or sync is final until the log is opened again.
//!
//! Locks are taken in this order: identity, tail, ahead, fill.

mod active;
mod ahead;
pub(crate) mod append;
mod identity;
pub(crate) mod open;
pub(crate) mod read;
pub(crate) mod recovery;
mod scan;
pub(crate) mod settings;
mod trim;

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;

use arc_swap::ArcSwap;
use spin::Yield;
use spin::mutex::{SpinMutex, SpinMutexGuard};

use crate::commit::Commit;
use crate::context::Context;
use crate::cursor::{Start, StoredRecord, Visibility};
use crate::disk::DirLock;
use crate::error::{Error, Result};
use crate::format::checkpoint::SealedSegment;
use crate::segment::{Segment, file_name};
use crate::stats::LatencyStats;
use crate::types::{Offset, Timestamp, TopicName, Uid};
use crate::watch::Watch;
use ahead::Ahead;
use append::Tail;
use identity::IdentityFile;
use open::LogBuilder;
use read::{LogBackwards, LogCursor, LogRecords, LogRecordsBackwards};
use recovery::LogRecovery;
use settings::LogSettings;

/// An open log. See [the crate](crate) for how it relates to a [`Store`](crate::Store).
///
/// Cheap to clone; safe to use from any thread. It is closed when [`close`](Self::close) is called or the last clone and
/// cursor is gone.
#[derive(Clone)]
pub struct Log {
    handle: Arc<Handle>,
}

/// Closes the log when the last of its users goes. The log's threads do not hold it.
struct Handle {
    inner: Arc<LogInner>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    lock: Mutex<Option<Box<dyn DirLock>>>,
    /// How closing it went. Held by the thread that closes it, for as long as that takes.
    closed: Mutex<Option<Result<()>>>,
}

/// What the threads of the log share.
#[derive(Debug)]
struct LogInner {
    context: Arc<Context>,
    settings: LogSettings,
    /// What errors call it.
    name: TopicName,
    seed: u32,
    log_start: AtomicU64,
    high_watermark: AtomicU64,
    log_end: AtomicU64,
    /// Held for some 50 ns, and for milliseconds once a segment. To release it is a plain store, which does not wait for
    /// those into the map; who waits for it yields.
    tail: SpinMutex<Tail, Yield>,
    /// In order of offsets; the last one is active. Replaced as a whole.
    segments: ArcSwap<Vec<Arc<Segment>>>,
    commit: Commit,
    ahead: Arc<Ahead>,
    /// For readers of what is synced.
    synced: Watch,
    /// For readers of what is written. Its waiters take the tail's lock before they look.
    written: Watch,
    /// For the thread that syncs. Appends notify it under the tail's lock, so it looks at nothing under that.
    wake: Watch,
    /// Sealed segments that wait for a sync.
    unsynced_segments: AtomicUsize,
    identity: Mutex<IdentityFile>,
    recovery: LogRecovery,
}

/// The state of a log at one moment. Counts begin at opening.
#[derive(Clone, Debug)]
pub struct LogStats {
    /// Appends that were applied.
    pub appends: u64,
    /// Appends that were refused.
    pub appends_refused: u64,
    /// Records appended.
    pub records_appended: u64,
    /// Bytes of their batches, as stored.
    pub bytes_appended: u64,
    /// Batches read by cursors.
    pub batches_read: u64,
    /// Records in them.
    pub records_read: u64,
    /// Bytes of them, as stored.
    pub bytes_read: u64,
    /// How often a reader met damage.
    pub damage_found: u64,
    /// From the call of an append to its acknowledgement, for those that asked to be synced: others would spend more on
    /// the clock than on the append.
    pub append_latency: LatencyStats,
    /// How long it took until a piece of a segment, of up to 256 KiB or one batch, was in memory for a reader.
    pub read_latency: LatencyStats,
    /// Duration of syncs.
    pub sync_latency: LatencyStats,
    /// Synced appends that shared another one's sync.
    pub syncs_shared: u64,
    /// The first offset that can be read.
    pub log_start_offset: Offset,
    /// The first offset not yet visible to readers.
    pub high_watermark: Offset,
    /// The next offset to be assigned.
    pub log_end_offset: Offset,
    /// Time of the last append.
    pub last_append_time: Timestamp,
    /// Segments, the active one included.
    pub segments: u64,
    /// Bytes of the segments, of the active one those in use.
    pub segment_bytes: u64,
    /// What failed the log, if it has failed.
    pub failure: Option<Error>,
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("dir", &self.path()).finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log in directory `path` with default settings, and creates it if there is none.
    ///
    /// # Errors
    /// [`Error::Locked`] if another process has it open; [`Error::NotAStore`] if the directory holds something else;
    /// [`Error::CorruptFile`] if it is damaged in a way that a power cut cannot explain; [`Error::DiskFull`] if there
    /// is no room for a segment.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::builder().open(path)
    }

    /// To open a log with other settings, another disk or another clock.
    pub fn builder() -> LogBuilder {
        LogBuilder::default()
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.handle.inner.context.dir
    }

    /// What tells it from every other log.
    pub fn uid(&self) -> Uid {
        self.handle.inner.context.store
    }

    /// What opening it found and did.
    pub fn recovery(&self) -> &LogRecovery {
        &self.handle.inner.recovery
    }

    /// The records from `start` to the end as it is when it is reached.
    ///
    /// # Errors
    /// [`Error::OffsetTrimmed`], [`Error::OffsetUnwritten`].
    pub fn read(&self, start: impl Into<Start>) -> Result<LogRecords> {
        Ok(LogRecords::new(self.cursor(start, Visibility::Synced)?, false))
    }

    /// The records from `start` on, and then each new one; ends when the log is closed.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn follow(&self, start: impl Into<Start>) -> Result<LogRecords> {
        Ok(LogRecords::new(self.cursor(start, Visibility::Synced)?, true))
    }

    /// The records from the last one below `before` to the first.
    pub fn read_backwards(&self, before: Offset) -> LogRecordsBackwards {
        LogRecordsBackwards::new(self.batches_backwards(before, Visibility::Synced))
    }

    /// A cursor over batches: the way to read for those who want to say when to wait, or to be woken.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn cursor(&self, start: impl Into<Start>, visibility: Visibility) -> Result<LogCursor> {
        LogCursor::new(self, start.into(), visibility)
    }

    /// Batches from the last one below `before` to the first.
    pub fn batches_backwards(&self, before: Offset, visibility: Visibility) -> LogBackwards {
        LogBackwards::new(self, before, visibility)
    }

    /// One record.
    ///
    /// # Errors
    /// As [`read`](Self::read); [`Error::OffsetUnwritten`] if it is not synced yet.
    pub fn get(&self, offset: Offset) -> Result<StoredRecord> {
        read::get(self, offset)
    }

    /// The first offset that can be read.
    pub fn log_start_offset(&self) -> Offset {
        self.handle.inner.log_start()
    }

    /// The first offset not yet visible to readers: everything below survives a power cut.
    pub fn high_watermark(&self) -> Offset {
        self.handle.inner.visible_end(Visibility::Synced)
    }

    /// The next offset to be assigned.
    pub fn log_end_offset(&self) -> Offset {
        self.handle.inner.visible_end(Visibility::Written)
    }

    /// Counters and positions at this moment.
    pub fn stats(&self) -> LogStats {
        let inner = &*self.handle.inner;
        let counters = &inner.context.counters;
        let (appends, records_appended, bytes_appended, last_append_time) = inner.tail().counts();
        let segments = inner.segments.load();
        LogStats {
            appends,
            appends_refused: counters.appends_refused.value(),
            records_appended,
            bytes_appended,
            batches_read: counters.batches_read.value(),
            records_read: counters.records_read.value(),
            bytes_read: counters.bytes_read.value(),
            append_latency: counters.append_latency.snapshot(),
            read_latency: counters.read_latency.snapshot(),
            damage_found: counters.damage_found.value(),
            sync_latency: counters.sync_latency.snapshot(),
            syncs_shared: counters.syncs_shared.value(),
            log_start_offset: inner.log_start(),
            high_watermark: inner.visible_end(Visibility::Synced),
            log_end_offset: inner.visible_end(Visibility::Written),
            last_append_time,
            segments: segments.len() as u64,
            segment_bytes: segments.iter().map(|segment| segment.file_bytes()).sum(),
            failure: inner.context.failure().cloned(),
        }
    }
}

impl LogInner {
    #[inline]
    fn tail(&self) -> SpinMutexGuard<'_, Tail> {
        self.tail.lock()
    }

    fn identity(&self) -> MutexGuard<'_, IdentityFile> {
        self.identity.lock().expect("no panic under this lock")
    }

    fn log_start(&self) -> Offset {
        Offset(self.log_start.load(Ordering::Acquire))
    }

    /// One past the last offset that a reader of this visibility may see.
    fn visible_end(&self, visibility: Visibility) -> Offset {
        match visibility {
            Visibility::Synced => Offset(self.high_watermark.load(Ordering::Acquire)),
            Visibility::Written => Offset(self.log_end.load(Ordering::Acquire)),
        }
    }

    fn new_segment(
        context: &Context,
        name: &TopicName,
        seed: u32,
        segment: &SealedSegment,
        capacity: u64,
        is_sealed: bool,
    ) -> Arc<Segment> {
        let path = context.dir.join(file_name(segment.base_offset, 0));
        Arc::new(Segment::new(path, name.clone(), seed, capacity, segment, is_sealed))
    }

    fn update_segments(&self, change: impl Fn(&mut Vec<Arc<Segment>>)) {
        self.segments.rcu(|segments| {
            let mut changed = Vec::clone(segments);
            change(&mut changed);
            changed
        });
    }
}
