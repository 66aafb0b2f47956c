//! A verification under way: what it has found, how fast it may go, and who wants to know.

use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::time::{Duration, Instant};

use super::report::{Finding, Severity, VerifyReport};
use crate::error::{Error, Result};
use crate::types::{Offset, Position, TopicName};

/// How far a verification is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes read so far.
    pub bytes_done: u64,
    /// About how many there are.
    pub bytes_total: u64,
    /// Findings so far.
    pub findings: u64,
}

/// What a verification tells its caller: answer `Break` to cancel it.
pub type OnProgress<'a> = &'a mut dyn FnMut(Progress) -> ControlFlow<()>;

/// How to verify.
pub struct VerifyOptions<'a> {
    /// Most bytes read a second. 0, the default: no limit.
    pub bytes_per_second_max: u64,
    /// Most findings that are reported one by one; further ones are counted. 1,000.
    pub findings_max: usize,
    /// Called about once a megabyte.
    pub progress: Option<OnProgress<'a>>,
}

impl Default for VerifyOptions<'_> {
    fn default() -> Self {
        Self { bytes_per_second_max: 0, findings_max: 1000, progress: None }
    }
}

/// See the [module](self).
pub(super) struct Run<'a> {
    options: VerifyOptions<'a>,
    pub(super) report: VerifyReport,
    pub(super) bytes_total: u64,
    begun: Instant,
}

impl<'a> Run<'a> {
    pub(super) fn new(options: VerifyOptions<'a>) -> Self {
        Self { options, report: VerifyReport::default(), bytes_total: 0, begun: Instant::now() }
    }

    pub(super) fn find(&mut self, finding: Finding) {
        if self.report.findings.len() < self.options.findings_max {
            self.report.findings.push(finding);
        } else {
            self.report.findings_left_out += 1;
        }
    }

    /// A finding about a file as a whole, or about a place in it that belongs to no topic.
    pub(super) fn find_in_file(
        &mut self,
        severity: Severity,
        path: &Path,
        position: u64,
        detail: impl Into<String>,
    ) {
        self.find(Finding {
            severity,
            topic: None,
            offsets: None,
            path: path.into(),
            position: Position(position),
            detail: detail.into(),
        });
    }

    /// A finding about records of a topic.
    pub(super) fn find_in_topic(
        &mut self,
        severity: Severity,
        topic: Option<&TopicName>,
        offsets: Option<Range<Offset>>,
        (path, position): (&Path, u64),
        detail: impl Into<String>,
    ) {
        self.find(Finding {
            severity,
            topic: topic.cloned(),
            offsets,
            path: path.into(),
            position: Position(position),
            detail: detail.into(),
        });
    }

    /// Takes note of `bytes` read; waits if that was too fast, and asks whether to go on.
    pub(super) fn pace(&mut self, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.report.checked.bytes += bytes;
        if let Some(progress) = &mut self.options.progress {
            let findings = self.report.findings.len() as u64 + self.report.findings_left_out;
            let bytes_done = self.report.checked.bytes;
            let bytes_total = self.bytes_total.max(bytes_done);
            if progress(Progress { bytes_done, bytes_total, findings }).is_break() {
                return Err(Error::Cancelled { what: "verification" });
            }
        }
        if self.options.bytes_per_second_max != 0 {
            let due = u128::from(self.report.checked.bytes) * 1_000_000
                / u128::from(self.options.bytes_per_second_max);
            let due = Duration::from_micros(u64::try_from(due).unwrap_or(u64::MAX));
            std::thread::sleep(due.saturating_sub(self.begun.elapsed()));
        }
        Ok(())
    }
}
