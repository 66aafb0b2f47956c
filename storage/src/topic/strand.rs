//! Records on their way to a segment that cannot take them any more: its file is short or missing, or the topic is
//! refused. They go into segments of their own, so that a damaged topic keeps neither the journal nor the memory for
//! recent records from all others. A checkpoint does it, before it notes where the topics stand.
//!
//! | Found | Decision |
//! |---|---|
//! | the active segment is as long as it was synced | it takes the records, whatever else is wrong with the topic |
//! | it is short or missing | it ends where it was to end, sealed without a footer; the first record of the tail begins a new one |
//! | the topic is refused | all of the tail is written, and the last segment sealed: nothing is appended until the files are right again |
//! | in a refused topic, a segment's name is taken by somebody else | the file stays; the segment has the next number of rewrites in its name |
//!
//! After a crash before that checkpoint the journal still has all of it, and the same is done again; if the files were
//! put right in between, the records go where they were to go, and what was written here is removed as unknown.

use std::sync::atomic::Ordering;

use super::TopicInner;
use super::files;
use super::flush::{Flush, Resume};
use crate::error::{Error, Result};
use crate::format::checkpoint::SealedSegment;
use crate::segment::Segment;
use crate::types::Offset;

/// Whether an error says that a topic's files are not what they should be, and not that the disk could not be asked.
pub(crate) fn is_refusal(error: &Error) -> bool {
    matches!(error, Error::TopicRefused { .. } | Error::NewerFormat { .. })
}

impl TopicInner {
    /// Says where the records of the tail go that [`flush_below`](Self::flush_below) has refused. Under the store's
    /// writer lock: nobody appends meanwhile. Answers whether the topic is refused: then go on with
    /// [`write_stranded`](Self::write_stranded).
    pub(crate) fn strand(&self, flush: &mut Flush) -> Result<bool> {
        if !self.are_files_checked() {
            match files::check(self) {
                Err(error) if is_refusal(&error) => {}
                outcome => {
                    outcome?;
                    self.are_files_checked.store(true, Ordering::Release);
                }
            }
        }
        if let Some(resume) = flush.take_resume()
            && let Some(segment) = self.listed(resume.base_offset)
        {
            match self.reopen(&segment, resume) {
                Ok(active) => flush.resume_with(active),
                Err(error) if is_refusal(&error) => {
                    end(&segment, resume);
                    self.tail().leave_segment(resume.base_offset);
                }
                Err(error) => {
                    flush.resume_at(resume);
                    return Err(error);
                }
            }
        }
        // Which segment has which records is another matter now.
        self.terms.recent.forget();
        Ok(!self.are_files_checked())
    }

    /// Writes all that a refused topic has in memory.
    pub(crate) fn write_stranded(&self, flush: &mut Flush) -> Result<()> {
        self.write_below(flush, Offset::MAX)?;
        self.seal_active(flush)?;
        self.tail().head.active = None;
        Ok(())
    }
}

/// Counts a segment as sealed although its file has neither index nor footer: readers do without.
fn end(segment: &Segment, resume: Resume) {
    segment.seal(SealedSegment {
        base_offset: segment.base_offset,
        rewrites: segment.rewrites,
        next_offset: segment.next_offset(),
        bytes: resume.bytes,
        record_count: segment.next_offset() - segment.base_offset,
        first_time: resume.times.0,
        last_time: resume.times.1,
    });
}
