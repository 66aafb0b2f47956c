//! The header of a journal file and a frame, as they are and with their checksums made right.
#![no_main]

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use quipu_fuzz::{crc, put_u32, u32_at, u64_at};
use quipu_storage::Position;
use quipu_storage::format::frame::{FRAME_HEADER_BYTES, FileHeader, FrameHeader, decode_any};

const SEED: u32 = 7;

fuzz_target!(|bytes: &[u8]| {
    decode_any(bytes, SEED);
    if bytes.len() >= 72 {
        let mut header = bytes[..72].to_vec();
        let sum = crc(0, &header[..68]);
        put_u32(&mut header, 68, sum);
        if let Ok(decoded) = FileHeader::decode(&header) {
            // Reserved bytes aside, the encoding gives the same back.
            assert_eq!(FileHeader::decode(&decoded.encode()), Ok(decoded));
        }
    }
    if bytes.len() < FRAME_HEADER_BYTES {
        return;
    }
    let mut frame = bytes.to_vec();
    frame.resize(frame.len().next_multiple_of(8), 0);
    let length = u32::try_from(frame.len()).expect("an input is short");
    put_u32(&mut frame, 4, length);
    let meta_bytes = u32_at(&frame, 32) % (length - 40 + 1);
    put_u32(&mut frame, 32, meta_bytes);
    let sum = crc(SEED, &frame[4..FRAME_HEADER_BYTES + meta_bytes as usize]);
    put_u32(&mut frame, 0, sum);
    let frame = Bytes::from(frame);
    let (position, generation) = (Position(u64_at(&frame, 8)), u64_at(&frame, 24));
    if let Ok(header) = FrameHeader::decode(&frame, SEED, generation, position) {
        assert!(header.frame_bytes <= frame.len() && header.synced <= position);
        let _ = header.changes(&frame);
    }
});
