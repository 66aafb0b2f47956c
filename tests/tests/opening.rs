//! What opening a store costs depends on its journal and not on what it holds: counted in operations of the disk.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::PathBuf;
use std::sync::Arc;

use quipu_storage::{Durability, Offset, Record, Store, TopicSettings};
use quipu_tests::faulty::{FaultyDisk, OpKind};
use quipu_tests::model::run::{STORE, settings};
use quipu_tests::sim::SimDisk;

/// A store with the same records in segments of another size, closed or killed; and how many are sealed.
fn filled(segment_bytes_max: u64, is_closed: bool) -> (SimDisk, usize) {
    let disk = SimDisk::new();
    let store = Store::builder().settings(settings()).disk(Arc::new(disk.clone())).open(STORE).unwrap();
    let topic =
        store.create_topic("t", TopicSettings { segment_bytes_max, ..TopicSettings::default() }).unwrap();
    for n in 0..300_u64 {
        topic.append_with(&[Record::new(vec![n as u8; 1000])], Durability::Written).unwrap();
        if n % 25 == 24 {
            store.checkpoint().unwrap();
        }
    }
    for _ in 0..5 {
        topic.append(&[Record::new("in the journal only")]).unwrap();
    }
    let left = disk.after_kill();
    if is_closed {
        store.close().unwrap();
    }
    let disk = if is_closed { disk } else { left };
    let sealed = disk.files().keys().filter(|path| path.extension().is_some_and(|e| e == "segment")).count();
    (disk, sealed - 1)
}

/// What opening does to the disk, and what it gives.
fn opening(disk: &SimDisk) -> Vec<(OpKind, PathBuf)> {
    let faulty = FaultyDisk::over_sim(disk.after_kill());
    let store = Store::builder().settings(settings()).disk(Arc::new(faulty.clone())).open(STORE).unwrap();
    let ops = faulty.ops().into_iter().map(|op| (op.kind, op.path)).collect();
    assert_eq!(store.topic("t").unwrap().log_end_offset(), Offset(305));
    ops
}

#[test]
fn a_store_with_many_sealed_segments_is_opened_by_the_same_operations_as_one_with_a_single_one() {
    for is_closed in [true, false] {
        let (one, single) = filled(200_000, is_closed);
        let (many, sealed) = filled(4096, is_closed);
        assert_eq!(single, 1);
        assert!(sealed > 70, "{sealed}");
        let ops = opening(&one);
        assert!(ops.len() > 10, "{ops:?}");
        assert_eq!(opening(&many), ops, "closed: {is_closed}");
        let touches_topics = |(kind, path): &&(OpKind, PathBuf)| {
            *kind != OpKind::List && path.starts_with(format!("{STORE}/topics"))
        };
        assert_eq!(ops.iter().find(touches_topics), None);
    }
}
