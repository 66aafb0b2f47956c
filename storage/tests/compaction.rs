//! Key compaction through the public interface.
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quipu_storage::clock::Clock;
use quipu_storage::disk::{DirLock, Disk, Entry, File, Map, OpenMode, OsDisk, Writer};
use quipu_storage::{
    Append, Codec, CompactOptions, Compaction, CompactionControl, Durability, Error, Offset, Record,
    RecordsRemoved, Start, Storage, Store, StoreSettings, StoredRecord, Timestamp, Topic, TopicSettings,
};

/// A clock that stands still until it is moved.
#[derive(Debug, Default)]
struct Standing(AtomicU64);

impl Standing {
    fn advance(&self, millis: u64) {
        self.0.fetch_add(millis, Ordering::Relaxed);
    }
}

impl Clock for Standing {
    fn now(&self) -> Timestamp {
        Timestamp(self.0.load(Ordering::Relaxed))
    }
}

type Hook = Box<dyn FnOnce() + Send>;

/// The real disk, with one call to somebody when a rewritten segment is about to be synced.
#[derive(Clone, Default)]
struct Hooked {
    hook: Arc<Mutex<Option<Hook>>>,
}

impl std::fmt::Debug for Hooked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Hooked")
    }
}

#[derive(Debug)]
struct HookedFile {
    file: Arc<dyn File>,
    disk: Hooked,
}

impl Hooked {
    /// Calls `hook` once, in the thread that compacts, while it holds no lock.
    fn when_rewritten(&self, hook: impl FnOnce() + Send + 'static) {
        *self.hook.lock().unwrap() = Some(Box::new(hook));
    }

    fn has_fired(&self) -> bool {
        self.hook.lock().unwrap().is_none()
    }
}

impl Disk for Hooked {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.create_dir(path)
    }
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        OsDisk.list(path)
    }
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        let file = OsDisk.open(path, mode)?;
        let name = path.file_name().unwrap().to_str().unwrap();
        let is_rewritten = name.ends_with(".segment") && !name.ends_with("-0.segment");
        if mode == OpenMode::Create && is_rewritten {
            return Ok(Arc::new(HookedFile { file, disk: self.clone() }));
        }
        Ok(file)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        OsDisk.rename(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
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

impl File for HookedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }
    fn read_at(&self, buf: &mut [u8], position: u64) -> io::Result<usize> {
        self.file.read_at(buf, position)
    }
    fn write_at(&self, parts: &[IoSlice<'_>], position: u64) -> io::Result<()> {
        self.file.write_at(parts, position)
    }
    fn sync(&self) -> io::Result<()> {
        let hook = self.disk.hook.lock().unwrap().take();
        if let Some(hook) = hook {
            hook();
        }
        self.file.sync()
    }
    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.file.set_len(bytes)
    }
    fn allocate(&self, bytes: u64) -> io::Result<()> {
        self.file.allocate(bytes)
    }
    fn map(&self, capacity: u64) -> io::Result<Arc<dyn Map>> {
        self.file.map(capacity)
    }
    fn writer(self: Arc<Self>, capacity: u64) -> io::Result<Box<dyn Writer>> {
        Arc::clone(&self.file).writer(capacity)
    }
}

/// A store on the real disk in which nothing happens by itself.
struct Rig {
    dir: tempfile::TempDir,
    clock: Arc<Standing>,
    disk: Hooked,
    store: Store,
}

const NO_AGE: Compaction = Compaction {
    records_per_key: 1,
    lag_min: Duration::ZERO,
    tombstone_age_max: Duration::ZERO,
    bytes_per_second_max: 0,
};

fn topic_settings(compaction: Compaction) -> TopicSettings {
    TopicSettings { segment_bytes_max: 4096, compaction: Some(compaction), ..TopicSettings::default() }
}

fn store_settings() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 512 << 10,
        append_bytes_max: 16 << 10,
        background: false,
        ..StoreSettings::default()
    }
}

impl Rig {
    fn new() -> Self {
        let (dir, clock, disk) =
            (tempfile::tempdir().unwrap(), Arc::<Standing>::default(), Hooked::default());
        clock.advance(1_000_000);
        let store = Self::open(dir.path(), &clock, &disk);
        Self { dir, clock, disk, store }
    }

    fn open(dir: &Path, clock: &Arc<Standing>, disk: &Hooked) -> Store {
        let clock: Arc<dyn Clock> = Arc::clone(clock) as _;
        let builder = Store::builder().settings(store_settings()).disk(Arc::new(disk.clone())).clock(clock);
        builder.open(dir).unwrap()
    }

    fn reopen(&mut self) {
        self.store.close().unwrap();
        self.store = Self::open(self.dir.path(), &self.clock, &self.disk);
    }

    fn topic(&self, compaction: Compaction) -> Topic {
        self.store.create_topic("t", topic_settings(compaction)).unwrap()
    }

    /// The topic's segment files, in order.
    fn segments(&self) -> Vec<PathBuf> {
        let topics = std::fs::read_dir(self.dir.path().join("topics")).unwrap();
        let files = topics.flat_map(|dir| std::fs::read_dir(dir.unwrap().path()).unwrap());
        let is_segment = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "segment");
        let mut files: Vec<_> = files.map(|file| file.unwrap().path()).filter(is_segment).collect();
        files.sort();
        files
    }

    /// Where the active segment starts, after a checkpoint.
    fn active_from(&self) -> u64 {
        self.segments().last().map_or(0, |path| base_offset(path))
    }
}

/// The base offset in the name of a segment file.
fn base_offset(path: &Path) -> u64 {
    path.file_name().unwrap().to_str().unwrap()[..20].parse().unwrap()
}

fn append(topic: &Topic, records: &[Record]) {
    topic.append_with(records, Durability::Written).unwrap();
}

/// Appends values of these keys, one batch each, each in the same number of bytes.
fn append_keys(topic: &Topic, keys: impl IntoIterator<Item = u64>) {
    for key in keys {
        append(topic, &[Record::keyed(format!("key {key}"), format!("{:0100}", topic.log_end_offset().0))]);
    }
}

fn all(topic: &Topic) -> Vec<StoredRecord> {
    topic.read(Start::Earliest).unwrap().map(|record| record.unwrap()).collect()
}

fn offsets(records: &[StoredRecord]) -> Vec<u64> {
    records.iter().map(|record| record.offset().0).collect()
}

/// Every way of reading shows exactly these records.
fn check_reads(topic: &Topic, expected: &[StoredRecord]) {
    assert_eq!(all(topic), expected);
    let mut backwards: Vec<_> = topic.read_backwards(Offset::MAX).map(|record| record.unwrap()).collect();
    backwards.reverse();
    assert_eq!(backwards, expected);
    let first = |start: Start| topic.read(start).unwrap().next().map(|record| record.unwrap().offset().0);
    let by_offset: BTreeMap<u64, &StoredRecord> =
        expected.iter().map(|record| (record.offset().0, record)).collect();
    for offset in topic.log_start_offset().0..topic.high_watermark().0 {
        let found = topic.get(Offset(offset)).unwrap();
        assert_eq!(found.as_ref(), by_offset.get(&offset).copied(), "offset {offset}");
        let next = by_offset.range(offset..).next().map(|(offset, _)| *offset);
        assert_eq!(first(Start::Offset(Offset(offset))), next, "from offset {offset}");
        let mut before = topic.read_backwards(Offset(offset)).map(|record| record.unwrap().offset().0);
        assert_eq!(before.next(), by_offset.range(..offset).next_back().map(|(offset, _)| *offset));
    }
    for last in 1..=expected.len() {
        let from = expected[expected.len() - last].offset().0;
        assert_eq!(first(Start::Last(last as u64)), Some(from), "the last {last}");
    }
    let times: BTreeSet<Timestamp> = expected.iter().map(|record| record.append_time()).collect();
    for time in times {
        let from = expected.iter().find(|record| record.append_time() >= time).unwrap();
        assert_eq!(first(Start::Time(time)), Some(from.offset().0), "from {time}");
    }
}

/// What must stay of `records` if those below `sealed_to` may go.
fn survivors(records: &[StoredRecord], rules: &Compaction, now: u64, sealed_to: u64) -> Vec<StoredRecord> {
    let age = |record: &StoredRecord| u128::from(now - record.append_time().0);
    let stays = |record: &StoredRecord| {
        let Some(key) = record.key() else { return true };
        if record.offset().0 >= sealed_to || age(record) < rules.lag_min.as_millis() {
            return true;
        }
        let same: Vec<_> = records.iter().filter(|other| other.key() == Some(key)).collect();
        let latest = same.last().unwrap();
        let latest_goes = latest.payload().is_none()
            && latest.offset().0 < sealed_to
            && age(latest) >= rules.lag_min.as_millis().max(rules.tombstone_age_max.as_millis());
        let newer = same.iter().filter(|other| other.offset() > record.offset()).count();
        let is_latest_tombstone = newer == 0 && record.payload().is_none();
        !latest_goes && (is_latest_tombstone || newer < rules.records_per_key as usize)
    };
    records.iter().filter(|record| stays(record)).cloned().collect()
}

/// Repeatable chance.
struct Dice(u64);

impl Dice {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }
}

#[test]
fn whatever_is_appended_and_compacted_is_what_a_plain_list_says() {
    for seed in 0..12 {
        let mut dice = Dice(seed);
        let mut rig = Rig::new();
        let rules = Compaction {
            records_per_key: 1 + u32::try_from(dice.below(3)).unwrap(),
            lag_min: Duration::from_millis(dice.below(2) * 30),
            tombstone_age_max: Duration::from_millis(dice.below(2) * 100),
            bytes_per_second_max: 0,
        };
        let codec = if seed % 2 == 0 { Codec::None } else { Codec::Lz4 };
        let settings = TopicSettings { codec, ..topic_settings(rules) };
        let mut topic = rig.store.create_topic("t", settings).unwrap();
        let mut expected = Vec::new();
        // More keys than fit into the smallest memory, so that several passes are needed.
        let keys = 1 + dice.below(60);
        for round in 0..5 {
            for _ in 0..40 {
                let count = 1 + dice.below(8);
                let record = |dice: &mut Dice| {
                    let key = format!("key {}", dice.below(keys));
                    match dice.below(10) {
                        0 => Record::new("no key"),
                        1 | 2 => Record::tombstone(key),
                        _ => Record::keyed(
                            key,
                            format!(
                                "{:0width$}",
                                dice.below(99),
                                width = usize::try_from(dice.below(200)).unwrap()
                            ),
                        ),
                    }
                };
                let records: Vec<_> = (0..count).map(|_| record(&mut dice)).collect();
                append(&topic, &records);
                rig.clock.advance(dice.below(3));
            }
            rig.store.sync().unwrap();
            let from = expected.last().map_or(0, |record: &StoredRecord| record.offset().0 + 1);
            expected.extend(all(&topic).into_iter().filter(|record| record.offset().0 >= from));
            let options = CompactOptions { keys_max: 16, ..CompactOptions::default() };
            let report = topic.compact_with(&options, &CompactionControl::new()).unwrap();
            assert!(report.is_complete && report.damaged.is_empty(), "{report:?}");
            let before = expected.len();
            expected = survivors(&expected, &rules, rig.clock.now().0, rig.active_from());
            println!("seed {seed} round {round}: {before} -> {}, {} passes", expected.len(), report.passes);
            assert_eq!(report.records_removed.total(), (before - expected.len()) as u64, "{report:?}");
            let kept = report.records_kept;
            let kept = kept.latest + kept.no_key + kept.too_young + kept.tombstone_young;
            assert_eq!(report.records_before, report.records_removed.total() + kept, "{report:?}");
            assert!(keys <= 40 || report.passes > 2, "{report:?}");
            check_reads(&topic, &expected);
            if dice.below(2) == 0 {
                drop(topic);
                rig.reopen();
                topic = rig.store.topic("t").unwrap();
                check_reads(&topic, &expected);
            }
        }
    }
}

#[test]
fn a_dry_run_changes_nothing_and_foretells_what_a_run_does() {
    let rig = Rig::new();
    let topic = rig.topic(NO_AGE);
    append_keys(&topic, (0..400).map(|n| n % 7));
    append(&topic, &[Record::tombstone("key 3")]);
    append_keys(&topic, (1000..1040).chain([5]));
    rig.store.checkpoint().unwrap();
    let (files, records) = (rig.segments(), all(&topic));
    let options = CompactOptions { dry_run: true, ..CompactOptions::default() };
    let forecast = topic.compact_with(&options, &CompactionControl::new()).unwrap();
    assert_eq!(rig.segments(), files);
    assert_eq!(all(&topic), records);
    assert_eq!(topic.stats().last_compaction, None);
    let report = topic.compact().unwrap();
    assert!(forecast.is_dry_run && !report.is_dry_run);
    assert_eq!(forecast.records_removed, report.records_removed);
    assert_eq!(forecast.records_kept, report.records_kept);
    assert_eq!(forecast.keys, report.keys);
    assert!(report.records_removed.superseded > 350, "{report:?}");
    assert_eq!(report.records_removed.tombstone_expired, 1);
    assert!(
        forecast.bytes_after.abs_diff(report.bytes_after) * 5 < report.bytes_after,
        "{forecast:?} {report:?}"
    );
    assert_eq!(report.segments_before, files.len() as u64 - 1);
    assert_eq!(report.segments_after, rig.segments().len() as u64 - 1);
    assert_eq!(topic.stats().last_compaction, Some(report));
}

#[test]
fn a_tombstone_stays_for_its_time_and_then_its_key_is_gone() {
    let rig = Rig::new();
    let rules = Compaction { tombstone_age_max: Duration::from_millis(1000), ..NO_AGE };
    let topic = rig.topic(rules);
    append(&topic, &[Record::keyed("a", "1"), Record::tombstone("a"), Record::keyed("b", "2")]);
    append_keys(&topic, 0..80);
    let with_key = |key: &str| {
        all(&topic)
            .iter()
            .filter(|record| record.key() == Some(key.as_bytes()))
            .map(|r| r.offset().0)
            .collect::<Vec<_>>()
    };
    rig.clock.advance(999);
    let report = topic.compact().unwrap();
    assert_eq!(report.records_kept.tombstone_young, 1);
    assert_eq!((with_key("a"), with_key("b")), (vec![1], vec![2]));
    rig.clock.advance(1);
    let report = topic.compact().unwrap();
    assert_eq!(report.records_removed, RecordsRemoved { tombstone_expired: 1, ..RecordsRemoved::default() });
    assert_eq!((with_key("a"), with_key("b")), (vec![], vec![2]));
}

#[test]
fn a_second_run_finds_nothing_to_do_and_writes_nothing() {
    let rig = Rig::new();
    let topic = rig.topic(NO_AGE);
    append_keys(&topic, (0..500).map(|n| n % 50));
    topic.compact().unwrap();
    let (files, records) = (rig.segments(), all(&topic));
    let report = topic.compact().unwrap();
    assert_eq!((report.segments_replaced, report.records_removed.total()), (0, 0), "{report:?}");
    assert_eq!(report.bytes_after, report.bytes_before);
    assert_eq!(rig.segments(), files);
    assert_eq!(all(&topic), records);
}

#[test]
fn segments_that_became_small_are_merged_up_to_the_size_of_one() {
    let rig = Rig::new();
    let topic = rig.topic(NO_AGE);
    // Of each segment few records stay.
    append_keys(&topic, (0..1000).map(|n| if n % 20 == 0 { 10_000 + n } else { n % 3 }));
    rig.store.checkpoint().unwrap();
    let before = rig.segments().len();
    let report = topic.compact().unwrap();
    let files = rig.segments();
    assert!(files.len() * 5 < before, "{before} files became {}", files.len());
    let sizes: Vec<u64> = files.iter().map(|file| file.metadata().unwrap().len()).collect();
    assert!(sizes.iter().all(|&bytes| bytes <= 4096 + 300), "{sizes:?}");
    assert_eq!(report.bytes_after, sizes[..sizes.len() - 1].iter().sum::<u64>());
}

#[test]
fn batches_that_lose_nothing_are_copied_byte_for_byte() {
    let rig = Rig::new();
    let settings = TopicSettings { codec: Codec::Lz4, ..topic_settings(NO_AGE) };
    let topic = rig.store.create_topic("t", settings).unwrap();
    let text = |n: u64| "abcdefgh".repeat(20 + usize::try_from(n).unwrap());
    for n in 0..200 {
        let records = [Record::keyed("same", text(n)), Record::keyed(format!("other {n}"), text(n))];
        append(&topic, &records[usize::from(n % 2 == 0)..]);
    }
    rig.store.checkpoint().unwrap();
    let batches = |topic: &Topic| {
        let mut cursor = topic.cursor(Start::Earliest, quipu_storage::Visibility::Synced).unwrap();
        std::iter::from_fn(move || cursor.next_batch().unwrap())
            .map(|read| read.batch().clone())
            .collect::<Vec<_>>()
    };
    let before = batches(&topic);
    topic.compact().unwrap();
    let sealed_to = rig.active_from();
    let mut same = 0;
    for (old, new) in before.iter().zip(batches(&topic)) {
        assert_eq!((old.base_offset(), old.next_offset()), (new.base_offset(), new.next_offset()));
        assert_eq!((old.append_time(), old.header().codec), (new.append_time(), new.header().codec));
        let loses = old.header().record_count == 2 && old.base_offset().0 < sealed_to;
        assert_eq!(old.as_bytes() == new.as_bytes(), !loses, "batch at {}", old.base_offset());
        same += u32::from(!loses);
    }
    assert_eq!(before.len(), 200);
    assert!((100..150).contains(&same), "{same}");
}

#[test]
fn a_cancelled_run_keeps_what_it_has_replaced_and_the_next_one_goes_on() {
    let rig = Rig::new();
    let topic = rig.topic(NO_AGE);
    // Two records in three go, so that there are many new segments.
    append_keys(&topic, (0..900).map(|n| if n % 3 == 0 { 10_000 + n } else { n % 3 }));
    rig.store.sync().unwrap();
    let records = all(&topic);
    let control = Arc::new(CompactionControl::new());
    let (disk, on_second) = (rig.disk.clone(), Arc::clone(&control));
    rig.disk.when_rewritten(move || disk.when_rewritten(move || on_second.cancel()));
    let error = topic.compact_with(&CompactOptions::default(), &control).unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
    assert_eq!(control.progress().segments_written, 1);
    let partial = topic.stats().last_compaction.unwrap();
    assert!(!partial.is_complete && partial.records_removed.total() > 0, "{partial:?}");
    assert!(partial.records_kept.not_reached > partial.records_removed.total(), "{partial:?}");
    let rest = topic.compact().unwrap();
    assert_eq!(rest.records_removed.total(), partial.records_kept.not_reached);
    check_reads(&topic, &survivors(&records, &NO_AGE, rig.clock.now().0, rig.active_from()));
}

#[test]
fn only_one_run_at_a_time() {
    let rig = Rig::new();
    let topic = rig.topic(NO_AGE);
    append_keys(&topic, (0..100).map(|n| n % 3));
    let again = topic.clone();
    rig.disk.when_rewritten(move || {
        let error = again.compact().unwrap_err();
        assert!(matches!(error, Error::AlreadyRunning { what: "compaction" }), "{error}");
    });
    topic.compact().unwrap();
    assert!(rig.disk.has_fired());
    topic.compact().unwrap();
}

#[test]
fn a_topic_for_which_nobody_said_what_stays_is_not_compacted() {
    let rig = Rig::new();
    let history = rig.store.topic_or_create("history").unwrap();
    let memory = TopicSettings { storage: Storage::Memory { bytes_max: 8192 }, ..TopicSettings::default() };
    let memory = rig.store.create_topic("memory", memory).unwrap();
    for topic in [&history, &memory] {
        let error = topic.compact().unwrap_err();
        assert!(matches!(error, Error::InvalidSetting { .. }), "{error}");
    }
    append_keys(&history, (0..100).map(|n| n % 3));
    let options = CompactOptions { compaction: Some(NO_AGE), dry_run: true, ..CompactOptions::default() };
    history.compact_with(&options, &CompactionControl::new()).unwrap();
    let bad = Compaction { records_per_key: 0, ..NO_AGE };
    let options = CompactOptions { compaction: Some(bad), ..CompactOptions::default() };
    assert!(matches!(
        history.compact_with(&options, &CompactionControl::new()),
        Err(Error::InvalidSetting { setting: "compaction.records_per_key", .. })
    ));
}

#[test]
fn segments_that_are_trimmed_while_they_are_rewritten_do_not_come_back() {
    // Within what is rewritten, at its end, and behind it.
    for trim_to in [10, 150, 299, 300] {
        let mut rig = Rig::new();
        let topic = rig.topic(NO_AGE);
        append_keys(&topic, (0..300).map(|n| if n % 10 == 0 { 1000 + n } else { 1 }));
        rig.store.sync().unwrap();
        let records = all(&topic);
        let trimmed = topic.clone();
        rig.disk.when_rewritten(move || trimmed.trim(Offset(trim_to)).unwrap());
        topic.compact().unwrap();
        assert!(rig.disk.has_fired());
        let bases: Vec<u64> = rig.segments().iter().map(|path| base_offset(path)).collect();
        assert!(bases.windows(2).all(|pair| pair[1] > trim_to), "{bases:?} when trimmed to {trim_to}");
        assert!(trim_to < 300 || bases.is_empty(), "{bases:?}");
        let stays = |record: &&StoredRecord| record.offset().0 >= trim_to;
        let records: Vec<_> = records.iter().filter(stays).cloned().collect();
        let must: BTreeSet<_> =
            offsets(&survivors(&records, &NO_AGE, rig.clock.now().0, u64::MAX)).into_iter().collect();
        for _ in 0..2 {
            let topic = rig.store.topic("t").unwrap();
            assert_eq!(topic.log_start_offset(), Offset(trim_to));
            let found = all(&topic);
            assert!(found.iter().all(|record| records.contains(record)));
            assert!(must.is_subset(&offsets(&found).into_iter().collect()));
            drop(topic);
            rig.reopen();
        }
        let topic = rig.store.topic("t").unwrap();
        topic.compact().unwrap();
        check_reads(&topic, &survivors(&records, &NO_AGE, rig.clock.now().0, rig.active_from().min(299)));
    }
}

#[test]
fn a_topic_that_is_deleted_while_it_is_compacted_leaves_nothing_behind() {
    for checkpoints in [false, true] {
        let rig = Rig::new();
        let topic = rig.topic(NO_AGE);
        append_keys(&topic, (0..100).map(|n| n % 3));
        let store = rig.store.clone();
        rig.disk.when_rewritten(move || {
            store.delete_topic("t").unwrap();
            if checkpoints {
                store.checkpoint().unwrap();
            }
        });
        let error = topic.compact().unwrap_err();
        assert!(matches!(error, Error::TopicNotFound { .. }), "{error}");
        rig.store.checkpoint().unwrap();
        assert_eq!(std::fs::read_dir(rig.dir.path().join("topics")).unwrap().count(), 0);
        rig.store.topic_or_create("t").unwrap().append(&[Record::new("x")]).unwrap();
    }
}

#[test]
fn closing_the_store_ends_a_run_and_waits_for_it() {
    let rig = Rig::new();
    let topic = rig.topic(NO_AGE);
    append_keys(&topic, (0..100).map(|n| n % 3));
    rig.store.sync().unwrap();
    let records = all(&topic);
    let (store, probe, dir) = (rig.store.clone(), topic.clone(), rig.dir.path().to_owned());
    let (sender, closer) = std::sync::mpsc::channel();
    rig.disk.when_rewritten(move || {
        sender.send(std::thread::spawn(move || store.close())).unwrap();
        // Until the other thread has got so far that the run must notice.
        while probe.append_with(&[], Durability::Written).is_ok()
            || !matches!(probe.append(&[Record::new("x")]), Err(Error::Closed))
        {
            std::thread::yield_now();
        }
        // However long the run takes from here, nobody else gets the directory.
        let begun = std::time::Instant::now();
        while begun.elapsed() < Duration::from_millis(200) {
            let error = Store::open(&dir).unwrap_err();
            assert!(matches!(error, Error::Locked { .. }), "{error}");
        }
    });
    let error = topic.compact().unwrap_err();
    assert!(matches!(error, Error::Closed), "{error}");
    closer.recv().unwrap().join().unwrap().unwrap();
    assert!(rig.segments().iter().all(|path| path.to_str().unwrap().ends_with("-0.segment")));
    let store = Rig::open(rig.dir.path(), &rig.clock, &rig.disk);
    assert!(store.recovery().was_clean);
    let found = all(&store.topic("t").unwrap());
    assert_eq!(found[..records.len()], records);
}

#[test]
fn what_is_damaged_stays_as_it_is_is_reported_and_no_tombstone_behind_it_goes() {
    let mut rig = Rig::new();
    let topic = rig.topic(NO_AGE);
    append(&topic, &[Record::keyed("a", "old")]);
    append_keys(&topic, (0..60).map(|n| n % 3));
    append(&topic, &[Record::tombstone("a")]);
    append_keys(&topic, (0..60).map(|n| n % 3));
    drop(topic);
    rig.reopen();
    let first = rig.segments().remove(0);
    let mut bytes = std::fs::read(&first).unwrap();
    bytes[1500] ^= 1;
    std::fs::write(&first, &bytes).unwrap();
    let topic = rig.store.topic("t").unwrap();
    let report = topic.compact().unwrap();
    assert_eq!(report.damaged.len(), 1, "{report:?}");
    assert_eq!(report.damaged[0].path, first);
    assert!(report.damaged[0].offsets.contains(&Offset(9)), "{report:?}");
    assert_eq!(report.records_removed.tombstone_expired, 0, "{report:?}");
    assert!(report.records_removed.superseded > 50, "{report:?}");
    assert!(report.records_kept.damaged > 5, "{report:?}");
    assert_eq!(std::fs::read(&first).unwrap(), bytes);
    let found: Vec<_> = topic.read(Start::Earliest).unwrap().collect();
    assert_eq!(found.iter().filter(|record| record.is_err()).count(), 1);
    let of_a: Vec<_> = found
        .iter()
        .flatten()
        .filter(|record| record.key() == Some(b"a"))
        .map(|record| (record.offset().0, record.payload().is_none()))
        .collect();
    assert_eq!(of_a, [(0, false), (61, true)]);
}

#[test]
fn appends_and_reads_go_on_while_segments_are_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings {
        background: true,
        checkpoint_interval: Duration::from_millis(10),
        ..store_settings()
    };
    let store = Store::builder().settings(settings).open(dir.path()).unwrap();
    let topic = store.create_topic("t", topic_settings(NO_AGE)).unwrap();
    append_keys(&topic, (0..600).map(|n| n % 20));
    store.sync().unwrap();
    let is_done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for n in 0..2000 {
                append_keys(&topic, [n % 20]);
            }
            store.sync().unwrap();
            is_done.store(true, Ordering::Release);
        });
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_done.load(Ordering::Acquire) {
                    // From wherever it starts, a reader ends with the latest value of every key.
                    let end = topic.high_watermark();
                    let mut latest = BTreeMap::new();
                    let mut last = None;
                    for record in topic.read(Start::Earliest).unwrap() {
                        let record = record.unwrap();
                        assert!(last < Some(record.offset()), "offsets rise");
                        assert_eq!(
                            record.payload().unwrap(),
                            format!("{:0100}", record.offset().0).as_bytes()
                        );
                        last = Some(record.offset());
                        latest.insert(record.key().unwrap().to_vec(), record.offset());
                    }
                    assert_eq!(latest.len(), 20);
                    assert!(latest.values().all(|offset| offset.0 + 20 >= end.0), "{latest:?} {end}");
                }
            });
        }
        while !is_done.load(Ordering::Acquire) {
            match topic.compact() {
                Ok(_) | Err(Error::AlreadyRunning { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    topic.compact().unwrap();
    assert!(topic.stats().segments < 10, "{:?}", topic.stats());
    let records = all(&topic);
    drop((topic, store));
    let store = Store::builder().settings(store_settings()).open(dir.path()).unwrap();
    check_reads(&store.topic("t").unwrap(), &records);
}

#[test]
fn a_topic_that_is_set_to_be_compacted_is_compacted_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings {
        background: true,
        checkpoint_interval: Duration::from_millis(10),
        retention_interval: Duration::from_millis(10),
        ..store_settings()
    };
    let store = Store::builder().settings(settings).open(dir.path()).unwrap();
    let topic = store.create_topic("t", topic_settings(NO_AGE)).unwrap();
    let history =
        store.create_topic("history", TopicSettings { compaction: None, ..topic_settings(NO_AGE) }).unwrap();
    append_keys(&history, (0..300).map(|n| n % 20));
    let begun = std::time::Instant::now();
    let mut appended = 0;
    while topic.stats().last_compaction.is_none_or(|report| report.records_removed.superseded == 0) {
        // No more than a pass gets through in a moment.
        if appended < 2000 {
            append_keys(&topic, (0..20).map(|n| n % 20));
            appended += 20;
        } else {
            std::thread::yield_now();
        }
        assert!(begun.elapsed() < Duration::from_secs(60), "nothing was compacted");
    }
    store.sync().unwrap();
    assert!(all(&topic).len() < appended);
    assert_eq!(all(&history).len(), 300);
}

#[test]
fn what_is_appended_during_a_run_neither_goes_nor_makes_others_go() {
    let rig = Rig::new();
    let topic = rig.topic(NO_AGE);
    append_keys(&topic, (0..100).map(|n| n % 3));
    let (appended, store) = (topic.clone(), rig.store.clone());
    rig.disk.when_rewritten(move || {
        append_keys(&appended, [0, 1, 2]);
        store.checkpoint().unwrap();
    });
    let report = topic.compact().unwrap();
    assert!(rig.disk.has_fired());
    assert_eq!(report.keys, 3);
    let found = offsets(&all(&topic));
    assert_eq!(found[found.len() - 6..], [97, 98, 99, 100, 101, 102]);
}

#[test]
fn a_run_reads_no_faster_than_it_may_and_can_be_cancelled_while_it_waits() {
    let rig = Rig::new();
    let bytes_per_second_max = 64 << 10;
    let topic = rig.topic(Compaction { bytes_per_second_max, ..NO_AGE });
    append_keys(&topic, (0..200).map(|n| n % 3));
    let options = CompactOptions { dry_run: true, ..CompactOptions::default() };
    let control = CompactionControl::new();
    let report = topic.compact_with(&options, &control).unwrap();
    let progress = control.progress();
    assert_eq!((progress.bytes_read, progress.bytes_to_read), (report.bytes_read, report.bytes_read));
    assert!(report.bytes_read > 20_000, "{report:?}");
    assert!(report.duration.as_secs_f64() > report.bytes_read as f64 / bytes_per_second_max as f64 - 0.001);
    let control = CompactionControl::new();
    std::thread::scope(|scope| {
        let run = scope.spawn(|| topic.compact_with(&options, &control));
        while control.progress().bytes_read == 0 {
            std::thread::yield_now();
        }
        control.cancel();
        let error = run.join().unwrap().unwrap_err();
        assert!(matches!(error, Error::Cancelled { what: "compaction" }), "{error}");
    });
    assert!(control.progress().bytes_read < report.bytes_read);
}

#[test]
fn one_append_over_two_topics_is_compacted_in_each_by_itself() {
    let rig = Rig::new();
    let (a, b) = (rig.topic(NO_AGE), rig.store.topic_or_create("b").unwrap());
    for n in 0..100 {
        let record = [Record::keyed("k", format!("{n:0100}"))];
        rig.store.append(Append::new().records(&a, &record).unwrap().records(&b, &record).unwrap()).unwrap();
    }
    a.compact().unwrap();
    assert!(all(&a).len() < 40);
    assert_eq!(all(&b).len(), 100);
}
