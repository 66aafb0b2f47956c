//! quipu-storage
pub mod clock;
pub mod disk;
mod error;
pub mod format;
#[doc(hidden)]
pub mod planted;
mod settings;
mod types;
pub use error::{Error, ErrorKind, Result};
pub use settings::{Compaction, Durability, Retention, Storage, StoreSettings, TopicSettings};
pub use types::{Offset, Position, Revision, Timestamp, TopicId, TopicName, Uid};
