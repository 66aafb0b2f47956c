//! Directories without a server: verify, dump, inspect, status.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod common;

use common::{Place, Ran, files, filled, quipu};
use quipu_storage::{Durability, Record, Store, StoreSettings};
use serde_json::Value;

#[test]
fn an_intact_store_is_verified_and_a_flipped_bit_is_named() {
    let place = Place::new();
    filled(&place);
    place.run(&["verify"]).ok();
    let report = place.run(&["verify", "--json"]).ok();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    assert_eq!((&report["intact"], &report["closed_properly"]), (&true.into(), &true.into()));
    let (path, mut bytes) = files(&place.store())
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|name| name == "segment"))
        .unwrap();
    bytes[120] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let ran = place.run(&["verify"]);
    assert_eq!(ran.code, 8, "{ran:?}");
    assert!(ran.text().contains("damage") && ran.text().contains(".segment"), "{}", ran.text());
    // Reading names what is lost, shows the rest, and ends with the same code.
    place.run(&["read", "t"]).fails(8).says("damaged");
    place.run(&["export", "t"]).fails(8).says("damaged");
    let ran = place.run(&["topics", "verify", "t"]);
    assert_eq!(ran.code, 8, "{ran:?}");
}

/// A killed process leaves records that nobody knows to be synced. They were left out of reads and exports without a word.
#[test]
fn records_that_are_not_known_to_be_synced_are_left_out_with_a_word() {
    let place = Place::new();
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let source = place.path("source");
    let store = Store::builder().settings(settings).open(&source).unwrap();
    let topic = store.topic_or_create("t").unwrap();
    topic.append(&[Record::new("synced")]).unwrap();
    topic.append_with(&[Record::new("written"), Record::new("too")], Durability::Written).unwrap();
    copy_dir(&source, &place.store());
    let word = "records 1 to 2 of t are not known to be synced and are left out";
    let read = place.run(&["read", "t"]).ok().says(word);
    assert!(!read.text().contains("written"));
    place.run(&["export", "t", place.path("t.ndjson").to_str().unwrap()]).ok().says(word);
    let all = place.run(&["read", "t", "--written"]).ok();
    assert!(all.text().contains("written") && !all.stderr.contains(word));
}

/// A store as a killed process leaves it, with records in several files of the journal; answers those that were used, in
/// the order of their use.
fn killed(place: &Place) -> Vec<std::path::PathBuf> {
    let settings = StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 1 << 20,
        append_bytes_max: 16 << 10,
        background: false,
        ..StoreSettings::default()
    };
    let source = place.path("source");
    let store = Store::builder().settings(settings).open(&source).unwrap();
    let topic = store.topic_or_create("t").unwrap();
    for number in 0..400 {
        topic.append(&[Record::new(format!("record {number} {}", "x".repeat(300)))]).unwrap();
    }
    // Before it is closed; and nobody holds the lock of a copy.
    copy_dir(&source, &place.store());
    drop((topic, store));
    let mut used: Vec<_> = files(&place.store().join("journal"))
        .into_iter()
        .map(|(path, bytes)| (u64::from_le_bytes(bytes[32..40].try_into().unwrap()), path))
        .filter(|(generation, _)| *generation > 0)
        .collect();
    used.sort();
    assert!(used.len() >= 3, "{used:?}");
    used.into_iter().map(|(_, path)| path).collect()
}

fn copy_dir(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let copy = to.join(path.file_name().unwrap());
        if path.is_dir() {
            copy_dir(&path, &copy);
        } else {
            std::fs::copy(&path, copy).unwrap();
        }
    }
}

/// These commands showed what is before the damage, and ended as if that had been all.
#[test]
fn damage_of_the_journal_is_named_by_every_command_that_reads_a_directory() {
    for damage in ["a flipped bit", "a missing file"] {
        let place = Place::new();
        let used = killed(&place);
        place.run(&["read", "t"]).ok();
        let is_missing = damage == "a missing file";
        if is_missing {
            std::fs::remove_file(&used[1]).unwrap();
        } else {
            let mut bytes = std::fs::read(&used[1]).unwrap();
            bytes[4096 + 60] ^= 1;
            std::fs::write(&used[1], bytes).unwrap();
        }
        // A missing file has no name any more: the one that leads to it is named.
        let named = used[usize::from(!is_missing)].to_str().unwrap();
        let damaged = |args: &[&str]| place.run(args).fails(8).says(named);

        let read = damaged(&["read", "t", "-f", "%o\n"]).lines();
        assert!(read.len() > 50 && read.len() < 350, "{}", read.len());
        assert!(read.iter().enumerate().all(|(number, line)| *line == number.to_string()));
        let last = damaged(&["read", "t", "--from", "-3", "-f", "%o\n"]).lines();
        assert_eq!(last, read[read.len() - 3..]);
        let backwards = damaged(&["read", "t", "--reverse", "-f", "%o\n"]).lines();
        assert!(backwards.iter().rev().eq(&read));
        assert_eq!(damaged(&["tail", "t", "-n", "2", "-F", "%o\n"]).lines(), read[read.len() - 2..]);
        damaged(&["read", "t", "--from", "399"]);
        // What was wanted is there.
        assert_eq!(place.run(&["read", "t", "--until", "20", "-f", "%o\n"]).ok().lines(), read[..20]);
        assert_eq!(place.run(&["read", "t", "--count", "20", "-f", "%o\n"]).ok().lines(), read[..20]);

        damaged(&["export", "t"]);
        let listed = damaged(&["topics", "list"]);
        assert!(listed.text().contains('t'), "{}", listed.text());
        damaged(&["topics", "describe", "t"]);
        damaged(&["read", "made-behind-the-damage"]);
        damaged(&["inspect"]);
        let status = place.run(&["status"]);
        assert!(status.code == 8 && status.text().contains(named), "{status:?}");
        let verified = place.run(&["verify"]);
        assert!(verified.code == 8 && verified.text().contains(named), "{verified:?}");
        // Nor does anybody write behind it.
        place.feed(&["publish", "t"], "one more\n").fails(8).says(named);
    }
}

#[test]
fn files_are_dumped_as_text() {
    let place = Place::new();
    filled(&place);
    let all = place.run(&["dump"]).ok().text();
    assert!(all.contains("checkpoint") && all.contains("segment, store"), "{all}");
    let segment = files(&place.store())
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|name| name == "segment"));
    let segment = segment.unwrap().0;
    let ran = common::feed(quipu(&["dump", segment.to_str().unwrap(), "--no-records"]), "").ok();
    assert!(ran.text().contains("segment, store"), "{}", ran.text());
    let text = place.file("text", "hello");
    place.run(&["dump", &text]).fails(2).says("no segment");
    place.run(&["dump", "/nowhere"]).fails(3).says("/nowhere");
    let empty = common::feed(quipu(&["dump", "--data", place.dir.path().to_str().unwrap()]), "");
    empty.fails(3);
    Place::new().run(&["dump"]).fails(3);
}

#[test]
fn a_dump_as_json_has_a_line_for_each_thing_and_marks_damage() {
    let place = Place::new();
    filled(&place);
    let lines = |ran: common::Ran| -> Vec<Value> {
        ran.lines().iter().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let all = lines(place.run(&["dump", "--json"]).ok());
    let (segment, mut bytes) = files(&place.store())
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|name| name == "segment"))
        .unwrap();
    let segment = segment.to_str().unwrap();
    let of_segment: Vec<_> = all.iter().filter(|line| line["path"] == segment).collect();
    assert!(of_segment[0].get("text").is_none(), "{all:?}");
    assert_eq!(of_segment[1]["position"], 0);
    assert!(of_segment[1]["text"].as_str().unwrap().starts_with("segment, store"), "{all:?}");
    let record = of_segment.iter().find(|line| line["offset"] == 1).unwrap();
    assert!(record["text"].as_str().unwrap().contains("payload=\"two\""), "{record}");
    assert!(all.iter().all(|line| line.get("damaged").is_none()), "{all:?}");
    bytes[120] ^= 1;
    std::fs::write(segment, bytes).unwrap();
    let ran = common::feed(quipu(&["dump", segment, "--json"]), "").ok();
    assert!(lines(ran).iter().any(|line| line["damaged"] == true));
}

#[test]
fn inspect_draws_segments_and_what_retention_lets_go() {
    let place = Place::new();
    place
        .run(&["topics", "create", "t", "--segment-bytes-max", "4KiB", "--retention-records-max", "100000"])
        .ok();
    let input: String =
        (0..2000).map(|number| format!("a record with some text, number {number}\n")).collect();
    place.feed(&["publish", "t", "--batch-records", "10"], input).ok();
    let drawn = place.run(&["inspect"]).ok().text();
    assert!(
        drawn.contains('█') && drawn.contains("(100%)") && drawn.contains("retention by records"),
        "{drawn}"
    );
    let value = place.run(&["inspect", "t", "--json"]).ok();
    let value: Value = serde_json::from_slice(&value.stdout).unwrap();
    let segments = value["segments"].as_array().unwrap();
    assert!(segments.len() > 3, "{value}");
    assert_eq!(segments[0]["base_offset"], 0);
    assert_eq!(segments[0]["next_offset"], segments[1]["base_offset"]);
    assert_eq!(value["log_end_offset"], 2000);
    assert_eq!(segments[0]["goes_by"], Value::Null);
    place.run(&["inspect", "nope"]).fails(3);
    Place::new().run(&["inspect"]).fails(3);
}

#[test]
fn commands_for_directories_say_that_they_need_one() {
    for command in ["verify", "dump", "inspect"] {
        common::feed(quipu(&[command]), "").fails(2).says("--data");
    }
    let place = Place::new();
    filled(&place);
    place.run(&["status"]).ok();
}

/// Errors were coloured by the environment alone, whatever --color said.
#[test]
fn errors_are_coloured_as_the_command_line_and_no_color_say() {
    let place = Place::new();
    for args in [&["topics", "describe", "nope"][..], &["publish", "--nope"]] {
        let is_coloured = |more: &[&str], no_colour: bool| {
            let mut command = place.command(args);
            command.args(more).env("CLICOLOR_FORCE", "1");
            if !no_colour {
                command.env_remove("NO_COLOR");
            }
            let ran = common::feed(command, "");
            assert!(ran.code == 2 || ran.code == 3, "{ran:?}");
            ran.stderr.contains('\u{1b}')
        };
        assert!(is_coloured(&[], false), "{args:?}");
        assert!(!is_coloured(&[], true), "{args:?}");
        assert!(!is_coloured(&["--color", "never"], false), "{args:?}");
        assert!(!is_coloured(&["--color=never"], false), "{args:?}");
        assert!(is_coloured(&["--color", "always"], true), "{args:?}");
    }
}

#[test]
fn completions_and_man_pages_are_made() {
    let place = Place::new();
    for shell in ["bash", "zsh", "fish"] {
        let script = common::feed(quipu(&["completions", shell]), "").ok().text();
        assert!(script.contains("publish") && script.contains("compact"), "{shell}");
    }
    let dir = place.path("man");
    common::feed(quipu(&["man", dir.to_str().unwrap()]), "").ok();
    let page = std::fs::read_to_string(dir.join("quipu-publish.1")).unwrap();
    assert!(page.contains("key-field") || page.contains("key\\-field"), "{page}");
}

#[test]
fn the_help_of_every_command_has_examples() {
    let help = |path: &[&str]| common::feed(quipu(&[path, &["--help"]].concat()), "").ok().text();
    let commands = |text: &str| -> Vec<String> {
        let list = text.split("Commands:\n").nth(1).unwrap_or_default();
        let rows = list.lines().take_while(|line| !line.is_empty());
        let names = rows.filter(|row| row.starts_with("  ") && !row.starts_with("   "));
        names.filter_map(|row| row.split_whitespace().next().map(str::to_owned)).collect()
    };
    let top = commands(&help(&[]));
    assert!(top.len() > 14, "{top:?}");
    for command in top.iter().filter(|name| *name != "help") {
        let text = help(&[command]);
        assert!(text.contains("Examples:"), "{command}");
        for below in commands(&text).iter().filter(|name| *name != "help") {
            assert!(help(&[command, below]).contains("Examples:"), "{command} {below}");
        }
    }
}

/// Half of it was printed, and the exit code said that all was well.
#[test]
fn help_that_cannot_be_written_is_an_error() {
    for args in [&["--help"][..], &["help", "serve"], &["--version"]] {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ran = Ran::from(quipu(args).stdout(full).output().unwrap());
        ran.fails(9).says("cannot write the output");
    }
}
