//! Every operation of the disk failed once, and full disks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::Arc;

use quipu_storage::disk::Disk as _;
use quipu_tests::faults::{honest, run};
use quipu_tests::faulty::{EIO, Fault, FaultyDisk, Op, OpKind};
use quipu_tests::sim::SimDisk;
use quipu_tests::workload::{Scenario, Write, write};

#[test]
fn every_operation_of_the_disk_may_fail_once() {
    let shards = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let counts: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..shards).map(|shard| scope.spawn(move || run(honest, (shard, shards)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let count: u64 = counts.into_iter().map(|count| count.unwrap_or_else(|error| panic!("{error}"))).sum();
    println!("{count} faults");
    assert!(count > 1000);
}

/// With all threads at work. Whoever made the sync: the run ends with an error, at the latest when the store is closed.
#[test]
fn a_failed_sync_is_heard_of_whichever_thread_made_it() {
    let mut counts = Vec::new();
    for scenario in Scenario::EVERY {
        let mut count = 0;
        for kind in [OpKind::Sync, OpKind::SyncDir] {
            for nth in 1.. {
                let sim = SimDisk::new();
                sim.create_dir("/store".as_ref()).unwrap();
                let disk = FaultyDisk::over_sim(sim);
                disk.fail(Fault::of(kind, nth, EIO));
                let run = Write { disk: Arc::new(disk.clone()), ..Write::new("/store", scenario, 1, 24) };
                let outcome = write(&run, &|_| ());
                let ops = disk.ops();
                // No run has so many.
                let Some(failed) = ops.iter().position(|op| op.was_failed) else { break };
                count += 1;
                let Op { path, .. } = &ops[failed];
                let may_be_silent = kind == OpKind::Sync && is_discarded(path, &ops[failed + 1..]);
                assert!(
                    outcome.is_err() || may_be_silent,
                    "{scenario:?}: {kind:?} no. {nth}, of {}, failed unheard",
                    path.display()
                );
            }
        }
        counts.push((scenario, count));
    }
    println!("{counts:?}");
    assert!(counts.iter().all(|(_, count)| *count > 30), "{counts:?}");
}

/// Whether the file was given up right after its sync had failed, so that nothing depends on it.
fn is_discarded(path: &Path, later: &[Op]) -> bool {
    later.iter().find(|op| op.path == path).is_some_and(|op| op.kind == OpKind::Remove)
}
