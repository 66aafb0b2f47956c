//! Histories of concurrent calls, under conditions and with power cuts: each has an order that explains it.
//!
//! `QUIPU_HISTORIES` says how many, `QUIPU_SEED` takes one seed, many times: threads do not do the same twice.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use quipu_tests::histories::play::{Coverage, history};

const HISTORIES: u64 = 2000;

fn from_env(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

#[test]
fn concurrent_calls_under_conditions_can_be_explained_by_an_order_of_them() {
    let seed = from_env("QUIPU_SEED");
    let count = from_env("QUIPU_HISTORIES").unwrap_or(HISTORIES);
    let next = AtomicU64::new(0);
    let total = Mutex::new(Coverage::default());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(2, usize::from) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    let seed = seed.unwrap_or(number);
                    let coverage = history(seed).unwrap_or_else(|error| panic!("QUIPU_SEED={seed}: {error}"));
                    total.lock().unwrap().add(&coverage);
                }
            });
        }
    });
    let total = total.into_inner().unwrap();
    println!("{total:#?}");
    if seed.is_none() && count >= 100 {
        total.check().unwrap();
    }
}
