//! Aggregates: a state that is made from the events of one key, and decides about new ones.
//!
//! A command is executed in this order:
//!
//! 1. Load: the latest snapshot, if there is one, and the events behind it.
//! 2. Decide: the caller's function looks at the state and answers events, or refuses.
//! 3. Append, under the condition that the key has no event which the state has not seen.
//! 4. If it has, take the new events in and go back to 2; but if the new events are our own, of a try whose answer was
//!    lost, it is done.
//! 5. Put a snapshot, if one is due. That it cannot be put does not undo the command.
//!
//! So whatever becomes of connections and of others who do the same, each command that is answered was decided on all
//! events before its own, and its events are there once.

use std::marker::PhantomData;

use crate::append::Appended;
use crate::client::Client;
use crate::condition::{Condition, ExpectedRevision};
use crate::error::{Error, Result};
use crate::ids::RecordIds;
use crate::record::Record;
use crate::settled::Sent;
use crate::start::Start;
use crate::upcast::{EventError, EventRecord, Upcasters, not_understood};

/// How often a command is decided, unless the caller says otherwise.
const TRIES_MAX: u32 = 10;

/// A state that is made from events. See [`Client::aggregates`].
pub trait Aggregate: Default + Send {
    /// Takes an event in. It was decided and has happened: what is done here cannot refuse it, only not understand it. One
    /// that is [redacted](EventRecord::redacted) has happened as well, and what it said is gone.
    ///
    /// # Errors
    /// What the event has that this does not understand.
    fn apply(&mut self, event: &EventRecord) -> Result<(), EventError>;

    /// The state as a record, for a snapshot: payload, and best a type that names the form. The key is put by the caller.
    /// `None`, unless it is implemented: no snapshots.
    fn to_snapshot(&self) -> Option<Record> {
        None
    }

    /// The state that a snapshot has. `None`: it has a form that is not known any more; then all events are read.
    ///
    /// # Errors
    /// What is wrong with a snapshot of a known form.
    fn from_snapshot(_snapshot: &Record) -> Result<Option<Self>, EventError> {
        Ok(None)
    }
}

/// The aggregates of one topic: each is the stream of a key; made by [`Client::aggregates`].
#[derive(Clone, Debug)]
pub struct Aggregates<A> {
    client: Client,
    topic: String,
    upcasters: Upcasters,
    tries_max: u32,
    snapshot_every: Option<u64>,
    state: PhantomData<fn() -> A>,
}

/// An aggregate as it is after some event.
#[derive(Clone, Debug)]
pub struct Loaded<A> {
    /// The state.
    pub state: A,
    /// The last revision that the state has seen. `None`: the key has no event.
    pub revision: Option<u64>,
    /// The last revision that the latest snapshot covers.
    snapshot: Option<u64>,
}

/// Why a command was not executed.
#[derive(Debug, thiserror::Error)]
pub enum CommandError<E> {
    /// The decision was against it.
    #[error("refused: {0}")]
    Rejected(E),
    /// Others were faster each time. Nothing was appended.
    #[error("others appended to the key first, {tries} times")]
    Contended {
        /// How often it was decided.
        tries: u32,
    },
    /// Something else went wrong. [`Error::outcome`] says whether the events may be there.
    #[error(transparent)]
    Failed(#[from] Error),
}

impl Client {
    /// The aggregates of a topic, by their keys.
    ///
    /// ```no_run
    /// # async fn example(client: quipu_client::Client) -> Result<(), quipu_client::CommandError<&'static str>> {
    /// use quipu_client::{Aggregate, EventError, EventRecord, Record};
    ///
    /// #[derive(Default)]
    /// struct Seats(u64);
    ///
    /// impl Aggregate for Seats {
    ///     fn apply(&mut self, _event: &EventRecord) -> Result<(), EventError> {
    ///         self.0 += 1;
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let flights = client.aggregates::<Seats>("flights");
    /// let book = |seats: &Seats| match seats.0 {
    ///     0..100 => Ok(vec![Record::new("anna").with_type("SeatBooked")]),
    ///     _ => Err("the flight is full"),
    /// };
    /// let booked = flights.execute("LH 4711", book).await?;
    /// println!("{} seats are taken", booked.state.0);
    /// # Ok(())
    /// # }
    /// ```
    pub fn aggregates<A: Aggregate>(&self, topic: impl Into<String>) -> Aggregates<A> {
        Aggregates {
            client: self.clone(),
            topic: topic.into(),
            upcasters: Upcasters::default(),
            tries_max: TRIES_MAX,
            snapshot_every: None,
            state: PhantomData,
        }
    }
}

impl<A: Aggregate> Aggregates<A> {
    /// Makes old events new before they are taken in.
    #[must_use]
    pub fn upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }

    /// How often a command is decided before it is given up, because others were faster. 10; at least 1.
    #[must_use]
    pub fn tries_max(mut self, tries: u32) -> Self {
        self.tries_max = tries.max(1);
        self
    }

    /// Puts a snapshot when a command brings the events since the last one to so many. Not at all, unless it is said; and
    /// only of aggregates that [can](Aggregate::to_snapshot).
    #[must_use]
    pub fn snapshot_every(mut self, events: u64) -> Self {
        self.snapshot_every = Some(events.max(1));
        self
    }

    /// The aggregate as it is now, as far as it is synced.
    ///
    /// # Errors
    /// [`Error::EventNotUnderstood`]; [`Error::HistoryGone`]; those of reading.
    pub async fn load(&self, key: impl Into<Vec<u8>>) -> Result<Loaded<A>> {
        let key = key.into();
        let mut loaded = Loaded { state: A::default(), revision: None, snapshot: None };
        let snapshot = match self.client.snapshot(&*self.topic, &*key).await {
            // The events are there, and the next snapshot makes up for it.
            Err(Error::CorruptRange { message, .. }) => {
                tracing::warn!(
                    message,
                    topic = self.topic,
                    "a snapshot is damaged, the events are read instead"
                );
                None
            }
            snapshot => snapshot?,
        };
        // One that was erased is none.
        if let Some(snapshot) = snapshot.filter(|snapshot| snapshot.record.redacted().is_none()) {
            let record = snapshot.record.to_record();
            let state = A::from_snapshot(&record)
                .map_err(|error| not_understood(snapshot.record.offset(), &error))?;
            if let Some(state) = state {
                let revision = Some(snapshot.revision);
                loaded = Loaded { state, revision, snapshot: revision };
            }
        }
        self.catch_up(&key, &mut loaded).await?;
        Ok(loaded)
    }

    /// Executes a command: `decide` looks at the state and answers the events that it leads to, none at all, or why not. It
    /// is called again when others were faster. Events need no key; those that have one must have this.
    ///
    /// The aggregate that comes back has seen its own events, and they are on the server's disk.
    ///
    /// # Errors
    /// See [`CommandError`].
    pub async fn execute<E>(
        &self,
        key: impl Into<Vec<u8>>,
        mut decide: impl FnMut(&A) -> Result<Vec<Record>, E>,
    ) -> Result<Loaded<A>, CommandError<E>> {
        let key = key.into();
        let mut loaded = self.load(&*key).await?;
        for _ in 0..self.tries_max {
            let events = decide(&loaded.state).map_err(CommandError::Rejected)?;
            if events.is_empty() {
                return Ok(loaded);
            }
            let events = named(events, &key)?;
            if self.append(&key, &mut loaded, events).await? {
                self.put_snapshot(&key, &mut loaded).await;
                return Ok(loaded);
            }
        }
        Err(CommandError::Contended { tries: self.tries_max })
    }

    /// Steps 3 and 4: whether the events are there. The state has taken in what is there, in any case.
    async fn append(&self, key: &[u8], loaded: &mut Loaded<A>, events: Vec<Record>) -> Result<bool> {
        let expected = loaded.revision.map_or(ExpectedRevision::NoStream, ExpectedRevision::Exact);
        let append = self
            .client
            .append_to(&*self.topic, events.iter().cloned())?
            .require(Condition::revision(&*self.topic, key, expected));
        match append.send_until_answered(&self.client).await? {
            Sent::Applied(appended) => {
                let appended =
                    appended.first().ok_or_else(|| Error::protocol("an answer without its topic"))?;
                // They are there, whatever is wrong with them.
                self.take_in(loaded, events, appended).map_err(in_doubt)?;
                Ok(true)
            }
            Sent::Conflict { actual: Some(actual), .. } if loaded.revision < Some(actual) => {
                // What was faster may have been an earlier try of the same.
                self.client.wait_for_revision(&self.topic, key, actual).await.map_err(in_doubt)?;
                let first = self.catch_up(key, loaded).await.map_err(in_doubt)?;
                Ok(first.is_some() && first == events.first().and_then(|event| event.id))
            }
            // The key has less than it had: the topic is another one.
            Sent::Conflict { error, .. } => Err(error),
        }
    }

    /// Takes in what was appended.
    fn take_in(&self, loaded: &mut Loaded<A>, events: Vec<Record>, appended: &Appended) -> Result<()> {
        for (place, record) in (0..).zip(events) {
            let revision = loaded.revision.map_or(0, |revision| revision + 1);
            let offset = appended.first_offset + place;
            let record = self.upcasters.apply(record).map_err(|error| not_understood(offset, &error))?;
            let append_time_ms = appended.append_time_ms;
            let redacted = None;
            let event = EventRecord { offset, append_time_ms, revision: Some(revision), redacted, record };
            loaded.state.apply(&event).map_err(|error| not_understood(offset, &error))?;
            loaded.revision = Some(revision);
        }
        Ok(())
    }

    /// Takes in the events that the state has not seen; answers the id of the first one.
    async fn catch_up(&self, key: &[u8], loaded: &mut Loaded<A>) -> Result<Option<[u8; 16]>> {
        let before = loaded.revision;
        let first = self.read_behind(key, loaded).await?;
        if loaded.revision != before {
            return Ok(first);
        }
        // Nothing came. That there is nothing has to be so, and not only look so because what was there is gone.
        let next = before.map_or(0, |revision| revision + 1);
        match self.client.stream(&*self.topic, key).await? {
            Some(stream) if stream.last_revision >= next => {}
            _ => return Ok(None),
        }
        // What has come in between can be read now.
        let first = self.read_behind(key, loaded).await?;
        if loaded.revision == before { Err(self.history_gone(key, next)) } else { Ok(first) }
    }

    async fn read_behind(&self, key: &[u8], loaded: &mut Loaded<A>) -> Result<Option<[u8; 16]>> {
        let start = loaded.revision.map_or(Start::Earliest, Start::AfterRevision);
        let mut records = self.client.read_stream(&*self.topic, key).start(start).records().await?;
        let (mut first, mut is_first) = (None, true);
        while let Some(record) = records.next().await {
            let record = record?;
            let next = loaded.revision.map_or(0, |revision| revision + 1);
            if record.revision() != Some(next) {
                return Err(self.history_gone(key, next));
            }
            if std::mem::take(&mut is_first) {
                first = record.id();
            }
            let event = self.upcasters.event(&record)?;
            loaded.state.apply(&event).map_err(|error| not_understood(event.offset, &error))?;
            loaded.revision = Some(next);
        }
        Ok(first)
    }

    fn history_gone(&self, key: &[u8], from: u64) -> Error {
        let key = String::from_utf8_lossy(key).into_owned();
        Error::HistoryGone { topic: self.topic.clone(), key, from }
    }

    /// Step 5.
    async fn put_snapshot(&self, key: &[u8], loaded: &mut Loaded<A>) {
        let (Some(every), Some(revision)) = (self.snapshot_every, loaded.revision) else { return };
        let covered = loaded.snapshot.map_or(0, |revision| revision + 1);
        if revision + 1 - covered < every {
            return;
        }
        let Some(mut snapshot) = loaded.state.to_snapshot() else { return };
        snapshot.key = Some(key.to_vec().into());
        match self.client.put_snapshot(&*self.topic, revision, snapshot).await {
            Ok(_) => loaded.snapshot = Some(revision),
            // Without it more events are read, and the next command tries again.
            Err(error) => tracing::warn!(%error, topic = self.topic, "no snapshot was put"),
        }
    }
}

/// The events of a command are there, or may be.
fn in_doubt(error: Error) -> Error {
    Error::Unknown { cause: Box::new(error) }
}

/// The events with their key and with ids by which they are known again.
fn named(events: Vec<Record>, key: &[u8]) -> Result<Vec<Record>> {
    let mut ids = RecordIds::new();
    let named = |event: Record| match &event.key {
        Some(other) if other != key => {
            let message = "an event has another key than its aggregate: leave the key out".into();
            Err(Error::Invalid { message, violations: Vec::new() })
        }
        _ => {
            Ok(Record { key: Some(key.to_vec().into()), id: event.id.or_else(|| Some(ids.make())), ..event })
        }
    };
    events.into_iter().map(named).collect()
}
