//! One file for each command.

pub(crate) mod bench;
pub(crate) mod demo;
pub(crate) mod erase;
pub(crate) mod explain;
pub(crate) mod inspect;
pub(crate) mod manual;
pub(crate) mod offline;
pub(crate) mod producers;
pub(crate) mod progress;
pub(crate) mod publish;
pub(crate) mod read;
pub(crate) mod serve;
pub(crate) mod show;
mod signals;
pub(crate) mod snapshot;
pub(crate) mod status;
pub(crate) mod streams;
pub(crate) mod tail;
pub(crate) mod topics;
pub(crate) mod transfer;

use crate::args::{Cli, Command};
use crate::exit::{Failure, Result};
use crate::output::Output;

/// Does what the command line says.
pub(crate) fn run(cli: Cli, out: &mut Output) -> Result<()> {
    let Cli { global, command } = cli;
    // A server may have its master key from elsewhere.
    if global.create_master_key && global.master_key.is_none() && !matches!(command, Command::Serve(_)) {
        return Err(Failure::usage(
            "--create-master-key makes the file that --master-key names: give it, too",
        ));
    }
    match command {
        Command::Serve(args) => serve::run(&global, *args, out),
        Command::Publish(args) => publish::run(&global, *args, out),
        Command::Read(args) => read::run(&global, args, out),
        Command::Tail(args) => tail::run(&global, args, out),
        Command::Topics(args) => topics::run(&global, args, out),
        Command::Producers(args) => producers::run(&global, &args, out),
        Command::Streams(args) => streams::run(&global, &args, out),
        Command::Snapshot(args) => snapshot::run(&global, args, out),
        Command::Erase(args) => erase::run(&global, &args, out),
        Command::Explain(args) => explain::run(&global, args, out),
        Command::Status(args) => status::run(&global, &args, out),
        Command::Export(args) => transfer::export(&global, &args, out),
        Command::Import(args) => transfer::import(&global, &args, out),
        Command::Verify(args) => offline::verify(&global, &args, out),
        Command::Dump(args) => offline::run_dump(&global, &args, out),
        Command::Inspect(args) => inspect::run(&global, &args, out),
        Command::Bench(args) => bench::run(&global, &args, out),
        Command::Demo(args) => demo::run(&args, out),
        Command::Completions(args) => manual::completions(&args, out),
        Command::Man(args) => manual::man(&args, out),
    }
}
