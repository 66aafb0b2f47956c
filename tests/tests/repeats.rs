//! Repeats of appends on a disk that fails.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use quipu_storage::{Append, Appended, Error, Offset, Record, Result, Store, StoreSettings, TopicSettings};
use quipu_tests::faulty::{Fault, FaultyDisk, OpKind};
use quipu_tests::model::run::{STORE, settings};
use quipu_tests::sim::SimDisk;

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
