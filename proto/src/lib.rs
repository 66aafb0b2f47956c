//! The wire contract of quipu: what `quipu/v1/*.proto` says, as types.
//!
//! The proto files are the documentation; the services are `log_service_client`, `log_service_server` and so on.

#![forbid(unsafe_code)]

/// Version 1.
pub mod v1 {
    #![allow(missing_docs, unreachable_pub, reason = "generated: the proto files have the words")]
    #![allow(clippy::doc_markdown, clippy::all, reason = "generated")]
    tonic::include_proto!("quipu.v1");
}

/// The descriptors of all files, for reflection: an encoded `google.protobuf.FileDescriptorSet`.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
