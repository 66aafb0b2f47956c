//! quipu-storage
pub mod clock;
pub mod disk;
mod error;
mod types;
pub use error::{Error, ErrorKind, Result};
pub use types::{Offset, Position, Revision, Timestamp, TopicId, TopicName, Uid};
