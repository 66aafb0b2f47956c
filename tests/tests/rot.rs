//! Damaged files: a flipped bit, wherever it is. `QUIPU_ROT_SHARE=1` flips every bit; by default every 128th byte's.

use quipu_tests::rot::{Flipped, run};

#[test]
#[ignore = "does not end in minutes: a flip that is looked at for ever, or many slow ones"]
fn every_flipped_bit_is_noticed_and_costs_no_intact_record() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    // All of them take many minutes: by default every 128th byte has its bits flipped.
    let share: usize = std::env::var("QUIPU_ROT_SHARE").map_or(128, |share| share.parse().unwrap());
    let shards = threads * share;
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..threads).map(|thread| scope.spawn(move || run((thread * share, shards)))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut all = Flipped::default();
    for outcome in outcomes {
        let flipped = outcome.unwrap_or_else(|complaint| panic!("{complaint}"));
        all.bits += flipped.bits;
        all.reported += flipped.reported;
        all.torn += flipped.torn;
    }
    eprintln!("{all:?}");
    let whole = share as u64;
    assert!(all.bits * whole > 20_000 && all.reported > all.bits / 2);
}
