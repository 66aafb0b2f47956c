//! The terms of the records that are in no sealed segment with an index yet, in memory.
//!
//! One [`TermMap`] for each segment that is being filled or was just filled, fed as records enter the tail, under the
//! store's writer lock. It begins unknown: a store opens without reading anything, and whoever first needs the terms
//! gathers them from the active segment and the tail ([`gather`](TopicInner::gather)). From then on they are kept up to
//! date; appends of records with terms wait for that, so that none is missed.
//!
//! Bounded: a segment also ends when its map takes more than [`MAP_BYTES_MAX`].

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock, RwLockReadGuard};
use std::time::Instant;

use super::batch_terms::BatchTerms;
use super::map::{Doubt, TermMap};
use super::quick_hash::QuickHash;
use super::revisions::Places;
use super::settled::{KeyTable, NoTable, Settled};
use crate::error::{Error, Result};
use crate::format::batch::{Batch, BatchHeader, BodyProblem};
use crate::segment::Segment;
use crate::topic::TopicInner;
use crate::types::{Offset, Revision};

/// What the terms of one segment may take in memory, about.
const MAP_BYTES_MAX: usize = 64 << 20;
/// A topic in memory has a map for each so many records.
const RECORDS_IN_MEMORY: u64 = 64 << 10;

/// A map and the base offset of its segment.
pub(crate) type Filling = (Offset, Arc<RwLock<TermMap>>);

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Recent {
    state: Mutex<State>,
    is_known: AtomicBool,
    is_full: AtomicBool,
}

/// What is known of the recent records.
#[derive(Debug, Default)]
pub(crate) struct State {
    is_known: bool,
    /// All records from here on are covered.
    pub(crate) from: Offset,
    /// In order of offsets; a segment without terms has none.
    pub(crate) maps: VecDeque<Filling>,
    /// Changes with each record that has a key.
    pub(crate) version: u64,
    /// Changes when maps go.
    pub(crate) gone: u64,
    /// Changes when records with terms come and are not taken in.
    missed: u64,
    /// What came right before `from`.
    settled: Settled,
}

pub(super) fn read(map: &RwLock<TermMap>) -> RwLockReadGuard<'_, TermMap> {
    map.read().expect("no panic under this lock")
}

impl State {
    /// The revision of the last record of a key that has one, if it is among these or in a segment that was settled lately.
    /// And how many records of the key come behind it.
    pub(crate) fn last_revision(&self, hash: QuickHash, term: &[u8], log_start: Offset) -> LastSeen {
        self.look(log_start).last_revision(hash, term).0
    }

    /// For those who ask for several keys.
    pub(crate) fn look(&self, log_start: Offset) -> Look<'_> {
        let maps = self.maps.iter().rev().map(|(_, map)| read(map)).collect();
        Look { maps, settled: &self.settled, log_start }
    }

    /// The base offset of the segment that is being filled, if it has terms.
    pub(crate) fn last_base(&self) -> Option<Offset> {
        self.maps.back().map(|(base, _)| *base)
    }

    fn map(&mut self, segment: Offset) -> Arc<RwLock<TermMap>> {
        if self.maps.back().is_none_or(|(base, _)| *base < segment) {
            // The next segment has about as many as the last one: what grows step by step is copied again and again.
            let map = self.maps.back().map(|(_, last)| TermMap::like(&read(last))).unwrap_or_default();
            self.maps.push_back((segment, Arc::new(RwLock::new(map))));
        }
        Arc::clone(&self.maps.back().expect("there is one now").1)
    }
}

/// The recent terms, held.
#[derive(Debug)]
pub(crate) struct Look<'a> {
    /// The last one first.
    maps: Vec<RwLockReadGuard<'a, TermMap>>,
    settled: &'a Settled,
    log_start: Offset,
}

impl Look<'_> {
    /// See [`State::last_revision`]; and the number of the key's entry in the last map, if it has one.
    pub(crate) fn last_revision(&self, hash: QuickHash, term: &[u8]) -> (LastSeen, Option<u32>) {
        let mut seen = LastSeen::default();
        let mut place = None;
        for (nth, map) in self.maps.iter().enumerate() {
            let number = map.find(hash, term);
            if nth == 0 {
                place = number;
            }
            let entry = number.map(|number| map.entry(number));
            if !map.is_whole() {
                let last = entry.map(|entry| entry.last().offset);
                seen.doubt = seen.doubt.and(map.doubt(last, self.log_start));
            }
            if let Some(entry) = entry {
                match entry.last().revision {
                    Some(revision) => return (LastSeen { revision: Some(revision), ..seen }, place),
                    None => seen.unnumbered += entry.offsets().len() as u64,
                }
            }
        }
        seen.revision = self.settled.last_revision(hash, term);
        (seen, place)
    }
}

/// The last record of a key that has a revision, and how many come behind it that have none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LastSeen {
    pub(crate) revision: Option<Revision>,
    pub(crate) unnumbered: u64,
    /// What may come behind it.
    pub(crate) doubt: Doubt,
}

impl LastSeen {
    /// The revision of the last record, all of them counted. In doubt it is the highest that it can be: no record has one
    /// above its offset, because there is one less at each record of the key before. So what is given next was never given.
    pub(crate) fn last(self) -> Option<Revision> {
        let known = match self.revision {
            Some(revision) => Some(revision.saturating_add(self.unnumbered)),
            None => self.unnumbered.checked_sub(1).map(Revision),
        };
        known.max(self.doubt.0.map(|(_, end)| Revision(end.0.saturating_sub(1))))
    }
}

impl Recent {
    /// Of a topic that has no records yet, or only in memory.
    pub(crate) fn known_from(offset: Offset) -> Self {
        let state = State { is_known: true, from: offset, ..State::default() };
        Self { state: Mutex::new(state), is_known: AtomicBool::new(true), is_full: AtomicBool::new(false) }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    /// What is known, if it is.
    pub(crate) fn known(&self) -> Option<MutexGuard<'_, State>> {
        Some(self.lock()).filter(|state| state.is_known)
    }

    /// Whether records with terms may be appended.
    pub(crate) fn is_known(&self) -> bool {
        self.is_known.load(Ordering::Acquire)
    }

    /// Whether the segment that is being filled must end because of its terms.
    pub(crate) fn is_full(&self) -> bool {
        self.is_full.load(Ordering::Relaxed)
    }

    /// The records that come now go to another segment.
    pub(crate) fn roll(&self) {
        self.is_full.store(false, Ordering::Relaxed);
    }

    /// Forgets everything: it is to be gathered again.
    pub(crate) fn forget(&self) {
        let mut state = self.lock();
        let (version, gone, missed) = (state.version + 1, state.gone + 1, state.missed + 1);
        *state = State { version, gone, missed, ..State::default() };
        self.is_known.store(false, Ordering::Release);
        self.is_full.store(false, Ordering::Relaxed);
    }

    /// Takes in the records of an append, which begin at `base_offset` and belong to `segment`. Under the store's writer
    /// lock. What was found of their keys must still hold.
    pub(crate) fn push(
        &self,
        segment: Offset,
        base_offset: Offset,
        terms: &BatchTerms,
        (revisions, places): (&[Revision], &mut Places),
    ) {
        let mut state = self.lock();
        if !state.is_known {
            state.missed += 1;
            return;
        }
        if !terms.keys().uses().is_empty() {
            state.version += 1;
            state.settled.note_use();
        }
        let gone = state.gone;
        let map = state.map(segment);
        let mut map = map.write().expect("no panic under this lock");
        let places = places.of((segment, gone), terms.keys());
        map.push_keys(base_offset, terms.keys(), revisions, places);
        map.push_others(base_offset, terms.others());
        self.is_full.store(map.memory_bytes() > MAP_BYTES_MAX, Ordering::Relaxed);
    }

    /// The same of a batch that was read back. Where this build lacks its codec nothing is known any more: who needs the terms
    /// is told that when they are gathered.
    pub(crate) fn push_batch(&self, topic: &TopicInner, segment: Offset, bytes: &bytes::Bytes) {
        let mut state = self.lock();
        if !state.is_known {
            state.missed += 1;
            return;
        }
        state.version += 1;
        let header = BatchHeader::decode(bytes, topic.seed).expect("the tail holds intact batches only");
        let map = state.map(segment);
        let mut map = map.write().expect("no panic under this lock");
        match Batch::trusted(header, bytes.clone()) {
            Ok(batch) => map.push_batch(&batch),
            Err(BodyProblem::CodecUnavailable(_)) => {
                drop((map, state));
                self.forget();
            }
            Err(BodyProblem::Invalid(_)) => map.push_unread(header.base_offset..header.next_offset()),
        }
    }

    /// In a topic in memory: the segment that a record at `offset` counts to.
    pub(crate) fn segment_in_memory(&self, offset: Offset) -> Offset {
        let state = self.lock();
        let last = state.maps.back().map(|(base, _)| *base);
        last.filter(|base| offset - *base < RECORDS_IN_MEMORY && !self.is_full()).unwrap_or(offset)
    }

    /// Drops the maps of records that lie below `offset`: of a topic in memory.
    pub(crate) fn drop_below(&self, offset: Offset) {
        let mut state = self.lock();
        while state.maps.get(1).is_some_and(|(base, _)| *base <= offset) {
            state.maps.pop_front();
            state.gone += 1;
        }
    }
}

impl TopicInner {
    /// Makes the recent terms known, if they are not. Reads the active segment and the tail.
    pub(crate) fn gather(self: &Arc<Self>) -> Result<()> {
        if self.terms.recent.is_known() {
            return Ok(());
        }
        let _one_at_a_time = self.terms.gathering.lock().expect("no panic under this lock");
        while !self.terms.recent.is_known() {
            self.check_files()?;
            let missed = self.terms.recent.lock().missed;
            // The tail first: what leaves it meanwhile is found in its segment as well, and left out there.
            let (tail, tail_start) = {
                let tail = self.tail();
                (tail.batches().cloned().collect::<Vec<_>>(), tail.first_offset())
            };
            let segments = self.segments();
            // One before the last is trimmed and only could not be removed.
            let unsealed = segments.last().filter(|segment| segment.sealed().is_none());
            let sealed_end = segments.iter().filter(|segment| segment.sealed().is_some());
            let sealed_end = sealed_end.map(|segment| segment.next_offset()).max().unwrap_or(Offset::ZERO);
            let from = unsealed.map_or(sealed_end, |segment| segment.base_offset);
            let mut state = State { from, ..State::default() };
            if let Some(segment) = unsealed {
                let map = state.map(segment.base_offset);
                let mut map = map.write().expect("no panic under this lock");
                self.each_batch(segment, |found| match found {
                    Ok(batch) if batch.base_offset() < tail_start => map.push_batch(batch),
                    Ok(_) => {}
                    Err(unread) => map.push_unread(unread.start..unread.end.min(tail_start)),
                })?;
            }
            for batch in tail.iter().filter(|batch| batch.base_offset >= from) {
                let header =
                    BatchHeader::decode(&batch.bytes, self.seed).expect("the tail holds intact batches only");
                let map = state.map(batch.segment);
                let mut map = map.write().expect("no panic under this lock");
                match Batch::trusted(header, batch.bytes.clone()) {
                    Ok(decoded) => map.push_batch(&decoded),
                    Err(BodyProblem::CodecUnavailable(codec)) => {
                        return Err(Error::CodecUnavailable { codec: codec.name() });
                    }
                    Err(BodyProblem::Invalid(_)) => map.push_unread(header.base_offset..header.next_offset()),
                }
            }
            let mut known = self.terms.recent.lock();
            if known.missed == missed {
                let (version, gone) = (known.version + 1, known.gone + 1);
                *known = State { is_known: true, version, gone, missed, ..state };
                self.terms.recent.is_known.store(true, Ordering::Release);
            }
        }
        Ok(())
    }

    /// Whether the recent terms, which begin at `from`, are all there ever were: as far as that is known without a look at
    /// the disk.
    pub(crate) fn has_nothing_below(&self, from: Offset) -> bool {
        self.is_in_memory()
            || (self.segments().iter().all(|segment| segment.base_offset >= from)
                && self.is_past_known_empty())
    }

    /// Writes the indexes of segments that were sealed since, and lets go of their terms in memory. What cannot be written
    /// is made from the segment when it is needed: no append fails for it.
    pub(crate) fn settle_terms(&self) {
        if !self.terms.is_due.swap(false, Ordering::AcqRel) {
            return;
        }
        match self.terms.gathering.try_lock() {
            Ok(_one_at_a_time) => self.settle_all(),
            Err(_) => self.terms.is_due.store(true, Ordering::Release),
        }
    }

    /// The same, and waits for whoever is at it.
    pub(crate) fn settle_terms_now(&self) {
        let _one_at_a_time = self.terms.gathering.lock().expect("no panic under this lock");
        self.settle_all();
    }

    fn settle_all(&self) {
        let recent = &self.terms.recent;
        // In one look: of what is forgotten in between nothing would be there, which is not to say that it has no terms.
        while let Some((from, maps)) = recent.known().map(|state| (state.from, state.maps.clone())) {
            let segments = self.segments();
            let is_next = |segment: &&Arc<Segment>| segment.base_offset >= from && segment.sealed().is_some();
            let Some(segment) = segments.iter().find(is_next) else { return };
            // Maps of segments that were trimmed before they were written come before it; one without terms has none.
            let of_segment = maps.iter().find(|(base, _)| *base == segment.base_offset);
            let map = of_segment.map(|(_, map)| Arc::clone(map)).unwrap_or_default();
            let keys = {
                let map = read(&map);
                self.put_terms(segment, &map);
                self.key_table(&map)
            };
            let mut state = recent.lock();
            if state.is_known && state.from == from {
                state.from = segment.next_offset();
                while state.maps.front().is_some_and(|(base, _)| *base < segment.next_offset()) {
                    state.maps.pop_front();
                }
                state.gone += 1;
                let keys = keys.filter(|_| !self.is_deleted.load(Ordering::Acquire));
                let gone = state.settled.push(segment.base_offset..segment.next_offset(), keys);
                drop(state);
                drop((gone, maps));
            }
        }
    }

    /// The table of a segment's keys. If there is no room for it, older ones of this topic make some.
    fn key_table(&self, map: &TermMap) -> Option<KeyTable> {
        loop {
            match KeyTable::new(map, &self.context.settled_budget) {
                Ok(table) => return Some(table),
                Err(NoTable::Unknown) => return None,
                Err(NoTable::NoRoom) => {
                    let oldest = self.terms.recent.lock().settled.take_oldest();
                    // Dropped here, where no lock is held.
                    oldest?;
                }
            }
        }
    }

    /// Lets go of what is kept for those who append: the topic is deleted.
    pub(crate) fn drop_settled(&self) {
        let gone = self.terms.recent.lock().settled.take_all();
        drop(gone);
    }

    /// The same if nobody has appended for a while. To be called now and then.
    pub(crate) fn age_settled(&self, now: Instant) {
        let gone = self.terms.recent.lock().settled.age(now);
        drop(gone);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Durability, Record, Store, StoreSettings, TopicSettings};

    /// Its keys were held for damaged, and what is damaged is answered with guesses and doubts.
    #[cfg(not(feature = "zstd"))]
    #[test]
    fn a_batch_of_a_codec_that_this_build_lacks_is_not_taken_for_damaged() {
        let dir = tempfile::tempdir().unwrap();
        let topic = Store::open(dir.path()).unwrap().topic_or_create("t").unwrap();
        topic.append(&[Record::keyed("k", "x")]).unwrap();
        let inner = &topic.inner;
        let mut bytes = inner.tail().batches().next().unwrap().bytes.to_vec();
        let header = BatchHeader::decode(&bytes, inner.seed).unwrap();
        // As in the drawing of a batch: Zstandard, and the checksum over it.
        bytes[45] = 2;
        let sum = crate::format::crc(inner.seed, &bytes[4..header.body_at()]);
        bytes[..4].copy_from_slice(&sum.to_le_bytes());
        assert!(inner.terms.recent.is_known());
        inner.terms.recent.push_batch(inner, Offset(0), &bytes.into());
        assert!(!inner.terms.recent.is_known());
        assert_eq!(topic.append(&[Record::keyed("k", "y")]).unwrap().revisions, [Revision(1)]);
    }

    /// What was forgotten between two looks of the one who settles was taken for a segment without terms: its index was
    /// written empty, readers did not find its records any more, and revisions went back.
    #[test]
    fn what_is_forgotten_while_it_is_settled_is_not_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let settings = StoreSettings { background: false, ..StoreSettings::default() };
        let store = Store::builder().settings(settings).open(dir.path()).unwrap();
        let settings = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
        let topic = store.create_topic("t", settings).unwrap();
        let is_done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut pause: u32 = 1;
                while !is_done.load(Ordering::Relaxed) {
                    topic.inner.terms.recent.forget();
                    pause = pause.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                    (0..pause >> 17).for_each(|_| std::hint::spin_loop());
                }
            });
            let mut given: Vec<u64> = Vec::new();
            let mut fault = None;
            for number in 0..10_000_u64 {
                // None of a key in the segment that is being filled.
                let record = Record::keyed(format!("key-{}", number % 5), "x".repeat(2000));
                let appended = topic.append_with(&[record], Durability::Accepted);
                let written = topic.inner.flush_below(topic.log_end_offset());
                match (appended, written) {
                    (Ok(appended), Ok(())) => given.extend(appended.revisions.iter().map(|one| one.0)),
                    outcome => panic!("{outcome:?}"),
                }
                if number % 64 == 0 {
                    topic.trim(topic.high_watermark()).unwrap();
                }
                fault = given.last().copied().filter(|last| *last != number / 5).map(|last| (number, last));
                if fault.is_some() {
                    break;
                }
            }
            is_done.store(true, Ordering::Relaxed);
            assert_eq!(fault, None);
        });
    }
}
