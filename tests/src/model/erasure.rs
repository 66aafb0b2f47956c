//! Erasure: records whose payloads are sealed, and keys that are destroyed.
//!
//! What was destroyed stays so, whatever a power cut takes away: it is no part of the order of events, and once told it is
//! never taken back. What is in doubt is a destruction during which the process died: it happened as a whole or not at all,
//! which the store tells when it is opened.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use quipu_storage::{Append, CompactionReport, Durability, Error, Record, Store};

use super::run::{MASTER_KEY, Run};
use super::{Check, Ending, Event, Expected, ModelTopic, State, verify};
use crate::ensure;
use crate::rng::Rng;

const SUBJECTS: u64 = 4;
/// How many operations of the disk a destruction takes at most, about.
const OPERATIONS: u64 = 16;

/// Chooses, by numbers of its own, so that other choices are what they are without it.
#[derive(Debug)]
pub(super) struct Erasing {
    pub(super) rng: Rng,
    /// Keys whose destruction the process did not survive.
    doubted: Vec<String>,
}

impl Erasing {
    pub(super) fn new(rng: Rng) -> Self {
        Self { rng, doubted: Vec::new() }
    }
}

/// A record with a payload that is sealed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    erasure_key: String,
    /// Its encoding without the payload.
    rest: Vec<u8>,
}

impl Sealed {
    /// Nothing if the record has no payload or names no erasure key.
    pub(super) fn new(record: &Record) -> Option<Self> {
        let erasure_key = record.erasure_key.clone().filter(|_| record.payload.is_some())?;
        let mut rest = Vec::new();
        Record { payload: None, ..record.clone() }.encode(&mut rest);
        Some(Self { erasure_key, rest })
    }
}

/// What a topic's readers get of sealed payloads.
#[derive(Clone, Debug, Default)]
pub struct Erasure {
    /// Erasure keys that were destroyed.
    erased: Arc<BTreeSet<String>>,
    /// Offsets of records that compaction has taken the sealed bytes from.
    reclaimed: BTreeSet<u64>,
    /// Whether the store is open without its master key.
    is_locked: bool,
}

impl Erasure {
    pub(super) fn of(state: &State) -> Self {
        Self { erased: Arc::clone(&state.erased), ..Self::default() }
    }
}

impl Expected {
    fn is_erased(&self, erased: &BTreeSet<String>) -> bool {
        self.sealed.as_ref().is_some_and(|sealed| erased.contains(&sealed.erasure_key))
    }
}

impl ModelTopic {
    /// The encoding in which a reader gets the record at `offset`.
    pub fn shown(&self, offset: u64) -> Cow<'_, [u8]> {
        let record = self.record(offset);
        let Some(sealed) = &record.sealed else { return Cow::Borrowed(&record.bytes) };
        let Erasure { erased, reclaimed, is_locked } = &self.erasure;
        let redaction = match (is_locked, reclaimed.contains(&offset)) {
            (false, _) if !erased.contains(&sealed.erasure_key) => return Cow::Borrowed(&record.bytes),
            // Which keys were destroyed only the master key tells.
            (true, false) => 2,
            _ => 1,
        };
        Cow::Owned([&sealed.rest[..], &[10 << 3, redaction]].concat())
    }

    /// Records with erased payloads that compaction takes the sealed bytes from, if they are not to go.
    fn reclaimable(&self, going: &[u64], active_base: u64) -> Vec<u64> {
        let is_reclaimable = |offset: &u64| {
            let is_there = !self.gone.contains(offset) && going.binary_search(offset).is_err();
            let is_sealed = !self.erasure.reclaimed.contains(offset);
            is_there && is_sealed && self.record(*offset).is_erased(&self.erasure.erased)
        };
        (self.log_start..self.log_end().min(active_base)).filter(is_reclaimable).collect()
    }
}

impl State {
    pub(super) fn erase(&mut self, erasure_keys: &[String]) {
        Arc::make_mut(&mut self.erased).extend(erasure_keys.iter().cloned());
        self.topics.values_mut().for_each(|topic| topic.erasure.erased = Arc::clone(&self.erased));
    }

    pub(super) fn reclaim(&mut self, name: &str, offsets: &[u64]) {
        if let Some(topic) = self.topics.get_mut(name) {
            topic.erasure.reclaimed.extend(offsets);
        }
    }

    /// What readers get who have no master key.
    fn without_key(&self) -> Self {
        let mut state = self.clone();
        state.topics.values_mut().for_each(|topic| topic.erasure.is_locked = true);
        state
    }
}

impl Run {
    /// A key of the next record, if it gets one: a destroyed one takes no record again, so there is a next one of each
    /// subject.
    pub(super) fn any_erasure_key(&mut self) -> Option<String> {
        let erased = &self.model.current.erased;
        let rng = &mut self.erasing.as_mut()?.rng;
        rng.chance(50).then(|| living_key(rng, erased))
    }

    /// Now and then keys are destroyed.
    pub(super) fn erase_some(&mut self) -> Check {
        let erased = Arc::clone(&self.model.current.erased);
        let Some(Erasing { rng, .. }) = &mut self.erasing else { return Ok(()) };
        if !rng.chance(4) {
            return Ok(());
        }
        if rng.chance(20) {
            return self.append_erased();
        }
        let count = rng.within(1..4);
        let mut names: Vec<_> = (0..count).map(|_| living_key(rng, &erased)).collect();
        if let Some(again) = erased.first().filter(|_| rng.chance(20)) {
            names.push(again.clone());
        }
        if rng.chance(25) { self.erase_and_die(names) } else { self.erase(names) }
    }

    fn erase(&mut self, names: Vec<String>) -> Check {
        let asked: BTreeSet<_> = names.iter().map(String::as_str).collect();
        let before = asked.iter().filter(|name| self.model.current.erased.contains(**name)).count() as u64;
        let slices: Vec<_> = names.iter().map(String::as_str).collect();
        let report = self.store().erase(&slices).map_err(|error| format!("erase {names:?}: {error}"))?;
        ensure!(
            report.destroyed == asked.len() as u64 - before && report.destroyed_before == before,
            "{before} of {names:?} were destroyed before: {report:?}"
        );
        ensure!(report.is_old_file_overwritten, "an old master key is left: {report:?}");
        self.note_erased(names)
    }

    /// They are destroyed, which is durable, and so is all before.
    fn note_erased(&mut self, names: Vec<String>) -> Check {
        self.model.push(Event::Erased { erasure_keys: names });
        self.model.sync();
        self.coverage.erasures += 1;
        let erased = Arc::clone(&self.model.current.erased);
        let count = self.store().stats().erasure_keys_destroyed;
        ensure!(count == Some(erased.len() as u64), "{count:?} keys are destroyed, not {}", erased.len());
        for name in &*erased {
            ensure!(self.is_erased(name)?, "{name} is destroyed, and can still be had");
        }
        // What is readable at once is looked at at once, in the tails as well as in segments.
        verify::store(self.store(), &self.model.current).map_err(|error| format!("after erasing: {error}"))
    }

    fn is_erased(&self, name: &str) -> Check<bool> {
        self.store().is_erased(name).map_err(|error| format!("is {name} erased: {error}"))
    }

    /// The process is killed, or the power goes, within a destruction.
    fn erase_and_die(&mut self, names: Vec<String>) -> Check {
        let Some(Erasing { rng, doubted }) = &mut self.erasing else { return Ok(()) };
        let number = self.sim.ops() + rng.within(1..OPERATIONS);
        let ending = *rng.choose(&[Ending::Killed, Ending::PowerCut, Ending::PowerCut]);
        doubted.clone_from(&names);
        self.sim.crash_at(number);
        let slices: Vec<_> = names.iter().map(String::as_str).collect();
        self.store().erase(&slices).map_err(|error| format!("erase {names:?}: {error}"))?;
        let before = self.sim.take_snapshots().pop().map(|(_, before)| before);
        // It may have taken fewer operations.
        let left = before.unwrap_or_else(|| self.sim.after_kill());
        self.coverage.erasures_cut_off += 1;
        self.die(&left, ending)
    }

    /// Finds out whether the keys are destroyed that somebody was about to destroy when the process died.
    pub(super) fn settle_erasure(&mut self) -> Check {
        let Some(erasing) = &mut self.erasing else { return Ok(()) };
        let names = std::mem::take(&mut erasing.doubted);
        let new: Vec<_> =
            names.iter().filter(|name| !self.model.current.erased.contains(*name)).cloned().collect();
        let Some(first) = new.first() else { return Ok(()) };
        let is_erased = self.is_erased(first)?;
        for name in &new {
            ensure!(self.is_erased(name)? == is_erased, "half a destruction of {new:?}: {name}");
        }
        if !is_erased {
            return Ok(());
        }
        self.coverage.erasures_kept += 1;
        self.note_erased(new)
    }

    /// A destroyed key takes no record.
    fn append_erased(&mut self) -> Check {
        let erased: Vec<_> = self.model.current.erased.iter().cloned().collect();
        let names: Vec<_> = self.model.current.topics.keys().cloned().collect();
        let Some(Erasing { rng, .. }) = &mut self.erasing else { return Ok(()) };
        if erased.is_empty() || names.is_empty() {
            return Ok(());
        }
        let (name, key) = (rng.choose(&names).clone(), rng.choose(&erased).clone());
        let topic = self.topic(&name)?;
        let records = [Record::new("fine"), Record::new("late").with_erasure_key(&key)];
        let append = Append::new().durability(Durability::Written).records(&topic, &records);
        let outcome = append.and_then(|append| self.store().append(append));
        let is_told = matches!(
            &outcome,
            Err(Error::ErasureKeyDestroyed { index: 1, erasure_key }) if *erasure_key == key
        );
        ensure!(is_told, "{name}: a record was sealed with {key}: {outcome:?}");
        self.coverage.destroyed_keys_refused += 1;
        Ok(())
    }

    /// What a run of compaction says of erased payloads: `going` are the records that go for their keys' sake.
    pub(super) fn compacted_erased(
        &mut self,
        name: &str,
        report: &CompactionReport,
        going: &[u64],
        active_base: u64,
    ) -> Check {
        let offsets = self.model.current.topics[name].reclaimable(going, active_base);
        ensure!(
            report.payloads_erased == offsets.len() as u64,
            "{name}: compaction took {} payloads out, not {}: {report:?}",
            report.payloads_erased,
            offsets.len()
        );
        if !report.is_dry_run && !offsets.is_empty() {
            self.coverage.reclaimed += offsets.len() as u64;
            self.model.push(Event::Reclaimed { name: name.to_owned(), offsets });
            self.model.sync();
        }
        Ok(())
    }

    /// Now and then a store that was closed is opened without its master key, and closed again.
    pub(super) fn look_without_key(&mut self) -> Check {
        if !self.erasing.as_mut().is_some_and(|erasing| erasing.rng.chance(30)) {
            return Ok(());
        }
        let store = self.builder(false).open(super::run::STORE).map_err(|error| error.to_string())?;
        self.model.settle(&store, Ending::Closed)?;
        verify::store(&store, &self.model.current.without_key())?;
        self.seal_without_key(&store)?;
        store.close().map_err(|error| format!("close: {error}"))?;
        self.coverage.without_key += 1;
        Ok(())
    }

    fn seal_without_key(&self, store: &Store) -> Check {
        let Some(topic) = store.topics().into_iter().next() else { return Ok(()) };
        let outcome = topic.append(&[Record::new("late").with_erasure_key("anybody")]);
        ensure!(matches!(outcome, Err(Error::MasterKeyMissing)), "sealed without {MASTER_KEY}: {outcome:?}");
        Ok(())
    }
}

/// The first key of a subject that is not destroyed.
fn living_key(rng: &mut Rng, erased: &BTreeSet<String>) -> String {
    let subject = rng.below(SUBJECTS);
    let mut keys = (0_u64..).map(|number| format!("subject {subject}/{number}"));
    keys.find(|key| !erased.contains(key)).expect("there are more keys than were destroyed")
}
