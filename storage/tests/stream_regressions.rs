//! Faults of streams that were found once: damage, compaction, trims, and readers beside a writer, each with what it broke.
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use std::{fmt, fs};

use quipu_storage::clock::Clock;
use quipu_storage::disk::{DirLock, Disk, Entry, File, OpenMode, OsDisk};
use quipu_storage::{
    Append, Compaction, Condition, ExpectedRevision, Offset, ReadOnlyStore, Record, Revision, Store,
    StoreBuilder, StoreSettings, StreamStart, Timestamp, Topic, TopicSettings, Visibility,
};

/// Of a batch that is the first of its segment.
const FIRST_BATCH: u64 = 64;

const AT_ONCE: Compaction = Compaction {
    records_per_key: 1,
    lag_min: Duration::ZERO,
    tombstone_age_max: Duration::ZERO,
    bytes_per_second_max: 0,
};

fn quiet() -> StoreBuilder {
    Store::builder().settings(StoreSettings { background: false, ..StoreSettings::default() })
}

fn read_only(dir: &Path) -> ReadOnlyStore {
    quiet().open_read_only(dir).unwrap()
}

fn small_segments(compaction: Option<Compaction>) -> TopicSettings {
    TopicSettings { segment_bytes_max: 4096, compaction, ..TopicSettings::default() }
}

fn last_segment(dir: &Path) -> PathBuf {
    let entries = fs::read_dir(dir.join("topics/00000001")).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    paths.filter(|path| path.extension().is_some_and(|one| one == "segment")).max().unwrap()
}

fn flip(path: &Path, at: u64) {
    let byte = fs::read(path).unwrap()[usize::try_from(at).unwrap()] ^ 1;
    let mut file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.seek(SeekFrom::Start(at)).unwrap();
    file.write_all(&[byte]).unwrap();
}

fn exact(key: &str, revision: Revision) -> Condition {
    Condition::Revision { key: key.into(), expected: ExpectedRevision::Exact(revision) }
}

/// Each damaged record counted as one of its key; but compaction had taken out most of them, so a revision was given again,
/// and a condition held of the wrong one.
#[test]
fn a_revision_does_not_go_back_when_the_last_records_of_a_compacted_key_rot() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet().open(dir.path()).unwrap();
    let topic = store.create_topic("t", small_segments(Some(AT_ONCE))).unwrap();
    for number in 0..100 {
        topic.append(&[Record::keyed("k", format!("{number:0600}"))]).unwrap();
    }
    store.checkpoint().unwrap();
    topic.compact().unwrap();
    let left = topic.read_stream("k", StreamStart::Earliest).unwrap().count();
    assert!(left < 10, "{left}");
    drop(topic);
    store.close().unwrap();
    let segment = last_segment(dir.path());
    let bytes = fs::read(&segment).unwrap();
    let mut at = usize::try_from(FIRST_BATCH).unwrap();
    while at + 8 < bytes.len() {
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) as usize;
        if length == 0 {
            break;
        }
        flip(&segment, (at + 300) as u64);
        at += length.next_multiple_of(8);
    }
    let store = quiet().open(dir.path()).unwrap();
    let topic = store.topic("t").unwrap();
    let next = topic.append(&[Record::keyed("k", "next")]).unwrap().revisions[0];
    assert!(next >= Revision(100), "{next}");
}

/// A store whose topic has a damaged record of another key, which no index knows, and behind it three of `k`.
fn damaged_before_k() -> (tempfile::TempDir, Topic) {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet().open(dir.path()).unwrap();
    let topic = store.topic_or_create("t").unwrap();
    for key in ["other", "k", "k", "k"] {
        topic.append(&[Record::keyed(key, "x".repeat(400))]).unwrap();
    }
    drop(topic);
    store.close().unwrap();
    flip(&last_segment(dir.path()), FIRST_BATCH + 200);
    let topic = quiet().open(dir.path()).unwrap().topic("t").unwrap();
    assert_eq!(topic.stream("k").unwrap().unwrap().last_revision, Revision(2));
    (dir, topic)
}

/// It was set back before damage that is older than records which it had read.
#[test]
fn a_reader_that_goes_on_behind_a_known_revision_is_not_set_back_to_older_damage() {
    let (_dir, topic) = damaged_before_k();
    for revision in 0..3 {
        let start = StreamStart::AfterRevision(Revision(revision));
        let cursor = topic.stream_cursor("k", start, Visibility::Synced).unwrap();
        assert_eq!(cursor.next_offset(), Offset(revision + 2));
    }
}

/// It began below the damage, and so passed over everything.
#[test]
fn a_reader_backwards_from_a_revision_meets_all_records_before_it_and_then_the_damage() {
    let (_dir, topic) = damaged_before_k();
    for before in [None, Some(3), Some(2), Some(1), Some(0)] {
        let records = topic.read_stream_backwards("k", before.map(Revision)).unwrap();
        let revisions = records.map(|record| record.map(|record| record.revision().unwrap().0));
        let read: Vec<_> = revisions.map(|revision| revision.map_err(|_| "damage")).collect();
        let expected = (0..before.unwrap_or(3)).rev().map(Ok).chain([Err("damage")]);
        assert_eq!(read, expected.collect::<Vec<_>>(), "{before:?}");
    }
}

/// Does what it is told when it is asked for the time: under the writer lock, between the look at an append's revisions and
/// their being taken in.
#[derive(Default)]
struct Hooked(Mutex<Option<Hook>>);

type Hook = Box<dyn FnOnce() + Send>;

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

impl Clock for Hooked {
    fn now(&self) -> Timestamp {
        let hook = self.0.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        Timestamp(1000)
    }
}

/// Where a key's entry was is remembered until the append is taken in. A reader who had the terms gathered anew meanwhile
/// left the number of another key's entry there: its stream got the record, and the revision was given once more.
#[test]
fn an_append_is_taken_in_where_it_belongs_although_the_terms_were_gathered_anew_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet().open(dir.path()).unwrap();
    let topic = store.topic_or_create("t").unwrap();
    topic.append(&[Record::keyed("c", "x".repeat(400))]).unwrap();
    topic.append(&[Record::keyed("a", "1").with_type("x"), Record::keyed("b", "1")]).unwrap();
    drop(topic);
    store.close().unwrap();
    let segment = last_segment(dir.path());
    flip(&segment, FIRST_BATCH + 200);
    let clock = Arc::<Hooked>::default();
    let store = quiet().clock(Arc::<Hooked>::clone(&clock)).open(dir.path()).unwrap();
    let topic = store.topic("t").unwrap();
    assert_eq!(topic.stream("a").unwrap().unwrap().last_revision, Revision(0));
    assert!(topic.stream("c").is_err());
    // The disk delivers again what was written.
    flip(&segment, FIRST_BATCH + 200);
    let reader = topic.clone();
    let read = move || assert_eq!(reader.read_stream("c", StreamStart::Earliest).unwrap().count(), 1);
    *clock.0.lock().unwrap() = Some(Box::new(read));
    let first = topic.append(&[Record::keyed("a", "2")]).unwrap().revisions[0];
    assert!(clock.0.lock().unwrap().is_none());
    let second = topic.append(&[Record::keyed("a", "3")]).unwrap().revisions[0];
    assert_eq!((first, second), (Revision(1), Revision(2)));
    let count = |key| topic.read_stream(key, StreamStart::Earliest).unwrap().count();
    assert_eq!((count("a"), count("b"), count("c")), (3, 1, 1));
}

/// The real disk, which for a while removes no segment.
#[derive(Clone, Debug, Default)]
struct Clinging(Arc<AtomicBool>);

impl Disk for Clinging {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        OsDisk.list(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        OsDisk.open(path, mode)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        if self.0.load(Ordering::Relaxed) && path.extension().is_some_and(|one| one == "segment") {
            return Err(io::ErrorKind::ResourceBusy.into());
        }
        OsDisk.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.sync_dir(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        OsDisk.free_bytes(path)
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn DirLock>> {
        OsDisk.lock(path, holder)
    }
}

/// The records of a trimmed segment whose file could not be removed were taken for the last ones of their key, although a
/// later one that compaction had taken out was in the past.
#[test]
fn a_trimmed_segment_whose_file_stayed_does_not_hide_the_past() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Clinging::default();
    let store = quiet().disk(Arc::new(disk.clone())).open(dir.path()).unwrap();
    let topic = store.create_topic("t", small_segments(Some(AT_ONCE))).unwrap();
    let fill = |from: u64| {
        for number in from..from + 12 {
            topic.append(&[Record::keyed(format!("f{number}"), "x".repeat(600))]).unwrap();
        }
    };
    topic.append(&[Record::keyed("k", "0"), Record::keyed("k", "1")]).unwrap();
    fill(0);
    let last = topic.append(&[Record::keyed("k", "2"), Record::tombstone("k")]).unwrap();
    assert_eq!(last.revisions, [Revision(2), Revision(3)]);
    fill(100);
    store.checkpoint().unwrap();
    disk.0.store(true, Ordering::Relaxed);
    topic.trim(Offset(8)).unwrap();
    disk.0.store(false, Ordering::Relaxed);
    topic.compact().unwrap();
    assert_eq!(topic.stream("k").unwrap().unwrap().last_revision, Revision(3));
    let append = Append::new().records(&topic, &[Record::keyed("x", "and")]).unwrap();
    store.append(append.require(&topic, exact("k", Revision(3)))).unwrap();
    assert_eq!(topic.append(&[Record::keyed("k", "next")]).unwrap().revisions, [Revision(4)]);
}

/// It had listed the files of the past once and for all: keys whose records went later were unknown to it, and files that
/// were merged were called damaged.
#[test]
fn a_reader_beside_the_writer_knows_of_keys_whose_records_went_after_its_first_look() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet().open(dir.path()).unwrap();
    let topic = store.create_topic("t", small_segments(None)).unwrap();
    let fill = |number: u64| {
        let key = format!("k{number}");
        topic.append(&[Record::keyed(key.as_str(), "0"), Record::keyed(key.as_str(), "1")]).unwrap();
        for other in 0..8 {
            topic.append(&[Record::keyed(format!("f{number}-{other}"), "x".repeat(700))]).unwrap();
        }
        store.checkpoint().unwrap();
    };
    fill(0);
    let reader = read_only(dir.path());
    let read = reader.topic("t").unwrap();
    assert!(read.stream("nobody").unwrap().is_none());
    for number in 1..7 {
        fill(number);
        topic.trim(topic.high_watermark()).unwrap();
        store.checkpoint().unwrap();
        reader.refresh().unwrap();
        for known in 0..number {
            let head = read.stream(format!("k{known}")).unwrap();
            assert_eq!(head.map(|head| head.last_revision), Some(Revision(1)), "{known} of {number}");
        }
    }
}

/// A reader of a stream failed where one of the topic or of a filter looks again.
#[test]
fn a_stream_is_read_beside_a_writer_that_compacts() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet().open(dir.path()).unwrap();
    let topic = store.create_topic("t", small_segments(Some(AT_ONCE))).unwrap();
    for number in 0..40 {
        topic.append(&[Record::keyed(format!("k{}", number % 20), "x".repeat(700))]).unwrap();
    }
    store.checkpoint().unwrap();
    let looks: [fn(&ReadOnlyStore); 3] = [
        |store| assert!(store.topic("t").unwrap().stream("k1").unwrap().is_some()),
        |store| assert_eq!(store.topic("t").unwrap().streams("", None, 100).unwrap().len(), 20),
        |store| {
            let topic = store.topic("t").unwrap();
            let mut cursor = topic.stream_cursor("k1", StreamStart::Earliest, Visibility::Synced).unwrap();
            assert!(cursor.next_record().unwrap().is_some());
        },
    ];
    let readers: Vec<_> = looks.iter().map(|_| read_only(dir.path())).collect();
    for (reader, look) in readers.iter().zip(looks) {
        look(reader);
    }
    topic.compact().unwrap();
    for (reader, look) in readers.iter().zip(looks) {
        look(reader);
    }
}
