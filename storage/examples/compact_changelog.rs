//! A changelog: the topic keeps every change of every account, compaction leaves the latest of each.
//!
//! Run it with `cargo run -p quipu-storage --example compact_changelog`.
#![allow(clippy::print_stdout, reason = "an example shows what it does")]

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use quipu_storage::{
    CompactOptions, Compaction, CompactionControl, Durability, Record, Start, Store, Topic, TopicSettings,
};

const ACCOUNTS: u64 = 100;
const CHANGES: u64 = 10_000;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path())?;
    let settings = TopicSettings {
        // Small, so that there are many segments in this example: only sealed ones are compacted.
        segment_bytes_max: 64 << 10,
        compaction: Some(Compaction {
            // How long followers have to learn that an account was closed: in this example, no time at all.
            tombstone_age_max: Duration::ZERO,
            ..Compaction::default()
        }),
        ..TopicSettings::default()
    };
    let balances = store.create_topic("balances", settings)?;

    for n in 0..CHANGES {
        let account = format!("account {}", n * 7 % ACCOUNTS);
        let record = Record::keyed(account, format!("balance {n}"));
        balances.append_with(&[record], Durability::Written)?;
    }
    // A record of a key without a payload says that the key is gone.
    balances.append(&[Record::tombstone("account 0"), Record::tombstone("account 1")])?;
    // What comes behind fills some more segments, so that all of the above lies in sealed ones.
    let mut filler = Vec::new();
    for n in 0..1000 {
        filler.push(Record::new(format!("{n:0>200}")));
    }
    balances.append(&filler)?;
    balances.append(&filler)?;

    let before = state(&balances)?;
    let records_before = balances.read(Start::Earliest)?.count();

    // What would go?
    let look = CompactOptions { dry_run: true, ..CompactOptions::default() };
    let forecast = balances.compact_with(&look, &CompactionControl::new())?;
    println!("would remove {} records", forecast.records_removed.total());
    assert_eq!(balances.read(Start::Earliest)?.count(), records_before);

    let report = balances.compact()?;
    println!(
        "{} of {} records stay, {} of {} bytes, {} keys, in {:?}",
        report.records_before - report.records_removed.total(),
        report.records_before,
        report.bytes_after,
        report.bytes_before,
        report.keys,
        report.duration,
    );

    // The state is the same, closed accounts are gone, offsets are what they were.
    assert_eq!(state(&balances)?, before);
    assert_eq!(forecast.records_removed, report.records_removed);
    assert_eq!(report.records_removed.superseded, CHANGES - (ACCOUNTS - 2));
    assert_eq!(report.records_removed.tombstone_expired, 2);
    assert!(report.bytes_after * 2 < report.bytes_before);
    assert_eq!(balances.log_end_offset().value(), CHANGES + 2 + 2000);
    let first = balances.read(Start::Earliest)?.next().ok_or("the topic is empty")??;
    assert_eq!(first.payload(), Some(format!("balance {}", first.offset()).as_bytes()));
    store.close()?;
    Ok(())
}

/// What the changelog comes to: the latest balance of each account.
fn state(changelog: &Topic) -> quipu_storage::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut state = BTreeMap::new();
    for record in changelog.read(Start::Earliest)? {
        let record = record?;
        match (record.key(), record.payload()) {
            (Some(key), Some(payload)) => drop(state.insert(key.to_vec(), payload.to_vec())),
            (Some(key), None) => drop(state.remove(key)),
            (None, _) => {}
        }
    }
    Ok(state)
}
