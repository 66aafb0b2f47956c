//! Power cuts on ext4: everything acknowledged as synced is there after each of them, and a store that breaks its
//! promise on purpose is found out.
//!
//! `QUIPU_CUTS` multiplies the images of each sweep (1), `QUIPU_SEED` is the seed of the workload and the cuts (1).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use common::{Bench, Said, WORKLOAD};

fn from_environment(name: &str) -> u64 {
    std::env::var(name).map_or(1, |text| text.parse().unwrap())
}

/// What a sweep of a scenario must at least have seen to mean anything.
struct Sweep {
    scenario: &'static str,
    count: u64,
    images: u64,
    acks_min: u64,
    flushes_min: u64,
    /// Name and least value of counters of the store.
    counters: &'static [(&'static str, u64)],
}

impl Sweep {
    fn record(&self, bench: &Bench, options: &[&str], more: &[&str]) -> Option<Said> {
        let scenario = format!("--scenario={}", self.scenario);
        let (seed, count) = (seed_option(), format!("--count={}", self.count));
        let program = [&[WORKLOAD, "write", "{mnt}/store", &scenario, &seed, &count], more].concat();
        bench.crashdisk("record", options, &program)
    }

    /// Records and sweeps; nothing may be missing.
    fn stays_green(&self) {
        let bench = Bench::new();
        let (acks, flushes) =
            (format!("--acks-min={}", self.acks_min), format!("--flushes-min={}", self.flushes_min));
        let Some(record) = self.record(&bench, &[&acks, &flushes], &[]) else { return };
        assert_eq!(record.code, Some(0), "{record:?}");
        for (name, least) in self.counters {
            assert!(record.number(name) >= *least, "{name} is below {least}: {record:?}");
        }
        nothing_is_missing(bench, self.images, &[&acks, &flushes]);
    }
}

fn seed_option() -> String {
    format!("--seed={}", from_environment("QUIPU_SEED"))
}

fn sweep(bench: &Bench, images: u64, options: &[&str]) -> Said {
    let points = format!("--points={}", images * from_environment("QUIPU_CUTS"));
    let seed = seed_option();
    let options = [&["--jobs=2", &points, &seed], options].concat();
    bench.crashdisk("sweep", &options, &[WORKLOAD, "check", "{mnt}/store", "{acks}"]).unwrap()
}

fn nothing_is_missing(bench: Bench, images: u64, options: &[&str]) {
    let said = sweep(&bench, images, &[&["--keep"], options].concat());
    if said.code != Some(0) {
        panic!("log and images are kept in {}\n{}\n{}", bench.keep().display(), said.out, said.err);
    }
    assert_eq!(said.number("failures"), 0);
    assert_eq!(said.number("images"), images * from_environment("QUIPU_CUTS"));
}

#[test]
fn synced_and_written_appends_of_one_writer_keep_their_promises() {
    let counters = &[("checkpoints", 1)];
    Sweep { scenario: "append", count: 150, images: 250, acks_min: 151, flushes_min: 80, counters }
        .stays_green();
}

#[test]
fn many_writers_who_share_syncs_keep_their_promises() {
    Sweep { scenario: "group", count: 60, images: 250, acks_min: 241, flushes_min: 20, counters: &[] }
        .stays_green();
}

#[test]
fn segments_that_roll_at_each_append_lose_nothing() {
    let counters = &[("segments_created", 50)];
    Sweep { scenario: "roll", count: 150, images: 250, acks_min: 151, flushes_min: 80, counters }
        .stays_green();
}

#[test]
fn checkpoints_at_any_moment_lose_nothing() {
    let counters = &[("checkpoints", 40)];
    Sweep { scenario: "checkpoint", count: 180, images: 250, acks_min: 181, flushes_min: 200, counters }
        .stays_green();
}

#[test]
fn what_retention_and_trims_remove_stays_removed_and_nothing_else_goes() {
    let counters = &[("segments_removed", 3)];
    Sweep { scenario: "retention", count: 150, images: 250, acks_min: 400, flushes_min: 80, counters }
        .stays_green();
}

#[test]
fn keys_are_kept_while_they_are_compacted() {
    let counters = &[("segments_removed", 5)];
    Sweep { scenario: "compaction", count: 150, images: 250, acks_min: 120, flushes_min: 80, counters }
        .stays_green();
}

#[test]
fn topics_that_come_and_go_among_everything_else_lose_nothing() {
    let counters = &[("segments_removed", 1), ("checkpoints", 1)];
    Sweep { scenario: "mixed", count: 100, images: 250, acks_min: 300, flushes_min: 80, counters }
        .stays_green();
}

#[test]
fn a_power_cut_while_the_store_recovers_loses_nothing() {
    let bench = Bench::new();
    let script = format!(
        "for run in 0 1 2 3; do
            $0 write $1/store --scenario=mixed --run=$run --count=30 --no-close {} || exit 1
        done",
        seed_option()
    );
    let minimum = ["--acks-min=300", "--flushes-min=80"];
    let Some(record) = bench.crashdisk("record", &minimum, &["sh", "-c", &script, WORKLOAD, "{mnt}"]) else {
        return;
    };
    assert_eq!(record.code, Some(0), "{record:?}");
    nothing_is_missing(bench, 250, &minimum);
}

#[test]
fn what_was_acknowledged_before_the_disk_failed_is_there_afterwards() {
    for fault in ["--fault=flush-eio 60", "--fault=write-eio 0 999999999 90"] {
        let bench = Bench::new();
        let Some(record) = scenario("mixed").record(&bench, &[fault], &[]) else { return };
        // It stopped, as it should.
        assert_eq!(record.code, Some(1), "{record:?}");
        assert!(record.err.contains("StorageFailed") || record.err.contains("Reopen"), "{record:?}");
        nothing_is_missing(bench, 60, &["--acks-min=20"]);
    }
}

#[test]
fn a_disk_that_lies_about_flushes_is_found() {
    let bench = Bench::new();
    let Some(record) = scenario("append").record(&bench, &["--fault=lie"], &[]) else { return };
    assert_eq!((record.code, record.number("flushes")), (Some(0), 0), "{record:?}");
    something_is_missing(&bench);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn an_append_that_is_acknowledged_before_its_sync_is_found() {
    let bench = Bench::new();
    let bug = ["--bug=acknowledge-before-sync"];
    let Some(record) = scenario("append").record(&bench, &[], &bug) else { return };
    assert_eq!(record.code, Some(0), "{record:?}");
    something_is_missing(&bench);
}

#[cfg(feature = "planted-bugs")]
#[test]
fn a_sync_error_that_is_ignored_is_found() {
    let bench = Bench::new();
    let bug = ["--bug=ignore-sync-errors"];
    let Some(record) = scenario("append").record(&bench, &["--fault=flush-eio 30"], &bug) else { return };
    assert!(record.number("acks") > 1, "{record:?}");
    something_is_missing(&bench);
}

fn scenario(scenario: &'static str) -> Sweep {
    Sweep { scenario, count: 100, images: 0, acks_min: 0, flushes_min: 0, counters: &[] }
}

fn something_is_missing(bench: &Bench) {
    let said = sweep(bench, 120, &["--max-fail=3"]);
    assert_eq!(said.code, Some(1), "{said:?}");
    assert!(said.number("failures") > 0 && said.out.contains("workload: "), "{said:?}");
}
