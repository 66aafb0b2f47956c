//! The bare gRPC service that the service is held against: the same library, windows and processes, and nothing behind
//! it. It drops what comes, and sends the same memory again and again.
//!
//! - [`server`]: a process of its own, as quipu's server is
//! - [`client`]: starts it and calls it
//!
//! | Method | Does |
//! |---|---|
//! | `Call` | takes a message, answers with [`ANSWER_BYTES`] bytes |
//! | `Take` | takes messages until there are no more, answers how many bytes there were |
//! | `Frames` | sends opaque messages, as many and as large as [`Wanted`] says |
//! | `Messages` | sends a subscription's messages, each encoded by prost |

pub mod client;
pub mod server;

use bytes::{Buf, BufMut, Bytes};
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// As long as the answer to an append.
pub const ANSWER_BYTES: usize = 32;

/// No message here is larger.
const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// HTTP/2 windows, frames and buffers: those of quipu's server and client.
mod settings {
    pub(super) const SERVER_STREAM_WINDOW_BYTES: u32 = 4 << 20;
    pub(super) const SERVER_CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
    pub(super) const CLIENT_STREAM_WINDOW_BYTES: u32 = 4 << 20;
    pub(super) const CLIENT_CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
    pub(super) const FRAME_BYTES_MAX: u32 = 256 << 10;
    pub(super) const BUFFER_BYTES: usize = 16 << 10;
    pub(super) const GATHERED_BYTES: usize = 64 << 10;
}

/// What a stream is to send.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Wanted {
    /// How many messages.
    #[prost(uint64, tag = "1")]
    pub messages: u64,
    /// Bytes of an opaque one.
    #[prost(uint64, tag = "2")]
    pub message_bytes: u64,
    /// Batches of one of a subscription.
    #[prost(uint64, tag = "3")]
    pub batches: u64,
    /// Records of a batch.
    #[prost(uint64, tag = "4")]
    pub records: u64,
    /// Bytes of a payload.
    #[prost(uint64, tag = "5")]
    pub record_bytes: u64,
}

/// Messages as bytes, on both sides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Opaque;

impl Codec for Opaque {
    type Encode = Bytes;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        *self
    }

    fn decoder(&mut self) -> Self {
        *self
    }
}

impl Encoder for Opaque {
    type Item = Bytes;
    type Error = Status;

    fn encode(&mut self, item: Bytes, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        out.reserve(item.len());
        out.put(item);
        Ok(())
    }

    fn buffer_settings(&self) -> BufferSettings {
        BufferSettings::new(settings::BUFFER_BYTES, settings::GATHERED_BYTES)
    }
}

impl Decoder for Opaque {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        // Splits the buffer, copies nothing.
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}
