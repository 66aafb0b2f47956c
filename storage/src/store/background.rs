//! The threads of a store: they do by themselves what a caller could also ask for.
//!
//! | Thread | Does | Woken by |
//! |---|---|---|
//! | sync | syncs the journal | tickets that are waited for without blocking; `sync_interval` |
//! | flush | writes tails into segments, prepares journal files | every MiB appended |
//! | checkpoint | makes checkpoints | half of the journal in use, a full tail, `checkpoint_interval` |
//! | retention | retention | a full disk, less than `free_bytes_min` free, `retention_interval` |
//! | compaction | compaction, which may take long | `retention_interval` |
//!
//! An error that fails the store is seen by everybody in the context; a full disk is tried again at the next
//! turn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::StoreInner;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::topic::strand::is_refusal;
use crate::types::Position;
use crate::watch::Watch;

/// Tails below this wait for more, as long as memory allows.
const FLUSH_BYTES_MIN: u64 = 256 << 10;

/// How often it is looked whether little is free.
const LOOK_AT_FREE: Duration = Duration::from_secs(1);

/// Wakes one thread.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    is_set: AtomicBool,
    watch: Watch,
}

impl Signal {
    pub(crate) fn signal(&self) {
        if !self.is_set.swap(true, Ordering::SeqCst) {
            self.watch.notify();
        }
    }

    /// Says whether it was signalled before the time was up.
    fn wait(&self, time: Duration) -> bool {
        self.watch.wait_until(Some(Instant::now() + time), || self.is_set.load(Ordering::SeqCst));
        self.is_set.swap(false, Ordering::SeqCst)
    }
}

/// The signals of all threads.
#[derive(Debug, Default)]
pub(crate) struct Wake {
    pub(crate) sync: Signal,
    pub(crate) flush: Signal,
    pub(crate) checkpoint: Signal,
    pub(crate) retention: Signal,
    pub(crate) compaction: Signal,
}

impl Wake {
    pub(crate) fn all(&self) {
        [&self.sync, &self.flush, &self.checkpoint, &self.retention, &self.compaction]
            .into_iter()
            .for_each(Signal::signal);
    }
}

/// What a thread does again and again: wait for work, and do it.
type Turn = fn(&StoreInner);

/// The running threads; dropping it waits for their end. The store must be closed before.
#[derive(Debug)]
pub(crate) struct Background {
    threads: Vec<JoinHandle<()>>,
}

impl Background {
    pub(crate) fn start(store: &Arc<StoreInner>) -> Result<Self> {
        let mut background = Self { threads: Vec::new() };
        let turns: [(&str, Turn); 5] = [
            ("quipu-sync", sync_turn),
            ("quipu-flush", flush_turn),
            ("quipu-checkpoint", checkpoint_turn),
            ("quipu-retention", retention_turn),
            ("quipu-compact", compaction_turn),
        ];
        for (name, turn) in turns {
            let of_thread = Arc::clone(store);
            let run = move || {
                while !of_thread.context.is_closed() && of_thread.context.failure().is_none() {
                    turn(&of_thread);
                }
            };
            let thread = std::thread::Builder::new().name(name.into()).spawn(run);
            match thread {
                Ok(thread) => background.threads.push(thread),
                Err(error) => {
                    // Those that run already are waited for below: they must learn that they are to end.
                    store.context.close();
                    store.wake.all();
                    return Err(Error::io("start a thread for", &store.context.dir, error));
                }
            }
        }
        Ok(background)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        // The last handle may go on one of them, with what a task held that it woke.
        let own = std::thread::current().id();
        for thread in self.threads.drain(..).filter(|thread| thread.thread().id() != own) {
            // A panic there was an invariant broken; the locks it held are poisoned and say so.
            let _ = thread.join();
        }
    }
}

fn sync_turn(store: &StoreInner) {
    store.wake.sync.wait(store.context.settings.sync_interval);
    let position = store.writer().journal.position();
    if Position(store.commit.synced()) < position {
        // A failure is kept in the context, where everybody finds it.
        let _ = store.wait_synced(position);
    }
}

fn flush_turn(store: &StoreInner) {
    store.wake.flush.wait(Duration::from_secs(1));
    let context = &store.context;
    for topic in store.all_topics() {
        let waiting = context.counters.tail_bytes.value();
        if waiting < FLUSH_BYTES_MIN {
            break;
        }
        let is_tight = waiting > context.settings.tail_bytes_max / 2;
        if topic.tail().bytes() >= if is_tight { 1 } else { FLUSH_BYTES_MIN } {
            match topic.flush_below(topic.log_end()) {
                Err(Error::DiskFull { .. }) => {
                    store.give_up_reserve();
                    store.wake.retention.signal();
                    context.set_disk_full(true);
                    break;
                }
                // A checkpoint finds another place for it.
                Err(error) if is_refusal(&error) => store.wake.checkpoint.signal(),
                _ => store.room.notify(),
            }
            if context.counters.segment_files_open.value() > context.settings.open_files_max {
                // Not beside a checkpoint, which must not believe synced what is only about to be; it closes files
                // itself. A failure is kept in the context.
                if let Ok(_alone) = store.checkpointing.try_lock() {
                    let _ = store.sync_segments(std::iter::once(&*topic), true);
                }
            }
        }
    }
    let append_bytes = usize::try_from(context.settings.append_bytes_max).unwrap_or(usize::MAX);
    let (position, wants_file, has_room) = {
        let writer = store.writer();
        let journal = &writer.journal;
        (journal.position(), journal.wants_file(context), journal.has_room(append_bytes))
    };
    let used = position - Position(store.checkpointed.load(Ordering::Acquire));
    if used > context.settings.journal_bytes_max / 2 {
        store.wake.checkpoint.signal();
    }
    // Ahead of its use, so that no append waits for it; not before there is need.
    if wants_file && (used > context.settings.journal_file_bytes / 2 || !has_room) {
        let _ = store.add_journal_file();
    }
}

fn checkpoint_turn(store: &StoreInner) {
    store.wake.checkpoint.wait(store.context.settings.checkpoint_interval);
    if store.context.is_closed() {
        return;
    }
    let (position, lacks_file) = {
        let writer = store.writer();
        (writer.journal.position(), writer.journal.lacks_file())
    };
    if lacks_file {
        // There may be room again, and who may not wait for a file does not ask for one.
        let _ = store.add_journal_file();
    }
    if store.checkpointed.load(Ordering::Acquire) != position.0 || store.context.is_disk_full() {
        let outcome = store.checkpoint();
        if matches!(outcome, Err(Error::DiskFull { .. })) {
            store.wake.retention.signal();
        }
    } else {
        // As a checkpoint does.
        let now = Instant::now();
        store.all_topics().iter().for_each(|topic| topic.age_settled(now));
    }
}

fn retention_turn(store: &StoreInner) {
    let context = &store.context;
    let due = Instant::now() + context.settings.retention_interval;
    loop {
        let left = due.saturating_duration_since(Instant::now());
        let is_signalled = store.wake.retention.wait(left.min(LOOK_AT_FREE));
        if context.is_closed() || context.failure().is_some() {
            return;
        }
        if is_signalled || left <= LOOK_AT_FREE || is_little_free(context) {
            break;
        }
    }
    let freed = store.run_retention().is_ok_and(|reports| !reports.is_empty());
    if freed && store.context.is_disk_full() {
        store.wake.checkpoint.signal();
    }
}

/// A disk that does not tell has enough.
fn is_little_free(context: &Context) -> bool {
    let least = context.settings.free_bytes_min;
    least > 0 && context.disk.free_bytes(&context.dir).is_ok_and(|free| free < least)
}

fn compaction_turn(store: &StoreInner) {
    store.wake.compaction.wait(store.context.settings.retention_interval);
    // A full disk is retention's to free; compaction would take room before it gives any back.
    if !store.context.is_closed() && !store.context.is_disk_full() {
        store.run_compaction();
    }
}
