//! Batches on their way to a reader: the stored bytes of the records, and what is told about them.
//!
//! A batch that is wanted whole goes as it is stored, with the checksum that was made when it was appended. Of one that is
//! wanted in part the wanted records are taken out; a checksum over them is made here.

use std::ops::Range;

use bytes::Bytes;
use quipu_storage::format::batch::{Batch, BatchRecords, BatchRevisions};
use quipu_storage::format::record::Records;
use quipu_storage::{Codec, Error, Filter, Offset, RecordView, Revision};

use crate::wire::put_varint;

/// Most bytes of records in one message, but for a single record that has more: with some room below the 4 MiB that
/// gRPC clients take if they are not told otherwise.
pub(crate) const BODY_BYTES_MAX: usize = 2 << 20;

/// Records as they go onto the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WireBatch {
    /// Protobuf `repeated Record records = 1`.
    pub(crate) body: Bytes,
    pub(crate) record_count: u64,
    pub(crate) first_offset: u64,
    /// Empty if the records are dense.
    pub(crate) offsets: Vec<u64>,
    pub(crate) append_time_ms: u64,
    pub(crate) next_offset: u64,
    pub(crate) records_crc: u32,
    /// Packed varints, one for each record that has a key; empty if none has, or none is known.
    pub(crate) revisions: Bytes,
}

/// What is wanted of a batch.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) filter: Option<&'a Filter>,
    /// From this offset on,
    pub(crate) from: Offset,
    /// and below this one.
    pub(crate) end: Offset,
    pub(crate) records_max: u64,
}

/// What was taken out of a batch.
#[derive(Debug)]
pub(crate) struct Taken {
    pub(crate) batch: Option<WireBatch>,
    /// Everything before it (backwards: from it on) was taken or left out.
    pub(crate) next: Offset,
    /// Records that the filter left out.
    pub(crate) left_out: u64,
}

/// Takes what is wanted out of `batch`, forwards.
pub(crate) fn take(batch: &Batch, wanted: &Wanted<'_>) -> Result<Taken, Error> {
    let header = batch.header();
    let is_dense = header.record_count == header.offset_span;
    let is_whole = wanted.filter.is_none()
        && wanted.from <= batch.base_offset()
        && wanted.end >= batch.next_offset()
        && u64::from(header.record_count) <= wanted.records_max
        && batch.body().len() <= BODY_BYTES_MAX;
    if is_whole && is_dense {
        let is_as_stored = header.codec == Codec::None;
        let body = batch.body().clone();
        return Ok(Taken {
            batch: Some(WireBatch {
                records_crc: if is_as_stored { header.body_crc } else { crc32fast::hash(&body) },
                body,
                record_count: header.record_count.into(),
                first_offset: batch.base_offset().value(),
                offsets: Vec::new(),
                append_time_ms: batch.append_time().value(),
                next_offset: batch.next_offset().value(),
                revisions: match batch.revisions().as_bytes() {
                    [] => Bytes::new(),
                    packed => batch.as_bytes().slice_ref(packed),
                },
            }),
            next: batch.next_offset(),
            left_out: 0,
        });
    }
    let mut kept = Vec::new();
    let mut bytes = 0;
    let mut left_out = 0;
    let mut next = batch.next_offset().min(wanted.end.max(batch.base_offset()));
    let mut records = Places::new(batch, wanted.filter);
    while let Some(place) = records.next()? {
        if place.offset < wanted.from {
            continue;
        }
        if place.offset >= wanted.end {
            break;
        }
        let is_full = kept.len() as u64 >= wanted.records_max
            || !kept.is_empty() && bytes + place.field.len() > BODY_BYTES_MAX;
        if is_full {
            next = place.offset;
            break;
        }
        if place.is_wanted {
            bytes += place.field.len();
            kept.push(place);
        } else {
            left_out += 1;
        }
    }
    Ok(Taken { batch: assemble(batch, &kept, next), next, left_out })
}

/// The same from the last wanted record to the first; `wanted.from` is the lowest offset.
pub(crate) fn take_backwards(batch: &Batch, wanted: &Wanted<'_>) -> Result<Taken, Error> {
    let mut all = Vec::new();
    let mut records = Places::new(batch, wanted.filter);
    while let Some(place) = records.next()? {
        if place.offset >= wanted.end {
            break;
        }
        if place.offset >= wanted.from {
            all.push(place);
        }
    }
    let mut kept = Vec::new();
    let mut bytes = 0;
    let mut left_out = 0;
    let mut next = batch.base_offset().max(wanted.from);
    let mut lowest = wanted.end.min(batch.next_offset());
    for place in all.into_iter().rev() {
        let is_full = kept.len() as u64 >= wanted.records_max
            || !kept.is_empty() && bytes + place.field.len() > BODY_BYTES_MAX;
        if is_full {
            next = lowest;
            break;
        }
        lowest = place.offset;
        if place.is_wanted {
            bytes += place.field.len();
            kept.push(place);
        } else {
            left_out += 1;
        }
    }
    Ok(Taken { batch: assemble(batch, &kept, next), next, left_out })
}

/// A batch of the records at these places of its body.
fn assemble(batch: &Batch, kept: &[Place], next: Offset) -> Option<WireBatch> {
    let first = kept.first()?;
    let in_a_row = kept.windows(2).all(|pair| pair[0].field.end == pair[1].field.start);
    let body = if in_a_row {
        batch.body().slice(first.field.start..kept.last()?.field.end)
    } else {
        let mut bytes = Vec::with_capacity(kept.iter().map(|place| place.field.len()).sum());
        for place in kept {
            bytes.extend_from_slice(&batch.body()[place.field.clone()]);
        }
        bytes.into()
    };
    let is_dense = kept.windows(2).all(|pair| pair[0].offset + 1 == pair[1].offset);
    let offsets = kept.iter().map(|place| place.offset.value());
    let mut revisions = Vec::new();
    kept.iter()
        .flat_map(|place| place.revision)
        .for_each(|revision| put_varint(&mut revisions, revision.value()));
    Some(WireBatch {
        records_crc: crc32fast::hash(&body),
        body,
        record_count: kept.len() as u64,
        first_offset: first.offset.value(),
        offsets: if is_dense { Vec::new() } else { offsets.collect() },
        append_time_ms: batch.append_time().value(),
        next_offset: next.value(),
        revisions: revisions.into(),
    })
}

/// A record of a batch.
#[derive(Debug)]
struct Place {
    offset: Offset,
    revision: Option<Revision>,
    is_wanted: bool,
    /// Where in the body its field lies.
    field: Range<usize>,
}

/// Walks over the records of a batch.
struct Places<'a> {
    offsets: BatchRecords<'a>,
    fields: Records<'a>,
    revisions: BatchRevisions<'a>,
    filter: Option<&'a Filter>,
    /// Whether anything is to be known of a record but its place.
    decodes: bool,
}

impl<'a> Places<'a> {
    fn new(batch: &'a Batch, filter: Option<&'a Filter>) -> Self {
        let revisions = batch.revisions();
        let decodes = filter.is_some() || !revisions.as_bytes().is_empty();
        Self { offsets: batch.records(), fields: Records::new(batch.body()), revisions, filter, decodes }
    }

    fn next(&mut self) -> Result<Option<Place>, Error> {
        let Some(next) = self.offsets.next_encoded() else { return Ok(None) };
        let (offset, record) = next.map_err(unreadable)?;
        let start = self.fields.position();
        // The same record; what it is worth was looked at above.
        let _ = self.fields.next();
        let mut place =
            Place { offset, revision: None, is_wanted: true, field: start..self.fields.position() };
        if self.decodes {
            let view = RecordView::decode(record).map_err(unreadable)?;
            place.revision = view.key.and_then(|_| self.revisions.next());
            place.is_wanted = self.filter.is_none_or(|filter| filter.matches(&view));
        }
        Ok(Some(place))
    }
}

/// Its checksums hold, so it is as it was checked when it was appended: this would be a bug of the engine.
fn unreadable(invalid: quipu_storage::format::Invalid) -> Error {
    Error::InvalidEncoding { detail: invalid.detail, position: invalid.position }
}
