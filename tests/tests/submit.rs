//! Appends that do not block: what is handed back, and when the answer to failed conditions comes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::future::Future as _;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use quipu_storage::{
    Append, Condition, Durability, Error, ExpectedRevision, FailedCheck, Filter, Offset, Record, Revision,
    Storage, Store, Submission, Ticket, Topic, TopicSettings,
};
use quipu_tests::faulty::FaultyDisk;
use quipu_tests::model::run::{STORE, settings};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

fn open(disk: &FaultyDisk) -> Store {
    Store::builder().settings(settings()).disk(Arc::new(disk.clone())).open(STORE).unwrap()
}

fn expect(key: &str, expected: ExpectedRevision) -> Condition {
    Condition::Revision { key: key.into(), expected }
}

fn keyed(topic: &Topic, key: &str, durability: Durability) -> Append {
    Append::new().durability(durability).records(topic, &[Record::keyed(key, "x")]).unwrap()
}

fn try_submit(topic: &Topic, append: Append) -> Submission {
    topic.store().try_submit(append).unwrap()
}

fn submitted(topic: &Topic, append: Append) -> Ticket {
    match try_submit(topic, append) {
        Submission::Submitted(ticket) => ticket,
        Submission::Postponed(postponed) => panic!("{postponed:?}"),
    }
}

/// It waited for the sync where it was promised not to wait; or did not, and what was told could get lost.
#[test]
fn a_failed_condition_is_told_by_the_ticket_and_when_what_it_rests_on_is_synced() {
    for durability in [Durability::Synced, Durability::Written, Durability::Accepted] {
        let sim = SimDisk::new();
        let store = open(&FaultyDisk::over_sim(sim.clone()));
        let topic = store.create_topic("t", TopicSettings::default()).unwrap();
        topic.append_with(&[Record::keyed("a", "x")], Durability::Accepted).unwrap();
        let is_new = expect("a", ExpectedRevision::NoStream);
        let ticket = store.submit(keyed(&topic, "a", durability).require(&topic, is_new)).unwrap();
        assert!(ticket.is_refused());
        assert_eq!(ticket.appended(), []);
        let mut ticket = pin!(ticket);
        let mut task = Context::from_waker(Waker::noop());
        assert!(ticket.as_mut().poll(&mut task).is_pending());
        // The reason why nothing is told yet.
        let lost = sim.crash_with(CrashMode::LoseAll, &mut Rng::new(0));
        assert_eq!(open(&FaultyDisk::over_sim(lost)).topic("t").unwrap().stream("a").unwrap(), None);
        store.sync().unwrap();
        let Poll::Ready(Err(Error::ConditionFailed { failed })) = ticket.as_mut().poll(&mut task) else {
            panic!("it is synced")
        };
        assert!(matches!(
            failed[0].check,
            FailedCheck::Revision { actual: Some(Revision(0)), offset: Some(Offset(0)), .. }
        ));
        assert_eq!((topic.log_end_offset(), topic.high_watermark()), (Offset(1), Offset(1)));
        assert_eq!(store.stats().appends_refused, 1);
    }
}

#[test]
fn a_check_answers_when_what_it_rests_on_is_synced() {
    for expected in [ExpectedRevision::NoStream, ExpectedRevision::Exists] {
        let store = open(&FaultyDisk::over_sim(SimDisk::new()));
        let topic = store.create_topic("t", TopicSettings::default()).unwrap();
        topic.append_with(&[Record::keyed("a", "x")], Durability::Written).unwrap();
        let outcome = store.check(Append::new().require(&topic, expect("a", expected)));
        assert_eq!(outcome.is_ok(), expected == ExpectedRevision::Exists);
        assert_eq!(topic.high_watermark(), Offset(1));
    }
}

/// Keys are looked up in indexes: an append of a key that was not seen for long read the disk where nothing may block.
#[test]
fn an_append_that_needs_the_disk_is_handed_back_and_goes_on_where_it_may_block() {
    let disk = FaultyDisk::over_sim(SimDisk::new());
    let store = open(&disk);
    let small = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", small).unwrap();
    topic.append(&[Record::keyed("old", "x").with_tag("old")]).unwrap();
    for number in 0..100 {
        topic.append(&[Record::keyed(format!("filler {number}"), vec![b'x'; 100])]).unwrap();
    }
    store.checkpoint().unwrap();
    topic.append(&[Record::keyed("recent", "x")]).unwrap();
    drop((topic, store));

    // As it is opened: nothing is known of files and terms.
    let store = open(&disk);
    let topic = store.topic("t").unwrap();
    let ops = disk.op_count();
    let Submission::Postponed(first) = try_submit(&topic, keyed(&topic, "recent", Durability::Accepted))
    else {
        panic!("its files were not looked at yet")
    };
    assert_eq!(disk.op_count(), ops, "{:?}", disk.ops());
    assert_eq!(topic.log_end_offset(), Offset(102));
    assert_eq!(first.begin().unwrap().appended()[0].revisions, [Revision(1)]);

    let ops = disk.op_count();
    let plain = Append::new().durability(Durability::Accepted).records(&topic, &[Record::new("x")]).unwrap();
    let plain = plain.require(&topic, Condition::NextOffset(Offset(103)));
    assert_eq!(submitted(&topic, plain).appended()[0].first_offset, Offset(103));
    let again = keyed(&topic, "recent", Durability::Accepted)
        .require(&topic, expect("recent", ExpectedRevision::Exact(Revision(1))))
        .require(&topic, expect("old", ExpectedRevision::Any));
    assert_eq!(submitted(&topic, again).appended()[0].revisions, [Revision(2)]);
    let no_match = |tag: &str| Condition::NoMatch { filter: Filter::new().tags([tag]), after_offset: None };
    let recent = || keyed(&topic, "recent", Durability::Accepted);
    let need_the_disk = [
        keyed(&topic, "old", Durability::Accepted),
        keyed(&topic, "new", Durability::Accepted),
        recent().require(&topic, expect("old", ExpectedRevision::Exists)),
        recent().require(&topic, expect("new", ExpectedRevision::NoStream)),
        recent().require(&topic, no_match("none")),
        // Where the record is that contradicts, may have to be looked for.
        recent().require(&topic, expect("recent", ExpectedRevision::Exact(Revision(0)))),
    ];
    let postponed: Vec<_> = need_the_disk.into_iter().map(|append| try_submit(&topic, append)).collect();
    assert_eq!(disk.op_count(), ops, "{:?}", disk.ops());
    assert_eq!(topic.log_end_offset(), Offset(105));
    let tickets = postponed.into_iter().map(|postponed| match postponed {
        Submission::Postponed(postponed) => postponed.begin().unwrap(),
        Submission::Submitted(ticket) => panic!("{ticket:?}"),
    });
    let tickets: Vec<_> = tickets.collect();
    let revisions = tickets.iter().map(|ticket| ticket.appended().first().map(|one| one.revisions[0].0));
    assert_eq!(revisions.collect::<Vec<_>>(), [Some(1), Some(0), Some(3), None, Some(4), None]);
}

/// New keys of a topic that is small are what everybody begins with.
#[test]
fn a_topic_whose_records_are_all_recent_needs_no_disk_for_new_keys() {
    let disk = FaultyDisk::over_sim(SimDisk::new());
    let store = open(&disk);
    let memory =
        TopicSettings { storage: Storage::Memory { bytes_max: 1 << 20 }, ..TopicSettings::default() };
    for settings in [TopicSettings::default(), memory] {
        let topic = store.create_topic(&format!("{:?}", settings.storage)[..4], settings).unwrap();
        topic.append(&[Record::keyed("first", "x")]).unwrap();
        let ops = disk.op_count();
        for number in 0..10 {
            let key = format!("{number}");
            let append = keyed(&topic, &key, Durability::Accepted);
            let append = append.require(&topic, expect(&key, ExpectedRevision::NoStream));
            assert_eq!(submitted(&topic, append).appended()[0].revisions, [Revision(0)]);
        }
        assert_eq!(disk.op_count(), ops, "{:?}", disk.ops());
    }
}

#[test]
fn an_append_that_finds_no_room_is_handed_back_as_it_was() {
    let disk = FaultyDisk::over_sim(SimDisk::new());
    let store = open(&disk);
    let topic = store.create_topic("t", TopicSettings::default()).unwrap();
    topic.append(&[Record::new("first")]).unwrap();
    let mut count = 1;
    let postponed = loop {
        let record = Record::new(vec![b'x'; 1000]);
        let append = Append::new().durability(Durability::Accepted).records(&topic, &[record]).unwrap();
        match try_submit(&topic, append) {
            Submission::Submitted(_) => count += 1,
            Submission::Postponed(postponed) => break postponed,
        }
        assert!(count < 100_000, "there is a bound");
    };
    assert_eq!(topic.log_end_offset(), Offset(count));
    assert_eq!(postponed.begin().unwrap().wait().unwrap()[0].first_offset, Offset(count));
}
