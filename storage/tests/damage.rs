//! Damaged files, as their users meet them: what is gone is named, and everything else is delivered.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use quipu_storage::{
    CompactOptions, Compaction, CompactionControl, CompactionReport, Error, Offset, Record, Start, Store,
    StoreSettings, StoredRecord, Topic, TopicSettings,
};

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

/// Reading backwards stopped at the first damage of a segment, counted from its beginning, and then went on below it:
/// what was intact above it was never delivered, and no error named it.
#[test]
fn reading_backwards_delivers_what_is_intact_on_both_sides_of_damage() {
    for damaged in [&[6][..], &[5], &[9], &[6, 7], &[5, 6, 8], &[0, 19]] {
        let dir = closed();
        for &offset in damaged {
            let path = &segments(dir.path())[offset / 5];
            let mut bytes = fs::read(path).unwrap();
            let at = end_of(&bytes, offset % 5);
            // Header or body.
            bytes[at + if offset % 2 == 0 { 9 } else { 500 }] ^= 1;
            fs::write(path, bytes).unwrap();
        }
        let store = open(dir.path());
        let topic = store.topic("t").unwrap();
        let intact = (0..20).filter(|offset| !damaged.contains(&(*offset as usize)));
        let intact: Vec<u64> = intact.collect();
        let (delivered, named) = outcome(topic.read_backwards(Offset::MAX));
        assert_eq!(delivered, intact.iter().rev().copied().collect::<Vec<_>>(), "{damaged:?}");
        assert_eq!(named.iter().map(|range| range.end.0 - range.start.0).sum::<u64>(), damaged.len() as u64);
        assert_eq!(read(&topic).0, intact, "{damaged:?}");
    }
}

/// An iterator repeated for ever that its topic was deleted.
#[test]
fn an_iterator_ends_after_an_error_that_it_cannot_go_on_behind() {
    let dir = closed();
    let store = open(dir.path());
    let topic = store.topic("t").unwrap();
    let mut iterators: [Box<dyn Iterator<Item = quipu_storage::Result<StoredRecord>>>; 4] = [
        Box::new(topic.read(Start::Earliest).unwrap()),
        Box::new(topic.read_backwards(Offset::MAX)),
        Box::new(topic.follow(Start::Earliest).unwrap()),
        Box::new(topic.follow(Start::Latest).unwrap()),
    ];
    store.delete_topic("t").unwrap();
    for iterator in &mut iterators {
        assert!(matches!(iterator.next(), Some(Err(Error::TopicNotFound { .. }))));
        assert!(iterator.next().is_none());
        assert!(iterator.next().is_none());
    }
}

fn compact(topic: &Topic) -> CompactionReport {
    // Small segments are put together.
    topic.alter(&TopicSettings { segment_bytes_max: 64 << 10, ..topic.settings() }).unwrap();
    let options = CompactOptions { compaction: Some(Compaction::default()), ..CompactOptions::default() };
    topic.compact_with(&options, &CompactionControl::new()).unwrap()
}

/// Compaction named all of a segment that had been cut between two batches, whose records were still there to be read.
#[test]
fn compaction_leaves_a_segment_that_was_cut_as_it_is_and_names_what_is_missing() {
    let dir = closed();
    let path = &segments(dir.path())[1];
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..end_of(&bytes, 3)]).unwrap();
    let store = open(dir.path());
    let topic = store.topic("t").unwrap();
    let report = compact(&topic);
    assert_eq!(report.damaged.len(), 1, "{report:?}");
    assert_eq!(report.damaged[0].offsets, Offset(8)..Offset(10));
    assert_eq!(read(&topic).1, [Offset(8)..Offset(10)]);
}

/// A later segment's file in the place of one that compaction had written passed for what compaction had left of it: its
/// records were delivered, and those that belong there were missing without a word.
#[test]
fn a_batch_of_a_later_segment_in_a_rewritten_one_is_damage() {
    let dir = closed();
    let store = open(dir.path());
    compact(&store.topic("t").unwrap());
    store.close().unwrap();
    drop(store);
    let topic_dir = dir.path().join("topics/00000001");
    let name =
        |base_offset: u64, rewrites: u32| topic_dir.join(format!("{base_offset:020}-{rewrites}.segment"));
    fs::copy(name(15, 0), name(0, 1)).unwrap();
    let store = open(dir.path());
    let (delivered, damaged) = read(&store.topic("t").unwrap());
    assert_eq!(delivered, (15..20).collect::<Vec<_>>());
    assert_eq!(damaged, [Offset(0)..Offset(15)]);
}

/// The search behind a damaged header read on to the end that it took each eighth byte to claim: for six megabytes that
/// do not compress it took minutes, and as long again for each reader.
#[test]
fn a_search_behind_damage_reads_what_it_passes_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    let mut number = 1_u64;
    let noise: Vec<u8> = std::iter::repeat_with(|| {
        // xorshift64
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
        number.to_le_bytes()
    })
    .take(6 << 17)
    .flatten()
    .collect();
    topic.append(&[Record::new(noise)]).unwrap();
    topic.append(&[Record::new("001x")]).unwrap();
    store.close().unwrap();
    drop((topic, store));
    let path = dir.path().join(format!("topics/00000001/{:020}-0.segment", 0));
    let mut bytes = fs::read(&path).unwrap();
    bytes[HEADER_BYTES + 9] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = open(dir.path());
    assert_eq!(read(&store.topic("t").unwrap()), (vec![1], vec![Offset(0)..Offset(1)]));
}
