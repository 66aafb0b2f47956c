//! Bugs planted on purpose that the flipping of bits must find: one that stays green on them proves nothing.
//!
//! A bug is planted for the whole process, so they are tried one after the other, in one test.

use quipu_storage::planted::{Bug, plant};
use quipu_tests::rot::{run, run_on};

#[test]
fn each_planted_bug_is_found_by_flipping_bits() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    for bug in [Bug::SkipChecksums, Bug::TruncateOnRot] {
        plant(bug);
        let outcome = run_on(threads);
        plant(Bug::None);
        let complaint = outcome.expect_err(&format!("nobody found {bug:?}"));
        println!("{bug:?}: {complaint}");
    }
    // And without one it is content, with as much as it took to find them.
    let flipped = run((0, 97)).unwrap_or_else(|complaint| panic!("{complaint}"));
    assert!(flipped.bits > 500, "{flipped:?}");
}
