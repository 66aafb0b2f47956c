//! The server's side, run by this program as a child.

use std::convert::Infallible;
use std::future::{Future, Ready, ready};
use std::io::{Write, stdout};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as Task, Poll};

use anyhow::{Context, Result};
use bytes::Bytes;
use prost::Message;
use quipu_proto::v1 as pb;
use tokio_stream::{Stream, StreamExt};
use tonic::body::Body;
use tonic::codec::{BufferSettings, Codec, EncodeBuf, Encoder};
use tonic::server::{ClientStreamingService, Grpc, NamedService, ServerStreamingService, UnaryService};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

use super::{ANSWER_BYTES, MESSAGE_BYTES_MAX, Opaque, Wanted, settings};
use crate::payload::{Payloads, Random};

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// Listens on a free port, prints `listening on URL`, and serves until it is killed.
pub fn run() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let incoming = TcpIncoming::bind(([127, 0, 0, 1], 0).into())?.with_nodelay(Some(true));
        let address = incoming.local_addr()?;
        #[expect(clippy::print_stdout, reason = "the parent waits for this line")]
        {
            println!("listening on http://{address}");
        }
        stdout().flush()?;
        Server::builder()
            .initial_stream_window_size(settings::SERVER_STREAM_WINDOW_BYTES)
            .initial_connection_window_size(settings::SERVER_CONNECTION_WINDOW_BYTES)
            .max_frame_size(settings::FRAME_BYTES_MAX)
            .add_service(Bare)
            .serve_with_incoming(incoming)
            .await
            .context("serve")
    })
}

#[derive(Clone, Debug)]
struct Bare;

impl NamedService for Bare {
    const NAME: &'static str = "bare.Bare";
}

impl tower::Service<http::Request<Body>> for Bare {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _task: &mut Task<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next();
            Ok(match method {
                Some("Call") => grpc(Opaque).unary(Call, request).await,
                Some("Take") => grpc(Opaque).client_streaming(Take, request).await,
                Some("Frames") => grpc(Opaque).server_streaming(Frames, request).await,
                Some("Messages") => grpc(ByProst).server_streaming(Messages, request).await,
                _ => Status::unimplemented("no such method").into_http(),
            })
        })
    }
}

fn grpc<C: Codec>(codec: C) -> Grpc<C> {
    Grpc::new(codec).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

struct Call;

impl UnaryService<Bytes> for Call {
    type Response = Bytes;
    type Future = Ready<Result<Response<Bytes>, Status>>;

    fn call(&mut self, _request: Request<Bytes>) -> Self::Future {
        ready(Ok(Response::new(Bytes::from_static(&[7; ANSWER_BYTES]))))
    }
}

struct Take;

impl ClientStreamingService<Bytes> for Take {
    type Response = Bytes;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Bytes>, Status>> + Send>>;

    fn call(&mut self, request: Request<Streaming<Bytes>>) -> Self::Future {
        let mut messages = request.into_inner();
        Box::pin(async move {
            let mut bytes = 0_u64;
            while let Some(message) = messages.message().await? {
                bytes += message.len() as u64;
            }
            Ok(Response::new(Bytes::copy_from_slice(&bytes.to_be_bytes())))
        })
    }
}

struct Frames;

impl ServerStreamingService<Bytes> for Frames {
    type Response = Bytes;
    type ResponseStream = Answers<Bytes>;
    type Future = Ready<Result<Response<Answers<Bytes>>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(wanted(request).map(|wanted| {
            let mut frame =
                vec![0; usize::try_from(wanted.message_bytes).unwrap_or(0).min(MESSAGE_BYTES_MAX)];
            Random::new(1).fill(&mut frame);
            repeat(wanted.messages, Bytes::from(frame))
        }))
    }
}

struct Messages;

impl ServerStreamingService<Bytes> for Messages {
    type Response = Arc<pb::SubscribeResponse>;
    type ResponseStream = Answers<Self::Response>;
    type Future = Ready<Result<Response<Self::ResponseStream>, Status>>;

    fn call(&mut self, request: Request<Bytes>) -> Self::Future {
        ready(wanted(request).map(|wanted| repeat(wanted.messages, Arc::new(message(&wanted)))))
    }
}

fn wanted(request: Request<Bytes>) -> Result<Wanted, Status> {
    Wanted::decode(request.into_inner()).map_err(|error| Status::invalid_argument(error.to_string()))
}

/// The same again and again: nothing is made anew, nothing leaves the processor's caches.
fn repeat<T: Clone + Send + 'static>(count: u64, item: T) -> Response<Answers<T>> {
    Response::new(Box::pin(tokio_stream::iter(0..count).map(move |_| Ok(item.clone()))))
}

fn message(wanted: &Wanted) -> pb::SubscribeResponse {
    let payloads = Payloads::new(usize::try_from(wanted.record_bytes).unwrap_or(1).max(1));
    let record = |number| pb::Record {
        payload: Some(Bytes::copy_from_slice(payloads.of(number))),
        ..pb::Record::default()
    };
    let batch = |number: u64| pb::RecordBatch {
        records: (0..wanted.records)
            .map(|record_number| record(number * wanted.records + record_number))
            .collect(),
        first_offset: number * wanted.records,
        next_offset: (number + 1) * wanted.records,
        append_time_ms: 1_700_000_000_000,
        records_crc: Some(7),
        ..pb::RecordBatch::default()
    };
    let batches = pb::RecordBatches { batches: (0..wanted.batches).map(batch).collect() };
    pb::SubscribeResponse { event: Some(pb::subscribe_response::Event::Batches(batches)) }
}

/// Encodes as a generated service does, but for a message that is shared.
#[derive(Clone, Copy, Debug)]
struct ByProst;

impl Codec for ByProst {
    type Encode = Arc<pb::SubscribeResponse>;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Opaque;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Opaque {
        Opaque
    }
}

impl Encoder for ByProst {
    type Item = Arc<pb::SubscribeResponse>;
    type Error = Status;

    fn encode(&mut self, item: Self::Item, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        item.encode(out).map_err(|error| Status::internal(error.to_string()))
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(settings::BUFFER_BYTES, settings::GATHERED_BYTES)
    }
}
