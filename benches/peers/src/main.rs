//! `quipu-bench-peers`: quipu beside the embedded logs and stores that people would pick instead.
//!
//! A figure of one system means little on a machine whose disk changes by the minute. So all systems run the same
//! workload one after the other, the bare write and sync between them as the probe, in several rounds that start
//! with another system each; and what counts is the median of the rounds' ratios.

mod peer;
mod peers;
mod report;
mod workload;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use quipu_benches::limits::{SyncLoop, SyncTo};
use quipu_benches::payload::Payloads;
use quipu_benches::row::{Contender, PAYLOADS, Sample};

use crate::peer::Peer;
use crate::report::{PROBE, PROBE_AHEAD, Table};
use crate::workload::{FILL, Loaded, Scale, Workload};

const USAGE: &str = "\
Usage: quipu-bench-peers [E1 ... E9] [--peers A,B] [--bytes N] [--rounds N] [--seconds S] [--records N]
                         [--dir DIR] [--json]

Runs the named workloads (E8 includes E8-killed), or all, with all systems or those named.

  --bytes N    records of 100 or 1024 bytes only
  --rounds N   rounds of each workload (3)
  --seconds S  how long an appending workload measures in a round (1)
  --records N  records that the reading workloads load (1000000)
  --dir DIR    where the files go; default: beside this program
  --json       one JSON object a line

Exit status: 0 if every bar that was judged holds, 1 if one fell short, 2 if something could not be run.";

fn main() -> ExitCode {
    match run(std::env::args().skip(1).collect()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(1),
        Err(error) => {
            eprintln!("quipu-bench-peers: {error:#}");
            ExitCode::from(2)
        }
    }
}

struct Args {
    workloads: Vec<Workload>,
    peers: Option<Vec<String>>,
    bytes: Option<usize>,
    rounds: usize,
    scale: Scale,
    dir: PathBuf,
    json: bool,
}

fn parse(args: Vec<String>) -> Result<Option<Args>> {
    let program = std::env::current_exe().context("find this program")?;
    let mut parsed = Args {
        workloads: Vec::new(),
        peers: None,
        bytes: None,
        rounds: 3,
        scale: Scale { time: Duration::from_secs(1), records: 1_000_000, reads: 20_000 },
        dir: program.parent().context("find this program's directory")?.to_owned(),
        json: false,
    };
    let mut args = args.into_iter();
    while let Some(arg) = args.next() {
        let mut value = || args.next().with_context(|| format!("{arg} wants a value"));
        match arg.as_str() {
            "--help" | "-h" => return Ok(None),
            "--json" => parsed.json = true,
            "--peers" => parsed.peers = Some(value()?.split(',').map(str::to_owned).collect()),
            "--bytes" => parsed.bytes = Some(value()?.parse().context("--bytes")?),
            "--rounds" => parsed.rounds = value()?.parse().context("--rounds")?,
            "--seconds" => {
                let seconds = value()?.parse().context("--seconds")?;
                parsed.scale.time = Duration::try_from_secs_f64(seconds).context("--seconds")?;
            }
            "--records" => parsed.scale.records = value()?.parse().context("--records")?,
            "--dir" => parsed.dir = value()?.into(),
            name => {
                let named = Workload::ALL.into_iter().filter(|workload| {
                    workload.name().eq_ignore_ascii_case(name)
                        || (*workload == Workload::E8Killed && name.eq_ignore_ascii_case("E8"))
                });
                let before = parsed.workloads.len();
                parsed.workloads.extend(named);
                ensure!(parsed.workloads.len() > before, "no workload or flag is called {name}");
            }
        }
    }
    if parsed.workloads.is_empty() {
        parsed.workloads.extend(Workload::ALL);
    }
    ensure!(parsed.rounds > 0 && parsed.scale.records > 0, "nothing to do");
    Ok(Some(parsed))
}

fn run(args: Vec<String>) -> Result<bool> {
    let all = peers::all();
    if let [fill, name, bytes, records, dir] = &args[..]
        && fill == FILL
    {
        let peer = all.iter().find(|peer| peer.name() == name).context("no such system")?;
        let payloads = Payloads::new(bytes.parse()?);
        workload::fill_for_ever(&**peer, Path::new(dir), &payloads, records.parse()?)?;
    }
    let Some(args) = parse(args)? else {
        println!("{USAGE}");
        return Ok(true);
    };
    if let Some(name) = args.peers.iter().flatten().find(|name| !all.iter().any(|peer| peer.name() == *name))
    {
        bail!("no system is called {name}");
    }
    let chosen: Vec<&dyn Peer> = all
        .iter()
        .map(|peer| &**peer)
        .filter(|peer| args.peers.as_ref().is_none_or(|names| names.iter().any(|name| name == peer.name())))
        .collect();

    let mut held = true;
    for (record_bytes, _) in
        PAYLOADS.into_iter().filter(|(bytes, _)| args.bytes.is_none_or(|only| only == *bytes))
    {
        let bench = Bench { payloads: Payloads::new(record_bytes), peers: &chosen, args: &args };
        for &workload in args.workloads.iter().filter(|workload| !workload.reads()) {
            held &= bench.show(bench.append_or_kill(workload)?);
        }
        if args.workloads.iter().any(|workload| workload.reads()) {
            for table in bench.read()? {
                held &= bench.show(table);
            }
        }
    }
    Ok(held)
}

/// All systems at one size of record.
struct Bench<'a> {
    payloads: Payloads,
    peers: &'a [&'a dyn Peer],
    args: &'a Args,
}

impl Bench<'_> {
    /// Prints a table; returns whether its bars hold.
    fn show(&self, table: Table) -> bool {
        if self.args.json {
            table.json().iter().for_each(|line| println!("{line}"));
        } else {
            println!("{}\n", table.show());
        }
        !table.falls_short()
    }

    /// The workloads whose every round starts in an empty directory.
    fn append_or_kill(&self, workload: Workload) -> Result<Table> {
        let peers = self.peers.iter().filter(|peer| peer.can(workload));
        let probes = workload.probe_records().map(|_| [PROBE, PROBE_AHEAD]);
        let names: Vec<_> = probes.into_iter().flatten().chain(peers.map(|peer| peer.name())).collect();
        let mut systems: Vec<(&'static str, Vec<Sample>)> =
            names.into_iter().map(|name| (name, Vec::new())).collect();
        for round in 0..self.args.rounds {
            for index in order(systems.len(), round) {
                let (name, samples) = &mut systems[index];
                let sample =
                    self.round(workload, name).with_context(|| format!("{} with {name}", workload.name()))?;
                samples.push(sample);
            }
        }
        Ok(Table { workload, record_bytes: self.payloads.record_bytes(), systems })
    }

    fn round(&self, workload: Workload, name: &str) -> Result<Sample> {
        let scratch = self.scratch()?;
        let dir = scratch.path();
        let scale = self.args.scale;
        match self.peers.iter().find(|peer| peer.name() == name) {
            Some(peer) if workload == Workload::E8Killed => {
                workload::killed_round(*peer, dir, &self.payloads, scale)
            }
            Some(peer) => workload::append_round(*peer, workload, dir, &self.payloads, scale),
            None => {
                let to = if name == PROBE { SyncTo::End } else { SyncTo::ZeroFilled };
                let records = workload.probe_records().context("no probe")?;
                SyncLoop::new(dir, to, self.payloads.record_bytes(), records, scale.time)?.round()
            }
        }
    }

    /// The workloads that share a loaded directory.
    fn read(&self) -> Result<Vec<Table>> {
        let scratch = self.scratch()?;
        let peers: Vec<_> = self
            .peers
            .iter()
            .filter(|peer| Workload::ALL.iter().any(|w| w.reads() && peer.can(*w)))
            .collect();
        let mut loaded = Vec::new();
        for peer in &peers {
            let dir = scratch.path().join(peer.name());
            fs::create_dir(&dir).with_context(|| format!("create {}", dir.display()))?;
            let one = Loaded::new(**peer, dir, &self.payloads, self.args.scale)
                .with_context(|| format!("load {}", peer.name()))?;
            loaded.push(one);
        }
        // What is still being written back would disturb whoever reads first.
        ensure!(Command::new("sync").status().context("run sync")?.success(), "sync failed");

        let empty = |workload| Table {
            workload,
            record_bytes: self.payloads.record_bytes(),
            systems: peers.iter().map(|peer| (peer.name(), Vec::new())).collect(),
        };
        let wanted = Workload::ALL.into_iter().filter(|w| w.reads() && self.args.workloads.contains(w));
        let mut tables: Vec<Table> = wanted.map(empty).collect();
        for round in 0..self.args.rounds {
            for index in order(peers.len(), round) {
                let samples = loaded[index]
                    .round(*peers[index], &self.payloads, self.args.scale, round as u64)
                    .with_context(|| format!("read with {}", peers[index].name()))?;
                for (workload, sample) in samples {
                    if let Some(table) = tables.iter_mut().find(|table| table.workload == workload) {
                        table.systems[index].1.push(sample);
                    }
                }
            }
        }
        Ok(tables)
    }

    fn scratch(&self) -> Result<tempfile::TempDir> {
        let dir = &self.args.dir;
        tempfile::Builder::new()
            .prefix("quipu-bench-peers-")
            .tempdir_in(dir)
            .with_context(|| format!("make a directory in {}", dir.display()))
    }
}

/// Who runs when: each round starts with another one.
fn order(count: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..count).map(move |index| (index + round) % count)
}
