//! Appends that are applied once, however often they come.
//!
//! One that names a producer and sequence, or a request id, is looked for among those that were applied: before anything
//! else is asked of it, so that conditions, limits and the state of its topics mean nothing to a repeat; and again under
//! the writer lock under which it is applied.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::append::{Append, Appended, Outcome, Part, Written};
use super::prepared::Prepared;
use super::{Store, StoreInner, Writer};
use crate::Topic;
use crate::cursor::Visibility;
use crate::erasure::master_key::MasterKey;
use crate::error::{Error, Result};
use crate::format::answer::{
    ANSWER_TOPICS_MAX, Answer, Answered, Identity, PRODUCER_NAME_BYTES_MAX, REQUEST_ID_BYTES_MAX, TopicAnswer,
};
use crate::format::batch;
use crate::format::frame::Change;
use crate::format::terms::hash::hash;
use crate::producers::{Known, Producers};
use crate::settings::Durability;
use crate::types::{Revision, TopicId};

/// What tells whether an append is a repeat.
#[derive(Debug)]
pub(super) struct Request {
    identity: Identity,
    body_hash: u64,
    topics: Vec<Topic>,
}

/// An append that was applied before.
#[derive(Debug)]
pub(super) struct Repeat {
    topics: Vec<Topic>,
    asked: Durability,
    answer: Option<Answer>,
}

impl Append {
    /// What it is to be known by.
    pub(super) fn identity(&mut self) -> Result<Option<Identity>> {
        let invalid = |rule| Err(Error::InvalidAppend { rule });
        match (self.producer.take(), self.request_id.take()) {
            (None, None) => Ok(None),
            (Some(_), Some(_)) => invalid("it has a producer or a request id, not both"),
            (Some(producer), None) if !(1..=PRODUCER_NAME_BYTES_MAX).contains(&producer.name.len()) => {
                invalid("the name of its producer must have 1 to 255 bytes")
            }
            (Some(producer), None) => Ok(Some(Identity::Producer(producer))),
            (None, Some(id)) if !(1..=REQUEST_ID_BYTES_MAX).contains(&id.len()) => {
                invalid("its request id must have 1 to 64 bytes")
            }
            (None, Some(id)) => Ok(Some(Identity::RequestId(id))),
        }
    }

    /// Of its topics and the bytes of its records, in order: as they came, because sealing gives other bytes each time.
    fn body_hash(&self, store: &StoreInner) -> u64 {
        let is_secret = self.parts.iter().any(Part::has_erasure_keys);
        let master_key = store.context.master_key().filter(|_| is_secret);
        let key = master_key.map_or(store.context.store, MasterKey::repeat_secret);
        let mut parts = Vec::with_capacity(32 * self.parts.len());
        for part in &self.parts {
            let body = &part.body[batch::HEADER_BYTES..];
            parts.extend_from_slice(&part.topic.inner.uid.0);
            parts.extend_from_slice(&(body.len() as u64).to_le_bytes());
            parts.extend_from_slice(&hash(key, body).to_le_bytes());
        }
        hash(key, &parts)
    }
}

impl Request {
    pub(super) fn new(append: &Append, identity: Identity, store: &StoreInner) -> Result<Self> {
        let topics: Vec<_> = append.parts.iter().map(|part| part.topic.clone()).collect();
        let of_this_store = |topic: &Topic| Arc::ptr_eq(&topic.handle.inner.context, &store.context);
        if topics.len() > ANSWER_TOPICS_MAX {
            let (actual, limit) = (topics.len() as u64, ANSWER_TOPICS_MAX as u64);
            return Err(Error::AppendTooLarge { what: "topics", actual, limit });
        }
        if !topics.iter().all(of_this_store) {
            return Err(Error::InvalidAppend { rule: "all its topics must be of this store" });
        }
        Ok(Self { identity, body_hash: append.body_hash(store), topics })
    }

    /// Which producer has to be forgotten for it.
    pub(super) fn makes_room(&self, producers: &Producers, producers_max: usize) -> Option<String> {
        producers.makes_room(&self.identity, producers_max).map(str::to_owned)
    }

    /// What the journal says of the append when it is applied.
    pub(super) fn answered<'a>(self, appended: impl Iterator<Item = (TopicId, &'a Appended)>) -> Change {
        let answer = Answer::new(appended.map(|(topic, appended)| {
            let Appended { first_offset, next_offset, append_time, revisions, .. } = appended;
            (topic, *first_offset, *next_offset - *first_offset, *append_time, &revisions[..])
        }));
        Change::Answered(Answered { identity: self.identity, body_hash: self.body_hash, answer })
    }
}

impl Store {
    /// Makes the batches of an append; or finds that it was applied before, if it says what it is to be known by.
    pub(super) fn prepare_once(&self, mut append: Append) -> Result<Result<Prepared, Written>> {
        let inner = &self.handle.inner;
        let Some(identity) = append.identity()? else { return append.prepare(inner).map(Ok) };
        let asked = append.durability;
        let request = Request::new(&append, identity, inner)?;
        let known = {
            let mut writer = inner.writer();
            inner.context.check_writable()?;
            inner.repeat(&mut writer, &request, asked)?
        };
        if let Some(written) = known {
            return Ok(Err(written));
        }
        match append.prepare(inner) {
            Ok(prepared) => Ok(Ok(Prepared { request: Some(request), ..prepared })),
            Err(error) => inner.repeat_or(&request, asked, error).map(Err),
        }
    }
}

impl StoreInner {
    pub(super) fn producers_max(&self) -> usize {
        usize::try_from(self.context.settings.producers_max).unwrap_or(usize::MAX)
    }

    /// Whether the append was applied before; an error if it must not be applied.
    pub(super) fn is_repeat(&self, writer: &Writer, request: &Request) -> Result<bool> {
        let known = writer.producers.look_up(&request.identity, request.body_hash, self.producers_max())?;
        Ok(matches!(known, Known::Repeat(_)))
    }

    /// The first answer, if the append was applied before, or that it must not be applied.
    pub(super) fn repeat(
        &self,
        writer: &mut Writer,
        request: &Request,
        asked: Durability,
    ) -> Result<Option<Written>> {
        let known = writer.producers.look_up(&request.identity, request.body_hash, self.producers_max());
        let answer = match known {
            Ok(Known::New) => return Ok(None),
            Ok(Known::Repeat(answer)) => answer,
            Err(error) => return Ok(Some(Written::refused(writer, error))),
        };
        // The first one may have asked for less.
        if asked == Durability::Written {
            writer.journal.write_staged().map_err(|error| self.context.fail(error))?;
        }
        let topics = request.topics.clone();
        let is_unsettled = |topic: &Topic| topic.inner.reserved_at.load(Ordering::Relaxed) != 0;
        let awaits_sync = asked == Durability::Synced || topics.iter().any(is_unsettled);
        let outcome = Outcome::Repeat(Repeat { topics, asked, answer });
        // The first one lies below. That others may as well costs the wait for one sync at most.
        Ok(Some(Written { position: writer.journal.position(), awaits_sync, outcome }))
    }

    /// What to answer instead of `error`: the append may have been applied meanwhile, and then what is wrong with it now was
    /// not when it counted. In a store that takes no appends any more the error stays.
    pub(super) fn repeat_or(&self, request: &Request, asked: Durability, error: Error) -> Result<Written> {
        let mut writer = self.writer();
        if self.context.check_writable().is_err() {
            return Err(error);
        }
        self.repeat(&mut writer, request, asked)?.ok_or(error)
    }
}

impl Repeat {
    /// What the first one was answered, and whether it lacks revisions that have to be [read](Self::read).
    pub(super) fn appended(&self) -> (Vec<Appended>, bool) {
        let answers = self.answers();
        let lacks_revisions = answers.iter().any(|answer| answer.runs.is_none());
        let of_topic = |(answer, topic): (&TopicAnswer, &Topic)| Appended {
            first_offset: answer.first_offset,
            next_offset: answer.first_offset + answer.record_count,
            append_time: answer.append_time,
            durability: if topic.inner.is_in_memory() { Durability::Accepted } else { self.asked },
            revisions: answer.revisions().unwrap_or_default(),
        };
        (answers.iter().zip(&self.topics).map(of_topic).collect(), lacks_revisions)
    }

    /// Reads the revisions that the answer had no room for.
    pub(super) fn read(&self, appended: &mut [Appended]) -> Result<()> {
        for ((answer, topic), appended) in self.answers().iter().zip(&self.topics).zip(appended) {
            if answer.runs.is_none() {
                appended.revisions = logged_revisions(topic, answer)?;
            }
        }
        Ok(())
    }

    fn answers(&self) -> Vec<TopicAnswer> {
        self.answer.as_ref().map(Answer::topics).unwrap_or_default()
    }
}

/// The revisions of a large append, from its batch; none if it is not there any more as it was. What cannot be read now is
/// an error: a later repeat may still get the first answer.
fn logged_revisions(topic: &Topic, answer: &TopicAnswer) -> Result<Vec<Revision>> {
    let read = topic
        .cursor(answer.first_offset, Visibility::Written)
        .and_then(|cursor| cursor.for_points().next_stored_batch());
    let batch = match read {
        Ok(batch) => batch,
        Err(Error::OffsetTrimmed { .. } | Error::TopicNotFound { .. }) => None,
        Err(error) => return Err(error),
    };
    let is_whole = |batch: &&crate::cursor::ReadBatch| {
        let header = batch.batch().header();
        header.base_offset == answer.first_offset && u64::from(header.record_count) == answer.record_count
    };
    Ok(batch.as_ref().filter(is_whole).map_or_else(Vec::new, |read| read.batch().revisions().collect()))
}

#[cfg(all(test, feature = "erasure"))]
mod tests {
    use super::*;
    use crate::{Producer, Record};

    /// The sum of a sealed payload was made with what every copy of the store says, so anybody could try payloads out.
    #[test]
    fn the_sum_of_an_append_with_sealed_payloads_is_made_with_a_secret_of_the_master_key() {
        let dir = tempfile::tempdir().unwrap();
        let builder = Store::builder().master_key(dir.path().join("key")).create_master_key(true);
        let store = builder.open(dir.path().join("store")).unwrap();
        let topic = store.topic_or_create("t").unwrap();
        let producer = || Identity::Producer(Producer { name: "p".into(), epoch: 0, sequence: 0 });
        let sum = |record: Record| {
            let append = Append::new().records(&topic, &[record]).unwrap();
            let request = Request::new(&append, producer(), &store.handle.inner).unwrap();
            let of_store = store.handle.inner.context.store;
            let body = &append.parts[0].body[batch::HEADER_BYTES..];
            let mut parts = topic.inner.uid.0.to_vec();
            parts.extend_from_slice(&(body.len() as u64).to_le_bytes());
            parts.extend_from_slice(&hash(of_store, body).to_le_bytes());
            (request.body_hash, hash(of_store, &parts))
        };
        let (open, as_anybody_can) = sum(Record::new("Ada"));
        assert_eq!(open, as_anybody_can);
        let sealed = || Record::new("Ada").with_erasure_key("customer-17");
        let (secret, as_anybody_can) = sum(sealed());
        assert_ne!(secret, as_anybody_can);
        assert_eq!(sum(sealed()).0, secret);
    }
}
