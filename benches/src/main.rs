//! `quipu-benches`: what quipu holds itself to. See `--help`.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use quipu_benches::args::{Args, USAGE};
use quipu_benches::measure::measure;
use quipu_benches::row::{Row, Scene};
use quipu_benches::{program, report, roles, rows};

/// A row fell short of its bar.
const SHORT: u8 = 1;

/// A row could not be run, or its check failed.
const BROKEN: u8 = 2;

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    if args.first().is_some_and(|first| first == "--child") {
        return match roles::run(&args[1..]) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("quipu-benches, as a child: {error:#}");
                ExitCode::from(BROKEN)
            }
        };
    }
    match run(args.into_iter(), rows::all(), &mut io::stdout().lock()) {
        Ok(status) => ExitCode::from(status),
        Err(error) => {
            eprintln!("quipu-benches: {error:#}");
            ExitCode::from(BROKEN)
        }
    }
}

/// Carries the command line out and returns the exit status.
fn run(args: impl Iterator<Item = String>, rows: Vec<Row>, out: &mut dyn Write) -> Result<u8> {
    let args = Args::parse(args)?;
    if args.help {
        writeln!(out, "{USAGE}")?;
        return Ok(0);
    }
    let rows = select(rows, &args.names)?;
    let name_width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
    if args.list {
        for row in &rows {
            writeln!(out, "{}", report::list_line(row, name_width))?;
        }
        return Ok(0);
    }

    if rows.iter().any(quipu_benches::rows::needs_quipu) {
        program::build()?;
    }
    let dir = args.dir.map_or_else(default_dir, Ok)?;
    warn_of_memory_disk(&dir)?;
    if !args.json {
        writeln!(out, "{}", report::head(name_width))?;
    }
    let mut status = 0;
    for row in &rows {
        // One broken row does not hide the figures of the others.
        match run_row(row, &dir, args.quick) {
            Ok(outcome) => {
                let line =
                    if args.json { report::json(&outcome) } else { report::line(&outcome, name_width) };
                writeln!(out, "{line}")?;
                if !outcome.holds() {
                    status = status.max(SHORT);
                }
            }
            Err(error) => {
                eprintln!("quipu-benches: {error:#}");
                status = BROKEN;
            }
        }
        out.flush()?;
    }
    Ok(status)
}

fn run_row(row: &Row, dir: &Path, quick: bool) -> Result<quipu_benches::measure::Outcome> {
    let scratch = tempfile::Builder::new()
        .prefix("quipu-benches-")
        .tempdir_in(dir)
        .with_context(|| format!("make a directory in {}", dir.display()))?;
    measure(row, &Scene { dir: scratch.path().to_owned(), quick })
}

/// The rows that `names` ask for, in the report's order.
fn select(rows: Vec<Row>, names: &[String]) -> Result<Vec<Row>> {
    if let Some(name) = names.iter().find(|name| !rows.iter().any(|row| row.is_called(name))) {
        bail!("no row is called {name}; --list shows the names");
    }
    Ok(rows
        .into_iter()
        .filter(|row| names.is_empty() || names.iter().any(|name| row.is_called(name)))
        .collect())
}

fn default_dir() -> Result<PathBuf> {
    let program = env::current_exe().context("find this program")?;
    Ok(program.parent().context("find this program's directory")?.to_owned())
}

/// Syncing to memory costs nothing and proves nothing.
fn warn_of_memory_disk(dir: &Path) -> Result<()> {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let stat = rustix::fs::statfs(dir).with_context(|| format!("look at {}", dir.display()))?;
    if u64::try_from(stat.f_type) == Ok(TMPFS_MAGIC) {
        eprintln!("quipu-benches: {} is in memory: rows that sync mean nothing there", dir.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use quipu_benches::row::{Bar, Pair, Sample, Unit};

    fn row(name: &str, bar: Bar, figure: f64) -> Row {
        Row {
            name: name.to_owned(),
            what: "a test",
            against: "one",
            unit: Unit::RecordsPerSecond,
            bar,
            prepare: Box::new(move |_| Ok(Pair::new(move || Ok(Sample::of(figure)), || Ok(Sample::of(1.0))))),
        }
    }

    fn rows() -> Vec<Row> {
        vec![
            row("good/a", Bar::RatioAtLeast(1.0), 2.0),
            row("good/b", Bar::FigureBelow(3.0), 2.0),
            row("short", Bar::RatioAtMost(1.0), 2.0),
            row("broken", Bar::FigureOnly, f64::NAN),
        ]
    }

    fn status_and_output(line: &str) -> (Result<u8>, String) {
        let dir = tempfile::tempdir().unwrap();
        let dir = format!("--dir={}", dir.path().display());
        let args = line.split_whitespace().map(str::to_owned).chain([dir]);
        let mut out = Vec::new();
        let status = run(args, rows(), &mut out);
        (status, String::from_utf8(out).unwrap())
    }

    #[test]
    fn the_exit_status_tells_held_from_short_from_broken() {
        assert_eq!(status_and_output("good").0.unwrap(), 0);
        assert_eq!(status_and_output("good short").0.unwrap(), SHORT);
        assert_eq!(status_and_output("short broken good").0.unwrap(), BROKEN);
        assert!(status_and_output("unheard-of").0.is_err());
    }

    #[test]
    fn all_rows_run_and_a_broken_one_does_not_stop_the_rest() {
        let (_, table) = status_and_output("--quick");
        assert_eq!(table.lines().count(), 4, "a head and three rows:\n{table}");
    }

    #[test]
    fn json_is_one_object_a_line_and_nothing_else() {
        let (_, lines) = status_and_output("good short --json");
        assert_eq!(lines.lines().count(), 3);
        assert!(lines.lines().all(|line| line.starts_with('{') && line.ends_with('}')));
    }

    #[test]
    fn a_list_runs_nothing() {
        let (status, list) = status_and_output("--list broken short");
        assert_eq!(status.unwrap(), 0);
        assert_eq!(list.lines().count(), 2);
        assert!(list.contains("<= 1 x  a test; against: one"), "{list}");
    }
}
