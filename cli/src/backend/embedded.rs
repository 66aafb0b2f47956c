//! A store's directory, through the embedded engine.
//!
//! What only reads opens the store for reading only: that takes no lock, and works beside a server. What changes
//! something opens it for writing, once.

use std::cell::OnceCell;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use quipu_client::SnapshotPut;
use quipu_proto::v1 as pb;
use quipu_storage::clock::Clock;
use quipu_storage::verify::{Progress, VerifyOptions};
use quipu_storage::{
    CompactOptions, Compaction, CompactionControl, Error, Offset, ReadOnlyStore, ReadOnlyTopic, Revision,
    Store, Topic, Visibility,
};

use super::publish::EmbeddedPublisher;
use super::read::{AnyTopic, reader};
use super::{Backend, Item, ProducerAt, Publisher, ReadSpec, Reader, convert};
use crate::exit::Result;
use crate::position::Position;
use crate::requirement::{Requirement, Unmet};

/// How often progress is looked at.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);
/// Streams that are listed at once.
const PAGE_STREAMS: usize = 1000;

/// See the [module](self).
pub(crate) struct Embedded {
    dir: PathBuf,
    writable: OnceCell<Store>,
    read_only: OnceCell<ReadOnlyStore>,
    clock: Option<Arc<dyn Clock>>,
    /// The file, and whether to make it.
    master_key: Option<(PathBuf, bool)>,
}

impl Embedded {
    /// Of the store in that directory; nothing is opened yet.
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.into(),
            writable: OnceCell::new(),
            read_only: OnceCell::new(),
            clock: None,
            master_key: None,
        }
    }

    /// The same with another clock, which gives records their times.
    pub(crate) fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock: Some(clock), ..self }
    }

    /// The same with this master key, a file that is made if that is wanted.
    pub(crate) fn with_master_key(self, master_key: Option<(PathBuf, bool)>) -> Self {
        Self { master_key, ..self }
    }

    fn open(&self, creates: bool) -> Result<&Store> {
        if let Some(store) = self.writable.get() {
            return Ok(store);
        }
        let mut builder = Store::builder().create(creates);
        if let Some(clock) = &self.clock {
            builder = builder.clock(Arc::clone(clock));
        }
        if let Some((path, create)) = &self.master_key {
            builder = builder.master_key(path).create_master_key(*create);
        }
        let store = builder.open(&self.dir)?;
        Ok(self.writable.get_or_init(|| store))
    }

    /// Open for writing; the store must be there.
    fn store(&self) -> Result<&Store> {
        self.open(false)
    }

    fn topic_to_change(&self, name: &str) -> Result<Topic> {
        Ok(self.store()?.topic(name)?)
    }

    /// The topic, from whatever is open, else for reading only.
    fn topic_to_read(&self, name: &str) -> Result<AnyTopic> {
        // Only who has the store's lock has its master key.
        if self.master_key.is_some() {
            self.store()?;
        }
        if let Some(store) = self.writable.get() {
            return Ok(AnyTopic::Writable(store.topic(name)?));
        }
        Ok(AnyTopic::ReadOnly(self.read_only()?.topic(name)?))
    }

    fn read_only(&self) -> Result<&ReadOnlyStore> {
        if let Some(store) = self.read_only.get() {
            return Ok(store);
        }
        let store = Store::open_read_only(&self.dir)?;
        Ok(self.read_only.get_or_init(|| store))
    }
}

fn describe(topic: &Topic) -> pb::Topic {
    let bounds = [topic.log_start_offset(), topic.high_watermark(), topic.log_end_offset()];
    convert::topic(topic.name(), topic.uid(), &topic.settings(), bounds, topic.fencing_token())
}

fn describe_read_only(topic: &ReadOnlyTopic) -> pb::Topic {
    let bounds = [topic.log_start_offset(), topic.high_watermark(), topic.log_end_offset()];
    convert::topic(topic.name(), topic.uid(), &topic.settings(), bounds, topic.fencing_token())
}

impl Backend for Embedded {
    fn create_topic(&self, name: &str, settings: pb::TopicSettings) -> Result<pb::Topic> {
        let settings = convert::settings_from(&settings)?;
        Ok(describe(&self.open(true)?.create_topic(name, settings)?))
    }

    fn topic(&self, name: &str) -> Result<pb::Topic> {
        Ok(match self.topic_to_read(name)? {
            AnyTopic::Writable(topic) => describe(&topic),
            AnyTopic::ReadOnly(topic) => describe_read_only(&topic),
        })
    }

    fn topics(&self, prefix: &str, each: &mut dyn FnMut(pb::Topic) -> Result<()>) -> Result<()> {
        let topics = self.read_only()?.topics();
        topics
            .iter()
            .filter(|topic| topic.name().as_str().starts_with(prefix))
            .try_for_each(|topic| each(describe_read_only(topic)))
    }

    fn update_topic(&self, name: &str, settings: pb::TopicSettings, _paths: &[&str]) -> Result<pb::Topic> {
        let topic = self.topic_to_change(name)?;
        topic.alter(&convert::settings_from(&settings)?)?;
        Ok(describe(&topic))
    }

    fn delete_topic(&self, name: &str) -> Result<()> {
        Ok(self.store()?.delete_topic(name)?)
    }

    fn trim_topic(&self, name: &str, before_offset: u64) -> Result<u64> {
        let topic = self.topic_to_change(name)?;
        topic.trim(Offset(before_offset))?;
        Ok(topic.log_start_offset().0)
    }

    fn compact_topic(
        &self,
        request: pb::CompactTopicRequest,
        progress: &mut dyn FnMut(pb::CompactionProgress),
    ) -> Result<pb::CompactionReport> {
        let topic = self.topic_to_change(&request.name)?;
        let (dry_run, erased_only) = (request.dry_run, request.erased_only);
        let mut options = CompactOptions { dry_run, erased_only, ..CompactOptions::default() };
        if let Some(bytes) = request.bytes_per_second_max
            && let Some(mut compaction) =
                topic.settings().compaction.or_else(|| erased_only.then(Compaction::default))
        {
            compaction.bytes_per_second_max = bytes;
            options.compaction = Some(compaction);
        }
        let control = CompactionControl::new();
        let (ended, is_ended) = std::sync::mpsc::channel::<()>();
        let report = std::thread::scope(|scope| {
            let run = scope.spawn(|| {
                // Dropped when the run ends, however it does.
                let _ended = ended;
                topic.compact_with(&options, &control)
            });
            while let Err(std::sync::mpsc::RecvTimeoutError::Timeout) =
                is_ended.recv_timeout(PROGRESS_INTERVAL)
            {
                let now = control.progress();
                progress(pb::CompactionProgress {
                    bytes_read: now.bytes_read,
                    bytes_to_read: now.bytes_to_read,
                    segments_written: now.segments_written,
                });
            }
            run.join().unwrap_or(Err(Error::Cancelled { what: "compaction" }))
        })?;
        Ok(convert::compaction_report(&report))
    }

    fn verify_topic(
        &self,
        name: &str,
        progress: &mut dyn FnMut(pb::VerifyProgress),
    ) -> Result<pb::VerifyReport> {
        let mut tell = |now: Progress| {
            progress(pb::VerifyProgress { bytes_read: now.bytes_done, bytes_to_read: now.bytes_total });
            ControlFlow::Continue(())
        };
        let options = VerifyOptions { progress: Some(&mut tell), ..VerifyOptions::default() };
        Ok(convert::verify_report(&self.topic_to_change(name)?.verify(options)?))
    }

    fn topic_status(&self, name: &str) -> Result<pb::GetTopicStatusResponse> {
        Ok(match self.topic_to_read(name)? {
            AnyTopic::Writable(topic) => convert::status(describe(&topic), &topic.stats()),
            AnyTopic::ReadOnly(topic) => convert::status(describe_read_only(&topic), &topic.stats()),
        })
    }

    fn offset_of(&self, topic: &str, position: Position) -> Result<u64> {
        Ok(self.topic_to_read(topic)?.offset_of(position, Visibility::Synced)?.0)
    }

    fn streams(
        &self,
        topic: &str,
        prefix: &[u8],
        each: &mut dyn FnMut(pb::Stream) -> Result<()>,
    ) -> Result<()> {
        let topic = self.topic_to_read(topic)?;
        let mut after: Option<Vec<u8>> = None;
        loop {
            let page = topic.streams(prefix, after.as_deref(), PAGE_STREAMS)?;
            let Some(last) = page.last() else { return Ok(()) };
            after = Some(last.key.clone());
            page.into_iter().map(convert::stream).try_for_each(&mut *each)?;
        }
    }

    fn stream(&self, topic: &str, key: &[u8]) -> Result<Option<pb::Stream>> {
        let head = self.topic_to_read(topic)?.stream(key)?;
        Ok(head.map(|head| convert::stream(quipu_storage::StreamInfo { key: key.to_vec(), head })))
    }

    fn unmet(&self, topic: &str, requirements: &[Requirement]) -> Result<Vec<Unmet>> {
        // Without the lock of whoever writes.
        let topic = self.topic_to_read(topic)?;
        let unmet = requirements.iter().enumerate().map(|(number, one)| topic.unmet(number, one));
        unmet.filter_map(Result::transpose).collect()
    }

    fn producer(&self, name: &str) -> Result<Option<pb::ProducerState>> {
        Ok(self.store()?.producer(name).map(convert::producer))
    }

    fn producers(&self) -> Result<Vec<pb::ProducerState>> {
        let producers = match self.writable.get() {
            Some(store) => store.producers(None, usize::MAX),
            None => self.read_only()?.producers(),
        };
        Ok(producers.into_iter().map(convert::producer).collect())
    }

    fn forget_producer(&self, name: &str) -> Result<()> {
        Ok(self.store()?.forget_producer(name)?)
    }

    fn put_snapshot(
        &self,
        topic: &str,
        revision: u64,
        snapshot: pb::Record,
        durability: pb::Durability,
    ) -> Result<SnapshotPut> {
        let (snapshot, durability) = (convert::record(snapshot), convert::durability(durability));
        let put = self.topic_to_change(topic)?.put_snapshot(Revision(revision), &snapshot, durability)?;
        Ok(match put {
            quipu_storage::SnapshotPut::Stored(offset) => SnapshotPut::Stored { offset: offset.0 },
            quipu_storage::SnapshotPut::Superseded(revision) => {
                SnapshotPut::Superseded { revision: revision.0 }
            }
        })
    }

    fn snapshot(&self, topic: &str, key: &[u8], up_to: Option<u64>) -> Result<Option<Item>> {
        let snapshot = self.topic_to_read(topic)?.snapshot(key, up_to)?;
        Ok(snapshot
            .map(|snapshot| Item { revision: Some(snapshot.revision.0), ..convert::item(&snapshot.record) }))
    }

    fn publisher(
        &self,
        topic: &str,
        durability: pb::Durability,
        producer: Option<ProducerAt>,
    ) -> Result<Box<dyn Publisher + '_>> {
        let topic = self.topic_to_change(topic)?;
        let durability = convert::durability(durability);
        Ok(Box::new(EmbeddedPublisher::new(topic.store(), topic, durability, producer)))
    }

    fn erase_keys(&self, erasure_keys: &[String]) -> Result<pb::EraseKeysResponse> {
        let report = self.store()?.erase(&erasure_keys.iter().map(String::as_str).collect::<Vec<_>>())?;
        Ok(pb::EraseKeysResponse {
            destroyed: report.destroyed,
            destroyed_before: report.destroyed_before,
            old_file_overwritten: report.is_old_file_overwritten,
        })
    }

    fn reader(&self, spec: ReadSpec) -> Result<Box<dyn Reader + '_>> {
        reader(self.topic_to_read(&spec.topic)?, spec)
    }

    fn close(&self) -> Result<()> {
        // What was shown may not be all: there may be more behind the damage.
        if let Some(damage) = self.read_only.get().and_then(|store| store.stats().damage) {
            return Err(damage.into());
        }
        match self.writable.get() {
            Some(store) => Ok(store.close()?),
            None => Ok(()),
        }
    }
}
