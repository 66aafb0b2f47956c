//! Streams through the real binary, on a directory and through a server.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod common;

use std::process::Stdio;

use common::{Place, Ran, Running, feed, quipu};

/// A directory or a server: every test runs on both.
struct Target {
    arguments: Vec<String>,
    _place: Place,
    _server: Option<Running>,
}

fn targets() -> [Target; 2] {
    let place = Place::new();
    let arguments = vec!["--data".to_owned(), place.store().to_str().unwrap().to_owned()];
    let directory = Target { arguments, _place: place, _server: None };
    let place = Place::new();
    let mut command = place.command(&["serve", "--listen", "127.0.0.1:0", "--log-filter", "warn"]);
    command.stderr(Stdio::null());
    let mut server = Running::new(command);
    let url = server.line().strip_prefix("listening on ").unwrap().to_owned();
    let through_server =
        Target { arguments: vec!["--server".to_owned(), url], _place: place, _server: Some(server) };
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

    /// Three keys in turns.
    fn filled() -> [Self; 2] {
        let all = targets();
        for target in &all {
            let input: String =
                (0..12).map(|number| format!("{}:{number}\n", ["a", "ab", "b"][number % 3])).collect();
            target.feed(&["publish", "t", "--create", "-K", ":"], &input).ok();
            target.feed(&["publish", "t"], "no key\n").ok();
        }
        all
    }
}

#[test]
fn a_stream_is_read_from_a_revision_forwards_and_back() {
    for target in Target::filled() {
        let read = |args: &[&str]| target.run(&[&["read", "t", "-f", "%r %o %v\\n"], args].concat());
        assert_eq!(read(&["--key", "ab"]).ok().lines(), ["0 1 1", "1 4 4", "2 7 7", "3 10 10"]);
        assert_eq!(read(&["--key", "ab", "--revision", "2"]).ok().lines(), ["2 7 7", "3 10 10"]);
        assert_eq!(read(&["--key", "ab", "--revision", "4"]).ok().text(), "");
        assert_eq!(read(&["--key", "ab", "--revision", "1", "--reverse"]).ok().lines(), ["1 4 4", "0 1 1"]);
        assert_eq!(read(&["--from", "12"]).ok().lines(), ["-1 12 no key"]);
        read(&["--key", "ab", "--revision", "5"]).fails(6).says("the next one");
        read(&["--revision", "0"]).fails(2);
        read(&["--key", "a", "--key", "b", "--revision", "0"]).fails(2).says("one --key");
        let tail = target.run(&["tail", "t", "--key", "b", "--revision", "3", "-F", "%r %v\\n"]).ok();
        assert_eq!(tail.lines(), ["3 11"]);
        assert_eq!(target.run(&["tail", "t", "--key", "b", "-n2", "-F", "%v\\n"]).ok().lines(), ["8", "11"]);
        let json = target.run(&["read", "t", "--key", "b", "-c1", "--json"]).ok().text();
        assert!(json.contains("\"revision\":0"), "{json}");
    }
}

#[test]
fn streams_are_listed_with_their_last_revision_and_count() {
    for target in Target::filled() {
        let keys = |args: &[&str]| {
            let lines = target.run(&[&["streams", "t", "--json"], args].concat()).ok().lines();
            let value = |line: &String| -> serde_json::Value { serde_json::from_str(line).unwrap() };
            lines.iter().map(value).collect::<Vec<_>>()
        };
        let all = keys(&[]);
        assert_eq!(
            all.iter().map(|line| line["key"].as_str().unwrap()).collect::<Vec<_>>(),
            ["a", "ab", "b"]
        );
        assert_eq!((&all[1]["last_revision"], &all[1]["records"]), (&3.into(), &4.into()));
        assert_eq!(all[2]["last_offset"], 11);
        assert_eq!(keys(&["--prefix", "a"]).len(), 2);
        let shown = target.run(&["streams", "t"]).ok().lines();
        assert!(shown[0].contains("LAST REVISION") && shown[1].starts_with("a "), "{shown:?}");
        target.run(&["streams", "t", "--prefix", "x"]).ok().says("no record");
        target.run(&["streams", "none"]).fails(3);
    }
}
