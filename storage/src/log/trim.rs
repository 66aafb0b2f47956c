//! Dropping what is old.
//!
//! 1. Note the new start in the identity file: from here on the log starts there, whatever happens to the files.
//! 2. Remove the segments below it, whole sealed ones. What a crash leaves of them, the next opening removes.

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
        if offset <= self.log_start() {
            return Ok(());
        }
        let identity = file.identity();
        write_identity(context, &mut file, Identity { log_start_offset: offset, ..identity })?;
        self.log_start.store(offset.0, Ordering::Release);
        let gone = |segment: &Arc<Segment>| segment.sealed().is_some() && segment.next_offset() <= offset;
        let removed: Vec<_> = self.segments.load().iter().filter(|segment| gone(segment)).cloned().collect();
        self.update_segments(|segments| segments.retain(|segment| !gone(segment)));
        self.tail().unsynced.retain(|(_, path)| !removed.iter().any(|segment| segment.path == *path));
        for segment in &removed {
            let path = segment.path();
            context.disk.remove(path).map_err(|error| Error::io("remove", path, error))?;
            context.counters.segments_removed.add(1);
        }
        if !removed.is_empty() {
            context.sync_dir(&context.dir)?;
        }
        self.synced.notify();
        self.written.notify();
        Ok(())
    }
}
