//! Every operation of the disk failed once, and full disks.

use quipu_tests::faults::{fail_each_sync, honest, run};
use quipu_tests::faulty::OpKind;
use quipu_tests::recovery_faults::{self, Recoveries};
use quipu_tests::workload::Scenario;

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

#[test]
fn every_operation_of_a_recovery_may_fail_once() {
    let shards = std::thread::available_parallelism().map_or(2, usize::from);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..shards).map(|shard| scope.spawn(move || recovery_faults::run((shard, shards)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut all = Recoveries::default();
    for outcome in outcomes {
        let part = outcome.unwrap_or_else(|error| panic!("{error}"));
        all.images += part.images;
        all.faults += part.faults;
        all.refused += part.refused;
        all.failed.extend(part.failed);
    }
    println!("{} images, {} faults, {} openings refused", all.images, all.faults, all.refused);
    println!("{:?}", all.failed);
    assert!(all.images >= 20 && all.faults > 2000 && all.refused > 500);
    // What is in doubt, the checkpoint, a torn end, names that were never synced, what is left over, and what is cut.
    for wanted in [
        (OpKind::Write, "journal file"),
        (OpKind::Sync, "journal file"),
        (OpKind::OpenCreate, "checkpoint.new"),
        (OpKind::Rename, "checkpoint.new"),
        (OpKind::OpenCreate, "torn-tail"),
        (OpKind::Rename, "journal file"),
        (OpKind::Rename, "new journal file"),
        (OpKind::SyncDir, "journal"),
        (OpKind::List, "topics"),
        (OpKind::OpenRead, "segment"),
        (OpKind::SetLen, "segment"),
        (OpKind::Remove, "segment"),
    ] {
        assert!(all.failed.contains(&wanted), "{wanted:?} was never failed");
    }
}

/// With all threads at work.
#[test]
fn a_failed_sync_is_heard_of_whichever_thread_made_it() {
    for scenario in Scenario::EVERY {
        let count = fail_each_sync(scenario).unwrap_or_else(|error| panic!("{error}"));
        println!("{scenario:?}: {count} faults");
        assert!(count > 30, "{scenario:?}: {count}");
    }
}
