//! The operations of a random sequence.

use std::collections::BTreeMap;
use std::time::Duration;

use quipu_storage::{
    Append, Codec, Durability, Error, ErrorKind, Offset, Record, Retention, RetentionReason, Start, Storage,
    Timestamp, Topic, TopicSettings, Visibility,
};

use super::compaction::Chance;
use super::run::{Kept, Run};
use super::{Check, END, Ending, Event, verify};
use crate::ensure;

/// More topics make each of them boring.
const TOPICS_MAX: usize = 5;
const NAMES: [&str; 7] = ["a", "b", "orders", "orders/eu", "x.y_z-1", "m", "A"];

impl Run {
    /// One operation, and what can be said right after it.
    pub(super) fn step(&mut self) -> Check {
        if self.rng.below(1000) < self.endings {
            let ending = match self.rng.below(5) {
                0 => Ending::Closed,
                1 => Ending::Killed,
                _ => Ending::PowerCut,
            };
            return self.reopen(ending);
        }
        if self.compaction.as_mut().is_some_and(Chance::is_due) {
            self.compact()?;
            let store = self.store().clone();
            return self.model.observe(&store);
        }
        self.repeat_some()?;
        self.snapshot_some()?;
        self.condition_some()?;
        self.erase_some()?;
        match self.rng.below(1000) {
            0..330 => self.append()?,
            330..420 => self.append_to_several()?,
            420..500 => self.submit()?,
            500..560 => self.wait()?,
            560..670 => self.read()?,
            670..770 => self.read_kept()?,
            770..790 => self.sync()?,
            790..830 => self.checkpoint()?,
            830..870 => self.trim()?,
            870..900 => self.retain()?,
            900..930 => self.create()?,
            930..940 => self.delete()?,
            940..960 => self.alter()?,
            960..970 => self.refused()?,
            _ => self.move_clock(),
        }
        let store = self.store().clone();
        self.model.observe(&store)
    }

    fn pick(&mut self) -> Option<(String, Topic)> {
        let names: Vec<_> = self.model.current.topics.keys().cloned().collect();
        if names.is_empty() {
            return None;
        }
        let name = self.rng.choose(&names).clone();
        let topic = self.store().topic(&name).expect("the model has it, and was compared");
        Some((name, topic))
    }

    fn record(&mut self) -> Record {
        self.sent += 1;
        let bytes = match self.rng.below(10) {
            0 => 0,
            1..6 => self.rng.index(200),
            6..8 => self.rng.index(1500),
            _ => self.rng.index(self.payload_bytes_max),
        };
        let mut payload = self.sent.to_le_bytes().to_vec();
        if self.rng.chance(50) {
            payload.extend(self.rng.bytes(bytes));
        } else {
            // Something that can be compressed.
            payload.resize(8 + bytes, 7);
        }
        let key = format!("key {}", self.rng.below(4));
        let mut record = match self.rng.below(6) {
            0 if self.compaction.as_mut().is_some_and(|chance| chance.0.chance(70)) => Record::tombstone(key),
            0 => Record::tombstone(format!("{key} {}", self.sent)),
            1..4 => Record::keyed(key, payload),
            _ => Record::new(payload),
        };
        if self.rng.chance(20) {
            record = record.with_type("type").with_tag("tag").with_header("name", "value");
        }
        if self.rng.chance(5) {
            record.id = Some([3; 16]);
        }
        record.erasure_key = self.any_erasure_key();
        record
    }

    fn records(&mut self) -> Vec<Record> {
        let count = if self.rng.chance(70) { 1 } else { self.rng.within(1..12) };
        let mut left = 7000;
        let mut records = Vec::new();
        for _ in 0..count {
            let record = self.record();
            if record.encoded_bytes() > left {
                break;
            }
            left -= record.encoded_bytes();
            records.push(record);
        }
        records
    }

    fn durability(&mut self) -> Durability {
        match self.rng.below(10) {
            0..4 => Durability::Synced,
            4..9 => Durability::Written,
            _ => Durability::Accepted,
        }
    }

    fn build(&self, parts: &[(String, Vec<Record>)], durability: Durability) -> Check<Append> {
        parts.iter().try_fold(Append::new().durability(durability), |append, (name, records)| {
            let topic = self.store().topic(name).map_err(|error| error.to_string())?;
            append.records(&topic, records).map_err(|error| error.to_string())
        })
    }

    fn append(&mut self) -> Check {
        let Some((name, _)) = self.pick() else { return self.create() };
        let parts = vec![(name, self.records())];
        self.append_parts(&parts)
    }

    fn append_to_several(&mut self) -> Check {
        let mut names: Vec<_> = self.model.current.topics.keys().cloned().collect();
        while names.len() > 3 {
            names.remove(self.rng.index(names.len()));
        }
        if names.is_empty() {
            return self.create();
        }
        let parts: Vec<_> = names.into_iter().map(|name| (name, self.records())).collect();
        self.coverage.groups += u64::from(parts.len() > 1);
        self.append_parts(&parts)
    }

    fn append_parts(&mut self, parts: &[(String, Vec<Record>)]) -> Check {
        let durability = self.durability();
        let name = self.any_name();
        let append = Self::give(name.as_ref(), self.build(parts, durability)?);
        let appended = self.store().append(append).map_err(|error| format!("append: {error}"))?;
        let has_name = name.is_some();
        let number = self.applied(name, parts, &appended)?;
        let is_journaled =
            has_name || parts.iter().any(|(name, _)| !self.model.current.topics[name].is_in_memory());
        if durability == Durability::Written && is_journaled {
            self.model.write_before(number + 1);
        }
        for ((name, _), appended) in parts.iter().zip(&appended) {
            let in_memory = self.model.current.topics[name].is_in_memory();
            let least = if in_memory { Durability::Accepted } else { durability };
            ensure!(appended.durability >= least, "{name}: {durability:?} became {:?}", appended.durability);
        }
        if durability == Durability::Synced {
            // All before it as well, whatever topic it was in.
            self.model.sync();
            self.coverage.synced += 1;
        } else {
            self.coverage.written += 1;
        }
        Ok(())
    }

    fn submit(&mut self) -> Check {
        let Some((name, _)) = self.pick() else { return Ok(()) };
        let parts = vec![(name.clone(), self.records())];
        let durability = self.durability();
        let name_of_append = self.any_name();
        let append = Self::give(name_of_append.as_ref(), self.build(&parts, durability)?);
        let ticket = match self.store().submit(append) {
            // It holds as much as it may of what is shown to nobody before the next sync.
            Err(Error::Overloaded { .. }) if self.model.current.topics[&name].is_in_memory() => {
                return self.sync();
            }
            outcome => outcome.map_err(|error| format!("submit: {error}"))?,
        };
        let appended = ticket.appended().to_vec();
        let number = self.applied(name_of_append, &parts, &appended)?;
        // Waiting promises nothing about the sync otherwise.
        if durability == Durability::Synced {
            self.tickets.push((ticket, number));
        }
        Ok(())
    }

    fn wait(&mut self) -> Check {
        if self.tickets.is_empty() {
            return Ok(());
        }
        let (ticket, number) = self.tickets.remove(self.rng.index(self.tickets.len()));
        let submitted = ticket.appended().to_vec();
        let appended = ticket.wait().map_err(|error| format!("wait: {error}"))?;
        ensure!(appended == submitted, "a ticket answers {appended:?} after {submitted:?}");
        self.model.sync_before(number + 1);
        self.coverage.tickets += 1;
        Ok(())
    }

    fn any_start(&mut self, name: &str) -> Start {
        let topic = &self.model.current.topics[name];
        let (first, end, last_time) = (topic.base, topic.log_end(), topic.last_time());
        // A bit beyond on both sides.
        let offset = self.rng.within(first.saturating_sub(2)..end + 3);
        match self.rng.below(7) {
            0 => Start::Earliest,
            1 => Start::Latest,
            2 => Start::Offset(Offset(offset)),
            3 => Start::AfterOffset(Offset(offset)),
            4 => Start::Last(self.rng.below(30)),
            5 => {
                let last = last_time.unwrap_or(1_000_000).max(1000);
                Start::Time(Timestamp(self.rng.within(last - 1000..last + 50)))
            }
            _ => *self.rng.choose(&[
                Start::Offset(END),
                Start::AfterOffset(END),
                Start::Last(u64::MAX),
                Start::Time(Timestamp::MAX),
                Start::Time(Timestamp::ZERO),
            ]),
        }
    }

    fn any_visibility(&mut self) -> Visibility {
        *self.rng.choose(&[Visibility::Synced, Visibility::Written])
    }

    fn read(&mut self) -> Check {
        let Some((name, topic)) = self.pick() else { return Ok(()) };
        self.coverage.reads += 1;
        let visibility = self.any_visibility();
        let start = self.any_start(&name);
        let count = self.rng.within(1..60);
        let expected = &self.model.current.topics[&name];
        match self.rng.below(4) {
            0 => {
                let before = expected.base + self.rng.below(expected.log_end() - expected.base + 3);
                verify::backwards(&topic, expected, Offset(before), visibility, count)
            }
            1 => {
                let offset = self.rng.within(expected.base..expected.log_end() + 2);
                let high = topic.high_watermark().0;
                match topic.get(Offset(offset)) {
                    Err(Error::OffsetTrimmed { log_start_offset, .. }) => {
                        ensure!(offset < expected.log_start, "{name}: {offset} is not trimmed");
                        ensure!(log_start_offset.0 == expected.log_start, "{name}: start {log_start_offset}");
                        Ok(())
                    }
                    Err(Error::OffsetUnwritten { next_offset, .. }) => {
                        ensure!(offset >= high && next_offset.0 == high, "{name}: {offset} is written");
                        Ok(())
                    }
                    _ => verify::get(&topic, expected, offset),
                }
            }
            _ => {
                if let Some(mut cursor) = verify::start(&topic, expected, start, visibility)? {
                    verify::forwards(&topic, &mut cursor, expected, count)?;
                    if self.kept.len() < 4 && self.rng.chance(50) {
                        let gone = expected.gone.clone();
                        self.kept.push(Kept { name, uid: topic.uid(), visibility, cursor, gone });
                    }
                }
                Ok(())
            }
        }
    }

    /// Goes on with a cursor that has seen an earlier state of the topic.
    fn read_kept(&mut self) -> Check {
        if self.kept.is_empty() {
            return self.read();
        }
        let number = self.rng.index(self.kept.len());
        let mut kept = self.kept.swap_remove(number);
        let next = kept.cursor.next_offset().0;
        let expected = self.model.current.topics.get(&kept.name).filter(|topic| topic.uid == Some(kept.uid));
        let Some(expected) = expected else {
            let outcome = kept.cursor.next_batch();
            ensure!(
                matches!(&outcome, Err(Error::TopicNotFound { .. })),
                "{}: reading at {next} after the deletion gives {outcome:?}",
                kept.name
            );
            return Ok(());
        };
        if next < expected.log_start {
            match kept.cursor.next_batch() {
                Err(Error::OffsetTrimmed { offset, log_start_offset, .. })
                    if offset.0 == next && log_start_offset.0 == expected.log_start => {}
                outcome => return Err(format!("{}: reading trimmed {next} gives {outcome:?}", kept.name)),
            }
            kept.cursor.seek(Offset(expected.log_start));
        }
        let topic = self.store().topic(&kept.name).map_err(|error| error.to_string())?;
        let end = kept.cursor.visible_end().0;
        let is_more = kept.cursor.wait(Some(Duration::ZERO)).map_err(|error| error.to_string())?;
        let next = kept.cursor.next_offset().0;
        ensure!(is_more == (next < end), "{}: waiting at {next} of {end} says {is_more}", kept.name);
        let wanted = match kept.visibility {
            Visibility::Synced => topic.high_watermark().0,
            Visibility::Written => expected.log_end(),
        };
        ensure!(end == wanted, "{}: visible to {end}, not {wanted}", kept.name);
        let count = self.rng.within(1..60);
        let read = verify::forwards_since(&topic, &mut kept.cursor, expected, &kept.gone, count)?;
        ensure!(read > next || !is_more, "{}: nothing read at {next}", kept.name);
        self.coverage.kept_reads += 1;
        self.kept.push(kept);
        Ok(())
    }

    fn sync(&mut self) -> Check {
        self.store().sync().map_err(|error| format!("sync: {error}"))?;
        self.model.sync();
        Ok(())
    }

    fn checkpoint(&mut self) -> Check {
        self.store().checkpoint().map_err(|error| format!("checkpoint: {error}"))?;
        self.model.sync();
        Ok(())
    }

    fn trim(&mut self) -> Check {
        let Some((name, topic)) = self.pick() else { return Ok(()) };
        let expected = &self.model.current.topics[&name];
        let (start, high) = (expected.log_start, topic.high_watermark().0);
        let to = match self.rng.below(10) {
            0 => high,
            1 => high + 1,
            _ => self.rng.within(start..high + 1),
        };
        match topic.trim(Offset(to)) {
            Err(Error::OffsetUnwritten { next_offset, .. }) => {
                ensure!(to > high && next_offset.0 == high, "{name}: {to} is not unwritten");
                return Ok(());
            }
            outcome => outcome.map_err(|error| format!("{name}: trim {to}: {error}"))?,
        }
        ensure!(to <= high, "{name}: trimmed to {to}, beyond what is visible");
        if to > start {
            self.model.push(Event::Trimmed { name, to });
            self.model.sync();
            self.coverage.trims += 1;
        }
        Ok(())
    }

    fn retain(&mut self) -> Check {
        // What is not synced yet cannot go.
        let high: BTreeMap<_, _> = self
            .store()
            .topics()
            .iter()
            .map(|topic| (topic.name().to_string(), topic.high_watermark().0))
            .collect();
        let reports = self.store().run_retention().map_err(|error| format!("retention: {error}"))?;
        let now = self.clock.millis();
        for report in reports {
            let name = report.topic.to_string();
            let topic = &self.model.current.topics[&name];
            let (from, to) = (report.from.0, report.to.0);
            ensure!(
                from == topic.log_start && to > from && to <= topic.log_end(),
                "{name}: retention says {from}..{to} of {}..{}",
                topic.log_start,
                topic.log_end()
            );
            let retention = topic.settings.retention;
            match report.reason {
                RetentionReason::Age => {
                    let age = retention.age_max.ok_or("retention by an age that is not set")?.as_millis();
                    // Of what compaction left.
                    let last = (from..to).rev().find(|offset| !topic.gone.contains(offset));
                    let last = last.map_or(Some(0), |last| topic.record(last).time).unwrap_or(0);
                    ensure!(
                        u128::from(now.saturating_sub(last)) > age,
                        "{name}: record {} of {last} went at {now}",
                        to - 1
                    );
                }
                RetentionReason::Records => {
                    let left = (to..topic.log_end()).filter(|offset| !topic.gone.contains(offset)).count();
                    let least = retention.records_max.ok_or("retention by a number that is not set")?;
                    ensure!(left as u64 >= least, "{name}: only {left} records stay");
                }
                RetentionReason::Bytes => {
                    ensure!(retention.bytes_max.is_some(), "retention by bytes that are not set");
                    ensure!(to < topic.log_end(), "{name}: everything went by bytes");
                }
            }
            let in_memory = topic.is_in_memory();
            self.model.push(Event::Trimmed { name, to });
            if !in_memory {
                self.model.sync();
            }
            self.coverage.retained += 1;
        }
        for (name, topic) in &self.model.current.topics {
            let Some(age) = topic.settings.retention.age_max else { continue };
            let is_old =
                topic.last_time().is_some_and(|last| u128::from(now.saturating_sub(last)) > age.as_millis());
            ensure!(
                !is_old || topic.log_start >= high[name],
                "{name}: {}..{} is too old and stays",
                topic.log_start,
                high[name]
            );
        }
        Ok(())
    }

    fn any_settings(&mut self, storage: Option<Storage>) -> TopicSettings {
        let retention = Retention {
            age_max: self.rng.chance(25).then(|| Duration::from_millis(self.rng.within(100..5000))),
            bytes_max: self.rng.chance(25).then(|| self.rng.within(1..20_000)),
            records_max: self.rng.chance(25).then(|| self.rng.within(1..50)),
        };
        let settings = TopicSettings {
            segment_bytes_max: *self.rng.choose(&[4096, 4096, 8192, 20_000, 200_000]),
            segment_age_max: Duration::from_millis(*self.rng.choose(&[500, 10_000_000])),
            codec: *self.rng.choose(&[Codec::None, Codec::Lz4]),
            retention,
            ..TopicSettings::default()
        };
        let storage = storage.unwrap_or_else(|| {
            if self.rng.chance(15) {
                Storage::Memory { bytes_max: *self.rng.choose(&[4096, 16_384]) }
            } else {
                Storage::Disk
            }
        });
        let compaction = self.compaction.as_mut().and_then(|chance| chance.any_setting(storage));
        TopicSettings { storage, compaction, ..settings }
    }

    fn create(&mut self) -> Check {
        let name = (*self.rng.choose(&NAMES)).to_owned();
        let settings = self.any_settings(None);
        if self.model.current.topics.len() >= TOPICS_MAX {
            return Ok(());
        }
        let outcome = self.store().create_topic(&name, settings.clone());
        if self.model.current.topics.contains_key(&name) {
            ensure!(matches!(outcome, Err(Error::TopicExists { .. })), "{name}: created twice: {outcome:?}");
            return Ok(());
        }
        let topic = outcome.map_err(|error| format!("{name}: create: {error}"))?;
        let uid = Some(topic.uid());
        self.model.push(Event::Created { name, uid, settings });
        self.model.sync();
        self.coverage.created += 1;
        Ok(())
    }

    fn delete(&mut self) -> Check {
        let Some((name, topic)) = self.pick() else { return Ok(()) };
        self.store().delete_topic(&name).map_err(|error| format!("{name}: delete: {error}"))?;
        self.model.push(Event::Deleted { name: name.clone() });
        self.model.sync();
        self.coverage.deleted += 1;
        for error in [
            topic.append(&[Record::new("late")]).err(),
            topic.trim(Offset(0)).err(),
            self.store().topic(&name).err(),
            topic.batches_backwards(END, Visibility::Written).previous_batch().err(),
        ] {
            let kind = error.as_ref().map(Error::kind);
            ensure!(kind == Some(ErrorKind::NotFound), "{name}: after its deletion: {error:?}");
        }
        Ok(())
    }

    fn alter(&mut self) -> Check {
        let Some((name, topic)) = self.pick() else { return Ok(()) };
        let storage = self.model.current.topics[&name].settings.storage;
        let settings = self.any_settings(Some(storage));
        topic.alter(&settings).map_err(|error| format!("{name}: alter: {error}"))?;
        self.model.push(Event::Altered { name, settings });
        self.model.sync();
        self.coverage.altered += 1;
        Ok(())
    }

    /// What can never succeed, and changes nothing.
    fn refused(&mut self) -> Check {
        let Some((name, topic)) = self.pick() else { return Ok(()) };
        let big = Record::new(vec![1; 33 << 10]);
        let errors = [
            topic.append(&[]).err(),
            topic.append(&[Record::new("small"), big]).err(),
            topic.append(&[Record::keyed(vec![1; 5000], "payload")]).err(),
            topic.alter(&TopicSettings { segment_bytes_max: 1, ..TopicSettings::default() }).err(),
            self.store().create_topic("a//b", TopicSettings::default()).err(),
        ];
        for error in errors {
            let kind = error.as_ref().map(Error::kind);
            ensure!(kind == Some(ErrorKind::Invalid), "{name}: refused with {error:?}");
        }
        Ok(())
    }

    fn move_clock(&mut self) {
        let now = self.clock.millis();
        let then = if self.rng.chance(20) { now.saturating_sub(700) } else { now + self.rng.below(3000) };
        self.clock.set(then);
    }
}
