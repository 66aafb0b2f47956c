//! A disk whose reads of segments, or whose syncs, stall for as long as a test wants, and which is full or fails syncs when
//! it wants.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

use bytes::Bytes;
use quipu_storage::disk::{DirLock, Disk, Entry, File, Map, OpenMode, OsDisk, Writer};
use quipu_storage::{Store, StoreBuilder};

use crate::common::PATIENCE;

/// The directory with the master key is called so.
const KEYS: &str = "keys";

/// A store on such a disk with a new master key, the directory of which, in `dir`, its `key_gate` is about.
pub(crate) fn sealing(disk: Arc<StallingDisk>, dir: &Path) -> StoreBuilder {
    let keys = dir.join(KEYS);
    std::fs::create_dir(&keys).unwrap();
    Store::builder().disk(disk).master_key(keys.join("master.key")).create_master_key(true)
}

/// Whether reads, or syncs, go through, and how many wait.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<(bool, usize)>,
    changed: Condvar,
    fails_syncs: AtomicBool,
    is_full: AtomicBool,
    timed_out: AtomicBool,
}

impl Gate {
    pub(crate) fn close(&self) {
        self.state.lock().unwrap().0 = true;
    }

    pub(crate) fn open(&self) {
        self.state.lock().unwrap().0 = false;
        self.changed.notify_all();
    }

    pub(crate) fn fail_syncs(&self) {
        self.fails_syncs.store(true, Ordering::Release);
    }

    pub(crate) fn heal(&self) {
        self.fails_syncs.store(false, Ordering::Release);
    }

    /// There is no room for another file, nor for more in the segments.
    pub(crate) fn fill(&self) {
        self.is_full.store(true, Ordering::Release);
    }

    /// Whether a read waited longer than any test wants.
    pub(crate) fn has_timed_out(&self) -> bool {
        self.timed_out.load(Ordering::Acquire)
    }

    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().unwrap().1
    }

    fn check_sync(&self) -> io::Result<()> {
        let fails = self.fails_syncs.load(Ordering::Acquire);
        if fails { Err(io::Error::other("the test wants it so")) } else { Ok(()) }
    }

    fn pass(&self) {
        let mut state = self.state.lock().unwrap();
        state.1 += 1;
        while state.0 {
            // Whoever waits on the thread of the test itself would wait for ever: then the test is to fail.
            let (after, timeout) = self.changed.wait_timeout(state, PATIENCE).unwrap();
            state = after;
            if timeout.timed_out() {
                self.timed_out.store(true, Ordering::Release);
                state.0 = false;
            }
        }
        state.1 -= 1;
    }
}

#[derive(Debug, Default)]
pub(crate) struct StallingDisk {
    disk: OsDisk,
    pub(crate) gate: Arc<Gate>,
    /// For syncs of files.
    pub(crate) sync_gate: Arc<Gate>,
    /// For syncs of the directory with the master key, and whether they fail.
    pub(crate) key_gate: Arc<Gate>,
}

#[derive(Debug)]
struct StallingFile {
    file: Arc<dyn File>,
    gate: Arc<Gate>,
    sync_gate: Arc<Gate>,
    is_segment: bool,
}

#[derive(Debug)]
struct StallingMap {
    map: Arc<dyn Map>,
    gate: Arc<Gate>,
}

impl Disk for StallingDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.disk.list(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let is_segment = path.components().any(|part| part.as_os_str() == "topics");
        Ok(Arc::new(StallingFile {
            file: self.disk.open(path, mode)?,
            gate: Arc::clone(&self.gate),
            sync_gate: Arc::clone(&self.sync_gate),
            is_segment,
        }))
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
        if path.ends_with(KEYS) {
            self.key_gate.pass();
            self.key_gate.check_sync()?;
        }
        self.disk.sync_dir(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        self.disk.free_bytes(path)
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn DirLock>> {
        self.disk.lock(path, holder)
    }
}

impl File for StallingFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        if self.is_segment {
            self.gate.pass();
        }
        self.file.read_at(buf, position)
    }

    fn write_at(&self, parts: &[io::IoSlice<'_>], position: u64) -> io::Result<()> {
        if self.is_segment && self.gate.is_full.load(Ordering::Acquire) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.file.write_at(parts, position)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_gate.pass();
        self.gate.check_sync()?;
        self.file.sync()
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        if self.gate.is_full.load(Ordering::Acquire) {
            return Err(io::Error::from(io::ErrorKind::StorageFull));
        }
        self.file.allocate(bytes)
    }

    fn map(&self, capacity: u64) -> io::Result<Arc<dyn Map>> {
        let map = self.file.map(capacity)?;
        Ok(if self.is_segment { Arc::new(StallingMap { map, gate: Arc::clone(&self.gate) }) } else { map })
    }

    fn writer(self: Arc<Self>, capacity: u64) -> io::Result<Box<dyn Writer>> {
        Arc::clone(&self.file).writer(capacity)
    }
}

impl Map for StallingMap {
    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        self.gate.pass();
        self.map.bytes(range)
    }
}
