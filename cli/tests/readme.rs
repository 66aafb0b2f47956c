//! The commands of the README, run as they stand there.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;
use std::process::Command;

/// The shell blocks of a section of the README.
fn blocks(section: &str) -> String {
    let readme = include_str!("../../README.md");
    let start = readme.find(&format!("## {section}\n")).unwrap() + 3;
    let end = readme[start..].find("\n## ").map_or(readme.len(), |length| start + length);
    let parts = readme[start..end].split("```");
    parts.filter_map(|part| part.strip_prefix("sh\n")).collect()
}

#[test]
fn the_first_five_minutes_are_as_the_readme_tells_them() {
    let dir = tempfile::tempdir().unwrap();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    std::fs::write(dir.path().join("README.md"), &readme).unwrap();
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let program = Path::new(env!("CARGO_BIN_EXE_quipu"));
    let path = format!("{}:{}", program.parent().unwrap().display(), std::env::var("PATH").unwrap());
    let script = format!(
        "set -e; trap 'kill $(jobs -p) 2> /dev/null || true' EXIT\n{}",
        blocks("The first five minutes")
    );
    let mut bash = Command::new("bash");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("QUIPU_") {
            bash.env_remove(name);
        }
    }
    let output = bash
        .args(["-c", &script])
        .current_dir(dir.path())
        .env("PATH", path)
        .env("NO_COLOR", "1")
        .env("QUIPU_LISTEN", format!("127.0.0.1:{port}"))
        .env("QUIPU_SERVER", format!("http://127.0.0.1:{port}"))
        .output()
        .unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{script}\n{out}\n{err}");
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
