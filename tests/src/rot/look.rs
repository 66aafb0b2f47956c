//! What a damaged copy of a sample delivers, and what it reports.

use std::collections::BTreeSet;
use std::sync::Arc;

use quipu_storage::verify::{VerifyOptions, verify};
use quipu_storage::{Error, ErrorKind, JournalEnd, Offset, Start, Store, StoredRecord, Topic};

use super::sample::{Held, Sample, open, settings};
use crate::ensure;
use crate::model::run::STORE;
use crate::model::{Check, END};
use crate::sim::SimDisk;

/// What became of a damaged sample.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// By an error, as a damaged file, or by a reader that met damage.
    pub is_reported: bool,
    /// The opening cut off a torn end.
    pub is_torn: bool,
    /// The store had been closed properly, and that could be seen.
    pub was_clean: bool,
    /// Records that the sample held and that no reader can have any more, although the store opens.
    pub lost: BTreeSet<(String, u64)>,
}

type Records<'a> = &'a mut dyn Iterator<Item = quipu_storage::Result<StoredRecord>>;

/// What readers have delivered of a topic, and what they may leave out because an error named it.
struct Outcome<'a> {
    name: &'a str,
    held: &'a Held,
    delivered: Vec<bool>,
    excused: Vec<bool>,
    is_reported: bool,
    /// Not a range of records but the topic was refused.
    is_refused: bool,
}

impl<'a> Outcome<'a> {
    fn new(name: &'a str, held: &'a Held) -> Self {
        let (delivered, excused) = (vec![false; held.len()], vec![false; held.len()]);
        Self { name, held, delivered, excused, is_reported: false, is_refused: false }
    }

    fn excuse(&mut self, from: Offset, to: Offset) {
        let index = |offset: Offset| usize::try_from(offset.0).unwrap_or(usize::MAX).min(self.excused.len());
        let range = index(from)..index(to).max(index(from));
        self.excused[range].fill(true);
    }

    fn record(&mut self, record: &StoredRecord) -> Check {
        let (name, offset) = (self.name, record.offset().0 as usize);
        let sent = self.held.get(offset).and_then(Option::as_deref);
        ensure!(sent.is_some() && sent == record.payload(), "{name}: a wrong record at {offset}");
        ensure!(!self.delivered[offset], "{name}: record {offset} twice");
        self.delivered[offset] = true;
        Ok(())
    }

    /// All that an iterator delivers. After an error about a range it goes on, after any other it ends.
    fn iterate(&mut self, records: Records<'_>) -> Check {
        let most = 3 * self.held.len() + 10;
        for (count, outcome) in records.enumerate() {
            ensure!(count < most, "{}: an iterator goes on and on", self.name);
            match outcome {
                Ok(record) => self.record(&record)?,
                Err(error) => self.error(&error)?,
            }
        }
        Ok(())
    }

    fn error(&mut self, error: &Error) -> Check {
        ensure!(is_typed(error), "{}: reading answers {error:?}", self.name);
        self.is_reported = true;
        match error {
            Error::Corrupt { offsets, .. } => self.excuse(offsets.start, offsets.end),
            _ => {
                self.is_refused = true;
                self.excuse(Offset::ZERO, END);
            }
        }
        Ok(())
    }

    /// Complains about what is missing without a word; answers what is missing with one.
    fn missing(&self) -> Check<Vec<u64>> {
        let mut missing = Vec::new();
        for (offset, sent) in self.held.iter().enumerate() {
            if sent.is_some() && !self.delivered[offset] {
                ensure!(self.excused[offset], "{}: record {offset} is missing without a word", self.name);
                missing.push(offset as u64);
            }
        }
        Ok(missing)
    }
}

impl Sample {
    /// Verifies, opens and reads a damaged copy. Complains about a wrong record, about one that is missing without a
    /// word, and about readers that do not agree.
    ///
    /// # Errors
    /// The complaint.
    pub fn look(&self, disk: &SimDisk) -> Check<Seen> {
        let verified = verify(STORE, Arc::new(disk.clone()), VerifyOptions::default());
        let is_intact = match verified {
            Ok(report) => report.is_intact(),
            Err(error) => {
                ensure!(is_typed(&error), "verifying answers {error:?}");
                false
            }
        };
        self.look_beside_nobody(disk)?;
        let seen = self.open_and_look(disk)?;
        ensure!(
            !is_intact || !seen.is_reported,
            "readers find damage that the verification does not: {seen:?}"
        );
        Ok(seen)
    }

    /// Opens and reads a damaged copy, as [`look`](Self::look) does.
    ///
    /// # Errors
    /// The complaint.
    pub fn open_and_look(&self, disk: &SimDisk) -> Check<Seen> {
        let store = match open(disk) {
            Ok(store) => store,
            Err(error) => {
                ensure!(is_typed(&error), "open answers {error:?}");
                return Ok(Seen { is_reported: true, ..Seen::default() });
            }
        };
        let report = store.recovery();
        let mut seen = Seen {
            is_reported: !report.damaged.is_empty(),
            is_torn: report.journal_end != JournalEnd::Clean,
            was_clean: report.was_clean,
            lost: BTreeSet::new(),
        };
        for (name, held) in &self.records {
            match store.topic(name) {
                Ok(topic) => self.look_at_topic(&topic, name, held, &mut seen)?,
                // Its creation was cut off.
                Err(Error::TopicNotFound { .. }) if seen.is_torn && self.marked[name] == 0 => {}
                Err(error) => return Err(format!("{name}: {error}")),
            }
        }
        ensure!(store.topic("gone").is_err(), "a deleted topic is back");
        seen.is_reported |= store.stats().damage_found > 0;
        // What it does when it is closed is not looked at, and takes as long as the opening.
        disk.halt_at(disk.ops() + 1);
        Ok(seen)
    }

    fn look_at_topic(&self, topic: &Topic, name: &str, held: &Held, seen: &mut Seen) -> Check {
        let end = topic.log_end_offset();
        ensure!(end.0 <= held.len() as u64, "{name}: {end} records of {}", held.len());
        ensure!(
            end.0 == held.len() as u64 || seen.is_torn && end.0 >= self.marked[name] as u64,
            "{name}: only {end} records of {}, {} are marked, torn: {}",
            held.len(),
            self.marked[name],
            seen.is_torn
        );
        let first = topic.log_start_offset();
        let wanted = held.iter().position(Option::is_some).unwrap_or(held.len());
        ensure!(first.0 as usize <= wanted, "{name}: starts at {first}, not at or before {wanted}");
        let complain = |error: Error| format!("{name}: {error}");
        let mut missing = Vec::new();
        let mut is_refused = false;
        let ways: [Records<'_>; 2] =
            [&mut topic.read(Start::Earliest).map_err(complain)?, &mut topic.read_backwards(END)];
        for records in ways {
            let mut outcome = Outcome::new(name, held);
            outcome.excuse(end, END);
            outcome.iterate(records)?;
            seen.is_reported |= outcome.is_reported;
            is_refused |= outcome.is_refused;
            missing.push(outcome.missing()?);
        }
        // Each on its own.
        let mut outcome = Outcome::new(name, held);
        outcome.excuse(end, END);
        for offset in (0..end.0).filter(|&offset| held[offset as usize].is_some()) {
            match topic.get(Offset(offset)) {
                Ok(record) => record.iter().try_for_each(|record| outcome.record(record))?,
                Err(error) => outcome.error(&error)?,
            }
        }
        missing.push(outcome.missing()?);
        // Of a topic that is refused its last records may still be in memory, for those who do not come from its first.
        ensure!(
            is_refused || missing.iter().all(|other| *other == missing[0]),
            "{name}: readers lose other records: {missing:?}"
        );
        seen.lost.extend(missing.remove(0).into_iter().map(|offset| (name.to_owned(), offset)));
        Ok(())
    }

    /// As another process would that only reads: what it delivers is right, and it ends.
    fn look_beside_nobody(&self, disk: &SimDisk) -> Check {
        let builder = Store::builder().settings(settings()).disk(Arc::new(disk.clone()));
        let store = match builder.open_read_only(STORE) {
            Ok(store) => store,
            Err(error) => {
                ensure!(is_typed(&error), "open_read_only answers {error:?}");
                return Ok(());
            }
        };
        for (name, held) in &self.records {
            let Ok(topic) = store.topic(name) else { continue };
            let mut records = match topic.read(Start::Earliest) {
                Ok(records) => records,
                Err(error) => {
                    ensure!(is_typed(&error), "{name}: reading beside the writer answers {error:?}");
                    continue;
                }
            };
            Outcome::new(name, held).iterate(&mut records)?;
        }
        Ok(())
    }
}

/// What damage may be answered with.
fn is_typed(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported)
        || matches!(error, Error::NotAStore { .. })
}
