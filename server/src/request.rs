//! What several requests have in common: where to start, what is visible, how durable.

use quipu_proto::v1 as pb;
use quipu_storage::{Durability, Offset, Start, Timestamp, Visibility};

use crate::error::Violations;

/// Where to start; EARLIEST if it is not said.
pub(crate) fn start(wire: Option<pb::StartPosition>) -> Start {
    use pb::start_position::Position;
    match wire.and_then(|wire| wire.position) {
        None | Some(Position::Earliest(_)) => Start::Earliest,
        Some(Position::Latest(_)) => Start::Latest,
        Some(Position::Offset(offset)) => Start::Offset(Offset(offset)),
        Some(Position::AfterOffset(offset)) => Start::AfterOffset(Offset(offset)),
        Some(Position::TimeMs(time)) => Start::Time(Timestamp(time)),
        Some(Position::Last(count)) => Start::Last(count),
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
