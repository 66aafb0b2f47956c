//! Bugs planted on purpose: a harness that stays green on one of them proves nothing.
//!
//! A bug is planted for the whole process, so they are tried one after the other. Each must be found within a small part
//! of what the harness goes through in its own test; without a bug nobody may complain of that part.
//!
//! Planted bugs are also in `power_cuts.rs`, `real_disk.rs` and `kills.rs`, and those that only damage shows in `rot_planted.rs`.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use quipu_storage::Codec;
use quipu_storage::disk::Disk;
use quipu_storage::planted::{Bug, plant};
use quipu_tests::bare_log;
use quipu_tests::histories::play::history;
use quipu_tests::lying::{Lie, LyingDisk};
use quipu_tests::model::Check;
use quipu_tests::model::run::{honest, sequence};
use quipu_tests::sim::SimDisk;
use quipu_tests::workload::Scenario;
use quipu_tests::{compaction_crash, crash_points, faults, read_only, recovery_faults};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// The bug, until this is dropped.
struct Planted(#[expect(dead_code, reason = "held until the bug is gone")] MutexGuard<'static, ()>);

impl Planted {
    fn new(bug: Bug) -> Self {
        let guard = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        plant(bug);
        Self(guard)
    }
}

impl Drop for Planted {
    fn drop(&mut self) {
        plant(Bug::None);
    }
}

/// Whether the harness complains; a panic is a complaint.
fn is_red<T>(harness: impl FnOnce() -> Check<T>) -> bool {
    match catch_unwind(AssertUnwindSafe(harness)) {
        Ok(Ok(_)) => false,
        Ok(Err(complaint)) => {
            eprintln!("{complaint:.300}");
            true
        }
        Err(_) => true,
    }
}

/// Random sequences that each bug has to be found in.
const SEQUENCES: u64 = 200;
/// The part of all crash points, and of all faults, that each bug has to be found in: one in so many.
const SHARE: u64 = 16;

fn model_is_red(wrap: fn(SimDisk) -> Arc<dyn Disk>) -> bool {
    is_red(|| (0..SEQUENCES).try_for_each(|seed| sequence(seed, wrap).map(drop)))
}

/// No order explains one of them; threads need more of them to meet in than a sequence does.
fn histories_are_red() -> bool {
    is_red(|| (0..4 * SEQUENCES).try_for_each(|seed| history(seed).map(drop)))
}

fn crash_points_are_red(wrap: fn(SimDisk) -> Arc<dyn Disk>) -> bool {
    is_red(|| crash_points::run(wrap, 1, 1000, (0, SHARE)))
}

fn faults_are_red(wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>) -> bool {
    is_red(|| faults::run(wrap, (0, SHARE)))
}

fn recovery_faults_are_red() -> bool {
    is_red(|| recovery_faults::run((0, 12)))
}

/// Whether one that panics complains.
fn panics<T>(harness: impl FnOnce() -> T) -> bool {
    is_red(|| Ok(harness()))
}

fn compaction_cuts_are_red(wrap: fn(SimDisk) -> Arc<dyn Disk>) -> bool {
    panics(|| compaction_crash::sweep(wrap, Codec::None, &[("compact", compaction_crash::compact)], 3))
}

fn compaction_faults_are_red(wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>) -> bool {
    panics(|| compaction_crash::fail_each_operation(wrap, 1))
}

fn readers_are_red(wrap: fn(SimDisk) -> Arc<dyn Disk>) -> bool {
    panics(|| read_only::sweep(wrap, 21))
}

fn log_cuts_are_red(wrap: fn(SimDisk) -> Arc<dyn Disk>) -> bool {
    let cuts = bare_log::cuts::record(wrap, 1);
    // Only what it did before is in question: who looks may not be at fault.
    plant(Bug::None);
    panics(|| bare_log::cuts::check_each(1, &cuts))
}

fn log_recovery_cuts_are_red(wrap: fn(SimDisk) -> Arc<dyn Disk>) -> bool {
    panics(|| bare_log::cuts::run_twice(wrap, 20..=20))
}

fn log_faults_are_red(wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>) -> bool {
    panics(|| bare_log::faults::run(wrap, (0, 4)))
}

fn log_recovery_faults_are_red(wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>) -> bool {
    panics(|| bare_log::faults::run_recovery(wrap, 3))
}

fn log_rot_is_red() -> bool {
    panics(|| bare_log::rot::flip_bits(100))
}

fn log_rot_that_is_named_is_red() -> bool {
    panics(bare_log::rot::a_bad_batch_that_was_synced_is_refused)
}

fn syncs_of_threads_are_red() -> bool {
    is_red(|| faults::fail_each_sync(Scenario::Checkpoint))
}

fn lies_about_syncs(sim: SimDisk) -> Arc<dyn Disk> {
    Arc::new(LyingDisk::new(Arc::new(sim), Lie::SyncDoesNothing))
}

fn lies_about_directories(sim: SimDisk) -> Arc<dyn Disk> {
    Arc::new(LyingDisk::new(Arc::new(sim), Lie::SyncDirDoesNothing))
}

fn swallows_errors(disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
    Arc::new(LyingDisk::new(disk, Lie::SyncErrorSwallowed))
}

#[test]
fn without_a_bug_nobody_complains() {
    let _planted = Planted::new(Bug::None);
    assert!(!model_is_red(honest));
    assert!(!histories_are_red());
    assert!(!crash_points_are_red(honest));
    assert!(!faults_are_red(faults::honest));
    assert!(!syncs_of_threads_are_red());
    assert!(!recovery_faults_are_red());
    assert!(!compaction_cuts_are_red(honest));
    assert!(!compaction_faults_are_red(faults::honest));
    assert!(!readers_are_red(honest));
    assert!(!log_cuts_are_red(honest));
    assert!(!log_recovery_cuts_are_red(honest));
    assert!(!log_faults_are_red(faults::honest));
    assert!(!log_recovery_faults_are_red(faults::honest));
    assert!(!log_rot_is_red());
    assert!(!log_rot_that_is_named_is_red());
}

#[test]
fn an_acknowledgement_before_the_sync_is_noticed() {
    let _planted = Planted::new(Bug::AcknowledgeBeforeSync);
    assert!(model_is_red(honest));
    assert!(histories_are_red());
    assert!(crash_points_are_red(honest));
    assert!(log_cuts_are_red(honest));
}

#[test]
fn a_condition_that_is_not_checked_again_under_the_lock_is_noticed() {
    let _planted = Planted::new(Bug::CheckConditionsEarly);
    assert!(histories_are_red());
}

#[test]
fn a_key_that_outlives_its_destruction_in_memory_is_noticed() {
    let _planted = Planted::new(Bug::KeepErasedKeys);
    assert!(model_is_red(honest));
}

#[test]
fn an_erased_record_that_is_taken_for_a_tombstone_is_noticed() {
    let _planted = Planted::new(Bug::EraseAsTombstones);
    assert!(model_is_red(honest));
}

#[test]
fn a_sync_error_that_is_ignored_is_noticed() {
    let _planted = Planted::new(Bug::IgnoreSyncErrors);
    assert!(faults_are_red(faults::honest));
    assert!(syncs_of_threads_are_red());
    assert!(recovery_faults_are_red());
    assert!(compaction_faults_are_red(faults::honest));
    assert!(log_faults_are_red(faults::honest));
    assert!(log_recovery_faults_are_red(faults::honest));
}

#[test]
fn a_directory_that_is_not_synced_is_noticed() {
    let _planted = Planted::new(Bug::SkipDirectorySync);
    assert!(model_is_red(honest));
    assert!(crash_points_are_red(honest));
    assert!(compaction_cuts_are_red(honest));
    assert!(readers_are_red(honest));
    assert!(log_cuts_are_red(honest));
}

#[test]
fn a_checksum_that_is_not_compared_is_noticed_in_the_bare_log() {
    let _planted = Planted::new(Bug::SkipChecksums);
    assert!(log_rot_is_red());
    assert!(log_rot_that_is_named_is_red());
}

#[test]
fn rot_that_is_cut_off_like_a_torn_tail_is_noticed_in_the_bare_log() {
    let _planted = Planted::new(Bug::TruncateOnRot);
    assert!(log_rot_is_red());
    assert!(log_rot_that_is_named_is_red());
}

#[test]
fn a_disk_that_lies_is_noticed() {
    let _planted = Planted::new(Bug::None);
    assert!(model_is_red(lies_about_syncs));
    assert!(model_is_red(lies_about_directories));
    assert!(crash_points_are_red(lies_about_syncs));
    assert!(crash_points_are_red(lies_about_directories));
    assert!(faults_are_red(swallows_errors));
    assert!(compaction_cuts_are_red(lies_about_syncs));
    assert!(compaction_cuts_are_red(lies_about_directories));
    assert!(compaction_faults_are_red(swallows_errors));
    assert!(readers_are_red(lies_about_syncs));
    assert!(readers_are_red(lies_about_directories));
    assert!(log_cuts_are_red(lies_about_syncs));
    assert!(log_cuts_are_red(lies_about_directories));
    assert!(log_recovery_cuts_are_red(lies_about_syncs));
    assert!(log_faults_are_red(swallows_errors));
    assert!(log_recovery_faults_are_red(swallows_errors));
}
