//! The contract with clients, held still: what they use is not removed or changed, and the files keep the usual rules.
//!
//! `contract.txt` lists every message, field, enum value, service and method. What is missing from the files, or different,
//! breaks a client that is out there: give it a new name and a new number instead. What is new must be added:
//!
//! ```text
//! QUIPU_ADD_TO_CONTRACT=1 cargo test -p quipu-proto
//! ```

#![allow(clippy::unwrap_used, reason = "a test may")]

#[path = "contract/lint.rs"]
mod lint;
#[path = "contract/listing.rs"]
mod listing;

use std::collections::BTreeSet;
use std::path::Path;

use prost::Message;
use prost_types::FileDescriptorSet;

fn ours() -> FileDescriptorSet {
    FileDescriptorSet::decode(quipu_proto::DESCRIPTORS).unwrap()
}

/// The descriptors of one file with this text.
fn compiled(text: &str) -> FileDescriptorSet {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("quipu/v1/test.proto");
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(&path, text).unwrap();
    protox::compile(["quipu/v1/test.proto"], [dir.path()]).unwrap()
}

#[test]
fn nothing_that_clients_use_is_removed_or_changed() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/contract/contract.txt");
    let promised = std::fs::read_to_string(&path).unwrap_or_default();
    let promised: BTreeSet<&str> = promised.lines().collect();
    let listing = listing::of(&ours());
    let now: BTreeSet<&str> = listing.iter().map(String::as_str).collect();
    let broken: Vec<_> = promised.difference(&now).collect();
    assert!(broken.is_empty(), "removed or changed, which breaks clients: {broken:#?}");
    let new: Vec<_> = now.difference(&promised).collect();
    if !new.is_empty() && std::env::var_os("QUIPU_ADD_TO_CONTRACT").is_some() {
        let text: String = listing.iter().map(|line| format!("{line}\n")).collect();
        std::fs::write(&path, text).unwrap();
        return;
    }
    assert!(new.is_empty(), "new: set QUIPU_ADD_TO_CONTRACT=1 to promise it from now on: {new:#?}");
}

#[test]
fn the_files_keep_the_usual_rules() {
    let found = lint::check(&ours());
    assert!(found.is_empty(), "{found:#?}");
}

const GOOD: &str = r#"syntax = "proto3";
package quipu.v1;
// A service.
service TestService {
  // A method.
  rpc Look(LookRequest) returns (stream LookResponse);
}
// A request.
message LookRequest {
  // A field.
  repeated uint64 numbers = 1;
  // One of them.
  oneof choice {
    // The first.
    string name = 2;
    // The second.
    Kind kind = 3;
  }
  // Absent means something.
  optional bool flag = 4;
  // An enum.
  enum Kind {
    // Never sent.
    KIND_UNSPECIFIED = 0;
    // One.
    KIND_ONE = 1;
  }
}
// A response.
message LookResponse {
  // A map.
  map<string, uint64> counts = 1;
}
"#;

#[test]
fn every_change_that_breaks_a_client_shows_in_the_listing() {
    let before = listing::of(&compiled(GOOD));
    for (old, new) in [
        ("package quipu.v1", "package quipu.v2"),
        ("service TestService", "service OtherService"),
        ("rpc Look(", "rpc See("),
        ("returns (stream", "returns ("),
        ("Look(LookRequest)", "Look(stream LookRequest)"),
        ("Look(LookRequest)", "Look(LookResponse)"),
        ("repeated uint64", "repeated fixed64"),
        ("repeated uint64", "uint64"),
        ("numbers = 1;", "numbers = 9;"),
        ("numbers = 1;", "figures = 1;"),
        ("numbers = 1;", "numbers = 1 [packed = false];"),
        ("numbers = 1;", "numbers = 1 [json_name = \"n\"];"),
        ("optional bool", "bool"),
        ("oneof choice", "oneof pick"),
        ("  repeated uint64 numbers = 1;\n", ""),
        ("KIND_ONE = 1", "KIND_ONE = 2"),
        ("KIND_ONE = 1", "KIND_TWO = 1"),
        ("map<string, uint64>", "map<string, uint32>"),
    ] {
        assert!(GOOD.contains(old), "{old}");
        let after = listing::of(&compiled(&GOOD.replacen(old, new, 1)));
        assert!(before.iter().any(|line| !after.contains(line)), "{old} -> {new}");
    }
    let more = GOOD.replace("  // Absent means", "  // New.\n  bytes more = 5;\n  // Absent means");
    let after = listing::of(&compiled(&more));
    assert!(before.iter().all(|line| after.contains(line)), "what is new breaks nobody");
}

#[test]
fn each_rule_finds_what_breaks_it() {
    assert_eq!(lint::check(&compiled(GOOD)), [] as [String; 0]);
    for (old, new, rule) in [
        ("package quipu.v1", "package quipu.first", "is not the directory"),
        ("// A service.", "", "has no comment"),
        ("// A method.", "", "has no comment"),
        ("// A request.", "", "has no comment"),
        ("// A field.", "", "has no comment"),
        ("// One of them.", "", "has no comment"),
        ("// An enum.", "", "has no comment"),
        ("// One.", "", "has no comment"),
        ("TestService", "Test", "does not end with Service"),
        ("numbers", "Numbers", "is not lower_snake_case"),
        ("oneof choice", "oneof Choice", "is not lower_snake_case"),
        ("LookResponse", "Look_Response", "is not PascalCase"),
        ("LookResponse", "Look_Response", "is not called LookResponse"),
        ("Look(LookRequest)", "Look(LookResponse)", "is not called LookRequest"),
        ("KIND_UNSPECIFIED", "KIND_NONE", "is not called KIND_UNSPECIFIED"),
        ("KIND_ONE", "ONE", "does not begin with KIND_"),
        ("KIND_ONE", "KIND_One", "is not UPPER_SNAKE_CASE"),
        ("KIND_ONE = 1;", "KIND_ONE = 1; KIND_UNO = 1; option allow_alias = true;", "has two names"),
    ] {
        assert!(GOOD.contains(old), "{old}");
        let text = GOOD.replace(old, new);
        let found = lint::check(&compiled(&text));
        assert!(found.iter().any(|found| found.contains(rule)), "{old} -> {new}: {found:?}");
    }
    let found = lint::check(&compiled("syntax = \"proto2\";\npackage quipu.v1;"));
    assert!(found[0].contains("is not proto3"), "{found:?}");
    let shared = "  // The same message.\n  rpc See(LookRequest) returns (SeeResponse);\n}\n// Another.\nmessage SeeResponse {}";
    let found = lint::check(&compiled(&GOOD.replacen("}", shared, 1)));
    assert!(found.iter().any(|found| found.contains("is used by")), "{found:?}");
}
