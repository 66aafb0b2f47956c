//! Appends that are applied once, producers and fencing, through the public interface.
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quipu_storage::{
    Append, Appended, Compaction, Condition, Durability, Error, ErrorKind, Offset, Producer, Record, Result,
    Revision, Start, Storage, Store, StoreSettings, Topic, TopicSettings, dump, verify,
};

const NOBODY: [String; 0] = [];

fn settings() -> StoreSettings {
    StoreSettings { background: false, ..StoreSettings::default() }
}

fn quiet(dir: &Path) -> Store {
    Store::builder().settings(settings()).open(dir).unwrap()
}

fn named(name: &str, epoch: u64, sequence: u64) -> Producer {
    Producer { name: name.into(), epoch, sequence }
}

/// The answer, and whether it is that of an earlier append.
fn submit(store: &Store, append: Append) -> Result<(Vec<Appended>, bool)> {
    let ticket = store.submit(append)?;
    let is_duplicate = ticket.is_duplicate();
    Ok((ticket.wait()?, is_duplicate))
}

fn of(topic: &Topic, payload: &str) -> Append {
    Append::new().records(topic, &[Record::keyed("k", payload)]).unwrap()
}

fn produce(topic: &Topic, epoch: u64, sequence: u64) -> Result<(Vec<Appended>, bool)> {
    let append = of(topic, &format!("{epoch}/{sequence}")).producer(named("p", epoch, sequence));
    submit(&topic.store(), append)
}

fn payloads(topic: &Topic) -> Vec<String> {
    let records = topic.read(Start::Earliest).unwrap().map(Result::unwrap);
    records.map(|record| String::from_utf8(record.payload().unwrap().to_vec()).unwrap()).collect()
}

/// Closes the store, or leaves it as a crash does, and opens it again.
fn reopened(store: Store, dir: &Path, is_closed: bool) -> Store {
    if is_closed {
        store.close().unwrap();
        return quiet(dir);
    }
    // What is on the disk now is what a killed process leaves.
    store.sync().unwrap();
    let copy = tempfile::tempdir().unwrap();
    copy_all(dir, copy.path());
    store.close().unwrap();
    drop(store);
    std::fs::remove_dir_all(dir).unwrap();
    copy_all(copy.path(), dir);
    let store = quiet(dir);
    assert!(!store.recovery().was_clean);
    store
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::<_, std::io::Error>::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_all(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn a_repeat_gets_the_first_answer_and_appends_nothing_whatever_happened_in_between() {
    let dir = tempfile::tempdir().unwrap();
    let compaction = Some(Compaction::default());
    let small = TopicSettings { segment_bytes_max: 4096, compaction, ..TopicSettings::default() };
    let mut store = quiet(dir.path());
    store.create_topic("t", small).unwrap();
    store.create_topic("u", TopicSettings::default()).unwrap();
    let appends = |store: &Store| {
        let (t, u) = (store.topic("t").unwrap(), store.topic("u").unwrap());
        let many: Vec<_> = (0..3).map(|number| Record::keyed("k", format!("{number}"))).collect();
        let both = || Append::new().records(&t, &many).unwrap().records(&u, &[Record::new("x")]).unwrap();
        [both().producer(named("p", 7, 0)), both().request_id("id"), of(&t, "z").producer(named("p", 7, 1))]
    };
    let first: Vec<_> = appends(&store).into_iter().map(|append| submit(&store, append).unwrap()).collect();
    assert!(first.iter().all(|(_, is_duplicate)| !is_duplicate));
    assert_eq!(first[0].0[0].revisions, [0, 1, 2].map(Revision));
    assert_eq!(first[1].0[0].revisions, [3, 4, 5].map(Revision));
    assert_eq!(first[2].0[0].first_offset, Offset(6));
    let filler: Vec<_> = (0..200).map(|_| Record::keyed("k", vec![b'x'; 100])).collect();
    for record in &filler {
        store.topic("t").unwrap().append_with(std::slice::from_ref(record), Durability::Written).unwrap();
    }
    let end = store.topic("t").unwrap().log_end_offset();
    let repeat = |store: &Store, when: &str| {
        for (append, (answer, _)) in appends(store).into_iter().zip(&first) {
            assert_eq!(submit(store, append).unwrap(), (answer.clone(), true), "{when}");
        }
        assert_eq!(store.topic("t").unwrap().log_end_offset(), end, "{when}");
    };
    repeat(&store, "at once");
    for is_closed in [false, true, true, false] {
        store = reopened(store, dir.path(), is_closed);
        repeat(&store, &format!("reopened, {is_closed}"));
    }
    store.checkpoint().unwrap();
    let topic = store.topic("t").unwrap();
    let report = topic.compact().unwrap();
    assert!(report.records_removed.superseded > 0, "{report:?}");
    repeat(&store, "compacted");
    topic.trim(Offset(150)).unwrap();
    drop(topic);
    repeat(&store, "trimmed");
    store = reopened(store, dir.path(), false);
    repeat(&store, "compacted, trimmed and killed");
    let stats = store.stats();
    assert_eq!((stats.producers, stats.request_ids, stats.appends_repeated), (1, 1, 3));
    store.close().unwrap();
    let report =
        verify::verify(dir.path(), Arc::new(quipu_storage::disk::OsDisk), Default::default()).unwrap();
    assert!(report.findings.is_empty(), "{report:?}");
}

#[test]
fn a_repeat_is_answered_after_its_topic_was_deleted_and_a_new_topic_of_that_name_is_another() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quiet(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    let first = produce(&topic, 0, 0).unwrap();
    store.delete_topic("t").unwrap();
    assert_eq!(produce(&topic, 0, 0).unwrap(), (first.0, true));
    assert!(matches!(produce(&topic, 0, 1), Err(Error::TopicNotFound { .. })));
    drop(topic);
    for is_closed in [false, true] {
        store = reopened(store, dir.path(), is_closed);
        let topic = store.topic_or_create("t").unwrap();
        assert!(matches!(produce(&topic, 0, 0), Err(Error::RequestIdReused { .. })));
        assert_eq!(topic.log_end_offset(), Offset(0));
    }
    let topic = store.topic("t").unwrap();
    assert_eq!(produce(&topic, 0, 1).unwrap().0[0].first_offset, Offset(0));
}

#[test]
fn a_sequence_with_a_gap_is_refused_and_so_is_one_of_an_earlier_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quiet(dir.path());
    for is_closed in [false, true, false] {
        let topic = store.topic_or_create("t").unwrap();
        if topic.log_end_offset() == Offset(0) {
            let gap = produce(&topic, 3, 1).unwrap_err();
            assert!(matches!(gap, Error::SequenceGap { expected: 0, actual: 1, .. }), "{gap}");
            assert_eq!(gap.kind(), ErrorKind::Conflict);
            assert_eq!(store.producer("p"), None, "what is refused makes no producer");
            (0..3).for_each(|sequence| assert!(!produce(&topic, 3, sequence).unwrap().1));
            let gap = produce(&topic, 4, 3).unwrap_err();
            assert!(matches!(gap, Error::SequenceGap { expected: 0, actual: 3, .. }), "{gap}");
            assert!(!produce(&topic, 4, 0).unwrap().1);
        }
        for sequence in [0, 2, 3] {
            let fenced = produce(&topic, 3, sequence).unwrap_err();
            assert!(matches!(fenced, Error::ProducerFenced { epoch: 3, current: 4, .. }), "{fenced}");
            assert_eq!(fenced.kind(), ErrorKind::Busy);
        }
        let gap = produce(&topic, 4, 2).unwrap_err();
        assert!(matches!(gap, Error::SequenceGap { expected: 1, actual: 2, .. }), "{gap}");
        assert!(produce(&topic, 4, 0).unwrap().1);
        assert_eq!(payloads(&topic), ["3/0", "3/1", "3/2", "4/0"]);
        drop(topic);
        store = reopened(store, dir.path(), is_closed);
    }
}

#[test]
fn other_records_under_a_known_sequence_or_id_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let (t, u) = (store.topic_or_create("t").unwrap(), store.topic_or_create("u").unwrap());
    let appends = || {
        [
            of(&t, "a"),
            of(&t, "b"),
            of(&u, "a"),
            Append::new().records(&t, &[Record::keyed("k", "a"), Record::keyed("k", "a")]).unwrap(),
            of(&u, "b").records(&t, &[Record::keyed("k", "a")]).unwrap(),
        ]
    };
    for is_producer in [false, true] {
        let known = |append: Append| match is_producer {
            true => append.producer(Producer { name: "p".into(), epoch: 0, sequence: 0 }),
            false => append.request_id("id"),
        };
        for (number, append) in appends().into_iter().enumerate() {
            let outcome = submit(&store, known(append));
            if number == 0 {
                assert!(!outcome.unwrap().1);
            } else {
                let error = outcome.unwrap_err();
                assert!(matches!(error, Error::RequestIdReused { .. }), "{number}: {error}");
                assert_eq!(error.kind(), ErrorKind::Invalid);
            }
        }
    }
    assert_eq!(t.log_end_offset(), Offset(2));
    assert_eq!(u.log_end_offset(), Offset(0));
}

#[test]
fn an_append_that_is_refused_uses_no_sequence_up_and_conditions_mean_nothing_to_a_repeat() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    let expecting = |next: u64, sequence: u64| {
        let append = of(&topic, "x").producer(named("p", 0, sequence));
        submit(&store, append.require(&topic, Condition::NextOffset(Offset(next))))
    };
    for _ in 0..2 {
        assert!(matches!(expecting(1, 0), Err(Error::ConditionFailed { .. })));
        let huge = Append::new().records(&topic, &[Record::new(vec![0; 9 << 20])]).unwrap();
        let huge = submit(&store, huge.producer(named("p", 0, 0)));
        assert!(matches!(huge, Err(Error::AppendTooLarge { .. })), "{huge:?}");
        assert_eq!(store.producer("p"), None);
    }
    let first = expecting(0, 0).unwrap();
    assert!(matches!(expecting(0, 1), Err(Error::ConditionFailed { .. })));
    assert_eq!(expecting(0, 0).unwrap(), (first.0.clone(), true));
    topic.trim(Offset(1)).unwrap();
    let reaches_below = Condition::NoMatch { filter: quipu_storage::Filter::new(), after_offset: None };
    let append = of(&topic, "x").producer(named("p", 0, 0)).require(&topic, reaches_below);
    assert_eq!(submit(&store, append).unwrap(), (first.0, true));
    assert!(!expecting(1, 1).unwrap().1);
}

/// Its own records contradict its conditions when it comes again, and others have appended to its keys.
#[test]
fn a_repeat_of_a_conditional_append_gets_the_revisions_of_the_first_answer() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quiet(dir.path());
    store.topic_or_create("t").unwrap();
    let claim = |store: &Store, topic: &Topic| {
        let is_new = |key: &str| Condition::Revision {
            key: key.into(),
            expected: quipu_storage::ExpectedRevision::NoStream,
        };
        let nobody = Condition::NoMatch { filter: quipu_storage::Filter::new().key("b"), after_offset: None };
        let records = ["a", "b", "a"].map(|key| Record::keyed(key, "claimed"));
        let append = Append::new().records(topic, &records).unwrap().require(topic, is_new("a"));
        let append = append.require(topic, is_new("b")).require(topic, nobody);
        (submit(store, append.request_id("claim")), store.topic("t").unwrap().log_end_offset())
    };
    let first = claim(&store, &store.topic("t").unwrap()).0.unwrap();
    assert_eq!((&first.0[0].revisions[..], first.1), (&[0, 0, 1].map(Revision)[..], false));
    for (number, is_closed) in (1..).zip([false, true, false]) {
        store.append(of(&store.topic("t").unwrap(), "of somebody else")).unwrap();
        let (again, end) = claim(&store, &store.topic("t").unwrap());
        assert_eq!((again.unwrap(), end), ((first.0.clone(), true), Offset(3 + number)));
        store = reopened(store, dir.path(), is_closed);
    }
    let topic = store.topic("t").unwrap();
    topic.trim(Offset(2)).unwrap();
    assert_eq!(claim(&store, &topic).0.unwrap(), (first.0, true), "its condition reaches below the start");
    let mut another = Append::new().records(&topic, &[Record::keyed("a", "claimed")]).unwrap();
    another = another.require(&topic, Condition::NextOffset(Offset(0))).request_id("another");
    assert!(
        matches!(submit(&store, another), Err(Error::ConditionFailed { .. })),
        "one that is new is checked"
    );
}

#[test]
fn of_threads_that_send_the_same_conditional_append_one_applies_it_and_all_get_its_answer() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    let topic = store.topic_or_create("t").unwrap();
    for round in 0..50_u64 {
        let send = || {
            let next = Condition::NextOffset(Offset(round));
            let append = of(&topic, "x").require(&topic, next).request_id(round.to_le_bytes());
            submit(&store, append).unwrap()
        };
        let answers: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(send)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(answers.iter().filter(|(_, is_duplicate)| !is_duplicate).count(), 1);
        assert!(answers.iter().all(|(answer, _)| answer[0].revisions == [Revision(round)]), "{answers:?}");
    }
    assert_eq!(topic.log_end_offset(), Offset(50));
}

#[test]
fn a_check_of_a_repeat_passes_and_one_of_a_gap_or_a_lower_token_says_what_the_append_would() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    let check = |sequence, next| {
        let append = of(&topic, &format!("0/{sequence}")).producer(named("p", 0, sequence));
        store.check(append.require(&topic, Condition::NextOffset(Offset(next))))
    };
    check(0, 0).unwrap();
    assert_eq!(store.producer("p"), None);
    produce(&topic, 0, 0).unwrap();
    check(0, 0).unwrap();
    check(1, 1).unwrap();
    assert!(matches!(check(1, 0), Err(Error::ConditionFailed { .. })));
    assert!(matches!(check(2, 1), Err(Error::SequenceGap { expected: 1, .. })));
    topic.fence(3).unwrap();
    let with_token = |token| store.check(of(&topic, "x").fencing_token(&topic, token));
    with_token(3).unwrap();
    assert!(matches!(with_token(2), Err(Error::TopicFenced { current: 3, .. })));
    assert_eq!((topic.log_end_offset(), topic.fencing_token()), (Offset(1), 3));
}

#[test]
fn of_an_append_longer_ago_than_the_answers_reach_it_is_known_that_it_was_applied() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quiet(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    let answers: Vec<_> = (0..100).map(|sequence| produce(&topic, 0, sequence).unwrap().0).collect();
    drop(topic);
    for is_closed in [false, true, false] {
        let topic = store.topic("t").unwrap();
        for (sequence, answer) in (0..).zip(&answers) {
            let expected = if sequence < 36 { Vec::new() } else { answer.clone() };
            assert_eq!(produce(&topic, 0, sequence).unwrap(), (expected, true), "{sequence}");
        }
        assert_eq!(topic.log_end_offset(), Offset(100));
        drop(topic);
        store = reopened(store, dir.path(), is_closed);
    }
}

#[test]
fn the_last_16384_request_ids_are_known_after_a_crash_and_a_checkpoint_and_older_ones_are_new() {
    const BOUND: u64 = 16_384;
    let dir = tempfile::tempdir().unwrap();
    let mut store = quiet(dir.path());
    store.create_topic("t", TopicSettings::default()).unwrap();
    let send = |store: &Store, number: u64| {
        let append = of(&store.topic("t").unwrap(), &number.to_string()).durability(Durability::Written);
        submit(store, append.request_id(number.to_le_bytes())).unwrap()
    };
    let first: Vec<_> = (0..BOUND + 5).map(|number| send(&store, number).0).collect();
    for is_closed in [false, true] {
        store = reopened(store, dir.path(), is_closed);
        assert_eq!(store.stats().request_ids, BOUND);
        for number in [5, BOUND / 2, BOUND + 4] {
            let (answer, is_duplicate) = send(&store, number);
            assert!(is_duplicate, "{number}");
            assert_eq!(answer[0].first_offset, first[usize::try_from(number).unwrap()][0].first_offset);
        }
        store.checkpoint().unwrap();
    }
    assert!(!send(&store, 4).1, "forgotten, so it is new");
    assert!(!send(&store, 5).1, "forgotten because of that one");
    assert!(send(&store, BOUND + 4).1);
}

#[test]
fn revisions_that_an_answer_has_no_room_for_are_read_from_the_batch() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quiet(dir.path());
    store.topic_or_create("t").unwrap();
    let records: Vec<_> = (0..1000).map(|number| Record::keyed(format!("{}", number % 500), "x")).collect();
    let append = |store: &Store| {
        let topic = store.topic("t").unwrap();
        submit(store, Append::new().records(&topic, &records).unwrap().request_id("id")).unwrap()
    };
    let (first, _) = append(&store);
    assert_eq!(first[0].revisions.iter().filter(|revision| revision.0 == 1).count(), 500);
    for is_closed in [false, true] {
        assert_eq!(append(&store), (first.clone(), true));
        store = reopened(store, dir.path(), is_closed);
    }
    let topic = store.topic("t").unwrap();
    topic.trim(Offset(1000)).unwrap();
    let (again, is_duplicate) = append(&store);
    assert!(is_duplicate);
    assert_eq!(again, [Appended { revisions: Vec::new(), ..first[0].clone() }]);
}

#[test]
fn a_repeat_waits_for_the_sync_that_the_first_one_did_not_ask_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    let append =
        |durability| submit(&store, of(&topic, "x").durability(durability).request_id("id")).unwrap();
    for durability in [Durability::Accepted, Durability::Written] {
        let (answer, _) = append(durability);
        assert_eq!(answer[0].durability, durability);
        assert_eq!(topic.high_watermark(), Offset(0));
    }
    // What was only accepted is written by now: a killed process leaves it.
    let copy = tempfile::tempdir().unwrap();
    copy_all(dir.path(), copy.path());
    assert_eq!(payloads(&quiet(copy.path()).topic("t").unwrap()), ["x"]);
    let (answer, is_duplicate) = append(Durability::Synced);
    assert!(is_duplicate);
    assert_eq!(answer[0].durability, Durability::Synced);
    assert_eq!(topic.high_watermark(), Offset(1));
}

/// The records of a topic in memory go with a restart; that they were appended does not.
#[test]
fn a_repeat_to_a_topic_in_memory_is_answered_after_a_restart_although_its_records_are_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quiet(dir.path());
    let memory =
        TopicSettings { storage: Storage::Memory { bytes_max: 1 << 20 }, ..TopicSettings::default() };
    let topic = store.create_topic("m", memory).unwrap();
    let first = produce(&topic, 0, 0).unwrap();
    assert_eq!(first.0[0].durability, Durability::Accepted);
    assert_eq!(produce(&topic, 0, 0).unwrap(), (first.0.clone(), true));
    assert_eq!(payloads(&topic), ["0/0"]);
    drop(topic);
    for is_closed in [false, true] {
        store = reopened(store, dir.path(), is_closed);
        let topic = store.topic("m").unwrap();
        assert_eq!(produce(&topic, 0, 0).unwrap(), (first.0.clone(), true));
        assert!(payloads(&topic).is_empty());
    }
    let topic = store.topic("m").unwrap();
    assert!(!produce(&topic, 0, 1).unwrap().1);
    assert_eq!(payloads(&topic), ["0/1"]);
}

#[test]
fn a_store_with_all_its_producers_takes_no_new_one_until_one_is_forgotten() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        Store::builder().settings(StoreSettings { producers_max: 3, ..settings() }).open(dir.path()).unwrap();
    let topic = store.topic_or_create("t").unwrap();
    let append = |name: &str, sequence| {
        submit(&store, of(&topic, name).producer(named(name, 1, sequence)))
            .map(|(_, is_duplicate)| is_duplicate)
    };
    for name in ["b", "c", "a"] {
        assert!(!append(name, 0).unwrap());
    }
    let full = append("d", 0).unwrap_err();
    assert!(matches!(full, Error::TooManyProducers { limit: 3 }), "{full}");
    assert_eq!(full.kind(), ErrorKind::Busy);
    assert!(!append("a", 1).unwrap(), "those that are known go on");
    let names = |after, count| store.producers(after, count).into_iter().map(|p| p.name).collect::<Vec<_>>();
    assert_eq!(names(None, 2), ["a", "b"]);
    assert_eq!(names(Some("b"), 2), ["c"]);
    assert_eq!(names(Some("bb"), 2), ["c"]);
    let a = store.producer("a").unwrap();
    assert_eq!((a.epoch, a.last_sequence), (1, 1));
    store.forget_producer("b").unwrap();
    assert!(matches!(store.forget_producer("b"), Err(Error::ProducerNotFound { .. })));
    assert!(!append("d", 0).unwrap());
    drop(topic);
    let store = reopened(store, dir.path(), false);
    assert_eq!(store.producers(None, 9).iter().map(|p| &p.name[..]).collect::<Vec<_>>(), ["a", "c", "d"]);
    let topic = store.topic("t").unwrap();
    // As if there had never been one of that name.
    assert!(!submit(&store, of(&topic, "b").producer(named("b", 0, 0))).unwrap().1);
}

#[test]
fn temporary_producers_go_for_others_the_one_that_was_silent_for_the_longest_first() {
    let dir = tempfile::tempdir().unwrap();
    let open = || {
        let settings = StoreSettings { producers_max: 4, ..settings() };
        let store = Store::builder().settings(settings).open(dir.path()).unwrap();
        let topic = store.topic_or_create("t").unwrap();
        (store, topic)
    };
    let append = |topic: &Topic, name: &str, sequence| {
        submit(&topic.store(), of(topic, name).producer(named(name, 0, sequence)))
            .map(|(_, is_duplicate)| is_duplicate)
    };
    let names = |store: &Store| store.producers(None, 9).into_iter().map(|p| p.name).collect::<Vec<_>>();
    let (store, topic) = open();
    for name in ["named", "~c", "~b", "~a"] {
        assert!(!append(&topic, name, 0).unwrap());
    }
    assert!(!append(&topic, "~c", 1).unwrap());
    assert!(append(&topic, "~b", 0).unwrap(), "a repeat appends nothing");
    assert!(!append(&topic, "~d", 0).unwrap());
    assert_eq!(names(&store), ["named", "~a", "~c", "~d"]);
    let forgotten = append(&topic, "~b", 1).unwrap_err();
    assert!(matches!(forgotten, Error::SequenceGap { expected: 0, .. }), "{forgotten}");
    // A refused one takes nobody's room.
    let refused = of(&topic, "x").producer(named("~e", 0, 0));
    let refused = refused.require(&topic, Condition::NextOffset(Offset(0)));
    assert!(matches!(store.append(refused), Err(Error::ConditionFailed { .. })));
    assert_eq!(names(&store), ["named", "~a", "~c", "~d"]);
    store.forget_producer("~d").unwrap();
    for name in ["x", "y"] {
        assert!(!append(&topic, name, 0).unwrap());
    }
    assert_eq!(names(&store), ["named", "x", "y", "~c"]);
    store.sync().unwrap();
    // As a crash leaves it.
    let copy = tempfile::tempdir().unwrap();
    copy_all(dir.path(), copy.path());
    assert_eq!(names(&quiet(copy.path())), ["named", "x", "y", "~c"]);
    drop((store, topic));
    let (store, topic) = open();
    assert!(!append(&topic, "z", 0).unwrap());
    assert_eq!(names(&store), ["named", "x", "y", "z"]);
    for name in ["w", "~w"] {
        assert!(matches!(append(&topic, name, 0), Err(Error::TooManyProducers { limit: 4 })));
    }
}

#[test]
fn a_fence_shuts_lower_tokens_out_before_anything_is_appended_and_outlives_a_crash() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quiet(dir.path());
    store.create_topic("t", TopicSettings::default()).unwrap();
    let with_token = |store: &Store, token| {
        let topic = store.topic("t").unwrap();
        submit(store, of(&topic, "x").fencing_token(&topic, token)).map(|_| ())
    };
    with_token(&store, 1).unwrap();
    store.topic("t").unwrap().fence(5).unwrap();
    for is_closed in [false, true] {
        assert!(matches!(with_token(&store, 4), Err(Error::TopicFenced { token: 4, current: 5, .. })));
        let lower = store.topic("t").unwrap().fence(4);
        assert!(matches!(lower, Err(Error::TopicFenced { token: 4, current: 5, .. })));
        store.topic("t").unwrap().fence(5).unwrap();
        store = reopened(store, dir.path(), is_closed);
    }
    with_token(&store, 5).unwrap();
    let topic = store.topic("t").unwrap();
    assert_eq!((topic.fencing_token(), topic.log_end_offset()), (5, Offset(2)));
}

#[test]
fn a_lower_fencing_token_is_shut_out_and_a_higher_one_shuts_out_in_its_turn() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = quiet(dir.path());
    let memory =
        TopicSettings { storage: Storage::Memory { bytes_max: 1 << 20 }, ..TopicSettings::default() };
    store.create_topic("m", memory).unwrap();
    store.topic_or_create("t").unwrap();
    store.topic_or_create("u").unwrap();
    let append = |store: &Store, name: &str, token: Option<u64>| {
        let topic = store.topic(name).unwrap();
        let append = of(&topic, "x").records(&store.topic("u").unwrap(), &[Record::new("y")]).unwrap();
        store.append(match token {
            Some(token) => append.fencing_token(&topic, token),
            None => append,
        })
    };
    for name in ["t", "m"] {
        for token in [0, 5, 5, 7] {
            append(&store, name, Some(token)).unwrap();
        }
        append(&store, name, None).unwrap();
    }
    for is_closed in [false, true, false] {
        store = reopened(store, dir.path(), is_closed);
        for name in ["t", "m"] {
            let end = store.topic("u").unwrap().log_end_offset();
            let fenced = append(&store, name, Some(6)).unwrap_err();
            assert!(matches!(fenced, Error::TopicFenced { token: 6, current: 7, .. }), "{fenced}");
            assert_eq!(fenced.kind(), ErrorKind::Busy);
            assert_eq!(store.topic("u").unwrap().log_end_offset(), end, "nothing of it is appended");
            append(&store, name, Some(7)).unwrap();
            append(&store, name, None).unwrap();
        }
        append(&store, "u", Some(1)).unwrap();
    }
    // A token that comes with an append which is refused is not taken.
    let topic = store.topic("t").unwrap();
    let refused = of(&topic, "x").fencing_token(&topic, 99).require(&topic, Condition::NextOffset(Offset(0)));
    assert!(matches!(store.append(refused), Err(Error::ConditionFailed { .. })));
    append(&store, "t", Some(7)).unwrap();
}

#[test]
fn names_and_ids_out_of_their_bounds_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    let invalid = |append: Append| {
        let error = store.append(append).unwrap_err();
        assert!(matches!(error, Error::InvalidAppend { .. }), "{error}");
    };
    invalid(of(&topic, "x").producer(named("", 0, 0)));
    invalid(of(&topic, "x").producer(named(&"n".repeat(256), 0, 0)));
    invalid(of(&topic, "x").request_id(""));
    invalid(of(&topic, "x").request_id(vec![1; 65]));
    invalid(of(&topic, "x").request_id("id").producer(named("p", 0, 0)));
    invalid(of(&topic, "x").fencing_token(&store.topic_or_create("u").unwrap(), 1));
    let topics: Vec<_> =
        (0..65).map(|number| store.topic_or_create(&format!("t/{number}")).unwrap()).collect();
    let to = |count: usize| {
        let topics = topics.iter().take(count);
        topics.fold(Append::new(), |append, topic| append.records(topic, &[Record::new("x")]).unwrap())
    };
    let error = store.append(to(65).request_id("id")).unwrap_err();
    assert!(matches!(error, Error::AppendTooLarge { what: "topics", actual: 65, limit: 64 }), "{error}");
    let first = store.append(to(64).request_id("id")).unwrap();
    assert_eq!(submit(&store, to(64).request_id("id")).unwrap(), (first, true));
    store.append(of(&topic, "x").producer(named(&"n".repeat(255), 0, 0))).unwrap();
    store.append(of(&topic, "x").request_id(vec![1; 64])).unwrap();
}

/// Threads that repeat the same appends at the same time, in whatever order they come to run.
#[test]
fn each_of_many_threads_that_repeat_the_same_appends_gets_the_same_answers() {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        StoreSettings { checkpoint_interval: Duration::from_millis(10), ..StoreSettings::default() };
    let store = Store::builder().settings(settings).open(dir.path()).unwrap();
    let topic = store.topic_or_create("t").unwrap();
    let applied = AtomicU64::new(0);
    let work = || -> Vec<_> {
        let append = |number: u64| {
            let durability = if number.is_multiple_of(7) { Durability::Synced } else { Durability::Written };
            let append = of(&topic, &number.to_string()).durability(durability);
            let append = match number % 2 {
                0 => append.request_id(number.to_string()),
                _ => append.producer(named("p", 0, number / 2)),
            };
            let (answer, is_duplicate) = submit(&store, append).unwrap();
            applied.fetch_add(u64::from(!is_duplicate), Ordering::Relaxed);
            answer[0].first_offset
        };
        (0..120).map(append).collect()
    };
    let answers: Vec<Vec<Offset>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(work)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert!(answers.iter().all(|answer| *answer == answers[0]));
    assert_eq!(applied.into_inner(), 120);
    let offsets: BTreeSet<_> = answers[0].iter().copied().collect();
    assert_eq!(offsets.into_iter().collect::<Vec<_>>(), (0..120).map(Offset).collect::<Vec<_>>());
    assert_eq!(topic.log_end_offset(), Offset(120));
}

#[test]
fn a_dump_shows_producers_request_ids_answers_and_fencing_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    produce(&topic, 3, 0).unwrap();
    store.append(of(&topic, "x").request_id(vec![b'i', 0]).fencing_token(&topic, 9)).unwrap();
    store.append(of(&topic, "x").producer(named("gone", 0, 0))).unwrap();
    store.forget_producer("gone").unwrap();
    store.close().unwrap();
    let mut out = Vec::new();
    dump::dump_store(dir.path(), &quipu_storage::disk::OsDisk, dump::DumpOptions::default(), &mut out)
        .unwrap();
    let text = String::from_utf8(out).unwrap();
    for line in [
        "sequence 0 of epoch 3 of producer \"p\", hash ",
        "request id \"i\\x00\", hash ",
        "answered topic number 00000001, offsets 0 to 1 (exclusive), time ",
        ", revisions [0..1]",
        "fencing token of topic t raised to 9",
        "producer \"gone\" forgotten",
        "producer \"p\", epoch 3, last sequence 0",
        ", fencing token 9, ",
    ] {
        assert!(text.contains(line), "{line:?} is not in\n{text}");
    }
    assert!(text.lines().filter(|line| line.starts_with('!')).count() == 0, "{text}");
    // Who only reads needs none of it.
    let reader = Store::open_read_only(dir.path()).unwrap();
    assert_eq!(reader.topic("t").unwrap().log_end_offset(), Offset(3));
}

/// Whoever only reads knows who publishes, and who may: from the checkpoint, from the journal behind it, and when the journal
/// has gone on without him.
#[test]
fn a_reader_knows_the_producers_and_the_fencing_token_as_the_writer_does() {
    let dir = tempfile::tempdir().unwrap();
    let small = StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 256 << 10,
        append_bytes_max: 16 << 10,
        ..settings()
    };
    let store = Store::builder().settings(small).open(dir.path()).unwrap();
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    let append = |name: &str, epoch, sequence| {
        let append = of(&topic, &"x".repeat(8 << 10)).producer(named(name, epoch, sequence));
        submit(&store, append).unwrap();
    };
    let reader = Store::builder().settings(settings()).open_read_only(dir.path()).unwrap();
    let agree = || {
        for reader in [&reader, &Store::builder().settings(settings()).open_read_only(dir.path()).unwrap()] {
            reader.refresh().unwrap();
            assert_eq!(reader.producers(), store.producers(None, usize::MAX));
            assert_eq!(reader.topic("t").unwrap().fencing_token(), topic.fencing_token());
        }
    };
    agree();
    append("q", 0, 0);
    append("p", 3, 0);
    append("~made-up", 0, 0);
    topic.fence(7).unwrap();
    submit(&store, of(&topic, "id").request_id("id")).unwrap();
    assert_eq!((store.producers(None, 9).len(), topic.fencing_token()), (3, 7));
    agree();
    store.checkpoint().unwrap();
    append("p", 3, 1);
    store.forget_producer("q").unwrap();
    agree();
    // All of the journal is used again while one of them does not look.
    for sequence in 0..100 {
        append("p", 4, sequence);
        store.checkpoint().unwrap();
    }
    store.forget_producer("~made-up").unwrap();
    topic.fence(8).unwrap();
    agree();
}

#[test]
fn all_producers_are_listed_once_in_the_order_of_their_names_however_many_are_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    let name = |number: usize| format!("p{number:04}");
    for number in 0..2001 {
        let append = of(&topic, "x").durability(Durability::Accepted).producer(named(&name(number), 0, 0));
        drop(store.submit(append).unwrap());
    }
    let listed = |after: Option<&str>, count| -> Vec<String> {
        store.producers(after, count).into_iter().map(|found| found.name).collect()
    };
    let all: Vec<_> = (0..2001).map(name).collect();
    for count in [0, 1, 999, 1000, 1001, 2000, 2001, 2002, usize::MAX] {
        assert_eq!(listed(None, count), all[..count.min(2001)], "{count}");
    }
    assert_eq!(listed(Some("p0999"), 1001), all[1000..]);
    assert_eq!(listed(Some("p2000"), 5), NOBODY);
}
