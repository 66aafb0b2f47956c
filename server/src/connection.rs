//! Connections: accepted, counted, and closed when the server says so.
//!
//! Those beyond the limit are served an error for a moment, so that their clients learn why, and closed. So that a place is
//! not held for nothing, those are closed too on which nobody begins in time, or that are without calls for too long. (On
//! one whose client has vanished HTTP/2's pings are not answered.)

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;
use tonic::transport::server::Connected;

use crate::preface::Preface;
use crate::shared::Shared;

/// How long a connection beyond the limit is kept.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// How many of them at a time.
const REFUSED_MAX: u64 = 64;
/// After an error of accepting: often there are too many open files, which does not change at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What is known of the connection that a request came by.
#[derive(Clone, Debug)]
pub(crate) struct ConnectionInfo {
    pub(crate) held: Arc<HeldByConnection>,
    /// It is beyond the limit.
    pub(crate) is_refused: bool,
}

/// What is held for a connection, and bounded.
#[derive(Debug)]
pub(crate) struct HeldByConnection {
    /// Streams that are open on it.
    streams: AtomicUsize,
    /// Bytes of requests that are not complete.
    pub(crate) request_bytes: AtomicUsize,
    /// Somebody speaks on it: HTTP/2 has begun, a request has come, or a certificate was agreed upon.
    has_begun: AtomicBool,
    accepted: Instant,
    /// When it had a stream last, in milliseconds since it was accepted.
    used_ms: AtomicU64,
}

impl Default for HeldByConnection {
    fn default() -> Self {
        Self {
            streams: AtomicUsize::new(0),
            request_bytes: AtomicUsize::new(0),
            has_begun: AtomicBool::new(false),
            accepted: Instant::now(),
            used_ms: AtomicU64::new(0),
        }
    }
}

impl HeldByConnection {
    /// Counts a stream; says how many there were before.
    pub(crate) fn begin_stream(&self) -> usize {
        self.has_begun.store(true, Ordering::Relaxed);
        self.streams.fetch_add(1, Ordering::AcqRel)
    }

    pub(crate) fn end_stream(&self) {
        let since = u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX);
        // Before the count: whoever finds no stream finds this time.
        self.used_ms.store(since, Ordering::Release);
        self.streams.fetch_sub(1, Ordering::AcqRel);
    }

    /// How long it has been without streams.
    fn idle_for(&self) -> Duration {
        if self.streams.load(Ordering::Acquire) > 0 {
            return Duration::ZERO;
        }
        let used = Duration::from_millis(self.used_ms.load(Ordering::Acquire));
        self.accepted.elapsed().saturating_sub(used)
    }
}

/// All connections that are open.
#[derive(Debug)]
pub(crate) struct Connections {
    shared: Arc<Shared>,
    open: Mutex<HashMap<u64, Weak<TcpStream>>>,
    next_id: AtomicU64,
}

impl Connections {
    pub(crate) fn new(shared: &Arc<Shared>) -> Arc<Self> {
        Arc::new(Self { shared: Arc::clone(shared), open: Mutex::default(), next_id: AtomicU64::new(0) })
    }

    /// Accepts, for ever.
    pub(crate) fn incoming(
        self: &Arc<Self>,
        listener: TcpListener,
    ) -> impl Stream<Item = io::Result<Connection>> + Send + use<> {
        let state = (Arc::clone(self), listener);
        futures_util::stream::unfold(state, |(connections, listener)| async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => {
                        if let Some(connection) = connections.admit(stream) {
                            return Some((Ok(connection), (connections, listener)));
                        }
                    }
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }

    fn admit(self: &Arc<Self>, stream: TcpStream) -> Option<Connection> {
        let counters = &self.shared.counters;
        counters.connections_total.fetch_add(1, Ordering::Relaxed);
        let limit = self.shared.config.connections_max as u64;
        let before = counters.connections.fetch_add(1, Ordering::Relaxed);
        let is_refused = before >= limit;
        if is_refused {
            counters.connections_refused.fetch_add(1, Ordering::Relaxed);
            if before >= limit + REFUSED_MAX {
                counters.connections.fetch_sub(1, Ordering::Relaxed);
                return None;
            }
        }
        // Only latency suffers from a failure here.
        let _ = stream.set_nodelay(true);
        let stream = Arc::new(stream);
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        self.open().insert(id, Arc::downgrade(&stream));
        let held = Arc::<HeldByConnection>::default();
        let watch = self.clone().watch(Arc::downgrade(&stream), Arc::clone(&held), is_refused);
        let watch = tokio::spawn(watch).abort_handle();
        let info = ConnectionInfo { held, is_refused };
        let preface = Some(Preface::default());
        Some(Connection { stream, id, info, preface, watch, connections: Arc::clone(self) })
    }

    /// Closes a connection when its time is over. Ends with the connection.
    async fn watch(self: Arc<Self>, stream: Weak<TcpStream>, held: Arc<HeldByConnection>, is_refused: bool) {
        let config = &self.shared.config;
        if is_refused {
            tokio::time::sleep(REFUSED_FOR).await;
            close(&stream);
            return;
        }
        tokio::time::sleep(config.handshake_time_max).await;
        while held.has_begun.load(Ordering::Relaxed) {
            match config.connection_idle_max.checked_sub(held.idle_for()) {
                Some(left) if !left.is_zero() => tokio::time::sleep(left).await,
                _ => break,
            }
        }
        self.shared.counters.connections_overdue.fetch_add(1, Ordering::Relaxed);
        close(&stream);
    }

    /// Closes all that are left.
    pub(crate) fn close_all(&self) -> usize {
        let open: Vec<_> = self.open().values().cloned().collect();
        open.iter().filter(|stream| close(stream)).count()
    }

    fn open(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Weak<TcpStream>>> {
        self.open.lock().expect("no panic under this lock")
    }
}

/// Says whether there was something to close. Whoever reads or writes the connection sees its end.
fn close(stream: &Weak<TcpStream>) -> bool {
    let Some(stream) = stream.upgrade() else { return false };
    let Ok(handle) = stream.as_fd().try_clone_to_owned() else { return false };
    std::net::TcpStream::from(handle).shutdown(Shutdown::Both).is_ok()
}

/// A connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: Arc<TcpStream>,
    id: u64,
    info: ConnectionInfo,
    /// Until HTTP/2 has begun.
    preface: Option<Preface>,
    watch: AbortHandle,
    connections: Arc<Connections>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.watch.abort();
        self.connections.open().remove(&self.id);
        self.connections.shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    /// Asked for when requests can come: over TLS, when its handshake is done.
    fn connect_info(&self) -> ConnectionInfo {
        if self.connections.shared.config.tls.is_some() {
            self.info.held.has_begun.store(true, Ordering::Relaxed);
        }
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        loop {
            ready!(self.stream.poll_read_ready(task))?;
            match self.stream.try_read_buf(buf) {
                Ok(_) => {
                    if let Some(preface) = &mut self.preface
                        && preface.is_over(&buf.filled()[before..])
                    {
                        self.info.held.has_begun.store(true, Ordering::Relaxed);
                        self.preface = None;
                    }
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl Connection {
    fn poll_write_with(
        &self,
        task: &mut Context<'_>,
        write: impl Fn() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(task))?;
            match write() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                outcome => return Poll::Ready(outcome),
            }
        }
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, task: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_with(task, || self.stream.try_write(buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_with(task, || self.stream.try_write_vectored(bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _task: &mut Context<'_>) -> Poll<io::Result<()>> {
        // One call that returns at once; tokio's own takes the stream for itself.
        let handle = self.stream.as_fd().try_clone_to_owned()?;
        match std::net::TcpStream::from(handle).shutdown(Shutdown::Write) {
            Err(error) if error.kind() != io::ErrorKind::NotConnected => Poll::Ready(Err(error)),
            _ => Poll::Ready(Ok(())),
        }
    }
}
