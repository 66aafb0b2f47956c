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
    fn feed(&self, args: &[&str], input: impl AsRef<[u8]>) -> Ran {
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
        publish(&["--expect-revision", "exists", "--batch-records", "1"], "x\n").ok();
        publish(&["--expect-revision", "any"], "y\n").ok();
        assert_eq!(end(), "16");
        let new =
            |expected| target.feed(&["publish", "t", "--key", "new", "--expect-revision", expected], "x\n");
        new("exists").fails(4).says("quipu streams t");
        new("no-stream").ok();
        new("no-stream").fails(4);
        new("soon").fails(2).says("no-stream, exists or any");
        target.feed(&["publish", "t", "--expect-revision", "4"], "x\n").fails(2).says("--key");
        assert_eq!(end(), "17");
    }
}

/// What came before the second key was published, and the command failed.
#[test]
fn input_that_turns_out_to_have_two_keys_is_not_published_in_part() {
    for target in Target::filled() {
        let publish = |more: &[&str], input: &str| {
            let args = ["publish", "t", "-K", ":", "--expect-revision", "3", "--batch-records", "1"];
            target.feed(&[&args[..], more].concat(), input)
        };
        let end = || target.run(&["read", "t", "--reverse", "-c1", "-f", "%o"]).ok().text();
        publish(&[], "a:1\na:2\nb:3\n").fails(2).says("one key");
        publish(&[], "a:1\nno key\n").fails(11).says("line 2");
        let record = format!("a:{}\n", "x".repeat(1 << 20));
        publish(&[], &record.repeat(5)).fails(2).says("one append").says("--key");
        assert_eq!(end(), "12");
        publish(&[], "a:1\na:2\n").ok().says("offsets 13 to 14");
        publish(&[], "a:3\n").fails(4);
        // With a key of its own it is never of another one, and may be of any length.
        let args = ["publish", "t", "--key", "a", "--expect-revision", "5", "--entry-bytes-max", "2MiB"];
        target.feed(&args, record.repeat(5)).ok().says("published 5 records");
    }
}

#[test]
fn records_are_published_only_if_none_matches() {
    for target in Target::filled() {
        let claim = |condition: &[&str]| {
            let args = ["publish", "t", "--type", "claimed", "--tag", "seat-1", "--batch-records", "1"];
            target.feed(&[&args[..], condition].concat(), "one\ntwo\n")
        };
        // The first batch counts, not those behind it.
        claim(&["--no-match", "tag=seat-1,type=claimed"]).ok();
        claim(&["--no-match", "tag=seat-1,type=claimed"]).fails(4).says("--from 13 --count 1");
        claim(&["--no-match", "tag=seat-1,after=13"]).fails(4).says("--from 14 --count 1");
        claim(&["--no-match", "type=released", "--no-match", "key=ab,after=9"]).fails(4).says("--from 10 ");
        claim(&["--no-match", "tag=seat-1,after=14", "--expect-next-offset", "14"]).fails(4);
        claim(&["--no-match", "tag=seat-1,after=14", "--expect-next-offset", "15"]).ok();
        assert_eq!(target.run(&["read", "t", "--reverse", "-c1", "-f", "%o"]).ok().text(), "16");
        target.run(&["topics", "trim", "t", "--before", "5"]).ok();
        claim(&["--no-match", "tag=other,after=3"]).fails(6).says("the log starts at 5");
        claim(&["--no-match", "after=3"]).fails(2).says("a tag, a type or a key");
        claim(&["--no-match", "tag=x", "--producer", "p"]).fails(2);
    }
}

#[test]
fn a_writer_with_a_lower_fencing_token_is_shut_out() {
    for target in Target::filled() {
        let publish = |token: &str| {
            let args = ["publish", "t", "--batch-records", "1", "--fencing-token", token];
            target.feed(&args, "x\ny\nz\n")
        };
        let describe = || {
            let json = target.run(&["topics", "describe", "t", "--json"]).ok().stdout;
            serde_json::from_slice::<serde_json::Value>(&json).unwrap()
        };
        let explain = |token: &str| target.run(&["explain", "t", "--fencing-token", token]);
        assert_eq!(describe()["fencing_token"], 0);
        publish("7").ok().says("published 3 records");
        publish("7").ok();
        publish("6").fails(4).says("taken over");
        let described = describe();
        assert_eq!((&described["fencing_token"], &described["log_end_offset"]), (&7.into(), &19.into()));
        assert!(target.run(&["topics", "describe", "t"]).ok().text().contains("fencing token"));
        assert!(explain("7").ok().text().starts_with("holds: "));
        let refused = explain("6");
        assert_eq!((refused.code, refused.text().contains("it is 7")), (4, true), "{}", refused.text());
        publish("8").ok();
        assert_eq!(describe()["fencing_token"], 8);
        target.feed(&["publish", "t", "--fencing-token", "9", "--producer", "p"], "x\n").fails(2);
    }
}

/// Other bytes than UTF-8 could be published, and then neither be told apart nor be asked for.
#[test]
fn a_key_of_any_bytes_is_given_as_it_is_shown() {
    for target in targets() {
        let input = b"\xff\\:one\n\xff\\:two\n\xfe:three\n\\xff:four\n";
        target.feed(&["publish", "t", "--create", "-K", ":"], input).ok();
        let shown = [r"\xfe", r"\\xff", r"\xff\\"];
        let lines = target.run(&["streams", "t"]).ok().lines();
        let listed: Vec<_> = lines[1..].iter().map(|line| line.split(' ').next().unwrap()).collect();
        assert_eq!(listed, [r"\\xff", r"\xfe", r"\xff\\"]);
        let read = |args: &[&str]| target.run(&[&["read", "t", "-f", "%v,"], args].concat()).ok().text();
        let all = target.run(&["read", "t"]).ok().text();
        for (key, values) in shown.into_iter().zip(["three,", "four,", "one,two,"]) {
            assert!(all.contains(&format!("  {key}  ")), "{all}");
            assert_eq!(read(&["--key", key]), values);
            let last = values.matches(',').count() - 1;
            let ran = target.run(&["explain", "t", "--revision", &format!("{key}={last}")]).ok();
            assert!(ran.text().contains(&format!("key {key} has revision {last}")), "{}", ran.text());
            target.run(&["snapshot", "get", "t", "--key", key]).fails(3).says(&format!("key {key} of"));
        }
        assert_eq!(read(&["--key-prefix", r"\xff"]), "one,two,");
        assert_eq!(target.run(&["streams", "t", "--prefix", r"\xff", "--json"]).ok().lines().len(), 1);
        let publish = ["publish", "t", "--key", r"\xff\\", "--expect-revision", "1"];
        target.feed(&publish, "five\n").ok();
        let put = ["snapshot", "put", "t", "--key", r"\xff\\", "--revision", "1", "--json"];
        let line = target.feed(&put, "state").ok().text();
        assert!(line.contains("\"key_base64\":\"/1w=\""), "{line}");
        let found = target.run(&["read", "t", "--key", r"\xff\\", "--from-snapshot", "-f", "%v,"]).ok();
        assert_eq!(found.text(), "state,five,");
        let explain = ["explain", "t", "--no-match", r"key=\xfe\x2c,key=\xff\\,after=3"];
        assert!(target.run(&explain).text().contains("the record at offset 4 does"));
        for args in [["read", "t", "--key", r"\q"], ["publish", "t", "--key", r"a\"]] {
            target.run(&args).fails(2).says(r"write \\ for a backslash");
        }
    }
}

/// It ended there with an error, and said nothing of the others.
#[test]
fn a_condition_about_records_that_were_removed_is_explained_like_the_others() {
    for target in Target::filled() {
        target.run(&["topics", "trim", "t", "--before", "5"]).ok();
        let explain = |args: &[&str]| target.run(&[&["explain", "t"], args].concat());
        let trimmed = ["--no-match", "key=b,after=3", "--no-match", "key=none,after=4"];
        let ran = explain(&trimmed);
        let lines = ran.lines();
        assert_eq!((ran.code, lines.len()), (6, 3), "{lines:?}");
        assert!(lines[0].starts_with("refused: no record behind offset 3 matches: "), "{lines:?}");
        assert!(lines[0].contains("the log starts at 5") && lines[1].contains("`after=4`"), "{lines:?}");
        assert!(lines[2].starts_with("holds: "), "{lines:?}");
        let ran = explain(&[&trimmed[..], &["--revision", "a=0"]].concat());
        assert_eq!((ran.code, ran.lines().len()), (4, 5), "{}", ran.text());
        let json = explain(&[&trimmed[..], &["--json"]].concat()).lines();
        let first: serde_json::Value = serde_json::from_str(&json[0]).unwrap();
        assert!(first["holds"].is_null() && first["refused"].is_string(), "{json:?}");
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
            ["--revision", "none=any"],
            ["--next-offset", "14"],
            ["--no-match", "tag=x,after=13"],
            ["--no-match", "tag=x,type=other"],
        ];
        let lines = explain(&holding.concat()).ok().lines();
        assert!(lines.len() == 7 && lines.iter().all(|line| line.starts_with("holds: ")), "{lines:?}");
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
        // It counts as a record.
        assert_eq!(read(&["-c1"]).ok().lines(), ["t.snapshots 2 two"]);
        assert_eq!(read(&["-c2"]).ok().lines(), ["t.snapshots 2 two", "t 3 10"]);
        put("3", "three").ok();
        assert_eq!(read(&[]).ok().lines(), ["t.snapshots 3 three"]);
        // It covers what lies behind the end, so an older one is taken, or none.
        for (until, lines, note) in [
            ("100", &["t.snapshots 3 three"][..], ""),
            ("11", &["t.snapshots 3 three"], ""),
            ("10", &["t.snapshots 2 two"], ""),
            ("@99999999999999", &["t.snapshots 3 three"], ""),
            ("5", &["t.snapshots 1 one\n"], ""),
            ("4", &["t 0 1"], "covers nothing from --until on"),
            ("1", &[], "covers nothing from --until on"),
            ("0", &[], "covers nothing from --until on"),
        ] {
            let ran = read(&["--until", until]).ok().says(note);
            assert_eq!(ran.text().trim_end(), lines.join("\n").trim_end(), "{until}");
        }
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
        // It stands for all records of the key.
        read(&["--key", "a", "--type", "S"]).fails(2);
        read(&["--key", "a", "--tag", "S"]).fails(2);
        read(&["--key", "a", "-H", "a=b"]).fails(2);
        read(&["--key", "a", "--revision", "1"]).fails(2);
    }
}
