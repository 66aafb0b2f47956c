//! Appends under conditions: the model judges each condition as well, also of records that were trimmed or compacted.

use quipu_storage::{
    Append, Condition, Durability, Error, ExpectedRevision, Filter, Offset, Record, RecordView, Revision,
};

use super::run::Run;
use super::{Check, ModelTopic};
use crate::ensure;
use crate::rng::Rng;

/// The random numbers of a sequence with conditions.
#[derive(Debug)]
pub(super) struct Conditions(pub(super) Rng);

/// What the model says of a condition.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Holds,
    Fails,
    /// It asks about records that were trimmed.
    Trimmed,
}

fn holds(does: bool) -> Verdict {
    if does { Verdict::Holds } else { Verdict::Fails }
}

impl ModelTopic {
    fn judge(&self, condition: &Condition) -> Option<Verdict> {
        Some(match condition {
            Condition::NextOffset(offset) => holds(offset.0 == self.log_end()),
            Condition::Revision { key, expected } => {
                if *expected == ExpectedRevision::Any {
                    return Some(Verdict::Holds);
                }
                // Those that went count as well.
                let count = self.streams().get(key).map_or(0, |offsets| offsets.len() as u64);
                holds(match expected {
                    ExpectedRevision::Exact(revision) => count.checked_sub(1) == Some(revision.0),
                    ExpectedRevision::NoStream => count == 0,
                    ExpectedRevision::Exists => count > 0,
                    ExpectedRevision::Any => true,
                })
            }
            Condition::NoMatch { filter, after_offset } => {
                let from = after_offset.map_or(0, |after| after.0.saturating_add(1));
                if from < self.log_start {
                    return Some(Verdict::Trimmed);
                }
                let matching = (from..self.log_end()).filter(|offset| {
                    let view = RecordView::decode(&self.record(*offset).bytes).expect("the model encoded it");
                    filter.matches(&view) && !self.gone.contains(offset)
                });
                let matching: Vec<_> = matching.collect();
                // What a run of compaction took out that was broken off nobody knows.
                if !matching.is_empty() && matching.iter().all(|offset| self.going.contains(offset)) {
                    return None;
                }
                holds(matching.is_empty())
            }
        })
    }
}

impl Run {
    /// Now and then an append is conditional.
    pub(super) fn condition_some(&mut self) -> Check {
        let Some(Conditions(mut rng)) = self.conditions.take() else { return Ok(()) };
        let outcome = if rng.chance(15) { self.append_on_conditions(&mut rng) } else { Ok(()) };
        self.conditions = Some(Conditions(rng));
        outcome
    }

    fn append_on_conditions(&mut self, rng: &mut Rng) -> Check {
        let topics = self.model.current.topics.iter();
        // In memory keys begin anew when their records have gone.
        let names: Vec<_> = topics.filter(|(_, topic)| !topic.is_in_memory()).map(|(name, _)| name).collect();
        if names.is_empty() {
            return Ok(());
        }
        let (name, about) = ((*rng.choose(&names)).clone(), (*rng.choose(&names)).clone());
        let expected = &self.model.current.topics[&about];
        let count = rng.within(1..4);
        let conditions: Vec<_> = (0..count).map(|_| any_condition(rng, expected)).collect();
        let verdicts: Option<Vec<_>> = conditions.iter().map(|one| expected.judge(one)).collect();
        let Some(verdicts) = verdicts else { return Ok(()) };
        self.sent += 1;
        let key = format!("key {}", rng.below(4));
        let record = Record::keyed(key, self.sent.to_le_bytes()).with_tag("conditional");
        let parts = [(name.clone(), vec![record])];
        let durability = *rng.choose(&[Durability::Synced, Durability::Written]);
        let (topic, topic_about) = (self.topic(&name)?, self.topic(&about)?);
        let append = Append::new().durability(durability).records(&topic, &parts[0].1);
        let append = append.map_err(|error| error.to_string())?;
        let append = conditions.iter().fold(append, |append, one| append.require(&topic_about, one.clone()));
        let outcome = self.store().append(append);
        let told = |number: usize| format!("{about}: {:?} of {conditions:?}", conditions.get(number));
        if let Some(trimmed) = verdicts.iter().position(|verdict| *verdict == Verdict::Trimmed) {
            let is_told = matches!(outcome, Err(Error::ConditionTrimmed { number, .. }) if number == trimmed);
            ensure!(is_told, "{} reaches below the start: {outcome:?}", told(trimmed));
            self.coverage.conditions_trimmed += 1;
            return Ok(());
        }
        let failing = verdicts.iter().enumerate().filter(|(_, verdict)| **verdict == Verdict::Fails);
        let failing: Vec<_> = failing.map(|(number, _)| number).collect();
        if !failing.is_empty() {
            let Err(Error::ConditionFailed { failed }) = &outcome else {
                return Err(format!("{} does not hold: {outcome:?}", told(failing[0])));
            };
            let numbers: Vec<_> = failed.iter().map(|failed| failed.number).collect();
            ensure!(numbers == failing, "{failing:?} of {conditions:?} do not hold, not {numbers:?}");
            // Whoever is told may rely on what it rests on.
            self.model.sync();
            self.coverage.conditions_failed += 1;
            return Ok(());
        }
        let appended = outcome.map_err(|error| format!("{conditions:?} of {about} hold: {error}"))?;
        let number = self.applied(None, &parts, &appended)?;
        match durability {
            Durability::Synced => self.model.sync(),
            _ => self.model.write_before(number + 1),
        }
        self.coverage.conditions_held += 1;
        Ok(())
    }
}

/// One that holds about as often as not.
fn any_condition(rng: &mut Rng, topic: &ModelTopic) -> Condition {
    let key = format!("key {}", rng.below(5)).into_bytes();
    match rng.below(8) {
        0 => Condition::NextOffset(Offset(topic.log_end() + rng.below(5) / 4)),
        1..5 => {
            let count = topic.streams().get(&key).map_or(0, |offsets| offsets.len() as u64);
            let exact = ExpectedRevision::Exact(Revision((count + rng.below(5) / 4).saturating_sub(1)));
            let expected = match rng.below(7) {
                0 => ExpectedRevision::NoStream,
                1 => ExpectedRevision::Exists,
                2 => ExpectedRevision::Any,
                _ if count == 0 => ExpectedRevision::NoStream,
                _ => exact,
            };
            Condition::Revision { key, expected }
        }
        _ => {
            let filter = match rng.below(5) {
                0 => Filter::new().key(key),
                1 => Filter::new().key_prefix("key 1"),
                2 => Filter::new().record_type("type"),
                3 => Filter::new().tags(["conditional"]),
                _ => Filter::new().key(key).tags(["tag"]),
            };
            let first = topic.log_start.saturating_sub(1);
            let after = rng.within(first..topic.log_end().max(first) + 1);
            let after_offset = if rng.chance(5) { None } else { Some(Offset(after)) };
            Condition::NoMatch { filter, after_offset }
        }
    }
}
