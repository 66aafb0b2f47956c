//! What several requests have in common: where to start, what is visible, how durable.

use quipu_proto::v1 as pb;
use quipu_storage::{Durability, Filter, Offset, Revision, Start, StreamStart, Timestamp, Visibility};

use crate::error::Violations;

/// Most records of a stream that its end is counted back over: each takes some bytes in memory.
const LAST_REVISIONS_MAX: u64 = 100_000;

/// Where to start.
#[derive(Clone, Debug)]
pub(crate) enum StartAt {
    Topic(Start),
    /// In the stream of a key.
    Stream(Vec<u8>, StreamStart),
}

/// Where to start; EARLIEST if it is not said.
pub(crate) fn start(
    wire: Option<pb::StartPosition>,
    filter: Option<&Filter>,
    violations: &mut Violations,
) -> StartAt {
    use pb::start_position::Position;
    let stream = match wire.and_then(|wire| wire.position) {
        None | Some(Position::Earliest(_)) => return StartAt::Topic(Start::Earliest),
        Some(Position::Latest(_)) => return StartAt::Topic(Start::Latest),
        Some(Position::Offset(offset)) => return StartAt::Topic(Start::Offset(Offset(offset))),
        Some(Position::AfterOffset(offset)) => return StartAt::Topic(Start::AfterOffset(Offset(offset))),
        Some(Position::TimeMs(time)) => return StartAt::Topic(Start::Time(Timestamp(time))),
        Some(Position::Last(count)) => return StartAt::Topic(Start::Last(count)),
        Some(Position::Revision(revision)) => StreamStart::Revision(Revision(revision)),
        Some(Position::AfterRevision(revision)) => StreamStart::AfterRevision(Revision(revision)),
        Some(Position::LastRevisions(count)) => {
            violations.require(
                count <= LAST_REVISIONS_MAX,
                "start.last_revisions",
                "must be at most 100,000",
            );
            StreamStart::Last(usize::try_from(count.min(LAST_REVISIONS_MAX)).unwrap_or(usize::MAX))
        }
    };
    match filter.map(|filter| (&filter.keys[..], &filter.key_prefixes[..])) {
        Some(([key], [])) => StartAt::Stream(key.clone(), stream),
        _ => {
            violations.add("start", "is in a stream: the filter must have exactly one key, and no prefixes");
            StartAt::Topic(Start::Earliest)
        }
    }
}

/// What is visible.
pub(crate) fn visibility(wire: i32, violations: &mut Violations) -> Visibility {
    match pb::Visibility::try_from(wire) {
        Ok(pb::Visibility::Unspecified | pb::Visibility::Synced) => Visibility::Synced,
        Ok(pb::Visibility::Written) => Visibility::Written,
        Err(_) => {
            violations.add("visibility", format!("{wire} is no visibility"));
            Visibility::Synced
        }
    }
}

/// When to acknowledge.
pub(crate) fn durability(wire: i32, violations: &mut Violations) -> Durability {
    match pb::Durability::try_from(wire) {
        Ok(pb::Durability::Unspecified | pb::Durability::Synced) => Durability::Synced,
        Ok(pb::Durability::Written) => Durability::Written,
        Ok(pb::Durability::Accepted) => Durability::Accepted,
        Err(_) => {
            violations.add("durability", format!("{wire} is no durability"));
            Durability::Synced
        }
    }
}

pub(crate) fn durability_to_wire(durability: Durability) -> pb::Durability {
    match durability {
        Durability::Synced => pb::Durability::Synced,
        Durability::Written => pb::Durability::Written,
        Durability::Accepted => pb::Durability::Accepted,
    }
}
