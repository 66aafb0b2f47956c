//! Sealed payloads over the wire: readers get them, or are told why not.

use std::sync::Arc;

use quipu_proto::v1 as pb;
use quipu_proto::v1::erasure_service_client::ErasureServiceClient;
use quipu_proto::v1::record::Redaction;
use quipu_proto::v1::snapshot_service_client::SnapshotServiceClient;
use quipu_server::Config;
use quipu_storage::Store;
use tonic::Code;

use crate::common::*;
use crate::stalled_disk::{StallingDisk, sealing};

fn sealed(erasure_key: &str, payload: &str) -> pb::Record {
    pb::Record { erasure_key: Some(erasure_key.into()), ..keyed("order-7", payload) }
}

async fn send(server: &Server, records: Vec<pb::Record>) -> Result<(), tonic::Status> {
    server.log().await.append(append("t", records)).await.map(drop)
}

/// Payload and redaction of each record, read forwards, backwards and one by one.
async fn read(server: &Server) -> Vec<(Option<String>, Redaction)> {
    let seen = |record: &pb::Record| {
        let payload = record.payload.as_ref().map(|payload| String::from_utf8(payload.to_vec()).unwrap());
        (payload, record.redacted())
    };
    let mut all = Vec::new();
    for backwards in [false, true] {
        let request = pb::ReadRequest { topic: "t".into(), backwards, ..Default::default() };
        let mut stream = server.log().await.read(request).await.unwrap().into_inner();
        let mut found = Vec::new();
        while let Some(response) = stream.message().await.unwrap() {
            if let Some(pb::read_response::Event::Batches(batches)) = response.event {
                for batch in batches.batches {
                    // Compares the checksum.
                    contents(&batch);
                    found.extend(batch.records.iter().map(seen));
                }
            }
        }
        if backwards {
            found.reverse();
        }
        all.push(found);
    }
    let mut one_by_one = Vec::new();
    for offset in 0..all[0].len() as u64 {
        let request = pb::GetRecordRequest { topic: "t".into(), offset };
        let found = server.log().await.get_record(request).await.unwrap().into_inner();
        one_by_one.push(seen(&found.record.unwrap()));
    }
    all.push(one_by_one);
    assert!(all.iter().all(|found| *found == all[0]), "{all:?}");
    all.swap_remove(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn erased_payloads_are_told_from_tombstones_by_every_way_to_read() {
    let keys = tempfile::tempdir().unwrap();
    let store = Store::builder().master_key(keys.path().join("master.key")).create_master_key(true);
    let server = Server::with_metrics_and(Config::default(), store).await;
    server.create("t").await;
    let tombstone = pb::Record { payload: None, ..keyed("order-7", "") };
    send(&server, vec![sealed("a", "1"), record("2"), sealed("b", "3"), tombstone]).await.unwrap();
    let payload = |text: &str| (Some(text.to_owned()), Redaction::Unspecified);
    let deleted = (None, Redaction::Unspecified);
    assert_eq!(read(&server).await, [payload("1"), payload("2"), payload("3"), deleted.clone()]);

    let mut erasure = ErasureServiceClient::new(server.channel().await);
    let erasure_keys = vec!["a".to_owned(), "a".to_owned()];
    let request = pb::EraseKeysRequest { erasure_keys };
    let done = erasure.erase_keys(request.clone()).await.unwrap().into_inner();
    assert_eq!((done.destroyed, done.destroyed_before, done.old_file_overwritten), (1, 0, true));
    let again = erasure.erase_keys(request).await.unwrap().into_inner();
    assert_eq!((again.destroyed, again.destroyed_before), (0, 1));
    for (name, destroyed) in [("a", true), ("b", false)] {
        let request = pb::GetErasureKeyRequest { erasure_key: name.into() };
        assert_eq!(erasure.get_erasure_key(request).await.unwrap().into_inner().destroyed, destroyed);
    }
    assert_eq!(read(&server).await, [(None, Redaction::Erased), payload("2"), payload("3"), deleted]);
    let refused = send(&server, vec![record("4"), sealed("a", "5")]).await.unwrap_err();
    assert_reason(&refused, Code::FailedPrecondition, "ERASURE_KEY_DESTROYED", "NOT_APPLIED");
    assert_eq!(server.metric("quipu_erasure_keys_destroyed").await, 1);

    for erasure_keys in [vec![], vec![String::new()], vec!["x".repeat(256)], vec!["x".to_owned(); 501]] {
        let refused = erasure.erase_keys(pb::EraseKeysRequest { erasure_keys }).await.unwrap_err();
        assert_reason(&refused, Code::InvalidArgument, "INVALID_REQUEST", "NOT_APPLIED");
    }
    let redacted = pb::Record { redacted: Redaction::Erased.into(), ..record("x") };
    assert_eq!(send(&server, vec![redacted]).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_a_master_key_says_so() {
    let server = Server::start().await;
    server.create("t").await;
    let refused = send(&server, vec![sealed("a", "1")]).await.unwrap_err();
    assert_reason(&refused, Code::FailedPrecondition, "MASTER_KEY_MISSING", "NOT_APPLIED");
    let mut erasure = ErasureServiceClient::new(server.channel().await);
    let request = pb::EraseKeysRequest { erasure_keys: vec!["a".into()] };
    let refused = erasure.erase_keys(request).await.unwrap_err();
    assert_reason(&refused, Code::FailedPrecondition, "MASTER_KEY_MISSING", "NOT_APPLIED");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_destruction_that_the_disk_fails_the_outcome_is_unknown_and_asking_again_settles_it() {
    let disk = Arc::new(StallingDisk::default());
    let gate = Arc::clone(&disk.key_gate);
    let dir = tempfile::tempdir().unwrap();
    let store = sealing(disk, dir.path());
    let server = Server::with(Config::default(), store).await;
    server.create("t").await;
    send(&server, vec![sealed("a", "1"), sealed("b", "2")]).await.unwrap();
    gate.fail_syncs();
    let mut erasure = ErasureServiceClient::new(server.channel().await);
    let request = pb::EraseKeysRequest { erasure_keys: vec!["a".into()] };
    for _ in 0..2 {
        let error = erasure.erase_keys(request.clone()).await.unwrap_err();
        assert_reason(&error, Code::Unavailable, "IO_FAILED", "UNKNOWN");
    }
    // The store goes on.
    send(&server, vec![record("3")]).await.unwrap();
    gate.heal();
    let done = erasure.erase_keys(request).await.unwrap().into_inner();
    assert_eq!(done.destroyed + done.destroyed_before, 1);
    let payload = |text: &str| (Some(text.to_owned()), Redaction::Unspecified);
    assert_eq!(read(&server).await, [(None, Redaction::Erased), payload("2"), payload("3")]);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_whose_payload_was_erased_says_so_and_the_next_one_replaces_it() {
    let keys = tempfile::tempdir().unwrap();
    let store = Store::builder().master_key(keys.path().join("master.key")).create_master_key(true);
    let server = Server::with(Config::default(), store).await;
    server.create("t").await;
    send(&server, vec![sealed("a", "1"), sealed("a", "2")]).await.unwrap();
    let mut snapshots = SnapshotServiceClient::new(server.channel().await);
    let put = |revision, snapshot| pb::PutSnapshotRequest {
        topic: "t".into(),
        revision,
        snapshot: Some(snapshot),
        durability: 0,
    };
    let get = pb::GetSnapshotRequest { topic: "t".into(), key: "order-7".into(), up_to_revision: None };
    snapshots.put_snapshot(put(0, sealed("a", "state"))).await.unwrap();
    let found = snapshots.get_snapshot(get.clone()).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(found.record.unwrap().payload.as_deref(), Some(&b"state"[..]));

    let request = pb::EraseKeysRequest { erasure_keys: vec!["a".into()] };
    ErasureServiceClient::new(server.channel().await).erase_keys(request).await.unwrap();
    let found = snapshots.get_snapshot(get.clone()).await.unwrap().into_inner().snapshot.unwrap();
    let record = found.record.unwrap();
    assert_eq!((found.revision, record.redacted(), record.payload), (0, Redaction::Erased, None));
    let refused = snapshots.put_snapshot(put(1, sealed("a", "state"))).await.unwrap_err();
    assert_reason(&refused, Code::FailedPrecondition, "ERASURE_KEY_DESTROYED", "NOT_APPLIED");
    snapshots.put_snapshot(put(1, keyed("order-7", "in the clear"))).await.unwrap();
    let found = snapshots.get_snapshot(get).await.unwrap().into_inner().snapshot.unwrap();
    assert_eq!(found.record.unwrap().payload.as_deref(), Some(&b"in the clear"[..]));
    server.stop().await.unwrap();
}

/// The bound on what is read a second belongs to compaction by key, which this topic does not have.
#[tokio::test(flavor = "multi_thread")]
async fn room_of_erased_payloads_is_freed_within_a_bound_of_bytes_a_second() {
    use pb::compact_topic_response::Event;
    let keys = tempfile::tempdir().unwrap();
    let store = Store::builder().master_key(keys.path().join("master.key")).create_master_key(true);
    let server = Server::with(Config::default(), store).await;
    server.create_with("t", pb::TopicSettings { segment_bytes_max: 4096, ..Default::default() }).await;
    for number in 0..40 {
        let key = if number % 2 == 0 { "a" } else { "b" };
        send(&server, vec![sealed(key, &"x".repeat(500))]).await.unwrap();
    }
    let request = pb::EraseKeysRequest { erasure_keys: vec!["a".into()] };
    ErasureServiceClient::new(server.channel().await).erase_keys(request).await.unwrap();
    let mut topics = server.topics().await;
    let request = pb::CompactTopicRequest {
        name: "t".into(),
        erased_only: true,
        bytes_per_second_max: Some(1),
        ..Default::default()
    };
    let refused = topics.compact_topic(request.clone()).await.unwrap_err();
    assert_reason(&refused, Code::InvalidArgument, "INVALID_REQUEST", "NOT_APPLIED");
    assert_eq!(fields(&refused), ["bytes_per_second_max"]);
    let bytes_per_second_max = 64 << 10;
    let request = pb::CompactTopicRequest { bytes_per_second_max: Some(bytes_per_second_max), ..request };
    let mut responses = topics.compact_topic(request).await.unwrap().into_inner();
    let mut report = None;
    while let Some(response) = responses.message().await.unwrap() {
        if let Some(Event::Report(done)) = response.event {
            report = Some(done);
        }
    }
    let report = report.unwrap();
    assert!(report.payloads_erased > 10, "{report:?}");
    assert_eq!(report.records_removed.values().sum::<u64>(), 0);
    // No sooner than the bound has it: more than half of what is there has been read.
    assert!(report.duration_ms >= report.bytes_before / 2 * 1000 / bytes_per_second_max, "{report:?}");
    server.stop().await.unwrap();
}
