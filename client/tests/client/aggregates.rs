//! Aggregates and upcasters.

use quipu_client::{
    Aggregate, CommandError, Error, EventError, EventRecord, Outcome, Record, Start, Upcasters,
};
use quipu_storage::{Offset, Record as StoreRecord};

use crate::common::*;
use crate::relay::Relay;

/// Sums numbers up.
#[derive(Clone, Debug, Default, PartialEq)]
struct Counter {
    sum: u64,
    events: u64,
}

fn number(record: &Record) -> Result<u64, EventError> {
    Ok(std::str::from_utf8(record.payload.as_deref().unwrap_or_default())?.parse()?)
}

impl Aggregate for Counter {
    fn apply(&mut self, event: &EventRecord) -> Result<(), EventError> {
        assert_eq!(event.revision, Some(self.events), "each event once, in order");
        self.sum += number(&event.record)?;
        self.events += 1;
        Ok(())
    }

    fn to_snapshot(&self) -> Option<Record> {
        Some(Record::new(format!("{} {}", self.sum, self.events)).with_type("Counter"))
    }

    fn from_snapshot(snapshot: &Record) -> Result<Option<Self>, EventError> {
        if snapshot.record_type != "Counter" {
            return Ok(None);
        }
        let text = std::str::from_utf8(snapshot.payload.as_deref().unwrap_or_default())?;
        let (sum, events) = text.split_once(' ').ok_or("no two numbers")?;
        Ok(Some(Self { sum: sum.parse()?, events: events.parse()? }))
    }
}

fn add(number: u64) -> Result<Vec<Record>, &'static str> {
    Ok(vec![Record::new(number.to_string())])
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_contend_are_each_decided_on_all_events_before_their_own() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("counters").await.unwrap();
    let tasks: Vec<_> = (0..4)
        .map(|_| {
            let counters = client.aggregates::<Counter>("counters").tries_max(10_000).snapshot_every(10);
            tokio::spawn(async move {
                for _ in 0..25 {
                    // Right only if the decision has seen everything: each event is the number of those before.
                    let counted = |counter: &Counter| add(counter.events);
                    counters.execute("a", counted).await.unwrap();
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let mut records = client.read_stream("counters", "a").records().await.unwrap();
    let mut payloads = Vec::new();
    while let Some(record) = records.next().await {
        payloads.push(number(&record.unwrap().to_record()).unwrap());
    }
    assert_eq!(payloads, (0..100).collect::<Vec<_>>());
    let snapshot = client.snapshot("counters", "a").await.unwrap().unwrap();
    assert!(snapshot.revision >= 89, "{}", snapshot.revision);
    // The events that it covers may go.
    let counters = client.aggregates::<Counter>("counters");
    let before = counters.load("a").await.unwrap();
    server.store.topic("counters").unwrap().trim(Offset(snapshot.revision + 1)).unwrap();
    let after = counters.load("a").await.unwrap();
    assert_eq!((&after.state, after.revision), (&before.state, before.revision));
    assert_eq!(after.state, Counter { sum: (0..100).sum(), events: 100 });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_is_decided_anew_until_its_tries_are_used_up_and_then_nothing_is_appended() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("counters").await.unwrap();
    let topic = server.store.topic("counters").unwrap();
    let counters = client.aggregates::<Counter>("counters").tries_max(3);
    let mut decided = Vec::new();
    let error = counters
        .execute("a", |counter| {
            decided.push(counter.events);
            // Somebody is faster each time.
            topic.append(&[StoreRecord::keyed("a", "1")]).unwrap();
            add(100)
        })
        .await
        .unwrap_err();
    assert!(matches!(error, CommandError::Contended { tries: 3 }), "{error:?}");
    assert_eq!(decided, [0, 1, 2]);
    assert_eq!(counters.load("a").await.unwrap().state, Counter { sum: 3, events: 3 });
    let rejected = counters.execute("a", |_| Err("no")).await.unwrap_err();
    assert!(matches!(rejected, CommandError::Rejected("no")), "{rejected:?}");
    let nothing = counters.execute("a", |_| Ok::<_, &str>(Vec::new())).await.unwrap();
    assert_eq!(nothing.revision, Some(2));
    let stray = counters.execute("a", |_| Ok::<_, &str>(vec![Record::keyed("b", "1")])).await.unwrap_err();
    assert!(matches!(stray, CommandError::Failed(Error::Invalid { .. })), "{stray:?}");
    assert_eq!(topic.log_end_offset(), Offset(3));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_whose_answer_was_lost_is_executed_once() {
    let server = Server::start().await;
    let relay = Relay::start(server.address).await;
    let client = client(relay.address).await;
    client.create_topic("counters").await.unwrap();
    let counters = client.aggregates::<Counter>("counters");
    for round in 0..10 {
        counters.execute("a", |_| add(1)).await.unwrap();
        let events = server.store.topic("counters").unwrap().follow(Offset(2 * round + 1)).unwrap();
        let mut held = false;
        let command = counters.execute("a", |_| {
            // From the append on no answer comes.
            if !std::mem::replace(&mut held, true) {
                relay.hold_answers(true);
            }
            add(1)
        });
        let cut = async {
            tokio::task::spawn_blocking(|| events.take(1).for_each(|event| drop(event.unwrap())))
                .await
                .unwrap();
            relay.cut();
            relay.hold_answers(false);
        };
        let (executed, ()) = tokio::join!(command, cut);
        assert_eq!(executed.unwrap().revision, Some(2 * round + 1));
    }
    assert_eq!(counters.load("a").await.unwrap().state, Counter { sum: 20, events: 20 });
    assert!(relay.connections() > 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn old_events_are_made_new_while_they_are_read_and_stay_as_they_are() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("counters").await.unwrap();
    let old = ["one", "two"].map(|text| Record::keyed("a", text).with_type("Added"));
    client.append("counters", old).await.unwrap();
    let upcasters = Upcasters::new()
        .on("Added", |record| {
            let value = ["zero", "one", "two"]
                .iter()
                .position(|text| Some(text.as_bytes()) == record.payload.as_deref());
            let value = value.ok_or("no number that was used then")?;
            Ok(Record { payload: Some(value.to_string().into()), ..record.with_type("Added.v2") })
        })
        .on("Added.v2", |record| Ok(record.with_type("Added.v3")));
    let counters = client.aggregates::<Counter>("counters").upcasters(upcasters);
    let executed = counters.execute("a", |counter| {
        Ok::<_, &str>(vec![Record::new(counter.sum.to_string()).with_type("Added.v3")])
    });
    assert_eq!(executed.await.unwrap().state, Counter { sum: 6, events: 3 });
    let mut records = client.read_stream("counters", "a").start(Start::Revision(1)).records().await.unwrap();
    assert_eq!(records.next().await.unwrap().unwrap().record_type(), "Added");
    client.append("counters", [Record::keyed("a", "many").with_type("Added")]).await.unwrap();
    let error = counters.load("a").await.unwrap_err();
    assert!(
        matches!(&error, Error::EventNotUnderstood { offset: 3, message } if message.contains("no number")),
        "{error:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_whose_events_are_gone_is_refused_and_not_guessed() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("counters").await.unwrap();
    let counters = client.aggregates::<Counter>("counters");
    for _ in 0..4 {
        counters.execute("a", |_| add(1)).await.unwrap();
    }
    let topic = server.store.topic("counters").unwrap();
    for (trim, from) in [(2, 0), (4, 0)] {
        topic.trim(Offset(trim)).unwrap();
        let error = counters.load("a").await.unwrap_err();
        assert!(matches!(error, Error::HistoryGone { from: found, .. } if found == from), "{error:?}");
        let error = counters.execute("a", |_| add(1)).await.unwrap_err();
        assert!(matches!(error, CommandError::Failed(Error::HistoryGone { .. })), "{error:?}");
    }
    // With a snapshot that covers some of them, but not all.
    for _ in 0..2 {
        client.append("counters", [Record::keyed("b", "1")]).await.unwrap();
    }
    client.put_snapshot("counters", 0, Record::keyed("b", "1 1").with_type("Counter")).await.unwrap();
    assert_eq!(counters.load("b").await.unwrap().state, Counter { sum: 2, events: 2 });
    topic.trim(Offset(6)).unwrap();
    let error = counters.load("b").await.unwrap_err();
    assert!(matches!(error, Error::HistoryGone { from: 1, .. }), "{error:?}");
}

/// A snapshot of a form that is not known any more costs time and nothing else.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_snapshot_that_can_be_read_all_events_are() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("counters").await.unwrap();
    let counters = client.aggregates::<Counter>("counters").snapshot_every(2);
    for _ in 0..3 {
        counters.execute("a", |_| add(1)).await.unwrap();
    }
    client.put_snapshot("counters", 2, Record::keyed("a", "{}").with_type("Counter.v0")).await.unwrap();
    assert_eq!(counters.load("a").await.unwrap().state, Counter { sum: 3, events: 3 });
}

/// The command was said to have changed nothing, and its event was in the log.
#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_its_own_aggregate_does_not_understand_is_there_all_the_same() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("counters").await.unwrap();
    let counters = client.aggregates::<Counter>("counters");
    let decide = |_: &Counter| Ok::<_, &str>(vec![Record::new("no number")]);
    let error = counters.execute("a", decide).await.unwrap_err();
    let CommandError::Failed(error) = error else { panic!("{error:?}") };
    assert_eq!(error.outcome(), Outcome::Unknown, "{error:?}");
    assert_eq!(client.bounds("counters").await.unwrap().log_end_offset, 1);
}
