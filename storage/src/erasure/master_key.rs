//! The master key of an open store: a file outside of the store, and what it says in memory.
//!
//! A destruction:
//!
//! 1. Write what is left of the tree into a new file beside the old one, and sync it. If that fails nothing was destroyed.
//! 2. Rename it over the old one. From here on the keys are gone for this process, come what may.
//! 3. Sync the directory. If that fails, a power cut may bring the old file back: the call says so, and when it is made
//!    again everything is written once more.
//! 4. Overwrite the old file, which has no name any more, with zeros. A crash before that leaves its bytes on the raw disk.
//!
//! So there is one file at each moment, and a key is either in it or not.
//!
//! Promises:
//!
//! - K1 One process, and one store in it, has the file: a lock beside it. It names its store, so that no other one takes it
//!   over when that is closed: the other would not learn which keys are destroyed.
//! - K2 When [`erase`](MasterKey::erase) has returned, no key of it can be had in this process, and none from the file,
//!   also after a power cut.
//! - K3 A file that cannot be read is left as it is.
//! - K4 An old file is overwritten only after the new name is durable, and nothing is overwritten that may be the current one.

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use super::cache::Cache;
use super::crypto::{Crypto, Secret, wipe};
use super::tree::Tree;
use crate::context::{NamedFile, random};
use crate::disk::{DirLock, Disk, File, OpenMode};
use crate::error::{Error, Result};
use crate::format::master_key::{
    ERASED_KEYS_MAX, HEADER_BYTES, MasterKeyFile, NODE_BYTES, NODES_MAX, Node, Path, SEED_BYTES, STORE_BYTES,
};
use crate::format::{FORMAT_VERSION, HeaderProblem};
use crate::types::{Position, Uid};

/// No file of ours is longer.
const FILE_BYTES_MAX: u64 = (HEADER_BYTES + STORE_BYTES) as u64 + NODES_MAX * NODE_BYTES as u64;
/// How much is overwritten at once.
const WIPE_BYTES: usize = 64 << 10;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct MasterKey {
    crypto: Crypto,
    disk: Arc<dyn Disk>,
    path: PathBuf,
    uid: Uid,
    /// Whose it is: what is written of it says so.
    store: Uid,
    salt: [u8; 32],
    tree: RwLock<Tree>,
    cache: Mutex<Cache>,
    file: Mutex<MasterFile>,
    destroying: Mutex<()>,
}

/// The file, for one destruction after the other.
#[derive(Debug)]
struct MasterFile {
    current: NamedFile,
    /// Replaced, and not overwritten yet.
    old: Vec<NamedFile>,
    /// Whether a power cut may bring an old one back.
    is_unsettled: bool,
    lock: Option<Box<dyn DirLock>>,
}

/// What [`Store::erase`](crate::Store::erase) has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ErasureReport {
    /// Keys that were destroyed by this call.
    pub destroyed: u64,
    /// Keys that had been before.
    pub destroyed_before: u64,
    /// Whether the bytes of all master key files that this process has replaced were overwritten. If not, they may be found on
    /// the raw disk; as may those that a process had replaced which was killed right then.
    pub is_old_file_overwritten: bool,
}

impl MasterKey {
    /// Opens the file at `path`, or makes it if that is wanted and there is none. One that does not say whose it is becomes
    /// that of `store` when it is written next.
    pub(crate) fn open(disk: &Arc<dyn Disk>, path: &FilePath, create: bool, store: Uid) -> Result<Self> {
        let crypto = Crypto::new()?;
        let lock = lock(&**disk, path)?;
        remove_aside(&**disk, path)?;
        let found = match disk.open(path, OpenMode::Write) {
            Ok(file) => read(&(file, path.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && create => {
                let mut seed = random::<SEED_BYTES>()?;
                let nodes = vec![Node::root(seed)];
                wipe(&mut seed);
                let (uid, store) = (Uid(random()?), Some(store));
                let content = MasterKeyFile { uid, store, salt: random()?, nodes };
                let file = write_aside(&**disk, path, (uid, store), &content.salt, &content.nodes)?;
                put_in_place(&**disk, path)?;
                sync_parent(&**disk, path)?;
                (file, content)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let detail = "there is no such file; restore it, or have a new one made for a new store";
                return Err(Error::MasterKeyRefused { path: path.into(), detail: detail.into() });
            }
            Err(error) => return Err(Error::io("open master key", path, error)),
        };
        let (current, MasterKeyFile { uid, store: named, salt, nodes }) = found;
        Ok(Self {
            crypto,
            disk: Arc::clone(disk),
            path: path.into(),
            uid,
            store: named.unwrap_or(store),
            salt,
            tree: RwLock::new(Tree::new(crypto, nodes)),
            cache: Mutex::default(),
            file: Mutex::new(MasterFile { current, old: Vec::new(), is_unsettled: false, lock: Some(lock) }),
            destroying: Mutex::new(()),
        })
    }

    pub(crate) fn uid(&self) -> Uid {
        self.uid
    }

    /// The store that it is of.
    pub(crate) fn store(&self) -> Uid {
        self.store
    }

    /// A secret for the sums by which repeats of appends are known whose payloads are sealed: without it such a sum would
    /// let anybody with a copy of the store try out what an erased payload was.
    pub(crate) fn repeat_secret(&self) -> Uid {
        let hash = self.crypto.hash(&self.salt, b"repeats of appends");
        Uid(*hash.0.first_chunk().expect("a hash is longer"))
    }

    pub(crate) fn crypto(&self) -> Crypto {
        self.crypto
    }

    /// How many keys were destroyed.
    pub(crate) fn destroyed(&self) -> u64 {
        self.tree.read().expect("no panic under this lock").destroyed()
    }

    /// Whether the key of this name was destroyed.
    pub(crate) fn is_destroyed(&self, name: &str) -> bool {
        let leaf = Tree::leaf(self.crypto, &self.salt, name);
        !self.tree.read().expect("no panic under this lock").has(&leaf)
    }

    /// Uses the key of this name, unless it was destroyed. A destruction waits until that is done.
    pub(crate) fn with_key<T>(&self, name: &str, work: impl FnOnce(&Secret) -> T) -> Option<T> {
        let leaf = Tree::leaf(self.crypto, &self.salt, name);
        let tree = self.tree.read().expect("no panic under this lock");
        let cached = self.cache().find(&leaf);
        let key = match cached {
            Some(key) => key,
            None => {
                let key = Arc::new(tree.key(&leaf)?);
                self.cache().put(leaf, &key);
                key
            }
        };
        Some(work(&key))
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().expect("no panic under this lock")
    }

    /// While this is held nobody else destroys keys: what the file says is durable when [`erase`](Self::erase) has returned,
    /// and stays so until it is noted elsewhere.
    pub(crate) fn lock_destroying(&self) -> MutexGuard<'_, ()> {
        self.destroying.lock().expect("no panic under this lock")
    }

    /// Destroys the keys of these names, for good. See the [module](self).
    pub(crate) fn erase(&self, names: &[&str]) -> Result<ErasureReport> {
        let mut file = self.file.lock().expect("no panic under this lock");
        let leaves: BTreeSet<Path> =
            names.iter().map(|name| Tree::leaf(self.crypto, &self.salt, name)).collect();
        let (next, destroyed) = {
            let tree = self.tree.read().expect("no panic under this lock");
            let new: Vec<Path> = leaves.iter().filter(|leaf| tree.has(leaf)).copied().collect();
            if tree.destroyed().saturating_add(new.len() as u64) > ERASED_KEYS_MAX {
                return Err(Error::TooManyErasedKeys { path: self.path.clone(), limit: ERASED_KEYS_MAX });
            }
            (tree.without(&new), new.len() as u64)
        };
        let destroyed_before = leaves.len() as u64 - destroyed;
        if destroyed > 0 || file.is_unsettled {
            self.replace(&mut file, next)?;
        }
        file.old.retain(|old| overwrite(old).is_err());
        let is_old_file_overwritten = file.old.is_empty();
        Ok(ErasureReport { destroyed, destroyed_before, is_old_file_overwritten })
    }

    /// Writes the file once more, because it is not known whether what is there is durable.
    pub(crate) fn settle(&self) -> Result<()> {
        self.file.lock().expect("no panic under this lock").is_unsettled = true;
        self.erase(&[]).map(drop)
    }

    /// Steps 1 to 3.
    fn replace(&self, file: &mut MasterFile, next: Tree) -> Result<()> {
        let uids = (self.uid, Some(self.store));
        let new = write_aside(&*self.disk, &self.path, uids, &self.salt, next.nodes())?;
        // Whether it has happened when it is said to have failed is not known.
        file.is_unsettled = true;
        put_in_place(&*self.disk, &self.path)?;
        let old = std::mem::replace(&mut file.current, new);
        file.old.push(old);
        let replaced = {
            let mut tree = self.tree.write().expect("no panic under this lock");
            if !crate::planted::keeps_erased_keys() {
                self.cache().clear();
            }
            std::mem::replace(&mut *tree, next)
        };
        // Wiping a large one takes a while: nobody waits for that.
        drop(replaced);
        sync_parent(&*self.disk, &self.path)?;
        file.is_unsettled = false;
        Ok(())
    }

    /// Lets the file be opened by others. The keys stay: readers may go on.
    pub(crate) fn release(&self) {
        self.file.lock().expect("no panic under this lock").lock = None;
    }
}

fn lock(disk: &dyn Disk, path: &FilePath) -> Result<Box<dyn DirLock>> {
    let lock_path = beside(path, ".lock");
    let holder = format!("process {}", std::process::id());
    disk.lock(&lock_path, &holder).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => Error::MasterKeyRefused {
            path: path.into(),
            detail: format!("it is in use by {error}; each store has a master key of its own"),
        },
        _ => Error::io("lock", lock_path, error),
    })
}

/// The path with something behind its last name.
fn beside(path: &FilePath, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

fn aside(path: &FilePath) -> PathBuf {
    beside(path, ".new")
}

/// Removes what a destruction has left that was stopped.
fn remove_aside(disk: &dyn Disk, path: &FilePath) -> Result<()> {
    let aside = aside(path);
    let found = |path: &FilePath| match disk.open(path, OpenMode::Write) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("open", path, error)),
    };
    let Some(left) = found(&aside)? else { return Ok(()) };
    // Where a power cut may tear a rename apart, both names can lead to one file: to overwrite that would be to lose it.
    let is_same = match found(path)? {
        Some(current) => are_equal(&*left, &*current).map_err(|error| Error::io("read", &aside, error))?,
        None => false,
    };
    let left = (left, aside);
    if !is_same {
        let _ = overwrite(&left);
    }
    disk.remove(&left.1).map_err(|error| Error::io("remove", &left.1, error))
}

/// Whether two files have the same content.
fn are_equal(one: &dyn File, other: &dyn File) -> io::Result<bool> {
    let length = one.len()?;
    if other.len()? != length {
        return Ok(false);
    }
    let mut buffers = [vec![0; WIPE_BYTES], vec![0; WIPE_BYTES]];
    let [of_one, of_other] = &mut buffers;
    let mut compare = || {
        let mut position = 0;
        while position < length {
            let read = one.read_at(of_one, position)?;
            if read == 0 || other.read_at(&mut of_other[..read], position)? != read {
                return Ok(false);
            }
            if of_one[..read] != of_other[..read] {
                return Ok(false);
            }
            position += read as u64;
        }
        Ok(true)
    };
    let outcome = compare();
    buffers.iter_mut().for_each(|buffer| wipe(buffer));
    outcome
}

/// The whole file.
fn read(file: &NamedFile) -> Result<(NamedFile, MasterKeyFile)> {
    let (handle, path) = file;
    let corrupt = |position: usize, detail: &str| Error::CorruptFile {
        path: path.clone(),
        position: Position(position as u64),
        detail: format!("{detail}; restore the master key from its newest copy"),
    };
    let failed = |error| Error::io("read master key", path, error);
    let length = handle.len().map_err(failed)?;
    if length > FILE_BYTES_MAX {
        return Err(corrupt(0, "it is longer than any master key"));
    }
    let mut bytes = vec![0; usize::try_from(length).expect("checked against the limit")];
    let read = handle.read_at(&mut bytes, 0).map_err(failed)?;
    let decoded = MasterKeyFile::decode(&bytes[..read]);
    wipe(&mut bytes);
    match decoded {
        Ok(content) => Ok((file.clone(), content)),
        Err(HeaderProblem::Newer(found)) => {
            Err(Error::NewerFormat { path: path.clone(), found, supported: u32::from(FORMAT_VERSION) })
        }
        Err(HeaderProblem::Blank) => Err(corrupt(0, "it is blank")),
        Err(HeaderProblem::Invalid(invalid)) => Err(corrupt(invalid.position, invalid.detail)),
    }
}

/// Step 1.
fn write_aside(
    disk: &dyn Disk,
    path: &FilePath,
    (uid, store): (Uid, Option<Uid>),
    salt: &[u8; 32],
    nodes: &[Node],
) -> Result<NamedFile> {
    let aside = aside(path);
    let write = || {
        // One that could not be put in place has keys that may be destroyed by now.
        match disk.open(&aside, OpenMode::Write) {
            Ok(left) => {
                let _ = overwrite(&(left, aside.clone()));
                disk.remove(&aside)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        let file = disk.open(&aside, OpenMode::Create)?;
        let mut bytes = MasterKeyFile::encode(uid, store, salt, nodes);
        let written = file.write_at(&[IoSlice::new(&bytes)], 0).and_then(|()| file.sync());
        wipe(&mut bytes);
        written.map(|()| file)
    };
    match write() {
        Ok(file) => Ok((file, path.into())),
        Err(error) => {
            // If this fails the next one removes it.
            let _ = disk.remove(&aside);
            Err(Error::io("write master key", &aside, error))
        }
    }
}

/// Step 2.
fn put_in_place(disk: &dyn Disk, path: &FilePath) -> Result<()> {
    disk.rename(&aside(path), path).map_err(|error| Error::io("rename master key", path, error))
}

/// Step 3.
fn sync_parent(disk: &dyn Disk, path: &FilePath) -> Result<()> {
    let parent = parent(path);
    if crate::planted::skips_directory_sync() {
        return Ok(());
    }
    disk.sync_dir(parent).map_err(|error| Error::io("sync directory", parent, error))
}

pub(crate) fn parent(path: &FilePath) -> &FilePath {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => FilePath::new("."),
    }
}

/// Step 4. As often as not it reaches the blocks that the file lies in; see `docs/erasure.md` for when it does not.
fn overwrite((file, _): &NamedFile) -> io::Result<()> {
    let zeros = [0; WIPE_BYTES];
    let length = file.len()?;
    let mut position = 0;
    while position < length {
        let bytes = WIPE_BYTES.min(usize::try_from(length - position).unwrap_or(WIPE_BYTES));
        file.write_at(&[IoSlice::new(&zeros[..bytes])], position)?;
        position += bytes as u64;
    }
    file.sync()
}
