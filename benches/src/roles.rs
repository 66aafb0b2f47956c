//! What this program does when a row starts it as a child: `--child ROLE DIR N`, or `--child bare-server`.

use std::io::{Write, stdout};
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use quipu_storage::{
    Append, Durability, Record, Start, Store, StoreSettings, Topic, TopicSettings, Visibility,
};

use crate::bare;
use crate::rows::streams;

/// Records that fill a store are this large.
const RECORD_BYTES: usize = 1024;

/// Does what `args` say, prints `ready`, and waits to be killed.
pub fn run(args: &[String]) -> Result<()> {
    if args == ["bare-server"] {
        return bare::server::run();
    }
    let [role, dir, amount] = args else { bail!("--child wants a role, a directory and a number") };
    let dir = Path::new(dir);
    let amount: u64 = amount.parse().context("a number")?;
    // Held until the end: what a row weighs or kills is a process with its store open.
    let held = match role.as_str() {
        "full-journal" => full_journal(dir, amount)?,
        "fill-topics" => {
            fill_topics(dir, amount)?;
            Held::default()
        }
        "idle-readers" => idle_readers(dir)?,
        "idle-keys" => idle_keys(dir, amount)?,
        _ => bail!("no role is called {role}"),
    };
    #[expect(clippy::print_stdout, reason = "the parent waits for this line")]
    {
        println!("ready");
    }
    stdout().flush()?;
    if role != "fill-topics" {
        loop {
            std::thread::park();
        }
    }
    drop(held);
    Ok(())
}

#[derive(Default)]
struct Held {
    _store: Option<Store>,
    _cursors: Vec<quipu_storage::Cursor>,
}

fn append(topic: &Topic, record: &Record, count: usize, durability: Durability) -> Result<()> {
    let records = std::iter::repeat_n(record, count);
    topic.store().append(Append::new().durability(durability).records(topic, records)?)?;
    Ok(())
}

/// `bytes` in sealed segments, and a journal as full as it may be before a checkpoint frees it.
fn full_journal(dir: &Path, bytes: u64) -> Result<Held> {
    let store = Store::open(dir)?;
    let topic = store.topic_or_create("open")?;
    let record = Record::new(vec![7; RECORD_BYTES]);
    for _ in 0..bytes / (RECORD_BYTES as u64 * 1000) {
        append(&topic, &record, 1000, Durability::Written)?;
    }
    store.checkpoint()?;
    let limit = StoreSettings::default().journal_bytes_max * 2 / 5;
    loop {
        let stats = store.stats();
        if stats.journal_position.value() - stats.checkpoint_position.value() >= limit {
            break;
        }
        append(&topic, &record, 100, Durability::Synced)?;
    }
    Ok(Held { _store: Some(store), _cursors: Vec::new() })
}

/// 1,000 topics with `bytes` in all.
fn fill_topics(dir: &Path, bytes: u64) -> Result<()> {
    let store = Store::open(dir)?;
    let settings = TopicSettings { segment_bytes_max: 8 << 20, ..TopicSettings::default() };
    let topics: Vec<Topic> = (0..1000)
        .map(|number| Ok(store.create_topic(&format!("topic-{number}"), settings.clone())?))
        .collect::<Result<_>>()?;
    let record = Record::new(vec![7; RECORD_BYTES]);
    let rounds = bytes / (RECORD_BYTES as u64 * 500 * topics.len() as u64);
    for _ in 0..rounds.max(1) {
        for topic in &topics {
            append(topic, &record, 500, Durability::Written)?;
        }
    }
    Ok(store.close()?)
}

/// Reads one record of each topic, and then waits at its end.
fn idle_readers(dir: &Path) -> Result<Held> {
    let store = Store::open(dir)?;
    let mut cursors = Vec::new();
    for topic in store.topics() {
        topic.read(Start::Earliest)?.next().context("a topic is empty")??;
        cursors.push(topic.cursor(Start::Latest, Visibility::Synced)?);
    }
    Ok(Held { _store: Some(store), _cursors: cursors })
}

/// Looks for keys all over a store of so many, and for some that it does not have, until all of its indexes are in use.
fn idle_keys(dir: &Path, keys: u64) -> Result<Held> {
    let store = Store::open(dir)?;
    let topic = store.topic("keys")?;
    for number in (0..keys).step_by(usize::try_from(keys / 1000).context("a count")?.max(1)) {
        topic.stream(streams::key(number))?.with_context(|| format!("key {number} is gone"))?;
        ensure!(topic.stream(format!("absent-{number}"))?.is_none(), "an absent key was found");
    }
    Ok(Held { _store: Some(store), _cursors: Vec::new() })
}
