//! `quipu status`: how a server and its store are.

use clap::Args;
use quipu_proto::v1 as pb;
use quipu_storage::Store;
use serde_json::json;

use crate::args::Global;
use crate::exit::{Exit, Failure, Result};
use crate::output::{Output, Shown};
use crate::units::{about_bytes, counted, grouped, time_text};

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu status
  quipu status --json | jq .disk_free_bytes

It ends with 0 only if the server takes appends: good for a health check.")]
pub(crate) struct StatusArgs {}

pub(crate) fn run(global: &Global, _args: &StatusArgs, out: &mut Output) -> Result<()> {
    match &global.data {
        Some(dir) => of_directory(&Store::open_read_only(dir)?, out),
        None => of_server(&global.remote()?.status()?, out),
    }
}

fn row(out: &mut Output, name: &str, value: &str) -> Result<()> {
    let dim = out.styles.dim;
    out.line(format_args!("{dim}{name:<18}{dim:#} {value}"))
}

fn of_directory(store: &quipu_storage::ReadOnlyStore, out: &mut Output) -> Result<()> {
    let stats = store.stats();
    let damage = stats.damage.as_ref().map(ToString::to_string);
    if out.is_json {
        out.json(&json!({
            "topics": stats.topics,
            "journal_position": stats.journal_position.0,
            "synced_position": stats.synced_position.0,
            "checkpoint_position": stats.checkpoint_position.0,
            "damage": damage,
        }))?;
    } else {
        row(out, "topics", &grouped(stats.topics))?;
        let (end, synced) = (stats.journal_position, stats.synced_position);
        row(
            out,
            "journal",
            &format!("up to {end}, synced to {synced}, checkpoint at {}", stats.checkpoint_position),
        )?;
        if let Some(damage) = &damage {
            row(out, "damage", &Shown(damage).to_string())?;
        }
    }
    if damage.is_some() { Err(Failure::silent(Exit::Damaged)) } else { Ok(()) }
}

fn of_server(status: &pb::GetServerStatusResponse, out: &mut Output) -> Result<()> {
    use pb::get_server_status_response::State;
    let (name, exit) = match status.state() {
        State::Serving if status.disk_full => ("serving, disk full", Exit::DiskFull),
        State::Serving => ("serving", Exit::Ok),
        State::Draining => ("draining", Exit::Unavailable),
        State::Failed => ("failed", Exit::StorageFailed),
        State::Unspecified => ("unknown", Exit::Failure),
    };
    let uid: String = status.store_uid.iter().map(|byte| format!("{byte:02x}")).collect();
    if out.is_json {
        out.json(&json!({
            "state": name,
            "version": status.version,
            "store": uid,
            "start_time": time_text(status.start_time_ms),
            "failure": Some(&status.failure).filter(|failure| !failure.is_empty()),
            "disk_full": status.disk_full,
            "disk_free_bytes": status.disk_free_bytes,
            "topics": status.topics,
            "segment_bytes": status.segment_bytes,
            "journal_bytes": status.journal_bytes,
            "journal_position": status.journal_position,
            "synced_position": status.synced_position,
            "checkpoint_position": status.checkpoint_position,
            "connections": status.connections,
            "subscribers": status.subscribers,
            "append_sessions": status.append_sessions,
            "appends": status.appends,
            "records_appended": status.records_appended,
            "damage_found": status.damage_found,
        }))?;
    } else {
        row(out, "state", name)?;
        if !status.failure.is_empty() {
            row(out, "failure", &Shown(&status.failure).to_string())?;
        }
        row(out, "version", &Shown(&status.version).to_string())?;
        row(out, "started", &time_text(status.start_time_ms))?;
        row(out, "store", &uid)?;
        let free = status.disk_free_bytes.map_or_else(|| "not known".to_owned(), about_bytes);
        row(
            out,
            "disk",
            &format!(
                "{} in segments, {} in the journal, {free} free",
                about_bytes(status.segment_bytes),
                about_bytes(status.journal_bytes)
            ),
        )?;
        row(out, "topics", &grouped(status.topics))?;
        row(
            out,
            "clients",
            &format!(
                "{}, {}, {}",
                counted(status.connections, "connection"),
                counted(status.subscribers, "subscriber"),
                counted(status.append_sessions, "append session")
            ),
        )?;
        row(
            out,
            "appends",
            &format!("{} with {}", grouped(status.appends), counted(status.records_appended, "record")),
        )?;
        row(out, "damage found", &grouped(status.damage_found))?;
    }
    if exit == Exit::Ok { Ok(()) } else { Err(Failure::silent(exit)) }
}
