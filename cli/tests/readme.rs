//! The commands of the README and of docs/event-sourcing.md, run as they stand there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;
use std::process::Command;

/// The shell blocks of a section of a page.
fn blocks(page: &str, section: &str) -> String {
    let start = page.find(&format!("## {section}\n")).unwrap() + 3;
    let end = page[start..].find("\n## ").map_or(page.len(), |length| start + length);
    let parts = page[start..end].split("```");
    parts.filter_map(|part| part.strip_prefix("sh\n")).collect()
}

/// Runs them in a directory, with a port of their own; what they print on standard output and on standard error.
fn run(script: &str, dir: &Path) -> (String, String) {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let program = Path::new(env!("CARGO_BIN_EXE_quipu"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let script = format!("set -e; trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{script}");
    let mut bash = Command::new("bash");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUIPU_") {
            bash.env_remove(name);
        }
    }
    let output = bash
        .args(["-c", &script])
        .current_dir(dir)
        .env("PATH", path)
        .env("NO_COLOR", "1")
        .env("QUIPU_LISTEN", format!("127.0.0.1:{port}"))
        .env("QUIPU_SERVER", format!("http://127.0.0.1:{port}"))
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{script}\n{out}\n{err}");
    (out, err)
}

#[test]
fn the_first_five_minutes_are_as_the_readme_tells_them() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    std::fs::write(dir.path().join("README.md"), &readme).unwrap();
    let (out, err) = run(&blocks(&readme, "The first five minutes"), dir.path());
    // Once by the follower, once by the replay after the server was killed.
    assert_eq!(out.matches("one more line").count(), 2, "{out}\n{err}");
    assert!(out.contains(readme.lines().last().unwrap()), "{out}");
    // The last line of the file and the one that was published by itself are there, and nothing behind them.
    let replayed: Vec<_> =
        out.lines().filter(|line| line.starts_with('{') && line.contains("payload")).collect();
    assert_eq!(replayed.len(), 3, "{out}");
    assert!(
        replayed[2].contains("one more line")
            && replayed[2].contains(&format!("\"offset\":{}", readme.lines().count()))
    );
}

#[test]
fn event_sourcing_with_commands_is_as_its_page_tells_it() {
    let dir = tempfile::tempdir().unwrap();
    let page = include_str!("../../docs/event-sourcing.md");
    let (out, err) = run(&blocks(page, "With commands"), dir.path());
    let lines: Vec<_> = out.lines().filter(|line| !line.starts_with("listening on ")).collect();
    let find = |wanted: &str| lines.iter().filter(|line| line.starts_with(wanted)).count();
    assert_eq!((find("0 Deposited 10"), find("1 Deposited 5")), (1, 1), "{out}\n{err}");
    assert_eq!((find("holds: "), find("fails: "), find("ended with 4")), (1, 1, 2), "{out}\n{err}");
    let behind = lines.iter().position(|line| line.starts_with("accounts.snapshots 1 Account.v1 {"));
    assert_eq!(lines[behind.unwrap() + 1..], ["", "accounts 2 Withdrawn 7"], "{out}\n{err}");
}
