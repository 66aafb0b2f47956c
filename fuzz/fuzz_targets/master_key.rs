//! A master key, as it is and with any nodes under right checksums: what is decoded comes back from its encoding.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quipu_fuzz::{crc, put_u32};
use quipu_storage::format::master_key::{HEADER_BYTES, MasterKeyFile, NODE_BYTES, STORE_BYTES};

fuzz_target!(|bytes: &[u8]| {
    let _ = MasterKeyFile::decode(bytes);
    for store_bytes in [0, STORE_BYTES] {
        let mut file = vec![7; HEADER_BYTES];
        file[..16].copy_from_slice(b"QUIPUKEY\x01\0\0\0\0\0\0\0");
        file[12] = u8::from(store_bytes > 0);
        let count = bytes.len().saturating_sub(store_bytes) / NODE_BYTES;
        file[64..72].copy_from_slice(&(count as u64).to_le_bytes());
        file.extend_from_slice(bytes);
        let sum = crc(0, bytes);
        put_u32(&mut file, 72, sum);
        let sum = crc(0, &file[..76]);
        put_u32(&mut file, 76, sum);
        if let Ok(decoded) = MasterKeyFile::decode(&file) {
            let MasterKeyFile { uid, store, salt, nodes } = decoded;
            assert_eq!(MasterKeyFile::encode(uid, store, &salt, &nodes), file);
        }
    }
});
