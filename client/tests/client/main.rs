//! The client against the real server, over sockets, and through a relay that cuts connections.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod aggregates;
mod calls;
mod common;
mod erasure;
mod following;
mod projections;
mod relay;
mod sessions;
mod snapshots;
mod streams;
