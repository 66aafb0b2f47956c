//! The programs we run: each in a process group of its own, so that nothing of it outlives its turn, and all of
//! them killed when a signal asks us to stop. What they leave behind is then unmounted on the ordinary way out.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::error::{Context, Error, Result};
use crate::sys;

/// The programs that run now.
#[derive(Clone, Debug, Default)]
pub(crate) struct Programs(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// The leaders of groups that are running. Their processes are not yet reaped, so the numbers are theirs.
    groups: Vec<Pid>,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    Ended(ExitStatus),
    /// It ran longer than it was given, and was killed.
    TimedOut,
}

impl Programs {
    /// Starts to listen for SIGINT, SIGTERM and SIGHUP, for the rest of this process.
    pub(crate) fn listening() -> Result<Self> {
        let programs = Self::default();
        let listener = programs.clone();
        let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context(|| "listen for signals".into())?;
        thread::spawn(move || {
            for _ in signals.forever() {
                let mut state = listener.lock();
                state.stopped = true;
                state.groups.iter().for_each(|group| kill_group(*group));
            }
        });
        Ok(programs)
    }

    /// An error once a signal asked us to stop.
    pub(crate) fn proceed(&self) -> Result<()> {
        if self.lock().stopped { Err(Error::Interrupted) } else { Ok(()) }
    }

    pub(crate) fn start(&self, command: &mut Command) -> Result<Running> {
        // Under the lock, so that a signal either precedes the program or finds it in the list.
        let mut state = self.lock();
        if state.stopped {
            return Err(Error::Interrupted);
        }
        let name = command.get_program().to_string_lossy().into_owned();
        let mut child =
            sys::die_with_us(command).process_group(0).spawn().context(|| format!("start {name}"))?;
        let group = Pid::from_child(&child);
        match pidfd_open(group, PidfdFlags::empty()) {
            Ok(exit) => {
                state.groups.push(group);
                Ok(Running { programs: self.clone(), child, group, exit, reaped: false })
            }
            Err(error) => {
                kill_group(group);
                let _ = child.wait();
                Err(error).context(|| format!("watch {name}"))
            }
        }
    }

    /// Starts a program and waits for its end.
    pub(crate) fn run(&self, command: &mut Command, patience: Option<Duration>) -> Result<Outcome> {
        self.start(command)?.wait(patience)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A program that was started. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Running {
    programs: Programs,
    pub(crate) child: Child,
    group: Pid,
    /// Readable once the leader has ended.
    exit: OwnedFd,
    reaped: bool,
}

impl Running {
    /// Waits for the program's end, then kills what it left running in its group. Fails if we are to stop.
    pub(crate) fn wait(mut self, patience: Option<Duration>) -> Result<Outcome> {
        let in_time = self.ends_within(patience)?;
        let status = self.reap().context(|| "wait for a program".into())?;
        self.programs.proceed()?;
        Ok(if in_time { Outcome::Ended(status) } else { Outcome::TimedOut })
    }

    fn ends_within(&self, patience: Option<Duration>) -> Result<bool> {
        let begin = Instant::now();
        loop {
            let left = patience.map(|patience| patience.saturating_sub(begin.elapsed()));
            let timeout = left.map(|left| Timespec::try_from(left).expect("a timeout of seconds"));
            match poll(&mut [PollFd::new(&self.exit, PollFlags::IN)], timeout.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error).context(|| "wait for a program".into()),
            }
        }
    }

    fn reap(&mut self) -> std::io::Result<ExitStatus> {
        self.reaped = true;
        // Off the list and killed before it is reaped: only until then is the number surely its own.
        self.programs.lock().groups.retain(|group| *group != self.group);
        kill_group(self.group);
        self.child.wait()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.reaped {
            let _ = self.reap();
        }
    }
}

fn kill_group(group: Pid) {
    // It may have ended by itself just now.
    let _ = kill_process_group(group, Signal::KILL);
}
