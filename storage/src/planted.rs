//! Bugs that a test harness can plant, to prove that it would notice them.
//!
//! Without the feature `planted-bugs` every question here is answered `false` at compile time.

/// A bug of the engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Bug {
    /// None.
    None,
    /// A synced append is acknowledged before the sync.
    AcknowledgeBeforeSync,
    /// A failed sync counts as done.
    IgnoreSyncErrors,
    /// Directories are not synced.
    SkipDirectorySync,
    /// Checksums are not compared.
    SkipChecksums,
    /// Damage in the middle of the journal is cut off like a torn tail.
    TruncateOnRot,
    /// Conditions are checked before the writer lock is taken, and not again under it.
    CheckConditionsEarly,
    /// A key that is in memory is not forgotten when it is destroyed.
    KeepErasedKeys,
    /// Compaction takes a record whose payload was erased for a tombstone.
    EraseAsTombstones,
}

#[cfg(feature = "planted-bugs")]
mod switch {
    use std::sync::atomic::{AtomicU8, Ordering};

    static PLANTED: AtomicU8 = AtomicU8::new(0);

    /// Plants one bug for the whole process, or none.
    pub fn plant(bug: super::Bug) {
        PLANTED.store(bug as u8, Ordering::Relaxed);
    }

    pub(super) fn is(bug: super::Bug) -> bool {
        PLANTED.load(Ordering::Relaxed) == bug as u8
    }
}
#[cfg(feature = "planted-bugs")]
pub use switch::plant;

#[inline]
fn is(bug: Bug) -> bool {
    #[cfg(feature = "planted-bugs")]
    return switch::is(bug);
    #[cfg(not(feature = "planted-bugs"))]
    {
        let _ = bug;
        false
    }
}

#[inline]
pub(crate) fn acknowledges_before_sync() -> bool {
    is(Bug::AcknowledgeBeforeSync)
}
#[inline]
pub(crate) fn ignores_sync_errors() -> bool {
    is(Bug::IgnoreSyncErrors)
}
#[inline]
pub(crate) fn skips_directory_sync() -> bool {
    is(Bug::SkipDirectorySync)
}
#[inline]
pub(crate) fn skips_checksums() -> bool {
    is(Bug::SkipChecksums)
}
#[inline]
pub(crate) fn truncates_on_rot() -> bool {
    is(Bug::TruncateOnRot)
}
#[inline]
pub(crate) fn checks_conditions_early() -> bool {
    is(Bug::CheckConditionsEarly)
}
#[inline]
pub(crate) fn keeps_erased_keys() -> bool {
    is(Bug::KeepErasedKeys)
}
#[inline]
pub(crate) fn erases_as_tombstones() -> bool {
    is(Bug::EraseAsTombstones)
}
