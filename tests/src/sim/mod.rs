//! A disk in memory that can lose power, and is stricter than any real one.
//!
//! What a power cut leaves of a [`SimDisk`]:
//!
//! - Every 512-byte sector written since the file's last sync has its old content, its new one, or one in
//!   between, each sector on its own. So have the file's length and the allocation of its blocks. A writer
//!   from [`File::writer`] is no different from plain writes.
//! - Every name changed since the directory's last sync leads to what it did before, to what it does now, or
//!   to something in between, each name on its own: a rename may leave the file under both names or under
//!   none. Only a rename onto an existing name never leaves that name without a file.
//! - Entry and file are separate: a synced file whose entry was not synced is gone, and an entry may come
//!   back without the file's content.
//! - What a failed sync has covered stays uncertain until it is written again, whatever later syncs say.
//!
//! What is merely current is seen by every reader at once (D4), and survives the death of the process.
//!
//! A full disk takes as much of a write or an allocation as there is room for before it refuses, as ext4 does.
//!
//! Operations that change something are numbered, so that a test can cut the power before each one:
//!
//! ```
//! use std::path::Path;
//! use quipu_storage::disk::{Disk, OpenMode};
//! use quipu_tests::rng::Rng;
//! use quipu_tests::sim::SimDisk;
//!
//! # fn main() -> std::io::Result<()> {
//! let disk = SimDisk::new();
//! disk.crash_at(3);
//! let file = disk.open(Path::new("/log"), OpenMode::Create)?; // 1
//! disk.sync_dir(Path::new("/"))?; // 2
//! file.sync()?; // 3
//! let (_, before_sync) = disk.take_snapshots().remove(0);
//! let after_crash = before_sync.crash(&mut Rng::new(1));
//! assert_eq!(after_crash.read_file("/log")?, b"");
//! # Ok(())
//! # }
//! ```

mod content;
mod crash;
mod errno;
mod file;
#[cfg(test)]
mod tests;
mod world;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quipu_storage::disk::{DirLock, Disk, Entry, File, OpenMode};

use crate::rng::Rng;
use content::Content;
use crash::Dice;
use file::SimLock;
use world::World;

pub use crash::CrashMode;
pub use file::SimFile;

/// A simulated disk with an empty root directory; clones are the same disk. See the [module](self).
#[derive(Clone)]
pub struct SimDisk {
    world: Arc<Mutex<World>>,
}

/// Losing power, and getting ready for it.
impl SimDisk {
    /// An empty disk without a limit.
    pub fn new() -> Self {
        Self::from_world(World::new())
    }

    /// What a power cut now could leave, as a new disk. This one goes on as if nothing had happened, and its
    /// handles and maps never reach the new one.
    #[must_use]
    pub fn crash(&self, rng: &mut Rng) -> Self {
        self.crash_with(CrashMode::Random, rng)
    }

    /// As [`Self::crash`], but no chance is involved unless the mode says so.
    #[must_use]
    pub fn crash_with(&self, mode: CrashMode, rng: &mut Rng) -> Self {
        Self::from_world(self.world().crash(&mut Dice::new(mode, rng)))
    }

    /// What the death of the process leaves, as a new disk: everything written is there, and what was not
    /// synced can still be lost to a power cut.
    #[must_use]
    pub fn after_kill(&self) -> Self {
        Self::from_world(self.world().after_kill())
    }

    /// How many operations that change something there have been: the number of the last one.
    pub fn ops(&self) -> u64 {
        self.world().ops
    }

    /// Keeps a copy of the disk as it is just before operation `number`; to be had from
    /// [`Self::take_snapshots`]. May be asked for any number of operations.
    pub fn crash_at(&self, number: u64) {
        self.world().crash_at.insert(number);
    }

    /// The copies made so far for [`Self::crash_at`], with the operation that each came before. They are to
    /// this disk what [`Self::after_kill`] is: crash them to see what a power cut leaves.
    pub fn take_snapshots(&self) -> Vec<(u64, Self)> {
        std::mem::take(&mut self.world().snapshots)
    }

    /// Turns the power off before operation `number`: it and everything later fails and changes nothing.
    pub fn halt_at(&self, number: u64) {
        self.world().halt_at = Some(number);
    }

    /// Lets the next sync fail with this error of the operating system: that of the file or directory at
    /// `path`, or of whichever file comes first. What it covered is lost to later syncs (D5).
    pub fn fail_next_sync(&self, path: Option<&Path>, raw_os_error: i32) -> io::Result<()> {
        let mut world = self.world();
        let node = path.map(|path| world.find(path)).transpose()?;
        world.sync_failures.push((node, raw_os_error));
        Ok(())
    }

    /// What a failed [`Disk::sync_dir`] leaves: see [`SimFile::fail_sync`].
    pub fn fail_sync_dir(&self, path: &Path) -> io::Result<()> {
        let mut world = self.world();
        let node = world.find(path)?;
        world.fail_sync(node);
        Ok(())
    }

    /// Limits the disk to so many bytes in blocks of 4 KiB, or lifts the limit. Names take no space.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.world().capacity_bytes = bytes;
    }
}

/// Looking at the disk, and changing it behind the engine's back. None of this is numbered or fails for lack
/// of power; what is changed is changed in the current and in every earlier version, so that no power cut
/// undoes it.
impl SimDisk {
    /// The whole content of a file.
    pub fn read_file(&self, path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        let world = self.world();
        let content = world.content(world.find(path.as_ref())?)?;
        let count = usize::try_from(content.len()).map_err(|_| io::ErrorKind::FileTooLarge)?;
        let mut bytes = vec![0; count];
        content.read(&mut bytes, 0);
        Ok(bytes)
    }

    /// Every file on the disk, with its length.
    pub fn files(&self) -> BTreeMap<PathBuf, u64> {
        self.world().files()
    }

    /// The lengths of all files together.
    pub fn total_bytes(&self) -> u64 {
        self.files().values().sum()
    }

    /// What all files take of the capacity: their allocated blocks.
    pub fn used_bytes(&self) -> u64 {
        self.world().used_bytes()
    }

    /// Inverts a bit of a file; the lowest bit of the first byte is bit 0. Panics behind the file's end.
    pub fn flip_bit(&self, path: impl AsRef<Path>, bit: u64) -> io::Result<()> {
        self.tamper(path.as_ref(), |content| content.flip_bit(bit))
    }

    /// Overwrites a part of a file, which may end behind the file's end.
    pub fn overwrite(&self, path: impl AsRef<Path>, position: u64, data: &[u8]) -> io::Result<()> {
        self.tamper(path.as_ref(), |content| content.overwrite(data, position))
    }

    /// Cuts a file, or makes it longer with zeros.
    pub fn truncate(&self, path: impl AsRef<Path>, bytes: u64) -> io::Result<()> {
        self.tamper(path.as_ref(), |content| content.truncate(bytes))
    }

    /// Puts a file in place, durably, replacing what was there. Its directory must exist.
    pub fn plant_file(&self, path: impl AsRef<Path>, data: &[u8]) -> io::Result<()> {
        let path = path.as_ref();
        let mut world = self.world();
        if world.find(path).is_ok() {
            world.remove(path)?;
        }
        let node = world.create_file(path)?;
        *world.content_mut(node)? = Content::durable(data);
        world.settle_entry(path)
    }

    /// Puts something in place that is neither file nor directory, durably.
    pub fn plant_other(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut world = self.world();
        world.create_other(path.as_ref())?;
        world.settle_entry(path.as_ref())
    }

    /// Takes a file away, durably.
    pub fn lose_file(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let mut world = self.world();
        world.remove(path.as_ref())?;
        world.settle_entry(path.as_ref())
    }

    fn tamper(&self, path: &Path, change: impl FnOnce(&mut Content)) -> io::Result<()> {
        let mut world = self.world();
        let node = world.find(path)?;
        change(world.content_mut(node)?);
        Ok(())
    }
}

impl SimDisk {
    /// As [`Disk::open`], for a test that needs what only [`SimFile`] has.
    pub fn open_file(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<SimFile>> {
        let mut world = self.world();
        let node = match mode {
            OpenMode::Read | OpenMode::Write => {
                world.check_power()?;
                world.open(path)?
            }
            OpenMode::Create => {
                world.begin()?;
                let node = world.create_file(path)?;
                world.add_handle(node);
                node
            }
        };
        Ok(Arc::new(SimFile::new(self.clone(), node, mode != OpenMode::Read)))
    }

    fn from_world(world: World) -> Self {
        Self { world: Arc::new(Mutex::new(world)) }
    }

    /// A thread that panicked with the lock is a failed test already: the others go on.
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.world();
        world.begin()?;
        change(&mut world)
    }
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").finish_non_exhaustive()
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.change(|world| world.create_dir(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let world = self.world();
        world.check_power()?;
        world.list(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        Ok(self.open_file(path, mode)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change(|world| world.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.change(|world| world.remove(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.change(|world| world.remove_dir(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.change(|world| world.sync_dir(path))
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        let world = self.world();
        world.check_power()?;
        world.find(path)?;
        Ok(world.free_bytes())
    }

    /// A numbered operation as well: it may create the file, and writes into it.
    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn DirLock>> {
        let mut world = self.world();
        world.begin()?;
        let node = match world.find(path) {
            Ok(node) => node,
            Err(error) if error.kind() == io::ErrorKind::NotFound => world.create_file(path)?,
            Err(error) => return Err(error),
        };
        if world.is_locked(node) || world.has_shared_lock(node) {
            return Err(held(&world, node)?);
        }
        world.content_mut(node)?.set_len(0);
        world.write(node, holder.as_bytes(), 0)?;
        world.take_lock(node);
        world.add_handle(node);
        Ok(Box::new(SimLock::new(self.clone(), node, false)))
    }

    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        let mut world = self.world();
        world.check_power()?;
        let node = world.find(path)?;
        if world.is_locked(node) {
            return Err(held(&world, node)?);
        }
        world.take_shared_lock(node);
        world.add_handle(node);
        Ok(Box::new(SimLock::new(self.clone(), node, true)))
    }
}

/// What somebody is told who wants a lock that another one has.
fn held(world: &World, node: world::NodeId) -> io::Result<io::Error> {
    let content = world.content(node)?;
    let mut holder = vec![0; usize::try_from(content.len().min(4096)).expect("at most 4096")];
    content.read(&mut holder, 0);
    Ok(io::Error::new(io::ErrorKind::WouldBlock, String::from_utf8_lossy(&holder).into_owned()))
}
