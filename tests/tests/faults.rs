//! Every operation of the disk failed once, and full disks.

use quipu_tests::faults::{fail_each_sync, honest, run};
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

/// With all threads at work.
#[test]
fn a_failed_sync_is_heard_of_whichever_thread_made_it() {
    for scenario in Scenario::EVERY {
        let count = fail_each_sync(scenario).unwrap_or_else(|error| panic!("{error}"));
        println!("{scenario:?}: {count} faults");
        assert!(count > 30, "{scenario:?}: {count}");
    }
}
