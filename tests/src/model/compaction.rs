//! What compaction may take out of a topic, and must: nothing else may ever be missing.
//!
//! The rule is that of [`Compaction`], told once more: for each key, with what was not compacted away before. Where
//! records may go at all ends with the segment being written, which the names of the topic's files tell.

use std::collections::BTreeMap;
use std::time::Duration;

use quipu_storage::{
    CompactOptions, Compaction, CompactionControl, Error, ErrorKind, Offset, RecordView, Storage, Topic,
};

use super::run::{Run, STORE};
use super::{Check, Event, ModelTopic};
use crate::ensure;
use crate::rng::Rng;
use crate::sim::SimDisk;

/// Where the segment being written begins, or the end if there is none. Right after a checkpoint everything is in
/// segments.
pub fn active_base(sim: &SimDisk, topic: &Topic) -> u64 {
    let dir = std::path::Path::new(STORE).join("topics").join(topic.stats().id.to_string());
    let base = |path: &std::path::Path| {
        path.file_name()?.to_str()?.strip_suffix(".segment")?.split('-').next()?.parse().ok()
    };
    let files = sim.files();
    files.keys().filter(|path| path.starts_with(&dir)).filter_map(|path| base(path)).max().unwrap_or(u64::MAX)
}

/// The offsets that go when the topic is compacted at this time.
pub fn goes(topic: &ModelTopic, rules: &Compaction, now: u64, active_base: u64) -> Vec<u64> {
    struct Version {
        offset: u64,
        age: u64,
        is_tombstone: bool,
    }
    let mut newest_first: BTreeMap<Vec<u8>, Vec<Version>> = BTreeMap::new();
    for offset in (topic.log_start..topic.log_end()).rev().filter(|offset| !topic.gone.contains(offset)) {
        let record = topic.record(offset);
        let view = RecordView::decode(&record.bytes).expect("the model encoded it");
        let Some(key) = view.key else { continue };
        // Unknown only where it does not matter: those rules have no ages.
        let age = now.saturating_sub(record.time.unwrap_or(now));
        let version = Version { offset, age, is_tombstone: view.payload.is_none() };
        newest_first.entry(key.to_vec()).or_default().push(version);
    }
    let is_older = |age: u64, bound: Duration| u128::from(age) >= bound.as_millis();
    let mut going = Vec::new();
    for versions in newest_first.values() {
        let may_go = |version: &Version| version.offset < active_base && is_older(version.age, rules.lag_min);
        let latest = &versions[0];
        let is_deleted =
            latest.is_tombstone && may_go(latest) && is_older(latest.age, rules.tombstone_age_max);
        let newer_wanted = rules.records_per_key as usize;
        let of_key = versions
            .iter()
            .enumerate()
            .filter(|(newer, version)| may_go(version) && (is_deleted || *newer >= newer_wanted));
        going.extend(of_key.map(|(_, version)| version.offset));
    }
    going.sort_unstable();
    going
}

/// A run of compaction was cut off: it has replaced segments from the oldest on, so what went comes before what stayed.
pub(super) fn settle(topic: &Topic, expected: &mut ModelTopic) -> Check {
    let name = topic.name();
    let mut stayed = None;
    for offset in std::mem::take(&mut expected.going) {
        if offset < expected.log_start {
            continue;
        }
        let found = topic.get(Offset(offset)).map_err(|error| format!("{name}: get {offset}: {error}"))?;
        match (found, stayed) {
            (Some(_), _) => stayed = Some(offset),
            (None, None) => drop(expected.gone.insert(offset)),
            (None, Some(older)) => {
                return Err(format!("{name}: compaction took {offset} out before {older}"));
            }
        }
    }
    Ok(())
}

/// Compaction's part in a random sequence, with a source of chance of its own: a sequence without it is as it was
/// before there was one.
#[derive(Debug)]
pub(super) struct Chance(pub(super) Rng);

impl Chance {
    pub(super) fn is_due(&mut self) -> bool {
        self.0.below(1000) < 30
    }

    pub(super) fn any_rules(&mut self) -> Compaction {
        let millis = |millis: u64| Duration::from_millis(millis);
        Compaction {
            records_per_key: *self.0.choose(&[1, 1, 2, 3]),
            lag_min: millis(*self.0.choose(&[0, 0, 500, 4000])),
            tombstone_age_max: millis(*self.0.choose(&[0, 1000, 20_000])),
            bytes_per_second_max: 0,
        }
    }

    /// For a topic's settings.
    pub(super) fn any_setting(&mut self, storage: Storage) -> Option<Compaction> {
        let rules = self.any_rules();
        (self.0.chance(60) && storage == Storage::Disk).then_some(rules)
    }
}

impl Run {
    /// Compacts a topic, or only says what would go, or is cancelled before it begins.
    pub(super) fn compact(&mut self) -> Check {
        let names: Vec<_> = self.model.current.topics.keys().cloned().collect();
        let Some(chance) = self.compaction.as_mut().filter(|_| !names.is_empty()) else { return Ok(()) };
        let name = chance.0.choose(&names).clone();
        let options = CompactOptions {
            dry_run: chance.0.chance(10),
            compaction: chance.0.chance(30).then(|| chance.any_rules()),
            // So few that a topic has to be read several times.
            keys_max: *chance.0.choose(&[16, 1000]),
            ..CompactOptions::default()
        };
        let erased_only = self.erasing.as_mut().is_some_and(|erasing| erasing.rng.chance(40));
        let options = CompactOptions { erased_only, ..options };
        let is_cancelled = chance.0.chance(5);
        let topic = self.store().topic(&name).map_err(|error| error.to_string())?;
        let expected = &self.model.current.topics[&name];
        let rules = options.compaction.or(expected.settings.compaction);
        let rules = rules.or(erased_only.then(Compaction::default)).filter(|_| !expected.is_in_memory());
        let control = CompactionControl::new();
        if is_cancelled {
            control.cancel();
        }
        let outcome = topic.compact_with(&options, &control);
        let Some(rules) = rules else {
            let kind = outcome.as_ref().err().map(Error::kind);
            ensure!(kind == Some(ErrorKind::Invalid), "{name}: compacted without rules: {outcome:?}");
            return Ok(());
        };
        // It begins with a checkpoint.
        self.model.sync();
        let expected = &self.model.current.topics[&name];
        let report = match outcome {
            Err(Error::Cancelled { .. }) if is_cancelled => return Ok(()),
            // There was nothing to do before it looked whether to go on.
            Ok(report) => report,
            Err(error) => return Err(format!("{name}: compact: {error}")),
        };
        ensure!(report.is_complete && report.damaged.is_empty(), "{name}: {report:?}");
        let active_base = active_base(&self.sim, &topic);
        let offsets = match erased_only {
            true => Vec::new(),
            false => goes(expected, &rules, self.clock.millis(), active_base),
        };
        let removed = report.records_removed.superseded + report.records_removed.tombstone_expired;
        ensure!(
            removed == offsets.len() as u64,
            "{name}: compaction took {removed} records out, not {} by {rules:?}: {report:?}",
            offsets.len()
        );
        self.compacted_erased(&name, &report, &offsets, active_base)?;
        if options.dry_run {
            self.coverage.dry_runs += 1;
            return Ok(());
        }
        self.coverage.compactions += u64::from(report.segments_replaced > 0);
        self.coverage.compacted += removed;
        self.coverage.tombstones += report.records_removed.tombstone_expired;
        self.model.push(Event::Compacting { name: name.clone(), offsets });
        self.model.push(Event::Compacted { name });
        self.model.sync();
        Ok(())
    }
}
