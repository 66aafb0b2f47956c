//! Two bare logs. One was closed; the other was killed in the middle of a write, with records that nobody had synced.

use std::collections::BTreeMap;

use quipu_storage::format::batch::BatchBuilder;
use quipu_storage::format::record::put_record;
use quipu_storage::{Codec, Offset, Record, Timestamp, Uid};

use super::{Golden, Made, TIME, crc, dense, put_padded, records, seed, segment};

const LOG: Uid = Uid([0x99; 16]);
/// Length of a segment that is being written.
const SEGMENT_FILE_BYTES: usize = 8192;

/// The file `log`, as section 12 of the specification has it.
pub fn identity(log_start_offset: u64, synced_base: u64, synced_position: u64) -> Vec<u8> {
    let mut copy = b"QUIPULOG".to_vec();
    copy.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
    copy.extend_from_slice(&LOG.0);
    for number in [log_start_offset, synced_base, synced_position] {
        copy.extend_from_slice(&number.to_le_bytes());
    }
    copy.extend_from_slice(&[0; 4]);
    let sum = crc(0, &copy);
    copy.extend_from_slice(&sum.to_le_bytes());
    let mut file = vec![0; 8192];
    file[..64].copy_from_slice(&copy);
    file[4096..4160].copy_from_slice(&copy);
    file
}

fn path(base: u64) -> String {
    format!("{base:020}-0.segment")
}

/// A batch that says up to where its segment was synced.
fn marked(base: u64, time: u64, synced: u64, record: Record) -> Made {
    let mut builder = BatchBuilder::new(1, Codec::None, 0, |body| put_record(body, &record));
    builder.put_synced_position(synced);
    builder.seal(seed(LOG), Offset(base), Timestamp(time));
    Made { bytes: builder.into_bytes(), records: vec![(base, time, record)] }
}

/// What both begin with: a whole segment.
fn sealed() -> [Made; 3] {
    [
        marked(0, TIME, 64, Record::keyed("trimmed", "before the log's start")),
        dense(LOG, 1, TIME + 1, Codec::None, &[Record::new("second"), Record::tombstone("key")]),
        dense(LOG, 3, TIME + 2, Codec::Lz4, &[Record::new("a".repeat(1000))]),
    ]
}

pub(super) fn closed() -> Golden {
    let [a, b, c] = sealed();
    let d = marked(4, TIME + 3, 64, Record::keyed("k", "of the last segment"));
    let (first, _) = segment(LOG, LOG, 0, &[&a, &b, &c], Some(4), 0);
    let data_bytes = segment(LOG, LOG, 4, &[&d], None, 0).0.len() as u64;
    let (last, _) = segment(LOG, LOG, 4, &[&d], Some(5), 0);
    let files =
        BTreeMap::from([("log".into(), identity(1, 4, data_bytes)), (path(0), first), (path(4), last)]);
    Golden { name: "log-closed", files, topics: topics(&[&a, &b, &c, &d]) }
}

pub(super) fn killed() -> Golden {
    let [a, b, c] = sealed();
    let d = marked(4, TIME + 3, 64, Record::keyed("k", "synced"));
    let e = dense(LOG, 5, TIME + 4, Codec::None, &[Record::new("written only"), Record::new("")]);
    let torn = dense(LOG, 7, TIME + 5, Codec::None, &[Record::new("never acknowledged ".repeat(60))]);
    let (first, _) = segment(LOG, LOG, 0, &[&a, &b, &c], Some(4), 0);
    let synced = segment(LOG, LOG, 4, &[&d], None, 0).0.len() as u64;
    let (mut last, _) = segment(LOG, LOG, 4, &[&d, &e], None, 0);
    put_padded(&mut last, &torn.bytes[..512]);
    last.resize(SEGMENT_FILE_BYTES, 0);
    let files = BTreeMap::from([("log".into(), identity(1, 4, synced)), (path(0), first), (path(4), last)]);
    Golden { name: "log-killed", files, topics: topics(&[&a, &b, &c, &d, &e]) }
}

fn topics(batches: &[&Made]) -> BTreeMap<&'static str, super::Expected> {
    let mut found = records(batches);
    // The log begins with the second.
    found.remove(0);
    BTreeMap::from([("log", found)])
}
