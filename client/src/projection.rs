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
//! - **What the filter leaves out is passed over for good.** The position moves over it when all that was there has been looked
//!   at, and every 10,000 offsets, if everything that was handed out is committed: retention of the topic does not catch up
//!   with a projection that has nothing to do, and it does not look at the same again.
//! - **A topic that was deleted and made again is another one.** Whenever the subscription is made anew, the topic is
//!   compared, before anything of it is handed out ([`Error::ProjectionOutdated`]).
//! - **What was not committed is handed out again.** Whatever ends a run or a commit, the next call of [`Projection::next`] or
//!   [`Projection::run`] goes on exactly behind what is committed; if nobody knows what that is, it looks first.

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
use crate::subscribe::{Event, Subscribe, Subscription};
use crate::upcast::{EventError, EventRecord, Upcasters, not_understood};

/// Where positions are, unless the caller says otherwise.
const POSITIONS: &str = "projections";
/// Events that are handed out at once, unless the caller says otherwise.
const EVENTS_MAX: usize = 500;
/// Offsets that the filter left out, after which the position is stored although nothing was handed out.
const LEFT_OUT_MAX: u64 = 10_000;
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
    source: String,
    positions: String,
    source_uid: Vec<u8>,
    upcasters: Upcasters,
    events_max: usize,
    ends: bool,
    subscribe: Subscribe,
    /// None: to be made anew, from `handed` on.
    subscription: Option<Subscription>,
    /// The subscription was made since the topic was compared: it may be to another one.
    is_new_subscription: bool,
    /// What came last, as far as it was not handed out, and the offset behind it.
    batch: Option<(Records, u64)>,
    /// What comes before anything else.
    obstacle: Option<Obstacle>,
    is_caught_up: bool,
    /// Everything before was handed out or is not wanted.
    handed: u64,
    /// The position is to be stored although nothing was handed out, unless it has not moved.
    is_position_due: bool,
    /// Events were gone that lie behind the stored position: it is for the caller to pass over them.
    has_gap: bool,
    /// The first event that was handed out and is not committed.
    uncommitted: Option<u64>,
    /// What is not committed is to be handed out again.
    goes_back: bool,
    /// The position that is stored.
    committed: u64,
    /// What the position's last revision is, unless the open commit was applied.
    expected: ExpectedRevision,
    /// Nobody knows whether it was applied.
    open_commit: Option<Commit>,
    /// By another runner, for good.
    is_replaced: bool,
    ids: RecordIds,
}

/// A position that is being stored.
#[derive(Clone, Copy, Debug)]
struct Commit {
    id: [u8; 16],
    position: u64,
    /// Nobody asked for it: the filter left much out.
    is_unasked: bool,
}

/// Why it does not go on.
#[derive(Debug)]
enum Obstacle {
    /// Events are gone. To be told once.
    Gap { from: u64, to: u64 },
    /// Does not go away.
    Lasting(Error),
    /// The subscription has ended. To be told once.
    Ended(Error),
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
            subscription: Some(subscribe.clone().send().await?),
            subscribe,
            is_new_subscription: true,
            client,
            name: self.name,
            source: self.source,
            positions: self.positions,
            source_uid,
            upcasters: self.upcasters,
            events_max: self.events_max,
            ends: self.ends,
            batch: None,
            obstacle: None,
            is_caught_up: false,
            handed: position,
            is_position_due: false,
            has_gap: false,
            uncommitted: None,
            goes_back: false,
            committed: position,
            expected,
            open_commit: None,
            is_replaced: false,
            ids: RecordIds::new(),
        };
        // What the uid was read of may have been made again before it was subscribed to.
        projection.check_source().await?;
        if is_rebuild && last.is_some() {
            projection.store([], false).await?;
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
    /// After a commit or a run that did not succeed, or was dropped, these are the events behind what is committed, once
    /// more. If nobody knew whether a commit was applied, that is found out first.
    ///
    /// While there is nothing to hand out, and all that was is committed, it stores the position behind what the filter left
    /// out: when it has caught up, and every 10,000 offsets.
    ///
    /// # Errors
    /// [`Error::RecordsGone`] if events were trimmed, behind which it goes on: who has no use for the rest opens no further
    /// commit. [`Error::OffsetTrimmed`] if that happened to events that are to come once more;
    /// [`Error::EventNotUnderstood`], at which it stays; [`Error::ProjectionReplaced`], after which it must be opened anew;
    /// [`Error::ProjectionOutdated`]; those of reading and of a commit, after which the next call tries again.
    pub async fn next(&mut self) -> Result<Option<Vec<EventRecord>>> {
        self.settle().await?;
        let events = self.next_events().await?;
        if let Some(first) = events.as_ref().and_then(|events| events.first()) {
            self.uncommitted.get_or_insert(first.offset);
        }
        Ok(events)
    }

    /// After a failure: finds out what is committed, and goes back there.
    async fn settle(&mut self) -> Result<()> {
        if let Some(commit) = self.open_commit {
            match self.next_position(commit.id).await? {
                Next::Own(revision) => {
                    self.client.wait_for_revision(&self.positions, self.name.as_bytes(), revision).await?;
                    self.committed(commit.position, revision);
                }
                // Should it come yet, it is refused behind the next one, or the next one behind it.
                Next::None => self.open_commit = None,
                Next::Other => self.is_replaced = true,
                Next::Gone => return Err(Error::Unknown { cause: Box::new(self.replaced()) }),
            }
        }
        if self.is_replaced {
            return Err(self.replaced());
        }
        if self.goes_back {
            self.go_back();
        }
        Ok(())
    }

    /// To the first event that was handed out and is not committed.
    fn go_back(&mut self) {
        self.goes_back = false;
        if let Some(first) = self.uncommitted.take() {
            self.handed = first;
            self.is_caught_up = false;
            // All of it comes again.
            (self.subscription, self.batch, self.obstacle) = (None, None, None);
        }
    }

    async fn next_events(&mut self) -> Result<Option<Vec<EventRecord>>> {
        let mut events = Vec::new();
        loop {
            self.take(&mut events);
            if !events.is_empty() && (events.len() >= self.events_max || self.obstacle.is_some()) {
                return Ok(Some(events));
            }
            match self.obstacle.take() {
                Some(Obstacle::Gap { from, to }) => {
                    // Not before it is told: a commit of what came before must not pass over it.
                    (self.handed, self.has_gap) = (to, true);
                    return Err(Error::RecordsGone { from, to });
                }
                Some(Obstacle::Lasting(error)) => {
                    self.obstacle = Some(Obstacle::Lasting(error.clone()));
                    return Err(error);
                }
                Some(Obstacle::Ended(error)) => {
                    self.subscription = None;
                    return Err(self.why(error).await);
                }
                None => {}
            }
            if events.is_empty() && self.may_store_position() {
                self.store([], true).await?;
            }
            if self.ends && self.is_caught_up {
                return Ok(Some(events).filter(|events| !events.is_empty()));
            }
            if self.is_new_subscription && !events.is_empty() {
                // Nothing may be waited for while they are in hand.
                return Ok(Some(events));
            }
            if self.subscription.is_none() {
                let subscribe = self.subscribe.clone().start(Start::Offset(self.handed));
                self.is_new_subscription = true;
                self.subscription = match subscribe.send().await {
                    Ok(subscription) => Some(subscription),
                    Err(error) => return Err(self.why(error).await),
                };
            }
            if self.is_new_subscription {
                self.check_source().await?;
            }
            let Some(subscription) = &mut self.subscription else { continue };
            let event = if events.is_empty() {
                subscription.next().await
            } else {
                match subscription.next().now_or_never() {
                    Some(event) => event,
                    None => return Ok(Some(events)),
                }
            };
            match event {
                Some(Ok(event)) => self.note(event),
                Some(Err(error)) => self.obstacle = Some(Obstacle::Ended(error)),
                None => self.obstacle = Some(Obstacle::Ended(Error::Closed)),
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
            Event::Progress(progress) => {
                self.handed = progress.next_offset;
                self.is_position_due |= self.handed.saturating_sub(self.committed) >= LEFT_OUT_MAX;
            }
            Event::CaughtUp { next_offset } => {
                self.handed = next_offset;
                self.is_caught_up = true;
                self.is_position_due |= next_offset > self.committed;
            }
            Event::Resumed { .. } => self.is_new_subscription = true,
            Event::FellBehind(_) => {}
        }
    }

    /// Whether the position is to be stored because of what the filter left out. Not over what was handed out and is not
    /// committed.
    fn may_store_position(&self) -> bool {
        let is_all_committed = self.uncommitted.is_none() && self.batch.is_none() && !self.has_gap;
        self.is_position_due && is_all_committed && self.handed > self.committed
    }

    /// Whether the subscription is to the topic that was opened. To be asked after it was made: no other topic has that uid, so
    /// if it is there now it was there then.
    async fn check_source(&mut self) -> Result<()> {
        if self.client.topic(&*self.source).await?.uid != self.source_uid {
            return Err(Error::ProjectionOutdated { name: self.name.clone(), topic: self.source.clone() });
        }
        self.is_new_subscription = false;
        Ok(())
    }

    /// Why the topic cannot be followed: perhaps it is another one, in which the position means nothing.
    async fn why(&mut self, error: Error) -> Error {
        match self.check_source().await {
            Err(outdated @ Error::ProjectionOutdated { .. }) => outdated,
            _ => error,
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
    /// [`Error::ProjectionReplaced`], after which it must be opened anew; those of an append. If nothing was applied, the
    /// same may be committed once more, or [`next`](Self::next) hands the events out once more. If nobody knows
    /// ([`Outcome::Unknown`]), nothing can be committed before `next` has found out.
    pub async fn commit<T: Into<String>>(
        &mut self,
        results: impl IntoIterator<Item = (T, Record)>,
    ) -> Result<()> {
        let results: Vec<_> = results.into_iter().map(|(topic, record)| (topic.into(), record)).collect();
        if self.open_commit.is_some_and(|commit| commit.is_unasked) {
            // The caller, who has dropped `next` in the middle of it, knows nothing of it.
            self.settle().await?;
        }
        if results.is_empty() && self.handed == self.committed {
            return Ok(());
        }
        self.store(results, false).await
    }

    /// Stores the position behind all events that were handed out, after what they lead to was done elsewhere.
    ///
    /// # Errors
    /// As [`commit`](Self::commit).
    pub async fn commit_position(&mut self) -> Result<()> {
        self.commit::<String>([]).await
    }

    /// Runs: what `project` makes of each event, a topic and a record for each result, is committed with the position. Ends
    /// with an error, or when it has [caught up](ProjectionBuilder::until_caught_up). May be dropped at any time, and run again
    /// after an error: it goes on exactly behind what is committed, so `project` may see an event more than once.
    ///
    /// # Errors
    /// As [`next`](Self::next) and [`commit`](Self::commit); [`Error::EventNotUnderstood`] with what `project` says.
    pub async fn run<T: Into<String>>(
        &mut self,
        mut project: impl FnMut(&EventRecord) -> Result<Vec<(T, Record)>, EventError>,
    ) -> Result<()> {
        while let Some(events) = self.next().await? {
            // Until they are committed: whatever ends this, they come again.
            self.goes_back = true;
            let results: Result<Vec<_>> = events
                .iter()
                .map(|event| project(event).map_err(|error| not_understood(event.offset, &error)))
                .collect();
            let committed = match results {
                Ok(results) => self.commit(results.into_iter().flatten()).await,
                Err(error) => Err(error),
            };
            if committed.is_err() && self.open_commit.is_none() {
                // At once: no commit of the caller's may pass over what was not done.
                self.go_back();
            }
            committed?;
        }
        Ok(())
    }

    fn committed(&mut self, position: u64, revision: u64) {
        self.committed = position;
        self.expected = ExpectedRevision::Exact(revision);
        (self.open_commit, self.uncommitted, self.goes_back) = (None, None, false);
        (self.is_position_due, self.has_gap) = (false, false);
    }

    fn replaced(&self) -> Error {
        Error::ProjectionReplaced { name: self.name.clone() }
    }

    async fn store(
        &mut self,
        results: impl IntoIterator<Item = (String, Record)>,
        is_unasked: bool,
    ) -> Result<()> {
        if self.is_replaced || self.open_commit.is_some() {
            return Err(self.replaced());
        }
        self.goes_back = true;
        let (position, id) = (self.handed, self.ids.make());
        let record = Record::keyed(self.name.clone(), position.to_string())
            .with_type(POSITION_TYPE)
            .with_id(id)
            .with_header(SOURCE_UID, hex(&self.source_uid));
        let mut append = self.client.append_to(&*self.positions, [record])?.require(Condition::revision(
            &*self.positions,
            self.name.as_bytes(),
            self.expected,
        ));
        for (topic, result) in results {
            append = append.and(topic, [result])?;
        }
        // For as long as the answer is out: if this is dropped, nobody knows.
        self.open_commit = Some(Commit { id, position, is_unasked });
        let revision = match append.send_until_answered(&self.client).await {
            Ok(Sent::Applied(appended)) => {
                let revision = appended.first().and_then(|appended| appended.revisions.first());
                *revision.ok_or_else(|| Error::protocol("an answer without the revision"))?
            }
            // Perhaps by an earlier try of this one.
            Ok(Sent::Conflict { actual: Some(actual), .. }) => match self.own_revision(id, actual).await {
                Ok(Next::Own(revision)) => revision,
                Ok(Next::Other) => {
                    self.is_replaced = true;
                    return Err(self.replaced());
                }
                Ok(Next::None | Next::Gone) => {
                    return Err(Error::Unknown { cause: Box::new(self.replaced()) });
                }
                // That nothing could be read says nothing of what was appended.
                Err(error) => return Err(Error::Unknown { cause: Box::new(error) }),
            },
            Ok(Sent::Conflict { actual: None, .. }) => {
                self.is_replaced = true;
                return Err(self.replaced());
            }
            Err(error) => {
                if error.outcome() == Outcome::NotApplied {
                    self.open_commit = None;
                }
                return Err(error);
            }
        };
        self.committed(position, revision);
        Ok(())
    }

    /// The same, once `actual` is synced.
    async fn own_revision(&self, id: [u8; 16], actual: u64) -> Result<Next> {
        self.client.wait_for_revision(&self.positions, self.name.as_bytes(), actual).await?;
        self.next_position(id).await
    }

    /// What stands behind the position that was expected: where the commit with this id is if it was applied, whoever has
    /// committed on top of it since. Also if it is not synced yet.
    async fn next_position(&self, id: [u8; 16]) -> Result<Next> {
        let next = match self.expected {
            ExpectedRevision::Exact(revision) => revision + 1,
            _ => 0,
        };
        let read = self.client.read_stream(&*self.positions, &*self.name).start(Start::Revision(next));
        let mut records = read.records_max(1).visibility(Visibility::Written).records().await?;
        if let Some(record) = records.next().await {
            let record = record?;
            return Ok(match record.revision() {
                Some(revision) if revision > next => Next::Gone,
                _ if record.id() == Some(id) => Next::Own(next),
                _ => Next::Other,
            });
        }
        let stream = self.client.stream(&*self.positions, &*self.name).await?;
        Ok(if stream.is_some_and(|stream| stream.last_revision >= next) { Next::Gone } else { Next::None })
    }
}

/// What stands behind the position that was expected.
enum Next {
    /// The commit that is looked for, with this revision.
    Own(u64),
    /// The commit of another runner: that one was not applied.
    Other,
    /// Nothing.
    None,
    /// One of both, and it has been compacted.
    Gone,
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
