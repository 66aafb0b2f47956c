//! What a compacted topic must hold: all that was sent to it, but for what compaction may remove.
//!
//! One thread writes to it, and waits for each append before the next. So the records of a run follow each other without
//! a gap: from the place of one of them follow the places of all, whether they are still there or not.
//!
//! 1. Find out which record every offset of the log was given to.
//! 2. The latest record of each key is there, unless it is a tombstone.
//! 3. Of a key whose last tombstone is gone nothing older is there: it would be taken for the latest.
//! 4. Nothing else is missing than tombstones, and records whose key has a later one.

use std::collections::{BTreeMap, HashMap};

use super::Name;
use super::plan::{Plan, Step};

/// A compacted topic, and what is known about it.
#[derive(Debug)]
pub(super) struct Compacted<'a> {
    pub(super) topic: &'a str,
    pub(super) start: u64,
    pub(super) end: u64,
    /// The offsets that are there, and the step that each came from; `None` for what a check appended.
    pub(super) found: &'a BTreeMap<u64, Option<Name>>,
    /// The plan of each run.
    pub(super) runs: &'a BTreeMap<u16, Plan>,
    /// Where the first record of a step is or was: as it was found, or acknowledged.
    pub(super) places: &'a BTreeMap<Name, u64>,
}

/// A record that an offset was given to.
#[derive(Debug)]
struct Sent {
    step: Name,
    key: Option<Vec<u8>>,
    is_tombstone: bool,
}

impl Compacted<'_> {
    /// Answers how many records compaction has removed.
    pub(super) fn check(&self) -> Result<u64, String> {
        let (sent, is_complete) = self.sent()?;
        let mut latest: HashMap<&[u8], (u64, bool)> = HashMap::new();
        for (offset, sent) in &sent {
            if let Some(key) = &sent.key {
                latest.insert(key, (*offset, sent.is_tombstone));
            }
        }
        let mut removed = 0;
        for offset in self.start..self.end {
            let is_there = self.found.contains_key(&offset);
            let Some(Sent { step, key, is_tombstone }) = sent.get(&offset) else {
                if !is_there && is_complete {
                    return Err(format!("{}: offset {offset} is missing, and nobody sent it", self.topic));
                }
                continue;
            };
            let at = |what: &str| Err(format!("{}: record {offset} of step {step} {what}", self.topic));
            let last = key.as_deref().and_then(|key| latest.get(key).copied());
            match last {
                _ if !is_there => removed += 1,
                Some((last, true)) if last > offset && !self.found.contains_key(&last) => {
                    return at(&format!("is there again: the tombstone at {last} is gone before it"));
                }
                _ => {}
            }
            let may_go = last.is_some_and(|(last, _)| *is_tombstone || last > offset);
            if !is_there && !may_go {
                return at(if key.is_some() { "is the last of its key, and missing" } else { "is missing" });
            }
        }
        Ok(removed)
    }

    /// Which records the offsets were given to, and whether that is known of every run.
    fn sent(&self) -> Result<(BTreeMap<u64, Sent>, bool), String> {
        let bases = self.runs.iter().map(|(&run, &plan)| Ok((run, plan, self.base(run, plan)?)));
        let bases: Vec<_> = bases.collect::<Result<_, String>>()?;
        let mut sent = BTreeMap::new();
        for (number, &(run, plan, base)) in bases.iter().enumerate() {
            let Some(base) = base else { continue };
            // This run ended before the next one began.
            let end = bases[number + 1..].iter().find_map(|(_, _, base)| *base).unwrap_or(self.end);
            let last_known =
                self.places.keys().rev().find(|name| name.run == run).map_or(0, |name| name.step);
            let mut next = base;
            for step in 0.. {
                let name = Name { run, thread: 0, step };
                let records = self.records(plan, name);
                let offsets = next..next + records.len() as u64;
                let is_taken = self.found.range(offsets.clone()).any(|(_, found)| *found != Some(name));
                if offsets.end > end.min(self.end) || is_taken {
                    if step <= last_known && offsets.end <= self.end {
                        return Err(format!("{}: {offsets:?} is not step {name} alone", self.topic));
                    }
                    break;
                }
                next = offsets.end;
                sent.extend(offsets.zip(records));
                if next == end && step >= last_known {
                    break;
                }
            }
        }
        Ok((sent, bases.iter().all(|(_, _, base)| base.is_some())))
    }

    /// The offset at which a run began, if anything of it is known.
    fn base(&self, run: u16, plan: Plan) -> Result<Option<u64>, String> {
        let first = Name { run, thread: 0, step: 0 };
        let places: Vec<_> = self.places.range(first..).take_while(|(name, _)| name.run == run).collect();
        let mut base = (run == 0).then_some(0);
        let (mut before, mut step) = (0, 0);
        for (name, &place) in places {
            while step < name.step {
                before += self.records(plan, Name { step, ..first }).len() as u64;
                step += 1;
            }
            if name.thread != 0 || Some(place) != base.map(|base| base + before) && base.is_some() {
                return Err(format!(
                    "{}: step {name} is at {place}, not {before} records behind the start of its run at {base:?}",
                    self.topic
                ));
            }
            base = Some(place.checked_sub(before).ok_or_else(|| {
                format!("{}: step {name} is at {place}, before which {before} were sent", self.topic)
            })?);
        }
        Ok(base)
    }

    /// What a step sends to the topic.
    fn records(&self, plan: Plan, step: Name) -> Vec<Sent> {
        let Step::Append { parts, .. } = plan.step(step) else { return Vec::new() };
        let Some((_, records)) = parts.into_iter().find(|(topic, _)| topic == self.topic) else {
            return Vec::new();
        };
        let sent = records.into_iter().map(|record| Sent {
            step,
            is_tombstone: record.payload.is_none(),
            key: record.key,
        });
        sent.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::Scenario;

    const PLAN: Plan = Plan { scenario: Scenario::Compaction, seed: 4 };
    const STEPS: u32 = 60;

    fn looked_at(
        found: &BTreeMap<u64, Option<Name>>,
        places: &BTreeMap<Name, u64>,
        end: u64,
    ) -> Result<u64, String> {
        let runs = BTreeMap::from([(0, PLAN)]);
        Compacted { topic: "keys", start: 0, end, found, runs: &runs, places }.check()
    }

    /// All that the plan sends: which record each offset has, and where each step is.
    fn whole() -> (BTreeMap<u64, Sent>, BTreeMap<Name, u64>) {
        let none = (BTreeMap::new(), BTreeMap::new());
        let empty = Compacted {
            topic: "keys",
            start: 0,
            end: 0,
            found: &none.0,
            runs: &BTreeMap::new(),
            places: &none.1,
        };
        let (mut sent, mut places) = (BTreeMap::new(), BTreeMap::new());
        for step in 0..STEPS {
            let name = Name { run: 0, thread: 0, step };
            let records = empty.records(PLAN, name);
            if !records.is_empty() {
                places.insert(name, sent.len() as u64);
            }
            for record in records {
                sent.insert(sent.len() as u64, record);
            }
        }
        (sent, places)
    }

    #[test]
    fn each_record_that_may_go_may_and_no_other() {
        let (sent, places) = whole();
        let end = sent.len() as u64;
        let found: BTreeMap<_, _> = sent.iter().map(|(&offset, sent)| (offset, Some(sent.step))).collect();
        assert_eq!(looked_at(&found, &places, end), Ok(0));
        let key = |offset: u64| sent[&offset].key.clone().unwrap();
        let last_of = |offset: u64| (offset..end).rev().find(|&other| key(other) == key(offset)).unwrap();
        let (mut superseded, mut last, mut tombstones) = (0, 0, 0);
        for offset in 0..end {
            let mut found = found.clone();
            found.remove(&offset);
            let first_of_key = (0..offset).all(|other| key(other) != key(offset));
            let looked_at = |found: &_| looked_at(found, &places, end);
            match (last_of(offset) == offset, sent[&offset].is_tombstone) {
                (false, _) => {
                    superseded += 1;
                    assert_eq!(looked_at(&found), Ok(1));
                }
                (true, false) => {
                    last += 1;
                    let why = looked_at(&found).unwrap_err();
                    assert!(why.contains("the last of its key, and missing"), "{why}");
                }
                (true, true) => {
                    tombstones += 1;
                    if !first_of_key {
                        let why = looked_at(&found).unwrap_err();
                        assert!(why.contains("is there again"), "{why}");
                    }
                    found.retain(|&other, _| key(other) != key(offset));
                    assert_eq!(looked_at(&found), Ok(end - found.len() as u64));
                }
            }
        }
        assert!(superseded > 50 && last > 5 && tombstones > 0, "{superseded} {last} {tombstones}");
    }

    #[test]
    fn records_whose_append_nobody_heard_of_are_known_by_their_place() {
        let (sent, places) = whole();
        let end = sent.len() as u64;
        let known: BTreeMap<_, _> = places.into_iter().filter(|(name, _)| name.step % 5 == 0).collect();
        assert_eq!(
            looked_at(&BTreeMap::new(), &known, end).map_err(|why| why.contains("the last of its key")),
            Err(true)
        );
        let found: BTreeMap<_, _> = sent.iter().map(|(&offset, sent)| (offset, Some(sent.step))).collect();
        assert_eq!(looked_at(&found, &known, end), Ok(0));
    }

    #[test]
    fn a_step_at_another_place_than_its_run_gives_it_is_noticed() {
        let (sent, mut places) = whole();
        let end = sent.len() as u64;
        let found: BTreeMap<_, _> = sent.iter().map(|(&offset, sent)| (offset, Some(sent.step))).collect();
        *places.values_mut().nth(7).unwrap() += 1;
        assert!(looked_at(&found, &places, end).is_err());
    }
}
