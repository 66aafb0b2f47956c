//! The gRPC service over a store.
//!
//! [`serve`] is all there is to call. What happens in between:
//!
//! ```text
//! connection.rs  accept, count, close            serve.rs      put together, drain, close the store
//! edge.rs        streams and bytes of a connection, errors that the library answers
//! cors.rs        what browsers ask for gRPC-web
//! log.rs         ── append.rs, session.rs        the engine's `try_submit`, a ticket waited for without a thread
//!                   condition.rs                what must hold, and what is told if it does not
//!                   budget.rs                   what all appends together may have on their way
//!                   fence.rs                    of sessions with one name, which one appends
//!                ── read.rs, subscribe.rs        scan.rs: from memory at once, from the disk on another thread
//!                   stream.rs                   what is known of the records of a key
//! snapshot.rs                                    snapshots of streams: put like an append, got like a read
//! topics.rs      ── settings.rs, upkeep.rs       create, change, compact, verify
//! producer.rs                                    how far named writers are
//! erasure.rs                                     destroy the keys of sealed payloads
//! wire.rs        appends and batches as bytes, not as objects
//! admin.rs       status of the server            error.rs      what is answered when something fails
//! http.rs        /metrics, /healthz, /readyz     metrics.rs    what is counted, as OpenMetrics text
//! ```
//!
//! Promises:
//!
//! - Nothing on an async thread waits for the disk. What is read goes to at most `reads_max` other threads; appends that must
//!   wait, changes of topics, snapshots, destructions of keys each have places of their own (`shared.rs`), so that none of
//!   them can keep the others waiting.
//! - Whatever clients do, memory is bounded: see [`Config`].
//! - A subscription that nobody reads costs others nothing.
//! - Every error names a reason and whether anything was applied; the README of `quipu-proto` lists them.

#![forbid(unsafe_code)]

mod admin;
mod append;
mod batch;
mod budget;
mod condition;
mod config;
mod connection;
mod cors;
mod edge;
mod erasure;
mod error;
mod fence;
mod filter;
mod http;
mod incoming_body;
mod log;
mod metrics;
mod preface;
mod producer;
mod read;
mod request;
mod scan;
mod serve;
mod session;
mod settings;
mod shared;
mod snapshot;
mod stream;
mod subscribe;
mod topics;
mod upkeep;
mod wire;

pub use config::{Config, InvalidConfig, ListenAddressRefused, Tls, check_listen_address};
pub use error::DOMAIN;
pub use serve::{Listeners, ServeError, check_certificates, serve};
