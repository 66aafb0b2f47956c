//! The contract's `Filter` as the engine's, which says what it means.

use quipu_proto::v1 as pb;
use quipu_storage::Filter;

/// Whether everything is wanted.
pub(super) fn is_empty(filter: &pb::Filter) -> bool {
    *filter == pb::Filter::default()
}

/// The same filter for the engine.
pub(super) fn to_engine(filter: &pb::Filter) -> Filter {
    let bytes = |all: &[bytes::Bytes]| all.iter().map(|one| one.to_vec()).collect();
    Filter {
        keys: bytes(&filter.keys),
        key_prefixes: bytes(&filter.key_prefixes),
        types: filter.types.clone(),
        tags: filter.tags.iter().map(|set| set.all.clone()).collect(),
        headers: filter.headers.iter().map(|header| (header.name.clone(), header.value.to_vec())).collect(),
    }
}
