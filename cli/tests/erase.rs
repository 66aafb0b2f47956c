//! Erasing through the real binary, on a directory and through a server.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod common;

use std::process::Stdio;

use common::{Place, Ran, Running, feed, quipu};

/// A directory or a server, with a master key: every test runs on both.
struct Target {
    arguments: Vec<String>,
    place: Place,
    _server: Option<Running>,
}

fn targets() -> [Target; 2] {
    let text = |path: std::path::PathBuf| path.to_str().unwrap().to_owned();
    let place = Place::new();
    let key = text(place.path("master.key"));
    let arguments = ["--data", &text(place.store()), "--master-key", &key, "--create-master-key"];
    let directory = Target { arguments: arguments.map(Into::into).into(), place, _server: None };
    let place = Place::new();
    let key = text(place.path("master.key"));
    let serve = ["serve", "--listen", "127.0.0.1:0", "--master-key", &key, "--create-master-key"];
    let mut command = place.command(&serve);
    command.args(["--log-filter", "warn"]).stderr(Stdio::null());
    let mut server = Running::new(command);
    let url = server.line().strip_prefix("listening on ").unwrap().to_owned();
    let through_server = Target { arguments: vec!["--server".into(), url], place, _server: Some(server) };
    [directory, through_server]
}

impl Target {
    fn feed(&self, args: &[&str], input: &str) -> Ran {
        let mut command = quipu(args);
        command.args(&self.arguments);
        feed(command, input)
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.feed(args, "")
    }
}

#[test]
fn what_is_erased_reads_as_erased_and_the_rest_as_ever() {
    for target in targets() {
        let ndjson =
            "{\"who\":\"c-17\",\"at\":\"12 Hill Road\"}\n{\"who\":\"c-18\",\"at\":\"7 Lake View\"}\n";
        let mapping =
            ["publish", "t", "--create", "-F", "ndjson", "--erasure-key-field", "who", "--key", "k"];
        target.feed(&mapping, ndjson).ok();
        target.feed(&["publish", "t", "--erasure-key", "c-17"], "plain line\n").ok();
        target.run(&["erase", "c-17"]).fails(2).says("nothing was done");
        assert_eq!(target.run(&["read", "t", "--raw"]).ok().lines().len(), 3);
        assert_eq!(target.run(&["erase", "c-17", "c-99", "--yes"]).ok().lines(), ["destroyed 2 keys"]);
        let again = target.run(&["erase", "c-17", "--yes", "--json"]).ok().lines();
        assert_eq!(again, [r#"{"destroyed":0,"destroyed_before":1,"old_file_overwritten":true}"#]);
        let lines = target.run(&["read", "t"]).ok().lines();
        assert!(lines[0].ends_with("(erased)") && lines[1].contains("7 Lake View"), "{lines:?}");
        let json = target.run(&["read", "t", "--json"]).ok().lines();
        assert!(json[0].contains(r#""erasure_key":"c-17","redacted":"erased""#), "{json:?}");
        assert!(!json[1].contains("redacted"), "{json:?}");
        target.feed(&["publish", "t", "--erasure-key", "c-17"], "more\n").fails(4).says("was destroyed");
        target.run(&["topics", "compact", "t", "--erased-only"]).ok();
        let archive = target.place.path("t.ndjson");
        target.run(&["export", "t", archive.to_str().unwrap()]).ok();
        target.run(&["import", "u", archive.to_str().unwrap()]).fails(11).says("erased");
    }
}

#[test]
fn a_store_without_its_master_key_says_locked_and_what_is_missing() {
    let [directory, _] = targets();
    directory.feed(&["publish", "t", "--create", "--erasure-key", "c-17"], "12 Hill Road\n").ok();
    let line = directory.place.run(&["read", "t"]).ok().text();
    assert!(line.contains("(locked)"), "{line}");
    directory.place.feed(&["publish", "t", "--erasure-key", "c-17"], "more\n").fails(2).says("master key");
    directory.place.run(&["erase", "c-17", "--yes"]).fails(2).says("master key");
}

/// The failure hid what had been destroyed before it.
#[test]
fn keys_that_are_destroyed_before_a_failure_are_told() {
    for target in targets() {
        target.feed(&["publish", "t", "--create", "--erasure-key", "c-0"], "12 Hill Road\n").ok();
        // As many as one request has, and one that cannot be.
        let mut keys: Vec<String> = (0..500).map(|number| format!("c-{number}")).collect();
        keys.push("x".repeat(1000));
        let erase = |more: &[&str]| {
            let keys = keys.iter().map(String::as_str);
            target.run(
                &["erase", "--yes"].into_iter().chain(keys).chain(more.iter().copied()).collect::<Vec<_>>(),
            )
        };
        let ran = erase(&[]).fails(2).says("the first 500 of 501 keys are destroyed");
        assert_eq!(ran.lines(), ["destroyed 500 keys"]);
        let ran = erase(&["--json"]).fails(2).says("the first 500 of 501 keys are destroyed");
        assert!(ran.text().contains(r#""destroyed_before":500"#), "{}", ran.text());
        assert!(target.run(&["read", "t"]).ok().text().contains("(erased)"));
    }
}

/// It was ignored, and the store had none.
#[test]
fn a_master_key_is_not_made_without_a_name() {
    let place = Place::new();
    let args = ["publish", "t", "--create", "--create-master-key"];
    place.feed(&args, "x\n").fails(2).says("--master-key");
    assert!(!place.store().exists());
    place.run(&["serve", "--create-master-key"]).fails(2).says("master_key").says("--create-master-key)");
}
