//! A small store with some of everything: what is damaged in it is damaged in every kind of place.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use quipu_storage::{
    Codec, Compaction, Durability, Error, Offset, Record, Storage, Store, StoreSettings, TopicSettings,
};

use crate::model::run::STORE;
use crate::model::{Check, TestClock};
use crate::sim::SimDisk;

/// What a topic holds: a payload for each offset, or nothing where it was trimmed or compacted.
pub type Held = Vec<Option<Vec<u8>>>;

/// A small store, and what it holds.
#[derive(Debug)]
pub struct Sample {
    /// The disk.
    pub disk: SimDisk,
    /// The topics in the order of their ids, from 1; those that were deleted too.
    pub topics: Vec<String>,
    /// What each topic holds.
    pub records: BTreeMap<String, Held>,
    /// How many records of each topic are covered by a later frame's mark or by the checkpoint.
    pub marked: BTreeMap<String, usize>,
    /// Whether it was closed, and not killed.
    pub is_closed: bool,
}

/// The smallest settings.
pub fn settings() -> StoreSettings {
    StoreSettings { reserve_bytes: 0, ..crate::model::run::settings() }
}

/// Opens a sample.
///
/// # Errors
/// Those of the engine.
pub fn open(disk: &SimDisk) -> quipu_storage::Result<Store> {
    open_at(disk, TestClock::at(2_000_000))
}

fn open_at(disk: &SimDisk, clock: Arc<TestClock>) -> quipu_storage::Result<Store> {
    Store::builder().settings(settings()).disk(Arc::new(disk.clone())).clock(clock).open(STORE)
}

/// A sample under way.
struct Maker {
    disk: SimDisk,
    clock: Arc<TestClock>,
    store: Option<Store>,
    topics: Vec<String>,
    records: BTreeMap<String, Held>,
    /// Where the journal ended behind each record.
    ends: BTreeMap<String, Vec<u64>>,
}

impl Maker {
    fn new() -> quipu_storage::Result<Self> {
        let (disk, clock) = (SimDisk::new(), TestClock::at(1_000_000));
        let store = Some(open_at(&disk, Arc::clone(&clock))?);
        Ok(Self { disk, clock, store, topics: Vec::new(), records: BTreeMap::new(), ends: BTreeMap::new() })
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("it is open until the sample is made")
    }

    /// A topic whose segments are sealed after so many records, whatever their size.
    fn create(
        &mut self,
        name: &str,
        records_per_segment: u64,
        settings: TopicSettings,
    ) -> quipu_storage::Result<()> {
        let segment_age_max = Duration::from_millis(records_per_segment);
        self.store().create_topic(name, TopicSettings { segment_age_max, ..settings })?;
        self.topics.push(name.to_owned());
        self.records.entry(name.to_owned()).or_default();
        self.ends.entry(name.to_owned()).or_default();
        Ok(())
    }

    fn append(
        &mut self,
        name: &str,
        key: &str,
        bytes: usize,
        durability: Durability,
    ) -> quipu_storage::Result<()> {
        let held = self.records.get_mut(name).expect("it was created");
        let mut payload = format!("{name} {} ", held.len()).into_bytes();
        payload.resize(payload.len() + bytes, b'x');
        held.push(Some(payload.clone()));
        let record =
            if key.is_empty() { Record::new(payload) } else { Record::keyed(key.to_owned(), payload) };
        self.store().topic(name)?.append_with(&[record], durability)?;
        let end = self.store().stats().journal_position.0;
        self.ends.get_mut(name).expect("it was created").push(end);
        self.clock.set(self.clock.millis() + 1);
        Ok(())
    }

    fn trim(&mut self, name: &str, offset: u64) -> quipu_storage::Result<()> {
        self.store().topic(name)?.trim(Offset(offset))?;
        self.records.get_mut(name).expect("it was created")[..offset as usize].fill(None);
        Ok(())
    }

    /// Compacts, and asks what is left.
    fn compact(&mut self, name: &str) -> quipu_storage::Result<()> {
        let topic = self.store().topic(name)?;
        let report = topic.compact()?;
        assert!(report.records_removed.total() > 0, "{report:?}");
        let mut left = vec![None; self.records[name].len()];
        for record in topic.read(topic.log_start_offset())? {
            let record = record?;
            left[record.offset().0 as usize] = record.payload().map(<[u8]>::to_vec);
        }
        self.records.insert(name.to_owned(), left);
        Ok(())
    }

    fn kill(&mut self) {
        let left = self.disk.after_kill();
        self.store = None;
        self.disk = left;
    }

    fn everything(&mut self, is_closed: bool) -> quipu_storage::Result<()> {
        let plain = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
        let packed = TopicSettings { codec: Codec::Lz4, ..plain.clone() };
        let compaction = Some(Compaction { tombstone_age_max: Duration::ZERO, ..Compaction::default() });
        let keyed = TopicSettings { compaction, ..plain.clone() };
        let in_memory = TopicSettings { storage: Storage::Memory { bytes_max: 4096 }, ..plain.clone() };
        let long = TopicSettings { segment_bytes_max: 16 << 10, ..plain.clone() };
        self.create("plain", 3, plain.clone())?;
        self.create("packed", 4, packed.clone())?;
        self.create("keyed", 3, keyed)?;
        self.create("long", 1000, long)?;
        self.create("gone", 2, plain.clone())?;
        self.create("volatile", 2, in_memory)?;
        // One segment whose index has two entries.
        for bytes in [10, 2000, 30, 2000, 20, 60] {
            self.append("long", "", bytes, Durability::Synced)?;
        }
        for number in 0..8 {
            // Each in a time of its own, so that those of one topic share segments.
            self.append("plain", "", 5 + number, Durability::Synced)?;
        }
        for number in 0..6 {
            self.append("packed", "", if number == 3 { 400 } else { 5 }, Durability::Synced)?;
        }
        // The last of a segment goes, the first of another, all of a third.
        for key in ["a", "b", "c", "c", "a", "d", "c", "c", "c", "b", "c", "e", "f"] {
            self.append("keyed", key, 3, Durability::Synced)?;
        }
        self.append("gone", "", 10, Durability::Synced)?;
        self.append("volatile", "", 10, Durability::Written)?;
        self.compact("keyed")?;
        self.trim("plain", 4)?;
        if is_closed {
            self.store().delete_topic("gone")?;
            return self.store().close();
        }
        // The replacement and what follows is in the journal only.
        self.append("plain", "", 20, Durability::Synced)?;
        self.append("packed", "", 200, Durability::Synced)?;
        self.store().delete_topic("gone")?;
        self.create("late", 2, plain)?;
        self.append("late", "key", 20, Durability::Synced)?;
        self.store().topic("packed")?.alter(&TopicSettings { codec: Codec::None, ..packed })?;
        // From here on in another file of the journal.
        self.kill();
        self.store = Some(open_at(&self.disk, Arc::clone(&self.clock))?);
        for name in ["plain", "late", "packed", "plain"] {
            self.append(name, "", 30, Durability::Synced)?;
        }
        for name in ["plain", "late", "keyed"] {
            self.append(name, "k", 10, Durability::Written)?;
        }
        self.kill();
        Ok(())
    }
}

/// Makes a sample: segments plain and compressed, sealed and active, with a long index, rewritten by compaction, trimmed;
/// topics that were deleted and altered, and one in memory. Unless it is closed, the journal has two files with frames of
/// every kind behind the checkpoint.
///
/// # Errors
/// What the engine complains of.
pub fn sample(is_closed: bool) -> Check<Sample> {
    let complain = |error: Error| error.to_string();
    let mut maker = Maker::new().map_err(complain)?;
    maker.everything(is_closed).map_err(complain)?;
    let Maker { disk, topics, mut records, ends, store, .. } = maker;
    drop(store);
    records.retain(|name, _| name != "gone" && name != "volatile");
    let mut sample = Sample { disk, topics, records, marked: BTreeMap::new(), is_closed };
    let mark = sample.journal_mark()?;
    for (name, records) in &sample.records {
        let count = ends[name].iter().filter(|&&end| end <= mark).count();
        sample.marked.insert(name.clone(), if is_closed { records.len() } else { count });
    }
    Ok(sample)
}

impl Sample {
    /// The files that are looked at, each with its bytes. Not the lock and the reserve, which have no content, not `live`,
    /// which the writer does not look at, and not those of a deleted topic, which only wait to be removed.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn files(&self) -> Check<Vec<(PathBuf, Vec<u8>)>> {
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().and_then(|name| name.to_str());
            let is_of_gone = path.parent().is_some_and(|dir| dir.ends_with("topics/00000005"));
            !matches!(name, Some("lock" | "live" | "reserve")) && !is_of_gone
        };
        self.disk
            .files()
            .into_keys()
            .filter(is_ours)
            .map(|path| {
                let bytes = self.disk.read_file(&path).map_err(|error| error.to_string())?;
                Ok((path, bytes))
            })
            .collect()
    }
}
