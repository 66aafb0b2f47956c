//! A server on a socket of its own, over a store in a directory of its own, that can go and come back.

use std::net::SocketAddr;
use std::time::Duration;

use quipu_client::{Client, Retry};
use quipu_server::{Config, serve};
use quipu_storage::{Store, StoreSettings};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longer than anything here takes, however busy the machine is: a test that hangs fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) store: Store,
    dir: tempfile::TempDir,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::build(tempfile::tempdir().unwrap(), "127.0.0.1:0".parse().unwrap()).await
    }

    async fn build(dir: tempfile::TempDir, address: SocketAddr) -> Self {
        let settings = StoreSettings {
            journal_file_bytes: 1 << 20,
            journal_bytes_max: 8 << 20,
            append_bytes_max: 512 << 10,
            ..StoreSettings::default()
        };
        let keys = dir.path().join("master.key");
        let builder = Store::builder().settings(settings).master_key(keys).create_master_key(true);
        let store = builder.open(dir.path().join("data")).unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let served = serve(listener, store.clone(), Config::default(), shutdown);
        let task = tokio::spawn(async move { served.await.unwrap() });
        Self { address, store, dir, stop, task }
    }

    /// Shuts down in order and comes back at the same address.
    pub(crate) async fn restart(self) -> Self {
        let Self { address, store, dir, stop, task } = self;
        drop(store);
        stop.send(()).unwrap();
        task.await.unwrap();
        Self::build(dir, address).await
    }

    pub(crate) async fn client(&self) -> Client {
        client(self.address).await
    }
}

/// A client that tries for as long as any test may take.
pub(crate) async fn client(address: SocketAddr) -> Client {
    let retry = Retry {
        delay_first: Duration::from_millis(5),
        delay_max: Duration::from_millis(100),
        time_max: PATIENCE,
    };
    Client::builder(format!("http://{address}")).retry(retry).connect().await.unwrap()
}
