//! A store with sealed payloads, killed, and the master key that they were sealed with, which lies elsewhere.
//!
//! The sealed bytes were made by another implementation of HMAC-SHA256 and ChaCha20-Poly1305, from `docs/format.md`.

use std::collections::BTreeMap;

use quipu_storage::format::batch::{BatchBuilder, seed};
use quipu_storage::format::checkpoint::{ActiveSegment, Checkpoint, MasterKeyState};
use quipu_storage::format::frame::Change;
use quipu_storage::format::master_key::{MasterKeyFile, Node, SEED_BYTES};
use quipu_storage::format::record::field;
use quipu_storage::format::wire::put_bytes;
use quipu_storage::{Codec, Offset, Position, Record, Timestamp, TopicId, TopicSettings, Uid};

use super::{Golden, JOURNAL_FILE_BYTES, Journal, Made, TIME, segment, segment_path, topic};

const CUSTOMERS: (TopicId, Uid) = (TopicId(1), Uid([0x81; 16]));
const STORE: Uid = Uid([0xe1; 16]);
const MASTER_KEY: Uid = Uid([0x82; 16]);
/// Whose data the sealed payloads are.
pub const ERASURE_KEY: &str = "customer-17";

/// The payload `Ada, 12 Hill Road` of the record with key `order-7`, and an empty one of a record without key.
const SEALED: [&[u8]; 2] = [
    b"\x01\x00\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\
      \xa8\x5e\x5f\xf8\x94\x13\x06\x6c\x57\xe1\x3d\x9b\x32\xe2\xa8\xa5\xc9\
      \x8d\x7a\x3e\x81\x89\x1f\xe4\x21\x75\x9a\xe1\xcf\xad\x3b\xb1\x82",
    b"\x01\xfe\xfe\xfe\xfe\xfe\xfe\xfe\xfe\xfe\xfe\xfe\xfe\
      \xb0\x58\x18\x59\x2c\xe5\x7e\xd7\xcf\x07\x52\x02\x80\x8e\x85\xc3",
];

/// What the records are when everything can be opened. The last but one was erased, and then compacted.
fn records() -> Vec<Record> {
    vec![
        Record::keyed("order-7", "Ada, 12 Hill Road").with_erasure_key(ERASURE_KEY),
        Record::new("not sealed"),
        Record::new("").with_erasure_key(ERASURE_KEY),
        Record { payload: None, ..Record::keyed("order-8", "").with_erasure_key("customer-18") },
        Record::tombstone("order-9").with_erasure_key(ERASURE_KEY),
    ]
}

fn batch() -> Made {
    let records = records();
    let sealed = [Some(SEALED[0]), None, Some(SEALED[1]), Some(&[][..]), None];
    let mut builder = BatchBuilder::new(5, Codec::None, 0, |body| {
        for (record, sealed) in records.iter().zip(sealed) {
            let mut bytes = Vec::new();
            let payload = record.payload.clone().filter(|_| sealed.is_none());
            Record { payload, ..record.clone() }.encode(&mut bytes);
            if let Some(sealed) = sealed {
                put_bytes(&mut bytes, field::SEALED, sealed);
            }
            put_bytes(body, field::RECORD, &bytes);
        }
    });
    builder.note_sealed();
    builder.seal(seed(CUSTOMERS.1), Offset(0), Timestamp(TIME));
    let records = (0..).zip(records).map(|(offset, record)| (offset, TIME, record)).collect();
    Made { bytes: builder.into_bytes(), records }
}

/// See the [module](self).
pub fn golden() -> Golden {
    let batch = batch();
    let mut journal = Journal::new(STORE, 1, 0, Position(0));
    journal.frame(Position(0), &[Change::TopicDeleted { topic: TopicId(9) }]);
    let position = journal.position();
    let (bytes, segment) = segment(STORE, CUSTOMERS.1, 0, &[&batch], None, 0);
    let mut customers = topic(CUSTOMERS, "customers", TopicSettings::default(), 5, TIME);
    customers.active =
        Some(ActiveSegment { base_offset: Offset(0), bytes: segment.bytes, first_time: Timestamp(TIME) });
    let state = MasterKeyState { uid: MASTER_KEY, destroyed: 0 };
    let checkpoint = Checkpoint {
        store: STORE,
        position,
        generation: 1,
        next_topic: TopicId(10),
        topics: vec![customers],
        deleted: Vec::new(),
        producers: Vec::new(),
        request_ids: Vec::new(),
        master_key: Some(state),
    };
    journal.frame(position, &[Change::MasterKey(state)]);
    let files = BTreeMap::from([
        (segment_path(CUSTOMERS.0, 0, 0), bytes),
        ("checkpoint".into(), checkpoint.encode()),
        ("journal/000000.journal".into(), journal.finish()),
        ("journal/000001.journal".into(), vec![0; JOURNAL_FILE_BYTES]),
    ]);
    Golden { name: "sealed", files, topics: BTreeMap::from([("customers", batch.records)]) }
}

/// The master key of that store, as files were before they named their store.
pub fn master_key() -> Golden {
    file_of("master", None)
}

/// The same, and whose it is.
pub fn named_master_key() -> Golden {
    file_of("master-named", Some(STORE))
}

fn file_of(name: &'static str, store: Option<Uid>) -> Golden {
    let file = MasterKeyFile::encode(MASTER_KEY, store, &[0x83; 32], &[Node::root([0x84; SEED_BYTES])]);
    Golden { name, files: BTreeMap::from([("master.key".into(), file)]), topics: BTreeMap::new() }
}
