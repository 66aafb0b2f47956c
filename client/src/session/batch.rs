//! A batch of a session: records that are appended as one.

use bytes::{Bytes, BytesMut};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::append::Appended;
use crate::error::{Error, Outcome, Result};
use crate::record::Record;

/// What becomes of a batch, for its tickets.
pub(super) type Outcomes = watch::Receiver<Option<Result<Appended>>>;

/// The batch that records are added to.
#[derive(Debug, Default)]
pub(super) struct OpenBatch {
    records: BytesMut,
    count: usize,
    begun: Option<Begun>,
}

#[derive(Debug)]
struct Begun {
    at: Instant,
    first_id: [u8; 16],
    outcome: watch::Sender<Option<Result<Appended>>>,
}

/// A batch that is complete.
#[derive(Debug)]
pub(super) struct Batch {
    /// Protobuf `repeated Record records = 1`.
    pub(super) records: Bytes,
    pub(super) count: u64,
    /// The id of its first record, which tells where it is: the others follow.
    pub(super) first_id: [u8; 16],
    /// Whether it was given to a stream and nobody knows what became of it. If not, it has not been applied.
    pub(super) was_sent: bool,
    outcome: watch::Sender<Option<Result<Appended>>>,
}

impl OpenBatch {
    pub(super) fn bytes(&self) -> usize {
        self.records.len()
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// When its first record was added; `None` if it has none.
    pub(super) fn since(&self) -> Option<Instant> {
        self.begun.as_ref().map(|begun| begun.at)
    }

    pub(super) fn begin(&mut self, at: Instant) {
        self.begun = Some(Begun { at, first_id: [0; 16], outcome: watch::Sender::new(None) });
    }

    /// Adds a record, after [`begin`](Self::begin).
    pub(super) fn push(&mut self, record: &Record, id: [u8; 16]) {
        if self.count == 0 {
            self.begun.as_mut().expect("begun").first_id = id;
        }
        record.encode(Some(id), &mut self.records);
        self.count += 1;
    }

    pub(super) fn outcomes(&self) -> Outcomes {
        self.begun.as_ref().expect("begun").outcome.subscribe()
    }

    /// Makes an empty batch of it and returns what it held.
    pub(super) fn seal(&mut self) -> Option<Batch> {
        let begun = self.begun.take()?;
        let records = self.records.split().freeze();
        let count = std::mem::take(&mut self.count) as u64;
        let Begun { first_id, outcome, .. } = begun;
        Some(Batch { records, count, first_id, was_sent: false, outcome })
    }
}

impl Batch {
    pub(super) fn applied(self, appended: Appended) {
        self.outcome.send_replace(Some(Ok(appended)));
    }

    /// Says what ended the session: of a batch that was sent, that nothing is known; of others, that they are not there.
    pub(super) fn failed(self, error: &Error) {
        let cause = || Box::new(error.clone());
        let error = match (error, error.outcome()) {
            (Error::Unknown { .. }, _) if self.was_sent => error.clone(),
            _ if self.was_sent => Error::Unknown { cause: cause() },
            (_, Outcome::Unknown) => Error::NotSent { cause: cause() },
            (_, Outcome::NotApplied) => error.clone(),
        };
        self.outcome.send_replace(Some(Err(error)));
    }
}
