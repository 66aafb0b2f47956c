//! An embeddable event log: one journal, many topics, nothing lost.
pub mod clock;
mod commit;
mod compaction;
mod context;
mod cursor;
pub mod disk;
pub mod dump;
mod error;
pub mod format;
mod journal;
#[cfg(all(test, loom))]
mod loom_tests;
mod paged;
#[doc(hidden)]
pub mod planted;
mod retention;
mod segment;
mod settings;
mod stats;
mod store;
mod sync;
mod topic;
mod topic_handle;
mod types;
pub mod verify;
mod watch;

pub use compaction::CompactionReport;
pub use cursor::{Backwards, Cursor, ReadBatch, Records, RecordsBackwards, Start, StoredRecord, Visibility};
pub use error::{Error, ErrorKind, Result};
pub use format::batch::Codec;
pub use format::record::{Record, RecordView};
pub use journal::recovery::JournalEnd;
pub use retention::{RetentionReason, RetentionReport};
pub use settings::{Compaction, Durability, Retention, Storage, StoreSettings, TopicSettings};
pub use stats::{LatencyStats, StoreStats, TopicStats};
pub use store::append::{Append, Appended, Ticket};
pub use store::{RecoveryReport, Store, StoreBuilder};
pub use topic_handle::Topic;
pub use types::{Offset, Position, Revision, Timestamp, TopicId, TopicName, Uid};
