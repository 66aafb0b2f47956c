//! Drives a store and says what was acknowledged; checks it afterwards. See [`quipu_tests::workload`].

#![expect(clippy::print_stdout, reason = "what it says is what it is for")]

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;

use quipu_tests::workload::{Acks, Scenario, Survived, Write, check, write};

const HELP: &str = "\
workload: a store at work, for the fault tools.

  workload write DIR [options]      does it; prints 'ack TEXT' for each thing that is done, and counters at the end
    --scenario=NAME                 append (default), group, roll, checkpoint, retention, compaction or mixed
    --seed=N --run=N --count=N      the same numbers do the same; a run number is used once in a directory;
                                    count: steps of each thread
    --no-close                      ends without closing the store, like a process that was killed
    --no-background                 the store has no threads of its own: with one writer the same calls in the same order
    --bug=NAME                      plants a bug: acknowledge-before-sync, ignore-sync-errors, skip-directory-sync,
                                    skip-checksums, truncate-on-rot (only if built with the feature planted-bugs)
  workload check DIR ACKS [--killed] [--full]
    ACKS: a file with the TEXT of each line. --killed: also what was only written had to survive. --full: the disk may
    be full, and then the store may say so instead of opening.

Exit: 0 fine; 1 something is not as it must be; 3 the store answered an error; 64 wrong usage.
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (options, words): (Vec<&str>, Vec<&str>) =
        words.iter().map(String::as_str).partition(|word| word.starts_with("--"));
    match words.as_slice() {
        ["write", dir] => write_command(Path::new(dir), &options),
        ["check", dir, acks] => check_command(Path::new(dir), Path::new(acks), &options),
        _ if options == ["--help"] => {
            print!("{HELP}");
            ExitCode::SUCCESS
        }
        _ => usage("which command?"),
    }
}

fn usage(why: &str) -> ExitCode {
    eprintln!("workload: {why}; --help says more");
    ExitCode::from(64)
}

/// Says it whole and at once. If nobody listens any more, nothing is promised: the process ends.
fn say_line(text: &str) {
    let mut out = std::io::stdout().lock();
    if out.write_all(format!("{text}\n").as_bytes()).and_then(|()| out.flush()).is_err() {
        std::process::exit(4);
    }
}

fn write_command(dir: &Path, options: &[&str]) -> ExitCode {
    let mut run = Write::new(dir, Scenario::Append, 1, 100);
    for option in options {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        let known = match name {
            "--scenario" => Scenario::named(value).map(|scenario| run.scenario = scenario),
            "--seed" => value.parse().ok().map(|seed| run.seed = seed),
            "--run" => value.parse().ok().map(|number| run.run = number),
            "--count" => value.parse().ok().map(|count| run.count = count),
            "--no-close" => {
                run.closes = false;
                Some(())
            }
            "--no-background" => {
                run.settings.background = false;
                Some(())
            }
            "--bug" => plant(value),
            _ => None,
        };
        if known.is_none() {
            return usage(&format!("{option} is not understood"));
        }
    }
    let say = |text: &str| say_line(&format!("ack {text}"));
    match write(&run, &say) {
        Ok(stats) => {
            say_line(&format!(
                "stats checkpoints={} segments_created={} segments_removed={} journal_files={}",
                stats.checkpoints, stats.segments_created, stats.segments_removed, stats.journal_files
            ));
            if !run.closes {
                // Without the ends of threads and without destructors.
                std::process::exit(0)
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("workload: {:?}: {error}", error.kind());
            ExitCode::from(3)
        }
    }
}

#[cfg(feature = "planted-bugs")]
fn plant(name: &str) -> Option<()> {
    use quipu_storage::planted::{Bug, plant};
    plant(match name {
        "acknowledge-before-sync" => Bug::AcknowledgeBeforeSync,
        "ignore-sync-errors" => Bug::IgnoreSyncErrors,
        "skip-directory-sync" => Bug::SkipDirectorySync,
        "skip-checksums" => Bug::SkipChecksums,
        "truncate-on-rot" => Bug::TruncateOnRot,
        _ => return None,
    });
    Some(())
}

#[cfg(not(feature = "planted-bugs"))]
fn plant(_: &str) -> Option<()> {
    None
}

fn check_command(dir: &Path, acks: &Path, options: &[&str]) -> ExitCode {
    if options.iter().any(|option| !["--killed", "--full"].contains(option)) {
        return usage("check knows only --killed and --full");
    }
    let survived = if options.contains(&"--killed") { Survived::Kill } else { Survived::PowerCut };
    let checked = std::fs::read_to_string(acks)
        .map_err(|error| format!("{}: {error}", acks.display()))
        .and_then(|text| Acks::read(text.lines()))
        .and_then(|acks| check(dir, &acks, survived));
    match checked {
        Ok(checked) => {
            println!(
                "checked: {} records, {} acknowledged appends, {} compacted records",
                checked.records, checked.appends, checked.compacted
            );
            ExitCode::SUCCESS
        }
        Err(why) if options.contains(&"--full") && why.contains("the disk is full") => {
            println!("not checked: {why}");
            ExitCode::SUCCESS
        }
        Err(why) => {
            println!("workload: {why}");
            ExitCode::FAILURE
        }
    }
}
