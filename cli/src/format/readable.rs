//! A record as a line for a person: offset, time, key, type, tags, payload. What could steer a terminal is escaped.

use std::io::{self, Write};

use crate::backend::Item;
use crate::key::ShownKey;
use crate::output::{Output, Shown, ShownBytes};
use crate::units::time_text;

pub(super) fn write(out: &mut Output, item: &Item) -> io::Result<()> {
    let styles = out.styles;
    let (dim, key, kind) = (styles.dim, styles.key, styles.kind);
    let record = &item.record;
    write!(out, "{dim}{:>6}  {}{dim:#}", item.offset, time_text(item.append_time_ms))?;
    if let Some(bytes) = &record.key {
        write!(out, "  {key}{}{key:#}", ShownKey(bytes))?;
    }
    if !record.r#type.is_empty() {
        write!(out, "  {kind}{}{kind:#}", Shown(&record.r#type))?;
    }
    for tag in &record.tags {
        write!(out, "  {dim}#{}{dim:#}", Shown(tag))?;
    }
    for header in &record.headers {
        write!(out, "  {dim}{}={}{dim:#}", Shown(&header.name), ShownBytes(&header.value))?;
    }
    match (&record.payload, super::redacted(record)) {
        (Some(payload), _) => writeln!(out, "  {}", ShownBytes(payload)),
        (None, Some(why)) => writeln!(out, "  {dim}({why}){dim:#}"),
        (None, None) => writeln!(out, "  {dim}(tombstone){dim:#}"),
    }
}
