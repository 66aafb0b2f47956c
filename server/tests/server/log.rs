//! Appending, reading, and looking up single records, through a socket.

use crate::common::*;
use pb::start_position::Position;
use prost::Message;
use quipu_proto::v1 as pb;
use tonic::Code;

fn letters(count: u64) -> Vec<(u64, String)> {
    (0..count).map(|offset| (offset, format!("event-{offset}"))).collect()
}

/// Single-record batches and larger ones.
async fn filled(server: &Server, count: u64) {
    server.create("orders").await;
    let mut log = server.log().await;
    let mut next = 0;
    while next < count {
        let size = (next % 4 + 1).min(count - next);
        let records = (next..next + size).map(|offset| record(format!("event-{offset}"))).collect();
        let appended = log.append(append("orders", records)).await.unwrap().into_inner().appended;
        assert_eq!((appended[0].first_offset, appended[0].next_offset), (next, next + size));
        next += size;
    }
}

fn read(topic: &str) -> pb::ReadRequest {
    pb::ReadRequest { topic: topic.into(), ..Default::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_appended_is_read_back_in_order_and_with_its_checksum() {
    let server = Server::start().await;
    filled(&server, 100).await;
    let mut log = server.log().await;
    let (records, gaps, end) = read_all(&mut log, read("orders")).await.unwrap();
    assert_eq!(records, letters(100));
    assert!(gaps.is_empty());
    assert_eq!((end.next_offset, end.log_start_offset, end.high_watermark), (100, 0, 100));
    // From the disk, as from memory.
    server.store.checkpoint().unwrap();
    let (records, _, _) = read_all(&mut log, read("orders")).await.unwrap();
    assert_eq!(records, letters(100));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_starts_and_ends_where_it_is_told() {
    let server = Server::start().await;
    filled(&server, 50).await;
    let mut log = server.log().await;
    for (start, until_offset, records_max, backwards, wanted) in [
        (at(Position::Offset(7)), Some(9), 0, false, vec![7, 8]),
        (at(Position::AfterOffset(7)), None, 3, false, vec![8, 9, 10]),
        (at(Position::Last(2)), None, 0, false, vec![48, 49]),
        (at(Position::Latest(Default::default())), None, 0, false, vec![]),
        (at(Position::TimeMs(0)), Some(1), 0, false, vec![0]),
        (None, Some(2), 0, false, vec![0, 1]),
        (None, None, 3, true, vec![49, 48, 47]),
        (at(Position::Offset(5)), Some(3), 0, true, vec![5, 4, 3]),
        (at(Position::Earliest(Default::default())), None, 0, true, vec![0]),
    ] {
        let request = pb::ReadRequest { start, until_offset, records_max, backwards, ..read("orders") };
        let what = format!("{request:?}");
        let (records, _, end) = read_all(&mut log, request).await.unwrap();
        let offsets: Vec<_> = records.iter().map(|(offset, _)| *offset).collect();
        assert_eq!(offsets, wanted, "{what}");
        for (offset, payload) in records {
            assert_eq!(payload, format!("event-{offset}"));
        }
        if let Some(last) = wanted.last() {
            assert_eq!(end.next_offset, if backwards { *last } else { last + 1 }, "{what}");
        }
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_lets_through_what_satisfies_it_forwards_and_backwards() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    for round in 0..10 {
        let records = (0..4).map(|key| keyed(&format!("k{key}"), &format!("{round}.{key}"))).collect();
        log.append(append("orders", records)).await.unwrap();
    }
    let filter = Some(pb::Filter { keys: vec!["k1".into(), "k3".into()], ..Default::default() });
    let request = pb::ReadRequest { filter, ..read("orders") };
    let (records, _, end) = read_all(&mut log, request.clone()).await.unwrap();
    let wanted: Vec<_> = (0..10).flat_map(|round| [round * 4 + 1, round * 4 + 3]).collect();
    assert_eq!(records.iter().map(|(offset, _)| *offset).collect::<Vec<_>>(), wanted);
    assert_eq!(records[2], (5, "1.1".into()));
    assert_eq!(end.next_offset, 40);
    let (mut backwards, _, _) =
        read_all(&mut log, pb::ReadRequest { backwards: true, ..request }).await.unwrap();
    backwards.reverse();
    assert_eq!(backwards, records);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_too_large_for_one_message_comes_in_parts() {
    let server = Server::start().await;
    server.create("large").await;
    let mut log = server.log().await;
    let records: Vec<_> = (0..7).map(|number| record(vec![b'a' + number; 1 << 20])).collect();
    log.append(append("large", records)).await.unwrap();
    for backwards in [false, true] {
        let mut stream = log.read(pb::ReadRequest { backwards, ..read("large") }).await.unwrap().into_inner();
        let mut offsets = Vec::new();
        while let Some(response) = stream.message().await.unwrap() {
            assert!(
                response.encoded_len() < 4 << 20,
                "a gRPC client takes 4 MiB if it is not told otherwise"
            );
            if let Some(pb::read_response::Event::Batches(batches)) = response.event {
                let found = batches.batches.iter().flat_map(contents);
                offsets.extend(found.map(|(offset, payload)| (offset, payload.as_bytes()[0])));
            }
        }
        if backwards {
            offsets.reverse();
        }
        assert_eq!(offsets, (0..7).map(|n| (n, b'a' + n as u8)).collect::<Vec<_>>());
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_to_several_topics_is_all_or_nothing() {
    let server = Server::start().await;
    server.create("a").await;
    server.create("b").await;
    let mut log = server.log().await;
    let both = |second: &str| {
        let mut request = append("a", vec![record("1")]);
        request.appends.extend(append(second, vec![record("2"), record("3")]).appends);
        request
    };
    let error = log.append(both("missing")).await.unwrap_err();
    assert_reason(&error, Code::NotFound, "TOPIC_NOT_FOUND", "NOT_APPLIED");
    assert_eq!(server.store.topic("a").unwrap().log_end_offset().value(), 0);
    let appended = log.append(both("b")).await.unwrap().into_inner().appended;
    let summary: Vec<_> =
        appended.iter().map(|a| (a.topic.as_str(), a.first_offset, a.next_offset)).collect();
    assert_eq!(summary, [("a", 0, 1), ("b", 0, 2)]);
    assert_eq!(appended[0].durability(), pb::Durability::Synced);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn each_durability_is_answered_as_it_was_asked_for() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    for durability in [pb::Durability::Accepted, pb::Durability::Written, pb::Durability::Synced] {
        let request =
            pb::AppendRequest { durability: durability.into(), ..append("orders", vec![record("x")]) };
        let appended = log.append(request).await.unwrap().into_inner().appended;
        assert_eq!(appended[0].durability(), durability);
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_only_checks_and_appends_nothing() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    let request = pb::AppendRequest { validate_only: true, ..append("orders", vec![record("x")]) };
    assert_eq!(log.append(request.clone()).await.unwrap().into_inner().appended, []);
    let too_large = keyed(&"k".repeat(5000), "x");
    let request = pb::AppendRequest { validate_only: true, ..append("orders", vec![too_large]) };
    let error = log.append(request).await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "RECORD_TOO_LARGE", "NOT_APPLIED");
    assert_eq!(server.store.topic("orders").unwrap().log_end_offset().value(), 0);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_record_comes_back_with_all_its_fields() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    let whole = pb::Record {
        id: Some(vec![7; 16].into()),
        r#type: "placed".into(),
        tags: vec!["eu".into(), "vip".into()],
        headers: vec![pb::Header { name: "source".into(), value: vec![1, 2].into() }],
        content_type: "text/plain".into(),
        ..keyed("order-7", "hello")
    };
    let tombstone = pb::Record { payload: None, ..keyed("order-7", "") };
    log.append(append("orders", vec![whole.clone(), tombstone.clone()])).await.unwrap();
    for (offset, wanted) in [(0, whole), (1, tombstone)] {
        let request = pb::GetRecordRequest { topic: "orders".into(), offset };
        let found = log.get_record(request).await.unwrap().into_inner();
        assert_eq!(found.record, Some(wanted));
        assert!(found.append_time_ms > 0);
    }
    let bounds = log.get_bounds(pb::GetBoundsRequest { topic: "orders".into() }).await.unwrap().into_inner();
    assert_eq!((bounds.log_start_offset, bounds.high_watermark, bounds.log_end_offset), (0, 2, 2));
    server.stop().await.unwrap();
}
