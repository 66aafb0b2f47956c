//! The scripts in `tests/tools` find the bugs planted in the small log, and stay green on it without them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::path::Path;
use std::process::Command;

#[test]
fn every_tool_finds_the_planted_bugs_and_nothing_else() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tools/self_test.sh");
    let Some(said) = common::said(&Command::new(script).arg(common::TINYLOG).output().unwrap()) else {
        return;
    };
    assert_eq!(said.code, Some(0), "{}\n{}", said.out, said.err);
}
