//! The server through a real socket, with clients made from the proto files.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod common;
mod errors;
mod log;
mod session;
mod subscribe;
mod topics;
