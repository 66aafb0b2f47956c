//! Projections: what is made of the events of a topic, with a position that is kept.
//!
//! The position of a projection is a stream of its own: records whose key is the projection's name, in a topic that keeps the
//! last of each key. A commit appends the next position under the condition that the last one is the one that this runner
//! knows. What follows from that:
//!
//! - **Results that go into quipu are there exactly once.** They are appended together with the position, all or nothing. A
//!   runner that is killed anywhere has either committed, and goes on behind, or not, and makes the same results again. One
//!   whose connection is lost in the middle asks again under the same condition.
//! - **Two runners of one projection do no harm.** The slower one is refused ([`Error::ProjectionReplaced`]), with its
//!   results.
//! - **Effects elsewhere happen at least once**: they come first, and then the position
//!   ([`Projection::commit_position`]). A runner that is killed in between repeats them.

use futures_util::FutureExt;
use quipu_proto::v1;

use crate::batch::{RecordBatch, Records, StoredRecord};
use crate::client::Client;
use crate::condition::{Condition, ExpectedRevision};
use crate::error::{Error, Outcome, Result};
use crate::ids::RecordIds;
use crate::read::{Filter, Visibility};
use crate::record::Record;
use crate::settled::Sent;
use crate::start::Start;
use crate::subscribe::{Event, Subscription};
use crate::upcast::{EventError, EventRecord, Upcasters, not_understood};

/// Where positions are, unless the caller says otherwise.
const POSITIONS: &str = "projections";
/// Events that are handed out at once, unless the caller says otherwise.
const EVENTS_MAX: usize = 500;
/// The type of a record with a position, and its header.
const POSITION_TYPE: &str = "quipu.position";
const SOURCE_UID: &str = "quipu-source-uid";

/// A projection that is to be opened; made by [`Client::projection`].
#[derive(Clone, Debug)]
#[must_use = "nothing is read until it is opened"]
pub struct ProjectionBuilder {
    client: Client,
    name: String,
    source: String,
    positions: String,
    filter: Option<Filter>,
    upcasters: Upcasters,
    events_max: usize,
    ends: bool,
}

/// A projection that runs.
#[derive(Debug)]
pub struct Projection {
    client: Client,
    name: String,
    positions: String,
    source_uid: Vec<u8>,
    upcasters: Upcasters,
    events_max: usize,
    ends: bool,
    subscription: Subscription,
    /// What came last, as far as it was not handed out, and the offset behind it.
    batch: Option<(Records, u64)>,
    /// What comes before anything else.
    obstacle: Option<Obstacle>,
    is_caught_up: bool,
    /// Everything before was handed out or is not wanted.
    handed: u64,
    /// The position that is stored.
    committed: u64,
    /// What the position's last revision is. None: not known, for a commit was given up.
    expected: Option<ExpectedRevision>,
    ids: RecordIds,
}

/// Why it does not go on.
#[derive(Debug)]
enum Obstacle {
    /// Events are gone. To be told once.
    Gap { from: u64, to: u64 },
    /// Does not go away.
    Lasting(Error),
}

impl Client {
    /// A projection of a topic: its events from the stored position on. The name is that of the position, and best also
    /// that of the form of the results: a new form is a new name, which begins at the start, beside the old one.
    ///
    /// ```no_run
    /// # async fn example(client: quipu_client::Client) -> quipu_client::Result<()> {
    /// use quipu_client::Record;
    ///
    /// let mut projection = client.projection("lengths.v1", "orders").open().await?;
    /// while let Some(events) = projection.next().await? {
    ///     let results = events.iter().map(|event| {
    ///         let length = event.record.payload.as_ref().map_or(0, |payload| payload.len());
    ///         ("lengths", Record::new(length.to_string()))
    ///     });
    ///     // The results and the position, all or nothing.
    ///     projection.commit(results).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn projection(&self, name: impl Into<String>, source: impl Into<String>) -> ProjectionBuilder {
        ProjectionBuilder {
            client: self.clone(),
            name: name.into(),
            source: source.into(),
            positions: POSITIONS.into(),
            filter: None,
            upcasters: Upcasters::default(),
            events_max: EVENTS_MAX,
            ends: false,
        }
    }
}

impl ProjectionBuilder {
    /// The topic with the positions; made when it is missing. `projections`.
    pub fn positions(mut self, topic: impl Into<String>) -> Self {
        self.positions = topic.into();
        self
    }

    /// Which events.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.filter = Some(filter);
        self
    }

    /// Makes old events new before they are handed out.
    pub fn upcasters(mut self, upcasters: Upcasters) -> Self {
        self.upcasters = upcasters;
        self
    }

    /// At most so many events at once. 500; at least 1. What they come to has to fit into one append.
    pub fn events_max(mut self, events: usize) -> Self {
        self.events_max = events.max(1);
        self
    }

    /// Ends when all that is there has been handed out, instead of waiting for more.
    pub fn until_caught_up(mut self) -> Self {
        self.ends = true;
        self
    }

    /// Opens it at its stored position; at the start if it has none.
    ///
    /// # Errors
    /// [`Error::ProjectionOutdated`]; [`Error::OffsetTrimmed`] if events behind the position are gone; [`Error::HistoryGone`]
    /// if the position is; those of reading and of making a topic.
    pub async fn open(self) -> Result<Projection> {
        self.begin(false).await
    }

    /// Opens it at the start, whatever is stored, and stores that. What it has made before stays: results that replace each
    /// other by key come to the same; all others want a topic of their own, and a projection of another name.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Error::ProjectionReplaced`] if another runner commits at the same time.
    pub async fn rebuild(self) -> Result<Projection> {
        self.begin(true).await
    }

    async fn begin(self, is_rebuild: bool) -> Result<Projection> {
        let client = self.client;
        let compaction = v1::topic_settings::Compaction { records_per_key: Some(1), ..Default::default() };
        let settings = v1::TopicSettings { compaction: Some(compaction), ..Default::default() };
        match client.topic(&*self.positions).await {
            Err(Error::TopicNotFound { .. }) => {
                match client.create_topic_with(&*self.positions, settings).await {
                    // Somebody was faster.
                    Ok(_) | Err(Error::TopicExists { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
            found => drop(found?),
        }
        let source_uid = client.topic(&*self.source).await?.uid.to_vec();
        let last = last_position(&client, &self.positions, &self.name).await?;
        let (mut position, expected) = match &last {
            None => (0, ExpectedRevision::NoStream),
            Some((stored, revision)) => {
                let uid = stored.headers().find(|(name, _)| *name == SOURCE_UID).map(|(_, uid)| uid);
                if !is_rebuild && uid != Some(hex(&source_uid).as_bytes()) {
                    return Err(Error::ProjectionOutdated { name: self.name, topic: self.source });
                }
                (parse(stored, is_rebuild)?, ExpectedRevision::Exact(*revision))
            }
        };
        if is_rebuild {
            position = 0;
        }
        // At the start, the start may have moved.
        let start = if position == 0 { Start::Earliest } else { Start::Offset(position) };
        let mut subscribe = client.subscribe(&*self.source).start(start);
        if let Some(filter) = self.filter {
            subscribe = subscribe.filter(filter);
        }
        let mut projection = Projection {
            subscription: subscribe.send().await?,
            client,
            name: self.name,
            positions: self.positions,
            source_uid,
            upcasters: self.upcasters,
            events_max: self.events_max,
            ends: self.ends,
            batch: None,
            obstacle: None,
            is_caught_up: false,
            handed: position,
            committed: position,
            expected: Some(expected),
            ids: RecordIds::new(),
        };
        if is_rebuild && last.is_some() {
            projection.store([]).await?;
        }
        Ok(projection)
    }
}

impl Projection {
    /// The stored position: the offset of the event that would come first if it were opened now.
    #[must_use]
    pub fn position(&self) -> u64 {
        self.committed
    }

    /// The next events: at least one, for which it waits. `None` only of a projection that ends when it has
    /// [caught up](ProjectionBuilder::until_caught_up). May be dropped before it is ready: nothing is lost.
    ///
    /// # Errors
    /// [`Error::RecordsGone`] if events were trimmed, behind which it goes on: who has no use for the rest opens no further
    /// commit. [`Error::EventNotUnderstood`], at which it stays; those of reading.
    pub async fn next(&mut self) -> Result<Option<Vec<EventRecord>>> {
        let mut events = Vec::new();
        loop {
            self.take(&mut events);
            if !events.is_empty() && (events.len() >= self.events_max || self.obstacle.is_some()) {
                return Ok(Some(events));
            }
            match self.obstacle.take() {
                Some(Obstacle::Gap { from, to }) => {
                    // Not before it is told: a commit of what came before must not pass over it.
                    self.handed = to;
                    return Err(Error::RecordsGone { from, to });
                }
                Some(Obstacle::Lasting(error)) => {
                    self.obstacle = Some(Obstacle::Lasting(error.clone()));
                    return Err(error);
                }
                None => {}
            }
            if self.ends && self.is_caught_up {
                return Ok(Some(events).filter(|events| !events.is_empty()));
            }
            let event = if events.is_empty() {
                self.subscription.next().await
            } else {
                match self.subscription.next().now_or_never() {
                    Some(event) => event,
                    None => return Ok(Some(events)),
                }
            };
            match event {
                Some(Ok(event)) => self.note(event),
                Some(Err(error)) => self.obstacle = Some(Obstacle::Lasting(error)),
                None => self.obstacle = Some(Obstacle::Lasting(Error::Closed)),
            }
        }
    }

    fn note(&mut self, event: Event) {
        match event {
            Event::Records(batch) => {
                let next_offset = RecordBatch::next_offset(&batch);
                self.batch = Some((batch.into_iter(), next_offset));
            }
            Event::Gap(gap) => {
                self.obstacle = Some(Obstacle::Gap { from: gap.from, to: gap.to });
            }
            Event::Progress(progress) => self.handed = progress.next_offset,
            Event::CaughtUp { next_offset } => {
                self.handed = next_offset;
                self.is_caught_up = true;
            }
            Event::FellBehind(_) | Event::Resumed { .. } => {}
        }
    }

    /// Takes events of the batch, as many as may be.
    fn take(&mut self, events: &mut Vec<EventRecord>) {
        // What is not understood stays: what is behind it must not be passed over either.
        while events.len() < self.events_max && self.obstacle.is_none() {
            let Some((records, behind)) = &mut self.batch else { return };
            let Some(record) = records.next() else {
                self.handed = *behind;
                self.batch = None;
                return;
            };
            match record.and_then(|record| self.upcasters.event(&record)) {
                Ok(event) => {
                    self.handed = event.offset + 1;
                    events.push(event);
                }
                Err(error) => {
                    self.obstacle = Some(Obstacle::Lasting(error));
                    return;
                }
            }
        }
    }

    /// Appends results, each to its topic, together with the position behind all events that were handed out: all or
    /// nothing. When this returns they are on the server's disk.
    ///
    /// # Errors
    /// [`Error::ProjectionReplaced`], after which it must be opened anew; those of an append. What was handed out is not
    /// handed out again by this runner: who does not commit it opens the projection anew.
    pub async fn commit<T: Into<String>>(
        &mut self,
        results: impl IntoIterator<Item = (T, Record)>,
    ) -> Result<()> {
        let results: Vec<_> = results.into_iter().map(|(topic, record)| (topic.into(), record)).collect();
        if results.is_empty() && self.handed == self.committed {
            return Ok(());
        }
        self.store(results).await
    }

    /// Stores the position behind all events that were handed out, after what they lead to was done elsewhere.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn commit_position(&mut self) -> Result<()> {
        self.commit::<String>([]).await
    }

    /// Runs: what `project` makes of each event, a topic and a record for each result, is committed with the position. Ends
    /// with an error, or when it has [caught up](ProjectionBuilder::until_caught_up). May be dropped at any time.
    ///
    /// # Errors
    /// As [`next`](Self::next) and [`commit`](Self::commit); [`Error::EventNotUnderstood`] with what `project` says.
    pub async fn run<T: Into<String>>(
        &mut self,
        mut project: impl FnMut(&EventRecord) -> Result<Vec<(T, Record)>, EventError>,
    ) -> Result<()> {
        while let Some(events) = self.next().await? {
            let mut results = Vec::new();
            for event in &events {
                results.extend(project(event).map_err(|error| not_understood(event.offset, &error))?);
            }
            self.commit(results).await?;
        }
        Ok(())
    }

    async fn store(&mut self, results: impl IntoIterator<Item = (String, Record)>) -> Result<()> {
        let replaced = || Error::ProjectionReplaced { name: self.name.clone() };
        let (position, id) = (self.handed, self.ids.make());
        let record = Record::keyed(self.name.clone(), position.to_string())
            .with_type(POSITION_TYPE)
            .with_id(id)
            .with_header(SOURCE_UID, hex(&self.source_uid));
        let expected = self.expected.ok_or_else(replaced)?;
        let mut append = self.client.append_to(&*self.positions, [record])?.require(Condition::revision(
            &*self.positions,
            self.name.as_bytes(),
            expected,
        ));
        for (topic, result) in results {
            append = append.and(topic, [result])?;
        }
        // For as long as the answer is out: if this is dropped, nobody knows.
        self.expected = None;
        let revision = match append.send_until_answered(&self.client).await {
            Ok(Sent::Applied(appended)) => {
                let revision = appended.first().and_then(|appended| appended.revisions.first());
                *revision.ok_or_else(|| Error::protocol("an answer without the revision"))?
            }
            Ok(Sent::Conflict { actual: None, .. }) => return Err(replaced()),
            Ok(Sent::Conflict { actual: Some(actual), .. }) => {
                // An earlier try of this one, perhaps.
                self.client.wait_for_revision(&self.positions, self.name.as_bytes(), actual).await?;
                match last_position(&self.client, &self.positions, &self.name).await? {
                    Some((last, revision)) if last.id() == Some(id) => revision,
                    _ => return Err(replaced()),
                }
            }
            Err(error) => {
                if error.outcome() == Outcome::NotApplied {
                    self.expected = Some(expected);
                }
                return Err(error);
            }
        };
        self.expected = Some(ExpectedRevision::Exact(revision));
        self.committed = position;
        Ok(())
    }
}

/// The record with the last position of a projection, and its revision. Also if it is not synced yet: what is committed on
/// top of it is synced after it.
async fn last_position(client: &Client, topic: &str, name: &str) -> Result<Option<(StoredRecord, u64)>> {
    let read = client.read_stream(topic, name).backwards().records_max(1).visibility(Visibility::Written);
    let mut records = read.records().await?;
    if let Some(record) = records.next().await {
        let record = record?;
        let revision = record.revision().ok_or_else(|| Error::protocol("a position without revision"))?;
        return Ok(Some((record, revision)));
    }
    match client.stream(topic, name).await? {
        // To begin anew would repeat everything.
        Some(stream) if stream.record_count == 0 => {
            let (topic, key) = (topic.into(), name.into());
            Err(Error::HistoryGone { topic, key, from: stream.last_revision })
        }
        _ => Ok(None),
    }
}

/// The position that a record has. Of one that is not read on, any will do.
fn parse(stored: &StoredRecord, is_given_up: bool) -> Result<u64> {
    let text = String::from_utf8_lossy(stored.payload().unwrap_or_default());
    match text.parse() {
        Ok(position) => Ok(position),
        Err(_) if is_given_up => Ok(0),
        Err(error) => Err(not_understood(stored.offset(), &format!("no position: {error}").into())),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
