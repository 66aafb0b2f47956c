//! Every row of the table of errors that a call can meet: code, reason and outcome.

use crate::common::*;
use crate::stalled_disk::StallingDisk;
use pb::start_position::Position;
use quipu_proto::v1 as pb;
use quipu_server::Config;
use quipu_storage::{Record, Store, StoreSettings};
use tonic::Code;
use tonic_types::StatusExt;

const NOT_APPLIED: &str = "NOT_APPLIED";

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_is_wrong_with_an_append_is_told_at_once() {
    let server = Server::start().await;
    let mut log = server.log().await;
    let mut request = append("../etc", vec![]);
    request.appends.extend(append("fine", vec![record("x")]).appends);
    request.appends.extend(append("fine", vec![record("x")]).appends);
    request.durability = 99;
    let error = log.append(request).await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "INVALID_REQUEST", NOT_APPLIED);
    assert_eq!(fields(&error), ["durability", "appends[0].topic", "appends[0].records", "appends[2].topic"]);
    let error = log.append(pb::AppendRequest::default()).await.unwrap_err();
    assert_eq!(fields(&error), ["appends"]);
    let filter = Some(pb::Filter { tags: vec![Default::default()], ..Default::default() });
    let read = pb::ReadRequest {
        filter,
        visibility: 9,
        until_time_ms: Some(1),
        backwards: true,
        ..Default::default()
    };
    let error = log.read(read).await.unwrap_err();
    assert_eq!(fields(&error), ["topic", "filter.tags", "visibility", "until_time_ms"]);
    let subscribe =
        pb::SubscribeRequest { heartbeat_ms: 1, progress_records: u64::MAX, ..Default::default() };
    let error = log.subscribe(subscribe).await.unwrap_err();
    assert_eq!(fields(&error), ["topic", "progress_records", "heartbeat_ms"]);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_topic_is_not_found_whatever_is_asked_of_it() {
    let server = Server::start().await;
    let (mut log, mut topics) = (server.log().await, server.topics().await);
    let topic = || "missing".to_owned();
    let errors = [
        log.append(append("missing", vec![record("x")])).await.unwrap_err(),
        log.read(pb::ReadRequest { topic: topic(), ..Default::default() }).await.unwrap_err(),
        log.subscribe(pb::SubscribeRequest { topic: topic(), ..Default::default() }).await.unwrap_err(),
        log.get_record(pb::GetRecordRequest { topic: topic(), offset: 0 }).await.unwrap_err(),
        log.get_bounds(pb::GetBoundsRequest { topic: topic() }).await.unwrap_err(),
        topics.get_topic(pb::GetTopicRequest { name: topic() }).await.unwrap_err(),
        topics
            .update_topic(pb::UpdateTopicRequest { name: topic(), ..Default::default() })
            .await
            .unwrap_err(),
        topics.delete_topic(pb::DeleteTopicRequest { name: topic() }).await.unwrap_err(),
        topics.trim_topic(pb::TrimTopicRequest { name: topic(), before_offset: 0 }).await.unwrap_err(),
        topics.verify_topic(pb::VerifyTopicRequest { name: topic() }).await.unwrap_err(),
        topics.get_topic_status(pb::GetTopicStatusRequest { name: topic() }).await.unwrap_err(),
        topics
            .compact_topic(pb::CompactTopicRequest { name: topic(), ..Default::default() })
            .await
            .unwrap_err(),
    ];
    for error in errors {
        assert_reason(&error, Code::NotFound, "TOPIC_NOT_FOUND", NOT_APPLIED);
        assert_eq!(metadata(&error, "topic"), "missing");
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_offset_outside_the_log_is_answered_with_the_bounds() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    log.append(append("orders", vec![record("a"), record("b"), record("c")])).await.unwrap();
    server
        .topics()
        .await
        .trim_topic(pb::TrimTopicRequest { name: "orders".into(), before_offset: 2 })
        .await
        .unwrap();
    for (offset, reason, bound) in
        [(1, "OFFSET_TRIMMED", ("log_start_offset", "2")), (9, "OFFSET_UNWRITTEN", ("next_offset", "3"))]
    {
        let start = || at(Position::Offset(offset));
        let topic = || "orders".to_owned();
        let errors = [
            log.read(pb::ReadRequest { topic: topic(), start: start(), ..Default::default() })
                .await
                .unwrap_err(),
            log.subscribe(pb::SubscribeRequest { topic: topic(), start: start(), ..Default::default() })
                .await
                .unwrap_err(),
            log.get_record(pb::GetRecordRequest { topic: topic(), offset }).await.unwrap_err(),
        ];
        for error in errors {
            assert_reason(&error, Code::OutOfRange, reason, NOT_APPLIED);
            assert_eq!(metadata(&error, bound.0), bound.1);
        }
    }
    let trim = pb::TrimTopicRequest { name: "orders".into(), before_offset: 4 };
    let error = server.topics().await.trim_topic(trim).await.unwrap_err();
    assert_reason(&error, Code::OutOfRange, "OFFSET_UNWRITTEN", NOT_APPLIED);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_names_its_size_and_the_limit() {
    let settings =
        StoreSettings { append_bytes_max: 64 << 10, append_records_max: 10, ..StoreSettings::default() };
    let server = Server::with_settings(settings).await;
    server.create("orders").await;
    let mut log = server.log().await.max_encoding_message_size(64 << 20);
    let record_error =
        log.append(append("orders", vec![record("x"), keyed(&"k".repeat(5000), "x")])).await.unwrap_err();
    assert_reason(&record_error, Code::InvalidArgument, "RECORD_TOO_LARGE", NOT_APPLIED);
    assert_eq!(metadata(&record_error, "index"), "1");
    assert_eq!(metadata(&record_error, "limit"), "4096");
    assert_eq!(metadata(&record_error, "topic"), "orders");
    let bytes_error = log.append(append("orders", vec![record(vec![0; 70_000])])).await.unwrap_err();
    assert_reason(&bytes_error, Code::InvalidArgument, "APPEND_TOO_LARGE", NOT_APPLIED);
    assert_eq!(
        (metadata(&bytes_error, "what").as_str(), metadata(&bytes_error, "limit").as_str()),
        ("bytes", "65536")
    );
    let count_error = log.append(append("orders", vec![record("x"); 11])).await.unwrap_err();
    assert_eq!(metadata(&count_error, "what"), "records");
    let message_error = log.append(append("orders", vec![record(vec![0; 8 << 20])])).await.unwrap_err();
    assert_reason(&message_error, Code::InvalidArgument, "MESSAGE_TOO_LARGE", NOT_APPLIED);
    assert!(metadata(&message_error, "limit").parse::<u64>().unwrap() > 64 << 10);
    let parts = vec![pb::TopicAppend::default(); 1001];
    let request = pb::AppendRequest { appends: parts, ..Default::default() };
    let topics_error = log.append(request).await.unwrap_err();
    assert_reason(&topics_error, Code::InvalidArgument, "APPEND_TOO_LARGE", NOT_APPLIED);
    assert_eq!(
        (metadata(&topics_error, "what").as_str(), metadata(&topics_error, "limit").as_str()),
        ("topics", "1000")
    );
    server.stop().await.unwrap();
}

/// A filter of many small values once took many times its size, up to the size of the largest append.
#[tokio::test(flavor = "multi_thread")]
async fn requests_without_records_may_be_only_so_large() {
    let server = Server::start().await;
    server.create("orders").await;
    let (mut log, mut topics) = (server.log().await, server.topics().await);
    let filter = || Some(pb::Filter { keys: vec![Default::default(); 100_000], ..Default::default() });
    let topic = || "orders".to_owned();
    let paths = vec![String::new(); 100_000];
    let errors = [
        log.read(pb::ReadRequest { topic: topic(), filter: filter(), ..Default::default() })
            .await
            .unwrap_err(),
        log.subscribe(pb::SubscribeRequest { topic: topic(), filter: filter(), ..Default::default() })
            .await
            .unwrap_err(),
        topics
            .update_topic(pb::UpdateTopicRequest {
                name: topic(),
                update_mask: Some(prost_types::FieldMask { paths }),
                ..Default::default()
            })
            .await
            .unwrap_err(),
    ];
    for error in errors {
        assert_reason(&error, Code::InvalidArgument, "MESSAGE_TOO_LARGE", NOT_APPLIED);
        assert_eq!(metadata(&error, "limit"), "131072");
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn records_that_were_damaged_on_the_way_are_not_stored() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    let mut request = append("orders", vec![record("x")]);
    request.appends[0].records_crc = Some(1);
    let error = log.append(request.clone()).await.unwrap_err();
    assert_reason(&error, Code::InvalidArgument, "CHECKSUM_MISMATCH", NOT_APPLIED);
    let actual = metadata(&error, "actual").parse().unwrap();
    request.appends[0].records_crc = Some(actual);
    log.append(request).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_topic_is_made_once_and_only_so_many() {
    let server = Server::with_settings(StoreSettings { topics_max: 2, ..StoreSettings::default() }).await;
    server.create("a").await;
    server.create("b").await;
    let mut topics = server.topics().await;
    let mut create = async |name: &str| {
        let request = pb::CreateTopicRequest { name: name.into(), settings: None };
        topics.create_topic(request).await.unwrap_err()
    };
    assert_reason(&create("a").await, Code::AlreadyExists, "TOPIC_EXISTS", NOT_APPLIED);
    assert_reason(&create("c").await, Code::ResourceExhausted, "TOO_MANY_TOPICS", NOT_APPLIED);
    assert_eq!(fields(&create("a//b").await), ["name"]);
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn appends_beyond_the_bound_on_bytes_in_flight_are_overloaded_and_may_come_again() {
    // Each append waits for a sync that nobody makes: without threads the store syncs for those who block, and nobody does.
    let config = Config { append_bytes_in_flight_max: 64 << 10, ..Config::default() };
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    let server = Server::with(config, Store::builder().settings(settings)).await;
    server.create("orders").await;
    let log = server.log().await;
    server
        .store
        .topic("orders")
        .unwrap()
        .append(&[Record::new("first: of a topic it looks at files")])
        .unwrap();
    let mut waiting = Vec::new();
    let error = loop {
        let mut log = log.clone();
        let call =
            tokio::spawn(async move { log.append(append("orders", vec![record(vec![0; 20_000])])).await });
        waiting.push(call);
        assert!(waiting.len() < 10, "the bound is not kept");
        // Those that wait stay; the one beyond the bound comes back.
        let done = tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some(index) = waiting.iter().position(tokio::task::JoinHandle::is_finished) {
                    return Some(waiting.swap_remove(index));
                }
                if server.store.topic("orders").unwrap().log_end_offset().value() > waiting.len() as u64 {
                    return None;
                }
                tokio::task::yield_now().await;
            }
        });
        if let Some(call) = done.await.unwrap() {
            break call.await.unwrap().unwrap_err();
        }
    };
    assert_reason(&error, Code::Unavailable, "OVERLOADED", NOT_APPLIED);
    assert!(error.get_details_retry_info().unwrap().retry_delay.is_some());
    assert_eq!(waiting.len(), 3);
    server.store.sync().unwrap();
    for call in waiting {
        call.await.unwrap().unwrap();
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_leaves_the_outcome_unknown_and_the_store_takes_nothing_more() {
    let disk = std::sync::Arc::new(StallingDisk::default());
    let gate = std::sync::Arc::clone(&disk.gate);
    let server = Server::with_metrics_and(Config::default(), Store::builder().disk(disk)).await;
    server.create("orders").await;
    let mut log = server.log().await;
    log.append(append("orders", vec![record("x")])).await.unwrap();
    gate.fail_syncs();
    let error = log.append(append("orders", vec![record("y")])).await.unwrap_err();
    assert_reason(&error, Code::Internal, "STORAGE_FAILED", "UNKNOWN");
    let error = log.append(append("orders", vec![record("z")])).await.unwrap_err();
    assert_reason(&error, Code::Internal, "STORAGE_FAILED", "UNKNOWN");
    let request = pb::CreateTopicRequest { name: "other".into(), settings: None };
    let error = server.topics().await.create_topic(request).await.unwrap_err();
    assert_reason(&error, Code::Internal, "STORAGE_FAILED", "UNKNOWN");
    // What is there can be read, and the server says how it is.
    let read = pb::ReadRequest { topic: "orders".into(), ..Default::default() };
    let (records, _, _) = read_all(&mut log, read).await.unwrap();
    assert_eq!(records, [(0, "x".into())]);
    let mut admin = pb::admin_service_client::AdminServiceClient::new(server.channel().await);
    let status = admin.get_server_status(pb::GetServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.state(), pb::get_server_status_response::State::Failed);
    assert!(status.failure.contains("the test wants it so"), "{}", status.failure);
    let ready = http_get(server.metrics.unwrap(), "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("the test wants it so"), "{ready}");
    let error = server.stop().await.unwrap_err();
    assert!(matches!(error, quipu_server::ServeError::Close(_)), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_appends_and_names_no_time_while_reads_and_trims_go_on() {
    let disk = std::sync::Arc::new(StallingDisk::default());
    let gate = std::sync::Arc::clone(&disk.gate);
    let settings = StoreSettings {
        journal_file_bytes: 256 << 10,
        journal_bytes_max: 3 * (256 << 10),
        append_bytes_max: 128 << 10,
        tail_bytes_max: 256 << 10,
        ..StoreSettings::default()
    };
    let builder = Store::builder().settings(settings).disk(disk);
    let server = Server::with_metrics_and(Config::default(), builder).await;
    server.create("orders").await;
    let mut log = server.log().await;
    log.append(append("orders", vec![record("x"), record("y")])).await.unwrap();
    assert!(http_get(server.metrics.unwrap(), "/readyz").await.starts_with("HTTP/1.1 200"));
    gate.fill();
    let mut appends = 0;
    let error = loop {
        match log.append(append("orders", vec![record(vec![b'z'; 50_000])])).await {
            Ok(_) => appends += 1,
            Err(error) => break error,
        }
        assert!(appends < 100, "more than all journal files have room for");
    };
    assert_reason(&error, Code::ResourceExhausted, "DISK_FULL", NOT_APPLIED);
    assert!(error.get_details_retry_info().is_none(), "nobody knows when there is room");
    // It was called ready, and whoever looks at that kept sending it appends.
    let ready = http_get(server.metrics.unwrap(), "/readyz").await;
    assert!(ready.starts_with("HTTP/1.1 503") && ready.contains("the disk is full"), "{ready}");
    assert!(http_get(server.metrics.unwrap(), "/healthz").await.starts_with("HTTP/1.1 200"));
    let request = pb::ReadRequest { topic: "orders".into(), records_max: 2, ..Default::default() };
    assert_eq!(read_all(&mut log, request).await.unwrap().0, [(0, "x".into()), (1, "y".into())]);
    let trim = pb::TrimTopicRequest { name: "orders".into(), before_offset: 1 };
    let trimmed = server.topics().await.trim_topic(trim).await.unwrap().into_inner();
    assert_eq!(trimmed.log_start_offset, 1);
    let _ = server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_cannot_be_read_are_refused_with_a_reason() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut channel = server.channel().await;
    // A record, of the topic `orders`, that says that it is longer than it is; and something that is no message at all.
    let record = b"\x0a\x0c\x0a\x02\x0a\x09\x12\x06orders";
    for (bytes, encoding, code, reason) in [
        (&record[..], "identity", Code::InvalidArgument, "INVALID_ENCODING"),
        (b"\xff", "identity", Code::InvalidArgument, "MALFORMED_REQUEST"),
        (b"\xff", "gzip", Code::Unimplemented, "UNSUPPORTED"),
    ] {
        let mut body = vec![u8::from(encoding == "gzip")];
        body.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
        body.extend(bytes);
        let request = http::Request::post(format!("http://{}/quipu.v1.LogService/Append", server.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .header("grpc-encoding", encoding)
            .body(tonic::body::Body::new(http_body_util::Full::new(bytes::Bytes::from(body))))
            .unwrap();
        std::future::poll_fn(|task| tower::Service::poll_ready(&mut channel, task)).await.unwrap();
        let response = tower::Service::call(&mut channel, request).await.unwrap();
        let error = tonic::Status::from_header_map(response.headers()).unwrap();
        assert_reason(&error, code, reason, NOT_APPLIED);
    }
    assert_eq!(server.store.topic("orders").unwrap().log_end_offset().value(), 0);
    server.stop().await.unwrap();
}
