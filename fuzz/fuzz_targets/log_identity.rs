//! The file that makes a directory a bare log, as it is and with any content under right checksums, beside the segments
//! of a golden log: it opens or is refused without a panic, and reading gives nothing that was not written.
//!
//! Input: which log, whether the checksums are made right, and the two copies.
#![no_main]

use std::path::Path;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use quipu_fuzz::damage::{Damage, planted};
use quipu_fuzz::log::look;
use quipu_fuzz::{crc, put_u32};
use quipu_tests::golden::{Golden, logs};

static LOGS: LazyLock<[Golden; 2]> = LazyLock::new(logs);
const COPY_BYTES: usize = 64;

fuzz_target!(|input: &[u8]| {
    let [log, how, copies @ ..] = input else { return };
    let golden = &LOGS[usize::from(log % 2)];
    let number = golden.files.keys().position(|path| path == "log").expect("a log has it");
    let mut file = golden.files["log"].clone();
    if how % 2 == 0 {
        let length = copies.len().min(file.len());
        file[..length].copy_from_slice(&copies[..length]);
    } else {
        // Its own uid, and anything else.
        for (at, content) in [0, 4096].into_iter().zip(copies.chunks(COPY_BYTES - 32 - 4)) {
            let copy = &mut file[at..at + COPY_BYTES];
            copy[32..32 + content.len()].copy_from_slice(content);
            let sum = crc(0, &copy[..60]);
            put_u32(copy, 60, sum);
        }
    }
    let number = u8::try_from(number).expect("a few files");
    let root = Path::new("/log");
    look(&planted(root, golden, number, &Damage::Replace(&file)), root, golden);
});
