//! The edge: what every request passes. Counts the streams of its connection, and puts errors that the library answers into
//! our words.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::body::Body;
use tonic::transport::server::TlsConnectInfo;
use tonic::{Code, Status};
use tower::{Layer, Service};

use crate::connection::{ConnectionInfo, HeldByConnection};
use crate::error::Problem;
use crate::incoming_body::{IncomingBody, Limits};
use crate::shared::{Drain, Shared};

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct EdgeLayer {
    pub(crate) shared: Arc<Shared>,
}

impl<S> Layer<S> for EdgeLayer {
    type Service = Edge<S>;

    fn layer(&self, inner: S) -> Edge<S> {
        Edge { inner, shared: Arc::clone(&self.shared) }
    }
}

/// A service with the edge around it.
#[derive(Clone, Debug)]
pub(crate) struct Edge<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Edge<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, S::Error>> + Send>>;

    fn poll_ready(&mut self, task: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(task)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let counters = &self.shared.counters;
        counters.requests.fetch_add(1, Ordering::Relaxed);
        let open = match admit(&self.shared, &request) {
            Ok(open) => open,
            Err(status) => {
                counters.requests_refused.fetch_add(1, Ordering::Relaxed);
                let response = status.into_http();
                return Box::pin(std::future::ready(Ok(response)));
            }
        };
        let is_ours = request.uri().path().starts_with("/quipu.v1.");
        let message_bytes_max = self.shared.request_bytes_max(request.uri().path());
        // Ours end by themselves when the server goes down; those of the libraries would not.
        let drain = (!is_ours).then(|| self.shared.drain());
        if let Some(OpenStream(held)) = &open {
            let config = &self.shared.config;
            let limits = Limits {
                bytes_max: config.connection_request_bytes_max.max(self.shared.message_bytes_max()),
                stall_time_max: config.request_stall_time_max,
            };
            let is_one_message = is_ours && !request.uri().path().ends_with("/AppendSession");
            request = request.map(|body| Body::new(IncomingBody::new(body, held, limits, is_one_message)));
        }
        let answer = self.inner.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            if is_ours && let Some(status) = in_our_words(response.headers(), message_bytes_max) {
                response = status.into_http();
            }
            Ok(response.map(|inner| Body::new(Open { inner, drain: drain.map(until), _open: open })))
        })
    }
}

fn admit(shared: &Shared, request: &Request<Body>) -> Result<Option<OpenStream>, Status> {
    let extensions = request.extensions();
    let plain = extensions.get::<ConnectionInfo>();
    let over_tls = || extensions.get::<TlsConnectInfo<ConnectionInfo>>().map(TlsConnectInfo::get_ref);
    let Some(info) = plain.or_else(over_tls) else { return Ok(None) };
    let too_many = |reason, what: &str, limit: usize| {
        let message = format!("there are {limit} open {what}, which is the limit");
        let problem = Problem::new(Code::ResourceExhausted, reason, message).with("limit", limit);
        Err(problem.retry_after(Duration::from_secs(1)).into())
    };
    if info.is_refused {
        return too_many("TOO_MANY_CONNECTIONS", "connections", shared.config.connections_max);
    }
    let open = OpenStream(Arc::clone(&info.held));
    if open.0.begin_stream() >= shared.config.streams_max {
        return too_many("TOO_MANY_STREAMS", "streams on this connection", shared.config.streams_max);
    }
    Ok(Some(open))
}

/// Counts a stream of a connection, until its response has been sent or given up.
#[derive(Debug)]
struct OpenStream(Arc<HeldByConnection>);

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.end_stream();
    }
}

/// An error without our details is one that the library answered.
fn in_our_words(headers: &HeaderMap, message_bytes_max: usize) -> Option<Status> {
    if !headers.contains_key("grpc-status") || headers.contains_key("grpc-status-details-bin") {
        return None;
    }
    let status = Status::from_header_map(headers)?;
    translated(&status, message_bytes_max)
}

/// The same for an error in a stream of requests.
pub(crate) fn translated(status: &Status, message_bytes_max: usize) -> Option<Status> {
    if !status.details().is_empty() {
        return None;
    }
    let message = status.message();
    Some(match status.code() {
        Code::OutOfRange => Problem::message_too_large(message_bytes_max).into(),
        Code::Unimplemented if message.contains("compress") => {
            Problem::unsupported("the compression of messages").into()
        }
        Code::Unimplemented => Problem::unsupported("the method").into(),
        Code::Internal => {
            Problem::new(Code::InvalidArgument, "MALFORMED_REQUEST", format!("not a request: {message}"))
                .into()
        }
        _ => return None,
    })
}

type Until = Pin<Box<dyn Future<Output = ()> + Send>>;

fn until(mut drain: Drain) -> Until {
    Box::pin(async move { drain.begun().await })
}

/// The body of a response, which counts as an open stream.
struct Open {
    inner: Body,
    drain: Option<Until>,
    _open: Option<OpenStream>,
}

impl HttpBody for Open {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = Pin::new(&mut self.inner).poll_frame(task);
        if frame.is_pending()
            && let Some(drain) = &mut self.drain
            && drain.as_mut().poll(task).is_ready()
        {
            self.drain = None;
            self.inner = Body::empty();
            let mut trailers = HeaderMap::new();
            let added = Status::from(Problem::draining()).add_header(&mut trailers);
            return Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
