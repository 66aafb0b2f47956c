//! Finding out what was applied of that which was sent and not answered; steps 2 to 4 of the session's
//! [module](super).

use std::collections::VecDeque;

use bytes::Bytes;
use quipu_proto::v1;
use v1::subscribe_response::Event;

use super::batch::Batch;
use crate::append::{Appended, Durability};
use crate::batch::{Content, RecordBatch, content};
use crate::client::{Client, in_time, path};
use crate::error::{Error, Result};
use crate::start::Start;

/// From where on to look for what was sent.
///
/// Everything that was sent since it was noted lies at this offset or behind it, in the log in which it was applied. A
/// power cut may cut that log below it; what was sent is lost then, too, and what others append in its place is not ours.
#[derive(Clone, Debug)]
pub(super) struct Mark {
    /// Which topic of that name: another begins at 0 again.
    topic_uid: Bytes,
    offset: u64,
}

impl Mark {
    /// Up to here is answered.
    pub(super) fn answered(&mut self, next_offset: u64) {
        self.offset = next_offset;
    }
}

/// Takes from the front of `unanswered` what is found in the topic, hands it to `applied`, and notes from where on to look
/// the next time. To be called when no earlier request can be applied any more, and before another is sent.
///
/// What is left in `unanswered` was not applied, and is marked as not sent.
///
/// # Errors
/// [`Error::Unknown`] if that cannot be known; those of the connection.
pub(super) async fn settle(
    client: &Client,
    topic: &str,
    mark: &mut Option<Mark>,
    unanswered: &mut VecDeque<Batch>,
    mut applied: impl FnMut(Batch, Appended),
) -> Result<()> {
    let now = client.topic(topic).await?;
    if let (Some(mark), true) = (&*mark, is_in_doubt(unanswered)) {
        let from = if mark.topic_uid == now.uid { mark.offset } else { 0 };
        // What is answered need not be synced, and a reader of what is synced cannot begin behind it.
        let from = from.min(now.high_watermark);
        let range = from..now.log_end_offset;
        if !range.is_empty() {
            tracing::debug!(
                topic,
                from,
                to = range.end,
                batches = unanswered.len(),
                "looking for what was sent"
            );
            let has_holes = look(client, topic, range, unanswered, &mut applied).await?;
            if has_holes && is_in_doubt(unanswered) {
                let message = format!("records of {topic} from offset {from} on are gone");
                return Err(Error::Unknown { cause: Box::new(Error::Disconnected { message }) });
            }
        }
    }
    unanswered.iter_mut().for_each(|batch| batch.was_sent = false);
    *mark = Some(Mark { topic_uid: now.uid, offset: now.log_end_offset });
    Ok(())
}

/// Whether there is anything to look for. What was never sent stands behind what was.
fn is_in_doubt(unanswered: &VecDeque<Batch>) -> bool {
    unanswered.front().is_some_and(|batch| batch.was_sent)
}

/// Reads the synced records of `range`, waiting for those that are not synced yet. Says whether any were missing.
async fn look(
    client: &Client,
    topic: &str,
    range: std::ops::Range<u64>,
    unanswered: &mut VecDeque<Batch>,
    applied: &mut impl FnMut(Batch, Appended),
) -> Result<bool> {
    let silence_max = client.settings.request_timeout;
    let mut has_holes = false;
    let mut position = range.start;
    let request = |from: u64| v1::SubscribeRequest {
        topic: topic.to_owned(),
        start: Some(Start::Offset(from).into()),
        visibility: v1::Visibility::Synced.into(),
        ..v1::SubscribeRequest::default()
    };
    let first = async |from| -> Result<_> {
        let mut stream = client.server_stream(path::SUBSCRIBE, request(from)).await?;
        let message = in_time(silence_max, "from a subscription", stream.message()).await?;
        Ok((stream, message))
    };
    let (mut stream, mut message) = match first(position).await {
        Err(Error::OffsetTrimmed { earliest, .. }) => {
            has_holes = true;
            position = earliest;
            if position >= range.end {
                return Ok(has_holes);
            }
            first(position).await?
        }
        opened => opened?,
    };
    let mut progress = tokio::time::Instant::now();
    loop {
        let Some(said) = message else {
            return Err(Error::Disconnected { message: "the subscription ended without a status".into() });
        };
        let before = position;
        match content::<v1::SubscribeResponse>(&said)? {
            Content::Batches(batches) => {
                for batch in batches {
                    has_holes |= batch.first_offset() != position || !batch.is_dense();
                    position = batch.next_offset();
                    find(&batch, unanswered, applied)?;
                }
            }
            Content::Other(other) => match other.event {
                Some(Event::Gap(gap)) => {
                    has_holes = true;
                    position = gap.to;
                }
                // Of a subscription without a filter they only repeat the position.
                Some(
                    Event::Progress(v1::Progress { next_offset, .. })
                    | Event::CaughtUp(v1::CaughtUp { next_offset })
                    | Event::FellBehind(v1::FellBehind { next_offset, .. })
                    | Event::Heartbeat(v1::Heartbeat { next_offset, .. }),
                ) => {
                    has_holes |= next_offset > position;
                    position = position.max(next_offset);
                }
                Some(Event::Draining(_)) => {
                    return Err(Error::Disconnected { message: "the server is shutting down".into() });
                }
                Some(Event::Batches(_)) | None => {}
            },
        }
        if position >= range.end || !is_in_doubt(unanswered) {
            return Ok(has_holes);
        }
        if position > before {
            progress = tokio::time::Instant::now();
        } else if progress.elapsed() > silence_max {
            // It beats, but does not sync.
            return Err(Error::TimedOut {
                message: format!("for offset {position} of {topic} to be synced"),
            });
        }
        message = in_time(silence_max, "from a subscription", stream.message()).await?;
    }
}

/// Takes those batches from the front of `unanswered` whose first records are in `batch`.
fn find(
    batch: &RecordBatch,
    unanswered: &mut VecDeque<Batch>,
    applied: &mut impl FnMut(Batch, Appended),
) -> Result<()> {
    for record in batch {
        let record = record?;
        let Some(front) = unanswered.front().filter(|batch| batch.was_sent) else { break };
        if record.id() == Some(front.first_id) {
            let first_offset = record.offset();
            let next_offset = first_offset
                .checked_add(front.count)
                .ok_or_else(|| Error::protocol("a record lies behind the last offset there can be"))?;
            let found = unanswered.pop_front().expect("there is a front");
            let appended = Appended {
                first_offset,
                next_offset,
                append_time_ms: record.append_time_ms(),
                durability: Durability::Synced,
                revisions: Vec::new(),
            };
            applied(found, appended);
        }
    }
    Ok(())
}
