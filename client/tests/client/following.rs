//! Subscriptions: each record once and in order, over lost connections, restarts, trims, and callers that are slow.

use std::time::Duration;

use quipu_client::{Durability, Error, Event, Filter, Record, Start, Subscription, Visibility};

use crate::common::{PATIENCE, Server, client};
use crate::relay::Relay;

async fn next(subscription: &mut Subscription) -> Event {
    let next = tokio::time::timeout(PATIENCE, subscription.next()).await;
    next.expect("an event").expect("it goes on").unwrap()
}

/// The offsets of records up to `end`; says how often the subscription was resumed.
async fn follow(subscription: &mut Subscription, end: u64) -> (Vec<u64>, usize) {
    let (mut offsets, mut resumed) = (Vec::new(), 0);
    while offsets.last().is_none_or(|last| last + 1 < end) {
        match next(subscription).await {
            Event::Records(batch) => offsets.extend(batch.iter().map(|record| record.unwrap().offset())),
            Event::Resumed { .. } => resumed += 1,
            Event::Gap(gap) => panic!("{gap:?}"),
            _ => {}
        }
    }
    (offsets, resumed)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_catches_up_says_so_and_follows() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    client.append("t", ["0", "1"]).await.unwrap();
    let mut subscription = client.subscribe("t").send().await.unwrap();
    assert_eq!(follow(&mut subscription, 2).await.0, [0, 1]);
    assert!(matches!(next(&mut subscription).await, Event::CaughtUp { next_offset: 2 }));
    let mut latest = client.subscribe("t").start(Start::Latest).send().await.unwrap();
    assert_eq!(latest.next_offset(), Some(2));
    client.append("t", ["2"]).await.unwrap();
    assert_eq!(follow(&mut subscription, 3).await.0, [2]);
    assert_eq!(follow(&mut latest, 3).await.0, [2]);
    let missing = client.subscribe("missing").send().await.unwrap_err();
    assert!(matches!(missing, Error::TopicNotFound { .. }), "{missing:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_record_comes_once_and_in_order_over_lost_connections_and_restarts() {
    let mut server = Server::start().await;
    let relay = Relay::start(server.address).await;
    let straight = server.client().await;
    straight.create_topic("t").await.unwrap();
    let mut subscription = client(relay.address).await.subscribe("t").send().await.unwrap();
    let session = straight.append_session("t").durability(Durability::Written).open().await.unwrap();
    let (mut offsets, mut resumed) = (Vec::new(), 0);
    for round in 1..=12_u64 {
        for _ in 0..500 {
            drop(session.append(vec![b'x'; 200]).await.unwrap());
        }
        if round % 4 == 0 {
            server = server.restart().await;
        } else {
            relay.cut();
        }
        let (more, again) = follow(&mut subscription, round * 500).await;
        offsets.extend(more);
        resumed += again;
    }
    assert_eq!(offsets, (0..6000).collect::<Vec<_>>());
    assert!(resumed >= 6, "{resumed}");
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_trimmed_while_a_subscription_is_away_is_a_gap() {
    let server = Server::start().await;
    let relay = Relay::start(server.address).await;
    let straight = server.client().await;
    straight.create_topic("t").await.unwrap();
    straight.append("t", ["0", "1"]).await.unwrap();
    let mut subscription = client(relay.address).await.subscribe("t").send().await.unwrap();
    assert_eq!(follow(&mut subscription, 2).await.0, [0, 1]);
    assert!(matches!(next(&mut subscription).await, Event::CaughtUp { .. }));
    relay.cut();
    straight.append("t", ["2", "3", "4"]).await.unwrap();
    straight.trim_topic("t", 4).await.unwrap();
    let mut seen = Vec::new();
    while seen.last() != Some(&4) {
        match next(&mut subscription).await {
            Event::Records(batch) => seen.extend(batch.iter().map(|record| record.unwrap().offset())),
            Event::Gap(gap) => {
                assert!(gap.to == 4 && gap.from >= 2, "{gap:?}");
                seen.extend(gap.from..gap.to);
            }
            _ => {}
        }
    }
    assert_eq!(seen, [2, 3, 4]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_matches_nothing_makes_progress() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    for _ in 0..10 {
        client.append("t", (0..100).map(|n| Record::keyed("k", format!("{n}")))).await.unwrap();
    }
    let filter = Filter { keys: vec!["other".into()], ..Filter::default() };
    let mut subscription = client.subscribe("t").filter(filter).progress_records(100).send().await.unwrap();
    let mut progress = 0;
    loop {
        match next(&mut subscription).await {
            Event::Progress(_) => progress += 1,
            Event::CaughtUp { next_offset } => break assert_eq!(next_offset, 1000),
            other => panic!("{other:?}"),
        }
    }
    assert!(progress > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_that_nobody_reads_holds_up_nothing_else_on_its_connection() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    let idle = client.subscribe("t").visibility(Visibility::Written).send().await.unwrap();
    let session = client.append_session("t").durability(Durability::Written).open().await.unwrap();
    // More than the stream's window, 4 MiB.
    for _ in 0..400 {
        drop(session.append(vec![b'x'; 40 << 10]).await.unwrap());
    }
    tokio::time::timeout(PATIENCE, session.close()).await.unwrap().unwrap();
    let mut other = client.subscribe("t").heartbeat(Duration::from_secs(1)).send().await.unwrap();
    assert_eq!(follow(&mut other, 400).await.0.len(), 400);
    let mut idle = idle;
    assert_eq!(follow(&mut idle, 400).await.0, (0..400).collect::<Vec<_>>());
}
