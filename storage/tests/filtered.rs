//! Filtered cursors: they find what reading everything finds, and read no more than they must.
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::path::Path;

use quipu_storage::{
    Durability, Error, Filter, FilteredBackwards, FilteredCursor, Offset, ReadBatch, Record, Start, Storage,
    Store, StoreSettings, Topic, TopicSettings, Visibility,
};

/// Numbers that look random, the same for each seed.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }
}

fn quiet(dir: &Path) -> Store {
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    Store::builder().settings(settings).open(dir).unwrap()
}

fn small_segments() -> TopicSettings {
    TopicSettings { segment_bytes_max: 16 << 10, ..TopicSettings::default() }
}

fn append(topic: &Topic, records: &[Record]) {
    topic.append_with(records, Durability::Written).unwrap();
}

fn matches(batch: &ReadBatch, filter: &Filter, below: Offset) -> Vec<Offset> {
    let records = batch.records().map(Result::unwrap);
    records.filter(|(at, view)| *at < below && filter.matches(view)).map(|(at, _)| at).collect()
}

/// What a filtered cursor brings until it has caught up.
fn all(cursor: &mut FilteredCursor, filter: &Filter) -> Vec<Offset> {
    let mut found = Vec::new();
    while cursor.next_offset() < cursor.visible_end() {
        if let Some(batch) = cursor.next_batch().unwrap() {
            found.extend(matches(&batch, filter, Offset::MAX));
        }
    }
    found
}

/// However many calls that takes.
fn previous(backwards: &mut FilteredBackwards) -> Option<ReadBatch> {
    loop {
        let before = backwards.before();
        let batch = backwards.previous_batch().unwrap();
        if batch.is_some() || !backwards.has_more() {
            return batch;
        }
        assert!(backwards.before() < before, "it goes on");
    }
}

#[test]
fn a_rare_key_is_found_forwards_backwards_and_in_what_comes_without_reading_the_others() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.create_topic("t", small_segments()).unwrap();
    let others = |number: u64| -> Vec<Record> {
        (0..20).map(|at| Record::keyed(format!("other {}", number * 20 + at), vec![b'x'; 50])).collect()
    };
    let mut wanted = Vec::new();
    for number in 0..300 {
        append(&topic, &others(number));
        if number % 60 == 59 {
            wanted.push(topic.log_end_offset());
            append(&topic, &[Record::keyed("rare", "x")]);
        }
    }
    let rare = Filter::new().key("rare");
    for is_in_segments in [false, true] {
        if is_in_segments {
            store.checkpoint().unwrap();
            assert!(topic.stats().segments > 10, "{:?}", topic.stats());
        }
        let before = store.stats().batches_read;
        let mut cursor = topic.filtered_cursor(&rare, Start::Earliest, Visibility::Written).unwrap();
        assert_eq!(all(&mut cursor, &rare), wanted);
        drop(cursor);
        assert_eq!(store.stats().batches_read - before, 5);
        let mut backwards = topic.filtered_backwards(&rare, Offset::MAX, Visibility::Written).unwrap();
        let mut found = Vec::new();
        let mut batches = 0;
        while let Some(batch) = previous(&mut backwards) {
            batches += 1;
            found.extend(matches(&batch, &rare, Offset::MAX));
        }
        found.reverse();
        assert_eq!((found, batches), (wanted.clone(), 5));
    }
    // What comes is in memory, and so is what tells of it.
    let before = store.stats().batches_read;
    let mut cursor = topic.filtered_cursor(&rare, Start::Latest, Visibility::Written).unwrap();
    for number in 300..320 {
        append(&topic, &others(number));
        assert!(cursor.next_batch_in_memory().unwrap().is_none());
        assert_eq!(cursor.next_offset(), topic.log_end_offset());
    }
    append(&topic, &[Record::keyed("rare", "x")]);
    let batch = cursor.next_batch_in_memory().unwrap().unwrap();
    assert_eq!(matches(&batch, &rare, Offset::MAX).len(), 1);
    assert!(cursor.next_batch_in_memory().unwrap().is_none());
    drop(cursor);
    assert_eq!(store.stats().batches_read - before, 1);
}

#[test]
fn whatever_the_filter_it_finds_what_reading_every_record_finds() {
    for in_memory in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let store = quiet(dir.path());
        let storage = if in_memory { Storage::Memory { bytes_max: 64 << 20 } } else { Storage::Disk };
        let topic = store.create_topic("t", TopicSettings { storage, ..small_segments() }).unwrap();
        let mut numbers = Numbers(4711);
        let filters = [
            Filter::new(),
            Filter::new().key("k7"),
            Filter::new().key("k7").key("k31").key("none"),
            Filter::new().key_prefix("k1"),
            Filter::new().key_prefix("k"),
            Filter::new().key_prefix("k1").record_type("a"),
            Filter::new().record_type("a").record_type("b"),
            Filter::new().tags(["x", "y"]).tags(["z"]),
            Filter::new().key_prefix("k2").tags(["x"]).record_type("c"),
            Filter::new().header("h", "1"),
            Filter::new().record_type("b").header("h", "1"),
        ];
        let visibility = Visibility::Written;
        let start = |filter| topic.filtered_cursor(filter, Start::Earliest, visibility).unwrap();
        let mut followers: Vec<_> = filters.iter().map(|filter| (start(filter), Vec::new())).collect();
        for round in 0..60 {
            for _ in 0..numbers.below(20) {
                let records: Vec<_> = (0..=numbers.below(4))
                    .map(|_| {
                        let mut record = Record::keyed(format!("k{}", numbers.below(40)), vec![b'x'; 30]);
                        record = record.with_type(["a", "b", "c", ""][numbers.below(4) as usize]);
                        for tag in ["x", "y", "z"] {
                            if numbers.below(3) == 0 {
                                record = record.with_tag(tag);
                            }
                        }
                        if numbers.below(5) == 0 { record.with_header("h", "1") } else { record }
                    })
                    .collect();
                append(&topic, &records);
            }
            if round % 7 == 3 {
                store.checkpoint().unwrap();
            }
            for ((cursor, found), filter) in followers.iter_mut().zip(&filters) {
                while let Some(batch) = cursor.next_batch_in_memory().unwrap() {
                    found.extend(matches(&batch, filter, Offset::MAX));
                }
                found.extend(all(cursor, filter));
            }
        }
        let batches = || {
            let mut cursor = topic.cursor(Start::Earliest, visibility).unwrap();
            std::iter::from_fn(move || cursor.next_batch().unwrap())
        };
        for ((_, followed), filter) in followers.iter().zip(&filters) {
            let expected: Vec<_> = batches().flat_map(|batch| matches(&batch, filter, Offset::MAX)).collect();
            assert_eq!(*followed, expected, "{filter:?}");
            assert_eq!(all(&mut start(filter), filter), expected, "{filter:?}");
            let mut backwards = topic.filtered_backwards(filter, Offset::MAX, visibility).unwrap();
            let (mut found, mut before) = (Vec::new(), Offset::MAX);
            while let Some(batch) = previous(&mut backwards) {
                let mut of_batch = matches(&batch, filter, before);
                of_batch.reverse();
                found.extend(of_batch);
                before = batch.batch().base_offset();
            }
            found.reverse();
            assert_eq!(found, expected, "{filter:?}");
        }
    }
}

#[test]
fn records_that_were_removed_before_a_filtered_cursor_came_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.create_topic("t", small_segments()).unwrap();
    append(&topic, &[Record::keyed("a", "0"), Record::keyed("b", "0")]);
    let filter = Filter::new().key("b");
    let mut cursor = topic.filtered_cursor(&filter, Start::Earliest, Visibility::Written).unwrap();
    store.sync().unwrap();
    topic.trim(Offset(2)).unwrap();
    append(&topic, &[Record::keyed("b", "1")]);
    assert!(cursor.next_batch_in_memory().unwrap().is_none());
    assert!(matches!(cursor.next_batch(), Err(Error::OffsetTrimmed { .. })));
    cursor.seek(Offset(2));
    assert_eq!(all(&mut cursor, &filter), [Offset(2)]);
}

/// One call once looked through the indexes of the whole topic, and a prefix had every record read.
#[test]
fn a_reader_backwards_looks_at_so_many_segments_in_one_call_and_reads_only_what_a_prefix_asks_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = quiet(dir.path());
    let topic = store.create_topic("t", small_segments()).unwrap();
    append(&topic, &[Record::keyed("rare-1", "x")]);
    for number in 0..500 {
        append(&topic, &[Record::keyed(format!("other {number}"), vec![b'x'; 2000])]);
    }
    store.checkpoint().unwrap();
    let segments = topic.stats().segments;
    assert!(segments > 50, "{segments}");
    for filter in [Filter::new().key("none"), Filter::new().key_prefix("rare-")] {
        let mut backwards = topic.filtered_backwards(&filter, Offset::MAX, Visibility::Written).unwrap();
        let read = store.stats().batches_read;
        let (mut calls, mut found) = (0, Vec::new());
        loop {
            calls += 1;
            match backwards.previous_batch().unwrap() {
                Some(batch) => found.extend(matches(&batch, &filter, Offset::MAX)),
                None if backwards.has_more() => {}
                None => break,
            }
        }
        let is_prefix = filter.keys.is_empty();
        assert_eq!(found, if is_prefix { vec![Offset(0)] } else { vec![] });
        assert!(calls > 3, "{calls}");
        // Those of the active segment are read, because its terms have no order.
        let read = store.stats().batches_read - read;
        assert!(read <= if is_prefix { 10 } else { 0 }, "{read}");
    }
}
