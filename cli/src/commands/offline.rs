//! `quipu verify` and `quipu dump`: a directory and its files, without a server.

use std::io::{self, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use quipu_storage::disk::OsDisk;
use quipu_storage::dump::{DumpOptions, Line, dump_lines, dump_store_lines};
use quipu_storage::verify::{Finding, Progress, Severity, VerifyOptions, verify as verify_store};
use serde_json::json;

use super::progress::bytes_bar;
use crate::args::Global;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Output, Shown};
use crate::units::{Size, about_bytes, batches, counted};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu verify --data /var/lib/quipu
  quipu verify --data backup --json | jq .findings

A store that a server holds is verified by the server: quipu topics verify TOPIC")]
pub(crate) struct VerifyArgs {
    /// Most bytes to read a second; 0: no limit.
    #[arg(long, value_name = "SIZE", default_value = "0")]
    bytes_per_second_max: Size,
}

pub(crate) fn verify(global: &Global, args: &VerifyArgs, out: &mut Output) -> Result<()> {
    let dir = global.data_dir()?;
    let bar = bytes_bar(out, Some(0));
    let mut tell = |now: Progress| {
        bar.set_length(now.bytes_total);
        bar.set_position(now.bytes_done);
        ControlFlow::Continue(())
    };
    let options = VerifyOptions {
        bytes_per_second_max: args.bytes_per_second_max.0,
        progress: Some(&mut tell),
        ..VerifyOptions::default()
    };
    let report = verify_store(dir, Arc::new(OsDisk), options);
    bar.finish_and_clear();
    let report = report.map_err(|error| {
        let failure = Failure::from(error);
        if failure.reason == "LOCKED" {
            return failure.hint("the server that holds it verifies it: `quipu topics verify TOPIC`");
        }
        failure
    })?;
    let checked = &report.checked;
    if out.is_json {
        out.json(&json!({
            "intact": report.is_intact(),
            "readable": report.is_readable(),
            "store": report.store.map(|uid| uid.to_string()),
            "closed_properly": report.was_clean,
            "topics": checked.topics,
            "segments": checked.segments,
            "batches": checked.batches,
            "records": checked.records,
            "journal_frames": checked.frames,
            "bytes": checked.bytes,
            "findings": report.findings.iter().map(finding_json).collect::<Vec<_>>(),
            "findings_left_out": report.findings_left_out,
        }))?;
    } else {
        let styles = out.styles;
        for finding in &report.findings {
            let style = if finding.severity == Severity::Foreign { styles.dim } else { styles.bad };
            out.line(format_args!("{style}{}{style:#}", Shown(&finding.to_string())))?;
        }
        let (style, verdict) = match (report.is_intact(), report.is_readable()) {
            (true, _) => (styles.good, "intact"),
            (false, true) => (styles.bad, "damaged, but every record can be read"),
            (false, false) => (styles.bad, "damaged: records cannot be read"),
        };
        out.line(format_args!(
            "{style}{verdict}{style:#}: {}, {}, {}, {}, {}, {} read",
            counted(checked.topics, "topic"),
            counted(checked.segments, "segment"),
            batches(checked.batches),
            counted(checked.records, "record"),
            counted(checked.frames, "journal frame"),
            about_bytes(checked.bytes)
        ))?;
    }
    if report.is_intact() { Ok(()) } else { Err(Failure::silent(Exit::Damaged)) }
}

fn finding_json(finding: &Finding) -> serde_json::Value {
    json!({
        "severity": match finding.severity {
            Severity::Foreign => "foreign",
            Severity::Redundant => "redundant",
            Severity::Unreadable => "unreadable",
        },
        "topic": finding.topic.as_ref().map(|topic| topic.as_str()),
        "from": finding.offsets.as_ref().map(|offsets| offsets.start.0),
        "to": finding.offsets.as_ref().map(|offsets| offsets.end.0),
        "path": finding.path.display().to_string(),
        "position": finding.position.0,
        "detail": finding.detail,
    })
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu dump --data /var/lib/quipu
  quipu dump /var/lib/quipu/topics/00000001/00000000000000000000-0.segment --value-bytes-max 1000
  quipu dump --data /var/lib/quipu --json | jq 'select(.damaged)'")]
pub(crate) struct DumpArgs {
    /// A segment, journal file or checkpoint. None: every file of the store named by --data.
    file: Option<PathBuf>,
    /// Only headers, frames and batches.
    #[arg(long)]
    no_records: bool,
    /// How many bytes of a key, header value or payload are shown.
    #[arg(long, value_name = "N", default_value_t = 64)]
    value_bytes_max: usize,
}

pub(crate) fn run_dump(global: &Global, args: &DumpArgs, out: &mut Output) -> Result<()> {
    let options = DumpOptions { records: !args.no_records, value_bytes_max: args.value_bytes_max };
    match &args.file {
        Some(file) => dump_lines(file, &OsDisk, options, &mut |line| print_line(file, &line, out)),
        None => {
            let dir = global.data_dir()?;
            if !dir.is_dir() {
                return Err(quipu_storage::Error::NoStore { path: dir.clone() }.into());
            }
            let mut file = PathBuf::new();
            dump_store_lines(dir, &OsDisk, options, &mut |line| {
                if let Line::File(path) = line {
                    file = path.into();
                }
                print_line(&file, &line, out)
            })
        }
    }
    .map_err(|error| match error {
        quipu_storage::Error::Io { action, path, source } if source.kind() == io::ErrorKind::NotFound => {
            Failure::file(action, path.display(), &source)
        }
        error => error.into(),
    })
}

fn print_line(file: &Path, line: &Line<'_>, out: &mut Output) -> io::Result<()> {
    if !out.is_json {
        return writeln!(out, "{line}");
    }
    let path = file.display().to_string();
    let value = match line {
        Line::File(_) => json!({"path": path}),
        Line::At { position, text } => json!({"path": path, "position": position, "text": text}),
        Line::Record { offset, text } => json!({"path": path, "offset": offset.0, "text": text}),
        Line::Detail(text) => json!({"path": path, "text": text.trim_start()}),
        Line::Damaged { position, text } => {
            json!({"path": path, "position": position, "damaged": true, "text": text})
        }
    };
    writeln!(out, "{value}")
}
