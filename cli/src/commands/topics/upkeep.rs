//! Compacting and verifying a topic, with progress.

use clap::Args;
use quipu_proto::v1 as pb;
use serde_json::{Value, json};

use crate::backend::Backend;
use crate::commands::progress::bytes_bar;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Output, Shown};
use crate::units::{Size, about_bytes, batches, counted, grouped, time_text};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu topics compact prices --dry-run
  quipu topics compact orders --erased-only
  quipu topics compact prices --bytes-per-second-max 10MiB")]
pub(super) struct CompactArgs {
    /// The topic.
    topic: String,
    /// Only say what would go.
    #[arg(long)]
    dry_run: bool,
    /// Only free the room of payloads that were erased; no record goes. Any topic can be compacted so.
    #[arg(long)]
    erased_only: bool,
    /// Most bytes to read a second; 0: no limit. Default: as the topic's settings say.
    #[arg(long, value_name = "SIZE")]
    bytes_per_second_max: Option<Size>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu topics verify orders
  quipu topics verify orders --json | jq .findings")]
pub(super) struct VerifyArgs {
    /// The topic.
    topic: String,
}

pub(super) fn compact(backend: &dyn Backend, args: CompactArgs, out: &mut Output) -> Result<()> {
    let bar = bytes_bar(out, Some(0));
    let request = pb::CompactTopicRequest {
        name: args.topic,
        dry_run: args.dry_run,
        bytes_per_second_max: args.bytes_per_second_max.map(|size| size.0),
        erased_only: args.erased_only,
    };
    let report = backend.compact_topic(request, &mut |progress| {
        bar.set_length(progress.bytes_to_read);
        bar.set_position(progress.bytes_read);
    });
    bar.finish_and_clear();
    let report = report?;
    if out.is_json {
        out.json(&report_json(&report))?;
    } else {
        show(&report, out)?;
    }
    if report.damaged.is_empty() { Ok(()) } else { Err(Failure::silent(Exit::Damaged)) }
}

fn show(report: &pb::CompactionReport, out: &mut Output) -> Result<()> {
    let removed: u64 = report.records_removed.values().sum();
    let (went, became) = if report.dry_run { ("would go", "would become") } else { ("went", "became") };
    out.line(format_args!(
        "{} of {} {went}; {}; {} with {} {became} {} with {}",
        grouped(removed),
        counted(report.records_before, "record"),
        counted(report.keys, "key"),
        counted(report.segments_before, "segment"),
        about_bytes(report.bytes_before),
        report.segments_after,
        about_bytes(report.bytes_after),
    ))?;
    if report.payload_bytes_erased > 0 {
        let bytes = about_bytes(report.payload_bytes_erased);
        out.line(format_args!(
            "{bytes} of erased payloads {went}, {} stay",
            counted(report.payloads_erased, "record")
        ))?;
    }
    if report.dry_run {
        out.line("this was a dry run: nothing was changed")?;
    }
    let (removed, kept) = if report.dry_run { ("would go", "would stay") } else { ("removed", "kept") };
    for (what, counts) in [(removed, &report.records_removed), (kept, &report.records_kept)] {
        let mut counts: Vec<_> = counts.iter().collect();
        counts.sort();
        for (reason, count) in counts {
            out.line(format_args!("  {what:<10} {:>14}  {}", grouped(*count), Shown(reason)))?;
        }
    }
    if !report.complete {
        out.line("it did not come to its end; the next run goes on")?;
    }
    report.damaged.iter().try_for_each(|finding| show_finding(finding, out))
}

pub(super) fn verify(backend: &dyn Backend, args: &VerifyArgs, out: &mut Output) -> Result<()> {
    let bar = bytes_bar(out, Some(0));
    let report = backend.verify_topic(&args.topic, &mut |progress| {
        bar.set_length(progress.bytes_to_read);
        bar.set_position(progress.bytes_read);
    });
    bar.finish_and_clear();
    let report = report?;
    if out.is_json {
        out.json(&json!({
            "intact": report.intact,
            "readable": report.readable,
            "segments": report.segments,
            "batches": report.batches,
            "records": report.records,
            "bytes": report.bytes,
            "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
            "findings_left_out": report.findings_left_out,
        }))?;
    } else {
        report.findings.iter().try_for_each(|finding| show_finding(finding, out))?;
        let verdict = match (report.intact, report.readable) {
            (true, _) => "intact",
            (false, true) => "damaged, but every record can be read",
            (false, false) => "damaged: records are lost",
        };
        out.line(format_args!(
            "{verdict}: {} in {} and {}, {} read",
            counted(report.records, "record"),
            batches(report.batches),
            counted(report.segments, "segment"),
            about_bytes(report.bytes)
        ))?;
    }
    if report.intact { Ok(()) } else { Err(Failure::silent(Exit::Damaged)) }
}

pub(crate) fn show_finding(finding: &pb::Finding, out: &mut Output) -> Result<()> {
    let bad = out.styles.bad;
    let offsets = match (finding.from, finding.to) {
        (Some(from), Some(to)) => format!(", offsets {from} to {to} (exclusive)"),
        _ => String::new(),
    };
    out.line(format_args!(
        "{bad}{}{bad:#}{offsets}: {} ({}, position {})",
        Shown(&finding.severity),
        Shown(&finding.detail),
        Shown(&finding.path),
        finding.position
    ))
}

pub(crate) fn finding_json(finding: &pb::Finding) -> Value {
    json!({
        "severity": finding.severity,
        "from": finding.from,
        "to": finding.to,
        "path": finding.path,
        "position": finding.position,
        "detail": finding.detail,
    })
}

pub(super) fn retention_json(report: &pb::RetentionReport) -> Value {
    json!({"time": time_text(report.time_ms), "from": report.from, "to": report.to, "reason": report.reason})
}

pub(super) fn report_json(report: &pb::CompactionReport) -> Value {
    json!({
        "time": time_text(report.time_ms),
        "duration_ms": report.duration_ms,
        "dry_run": report.dry_run,
        "complete": report.complete,
        "segments_before": report.segments_before,
        "segments_after": report.segments_after,
        "segments_replaced": report.segments_replaced,
        "bytes_before": report.bytes_before,
        "bytes_after": report.bytes_after,
        "records_before": report.records_before,
        "records_removed": report.records_removed,
        "records_kept": report.records_kept,
        "keys": report.keys,
        "payloads_erased": report.payloads_erased,
        "payload_bytes_erased": report.payload_bytes_erased,
        "damaged": report.damaged.iter().map(finding_json).collect::<Vec<_>>(),
    })
}
