//! The disk: the only way the engine touches files.
//!
//! Everything that reads, writes, syncs, renames or removes goes through [`Disk`] and [`File`], so that a test
//! can put a simulated or a failing disk underneath. [`OsDisk`] is the real one.
//!
//! What an implementation promises:
//!
//! - D1 After [`File::sync`] returns `Ok`, every earlier [`File::write_at`], [`Writer::write_at`],
//!   [`File::allocate`] and [`File::set_len`] of that file survives a power cut.
//! - D2 Nothing else survives for certain: an unsynced write may be kept, lost, or torn at any 512-byte
//!   sector, and unsynced writes may reach the disk in any order.
//! - D3 A created, renamed or removed directory entry survives only after [`Disk::sync_dir`] of its directory.
//! - D4 A reader in this process sees a write as soon as it has returned, through whatever handle or map.
//! - D5 After a failed sync nothing is known about what it covered. A later `Ok` does not make up for it.

mod map;
mod os;

use std::fmt;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;

pub use os::OsDisk;

/// How [`Disk::open`] opens a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// A new file, for reading and writing. Fails with `AlreadyExists` if the name is taken.
    Create,
}

/// What kind of thing a directory entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else: a link, a socket, a pipe. The engine never follows or removes one.
    Other,
}

/// One entry of a directory, as [`Disk::list`] reports it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The name within the directory. A name that is not UTF-8 is shown lossily and never matches one of ours.
    pub name: String,
    /// What it names.
    pub kind: EntryKind,
}

/// A held lock on a directory; dropping it releases the lock.
pub trait DirLock: fmt::Debug + Send + Sync {}

/// A file system. See the [module](self) for what it promises.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// The path of an existing file or directory without symbolic links, so that two can be compared; as it is, on a disk
    /// that has none.
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        Ok(path.into())
    }

    /// Creates one directory, private to its owner. An existing directory is fine.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// The entries of a directory, in no particular order, without `.` and `..`.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Opens or creates a file. Never follows a symbolic link at `path`.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>>;

    /// Renames a file within its directory, replacing what has the new name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Maps and handles of it stay valid.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes the entries of a directory survive a power cut (D3).
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Bytes that could still be written below `path`.
    fn free_bytes(&self, path: &Path) -> io::Result<u64>;

    /// Locks `path` (a file, created if absent) against every other process and every other holder in this
    /// one, and writes `holder` into it. `WouldBlock` if somebody else holds it.
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn DirLock>>;

    /// Keeps [`lock`](Self::lock) of `path` from being had, together with any number of others who do; neither creates
    /// nor changes anything. `WouldBlock` if somebody holds the lock, with what the holder wrote; `NotFound` if there
    /// is no such file. `Unsupported` from a disk that cannot.
    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        let _ = path;
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// An open file.
pub trait File: fmt::Debug + Send + Sync {
    /// The file's length in bytes.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Fills `buf` from `position` on; returns how many bytes there were before the end of the file.
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize>;

    /// Writes all parts, one after the other, from `position` on.
    fn write_at(&self, parts: &[io::IoSlice<'_>], position: u64) -> io::Result<()>;

    /// Makes content and length durable (fdatasync, D1).
    fn sync(&self) -> io::Result<()>;

    /// Sets the file's length. A longer file reads as zeros in its new part, whose blocks do not exist yet.
    fn set_len(&self, bytes: u64) -> io::Result<()>;

    /// Makes the file at least `bytes` long with every block present, so that no later write within it can
    /// meet a full disk.
    fn allocate(&self, bytes: u64) -> io::Result<()>;

    /// A view for reading the first `capacity` bytes without copying. The file may be shorter now and grow later.
    fn map(&self, capacity: u64) -> io::Result<Arc<dyn Map>>;

    /// The fastest way to write the first `capacity` bytes of this file, which must be allocated. Where the
    /// file system overwrites allocated blocks in place this is a map, elsewhere plain writes. There is at
    /// most one writer of a file: a second call fails.
    fn writer(self: Arc<Self>, capacity: u64) -> io::Result<Box<dyn Writer>>;
}

/// A view of a file for reading.
pub trait Map: fmt::Debug + Send + Sync {
    /// The bytes at `range`, which must have been written before. The result keeps the view alive, also when
    /// the file has been removed. A disk that cannot read them answers an error here, not later.
    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes>;
}

/// Exclusive, fast writing into an allocated file.
pub trait Writer: fmt::Debug + Send {
    /// Writes all parts, one after the other, from `position` on. The end must be within the capacity.
    fn write_at(&mut self, parts: &[io::IoSlice<'_>], position: u64) -> io::Result<()>;

    /// The memory of `range`, to be written in place of a [`write_at`](Self::write_at). `None` if there is none: write
    /// with that.
    fn place(&mut self, range: Range<u64>) -> Option<&mut [u8]> {
        let _ = range;
        None
    }

    /// Whether blocks that were written before are overwritten where they are, so that it pays to write them
    /// with zeros ahead of the data.
    fn overwrites_in_place(&self) -> bool {
        true
    }
}
