//! A topic, as its users hold it.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::compaction::{CompactOptions, CompactionControl, CompactionReport};
use crate::cursor::{
    Backwards, Cursor, Records, RecordsBackwards, Source, Start, StoredRecord, Visibility, get,
};
use crate::error::Result;
use crate::filter::{self, Filter};
use crate::filtered::{FilteredBackwards, FilteredCursor};
use crate::format::record::Record;
use crate::settings::{Durability, TopicSettings};
use crate::stats::TopicStats;
use crate::store::append::{Append, Appended};
use crate::store::ticket::Ticket;
use crate::store::{Handle, Store};
use crate::stream::{
    self, StreamCursor, StreamHead, StreamInfo, StreamPage, StreamRecords, StreamRecordsBackwards,
    StreamStart,
};
use crate::topic::TopicInner;
use crate::types::{Offset, Revision, TopicName, Uid};

/// A topic of an open store. Cheap to clone; it keeps the store open.
#[derive(Clone)]
pub struct Topic {
    pub(crate) inner: Arc<TopicInner>,
    pub(crate) handle: Arc<Handle>,
}

impl fmt::Debug for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topic").field("name", &self.inner.name).finish_non_exhaustive()
    }
}

impl Topic {
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

    /// Appends records, all or none, and returns when they are on the disk.
    ///
    /// # Errors
    /// As [`Store::append`](crate::Store::append).
    pub fn append(&self, records: &[Record]) -> Result<Appended> {
        self.append_with(records, Durability::Synced)
    }

    /// The same with another durability.
    ///
    /// # Errors
    /// As [`Store::append`](crate::Store::append).
    pub fn append_with(&self, records: &[Record], durability: Durability) -> Result<Appended> {
        let append = Append::new().durability(durability).records(self, records)?;
        let mut appended = self.store().append(append)?;
        Ok(appended.swap_remove(0))
    }

    /// Appends without waiting. See [`Store::submit`](crate::Store::submit).
    ///
    /// # Errors
    /// As [`Store::submit`](crate::Store::submit).
    pub fn submit(&self, records: &[Record], durability: Durability) -> Result<Ticket> {
        self.store().submit(Append::new().durability(durability).records(self, records)?)
    }

    /// The records from `start` to the end as it is when it is reached.
    ///
    /// # Errors
    /// [`Error::OffsetTrimmed`](crate::Error::OffsetTrimmed), [`Error::OffsetUnwritten`](crate::Error::OffsetUnwritten).
    pub fn read(&self, start: impl Into<Start>) -> Result<Records> {
        Ok(Records::new(self.cursor(start, Visibility::Synced)?, false))
    }

    /// The records from `start` on, and then each new one; ends when the store is closed.
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

    /// What is known of the stream of a key, the records that have it, without reading them; `None` if no record ever had
    /// it.
    ///
    /// ```
    /// # use quipu_storage::{Record, Revision, Store};
    /// # fn main() -> quipu_storage::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let orders = Store::open(dir.path())?.topic_or_create("orders")?;
    /// orders.append(&[Record::keyed("order-7", "placed"), Record::keyed("order-7", "paid")])?;
    /// assert_eq!(orders.stream("order-7")?.unwrap().last_revision, Revision(1));
    /// assert_eq!(orders.stream("order-8")?, None);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// What keeps the index of a segment from being made, if one is missing; and [`Error::CorruptFile`](crate::Error::CorruptFile)
    /// if a file is damaged that keeps the revisions of records which are gone.
    pub fn stream(&self, key: impl AsRef<[u8]>) -> Result<Option<StreamHead>> {
        self.stream_with(key, Visibility::Synced)
    }

    /// The same as a reader of this visibility sees it.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn stream_with(&self, key: impl AsRef<[u8]>, visibility: Visibility) -> Result<Option<StreamHead>> {
        stream::head(&self.source(), key.as_ref(), visibility)
    }

    /// The streams whose keys begin with `prefix` and come behind `after`, in the order of their keys, at most `limit`.
    /// Those of which no record can be read any more are left out.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn streams(
        &self,
        prefix: impl AsRef<[u8]>,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<StreamInfo>> {
        stream::list(&self.source(), prefix.as_ref(), after, limit, Visibility::Synced)
    }

    /// The same in bounded time: there may be fewer than `limit`, or none, although more follow.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn streams_page(
        &self,
        prefix: impl AsRef<[u8]>,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<StreamPage> {
        stream::page(&self.source(), prefix.as_ref(), after, limit, Visibility::Synced)
    }

    /// The records of a key from `start` to the end as it is when it is reached.
    ///
    /// ```
    /// # use quipu_storage::{Record, Revision, Store, StreamStart};
    /// # fn main() -> quipu_storage::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let orders = Store::open(dir.path())?.topic_or_create("orders")?;
    /// orders.append(&[Record::keyed("order-7", "placed"), Record::keyed("order-8", "placed")])?;
    /// orders.append(&[Record::keyed("order-7", "paid")])?;
    /// for record in orders.read_stream("order-7", StreamStart::Earliest)? {
    ///     let record = record?;
    ///     println!("{:?}: {:?}", record.revision(), record.payload());
    /// }
    /// let paid = orders.read_stream("order-7", Revision(1))?.next().unwrap()?;
    /// assert_eq!(paid.payload(), Some(&b"paid"[..]));
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn read_stream(&self, key: impl AsRef<[u8]>, start: impl Into<StreamStart>) -> Result<StreamRecords> {
        Ok(StreamRecords::new(self.stream_cursor(key, start, Visibility::Synced)?, false))
    }

    /// The records of a key from `start` on, and then each new one; ends when the store is closed.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn follow_stream(
        &self,
        key: impl AsRef<[u8]>,
        start: impl Into<StreamStart>,
    ) -> Result<StreamRecords> {
        Ok(StreamRecords::new(self.stream_cursor(key, start, Visibility::Synced)?, true))
    }

    /// The records of a key from the last one to the first; of those with a revision below `before`, if it is given.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn read_stream_backwards(
        &self,
        key: impl AsRef<[u8]>,
        before: Option<Revision>,
    ) -> Result<StreamRecordsBackwards> {
        StreamRecordsBackwards::new(self.source(), key.as_ref(), before, Visibility::Synced)
    }

    /// The offset below which all records of a key lie that have a revision below `before`, as far as they are known: where
    /// reading them backwards begins.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn stream_end_before(
        &self,
        key: impl AsRef<[u8]>,
        before: Revision,
        visibility: Visibility,
    ) -> Result<Offset> {
        stream::end_before(&self.source(), key.as_ref(), before, visibility)
    }

    /// The offset of the first record behind `after` that a filter matches; without `after`, of the first of all. Found
    /// through the indexes: of keys, types and tags no record is read, and what lies before costs nothing.
    ///
    /// # Errors
    /// [`Error::InvalidFilter`](crate::Error::InvalidFilter); and as [`stream`](Self::stream).
    pub fn first_match(&self, filter: &Filter, after: Option<Offset>) -> Result<Option<Offset>> {
        filter::first_match(&self.source(), filter, after, Visibility::Synced)
    }

    /// A cursor over the records of a key: the way to read a stream for those who want to say when to wait, or to be woken.
    ///
    /// # Errors
    /// As [`stream`](Self::stream).
    pub fn stream_cursor(
        &self,
        key: impl AsRef<[u8]>,
        start: impl Into<StreamStart>,
        visibility: Visibility,
    ) -> Result<StreamCursor> {
        StreamCursor::new(self.source(), key.as_ref(), start.into(), visibility)
    }

    /// A cursor over the batches that may have records which a filter matches: found through the indexes where these tell,
    /// without reading the others. [`Filter::matches`] says which records of a batch do.
    ///
    /// ```
    /// # use quipu_storage::{Filter, Record, Start, Store, Visibility};
    /// # fn main() -> quipu_storage::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let orders = Store::open(dir.path())?.topic_or_create("orders")?;
    /// orders.append(&[Record::new("placed").with_tag("vip"), Record::new("placed")])?;
    /// let filter = Filter::new().tags(["vip"]);
    /// let mut cursor = orders.filtered_cursor(&filter, Start::Earliest, Visibility::Synced)?;
    /// while let Some(batch) = cursor.next_batch()? {
    ///     for record in batch.records() {
    ///         let (offset, record) = record?;
    ///         println!("{offset}: {}", filter.matches(&record));
    ///     }
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::InvalidFilter`](crate::Error::InvalidFilter); and as [`cursor`](Self::cursor).
    pub fn filtered_cursor(
        &self,
        filter: &Filter,
        start: impl Into<Start>,
        visibility: Visibility,
    ) -> Result<FilteredCursor> {
        FilteredCursor::new(self.source(), filter, start.into(), visibility)
    }

    /// The same from the last batch below `before` to the first.
    ///
    /// # Errors
    /// [`Error::InvalidFilter`](crate::Error::InvalidFilter).
    pub fn filtered_backwards(
        &self,
        filter: &Filter,
        before: Offset,
        visibility: Visibility,
    ) -> Result<FilteredBackwards> {
        FilteredBackwards::new(self.source(), filter, before, visibility)
    }

    /// The first offset that can be read.
    pub fn log_start_offset(&self) -> Offset {
        self.inner.log_start()
    }

    /// The first offset not yet visible to readers: everything below survives a power cut.
    pub fn high_watermark(&self) -> Offset {
        self.inner.high_watermark()
    }

    /// The next offset to be assigned.
    pub fn log_end_offset(&self) -> Offset {
        self.inner.log_end()
    }

    /// Removes all records below `offset`; when this returns, that survives a power cut.
    ///
    /// # Errors
    /// [`Error::OffsetUnwritten`](crate::Error::OffsetUnwritten) beyond the high watermark.
    pub fn trim(&self, offset: Offset) -> Result<()> {
        let _working = self.handle.inner.begin_work()?;
        self.handle.inner.trim(&self.inner, offset)
    }

    /// Removes records that are superseded by newer ones of their key, as the topic's settings say, and returns when
    /// that is done. Appends and reads go on meanwhile. Happens by itself as well, if the topic is set to be compacted.
    ///
    /// # Errors
    /// As [`compact_with`](Self::compact_with).
    pub fn compact(&self) -> Result<CompactionReport> {
        self.compact_with(&CompactOptions::default(), &CompactionControl::new())
    }

    /// The same with other options, to be watched and cancelled from another thread.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`](crate::Error::AlreadyRunning); [`Error::Cancelled`](crate::Error::Cancelled) and
    /// [`Error::DiskFull`](crate::Error::DiskFull), after which what was replaced stays and the next run goes on;
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting) if neither the topic nor the options say what stays.
    pub fn compact_with(
        &self,
        options: &CompactOptions,
        control: &CompactionControl,
    ) -> Result<CompactionReport> {
        self.handle.inner.compact(&self.inner, options, control)
    }

    /// Gives the topic other settings.
    ///
    /// # Errors
    /// [`Error::InvalidSetting`](crate::Error::InvalidSetting).
    pub fn alter(&self, settings: &TopicSettings) -> Result<()> {
        let _working = self.handle.inner.begin_work()?;
        self.handle.inner.alter(&self.inner, settings)
    }

    /// The lowest fencing token with which appends are applied; see [`Append::fencing_token`](crate::Append::fencing_token).
    pub fn fencing_token(&self) -> u64 {
        self.inner.fencing_token.load(Ordering::Relaxed)
    }

    /// Raises the fencing token; when this returns, that survives a power cut, and every append with a lower one is
    /// refused. So a writer that takes over shuts out the one before it, before it reads what that one left.
    ///
    /// # Errors
    /// [`Error::TopicFenced`](crate::Error::TopicFenced) if the topic has a higher one.
    pub fn fence(&self, token: u64) -> Result<()> {
        let _working = self.handle.inner.begin_work()?;
        self.handle.inner.fence(&self.inner, token)
    }

    /// Counters and positions at this moment.
    pub fn stats(&self) -> TopicStats {
        self.inner.stats()
    }

    /// The store it belongs to.
    pub fn store(&self) -> Store {
        Store { handle: Arc::clone(&self.handle) }
    }

    pub(crate) fn source(&self) -> Source {
        Source { inner: Arc::clone(&self.inner), owner: Arc::<Handle>::clone(&self.handle) }
    }
}
