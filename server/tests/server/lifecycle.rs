//! Health, reflection, TLS, gRPC-web, metrics, and how a server goes down.

use std::time::Duration;

use pb::subscribe_response::Event;
use quipu_proto::v1 as pb;
use quipu_proto::v1::admin_service_client::AdminServiceClient;
use quipu_proto::v1::log_service_client::LogServiceClient;
use quipu_server::{Config, Tls};
use quipu_storage::{Durability, Record, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tonic::transport::{Certificate, ClientTlsConfig, Endpoint, Identity};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1 as reflection;

use crate::common::*;

#[tokio::test(flavor = "multi_thread")]
async fn each_service_is_healthy_until_the_server_goes_down() {
    let server = Server::start().await;
    let mut health = HealthClient::new(server.channel().await);
    for service in [
        "",
        "quipu.v1.LogService",
        "quipu.v1.TopicService",
        "quipu.v1.ProducerService",
        "quipu.v1.ErasureService",
        "quipu.v1.SnapshotService",
        "quipu.v1.AdminService",
    ] {
        let request = tonic_health::pb::HealthCheckRequest { service: service.into() };
        let answer = health.check(request).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let request = tonic_health::pb::HealthCheckRequest { service: "quipu.v1.LogService".into() };
    let mut watch = health.watch(request).await.unwrap().into_inner();
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::Serving);
    let stopping = tokio::spawn(server.stop());
    assert_eq!(watch.message().await.unwrap().unwrap().status(), ServingStatus::NotServing);
    // It ends with the server, instead of keeping it.
    let ended = watch.message().await.unwrap_err();
    assert_eq!(reason(&ended).1, "DRAINING");
    stopping.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_describe_themselves() {
    use reflection::server_reflection_request::MessageRequest;
    use reflection::server_reflection_response::MessageResponse;
    let server = Server::start().await;
    let mut client =
        reflection::server_reflection_client::ServerReflectionClient::new(server.channel().await);
    let ask =
        |request| reflection::ServerReflectionRequest { host: String::new(), message_request: Some(request) };
    let requests = tokio_stream::iter([ask(MessageRequest::ListServices(String::new()))]);
    let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response;
    let Some(MessageResponse::ListServicesResponse(list)) = answer else { panic!("{answer:?}") };
    let names: Vec<_> = list.service.iter().map(|service| service.name.as_str()).collect();
    for name in [
        "quipu.v1.LogService",
        "quipu.v1.TopicService",
        "quipu.v1.ProducerService",
        "quipu.v1.ErasureService",
        "quipu.v1.SnapshotService",
        "quipu.v1.AdminService",
        "grpc.health.v1.Health",
    ] {
        assert!(names.contains(&name), "{names:?}");
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_server_tells_how_it_is() {
    let server = Server::start().await;
    server.create("orders").await;
    server.log().await.append(append("orders", vec![record("x"), record("y")])).await.unwrap();
    let mut admin = AdminServiceClient::new(server.channel().await);
    let status = admin.get_server_status(pb::GetServerStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.state(), pb::get_server_status_response::State::Serving);
    assert_eq!((status.appends, status.records_appended, status.topics), (1, 2, 1));
    assert_eq!(status.store_uid, server.store.uid().0.to_vec());
    assert!(status.connections >= 1 && status.journal_bytes > 0 && status.disk_free_bytes.is_some());
    assert_eq!(status.synced_position, status.journal_position);
    let limits = status.limits.unwrap();
    assert_eq!(limits.append_bytes_max, 8 << 20);
    assert!(limits.message_bytes_max > limits.append_bytes_max);
    server.stop().await.unwrap();
}

fn pem(name: &str) -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/server/tls").join(name)
}

/// Of a server that takes every client.
pub(crate) fn tls() -> Tls {
    Tls { certificate: pem("server.pem"), key: pem("server.key"), client_ca: None }
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_a_server_is_known_by_its_certificate_and_its_clients_by_theirs() {
    let tls = |client_ca| Tls { certificate: pem("server.pem"), key: pem("server.key"), client_ca };
    let authority = Certificate::from_pem(std::fs::read(pem("ca.pem")).unwrap());
    let trusting = || ClientTlsConfig::new().ca_certificate(authority.clone()).domain_name("localhost");
    let identity = || {
        Identity::from_pem(
            std::fs::read(pem("client.pem")).unwrap(),
            std::fs::read(pem("client.key")).unwrap(),
        )
    };
    for (client_ca, client, is_let_in) in [
        (None, trusting(), true),
        (Some(pem("ca.pem")), trusting().identity(identity()), true),
        (Some(pem("ca.pem")), trusting(), false),
        (None, ClientTlsConfig::new().domain_name("localhost"), false),
    ] {
        let config = Config { tls: Some(tls(client_ca.clone())), ..Config::default() };
        let server = Server::with(config, Store::builder()).await;
        let endpoint = Endpoint::from_shared(format!("https://{}", server.address)).unwrap();
        let outcome = async {
            let channel = endpoint.tls_config(client).unwrap().connect().await.ok()?;
            let request = pb::GetServerStatusRequest {};
            AdminServiceClient::new(channel).get_server_status(request).await.ok()
        };
        assert_eq!(outcome.await.is_some(), is_let_in, "{client_ca:?}");
        server.stop().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_read_is_named_and_the_store_closed() {
    let tls = Tls { certificate: pem("missing.pem"), key: pem("server.key"), client_ca: None };
    let server = Server::with(Config { tls: Some(tls), ..Config::default() }, Store::builder()).await;
    let store = server.store.clone();
    let error = server.stop().await.unwrap_err();
    assert!(error.to_string().contains("missing.pem"), "{error}");
    assert!(store.sync().is_err(), "it was closed");
}

/// Sends a request over HTTP/1.1 and reads the answer to its end.
async fn http(address: std::net::SocketAddr, head: &str, body: &[u8]) -> Vec<u8> {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head =
        format!("{head}\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body).await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_reaches_the_same_port_by_grpc_web_from_the_origins_that_may() {
    use prost::Message;
    let web_origins = vec!["https://ours.example".to_owned()];
    let server = Server::with(Config { web_origins, ..Config::default() }, Store::builder()).await;
    server.create("orders").await;
    server.log().await.append(append("orders", vec![record("hello")])).await.unwrap();
    let message = pb::ReadRequest { topic: "orders".into(), ..Default::default() }.encode_to_vec();
    let mut body = vec![0];
    body.extend(u32::try_from(message.len()).unwrap().to_be_bytes());
    body.extend(message);
    let head = "POST /quipu.v1.LogService/Read HTTP/1.1\r\ncontent-type: application/grpc-web+proto\r\nx-grpc-web: 1";
    for (origin, is_allowed) in [("https://ours.example", true), ("https://theirs.example", false)] {
        let answer = http(server.address, &format!("{head}\r\norigin: {origin}"), &body).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(text.contains("hello") && text.contains("grpc-status:0"), "{text}");
        let allowed = format!("access-control-allow-origin: {origin}");
        assert_eq!(text.contains(&allowed), is_allowed, "{text}");
        let ask = "OPTIONS /quipu.v1.LogService/Read HTTP/1.1\r\naccess-control-request-method: POST";
        let answer = http(server.address, &format!("{ask}\r\norigin: {origin}"), b"").await;
        let text = String::from_utf8_lossy(&answer);
        assert_eq!(text.contains(&allowed) && text.contains("x-grpc-web"), is_allowed, "{text}");
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_are_told_over_http_and_so_is_readiness() {
    let mut server = Server::start_with_metrics().await;
    server.create("orders").await;
    let mut log = server.log().await;
    log.append(append("orders", vec![record("x"), record("y")])).await.unwrap();
    let mut events = log
        .subscribe(pb::SubscribeRequest { topic: "orders".into(), ..Default::default() })
        .await
        .unwrap()
        .into_inner();
    assert!(matches!(events.message().await.unwrap().unwrap().event, Some(Event::Batches(_))));
    let metrics = server.metrics.unwrap();
    let get = async |path: &str| {
        String::from_utf8(http(metrics, &format!("GET {path} HTTP/1.1"), b"").await).unwrap()
    };
    let text = get("/metrics").await;
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("openmetrics-text"), "{text}");
    for line in [
        "quipu_appends_total 1",
        "quipu_append_records_total 2",
        "quipu_subscriptions 1",
        "quipu_sent_records_total 2",
        "quipu_disk_full 0",
        "quipu_topic_log_end_offset{topic=\"orders\"} 2",
        "quipu_topic_subscription_lag_records{topic=\"orders\"} 0",
        "quipu_append_size_bytes_bucket{le=\"256.0\"} 1",
        "# TYPE quipu_sync_duration_seconds histogram",
        "# TYPE quipu_segment_read_duration_seconds histogram",
        "# UNIT quipu_journal_bytes bytes",
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
    for name in
        ["process_resident_memory_bytes", "process_open_fds", "process_cpu_seconds_total", "quipu_tail_bytes"]
    {
        assert!(text.lines().any(|line| line.starts_with(name)), "{name}");
    }
    assert!(text.trim_end().ends_with("# EOF"));
    assert!(get("/healthz").await.starts_with("HTTP/1.1 200"));
    assert!(get("/readyz").await.ends_with("ready\n"));
    assert!(get("/other").await.starts_with("HTTP/1.1 404"));
    assert!(
        String::from_utf8(http(metrics, "POST /metrics HTTP/1.1", b"").await)
            .unwrap()
            .starts_with("HTTP/1.1 405")
    );
    server.begin_stop();
    server.stop().await.unwrap();
}

/// 32 connections that asked for nothing kept every scrape waiting until they were given up.
#[tokio::test(flavor = "multi_thread")]
async fn a_scrape_gets_the_place_of_the_connection_that_was_silent_for_the_longest_time() {
    let server = Server::start_with_metrics().await;
    let metrics = server.metrics.unwrap();
    let ask = async |stream: &mut TcpStream| {
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"ok\n") {
            if tokio::time::timeout(PATIENCE, stream.read_buf(&mut answer)).await.unwrap()? == 0 {
                return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof));
            }
        }
        Ok(())
    };
    let mut idle = Vec::new();
    for _ in 0..32 {
        let mut stream = TcpStream::connect(metrics).await.unwrap();
        // It has its place now, and keeps it.
        ask(&mut stream).await.unwrap();
        idle.push(stream);
    }
    ask(&mut idle[0]).await.unwrap();
    assert!(http_get(metrics, "/metrics").await.starts_with("HTTP/1.1 200"));
    // Nobody else went, as would be if the scrape had waited for their time to be up.
    assert!(ask(&mut idle[1]).await.is_err());
    for place in (0..32).filter(|place| *place != 1) {
        ask(&mut idle[place]).await.unwrap();
    }
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn topics_beyond_the_limit_share_their_metrics() {
    let server = Server::with_metrics(Config { metrics_topics_max: 1, ..Config::default() }).await;
    for name in ["a", "b", "c"] {
        server.create(name).await;
        server.log().await.append(append(name, vec![record("x")])).await.unwrap();
    }
    let text = String::from_utf8(http(server.metrics.unwrap(), "GET /metrics HTTP/1.1", b"").await).unwrap();
    let lines: Vec<_> =
        text.lines().filter(|line| line.starts_with("quipu_topic_append_records_total")).collect();
    assert_eq!(
        lines,
        [
            "quipu_topic_append_records_total{topic=\"a\"} 1",
            "quipu_topic_append_records_total{topic=\"(other)\"} 2"
        ]
    );
    server.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_does_not_read_holds_a_shutdown_up_only_for_so_long() {
    let config = Config { drain_time_max: Duration::from_secs(3), ..Config::default() };
    let server = Server::with(config, Store::builder()).await;
    server.create("orders").await;
    let topic = server.store.topic("orders").unwrap();
    let filled = tokio::task::spawn_blocking(move || {
        for _ in 0..16 {
            topic.append_with(&[Record::new(vec![0; 256 << 10])], Durability::Accepted).unwrap();
        }
        // So that closing has little to write: the bound is for that as well.
        topic.store().checkpoint().unwrap();
    });
    filled.await.unwrap();
    let narrow = endpoint(server.address).initial_stream_window_size(64 << 10);
    let mut log = LogServiceClient::new(narrow.connect().await.unwrap());
    let request = pb::SubscribeRequest { topic: "orders".into(), ..Default::default() };
    let mut unread = log.subscribe(request).await.unwrap().into_inner();
    let dir = server.stop().await.unwrap();
    assert!(Store::open(dir.path().join("data")).unwrap().recovery().was_clean);
    // What was in the client's window may still come; then it learns of the end.
    while let Ok(Some(_)) = unread.message().await {}
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_after_the_shutdown_began_is_refused() {
    let server = Server::start().await;
    server.create("orders").await;
    let mut log = server.log().await;
    let address = server.address;
    server.stop().await.unwrap();
    assert!(log.append(append("orders", vec![record("x")])).await.is_err());
    assert!(endpoint(address).connect().await.is_err(), "nobody listens any more");
}
