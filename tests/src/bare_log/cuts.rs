//! The power goes before every operation, into every kind of remains.
//!
//! After each cut: it opens, the offsets are dense, what was acknowledged as synced is there and has not changed, what
//! was trimmed stays away, and appends go on.

use std::ops::RangeInclusive;
use std::sync::Arc;

use quipu_storage::disk::Disk;
use quipu_storage::{Durability, Log, Offset, Record};

use super::{Acked, check, open, open_on, text};
use crate::rng::Rng;
use crate::sim::{CrashMode, SimDisk};

/// Appends, syncs, trims, closes and opens again, until the power goes. Tells of each acknowledgement.
fn work(
    open: impl Fn() -> quipu_storage::Result<Log>,
    seed: u64,
    mut acked: impl FnMut(Acked),
) -> quipu_storage::Result<()> {
    let mut rng = Rng::new(seed);
    let mut known = Acked::default();
    for _ in 0..3 {
        let log = open()?;
        let mut end = log.log_end_offset().value();
        for _ in 0..14 {
            match rng.below(10) {
                0..5 => {
                    let count = rng.below(4) + 1;
                    let records: Vec<_> = (end..end + count).map(|n| Record::new(text(n))).collect();
                    end = log.append_with(&records, Durability::Written)?.next_offset.value();
                }
                5..8 => {
                    end = log.append(&[Record::new(text(end))])?.next_offset.value();
                    known.synced = end;
                }
                8 => {
                    log.sync()?;
                    known.synced = end;
                }
                _ => {
                    let offset = log.log_start_offset().value().midpoint(log.high_watermark().value());
                    known.trim_asked = known.trim_asked.max(offset);
                    acked(known);
                    log.trim(Offset(offset))?;
                    known.trimmed = known.trimmed.max(offset);
                }
            }
            acked(known);
        }
        log.close()?;
        known.synced = end;
        acked(known);
    }
    Ok(())
}

/// A copy of the disk before one of its operations.
#[derive(Debug)]
pub struct Cut {
    number: u64,
    left: SimDisk,
    /// What was acknowledged by then.
    acked: Acked,
}

/// A run with a cut before each of its operations.
pub fn record(wrap: fn(SimDisk) -> Arc<dyn Disk>, seed: u64) -> Vec<Cut> {
    let disk = SimDisk::new();
    (1..5000).for_each(|number| disk.crash_at(number));
    let mut acks = vec![(0, Acked::default())];
    work(|| open_on(wrap(disk.clone())), seed, |acked| acks.push((disk.ops(), acked))).unwrap();
    let cut = |(number, left)| {
        // Acknowledged before operation `number` began; a trim may have been asked for and be under way.
        let reached = acks.partition_point(|(ops, _)| *ops < number);
        let asked = acks.get(reached).map_or(0, |(_, acked)| acked.trim_asked);
        let mut acked = acks[reached - 1].1;
        acked.trim_asked = acked.trim_asked.max(asked);
        Cut { number, left, acked }
    };
    disk.take_snapshots().into_iter().map(cut).collect()
}

/// Loses the disk in several ways at each cut, and looks what is left. Answers how often.
pub fn check_each(seed: u64, cuts: &[Cut]) -> u64 {
    let mut count = 0;
    for Cut { number, left, acked } in cuts {
        let mut rng = Rng::new(seed * 10_000 + number);
        for mode in [CrashMode::KeepAll, CrashMode::LoseAll] {
            let left = left.crash_with(mode, &mut rng);
            check(&left, *acked, &format!("seed {seed}, operation {number}, {mode:?}"));
        }
        for roll in 0..3 {
            let left = left.crash(&mut rng);
            check(&left, *acked, &format!("seed {seed}, operation {number}, roll {roll}"));
        }
        count += 5;
    }
    count
}

/// Cuts the runs of these seeds before each of their operations. Answers the number of cuts.
pub fn run(wrap: fn(SimDisk) -> Arc<dyn Disk>, seeds: RangeInclusive<u64>) -> u64 {
    seeds.map(|seed| check_each(seed, &record(wrap, seed))).sum()
}

/// Cuts them now and then, and the recovery from that before each second of its operations. Answers the number of cuts
/// in recoveries.
pub fn run_twice(wrap: fn(SimDisk) -> Arc<dyn Disk>, seeds: RangeInclusive<u64>) -> u64 {
    let mut cuts = 0;
    for seed in seeds {
        for Cut { number, left, acked } in record(wrap, seed).into_iter().step_by(5) {
            let mut rng = Rng::new(seed * 10_000 + number);
            let left = left.crash(&mut rng);
            // Recover a copy first to know how many operations that takes.
            let rehearsal = left.after_kill();
            let before = rehearsal.ops();
            drop(open(&rehearsal).unwrap());
            for at in (before + 1..=rehearsal.ops()).step_by(2) {
                let halting = left.after_kill();
                halting.halt_at(halting.ops() + at - before);
                let opened = open_on(wrap(halting.clone()));
                drop(opened);
                let what = format!("seed {seed}, operation {number}, cut at {at} of the recovery");
                check(&halting.crash(&mut rng), acked, &what);
                cuts += 1;
            }
        }
    }
    cuts
}
