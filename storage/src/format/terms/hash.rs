//! The hash of a term: SipHash-2-4 with the topic's uid as its key (two little-endian numbers of 8 bytes).
//!
//! It is the same for ever, so that filters on disk mean something, and another for each topic, so that nobody prepares
//! terms that all hash alike. Two terms of one hash cost a look at their bytes, no more.

use crate::format::u64_at;
use crate::types::Uid;

/// The hash of `term`, its kind included, in `topic`.
pub fn hash(topic: Uid, term: &[u8]) -> u64 {
    let (k0, k1) = (u64_at(&topic.0, 0), u64_at(&topic.0, 8));
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let words = term.chunks_exact(8);
    let rest = words.remainder();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    last[7] = term.len() as u8;
    for word in words.map(|word| u64_at(word, 0)).chain([u64::from_le_bytes(last)]) {
        v[3] ^= word;
        round(&mut v);
        round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    (0..4).for_each(|_| round(&mut v));
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hash_is_siphash_2_4() {
        // The test vectors of its authors: key 00 01 .. 0f, input 00 01 .. of each length.
        let key = Uid(std::array::from_fn(|at| at as u8));
        let input: Vec<u8> = (0..16).collect();
        let expected = [
            (0, 0x726f_db47_dd0e_0e31),
            (1, 0x74f8_39c5_93dc_67fd),
            (7, 0xab02_00f5_8b01_d137),
            (8, 0x93f5_f579_9a93_2462),
            (15, 0xa129_ca61_49be_45e5),
        ];
        for (length, wanted) in expected {
            assert_eq!(hash(key, &input[..length]), wanted, "{length} bytes");
        }
    }
}
