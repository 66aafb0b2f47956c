//! Ids of records and sessions, and the randomness that they and the jitter of retries need.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::time::{SystemTime, UNIX_EPOCH};

/// A small generator, seeded by the operating system: for telling things apart, not for keeping secrets.
#[derive(Debug)]
pub(crate) struct Random(u64);

impl Random {
    /// A generator unlike every other.
    pub(crate) fn new() -> Self {
        // The keys of a RandomState are the one randomness that the standard library gives; a hash under them hides them.
        Self(RandomState::new().build_hasher().finish())
    }

    /// The next number: SplitMix64.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// 16 bytes that nobody else has.
    pub(crate) fn uid() -> [u8; 16] {
        let mut uid = [0; 16];
        uid[..8].copy_from_slice(&Self::new().next().to_be_bytes());
        uid[8..].copy_from_slice(&Self::new().next().to_be_bytes());
        uid
    }
}

/// Makes ids for records: UUIDs of version 7, rising within one maker.
///
/// ```text
/// 48 bits milliseconds since the Unix epoch | 4 bits version | 12 bits counter | 2 bits variant | 62 bits
/// ```
///
/// The last 62 bits start at random and count up, so that ids of one maker always differ, and those of two do as good
/// as certainly.
#[derive(Debug)]
pub struct RecordIds {
    start: u64,
    count: u64,
    last_ms: u64,
}

impl RecordIds {
    /// A maker unlike every other.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default that differs each time would surprise")]
    pub fn new() -> Self {
        Self { start: Random::new().next(), count: 0, last_ms: 0 }
    }

    /// The next id.
    pub fn make(&mut self) -> [u8; 16] {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64);
        if now > self.last_ms {
            self.last_ms = now;
        } else if self.count.is_multiple_of(1 << 12) {
            // The counter begins again: a millisecond ahead keeps the ids rising.
            self.last_ms += 1;
        }
        let high = self.last_ms << 16 | 0x7000 | (self.count & 0xfff);
        let low = 1 << 63 | (self.start.wrapping_add(self.count) & ((1 << 62) - 1));
        self.count += 1;
        (u128::from(high) << 64 | u128::from(low)).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_rise_within_a_millisecond_and_over_the_end_of_the_counter() {
        let mut ids = RecordIds::new();
        let mut last = ids.make();
        for _ in 0..100_000 {
            let id = ids.make();
            // Where the clock moves on in the middle of a count, the new millisecond is what rises.
            assert!(id[..6] > last[..6] || id > last, "{last:?} {id:?}");
            assert_eq!((id[6] >> 4, id[8] >> 6), (7, 2));
            last = id;
        }
    }

    #[test]
    fn two_makers_make_different_ids() {
        let (mut one, mut other) = (RecordIds::new(), RecordIds::new());
        assert_ne!(one.make()[8..], other.make()[8..]);
        assert_ne!(Random::uid(), Random::uid());
    }
}
