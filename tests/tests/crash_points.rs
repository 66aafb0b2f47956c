//! Every operation of the disk as the last one before a crash, and every operation of the recovery after it.
//!
//! `QUIPU_SEED` chooses what a power cut takes; `QUIPU_SECOND_EVERY` says for how many points the recovery is cut as well, and
//! `QUIPU_CRASH_SHARE` that only one point in so many is looked at, where all take too long.

use quipu_tests::crash_points::run;
use quipu_tests::model::run::honest;

fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .map_or(default, |value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn a_store_survives_a_crash_at_every_operation_and_at_every_operation_of_its_recovery() {
    let seed = from_env("QUIPU_SEED", 1);
    let second_every = from_env("QUIPU_SECOND_EVERY", 32);
    let threads = std::thread::available_parallelism().map_or(2, usize::from) as u64;
    let share = from_env("QUIPU_CRASH_SHARE", 1);
    let shards = threads * share;
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..threads)
            .map(|shard| scope.spawn(move || run(honest, seed, second_every, (shard, shards))))
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let (mut operations, mut first, mut second) = (0, 0, 0);
    for outcome in outcomes {
        let explored = outcome.unwrap_or_else(|error| panic!("QUIPU_SEED={seed}: {error}"));
        operations = explored.operations;
        first += explored.first;
        second += explored.second;
    }
    println!("{operations} operations, {first} crashes, {second} crashes in recoveries from them");
    assert!(operations > 300 && first >= 6 * operations / share - 6 * threads);
    assert!(share > 1 || second > 2 * operations);
}
