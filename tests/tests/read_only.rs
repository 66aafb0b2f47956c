//! Readers beside a writer, on a disk that loses power at every step of it.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::sync::Arc;

use quipu_storage::{
    Durability, Offset, ReadOnlyStore, Record, Start, Store, StoreSettings, TopicSettings, Visibility,
};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

const DIR: &str = "/store";

fn settings() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 192 << 10,
        append_bytes_max: 8 << 10,
        background: false,
        ..StoreSettings::default()
    }
}

fn text(n: u64) -> String {
    format!("{n} {}", "x".repeat((n * 37 % 500) as usize))
}

/// Appends, syncs, trims, makes checkpoints and rolls journal files and segments.
fn write(disk: &SimDisk) -> quipu_storage::Result<()> {
    let store = Store::builder().disk(Arc::new(disk.clone())).settings(settings()).open(DIR)?;
    let small = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", small)?;
    for n in 0..400_u64 {
        let durability = if n % 5 == 4 { Durability::Synced } else { Durability::Written };
        topic.append_with(&[Record::new(text(n))], durability)?;
        if n % 70 == 69 {
            store.checkpoint()?;
        }
        if n % 150 == 149 {
            topic.trim(Offset(n - 100))?;
        }
    }
    store.close()
}

fn open_read_only(disk: &SimDisk) -> Option<ReadOnlyStore> {
    Store::builder().disk(Arc::new(disk.clone())).settings(settings()).open_read_only(DIR).ok()
}

/// Where the records that a reader sees end; fails if one of them is not what was appended.
fn seen(reader: &ReadOnlyStore, visibility: Visibility) -> u64 {
    let Ok(topic) = reader.topic("t") else { return 0 };
    let mut cursor = topic.cursor(Start::Earliest, visibility).unwrap();
    let mut next = cursor.next_offset().0;
    while let Some(batch) = cursor.next_batch().unwrap() {
        for record in batch.owned() {
            let record = record.unwrap();
            assert_eq!(record.offset().0, next);
            assert_eq!(record.payload().unwrap(), text(next).as_bytes());
            next += 1;
        }
    }
    next
}

#[test]
fn what_a_reader_shows_as_synced_survives_the_worst_power_cut_at_every_step_of_the_writer() {
    let mut rng = Rng::new(7);
    let disk = SimDisk::new();
    write(&disk).unwrap();
    let ops = disk.ops();
    let disk = SimDisk::new();
    (1..=ops).filter(|op| op % 7 == 0 || *op < 100).for_each(|op| disk.crash_at(op));
    write(&disk).unwrap();
    let snapshots = disk.take_snapshots();
    assert!(snapshots.len() > 100);
    let (mut shown, mut most) = (0, 0);
    for (op, killed) in snapshots {
        let reader = open_read_only(&killed);
        let synced = reader.as_ref().map_or(0, |reader| seen(reader, Visibility::Synced));
        let written = reader.as_ref().map_or(0, |reader| seen(reader, Visibility::Written));
        assert!(reader.is_none_or(|reader| reader.stats().damage.is_none()), "before operation {op}");
        assert!(synced >= shown && written >= synced, "before operation {op}: {shown}, {synced}, {written}");
        shown = synced;
        most = most.max(written - synced);
        for mode in [CrashMode::LoseAll, CrashMode::Random] {
            let cut = killed.crash_with(mode, &mut rng);
            // Without the writer's word: what it said may be lost, and may never be more than what is there.
            let after = open_read_only(&cut).map_or(0, |reader| seen(&reader, Visibility::Synced));
            let builder = Store::builder().disk(Arc::new(cut.clone())).settings(settings());
            let recovered = builder.open(DIR).unwrap().topic("t").map_or(0, |topic| topic.log_end_offset().0);
            assert!(synced <= recovered, "before operation {op}, {mode:?}: {synced} shown, {recovered} left");
            assert!(after <= recovered, "before operation {op}, {mode:?}: {after} shown, {recovered} left");
        }
    }
    assert_eq!(shown, 400);
    assert!(most > 2, "no record was ever unsynced: the test proves nothing");
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
