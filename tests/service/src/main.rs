//! A server to be killed: serves the store in a directory at an address of this machine, until it is killed or its
//! standard input ends.
//!
//! ```text
//! server DIRECTORY ADDRESS
//! ```
//!
//! Prints the address when it takes connections.
#![allow(clippy::print_stdout, reason = "its parent reads it")]

use std::error::Error;

use quipu_server::{Config, serve};
use quipu_storage::{Store, StoreSettings};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(directory), Some(address)) = (arguments.next(), arguments.next()) else {
        return Err("usage: server DIRECTORY ADDRESS".into());
    };
    let settings = StoreSettings {
        journal_file_bytes: 4 << 20,
        journal_bytes_max: 32 << 20,
        append_bytes_max: 1 << 20,
        ..StoreSettings::default()
    };
    let store = Store::builder().settings(settings).open(directory)?;
    let listener = TcpListener::bind(address).await?;
    println!("{}", listener.local_addr()?);
    let shutdown = async {
        let mut end = Vec::new();
        let _ = tokio::io::stdin().read_to_end(&mut end).await;
    };
    serve(listener, store, Config::default(), shutdown).await?;
    Ok(())
}
