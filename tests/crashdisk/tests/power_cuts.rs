//! The sweep finds what a power cut breaks, and nothing where all is well.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use common::{Bench, TINYLOG};
use rustix::process::{Pid, Signal, kill_process};

#[test]
fn a_log_that_keeps_its_promises_survives_every_kind_of_cut() {
    let bench = Bench::new();
    let Some(record) = bench.record(&["--acks-min=100", "--flushes-min=100"], "none") else { return };
    assert_eq!(record.code, Some(0), "{record:?}");
    assert_eq!(record.number("acks"), 100);
    let sweep = bench.sweep(&["--points=120", "--seed=1", "--jobs=2", "--acks-min=100"]).unwrap();
    assert_eq!(sweep.code, Some(0), "{sweep:?}");
    assert_eq!((sweep.number("images"), sweep.number("failures"), sweep.number("seed")), (120, 0, 1));
}

#[test]
fn an_ack_before_the_sync_is_found() {
    let bench = Bench::new();
    let Some(record) = bench.record(&[], "ack-early") else { return };
    assert_eq!(record.code, Some(0), "{record:?}");
    let sweep = bench.sweep(&["--points=120", "--seed=1"]).unwrap();
    assert_eq!(sweep.code, Some(1), "{sweep:?}");
    assert!(sweep.out.contains("was acknowledged"), "{sweep:?}");
    assert_eq!(sweep.number("failures"), 5);
}

#[test]
fn a_disk_that_lies_about_flushes_is_found_and_one_kept_image_fails_again() {
    let bench = Bench::new();
    let Some(record) = bench.record(&["--fault=lie"], "none") else { return };
    assert_eq!((record.code, record.number("flushes")), (Some(0), 0), "{record:?}");
    let options = ["--points=120", "--seed=3", "--max-fail=1", "--keep"];
    let sweep = bench.sweep(&options).unwrap();
    assert_eq!((sweep.code, sweep.number("failures")), (Some(1), 1), "{sweep:?}");

    let number = sweep.out.split_once("FAIL image ").unwrap().1.split(' ').next().unwrap().to_owned();
    let image = bench.path("work").join(format!("fail-{number}.img"));
    let first = fs::read(&image).unwrap();
    assert!(image.with_extension("acks").exists());
    fs::remove_file(&image).unwrap();
    let again = bench.sweep(&[&options[..], &[&format!("--only={number}")]].concat()).unwrap();
    assert_eq!((again.code, again.number("images"), again.number("failures")), (Some(1), 1, 1), "{again:?}");
    assert!(fs::read(&image).unwrap() == first, "the same seed gave another image");
}

#[test]
fn a_disk_that_fails_makes_the_program_fail_and_the_recording_with_it() {
    let bench = Bench::new();
    let Some(record) = bench.record(&["--fault=flush-eio 50"], "none") else { return };
    assert_eq!(record.code, Some(1), "{record:?}");
    assert!(record.number("acks") < 100, "{record:?}");
    // What it had acknowledged by then is still worth a sweep.
    let sweep = bench.sweep(&["--points=40"]).unwrap();
    assert_eq!(sweep.code, Some(0), "{sweep:?}");
}

/// Which write fails first depends on what the file system writes when: if it is one of its own, it takes no more writes, and
/// there is no error of a sync to swallow. So it is tried with several.
#[test]
fn a_swallowed_sync_error_is_found() {
    let mut seen = Vec::new();
    for from in [40, 45, 50, 60, 70, 80] {
        let bench = Bench::new();
        let fault = format!("--fault=write-eio 0 999999999 {from}");
        let Some(record) = bench.record(&[&fault], "ignore-sync-error") else { return };
        assert!(record.number("acks") > 1, "{record:?}");
        let sweep = bench.sweep(&["--points=60"]).unwrap();
        if sweep.code == Some(1) && sweep.number("failures") > 0 {
            return;
        }
        seen.push(sweep);
    }
    panic!("none was found: {seen:?}");
}

#[test]
fn a_log_with_too_little_in_it_is_no_proof() {
    let bench = Bench::new();
    let Some(record) = bench.record(&["--acks-min=101"], "none") else { return };
    assert_eq!(record.code, Some(1), "{record:?}");
    for minimum in ["--acks-min=101", "--flushes-min=100000"] {
        let sweep = bench.sweep(&["--points=4", minimum]).unwrap();
        assert_eq!((sweep.code, sweep.number("failures")), (Some(1), 0), "{sweep:?}");
    }
    let none = bench.sweep(&["--points=4", "--only=4"]).unwrap();
    assert_eq!((none.code, none.number("images")), (Some(1), 0), "{none:?}");
}

#[test]
fn the_checker_gets_all_acknowledgements_in_order_and_the_last_one() {
    let bench = Bench::new();
    let program = "for i in 1 2 3 4 5; do echo $i > $0/$i; sync; echo ack topic-$i durable; done";
    let Some(record) = bench.run("record", &[], &["sh", "-c", program, "{mnt}"]) else { return };
    assert_eq!((record.code, record.number("acks")), (Some(0), 5), "{record:?}");
    let seen = bench.path("seen");
    fs::create_dir(&seen).unwrap();
    let checker = "test \"$1\" = -1 || test \"$(tail -n 1 $2)\" = \"$1\" || exit 1; cp $2 $0/$(wc -l < $2)";
    let words = ["sh", "-c", checker, seen.to_str().unwrap(), "{ack}", "{acks}"];
    let sweep = bench.run("sweep", &[], &words).unwrap();
    assert_eq!(sweep.code, Some(0), "{sweep:?}");
    for count in 0..=5 {
        let expected: String = (1..=count).map(|i| format!("topic-{i} durable\n")).collect();
        assert_eq!(fs::read_to_string(seen.join(count.to_string())).unwrap(), expected);
    }
}

#[test]
fn a_checker_that_hangs_is_a_failure() {
    let bench = Bench::new();
    if bench.record(&[], "none").is_none() {
        return;
    }
    let sweep = bench.run("sweep", &["--points=1", "--timeout=1"], &["sleep", "100"]).unwrap();
    assert_eq!(sweep.code, Some(1), "{sweep:?}");
    assert!(sweep.out.contains("the checker hangs"), "{sweep:?}");
}

#[test]
fn an_interrupted_sweep_leaves_nothing_behind() {
    let bench = Bench::new();
    if bench.record(&[], "none").is_none() {
        return;
    }
    stopped_by(&bench, Signal::INT);
    assert_eq!(loop_devices_below(&bench.path("work")), 0);
}

#[test]
fn after_a_killed_sweep_the_next_one_works_in_the_same_directory() {
    let bench = Bench::new();
    if bench.record(&[], "none").is_none() {
        return;
    }
    stopped_by(&bench, Signal::KILL);
    let sweep = bench.sweep(&["--points=10"]).unwrap();
    assert_eq!(sweep.code, Some(0), "{sweep:?}");
    assert_eq!(loop_devices_below(&bench.path("work")), 0);
}

#[test]
fn two_runs_do_not_share_a_work_directory() {
    let bench = Bench::new();
    if bench.record(&[], "none").is_none() {
        return;
    }
    let started = bench.path("started");
    let mut first =
        bench.tool("mount", &[], &["sh", "-c", "touch $0; exec sleep 100", started.to_str().unwrap()]);
    let mut first = first.spawn().unwrap();
    wait_for(&started);
    let second = bench.sweep(&["--points=1"]).unwrap();
    kill_process(Pid::from_child(&first), Signal::TERM).unwrap();
    assert_eq!(first.wait().unwrap().code(), Some(quipu_crashdisk::EXIT_INTERRUPTED.into()));
    assert_eq!(second.code, Some(quipu_crashdisk::EXIT_TROUBLE.into()), "{second:?}");
    assert!(second.err.contains("another run"), "{second:?}");
}

#[test]
fn wrong_usage_says_so() {
    let bench = Bench::new();
    for (command, options) in [("sweep", "--point=1"), ("record", "--mib=x"), ("recrod", "--mib=1")] {
        let said = bench.run(command, &[options], &["true"]).unwrap();
        assert_eq!(said.code, Some(quipu_crashdisk::EXIT_USAGE.into()), "{said:?}");
    }
    let help = bench.run("help", &[], &[]).unwrap();
    assert!(help.code == Some(0) && help.out.contains("--flushes-min"), "{help:?}");
}

/// Starts a sweep whose checker sleeps, and ends it by a signal while it does.
fn stopped_by(bench: &Bench, signal: Signal) {
    let started = bench.path("started");
    let checker = ["sh", "-c", "touch $1/x $0; exec sleep 100", started.to_str().unwrap(), "{mnt}"];
    let mut sweep = bench.tool("sweep", &["--jobs=2"], &checker).stderr(Stdio::null()).spawn().unwrap();
    wait_for(&started);
    let begin = Instant::now();
    kill_process(Pid::from_child(&sweep), signal).unwrap();
    let status = sweep.wait().unwrap();
    match signal {
        Signal::KILL => assert_eq!(status.signal(), Some(9)),
        _ => assert_eq!(status.code(), Some(quipu_crashdisk::EXIT_INTERRUPTED.into())),
    }
    assert!(begin.elapsed() < Duration::from_secs(20));
}

fn wait_for(file: &Path) {
    let begin = Instant::now();
    while !file.exists() {
        assert!(begin.elapsed() < Duration::from_secs(30), "no {}", file.display());
        thread::sleep(Duration::from_millis(5));
    }
}

fn loop_devices_below(directory: &Path) -> usize {
    let files = fs::read_dir("/sys/block").unwrap().flatten();
    let files = files.filter_map(|device| fs::read_to_string(device.path().join("loop/backing_file")).ok());
    files.filter(|file| Path::new(file.trim_end()).starts_with(directory)).count()
}

#[test]
fn the_small_log_goes_on_where_it_ended() {
    let bench = Bench::new();
    let dir = bench.path("plain");
    for _ in 0..2 {
        let write = std::process::Command::new(TINYLOG).args(["write"]).arg(&dir).arg("30").output().unwrap();
        assert!(write.status.success());
    }
    let check = |ack: &str| {
        std::process::Command::new(TINYLOG).arg("check").arg(&dir).arg(ack).output().unwrap().status
    };
    assert!(check("59").success());
    assert!(!check("60").success());
}
