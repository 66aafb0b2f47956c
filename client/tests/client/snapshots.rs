//! Snapshots of streams.

use quipu_client::{Error, Record, SnapshotPut};

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_comes_first_and_then_what_is_behind_it() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    client.append("t", (0..5).map(|number: u64| Record::keyed("a", number.to_string()))).await.unwrap();
    let read = async || {
        let (snapshot, mut records) = client.read_from_snapshot("t", "a").await.unwrap();
        let mut revisions = Vec::new();
        while let Some(record) = records.next().await {
            revisions.extend(record.unwrap().revision());
        }
        (snapshot.map(|snapshot| snapshot.revision), revisions)
    };
    assert_eq!(read().await, (None, vec![0, 1, 2, 3, 4]));
    let put = |revision| client.put_snapshot("t", revision, Record::keyed("a", "state").with_type("S"));
    assert_eq!(put(2).await.unwrap(), SnapshotPut::Stored { offset: 0 });
    assert_eq!(put(1).await.unwrap(), SnapshotPut::Superseded { revision: 2 });
    assert_eq!(read().await, (Some(2), vec![3, 4]));
    put(4).await.unwrap();
    assert_eq!(read().await, (Some(4), vec![]));
    let earlier = client.snapshot_up_to("t", "a", 3).await.unwrap().unwrap();
    assert_eq!((earlier.revision, earlier.record.record_type()), (2, "S"));
    assert!(client.snapshot("t", "b").await.unwrap().is_none());
    let error = put(5).await.unwrap_err();
    assert!(matches!(error, Error::RevisionUnwritten { next_revision: 5, .. }), "{error:?}");
}
