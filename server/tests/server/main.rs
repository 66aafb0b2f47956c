//! The server through a real socket, with clients made from the proto files.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod bounds;
mod common;
mod conditions;
mod erasure;
mod errors;
mod lifecycle;
mod log;
mod producers;
mod session;
mod snapshots;
mod stalled_disk;
mod streams;
mod subscribe;
mod topics;
