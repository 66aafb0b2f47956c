//! An embeddable event log: one journal, many topics, nothing lost.
//!
//! ```
//! use quipu_storage::{Record, Start, Store};
//!
//! # fn main() -> quipu_storage::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let path = dir.path();
//! let store = Store::open(path)?;
//! let orders = store.topic_or_create("orders")?;
//! orders.append(&[Record::keyed("order-7", "placed"), Record::keyed("order-7", "paid")])?;
//! for record in orders.read(Start::Earliest)? {
//!     println!("{:?}", record?.payload());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! When [`Topic::append`] returns, the records are on the disk: one fdatasync has covered them, shared with whoever else
//! waited. [`Topic::follow`] goes on where [`Topic::read`] ends, woken by each append and never polling:
//!
//! ```
//! # use quipu_storage::{Record, Start, Store};
//! # fn main() -> quipu_storage::Result<()> {
//! # let dir = tempfile::tempdir().unwrap();
//! # let store = Store::open(dir.path())?;
//! # let orders = store.topic_or_create("orders")?;
//! let follower = orders.follow(Start::Latest)?;
//! let reader = std::thread::spawn(move || follower.take(1).collect::<Vec<_>>());
//! orders.append(&[Record::new("shipped")])?;
//! assert_eq!(reader.join().unwrap()[0].as_ref().unwrap().payload(), Some(&b"shipped"[..]));
//! # Ok(())
//! # }
//! ```
//!
//! # What an acknowledgement survives
//!
//! | [`Durability`] | a killed process | a power cut | waits for |
//! |---|---|---|---|
//! | `Synced`, the default | yes | yes | an fdatasync, shared |
//! | `Written` | yes | not within [`sync_interval`](StoreSettings::sync_interval) | a copy into the page cache |
//! | `Accepted` | not within `sync_interval` | likewise | a copy in memory |
//!
//! A synced record makes every earlier record of the store durable, whatever that one asked for. Readers see synced
//! records only, unless they ask for [`Visibility::Written`].
//!
//! Other processes read along with [`Store::open_read_only`], which takes no lock and writes nothing.
//!
//! # What can go wrong
//!
//! [`Error::kind`] says what to do about each error. After a failed sync the store takes no appends until it is
//! reopened ([`ErrorKind::Reopen`]): what the disk holds is known only when it has been read again. (Compaction's new file is
//! thrown away instead: nothing relies on it yet.) Damage is reported
//! with topic, offsets, file and position ([`Error::Corrupt`]), and what is intact stays readable.
//!
//! # Where things are
//!
//! An append goes through `store::append` into the `journal`, waits in the `topic`'s tail, and is flushed into a
//! `segment`; a checkpoint then frees the journal. A `cursor` reads tail and segments. [`mod@format`] has every
//! byte, [`disk`] is all that touches files. `ARCHITECTURE.md` tells the whole story, `docs/format.md` specifies the files.
//!
//! | Beside a [`Store`] | |
//! |---|---|
//! | [`Store::open_read_only`] | reads a store that another process may be writing |
//! | [`Log`] | one log in one directory, without journal and topics |
//! | [`Topic::compact`] | keeps the latest records of each key; runs by itself where [`TopicSettings::compaction`] says so |
//! | [`Topic::put_snapshot`] | keeps what a stream comes to, so that not all of it must be read |
//! | [`verify`] | looks at every checksum, offset and file, of a closed store or beside appends |
//! | [`dump`] | files as text, for a person |

/// The snippets of the README are compiled with the other examples.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod clock;
mod commit;
mod compaction;
mod condition;
mod context;
mod cursor;
pub mod disk;
pub mod dump;
mod erasure;
mod error;
mod filter;
mod filtered;
pub mod format;
mod journal;
mod live;
mod log;
#[cfg(all(test, loom))]
mod loom_tests;
mod paged;
#[doc(hidden)]
pub mod planted;
mod producers;
mod read_only;
mod retention;
mod segment;
mod settings;
mod snapshot;
mod stats;
mod store;
mod stream;
mod sync;
mod terms;
mod topic;
mod topic_handle;
mod types;
pub mod verify;
mod watch;

pub use compaction::{
    CompactOptions, CompactionControl, CompactionProgress, CompactionReport, DamagedRange, RecordsKept,
    RecordsRemoved,
};
pub use condition::{Condition, ExpectedRevision, FailedCheck, FailedCondition};
pub use cursor::{Backwards, Cursor, ReadBatch, Records, RecordsBackwards, Start, StoredRecord, Visibility};
pub use erasure::master_key::ErasureReport;
pub use error::{Error, ErrorKind, Result};
pub use filter::Filter;
pub use filtered::{FilteredBackwards, FilteredCursor};
pub use format::answer::Producer;
pub use format::batch::Codec;
pub use format::record::{Record, RecordView, Redaction};
pub use journal::recovery::JournalEnd;
pub use log::open::LogBuilder;
pub use log::read::{LogBackwards, LogCursor, LogRecords, LogRecordsBackwards};
pub use log::recovery::LogRecovery;
pub use log::settings::LogSettings;
pub use log::{Log, LogStats};
pub use producers::{ProducerInfo, TEMPORARY_PREFIX};
pub use read_only::{ReadOnlyStats, ReadOnlyStore, ReadOnlyTopic};
pub use retention::{RetentionReason, RetentionReport};
pub use settings::{Compaction, Durability, Retention, Storage, StoreSettings, TopicSettings};
pub use snapshot::{Snapshot, SnapshotPut};
pub use stats::{LatencyStats, StoreStats, TopicStats};
pub use store::append::{Append, Appended};
pub use store::ticket::{Postponed, Submission, Ticket};
pub use store::{RecoveryReport, Store, StoreBuilder};
pub use stream::{
    StreamCursor, StreamHead, StreamInfo, StreamPage, StreamRecords, StreamRecordsBackwards, StreamStart,
};
pub use topic_handle::Topic;
pub use types::{Offset, Position, Revision, Timestamp, TopicId, TopicName, Uid};
