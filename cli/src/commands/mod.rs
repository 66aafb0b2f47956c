//! One file for each command.

pub(crate) mod progress;
pub(crate) mod publish;
pub(crate) mod read;
pub(crate) mod serve;
pub(crate) mod show;
pub(crate) mod tail;
pub(crate) mod topics;

use crate::args::{Cli, Command};
use crate::exit::Result;
use crate::output::Output;

/// Does what the command line says.
pub(crate) fn run(cli: Cli, out: &mut Output) -> Result<()> {
    let Cli { global, command } = cli;
    match command {
        Command::Serve(args) => serve::run(&global, *args, out),
        Command::Publish(args) => publish::run(&global, args, out),
        Command::Read(args) => read::run(&global, args, out),
        Command::Tail(args) => tail::run(&global, args, out),
        Command::Topics(args) => topics::run(&global, args, out),
    }
}
