//! The time, as a component, so that a test can hold it still.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use crate::types::Timestamp;

/// Tells the wall-clock time. It may jump; the engine keeps each topic's times from going backwards.
pub trait Clock: fmt::Debug + Send + Sync + 'static {
    /// The time now.
    fn now(&self) -> Timestamp;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Timestamp(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
    }
}
