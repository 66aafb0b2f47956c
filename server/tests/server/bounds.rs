//! What one client does costs others nothing: stalled reads, readers that do not read, limits.

use std::sync::Arc;
use std::time::Duration;

use pb::erasure_service_client::ErasureServiceClient;
use pb::producer_service_client::ProducerServiceClient;
use pb::snapshot_service_client::SnapshotServiceClient;
use pb::subscribe_response::Event;
use quipu_proto::v1 as pb;
use quipu_proto::v1::log_service_client::LogServiceClient;
use quipu_server::Config;
use quipu_storage::{Durability, Record, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::common::*;
use crate::stalled_disk::{StallingDisk, sealing};

async fn until(mut is_so: impl FnMut() -> bool) {
    let wait = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it comes to that");
}

#[tokio::test]
async fn a_stalled_read_of_the_disk_does_not_delay_an_append_of_another_client() {
    // On one thread: whatever blocked it would block everybody, this test included.
    let disk = Arc::new(StallingDisk::default());
    let gate = Arc::clone(&disk.gate);
    let config = Config { reads_max: 2, ..Config::default() };
    let server = Server::with(config, Store::builder().disk(disk)).await;
    server.create("cold").await;
    server.create("hot").await;
    let mut log = server.log().await;
    for number in 0..10 {
        log.append(append("cold", vec![record(format!("{number}"))])).await.unwrap();
    }
    let store = server.store.clone();
    tokio::task::spawn_blocking(move || store.checkpoint().unwrap()).await.unwrap();
    gate.close();
    let mut readers = Vec::new();
    for _ in 0..8 {
        let request = pb::SubscribeRequest { topic: "cold".into(), heartbeat_ms: 100, ..Default::default() };
        readers.push(log.subscribe(request).await.unwrap().into_inner());
    }
    until(|| gate.waiting() == 2).await;
    // The first append to a topic goes another way than those after it.
    for _ in 0..3 {
        let appended = log.append(append("hot", vec![record("x")]));
        tokio::time::timeout(PATIENCE, appended).await.expect("not delayed").unwrap();
    }
    // Nor are those silent whose reads stall, or wait for the places of those that do.
    for events in &mut readers {
        let event = tokio::time::timeout(PATIENCE, events.message()).await.expect("a heartbeat");
        assert!(matches!(event.unwrap().unwrap().event, Some(Event::Heartbeat(_))));
    }
    assert_eq!(gate.waiting(), 2, "no more reads at a time than there may be");
    assert!(!gate.has_timed_out(), "nobody waited on this thread");
    gate.open();
    for events in &mut readers {
        let mut count = 0;
        while count < 10 {
            if let Some(Event::Batches(batches)) = events.message().await.unwrap().unwrap().event {
                count += batches.batches.iter().map(|batch| batch.records.len()).sum::<usize>();
            }
        }
    }
    server.stop().await.unwrap();
}

/// The last revisions of keys that are not recent are in indexes on the disk, which were read on the thread that serves
/// others as well.
#[tokio::test]
async fn an_append_of_a_key_that_must_be_looked_up_on_a_stalled_disk_delays_no_append_of_another_client() {
    let disk = Arc::new(StallingDisk::default());
    let gate = Arc::clone(&disk.gate);
    let server = Server::with(Config::default(), Store::builder().disk(disk)).await;
    let settings = pb::TopicSettings { segment_bytes_max: 4096, ..Default::default() };
    server.create_with("orders", settings).await;
    let mut log = server.log().await;
    log.append(append("orders", vec![keyed("old", "x")])).await.unwrap();
    // More segments than those whose keys stay in memory.
    for _ in 0..50 {
        log.append(append("orders", vec![keyed("filler", &"x".repeat(1000))])).await.unwrap();
    }
    let store = server.store.clone();
    tokio::task::spawn_blocking(move || store.checkpoint().unwrap()).await.unwrap();
    log.append(append("orders", vec![keyed("hot", "x")])).await.unwrap();
    gate.close();
    let send = |request| {
        let mut log = log.clone();
        tokio::spawn(async move { log.append(request).await.unwrap().into_inner().appended.remove(0) })
    };
    let looked_up = send(append("orders", vec![keyed("old", "y")]));
    let (requests, received) = tokio::sync::mpsc::channel(10);
    let in_session = |request| pb::AppendSessionRequest { append: Some(request), opening: None };
    // Behind it in a session nothing overtakes it.
    requests.send(in_session(append("orders", vec![keyed("old", "z")]))).await.unwrap();
    requests.send(in_session(append("orders", vec![record("last")]))).await.unwrap();
    let received = tokio_stream::wrappers::ReceiverStream::new(received);
    let mut session = log.append_session(received).await.unwrap().into_inner();
    until(|| gate.waiting() >= 1).await;
    for revision in 1..4 {
        let appended = log.append(append("orders", vec![keyed("hot", "x"), record("plain")]));
        let answer = tokio::time::timeout(PATIENCE, appended).await.expect("not delayed").unwrap();
        assert_eq!(answer.into_inner().appended[0].revisions, [revision]);
    }
    assert!(!gate.has_timed_out(), "nobody waited on this thread");
    let end = server.store.topic("orders").unwrap().log_end_offset().value();
    gate.open();
    let mut revisions = looked_up.await.unwrap().revisions;
    let mut offsets = Vec::new();
    while offsets.len() < 2 {
        if let Some(mut response) = session.message().await.unwrap().unwrap().response {
            let appended = response.appended.remove(0);
            revisions.extend(appended.revisions);
            offsets.push(appended.first_offset);
        }
    }
    revisions.sort_unstable();
    assert_eq!(revisions, [1, 2]);
    assert!(end <= offsets[0] && offsets[0] < offsets[1], "{offsets:?} behind {end}");
    drop(requests);
    server.stop().await.unwrap();
}

/// Waits until so many requests have come since there were `before`.
async fn requested(server: &Server, before: u64, count: u64) {
    let come = async { while server.metric("quipu_requests_total").await < before + count {} };
    tokio::time::timeout(PATIENCE, come).await.expect("they come");
}

/// Both waited for syncs on the threads of appends, of which there are 32.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_wait_for_syncs_without_appending_keep_no_thread_from_appends() {
    const CALLS: u64 = 40;
    let disk = Arc::new(StallingDisk::default());
    let gate = Arc::clone(&disk.sync_gate);
    let server = Server::with_metrics_and(Config::default(), Store::builder().disk(disk)).await;
    server.create("orders").await;
    let mut log = server.log().await;
    log.append(append("orders", vec![keyed("a", "0")])).await.unwrap();
    let snapshots = SnapshotServiceClient::new(server.channel().await);
    let put = || pb::PutSnapshotRequest {
        topic: "orders".into(),
        revision: 0,
        snapshot: Some(keyed("a", "state")),
        durability: 0,
    };
    // It makes the topic.
    snapshots.clone().put_snapshot(put()).await.unwrap();
    let producers = ProducerServiceClient::new(server.channel().await);
    gate.close();
    let written = pb::Durability::Written.into();
    let unsynced = pb::AppendRequest { durability: written, ..append("orders", vec![record("unsynced")]) };
    log.append(unsynced).await.unwrap();
    let before = server.metric("quipu_requests_total").await;
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..CALLS {
        let (mut snapshots, mut producers) = (snapshots.clone(), producers.clone());
        let (put, get) = (put(), pb::GetProducerRequest { name: "p".into() });
        waiting.spawn(async move { snapshots.put_snapshot(put).await.map(drop) });
        waiting.spawn(async move { producers.get_producer(get).await.map(drop) });
    }
    requested(&server, before, 2 * CALLS).await;
    // So large that each needs a thread.
    let large = "x".repeat((1 << 20) + 1);
    for _ in 0..3 {
        let records = vec![record(large.as_str())];
        let large = pb::AppendRequest { durability: written, ..append("orders", records) };
        tokio::time::timeout(PATIENCE, log.append(large)).await.expect("not delayed").unwrap();
    }
    assert!(!gate.has_timed_out() && waiting.try_join_next().is_none(), "they wait all the while");
    gate.open();
    while let Some(answer) = waiting.join_next().await {
        answer.unwrap().unwrap();
    }
    server.stop().await.unwrap();
}

/// Each writes the whole master key, and one waits for the other: they took all the places of what changes topics.
#[tokio::test(flavor = "multi_thread")]
async fn clients_that_destroy_erasure_keys_do_not_hold_off_a_trim() {
    const CALLS: u64 = 40;
    let disk = Arc::new(StallingDisk::default());
    let gate = Arc::clone(&disk.key_gate);
    let dir = tempfile::tempdir().unwrap();
    let store = sealing(disk, dir.path());
    let server = Server::with_metrics_and(Config::default(), store).await;
    server.create("orders").await;
    server.log().await.append(append("orders", vec![record("x"), record("y")])).await.unwrap();
    gate.close();
    let before = server.metric("quipu_requests_total").await;
    let erasure = ErasureServiceClient::new(server.channel().await);
    let mut waiting = tokio::task::JoinSet::new();
    for number in 0..CALLS {
        let mut erasure = erasure.clone();
        let request = pb::EraseKeysRequest { erasure_keys: vec![number.to_string()] };
        waiting.spawn(async move { erasure.erase_keys(request).await.map(drop) });
    }
    requested(&server, before, CALLS).await;
    until(|| gate.waiting() == 1).await;
    let trim = pb::TrimTopicRequest { name: "orders".into(), before_offset: 1 };
    let mut topics = server.topics().await;
    tokio::time::timeout(PATIENCE, topics.trim_topic(trim)).await.expect("not delayed").unwrap();
    assert!(!gate.has_timed_out() && waiting.try_join_next().is_none(), "they wait all the while");
    gate.open();
    while let Some(answer) = waiting.join_next().await {
        answer.unwrap().unwrap();
    }
    server.stop().await.unwrap();
}

/// Of a subscription that nobody reads, the server takes no more than this: a response of 256 KiB on its way to the wire,
/// one being put together, and what HTTP/2 lets it send (400 KiB of its own and the client's window of 64 KiB).
const UNREAD_BYTES_MAX: u64 = (2 * 256 + 400 + 64 + 64) << 10;

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_subscribers_are_served_while_one_never_reads() {
    const SUBSCRIBERS: usize = 1000;
    const CONNECTIONS: usize = 5;
    let records = 1024;
    let server = Server::start_with_metrics().await;
    server.create("orders").await;
    let topic = server.store.topic("orders").unwrap();
    let mut streams = Vec::new();
    let request = || pb::SubscribeRequest { topic: "orders".into(), ..Default::default() };
    let narrow = || endpoint(server.address).initial_stream_window_size(64 << 10);
    for _ in 0..CONNECTIONS {
        let mut log = LogServiceClient::new(narrow().connect().await.unwrap());
        for _ in 0..SUBSCRIBERS / CONNECTIONS {
            streams.push(log.subscribe(request()).await.unwrap().into_inner());
        }
    }
    let unread = streams.pop().unwrap();
    let writer = tokio::task::spawn_blocking(move || {
        for number in 0..records {
            let payload = format!("{number:0>4096}");
            topic.append_with(&[Record::new(payload)], Durability::Accepted).unwrap();
        }
        topic.store().sync().unwrap();
    });
    let read = |mut events: tonic::Streaming<pb::SubscribeResponse>, bytes: u64| async move {
        let (mut expected, mut found) = (0, 0);
        while found < bytes {
            if let Some(Event::Batches(batches)) = events.message().await.unwrap().unwrap().event {
                for batch in batches.batches {
                    assert_eq!(batch.first_offset, expected);
                    expected = batch.next_offset;
                    found += batch
                        .records
                        .iter()
                        .map(|record| record.payload.as_ref().unwrap().len() as u64)
                        .sum::<u64>();
                }
            }
        }
        expected
    };
    let all = u64::try_from(records).unwrap() * 4096;
    let mut readers = tokio::task::JoinSet::new();
    for events in streams {
        readers.spawn(read(events, all));
    }
    writer.await.unwrap();
    while let Some(read) = readers.join_next().await {
        assert_eq!(read.unwrap(), u64::try_from(records).unwrap());
    }
    let sent = server.metric("quipu_sent_bytes_total").await;
    let records_sent = server.metric("quipu_sent_records_total").await;
    let record_bytes = 4096 + 6;
    assert_eq!(sent, records_sent * record_bytes, "each record has that many bytes");
    let unread_bytes = sent - (SUBSCRIBERS as u64 - 1) * u64::try_from(records).unwrap() * record_bytes;
    assert!(unread_bytes <= UNREAD_BYTES_MAX, "{unread_bytes} bytes for a subscriber that does not read");
    assert!(unread_bytes > 0, "it was sent what it has room for");
    // It has lost nothing.
    assert_eq!(read(unread, all).await, u64::try_from(records).unwrap());
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_has_only_so_many_streams_and_says_so() {
    let config = Config { streams_max: 3, ..Config::default() };
    let server = Server::with(config, Store::builder()).await;
    server.create("orders").await;
    let mut log = server.log().await;
    let request = || pb::SubscribeRequest { topic: "orders".into(), ..Default::default() };
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(log.subscribe(request()).await.unwrap());
    }
    let error = log.subscribe(request()).await.unwrap_err();
    assert_reason(&error, Code::ResourceExhausted, "TOO_MANY_STREAMS", "NOT_APPLIED");
    // Another connection is another matter; and one that ends makes room.
    server.log().await.subscribe(request()).await.unwrap();
    open.pop();
    let again = async {
        while let Err(error) = log.subscribe(request()).await {
            assert_reason(&error, Code::ResourceExhausted, "TOO_MANY_STREAMS", "NOT_APPLIED");
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_beyond_the_limit_are_told_so_and_closed() {
    let config = Config { connections_max: 2, ..Config::default() };
    let server = Server::with(config, Store::builder()).await;
    let bounds = || pb::GetBoundsRequest { topic: "missing".into() };
    let (mut first, mut second, mut third) = (server.log().await, server.log().await, server.log().await);
    assert_reason(
        &first.get_bounds(bounds()).await.unwrap_err(),
        Code::NotFound,
        "TOPIC_NOT_FOUND",
        "NOT_APPLIED",
    );
    assert_reason(
        &second.get_bounds(bounds()).await.unwrap_err(),
        Code::NotFound,
        "TOPIC_NOT_FOUND",
        "NOT_APPLIED",
    );
    let error = third.get_bounds(bounds()).await.unwrap_err();
    assert_reason(&error, Code::ResourceExhausted, "TOO_MANY_CONNECTIONS", "NOT_APPLIED");
    // A connection that goes makes room for another.
    drop(first);
    let again = async {
        loop {
            let error = server.log().await.get_bounds(bounds()).await.unwrap_err();
            if error.code() == Code::NotFound {
                break;
            }
        }
    };
    tokio::time::timeout(PATIENCE, again).await.unwrap();
    server.stop().await.unwrap();
}

/// The preface of HTTP/2, and settings with one value.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64";

/// Sends bytes and returns when the server has closed the connection.
async fn held_until_closed(address: std::net::SocketAddr, bytes: &'static [u8]) {
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    // The server may close it before all is written.
    let _ = stream.write_all(bytes).await;
    let mut answer = [0; 1024];
    let read = async { while stream.read(&mut answer).await.is_ok_and(|bytes| bytes > 0) {} };
    tokio::time::timeout(PATIENCE, read).await.expect("the server closes it");
}

/// The same with many connections at a time.
async fn all_held_until_closed(address: std::net::SocketAddr, beginnings: &[&'static [u8]]) {
    let mut held = tokio::task::JoinSet::new();
    for bytes in beginnings {
        held.spawn(held_until_closed(address, bytes));
    }
    while let Some(closed) = held.join_next().await {
        closed.unwrap();
    }
}

/// A client that had sent one byte once held its connection, one of a thousand, for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_on_which_nobody_begins_is_closed() {
    // On a busy machine, too, a client that does begin has begun by then.
    let handshake_time_max = Duration::from_secs(1);
    let tls = crate::lifecycle::tls();
    for tls in [None, Some(tls)] {
        let config = Config { handshake_time_max, tls: tls.clone(), ..Config::default() };
        let server = Server::with_metrics(config).await;
        let beginnings: [&'static [u8]; 7] = [
            b"",
            b"P",
            &PREFACE[..24],
            &PREFACE[..PREFACE.len() - 1],
            b"POST /quipu.v1.LogService/Read HT",
            // A hello of TLS, without its end.
            b"\x16\x03\x01\x02\x00\x01",
            b"\x16",
        ];
        all_held_until_closed(server.address, &beginnings).await;
        let gone = async { while server.metric("quipu_connections").await > 0 {} };
        tokio::time::timeout(PATIENCE, gone).await.expect("their places are free");
        assert!(server.metric("quipu_connections_overdue_total").await > 0);
        if tls.is_none() {
            // One that has begun may take its time with its first call.
            let mut begun = tokio::net::TcpStream::connect(server.address).await.unwrap();
            begun.write_all(PREFACE).await.unwrap();
            let begun = tokio::spawn(async move { begun.read_to_end(&mut Vec::new()).await });
            for _ in 0..2 {
                held_until_closed(server.address, b"P").await;
            }
            assert!(!begun.is_finished());
            begun.abort();
        }
        server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_without_calls_is_closed_and_one_with_a_call_is_not() {
    // On a busy machine, too, the client below calls within this time.
    let connection_idle_max = Duration::from_secs(2);
    let handshake_time_max = Duration::from_secs(1);
    let config = Config { connection_idle_max, handshake_time_max, ..Config::default() };
    let server = Server::with(config, Store::builder()).await;
    server.create("orders").await;
    let mut log = server.log().await;
    let request = pb::SubscribeRequest { topic: "orders".into(), ..Default::default() };
    let mut events = log.subscribe(request).await.unwrap().into_inner();
    assert!(matches!(events.message().await.unwrap().unwrap().event, Some(Event::CaughtUp(_))));
    let beginnings: [&'static [u8]; 3] = [
        PREFACE,
        // Headers that never end.
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0\x64\0\0\x01\x01\0\0\0\0\x01\x82",
        // A call that has ended, on a connection that is kept.
        b"POST /quipu.v1.LogService/Read HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n\r\n",
    ];
    for _ in 0..2 {
        all_held_until_closed(server.address, &beginnings).await;
    }
    // On the same connection, as long as all of those were.
    log.append(append("orders", vec![record("x")])).await.unwrap();
    assert!(matches!(events.message().await.unwrap().unwrap().event, Some(Event::Batches(_))));
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_that_are_no_request_close_their_connection_and_nothing_else() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for _ in 0..50 {
        let mut stream = tokio::net::TcpStream::connect(server.address).await.unwrap();
        let mut noise = [0; 512];
        for byte in &mut noise {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (seed >> 56) as u8;
        }
        // The server may close it before all is written.
        let _ = stream.write_all(&noise).await;
        let _ = stream.shutdown().await;
        let mut answer = Vec::new();
        let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("closed");
    }
    log.append(append("orders", vec![record("x")])).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_opens_streams_and_resets_them_leaves_nothing_behind() {
    let server = Server::start_with_metrics().await;
    server.create("orders").await;
    for _ in 0..5 {
        // The library may break the connection off as hostile: then the next one is tried.
        let mut log = server.log().await;
        let mut calls = tokio::task::JoinSet::new();
        for _ in 0..500 {
            let request = pb::SubscribeRequest { topic: "orders".into(), ..Default::default() };
            let mut log = log.clone();
            calls.spawn(async move { drop(log.subscribe(request).await) });
        }
        calls.join_all().await;
        let _ = log.get_bounds(pb::GetBoundsRequest { topic: "orders".into() }).await;
    }
    let gone = async { while server.metric("quipu_subscriptions").await > 0 {} };
    tokio::time::timeout(PATIENCE, gone).await.expect("they are gone");
    server.log().await.append(append("orders", vec![record("x")])).await.unwrap();
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_come_in_part_only_are_bounded_for_each_connection() {
    use tokio_stream::StreamExt;
    let settings = quipu_storage::StoreSettings { append_bytes_max: 1 << 20, ..Default::default() };
    let config = Config { connection_request_bytes_max: 4 << 20, ..Config::default() };
    let server = Server::with(config, Store::builder().settings(settings)).await;
    server.create("orders").await;
    let channel = server.channel().await;
    // Each says that a megabyte comes, and sends all of it but the end.
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let mut channel = channel.clone();
        let mut message = vec![0; (1 << 20) - 1];
        message[1..5].copy_from_slice(&(1_u32 << 20).to_be_bytes());
        let first = tokio_stream::iter([Ok::<_, std::convert::Infallible>(frame_of(message))]);
        let body =
            tonic::body::Body::new(http_body_util::StreamBody::new(first.chain(tokio_stream::pending())));
        let request = http::Request::post(format!("http://{}/quipu.v1.LogService/Append", server.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body)
            .unwrap();
        calls.spawn(async move {
            std::future::poll_fn(|task| tower::Service::poll_ready(&mut channel, task)).await?;
            tower::Service::call(&mut channel, request).await
        });
    }
    let refused = tokio::time::timeout(PATIENCE, calls.join_next()).await.expect("one is refused");
    let response = refused.unwrap().unwrap().unwrap();
    let error = tonic::Status::from_header_map(response.headers()).unwrap();
    assert_reason(&error, Code::Unavailable, "OVERLOADED", "NOT_APPLIED");
    // Others are not concerned.
    server.log().await.append(append("orders", vec![record("x")])).await.unwrap();
    drop(calls);
    server.stop().await.unwrap();
}

/// A client that answers pings and sends nothing more once held the memory of its half requests for ever.
#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_stops_in_its_middle_is_ended() {
    use tokio_stream::StreamExt;
    let config = Config { request_stall_time_max: Duration::from_millis(100), ..Config::default() };
    let server = Server::with(config, Store::builder()).await;
    let mut channel = server.channel().await;
    let body = |bytes: Vec<u8>| {
        let first = tokio_stream::iter([Ok::<_, std::convert::Infallible>(frame_of(bytes))]);
        tonic::body::Body::new(http_body_util::StreamBody::new(first.chain(tokio_stream::pending())))
    };
    let message = || vec![0, 0, 0, 1, 0, 7, 7];
    for (method, bytes) in
        [("Append", message()), ("Append", vec![]), ("Read", vec![0, 0]), ("AppendSession", message())]
    {
        let request = http::Request::post(format!("http://{}/quipu.v1.LogService/{method}", server.address))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(body(bytes))
            .unwrap();
        let call = async {
            std::future::poll_fn(|task| tower::Service::poll_ready(&mut channel, task)).await.unwrap();
            let response = tower::Service::call(&mut channel, request).await.unwrap();
            match tonic::Status::from_header_map(response.headers()) {
                Some(status) => status,
                None => {
                    let body = http_body_util::BodyExt::collect(response.into_body()).await.unwrap();
                    tonic::Status::from_header_map(body.trailers().unwrap()).unwrap()
                }
            }
        };
        let error = tokio::time::timeout(PATIENCE, call).await.expect("it is ended");
        assert_reason(&error, Code::Unavailable, "REQUEST_STALLED", "NOT_APPLIED");
    }
    server.stop().await.unwrap();
}

fn frame_of(bytes: Vec<u8>) -> hyper::body::Frame<bytes::Bytes> {
    hyper::body::Frame::data(bytes.into())
}
