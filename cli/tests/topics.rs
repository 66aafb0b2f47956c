//! Topics on a directory, through the real binary.

#![allow(clippy::unwrap_used, reason = "a test ends there")]

mod common;

use common::Place;
use serde_json::{Value, json};

fn describe(place: &Place, topic: &str) -> Value {
    serde_json::from_slice(&place.run(&["topics", "describe", topic, "--json"]).ok().stdout).unwrap()
}

#[test]
fn topics_are_created_listed_described_altered_and_deleted() {
    let place = Place::new();
    place
        .run(&["topics", "create", "eu/orders", "--retention-age-max", "30d", "--codec", "lz4", "--compact"])
        .ok();
    place.run(&["topics", "create", "eu/orders"]).fails(4).says("already");
    place.run(&["topics", "create", "eu/orders", "--if-missing"]).ok();
    let ran = place.run(&["topics", "create", "eu/orders", "--if-missing", "--json"]).ok();
    assert_eq!(serde_json::from_slice::<Value>(&ran.stdout).unwrap()["name"], "eu/orders");
    place.run(&["topics", "create", "logs", "--segment-bytes-max", "1MiB"]).ok();
    assert_eq!(place.run(&["topics", "list", "--json"]).ok().lines().len(), 2);
    assert_eq!(place.run(&["topics", "list", "eu/", "--json"]).ok().lines().len(), 1);
    let orders = describe(&place, "eu/orders");
    assert_eq!(orders["settings"]["codec"], "lz4");
    assert_eq!(orders["settings"]["retention"]["age_max_ms"], 30 * 86_400_000_u64);
    assert_eq!(orders["settings"]["compaction"]["records_per_key"], 1);
    place
        .run(&[
            "topics",
            "alter",
            "eu/orders",
            "--retention-age-max",
            "none",
            "--retention-bytes-max",
            "1GiB",
            "--compaction-lag-min",
            "1h",
        ])
        .ok();
    let orders = describe(&place, "eu/orders");
    assert_eq!(
        orders["settings"]["retention"],
        json!({"age_max_ms": null, "bytes_max": 1 << 30, "records_max": null})
    );
    assert_eq!(orders["settings"]["compaction"]["lag_min_ms"], 3_600_000);
    assert_eq!(orders["settings"]["codec"], "lz4");
    place.run(&["topics", "alter", "eu/orders", "--no-compact"]).ok();
    assert_eq!(describe(&place, "eu/orders")["settings"]["compaction"], Value::Null);
    place.run(&["topics", "describe", "logs"]).ok();
    place.run(&["topics", "delete", "logs"]).ok();
    place.run(&["topics", "delete", "logs"]).fails(3);
    for (topic, is_deleted) in [("logs", false), ("eu/orders", true)] {
        let ran = place.run(&["topics", "delete", topic, "--if-exists", "--json"]).ok();
        let value: Value = serde_json::from_slice(&ran.stdout).unwrap();
        assert_eq!(value, json!({"topic": topic, "deleted": is_deleted}));
    }
}

#[test]
fn a_list_without_rows_says_what_it_looked_for_and_one_of_a_thing_is_counted_as_one() {
    let place = Place::new();
    place.run(&["topics", "create", "eu/orders"]).ok();
    place.run(&["topics", "list", "us/"]).ok().says("no topic whose name begins with us/");
    place.feed(&["publish", "eu/orders"], "one\n").ok().says("published 1 record,");
    place
        .feed(&["publish", "eu/orders", "--dry-run"], "two\n")
        .ok()
        .says("1 record could be published")
        .says("dry run");
    let verified = place.run(&["verify"]).ok().text();
    assert!(verified.contains("1 topic, 1 segment, 1 batch, 1 record,"), "{verified}");
    let verified = place.run(&["topics", "verify", "eu/orders"]).ok().text();
    assert!(verified.contains("1 record in 1 batch and 1 segment"), "{verified}");
    let drawn = place.run(&["inspect"]).ok().text();
    assert!(drawn.contains("1 segment,"), "{drawn}");
    place.run(&["topics", "delete", "eu/orders"]).ok();
    place.run(&["topics", "list"]).ok().says("there are no topics");
}

#[test]
fn a_trimmed_topic_starts_where_it_was_trimmed_to() {
    let place = Place::new();
    place.feed(&["publish", "t", "--create"], "0\n1\n2\n3\n4\n").ok();
    place.run(&["topics", "trim", "t", "--before", "2"]).ok();
    assert_eq!(place.run(&["read", "t", "--raw"]).ok().lines(), ["2", "3", "4"]);
    place.run(&["read", "t", "--from", "0"]).fails(6).says("starts at 2").says("earliest");
    place.run(&["topics", "trim", "t", "--before", "-1"]).ok();
    assert_eq!(place.run(&["read", "t", "--raw"]).ok().lines(), ["4"]);
    place.run(&["topics", "trim", "t", "--before", "99"]).fails(6);
    place.run(&["topics", "trim", "t", "--before", "1d"]).ok();
    place.run(&["topics", "trim", "t", "--before", "latest"]).ok();
    assert_eq!(place.run(&["read", "t", "--raw"]).ok().stdout, b"");
}

#[test]
fn a_compacted_topic_keeps_the_latest_of_each_key_and_a_dry_run_keeps_all() {
    let place = Place::new();
    place.run(&["topics", "create", "t", "--compact", "--segment-bytes-max", "4KiB"]).ok();
    let input: String = (0..2000).map(|number| format!("k{}:{number}\n", number % 5)).collect();
    place.feed(&["publish", "t", "-K", ":", "--batch-records", "10"], input).ok();
    let report = place.run(&["topics", "compact", "t", "--dry-run", "--json"]).ok();
    let report: Value = serde_json::from_slice(&report.stdout).unwrap();
    let forecast = report["records_removed"]["superseded"].as_u64().unwrap();
    assert!(forecast > 1000, "{report}");
    let text = place.run(&["topics", "compact", "t", "--dry-run"]).ok().text();
    for words in ["records would go; 5 keys", "would become", "nothing was changed"] {
        assert!(text.contains(words), "{text}");
    }
    assert_eq!(place.run(&["read", "t", "--raw"]).ok().lines().len(), 2000);
    place.run(&["topics", "compact", "t"]).ok();
    let left = place.run(&["read", "t", "--raw"]).ok().lines();
    assert_eq!(left.len() as u64, 2000 - forecast);
    assert_eq!(left[left.len() - 5..], ["1995", "1996", "1997", "1998", "1999"]);
    place.run(&["topics", "verify", "t"]).ok();
    place.run(&["topics", "create", "u"]).ok();
    place.run(&["topics", "compact", "u"]).fails(2);
}
