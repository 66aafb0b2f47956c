//! Key compaction (placeholder until the next commit).

use crate::store::StoreInner;
use crate::types::TopicName;

/// What a run of compaction did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompactionReport {
    /// The topic.
    pub topic: TopicName,
}

impl StoreInner {
    pub(crate) fn run_compaction(&self) {}
}
