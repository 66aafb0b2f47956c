//! Connections: accepted, counted, and closed when the server says so.
//!
//! Those beyond the limit are served an error for a moment, so that their clients learn why, and closed; those that say
//! nothing at all are closed too.

use std::collections::HashMap;
use std::io;
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tonic::transport::server::Connected;

use crate::shared::Shared;

/// How long a connection beyond the limit is kept.
const REFUSED_FOR: Duration = Duration::from_secs(1);
/// How many of them at a time.
const REFUSED_MAX: u64 = 64;
/// Within which time a client has to say something.
const SILENT_FOR: Duration = Duration::from_secs(10);
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
#[derive(Debug, Default)]
pub(crate) struct HeldByConnection {
    /// Streams that are open on it.
    pub(crate) streams: AtomicUsize,
    /// Bytes of requests that are not complete.
    pub(crate) request_bytes: AtomicUsize,
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
        let has_spoken = Arc::new(AtomicBool::new(false));
        let (watched, spoken) = (Arc::downgrade(&stream), Arc::clone(&has_spoken));
        tokio::spawn(async move {
            tokio::time::sleep(if is_refused { REFUSED_FOR } else { SILENT_FOR }).await;
            if is_refused || !spoken.load(Ordering::Relaxed) {
                close(&watched);
            }
        });
        let info = ConnectionInfo { held: Arc::default(), is_refused };
        Some(Connection { stream, id, info, has_spoken, connections: Arc::clone(self) })
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
    has_spoken: Arc<AtomicBool>,
    connections: Arc<Connections>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.connections.open().remove(&self.id);
        self.connections.shared.counters.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        self: Pin<&mut Self>,
        task: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.stream.poll_read_ready(task))?;
            match self.stream.try_read_buf(buf) {
                Ok(_) => {
                    self.has_spoken.store(true, Ordering::Relaxed);
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
