//! Checkpoints: what the journal holds becomes durable in segments, and the journal's files are free again.
//!
//! 1. Note the journal's end and where every topic stands there.
//! 2. Sync the journal up to it.
//! 3. Write every topic's tail up to there into its segments.
//! 4. Sync these segments and their directories.
//! 5. Write the checkpoint aside, sync it, rename it, sync the directory.
//! 6. Journal files that end at or before the noted place are free.
//!
//! If a topic's files cannot take its records in step 3, they get others ([`strand`](crate::topic::strand)), and it goes on
//! at step 1.
//!
//! Appends and reads go on meanwhile. If a step fails because the disk is full, the old checkpoint holds and the
//! next try begins at step 1; the reserve file is given up first. A failed sync in step 4 fails the store.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::Instant;

use super::open::write_checkpoint;
use super::{Deleted, StoreInner};
use crate::context::NamedFile;
use crate::disk::{EntryKind, OpenMode};
use crate::error::{Error, Result};
use crate::format::checkpoint::Checkpoint;
use crate::terms;
use crate::topic::TopicInner;
use crate::topic::strand::is_refusal;
use crate::topic::tail::Head;
use crate::types::{Offset, TopicId};

/// The file that is given up on a full disk.
pub(super) const RESERVE: &str = "reserve";
/// Most threads that sync segments at once: one file after the other would take as long as they are many.
const SYNC_THREADS_MAX: usize = 16;

struct Noted {
    topic: Arc<TopicInner>,
    head: Head,
    log_start: Offset,
    fencing_token: u64,
}

impl StoreInner {
    /// While this is held no checkpoint is made, and the journal behind the last one stays where it is.
    pub(crate) fn lock_checkpoint(&self) -> MutexGuard<'_, ()> {
        self.checkpointing.lock().expect("no panic under this lock")
    }

    /// Makes a checkpoint of everything written so far.
    pub(crate) fn checkpoint(&self) -> Result<()> {
        let _one_at_a_time = self.lock_checkpoint();
        if let Some(failure) = self.context.failure() {
            return Err(failure.clone());
        }
        let begun = Instant::now();
        let outcome = self.try_checkpoint();
        let outcome = match outcome {
            Err(Error::DiskFull { .. }) if self.give_up_reserve() => self.try_checkpoint(),
            outcome => outcome,
        };
        let is_full = matches!(outcome, Err(Error::DiskFull { .. })) || self.writer().journal.lacks_file();
        self.context.set_disk_full(is_full);
        *self.checkpoint_error.lock().expect("no panic under this lock") = outcome.as_ref().err().cloned();
        if outcome.is_ok() {
            self.context.counters.checkpoints.add(1);
            self.context.counters.checkpoint_latency.record(begun.elapsed());
            self.keep_reserve();
        }
        self.room.notify();
        outcome
    }

    fn try_checkpoint(&self) -> Result<()> {
        let mut stranded = HashSet::new();
        loop {
            let refused = self.attempt_checkpoint()?;
            if refused.is_empty() {
                return Ok(());
            }
            for (topic, error) in refused {
                if !stranded.insert(topic.id) {
                    return Err(error);
                }
                self.strand(&topic)?;
            }
        }
    }

    /// Finds another place for what a topic's files cannot take. The checkpoint is not noted yet, or noted anew.
    fn strand(&self, topic: &TopicInner) -> Result<()> {
        let mut flush = topic.flush.lock().expect("no panic under this lock");
        let writer = self.writer();
        if topic.check_alive().is_err() {
            return Ok(());
        }
        let is_refused = topic.strand(&mut flush)?;
        drop(writer);
        if is_refused { topic.write_stranded(&mut flush) } else { Ok(()) }
    }

    /// All steps, unless there are topics whose files cannot take their records: then nothing but the first three.
    fn attempt_checkpoint(&self) -> Result<Vec<(Arc<TopicInner>, Error)>> {
        let (position, mut checkpoint, noted, deleted) = {
            let writer = self.writer();
            let position = writer.journal.position();
            let noted: Vec<_> = writer
                .topics
                .values()
                .map(|topic| Noted {
                    topic: Arc::clone(topic),
                    head: topic.head(),
                    log_start: topic.log_start(),
                    fencing_token: topic.fencing_token.load(Ordering::Relaxed),
                })
                .collect();
            let mut checkpoint = Checkpoint {
                store: self.context.store,
                position,
                generation: writer.journal.generation(),
                next_topic: writer.next_topic,
                topics: Vec::new(),
                deleted: Vec::new(),
                producers: Vec::new(),
                request_ids: Vec::new(),
                master_key: writer.master_key,
            };
            writer.producers.put_into(&mut checkpoint);
            (position, checkpoint, noted, writer.deleted.clone())
        };
        self.wait_synced(position)?;
        let mut refused = Vec::new();
        let at_once = usize::try_from(self.context.settings.open_files_max).unwrap_or(usize::MAX);
        for some in noted.chunks(at_once) {
            for Noted { topic, head, .. } in some {
                match topic.flush_below(head.next_offset) {
                    Err(_) if topic.is_deleted.load(Ordering::Acquire) => {}
                    Err(error) if is_refusal(&error) => refused.push((Arc::clone(topic), error)),
                    // Its records are in the journal only: as long as it cannot take them the journal must stay.
                    outcome => outcome?,
                }
            }
            // Files stay open until they are synced, so that a failed write-back is heard of; no more than may be.
            self.sync_segments(some.iter().map(|noted| &*noted.topic), noted.len() > at_once)?;
        }
        if !refused.is_empty() {
            return Ok(refused);
        }
        let gone = self.remove_deleted(&deleted)?;
        let left = deleted.into_iter().map(|deleted| deleted.topic);
        checkpoint.deleted = left.filter(|topic| !gone.contains(topic)).collect();
        checkpoint.topics = noted
            .iter()
            .map(|noted| noted.topic.state(&noted.head, noted.log_start, noted.fencing_token))
            .collect();
        write_checkpoint(&*self.context.disk, &self.context.dir, &checkpoint).map_err(
            |error| match error {
                failed @ Error::StorageFailed { .. } => self.context.fail(failed),
                error => error,
            },
        )?;
        self.checkpointed.store(position.0, Ordering::Release);
        for (Noted { topic, .. }, state) in noted.iter().zip(&checkpoint.topics) {
            topic.set_checkpointed(state);
            topic.age_settled(Instant::now());
        }
        self.live().checkpointed(position);
        let odd = {
            let mut writer = self.writer();
            writer.deleted.retain(|deleted| !gone.contains(&deleted.topic));
            writer.journal.release(&self.context, position)
        };
        for path in odd {
            // It is not used any more; the next opening removes it if this fails.
            let _ = self.context.disk.remove(&path);
        }
        Ok(refused)
    }

    /// Syncs what the topics' flushers have written, and closes their files if that is wanted.
    pub(crate) fn sync_segments<'a>(
        &self,
        topics: impl Iterator<Item = &'a TopicInner>,
        and_close: bool,
    ) -> Result<()> {
        let mut files: Vec<NamedFile> = Vec::new();
        let mut dirs = Vec::new();
        for topic in topics {
            let mut flush = topic.flush.lock().expect("no panic under this lock");
            let (unsynced, is_dir_unsynced) = flush.take_unsynced();
            if is_dir_unsynced {
                dirs.push(topic.dir.clone());
            }
            files.extend(unsynced);
            if and_close {
                flush.close_file();
            }
        }
        let is_threaded = self.context.settings.background && files.len() + dirs.len() > 2;
        let sync_one = |number: usize| match number.checked_sub(files.len()) {
            None => self.context.sync_file(&*files[number].0, &files[number].1),
            Some(number) => self.context.sync_dir(&dirs[number]),
        };
        let count = files.len() + dirs.len();
        if is_threaded {
            let next = std::sync::atomic::AtomicUsize::new(0);
            let work = || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return Ok(());
                    }
                    sync_one(number)?;
                }
            };
            std::thread::scope(|scope| {
                // This thread works too: it does it all if no other can be started.
                let others: Vec<_> = (1..count.min(SYNC_THREADS_MAX))
                    .map_while(|_| std::thread::Builder::new().spawn_scoped(scope, work).ok())
                    .collect();
                let outcome = work();
                others
                    .into_iter()
                    .map(|thread| thread.join().expect("syncing does not panic"))
                    .fold(outcome, Result::and)
            })?;
        } else {
            (0..count).try_for_each(sync_one)?;
        }
        if !dirs.is_empty() {
            self.context.sync_dir(&self.context.topics_dir())?;
        }
        Ok(())
    }

    /// Removes the files of deleted topics that nobody writes to any more; answers which are gone.
    fn remove_deleted(&self, deleted: &[Deleted]) -> Result<Vec<TopicId>> {
        let disk = &self.context.disk;
        let remove = |topic: TopicId| -> std::io::Result<()> {
            let dir = self.context.topic_dir(topic);
            let entries = match disk.list(&dir) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
                entries => entries?,
            };
            for entry in entries {
                if entry.kind != EntryKind::File {
                    continue;
                }
                if crate::segment::parse_file_name(&entry.name).is_some() {
                    disk.remove(&dir.join(entry.name))?;
                    self.context.counters.segments_removed.add(1);
                } else if terms::is_file_name(&entry.name) {
                    disk.remove(&dir.join(entry.name))?;
                }
            }
            // Fails if somebody put something else there: that stays.
            let _ = disk.remove_dir(&dir);
            Ok(())
        };
        let may_go = deleted.iter().filter(|deleted| deleted.may_go).map(|deleted| deleted.topic);
        let gone: Vec<_> = may_go.filter(|&topic| remove(topic).is_ok()).collect();
        if !gone.is_empty() {
            self.context.sync_dir(&self.context.topics_dir())?;
        }
        Ok(gone)
    }

    /// Frees the reserve; says whether there was one.
    pub(crate) fn give_up_reserve(&self) -> bool {
        self.context.disk.remove(&self.context.dir.join(RESERVE)).is_ok()
    }

    /// Sets bytes aside for the time when the disk is full. That it cannot be done is no failure.
    pub(crate) fn keep_reserve(&self) {
        let bytes = self.context.settings.reserve_bytes;
        let path = self.context.dir.join(RESERVE);
        if bytes == 0 || self.context.is_disk_full() {
            return;
        }
        let create = || self.context.disk.open(&path, OpenMode::Create)?.allocate(bytes);
        match create() {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                let _ = self.context.disk.remove(&path);
            }
            _ => {}
        }
    }
}
