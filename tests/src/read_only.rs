//! Readers beside a writer, on a disk that loses power at every step of it.
//!
//! What is found wrong is a panic: who plants a bug catches it.

#![allow(clippy::unwrap_used, reason = "a harness that cannot go on fails")]

use std::sync::Arc;

use quipu_storage::disk::Disk;
use quipu_storage::{
    Durability, Offset, ReadOnlyStore, Record, Start, Store, StoreSettings, TopicSettings, Visibility,
};

use crate::rng::Rng;
use crate::sim::{CrashMode, SimDisk};

/// Where the store lies.
pub const DIR: &str = "/store";

/// Small files, and no threads.
pub fn settings() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 192 << 10,
        append_bytes_max: 8 << 10,
        background: false,
        ..StoreSettings::default()
    }
}

/// What the record with this offset holds.
pub fn text(n: u64) -> String {
    format!("{n} {}", "x".repeat((n * 37 % 500) as usize))
}

/// Appends, syncs, trims, makes checkpoints and rolls journal files and segments.
fn write(disk: Arc<dyn Disk>) -> quipu_storage::Result<()> {
    let store = Store::builder().disk(disk).settings(settings()).open(DIR)?;
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

/// Opens the store to read it.
pub fn open_read_only(disk: &SimDisk) -> Option<ReadOnlyStore> {
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

/// Cuts the power before each `every`th operation of the writer: what a reader had shown as synced by then is there.
/// Answers how many cuts there were.
pub fn sweep(wrap: fn(SimDisk) -> Arc<dyn Disk>, every: u64) -> u64 {
    let mut rng = Rng::new(7);
    let disk = SimDisk::new();
    write(wrap(disk.clone())).unwrap();
    let ops = disk.ops();
    let disk = SimDisk::new();
    (1..=ops).filter(|op| op % every == 0 || *op < 700 / every).for_each(|op| disk.crash_at(op));
    write(wrap(disk.clone())).unwrap();
    let snapshots = disk.take_snapshots();
    let (mut shown, mut most, mut cuts) = (0, 0, 0);
    for (op, killed) in snapshots {
        let reader = open_read_only(&killed);
        let synced = reader.as_ref().map_or(0, |reader| seen(reader, Visibility::Synced));
        let written = reader.as_ref().map_or(0, |reader| seen(reader, Visibility::Written));
        assert!(reader.is_none_or(|reader| reader.stats().damage.is_none()), "before operation {op}");
        assert!(synced >= shown && written >= synced, "before operation {op}: {shown}, {synced}, {written}");
        shown = synced;
        most = most.max(written - synced);
        for mode in [CrashMode::LoseAll, CrashMode::Random] {
            cuts += 1;
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
    cuts
}
