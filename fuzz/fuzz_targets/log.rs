//! A golden bare log with one of its files damaged: it is opened and read without a panic, and no reader gets a record
//! that was not written.
//!
//! The input is that of [`quipu_fuzz::damage`]. It runs without guidance by compares (`-use_cmp=0`), as `store` does.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use quipu_fuzz::damage::{of_input, planted};
use quipu_fuzz::log::look;
use quipu_tests::golden::{Golden, logs};

static LOGS: LazyLock<[Golden; 2]> = LazyLock::new(logs);

fuzz_target!(|input: &[u8]| {
    let Some((number, file, damage)) = of_input(input) else { return };
    let (root, golden) = (Path::new("/log"), &LOGS[number]);
    look(&planted(root, golden, file, &damage), root, golden);
});
