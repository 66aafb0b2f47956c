//! An append session: records in, batches out, in order, over lost connections, each once.
//!
//! ```text
//! append ──> open batch ──> queued ──> sent ──> answered: the tickets of its records resolve
//!            (caller's task)  (driver's task: one stream at a time)
//! ```
//!
//! One batch is one append: all of its records or none. Batches are sent without waiting for answers, within the bytes
//! that the server grants, and answered in order.
//!
//! # After a lost connection
//!
//! Some batches were sent and not answered; the server may have appended a beginning of them. Each has a sequence of the
//! session's producer, so the driver sends all of them again, on a new stream: what was applied is answered as it was the
//! first time, the rest is applied. It makes no difference what of the earlier stream is still on its way, nor whether the
//! server was killed in between: what it knows of a producer is as durable as the records.
//!
//! The producer has a made-up name and is temporary, unless the session is [given one](SessionBuilder::producer). If the
//! server forgets it, or a power cut takes back what was answered and not to be synced, the server reports a gap. Then
//! nothing that is not answered was applied, and it is sent under a new epoch; except if a lost stream had some of it and
//! the producer is forgotten: then nobody knows, the session ends, and those tickets say [`Error::Unknown`]. The very first
//! batch is the exception: a server that has forgotten the producer takes its repeat for a first append. A temporary
//! producer is forgotten only when the server has as many as it may, the one that has not appended for the longest first.

mod batch;
mod driver;

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use self::batch::{Batch, OpenBatch, Outcomes};
use self::driver::Driver;
use crate::append::{Appended, Durability};
use crate::client::Client;
use crate::error::{Error, Result};
use crate::ids::{Random, RecordIds};
use crate::record::Record;

/// Sets up an append session; made by [`Client::append_session`].
#[derive(Clone, Debug)]
#[must_use = "there is no session until it is opened"]
pub struct SessionBuilder {
    client: Client,
    settings: SessionSettings,
}

#[derive(Clone, Debug)]
struct SessionSettings {
    topic: String,
    durability: Durability,
    linger: Duration,
    batch_bytes_max: usize,
    batch_records_max: usize,
    buffer_bytes_max: usize,
    producer: ProducerName,
}

/// Under which name a session appends.
#[derive(Clone, Debug)]
enum ProducerName {
    /// Made up for the session.
    Temporary(String),
    Named {
        name: String,
        epoch: u64,
        next_sequence: u64,
    },
}

impl ProducerName {
    fn name(&self) -> &str {
        match self {
            Self::Temporary(name) | Self::Named { name, .. } => name,
        }
    }

    /// One that nobody else has.
    fn temporary() -> Self {
        Self::Temporary(format!("~{:032x}", u128::from_be_bytes(Random::uid())))
    }
}

impl Client {
    /// Sets up a session that appends to a topic, batches by itself and outlives its connection.
    ///
    /// ```no_run
    /// # async fn example() -> quipu_client::Result<()> {
    /// let client = quipu_client::Client::connect("http://127.0.0.1:7878").await?;
    /// let session = client.append_session("orders").open().await?;
    /// let ticket = session.append("placed").await?;
    /// println!("at offset {}", ticket.wait().await?.first_offset);
    /// session.close().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn append_session(&self, topic: impl Into<String>) -> SessionBuilder {
        let settings = SessionSettings {
            topic: topic.into(),
            durability: Durability::Synced,
            linger: Duration::from_millis(2),
            batch_bytes_max: 256 << 10,
            batch_records_max: 10_000,
            buffer_bytes_max: 16 << 20,
            producer: ProducerName::temporary(),
        };
        SessionBuilder { client: self.clone(), settings }
    }
}

impl SessionBuilder {
    /// When to acknowledge. [`Durability::Synced`].
    pub fn durability(mut self, durability: Durability) -> Self {
        self.settings.durability = durability;
        self
    }

    /// How long a batch waits for more records while another is unanswered. 2 ms. When none is, it goes out at once.
    pub fn linger(mut self, linger: Duration) -> Self {
        self.settings.linger = linger;
        self
    }

    /// A batch goes out when it has so many bytes. 256 KiB. Never more than the server's `append_bytes_max`; records that
    /// were given [together](AppendSession::append_all) stay together.
    pub fn batch_bytes(mut self, bytes: usize) -> Self {
        self.settings.batch_bytes_max = bytes.max(1);
        self
    }

    /// A batch goes out when it has so many records. 10,000.
    pub fn batch_records(mut self, records: usize) -> Self {
        self.settings.batch_records_max = records.max(1);
        self
    }

    /// When so many bytes are not yet answered, [`AppendSession::append`] waits. 16 MiB.
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.settings.buffer_bytes_max = bytes;
        self
    }

    /// Gives the session a producer's name, so that what it appends is there once even if the process is killed and comes
    /// back: each call of [`append`](AppendSession::append) and [`append_all`](AppendSession::append_all) is one append,
    /// the first one with `next_sequence`, the next one with one more. Nothing is batched.
    ///
    /// Who comes back asks [`Client::producer`] and goes on behind its last sequence, with the same epoch; or gives again
    /// what is appended already, which changes nothing. A higher epoch begins with sequence 0 and shuts out whoever has a
    /// lower one. The server keeps the name until it is [forgotten](Client::forget_producer).
    pub fn producer(mut self, name: impl Into<String>, epoch: u64, next_sequence: u64) -> Self {
        self.settings.producer = ProducerName::Named { name: name.into(), epoch, next_sequence };
        self
    }

    /// Opens the session: a task on the current tokio runtime does its work from then on.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`] and those of the connection.
    pub async fn open(self) -> Result<AppendSession> {
        let limits = self.client.server_status().await?.limits.unwrap_or_default();
        let mut settings = self.settings;
        let limit = |said: u64, otherwise: usize| match usize::try_from(said) {
            Ok(0) | Err(_) => otherwise,
            Ok(said) => said,
        };
        let append_bytes_max = limit(limits.append_bytes_max, 8 << 20);
        let append_records_max = limit(limits.append_records_max, 100_000);
        settings.batch_bytes_max = settings.batch_bytes_max.min(append_bytes_max);
        settings.batch_records_max = settings.batch_records_max.min(append_records_max);
        if matches!(settings.producer, ProducerName::Named { .. }) {
            settings.batch_records_max = 1;
        }
        // Whoever names one that is not there learns it at once.
        self.client.topic(&*settings.topic).await?;
        let shared = Arc::new(Shared::new(settings, append_bytes_max, append_records_max));
        let driver = Driver::start(self.client, Arc::clone(&shared)).await?;
        let driver = Some(tokio::spawn(driver.run()));
        Ok(AppendSession { shared, driver })
    }
}

/// What the callers and the driver share.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// For the driver: there is something to send, to flush or to close.
    work: Notify,
    /// For callers: there is room, or the session has failed.
    room: Notify,
    settings: SessionSettings,
    append_bytes_max: usize,
    append_records_max: usize,
}

#[derive(Debug)]
struct State {
    open: OpenBatch,
    /// Complete, to be sent in this order.
    queued: std::collections::VecDeque<Batch>,
    /// Of all batches that are not answered.
    buffered_bytes: usize,
    /// The batch that was begun last.
    last: Option<Outcomes>,
    /// The open batch goes out without lingering.
    is_flushing: bool,
    is_closing: bool,
    /// Why the session has ended.
    failed: Option<Error>,
    ids: RecordIds,
}

impl State {
    /// Completes the open batch, if it has records.
    fn seal(&mut self) {
        self.is_flushing = false;
        if let Some(batch) = self.open.seal() {
            self.queued.push_back(batch);
        }
    }
}

impl Shared {
    fn new(settings: SessionSettings, append_bytes_max: usize, append_records_max: usize) -> Self {
        let state = Mutex::new(State {
            open: OpenBatch::default(),
            queued: std::collections::VecDeque::new(),
            buffered_bytes: 0,
            last: None,
            is_flushing: false,
            is_closing: false,
            failed: None,
            ids: RecordIds::new(),
        });
        let (work, room) = (Notify::new(), Notify::new());
        Self { state, work, room, settings, append_bytes_max, append_records_max }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }
}

/// A session that appends records to a topic in the order in which they are given, each once.
///
/// When the connection is lost it sends what was not answered again, which the server appends unless it has already, for as
/// long as [`Retry`](crate::Retry) says; the tickets wait. A record that the server refuses, or an outage that lasts
/// too long, ends the session: the tickets of all records that are not yet answered get the error, each with its
/// [outcome](Error::outcome), and so does every later call.
///
/// Dropping it sends what was given to it, without anyone learning of the outcome; see [`close`](Self::close).
#[derive(Debug)]
pub struct AppendSession {
    shared: Arc<Shared>,
    driver: Option<tokio::task::JoinHandle<()>>,
}

impl AppendSession {
    /// Adds a record. Waits only when too much is unanswered: see [`SessionBuilder::buffer_bytes`].
    ///
    /// A record without an id is given one, unless the session has a [name](SessionBuilder::producer).
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a record beyond its bounds, which leaves the session as it is; otherwise what has ended the
    /// session.
    pub async fn append(&self, record: impl Into<Record>) -> Result<Ticket> {
        self.append_all([record]).await
    }

    /// Adds records that are appended together, all or none. The ticket is for all of them.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    pub async fn append_all<R: Into<Record>>(&self, records: impl IntoIterator<Item = R>) -> Result<Ticket> {
        let records: Vec<Record> = records.into_iter().map(Into::into).collect();
        if records.is_empty() {
            return Err(Error::Invalid { message: "no records".into(), violations: Vec::new() });
        }
        records.iter().try_for_each(Record::check)?;
        // An id takes 18 bytes, the head of a record at most 11.
        let bytes: usize = records.iter().map(|record| record.encoded_bytes() + 29).sum();
        let shared = &*self.shared;
        let too_large = |what: &str, actual: usize, limit: usize| Error::TooLarge {
            message: format!("the append has {actual} {what}, the limit is {limit}"),
            limit: Some(limit as u64),
        };
        if bytes > shared.append_bytes_max {
            return Err(too_large("bytes", bytes, shared.append_bytes_max));
        }
        if records.len() > shared.append_records_max {
            return Err(too_large("records", records.len(), shared.append_records_max));
        }
        loop {
            let room = shared.room.notified();
            tokio::pin!(room);
            // From here on no word is missed.
            room.as_mut().enable();
            if let Some(ticket) = self.try_add(&records, bytes)? {
                return Ok(ticket);
            }
            room.await;
        }
    }

    fn try_add(&self, records: &[Record], bytes: usize) -> Result<Option<Ticket>> {
        let shared = &*self.shared;
        let settings = &shared.settings;
        let mut guard = shared.state();
        let state = &mut *guard;
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        if state.is_closing {
            return Err(Error::Closed);
        }
        if state.buffered_bytes > 0 && state.buffered_bytes + bytes > settings.buffer_bytes_max {
            return Ok(None);
        }
        let is_full = state.open.bytes() + bytes > settings.batch_bytes_max
            || state.open.count() + records.len() > settings.batch_records_max;
        if is_full {
            state.seal();
        }
        let was_empty = state.open.count() == 0;
        if was_empty {
            state.open.begin(Instant::now());
        }
        let index = state.open.count() as u64;
        let before = state.open.bytes();
        for record in records {
            // Of a name that outlives the session, records that are given again must be the same.
            let makes_ids = record.id.is_none() && matches!(settings.producer, ProducerName::Temporary(_));
            let id = if makes_ids { Some(state.ids.make()) } else { None };
            state.open.push(record, id);
        }
        state.buffered_bytes += state.open.bytes() - before;
        let outcome = state.open.outcomes();
        state.last = Some(outcome.clone());
        if state.open.bytes() >= settings.batch_bytes_max || state.open.count() >= settings.batch_records_max
        {
            state.seal();
        }
        drop(guard);
        if was_empty || is_full {
            shared.work.notify_one();
        }
        Ok(Some(Ticket { outcome, index, count: records.len() as u64 }))
    }

    /// Sends what has been added and waits until all of it is answered.
    ///
    /// # Errors
    /// What has ended the session.
    pub async fn flush(&self) -> Result<()> {
        let last = {
            let mut state = self.shared.state();
            if let Some(error) = &state.failed {
                return Err(error.clone());
            }
            state.is_flushing = true;
            state.last.clone()
        };
        self.shared.work.notify_one();
        match last {
            // Answers come in order, and what fails takes all behind it along.
            Some(last) => outcome(last).await.map(drop),
            None => Ok(()),
        }
    }

    /// Sends what has been added, waits until all of it is answered, and ends the session.
    ///
    /// # Errors
    /// What has ended the session before.
    pub async fn close(mut self) -> Result<()> {
        self.flush().await?;
        self.shared.state().is_closing = true;
        self.shared.work.notify_one();
        if let Some(driver) = self.driver.take() {
            // All is answered, whatever becomes of it.
            let _ = driver.await;
        }
        Ok(())
    }

    /// Bytes of records that are not yet answered.
    #[must_use]
    pub fn buffered_bytes(&self) -> usize {
        self.shared.state().buffered_bytes
    }
}

impl Drop for AppendSession {
    fn drop(&mut self) {
        self.shared.state().is_closing = true;
        self.shared.work.notify_one();
    }
}

/// The answer to come for records that were added together. May be dropped: they are appended all the same.
#[derive(Clone, Debug)]
#[must_use = "without waiting for it nothing is known about the records"]
pub struct Ticket {
    outcome: Outcomes,
    /// Place of the first of the records in its batch.
    index: u64,
    count: u64,
}

impl Ticket {
    /// Where the records are.
    ///
    /// # Errors
    /// What has ended the session. [`Error::outcome`] says whether they may be there: [`Error::Unknown`] only of records
    /// that were sent.
    pub async fn wait(self) -> Result<Appended> {
        let batch = outcome(self.outcome).await?;
        let first_offset = batch.first_offset + self.index;
        // Those of the batch are of other records, too.
        let revisions = Vec::new();
        Ok(Appended { first_offset, next_offset: first_offset + self.count, revisions, ..batch })
    }
}

async fn outcome(mut outcome: Outcomes) -> Result<Appended> {
    match outcome.wait_for(Option::is_some).await {
        Ok(answered) => answered.clone().expect("it was waited for"),
        // The runtime went down with the driver in the middle of its work.
        Err(_) => Err(Error::Unknown { cause: Box::new(Error::Closed) }),
    }
}
