//! The client itself: one connection, and how calls are made over it.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quipu_proto::v1;
use quipu_proto::v1::admin_service_client::AdminServiceClient;
use quipu_proto::v1::log_service_client::LogServiceClient;
use quipu_proto::v1::producer_service_client::ProducerServiceClient;
use quipu_proto::v1::topic_service_client::TopicServiceClient;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::batch::{StoredRecord, stored};
use crate::codec::{Encoded, Raw};
use crate::error::{Error, Outcome, Result};
use crate::retry::Backoff;
use crate::settings::{ClientBuilder, Settings};

/// A connection to a server. Cheap to clone; all clones share the connection, which is made anew when it is lost.
///
/// Calls that change nothing, or the same when they are made twice, are tried again for as long as
/// [`Retry`](crate::Retry) says, and so are appends, which the server recognises. Others only after errors that say for
/// certain that nothing was applied.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) channel: Channel,
    pub(crate) settings: Arc<Settings>,
}

/// Whether a call may be made again when it is not known whether it was applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Repeat {
    /// It reads.
    Harmless,
    /// It says what is to be: once more does no harm. An earlier try may have done it.
    Declares,
    /// The server knows it again and answers as the first time.
    Recognised,
    /// It must not happen twice.
    Never,
}

/// The paths of the calls that are not made through generated code.
pub(crate) mod path {
    pub(crate) const APPEND: &str = "/quipu.v1.LogService/Append";
    pub(crate) const APPEND_SESSION: &str = "/quipu.v1.LogService/AppendSession";
    pub(crate) const READ: &str = "/quipu.v1.LogService/Read";
    pub(crate) const SUBSCRIBE: &str = "/quipu.v1.LogService/Subscribe";
}

impl Client {
    /// Connects to a server, such as `http://127.0.0.1:7878`, with the default settings.
    ///
    /// # Errors
    /// As [`ClientBuilder::connect`].
    pub async fn connect(url: impl Into<String>) -> Result<Self> {
        Self::builder(url).connect().await
    }

    /// Sets up a connection to a server.
    pub fn builder(url: impl Into<String>) -> ClientBuilder {
        ClientBuilder::new(url.into())
    }

    pub(crate) fn new(channel: Channel, settings: Settings) -> Self {
        Self { channel, settings: Arc::new(settings) }
    }

    /// How the server and its store are.
    ///
    /// # Errors
    /// Those of the connection.
    pub async fn server_status(&self) -> Result<v1::GetServerStatusResponse> {
        let call = || {
            let mut service = AdminServiceClient::new(self.channel.clone());
            let request = self.request(v1::GetServerStatusRequest {});
            async move { service.get_server_status(request).await }
        };
        self.call(Repeat::Harmless, call).await
    }

    /// First and next offset of a topic.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`] and those of the connection.
    pub async fn bounds(&self, topic: impl Into<String>) -> Result<v1::GetBoundsResponse> {
        let topic = topic.into();
        let call = || {
            let mut service = self.log_service();
            let request = self.request(v1::GetBoundsRequest { topic: topic.clone() });
            async move { service.get_bounds(request).await }
        };
        self.call(Repeat::Harmless, call).await
    }

    /// One record by its offset; `None` if compaction took it out.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`], [`Error::OffsetTrimmed`], [`Error::OffsetUnwritten`] and those of the connection.
    pub async fn record(&self, topic: impl Into<String>, offset: u64) -> Result<Option<StoredRecord>> {
        let topic = topic.into();
        let call = || {
            let mut service = self.log_service();
            let request = self.request(v1::GetRecordRequest { topic: topic.clone(), offset });
            async move { service.get_record(request).await }
        };
        let found = self.call(Repeat::Harmless, call).await?;
        found.record.map(|record| stored(&record, offset, found.append_time_ms, found.revision)).transpose()
    }

    pub(crate) fn log_service(&self) -> LogServiceClient<Channel> {
        LogServiceClient::new(self.channel.clone()).max_decoding_message_size(self.settings.message_bytes_max)
    }

    pub(crate) fn topic_service(&self) -> TopicServiceClient<Channel> {
        TopicServiceClient::new(self.channel.clone())
            .max_decoding_message_size(self.settings.message_bytes_max)
    }

    pub(crate) fn producer_service(&self) -> ProducerServiceClient<Channel> {
        ProducerServiceClient::new(self.channel.clone())
            .max_decoding_message_size(self.settings.message_bytes_max)
    }

    /// A request that is given up after a while, here and at the server.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(self.settings.request_timeout);
        request
    }

    /// Makes a call, and makes it again while that may help and can do no harm.
    pub(crate) async fn call<T, F>(&self, repeat: Repeat, call: impl Fn() -> F) -> Result<T>
    where
        F: Future<Output = Result<Response<T>, Status>>,
    {
        let mut backoff = Backoff::new(self.settings.retry);
        let mut is_in_doubt = false;
        loop {
            let error = match call().await {
                Ok(response) => return Ok(response.into_inner()),
                Err(status) => Error::from(status),
            };
            if repeat == Repeat::Never && error.outcome() == Outcome::Unknown {
                return Err(error);
            }
            let of_earlier = is_in_doubt;
            let changes = repeat != Repeat::Harmless;
            is_in_doubt |= changes && error.outcome() == Outcome::Unknown;
            if let Err(error) = backoff.wait(error).await {
                // What the last try met says nothing about the earlier ones.
                let is_open = of_earlier && error.outcome() == Outcome::NotApplied && !error.denies_earlier();
                return Err(if is_open { Error::Unknown { cause: Box::new(error) } } else { error });
            }
        }
    }

    fn raw(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone()).max_decoding_message_size(self.settings.message_bytes_max)
    }

    /// One call with a message that is encoded already.
    pub(crate) async fn unary<T: Message + Default>(
        &self,
        path: &'static str,
        message: Encoded,
    ) -> Result<Response<T>, Status> {
        let mut grpc = self.raw();
        ready(&mut grpc).await?;
        let response = grpc.unary(self.request(message), PathAndQuery::from_static(path), Raw).await?;
        let (metadata, message, extensions) = response.into_parts();
        let message = T::decode(message).map_err(|error| Status::internal(error.to_string()))?;
        Ok(Response::from_parts(metadata, message, extensions))
    }

    /// Opens a stream of the server's messages. It has no deadline; its beginning has.
    pub(crate) async fn server_stream(
        &self,
        path: &'static str,
        message: impl Message,
    ) -> Result<Streaming<Bytes>> {
        let mut grpc = self.raw();
        let open = async {
            ready(&mut grpc).await?;
            let request = Request::new(Encoded::message(&message));
            let response = grpc.server_streaming(request, PathAndQuery::from_static(path), Raw).await?;
            Ok::<_, Status>(response.into_inner())
        };
        in_time(self.settings.request_timeout, "to the opening of a stream", open).await
    }

    /// Opens a stream in both directions.
    pub(crate) async fn both_streams(
        &self,
        path: &'static str,
        requests: impl tokio_stream::Stream<Item = Encoded> + Send + 'static,
    ) -> Result<Streaming<Bytes>> {
        let mut grpc = self.raw();
        let open = async {
            ready(&mut grpc).await?;
            let request = Request::new(requests);
            let response = grpc.streaming(request, PathAndQuery::from_static(path), Raw).await?;
            Ok::<_, Status>(response.into_inner())
        };
        in_time(self.settings.request_timeout, "to the opening of a session", open).await
    }
}

/// Waits for an answer so long at most.
pub(crate) async fn in_time<T, E: Into<Error>>(
    time: Duration,
    to_what: &str,
    answer: impl Future<Output = Result<T, E>>,
) -> Result<T> {
    match tokio::time::timeout(time, answer).await {
        Ok(answer) => answer.map_err(Into::into),
        Err(_) => Err(Error::TimedOut { message: format!("{to_what} within {time:?}") }),
    }
}

async fn ready(grpc: &mut Grpc<Channel>) -> Result<(), Status> {
    grpc.ready().await.map_err(|error| Status::from_error(error.into()))
}
