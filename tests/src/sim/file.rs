//! Open files of the simulated disk, their maps and writers, and held locks.

use std::fmt;
use std::io::{self, IoSlice};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use quipu_storage::disk::{DirLock, File, Map, Writer};

use super::world::{NodeId, World};
use super::{SimDisk, errno};

/// Keeps a node of a disk alive, named or not.
struct Handle {
    disk: SimDisk,
    node: NodeId,
}

impl Handle {
    fn read<T>(&self, look: impl FnOnce(&World) -> io::Result<T>) -> io::Result<T> {
        let world = self.disk.world();
        world.check_power()?;
        look(&world)
    }

    fn change<T>(&self, change: impl FnOnce(&mut World) -> io::Result<T>) -> io::Result<T> {
        let mut world = self.disk.world();
        world.begin()?;
        change(&mut world)
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.disk.world().close(self.node);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.node.fmt(f)
    }
}

/// An open file of a [`SimDisk`].
#[derive(Debug)]
pub struct SimFile {
    handle: Arc<Handle>,
    is_writable: bool,
    had_writer: AtomicBool,
}

impl SimFile {
    /// For a node whose handle has been counted already.
    pub(super) fn new(disk: SimDisk, node: NodeId, is_writable: bool) -> Self {
        Self { handle: Arc::new(Handle { disk, node }), is_writable, had_writer: AtomicBool::new(false) }
    }

    /// What a failed sync leaves: reads show what was written, the disk may have any of it, and a later sync
    /// that says `Ok` changes nothing about that (D5).
    pub fn fail_sync(&self) {
        self.handle.disk.world().fail_sync(self.handle.node);
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.is_writable { Ok(()) } else { Err(errno::bad_descriptor()) }
    }
}

impl File for SimFile {
    fn len(&self) -> io::Result<u64> {
        self.handle.read(|world| Ok(world.content(self.handle.node)?.len()))
    }

    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.handle.read(|world| Ok(world.content(self.handle.node)?.read(buf, position)))
    }

    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        self.handle.change(|world| {
            self.check_writable()?;
            world.write(self.handle.node, &joined(parts), position)
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.handle.change(|world| world.sync(self.handle.node))
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.handle.change(|world| {
            self.check_writable()?;
            if i64::try_from(bytes).is_err() {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            world.content_mut(self.handle.node)?.set_len(bytes);
            Ok(())
        })
    }

    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.handle.change(|world| {
            self.check_writable()?;
            world.allocate(self.handle.node, bytes)
        })
    }

    fn map(&self, capacity: u64) -> io::Result<Arc<dyn Map>> {
        self.handle.read(|_| Ok(()))?;
        Ok(Arc::new(SimMap { handle: Arc::clone(&self.handle), capacity }))
    }

    /// Stricter than the real disk: every byte of the capacity must be allocated, and another handle of the
    /// same file counts as well.
    fn writer(self: Arc<Self>, capacity: u64) -> io::Result<Box<dyn Writer>> {
        let mut world = self.handle.disk.world();
        world.check_power()?;
        self.check_writable()?;
        let content = world.content(self.handle.node)?;
        if content.len() < capacity || content.missing(0..capacity) > 0 {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the writer's capacity is not allocated",
            ));
        }
        if self.had_writer.load(Ordering::Relaxed) || !world.take_writer(self.handle.node) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "the file has a writer already"));
        }
        // Ordered by the world's mutex, which is held.
        self.had_writer.store(true, Ordering::Relaxed);
        drop(world);
        Ok(Box::new(SimWriter { handle: Arc::clone(&self.handle), capacity }))
    }
}

#[derive(Debug)]
struct SimMap {
    handle: Arc<Handle>,
    capacity: u64,
}

impl Map for SimMap {
    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > self.capacity {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "range beyond the map"));
        }
        self.handle.read(|world| {
            let content = world.content(self.handle.node)?;
            if range.is_empty() {
                return Ok(Bytes::new());
            }
            if range.end > content.len() {
                return Err(io::Error::other("a mapped page behind the end of the file"));
            }
            let count = usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::InvalidInput)?;
            let mut bytes = vec![0; count];
            content.read(&mut bytes, range.start);
            Ok(bytes.into())
        })
    }
}

#[derive(Debug)]
struct SimWriter {
    handle: Arc<Handle>,
    capacity: u64,
}

impl Writer for SimWriter {
    fn write_at(&mut self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        let data = joined(parts);
        self.handle.change(|world| {
            if position.checked_add(data.len() as u64).is_none_or(|end| end > self.capacity) {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "write beyond the map"));
            }
            world.write(self.handle.node, &data, position)
        })
    }
}

impl Drop for SimWriter {
    fn drop(&mut self) {
        self.handle.disk.world().return_writer(self.handle.node);
    }
}

/// Holds a lock of a [`SimDisk`] until it is dropped.
#[derive(Debug)]
pub(super) struct SimLock {
    handle: Handle,
    is_shared: bool,
}

impl SimLock {
    /// For a node whose handle and lock have been taken already.
    pub(super) fn new(disk: SimDisk, node: NodeId, is_shared: bool) -> Self {
        Self { handle: Handle { disk, node }, is_shared }
    }
}

impl DirLock for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut world = self.handle.disk.world();
        if self.is_shared {
            world.return_shared_lock(self.handle.node);
        } else {
            world.return_lock(self.handle.node);
        }
    }
}

fn joined(parts: &[IoSlice<'_>]) -> Vec<u8> {
    let mut data = Vec::with_capacity(parts.iter().map(|part| part.len()).sum());
    parts.iter().for_each(|part| data.extend_from_slice(part));
    data
}
