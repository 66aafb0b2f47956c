//! Snapshots of streams: they are put and looked for, whatever becomes of the topic that has them.
//!
//! That topic is one like any other to the model, so others append to it, trim it, compact it and delete it. What must be
//! found is told once more: the newest of its records with the key, the uid and a revision within the bound.

use quipu_storage::{Durability, Error, Record, RecordView, Revision, SnapshotPut, Topic, Uid};

use super::run::Run;
use super::{Check, Event, State, expected};
use crate::ensure;
use crate::rng::Rng;

const SUFFIX: &str = ".snapshots";
const REVISION: &str = "quipu-snapshot-revision";
const TOPIC: &str = "quipu-snapshot-topic";
const KEYS: u64 = 4;

/// Chooses, by numbers of its own, so that other choices are what they are without it.
#[derive(Debug)]
pub(super) struct Snapshots(pub(super) Rng);

fn key(number: u64) -> String {
    format!("key {number}")
}

fn marked(snapshot: &Record, revision: u64, topic: Uid) -> Record {
    snapshot.clone().with_header(REVISION, revision.to_string()).with_header(TOPIC, topic.to_string())
}

/// Whether a record is a snapshot of that stream; the revision.
fn revision_of(record: &RecordView<'_>, key: &str, topic: Uid) -> Option<u64> {
    let header = |wanted| record.headers().find(|(name, _)| *name == wanted).map(|(_, value)| value);
    if record.key != Some(key.as_bytes()) || header(TOPIC) != Some(topic.to_string().as_bytes()) {
        return None;
    }
    std::str::from_utf8(header(REVISION)?).ok()?.parse().ok()
}

impl State {
    /// The newest snapshot of a stream that covers nothing behind `up_to`: its revision and its encoding.
    fn snapshot(&self, name: &str, key: &str, topic: Uid, up_to: u64) -> Option<(u64, Vec<u8>)> {
        let snapshots = self.topics.get(&format!("{name}{SUFFIX}"))?;
        let there = (snapshots.log_start..snapshots.log_end()).rev();
        there.filter(|offset| !snapshots.gone.contains(offset)).find_map(|offset| {
            let bytes = &snapshots.record(offset).bytes;
            let view = RecordView::decode(bytes).expect("the model encoded it");
            let revision = revision_of(&view, key, topic).filter(|revision| *revision <= up_to)?;
            Some((revision, bytes.clone()))
        })
    }

    /// The next revision of a stream. Not of a topic in memory, which may have begun anew.
    fn next_revision(&self, name: &str, key: &str) -> u64 {
        self.topics[name].streams().get(key.as_bytes()).map_or(0, |offsets| offsets.len() as u64)
    }
}

impl Run {
    /// Now and then one is put, or looked for.
    pub(super) fn snapshot_some(&mut self) -> Check {
        let names: Vec<_> = self.model.current.topics.keys().cloned().collect();
        let Some(Snapshots(rng)) = self.snapshots.as_mut().filter(|_| !names.is_empty()) else {
            return Ok(());
        };
        if !rng.chance(15) {
            return Ok(());
        }
        let (name, key) = (rng.choose(&names).clone(), key(rng.below(KEYS)));
        let is_put = rng.chance(60);
        // Nothing else is found than what is synced.
        if !is_put {
            self.store().sync().map_err(|error| format!("sync: {error}"))?;
            self.model.sync();
            return self.find_snapshot(&name, &key);
        }
        self.put_snapshot(&name, &key).map_err(|error| format!("snapshot of {key} of {name}: {error}"))
    }

    /// All that there are, right after an opening, when everything is synced.
    pub(super) fn find_snapshots(&mut self) -> Check {
        if self.snapshots.is_none() {
            return Ok(());
        }
        let names: Vec<_> = self.model.current.topics.keys().cloned().collect();
        names
            .iter()
            .try_for_each(|name| (0..KEYS).try_for_each(|number| self.find_snapshot(name, &key(number))))
    }

    pub(super) fn topic(&self, name: &str) -> Check<Topic> {
        self.store().topic(name).map_err(|error| format!("{name}: {error}"))
    }

    fn put_snapshot(&mut self, name: &str, key: &str) -> Check {
        let topic = self.topic(name)?;
        let next = self.model.current.next_revision(name, key);
        let Some(Snapshots(rng)) = &mut self.snapshots else { return Ok(()) };
        // Most are near the end, some beyond.
        let revision =
            if rng.chance(80) { (next + 1).saturating_sub(rng.below(4)) } else { rng.below(next + 2) };
        let durability = *rng.choose(&[Durability::Synced, Durability::Written]);
        let bytes = rng.index(300);
        let snapshot = Record::keyed(key, rng.bytes(bytes)).with_type("state");
        let outcome = topic.put_snapshot(Revision(revision), &snapshot, durability);
        let state = &self.model.current;
        let companion = format!("{name}{SUFFIX}");
        if state.topics[name].is_in_memory() {
            let is_refused =
                matches!(outcome, Err(Error::SnapshotsRefused { .. } | Error::RevisionUnwritten { .. }));
            ensure!(is_refused, "of a topic in memory: {outcome:?}");
            return Ok(());
        }
        if revision >= next {
            let is_told = matches!(
                outcome,
                Err(Error::RevisionUnwritten { next_revision, .. }) if next_revision.0 == next
            );
            ensure!(is_told, "revision {revision} of {next}: {outcome:?}");
            return Ok(());
        }
        let is_anothers =
            state.topics.get(&companion).is_some_and(|topic| topic.settings.compaction.is_none());
        if name.ends_with(SUFFIX) || is_anothers {
            ensure!(matches!(outcome, Err(Error::SnapshotsRefused { .. })), "not refused: {outcome:?}");
            return Ok(());
        }
        let put = outcome.map_err(|error| error.to_string())?;
        let latest = state.snapshot(name, key, topic.uid(), u64::MAX).map(|(latest, _)| latest);
        if let Some(latest) = latest.filter(|latest| *latest > revision) {
            ensure!(put == SnapshotPut::Superseded(Revision(latest)), "{revision} behind {latest}: {put:?}");
            return Ok(());
        }
        if !state.topics.contains_key(&companion) {
            let made = self.topic(&companion)?;
            let (uid, settings) = (Some(made.uid()), made.settings());
            self.model.push(Event::Created { name: companion.clone(), uid, settings });
            self.model.sync();
            self.coverage.created += 1;
        }
        let before = &self.model.current.topics[&companion];
        let SnapshotPut::Stored(offset) = put else { return Err(format!("{revision}: {put:?}")) };
        ensure!(offset.0 == before.log_end(), "stored at {offset}, {} was next", before.log_end());
        let time = before.last_time().map(|last| last.max(self.clock.millis()));
        let records = expected(&[marked(&snapshot, revision, topic.uid())], time);
        let number = self.model.push(Event::Appended { parts: vec![(companion, records)] });
        match durability {
            Durability::Synced => self.model.sync(),
            _ => self.model.write_before(number + 1),
        }
        self.coverage.snapshots += 1;
        Ok(())
    }

    fn find_snapshot(&mut self, name: &str, key: &str) -> Check {
        let topic = self.topic(name)?;
        let next = self.model.current.next_revision(name, key);
        let Some(Snapshots(rng)) = &mut self.snapshots else { return Ok(()) };
        let bound = rng.chance(50).then(|| rng.below(next + 2));
        let found = topic.snapshot(key, bound.map(Revision)).map_err(|error| error.to_string())?;
        let found = found.map(|found| (found.revision.0, found.record.as_bytes().to_vec()));
        let wanted = match next.checked_sub(1) {
            Some(last) if !self.model.current.topics[name].is_in_memory() => {
                let up_to = bound.map_or(last, |bound| bound.min(last));
                self.model.current.snapshot(name, key, topic.uid(), up_to)
            }
            _ => None,
        };
        ensure!(
            found == wanted,
            "the snapshot of {key} of {name} up to {bound:?} is {:?}, not {:?}",
            found.map(|found| found.0),
            wanted.map(|wanted| wanted.0)
        );
        self.coverage.snapshots_found += u64::from(found.is_some());
        Ok(())
    }
}
