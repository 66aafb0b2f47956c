//! The command line.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// What `--help` prints.
pub const USAGE: &str = "\
Usage: quipu-benches [NAME...] [--json] [--list] [--dir DIR] [--quick]

Runs the named rows, or all. A name is a row's or a group's, as --list shows them.

  --json     one JSON object a line instead of a table
  --list     print the rows and their bars, run none
  --dir DIR  where the files go; default: beside this program (a temporary directory is often in memory)
  --quick    short rounds and little data: shows that every row works, its figures are rough

Exit status: 0 if every row reached its bar, 1 if one fell short, 2 if one could not be run.";

/// A parsed command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Args {
    /// The rows asked for; none means all.
    pub names: Vec<String>,
    /// Print JSON lines.
    pub json: bool,
    /// Only list the rows.
    pub list: bool,
    /// Where the files go.
    pub dir: Option<PathBuf>,
    /// Run short.
    pub quick: bool,
    /// Only print [`USAGE`].
    pub help: bool,
}

impl Args {
    /// Parses what follows the program's name.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self> {
        let mut parsed = Self::default();
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--json" => parsed.json = true,
                "--list" => parsed.list = true,
                "--quick" => parsed.quick = true,
                "--help" | "-h" => parsed.help = true,
                "--dir" => parsed.dir = Some(args.next().context("--dir wants a directory")?.into()),
                flag if flag.starts_with('-') => match flag.strip_prefix("--dir=") {
                    Some(dir) => parsed.dir = Some(dir.into()),
                    None => bail!("unknown flag {flag}"),
                },
                _ => parsed.names.push(arg),
            }
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args> {
        Args::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn flags_and_names_mix() {
        let args = parse("log-append --json sync-one/1KiB --dir d --quick --list").unwrap();
        assert_eq!(args.names, ["log-append", "sync-one/1KiB"]);
        assert!(args.json && args.quick && args.list);
        assert_eq!(args.dir, Some(PathBuf::from("d")));
        assert_eq!(parse("--dir=e").unwrap().dir, Some(PathBuf::from("e")));
        assert_eq!(parse("").unwrap(), Args::default());
    }

    #[test]
    fn what_is_unknown_or_half_is_refused() {
        assert!(parse("--jsno").is_err());
        assert!(parse("--dir").is_err());
    }
}
