//! Watching and stopping a run of compaction, and keeping it slow.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::topic::TopicInner;

/// How long a run that must slow down goes without looking whether it should stop.
const PAUSE: Duration = Duration::from_millis(20);

/// To watch a run from another thread, and to cancel it.
#[derive(Debug, Default)]
pub struct CompactionControl {
    is_cancelled: AtomicBool,
    bytes_read: AtomicU64,
    bytes_to_read: AtomicU64,
    segments_written: AtomicU64,
}

/// How far a run is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CompactionProgress {
    /// Bytes read so far, over all passes.
    pub bytes_read: u64,
    /// Bytes that will be read, as far as known: it rises when another pass turns out to be needed.
    pub bytes_to_read: u64,
    /// New segments that are in place. They stay, whatever becomes of the run.
    pub segments_written: u64,
}

impl CompactionControl {
    /// For one run.
    pub fn new() -> Self {
        Self::default()
    }

    /// Lets the run end soon, with [`Error::Cancelled`]. What it has replaced so far stays; the next run goes on.
    pub fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
    }

    /// How far the run is.
    pub fn progress(&self) -> CompactionProgress {
        CompactionProgress {
            bytes_read: self.bytes_read.load(Ordering::Relaxed),
            bytes_to_read: self.bytes_to_read.load(Ordering::Relaxed),
            segments_written: self.segments_written.load(Ordering::Relaxed),
        }
    }
}

/// Keeps a run within its bytes a second, and ends it when it is to end.
pub(super) struct Pace<'a> {
    control: &'a CompactionControl,
    topic: &'a TopicInner,
    /// 0: no limit.
    bytes_per_second_max: u64,
    begun: Instant,
    bytes: u64,
}

impl<'a> Pace<'a> {
    pub(super) fn new(
        control: &'a CompactionControl,
        topic: &'a TopicInner,
        bytes_per_second_max: u64,
    ) -> Self {
        Self { control, topic, bytes_per_second_max, begun: Instant::now(), bytes: 0 }
    }

    /// An error if the run is to end: cancelled, store closed or failed, topic deleted.
    pub(super) fn check(&self) -> Result<()> {
        if self.control.is_cancelled.load(Ordering::Acquire) {
            return Err(Error::Cancelled { what: "compaction" });
        }
        self.topic.context.check_writable()?;
        self.topic.check_alive()
    }

    /// So many more bytes are going to be read.
    pub(super) fn expect(&self, bytes: u64) {
        self.control.bytes_to_read.fetch_add(bytes, Ordering::Relaxed);
    }

    /// So many bytes were read: waits until more may be.
    pub(super) fn spend(&mut self, bytes: u64) -> Result<()> {
        self.control.bytes_read.fetch_add(bytes, Ordering::Relaxed);
        self.bytes += bytes;
        self.check()?;
        if self.bytes_per_second_max == 0 {
            return Ok(());
        }
        let due = self.begun + Duration::from_secs_f64(self.bytes as f64 / self.bytes_per_second_max as f64);
        loop {
            let wait = due.saturating_duration_since(Instant::now());
            if wait.is_zero() {
                return Ok(());
            }
            std::thread::sleep(wait.min(PAUSE));
            self.check()?;
        }
    }

    pub(super) fn segment_written(&self) {
        self.control.segments_written.fetch_add(1, Ordering::Relaxed);
    }
}
