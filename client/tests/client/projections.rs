//! Projections: killed at each step, cut off, replaced, rebuilt.

use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

use quipu_client::{
    Client, Error, Event, EventRecord, Filter, Outcome, Projection, ProjectionBuilder, Record, Retry,
    Upcasters,
};
use quipu_storage::Offset;

use crate::common::*;
use crate::relay::Relay;

/// Runs a future until it has waited so often, and drops it in the middle. None: it was dropped.
async fn killed_at<F: Future>(future: F, mut waits: usize) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|task| match future.as_mut().poll(task) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending if waits == 0 => Poll::Ready(None),
        Poll::Pending => {
            waits -= 1;
            Poll::Pending
        }
    })
    .await
}

async fn payloads(client: &Client, topic: &str) -> Vec<String> {
    let mut records = client.read(topic).records().await.unwrap();
    let mut payloads = Vec::new();
    while let Some(record) = records.next().await {
        payloads.push(String::from_utf8(record.unwrap().payload().unwrap().to_vec()).unwrap());
    }
    payloads
}

async fn fill(client: &Client, numbers: std::ops::Range<u64>) {
    client.append("source", numbers.map(|number| number.to_string())).await.unwrap();
}

fn numbers(range: std::ops::Range<u64>) -> Vec<String> {
    range.map(|number| number.to_string()).collect()
}

fn copying(client: &Client) -> ProjectionBuilder {
    client.projection("copy", "source").events_max(2).until_caught_up()
}

fn copied(event: &EventRecord) -> Record {
    Record::new(event.record.payload.clone().unwrap())
}

/// Copies each event into the topic of results.
async fn copy(client: &Client) -> Result<(), Error> {
    let mut projection = copying(client).open().await?;
    projection.run(|event| Ok(vec![("results", copied(event))])).await
}

/// The same, once more if what was sent by a runner that is dead came in between.
async fn copy_to_the_end(client: &Client) {
    loop {
        match copy(client).await {
            Ok(()) => return,
            Err(Error::ProjectionReplaced { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
}

async fn server_with_topics() -> (Server, Client) {
    let server = Server::start().await;
    let client = server.client().await;
    for topic in ["source", "results"] {
        client.create_topic(topic).await.unwrap();
    }
    (server, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_killed_wherever_it_waits_repeats_nothing_and_loses_nothing() {
    let (_server, client) = server_with_topics().await;
    let mut kills = 0;
    loop {
        fill(&client, kills * 5..kills * 5 + 5).await;
        let finished = killed_at(copy(&client), kills as usize).await.is_some();
        copy_to_the_end(&client).await;
        kills += 1;
        if finished {
            break;
        }
    }
    assert!(kills > 6, "{kills}");
    assert_eq!(payloads(&client, "results").await, numbers(0..kills * 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_whose_connection_breaks_anywhere_repeats_nothing_and_loses_nothing() {
    use std::sync::atomic::Ordering;
    let (server, client) = server_with_topics().await;
    let (mut round, mut failed) = (0, 0);
    for bytes in (1..).step_by(97) {
        fill(&client, round * 5..round * 5 + 5).await;
        round += 1;
        let relay = Relay::start(server.address).await;
        relay.bytes_max.store(bytes, Ordering::SeqCst);
        let builder = Client::builder(format!("http://{}", relay.address)).retry(Retry::NEVER);
        let outcome = match builder.connect().await {
            Ok(broken) => copy(&broken).await,
            Err(error) => Err(error),
        };
        copy_to_the_end(&client).await;
        match outcome {
            Ok(()) => break,
            Err(_) => failed += 1,
        }
    }
    assert!(failed > 8, "{failed}");
    assert_eq!(payloads(&client, "results").await, numbers(0..round * 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_is_made_once_and_the_runner_goes_on() {
    let (server, direct) = server_with_topics().await;
    let relay = Relay::start(server.address).await;
    let client = client(relay.address).await;
    fill(&direct, 0..10).await;
    let mut projection = copying(&client).open().await.unwrap();
    let mut round = 0;
    while let Some(events) = projection.next().await.unwrap() {
        let results: Vec<_> = events
            .iter()
            .map(|event| ("results", Record::new(event.record.payload.clone().unwrap())))
            .collect();
        let seen = server.store.topic("results").unwrap().follow(Offset(round * 2)).unwrap();
        relay.hold_answers(true);
        let cut = async {
            tokio::task::spawn_blocking(|| seen.take(1).for_each(|event| drop(event.unwrap())))
                .await
                .unwrap();
            relay.cut();
            relay.hold_answers(false);
        };
        let (committed, ()) = tokio::join!(projection.commit(results), cut);
        committed.unwrap();
        round += 1;
    }
    assert_eq!((round, projection.position()), (5, 10));
    assert_eq!(payloads(&direct, "results").await, numbers(0..10));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_runners_the_slower_one_is_refused_with_its_results() {
    let (_server, client) = server_with_topics().await;
    fill(&client, 0..4).await;
    let mut runners = [copying(&client).open().await.unwrap(), copying(&client).open().await.unwrap()];
    let result = |who: &'static str| [("results", Record::new(who))];
    for runner in &mut runners {
        runner.next().await.unwrap().unwrap();
    }
    let [first, second] = &mut runners;
    first.commit(result("first")).await.unwrap();
    for _ in 0..2 {
        let error = second.commit(result("second")).await.unwrap_err();
        assert!(matches!(error, Error::ProjectionReplaced { .. }), "{error:?}");
    }
    first.next().await.unwrap().unwrap();
    first.commit(result("first")).await.unwrap();
    assert_eq!(payloads(&client, "results").await, ["first", "first"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn effects_elsewhere_come_before_the_position_and_at_least_once() {
    let (_server, client) = server_with_topics().await;
    fill(&client, 0..4).await;
    let mut effects = Vec::new();
    let mut take = async |projection: &mut Projection| {
        let events = projection.next().await.unwrap().unwrap();
        effects.extend(events.into_iter().map(|event| event.offset));
    };
    let mut projection = copying(&client).open().await.unwrap();
    take(&mut projection).await;
    projection.commit_position().await.unwrap();
    take(&mut projection).await;
    // Killed before the position is stored.
    drop(projection);
    let mut projection = copying(&client).open().await.unwrap();
    assert_eq!(projection.position(), 2);
    take(&mut projection).await;
    projection.commit_position().await.unwrap();
    assert_eq!(effects, [0, 1, 2, 3, 2, 3]);
    assert!(copying(&client).open().await.unwrap().next().await.unwrap().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_begins_at_the_start_and_shuts_the_runner_out_that_is_there() {
    let (_server, client) = server_with_topics().await;
    fill(&client, 0..3).await;
    let mut there = copying(&client).open().await.unwrap();
    there.next().await.unwrap();
    there.commit_position().await.unwrap();
    let mut rebuilt = copying(&client).rebuild().await.unwrap();
    assert_eq!(rebuilt.position(), 0);
    there.next().await.unwrap();
    let error = there.commit_position().await.unwrap_err();
    assert!(matches!(error, Error::ProjectionReplaced { .. }), "{error:?}");
    // Also when it ends before its first commit.
    drop(rebuilt);
    rebuilt = copying(&client).open().await.unwrap();
    let events = rebuilt.next().await.unwrap().unwrap();
    assert_eq!(events[0].offset, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_that_was_made_again_is_not_read_on_at_the_position_of_the_old_one() {
    let (_server, client) = server_with_topics().await;
    fill(&client, 0..3).await;
    copy_to_the_end(&client).await;
    client.delete_topic("source").await.unwrap();
    client.create_topic("source").await.unwrap();
    fill(&client, 7..12).await;
    let error = copy(&client).await.unwrap_err();
    assert!(matches!(error, Error::ProjectionOutdated { .. }), "{error:?}");
    drop(copying(&client).rebuild().await.unwrap());
    copy_to_the_end(&client).await;
    assert_eq!(payloads(&client, "results").await, [numbers(0..3), numbers(7..12)].concat());
}

#[tokio::test(flavor = "multi_thread")]
async fn events_that_are_gone_and_positions_that_are_gone_are_told() {
    let (server, client) = server_with_topics().await;
    fill(&client, 0..2).await;
    copy_to_the_end(&client).await;
    fill(&client, 2..6).await;
    server.store.topic("source").unwrap().trim(Offset(4)).unwrap();
    let error = copy(&client).await.unwrap_err();
    assert!(matches!(error, Error::OffsetTrimmed { earliest: 4, .. }), "{error:?}");
    let positions = server.store.topic("projections").unwrap();
    positions.trim(positions.high_watermark()).unwrap();
    let error = copy(&client).await.unwrap_err();
    assert!(matches!(error, Error::HistoryGone { .. }), "{error:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_projection_follows_through_its_filter_and_upcasters_and_stops_at_what_they_do_not_know() {
    let (server, client) = server_with_topics().await;
    let typed = |kind: &str, payload: &str| Record::new(payload.to_owned()).with_type(kind);
    let records =
        [typed("other", "x"), typed("old", "1"), typed("other", "x"), typed("old", "2"), typed("old", "?")];
    client.append("source", records).await.unwrap();
    let upcasters = Upcasters::new().on("old", |record| match record.payload.as_deref() {
        Some(b"?") => Err("what is that".into()),
        _ => Ok(record.with_type("new")),
    });
    let filter = Filter { types: vec!["old".into()], ..Filter::default() };
    let builder = || client.projection("p", "source").filter(filter.clone()).upcasters(upcasters.clone());
    let mut projection = builder().open().await.unwrap();
    let mut offsets = Vec::new();
    let error = loop {
        match projection.next().await {
            Ok(events) => {
                for event in events.unwrap() {
                    assert_eq!(event.record.record_type, "new");
                    offsets.push(event.offset);
                }
                projection.commit_position().await.unwrap();
            }
            Err(error) => break error,
        }
    };
    assert_eq!((offsets, projection.position()), (vec![1, 3], 4));
    for error in [error, projection.next().await.unwrap_err()] {
        assert!(matches!(error, Error::EventNotUnderstood { offset: 4, .. }), "{error:?}");
    }
    // Nothing passes over it.
    projection.commit_position().await.unwrap();
    let error = builder().open().await.unwrap().next().await.unwrap_err();
    assert!(matches!(error, Error::EventNotUnderstood { offset: 4, .. }), "{error:?}");
    // One that follows waits for what comes.
    let follows = tokio::spawn({
        let (client, filter) = (client.clone(), filter.clone());
        async move {
            let mut projection = client.projection("q", "source").filter(filter).open().await.unwrap();
            let mut count = 0;
            while count < 4 {
                count += projection.next().await.unwrap().unwrap().len();
            }
        }
    });
    let mut subscription = client.subscribe("source").send().await.unwrap();
    while !matches!(subscription.next().await.unwrap().unwrap(), Event::CaughtUp { .. }) {}
    client.append("source", [typed("old", "3")]).await.unwrap();
    tokio::time::timeout(PATIENCE, follows).await.unwrap().unwrap();
    drop(server);
}

/// Runs it again after each error, as copying does. False: something that was on its way has come in between.
async fn runs_to_the_end(projection: &mut Projection) -> bool {
    loop {
        match projection.run(|event| Ok(vec![("results", copied(event))])).await {
            Ok(()) => return true,
            Err(Error::ProjectionReplaced { .. }) => return false,
            Err(error) => assert!(error.is_transient() || error.outcome() == Outcome::Unknown, "{error:?}"),
        }
    }
}

/// A runner whose handler had failed was run again: what had been handed out was passed over, and the position behind it was
/// committed.
#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_runs_again_after_its_handler_failed_passes_over_nothing() {
    let (_server, client) = server_with_topics().await;
    fill(&client, 0..6).await;
    let mut projection = copying(&client).open().await.unwrap();
    // The first event of a batch, and the second one of the next.
    for fails_at in [0, 3] {
        let outcome = projection
            .run(|event| match event.offset == fails_at {
                true => Err("not now".into()),
                false => Ok(vec![("results", copied(event))]),
            })
            .await;
        let error = outcome.unwrap_err();
        assert!(matches!(error, Error::EventNotUnderstood { offset, .. } if offset == fails_at), "{error:?}");
        // Not by a commit of the caller's either.
        projection.commit_position().await.unwrap();
        assert_eq!(projection.position(), fails_at / 2 * 2);
    }
    assert!(runs_to_the_end(&mut projection).await);
    assert_eq!((payloads(&client, "results").await, projection.position()), (numbers(0..6), 6));
}

/// The same of a commit that was refused: its events did not come again.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_refused_commit_had_is_committed_once_more_or_handed_out_again() {
    let (_server, client) = server_with_topics().await;
    fill(&client, 0..6).await;
    let mut projection = copying(&client).open().await.unwrap();
    let events = projection.next().await.unwrap().unwrap();
    let refused = events.iter().map(|event| ("missing", copied(event)));
    let error = projection.commit(refused.clone()).await.unwrap_err();
    assert!(matches!(error, Error::TopicNotFound { .. }), "{error:?}");
    client.create_topic("missing").await.unwrap();
    projection.commit(refused).await.unwrap();
    assert_eq!((payloads(&client, "missing").await, projection.position()), (numbers(0..2), 2));
    client.delete_topic("missing").await.unwrap();
    let error = projection.run(|event| Ok(vec![("missing", copied(event))])).await.unwrap_err();
    assert!(matches!(error, Error::TopicNotFound { .. }), "{error:?}");
    assert!(runs_to_the_end(&mut projection).await);
    assert_eq!((payloads(&client, "results").await, projection.position()), (numbers(2..6), 6));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_dropped_wherever_it_waits_can_be_run_again() {
    let (_server, client) = server_with_topics().await;
    let (mut drops, mut went_on) = (0, 0);
    loop {
        fill(&client, drops * 5..drops * 5 + 5).await;
        let mut projection = copying(&client).open().await.unwrap();
        let finished = killed_at(runs_to_the_end(&mut projection), drops as usize).await.is_some();
        went_on += u64::from(runs_to_the_end(&mut projection).await);
        copy_to_the_end(&client).await;
        drops += 1;
        if finished {
            break;
        }
    }
    assert!(drops > 3 && went_on > 1, "{drops} {went_on}");
    assert_eq!(payloads(&client, "results").await, numbers(0..drops * 5));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_whose_connection_breaks_anywhere_can_be_run_again() {
    use std::sync::atomic::Ordering;
    let (server, client) = server_with_topics().await;
    let (mut round, mut went_on) = (0, 0);
    for bytes in (1..).step_by(97) {
        fill(&client, round * 5..round * 5 + 5).await;
        round += 1;
        let relay = Relay::start(server.address).await;
        let builder = Client::builder(format!("http://{}", relay.address)).retry(Retry::NEVER);
        let mut projection = copying(&builder.connect().await.unwrap()).open().await.unwrap();
        relay.bytes_max.store(bytes, Ordering::SeqCst);
        let outcome = projection.run(|event| Ok(vec![("results", copied(event))])).await;
        relay.bytes_max.store(0, Ordering::SeqCst);
        went_on += u64::from(runs_to_the_end(&mut projection).await);
        copy_to_the_end(&client).await;
        if outcome.is_ok() {
            break;
        }
    }
    assert!(round > 3 && went_on > 1, "{round} {went_on}");
    assert_eq!(payloads(&client, "results").await, numbers(0..round * 5));
}

/// The answer of a commit was lost for good: the runner could only be opened anew.
#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_does_not_know_whether_its_commit_was_applied_looks_before_it_goes_on() {
    let (server, direct) = server_with_topics().await;
    let relay = Relay::start(server.address).await;
    let builder = Client::builder(format!("http://{}", relay.address)).retry(Retry::NEVER);
    fill(&direct, 0..6).await;
    let mut projection = copying(&builder.connect().await.unwrap()).open().await.unwrap();
    let events = projection.next().await.unwrap().unwrap();
    let results = || events.iter().map(|event| ("results", copied(event)));
    let seen = server.store.topic("results").unwrap().follow(Offset(0)).unwrap();
    relay.hold_answers(true);
    let cut = async {
        tokio::task::spawn_blocking(|| seen.take(1).for_each(|event| drop(event.unwrap()))).await.unwrap();
        relay.cut();
        relay.hold_answers(false);
    };
    let (committed, ()) = tokio::join!(projection.commit(results()), cut);
    assert_eq!(committed.unwrap_err().outcome(), Outcome::Unknown);
    let error = projection.commit(results()).await.unwrap_err();
    assert!(matches!(error, Error::ProjectionReplaced { .. }), "{error:?}");
    assert!(runs_to_the_end(&mut projection).await);
    assert_eq!((payloads(&direct, "results").await, projection.position()), (numbers(0..6), 6));
}
