//! Upcasters: events that were written in an old form, made new while they are read.
//!
//! What is stored stays as it is. Each upcaster takes records of one type to a newer one, so that only one step is written
//! for each change, and whoever reads knows the newest form only.

use std::collections::HashMap;
use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

use crate::batch::StoredRecord;
use crate::erasure::Redaction;
use crate::error::{Error, Result};
use crate::record::Record;

/// Why an event cannot be understood. Any error will do, also a text.
pub type EventError = Box<dyn StdError + Send + Sync>;

/// Steps until the newest form. More are a circle.
const STEPS_MAX: usize = 64;

type Step = Arc<dyn Fn(Record) -> Result<Record, EventError> + Send + Sync>;

/// A record of a topic in its newest form.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventRecord {
    /// Its number in the topic.
    pub offset: u64,
    /// When it was appended, in milliseconds since the Unix epoch.
    pub append_time_ms: u64,
    /// Its place among the records of its key.
    pub revision: Option<u64>,
    /// Why the payload is not there, of a record whose payload was sealed and cannot be opened. Then the upcasters have not
    /// seen it.
    pub redacted: Option<Redaction>,
    /// The record, after the upcasters.
    pub record: Record,
}

/// Upcasters by the type that each of them takes. Cheap to clone.
///
/// ```
/// use quipu_client::{Record, Upcasters};
///
/// let upcasters = Upcasters::new()
///     .on("Paid", |record| {
///         // There was a time when all paid in euros.
///         let amount = String::from_utf8(record.payload.clone().unwrap_or_default().to_vec())?;
///         Ok(Record { payload: Some(format!("{amount} EUR").into()), ..record.with_type("Paid.v2") })
///     });
/// let new = upcasters.apply(Record::new("7").with_type("Paid")).unwrap();
/// assert_eq!((&new.record_type[..], new.payload.as_deref()), ("Paid.v2", Some(&b"7 EUR"[..])));
/// ```
#[derive(Clone, Default)]
pub struct Upcasters(HashMap<String, Step>);

impl fmt::Debug for Upcasters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Upcasters {
    /// None: every record is as it was written.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes records of this type new. What it returns has another type, from which the next one may go on.
    #[must_use]
    pub fn on(
        mut self,
        record_type: impl Into<String>,
        upcast: impl Fn(Record) -> Result<Record, EventError> + Send + Sync + 'static,
    ) -> Self {
        self.0.insert(record_type.into(), Arc::new(upcast));
        self
    }

    /// The record in its newest form.
    ///
    /// # Errors
    /// That of an upcaster; and if they go round in circles.
    pub fn apply(&self, mut record: Record) -> Result<Record, EventError> {
        for _ in 0..STEPS_MAX {
            match self.0.get(&record.record_type) {
                Some(step) => record = step(record)?,
                None => return Ok(record),
            }
        }
        Err(format!("its upcasters do not come to an end, the last type is {:?}", record.record_type).into())
    }

    pub(crate) fn event(&self, stored: &StoredRecord) -> Result<EventRecord> {
        let record =
            if stored.redacted().is_some() { Ok(stored.to_record()) } else { self.apply(stored.to_record()) };
        let record = record.map_err(|error| not_understood(stored.offset(), &error))?;
        Ok(EventRecord {
            offset: stored.offset(),
            append_time_ms: stored.append_time_ms(),
            revision: stored.revision(),
            redacted: stored.redacted(),
            record,
        })
    }
}

pub(crate) fn not_understood(offset: u64, error: &EventError) -> Error {
    Error::EventNotUnderstood { offset, message: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rename(to: &'static str) -> impl Fn(Record) -> Result<Record, EventError> + Send + Sync + 'static {
        move |record| Ok(record.with_type(to))
    }

    #[test]
    fn each_change_is_one_step_and_all_are_made_one_after_the_other() {
        let upcasters = Upcasters::new().on("a.1", rename("a.2")).on("a.2", rename("a.3"));
        for (old, new) in [("a.1", "a.3"), ("a.2", "a.3"), ("a.3", "a.3"), ("b", "b"), ("", "")] {
            assert_eq!(upcasters.apply(Record::new("x").with_type(old)).unwrap().record_type, new);
        }
    }

    #[test]
    fn upcasters_that_go_round_in_circles_and_those_that_fail_are_told() {
        let upcasters =
            Upcasters::new().on("a", rename("b")).on("b", rename("a")).on("c", |_| Err("torn".into()));
        assert!(upcasters.apply(Record::new("x").with_type("a")).unwrap_err().to_string().contains("an end"));
        assert_eq!(upcasters.apply(Record::new("x").with_type("c")).unwrap_err().to_string(), "torn");
    }
}
