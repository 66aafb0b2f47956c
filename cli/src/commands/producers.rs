//! `quipu producers`: names under which is published exactly once.

use clap::{Args, Subcommand};
use serde_json::json;

use crate::args::Global;
use crate::exit::Result;
use crate::output::{Output, Shown};

#[derive(Debug, Args)]
#[command(
    arg_required_else_help = true,
    after_help = "Examples:
  quipu producers list
  quipu producers forget import-2026-07"
)]
pub(crate) struct ProducersArgs {
    #[command(subcommand)]
    command: ProducersCommand,
}

#[derive(Debug, Subcommand)]
enum ProducersCommand {
    /// List producers by name, each with its epoch and the number of its last append in it. Those of sessions that made a
    /// name up begin with ~.
    #[command(visible_alias = "ls")]
    #[command(after_help = "Examples:
  quipu producers list
  quipu producers list --json | jq -r .producer")]
    List,
    /// Forget a producer that does not publish any more. What it published stays; published again, it would be there twice.
    #[command(after_help = "Examples:
  quipu producers forget import-2026-07")]
    Forget {
        /// The name.
        name: String,
    },
}

pub(crate) fn run(global: &Global, args: &ProducersArgs, out: &mut Output) -> Result<()> {
    let backend = global.backend()?;
    match &args.command {
        ProducersCommand::List => {
            let producers = backend.producers()?;
            let (dim, strong) = (out.styles.dim, out.styles.strong);
            if producers.is_empty() {
                out.note("there is no producer");
            } else if !out.is_json {
                let (name, epoch, last) = ("PRODUCER", "EPOCH", "LAST SEQUENCE");
                out.line(format_args!("{dim}{name:<40} {epoch:>8} {last:>14}{dim:#}"))?;
            }
            for producer in producers {
                let (epoch, last) = (producer.epoch, producer.last_sequence);
                if out.is_json {
                    out.json(&json!({ "producer": producer.name, "epoch": epoch, "last_sequence": last }))?;
                } else {
                    let name = Shown(&producer.name).to_string();
                    out.line(format_args!("{strong}{name:<40}{strong:#} {epoch:>8} {last:>14}"))?;
                }
            }
        }
        ProducersCommand::Forget { name } => {
            backend.forget_producer(name)?;
            out.note(format_args!("producer {} is forgotten", Shown(name)));
        }
    }
    backend.close()
}
