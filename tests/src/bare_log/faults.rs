//! Every operation fails once, in each way that it can.

use std::path::Path;
use std::sync::Arc;

use quipu_storage::disk::Disk;
use quipu_storage::{Durability, Error, ErrorKind, Log, Offset, Record};

use super::{Acked, DIR, check, check_records, killed, open, open_on, text};
use crate::faulty::{EIO, ENOSPC, Effect, Fault, FaultyDisk};
use crate::rng::Rng;
use crate::sim::{CrashMode, SimDisk};

const WAYS: [(i32, Effect); 4] =
    [(EIO, Effect::Nothing), (ENOSPC, Effect::Nothing), (ENOSPC, Effect::Prefix(100)), (EIO, Effect::Whole)];
const RECORDS: u64 = 60;

/// A run on a disk that fails once, as an application sees it: it repeats what was refused, and opens again what
/// failed. Returns how many records were acknowledged as synced.
fn stubborn_work(open: impl Fn() -> quipu_storage::Result<Log>) -> u64 {
    let (mut synced, mut tried) = (0, 0);
    let mut patience = 200;
    while synced < RECORDS {
        patience -= 1;
        assert!(patience > 0, "no way on after {synced} records");
        let Ok(log) = open() else { continue };
        let mut end = log.log_end_offset().value();
        assert!(end >= synced && end <= tried.max(synced), "{synced} synced, {tried} tried, {end} found");
        while end < RECORDS {
            tried = tried.max(end + 1);
            let durability = if end.is_multiple_of(3) { Durability::Synced } else { Durability::Written };
            match log.append_with(&[Record::new(text(end))], durability) {
                Ok(appended) => {
                    assert_eq!(appended.first_offset, Offset(end));
                    end += 1;
                    if durability == Durability::Synced {
                        synced = end;
                    }
                }
                Err(Error::StorageFailed { .. }) => break,
                Err(_) => {
                    assert_eq!(log.log_end_offset(), Offset(end), "nothing was applied");
                    patience -= 1;
                }
            }
            if end == 20 && log.log_start_offset() == Offset::ZERO {
                let _ = log.trim(Offset(synced.min(7)));
            }
        }
        if end == RECORDS && log.close().is_ok() {
            synced = RECORDS;
        }
    }
    synced
}

/// Lets each operation of a run fail in each way; those whose number modulo `shards` is `shard`. Answers how many faults
/// there were.
pub fn run(wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>, (shard, shards): (u64, u64)) -> u64 {
    let open_wrapped = |disk: &FaultyDisk| open_on(wrap(Arc::new(disk.clone())));
    let rehearsal = FaultyDisk::over_sim(SimDisk::new());
    stubborn_work(|| open_wrapped(&rehearsal));
    let count = rehearsal.op_count();
    assert!(count > 150, "{count}");
    let mut faults = 0;
    for nth in (1..=count).filter(|nth| nth % shards == shard) {
        for (error, effect) in WAYS {
            let sim = SimDisk::new();
            // Whoever chose the directory made it: one whose own name is lost cannot be helped from inside.
            sim.create_dir(Path::new(DIR)).and_then(|()| sim.sync_dir(Path::new("/"))).unwrap();
            let disk = FaultyDisk::over_sim(sim.clone());
            disk.fail(Fault::any(nth, error).after(effect));
            let synced = stubborn_work(|| open_wrapped(&disk));
            let what = format!("operation {nth} fails with {error} after {effect:?}");
            let trims = Acked { synced, trimmed: 0, trim_asked: 7 };
            check(&sim.crash_with(CrashMode::LoseAll, &mut Rng::new(nth)), trims, &what);
            faults += disk.fault_count();
        }
    }
    faults
}

/// What is recovered: a log that was killed, or whose power was cut, with what of it was synced.
fn remains() -> Vec<(String, SimDisk, u64)> {
    let mut remains = Vec::new();
    // In the middle of a segment, right behind one, and in several that were not synced.
    for (synced, end) in [(0, 0), (0, 3), (3, 5), (10, 12), (5, 40), (40, 40)] {
        let disk = killed(synced, end);
        remains.push((format!("killed with {synced} of {end} synced"), disk.after_kill(), end));
        for seed in 0..4 {
            let left = disk.crash(&mut Rng::new(seed));
            remains.push((format!("cut with {synced} of {end} synced, seed {seed}"), left, synced));
        }
        let closed = disk.after_kill();
        open(&closed).and_then(|log| log.close()).unwrap();
        remains.push((format!("closed with {end}"), closed, end));
    }
    remains
}

/// Lets each operation of the recovery, and of the first append behind it, fail in each way: the log opens or says what
/// to do, and without the fault it opens with everything that was acknowledged, also if the power goes at any time of
/// this. Of the logs each `every`th is taken. Answers how many faults there were, and how many openings failed.
pub fn run_recovery(wrap: fn(Arc<dyn Disk>) -> Arc<dyn Disk>, every: usize) -> (u64, u64) {
    let (mut faults, mut refused) = (0, 0);
    for (name, disk, acknowledged) in remains().into_iter().step_by(every) {
        for nth in 1.. {
            let mut was_hit = false;
            for (error, effect) in WAYS {
                let sim = disk.after_kill();
                let faulty = FaultyDisk::over_sim(sim.clone());
                faulty.fail(Fault::any(nth, error).after(effect));
                let what = format!("{name}: operation {nth} fails with {error} after {effect:?}");
                let mut least = acknowledged;
                match open_on(wrap(Arc::new(faulty.clone()))) {
                    Ok(log) => {
                        let end = log.log_end_offset().value();
                        assert!(end >= least, "{what}: {least} were there, {end} are left");
                        // Seen is as good as acknowledged.
                        least = end;
                        if log.append(&[Record::new(text(end))]).is_ok() {
                            least += 1;
                        }
                    }
                    Err(error) => {
                        let kind = error.kind();
                        let may_answer =
                            matches!(kind, ErrorKind::Retry | ErrorKind::DiskFull | ErrorKind::Reopen);
                        assert!(may_answer, "{what}: {error:?}");
                        refused += 1;
                    }
                }
                if faulty.fault_count() == 0 {
                    break;
                }
                was_hit = true;
                faults += 1;
                // What was never synced may go with the power.
                let is_cut_before = least == acknowledged && !name.starts_with("closed");
                if !is_cut_before {
                    let acked = Acked { synced: least, ..Acked::default() };
                    check(&sim.crash_with(CrashMode::LoseAll, &mut Rng::new(nth)), acked, &what);
                }
                let again = open(&sim).unwrap_or_else(|error| panic!("{what}: again: {error}"));
                let end = again.log_end_offset().value();
                assert!(end >= least, "{what}: {least} were there, {end} are left");
                check_records(&again, 0, end, &what);
                drop(again);
                for mode in [CrashMode::LoseAll, CrashMode::Random] {
                    let left = sim.crash_with(mode, &mut Rng::new(nth));
                    check(
                        &left,
                        Acked { synced: end, ..Acked::default() },
                        &format!("{what}, then {mode:?}"),
                    );
                }
            }
            if !was_hit {
                break;
            }
        }
    }
    (faults, refused)
}
