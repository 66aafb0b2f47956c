//! The bare log through its public interface, on the real disk.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quipu_storage::clock::Clock;
use quipu_storage::format::batch::BATCH_BYTES_LIMIT;
use quipu_storage::{
    Codec, Durability, Error, ErrorKind, Log, LogSettings, Offset, Record, Start, StoredRecord, Timestamp,
    Visibility,
};

const SMALL_SEGMENT: u64 = 16 << 10;

fn small() -> LogSettings {
    LogSettings { segment_bytes_max: SMALL_SEGMENT, background: false, ..LogSettings::default() }
}

fn open(dir: &Path) -> Log {
    Log::builder().settings(small()).open(dir).unwrap()
}

fn text(n: u64) -> String {
    format!("record {n} {}", "x".repeat(usize::try_from(n % 97).unwrap()))
}

fn append(log: &Log, from: u64, to: u64, durability: Durability) {
    for n in from..to {
        let appended = log.append_record(&Record::new(text(n)), durability).unwrap();
        assert_eq!((appended.first_offset, appended.next_offset), (Offset(n), Offset(n + 1)));
    }
}

fn payload(record: StoredRecord) -> String {
    String::from_utf8(record.payload().unwrap().to_vec()).unwrap()
}

fn payloads(records: impl Iterator<Item = quipu_storage::Result<StoredRecord>>) -> Vec<String> {
    records.map(|record| payload(record.unwrap())).collect()
}

fn texts(from: u64, to: u64) -> Vec<String> {
    (from..to).map(text).collect()
}

fn segment_files(dir: &Path) -> Vec<PathBuf> {
    let mut files: Vec<_> = std::fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "segment"))
        .collect();
    files.sort();
    files
}

#[test]
fn what_is_appended_is_read_back_also_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut uid = None;
    for run in 0..4 {
        let log = open(dir.path());
        assert_eq!(*uid.get_or_insert(log.uid()), log.uid());
        assert_eq!(payloads(log.read(Start::Earliest).unwrap()), texts(0, run * 500));
        append(&log, run * 500, run * 500 + 500, Durability::Written);
        log.sync().unwrap();
        assert_eq!(payloads(log.read(Start::Earliest).unwrap()), texts(0, run * 500 + 500));
        let mut backwards = payloads(log.read_backwards(Offset::MAX));
        backwards.reverse();
        assert_eq!(backwards, texts(0, run * 500 + 500));
        log.close().unwrap();
    }
    assert!(segment_files(dir.path()).len() > 10);
}

#[test]
fn a_log_with_threads_rolls_and_reads_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LogSettings { background: true, ..small() };
    let log = Log::builder().settings(settings.clone()).open(dir.path()).unwrap();
    append(&log, 0, 5000, Durability::Accepted);
    // Synced by the log's own thread.
    let cursor = log.cursor(Start::Offset(Offset(0)), Visibility::Synced).unwrap();
    while log.high_watermark() < Offset(5000) {
        assert!(cursor.wait(Some(Duration::from_secs(60))).unwrap());
    }
    assert_eq!(payloads(log.read(Start::Earliest).unwrap()), texts(0, 5000));
    log.close().unwrap();
    assert!(!dir.path().join("next").exists());
    let log = Log::builder().settings(settings).open(dir.path()).unwrap();
    assert_eq!(payloads(log.read(Start::Earliest).unwrap()), texts(0, 5000));
}

/// The thread that syncs looked at the tail while it held its watch, and an append that began the eighth unsynced
/// segment notified the watch while it held the tail: both waited for ever.
#[test]
fn rolling_faster_than_syncing_blocks_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LogSettings {
        segment_bytes_max: 4096,
        background: true,
        sync_interval: Duration::from_millis(1),
        ..LogSettings::default()
    };
    let log = Log::builder().settings(settings).open(dir.path()).unwrap();
    append(&log, 0, 10_000, Durability::Accepted);
    log.close().unwrap();
    assert_eq!(log.high_watermark(), Offset(10_000));
}

#[test]
fn many_threads_append_each_record_once_and_in_their_own_order() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::builder().settings(LogSettings { background: true, ..small() }).open(dir.path()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let log = &log;
            scope.spawn(move || {
                for n in 0..300 {
                    let durability = if n % 50 == 0 { Durability::Synced } else { Durability::Written };
                    let records =
                        [Record::new(format!("{thread} {n} a")), Record::new(format!("{thread} {n} b"))];
                    let appended = log.append_with(&records, durability).unwrap();
                    assert_eq!(appended.next_offset - appended.first_offset, 2);
                    if durability == Durability::Synced {
                        assert!(log.high_watermark() >= appended.next_offset);
                    }
                }
            });
        }
    });
    log.sync().unwrap();
    let all = payloads(log.read(Start::Earliest).unwrap());
    assert_eq!(all.len(), 4 * 300 * 2);
    for thread in 0..4 {
        let own: Vec<_> = all.iter().filter(|text| text.starts_with(&format!("{thread} "))).collect();
        let expected: Vec<_> =
            (0..300).flat_map(|n| ["a", "b"].map(|part| format!("{thread} {n} {part}"))).collect();
        assert!(own.into_iter().eq(expected.iter()), "thread {thread}");
    }
}

#[test]
fn readers_see_what_is_synced_and_by_name_what_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    let appended = log.append_record(&Record::new("a"), Durability::Accepted).unwrap();
    assert_eq!(appended.durability, Durability::Written);
    assert_eq!((log.high_watermark(), log.log_end_offset()), (Offset(0), Offset(1)));
    assert_eq!(log.read(Start::Earliest).unwrap().count(), 0);
    assert!(matches!(log.get(Offset(0)), Err(Error::OffsetUnwritten { .. })));
    let mut written = log.cursor(Start::Earliest, Visibility::Written).unwrap();
    assert_eq!(written.next_batch().unwrap().unwrap().owned().len(), 1);
    assert_eq!(log.append(&[Record::new("b")]).unwrap().durability, Durability::Synced);
    assert_eq!(payloads(log.read(Start::Earliest).unwrap()), ["a", "b"]);
    assert_eq!(payload(log.get(Offset(1)).unwrap()), "b");
}

#[test]
fn a_follower_is_woken_by_each_append_and_by_the_end() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    for visibility in [Visibility::Synced, Visibility::Written] {
        let from = log.log_end_offset();
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| {
                let mut cursor = log.cursor(from, visibility).unwrap();
                let mut seen = Vec::new();
                while seen.len() < 200 {
                    assert!(cursor.wait(Some(Duration::from_secs(60))).unwrap());
                    while let Some(batch) = cursor.next_batch().unwrap() {
                        seen.extend(batch.owned().into_iter().map(|record| payload(record.unwrap())));
                    }
                }
                seen
            });
            for n in 0..200 {
                let durability =
                    if visibility == Visibility::Synced { Durability::Synced } else { Durability::Written };
                log.append_record(&Record::new(text(n)), durability).unwrap();
            }
            assert_eq!(reader.join().unwrap(), texts(0, 200));
        });
        log.sync().unwrap();
    }
    std::thread::scope(|scope| {
        let follower = scope.spawn(|| log.follow(Start::Latest).unwrap().count());
        log.close().unwrap();
        assert_eq!(follower.join().unwrap(), 0);
    });
    assert!(matches!(log.append(&[Record::new("late")]), Err(Error::Closed)));
}

#[test]
fn every_start_leads_to_its_record() {
    #[derive(Debug, Default)]
    struct SetByHand(AtomicU64);
    impl Clock for SetByHand {
        fn now(&self) -> Timestamp {
            Timestamp(self.0.load(Ordering::Relaxed))
        }
    }
    let clock = Arc::new(SetByHand::default());
    let dir = tempfile::tempdir().unwrap();
    let log =
        Log::builder().settings(small()).clock(Arc::<SetByHand>::clone(&clock)).open(dir.path()).unwrap();
    for n in 0..1000 {
        clock.0.store(n * 10, Ordering::Relaxed);
        append(&log, n, n + 1, Durability::Written);
    }
    log.sync().unwrap();
    let first = |start: Start| log.read(start).unwrap().next().map(|record| record.unwrap().offset().value());
    assert_eq!(first(Start::Earliest), Some(0));
    assert_eq!(first(Start::Latest), None);
    assert_eq!(first(Start::Offset(Offset(777))), Some(777));
    assert_eq!(first(Start::AfterOffset(Offset(777))), Some(778));
    assert_eq!(first(Start::Last(3)), Some(997));
    for n in [0, 1, 500, 999] {
        assert_eq!(first(Start::Time(Timestamp(n * 10))), Some(n));
        assert_eq!(first(Start::Time(Timestamp((n * 10).saturating_sub(5)))), Some(n));
    }
    assert_eq!(first(Start::Time(Timestamp(10_000))), None);
    assert!(matches!(log.read(Offset(1001)), Err(Error::OffsetUnwritten { next_offset: Offset(1000), .. })));
    for n in [0, 1, 333, 999] {
        assert_eq!(payload(log.get(Offset(n)).unwrap()), text(n));
    }
}

#[test]
fn trimming_takes_effect_at_its_offset_and_frees_whole_segments() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0, 1000, Durability::Written);
    assert!(matches!(log.trim(Offset(1)), Err(Error::OffsetUnwritten { .. })), "not synced yet");
    log.sync().unwrap();
    let before = segment_files(dir.path()).len();
    log.trim(Offset(500)).unwrap();
    log.trim(Offset(200)).unwrap();
    assert_eq!(log.log_start_offset(), Offset(500));
    assert!(segment_files(dir.path()).len() < before);
    assert!(matches!(log.read(Offset(499)), Err(Error::OffsetTrimmed { log_start_offset: Offset(500), .. })));
    let check = |log: &Log, end| {
        assert_eq!(payloads(log.read(Start::Earliest).unwrap()), texts(500, end));
        let mut backwards = payloads(log.read_backwards(Offset::MAX));
        backwards.reverse();
        assert_eq!(backwards, texts(500, end));
    };
    check(&log, 1000);
    log.close().unwrap();
    let log = open(dir.path());
    assert_eq!(log.log_start_offset(), Offset(500));
    check(&log, 1000);
    append(&log, 1000, 1100, Durability::Synced);
    check(&log, 1100);
    log.trim(Offset(1100)).unwrap();
    drop(log);
    let log = open(dir.path());
    assert_eq!(log.read(Start::Earliest).unwrap().count(), 0);
    append(&log, 1100, 1101, Durability::Synced);
    assert_eq!(payloads(log.read(Start::Earliest).unwrap()), texts(1100, 1101));
}

#[test]
fn a_batch_larger_than_a_segment_gets_one_of_its_own() {
    let dir = tempfile::tempdir().unwrap();
    let large = "l".repeat(100 << 10);
    for run in 0..2 {
        let log = open(dir.path());
        for n in 0..3 {
            let appended = log.append(&[Record::new(large.clone())]).unwrap();
            assert_eq!(appended.first_offset, Offset(run * 6 + 2 * n));
            log.append(&[Record::new("small")]).unwrap();
        }
        let all = payloads(log.read(Start::Earliest).unwrap());
        assert_eq!(all.len() as u64, run * 6 + 6);
        assert!(all.chunks(2).all(|pair| pair[0] == large && pair[1] == "small"));
    }
}

#[test]
fn compressed_batches_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LogSettings { codec: Codec::Lz4, ..small() };
    let log = Log::builder().settings(settings).open(dir.path()).unwrap();
    let records = vec![Record::new("z".repeat(1000)); 10];
    log.append(&records).unwrap();
    log.append(&records).unwrap();
    assert!(log.stats().bytes_appended < 1000);
    assert_eq!(log.read(Start::Earliest).unwrap().filter(|record| record.is_ok()).count(), 20);
}

#[test]
fn what_breaks_a_bound_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LogSettings { append_bytes_max: 2000, append_records_max: 10, ..small() };
    let log = Log::builder().settings(settings).open(dir.path()).unwrap();
    let kind = |records: &[Record]| log.append(records).unwrap_err().kind();
    assert_eq!(kind(&[]), ErrorKind::Invalid);
    assert_eq!(kind(&[Record::new("x".repeat(3000))]), ErrorKind::Invalid);
    assert_eq!(kind(&vec![Record::new("x"); 11]), ErrorKind::Invalid);
    assert!(matches!(
        log.append(&[Record::new("x"), Record::keyed(vec![0; 5000], "x")]),
        Err(Error::RecordTooLarge { index: 1, .. })
    ));
    assert_eq!(log.append(&[Record::new("fine")]).unwrap().first_offset, Offset(0));
    let too_large = LogSettings { append_bytes_max: BATCH_BYTES_LIMIT as u64 + 1, ..small() };
    let error = Log::builder().settings(too_large).open(dir.path().join("other")).unwrap_err();
    assert!(matches!(error, Error::InvalidSetting { setting: "append_bytes_max", .. }), "{error}");
}

#[test]
fn a_directory_is_held_by_one_log_and_not_taken_from_others() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    assert!(matches!(Log::open(dir.path()), Err(Error::Locked { .. })));
    log.close().unwrap();
    open(dir.path()).close().unwrap();
    let other = tempfile::tempdir().unwrap();
    std::fs::write(other.path().join("diary"), "dear").unwrap();
    assert!(matches!(Log::open(other.path()), Err(Error::NotAStore { .. })));
    let none = other.path().join("none");
    assert!(matches!(Log::builder().create(false).open(&none), Err(Error::NoStore { .. })));
    assert!(!none.exists());
}

#[test]
fn other_segment_settings_are_taken_at_the_next_opening() {
    let dir = tempfile::tempdir().unwrap();
    let mut end = 0;
    for segment_bytes_max in [16 << 10, 4 << 10, 64 << 10, 8 << 10] {
        let settings = LogSettings { segment_bytes_max, ..small() };
        let log = Log::builder().settings(settings).open(dir.path()).unwrap();
        append(&log, end, end + 300, Durability::Written);
        end += 300;
        log.sync().unwrap();
        assert_eq!(payloads(log.read(Start::Earliest).unwrap()), texts(0, end));
    }
}

#[test]
fn a_damaged_record_is_reported_with_its_offsets_and_the_rest_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let log = open(dir.path());
    append(&log, 0, 1000, Durability::Written);
    log.close().unwrap();
    drop(log);
    let path = &segment_files(dir.path())[1];
    let mut bytes = std::fs::read(path).unwrap();
    let at = bytes.len() / 2;
    bytes[at] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
    let log = open(dir.path());
    let mut damaged = Vec::new();
    let mut read = 0;
    for record in log.read(Start::Earliest).unwrap() {
        match record {
            Ok(record) => {
                assert_eq!(payload(record.clone()), text(record.offset().value()));
                read += 1;
            }
            Err(Error::Corrupt { offsets, .. }) => damaged.push(offsets),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(damaged.len(), 1, "{damaged:?}");
    assert_eq!(read + (damaged[0].end - damaged[0].start), 1000);
    assert!(log.get(damaged[0].start).is_err_and(|error| error.kind() == ErrorKind::Damaged));
}
