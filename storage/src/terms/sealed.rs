//! The term index of a sealed segment, wherever it is: on the disk, or in memory where it cannot be had from there.
//!
//! | Found | Decision |
//! |---|---|
//! | the file, of this segment | used |
//! | no file, one of another content, a later version's | made from the segment's batches |
//! | a file that has changed since it was written | the same; counted as damage |
//! | the new file cannot be written | kept in memory, as long as there is room for it |
//! | a batch is damaged while it is made | kept in memory: it knows which offsets it lacks, and a file would not |
//!
//! A file that was written before the damage is as good as ever: it knows the terms of what cannot be read any more.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};

use super::file::{TermsFile, Unusable};
use super::map::TermMap;
use crate::disk::OpenMode;
use crate::error::{Error, Result};
use crate::format::batch::{Batch, HEADER_BYTES};
use crate::format::terms::{Content, TermsHeader};
use crate::segment::{Found, Segment, SegmentReader};
use crate::topic::TopicInner;
use crate::types::Offset;

/// Most bytes of filters and block indexes that are kept in memory, over all segments of the store.
const MEMORY_BYTES_MAX: usize = 256 << 20;

/// Most indexes of one topic that are made at once, each from the memory that the terms of its segment take.
const MAKERS_MAX: usize = 4;

/// What a segment knows of its index.
#[derive(Debug, Default)]
pub(crate) struct Slot(Mutex<Option<SealedTerms>>);

/// An index that can be asked.
#[derive(Clone, Debug)]
pub(crate) enum SealedTerms {
    File(Arc<TermsFile>),
    Map(Arc<TermMap>),
}

impl Slot {
    fn lock(&self) -> std::sync::MutexGuard<'_, Option<SealedTerms>> {
        self.0.lock().expect("no panic under this lock")
    }

    fn close(&self) {
        *self.lock() = None;
    }
}

/// Base offset and number of rewrites, if `name` is the name of the index of a segment.
pub(crate) fn parse_file_name(name: &str) -> Option<(Offset, u32)> {
    crate::segment::parse_file_name(&format!("{}.segment", name.strip_suffix(".terms")?))
}

/// The path of the index of a segment.
pub(crate) fn path_of(segment: &Segment) -> PathBuf {
    segment.path.with_extension("terms")
}

impl TopicInner {
    /// Asks the index of a sealed segment; makes it anew if it does not hold what it should.
    ///
    /// # Errors
    /// What keeps the segment from being read, if it has to be.
    pub(crate) fn ask<T>(
        &self,
        segment: &Arc<Segment>,
        question: impl Fn(&SealedTerms) -> Result<T, Unusable>,
    ) -> Result<T> {
        let mut is_second = false;
        loop {
            let terms = self.sealed_terms(segment)?;
            match question(&terms) {
                Ok(answer) => return Ok(answer),
                Err(Unusable::Io(error)) => return Err(error),
                // It was just made, and is not what was written: the disk's fault, not the index's.
                Err(_) if is_second => return Err(self.unreadable(segment)),
                Err(unusable) => {
                    if matches!(unusable, Unusable::Damaged | Unusable::Unreadable(_)) {
                        self.context.counters.damage_found.add(1);
                    }
                    let mut slot = segment.terms.lock();
                    *slot = Some(self.make_terms(segment)?);
                    is_second = true;
                }
            }
        }
    }

    fn unreadable(&self, segment: &Segment) -> Error {
        let source = std::io::Error::other("it reads otherwise than it was written");
        Error::io("read", path_of(segment), source)
    }

    fn sealed_terms(&self, segment: &Arc<Segment>) -> Result<SealedTerms> {
        let mut slot = segment.terms.lock();
        if let Some(terms) = &*slot {
            return Ok(terms.clone());
        }
        let wanted = self.terms_header(segment)?;
        let opened = TermsFile::open(&self.context.disk, &path_of(segment), |header| *header == wanted);
        let terms = match opened {
            Ok(file) => SealedTerms::File(Arc::new(file)),
            Err(Unusable::Io(error)) => return Err(error),
            Err(unusable) => {
                if matches!(unusable, Unusable::Damaged | Unusable::Unreadable(_)) {
                    self.context.counters.damage_found.add(1);
                }
                self.make_with_neighbours(segment)?
            }
        };
        *slot = Some(terms.clone());
        drop(slot);
        self.context.term_budget.opened(segment, &terms);
        Ok(terms)
    }

    /// Makes the index of a segment whose slot the caller holds. Where one is missing others are too, as a rule: those
    /// nearest to it that have none are made beside it, by the other processors.
    fn make_with_neighbours(&self, segment: &Arc<Segment>) -> Result<SealedTerms> {
        // A store without threads of its own does everything in its callers', in an order that can be repeated.
        let is_threaded = self.context.settings.background && !self.context.is_read_only;
        let makers =
            if is_threaded { std::thread::available_parallelism().map_or(1, usize::from) } else { 1 };
        let neighbours = self.missing(segment, makers.min(MAKERS_MAX) - 1);
        std::thread::scope(|scope| {
            for neighbour in &neighbours {
                // What goes wrong there is seen by whoever asks for it.
                let make = || drop(self.make_if_missing(neighbour));
                let _ = std::thread::Builder::new().name("quipu-terms".into()).spawn_scoped(scope, make);
            }
            self.make_terms(segment)
        })
    }

    /// So many segments that have no index, the nearest ones first.
    fn missing(&self, segment: &Arc<Segment>, count: usize) -> Vec<Arc<Segment>> {
        let segments = self.segments();
        let Some(at) = segments.iter().position(|listed| Arc::ptr_eq(listed, segment)) else {
            return Vec::new();
        };
        let (before, behind) = (segments[..at].iter().rev(), segments[at + 1..].iter());
        let is_missing = |other: &&Arc<Segment>| other.sealed().is_some() && self.has_no_terms(other);
        // One missing file does not say that all are: no more is looked at than can be wanted next.
        let near = before.take(count).chain(behind.take(count));
        near.filter(is_missing).take(count).cloned().collect()
    }

    fn has_no_terms(&self, segment: &Segment) -> bool {
        // Whoever holds the slot is making them.
        let is_open = segment.terms.0.try_lock().map_or(true, |slot| slot.is_some());
        let opened = || self.context.disk.open(&path_of(segment), OpenMode::Read);
        !is_open && opened().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    }

    fn make_if_missing(&self, segment: &Arc<Segment>) -> Result<()> {
        let Ok(mut slot) = segment.terms.0.try_lock() else { return Ok(()) };
        if slot.is_none() {
            let terms = self.make_terms(segment)?;
            *slot = Some(terms.clone());
            drop(slot);
            self.context.term_budget.opened(segment, &terms);
        }
        Ok(())
    }

    fn terms_header(&self, segment: &Arc<Segment>) -> Result<TermsHeader> {
        Ok(TermsHeader {
            content: Content::Segment,
            topic: self.uid,
            base_offset: segment.base_offset,
            next_offset: segment.next_offset(),
            batch_hash: segment.batch_hash(&self.context)?,
        })
    }

    /// Whether a segment may have records with revisions, or has an index. Looks at the headers of its batches at most.
    pub(super) fn may_have_revisions(&self, segment: &Arc<Segment>) -> Result<bool> {
        if segment.terms.lock().is_some() {
            return Ok(true);
        }
        match self.context.disk.open(&path_of(segment), OpenMode::Read) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            _ => return Ok(true),
        }
        let (mut position, _) = segment.start(&self.context)?;
        let mut reader = SegmentReader::new();
        let end = segment.data_end();
        while position < end {
            match reader.header(segment, &self.context, position, end)? {
                Ok(header) if header.body_at() == HEADER_BYTES => position += header.stored_bytes() as u64,
                // One has, or cannot be read.
                _ => return Ok(true),
            }
        }
        Ok(false)
    }

    /// Makes the index of a segment from its batches, and writes it if it can be.
    fn make_terms(&self, segment: &Arc<Segment>) -> Result<SealedTerms> {
        let mut map = TermMap::default();
        self.each_batch(segment, |found| match found {
            Ok(batch) => map.push_batch(batch),
            Err(unread) => map.push_unread(unread),
        })?;
        Ok(match self.write_terms(segment, &map) {
            Ok(file) => SealedTerms::File(Arc::new(file)),
            Err(_) => SealedTerms::Map(Arc::new(map)),
        })
    }

    /// Writes the index of a sealed segment aside, syncs it, puts it in place and opens it. That it is synced makes a file
    /// that is there whole or damaged: a power cut must not look like rot. Its name may get lost: it can be made again.
    fn write_terms(&self, segment: &Arc<Segment>, map: &TermMap) -> Result<TermsFile, Unusable> {
        let context = &*self.context;
        let failed = |error| Unusable::Io(Error::io("write", path_of(segment), error));
        // Nobody's directory but ours, and not one that is being removed: closing and deleting wait for this lock.
        let _writing = self.terms.lock_writing();
        let is_ours = !context.is_read_only && !context.is_released() && self.check_alive().is_ok();
        if !is_ours
            || !map.is_whole()
            || context.failure().is_some()
            || context.is_disk_full()
            || !super::is_listed(self, segment)
        {
            return Err(Unusable::Absent);
        }
        let header = self.terms_header(segment).map_err(Unusable::Io)?;
        let place = path_of(segment);
        let aside = place.with_extension("terms.new");
        let write = || {
            match context.disk.remove(&aside) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = context.disk.open(&aside, OpenMode::Create)?;
            file.write_at(&[IoSlice::new(&map.encode(header))], 0)?;
            // Nothing depends on this file: a failed sync of it costs only the file.
            file.sync()?;
            context.disk.rename(&aside, &place)
        };
        if let Err(error) = write() {
            let _ = context.disk.remove(&aside);
            return Err(failed(error));
        }
        TermsFile::open(&context.disk, &place, |found| *found == header)
    }

    /// The terms of a segment that is sealed now, which were gathered while it was filled: on the disk from here on, or
    /// gone.
    pub(crate) fn put_terms(&self, segment: &Arc<Segment>, map: &TermMap) {
        let mut slot = segment.terms.lock();
        if slot.is_some() {
            return;
        }
        if let Ok(file) = self.write_terms(segment, map) {
            let terms = SealedTerms::File(Arc::new(file));
            *slot = Some(terms.clone());
            drop(slot);
            self.context.term_budget.opened(segment, &terms);
        }
    }

    /// Forgets what is in memory of the index for a record that turns out to be readable after all.
    pub(crate) fn forget_terms(&self, offset: Offset) {
        let segments = self.segments();
        let holds = |segment: &&Arc<Segment>| segment.base_offset <= offset && offset < segment.next_offset();
        match segments.iter().find(holds).filter(|segment| segment.sealed().is_some()) {
            Some(segment) => segment.terms.close(),
            None => self.terms.recent.forget(),
        }
    }

    /// Removes the index of a segment that is gone. If it cannot be now, the next opening removes it.
    pub(crate) fn remove_terms(&self, segment: &Segment) {
        let _writing = self.terms.lock_writing();
        let _ = self.context.disk.remove(&path_of(segment));
    }

    /// Hands over the batches of a segment, in order; of those that are damaged the offsets.
    pub(super) fn each_batch(
        &self,
        segment: &Arc<Segment>,
        mut each: impl FnMut(Result<&Batch, Range<Offset>>),
    ) -> Result<()> {
        let context = &*self.context;
        let mut reader = SegmentReader::new();
        let (mut position, mut expected) = segment.start(context)?;
        loop {
            match reader.read(segment, context, position, expected) {
                Ok(Found::Batch(batch, behind)) => {
                    position = behind;
                    expected = batch.next_offset();
                    each(Ok(&batch));
                }
                Ok(Found::End) => return Ok(()),
                Err(Error::Corrupt { offsets, .. }) => {
                    each(Err(offsets.clone()));
                    if offsets.end >= segment.next_offset() {
                        return Ok(());
                    }
                    (position, _) = reader.hop(segment, context, (position, expected), offsets.end)?;
                    expected = offsets.end;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

impl SealedTerms {
    fn memory_bytes(&self) -> usize {
        match self {
            Self::File(file) => file.memory_bytes(),
            Self::Map(map) => map.memory_bytes(),
        }
    }
}

/// Keeps the memory of all indexes bounded: those that were opened first are closed first, and opened again when they are
/// needed.
#[derive(Debug, Default)]
pub(crate) struct TermBudget(Mutex<Opened>);

#[derive(Debug, Default)]
struct Opened {
    segments: VecDeque<(Weak<Segment>, usize)>,
    bytes: usize,
}

impl TermBudget {
    fn opened(&self, segment: &Arc<Segment>, terms: &SealedTerms) {
        let mut opened = self.0.lock().expect("no panic under this lock");
        let bytes = terms.memory_bytes();
        opened.segments.push_back((Arc::downgrade(segment), bytes));
        opened.bytes += bytes;
        let mut closed = Vec::new();
        while opened.bytes > MEMORY_BYTES_MAX && opened.segments.len() > 1 {
            let Some((segment, bytes)) = opened.segments.pop_front() else { break };
            opened.bytes -= bytes;
            closed.extend(segment.upgrade());
        }
        drop(opened);
        closed.iter().for_each(|segment| segment.terms.close());
    }
}
