//! What a run said it had done, and what it was about to do.
//!
//! ```text
//! begin SCENARIO SEED RUN
//! RUN.THREAD.STEP appended synced|written TOPIC FIRST COUNT ...   one triple for each topic
//! RUN.THREAD.STEP trims TOPIC OFFSET       before the call        trimmed TOPIC OFFSET       after it
//! RUN.THREAD.STEP creates TOPIC                                   created TOPIC
//! RUN.THREAD.STEP deletes TOPIC                                   deleted TOPIC
//! RUN.THREAD.STEP done                     a checkpoint: nothing to look for, but durable
//! ```
//!
//! Who reads them through a pipe while the run goes on gets each a little late. That is safe for what was done: less
//! is asked of the store. What was about to be done may have been done by then. It counts only for one who has read to
//! the end: after a kill, not at a power cut.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;

use super::plan::{Plan, Scenario};

/// A step of a thread of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name {
    /// Number of the run in this directory.
    pub run: u16,
    /// Number of the thread.
    pub thread: u8,
    /// Number of the step of this thread.
    pub step: u32,
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.run, self.thread, self.step)
    }
}

impl FromStr for Name {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let nonsense = || format!("{text:?} names no step");
        let mut numbers = text.split('.');
        let mut next = || numbers.next()?.parse::<u32>().ok();
        let (run, thread, step) =
            next().zip(next()).zip(next()).map(|((a, b), c)| (a, b, c)).ok_or_else(nonsense)?;
        Ok(Self {
            run: run.try_into().map_err(|_| nonsense())?,
            thread: thread.try_into().map_err(|_| nonsense())?,
            step,
        })
    }
}

/// An acknowledged append.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Appended {
    pub(super) parts: Vec<(String, u64, u64)>,
}

/// Everything that was said, in a form to be asked.
#[derive(Debug, Default)]
pub struct Acks {
    pub(super) appended: HashMap<Name, Appended>,
    /// In the order they were said, by run and thread; whether each was synced.
    pub(super) order: HashMap<(u16, u8), Vec<(u32, bool)>>,
    /// Highest offset that a trim of the topic was begun for.
    pub(super) trims: HashMap<String, u64>,
    pub(super) trimmed: HashMap<String, u64>,
    pub(super) creates: HashSet<String>,
    pub(super) created: HashSet<String>,
    pub(super) deletes: HashSet<String>,
    pub(super) deleted: HashSet<String>,
    /// What the run is about; the same for all runs in a directory.
    pub(super) scenario: Option<Scenario>,
    /// The plan of each run that has begun.
    pub(super) runs: BTreeMap<u16, Plan>,
    pub(super) lines: usize,
}

impl Acks {
    /// Reads lines, without their `ack `.
    ///
    /// # Errors
    /// A line that no run says.
    pub fn read<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Self, String> {
        let mut acks = Self::default();
        for line in lines {
            acks.take(line).map_err(|why| format!("acknowledgement {line:?}: {why}"))?;
        }
        Ok(acks)
    }

    /// Takes one more line.
    ///
    /// # Errors
    /// It is none that a run says.
    pub fn take(&mut self, line: &str) -> Result<(), String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.lines += 1;
        if let ["begin", scenario, seed, run] = words.as_slice() {
            let scenario = Scenario::named(scenario).ok_or("no such scenario")?;
            let seed = seed.parse().map_err(|_| format!("{seed:?} is no seed"))?;
            let run = run.parse().map_err(|_| format!("{run:?} is no run"))?;
            self.scenario = Some(scenario);
            self.runs.insert(run, Plan { scenario, seed });
            return Ok(());
        }
        let [name, what, rest @ ..] = words.as_slice() else { return Err("too short".into()) };
        let name: Name = name.parse()?;
        let raise = |offsets: &mut HashMap<String, u64>, topic: &str, offset: &str| {
            let offset = number(offset)?;
            let highest = offsets.entry(topic.to_owned()).or_default();
            *highest = offset.max(*highest);
            Ok::<_, String>(())
        };
        let mut is_synced = true;
        match (*what, rest) {
            ("appended", [durability, parts @ ..]) if !parts.is_empty() && parts.len() % 3 == 0 => {
                is_synced = *durability == "synced";
                let parts = parts
                    .chunks(3)
                    .map(|part| Ok((part[0].to_owned(), number(part[1])?, number(part[2])?)))
                    .collect::<Result<_, String>>()?;
                if self.appended.insert(name, Appended { parts }).is_some() {
                    return Err("it was acknowledged twice".into());
                }
            }
            ("trims", [topic, offset]) => return raise(&mut self.trims, topic, offset),
            ("creates", [topic]) => return Self::note(&mut self.creates, topic),
            ("deletes", [topic]) => return Self::note(&mut self.deletes, topic),
            ("trimmed", [topic, offset]) => raise(&mut self.trimmed, topic, offset)?,
            ("created", [topic]) => Self::note(&mut self.created, topic)?,
            ("deleted", [topic]) => Self::note(&mut self.deleted, topic)?,
            ("done", []) => {}
            _ => return Err("nonsense".into()),
        }
        self.order.entry((name.run, name.thread)).or_default().push((name.step, is_synced));
        Ok(())
    }

    #[expect(clippy::unnecessary_wraps, reason = "one arm of many that may fail")]
    fn note(topics: &mut HashSet<String>, topic: &str) -> Result<(), String> {
        topics.insert(topic.to_owned());
        Ok(())
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text:?} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_is_understood_and_nonsense_is_not() {
        let said = [
            "begin mixed 1 0",
            "0.1.2 appended written a 7 2 b/c 0 1",
            "0.1.3 trims a 5",
            "0.1.3 trimmed a 5",
            "0.1.4 creates temp/x",
        ];
        let acks = Acks::read(said).unwrap();
        let name = Name { run: 0, thread: 1, step: 2 };
        assert_eq!(acks.appended[&name].parts, [("a".to_owned(), 7, 2), ("b/c".to_owned(), 0, 1)]);
        assert_eq!(acks.order[&(0, 1)], [(2, false), (3, true)]);
        assert_eq!((acks.trims["a"], acks.trimmed["a"]), (5, 5));
        assert_eq!(acks.runs[&0], Plan { scenario: Scenario::Mixed, seed: 1 });
        assert!(acks.creates.contains("temp/x") && !acks.created.contains("temp/x"));
        for line in
            ["", "begin mixed 1", "0.1 done", "0.1.2 appended synced a 7", "0.0.0 trims a", "0.0.0 ate a"]
        {
            assert!(Acks::read([line]).is_err(), "{line:?}");
        }
    }
}
