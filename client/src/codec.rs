//! Messages as bytes: what tonic needs in order to send what is encoded already and to hand over what is not yet
//! decoded.

use bytes::{Buf, Bytes};
use prost::Message;
use tonic::Status;
use tonic::codec::{Codec, DecodeBuf, Decoder, EncodeBuf, Encoder};

/// An encoded message, in up to three pieces: before the records, the records, behind them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Encoded(pub(crate) [Bytes; 3]);

impl Encoded {
    /// A message that is not made of records.
    pub(crate) fn message(message: &impl Message) -> Self {
        Self([message.encode_to_vec().into(), Bytes::new(), Bytes::new()])
    }

    /// Its bytes.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(Bytes::len).sum()
    }
}

/// Sends [`Encoded`], hands over [`Bytes`].
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Raw;

impl Codec for Raw {
    type Encode = Encoded;
    type Decode = Bytes;
    type Encoder = Self;
    type Decoder = Self;

    fn encoder(&mut self) -> Self {
        Self
    }

    fn decoder(&mut self) -> Self {
        Self
    }
}

impl Encoder for Raw {
    type Item = Encoded;
    type Error = Status;

    fn encode(&mut self, item: Encoded, out: &mut EncodeBuf<'_>) -> Result<(), Status> {
        use bytes::BufMut;
        out.reserve(item.len());
        for piece in item.0 {
            out.put(piece);
        }
        Ok(())
    }
}

impl Decoder for Raw {
    type Item = Bytes;
    type Error = Status;

    fn decode(&mut self, message: &mut DecodeBuf<'_>) -> Result<Option<Bytes>, Status> {
        // Splits the buffer, copies nothing.
        Ok(Some(message.copy_to_bytes(message.remaining())))
    }
}
