//! Compaction and verification on a caller's behalf: each runs on a thread of its own, tells its progress a few times a
//! second, and ends when its caller goes or the server shuts down.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::Stream;
use quipu_proto::v1 as pb;
use quipu_storage::verify::{Severity, VerifyOptions, VerifyReport};
use quipu_storage::{CompactOptions, Compaction, CompactionControl, CompactionReport, Error, Topic};
use tokio::task::JoinHandle;
use tonic::Status;

use crate::error::{Problem, Violations, status};
use crate::settings::ms;
use crate::shared::{Drain, Shared};

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
/// Responses of a compaction.
pub(crate) type CompactStream = Responses<pb::CompactTopicResponse>;
/// Responses of a verification.
pub(crate) type VerifyStream = Responses<pb::VerifyTopicResponse>;

/// Something that runs on another thread and can be told to stop.
trait Watched: Send + Sync + 'static {
    type Response: Send;
    fn progress(&self) -> Self::Response;
    fn cancel(&self);
}

/// A run, and its caller's hold on it: when that goes, the run is cancelled.
struct Run<W: Watched> {
    watched: Arc<W>,
    thread: Option<JoinHandle<Result<W::Response, Error>>>,
    drain: Drain,
}

impl<W: Watched> Drop for Run<W> {
    fn drop(&mut self) {
        self.watched.cancel();
    }
}

impl<W: Watched> Run<W> {
    async fn next(&mut self) -> Option<Result<W::Response, Status>> {
        let thread = self.thread.as_mut()?;
        let outcome = tokio::select! {
            outcome = thread => outcome,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => return Some(Ok(self.watched.progress())),
            () = self.drain.begun() => {
                self.thread = None;
                return Some(Err(Problem::draining().unknown().into()));
            }
        };
        self.thread = None;
        Some(match outcome {
            Ok(report) => report.map_err(status),
            Err(error) => Err(Problem::internal(error.to_string()).into()),
        })
    }
}

fn run<W: Watched>(
    shared: &Shared,
    watched: W,
    work: impl FnOnce(&W) -> Result<W::Response, Error> + Send + 'static,
) -> Result<Responses<W::Response>, Status> {
    let permit = shared.upkeep()?;
    let watched = Arc::new(watched);
    let worked_on = Arc::clone(&watched);
    let thread = tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work(&worked_on)
    });
    let run = Run { watched, thread: Some(thread), drain: shared.drain() };
    Ok(Box::pin(futures_util::stream::unfold(run, |mut run| async move {
        let next = run.next().await?;
        Some((next, run))
    })))
}

impl Watched for CompactionControl {
    type Response = pb::CompactTopicResponse;

    fn progress(&self) -> Self::Response {
        let progress = CompactionControl::progress(self);
        let event = pb::compact_topic_response::Event::Progress(pb::CompactionProgress {
            bytes_read: progress.bytes_read,
            bytes_to_read: progress.bytes_to_read,
            segments_written: progress.segments_written,
        });
        pb::CompactTopicResponse { event: Some(event) }
    }

    fn cancel(&self) {
        CompactionControl::cancel(self);
    }
}

/// Compacts a topic.
pub(crate) fn compact(
    shared: &Shared,
    topic: Topic,
    request: &pb::CompactTopicRequest,
) -> Result<CompactStream, Status> {
    let (dry_run, erased_only) = (request.dry_run, request.erased_only);
    let mut options = CompactOptions { dry_run, erased_only, ..CompactOptions::default() };
    let mut violations = Violations::default();
    if let Some(bytes) = request.bytes_per_second_max {
        options.compaction = topic.settings().compaction.or_else(|| erased_only.then(Compaction::default));
        if let Some(compaction) = &mut options.compaction {
            compaction.bytes_per_second_max = bytes;
            violations.require(
                compaction.check().is_ok(),
                "bytes_per_second_max",
                "must be 0 or at least 64 KiB",
            );
        }
    }
    violations.finish()?;
    run(shared, CompactionControl::new(), move |control| {
        tracing::info!(topic = %topic.name(), options.dry_run, "compaction began");
        let done = topic.compact_with(&options, control).inspect_err(|error| {
            tracing::warn!(topic = %topic.name(), %error, "compaction ended early");
        })?;
        let removed = done.records_removed.total();
        tracing::info!(topic = %topic.name(), removed, kept_bytes = done.bytes_after, "compaction ended");
        let event = pb::compact_topic_response::Event::Report(report(&done));
        Ok(pb::CompactTopicResponse { event: Some(event) })
    })
}

/// What a compaction did, as it is told.
pub(crate) fn report(report: &CompactionReport) -> pb::CompactionReport {
    let named = |counts: &[(&str, u64)]| -> HashMap<String, u64> {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    };
    let (removed, kept) = (&report.records_removed, &report.records_kept);
    pb::CompactionReport {
        time_ms: report.time.value(),
        duration_ms: ms(report.duration),
        dry_run: report.is_dry_run,
        complete: report.is_complete,
        segments_before: report.segments_before,
        segments_after: report.segments_after,
        segments_replaced: report.segments_replaced,
        bytes_before: report.bytes_before,
        bytes_after: report.bytes_after,
        records_before: report.records_before,
        records_removed: named(&[
            ("superseded", removed.superseded),
            ("tombstone_expired", removed.tombstone_expired),
            ("trimmed", removed.trimmed),
        ]),
        records_kept: named(&[
            ("latest", kept.latest),
            ("no_key", kept.no_key),
            ("too_young", kept.too_young),
            ("tombstone_young", kept.tombstone_young),
            ("damaged", kept.damaged),
            ("not_reached", kept.not_reached),
        ]),
        keys: report.keys,
        payloads_erased: report.payloads_erased,
        payload_bytes_erased: report.payload_bytes_erased,
        damaged: report
            .damaged
            .iter()
            .map(|range| pb::Finding {
                severity: severity(Severity::Unreadable).into(),
                from: Some(range.offsets.start.value()),
                to: Some(range.offsets.end.value()),
                path: range.path.display().to_string(),
                position: range.position.value(),
                detail: range.detail.into(),
            })
            .collect(),
    }
}

/// How far a verification is.
#[derive(Debug, Default)]
struct Verification {
    bytes_done: AtomicU64,
    bytes_total: AtomicU64,
    is_cancelled: AtomicBool,
}

impl Watched for Verification {
    type Response = pb::VerifyTopicResponse;

    fn progress(&self) -> Self::Response {
        let event = pb::verify_topic_response::Event::Progress(pb::VerifyProgress {
            bytes_read: self.bytes_done.load(Ordering::Relaxed),
            bytes_to_read: self.bytes_total.load(Ordering::Relaxed),
        });
        pb::VerifyTopicResponse { event: Some(event) }
    }

    fn cancel(&self) {
        self.is_cancelled.store(true, Ordering::Release);
    }
}

/// Verifies a topic.
pub(crate) fn verify(shared: &Shared, topic: Topic) -> Result<VerifyStream, Status> {
    run(shared, Verification::default(), move |watched| {
        tracing::info!(topic = %topic.name(), "verification began");
        let mut progress = |now: quipu_storage::verify::Progress| {
            watched.bytes_done.store(now.bytes_done, Ordering::Relaxed);
            watched.bytes_total.store(now.bytes_total, Ordering::Relaxed);
            if watched.is_cancelled.load(Ordering::Acquire) {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        };
        let done =
            topic.verify(VerifyOptions { progress: Some(&mut progress), ..VerifyOptions::default() })?;
        tracing::info!(topic = %topic.name(), intact = done.is_intact(), "verification ended");
        let event = pb::verify_topic_response::Event::Report(verified(&done));
        Ok(pb::VerifyTopicResponse { event: Some(event) })
    })
}

fn verified(report: &VerifyReport) -> pb::VerifyReport {
    let findings = report.findings.iter().map(|finding| pb::Finding {
        severity: severity(finding.severity).into(),
        from: finding.offsets.as_ref().map(|offsets| offsets.start.value()),
        to: finding.offsets.as_ref().map(|offsets| offsets.end.value()),
        path: finding.path.display().to_string(),
        position: finding.position.value(),
        detail: finding.detail.clone(),
    });
    pb::VerifyReport {
        intact: report.is_intact(),
        readable: report.is_readable(),
        segments: report.checked.segments,
        batches: report.checked.batches,
        records: report.checked.records,
        bytes: report.checked.bytes,
        findings: findings.collect(),
        findings_left_out: report.findings_left_out,
    }
}

fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Foreign => "foreign",
        Severity::Redundant => "redundant",
        Severity::Unreadable => "unreadable",
    }
}
