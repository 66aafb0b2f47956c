//! A topic whose files are damaged, and everything else: the damage stays its own, and costs none of its records that
//! the journal still has.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::sync::Arc;

use quipu_storage::{
    CompactOptions, Compaction, CompactionControl, Error, ErrorKind, Offset, Record, Start, Store,
    StoreSettings, StoredRecord, Topic, TopicSettings,
};
use quipu_tests::model::run::{STORE, settings};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

/// Records of 1000 bytes, four in a segment.
const RECORDS: u64 = 11;
/// Those that a checkpoint covers: the last segment that it knows has two records.
const COVERED: u64 = 6;

/// The store as it is on the disk now, whoever has it open there still.
fn reopen(disk: &mut SimDisk) -> Store {
    *disk = disk.after_kill();
    open(disk)
}

fn open(disk: &SimDisk) -> Store {
    Store::builder().settings(settings()).disk(Arc::new(disk.clone())).open(STORE).unwrap()
}

fn segment(base_offset: u64) -> PathBuf {
    PathBuf::from(format!("{STORE}/topics/00000001/{base_offset:020}-0.segment"))
}

fn append(topic: &Topic, number: u64) -> quipu_storage::Result<Offset> {
    let record = Record::new(format!("{number:04}{}", "x".repeat(900)));
    Ok(topic.append(&[record])?.first_offset)
}

fn number(record: &StoredRecord) -> u64 {
    std::str::from_utf8(&record.payload().unwrap()[..4]).unwrap().parse().unwrap()
}

/// The offsets that are delivered, each with the record that was acknowledged there, and how many are said to be damaged.
fn read(topic: &Topic) -> (Vec<u64>, u64) {
    let (mut delivered, mut damaged) = (Vec::new(), 0);
    for record in topic.read(Start::Earliest).unwrap() {
        match record {
            Ok(record) => {
                assert_eq!(number(&record), record.offset().0);
                delivered.push(record.offset().0);
            }
            Err(Error::Corrupt { offsets, .. }) => damaged += offsets.end.0 - offsets.start.0,
            Err(error) => panic!("{error}"),
        }
    }
    (delivered, damaged)
}

/// A killed store with the topics `t`, of which a part is in the journal only, and `other`.
fn killed() -> SimDisk {
    let disk = SimDisk::new();
    let store = open(&disk);
    let topic = store
        .create_topic("t", TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() })
        .unwrap();
    let other = store.create_topic("other", TopicSettings::default()).unwrap();
    for number in 0..RECORDS {
        assert_eq!(append(&topic, number).unwrap(), Offset(number));
        if number + 1 == COVERED {
            store.checkpoint().unwrap();
        }
    }
    append(&other, 0).unwrap();
    disk.after_kill()
}

/// What can be wrong with the files of `t`, and how it is put right.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Damage {
    SealedMissing,
    ActiveMissing,
    AllMissing,
    /// Somebody else's file, which nothing collides with.
    Foreign,
    /// And one that has the name of a segment that the journal begins.
    ForeignInTheWay,
    ActiveShort,
}

const REFUSED: [Damage; 5] = [
    Damage::SealedMissing,
    Damage::ActiveMissing,
    Damage::AllMissing,
    Damage::Foreign,
    Damage::ForeignInTheWay,
];

impl Damage {
    fn paths(self) -> Vec<PathBuf> {
        match self {
            Self::SealedMissing => vec![segment(0)],
            Self::ActiveMissing | Self::ActiveShort => vec![segment(4)],
            Self::AllMissing => vec![segment(0), segment(4)],
            Self::Foreign => vec![segment(77)],
            Self::ForeignInTheWay => vec![segment(8)],
        }
    }

    /// Does it; returns what puts it right.
    fn inflict(self, disk: &SimDisk) -> Vec<(PathBuf, Option<Vec<u8>>)> {
        let before =
            self.paths().into_iter().map(|path| (path.clone(), disk.read_file(&path).ok())).collect();
        for path in self.paths() {
            match self {
                Self::ActiveShort => disk.truncate(path, 64 + 700).unwrap(),
                Self::Foreign | Self::ForeignInTheWay => disk.plant_file(path, &[7; 500]).unwrap(),
                _ => disk.lose_file(path).unwrap(),
            }
        }
        before
    }
}

fn put_right(disk: &SimDisk, before: &[(PathBuf, Option<Vec<u8>>)]) {
    for (path, bytes) in before {
        match bytes {
            Some(bytes) => disk.plant_file(path, bytes).unwrap(),
            None => disk.lose_file(path).unwrap(),
        }
    }
}

fn assert_whole(topic: &Topic) {
    assert_eq!(read(topic), ((0..topic.log_end_offset().0).collect(), 0));
}

/// A topic of which a file was missing could not take what the journal had for it: no checkpoint was made any more, the
/// store could not be closed properly, and once the journal was full every append to any topic got this one's error.
#[test]
fn a_refused_topic_keeps_nothing_from_the_others_and_none_of_its_records_is_lost() {
    for damage in REFUSED {
        let mut disk = killed();
        let before = damage.inflict(&disk);
        let store = open(&disk);
        let topic = store.topic("t").unwrap();
        let error = append(&topic, RECORDS).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Damaged, "{damage:?}: {error}");
        assert!(
            matches!(&error, Error::TopicRefused { path, .. } if damage.paths().contains(path)),
            "{error}"
        );
        let other = store.topic("other").unwrap();
        // More than the journal holds.
        for number in 1..400 {
            append(&other, number).unwrap();
        }
        store.checkpoint().unwrap();
        assert_eq!(store.stats().tail_bytes, 0);
        assert!(matches!(append(&topic, RECORDS), Err(Error::TopicRefused { .. })), "{damage:?}");
        store.close().unwrap();

        let store = reopen(&mut disk);
        assert!(store.recovery().was_clean);
        let topic = store.topic("t").unwrap();
        assert!(matches!(append(&topic, RECORDS), Err(Error::TopicRefused { .. })), "{damage:?}");
        assert_whole(&store.topic("other").unwrap());
        // It is looked at again by everybody who comes to it.
        put_right(&disk, &before);
        assert_whole(&topic);
        for number in RECORDS..20 {
            assert_eq!(append(&topic, number).unwrap(), Offset(number), "{damage:?}");
        }
        store.close().unwrap();
        let store = reopen(&mut disk);
        let topic = store.topic("t").unwrap();
        assert_whole(&topic);
        assert_eq!(read_backwards(&topic), (0..20).rev().collect::<Vec<_>>());
        assert_eq!(topic.read(Start::Last(13)).unwrap().next().unwrap().unwrap().offset(), Offset(7));
        let options = CompactOptions { compaction: Some(Compaction::default()), ..CompactOptions::default() };
        topic.compact_with(&options, &CompactionControl::new()).unwrap();
        assert_whole(&topic);
    }
}

fn read_backwards(topic: &Topic) -> Vec<u64> {
    topic.read_backwards(Offset::MAX).map(|record| number(&record.unwrap())).collect()
}

/// Appends behind the end of a segment that had been cut were acknowledged, and no checkpoint could be made any more: they
/// belonged where nothing can be written.
#[test]
fn a_topic_whose_active_segment_is_short_goes_on_in_a_new_one() {
    let mut disk = killed();
    let before = Damage::ActiveShort.inflict(&disk);
    let store = open(&disk);
    let topic = store.topic("t").unwrap();
    for number in RECORDS..20 {
        assert_eq!(append(&topic, number).unwrap(), Offset(number));
    }
    store.checkpoint().unwrap();
    let what_is_left = ((0..4).chain(6..20).collect(), 2);
    assert_eq!(read(&topic), what_is_left);
    assert_eq!(append(&topic, 20).unwrap(), Offset(20));
    store.close().unwrap();

    let store = reopen(&mut disk);
    let topic = store.topic("t").unwrap();
    let what_is_left = ((0..4).chain(6..21).collect(), 2);
    assert_eq!(read(&topic), what_is_left);
    store.close().unwrap();
    put_right(&disk, &before);
    let store = reopen(&mut disk);
    let topic = store.topic("t").unwrap();
    assert_whole(&topic);
    assert_eq!(append(&topic, 21).unwrap(), Offset(21));
    assert_whole(&topic);
}

/// The same with nothing in the journal at first, and everything appended afterwards.
#[test]
fn a_topic_whose_active_segment_is_short_takes_appends_also_when_the_journal_has_none_of_it() {
    let disk = killed();
    open(&disk).close().unwrap();
    // Of the last segment nothing but its header is left.
    disk.truncate(segment(8), 64).unwrap();
    for number in RECORDS..RECORDS + 3 {
        let store = open(&disk);
        assert_eq!(append(&store.topic("t").unwrap(), number).unwrap(), Offset(number));
        store.close().unwrap();
    }
    let store = open(&disk);
    assert_eq!(read(&store.topic("t").unwrap()), ((0..8).chain(RECORDS..RECORDS + 3).collect(), 3));
}

/// What is written elsewhere is not known before the checkpoint is: a crash on the way to it costs nothing, whether the
/// files are put right after it or not.
#[test]
fn a_crash_while_records_find_another_place_loses_none() {
    let mut crashes = 0;
    for damage in REFUSED.into_iter().chain([Damage::ActiveShort]) {
        let disk = killed();
        let before = damage.inflict(&disk);
        let store = open(&disk);
        let from = disk.ops() + 1;
        // So many there are at most.
        (from..from + 100).for_each(|number| disk.crash_at(number));
        store.checkpoint().unwrap();
        append(&store.topic("other").unwrap(), 1).unwrap();
        for (number, snapshot) in disk.take_snapshots() {
            for mode in [CrashMode::LoseAll, CrashMode::KeepAll, CrashMode::Random] {
                let disk = snapshot.crash_with(mode, &mut Rng::new(number));
                for is_put_right_first in [true, false] {
                    let mut disk = disk.after_kill();
                    if !is_put_right_first {
                        let store = open(&disk);
                        store.checkpoint().unwrap();
                        store.close().unwrap();
                    }
                    put_right(&disk, &before);
                    let store = reopen(&mut disk);
                    let topic = store.topic("t").unwrap();
                    let at = format!("{damage:?}, {mode:?} before {number}, {is_put_right_first}");
                    assert_eq!(read(&topic), ((0..RECORDS).collect(), 0), "{at}");
                    assert_eq!(append(&topic, RECORDS).unwrap(), Offset(RECORDS), "{at}");
                    store.close().unwrap();
                    assert_whole(&reopen(&mut disk).topic("t").unwrap());
                    crashes += 1;
                }
            }
        }
    }
    assert!(crashes > 500, "{crashes}");
}

/// The file of the active segment is closed now and then, when there are many, and found short when it is opened again.
#[test]
fn a_segment_that_is_cut_while_the_store_is_open_is_left_where_it_ends() {
    let disk = SimDisk::new();
    let settings = StoreSettings { open_files_max: 1, ..settings() };
    let store = Store::builder().settings(settings).disk(Arc::new(disk.clone())).open(STORE).unwrap();
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    let other = store.create_topic("other", TopicSettings::default()).unwrap();
    for number in 0..4 {
        append(&topic, number).unwrap();
        append(&other, number).unwrap();
    }
    store.checkpoint().unwrap();
    disk.truncate(segment(0), 64 + 3 * 960 + 100).unwrap();
    for number in 4..6 {
        append(&topic, number).unwrap();
        append(&other, number).unwrap();
        store.checkpoint().unwrap();
    }
    let store = open(&disk.after_kill());
    assert_eq!(read(&store.topic("t").unwrap()), (vec![0, 1, 2, 4, 5], 1));
    assert_whole(&store.topic("other").unwrap());
}
