//! Reading what is there: forwards or backwards, to an end.
//!
//! A read that loses its connection goes on where it was: the caller sees each record once, in order.

use std::collections::VecDeque;

use bytes::Bytes;
use futures_util::Stream;
use quipu_proto::v1;
use tonic::Streaming;

use crate::batch::{Content, RecordBatch, Records, StoredRecord, content};
use crate::client::{Client, path};
use crate::error::{Error, Result};
use crate::retry::Backoff;
use crate::start::Start;

pub use quipu_proto::v1::{Filter, Gap, Visibility};

/// What to read; made by [`Client::read`].
#[derive(Clone, Debug)]
#[must_use = "nothing is read until it is sent"]
pub struct Read {
    client: Client,
    request: v1::ReadRequest,
}

/// What a read brings.
#[derive(Clone, Debug)]
pub enum ReadEvent {
    /// Records.
    Records(RecordBatch),
    /// Records between two others are gone.
    Gap(Gap),
    /// The end of the read, always last.
    End(v1::ReadEnd),
}

impl Client {
    /// Reads a topic, from its first record to the last that is there when the read begins, unless told otherwise.
    pub fn read(&self, topic: impl Into<String>) -> Read {
        let request = v1::ReadRequest { topic: topic.into(), ..v1::ReadRequest::default() };
        Read { client: self.clone(), request }
    }
}

impl Read {
    /// Where to start. [`Start::Earliest`]; backwards the last record there is.
    pub fn start(mut self, start: Start) -> Self {
        self.request.start = Some(start.into());
        self
    }

    /// From the start towards older records.
    pub fn backwards(mut self) -> Self {
        self.request.backwards = true;
        self
    }

    /// Up to this offset, exclusive; backwards: down to this offset, inclusive.
    pub fn until_offset(mut self, offset: u64) -> Self {
        self.request.until_offset = Some(offset);
        self
    }

    /// Up to the first record at this time or later, exclusive, in milliseconds since the Unix epoch. Forwards only.
    pub fn until_time_ms(mut self, time_ms: u64) -> Self {
        self.request.until_time_ms = Some(time_ms);
        self
    }

    /// At most so many records. 0: no limit.
    pub fn records_max(mut self, records: u64) -> Self {
        self.request.records_max = records;
        self
    }

    /// Which records.
    pub fn filter(mut self, filter: Filter) -> Self {
        self.request.filter = Some(filter);
        self
    }

    /// What is visible. [`Visibility::Synced`].
    pub fn visibility(mut self, visibility: Visibility) -> Self {
        self.request.set_visibility(visibility);
        self
    }

    /// Begins to read.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`], [`Error::OffsetTrimmed`], [`Error::OffsetUnwritten`], [`Error::Invalid`] and those of the
    /// connection; some of them only come with the first event.
    pub async fn send(self) -> Result<Reading> {
        let mut reading = Reading {
            backoff: Backoff::new(self.client.settings.retry),
            client: self.client,
            request: self.request,
            position: None,
            stream: None,
            waiting: VecDeque::new(),
            is_over: false,
        };
        loop {
            match reading.client.server_stream(path::READ, reading.going_on()).await {
                Ok(stream) => {
                    reading.stream = Some(stream);
                    return Ok(reading);
                }
                Err(error) => reading.backoff.wait(error).await?,
            }
        }
    }

    /// Reads record by record. What is gone between two records is an [`Error::RecordsGone`], behind which it goes on.
    ///
    /// # Errors
    /// As [`send`](Self::send).
    pub async fn records(self) -> Result<RecordReader> {
        Ok(RecordReader { reading: self.send().await?, batch: None })
    }
}

/// A read that has begun.
#[derive(Debug)]
pub struct Reading {
    client: Client,
    request: v1::ReadRequest,
    /// Where to go on, once the first message has come.
    position: Option<u64>,
    stream: Option<Streaming<Bytes>>,
    waiting: VecDeque<RecordBatch>,
    backoff: Backoff,
    is_over: bool,
}

impl Reading {
    /// What comes next; `None` behind the end and behind an error. May be dropped before it is ready: nothing is lost.
    pub async fn next(&mut self) -> Option<Result<ReadEvent>> {
        if self.is_over {
            return None;
        }
        let event = self.event().await;
        self.is_over = matches!(event, Err(_) | Ok(ReadEvent::End(_)));
        Some(event)
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<ReadEvent>> + Send {
        futures_util::stream::unfold(self, |mut reading| async {
            let event = reading.next().await?;
            Some((event, reading))
        })
    }

    async fn event(&mut self) -> Result<ReadEvent> {
        loop {
            if let Some(batch) = self.waiting.pop_front() {
                self.take(&batch);
                return Ok(ReadEvent::Records(batch));
            }
            let error = match self.message().await {
                Ok(message) => {
                    self.backoff.succeeded();
                    match content::<v1::ReadResponse>(&message)? {
                        Content::Batches(batches) => self.waiting.extend(batches),
                        Content::Other(other) => match other.event {
                            Some(v1::read_response::Event::Gap(gap)) => {
                                self.position = Some(if self.request.backwards { gap.from } else { gap.to });
                                return Ok(ReadEvent::Gap(gap));
                            }
                            Some(v1::read_response::Event::End(end)) => return Ok(ReadEvent::End(end)),
                            // What a later server may add.
                            Some(v1::read_response::Event::Batches(_)) | None => {}
                        },
                    }
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
                    return Ok(ReadEvent::Gap(Gap { from: position, to: earliest, reason }));
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
                let request = self.going_on();
                self.stream.insert(self.client.server_stream(path::READ, request).await?)
            }
        };
        match stream.message().await {
            Ok(Some(message)) => Ok(message),
            Ok(None) => Err(Error::Disconnected { message: "the read ended without its end".into() }),
            Err(status) => Err(status.into()),
        }
    }

    /// Notes that the caller has had the batch.
    fn take(&mut self, batch: &RecordBatch) {
        self.position = Some(batch.next_offset());
        if self.request.records_max > 0 {
            self.request.records_max = self.request.records_max.saturating_sub(batch.len() as u64);
            // 0 means no limit: a read that has had all that it wanted is not begun again.
            if self.request.records_max == 0 {
                self.request.until_offset = Some(batch.next_offset());
            }
        }
    }

    /// The request, from where the caller is.
    fn going_on(&self) -> v1::ReadRequest {
        let mut request = self.request.clone();
        match self.position {
            None => {}
            Some(position) if request.backwards => {
                // The position is the lowest offset that was looked at. Below 0 there is nothing: an empty read.
                request.start = Some(Start::Offset(position.saturating_sub(1)).into());
                if position == 0 {
                    request.until_offset = Some(1);
                }
            }
            Some(position) => request.start = Some(Start::Offset(position).into()),
        }
        request
    }
}

/// Records one by one; made by [`Read::records`].
#[derive(Debug)]
pub struct RecordReader {
    reading: Reading,
    batch: Option<Records>,
}

impl RecordReader {
    /// The next record; `None` behind the last and behind an error other than [`Error::RecordsGone`].
    pub async fn next(&mut self) -> Option<Result<StoredRecord>> {
        loop {
            if let Some(record) = self.batch.as_mut().and_then(Iterator::next) {
                return Some(record);
            }
            match self.reading.next().await? {
                Ok(ReadEvent::Records(batch)) => self.batch = Some(batch.into_iter()),
                Ok(ReadEvent::Gap(gap)) => {
                    return Some(Err(Error::RecordsGone { from: gap.from, to: gap.to }));
                }
                Ok(ReadEvent::End(_)) => return None,
                Err(error) => return Some(Err(error)),
            }
        }
    }

    /// The same as a stream.
    pub fn into_stream(self) -> impl Stream<Item = Result<StoredRecord>> + Send {
        futures_util::stream::unfold(self, |mut reader| async {
            let record = reader.next().await?;
            Some((record, reader))
        })
    }
}
