//! The filter: says of most terms that are not in an index that they are not, and of none that is.
//!
//! A Bloom filter in blocks of 64 bytes, 12 bits a term. The hash H of a term chooses its block, (H >> 32) × blocks >> 32,
//! and seven bits in it: bit number (G >> 9i) & 511 for i from 0 to 6, where G is H × 9E3779B97F4A7C15 modulo 2^64. Bit n
//! of a block is bit n & 7 of its byte n >> 3. About one absent term in a hundred is not told.

use bytes::Bytes;

use crate::format::Invalid;

const BLOCK_BYTES: usize = 64;
const BITS_PER_TERM: u64 = 12;

/// How long the filter of so many terms is.
pub fn filter_bytes(terms: u64) -> u64 {
    terms
        .saturating_mul(BITS_PER_TERM)
        .div_ceil(8)
        .next_multiple_of(BLOCK_BYTES as u64)
        .max(BLOCK_BYTES as u64)
}

fn block_of(hash: u64, bytes: usize) -> usize {
    let blocks = (bytes / BLOCK_BYTES) as u64;
    let number = ((hash >> 32) * blocks) >> 32;
    usize::try_from(number).expect("a number of a block in memory") * BLOCK_BYTES
}

fn bits(hash: u64) -> impl Iterator<Item = usize> {
    let spread = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..7).map(move |number| (spread >> (9 * number)) as usize & 511)
}

/// A filter being made.
#[derive(Clone, Debug)]
pub(super) struct FilterBuilder(Vec<u8>);

impl FilterBuilder {
    /// For at most so many terms.
    pub(super) fn new(terms: u64) -> Self {
        Self(vec![0; usize::try_from(filter_bytes(terms)).unwrap_or(BLOCK_BYTES)])
    }

    pub(super) fn add(&mut self, hash: u64) {
        let at = block_of(hash, self.0.len());
        for bit in bits(hash) {
            self.0[at + bit / 8] |= 1 << (bit % 8);
        }
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

/// A filter as it stands in a file.
#[derive(Clone, Debug)]
pub struct Filter(Bytes);

impl Filter {
    /// Takes its bytes, whose checksum holds.
    pub fn new(bytes: Bytes) -> Result<Self, Invalid> {
        if bytes.is_empty()
            || !bytes.len().is_multiple_of(BLOCK_BYTES)
            || bytes.len() / BLOCK_BYTES >= 1 << 32
        {
            return Err(Invalid::new("a filter has whole blocks", bytes.len()));
        }
        Ok(Self(bytes))
    }

    /// Whether a term of this hash may be there.
    pub fn may_have(&self, hash: u64) -> bool {
        let at = block_of(hash, self.0.len());
        bits(hash).all(|bit| self.0[at + bit / 8] & 1 << (bit % 8) != 0)
    }

    /// Bytes it takes.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether it has no bytes: never.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::terms::hash::hash;
    use crate::types::Uid;

    #[test]
    fn what_was_added_is_found_and_about_one_in_a_hundred_of_the_rest_is_not_told() {
        let hash_of = |number: u64| hash(Uid([3; 16]), &number.to_le_bytes());
        let mut builder = FilterBuilder::new(20_000);
        (0..20_000).for_each(|number| builder.add(hash_of(number)));
        let filter = Filter::new(builder.as_bytes().to_vec().into()).unwrap();
        assert!((0..20_000).all(|number| filter.may_have(hash_of(number))));
        let wrong = (20_000..120_000).filter(|&number| filter.may_have(hash_of(number))).count();
        assert!((300..1500).contains(&wrong), "{wrong} of 100,000");
    }
}
