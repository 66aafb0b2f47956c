//! Readers beside a writer, on a disk that loses power at every step of it.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use quipu_storage::{Durability, Record, Start, Store, TopicSettings, Visibility};
use quipu_tests::model::run::honest;
use quipu_tests::read_only::{DIR, open_read_only, settings, sweep, text};
use quipu_tests::rng::Rng;
use quipu_tests::sim::SimDisk;

#[test]
fn what_a_reader_shows_as_synced_survives_the_worst_power_cut_at_every_step_of_the_writer() {
    let cuts = sweep(honest, 7);
    assert!(cuts > 200, "{cuts} cuts");
}

#[test]
fn a_follower_on_the_same_disk_sees_every_record_while_the_writer_is_killed_and_opened_again() {
    let disk = SimDisk::new();
    let open = || Store::builder().disk(Arc::new(disk.clone())).settings(settings()).open(DIR).unwrap();
    open().create_topic("t", TopicSettings::default()).unwrap();
    let reader = open_read_only(&disk).unwrap();
    let mut cursor = reader.topic("t").unwrap().cursor(Start::Earliest, Visibility::Synced).unwrap();
    let mut rng = Rng::new(11);
    let (mut appended, mut next) = (0, 0);
    for _ in 0..60 {
        let store = open();
        let topic = store.topic("t").unwrap();
        for _ in 0..rng.within(1..60) {
            topic.append_with(&[Record::new(text(appended))], Durability::Written).unwrap();
            appended += 1;
            if rng.chance(10) {
                store.sync().unwrap();
            }
            if rng.chance(3) {
                store.checkpoint().unwrap();
            }
            if rng.chance(5) {
                reader.refresh().unwrap();
            }
        }
        if rng.chance(50) {
            store.close().unwrap();
        }
        // Else it is dropped: what it wrote is synced as well.
        drop((topic, store));
        if rng.chance(70) {
            reader.refresh().unwrap();
            while let Some(batch) = cursor.next_batch().unwrap() {
                for record in batch.owned() {
                    assert_eq!(record.unwrap().payload().unwrap(), text(next).as_bytes());
                    next += 1;
                }
            }
            assert_eq!(next, appended);
        }
    }
    assert!(next > 500);
}
