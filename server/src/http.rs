//! Plain HTTP for those who watch the server: `/metrics`, `/healthz` (it lives), `/readyz` (it takes appends).
//!
//! There is always a place for one more: whoever comes when all are taken gets that of the connection which was not asked
//! for anything for the longest time.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

use crate::metrics;
use crate::shared::Shared;

/// Connections at a time.
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
    // Dropped with this: then the connections go too.
    let mut connections = JoinSet::new();
    let mut open: Vec<Open> = Vec::new();
    let requests = Arc::new(AtomicU64::new(0));
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection for metrics");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        make_room(&mut open);
        let shared = Arc::clone(&shared);
        let asked = Asked::new(&requests);
        let noted = asked.clone();
        let task = connections.spawn(async move {
            let answer = service_fn(move |request| {
                noted.note();
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
        open.push(Open { asked, task });
    }
}

/// A connection.
struct Open {
    asked: Asked,
    task: AbortHandle,
}

/// When a connection was made or asked for something last, in a count of these events over all of them.
#[derive(Clone)]
struct Asked {
    events: Arc<AtomicU64>,
    last: Arc<AtomicU64>,
}

impl Asked {
    fn new(events: &Arc<AtomicU64>) -> Self {
        let asked = Self { events: Arc::clone(events), last: Arc::default() };
        asked.note();
        asked
    }

    fn note(&self) {
        self.last.store(self.events.fetch_add(1, Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// Closes the connection that was silent for the longest time, if there are as many as there may be.
fn make_room(open: &mut Vec<Open>) {
    open.retain(|connection| !connection.task.is_finished());
    while open.len() >= CONNECTIONS_MAX {
        let silent = open.iter().enumerate().min_by_key(|(_, open)| open.asked.last.load(Ordering::Relaxed));
        let Some((place, _)) = silent else { return };
        open.swap_remove(place).task.abort();
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
            let not_ready = match shared.read(move || store.stats()).await {
                _ if shared.is_draining() => Some("draining".to_owned()),
                Ok(stats) => match stats.failure {
                    Some(failure) => Some(format!("failed: {failure}")),
                    None if stats.is_disk_full => Some(
                        "the disk is full: no room for appends; reads, trims and deletions go on".to_owned(),
                    ),
                    None => None,
                },
                Err(status) => Some(format!("failed: {}", status.message())),
            };
            match not_ready {
                Some(reason) => respond(StatusCode::SERVICE_UNAVAILABLE, TEXT, format!("{reason}\n")),
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
