//! Appends with conditions, and the revisions that they are about.

use std::sync::Arc;

use pb::append_condition::stream_revision::Expected;
use pb::append_condition::{Condition, NoMatch, StreamRevision};
use pb::append_condition_failure::{FailedCondition, failed_condition};
use prost::Message;
use quipu_proto::v1 as pb;
use quipu_server::Config;
use quipu_storage::Store;
use tonic::{Code, Status};

use crate::common::*;
use crate::stalled_disk::StallingDisk;

const NOT_APPLIED: &str = "NOT_APPLIED";

fn condition(topic: &str, condition: Condition) -> pb::AppendCondition {
    pb::AppendCondition { topic: topic.into(), condition: Some(condition) }
}

fn revision(topic: &str, key: &str, expected: Expected) -> pb::AppendCondition {
    let revision = StreamRevision { key: key.as_bytes().to_vec().into(), expected: Some(expected) };
    condition(topic, Condition::Revision(revision))
}

fn no_match(topic: &str, tag: &str, after_offset: Option<u64>) -> pb::AppendCondition {
    let tags = vec![pb::filter::TagSet { all: vec![tag.into()] }];
    let filter = Some(pb::Filter { tags, ..Default::default() });
    condition(topic, Condition::NoMatch(NoMatch { filter, after_offset }))
}

fn failure(status: &Status) -> pb::AppendConditionFailure {
    assert_reason(status, Code::Aborted, "APPEND_CONDITION_FAILED", NOT_APPLIED);
    let details = tonic_types::Status::decode(status.details()).unwrap().details;
    let url = "type.googleapis.com/quipu.v1.AppendConditionFailure";
    let detail = details.iter().find(|detail| detail.type_url == url).unwrap();
    pb::AppendConditionFailure::decode(&detail.value[..]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_append_is_applied_only_if_all_conditions_hold_and_each_failure_is_told() {
    let server = Server::start().await;
    server.create("orders").await;
    server.create("stock").await;
    let mut log = server.log().await;
    let tagged = pb::Record { tags: vec!["vip".into()], ..keyed("b", "0") };
    log.append(append("orders", vec![keyed("a", "0"), tagged, keyed("a", "1")])).await.unwrap();
    let place = |conditions| pb::AppendRequest { conditions, ..append("stock", vec![keyed("a", "x")]) };
    let holding = || {
        vec![
            revision("orders", "a", Expected::Exact(1)),
            revision("orders", "c", Expected::NoStream(true)),
            revision("orders", "b", Expected::Exists(true)),
            revision("orders", "c", Expected::Any(true)),
            revision("stock", "a", Expected::NoStream(true)),
            condition("orders", Condition::NextOffset(3)),
            no_match("orders", "vip", Some(1)),
        ]
    };
    let failing = vec![
        revision("orders", "a", Expected::Exact(0)),
        revision("orders", "a", Expected::Exact(9)),
        revision("orders", "b", Expected::NoStream(true)),
        revision("orders", "c", Expected::Exists(true)),
        condition("orders", Condition::NextOffset(2)),
        no_match("orders", "vip", None),
    ];
    let expected = [
        (7, failed_condition::Expected::Revision(0), Some(1), Some(2)),
        (8, failed_condition::Expected::Revision(9), Some(1), None),
        (9, failed_condition::Expected::NoStream(true), Some(0), Some(1)),
        (10, failed_condition::Expected::Exists(true), None, None),
        (11, failed_condition::Expected::NextOffset(2), Some(3), Some(2)),
        (12, failed_condition::Expected::NoMatch(true), None, Some(1)),
    ];
    let expected = expected.map(|(condition, expected, actual, first_conflicting_offset)| FailedCondition {
        condition,
        topic: "orders".into(),
        expected: Some(expected),
        actual,
        first_conflicting_offset,
    });
    let all = || holding().into_iter().chain(failing.clone()).collect::<Vec<_>>();
    for validate_only in [false, true] {
        let error = log.append(pb::AppendRequest { validate_only, ..place(all()) }).await.unwrap_err();
        assert_eq!(
            failure(&error),
            pb::AppendConditionFailure { failed: expected.to_vec(), failed_count: 6 }
        );
        assert_eq!(metadata(&error, "failed"), "6");
    }
    // Conditions alone may be asked about.
    let ask = |conditions| pb::AppendRequest { conditions, validate_only: true, ..Default::default() };
    assert_eq!(failure(&log.append(ask(all())).await.unwrap_err()).failed, expected);
    assert_eq!(log.append(ask(holding())).await.unwrap().into_inner().appended, []);
    assert_eq!(server.store.topic("stock").unwrap().log_end_offset().value(), 0);
    let answer = log.append(place(holding())).await.unwrap().into_inner();
    assert_eq!((answer.appended[0].first_offset, &answer.appended[0].revisions[..]), (0, &[0][..]));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_condition_ends_a_session_and_nothing_behind_it_is_applied() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    let at = |next| {
        let conditions = vec![condition("orders", Condition::NextOffset(next))];
        let append = pb::AppendRequest { conditions, ..append("orders", vec![keyed("a", "x")]) };
        pb::AppendSessionRequest { append: Some(append), opening: None }
    };
    let requests = tokio_stream::iter([at(0), at(1), at(1), at(2)]);
    let mut answers = log.append_session(requests).await.unwrap().into_inner();
    let mut revisions = Vec::new();
    let error = loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                let appended = answer.response.map(|response| response.appended).unwrap_or_default();
                revisions.extend(appended.into_iter().flat_map(|appended| appended.revisions));
            }
            Ok(None) => panic!("it ends with an error"),
            Err(error) => break error,
        }
    };
    assert_eq!(revisions, [0, 1]);
    assert_eq!(failure(&error).failed[0].actual, Some(2));
    assert_eq!(server.store.topic("orders").unwrap().log_end_offset().value(), 2);
    server.stop().await.unwrap();
}

/// Each waited for the sync of the one before, although that is checked against what is written.
#[tokio::test(flavor = "multi_thread")]
async fn conditional_appends_of_a_session_share_a_sync_and_a_failed_one_is_told_with_it() {
    const APPENDS: u64 = 20;
    let disk = Arc::new(StallingDisk::default());
    let syncs = Arc::clone(&disk.sync_gate);
    let server = Server::with(Config::default(), Store::builder().disk(disk)).await;
    server.create("orders").await;
    let mut log = server.log().await;
    syncs.close();
    let at = |next: u64| {
        let mut conditions = vec![condition("orders", Condition::NextOffset(next))];
        // Some are looked up on another thread.
        if next.is_multiple_of(3) {
            conditions.push(no_match("orders", "none", None));
        }
        let append = pb::AppendRequest { conditions, ..append("orders", vec![keyed("a", "x")]) };
        pb::AppendSessionRequest { append: Some(append), opening: None }
    };
    let (requests, received) = tokio::sync::mpsc::channel(100);
    for next in 0..APPENDS {
        requests.send(at(next)).await.unwrap();
    }
    let received = tokio_stream::wrappers::ReceiverStream::new(received);
    let mut answers = log.append_session(received).await.unwrap().into_inner();
    let topic = server.store.topic("orders").unwrap();
    let is_written = async {
        while topic.log_end_offset().value() < APPENDS {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, is_written).await.expect("they do not wait for a sync");
    assert_eq!(topic.high_watermark().value(), 0);
    for next in [0, APPENDS] {
        requests.send(at(next)).await.unwrap();
    }
    let is_refused = async {
        while server.store.stats().appends_refused == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, is_refused).await.expect("the engine has decided");
    syncs.open();
    let mut offsets = Vec::new();
    let error = loop {
        match answers.message().await {
            Ok(Some(answer)) => {
                let appended = answer.response.map(|response| response.appended).unwrap_or_default();
                offsets.extend(appended.into_iter().map(|appended| appended.first_offset));
            }
            Ok(None) => panic!("it ends with an error"),
            Err(error) => break error,
        }
    };
    assert_eq!(offsets, (0..APPENDS).collect::<Vec<_>>());
    assert_eq!(failure(&error).failed[0].actual, Some(APPENDS));
    assert_eq!((topic.log_end_offset().value(), topic.high_watermark().value()), (APPENDS, APPENDS));
    assert!(!syncs.has_timed_out());
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_that_make_no_sense_are_refused_with_what_is_wrong() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    let with = |conditions| pb::AppendRequest { conditions, ..append("orders", vec![record("x")]) };
    let none = pb::AppendCondition { topic: "orders".into(), condition: None };
    let unsaid = StreamRevision { key: "a".into(), expected: None };
    let filter = Some(pb::Filter { types: vec![String::new()], ..Default::default() });
    let error = log
        .append(with(vec![
            none,
            condition("orders", Condition::Revision(unsaid)),
            revision("../x", "a", Expected::NoStream(false)),
            revision("orders", "a", Expected::Any(false)),
            condition("orders", Condition::NoMatch(NoMatch { filter, after_offset: None })),
        ]))
        .await
        .unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "INVALID_REQUEST", NOT_APPLIED);
    assert_eq!(
        fields(&error),
        [
            "conditions[0]",
            "conditions[1].revision",
            "conditions[2].topic",
            "conditions[2].revision",
            "conditions[3].revision",
            "conditions[4].no_match.filter"
        ]
    );
    let many = vec![revision("orders", "a", Expected::NoStream(true)); 101];
    let error = log.append(with(many)).await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "APPEND_TOO_LARGE", NOT_APPLIED);
    assert_eq!(metadata(&error, "what"), "conditions");
    let error = log.append(with(vec![condition("no", Condition::NextOffset(0))])).await.unwrap_err();
    assert_reason(&error, Code::NotFound, "TOPIC_NOT_FOUND", NOT_APPLIED);
    log.append(append("orders", vec![record("x"), record("y")])).await.unwrap();
    let trim = pb::TrimTopicRequest { name: "orders".into(), before_offset: 1 };
    server.topics().await.trim_topic(trim).await.unwrap();
    let error = log.append(with(vec![no_match("orders", "x", None)])).await.unwrap_err();
    assert_reason(&error, Code::OutOfRange, "CONDITION_TRIMMED", NOT_APPLIED);
    assert_eq!(metadata(&error, "log_start_offset"), "1");
    server.stop().await.unwrap();
}

/// All details go into headers, which have 16 KiB.
#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_failures_on_long_names_fit_into_an_answer() {
    let server = Server::start().await;
    let name = "n".repeat(255);
    server.create(&name).await;
    let mut log = server.log().await;
    let conditions = vec![revision(&name, &"k".repeat(1000), Expected::Exists(true)); 100];
    let request = pb::AppendRequest { conditions, ..append(&name, vec![record("x")]) };
    let failure = failure(&log.append(request).await.unwrap_err());
    assert_eq!(failure.failed_count, 100);
    assert!(failure.failed.len() >= 10, "{}", failure.failed.len());
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn every_way_to_read_brings_the_revisions_of_records_with_keys() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    for _ in 0..2 {
        log.append(append("orders", vec![keyed("a", "0"), record("x"), keyed("b", "0"), keyed("a", "1")]))
            .await
            .unwrap();
    }
    for is_on_disk in [false, true] {
        if is_on_disk {
            server.store.checkpoint().unwrap();
        }
        let read = |request: pb::ReadRequest| {
            let mut log = log.clone();
            async move {
                let mut stream = log.read(request).await.unwrap().into_inner();
                let mut revisions = Vec::new();
                while let Some(response) = stream.message().await.unwrap() {
                    if let Some(pb::read_response::Event::Batches(batches)) = response.event {
                        revisions.extend(batches.batches.into_iter().map(|batch| batch.revisions));
                    }
                }
                revisions
            }
        };
        let all = || pb::ReadRequest { topic: "orders".into(), ..Default::default() };
        let filter = Some(pb::Filter { keys: vec!["a".into()], ..Default::default() });
        assert_eq!(read(all()).await, [[0, 0, 1], [2, 1, 3]]);
        assert_eq!(read(pb::ReadRequest { backwards: true, ..all() }).await, [[3, 1, 2], [1, 0, 0]]);
        assert_eq!(read(pb::ReadRequest { filter, ..all() }).await, [[0, 1], [2, 3]]);
        let part = pb::ReadRequest {
            start: at(pb::start_position::Position::Offset(2)),
            until_offset: Some(7),
            ..all()
        };
        assert_eq!(read(part).await, [[0, 1], [2, 1]]);
    }
    let get = |offset| pb::GetRecordRequest { topic: "orders".into(), offset };
    assert_eq!(log.get_record(get(7)).await.unwrap().into_inner().revision, Some(3));
    assert_eq!(log.get_record(get(5)).await.unwrap().into_inner().revision, None);
    server.stop().await.unwrap();
}
