//! The typed, async client of quipu.
//!
//! ```no_run
//! # async fn example() -> quipu_client::Result<()> {
//! let client = quipu_client::Client::connect("http://127.0.0.1:7878").await?;
//! client.append("orders", ["placed", "paid"]).await?;
//! let mut records = client.read("orders").records().await?;
//! while let Some(record) = records.next().await {
//!     println!("{:?}", record?.payload());
//! }
//! # Ok(())
//! # }
//! ```
//!
//! | To | Use |
//! |---|---|
//! | append once, to one topic or several as one | [`Client::append`], [`Client::append_to`] |
//! | append many, batched, each once, over lost connections | [`Client::append_session`] |
//! | read what is there | [`Client::read`] |
//! | follow what comes, over lost connections | [`Client::subscribe`] |
//! | append once even if the process is killed | [`SessionBuilder::producer`], [`Append::producer`], [`Client::producer`] |
//! | make and look after topics | [`Client::create_topic`], [`Client::update_topic`], [`Client::compact_topic`] |
//!
//! [`Error`] has a variant for each reason, and [`Error::outcome`] says whether anything was applied. Settings, reports and
//! other plain messages are those of the wire contract, in [`v1`].
//!
//! Inside: `client` makes calls, `codec`, `wire`, `record` and `batch` look into records without copying them, `session`
//! is the append session, whose module says why no record is lost or appended twice.

#![forbid(unsafe_code)]

/// The snippets of the READMEs and pages are compiled with the other examples.
#[cfg(doctest)]
mod readme {
    #[doc = include_str!("../../README.md")]
    struct OfTheProject;
    #[doc = include_str!("../README.md")]
    struct OfThisCrate;
    #[doc = include_str!("../../docs/event-sourcing.md")]
    struct OfEventSourcing;
}

mod aggregate;
mod append;
mod batch;
mod client;
mod codec;
mod condition;
mod erasure;
mod error;
mod ids;
mod producers;
mod projection;
mod read;
mod record;
mod retry;
mod session;
mod settings;
mod settled;
mod snapshot;
mod start;
mod streams;
mod subscribe;
mod topics;
mod upcast;
mod wire;

pub use aggregate::{Aggregate, Aggregates, CommandError, Loaded};
pub use append::{Append, Appended, Durability};
pub use batch::{RecordBatch, Records, StoredRecord};
pub use client::Client;
pub use condition::{Condition, Expected, ExpectedRevision, FailedCondition};
pub use erasure::Redaction;
pub use error::{Error, Outcome, Result, Violation};
pub use ids::RecordIds;
pub use producers::ProducerState;
pub use projection::{Projection, ProjectionBuilder};
pub use quipu_proto::v1;
pub use read::{Filter, Gap, Read, ReadEvent, Reading, RecordReader, Visibility};
pub use record::Record;
pub use retry::Retry;
pub use session::{AppendSession, SessionBuilder, Ticket};
pub use settings::ClientBuilder;
pub use snapshot::{Snapshot, SnapshotPut};
pub use start::Start;
pub use streams::{StreamInfo, StreamPages};
pub use subscribe::{Event, Subscribe, Subscription};
pub use topics::{CompactOptions, TopicPages, Upkeep};
pub use upcast::{EventError, EventRecord, Upcasters};
