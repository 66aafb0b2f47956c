//! The `quipu` command: publish, replay and follow events, and serve them.
//!
//! | Module | What it holds |
//! |---|---|
//! | [`args`] | the command line |
//! | [`commands`] | one file for each command |
//! | [`backend`] | what commands work on: a store's directory or a server |
//! | [`input`], [`mod@format`], [`template`] | records in, records out |
//! | [`config`] | the settings of a server, from flags, environment and file |
//! | [`exit`] | failures and exit codes |

#![forbid(unsafe_code)]

mod args;
mod backend;
mod commands;
mod config;
mod exit;
mod format;
mod input;
mod output;
mod position;
mod template;
mod units;

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

use args::Cli;
use exit::{Exit, Failure};
use output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // A closed pipe keeps it from being read; nothing can be said about that.
            let _ = error.print();
            let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return ExitCode::from(if is_help { 0 } else { Exit::Usage.code() });
        }
    };
    let is_json = cli.global.json;
    let mut out = Output::new(is_json, cli.global.quiet, cli.global.color);
    let outcome = commands::run(cli, &mut out);
    // What was found before a failure is shown as well.
    let outcome = outcome.and(out.flush()).map_err(|failure| {
        let flushed = out.flush();
        if failure.is_silent() && failure.exit == Exit::Ok {
            flushed.err().unwrap_or(failure)
        } else {
            failure
        }
    });
    match outcome {
        Ok(()) => ExitCode::from(Exit::Ok.code()),
        Err(failure) => end(&failure, is_json),
    }
}

fn end(failure: &Failure, is_json: bool) -> ExitCode {
    output::tell(failure, is_json);
    ExitCode::from(failure.exit.code())
}
