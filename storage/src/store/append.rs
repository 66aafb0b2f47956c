//! The way of an append.
//!
//! 1. Encode and sum the records ([`Append`]), seal payloads, and look up the revisions of their keys and what conditions
//!    ask for ([`Prepared`]), in the caller's thread and outside of every lock.
//! 2. Take the writer lock; see whether it is a repeat, which is answered as the first time ([`super::repeat`]); whether
//!    the revisions still hold, the conditions and the fencing tokens; wait for room if there is none.
//! 3. Give offsets and times, finish the batches.
//! 4. Write one frame with all of them into the journal. If that fails nothing was applied.
//! 5. Put the batches into their topics' tails.
//! 6. Release the lock; wait for the sync if the caller wants it ([`Ticket`]).

use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::frame_bound::room_for;
use super::prepared::{Patience, Prepared, PreparedPart, Verdict, check_all, check_token, failure};
use super::repeat::{Repeat, Request};
use super::ticket::{Postponed, Submission, Ticket};
use super::{Store, StoreInner};
use crate::condition::{Check, Condition, FailedCondition};
use crate::erasure::seal;
use crate::error::{Error, ErrorKind, Result};
use crate::format::answer::Producer;
use crate::format::batch::{self, BatchBuilder};
use crate::format::frame::{BatchEntry, Change};
use crate::format::record::{Record, RecordView, Records, encoded_field_bytes, put_record};
use crate::journal::{Reach, Slot};
use crate::settings::Durability;
use crate::terms::batch_terms::{BatchTerms, Room};
use crate::topic::TopicInner;
use crate::types::{Offset, Position, Revision, Timestamp};
use crate::{Topic, format};

/// Offsets of a topic in memory that are set aside at once.
const RESERVED_AT_ONCE: u64 = 1 << 24;
/// Signals the flusher whenever this much more waits in the tails.
const FLUSH_SIGNAL_BYTES: u64 = 1 << 20;
/// No frame with one change that is not a batch is larger.
const CHANGE_BYTES_MAX: usize = 4096;

const NO_RECORDS: &str = "each topic of it needs at least one record";

/// Records for one topic or more, to be appended as one: all or nothing.
#[derive(Debug, Default)]
pub struct Append {
    pub(super) durability: Durability,
    pub(super) parts: Vec<Part>,
    conditions: Vec<(Topic, Condition)>,
    pub(super) producer: Option<Producer>,
    pub(super) request_id: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(super) struct Part {
    pub(super) topic: Topic,
    /// Room for a batch header, and behind it the encoded records.
    pub(super) body: Vec<u8>,
    record_count: u64,
    terms: BatchTerms,
    fencing_token: Option<u64>,
    /// Whether a record names an erasure key.
    has_erasure_keys: bool,
}

impl Part {
    pub(super) fn has_erasure_keys(&self) -> bool {
        self.has_erasure_keys
    }
}

/// Where the records of an append are now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Appended {
    /// Offset of the first record.
    pub first_offset: Offset,
    /// One past the offset of the last record.
    pub next_offset: Offset,
    /// The time they were given.
    pub append_time: Timestamp,
    /// What they survive: at least what was asked for, except in a topic in memory.
    pub durability: Durability,
    /// The revisions of those that have a key, in order. None in a bare log; and none in a repeat of an append with so many that
    /// only its batch has them (256 bytes of them are kept, runs of one key as one), when that was trimmed, compacted or deleted
    /// since.
    pub revisions: Vec<Revision>,
}

impl Append {
    /// An empty one, acknowledged when it is synced.
    pub fn new() -> Self {
        Self::default()
    }

    /// Acknowledged as said.
    #[must_use]
    pub fn durability(mut self, durability: Durability) -> Self {
        self.durability = durability;
        self
    }

    /// Adds records for a topic, behind those that were added for it before.
    ///
    /// # Errors
    /// [`Error::RecordTooLarge`], which names the record.
    pub fn records<'a, I>(mut self, topic: &Topic, records: I) -> Result<Self>
    where
        I: IntoIterator<Item = &'a Record, IntoIter: Clone>,
    {
        let part = self.part(topic);
        let records = records.into_iter();
        // At once: a body that grows step by step is copied again and again.
        let (mut encoded, mut room) = (0, Room::default());
        for record in records.clone() {
            encoded += encoded_field_bytes(record);
            room.add(record);
        }
        part.terms.reserve(room);
        let with_key = room.keys();
        // Room for their revisions as well, if these are not long.
        part.body.reserve_exact(encoded + if with_key == 0 { 0 } else { 3 * with_key + 8 });
        for record in records {
            let index = usize::try_from(part.record_count).unwrap_or(usize::MAX);
            record.check().map_err(|(what, actual, limit)| Error::RecordTooLarge {
                index,
                what,
                actual,
                limit,
            })?;
            if let Some(erasure_key) = &record.erasure_key {
                seal::check_name(erasure_key)?;
                part.has_erasure_keys = true;
            }
            put_record(&mut part.body, record);
            if record.has_terms() {
                let tags = record.tags.iter().map(String::as_str);
                let key = record.key.as_deref();
                part.terms.add(part.record_count, key, &record.record_type, tags);
            }
            part.record_count += 1;
        }
        Ok(self)
    }

    /// Adds records that are encoded already: protobuf `repeated Record records = 1`.
    ///
    /// # Errors
    /// [`Error::InvalidEncoding`] or [`Error::RecordTooLarge`].
    pub fn encoded(mut self, topic: &Topic, body: &[u8]) -> Result<Self> {
        let part = self.part(topic);
        // Those of a body that is refused count for nothing.
        let mut terms = std::mem::take(&mut part.terms);
        let mut has_erasure_keys = false;
        let mut records = Records::new(body);
        let mut count = 0;
        while let Some(record) = records.next() {
            let at = |invalid: format::Invalid| Error::InvalidEncoding {
                detail: invalid.detail,
                position: records.position().max(invalid.position),
            };
            let view = record.and_then(RecordView::decode).map_err(at)?;
            let index = usize::try_from(part.record_count + count).unwrap_or(usize::MAX);
            view.check().map_err(|(what, actual, limit)| Error::RecordTooLarge {
                index,
                what,
                actual,
                limit,
            })?;
            if let Some(erasure_key) = view.erasure_key {
                seal::check_name(erasure_key)?;
                has_erasure_keys = true;
            }
            if view.sealed.is_some() || view.redacted.is_some() {
                return Err(Error::InvalidAppend { rule: "no record has `sealed` or `redacted` in it" });
            }
            terms.add(part.record_count + count, view.key, view.record_type, view.tags());
            count += 1;
        }
        part.body.extend_from_slice(body);
        part.record_count += count;
        part.terms = terms;
        part.has_erasure_keys |= has_erasure_keys;
        Ok(self)
    }

    /// Applies the append only if this holds of a topic right before it. Any number may be required, of any topics of the
    /// store; all are checked in the order in which appends happen, and if any does not hold, nothing is appended.
    ///
    /// ```
    /// # use quipu_storage::{Append, Condition, Error, ExpectedRevision, Record, Revision, Store};
    /// # fn main() -> quipu_storage::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = Store::open(dir.path())?;
    /// # let orders = store.topic_or_create("orders")?;
    /// let place = || {
    ///     let is_new = Condition::Revision { key: b"order-7".into(), expected: ExpectedRevision::NoStream };
    ///     store.append(Append::new().records(&orders, &[Record::keyed("order-7", "placed")])?.require(&orders, is_new))
    /// };
    /// assert_eq!(place()?[0].revisions, [Revision(0)]);
    /// assert!(matches!(place(), Err(Error::ConditionFailed { .. })));
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn require(mut self, topic: &Topic, condition: Condition) -> Self {
        self.conditions.push((topic.clone(), condition));
        self
    }

    /// Makes it the append of this sequence of a named producer, so that it is applied once however often it is repeated:
    /// a repeat gets the first answer, and [`Ticket::is_duplicate`] says so. Neither a restart nor retention, compaction or
    /// the deletion of a topic makes the store forget that, only [`Store::forget_producer`].
    ///
    /// The first append of an epoch has sequence 0, each next one is one more; one that was refused has used none up. A
    /// higher epoch shuts out whoever still uses a lower one. The answers of the last 64 appends are kept: a repeat of an
    /// older one is answered with an empty list.
    ///
    /// A producer whose name begins with [`TEMPORARY_PREFIX`](crate::TEMPORARY_PREFIX) is for those who make a name up for
    /// one run: when the store has as many producers as it may, the temporary one that has not appended for the longest is
    /// forgotten.
    ///
    /// A repeat has the same topics in the same order, with the same bytes of records; its conditions and fencing tokens
    /// are not looked at again. What it asks to be as durable as, it is.
    ///
    /// ```
    /// # use quipu_storage::{Append, Producer, Record, Store};
    /// # fn main() -> quipu_storage::Result<()> {
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let store = Store::open(dir.path())?;
    /// # let orders = store.topic_or_create("orders")?;
    /// let producer = |sequence| Producer { name: "importer".into(), epoch: 1, sequence };
    /// let append = |sequence| {
    ///     store.append(Append::new().records(&orders, &[Record::new("placed")])?.producer(producer(sequence)))
    /// };
    /// let first = append(0)?;
    /// assert_eq!(append(0)?, first);
    /// assert_ne!(append(1)?, first);
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn producer(mut self, producer: Producer) -> Self {
        self.producer = Some(producer);
        self
    }

    /// Gives it an id of 1 to 64 bytes that its caller made up, so that a repeat of it with this id is applied once. The
    /// store knows the last 16,384 ids, over all topics. Otherwise as with a [`producer`](Self::producer); an append has the
    /// one or the other.
    #[must_use]
    pub fn request_id(mut self, id: impl Into<Vec<u8>>) -> Self {
        self.request_id = Some(id.into());
        self
    }

    /// Applies the append only if the topic has no higher fencing token than this; a lower one of the topic is raised to
    /// it, in the order of appends. So whoever takes a topic over appends with a higher token, and shuts out who had it
    /// before.
    ///
    /// An append without a token is not checked: all who share a topic in this way must name theirs. The append needs
    /// records for the topic.
    #[must_use]
    pub fn fencing_token(mut self, topic: &Topic, token: u64) -> Self {
        self.part(topic).fencing_token = Some(token);
        self
    }

    fn part(&mut self, topic: &Topic) -> &mut Part {
        let found = self.parts.iter().position(|part| Arc::ptr_eq(&part.topic.inner, &topic.inner));
        let number = found.unwrap_or_else(|| {
            self.parts.push(Part {
                topic: topic.clone(),
                body: vec![0; batch::HEADER_BYTES],
                record_count: 0,
                terms: BatchTerms::default(),
                fencing_token: None,
                has_erasure_keys: false,
            });
            self.parts.len() - 1
        });
        &mut self.parts[number]
    }

    /// Checks the bounds and whose topics they are.
    fn check(&self, store: &StoreInner) -> Result<()> {
        let settings = &store.context.settings;
        let records: u64 = self.parts.iter().map(|part| part.record_count).sum();
        let bytes: u64 = self.parts.iter().map(|part| (part.body.len() - batch::HEADER_BYTES) as u64).sum();
        let too_large = |what, actual, limit| Err(Error::AppendTooLarge { what, actual, limit });
        if self.parts.iter().any(|part| part.record_count == 0) {
            return Err(Error::InvalidAppend { rule: NO_RECORDS });
        }
        if records > settings.append_records_max {
            return too_large("records", records, settings.append_records_max);
        }
        if bytes > settings.append_bytes_max {
            return too_large("bytes", bytes, settings.append_bytes_max);
        }
        // What the frame adds for each topic; that all of it fits into a journal file is seen when its revisions are known.
        let topics_max = (settings.journal_file_bytes - settings.append_bytes_max) / 256;
        if self.parts.len() as u64 > topics_max {
            return too_large("topics", self.parts.len() as u64, topics_max);
        }
        let of_conditions = self.conditions.iter().map(|(topic, _)| topic);
        let mut topics = self.parts.iter().map(|part| &part.topic).chain(of_conditions);
        if !topics.all(|topic| Arc::ptr_eq(&topic.handle.inner.context, &store.context)) {
            return Err(Error::InvalidAppend { rule: "all its topics must be of this store" });
        }
        Ok(())
    }

    /// Checks the bounds, seals payloads, and checks the bounds of what that has made.
    fn check_and_seal(&mut self, store: &StoreInner) -> Result<()> {
        self.check(store)?;
        if !self.parts.iter().any(|part| part.has_erasure_keys) {
            return Ok(());
        }
        let master_key = store.context.master_key().ok_or(Error::MasterKeyMissing)?;
        for part in self.parts.iter_mut().filter(|part| part.has_erasure_keys) {
            let sealed =
                seal::seal_body(master_key, part.topic.inner.uid, &part.body[batch::HEADER_BYTES..])?;
            part.body.truncate(batch::HEADER_BYTES);
            part.body.extend_from_slice(&sealed);
        }
        self.check(store)
    }

    /// Checks the bounds and makes the batches. Nothing is looked up yet.
    pub(super) fn prepare(mut self, store: &StoreInner) -> Result<Prepared> {
        if self.parts.is_empty() {
            return Err(Error::InvalidAppend { rule: NO_RECORDS });
        }
        self.check_and_seal(store)?;
        let checks = Check::all(self.conditions)?;
        let parts = self.parts.into_iter().map(|part| {
            let codec = part.topic.inner.settings.load().codec;
            let count = u32::try_from(part.record_count).expect("checked against the limit");
            let mut batch = BatchBuilder::from_body(part.body, count, codec);
            if part.has_erasure_keys {
                batch.note_sealed();
            }
            PreparedPart::new(part.topic.inner, batch, part.record_count, part.terms, part.fencing_token)
        });
        Ok(Prepared { parts: parts.collect(), checks, durability: self.durability, request: None })
    }
}

/// An append that is in the tails, or was before, or is refused for what the store holds.
pub(super) struct Written {
    pub(super) position: Position,
    pub(super) awaits_sync: bool,
    pub(super) outcome: Outcome,
}

impl Written {
    /// Whatever refuses it may rest on what a crash still takes away. Whoever was told has seen it, so it is told when all of
    /// it is synced.
    pub(super) fn refused(writer: &super::Writer, error: Error) -> Self {
        let position = writer.journal.position();
        Self { position, awaits_sync: true, outcome: Outcome::Refused(error) }
    }
}

/// What came of an append.
pub(super) enum Outcome {
    Appended(Vec<Appended>),
    /// It was there already.
    Repeat(Repeat),
    /// Conditions of it do not hold, or its producer, request id or fencing token keeps it out.
    Refused(Error),
}

impl Store {
    /// Appends and blocks until it is as durable as was asked for; one answer for each topic, in order of first mention.
    ///
    /// # Errors
    /// Everything but [`Error::StorageFailed`] means that nothing was appended.
    pub fn append(&self, append: Append) -> Result<Vec<Appended>> {
        self.begin(append)?.wait()
    }

    /// Appends, and waits for room if there is none, but not for the sync. Appends of one thread keep their order.
    ///
    /// # Errors
    /// As [`append`](Self::append). That conditions do not hold, and what its producer, request id or fencing token keeps it
    /// out for, is told by the [`Ticket`].
    pub fn begin(&self, append: Append) -> Result<Ticket> {
        match self.prepare(append)? {
            Submission::Submitted(ticket) => Ok(ticket),
            Submission::Postponed(postponed) => postponed.start(Patience::Room),
        }
    }

    /// Appends without waiting, neither for room nor for the sync. The first append to a topic looks at its files, and one
    /// with keys or conditions may look into indexes. Appends of one thread keep their order.
    ///
    /// # Errors
    /// As [`begin`](Self::begin); [`Error::Overloaded`] if there is no room right now.
    pub fn submit(&self, append: Append) -> Result<Ticket> {
        match self.prepare(append)? {
            Submission::Submitted(ticket) => Ok(ticket),
            Submission::Postponed(postponed) => postponed.start(Patience::Disk),
        }
    }

    /// Appends if that takes no more than a write into the journal: if there is room, and what must be known of keys and
    /// conditions is in memory. For threads that must not block.
    ///
    /// # Errors
    /// As [`begin`](Self::begin).
    pub fn try_submit(&self, append: Append) -> Result<Submission> {
        match self.prepare(append)? {
            Submission::Submitted(ticket) => Ok(Submission::Submitted(ticket)),
            Submission::Postponed(postponed) => postponed.try_submit(),
        }
    }

    /// Makes the batches; or answers at once, if it is a repeat or must not be applied.
    fn prepare(&self, append: Append) -> Result<Submission> {
        let begun = (append.durability == Durability::Synced).then(Instant::now);
        let inner = &self.handle.inner;
        let prepared =
            self.prepare_once(append).inspect_err(|_| inner.context.counters.appends_refused.add(1))?;
        let handle = Arc::clone(&self.handle);
        Ok(match prepared {
            Ok(prepared) => Submission::Postponed(Postponed { handle, prepared, begun }),
            Err(known) => {
                if matches!(known.outcome, Outcome::Refused(_)) {
                    inner.context.counters.appends_refused.add(1);
                }
                Submission::Submitted(Ticket::new(handle, known, begun))
            }
        })
    }

    /// Whether the append would be applied now, by its bounds, topics, fencing tokens and conditions; appends nothing. It
    /// may be one without records, to ask about conditions only. A repeat would be answered whatever else is wrong with it.
    /// The answer rests on nothing that is not synced.
    ///
    /// # Errors
    /// As [`append`](Self::append), but for those that only writing meets.
    pub fn check(&self, mut append: Append) -> Result<()> {
        let inner = &self.handle.inner;
        if let Some(identity) = append.identity()? {
            let request = Request::new(&append, identity, inner)?;
            let (is_repeat, seen) = {
                let writer = inner.writer();
                inner.context.check_writable()?;
                (inner.is_repeat(&writer, &request), writer.journal.position())
            };
            if !matches!(is_repeat, Ok(false)) {
                inner.wait_synced(seen)?;
                return is_repeat.map(drop);
            }
        }
        append.check_and_seal(inner)?;
        let of_part = |part: &Part| (Arc::clone(&part.topic.inner), part.fencing_token);
        let topics: Vec<_> = append.parts.iter().map(of_part).collect();
        for (topic, _) in topics.iter().filter(|(topic, _)| !topic.is_in_memory()) {
            topic.check_files()?;
        }
        let mut checks = Check::all(append.conditions)?;
        let (verdict, seen) = loop {
            let writer = inner.writer();
            inner.context.check_writable()?;
            let outcome = topics.iter().try_for_each(|(topic, token)| {
                topic.check_alive()?;
                check_token(topic, *token)
            });
            if outcome.is_err() {
                break (outcome, writer.journal.position());
            }
            match check_all(&checks)? {
                Verdict::Hold => break (Ok(()), writer.journal.position()),
                Verdict::Outdated(number) => {
                    drop(writer);
                    checks[number].look_up()?;
                }
                Verdict::Failed(failed) => {
                    drop(writer);
                    let failure = failure(&checks, failed)?;
                    break (Err(failure), inner.writer().journal.position());
                }
            }
        };
        inner.wait_synced(seen)?;
        verdict
    }
}

impl StoreInner {
    /// Steps 1, as far as something is to be looked up, to 5. `None`: that would take more patience; nothing was appended.
    pub(super) fn write(&self, prepared: &mut Prepared, patience: Patience) -> Result<Option<Written>> {
        let outcome = self.look_up_and_write(prepared, patience);
        match (outcome, &prepared.request) {
            (Err(error), Some(request)) => self.repeat_or(request, prepared.durability, error).map(Some),
            (outcome, _) => outcome,
        }
    }

    /// The same, where an error is what is wrong with the append now.
    fn look_up_and_write(&self, prepared: &mut Prepared, patience: Patience) -> Result<Option<Written>> {
        let context = &*self.context;
        let asked = prepared.durability;
        if !prepared.look_up(patience)? {
            return Ok(None);
        }
        let Prepared { parts, checks, request, .. } = prepared;
        if crate::planted::checks_conditions_early() {
            if let Verdict::Failed(failed) = check_all(checks)? {
                return self.refused(checks, failed).map(Some);
            }
            checks.clear();
        }
        let mut guard = loop {
            let mut writer = self.writer();
            context.check_writable()?;
            if let Some(request) = &*request
                && let Some(written) = self.repeat(&mut writer, request, asked)?
            {
                return Ok(Some(written));
            }
            for part in &*parts {
                part.topic.check_alive()?;
                if let Err(error) = check_token(&part.topic, part.fencing_token) {
                    return Ok(Some(Written::refused(&writer, error)));
                }
            }
            if let Some(part) = parts.iter().find(|part| part.topic.is_out_of_memory()) {
                let reserved_at = Position(part.topic.reserved_at.load(Ordering::Relaxed));
                drop(writer);
                match patience {
                    Patience::None => return Ok(None),
                    Patience::Disk => {
                        self.wake.sync.signal();
                        let limit = part.topic.memory_bytes_max.unwrap_or(0);
                        return Err(Error::Overloaded { what: "the memory of the topic", limit });
                    }
                    Patience::Room => self.wait_synced(reserved_at)?,
                }
                continue;
            }
            if let Some(part) = parts.iter_mut().find_map(|part| part.renew().is_err().then_some(part)) {
                drop(writer);
                if patience == Patience::None {
                    return Ok(None);
                }
                part.number()?;
                continue;
            }
            match check_all(checks)? {
                Verdict::Hold => {}
                Verdict::Outdated(_) | Verdict::Failed(_) if patience == Patience::None => return Ok(None),
                Verdict::Outdated(number) => {
                    drop(writer);
                    checks[number].look_up()?;
                    continue;
                }
                Verdict::Failed(failed) => {
                    drop(writer);
                    return self.refused(checks, failed).map(Some);
                }
            }
            let bytes_most = room_for(parts, request.is_some(), &context.settings)?;
            let tail_is_full = context.counters.tail_bytes.value() > context.settings.tail_bytes_max
                && parts.iter().any(|part| !part.topic.is_in_memory());
            if writer.journal.has_room(bytes_most) && !tail_is_full {
                break writer;
            }
            drop(writer);
            if patience == Patience::None {
                return Ok(None);
            }
            let (what, limit) = if tail_is_full {
                ("the memory for recent records", context.settings.tail_bytes_max)
            } else {
                ("the journal", context.settings.journal_bytes_max)
            };
            let _working = self.begin_work()?;
            let may_wait = patience == Patience::Room;
            self.make_room(bytes_most, tail_is_full, may_wait, Error::Overloaded { what, limit })?;
        };
        let writer = &mut *guard;
        let now = context.clock.now();
        writer.frame.begin();
        let mut appended = Vec::with_capacity(parts.len());
        let mut is_journaled = false;
        for part in &mut *parts {
            let topic = &*part.topic;
            let head = topic.head();
            let settings = topic.settings.load();
            let append_time = now.max(head.last_time);
            let next_offset = head.next_offset + part.record_count;
            part.batch.seal(topic.seed, head.next_offset, append_time);
            let in_memory = topic.is_in_memory();
            part.rolls = !in_memory
                && (head.rolls(&settings, part.batch.len(), append_time) || topic.terms.recent.is_full());
            if in_memory && next_offset.0 > topic.reserved.load(Ordering::Relaxed) {
                // Whatever happens, a later run goes on behind the offsets that are given now: see `settle_reserved`.
                let free = next_offset.saturating_add(RESERVED_AT_ONCE);
                writer.frame.put(&Change::OffsetsReserved { topic: topic.id, next_offset: free });
                part.reserves = Some(free);
                is_journaled = true;
            }
            if !in_memory {
                writer.frame.put_batch(&BatchEntry {
                    topic: topic.id,
                    bytes: part.batch.as_bytes(),
                    rolls: part.rolls,
                });
                is_journaled = true;
            }
            if let Some(token) = part.raises_token() {
                writer.frame.put(&Change::Fenced { topic: topic.id, token });
                is_journaled = true;
            }
            let durability = if in_memory { Durability::Accepted } else { asked };
            let revisions = part.take_numbered();
            let first_offset = head.next_offset;
            appended.push(Appended { first_offset, next_offset, append_time, durability, revisions });
        }
        let forgotten =
            request.as_ref().and_then(|request| request.makes_room(&writer.producers, self.producers_max()));
        if let Some(name) = &forgotten {
            writer.frame.put(&Change::ProducerForgotten { name: name.clone() });
        }
        let answered = request.take().map(|request| {
            let change = request.answered(parts.iter().map(|part| part.topic.id).zip(&appended));
            writer.frame.put(&change);
            is_journaled = true;
            change
        });
        let mut position = writer.journal.position();
        if is_journaled {
            let frame_bytes = writer.frame.finish();
            let synced = Position(self.commit.synced());
            let reach = if asked == Durability::Written { Reach::PageCache } else { Reach::Memory };
            let one;
            let many: Vec<&[u8]>;
            let batches: &[&[u8]] = match &parts[..] {
                [part] if !part.topic.is_in_memory() => {
                    one = [part.batch.as_bytes()];
                    &one
                }
                parts => {
                    let durable = parts.iter().filter(|part| !part.topic.is_in_memory());
                    many = durable.map(|part| part.batch.as_bytes()).collect();
                    &many
                }
            };
            position = writer
                .journal
                .write(&mut writer.frame, frame_bytes, batches, synced, reach)
                .map_err(|error| self.context.fail(error))?;
        }
        if let Some(name) = forgotten {
            writer.producers.forget(&name);
        }
        if let Some(Change::Answered(answered)) = answered {
            writer.producers.take(answered);
        }
        let mut awaits_sync = asked == Durability::Synced;
        let mut bytes = 0;
        for (part, appended) in parts.iter_mut().zip(&appended) {
            let topic = &part.topic;
            let stored: Bytes = part.batch.take_bytes();
            bytes += stored.len() as u64;
            let terms = (&part.terms, &appended.revisions[..], &mut part.places);
            topic.push_with(stored, appended.next_offset, appended.append_time, part.rolls, terms);
            topic.records_appended.add_alone(part.record_count);
            context.counters.records_appended.add_alone(part.record_count);
            if let Some(token) = part.raises_token() {
                topic.fencing_token.store(token, Ordering::Relaxed);
            }
            if let Some(free) = part.reserves {
                topic.reserved.store(free.0, Ordering::Relaxed);
                topic.reserved_at.store(position.0, Ordering::Relaxed);
            }
            let is_settled = topic.is_in_memory() && topic.reserved_at.load(Ordering::Relaxed) == 0;
            awaits_sync |= topic.is_in_memory() && !is_settled;
            if is_settled {
                topic.move_high_watermark(appended.next_offset);
            } else if !topic.is_unsynced.load(Ordering::Relaxed) {
                topic.is_unsynced.store(true, Ordering::Relaxed);
                writer.unsynced.push(Arc::clone(topic));
            }
        }
        context.counters.appends.add_alone(1);
        context.counters.bytes_appended.add_alone(bytes);
        drop(guard);
        self.signal_work(bytes);
        for part in &*parts {
            part.topic.watch.notify();
        }
        Ok(Some(Written { position, awaits_sync, outcome: Outcome::Appended(appended) }))
    }

    /// What is told of conditions that do not hold.
    fn refused(&self, checks: &[Check], failed: Vec<FailedCondition>) -> Result<Written> {
        let failure = failure(checks, failed)?;
        // The lock not before: it names what was found by now.
        Ok(Written::refused(&self.writer(), failure))
    }

    /// Everything below `synced` is durable: a topic in memory whose offsets were set aside there gives them from now on
    /// without waiting for the disk. Until then its records are shown to nobody, and their appends wait.
    pub(crate) fn settle_reserved(&self, topic: &TopicInner, synced: Position) {
        // Whoever appends now sees either this or that there is something to wait for.
        let _writer = self.writer();
        if topic.reserved_at.load(Ordering::Relaxed) <= synced.0 {
            topic.reserved_at.store(0, Ordering::Relaxed);
            topic.show_all();
        }
    }

    /// Writes a frame with one change and waits until it is durable; `apply` runs under the writer lock.
    pub(crate) fn change<T>(
        &self,
        plan: impl FnOnce(&mut super::Writer) -> Result<Change>,
        apply: impl FnOnce(&mut super::Writer) -> T,
    ) -> Result<T> {
        loop {
            if let Some(mut writer) = self.writer_for_change()? {
                let change = plan(&mut writer)?;
                return self.change_with(writer, &change, apply);
            }
            self.make_room_for_change()?;
        }
    }

    /// The writer lock, if the journal has room for a change.
    pub(crate) fn writer_for_change(&self) -> Result<Option<MutexGuard<'_, super::Writer>>> {
        let writer = self.writer();
        self.context.check_writable()?;
        Ok(writer.journal.has_room(CHANGE_BYTES_MAX).then_some(writer))
    }

    /// To be called with no lock held when there was no room for a change.
    pub(crate) fn make_room_for_change(&self) -> Result<()> {
        let limit = self.context.settings.journal_bytes_max;
        self.make_room(CHANGE_BYTES_MAX, false, true, Error::Overloaded { what: "the journal", limit })
    }

    /// The same as [`change`](Self::change) for those who hold the writer lock and have made sure of room.
    ///
    /// # Errors
    /// Only such as fail the store: whether the change was made is known when it is reopened.
    pub(crate) fn change_with<T>(
        &self,
        mut guard: MutexGuard<'_, super::Writer>,
        change: &Change,
        apply: impl FnOnce(&mut super::Writer) -> T,
    ) -> Result<T> {
        let writer = &mut *guard;
        writer.frame.begin();
        writer.frame.put(change);
        let frame_bytes = writer.frame.finish();
        let synced = Position(self.commit.synced());
        let position = writer
            .journal
            .write(&mut writer.frame, frame_bytes, &[], synced, Reach::Memory)
            .map_err(|error| self.context.fail(error))?;
        let applied = apply(writer);
        drop(guard);
        self.wait_synced(position)?;
        Ok(applied)
    }

    /// Lets the flusher and the checkpointer know when there is enough to do.
    fn signal_work(&self, bytes: u64) {
        let tail_bytes = self.context.counters.tail_bytes.value();
        if tail_bytes / FLUSH_SIGNAL_BYTES != (tail_bytes.saturating_sub(bytes)) / FLUSH_SIGNAL_BYTES {
            self.wake.flush.signal();
        }
    }

    /// There is no room for a frame of `bytes`: waits for some, or makes it, or says `overloaded`.
    fn make_room(&self, bytes: usize, tail_is_full: bool, may_wait: bool, overloaded: Error) -> Result<()> {
        let context = &*self.context;
        // To make a file takes a sync: the flusher does it for those who may not wait.
        if !tail_is_full && (may_wait || !context.settings.background) && self.add_journal_file()? {
            return Ok(());
        }
        if !context.settings.background {
            return self.checkpoint();
        }
        self.wake.flush.signal();
        self.wake.checkpoint.signal();
        let obstacle = self.checkpoint_error.lock().expect("no panic under this lock").clone();
        if let Some(error) = obstacle.filter(|error| error.kind() != ErrorKind::Retry) {
            // To wait would be to wait for somebody to put the disk in order.
            return Err(error);
        }
        if context.is_disk_full() {
            return Err(Error::DiskFull { action: "write segments below", path: context.topics_dir() });
        }
        if !may_wait {
            return Err(overloaded);
        }
        let deadline = Instant::now() + Duration::from_secs(1);
        self.room.wait_until(Some(deadline), || {
            let tail_has_room = context.counters.tail_bytes.value() <= context.settings.tail_bytes_max;
            context.check_writable().is_err()
                || context.is_disk_full()
                || self.checkpoint_error.lock().expect("no panic under this lock").is_some()
                || if tail_is_full { tail_has_room } else { self.writer().journal.has_room(bytes) }
        });
        Ok(())
    }

    /// Creates one more journal file if there may be one; says whether there is one more.
    pub(crate) fn add_journal_file(&self) -> Result<bool> {
        let number = {
            let mut writer = self.writer();
            if !writer.journal.wants_file(&self.context) {
                return Ok(false);
            }
            writer.journal.take_number()
        };
        match Slot::create(&self.context, number) {
            Ok(slot) => {
                self.writer().journal.add(slot);
                self.room.notify();
                Ok(true)
            }
            Err(error) => {
                let mut writer = self.writer();
                writer.journal.give_up();
                // Other files may be free again when there is a checkpoint.
                let is_for_good = !matches!(error, Error::DiskFull { .. }) || writer.journal.note_disk_full();
                drop(writer);
                if !is_for_good {
                    return Ok(false);
                }
                if matches!(error, Error::DiskFull { .. }) {
                    self.context.set_disk_full(true);
                    self.wake.retention.signal();
                }
                Err(error)
            }
        }
    }
}
