//! Damaged files, as their users meet them: what is gone is named, and everything else is delivered.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use quipu_storage::{Error, Offset, Record, Start, Store, StoreSettings, StoredRecord, Topic, TopicSettings};

const HEADER_BYTES: usize = 64;

fn open(dir: &Path) -> Store {
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    Store::builder().settings(settings).open(dir).unwrap()
}

/// A closed store with one topic of 20 records, one in a batch and five in a segment. The last segment is active.
fn closed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let settings = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", settings).unwrap();
    for number in 0..20 {
        topic.append(&[Record::new(format!("{number:03}{}", "x".repeat(690)))]).unwrap();
    }
    store.close().unwrap();
    dir
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("topics/00000001")).unwrap();
    let mut paths: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    assert_eq!(paths.len(), 4);
    paths
}

/// Where the first `count` batches of a segment end.
fn end_of(bytes: &[u8], count: usize) -> usize {
    (0..count).fold(HEADER_BYTES, |at, _| {
        let batch_bytes = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        at + batch_bytes.next_multiple_of(8)
    })
}

/// What an iterator delivers, and which ranges it says are damaged.
fn outcome(
    records: impl Iterator<Item = quipu_storage::Result<StoredRecord>>,
) -> (Vec<u64>, Vec<Range<Offset>>) {
    let (mut delivered, mut damaged) = (Vec::new(), Vec::new());
    for record in records {
        match record {
            Ok(record) => {
                let offset = record.offset().0;
                assert!(record.payload().unwrap().starts_with(format!("{offset:03}x").as_bytes()));
                delivered.push(offset);
            }
            Err(Error::Corrupt { offsets, .. }) => damaged.push(offsets),
            Err(error) => panic!("{error}"),
        }
    }
    (delivered, damaged)
}

fn read(topic: &Topic) -> (Vec<u64>, Vec<Range<Offset>>) {
    outcome(topic.read(Start::Earliest).unwrap())
}

/// A reader took what a cut had removed from the end of a segment for records that compaction had taken out, and went
/// on with the next segment without a word.
#[test]
fn a_segment_that_was_cut_between_two_batches_is_reported_with_the_offsets_that_are_missing() {
    for (number, missing) in [(0, 3..5), (2, 13..15), (3, 18..20)] {
        let dir = closed();
        let path = &segments(dir.path())[number];
        let bytes = fs::read(path).unwrap();
        fs::write(path, &bytes[..end_of(&bytes, 3)]).unwrap();
        let store = open(dir.path());
        let (delivered, damaged) = read(&store.topic("t").unwrap());
        assert_eq!(delivered, (0..20).filter(|offset| !missing.contains(offset)).collect::<Vec<_>>());
        assert_eq!(damaged, [Offset(missing.start)..Offset(missing.end)]);
        assert!(store.stats().damage_found > 0);
    }
}

/// A journal whose file had been cut behind a frame ended there as if nothing had been appended since: the store opened
/// without a word, and acknowledged records were gone.
#[test]
fn a_journal_file_that_was_cut_short_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    topic.append(&[Record::new("x".repeat(10_000))]).unwrap();
    store.checkpoint().unwrap();
    topic.append(&[Record::new("acknowledged")]).unwrap();
    // What a killed process leaves.
    let killed = tempfile::tempdir().unwrap();
    fs::create_dir(killed.path().join("journal")).unwrap();
    for name in ["checkpoint", "journal/000000.journal"] {
        fs::copy(dir.path().join(name), killed.path().join(name)).unwrap();
    }
    let path = killed.path().join("journal/000000.journal");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    // Behind the first frame, in it, and in the header.
    for bytes in [16 << 10 | 8, 8192, 4096, 72] {
        file.set_len(bytes).unwrap();
        let error = Store::open(killed.path()).unwrap_err();
        assert!(
            matches!(&error, Error::CorruptFile { path: named, .. } if *named == path),
            "{bytes}: {error}"
        );
    }
}
