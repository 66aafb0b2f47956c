//! The bytes that contenders write, and the framing of the bare references.
//!
//! Payloads do not compress, differ from their neighbours, and can be made again from the record's number, so
//! that a reader can check every byte without having kept what was written.
//!
//! ```text
//! frame:  CRC-32 of what follows (4) | length of the payload (4) | payload
//! ```

use anyhow::{Result, ensure};

/// How many different payloads there are; a power of two, so that picking one costs a mask.
const POOL_RECORDS: usize = 1024;

/// Bytes of a frame before its payload.
pub const FRAME_HEADER_BYTES: usize = 8;

/// The payload of every record, by its number.
#[derive(Clone, Debug)]
pub struct Payloads {
    pool: Vec<u8>,
    record_bytes: usize,
}

impl Payloads {
    /// Payloads of `record_bytes` each; the same ones in every run.
    pub fn new(record_bytes: usize) -> Self {
        assert!(record_bytes > 0, "an empty payload cannot be told from another");
        let mut random = Random::new(record_bytes as u64);
        let mut pool = vec![0; POOL_RECORDS * record_bytes];
        random.fill(&mut pool);
        Self { pool, record_bytes }
    }

    /// The payload of record `number`.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "only the low bits count")]
    pub fn of(&self, number: u64) -> &[u8] {
        let start = (number as usize & (POOL_RECORDS - 1)) * self.record_bytes;
        &self.pool[start..start + self.record_bytes]
    }

    /// Bytes of one payload.
    pub fn record_bytes(&self) -> usize {
        self.record_bytes
    }

    /// Bytes of one framed payload.
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.record_bytes
    }

    /// Fails unless `bytes` is the payload of record `number`.
    pub fn check(&self, number: u64, bytes: &[u8]) -> Result<()> {
        ensure!(bytes == self.of(number), "record {number} reads back different");
        Ok(())
    }

    /// Writes the frame of record `number` over the whole of `out`, which has room for exactly that.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "payloads are a few KiB")]
    pub fn frame(&self, number: u64, out: &mut [u8]) {
        let payload = self.of(number);
        out[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        out[8..].copy_from_slice(payload);
        let crc = crc32fast::hash(&out[4..]);
        out[..4].copy_from_slice(&crc.to_le_bytes());
    }

    /// Fails unless `frame` is the frame of record `number`.
    pub fn check_frame(&self, number: u64, frame: &[u8]) -> Result<()> {
        ensure!(frame.len() == self.frame_bytes(), "record {number} has {} bytes", frame.len());
        ensure!(
            crc32fast::hash(&frame[4..]).to_le_bytes() == frame[..4],
            "record {number} fails its checksum"
        );
        self.check(number, &frame[FRAME_HEADER_BYTES..])
    }
}

/// A small random number generator (SplitMix64): good enough to defeat compression and read-ahead.
#[derive(Clone, Debug)]
pub struct Random {
    state: u64,
}

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut bits = self.state;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        // The bias is below 2^-30 for every bound that a benchmark has.
        self.next_u64() % bound
    }

    /// Overwrites `out`.
    pub fn fill(&mut self, out: &mut [u8]) {
        for part in out.chunks_mut(8) {
            part.copy_from_slice(&self.next_u64().to_le_bytes()[..part.len()]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_are_the_same_again_and_differ_from_their_neighbours() {
        let (one, two) = (Payloads::new(100), Payloads::new(100));
        for number in 0..2000 {
            assert_eq!(one.of(number), two.of(number));
            assert_ne!(one.of(number), one.of(number + 1));
            assert_eq!(one.of(number).len(), 100);
        }
    }

    #[test]
    fn a_frame_checks_and_a_changed_one_does_not() {
        let payloads = Payloads::new(100);
        let mut frame = vec![0; payloads.frame_bytes()];
        payloads.frame(5, &mut frame);
        payloads.check_frame(5, &frame).unwrap();
        assert!(payloads.check_frame(6, &frame).is_err(), "another record's frame");
        for byte in 0..frame.len() {
            frame[byte] ^= 1;
            assert!(payloads.check_frame(5, &frame).is_err(), "byte {byte} changed");
            frame[byte] ^= 1;
        }
    }

    #[test]
    fn random_numbers_stay_below_their_bound() {
        let mut random = Random::new(1);
        assert!((0..1000).all(|_| random.below(7) < 7));
    }
}
