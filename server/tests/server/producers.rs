//! Appends that are applied once, by producers and request ids, and fencing tokens.

use pb::producer_service_client::ProducerServiceClient;
use quipu_proto::v1 as pb;
use quipu_server::Config;
use quipu_storage::{Store, StoreSettings};
use tonic::Code;
use tonic::transport::Channel;

use crate::common::*;

const NOT_APPLIED: &str = "NOT_APPLIED";

async fn producers(server: &Server) -> ProducerServiceClient<Channel> {
    ProducerServiceClient::new(server.channel().await)
}

fn producer(name: &str, epoch: u64, sequence: u64) -> Option<pb::Producer> {
    Some(pb::Producer { name: name.into(), epoch, sequence })
}

/// What a producer appends under that sequence.
fn produced(epoch: u64, sequence: u64) -> pb::AppendRequest {
    let records = vec![keyed("k", &format!("{epoch}/{sequence}"))];
    pb::AppendRequest { producer: producer("p", epoch, sequence), ..append("orders", records) }
}

fn end(server: &Server) -> u64 {
    server.store.topic("orders").unwrap().log_end_offset().value()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_first_answer_by_a_producer_and_by_a_request_id() {
    let server = Server::start().await;
    server.create("orders").await;
    server.create("stock").await;
    let mut log = server.log().await;
    let mut named = append("orders", vec![keyed("a", "x"), keyed("a", "y")]);
    named.appends.extend(append("stock", vec![record("z")]).appends);
    let first_of = pb::append_condition::Condition::NextOffset(0);
    let conditions = vec![pb::AppendCondition { topic: "orders".into(), condition: Some(first_of) }];
    let once = pb::AppendRequest { request_id: "id".into(), conditions, ..named };
    for request in [once, produced(0, 0)] {
        let first = log.append(request.clone()).await.unwrap().into_inner();
        assert!(!first.duplicate);
        let again = log.append(request.clone()).await.unwrap().into_inner();
        assert_eq!(again, pb::AppendResponse { duplicate: true, ..first });
        let asked = log.append(pb::AppendRequest { validate_only: true, ..request }).await.unwrap();
        assert_eq!(asked.into_inner(), pb::AppendResponse::default());
    }
    assert_eq!(end(&server), 3);
    server.stop().await.unwrap();
}

/// The revisions of many keys are not in the answer that is kept, but in the batch.
#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_of_an_append_of_many_keys_gets_their_revisions() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    log.append(append("orders", vec![keyed("7", "before")])).await.unwrap();
    let records = (0..500).map(|number| keyed(&(number % 250).to_string(), "x")).collect();
    let request = pb::AppendRequest { request_id: "id".into(), ..append("orders", records) };
    let first = log.append(request.clone()).await.unwrap().into_inner();
    assert_eq!(first.appended[0].revisions.iter().sum::<u64>(), 250 + 2);
    server.store.checkpoint().unwrap();
    let again = log.append(request).await.unwrap().into_inner();
    assert_eq!(again, pb::AppendResponse { duplicate: true, ..first });
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn of_an_append_that_is_not_next_or_of_an_earlier_epoch_it_is_told_what_counts() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    for sequence in 0..70 {
        log.append(produced(3, sequence)).await.unwrap();
    }
    let gap = log.append(produced(3, 72)).await.unwrap_err();
    assert_reason(&gap, Code::FailedPrecondition, "PRODUCER_SEQUENCE_GAP", NOT_APPLIED);
    let told = ["producer", "epoch", "expected", "actual"].map(|name| metadata(&gap, name));
    assert_eq!(told, ["p", "3", "70", "72"]);
    let fenced = log.append(produced(2, 0)).await.unwrap_err();
    assert_reason(&fenced, Code::FailedPrecondition, "PRODUCER_FENCED", NOT_APPLIED);
    assert_eq!(["producer", "epoch", "current"].map(|name| metadata(&fenced, name)), ["p", "2", "3"]);
    let other =
        pb::AppendRequest { producer: producer("p", 3, 69), ..append("orders", vec![record("other")]) };
    let reused = log.append(other).await.unwrap_err();
    assert_reason(&reused, Code::AlreadyExists, "REQUEST_ID_REUSED", NOT_APPLIED);
    // Of one that 64 others followed only that it was applied.
    let old = log.append(produced(3, 5)).await.unwrap().into_inner();
    assert_eq!(old, pb::AppendResponse { appended: Vec::new(), duplicate: true });
    for validate_only in [true, false] {
        let next = pb::AppendRequest { validate_only, ..produced(4, 1) };
        let gap = log.append(next).await.unwrap_err();
        assert_reason(&gap, Code::FailedPrecondition, "PRODUCER_SEQUENCE_GAP", NOT_APPLIED);
    }
    log.append(produced(4, 0)).await.unwrap();
    assert_eq!(end(&server), 71);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn names_and_ids_that_cannot_be_are_refused_all_at_once() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    let request = pb::AppendRequest {
        producer: producer("", 0, 0),
        request_id: vec![1; 65].into(),
        ..append("orders", vec![record("x")])
    };
    let error = log.append(request).await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "INVALID_REQUEST", NOT_APPLIED);
    assert_eq!(fields(&error), ["producer.name", "request_id", "request_id"]);
    let mut many = pb::AppendRequest { request_id: "id".into(), ..Default::default() };
    for number in 0..65 {
        let name = format!("t{number}");
        server.create(&name).await;
        many.appends.extend(append(&name, vec![record("x")]).appends);
    }
    let error = log.append(many).await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "APPEND_TOO_LARGE", NOT_APPLIED);
    assert_eq!((metadata(&error, "what"), metadata(&error, "limit")), ("topics".into(), "64".into()));
    let long = "n".repeat(256);
    let mut producers = producers(&server).await;
    let error = producers.get_producer(pb::GetProducerRequest { name: long.clone() }).await.unwrap_err();
    assert_eq!(fields(&error), ["name"]);
    let error = producers.forget_producer(pb::ForgetProducerRequest { name: long }).await.unwrap_err();
    assert_eq!(fields(&error), ["name"]);
    let page_token = "x".into();
    let error =
        producers.list_producers(pb::ListProducersRequest { page_size: 0, page_token }).await.unwrap_err();
    assert_eq!(fields(&error), ["page_token"]);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn producers_are_listed_looked_up_and_forgotten_and_there_are_only_so_many() {
    let server = Server::with_settings(StoreSettings { producers_max: 3, ..StoreSettings::default() }).await;
    server.create("orders").await;
    let mut log = server.log().await;
    let mut producers = producers(&server).await;
    let of = |name: &str, sequence| pb::AppendRequest {
        producer: producer(name, 7, sequence),
        ..append("orders", vec![record("x")])
    };
    for name in ["b", "c", "a"] {
        log.append(of(name, 0)).await.unwrap();
    }
    log.append(of("b", 1)).await.unwrap();
    let full = log.append(of("d", 0)).await.unwrap_err();
    assert_reason(&full, Code::ResourceExhausted, "TOO_MANY_PRODUCERS", NOT_APPLIED);
    assert_eq!(metadata(&full, "limit"), "3");
    let (mut names, mut page_token) = (Vec::new(), String::new());
    loop {
        let page = pb::ListProducersRequest { page_size: 2, page_token };
        let page = producers.list_producers(page).await.unwrap().into_inner();
        names.extend(page.producers.into_iter().map(|found| (found.name, found.epoch, found.last_sequence)));
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    assert_eq!(names, [("a".into(), 7, 0), ("b".into(), 7, 1), ("c".into(), 7, 0)]);
    let mut get = async |name: &str| {
        let request = pb::GetProducerRequest { name: name.into() };
        producers.get_producer(request).await.unwrap().into_inner().producer
    };
    assert_eq!(get("b").await, Some(pb::ProducerState { name: "b".into(), epoch: 7, last_sequence: 1 }));
    assert_eq!(get("d").await, None);
    let forget = || pb::ForgetProducerRequest { name: "b".into() };
    producers.forget_producer(forget()).await.unwrap();
    let missing = producers.forget_producer(forget()).await.unwrap_err();
    assert_reason(&missing, Code::NotFound, "PRODUCER_NOT_FOUND", NOT_APPLIED);
    assert_eq!(metadata(&missing, "producer"), "b");
    log.append(of("~temporary", 0)).await.unwrap();
    log.append(of("d", 0)).await.unwrap();
    let gap = log.append(of("~temporary", 1)).await.unwrap_err();
    assert_reason(&gap, Code::FailedPrecondition, "PRODUCER_SEQUENCE_GAP", NOT_APPLIED);
    server.stop().await.unwrap();
}

/// Whoever goes on from there would leave out what a power cut takes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_producer_is_as_far_as_it_is_synced() {
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let server = Server::with(Config::default(), Store::builder().settings(settings)).await;
    server.create("orders").await;
    let accepted = pb::AppendRequest { durability: pb::Durability::Accepted.into(), ..produced(0, 0) };
    server.log().await.append(accepted).await.unwrap();
    assert!(server.store.stats().synced_position < server.store.stats().journal_position);
    let request = pb::GetProducerRequest { name: "p".into() };
    let found = producers(&server).await.get_producer(request).await.unwrap().into_inner().producer;
    assert_eq!(found.unwrap().last_sequence, 0);
    let stats = server.store.stats();
    assert_eq!(stats.synced_position, stats.journal_position);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lower_fencing_token_is_refused_and_a_topic_tells_its_own() {
    let server = Server::start().await;
    server.create("orders").await;
    let (mut log, mut topics) = (server.log().await, server.topics().await);
    let with_token = |token| {
        let mut request = append("orders", vec![record("x")]);
        request.appends[0].fencing_token = Some(token);
        request
    };
    log.append(with_token(2)).await.unwrap();
    let fence = |fencing_token| pb::FenceTopicRequest { name: "orders".into(), fencing_token };
    let fenced = topics.fence_topic(fence(5)).await.unwrap().into_inner().topic.unwrap();
    assert_eq!((fenced.fencing_token, fenced.log_end_offset), (5, 1));
    let errors = [
        log.append(with_token(4)).await.unwrap_err(),
        log.append(pb::AppendRequest { validate_only: true, ..with_token(4) }).await.unwrap_err(),
        topics.fence_topic(fence(4)).await.unwrap_err(),
    ];
    for error in errors {
        assert_reason(&error, Code::FailedPrecondition, "TOPIC_FENCED", NOT_APPLIED);
        assert_eq!(["topic", "token", "current"].map(|name| metadata(&error, name)), ["orders", "4", "5"]);
    }
    log.append(with_token(5)).await.unwrap();
    log.append(append("orders", vec![record("without one")])).await.unwrap();
    let missing = topics.fence_topic(pb::FenceTopicRequest { name: "no".into(), fencing_token: 1 }).await;
    assert_reason(&missing.unwrap_err(), Code::NotFound, "TOPIC_NOT_FOUND", NOT_APPLIED);
    assert_eq!(end(&server), 3);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_lost_session_had_not_answered_is_sent_again_on_another_and_is_there_once() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    let request = |sequence| pb::AppendSessionRequest { append: Some(produced(0, sequence)), opening: None };
    let first = tokio_stream::iter((0..20).map(request));
    // Whatever of it is applied: nobody waits for the answers.
    drop(log.append_session(first).await.unwrap());
    let again = tokio_stream::iter((0..30).map(request));
    let mut answers = log.append_session(again).await.unwrap().into_inner();
    let mut offsets = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        offsets.extend(answer.response.map(|response| response.appended[0].first_offset));
    }
    assert_eq!(offsets, (0..30).collect::<Vec<_>>());
    let gap = tokio_stream::iter([request(30), request(32), request(31)]);
    let mut answers = log.append_session(gap).await.unwrap().into_inner();
    let error = loop {
        match answers.message().await {
            Ok(answer) => assert!(answer.is_some(), "it ends with an error"),
            Err(error) => break error,
        }
    };
    assert_reason(&error, Code::FailedPrecondition, "PRODUCER_SEQUENCE_GAP", NOT_APPLIED);
    assert_eq!(end(&server), 31);
    server.stop().await.unwrap();
}
