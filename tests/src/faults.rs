//! Every operation of the disk fails once, in each way that it can.
//!
//! A script is run once without faults, to learn its operations, and then once for each of them and each error. Every
//! call answers `Ok` or an error that says what to do, and the story goes on as it says: what was not applied is tried
//! again and succeeds, a store that has failed takes nothing until it is opened again. Nothing acknowledged is lost, not
//! even if the power goes right after; and what a failed sync covered is not relied on (D5).
//!
//! The scripts' store has no threads. Of one that has, with all of them at work, each sync fails once, whoever makes it.

use std::path::Path;
use std::sync::Arc;

use quipu_storage::disk::Disk;
use quipu_storage::{
    Append, Codec, Durability, Error, ErrorKind, Offset, Record, Start, Store, StoreSettings, TopicSettings,
    Visibility,
};

use crate::ensure;
use crate::faulty::{EIO, EMFILE, ENOSPC, Effect, Fault, FaultyDisk, Op, OpKind};
use crate::model::run::{STORE, settings};
use crate::model::{Check, Ending, Event, Model, TestClock, expected, verify};
use crate::rng::Rng;
use crate::sim::{CrashMode, SimDisk};
use crate::workload::{Scenario, Write, write};

/// One thing that is done to the store.
#[derive(Clone, Debug)]
enum Step {
    Create(&'static str),
    /// Records of so many bytes, one for each topic.
    Append(&'static [&'static str], usize, Durability),
    Sync,
    Checkpoint,
    Trim(&'static str, u64),
    Delete(&'static str),
    Alter(&'static str),
    Read,
    Retain,
    Reopen,
}

fn script() -> Vec<Step> {
    use Durability::{Synced, Written};
    use Step::{Alter, Append, Checkpoint, Create, Delete, Read, Reopen, Retain, Sync, Trim};
    let mut script = vec![
        Create("a"),
        Append(&["a"], 100, Synced),
        Create("b"),
        Append(&["a", "b"], 1500, Written),
        Append(&["a"], 1500, Synced),
        Read,
        Checkpoint,
        Read,
        // Rolls.
        Append(&["a", "b"], 3000, Written),
        Append(&["a"], 3000, Written),
        Sync,
        Checkpoint,
        Read,
        Trim("a", 3),
        Append(&["a"], 10, Synced),
        Reopen,
        Read,
        Append(&["b"], 10, Synced),
        Alter("a"),
    ];
    // Fills the journal, so that files are made and used again.
    for _ in 0..14 {
        script.push(Append(&["a", "b"], 6000, Written));
    }
    script.extend([
        Append(&["a"], 10, Synced),
        Checkpoint,
        Read,
        Delete("b"),
        Create("b"),
        Append(&["b", "a"], 2000, Synced),
        Checkpoint,
        Trim("a", 20),
        Retain,
        Append(&["a"], 10, Written),
        Reopen,
        Append(&["a", "b"], 10, Synced),
        Reopen,
        Read,
    ]);
    script
}

/// The operation that fails, and how.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Planned {
    pub(crate) number: u64,
    pub(crate) raw_os_error: i32,
    pub(crate) effect: Effect,
}

struct Story {
    sim: SimDisk,
    faulty: FaultyDisk,
    wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>,
    clock: Arc<TestClock>,
    settings: StoreSettings,
    model: Model,
    store: Option<Store>,
    sent: u64,
}

/// The disk with its faults, as it is.
pub fn honest(disk: Arc<dyn Disk>) -> Arc<dyn Disk> {
    disk
}

impl Story {
    fn new(wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>) -> Check<Self> {
        let sim = SimDisk::new();
        // That the store's own directory is there for good is its owner's to see to.
        sim.create_dir(STORE.as_ref())
            .and_then(|()| sim.sync_dir("/".as_ref()))
            .map_err(|error| error.to_string())?;
        let faulty = FaultyDisk::over_sim(sim.clone());
        Ok(Self {
            sim,
            faulty,
            wrap,
            clock: TestClock::at(1_000_000),
            settings: settings(),
            model: Model::default(),
            store: None,
            sent: 0,
        })
    }

    fn builder(&self, disk: Arc<dyn Disk>) -> quipu_storage::StoreBuilder {
        Store::builder().settings(self.settings.clone()).disk(disk).clock(self.clock.clone())
    }

    /// Opens; a fault may hit it, but only once. Answers how many of the events in doubt are not there.
    fn open(&mut self) -> Check<usize> {
        for _ in 0..3 {
            match self.builder((self.wrap)(Arc::new(self.faulty.clone()))).open(STORE) {
                Ok(store) => {
                    let lost = self.model.settle(&store, Ending::PowerCut)?;
                    verify_all(&store, &self.model)?;
                    self.store = Some(store);
                    self.check_cuts()?;
                    return Ok(lost);
                }
                Err(error) => {
                    ensure!(may_answer(&error), "open: {error:?}");
                    self.check_cuts()?;
                }
            }
        }
        Err("the store does not open any more".to_owned())
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("open between steps")
    }

    /// If the power went now, everything acknowledged would be there.
    fn check_cuts(&self) -> Check {
        for mode in [CrashMode::LoseAll, CrashMode::Random, CrashMode::KeepAll] {
            let left = self.sim.crash_with(mode, &mut Rng::new(self.sim.ops()));
            let store = self
                .builder(Arc::new(left))
                .open(STORE)
                .map_err(|error| format!("open after {mode:?}: {error}"))?;
            let mut model = self.model.clone();
            model.settle(&store, Ending::PowerCut).map_err(|error| format!("{mode:?}: {error}"))?;
            verify::store(&store, &model.current).map_err(|error| format!("{mode:?}: {error}"))?;
        }
        Ok(())
    }

    /// One step, with whatever has to follow an error.
    fn step(&mut self, step: &Step) -> Check {
        if matches!(step, Step::Reopen) {
            return self.reopen();
        }
        for _ in 0..2 {
            let faults = self.faulty.fault_count();
            let outcome = self.attempt(step)?;
            let hit = (self.faulty.fault_count() > faults).then(|| self.hit()).flatten();
            match outcome {
                Ok(()) => {
                    // An index of terms can be made again: it costs only itself.
                    let is_final = |op: &Op| {
                        matches!(op.kind, OpKind::Sync | OpKind::SyncDir)
                            && !op.path.to_string_lossy().ends_with(".terms.new")
                    };
                    if hit.as_ref().is_some_and(is_final) {
                        return Err(format!("{step:?} succeeded although a sync failed: {hit:?}"));
                    }
                    if hit.is_some() {
                        self.check_cuts()?;
                    }
                    return self.observe();
                }
                Err(error) => {
                    ensure!(hit.is_some(), "{step:?} without a fault: {error:?}");
                    let is_read = matches!(step, Step::Read);
                    ensure!(
                        may_answer(&error) || is_read && error.kind() == ErrorKind::Damaged,
                        "{step:?} answers {error:?}"
                    );
                    let is_sync =
                        hit.as_ref().is_some_and(|op| matches!(op.kind, OpKind::Sync | OpKind::SyncDir));
                    ensure!(!is_sync || error.kind() == ErrorKind::Reopen, "a failed sync answers {error:?}");
                    if error.kind() == ErrorKind::Reopen {
                        if self.recover()? == 0 {
                            return Ok(());
                        }
                        continue;
                    }
                    // Nothing was applied, and the next attempt meets no fault.
                    self.observe().map_err(|complaint| format!("after {error}: {complaint}"))?;
                    self.check_cuts().map_err(|complaint| format!("after {error}: {complaint}"))?;
                }
            }
        }
        Err(format!("{step:?} failed twice for one fault"))
    }

    fn hit(&self) -> Option<Op> {
        self.faulty.ops().into_iter().rev().find(|op| op.was_failed)
    }

    fn observe(&mut self) -> Check {
        let store = self.store().clone();
        self.model.observe(&store)
    }

    /// The store has failed: it says so to everybody, what is synced can be read, and it can be opened again.
    fn recover(&mut self) -> Check<usize> {
        let store = self.store.take().expect("it has just failed");
        self.model.sync_shown(&store.topics());
        for topic in store.topics() {
            let refused = topic.append_with(&[Record::new("refused")], Durability::Written).err();
            ensure!(
                refused.as_ref().map(Error::kind) == Some(ErrorKind::Reopen),
                "{}: a failed store takes appends: {refused:?}",
                topic.name()
            );
            let Some(mut expected) = self.model.current.topics.get(topic.name().as_str()).cloned() else {
                continue;
            };
            // A trim may be what is in doubt.
            expected.log_start = topic.log_start_offset().0;
            let mut cursor = topic
                .cursor(Start::Earliest, Visibility::Synced)
                .map_err(|error| format!("a failed store: {error}"))?;
            let end = verify::forwards(&topic, &mut cursor, &expected, u64::MAX)?;
            ensure!(end == topic.high_watermark().0, "a failed store reads to {end}");
        }
        ensure!(store.stats().failure.is_some(), "a failed store does not say why");
        // What was sent last is in doubt, and nothing that is synced.
        self.check_cuts()?;
        drop(store);
        self.open()
    }

    fn reopen(&mut self) -> Check {
        let store = self.store.take().expect("open between steps");
        let faults = self.faulty.fault_count();
        match store.close() {
            Ok(()) => self.model.sync(),
            Err(error) => {
                ensure!(self.faulty.fault_count() > faults, "close without a fault: {error:?}");
                ensure!(may_answer(&error), "close answers {error:?}");
            }
        }
        drop(store);
        self.check_cuts()?;
        self.open().map(drop)
    }

    /// Does it, and tells the model; the outer error is a complaint of ours.
    fn attempt(&mut self, step: &Step) -> Check<quipu_storage::Result<()>> {
        let store = self.store().clone();
        let topic = |name: &str| store.topic(name).map_err(|error| error.to_string());
        let event = match *step {
            Step::Create(name) => {
                let settings = small(Codec::None);
                let event = Event::Created { name: name.to_owned(), uid: None, settings: settings.clone() };
                (event, store.create_topic(name, settings).map(drop), true)
            }
            Step::Append(names, bytes, durability) => {
                self.clock.set(self.clock.millis() + 1);
                let mut append = Append::new().durability(durability);
                let mut parts = Vec::new();
                for name in names {
                    self.sent += 1;
                    let mut payload = self.sent.to_le_bytes().to_vec();
                    payload.resize(8 + bytes, 9);
                    let records = [Record::new(payload)];
                    append = append.records(&topic(name)?, &records).map_err(|error| error.to_string())?;
                    parts.push(((*name).to_owned(), expected(&records, Some(self.clock.millis()))));
                }
                (Event::Appended { parts }, store.append(append).map(drop), durability == Durability::Synced)
            }
            Step::Sync | Step::Checkpoint => {
                let outcome = if matches!(step, Step::Sync) { store.sync() } else { store.checkpoint() };
                if outcome.is_ok() {
                    self.model.sync();
                }
                return Ok(outcome);
            }
            Step::Trim(name, to) => {
                (Event::Trimmed { name: name.to_owned(), to }, topic(name)?.trim(Offset(to)), true)
            }
            Step::Delete(name) => (Event::Deleted { name: name.to_owned() }, store.delete_topic(name), true),
            Step::Alter(name) => {
                let settings = small(Codec::Lz4);
                let event = Event::Altered { name: name.to_owned(), settings: settings.clone() };
                (event, topic(name)?.alter(&settings), true)
            }
            Step::Read => return self.read(&store),
            Step::Retain => return Ok(store.run_retention().map(drop)),
            Step::Reopen => unreachable!("it is no attempt"),
        };
        let (event, outcome, is_synced) = event;
        match &outcome {
            Ok(()) => {
                self.model.push(event);
                if is_synced {
                    self.model.sync();
                }
            }
            // Perhaps it is there when the store is opened again.
            Err(error) if error.kind() == ErrorKind::Reopen => {
                self.model.push(event);
            }
            Err(_) => {}
        }
        Ok(outcome)
    }

    /// Reads everything; right or an error, and never anything else.
    fn read(&self, store: &Store) -> Check<quipu_storage::Result<()>> {
        for (name, expected) in &self.model.current.topics {
            let topic = store.topic(name).map_err(|error| error.to_string())?;
            let mut next = expected.log_start;
            for record in topic.read(Start::Earliest).map_err(|error| error.to_string())? {
                match record {
                    Ok(record) => {
                        ensure!(record.offset().0 == next, "{name}: record {} after {next}", record.offset());
                        verify::record(&topic, expected, &record)?;
                        next += 1;
                    }
                    Err(error) => return Ok(Err(error)),
                }
            }
            ensure!(next == topic.high_watermark().0, "{name}: reading ended at {next}");
            let mut backwards = topic.batches_backwards(Offset::MAX, Visibility::Synced);
            loop {
                match backwards.previous_batch() {
                    Ok(Some(batch)) => {
                        for record in batch.owned() {
                            verify::record(&topic, expected, &record.map_err(|error| error.to_string())?)?;
                        }
                    }
                    Ok(None) => break,
                    Err(error) => return Ok(Err(error)),
                }
            }
            if next > expected.log_start
                && let Err(error) = topic.get(Offset(expected.log_start))
            {
                return Ok(Err(error));
            }
        }
        Ok(Ok(()))
    }
}

fn small(codec: Codec) -> TopicSettings {
    TopicSettings { segment_bytes_max: 4096, codec, ..TopicSettings::default() }
}

fn verify_all(store: &Store, model: &Model) -> Check {
    // Readers may be hit by the fault as well; then the next attempt counts.
    verify::store(store, &model.current).or_else(|_| verify::store(store, &model.current))
}

/// What an operation of the disk that failed may make of a call.
pub(crate) fn may_answer(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Retry | ErrorKind::DiskFull | ErrorKind::Reopen)
}

fn tell(planned: Option<Planned>, wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>) -> Check<Vec<Op>> {
    let mut story = Story::new(wrap)?;
    if let Some(Planned { number, raw_os_error, effect }) = planned {
        story.faulty.fail(Fault::any(number, raw_os_error).after(effect));
    }
    story.open()?;
    for (number, step) in script().iter().enumerate() {
        story.step(step).map_err(|error| format!("step {number} {step:?}: {error}"))?;
    }
    verify::store(story.store(), &story.model.current)?;
    story.check_cuts()?;
    Ok(story.faulty.ops())
}

/// The ways in which an operation of this kind is made to fail.
pub(crate) fn ways(kind: OpKind) -> Vec<(i32, Effect)> {
    let mut ways = vec![(EIO, Effect::Nothing), (ENOSPC, Effect::Nothing)];
    match kind {
        OpKind::OpenRead
        | OpKind::OpenWrite
        | OpKind::OpenCreate
        | OpKind::Map
        | OpKind::List
        | OpKind::Lock => {
            ways.push((EMFILE, Effect::Nothing));
        }
        OpKind::Write | OpKind::WriterWrite => {
            ways.extend([(ENOSPC, Effect::Prefix(512)), (EIO, Effect::Prefix(1024)), (EIO, Effect::Whole)]);
        }
        OpKind::Rename | OpKind::Remove | OpKind::RemoveDir | OpKind::CreateDir | OpKind::SetLen => {
            ways.push((EIO, Effect::Whole));
        }
        OpKind::Allocate => ways.push((ENOSPC, Effect::Whole)),
        _ => {}
    }
    ways
}

/// Runs the script with each operation failing in each way; those whose number modulo `shards` is `shard`. Answers how
/// many faults there were.
pub fn run(wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>, (shard, shards): (u64, u64)) -> Check<u64> {
    let ops = tell(None, wrap)?;
    let mut count = 0;
    for (number, op) in (1..).zip(&ops).filter(|(number, _)| number % shards == shard) {
        for (raw_os_error, effect) in ways(op.kind) {
            let planned = Planned { number, raw_os_error, effect };
            let told = std::panic::catch_unwind(|| tell(Some(planned), wrap))
                .unwrap_or_else(|_| Err("panic".to_owned()));
            let told = told.map_err(|error| format!("{planned:?} of {op:?}: {error}"))?;
            // The last ones may not be met: in which order topics are looked at is not determined.
            count += u64::from(told.iter().any(|op| op.was_failed));
        }
    }
    Ok(count)
}

/// Runs the scenario with all threads of the store, once for each sync that it makes, and lets that sync fail. The run
/// must end with an error then, at the latest when the store is closed. Answers how many faults there were.
pub fn fail_each_sync(scenario: Scenario) -> Check<u64> {
    let mut count = 0;
    for kind in [OpKind::Sync, OpKind::SyncDir] {
        for nth in 1.. {
            let sim = SimDisk::new();
            sim.create_dir(STORE.as_ref()).map_err(|error| error.to_string())?;
            let disk = FaultyDisk::over_sim(sim);
            disk.fail(Fault::of(kind, nth, EIO));
            let run = Write { disk: Arc::new(disk.clone()), ..Write::new(STORE, scenario, 1, 24) };
            let outcome = write(&run, &|_| ());
            let ops = disk.ops();
            // No run has so many.
            let Some(failed) = ops.iter().position(|op| op.was_failed) else { break };
            count += 1;
            let path = &ops[failed].path;
            let may_be_silent = kind == OpKind::Sync && is_discarded(path, &ops[failed + 1..]);
            ensure!(
                outcome.is_err() || may_be_silent,
                "{scenario:?}: {kind:?} no. {nth}, of {}, failed unheard",
                path.display()
            );
        }
    }
    Ok(count)
}

/// Whether the file was given up after its sync had failed, so that nothing depends on it.
fn is_discarded(path: &Path, later: &[Op]) -> bool {
    later.iter().find(|op| op.path == path).is_some_and(|op| op.kind == OpKind::Remove)
}
