//! The gRPC service over a store.

#![forbid(unsafe_code)]
