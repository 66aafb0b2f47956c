//! A server, through the client.
//!
//! Commands are synchronous; the client's tasks run on one thread of their own, so that what is on its way goes on while
//! the next batch is made or the last one is printed.

use std::collections::VecDeque;
use std::future::Future;

use quipu_client::{
    Append, AppendSession, Appended, Client, ClientBuilder, CompactOptions, Condition, Event, ReadEvent,
    Reading, Record, RecordBatch, Redaction, Retry, SnapshotPut, Start, StoredRecord, Subscription, Ticket,
    Visibility,
};
use quipu_proto::v1 as pb;
use tokio::runtime::Runtime;
use tonic::Code;

use super::{
    Acknowledged, Backend, Damage, Direction, Item, ProducerAt, Publisher, ReadSpec, Reader, Step, filter,
};
use crate::exit::{Exit, Failure, Result};
use crate::position::Position;
use crate::requirement::{Requirement, Unmet, look_at};

/// Batches that may be unacknowledged; the session bounds their bytes.
const TICKETS_MAX: usize = 64;

/// See the [module](self).
pub(crate) struct Remote {
    runtime: Runtime,
    client: Client,
}

impl Remote {
    /// Connects. Nobody answering is told at once; later losses of the connection are waited out.
    pub(crate) fn connect(builder: ClientBuilder, url: &str) -> Result<Self> {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().map_err(
                |error| Failure::new(Exit::Failure, "IO", format!("cannot start a runtime: {error}")),
            )?;
        let probe = builder.clone().retry(Retry::NEVER).connect();
        let client = runtime.block_on(async {
            // A call, too: a server that refuses our certificate says so only then.
            match probe.await?.server_status().await {
                Err(
                    error @ (quipu_client::Error::Connect { .. }
                    | quipu_client::Error::Disconnected { .. }
                    | quipu_client::Error::TimedOut { .. }),
                ) => Err(error),
                _ => builder.connect_lazy(),
            }
        });
        let client =
            client.map_err(|error| Failure::from(error).while_doing(format_args!("server {url}")))?;
        Ok(Self { runtime, client })
    }

    fn call<T>(&self, call: impl Future<Output = quipu_client::Result<T>>) -> Result<T> {
        Ok(self.runtime.block_on(call)?)
    }

    /// How the server and its store are.
    pub(crate) fn status(&self) -> Result<pb::GetServerStatusResponse> {
        self.call(self.client.server_status())
    }

    /// For commands with tasks of their own.
    pub(crate) fn parts(&self) -> (&Runtime, &Client) {
        (&self.runtime, &self.client)
    }

    /// The first of the last `count` records that the filter lets through. What is damaged on the way is passed over:
    /// whoever reads forwards from there comes across it again.
    fn nth_last_match(&self, spec: &ReadSpec, count: u64) -> Result<Start> {
        let (mut lowest, mut left, mut start) = (None, count, None);
        while left > 0 {
            let outcome = self.runtime.block_on(async {
                let mut read = self.client.read(&spec.topic).backwards().records_max(left);
                if let Some(start) = start {
                    read = read.start(start);
                }
                let mut reading =
                    read.filter(spec.filter.clone()).visibility(visibility(spec)).send().await?;
                while let Some(event) = reading.next().await {
                    if let ReadEvent::Records(batch) = event? {
                        for record in &batch {
                            lowest = Some(record?.offset());
                            left = left.saturating_sub(1);
                        }
                    }
                }
                Ok(())
            });
            match outcome.map_err(damage) {
                Ok(()) | Err(Ok(Damage { from: 0, .. })) => break,
                Err(Ok(Damage { from, .. })) => start = Some(Start::Offset(from - 1)),
                Err(Err(error)) => return Err(error.into()),
            }
        }
        Ok(lowest.map_or(Start::Latest, Start::Offset))
    }

    fn start(&self, spec: &ReadSpec) -> Result<Start> {
        Ok(match spec.start {
            Position::Earliest => Start::Earliest,
            Position::Latest => Start::Latest,
            Position::Offset(offset) => Start::Offset(offset),
            Position::Time(time) => Start::Time(time),
            Position::Revision(revision) => {
                spec.stream_key("--revision")?;
                Start::Revision(revision)
            }
            Position::Last(count) if filter::is_empty(&spec.filter) => Start::Last(count),
            Position::Last(count) => self.nth_last_match(spec, count)?,
        })
    }
}

/// What is damaged, if that is what went wrong and it is known how to go on.
fn damage(error: quipu_client::Error) -> Result<Damage, quipu_client::Error> {
    let message = error.to_string();
    match error {
        quipu_client::Error::CorruptRange { from: Some(from), to: Some(to), .. } if from < to => {
            Ok(Damage { from, to, message })
        }
        error => Err(error),
    }
}

fn visibility(spec: &ReadSpec) -> Visibility {
    if spec.sees_written { Visibility::Written } else { Visibility::Synced }
}

impl Backend for Remote {
    fn create_topic(&self, name: &str, settings: pb::TopicSettings) -> Result<pb::Topic> {
        self.call(self.client.create_topic_with(name, settings))
    }

    fn topic(&self, name: &str) -> Result<pb::Topic> {
        self.call(self.client.topic(name))
    }

    fn topics(&self, prefix: &str, each: &mut dyn FnMut(pb::Topic) -> Result<()>) -> Result<()> {
        let mut pages = self.client.topic_pages(prefix);
        while let Some(page) = self.call(pages.next())? {
            page.into_iter().try_for_each(&mut *each)?;
        }
        Ok(())
    }

    fn update_topic(&self, name: &str, settings: pb::TopicSettings, paths: &[&str]) -> Result<pb::Topic> {
        self.call(self.client.update_topic(name, settings, paths.iter().copied()))
    }

    fn delete_topic(&self, name: &str) -> Result<()> {
        self.call(self.client.delete_topic(name))
    }

    fn trim_topic(&self, name: &str, before_offset: u64) -> Result<u64> {
        self.call(self.client.trim_topic(name, before_offset))
    }

    fn compact_topic(
        &self,
        request: pb::CompactTopicRequest,
        progress: &mut dyn FnMut(pb::CompactionProgress),
    ) -> Result<pb::CompactionReport> {
        use pb::compact_topic_response::Event;
        let options = CompactOptions {
            dry_run: request.dry_run,
            bytes_per_second_max: request.bytes_per_second_max,
            erased_only: request.erased_only,
        };
        let mut run = self.call(self.client.compact_topic(request.name, options))?;
        while let Some(response) = self.call(run.next())? {
            match response.event {
                Some(Event::Progress(now)) => progress(now),
                Some(Event::Report(report)) => return Ok(report),
                None => {}
            }
        }
        Err(Failure::new(Exit::Failure, "INTERNAL", "the server ended the compaction without a report"))
    }

    fn verify_topic(
        &self,
        name: &str,
        progress: &mut dyn FnMut(pb::VerifyProgress),
    ) -> Result<pb::VerifyReport> {
        use pb::verify_topic_response::Event;
        let mut run = self.call(self.client.verify_topic(name))?;
        while let Some(response) = self.call(run.next())? {
            match response.event {
                Some(Event::Progress(now)) => progress(now),
                Some(Event::Report(report)) => return Ok(report),
                None => {}
            }
        }
        Err(Failure::new(Exit::Failure, "INTERNAL", "the server ended the verification without a report"))
    }

    fn topic_status(&self, name: &str) -> Result<pb::GetTopicStatusResponse> {
        self.call(self.client.topic_status(name))
    }

    fn offset_of(&self, topic: &str, position: Position) -> Result<u64> {
        let bounds = self.call(self.client.bounds(topic))?;
        Ok(match position {
            Position::Offset(offset) => offset,
            Position::Earliest => bounds.log_start_offset,
            Position::Latest | Position::Revision(_) => bounds.high_watermark,
            Position::Last(count) => bounds.high_watermark.saturating_sub(count).max(bounds.log_start_offset),
            Position::Time(time) => self.call(async {
                let read = self.client.read(topic).start(Start::Time(time)).records_max(1);
                let first = async {
                    let mut reading = read.send().await?;
                    while let Some(event) = reading.next().await {
                        match event? {
                            ReadEvent::Records(batch) => return Ok(batch.first_offset()),
                            ReadEvent::End(end) => return Ok(end.next_offset),
                            ReadEvent::Gap(_) => {}
                        }
                    }
                    Ok(bounds.high_watermark)
                };
                // What lies there is damaged: whoever reads from there comes across it again.
                first.await.or_else(|error| damage(error).map(|damage| damage.from))
            })?,
        })
    }

    fn streams(
        &self,
        topic: &str,
        prefix: &[u8],
        each: &mut dyn FnMut(pb::Stream) -> Result<()>,
    ) -> Result<()> {
        let mut pages = self.client.stream_pages(topic, prefix);
        while let Some(page) = self.call(pages.next())? {
            page.into_iter().try_for_each(&mut *each)?;
        }
        Ok(())
    }

    fn stream(&self, topic: &str, key: &[u8]) -> Result<Option<pb::Stream>> {
        self.call(self.client.stream(topic, key))
    }

    fn unmet(&self, topic: &str, requirements: &[Requirement]) -> Result<Vec<Unmet>> {
        let conditions = requirements.iter().map(|one| condition(topic, one));
        match self.runtime.block_on(self.client.check(conditions)) {
            Ok(()) => Ok(Vec::new()),
            Err(quipu_client::Error::ConditionFailed { failed, .. }) => Ok(failed
                .into_iter()
                .map(|failed| Unmet {
                    number: failed.number,
                    actual: failed.actual,
                    offset: failed.first_conflicting_offset,
                })
                .collect()),
            Err(error) => Err(error.into()),
        }
    }

    fn producer(&self, name: &str) -> Result<Option<pb::ProducerState>> {
        self.call(self.client.producer(name))
    }

    fn producers(&self) -> Result<Vec<pb::ProducerState>> {
        self.call(self.client.producers(usize::MAX))
    }

    fn forget_producer(&self, name: &str) -> Result<()> {
        self.call(self.client.forget_producer(name))
    }

    fn put_snapshot(
        &self,
        topic: &str,
        revision: u64,
        snapshot: pb::Record,
        durability: pb::Durability,
    ) -> Result<SnapshotPut> {
        self.call(self.client.put_snapshot_with(topic, revision, to_client(snapshot), durability))
    }

    fn snapshot(&self, topic: &str, key: &[u8], up_to: Option<u64>) -> Result<Option<Item>> {
        let snapshot = self.call(async {
            match up_to {
                Some(up_to) => self.client.snapshot_up_to(topic, key, up_to).await,
                None => self.client.snapshot(topic, key).await,
            }
        })?;
        Ok(snapshot.map(|snapshot| Item { revision: Some(snapshot.revision), ..item(&snapshot.record) }))
    }

    fn publisher(
        &self,
        topic: &str,
        durability: pb::Durability,
        producer: Option<ProducerAt>,
    ) -> Result<Box<dyn Publisher + '_>> {
        // A batch of ours is a batch of the session's: it goes out as it is handed over.
        let mut session = self.client.append_session(topic).durability(durability).batch_bytes(1);
        if let Some(ProducerAt { name, epoch, next_sequence }) = producer {
            session = session.producer(name, epoch, next_sequence);
        }
        Ok(Box::new(RemotePublisher {
            remote: self,
            session: self.call(session.open())?,
            tickets: VecDeque::new(),
            acknowledged: Acknowledged::default(),
            topic: topic.to_owned(),
            durability,
            requirements: Vec::new(),
            fencing_token: None,
        }))
    }

    fn erase_keys(&self, erasure_keys: &[String]) -> Result<pb::EraseKeysResponse> {
        self.call(self.client.erase_keys(erasure_keys))
    }

    fn reader(&self, spec: ReadSpec) -> Result<Box<dyn Reader + '_>> {
        let until = match spec.until {
            None => Until::default(),
            Some(Position::Time(time)) => Until { offset: None, time: Some(time) },
            Some(position) => Until { offset: Some(self.offset_of(&spec.topic, position)?), time: None },
        };
        if spec.direction == Direction::Follow {
            let left = if spec.records_max == 0 { u64::MAX } else { spec.records_max };
            let start = self.start(&spec)?;
            return Ok(Box::new(Follower {
                remote: self,
                spec,
                until,
                left,
                start,
                subscription: None,
                next_offset: 0,
                is_idle: false,
            }));
        }
        let is_backwards = spec.direction == Direction::Backwards;
        let start = match (is_backwards, spec.start) {
            (false, _) => Some(self.start(&spec)?),
            (true, Position::Latest) => None,
            (true, Position::Last(_)) => {
                return Err(Failure::usage(
                    "--reverse begins at the end already: use --count for the last n",
                ));
            }
            (true, Position::Revision(_)) => Some(self.start(&spec)?),
            (true, position) => Some(Start::Offset(self.offset_of(&spec.topic, position)?)),
        };
        let (left, reading) = (spec.records_max, Stage::ToOpen(start));
        Ok(Box::new(RemoteReader { remote: self, spec, until, left, reading, is_backwards }))
    }

    fn close(&self) -> Result<()> {
        Ok(())
    }
}

struct RemotePublisher<'a> {
    remote: &'a Remote,
    session: AppendSession,
    tickets: VecDeque<Ticket>,
    acknowledged: Acknowledged,
    topic: String,
    durability: pb::Durability,
    /// Of the next batch.
    requirements: Vec<Requirement>,
    /// Of every batch.
    fencing_token: Option<u64>,
}

impl RemotePublisher<'_> {
    fn wait_oldest(&mut self) -> Result<()> {
        if let Some(ticket) = self.tickets.pop_front() {
            let appended = self.remote.call(ticket.wait())?;
            self.note(&appended);
        }
        Ok(())
    }

    fn note(&mut self, appended: &Appended) {
        let acknowledged = &mut self.acknowledged;
        acknowledged.records += appended.next_offset - appended.first_offset;
        acknowledged.first_offset.get_or_insert(appended.first_offset);
        acknowledged.next_offset = appended.next_offset;
    }

    /// A batch under conditions or with a fencing token, which a session does not have: in a call of its own, when all others
    /// are answered.
    fn append_under(&mut self, requirements: &[Requirement], records: Vec<pb::Record>) -> Result<()> {
        self.finish()?;
        let append = self.remote.client.append_to(&self.topic, records.into_iter().map(to_client))?;
        let conditions = requirements.iter().map(|one| condition(&self.topic, one));
        let mut append = conditions.fold(append.durability(self.durability), Append::require);
        if let Some(token) = self.fencing_token {
            append = append.fencing_token(&self.topic, token);
        }
        for appended in self.remote.call(append.send())? {
            self.note(&appended);
        }
        Ok(())
    }
}

impl Publisher for RemotePublisher<'_> {
    fn require(&mut self, requirements: Vec<Requirement>) {
        self.requirements = requirements;
    }

    fn fence(&mut self, token: u64) {
        self.fencing_token = Some(token);
    }

    fn submit(&mut self, records: Vec<pb::Record>) -> Result<()> {
        let requirements = std::mem::take(&mut self.requirements);
        if !requirements.is_empty() || self.fencing_token.is_some() {
            return self.append_under(&requirements, records);
        }
        while self.tickets.len() >= TICKETS_MAX {
            self.wait_oldest()?;
        }
        let outcome = self.remote.call(self.session.append_all(records.into_iter().map(to_client)));
        match outcome {
            Ok(ticket) => {
                self.tickets.push_back(ticket);
                Ok(())
            }
            Err(failure) => {
                // What had been answered before counts.
                while !self.tickets.is_empty() {
                    self.wait_oldest()?;
                }
                Err(failure)
            }
        }
    }

    fn finish(&mut self) -> Result<()> {
        while !self.tickets.is_empty() {
            self.wait_oldest()?;
        }
        Ok(())
    }

    fn acknowledged(&self) -> Acknowledged {
        self.acknowledged
    }
}

fn condition(topic: &str, requirement: &Requirement) -> Condition {
    match requirement {
        Requirement::Revision { key, expected } => Condition::revision(topic, key.clone(), *expected),
        Requirement::NextOffset(offset) => Condition::next_offset(topic, *offset),
        Requirement::NoMatch { filter, after } => Condition::no_match(topic, filter.clone(), *after),
    }
}

fn to_client(record: pb::Record) -> Record {
    Record {
        // Ids are checked where they are read.
        id: record.id.and_then(|id| <[u8; 16]>::try_from(&id[..]).ok()),
        key: record.key,
        record_type: record.r#type,
        tags: record.tags,
        headers: record.headers.into_iter().map(|header| (header.name, header.value)).collect(),
        content_type: record.content_type,
        payload: record.payload,
        erasure_key: record.erasure_key,
    }
}

/// Where a reader ends that the server does not end.
#[derive(Clone, Copy, Default)]
struct Until {
    offset: Option<u64>,
    time: Option<u64>,
}

fn items(batch: &RecordBatch) -> Result<Vec<Item>> {
    let mut items = Vec::with_capacity(batch.len());
    for record in batch {
        items.push(item(&record?));
    }
    Ok(items)
}

fn item(record: &StoredRecord) -> Item {
    let headers = record.headers();
    Item {
        offset: record.offset(),
        append_time_ms: record.append_time_ms(),
        revision: record.revision(),
        record: pb::Record {
            id: record.id().map(|id| id.to_vec().into()),
            key: record.key().map(bytes::Bytes::copy_from_slice),
            r#type: record.record_type().into(),
            tags: record.tags().map(Into::into).collect(),
            headers: headers
                .map(|(name, value)| pb::Header { name: name.into(), value: value.to_vec().into() })
                .collect(),
            content_type: record.content_type().into(),
            payload: record.payload_bytes(),
            erasure_key: record.erasure_key().map(Into::into),
            redacted: match record.redacted() {
                None => 0,
                Some(Redaction::Erased) => pb::record::Redaction::Erased.into(),
                Some(_) => pb::record::Redaction::Locked.into(),
            },
        },
    }
}

fn gap(gap: &quipu_client::Gap) -> Step {
    let reason = match gap.reason() {
        pb::gap::Reason::Evicted => "evicted from memory",
        pb::gap::Reason::Trimmed | pb::gap::Reason::Unspecified => "trimmed",
    };
    Step::Gap { from: gap.from, to: gap.to, reason }
}

struct RemoteReader<'a> {
    remote: &'a Remote,
    spec: ReadSpec,
    until: Until,
    /// 0: no limit.
    left: u64,
    reading: Stage,
    is_backwards: bool,
}

/// How far a reader is.
enum Stage {
    /// From there; `None`: from the end.
    ToOpen(Option<Start>),
    Open(Box<Reading>),
    Over,
}

impl RemoteReader<'_> {
    /// The next event; `None` at the end.
    fn event(&mut self) -> quipu_client::Result<Option<ReadEvent>> {
        if let Stage::ToOpen(start) = &self.reading {
            let mut read = self.remote.client.read(&self.spec.topic).records_max(self.left);
            read = read.filter(self.spec.filter.clone()).visibility(visibility(&self.spec));
            if let Some(start) = *start {
                read = read.start(start);
            }
            if self.is_backwards {
                read = read.backwards();
            }
            if let Some(offset) = self.until.offset {
                read = read.until_offset(offset);
            }
            if let (Some(time), false) = (self.until.time, self.is_backwards) {
                read = read.until_time_ms(time);
            }
            self.reading = Stage::Open(Box::new(self.remote.runtime.block_on(read.send())?));
        }
        match &mut self.reading {
            Stage::Open(reading) => self.remote.runtime.block_on(reading.next()).transpose(),
            Stage::ToOpen(_) | Stage::Over => Ok(None),
        }
    }

    /// What is damaged is passed over, once it was named.
    fn pass_over(&mut self, damage: Damage) -> Step {
        self.reading = match (self.is_backwards, damage.from) {
            (false, _) => Stage::ToOpen(Some(Start::Offset(damage.to))),
            (true, 0) => Stage::Over,
            (true, from) => Stage::ToOpen(Some(Start::Offset(from - 1))),
        };
        Step::Damaged(damage)
    }
}

impl Reader for RemoteReader<'_> {
    fn next(&mut self) -> Result<Step> {
        let event = match self.event() {
            Ok(event) => event,
            Err(error) => return Ok(self.pass_over(damage(error)?)),
        };
        match event {
            Some(ReadEvent::Records(batch)) => {
                let mut items = items(&batch)?;
                if let (true, Some(time)) = (self.is_backwards, self.until.time) {
                    let count = items.len();
                    items.retain(|item| item.append_time_ms >= time);
                    if items.len() < count {
                        self.reading = Stage::Over;
                    }
                }
                if self.left > 0 {
                    // For a reader that is opened anew.
                    self.left = self.left.saturating_sub(items.len() as u64).max(1);
                }
                Ok(Step::Records(items))
            }
            Some(ReadEvent::Gap(found)) => Ok(gap(&found)),
            Some(ReadEvent::End(_)) | None => {
                self.reading = Stage::Over;
                Ok(Step::End)
            }
        }
    }
}

struct Follower<'a> {
    remote: &'a Remote,
    spec: ReadSpec,
    until: Until,
    left: u64,
    /// Where to begin, until there is a subscription.
    start: Start,
    subscription: Option<Subscription>,
    /// Everything before it was handed out, left out or named as gone or damaged. The subscription itself is ahead: it
    /// counts a message when it comes, and hands out its batches one by one.
    next_offset: u64,
    /// Whether the caller has been told that there is nothing more right now.
    is_idle: bool,
}

impl Follower<'_> {
    /// The next event; `None` if there is none yet and the caller does not know.
    fn event(&mut self) -> quipu_client::Result<Option<Event>> {
        let runtime = &self.remote.runtime;
        let subscription = match &mut self.subscription {
            Some(subscription) => subscription,
            None => {
                let subscribe = self.remote.client.subscribe(&self.spec.topic).start(self.start);
                let subscribe = subscribe.filter(self.spec.filter.clone()).visibility(visibility(&self.spec));
                self.subscription.insert(runtime.block_on(subscribe.send())?)
            }
        };
        let is_idle = self.is_idle;
        let event = runtime.block_on(async {
            tokio::select! {
                biased;
                event = subscription.next() => Some(event),
                () = std::future::ready(()), if !is_idle => None,
            }
        });
        match event {
            None => {
                self.is_idle = true;
                Ok(None)
            }
            Some(Some(event)) => event.map(Some),
            Some(None) => {
                Err(quipu_client::Error::Disconnected { message: "the subscription has ended".into() })
            }
        }
    }
}

impl Reader for Follower<'_> {
    fn next(&mut self) -> Result<Step> {
        loop {
            if self.left == 0 || self.until.offset.is_some_and(|until| self.next_offset >= until) {
                return Ok(Step::End);
            }
            let event = match self.event() {
                Ok(Some(event)) => event,
                Ok(None) => return Ok(Step::Idle),
                Err(error) => {
                    // It is named, and then passed over: what comes behind it is intact.
                    let damage = damage(error)?;
                    self.subscription = None;
                    self.start = Start::Offset(damage.to);
                    self.next_offset = damage.to;
                    self.is_idle = false;
                    return Ok(Step::Damaged(damage));
                }
            };
            match event {
                Event::Records(batch) => {
                    self.is_idle = false;
                    self.next_offset = batch.next_offset();
                    let mut items = items(&batch)?;
                    let count = items.len();
                    items.retain(|item| self.until.time.is_none_or(|time| item.append_time_ms < time));
                    let is_over = items.len() < count;
                    items.retain(|item| self.until.offset.is_none_or(|until| item.offset < until));
                    items.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
                    self.left -= items.len() as u64;
                    if is_over {
                        self.left = 0;
                    }
                    if !items.is_empty() {
                        return Ok(Step::Records(items));
                    }
                }
                Event::Gap(found) => {
                    self.next_offset = found.to;
                    return Ok(gap(&found));
                }
                Event::Resumed { next_offset } => return Ok(Step::Resumed { next_offset }),
                Event::Progress(pb::Progress { next_offset, .. })
                | Event::CaughtUp { next_offset }
                | Event::FellBehind(pb::FellBehind { next_offset, .. }) => self.next_offset = next_offset,
            }
        }
    }
}

impl From<quipu_client::Error> for Failure {
    fn from(error: quipu_client::Error) -> Self {
        use quipu_client::Error as E;
        let message = error.to_string();
        let of = |exit, reason: &str| Self::new(exit, reason, message.clone());
        match error {
            E::TopicNotFound { topic } => of(Exit::NotFound, "TOPIC_NOT_FOUND").hint(format!(
                "`quipu topics list` shows what is there, `quipu topics create {topic}` makes it"
            )),
            E::TopicExists { .. } => of(Exit::Conflict, "TOPIC_EXISTS"),
            E::OffsetTrimmed { .. } => of(Exit::OutOfRange, "OFFSET_TRIMMED")
                .hint("`--from earliest` starts at the first record there is"),
            E::OffsetUnwritten { .. } => of(Exit::OutOfRange, "OFFSET_UNWRITTEN")
                .hint("`--from latest` starts behind the last record there is"),
            E::ConditionFailed { failed, failed_count, .. } => {
                let mut message: String =
                    failed.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ");
                if failed_count > failed.len() {
                    message.push_str(&format!("; and {} more", failed_count - failed.len()));
                }
                let failure = Self::new(Exit::Conflict, "APPEND_CONDITION_FAILED", message);
                match failed.first() {
                    Some(first) => failure.hint(look_at(&first.topic, first.first_conflicting_offset)),
                    None => failure,
                }
            }
            E::SequenceGap { .. } => of(Exit::Conflict, "PRODUCER_SEQUENCE_GAP"),
            E::ProducerFenced { .. } => of(Exit::Conflict, "PRODUCER_FENCED"),
            E::TopicFenced { .. } => of(Exit::Conflict, "TOPIC_FENCED"),
            E::RequestIdReused { .. } => of(Exit::Conflict, "REQUEST_ID_REUSED"),
            E::TooManyProducers { .. } => of(Exit::Busy, "TOO_MANY_PRODUCERS"),
            E::ProducerNotFound { .. } => of(Exit::NotFound, "PRODUCER_NOT_FOUND"),
            E::RevisionUnwritten { .. } => of(Exit::OutOfRange, "REVISION_UNWRITTEN")
                .hint("`quipu streams` shows the last revision of each key"),
            E::Invalid { .. } => of(Exit::Usage, "INVALID_ARGUMENT"),
            E::TooLarge { .. } => of(Exit::Usage, "RECORD_TOO_LARGE"),
            E::DiskFull { .. } => of(Exit::DiskFull, "DISK_FULL"),
            E::Overloaded { .. } | E::RateLimited { .. } => of(Exit::Unavailable, "OVERLOADED"),
            E::NotReady { .. } => of(Exit::Unavailable, "NOT_READY"),
            E::CorruptRange { .. } => of(Exit::Damaged, "CORRUPT_RANGE"),
            E::ChecksumMismatch { .. } | E::Damaged { .. } => of(Exit::Damaged, "CHECKSUM_MISMATCH"),
            E::StorageFailed { .. } => of(Exit::StorageFailed, "STORAGE_FAILED"),
            E::CodecUnavailable { .. } => of(Exit::Unsupported, "CODEC_UNAVAILABLE"),
            E::Unimplemented { .. } => of(Exit::Unsupported, "UNIMPLEMENTED"),
            // Not ours: of something between us and the server.
            E::Refused { ref reason, code, .. } if reason.is_empty() => match code {
                Code::Unauthenticated => of(Exit::Denied, "UNAUTHENTICATED"),
                Code::PermissionDenied => of(Exit::Denied, "ACCESS_DENIED"),
                _ => of(Exit::Failure, "INTERNAL"),
            },
            E::Refused { ref reason, .. } => of(Exit::of_reason(reason).unwrap_or(Exit::Failure), reason),
            E::Connect { .. } => of(Exit::Unavailable, "UNREACHABLE")
                .hint("start a server with `quipu serve`, name another with --server, or work on a directory with --data"),
            E::Disconnected { .. } | E::TimedOut { .. } => of(Exit::Unavailable, "UNREACHABLE"),
            E::Unknown { .. } => of(Exit::Unavailable, "OUTCOME_UNKNOWN")
                .hint("some of these records may be there: read the end of the topic before you publish them again"),
            E::AppendedBefore => of(Exit::Conflict, "APPENDED_BEFORE").hint(
                "another publisher of this name is at work: when it has ended, the same command goes on where it did",
            ),
            E::NotSent { cause } => Self::from(*cause),
            _ => of(Exit::Failure, "INTERNAL"),
        }
    }
}
