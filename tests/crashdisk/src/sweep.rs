//! Rebuilds the disk for one power cut after the other, mounts it and asks the checker.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::log::BlockLog;
use crate::mount::{FileSystem, Mount};
use crate::plan::{Cut, plan};
use crate::process::{Outcome, Programs};
use crate::record::Minimum;
use crate::replay::Replay;
use crate::work_dir::WorkDir;

/// What `{ack}` says when nothing was acknowledged yet.
const NO_ACK: &str = "-1";

/// How much of a failing checker's output is shown.
const OUTPUT_BYTES_MAX: usize = 2000;

/// The settings of `sweep`.
#[derive(Debug)]
pub(crate) struct Sweep {
    pub(crate) work: PathBuf,
    pub(crate) log: PathBuf,
    pub(crate) file_system: FileSystem,
    /// `None`: every cut there is.
    pub(crate) points: Option<usize>,
    pub(crate) seed: u64,
    /// Check only the image of this number.
    pub(crate) only: Option<usize>,
    pub(crate) jobs: usize,
    /// Stop after so many.
    pub(crate) failures_max: usize,
    pub(crate) patience: Duration,
    /// Keep the images that fail.
    pub(crate) keep: bool,
    pub(crate) minimum: Minimum,
    pub(crate) checker: Vec<String>,
}

impl Sweep {
    /// Sweeps, says what it found, and answers whether that was nothing.
    pub(crate) fn run(&self, programs: &Programs) -> Result<bool> {
        let log = BlockLog::load(&self.log)?;
        let work = WorkDir::open(&self.work)?;
        let cuts = plan(&log, self.points, self.seed);
        let totals = log.totals();
        let enough = self.minimum.is_met(&totals);

        let begin = Instant::now();
        let progress = Progress {
            sweep: self,
            log: &log,
            cuts: &cuts,
            next: AtomicUsize::new(self.only.unwrap_or(0)),
            end: self.only.map_or(cuts.len(), |only| cuts.len().min(only + 1)),
            findings: Mutex::default(),
            programs,
            work: &work,
        };
        let slots: Vec<Slot> =
            (0..self.jobs).map(|number| Slot::new(&work, number)).collect::<Result<_>>()?;
        thread::scope(|scope| {
            let workers: Vec<_> = slots.iter().map(|slot| scope.spawn(|| progress.work_in(slot))).collect();
            workers.into_iter().try_for_each(|worker| {
                worker.join().unwrap_or_else(|_| Err(Error::Trouble("a worker panicked".into())))
            })
        })?;

        let Findings { images, failures } =
            progress.findings.into_inner().unwrap_or_else(PoisonError::into_inner);
        if images == 0 {
            println!("FAIL no image was checked");
        }
        let seconds = begin.elapsed().as_secs_f64();
        println!(
            "sweep: images={images} failures={failures} seed={} acks={} flushes={} cuts={} seconds={seconds:.1} \
             ms_per_image={:.1}",
            self.seed,
            totals.acks,
            totals.flushes,
            cuts.len(),
            seconds * 1000.0 / images.max(1) as f64,
        );
        Ok(enough && failures == 0 && images > 0)
    }
}

#[derive(Debug, Default)]
struct Findings {
    images: usize,
    failures: usize,
}

/// Where one worker keeps its image and mounts it.
struct Slot {
    image: PathBuf,
    mount_point: PathBuf,
    acks: PathBuf,
    output: PathBuf,
}

impl Slot {
    fn new(work: &WorkDir, number: usize) -> Result<Self> {
        let path = work.fresh_dir(&format!("slot-{number}"))?;
        let mount_point = path.join("mnt");
        fs::create_dir(&mount_point).context(|| "make a mount point".into())?;
        Ok(Self {
            image: path.join("image"),
            mount_point,
            acks: path.join("acks"),
            output: path.join("output"),
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        // Images are big and their directory is usually memory.
        let _ = fs::remove_file(&self.image);
    }
}

/// What the workers share.
struct Progress<'a> {
    sweep: &'a Sweep,
    log: &'a BlockLog,
    cuts: &'a [Cut],
    next: AtomicUsize,
    end: usize,
    findings: Mutex<Findings>,
    programs: &'a Programs,
    work: &'a WorkDir,
}

impl Progress<'_> {
    fn work_in(&self, slot: &Slot) -> Result<()> {
        let worked = self.take_cuts(slot);
        if worked.is_err() {
            self.next.store(self.end, Ordering::Relaxed);
        }
        worked
    }

    /// Takes cut after cut. They are handed out by rising position, so that each worker's replay goes forwards.
    fn take_cuts(&self, slot: &Slot) -> Result<()> {
        let mut replay = Replay::new(self.log, self.sweep.file_system.superblock());
        let mut acks_written = None;
        loop {
            self.programs.proceed()?;
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.end || self.failures() >= self.sweep.failures_max {
                return Ok(());
            }
            let cut = self.cuts[number];
            replay.advance(cut.position);
            if acks_written != Some(replay.acks().len()) {
                let lines: String = replay.acks().iter().flat_map(|ack| [*ack, "\n"]).collect();
                fs::write(&slot.acks, lines).context(|| "write the acknowledgements".into())?;
                acks_written = Some(replay.acks().len());
            }
            let why = self.check(slot, &replay, cut)?;
            self.note(slot, &replay, number, why)?;
        }
    }

    /// Why the image is refused, if it is.
    fn check(&self, slot: &Slot, replay: &Replay<'_>, cut: Cut) -> Result<Option<String>> {
        // Always a new file: nothing that still knows the last image can reach this one.
        write_image(&slot.image, replay, cut)?;
        let mount = match Mount::new(&slot.image, &slot.mount_point, &self.sweep.file_system, false) {
            Ok(mount) => mount,
            Err(Error::Mount { source, .. }) => return Ok(Some(format!("it does not mount: {source}"))),
            Err(error) => return Err(error),
        };
        let words = self.fill_in(slot, replay.acks().last().copied().unwrap_or(NO_ACK));
        let output = File::create(&slot.output).context(|| "write the checker's output".into())?;
        let errors = output.try_clone().context(|| "write the checker's output".into())?;
        let outcome = self.programs.run(
            Command::new(&words[0]).args(&words[1..]).stdin(Stdio::null()).stdout(output).stderr(errors),
            Some(self.sweep.patience),
        )?;
        mount.unmount()?;
        Ok(match outcome {
            Outcome::Ended(status) if status.success() => None,
            Outcome::Ended(status) => Some(format!("{status}: {}", self.tail(slot, status))),
            Outcome::TimedOut => Some(format!("the checker hangs: no end after {:?}", self.sweep.patience)),
        })
    }

    fn fill_in(&self, slot: &Slot, ack: &str) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (mount_point, acks) = (text(&slot.mount_point), text(&slot.acks));
        let fill = |word: &String| {
            word.replace("{mnt}", &mount_point).replace("{acks}", &acks).replace("{ack}", ack)
        };
        self.sweep.checker.iter().map(fill).collect()
    }

    fn tail(&self, slot: &Slot, status: ExitStatus) -> String {
        let output = fs::read(&slot.output).unwrap_or_default();
        let tail = &output[output.len().saturating_sub(OUTPUT_BYTES_MAX)..];
        let tail = String::from_utf8_lossy(tail).trim().to_owned();
        if tail.is_empty() { format!("the checker said nothing ({status})") } else { tail }
    }

    fn note(&self, slot: &Slot, replay: &Replay<'_>, number: usize, why: Option<String>) -> Result<()> {
        let mut findings = self.findings.lock().unwrap_or_else(PoisonError::into_inner);
        findings.images += 1;
        let Some(why) = why else { return Ok(()) };
        findings.failures += 1;
        let cut = self.cuts[number];
        println!(
            "FAIL image {number} of seed {}: cut at operation {}, {} pending writes, kept: {}, acknowledged: {}: {why}",
            self.sweep.seed,
            cut.position,
            replay.pending().count(),
            cut.policy.name(),
            replay.acks().last().unwrap_or(&"nothing"),
        );
        if self.sweep.keep {
            // Built anew: the checked one has been mounted, and recovery wrote to it.
            let kept = self.work.path().join(format!("fail-{number}.img"));
            write_image(&kept, replay, cut)?;
            fs::copy(&slot.acks, kept.with_extension("acks"))
                .context(|| "keep the acknowledgements".into())?;
            println!("     kept as {}; --only={number} repeats it", kept.display());
        }
        if findings.failures == self.sweep.failures_max {
            println!("     stopping after {} failures", findings.failures);
        }
        Ok(())
    }

    fn failures(&self) -> usize {
        self.findings.lock().unwrap_or_else(PoisonError::into_inner).failures
    }
}

fn write_image(path: &Path, replay: &Replay<'_>, cut: Cut) -> Result<()> {
    let writing = || format!("write the image {}", path.display());
    if path.exists() {
        fs::remove_file(path).context(writing)?;
    }
    let file = File::create_new(path).context(writing)?;
    replay.write_image(&file, cut.policy, cut.seed).context(writing)
}
