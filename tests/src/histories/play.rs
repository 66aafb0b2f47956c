//! Makes a history: threads that append under conditions and read, on a disk whose power goes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use quipu_storage::{
    Append, ExpectedRevision, Offset, Revision, Start, Store, StoreSettings, StoredRecord, StreamStart,
    Submission, Ticket, Topic, TopicSettings,
};

use super::checker::{Made, check};
use super::model::{Answer, Call, Expected, Written, key, with_tag};
use crate::ensure;
use crate::faulty::FaultyDisk;
use crate::model::Check;
use crate::model::run::settings;
use crate::rng::Rng;
use crate::sim::SimDisk;

const STORE: &str = "/store";
const TOPIC: &str = "t";
const KEYS: u64 = 3;
const TAGS: u64 = 3;

/// What histories had in them.
#[derive(Clone, Copy, Debug, Default)]
pub struct Coverage {
    /// Histories.
    pub histories: u64,
    /// Appends that were acknowledged.
    pub appended: u64,
    /// Appends whose conditions did not hold.
    pub failed: u64,
    /// Calls that may have happened or not.
    pub unknown: u64,
    /// Of those, the ones that have.
    pub unknown_applied: u64,
    /// Reads that were answered.
    pub reads: u64,
    /// Losses of power.
    pub power_cuts: u64,
    /// Deaths of the process.
    pub kills: u64,
}

impl Coverage {
    /// Adds what another one has.
    pub fn add(&mut self, other: &Self) {
        self.histories += other.histories;
        self.appended += other.appended;
        self.failed += other.failed;
        self.unknown += other.unknown;
        self.unknown_applied += other.unknown_applied;
        self.reads += other.reads;
        self.power_cuts += other.power_cuts;
        self.kills += other.kills;
    }

    /// Complains if too little has happened for anything to be proven.
    ///
    /// # Errors
    /// What is too little.
    pub fn check(&self) -> Check {
        let histories = self.histories;
        ensure!(self.appended > 5 * histories, "too few appends: {self:?}");
        ensure!(self.failed > 5 * histories, "too few conditions failed: {self:?}");
        ensure!(self.reads > 5 * histories, "too few reads: {self:?}");
        ensure!(self.unknown > histories / 2, "too few calls in doubt: {self:?}");
        ensure!(self.unknown_applied > histories / 20, "too few calls in doubt happened: {self:?}");
        ensure!(self.unknown_applied < self.unknown, "all calls in doubt happened: {self:?}");
        ensure!(self.power_cuts > histories / 4, "too few power cuts: {self:?}");
        ensure!(self.kills > histories / 4, "too few kills: {self:?}");
        Ok(())
    }
}

/// Makes the history of this seed, as far as threads can be made to do the same again, and checks it.
///
/// # Errors
/// That no order explains it, or that the store could not be used.
pub fn history(seed: u64) -> Check<Coverage> {
    let mut rng = Rng::new(seed);
    let mut coverage = Coverage { histories: 1, ..Coverage::default() };
    let notes = Notes::default();
    let mut sim = SimDisk::new();
    let last = rng.within(1..4);
    for life in 0..=last {
        let disk = FaultyDisk::over_sim(sim.clone());
        let (store, topic) = open(&disk, &mut rng).map_err(|error| format!("open: {error}"))?;
        // What recovery left is what there is.
        notes.call(&topic, Call::All);
        if life < last {
            sim.halt_at(sim.ops() + rng.within(1..120));
            live(&disk, &topic, &notes, &mut rng);
            let is_power_cut = rng.chance(50);
            sim = if is_power_cut { sim.crash(&mut rng) } else { sim.after_kill() };
            coverage.power_cuts += u64::from(is_power_cut);
            coverage.kills += u64::from(!is_power_cut);
        }
        drop((topic, store));
    }
    let history = notes.into_history();
    check(&history)?;
    count(&history, &mut coverage);
    Ok(coverage)
}

fn open(disk: &FaultyDisk, rng: &mut Rng) -> quipu_storage::Result<(Store, Topic)> {
    let settings = StoreSettings { background: rng.chance(50), ..settings() };
    let store = Store::builder().disk(Arc::new(disk.clone())).settings(settings).open(STORE)?;
    let topic = match store.topic(TOPIC) {
        Ok(topic) => topic,
        Err(_) => {
            let small = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
            store.create_topic(TOPIC, small)?
        }
    };
    Ok((store, topic))
}

/// Some threads do some calls each, until the power goes, while syncs take their time.
fn live(disk: &FaultyDisk, topic: &Topic, notes: &Notes, rng: &mut Rng) {
    let threads = rng.within(2..5);
    let calls = rng.within(2..8);
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let weather = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                disk.hold_syncs();
                (0..20).for_each(|_| thread::yield_now());
                disk.let_syncs_go();
                (0..5).for_each(|_| thread::yield_now());
            }
        });
        let workers: Vec<_> = (0..threads)
            .map(|_| {
                let mut rng = Rng::new(rng.next_u64());
                scope.spawn(move || {
                    let mut knowledge = Knowledge::default();
                    for _ in 0..calls {
                        let call = knowledge.call(&mut rng);
                        match notes.call(topic, call) {
                            Some((call, answer)) => knowledge.learn(&call, &answer),
                            // The power is gone.
                            None => break,
                        }
                        if rng.chance(10) {
                            // It fails with the disk.
                            let _ = topic.store().checkpoint();
                        }
                    }
                })
            })
            .collect();
        for worker in workers {
            worker.join().expect("no call panics");
        }
        is_over.store(true, Ordering::Relaxed);
        weather.join().expect("it only waits");
    });
}

/// What a thread believes of the topic.
#[derive(Default)]
struct Knowledge {
    last_revisions: [Option<u64>; KEYS as usize],
    next_offset: u64,
}

impl Knowledge {
    fn call(&self, rng: &mut Rng) -> Call {
        let (key, tag) = (small(rng, KEYS), small(rng, TAGS));
        // Often one that nobody can have written meanwhile.
        let behind = rng.chance(80).then(|| self.next_offset.saturating_sub(1));
        match rng.below(10) {
            0 => Call::LastRevision(key),
            1 => Call::FirstWithTag(tag, behind),
            2 => Call::Stream(key),
            3 => Call::All,
            _ => {
                let count = rng.within(1..3);
                let written =
                    (0..count).map(|_| Written { key: small(rng, KEYS), tag: small(rng, TAGS) }).collect();
                let count = *rng.choose(&[0, 1, 1, 1, 2, 3]);
                Call::Append(written, (0..count).map(|_| self.expected(rng, behind)).collect())
            }
        }
    }

    fn expected(&self, rng: &mut Rng, behind: Option<u64>) -> Expected {
        let (key, tag) = (small(rng, KEYS), small(rng, TAGS));
        let revision = match self.last_revisions[usize::from(key)] {
            _ if rng.chance(5) => ExpectedRevision::Any,
            Some(_) if rng.chance(20) => ExpectedRevision::Exists,
            Some(revision) => ExpectedRevision::Exact(Revision(revision)),
            None => ExpectedRevision::NoStream,
        };
        match rng.below(8) {
            0 => Expected::NextOffset(self.next_offset),
            1 => Expected::NoTag(tag, behind),
            2 => Expected::NoTagAndHeader(tag, behind),
            _ => Expected::Revision(key, revision),
        }
    }

    fn learn(&mut self, call: &Call, answer: &Answer) {
        use super::model::Actual;
        match (call, answer) {
            (Call::Append(written, _), Answer::Appended(first_offset, revisions)) => {
                for (written, revision) in written.iter().zip(revisions) {
                    self.last_revisions[usize::from(written.key)] = Some(*revision);
                }
                self.next_offset = first_offset + written.len() as u64;
            }
            (Call::Append(_, expected), Answer::Failed(failed)) => {
                for (number, actual) in failed {
                    match (expected[*number], actual) {
                        (Expected::Revision(key, _), Actual::Revision(actual)) => {
                            self.last_revisions[usize::from(key)] = *actual;
                        }
                        (_, Actual::NextOffset(actual)) => self.next_offset = *actual,
                        (_, Actual::Match(offset)) => self.next_offset = self.next_offset.max(offset + 1),
                        _ => {}
                    }
                }
            }
            (Call::LastRevision(key), Answer::LastRevision(last)) => {
                self.last_revisions[usize::from(*key)] = *last;
            }
            (Call::All, Answer::Records(records)) => self.next_offset = records.len() as u64,
            _ => {}
        }
    }
}

fn small(rng: &mut Rng, bound: u64) -> u8 {
    u8::try_from(rng.below(bound)).expect("a small bound")
}

/// Where calls are written down.
#[derive(Default)]
struct Notes {
    moment: AtomicU64,
    calls: Mutex<Vec<Made>>,
}

impl Notes {
    fn now(&self) -> u64 {
        self.moment.fetch_add(1, Ordering::SeqCst)
    }

    /// Makes a call and writes it down. Answers nothing if it is not known what came of it, or certain that nothing did.
    fn call(&self, topic: &Topic, call: Call) -> Option<(Call, Answer)> {
        let began = self.now();
        let number = u32::try_from(began).expect("few calls");
        let answer = make(topic, number, &call)?;
        let is_known = answer != Answer::Unknown;
        let ended = if is_known { self.now() } else { u64::MAX };
        let made = Made { number, call: call.clone(), answer: answer.clone(), began, ended };
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).push(made);
        is_known.then_some((call, answer))
    }

    fn into_history(self) -> Vec<Made> {
        self.calls.into_inner().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the call was told; `None` if that was that it has not happened.
fn make(topic: &Topic, number: u32, call: &Call) -> Option<Answer> {
    match call {
        Call::Append(written, expected) => {
            let records: Vec<_> = written.iter().map(|written| written.record(number)).collect();
            let append = Append::new().records(topic, &records).ok()?;
            let append =
                expected.iter().fold(append, |append, expected| append.require(topic, expected.condition()));
            // Some on a thread that must not block, as far as they can.
            let submit = |append| match topic.store().try_submit(append)? {
                Submission::Submitted(ticket) => ticket.wait(),
                Submission::Postponed(postponed) => postponed.begin()?.wait(),
            };
            let outcome = match number % 3 {
                0 => topic.store().append(append),
                1 => topic.store().submit(append).and_then(Ticket::wait),
                _ => submit(append),
            };
            match outcome {
                Ok(appended) => {
                    let revisions = appended[0].revisions.iter().map(|revision| revision.0).collect();
                    Some(Answer::Appended(appended[0].first_offset.0, revisions))
                }
                Err(error) => Answer::of_error(&error),
            }
        }
        Call::LastRevision(of) => {
            let head = topic.stream(key(*of)).ok()?;
            Some(Answer::LastRevision(head.map(|head| head.last_revision.0)))
        }
        Call::FirstWithTag(tag, after) => {
            let first = topic.first_match(&with_tag(*tag), after.map(Offset)).ok()?;
            Some(Answer::First(first.map(|offset| offset.0)))
        }
        Call::Stream(of) => records(topic.read_stream(key(*of), StreamStart::Earliest).ok()?),
        Call::All => records(topic.read(Start::Earliest).ok()?),
    }
}

fn records(records: impl Iterator<Item = quipu_storage::Result<StoredRecord>>) -> Option<Answer> {
    let record = |record: StoredRecord| {
        let call = record.payload()?.try_into().ok()?;
        Some((record.offset().0, record.revision()?.0, u32::from_le_bytes(call)))
    };
    let all: Option<Vec<_>> = records.map(|next| record(next.ok()?)).collect();
    all.map(Answer::Records)
}

fn count(history: &[Made], coverage: &mut Coverage) {
    let last = history.iter().rev().find_map(|made| match &made.answer {
        Answer::Records(records) if made.call == Call::All => Some(records),
        _ => None,
    });
    for made in history {
        match made.answer {
            Answer::Appended(..) => coverage.appended += 1,
            Answer::Failed(_) => coverage.failed += 1,
            Answer::Unknown => {
                coverage.unknown += 1;
                let is_there =
                    |records: &Vec<(u64, u64, u32)>| records.iter().any(|(_, _, call)| *call == made.number);
                coverage.unknown_applied += u64::from(last.is_some_and(is_there));
            }
            _ => coverage.reads += 1,
        }
    }
}
