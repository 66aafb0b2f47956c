//! A disk that fails where a test wants it to.
//!
//! It passes everything on to the disk below, counts and records each operation, and fails the chosen ones. A
//! test first runs its workload without faults, then once per recorded operation with that one failing.
//!
//! Over a [`SimDisk`] a failed sync does what a real kernel does: what it covered is clean and not durable, so
//! that a later `Ok` does not make up for it (D5).

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use quipu_storage::disk::{DirLock, Disk, Entry, File, Map, OpenMode, Writer};

use crate::sim::{SimDisk, SimFile};

/// An interrupted call.
pub const EINTR: i32 = 4;
/// A disk that cannot read or write.
pub const EIO: i32 = 5;
/// No memory.
pub const ENOMEM: i32 = 12;
/// Too many open files in this process.
pub const EMFILE: i32 = 24;
/// A full disk.
pub const ENOSPC: i32 = 28;
/// A full quota.
pub const EDQUOT: i32 = 122;

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum OpKind {
    /// [`Disk::create_dir`].
    CreateDir,
    /// [`Disk::list`].
    List,
    /// [`Disk::open`] for reading.
    OpenRead,
    /// [`Disk::open`] for writing.
    OpenWrite,
    /// [`Disk::open`] of a new file.
    OpenCreate,
    /// [`Disk::rename`]; recorded with the old name.
    Rename,
    /// [`Disk::remove`].
    Remove,
    /// [`Disk::remove_dir`].
    RemoveDir,
    /// [`Disk::sync_dir`].
    SyncDir,
    /// [`Disk::free_bytes`].
    FreeBytes,
    /// [`Disk::lock`].
    Lock,
    /// [`File::len`].
    Len,
    /// [`File::read_at`].
    Read,
    /// [`File::write_at`].
    Write,
    /// [`File::sync`].
    Sync,
    /// [`File::set_len`].
    SetLen,
    /// [`File::allocate`].
    Allocate,
    /// [`File::map`].
    Map,
    /// [`Map::bytes`].
    MapBytes,
    /// [`File::writer`].
    Writer,
    /// [`Writer::write_at`].
    WriterWrite,
}

/// One operation that was asked for. A file's operations have the path that it was opened by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Op {
    /// What it does.
    pub kind: OpKind,
    /// What it does it to.
    pub path: PathBuf,
    /// Whether a fault hit it.
    pub was_failed: bool,
}

/// What an operation does to the disk below before it is reported as failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing at all.
    Nothing,
    /// A write stops after so many bytes; anything else does nothing.
    Prefix(usize),
    /// Everything, and only the answer is wrong.
    Whole,
}

/// Which operation fails, and how. Counted from when it is given to [`FaultyDisk::fail`].
#[derive(Clone, Debug)]
pub struct Fault {
    kind: Option<OpKind>,
    below: Option<PathBuf>,
    nth: u64,
    raw_os_error: i32,
    effect: Effect,
    is_permanent: bool,
}

impl Fault {
    /// The `nth` operation from now, 1 being the next one, fails once with this error of the operating system
    /// and does nothing.
    pub fn any(nth: u64, raw_os_error: i32) -> Self {
        assert!(nth > 0, "the next operation is number 1");
        Self { kind: None, below: None, nth, raw_os_error, effect: Effect::Nothing, is_permanent: false }
    }

    /// As [`Self::any`], counting only operations of this kind.
    pub fn of(kind: OpKind, nth: u64, raw_os_error: i32) -> Self {
        Self { kind: Some(kind), ..Self::any(nth, raw_os_error) }
    }

    /// Counts only operations on this path, or below it.
    #[must_use]
    pub fn below(self, path: impl Into<PathBuf>) -> Self {
        Self { below: Some(path.into()), ..self }
    }

    /// Lets every counted operation from the `nth` on fail.
    #[must_use]
    pub fn forever(self) -> Self {
        Self { is_permanent: true, ..self }
    }

    /// Lets the operation do something before it fails.
    #[must_use]
    pub fn after(self, effect: Effect) -> Self {
        Self { effect, ..self }
    }

    fn counts(&self, kind: OpKind, path: &Path) -> bool {
        self.kind.is_none_or(|wanted| wanted == kind)
            && self.below.as_ref().is_none_or(|below| path.starts_with(below))
    }
}

/// A disk that records every operation and fails chosen ones; clones are the same disk. See the
/// [module](self).
#[derive(Clone)]
pub struct FaultyDisk {
    disk: Arc<dyn Disk>,
    /// The same disk again if it is a simulated one.
    sim: Option<SimDisk>,
    plan: Arc<Mutex<Plan>>,
    /// The plan has changed, or a sync has begun.
    changed: Arc<Condvar>,
}

#[derive(Debug, Default)]
struct Plan {
    ops: Vec<Op>,
    faults: Vec<Fault>,
    /// Syncs of files begin and do not end.
    holds_syncs: bool,
}

impl FaultyDisk {
    /// Over any disk. There a failed sync is one that was never tried.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Self { disk, sim: None, plan: Arc::default(), changed: Arc::default() }
    }

    /// Over a simulated disk, where a failed sync has the consequences of a real one.
    pub fn over_sim(sim: SimDisk) -> Self {
        Self { disk: Arc::new(sim.clone()), sim: Some(sim), plan: Arc::default(), changed: Arc::default() }
    }

    /// Adds a fault. Each counts on its own; where two hit the same operation, the one added first decides.
    pub fn fail(&self, fault: Fault) {
        self.plan().faults.push(fault);
    }

    /// Takes all faults away, also those that would last for ever.
    pub fn heal(&self) {
        self.plan().faults.clear();
    }

    /// Lets syncs of files begin and not end, until they are let go.
    pub fn hold_syncs(&self) {
        self.plan().holds_syncs = true;
    }

    /// Lets them end.
    pub fn let_syncs_go(&self) {
        self.plan().holds_syncs = false;
        self.changed.notify_all();
    }

    /// Waits until so many syncs of files have begun.
    pub fn wait_for_syncs(&self, count: u64) {
        let syncs = |plan: &Plan| plan.ops.iter().filter(|op| op.kind == OpKind::Sync).count() as u64;
        let plan = self.changed.wait_while(self.plan(), |plan| syncs(plan) < count);
        drop(plan.unwrap_or_else(PoisonError::into_inner));
    }

    /// Every operation so far, in order.
    pub fn ops(&self) -> Vec<Op> {
        self.plan().ops.clone()
    }

    /// How many operations there have been.
    pub fn op_count(&self) -> u64 {
        self.plan().ops.len() as u64
    }

    /// How many operations of this kind there have been.
    pub fn op_count_of(&self, kind: OpKind) -> u64 {
        self.plan().ops.iter().filter(|op| op.kind == kind).count() as u64
    }

    /// How many operations a fault has hit. A test that planned one and finds 0 here has tested nothing.
    pub fn fault_count(&self) -> u64 {
        self.plan().ops.iter().filter(|op| op.was_failed).count() as u64
    }

    /// Forgets the recorded operations, for long runs.
    pub fn forget_ops(&self) {
        self.plan().ops.clear();
    }

    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.plan.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records an operation; the fault that hits it, if any.
    fn record(&self, kind: OpKind, path: &Path) -> Option<Fault> {
        let mut plan = self.plan();
        let mut hit = None;
        plan.faults.retain_mut(|fault| {
            if !fault.counts(kind, path) {
                return true;
            }
            if fault.nth > 1 {
                fault.nth -= 1;
                return true;
            }
            hit.get_or_insert_with(|| fault.clone());
            fault.is_permanent
        });
        plan.ops.push(Op { kind, path: path.to_owned(), was_failed: hit.is_some() });
        hit
    }

    /// Runs an operation that is done as a whole or not at all.
    fn run<T>(&self, kind: OpKind, path: &Path, act: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match self.record(kind, path) {
            None => act(),
            Some(fault) => {
                if fault.effect == Effect::Whole {
                    // Whatever it answers is not what the caller hears.
                    drop(act());
                }
                Err(io::Error::from_raw_os_error(fault.raw_os_error))
            }
        }
    }

    fn run_write(
        &self,
        kind: OpKind,
        path: &Path,
        parts: &[IoSlice<'_>],
        write: impl FnOnce(&[IoSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let Some(fault) = self.record(kind, path) else { return write(parts) };
        let bytes_max = match fault.effect {
            Effect::Nothing => 0,
            Effect::Prefix(bytes) => bytes,
            Effect::Whole => usize::MAX,
        };
        let prefix: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).take(bytes_max).collect();
        if !prefix.is_empty() {
            // Whatever it answers is not what the caller hears.
            drop(write(&[IoSlice::new(&prefix)]));
        }
        Err(io::Error::from_raw_os_error(fault.raw_os_error))
    }

    fn run_sync(
        &self,
        kind: OpKind,
        path: &Path,
        sync: impl FnOnce() -> io::Result<()>,
        fail: impl FnOnce(),
    ) -> io::Result<()> {
        let fault = self.record(kind, path);
        if kind == OpKind::Sync {
            self.changed.notify_all();
            let plan = self.changed.wait_while(self.plan(), |plan| plan.holds_syncs);
            drop(plan.unwrap_or_else(PoisonError::into_inner));
        }
        let Some(fault) = fault else { return sync() };
        if fault.effect == Effect::Whole {
            drop(sync());
        } else {
            fail();
        }
        Err(io::Error::from_raw_os_error(fault.raw_os_error))
    }
}

impl fmt::Debug for FaultyDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FaultyDisk").field("disk", &self.disk).finish_non_exhaustive()
    }
}

impl Disk for FaultyDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.run(OpKind::CreateDir, path, || self.disk.create_dir(path))
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.run(OpKind::List, path, || self.disk.list(path))
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let kind = match mode {
            OpenMode::Read => OpKind::OpenRead,
            OpenMode::Write => OpKind::OpenWrite,
            OpenMode::Create => OpKind::OpenCreate,
        };
        let (file, sim): (Arc<dyn File>, _) = self.run(kind, path, || match &self.sim {
            Some(sim) => {
                let file = sim.open_file(path, mode)?;
                Ok((Arc::clone(&file) as Arc<dyn File>, Some(file)))
            }
            None => Ok((self.disk.open(path, mode)?, None)),
        })?;
        Ok(Arc::new(FaultyFile { file, sim, disk: self.clone(), path: path.to_owned() }))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.run(OpKind::Rename, from, || self.disk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.run(OpKind::Remove, path, || self.disk.remove(path))
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.run(OpKind::RemoveDir, path, || self.disk.remove_dir(path))
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        let fail = || {
            if let Some(sim) = &self.sim {
                // A directory that is not there has nothing to lose.
                drop(sim.fail_sync_dir(path));
            }
        };
        self.run_sync(OpKind::SyncDir, path, || self.disk.sync_dir(path), fail)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.run(OpKind::FreeBytes, path, || self.disk.free_bytes(path))
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn DirLock>> {
        self.run(OpKind::Lock, path, || self.disk.lock(path, holder))
    }

    fn lock_shared(&self, path: &Path) -> io::Result<Box<dyn DirLock>> {
        self.run(OpKind::Lock, path, || self.disk.lock_shared(path))
    }
}

#[derive(Debug)]
struct FaultyFile {
    file: Arc<dyn File>,
    /// The same file again if it is a simulated one.
    sim: Option<Arc<SimFile>>,
    disk: FaultyDisk,
    path: PathBuf,
}

impl File for FaultyFile {
    fn len(&self) -> io::Result<u64> {
        self.disk.run(OpKind::Len, &self.path, || self.file.len())
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.disk.run(OpKind::Read, &self.path, || self.file.read_at(buf, position))
    }

    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        self.disk.run_write(OpKind::Write, &self.path, parts, |parts| self.file.write_at(parts, position))
    }

    fn sync(&self) -> io::Result<()> {
        let fail = || self.sim.iter().for_each(|sim| sim.fail_sync());
        self.disk.run_sync(OpKind::Sync, &self.path, || self.file.sync(), fail)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.disk.run(OpKind::SetLen, &self.path, || self.file.set_len(bytes))
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.disk.run(OpKind::Allocate, &self.path, || self.file.allocate(bytes))
    }

    fn map(&self, capacity: u64) -> io::Result<Arc<dyn Map>> {
        let map = self.disk.run(OpKind::Map, &self.path, || self.file.map(capacity))?;
        Ok(Arc::new(FaultyMap { map, disk: self.disk.clone(), path: self.path.clone() }))
    }

    fn writer(self: Arc<Self>, capacity: u64) -> io::Result<Box<dyn Writer>> {
        let writer = self.disk.run(OpKind::Writer, &self.path, || Arc::clone(&self.file).writer(capacity))?;
        Ok(Box::new(FaultyWriter { writer, disk: self.disk.clone(), path: self.path.clone() }))
    }
}

#[derive(Debug)]
struct FaultyMap {
    map: Arc<dyn Map>,
    disk: FaultyDisk,
    path: PathBuf,
}

impl Map for FaultyMap {
    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.disk.run(OpKind::MapBytes, &self.path, || self.map.bytes(range))
    }
}

#[derive(Debug)]
struct FaultyWriter {
    writer: Box<dyn Writer>,
    disk: FaultyDisk,
    path: PathBuf,
}

impl Writer for FaultyWriter {
    fn write_at(&mut self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let writer = &mut self.writer;
        self.disk.run_write(OpKind::WriterWrite, &self.path, parts, |parts| writer.write_at(parts, position))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rng::Rng;
    use crate::sim::CrashMode;

    fn path(name: &str) -> &Path {
        Path::new(name)
    }

    fn write(file: &dyn File, data: &[u8]) -> io::Result<()> {
        file.write_at(&[IoSlice::new(&data[..1]), IoSlice::new(&data[1..])], 0)
    }

    /// A durable file of 8 zeros at `/f`.
    fn faulty() -> (SimDisk, FaultyDisk, Arc<dyn File>) {
        let sim = SimDisk::new();
        sim.plant_file("/f", &[0; 8]).unwrap();
        let disk = FaultyDisk::over_sim(sim.clone());
        let file = disk.open(path("/f"), OpenMode::Write).unwrap();
        disk.forget_ops();
        (sim, disk, file)
    }

    fn code<T: fmt::Debug>(outcome: io::Result<T>) -> Option<i32> {
        outcome.unwrap_err().raw_os_error()
    }

    /// Uses everything a disk has, and stops at the first error.
    fn workload(disk: &FaultyDisk) -> io::Result<()> {
        disk.create_dir(path("/d"))?;
        disk.list(path("/d"))?;
        disk.free_bytes(path("/d"))?;
        let _lock = disk.lock(path("/d/lock"), "me")?;
        let file = disk.open(path("/d/a"), OpenMode::Create)?;
        file.allocate(4096)?;
        write(&*file, b"12345678")?;
        file.sync()?;
        Arc::clone(&file).writer(4096)?.write_at(&[IoSlice::new(b"abc")], 0)?;
        file.map(8)?.bytes(0..8)?;
        file.set_len(8)?;
        disk.sync_dir(path("/d"))?;
        disk.rename(path("/d/a"), path("/d/b"))?;
        disk.open(path("/d/b"), OpenMode::Read)?.read_at(&mut [0], 0)?;
        disk.open(path("/d/b"), OpenMode::Write)?.len()?;
        disk.remove(path("/d/b"))?;
        disk.create_dir(path("/d/e"))?;
        disk.remove_dir(path("/d/e"))
    }

    #[test]
    fn every_operation_of_a_workload_can_be_failed_in_turn() {
        let disk = FaultyDisk::over_sim(SimDisk::new());
        workload(&disk).unwrap();
        let ops = disk.ops();
        let kinds: std::collections::BTreeSet<_> = ops.iter().map(|op| op.kind).collect();
        assert_eq!(kinds.len(), 21, "every kind there is");
        assert_eq!(disk.fault_count(), 0);
        for (index, op) in ops.iter().enumerate() {
            let disk = FaultyDisk::over_sim(SimDisk::new());
            disk.fail(Fault::any(index as u64 + 1, EMFILE));
            assert_eq!(code(workload(&disk)), Some(EMFILE), "{op:?}");
            assert_eq!(disk.fault_count(), 1);
            let failed = disk.ops().pop().unwrap();
            assert_eq!((failed.kind, failed.path, failed.was_failed), (op.kind, op.path.clone(), true));
            // It failed once.
            let again = disk.run(op.kind, &op.path, || Ok(()));
            again.unwrap();
        }
    }

    #[test]
    fn a_fault_counts_its_kind_and_its_path_only() {
        let (_, disk, file) = faulty();
        disk.fail(Fault::of(OpKind::Write, 2, ENOSPC));
        disk.fail(Fault::any(1, EIO).below("/elsewhere"));
        file.len().unwrap();
        write(&*file, b"ab").unwrap();
        file.sync().unwrap();
        assert_eq!(code(write(&*file, b"cd")), Some(ENOSPC));
        write(&*file, b"ef").unwrap();
        assert_eq!(code(disk.list(path("/elsewhere/below"))), Some(EIO));
        assert_eq!(disk.op_count_of(OpKind::Write), 3);
        assert_eq!(disk.op_count(), 6);
    }

    #[test]
    fn a_fault_for_ever_ends_with_healing() {
        let (_, disk, file) = faulty();
        disk.fail(Fault::any(2, EIO).forever());
        file.len().unwrap();
        for _ in 0..3 {
            assert_eq!(code(file.len()), Some(EIO));
        }
        disk.heal();
        file.len().unwrap();
    }

    #[test]
    fn a_failed_write_does_nothing_a_part_or_everything() {
        for (effect, expected) in
            [(Effect::Nothing, b"\0\0\0\0"), (Effect::Prefix(2), b"ab\0\0"), (Effect::Whole, b"abcd")]
        {
            let (sim, disk, file) = faulty();
            disk.fail(Fault::of(OpKind::Write, 1, ENOSPC).after(effect));
            assert_eq!(code(write(&*file, b"abcd")), Some(ENOSPC));
            assert_eq!(sim.read_file("/f").unwrap()[..4], *expected, "{effect:?}");
        }
    }

    #[test]
    fn a_failed_removal_may_have_happened() {
        let (sim, disk, _) = faulty();
        disk.fail(Fault::of(OpKind::Remove, 1, EIO).after(Effect::Whole));
        assert_eq!(code(disk.remove(path("/f"))), Some(EIO));
        assert!(sim.files().is_empty());
    }

    #[test]
    fn a_later_sync_does_not_make_up_for_a_failed_one() {
        let (sim, disk, file) = faulty();
        write(&*file, b"abcdefgh").unwrap();
        disk.open(path("/g"), OpenMode::Create).unwrap();
        disk.fail(Fault::of(OpKind::Sync, 1, EIO));
        disk.fail(Fault::of(OpKind::SyncDir, 1, EIO));
        assert_eq!(code(file.sync()), Some(EIO));
        assert_eq!(code(disk.sync_dir(path("/"))), Some(EIO));
        file.sync().unwrap();
        disk.sync_dir(path("/")).unwrap();
        assert_eq!(sim.read_file("/f").unwrap(), b"abcdefgh");
        let left = sim.crash_with(CrashMode::LoseAll, &mut Rng::new(0));
        assert_eq!(left.read_file("/f").unwrap(), [0; 8]);
        assert_eq!(left.files().len(), 1);
    }
}
