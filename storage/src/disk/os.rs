//! The real disk.

use std::fs::{self, File as StdFile, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, OFlags};

use super::map::{ReadMap, WriteMap};
use super::{DirLock, Disk, Entry, EntryKind, File, Map, OpenMode, Writer};

/// The file systems that overwrite an allocated and written block in place, by the type that `fstatfs` reports.
/// There a store into a map cannot meet a full disk; elsewhere (copy on write) it can, and would be a SIGBUS.
const IN_PLACE_FILE_SYSTEMS: [i64; 3] =
    [0xEF53 /* ext4 */, 0x5846_5342 /* XFS */, 0x0102_1994 /* tmpfs */];

/// The operating system's file systems.
#[derive(Clone, Copy, Debug, Default)]
pub struct OsDisk;

impl Disk for OsDisk {
    fn canonical(&self, path: &Path) -> io::Result<PathBuf> {
        path.canonicalize()
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        match fs::DirBuilder::new().mode(0o700).create(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            outcome => outcome,
        }
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        fs::read_dir(path)?
            .map(|entry| {
                let entry = entry?;
                let kind = entry.file_type()?;
                Ok(Entry {
                    name: entry.file_name().to_string_lossy().into_owned(),
                    kind: match () {
                        () if kind.is_file() => EntryKind::File,
                        () if kind.is_dir() => EntryKind::Dir,
                        () => EntryKind::Other,
                    },
                })
            })
            .collect()
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let mut options = OpenOptions::new();
        options.read(true).mode(0o600);
        // A FIFO or a device put in our place must neither block us nor be written to.
        options.custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed());
        match mode {
            OpenMode::Read => &mut options,
            OpenMode::Write => options.write(true),
            OpenMode::Create => options.write(true).create_new(true),
        };
        let file = options.open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        Ok(Arc::new(OsFile { file, has_writer: AtomicBool::new(false) }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        fs::remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        StdFile::open(path)?.sync_all()
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn DirLock>> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                (&file).take(4096).read_to_string(&mut holder)?;
                return Err(io::Error::new(io::ErrorKind::WouldBlock, holder));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        file.set_len(0)?;
        file.rewind()?;
        file.write_all(holder.as_bytes())?;
        Ok(Box::new(OsLock { _file: file }))
    }

    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        let file = OpenOptions::new()
            .read(true)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
            .open(path)?;
        match file.try_lock_shared() {
            Ok(()) => Ok(Box::new(OsLock { _file: file })),
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                (&file).take(4096).read_to_string(&mut holder)?;
                Err(io::Error::new(io::ErrorKind::WouldBlock, holder))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Holds the lock until its file is closed.
#[derive(Debug)]
struct OsLock {
    _file: StdFile,
}

impl DirLock for OsLock {}

#[derive(Debug)]
struct OsFile {
    file: StdFile,
    has_writer: AtomicBool,
}

impl File for OsFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        let mut filled = 0;
        while filled < buf.len() {
            match self.file.read_at(&mut buf[filled..], position + filled as u64) {
                Ok(0) => break,
                Ok(bytes) => filled += bytes,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(filled)
    }

    fn write_at(&self, parts: &[IoSlice<'_>], mut position: u64) -> io::Result<()> {
        if let [part] = parts {
            return self.file.write_all_at(part, position);
        }
        let mut parts: Vec<IoSlice<'_>> = parts.to_vec();
        let mut rest = &mut parts[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            // The kernel takes at most this many parts in one call (IOV_MAX).
            let count = rest.len().min(1024);
            match rustix::io::pwritev(&self.file, &rest[..count], position) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(bytes) => {
                    position += bytes as u64;
                    IoSlice::advance_slices(&mut rest, bytes);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        loop {
            match rustix::fs::fallocate(&self.file, FallocateFlags::empty(), 0, bytes) {
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::OPNOTSUPP) => return allocate_by_writing(&self.file, bytes),
                outcome => return Ok(outcome?),
            }
        }
    }

    fn map(&self, capacity: u64) -> io::Result<Arc<dyn Map>> {
        Ok(Arc::new(ReadMap::new(&self.file, to_usize(capacity)?)?))
    }

    fn writer(self: Arc<Self>, capacity: u64) -> io::Result<Box<dyn Writer>> {
        if self.has_writer.swap(true, Ordering::AcqRel) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the file has a writer already"));
        }
        let file_system = rustix::fs::fstatfs(&self.file)?.f_type;
        if IN_PLACE_FILE_SYSTEMS.contains(&file_system) {
            return Ok(Box::new(WriteMap::new(&self.file, to_usize(capacity)?)?));
        }
        Ok(Box::new(PlainWriter { file: self }))
    }
}

/// Where the file system has no fallocate: zeros behind what is there.
fn allocate_by_writing(file: &StdFile, bytes: u64) -> io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut position = file.metadata()?.len();
    while position < bytes {
        let part = zeros.len().min(to_usize(bytes - position)?);
        file.write_all_at(&zeros[..part], position)?;
        position += part as u64;
    }
    Ok(())
}

/// Writes where a map could meet a full disk.
#[derive(Debug)]
struct PlainWriter {
    file: Arc<OsFile>,
}

impl Writer for PlainWriter {
    fn write_at(&mut self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        self.file.write_at(parts, position)
    }

    fn overwrites_in_place(&self) -> bool {
        false
    }
}

fn to_usize(bytes: u64) -> io::Result<usize> {
    usize::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}
