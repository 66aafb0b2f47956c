//! Opening a store after its process was killed, and what an open store weighs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use quipu_storage::{Offset, Store};

use super::store::files;
use crate::child::Child;
use crate::limits::ReadOnce;
use crate::row::{Bar, Contender, Pair, Row, Sample, Unit};

/// Bytes in sealed segments.
const SEALED_BYTES: u64 = 1 << 30;
/// Bytes in 1,000 topics.
const TOPICS_BYTES: u64 = 10 << 30;

pub(super) fn rows() -> Vec<Row> {
    vec![
        Row {
            name: "open-after-kill/1GiB".into(),
            what: "Store, open after SIGKILL: 1 GiB in sealed segments, a journal just before its checkpoint",
            against: "reading the journal's bytes once",
            unit: Unit::Millis,
            bar: Bar::RatioAtMost(3.0),
            prepare: Box::new(|scene| {
                let killed = scene.dir.join("killed");
                let mut child = spawn("full-journal", &killed, scene.scaled(SEALED_BYTES))?;
                ensure!(child.line()? == "ready", "the child is not ready");
                child.kill()?;
                let reference = ReadOnce::new(&files(&killed.join("journal"), ".journal")?)?;
                Ok(Pair::new(Opened { killed, copy: scene.dir.join("copy") }, reference))
            }),
        },
        Row {
            name: "memory/10GiB".into(),
            what: "Store, 1,000 topics with 10 GiB, each with a reader that waits at its end: memory beside the page cache",
            against: "",
            unit: Unit::Bytes,
            bar: Bar::FigureBelow(200.0 * 1024.0 * 1024.0),
            prepare: Box::new(|scene| {
                // The disk is not what is measured, and would take longer than a row may.
                let memory = Path::new("/dev/shm");
                let parent = if memory.is_dir() { memory } else { &scene.dir };
                let dir = tempfile::Builder::new().prefix("quipu-benches-").tempdir_in(parent)?;
                let mut child = spawn("fill-topics", dir.path(), scene.scaled(TOPICS_BYTES))?;
                ensure!(child.line()? == "ready", "the child is not ready");
                Ok(Pair::alone(move || {
                    let mut child = spawn("idle-readers", dir.path(), 0)?;
                    ensure!(child.line()? == "ready", "the child is not ready");
                    let bytes = child.own_bytes()?;
                    child.kill()?;
                    Ok(Sample::of(u32::try_from(bytes >> 10).map_or(f64::MAX, f64::from) * 1024.0))
                }))
            }),
        },
    ]
}

fn spawn(role: &str, dir: &Path, amount: u64) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command.args(["--child", role]).arg(dir).arg(amount.to_string());
    Child::spawn(command)
}

/// Opens a copy of what the killed process left.
struct Opened {
    killed: PathBuf,
    copy: PathBuf,
}

impl Contender for Opened {
    fn round(&mut self) -> Result<Sample> {
        if self.copy.exists() {
            std::fs::remove_dir_all(&self.copy)?;
        }
        copy(&self.killed, &self.copy)?;
        let begun = Instant::now();
        let store = Store::open(&self.copy)?;
        let elapsed = begun.elapsed();
        let topic = store.topic("open")?;
        ensure!(!store.recovery().was_clean && store.recovery().records > 0);
        let end = topic.log_end_offset();
        for offset in [Offset(0), end.saturating_sub(end.value() / 2), end.saturating_sub(1)] {
            let record = topic.get(offset)?.context("a record is gone")?;
            ensure!(record.payload().is_some_and(|payload| payload.iter().all(|&byte| byte == 7)));
        }
        Ok(Sample::of(elapsed.as_secs_f64() * 1e3))
    }
}

/// A copy of a store; segments that will not be written to are linked.
fn copy(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir(to)?;
    let segments = files(from, ".segment")?;
    let last = segments.last();
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        let target = to.join(path.file_name().context("an entry has a name")?);
        if path.is_dir() {
            copy(&path, &target)?;
        } else if segments.contains(&path) && last != Some(&path) {
            std::fs::hard_link(&path, &target)?;
        } else {
            std::fs::copy(&path, &target)?;
            // The kill was a while ago: what opening syncs is what opening writes.
            std::fs::File::open(&target)?.sync_all()?;
        }
    }
    Ok(())
}
