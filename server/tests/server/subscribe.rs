//! Subscriptions: catching up, following, and everything that may come in between.

use pb::start_position::Position;
use pb::subscribe_response::Event;
use quipu_proto::v1 as pb;
use quipu_proto::v1::log_service_client::LogServiceClient;
use quipu_server::Config;
use quipu_storage::{Durability, Offset, Record, Store, StoreSettings};
use tonic::{Code, Streaming};

use crate::common::*;

type Events = Streaming<pb::SubscribeResponse>;

fn subscribe(topic: &str) -> pb::SubscribeRequest {
    pb::SubscribeRequest { topic: topic.into(), ..Default::default() }
}

async fn next(events: &mut Events) -> Event {
    let next = tokio::time::timeout(PATIENCE, events.message()).await.expect("never silent");
    next.unwrap().expect("it goes on").event.unwrap()
}

/// The next event that is no sign of life.
async fn next_but_heartbeats(events: &mut Events) -> Event {
    loop {
        match next(events).await {
            Event::Heartbeat(_) => {}
            event => return event,
        }
    }
}

/// Reads records until `count` have come; anything else but heartbeats is answered as the first thing that came between.
async fn records(events: &mut Events, count: usize) -> Vec<(u64, String)> {
    let mut found = Vec::new();
    while found.len() < count {
        match next_but_heartbeats(events).await {
            Event::Batches(batches) => batches.batches.iter().for_each(|batch| found.extend(contents(batch))),
            other => panic!("{other:?} after {} records", found.len()),
        }
    }
    assert_eq!(found.len(), count);
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_catches_up_from_the_disk_and_then_follows() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    for number in 0..20 {
        log.append(append("orders", vec![record(format!("{number}"))])).await.unwrap();
    }
    server.store.checkpoint().unwrap();
    let mut events = log.subscribe(subscribe("orders")).await.unwrap().into_inner();
    let caught_up = records(&mut events, 20).await;
    assert!(caught_up.iter().enumerate().all(|(n, record)| *record == (n as u64, n.to_string())));
    assert_eq!(next_but_heartbeats(&mut events).await, Event::CaughtUp(pb::CaughtUp { next_offset: 20 }));
    for number in 20..30 {
        log.append(append("orders", vec![record(format!("{number}"))])).await.unwrap();
        assert_eq!(records(&mut events, 1).await, [(number, number.to_string())]);
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_from_the_latest_is_caught_up_at_once_and_sees_what_comes() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    log.append(append("orders", vec![record("old")])).await.unwrap();
    let request =
        pb::SubscribeRequest { start: at(Position::Latest(Default::default())), ..subscribe("orders") };
    let mut events = log.subscribe(request).await.unwrap().into_inner();
    assert_eq!(next_but_heartbeats(&mut events).await, Event::CaughtUp(pb::CaughtUp { next_offset: 1 }));
    log.append(append("orders", vec![record("new")])).await.unwrap();
    assert_eq!(records(&mut events, 1).await, [(1, "new".into())]);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_only_written_is_seen_by_those_who_ask_for_it() {
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let server = Server::with_settings(settings).await;
    server.create("orders").await;
    let mut log = server.log().await;
    let request = |visibility: pb::Visibility| pb::SubscribeRequest {
        visibility: visibility.into(),
        heartbeat_ms: 100,
        ..subscribe("orders")
    };
    let mut synced = log.subscribe(request(pb::Visibility::Synced)).await.unwrap().into_inner();
    let mut written = log.subscribe(request(pb::Visibility::Written)).await.unwrap().into_inner();
    assert!(matches!(next_but_heartbeats(&mut synced).await, Event::CaughtUp(_)));
    assert!(matches!(next_but_heartbeats(&mut written).await, Event::CaughtUp(_)));
    let durability = pb::Durability::Written.into();
    log.append(pb::AppendRequest { durability, ..append("orders", vec![record("x")]) }).await.unwrap();
    assert_eq!(records(&mut written, 1).await.len(), 1);
    // The heartbeat is the word that nothing is visible.
    assert!(matches!(next(&mut synced).await, Event::Heartbeat(heartbeat) if heartbeat.next_offset == 0));
    server.store.sync().unwrap();
    assert_eq!(records(&mut synced, 1).await.len(), 1);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_that_matches_nothing_tells_its_progress_by_count_and_by_time() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    log.append(append("orders", vec![keyed("a", "x"); 1000])).await.unwrap();
    let filter = Some(pb::Filter { keys: vec!["b".into()], ..Default::default() });
    let request =
        pb::SubscribeRequest { filter, progress_records: 100, heartbeat_ms: 100, ..subscribe("orders") };
    let mut events = log.subscribe(request).await.unwrap().into_inner();
    let Event::Progress(progress) = next(&mut events).await else { panic!("no progress by count") };
    assert!(progress.next_offset >= 100);
    assert_eq!(progress.high_watermark, 1000);
    while !matches!(next(&mut events).await, Event::CaughtUp(caught_up) if caught_up.next_offset == 1000) {}
    // Fewer than the count: told when the time is up.
    log.append(append("orders", vec![keyed("a", "x"); 3])).await.unwrap();
    loop {
        match next(&mut events).await {
            Event::Heartbeat(heartbeat) => assert_eq!(heartbeat.next_offset, 1000),
            Event::Progress(progress) => break assert_eq!(progress.next_offset, 1003),
            other => panic!("{other:?}"),
        }
    }
    log.append(append("orders", vec![keyed("b", "wanted")])).await.unwrap();
    assert_eq!(records(&mut events, 1).await, [(1003, "wanted".into())]);
    server.stop().await.unwrap();
}

/// A topic of 16 MiB in single-record batches, and a subscription of a client that has taken nothing of it: by HTTP/2 flow
/// control the server cannot have sent more than a fraction.
async fn stuck_at_the_start(server: &Server, settings: pb::TopicSettings) -> Events {
    server.create_with("orders", settings).await;
    let narrow = endpoint(server.address).initial_stream_window_size(64 << 10);
    let mut log = LogServiceClient::new(narrow.connect().await.unwrap());
    let mut events = log.subscribe(subscribe("orders")).await.unwrap().into_inner();
    assert!(matches!(next_but_heartbeats(&mut events).await, Event::CaughtUp(_)));
    let topic = server.store.topic("orders").unwrap();
    let payload = vec![b'x'; 16 << 10];
    let written = tokio::task::spawn_blocking(move || {
        for _ in 0..1024 {
            topic.append_with(&[Record::new(payload.clone())], Durability::Accepted).unwrap();
        }
        topic.store().sync().unwrap();
    });
    written.await.unwrap();
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_trimmed_before_a_slow_reader_came_to_them_are_a_gap() {
    let server = Server::start().await;
    let mut events = stuck_at_the_start(&server, pb::TopicSettings::default()).await;
    let trim = pb::TrimTopicRequest { name: "orders".into(), before_offset: 1000 };
    server.topics().await.trim_topic(trim).await.unwrap();
    let (gap, last) = until_gap(&mut events).await;
    assert_eq!((gap.from, gap.to, gap.reason()), (last, 1000, pb::gap::Reason::Trimmed));
    let Event::Batches(batches) = next_behind(&mut events).await else { panic!("records follow") };
    assert_eq!(batches.batches[0].first_offset, 1000);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_a_topic_in_memory_dropped_before_a_slow_reader_came_to_them_are_a_gap() {
    let server = Server::start().await;
    let memory = Some(pb::topic_settings::MemoryStorage { bytes_max: 1 << 20 });
    let settings = pb::TopicSettings { memory, ..Default::default() };
    let mut events = stuck_at_the_start(&server, settings).await;
    let (gap, last) = until_gap(&mut events).await;
    assert_eq!((gap.from, gap.reason()), (last, pb::gap::Reason::Evicted));
    // Between a gap and the records behind it the writer may drop those as well: gaps that follow each other without a hole.
    let mut dropped_to = gap.to;
    let batches = loop {
        match next_behind(&mut events).await {
            Event::Gap(gap) => {
                assert_eq!((gap.from, gap.reason()), (dropped_to, pb::gap::Reason::Evicted));
                assert!(gap.to > gap.from);
                dropped_to = gap.to;
            }
            Event::Batches(batches) => break batches,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(batches.batches[0].first_offset, dropped_to);
    server.stop().await.unwrap();
}

/// The first gap, and where the records before it end. Every record before it comes in order.
async fn until_gap(events: &mut Events) -> (pb::Gap, u64) {
    let mut expected = 0;
    loop {
        match next_behind(events).await {
            Event::Batches(batches) => {
                for (offset, _) in batches.batches.iter().flat_map(contents) {
                    assert_eq!(offset, expected);
                    expected += 1;
                }
            }
            Event::Gap(gap) => return (gap, expected),
            other => panic!("{other:?}"),
        }
    }
}

/// The next event of a reader that may be behind, or not: that is not the question.
async fn next_behind(events: &mut Events) -> Event {
    loop {
        match next_but_heartbeats(events).await {
            Event::FellBehind(_) | Event::CaughtUp(_) => {}
            event => return event,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_too_slow_for_the_tail_falls_behind_and_catches_up_without_loss() {
    let server = Server::start().await;
    let mut events = stuck_at_the_start(&server, pb::TopicSettings::default()).await;
    // What it has not taken yet is on the disk only.
    server.store.checkpoint().unwrap();
    let (mut expected, mut fell_behind) = (0, None);
    loop {
        match next_but_heartbeats(&mut events).await {
            Event::Batches(batches) => {
                for (offset, _) in batches.batches.iter().flat_map(contents) {
                    assert_eq!(offset, expected);
                    expected += 1;
                }
            }
            Event::FellBehind(event) => {
                assert_eq!(event.next_offset, expected);
                fell_behind = Some(event);
            }
            Event::CaughtUp(caught_up) if caught_up.next_offset == 1024 => break,
            Event::CaughtUp(caught_up) => assert_eq!(caught_up.next_offset, expected),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(expected, 1024);
    assert!(fell_behind.is_some());
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_topic_ends_its_subscriptions_with_not_found() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    let mut events = log.subscribe(subscribe("orders")).await.unwrap().into_inner();
    assert!(matches!(next_but_heartbeats(&mut events).await, Event::CaughtUp(_)));
    server.topics().await.delete_topic(pb::DeleteTopicRequest { name: "orders".into() }).await.unwrap();
    let error = tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap_err();
    assert_reason(&error, Code::NotFound, "TOPIC_NOT_FOUND", "NOT_APPLIED");
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_drains_subscriptions_and_tells_them_where_to_go_on() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    log.append(append("orders", vec![record("x")])).await.unwrap();
    let mut events = log.subscribe(subscribe("orders")).await.unwrap().into_inner();
    records(&mut events, 1).await;
    assert!(matches!(next_but_heartbeats(&mut events).await, Event::CaughtUp(_)));
    let stopping = tokio::spawn(server.stop());
    assert_eq!(next_but_heartbeats(&mut events).await, Event::Draining(pb::Draining { next_offset: 1 }));
    let error = events.message().await.unwrap_err();
    assert_reason(&error, Code::Unavailable, "DRAINING", "NOT_APPLIED");
    stopping.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_has_only_so_many_subscriptions() {
    let config = Config { subscriptions_max: 2, ..Config::default() };
    let server = Server::with(config, Store::builder()).await;
    server.create("orders").await;
    let mut log = server.log().await;
    let _first = log.subscribe(subscribe("orders")).await.unwrap();
    let second = log.subscribe(subscribe("orders")).await.unwrap();
    let error = log.subscribe(subscribe("orders")).await.unwrap_err();
    assert_reason(&error, Code::ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS", "NOT_APPLIED");
    // One that ends makes room, when the server has heard of it.
    drop(second);
    let status = || pb::GetTopicStatusRequest { name: "orders".into() };
    let mut topics = server.topics().await;
    while topics.get_topic_status(status()).await.unwrap().into_inner().subscribers > 1 {}
    log.subscribe(subscribe("orders")).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn damage_ends_a_subscription_with_its_range_and_what_lies_behind_can_be_read() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    for number in 0..3 {
        log.append(append("orders", vec![record(format!("payload-{number}"))])).await.unwrap();
    }
    server.store.checkpoint().unwrap();
    rot(&server.dir.path().join("data/topics"), b"payload-1");
    let mut events = log.subscribe(subscribe("orders")).await.unwrap().into_inner();
    assert_eq!(records(&mut events, 1).await, [(0, "payload-0".into())]);
    let error = loop {
        match events.message().await {
            Ok(event) => assert!(matches!(event.unwrap().event, Some(Event::Heartbeat(_)))),
            Err(error) => break error,
        }
    };
    assert_reason(&error, Code::DataLoss, "CORRUPT_RANGE", "NOT_APPLIED");
    assert_eq!((metadata(&error, "from"), metadata(&error, "to")), ("1".into(), "2".into()));
    assert!(metadata(&error, "path").contains("topics"));
    let start = at(Position::Offset(2));
    let mut events =
        log.subscribe(pb::SubscribeRequest { start, ..subscribe("orders") }).await.unwrap().into_inner();
    assert_eq!(records(&mut events, 1).await, [(2, "payload-2".into())]);
    server.stop().await.unwrap();
}

/// Flips a bit of the first place below `dir` that has these bytes.
fn rot(dir: &std::path::Path, bytes: &[u8]) {
    use std::os::unix::fs::FileExt;
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            rot(&path, bytes);
        } else if let Some(at) =
            std::fs::read(&path).unwrap().windows(bytes.len()).position(|window| window == bytes)
        {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&[bytes[0] ^ 1], at as u64).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backwards_read_stops_at_damage_with_an_error() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    for number in 0..3 {
        log.append(append("orders", vec![record(format!("payload-{number}"))])).await.unwrap();
    }
    server.store.checkpoint().unwrap();
    rot(&server.dir.path().join("data/topics"), b"payload-1");
    let request = pb::ReadRequest { topic: "orders".into(), backwards: true, ..Default::default() };
    let error = read_all(&mut log, request).await.unwrap_err();
    assert_reason(&error, Code::DataLoss, "CORRUPT_RANGE", "NOT_APPLIED");
    assert_eq!(server.store.topic("orders").unwrap().log_end_offset(), Offset(3));
    server.stop().await.unwrap();
}

/// A subscription for one key once read every record of its topic, and each that came.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_for_one_key_reads_only_its_records_and_still_tells_its_progress() {
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let server = Server::with_settings(settings).await;
    let small = pb::TopicSettings { segment_bytes_max: 64 << 10, ..Default::default() };
    server.create_with("orders", small).await;
    let topic = server.store.topic("orders").unwrap();
    let others =
        || (0..100).map(|n| Record::keyed(format!("other {n}"), vec![b'x'; 100])).collect::<Vec<_>>();
    for _ in 0..100 {
        topic.append_with(&others(), Durability::Written).unwrap();
    }
    topic.append_with(&[Record::keyed("mine", "0")], Durability::Written).unwrap();
    server.store.checkpoint().unwrap();
    assert!(topic.stats().segments > 10);
    let read = || server.store.stats().batches_read;
    let before = read();
    let filter = || Some(pb::Filter { keys: vec!["mine".into()], ..Default::default() });
    let mut log = server.log().await;
    let request = pb::SubscribeRequest {
        filter: filter(),
        visibility: pb::Visibility::Written.into(),
        ..subscribe("orders")
    };
    let mut events = log.subscribe(request).await.unwrap().into_inner();
    assert_eq!(records(&mut events, 1).await, [(10_000, "0".into())]);
    // A progress may come before, about what was passed over.
    while !matches!(next(&mut events).await, Event::CaughtUp(caught_up) if caught_up.next_offset == 10_001) {}
    for _ in 0..100 {
        topic.append_with(&others(), Durability::Written).unwrap();
    }
    while !matches!(next(&mut events).await, Event::Progress(progress) if progress.next_offset > 10_001) {}
    topic.append_with(&[Record::keyed("mine", "1")], Durability::Written).unwrap();
    loop {
        match next(&mut events).await {
            Event::Batches(batches) => {
                break assert_eq!(contents(&batches.batches[0]), [(20_001, "1".into())]);
            }
            Event::CaughtUp(_) | Event::FellBehind(_) | Event::Progress(_) | Event::Heartbeat(_) => {}
            other => panic!("{other:?}"),
        }
    }
    drop(events);
    for backwards in [false, true] {
        let request =
            pb::ReadRequest { topic: "orders".into(), filter: filter(), backwards, ..Default::default() };
        server.store.sync().unwrap();
        let (found, _, end) = read_all(&mut log, request).await.unwrap();
        assert_eq!(found.len(), 2);
        assert_eq!(end.next_offset, if backwards { 0 } else { 20_002 });
    }
    server.store.checkpoint().unwrap();
    assert!(read() - before <= 10, "{} batches were read", read() - before);
    server.stop().await.unwrap();
}
