//! The store through its public interface, on the real disk.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::time::Duration;

use quipu_storage::{
    Append, Codec, Durability, Error, Offset, Record, Start, Storage, Store, StoreSettings, TopicSettings,
    Visibility,
};

fn small() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 512 << 10,
        append_bytes_max: 16 << 10,
        ..StoreSettings::default()
    }
}

fn open(dir: &std::path::Path, settings: StoreSettings) -> Store {
    Store::builder().settings(settings).open(dir).unwrap()
}

fn payloads(
    records: impl Iterator<Item = quipu_storage::Result<quipu_storage::StoredRecord>>,
) -> Vec<String> {
    records.map(|record| String::from_utf8(record.unwrap().payload().unwrap().to_vec()).unwrap()).collect()
}

fn numbered(from: u64, to: u64) -> Vec<String> {
    (from..to).map(|n| format!("record {n}")).collect()
}

fn append_numbered(topic: &quipu_storage::Topic, from: u64, to: u64, durability: Durability) {
    for n in from..to {
        let appended = topic.append_with(&[Record::new(format!("record {n}"))], durability).unwrap();
        assert_eq!(appended.first_offset, Offset(n));
    }
}

#[test]
fn what_is_appended_is_read_back_also_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    for run in 0..4 {
        let store = open(dir.path(), small());
        let topic = store.topic_or_create("orders").unwrap();
        assert_eq!(payloads(topic.read(Start::Earliest).unwrap()), numbered(0, run * 100));
        append_numbered(&topic, run * 100, run * 100 + 100, Durability::Written);
        store.sync().unwrap();
        assert_eq!(payloads(topic.read(Start::Earliest).unwrap()), numbered(0, run * 100 + 100));
        assert_eq!(store.recovery().was_clean, run > 0);
        store.close().unwrap();
    }
}

#[test]
fn a_small_journal_is_used_again_and_again_and_segments_roll() {
    let dir = tempfile::tempdir().unwrap();
    let settings = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let store = open(dir.path(), small());
    let topic = store.create_topic("a/b", settings).unwrap();
    let big = "x".repeat(1000);
    for n in 0..5000 {
        topic.append_with(&[Record::new(format!("{n} {big}"))], Durability::Written).unwrap();
    }
    store.sync().unwrap();
    let check = |topic: &quipu_storage::Topic| {
        let all = payloads(topic.read(Start::Earliest).unwrap());
        assert_eq!(all.len(), 5000);
        assert!(all.iter().enumerate().all(|(n, payload)| *payload == format!("{n} {big}")));
        let mut backwards = payloads(topic.read_backwards(Offset::MAX));
        backwards.reverse();
        assert_eq!(backwards, all);
        for offset in [0, 1, 77, 2500, 4999] {
            let record = topic.get(Offset(offset)).unwrap().unwrap();
            assert!(record.payload().unwrap().starts_with(format!("{offset} ").as_bytes()));
        }
    };
    check(&topic);
    let stats = store.stats();
    assert!(stats.journal_bytes <= 512 << 10, "{stats:?}");
    assert!(stats.segments_created > 1000, "{stats:?}");
    store.close().unwrap();
    let store = open(dir.path(), small());
    assert!(store.recovery().was_clean);
    check(&store.topic("a/b").unwrap());
}

#[test]
fn a_follower_is_woken_by_each_append() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small());
    let topic = store.topic_or_create("t").unwrap();
    let follower = topic.follow(Start::Earliest).unwrap();
    let reader = std::thread::spawn(move || payloads(follower.take(200)));
    append_numbered(&topic, 0, 200, Durability::Synced);
    assert_eq!(reader.join().unwrap(), numbered(0, 200));
}

#[test]
fn one_append_over_topics_is_atomic_and_ordered() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small());
    let (a, b) = (store.topic_or_create("a").unwrap(), store.topic_or_create("b").unwrap());
    let append = Append::new()
        .records(&a, &[Record::new("1")])
        .unwrap()
        .records(&b, &[Record::new("2"), Record::new("3")])
        .unwrap()
        .records(&a, &[Record::new("4")])
        .unwrap();
    let appended = store.append(append).unwrap();
    assert_eq!(appended.iter().map(|a| a.next_offset.0).collect::<Vec<_>>(), [2, 2]);
    assert_eq!(payloads(a.read(Start::Earliest).unwrap()), ["1", "4"]);
    assert_eq!(payloads(b.read(Start::Earliest).unwrap()), ["2", "3"]);
}

#[test]
fn a_written_record_is_seen_at_once_by_those_who_ask_for_it_and_by_others_when_it_is_synced() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), StoreSettings { background: false, ..small() });
    let topic = store.topic_or_create("t").unwrap();
    append_numbered(&topic, 0, 3, Durability::Written);
    assert_eq!(topic.high_watermark(), Offset(0));
    assert_eq!(topic.read(Start::Earliest).unwrap().count(), 0);
    let mut cursor = topic.cursor(Start::Earliest, Visibility::Written).unwrap();
    assert!(cursor.next_batch().unwrap().is_some());
    store.sync().unwrap();
    assert_eq!(topic.read(Start::Earliest).unwrap().count(), 3);
}

#[test]
fn a_second_opener_is_told_who_holds_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let _store = open(dir.path(), small());
    let error = Store::open(dir.path()).unwrap_err();
    assert!(
        matches!(&error, Error::Locked { holder, .. } if holder.contains(&std::process::id().to_string())),
        "{error}"
    );
}

#[test]
fn trimmed_and_unwritten_offsets_are_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small());
    let settings = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", settings).unwrap();
    append_numbered(&topic, 0, 500, Durability::Written);
    store.checkpoint().unwrap();
    topic.trim(Offset(300)).unwrap();
    assert!(matches!(
        topic.get(Offset(299)),
        Err(Error::OffsetTrimmed { log_start_offset: Offset(300), .. })
    ));
    assert!(matches!(topic.get(Offset(500)), Err(Error::OffsetUnwritten { next_offset: Offset(500), .. })));
    assert_eq!(payloads(topic.read(Start::Earliest).unwrap()), numbered(300, 500));
    topic.trim(Offset(500)).unwrap();
    assert_eq!(topic.read(Start::Earliest).unwrap().count(), 0);
    drop((topic, store));
    let store = open(dir.path(), small());
    let topic = store.topic("t").unwrap();
    assert_eq!((topic.log_start_offset(), topic.log_end_offset()), (Offset(500), Offset(500)));
    append_numbered(&topic, 500, 510, Durability::Synced);
    assert_eq!(payloads(topic.read(Start::Earliest).unwrap()), numbered(500, 510));
}

#[test]
fn every_start_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small());
    let settings = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", settings).unwrap();
    append_numbered(&topic, 0, 300, Durability::Written);
    store.checkpoint().unwrap();
    append_numbered(&topic, 300, 400, Durability::Synced);
    let first = |start: Start| topic.read(start).unwrap().next().map(|record| record.unwrap().offset().0);
    assert_eq!(first(Start::Earliest), Some(0));
    assert_eq!(first(Start::Latest), None);
    assert_eq!(first(Start::Offset(Offset(123))), Some(123));
    assert_eq!(first(Start::AfterOffset(Offset(123))), Some(124));
    assert_eq!(first(Start::Last(10)), Some(390));
    assert_eq!(first(Start::Last(1000)), Some(0));
    let times: Vec<_> =
        topic.read(Start::Earliest).unwrap().map(|record| record.unwrap().append_time()).collect();
    for time in [times[0], times[150], times[399]] {
        let expected = times.iter().position(|&found| found >= time).unwrap() as u64;
        assert_eq!(first(Start::Time(time)), Some(expected));
    }
    assert_eq!(first(Start::Time(times[399] + 1)), None);
}

#[test]
fn a_topic_in_memory_drops_the_oldest_and_never_gives_an_offset_twice() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small());
    let settings = TopicSettings { storage: Storage::Memory { bytes_max: 8192 }, ..TopicSettings::default() };
    let topic = store.create_topic("m", settings).unwrap();
    append_numbered(&topic, 0, 1000, Durability::Accepted);
    assert!(topic.log_start_offset() > Offset(800));
    assert_eq!(topic.log_end_offset(), Offset(1000));
    let start = topic.log_start_offset().0;
    assert_eq!(payloads(topic.read(Start::Earliest).unwrap()), numbered(start, 1000));
    drop((topic, store));
    let topic = open(dir.path(), small()).topic("m").unwrap();
    assert!(topic.log_start_offset() >= Offset(1000));
    assert_eq!(topic.log_start_offset(), topic.log_end_offset());
}

#[test]
fn a_deleted_topic_is_gone_with_its_files_and_its_name_is_free() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small());
    let topic = store.topic_or_create("t").unwrap();
    append_numbered(&topic, 0, 10, Durability::Synced);
    store.checkpoint().unwrap();
    store.delete_topic("t").unwrap();
    assert!(matches!(topic.append(&[Record::new("x")]), Err(Error::TopicNotFound { .. })));
    store.checkpoint().unwrap();
    assert_eq!(std::fs::read_dir(dir.path().join("topics")).unwrap().count(), 0);
    let again = store.topic_or_create("t").unwrap();
    assert_eq!(again.log_end_offset(), Offset(0));
    drop((topic, again, store));
    assert_eq!(open(dir.path(), small()).topics().len(), 1);
}

#[test]
fn a_reader_of_a_deleted_topic_is_told_so_also_if_its_records_never_reached_a_segment() {
    // A cursor looked for ever for records that had gone with the deleted topic's tail.
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), StoreSettings { background: false, ..small() });
    let topic = store.topic_or_create("t").unwrap();
    append_numbered(&topic, 0, 10, Durability::Synced);
    let mut cursor = topic.cursor(Start::Earliest, Visibility::Synced).unwrap();
    store.delete_topic("t").unwrap();
    assert!(matches!(cursor.next_batch(), Err(Error::TopicNotFound { .. })));
}

#[test]
fn many_writers_each_get_their_own_offsets() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), small());
    let topic = store.topic_or_create("t").unwrap();
    std::thread::scope(|scope| {
        for writer in 0..8 {
            let topic = &topic;
            scope.spawn(move || {
                for n in 0..50 {
                    topic.append(&[Record::new(format!("{writer}/{n}"))]).unwrap();
                }
            });
        }
    });
    let all = payloads(topic.read(Start::Earliest).unwrap());
    assert_eq!(all.len(), 400);
    for writer in 0..8 {
        let own: Vec<_> = all.iter().filter(|payload| payload.starts_with(&format!("{writer}/"))).collect();
        assert!(own.iter().enumerate().all(|(n, payload)| **payload == format!("{writer}/{n}")));
    }
}

#[test]
fn a_ticket_can_be_awaited() {
    struct Flag(std::thread::Thread);
    impl std::task::Wake for Flag {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), StoreSettings { sync_interval: Duration::from_secs(3600), ..small() });
    let topic = store.topic_or_create("t").unwrap();
    let waker = std::sync::Arc::new(Flag(std::thread::current())).into();
    let mut task = std::task::Context::from_waker(&waker);
    for n in 0..20 {
        let mut ticket = std::pin::pin!(topic.submit(&[Record::new("x")], Durability::Synced).unwrap());
        let appended = loop {
            match std::future::Future::poll(ticket.as_mut(), &mut task) {
                std::task::Poll::Ready(outcome) => break outcome.unwrap(),
                std::task::Poll::Pending => std::thread::park(),
            }
        };
        assert_eq!(appended[0].first_offset, Offset(n));
    }
    assert_eq!(topic.high_watermark(), Offset(20));
}

#[test]
fn a_trim_that_finds_its_work_done_returns_when_that_survives_a_power_cut() {
    // It returned at once, while the trim of another thread that had moved the log start still waited for its sync.
    // What a written append stands for here, since it is not synced either.
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), StoreSettings { background: false, ..small() });
    let topic = store.topic_or_create("t").unwrap();
    append_numbered(&topic, 0, 2, Durability::Written);
    assert!(store.stats().synced_position < store.stats().journal_position);
    topic.trim(Offset::ZERO).unwrap();
    assert_eq!(store.stats().synced_position, store.stats().journal_position);
}

#[test]
fn a_segment_whose_end_was_only_in_the_journal_survives_a_trim_into_that_end_and_a_crash() {
    // Recovery judged a segment by what the checkpoint knew of it, found that all of that was trimmed, and forgot the
    // segment together with the records behind, which it had just read from the journal for it.
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("store"), StoreSettings { background: false, ..small() });
    let settings = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", settings).unwrap();
    append_numbered(&topic, 0, 4, Durability::Synced);
    store.checkpoint().unwrap();
    append_numbered(&topic, 4, 200, Durability::Synced);
    topic.trim(Offset(6)).unwrap();
    let crashed = dir.path().join("crashed");
    let copied = std::process::Command::new("cp").arg("-r").arg(store.path()).arg(&crashed).status().unwrap();
    assert!(copied.success());
    let store = open(&crashed, StoreSettings { background: false, ..small() });
    let topic = store.topic("t").unwrap();
    assert_eq!(payloads(topic.read(Start::Earliest).unwrap()), numbered(6, 200));
    store.checkpoint().unwrap();
    assert_eq!(payloads(topic.read(Start::Earliest).unwrap()), numbered(6, 200));
}

#[test]
fn a_batch_in_memory_is_had_without_the_disk_and_one_that_left_it_or_is_compressed_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let store = Store::builder().settings(settings).open(dir.path()).unwrap();
    let topic = store.topic_or_create("orders").unwrap();
    topic.append(&[Record::new("a"), Record::new("b")]).unwrap();
    let mut cursor = topic.cursor(Start::Earliest, Visibility::Synced).unwrap();
    let batch = cursor.next_batch_in_memory().unwrap().unwrap();
    assert_eq!((batch.from(), cursor.next_offset()), (Offset(0), Offset(2)));
    assert!(cursor.next_batch_in_memory().unwrap().is_none(), "there is none yet");
    store.checkpoint().unwrap();
    let mut cursor = topic.cursor(Start::Earliest, Visibility::Synced).unwrap();
    assert!(cursor.next_batch_in_memory().unwrap().is_none(), "it is on the disk");
    assert_eq!(cursor.next_offset(), Offset(0));
    assert_eq!(cursor.next_batch().unwrap().unwrap().batch().next_offset(), Offset(2));
    topic.alter(&TopicSettings { codec: Codec::Lz4, ..topic.settings() }).unwrap();
    topic.append(&[Record::new("z".repeat(1000))]).unwrap();
    assert!(cursor.next_batch_in_memory().unwrap().is_none(), "it would have to be decompressed");
    assert!(cursor.next_batch().unwrap().is_some());
    store.delete_topic("orders").unwrap();
    assert!(matches!(cursor.next_batch_in_memory(), Err(Error::TopicNotFound { .. })));
}
