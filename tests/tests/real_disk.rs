//! Disks that fill up, fail, or run out of handles: clean errors, nothing lost, and work goes on when it can.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::process::Command;

use common::{Bench, DISK_CASES, Said, WORKLOAD, said};

/// Runs a case on a disk of its own.
fn on_a_disk(name: &str) -> Option<Said> {
    // ext4 commits its journal only when it is asked to: what fails is then the store's.
    let options = ["--mib=24", "--opts=noatime,commit=300"];
    let said = Bench::new().crashdisk("mount", &options, &[DISK_CASES, name, "{mnt}/store", "{ctl}"])?;
    assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
    Some(said)
}

#[test]
fn a_full_disk_refuses_cleanly_reads_go_on_and_a_trim_frees_it() {
    let bench = Bench::new();
    let Some(said) = bench.crashdisk("mount", &["--mib=12"], &[DISK_CASES, "full", "{mnt}/store"]) else {
        return;
    };
    assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
}

#[test]
fn a_full_disk_costs_nothing_that_was_acknowledged_and_work_goes_on_when_there_is_room() {
    let write = |run: u32, count: u32| {
        format!("{WORKLOAD} write {{dir}} --scenario=append --seed=2 --run={run} --count={count}")
    };
    let check = format!("{WORKLOAD} check {{dir}} {{acks}} --killed --full");
    let words = ["--mib", "10", "--write", &write(0, 1_000_000), "--check", &check, "--again", &write(1, 50)];
    let Some(said) = Bench::new().tool("disk_full.sh", &words) else { return };
    assert_eq!(said.code, Some(0), "{said:?}");
    // Full or not: once it was there to be looked at.
    assert!(said.out.contains("checked: "), "{said:?}");
    assert!(said.number("acks") > 1000, "{said:?}");
}

#[test]
fn a_failed_flush_is_final_and_reopening_works_when_the_disk_is_well() {
    on_a_disk("sync");
}

#[test]
fn a_failed_write_is_final_and_reopening_works_when_the_disk_is_well() {
    on_a_disk("write");
}

#[test]
fn a_bad_sector_under_a_map_costs_its_records_only_and_is_no_signal() {
    on_a_disk("read");
}

#[test]
fn too_few_file_handles_are_an_error_and_cost_nothing() {
    let bench = Bench::new();
    let store = bench.path("store");
    let output =
        Command::new("prlimit").args(["--nofile=48", DISK_CASES, "files"]).arg(store).output().unwrap();
    let said = said(&output).unwrap();
    assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
}

/// Fails the calls of a workload, one at a time: each of them and not a few, because which thread of the store makes the
/// n-th one is not the same on every machine.
fn fail_each(calls: &str, faults_min: u64, options: &[&str]) -> Option<Said> {
    let bench = Bench::new();
    let dir = bench.path("store").display().to_string();
    let check = format!("{WORKLOAD} check {{dir}} {{acks}} --killed");
    let faults_min = format!("--faults-min={faults_min}");
    let tool = ["--dir", &dir, "--check", &check, "--calls", calls, "--max-per-call=1000", &faults_min];
    let program = ["--", WORKLOAD, "write", "{dir}", "--scenario=checkpoint", "--count=12"];
    bench.tool("syscall_faults.py", &[&tool[..], &program, options].concat())
}

/// Not close: Rust's own library panics if the close of a directory fails.
const CALLS: &str = "openat,mkdir,write,pwrite64,pwritev,fsync,fdatasync,fallocate,ftruncate,rename,unlink,read,\
                     pread64,statx,getdents64,statfs,fstatfs,mmap,madvise,clone3,flock";

#[test]
fn every_system_call_may_fail_once() {
    let Some(said) = fail_each(CALLS, 300, &[]) else { return };
    assert_eq!((said.code, said.number("bad")), (Some(0), 0), "{said:?}");
}

/// strace counts the calls of each thread: beside others that fail at the same time one failure may hide another.
#[test]
fn every_system_call_of_a_store_without_threads_may_fail_once() {
    let Some(said) = fail_each(CALLS, 300, &["--no-background"]) else { return };
    assert_eq!((said.code, said.number("bad")), (Some(0), 0), "{said:?}");
}

#[cfg(feature = "planted-bugs")]
#[test]
fn a_planted_bug_that_ignores_sync_errors_is_found() {
    let options = ["--no-background", "--bug=ignore-sync-errors"];
    let Some(said) = fail_each("fsync,fdatasync", 1, &options) else { return };
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.number("bad") > 50 && said.out.contains("a failed sync was swallowed"), "{said:?}");
}
