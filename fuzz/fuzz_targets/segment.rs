//! Header, index and footer of a segment, as they are and with their checksums made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quipu_fuzz::{crc, put_u32};
use quipu_storage::Offset;
use quipu_storage::format::segment::{
    FOOTER_BYTES, Footer, HEADER_BYTES, INDEX_ENTRY_BYTES, IndexEntry, SegmentHeader, last_entry,
};

const SEED: u32 = 7;

fuzz_target!(|bytes: &[u8]| {
    let _ = SegmentHeader::decode(bytes);
    if let Some(header) = bytes.get(..HEADER_BYTES) {
        let mut header = header.to_vec();
        let sum = crc(0, &header[..60]);
        put_u32(&mut header, 60, sum);
        if let Ok(decoded) = SegmentHeader::decode(&header) {
            assert_eq!(SegmentHeader::decode(&decoded.encode()), Ok(decoded));
        }
    }
    let footer = bytes.len().checked_sub(FOOTER_BYTES).map(|at| bytes[at..].to_vec());
    if let Some(mut footer) = footer {
        let file_bytes = bytes.len() as u64;
        let _ = Footer::decode(&footer, SEED, file_bytes);
        let sum = crc(SEED, &footer[..92]);
        put_u32(&mut footer, 92, sum);
        if let Ok(decoded) = Footer::decode(&footer, SEED, file_bytes) {
            let index_bytes = u64::from(decoded.index_count) * INDEX_ENTRY_BYTES as u64;
            assert_eq!(decoded.data_bytes + index_bytes + FOOTER_BYTES as u64, file_bytes);
            assert_eq!(Footer::decode(&decoded.encode(SEED), SEED, file_bytes), Ok(decoded));
        }
    }
    let count = bytes.len() / INDEX_ENTRY_BYTES;
    if let Some(number) = last_entry(bytes, |entry| entry.base_offset <= Offset(1 << 40)) {
        assert!(number < count);
        let _ = IndexEntry::at(bytes, number);
    }
});
