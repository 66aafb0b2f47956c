//! Appends under conditions, and streams.

use quipu_client::{
    Condition, Error, Event, Expected, ExpectedRevision, FailedCondition, Filter, Outcome, Record, Start,
    StoredRecord,
};

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn an_append_under_conditions_that_do_not_hold_says_which_and_changes_nothing() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    let appended = client.append("t", [Record::keyed("a", "0"), Record::keyed("a", "1")]).await.unwrap();
    assert_eq!(appended.revisions, [0, 1]);
    let exact = |revision| Condition::revision("t", "a", ExpectedRevision::Exact(revision));
    let of_key = Filter { keys: vec!["a".into()], ..Filter::default() };
    let append = || client.append_to("t", [Record::keyed("a", "2")]).unwrap().require(exact(1));
    let error = append()
        .require(exact(0))
        .require(Condition::next_offset("t", 1))
        .require(Condition::no_match("t", of_key, None))
        .send()
        .await
        .unwrap_err();
    assert_eq!(error.outcome(), Outcome::NotApplied);
    let Error::ConditionFailed { failed, failed_count: 3, .. } = &error else { panic!("{error:?}") };
    let expected = |number, expected, actual, conflict: u64| FailedCondition {
        number,
        topic: "t".into(),
        expected,
        actual,
        first_conflicting_offset: Some(conflict),
    };
    assert_eq!(
        failed[..],
        [
            expected(1, Expected::Revision(ExpectedRevision::Exact(0)), Some(1), 1),
            expected(2, Expected::NextOffset(1), Some(2), 1),
            expected(3, Expected::NoMatch, None, 0),
        ]
    );
    let any = |key: &str| Condition::revision("t", key, ExpectedRevision::Any);
    client.check([exact(1), any("a"), any("none")]).await.unwrap();
    let error = client.check([exact(1), exact(5)]).await.unwrap_err();
    assert!(matches!(&error, Error::ConditionFailed { failed, .. } if failed[0].number == 1), "{error:?}");
    assert_eq!(append().send().await.unwrap()[0].revisions, [2]);
    assert_eq!(client.bounds("t").await.unwrap().log_end_offset, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_is_read_followed_and_listed_by_revision_over_a_restart() {
    let server = Server::start().await;
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    let append = async |number: u64| {
        let records = ["a", "b", "c"].map(|key| Record::keyed(key, number.to_string()));
        client.append("t", records).await.unwrap();
    };
    for number in 0..5 {
        append(number).await;
    }
    let revisions = async |read: quipu_client::Read| {
        let mut records = read.records().await.unwrap();
        let mut found = Vec::new();
        while let Some(record) = records.next().await {
            found.extend(record.unwrap().revision());
        }
        found
    };
    let b = || client.read_stream("t", "b");
    assert_eq!(revisions(b()).await, [0, 1, 2, 3, 4]);
    assert_eq!(revisions(b().start(Start::Revision(3))).await, [3, 4]);
    assert_eq!(revisions(b().start(Start::AfterRevision(3))).await, [4]);
    assert_eq!(revisions(b().start(Start::LastRevisions(2))).await, [3, 4]);
    assert_eq!(revisions(b().backwards().start(Start::Revision(1))).await, [1, 0]);
    let error = b().start(Start::Revision(6)).records().await.unwrap_err();
    assert!(matches!(error, Error::RevisionUnwritten { next_revision: 5, .. }), "{error:?}");
    let stream = client.stream("t", "b").await.unwrap().unwrap();
    assert_eq!((stream.last_revision, stream.record_count, stream.last_offset), (4, 5, Some(13)));
    assert_eq!(client.stream("t", "x").await.unwrap(), None);
    let mut pages = client.stream_pages("t", "");
    let first = pages.next().await.unwrap().unwrap();
    assert_eq!(first.iter().map(|stream| &stream.key[..]).collect::<Vec<_>>(), [b"a", b"b", b"c"]);
    assert_eq!(pages.next().await.unwrap(), None);
    assert_eq!(client.record("t", 13).await.unwrap().unwrap().revision(), Some(4));

    let start = Start::AfterRevision(2);
    let mut subscription = client.subscribe_stream("t", "b").start(start).send().await.unwrap();
    let server = server.restart().await;
    append(5).await;
    let mut found = Vec::new();
    while found.len() < 3 {
        if let Event::Records(batch) = subscription.next().await.unwrap().unwrap() {
            let records: Vec<StoredRecord> = batch.iter().map(Result::unwrap).collect();
            found.extend(records.iter().filter_map(StoredRecord::revision));
        }
    }
    assert_eq!(found, [3, 4, 5]);
    drop(server);
}
