//! Sealed payloads and their erasure, on the real disk: what lies in which file, and what each reader gets.

#![cfg(feature = "erasure")]
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::fs;
use std::path::{Path, PathBuf};

use quipu_storage::format::master_key::{
    DEPTH, ERASED_KEYS_MAX, MasterKeyFile, Node, PATH_BYTES, SEED_BYTES,
};
use quipu_storage::verify::VerifyOptions;
use quipu_storage::{
    Append, Codec, CompactOptions, Compaction, CompactionControl, Durability, Error, ErrorKind, Filter, Log,
    Offset, Producer, Record, Redaction, Revision, Start, Storage, Store, StoreBuilder, StoreSettings,
    StreamStart, TopicSettings, Uid, Visibility,
};

const NOWHERE: [PathBuf; 0] = [];
/// Text that is nowhere else.
const SECRET: &str = "the-secret-of-customer-17";

/// A directory with a store and, beside it, its master key.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    fn key(&self) -> PathBuf {
        self.dir.path().join("master.key")
    }

    fn builder(&self) -> StoreBuilder {
        let settings = StoreSettings { background: false, ..StoreSettings::default() };
        Store::builder().settings(settings).master_key(self.key()).create_master_key(true)
    }

    fn open(&self) -> Store {
        self.builder().open(self.store()).unwrap()
    }

    /// A copy of the store's directory as it is.
    fn back_up(&self, name: &str) -> PathBuf {
        let to = self.dir.path().join(name);
        copy(&self.store(), &to);
        to
    }

    fn open_copy(&self, store: &Path, key: &Path) -> Result<Store, Error> {
        Store::builder().master_key(key).open(store)
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

/// Files below a directory that hold a text.
fn files_with(dir: &Path, text: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            found.extend(files_with(&entry.path(), text));
        } else {
            let bytes = fs::read(entry.path()).unwrap();
            if bytes.windows(text.len()).any(|part| part == text.as_bytes()) {
                found.push(entry.path());
            }
        }
    }
    found
}

fn secret(number: u32) -> Record {
    Record::keyed(format!("order-{number}"), format!("{SECRET} {number}")).with_erasure_key("customer-17")
}

fn other(number: u32) -> Record {
    Record::keyed(format!("order-{number}"), format!("of another {number}")).with_erasure_key("customer-18")
}

/// What a reader sees of a record.
type Seen = (u64, Option<String>, Option<Redaction>);

fn seen(records: impl Iterator<Item = quipu_storage::Result<quipu_storage::StoredRecord>>) -> Vec<Seen> {
    records
        .map(|record| {
            let record = record.unwrap();
            let text = record.payload().map(|payload| String::from_utf8_lossy(payload).into_owned());
            (record.offset().0, text, record.redacted())
        })
        .collect()
}

fn read(store: &Store) -> Vec<Seen> {
    seen(store.topic("orders").unwrap().read(Start::Earliest).unwrap())
}

fn plain(offset: u64, text: &str) -> Seen {
    (offset, Some(text.into()), None)
}

fn erased(offset: u64) -> Seen {
    (offset, None, Some(Redaction::Erased))
}

fn locked(offset: u64) -> Seen {
    (offset, None, Some(Redaction::Locked))
}

#[test]
fn a_sealed_payload_is_in_no_file_and_comes_back_to_every_reader() {
    for codec in [Codec::None, Codec::Lz4] {
        let place = Place::new();
        let store = place.open();
        let settings = TopicSettings { codec, ..TopicSettings::default() };
        let orders = store.create_topic("orders", settings).unwrap();
        let long = Record::new("plain ".repeat(100)).with_tag("vip");
        orders.append(&[secret(0), long, secret(2), Record::tombstone("order-0")]).unwrap();
        let text = |number: u32| format!("{SECRET} {number}");
        let expected =
            [plain(0, &text(0)), plain(1, &"plain ".repeat(100)), plain(2, &text(2)), (3, None, None)];
        for _ in 0..2 {
            assert_eq!(read(&store), expected);
            store.checkpoint().unwrap();
        }
        let mut backwards = seen(orders.read_backwards(Offset::MAX));
        backwards.reverse();
        assert_eq!(backwards, expected);
        let record = orders.get(Offset(2)).unwrap().unwrap();
        assert_eq!(record.view().erasure_key, Some("customer-17"));
        assert_eq!(record.payload(), Some(text(2).as_bytes()));
        let stream = seen(orders.read_stream(b"order-0", StreamStart::Earliest).unwrap());
        assert_eq!(stream, [expected[0].clone(), expected[3].clone()]);
        store.close().unwrap();
        assert_eq!(files_with(place.dir.path(), SECRET), NOWHERE);
        assert_eq!(read(&place.open()), expected);
    }
}

#[test]
fn what_is_erased_is_erased_in_every_copy_and_nothing_else_is() {
    let place = Place::new();
    let store = place.open();
    let orders = store.topic_or_create("orders").unwrap();
    orders.append(&[secret(0), other(1)]).unwrap();
    orders.append(&[secret(2), Record::new("plain")]).unwrap();
    store.checkpoint().unwrap();
    let backup = place.back_up("backup");
    let old_key = place.dir.path().join("old.key");
    fs::copy(place.key(), &old_key).unwrap();

    let mut cursor = orders.cursor(Start::Earliest, Visibility::Synced).unwrap();
    assert!(cursor.next_batch().unwrap().unwrap().owned()[0].as_ref().unwrap().payload().is_some());
    let report = store.erase(&["customer-17", "customer-17", "never-used"]).unwrap();
    assert_eq!((report.destroyed, report.destroyed_before, report.is_old_file_overwritten), (2, 0, true));
    let report = store.erase(&["customer-17", "customer-99"]).unwrap();
    assert_eq!((report.destroyed, report.destroyed_before), (1, 1));
    assert!(store.is_erased("customer-17").unwrap());
    assert!(!store.is_erased("customer-18").unwrap());

    let expected = [erased(0), plain(1, "of another 1"), erased(2), plain(3, "plain")];
    assert_eq!(seen(cursor.next_batch().unwrap().unwrap().owned().into_iter()), expected[2..]);
    assert_eq!(read(&store), expected);
    let view = orders.get(Offset(0)).unwrap().unwrap();
    assert_eq!((view.key(), view.view().erasure_key), (Some(&b"order-0"[..]), Some("customer-17")));
    for record in [secret(9), Record { payload: None, ..secret(9) }] {
        let error = orders.append(&[other(8), record]).unwrap_err();
        assert!(
            matches!(&error, Error::ErasureKeyDestroyed { index: 1, erasure_key } if erasure_key == "customer-17"),
            "{error}"
        );
    }
    assert_eq!(store.stats().erasure_keys_destroyed, Some(3));
    store.close().unwrap();
    assert_eq!(read(&place.open()), expected);

    assert_eq!(files_with(&backup, SECRET), NOWHERE);
    let restored = place.open_copy(&backup, &place.key()).unwrap();
    assert_eq!(read(&restored), expected);
    drop(restored);

    // Why a master key must not be in a backup: an old copy of both is all there was.
    let older = place.dir.path().join("older");
    copy(&backup, &older);
    fs::remove_file(older.join("lock")).unwrap();
    let error = place.open_copy(&older, &old_key).unwrap_err();
    // The restored store has been opened with the new master key, and knows.
    assert!(matches!(error, Error::MasterKeyRefused { .. }), "{error}");
}

#[test]
fn an_old_copy_of_both_store_and_master_key_still_has_what_was_erased() {
    let place = Place::new();
    let store = place.open();
    store.topic_or_create("orders").unwrap().append(&[secret(0)]).unwrap();
    let backup = place.back_up("backup");
    let old_key = place.dir.path().join("old.key");
    fs::copy(place.key(), &old_key).unwrap();
    store.erase(&["customer-17"]).unwrap();
    store.close().unwrap();
    let restored = place.open_copy(&backup, &old_key).unwrap();
    assert_eq!(read(&restored), [plain(0, &format!("{SECRET} 0"))]);
    drop(restored);
    let error = place.open_copy(&place.store(), &old_key).unwrap_err();
    assert!(
        error.to_string().contains("an old copy, in which 0 keys are destroyed of at least 1"),
        "{error}"
    );
    assert_eq!(read(&place.open()), [erased(0)]);
}

#[test]
fn without_its_master_key_a_store_does_everything_but_sealing_and_says_locked() {
    let place = Place::new();
    let store = place.open();
    store.topic_or_create("orders").unwrap().append(&[secret(0), other(1), Record::tombstone("k")]).unwrap();
    store.erase(&["customer-18"]).unwrap();
    store.close().unwrap();
    let store = Store::open(place.store()).unwrap();
    let orders = store.topic("orders").unwrap();
    orders.append(&[Record::new("plain")]).unwrap();
    // That a key was destroyed only the master key knows.
    let expected = [locked(0), locked(1), (2, None, None), plain(3, "plain")];
    assert_eq!(read(&store), expected);
    for error in [
        orders.append(&[Record::new("plain"), secret(9)]).unwrap_err(),
        store.erase(&["customer-17"]).unwrap_err(),
        store.is_erased("customer-17").unwrap_err(),
    ] {
        assert!(matches!(error, Error::MasterKeyMissing), "{error}");
        assert_eq!(error.kind(), ErrorKind::Busy);
    }
    assert_eq!(orders.log_end_offset(), Offset(4));
    assert_eq!((store.stats().records_redacted, store.stats().erasure_keys_destroyed), (2, None));
    let follower = Store::open_read_only(place.store()).unwrap();
    let read = follower.topic("orders").unwrap().read(Start::Earliest).unwrap();
    assert_eq!(seen(read), expected);
}

#[test]
fn a_master_key_belongs_to_one_store_and_is_not_kept_in_it() {
    let place = Place::new();
    let inside = place.store().join("master.key");
    let refused = |error: Error, text: &str| {
        assert!(matches!(&error, Error::MasterKeyRefused { .. }), "{error}");
        assert!(error.to_string().contains(text), "{error}");
    };
    let builder = || Store::builder().create_master_key(true);
    refused(builder().master_key(&inside).open(place.store()).unwrap_err(), "in the directory of the store");
    let link = place.dir.path().join("link");
    std::os::unix::fs::symlink(place.store(), &link).unwrap();
    refused(
        builder().master_key(link.join("topics/../key")).open(place.store()).unwrap_err(),
        "in the directory of the store",
    );
    assert!(!inside.exists());
    let missing = Store::builder().master_key(place.key()).open(place.store()).unwrap_err();
    refused(missing, "there is no such file");

    let store = place.open();
    let second = place.dir.path().join("second");
    refused(builder().master_key(place.key()).open(&second).unwrap_err(), "it is in use by process");
    store.close().unwrap();
    // Nor when the first one is closed: it would not learn what the second one destroys.
    refused(builder().master_key(place.key()).open(&second).unwrap_err(), "it is that of store");
    let other_key = place.dir.path().join("other.key");
    let other = builder().master_key(&other_key).open(&second).unwrap();
    other.close().unwrap();
    refused(
        builder().master_key(&other_key).open(place.store()).unwrap_err(),
        "the payloads of the store are sealed with",
    );
    fs::remove_file(place.key()).unwrap();
    refused(place.builder().open(place.store()).unwrap_err(), "there is no such file");
    assert!(!place.key().exists(), "a store that has a master key gets no second one");
}

/// Files of the time before they named their store may be shared, and what is sealed with them must stay readable.
#[test]
fn a_master_key_without_a_store_becomes_that_of_the_first_and_stores_that_share_it_go_on() {
    let place = Place::new();
    let fresh = || MasterKeyFile::encode(Uid([5; 16]), None, &[9; 32], &[Node::root([7; SEED_BYTES])]);
    let second = place.dir.path().join("second");
    let open = |path: &Path| Store::builder().master_key(place.key()).open(path);
    let named = || MasterKeyFile::decode(&fs::read(place.key()).unwrap()).unwrap().store;
    for path in [&place.store(), &second] {
        fs::write(place.key(), fresh()).unwrap();
        let store = open(path).unwrap();
        assert_eq!(named(), Some(store.uid()));
        store.topic_or_create("orders").unwrap().append(&[secret(0)]).unwrap();
        store.close().unwrap();
    }
    for path in [&second, &place.store()] {
        assert_eq!(read(&open(path).unwrap()), [plain(0, &format!("{SECRET} 0"))]);
    }
    let error = open(&place.dir.path().join("third")).unwrap_err();
    assert!(error.to_string().contains("it is that of store"), "{error}");
}

#[test]
fn a_damaged_master_key_is_refused_and_left_as_it_is() {
    use std::os::unix::fs::PermissionsExt as _;
    let place = Place::new();
    place.open().close().unwrap();
    assert_eq!(fs::metadata(place.key()).unwrap().permissions().mode() & 0o777, 0o600);
    let intact = fs::read(place.key()).unwrap();
    for bit in (0..intact.len() * 8).step_by(37) {
        let mut damaged = intact.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(place.key(), &damaged).unwrap();
        let error = place.builder().open(place.store()).unwrap_err();
        assert!(matches!(error, Error::CorruptFile { .. }), "bit {bit}: {error}");
        assert_eq!(fs::read(place.key()).unwrap(), damaged);
    }
    fs::write(place.key(), &intact).unwrap();
    place.open();
}

/// A master key of which the first so many leaves are missing, as if their keys had been destroyed.
fn nearly_used_up(destroyed: u128) -> Vec<u8> {
    let mut nodes = Vec::new();
    let mut start = destroyed;
    while start < 1 << DEPTH {
        let steps = start.trailing_zeros();
        let path = start.to_be_bytes()[16 - PATH_BYTES..].try_into().unwrap();
        nodes.push(Node { depth: DEPTH - u8::try_from(steps).unwrap(), path, seed: [7; SEED_BYTES] });
        start += 1 << steps;
    }
    MasterKeyFile::encode(Uid([5; 16]), None, &[9; 32], &nodes)
}

#[test]
fn when_as_many_keys_are_destroyed_as_can_be_no_other_is() {
    let place = Place::new();
    fs::write(place.key(), nearly_used_up(u128::from(ERASED_KEYS_MAX) - 1)).unwrap();
    let store = place.open();
    let orders = store.topic_or_create("orders").unwrap();
    orders.append(&[secret(0), other(1)]).unwrap();
    let refused = |names: &[&str]| {
        let before = fs::read(place.key()).unwrap();
        let error = store.erase(names).unwrap_err();
        assert!(matches!(error, Error::TooManyErasedKeys { limit: ERASED_KEYS_MAX, .. }), "{error}");
        assert_eq!(fs::read(place.key()).unwrap(), before);
    };
    refused(&["customer-17", "customer-18"]);
    assert_eq!(read(&store), [plain(0, &format!("{SECRET} 0")), plain(1, "of another 1")]);
    // One is left, named twice.
    assert_eq!(store.erase(&["customer-17", "customer-17"]).unwrap().destroyed, 1);
    refused(&["customer-18"]);
    refused(&["customer-17", "customer-18"]);
    assert_eq!(store.erase(&["customer-17"]).unwrap().destroyed_before, 1);
    orders.append(&[other(2)]).unwrap();
    store.close().unwrap();
    let store = place.open();
    assert_eq!(read(&store), [erased(0), plain(1, "of another 1"), plain(2, "of another 2")]);
    assert_eq!(store.stats().erasure_keys_destroyed, Some(ERASED_KEYS_MAX));
    store.close().unwrap();

    let beyond = nearly_used_up(u128::from(ERASED_KEYS_MAX) + 1);
    fs::write(place.key(), beyond).unwrap();
    let error = place.builder().open(place.store()).unwrap_err();
    assert!(error.to_string().contains("more keys are missing than can be destroyed"), "{error}");
}

/// A random nonce makes each sealing another one: what tells a repeat must be taken before.
#[test]
fn a_repeat_of_a_sealed_append_is_recognised_also_when_its_key_was_destroyed() {
    let place = Place::new();
    let store = place.open();
    let orders = store.topic_or_create("orders").unwrap();
    let append = |record: &Record| {
        let producer = Producer { name: "writer".into(), epoch: 0, sequence: 0 };
        store.append(Append::new().records(&orders, [record]).unwrap().producer(producer))
    };
    let first = append(&secret(0)).unwrap();
    assert_eq!(append(&secret(0)).unwrap(), first);
    let error = append(&secret(1)).unwrap_err();
    assert!(matches!(error, Error::RequestIdReused { .. }), "{error}");
    store.erase(&["customer-17"]).unwrap();
    assert_eq!(append(&secret(0)).unwrap(), first);
    assert_eq!(read(&store), [erased(0)]);
}

#[test]
fn nobody_appends_what_looks_sealed_or_names_a_bad_key() {
    let place = Place::new();
    let store = place.open();
    let orders = store.topic_or_create("orders").unwrap();
    // Record { payload: "x", erasure_key: "k", and one more field }
    let with = |field: &[u8]| {
        let mut record = vec![7 << 3 | 2, 1, b'x', 8 << 3 | 2, 1, b'k'];
        record.extend_from_slice(field);
        let mut body = vec![1 << 3 | 2, u8::try_from(record.len()).unwrap()];
        body.extend_from_slice(&record);
        Append::new().encoded(&orders, &body)
    };
    assert!(matches!(with(&[9 << 3 | 2, 1, 0]), Err(Error::InvalidAppend { .. })));
    assert!(matches!(with(&[9 << 3 | 2, 0]), Err(Error::InvalidAppend { .. })));
    assert!(matches!(with(&[10 << 3, 1]), Err(Error::InvalidAppend { .. })));
    assert!(matches!(with(&[8 << 3 | 2, 0]), Err(Error::InvalidErasureKey { .. })));
    for name in ["", &"n".repeat(256)] {
        let record = Record::new("x").with_erasure_key(name);
        let error = orders.append(&[record]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{error}");
        assert!(matches!(store.erase(&["fine", name]), Err(Error::InvalidErasureKey { .. })));
    }
    assert!(!store.is_erased("fine").unwrap());
    assert_eq!(orders.log_end_offset(), Offset(0));

    // A payload that came twice must not stay behind in its first form.
    store.append(with(&[7 << 3 | 2, 3, b'#', b'Q', b'#']).unwrap()).unwrap();
    assert_eq!(read(&store), [plain(0, "#Q#")]);
    store.close().unwrap();
    assert_eq!(files_with(&place.store(), "#Q#"), NOWHERE);

    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(dir.path()).unwrap();
    assert!(matches!(log.append(&[secret(0)]), Err(Error::InvalidAppend { .. })));
}

#[test]
fn what_sealing_adds_counts_towards_the_bounds() {
    let place = Place::new();
    let settings = StoreSettings { append_bytes_max: 1024, background: false, ..StoreSettings::default() };
    let store = place.builder().settings(settings).open(place.store()).unwrap();
    let orders = store.topic_or_create("orders").unwrap();
    let record = |bytes: usize| Record::new("x".repeat(bytes)).with_erasure_key("k");
    let append = |bytes| Append::new().records(&orders, &[record(bytes)]).unwrap();
    assert!(matches!(store.check(append(1000)), Err(Error::AppendTooLarge { .. })));
    assert!(matches!(store.append(append(1000)), Err(Error::AppendTooLarge { .. })));
    store.check(append(980)).unwrap();
    store.append(append(980)).unwrap();
    store.erase(&["k"]).unwrap();
    assert!(matches!(store.check(append(1)), Err(Error::ErasureKeyDestroyed { .. })));
}

#[test]
fn topics_in_memory_and_filtered_readers_seal_and_open_as_well() {
    let place = Place::new();
    let store = place.open();
    let settings =
        TopicSettings { storage: Storage::Memory { bytes_max: 1 << 20 }, ..TopicSettings::default() };
    let orders = store.create_topic("orders", settings).unwrap();
    orders.append(&[secret(0).with_tag("vip"), other(1)]).unwrap();
    let filtered = || {
        let filter = Filter { tags: vec![vec!["vip".into()]], ..Filter::default() };
        let mut cursor = orders.filtered_cursor(&filter, Start::Earliest, Visibility::Synced).unwrap();
        let batch = cursor.next_batch().unwrap().unwrap();
        seen(batch.owned().into_iter())[0].clone()
    };
    assert_eq!(filtered(), plain(0, &format!("{SECRET} 0")));
    store.erase(&["customer-17"]).unwrap();
    assert_eq!(filtered(), erased(0));
    assert_eq!(read(&store), [erased(0), plain(1, "of another 1")]);
}

/// A store whose topics have segments of few records, and one that is compacted by key.
fn with_small_segments(place: &Place, compaction: Option<Compaction>) -> Store {
    let store = place.open();
    let settings = TopicSettings { segment_bytes_max: 4096, compaction, ..TopicSettings::default() };
    store.create_topic("orders", settings).unwrap();
    store
}

fn bulky(number: u32, subject: u32) -> Record {
    let payload = format!("{number} ").repeat(100);
    Record::keyed(format!("order-{number}"), payload).with_erasure_key(format!("customer-{subject}"))
}

#[test]
fn compaction_reclaims_the_bytes_of_erased_payloads_and_they_stay_erased() {
    let place = Place::new();
    let store = with_small_segments(&place, None);
    let orders = store.topic("orders").unwrap();
    for number in 0..100 {
        orders.append(&[bulky(number, number % 2)]).unwrap();
    }
    let erased_only = CompactOptions { erased_only: true, ..CompactOptions::default() };
    let control = CompactionControl::new();
    let nothing = orders.compact_with(&erased_only, &control).unwrap();
    assert_eq!((nothing.payloads_erased, nothing.payload_bytes_erased), (0, 0));
    store.erase(&["customer-1"]).unwrap();
    let before = read(&store);
    assert_eq!(before.iter().filter(|(.., redacted)| redacted.is_some()).count(), 50);
    let dry = CompactOptions { dry_run: true, ..erased_only.clone() };
    let forecast = orders.compact_with(&dry, &control).unwrap();
    let report = orders.compact_with(&erased_only, &control).unwrap();
    assert_eq!(forecast.payloads_erased, report.payloads_erased);
    assert_eq!(forecast.payload_bytes_erased, report.payload_bytes_erased);
    // The active segment is left as it is.
    assert!(report.payloads_erased > 40, "{report:?}");
    assert!(report.bytes_after < report.bytes_before - 40 * 200, "{report:?}");
    assert_eq!(report.records_removed.total(), 0);
    assert_eq!(read(&store), before);
    let again = orders.compact_with(&erased_only, &control).unwrap();
    assert_eq!(again.payloads_erased, 0);
    let verified = store.verify(VerifyOptions::default()).unwrap();
    assert!(verified.is_intact(), "{verified:?}");
    store.close().unwrap();
    let store = Store::open(place.store()).unwrap();
    let without_key = read(&store);
    let reclaimed = without_key.iter().filter(|(.., redacted)| *redacted == Some(Redaction::Erased)).count();
    assert_eq!(reclaimed as u64, report.payloads_erased);
    let orders = store.topic("orders").unwrap();
    let error = orders.compact_with(&erased_only, &control).unwrap_err();
    assert!(matches!(error, Error::MasterKeyMissing), "{error}");
    let not_set = orders.compact().unwrap_err();
    assert!(matches!(not_set, Error::InvalidSetting { .. }), "{not_set}");
}

/// What has no payload any more must not be taken for the deletion of its key.
#[test]
fn an_erased_record_is_no_tombstone_and_stays_the_latest_of_its_key() {
    let place = Place::new();
    let compaction = Compaction {
        lag_min: std::time::Duration::ZERO,
        tombstone_age_max: std::time::Duration::ZERO,
        ..Compaction::default()
    };
    let store = with_small_segments(&place, Some(compaction));
    let orders = store.topic("orders").unwrap();
    for _ in 0..3 {
        for number in 0..20 {
            orders.append(&[bulky(number, number % 2)]).unwrap();
        }
    }
    orders.append(&(0..20).map(|_| Record::new("x".repeat(400))).collect::<Vec<_>>()).unwrap();
    orders.append(&[Record::new("last")]).unwrap();
    store.erase(&["customer-1"]).unwrap();
    for _ in 0..2 {
        let report = orders.compact().unwrap();
        assert_eq!(report.records_removed.tombstone_expired, 0);
        let latest: Vec<_> = read(&store).into_iter().take(20).collect();
        let expected: Vec<_> = (40..60).collect();
        assert_eq!(latest.iter().map(|(offset, ..)| *offset).collect::<Vec<_>>(), expected);
        assert!(latest.iter().all(|(offset, text, redacted)| {
            text.is_none() == (offset % 2 == 1) && (*redacted == Some(Redaction::Erased)) == (offset % 2 == 1)
        }));
        let head = orders.stream("order-1").unwrap().unwrap();
        assert_eq!(head.last_revision, quipu_storage::Revision(2));
    }
}

/// Clients that encode a record again to compare its checksum once met one whose payload stood behind its erasure key.
#[test]
fn an_opened_record_has_the_very_bytes_that_were_appended() {
    let place = Place::new();
    let store = place.open();
    let orders = store.topic_or_create("orders").unwrap();
    let record = secret(0).with_type("placed").with_tag("eu").with_header("by", "web");
    orders.append(std::slice::from_ref(&record)).unwrap();
    let mut bytes = Vec::new();
    record.encode(&mut bytes);
    assert_eq!(orders.get(Offset(0)).unwrap().unwrap().as_bytes()[..], bytes);
}

/// A snapshot that was sealed is erased with the events that it was made from.
#[test]
fn an_erased_snapshot_is_found_redacted_and_the_one_before_it_is_still_there() {
    let place = Place::new();
    let store = place.open();
    let orders = store.topic_or_create("orders").unwrap();
    orders.append(&[0, 1, 2].map(|number| Record { key: Some(b"a".to_vec()), ..secret(number) })).unwrap();
    let put = |revision, snapshot: &Record| {
        orders.put_snapshot(Revision(revision), snapshot, Durability::Synced).unwrap();
    };
    put(0, &Record::keyed("a", "of others").with_erasure_key("customer-1"));
    put(1, &Record::keyed("a", SECRET).with_erasure_key("customer-17"));
    let found = |store: &Store, up_to: Option<u64>| {
        let snapshot = store.topic("orders").unwrap().snapshot("a", up_to.map(Revision)).unwrap().unwrap();
        let text = snapshot.record.payload().map(|payload| String::from_utf8(payload.to_vec()).unwrap());
        (snapshot.revision.value(), text, snapshot.record.redacted())
    };
    assert_eq!(found(&store, None), (1, Some(SECRET.into()), None));
    store.erase(&["customer-17"]).unwrap();
    assert_eq!(found(&store, None), (1, None, Some(Redaction::Erased)));
    assert_eq!(found(&store, Some(0)), (0, Some("of others".into()), None));
    let again = Record::keyed("a", SECRET).with_erasure_key("customer-17");
    let error = orders.put_snapshot(Revision(2), &again, Durability::Synced).unwrap_err();
    assert!(matches!(error, Error::ErasureKeyDestroyed { .. }), "{error:?}");
    store.close().unwrap();
    drop((orders, store));
    let locked = Store::open(place.store()).unwrap();
    assert_eq!(found(&locked, None), (1, None, Some(Redaction::Locked)));
}

/// A batch was opened as a whole for one record of it, and also where no payload was asked for.
#[test]
fn who_wants_one_record_opens_no_other_of_its_batch() {
    let place = Place::new();
    let store = place.open();
    let orders = store.topic_or_create("orders").unwrap();
    let tagged = |number| secret(number).with_tag("tag").with_header("number", number.to_string());
    orders.append(&(0..100).map(tagged).collect::<Vec<_>>()).unwrap();
    store.erase(&["customer-17"]).unwrap();
    let opened = |what: &str, expected: u64, look: &dyn Fn()| {
        let before = store.stats().records_redacted;
        look();
        assert_eq!(store.stats().records_redacted - before, expected, "{what}");
    };
    for _ in 0..2 {
        opened("get", 1, &|| {
            let record = orders.get(Offset(50)).unwrap().unwrap();
            assert_eq!((record.payload(), record.redacted()), (None, Some(Redaction::Erased)));
        });
        opened("a stream", 1, &|| {
            assert_eq!(seen(orders.read_stream(b"order-7", StreamStart::Earliest).unwrap()), [erased(7)]);
        });
        opened("a match", 0, &|| {
            let filter = Filter { headers: vec![("number".into(), b"70".into())], ..Filter::default() };
            assert_eq!(orders.first_match(&filter, None).unwrap(), Some(Offset(70)));
        });
        opened("all", 100, &|| assert_eq!(read(&store).len(), 100));
        // And once more from segments.
        store.checkpoint().unwrap();
    }
}
