//! Whole topics to files and back, and files that are not whole any more.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod common;

use std::path::Path;

use common::{Place, Ran, feed, files, filled, quipu};
use serde_json::Value;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn topics(place: &Place) -> Vec<String> {
    place.run(&["topics", "list", "--json"]).ok().lines()
}

#[test]
fn a_topic_that_was_exported_and_imported_is_the_same_to_the_last_byte() {
    let place = Place::new();
    filled(&place);
    let file = place.path("t.ndjson");
    place.run(&["export", "t", text(&file)]).ok().says("5 records");
    let other = Place::new();
    other.run(&["import", "t", text(&file)]).ok().says("5 records");
    assert_eq!(
        other.run(&["read", "t", "--json"]).ok().stdout,
        place.run(&["read", "t", "--json"]).ok().stdout
    );
    // Settings too; and through pipes.
    let again = other.run(&["export", "t"]).ok();
    assert_eq!(again.stdout, std::fs::read(&file).unwrap());
    let third = Place::new();
    third.feed(&["import", "t"], &again.stdout).ok();
    assert_eq!(third.run(&["export", "t"]).ok().stdout, again.stdout);
    // What is there is not overwritten.
    place.run(&["export", "t", text(&file)]).fails(4).says("exists");
    other.run(&["import", "t", text(&file)]).fails(4).says("already");
    assert_eq!(other.run(&["export", "t"]).ok().stdout, again.stdout);
}

#[test]
fn a_topic_goes_through_segment_files_as_well() {
    let place = Place::new();
    filled(&place);
    let lines = place.run(&["export", "t"]).ok().stdout;
    let dir = place.path("t-export");
    place.run(&["export", "t", text(&dir), "--format", "segments"]).ok().says("5 records");
    let other = Place::new();
    let ran = other.run(&["import", "t", text(&dir), "--json"]).ok();
    assert_eq!(serde_json::from_slice::<Value>(&ran.stdout).unwrap()["records"], 5);
    assert_eq!(other.run(&["export", "t"]).ok().stdout, lines);
    // They are what a store keeps: what dumps segments dumps them.
    let segment = files(&dir).into_iter().find(|(path, _)| path.extension().unwrap() == "segment").unwrap().0;
    let dump = feed(quipu(&["dump", text(&segment)]), "").ok().text();
    assert!(dump.contains("footer, offsets 0 to 5 (exclusive), 5 records") && !dump.contains('!'), "{dump}");
    place.run(&["export", "t", text(&dir), "-F", "segments"]).fails(4).says("exists");
    place.run(&["export", "t", "-F", "segments"]).fails(2).says("directory");
    // A topic without records, and one that begins later.
    place.run(&["topics", "create", "empty"]).ok();
    let dir = place.path("empty");
    place.run(&["export", "empty", text(&dir), "-F", "segments"]).ok();
    other.run(&["import", "empty", text(&dir)]).ok().says("0 records");
    place.run(&["topics", "trim", "t", "--before", "2"]).ok();
    let dir = place.path("trimmed");
    place.run(&["export", "t", text(&dir), "-F", "segments"]).ok();
    other.run(&["import", "u", text(&dir)]).fails(11).says("offset 2, but 0 is next").says("--renumber");
    other.run(&["import", "u", text(&dir), "--renumber"]).ok();
    assert_eq!(other.run(&["read", "u", "-f", "%o "]).ok().text(), "0 1 2 ");
}

#[test]
fn offsets_that_cannot_be_kept_are_refused_unless_new_ones_will_do() {
    let place = Place::new();
    filled(&place);
    place.run(&["topics", "trim", "t", "--before", "2"]).ok();
    let export = place.run(&["export", "t"]).ok().stdout;
    let other = Place::new();
    other.feed(&["import", "t"], &export).fails(11).says("line 2").says("--renumber");
    // Half a topic is no import: nothing of it stays.
    other.run(&["read", "t"]).fails(3);
    other.feed(&["import", "t", "--renumber"], &export).ok();
    assert_eq!(other.run(&["read", "t", "-f", "%o "]).ok().text(), "0 1 2 ");
}

// An emptied topic came back at offset 0, without a word.
#[test]
fn an_export_without_records_keeps_its_place_or_is_refused() {
    let place = Place::new();
    filled(&place);
    place.run(&["topics", "trim", "t", "--before", "latest"]).ok();
    let export = place.run(&["export", "t"]).ok().stdout;
    let dir = place.path("emptied");
    place.run(&["export", "t", text(&dir), "-F", "segments"]).ok();
    let other = Place::new();
    other.feed(&["import", "t"], &export).fails(11).says("the topic was trimmed").says("--renumber");
    other.run(&["import", "t", text(&dir)]).fails(11).says("the topic was trimmed");
    other.run(&["read", "t"]).fails(3);
    other.feed(&["import", "t", "--renumber"], &export).ok();
    assert_eq!(other.run(&["read", "t"]).ok().text(), "");
}

// An export that was cut off at the end of a line was imported as if it were whole.
#[test]
fn an_export_that_is_cut_off_anywhere_is_refused_and_changes_nothing() {
    let place = Place::new();
    filled(&place);
    let export = place.run(&["export", "t"]).ok().stdout;
    let ends: Vec<usize> =
        export.iter().enumerate().filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at + 1).collect();
    assert_eq!(ends.len(), 7);
    let whole = export.len() - 1;
    let cuts = ends[..6].iter().copied().chain([0, 1, ends[0] - 1, ends[2] + 9, ends[5] + 3, whole - 1]);
    let other = Place::new();
    other.run(&["topics", "create", "other"]).ok();
    let before = topics(&other);
    for cut in cuts {
        let file = other.file("cut.ndjson", &export[..cut]);
        let ran = other.run(&["import", "t", &file]).fails(11);
        // It was found before anything was written.
        assert!(!ran.stderr.contains("imported"), "{cut}: {}", ran.stderr);
        assert_eq!(topics(&other), before);
        let ran = other.feed(&["import", "t"], &export[..cut]).fails(11);
        assert!(ran.stderr.contains("standard input"), "{cut}: {}", ran.stderr);
        assert_eq!(topics(&other), before);
    }
    // From a pipe it is known only at its end: it is said what became of the batches that were appended.
    let ran = other.feed(&["import", "t"], &export[..ends[3]]).fails(11);
    ran.says("is cut off behind line 4").says("2 records had been imported and were deleted again");
    // Without the last line's end it is whole.
    other.feed(&["import", "t"], &export[..whole]).ok();
}

#[test]
fn an_export_with_another_byte_anywhere_is_refused() {
    let place = Place::new();
    filled(&place);
    let export = String::from_utf8(place.run(&["export", "t"]).ok().stdout).unwrap();
    let other = Place::new();
    other.run(&["topics", "create", "other"]).ok();
    let before = topics(&other);
    let lines: Vec<&str> = export.lines().collect();
    let joined = |lines: &[&str]| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
    for (changed, says) in [
        (export.replace("\"one\"", "\"eno\""), "it was changed"),
        (export.replace("lz4", "none"), "it was changed"),
        (export.replace('\n', "\r\n"), "it was changed"),
        (export.replace("\"records\":5", "\"records\":4"), "its end says 4"),
        (export.replace("\"next_offset\":5", "\"next_offset\":6"), "up to offset 6"),
        (export.replace("crc32\":\"", "crc32\":\"x"), "its end, is damaged"),
        (joined(&[lines[0], lines[1], lines[3], lines[4], lines[5], lines[6]]), "it was changed"),
        (joined(&[lines[0], lines[2], lines[1], lines[3], lines[4], lines[5], lines[6]]), "it was changed"),
        (format!("{export}{}\n", lines[1]), "goes on behind its end"),
        (joined(&lines[1..]), "first line"),
    ] {
        let file = other.file("changed.ndjson", &changed);
        other.run(&["import", "t", &file]).fails(11).says(says);
        other.feed(&["import", "t"], &changed).fails(11);
        assert_eq!(topics(&other), before, "{says}");
    }
    // Whoever knows what he does.
    let file = other.file("changed.ndjson", export.replace("\"one\"", "\"eno\""));
    other.run(&["import", "t", &file, "--unchecked"]).ok().says("5 records");
    other.run(&["import", "u", &file, "--unchecked"]).ok();
    other.feed(&["import", "v", "--unchecked"], "{\"payload\":\"a\"}\n{\"payload\":\"b\"}\n").ok();
    assert_eq!(other.run(&["read", "v", "--raw"]).ok().text(), "a\nb\n");
}

#[test]
fn segments_that_are_not_whole_are_refused_before_anything_is_written() {
    let place = Place::new();
    filled(&place);
    let dir = place.path("export");
    place.run(&["export", "t", text(&dir), "-F", "segments"]).ok();
    let whole = files(&dir);
    let segment = whole.iter().find(|(path, _)| path.extension().unwrap() == "segment").unwrap().clone();
    let list = whole.iter().find(|(path, _)| path.ends_with("export.ndjson")).unwrap().clone();
    let other = Place::new();
    other.run(&["topics", "create", "other"]).ok();
    let before = topics(&other);
    let refused = |says: &str| -> Ran {
        let ran = other.run(&["import", "t", text(&dir)]).fails(11).says(says);
        assert_eq!(topics(&other), before);
        for (path, bytes) in &whole {
            std::fs::write(path, bytes).unwrap();
        }
        ran
    };
    std::fs::remove_file(&list.0).unwrap();
    refused("export.ndjson, which is written last, is missing");
    std::fs::remove_file(&segment.0).unwrap();
    refused("it is missing");
    std::fs::write(&segment.0, &segment.1[..segment.1.len() - 1]).unwrap();
    refused("bytes, not");
    for at in [0, 70, segment.1.len() / 2, segment.1.len() - 1] {
        let mut bytes = segment.1.clone();
        bytes[at] ^= 1;
        std::fs::write(&segment.0, bytes).unwrap();
        refused("it was changed");
    }
    let line = list.1.iter().position(|byte| *byte == b'\n').unwrap();
    std::fs::write(&list.0, &list.1[..=line]).unwrap();
    refused("cut off behind line 1");
    let hostile = String::from_utf8(list.1.clone()).unwrap().replace("00000000000000000000.segment", "../x");
    std::fs::write(&list.0, hostile).unwrap();
    refused("is no name of a segment");
    other.run(&["import", "t", text(&dir), "--unchecked"]).fails(2).says("always checked");
    other.run(&["import", "t", text(&dir)]).ok();
}

#[test]
fn an_export_that_fails_leaves_no_file_behind() {
    let place = Place::new();
    filled(&place);
    let (path, mut bytes) = files(&place.store())
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|name| name == "segment"))
        .unwrap();
    bytes[120] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    for (name, format) in [("t.ndjson", "ndjson"), ("t-export", "segments")] {
        let path = place.path(name);
        place.run(&["export", "t", text(&path), "--format", format]).fails(8).says("damaged");
        assert!(!path.exists());
    }
    place.run(&["export", "t", "/nowhere/t.ndjson"]).fails(3).says("/nowhere");
}

#[test]
fn a_malformed_export_leaves_nothing_behind() {
    let place = Place::new();
    place.run(&["topics", "create", "other"]).ok();
    for (input, says) in [
        ("", "empty"),
        ("{\"quipu_export\":3}\n", "newer"),
        ("{\"quipu_export\":1,\"settings\":null}\n", "have no end"),
        ("{\"quipu_export\":2,\"settings\":{\"codec\":\"gzip\"}}\n", "gzip"),
        ("{\"quipu_export\":2,\"settings\":{\"segment_bytes_max\":\"big\"}}\n", "no number"),
        ("{\"payload\":\"a\"}\n", "publish --format ndjson"),
        ("[]\n", "first line"),
    ] {
        place.feed(&["import", "t"], input).fails(11).says(says);
        place.run(&["read", "t"]).fails(3);
    }
    for (input, says) in [
        ("{\"payload\":\"a\"}\nno json\n", "line 2"),
        ("{\"payload\":\"a\",\"offset\":0}\n{\"payload\":\"b\",\"offset\":0}\n", "line 2"),
        ("{\"payload_base64\":\"*\"}\n", "base64"),
        ("[]\n", "no object"),
    ] {
        place.feed(&["import", "t", "--unchecked"], input).fails(11).says(says);
        place.run(&["read", "t"]).fails(3);
    }
    place.run(&["import", "t", "/nowhere"]).fails(3);
}
