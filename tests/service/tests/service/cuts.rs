//! Appends through connections that break every few bytes: before a request, in it, behind it, in the answer. What a client
//! was told is there, once, and nothing else is.
//!
//! A [`Proxy`] breaks the first connections of a client, each after so many bytes of one direction. One that breaks *late*
//! keeps what the client had sent behind that, and brings it to the server when everybody has gone on without it. The server has
//! seen all of it when it ends that connection in turn.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use quipu_client::{Client, Retry, Visibility};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::process::{PATIENCE, Server};

/// Bytes between two places at which connections are broken, on their way down; twice as many on their way up.
const STEP: u64 = 8;
/// Behind so many bytes of one direction nothing new happens.
const UP_MAX: u64 = 1400;
const DOWN_MAX: u64 = 500;
/// Records of a session, each an append of its own.
const RECORDS: u64 = 6;

/// Where a connection is broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    /// Behind so many bytes to the server.
    Up(u64),
    /// The same; what the client sent behind them comes late.
    Late(u64),
    /// Behind so many bytes to the client. The server gets all that was sent.
    Down(u64),
}

/// What became of a proxy's connections.
#[derive(Default)]
struct Counts {
    broken: AtomicU64,
    /// Those that keep what comes late.
    late: AtomicU64,
    /// Those of them of which the server has seen everything.
    brought: watch::Sender<u64>,
}

/// See the [module](self).
struct Proxy {
    address: SocketAddr,
    counts: Arc<Counts>,
    /// Connections bring what they kept when this is `true`.
    is_late: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    /// Breaks the first connections, in this order, and leaves the others alone.
    async fn start(server: SocketAddr, cuts: Vec<Cut>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (counts, is_late) = (Arc::new(Counts::default()), watch::Sender::new(false));
        let (counts_there, late) = (Arc::clone(&counts), is_late.subscribe());
        let task = tokio::spawn(async move {
            let mut cuts = cuts.into_iter();
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let cut = cuts.next();
                connections.spawn(relay(client, server, cut, Arc::clone(&counts_there), late.clone()));
            }
        });
        Self { address, counts, is_late, task }
    }

    fn broken(&self) -> u64 {
        self.counts.broken.load(Ordering::SeqCst)
    }

    /// Has everything brought to the server that was kept, and waits until it has seen it; answers of how many connections.
    async fn bring_late(&self) -> u64 {
        let late = self.counts.late.load(Ordering::SeqCst);
        let mut brought = self.counts.brought.subscribe();
        self.is_late.send_replace(true);
        let all = brought.wait_for(|brought| *brought == late);
        tokio::time::timeout(PATIENCE, all).await.expect("the server ends what has ended").unwrap();
        late
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn relay(
    client: TcpStream,
    server: SocketAddr,
    cut: Option<Cut>,
    counts: Arc<Counts>,
    mut late: watch::Receiver<bool>,
) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (mut from_server, to_server) = server.into_split();
    let up_max = match cut {
        Some(Cut::Up(most) | Cut::Late(most)) => most,
        _ => u64::MAX,
    };
    let down_max = if let Some(Cut::Down(most)) = cut { most } else { u64::MAX };
    let mut up = Box::pin(pass(from_client, to_server, up_max));
    let mut down = Box::pin(pass(&mut from_server, to_client, down_max));
    tokio::select! {
        Some((kept, mut to_server)) = &mut up => {
            counts.broken.fetch_add(1, Ordering::SeqCst);
            if !matches!(cut, Some(Cut::Late(_))) {
                return;
            }
            counts.late.fetch_add(1, Ordering::SeqCst);
            // To the client it is over; the server's side stays.
            drop(down);
            if late.wait_for(|late| *late).await.is_ok() {
                let _ = to_server.write_all(&kept).await;
                let _ = to_server.shutdown().await;
                let _ = tokio::io::copy(&mut from_server, &mut tokio::io::sink()).await;
                counts.brought.send_modify(|brought| *brought += 1);
            }
        }
        Some(_) = &mut down => {
            counts.broken.fetch_add(1, Ordering::SeqCst);
        }
        else => {}
    }
}

/// Passes bytes on until there were so many; hands back what came behind them, and where it was to go. `None`: it ended.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    most: u64,
) -> Option<(Vec<u8>, tokio::net::tcp::OwnedWriteHalf)> {
    let (mut buffer, mut left) = (vec![0; 64 << 10], most);
    loop {
        let read = if left == 0 { 0 } else { from.read(&mut buffer).await.ok()? };
        if read == 0 && left > 0 {
            return None;
        }
        let passes = usize::try_from(left).unwrap_or(usize::MAX).min(read);
        to.write_all(&buffer[..passes]).await.ok()?;
        left -= passes as u64;
        if left == 0 {
            let mut kept = buffer[passes..read].to_vec();
            // What the client sends before it has noticed.
            let more = tokio::time::timeout(Duration::from_millis(5), from.read(&mut buffer)).await;
            if let Ok(Ok(more)) = more {
                kept.extend_from_slice(&buffer[..more]);
            }
            return Some((kept, to));
        }
    }
}

async fn client(address: SocketAddr) -> Client {
    let retry = Retry {
        delay_first: Duration::from_millis(1),
        delay_max: Duration::from_millis(20),
        time_max: PATIENCE,
    };
    Client::builder(format!("http://{address}")).retry(retry).connect_lazy().unwrap()
}

async fn payloads(client: &Client, topic: &str) -> Vec<String> {
    let mut records = client.read(topic).visibility(Visibility::Written).records().await.unwrap();
    let mut payloads = Vec::new();
    while let Some(record) = records.next().await {
        payloads.push(String::from_utf8(record.unwrap().payload().unwrap().to_vec()).unwrap());
    }
    payloads
}

/// Places in both directions, from the first byte to behind the last; the connection behind a broken one is broken, too, a little later.
fn places() -> Vec<Vec<Cut>> {
    let up = (0..UP_MAX).step_by(2 * STEP as usize).map(|at| vec![Cut::Up(at), Cut::Up(at + STEP)]);
    let late = (STEP..UP_MAX).step_by(2 * STEP as usize).map(|at| vec![Cut::Late(at), Cut::Down(at / 3)]);
    let down = (0..DOWN_MAX).step_by(STEP as usize).map(|at| vec![Cut::Down(at), Cut::Up(at + UP_MAX / 3)]);
    up.chain(late).chain(down).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_session_broken_every_few_bytes_leaves_no_hole_and_nothing_twice() {
    let server = Server::start();
    let straight = server.client().await;
    let expected: Vec<_> = (0..RECORDS).map(|n| n.to_string()).collect();
    let (mut cuts, mut late) = (0, Vec::new());
    for (number, places) in places().into_iter().enumerate() {
        let topic = format!("t/{number}");
        straight.create_topic(&*topic).await.unwrap();
        let is_late = matches!(places[0], Cut::Late(_));
        let proxy = Proxy::start(server.address, places.clone()).await;
        let work = async {
            let client = client(proxy.address).await;
            let session = client.append_session(&*topic).batch_records(1).open().await.unwrap();
            for (n, record) in expected.iter().enumerate() {
                let appended = session.append(record.clone()).await.unwrap();
                // Some are sent without waiting for those before.
                if n % 2 == 1 {
                    let appended = appended.wait().await.unwrap();
                    assert_eq!(appended.first_offset, n as u64, "{places:?}");
                }
            }
            session.close().await.unwrap();
        };
        tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{places:?} hangs"));
        assert_eq!(payloads(&straight, &topic).await, expected, "{places:?}");
        cuts += proxy.broken();
        if is_late {
            late.push((topic, proxy, places));
        }
    }
    // Everything that was held back comes now.
    let mut brought = 0;
    for (topic, proxy, places) in &late {
        brought += proxy.bring_late().await;
        assert_eq!(payloads(&straight, topic).await, expected, "late, {places:?}");
    }
    println!("{cuts} broken connections, {brought} of them late");
    assert!(cuts >= 200 && brought >= 50, "{cuts}, {brought} of them late");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn appends_broken_every_few_bytes_are_there_once() {
    let server = Server::start();
    let straight = server.client().await;
    let mut cuts = 0;
    for (number, places) in places().into_iter().enumerate() {
        let topic = format!("t/{number}");
        straight.create_topic(&*topic).await.unwrap();
        let proxy = Proxy::start(server.address, places.clone()).await;
        let work = async {
            let client = client(proxy.address).await;
            for n in 0..RECORDS {
                let appended = client.append(&*topic, [n.to_string()]).await.unwrap();
                assert_eq!(appended.first_offset, n, "{places:?}");
            }
        };
        tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(|_| panic!("{places:?} hangs"));
        let expected: Vec<_> = (0..RECORDS).map(|n| n.to_string()).collect();
        assert_eq!(payloads(&straight, &topic).await, expected, "{places:?}");
        cuts += proxy.broken();
    }
    println!("{cuts} broken connections");
    assert!(cuts >= 200, "{cuts}");
}
