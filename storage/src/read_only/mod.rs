//! Reading a store that another process may be writing.
//!
//! A reader takes no lock and writes nothing: there may be any number of them, beside a writer, after one that was
//! killed, or with none at all, also in a directory that cannot be written. It does what recovery does, again and
//! again: reads the checkpoint, applies the journal's frames behind it to the topics, and takes the next checkpoint
//! when there is one, so that its memory holds at most what the journal does.
//!
//! Promises:
//!
//! - R1 What is shown with [`Visibility::Synced`] was synced by the writer. With [`Visibility::Written`] every intact
//!   record is shown that has left the writer's memory: those that were not appended as `Written` do at the next sync.
//! - R2 Offsets rise, none is skipped without a word, as with any cursor.
//! - R3 A half-written frame, or one of a file that is used again meanwhile, is never taken: frames verify by
//!   checksum, position and generation, batches by their topic's seed and their offset.
//! - R4 Only what a checkpoint lists is mapped: the writer never cuts or changes it, only unlinks it (M2 and M3 of the
//!   maps hold over processes).
//! - R5 Damage hides only what lies behind it in the journal. Readers that get there are told, with
//!   [`Error::CorruptFile`]; so is whoever asks for a topic that may have been made behind it; and
//!   [`ReadOnlyStore::stats`] has it.
//!
//! [`follower`] has the journal and its races. Another process cannot wake us, so a thread looks for changes: every
//! millisecond while there are any, down to every 20 ms when there are none. It is the only place that polls.

mod follower;
mod topic;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::cursor::Owner;
use crate::error::{Error, Result};
use crate::producers::ProducerInfo;
use crate::store::{Store, StoreBuilder};
use crate::types::{Position, TopicName};
use follower::Shared;

pub use topic::ReadOnlyTopic;

#[cfg(doc)]
use crate::cursor::Visibility;

/// How long the thread waits between looks, at least and at most.
const LOOK_INTERVALS: [Duration; 2] = [Duration::from_millis(1), Duration::from_millis(20)];
/// Every so many looks that found nothing are thorough ones.
const THOROUGH_EVERY: u32 = 8;

/// A store open for reading, beside the process that writes it. See [`Store::open_read_only`].
///
/// Cheap to clone; safe to use from any thread. It is closed when [`close`](Self::close) is called or the last clone,
/// topic and cursor is gone.
#[derive(Clone, Debug)]
pub struct ReadOnlyStore {
    handle: Arc<ReadHandle>,
}

/// The state of a reader at one moment.
#[derive(Clone, Debug)]
pub struct ReadOnlyStats {
    /// Up to where in the journal it has read.
    pub journal_position: Position,
    /// Up to where it knows the journal to be synced.
    pub synced_position: Position,
    /// The last checkpoint it has taken.
    pub checkpoint_position: Position,
    /// Bytes of records that it holds in memory because no checkpoint covers them yet.
    pub tail_bytes: u64,
    /// Topics.
    pub topics: u64,
    /// What keeps it from reading on in the journal, if anything does. Opening the store for writing tells the same
    /// or repairs it; a later checkpoint leads behind it.
    pub damage: Option<Error>,
}

/// Closes the reader when the last of its users goes. Its thread does not hold it.
#[derive(Debug)]
pub(crate) struct ReadHandle {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Store {
    /// Opens the store in directory `path` for reading only, with default settings; another process may be writing it.
    /// It must exist.
    ///
    /// # Errors
    /// [`Error::NoStore`]; [`Error::CorruptFile`] if the checkpoint is damaged; [`Error::NewerFormat`].
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<ReadOnlyStore> {
        Self::builder().open_read_only(path)
    }
}

impl StoreBuilder {
    /// Opens the store in directory `path` for reading only. Of the settings `maps_max` and `background` count. A master
    /// key is not used, and sealed payloads read as locked: only who has the store's lock knows how much of it is left.
    ///
    /// Without `background` nothing is noticed but by [`ReadOnlyStore::refresh`], and nobody who waits is woken
    /// otherwise.
    ///
    /// # Errors
    /// As [`Store::open_read_only`], and [`Error::InvalidSetting`].
    pub fn open_read_only(self, path: impl AsRef<Path>) -> Result<ReadOnlyStore> {
        let (settings, disk, clock) = self.into_parts();
        settings.check()?;
        let has_thread = settings.background;
        let shared = Arc::new(Shared::open(path.as_ref(), disk, clock, settings)?);
        let thread = has_thread.then(|| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new()
                .name("quipu-follow".into())
                .spawn(move || look_again_and_again(&shared))
        });
        let thread = thread
            .transpose()
            .map_err(|error| Error::io("start a thread to follow", path.as_ref(), error))?;
        Ok(ReadOnlyStore { handle: Arc::new(ReadHandle { shared, thread: Mutex::new(thread) }) })
    }
}

fn look_again_and_again(shared: &Shared) {
    let [shortest, longest] = LOOK_INTERVALS;
    let mut interval = shortest;
    let mut idle = 0;
    loop {
        let deadline = Instant::now() + interval;
        if shared.closing.wait_until(Some(deadline), || shared.context.is_closed()) {
            return;
        }
        let before = shared.version();
        // What goes wrong here is tried again, and told by the next `refresh` or read that meets it.
        let _ = shared.refresh(idle % THOROUGH_EVERY == THOROUGH_EVERY - 1);
        if shared.version() == before {
            idle += 1;
            interval = (interval * 2).min(longest);
        } else {
            idle = 0;
            interval = shortest;
        }
    }
}

impl ReadOnlyStore {
    /// The directory.
    pub fn path(&self) -> &Path {
        &self.handle.shared.context.dir
    }

    /// The topic of that name.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`]; [`Error::InvalidTopicName`]; [`Error::CorruptFile`] if the journal is damaged before it
    /// tells of such a topic.
    pub fn topic(&self, name: &str) -> Result<ReadOnlyTopic> {
        match self.handle.shared.topic(name) {
            Some(inner) => Ok(ReadOnlyTopic::new(inner, Arc::clone(&self.handle))),
            None => {
                let name = TopicName::new(name)?;
                Err(self.handle.shared.damage().unwrap_or(Error::TopicNotFound { name }))
            }
        }
    }

    /// All topics, by name.
    pub fn topics(&self) -> Vec<ReadOnlyTopic> {
        let topics = self.handle.shared.all_topics().into_iter();
        let mut topics: Vec<_> =
            topics.map(|inner| ReadOnlyTopic::new(inner, Arc::clone(&self.handle))).collect();
        topics.sort_by(|a, b| a.name().cmp(b.name()));
        topics
    }

    /// All named producers, in the order of their names; see [`Store::producers`]. Appends of theirs count that are not
    /// known to be synced yet.
    pub fn producers(&self) -> Vec<ProducerInfo> {
        self.handle.shared.producers()
    }

    /// Takes in everything that the writer has done before this call. Happens by itself as well.
    ///
    /// # Errors
    /// [`Error::Io`] if the files cannot be read, [`Error::Closed`]. What was read before can still be read.
    pub fn refresh(&self) -> Result<()> {
        self.handle.shared.refresh(true)
    }

    /// Positions at this moment, and whether anything is damaged.
    pub fn stats(&self) -> ReadOnlyStats {
        self.handle.shared.stats()
    }

    /// Ends following: those who wait for records get [`Error::Closed`]. What is there can still be read.
    pub fn close(&self) {
        self.handle.close();
    }
}

impl ReadHandle {
    fn close(&self) {
        if !self.shared.context.close() {
            return;
        }
        self.shared.closing.notify();
        let thread = self.thread.lock().expect("no panic under this lock").take();
        // The last user may go in a waker, which that thread runs: it ends by itself.
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic there was an invariant broken; the locks it held are poisoned and say so.
            let _ = thread.join();
        }
        for topic in self.shared.all_topics() {
            topic.watch.notify();
        }
    }
}

impl Drop for ReadHandle {
    fn drop(&mut self) {
        self.close();
    }
}

impl Owner for ReadHandle {
    fn version(&self) -> u64 {
        self.shared.version()
    }

    fn refresh(&self) -> Result<()> {
        match self.shared.refresh(true) {
            Err(Error::Closed) => Ok(()),
            outcome => outcome,
        }
    }

    fn damage(&self) -> Option<Error> {
        self.shared.damage()
    }
}
