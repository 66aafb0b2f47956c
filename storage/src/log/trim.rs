//! Dropping what is old.
//!
//! 1. Note the new start in the identity file: from here on the log starts there, whatever happens to the files.
//! 2. Remove the segments below it, whole sealed ones. What a crash leaves of them, the next opening removes; what cannot
//!    be removed, the next trim. The log is trimmed all the same.

use std::io::ErrorKind;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::identity::Identity;
use super::open::write_identity;
use super::{Log, LogInner};
use crate::error::{Error, Result};
use crate::segment::Segment;
use crate::types::Offset;

impl Log {
    /// Removes all records below `offset`; when this returns, that survives a power cut. Space comes back by whole
    /// sealed segments. Works on a full disk.
    ///
    /// # Errors
    /// [`Error::OffsetUnwritten`] beyond the high watermark.
    pub fn trim(&self, offset: Offset) -> Result<()> {
        let inner = &self.handle.inner;
        // A failure is final, so the next append has to look.
        inner.trim(offset).inspect_err(|_| inner.tail().interrupt())
    }
}

impl LogInner {
    fn trim(&self, offset: Offset) -> Result<()> {
        let context = &self.context;
        let mut file = self.identity();
        context.check_writable()?;
        let next_offset = Offset(self.high_watermark.load(Ordering::Acquire));
        if offset > next_offset {
            return Err(Error::OffsetUnwritten { topic: self.name.clone(), offset, next_offset });
        }
        if offset > self.log_start() {
            let identity = file.identity();
            write_identity(context, &mut file, Identity { log_start_offset: offset, ..identity })?;
            self.log_start.store(offset.0, Ordering::Release);
            self.synced.notify();
            self.written.notify();
        }
        self.remove_trimmed()
    }

    /// Step 2, under the identity's lock. A file that cannot be removed stays in the list: the next trim tries again.
    fn remove_trimmed(&self) -> Result<()> {
        let context = &self.context;
        let log_start = self.log_start();
        let gone = |segment: &Arc<Segment>| segment.sealed().is_some() && segment.next_offset() <= log_start;
        let trimmed: Vec<_> = self.segments.load().iter().filter(|segment| gone(segment)).cloned().collect();
        self.tail().unsynced.retain(|(_, path)| !trimmed.iter().any(|segment| segment.path == *path));
        let mut removed = Vec::new();
        for segment in trimmed {
            match context.disk.remove(segment.path()) {
                Err(error) if error.kind() != ErrorKind::NotFound => {}
                _ => {
                    context.counters.segments_removed.add(1);
                    removed.push(segment);
                }
            }
        }
        if removed.is_empty() {
            return Ok(());
        }
        self.update_segments(|segments| {
            segments.retain(|segment| !removed.iter().any(|removed| Arc::ptr_eq(removed, segment)));
        });
        context.sync_dir(&context.dir)
    }
}
