//! A process that is killed at any moment loses nothing that it was told was written.
//!
//! The page cache survives a SIGKILL, so this says nothing about syncs (`power_cuts.rs` does): it is about the state of
//! the process, and about recovery on top of recovery. One directory goes through all of it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{Bench, WORKLOAD};
use quipu_tests::rng::Rng;
use quipu_tests::workload::{Acks, Survived, check};

/// Under a sanitizer a kill takes far longer.
fn kills() -> u16 {
    std::env::var("QUIPU_KILLS").map_or(200, |text| text.parse().unwrap())
}

#[test]
fn a_store_killed_again_and_again_loses_nothing_that_was_written() {
    let kills = kills();
    let survived = survive(kills, &[]).unwrap_or_else(|why| panic!("{why}"));
    assert!(
        survived.while_at_work > kills / 2,
        "only {} were killed after they had begun to work",
        survived.while_at_work
    );
    assert!(survived.appends > u64::from(kills) * 10, "only {} appends in all", survived.appends);
}

/// Synced appends are in memory until their sync: who is told before loses them with the process.
#[cfg(feature = "planted-bugs")]
#[test]
fn an_append_that_is_acknowledged_before_its_sync_is_found() {
    let why = survive(200, &["--bug=acknowledge-before-sync"]).err().expect("nobody noticed");
    println!("{why:.300}");
}

struct Survivors {
    while_at_work: u16,
    appends: u64,
}

/// Kills so many runs; says what is missing.
fn survive(kills: u16, options: &[&str]) -> Result<Survivors, String> {
    let seed = std::env::var("QUIPU_SEED").map_or(1, |text| text.parse().unwrap());
    let mut rng = Rng::new(seed);
    let bench = Bench::new();
    let dir = bench.path("store");
    let mut acks = Acks::default();
    let mut survived = Survivors { while_at_work: 0, appends: 0 };
    for run in 0..kills {
        // From right after the start to well within checkpoints and retention.
        let most = if rng.chance(30) { 600 } else { 100 };
        let (lines, micros) = (rng.below(most), rng.below(2_000));
        let lines = killed_after(&dir, run, seed, options, lines, Duration::from_micros(micros));
        survived.while_at_work += u16::from(lines.len() > 10);
        lines.iter().for_each(|line| acks.take(line).unwrap());
        match check(&dir, &acks, Survived::Kill) {
            Ok(checked) => survived.appends = checked.appends,
            Err(why) => {
                // One that was planted is not worth keeping.
                let place = if options.is_empty() { bench.keep() } else { dir };
                return Err(format!("kill {run}, in {}: {why}", place.display()));
            }
        }
    }
    Ok(survived)
}

/// Starts a run, kills it some time after so many acknowledgements, and returns all of them.
fn killed_after(
    dir: &Path,
    run: u16,
    seed: u64,
    options: &[&str],
    lines: u64,
    time: Duration,
) -> Vec<String> {
    let mut child = Command::new(WORKLOAD)
        .args(["write", dir.to_str().unwrap(), "--scenario=mixed", "--count=1000000"])
        .args([format!("--run={run}"), format!("--seed={seed}")])
        .args(options)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut text = String::new();
    for _ in 0..=lines {
        out.read_line(&mut text).unwrap();
    }
    let rest = std::thread::spawn(move || {
        let mut rest = String::new();
        out.read_to_string(&mut rest).unwrap();
        rest
    });
    // Not to wait for anything: the moment of the kill is what is to be tried.
    std::thread::sleep(time);
    child.kill().unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), None, "it ended by itself: {status}");
    text += &rest.join().unwrap();
    // A line without its end promises nothing.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole.lines().filter_map(|line| line.strip_prefix("ack ")).map(str::to_owned).collect()
}
