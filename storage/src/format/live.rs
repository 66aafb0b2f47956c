//! How far the writer of a store is, for readers in other processes.
//!
//! ```text
//! file  | slot 0, padded to 512 | slot 1, padded to 512 | zeros to 4096 |
//! slot  | preamble (16) | store uid (16) | boot id (16) | sequence (8) | generation (8) | synced position (8) | checkpoint position (8) | crc (4) |
//! ```
//!
//! The writer writes its slots in turn, each with the next `sequence`, and never syncs them: what counts is the slot
//! that is intact and has the highest sequence. Whoever dies in the middle of one leaves the other.
//!
//! - `boot id`: of the machine's run in which it was written. After another boot nothing is in the page cache that is
//!   not on the disk, and the file may be older than what is.
//! - `synced position`: everything below is synced. Set only after that sync.
//! - `generation`: of the journal file that was being written then.
//! - `checkpoint position`: of the last checkpoint.
//! - `crc`: of the 80 bytes before it.

use super::{PREAMBLE_BYTES, check_preamble, crc, put_preamble, u32_at, u64_at};
use crate::types::{Position, Uid};

const MAGIC: &[u8; 8] = b"QUIPULIV";
const STORE_AT: usize = PREAMBLE_BYTES;
const BOOT_AT: usize = STORE_AT + 16;
const NUMBERS_AT: usize = BOOT_AT + 16;
const CRC_AT: usize = NUMBERS_AT + 4 * 8;
const SLOT_BYTES: usize = CRC_AT + 4;
/// A slot has a disk sector of its own, so that a power cut leaves each whole.
const SLOT_SPACING: usize = 512;
const _: () = assert!(SLOT_BYTES <= SLOT_SPACING);

/// Length of the file.
pub const FILE_BYTES: usize = 4096;
/// As much of the file as readers look at.
pub const SLOTS_BYTES: usize = 2 * SLOT_SPACING;

/// See the [module](self).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// The store.
    pub store: Uid,
    /// The boot in which it was written.
    pub boot: [u8; 16],
    /// Rises with every writing.
    pub sequence: u64,
    /// Of the journal.
    pub generation: u64,
    /// Everything below is synced.
    pub synced: Position,
    /// The last checkpoint.
    pub checkpoint: Position,
}

impl Live {
    /// The slot, and where in the file it goes.
    pub fn encode(&self) -> (u64, [u8; SLOT_BYTES]) {
        let mut out = [0; SLOT_BYTES];
        put_preamble(MAGIC, &mut out);
        out[STORE_AT..BOOT_AT].copy_from_slice(&self.store.0);
        out[BOOT_AT..NUMBERS_AT].copy_from_slice(&self.boot);
        let numbers = [self.sequence, self.generation, self.synced.0, self.checkpoint.0];
        for (place, number) in out[NUMBERS_AT..CRC_AT].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let sum = crc(0, &out[..CRC_AT]);
        out[CRC_AT..].copy_from_slice(&sum.to_le_bytes());
        (self.sequence % 2 * SLOT_SPACING as u64, out)
    }

    /// The latest intact slot, if there is one.
    pub fn decode(file: &[u8]) -> Option<Self> {
        file.chunks(SLOT_SPACING).take(2).filter_map(Self::decode_slot).max_by_key(|live| live.sequence)
    }

    fn decode_slot(slot: &[u8]) -> Option<Self> {
        let slot = slot.get(..SLOT_BYTES)?;
        if crc(0, &slot[..CRC_AT]) != u32_at(slot, CRC_AT) || check_preamble(MAGIC, slot).is_err() {
            return None;
        }
        let number = |n: usize| u64_at(slot, NUMBERS_AT + 8 * n);
        Some(Self {
            store: Uid(slot[STORE_AT..BOOT_AT].try_into().ok()?),
            boot: slot[BOOT_AT..NUMBERS_AT].try_into().ok()?,
            sequence: number(0),
            generation: number(1),
            synced: Position(number(2)),
            checkpoint: Position(number(3)),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn live(sequence: u64) -> Live {
        Live {
            store: Uid([1; 16]),
            boot: [2; 16],
            sequence,
            generation: 3,
            synced: Position(4 + sequence),
            checkpoint: Position(5),
        }
    }

    fn put(file: &mut [u8], live: &Live) {
        let (at, slot) = live.encode();
        file[at as usize..][..slot.len()].copy_from_slice(&slot);
    }

    #[test]
    fn the_latest_slot_counts_and_a_torn_one_leaves_the_one_before() {
        let mut file = [0; FILE_BYTES];
        assert_eq!(Live::decode(&file), None);
        for sequence in 1..10 {
            put(&mut file, &live(sequence));
            assert_eq!(Live::decode(&file), Some(live(sequence)));
        }
        let (at, slot) = live(10).encode();
        for torn in 0..slot.len() {
            let mut file = file;
            file[at as usize..][..torn].copy_from_slice(&slot[..torn]);
            assert_eq!(Live::decode(&file), Some(live(9)), "torn at {torn}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_state_or_none(bytes: Vec<u8>) {
            let _ = Live::decode(&bytes);
        }

        #[test]
        fn a_flipped_bit_is_noticed(bit in 0..SLOT_BYTES * 8) {
            let mut file = [0; FILE_BYTES];
            put(&mut file, &live(2));
            file[bit / 8] ^= 1 << (bit % 8);
            prop_assert_eq!(Live::decode(&file), None);
        }
    }
}
