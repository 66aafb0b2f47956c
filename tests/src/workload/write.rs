//! Does what the plan says, and says so.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use quipu_storage::disk::{Disk, OsDisk};
use quipu_storage::{
    Append, Durability, Error, Offset, Result, Store, StoreSettings, StoreStats, Ticket, Topic,
};

use super::Name;
use super::plan::{Plan, Scenario, Step, store_settings};

/// A run.
#[derive(Debug)]
pub struct Write {
    /// The store's directory.
    pub dir: PathBuf,
    /// What to do.
    pub scenario: Scenario,
    /// With which chance.
    pub seed: u32,
    /// Number of the run; each run in a directory has its own.
    pub run: u16,
    /// How many steps each thread makes.
    pub count: u32,
    /// With which settings.
    pub settings: StoreSettings,
    /// On which disk.
    pub disk: Arc<dyn Disk>,
    /// Whether to close the store at the end, or to leave it as it is.
    pub closes: bool,
}

impl Write {
    /// A run on the real disk, with small files.
    pub fn new(dir: impl Into<PathBuf>, scenario: Scenario, seed: u32, count: u32) -> Self {
        Self {
            dir: dir.into(),
            scenario,
            seed,
            run: 0,
            count,
            settings: store_settings(),
            disk: Arc::new(OsDisk),
            closes: true,
        }
    }
}

/// Runs it; `say` gets each acknowledgement when it holds. Stops at the first error. Answers the store's counters, by
/// which a test knows that what it is about did happen.
///
/// # Errors
/// What the store answered. Everything acknowledged before still holds.
pub fn write(run: &Write, say: &(dyn Fn(&str) + Sync)) -> Result<StoreStats> {
    say(&format!("begin {} {} {}", run.scenario.name(), run.seed, run.run));
    let store = Store::builder().settings(run.settings.clone()).disk(Arc::clone(&run.disk)).open(&run.dir)?;
    for topic in run.scenario.topics() {
        match store.create_topic(topic, run.scenario.topic_settings(topic)) {
            Ok(_) | Err(Error::TopicExists { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    let plan = Plan { scenario: run.scenario, seed: run.seed };
    let writer = |thread| Writer { plan, run: run.run, thread, store: &store, say, flying: VecDeque::new() };
    if run.scenario.threads() == 1 {
        // Here: a tool that counts the calls of each thread then counts all of them.
        writer(0).run(run.count)?;
    } else {
        let outcomes = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..run.scenario.threads())
                .map(|thread| {
                    let mut writer = writer(thread);
                    scope.spawn(move || writer.run(run.count))
                })
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("a writer that panics ends the run"))
                .collect::<Vec<_>>()
        });
        outcomes.into_iter().collect::<Result<()>>()?;
    }
    let stats = store.stats();
    if run.closes {
        store.close()?;
    } else {
        // Whoever asked for this ends the process now.
        std::mem::forget(store);
    }
    Ok(stats)
}

/// One thread.
struct Writer<'a> {
    plan: Plan,
    run: u16,
    thread: u8,
    store: &'a Store,
    say: &'a (dyn Fn(&str) + Sync),
    /// Appends that were submitted and not yet waited for.
    flying: VecDeque<Flying>,
}

struct Flying {
    name: Name,
    durability: Durability,
    parts: Vec<(String, usize)>,
    ticket: Ticket,
}

impl Writer<'_> {
    fn run(&mut self, count: u32) -> Result<()> {
        for step in 0..count {
            let name = Name { run: self.run, thread: self.thread, step };
            let step = self.plan.step(name);
            if !matches!(step, Step::Append { .. }) {
                self.land(0)?;
            }
            self.step(name, step)?;
        }
        self.land(0)
    }

    fn step(&mut self, name: Name, step: Step) -> Result<()> {
        match step {
            Step::Append { durability, parts } => return self.append(name, durability, &parts),
            Step::Trim { topic, keep } => {
                let handle = self.store.topic(topic)?;
                let offset = handle.high_watermark().0.saturating_sub(keep);
                self.say(name, &format!("trims {topic} {offset}"));
                handle.trim(Offset(offset))?;
                self.say(name, &format!("trimmed {topic} {offset}"));
            }
            Step::Checkpoint => {
                self.store.checkpoint()?;
                self.say(name, "done");
            }
            Step::Compact { topic } => {
                if compact(&self.store.topic(topic)?)? {
                    // It has made a checkpoint.
                    self.say(name, "done");
                }
            }
            Step::Create { topic } => {
                self.say(name, &format!("creates {topic}"));
                self.store.create_topic(&topic, self.plan.scenario.topic_settings(&topic))?;
                self.say(name, &format!("created {topic}"));
            }
            Step::Delete { topic } => {
                self.say(name, &format!("deletes {topic}"));
                self.store.delete_topic(&topic)?;
                self.say(name, &format!("deleted {topic}"));
            }
            Step::Alter { topic, segment_bytes_max } => {
                let handle = self.store.topic(topic)?;
                handle.alter(&quipu_storage::TopicSettings { segment_bytes_max, ..handle.settings() })?;
                self.say(name, "done");
            }
        }
        Ok(())
    }

    fn append(
        &mut self,
        name: Name,
        durability: Durability,
        parts: &[(String, Vec<quipu_storage::Record>)],
    ) -> Result<()> {
        let make = || {
            parts.iter().try_fold(Append::new().durability(durability), |append, (topic, records)| {
                append.records(&self.store.topic(topic)?, records)
            })
        };
        let ticket = match self.store.submit(make()?) {
            Err(Error::Overloaded { .. }) => None,
            outcome => Some(outcome?),
        };
        let parts: Vec<_> = parts.iter().map(|(topic, records)| (topic.clone(), records.len())).collect();
        match ticket {
            Some(ticket) => {
                self.flying.push_back(Flying { name, durability, parts, ticket });
                self.land(self.plan.scenario.in_flight() - 1)
            }
            None => {
                // No room for one that does not wait: the ones before go first, then this one waits.
                let append = make()?;
                self.land(0)?;
                let appended = self.store.append(append)?;
                self.acknowledge(name, durability, &parts, &appended);
                Ok(())
            }
        }
    }

    /// Waits for appends, oldest first, until so many are left.
    fn land(&mut self, left: usize) -> Result<()> {
        while self.flying.len() > left {
            let Some(Flying { name, durability, parts, ticket }) = self.flying.pop_front() else { break };
            let appended = ticket.wait()?;
            self.acknowledge(name, durability, &parts, &appended);
        }
        Ok(())
    }

    fn acknowledge(
        &self,
        name: Name,
        durability: Durability,
        parts: &[(String, usize)],
        appended: &[quipu_storage::Appended],
    ) {
        let word = if durability == Durability::Synced { "synced" } else { "written" };
        let mut text = format!("appended {word}");
        for ((topic, count), appended) in parts.iter().zip(appended) {
            assert_eq!(appended.next_offset - appended.first_offset, *count as u64);
            text += &format!(" {topic} {} {count}", appended.first_offset);
        }
        self.say(name, &text);
    }

    fn say(&self, name: Name, text: &str) {
        (self.say)(&format!("{name} {text}"));
    }
}

/// Compacts the topic, unless the store is at it by itself; says whether it did.
fn compact(topic: &Topic) -> Result<bool> {
    match topic.compact() {
        Ok(_) => Ok(true),
        Err(Error::AlreadyRunning { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}
