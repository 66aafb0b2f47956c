//! Every operation of a recovery fails once, in each way that it can.
//!
//! What is recovered comes from the script of the [crash points](crate::crash_points): killed or cut off before any of
//! its operations. Of all these, those are taken whose recovery does something to the disk that no other did. Opening
//! with a fault answers `Ok` or an error that says what to do; what is then opened again without one, or loses its power
//! first, shows everything that had been acknowledged, in the script, by the opening and by what was appended after it.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;

use quipu_storage::disk::Disk;
use quipu_storage::{Append, ErrorKind, Record, Store};

use crate::crash_points::{Base, everything, explore, lose};
use crate::ensure;
use crate::faults::{Planned, may_answer, ways};
use crate::faulty::{Fault, FaultyDisk, Op, OpKind};
use crate::model::run::{STORE, honest, settings};
use crate::model::{Check, Ending, Event, Model, TestClock, expected, verify};
use crate::rng::Rng;
use crate::sim::{CrashMode, SimDisk};

/// What a run went through.
#[derive(Clone, Debug, Default)]
pub struct Recoveries {
    /// Disks that were recovered.
    pub images: u64,
    /// Operations that failed.
    pub faults: u64,
    /// Openings that failed.
    pub refused: u64,
    /// What was failed: the operation, and of what.
    pub failed: BTreeSet<(OpKind, &'static str)>,
}

/// A disk to be recovered.
struct Image {
    what: String,
    disk: SimDisk,
    base: Base,
}

/// At least so many, also if the later ones bring nothing new but a combination.
const IMAGES: usize = 24;

/// What a file is, whatever its number.
fn what_it_is(path: &Path) -> &'static str {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or("");
    let known = ["checkpoint", "checkpoint.new", "clean", "lock", "live", "torn-tail", "journal", "topics"];
    if let Some(known) = known.into_iter().find(|known| *known == name) {
        return known;
    }
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("journal") => "journal file",
        Some("new") => "new journal file",
        Some("segment") => "segment",
        _ if path.parent().is_some_and(|parent| parent.ends_with("topics")) => "topic",
        _ => "store",
    }
}

fn kinds(ops: &[Op]) -> BTreeSet<(OpKind, &'static str)> {
    ops.iter().map(|op| (op.kind, what_it_is(&op.path))).collect()
}

fn images() -> Check<Vec<Image>> {
    let (recorder, points) = explore(&SimDisk::new(), honest, &Base::default(), everything)?;
    let (mut seen, mut combinations, mut images) = (BTreeSet::new(), BTreeSet::new(), Vec::new());
    for (number, left) in &points {
        for (way, ending) in [None, Some(CrashMode::LoseAll), Some(CrashMode::Random)].into_iter().enumerate()
        {
            let disk = lose(left, ending, number * 10 + way as u64);
            let base = recorder.base_before(*number, ending);
            let what = format!("before operation {number}, {ending:?}");
            let faulty = FaultyDisk::over_sim(disk.after_kill());
            drop(session(&faulty, &base).map_err(|complaint| format!("{what}: {complaint}"))?);
            let kinds = kinds(&faulty.ops());
            let is_new = !kinds.is_subset(&seen);
            let is_another = combinations.insert(kinds.clone()) && images.len() < IMAGES && number % 3 == 0;
            seen.extend(kinds);
            if is_new || is_another {
                images.push(Image { what, disk, base });
            }
        }
    }
    Ok(images)
}

/// How far somebody came.
struct Session {
    /// Held, so that it is not closed: its process is killed.
    store: Option<Store>,
    /// What must and may be there, if it was opened.
    model: Option<Model>,
}

fn open(disk: Arc<dyn Disk>, time: u64) -> quipu_storage::Result<(Store, Arc<TestClock>)> {
    let clock = TestClock::at(time);
    let builder = Store::builder().settings(settings()).disk(disk).clock(clock.clone());
    builder.open(STORE).map(|store| (store, clock))
}

/// Opens, appends to each topic and makes a checkpoint, on a disk where one thing may fail.
fn session(disk: &FaultyDisk, base: &Base) -> Check<Session> {
    let (store, clock) = match open(Arc::new(disk.clone()), base.time + 1000) {
        Ok(opened) => opened,
        Err(error) => {
            ensure!(disk.fault_count() > 0, "open without a fault: {error:?}");
            ensure!(may_answer(&error), "open answers {error:?}");
            return Ok(Session { store: None, model: None });
        }
    };
    let look = || {
        let mut model = base.now.clone();
        model.settle(&store, Ending::PowerCut)?;
        verify::store(&store, &model.current).map(|()| model)
    };
    // A reader may be hit; then it looks again. If it has failed for good, the next opening shows what there is.
    let looked = look().or_else(|complaint| if disk.fault_count() > 0 { look() } else { Err(complaint) });
    let mut model = match looked {
        Ok(model) => model,
        Err(_) if store.stats().failure.is_some() => return Ok(Session { store: Some(store), model: None }),
        Err(complaint) => return Err(complaint),
    };
    for topic in store.topics() {
        clock.set(clock.millis() + 1);
        let name = topic.name().to_string();
        let records = [Record::keyed("key 1", format!("after {}", base.time))];
        let event = Event::Appended { parts: vec![(name.clone(), expected(&records, Some(clock.millis())))] };
        let append = Append::new().records(&topic, &records).map_err(|error| error.to_string())?;
        match store.append(append) {
            Ok(_) => {
                model.push(event);
                model.sync();
            }
            Err(error) => {
                ensure!(disk.fault_count() > 0 && may_answer(&error), "{name}: append answers {error:?}");
                if error.kind() == ErrorKind::Reopen {
                    model.push(event);
                    break;
                }
            }
        }
    }
    match store.checkpoint() {
        Ok(()) => model.sync(),
        Err(error) => ensure!(disk.fault_count() > 0 && may_answer(&error), "checkpoint answers {error:?}"),
    }
    Ok(Session { store: Some(store), model: Some(model) })
}

/// Opens without a fault: everything is there. If the power goes then, it still is.
fn open_again(left: &SimDisk, mut model: Model, time: u64, ends: &[CrashMode]) -> Check {
    let (store, _) = open(Arc::new(left.clone()), time).map_err(|error| format!("open again: {error:?}"))?;
    model.settle(&store, Ending::PowerCut)?;
    verify::store(&store, &model.current)?;
    let damage = store.stats().damage_found;
    ensure!(damage == 0, "readers met damage {damage} times");
    let Some((end, ends)) = ends.split_first() else { return Ok(()) };
    let cut = left.crash_with(*end, &mut Rng::new(time));
    open_again(&cut, model, time + 1000, ends).map_err(|complaint| format!("{end:?}: {complaint}"))
}

fn fail_once(image: &Image, planned: Planned, recoveries: &mut Recoveries) -> Check {
    let Image { disk, base, .. } = image;
    let sim = disk.after_kill();
    let faulty = FaultyDisk::over_sim(sim.clone());
    faulty.fail(Fault::any(planned.number, planned.raw_os_error).after(planned.effect));
    let session = session(&faulty, base)?;
    let Some(hit) = faulty.ops().into_iter().find(|op| op.was_failed) else { return Ok(()) };
    recoveries.faults += 1;
    recoveries.refused += u64::from(session.store.is_none());
    recoveries.failed.insert((hit.kind, what_it_is(&hit.path)));
    let left = sim.after_kill();
    drop(session.store);
    let time = base.time + 2000;
    for mode in [CrashMode::LoseAll, CrashMode::Random] {
        let cut = left.crash_with(mode, &mut Rng::new(planned.number));
        let model = session.model.as_ref().unwrap_or(&base.after_cut).clone();
        open_again(&cut, model, time, &[]).map_err(|complaint| format!("{mode:?}: {complaint}"))?;
    }
    let model = session.model.as_ref().unwrap_or(&base.now).clone();
    open_again(&left, model, time, &[CrashMode::LoseAll])?;
    Ok(())
}

/// Fails each operation of each recovery; of the images those whose number modulo `shards` is `shard`.
pub fn run((shard, shards): (usize, usize)) -> Check<Recoveries> {
    let mut recoveries = Recoveries::default();
    for image in images()?.iter().skip(shard).step_by(shards) {
        recoveries.images += 1;
        let rehearsal = FaultyDisk::over_sim(image.disk.after_kill());
        drop(session(&rehearsal, &image.base)?);
        for (number, op) in (1..).zip(rehearsal.ops()) {
            for (raw_os_error, effect) in ways(op.kind) {
                let planned = Planned { number, raw_os_error, effect };
                fail_once(image, planned, &mut recoveries)
                    .map_err(|complaint| format!("{}, {planned:?} of {op:?}: {complaint}", image.what))?;
            }
        }
    }
    Ok(recoveries)
}
