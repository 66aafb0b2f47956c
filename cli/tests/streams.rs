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

#[test]
fn what_is_published_under_a_condition_is_published_only_if_it_holds() {
    for target in Target::filled() {
        let publish = |args: &[&str], input: &str| {
            target.feed(&[&["publish", "t", "--key", "ab"], args].concat(), input)
        };
        let end = || target.run(&["read", "t", "--reverse", "-c1", "-f", "%o"]).ok().text();
        publish(&["--expect-revision", "2"], "late\n").fails(4).says("revision").says("--from 10 --count 1");
        publish(&["--expect-revision", "no-stream"], "late\n").fails(4).says("--from 1 --count 1");
        publish(&["--expect-next-offset", "12"], "late\n").fails(4).says("13").says("--from 12");
        assert_eq!(end(), "12");
        publish(&["--expect-revision", "3", "--expect-next-offset", "13"], "x\ny\n").ok();
        publish(&["--expect-revision", "exists", "--batch-records", "1"], "x\ny\n").ok();
        assert_eq!(end(), "16");
        let new =
            |expected| target.feed(&["publish", "t", "--key", "new", "--expect-revision", expected], "x\n");
        new("exists").fails(4).says("quipu streams t");
        new("no-stream").ok();
        new("no-stream").fails(4);
        new("soon").fails(2).says("no-stream or exists");
        let two = target.feed(&["publish", "t", "-K", ":", "--expect-revision", "4"], "a:1\nb:2\n");
        two.fails(2).says("one key");
        target.feed(&["publish", "t", "--expect-revision", "4"], "x\n").fails(2).says("--key");
        assert_eq!(end(), "17");
    }
}

#[test]
fn conditions_are_explained_with_what_stands_against_them() {
    for target in Target::filled() {
        target.feed(&["publish", "t", "--key", "c", "--tag", "x", "--tag", "y", "--type", "k"], "z\n").ok();
        let explain = |args: &[&str]| target.run(&[&["explain", "t"], args].concat());
        let holding = [
            ["--revision", "a=3"],
            ["--revision", "none=no-stream"],
            ["--revision", "b=exists"],
            ["--next-offset", "14"],
            ["--no-match", "tag=x,after=13"],
            ["--no-match", "tag=x,type=other"],
        ];
        let lines = explain(&holding.concat()).ok().lines();
        assert!(lines.len() == 6 && lines.iter().all(|line| line.starts_with("holds: ")), "{lines:?}");
        for (condition, actual, look) in [
            (["--revision", "a=1"], "its last revision is 3", "--from 6 "),
            (["--revision", "a=no-stream"], "its last revision is 3", "--from 0 "),
            (["--revision", "none=exists"], "it never had one", "quipu streams t"),
            (["--next-offset", "3"], "it is 14", "--from 3 "),
            (["--no-match", "tag=x,tag=y,type=k,key=c"], "the record at offset 13 does", "--from 13 "),
        ] {
            let ran = explain(&[&condition[..], &["--revision", "b=3"]].concat());
            let text = ran.text();
            assert_eq!(ran.code, 4, "{text}");
            let is_told = text.contains(actual) && text.contains(look) && text.contains("holds: ");
            assert!(is_told, "{condition:?}: {text}");
        }
        let json = explain(&["--json", "--revision", "a=1"]).text();
        assert!(
            json.contains("\"holds\":false") && json.contains("\"first_conflicting_offset\":6"),
            "{json}"
        );
        explain(&[]).fails(2);
        explain(&["--no-match", "colour=red"]).fails(2);
        explain(&["--no-match", "tag="]).fails(2);
    }
}

#[test]
fn a_snapshot_is_kept_found_and_read_on_from() {
    for target in Target::filled() {
        let put = |revision: &str, state: &str| {
            target
                .feed(&["snapshot", "put", "t", "--key", "ab", "--revision", revision, "--type", "S"], state)
        };
        let get = |args: &[&str]| target.run(&[&["snapshot", "get", "t", "--key", "ab"], args].concat());
        let read = |args: &[&str]| {
            target
                .run(&[&["read", "t", "--key", "ab", "--from-snapshot", "-f", "%t %r %v\\n"], args].concat())
        };
        get(&[]).fails(3).says("no snapshot").says("quipu streams t");
        let all = read(&[]).ok().says("there is no snapshot");
        assert_eq!(all.lines(), ["t 0 1", "t 1 4", "t 2 7", "t 3 10"]);
        put("4", "early").fails(6).says("the next one");
        put("1", "one\n").ok().says("up to revision 1, at offset 0 of t.snapshots");
        put("2", "two").ok();
        put("0", "late").ok().says("nothing was stored");
        assert_eq!(get(&["--raw", "--delimiter", ""]).ok().text(), "two");
        assert_eq!(get(&["--up-to", "1", "-F", "%t %o %r %y %v"]).ok().text(), "t.snapshots 0 1 S one\n");
        get(&["--up-to", "0"]).fails(3).says("up to revision 0");
        assert_eq!(read(&[]).ok().lines(), ["t.snapshots 2 two", "t 3 10"]);
        assert_eq!(read(&["--quiet", "--until", "3"]).ok().lines(), ["t.snapshots 2 two"]);
        put("3", "three").ok();
        assert_eq!(read(&[]).ok().lines(), ["t.snapshots 3 three"]);
        let json = get(&["--json"]).ok().text();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["topic"], &json["revision"]), (&"t.snapshots".into(), &3.into()));
        assert_eq!(
            (&json["key"], &json["type"], &json["payload"]),
            (&"ab".into(), &"S".into(), &"three".into())
        );
        // Of another key there is none.
        target.run(&["snapshot", "get", "t", "--key", "a"]).fails(3);
    }
}

/// Records between the snapshot and what is left were passed over without a word.
#[test]
fn records_that_were_trimmed_behind_a_snapshot_are_told() {
    for target in Target::filled() {
        let read = || target.run(&["read", "t", "--key", "ab", "--from-snapshot", "-f", "%r\n"]).ok();
        target.feed(&["snapshot", "put", "t", "--key", "ab", "--revision", "0"], "zero").ok();
        assert!(!read().stderr.contains("missing"));
        target.run(&["topics", "trim", "t", "--before", "8"]).ok();
        let ran = read().says("revisions 1 to 2 were removed");
        assert_eq!(ran.lines(), ["0", "3"]);
    }
}

#[test]
fn a_snapshot_that_cannot_be_is_refused_with_what_to_do() {
    for target in Target::filled() {
        let put = |args: &[&str]| target.feed(&[&["snapshot", "put"], args].concat(), "state");
        put(&["t", "--key", "none", "--revision", "0"]).fails(6).says("quipu streams");
        put(&["none", "--key", "a", "--revision", "0"]).fails(3).says("quipu topics");
        put(&["t", "--key", "a"]).fails(2).says("--revision");
        put(&["t", "--key", "a", "--revision", "0", "no-such-file"]).fails(3).says("no-such-file");
        put(&["t", "--key", "a", "--revision", "0"]).ok();
        put(&["t.snapshots", "--key", "a", "--revision", "0"]).fails(2).says("none of its own");
        let refused = put(&["t.snapshots", "--key", "a", "--revision", "0", "--json"]).fails(2);
        refused.says("SNAPSHOTS_REFUSED");
        let json = put(&["t", "--key", "a", "--revision", "1", "--json"]).ok().text();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        assert_eq!((&json["offset"], &json["topic"]), (&1.into(), &"t.snapshots".into()));
        let json = put(&["t", "--key", "a", "--revision", "0", "--json"]).ok().text();
        assert!(json.contains("\"superseded_by\":1"), "{json}");
        let read = |args: &[&str]| target.run(&[&["read", "t", "--from-snapshot"], args].concat());
        read(&[]).fails(2).says("--key");
        read(&["--key", "a", "--key", "b"]).fails(2).says("--from-snapshot").says("one --key");
        read(&["--key", "a", "--reverse"]).fails(2);
        read(&["--key", "a", "--revision", "1"]).fails(2);
    }
}
