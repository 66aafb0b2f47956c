//! The store against a plain model of it, in random sequences with closes, kills and power cuts.
//!
//! `QUIPU_MODEL_SEQUENCES` says how many, `QUIPU_MODEL_FIRST_SEED` where their seeds begin (0, so that each run repeats the
//! last; CI runs some from a new place each time); `QUIPU_SEED` repeats one.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::mpsc::{RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use quipu_tests::model::Check;
use quipu_tests::model::run::{
    Coverage, honest, sequence, sequence_without_compaction, sequence_without_erasure,
};

/// Seeds that had found something before there was erasure among the operations.
const REGRESSIONS: &[u64] = &[258, 6475];
/// Seeds that had found something before there was compaction among the operations.
const OLDER_REGRESSIONS: &[u64] = &[11, 23, 139, 313, 453, 1422, 2913, 15989];
const SEQUENCES: u64 = 10_000;
/// Failures that are printed before a run gives up.
const FAILURES_MAX: usize = 5;
/// A sequence takes milliseconds; one that takes this long goes round in circles.
const SEQUENCE_TIME_MAX: Duration = Duration::from_secs(60);

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

fn honest_sequence(seed: u64) -> Check<Coverage> {
    sequence(seed, honest)
}

/// Runs these seeds on all processors; panics with the seeds that failed.
fn run(seeds: impl Iterator<Item = u64> + Send, sequence: fn(u64) -> Check<Coverage>) -> Coverage {
    let seeds = Mutex::new(seeds);
    let failures = Mutex::new(Vec::new());
    let total = Mutex::new(Coverage::default());
    let under_way = Mutex::new(BTreeMap::new());
    let (done, all_done) = std::sync::mpsc::channel::<()>();
    let work = |_done: Sender<()>| {
        let mut coverage = Coverage::default();
        while failures.lock().unwrap().len() < FAILURES_MAX {
            let Some(seed) = seeds.lock().unwrap().next() else { break };
            under_way.lock().unwrap().insert(seed, Instant::now());
            match sequence(seed) {
                Ok(done) => coverage.add(&done),
                Err(error) => failures.lock().unwrap().push(format!("QUIPU_SEED={seed}: {error}")),
            }
            under_way.lock().unwrap().remove(&seed);
        }
        total.lock().unwrap().add(&coverage);
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(2, usize::from);
        for _ in 0..threads {
            let (done, work) = (done.clone(), &work);
            scope.spawn(move || work(done));
        }
        drop(done);
        // Nobody sends: it ends when the last thread has dropped its end.
        while all_done.recv_timeout(Duration::from_secs(1)) == Err(RecvTimeoutError::Timeout) {
            let under_way = under_way.lock().unwrap();
            if let Some((seed, _)) = under_way.iter().find(|(_, begun)| begun.elapsed() > SEQUENCE_TIME_MAX) {
                // A thread that never ends cannot be joined.
                eprintln!("QUIPU_SEED={seed}: does not end");
                std::process::exit(101);
            }
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "\n{}\n", failures.join("\n"));
    total.into_inner().unwrap()
}

#[test]
fn seeds_that_once_failed_pass() {
    run(REGRESSIONS.iter().chain(OLDER_REGRESSIONS).copied(), honest_sequence);
    run(REGRESSIONS.iter().chain(OLDER_REGRESSIONS).copied(), |seed| sequence_without_erasure(seed, honest));
    run(OLDER_REGRESSIONS.iter().copied(), |seed| sequence_without_compaction(seed, honest));
}

#[test]
fn a_store_behaves_like_a_list_of_records_through_closes_kills_and_power_cuts() {
    if let Some(seed) = from_env("QUIPU_SEED") {
        println!("{:#?}", run(std::iter::once(seed), honest_sequence));
        return;
    }
    let count = from_env("QUIPU_MODEL_SEQUENCES").unwrap_or(SEQUENCES);
    let first = from_env("QUIPU_MODEL_FIRST_SEED").unwrap_or(0);
    let coverage = run(first..first + count, honest_sequence);
    println!("{count} sequences from seed {first} on: {coverage:#?}");
    if count >= 100 {
        coverage.check(count).unwrap();
    }
}
