//! A golden store with one of its files damaged: it is opened, read, verified and printed without a panic, and no reader
//! gets a record that was not written.
//!
//! Input: which store, which file, how (see [`Damage`]), where (2 bytes), and the bytes. It runs without guidance by
//! compares (`-use_cmp=0`), by which the fuzzer would learn to make right checksums: then anything can be written.
#![no_main]

use std::path::Path;
use std::sync::Arc;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use quipu_storage::disk::Disk;
use quipu_storage::dump::{DumpOptions, dump_store};
use quipu_storage::verify::{VerifyOptions, verify};
use quipu_storage::{Error, Offset, Start, Store, StoreSettings};
use quipu_tests::golden::{Expected, Golden, stores};
use quipu_tests::sim::SimDisk;

static STORES: LazyLock<[Golden; 2]> = LazyLock::new(stores);

enum Damage<'a> {
    /// The bytes stand at that place.
    Overwrite(u64, &'a [u8]),
    /// The bytes are the file.
    Replace(&'a [u8]),
    /// The file ends there.
    Cut(u64),
    /// The file is gone.
    Lose,
}

fn planted(golden: &Golden, file: u8, damage: &Damage<'_>) -> SimDisk {
    let disk = SimDisk::new();
    let root = Path::new("/store");
    disk.create_dir(root).expect("the disk is empty");
    for path in golden.files.keys() {
        let mut dir = root.to_path_buf();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            disk.create_dir(&dir).expect("it is there or can be made");
        }
    }
    let chosen = usize::from(file) % golden.files.len();
    for (number, (path, bytes)) in golden.files.iter().enumerate() {
        let mut bytes = bytes.clone();
        let path = root.join(path);
        if number == chosen {
            match *damage {
                Damage::Overwrite(at, with) => {
                    let at = usize::try_from(at).expect("two bytes") % bytes.len();
                    let end = (at + with.len()).min(bytes.len());
                    bytes[at..end].copy_from_slice(&with[..end - at]);
                }
                Damage::Replace(with) => bytes = with.to_vec(),
                Damage::Cut(at) => bytes.truncate(usize::try_from(at).expect("two bytes")),
                Damage::Lose => continue,
            }
        }
        disk.plant_file(path, &bytes).expect("its directory was made");
    }
    disk
}

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
    let [store, file, how, low, high, bytes @ ..] = input else { return };
    let place = u64::from(u16::from_le_bytes([*low, *high]));
    let damage = match how % 8 {
        0..5 => Damage::Overwrite(place, bytes),
        5 => Damage::Replace(bytes),
        6 => Damage::Cut(place),
        _ => Damage::Lose,
    };
    let golden = &STORES[usize::from(store % 2)];
    let first = &STORES[0].topics["orders"];
    check(&planted(golden, *file, &damage), golden, first);
});
