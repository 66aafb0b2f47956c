//! Reading a store beside its writer: in the same process, and in another one.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use quipu_storage::{
    Compaction, Cursor, Durability, Error, Offset, ReadOnlyStore, Record, Start, Store, StoreSettings,
    StoredRecord, Topic, TopicSettings, Visibility,
};

/// Nothing happens but what the test asks for.
fn quiet() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 256 << 10,
        append_bytes_max: 16 << 10,
        background: false,
        ..StoreSettings::default()
    }
}

fn busy() -> StoreSettings {
    StoreSettings {
        background: true,
        sync_interval: Duration::from_millis(2),
        checkpoint_interval: Duration::from_millis(10),
        ..quiet()
    }
}

fn small_segments() -> TopicSettings {
    TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() }
}

fn open(dir: &Path, settings: StoreSettings) -> Store {
    Store::builder().settings(settings).open(dir).unwrap()
}

fn open_read_only(dir: &Path, settings: StoreSettings) -> ReadOnlyStore {
    Store::builder().settings(settings).open_read_only(dir).unwrap()
}

fn text(n: u64) -> String {
    format!("record {n} {}", "x".repeat((n % 300) as usize))
}

fn append(topic: &Topic, range: std::ops::Range<u64>, durability: Durability) {
    for n in range {
        let appended = topic.append_with(&[Record::new(text(n))], durability).unwrap();
        assert_eq!(appended.first_offset, Offset(n));
    }
}

/// Fails unless the records are those that were appended from `from` on; returns how many there were.
fn check(from: u64, records: impl Iterator<Item = quipu_storage::Result<StoredRecord>>) -> u64 {
    let mut n = from;
    for record in records {
        let record = record.unwrap();
        assert_eq!(record.offset(), Offset(n));
        assert_eq!(record.payload().unwrap(), text(n).as_bytes());
        n += 1;
    }
    n - from
}

fn count_written(cursor: &mut Cursor) -> u64 {
    let mut count = 0;
    while let Some(batch) = cursor.next_batch().unwrap() {
        count += batch.records().count() as u64;
    }
    count
}

#[test]
fn a_store_that_never_was_is_not_made() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(Store::open_read_only(dir.path()), Err(Error::NoStore { .. })));
    let missing = dir.path().join("missing");
    assert!(matches!(Store::open_read_only(&missing), Err(Error::NoStore { .. })));
    assert!(!missing.exists());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_reader_sees_what_is_synced_and_written_records_only_if_it_asks_for_them() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    let topic = store.create_topic("t", small_segments()).unwrap();
    append(&topic, 0..10, Durability::Synced);
    let reader = open_read_only(dir.path(), quiet());
    let seen = reader.topic("t").unwrap();
    assert_eq!(check(0, seen.read(Start::Earliest).unwrap()), 10);
    append(&topic, 10..20, Durability::Written);
    reader.refresh().unwrap();
    assert_eq!(check(0, seen.read(Start::Earliest).unwrap()), 10);
    assert_eq!((seen.high_watermark(), seen.log_end_offset()), (Offset(10), Offset(20)));
    assert!(matches!(seen.get(Offset(10)), Err(Error::OffsetUnwritten { next_offset: Offset(10), .. })));
    assert_eq!(count_written(&mut seen.cursor(Start::Earliest, Visibility::Written).unwrap()), 20);
    store.sync().unwrap();
    reader.refresh().unwrap();
    assert_eq!(check(0, seen.read(Start::Earliest).unwrap()), 20);
    assert_eq!(seen.get(Offset(15)).unwrap().unwrap().payload().unwrap(), text(15).as_bytes());
    let backwards: Vec<_> =
        seen.read_backwards(Offset::MAX).map(|record| record.unwrap().offset().0).collect();
    assert!(backwards.into_iter().eq((0..20).rev()));
    assert!(reader.stats().damage.is_none());
}

#[test]
fn a_reader_writes_nothing_and_needs_no_right_to() {
    let dir = tempfile::tempdir().unwrap();
    let topic_dir;
    {
        let store = open(dir.path(), quiet());
        let topic = store.create_topic("t", small_segments()).unwrap();
        append(&topic, 0..200, Durability::Written);
        store.checkpoint().unwrap();
        append(&topic, 200..250, Durability::Synced);
        topic_dir = dir.path().join("topics/00000001");
        // As a killed process leaves it.
        std::mem::forget(store);
    }
    let dirs = [dir.path().to_path_buf(), dir.path().join("journal"), dir.path().join("topics"), topic_dir];
    let files = || {
        let mut files: Vec<_> = dirs
            .iter()
            .flat_map(|dir| std::fs::read_dir(dir).unwrap())
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_file())
            .map(|entry| (entry.path(), std::fs::read(entry.path()).unwrap()))
            .collect();
        files.sort();
        files
    };
    let before = files();
    let set_mode = |mode| {
        for dir in &dirs {
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(mode)).unwrap();
        }
    };
    set_mode(0o555);
    let reader = open_read_only(dir.path(), StoreSettings::default());
    let topic = reader.topic("t").unwrap();
    assert_eq!(check(0, topic.read(Start::Earliest).unwrap()), 250);
    assert_eq!(check(123, topic.read(Offset(123)).unwrap()), 127);
    reader.refresh().unwrap();
    reader.close();
    set_mode(0o755);
    assert!(files() == before, "a reader changed a file");
}

#[test]
fn a_reader_of_a_closed_store_sees_all_of_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    append(&store.create_topic("t", small_segments()).unwrap(), 0..100, Durability::Written);
    store.close().unwrap();
    let reader = open_read_only(dir.path(), StoreSettings::default());
    assert_eq!(check(0, reader.topic("t").unwrap().read(Start::Earliest).unwrap()), 100);
    assert!(reader.stats().damage.is_none());
    // A writer comes while the reader is there.
    let store = open(dir.path(), quiet());
    append(&store.topic("t").unwrap(), 100..200, Durability::Synced);
    reader.refresh().unwrap();
    assert_eq!(check(0, reader.topic("t").unwrap().read(Start::Earliest).unwrap()), 200);
}

#[test]
fn a_reader_goes_along_over_journal_files_checkpoints_and_segments_and_its_memory_stays_small() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    let topic = store.create_topic("t", small_segments()).unwrap();
    let reader = open_read_only(dir.path(), quiet());
    let seen = reader.topic("t").unwrap();
    let mut cursor = seen.cursor(Start::Earliest, Visibility::Synced).unwrap();
    let mut next = 0;
    for round in 0..300_u64 {
        append(&topic, round * 20..round * 20 + 20, Durability::Written);
        store.sync().unwrap();
        if round % 7 == 0 {
            store.checkpoint().unwrap();
        }
        reader.refresh().unwrap();
        while let Some(batch) = cursor.next_batch().unwrap() {
            next += check(next, batch.owned().into_iter());
        }
        assert_eq!(next, round * 20 + 20);
        assert!(reader.stats().tail_bytes <= 256 << 10, "{:?}", reader.stats());
    }
    assert!(store.stats().journal_position.0 > 4 * (256 << 10), "the journal was used again");
    assert_eq!(reader.stats().journal_position, store.stats().journal_position);
    assert_eq!(reader.stats().checkpoint_position, store.stats().checkpoint_position);
    assert_eq!(check(0, seen.read(Start::Earliest).unwrap()), 6000);
}

#[test]
fn a_reader_that_slept_while_the_whole_journal_was_used_again_misses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    let topic = store.create_topic("t", small_segments()).unwrap();
    append(&topic, 0..10, Durability::Synced);
    let reader = open_read_only(dir.path(), quiet());
    let seen = reader.topic("t").unwrap();
    let mut cursor = seen.cursor(Start::Earliest, Visibility::Synced).unwrap();
    let mut next = 0;
    for round in 1..6_u64 {
        append(&topic, next_end(round - 1)..next_end(round), Durability::Written);
        store.sync().unwrap();
        reader.refresh().unwrap();
        while let Some(batch) = cursor.next_batch().unwrap() {
            next += check(next, batch.owned().into_iter());
        }
        assert_eq!(next, next_end(round));
    }
    assert!(reader.stats().damage.is_none());
    assert_eq!(check(0, seen.read(Start::Earliest).unwrap()), next);
}

fn next_end(round: u64) -> u64 {
    10 + round * 2000
}

#[test]
fn trimmed_records_are_told_and_removed_segments_are_no_error() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    let topic = store.create_topic("t", small_segments()).unwrap();
    append(&topic, 0..500, Durability::Written);
    store.checkpoint().unwrap();
    let reader = open_read_only(dir.path(), quiet());
    let seen = reader.topic("t").unwrap();
    let mut early = seen.cursor(Start::Earliest, Visibility::Synced).unwrap();
    assert!(early.next_batch().unwrap().is_some());
    let mut late = seen.cursor(Offset(250), Visibility::Synced).unwrap();
    topic.trim(Offset(300)).unwrap();
    // The reader does not know yet that the segment is gone, and finds out when it looks for its file.
    let error = late.next_batch().unwrap_err();
    assert!(matches!(error, Error::OffsetTrimmed { log_start_offset: Offset(300), .. }), "{error}");
    let mut next = early.next_offset().0;
    let trimmed = loop {
        match early.next_batch() {
            Ok(Some(batch)) => next += check(next, batch.owned().into_iter()),
            Ok(None) => panic!("the trim was skipped without a word at {next}"),
            Err(error) => break error,
        }
    };
    assert!(matches!(trimmed, Error::OffsetTrimmed { .. }), "{trimmed}");
    assert_eq!(check(300, seen.read(Start::Earliest).unwrap()), 200);
    // Trimmed with no frame left to tell.
    topic.trim(Offset(500)).unwrap();
    store.checkpoint().unwrap();
    append(&topic, 500..3000, Durability::Written);
    store.checkpoint().unwrap();
    reader.refresh().unwrap();
    assert_eq!(seen.log_start_offset(), Offset(500));
    assert_eq!(check(500, seen.read(Start::Earliest).unwrap()), 2500);
}

#[test]
fn a_reader_finds_the_latest_of_every_key_while_segments_are_compacted_under_it() {
    const KEYS: u64 = 30;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    let settings = TopicSettings { compaction: Some(Compaction::default()), ..small_segments() };
    let topic = store.create_topic("t", settings).unwrap();
    let reader = open_read_only(dir.path(), quiet());
    reader.refresh().unwrap();
    let seen = reader.topic("t").unwrap();
    for round in 0..6_u64 {
        for n in 0..20 * KEYS {
            let record =
                Record::keyed(format!("key {}", n % KEYS), format!("{round} {n} {}", "x".repeat(200)));
            topic.append_with(&[record], Durability::Written).unwrap();
        }
        store.checkpoint().unwrap();
        reader.refresh().unwrap();
        let mut cursor = seen.cursor(Start::Earliest, Visibility::Synced).unwrap();
        let mut latest = std::collections::BTreeMap::new();
        let mut batches = 0;
        while let Some(batch) = cursor.next_batch().unwrap() {
            for record in batch.owned() {
                let record = record.unwrap();
                let payload = String::from_utf8(record.payload().unwrap().to_vec()).unwrap();
                let (key, offset) = (record.key().unwrap().to_vec(), record.offset());
                let earlier = latest.insert(key, (offset, payload));
                assert!(earlier.is_none_or(|(earlier, _)| earlier < offset));
            }
            batches += 1;
            if batches == 3 + round {
                // The files that the reader is at go away.
                assert!(topic.compact().unwrap().segments_replaced > 0);
                if round % 2 == 1 {
                    store.checkpoint().unwrap();
                }
            }
        }
        assert_eq!(latest.len() as u64, KEYS, "in round {round}");
        for (offset, payload) in latest.values() {
            assert!(payload.starts_with(&format!("{round} ")), "in round {round}: {payload}");
            let found = seen.get(*offset).unwrap().unwrap();
            assert_eq!(found.payload().unwrap(), payload.as_bytes());
        }
    }
    let last: Vec<_> = seen.read(Start::Earliest).unwrap().map(|record| record.unwrap().offset()).collect();
    let same: Vec<_> = topic.read(Start::Earliest).unwrap().map(|record| record.unwrap().offset()).collect();
    assert_eq!(last, same);
    assert!(reader.stats().damage.is_none());
}

#[test]
fn topics_come_change_and_go() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    let reader = open_read_only(dir.path(), quiet());
    assert!(reader.topics().is_empty());
    let topic = store.topic_or_create("t").unwrap();
    append(&topic, 0..10, Durability::Synced);
    reader.refresh().unwrap();
    let seen = reader.topic("t").unwrap();
    assert_eq!(seen.uid(), topic.uid());
    let mut cursor = seen.cursor(Start::Earliest, Visibility::Synced).unwrap();
    topic.alter(&small_segments()).unwrap();
    reader.refresh().unwrap();
    assert_eq!(seen.settings(), small_segments());
    store.delete_topic("t").unwrap();
    let again = store.topic_or_create("t").unwrap();
    append(&again, 0..5, Durability::Synced);
    for checkpoints in 0..3 {
        reader.refresh().unwrap();
        assert!(matches!(cursor.next_batch(), Err(Error::TopicNotFound { .. })));
        let seen = reader.topic("t").unwrap();
        assert_eq!(seen.uid(), again.uid());
        assert_eq!(check(0, seen.read(Start::Earliest).unwrap()), 5, "after {checkpoints} checkpoints");
        store.checkpoint().unwrap();
    }
    // Gone while the reader slept for longer than the journal remembers.
    store.delete_topic("t").unwrap();
    append(&store.topic_or_create("u").unwrap(), 0..3000, Durability::Written);
    store.checkpoint().unwrap();
    reader.refresh().unwrap();
    assert_eq!(reader.topics().iter().map(|topic| topic.name().as_str()).collect::<Vec<_>>(), ["u"]);
}

#[test]
fn a_follower_is_woken_by_the_readers_thread_and_let_go_when_it_is_closed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    let topic = store.topic_or_create("t").unwrap();
    let reader = open_read_only(dir.path(), StoreSettings::default());
    let follower = reader.topic("t").unwrap().follow(Start::Earliest).unwrap();
    let following = std::thread::spawn(move || check(0, follower));
    let mut cursor = reader.topic("t").unwrap().cursor(Start::Earliest, Visibility::Synced).unwrap();
    for n in 0..50 {
        append(&topic, n..n + 1, Durability::Synced);
        assert!(cursor.wait(Some(Duration::from_secs(60))).unwrap());
        assert!(cursor.next_batch().unwrap().is_some());
    }
    assert!(!cursor.wait(Some(Duration::from_millis(1))).unwrap());
    // The other one has been told of all of them, and gets there.
    reader.close();
    assert_eq!(following.join().unwrap(), 50);
    assert!(matches!(cursor.wait(None), Err(Error::Closed)));
}

#[test]
fn a_reader_follows_a_busy_writer_that_is_opened_again_and_again() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), quiet()).create_topic("t", small_segments()).unwrap();
    let reader = open_read_only(dir.path(), StoreSettings::default());
    let mut cursor = reader.topic("t").unwrap().cursor(Start::Earliest, Visibility::Synced).unwrap();
    const RUNS: u64 = 6;
    const PER_RUN: u64 = 3000;
    let path = dir.path().to_path_buf();
    let writing = std::thread::spawn(move || {
        for run in 0..RUNS {
            let store = open(&path, busy());
            append(&store.topic("t").unwrap(), run * PER_RUN..(run + 1) * PER_RUN, Durability::Written);
            store.sync().unwrap();
            if run % 2 == 0 {
                store.close().unwrap();
            }
        }
    });
    let mut next = 0;
    let begun = Instant::now();
    while next < RUNS * PER_RUN {
        assert!(begun.elapsed() < Duration::from_secs(120), "stuck at {next}: {:?}", reader.stats());
        cursor.wait(Some(Duration::from_secs(1))).unwrap();
        while let Some(batch) = cursor.next_batch().unwrap() {
            next += check(next, batch.owned().into_iter());
        }
    }
    writing.join().unwrap();
    assert_eq!(next, RUNS * PER_RUN);
    reader.refresh().unwrap();
    assert!(reader.stats().damage.is_none());
}

/// Fails unless the records are those that were appended, up to an error that names a file of the journal and is the last
/// item; returns how many records there were.
fn check_to_damage(records: impl Iterator<Item = quipu_storage::Result<StoredRecord>>) -> u64 {
    let mut records: Vec<_> = records.collect();
    let error = records.pop().expect("the damage was not told").unwrap_err();
    assert!(is_journal_damage(&error), "{error}");
    assert!(error.to_string().contains("topic t"), "{error}");
    check(0, records.into_iter())
}

fn is_journal_damage(error: &Error) -> bool {
    matches!(error, Error::CorruptFile { path, .. } if path.components().any(|part| part.as_os_str() == "journal"))
}

fn copy_dir(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_dir(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

/// The journal files that were used, in the order of their use.
fn journal_files(dir: &Path) -> Vec<std::path::PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir.join("journal"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| (u64::from_le_bytes(std::fs::read(&path).unwrap()[32..40].try_into().unwrap()), path))
        .filter(|(generation, _)| *generation > 0)
        .collect();
    files.sort();
    files.into_iter().map(|(_, path)| path).collect()
}

/// What the writer has told, as it would have been told in another run of the machine.
fn put_into_another_boot(live: &Path) {
    let mut file = std::fs::read(live).unwrap();
    for slot in [0, 512] {
        // The boot id and the checksum, as `format::live` draws them.
        file[slot + 32] ^= 1;
        let sum = crc32fast::hash(&file[slot..slot + 80]);
        file[slot + 80..slot + 84].copy_from_slice(&sum.to_le_bytes());
    }
    std::fs::write(live, file).unwrap();
}

/// Without the writer's word a look went from one journal file to the next and no further, so that who opened a store, read
/// it and left got half of it. Reading ended at damage of the journal as if nothing had been behind it; and a file that was missing in the middle was
/// not noticed by anybody, since the files before it end with an intact frame.
#[test]
fn whoever_gets_to_damage_of_the_journal_is_told_and_a_missing_file_is_damage() {
    const RECORDS: u64 = 900;
    let killed = tempfile::tempdir().unwrap();
    // No checkpoint has to make room.
    let store = open(killed.path(), StoreSettings { journal_bytes_max: 1 << 20, ..quiet() });
    let topic = store.topic_or_create("t").unwrap();
    for n in 0..RECORDS {
        append(&topic, n..n + 1, if n % 10 == 9 { Durability::Synced } else { Durability::Written });
    }
    // As a killed process leaves it.
    std::mem::forget((store, topic));
    let used = journal_files(killed.path());
    assert!(used.len() >= 3, "{used:?}");
    let names: Vec<_> = used.iter().map(|path| path.file_name().unwrap().to_owned()).collect();

    for damage in ["none", "bit", "header", "cut", "first", "middle", "last", "directory"] {
        for word in ["live", "none", "another boot"] {
            let what = format!("{damage}, {word}");
            let dir = tempfile::tempdir().unwrap();
            let dir = dir.path();
            copy_dir(killed.path(), dir);
            let path = |number: usize| dir.join("journal").join(&names[number]);
            let flip = |position: usize| {
                let mut bytes = std::fs::read(path(1)).unwrap();
                bytes[position] ^= 4;
                std::fs::write(path(1), bytes).unwrap();
            };
            match damage {
                "bit" => flip(4096 + 60),
                "header" => flip(50),
                "cut" => std::fs::OpenOptions::new()
                    .write(true)
                    .open(path(1))
                    .and_then(|file| file.set_len(8192))
                    .unwrap(),
                "first" => std::fs::remove_file(path(0)).unwrap(),
                "middle" => std::fs::remove_file(path(1)).unwrap(),
                "last" => std::fs::remove_file(path(names.len() - 1)).unwrap(),
                "directory" => std::fs::remove_dir_all(dir.join("journal")).unwrap(),
                _ => {}
            }
            match word {
                "none" => std::fs::remove_file(dir.join("live")).unwrap(),
                "another boot" => put_into_another_boot(&dir.join("live")),
                _ => {}
            }
            if damage == "directory" {
                let error = Store::open_read_only(dir).unwrap_err();
                assert!(is_journal_damage(&error), "{what}: {error}");
                assert!(is_journal_damage(&open_to_write(dir).unwrap_err()), "{what}");
                continue;
            }
            let reader = open_read_only(dir, quiet());
            // That the last file was there is known from the writer only.
            if damage == "none" || damage == "last" && word != "live" {
                assert!(reader.stats().damage.is_none(), "{what}: {:?}", reader.stats().damage);
                let seen = reader.topic("t").unwrap();
                let read = check(0, seen.read(Start::Earliest).unwrap());
                // Without a word nobody knows of the last sync.
                assert!(if damage == "none" { read >= RECORDS - 20 } else { read > 0 }, "{what}: {read}");
                continue;
            }
            let told = reader.stats().damage.unwrap_or_else(|| panic!("{what}: not noticed"));
            assert!(is_journal_damage(&told), "{what}: {told}");
            assert!(is_journal_damage(&reader.topic("made-behind-the-damage").unwrap_err()), "{what}");
            if damage == "first" {
                assert!(is_journal_damage(&reader.topic("t").unwrap_err()), "{what}");
            } else {
                let seen = reader.topic("t").unwrap();
                let read = check_to_damage(seen.read(Start::Earliest).unwrap());
                assert!(0 < read && read < RECORDS, "{what}: {read}");
                assert_eq!(check_to_damage(seen.follow(Start::Earliest).unwrap()), read, "{what}");
                let mut cursor = seen.cursor(Start::Latest, Visibility::Written).unwrap();
                assert_eq!(cursor.next_offset(), Offset(read), "{what}");
                assert!(is_journal_damage(&cursor.wait(None).unwrap_err()), "{what}");
                assert!(is_journal_damage(&cursor.next_batch().unwrap_err()), "{what}");
                for offset in [read, RECORDS - 1] {
                    assert!(is_journal_damage(&seen.get(Offset(offset)).unwrap_err()), "{what}");
                }
                assert!(seen.get(Offset(read - 1)).unwrap().is_some(), "{what}");
                let mut backwards = seen.read_backwards(Offset::MAX);
                assert!(is_journal_damage(&backwards.next().unwrap().unwrap_err()), "{what}");
                let offsets: Vec<_> = backwards.map(|record| record.unwrap().offset().0).collect();
                assert!(offsets.into_iter().eq((0..read).rev()), "{what}");
                // It stays so, and what can be read too.
                for _ in 0..3 {
                    reader.refresh().unwrap();
                    assert_eq!(check_to_damage(seen.read(Start::Earliest).unwrap()), read, "{what}");
                }
            }
            if damage != "last" {
                let report = quipu_storage::verify::verify(
                    dir,
                    std::sync::Arc::new(quipu_storage::disk::OsDisk),
                    quipu_storage::verify::VerifyOptions::default(),
                )
                .unwrap();
                assert!(!report.is_intact(), "{what}");
                let error = open_to_write(dir).unwrap_err();
                assert!(is_journal_damage(&error), "{what}: {error}");
            }
        }
    }
}

fn open_to_write(dir: &Path) -> quipu_storage::Result<Store> {
    Store::builder().settings(quiet()).open(dir)
}

/// Beside a writer everything that damage is known by can be seen for a moment: files go and come, and frames stand in
/// files that nothing seems to lead to.
#[test]
fn beside_a_busy_writer_nothing_is_taken_for_damage() {
    const RECORDS: u64 = 20_000;
    for has_word in [true, false] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path(), busy());
        if !has_word {
            std::fs::remove_file(dir.path().join("live")).unwrap();
        }
        let topic = store.create_topic("t", small_segments()).unwrap();
        let done = std::sync::atomic::AtomicBool::new(false);
        let is_done = || done.load(std::sync::atomic::Ordering::Acquire);
        std::thread::scope(|scope| {
            let following = |background: bool| {
                let (path, is_done) = (dir.path(), &is_done);
                move || {
                    let reader = open_read_only(path, StoreSettings { background, ..quiet() });
                    let seen = reader.topic("t").unwrap();
                    let mut cursor = seen.cursor(Start::Earliest, Visibility::Synced).unwrap();
                    let mut next = 0;
                    loop {
                        let is_last = is_done();
                        if is_last || !background {
                            reader.refresh().unwrap();
                        } else {
                            cursor.wait(Some(Duration::from_millis(100))).unwrap();
                        }
                        catch_up(&mut cursor, &mut next);
                        let backwards: Vec<_> = seen
                            .read_backwards(Offset::MAX)
                            .take(50)
                            .map(|record| record.unwrap().offset().0)
                            .collect();
                        assert!(backwards.windows(2).all(|pair| pair[0] == pair[1] + 1), "{backwards:?}");
                        assert!(reader.stats().damage.is_none(), "{:?}", reader.stats());
                        if is_last {
                            return next;
                        }
                    }
                }
            };
            let opening = || {
                let mut opened = 0;
                let mut before = 0;
                while !is_done() {
                    let reader = open_read_only(dir.path(), quiet());
                    let read = check(0, reader.topic("t").unwrap().read(Start::Earliest).unwrap());
                    assert!(read >= before, "{read} after {before}");
                    before = if has_word { read } else { 0 };
                    opened += 1;
                }
                opened
            };
            let readers = [true, false].map(|background| scope.spawn(following(background)));
            let opening = scope.spawn(opening);
            // Also when this thread panics: the readers must not wait for it.
            let done = SetOnDrop(&done);
            for n in 0..RECORDS {
                append(&topic, n..n + 1, Durability::Written);
                if n % 50 == 49 {
                    store.sync().unwrap();
                }
            }
            // The last frame says that all before it is synced, if nothing else does.
            append(&topic, RECORDS..RECORDS + 1, Durability::Synced);
            drop(done);
            for reader in readers {
                let read = reader.join().unwrap();
                assert!(read >= RECORDS && (read == RECORDS + 1 || !has_word), "{read}");
            }
            assert!(opening.join().unwrap() > 3);
        });
        let stats = store.stats();
        assert!(stats.journal_position.0 > 20 * (64 << 10), "the journal was used again and again");
        assert!(stats.checkpoints > 20, "{}", stats.checkpoints);
    }
}

/// The records of a busy store: what its readers may see without a word is that the beginning was trimmed.
fn catch_up(cursor: &mut Cursor, next: &mut u64) {
    loop {
        match cursor.next_batch() {
            Ok(Some(batch)) => *next += check(*next, batch.owned().into_iter()),
            Ok(None) => return,
            Err(Error::OffsetTrimmed { log_start_offset, .. }) => {
                assert!(log_start_offset.0 > *next);
                *next = log_start_offset.0;
                cursor.seek(log_start_offset);
            }
            Err(error) => panic!("{error} at {next}"),
        }
    }
}

struct SetOnDrop<'a>(&'a std::sync::atomic::AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, std::sync::atomic::Ordering::Release);
    }
}

#[test]
fn readers_fast_and_slow_go_along_with_a_writer_that_trims_and_makes_and_deletes_topics() {
    const RECORDS: u64 = 20_000;
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), busy());
    let topic = store.create_topic("t", small_segments()).unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let is_done = || done.load(std::sync::atomic::Ordering::Acquire);
    std::thread::scope(|scope| {
        let reading = |pause: u64| {
            let path = dir.path();
            let is_done = &is_done;
            move || {
                let reader = open_read_only(path, StoreSettings { background: pause == 0, ..quiet() });
                let seen = reader.topic("t").unwrap();
                let mut cursor = seen.cursor(Start::Earliest, Visibility::Synced).unwrap();
                let mut next = cursor.next_offset().0;
                loop {
                    let is_last = is_done();
                    if is_last || pause > 0 {
                        // The slow one lets the writer use its journal again and again in between.
                        let target = reader.stats().journal_position.0 + pause;
                        let begun = Instant::now();
                        while !is_last && !is_done() && begun.elapsed() < Duration::from_secs(30) {
                            reader.refresh().unwrap();
                            if reader.stats().journal_position.0 >= target {
                                break;
                            }
                            std::thread::yield_now();
                        }
                        reader.refresh().unwrap();
                    } else {
                        cursor.wait(Some(Duration::from_millis(100))).unwrap();
                    }
                    catch_up(&mut cursor, &mut next);
                    for topic in reader.topics() {
                        let records =
                            topic.read(Start::Earliest).and_then(|mut records| records.next().transpose());
                        match records {
                            Ok(_) | Err(Error::TopicNotFound { .. } | Error::OffsetTrimmed { .. }) => {}
                            Err(error) => panic!("{error}"),
                        }
                    }
                    if is_last {
                        assert!(reader.stats().damage.is_none());
                        return next;
                    }
                }
            }
        };
        let readers = [0, 100 << 10, 1 << 20].map(|pause| scope.spawn(reading(pause)));
        // Also when this thread panics: the readers must not wait for it.
        let done = SetOnDrop(&done);
        for n in 0..RECORDS {
            append(&topic, n..n + 1, Durability::Written);
            if n % 500 == 499 {
                store.sync().unwrap();
                topic.trim(Offset(n - 400)).unwrap();
                let name = format!("other/{}", n / 500);
                let other = store.create_topic(&name, small_segments()).unwrap();
                append(&other, 0..20, Durability::Written);
                if n % 1000 == 999 {
                    store.delete_topic(&name).unwrap();
                }
            }
        }
        store.sync().unwrap();
        drop(done);
        for reader in readers {
            assert_eq!(reader.join().unwrap(), RECORDS);
        }
    });
}

/// Where the writer of the test below finds its store.
const WRITER_DIR: &str = "QUIPU_TEST_WRITER_DIR";
/// And what it is to do.
const WRITER_TASK: &str = "QUIPU_TEST_WRITER_TASK";

fn run_writer(dir: &Path, task: &str) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "writer_in_its_own_process"])
        .env(WRITER_DIR, dir)
        .env(WRITER_TASK, task)
        .stdout(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "the writer of another test, which runs it in a process of its own and kills it"]
fn writer_in_its_own_process() {
    let Some(dir) = std::env::var_os(WRITER_DIR) else { return };
    let store = open(Path::new(&dir), busy());
    if std::env::var_os(WRITER_TASK).is_some_and(|task| task == "open and die") {
        std::process::abort();
    }
    let topic = store.topic_or_create("t").unwrap();
    let mut n = topic.log_end_offset().0;
    loop {
        let durability = if n.is_multiple_of(50) { Durability::Synced } else { Durability::Written };
        append(&topic, n..n + 1, durability);
        n += 1;
    }
}

#[test]
fn a_reader_follows_a_writer_in_another_process_that_is_killed_and_started_again() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path(), quiet()).create_topic("t", small_segments()).unwrap();
    let reader = open_read_only(dir.path(), StoreSettings::default());
    let mut cursor = reader.topic("t").unwrap().cursor(Start::Earliest, Visibility::Synced).unwrap();
    let mut next = 0;
    for _ in 0..4 {
        let mut writer = run_writer(dir.path(), "write");
        let begun = Instant::now();
        let target = next + 3000;
        while next < target && begun.elapsed() < Duration::from_secs(60) {
            cursor.wait(Some(Duration::from_millis(100))).unwrap();
            while let Some(batch) = cursor.next_batch().unwrap() {
                next += check(next, batch.owned().into_iter());
            }
        }
        writer.kill().unwrap();
        writer.wait().unwrap();
        // Openings that come to nothing must not throw the reader back.
        for _ in 0..3 {
            let before = reader.topic("t").unwrap().high_watermark();
            let opened = run_writer(dir.path(), "open and die").wait().unwrap();
            assert!(!opened.success());
            reader.refresh().unwrap();
            assert!(reader.topic("t").unwrap().high_watermark() >= before);
        }
        assert!(next >= target, "the writer in the other process got nowhere: {next}, {:?}", reader.stats());
    }
    // What was shown is what the next writer finds.
    let store = open(dir.path(), quiet());
    let topic = store.topic("t").unwrap();
    assert!(topic.log_end_offset() >= Offset(next));
    assert_eq!(check(0, topic.read(Start::Earliest).unwrap()), topic.log_end_offset().0);
    reader.refresh().unwrap();
    next += check(next, reader.topic("t").unwrap().read(Offset(next)).unwrap());
    assert_eq!(topic.log_end_offset(), Offset(next));
    assert!(reader.stats().damage.is_none());
}

#[test]
fn without_the_writers_word_only_what_frames_vouch_for_is_shown() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    let topic = store.topic_or_create("t").unwrap();
    append(&topic, 0..10, Durability::Synced);
    append(&topic, 10..11, Durability::Written);
    append(&topic, 11..12, Durability::Synced);
    for damage in ["remove", "blank"] {
        match damage {
            "remove" => std::fs::rename(dir.path().join("live"), dir.path().join("live.away")).unwrap(),
            _ => std::fs::write(dir.path().join("live"), [0; 4096]).unwrap(),
        }
        let reader = open_read_only(dir.path(), quiet());
        let seen = reader.topic("t").unwrap();
        // The last frame says that everything up to the tenth record was synced.
        assert_eq!(check(0, seen.read(Start::Earliest).unwrap()), 10, "{damage}");
        assert_eq!(count_written(&mut seen.cursor(Start::Earliest, Visibility::Written).unwrap()), 12);
        assert!(reader.stats().damage.is_none());
    }
}

#[test]
fn after_another_boot_everything_intact_counts_as_synced() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    append(&store.topic_or_create("t").unwrap(), 0..10, Durability::Written);
    std::mem::forget(store);
    let reader = open_read_only(dir.path(), quiet());
    assert_eq!(reader.topic("t").unwrap().read(Start::Earliest).unwrap().count(), 0);
    put_into_another_boot(&dir.path().join("live"));
    reader.refresh().unwrap();
    assert_eq!(check(0, reader.topic("t").unwrap().read(Start::Earliest).unwrap()), 10);
}

#[test]
fn rot_in_the_journal_is_reported_and_what_is_before_it_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), quiet());
    let topic = store.topic_or_create("t").unwrap();
    append(&topic, 0..50, Durability::Synced);
    let at = store.stats().journal_position.0;
    append(&topic, 50..100, Durability::Synced);
    let path = dir.path().join("journal/000000.journal");
    let mut bytes = std::fs::read(&path).unwrap();
    // The second half of the frames, which start behind the header of 4096 bytes.
    let rotten = 4096 + usize::try_from(at).unwrap() + 60;
    bytes[rotten] ^= 4;
    std::fs::write(&path, bytes).unwrap();
    let reader = open_read_only(dir.path(), quiet());
    let seen = reader.topic("t").unwrap();
    assert_eq!(check_to_damage(seen.read(Start::Earliest).unwrap()), 50);
    let damage = reader.stats().damage;
    assert!(matches!(&damage, Some(Error::CorruptFile { path: found, .. }) if *found == path), "{damage:?}");
    // The writer still has these records in memory; when they are in segments the reader gets there.
    store.checkpoint().unwrap();
    append(&topic, 100..110, Durability::Synced);
    reader.refresh().unwrap();
    assert_eq!(check(0, seen.read(Start::Earliest).unwrap()), 110);
    assert!(reader.stats().damage.is_none());
}
