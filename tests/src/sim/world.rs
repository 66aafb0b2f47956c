//! The state of a simulated disk: nodes, the names that lead to them, and what of it is durable.
//!
//! A directory entry and the file it names are separate things, each with its own earlier versions. A node is
//! forgotten when no entry names it, no entry that a power cut may bring back does, and no handle is open.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Range;
use std::path::{Component, Path, PathBuf};

use quipu_storage::disk::{Entry, EntryKind};

use super::content::{BLOCK_BYTES, Content};
use super::crash::{Dice, Versions};
use super::{SimDisk, errno};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct NodeId(u64);

const ROOT: NodeId = NodeId(0);

#[derive(Debug)]
pub(super) struct World {
    nodes: BTreeMap<NodeId, Node>,
    next_node: u64,
    locked: BTreeSet<NodeId>,
    /// How many share the lock of a file.
    shared_locks: BTreeMap<NodeId, usize>,
    pub(super) capacity_bytes: Option<u64>,
    pub(super) ops: u64,
    pub(super) halt_at: Option<u64>,
    off: bool,
    pub(super) crash_at: BTreeSet<u64>,
    pub(super) snapshots: Vec<(u64, SimDisk)>,
    /// Syncs that shall fail: of this node or of any file, and with which error of the operating system.
    pub(super) sync_failures: Vec<(Option<NodeId>, i32)>,
}

#[derive(Clone, Debug)]
struct Node {
    body: Body,
    /// Entries that name it now.
    links: u32,
    /// Entries that name it now or did in a version that a power cut may bring back.
    references: u32,
    handles: u32,
    has_writer: bool,
}

#[derive(Clone, Debug)]
enum Body {
    File(Content),
    Dir(Dir),
    Other,
}

#[derive(Clone, Debug, Default)]
struct Dir {
    entries: BTreeMap<String, NodeId>,
    unsynced: BTreeMap<String, Versions<Option<NodeId>>>,
}

impl World {
    pub(super) fn new() -> Self {
        let mut world = Self {
            nodes: BTreeMap::new(),
            next_node: 0,
            locked: BTreeSet::new(),
            shared_locks: BTreeMap::new(),
            capacity_bytes: None,
            ops: 0,
            halt_at: None,
            off: false,
            crash_at: BTreeSet::new(),
            snapshots: Vec::new(),
            sync_failures: Vec::new(),
        };
        let root = world.add_node(Body::Dir(Dir::default()));
        assert_eq!(root, ROOT);
        world.node_mut(root).links = 1;
        world.node_mut(root).references = 1;
        world
    }

    /// Begins an operation that changes something: gives it its number, unless the power is off by then.
    pub(super) fn begin(&mut self) -> io::Result<()> {
        self.check_power()?;
        let number = self.ops + 1;
        if self.crash_at.remove(&number) {
            let snapshot = SimDisk::from_world(self.after_kill());
            self.snapshots.push((number, snapshot));
        }
        if self.halt_at.is_some_and(|halt_at| number >= halt_at) {
            self.off = true;
            return self.check_power();
        }
        self.ops = number;
        Ok(())
    }

    /// Begins an operation that only looks.
    pub(super) fn check_power(&self) -> io::Result<()> {
        if self.off { Err(io::Error::other("power is off")) } else { Ok(()) }
    }

    // Names.

    pub(super) fn find(&self, path: &Path) -> io::Result<NodeId> {
        names(path)?.iter().try_fold(ROOT, |node, name| {
            self.dir(node)?.entries.get(*name).copied().ok_or_else(|| io::ErrorKind::NotFound.into())
        })
    }

    fn find_parent<'p>(&self, path: &'p Path) -> io::Result<(NodeId, &'p str)> {
        let names = names(path)?;
        let (name, parents) = names.split_last().ok_or(io::ErrorKind::InvalidInput)?;
        let parent = parents.iter().try_fold(ROOT, |node, name| {
            self.dir(node)?.entries.get(*name).copied().ok_or(io::Error::from(io::ErrorKind::NotFound))
        })?;
        self.dir(parent)?;
        Ok((parent, name))
    }

    pub(super) fn is_dir(&self, id: NodeId) -> bool {
        matches!(self.node(id).body, Body::Dir(_))
    }

    pub(super) fn create_dir(&mut self, path: &Path) -> io::Result<()> {
        if names(path)?.is_empty() {
            return Ok(());
        }
        let (parent, name) = self.find_parent(path)?;
        match self.dir(parent)?.entries.get(name) {
            Some(&id) if self.is_dir(id) => Ok(()),
            Some(_) => Err(io::ErrorKind::AlreadyExists.into()),
            None => {
                let id = self.add_node(Body::Dir(Dir::default()));
                self.set_entry(parent, name, Some(id));
                Ok(())
            }
        }
    }

    pub(super) fn create_file(&mut self, path: &Path) -> io::Result<NodeId> {
        self.create(path, Body::File(Content::default()))
    }

    pub(super) fn create_other(&mut self, path: &Path) -> io::Result<NodeId> {
        self.create(path, Body::Other)
    }

    fn create(&mut self, path: &Path, body: Body) -> io::Result<NodeId> {
        let (parent, name) = self.find_parent(path)?;
        if self.dir(parent)?.entries.contains_key(name) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let id = self.add_node(body);
        self.set_entry(parent, name, Some(id));
        Ok(id)
    }

    pub(super) fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let dir = self.dir(self.find(path)?)?;
        let kind = |id| match self.node(id).body {
            Body::File(_) => EntryKind::File,
            Body::Dir(_) => EntryKind::Dir,
            Body::Other => EntryKind::Other,
        };
        Ok(dir.entries.iter().map(|(name, &id)| Entry { name: name.clone(), kind: kind(id) }).collect())
    }

    pub(super) fn rename(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        let (from_parent, from_name) = self.find_parent(from)?;
        let (parent, to_name) = self.find_parent(to)?;
        if parent != from_parent {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a rename to another directory"));
        }
        let entries = &self.dir(parent)?.entries;
        let id = *entries.get(from_name).ok_or(io::ErrorKind::NotFound)?;
        if self.is_dir(id) || entries.get(to_name).is_some_and(|&id| self.is_dir(id)) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        if from_name != to_name {
            // No version of the target in between is "no file": a power cut finds the old or the new one.
            self.set_entry(parent, to_name, Some(id));
            self.set_entry(parent, from_name, None);
        }
        Ok(())
    }

    pub(super) fn remove(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.find_parent(path)?;
        let id = *self.dir(parent)?.entries.get(name).ok_or(io::ErrorKind::NotFound)?;
        if self.is_dir(id) {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        self.set_entry(parent, name, None);
        Ok(())
    }

    pub(super) fn remove_dir(&mut self, path: &Path) -> io::Result<()> {
        let (parent, name) = self.find_parent(path)?;
        let id = *self.dir(parent)?.entries.get(name).ok_or(io::ErrorKind::NotFound)?;
        if !self.dir(id)?.entries.is_empty() {
            return Err(io::ErrorKind::DirectoryNotEmpty.into());
        }
        self.set_entry(parent, name, None);
        Ok(())
    }

    /// D3. What a failed sync has covered stays as it is (D5).
    pub(super) fn sync_dir(&mut self, path: &Path) -> io::Result<()> {
        let id = self.find(path)?;
        self.dir(id)?;
        if let Some(error) = self.planned_failure(id) {
            self.fail_sync(id);
            return Err(error);
        }
        self.settle_entries(id, |_, versions| !versions.is_stuck());
        Ok(())
    }

    /// Makes one name durable, whatever happened to it: for what tests plant.
    pub(super) fn settle_entry(&mut self, path: &Path) -> io::Result<()> {
        let (parent, wanted) = self.find_parent(path)?;
        self.settle_entries(parent, |name, _| name == wanted);
        Ok(())
    }

    fn settle_entries(&mut self, dir: NodeId, settles: impl Fn(&str, &Versions<Option<NodeId>>) -> bool) {
        let Body::Dir(dir) = &mut self.node_mut(dir).body else { return };
        let mut gone = Vec::new();
        dir.unsynced.retain(|name, versions| {
            let settled = settles(name, versions);
            if settled {
                gone.extend(versions.earlier().iter().flatten());
            }
            !settled
        });
        gone.into_iter().for_each(|id| self.release(id));
    }

    // Files.

    /// The file that `path` names, with one more handle to it.
    pub(super) fn open(&mut self, path: &Path) -> io::Result<NodeId> {
        let id = self.find(path)?;
        self.content(id)?;
        self.add_handle(id);
        Ok(id)
    }

    pub(super) fn add_handle(&mut self, id: NodeId) {
        self.node_mut(id).handles += 1;
    }

    pub(super) fn close(&mut self, id: NodeId) {
        self.node_mut(id).handles -= 1;
        self.forget_if_unused(id);
    }

    pub(super) fn content(&self, id: NodeId) -> io::Result<&Content> {
        match &self.node(id).body {
            Body::File(content) => Ok(content),
            Body::Dir(_) | Body::Other => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
            }
        }
    }

    pub(super) fn content_mut(&mut self, id: NodeId) -> io::Result<&mut Content> {
        match &mut self.node_mut(id).body {
            Body::File(content) => Ok(content),
            Body::Dir(_) | Body::Other => {
                Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"))
            }
        }
    }

    /// Writes; on a full disk, as much as there is room for.
    pub(super) fn write(&mut self, id: NodeId, data: &[u8], position: u64) -> io::Result<()> {
        let range = byte_range(position, data.len() as u64)?;
        let fitting = self.fitting(id, range)?;
        let part = usize::try_from(fitting).map_or(data, |fitting| &data[..fitting]);
        self.content_mut(id)?.write(part, position);
        if part.len() == data.len() { Ok(()) } else { Err(errno::no_space()) }
    }

    /// Allocates; on a full disk, as much as there is room for.
    pub(super) fn allocate(&mut self, id: NodeId, bytes: u64) -> io::Result<()> {
        if bytes == 0 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let fitting = self.fitting(id, byte_range(0, bytes)?)?;
        self.content_mut(id)?.allocate(fitting);
        if fitting == bytes { Ok(()) } else { Err(errno::no_space()) }
    }

    /// How many bytes of `range` can be written before the disk is full.
    fn fitting(&self, id: NodeId, range: Range<u64>) -> io::Result<u64> {
        let content = self.content(id)?;
        let whole = range.end - range.start;
        if self.capacity_bytes.is_none() {
            return Ok(whole);
        }
        let missing = content.missing(range.clone());
        if missing == 0 {
            return Ok(whole);
        }
        Ok(content.fitting(range, self.free_bytes() / BLOCK_BYTES))
    }

    /// D1. Fails if a test wants it to.
    pub(super) fn sync(&mut self, id: NodeId) -> io::Result<()> {
        if let Some(error) = self.planned_failure(id) {
            self.fail_sync(id);
            return Err(error);
        }
        self.content_mut(id)?.sync();
        Ok(())
    }

    /// What a failed sync does to a file or directory: everything is clean, and not durable (D5).
    pub(super) fn fail_sync(&mut self, id: NodeId) {
        match &mut self.node_mut(id).body {
            Body::File(content) => content.fail_sync(),
            Body::Dir(dir) => dir.unsynced.values_mut().for_each(Versions::fail_sync),
            Body::Other => {}
        }
    }

    fn planned_failure(&mut self, id: NodeId) -> Option<io::Error> {
        let is_file = matches!(self.node(id).body, Body::File(_));
        let meant = |node: Option<NodeId>| node.map_or(is_file, |node| node == id);
        let index = self.sync_failures.iter().position(|(node, _)| meant(*node))?;
        let (_, error) = self.sync_failures.remove(index);
        Some(io::Error::from_raw_os_error(error))
    }

    /// Takes the right to write; false if somebody has it.
    pub(super) fn take_writer(&mut self, id: NodeId) -> bool {
        !std::mem::replace(&mut self.node_mut(id).has_writer, true)
    }

    pub(super) fn return_writer(&mut self, id: NodeId) {
        self.node_mut(id).has_writer = false;
    }

    pub(super) fn is_locked(&self, id: NodeId) -> bool {
        self.locked.contains(&id)
    }

    pub(super) fn has_shared_lock(&self, id: NodeId) -> bool {
        self.shared_locks.contains_key(&id)
    }

    pub(super) fn take_shared_lock(&mut self, id: NodeId) {
        *self.shared_locks.entry(id).or_default() += 1;
    }

    pub(super) fn return_shared_lock(&mut self, id: NodeId) {
        if let Some(count) = self.shared_locks.get_mut(&id) {
            *count -= 1;
            self.shared_locks.retain(|_, count| *count > 0);
        }
    }

    pub(super) fn take_lock(&mut self, id: NodeId) {
        self.locked.insert(id);
    }

    pub(super) fn return_lock(&mut self, id: NodeId) {
        self.locked.remove(&id);
    }

    // Space.

    /// Bytes in blocks of files that have a name or a handle.
    pub(super) fn used_bytes(&self) -> u64 {
        let blocks: u64 = self
            .nodes
            .values()
            .filter(|node| node.links > 0 || node.handles > 0)
            .map(|node| match &node.body {
                Body::File(content) => content.block_count(),
                Body::Dir(_) | Body::Other => 0,
            })
            .sum();
        blocks * BLOCK_BYTES
    }

    pub(super) fn free_bytes(&self) -> u64 {
        /// What a disk without a limit claims.
        const PLENTY_BYTES: u64 = 1 << 40;
        let free = self.capacity_bytes.unwrap_or(PLENTY_BYTES).saturating_sub(self.used_bytes());
        free / BLOCK_BYTES * BLOCK_BYTES
    }

    /// Every file below the root, with its length.
    pub(super) fn files(&self) -> BTreeMap<PathBuf, u64> {
        let mut files = BTreeMap::new();
        let mut rest = vec![(PathBuf::from("/"), ROOT)];
        while let Some((path, id)) = rest.pop() {
            match &self.node(id).body {
                Body::Dir(dir) => rest.extend(dir.entries.iter().map(|(name, &id)| (path.join(name), id))),
                Body::File(content) => {
                    files.insert(path, content.len());
                }
                Body::Other => {}
            }
        }
        files
    }

    #[cfg(test)]
    pub(super) fn node_count(&self) -> usize {
        self.nodes.len()
    }

    // Ends of the world.

    /// What is left when the process dies: everything, synced or not, but no handle and no lock.
    pub(super) fn after_kill(&self) -> Self {
        let mut nodes = self.nodes.clone();
        nodes.retain(|_, node| node.references > 0);
        for node in nodes.values_mut() {
            node.handles = 0;
            node.has_writer = false;
        }
        Self { nodes, next_node: self.next_node, capacity_bytes: self.capacity_bytes, ..Self::new() }
    }

    /// What is left when the power goes.
    pub(super) fn crash(&self, dice: &mut Dice<'_>) -> Self {
        let mut left = Self {
            nodes: BTreeMap::new(),
            next_node: self.next_node,
            capacity_bytes: self.capacity_bytes,
            ..Self::new()
        };
        let mut rest = vec![ROOT];
        while let Some(id) = rest.pop() {
            if let Some(node) = left.nodes.get_mut(&id) {
                // A second name, left over from a rename.
                node.links += 1;
                node.references += 1;
                continue;
            }
            dice.next_node();
            let body = match &self.node(id).body {
                Body::File(content) => Body::File(content.crash(dice)),
                Body::Dir(dir) => {
                    let dir = dir.crash(dice);
                    rest.extend(dir.entries.values());
                    Body::Dir(dir)
                }
                Body::Other => Body::Other,
            };
            left.nodes.insert(id, Node { body, links: 1, references: 1, handles: 0, has_writer: false });
        }
        left
    }

    // Nodes.

    fn add_node(&mut self, body: Body) -> NodeId {
        let id = NodeId(self.next_node);
        self.next_node += 1;
        self.nodes.insert(id, Node { body, links: 0, references: 0, handles: 0, has_writer: false });
        id
    }

    fn node(&self, id: NodeId) -> &Node {
        self.nodes.get(&id).expect("a node lives as long as something refers to it")
    }

    fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a node lives as long as something refers to it")
    }

    fn dir(&self, id: NodeId) -> io::Result<&Dir> {
        match &self.node(id).body {
            Body::Dir(dir) => Ok(dir),
            Body::File(_) | Body::Other => Err(io::ErrorKind::NotADirectory.into()),
        }
    }

    /// Changes what a name leads to, and remembers what it led to before.
    fn set_entry(&mut self, parent: NodeId, name: &str, to: Option<NodeId>) {
        if let Some(id) = to {
            let node = self.node_mut(id);
            node.links += 1;
            node.references += 1;
        }
        let Body::Dir(dir) = &mut self.node_mut(parent).body else { return };
        let from = match to {
            Some(id) => dir.entries.insert(name.to_owned(), id),
            None => dir.entries.remove(name),
        };
        let forgotten = match dir.unsynced.get_mut(name) {
            Some(versions) => versions.push(from).flatten(),
            None => {
                dir.unsynced.insert(name.to_owned(), Versions::new(from));
                None
            }
        };
        if let Some(id) = from {
            self.node_mut(id).links -= 1;
        }
        if let Some(id) = forgotten {
            self.release(id);
        }
    }

    fn release(&mut self, id: NodeId) {
        self.node_mut(id).references -= 1;
        self.forget_if_unused(id);
    }

    fn forget_if_unused(&mut self, id: NodeId) {
        let node = self.node(id);
        if node.references > 0 || node.handles > 0 {
            return;
        }
        if let Some(Node { body: Body::Dir(dir), .. }) = self.nodes.remove(&id) {
            for versions in dir.unsynced.values() {
                versions.earlier().iter().flatten().for_each(|&id| self.release(id));
            }
        }
    }
}

impl Dir {
    fn crash(&self, dice: &mut Dice<'_>) -> Self {
        let mut entries = self.entries.clone();
        for (name, versions) in &self.unsynced {
            match dice.pick(versions) {
                None => {}
                Some(Some(id)) => {
                    entries.insert(name.clone(), *id);
                }
                Some(None) => {
                    entries.remove(name);
                }
            }
        }
        Self { entries, unsynced: BTreeMap::new() }
    }
}

fn names(path: &Path) -> io::Result<Vec<&str>> {
    path.components()
        .filter_map(|component| match component {
            Component::RootDir | Component::CurDir => None,
            Component::Normal(name) => Some(name.to_str().ok_or(io::ErrorKind::InvalidInput.into())),
            Component::ParentDir | Component::Prefix(_) => Some(Err(io::ErrorKind::InvalidInput.into())),
        })
        .collect()
}

fn byte_range(position: u64, bytes: u64) -> io::Result<Range<u64>> {
    let end = position.checked_add(bytes).filter(|end| i64::try_from(*end).is_ok());
    Ok(position..end.ok_or(io::ErrorKind::FileTooLarge)?)
}
