//! `quipu completions` and `quipu man`: made from the command line's own definition.

use std::path::PathBuf;

use clap::Args;
use clap_complete::Shell;

use crate::args;
use crate::exit::{Failure, Result};
use crate::output::Output;

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu completions bash > ~/.local/share/bash-completion/completions/quipu
  quipu completions zsh > ~/.zfunc/_quipu
  quipu completions fish > ~/.config/fish/completions/quipu.fish")]
pub(crate) struct CompletionsArgs {
    /// The shell.
    shell: Shell,
}

pub(crate) fn completions(wanted: &CompletionsArgs, out: &mut Output) -> Result<()> {
    // In memory: the generator knows no errors.
    let mut script = Vec::new();
    clap_complete::generate(wanted.shell, &mut args::command(), "quipu", &mut script);
    Ok(std::io::Write::write_all(out, &script)?)
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  quipu man ~/.local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The directory; made if there is none.
    dir: PathBuf,
}

pub(crate) fn man(wanted: &ManArgs, out: &mut Output) -> Result<()> {
    let failed = |error| Failure::file("write man pages to", wanted.dir.display(), &error);
    std::fs::create_dir_all(&wanted.dir).map_err(failed)?;
    clap_mangen::generate_to(args::command(), &wanted.dir).map_err(failed)?;
    out.note(format_args!("wrote man pages to {}", wanted.dir.display()));
    Ok(())
}
