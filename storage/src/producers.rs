//! Which appends can be repeated: the last ones of each producer, and those with the last request ids.
//!
//! What is in here is in the journal, in the frames of these appends, and in the checkpoint. So it is as durable as their
//! records are, goes with them in a power cut, and stays when they are trimmed or compacted or their topic is deleted.
//!
//! | Kept | Bound |
//! |---|---|
//! | producers | `producers_max` of the store's settings; of those only temporary ones are forgotten unasked |
//! | answers of each | [`ANSWERS_MAX`]; of an older append only that it was applied |
//! | request ids | [`REQUEST_IDS_MAX`] of the store, the oldest are forgotten |
//!
//! A producer whose name begins with [`TEMPORARY_PREFIX`] is temporary: clients make such names up, and one that was killed
//! forgets none. When a producer has no room, the temporary one that has not appended for the longest is forgotten, in the
//! frame of the append that needs the room.
//!
//! Nothing in here depends on a clock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::format::answer::{Answer, Answered, Identity, Producer};
use crate::format::checkpoint::{Checkpoint, ProducerState, RequestState};

/// Of so many appends of a producer, the last ones, a repeat gets the first answer.
pub(crate) const ANSWERS_MAX: usize = 64;
/// So many request ids of a store are known, the last ones.
pub(crate) const REQUEST_IDS_MAX: usize = 16_384;
/// What the name of a producer begins with that may be forgotten when others need its room.
pub const TEMPORARY_PREFIX: char = '~';

/// See the [module](self). The store's writer lock guards it. What it shares with a checkpoint that is being written is
/// copied when it changes.
#[derive(Debug, Default)]
pub(crate) struct Producers {
    /// Nobody will append: the answers and the request ids are not kept, and none is forgotten for another.
    is_list: bool,
    by_name: BTreeMap<String, Arc<ProducerState>>,
    temporary: Temporary,
    by_id: HashMap<Vec<u8>, Arc<RequestState>>,
    /// The request ids, the oldest first.
    ids: VecDeque<Arc<RequestState>>,
}

/// Temporary producers in the order of their last appends.
#[derive(Debug, Default)]
struct Temporary {
    by_use: BTreeMap<u64, String>,
    last_uses: HashMap<String, u64>,
    uses: u64,
}

impl Temporary {
    /// It has appended.
    fn used(&mut self, name: &str) {
        if !name.starts_with(TEMPORARY_PREFIX) {
            return;
        }
        self.uses += 1;
        let known = self.last_uses.get_mut(name).map(|last| std::mem::replace(last, self.uses));
        let name = match known.and_then(|last| self.by_use.remove(&last)) {
            Some(name) => name,
            None => {
                self.last_uses.insert(name.to_owned(), self.uses);
                name.to_owned()
            }
        };
        self.by_use.insert(self.uses, name);
    }

    fn forget(&mut self, name: &str) {
        if let Some(last) = self.last_uses.remove(name) {
            self.by_use.remove(&last);
        }
    }

    /// The one that has not appended for the longest.
    fn oldest(&self) -> Option<&str> {
        self.by_use.first_key_value().map(|(_, name)| &name[..])
    }
}

/// What is known of an append that wants to be applied.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// Nothing: it comes next.
    New,
    /// It was applied, and answered this; `None` if the answer is not kept any more.
    Repeat(Option<Answer>),
}

/// A named producer of a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProducerInfo {
    /// Its name.
    pub name: String,
    /// Its epoch: lower ones are refused.
    pub epoch: u64,
    /// Sequence of its last append. The next one is one more.
    pub last_sequence: u64,
}

impl ProducerInfo {
    fn new(state: &ProducerState) -> Self {
        Self { name: state.name.clone(), epoch: state.epoch, last_sequence: state.last_sequence }
    }
}

impl Producers {
    /// What a checkpoint says of them.
    pub(crate) fn new(checkpoint: &Checkpoint) -> Self {
        let named = |state: &Arc<ProducerState>| (state.name.clone(), Arc::clone(state));
        let mut producers =
            Self { by_name: checkpoint.producers.iter().map(named).collect(), ..Self::default() };
        // The order of their appends is not kept; their times are as good.
        let mut temporary: Vec<_> =
            checkpoint.producers.iter().filter(|state| state.name.starts_with(TEMPORARY_PREFIX)).collect();
        temporary.sort_by_cached_key(|state| {
            let last = state.answers.back().map(|(_, answer)| answer.topics()).unwrap_or_default();
            last.iter().map(|topic| topic.append_time).max()
        });
        temporary.into_iter().for_each(|state| producers.temporary.used(&state.name));
        checkpoint.request_ids.iter().for_each(|request| producers.take_request(Arc::clone(request)));
        producers
    }

    /// The same for a reader, who only wants to know which there are.
    pub(crate) fn list_of(checkpoint: &Checkpoint) -> Self {
        let named = checkpoint.producers.iter().map(|state| {
            let ProducerState { name, epoch, last_sequence, answers: _ } = &**state;
            let (name, answers) = (name.clone(), VecDeque::new());
            let state = ProducerState { name, epoch: *epoch, last_sequence: *last_sequence, answers };
            (state.name.clone(), Arc::new(state))
        });
        Self { is_list: true, by_name: named.collect(), ..Self::default() }
    }

    /// For a checkpoint.
    pub(crate) fn put_into(&self, checkpoint: &mut Checkpoint) {
        checkpoint.producers = self.by_name.values().cloned().collect();
        checkpoint.request_ids = self.ids.iter().cloned().collect();
    }

    /// Whether an append comes next, was applied, or must not be. A producer more than `producers_max` is refused if none
    /// may go for it.
    pub(crate) fn look_up(&self, identity: &Identity, body_hash: u64, producers_max: usize) -> Result<Known> {
        let reused = || Error::RequestIdReused { identity: identity.to_string() };
        match identity {
            Identity::RequestId(id) => match self.by_id.get(id) {
                None => Ok(Known::New),
                Some(first) if first.body_hash == body_hash => Ok(Known::Repeat(Some(first.answer.clone()))),
                Some(_) => Err(reused()),
            },
            Identity::Producer(producer) => {
                let Some(state) = self.by_name.get(&producer.name) else {
                    check_sequence(producer, 0)?;
                    if self.by_name.len() >= producers_max && self.temporary.oldest().is_none() {
                        return Err(Error::TooManyProducers { limit: producers_max });
                    }
                    return Ok(Known::New);
                };
                if producer.epoch < state.epoch {
                    let Producer { name, epoch, .. } = producer.clone();
                    return Err(Error::ProducerFenced { producer: name, epoch, current: state.epoch });
                }
                if producer.epoch > state.epoch {
                    return check_sequence(producer, 0).map(|()| Known::New);
                }
                let Some(ago) = state.last_sequence.checked_sub(producer.sequence) else {
                    return check_sequence(producer, state.last_sequence.saturating_add(1))
                        .map(|()| Known::New);
                };
                let number = usize::try_from(ago).ok().and_then(|ago| ago.checked_add(1));
                let number = number.and_then(|ago| state.answers.len().checked_sub(ago));
                match number.map(|number| &state.answers[number]) {
                    None => Ok(Known::Repeat(None)),
                    Some((hash, answer)) if *hash == body_hash => Ok(Known::Repeat(Some(answer.clone()))),
                    Some(_) => Err(reused()),
                }
            }
        }
    }

    /// Who has to be forgotten when an append that is new is taken in.
    pub(crate) fn makes_room(&self, identity: &Identity, producers_max: usize) -> Option<&str> {
        let Identity::Producer(producer) = identity else { return None };
        let needs_room = self.by_name.len() >= producers_max && !self.by_name.contains_key(&producer.name);
        if needs_room { self.temporary.oldest() } else { None }
    }

    /// Takes in an append that the journal holds now.
    pub(crate) fn take(&mut self, answered: Answered) {
        let Answered { identity, body_hash, answer } = answered;
        match identity {
            Identity::RequestId(_) if self.is_list => {}
            Identity::RequestId(id) => {
                self.take_request(Arc::new(RequestState { id, body_hash, answer }));
            }
            Identity::Producer(Producer { name, epoch, sequence }) => {
                if !self.is_list {
                    self.temporary.used(&name);
                }
                let state = self.by_name.entry(name).or_insert_with_key(|name| {
                    let name = name.clone();
                    Arc::new(ProducerState { name, epoch, last_sequence: sequence, answers: VecDeque::new() })
                });
                let state = Arc::make_mut(state);
                if state.epoch != epoch {
                    state.answers.clear();
                }
                (state.epoch, state.last_sequence) = (epoch, sequence);
                if self.is_list {
                    return;
                }
                if state.answers.len() == ANSWERS_MAX {
                    state.answers.pop_front();
                }
                state.answers.push_back((body_hash, answer));
            }
        }
    }

    fn take_request(&mut self, request: Arc<RequestState>) {
        self.by_id.insert(request.id.clone(), Arc::clone(&request));
        self.ids.push_back(request);
        if self.ids.len() > REQUEST_IDS_MAX
            && let Some(oldest) = self.ids.pop_front()
        {
            self.by_id.remove(&oldest.id);
        }
    }

    /// Forgets a producer: the next append of that name begins anew.
    pub(crate) fn forget(&mut self, name: &str) {
        self.temporary.forget(name);
        self.by_name.remove(name);
    }

    pub(crate) fn producer(&self, name: &str) -> Option<ProducerInfo> {
        self.by_name.get(name).map(|state| ProducerInfo::new(state))
    }

    /// At most `count` of them in the order of their names, from behind `after`.
    pub(crate) fn page(&self, after: Option<&str>, count: usize) -> Vec<ProducerInfo> {
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.by_name.range::<str, _>((start, Bound::Unbounded));
        behind.take(count).map(|(_, state)| ProducerInfo::new(state)).collect()
    }

    pub(crate) fn producer_count(&self) -> usize {
        self.by_name.len()
    }

    pub(crate) fn request_id_count(&self) -> usize {
        self.ids.len()
    }
}

fn check_sequence(producer: &Producer, expected: u64) -> Result<()> {
    if producer.sequence == expected {
        return Ok(());
    }
    let Producer { name, epoch, sequence } = producer.clone();
    Err(Error::SequenceGap { producer: name, epoch, expected, actual: sequence })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::types::{Offset, Timestamp, TopicId};

    fn identity(epoch: u64, sequence: u64) -> Identity {
        Identity::Producer(Producer { name: "p".into(), epoch, sequence })
    }

    fn answer(number: u64) -> Answer {
        Answer::new([(TopicId(1), Offset(number), 1, Timestamp(0), &[][..])])
    }

    fn take(producers: &mut Producers, identity: Identity, number: u64) {
        producers.take(Answered { identity, body_hash: number, answer: answer(number) });
    }

    fn through_a_checkpoint(producers: &Producers) -> Producers {
        let mut checkpoint = Checkpoint {
            store: crate::types::Uid([1; 16]),
            position: crate::types::Position::ZERO,
            generation: 0,
            next_topic: TopicId(1),
            topics: Vec::new(),
            deleted: Vec::new(),
            producers: Vec::new(),
            request_ids: Vec::new(),
            master_key: None,
        };
        producers.put_into(&mut checkpoint);
        Producers::new(&Checkpoint::decode(&checkpoint.encode()).unwrap().checkpoint)
    }

    #[test]
    fn request_ids_are_bounded_and_the_oldest_are_forgotten() {
        let mut producers = Producers::default();
        let id = |number: u64| Identity::RequestId(number.to_le_bytes().to_vec());
        let count = REQUEST_IDS_MAX as u64 + 10;
        (0..count).for_each(|number| take(&mut producers, id(number), number));
        for producers in [&producers, &through_a_checkpoint(&producers)] {
            assert_eq!(producers.request_id_count(), REQUEST_IDS_MAX);
            assert_eq!(producers.by_id.len(), REQUEST_IDS_MAX);
            assert_eq!(producers.look_up(&id(9), 9, 1).unwrap(), Known::New);
            for number in [10, count - 1] {
                let known = producers.look_up(&id(number), number, 1).unwrap();
                assert_eq!(known, Known::Repeat(Some(answer(number))));
                assert!(matches!(producers.look_up(&id(number), 0, 1), Err(Error::RequestIdReused { .. })));
            }
        }
    }

    #[test]
    fn a_checkpoint_on_its_way_does_not_see_what_comes_later() {
        let mut producers = Producers::default();
        take(&mut producers, identity(1, 0), 0);
        let mut checkpoint = Checkpoint::decode(
            &Checkpoint {
                store: crate::types::Uid([1; 16]),
                position: crate::types::Position::ZERO,
                generation: 0,
                next_topic: TopicId(1),
                topics: Vec::new(),
                deleted: Vec::new(),
                producers: Vec::new(),
                request_ids: Vec::new(),
                master_key: None,
            }
            .encode(),
        )
        .unwrap()
        .checkpoint;
        producers.put_into(&mut checkpoint);
        take(&mut producers, identity(1, 1), 1);
        assert_eq!(checkpoint.producers[0].last_sequence, 0);
        assert_eq!(producers.producer("p").unwrap().last_sequence, 1);
    }

    proptest! {
        /// Against a list of all that was applied.
        #[test]
        fn a_sequence_is_applied_once_in_order_and_answered_as_the_first_time(
            tries in prop::collection::vec((0..3_u64, 0..200_u64, any::<bool>()), 1..400),
        ) {
            let mut producers = Producers::default();
            let mut current: Option<(u64, Vec<u64>)> = None;
            for (number, (epoch, at, is_new)) in (0..).zip(tries) {
                let (last_epoch, applied) = current.clone().unwrap_or_default();
                let next = if epoch == last_epoch { applied.len() as u64 } else { 0 };
                let sequence = if is_new { next } else { at };
                let known = producers.look_up(&identity(epoch, sequence), number, 1);
                if current.is_some() && epoch < last_epoch {
                    let is_fenced = matches!(known, Err(Error::ProducerFenced { current, .. }) if current == last_epoch);
                    prop_assert!(is_fenced);
                } else if sequence == next {
                    prop_assert_eq!(known.unwrap(), Known::New);
                    take(&mut producers, identity(epoch, sequence), number);
                    let mut applied = if epoch == last_epoch { applied } else { Vec::new() };
                    applied.push(number);
                    current = Some((epoch, applied));
                } else if sequence > next || epoch != last_epoch {
                    let is_gap = matches!(known, Err(Error::SequenceGap { expected, .. }) if expected == next);
                    prop_assert!(is_gap);
                } else if next - sequence > ANSWERS_MAX as u64 {
                    prop_assert_eq!(known.unwrap(), Known::Repeat(None));
                } else {
                    let reused = matches!(known, Err(Error::RequestIdReused { .. }));
                    prop_assert!(reused, "another body");
                    let first = applied[usize::try_from(sequence).unwrap()];
                    let known = producers.look_up(&identity(epoch, sequence), first, 1).unwrap();
                    prop_assert_eq!(known, Known::Repeat(Some(answer(first))));
                }
                if number % 64 == 0 {
                    producers = through_a_checkpoint(&producers);
                }
            }
        }
    }
}
