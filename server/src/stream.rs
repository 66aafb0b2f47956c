//! Streams: the records of a key. What is known of them, and where to begin to read one.

use quipu_proto::v1 as pb;
use quipu_storage::{Error, Offset, Revision, StreamHead, StreamStart, Topic, Visibility};
use tonic::Status;

use crate::error::{Violations, status};

/// Streams of a page.
const PAGE_DEFAULT: usize = 100;
const PAGE_MAX: usize = 1000;
/// Bytes of keys that end a page: well below the 4 MiB that gRPC clients take if they are not told otherwise.
const PAGE_KEY_BYTES: usize = 1 << 20;
/// What a page token begins with, for the case that there will be others.
const TOKEN_PREFIX: u8 = b'1';

/// The offset where reading a stream begins. Looks into indexes.
pub(crate) fn place(
    topic: &Topic,
    key: &[u8],
    start: StreamStart,
    visibility: Visibility,
) -> Result<Offset, Status> {
    let named = match start {
        StreamStart::Revision(revision) => Some((revision, revision)),
        StreamStart::AfterRevision(revision) => Some((revision, revision.saturating_add(1))),
        _ => None,
    };
    // Before its place is looked for: what comes meanwhile comes behind.
    if let Some((revision, first)) = named {
        check_written(topic, key, revision, first, visibility)?;
    }
    let cursor = topic.stream_cursor(key, start, visibility).map_err(status)?;
    Ok(cursor.next_offset())
}

/// The offset where reading a stream backwards begins, from a revision on. Looks into indexes.
pub(crate) fn place_backwards(
    topic: &Topic,
    key: &[u8],
    revision: Revision,
    visibility: Visibility,
) -> Result<Offset, Status> {
    // That revision itself may have been removed.
    let behind = revision.saturating_add(1);
    check_written(topic, key, revision, behind, visibility)?;
    topic.stream_end_before(key, behind, visibility).map_err(status)
}

/// Checks that a stream goes so far that `first` can come next; it was asked for as `revision`.
fn check_written(
    topic: &Topic,
    key: &[u8],
    revision: Revision,
    first: Revision,
    visibility: Visibility,
) -> Result<(), Status> {
    if first == Revision::ZERO {
        return Ok(());
    }
    let head = topic.stream_with(key, visibility).map_err(status)?;
    let next_revision = head.map_or(Revision::ZERO, |head| head.last_revision.saturating_add(1));
    if first > next_revision {
        let topic = topic.name().clone();
        return Err(status(Error::RevisionUnwritten { topic, revision, next_revision }));
    }
    Ok(())
}

fn to_wire(key: Vec<u8>, head: &StreamHead) -> pb::Stream {
    pb::Stream {
        key: key.into(),
        last_revision: head.last_revision.value(),
        record_count: head.record_count,
        first_revision: head.first_revision.map(Revision::value),
        last_offset: head.last_offset.map(Offset::value),
    }
}

/// What is known of the stream of a key. Looks into indexes.
pub(crate) fn get(topic: &Topic, key: Vec<u8>) -> Result<pb::GetStreamResponse, Error> {
    let head = topic.stream(&key)?;
    Ok(pb::GetStreamResponse { stream: head.map(|head| to_wire(key, &head)) })
}

/// A page of streams that was asked for.
pub(crate) struct Page {
    prefix: Vec<u8>,
    after: Option<Vec<u8>>,
    size: usize,
}

impl Page {
    pub(crate) fn from_wire(wire: &pb::ListStreamsRequest, violations: &mut Violations) -> Self {
        let after = match &wire.page_token[..] {
            [] => None,
            [TOKEN_PREFIX, after @ ..] if after.starts_with(&wire.prefix) => Some(after.to_vec()),
            _ => {
                violations.add("page_token", "must be of the page before, with the same prefix");
                None
            }
        };
        let size = match wire.page_size as usize {
            0 => PAGE_DEFAULT,
            size => size.min(PAGE_MAX),
        };
        Self { prefix: wire.prefix.to_vec(), after, size }
    }

    /// Looks into indexes.
    pub(crate) fn list(&self, topic: &Topic) -> Result<pb::ListStreamsResponse, Error> {
        let found = topic.streams_page(&self.prefix, self.after.as_deref(), self.size)?;
        let mut next_after = found.next_after;
        let mut response = pb::ListStreamsResponse::default();
        let mut bytes = 0;
        for stream in found.streams {
            if bytes >= PAGE_KEY_BYTES {
                next_after = response.streams.last().map(|last| last.key.to_vec());
                break;
            }
            bytes += stream.key.len();
            response.streams.push(to_wire(stream.key, &stream.head));
        }
        if let Some(after) = next_after {
            response.next_page_token = [&[TOKEN_PREFIX], &after[..]].concat().into();
        }
        Ok(response)
    }
}
