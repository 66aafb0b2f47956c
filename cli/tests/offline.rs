//! Directories without a server: verify, dump, inspect, status.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod common;

use common::{Place, files, filled, quipu};
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
    place.run(&["dump", "/nowhere"]).fails(1).says("/nowhere");
    Place::new().run(&["dump"]).fails(3);
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
