//! CRC-32 of a few bytes that are at hand as numbers: the header of a batch, and what stands before a payload.
//!
//! Every byte has a table of its own, by how many bytes are behind it, so that no look-up waits for another and nothing
//! is read back that was just stored. About as fast as summing the same bytes in memory when nothing else is going on;
//! in an append, where header and lengths were written a moment before, three times as fast.

use super::batch::Words;

/// The longest message: a header from its second field on.
const BYTES_MAX: usize = 44;

/// What a byte does to the CRC that has so many bytes behind it.
static BEHIND: [[u32; 256]; BYTES_MAX] = tables();

const fn tables() -> [[u32; 256]; BYTES_MAX] {
    let mut tables = [[0; 256]; BYTES_MAX];
    let mut byte = 0;
    while byte < 256 {
        let mut value = byte as u32;
        let mut bit = 0;
        while bit < 8 {
            value = if value & 1 == 1 { value >> 1 ^ 0xEDB8_8320 } else { value >> 1 };
            bit += 1;
        }
        tables[0][byte] = value;
        byte += 1;
    }
    let mut behind = 1;
    while behind < BYTES_MAX {
        let mut byte = 0;
        while byte < 256 {
            let before = tables[behind - 1][byte];
            tables[behind][byte] = before >> 8 ^ tables[0][(before & 0xff) as usize];
            byte += 1;
        }
        behind += 1;
    }
    tables
}

/// The CRC of a header without ext, of which `words` are everything but the CRC.
#[inline]
pub(super) fn of_header(seed: u32, words: &Words) -> u32 {
    of_place(words) ^ of_rest(seed, words)
}

/// What offset and time do to it.
#[inline]
pub(super) fn of_place(words: &Words) -> u32 {
    pair::<4>(words[1]) ^ pair::<20>(words[3])
}

/// What everything else does to it, which can be known earlier.
#[inline]
pub(super) fn of_rest(seed: u32, words: &Words) -> u32 {
    let first = part(0, (words[0] >> 32) as u32 ^ !seed);
    !(first ^ pair::<12>(words[2]) ^ pair::<28>(words[4]) ^ pair::<36>(words[5]))
}

#[inline]
fn pair<const AT: usize>(word: u64) -> u32 {
    part(AT, word as u32) ^ part(AT + 4, (word >> 32) as u32)
}

/// What the four bytes from `at` on do to the CRC of the longest message. Most numbers of a header are small, and
/// zeros do nothing.
#[inline(always)]
fn part(at: usize, number: u32) -> u32 {
    let behind = BYTES_MAX - 1 - at;
    let low = BEHIND[behind][(number & 0xff) as usize];
    if number < 0x100 {
        return low;
    }
    low ^ BEHIND[behind - 1][(number >> 8 & 0xff) as usize]
        ^ BEHIND[behind - 2][(number >> 16 & 0xff) as usize]
        ^ BEHIND[behind - 3][(number >> 24) as usize]
}

/// The CRC of the `len` lowest bytes of `bytes`, 4 to 8.
#[inline]
pub(super) fn of_prefix(bytes: u64, len: usize) -> u32 {
    // Zeros before the message change nothing once the start value is in it.
    let message = (bytes ^ u64::from(u32::MAX)) << (8 * (8 - len));
    let mut crc = 0;
    for (number, byte) in message.to_le_bytes().into_iter().enumerate() {
        crc ^= BEHIND[7 - number][byte as usize];
    }
    !crc
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::format::crc;

    proptest! {
        #[test]
        fn the_crc_of_a_header_is_that_of_its_bytes(seed: u32, mut words: Words, small: [bool; 6]) {
            for (word, _) in words.iter_mut().zip(small).filter(|(_, small)| *small) {
                *word &= 0xff_0000_00ff;
            }
            words[0] &= !0xffff_ffff;
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            prop_assert_eq!(of_header(seed, &words), crc(seed, &bytes[4..]));
        }

        #[test]
        fn the_crc_of_a_prefix_is_that_of_its_bytes(bytes: [u8; 8], len in 4..=8_usize) {
            let mut low = [0; 8];
            low[..len].copy_from_slice(&bytes[..len]);
            prop_assert_eq!(of_prefix(u64::from_le_bytes(low), len), crc(0, &bytes[..len]));
        }
    }
}
