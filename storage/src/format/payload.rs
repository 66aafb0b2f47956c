//! A batch of one record that has a payload and nothing else, not compressed: the shortest way from a record to its
//! batch.
//!
//! The same bytes as [`BatchBuilder`](super::batch::BatchBuilder) makes. The payload stays where it is until it is
//! copied to its place, and is summed there; everything else is numbers, because the processor is slow to read back
//! what it has just stored piece by piece.

use super::batch::{BatchHeader, Codec, HEADER_BYTES, put_words};
use super::record::PayloadPrefix;
use super::{ALIGNMENT, crc, short_crc};
use crate::types::{Offset, Timestamp};

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct PayloadBatch<'a> {
    payload: &'a [u8],
    prefix: PayloadPrefix,
    header: BatchHeader,
    /// Before it is sealed, only what does not depend on its place.
    header_crc: u32,
}

impl<'a> PayloadBatch<'a> {
    /// `None` if the payload is very short or long.
    #[inline]
    pub(crate) fn new(payload: &'a [u8], seed: u32) -> Option<Self> {
        let prefix = PayloadPrefix::new(payload.len())?;
        let raw_bytes = prefix.len + payload.len();
        let header = BatchHeader {
            base_offset: Offset::ZERO,
            offset_span: 1,
            record_count: 1,
            append_time: Timestamp::ZERO,
            codec: Codec::None,
            body_crc: crc(short_crc::of_prefix(prefix.bytes, prefix.len), payload),
            batch_bytes: (HEADER_BYTES + raw_bytes) as u32,
            raw_bytes: raw_bytes as u32,
            ext_bytes: 0,
            has_sealed: false,
        };
        let header_crc = short_crc::of_rest(seed, &header.words());
        Some(Self { payload, prefix, header, header_crc })
    }

    /// As [`BatchBuilder::seal`]; only once.
    #[inline]
    pub(crate) fn seal(&mut self, base_offset: Offset, append_time: Timestamp) {
        self.header.base_offset = base_offset;
        self.header.append_time = append_time;
        self.header_crc ^= short_crc::of_place(&self.header.words());
    }

    #[inline]
    pub(crate) fn header(&self) -> &BatchHeader {
        &self.header
    }

    /// The first four bytes.
    #[inline]
    pub(crate) fn header_crc(&self) -> [u8; 4] {
        self.header_crc.to_le_bytes()
    }

    /// Writes the sealed batch with its padding over the whole of `place`.
    #[inline]
    pub(crate) fn store(&self, place: &mut [u8]) {
        let mut words = self.header.words();
        words[0] |= u64::from(self.header_crc);
        let (header, body) = place.split_at_mut(HEADER_BYTES);
        put_words(header, &words);
        // The padding first: what comes later covers what is no padding of it.
        let padding_at = body.len() - ALIGNMENT;
        body[padding_at..].copy_from_slice(&[0; ALIGNMENT]);
        body[..8].copy_from_slice(&self.prefix.bytes.to_le_bytes());
        body[self.prefix.len..self.prefix.len + self.payload.len()].copy_from_slice(self.payload);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::batch::BatchBuilder;
    use crate::format::record::Record;

    proptest! {
        #[test]
        fn the_bytes_are_those_of_any_batch_whatever_lay_there_before(
            payload in prop_oneof![
                prop::collection::vec(any::<u8>(), 0..300),
                prop::collection::vec(any::<u8>(), 16_000..17_000),
            ],
            seed: u32, offset: u32, time: u64,
        ) {
            let (offset, time) = (Offset(offset.into()), Timestamp(time));
            let Some(mut batch) = PayloadBatch::new(&payload, seed) else {
                prop_assert!(payload.len() < 8 || payload.len() > 0x3f00);
                return Ok(());
            };
            batch.seal(offset, time);
            let mut place = vec![0xaa; batch.header().stored_bytes()];
            batch.store(&mut place);
            let mut expected = BatchBuilder::empty();
            expected.fill(&[Record::new(payload.clone())], Codec::None);
            expected.seal(seed, offset, time);
            prop_assert_eq!(batch.header(), expected.header());
            prop_assert_eq!(&batch.header_crc()[..], &expected.as_bytes()[..4]);
            prop_assert_eq!(place, expected.stored_bytes());
        }
    }
}
