//! A process of its own: to be killed, or to have its memory looked at.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child as Process, ChildStdout, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// A running child. Dropping it kills it.
#[derive(Debug)]
pub struct Child {
    process: Process,
    lines: BufReader<ChildStdout>,
}

impl Child {
    /// Starts `command`, whose standard output [`line`](Self::line) then reads.
    pub fn spawn(mut command: Command) -> Result<Self> {
        let mut process = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("start {}", command.get_program().display()))?;
        let lines = BufReader::new(process.stdout.take().expect("standard output is piped"));
        Ok(Self { process, lines })
    }

    /// Waits for the child's next line: its word that it has come so far.
    pub fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        if self.lines.read_line(&mut line).context("read from the child")? == 0 {
            bail!("the child ended early: {}", self.process.wait().context("wait for the child")?);
        }
        Ok(line.trim_end().to_owned())
    }

    /// Bytes of the child's own memory that are resident: without pages of files that are mapped, which are the page
    /// cache's and which the system takes back when it needs them.
    pub fn own_bytes(&self) -> Result<u64> {
        self.status_bytes("RssAnon:")
    }

    /// Bytes of the child's memory that are resident, with its program's and its files' pages.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.process.id());
        let status = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix(name)?.trim().strip_suffix(" kB")?.parse::<u64>().ok())
            .map(|kib| kib * 1024)
            .with_context(|| format!("no {name} in {path}"))
    }

    /// Processor time of the child's threads so far, to the nanosecond.
    pub fn cpu_time(&self) -> Result<Duration> {
        let tasks = format!("/proc/{}/task", self.process.id());
        let mut nanos = 0;
        for task in fs::read_dir(&tasks).with_context(|| format!("read {tasks}"))? {
            // A thread may have ended meanwhile.
            let Ok(text) = fs::read_to_string(task?.path().join("schedstat")) else { continue };
            nanos += text.split(' ').next().and_then(|nanos| nanos.parse::<u64>().ok()).unwrap_or(0);
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// Asks the child to end (SIGTERM) and waits until it has.
    pub fn stop(&mut self) -> Result<()> {
        let id = i32::try_from(self.process.id()).ok().and_then(rustix::process::Pid::from_raw);
        rustix::process::kill_process(id.context("a process id")?, rustix::process::Signal::TERM)?;
        let status = self.process.wait().context("wait for the child")?;
        anyhow::ensure!(status.success(), "the child ended with {status}");
        Ok(())
    }

    /// Kills the child (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.process.kill().context("kill the child")?;
        self.process.wait().context("wait for the child")?;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // A child that is gone already is what we want.
        drop(self.kill());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Child {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        Child::spawn(command).unwrap()
    }

    #[test]
    fn a_child_says_where_it_is_and_can_be_weighed_and_killed() {
        let mut child = shell("echo ready; exec sleep 60");
        assert_eq!(child.line().unwrap(), "ready");
        assert!(child.own_bytes().unwrap() > 0);
        assert!(child.resident_bytes().unwrap() >= child.own_bytes().unwrap());
        assert!(child.cpu_time().unwrap() > Duration::ZERO);
        child.kill().unwrap();
        assert!(child.line().is_err());
    }

    #[test]
    fn a_child_that_ends_early_is_reported_with_its_status() {
        let error = shell("exit 3").line().unwrap_err().to_string();
        assert!(error.contains('3'), "{error}");
    }
}
