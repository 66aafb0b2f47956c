//! What the tests on real file systems share: the tools, a place in memory, and skipping where they cannot run.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses its part of it")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use tempfile::TempDir;

/// The workload, built with the tests.
pub const WORKLOAD: &str = env!("CARGO_BIN_EXE_workload");
/// The cases that run on a failing disk.
pub const DISK_CASES: &str = env!("CARGO_BIN_EXE_disk_cases");

/// Set where a skipped test must not pass for a green one.
const NO_SKIP: &str = "QUIPU_NO_SKIP";

/// How a tool says that it cannot run on this machine.
const EXIT_UNSUPPORTED: i32 = 77;

/// A directory for one test; in memory where there is one.
pub struct Bench {
    dir: TempDir,
}

/// What a run of a tool said.
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

    /// Keeps the directory, to be looked at.
    pub fn keep(self) -> PathBuf {
        self.dir.keep()
    }

    /// Runs `crashdisk` with a command, this bench's work directory and log, more options, and a program's words.
    /// `None`: this machine cannot, and the reason has been printed.
    pub fn crashdisk(&self, command: &str, options: &[&str], program: &[&str]) -> Option<Said> {
        let mut tool = Command::new(crashdisk());
        tool.arg(command).arg(format!("--work={}", self.path("work").display()));
        if ["record", "sweep"].contains(&command) {
            tool.arg(format!("--log={}", self.path("log").display()));
        }
        said(&tool.args(options).arg("--").args(program).output().unwrap())
    }

    /// Runs one of `tests/tools`, with its temporary files here.
    pub fn tool(&self, name: &str, words: &[&str]) -> Option<Said> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tools").join(name);
        said(&Command::new(path).args(words).env("TMPDIR", self.dir.path()).output().unwrap())
    }
}

impl Said {
    /// The value of the last `name=value` in the output or the errors.
    pub fn number(&self, name: &str) -> u64 {
        let words = self.out.split_whitespace().chain(self.err.split_whitespace());
        let mut values = words.filter_map(|word| word.strip_prefix(name)?.strip_prefix('=')?.parse().ok());
        values.next_back().unwrap_or_else(|| panic!("no {name}= in {self:?}"))
    }
}

/// The `crashdisk` command of this workspace. Cargo builds it with the whole workspace; for a test of this package
/// alone it is built here.
fn crashdisk() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        let profile_dir = Path::new(WORKLOAD).parent().unwrap();
        let path = profile_dir.join("crashdisk");
        if !path.exists() {
            let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let status = Command::new(cargo)
                .args(["build", "--quiet", "--package", "quipu-crashdisk", "--bin", "crashdisk"])
                .arg("--target-dir")
                .arg(profile_dir.parent().unwrap())
                .status()
                .unwrap();
            assert!(status.success() && path.exists(), "{} cannot be built", path.display());
        }
        path
    })
}

/// What a run of a tool said, unless it said that it cannot run here.
pub fn said(output: &Output) -> Option<Said> {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    let said = Said { code: output.status.code(), out: text(&output.stdout), err: text(&output.stderr) };
    if said.code == Some(EXIT_UNSUPPORTED) {
        assert!(std::env::var_os(NO_SKIP).is_none(), "{NO_SKIP} is set, but: {}", said.err);
        #[expect(clippy::explicit_write, reason = "what a passing test says by eprintln is swallowed")]
        writeln!(io::stderr(), "skipped: {}", said.err).unwrap();
        return None;
    }
    Some(said)
}
