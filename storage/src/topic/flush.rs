//! From the tail into segments.
//!
//! Batches that the journal holds are written to their topic's active segment, many in one call, and leave the tail
//! when they are there. Nothing is synced here; [`Flush::unsynced`] says what a checkpoint has to.
//!
//! 1. Take the first batches of the tail.
//! 2. Where one starts a new segment: write index and footer of the one before, create the new file.
//! 3. Write those of one segment in one call, then let readers see them there.
//! 4. Drop them from the tail.
//!
//! A failed write or sync fails the store; a full disk or a missing file handle does not: the journal has the records,
//! they stay in the tail, and the next try begins at step 1. What its segment cannot take is [`strand`](super::strand)'s. Every step can be done again after a crash, because the
//! journal says which batch starts a segment: the same bytes go to the same places.

use std::io::IoSlice;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::strand::is_refusal;
use super::tail::TailBatch;
use super::{TopicInner, files};
use crate::context::{Context, NamedFile};
use crate::disk::{File, OpenMode};
use crate::error::{Error, Result};
use crate::format::batch::BatchHeader;
use crate::format::checkpoint::{SealedSegment, TopicState};
use crate::format::segment::{HEADER_BYTES, IndexBuilder, SegmentHeader};
use crate::journal::padding;
use crate::segment::Segment;
use crate::types::{Offset, Timestamp};

/// Most batches in one write; the kernel takes 1024 parts, and each batch is two.
const BATCHES_PER_WRITE: usize = 512;
/// Bytes taken from the tail at once, about.
const BYTES_AT_ONCE: u64 = 1 << 20;

/// What a topic's flusher holds. Its lock is held while files are written.
#[derive(Debug)]
pub(crate) struct Flush {
    active: Option<Active>,
    /// Segments that were written to and not synced since, with their files. The file stays open: the kernel
    /// reports a failed write-back to those who had the file open.
    pub(crate) unsynced: Vec<NamedFile>,
    /// Whether the directory has entries that were not synced.
    pub(crate) is_dir_unsynced: bool,
    /// Where the active segment stood at the checkpoint; what is behind it in the file is to be cut.
    resume: Option<Resume>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Resume {
    pub(super) base_offset: Offset,
    pub(super) bytes: u64,
    /// Of its first batch and its last one.
    pub(super) times: (Timestamp, Timestamp),
}

/// The segment being written.
#[derive(Debug)]
pub(super) struct Active {
    segment: Arc<Segment>,
    file: Arc<dyn File>,
    /// Along with the segment's own, so that sealing has it at hand.
    index: Box<IndexBuilder>,
    is_unsynced: bool,
    _counted: CountedOpen,
}

/// Counts an open segment file as long as it lives.
#[derive(Debug)]
struct CountedOpen {
    context: Arc<Context>,
}

impl CountedOpen {
    fn new(context: &Arc<Context>) -> Self {
        context.counters.segment_files_open.add(1);
        Self { context: Arc::clone(context) }
    }
}

impl Drop for CountedOpen {
    fn drop(&mut self) {
        self.context.counters.segment_files_open.sub(1);
    }
}

impl Active {
    /// Puts the file on the list of those to be synced, before something is written to it.
    fn note_unsynced(&mut self, unsynced: &mut Vec<NamedFile>) {
        if !self.is_unsynced {
            self.is_unsynced = true;
            unsynced.push((Arc::clone(&self.file), self.segment.path.clone()));
        }
    }
}

impl Flush {
    pub(crate) fn new(state: &TopicState) -> Self {
        Self {
            active: None,
            unsynced: Vec::new(),
            is_dir_unsynced: false,
            resume: state.active.filter(|active| active.bytes > HEADER_BYTES as u64).map(|active| Resume {
                base_offset: active.base_offset,
                bytes: active.bytes,
                times: (active.first_time, state.last_time),
            }),
        }
    }

    /// Closes the active segment's file; it is opened again when it is needed. It must be synced.
    pub(crate) fn close_file(&mut self) {
        if let Some(active) = self.active.take() {
            self.resume = Some(Resume {
                base_offset: active.segment.base_offset,
                bytes: active.index.position(),
                times: active.index.times(),
            });
        }
    }

    /// The segment that is to be opened again, taken.
    pub(super) fn take_resume(&mut self) -> Option<Resume> {
        if self.active.is_some() { None } else { self.resume.take() }
    }

    /// Opens that segment when it is needed.
    pub(super) fn resume_at(&mut self, resume: Resume) {
        self.resume = Some(resume);
    }

    /// Goes on in a segment that was opened again.
    pub(super) fn resume_with(&mut self, active: Active) {
        self.active = Some(active);
    }

    /// Lets go of the active segment if it is `segment`, which was trimmed.
    pub(crate) fn forget(&mut self, segment: &Arc<Segment>) {
        if self.active.as_ref().is_some_and(|active| Arc::ptr_eq(&active.segment, segment)) {
            self.active = None;
        }
        self.unsynced.retain(|(_, path)| *path != segment.path);
    }

    /// What is to be synced, handed over.
    pub(crate) fn take_unsynced(&mut self) -> (Vec<NamedFile>, bool) {
        if let Some(active) = &mut self.active {
            active.is_unsynced = false;
        }
        (std::mem::take(&mut self.unsynced), std::mem::take(&mut self.is_dir_unsynced))
    }
}

impl TopicInner {
    /// Checks the topic's files once; every way to them comes through here. Readers wait for no flush after that.
    pub(crate) fn check_files(&self) -> Result<()> {
        if self.are_files_checked() {
            return Ok(());
        }
        self.lock_flush().map(drop)
    }

    /// Whether they were, and were right.
    pub(crate) fn are_files_checked(&self) -> bool {
        self.are_files_checked.load(Ordering::Acquire)
    }

    /// Locks the flush state, its files checked.
    pub(crate) fn lock_flush(&self) -> Result<std::sync::MutexGuard<'_, Flush>> {
        let flush = self.flush.lock().expect("no panic under this lock");
        if !self.are_files_checked() {
            files::check(self)?;
            self.are_files_checked.store(true, Ordering::Release);
        }
        Ok(flush)
    }

    /// Writes everything below `limit` that is still in the tail into segments.
    pub(crate) fn flush_below(&self, limit: Offset) -> Result<()> {
        if self.is_in_memory() || self.tail().first_offset() >= limit {
            return Ok(());
        }
        let mut flush = self.lock_flush()?;
        let outcome = self.write_below(&mut flush, limit);
        drop(flush);
        self.settle_terms();
        outcome
    }

    /// The same for those who hold the flush lock.
    pub(super) fn write_below(&self, flush: &mut Flush, limit: Offset) -> Result<()> {
        loop {
            let (first_offset, chunks) = {
                let mut tail = self.tail();
                let first_offset = tail.first_offset();
                if first_offset >= limit.min(tail.head.next_offset) {
                    return Ok(());
                }
                (first_offset, tail.front(BYTES_AT_ONCE))
            };
            for chunk in &chunks {
                let present = chunk.partition_point(|batch| batch.base_offset < first_offset);
                let mut rest = &chunk[present..];
                while let Some(first) = rest.first() {
                    let same = |batch: &&TailBatch| batch.segment == first.segment;
                    let count = rest.iter().take(BATCHES_PER_WRITE).take_while(same).count();
                    let (run, behind) = rest.split_at(count);
                    if !self.was_forgotten(first) {
                        self.write_run(flush, run)?;
                    }
                    // Now, and not when all are written: the next try must not begin a segment anew that is sealed.
                    let written = run.last().map_or(limit, |batch| batch.next_offset);
                    let (dropped, gone) = self.tail().drop_below(written);
                    self.context.counters.tail_bytes.sub(dropped);
                    drop(gone);
                    rest = behind;
                }
            }
        }
    }

    /// Whether a batch belongs into a segment that was trimmed as a whole before the batch got there: it was read
    /// back from the journal together with its trim.
    fn was_forgotten(&self, batch: &TailBatch) -> bool {
        let begins_segment = batch.base_offset == batch.segment;
        !begins_segment && !self.segments().iter().any(|segment| segment.base_offset == batch.segment)
    }

    fn write_run(&self, flush: &mut Flush, run: &[TailBatch]) -> Result<()> {
        self.activate(flush, run[0].segment)?;
        let Some(active) = &mut flush.active else { unreachable!("it was just activated") };
        let start = active.index.position();
        let mut parts = Vec::with_capacity(2 * run.len());
        let mut headers = Vec::with_capacity(run.len());
        for batch in run {
            parts.push(IoSlice::new(&batch.bytes));
            parts.push(IoSlice::new(padding(batch.bytes.len())));
            let header =
                BatchHeader::decode(&batch.bytes, self.seed).expect("the tail holds intact batches only");
            let crc: [u8; 4] = batch.bytes[..4].try_into().expect("a header has four bytes");
            headers.push((header, crc));
        }
        active.note_unsynced(&mut flush.unsynced);
        active
            .file
            .write_at(&parts, start)
            .map_err(|error| self.write_failed("write segment", &active.segment, error))?;
        headers.iter().for_each(|(header, crc)| active.index.push(header, crc));
        let next_offset = run[run.len() - 1].next_offset;
        active.segment.publish(&headers, active.index.position(), next_offset);
        Ok(())
    }

    /// A full disk is not the end: what was to be written is in the journal and in the tail.
    fn write_failed(&self, action: &'static str, segment: &Segment, error: std::io::Error) -> Error {
        match Error::io(action, &segment.path, error) {
            full @ Error::DiskFull { .. } => full,
            Error::Io { action, path, source } => {
                self.context.fail(Error::StorageFailed { action, path, source })
            }
            other => other,
        }
    }

    /// Makes the segment that starts at `base_offset` the active one.
    fn activate(&self, flush: &mut Flush, base_offset: Offset) -> Result<()> {
        if flush.active.as_ref().is_some_and(|active| active.segment.base_offset == base_offset) {
            return Ok(());
        }
        if flush.active.is_none()
            && let Some(resume) = flush.resume
        {
            if let Some(segment) = self.listed(resume.base_offset) {
                flush.active = Some(self.reopen(&segment, resume)?);
            }
            flush.resume = None;
            return self.activate(flush, base_offset);
        }
        self.seal_active(flush)?;
        let active = self.create(flush, base_offset)?;
        flush.active = Some(active);
        Ok(())
    }

    /// The segment with this base offset; it is not in the list any more if all of it was trimmed.
    pub(super) fn listed(&self, base_offset: Offset) -> Option<Arc<Segment>> {
        self.segments().iter().find(|segment| segment.base_offset == base_offset).cloned()
    }

    /// Opens the active segment again and cuts what a crash left behind its end.
    ///
    /// # Errors
    /// [`Error::TopicRefused`] if it cannot go on there: see [`strand`](super::strand).
    pub(super) fn reopen(&self, segment: &Arc<Segment>, resume: Resume) -> Result<Active> {
        let refuse = |detail| {
            Err(Error::TopicRefused { topic: self.name.clone(), path: segment.path.clone(), detail })
        };
        let open = || {
            let file = self.context.disk.open(&segment.path, OpenMode::Write)?;
            let bytes = file.len()?;
            Ok::<_, std::io::Error>((file, bytes))
        };
        let (file, bytes) = match open() {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return refuse("the segment is missing".into());
            }
            outcome => outcome.map_err(|error| Error::io("open segment", &segment.path, error))?,
        };
        if bytes < resume.bytes {
            return refuse(format!("the segment has {bytes} bytes, but {} were synced", resume.bytes));
        }
        if bytes > resume.bytes {
            file.set_len(resume.bytes).map_err(|error| Error::io("cut segment", &segment.path, error))?;
        }
        let mut index = segment.take_index(&self.context)?;
        index.move_to(resume.bytes);
        Ok(Active {
            segment: Arc::clone(segment),
            file,
            index,
            is_unsynced: false,
            _counted: CountedOpen::new(&self.context),
        })
    }

    /// Seals the active segment, if there is one.
    pub(super) fn seal_active(&self, flush: &mut Flush) -> Result<()> {
        if let Some(active) = &mut flush.active {
            active.note_unsynced(&mut flush.unsynced);
            self.seal(active)?;
            flush.active = None;
        }
        Ok(())
    }

    /// Writes index and footer.
    fn seal(&self, active: &Active) -> Result<()> {
        let segment = &active.segment;
        let footer = active.index.footer(self.uid, segment.next_offset());
        let encoded = footer.encode(self.seed);
        let parts = [IoSlice::new(active.index.entries()), IoSlice::new(&encoded)];
        active
            .file
            .write_at(&parts, footer.data_bytes)
            .map_err(|error| self.write_failed("write the footer of", segment, error))?;
        let bytes = footer.data_bytes + (active.index.entries().len() + encoded.len()) as u64;
        segment.seal(SealedSegment {
            base_offset: segment.base_offset,
            rewrites: segment.rewrites,
            next_offset: footer.next_offset,
            bytes,
            record_count: footer.record_count,
            first_time: footer.first_time,
            last_time: footer.last_time,
        });
        self.terms.is_due.store(true, Ordering::Release);
        Ok(())
    }

    fn create(&self, flush: &mut Flush, base_offset: Offset) -> Result<Active> {
        let is_known = self.segments().iter().any(|segment| segment.base_offset == base_offset);
        assert!(!is_known, "segment {base_offset} of topic {} is begun a second time", self.name);
        let disk = &self.context.disk;
        if self.segments().is_empty() {
            // A directory that was left by a failed sync would not be synced by the next one; fails if there is none.
            let _ = disk.remove_dir(&self.dir);
        }
        disk.create_dir(&self.dir).map_err(|error| Error::io("create directory", &self.dir, error))?;
        let mut fresh = SealedSegment {
            base_offset,
            rewrites: 0,
            next_offset: base_offset,
            bytes: HEADER_BYTES as u64,
            record_count: 0,
            first_time: Timestamp::ZERO,
            last_time: Timestamp::ZERO,
        };
        flush.is_dir_unsynced = true;
        let (segment, file) = loop {
            let segment = self.new_segment(&fresh, false);
            let path = &segment.path;
            let failed = |error| Error::io("create segment", path, error);
            match disk.open(path, OpenMode::Create) {
                // Half made when the disk was full, or by a run that was killed; nobody knows of it yet.
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
                    match files::check_ours(self, path) {
                        Ok(()) => disk.remove(path).map_err(failed)?,
                        Err(error) if is_refusal(&error) && !self.are_files_checked() => fresh.rewrites += 1,
                        Err(error) => return Err(error),
                    }
                }
                outcome => break (Arc::clone(&segment), outcome.map_err(failed)?),
            }
        };
        segment.begin_index();
        let header = SegmentHeader { store: self.context.store, topic: self.uid, base_offset };
        file.write_at(&[IoSlice::new(&header.encode())], 0)
            .map_err(|error| Error::io("create segment", &segment.path, error))?;
        self.context.counters.segments_created.add(1);
        let listed = Arc::clone(&segment);
        self.update_segments(move |segments| segments.push(Arc::clone(&listed)));
        Ok(Active {
            segment,
            file,
            index: Box::new(IndexBuilder::new(base_offset)),
            is_unsynced: false,
            _counted: CountedOpen::new(&self.context),
        })
    }
}
