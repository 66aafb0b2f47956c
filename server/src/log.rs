//! The log service: which method is answered by what, each with a codec of its own.
//!
//! By hand what a generator would write, because the generator knows one type for a message and here there are two: appends
//! and batches stay encoded.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::{Stream, StreamExt};
use prost::Message;
use quipu_proto::v1 as pb;
use quipu_storage::{Offset, Revision, Topic};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, ServerStreamingService, StreamingService, UnaryService};
use tonic::{Request, Response, Status, Streaming};

use crate::append::{self, WireAppend};
use crate::edge::translated;
use crate::error::{Problem, Violations, status};
use crate::read::{Read, ReadEvent};
use crate::session::{self, SessionRequest};
use crate::shared::Shared;
use crate::stream::{self, Page};
use crate::subscribe::{SubscribeEvent, Subscription};
use crate::wire::{FromWire, ToWire, Wire};

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;
type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What a source brings, one after the other.
macro_rules! responses {
    ($source:expr) => {
        Box::pin(futures_util::stream::unfold($source, |mut source| async move {
            let next = source.next().await?;
            Some((next, source))
        })) as Responses<_>
    };
}

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) shared: Arc<Shared>,
}

impl NamedService for Log {
    const NAME: &'static str = "quipu.v1.LogService";
}

impl tower::Service<http::Request<Body>> for Log {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _task: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let method = request.uri().path().rsplit('/').next();
            let limit = shared.request_bytes_max(request.uri().path());
            Ok(match method {
                Some("Append") => grpc(limit).unary(Append(shared), request).await,
                Some("AppendSession") => grpc(limit).streaming(AppendSession(shared), request).await,
                Some("Read") => grpc(limit).server_streaming(ReadTopic(shared), request).await,
                Some("Subscribe") => grpc(limit).server_streaming(Subscribe(shared), request).await,
                Some("GetRecord") => grpc(limit).unary(GetRecord(shared), request).await,
                Some("GetBounds") => grpc(limit).unary(GetBounds(shared), request).await,
                Some("GetStream") => grpc(limit).unary(GetStream(shared), request).await,
                Some("ListStreams") => grpc(limit).unary(ListStreams(shared), request).await,
                _ => Status::from(Problem::unsupported("the method")).into_http(),
            })
        })
    }
}

fn grpc<T: ToWire, R: FromWire>(request_bytes_max: usize) -> Grpc<Wire<T, R>> {
    Grpc::new(Wire::default()).apply_max_message_size_config(Some(request_bytes_max), Some(usize::MAX))
}

/// The topic of that name, which is a field of the request.
fn topic(shared: &Shared, name: &str) -> Result<Topic, Status> {
    let mut violations = Violations::default();
    violations.topic_name("topic", name);
    violations.finish()?;
    shared.topic(name)
}

struct Append(Arc<Shared>);

impl UnaryService<WireAppend> for Append {
    type Response = pb::AppendResponse;
    type Future = Answer<pb::AppendResponse>;

    fn call(&mut self, request: Request<WireAppend>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move { append::unary(&shared, request.into_inner()).await.map(Response::new) })
    }
}

struct AppendSession(Arc<Shared>);

impl StreamingService<SessionRequest> for AppendSession {
    type Response = pb::AppendSessionResponse;
    type ResponseStream = Responses<pb::AppendSessionResponse>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: Request<Streaming<SessionRequest>>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let limit = shared.message_bytes_max();
            let requests = request
                .into_inner()
                .map(move |request| request.map_err(|status| translated(&status, limit).unwrap_or(status)));
            let answers = session::begin(&shared, requests)?;
            Ok(Response::new(responses!(answers)))
        })
    }
}

struct ReadTopic(Arc<Shared>);

impl ServerStreamingService<pb::ReadRequest> for ReadTopic {
    type Response = ReadEvent;
    type ResponseStream = Responses<ReadEvent>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: Request<pb::ReadRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let read = Read::begin(&shared, request.into_inner()).await?;
            Ok(Response::new(responses!(read)))
        })
    }
}

struct Subscribe(Arc<Shared>);

impl ServerStreamingService<pb::SubscribeRequest> for Subscribe {
    type Response = SubscribeEvent;
    type ResponseStream = Responses<SubscribeEvent>;
    type Future = Answer<Self::ResponseStream>;

    fn call(&mut self, request: Request<pb::SubscribeRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let subscription = Subscription::begin(&shared, request.into_inner()).await?;
            Ok(Response::new(responses!(subscription)))
        })
    }
}

struct GetRecord(Arc<Shared>);

impl UnaryService<pb::GetRecordRequest> for GetRecord {
    type Response = pb::GetRecordResponse;
    type Future = Answer<pb::GetRecordResponse>;

    fn call(&mut self, request: Request<pb::GetRecordRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let request = request.into_inner();
            let topic = topic(&shared, &request.topic)?;
            let found = shared.read(move || topic.get(Offset(request.offset))).await?.map_err(status)?;
            let Some(stored) = found else { return Ok(Response::new(pb::GetRecordResponse::default())) };
            let record = pb::Record::decode(stored.as_bytes().clone());
            // It was checked when it was appended: a bug of ours.
            let record = record.map_err(|error| Problem::internal(format!("a stored record: {error}")))?;
            let append_time_ms = stored.append_time().value();
            let revision = stored.revision().map(Revision::value);
            Ok(Response::new(pb::GetRecordResponse { record: Some(record), append_time_ms, revision }))
        })
    }
}

struct GetBounds(Arc<Shared>);

impl UnaryService<pb::GetBoundsRequest> for GetBounds {
    type Response = pb::GetBoundsResponse;
    type Future = Answer<pb::GetBoundsResponse>;

    fn call(&mut self, request: Request<pb::GetBoundsRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let stats = topic(&shared, &request.into_inner().topic)?.stats();
            Ok(Response::new(pb::GetBoundsResponse {
                log_start_offset: stats.log_start_offset.value(),
                high_watermark: stats.high_watermark.value(),
                log_end_offset: stats.log_end_offset.value(),
                last_append_time_ms: stats.last_append_time.value(),
            }))
        })
    }
}

struct GetStream(Arc<Shared>);

impl UnaryService<pb::GetStreamRequest> for GetStream {
    type Response = pb::GetStreamResponse;
    type Future = Answer<pb::GetStreamResponse>;

    fn call(&mut self, request: Request<pb::GetStreamRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let request = request.into_inner();
            let topic = topic(&shared, &request.topic)?;
            let get = move || stream::get(&topic, request.key.into());
            shared.read(get).await?.map(Response::new).map_err(status)
        })
    }
}

struct ListStreams(Arc<Shared>);

impl UnaryService<pb::ListStreamsRequest> for ListStreams {
    type Response = pb::ListStreamsResponse;
    type Future = Answer<pb::ListStreamsResponse>;

    fn call(&mut self, request: Request<pb::ListStreamsRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let request = request.into_inner();
            let mut violations = Violations::default();
            violations.topic_name("topic", &request.topic);
            let page = Page::from_wire(&request, &mut violations);
            violations.finish()?;
            let topic = shared.topic(&request.topic)?;
            shared.read(move || page.list(&topic)).await?.map(Response::new).map_err(status)
        })
    }
}
