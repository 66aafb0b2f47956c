//! What the tests of the tool share: a work directory in memory, running it, and skipping where it cannot run.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::{Command, Output};

use tempfile::TempDir;

/// The small log with planted bugs.
pub const TINYLOG: &str = env!("CARGO_BIN_EXE_tinylog");

/// Set where a skipped test must not pass for a green one.
const NO_SKIP: &str = "QUIPU_NO_SKIP";

/// A directory for one test; in memory where there is one.
pub struct Bench {
    dir: TempDir,
}

/// What a run of the tool said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        Self { dir }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The tool with a command, this bench's work directory and log, more options, and the program's words.
    pub fn tool(&self, command: &str, options: &[&str], program: &[&str]) -> Command {
        let mut tool = Command::new(env!("CARGO_BIN_EXE_crashdisk"));
        tool.arg(command).arg(format!("--work={}", self.path("work").display()));
        if ["record", "sweep"].contains(&command) {
            tool.arg(format!("--log={}", self.path("log").display()));
        }
        tool.args(options);
        if !program.is_empty() {
            tool.arg("--").args(program);
        }
        tool
    }

    /// Runs it. `None`: this machine cannot, and the reason has been printed.
    pub fn run(&self, command: &str, options: &[&str], program: &[&str]) -> Option<Said> {
        said(&self.tool(command, options, program).output().unwrap())
    }

    /// Records the small log with a bug, or with `none`.
    pub fn record(&self, options: &[&str], bug: &str) -> Option<Said> {
        self.run("record", options, &[TINYLOG, "write", "{mnt}/log", "100", bug])
    }

    /// Sweeps with the small log's checker.
    pub fn sweep(&self, options: &[&str]) -> Option<Said> {
        self.run("sweep", options, &[TINYLOG, "check", "{mnt}/log", "{ack}"])
    }
}

impl Said {
    /// The value of `name=value` in the output's last line.
    pub fn number(&self, name: &str) -> u64 {
        let last = self.out.lines().last().unwrap_or_default();
        let value = last.split(' ').find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        value.and_then(|value| value.parse().ok()).unwrap_or_else(|| panic!("no {name}= in {self:?}"))
    }
}

/// What a run of a tool said, unless it said that it cannot run here.
pub fn said(output: &Output) -> Option<Said> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let said = Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) };
    if said.code == Some(quipu_crashdisk::EXIT_UNSUPPORTED.into()) {
        assert!(std::env::var_os(NO_SKIP).is_none(), "{NO_SKIP} is set, but: {}", said.err);
        #[expect(clippy::explicit_write, reason = "what a passing test says by eprintln is swallowed")]
        writeln!(io::stderr(), "skipped: {}", said.err).unwrap();
        return None;
    }
    Some(said)
}
