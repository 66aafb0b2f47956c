//! How fast records cross the wire: append sessions and subscriptions over loopback, beside a bare stream that moves the
//! same bytes as opaque frames.
//!
//! `cargo run --release -p quipu-server --example wire_rates -- [MEGABYTES]`

#![allow(clippy::print_stdout, reason = "that is what it is for")]

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Buf, BufMut, Bytes};
use prost::Message;
use quipu_proto::v1 as pb;
use quipu_server::{Config, serve};
use quipu_storage::{Durability, Record, Store};
use tokio::net::TcpListener;
use tokio_stream::StreamExt;
use tonic::body::Body;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

type Outcome<T> = Result<T, Box<dyn Error>>;

const RECORD_BYTES: usize = 1024;
const FRAME_BYTES: usize = 256 << 10;
const ROUNDS: usize = 3;

/// Messages as bytes.
#[derive(Clone, Copy, Default)]
struct Opaque;

impl Codec for Opaque {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;
    fn encoder(&mut self) -> Self {
        *self
    }
    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Opaque {
    type Item = Bytes;
    type Error = Status;
    fn encode(&mut self, item: Bytes, buf: &mut EncodeBuf<'_>) -> Result<(), Status> {
        buf.put(item);
        Ok(())
    }
}

impl Decoder for Opaque {
    type Item = Bytes;
    type Error = Status;
    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        Ok(Some(buf.copy_to_bytes(buf.remaining())))
    }
}

/// A service that sends as many frames as it is asked for, and one that takes whatever comes.
#[derive(Clone)]
struct Bare;

impl tonic::server::NamedService for Bare {
    const NAME: &'static str = "bare.Bare";
}

impl tower::Service<http::Request<Body>> for Bare {
    type Response = http::Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        struct Send;
        impl tonic::server::ServerStreamingService<Bytes> for Send {
            type Response = Bytes;
            type ResponseStream =
                Pin<Box<dyn tokio_stream::Stream<Item = Result<Bytes, Status>> + std::marker::Send>>;
            type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;
            fn call(&mut self, request: Request<Bytes>) -> Self::Future {
                let count = request.into_inner().get_u64();
                let frame = Bytes::from(vec![7; FRAME_BYTES]);
                let frames = tokio_stream::iter((0..count).map(move |_| Ok(frame.clone())));
                std::future::ready(Ok(tonic::Response::new(Box::pin(frames))))
            }
        }
        struct Take;
        impl tonic::server::StreamingService<Bytes> for Take {
            type Response = Bytes;
            type ResponseStream =
                Pin<Box<dyn tokio_stream::Stream<Item = Result<Bytes, Status>> + std::marker::Send>>;
            type Future = std::future::Ready<Result<tonic::Response<Self::ResponseStream>, Status>>;
            fn call(&mut self, request: Request<tonic::Streaming<Bytes>>) -> Self::Future {
                let answers = request.into_inner().map(|taken| taken.map(|_| Bytes::from_static(b"ok")));
                std::future::ready(Ok(tonic::Response::new(Box::pin(answers))))
            }
        }
        let mut grpc = tonic::server::Grpc::new(Opaque).apply_max_message_size_config(Some(64 << 20), None);
        Box::pin(async move {
            Ok(if request.uri().path().ends_with("Send") {
                grpc.server_streaming(Send, request).await
            } else {
                grpc.streaming(Take, request).await
            })
        })
    }
}

async fn channel(address: std::net::SocketAddr) -> Outcome<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
    Ok(endpoint.initial_stream_window_size(4 << 20).initial_connection_window_size(8 << 20).connect().await?)
}

async fn grpc(channel: &Channel) -> Outcome<tonic::client::Grpc<Channel>> {
    let mut grpc = tonic::client::Grpc::new(channel.clone()).max_decoding_message_size(64 << 20);
    grpc.ready().await?;
    Ok(grpc)
}

/// The best of some rounds, in MB/s.
async fn best<F: Future<Output = Outcome<usize>>>(mut round: impl FnMut() -> F) -> Outcome<f64> {
    let mut best = 0.0_f64;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        let bytes = round().await?;
        best = best.max(bytes as f64 / begun.elapsed().as_secs_f64() / 1e6);
    }
    Ok(best)
}

async fn subscribed(channel: &Channel, topic: &str, wanted: usize) -> Outcome<usize> {
    let request = pb::SubscribeRequest { topic: topic.into(), ..Default::default() };
    let path = http::uri::PathAndQuery::from_static("/quipu.v1.LogService/Subscribe");
    let request = Request::new(Bytes::from(request.encode_to_vec()));
    let mut stream = grpc(channel).await?.server_streaming(request, path, Opaque).await?.into_inner();
    let mut bytes = 0;
    while bytes < wanted {
        bytes += stream.message().await?.ok_or("it ended")?.len();
    }
    Ok(wanted)
}

async fn subscribed_and_decoded(channel: &Channel, topic: &str, records: usize) -> Outcome<usize> {
    let mut log =
        pb::log_service_client::LogServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let request = pb::SubscribeRequest { topic: topic.into(), ..Default::default() };
    let mut stream = log.subscribe(request).await?.into_inner();
    let mut found = 0;
    while found < records {
        if let Some(pb::subscribe_response::Event::Batches(batches)) =
            stream.message().await?.ok_or("it ended")?.event
        {
            found += batches.batches.iter().map(|batch| batch.records.len()).sum::<usize>();
        }
    }
    Ok(records * RECORD_BYTES)
}

async fn bare_received(channel: &Channel, bytes: usize) -> Outcome<usize> {
    let path = http::uri::PathAndQuery::from_static("/bare.Bare/Send");
    let frames = (bytes / FRAME_BYTES) as u64;
    let request = Request::new(Bytes::copy_from_slice(&frames.to_be_bytes()));
    let mut stream = grpc(channel).await?.server_streaming(request, path, Opaque).await?.into_inner();
    let mut found = 0;
    while let Some(frame) = stream.message().await? {
        found += frame.len();
    }
    Ok(found)
}

/// Sends `count` messages, and waits for as many answers.
async fn sent(channel: &Channel, path: &'static str, message: Bytes, count: usize) -> Outcome<usize> {
    let payload = message.len();
    let requests = tokio_stream::iter((0..count).map(move |_| message.clone()));
    let path = http::uri::PathAndQuery::from_static(path);
    let mut answers =
        grpc(channel).await?.streaming(Request::new(requests), path, Opaque).await?.into_inner();
    let mut answered = 0;
    while let Some(answer) = answers.message().await? {
        // The first one of a session is a grant.
        answered += usize::from(!answer.starts_with(&[0x10]));
    }
    if answered != count {
        return Err(format!("{answered} answers to {count} requests").into());
    }
    Ok(count * payload)
}

fn append_message(topic: &str, records: usize, durability: pb::Durability) -> Bytes {
    let record = pb::Record { payload: Some(vec![b'x'; RECORD_BYTES].into()), ..Default::default() };
    let part = pb::TopicAppend { topic: topic.into(), records: vec![record; records], records_crc: None };
    let append =
        pb::AppendRequest { appends: vec![part], durability: durability.into(), ..Default::default() };
    pb::AppendSessionRequest { append: Some(append), opening: None }.encode_to_vec().into()
}

fn main() -> Outcome<()> {
    let megabytes: usize = std::env::args().nth(1).map_or(Ok(300), |text| text.parse())?;
    let records = megabytes * 1_000_000 / RECORD_BYTES;
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path().join("data"))?;
    for (topic, batch) in [("single", 1), ("batched", 256)] {
        let topic = store.topic_or_create(topic)?;
        let some = vec![Record::new(vec![b'x'; RECORD_BYTES]); batch];
        for _ in 0..records / batch {
            topic.append_with(&some, Durability::Accepted)?;
        }
    }
    store.topic_or_create("sink")?;
    store.sync()?;
    store.checkpoint()?;

    let engine = store.topic_or_create("engine")?;
    for batch in [256, 1] {
        let some = vec![Record::new(vec![b'x'; RECORD_BYTES]); batch];
        let mut best = 0.0_f64;
        for _ in 0..ROUNDS {
            let count = if batch == 1 { 50_000 } else { records / batch };
            let begun = Instant::now();
            for _ in 0..count {
                engine.append_with(&some, Durability::Written)?;
            }
            best = best.max((count * batch * RECORD_BYTES) as f64 / begun.elapsed().as_secs_f64() / 1e6);
        }
        println!("engine, WRITTEN,   {batch:3} records {best:7.0} MB/s");
    }
    store.checkpoint()?;

    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let listener = server.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let address = listener.local_addr()?;
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = server.spawn(serve(listener, store.clone(), Config::default(), async move {
        let _ = stopped.await;
    }));
    let bare_listener = server.block_on(TcpListener::bind("127.0.0.1:0"))?;
    let bare_address = bare_listener.local_addr()?;
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(bare_listener);
    server.spawn(
        tonic::transport::Server::builder()
            .initial_stream_window_size(4 << 20)
            .initial_connection_window_size(8 << 20)
            .add_service(Bare)
            .serve_with_incoming(incoming),
    );

    let client = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    client.block_on(async {
        let (ours, bare) = (channel(address).await?, channel(bare_address).await?);
        let bytes = records * RECORD_BYTES;
        println!("bare stream, received         {:7.0} MB/s", best(|| bare_received(&bare, bytes)).await?);
        for topic in ["batched", "single"] {
            let count = if topic == "batched" { records / 256 * 256 } else { records };
            let rate = best(|| subscribed(&ours, topic, count * RECORD_BYTES)).await?;
            println!("subscribe, opaque,   {topic:8} {rate:7.0} MB/s");
            let rate = best(|| subscribed_and_decoded(&ours, topic, count)).await?;
            println!("subscribe, decoded,  {topic:8} {rate:7.0} MB/s");
        }
        for batch in [256, 1] {
            let message = append_message("sink", batch, pb::Durability::Written);
            let count = if batch == 1 { 50_000 } else { bytes / message.len() };
            let rate = best(|| sent(&bare, "/bare.Bare/Take", message.clone(), count)).await?;
            println!("bare stream, sent, {batch:3} records {rate:7.0} MB/s");
            let path = "/quipu.v1.LogService/AppendSession";
            let rate = best(|| sent(&ours, path, message.clone(), count)).await?;
            println!("session, WRITTEN,  {batch:3} records {rate:7.0} MB/s");
        }
        let mut log = pb::log_service_client::LogServiceClient::new(ours.clone());
        for durability in [pb::Durability::Accepted, pb::Durability::Written, pb::Durability::Synced] {
            let message = append_message("sink", 1, durability);
            let append = pb::AppendSessionRequest::decode(message)?.append.unwrap_or_default();
            let mut times = Vec::new();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(2) {
                let call = Instant::now();
                log.append(append.clone()).await?;
                times.push(call.elapsed());
            }
            times.sort_unstable();
            println!("unary append, {durability:?}: p50 {:?}", times[times.len() / 2]);
        }
        Outcome::Ok(())
    })?;
    let _ = stop.send(());
    server.block_on(serving)??;
    Ok(())
}
