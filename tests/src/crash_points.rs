//! Every operation that changes the disk, as the last one before the power goes or the process is killed.
//!
//! A script is run once on a disk that keeps a copy of itself before each of its operations. Each copy is then lost in
//! several ways, and opened: the store must show everything that had been acknowledged by then, in order and unchanged,
//! and nothing that had not been sent. Then it must go on: take more, make a checkpoint, and survive another cut.
//!
//! What happens after such a cut is a script as well: its operations, those of the recovery first of all, are the points
//! of the second round.

use std::sync::Arc;
use std::time::Duration;

use quipu_storage::disk::Disk;
use quipu_storage::{
    Append, Codec, Compaction, Durability, Offset, Record, Retention, Storage, Store, StoreSettings,
    TopicSettings,
};

use crate::ensure;
use crate::model::compaction::{active_base, goes};
use crate::model::run::{STORE, settings};
use crate::model::{Check, Ending, Event, Model, TestClock, expected, verify};
use crate::rng::Rng;
use crate::sim::{CrashMode, SimDisk};

/// What a run went through.
#[derive(Clone, Copy, Debug, Default)]
pub struct Explored {
    /// Operations of the script.
    pub operations: u64,
    /// Copies of the disk that were opened after the first cut.
    pub first: u64,
    /// Those opened after a cut in the recovery from another.
    pub second: u64,
}

/// The ways to lose a disk: the process is killed, or the power goes.
const ENDINGS: [Option<CrashMode>; 6] = [
    None,
    Some(CrashMode::LoseAll),
    Some(CrashMode::KeepAll),
    Some(CrashMode::Random),
    Some(CrashMode::Random),
    Some(CrashMode::Random),
];

/// Runs a script and notes what was sent and acknowledged at which operation of the disk.
pub(crate) struct Recorder {
    sim: SimDisk,
    wrap: fn(SimDisk) -> Arc<dyn Disk>,
    clock: Arc<TestClock>,
    settings: StoreSettings,
    /// What the disk holds before the script.
    base: Base,
    /// What the store showed when it was first open, and after which operation.
    settled: Option<(u64, Model)>,
    sent: Vec<Sent>,
    /// After which operation so many events were acknowledged as synced.
    synced: Vec<(u64, usize)>,
}

/// What must and may be on a disk.
#[derive(Clone, Debug, Default)]
pub(crate) struct Base {
    /// As it is.
    pub(crate) now: Model,
    /// When its power goes before it is opened: after a kill less is certain then.
    pub(crate) after_cut: Model,
    /// Later than every record.
    pub(crate) time: u64,
}

struct Sent {
    event: Event,
    /// The operation before the call.
    before: u64,
    /// The last operation of the call.
    returned: u64,
}

impl Recorder {
    fn new(sim: SimDisk, wrap: fn(SimDisk) -> Arc<dyn Disk>, base: Base) -> Self {
        let clock = TestClock::at(base.time + 1000);
        Self {
            sim,
            wrap,
            clock,
            settings: settings(),
            base,
            settled: None,
            sent: Vec::new(),
            synced: Vec::new(),
        }
    }

    fn open(&mut self) -> Check<Store> {
        let store = Store::builder()
            .settings(self.settings.clone())
            .disk((self.wrap)(self.sim.clone()))
            .clock(self.clock.clone())
            .open(STORE)
            .map_err(|error| format!("open: {error}"))?;
        if self.settled.is_none() {
            let mut model = self.base.now.clone();
            // Bounds are given by what is synced and what is not, whatever has happened.
            model.settle(&store, Ending::PowerCut)?;
            verify::store(&store, &model.current)?;
            let damage = store.stats().damage_found;
            ensure!(damage == 0, "readers met damage {damage} times");
            self.settled = Some((self.sim.ops(), model));
        }
        Ok(store)
    }

    /// Notes an event around the call that makes it.
    fn call<T>(&mut self, event: Event, call: impl FnOnce() -> quipu_storage::Result<T>) -> Check<T> {
        let before = self.sim.ops();
        let outcome = call().map_err(|error| format!("{event:.40?}: {error}"))?;
        self.sent.push(Sent { event, before, returned: self.sim.ops() });
        Ok(outcome)
    }

    fn all_synced(&mut self) {
        self.synced.push((self.sim.ops(), self.sent.len()));
    }

    fn append(&mut self, store: &Store, parts: &[(&str, Vec<Record>)], durability: Durability) -> Check {
        // Time goes on, so that every record's is known.
        self.clock.set(self.clock.millis() + 1);
        let now = Some(self.clock.millis());
        let event = Event::Appended {
            parts: parts.iter().map(|(name, records)| ((*name).to_owned(), expected(records, now))).collect(),
        };
        let mut append = Append::new().durability(durability);
        for (name, records) in parts {
            let topic = store.topic(name).map_err(|error| error.to_string())?;
            append = append.records(&topic, records).map_err(|error| error.to_string())?;
        }
        self.call(event, || store.append(append))?;
        if durability == Durability::Synced {
            self.all_synced();
        }
        Ok(())
    }

    fn create(&mut self, store: &Store, name: &str, settings: TopicSettings) -> Check {
        let event = Event::Created { name: name.to_owned(), uid: None, settings: settings.clone() };
        self.call(event, || store.create_topic(name, settings))?;
        self.all_synced();
        Ok(())
    }

    fn trim(&mut self, store: &Store, name: &str, to: u64) -> Check {
        let topic = store.topic(name).map_err(|error| error.to_string())?;
        self.call(Event::Trimmed { name: name.to_owned(), to }, || topic.trim(Offset(to)))?;
        self.all_synced();
        Ok(())
    }

    /// Applies retention; says how many topics lost something.
    fn retain(&mut self, store: &Store) -> Check<usize> {
        let before = self.sim.ops();
        let reports = store.run_retention().map_err(|error| format!("retention: {error}"))?;
        let returned = self.sim.ops();
        for report in &reports {
            let event = Event::Trimmed { name: report.topic.to_string(), to: report.to.0 };
            self.sent.push(Sent { event, before, returned });
        }
        self.all_synced();
        Ok(reports.len())
    }

    /// Compacts a topic as its settings say; says how many records went.
    fn compact(&mut self, store: &Store, name: &str) -> Check<usize> {
        // So that what it rewrites is known before it begins.
        self.checkpoint(store)?;
        let topic = store.topic(name).map_err(|error| error.to_string())?;
        let model = self.model_before(u64::MAX, true);
        let expected = &model.current.topics[name];
        let rules = expected.settings.compaction.ok_or("a topic that is not compacted")?;
        let offsets = goes(expected, &rules, self.clock.millis(), active_base(&self.sim, &topic));
        let count = offsets.len();
        let report = self.call(Event::Compacting { name: name.to_owned(), offsets }, || topic.compact())?;
        let removed = report.records_removed.superseded + report.records_removed.tombstone_expired;
        ensure!(removed == count as u64, "{name}: {removed} records went, not {count}");
        let at = self.sim.ops();
        self.sent.push(Sent { event: Event::Compacted { name: name.to_owned() }, before: at, returned: at });
        self.all_synced();
        Ok(count)
    }

    fn checkpoint(&mut self, store: &Store) -> Check {
        store.checkpoint().map_err(|error| format!("checkpoint: {error}"))?;
        self.all_synced();
        Ok(())
    }

    fn close(&mut self, store: Store) -> Check {
        store.close().map_err(|error| format!("close: {error}"))?;
        self.all_synced();
        Ok(())
    }

    /// What must and may be there if the store ended just before operation `number`.
    fn model_before(&self, number: u64, is_kill: bool) -> Model {
        let mut model = match &self.settled {
            Some((operation, settled)) if *operation < number => settled.clone(),
            _ if is_kill => self.base.now.clone(),
            _ => self.base.after_cut.clone(),
        };
        let first = model.next_event();
        let sent = self.sent.iter().take_while(|sent| sent.before < number);
        sent.for_each(|sent| {
            model.push(sent.event.clone());
        });
        let count = if is_kill {
            self.sent.iter().take_while(|sent| sent.returned < number).count()
        } else {
            self.synced
                .iter()
                .take_while(|(operation, _)| *operation < number)
                .map(|(_, count)| *count)
                .max()
                .unwrap_or(0)
        };
        if count > 0 {
            model.sync_before(first + count as u64);
        }
        model
    }

    /// What must and may be on the disk if the store ended so just before operation `number`.
    pub(crate) fn base_before(&self, number: u64, ending: Option<CrashMode>) -> Base {
        let after_cut = self.model_before(number, false);
        let now = if ending.is_none() { self.model_before(number, true) } else { after_cut.clone() };
        Base { now, after_cut, time: self.clock.millis() }
    }
}

/// A record that nobody else has sent.
fn record(number: &mut u64, bytes: usize) -> Vec<Record> {
    *number += 1;
    let mut payload = number.to_le_bytes().to_vec();
    payload.resize(8 + bytes, 5);
    vec![Record::keyed(format!("key {}", *number % 3), payload)]
}

/// A change of one of two keys, or its deletion.
fn version(number: &mut u64, bytes: usize) -> Vec<Record> {
    let records = record(number, bytes);
    if number.is_multiple_of(7) { vec![Record::tombstone(format!("key {}", *number % 3))] } else { records }
}

/// Everything that a store does to its files.
pub(crate) fn everything(recorder: &mut Recorder) -> Check {
    let small = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let compressed = TopicSettings { codec: Codec::Lz4, ..small.clone() };
    let memory = TopicSettings { storage: Storage::Memory { bytes_max: 4096 }, ..TopicSettings::default() };
    let mut number = 0;
    let n = &mut number;
    let store = recorder.open()?;
    recorder.create(&store, "a", small.clone())?;
    recorder.append(&store, &[("a", record(n, 10))], Durability::Synced)?;
    recorder.append(&store, &[("a", record(n, 10))], Durability::Written)?;
    recorder.create(&store, "b", compressed.clone())?;
    recorder.create(&store, "m", memory)?;
    recorder.append(
        &store,
        &[("a", record(n, 100)), ("b", record(n, 100)), ("m", record(n, 9))],
        Durability::Synced,
    )?;
    recorder.append(&store, &[("m", record(n, 10))], Durability::Accepted)?;
    recorder.checkpoint(&store)?;
    // Rolls segments, with the first one synced already.
    for bytes in [3000, 1000, 2500] {
        recorder.append(&store, &[("a", record(n, bytes))], Durability::Written)?;
        recorder.append(&store, &[("b", record(n, bytes)), ("a", record(n, 50))], Durability::Written)?;
    }
    recorder.append(&store, &[("b", record(n, 5))], Durability::Synced)?;
    recorder.checkpoint(&store)?;
    recorder.trim(&store, "a", 3)?;
    // Fills journal files, so that new ones are made and old ones used again.
    for round in 0..26 {
        let durability = if round % 5 == 4 { Durability::Synced } else { Durability::Written };
        recorder.append(&store, &[("a", record(n, 6000))], durability)?;
        recorder.append(&store, &[("b", record(n, 300))], Durability::Written)?;
        if round % 10 == 9 {
            recorder.checkpoint(&store)?;
        }
    }
    let end = store.topic("a").map_err(|error| error.to_string())?.high_watermark().0;
    recorder.trim(&store, "a", end - 4)?;
    recorder.append(&store, &[("a", record(n, 20))], Durability::Synced)?;
    recorder.trim(&store, "a", end)?;
    let name = "b".to_owned();
    recorder.call(Event::Deleted { name }, || store.delete_topic("b"))?;
    recorder.all_synced();
    recorder.create(&store, "b", small.clone())?;
    recorder.append(&store, &[("b", record(n, 3000)), ("a", record(n, 10))], Durability::Synced)?;
    let topic = store.topic("a").map_err(|error| error.to_string())?;
    let altered = TopicSettings {
        retention: Retention { records_max: Some(1), ..Retention::default() },
        segment_bytes_max: 8192,
        ..small
    };
    let event = Event::Altered { name: "a".to_owned(), settings: altered.clone() };
    recorder.call(event, || topic.alter(&altered))?;
    recorder.all_synced();
    recorder.append(&store, &[("b", record(n, 3000))], Durability::Written)?;
    recorder.checkpoint(&store)?;
    drop(topic);
    // Two segments become one, then with what came since one again; then the rest goes by its number.
    let compaction = Compaction { tombstone_age_max: Duration::from_millis(8), ..Compaction::default() };
    let compacted = TopicSettings {
        segment_bytes_max: 4096,
        compaction: Some(compaction),
        retention: Retention { records_max: Some(6), ..Retention::default() },
        ..TopicSettings::default()
    };
    recorder.create(&store, "c", compacted)?;
    for bytes in [1700, 900, 1200, 1500, 1000, 1800] {
        recorder.append(&store, &[("c", version(n, bytes))], Durability::Written)?;
    }
    let mut went = recorder.compact(&store, "c")?;
    for bytes in [1700, 900, 1200, 1500, 1000, 1800, 900] {
        recorder.append(&store, &[("c", version(n, bytes))], Durability::Written)?;
    }
    went += recorder.compact(&store, "c")?;
    ensure!(went >= 6, "compaction took only {went} records out");
    recorder.close(store)?;
    let store = recorder.open()?;
    for bytes in [1700, 1500, 1200, 1500, 1800] {
        recorder.append(&store, &[("c", version(n, bytes))], Durability::Written)?;
    }
    recorder.checkpoint(&store)?;
    let retained = recorder.retain(&store)?;
    ensure!(retained > 0, "retention found nothing");
    recorder.append(&store, &[("a", record(n, 10)), ("b", record(n, 2000))], Durability::Written)?;
    recorder.append(&store, &[("a", record(n, 3000))], Durability::Synced)?;
    recorder.append(&store, &[("b", record(n, 10))], Durability::Written)?;
    recorder.close(store)
}

/// What somebody does who finds the store after a crash: looks at it, goes on, and closes it.
fn go_on(recorder: &mut Recorder) -> Check {
    let mut number = 1 << 32;
    let n = &mut number;
    let store = recorder.open()?;
    let names: Vec<_> = store.topics().iter().map(|topic| topic.name().to_string()).collect();
    for name in &names {
        recorder.append(&store, &[(name, record(n, 2000))], Durability::Written)?;
    }
    if !store.topics().iter().any(|topic| topic.name().as_str() == "new") {
        recorder.create(&store, "new", TopicSettings::default())?;
    }
    let parts: Vec<_> = names.iter().map(|name| (&**name, record(n, 100))).collect();
    if !parts.is_empty() {
        recorder.append(&store, &parts, Durability::Synced)?;
    }
    recorder.checkpoint(&store)?;
    if store.topic("c").is_ok() {
        recorder.compact(&store, "c")?;
        recorder.retain(&store)?;
    }
    recorder.append(&store, &[("new", record(n, 100))], Durability::Synced)?;
    verify::store(&store, &recorder.model_before(u64::MAX, true).current)?;
    recorder.close(store)
}

/// Runs a script with every operation as a point to stop at; answers the points, each with its copy of the disk.
pub(crate) fn explore(
    start: &SimDisk,
    wrap: fn(SimDisk) -> Arc<dyn Disk>,
    base: &Base,
    script: fn(&mut Recorder) -> Check,
) -> Check<(Recorder, Vec<(u64, SimDisk)>)> {
    // A copy for the count, and one for the run.
    let mut counter = Recorder::new(start.after_kill(), wrap, base.clone());
    script(&mut counter)?;
    let sim = start.after_kill();
    let operations = counter.sim.ops();
    (1..=operations).for_each(|number| sim.crash_at(number));
    let mut recorder = Recorder::new(sim, wrap, base.clone());
    script(&mut recorder)?;
    ensure!(recorder.sim.ops() == operations, "a script took {operations} and then {}", recorder.sim.ops());
    let points = recorder.sim.take_snapshots();
    Ok((recorder, points))
}

pub(crate) fn lose(left: &SimDisk, ending: Option<CrashMode>, seed: u64) -> SimDisk {
    match ending {
        None => left.after_kill(),
        Some(mode) => left.crash_with(mode, &mut Rng::new(seed)),
    }
}

/// Runs everything, stops at every operation in every way, goes on, and for every `second_every`th point stops again at
/// every operation of going on. The points of one call are those whose number modulo `shards` is `shard`.
pub fn run(
    wrap: fn(SimDisk) -> Arc<dyn Disk>,
    seed: u64,
    second_every: u64,
    (shard, shards): (u64, u64),
) -> Check<Explored> {
    let (recorder, points) = explore(&SimDisk::new(), wrap, &Base::default(), everything)?;
    let mut explored = Explored { operations: points.len() as u64, ..Explored::default() };
    for (number, left) in points.iter().filter(|(number, _)| number % shards == shard) {
        for (way, &ending) in ENDINGS.iter().enumerate() {
            let seed = seed.wrapping_mul(1000).wrapping_add(way as u64) ^ number << 20;
            let at = format!("before operation {number}, {ending:?}, seed {seed}");
            let disk = lose(left, ending, seed);
            let base = recorder.base_before(*number, ending);
            explored.first += 1;
            let is_second = (number / shards) % second_every == 0 && way < 4;
            let result = if is_second {
                second(&disk, wrap, &base, seed).map(|opened| explored.second += opened)
            } else {
                once_more(&disk, wrap, &base, seed)
            };
            result.map_err(|error| format!("{at}: {error}"))?;
        }
    }
    Ok(explored)
}

/// Goes on, loses the disk at the end of it, and looks whether what was added is there.
fn once_more(disk: &SimDisk, wrap: fn(SimDisk) -> Arc<dyn Disk>, base: &Base, seed: u64) -> Check {
    let mut recorder = Recorder::new(disk.after_kill(), wrap, base.clone());
    let middle = Rng::new(seed).within(1..40);
    recorder.sim.crash_at(middle);
    go_on(&mut recorder)?;
    let mut points = recorder.sim.take_snapshots();
    points.push((recorder.sim.ops() + 1, recorder.sim.clone()));
    for (number, left) in points {
        let mode = if seed.is_multiple_of(2) { CrashMode::LoseAll } else { CrashMode::Random };
        let left = lose(&left, Some(mode), seed);
        let base = recorder.base_before(number, Some(mode));
        Recorder::new(left, wrap, base)
            .open()
            .map_err(|error| format!("then before operation {number}, {mode:?}: {error}"))?;
    }
    Ok(())
}

/// Goes on with every operation as a point to stop at.
fn second(disk: &SimDisk, wrap: fn(SimDisk) -> Arc<dyn Disk>, base: &Base, seed: u64) -> Check<u64> {
    let (recorder, points) = explore(disk, wrap, base, go_on)?;
    let mut opened = 0;
    for (number, left) in &points {
        for ending in &ENDINGS[..4] {
            let left = lose(left, *ending, seed ^ number);
            let base = recorder.base_before(*number, *ending);
            let mut third = Recorder::new(left, wrap, base);
            go_on(&mut third)
                .and_then(|()| {
                    let base = third.base_before(u64::MAX, Some(CrashMode::LoseAll));
                    let left = lose(&third.sim, Some(CrashMode::LoseAll), 0);
                    Recorder::new(left, wrap, base).open().map(drop)
                })
                .map_err(|error| format!("then before operation {number}, {ending:?}: {error}"))?;
            opened += 1;
        }
    }
    Ok(opened)
}
