//! Plain HTTP for those who watch the server: `/metrics`, `/healthz` (it lives), `/readyz` (send it requests).

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::metrics;
use crate::shared::Shared;

/// Connections at a time; others wait.
const CONNECTIONS_MAX: usize = 32;
/// How long a client may take to ask.
const ASKING_FOR: Duration = Duration::from_secs(10);
/// How long a connection is kept.
const CONNECTED_FOR: Duration = Duration::from_secs(300);

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
const TEXT: &str = "text/plain; charset=utf-8";

/// Serves until it is dropped.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, "serving metrics");
    }
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this: then the connections go too.
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let shared = Arc::clone(&shared);
        connections.spawn(async move {
            let _place = place;
            let answer = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, Infallible>(answer(&shared, &request).await) }
            });
            let serving = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(ASKING_FOR)
                .serve_connection(TokioIo::new(stream), answer);
            // A client that breaks off is no event.
            let _ = tokio::time::timeout(CONNECTED_FOR, serving).await;
        });
    }
}

async fn answer(shared: &Arc<Shared>, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return respond(StatusCode::METHOD_NOT_ALLOWED, TEXT, "only GET and HEAD\n");
    }
    match request.uri().path() {
        "/metrics" => {
            let counted = Arc::clone(shared);
            match shared.read(move || metrics::encode(&counted)).await {
                Ok(text) => respond(StatusCode::OK, OPENMETRICS, text),
                Err(status) => {
                    respond(StatusCode::INTERNAL_SERVER_ERROR, TEXT, format!("{}\n", status.message()))
                }
            }
        }
        "/healthz" => respond(StatusCode::OK, TEXT, "ok\n"),
        "/readyz" => {
            let store = shared.store.clone();
            let failure = match shared.read(move || store.stats().failure).await {
                Ok(failure) => failure.map(|failure| failure.to_string()),
                Err(status) => Some(status.message().to_owned()),
            };
            match failure {
                _ if shared.is_draining() => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, "draining\n"),
                Some(failure) => {
                    respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("failed: {failure}\n"))
                }
                None => respond(StatusCode::OK, TEXT, "ready\n"),
            }
        }
        _ => respond(StatusCode::NOT_FOUND, TEXT, "there are /metrics, /healthz and /readyz\n"),
    }
}

fn respond(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static(content_type));
    response
}
