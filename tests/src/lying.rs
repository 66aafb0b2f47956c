//! Disks that break a promise on purpose.
//!
//! A harness that finds nothing wrong on one of these would find nothing wrong in an engine with that bug: run
//! each harness on each lie, and see it fail.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use quipu_storage::disk::{DirLock, Disk, Entry, File, Map, OpenMode, Writer};

/// The promise that is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// [`File::sync`] does nothing and says `Ok`: an acknowledgement before the sync.
    SyncDoesNothing,
    /// [`File::sync`] and [`Disk::sync_dir`] are tried, and say `Ok` when they fail: an error that nobody
    /// looks at. Put a [`FaultyDisk`](crate::faulty::FaultyDisk) below.
    SyncErrorSwallowed,
    /// [`Disk::sync_dir`] does nothing and says `Ok`: a directory sync that was forgotten.
    SyncDirDoesNothing,
}

impl Lie {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::SyncDoesNothing, Self::SyncErrorSwallowed, Self::SyncDirDoesNothing];
}

/// Passes everything on to the disk below, but for one lie.
#[derive(Clone, Debug)]
pub struct LyingDisk {
    disk: Arc<dyn Disk>,
    lie: Lie,
}

impl LyingDisk {
    /// Over any disk; only a [`SimDisk`](crate::sim::SimDisk) at the bottom brings the lie to light.
    pub fn new(disk: Arc<dyn Disk>, lie: Lie) -> Self {
        Self { disk, lie }
    }
}

impl Disk for LyingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.disk.list(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(LyingFile { file: self.disk.open(path, mode)?, lie: self.lie }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        match self.lie {
            Lie::SyncDoesNothing => self.disk.sync_dir(path),
            Lie::SyncErrorSwallowed => self.disk.sync_dir(path).or(Ok(())),
            Lie::SyncDirDoesNothing => Ok(()),
        }
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.disk.free_bytes(path)
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn DirLock>> {
        self.disk.lock(path, holder)
    }

    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        self.disk.lock_shared(path)
    }
}

#[derive(Debug)]
struct LyingFile {
    file: Arc<dyn File>,
    lie: Lie,
}

impl File for LyingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.file.read_at(buf, position)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        self.file.write_at(parts, position)
    }

    fn sync(&self) -> io::Result<()> {
        match self.lie {
            Lie::SyncDoesNothing => Ok(()),
            Lie::SyncErrorSwallowed => self.file.sync().or(Ok(())),
            Lie::SyncDirDoesNothing => self.file.sync(),
        }
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.file.allocate(bytes)
    }

    fn map(&self, capacity: u64) -> io::Result<Arc<dyn Map>> {
        self.file.map(capacity)
    }

    fn writer(self: Arc<Self>, capacity: u64) -> io::Result<Box<dyn Writer>> {
        Arc::clone(&self.file).writer(capacity)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faulty::{EIO, Fault, FaultyDisk, OpKind};
    use crate::rng::Rng;
    use crate::sim::{CrashMode, SimDisk};

    /// Writes a file by the book on a disk whose first file sync fails, if it is ever tried.
    fn survives(lie: Option<Lie>, fails_sync: bool) -> io::Result<bool> {
        let sim = SimDisk::new();
        let faulty = FaultyDisk::over_sim(sim.clone());
        if fails_sync {
            faulty.fail(Fault::of(OpKind::Sync, 1, EIO));
        }
        let disk: Arc<dyn Disk> = match lie {
            Some(lie) => Arc::new(LyingDisk::new(Arc::new(faulty), lie)),
            None => Arc::new(faulty),
        };
        let file = disk.open(Path::new("/f"), OpenMode::Create)?;
        file.write_at(&[IoSlice::new(b"data")], 0)?;
        file.sync()?;
        disk.sync_dir(Path::new("/"))?;
        let left = sim.crash_with(CrashMode::LoseAll, &mut Rng::new(0));
        Ok(left.read_file("/f").is_ok_and(|bytes| bytes == b"data"))
    }

    #[test]
    fn each_lie_loses_what_was_written_by_the_book() {
        assert!(survives(None, false).unwrap());
        assert!(survives(None, true).is_err());
        assert!(!survives(Some(Lie::SyncDoesNothing), false).unwrap());
        assert!(!survives(Some(Lie::SyncDirDoesNothing), false).unwrap());
        assert!(survives(Some(Lie::SyncErrorSwallowed), false).unwrap());
        assert!(!survives(Some(Lie::SyncErrorSwallowed), true).unwrap());
    }
}
