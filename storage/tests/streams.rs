//! Streams through the public interface: revisions, heads, reading and listing, against a plain model, while segments are
//! sealed, removed and rewritten, the store is opened again, and the indexes are damaged.
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quipu_storage::clock::Clock;
use quipu_storage::verify::{VerifyOptions, verify};
use quipu_storage::{
    Codec, Compaction, Durability, Error, Offset, Record, Revision, Storage, Store, StoreSettings,
    StreamHead, StreamStart, Timestamp, Topic, TopicSettings,
};

#[derive(Debug)]
struct Standing(AtomicU64);

impl Clock for Standing {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

/// Numbers that look random, the same for each seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn quiet() -> StoreSettings {
    StoreSettings { background: false, ..StoreSettings::default() }
}

fn open(dir: &Path, clock: &Arc<Standing>) -> Store {
    Store::builder().settings(quiet()).clock(Arc::<Standing>::clone(clock)).open(dir).unwrap()
}

fn small_segments(codec: Codec) -> TopicSettings {
    TopicSettings { segment_bytes_max: 4096, codec, ..TopicSettings::default() }
}

/// A record as it should be found.
#[derive(Clone, Debug, PartialEq)]
struct Sent {
    offset: u64,
    revision: u64,
    time: u64,
    payload: Option<Vec<u8>>,
}

/// The streams of a topic as they should be.
#[derive(Default)]
struct Model {
    streams: BTreeMap<Vec<u8>, Vec<Sent>>,
    /// Of each key, also of those that have no records any more.
    next_revisions: BTreeMap<Vec<u8>, u64>,
    next_offset: u64,
}

impl Model {
    /// Takes down an append; answers its revisions.
    fn append(&mut self, records: &[Record], time: u64) -> Vec<Revision> {
        let mut revisions = Vec::new();
        for record in records {
            if let Some(key) = &record.key {
                let next = self.next_revisions.entry(key.clone()).or_default();
                self.streams.entry(key.clone()).or_default().push(Sent {
                    offset: self.next_offset,
                    revision: *next,
                    time,
                    payload: record.payload.clone(),
                });
                revisions.push(Revision(*next));
                *next += 1;
            }
            self.next_offset += 1;
        }
        revisions
    }

    fn retain(&mut self, stays: impl Fn(&Sent) -> bool) {
        self.streams.values_mut().for_each(|stream| stream.retain(&stays));
    }

    fn head(&self, key: &[u8]) -> Option<StreamHead> {
        let stream = self.streams.get(key).map_or(&[][..], Vec::as_slice);
        self.next_revisions.get(key).map(|next| StreamHead {
            last_revision: Revision(next - 1),
            last_offset: stream.last().map(|sent| Offset(sent.offset)),
            first_revision: stream.first().map(|sent| Revision(sent.revision)),
            record_count: stream.len() as u64,
        })
    }

    /// Compares all of it with a topic.
    fn check(&self, topic: &Topic) {
        for (key, stream) in &self.streams {
            assert_eq!(topic.stream(key).unwrap(), self.head(key), "{}", key.escape_ascii());
            assert_eq!(read(topic.read_stream(key, StreamStart::Earliest).unwrap()), *stream);
            let mut backwards = read(topic.read_stream_backwards(key, None).unwrap());
            backwards.reverse();
            assert_eq!(backwards, *stream, "{}", key.escape_ascii());
        }
        assert_eq!(topic.stream("never there").unwrap(), None);
        let listed: Vec<_> = topic
            .streams("", None, usize::MAX)
            .unwrap()
            .into_iter()
            .map(|info| (info.key, info.head))
            .collect();
        let there = self.streams.iter().filter(|(_, stream)| !stream.is_empty());
        let expected: Vec<_> = there.map(|(key, _)| (key.clone(), self.head(key).unwrap())).collect();
        assert_eq!(listed, expected);
    }

    /// The same of some of the ways to read a part of a stream.
    fn check_parts(&self, topic: &Topic, numbers: &mut Numbers) {
        let keys: Vec<_> = self.streams.keys().collect();
        if keys.is_empty() {
            return;
        }
        let key = keys[numbers.below(keys.len() as u64) as usize];
        let stream = &self.streams[key];
        let revision = numbers.below(self.next_revisions[key] + 2);
        let from =
            |first: u64| stream.iter().filter(|sent| sent.revision >= first).cloned().collect::<Vec<_>>();
        let reading = |start: StreamStart| read(topic.read_stream(key, start).unwrap());
        assert_eq!(reading(StreamStart::Revision(Revision(revision))), from(revision));
        assert_eq!(reading(StreamStart::AfterRevision(Revision(revision))), from(revision + 1));
        let below: Vec<_> = stream.iter().rev().filter(|sent| sent.revision < revision).cloned().collect();
        assert_eq!(read(topic.read_stream_backwards(key, Some(Revision(revision))).unwrap()), below);
        let count = numbers.below(stream.len() as u64 + 2) as usize;
        assert_eq!(reading(StreamStart::Last(count)), stream[stream.len().saturating_sub(count)..]);
        assert_eq!(reading(StreamStart::Latest), []);
        let time = stream.get(count).map_or(0, |sent| sent.time);
        let later: Vec<_> = stream.iter().filter(|sent| sent.time >= time).cloned().collect();
        assert_eq!(reading(StreamStart::Time(Timestamp(time))), later);
        let until: Vec<_> = stream.iter().filter(|sent| sent.time <= time).cloned().collect();
        let earliest = topic.read_stream(key, StreamStart::Earliest).unwrap();
        assert_eq!(read(earliest.until(Timestamp(time))), until);
        let limit = numbers.below(5) as usize;
        let prefix = &key[..numbers.below(key.len() as u64 + 1) as usize];
        let after = keys[numbers.below(keys.len() as u64) as usize];
        let listed = topic.streams(prefix, Some(after), limit).unwrap();
        let expected = self
            .streams
            .iter()
            .filter(|(key, stream)| key.starts_with(prefix) && *key > after && !stream.is_empty());
        let expected: Vec<_> = expected.map(|(key, _)| key.clone()).take(limit).collect();
        assert_eq!(listed.into_iter().map(|info| info.key).collect::<Vec<_>>(), expected);
    }
}

fn read(records: impl Iterator<Item = quipu_storage::Result<quipu_storage::StoredRecord>>) -> Vec<Sent> {
    let sent = |record: quipu_storage::StoredRecord| Sent {
        offset: record.offset().0,
        revision: record.revision().unwrap().0,
        time: record.append_time().0,
        payload: record.payload().map(<[u8]>::to_vec),
    };
    records.map(|record| sent(record.unwrap())).collect()
}

fn topic_files(dir: &Path, extension: &str) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(dir.join("topics/00000001")) else { return Vec::new() };
    let paths = entries.map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> =
        paths.filter(|path| path.extension().is_some_and(|found| found == extension)).collect();
    paths.sort();
    paths
}

/// Does to the indexes what a disk might.
fn damage_indexes(dir: &Path, numbers: &mut Numbers) {
    for path in topic_files(dir, "terms") {
        let mut bytes = fs::read(&path).unwrap();
        match numbers.below(5) {
            0 => fs::remove_file(path).unwrap(),
            1 => fs::write(path, &bytes[..numbers.below(bytes.len() as u64) as usize]).unwrap(),
            2 => fs::write(path, vec![0; bytes.len()]).unwrap(),
            _ => {
                let bit = numbers.below(bytes.len() as u64 * 8) as usize;
                bytes[bit / 8] ^= 1 << (bit % 8);
                fs::write(path, bytes).unwrap();
            }
        }
    }
}

fn any_record(numbers: &mut Numbers) -> Record {
    let payload = vec![b'x'; numbers.below(120) as usize];
    let key = match numbers.below(10) {
        0 => return Record::new(payload),
        1 => b"hot".to_vec(),
        2 => format!("once-{}", numbers.below(u64::MAX)).into_bytes(),
        n => format!("key-{}", numbers.below(n * n)).into_bytes(),
    };
    let record = if numbers.below(20) == 0 { Record::tombstone(key) } else { Record::keyed(key, payload) };
    record.with_type(["a", "b", ""][numbers.below(3) as usize]).with_tag(format!("tag-{}", numbers.below(9)))
}

fn run(seed: u64, codec: Codec) {
    let mut numbers = Numbers(seed * 2 + 0x9e37_79b9_7f4a_7c15);
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Standing(AtomicU64::new(1)));
    let mut store = open(dir.path(), &clock);
    let mut topic = store.create_topic("t", small_segments(codec)).unwrap();
    let mut model = Model::default();
    let mut was_damaged = false;
    for _ in 0..120 {
        clock.0.fetch_add(1, Ordering::Relaxed);
        match numbers.below(40) {
            0..30 => {
                let count = 1 + numbers.below(8) * numbers.below(3);
                let records: Vec<_> = (0..count).map(|_| any_record(&mut numbers)).collect();
                let appended = topic.append_with(&records, Durability::Written).unwrap();
                assert_eq!(appended.first_offset.0, model.next_offset);
                assert_eq!(appended.revisions, model.append(&records, clock.now().0), "seed {seed}");
            }
            30..33 => store.checkpoint().unwrap(),
            33 => {
                store.sync().unwrap();
                let to = topic.log_start_offset().0;
                let to = to + numbers.below(model.next_offset - to + 1);
                topic.trim(Offset(to)).unwrap();
                model.retain(|sent| sent.offset >= to);
            }
            34 => {
                let rules =
                    Compaction { tombstone_age_max: std::time::Duration::ZERO, ..Compaction::default() };
                topic.alter(&TopicSettings { compaction: Some(rules), ..small_segments(codec) }).unwrap();
                topic.compact().unwrap();
                let left = topic.read(Offset(topic.log_start_offset().0)).unwrap();
                let left: Vec<_> = left.map(|record| record.unwrap().offset().0).collect();
                model.retain(|sent| left.binary_search(&sent.offset).is_ok());
            }
            35 => {
                store.close().unwrap();
                drop((store, topic));
                if numbers.below(2) == 0 {
                    was_damaged = true;
                    damage_indexes(dir.path(), &mut numbers);
                } else {
                    let disk = Arc::new(quipu_storage::disk::OsDisk);
                    let findings = verify(dir.path(), disk, VerifyOptions::default()).unwrap().findings;
                    let is_index =
                        |path: &Path| path.extension().is_some_and(|extension| extension == "terms");
                    let are_expected = findings.iter().all(|finding| was_damaged && is_index(&finding.path));
                    assert!(are_expected, "seed {seed}: {findings:?}");
                }
                store = open(dir.path(), &clock);
                topic = store.topic("t").unwrap();
            }
            36 => {
                was_damaged = true;
                damage_indexes(dir.path(), &mut numbers);
            }
            37 => {
                store.sync().unwrap();
                model.check(&topic);
            }
            _ => {
                store.sync().unwrap();
                model.check_parts(&topic, &mut numbers);
            }
        }
    }
    store.sync().unwrap();
    model.check(&topic);
    store.close().unwrap();
}

#[test]
fn streams_are_what_was_appended_whatever_becomes_of_segments_and_indexes() {
    (0..60).for_each(|seed| run(seed, Codec::None));
}

#[test]
fn streams_of_compressed_batches_are_as_any_other() {
    (1000..1010).for_each(|seed| run(seed, Codec::Lz4));
}

#[test]
fn verifying_finds_every_change_of_an_index_and_the_next_lookup_mends_it() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Standing(AtomicU64::new(1)));
    let store = open(dir.path(), &clock);
    let topic = store.create_topic("t", small_segments(Codec::None)).unwrap();
    for number in 0..200 {
        topic
            .append(&[Record::keyed(format!("key {}", number % 7), vec![b'x'; 30]).with_tag("tag")])
            .unwrap();
    }
    store.close().unwrap();
    drop((store, topic));
    let check = || {
        let report =
            verify(dir.path(), Arc::new(quipu_storage::disk::OsDisk), VerifyOptions::default()).unwrap();
        (report.is_readable(), report.findings.len(), report.checked.leftover_files)
    };
    let path = topic_files(dir.path(), "terms").swap_remove(1);
    let bytes = fs::read(&path).unwrap();
    for byte in (0..bytes.len()).step_by(9) {
        let mut damaged = bytes.clone();
        damaged[byte] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        assert_eq!(check(), (true, 1, 0), "byte {byte}");
    }
    let mut damaged = bytes.clone();
    damaged[70] ^= 0x10;
    fs::write(&path, &damaged).unwrap();
    let store = open(dir.path(), &clock);
    let topic = store.topic("t").unwrap();
    for key in 0..7 {
        let records = read(topic.read_stream(format!("key {key}"), StreamStart::Earliest).unwrap());
        assert_eq!(records.len(), (0..200).filter(|number| number % 7 == key).count());
    }
    assert_eq!(store.stats().damage_found, 1);
    assert_eq!(fs::read(&path).unwrap(), bytes);
    store.close().unwrap();
    assert_eq!(check(), (true, 0, 0));
}

#[test]
fn indexes_that_are_all_gone_are_made_anew_whoever_asks_for_them_and_from_where() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Standing(AtomicU64::new(1)));
    let store = open(dir.path(), &clock);
    let topic = store.create_topic("t", small_segments(Codec::None)).unwrap();
    for number in 0..2000 {
        let record = Record::keyed(format!("key {}", number % 7), vec![b'x'; 30]).with_tag("tag");
        topic.append_with(&[record], Durability::Written).unwrap();
    }
    store.close().unwrap();
    drop((store, topic));
    let indexes = || -> Vec<_> {
        let paths = topic_files(dir.path(), "terms");
        paths.into_iter().map(|path| (fs::read(&path).unwrap(), path)).collect()
    };
    let written = indexes();
    assert!(written.len() > 20);
    written.iter().for_each(|(_, path)| fs::remove_file(path).unwrap());

    // With threads of its own it makes several at once.
    let store = Store::open(dir.path()).unwrap();
    let topic = store.topic("t").unwrap();
    std::thread::scope(|scope| {
        for key in 0..7_u64 {
            let topic = &topic;
            scope.spawn(move || {
                let name = format!("key {key}");
                let expected: Vec<_> = (key..2000).step_by(7).collect();
                let offsets: Vec<_> = if key % 2 == 0 {
                    let records = topic.read_stream(&name, StreamStart::Earliest).unwrap();
                    records.map(|record| record.unwrap().offset().0).collect()
                } else {
                    let records = topic.read_stream_backwards(&name, None).unwrap();
                    let mut offsets: Vec<_> = records.map(|record| record.unwrap().offset().0).collect();
                    offsets.reverse();
                    offsets
                };
                assert_eq!(offsets, expected);
            });
        }
    });
    assert!(topic.stream("absent").unwrap().is_none());
    assert_eq!(indexes(), written);
}

#[test]
fn a_follower_of_a_stream_is_woken_by_its_records_and_sees_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let topic = store.topic_or_create("t").unwrap();
    let follower = topic.follow_stream("mine", StreamStart::Earliest).unwrap();
    let reader = std::thread::spawn(move || read(follower.take(50)));
    for number in 0..200 {
        let key = if number % 4 == 1 { "mine" } else { "other" };
        topic.append(&[Record::keyed(key, vec![number]), Record::new("no key")]).unwrap();
    }
    let found = reader.join().unwrap();
    assert_eq!(found.iter().map(|sent| sent.revision).collect::<Vec<_>>(), (0..50).collect::<Vec<_>>());
    assert!(found.iter().all(|sent| sent.payload.as_ref().unwrap()[0] % 4 == 1));
    let at_end = topic.follow_stream("mine", StreamStart::Latest).unwrap();
    let waiting = std::thread::spawn(move || at_end.count());
    store.close().unwrap();
    assert_eq!(waiting.join().unwrap(), 0);
}

#[test]
fn streams_of_a_topic_in_memory_are_as_those_on_disk_until_their_records_go() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Standing(AtomicU64::new(1)));
    let store = open(dir.path(), &clock);
    let storage = Storage::Memory { bytes_max: 1 << 20 };
    let topic = store.create_topic("m", TopicSettings { storage, ..TopicSettings::default() }).unwrap();
    let mut model = Model::default();
    let mut numbers = Numbers(5);
    for _ in 0..300 {
        let records: Vec<_> = (0..1 + numbers.below(4)).map(|_| any_record(&mut numbers)).collect();
        let appended = topic.append(&records).unwrap();
        assert_eq!(appended.revisions, model.append(&records, clock.now().0));
        model.check_parts(&topic, &mut numbers);
    }
    model.check(&topic);
    topic.trim(Offset(400)).unwrap();
    model.retain(|sent| sent.offset >= 400);
    let hot = &model.streams[&b"hot"[..]];
    assert_eq!(read(topic.read_stream("hot", StreamStart::Earliest).unwrap()), *hot);
    assert_eq!(topic.stream("hot").unwrap(), model.head(b"hot"));
}

#[test]
fn a_damaged_file_of_the_past_is_told_and_lets_no_revision_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let clock = Arc::new(Standing(AtomicU64::new(1)));
    let store = open(dir.path(), &clock);
    let topic = store.create_topic("t", small_segments(Codec::None)).unwrap();
    for number in 0..100 {
        let record = Record::keyed(format!("key {number}"), vec![b'x'; 100]);
        topic.append_with(&[record], Durability::Written).unwrap();
    }
    store.sync().unwrap();
    topic.trim(Offset(100)).unwrap();
    store.close().unwrap();
    drop((store, topic));
    let past = topic_files(dir.path(), "past");
    assert!(past.len() <= 3, "they are merged");
    let whole: Vec<_> = past.iter().map(|path| fs::read(path).unwrap()).collect();
    for (path, bytes) in past.iter().zip(&whole) {
        let mut damaged = bytes.clone();
        damaged[100] ^= 1;
        fs::write(path, damaged).unwrap();
    }
    let store = open(dir.path(), &clock);
    let topic = store.topic("t").unwrap();
    let refused = topic.append(&[Record::keyed("key 1", "x")]).unwrap_err();
    assert!(matches!(&refused, Error::CorruptFile { path, .. } if past.contains(path)), "{refused}");
    // What needs no revision goes on.
    topic.append(&[Record::new("x").with_tag("tag")]).unwrap();
    past.iter().zip(&whole).for_each(|(path, bytes)| fs::write(path, bytes).unwrap());
    assert_eq!(topic.append(&[Record::keyed("key 1", "x")]).unwrap().revisions, [Revision(1)]);
    assert_eq!(topic.append(&[Record::keyed("key 100", "x")]).unwrap().revisions, [Revision(0)]);
}

/// Keys whose records were all trimmed stay in the index of a segment of which something is left: a list of streams looked
/// at all of them in one call.
#[test]
fn a_page_of_streams_ends_although_no_record_of_many_keys_can_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::builder().settings(quiet()).open(dir.path()).unwrap();
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    let records: Vec<_> = (0..10_000).map(|number| Record::keyed(format!("a {number:05}"), "x")).collect();
    topic.append(&records).unwrap();
    topic.append(&[Record::keyed("b", "x")]).unwrap();
    topic.trim(Offset(10_000)).unwrap();
    let (mut after, mut pages, mut found) = (None::<Vec<u8>>, 0, Vec::new());
    loop {
        let page = topic.streams_page("", after.as_deref(), 100).unwrap();
        pages += 1;
        found.extend(page.streams.into_iter().map(|stream| stream.key));
        assert!(page.next_after > after || page.next_after.is_none());
        after = page.next_after;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(found, [b"b"]);
    assert_eq!(pages, 3);
    assert_eq!(topic.streams("", None, 100).unwrap().len(), 1);
}
