//! Creating, altering, trimming and deleting topics.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Deleted, Store, StoreInner};
use crate::Topic;
use crate::context::random;
use crate::error::{Error, ErrorKind, Result};
use crate::format::answer::PRODUCER_NAME_BYTES_MAX;
use crate::format::checkpoint::TopicState;
use crate::format::frame::Change;
use crate::producers::ProducerInfo;
use crate::settings::TopicSettings;
use crate::topic::TopicInner;
use crate::types::{Offset, Timestamp, TopicId, TopicName, Uid};

impl Store {
    /// The topic of that name.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`]; [`Error::InvalidTopicName`].
    pub fn topic(&self, name: &str) -> Result<Topic> {
        match self.handle.inner.topic(name) {
            Some(inner) => Ok(Topic { inner, handle: Arc::clone(&self.handle) }),
            None => Err(Error::TopicNotFound { name: TopicName::new(name)? }),
        }
    }

    /// The topic of that name, created with default settings if there is none.
    ///
    /// # Errors
    /// As [`create_topic`](Self::create_topic).
    pub fn topic_or_create(&self, name: &str) -> Result<Topic> {
        loop {
            match self.topic(name) {
                Err(Error::TopicNotFound { .. }) => match self.create_topic(name, TopicSettings::default()) {
                    // Somebody else was faster.
                    Err(Error::TopicExists { .. }) => {}
                    outcome => return outcome,
                },
                outcome => return outcome,
            }
        }
    }

    /// Creates a topic; when this returns, it survives a power cut.
    ///
    /// # Errors
    /// [`Error::TopicExists`], [`Error::TooManyTopics`], [`Error::InvalidTopicName`], [`Error::InvalidSetting`],
    /// [`Error::CodecUnavailable`].
    pub fn create_topic(&self, name: &str, settings: TopicSettings) -> Result<Topic> {
        let name = TopicName::new(name)?;
        settings.check()?;
        let uid = Uid(random()?);
        let inner = &self.handle.inner;
        let _working = inner.begin_work()?;
        let limit = usize::try_from(inner.context.settings.topics_max).unwrap_or(usize::MAX);
        let plan = |writer: &mut super::Writer| {
            if inner.topic(name.as_str()).is_some() {
                return Err(Error::TopicExists { name: name.clone() });
            }
            if writer.topics.len() >= limit || writer.next_topic.0 == u32::MAX {
                return Err(Error::TooManyTopics { limit });
            }
            Ok(Change::TopicCreated {
                topic: writer.next_topic,
                uid,
                name: name.clone(),
                settings: settings.clone(),
            })
        };
        let apply = |writer: &mut super::Writer| {
            let state = TopicState {
                id: writer.next_topic,
                uid,
                name: name.clone(),
                settings: settings.clone(),
                log_start_offset: Offset::ZERO,
                next_offset: Offset::ZERO,
                last_time: Timestamp::ZERO,
                active: None,
                sealed: Vec::new(),
                fencing_token: 0,
            };
            let topic = Arc::new(TopicInner::new(&inner.context, &state));
            writer.next_topic = TopicId(state.id.0 + 1);
            writer.topics.insert(state.id, Arc::clone(&topic));
            inner.topics.write().expect("no panic under this lock").insert(state.name, Arc::clone(&topic));
            topic
        };
        let topic = inner.change(plan, apply)?;
        Ok(Topic { inner: topic, handle: Arc::clone(&self.handle) })
    }

    /// All topics, by name.
    pub fn topics(&self) -> Vec<Topic> {
        let mut topics: Vec<_> = self
            .handle
            .inner
            .all_topics()
            .into_iter()
            .map(|inner| Topic { inner, handle: Arc::clone(&self.handle) })
            .collect();
        topics.sort_by(|a, b| a.name().cmp(b.name()));
        topics
    }

    /// Deletes a topic with all its records; when this returns, the deletion survives a power cut. Readers that
    /// are at it get [`Error::TopicNotFound`].
    ///
    /// # Errors
    /// [`Error::TopicNotFound`].
    pub fn delete_topic(&self, name: &str) -> Result<()> {
        let inner = &self.handle.inner;
        let _working = inner.begin_work()?;
        let missing = |name| Ok::<_, Error>(Error::TopicNotFound { name: TopicName::new(name)? });
        let Some(topic) = inner.topic(name) else { return Err(missing(name)?) };
        let plan = |writer: &mut super::Writer| {
            if writer.topics.contains_key(&topic.id) {
                Ok(Change::TopicDeleted { topic: topic.id })
            } else {
                Err(Error::TopicNotFound { name: topic.name.clone() })
            }
        };
        let apply = |writer: &mut super::Writer| {
            writer.topics.remove(&topic.id);
            inner.topics.write().expect("no panic under this lock").remove(name);
            topic.is_deleted.store(true, Ordering::Release);
            writer.deleted.push(Deleted { topic: topic.id, may_go: false });
        };
        inner.change(plan, apply)?;
        topic.watch.notify();
        // Nobody writes these files any more when the flush lock was had; then they may go, now or at the next
        // checkpoint.
        let mut flush = topic.flush.lock().expect("no panic under this lock");
        flush.take_unsynced();
        flush.close_file();
        topic.drop_tail();
        drop(flush);
        drop(topic.terms.lock_writing());
        topic.drop_settled();
        let mut writer = inner.writer();
        let deleted = writer.deleted.iter_mut().find(|deleted| deleted.topic == topic.id);
        deleted.expect("only who may go is taken off the list").may_go = true;
        Ok(())
    }
}

/// So many are listed while the writer lock is held.
const PRODUCERS_AT_ONCE: usize = 1000;

impl Store {
    /// What is known of a named producer.
    pub fn producer(&self, name: &str) -> Option<ProducerInfo> {
        self.handle.inner.writer().producers.producer(name)
    }

    /// At most `count` producers in the order of their names: from behind `after`, or the first ones. Appends go on while many
    /// are listed: one that comes or goes meanwhile may be among them or not.
    pub fn producers(&self, after: Option<&str>, count: usize) -> Vec<ProducerInfo> {
        let mut found: Vec<ProducerInfo> = Vec::new();
        while found.len() < count {
            let after = found.last().map_or(after, |last| Some(&last.name[..]));
            let wanted = PRODUCERS_AT_ONCE.min(count - found.len());
            let page = self.handle.inner.writer().producers.page(after, wanted);
            let is_last = page.len() < wanted;
            found.extend(page);
            if is_last {
                break;
            }
        }
        found
    }

    /// Forgets a producer that does not append any more; when this returns, that survives a power cut. Its name may be
    /// used anew, with any epoch. A repeat of an append that it made would be applied again.
    ///
    /// # Errors
    /// [`Error::ProducerNotFound`].
    pub fn forget_producer(&self, name: &str) -> Result<()> {
        let inner = &self.handle.inner;
        let _working = inner.begin_work()?;
        let plan = |writer: &mut super::Writer| match writer.producers.producer(name) {
            Some(producer) => Ok(Change::ProducerForgotten { name: producer.name }),
            None => {
                Err(Error::ProducerNotFound { name: name.chars().take(PRODUCER_NAME_BYTES_MAX).collect() })
            }
        };
        inner.change(plan, |writer| writer.producers.forget(name))
    }
}

impl StoreInner {
    /// Gives a topic other settings.
    pub(crate) fn alter(&self, topic: &Arc<TopicInner>, settings: &TopicSettings) -> Result<()> {
        settings.check()?;
        if topic.settings.load().storage != settings.storage {
            return Err(Error::InvalidSetting {
                setting: "storage",
                value: format!("{:?}", settings.storage),
                rule: "what it was at creation".into(),
            });
        }
        let plan = |_: &mut super::Writer| {
            topic.check_alive()?;
            Ok(Change::TopicAltered { topic: topic.id, settings: settings.clone() })
        };
        self.change(plan, |_| topic.settings.store(Arc::new(settings.clone())))
    }

    /// Raises the fencing token of a topic, if it is lower.
    pub(crate) fn fence(&self, topic: &Arc<TopicInner>, token: u64) -> Result<()> {
        let plan = |_: &mut super::Writer| {
            topic.check_alive()?;
            let current = topic.fencing_token.load(Ordering::Relaxed);
            if token < current {
                return Err(Error::TopicFenced { topic: topic.name.clone(), token, current });
            }
            Ok(Change::Fenced { topic: topic.id, token })
        };
        self.change(plan, |_| topic.fencing_token.store(token, Ordering::Relaxed))
    }

    /// Removes what lies below `offset`. Whole segments go at once, the rest of the first one when the last of
    /// its records goes; none of it can be read any more.
    pub(crate) fn trim(&self, topic: &Arc<TopicInner>, offset: Offset) -> Result<()> {
        let plan = |_: &mut super::Writer| {
            topic.check_alive()?;
            let next_offset = topic.high_watermark();
            if offset > next_offset {
                return Err(Error::OffsetUnwritten { topic: topic.name.clone(), offset, next_offset });
            }
            Ok(Change::Trimmed { topic: topic.id, log_start_offset: offset })
        };
        if offset <= topic.log_start() {
            topic.check_alive()?;
            // The trim that moved it there may be another thread's, and not durable yet.
            return self.sync();
        }
        if !topic.is_in_memory() {
            self.keep_past(topic, offset)?;
        }
        self.change(plan, |_| topic.move_log_start(offset))?;
        if topic.is_in_memory() {
            return Ok(());
        }
        match self.remove_trimmed(topic) {
            Err(error) if error.kind() == ErrorKind::Reopen => Err(error),
            // The records are gone for good; a file that cannot be removed now is removed by retention, or at the
            // next opening.
            _ => Ok(()),
        }
    }

    /// Keeps what stays known of the records below `offset`, before they go.
    fn keep_past(&self, topic: &Arc<TopicInner>, offset: Offset) -> Result<()> {
        // Nothing of it goes: the trim is refused.
        if offset > topic.high_watermark() {
            return Ok(());
        }
        match topic.keep_past(offset) {
            Err(Error::DiskFull { .. }) if self.give_up_reserve() => topic.keep_past(offset),
            outcome => outcome,
        }
    }

    /// Removes the files of segments that were trimmed. The trim is in the journal, durable. Needs no room on the disk.
    pub(crate) fn remove_trimmed(&self, topic: &Arc<TopicInner>) -> Result<()> {
        // Another thread's trim may have moved the start and not be synced yet: its files must not go before its frame
        // is on the disk.
        let log_start = topic.log_start();
        self.sync()?;
        let mut flush = topic.lock_flush()?;
        let mut left = Vec::new();
        let mut outcome = Ok(());
        for segment in topic.forget_trimmed(log_start) {
            flush.forget(&segment);
            flush.is_dir_unsynced = true;
            match self.context.disk.remove(&segment.path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    outcome = Err(Error::io("remove segment", &segment.path, error));
                    left.push(segment);
                }
                _ => {
                    topic.remove_terms(&segment);
                    self.context.counters.segments_removed.add(1);
                }
            }
        }
        if !left.is_empty() {
            // To be tried again.
            topic.update_segments(|segments| {
                segments.splice(0..0, left.iter().cloned());
            });
        }
        if self.context.is_disk_full() {
            self.wake.checkpoint.signal();
        }
        outcome
    }
}
