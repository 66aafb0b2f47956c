//! A segment of a topic, as readers see it: find a batch, read a batch, tell damage from end.
//!
//! A segment is shared by the flusher that appends to it and by any number of readers. Promises:
//!
//! - What lies below `data_bytes` never changes; `data_bytes` and `next_offset` move after the bytes are there.
//! - Every batch that is handed out has been verified against both of its checksums.
//! - Damage is answered with the range of offsets that it takes, and never skipped.
//!
//! Writing and sealing is [`crate::topic::flush`]'s, rewriting [`crate::compaction`]'s.

use std::collections::VecDeque;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use bytes::Bytes;

use crate::context::Context;
use crate::disk::{File, Map, OpenMode};
use crate::error::{Error, Result};
use crate::format::batch::{self, Batch, BatchHeader, BodyProblem};
use crate::format::checkpoint::SealedSegment;
use crate::format::segment::{
    FOOTER_BYTES, Footer, HEADER_BYTES, INDEX_ENTRY_BYTES, IndexBuilder, IndexEntry, SegmentHeader,
    index_crc, last_entry,
};
use crate::format::{ALIGNMENT, HeaderProblem, Invalid};
use crate::sync::{AtomicU64, Ordering, lock};
use crate::terms::sealed::Slot;
use crate::types::{Offset, Position, Timestamp, TopicName, Uid};

/// How much is looked at in one go when batches are read one after the other.
const WINDOW_BYTES: u64 = 256 << 10;
/// How much at first.
const FIRST_WINDOW_BYTES: u64 = 16 << 10;
/// How much of a batch's start is read to learn its length, when nothing is known about it.
const HEAD_BYTES: u64 = 4096;

/// The name of a segment's file.
pub(crate) fn file_name(base_offset: Offset, rewrites: u32) -> String {
    format!("{base_offset:020}-{rewrites}.segment", base_offset = base_offset.0)
}

/// Base offset and number of rewrites, if `name` is the name of a segment's file.
pub(crate) fn parse_file_name(name: &str) -> Option<(Offset, u32)> {
    let (base, rewrites) = name.strip_suffix(".segment")?.split_once('-')?;
    let parsed = (Offset(base.parse().ok()?), rewrites.parse().ok()?);
    (file_name(parsed.0, parsed.1) == name).then_some(parsed)
}

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Segment {
    pub(crate) base_offset: Offset,
    pub(crate) rewrites: u32,
    pub(crate) path: PathBuf,
    topic: TopicName,
    seed: u32,
    /// How far the file is mapped: it never grows beyond.
    capacity: u64,
    data_bytes: AtomicU64,
    next_offset: AtomicU64,
    /// What the checkpoint lists, once sealed.
    sealed: Mutex<Option<SealedSegment>>,
    /// Whether the file's header, and the footer of a sealed one, were looked at, or written by this process.
    is_known: AtomicBool,
    /// Whether the file is shorter than it was, or its footer is damaged and there are fewer records than it was sealed
    /// with: then its end may be among what is missing.
    is_short: AtomicBool,
    index: Mutex<Index>,
    map: Mutex<Option<Arc<dyn Map>>>,
    /// The index of its terms, once it is sealed.
    pub(crate) terms: Slot,
}

#[derive(Debug)]
enum Index {
    /// Not looked at yet.
    Unread,
    /// Growing with the segment.
    Growing(Box<IndexBuilder>),
    /// Read from the file, or rebuilt; does not change.
    Fixed(Bytes),
}

/// What is found at a place of a segment.
#[derive(Debug)]
pub(crate) enum Found {
    /// An intact batch, and where the next one starts.
    Batch(Batch, u64),
    /// The end of what is written.
    End,
}

impl Segment {
    pub(crate) fn new(
        path: PathBuf,
        topic: TopicName,
        seed: u32,
        capacity: u64,
        sealed: &SealedSegment,
        is_sealed: bool,
    ) -> Self {
        Self {
            base_offset: sealed.base_offset,
            rewrites: sealed.rewrites,
            path,
            topic,
            seed,
            capacity,
            data_bytes: AtomicU64::new(if is_sealed { 0 } else { sealed.bytes }),
            next_offset: AtomicU64::new(sealed.next_offset.0),
            sealed: Mutex::new(is_sealed.then_some(*sealed)),
            is_known: AtomicBool::new(false),
            is_short: AtomicBool::new(false),
            index: Mutex::new(Index::Unread),
            map: Mutex::new(None),
            terms: Slot::default(),
        }
    }

    /// One past the last offset that can be read here.
    pub(crate) fn next_offset(&self) -> Offset {
        Offset(self.next_offset.load(Ordering::Acquire))
    }

    /// What the checkpoint lists, once sealed.
    pub(crate) fn sealed(&self) -> Option<SealedSegment> {
        *self.sealed.lock().expect("no panic under this lock")
    }

    /// Bytes of the file, as far as known without asking the disk.
    pub(crate) fn file_bytes(&self) -> u64 {
        self.sealed().map_or_else(|| self.data_bytes.load(Ordering::Acquire), |sealed| sealed.bytes)
    }

    /// The flusher's view: takes the index along as it appends.
    pub(crate) fn take_index(&self, context: &Context) -> Result<Box<IndexBuilder>> {
        let mut index = self.lock_index();
        match std::mem::replace(&mut *index, Index::Unread) {
            Index::Growing(builder) => {
                let copy = builder.clone();
                *index = Index::Growing(builder);
                Ok(copy)
            }
            other => {
                *index = other;
                let builder = self.scan(context, self.data_bytes.load(Ordering::Acquire))?;
                *index = Index::Growing(Box::new(builder.clone()));
                Ok(Box::new(builder))
            }
        }
    }

    /// A new segment has no batches to look for.
    pub(crate) fn begin_index(&self) {
        *self.lock_index() = Index::Growing(Box::new(IndexBuilder::new(self.base_offset)));
        self.is_known.store(true, Ordering::Release);
    }

    /// The flusher has written batches up to `position`; `entry` takes them into the index.
    pub(crate) fn publish(&self, headers: &[(BatchHeader, [u8; 4])], position: u64, next_offset: Offset) {
        if let Index::Growing(builder) = &mut *self.lock_index() {
            headers.iter().for_each(|(header, crc)| builder.push(header, crc));
        }
        self.data_bytes.store(position, Ordering::Release);
        self.next_offset.store(next_offset.0, Ordering::Release);
    }

    /// The index of a segment whose batches have been looked at.
    pub(crate) fn continue_index(&self, index: IndexBuilder) {
        *self.lock_index() = Index::Growing(Box::new(index));
    }

    /// A batch has been written at `position`, and gets an entry in the index.
    pub(crate) fn index_batch(&self, position: u64, header: &BatchHeader, crc: &[u8]) {
        if let Index::Growing(builder) = &mut *self.lock_index() {
            builder.push_at(position, header, crc);
        }
    }

    /// Batches have been written up to `position`; those that get an entry are in the index.
    #[inline]
    pub(crate) fn publish_end(&self, position: u64, next_offset: Offset) {
        self.data_bytes.store(position, Ordering::Release);
        self.next_offset.store(next_offset.0, Ordering::Release);
    }

    /// Index and footer are in the file now.
    pub(crate) fn seal(&self, sealed: SealedSegment) {
        *self.sealed.lock().expect("no panic under this lock") = Some(sealed);
        let mut index = self.lock_index();
        if let Index::Growing(builder) = &*index {
            *index = Index::Fixed(Bytes::copy_from_slice(builder.entries()));
        }
    }

    /// Where to begin to look for `offset`: the start of a batch at or before the one that covers it, and the first
    /// offset that can be there.
    pub(crate) fn seek_offset(&self, context: &Context, offset: Offset) -> Result<(u64, Offset)> {
        self.seek(context, |entry| entry.base_offset <= offset)
    }

    /// Where to begin to look for the first batch appended at `time` or later, and the first offset that can be there.
    pub(crate) fn seek_time(&self, context: &Context, time: Timestamp) -> Result<(u64, Offset)> {
        self.seek(context, |entry| entry.append_time < time)
    }

    /// Cuts what is written into pieces of about `bytes`, each a run of whole batches: where they start and the first
    /// offset that can be there; and where the last one ends.
    pub(crate) fn pieces(&self, context: &Context, bytes: u64) -> Result<(Vec<(u64, Offset)>, u64)> {
        self.with_index(context, |index| {
            let end = self.data_bytes.load(Ordering::Acquire);
            let mut pieces = vec![(HEADER_BYTES as u64, self.base_offset)];
            for number in 0..index.len() / INDEX_ENTRY_BYTES {
                let entry = IndexEntry::at(index, number);
                let begun = pieces.last().map_or(0, |(position, _)| *position);
                if entry.position.0 >= begun + bytes && entry.position.0 < end {
                    pieces.push((entry.position.0, entry.base_offset));
                }
            }
            (pieces, end)
        })
    }

    fn seek(&self, context: &Context, before: impl Fn(IndexEntry) -> bool) -> Result<(u64, Offset)> {
        self.with_index(context, |index| {
            last_entry(index, before).map_or((HEADER_BYTES as u64, self.base_offset), |number| {
                let entry = IndexEntry::at(index, number);
                (entry.position.0, entry.base_offset)
            })
        })
    }

    /// Where the first batch is, and the first offset that can be there.
    pub(crate) fn start(&self, context: &Context) -> Result<(u64, Offset)> {
        self.look(context)?;
        Ok((HEADER_BYTES as u64, self.base_offset))
    }

    /// What tells the batches of a sealed segment from any others: the footer says it, or else the batches do.
    pub(crate) fn batch_hash(&self, context: &Context) -> Result<u32> {
        self.look(context)?;
        let file = context
            .disk
            .open(&self.path, OpenMode::Read)
            .map_err(|error| Error::io("open segment", &self.path, error))?;
        let bytes = file.len().map_err(|error| Error::io("look at", &self.path, error))?;
        if let Ok(Ok((footer, _))) = self.check_footer(&*file, bytes) {
            return Ok(footer.batch_hash);
        }
        let builder = self.scan(context, self.data_end())?;
        Ok(builder.footer(Uid([0; 16]), self.next_offset()).batch_hash)
    }

    /// Where its batches end, as far as they can be read.
    pub(crate) fn data_end(&self) -> u64 {
        self.data_bytes.load(Ordering::Acquire)
    }

    fn lock_index(&self) -> std::sync::MutexGuard<'_, Index> {
        self.index.lock().expect("no panic under this lock")
    }

    fn with_index<T>(&self, context: &Context, look: impl FnOnce(&[u8]) -> T) -> Result<T> {
        self.look(context)?;
        let mut index = self.lock_index();
        if matches!(*index, Index::Unread) {
            let builder = self.scan(context, self.data_bytes.load(Ordering::Acquire))?;
            *index = if self.sealed().is_some() {
                Index::Fixed(Bytes::copy_from_slice(builder.entries()))
            } else {
                Index::Growing(Box::new(builder))
            };
        }
        Ok(match &*index {
            Index::Growing(builder) => look(builder.entries()),
            Index::Fixed(entries) => look(entries),
            Index::Unread => unreachable!("it was just read"),
        })
    }

    /// Looks at the header, once. Learns from the footer of a sealed segment where its batches end, and takes its index
    /// if it is intact.
    fn look(&self, context: &Context) -> Result<()> {
        if self.is_known.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut index = self.lock_index();
        if self.is_known.load(Ordering::Acquire) {
            return Ok(());
        }
        let file = context
            .disk
            .open(&self.path, OpenMode::Read)
            .map_err(|error| Error::io("open segment", &self.path, error))?;
        self.check_header(context, &*file)?;
        let data_bytes = self.data_bytes.load(Ordering::Acquire);
        if data_bytes == 0 {
            self.read_footer(context, &*file, &mut index)?;
        } else {
            let bytes = file.len().map_err(|error| Error::io("look at", &self.path, error))?;
            if bytes < data_bytes {
                context.counters.damage_found.add(1);
                self.is_short.store(true, Ordering::Release);
                self.data_bytes.store(bytes.max(HEADER_BYTES as u64), Ordering::Release);
            }
        }
        self.is_known.store(true, Ordering::Release);
        Ok(())
    }

    /// A newer version is refused. Damage is counted and no more: each batch says itself whose it is, and where it belongs.
    fn check_header(&self, context: &Context, file: &dyn File) -> Result<()> {
        let mut start = [0; HEADER_BYTES];
        match file.read_at(&mut start, 0) {
            // Its zeros count as damage below.
            Err(error) if is_bad_sector(&error) => 0,
            outcome => outcome.map_err(|error| Error::io("read the header of", &self.path, error))?,
        };
        match SegmentHeader::decode(&start) {
            Ok(header)
                if header.base_offset == self.base_offset
                    && header.store == context.store
                    && batch::seed(header.topic) == self.seed => {}
            Err(HeaderProblem::Newer(found)) => {
                let supported = u32::from(crate::format::FORMAT_VERSION);
                return Err(Error::NewerFormat { path: self.path.clone(), found, supported });
            }
            _ => context.counters.damage_found.add(1),
        }
        Ok(())
    }

    fn read_footer(&self, context: &Context, file: &dyn File, index: &mut Index) -> Result<()> {
        let io = |error| Error::io("read the footer of", &self.path, error);
        let file_bytes = file.len().map_err(io)?;
        let checked = match self.check_footer(file, file_bytes) {
            // The batches may be readable all the same.
            Err(error) if is_bad_sector(&error) => {
                Err(HeaderProblem::Invalid(Invalid::new("the disk cannot read it", 0)))
            }
            checked => checked.map_err(io)?,
        };
        match checked {
            Ok((footer, entries)) => {
                if let Some(entries) = entries {
                    *index = Index::Fixed(entries);
                } else {
                    context.counters.damage_found.add(1);
                }
                self.data_bytes.store(footer.data_bytes, Ordering::Release);
            }
            Err(HeaderProblem::Newer(found)) => {
                let supported = u32::from(crate::format::FORMAT_VERSION);
                return Err(Error::NewerFormat { path: self.path.clone(), found, supported });
            }
            Err(_) => {
                // Without its footer the batches themselves say where they are. What lies behind the last intact
                // one is index and footer, or damage: the reader that gets there finds out by its offset.
                context.counters.damage_found.add(1);
                let builder = self.scan(context, file_bytes)?;
                let next_offset = self.next_offset();
                // Where compaction took out the last records, only the length of the file tells that none is missing.
                let index_and_footer = (builder.entries().len() + FOOTER_BYTES) as u64;
                let is_complete = builder.next_offset() == next_offset
                    || builder.position() + index_and_footer == file_bytes;
                let end = if is_complete { builder.position() } else { file_bytes };
                let was_sealed_with = self.sealed().map_or(0, |sealed| sealed.record_count);
                self.is_short.store(builder.record_count() < was_sealed_with, Ordering::Release);
                *index = Index::Fixed(Bytes::copy_from_slice(builder.entries()));
                self.data_bytes.store(end.max(HEADER_BYTES as u64), Ordering::Release);
            }
        }
        Ok(())
    }

    fn check_footer(
        &self,
        file: &dyn File,
        file_bytes: u64,
    ) -> std::io::Result<std::result::Result<(Footer, Option<Bytes>), HeaderProblem>> {
        let mut tail = [0; FOOTER_BYTES];
        let Some(footer_at) = file_bytes.checked_sub(FOOTER_BYTES as u64) else {
            return Ok(Err(HeaderProblem::Invalid(Invalid::new("the file is shorter than a footer", 0))));
        };
        file.read_at(&mut tail, footer_at)?;
        let footer = match Footer::decode(&tail, self.seed, file_bytes) {
            Ok(footer)
                if footer.base_offset == self.base_offset && footer.next_offset == self.next_offset() =>
            {
                footer
            }
            Ok(_) => {
                return Ok(Err(HeaderProblem::Invalid(Invalid::new("the footer is of another segment", 0))));
            }
            Err(problem) => return Ok(Err(problem)),
        };
        let mut entries = vec![0; footer.index_count as usize * INDEX_ENTRY_BYTES];
        file.read_at(&mut entries, footer.data_bytes)?;
        let is_intact = index_crc(footer.base_offset, &entries) == footer.index_crc;
        Ok(Ok((footer, is_intact.then(|| entries.into()))))
    }

    /// Builds the index from the batches' headers up to `end`, stepping over damage.
    fn scan(&self, context: &Context, end: u64) -> Result<IndexBuilder> {
        let mut builder = IndexBuilder::new(self.base_offset);
        let mut reader = SegmentReader::new();
        let mut position = HEADER_BYTES as u64;
        while position < end {
            match reader.readable_header(self, context, position, end)? {
                Ok(header)
                    if header.base_offset >= builder.next_offset() && self.holds(&header, position, end) =>
                {
                    let crc = reader.slice(position..position + 4);
                    builder.push_at(position, &header, &crc);
                    position += header.stored_bytes() as u64;
                }
                _ => match self.next_intact(context, position, end, builder.next_offset())? {
                    Some(found) => position = found,
                    None => break,
                },
            }
        }
        Ok(builder)
    }

    fn holds(&self, header: &BatchHeader, position: u64, end: u64) -> bool {
        position + header.batch_bytes() as u64 <= end
            && (self.sealed().is_none() || header.next_offset() <= self.next_offset())
    }

    /// Looks behind damage at `position` for the next batch that can follow `expected`.
    fn next_intact(
        &self,
        context: &Context,
        position: u64,
        end: u64,
        expected: Offset,
    ) -> Result<Option<u64>> {
        let mut reader = SegmentReader::new();
        let mut at = position + ALIGNMENT as u64;
        while at + batch::HEADER_BYTES as u64 <= end {
            match reader.header(self, context, at, end) {
                Ok(Ok(header)) if header.base_offset >= expected && self.holds(&header, at, end) => {
                    return Ok(Some(at));
                }
                Ok(_) => at += ALIGNMENT as u64,
                // A sector that cannot be read: go on behind its page.
                Err(error) if cannot_be_read(&error) => {
                    at = (at + 1).next_multiple_of(HEAD_BYTES);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// The map, made when it is first needed.
    fn map(self: &Arc<Self>, context: &Context) -> Result<Arc<dyn Map>> {
        let mut map = self.map.lock().expect("no panic under this lock");
        if let Some(map) = &*map {
            return Ok(Arc::clone(map));
        }
        let made = self.open_map(context)?;
        *map = Some(Arc::clone(&made));
        drop(map);
        context.maps.opened(self);
        Ok(made)
    }

    fn open_map(&self, context: &Context) -> Result<Arc<dyn Map>> {
        context
            .disk
            .open(&self.path, OpenMode::Read)
            .and_then(|file| file.map(self.capacity.max(file.len()?)))
            .map_err(|error| Error::io("map", &self.path, error))
    }

    fn close_map(&self) {
        *self.map.lock().expect("no panic under this lock") = None;
    }

    pub(crate) fn corrupt(&self, offsets: Range<Offset>, position: u64, detail: &'static str) -> Error {
        Error::Corrupt {
            topic: self.topic.clone(),
            offsets,
            path: self.path.clone(),
            position: Position(position),
            detail,
        }
    }

    /// The batches end before `offset`, which should be among them.
    pub(crate) fn lost(&self, offset: Offset) -> Error {
        let end = self.next_offset().max(offset + 1);
        self.corrupt(offset..end, self.data_bytes.load(Ordering::Acquire), "the batches end early")
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads the batches of a segment one after the other, a window at a time.
#[derive(Debug, Default)]
pub(crate) struct SegmentReader {
    /// The map, kept over many windows.
    map: Option<(Weak<Segment>, Arc<dyn Map>)>,
    window: Bytes,
    window_at: u64,
    /// How much is faulted in at once.
    window_bytes: u64,
}

impl SegmentReader {
    /// For many batches, one after the other: the window grows with what is read.
    pub(crate) fn new() -> Self {
        Self { window_bytes: FIRST_WINDOW_BYTES, ..Self::default() }
    }

    /// Lets go of the segment: a reader that waits for more must not keep memory, or the file of a removed segment.
    pub(crate) fn release(&mut self) {
        *self = Self { window_bytes: self.window_bytes.min(FIRST_WINDOW_BYTES), ..Self::default() };
    }

    /// For one batch here and one there.
    pub(crate) fn for_points() -> Self {
        Self::default()
    }

    /// The batch that starts at `position`; it has `expected`, or compaction has left it as the first behind.
    ///
    /// # Errors
    /// [`Error::Corrupt`] with the offsets from `expected` up to the next intact batch.
    pub(crate) fn read(
        &mut self,
        segment: &Arc<Segment>,
        context: &Context,
        position: u64,
        expected: Offset,
    ) -> Result<Found> {
        segment.look(context)?;
        // First: what it covers is there when it has moved.
        let next_offset = segment.next_offset();
        let end = segment.data_bytes.load(Ordering::Acquire);
        if position >= end {
            // Only compaction takes the last records of a segment out.
            let is_missing = segment.rewrites == 0 || segment.is_short.load(Ordering::Acquire);
            if is_missing && expected < next_offset {
                context.counters.damage_found.add(1);
                return Err(segment.corrupt(expected..next_offset, end, "its end is missing"));
            }
            return Ok(Found::End);
        }
        self.hold_map(segment, context)?;
        match self.batch(segment, context, position, end) {
            // It would pass for what compaction has left.
            Ok(Ok(batch)) if segment.rewrites > 0 && batch.next_offset() > next_offset => {
                self.damage(segment, context, position..end, expected, "a batch is of another segment")
            }
            // Only compaction leaves gaps.
            Ok(Ok(batch)) if batch.base_offset() > expected && segment.rewrites == 0 => {
                context.counters.damage_found.add(1);
                let offsets = expected..batch.base_offset();
                Err(segment.corrupt(offsets, position, "the batches before it are missing"))
            }
            Ok(Ok(batch)) if batch.next_offset() > expected => {
                let next = position + batch.header().stored_bytes() as u64;
                Ok(Found::Batch(batch, next))
            }
            Ok(Err(BodyProblem::CodecUnavailable(codec))) => {
                Err(Error::CodecUnavailable { codec: codec.name() })
            }
            Ok(Ok(_)) => self.damage(segment, context, position..end, expected, "a batch is out of order"),
            Ok(Err(BodyProblem::Invalid(invalid))) => {
                self.damage(segment, context, position..end, expected, invalid.detail)
            }
            Err(error) if cannot_be_read(&error) => {
                self.damage(segment, context, position..end, expected, "the disk cannot read it")
            }
            Err(error) => Err(error),
        }
    }

    /// From `position`, where the batch starts that has `expected`, to the one that covers `target`, or to the damage
    /// that may have been it; and the first offset that can be there.
    pub(crate) fn hop(
        &mut self,
        segment: &Arc<Segment>,
        context: &Context,
        (mut position, mut expected): (u64, Offset),
        target: Offset,
    ) -> Result<(u64, Offset)> {
        self.hold_map(segment, context)?;
        let end = segment.data_bytes.load(Ordering::Acquire);
        while position < end {
            match self.readable_header(segment, context, position, end)? {
                Ok(header) if header.next_offset() > target => break,
                Ok(header) => {
                    expected = header.next_offset();
                    position += header.stored_bytes() as u64;
                }
                Err(_) => {
                    let Some(behind) = segment.next_intact(context, position, end, expected)? else { break };
                    match self.readable_header(segment, context, behind, end)? {
                        Ok(header) if header.base_offset <= target => {
                            position = behind;
                            expected = header.base_offset;
                        }
                        _ => break,
                    }
                }
            }
        }
        Ok((position, expected))
    }

    fn damage(
        &mut self,
        segment: &Arc<Segment>,
        context: &Context,
        range: Range<u64>,
        expected: Offset,
        detail: &'static str,
    ) -> Result<Found> {
        context.counters.damage_found.add(1);
        let behind = segment.next_intact(context, range.start, range.end, expected)?;
        let intact_from = match behind {
            None => segment.next_offset(),
            Some(position) => match self.readable_header(segment, context, position, range.end)? {
                Ok(header) => header.base_offset,
                Err(_) => segment.next_offset(),
            },
        };
        Err(segment.corrupt(expected..intact_from.max(expected + 1), range.start, detail))
    }

    /// The header of the batch at `position`, whose segment ends at `end`.
    pub(crate) fn header(
        &mut self,
        segment: &Segment,
        context: &Context,
        position: u64,
        end: u64,
    ) -> Result<std::result::Result<BatchHeader, Invalid>> {
        let head_bytes = (end - position).min(HEAD_BYTES);
        if self.within(position, head_bytes).is_none() {
            self.fetch(segment, context, position, head_bytes, end)?;
        }
        let head = &self.window[self.within(position, head_bytes).unwrap_or_default()];
        let decoded = BatchHeader::decode(head, segment.seed);
        if decoded.is_ok() {
            return Ok(decoded);
        }
        // Its ext may reach beyond what was looked at. Not of what cannot be a header at all: a search behind damage comes
        // by at every eighth byte of it, and what stands there claims any length.
        let claimed = BatchHeader::decode_unverified(head).map_or(0, |header| header.body_at() as u64);
        if claimed <= head_bytes || claimed > end - position {
            return Ok(decoded);
        }
        self.fetch(segment, context, position, claimed, end)?;
        let whole = &self.window[self.within(position, claimed).unwrap_or_default()];
        Ok(BatchHeader::decode(whole, segment.seed))
    }

    /// The same; what the disk cannot read is as good as damaged.
    fn readable_header(
        &mut self,
        segment: &Segment,
        context: &Context,
        position: u64,
        end: u64,
    ) -> Result<std::result::Result<BatchHeader, Invalid>> {
        match self.header(segment, context, position, end) {
            Err(error) if cannot_be_read(&error) => Ok(Err(Invalid::new("the disk cannot read it", 0))),
            outcome => outcome,
        }
    }

    /// The batch at `position`, verified.
    fn batch(
        &mut self,
        segment: &Segment,
        context: &Context,
        position: u64,
        end: u64,
    ) -> Result<std::result::Result<Batch, BodyProblem>> {
        let header = match self.header(segment, context, position, end)? {
            Ok(header) => header,
            Err(invalid) => return Ok(Err(BodyProblem::Invalid(invalid))),
        };
        let whole = header.batch_bytes() as u64;
        if whole > end - position {
            return Ok(Err(BodyProblem::Invalid(Invalid::new("a batch reaches beyond its segment", 0))));
        }
        if self.within(position, whole).is_none() {
            self.fetch(segment, context, position, whole, end)?;
        }
        Ok(Batch::verify_body(header, self.slice(position..position + whole)))
    }

    /// Where in the window `bytes` from `position` on are, if it has them.
    fn within(&self, position: u64, bytes: u64) -> Option<Range<usize>> {
        let start = usize::try_from(position.checked_sub(self.window_at)?).ok()?;
        let end = start.checked_add(usize::try_from(bytes).ok()?)?;
        (end <= self.window.len()).then_some(start..end)
    }

    /// Bytes of the window, which must have them.
    pub(crate) fn slice(&self, range: Range<u64>) -> Bytes {
        let within = self.within(range.start, range.end - range.start);
        self.window.slice(within.expect("the window was fetched to have them"))
    }

    /// Moves the window to `position`: at least `bytes` of it, and more if they can be read.
    fn fetch(
        &mut self,
        segment: &Segment,
        context: &Context,
        position: u64,
        bytes: u64,
        end: u64,
    ) -> Result<()> {
        let map = match &self.map {
            Some((owner, map)) if std::ptr::eq(owner.as_ptr(), segment) => Arc::clone(map),
            _ => segment.open_map(context)?,
        };
        let wide = bytes.max(self.window_bytes).min(end - position);
        let read = |map: &dyn Map| {
            map.bytes(position..position + wide).or_else(|_| map.bytes(position..position + bytes))
        };
        let begun = Instant::now();
        let window = match read(&*map) {
            // The segment has grown beyond its map: its topic was given a larger size meanwhile.
            Err(error) if error.kind() == std::io::ErrorKind::InvalidInput => {
                segment.close_map();
                read(&*segment.open_map(context)?)
            }
            outcome => outcome,
        };
        context.counters.read_latency.record(begun.elapsed());
        let window = window.map_err(|error| Error::io(READ, &segment.path, error))?;
        self.window = window;
        self.window_at = position;
        self.window_bytes = (self.window_bytes * 2).min(WINDOW_BYTES);
        Ok(())
    }

    fn hold_map(&mut self, segment: &Arc<Segment>, context: &Context) -> Result<()> {
        let is_held =
            self.map.as_ref().is_some_and(|(owner, _)| std::ptr::eq(owner.as_ptr(), &raw const **segment));
        if !is_held {
            self.map = Some((Arc::downgrade(segment), segment.map(context)?));
            self.window = Bytes::new();
            self.window_at = 0;
        }
        Ok(())
    }
}

/// Whether the disk cannot read what is there. Anything else (too many open files, say) says nothing about the bytes.
pub(crate) fn is_bad_sector(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
}

/// What it says of bytes that were asked for; of the file as a whole it says something else.
const READ: &str = "read";

/// The same of an error of a reader. That a file cannot be opened, measured or mapped may pass, and is no damage.
fn cannot_be_read(error: &Error) -> bool {
    matches!(error, Error::Io { action: READ, source, .. } if is_bad_sector(source))
}

/// Keeps the number of maps bounded: the ones opened first are closed first. A reader that holds one keeps it.
#[derive(Debug)]
pub(crate) struct MapBudget {
    maps_max: usize,
    opened: crate::sync::Mutex<VecDeque<Weak<Segment>>>,
}

impl MapBudget {
    pub(crate) fn new(maps_max: u64) -> Self {
        Self {
            maps_max: usize::try_from(maps_max).unwrap_or(usize::MAX),
            opened: crate::sync::Mutex::new(VecDeque::new()),
        }
    }

    fn opened(&self, segment: &Arc<Segment>) {
        let mut opened = lock(&self.opened);
        opened.push_back(Arc::downgrade(segment));
        let mut closed = Vec::new();
        while opened.len() > self.maps_max {
            closed.extend(opened.pop_front());
        }
        drop(opened);
        closed.iter().filter_map(Weak::upgrade).for_each(|segment| segment.close_map());
    }
}
