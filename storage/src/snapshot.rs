//! Snapshots: what the events of a stream come to up to a revision, so that whoever needs it reads the few events behind
//! the snapshot instead of all.
//!
//! The snapshots of topic `T` are records of a topic beside it, `T.snapshots`, made with the first one. Its key
//! compaction prunes old ones. A snapshot has the key of its stream, and two headers more than its caller gave it:
//!
//! | Header | Value |
//! |---|---|
//! | `quipu-snapshot-revision` | the last revision that it covers, as a decimal number |
//! | `quipu-snapshot-topic` | the uid of `T`, in hexadecimal: a topic that was deleted and made again has another one |
//!
//! What holds:
//!
//! 1. In the order of their offsets the snapshots of a key never go back in revision: each is appended under the condition
//!    that no other came since the last one was looked at. So the newest is the latest, and is never pruned before an older
//!    one.
//! 2. Nobody is given a snapshot that covers events which he does not see yet.
//! 3. A snapshot adds nothing to the truth: what it was made from stays as it is, and records without those headers are no
//!    snapshots, whoever put them there.

use crate::Topic;
use crate::condition::{Condition, ExpectedRevision};
use crate::cursor::{Source, StoredRecord, Visibility};
use crate::error::{Error, Result};
use crate::format::record::{Record, RecordView};
use crate::settings::{Compaction, Durability, Storage, TopicSettings};
use crate::store::append::Append;
use crate::stream::{self, StreamRecordsBackwards};
use crate::types::{Offset, Revision, TopicName, Uid};

/// What the name of the topic with the snapshots has behind that of the topic.
const SUFFIX: &str = ".snapshots";
/// The headers of a snapshot.
const REVISION: &str = "quipu-snapshot-revision";
const TOPIC: &str = "quipu-snapshot-topic";
/// Snapshots of a key that stay, of those in sealed segments.
const KEPT_PER_KEY: u32 = 3;
/// Pruning begins when the first segment is full.
const SEGMENT_BYTES_MAX: u64 = 16 << 20;
/// How often a snapshot is tried that others come in between of. Each time one of theirs has been put.
const TRIES_MAX: usize = 100;
/// Records that are none of a topic's snapshots, or damaged, that one search passes over.
const OTHERS_MAX: usize = 1000;

/// A snapshot of a stream.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The last revision that it covers. What comes behind it begins with the next one.
    pub revision: Revision,
    /// The record that was put, with two headers more.
    pub record: StoredRecord,
}

/// What became of a snapshot that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotPut {
    /// It is there, at this offset of the topic of snapshots.
    Stored(Offset),
    /// There is one of this later revision: nothing was stored.
    Superseded(Revision),
}

impl Topic {
    /// Puts a snapshot of a stream: what its records up to `revision` come to. It has the stream's key, and a payload;
    /// type, content type, tags and headers are as the caller likes. One of the same revision is replaced.
    ///
    /// ```
    /// # use quipu_storage::{Durability, Record, Revision, Store};
    /// # fn main() -> quipu_storage::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let accounts = Store::open(dir.path())?.topic_or_create("accounts")?;
    /// accounts.append(&[Record::keyed("anna", "+5"), Record::keyed("anna", "-2")])?;
    /// accounts.put_snapshot(Revision(1), &Record::keyed("anna", "3"), Durability::Synced)?;
    /// let snapshot = accounts.snapshot("anna", None)?.unwrap();
    /// assert_eq!((snapshot.revision, snapshot.record.payload()), (Revision(1), Some(&b"3"[..])));
    /// for event in accounts.read_stream("anna", quipu_storage::StreamStart::AfterRevision(snapshot.revision))? {
    ///     println!("{:?}", event?.payload());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::RevisionUnwritten`] if the stream has no such revision; [`Error::SnapshotsRefused`] if this topic has no
    /// snapshots; [`Error::InvalidAppend`] without a key or a payload; and those of an append.
    pub fn put_snapshot(
        &self,
        revision: Revision,
        snapshot: &Record,
        durability: Durability,
    ) -> Result<SnapshotPut> {
        let Some(key) = snapshot.key.as_deref() else {
            return Err(Error::InvalidAppend { rule: "a snapshot has the key of its stream" });
        };
        if snapshot.payload.is_none() {
            return Err(Error::InvalidAppend { rule: "a snapshot has a payload" });
        }
        let head = self.stream_with(key, Visibility::Written)?;
        let next_revision = head.map_or(Revision::ZERO, |head| head.last_revision.saturating_add(1));
        if revision >= next_revision {
            return Err(Error::RevisionUnwritten { topic: self.name().clone(), revision, next_revision });
        }
        let record = marked(snapshot, revision, self.uid());
        let snapshots = self.snapshots_or_create(&record)?;
        let mut tries = 1;
        loop {
            // In this order: what comes in between fails the condition.
            let last = snapshots.stream_with(key, Visibility::Written)?.map(|head| head.last_revision);
            // Damaged ones are passed over here: this one makes up for them.
            let latest = latest_revision(&snapshots.source(), key, self.uid())?;
            if let Some(latest) = latest.filter(|latest| *latest > revision) {
                return Ok(SnapshotPut::Superseded(latest));
            }
            let expected = last.map_or(ExpectedRevision::NoStream, ExpectedRevision::Exact);
            let append = Append::new()
                .durability(durability)
                .records(&snapshots, [&record])?
                .require(&snapshots, Condition::Revision { key: key.to_vec(), expected });
            match self.store().append(append) {
                Err(Error::ConditionFailed { .. }) if tries < TRIES_MAX => tries += 1,
                outcome => return Ok(SnapshotPut::Stored(outcome?[0].first_offset)),
            }
        }
    }

    /// The latest snapshot of a stream that covers nothing behind `up_to`, if there is one; without `up_to`, the latest.
    ///
    /// The latest costs one look. One that later ones lie behind is searched for by halving: it costs the logarithm of how
    /// many the key has. Up to 1,000 records that others appended under the key are passed over; what lies behind more of
    /// them may not be found.
    ///
    /// # Errors
    /// [`Error::Corrupt`] if the snapshot is damaged: the events are still there, and the next snapshot makes up for it. As
    /// [`stream`](Self::stream) otherwise.
    pub fn snapshot(&self, key: impl AsRef<[u8]>, up_to: Option<Revision>) -> Result<Option<Snapshot>> {
        let open = |name: &str| self.store().topic(name).map(|snapshots| snapshots.source());
        latest(&self.source(), key.as_ref(), up_to, open)
    }

    /// The topic with this one's snapshots; `first` is to be the first of them, if it is to be made.
    fn snapshots_or_create(&self, first: &Record) -> Result<Topic> {
        let refuse = |rule| Err(Error::SnapshotsRefused { topic: self.name().clone(), rule });
        if self.name().as_str().ends_with(SUFFIX) {
            return refuse("a topic whose name ends with .snapshots has none of its own");
        }
        if matches!(self.settings().storage, Storage::Memory { .. }) {
            return refuse("a topic in memory has none: its revisions begin anew when it is emptied");
        }
        let Ok(name) = snapshots_name(self.name()) else {
            return refuse("its name has more than 245 bytes, which leaves no room for .snapshots behind it");
        };
        let store = self.store();
        loop {
            match store.topic(name.as_str()) {
                // It may be somebody's events.
                Ok(found) if found.settings().compaction.is_none() => {
                    return refuse(
                        "the topic with its name and .snapshots is another's: it has no key compaction; give it one, or \
                         use another name",
                    );
                }
                Err(Error::TopicNotFound { .. }) => {}
                outcome => return outcome,
            }
            // What is refused is to change nothing, so it makes no topic either. What is wrong with a record is wrong with
            // it in either topic.
            self.store().check(Append::new().records(self, [first])?)?;
            let compaction = Compaction { records_per_key: KEPT_PER_KEY, ..Compaction::default() };
            let settings = TopicSettings {
                segment_bytes_max: SEGMENT_BYTES_MAX,
                compaction: Some(compaction),
                ..TopicSettings::default()
            };
            match store.create_topic(name.as_str(), settings) {
                // Somebody else was faster.
                Err(Error::TopicExists { .. }) => {}
                outcome => return outcome,
            }
        }
    }
}

/// The latest snapshot of a stream of a topic that covers nothing behind `up_to`; `open` opens the topic of snapshots.
pub(crate) fn latest(
    topic: &Source,
    key: &[u8],
    up_to: Option<Revision>,
    open: impl FnOnce(&str) -> Result<Source>,
) -> Result<Option<Snapshot>> {
    let Some(head) = stream::head(topic, key, Visibility::Synced)? else { return Ok(None) };
    let up_to = up_to.map_or(head.last_revision, |up_to| up_to.min(head.last_revision));
    let Ok(name) = snapshots_name(&topic.inner.name) else { return Ok(None) };
    match open(name.as_str()) {
        Ok(snapshots) => latest_up_to(&snapshots, key, topic.inner.uid, up_to),
        Err(Error::TopicNotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn snapshots_name(topic: &TopicName) -> Result<TopicName> {
    TopicName::new(&format!("{topic}{SUFFIX}"))
}

/// The record as it is stored.
fn marked(snapshot: &Record, revision: Revision, topic: Uid) -> Record {
    let mut record = snapshot.clone();
    record.headers.retain(|(name, _)| name != REVISION && name != TOPIC);
    record.with_header(REVISION, revision.to_string()).with_header(TOPIC, topic.to_string())
}

/// The revision that a record is a snapshot of, if it is one of this topic.
fn revision_of(record: &RecordView<'_>, topic: Uid) -> Option<Revision> {
    let header = |wanted| {
        record.headers().find(|(name, _)| *name == wanted).map(|(_, value)| String::from_utf8_lossy(value))
    };
    header(TOPIC).filter(|uid| **uid == topic.to_string())?;
    header(REVISION)?.parse().ok().map(Revision)
}

/// The revision of the latest snapshot of a key. Damaged ones are passed over: the next one makes up for them.
fn latest_revision(snapshots: &Source, key: &[u8], topic: Uid) -> Result<Option<Revision>> {
    for record in StreamRecordsBackwards::new(snapshots.clone(), key, None, Visibility::Written)? {
        let record = match record {
            Err(Error::Corrupt { .. }) => continue,
            record => record?,
        };
        if let Some(revision) = revision_of(&record.view(), topic) {
            return Ok(Some(revision));
        }
    }
    Ok(None)
}

/// The latest snapshot of a key that covers nothing behind `up_to`. The newest is looked at first, for mostly it is the one.
/// If it covers too much, the others are halved again and again, because they never go back in revision (1).
fn latest_up_to(snapshots: &Source, key: &[u8], topic: Uid, up_to: Revision) -> Result<Option<Snapshot>> {
    let mut search = Search { snapshots, key, topic, others: OTHERS_MAX };
    // Places are revisions of the stream of snapshots. What lies below `begin` is covered by the best; what lies at `end` and
    // behind covers too much.
    let (mut begin, mut end, mut place) = (Revision::ZERO, Revision::MAX, Revision::MAX);
    // Where the best would be, something is damaged that may be better.
    let (mut best, mut damaged) = (None, None);
    while begin < end {
        let Below { found, damaged: met } = search.below(place.saturating_add(1), begin)?;
        match found {
            Some((_, snapshot)) if snapshot.revision <= up_to => {
                (best, damaged, begin) = (Some(snapshot), met, place.saturating_add(1));
            }
            Some((at, _)) => end = at.min(place),
            None => (damaged, begin) = (damaged.or(met), place.saturating_add(1)),
        }
        place = Revision(begin.value() + end.value().saturating_sub(begin.value()) / 2);
    }
    damaged.map_or(Ok(best), Err)
}

/// A search for a snapshot of a topic.
struct Search<'a> {
    snapshots: &'a Source,
    key: &'a [u8],
    topic: Uid,
    /// Records that it may still pass over.
    others: usize,
}

/// What lies below a place.
struct Below {
    /// The next snapshot, with its place.
    found: Option<(Revision, Snapshot)>,
    /// What is damaged above it.
    damaged: Option<Error>,
}

impl Search<'_> {
    /// The last snapshot in `from..before`.
    fn below(&mut self, before: Revision, from: Revision) -> Result<Below> {
        let mut damaged = None;
        let before = Some(before).filter(|before| *before < Revision::MAX);
        let records =
            StreamRecordsBackwards::new(self.snapshots.clone(), self.key, before, Visibility::Synced)?;
        for record in records {
            match record {
                Ok(record) => {
                    let place = record.revision().unwrap_or_default();
                    if place < from {
                        break;
                    }
                    if let Some(revision) = revision_of(&record.view(), self.topic) {
                        let found = Some((place, Snapshot { revision, record }));
                        return Ok(Below { found, damaged });
                    }
                }
                Err(error @ Error::Corrupt { .. }) => drop(damaged.get_or_insert(error)),
                Err(error) => return Err(error),
            }
            if self.others == 0 {
                break;
            }
            self.others -= 1;
        }
        Ok(Below { found: None, damaged })
    }
}
