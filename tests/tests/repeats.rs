//! Repeats of appends on a disk that fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::{Arc, OnceLock};

use quipu_storage::{
    Append, Appended, Condition, Durability, Error, ExpectedRevision, Filter, Offset, Producer, Record,
    Result, Store, StoreSettings, Submission, Topic, TopicSettings,
};
use quipu_tests::faulty::{Effect, Fault, FaultyDisk, OpKind};
use quipu_tests::meeting::MeetingDisk;
use quipu_tests::model::run::{STORE, settings};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

const EIO: i32 = 5;

fn append(store: &Store, records: &[Record]) -> Result<(Vec<Appended>, bool)> {
    let topic = store.topic("t").unwrap();
    let ticket = store.submit(Append::new().records(&topic, records)?.request_id("id"))?;
    assert!(!ticket.is_refused());
    let (is_duplicate, ticket) = (ticket.is_duplicate(), ticket.read());
    assert!(!ticket.is_refused(), "that its revisions cannot be read refuses no append");
    Ok((ticket.wait()?, is_duplicate))
}

/// The revisions of a large append stand in its batch only. When that could not be read, a repeat was answered without
/// revisions, as if it had been trimmed: otherwise than the first one.
#[test]
fn a_repeat_whose_revisions_cannot_be_read_is_an_error_and_the_next_one_gets_the_first_answer() {
    let disk = FaultyDisk::over_sim(SimDisk::new());
    let open = || {
        let settings = StoreSettings { background: false, ..settings() };
        Store::builder().settings(settings).disk(Arc::new(disk.clone())).open(STORE).unwrap()
    };
    let store = open();
    store.create_topic("t", TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() }).unwrap();
    let records: Vec<_> = (0..500).map(|number| Record::keyed(format!("{number}"), "x")).collect();
    let (first, _) = append(&store, &records).unwrap();
    assert_eq!(first[0].revisions.len(), 500);
    store.checkpoint().unwrap();
    store.close().unwrap();
    drop(store);
    // Nothing is in memory.
    let store = open();
    let topics = format!("{STORE}/topics");
    let kinds = [OpKind::OpenRead, OpKind::OpenWrite, OpKind::Read, OpKind::Map, OpKind::MapBytes];
    let mut errors = 0;
    for kind in kinds {
        disk.fail(Fault::of(kind, 1, EIO).below(&topics).forever());
        match append(&store, &records) {
            Err(error) => {
                assert!(matches!(error, Error::Io { .. } | Error::Corrupt { .. }), "{kind:?}: {error}");
                errors += 1;
            }
            // It was not needed.
            Ok(repeat) => assert_eq!(repeat, (first.clone(), true), "{kind:?}"),
        }
        disk.heal();
        if errors > 0 {
            assert_eq!(append(&store, &records).unwrap(), (first.clone(), true), "{kind:?}");
        }
    }
    assert!(errors > 0);
    store.topic("t").unwrap().trim(Offset(500)).unwrap();
    let (trimmed, is_duplicate) = append(&store, &records).unwrap();
    assert!(trimmed[0].revisions.is_empty() && is_duplicate);
}

/// What an append asks for is looked up once more when segments were sealed meanwhile. If the disk failed at that time, the
/// error was the answer, although the same append had been applied by then: only the first look-up was followed by a look
/// for that.
#[test]
fn an_append_that_was_applied_while_its_second_look_up_failed_gets_the_first_answer() {
    let below = MeetingDisk::new(SimDisk::new());
    let disk = FaultyDisk::new(Arc::new(below.clone()));
    let settings = StoreSettings { background: false, ..settings() };
    let store = Store::builder().settings(settings).disk(Arc::new(disk.clone())).open(STORE).unwrap();
    let small = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let asked = store.create_topic("asked", small.clone()).unwrap();
    let other = store.create_topic("other", small).unwrap();
    other.append(&[Record::new("before")]).unwrap();
    asked.append(&[Record::keyed("k", "x")]).unwrap();
    let append = move || Append::new().records(&other, &[Record::new("once")]).unwrap().request_id("id");
    let exists = Condition::Revision { key: b"k".into(), expected: ExpectedRevision::Exists };
    let no_match = Condition::NoMatch {
        filter: Filter { types: vec!["none".into()], ..Filter::default() },
        after_offset: None,
    };
    let other = store.topic("other").unwrap();
    let conditional = append().require(&asked, exists).require(&other, no_match);
    // The key is known from memory, and the filter is for a thread that may read.
    let Submission::Postponed(postponed) = store.try_submit(conditional).unwrap() else {
        panic!("not postponed")
    };
    // Now it has to be looked up again.
    for _ in 0..30 {
        asked.append_with(&[Record::keyed("k", vec![b'x'; 300])], Durability::Written).unwrap();
    }
    store.checkpoint().unwrap();
    let dir = format!("{STORE}/topics/00000001");
    let first = Arc::new(OnceLock::new());
    below.before_next(OpKind::OpenRead, &dir, {
        let (store, first) = (store.clone(), Arc::clone(&first));
        move || first.set(store.append(append()).unwrap()).unwrap()
    });
    disk.fail(Fault::any(1, EIO).below(&dir).forever().after(Effect::Whole));
    let ticket = postponed.begin().unwrap();
    assert!(ticket.is_duplicate());
    assert_eq!(ticket.wait().unwrap(), *first.get().unwrap());
    assert!(disk.fault_count() > 0);
    assert_eq!(other.log_end_offset(), Offset(2));
}

/// What an append is refused for was told at once, also if it had been written by then and not been synced: after a power cut
/// whoever was told found another store.
#[test]
fn a_refusal_is_told_when_what_it_rests_on_is_synced() {
    type Make = fn(&Topic) -> Result<Append>;
    fn named(epoch: u64, sequence: u64) -> Producer {
        Producer { name: "p".into(), epoch, sequence }
    }
    fn of(topic: &Topic) -> Result<Append> {
        Append::new().durability(Durability::Written).records(topic, &[Record::keyed("k", "x")])
    }
    let cases: [(Make, Make, &str); 5] = [
        (
            |topic| Ok(of(topic)?.producer(named(5, 0))),
            |topic| Ok(of(topic)?.producer(named(4, 1))),
            "ProducerFenced",
        ),
        (
            |topic| Ok(of(topic)?.producer(named(0, 0))),
            |topic| Ok(of(topic)?.producer(named(0, 2))),
            "SequenceGap",
        ),
        (
            |topic| Ok(of(topic)?.producer(named(0, 0))),
            |topic| Ok(of(topic)?.records(topic, &[Record::new("y")])?.producer(named(0, 0))),
            "RequestIdReused",
        ),
        (
            |topic| Ok(of(topic)?.request_id("id")),
            |topic| Ok(of(topic)?.records(topic, &[Record::new("y")])?.request_id("id")),
            "RequestIdReused",
        ),
        (
            |topic| Ok(of(topic)?.fencing_token(topic, 7)),
            |topic| Ok(of(topic)?.fencing_token(topic, 6)),
            "TopicFenced",
        ),
    ];
    for ((first, second, expected), only_asks) in cases.iter().flat_map(|case| [(case, false), (case, true)])
    {
        let sim = SimDisk::new();
        let open = |sim: &SimDisk| {
            let settings = StoreSettings { background: false, ..StoreSettings::default() };
            Store::builder().settings(settings).disk(Arc::new(sim.clone())).open("/store").unwrap()
        };
        let store = open(&sim);
        let topic = store.topic_or_create("t").unwrap();
        drop(store.submit(first(&topic).unwrap()).unwrap());
        let written = store.stats().journal_position;
        let error = if only_asks {
            store.check(second(&topic).unwrap()).unwrap_err()
        } else {
            let ticket = match store.try_submit(second(&topic).unwrap()).unwrap() {
                Submission::Submitted(ticket) => ticket,
                Submission::Postponed(postponed) => postponed.begin().unwrap(),
            };
            assert!(ticket.is_refused(), "{expected}");
            assert!(store.stats().synced_position < written, "{expected}: nobody has waited yet");
            let error = ticket.wait().unwrap_err();
            assert_eq!(store.stats().appends_refused, 1);
            error
        };
        let told = format!("{error:?}");
        assert!(told.starts_with(expected), "{told}");
        // The same is true of the store that a power cut leaves.
        let left = open(&sim.crash_with(CrashMode::LoseAll, &mut Rng::new(1)));
        let topic = left.topic("t").unwrap();
        for outcome in [left.check(second(&topic).unwrap()), left.append(second(&topic).unwrap()).map(drop)] {
            assert_eq!(format!("{:?}", outcome.unwrap_err()), told);
        }
    }
}
