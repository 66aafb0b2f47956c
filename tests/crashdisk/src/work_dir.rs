//! The directory in which a run keeps its images and mount points. One run at a time.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::{loop_device, mount};

/// A work directory that is ours until dropped.
#[derive(Debug)]
pub(crate) struct WorkDir {
    path: PathBuf,
    _lock: File,
}

impl WorkDir {
    /// Takes the directory and removes what a run that was killed left in it.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let opening = || format!("open the work directory {}", path.display());
        fs::create_dir_all(path).context(opening)?;
        let path = path.canonicalize().context(opening)?;
        let lock = File::create(path.join("lock")).context(opening)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(Error::Trouble(format!("another run works in {}", path.display())));
            }
            Err(TryLockError::Error(error)) => return Err(error).context(opening),
        }
        // Our own mounts are in a namespace that died with its run: whatever we see here is somebody else's.
        if let Some(point) = mount::mounted_below(&path)?.into_iter().find(|point| *point != path) {
            return Err(Error::Trouble(format!(
                "something is mounted on {}; unmount it first",
                point.display()
            )));
        }
        for device in loop_device::attached_below(&path) {
            eprintln!("crashdisk: detaching {}, left by an earlier run", device.display());
            loop_device::detach(&device)?;
        }
        Ok(Self { path, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// A new, empty directory in it.
    pub(crate) fn fresh_dir(&self, name: &str) -> Result<PathBuf> {
        let path = self.path.join(name);
        let making = || format!("make {}", path.display());
        if path.exists() {
            fs::remove_dir_all(&path).context(making)?;
        }
        fs::create_dir(&path).context(making)?;
        Ok(path)
    }
}
