//! A topic of a store that is open for reading only, as its users hold it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{ReadHandle, ReadOnlyStore};
use crate::cursor::{
    Backwards, Cursor, Records, RecordsBackwards, Source, Start, StoredRecord, Visibility, get,
};
use crate::error::Result;
use crate::filter::{self, Filter};
use crate::filtered::{FilteredBackwards, FilteredCursor};
use crate::settings::TopicSettings;
use crate::snapshot::{self, Snapshot};
use crate::stats::TopicStats;
use crate::stream::{self, StreamCursor, StreamHead, StreamInfo, StreamStart};
use crate::topic::TopicInner;
use crate::types::{Offset, Revision, TopicName, Uid};

/// A topic of a [`ReadOnlyStore`]: what [`Topic`](crate::Topic) offers for reading. Cheap to clone; it keeps the store
/// open.
///
/// The records of a topic in memory are in the writer's memory: here it is empty.
#[derive(Clone)]
pub struct ReadOnlyTopic {
    inner: Arc<TopicInner>,
    handle: Arc<ReadHandle>,
}

impl fmt::Debug for ReadOnlyTopic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadOnlyTopic").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

impl ReadOnlyTopic {
    pub(super) fn new(inner: Arc<TopicInner>, handle: Arc<ReadHandle>) -> Self {
        Self { inner, handle }
    }

    /// Its name.
    pub fn name(&self) -> &TopicName {
        &self.inner.name
    }

    /// What tells it from every other topic, also from a later one of the same name.
    pub fn uid(&self) -> Uid {
        self.inner.uid
    }

    /// Its settings.
    pub fn settings(&self) -> TopicSettings {
        TopicSettings::clone(&self.inner.settings.load())
    }

    /// The records from `start` to the end as it is known when it is reached.
    ///
    /// # Errors
    /// [`Error::OffsetTrimmed`](crate::Error::OffsetTrimmed), [`Error::OffsetUnwritten`](crate::Error::OffsetUnwritten).
    pub fn read(&self, start: impl Into<Start>) -> Result<Records> {
        Ok(Records::new(self.cursor(start, Visibility::Synced)?, false))
    }

    /// The records from `start` on, and then each new one; ends when the [`ReadOnlyStore`] is closed.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn follow(&self, start: impl Into<Start>) -> Result<Records> {
        Ok(Records::new(self.cursor(start, Visibility::Synced)?, true))
    }

    /// The records from the last one below `before` to the first.
    pub fn read_backwards(&self, before: Offset) -> RecordsBackwards {
        RecordsBackwards::new(self.batches_backwards(before, Visibility::Synced))
    }

    /// A cursor over batches: the way to read for those who want to say when to wait, or to be woken.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn cursor(&self, start: impl Into<Start>, visibility: Visibility) -> Result<Cursor> {
        Cursor::new(self.source(), start.into(), visibility)
    }

    /// Batches from the last one below `before` to the first.
    pub fn batches_backwards(&self, before: Offset, visibility: Visibility) -> Backwards {
        Backwards::new(self.source(), before, visibility)
    }

    /// One record, or `None` if compaction took it out.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn get(&self, offset: Offset) -> Result<Option<StoredRecord>> {
        get(self.source(), offset, Visibility::Synced)
    }

    /// See [`Topic::filtered_cursor`](crate::Topic::filtered_cursor).
    ///
    /// # Errors
    /// As there.
    pub fn filtered_cursor(
        &self,
        filter: &Filter,
        start: impl Into<Start>,
        visibility: Visibility,
    ) -> Result<FilteredCursor> {
        FilteredCursor::new(self.source(), filter, start.into(), visibility)
    }

    /// See [`Topic::filtered_backwards`](crate::Topic::filtered_backwards).
    ///
    /// # Errors
    /// As there.
    pub fn filtered_backwards(
        &self,
        filter: &Filter,
        before: Offset,
        visibility: Visibility,
    ) -> Result<FilteredBackwards> {
        FilteredBackwards::new(self.source(), filter, before, visibility)
    }

    /// The latest snapshot of a stream: see [`Topic::snapshot`](crate::Topic::snapshot).
    ///
    /// # Errors
    /// As there.
    pub fn snapshot(&self, key: impl AsRef<[u8]>, up_to: Option<Revision>) -> Result<Option<Snapshot>> {
        let store = ReadOnlyStore { handle: Arc::clone(&self.handle) };
        let open = |name: &str| store.topic(name).map(|snapshots| snapshots.source());
        snapshot::latest(&self.source(), key.as_ref(), up_to, open)
    }

    /// What is known of the stream of a key: see [`Topic::stream`](crate::Topic::stream).
    ///
    /// # Errors
    /// As there.
    pub fn stream(&self, key: impl AsRef<[u8]>) -> Result<Option<StreamHead>> {
        stream::head(&self.source(), key.as_ref(), Visibility::Synced)
    }

    /// See [`Topic::streams`](crate::Topic::streams).
    ///
    /// # Errors
    /// As there.
    pub fn streams(
        &self,
        prefix: impl AsRef<[u8]>,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<StreamInfo>> {
        stream::list(&self.source(), prefix.as_ref(), after, limit, Visibility::Synced)
    }

    /// See [`Topic::stream_cursor`](crate::Topic::stream_cursor).
    ///
    /// # Errors
    /// As there.
    pub fn stream_cursor(
        &self,
        key: impl AsRef<[u8]>,
        start: impl Into<StreamStart>,
        visibility: Visibility,
    ) -> Result<StreamCursor> {
        StreamCursor::new(self.source(), key.as_ref(), start.into(), visibility)
    }

    /// See [`Topic::stream_end_before`](crate::Topic::stream_end_before).
    ///
    /// # Errors
    /// As there.
    pub fn stream_end_before(
        &self,
        key: impl AsRef<[u8]>,
        before: Revision,
        visibility: Visibility,
    ) -> Result<Offset> {
        stream::end_before(&self.source(), key.as_ref(), before, visibility)
    }

    /// See [`Topic::first_match`](crate::Topic::first_match).
    ///
    /// # Errors
    /// As there.
    pub fn first_match(&self, filter: &Filter, after: Option<Offset>) -> Result<Option<Offset>> {
        filter::first_match(&self.source(), filter, after, Visibility::Synced)
    }

    /// The first offset that can be read.
    pub fn log_start_offset(&self) -> Offset {
        self.inner.log_start()
    }

    /// The first offset not known to be synced: everything below survives a power cut.
    pub fn high_watermark(&self) -> Offset {
        self.inner.high_watermark()
    }

    /// The first offset that was not yet found written.
    pub fn log_end_offset(&self) -> Offset {
        self.inner.log_end()
    }

    /// The lowest fencing token with which appends are applied; see [`Topic::fencing_token`](crate::Topic::fencing_token).
    pub fn fencing_token(&self) -> u64 {
        self.inner.fencing_token.load(Ordering::Relaxed)
    }

    /// Counters and positions at this moment. Appends count from when this reader met them.
    pub fn stats(&self) -> TopicStats {
        self.inner.stats()
    }

    /// The store it belongs to.
    pub fn store(&self) -> ReadOnlyStore {
        ReadOnlyStore { handle: Arc::clone(&self.handle) }
    }

    fn source(&self) -> Source {
        Source { inner: Arc::clone(&self.inner), owner: Arc::<ReadHandle>::clone(&self.handle) }
    }
}
