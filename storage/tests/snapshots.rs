//! Snapshots through the public interface: which one is found, what is refused, and what becomes of them when records,
//! topics and bytes go.
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::fs;
use std::path::Path;

use quipu_storage::{
    Compaction, Durability, Error, Offset, Record, Revision, SnapshotPut, Storage, Store, StoreSettings,
    StreamStart, Topic, TopicSettings, Visibility,
};

fn open(dir: &Path) -> Store {
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    Store::builder().settings(settings).open(dir).unwrap()
}

/// Events of a key up to a revision.
fn fill(topic: &Topic, key: &str, revisions: u64) {
    let events: Vec<_> = (0..revisions).map(|number| Record::keyed(key, number.to_string())).collect();
    topic.append(&events).unwrap();
}

fn put(topic: &Topic, key: &str, revision: u64, state: &str) -> SnapshotPut {
    topic.put_snapshot(Revision(revision), &Record::keyed(key, state), Durability::Synced).unwrap()
}

/// What is found, as revision and state.
fn found(topic: &Topic, key: &str, up_to: Option<u64>) -> Option<(u64, String)> {
    let snapshot = topic.snapshot(key, up_to.map(Revision)).unwrap()?;
    let state = String::from_utf8(snapshot.record.payload().unwrap().to_vec()).unwrap();
    Some((snapshot.revision.value(), state))
}

fn some(revision: u64, state: &str) -> Option<(u64, String)> {
    Some((revision, state.into()))
}

#[test]
fn the_latest_snapshot_up_to_a_revision_is_found_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let check = |topic: &Topic| {
        assert_eq!(found(topic, "a", None), some(7, "at 7"));
        assert_eq!(found(topic, "a", Some(100)), some(7, "at 7"));
        assert_eq!(found(topic, "a", Some(6)), some(4, "at 4"));
        assert_eq!(found(topic, "a", Some(3)), None);
        assert_eq!(found(topic, "b", None), some(0, "of b"));
        assert_eq!(found(topic, "c", None), None);
    };
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    assert_eq!(found(&topic, "a", None), None);
    fill(&topic, "a", 9);
    fill(&topic, "b", 1);
    assert_eq!(put(&topic, "a", 4, "at 4"), SnapshotPut::Stored(Offset(0)));
    assert_eq!(put(&topic, "b", 0, "of b"), SnapshotPut::Stored(Offset(1)));
    assert_eq!(put(&topic, "a", 7, "at 7"), SnapshotPut::Stored(Offset(2)));
    check(&topic);
    let beside = Store::open_read_only(dir.path()).unwrap();
    let seen = beside.topic("accounts").unwrap().snapshot("a", Some(Revision(6))).unwrap().unwrap();
    assert_eq!((seen.revision, seen.record.payload()), (Revision(4), Some(&b"at 4"[..])));
    store.close().unwrap();
    let topic = open(dir.path()).topic("accounts").unwrap();
    check(&topic);
}

#[test]
fn a_snapshot_keeps_what_its_caller_gave_it_and_one_that_was_read_can_be_put_again() {
    let dir = tempfile::tempdir().unwrap();
    let topic = open(dir.path()).topic_or_create("accounts").unwrap();
    fill(&topic, "a", 3);
    let given = Record::keyed("a", "state").with_type("Account.v2").with_tag("t").with_header("by", "me");
    topic.put_snapshot(Revision(1), &given, Durability::Synced).unwrap();
    let again = topic.snapshot("a", None).unwrap().unwrap().record.view().to_record();
    topic.put_snapshot(Revision(2), &again, Durability::Synced).unwrap();
    let snapshot = topic.snapshot("a", None).unwrap().unwrap();
    let view = snapshot.record.view();
    assert_eq!(snapshot.revision, Revision(2));
    assert_eq!((view.record_type, view.tags().collect::<Vec<_>>()), ("Account.v2", vec!["t"]));
    let names: Vec<_> = view.headers().map(|(name, _)| name).collect();
    assert_eq!(names, ["by", "quipu-snapshot-revision", "quipu-snapshot-topic"]);
}

#[test]
fn a_revision_that_the_stream_does_not_have_is_refused_and_makes_no_topic() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 3);
    for (key, revision, next) in [("a", 3, 3), ("a", u64::MAX, 3), ("b", 0, 0)] {
        let error =
            topic.put_snapshot(Revision(revision), &Record::keyed(key, "x"), Durability::Synced).unwrap_err();
        assert!(
            matches!(&error, Error::RevisionUnwritten { next_revision, .. } if next_revision.value() == next),
            "{error:?}"
        );
    }
    let without_key = topic.put_snapshot(Revision(0), &Record::new("x"), Durability::Synced);
    assert!(matches!(without_key, Err(Error::InvalidAppend { .. })), "{without_key:?}");
    let without_payload = topic.put_snapshot(Revision(0), &Record::tombstone("a"), Durability::Synced);
    assert!(matches!(without_payload, Err(Error::InvalidAppend { .. })), "{without_payload:?}");
    assert_eq!(store.topics().len(), 1);
}

#[test]
fn one_older_than_the_latest_changes_nothing_and_one_of_the_same_revision_replaces_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 9);
    put(&topic, "a", 5, "five");
    assert_eq!(put(&topic, "a", 4, "late"), SnapshotPut::Superseded(Revision(5)));
    assert_eq!(store.topic("accounts.snapshots").unwrap().log_end_offset(), Offset(1));
    put(&topic, "a", 5, "better");
    assert_eq!(found(&topic, "a", None), some(5, "better"));
}

/// Compaction keeps the last records of a key: were they not in the order of their revisions, it would prune the latest.
#[test]
fn snapshots_put_at_the_same_time_lie_in_the_order_of_their_revisions() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 400);
    let threads: Vec<_> = (0..4)
        .map(|first| {
            let topic = topic.clone();
            std::thread::spawn(move || {
                for revision in (first..400).step_by(4) {
                    let record = Record::keyed("a", revision.to_string());
                    topic.put_snapshot(Revision(revision), &record, Durability::Written).unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    store.sync().unwrap();
    let snapshots = store.topic("accounts.snapshots").unwrap();
    let stored: Vec<u64> = snapshots
        .read(Offset::ZERO)
        .unwrap()
        .map(|record| {
            String::from_utf8(record.unwrap().payload().unwrap().to_vec()).unwrap().parse().unwrap()
        })
        .collect();
    assert!(stored.is_sorted(), "{stored:?}");
    assert_eq!(stored.last(), Some(&399));
    assert_eq!(found(&topic, "a", None), some(399, "399"));
}

#[test]
fn compaction_prunes_old_snapshots_and_keeps_the_latest() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 50);
    put(&topic, "a", 0, "first");
    let snapshots = store.topic("accounts.snapshots").unwrap();
    let settings = snapshots.settings();
    assert_eq!(settings.compaction, Some(Compaction { records_per_key: 3, ..Compaction::default() }));
    snapshots.alter(&TopicSettings { segment_bytes_max: 4096, ..settings }).unwrap();
    for revision in 1..50 {
        put(&topic, "a", revision, &"x".repeat(500));
    }
    store.checkpoint().unwrap();
    snapshots.compact().unwrap();
    let kept = snapshots.read(Offset::ZERO).unwrap().count();
    assert!(kept < 15, "{kept}");
    assert_eq!(found(&topic, "a", None), some(49, &"x".repeat(500)));
    assert_eq!(found(&topic, "a", Some(0)), None);
}

/// The events below a snapshot may go: that is one of its uses. Revisions never go back, so it stays what it was.
#[test]
fn a_snapshot_outlives_the_events_that_it_covers() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 5);
    put(&topic, "a", 4, "of all");
    topic.trim(Offset(5)).unwrap();
    assert_eq!(found(&topic, "a", None), some(4, "of all"));
    fill(&topic, "a", 1);
    let behind = topic.read_stream("a", StreamStart::AfterRevision(Revision(4))).unwrap();
    assert_eq!(behind.map(|event| event.unwrap().revision()).collect::<Vec<_>>(), [Some(Revision(5))]);
}

#[test]
fn a_topic_made_again_never_sees_the_snapshots_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 5);
    put(&topic, "a", 4, "of the old one");
    store.delete_topic("accounts").unwrap();
    let error = topic.snapshot("a", None).unwrap_err();
    assert!(matches!(error, Error::TopicNotFound { .. }), "{error:?}");
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 9);
    assert_eq!(found(&topic, "a", None), None);
    // Also with a revision below that of the old one.
    put(&topic, "a", 2, "of the new one");
    assert_eq!(found(&topic, "a", None), some(2, "of the new one"));
}

#[test]
fn topics_that_can_have_no_snapshots_say_so_and_have_none() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let in_memory = TopicSettings { storage: Storage::Memory { bytes_max: 1 << 20 }, ..Default::default() };
    store.topic_or_create("taken.snapshots").unwrap();
    let long = "x".repeat(246);
    for topic in [
        store.create_topic("volatile", in_memory).unwrap(),
        store.topic_or_create("x.snapshots").unwrap(),
        store.topic_or_create("taken").unwrap(),
        store.topic_or_create(&long).unwrap(),
    ] {
        fill(&topic, "a", 3);
        let error =
            topic.put_snapshot(Revision(1), &Record::keyed("a", "x"), Durability::Synced).unwrap_err();
        assert!(matches!(error, Error::SnapshotsRefused { .. }), "{error:?}");
        assert_eq!(found(&topic, "a", None), None);
    }
    let longest = store.topic_or_create(&"x".repeat(245)).unwrap();
    fill(&longest, "a", 3);
    put(&longest, "a", 1, "fits");
    assert_eq!(found(&longest, "a", None), some(1, "fits"));
}

#[test]
fn what_others_append_to_the_topic_of_snapshots_is_no_snapshot() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 5);
    put(&topic, "a", 2, "two");
    let uid = topic.uid().to_string();
    let foreign = Record::keyed("a", "x").with_header("quipu-snapshot-topic", uid.clone());
    let snapshots = store.topic("accounts.snapshots").unwrap();
    let wrong = foreign.clone().with_header("quipu-snapshot-revision", "many");
    let ahead = foreign.clone().with_header("quipu-snapshot-revision", "5");
    snapshots.append(&[Record::keyed("a", "x"), Record::tombstone("a"), foreign, wrong, ahead]).unwrap();
    assert_eq!(found(&topic, "a", None), some(2, "two"));
}

#[test]
fn a_snapshot_of_events_that_are_not_synced_is_not_found_before_they_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 3);
    put(&topic, "a", 1, "one");
    topic.append_with(&[Record::keyed("a", "3")], Durability::Accepted).unwrap();
    topic.put_snapshot(Revision(3), &Record::keyed("a", "three"), Durability::Accepted).unwrap();
    assert_eq!(found(&topic, "a", None), some(1, "one"));
    store.sync().unwrap();
    assert_eq!(found(&topic, "a", None), some(3, "three"));
    assert_eq!(topic.stream_with("a", Visibility::Synced).unwrap().unwrap().last_revision, Revision(3));
}

#[test]
fn a_damaged_snapshot_is_told_and_the_next_one_makes_up_for_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 9);
    put(&topic, "a", 3, "intact");
    let snapshots = store.topic("accounts.snapshots").unwrap();
    snapshots.alter(&TopicSettings { segment_bytes_max: 4096, ..snapshots.settings() }).unwrap();
    put(&topic, "a", 5, "to be damaged");
    // Its segment is sealed and has an index: what is in it is known from there.
    snapshots.append(&[Record::new(vec![0; 4096])]).unwrap();
    store.checkpoint().unwrap();
    assert_eq!(found(&topic, "a", None), some(5, "to be damaged"));
    store.close().unwrap();
    drop((store, topic, snapshots));
    let mut damaged = 0;
    for entry in fs::read_dir(dir.path().join("topics")).unwrap() {
        for file in fs::read_dir(entry.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            let mut bytes = fs::read(&path).unwrap();
            let place = bytes.windows(13).position(|window| window == b"to be damaged");
            if let Some(place) = place.filter(|_| path.extension().is_some_and(|name| name == "segment")) {
                bytes[place] ^= 1;
                fs::write(&path, bytes).unwrap();
                damaged += 1;
            }
        }
    }
    assert_eq!(damaged, 1);
    let topic = open(dir.path()).topic("accounts").unwrap();
    let error = topic.snapshot("a", None).unwrap_err();
    assert!(
        matches!(&error, Error::Corrupt { topic, .. } if topic.as_str() == "accounts.snapshots"),
        "{error:?}"
    );
    assert_eq!(
        topic.read_stream("a", StreamStart::Earliest).unwrap().filter(|event| event.is_ok()).count(),
        9
    );
    put(&topic, "a", 6, "made up");
    assert_eq!(found(&topic, "a", None), some(6, "made up"));
    // It is told to whoever might be meant to get it, and to nobody else.
    put(&topic, "a", 8, "latest");
    assert_eq!(found(&topic, "a", Some(7)), some(6, "made up"));
    let error = topic.snapshot("a", Some(Revision(5))).unwrap_err();
    assert!(matches!(error, Error::Corrupt { .. }), "{error:?}");
}

/// All that lay behind it were read.
#[test]
fn an_old_snapshot_is_found_without_reading_those_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 2000);
    for revision in (0..2000).step_by(2) {
        let record = Record::keyed("a", revision.to_string());
        topic.put_snapshot(Revision(revision), &record, Durability::Accepted).unwrap();
    }
    store.checkpoint().unwrap();
    for up_to in [0, 1, 2, 999, 1000, 1997, 1999] {
        let before = store.stats().batches_read;
        let wanted = up_to / 2 * 2;
        assert_eq!(found(&topic, "a", Some(up_to)), some(wanted, &wanted.to_string()));
        let read = store.stats().batches_read - before;
        assert!(read <= 12, "{read} batches for revision {up_to} of 1,000 snapshots");
    }
}

/// Of those that others appended under the key a bounded number is passed over, and of the topic before as well.
#[test]
fn records_of_others_between_snapshots_do_not_hide_them_unless_they_are_very_many() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let old = store.topic_or_create("accounts").unwrap();
    fill(&old, "a", 50);
    for revision in 0..50 {
        put(&old, "a", revision, "of the old one");
    }
    store.delete_topic("accounts").unwrap();
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 40);
    assert_eq!(found(&topic, "a", None), None);
    let snapshots = store.topic("accounts.snapshots").unwrap();
    for revision in (0..40).step_by(3) {
        let others = usize::try_from(revision * 7 % 11).unwrap();
        if others > 0 {
            snapshots.append(&vec![Record::keyed("a", "of others"); others]).unwrap();
        }
        put(&topic, "a", revision, "ours");
    }
    for up_to in 0..40 {
        assert_eq!(found(&topic, "a", Some(up_to)), some(up_to / 3 * 3, "ours"));
    }
    snapshots.append(&vec![Record::keyed("a", "of others"); 2000]).unwrap();
    // So many are not looked through; the next one is in front of them.
    assert_eq!(found(&topic, "a", None), None);
    put(&topic, "a", 39, "behind them");
    assert_eq!(found(&topic, "a", None), some(39, "behind them"));
}

#[test]
fn a_snapshot_that_is_refused_makes_no_topic() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("accounts").unwrap();
    fill(&topic, "a", 3);
    let too_large = vec![0; usize::try_from(StoreSettings::default().append_bytes_max).unwrap()];
    let crowded = (0..127)
        .fold(Record::keyed("a", "x"), |record, number| record.with_header(format!("header-{number}"), "x"));
    for refused in [
        Record::keyed("a", too_large),
        // With the two of a snapshot it has too many.
        crowded,
        Record::keyed("a", "x").with_type("x".repeat(256)),
        // There is no master key.
        Record::keyed("a", "x").with_erasure_key("customer-17"),
    ] {
        let error = topic.put_snapshot(Revision(1), &refused, Durability::Synced).unwrap_err();
        let is_said = matches!(
            error,
            Error::AppendTooLarge { .. } | Error::RecordTooLarge { .. } | Error::MasterKeyMissing
        );
        assert!(is_said, "{error:?}");
        assert_eq!(store.topics().len(), 1, "{error}");
    }
    put(&topic, "a", 1, "taken");
    assert_eq!(store.topics().len(), 2);
}
