//! An append on its way: its batches, and what was looked up for them before the writer lock is taken.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::repeat::Request;
use crate::condition::{Check, FailedCondition};
use crate::error::{Error, Result};
use crate::format::batch::BatchBuilder;
use crate::settings::Durability;
use crate::terms::batch_terms::BatchTerms;
use crate::terms::revisions::{Numbered, Outdated, Places};
use crate::topic::TopicInner;
use crate::types::{Offset, Revision};

/// What an append may do to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Patience {
    /// Write into the journal: it neither reads a disk nor waits for anybody who does.
    None,
    /// Read the disk as well.
    Disk,
    /// And wait for room.
    Room,
}

/// An append whose bounds are checked.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) parts: Vec<PreparedPart>,
    pub(super) checks: Vec<Check>,
    pub(super) durability: Durability,
    /// What it is to be known by, if it is to be applied once.
    pub(super) request: Option<Request>,
}

impl Prepared {
    /// Looks up what is not known yet. Says whether all is known; without patience it may not be.
    pub(super) fn look_up(&mut self, patience: Patience) -> Result<bool> {
        let may_read = patience != Patience::None;
        for part in &mut self.parts {
            if !part.are_files_checked(may_read)? {
                return Ok(false);
            }
            if !part.number_in_memory() {
                if !may_read {
                    return Ok(false);
                }
                part.number()?;
            }
        }
        for check in self.checks.iter_mut().filter(|check| !check.is_looked_up()) {
            if !check.look_up_in_memory() {
                if !may_read {
                    return Ok(false);
                }
                check.look_up()?;
            }
        }
        Ok(true)
    }
}

/// The records for one topic, ready to be sealed.
#[derive(Debug)]
pub(super) struct PreparedPart {
    pub(super) topic: Arc<TopicInner>,
    pub(super) batch: BatchBuilder,
    pub(super) record_count: u64,
    pub(super) terms: BatchTerms,
    pub(super) fencing_token: Option<u64>,
    /// `None` as long as nothing was looked up.
    numbered: Option<Numbered>,
    pub(super) places: Places,
    /// Whether it starts a new segment.
    pub(super) rolls: bool,
    /// The offset up to which it sets offsets aside, in a topic in memory that has no more of them.
    pub(super) reserves: Option<Offset>,
}

impl PreparedPart {
    pub(super) fn new(
        topic: Arc<TopicInner>,
        batch: BatchBuilder,
        record_count: u64,
        terms: BatchTerms,
        fencing_token: Option<u64>,
    ) -> Self {
        Self {
            topic,
            batch,
            record_count,
            terms,
            fencing_token,
            numbered: None,
            places: Places::default(),
            rolls: false,
            reserves: None,
        }
    }

    /// The token that the topic gets by it. Under the writer lock.
    pub(super) fn raises_token(&self) -> Option<u64> {
        self.fencing_token.filter(|&token| token > self.topic.fencing_token.load(Ordering::Relaxed))
    }

    fn are_files_checked(&self, may_read: bool) -> Result<bool> {
        if self.topic.is_in_memory() || self.topic.are_files_checked() {
            return Ok(true);
        }
        if may_read {
            self.topic.check_files()?;
        }
        Ok(may_read)
    }

    /// Looks up what the records' revisions are, before the writer lock is taken.
    pub(super) fn number(&mut self) -> Result<()> {
        if !self.terms.is_empty() {
            self.topic.gather()?;
            self.numbered = Some(Numbered::new(&self.topic, self.terms.keys())?);
            self.put_revisions();
        }
        Ok(())
    }

    /// The same if no disk is needed for it; says whether it is known now.
    fn number_in_memory(&mut self) -> bool {
        if self.terms.is_empty() || self.numbered.is_some() {
            return true;
        }
        self.numbered = Numbered::in_memory(&self.topic, self.terms.keys());
        self.put_revisions();
        self.numbered.is_some()
    }

    /// Looks at them again, under the writer lock.
    pub(super) fn renew(&mut self) -> Result<(), Outdated> {
        if self.terms.is_empty() {
            return Ok(());
        }
        if !self.topic.terms.recent.is_known() {
            return Err(Outdated);
        }
        let numbered = self.numbered.as_mut().ok_or(Outdated)?;
        if numbered.renew(&self.topic, self.terms.keys())? {
            self.put_revisions();
        }
        Ok(())
    }

    fn put_revisions(&mut self) {
        if let Some(numbered) = self.numbered.as_ref().filter(|numbered| !numbered.revisions.is_empty()) {
            self.batch.put_revisions(&numbered.revisions);
        }
    }

    /// The revisions; what else was found is kept for when the records are taken in.
    pub(super) fn take_numbered(&mut self) -> Vec<Revision> {
        let numbered = self.numbered.take().unwrap_or_default();
        self.places = numbered.places;
        numbered.revisions
    }
}

/// Whether the topic's fencing token lets an append through. Under the writer lock.
pub(super) fn check_token(topic: &TopicInner, token: Option<u64>) -> Result<()> {
    let current = topic.fencing_token.load(Ordering::Relaxed);
    match token {
        Some(token) if token < current => {
            Err(Error::TopicFenced { topic: topic.name.clone(), token, current })
        }
        _ => Ok(()),
    }
}

/// Whether the conditions of an append hold.
pub(super) enum Verdict {
    Hold,
    /// The one with this number must be looked up again.
    Outdated(usize),
    Failed(Vec<FailedCondition>),
}

/// Checks all conditions, under the writer lock.
pub(super) fn check_all(checks: &[Check]) -> Result<Verdict> {
    let mut failed = Vec::new();
    for (number, check) in checks.iter().enumerate() {
        check.topic().check_alive()?;
        match check.renew() {
            Ok(outcome) => failed.extend(outcome?),
            Err(Outdated) => return Ok(Verdict::Outdated(number)),
        }
    }
    Ok(if failed.is_empty() { Verdict::Hold } else { Verdict::Failed(failed) })
}

/// What to tell of failed conditions. No lock is held.
pub(super) fn failure(checks: &[Check], mut failed: Vec<FailedCondition>) -> Result<Error> {
    failed.iter_mut().try_for_each(|failed| checks[failed.number].locate(&mut failed.check))?;
    Ok(Error::ConditionFailed { failed })
}
