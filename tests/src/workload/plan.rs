//! What a run does: each step follows from scenario, seed, run, thread and number, and from nothing else.

use std::time::Duration;

use quipu_storage::{Compaction, Durability, Record, Retention, StoreSettings, TopicSettings};

use super::Name;
use crate::rng::Rng;

const KIB: u64 = 1 << 10;

/// What a run is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Scenario {
    /// One writer, synced and written appends, over several topics.
    Append,
    /// Several writers with several appends in flight each.
    Group,
    /// Batches of the size of a segment: each append seals one.
    Roll,
    /// Checkpoints all the time.
    Checkpoint,
    /// Retention and trims remove what others write.
    Retention,
    /// Few keys, written again and again, and tombstones.
    Compaction,
    /// All of it, and topics that come and go.
    Mixed,
}

impl Scenario {
    /// All of them.
    pub const EVERY: [Self; 7] = [
        Self::Append,
        Self::Group,
        Self::Roll,
        Self::Checkpoint,
        Self::Retention,
        Self::Compaction,
        Self::Mixed,
    ];

    /// As it is written on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Append => "append",
            Self::Group => "group",
            Self::Roll => "roll",
            Self::Checkpoint => "checkpoint",
            Self::Retention => "retention",
            Self::Compaction => "compaction",
            Self::Mixed => "mixed",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        Self::EVERY.into_iter().find(|scenario| scenario.name() == name)
    }

    fn numbered(number: u8) -> Option<Self> {
        Self::EVERY.into_iter().find(|scenario| *scenario as u8 == number)
    }

    /// How many threads write.
    pub fn threads(self) -> u8 {
        match self {
            Self::Group => 4,
            Self::Mixed | Self::Retention => 3,
            Self::Append | Self::Roll | Self::Checkpoint | Self::Compaction => 1,
        }
    }

    /// How many appends of one thread are in flight at once.
    pub(super) fn in_flight(self) -> usize {
        match self {
            Self::Group => 4,
            Self::Mixed => 2,
            _ => 1,
        }
    }

    /// Whether a step may trim the topic.
    pub(super) fn trims(self, topic: &str) -> bool {
        matches!((self, topic), (Self::Retention | Self::Mixed, "d") | (Self::Mixed, "a"))
    }

    /// The topics that exist all the time.
    pub(super) fn topics(self) -> &'static [&'static str] {
        match self {
            Self::Compaction => &["keys", "plain"],
            _ => &["a", "b/c", "d"],
        }
    }

    /// The settings of a topic.
    pub(super) fn topic_settings(self, topic: &str) -> TopicSettings {
        let segment_bytes_max = match self {
            Self::Roll => 4 * KIB,
            _ => 16 * KIB,
        };
        let retention = match (self, topic) {
            (Self::Retention, "a") => Retention { records_max: Some(40), ..Retention::default() },
            (Self::Retention | Self::Mixed, "b/c") => {
                Retention { bytes_max: Some(48 * KIB), ..Retention::default() }
            }
            _ => Retention::default(),
        };
        let compaction = Compaction {
            tombstone_age_max: Duration::ZERO,
            bytes_per_second_max: 0,
            ..Compaction::default()
        };
        TopicSettings {
            segment_bytes_max,
            retention,
            compaction: (topic == "keys").then_some(compaction),
            ..TopicSettings::default()
        }
    }
}

/// Small files and short intervals: much happens within few bytes and little time.
pub fn store_settings() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 * KIB,
        journal_bytes_max: 512 * KIB,
        append_bytes_max: 16 * KIB,
        tail_bytes_max: 256 * KIB,
        sync_interval: Duration::from_millis(5),
        checkpoint_interval: Duration::from_millis(20),
        retention_interval: Duration::from_millis(10),
        reserve_bytes: 128 * KIB,
        ..StoreSettings::default()
    }
}

/// One step of a thread.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Step {
    /// These records, as one append.
    Append {
        durability: Durability,
        parts: Vec<(String, Vec<Record>)>,
    },
    /// Trim the topic so that about this many records stay.
    Trim {
        topic: &'static str,
        keep: u64,
    },
    Checkpoint,
    Compact {
        topic: &'static str,
    },
    Create {
        topic: String,
    },
    Delete {
        topic: String,
    },
    Alter {
        topic: &'static str,
        segment_bytes_max: u64,
    },
}

/// A run's plan: what is the same for all of its steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) scenario: Scenario,
    pub(super) seed: u32,
}

impl Plan {
    pub(super) fn step(self, name: Name) -> Step {
        let mut rng = self.rng(name);
        let temporary = |step: u32| format!("temp/{}.{}.{step}", name.run, name.thread);
        match (self.scenario, name.step % 16) {
            (Scenario::Mixed, 3) => Step::Create { topic: temporary(name.step) },
            (Scenario::Mixed, 4..=8) => {
                let topic = temporary(name.step - name.step % 16 + 3);
                self.append(name, &mut rng, Some(topic))
            }
            (Scenario::Mixed, 9) if is_short_lived(name.step - 6) => {
                Step::Delete { topic: temporary(name.step - 6) }
            }
            (Scenario::Mixed, 12) => Step::Trim { topic: "a", keep: rng.below(50) },
            (Scenario::Mixed, 13) if rng.chance(30) => Step::Checkpoint,
            (Scenario::Mixed, 14) if rng.chance(20) => {
                Step::Alter { topic: "d", segment_bytes_max: rng.within(4 * KIB..32 * KIB) }
            }
            (Scenario::Retention | Scenario::Mixed, 5 | 11) if name.thread == 0 => {
                let keep = if rng.chance(20) { 0 } else { rng.below(60) };
                Step::Trim { topic: "d", keep }
            }
            (Scenario::Checkpoint, number) if number % 4 == 3 => Step::Checkpoint,
            (Scenario::Compaction, 15) => Step::Compact { topic: "keys" },
            (Scenario::Compaction, 7) => Step::Checkpoint,
            _ => self.append(name, &mut rng, None),
        }
    }

    /// The plan and the place in it of a record's id; `None` if no plan gives such an id.
    pub(super) fn of_id(id: [u8; 16]) -> Option<(Self, Name, usize, usize)> {
        let [MAGIC, scenario, s0, s1, s2, s3, r0, r1, thread, part, i0, i1, n0, n1, n2, n3] = id else {
            return None;
        };
        let plan =
            Self { scenario: Scenario::numbered(scenario)?, seed: u32::from_le_bytes([s0, s1, s2, s3]) };
        let name =
            Name { run: u16::from_le_bytes([r0, r1]), thread, step: u32::from_le_bytes([n0, n1, n2, n3]) };
        Some((plan, name, usize::from(part), usize::from(u16::from_le_bytes([i0, i1]))))
    }

    fn rng(self, name: Name) -> Rng {
        let place = u64::from(name.run) << 48 | u64::from(name.thread) << 40 | u64::from(name.step);
        let seed = Rng::new(u64::from(self.seed) << 8 | self.scenario as u64).next_u64();
        Rng::new(Rng::new(place).next_u64() ^ seed)
    }

    fn append(self, name: Name, rng: &mut Rng, temporary: Option<String>) -> Step {
        let durability = match self.scenario {
            Scenario::Group if rng.chance(80) => Durability::Synced,
            _ if rng.chance(60) => Durability::Synced,
            _ => Durability::Written,
        };
        let all = self.scenario.topics();
        let count = if rng.chance(25) { all.len() } else { 1 };
        let first = rng.index(all.len());
        let mut topics: Vec<String> =
            (0..count).map(|number| all[(first + number) % all.len()].to_owned()).collect();
        topics.extend(temporary);
        let parts = topics.into_iter().enumerate().map(|(part, topic)| {
            let records = match self.scenario {
                Scenario::Roll => rng.within(1..4),
                _ => rng.within(1..6),
            };
            let records = (0..records).map(|index| self.record(name, part, index, rng)).collect();
            (topic, records)
        });
        Step::Append { durability, parts: parts.collect() }
    }

    fn record(self, name: Name, part: usize, index: u64, rng: &mut Rng) -> Record {
        let bytes = match self.scenario {
            Scenario::Roll => rng.within(200..1300),
            _ if rng.chance(5) => rng.within(1000..2500),
            _ => rng.below(300),
        };
        let bytes = usize::try_from(bytes).expect("a few KiB");
        let mut record = Record::new(rng.bytes(bytes));
        if rng.chance(40) || self.scenario == Scenario::Compaction {
            record.key = Some(format!("key-{}", rng.below(12)).into_bytes());
            if rng.chance(10) {
                record.payload = None;
            }
        }
        if rng.chance(20) {
            record = record.with_type("made").with_tag("t1").with_header("h", rng.bytes(9));
        }
        let mut id = [0; 16];
        id[0] = MAGIC;
        id[1] = self.scenario as u8;
        id[2..6].copy_from_slice(&self.seed.to_le_bytes());
        id[6..8].copy_from_slice(&name.run.to_le_bytes());
        id[8] = name.thread;
        id[9] = u8::try_from(part).expect("a few topics");
        id[10..12].copy_from_slice(&u16::try_from(index).expect("a few records").to_le_bytes());
        id[12..16].copy_from_slice(&name.step.to_le_bytes());
        record.id = Some(id);
        record
    }
}

/// Whether a plan may create the topic on its way, and whether it may delete it again.
pub(super) fn temporary_topic(name: &str) -> Option<bool> {
    let step = name.strip_prefix("temp/")?.parse::<Name>().ok()?.step;
    (step % 16 == 3).then(|| is_short_lived(step))
}

/// Whether the temporary topic created in this step is deleted again: nearly all are.
fn is_short_lived(step: u32) -> bool {
    step % 256 > 16
}

/// What the ids of planned records begin with.
const MAGIC: u8 = 0xA5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_names_the_step_that_it_came_from() {
        for scenario in Scenario::EVERY {
            let plan = Plan { scenario, seed: 77 };
            let mut appends = 0;
            for step in 0..200 {
                let name = Name { run: 3, thread: 1, step };
                let Step::Append { parts, .. } = plan.step(name) else { continue };
                appends += 1;
                for (part, (_, records)) in parts.iter().enumerate() {
                    for (index, record) in records.iter().enumerate() {
                        let found = Plan::of_id(record.id.unwrap());
                        assert_eq!(found, Some((plan, name, part, index)));
                    }
                }
                assert_eq!(plan.step(name), plan.step(name));
            }
            assert!(appends > 100, "{scenario:?}: {appends}");
        }
    }
}
