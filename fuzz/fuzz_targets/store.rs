//! A golden store with one of its files damaged: it is opened, read, verified and printed without a panic, and no reader
//! gets a record that was not written.
//!
//! The input is that of [`quipu_fuzz::damage`]. It runs without guidance by compares (`-use_cmp=0`), by which the fuzzer
//! would learn to make right checksums: then anything can be written.
#![no_main]

use std::path::Path;
use std::sync::Arc;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use quipu_fuzz::damage::{of_input, planted};
use quipu_storage::dump::{DumpOptions, dump_store};
use quipu_storage::verify::{VerifyOptions, verify};
use quipu_storage::{Error, Offset, Start, Store, StoreSettings};
use quipu_tests::golden::{Expected, Golden, stores};
use quipu_tests::sim::SimDisk;

static STORES: LazyLock<[Golden; 2]> = LazyLock::new(stores);

fn check(disk: &SimDisk, golden: &Golden, first: &Expected) {
    let root = Path::new("/store");
    let mut text = Vec::new();
    let _ = dump_store(root, disk, DumpOptions::default(), &mut text);
    let report = verify(root, Arc::new(disk.clone()), VerifyOptions::default());
    let settings = StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 256 << 10,
        append_bytes_max: 16 << 10,
        reserve_bytes: 0,
        background: false,
        ..StoreSettings::default()
    };
    let open =
        || Store::builder().disk(Arc::new(disk.clone())).settings(settings.clone()).create(false).open(root);
    let is_readable = report.as_ref().is_ok_and(|report| report.is_readable());
    // The second time from what the first one left.
    for _ in 0..2 {
        let store = match open() {
            Ok(store) => store,
            Err(error) => {
                assert!(!is_readable, "verified, and yet: {error}");
                return;
            }
        };
        for topic in store.topics() {
            let expected = golden.topics.get(topic.name().as_str());
            let mut last = None;
            for record in topic.read(Start::Earliest).into_iter().flatten() {
                let record = match record {
                    Ok(record) => record,
                    Err(Error::Corrupt { .. } | Error::OffsetTrimmed { .. }) if !is_readable => continue,
                    Err(error) => {
                        assert!(!is_readable, "verified, and yet: {error}");
                        break;
                    }
                };
                assert!(last < Some(record.offset()), "offsets rise");
                last = Some(record.offset());
                let found = (record.offset().0, record.append_time().0, record.view().to_record());
                // A damaged journal may have lost the trim of the first one.
                let was_written = expected.is_some_and(|expected| expected.contains(&found))
                    || topic.name().as_str() == "orders" && first.contains(&found);
                assert!(was_written, "{} holds a record that was not written: {found:?}", topic.name());
            }
            topic.read_backwards(Offset::MAX).take(100).for_each(drop);
        }
        let _ = store.checkpoint();
        let _ = store.close();
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((number, file, damage)) = of_input(input) else { return };
    let golden = &STORES[number];
    let first = &STORES[0].topics["orders"];
    check(&planted(Path::new("/store"), golden, file, &damage), golden, first);
});
