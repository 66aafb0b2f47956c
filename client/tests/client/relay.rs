//! A relay between client and server that cuts connections when it is told to: what was on its way is lost, or arrives
//! late at a server that has not noticed.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// See the [module](self).
pub(crate) struct Relay {
    pub(crate) address: SocketAddr,
    /// Which connections are cut: those that began before this number.
    cuts: watch::Sender<u64>,
    accepted: Arc<AtomicU64>,
    /// While it is `true`, no answer passes.
    holds_answers: watch::Sender<bool>,
    /// Bytes of a connection's requests that pass before it is cut by itself. 0: never.
    pub(crate) bytes_max: Arc<AtomicU64>,
}

impl Relay {
    pub(crate) async fn start(server: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let relay = Self {
            address,
            cuts: watch::Sender::new(0),
            holds_answers: watch::Sender::new(false),
            accepted: Arc::default(),
            bytes_max: Arc::default(),
        };
        let holds_answers = relay.holds_answers.subscribe();
        let (cuts, accepted) = (relay.cuts.subscribe(), Arc::clone(&relay.accepted));
        let bytes_max = Arc::clone(&relay.bytes_max);
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let number = accepted.fetch_add(1, Ordering::SeqCst);
                let (mut cuts, bytes_max) = (cuts.clone(), Arc::clone(&bytes_max));
                let mut holds_answers = holds_answers.clone();
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(server).await else { return };
                    let (mut from_client, mut to_client) = client.into_split();
                    let (mut from_server, mut to_server) = server.into_split();
                    let up = async move {
                        let (mut buffer, mut passed) = (vec![0; 16 << 10], 0);
                        loop {
                            match from_client.read(&mut buffer).await {
                                Ok(0) | Err(_) => break,
                                Ok(read) => {
                                    if to_server.write_all(&buffer[..read]).await.is_err() {
                                        break;
                                    }
                                    passed += read as u64;
                                    let most = bytes_max.load(Ordering::SeqCst);
                                    if most > 0 && passed > most {
                                        break;
                                    }
                                }
                            }
                        }
                        // The server gets all that was sent, perhaps long after the client has gone elsewhere.
                        let _ = to_server.shutdown().await;
                    };
                    let down = async move {
                        let mut buffer = vec![0; 16 << 10];
                        while let Ok(read @ 1..) = from_server.read(&mut buffer).await {
                            let passes = holds_answers.wait_for(|holds| !holds).await.is_ok();
                            if !passes || to_client.write_all(&buffer[..read]).await.is_err() {
                                break;
                            }
                        }
                    };
                    tokio::select! {
                        // What was held when it was cut is lost.
                        biased;
                        _ = cuts.wait_for(|cut| *cut > number) => {}
                        () = up => {}
                        () = down => {}
                    }
                });
            }
        });
        relay
    }

    /// Cuts every connection that there is.
    pub(crate) fn cut(&self) {
        self.cuts.send_replace(self.accepted.load(Ordering::SeqCst));
    }

    /// Lets no answer pass, or lets them pass again.
    pub(crate) fn hold_answers(&self, holds: bool) {
        self.holds_answers.send_replace(holds);
    }

    /// Connections that there have been.
    pub(crate) fn connections(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }
}
