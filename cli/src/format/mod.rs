//! How records are printed.

pub(crate) mod json;
mod readable;

use std::io::Write;

use quipu_proto::v1 as pb;

use crate::backend::Item;
use crate::exit::Result;
use crate::output::Output;
use crate::template::Template;

/// Which way.
#[derive(Clone, Debug)]
pub(crate) enum Format {
    /// A line for a person.
    Readable,
    /// A line of JSON.
    Json,
    /// The payload and a delimiter.
    Raw(Vec<u8>),
    /// The payload behind its length, four bytes, big-endian: what `publish --format binary` reads.
    Binary,
    /// As it says.
    Template(Template),
}

/// Why the payload of a record cannot be read although it has one.
pub(crate) fn redacted(record: &pb::Record) -> Option<&'static str> {
    match record.redacted() {
        pb::record::Redaction::Unspecified => None,
        pb::record::Redaction::Erased => Some("erased"),
        pb::record::Redaction::Locked => Some("locked"),
    }
}

impl Format {
    /// Prints a record. A tombstone has no payload, nor has one that is erased or locked: raw forms leave it out.
    pub(crate) fn write(&self, out: &mut Output, topic: &str, item: &Item) -> Result<()> {
        match self {
            Self::Readable => readable::write(out, item)?,
            Self::Json => json::write(out, Some(topic), item)?,
            Self::Raw(delimiter) => {
                if let Some(payload) = &item.record.payload {
                    out.write_all(payload)?;
                    out.write_all(delimiter)?;
                }
            }
            Self::Binary => {
                if let Some(payload) = &item.record.payload {
                    // A record fits into an append, which is far below 4 GiB.
                    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX);
                    out.write_all(&length.to_be_bytes())?;
                    out.write_all(payload)?;
                }
            }
            Self::Template(template) => template.write(out, topic, item)?,
        }
        Ok(())
    }
}
