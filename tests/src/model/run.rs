//! Random sequences of operations on a store, each held against the model.
//!
//! A sequence is made by its seed alone. It begins with an empty disk, and now and then the store is closed, killed or
//! loses its power, and is opened again on what the disk has left.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::sync::Arc;

use quipu_storage::disk::Disk;
use quipu_storage::{Cursor, Store, StoreBuilder, StoreSettings, Ticket, Uid, Visibility};

use super::compaction::Chance;
use super::conditions::Conditions;
use super::erasure::Erasing;
use super::repeats::Naming;
use super::snapshots::Snapshots;
use super::{Check, Ending, Model, TestClock, verify};
use crate::ensure;
use crate::rng::Rng;
use crate::sim::{CrashMode, SimDisk};

/// Where the store lies on the simulated disk.
pub const STORE: &str = "/store";
/// And its master key, in a sequence with erasure.
pub(super) const MASTER_KEY: &str = "/master.key";

/// What happened in one sequence or many: a run in which too little did has proved nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    /// Operations.
    pub operations: u64,
    /// Appends acknowledged as synced.
    pub synced: u64,
    /// Appends acknowledged as written.
    pub written: u64,
    /// Appends over more than one topic.
    pub groups: u64,
    /// Tickets waited for.
    pub tickets: u64,
    /// Segments begun.
    pub segments: u64,
    /// Journal files used again or anew.
    pub journal_rolls: u64,
    /// Checkpoints, asked for or not.
    pub checkpoints: u64,
    /// Clean reopenings.
    pub closes: u64,
    /// Kills.
    pub kills: u64,
    /// Power cuts.
    pub power_cuts: u64,
    /// Power cuts that took something that was written only.
    pub cuts_with_loss: u64,
    /// Openings that found a torn end.
    pub torn: u64,
    /// Openings that wrote something once more.
    pub in_doubt: u64,
    /// Trims.
    pub trims: u64,
    /// What retention removed, by topic.
    pub retained: u64,
    /// Sequences in which compaction took something out.
    pub compacting: u64,
    /// Runs of compaction that replaced segments.
    pub compactions: u64,
    /// Records that they took out.
    pub compacted: u64,
    /// Of these, tombstones that had become old enough.
    pub tombstones: u64,
    /// Runs of compaction that only looked.
    pub dry_runs: u64,
    /// Topics created.
    pub created: u64,
    /// Topics deleted.
    pub deleted: u64,
    /// Topics altered.
    pub altered: u64,
    /// Batches read by cursors that were kept over several operations.
    pub kept_reads: u64,
    /// Reads of any kind.
    pub reads: u64,
    /// Appends under a name.
    pub named: u64,
    /// Appends that were repeated.
    pub repeats: u64,
    /// Producers that were forgotten.
    pub forgotten: u64,
    /// Appends of an earlier epoch, all refused.
    pub fenced: u64,
    /// Appends that left a sequence out, all refused.
    pub gaps: u64,
    /// Other records under a name that was given, all refused.
    pub reused: u64,
    /// Repeats of appends whose answers are not kept any more.
    pub long_ago: u64,
    /// Snapshots that were put.
    pub snapshots: u64,
    /// Snapshots that were found.
    pub snapshots_found: u64,
    /// Appends whose conditions all held.
    pub conditions_held: u64,
    /// Appends of which some did not.
    pub conditions_failed: u64,
    /// Appends with a condition that asked about trimmed records.
    pub conditions_trimmed: u64,
    /// Destructions of erasure keys.
    pub erasures: u64,
    /// Destructions within which the process died.
    pub erasures_cut_off: u64,
    /// Of these, those that had happened.
    pub erasures_kept: u64,
    /// Appends of records with a destroyed key.
    pub destroyed_keys_refused: u64,
    /// Records that compaction took the sealed bytes from.
    pub reclaimed: u64,
    /// Openings without the master key.
    pub without_key: u64,
}

impl Coverage {
    /// Adds what happened elsewhere.
    pub fn add(&mut self, other: &Self) {
        let Self {
            operations,
            synced,
            written,
            groups,
            tickets,
            segments,
            journal_rolls,
            checkpoints,
            closes,
            kills,
            power_cuts,
            cuts_with_loss,
            torn,
            in_doubt,
            trims,
            retained,
            compacting,
            compactions,
            compacted,
            tombstones,
            dry_runs,
            created,
            deleted,
            altered,
            kept_reads,
            reads,
            named,
            repeats,
            forgotten,
            fenced,
            gaps,
            reused,
            long_ago,
            snapshots,
            snapshots_found,
            conditions_held,
            conditions_failed,
            conditions_trimmed,
            erasures,
            erasures_cut_off,
            erasures_kept,
            destroyed_keys_refused,
            reclaimed,
            without_key,
        } = other;
        self.operations += operations;
        self.synced += synced;
        self.written += written;
        self.groups += groups;
        self.tickets += tickets;
        self.segments += segments;
        self.journal_rolls += journal_rolls;
        self.checkpoints += checkpoints;
        self.closes += closes;
        self.kills += kills;
        self.power_cuts += power_cuts;
        self.cuts_with_loss += cuts_with_loss;
        self.torn += torn;
        self.in_doubt += in_doubt;
        self.trims += trims;
        self.retained += retained;
        self.compacting += compacting;
        self.compactions += compactions;
        self.compacted += compacted;
        self.tombstones += tombstones;
        self.dry_runs += dry_runs;
        self.created += created;
        self.deleted += deleted;
        self.altered += altered;
        self.kept_reads += kept_reads;
        self.reads += reads;
        self.named += named;
        self.repeats += repeats;
        self.forgotten += forgotten;
        self.fenced += fenced;
        self.gaps += gaps;
        self.reused += reused;
        self.long_ago += long_ago;
        self.snapshots += snapshots;
        self.snapshots_found += snapshots_found;
        self.conditions_held += conditions_held;
        self.conditions_failed += conditions_failed;
        self.conditions_trimmed += conditions_trimmed;
        self.erasures += erasures;
        self.erasures_cut_off += erasures_cut_off;
        self.erasures_kept += erasures_kept;
        self.destroyed_keys_refused += destroyed_keys_refused;
        self.reclaimed += reclaimed;
        self.without_key += without_key;
    }

    /// Whether so many sequences did enough of everything.
    pub fn check(&self, sequences: u64) -> Check {
        // Events of each kind in 100 sequences, well below what there are.
        let wanted = [
            ("synced appends", self.synced, 500),
            ("written appends", self.written, 200),
            ("appends over several topics", self.groups, 50),
            ("tickets", self.tickets, 50),
            ("segments", self.segments, 500),
            ("journal rolls", self.journal_rolls, 20),
            ("checkpoints", self.checkpoints, 100),
            ("closes", self.closes, 20),
            ("kills", self.kills, 20),
            ("power cuts", self.power_cuts, 50),
            ("power cuts with loss", self.cuts_with_loss, 5),
            ("torn ends", self.torn, 2),
            ("openings with something in doubt", self.in_doubt, 10),
            ("trims", self.trims, 50),
            ("removals by retention", self.retained, 5),
            ("sequences with compaction", self.compacting, 20),
            ("compactions", self.compactions, 40),
            ("compacted records", self.compacted, 500),
            ("expired tombstones", self.tombstones, 20),
            ("dry runs of compaction", self.dry_runs, 5),
            ("created topics", self.created, 100),
            ("deleted topics", self.deleted, 20),
            ("altered topics", self.altered, 20),
            ("reads by kept cursors", self.kept_reads, 50),
            ("reads", self.reads, 500),
            ("appends under a name", self.named, 500),
            ("repeated appends", self.repeats, 1000),
            ("forgotten producers", self.forgotten, 5),
            ("appends of an earlier epoch", self.fenced, 50),
            ("gaps", self.gaps, 20),
            ("other records under a given name", self.reused, 50),
            ("repeats of unkept answers", self.long_ago, 5),
            ("snapshots", self.snapshots, 50),
            ("found snapshots", self.snapshots_found, 50),
            ("appends whose conditions held", self.conditions_held, 100),
            ("appends whose conditions failed", self.conditions_failed, 100),
            ("conditions on trimmed records", self.conditions_trimmed, 10),
            ("destructions of keys", self.erasures, 50),
            ("destructions that were cut off", self.erasures_cut_off, 20),
            ("destructions that were cut off and had happened", self.erasures_kept, 5),
            ("records with a destroyed key", self.destroyed_keys_refused, 10),
            ("reclaimed payloads", self.reclaimed, 50),
            ("openings without the master key", self.without_key, 5),
        ];
        let mut missing = String::new();
        for (what, count, in_hundred) in wanted {
            if count * 100 < in_hundred * sequences {
                write!(missing, "; only {count} {what}").expect("a string takes everything");
            }
        }
        ensure!(missing.is_empty(), "{sequences} sequences tried too little{missing}");
        Ok(())
    }
}

/// A cursor that is kept over several operations.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) name: String,
    pub(super) uid: Uid,
    pub(super) visibility: Visibility,
    pub(super) cursor: Cursor,
    /// What compaction had taken out when it was made.
    pub(super) gone: BTreeSet<u64>,
}

/// One sequence under way.
#[derive(Debug)]
pub(super) struct Run {
    pub(super) rng: Rng,
    pub(super) clock: Arc<TestClock>,
    pub(super) model: Model,
    pub(super) coverage: Coverage,
    pub(super) settings: StoreSettings,
    pub(super) store: Option<Store>,
    pub(super) kept: Vec<Kept>,
    /// Tickets, each with the number of its event.
    pub(super) tickets: Vec<(Ticket, u64)>,
    /// Records sent so far: makes each of them another.
    pub(super) sent: u64,
    /// How many of 1000 operations close the store, kill it or cut the power.
    pub(super) endings: u64,
    /// Large records fill the journal and segments, small ones make many batches.
    pub(super) payload_bytes_max: usize,
    /// Present in a sequence that compacts.
    pub(super) compaction: Option<Chance>,
    /// Present in a sequence that repeats appends.
    pub(super) naming: Option<Naming>,
    /// Present in a sequence with snapshots.
    pub(super) snapshots: Option<Snapshots>,
    /// Present in a sequence with conditions.
    pub(super) conditions: Option<Conditions>,
    /// Present in a sequence with erasure.
    pub(super) erasing: Option<Erasing>,
    pub(super) sim: SimDisk,
    journal_begin: u64,
    wrap: fn(SimDisk) -> Arc<dyn Disk>,
}

/// The disk as it is.
pub fn honest(sim: SimDisk) -> Arc<dyn Disk> {
    Arc::new(sim)
}

/// The smallest settings, so that everything happens often.
pub fn settings() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 192 << 10,
        append_bytes_max: 32 << 10,
        tail_bytes_max: 64 << 10,
        reserve_bytes: 8 << 10,
        maps_max: 8,
        background: false,
        ..StoreSettings::default()
    }
}

/// Runs the sequence of `seed` on a simulated disk, which the store sees through `wrap`. A panic is a failure as well.
pub fn sequence(seed: u64, wrap: fn(SimDisk) -> Arc<dyn Disk>) -> Check<Coverage> {
    let mut rng = Rng::new(seed.rotate_left(24) ^ 0xe4a5e);
    let erasing = rng.chance(40).then(|| Erasing::new(rng));
    sequence_with(seed, wrap, erasing)
}

/// The same without erasure, as it was when the model knew none.
pub fn sequence_without_erasure(seed: u64, wrap: fn(SimDisk) -> Arc<dyn Disk>) -> Check<Coverage> {
    sequence_with(seed, wrap, None)
}

fn sequence_with(seed: u64, wrap: fn(SimDisk) -> Arc<dyn Disk>, erasing: Option<Erasing>) -> Check<Coverage> {
    let mut chance = Rng::new(!seed);
    let compaction = chance.chance(75).then_some(Chance(chance));
    let mut rng = Rng::new(seed.rotate_left(32) ^ 0x5eed);
    let naming = rng.chance(75).then(|| Naming::new(rng));
    let mut rng = Rng::new(seed.rotate_left(16) ^ 0x57a7e);
    let snapshots = rng.chance(30).then_some(Snapshots(rng));
    let mut rng = Rng::new(seed.rotate_left(48) ^ 0xc0d1);
    let conditions = rng.chance(50).then_some(Conditions(rng));
    let parts = Parts { compaction, naming, snapshots, conditions, erasing };
    let outcome = caught(seed, wrap, parts)?;
    Ok(Coverage { compacting: u64::from(outcome.compacted > 0), ..outcome })
}

/// The same without compaction, as it was when the model knew none: what seeds have found then, they find again.
pub fn sequence_without_compaction(seed: u64, wrap: fn(SimDisk) -> Arc<dyn Disk>) -> Check<Coverage> {
    caught(seed, wrap, Parts::default())
}

/// What a sequence has beside the plain operations.
#[derive(Debug, Default)]
struct Parts {
    compaction: Option<Chance>,
    naming: Option<Naming>,
    snapshots: Option<Snapshots>,
    conditions: Option<Conditions>,
    erasing: Option<Erasing>,
}

fn caught(seed: u64, wrap: fn(SimDisk) -> Arc<dyn Disk>, parts: Parts) -> Check<Coverage> {
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let Parts { compaction, naming, snapshots, conditions, erasing } = parts;
        let mut run = Run { naming, snapshots, conditions, erasing, ..Run::new(seed, wrap, compaction) };
        run.run().map(|()| run.coverage)
    }));
    match outcome {
        Ok(outcome) => outcome,
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(format!("panic: {}", text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("?")))
        }
    }
}

impl Run {
    fn new(seed: u64, wrap: fn(SimDisk) -> Arc<dyn Disk>, compaction: Option<Chance>) -> Self {
        let mut rng = Rng::new(seed);
        let settings = StoreSettings {
            journal_bytes_max: *rng.choose(&[192 << 10, 256 << 10, 512 << 10]),
            tail_bytes_max: *rng.choose(&[64 << 10, 256 << 10]),
            open_files_max: *rng.choose(&[1, 2, 128]),
            reserve_bytes: *rng.choose(&[0, 8 << 10]),
            ..settings()
        };
        let endings = *rng.choose(&[3, 15, 50, 150]);
        let payload_bytes_max = *rng.choose(&[500, 4000, 6500]);
        Self {
            rng,
            clock: TestClock::at(1_000_000),
            model: Model::default(),
            coverage: Coverage::default(),
            settings,
            store: None,
            kept: Vec::new(),
            tickets: Vec::new(),
            sent: 0,
            endings,
            payload_bytes_max,
            compaction,
            naming: None,
            snapshots: None,
            conditions: None,
            erasing: None,
            sim: SimDisk::new(),
            journal_begin: 0,
            wrap,
        }
    }

    fn run(&mut self) -> Check {
        self.open(Ending::Closed)?;
        let operations = self.rng.within(20..400);
        for number in 0..operations {
            self.step().map_err(|error| format!("operation {number}: {error}"))?;
            self.coverage.operations += 1;
        }
        let ending = *self.rng.choose(&[Ending::Closed, Ending::Killed, Ending::PowerCut]);
        self.reopen(ending).map_err(|error| format!("at the end: {error}"))?;
        self.leave();
        Ok(())
    }

    pub(super) fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open between operations")
    }

    /// With its master key, if it has one and is to be opened with it.
    pub(super) fn builder(&self, with_key: bool) -> StoreBuilder {
        let builder = Store::builder()
            .settings(self.settings.clone())
            .disk((self.wrap)(self.sim.clone()))
            .clock(self.clock.clone());
        if with_key && self.erasing.is_some() {
            builder.master_key(MASTER_KEY).create_master_key(true)
        } else {
            builder
        }
    }

    fn open(&mut self, ending: Ending) -> Check {
        let store =
            self.builder(true).open(STORE).map_err(|error| format!("open after {ending:?}: {error}"))?;
        let lost = self.model.settle(&store, ending)?;
        let report = store.recovery();
        let is_new = self.coverage.operations == 0;
        ensure!(is_new || report.was_clean == (ending == Ending::Closed), "after {ending:?}: {report:?}");
        ensure!(report.damaged.is_empty(), "after {ending:?} there is damage: {:?}", report.damaged);
        // Eight bytes: stale ones that happen to name the same position look like the start of a torn frame.
        let is_torn = !matches!(
            report.journal_end,
            quipu_storage::JournalEnd::Clean | quipu_storage::JournalEnd::Torn { bytes: 8 }
        );
        // What a power cut left of a generation whose header it took looks like a torn write of the next generation, which
        // has the same number and another salt: at the same positions if both began in the same file at the same place.
        let may_be_torn =
            ending == Ending::PowerCut || ending == Ending::Killed && self.coverage.power_cuts > 0;
        ensure!(!is_torn || may_be_torn, "after {ending:?} the journal is torn: {report:?}");
        self.coverage.cuts_with_loss += u64::from(lost > 0);
        self.coverage.torn += u64::from(is_torn);
        self.coverage.in_doubt += u64::from(report.in_doubt_bytes > 0);
        self.store = Some(store.clone());
        self.settle_erasure().map_err(|error| format!("after {ending:?}: {error}"))?;
        self.repeat_last().map_err(|error| format!("after {ending:?}: {error}"))?;
        verify::store(&store, &self.model.current).map_err(|error| format!("after {ending:?}: {error}"))?;
        self.find_snapshots().map_err(|error| format!("after {ending:?}: {error}"))?;
        self.journal_begin = store.stats().journal_position.0;
        let damage = store.stats().damage_found;
        ensure!(damage == 0, "after {ending:?} readers met damage {damage} times");
        self.store = Some(store);
        Ok(())
    }

    /// Leaves the store in the given way and opens it again.
    pub(super) fn reopen(&mut self, ending: Ending) -> Check {
        match ending {
            Ending::Closed => {
                self.store().close().map_err(|error| format!("close: {error}"))?;
                self.model.sync();
                self.coverage.closes += 1;
                self.leave();
                self.look_without_key().map_err(|error| format!("without its master key: {error}"))?;
                self.open(ending)
            }
            Ending::Killed | Ending::PowerCut => {
                let sim = self.sim.clone();
                self.die(&sim, ending)
            }
        }
    }

    /// The process is killed, or the power goes, when the disk is as given; opens the store again on what is left.
    pub(super) fn die(&mut self, sim: &SimDisk, ending: Ending) -> Check {
        let left = if ending == Ending::Killed {
            self.coverage.kills += 1;
            sim.after_kill()
        } else {
            let modes = [CrashMode::Random, CrashMode::Random, CrashMode::LoseAll, CrashMode::KeepAll];
            let mode = *self.rng.choose(&modes);
            self.coverage.power_cuts += 1;
            sim.crash_with(mode, &mut self.rng)
        };
        self.halt();
        self.sim = left;
        self.open(ending)
    }

    /// The store goes on on a disk that takes nothing any more, and ends.
    fn halt(&mut self) {
        self.sim.halt_at(self.sim.ops() + 1);
        self.leave();
    }

    fn leave(&mut self) {
        if let Some(store) = self.store.take() {
            let stats = store.stats();
            self.coverage.segments += stats.segments_created;
            self.coverage.checkpoints += stats.checkpoints;
            self.coverage.journal_rolls +=
                (stats.journal_position.0 - self.journal_begin) / self.settings.journal_file_bytes;
        }
        self.kept.clear();
        self.tickets.clear();
    }
}
