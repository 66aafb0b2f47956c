//! The file `live`, as it is and with any content under right checksums: what is decoded comes back from its encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quipu_fuzz::{crc, put_u32, u64_at};
use quipu_storage::format::live::{FILE_BYTES, Live};

fuzz_target!(|bytes: &[u8]| {
    let _ = Live::decode(bytes);
    let mut file = vec![0; FILE_BYTES];
    let mut sequences = Vec::new();
    for (slot, content) in file.chunks_mut(512).zip(bytes.chunks(64)) {
        slot[..8].copy_from_slice(b"QUIPULIV");
        slot[8] = 1;
        slot[16..16 + content.len()].copy_from_slice(content);
        let sum = crc(0, &slot[..80]);
        put_u32(slot, 80, sum);
        sequences.push(u64_at(slot, 48));
    }
    // Two slots, whatever stands behind; the later one counts.
    let decoded = Live::decode(&file);
    assert_eq!(decoded.map(|live| live.sequence), sequences.iter().take(2).max().copied());
    if let Some(live) = decoded {
        let (at, slot) = live.encode();
        let mut again = vec![0; FILE_BYTES];
        let at = usize::try_from(at).expect("within the file");
        again[at..at + slot.len()].copy_from_slice(&slot);
        assert_eq!(Live::decode(&again), Some(live));
    }
});
