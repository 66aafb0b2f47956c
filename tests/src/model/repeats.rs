//! Appends that are applied once: some get a producer or a request id, and are repeated later, after whatever has happened.
//!
//! What the store knows of them is part of the model's state: so a power cut must take it back together with the records, and
//! nothing else may.

use std::collections::BTreeMap;
use std::sync::Arc;

use quipu_storage::{
    Append, Appended, Durability, Error, Producer, ProducerInfo, Record, Store, Ticket, Uid,
};

use super::run::Run;
use super::{Check, Event};
use crate::ensure;
use crate::rng::Rng;

/// So many answers of a producer are kept.
const ANSWERS: u64 = 64;
/// So many appends are repeated at each opening.
const REPEATED_AT_ONCE: usize = 40;
const NAMES: [&str; 3] = ["importer", "p", "\u{e9}"];

/// Chooses, by numbers of its own, so that other choices are what they are without it.
#[derive(Debug)]
pub(super) struct Naming {
    rng: Rng,
    /// Nearly all appends are of one producer: so many that not all answers are kept.
    is_busy: bool,
}

impl Naming {
    pub(super) fn new(mut rng: Rng) -> Self {
        let is_busy = rng.chance(30);
        Self { rng, is_busy }
    }
}

/// What an append is known by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Name {
    /// Of a producer.
    Producer(Producer),
    /// An id.
    RequestId(Vec<u8>),
}

impl Name {
    fn give(&self, append: Append) -> Append {
        match self.clone() {
            Self::Producer(producer) => append.producer(producer),
            Self::RequestId(id) => append.request_id(id),
        }
    }
}

/// An append that was applied under a name.
#[derive(Clone, Debug)]
pub struct Sent {
    /// The name.
    pub name: Name,
    /// For each topic its name, its uid, and the records.
    pub parts: Vec<(String, Uid, Vec<Record>)>,
    /// The answer.
    pub appended: Vec<Appended>,
}

/// What a store knows of such appends.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Epoch and last sequence of each producer.
    pub producers: BTreeMap<String, (u64, u64)>,
    /// How many request ids there are.
    pub request_ids: u64,
    /// All that were applied, in order.
    pub sent: Vec<Arc<Sent>>,
}

impl Known {
    pub(super) fn take(&mut self, sent: &Arc<Sent>) {
        match &sent.name {
            Name::Producer(Producer { name, epoch, sequence }) => {
                self.producers.insert(name.clone(), (*epoch, *sequence));
            }
            Name::RequestId(_) => self.request_ids += 1,
        }
        self.sent.push(Arc::clone(sent));
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.producers.remove(name);
        self.sent.retain(|sent| !matches!(&sent.name, Name::Producer(producer) if producer.name == name));
    }

    pub(super) fn fits(&self, store: &Store) -> bool {
        let known = |known: ProducerInfo| (known.name, (known.epoch, known.last_sequence));
        let producers: BTreeMap<_, _> = store.producers(None, usize::MAX).into_iter().map(known).collect();
        producers == self.producers && store.stats().request_ids == self.request_ids
    }
}

impl Run {
    /// A name for the next append, if it gets one.
    pub(super) fn any_name(&mut self) -> Option<Name> {
        let Naming { rng, is_busy } = self.naming.as_mut()?;
        let known = &self.model.current.known;
        if !rng.chance(if *is_busy { 95 } else { 40 }) {
            return None;
        }
        if rng.chance(if *is_busy { 5 } else { 40 }) {
            // After a power cut the ids are given again that went with it.
            return Some(Name::RequestId(known.request_ids.to_le_bytes().to_vec()));
        }
        let name = (if *is_busy { NAMES[0] } else { *rng.choose(&NAMES) }).to_owned();
        let (epoch, sequence) = match known.producers.get(&name) {
            Some((epoch, last)) if *is_busy || rng.chance(95) => (*epoch, last + 1),
            Some((epoch, _)) => (epoch + 1 + rng.below(3), 0),
            None => (rng.below(3), 0),
        };
        Some(Name::Producer(Producer { name, epoch, sequence }))
    }

    pub(super) fn give(name: Option<&Name>, append: Append) -> Append {
        match name {
            Some(name) => name.give(append),
            None => append,
        }
    }

    /// Takes in an append that was applied and answered, under a name or not. Answers the number of its event.
    pub(super) fn applied(
        &mut self,
        name: Option<Name>,
        parts: &[(String, Vec<Record>)],
        appended: &[Appended],
    ) -> Check<u64> {
        let event = self.model.check_append(parts, appended, self.clock.millis())?;
        let Some(name) = name else { return Ok(self.model.push(event)) };
        let uid = |topic: &str| self.store().topic(topic).map(|topic| topic.uid());
        let part =
            |(topic, records): &(String, Vec<Record>)| Ok((topic.clone(), uid(topic)?, records.clone()));
        let parts: quipu_storage::Result<_> = parts.iter().map(part).collect();
        let parts = parts.map_err(|error| error.to_string())?;
        let sent = Arc::new(Sent { name, parts, appended: appended.to_vec() });
        self.coverage.named += 1;
        Ok(self.model.push(Event::Once { event: Box::new(event), sent }))
    }

    /// Now and then something was sent before, or should not have been.
    pub(super) fn repeat_some(&mut self) -> Check {
        let Some(naming) = &mut self.naming else { return Ok(()) };
        if !naming.rng.chance(15) {
            return Ok(());
        }
        let sent = &self.model.current.known.sent;
        if sent.is_empty() {
            return Ok(());
        }
        let sent = Arc::clone(&sent[naming.rng.index(sent.len())]);
        let what = naming.rng.below(10);
        match (what, &sent.name) {
            (0, Name::Producer(producer)) => self.send_gap(&sent, producer),
            (1, _) => self.send_other(&sent),
            (2, Name::Producer(producer)) if !naming.is_busy && producer.sequence % 5 == 0 => {
                let name = producer.name.clone();
                self.store().forget_producer(&name).map_err(|error| format!("forget: {error}"))?;
                self.model.push(Event::Forgotten { name });
                self.model.sync();
                self.coverage.forgotten += 1;
                Ok(())
            }
            _ => self.repeat(&sent),
        }
    }

    /// The last ones, right after an opening.
    pub(super) fn repeat_last(&mut self) -> Check {
        let sent = &self.model.current.known.sent;
        let last: Vec<_> = sent.iter().rev().take(REPEATED_AT_ONCE).cloned().collect();
        last.iter().try_for_each(|sent| self.repeat(sent))
    }

    fn build_again(&self, sent: &Sent, more: &[Record]) -> Check<Option<(Append, bool)>> {
        let mut append = Append::new().durability(Durability::Accepted);
        let mut is_same = true;
        for (name, uid, records) in &sent.parts {
            let Ok(topic) = self.store().topic(name) else { return Ok(None) };
            is_same &= topic.uid() == *uid;
            append = append.records(&topic, records).map_err(|error| error.to_string())?;
            append = append.records(&topic, more).map_err(|error| error.to_string())?;
        }
        Ok(Some((append, is_same)))
    }

    /// Submits, and waits for why it is refused, if it is: then what that rests on is synced.
    fn submit_and_hear(&mut self, append: Append) -> quipu_storage::Result<Ticket> {
        let ticket = self.store().submit(append)?;
        if !ticket.is_refused() {
            return Ok(ticket);
        }
        let refused = ticket.wait().expect_err("it is refused");
        self.model.sync();
        Err(refused)
    }

    /// Sends the same once more: it must be answered as before, and nothing must be appended.
    fn repeat(&mut self, sent: &Sent) -> Check {
        let Some((append, is_same)) = self.build_again(sent, &[])? else { return Ok(()) };
        let outcome = self.submit_and_hear(sent.name.give(append));
        let (is_fenced, is_old) = match &sent.name {
            Name::RequestId(_) => (false, false),
            Name::Producer(Producer { name, epoch, sequence }) => {
                let (current, last) = self.model.current.known.producers[name];
                (*epoch < current, *epoch == current && last - sequence >= ANSWERS)
            }
        };
        if is_fenced {
            ensure!(matches!(outcome, Err(Error::ProducerFenced { .. })), "not fenced: {:?}", sent.name);
            self.coverage.fenced += 1;
            return Ok(());
        }
        if !is_same && !is_old {
            ensure!(matches!(outcome, Err(Error::RequestIdReused { .. })), "not reused: {:?}", sent.name);
            self.coverage.reused += 1;
            return Ok(());
        }
        let ticket = outcome.map_err(|error| format!("repeat of {:?}: {error}", sent.name))?;
        ensure!(ticket.is_duplicate(), "{:?} was applied once more", sent.name);
        let place = |appended: &Appended| {
            let Appended { first_offset, next_offset, append_time, revisions, .. } = appended;
            (*first_offset, *next_offset, *append_time, revisions.clone())
        };
        let places = |appended: &[Appended]| appended.iter().map(place).collect::<Vec<_>>();
        let wanted = if is_old { Vec::new() } else { places(&sent.appended) };
        let found = places(ticket.appended());
        ensure!(found == wanted, "{:?} is answered {found:?}, not {wanted:?}", sent.name);
        self.coverage.repeats += 1;
        self.coverage.long_ago += u64::from(is_old);
        Ok(())
    }

    /// Leaves one out.
    fn send_gap(&mut self, sent: &Sent, producer: &Producer) -> Check {
        let Some((append, _)) = self.build_again(sent, &[])? else { return Ok(()) };
        let (epoch, last) = self.model.current.known.producers[&producer.name];
        let gap = Producer { epoch, sequence: last + 2, ..producer.clone() };
        let outcome = self.submit_and_hear(append.producer(gap));
        let is_gap = matches!(outcome, Err(Error::SequenceGap { expected, .. }) if expected == last + 1);
        ensure!(is_gap, "a gap behind {last} gives {outcome:?}");
        self.coverage.gaps += 1;
        Ok(())
    }

    /// Takes the name for other records.
    fn send_other(&mut self, sent: &Sent) -> Check {
        let Some((append, _)) = self.build_again(sent, &[Record::new("other")])? else { return Ok(()) };
        let outcome = self.submit_and_hear(sent.name.give(append));
        match (&sent.name, outcome) {
            (_, Err(Error::RequestIdReused { .. })) => self.coverage.reused += 1,
            (Name::Producer(_), Err(Error::ProducerFenced { .. })) => self.coverage.fenced += 1,
            // It is known no more what that was.
            (Name::Producer(_), Ok(ticket)) if ticket.is_duplicate() && ticket.appended().is_empty() => {
                self.coverage.long_ago += 1;
            }
            (name, outcome) => return Err(format!("other records as {name:?} give {outcome:?}")),
        }
        Ok(())
    }
}
