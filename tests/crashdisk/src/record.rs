//! Runs a program on the device: `record` keeps the log, `mount` only lets it fail the disk.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::error::{Context, Result};
use crate::live::LiveDisk;
use crate::log::{BlockLog, Op, Totals};
use crate::mount::FileSystem;
use crate::process::{Outcome, Programs};
use crate::work_dir::WorkDir;

/// What the program says before each thing that it has made durable.
const ACK: &str = "ack ";

/// The least that must have happened for a green result to mean anything.
#[derive(Debug, Default)]
pub(crate) struct Minimum {
    pub(crate) acks: u64,
    pub(crate) flushes: u64,
}

impl Minimum {
    /// Says what is missing; true if nothing is.
    pub(crate) fn is_met(&self, totals: &Totals) -> bool {
        let enough = |what: &str, have: u64, want: u64| {
            if have < want {
                println!("FAIL the log has {have} {what}, {want} are wanted");
            }
            have >= want
        };
        // Both, so that both are said.
        enough("acks", totals.acks, self.acks) & enough("flushes", totals.flushes, self.flushes)
    }
}

/// The settings of `record`.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) work: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) file_system: FileSystem,
    pub(crate) disk_bytes: usize,
    pub(crate) faults: Vec<String>,
    pub(crate) minimum: Minimum,
    pub(crate) program: Vec<String>,
}

impl Record {
    /// Records one run of the program. False if it failed or did too little; the log is kept all the same.
    pub(crate) fn run(&self, programs: &Programs) -> Result<bool> {
        let work = WorkDir::open(&self.work)?;
        let live = LiveDisk::new(&work, &self.file_system, self.disk_bytes, true)?;
        programs.proceed()?;
        live.disk.mark(Op::Begin);
        for fault in &self.faults {
            live.control(fault)?;
        }

        let begin = Instant::now();
        let words = live.fill_in(&self.program);
        let mut program = programs
            .start(Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(Stdio::piped()))?;
        let output = program.child.stdout.take().expect("its standard output is a pipe");
        for line in BufReader::new(output).split(b'\n') {
            let line = line.context(|| "read what the program says".into())?;
            let line = String::from_utf8_lossy(&line);
            match line.strip_prefix(ACK) {
                Some(ack) => live.disk.mark(Op::Ack(ack.trim().to_owned())),
                None => eprintln!("program: {line}"),
            }
        }
        let outcome = program.wait(None)?;
        let seconds = begin.elapsed().as_secs_f64();

        live.disk.mark(Op::End);
        let log: BlockLog = live.disk.take_log();
        live.close()?;
        log.save(&self.log)?;
        let ended_well = matches!(&outcome, Outcome::Ended(status) if status.success());
        if !ended_well {
            println!("FAIL the program ended with {outcome:?}");
        }
        let totals = log.totals();
        let enough = self.minimum.is_met(&totals);
        println!(
            "record: acks={} writes={} flushes={} written_bytes={} seconds={seconds:.2} log={}",
            totals.acks,
            totals.writes,
            totals.flushes,
            totals.written_bytes,
            self.log.display()
        );
        Ok(ended_well && enough)
    }
}

/// The settings of `mount`.
#[derive(Debug)]
pub(crate) struct MountAndRun {
    pub(crate) work: PathBuf,
    pub(crate) file_system: FileSystem,
    pub(crate) disk_bytes: usize,
    pub(crate) faults: Vec<String>,
    pub(crate) program: Vec<String>,
}

impl MountAndRun {
    /// Runs the program; it speaks to the disk through `{ctl}`.
    pub(crate) fn run(&self, programs: &Programs) -> Result<Outcome> {
        let work = WorkDir::open(&self.work)?;
        let live = LiveDisk::new(&work, &self.file_system, self.disk_bytes, false)?;
        for fault in &self.faults {
            live.control(fault)?;
        }
        let words = live.fill_in(&self.program);
        let outcome = programs.run(Command::new(&words[0]).args(&words[1..]), None)?;
        live.close()?;
        Ok(outcome)
    }
}
