//! A batch, as it is and with its checksums made right: offsets rise within its bounds, or it is refused.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quipu_fuzz::{crc, put_u32, u32_at};
use quipu_storage::format::batch::{Batch, HEADER_BYTES, decode_any};

const SEED: u32 = 7;

fn check(bytes: &Bytes) {
    let Ok(batch) = Batch::decode(bytes, SEED) else { return };
    let mut expected = batch.base_offset();
    for next in batch.records() {
        let Ok((offset, record)) = next else { break };
        assert!(offset >= expected && offset < batch.next_offset());
        expected = offset + 1;
        let _ = record.to_record();
    }
    let _ = batch.synced_position();
}

fuzz_target!(|bytes: &[u8]| {
    decode_any(bytes, SEED);
    if bytes.len() < HEADER_BYTES {
        return;
    }
    let mut sealed = bytes.to_vec();
    let length = u32::try_from(sealed.len()).expect("an input is short");
    put_u32(&mut sealed, 4, length);
    let ext_bytes = u32_at(&sealed, 40) % (length - 48 + 1);
    put_u32(&mut sealed, 40, ext_bytes);
    let body_at = HEADER_BYTES + ext_bytes as usize;
    let body_crc = crc(0, &sealed[body_at..]);
    put_u32(&mut sealed, 32, body_crc);
    sealed[44] = 1;
    sealed[45] %= 3;
    sealed[46..48].fill(0);
    let header_crc = crc(SEED, &sealed[4..body_at]);
    put_u32(&mut sealed, 0, header_crc);
    check(&sealed.into());
});
