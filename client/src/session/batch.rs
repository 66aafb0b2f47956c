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
    outcome: watch::Sender<Option<Result<Appended>>>,
}

/// A batch that is complete.
#[derive(Debug)]
pub(super) struct Batch {
    /// Protobuf `repeated Record records = 1`.
    pub(super) records: Bytes,
    pub(super) count: u64,
    /// Its number among the appends of the session's producer, from when it is first sent.
    pub(super) sequence: Option<u64>,
    /// Whether it was given to a stream that was lost, or its answer made no sense: nobody knows what became of it.
    pub(super) is_in_doubt: bool,
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
        self.begun = Some(Begun { at, outcome: watch::Sender::new(None) });
    }

    /// Adds a record, after [`begin`](Self::begin).
    pub(super) fn push(&mut self, record: &Record, id: Option<[u8; 16]>) {
        record.encode(id, &mut self.records);
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
        Some(Batch { records, count, sequence: None, is_in_doubt: false, outcome: begun.outcome })
    }
}

impl Batch {
    pub(super) fn applied(self, appended: Appended) {
        self.outcome.send_replace(Some(Ok(appended)));
    }

    /// It was applied before, and the server does not know any more where.
    pub(super) fn applied_somewhere(self) {
        self.outcome.send_replace(Some(Err(Error::AppendedBefore)));
    }

    /// Says what ended the session: of a batch that was sent, that nothing is known; of others, that they are not there.
    pub(super) fn failed(self, error: &Error) {
        let cause = || Box::new(error.clone());
        let error = match (error, error.outcome()) {
            (Error::Unknown { .. }, _) if self.is_in_doubt => error.clone(),
            _ if self.is_in_doubt => Error::Unknown { cause: cause() },
            (_, Outcome::Unknown) => Error::NotSent { cause: cause() },
            (_, Outcome::NotApplied) => error.clone(),
        };
        self.outcome.send_replace(Some(Err(error)));
    }
}
