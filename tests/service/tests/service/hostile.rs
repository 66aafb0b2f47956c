//! Clients that mean no good: whatever they send, the server stays up and serves others.

use std::time::Duration;

use quipu_client::{Client, Error};
use quipu_tests::rng::Rng;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::process::{PATIENCE, Server};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

async fn serves(server: &mut Server, client: &Client) {
    assert!(server.is_up());
    let serve = async {
        client.append("t", ["still here"]).await.unwrap();
        let end = client.bounds("t").await.unwrap().log_end_offset;
        let last = client.record("t", end - 1).await.unwrap().unwrap();
        assert_eq!(last.payload(), Some(&b"still here"[..]));
    };
    tokio::time::timeout(PATIENCE, serve).await.expect("it serves others");
}

async fn start() -> (Server, Client) {
    let server = Server::start();
    let client = server.client().await;
    client.create_topic("t").await.unwrap();
    (server, client)
}

/// Sends bytes and reads what comes until the server hangs up or a moment has passed; all the same here.
async fn send(server: &Server, bytes: &[u8]) {
    let mut socket = TcpStream::connect(server.address).await.unwrap();
    if socket.write_all(bytes).await.is_ok() {
        let mut answer = vec![0; 4096];
        let _ = tokio::time::timeout(Duration::from_millis(5), socket.read(&mut answer)).await;
    }
}

/// An HTTP/2 frame.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// The header block of a call, every field a literal.
fn call(path: &str) -> Vec<u8> {
    let mut block = Vec::new();
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "t"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    for (name, value) in fields {
        block.push(0);
        block.push(name.len() as u8);
        block.extend_from_slice(name.as_bytes());
        block.push(value.len() as u8);
        block.extend_from_slice(value.as_bytes());
    }
    block
}

#[tokio::test(flavor = "multi_thread")]
async fn random_bytes_at_the_port_harm_nobody() {
    let (mut server, client) = start().await;
    let mut random = Rng::new(7);
    for round in 0..300 {
        let mut bytes = if round % 2 == 0 { PREFACE.to_vec() } else { Vec::new() };
        if round % 4 == 0 {
            bytes.extend(frame(4, 0, 0, &[]));
        }
        for _ in 0..random.below(2000) {
            bytes.push(random.below(256) as u8);
        }
        send(&server, &bytes).await;
    }
    serves(&mut server, &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_that_are_no_messages_are_refused() {
    let (mut server, client) = start().await;
    let mut random = Rng::new(8);
    let methods = ["Append", "AppendSession", "Read", "Subscribe", "GetRecord", "GetBounds", "NoSuchCall"];
    for round in 0..300 {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        let path = format!("/quipu.v1.LogService/{}", methods[round % methods.len()]);
        bytes.extend(frame(1, 4, 1, &call(&path)));
        let mut message: Vec<u8> = (0..random.below(500)).map(|_| random.below(256) as u8).collect();
        // Now and then the length is a lie.
        let length = if round % 3 == 0 { u32::MAX } else { message.len() as u32 };
        let mut body = vec![0];
        body.extend_from_slice(&length.to_be_bytes());
        body.append(&mut message);
        bytes.extend(frame(0, 1, 1, &body));
        send(&server, &bytes).await;
    }
    serves(&mut server, &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_say_nothing_and_calls_that_never_end_harm_nobody() {
    let (mut server, client) = start().await;
    let mut held = Vec::new();
    for round in 0..200 {
        let mut socket = TcpStream::connect(server.address).await.unwrap();
        if round % 2 == 0 {
            let mut bytes = PREFACE.to_vec();
            bytes.extend(frame(4, 0, 0, &[]));
            bytes.extend(frame(1, 4, 1, &call("/quipu.v1.LogService/AppendSession")));
            // The beginning of a message, and no more.
            bytes.extend(frame(0, 0, 1, &[0, 0, 0, 100, 0, 1]));
            socket.write_all(&bytes).await.unwrap();
        }
        held.push(socket);
    }
    serves(&mut server, &client).await;
    drop(held);
    serves(&mut server, &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_are_opened_and_reset_harm_nobody() {
    let (mut server, client) = start().await;
    for _ in 0..20 {
        let mut bytes = PREFACE.to_vec();
        bytes.extend(frame(4, 0, 0, &[]));
        for stream in 0..2000 {
            let id = 2 * stream + 1;
            bytes.extend(frame(1, 4, id, &call("/quipu.v1.LogService/Subscribe")));
            bytes.extend(frame(3, 0, id, &8_u32.to_be_bytes()));
        }
        send(&server, &bytes).await;
    }
    for _ in 0..500 {
        drop(client.subscribe("t").send().await.unwrap());
    }
    serves(&mut server, &client).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_that_are_too_large_are_refused_and_the_connection_lives() {
    let (mut server, client) = start().await;
    for bytes in [(1 << 20) + 1, 3 << 20, 40 << 20] {
        let error = client.append("t", [vec![0_u8; bytes]]).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. } | Error::Disconnected { .. }), "{bytes}: {error:?}");
    }
    serves(&mut server, &client).await;
}
