//! A server in a process of its own, which can be killed and started again at the same address.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use quipu_client::{Client, Retry};

/// Longer than anything here takes, however busy the machine is: a test that hangs fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(300);

/// See the [module](self).
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    dir: tempfile::TempDir,
    process: Child,
}

impl Server {
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // A port that is free now. It stays ours over restarts unless somebody takes it in between.
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let (process, address) = spawn(&dir, free);
        Self { address, dir, process }
    }

    /// `kill -9`, and a new process over what it left.
    pub(crate) fn kill_and_restart(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        let (process, address) = spawn(&self.dir, self.address);
        assert_eq!(address, self.address);
        self.process = process;
    }

    /// Whether it still runs.
    pub(crate) fn is_up(&mut self) -> bool {
        self.process.try_wait().unwrap().is_none()
    }

    /// A client that goes on trying for as long as any test may take.
    pub(crate) async fn client(&self) -> Client {
        let retry = Retry {
            delay_first: Duration::from_millis(5),
            delay_max: Duration::from_millis(200),
            time_max: PATIENCE,
        };
        Client::builder(format!("http://{}", self.address)).retry(retry).connect().await.unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn spawn(dir: &tempfile::TempDir, address: SocketAddr) -> (Child, SocketAddr) {
    let mut process = Command::new(env!("CARGO_BIN_EXE_server"))
        .arg(dir.path())
        .arg(address.to_string())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let address = line.trim().parse().unwrap_or_else(|_| panic!("the server did not start: {line:?}"));
    (process, address)
}
