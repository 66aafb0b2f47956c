//! A store with a batch that is compressed with Zstandard.
//!
//! The frame is put together by hand from blocks that are hardly compressed, so that it is the same whatever the
//! compressor: the format fixes what is read, not what a compressor makes of it.

use std::collections::BTreeMap;

use bytes::Bytes;
use quipu_storage::format::checkpoint::{Checkpoint, encode_clean};
use quipu_storage::format::record::put_record;
use quipu_storage::{Codec, Position, Record, TopicId, TopicSettings, Uid};

use super::{Golden, Journal, Made, TIME, appended, crc, dense, records, seed, segment, segment_path, topic};

const PACKED: (TopicId, Uid) = (TopicId(1), Uid([0x77; 16]));
const LETTERS: usize = 1000;
const BATCH_HEADER_BYTES: usize = 48;

/// A frame with so many bytes: `start` as it is, and then one letter again and again.
fn frame(start: &[u8], letter: u8, count: usize) -> Vec<u8> {
    let block = |is_last: usize, kind: usize, bytes: usize| {
        let header = u32::try_from(bytes << 3 | kind << 1 | is_last).expect("a small block").to_le_bytes();
        [header[0], header[1], header[2]]
    };
    // One segment; the length of the content in two bytes, less 256.
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x60];
    let content = u16::try_from(start.len() + count - 256).expect("a small frame");
    frame.extend_from_slice(&content.to_le_bytes());
    frame.extend_from_slice(&block(0, 0, start.len()));
    frame.extend_from_slice(start);
    frame.extend_from_slice(&block(1, 1, count));
    frame.push(letter);
    frame
}

/// A batch with this one record, as section 4 of the specification has it.
fn batch(uid: Uid, base: u64, time: u64) -> Made {
    let record = Record::new("z".repeat(LETTERS));
    let mut body = Vec::new();
    put_record(&mut body, &record);
    let packed = frame(&body[..body.len() - LETTERS], b'z', LETTERS);
    let number = |bytes: usize| u32::try_from(bytes).expect("a small batch").to_le_bytes();
    let mut bytes = vec![0; 4];
    bytes.extend_from_slice(&number(BATCH_HEADER_BYTES + packed.len()));
    bytes.extend_from_slice(&base.to_le_bytes());
    bytes.extend_from_slice(&number(1));
    bytes.extend_from_slice(&number(1));
    bytes.extend_from_slice(&time.to_le_bytes());
    bytes.extend_from_slice(&crc(0, &packed).to_le_bytes());
    bytes.extend_from_slice(&number(body.len()));
    bytes.extend_from_slice(&number(0));
    // Encoding 1, codec 2, no flags.
    bytes.extend_from_slice(&[1, 2, 0, 0]);
    let sum = crc(seed(uid), &bytes[4..]);
    bytes[..4].copy_from_slice(&sum.to_le_bytes());
    bytes.extend_from_slice(&packed);
    Made { bytes: Bytes::from(bytes), records: vec![(base, time, record)] }
}

/// See the [module](self).
pub(super) fn zstandard() -> Golden {
    let store = Uid([0xe1; 16]);
    let first = dense(PACKED.1, 0, TIME, Codec::None, &[Record::new("not compressed")]);
    let second = batch(PACKED.1, 1, TIME + 1);
    let third = dense(PACKED.1, 2, TIME + 2, Codec::None, &[Record::new("behind it")]);
    let (bytes, sealed) = segment(store, PACKED.1, 0, &[&first, &second, &third], Some(3), 0);
    let mut packed = topic(PACKED, "packed", TopicSettings::default(), 3, TIME + 2);
    packed.sealed.push(sealed);
    let mut journal = Journal::new(store, 1, 0, Position(0));
    journal.frame(Position(0), &[appended(PACKED.0, &second, false)]);
    let checkpoint = Checkpoint {
        store,
        position: journal.position(),
        generation: 1,
        next_topic: TopicId(2),
        topics: vec![packed],
        deleted: Vec::new(),
        producers: Vec::new(),
        request_ids: Vec::new(),
        master_key: None,
    };
    let files = BTreeMap::from([
        (segment_path(PACKED.0, 0, 0), bytes),
        ("checkpoint".into(), checkpoint.encode()),
        ("clean".into(), encode_clean(checkpoint.position).to_vec()),
        ("journal/000000.journal".into(), journal.finish()),
    ]);
    let topics = BTreeMap::from([("packed", records(&[&first, &second, &third]))]);
    Golden { name: "zstandard", files, topics }
}
