//! A checkpoint, as it is and with any content under a right checksum: what is decoded comes back from its encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quipu_fuzz::{crc, put_u32};
use quipu_storage::format::checkpoint::Checkpoint;

fuzz_target!(|bytes: &[u8]| {
    let _ = Checkpoint::decode(bytes);
    let mut copy = vec![0; 32];
    copy[..8].copy_from_slice(b"QUIPUCKP");
    copy[8] = 1;
    copy[16..24].copy_from_slice(&(bytes.len() as u64).to_le_bytes());
    let sum = crc(crc(0, &copy[..24]), bytes);
    put_u32(&mut copy, 24, sum);
    copy.extend_from_slice(bytes);
    copy.extend_from_within(..);
    if let Ok(decoded) = Checkpoint::decode(&copy) {
        assert_eq!(decoded.damaged_copy, None);
        let again = Checkpoint::decode(&decoded.checkpoint.encode()).expect("just encoded");
        assert_eq!(again.checkpoint, decoded.checkpoint);
    }
});
