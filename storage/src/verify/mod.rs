//! Verifying a store: every checksum, every offset, every file.
//!
//! [`verify`] walks the directory of a store that nobody has open for writing, and needs no store to open: it goes on
//! where opening would refuse. [`Store::verify`] and [`Topic::verify`] do the same beside live appends, for what has
//! reached the disk. Both read with `pread`, change nothing, and name each bad range with topic, offsets, file and
//! position.
//!
//! | Module | What it looks at |
//! |---|---|
//! | `layout` | the directory, the checkpoint, the file `clean` |
//! | `journal` | the journal's files, and its frames behind the checkpoint |
//! | `segment` | one segment: header, batches, index, footer |
//!
//! What it cannot see: a record that was never acknowledged leaves nothing behind, and an old copy of a whole store is
//! as intact as it was.

mod journal;
mod layout;
mod report;
mod run;
pub(crate) mod segment;

use std::io;
use std::path::Path;
use std::sync::Arc;

use crate::Topic;
use crate::clock::SystemClock;
use crate::context::Context;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::checkpoint::Checkpoint;
use crate::settings::StoreSettings;
use crate::store::Store;
use crate::store::open::{CHECKPOINT, LOCK, Recovering, is_closed_properly};
use crate::topic::TopicInner;
use crate::types::Position;
use journal::Journal;
pub use report::{Checked, Finding, Severity, VerifyReport};
use run::Run;
pub use run::{OnProgress, Progress, VerifyOptions};
use segment::Subject;

/// Verifies the store in directory `path`, which nobody may have open for writing: a shared lock keeps it so meanwhile.
///
/// # Errors
/// [`Error::Locked`] if the store is in use, [`Error::NoStore`] if there is none, [`Error::NewerFormat`],
/// [`Error::Cancelled`]. Damage is no error: it is in the report.
pub fn verify(
    path: impl AsRef<Path>,
    disk: Arc<dyn Disk>,
    options: VerifyOptions<'_>,
) -> Result<VerifyReport> {
    let dir = path.as_ref();
    if !layout::is_store(&*disk, dir)? {
        return Err(Error::NoStore { path: dir.into() });
    }
    let lock_path = dir.join(LOCK);
    let _lock = match disk.lock_shared(&lock_path) {
        Ok(lock) => Some(lock),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(Error::Locked { path: dir.into(), holder: error.to_string() });
        }
        // Without a lock file nobody has it open; and some disks cannot tell.
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::Unsupported) => None,
        Err(error) => return Err(Error::io("lock", lock_path, error)),
    };
    let mut run = Run::new(options);
    match layout::checkpoint(&mut run, &*disk, dir)? {
        Some(checkpoint) => verify_closed(&mut run, disk, dir, &checkpoint)?,
        None => layout::segments_alone(&mut run, &*disk, dir)?,
    }
    Ok(run.report)
}

fn verify_closed(run: &mut Run<'_>, disk: Arc<dyn Disk>, dir: &Path, checkpoint: &Checkpoint) -> Result<()> {
    run.report.store = Some(checkpoint.store);
    run.bytes_total = layout::bytes_known(&*disk, dir, checkpoint);
    layout::check_root(run, &*disk, dir);
    layout::check_clean(run, &*disk, dir, checkpoint.position);
    let is_clean = is_closed_properly(&*disk, dir, checkpoint.position).unwrap_or(false);
    run.report.was_clean = is_clean;
    let clock = Arc::new(SystemClock);
    let settings = StoreSettings::default();
    let context = Arc::new(Context::new(dir.into(), disk, clock, settings, checkpoint.store, true));
    let mut state = Recovering::new(&context, checkpoint);
    let journal = Journal {
        disk: &*context.disk,
        dir: &crate::journal::dir(&context),
        store: checkpoint.store,
        is_clean,
        synced: None,
    };
    journal::check(run, &journal, checkpoint, |changes| state.apply(changes).map(drop))?;
    for topic in state.topics.values() {
        layout::check_topic_files(run, topic)?;
        check_topic(run, topic, false)?;
    }
    layout::check_topic_dirs(run, &context, &state);
    Ok(())
}

/// Checks the segments of a topic, and that they follow each other up to what the journal has.
fn check_topic(run: &mut Run<'_>, topic: &TopicInner, is_open: bool) -> Result<()> {
    if topic.is_in_memory() {
        return Ok(());
    }
    run.report.checked.topics += 1;
    // What leaves the tail meanwhile goes into segments, and what leaves the list of segments was trimmed: so in this
    // order.
    let tail_start = topic.tail().first_offset();
    let segments = topic.segments();
    let log_start = topic.log_start();
    let mut expected = log_start;
    let mut is_dense = true;
    for listed in segments.iter() {
        let is_listed = || !is_open || topic.segments().iter().any(|segment| Arc::ptr_eq(segment, listed));
        // The end first: what is published later only makes the rest longer.
        let next_offset = listed.next_offset();
        let sealed = listed.sealed();
        is_dense &= listed.rewrites == 0;
        let gap = expected..listed.base_offset;
        if gap.start < gap.end && is_dense && is_listed() {
            run.find_in_topic(
                Severity::Unreadable,
                Some(&topic.name),
                Some(gap),
                (&listed.path, 0),
                "no segment holds what comes before this one",
            );
        } else if listed.base_offset < expected && expected != log_start {
            run.find_in_topic(
                Severity::Unreadable,
                Some(&topic.name),
                Some(listed.base_offset..expected),
                (&listed.path, 0),
                "the segment overlaps the one before it",
            );
        }
        let subject = Subject {
            path: listed.path.clone(),
            topic: Some(&topic.name),
            owner: Some((topic.context.store, topic.uid)),
            base_offset: listed.base_offset,
            next_offset: Some(next_offset),
            rewrites: listed.rewrites,
            log_start,
            sealed,
            data_bytes: sealed.is_none().then(|| listed.file_bytes()),
            is_listed: &is_listed,
        };
        segment::check(run, &*topic.context.disk, &subject)?;
        expected = expected.max(next_offset);
        is_dense = listed.rewrites == 0;
    }
    if expected < tail_start && is_dense {
        let detail = "neither a segment nor the journal holds them";
        let topic_dir = (&*topic.dir, 0);
        run.find_in_topic(
            Severity::Unreadable,
            Some(&topic.name),
            Some(expected..tail_start),
            topic_dir,
            detail,
        );
    }
    Ok(())
}

/// The same for an open topic: its files too are looked at, as its readers do.
fn check_open_topic(run: &mut Run<'_>, topic: &TopicInner) -> Result<()> {
    if let Err(error) = topic.check_files() {
        let path = match &error {
            Error::TopicRefused { path, .. } | Error::NewerFormat { path, .. } => path.clone(),
            _ => topic.dir.clone(),
        };
        run.find_in_topic(Severity::Unreadable, Some(&topic.name), None, (&path, 0), error.to_string());
    }
    check_topic(run, topic, true)
}

impl Store {
    /// Verifies what has reached the disk, beside appends and readers: the checkpoint, the journal behind it as far as
    /// it is synced, and all segments.
    ///
    /// While the journal is read no checkpoint is made. Records that are on their way into segments are in the
    /// journal.
    ///
    /// # Errors
    /// [`Error::Cancelled`]. Damage is no error: it is in the report.
    pub fn verify(&self, options: VerifyOptions<'_>) -> Result<VerifyReport> {
        let inner = &self.handle.inner;
        let context = &inner.context;
        let mut run = Run::new(options);
        run.report.store = Some(context.store);
        run.bytes_total = self.stats().segment_bytes;
        {
            // Nothing of the journal is used again meanwhile, and the checkpoint stays what it is.
            let _no_checkpoint = inner.lock_checkpoint();
            if let Some(checkpoint) = layout::checkpoint(&mut run, &*context.disk, &context.dir)? {
                let journal = Journal {
                    disk: &*context.disk,
                    dir: &crate::journal::dir(context),
                    store: context.store,
                    is_clean: false,
                    synced: Some(Position(inner.commit.synced())),
                };
                journal::check(&mut run, &journal, &checkpoint, |_| Ok(()))?;
            }
        }
        for topic in self.topics() {
            check_open_topic(&mut run, &topic.inner)?;
        }
        Ok(run.report)
    }
}

impl Topic {
    /// Verifies the topic's segments, beside appends and readers.
    ///
    /// # Errors
    /// As [`Store::verify`].
    pub fn verify(&self, options: VerifyOptions<'_>) -> Result<VerifyReport> {
        self.inner.check_alive()?;
        let mut run = Run::new(options);
        run.report.store = Some(self.inner.context.store);
        run.bytes_total = self.stats().segment_bytes;
        check_open_topic(&mut run, &self.inner)?;
        Ok(run.report)
    }
}

/// The name of the checkpoint's file, for messages.
fn checkpoint_path(dir: &Path) -> std::path::PathBuf {
    dir.join(CHECKPOINT)
}
