//! The typed, async client.
#![forbid(unsafe_code)]

mod append;
mod batch;
mod client;
mod codec;
mod error;
mod ids;
mod read;
mod record;
mod retry;
mod session;
mod settings;
mod start;
mod subscribe;
mod topics;
mod wire;

pub use append::{Append, Appended, Durability};
pub use batch::{RecordBatch, Records, StoredRecord};
pub use client::Client;
pub use error::{Error, Outcome, Result, Violation};
pub use ids::RecordIds;
pub use quipu_proto::v1;
pub use read::{Filter, Gap, Read, ReadEvent, Reading, RecordReader, Visibility};
pub use record::Record;
pub use retry::Retry;
pub use session::{AppendSession, SessionBuilder, Ticket};
pub use settings::ClientBuilder;
pub use start::Start;
pub use subscribe::{Event, Subscribe, Subscription};
pub use topics::{CompactOptions, TopicPages, Upkeep};
