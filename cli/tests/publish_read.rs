//! Publishing and reading on a directory, through the real binary.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod common;

use std::process::Command;

use common::{Place, Running, feed, quipu};
use quipu_storage::{Record, Store, StoreSettings, TopicSettings};

#[test]
fn lines_come_back_as_they_were() {
    let place = Place::new();
    let input = "one\n\ntwo with \u{1b}[31mescape\nlast without end";
    place.feed(&["publish", "logs", "--create"], input).ok().says("published 4 records");
    assert_eq!(place.run(&["read", "logs", "--raw"]).ok().text(), format!("{input}\n"));
    let shown = place.run(&["read", "logs"]).ok().text();
    assert!(shown.contains("\\u{1b}[31m") && !shown.contains('\u{1b}'), "{shown}");
}

#[test]
fn binary_records_come_back_as_they_were() {
    let place = Place::new();
    let mut input = Vec::new();
    for payload in [&b"a\nb"[..], b"", b"\xff\x00\xfe", &[7; 100_000]] {
        input.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        input.extend(payload);
    }
    let file = place.file("records.bin", &input);
    place.run(&["publish", "t", &file, "--create"]).ok();
    assert_eq!(place.run(&["read", "t", "--binary"]).ok().stdout, input);
}

#[test]
fn parts_of_a_record_are_taken_from_fields_of_json() {
    let place = Place::new();
    let line = r#"{"who":{"id":7},"kind":"placed","at":"2026-11-22T09:00Z","src":"web","tags":["a","b"],"body":{"x":[1,2]},"gone":null}"#;
    let file = place.file("orders.ndjson", format!("{line}\n\n{line}\n"));
    let fields = [
        "publish",
        "-t",
        "orders",
        &file,
        "--create",
        "--key-field",
        "who.id",
        "--type-field",
        "kind",
        "--time-field",
        "at",
        "--header-field",
        "origin=src",
        "--header-field",
        "missing?",
        "--tag-field",
        "tags",
        "--tag",
        "c",
        "--content-type",
        "application/json",
        "-H",
        "h=v",
    ];
    place.run(&fields).ok().says("published 2 records");
    let read = place.run(&["read", "orders", "-c1", "--json"]).ok();
    let value: serde_json::Value = serde_json::from_slice(&read.stdout).unwrap();
    assert_eq!(value["key"], "7");
    assert_eq!(value["type"], "placed");
    assert_eq!(value["tags"], serde_json::json!(["c", "a", "b"]));
    assert_eq!(
        value["headers"],
        serde_json::json!([
            {"name": "h", "value": "v"},
            {"name": "time", "value": "2026-11-22T09:00:00.000Z"},
            {"name": "origin", "value": "web"}
        ])
    );
    assert_eq!(value["content_type"], "application/json");
    assert_eq!(value["payload"], line);

    place.feed(&["publish", "orders", "-F", "ndjson", "--payload-field", "body"], line).ok();
    place.feed(&["publish", "orders", "-F", "ndjson", "--payload-field", "gone", "--key", "k"], line).ok();
    let read = place.run(&["read", "orders", "--from", "-2", "-f", "%o %k %v %V\\n"]).ok();
    assert_eq!(read.text(), "2  {\"x\":[1,2]} 11\n3 k  -1\n");
}

// Numbers went through a float: two keys became one, and compaction then removed the record of the one for that of the
// other.
#[test]
fn numbers_become_keys_types_headers_and_tags_to_their_last_digit() {
    let place = Place::new();
    place.run(&["topics", "create", "t", "--compact"]).ok();
    let numbers =
        ["12345678901234567890", "12345678901234567891", "1e400", "0.1000000000000000055", "0.1", "1.0", "1"];
    let lines: String =
        numbers.iter().map(|number| format!("{{\"n\": {number} ,\"l\":[{number}]}}\n")).collect();
    let fields = ["--key-field", "n", "--type-field", "n", "--header-field", "h=n", "--tag-field", "l"];
    place.feed(&[&["publish", "t", "-F", "ndjson"], &fields[..]].concat(), lines).ok();
    place.run(&["topics", "compact", "t"]).ok();
    let read = place.run(&["read", "t", "-f", "%k %y %h %g\\n"]).ok().lines();
    let expected: Vec<String> = numbers.iter().map(|n| format!("{n} {n} h={n} {n}")).collect();
    assert_eq!(read, expected);
    // Payloads, too.
    place
        .feed(
            &["publish", "u", "--create", "-F", "ndjson", "--payload-field", "p"],
            "{\"p\":{\"z\":1.50, \"a\":1e400}}\n",
        )
        .ok();
    assert_eq!(place.run(&["read", "u", "--raw"]).ok().text(), "{\"z\":1.50, \"a\":1e400}\n");
}

#[test]
fn what_the_command_line_gets_wrong_is_json_for_machines() {
    for args in [
        &["read"][..],
        &["read", "t", "--nope"],
        &["read", "t", "--count", "x"],
        &["read", "t", "--from", "nowhere"],
        &["tail", "t", "-n", "1", "--from", "2"],
        &["nope"],
        &["topics"],
        &["serve", "--data", "d", "--server", "s"],
        &[],
    ] {
        let ran = feed(quipu(&[&["--json"], args].concat()), "").fails(2);
        assert!(ran.stdout.is_empty() && ran.stderr.lines().count() == 1, "{}", ran.stderr);
        let value: serde_json::Value = serde_json::from_str(&ran.stderr).unwrap();
        let error = &value["error"];
        assert_eq!((&error["reason"], &error["exit_code"]), (&"USAGE".into(), &2.into()));
        assert!(!error["message"].as_str().unwrap().is_empty());
        // Without it, for people.
        let ran = feed(quipu(args), "").fails(2);
        assert!(!ran.stderr.starts_with('{'), "{}", ran.stderr);
    }
    // Help is no error, and no JSON.
    assert!(feed(quipu(&["read", "--help", "--json"]), "").ok().text().contains("Usage"));
}

#[test]
fn rows_of_csv_become_objects() {
    let place = Place::new();
    let file = place.file("orders.csv", "id,what,note\n1,book,\"two\nlines\"\n2,\"a \"\"pen\"\"\",\n");
    place.run(&["publish", "t", &file, "--create", "--key-field", "id", "--header-field", "note?"]).ok();
    let read = place.run(&["read", "t", "--template", "%k|%h|%v\\n"]).ok();
    assert_eq!(
        read.text(),
        "1|note=two\nlines|{\"id\":\"1\",\"note\":\"two\\nlines\",\"what\":\"book\"}\n\
         2||{\"id\":\"2\",\"note\":\"\",\"what\":\"a \\\"pen\\\"\"}\n"
    );
}

#[test]
fn keys_are_split_off_lines() {
    let place = Place::new();
    place.feed(&["publish", "t", "--create", "-K", "::"], "a::1\nb::2::3\n").ok();
    assert_eq!(place.run(&["read", "t", "-f", "%k=%v\\n"]).ok().text(), "a=1\nb=2::3\n");
    place.feed(&["publish", "t", "-K", "::"], "nothing here\n").fails(11).says("line 1");
}

#[test]
fn reading_starts_and_ends_where_it_is_told() {
    let place = Place::new();
    let input: String = (0..100).map(|number| format!("r{number}\n")).collect();
    place.feed(&["publish", "t", "--create", "--batch-records", "7"], &input).ok();
    let read = |args: &[&str]| place.run(&[&["read", "t", "-f", "%v "], args].concat()).ok().text();
    assert_eq!(read(&["--from", "97"]), "r97 r98 r99 ");
    assert_eq!(read(&["--from", "-2"]), "r98 r99 ");
    assert_eq!(read(&["--from", "10", "--until", "13"]), "r10 r11 r12 ");
    assert_eq!(read(&["--from", "95", "--until", "-3"]), "r95 r96 ");
    assert_eq!(read(&["-c", "2"]), "r0 r1 ");
    assert_eq!(read(&["--from", "1h", "-c", "1"]), "r0 ");
    assert_eq!(read(&["--from", "latest"]), "");
    assert_eq!(read(&["--until", "1h"]), "");
    assert_eq!(read(&["--reverse", "-c", "3"]), "r99 r98 r97 ");
    assert_eq!(read(&["--reverse", "--from", "5", "--until", "3"]), "r5 r4 r3 ");
    assert_eq!(read(&["--from", "100"]), "");
    place.run(&["read", "t", "--from", "101"]).fails(6).says("the next one is 100");
    let tail = place.run(&["tail", "t", "-n", "3", "--template", "%v "]).ok().text();
    assert_eq!(tail, "r97 r98 r99 ");
}

#[test]
fn filters_let_through_what_they_say() {
    let place = Place::new();
    let put = |key: &str, kind: &str, tag: &str, value: &str| {
        let args = ["publish", "t", "--create", "-k", key, "--type", kind, "--tag", tag, "-H", "v=1"];
        place.feed(&args, value).ok();
    };
    put("a1", "x", "red", "0");
    put("a2", "y", "red", "1");
    put("b1", "x", "blue", "2");
    put("a1", "x", "blue", "3");
    let read = |args: &[&str]| place.run(&[&["read", "t", "-f", "%v "], args].concat()).ok().text();
    assert_eq!(read(&["--key", "a1"]), "0 3 ");
    assert_eq!(read(&["--key-prefix", "a"]), "0 1 3 ");
    assert_eq!(read(&["--type", "x", "--tag", "blue"]), "2 3 ");
    assert_eq!(read(&["--tag", "red,blue"]), "");
    assert_eq!(read(&["-H", "v=1", "-H", "v=2"]), "");
    assert_eq!(read(&["--key", "a1", "--from", "-1"]), "3 ");
    let tail = place.run(&["tail", "t", "-n", "2", "--key", "a1", "--template", "%v "]).ok().text();
    assert_eq!(tail, "0 3 ");
}

#[test]
fn a_follower_shows_what_another_process_publishes_line_by_line() {
    let place = Place::new();
    place.feed(&["publish", "t", "--create"], "zero\none\n").ok();
    let mut tail = place.spawn(&["tail", "-f", "t", "-n", "1", "--template", "%o %v\\n"]);
    assert_eq!(tail.line(), "1 one");
    let mut publish = place.spawn(&["publish", "t"]);
    // Each line is there before the next is typed.
    for number in 2..5 {
        publish.send(&format!("line {number}\n"));
        assert_eq!(tail.line(), format!("{number} line {number}"));
    }
    publish.stdin = None;
    assert!(publish.child.wait().unwrap().success());
}

#[test]
fn a_follower_ends_where_it_is_told() {
    let place = Place::new();
    place.feed(&["publish", "t", "--create"], "zero\n").ok();
    let mut tail = place.spawn(&["tail", "-f", "t", "--count", "2", "--template", "%v\\n"]);
    assert_eq!(tail.line(), "zero");
    place.feed(&["publish", "t"], "one\ntwo\n").ok();
    assert_eq!(tail.line(), "one");
    assert!(tail.child.wait().unwrap().success());
    assert_eq!(tail.line(), "");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let place = Place::new();
    let input: String =
        (0..20_000).map(|number| format!("a line of some length, number {number}\n")).collect();
    place.feed(&["publish", "t", "--create"], &input).ok();
    for args in [&["read", "t"][..], &["read", "t", "--json"], &["read", "t", "--raw"]] {
        let mut command = place.command(args);
        let mut child = command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut stdout = std::io::BufReader::new(child.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut stdout, &mut line).unwrap();
        drop(stdout);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), &output.stderr[..]), (Some(0), &b""[..]), "{args:?}");
    }
}

#[test]
fn a_malformed_line_ends_publishing_and_says_how_to_go_on() {
    let place = Place::new();
    let file = place.file("in.ndjson", "{\"a\":1}\n{\"a\":2}\nno json\n{\"a\":3}\n");
    let args = ["publish", "t", &file, "--create", "--batch-records", "1"];
    place.run(&args).fails(11).says("line 3").says("--skip 2").says("--skip-invalid");
    assert_eq!(place.run(&["read", "t", "--raw"]).ok().lines().len(), 2);
    place.run(&["publish", "t", &file, "--skip", "2", "--skip-invalid"]).ok().says("1 passed over");
    assert_eq!(place.run(&["read", "t", "--raw"]).ok().text(), "{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n");
    // The number for --skip counts what was passed over.
    let file = place.file("in2.ndjson", "x\n{\"a\":4}\nx\n{\"a\":5}\n");
    let args = ["publish", "t", &file, "--skip-invalid", "--dry-run", "--json"];
    let ran = place.run(&args).ok();
    let value: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((&value["records"], &value["invalid"]), (&2.into(), &2.into()));
    // To check needs neither store nor server.
    common::feed(quipu(&["publish", "t", &file, "--dry-run", "--server", "http://127.0.0.1:1"]), "")
        .fails(11);
}

/// Some editors and spreadsheets begin their files with it. NDJSON was refused, other first records kept it.
#[test]
fn a_byte_order_mark_is_no_part_of_the_first_record() {
    let place = Place::new();
    place.run(&["topics", "create", "t"]).ok();
    place.feed(&["publish", "t", "-F", "ndjson", "--key-field", "k"], "\u{feff}{\"k\":\"a\"}\n").ok();
    place.feed(&["publish", "t", "-F", "csv", "--key-field", "k"], "\u{feff}k,v\nb,1\n").ok();
    place.feed(&["publish", "t", "-K", ":"], "\u{feff}c:x\n").ok();
    place.feed(&["publish", "t", "-F", "binary"], b"\0\0\0\x03\xef\xbb\xbf").ok();
    let keys = place.run(&["read", "t", "-f", "%k %V\n"]).ok().lines();
    assert_eq!(keys[..3], ["a 9", "b 17", "c 1"], "{keys:?}");
    assert!(keys[3].ends_with(" 3"), "{keys:?}");
}

/// The command ended with 1 as if nothing had been published.
#[test]
fn what_is_published_counts_also_if_the_store_cannot_be_closed_in_order() {
    let publish = |durability: &str| {
        let place = Place::new();
        let source = place.path("source");
        let settings = StoreSettings { background: false, ..StoreSettings::default() };
        let store = Store::builder().settings(settings).open(&source).unwrap();
        store.create_topic("other", TopicSettings::default()).unwrap().append(&[Record::new("x")]).unwrap();
        store.create_topic("t", TopicSettings::default()).unwrap();
        // As a killed process leaves it: the record of the other topic is in the journal, and cannot be put into its segment.
        let copy =
            Command::new("cp").args(["-r", source.to_str().unwrap()]).arg(place.store()).status().unwrap();
        assert!(copy.success());
        std::fs::create_dir_all(place.store().join("topics/00000001/00000000000000000000-0.segment"))
            .unwrap();
        let ran = place.feed(&["publish", "t", "--durability", durability, "--json"], "one\n");
        (place, ran)
    };
    let (place, ran) = publish("synced");
    let ran = ran.ok().says("{\"warning\":").says("not closed in order");
    let report: serde_json::Value = serde_json::from_slice(&ran.stdout).unwrap();
    assert_eq!((&report["records"], &report["next_offset"]), (&1.into(), &1.into()));
    assert_eq!(place.run(&["read", "t", "--raw"]).ok().lines(), ["one"]);
    assert_ne!(publish("accepted").1.code, 0);
}

#[test]
fn hostile_input_is_refused_with_its_place() {
    let place = Place::new();
    place.run(&["topics", "create", "t"]).ok();
    let refused = |args: &[&str], input: &[u8], code: i32, says: &str| {
        place.feed(&[&["publish", "t"], args].concat(), input).fails(code).says(says);
    };
    refused(&["--entry-bytes-max", "10"], b"short\nthis one is too long\n", 11, "line 2: it has 20 bytes");
    refused(&["-F", "ndjson"], b"{\"a\":", 11, "line 1");
    refused(&["-F", "ndjson"], &[b'['; 100_000], 11, "line 1");
    refused(&["-F", "ndjson", "--key-field", "k"], b"[1]", 11, "object");
    refused(&["-F", "ndjson", "--key-field", "k"], b"{\"a\":1}", 11, "no field \"k\"");
    refused(&["-F", "ndjson", "--key-field", "k"], b"{\"k\":null}", 11, "empty");
    refused(&["-F", "ndjson", "--key-field", "k"], b"{\"k\":[1]}", 11, "list");
    refused(&["-F", "ndjson", "--time-field", "k"], b"{\"k\":\"soon\"}", 11, "no time");
    refused(&["-F", "ndjson", "--id-field", "k"], b"{\"k\":\"1\"}", 11, "no id");
    refused(&["-F", "ndjson"], b"\xff\xfe", 11, "line 1");
    refused(&["-F", "csv", "--key-field", "z"], b"a,b\n1,2\n", 11, "no column \"z\"");
    refused(&["-F", "csv"], b"a,b\n1,2,3\n", 11, "3 columns");
    refused(
        &["-F", "csv", "--entry-bytes-max", "1KiB"],
        format!("a\n\"{}", "x".repeat(200_000)).as_bytes(),
        11,
        "quote",
    );
    refused(&["-F", "csv"], b"a\n\xff\n", 11, "UTF-8");
    // What would be lost without a word.
    refused(&["-F", "csv"], b"a,a\n1,2\n", 11, "two columns are called \"a\"");
    refused(&["-F", "csv"], b"a\n\"x\ny\nz\n", 11, "not closed");
    refused(&["-F", "csv"], b"\"a\n1,2\n", 11, "not closed");
    refused(&["-F", "binary"], b"\x00\x00", 11, "within a length");
    refused(&["-F", "binary"], b"\x00\x00\x00\x05ab", 11, "2 of 5 bytes");
    refused(&["-F", "binary"], b"\xff\xff\xff\xffab", 11, "limit");
    let long_key = format!("{}:v", "k".repeat(5000));
    refused(&["-K", ":"], long_key.as_bytes(), 11, "key has 5000 bytes, the limit is 4096");
    refused(&["--key-field", "k"], b"x", 2, "--format ndjson or csv");
    refused(&["--tag-field", ""], b"x", 2, "name");
    refused(&["-H", "novalue"], b"x", 2, "NAME=VALUE");
    refused(&["/nowhere/at/all"], b"", 3, "/nowhere/at/all");
    refused(&["/tmp"], b"", 1, "/tmp");
    place.feed(&["publish", "../up", "--create"], "x").fails(2).says("not allowed");
    place.feed(&["publish", "nope"], "x").fails(3).says("--create");
    // What came before the line that was refused is published; of the rest nothing is.
    assert_eq!(place.run(&["read", "t", "--raw"]).ok().text(), "short\n");
}

#[test]
fn wrong_flags_are_refused_and_say_why() {
    let place = Place::new();
    place.feed(&["publish", "t", "--create"], "x").ok();
    for (args, says) in [
        (&["read", "t", "--from", "soon"][..], "no position"),
        (&["read", "t", "-f", "%q"], "no token"),
        (&["read", "t", "--raw", "--delimiter", "\\q"], "escape"),
        (&["read", "t", "--raw", "--json"], "cannot be used with"),
        (&["read", "t", "--count", "0"], "0"),
        (&["read", "t", "--reverse", "--from", "-3"], "--count"),
        (&["tail", "t", "--last", "-1"], "-1"),
        (&["topics", "create", "x", "--segment-bytes-max", "1"], "segment_bytes_max"),
        (&["topics", "create", "x", "--retention-age-max", "5"], "duration"),
        (&["topics", "alter", "t"], "at least one"),
        (&["topics", "alter", "t", "--compaction-lag-min", "1h"], "--compact"),
        (&["raed"], "unrecognized"),
        (&["read", "t", "--server", "http://127.0.0.1:1"], "cannot be used with"),
    ] {
        place.run(args).fails(2).says(says);
    }
}

#[test]
fn what_is_not_there_is_said_to_be_missing() {
    let place = Place::new();
    place.run(&["read", "t"]).fails(3).says("no store");
    place.run(&["topics", "list"]).fails(3);
    place.run(&["topics", "delete", "t"]).fails(3);
    assert!(!place.store().join("checkpoint").exists(), "what only looks makes no store");
    place.feed(&["publish", "t", "--create"], "x").ok();
    place.run(&["read", "u"]).fails(3).says("no topic u").says("topics create u");
    let error = place.run(&["read", "u", "--json"]).fails(3).stderr;
    let value: serde_json::Value = serde_json::from_str(&error).unwrap();
    assert_eq!(
        (&value["error"]["reason"], &value["error"]["exit_code"]),
        (&"TOPIC_NOT_FOUND".into(), &3.into())
    );
}

#[test]
fn a_store_that_is_held_can_be_read_and_not_written() {
    let place = Place::new();
    place.feed(&["publish", "t", "--create"], "x\n").ok();
    let mut holder: Running = place.spawn(&["publish", "t"]);
    holder.send("y\n");
    let mut tail = place.spawn(&["tail", "-f", "t", "--count", "2", "--template", "%v\\n"]);
    assert_eq!((tail.line(), tail.line()), ("x".into(), "y".into()));
    place.feed(&["publish", "t"], "z").fails(7).says("in use").says("--server");
    place.run(&["topics", "list"]).ok();
}

#[test]
fn a_killed_publisher_loses_nothing_that_a_reader_saw() {
    let place = Place::new();
    place.run(&["topics", "create", "t"]).ok();
    let mut seen = Vec::new();
    for round in 0..3 {
        let mut publish = place.spawn(&["publish", "t"]);
        let mut tail = place.spawn(&["tail", "-f", "t", "--from", "earliest", "--template", "%o %v\\n"]);
        publish.send(&format!("round {round}\n"));
        drop(publish.stdin.take());
        publish.child.wait().unwrap();
        let mut publish = place.spawn(&["publish", "t"]);
        publish.send(&format!("more {round}\n"));
        let mut line = tail.line();
        while !line.ends_with(&format!("more {round}")) {
            line = tail.line();
        }
        seen.push(line);
        publish.child.kill().unwrap();
        publish.child.wait().unwrap();
    }
    let all = place.run(&["read", "t", "-f", "%o %v\\n"]).ok().lines();
    assert!(seen.iter().all(|line| all.contains(line)), "{seen:?} {all:?}");
    place.run(&["topics", "verify", "t"]).ok();
}

#[test]
fn colour_is_shown_when_asked_for_and_never_with_no_color() {
    let place = Place::new();
    place.feed(&["publish", "t", "--create", "--key", "k"], "x").ok();
    assert!(!place.run(&["read", "t"]).ok().text().contains('\u{1b}'));
    assert!(place.run(&["read", "t", "--color", "always"]).ok().text().contains('\u{1b}'));
}

#[test]
fn help_shows_examples_and_the_exit_codes() {
    let ran = quipu(&["--help"]).output().unwrap();
    let text = String::from_utf8(ran.stdout).unwrap();
    assert!(text.contains("Exit codes:") && text.contains("TOPIC_NOT_FOUND"), "{text}");
    for command in ["publish", "read", "tail", "topics"] {
        let ran = quipu(&[command, "--help"]).output().unwrap();
        assert!(String::from_utf8(ran.stdout).unwrap().contains("Examples:"), "{command}");
    }
}

// The first file was published before it was found that there is no second one: to run it again published it twice.
#[test]
fn an_input_that_is_not_there_is_found_before_anything_is_published() {
    let place = Place::new();
    let good = place.file("good.txt", b"one\ntwo\n");
    let missing = place.path("missing.txt");
    let missing = missing.to_str().unwrap();
    place.run(&["publish", "t", "--create", &good, missing]).fails(3).says("missing.txt");
    place.run(&["read", "t"]).fails(3);
    let dir = place.path("");
    place.run(&["publish", "t", "--create", &good, dir.to_str().unwrap()]).fails(1);
    place.run(&["read", "t"]).fails(3);
}

#[test]
fn a_directory_knows_a_named_publisher_as_a_server_does() {
    let place = Place::new();
    let input = place.file("input", (0..25).map(|number| format!("{number}\n")).collect::<String>());
    let args = ["publish", "t", &input, "--create", "--producer", "p", "--batch-records", "10"];
    place.run(&args).ok().says("published 25 records");
    place.run(&args).ok().says("25 published before");
    assert_eq!(place.run(&["read", "t"]).ok().lines().len(), 25);
    // A grown input makes another batch of the last one.
    place.file("input", (0..30).map(|number| format!("{number}\n")).collect::<String>());
    place.run(&args).fails(4).says("another input");
    assert_eq!(place.run(&["read", "t"]).ok().lines().len(), 25);
    assert!(place.run(&["producers", "list"]).ok().text().contains("p "));
    place.run(&["producers", "forget", "p"]).ok().says("forgotten");
    place.run(&["producers", "list"]).ok().says("no producer");
    for (wrong, why) in [
        (&["publish", "t", "--producer", "~p"][..], "temporary"),
        (&["publish", "t", "--producer", ""], "--producer needs a name"),
        (&["publish", "t", "--producer", "p", "--skip", "1"], "cannot be used with"),
        (&["publish", "t", "--producer-epoch", "1"], "--producer"),
        (&["publish", "t", &input, &input, "--producer", "p"], "single input"),
    ] {
        place.run(wrong).fails(2).says(why);
    }
}
