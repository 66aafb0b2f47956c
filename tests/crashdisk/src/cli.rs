//! The command line.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus};
use std::str::FromStr;
use std::time::Duration;

use crate::disk_errors::DiskErrors;
use crate::error::{EXIT_FAILURES, EXIT_USAGE, Error, Result};
use crate::loop_device;
use crate::mount::{self, FileSystem};
use crate::process::{Outcome, Programs};
use crate::record::{Minimum, MountAndRun, Record};
use crate::sweep::Sweep;

const HELP: &str = "\
crashdisk: every power cut under a real file system, and a disk that fails on command.

  crashdisk record --log=FILE [options] -- PROGRAM ARGUMENT...
      Runs PROGRAM on a new file system and logs each write, flush and 'ack TEXT' line in order.
      {mnt} in its arguments is the mount point, {ctl} the file that takes faults.
  crashdisk sweep --log=FILE [options] -- CHECKER ARGUMENT...
      Rebuilds the disk for each power cut, mounts it and runs CHECKER, which exits with 0 if all that was
      acknowledged is there. {mnt} is the mount point, {ack} the TEXT of the last 'ack TEXT' before the cut
      (-1: none yet), {acks} a file with the TEXT of each of them, one a line, oldest first.
  crashdisk mount [options] -- PROGRAM ARGUMENT...
      Only runs PROGRAM on a new file system; it makes the disk fail by writing to {ctl}. Exits as PROGRAM did.
  crashdisk disk-errors [options]
      Shows what this kernel tells a program whose disk fails.

All:
  --work=DIR        images and mount points, 'crashdisk-work' by default; best on a tmpfs such as /dev/shm
  --fs=NAME[:MIB]   ext4 (the default, >= 16 MiB), xfs (>= 320) or btrfs (>= 128)
  --mib=N           size of the disk, 24 by default; not for sweep, which knows it from the log
  --opts=LIST       mount options, 'noatime' by default
record, mount:
  --fault=COMMAND   a fault from the start; may be repeated. The commands, as for {ctl}:
                      write-eio [LOW HIGH [SKIP [COUNT]]]   read-eio [LOW HIGH [SKIP [COUNT]]]
                      flush-eio [SKIP [COUNT]]   delay-us MICROSECONDS   lie   clear
                    'lie' is a disk that ignores flushes: a sweep that stays green over it is blind.
record, sweep:
  --acks-min=N --flushes-min=N    fail if the log has fewer
sweep:
  --points=N        that many images; without it, each one there is
  --seed=N          the same seed gives the same images; 1 by default
  --only=N          only image N of these
  --jobs=N          that many at a time; 1 by default
  --max-fail=N      stop after that many failures; 5 by default
  --timeout=SECONDS for one run of the checker; 60 by default
  --keep            keep each failing image and its acknowledgements in the work directory

Exit: 0 fine, 1 something failed, 2 trouble with the tool itself, 64 wrong usage,
      77 not possible on this machine (root, /dev/fuse, /dev/loop-control and mkfs are needed), 130 interrupted.
";

/// Runs the command that `arguments` (without the program's name) ask for.
pub fn run(arguments: Vec<String>) -> ExitCode {
    match Options::parse(arguments).and_then(dispatch) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("crashdisk: {error}");
            if error.exit_code() == EXIT_USAGE {
                eprintln!("'crashdisk help' says more");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn dispatch(mut options: Options) -> Result<ExitCode> {
    match options.command.as_str() {
        "help" | "--help" | "-h" => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        "record" => {
            let command = Record {
                work: options.work()?,
                log: options.required("log")?,
                disk_bytes: options.disk_bytes()?,
                file_system: options.file_system()?,
                faults: options.all("fault"),
                minimum: options.minimum()?,
                program: options.program()?,
            };
            options.finish()?;
            command.run(&prepare(&[FUSE, loop_device::CONTROL])?).map(verdict)
        }
        "sweep" => {
            let command = Sweep {
                work: options.work()?,
                log: options.required("log")?,
                file_system: options.file_system()?,
                points: options.number("points")?,
                seed: options.number("seed")?.unwrap_or(1),
                only: options.number("only")?,
                jobs: options.number("jobs")?.unwrap_or(1).max(1),
                failures_max: options.number("max-fail")?.unwrap_or(5).max(1),
                patience: Duration::from_secs(options.number("timeout")?.unwrap_or(60)),
                keep: options.flag("keep")?,
                minimum: options.minimum()?,
                checker: options.program()?,
            };
            options.finish()?;
            command.run(&prepare(&[loop_device::CONTROL])?).map(verdict)
        }
        "mount" => {
            let command = MountAndRun {
                work: options.work()?,
                disk_bytes: options.disk_bytes()?,
                file_system: options.file_system()?,
                faults: options.all("fault"),
                program: options.program()?,
            };
            options.finish()?;
            command.run(&prepare(&[FUSE, loop_device::CONTROL])?).map(|outcome| match outcome {
                Outcome::Ended(status) => pass_on(status),
                Outcome::TimedOut => ExitCode::from(EXIT_FAILURES),
            })
        }
        "disk-errors" => {
            let command = DiskErrors {
                work: options.work()?,
                disk_bytes: options.disk_bytes()?,
                file_system: options.file_system()?,
            };
            options.finish()?;
            command.run(&prepare(&[FUSE, loop_device::CONTROL])?).map(verdict)
        }
        other => Err(Error::Usage(format!("no such command: {other:?}"))),
    }
}

const FUSE: &str = "/dev/fuse";

/// Finds out whether this machine can do it, before anything is touched.
fn prepare(devices: &[&str]) -> Result<Programs> {
    if !rustix::process::geteuid().is_root() {
        return Err(Error::Unsupported("it takes root to mount".into()));
    }
    for device in devices {
        OpenOptions::new()
            .read(true)
            .write(true)
            .open(Path::new(device))
            .map_err(|error| Error::Unsupported(format!("{device}: {error}")))?;
    }
    // In this order: threads started later are in the namespace too.
    mount::enter_own_namespace()?;
    Programs::listening()
}

fn verdict(fine: bool) -> ExitCode {
    if fine { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAILURES) }
}

fn pass_on(status: ExitStatus) -> ExitCode {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    ExitCode::from(u8::try_from(code).unwrap_or(EXIT_FAILURES))
}

/// The words of a command line. Each is taken once; what is left at the end nobody knows.
#[derive(Debug, Default)]
struct Options {
    command: String,
    values: HashMap<String, Vec<String>>,
    program: Vec<String>,
}

impl Options {
    fn parse(arguments: Vec<String>) -> Result<Self> {
        let mut words = arguments.into_iter();
        let command = words.next().ok_or_else(|| Error::Usage("which command?".into()))?;
        let mut options = Self { command, ..Self::default() };
        for word in words.by_ref().take_while(|word| word != "--") {
            let Some(option) = word.strip_prefix("--") else {
                return Err(Error::Usage(format!("{word:?} is no option; the program comes after --")));
            };
            let (name, value) = option.split_once('=').unwrap_or((option, ""));
            options.values.entry(name.to_owned()).or_default().push(value.to_owned());
        }
        options.program = words.collect();
        Ok(options)
    }

    fn all(&mut self, name: &str) -> Vec<String> {
        self.values.remove(name).unwrap_or_default()
    }

    fn one(&mut self, name: &str) -> Result<Option<String>> {
        match self.all(name).as_slice() {
            [] => Ok(None),
            [value] => Ok(Some(value.clone())),
            _ => Err(Error::Usage(format!("--{name} more than once"))),
        }
    }

    fn flag(&mut self, name: &str) -> Result<bool> {
        match self.one(name)?.as_deref() {
            None => Ok(false),
            Some("") => Ok(true),
            Some(value) => Err(Error::Usage(format!("--{name} takes no value, not {value:?}"))),
        }
    }

    fn number<T: FromStr>(&mut self, name: &str) -> Result<Option<T>> {
        self.one(name)?
            .map(|text| {
                text.parse().map_err(|_| Error::Usage(format!("--{name} takes a number, not {text:?}")))
            })
            .transpose()
    }

    fn required(&mut self, name: &str) -> Result<PathBuf> {
        match self.one(name)? {
            Some(path) if !path.is_empty() => Ok(path.into()),
            _ => Err(Error::Usage(format!("--{name}=PATH is missing"))),
        }
    }

    fn work(&mut self) -> Result<PathBuf> {
        Ok(self.one("work")?.unwrap_or_else(|| "crashdisk-work".into()).into())
    }

    /// To be asked before [`file_system`](Self::file_system), which takes `--fs`.
    fn disk_bytes(&mut self) -> Result<usize> {
        const MIB_MAX: usize = 1 << 20;
        let with_fs =
            self.values.get("fs").and_then(|values| values.first()?.split_once(':')).map(|(_, mib)| mib);
        let with_fs = with_fs.map(str::to_owned);
        let mib = match (with_fs, self.number("mib")?) {
            (None, mib) => mib.unwrap_or(24),
            (Some(mib), None) => {
                mib.parse().map_err(|_| Error::Usage(format!("--fs=NAME:MIB, not {mib:?}")))?
            }
            (Some(_), Some(_)) => return Err(Error::Usage("the size stands in --fs and in --mib".into())),
        };
        if !(1..=MIB_MAX).contains(&mib) {
            return Err(Error::Usage(format!("a disk has 1 to {MIB_MAX} MiB, not {mib}")));
        }
        Ok(mib << 20)
    }

    fn file_system(&mut self) -> Result<FileSystem> {
        let name = self.one("fs")?.unwrap_or_else(|| "ext4".into());
        let name = name.split_once(':').map_or(name.as_str(), |(name, _)| name).to_owned();
        let options = self.one("opts")?.unwrap_or_else(|| "noatime".into());
        Ok(FileSystem { name, options })
    }

    fn minimum(&mut self) -> Result<Minimum> {
        Ok(Minimum {
            acks: self.number("acks-min")?.unwrap_or(0),
            flushes: self.number("flushes-min")?.unwrap_or(0),
        })
    }

    fn program(&mut self) -> Result<Vec<String>> {
        match std::mem::take(&mut self.program) {
            words if words.is_empty() => Err(Error::Usage("-- PROGRAM ARGUMENT... is missing".into())),
            words => Ok(words),
        }
    }

    fn finish(self) -> Result<()> {
        let mut unknown: Vec<_> =
            self.values.keys().map(|name| format!("--{name}")).chain(self.program).collect();
        unknown.sort();
        match unknown.as_slice() {
            [] => Ok(()),
            unknown => Err(Error::Usage(format!("{} does not know {}", self.command, unknown.join(" ")))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(line: &str) -> Options {
        Options::parse(line.split(' ').map(str::to_owned).collect()).unwrap()
    }

    #[test]
    fn words_after_the_dashes_belong_to_the_program() {
        let mut options = options("record --log=a --fault=lie --fault=clear -- prog --log=b");
        assert_eq!(options.required("log").unwrap(), Path::new("a"));
        assert_eq!(options.all("fault"), ["lie", "clear"]);
        assert_eq!(options.program().unwrap(), ["prog", "--log=b"]);
        options.finish().unwrap();
    }

    #[test]
    fn the_size_may_stand_with_the_file_system() {
        let mut options = options("mount --fs=xfs:320");
        assert_eq!(options.disk_bytes().unwrap(), 320 << 20);
        assert_eq!(options.file_system().unwrap().name, "xfs");
        assert_eq!(self::options("mount --mib=32").disk_bytes().unwrap(), 32 << 20);
        assert!(self::options("mount --mib=32 --fs=ext4:32").disk_bytes().is_err());
        assert!(self::options("mount --mib=0").disk_bytes().is_err());
    }

    #[test]
    fn a_misspelt_option_is_refused() {
        assert!(options("sweep --point=5").finish().is_err());
        assert!(options("sweep --points=many").number::<usize>("points").is_err());
        assert!(options("sweep --keep=yes").flag("keep").is_err());
        assert!(Options::parse(vec!["sweep".into(), "points".into()]).is_err());
    }
}
