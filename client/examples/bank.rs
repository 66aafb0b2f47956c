//! A bank: transfers that overdraw no account whoever else transfers at the same time, its balances as a projection, and a
//! rebuild of them: `cargo run -p quipu-client --example bank [URL]`.
//!
//! The ledger is one topic. A transfer touches two accounts, so it has no single key whose revision could guard it: it is
//! guarded by a query instead. Nobody may have touched one of the two since the events that it was decided on.
#![allow(clippy::print_stdout, reason = "an example")]

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;

use bytes::Bytes;
use quipu_client::v1::filter::TagSet;
use quipu_client::{Client, Condition, Error as ClientError, Filter, Projection, Record, Visibility};

mod support;

type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;
/// In cents, by account.
type Balances = BTreeMap<String, i64>;

const LEDGER: &str = "bank";
const BALANCES: &str = "bank-balances";
const ACCOUNTS: [&str; 4] = ["anna", "ben", "chloe", "dan"];
const TRIES_MAX: u32 = 1000;

/// What an event does to balances.
fn moves(event: &Record) -> Result<Vec<(String, i64)>> {
    let amount: i64 = std::str::from_utf8(event.payload.as_deref().unwrap_or_default())?.parse()?;
    let account = |(name, value): &(String, Bytes)| {
        let account = String::from_utf8_lossy(value).into_owned();
        match name.as_str() {
            "from" => Some((account, -amount)),
            "to" => Some((account, amount)),
            _ => None,
        }
    };
    Ok(event.headers.iter().filter_map(account).collect())
}

/// The events of these accounts.
fn touching(accounts: &[&str]) -> Filter {
    let tags = accounts.iter().map(|account| TagSet { all: vec![format!("account:{account}")] });
    Filter { tags: tags.collect(), ..Filter::default() }
}

/// The balances of these accounts, and the last event that says so. What is written, but not synced yet, counts: what is
/// appended behind it is not there without it.
async fn look(client: &Client, accounts: &[&str]) -> Result<(Balances, Option<u64>)> {
    let (mut balances, mut last_offset) = (Balances::new(), None);
    let read = client.read(LEDGER).filter(touching(accounts)).visibility(Visibility::Written);
    let mut events = read.records().await?;
    while let Some(event) = events.next().await {
        let event = event?;
        last_offset = Some(event.offset());
        for (account, amount) in moves(&event.to_record())? {
            // Of the others not all events are there.
            if accounts.contains(&&*account) {
                *balances.entry(account).or_default() += amount;
            }
        }
    }
    Ok((balances, last_offset))
}

/// Appends what `decide` makes of the balances of these accounts, if nobody has touched one of them since; else looks again.
/// Answers whether there was something to append.
async fn append_if(
    client: &Client,
    accounts: &[&str],
    decide: impl Fn(&Balances) -> Option<Record>,
) -> Result<bool> {
    for _ in 0..TRIES_MAX {
        let (balances, last_offset) = look(client, accounts).await?;
        let Some(mut event) = decide(&balances) else { return Ok(false) };
        event.tags = accounts.iter().map(|account| format!("account:{account}")).collect();
        let untouched = Condition::no_match(LEDGER, touching(accounts), last_offset);
        match client.append_to(LEDGER, [event])?.require(untouched).send().await {
            Ok(_) => return Ok(true),
            Err(ClientError::ConditionFailed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err("others were faster each time".into())
}

async fn open(client: &Client, account: &'static str) -> Result<bool> {
    append_if(client, &[account], |balances| {
        let opened = Record::new("10000").with_type("Opened").with_header("to", account);
        balances.is_empty().then_some(opened)
    })
    .await
}

async fn transfer(client: &Client, from: &'static str, to: &'static str, amount: i64) -> Result<bool> {
    append_if(client, &[from, to], |balances| {
        let transferred = Record::new(amount.to_string()).with_type("Transferred");
        let has_enough = balances.get(from).is_some_and(|balance| *balance >= amount);
        has_enough.then(|| transferred.with_header("from", from).with_header("to", to))
    })
    .await
}

/// Goes through the whole ledger: at no time was an account overdrawn.
async fn audit(client: &Client) -> Result<Balances> {
    let mut balances = Balances::new();
    let mut events = client.read(LEDGER).records().await?;
    while let Some(event) = events.next().await {
        for (account, amount) in moves(&event?.to_record())? {
            let balance = balances.entry(account).or_default();
            *balance += amount;
            assert!(*balance >= 0, "an account is overdrawn");
        }
    }
    Ok(balances)
}

/// The balances that the projection has committed: the last record of each account.
async fn committed(client: &Client) -> Result<Balances> {
    let mut balances = Balances::new();
    let mut records = client.read(BALANCES).visibility(Visibility::Written).records().await?;
    while let Some(record) = records.next().await {
        let record = record?;
        let account = String::from_utf8_lossy(record.key().unwrap_or_default()).into_owned();
        balances.insert(account, std::str::from_utf8(record.payload().unwrap_or_default())?.parse()?);
    }
    Ok(balances)
}

/// Goes on from these balances until it has caught up. Each commit appends new balances together with the position.
async fn project(mut projection: Projection, mut balances: Balances) -> Result<()> {
    while let Some(events) = projection.next().await? {
        let mut changed = BTreeSet::new();
        for event in &events {
            for (account, amount) in moves(&event.record)? {
                *balances.entry(account.clone()).or_default() += amount;
                changed.insert(account);
            }
        }
        let balance = |account: String| {
            let balance = balances.get(&account).copied().unwrap_or_default();
            (BALANCES, Record::keyed(account, balance.to_string()))
        };
        projection.commit(changed.into_iter().map(balance)).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<()> {
    let connected = support::connect().await.map_err(|error| error.to_string())?;
    let client = &connected.client;
    client.topic_or_create(LEDGER).await?;
    client.topic_or_create(BALANCES).await?;
    for account in ACCOUNTS {
        open(client, account).await?;
    }
    assert!(!open(client, "anna").await?, "an account is opened once");
    let total: i64 = audit(client).await?.values().sum();

    // Eight clerks, and more orders than there is money.
    let clerks: Vec<_> = (0..8)
        .map(|clerk| {
            let client = client.clone();
            tokio::spawn(async move {
                let mut done = 0;
                for order in 0..12 {
                    let from = ACCOUNTS[(clerk + order) % 4];
                    let to = ACCOUNTS[(clerk + order + 1 + order % 3) % 4];
                    let amount = 3000 + 1500 * ((clerk * order) % 5) as i64;
                    done += u32::from(transfer(&client, from, to, amount).await?);
                }
                Ok::<_, Box<dyn Error + Send + Sync>>(done)
            })
        })
        .collect();
    let mut done = 0;
    for clerk in clerks {
        done += clerk.await??;
    }
    let balances = audit(client).await?;
    println!("{done} transfers of 96 were done, the others would have overdrawn an account: {balances:?}");
    assert_eq!(balances.values().sum::<i64>(), total, "no money is made or lost");

    // A runner that dies with events in hand, and one that goes on after it.
    let builder = client.projection("bank-balances.v1", LEDGER).events_max(10).until_caught_up();
    let mut dying = builder.clone().open().await?;
    println!("{} events are lost with their runner", dying.next().await?.map_or(0, |events| events.len()));
    drop(dying);
    project(builder.clone().open().await?, committed(client).await?).await?;
    assert_eq!(committed(client).await?, balances);
    println!("the projection has the same balances");

    // Somebody has spoiled a balance. The ledger knows better: begin again, from nothing.
    client.append(BALANCES, [Record::keyed("anna", "1000000")]).await?;
    assert_ne!(committed(client).await?, balances);
    project(builder.rebuild().await?, Balances::new()).await?;
    assert_eq!(committed(client).await?, balances);
    println!("and has them again, after a rebuild");
    Ok(())
}
