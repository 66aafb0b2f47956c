//! A server for the examples: the one whose URL is given, or one of their own in a temporary directory.

use std::error::Error;

use quipu_client::Client;
use quipu_server::{Config, serve};
use quipu_storage::Store;
use tokio::net::TcpListener;

/// A connection, and what it is to.
pub(crate) struct Connected {
    pub(crate) client: Client,
    _dir: Option<tempfile::TempDir>,
}

/// Connects to the URL in the first argument, or to a server that ends with this process.
pub(crate) async fn connect() -> Result<Connected, Box<dyn Error>> {
    if let Some(url) = std::env::args().nth(1) {
        return Ok(Connected { client: Client::connect(url).await?, _dir: None });
    }
    let dir = tempfile::tempdir()?;
    let store = Store::open(dir.path())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}", listener.local_addr()?);
    tokio::spawn(serve(listener, store, Config::default(), std::future::pending()));
    Ok(Connected { client: Client::connect(url).await?, _dir: Some(dir) })
}
