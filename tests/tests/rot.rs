//! Damaged files: every bit flipped, and what else can happen to a file.

use quipu_tests::rot::{Flipped, run};

#[test]
fn every_flipped_bit_is_noticed_and_costs_no_intact_record() {
    let shards = std::thread::available_parallelism().map_or(2, usize::from);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..shards).map(|shard| scope.spawn(move || run((shard, shards)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut all = Flipped::default();
    for outcome in outcomes {
        let flipped = outcome.unwrap_or_else(|complaint| panic!("{complaint}"));
        all.bits += flipped.bits;
        all.reported += flipped.reported;
        all.torn += flipped.torn;
    }
    println!("{all:?}");
    assert!(all.bits > 50_000 && all.reported > all.bits / 2 && all.torn > 1000);
}
