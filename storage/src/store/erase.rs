//! The master key of a store, and destroying keys of it.
//!
//! The journal says which master key a store has, and how many of its keys were destroyed at least. So the store notices
//! another master key, and an old copy of its own, with which what was erased could be read again. The file comes first: a
//! crash in between is noticed when the store opens, and then the file is written once more before the journal has it.

use std::path::Path;

use super::{Store, StoreInner, Writer};
use crate::context::Context;
use crate::erasure::master_key::{ErasureReport, MasterKey, parent};
use crate::erasure::seal;
use crate::error::{Error, Result};
use crate::format::checkpoint::MasterKeyState;
use crate::format::frame::Change;

/// Opens the master key that a store is to be opened with, and compares it with what the store knows of it.
pub(super) fn open_master_key(
    context: &Context,
    path: &Path,
    create: bool,
    known: Option<MasterKeyState>,
) -> Result<()> {
    let refuse = |detail| Err(Error::MasterKeyRefused { path: path.into(), detail });
    let canonical = |path: &Path| {
        context.disk.canonical(path).map_err(|error| Error::io("find the directory of", path, error))
    };
    if canonical(parent(path))?.starts_with(canonical(&context.dir)?) {
        let detail =
            "it lies in the directory of the store, and would be in each backup of it; keep it elsewhere";
        return refuse(detail.into());
    }
    let master_key = MasterKey::open(&context.disk, path, create && known.is_none(), context.store)?;
    let found = state(&master_key);
    match known {
        Some(known) if known.uid != found.uid => {
            let (found, known) = (found.uid, known.uid);
            return refuse(format!("it is {found}, and the payloads of the store are sealed with {known}"));
        }
        Some(known) if known.destroyed > found.destroyed => {
            return refuse(format!(
                "it is an old copy, in which {} keys are destroyed of at least {}; restore a newer one",
                found.destroyed, known.destroyed
            ));
        }
        // What is sealed with it already, for whatever reason, is not to become unreadable.
        None if master_key.store() != context.store => {
            return refuse(format!(
                "it is that of store {}, and this one is {}; each store has a master key of its own",
                master_key.store(),
                context.store
            ));
        }
        _ => {}
    }
    assert!(context.master_key.set(master_key).is_ok(), "it is set once, when the store opens");
    Ok(())
}

impl Store {
    /// Destroys the keys of these names, at once and for good: every payload that was sealed with one of them, in this
    /// store and in every copy of it, reads as [`Redaction::Erased`](crate::Redaction::Erased) from now on, and no record
    /// can be appended with it any more. Keys that no record has named yet are destroyed like all others. When this
    /// returns, that survives a power cut.
    ///
    /// What is erased is the payload. Offsets, times, keys, types, tags and headers stay: have nothing in them that is to
    /// be erased. The sealed bytes go when the topic is [compacted](crate::Topic::compact).
    ///
    /// All keys of one call cost one writing of the master key, which has about 1.7 KiB for each that was ever destroyed;
    /// 100,000 can be.
    ///
    /// ```
    /// # use quipu_storage::{Record, Redaction, Start, Store};
    /// # fn main() -> quipu_storage::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// let builder = Store::builder().master_key(dir.path().join("master.key")).create_master_key(true);
    /// let store = builder.open(dir.path().join("store"))?;
    /// let orders = store.topic_or_create("orders")?;
    /// orders.append(&[Record::new("Ada, 12 Hill Road").with_erasure_key("customer-17")])?;
    /// store.erase(&["customer-17"])?;
    /// let record = orders.read(Start::Earliest)?.next().unwrap()?;
    /// assert_eq!((record.payload(), record.redacted()), (None, Some(Redaction::Erased)));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::MasterKeyMissing`]; [`Error::InvalidErasureKey`]; [`Error::TooManyErasedKeys`]. After these nothing was
    /// destroyed. After [`Error::Io`] and others the keys may or may not be: call it again.
    pub fn erase(&self, erasure_keys: &[&str]) -> Result<ErasureReport> {
        let inner = &self.handle.inner;
        let _working = inner.begin_work()?;
        erasure_keys.iter().try_for_each(|erasure_key| seal::check_name(erasure_key))?;
        let master_key = inner.context.master_key().ok_or(Error::MasterKeyMissing)?;
        let _one_at_a_time = master_key.lock_destroying();
        let report = master_key.erase(erasure_keys)?;
        inner.note_master_key(master_key)?;
        Ok(report)
    }

    /// Whether the key of this name was destroyed.
    ///
    /// # Errors
    /// [`Error::MasterKeyMissing`]: without it nobody knows.
    pub fn is_erased(&self, erasure_key: &str) -> Result<bool> {
        seal::check_name(erasure_key)?;
        let master_key = self.handle.inner.context.master_key().ok_or(Error::MasterKeyMissing)?;
        Ok(master_key.is_destroyed(erasure_key))
    }
}

impl StoreInner {
    /// Has the journal know what the master key says, if it does not.
    pub(super) fn settle_master_key(&self) -> Result<()> {
        let Some(master_key) = self.context.master_key() else { return Ok(()) };
        let known = self.writer().master_key;
        if known == Some(state(master_key)) {
            return Ok(());
        }
        let _one_at_a_time = master_key.lock_destroying();
        // Whoever wrote it may have been stopped before it was durable.
        master_key.settle()?;
        self.note_master_key(master_key)
    }

    /// To be called with destroying locked: what the master key says must be durable, and not move on meanwhile. A journal
    /// that is ahead of it would refuse it.
    fn note_master_key(&self, master_key: &MasterKey) -> Result<()> {
        let now = state(master_key);
        if self.writer().master_key == Some(now) {
            // Whoever noted it may have been told that it failed.
            return self.sync();
        }
        let apply = |writer: &mut Writer| {
            let before = writer.master_key.map_or(0, |before| before.destroyed);
            writer.master_key = Some(MasterKeyState { destroyed: before.max(now.destroyed), ..now });
        };
        self.change(|_| Ok(Change::MasterKey(now)), apply)
    }
}

fn state(master_key: &MasterKey) -> MasterKeyState {
    MasterKeyState { uid: master_key.uid(), destroyed: master_key.destroyed() }
}
