//! What every part of an open store shares: disk, clock, settings, counters, and whether it is still well.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::JoinHandle;

use crate::clock::Clock;
use crate::disk::{Disk, File};
use crate::erasure::master_key::MasterKey;
use crate::error::{Error, Result};
use crate::segment::MapBudget;
use crate::settings::StoreSettings;
use crate::stats::Counters;
use crate::terms::sealed::TermBudget;
use crate::terms::settled::SettledBudget;
use crate::types::{TopicId, Uid};

/// An open file and its path, for the error that names it.
pub(crate) type NamedFile = (Arc<dyn File>, PathBuf);

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) dir: PathBuf,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) settings: StoreSettings,
    pub(crate) store: Uid,
    pub(crate) is_read_only: bool,
    pub(crate) counters: Counters,
    pub(crate) maps: MapBudget,
    pub(crate) term_budget: TermBudget,
    pub(crate) settled_budget: SettledBudget,
    /// Set when the store opens, if it is given one.
    pub(crate) master_key: OnceLock<MasterKey>,
    failure: OnceLock<Error>,
    alarm: OnceLock<Alarm>,
    /// Tells of the failure. Held while the failure is set: who finds it set finds the thread as well.
    alarm_thread: Mutex<Option<JoinHandle<()>>>,
    is_closed: AtomicBool,
    is_released: AtomicBool,
    is_disk_full: AtomicBool,
}

impl Context {
    pub(crate) fn new(
        dir: PathBuf,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        settings: StoreSettings,
        store: Uid,
        is_read_only: bool,
    ) -> Self {
        Self {
            maps: MapBudget::new(settings.maps_max),
            term_budget: TermBudget::default(),
            settled_budget: SettledBudget::default(),
            dir,
            disk,
            clock,
            settings,
            store,
            is_read_only,
            counters: Counters::default(),
            master_key: OnceLock::new(),
            failure: OnceLock::new(),
            alarm: OnceLock::new(),
            alarm_thread: Mutex::new(None),
            is_closed: AtomicBool::new(false),
            is_released: AtomicBool::new(false),
            is_disk_full: AtomicBool::new(false),
        }
    }

    /// What payloads are sealed with, if the store was opened with it.
    pub(crate) fn master_key(&self) -> Option<&MasterKey> {
        self.master_key.get()
    }

    /// The directory that holds all topics.
    pub(crate) fn topics_dir(&self) -> PathBuf {
        self.dir.join("topics")
    }

    /// The directory of a topic. Named by number: no topic name ever becomes a file name.
    pub(crate) fn topic_dir(&self, topic: TopicId) -> PathBuf {
        self.topics_dir().join(topic.to_string())
    }

    /// Fails the store for good: after a failed write or sync nothing is known about what it covered, and the
    /// page cache may show what the disk does not hold. Returns the first failure.
    pub(crate) fn fail(&self, error: Error) -> Error {
        let mut thread = self.alarm_thread.lock().expect("no panic under this lock");
        let mut is_first = false;
        let set = || {
            is_first = true;
            error
        };
        let failure = self.failure.get_or_init(set).clone();
        if is_first && let Some(alarm) = self.alarm.get() {
            *thread = alarm.raise(&failure);
        }
        failure
    }

    /// Has `tell` called when the store fails, once, in a thread of its own. It is to wake those who wait for what will
    /// not come any more.
    pub(crate) fn on_failure(&self, tell: impl Fn(&Error) + Send + Sync + 'static) {
        let is_set = self.alarm.set(Alarm(Arc::new(tell))).is_ok();
        assert!(is_set, "it is set once, when the store opens");
    }

    /// Waits until all who waited have been told of the failure, if there is one: until then somebody holds the store. Not
    /// from the thread that tells them.
    pub(crate) fn wait_for_alarm(&self) {
        let thread = self.alarm_thread.lock().expect("no panic under this lock").take();
        if let Some(thread) = thread.filter(|thread| thread.thread().id() != std::thread::current().id()) {
            // A panic there is that of a waker, which is its owner's.
            let _ = thread.join();
        }
    }

    /// What failed the store.
    pub(crate) fn failure(&self) -> Option<&Error> {
        self.failure.get()
    }

    /// Whether changes are taken: an error if the store has failed, is closed or is read-only.
    pub(crate) fn check_writable(&self) -> Result<()> {
        // In this order: a store that failed and was closed between the two looks has failed.
        let is_closed = self.is_closed();
        if let Some(failure) = self.failure.get() {
            return Err(failure.clone());
        }
        if is_closed {
            return Err(Error::Closed);
        }
        if self.is_read_only {
            return Err(Error::ReadOnly);
        }
        Ok(())
    }

    /// Says whether it was not before.
    pub(crate) fn close(&self) -> bool {
        !self.is_closed.swap(true, Ordering::AcqRel)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// From now on the directory may be somebody else's: readers that are left change nothing in it.
    pub(crate) fn release(&self) {
        self.is_released.store(true, Ordering::Release);
    }

    pub(crate) fn is_released(&self) -> bool {
        self.is_released.load(Ordering::Acquire)
    }

    pub(crate) fn is_disk_full(&self) -> bool {
        self.is_disk_full.load(Ordering::Acquire)
    }

    pub(crate) fn set_disk_full(&self, is_full: bool) {
        self.is_disk_full.store(is_full, Ordering::Release);
    }

    /// Makes the entries of a directory durable. A failure is final, like that of every sync.
    pub(crate) fn sync_dir(&self, path: &Path) -> Result<()> {
        if crate::planted::skips_directory_sync() {
            return Ok(());
        }
        match self.disk.sync_dir(path) {
            Err(error) if !crate::planted::ignores_sync_errors() => {
                Err(self.fail(Error::failed("sync directory", path, error)))
            }
            _ => Ok(()),
        }
    }

    /// Makes a file durable. A failure is final.
    pub(crate) fn sync_file(&self, file: &dyn crate::disk::File, path: &Path) -> Result<()> {
        match file.sync() {
            Err(error) if !crate::planted::ignores_sync_errors() => {
                Err(self.fail(Error::failed("sync", path, error)))
            }
            _ => Ok(()),
        }
    }
}

/// See [`Context::on_failure`].
struct Alarm(Arc<dyn Fn(&Error) + Send + Sync>);

impl Alarm {
    /// Whoever met the failure may hold locks, and what is woken may want them: hence the thread.
    fn raise(&self, failure: &Error) -> Option<JoinHandle<()>> {
        let (tell, failure) = (Arc::clone(&self.0), failure.clone());
        let thread = std::thread::Builder::new().name("quipu-failure".into());
        // If there can be no thread, those who wait learn of it when the store is closed.
        thread.spawn(move || tell(&failure)).ok()
    }
}

impl fmt::Debug for Alarm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Alarm")
    }
}

/// Random bytes from the system.
pub(crate) fn random<const BYTES: usize>() -> Result<[u8; BYTES]> {
    let mut bytes = [0; BYTES];
    let mut filled = 0;
    while filled < BYTES {
        match rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(Error::io("read random bytes", "/dev/urandom", error.into())),
        }
    }
    Ok(bytes)
}
