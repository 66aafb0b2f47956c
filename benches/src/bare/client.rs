//! The client's side.

use std::rc::Rc;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use http::uri::PathAndQuery;
use prost::Message;
use quipu_proto::v1 as pb;
use tokio::runtime::Runtime;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Streaming};
use tonic_prost::ProstCodec;

use super::{ANSWER_BYTES, MESSAGE_BYTES_MAX, Opaque, Wanted, settings};
use crate::child::Child;
use crate::service;

/// A bare server in a process of its own, and a connection to it.
pub struct Bare {
    runtime: Rc<Runtime>,
    calls: Calls,
    _server: Child,
}

impl Bare {
    /// Starts a server and connects.
    pub fn start(runtime: &Rc<Runtime>) -> Result<Self> {
        let mut command = std::process::Command::new(std::env::current_exe().context("find this program")?);
        command.args(["--child", "bare-server"]);
        let mut server = Child::spawn(command)?;
        let url = service::listening(&mut server)?;
        let channel = runtime.block_on(connect(&url))?;
        Ok(Self { runtime: Rc::clone(runtime), calls: Calls { channel }, _server: server })
    }

    /// The connection; a clone is the same connection. A method, so that a closure takes the whole along.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// Runs what is async.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// The same on one of the runtime's own threads.
    pub fn spawn_and_wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        self.runtime.block_on(self.runtime.spawn(work))?
    }
}

/// A connection with the windows of quipu's client.
pub async fn connect(url: &str) -> Result<Channel> {
    Ok(Endpoint::from_shared(url.to_owned())?
        .initial_stream_window_size(settings::CLIENT_STREAM_WINDOW_BYTES)
        .initial_connection_window_size(settings::CLIENT_CONNECTION_WINDOW_BYTES)
        .max_frame_size(settings::FRAME_BYTES_MAX)
        .tcp_nodelay(true)
        .connect()
        .await?)
}

/// Calls over one connection.
#[derive(Clone, Debug)]
pub struct Calls {
    channel: Channel,
}

impl Calls {
    /// A unary call with that message.
    pub async fn call(&self, message: Bytes) -> Result<()> {
        let path = PathAndQuery::from_static("/bare.Bare/Call");
        let answer = grpc(&self.channel).await?.unary(Request::new(message), path, Opaque).await?;
        ensure!(answer.into_inner().len() == ANSWER_BYTES, "another answer than was to be given");
        Ok(())
    }

    /// Sends `message` so many times on one stream, and waits until the server has dropped them all.
    pub async fn send(&self, message: Bytes, count: u64) -> Result<()> {
        let bytes = message.len() as u64 * count;
        let messages = tokio_stream::iter((0..count).map(move |_| message.clone()));
        let path = PathAndQuery::from_static("/bare.Bare/Take");
        let answer =
            grpc(&self.channel).await?.client_streaming(Request::new(messages), path, Opaque).await?;
        ensure!(answer.into_inner()[..] == bytes.to_be_bytes(), "not all bytes have come");
        Ok(())
    }

    /// Takes so many opaque messages.
    pub async fn frames(&self, messages: u64, message_bytes: u64) -> Result<()> {
        let wanted = Wanted { messages, message_bytes, ..Wanted::default() };
        let path = PathAndQuery::from_static("/bare.Bare/Frames");
        let request = Request::new(Bytes::from(wanted.encode_to_vec()));
        let mut stream =
            grpc(&self.channel).await?.server_streaming(request, path, Opaque).await?.into_inner();
        let mut bytes = 0;
        while let Some(frame) = stream.message().await? {
            bytes += frame.len() as u64;
        }
        ensure!(bytes == messages * message_bytes, "{bytes} bytes have come");
        Ok(())
    }

    /// Takes a subscription's messages and decodes every record; returns how many there were.
    pub async fn messages(&self, wanted: Wanted) -> Result<u64> {
        let stream = decoded(&self.channel, "/bare.Bare/Messages", wanted).await?;
        count_records(stream, u64::MAX).await
    }
}

async fn grpc(channel: &Channel) -> Result<Grpc<Channel>> {
    let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX);
    grpc.ready().await?;
    Ok(grpc)
}

/// Opens a stream of a subscription's messages, which prost decodes.
pub async fn decoded<R: Message + Default + 'static>(
    channel: &Channel,
    path: &'static str,
    request: R,
) -> Result<Streaming<pb::SubscribeResponse>> {
    let codec = ProstCodec::<R, pb::SubscribeResponse>::default();
    let path = PathAndQuery::from_static(path);
    Ok(grpc(channel).await?.server_streaming(Request::new(request), path, codec).await?.into_inner())
}

/// Counts the records of a stream up to `count` or its end.
pub async fn count_records(mut stream: Streaming<pb::SubscribeResponse>, count: u64) -> Result<u64> {
    let mut found = 0;
    while found < count {
        let Some(message) = stream.message().await? else { break };
        if let Some(pb::subscribe_response::Event::Batches(batches)) = message.event {
            found += batches.batches.iter().map(|batch| batch.records.len() as u64).sum::<u64>();
        }
    }
    Ok(found)
}
