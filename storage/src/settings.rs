//! Settings: plain data, each with its default, unit and bounds.

use std::time::Duration;

use crate::error::{Error, Result};
use crate::format::Invalid;
use crate::format::batch::Codec;
use crate::format::wire::{Fields, put_message, put_number};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// What an acknowledgement of an append means.
///
/// Durability is a prefix property: once a record is synced, so is every earlier record of the store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Durability {
    /// In memory: survives nothing for certain.
    Accepted,
    /// In the operating system's page cache: survives a killed process, not a power cut. It is synced within
    /// [`StoreSettings::sync_interval`].
    Written,
    /// On the disk, after fdatasync: survives a power cut. The default.
    #[default]
    Synced,
}

/// Settings of a store, given at each opening.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreSettings {
    /// Size of one journal file in bytes. 16 MiB; 64 KiB to 1 GiB, a multiple of 4096. It bounds the size of an
    /// append.
    pub journal_file_bytes: u64,
    /// Most bytes that all journal files together take. 256 MiB; three files to 1 TiB. It bounds the time to
    /// open after a crash. When it is used up, appends wait for the checkpoint.
    pub journal_bytes_max: u64,
    /// How long a `Written` append may stay unsynced. 100 ms; 1 ms to 1 h.
    pub sync_interval: Duration,
    /// How often a checkpoint is made if anything changed. 30 s; 10 ms to 24 h. One is also made whenever half
    /// of the journal is in use.
    pub checkpoint_interval: Duration,
    /// How often retention looks for what may go. 10 s; 10 ms to 24 h.
    pub retention_interval: Duration,
    /// Most bytes of recent records that wait in memory for their segments, over all topics. 64 MiB; 64 KiB to
    /// 64 GiB. When they are used up, appends wait.
    pub tail_bytes_max: u64,
    /// Most bytes of one append, encoded. 8 MiB; 1 KiB to 64 MiB, and at most half a journal file.
    ///
    /// What the journal adds must fit into the file as well: a revision for each record with a key, of up to 10 bytes but
    /// seldom more than 3, and about 150 bytes for each topic. With the defaults it does whatever the records are. An append
    /// of very many tiny records with keys may be refused where journal files are smaller or the bounds higher.
    pub append_bytes_max: u64,
    /// Most records of one append. 100,000; 1 to 10,000,000.
    pub append_records_max: u64,
    /// Most topics. 100,000; 1 to 10,000,000.
    pub topics_max: u64,
    /// Most named producers, whose last appends are known for ever. 10,000; 1 to 1,000,000.
    ///
    /// The answers of the last 64 appends of each are in memory, and in each checkpoint: about 6 KB for a producer whose appends are
    /// of one topic, 60 MB for 10,000. At most it is 215 KB, if all its appends are of 64 topics:
    /// 2.2 GB for 10,000. Request ids take 60 MB at most, whatever this is.
    pub producers_max: u64,
    /// Most segments that are kept mapped for reading. 4096; 8 to 60,000.
    pub maps_max: u64,
    /// Most segment files that are kept open for writing. 128; 1 to 100,000.
    pub open_files_max: u64,
    /// Retention also runs when less than this many bytes are free on the disk, at most once a second. 256 MiB; 0 to
    /// 1 PiB. It removes no more than the topics' settings say.
    pub free_bytes_min: u64,
    /// Size of a file that is given up on a full disk, so that deleting, trimming and checkpoints go on. 1 MiB;
    /// 0 to 1 GiB.
    pub reserve_bytes: u64,
    /// Whether threads of the store sync, write segments, make checkpoints and run retention. `true`; with
    /// `false` nothing happens but what the caller asks for, which makes tests repeatable.
    pub background: bool,
}

impl Default for StoreSettings {
    fn default() -> Self {
        Self {
            journal_file_bytes: 16 * MIB,
            journal_bytes_max: 256 * MIB,
            sync_interval: Duration::from_millis(100),
            checkpoint_interval: Duration::from_secs(30),
            retention_interval: Duration::from_secs(10),
            tail_bytes_max: 64 * MIB,
            append_bytes_max: 8 * MIB,
            append_records_max: 100_000,
            topics_max: 100_000,
            producers_max: 10_000,
            maps_max: 4096,
            open_files_max: 128,
            free_bytes_min: 256 * MIB,
            reserve_bytes: MIB,
            background: true,
        }
    }
}

impl StoreSettings {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] names the first setting that is out of its bounds.
    pub fn check(&self) -> Result<()> {
        let day = Duration::from_secs(24 * 3600);
        within("journal_file_bytes", self.journal_file_bytes, 64 * KIB, GIB)?;
        if !self.journal_file_bytes.is_multiple_of(4096) {
            return invalid("journal_file_bytes", self.journal_file_bytes, "a multiple of 4096");
        }
        within("journal_bytes_max", self.journal_bytes_max, 3 * self.journal_file_bytes, 1024 * GIB)?;
        duration_within(
            "sync_interval",
            self.sync_interval,
            Duration::from_millis(1),
            Duration::from_secs(3600),
        )?;
        duration_within("checkpoint_interval", self.checkpoint_interval, Duration::from_millis(10), day)?;
        duration_within("retention_interval", self.retention_interval, Duration::from_millis(10), day)?;
        within("tail_bytes_max", self.tail_bytes_max, 64 * KIB, 64 * GIB)?;
        within("append_bytes_max", self.append_bytes_max, KIB, 64 * MIB)?;
        // A frame adds its own header and list of changes; half a file leaves room for both. It need not for the revisions of
        // very many records: a bound for the worst of them would refuse what nearly always fits.
        within("append_bytes_max", self.append_bytes_max, KIB, self.journal_file_bytes / 2)?;
        within("append_records_max", self.append_records_max, 1, 10_000_000)?;
        within("topics_max", self.topics_max, 1, 10_000_000)?;
        within("producers_max", self.producers_max, 1, 1_000_000)?;
        within("maps_max", self.maps_max, 8, 60_000)?;
        within("open_files_max", self.open_files_max, 1, 100_000)?;
        within("free_bytes_min", self.free_bytes_min, 0, 1 << 50)?;
        within("reserve_bytes", self.reserve_bytes, 0, GIB)
    }
}

/// Where a topic keeps its records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Storage {
    /// In segment files. The default.
    #[default]
    Disk,
    /// In memory only: a restart forgets them, and the oldest go when they have more than this many bytes.
    /// 4 KiB to 64 GiB.
    Memory {
        /// The bound.
        bytes_max: u64,
    },
}

/// Which records of a topic may go. Whole sealed segments go, oldest first, when any bound is exceeded, so a bit
/// more than the bound may stay; in a topic in memory, whole batches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Retention {
    /// Older than this. None; 1 ms to 1,000 years.
    pub age_max: Option<Duration>,
    /// So that the segments, or the batches in memory, have at most this many bytes. None; at least 1.
    pub bytes_max: Option<u64>,
    /// So that at most this many records stay. None; at least 1.
    pub records_max: Option<u64>,
}

/// Key compaction: of each key only the latest records stay. Records without a key always stay.
///
/// It looks at sealed segments only, and runs by itself when at least half of their bytes are new since the last run,
/// or when tombstones that it left have become old enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Compaction {
    /// How many records of each key stay. 1; 1 to 1,000,000.
    pub records_per_key: u32,
    /// Records younger than this are left alone. None; up to 1,000 years.
    pub lag_min: Duration,
    /// How long a tombstone stays at least, so that followers learn of it. 24 h; up to 1,000 years.
    pub tombstone_age_max: Duration,
    /// Most bytes that compaction reads a second. 64 MiB; at least 64 KiB. 0: no limit.
    pub bytes_per_second_max: u64,
}

impl Default for Compaction {
    fn default() -> Self {
        Self {
            records_per_key: 1,
            lag_min: Duration::ZERO,
            tombstone_age_max: Duration::from_secs(24 * 3600),
            bytes_per_second_max: 64 * MIB,
        }
    }
}

impl Compaction {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] names the first setting that is out of its bounds.
    pub fn check(&self) -> Result<()> {
        within("compaction.records_per_key", u64::from(self.records_per_key), 1, 1_000_000)?;
        duration_within("compaction.lag_min", self.lag_min, Duration::ZERO, THOUSAND_YEARS)?;
        duration_within(
            "compaction.tombstone_age_max",
            self.tombstone_age_max,
            Duration::ZERO,
            THOUSAND_YEARS,
        )?;
        if self.bytes_per_second_max != 0 {
            within("compaction.bytes_per_second_max", self.bytes_per_second_max, 64 * KIB, u64::MAX)?;
        }
        Ok(())
    }
}

/// Settings of a topic, kept in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicSettings {
    /// Where the records are. Fixed at creation.
    pub storage: Storage,
    /// A segment is sealed when it would grow beyond this many bytes. 64 MiB; 4 KiB to 4 GiB.
    pub segment_bytes_max: u64,
    /// A segment is sealed when its first record is older than this and another is appended. 7 days; 1 ms to
    /// 1,000 years.
    pub segment_age_max: Duration,
    /// How batches are compressed. Not at all.
    pub codec: Codec,
    /// Which records may go. None.
    pub retention: Retention,
    /// Whether keys are compacted, and how. They are not.
    pub compaction: Option<Compaction>,
}

impl Default for TopicSettings {
    fn default() -> Self {
        Self {
            storage: Storage::Disk,
            segment_bytes_max: 64 * MIB,
            segment_age_max: Duration::from_secs(7 * 24 * 3600),
            codec: Codec::None,
            retention: Retention::default(),
            compaction: None,
        }
    }
}

const THOUSAND_YEARS: Duration = Duration::from_secs(1000 * 366 * 24 * 3600);

impl TopicSettings {
    /// Checks every bound.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`] names the first setting that is out of its bounds; [`Error::CodecUnavailable`]
    /// if this build lacks the codec.
    pub fn check(&self) -> Result<()> {
        if let Storage::Memory { bytes_max } = self.storage {
            within("storage.memory.bytes_max", bytes_max, 4 * KIB, 64 * GIB)?;
        }
        within("segment_bytes_max", self.segment_bytes_max, 4 * KIB, 4 * GIB)?;
        duration_within("segment_age_max", self.segment_age_max, Duration::from_millis(1), THOUSAND_YEARS)?;
        if !self.codec.is_available() {
            return Err(Error::CodecUnavailable { codec: self.codec.name() });
        }
        if let Some(age) = self.retention.age_max {
            duration_within("retention.age_max", age, Duration::from_millis(1), THOUSAND_YEARS)?;
        }
        if let Some(bytes) = self.retention.bytes_max {
            within("retention.bytes_max", bytes, 1, u64::MAX)?;
        }
        if let Some(records) = self.retention.records_max {
            within("retention.records_max", records, 1, u64::MAX)?;
        }
        if let Some(compaction) = &self.compaction {
            if matches!(self.storage, Storage::Memory { .. }) {
                return invalid("compaction", "set", "unset for a topic in memory");
            }
            compaction.check()?;
        }
        Ok(())
    }

    /// Appends the encoding, protobuf:
    ///
    /// | Field | Content |
    /// |---|---|
    /// | 1 | bytes of a topic in memory; absent: on disk |
    /// | 2 | `segment_bytes_max` |
    /// | 3 | `segment_age_max` in ms |
    /// | 4 | codec, as in a batch |
    /// | 5 | retention: 1 age in ms, 2 bytes, 3 records, each + 1, absent: none |
    /// | 6 | compaction: 1 records per key, 2 lag in ms, 3 tombstone age in ms, 4 bytes per second; absent: none |
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        if let Storage::Memory { bytes_max } = self.storage {
            put_number(out, 1, bytes_max);
        }
        put_number(out, 2, self.segment_bytes_max);
        put_number(out, 3, millis(self.segment_age_max));
        put_number(out, 4, u64::from(self.codec.code()));
        put_message(out, 5, |out| {
            let plus_one = |number: Option<u64>| number.map_or(0, |number| number.saturating_add(1));
            put_number(out, 1, plus_one(self.retention.age_max.map(millis)));
            put_number(out, 2, plus_one(self.retention.bytes_max));
            put_number(out, 3, plus_one(self.retention.records_max));
        });
        if let Some(compaction) = &self.compaction {
            put_message(out, 6, |out| {
                put_number(out, 1, u64::from(compaction.records_per_key));
                put_number(out, 2, millis(compaction.lag_min));
                put_number(out, 3, millis(compaction.tombstone_age_max));
                put_number(out, 4, compaction.bytes_per_second_max);
            });
        }
    }

    /// Decodes what [`encode`](Self::encode) made. An unknown field is refused: to ignore a setting could lose data.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Invalid> {
        let mut settings = Self { segment_age_max: Duration::ZERO, segment_bytes_max: 0, ..Self::default() };
        for field in Fields::new(bytes) {
            match field? {
                // As everywhere, 0 says what an absent field says.
                (1, value) => {
                    settings.storage = match value.number()? {
                        0 => Storage::Disk,
                        bytes_max => Storage::Memory { bytes_max },
                    };
                }
                (2, value) => settings.segment_bytes_max = value.number()?,
                (3, value) => settings.segment_age_max = Duration::from_millis(value.number()?),
                (4, value) => {
                    settings.codec = u8::try_from(value.number()?)
                        .ok()
                        .and_then(Codec::from_code)
                        .ok_or(Invalid::new("unknown codec", 0))?;
                }
                (5, value) => {
                    for field in Fields::new(value.bytes()?) {
                        let (number, value) = field?;
                        let value = value.number()?.checked_sub(1);
                        match number {
                            1 => settings.retention.age_max = value.map(Duration::from_millis),
                            2 => settings.retention.bytes_max = value,
                            3 => settings.retention.records_max = value,
                            _ => return Err(Invalid::new("unknown setting of retention", 0)),
                        }
                    }
                }
                (6, value) => {
                    let mut numbers = [0; 4];
                    for field in Fields::new(value.bytes()?) {
                        match field? {
                            (number @ 1..=4, value) => numbers[number as usize - 1] = value.number()?,
                            _ => return Err(Invalid::new("unknown setting of compaction", 0)),
                        }
                    }
                    settings.compaction = Some(Compaction {
                        records_per_key: u32::try_from(numbers[0]).unwrap_or(u32::MAX),
                        lag_min: Duration::from_millis(numbers[1]),
                        tombstone_age_max: Duration::from_millis(numbers[2]),
                        bytes_per_second_max: numbers[3],
                    });
                }
                _ => return Err(Invalid::new("unknown setting", 0)),
            }
        }
        Ok(settings)
    }
}

/// Whole milliseconds, held at the largest.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

fn invalid<T>(setting: &'static str, value: impl ToString, rule: impl ToString) -> Result<T> {
    Err(Error::InvalidSetting { setting, value: value.to_string(), rule: rule.to_string() })
}

pub(crate) fn within(setting: &'static str, value: u64, min: u64, max: u64) -> Result<()> {
    if value < min || value > max {
        return invalid(setting, value, format_args!("{min} to {max}"));
    }
    Ok(())
}

pub(crate) fn duration_within(
    setting: &'static str,
    value: Duration,
    min: Duration,
    max: Duration,
) -> Result<()> {
    if value < min || value > max {
        return invalid(setting, format_args!("{value:?}"), format_args!("{min:?} to {max:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_defaults_are_within_their_bounds() {
        StoreSettings::default().check().unwrap();
        TopicSettings::default().check().unwrap();
        Compaction::default();
    }

    #[test]
    fn a_setting_out_of_bounds_is_named() {
        let settings = StoreSettings { journal_file_bytes: 5000, ..StoreSettings::default() };
        let error = settings.check().unwrap_err();
        assert!(matches!(&error, Error::InvalidSetting { setting: "journal_file_bytes", .. }), "{error}");
    }

    /// What is decoded is encoded to the same again: a topic in memory without bytes would come back as one on disk.
    #[test]
    fn a_field_that_is_zero_is_as_good_as_absent() {
        for field in 1..=4 {
            let decoded = TopicSettings::decode(&[field << 3, 0]).unwrap();
            assert_eq!(decoded, TopicSettings::decode(&[]).unwrap(), "field {field}");
        }
    }

    proptest! {
        #[test]
        fn topic_settings_come_back(
            memory: Option<u32>, bytes: u32, age: u32, codec in 0..3_u8, retention: (Option<u32>, Option<u32>, Option<u32>),
            compaction: Option<(u32, u32, u32, u64)>,
        ) {
            let millis = |ms: u32| Duration::from_millis(ms.into());
            let settings = TopicSettings {
                storage: memory.filter(|&bytes| bytes > 0).map_or(Storage::Disk, |bytes| Storage::Memory { bytes_max: bytes.into() }),
                segment_bytes_max: bytes.into(),
                segment_age_max: millis(age),
                codec: Codec::from_code(codec).unwrap(),
                retention: Retention {
                    age_max: retention.0.map(millis),
                    bytes_max: retention.1.map(u64::from),
                    records_max: retention.2.map(u64::from),
                },
                compaction: compaction.map(|(records_per_key, lag, tombstone, bytes_per_second_max)| Compaction {
                    records_per_key, lag_min: millis(lag), tombstone_age_max: millis(tombstone), bytes_per_second_max,
                }),
            };
            let mut bytes = Vec::new();
            settings.encode(&mut bytes);
            prop_assert_eq!(TopicSettings::decode(&bytes), Ok(settings));
        }

        #[test]
        fn any_bytes_are_settings_or_an_error(bytes: Vec<u8>) {
            let _ = TopicSettings::decode(&bytes);
        }
    }
}
