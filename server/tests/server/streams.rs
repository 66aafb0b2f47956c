//! Streams: what is known of them, and reading them by revisions.

use pb::start_position::Position;
use quipu_proto::v1 as pb;
use tonic::Code;

use crate::common::*;

const NOT_APPLIED: &str = "NOT_APPLIED";

fn filter(key: &str) -> Option<pb::Filter> {
    Some(pb::Filter { keys: vec![key.as_bytes().to_vec().into()], ..Default::default() })
}

fn read(key: &str, start: Position) -> pb::ReadRequest {
    pb::ReadRequest { topic: "orders".into(), filter: filter(key), start: at(start), ..Default::default() }
}

/// Ten records of each of three keys, and as many without one, in this order.
async fn server_with_streams() -> Server {
    let server = Server::start().await;
    let small = pb::TopicSettings { segment_bytes_max: 64 << 10, ..Default::default() };
    server.create_with("orders", small).await;
    let mut log = server.log().await;
    for number in 0..10 {
        let of = |key: &str| keyed(key, &number.to_string());
        let payload = "x".repeat(20_000);
        let records = vec![of("a"), of("ab"), of("b"), record(payload)];
        log.append(append("orders", records)).await.unwrap();
    }
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_from_a_revision_in_both_directions() {
    let server = server_with_streams().await;
    let mut log = server.log().await;
    for is_in_segments in [false, true] {
        if is_in_segments {
            server.store.checkpoint().unwrap();
        }
        for (start, backwards, expected) in [
            (Position::Revision(0), false, (0..10).collect::<Vec<_>>()),
            (Position::Revision(7), false, vec![7, 8, 9]),
            (Position::Revision(10), false, vec![]),
            (Position::AfterRevision(7), false, vec![8, 9]),
            (Position::AfterRevision(9), false, vec![]),
            (Position::LastRevisions(2), false, vec![8, 9]),
            (Position::LastRevisions(99), false, (0..10).collect()),
            (Position::Revision(2), true, vec![2, 1, 0]),
            (Position::Revision(9), true, (0..10).rev().collect()),
            (Position::LastRevisions(9), true, vec![1, 0]),
            (Position::Latest(Default::default()), true, (0..10).rev().collect()),
        ] {
            let request = pb::ReadRequest { backwards, ..read("ab", start) };
            let (found, ..) = read_all(&mut log, request).await.unwrap();
            let expected: Vec<_> = expected.iter().map(|n: &u64| (n * 4 + 1, n.to_string())).collect();
            assert_eq!(found, expected, "{start:?} {backwards}");
        }
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_of_a_stream_begins_at_a_revision_and_follows() {
    let server = server_with_streams().await;
    server.store.checkpoint().unwrap();
    let mut log = server.log().await;
    let request = pb::SubscribeRequest {
        topic: "orders".into(),
        filter: filter("b"),
        start: at(Position::AfterRevision(7)),
        ..Default::default()
    };
    let mut events = log.subscribe(request).await.unwrap().into_inner();
    log.append(append("orders", vec![keyed("a", "x"), keyed("b", "10")])).await.unwrap();
    let mut found = Vec::new();
    while found.len() < 3 {
        let message = tokio::time::timeout(PATIENCE, events.message()).await.unwrap().unwrap().unwrap();
        if let Some(pb::subscribe_response::Event::Batches(batches)) = message.event {
            for batch in &batches.batches {
                found.extend(batch.revisions.iter().copied().zip(contents(batch)));
            }
        }
    }
    let expected = [(8, (34, "8".into())), (9, (38, "9".into())), (10, (41, "10".into()))];
    assert_eq!(found, expected);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_in_a_stream_needs_one_key_and_a_revision_that_may_be_next() {
    let server = server_with_streams().await;
    let mut log = server.log().await;
    for (key, start, next) in [
        ("a", Position::Revision(11), "10"),
        ("a", Position::AfterRevision(10), "10"),
        ("none", Position::Revision(1), "0"),
        ("none", Position::AfterRevision(0), "0"),
    ] {
        let error = log.read(read(key, start)).await.unwrap_err();
        assert_reason(&error, Code::OutOfRange, "REVISION_UNWRITTEN", NOT_APPLIED);
        assert_eq!(metadata(&error, "next_revision"), next);
    }
    let two = Some(pb::Filter { keys: vec!["a".into(), "b".into()], ..Default::default() });
    let prefix = pb::Filter { key_prefixes: vec!["a".into()], ..filter("a").unwrap() };
    for filter in [None, two, Some(prefix)] {
        let error =
            log.read(pb::ReadRequest { filter, ..read("a", Position::Revision(0)) }).await.unwrap_err();
        assert_reason(&error, Code::InvalidArgument, "INVALID_REQUEST", NOT_APPLIED);
        assert_eq!(fields(&error), ["start"]);
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_are_listed_by_prefix_page_by_page_and_one_by_one() {
    let server = server_with_streams().await;
    server.store.checkpoint().unwrap();
    server.store.topic("orders").unwrap().trim(quipu_storage::Offset(5)).unwrap();
    let mut log = server.log().await;
    let stream = |key: &str, first: u64| pb::Stream {
        key: key.as_bytes().to_vec().into(),
        last_revision: 9,
        record_count: 10 - first,
        first_revision: Some(first),
        last_offset: Some(36 + ["a", "ab", "b"].iter().position(|one| *one == key).unwrap() as u64),
    };
    let expected = [stream("a", 2), stream("ab", 1), stream("b", 1)];
    let mut request = pb::ListStreamsRequest { topic: "orders".into(), page_size: 2, ..Default::default() };
    let first = log.list_streams(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.streams, expected[..2]);
    request.page_token = first.next_page_token;
    let second = log.list_streams(request.clone()).await.unwrap().into_inner();
    assert_eq!((&second.streams[..], &second.next_page_token[..]), (&expected[2..], &b""[..]));
    let of_prefix =
        pb::ListStreamsRequest { topic: "orders".into(), prefix: "a".into(), ..Default::default() };
    assert_eq!(log.list_streams(of_prefix).await.unwrap().into_inner().streams, expected[..2]);
    let other = pb::ListStreamsRequest { prefix: "b".into(), ..request };
    assert_eq!(fields(&log.list_streams(other).await.unwrap_err()), ["page_token"]);
    let get = |key: &'static str| pb::GetStreamRequest { topic: "orders".into(), key: key.into() };
    assert_eq!(log.get_stream(get("b")).await.unwrap().into_inner().stream.as_ref(), Some(&expected[2]));
    assert_eq!(log.get_stream(get("none")).await.unwrap().into_inner().stream, None);
    let missing = pb::GetStreamRequest { topic: "no".into(), key: "b".into() };
    let error = log.get_stream(missing).await.unwrap_err();
    assert_reason(&error, Code::NotFound, "TOPIC_NOT_FOUND", NOT_APPLIED);
    server.stop().await.unwrap();
}
