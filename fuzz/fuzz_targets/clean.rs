//! The file `clean`: taken only if it is exactly what is written for that position.
#![no_main]

use libfuzzer_sys::fuzz_target;
use quipu_fuzz::u64_at;
use quipu_storage::Position;
use quipu_storage::format::checkpoint::{encode_clean, is_clean};

fuzz_target!(|bytes: &[u8]| {
    let position = Position(if bytes.len() < 24 { 0 } else { u64_at(bytes, 16) });
    assert_eq!(is_clean(bytes, position), bytes == encode_clean(position));
    assert!(!is_clean(bytes, position.saturating_add(8)) || position == Position::MAX);
});
