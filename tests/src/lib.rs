//! Disks to test the engine on.
//!
//! - [`sim::SimDisk`] keeps everything in memory and can lose power: what comes back is any state that the
//!   promises of [`quipu_storage::disk`] allow, which is more than a real file system would do.
//! - [`faulty::FaultyDisk`] counts and records every operation of the disk below it, and fails chosen ones.
//! - [`lying::LyingDisk`] breaks a promise on purpose, so that a harness can prove that it would notice.
//! - [`meeting::MeetingDisk`] has something done just before an operation, so that two threads meet without waiting.
//! - [`golden`] has two small stores with fixed bytes: the golden files of the format.
//!
//! And what runs on real ones: [`workload`] drives a store, says what was acknowledged, and checks it afterwards.
//!
//! And what is done with them:
//!
//! - [`model`] holds the store against a plain model, in random sequences with closes, kills and power cuts.
//! - [`histories`] looks whether what concurrent callers are told can be explained.
//! - [`crash_points`] ends a script before each operation of the disk, and its recovery before each of its own.
//! - [`faults`] fails each operation of the disk once, in each way.
//! - [`recovery_faults`] fails each operation of a recovery once.
//! - [`rot`] flips every bit of a small store.
//! - [`compaction_crash`] ends compaction before each operation, or fails it.
//! - [`read_only`] looks what readers in other processes are shown.
//! - [`bare_log`] does such things to the log that has no store.
//!
//! All chance comes from a seeded [`rng::Rng`]: a failing test prints its seed and is repeated by it.
#![forbid(unsafe_code)]

pub mod bare_log;
pub mod compaction_crash;
pub mod crash_points;
pub mod faults;
pub mod faulty;
pub mod golden;
pub mod histories;
pub mod lying;
pub mod meeting;
pub mod model;
pub mod read_only;
pub mod recovery_faults;
pub mod rng;
pub mod rot;
pub mod sim;
pub mod workload;
