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

/// Its subscription ended, or its connection was lost, and it went on in the new topic, at the position in the old one.
#[tokio::test(flavor = "multi_thread")]
async fn a_runner_whose_topic_is_made_again_meanwhile_hands_out_nothing_of_the_new_one() {
    for (is_cut, count) in [(false, 10), (true, 10), (false, 1), (true, 1)] {
        let (server, direct) = server_with_topics().await;
        let relay = Relay::start(server.address).await;
        let builder = client(relay.address).await.projection("copy", "source").events_max(2);
        fill(&direct, 0..4).await;
        let mut projection = builder.open().await.unwrap();
        for _ in 0..2 {
            assert_eq!(projection.next().await.unwrap().unwrap().len(), 2);
        }
        projection.commit_position().await.unwrap();
        if is_cut {
            relay.cut();
        }
        direct.delete_topic("source").await.unwrap();
        direct.create_topic("source").await.unwrap();
        fill(&direct, 100..100 + count).await;
        for _ in 0..2 {
            let outcome = tokio::time::timeout(PATIENCE, projection.next()).await.expect("it ends");
            let is_told = matches!(outcome, Err(Error::ProjectionOutdated { .. }));
            assert!(is_told, "{is_cut} {count}: {outcome:?}");
        }
        assert_eq!(projection.position(), 4);
    }
}

/// It stayed where the last wanted event was: with retention, the events behind it went, although none of them was wanted.
#[tokio::test(flavor = "multi_thread")]
async fn the_position_passes_over_what_the_filter_leaves_out_with_one_write() {
    let (server, client) = server_with_topics().await;
    let typed = |kind: &str| Record::new("x").with_type(kind);
    client.append("source", vec![typed("other"); 500]).await.unwrap();
    let filter = Filter { types: vec!["wanted".into()], ..Filter::default() };
    let builder = || client.projection("p", "source").filter(filter.clone()).until_caught_up();
    let commits = || server.store.topic("projections").unwrap().log_end_offset().value();
    let mut projection = builder().open().await.unwrap();
    assert!(projection.next().await.unwrap().is_none());
    assert_eq!((projection.position(), commits()), (500, 1));
    assert!(projection.next().await.unwrap().is_none());
    assert_eq!(commits(), 1);
    server.store.topic("source").unwrap().trim(Offset(500)).unwrap();
    client.append("source", [typed("wanted"), typed("other")]).await.unwrap();
    // What was handed out is passed over by a commit of the caller's only.
    for _ in 0..2 {
        let mut projection = builder().open().await.unwrap();
        assert_eq!(projection.next().await.unwrap().unwrap()[0].offset, 500);
        assert!(projection.next().await.unwrap().is_none());
        assert_eq!((projection.position(), commits()), (500, 1));
    }
    let mut projection = builder().open().await.unwrap();
    projection.next().await.unwrap();
    projection.commit_position().await.unwrap();
    assert!(projection.next().await.unwrap().is_none());
    assert!(commits() <= 3);
    assert_eq!(builder().open().await.unwrap().position(), 502);
    client.append("source", vec![typed("other"); 5]).await.unwrap();
    let mut projection = builder().open().await.unwrap();
    assert!(projection.next().await.unwrap().is_none());
    assert_eq!(projection.position(), 507);
    // Without a filter there is nothing to pass over: a write for each commit, and no more.
    let before = commits();
    let mut copying = client.projection("q", "source").events_max(2).until_caught_up().open().await.unwrap();
    let mut count = 0;
    while copying.next().await.unwrap().is_some() {
        copying.commit_position().await.unwrap();
        count += 1;
    }
    assert!(count > 2 && commits() == before + count, "{count}");
}

/// Whoever has no use for what is behind a gap opens no further commit: nothing passes over it without one.
#[tokio::test(flavor = "multi_thread")]
async fn the_position_passes_over_a_gap_with_a_commit_of_the_caller_only() {
    let (server, direct) = server_with_topics().await;
    let relay = Relay::start(server.address).await;
    fill(&direct, 0..2).await;
    let builder = client(relay.address).await.projection("p", "source").events_max(2);
    let mut projection = builder.open().await.unwrap();
    projection.next().await.unwrap();
    projection.commit_position().await.unwrap();
    relay.cut();
    fill(&direct, 2..4).await;
    let source = server.store.topic("source").unwrap();
    source.trim(Offset(4)).unwrap();
    let error = projection.next().await.unwrap_err();
    assert!(matches!(error, Error::RecordsGone { from: 2, to: 4 }), "{error:?}");
    // By the time that an event comes it has caught up.
    let follows = tokio::spawn(async move {
        let events = projection.next().await.unwrap().unwrap();
        (events[0].offset, projection)
    });
    let mut other = direct.subscribe("source").send().await.unwrap();
    while !matches!(other.next().await.unwrap().unwrap(), Event::CaughtUp { .. }) {}
    while direct.topic_status("source").await.unwrap().subscribers < 2 {
        tokio::task::yield_now().await;
    }
    fill(&direct, 4..5).await;
    let (offset, mut projection) = tokio::time::timeout(PATIENCE, follows).await.unwrap().unwrap();
    assert_eq!((offset, projection.position()), (4, 2));
    projection.commit_position().await.unwrap();
    assert_eq!(projection.position(), 5);
}

/// While it follows, what is left out is told as progress.
#[tokio::test(flavor = "multi_thread")]
async fn the_position_of_one_that_follows_moves_every_so_many_events_that_are_left_out() {
    let (server, client) = server_with_topics().await;
    let filter = Filter { types: vec!["wanted".into()], ..Filter::default() };
    let mut projection = client.projection("p", "source").filter(filter).open().await.unwrap();
    let follows = tokio::spawn(async move { projection.next().await.unwrap().unwrap()[0].offset });
    // The topic is made with the first projection.
    let positions = server.store.topic("projections").unwrap();
    let stored = tokio::task::spawn_blocking(move || {
        let mut follow = positions.follow(Offset(0)).unwrap();
        let record = follow.next().unwrap().unwrap();
        String::from_utf8(record.payload().unwrap().to_vec()).unwrap().parse::<u64>().unwrap()
    });
    let appended = 30_000;
    for _ in 0..appended / 1000 {
        client.append("source", vec![Record::new("x").with_type("other"); 1000]).await.unwrap();
    }
    let position = tokio::time::timeout(PATIENCE, stored).await.expect("it is stored").unwrap();
    assert!(position <= appended, "{position} of {appended}");
    client.append("source", [Record::new("x").with_type("wanted")]).await.unwrap();
    assert_eq!(tokio::time::timeout(PATIENCE, follows).await.unwrap().unwrap(), appended);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_runner_that_is_dropped_while_it_passes_over_what_is_left_out_can_commit_and_go_on() {
    let (server, client) = server_with_topics().await;
    let filter = Filter { types: vec!["wanted".into()], ..Filter::default() };
    for waits in 0.. {
        client.append("source", [Record::new("x").with_type("other")]).await.unwrap();
        let end = server.store.topic("source").unwrap().log_end_offset().value();
        let builder = client.projection(format!("p{waits}"), "source").filter(filter.clone());
        let mut projection = builder.until_caught_up().open().await.unwrap();
        let finished = killed_at(projection.next(), waits).await.is_some();
        projection.commit_position().await.unwrap();
        assert!(projection.next().await.unwrap().is_none());
        assert_eq!(projection.position(), end);
        if finished {
            assert!(waits > 0);
            break;
        }
    }
}

/// It was taken for replaced, and what it had committed for refused: the other runner had committed on top.
#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_was_lost_is_known_also_when_another_runner_has_gone_on_behind_it() {
    for is_compacted in [false, true] {
        let (server, direct) = server_with_topics().await;
        let relay = Relay::start(server.address).await;
        let builder = Client::builder(format!("http://{}", relay.address)).retry(Retry::NEVER);
        fill(&direct, 0..6).await;
        let mut projection = copying(&builder.connect().await.unwrap()).open().await.unwrap();
        let events = projection.next().await.unwrap().unwrap();
        let results = events.iter().map(|event| ("results", copied(event)));
        let seen = server.store.topic("results").unwrap().follow(Offset(0)).unwrap();
        relay.hold_answers(true);
        let cut = async {
            let see = || seen.take(1).for_each(|event| drop(event.unwrap()));
            tokio::task::spawn_blocking(see).await.unwrap();
            relay.cut();
            relay.hold_answers(false);
        };
        let (committed, ()) = tokio::join!(projection.commit(results), cut);
        assert_eq!(committed.unwrap_err().outcome(), Outcome::Unknown);
        let mut other = copying(&direct).open().await.unwrap();
        other.next().await.unwrap();
        other.commit_position().await.unwrap();
        assert_eq!(other.position(), 4);
        if is_compacted {
            server.store.topic("projections").unwrap().trim(Offset(1)).unwrap();
        }
        let mut outcome = projection.next().await;
        while outcome.as_ref().is_err_and(Error::is_transient) {
            outcome = projection.next().await;
        }
        if is_compacted {
            // Whose it was that is not there any more nobody knows.
            for outcome in [outcome, projection.next().await] {
                assert_eq!(outcome.unwrap_err().outcome(), Outcome::Unknown);
            }
            continue;
        }
        assert_eq!((outcome.unwrap().unwrap()[0].offset, projection.position()), (2, 2));
        let error = projection.commit_position().await.unwrap_err();
        assert!(matches!(error, Error::ProjectionReplaced { .. }), "{error:?}");
        assert_eq!(payloads(&direct, "results").await, numbers(0..2));
    }
}
