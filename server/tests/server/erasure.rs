//! Sealed payloads over the wire: readers get them, or are told why not.

use quipu_proto::v1 as pb;
use quipu_proto::v1::erasure_service_client::ErasureServiceClient;
use quipu_proto::v1::record::Redaction;
use quipu_server::Config;
use quipu_storage::Store;
use tonic::Code;

use crate::common::*;

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
