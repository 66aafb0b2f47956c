//! Conditions of appends and filters, through the public interface.
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quipu_storage::{
    Append, Appended, Condition, Durability, Error, ErrorKind, ExpectedRevision, FailedCheck,
    FailedCondition, Filter, Offset, Record, Result, Revision, Start, Storage, Store, StoreSettings, Topic,
    TopicSettings,
};

fn quiet(dir: &Path) -> Store {
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    Store::builder().settings(settings).open(dir).unwrap()
}

fn small_segments() -> TopicSettings {
    TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() }
}

fn revision(key: &str, expected: ExpectedRevision) -> Condition {
    Condition::Revision { key: key.into(), expected }
}

fn no_match(filter: Filter, after: Option<u64>) -> Condition {
    Condition::NoMatch { filter, after_offset: after.map(Offset) }
}

fn append(topic: &Topic, record: &Record, conditions: &[Condition]) -> Result<Appended> {
    let append = Append::new().durability(Durability::Written).records(topic, [record])?;
    let append = conditions.iter().fold(append, |append, condition| append.require(topic, condition.clone()));
    Ok(topic.store().append(append)?.swap_remove(0))
}

fn failed(outcome: Result<Appended>) -> Vec<FailedCondition> {
    match outcome {
        Err(Error::ConditionFailed { failed }) => failed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_condition_that_does_not_hold_is_named_with_what_is_there_and_nothing_is_appended() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.create_topic("t", small_segments()).unwrap();
    let records = [Record::keyed("a", "0"), Record::keyed("b", "0").with_tag("x"), Record::keyed("a", "1")];
    topic.append(&records).unwrap();
    for is_in_segments in [false, true] {
        if is_in_segments {
            store.checkpoint().unwrap();
        }
        let conditions = [
            revision("a", ExpectedRevision::Exact(Revision(1))),
            revision("a", ExpectedRevision::Exact(Revision(0))),
            revision("b", ExpectedRevision::NoStream),
            revision("c", ExpectedRevision::Exists),
            revision("a", ExpectedRevision::Any),
            revision("c", ExpectedRevision::Any),
            Condition::NextOffset(Offset(3)),
            Condition::NextOffset(Offset(4)),
            no_match(Filter::new().tags(["x"]), Some(1)),
            no_match(Filter::new().tags(["x"]), Some(0)),
        ];
        let outcome = append(&topic, &Record::keyed("c", "0"), &conditions);
        assert_eq!(outcome.as_ref().unwrap_err().kind(), ErrorKind::Conflict);
        let check = |number, check| FailedCondition { number, topic: topic.name().clone(), check };
        let of_key = |key: &str, expected, actual: Option<u64>, offset: Option<u64>| FailedCheck::Revision {
            key: key.into(),
            expected,
            actual: actual.map(Revision),
            offset: offset.map(Offset),
        };
        let expected = [
            check(1, of_key("a", ExpectedRevision::Exact(Revision(0)), Some(1), Some(2))),
            check(2, of_key("b", ExpectedRevision::NoStream, Some(0), Some(1))),
            check(3, of_key("c", ExpectedRevision::Exists, None, None)),
            check(7, FailedCheck::NextOffset { expected: Offset(4), actual: Offset(3) }),
            check(9, FailedCheck::Match { offset: Offset(1) }),
        ];
        assert_eq!(failed(outcome), expected);
        assert_eq!(topic.log_end_offset(), Offset(3));
        assert_eq!(topic.stream("c").unwrap(), None);
    }
}

#[test]
fn conditions_that_hold_let_the_append_through_over_topics_and_keys_that_it_does_not_write() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let a = store.create_topic("a", small_segments()).unwrap();
    let memory =
        TopicSettings { storage: Storage::Memory { bytes_max: 1 << 20 }, ..TopicSettings::default() };
    let b = store.create_topic("b", memory).unwrap();
    let records = [Record::keyed("k", "0"), Record::keyed("k", "1")];
    let both = |number: u64| {
        let expected = match number {
            0 => ExpectedRevision::NoStream,
            n => ExpectedRevision::Exact(Revision(2 * n - 1)),
        };
        let append = Append::new().records(&a, &records).unwrap().records(&b, &records).unwrap();
        append
            .require(&a, revision("k", expected))
            .require(&b, revision("k", expected))
            .require(&a, revision("other", ExpectedRevision::NoStream))
            .require(&b, Condition::NextOffset(Offset(2 * number)))
    };
    for number in 0..20 {
        for appended in store.append(both(number)).unwrap() {
            assert_eq!(appended.revisions, [Revision(2 * number), Revision(2 * number + 1)]);
        }
        assert!(matches!(store.append(both(number)), Err(Error::ConditionFailed { .. })));
    }
}

#[test]
fn what_reaches_below_the_start_of_the_log_is_refused_and_a_revision_never_goes_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.create_topic("t", small_segments()).unwrap();
    for number in 0..200 {
        let key = format!("key {number}");
        let record = Record::keyed(&*key, vec![b'x'; 100]).with_tag("all");
        append(&topic, &record, &[revision(&key, ExpectedRevision::NoStream)]).unwrap();
    }
    store.checkpoint().unwrap();
    topic.trim(Offset(150)).unwrap();
    store.close().unwrap();
    drop((store, topic));
    let store = quiet(dir.path());
    let topic = store.topic("t").unwrap();
    let none_after = |after| no_match(Filter::new().tags(["none"]), after);
    for after in [None, Some(0), Some(148)] {
        let conditions = [Condition::NextOffset(Offset(200)), none_after(after)];
        let outcome = append(&topic, &Record::new("x"), &conditions);
        let Err(Error::ConditionTrimmed { number: 1, offset, log_start_offset: Offset(150), .. }) = outcome
        else {
            panic!("{outcome:?}");
        };
        assert_eq!(offset.0, after.map_or(0, |after| after + 1));
    }
    append(&topic, &Record::new("x"), &[none_after(Some(149))]).unwrap();
    for number in [3, 149, 151] {
        let key = format!("key {number}");
        let record = Record::keyed(&*key, "x");
        let outcome = append(&topic, &record, &[revision(&key, ExpectedRevision::NoStream)]);
        assert_eq!(failed(outcome).len(), 1);
        let exact = revision(&key, ExpectedRevision::Exact(Revision(0)));
        assert_eq!(append(&topic, &record, &[exact]).unwrap().revisions, [Revision(1)]);
    }
}

#[test]
fn a_filter_that_breaks_a_bound_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.create_topic("t", small_segments()).unwrap();
    let no_tags: [&str; 0] = [];
    for filter in [
        Filter::new().tags(no_tags),
        Filter::new().record_type(""),
        Filter::new().tags(["a", ""]),
        Filter::new().key(vec![0; Filter::BYTES_MAX + 1]),
        (0..=Filter::PARTS_MAX).fold(Filter::new(), |filter, n| filter.key(n.to_le_bytes())),
    ] {
        assert!(matches!(topic.first_match(&filter, None), Err(Error::InvalidFilter { .. })));
        let outcome = append(&topic, &Record::new("x"), &[no_match(filter, None)]);
        assert!(matches!(outcome, Err(Error::InvalidFilter { .. })));
    }
    assert_eq!(topic.log_end_offset(), Offset(0));
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

    fn choose<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }
}

fn any_record(numbers: &mut Numbers) -> Record {
    let mut record = Record::new(vec![b'x'; numbers.below(60) as usize]);
    if numbers.below(3) > 0 {
        record.key = Some(format!("k{}-{}", numbers.below(3), numbers.below(12)).into_bytes());
    }
    record.record_type = numbers.choose(&["", "a", "b"]).into();
    for tag in ["one", "two", "three"] {
        if numbers.below(4) == 0 {
            record.tags.push(tag.into());
        }
    }
    if numbers.below(3) == 0 {
        record.headers.push(("h".into(), vec![numbers.below(3) as u8]));
    }
    record
}

fn any_filter(numbers: &mut Numbers) -> Filter {
    let mut filter = Filter::new();
    let chosen: [bool; 6] = std::array::from_fn(|_| numbers.below(3) == 0);
    if chosen[0] {
        filter = filter.key(format!("k{}-{}", numbers.below(3), numbers.below(14)));
        filter = filter.key(format!("k{}-{}", numbers.below(3), numbers.below(14)));
    }
    if chosen[1] {
        filter = filter.key_prefix(numbers.choose(&["k", "k1-", "k2-1", "z", ""]));
    }
    if chosen[2] {
        filter = filter.record_type(numbers.choose(&["a", "b", "c"]));
    }
    if chosen[3] {
        filter = filter.tags(["one", "two"]);
    }
    if chosen[4] {
        filter = filter.tags([numbers.choose(&["three", "none"])]);
    }
    if chosen[5] {
        filter = filter.header("h", vec![numbers.below(4) as u8]);
    }
    filter
}

#[test]
fn the_first_match_is_the_one_that_reading_every_record_finds() {
    for seed in 1..30 {
        let mut numbers = Numbers(seed);
        let dir = tempfile::tempdir().unwrap();
        let mut store = quiet(dir.path());
        let mut topic = store.create_topic("t", small_segments()).unwrap();
        for _ in 0..80 {
            match numbers.below(12) {
                0..6 => {
                    let records: Vec<_> =
                        (0..1 + numbers.below(12)).map(|_| any_record(&mut numbers)).collect();
                    topic.append_with(&records, Durability::Written).unwrap();
                }
                6 => store.checkpoint().unwrap(),
                7 if numbers.below(4) == 0 => {
                    store.sync().unwrap();
                    let to = topic.log_start_offset().0;
                    topic.trim(Offset(to + numbers.below(topic.log_end_offset().0 - to + 1))).unwrap();
                }
                8 if numbers.below(2) == 0 => {
                    store.close().unwrap();
                    drop((store, topic));
                    store = quiet(dir.path());
                    topic = store.topic("t").unwrap();
                }
                _ => {
                    store.sync().unwrap();
                    let filter = any_filter(&mut numbers);
                    let after = numbers.below(topic.log_end_offset().0 + 2).checked_sub(1);
                    let mut matches = topic.read(Start::Earliest).unwrap().map(|record| record.unwrap());
                    let expected = matches
                        .find(|record| Some(record.offset().0) > after && filter.matches(&record.view()))
                        .map(|found| found.offset());
                    let found = topic.first_match(&filter, after.map(Offset)).unwrap();
                    assert_eq!(found, expected, "seed {seed}: {filter:?}");
                    if after.map_or(0, |after| after + 1) >= topic.log_start_offset().0 {
                        let outcome = append(&topic, &any_record(&mut numbers), &[no_match(filter, after)]);
                        match expected {
                            None => drop(outcome.unwrap()),
                            Some(offset) => {
                                assert_eq!(failed(outcome)[0].check, FailedCheck::Match { offset })
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Runs `work` in so many threads, in a store whose segments are small and whose own threads do what they do.
fn in_threads(count: u64, work: impl Fn(&Topic, u64) + Sync) -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let settings =
        StoreSettings { checkpoint_interval: Duration::from_millis(10), ..StoreSettings::default() };
    let store = Store::builder().settings(settings).open(dir.path()).unwrap();
    let topic = store.create_topic("t", small_segments()).unwrap();
    std::thread::scope(|scope| {
        for number in 0..count {
            let (topic, work) = (&topic, &work);
            scope.spawn(move || work(topic, number));
        }
    });
    store.sync().unwrap();
    (dir, store)
}

#[test]
fn writers_that_increment_the_same_streams_lose_none_and_repeat_none() {
    const STREAMS: usize = 3;
    let acknowledged: [AtomicU64; STREAMS] = Default::default();
    let (dir, store) = in_threads(6, |topic, thread| {
        let mut numbers = Numbers(thread + 77);
        for _ in 0..150 {
            let number = numbers.below(STREAMS as u64) as usize;
            let key = format!("counter {number}");
            loop {
                let count = acknowledged[number].load(Ordering::SeqCst);
                let expected = match count.checked_sub(1) {
                    None => ExpectedRevision::NoStream,
                    Some(last) => ExpectedRevision::Exact(Revision(last)),
                };
                match append(topic, &Record::keyed(&*key, vec![b'x'; 50]), &[revision(&key, expected)]) {
                    Ok(appended) => {
                        assert_eq!(appended.revisions, [Revision(count)]);
                        assert_eq!(acknowledged[number].fetch_add(1, Ordering::SeqCst), count);
                        break;
                    }
                    Err(Error::ConditionFailed { .. }) => std::thread::yield_now(),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    });
    let check = |store: &Store| {
        let topic = store.topic("t").unwrap();
        for (number, count) in acknowledged.iter().enumerate() {
            let records = topic.read_stream(format!("counter {number}"), Revision(0)).unwrap();
            let revisions: Vec<_> = records.map(|record| record.unwrap().revision().unwrap().0).collect();
            assert_eq!(revisions, (0..count.load(Ordering::SeqCst)).collect::<Vec<_>>());
        }
    };
    check(&store);
    store.close().unwrap();
    drop(store);
    check(&quiet(dir.path()));
}

#[test]
fn of_writers_that_claim_the_same_with_a_query_exactly_one_succeeds() {
    const SEATS: u64 = 120;
    let claimed = AtomicU64::new(0);
    let (_dir, store) = in_threads(4, |topic, thread| {
        for seat in 0..SEATS {
            let tag = format!("seat {seat}");
            let filter = Filter::new().record_type("claimed").tags([tag.clone()]).header("room", "1");
            let record = Record::keyed(format!("guest {thread}-{seat}"), vec![b'x'; 80])
                .with_type("claimed")
                .with_tag(tag)
                .with_header("room", "1");
            match append(topic, &record, &[no_match(filter, None)]) {
                Ok(_) => drop(claimed.fetch_add(1, Ordering::Relaxed)),
                Err(Error::ConditionFailed { .. }) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert_eq!(claimed.into_inner(), SEATS);
    let topic = store.topic("t").unwrap();
    let records = topic.read(Start::Earliest).unwrap().map(|record| record.unwrap());
    let mut tags: Vec<_> = records.map(|record| record.view().tags().next().unwrap().to_owned()).collect();
    tags.sort();
    tags.dedup();
    assert_eq!((tags.len() as u64, topic.log_end_offset().0), (SEATS, SEATS));
}

#[test]
fn a_missing_index_is_made_again_and_conditions_hold_all_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.create_topic("t", small_segments()).unwrap();
    for number in 0..300 {
        append(&topic, &Record::keyed(format!("{number}"), vec![b'x'; 50]), &[]).unwrap();
    }
    store.close().unwrap();
    drop((store, topic));
    let of_terms = || {
        let entries = fs::read_dir(dir.path().join("topics/00000001")).unwrap();
        let paths = entries.map(|entry| entry.unwrap().path());
        paths.filter(|path| path.extension().is_some_and(|found| found == "terms")).collect::<Vec<_>>()
    };
    let before = of_terms();
    assert!(before.len() > 3);
    before.iter().for_each(|path| fs::remove_file(path).unwrap());
    let store = quiet(dir.path());
    let topic = store.topic("t").unwrap();
    let outcome = append(&topic, &Record::keyed("7", "x"), &[revision("7", ExpectedRevision::NoStream)]);
    assert_eq!(failed(outcome).len(), 1);
    append(&topic, &Record::keyed("new", "x"), &[revision("new", ExpectedRevision::NoStream)]).unwrap();
    assert_eq!(of_terms().len(), before.len());
}

#[test]
fn a_check_says_what_an_append_would_and_appends_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.create_topic("t", small_segments()).unwrap();
    topic.append(&[Record::keyed("a", "0")]).unwrap();
    let holds = revision("a", ExpectedRevision::Exact(Revision(0)));
    let fails = revision("a", ExpectedRevision::NoStream);
    for records in [&[][..], &[Record::keyed("a", "1")]] {
        let append = || match records {
            [] => Append::new(),
            records => Append::new().records(&topic, records).unwrap(),
        };
        store.check(append().require(&topic, holds.clone())).unwrap();
        let outcome = store.check(append().require(&topic, holds.clone()).require(&topic, fails.clone()));
        let Err(Error::ConditionFailed { failed }) = outcome else { panic!("{outcome:?}") };
        assert_eq!(failed.iter().map(|failed| failed.number).collect::<Vec<_>>(), [1]);
        assert_eq!(failed[0].check.first_conflicting_offset(), Some(Offset(0)));
    }
    assert_eq!(topic.log_end_offset(), Offset(1));
    assert!(matches!(store.append(Append::new()), Err(Error::InvalidAppend { .. })));
}
