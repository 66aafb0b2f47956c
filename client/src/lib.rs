//! The typed, async client.

#![forbid(unsafe_code)]
