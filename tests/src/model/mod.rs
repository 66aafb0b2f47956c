//! What a store should hold: a plain model in memory, and the ways to hold a store against it.
//!
//! The model keeps the state that is known to be synced, the state as it is now, and between the two the events
//! in the store's order. Durability is a prefix property over the whole store, so after a power cut there must be
//! a number of events that, applied to the synced state, give what the store shows: [`Model::settle`] looks for it.
//!
//! | Module | What it does |
//! |---|---|
//! | [`verify`] | compares a store with a state, through every way to read |
//! | [`run`] | random sequences of operations against the model |
//! | [`repeats`] | appends that are applied once |
//! | `snapshots` | snapshots of streams |
//! | `conditions` | appends under conditions |
//! | [`compaction`] | which records compaction takes out |
//! | [`erasure`] | sealed payloads, and destroying their keys |

pub mod compaction;
mod conditions;
pub mod erasure;
pub mod repeats;
pub mod run;
mod snapshots;
mod steps;
pub mod verify;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quipu_storage::clock::Clock;
use quipu_storage::{
    Appended, Offset, Record, RecordView, Revision, Storage, Store, Timestamp, Topic, TopicSettings, Uid,
};

/// What a check answers: nothing to complain of, or what is wrong.
pub type Check<T = ()> = Result<T, String>;

/// Leaves the function with a complaint unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($message:tt)+) => {
        if !$condition {
            return Err(format!($($message)+));
        }
    };
}

/// A clock that stands still until it is moved.
#[derive(Debug)]
pub struct TestClock(AtomicU64);

impl TestClock {
    /// Shows this many milliseconds.
    pub fn at(millis: u64) -> Arc<Self> {
        Arc::new(Self(AtomicU64::new(millis)))
    }

    /// Shows another time from now on.
    pub fn set(&self, millis: u64) {
        self.0.store(millis, Ordering::Relaxed);
    }

    /// What it shows, in milliseconds.
    pub fn millis(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Clock for TestClock {
    fn now(&self) -> Timestamp {
        Timestamp(self.millis())
    }
}

/// A record that was sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its encoding.
    pub bytes: Vec<u8>,
    /// When it was appended, once that is known.
    pub time: Option<u64>,
    /// Whose data its payload is, if it is sealed.
    pub sealed: Option<erasure::Sealed>,
}

/// The encodings of records, as the model keeps them.
pub fn expected(records: &[Record], time: Option<u64>) -> Vec<Arc<Expected>> {
    let encode = |record: &Record| {
        let mut bytes = Vec::with_capacity(record.encoded_bytes());
        record.encode(&mut bytes);
        Arc::new(Expected { bytes, time, sealed: erasure::Sealed::new(record) })
    };
    records.iter().map(encode).collect()
}

/// A topic as it should be.
#[derive(Clone, Debug)]
pub struct ModelTopic {
    /// Unknown if the power went while the topic was created.
    pub uid: Option<Uid>,
    /// Its settings.
    pub settings: TopicSettings,
    /// Offset of the first of `records`: 0, but for a topic in memory after a restart.
    pub base: u64,
    /// The first offset that can be read.
    pub log_start: u64,
    /// Every record since `base`, trimmed or not, compacted away or not.
    pub records: Vec<Arc<Expected>>,
    /// Offsets that compaction has taken out.
    pub gone: BTreeSet<u64>,
    /// Those that a run of compaction takes out which may not have come to its end.
    pub going: BTreeSet<u64>,
    /// What became of sealed payloads.
    pub erasure: erasure::Erasure,
}

impl ModelTopic {
    /// The next offset.
    pub fn log_end(&self) -> u64 {
        self.base + self.records.len() as u64
    }

    /// Whether it is a topic in memory.
    pub fn is_in_memory(&self) -> bool {
        matches!(self.settings.storage, Storage::Memory { .. })
    }

    /// The record at `offset`, which must have been written since the last restart.
    pub fn record(&self, offset: u64) -> &Expected {
        &self.records[usize::try_from(offset - self.base).expect("a 64-bit machine")]
    }

    /// The offsets of the records of each key, trimmed and compacted ones as well: the place of each is its revision.
    pub fn streams(&self) -> BTreeMap<Vec<u8>, Vec<u64>> {
        let mut streams: BTreeMap<Vec<u8>, Vec<u64>> = BTreeMap::new();
        for (offset, record) in (self.base..).zip(&self.records) {
            let view = RecordView::decode(&record.bytes).expect("the model encoded it");
            if let Some(key) = view.key {
                streams.entry(key.to_vec()).or_default().push(offset);
            }
        }
        streams
    }

    /// Whether compaction has left nothing in a range of offsets.
    pub fn is_empty_in(&self, mut offsets: std::ops::Range<u64>) -> bool {
        offsets.all(|offset| self.gone.contains(&offset))
    }

    /// The time of the last append, if it is known.
    pub fn last_time(&self) -> Option<u64> {
        self.records.last().map_or(Some(0), |record| record.time)
    }
}

/// Every topic, by name.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// The topics.
    pub topics: BTreeMap<String, ModelTopic>,
    /// What is known of appends that can be repeated.
    pub known: repeats::Known,
    /// Erasure keys that were destroyed.
    pub erased: Arc<BTreeSet<String>>,
}

/// A change of the store. What is one event happens as a whole or not at all.
#[derive(Clone, Debug)]
pub enum Event {
    /// A topic was created.
    Created {
        /// Its name.
        name: String,
        /// Its uid, if the creation was acknowledged.
        uid: Option<Uid>,
        /// Its settings.
        settings: TopicSettings,
    },
    /// A topic got other settings.
    Altered {
        /// Its name.
        name: String,
        /// The new settings.
        settings: TopicSettings,
    },
    /// A topic was deleted.
    Deleted {
        /// Its name.
        name: String,
    },
    /// Records were removed from a topic's beginning.
    Trimmed {
        /// Its name.
        name: String,
        /// Where the log starts now.
        to: u64,
    },
    /// Records were appended, to one topic or more.
    Appended {
        /// For each topic its name and the records.
        parts: Vec<(String, Vec<Arc<Expected>>)>,
    },
    /// Records were appended under a name, so that they are appended once.
    Once {
        /// The append.
        event: Box<Event>,
        /// What was sent and answered.
        sent: Arc<repeats::Sent>,
    },
    /// A producer was forgotten.
    Forgotten {
        /// Its name.
        name: String,
    },
    /// Compaction began to take records out. It goes on from segment to segment, so what a crash leaves of it is
    /// found out by looking.
    Compacting {
        /// Its name.
        name: String,
        /// What goes.
        offsets: Vec<u64>,
    },
    /// Compaction came to its end: what was to go is gone.
    Compacted {
        /// Its name.
        name: String,
    },
    /// Compaction has taken sealed bytes out whose key was destroyed.
    Reclaimed {
        /// The topic's name.
        name: String,
        /// Of these records.
        offsets: Vec<u64>,
    },
    /// Erasure keys were destroyed.
    Erased {
        /// Their names.
        erasure_keys: Vec<String>,
    },
}

impl State {
    /// Applies an event.
    pub fn apply(&mut self, event: &Event) {
        match event {
            Event::Created { name, uid, settings } => {
                let topic = ModelTopic {
                    uid: *uid,
                    settings: settings.clone(),
                    base: 0,
                    log_start: 0,
                    records: Vec::new(),
                    gone: BTreeSet::new(),
                    going: BTreeSet::new(),
                    erasure: erasure::Erasure::of(self),
                };
                self.topics.insert(name.clone(), topic);
            }
            Event::Altered { name, settings } => {
                if let Some(topic) = self.topics.get_mut(name) {
                    topic.settings = settings.clone();
                }
            }
            Event::Deleted { name } => {
                self.topics.remove(name);
            }
            Event::Trimmed { name, to } => {
                if let Some(topic) = self.topics.get_mut(name) {
                    topic.log_start = topic.log_start.max(*to);
                }
            }
            Event::Compacting { name, offsets } => {
                if let Some(topic) = self.topics.get_mut(name) {
                    topic.going.extend(offsets);
                }
            }
            Event::Compacted { name } => {
                if let Some(topic) = self.topics.get_mut(name) {
                    topic.gone.append(&mut topic.going);
                }
            }
            Event::Reclaimed { name, offsets } => self.reclaim(name, offsets),
            Event::Erased { erasure_keys } => self.erase(erasure_keys),
            Event::Once { event, sent } => {
                self.apply(event);
                self.known.take(sent);
            }
            Event::Forgotten { name } => self.known.forget(name),
            Event::Appended { parts } => {
                for (name, records) in parts {
                    if let Some(topic) = self.topics.get_mut(name) {
                        topic.records.extend(records.iter().cloned());
                    }
                }
            }
        }
    }

    /// Whether the store has these topics, with these bounds and settings. What they hold is not looked at, and not
    /// where topics in memory stand.
    fn fits(&self, store: &Store) -> bool {
        let topics = store.topics();
        topics.len() == self.topics.len()
            && self.known.fits(store)
            && topics.iter().all(|topic| {
                self.topics.get(topic.name().as_str()).is_some_and(|expected| {
                    expected.uid.is_none_or(|uid| uid == topic.uid())
                        && expected.settings == topic.settings()
                        && (expected.is_in_memory()
                            || topic.log_start_offset().0 == expected.log_start
                                && topic.log_end_offset().0 == expected.log_end())
                })
            })
    }

    /// The bounds of every topic, for complaints.
    fn bounds(&self) -> String {
        let bound = |(name, topic): (&String, &ModelTopic)| {
            format!("{name}: {}..{}", topic.log_start, topic.log_end())
        };
        self.topics.iter().map(bound).collect::<Vec<_>>().join(", ")
    }
}

/// How a store was left before it was opened again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// By [`Store::close`].
    Closed,
    /// The process was killed.
    Killed,
    /// The power went.
    PowerCut,
}

/// See the [module](self).
#[derive(Clone, Debug, Default)]
pub struct Model {
    /// What survives a power cut.
    pub synced: State,
    /// What is there now.
    pub current: State,
    /// What leads from the one to the other.
    pending: VecDeque<Event>,
    /// Number of the first pending event.
    first_pending: u64,
    /// What comes before this event survives a killed process.
    written_before: u64,
    /// Of each topic in memory, one past the last offset that was acknowledged or shown: none of them is given again.
    given: HashMap<Uid, u64>,
}

impl Model {
    /// Takes an event in; it may not be synced yet. Returns its number.
    pub fn push(&mut self, event: Event) -> u64 {
        self.current.apply(&event);
        self.pending.push_back(event);
        self.first_pending + self.pending.len() as u64 - 1
    }

    /// Checks an append that was answered: offsets and times must be what they have to be. Answers what happened.
    pub fn check_append(
        &self,
        parts: &[(String, Vec<Record>)],
        appended: &[Appended],
        now: u64,
    ) -> Check<Event> {
        ensure!(parts.len() == appended.len(), "{} answers for {} topics", appended.len(), parts.len());
        let mut pushed = Vec::new();
        for ((name, records), appended) in parts.iter().zip(appended) {
            let topic = self.current.topics.get(name).ok_or("an append to a topic that is not there")?;
            let (first, next, time) =
                (appended.first_offset.0, appended.next_offset.0, appended.append_time.0);
            ensure!(first == topic.log_end(), "{name}: offset {first} given, {} was next", topic.log_end());
            ensure!(next == first + records.len() as u64, "{name}: {first}..{next} for {}", records.len());
            match topic.last_time() {
                Some(last) if !topic.is_in_memory() => {
                    ensure!(time == last.max(now), "{name}: time {time} at {now} after {last}");
                }
                last => ensure!(time >= last.unwrap_or(0).max(now), "{name}: time {time} at {now}"),
            }
            // In a topic in memory a key whose records are gone begins anew.
            if !topic.is_in_memory() {
                let mut counts: BTreeMap<_, _> =
                    topic.streams().into_iter().map(|(key, offsets)| (key, offsets.len() as u64)).collect();
                let next = |key: &Vec<u8>| {
                    let count = counts.entry(key.clone()).or_default();
                    *count += 1;
                    Revision(*count - 1)
                };
                let revisions: Vec<_> =
                    records.iter().filter_map(|record| record.key.as_ref()).map(next).collect();
                ensure!(
                    appended.revisions == revisions,
                    "{name}: {:?}, not {revisions:?}",
                    appended.revisions
                );
            }
            pushed.push((name.clone(), expected(records, Some(time))));
        }
        Ok(Event::Appended { parts: pushed })
    }

    /// One past the number of the last event.
    pub fn next_event(&self) -> u64 {
        self.first_pending + self.pending.len() as u64
    }

    /// Everything before event `number` is in the page cache at least.
    pub fn write_before(&mut self, number: u64) {
        self.written_before = self.written_before.max(number);
    }

    /// Everything before event `number` is synced.
    pub fn sync_before(&mut self, number: u64) {
        while self.first_pending < number
            && let Some(event) = self.pending.pop_front()
        {
            self.synced.apply(&event);
            self.first_pending += 1;
        }
    }

    /// Everything is synced.
    pub fn sync(&mut self) {
        self.sync_before(u64::MAX);
    }

    /// How many events are pending.
    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// What the store shows to readers of synced records counts as acknowledged: takes note of it, and checks that all
    /// topics show the store at one and the same moment.
    pub fn observe(&mut self, store: &Store) -> Check {
        let topics = store.topics();
        ensure!(
            topics.len() == self.current.topics.len(),
            "{} topics, not {}",
            topics.len(),
            self.current.topics.len()
        );
        self.sync_shown(&topics);
        let stats = store.stats();
        self.check_bounds(&topics, stats.synced_position == stats.journal_position)
    }

    /// What readers of synced records have seen counts as acknowledged.
    pub fn sync_shown(&mut self, topics: &[Topic]) {
        loop {
            let is_ahead = topics.iter().any(|topic| {
                let synced = self.synced.topics.get(topic.name().as_str());
                !synced.is_some_and(ModelTopic::is_in_memory)
                    && topic.high_watermark().0 > synced.map_or(0, ModelTopic::log_end)
            });
            if !is_ahead || self.pending.is_empty() {
                break;
            }
            self.sync_before(self.first_pending + 1);
        }
    }

    fn check_bounds(&mut self, topics: &[Topic], is_all_synced: bool) -> Check {
        for topic in topics {
            let name = topic.name().as_str();
            let current = self.current.topics.get(name).ok_or_else(|| format!("there is a topic {name}"))?;
            let (start, high, end) =
                (topic.log_start_offset().0, topic.high_watermark().0, topic.log_end_offset().0);
            ensure!(end == current.log_end(), "{name}: log end {end}, not {}", current.log_end());
            let synced = self.synced.topics.get(name).map_or(0, ModelTopic::log_end);
            if current.is_in_memory() {
                // It may wait for offsets that are set aside.
                let is_shown = high == end || !is_all_synced && high >= synced && high < end;
                ensure!(is_shown, "{name}: high watermark {high} of a topic in memory, {synced} to {end}");
                self.given.insert(topic.uid(), high);
                ensure!(start >= current.log_start && start <= end, "{name}: log start {start}");
                self.observe_memory(name, start)?;
                continue;
            }
            ensure!(start == current.log_start, "{name}: log start {start}, not {}", current.log_start);
            ensure!(high == synced, "{name}: high watermark {high}, but {synced} is synced");
        }
        Ok(())
    }

    /// The oldest records of a topic in memory go when they take too much.
    fn observe_memory(&mut self, name: &str, start: u64) -> Check {
        let Some(topic) = self.current.topics.get_mut(name) else { return Ok(()) };
        if let Storage::Memory { bytes_max } = topic.settings.storage
            && start > topic.log_start
        {
            // A batch header for each record, and what sealing it adds, is more than there can be.
            let bytes: u64 = topic.records.iter().map(|record| record.bytes.len() as u64 + 64 + 32).sum();
            ensure!(bytes > bytes_max, "{name}: records went although {bytes} bytes fit");
            topic.log_start = start;
        }
        Ok(())
    }

    /// The store was opened again: finds out which of the pending events are left, and goes on from there. Returns how
    /// many were lost. What a store shows after it was opened is synced.
    pub fn settle(&mut self, store: &Store, ending: Ending) -> Check<usize> {
        let mut state = self.synced.clone();
        let mut events = self.pending.iter();
        let mut left = 0;
        // The last state that fits: several do if events between them change nothing that lasts.
        let mut found = state.fits(store).then(|| (0, state.clone()));
        for event in events.by_ref() {
            state.apply(event);
            left += 1;
            if state.fits(store) {
                found = Some((left, state.clone()));
            }
        }
        let shown = || {
            let bound = |topic: &Topic| {
                format!("{}: {}..{}", topic.name(), topic.log_start_offset(), topic.log_end_offset())
            };
            store.topics().iter().map(bound).collect::<Vec<_>>().join(", ")
        };
        let Some((left, mut state)) = found else {
            return Err(format!(
                "after {ending:?} the store shows [{}], which is no prefix of what was sent: synced [{}], then {} \
                 events to [{}]",
                shown(),
                self.synced.bounds(),
                self.pending.len(),
                self.current.bounds()
            ));
        };
        let lost = self.pending.len() - left;
        let is_allowed = match ending {
            Ending::Closed => lost == 0,
            // What was only accepted was in memory.
            Ending::Killed => lost == 0 || self.first_pending + left as u64 >= self.written_before,
            Ending::PowerCut => true,
        };
        ensure!(
            is_allowed,
            "{lost} events lost although the store was {ending:?}: it shows [{}], not [{}]",
            shown(),
            self.current.bounds()
        );
        for topic in store.topics() {
            let name = topic.name().as_str();
            let Some(kept) = state.topics.get_mut(name) else { continue };
            kept.uid = Some(topic.uid());
            ensure!(
                topic.high_watermark() == topic.log_end_offset(),
                "{name}: not all is visible after opening"
            );
            if kept.is_in_memory() {
                let end = topic.log_end_offset().0;
                ensure!(topic.log_start_offset().0 == end, "{name}: a topic in memory is not empty");
                let given = self.given.get(&topic.uid()).copied().unwrap_or(0);
                ensure!(end >= given, "{name}: goes on at {end}, but {given} offsets were given");
                kept.base = end;
                kept.log_start = end;
                kept.records.clear();
            }
            compaction::settle(&topic, kept)?;
        }
        self.given.clear();
        self.first_pending += self.pending.len() as u64;
        self.pending.clear();
        self.current = state.clone();
        self.synced = state;
        Ok(lost)
    }
}

/// An offset past every other.
pub(crate) const END: Offset = Offset::MAX;
