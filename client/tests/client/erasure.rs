//! Sealed payloads, through the client.

use quipu_client::{Error, Record, Redaction};

use crate::common::Server;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_redacted_and_takes_no_more_records() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    let record = Record::keyed("order-7", "Ada, 12 Hill Road").with_erasure_key("customer-17");
    client.append("t", [record.clone(), Record::tombstone("order-8")]).await.unwrap();
    let session = client.append_session("t").open().await.unwrap();
    session.append(record.clone()).await.unwrap().wait().await.unwrap();
    session.close().await.unwrap();
    let stored = client.record("t", 0).await.unwrap().unwrap();
    assert_eq!((stored.to_record(), stored.redacted()), (record.clone(), None));

    assert_eq!(client.erase_keys(["customer-17"]).await.unwrap().destroyed, 1);
    assert!(client.is_erased("customer-17").await.unwrap());
    let stored = client.record("t", 0).await.unwrap().unwrap();
    assert_eq!((stored.payload(), stored.redacted()), (None, Some(Redaction::Erased)));
    assert_eq!((stored.key(), stored.erasure_key()), (Some(&b"order-7"[..]), Some("customer-17")));
    let tombstone = client.record("t", 1).await.unwrap().unwrap();
    assert_eq!((tombstone.payload(), tombstone.redacted()), (None, None));
    let mut records = client.read("t").records().await.unwrap();
    let mut redacted = Vec::new();
    while let Some(record) = records.next().await {
        redacted.push(record.unwrap().redacted());
    }
    assert_eq!(redacted, [Some(Redaction::Erased), None, Some(Redaction::Erased)]);
    let refused = client.append("t", [record]).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Refused { reason, .. } if reason == "ERASURE_KEY_DESTROYED"),
        "{refused:?}"
    );
}
