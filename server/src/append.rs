//! The way of an append: check the request as a whole, hand its bytes to the engine, wait for the disk without a thread.
//!
//! The records are stored as the client encoded them. What the engine does meanwhile on the calling thread is bounded: one
//! scan over the bytes, one copy, one write into the page cache. What may take longer goes to a thread that may block: large
//! appends, and those that the engine hands back because it would have to look at the disk, or to wait for room
//! ([`Store::try_submit`]). That thread too only writes; for the sync nobody waits on a thread.

use std::collections::HashSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use quipu_proto::v1 as pb;
use quipu_storage::{
    Append, Appended, Condition, Durability, Error, Producer, Store, Submission, Ticket, Topic,
};
use tonic::{Code, Status};

use crate::condition;
use crate::error::{Problem, Violations, status};
use crate::fence::Member;
use crate::producer;
use crate::request;
use crate::shared::Shared;

/// Larger appends are scanned and copied elsewhere: this is about a tenth of a millisecond.
const BYTES_INLINE_MAX: usize = 1 << 20;
/// The same by the number of records, however small they are.
const RECORDS_INLINE_MAX: u64 = 16_384;
/// The longest request id.
const REQUEST_ID_BYTES_MAX: usize = 64;
/// Most topics of one append.
pub(crate) const APPEND_TOPICS_MAX: usize = 1000;

/// An append as it came: its records still encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WireAppend {
    pub(crate) parts: Vec<WirePart>,
    pub(crate) durability: i32,
    pub(crate) conditions: Vec<pb::AppendCondition>,
    pub(crate) producer: Option<pb::Producer>,
    /// Empty: none.
    pub(crate) request_id: Bytes,
    pub(crate) validate_only: bool,
    /// How long the message was.
    pub(crate) bytes: usize,
}

/// Records for one topic.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WirePart {
    /// Protobuf `repeated Record records = 1`.
    pub(crate) records: Bytes,
    pub(crate) record_count: u64,
    pub(crate) topic: String,
    pub(crate) records_crc: Option<u32>,
    pub(crate) fencing_token: Option<u64>,
}

/// An append that passed every check that needs no lock.
struct Checked {
    topics: Vec<Topic>,
    parts: Vec<WirePart>,
    conditions: Vec<(Topic, Condition)>,
    durability: Durability,
    producer: Option<Producer>,
    request_id: Bytes,
}

impl Checked {
    /// Scans the records and copies them into what the engine takes.
    fn append(&self) -> Result<Append, Status> {
        let mut append = Append::new().durability(self.durability);
        for (topic, part) in self.topics.iter().zip(&self.parts) {
            append = append
                .encoded(topic, &part.records)
                .map_err(|error| Status::from(Problem::from(error).with("topic", topic.name())))?;
            if let Some(token) = part.fencing_token {
                append = append.fencing_token(topic, token);
            }
        }
        for (topic, condition) in &self.conditions {
            append = append.require(topic, condition.clone());
        }
        if let Some(producer) = &self.producer {
            append = append.producer(producer.clone());
        }
        if !self.request_id.is_empty() {
            append = append.request_id(&self.request_id[..]);
        }
        Ok(append)
    }

    fn bytes(&self) -> usize {
        self.parts.iter().map(|part| part.records.len()).sum()
    }

    fn records(&self) -> u64 {
        self.parts.iter().map(|part| part.record_count).sum()
    }
}

/// The bounds of the engine, which it looks at too, but only after it has copied the records.
fn check_size(store: &Store, parts: &[WirePart]) -> Result<(), Error> {
    let bytes = parts.iter().map(|part| part.records.len() as u64).sum();
    let records = parts.iter().map(|part| part.record_count).sum();
    let settings = store.settings();
    for (what, actual, limit) in
        [("records", records, settings.append_records_max), ("bytes", bytes, settings.append_bytes_max)]
    {
        if actual > limit {
            return Err(Error::AppendTooLarge { what, actual, limit });
        }
    }
    Ok(())
}

fn check(shared: &Shared, wire: WireAppend) -> Result<Checked, Status> {
    shared.check_not_draining()?;
    let mut violations = Violations::default();
    let durability = request::durability(wire.durability, &mut violations);
    let asks_only = wire.validate_only && !wire.conditions.is_empty();
    violations.require(asks_only || !wire.parts.is_empty(), "appends", "must name a topic");
    let mut names = HashSet::with_capacity(wire.parts.len());
    for (number, part) in wire.parts.iter().enumerate() {
        violations.topic_name(format!("appends[{number}].topic"), &part.topic);
        let is_first = names.insert(part.topic.as_str());
        violations.require(is_first, format!("appends[{number}].topic"), "must be named once");
        let has_records = !part.records.is_empty();
        violations.require(has_records, format!("appends[{number}].records"), "must not be empty");
    }
    let conditions = condition::all_from_wire(wire.conditions, &mut violations);
    if let Some(producer) = &wire.producer {
        producer::check_name("producer.name", &producer.name, &mut violations);
        violations.require(wire.request_id.is_empty(), "request_id", "must not come with a producer");
    }
    let id_fits = wire.request_id.len() <= REQUEST_ID_BYTES_MAX;
    violations.require(id_fits, "request_id", "must have at most 64 bytes");
    violations.finish()?;
    check_size(&shared.store, &wire.parts).map_err(status)?;
    let mut topics = Vec::with_capacity(wire.parts.len());
    for part in &wire.parts {
        let actual = || crc32fast::hash(&part.records);
        if let Some(expected) = part.records_crc
            && expected != actual()
        {
            let message =
                format!("the records for topic {} are not what was sent: damaged on the way", part.topic);
            let problem = Problem::new(Code::InvalidArgument, "CHECKSUM_MISMATCH", message)
                .with("topic", &part.topic)
                .with("expected", expected)
                .with("actual", actual());
            return Err(problem.into());
        }
        topics.push(shared.topic(&part.topic)?);
    }
    let of_topic = |(topic, condition): (String, _)| Ok((shared.topic(&topic)?, condition));
    let conditions = conditions.into_iter().map(of_topic).collect::<Result<_, Status>>()?;
    let producer =
        wire.producer.map(|pb::Producer { name, epoch, sequence }| Producer { name, epoch, sequence });
    let request_id = wire.request_id;
    Ok(Checked { topics, parts: wire.parts, conditions, durability, producer, request_id })
}

/// An append that the engine has, or that a thread works on; as a future, its answer.
pub(crate) struct Pending {
    names: Vec<String>,
    what: What,
}

enum What {
    /// Nothing was to be appended.
    Nothing,
    Ticket(Ticket),
    /// A thread is on its way to a ticket, or to none if nothing was to be appended.
    Thread(Pin<Box<dyn Future<Output = Result<Option<Ticket>, Status>> + Send>>),
    /// The thread met an error. Nothing was appended.
    Refused(Status),
}

/// What the engine says, and whether it had said it before.
type Answer = (Vec<Appended>, bool);

impl Pending {
    /// Whether its place among the others is certain, so that the next one may begin.
    pub(crate) fn is_in_order(&self) -> bool {
        !matches!(self.what, What::Thread(_))
    }

    /// Whether it is certain already that it will be answered with an error, and nothing was appended. The answer may
    /// come later.
    pub(crate) fn is_refused(&self) -> bool {
        match &self.what {
            What::Ticket(ticket) => ticket.is_refused(),
            What::Refused(_) => true,
            What::Nothing | What::Thread(_) => false,
        }
    }

    /// Ready when it [is in order](Self::is_in_order).
    pub(crate) fn poll_in_order(&mut self, task: &mut Context<'_>) -> Poll<()> {
        if let What::Thread(thread) = &mut self.what {
            self.what = match ready!(thread.as_mut().poll(task)) {
                Ok(Some(ticket)) => What::Ticket(ticket),
                Ok(None) => What::Nothing,
                Err(status) => What::Refused(status),
            };
        }
        Poll::Ready(())
    }
}

impl Future for Pending {
    type Output = Result<pb::AppendResponse, Status>;

    fn poll(mut self: Pin<&mut Self>, task: &mut Context<'_>) -> Poll<Self::Output> {
        let this = &mut *self;
        ready!(this.poll_in_order(task));
        let outcome = match &mut this.what {
            What::Ticket(ticket) => {
                let is_duplicate = ticket.is_duplicate();
                let appended = ready!(Pin::new(ticket).poll(task));
                appended.map(|appended| (appended, is_duplicate)).map_err(status)
            }
            What::Refused(status) => Err(status.clone()),
            What::Nothing | What::Thread(_) => return Poll::Ready(Ok(pb::AppendResponse::default())),
        };
        Poll::Ready(outcome.map(|answer| response(std::mem::take(&mut this.names), &answer)))
    }
}

fn response(names: Vec<String>, (appended, duplicate): &Answer) -> pb::AppendResponse {
    let appended = names.into_iter().zip(appended).map(|(topic, appended)| pb::TopicAppended {
        topic,
        first_offset: appended.first_offset.value(),
        next_offset: appended.next_offset.value(),
        append_time_ms: appended.append_time.value(),
        durability: request::durability_to_wire(appended.durability).into(),
        revisions: appended.revisions.iter().map(|revision| revision.value()).collect(),
    });
    pb::AppendResponse { appended: appended.collect(), duplicate: *duplicate }
}

/// Begins an append. Those that one caller begins one after the other keep their order if each that is not
/// [in order](Pending::is_in_order) is waited for first.
///
/// The append passes the fence of its session, if that has a name, on its way into the engine.
pub(crate) fn begin(
    shared: &Arc<Shared>,
    wire: WireAppend,
    member: Option<&Member>,
) -> Result<Pending, Status> {
    let validate_only = wire.validate_only;
    let checked = check(shared, wire)?;
    let is_large = checked.bytes() > BYTES_INLINE_MAX || checked.records() > RECORDS_INLINE_MAX;
    if validate_only {
        let asks_the_engine = !checked.conditions.is_empty()
            || checked.producer.is_some()
            || !checked.request_id.is_empty()
            || checked.parts.iter().any(|part| part.fencing_token.is_some());
        let what = if is_large || asks_the_engine {
            let store = shared.store.clone();
            work(shared, move || store.check(checked.append()?).map(|()| None).map_err(status))
        } else {
            checked.append()?;
            What::Nothing
        };
        return Ok(Pending { names: Vec::new(), what });
    }
    shared.counters.count_append(checked.bytes() as u64);
    let names = checked.parts.iter().map(|part| part.topic.clone()).collect();
    let (store, member_there) = (shared.store.clone(), member.cloned());
    let what = if is_large {
        work(shared, move || {
            let append = checked.append()?;
            fenced(member_there.as_ref(), || store.begin(append).map(Some).map_err(status))
        })
    } else {
        let append = checked.append()?;
        match fenced(member, || store.try_submit(append).map_err(status))? {
            // Of a large one the revisions are read from its batch.
            Submission::Submitted(ticket) if ticket.reads() => work(shared, move || Ok(Some(ticket))),
            Submission::Submitted(ticket) => What::Ticket(ticket),
            // If it waits for room, the bound on bytes in flight holds others off meanwhile.
            Submission::Postponed(postponed) => work(shared, move || {
                fenced(member_there.as_ref(), || postponed.begin().map(Some).map_err(status))
            }),
        }
    };
    Ok(Pending { names, what })
}

/// Runs what appends, if the session still may.
fn fenced<T>(member: Option<&Member>, append: impl FnOnce() -> Result<T, Status>) -> Result<T, Status> {
    match member {
        Some(member) => member.run(append),
        None => append(),
    }
}

/// Runs what appends on a thread that may block.
fn work(
    shared: &Arc<Shared>,
    append: impl FnOnce() -> Result<Option<Ticket>, Status> + Send + 'static,
) -> What {
    let shared = Arc::clone(shared);
    let begin = move || append().map(|ticket| ticket.map(Ticket::read));
    What::Thread(Box::pin(async move { shared.append(begin).await? }))
}

/// Appends, and answers when it is as durable as was asked for.
pub(crate) async fn unary(shared: &Arc<Shared>, wire: WireAppend) -> Result<pb::AppendResponse, Status> {
    let Some(_room) = shared.budget.try_take(wire.bytes) else {
        shared.counters.appends_overloaded.fetch_add(1, Ordering::Relaxed);
        let limit = shared.config.append_bytes_in_flight_max;
        return Err(Problem::overloaded("the bytes of appends in flight", limit).into());
    };
    begin(shared, wire, None)?.await
}
