//! The service as its users meet it: a process that is killed, clients of other makes, and clients that mean no good.

#![allow(clippy::unwrap_used, reason = "a test may")]

mod cuts;
mod histories;
mod hostile;
mod increments;
mod process;
mod stranger;
