//! Snapshots of streams, through a socket.

use pb::put_snapshot_response::Outcome;
use pb::snapshot_service_client::SnapshotServiceClient;
use quipu_proto::v1 as pb;
use quipu_storage::{Record, Storage, StoreSettings, TopicSettings};
use tonic::Code;
use tonic::transport::Channel;

use crate::common::*;

const NOT_APPLIED: &str = "NOT_APPLIED";

async fn snapshots(server: &Server) -> SnapshotServiceClient<Channel> {
    SnapshotServiceClient::new(server.channel().await).max_decoding_message_size(64 << 20)
}

fn put(revision: u64, snapshot: pb::Record) -> pb::PutSnapshotRequest {
    let snapshot = Some(snapshot);
    pb::PutSnapshotRequest { topic: "orders".into(), revision, snapshot, durability: 0 }
}

fn get(up_to_revision: Option<u64>) -> pb::GetSnapshotRequest {
    pb::GetSnapshotRequest { topic: "orders".into(), key: "a".into(), up_to_revision }
}

/// Five events of key `a`.
async fn server_with_events() -> Server {
    let server = Server::start().await;
    server.create("orders").await;
    let events = (0..5).map(|number: u64| keyed("a", &number.to_string())).collect();
    server.log().await.append(append("orders", events)).await.unwrap();
    server
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_are_put_and_got_up_to_a_revision() {
    let server = server_with_events().await;
    let mut snapshots = snapshots(&server).await;
    assert_eq!(snapshots.get_snapshot(get(None)).await.unwrap().into_inner().snapshot, None);
    let state = pb::Record { r#type: "Order.v1".into(), ..keyed("a", "at 2") };
    let answer = snapshots.put_snapshot(put(2, state)).await.unwrap().into_inner();
    assert_eq!(answer.outcome, Some(Outcome::Offset(0)));
    snapshots.put_snapshot(put(4, keyed("a", "at 4"))).await.unwrap();
    let answer = snapshots.put_snapshot(put(3, keyed("a", "at 3"))).await.unwrap().into_inner();
    assert_eq!(answer.outcome, Some(Outcome::SupersededBy(4)));
    for (up_to, revision, payload, offset) in [(None, 4, "at 4", 1), (Some(3), 2, "at 2", 0)] {
        let found = snapshots.get_snapshot(get(up_to)).await.unwrap().into_inner().snapshot.unwrap();
        let record = found.record.unwrap();
        assert_eq!((found.revision, &record.payload.unwrap()[..]), (revision, payload.as_bytes()));
        assert_eq!((found.offset, record.key.as_deref()), (offset, Some(&b"a"[..])));
        assert!(found.append_time_ms > 0);
    }
    assert_eq!(snapshots.get_snapshot(get(Some(1))).await.unwrap().into_inner().snapshot, None);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_snapshot_is_refused_and_changes_nothing() {
    let server = server_with_events().await;
    let mut snapshots = snapshots(&server).await;
    let error = snapshots.put_snapshot(put(5, keyed("a", "x"))).await.unwrap_err();
    assert_reason(&error, Code::OutOfRange, "REVISION_UNWRITTEN", NOT_APPLIED);
    assert_eq!((metadata(&error, "revision"), metadata(&error, "next_revision")), ("5".into(), "5".into()));
    let tombstone = pb::Record { key: Some("a".into()), ..Default::default() };
    for (request, wrong) in [
        (put(1, record("x")), vec!["snapshot.key"]),
        (put(1, tombstone), vec!["snapshot.payload"]),
        (
            pb::PutSnapshotRequest { topic: "..".into(), snapshot: None, durability: 9, revision: 0 },
            vec!["topic", "durability", "snapshot.key", "snapshot.payload"],
        ),
    ] {
        let error = snapshots.put_snapshot(request).await.unwrap_err();
        assert_reason(&error, Code::InvalidArgument, "INVALID_REQUEST", NOT_APPLIED);
        assert_eq!(fields(&error), wrong);
    }
    let long = pb::Record { r#type: "x".repeat(256), ..keyed("a", "x") };
    let error = snapshots.put_snapshot(put(1, long)).await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "RECORD_TOO_LARGE", NOT_APPLIED);
    let tags = vec!["t".to_owned(); 65];
    let error = snapshots.put_snapshot(put(1, pb::Record { tags, ..keyed("a", "x") })).await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "RECORD_TOO_LARGE", NOT_APPLIED);
    let error = snapshots.get_snapshot(pb::GetSnapshotRequest::default()).await.unwrap_err();
    assert_eq!(fields(&error), ["topic"]);
    let request = pb::PutSnapshotRequest { topic: "missing".into(), ..put(0, keyed("a", "x")) };
    let error = snapshots.put_snapshot(request).await.unwrap_err();
    assert_reason(&error, Code::NotFound, "TOPIC_NOT_FOUND", NOT_APPLIED);
    let request = pb::GetSnapshotRequest { topic: "missing".into(), ..get(None) };
    let error = snapshots.get_snapshot(request).await.unwrap_err();
    assert_reason(&error, Code::NotFound, "TOPIC_NOT_FOUND", NOT_APPLIED);
    assert_eq!(server.store.topics().len(), 1);
    let in_memory = TopicSettings { storage: Storage::Memory { bytes_max: 1 << 20 }, ..Default::default() };
    let volatile = server.store.create_topic("volatile", in_memory).unwrap();
    volatile.append(&[Record::keyed("a", "0")]).unwrap();
    let request = pb::PutSnapshotRequest { topic: "volatile".into(), ..put(0, keyed("a", "x")) };
    let error = snapshots.put_snapshot(request).await.unwrap_err();
    assert_reason(&error, Code::FailedPrecondition, "SNAPSHOTS_REFUSED", NOT_APPLIED);
    assert_eq!(metadata(&error, "topic"), "volatile");
    server.stop().await.unwrap();
}

/// The limit of requests that bring no records is 128 KiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_may_be_as_large_as_an_append() {
    let server = server_with_events().await;
    let mut snapshots = snapshots(&server).await;
    let large = "x".repeat(7 << 20);
    snapshots.put_snapshot(put(1, keyed("a", &large))).await.unwrap();
    let found = snapshots.get_snapshot(get(None)).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(found.record.unwrap().payload.unwrap().len(), large.len());
    let too_large = "x".repeat(usize::try_from(StoreSettings::default().append_bytes_max).unwrap());
    let error = snapshots.put_snapshot(put(1, keyed("a", &too_large))).await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "APPEND_TOO_LARGE", NOT_APPLIED);
    server.stop().await.unwrap();
}
