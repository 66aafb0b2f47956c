//! Damage where the index of the segment is gone as well: nobody knows any more which keys, types and tags the damaged
//! records have. No reader may pass over them without a word, no revision may be given twice, and no condition be guessed.
//!
//! The index made anew just lacked them: readers by key and by filter skipped the damaged records, a revision was given a
//! second time, and `NoStream` held of a key that had records.
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use quipu_storage::{
    Append, Condition, Error, ExpectedRevision, FailedCheck, Filter, Offset, Record, Revision, Start, Store,
    StoreSettings, StoredRecord, StreamStart, Topic, TopicSettings, Visibility,
};

const HEADER_BYTES: usize = 64;
/// Every record has one of so many keys, and the tag of the same name.
const KEYS: u64 = 4;
const RECORDS: u64 = 20;
/// In a batch's body, and in its header.
const PLACES: [usize; 2] = [300, 20];

fn open(dir: &Path) -> Store {
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    Store::builder().settings(settings).open(dir).unwrap()
}

fn key(number: u64) -> String {
    format!("key-{}", number % KEYS)
}

/// A closed store with a topic of records that are one in a batch and five in a segment. The last segment is active.
fn closed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let settings = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", settings).unwrap();
    for number in 0..RECORDS {
        let payload = format!("{number:03}{}", "x".repeat(670));
        topic.append(&[Record::keyed(key(number), payload).with_tag(key(number))]).unwrap();
    }
    store.close().unwrap();
    dir
}

fn files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir.join("topics/00000001")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|one| one == extension)).collect();
    paths.sort();
    paths
}

/// Changes a byte in each of these records' batches, so far behind its beginning.
fn damage(dir: &Path, offsets: &[u64], byte: usize) {
    let segments = files(dir, "segment");
    assert_eq!(segments.len(), 4);
    for offset in offsets {
        let path = &segments[usize::try_from(offset / 5).unwrap()];
        let mut bytes = fs::read(path).unwrap();
        let mut at = HEADER_BYTES;
        for _ in 0..offset % 5 {
            let batch_bytes = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
            at += batch_bytes.next_multiple_of(8);
        }
        bytes[at + byte] ^= 1;
        fs::write(path, bytes).unwrap();
    }
}

fn remove_indexes(dir: &Path) {
    let indexes = files(dir, "terms");
    assert_eq!(indexes.len(), 3);
    indexes.iter().for_each(|path| fs::remove_file(path).unwrap());
}

/// What an iterator delivers, and which offsets it says are damaged.
fn outcome(records: impl Iterator<Item = quipu_storage::Result<StoredRecord>>) -> (Vec<u64>, Vec<u64>) {
    let (mut delivered, mut damaged) = (Vec::new(), Vec::new());
    for record in records {
        match record {
            Ok(record) => delivered.push(record.offset().0),
            Err(Error::Corrupt { offsets, .. }) => damaged.extend(offsets.start.0..offsets.end.0),
            Err(error) => panic!("{error}"),
        }
    }
    (delivered, damaged)
}

fn by_tag(tag: &str) -> Filter {
    Filter::new().tags([tag])
}

/// The same of a filter.
fn filtered(topic: &Topic, filter: &Filter) -> (Vec<u64>, Vec<u64>) {
    let mut cursor = topic.filtered_cursor(filter, Start::Earliest, Visibility::Synced).unwrap();
    let (mut delivered, mut damaged) = (Vec::new(), Vec::new());
    while cursor.next_offset() < cursor.visible_end() {
        match cursor.next_batch() {
            Ok(None) => {}
            Ok(Some(batch)) => {
                let matching = batch.records().map(Result::unwrap).filter(|(_, view)| filter.matches(view));
                delivered.extend(matching.map(|(offset, _)| offset.0));
            }
            Err(Error::Corrupt { offsets, .. }) => {
                damaged.extend(offsets.start.0..offsets.end.0);
                cursor.seek(offsets.end);
            }
            Err(error) => panic!("{error}"),
        }
    }
    (delivered, damaged)
}

fn filtered_backwards(topic: &Topic, filter: &Filter) -> (Vec<u64>, Vec<u64>) {
    let mut cursor = topic.filtered_backwards(filter, topic.high_watermark(), Visibility::Synced).unwrap();
    let (mut delivered, mut damaged) = (Vec::new(), Vec::new());
    while cursor.before() > topic.log_start_offset() {
        match cursor.previous_batch() {
            Ok(None) => {}
            Ok(Some(batch)) => {
                let matching = batch.records().map(Result::unwrap).filter(|(_, view)| filter.matches(view));
                delivered.extend(matching.map(|(offset, _)| offset.0));
            }
            Err(Error::Corrupt { offsets, .. }) => {
                damaged.extend(offsets.start.0..offsets.end.0);
                cursor.seek(offsets.start);
            }
            Err(error) => panic!("{error}"),
        }
    }
    delivered.reverse();
    damaged.reverse();
    (delivered, damaged)
}

/// Every single record, and several; in sealed segments and in the active one.
fn cases() -> impl Iterator<Item = Vec<u64>> {
    let several =
        [vec![0, 1], vec![4, 5], vec![6, 8], vec![0, 7, 13, 19], (5..10).collect(), (0..20).collect()];
    (0..RECORDS).map(|offset| vec![offset]).chain(several)
}

#[test]
fn a_reader_of_a_stream_or_a_filter_meets_damage_of_which_no_index_knows_whose_it_is() {
    for (lost, byte) in cases().flat_map(|lost| PLACES.map(|byte| (lost.clone(), byte))) {
        let dir = closed();
        damage(dir.path(), &lost, byte);
        remove_indexes(dir.path());
        let store = open(dir.path());
        let topic = store.topic("t").unwrap();
        for number in 0..KEYS {
            let key = key(number);
            let intact = (number..RECORDS).step_by(4).filter(|offset| !lost.contains(offset)).collect();
            let expected: (Vec<u64>, Vec<u64>) = (intact, lost.clone());
            assert_eq!(outcome(topic.read_stream(&key, StreamStart::Earliest).unwrap()), expected);
            let (mut delivered, mut damaged) = outcome(topic.read_stream_backwards(&key, None).unwrap());
            delivered.reverse();
            damaged.sort_unstable();
            assert_eq!((delivered, damaged), expected, "backwards");
            assert_eq!(filtered(&topic, &by_tag(&key)), expected, "by a filter");
            let (delivered, mut damaged) = filtered_backwards(&topic, &by_tag(&key));
            damaged.sort_unstable();
            assert_eq!((delivered, damaged), expected, "by a filter backwards");
        }
    }
}

#[test]
fn an_index_from_before_the_damage_still_knows_whose_the_damaged_records_are() {
    for (lost, byte) in (0..15).flat_map(|lost| PLACES.map(|byte| (lost, byte))) {
        let dir = closed();
        damage(dir.path(), &[lost], byte);
        let store = open(dir.path());
        let topic = store.topic("t").unwrap();
        for number in 0..KEYS {
            let key = key(number);
            let intact = (number..RECORDS).step_by(4).filter(|offset| *offset != lost).collect();
            let damaged = if lost % KEYS == number { vec![lost] } else { vec![] };
            let expected: (Vec<u64>, Vec<u64>) = (intact, damaged);
            assert_eq!(outcome(topic.read_stream(&key, StreamStart::Earliest).unwrap()), expected);
            // On the way to the next one it may meet what is another's.
            let (delivered, met) = filtered(&topic, &by_tag(&key));
            assert!(delivered == expected.0 && (met == [lost] || met == expected.1), "{met:?}");
            assert_eq!(filtered_backwards(&topic, &by_tag(&key)), expected);
            assert_eq!(topic.stream(&key).unwrap().unwrap().last_revision, Revision(4));
            let appended = topic.append(&[Record::keyed(key, "next")]).unwrap();
            assert_eq!(appended.revisions, [Revision(5)]);
        }
    }
}

fn revision_is(key: impl Into<Vec<u8>>, expected: ExpectedRevision) -> Condition {
    Condition::Revision { key: key.into(), expected }
}

fn conditional(topic: &Topic, condition: Condition) -> quipu_storage::Result<()> {
    topic.store().check(Append::new().require(topic, condition))
}

fn unknown<T: std::fmt::Debug>(outcome: quipu_storage::Result<T>) -> Range<u64> {
    match outcome {
        Err(Error::KeysUnknown { offsets, .. }) => offsets.start.0..offsets.end.0,
        other => panic!("{other:?}"),
    }
}

/// The revision that is told where a condition does not hold.
fn failed(outcome: quipu_storage::Result<()>) -> Option<Revision> {
    match outcome {
        Err(Error::ConditionFailed { failed }) => match failed[0].check {
            FailedCheck::Revision { actual, .. } => actual,
            ref other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_revision_is_given_once_and_none_is_guessed_for_a_condition() {
    for (lost, byte) in cases().flat_map(|lost| PLACES.map(|byte| (lost.clone(), byte))) {
        let dir = closed();
        damage(dir.path(), &lost, byte);
        remove_indexes(dir.path());
        let store = open(dir.path());
        let topic = store.topic("t").unwrap();
        let last_lost = *lost.last().unwrap();
        assert!(
            unknown(conditional(&topic, revision_is("another", ExpectedRevision::NoStream)))
                .contains(&last_lost)
        );
        unknown(topic.streams("", None, 10));
        // What always holds needs nothing to be known.
        conditional(&topic, revision_is("another", ExpectedRevision::Any)).unwrap();
        for number in 0..KEYS {
            let key = key(number);
            let last_intact = (number..RECORDS).step_by(4).filter(|offset| !lost.contains(offset)).last();
            let exact = revision_is(key.clone(), ExpectedRevision::Exact(Revision(4)));
            let is_proven = last_intact.is_some_and(|last| last > last_lost);
            if is_proven {
                conditional(&topic, exact).unwrap();
                assert_eq!(topic.stream(&key).unwrap().unwrap().last_revision, Revision(4));
            } else {
                assert!(unknown(conditional(&topic, exact)).contains(&last_lost));
                unknown(topic.stream(&key));
            }
            let [none, exists] = [ExpectedRevision::NoStream, ExpectedRevision::Exists]
                .map(|expected| conditional(&topic, revision_is(key.clone(), expected)));
            // What is known decides, whatever else there may be.
            if let Some(last) = last_intact {
                exists.unwrap();
                let least = Revision(last / KEYS);
                assert_eq!(failed(none), Some(least));
                for lower in (0..least.0).map(Revision) {
                    let exact = revision_is(key.clone(), ExpectedRevision::Exact(lower));
                    assert_eq!(failed(conditional(&topic, exact)), Some(least));
                }
            } else {
                unknown(none);
                unknown(exists);
            }
            let next = topic
                .append(&[Record::keyed(key.as_str(), "next"), Record::keyed(key.as_str(), "and")])
                .unwrap()
                .revisions;
            assert!(next[0] >= Revision(5) && next[1] == next[0] + 1, "{lost:?} {key} {next:?}");
            assert!(!is_proven || next[0] == Revision(5), "{lost:?} {key} {next:?}");
            // From here on it is known again.
            conditional(&topic, revision_is(key.clone(), ExpectedRevision::Exact(next[1]))).unwrap();
            assert_eq!(topic.stream(&key).unwrap().unwrap().last_revision, next[1]);
        }
        let again = outcome(topic.read_stream(key(0), StreamStart::Revision(Revision(5))).unwrap());
        assert_eq!(again.0.len(), 2, "{again:?}");
    }
}

#[test]
fn no_match_is_refused_where_damaged_records_may_match() {
    for lost in [2, 7, 14, 17] {
        let dir = closed();
        damage(dir.path(), &[lost], PLACES[0]);
        remove_indexes(dir.path());
        let store = open(dir.path());
        let topic = store.topic("t").unwrap();
        let no_match = |filter, after| Condition::NoMatch { filter, after_offset: after };
        let by_key = Filter::new().key("another");
        let by_prefix = Filter::new().key_prefix("anoth");
        for filter in [&by_key, &by_prefix, &by_tag("another")] {
            let refused = conditional(&topic, no_match(filter.clone(), None));
            assert!(
                matches!(refused, Err(Error::Corrupt { ref offsets, .. }) if offsets.start == Offset(lost))
            );
            assert!(matches!(topic.first_match(filter, None), Err(Error::Corrupt { .. })));
            let before = Offset(lost - 1);
            assert!(matches!(
                conditional(&topic, no_match(filter.clone(), Some(before))),
                Err(Error::Corrupt { .. })
            ));
            conditional(&topic, no_match(filter.clone(), Some(Offset(lost)))).unwrap();
        }
        // What comes before the damage decides.
        let failed = conditional(&topic, no_match(Filter::new().tags([key(0)]), None));
        assert!(matches!(failed, Err(Error::ConditionFailed { .. })), "{failed:?}");
    }
}

#[test]
fn a_trim_over_the_damage_gives_its_records_up_and_everything_is_known_again() {
    for lost in 0..RECORDS {
        let dir = closed();
        damage(dir.path(), &[lost], PLACES[0]);
        remove_indexes(dir.path());
        let store = open(dir.path());
        let topic = store.topic("t").unwrap();
        let damaged = unknown(conditional(&topic, revision_is("another", ExpectedRevision::NoStream)));
        topic.trim(Offset(damaged.end)).unwrap();
        let check = |topic: &Topic| {
            conditional(topic, revision_is("another", ExpectedRevision::NoStream)).unwrap();
            conditional(
                topic,
                Condition::NoMatch {
                    filter: Filter::new().tags(["another"]),
                    after_offset: Some(Offset(lost)),
                },
            )
            .unwrap();
            let expected: Vec<u64> = (lost + 1..RECORDS).collect();
            let mut read: Vec<u64> =
                (0..KEYS).flat_map(|number| filtered(topic, &by_tag(&key(number))).0).collect();
            read.sort_unstable();
            assert_eq!(read, expected);
            topic.streams("", None, 10).unwrap();
            // The revisions of all that was not damaged have not gone back.
            for number in (0..KEYS).filter(|number| lost % KEYS != *number) {
                assert_eq!(topic.stream(key(number)).unwrap().unwrap().last_revision, Revision(4));
            }
        };
        check(&topic);
        drop(topic);
        store.close().unwrap();
        check(&open(dir.path()).topic("t").unwrap());
    }
}

#[test]
fn no_index_is_written_that_lacks_what_is_damaged() {
    let dir = closed();
    damage(dir.path(), &[1, 17], PLACES[0]);
    remove_indexes(dir.path());
    let store = open(dir.path());
    let topic = store.topic("t").unwrap();
    drop(outcome(topic.read_stream(key(0), StreamStart::Earliest).unwrap()));
    // The active segment is sealed, with what was gathered of it.
    for number in 0..5 {
        topic.append(&[Record::keyed(key(number), "x".repeat(670))]).unwrap();
    }
    store.checkpoint().unwrap();
    let indexes = files(dir.path(), "terms");
    let bases: Vec<_> = indexes.iter().map(|path| path.file_stem().unwrap().to_str().unwrap()).collect();
    assert_eq!(bases, ["00000000000000000005-0", "00000000000000000010-0"]);
    drop(topic);
    store.close().unwrap();
    let store = open(dir.path());
    let topic = store.topic("t").unwrap();
    assert_eq!(outcome(topic.read_stream("another", StreamStart::Earliest).unwrap()), (vec![], vec![1, 17]));
}

/// By a prefix all records of a segment come into question at once.
#[test]
fn a_reader_of_a_prefix_meets_damage_both_ways() {
    for (lost, byte) in (0..RECORDS).flat_map(|lost| PLACES.map(|byte| (lost, byte))) {
        let dir = closed();
        damage(dir.path(), &[lost], byte);
        remove_indexes(dir.path());
        let store = open(dir.path());
        let topic = store.topic("t").unwrap();
        for prefix in ["key-", "key-1", "another"] {
            let filter = Filter::new().key_prefix(prefix);
            let expected: (Vec<u64>, _) =
                ((0..RECORDS).filter(|at| *at != lost && key(*at).starts_with(prefix)).collect(), vec![lost]);
            assert_eq!(filtered(&topic, &filter), expected, "{prefix}");
            assert_eq!(filtered_backwards(&topic, &filter), expected, "{prefix} backwards");
        }
    }
}
