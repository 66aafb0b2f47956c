//! Whether a store holds what was acknowledged, and nothing that was never sent.
//!
//! 1. Open the store, which recovers it.
//! 2. Read every topic forwards and backwards: offsets are dense, every record is byte for byte what its plan says, the
//!    records of an append stand together, the appends of a thread in their order.
//! 3. Everything that was acknowledged and had to survive is there at its offset, or was trimmed. Of a compacted topic
//!    all is there but what compaction may remove ([`compacted`](super::compacted)).
//! 4. What a thread sent before something that is there is there too, with all its topics.
//! 5. Logs start where trims and retention may have put them.
//! 6. Append to every topic, read that, close, open and read again.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use quipu_storage::{
    Append, Cursor, Offset, Record, Retention, Start, Store, StoreSettings, Topic, Visibility,
};

use super::acks::{Acks, Name};
use super::compacted::Compacted;
use super::plan::{Plan, Scenario, Step, store_settings, temporary_topic};
use crate::rng::Rng;

/// What the store had to survive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survived {
    /// The machine: whatever was synced, and all that came before it.
    PowerCut,
    /// The process: whatever was written.
    Kill,
}

/// What was looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Records that were read and compared.
    pub records: u64,
    /// Acknowledged appends that had to be there and were, or were trimmed.
    pub appends: u64,
    /// Records that compaction had removed.
    pub compacted: u64,
}

/// Checks the store in `dir` against what was acknowledged.
///
/// # Errors
/// The first thing that is not as it must be.
pub fn check(dir: &Path, acks: &Acks, survived: Survived) -> Result<Checked, String> {
    let said = |what: &str| format!("{what}; {} lines were acknowledged", acks.lines);
    if !dir.exists() && acks.lines <= 1 {
        // The power went before there was a directory.
        return Ok(Checked::default());
    }
    let store = open(dir)?;
    let mut checked = Checked::default();
    let mut logs = HashMap::new();
    for topic in store.topics() {
        let log = Log::read(&topic)?;
        checked.records += log.records;
        logs.insert(topic.name().as_str().to_owned(), log);
    }
    let found = Found { logs: &logs, acks, survived };
    found.topics()?;
    checked.appends = found.acknowledged().map_err(|why| said(&why))?;
    found.together().map_err(|why| said(&why))?;
    checked.compacted = found.compacted().map_err(|why| said(&why))?;
    found.starts()?;
    use_again(dir, store, &logs)?;
    Ok(checked)
}

fn open(dir: &Path) -> Result<Store, String> {
    // Nothing happens by itself while we look.
    let settings = StoreSettings { background: false, ..store_settings() };
    let store = Store::builder().settings(settings).open(dir);
    store.map_err(|error| format!("it does not open: {error}"))
}

/// A part of an append, as it was found in a topic.
#[derive(Clone, Copy, Debug)]
struct Part {
    /// Where its first record is, or was before it was trimmed.
    first: u64,
    /// How many records of it the plan has.
    count: u64,
    /// How many were found.
    found: u64,
}

/// What a topic holds.
#[derive(Debug)]
struct Log {
    start: u64,
    end: u64,
    retention: Retention,
    is_compacted: bool,
    records: u64,
    parts: HashMap<Name, Part>,
    /// Each offset that is there, and the step that it came from, if it was one; only where keys are compacted.
    found: BTreeMap<u64, Option<Name>>,
    /// Highest step of each thread, with its plan.
    last: HashMap<(u16, u8), (Plan, u32)>,
}

impl Log {
    fn read(topic: &Topic) -> Result<Self, String> {
        let name = topic.name().as_str();
        let settings = topic.settings();
        let mut log = Self {
            start: topic.log_start_offset().0,
            end: topic.log_end_offset().0,
            retention: settings.retention,
            is_compacted: settings.compaction.is_some(),
            records: 0,
            parts: HashMap::new(),
            found: BTreeMap::new(),
            last: HashMap::new(),
        };
        if topic.high_watermark().0 != log.end {
            return Err(format!(
                "topic {name}: what was recovered is not all visible: {} of {}",
                topic.high_watermark(),
                log.end
            ));
        }
        let cursor = topic.cursor(Start::Earliest, Visibility::Synced);
        let mut cursor = cursor.map_err(|error| format!("topic {name}: {error}"))?;
        let offsets = log.read_all(name, &mut cursor)?;
        let backwards: Result<Vec<_>, _> =
            topic.read_backwards(Offset::MAX).map(|record| record.map(|record| record.offset().0)).collect();
        let mut backwards = backwards.map_err(|error| format!("topic {name}, backwards: {error}"))?;
        backwards.reverse();
        if backwards != offsets {
            return Err(format!(
                "topic {name} has {} records forwards, {} backwards",
                offsets.len(),
                backwards.len()
            ));
        }
        for &offset in [offsets.first(), offsets.get(offsets.len() / 2), offsets.last()].into_iter().flatten()
        {
            let record = topic.get(Offset(offset)).map_err(|error| format!("topic {name}: {error}"))?;
            if record.is_none_or(|record| record.offset().0 != offset) {
                return Err(format!("topic {name}: offset {offset} is not found"));
            }
        }
        log.records = offsets.len() as u64;
        Ok(log)
    }

    fn read_all(&mut self, name: &str, cursor: &mut Cursor) -> Result<Vec<u64>, String> {
        let at = |offset: u64, what: &str| Err(format!("topic {name}, offset {offset}: {what}"));
        let mut steps = Steps::default();
        let (mut next, mut last_time) = (self.start, 0);
        let mut offsets = Vec::new();
        while let Some(batch) =
            cursor.next_batch().map_err(|error| format!("topic {name}, offset {next}: {error}"))?
        {
            for record in batch.owned() {
                let record = record.map_err(|error| format!("topic {name}, offset {next}: {error}"))?;
                let offset = record.offset().0;
                if offset != next && !(self.is_compacted && offset > next) {
                    return at(offset, &format!("the one before says that {next} comes next"));
                }
                if record.append_time().0 < last_time {
                    return at(offset, "time goes backwards");
                }
                (next, last_time) = (offset + 1, record.append_time().0);
                offsets.push(offset);
                let view = record.view();
                let is_probe = is_probe(view.id, view.payload);
                let planned = view.id.and_then(Plan::of_id);
                if self.is_compacted {
                    self.found.insert(offset, planned.map(|(_, step, ..)| step));
                }
                if is_probe {
                    continue;
                }
                let Some((plan, step, part, index)) = planned else {
                    return at(offset, "nobody ever sent it");
                };
                let Step::Append { parts, .. } = steps.get(plan, step) else {
                    return at(offset, &format!("step {step} sends nothing"));
                };
                let Some((topic, sent)) = parts.get(part) else {
                    return at(offset, &format!("step {step} has no part {part}"));
                };
                if topic != name || sent.get(index).is_none_or(|sent| encoded(sent) != view.as_bytes()) {
                    return at(offset, &format!("it is not what step {step} sent"));
                }
                self.take(name, offset, plan, step, index as u64, sent.len() as u64)?;
            }
        }
        if next != self.end && !self.is_compacted {
            return at(next, &format!("reading ends, but the log ends at {}", self.end));
        }
        Ok(offsets)
    }

    /// Notes a record of a step: record `index` of `count`.
    fn take(
        &mut self,
        topic: &str,
        offset: u64,
        plan: Plan,
        step: Name,
        index: u64,
        count: u64,
    ) -> Result<(), String> {
        let first = offset.checked_sub(index);
        let part =
            self.parts.entry(step).or_insert(Part { first: first.unwrap_or(u64::MAX), count, found: 0 });
        part.found += 1;
        if Some(part.first) != first {
            return Err(format!("topic {topic}, offset {offset}: step {step} is there twice, or torn apart"));
        }
        let (_, last) = self.last.entry((step.run, step.thread)).or_insert((plan, step.step));
        if *last > step.step {
            return Err(format!(
                "topic {topic}, offset {offset}: step {step} comes behind step {last} of the same thread"
            ));
        }
        *last = step.step;
        Ok(())
    }

    /// How many records of `count` at `first` the log must still have.
    fn retained(&self, first: u64, count: u64) -> u64 {
        (first + count).saturating_sub(first.max(self.start))
    }
}

/// The last steps made anew: the records of one follow each other.
#[derive(Default)]
struct Steps {
    last: Option<(Plan, Name, Step)>,
}

impl Steps {
    fn get(&mut self, plan: Plan, name: Name) -> &Step {
        if !matches!(&self.last, Some((p, n, _)) if (*p, *n) == (plan, name)) {
            self.last = None;
        }
        let (_, _, step) = self.last.get_or_insert_with(|| (plan, name, plan.step(name)));
        step
    }
}

fn encoded(record: &Record) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(record.encoded_bytes());
    record.encode(&mut bytes);
    bytes
}

/// What is there against what was said.
struct Found<'a> {
    logs: &'a HashMap<String, Log>,
    acks: &'a Acks,
    survived: Survived,
}

impl Found<'_> {
    fn topics(&self) -> Result<(), String> {
        for topic in &self.acks.created {
            if !self.logs.contains_key(topic) && !self.may_be_deleted(topic) {
                return Err(format!("topic {topic} was created and is not there"));
            }
        }
        for topic in self.logs.keys() {
            if self.acks.deleted.contains(topic) {
                return Err(format!("topic {topic} was deleted and is there"));
            }
            let is_planned = topic == PROBE_TOPIC
                || Scenario::EVERY.iter().any(|scenario| scenario.topics().contains(&topic.as_str()));
            let was_begun = match self.survived {
                Survived::Kill => self.acks.creates.contains(topic),
                Survived::PowerCut => temporary_topic(topic).is_some(),
            };
            if !is_planned && !was_begun {
                return Err(format!("topic {topic} was never created"));
            }
        }
        Ok(())
    }

    fn may_be_deleted(&self, topic: &str) -> bool {
        match self.survived {
            Survived::Kill => self.acks.deletes.contains(topic),
            Survived::PowerCut => temporary_topic(topic).unwrap_or(false),
        }
    }

    /// The highest offset below which the topic may have been trimmed.
    fn trims(&self, topic: &str, log: &Log) -> u64 {
        let begun = self.acks.trims.get(topic).copied().unwrap_or(0);
        let may_be = self.acks.scenario.is_none_or(|scenario| scenario.trims(topic));
        if self.survived == Survived::PowerCut && may_be { log.end } else { begun }
    }

    /// Point 3.
    fn acknowledged(&self) -> Result<u64, String> {
        let mut appends = 0;
        for (&(run, thread), said) in &self.acks.order {
            let surviving = match self.survived {
                Survived::Kill => said.len(),
                Survived::PowerCut => said.iter().rposition(|(_, synced)| *synced).map_or(0, |at| at + 1),
            };
            for &(step, _) in &said[..surviving] {
                let name = Name { run, thread, step };
                let Some(appended) = self.acks.appended.get(&name) else { continue };
                for (topic, first, count) in &appended.parts {
                    self.acknowledged_part(name, topic, *first, *count)?;
                }
                appends += 1;
            }
        }
        // What did not have to survive, and did, is where it was said to be.
        for (topic, log) in self.logs {
            for (name, part) in &log.parts {
                let Some(appended) = self.acks.appended.get(name) else { continue };
                if !appended.parts.iter().any(|(t, first, _)| t == topic && *first == part.first) {
                    return Err(format!(
                        "step {name} is at offset {} of {topic}, not where it was said",
                        part.first
                    ));
                }
            }
        }
        Ok(appends)
    }

    fn acknowledged_part(&self, name: Name, topic: &str, first: u64, count: u64) -> Result<(), String> {
        let Some(log) = self.logs.get(topic) else {
            return match self.may_be_deleted(topic) {
                true => Ok(()),
                false => Err(format!("step {name} was acknowledged, and its topic {topic} is not there")),
            };
        };
        let (wanted, found) = (log.retained(first, count), log.parts.get(&name).map_or(0, |part| part.found));
        // Which records of it may be missing is looked at for the topic as a whole.
        let may_be_removed = log.is_compacted && first + count <= log.end;
        if found == wanted || may_be_removed {
            return Ok(());
        }
        Err(format!(
            "step {name} was acknowledged at offset {first} of {topic}: of {wanted} records {found} are there \
             (the log has {} to {})",
            log.start, log.end
        ))
    }

    /// Point 3 for compacted topics.
    fn compacted(&self) -> Result<u64, String> {
        let mut runs = self.acks.runs.clone();
        // A run may have come further than what it said.
        for (&(run, _), &(plan, _)) in self.logs.values().flat_map(|log| &log.last) {
            runs.insert(run, plan);
        }
        let mut removed = 0;
        for (topic, log) in self.logs.iter().filter(|(_, log)| log.is_compacted) {
            let said = self.acks.appended.iter().filter_map(|(&name, appended)| {
                let (_, first, _) = appended.parts.iter().find(|(said, ..)| said == topic)?;
                Some((name, *first))
            });
            let compacted = Compacted {
                topic,
                start: log.start,
                end: log.end,
                found: &log.found,
                runs: &runs,
                places: &said.chain(log.parts.iter().map(|(&name, part)| (name, part.first))).collect(),
            };
            removed += compacted.check()?;
        }
        Ok(removed)
    }

    /// Point 4, and that appends are whole.
    fn together(&self) -> Result<(), String> {
        let mut last: HashMap<(u16, u8), (Plan, u32)> = HashMap::new();
        for (thread, (plan, step)) in self.logs.values().flat_map(|log| &log.last) {
            let (_, highest) = last.entry(*thread).or_insert((*plan, *step));
            *highest = (*step).max(*highest);
        }
        for ((run, thread), (plan, last)) in last {
            for step in 0..=last {
                let name = Name { run, thread, step };
                if let Some(appended) = self.acks.appended.get(&name) {
                    for (topic, first, count) in &appended.parts {
                        self.acknowledged_part(name, topic, *first, *count)?;
                    }
                } else if let Step::Append { parts, .. } = plan.step(name) {
                    for (topic, records) in parts {
                        self.unacknowledged_part(name, &topic, records.len() as u64, last)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn unacknowledged_part(&self, name: Name, topic: &str, count: u64, last: u32) -> Result<(), String> {
        let missing = |what: &str| {
            Err(format!("step {last} of the thread is there, but of step {name} {what} in topic {topic}"))
        };
        match self.logs.get(topic).map(|log| (log, log.parts.get(&name))) {
            None if self.may_be_deleted(topic) => Ok(()),
            None => missing("nothing is, not even the topic,"),
            Some((log, _)) if log.is_compacted => Ok(()),
            // It may have been trimmed.
            Some((log, None)) if log.start > 0 => Ok(()),
            Some((_, None)) => missing("nothing is"),
            Some((log, Some(part)))
                if part.found == log.retained(part.first, count) && part.count == count =>
            {
                Ok(())
            }
            Some((_, Some(part))) => missing(&format!("only {} of {count} records are", part.found)),
        }
    }

    /// Point 5.
    fn starts(&self) -> Result<(), String> {
        for (topic, log) in self.logs {
            let at = |what: &str| Err(format!("topic {topic} starts at {}, {what}", log.start));
            let trims = self.trims(topic, log);
            let trimmed = self.acks.trimmed.get(topic).copied().unwrap_or(0);
            if log.start > log.end {
                return at(&format!("but ends at {}", log.end));
            }
            if log.start < trimmed {
                return at(&format!("but was trimmed below {trimmed}"));
            }
            if log.start > trims && log.retention == Retention::default() {
                return at(&format!("but was never trimmed beyond {trims}"));
            }
            if let Some(records) = log.retention.records_max
                && log.start > trims
                && log.end - log.start < records
            {
                return at(&format!("ends at {}, but retention keeps {records}", log.end));
            }
        }
        Ok(())
    }
}

/// The topic that only checks write to.
const PROBE_TOPIC: &str = "probe";
const PROBE_MAGIC: u8 = 0xA6;
/// All in one append would be more than it may hold.
const TOPICS_PER_PROBE: usize = 20;

/// A record that no plan has, and that shows whether it is whole.
fn probe(seed: u64) -> Record {
    let mut id = [PROBE_MAGIC; 16];
    id[8..].copy_from_slice(&seed.to_le_bytes());
    Record { id: Some(id), ..Record::new(Rng::new(seed).bytes(100)) }
}

fn is_probe(id: Option<[u8; 16]>, payload: Option<&[u8]>) -> bool {
    id.is_some_and(|id| {
        let seed = u64::from_le_bytes(id[8..].try_into().expect("eight bytes"));
        id[..8] == [PROBE_MAGIC; 8] && payload == Some(&Rng::new(seed).bytes(100)[..])
    })
}

/// Point 6.
fn use_again(dir: &Path, store: Store, logs: &HashMap<String, Log>) -> Result<(), String> {
    let trouble = |error: quipu_storage::Error| format!("it cannot be used again: {error}");
    let ends: u64 = logs.values().map(|log| log.end).sum();
    let seed = Rng::new(ends).next_u64();
    store.topic_or_create(PROBE_TOPIC).map_err(trouble)?;
    let topics = store.topics();
    let mut appended = Vec::new();
    for topics in topics.chunks(TOPICS_PER_PROBE) {
        let mut append = Append::new();
        for topic in topics {
            append = append.records(topic, &[probe(seed), probe(seed + 1)]).map_err(trouble)?;
        }
        appended.extend(store.append(append).map_err(trouble)?);
    }
    let places: Vec<_> = topics
        .iter()
        .zip(&appended)
        .map(|(topic, appended)| (topic.name().as_str().to_owned(), appended.first_offset))
        .collect();
    drop(topics);
    for (name, first) in &places {
        let end = logs.get(name).map_or(first.0, |log| log.end);
        if first.0 != end {
            return Err(format!("topic {name} ends at {end}, and goes on at {first}"));
        }
    }
    let look = |store: &Store| {
        for (name, first) in &places {
            let topic = store.topic(name).map_err(trouble)?;
            let records: Result<Vec<_>, _> = topic.read(*first).map_err(trouble)?.collect();
            let records = records.map_err(trouble)?;
            let expected = [encoded(&probe(seed)), encoded(&probe(seed + 1))];
            if !records.iter().map(quipu_storage::StoredRecord::as_bytes).eq(expected.iter()) {
                return Err(format!("topic {name} does not hold what was just appended at {first}"));
            }
        }
        Ok(())
    };
    look(&store)?;
    store.close().map_err(trouble)?;
    drop(store);
    let store = open(dir)?;
    if !store.recovery().was_clean {
        return Err("it was closed, and that is not noticed".into());
    }
    look(&store)?;
    store.close().map_err(trouble)
}
