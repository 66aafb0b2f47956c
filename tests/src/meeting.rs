//! A disk on which two things meet: something is done just before an operation that a test chooses.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use quipu_storage::disk::{DirLock, Disk, Entry, File, OpenMode};

use crate::faulty::OpKind;
use crate::sim::SimDisk;

/// See the [module](self). Clones are the same disk.
#[derive(Clone)]
pub struct MeetingDisk {
    below: SimDisk,
    meetings: Arc<Mutex<Vec<Meeting>>>,
}

struct Meeting {
    kind: OpKind,
    below: PathBuf,
    meet: Box<dyn FnOnce() + Send>,
}

impl MeetingDisk {
    /// Over a simulated disk.
    pub fn new(below: SimDisk) -> Self {
        Self { below, meetings: Arc::default() }
    }

    /// Calls `meet` once, before the next operation of this kind below this path: one that opens, removes or locks.
    pub fn before_next(&self, kind: OpKind, below: impl Into<PathBuf>, meet: impl FnOnce() + Send + 'static) {
        let meeting = Meeting { kind, below: below.into(), meet: Box::new(meet) };
        self.meetings.lock().unwrap_or_else(PoisonError::into_inner).push(meeting);
    }

    fn meet(&self, kind: OpKind, path: &Path) {
        let due = {
            let mut meetings = self.meetings.lock().unwrap_or_else(PoisonError::into_inner);
            let is_due = |meeting: &Meeting| meeting.kind == kind && path.starts_with(&meeting.below);
            meetings.iter().position(is_due).map(|at| meetings.remove(at))
        };
        if let Some(meeting) = due {
            (meeting.meet)();
        }
    }
}

impl fmt::Debug for MeetingDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("MeetingDisk")
    }
}

impl Disk for MeetingDisk {
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let kind = match mode {
            OpenMode::Read => OpKind::OpenRead,
            OpenMode::Write => OpKind::OpenWrite,
            OpenMode::Create => OpKind::OpenCreate,
        };
        self.meet(kind, path);
        self.below.open(path, mode)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.meet(OpKind::Remove, path);
        self.below.remove(path)
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn DirLock>> {
        self.meet(OpKind::Lock, path);
        self.below.lock(path, holder)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.below.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.below.list(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.below.rename(from, to)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.below.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.below.sync_dir(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.below.free_bytes(path)
    }
}
