//! Key compaction: of each key only the latest records stay, with their offsets.
//!
//! 1. Take stock: the sealed segments that the checkpoint on disk covers may be rewritten ([`survey`]).
//! 2. Read the topic backwards and mark what may go ([`survey`], [`keys`]).
//! 3. Rewrite, oldest first: neighbours that became small together into one new file, written aside under its final
//!    name and synced ([`rewrite`]).
//! 4. One change in the journal puts it in the place of the old ones; then these are removed.
//!
//! Promises:
//!
//! - C1 What recovery might write again from the journal is not touched: only segments that the checkpoint on disk
//!   lists as sealed. [`Topic::compact`] makes a checkpoint first, the background takes what the last one covers.
//! - C2 A checkpoint and a replacement exclude each other. So the checkpoint's list of segments is that of its
//!   position, and a replacement that is read back from the journal meets the list that it was made for.
//! - C3 The old files go only after the change is durable, and the new one is durable before the change is written.
//!   After a crash either the old ones or the new one is listed, complete, and the rest is removed as unknown.
//! - C4 A record counts as a newer version only when it is below the high watermark and in a segment. So what makes
//!   another one go is durable and visible before, and a reader of synced records finds each key at all times.
//! - C5 A tombstone goes only after every older record of its key: older segments are replaced first, and when one
//!   of them had to be left as it is, no tombstone behind it goes in this run.
//! - C6 Damage is copied nowhere and removed nowhere: a segment with a damaged batch stays as it is and is reported.
//! - C7 A segment that was trimmed meanwhile does not come back: that all are still listed, and reach beyond the log's
//!   start, is looked at under the locks under which the change is made.
//! - C8 A revision never goes back: when the last records of a key go, which are old tombstones or were trimmed, its last
//!   revision is kept first ([`crate::terms::past`]).
//! - C9 A payload that was erased loses its sealed bytes when its segment is rewritten, whatever else happens to its record:
//!   from then on it reads as erased for ever. It is the only change that compaction makes to a record.
//!
//! Keys are told apart by a hash of 128 bits with a random key: SipHash of the key under two prefixes. Among 2^40 keys
//! the chance that any two have the same hash is below 2^-48, so it is not looked at whether they do.
//!
//! Memory: the hashes of at most [`CompactOptions::keys_max`] keys, whatever their length, and two bits a record, three where payloads were erased. If
//! there are more keys, the topic is read once more for each further share of them.

mod control;
mod keys;
mod report;
mod rewrite;
mod survey;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

pub use control::{CompactionControl, CompactionProgress};
pub use report::{CompactionReport, DamagedRange, RecordsKept, RecordsRemoved};

use crate::error::{Error, Result};
use crate::settings::{Compaction, millis};
use crate::store::StoreInner;
use crate::topic::TopicInner;
use crate::types::{Offset, Timestamp};
use control::Pace;
use keys::KEYS_MAX;
use survey::Survey;

/// How to compact a topic once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactOptions {
    /// Only say what would be done. `false`. A checkpoint is made in any case, so that the forecast is exact.
    pub dry_run: bool,
    /// Which records stay. None: as the topic's settings say.
    pub compaction: Option<Compaction>,
    /// Most keys that are held in memory at once, about 30 bytes each. 917,504; at least 16. If the topic has more,
    /// it is read several times.
    pub keys_max: usize,
    /// Only remove the sealed bytes of payloads that were [erased](crate::Store::erase), and no record. `false`. Any topic
    /// may be compacted so; it takes the master key to know what was erased.
    pub erased_only: bool,
}

impl Default for CompactOptions {
    fn default() -> Self {
        Self { dry_run: false, compaction: None, keys_max: KEYS_MAX, erased_only: false }
    }
}

/// The settings of a run, at the time at which it began.
#[derive(Clone, Copy, Debug)]
struct Rules {
    records_per_key: u32,
    lag_min: u64,
    tombstone_age_max: u64,
    now: Timestamp,
    /// No record goes for the sake of its key.
    erased_only: bool,
}

impl Rules {
    fn new(compaction: &Compaction, now: Timestamp) -> Self {
        Self {
            records_per_key: compaction.records_per_key.max(1),
            lag_min: millis(compaction.lag_min),
            tombstone_age_max: millis(compaction.tombstone_age_max),
            now,
            erased_only: false,
        }
    }

    /// Whether a record of that time is left alone.
    fn is_young(&self, time: Timestamp) -> bool {
        self.now.0.saturating_sub(time.0) < self.lag_min
    }

    /// Whether a tombstone of that time must stay.
    fn is_tombstone_young(&self, time: Timestamp) -> bool {
        self.now.0.saturating_sub(time.0) < self.tombstone_age_max
    }
}

/// Keeps a second run out of the topic for as long as it lives.
struct Claim<'a>(&'a TopicInner);

impl<'a> Claim<'a> {
    fn new(topic: &'a TopicInner) -> Result<Self> {
        if topic.is_compacting.swap(true, Ordering::AcqRel) {
            return Err(Error::AlreadyRunning { what: "compaction" });
        }
        Ok(Self(topic))
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.is_compacting.store(false, Ordering::Release);
    }
}

impl StoreInner {
    /// Compacts a topic because somebody asked for it.
    pub(crate) fn compact(
        &self,
        topic: &Arc<TopicInner>,
        options: &CompactOptions,
        control: &CompactionControl,
    ) -> Result<CompactionReport> {
        let _working = self.begin_work()?;
        topic.check_alive()?;
        if topic.is_in_memory() {
            let rule = "on disk: a topic in memory has nothing to compact".into();
            return Err(Error::InvalidSetting { setting: "storage", value: "in memory".into(), rule });
        }
        if options.erased_only && self.context.master_key().is_none() {
            return Err(Error::MasterKeyMissing);
        }
        let of_topic = options.compaction.or(topic.settings.load().compaction);
        // Without settings nobody has said that this topic's history may go.
        let Some(compaction) = of_topic.or(options.erased_only.then(Compaction::default)) else {
            let rule = "given, in the topic's settings or for this run".into();
            return Err(Error::InvalidSetting { setting: "compaction", value: "none".into(), rule });
        };
        compaction.check()?;
        if options.keys_max < 16 {
            let value = options.keys_max.to_string();
            return Err(Error::InvalidSetting { setting: "keys_max", value, rule: "at least 16".into() });
        }
        let _claim = Claim::new(topic)?;
        self.checkpoint()?;
        self.run(topic, &compaction, options, control)
    }

    /// Compacts every topic that is set to be and has enough that is new.
    pub(crate) fn run_compaction(&self) {
        let Ok(_working) = self.begin_work() else { return };
        for topic in self.all_topics() {
            if self.context.check_writable().is_err() {
                return;
            }
            let Some(compaction) = topic.settings.load().compaction else { continue };
            if !self.is_due(&topic, &compaction) {
                continue;
            }
            if let Ok(_claim) = Claim::new(&topic) {
                // What went wrong is in the context if it concerns the store; otherwise the next turn tries again.
                let _ = self.run(&topic, &compaction, &CompactOptions::default(), &CompactionControl::new());
            }
        }
    }

    /// Whether at least half of what could be compacted has come since the last run, or tombstones of that run have
    /// become old enough: so the work of all runs together stays in proportion to what is appended.
    fn is_due(&self, topic: &TopicInner, compaction: &Compaction) -> bool {
        let rules = Rules::new(compaction, self.context.clock.now());
        let done = topic.last_compaction.lock().expect("no panic under this lock");
        let clean_end = done.as_ref().map(|report| report.clean_end);
        let tombstones_are_due = done.as_ref().is_some_and(|report| {
            report.records_kept.tombstone_young > 0 && !rules.is_tombstone_young(report.time)
        });
        drop(done);
        let covered_end = topic.checkpointed_end();
        let (mut dirty, mut all) = (0, 0);
        for sealed in topic.segments().iter().filter_map(|segment| segment.sealed()) {
            if sealed.next_offset > covered_end || rules.is_young(sealed.last_time) {
                break;
            }
            all += sealed.bytes;
            // After a restart what compaction has written is known by its name.
            let is_clean = clean_end.map_or(sealed.rewrites > 0, |end| sealed.next_offset <= end);
            dirty += if is_clean { 0 } else { sealed.bytes };
        }
        dirty > 0 && dirty >= all / 2 || tombstones_are_due
    }

    fn run(
        &self,
        topic: &Arc<TopicInner>,
        compaction: &Compaction,
        options: &CompactOptions,
        control: &CompactionControl,
    ) -> Result<CompactionReport> {
        let begun = Instant::now();
        let now = self.context.clock.now();
        let rules = Rules { erased_only: options.erased_only, ..Rules::new(compaction, now) };
        let mut report = CompactionReport::new(topic.name.clone(), rules.now, options.dry_run);
        let mut pace = Pace::new(control, topic, compaction.bytes_per_second_max);
        topic.check_files()?;
        // What is rewritten has its terms in no map that still grows, nor in one that is to be settled: in this order, since
        // more may be sealed meanwhile.
        let covered_end = topic.checkpointed_end();
        topic.settle_terms_now();
        let mut survey = Survey::begin(topic, rules, covered_end, &mut report)?;
        let outcome = survey
            .mark(&mut pace, options.keys_max, &mut report)
            .and_then(|()| self.rewrite(&mut survey, &mut pace, &mut report));
        survey.sum_up(&mut report);
        report.is_complete = outcome.is_ok();
        if outcome.is_err() {
            report.clean_end = Offset::ZERO;
        }
        report.duration = begun.elapsed();
        if !options.dry_run && !options.erased_only {
            *topic.last_compaction.lock().expect("no panic under this lock") = Some(report.clone());
        }
        outcome.map(|()| report)
    }
}
