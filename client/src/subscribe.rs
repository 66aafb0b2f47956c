//! Following a topic: what is there, then what is appended, over lost connections and restarts of the server.
//!
//! The position is one number: everything before it was handed to the caller, left out by the filter, or reported as a
//! gap. After a disconnect the subscription goes on from there, so the caller sees each record once, in order. Nothing is
//! read ahead beyond the stream's window ([`ClientBuilder::windows`](crate::ClientBuilder::windows)) and one message: a
//! caller that is slow holds the server off, and nobody else.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use quipu_proto::v1;
use tonic::Streaming;
use v1::subscribe_response::Event as Wire;

use crate::batch::{Content, RecordBatch, content};
use crate::client::{Client, in_time, path};
use crate::error::{Error, Result};
use crate::read::{Filter, Gap, Visibility};
use crate::retry::Backoff;
use crate::start::Start;

/// Heartbeats that may be missed before a silent server is taken for a lost one.
const MISSED_MAX: u32 = 3;
/// A heartbeat whenever nothing else was sent for so long, unless the caller says otherwise.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// What to follow; made by [`Client::subscribe`].
#[derive(Clone, Debug)]
#[must_use = "nothing is followed until it is sent"]
pub struct Subscribe {
    client: Client,
    request: v1::SubscribeRequest,
}

/// What a subscription brings.
#[derive(Clone, Debug)]
pub enum Event {
    /// Records.
    Records(RecordBatch),
    /// Records that will not come: trimmed or evicted.
    Gap(Gap),
    /// How far it is, when the filter left records out.
    Progress(v1::Progress),
    /// All that was there has been handed over: from now on records come as they are appended.
    CaughtUp {
        /// The next offset.
        next_offset: u64,
    },
    /// The caller was too slow for the tail: records come from the disk again. A `CaughtUp` follows in time.
    FellBehind(v1::FellBehind),
    /// The connection was lost and is there again. Nothing is missing and nothing comes twice.
    Resumed {
        /// The next offset.
        next_offset: u64,
    },
}

impl Client {
    /// Follows a topic, from its first record unless told otherwise.
    pub fn subscribe(&self, topic: impl Into<String>) -> Subscribe {
        let request = v1::SubscribeRequest {
            topic: topic.into(),
            heartbeat_ms: HEARTBEAT.as_millis() as u64,
            ..v1::SubscribeRequest::default()
        };
        Subscribe { client: self.clone(), request }
    }
}

impl Subscribe {
    /// Where to start. [`Start::Earliest`].
    pub fn start(mut self, start: Start) -> Self {
        self.request.start = Some(start.into());
        self
    }

    /// Which records.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.request.filter = Some(filter);
        self
    }

    /// What is visible. [`Visibility::Synced`]. With [`Visibility::Written`] a power cut may take back what was seen.
    pub fn visibility(mut self, visibility: Visibility) -> Self {
        self.request.set_visibility(visibility);
        self
    }

    /// A [`Event::Progress`] at least after so many records that the filter left out. 10,000; 1 to 10,000,000.
    pub fn progress_records(mut self, records: u64) -> Self {
        self.request.progress_records = records;
        self
    }

    /// A server that is silent for three times as long is taken for lost. 5 s; 100 ms to 5 min.
    pub fn heartbeat(mut self, interval: Duration) -> Self {
        self.request.heartbeat_ms = u64::try_from(interval.as_millis()).unwrap_or(u64::MAX);
        self
    }

    /// Begins to follow, and waits for the server's first word: from then on nothing is missed, also from
    /// [`Start::Latest`].
    ///
    /// # Errors
    /// [`Error::TopicNotFound`], [`Error::OffsetTrimmed`], [`Error::OffsetUnwritten`], [`Error::Invalid`] and those of the
    /// connection.
    pub async fn send(self) -> Result<Subscription> {
        let mut subscription = Subscription {
            backoff: Backoff::new(self.client.settings.retry),
            client: self.client,
            request: self.request,
            position: None,
            stream: None,
            is_new: true,
            waiting: VecDeque::new(),
            is_over: false,
        };
        let first = subscription.event().await?;
        subscription.waiting.push_front(first);
        Ok(subscription)
    }
}

/// A topic that is followed. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    client: Client,
    request: v1::SubscribeRequest,
    /// Where to go on, once the first message has come.
    position: Option<u64>,
    stream: Option<Streaming<Bytes>>,
    /// Nothing has come on this stream.
    is_new: bool,
    /// Of the message that came last.
    waiting: VecDeque<Event>,
    backoff: Backoff,
    is_over: bool,
}

impl Subscription {
    /// What comes next; waits for as long as nothing comes. `None` only behind an error: it goes on for as long as the
    /// server is there again in the time that [`Retry`](crate::Retry) allows. May be dropped before it is ready: nothing
    /// is lost. Behind [`Error::CorruptRange`] whoever wants what is intact subscribes anew, from its `to`.
    pub async fn next(&mut self) -> Option<Result<Event>> {
        if self.is_over {
            return None;
        }
        let event = self.event().await;
        self.is_over = event.is_err();
        Some(event)
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<Event>> + Send {
        futures_util::stream::unfold(self, |mut subscription| async {
            let event = subscription.next().await?;
            Some((event, subscription))
        })
    }

    /// Where it stands: everything before it has come from the server. `None` before the first word of the server.
    #[must_use]
    pub fn next_offset(&self) -> Option<u64> {
        self.position
    }

    async fn event(&mut self) -> Result<Event> {
        loop {
            if let Some(event) = self.waiting.pop_front() {
                return Ok(event);
            }
            let error = match self.message().await {
                Ok(message) => {
                    self.backoff.succeeded();
                    if let (true, Some(next_offset)) = (self.is_new, self.position) {
                        self.waiting.push_back(Event::Resumed { next_offset });
                    }
                    self.is_new = false;
                    self.take(&message)?;
                    continue;
                }
                Err(error) => error,
            };
            self.stream = None;
            match (error, self.position) {
                // Trimmed while we were away.
                (Error::OffsetTrimmed { earliest, .. }, Some(position)) if earliest > position => {
                    self.position = Some(earliest);
                    let reason = v1::gap::Reason::Trimmed.into();
                    return Ok(Event::Gap(Gap { from: position, to: earliest, reason }));
                }
                (error, _) => self.backoff.wait(error).await?,
            }
        }
    }

    /// The next message, of a new stream if there is none.
    async fn message(&mut self) -> Result<Bytes> {
        let stream = match &mut self.stream {
            Some(stream) => stream,
            None => {
                let mut request = self.request.clone();
                if let Some(position) = self.position {
                    request.start = Some(Start::Offset(position).into());
                }
                let stream = self.client.server_stream(path::SUBSCRIBE, request).await?;
                self.is_new = true;
                self.stream.insert(stream)
            }
        };
        let silence_max = Duration::from_millis(self.request.heartbeat_ms.max(100)) * MISSED_MAX;
        match in_time(silence_max, "from a subscription", stream.message()).await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => {
                Err(Error::Disconnected { message: "the subscription ended without a status".into() })
            }
            Err(error) => Err(error),
        }
    }

    /// Takes a message apart. The position moves here, and what it moved over waits to be handed out: both or, if the
    /// caller drops the future, neither.
    fn take(&mut self, message: &Bytes) -> Result<()> {
        let other = match content::<v1::SubscribeResponse>(message)? {
            Content::Batches(batches) => {
                for batch in batches {
                    if self.position.is_some_and(|position| batch.first_offset() < position) {
                        return Err(Error::protocol("records came twice"));
                    }
                    self.position = Some(batch.next_offset());
                    self.waiting.push_back(Event::Records(batch));
                }
                return Ok(());
            }
            Content::Other(other) => other,
        };
        let (next_offset, event) = match other.event {
            Some(Wire::Progress(progress)) => (progress.next_offset, Some(Event::Progress(progress))),
            Some(Wire::CaughtUp(v1::CaughtUp { next_offset })) => {
                (next_offset, Some(Event::CaughtUp { next_offset }))
            }
            Some(Wire::FellBehind(fell)) => (fell.next_offset, Some(Event::FellBehind(fell))),
            Some(Wire::Gap(gap)) => (gap.to, Some(Event::Gap(gap))),
            Some(Wire::Heartbeat(heartbeat)) => (heartbeat.next_offset, None),
            Some(Wire::Draining(draining)) => (draining.next_offset, None),
            // What a later server may add.
            Some(Wire::Batches(_)) | None => return Ok(()),
        };
        self.position = self.position.max(Some(next_offset));
        self.waiting.extend(event);
        Ok(())
    }
}
