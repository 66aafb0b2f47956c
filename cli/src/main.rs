//! The `quipu` command: publish, replay and follow events, and serve them.
//!
//! | Module | What it holds |
//! |---|---|
//! | [`args`] | the command line |
//! | [`commands`] | one file for each command |
//! | [`backend`] | what commands work on: a store's directory or a server |
//! | [`input`], [`mod@format`], [`template`] | records in, records out |
//! | [`archive`] | whole topics in, whole topics out |
//! | [`config`] | the settings of a server, from flags, environment and file |
//! | [`requirement`] | what must hold for an append |
//! | [`mod@key`] | keys as text |
//! | [`exit`] | failures and exit codes |

#![forbid(unsafe_code)]

mod archive;
mod args;
mod backend;
mod commands;
mod config;
mod exit;
mod format;
mod input;
mod key;
mod output;
mod position;
mod requirement;
mod template;
mod units;

use std::io::Write as _;
use std::process::ExitCode;

use clap::error::ErrorKind;

use args::Cli;
use exit::{Exit, Failure};
use output::{Colour, Output};

fn main() -> ExitCode {
    let cli = match Cli::read() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let (is_json, colour) = (cli.global.json, cli.global.color);
    let mut out = Output::new(is_json, cli.global.quiet, colour);
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
        Err(failure) => end(&failure, is_json, colour),
    }
}

/// Ends because of what the command line says, or because it asks for help.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    if is_help {
        let printed = error.print().and_then(|()| std::io::stdout().flush());
        let failure = printed.err().map(Failure::from);
        return failure.map_or(ExitCode::SUCCESS, |failure| end(&failure, false, Colour::Auto));
    }
    // There is no parsed command line that could say so.
    let mut words = std::env::args_os().skip(1).take_while(|word| word != "--");
    if words.any(|word| word == "--json") {
        return end(&usage(&error.to_string()), true, Colour::Never);
    }
    let _ = error.print();
    ExitCode::from(Exit::Usage.code())
}

/// What clap says, as a failure: what is wrong, and behind an empty line what to do.
fn usage(text: &str) -> Failure {
    let (message, rest) = text.trim().split_once("\n\n").unwrap_or((text.trim(), ""));
    let failure = Failure::usage(message.strip_prefix("error: ").unwrap_or(message));
    let hint: Vec<&str> = rest.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    if hint.is_empty() { failure } else { failure.hint(hint.join("; ")) }
}

fn end(failure: &Failure, is_json: bool, colour: Colour) -> ExitCode {
    output::tell(failure, is_json, colour);
    ExitCode::from(failure.exit.code())
}
