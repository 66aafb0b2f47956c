//! Small stores and bare logs, byte by byte, as format version 1 has them: the golden files.
//!
//! Made from the codecs alone, with fixed uids, salts and times, so that every run gives the same bytes. Of the first two
//! stores one was closed properly; the other was killed: its journal has every kind of change, goes over two
//! generations, and ends in a torn write. Another has producers and request ids, and another has a batch that not every build can read. The indexes of terms stand alone. One
//! has sealed payloads, and beside it is its master key.

mod compressed;
pub mod log;
pub mod producers;
pub mod sealed;
pub mod terms;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use quipu_storage::format::aligned;
use quipu_storage::format::batch::{BatchBuilder, BatchHeader, seed};
use quipu_storage::format::checkpoint::{ActiveSegment, Checkpoint, SealedSegment, TopicState, encode_clean};
use quipu_storage::format::frame::{Change, FILE_HEADER_BYTES, FileHeader, FrameBuilder, Place};
use quipu_storage::format::live::{FILE_BYTES, Live};
use quipu_storage::format::record::put_record;
use quipu_storage::format::segment::{IndexBuilder, SegmentHeader};
use quipu_storage::{
    Codec, Compaction, Offset, Position, Record, Retention, Storage, Timestamp, TopicId, TopicName,
    TopicSettings, Uid,
};

/// Records as a reader must find them: offset, append time, content.
pub type Expected = Vec<(u64, u64, Record)>;

/// A store: its files by their paths, and what reading each of its topics must give.
#[derive(Debug)]
pub struct Golden {
    /// The name of its directory.
    pub name: &'static str,
    /// The bytes of each file.
    pub files: BTreeMap<String, Vec<u8>>,
    /// The records of each topic.
    pub topics: BTreeMap<&'static str, Expected>,
}

const JOURNAL_FILE_BYTES: usize = 16 << 10;
const ORDERS: (TopicId, Uid) = (TopicId(1), Uid([0x11; 16]));
const COMPACTED: (TopicId, Uid) = (TopicId(2), Uid([0x22; 16]));
const CACHE: (TopicId, Uid) = (TopicId(3), Uid([0x33; 16]));
const DELETED: TopicId = TopicId(4);
const LATE: (TopicId, Uid) = (TopicId(5), Uid([0x55; 16]));
const GONE: (TopicId, Uid) = (TopicId(6), Uid([0x66; 16]));
/// The time of the first append: 2024-01-01.
const TIME: u64 = 1_704_067_200_000;

/// The golden stores that every build can read.
pub fn stores() -> [Golden; 2] {
    [closed(), killed()]
}

/// One with a batch that is compressed with Zstandard.
pub fn zstandard() -> Golden {
    compressed::zstandard()
}

/// The golden logs without a store.
pub fn logs() -> [Golden; 2] {
    [log::closed(), log::killed()]
}

/// What the file `live` of a golden store says, and its bytes: its slots were written in turn.
pub fn live() -> (Live, Golden) {
    let slot = |sequence: u64| Live {
        store: Uid([0xc1; 16]),
        boot: *b"\x01a boot's own id",
        sequence,
        generation: 7,
        synced: Position(0x0123_4567_89ab + sequence),
        checkpoint: Position(0x0123_4567_0000),
    };
    let mut file = vec![0; FILE_BYTES];
    for slot in [slot(40), slot(41)] {
        let (at, bytes) = slot.encode();
        let at = usize::try_from(at).expect("within the file");
        file[at..at + bytes.len()].copy_from_slice(&bytes);
    }
    let files = BTreeMap::from([("live".to_owned(), file)]);
    (slot(41), Golden { name: "reader", files, topics: BTreeMap::new() })
}

/// All of them.
pub fn all() -> Vec<Golden> {
    stores()
        .into_iter()
        .chain(logs())
        .chain([zstandard(), live().1, terms::golden(), producers::golden()])
        .chain([sealed::golden(), sealed::master_key(), sealed::named_master_key()])
        .collect()
}

/// CRC-32 as `docs/format.md` has it, begun with `seed`.
pub fn crc(seed: u32, bytes: &[u8]) -> u32 {
    let fold = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ if crc & 1 == 0 { 0 } else { 0xedb8_8320 })
    };
    !bytes.iter().fold(!seed, fold)
}

fn name(name: &str) -> TopicName {
    TopicName::new(name).expect("a name within the rules")
}

fn compacted_settings() -> TopicSettings {
    TopicSettings {
        segment_bytes_max: 8192,
        segment_age_max: Duration::from_secs(3600),
        compaction: Some(Compaction { lag_min: Duration::from_millis(5), ..Compaction::default() }),
        ..TopicSettings::default()
    }
}

fn cache_settings() -> TopicSettings {
    TopicSettings { storage: Storage::Memory { bytes_max: 8192 }, ..TopicSettings::default() }
}

fn orders_settings() -> TopicSettings {
    TopicSettings { codec: Codec::Lz4, ..TopicSettings::default() }
}

fn late_settings() -> TopicSettings {
    let retention = Retention {
        age_max: Some(Duration::from_secs(86_400)),
        bytes_max: Some(1 << 30),
        records_max: Some(1_000_000),
    };
    TopicSettings { retention, ..TopicSettings::default() }
}

/// A batch, and what a reader must find in it.
struct Made {
    bytes: Bytes,
    records: Expected,
}

fn dense(topic: Uid, base: u64, time: u64, codec: Codec, records: &[Record]) -> Made {
    let count = u32::try_from(records.len()).expect("a few");
    let mut builder = BatchBuilder::new(count, codec, 0, |body| {
        records.iter().for_each(|record| put_record(body, record));
    });
    builder.seal(seed(topic), Offset(base), Timestamp(time));
    let records = (base..).zip(records).map(|(offset, record)| (offset, time, record.clone())).collect();
    Made { bytes: builder.into_bytes(), records }
}

fn sparse(topic: Uid, base: u64, time: u64, span: u32, records: &[(u32, Record)]) -> Made {
    let deltas: Vec<u32> = records.iter().map(|(delta, _)| *delta).collect();
    let mut builder = BatchBuilder::sparse(&deltas, span, Codec::None, |body| {
        records.iter().for_each(|(_, record)| put_record(body, record));
    });
    builder.seal(seed(topic), Offset(base), Timestamp(time));
    let records =
        records.iter().map(|(delta, record)| (base + u64::from(*delta), time, record.clone())).collect();
    Made { bytes: builder.into_bytes(), records }
}

fn put_padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    out.resize(aligned(out.len()), 0);
}

/// The bytes of a segment, sealed at `next_offset` or active.
fn segment(
    store: Uid,
    topic: Uid,
    base: u64,
    batches: &[&Made],
    next_offset: Option<u64>,
    rewrites: u32,
) -> (Vec<u8>, SealedSegment) {
    let base_offset = Offset(base);
    let mut out = SegmentHeader { store, topic, base_offset }.encode().to_vec();
    let mut index = IndexBuilder::new(base_offset);
    for batch in batches {
        let header = BatchHeader::decode(&batch.bytes, seed(topic)).expect("just made");
        index.push(&header, &batch.bytes);
        put_padded(&mut out, &batch.bytes);
    }
    let footer = index.footer(topic, next_offset.map_or(index.next_offset(), Offset));
    if next_offset.is_some() {
        out.extend_from_slice(index.entries());
        out.extend_from_slice(&footer.encode(seed(topic)));
    }
    let sealed = SealedSegment {
        base_offset,
        rewrites,
        next_offset: footer.next_offset,
        bytes: out.len() as u64,
        record_count: footer.record_count,
        first_time: footer.first_time,
        last_time: footer.last_time,
    };
    (out, sealed)
}

fn segment_path(topic: TopicId, base: u64, rewrites: u32) -> String {
    format!("topics/{topic}/{base:020}-{rewrites}.segment")
}

/// A journal file under way.
struct Journal {
    header: FileHeader,
    bytes: Vec<u8>,
}

impl Journal {
    fn new(store: Uid, generation: u64, previous: u64, start: Position) -> Self {
        let salt = 0x5a17_0000 + u32::try_from(generation).expect("small");
        let header = FileHeader { store, generation, start, previous, salt };
        let mut bytes = header.encode().to_vec();
        bytes.resize(FILE_HEADER_BYTES, 0);
        Self { header, bytes }
    }

    fn position(&self) -> Position {
        self.header.start + (self.bytes.len() - FILE_HEADER_BYTES) as u64
    }

    fn frame(&mut self, synced: Position, changes: &[Change]) {
        let mut builder = FrameBuilder::default();
        builder.begin();
        changes.iter().for_each(|change| builder.put(change));
        builder.finish();
        let place = Place {
            seed: self.header.seed(),
            generation: self.header.generation,
            position: self.position(),
            synced,
        };
        let prefix = builder.seal(&place).to_vec();
        self.bytes.extend_from_slice(&prefix);
        for change in changes {
            if let Change::Batch { bytes, .. } = change {
                put_padded(&mut self.bytes, bytes);
            }
        }
    }

    fn finish(mut self) -> Vec<u8> {
        assert!(self.bytes.len() <= JOURNAL_FILE_BYTES);
        self.bytes.resize(JOURNAL_FILE_BYTES, 0);
        self.bytes
    }
}

fn appended(topic: TopicId, batch: &Made, rolls: bool) -> Change {
    Change::Batch { topic, bytes: batch.bytes.clone(), rolls }
}

/// Records with every field, an empty one, and one of several kilobytes.
fn first_batches() -> [Made; 3] {
    let full = Record {
        id: Some(*b"0123456789abcdef"),
        key: Some(b"order-1".to_vec()),
        record_type: "placed".into(),
        tags: vec!["eu".into(), "r\u{e9}d".into()],
        headers: vec![("trace".into(), vec![0, 255, 10]), ("empty".into(), Vec::new())],
        content_type: "application/json".into(),
        payload: Some(b"{\"total\":1}".to_vec()),
        erasure_key: None,
    };
    let records = [full, Record::new(""), Record::tombstone("order-1")];
    let topic = ORDERS.1;
    [
        dense(topic, 0, TIME, Codec::None, &records),
        // A run is compressed in one way only, whatever the compressor.
        dense(topic, 3, TIME + 1, Codec::Lz4, &[Record::new("a".repeat(1000))]),
        dense(topic, 4, TIME + 1, Codec::None, &[Record::keyed("big", "0123456789abcdef".repeat(300))]),
    ]
}

fn compacted_batches() -> [Made; 2] {
    let topic = COMPACTED.1;
    let kept = [(1, Record::keyed("k1", "second")), (3, Record::keyed("k2", "fourth"))];
    [
        sparse(topic, 0, TIME + 10, 4, &kept),
        sparse(topic, 4, TIME + 20, 4, &[(2, Record::tombstone("k3").with_tag("t"))]),
    ]
}

fn topic(
    (id, uid): (TopicId, Uid),
    topic_name: &str,
    settings: TopicSettings,
    next_offset: u64,
    last_time: u64,
) -> TopicState {
    TopicState {
        id,
        uid,
        name: name(topic_name),
        settings,
        log_start_offset: Offset(0),
        next_offset: Offset(next_offset),
        last_time: Timestamp(last_time),
        active: None,
        sealed: Vec::new(),
        fencing_token: 0,
    }
}

fn records(batches: &[&Made]) -> Expected {
    batches.iter().flat_map(|batch| batch.records.clone()).collect()
}

fn closed() -> Golden {
    let store = Uid([0xc1; 16]);
    let mut files = BTreeMap::new();
    let [a, b, c] = first_batches();
    let d = dense(ORDERS.1, 5, TIME + 2, Codec::None, &[Record::keyed("order-2", "x"), Record::new("y")]);
    let (sealed_bytes, sealed) = segment(store, ORDERS.1, 0, &[&a, &b, &c], Some(5), 0);
    let (active_bytes, active) = segment(store, ORDERS.1, 5, &[&d], None, 0);
    let mut orders = topic(ORDERS, "orders", orders_settings(), 7, TIME + 2);
    orders.sealed.push(sealed);
    orders.active =
        Some(ActiveSegment { base_offset: Offset(5), bytes: active.bytes, first_time: Timestamp(TIME + 2) });
    files.insert(segment_path(ORDERS.0, 0, 0), sealed_bytes);
    files.insert(segment_path(ORDERS.0, 5, 0), active_bytes);
    let [e, f] = compacted_batches();
    // Behind offset 8 everything was compacted away.
    let (bytes, sealed) = segment(store, COMPACTED.1, 0, &[&e, &f], Some(10), 1);
    files.insert(segment_path(COMPACTED.0, 0, 1), bytes);
    let mut compacted = topic(COMPACTED, "orders/by-key", compacted_settings(), 10, TIME + 30);
    compacted.sealed.push(sealed);
    let mut cache = topic(CACHE, "cache", cache_settings(), 1 << 24, TIME);
    cache.log_start_offset = cache.next_offset;
    let mut journal = Journal::new(store, 1, 0, Position(0));
    journal.frame(Position(0), &[appended(ORDERS.0, &d, true)]);
    let checkpoint = Checkpoint {
        store,
        position: journal.position(),
        generation: 1,
        next_topic: TopicId(4),
        topics: vec![orders, compacted, cache],
        deleted: Vec::new(),
        producers: Vec::new(),
        request_ids: Vec::new(),
        master_key: None,
    };
    files.insert("checkpoint".into(), checkpoint.encode());
    files.insert("clean".into(), encode_clean(checkpoint.position).to_vec());
    files.insert("journal/000000.journal".into(), journal.finish());
    let topics = BTreeMap::from([
        ("orders", records(&[&a, &b, &c, &d])),
        ("orders/by-key", records(&[&e, &f])),
        ("cache", Vec::new()),
    ]);
    Golden { name: "closed", files, topics }
}

fn killed() -> Golden {
    let store = Uid([0xd1; 16]);
    let mut files = BTreeMap::new();
    let [a, b, c] = first_batches();
    let one = |offset: u64, payload: &str| {
        dense(ORDERS.1, offset, TIME + offset, Codec::None, &[Record::new(payload)])
    };
    let (d, e, f, g) =
        (one(5, "checkpointed"), one(6, "flushed"), one(7, "in the journal"), one(8, "rolled"));
    // The checkpoint: `orders` has a sealed and an active segment, `orders/by-key` two that compaction replaces.
    let (sealed_bytes, sealed) = segment(store, ORDERS.1, 0, &[&a, &b, &c], Some(5), 0);
    let (active_bytes, active) = segment(store, ORDERS.1, 5, &[&d], None, 0);
    let mut orders = topic(ORDERS, "orders", orders_settings(), 6, TIME + 5);
    orders.sealed.push(sealed);
    orders.active =
        Some(ActiveSegment { base_offset: Offset(5), bytes: active.bytes, first_time: Timestamp(TIME + 5) });
    // One batch more than the checkpoint knows, and half of another.
    let mut bytes = active_bytes;
    put_padded(&mut bytes, &e.bytes);
    bytes.extend_from_slice(&f.bytes[..f.bytes.len() / 2]);
    files.insert(segment_path(ORDERS.0, 0, 0), sealed_bytes);
    files.insert(segment_path(ORDERS.0, 5, 0), bytes);
    let [h, i] = compacted_batches();
    let (bytes, replaced) = segment(store, COMPACTED.1, 0, &[&h, &i], Some(8), 1);
    files.insert(segment_path(COMPACTED.0, 0, 1), bytes);
    let mut compacted = topic(COMPACTED, "orders/by-key", compacted_settings(), 8, TIME + 20);
    for base in [0, 4] {
        let was = SealedSegment {
            base_offset: Offset(base),
            rewrites: 0,
            next_offset: Offset(base + 4),
            bytes: 4096,
            record_count: 4,
            ..replaced
        };
        compacted.sealed.push(was);
    }
    let j = dense(COMPACTED.1, 8, TIME + 40, Codec::None, &[Record::keyed("k1", "ninth")]);
    let k = dense(LATE.1, 0, TIME + 50, Codec::None, &[Record::new("first of late")]);
    let cache = topic(CACHE, "cache", cache_settings(), 0, 0);
    let mut first = Journal::new(store, 1, 0, Position(0));
    first.frame(Position(0), &[appended(ORDERS.0, &d, true)]);
    let position = first.position();
    let checkpoint = Checkpoint {
        store,
        position,
        generation: 1,
        next_topic: TopicId(5),
        topics: vec![orders, compacted, cache],
        deleted: vec![DELETED],
        producers: Vec::new(),
        request_ids: Vec::new(),
        master_key: None,
    };
    let created = |(id, uid): (TopicId, Uid), topic_name: &str| Change::TopicCreated {
        topic: id,
        uid,
        name: name(topic_name),
        settings: TopicSettings::default(),
    };
    first.frame(position, &[appended(ORDERS.0, &e, false)]);
    first.frame(
        position,
        &[created(LATE, "late"), Change::TopicAltered { topic: LATE.0, settings: late_settings() }],
    );
    first.frame(position, &[created(GONE, "gone")]);
    let synced = first.position();
    first.frame(synced, &[appended(ORDERS.0, &f, false), appended(LATE.0, &k, true)]);
    first.frame(synced, &[Change::SegmentsReplaced { topic: COMPACTED.0, segment: replaced }]);
    // The next file, which was used before: behind its frames stand some of an earlier generation.
    let roll = first.position();
    let mut second = Journal::new(store, 2, 1, roll);
    second.frame(synced, &[Change::TopicDeleted { topic: GONE.0 }]);
    second.frame(synced, &[Change::OffsetsReserved { topic: CACHE.0, next_offset: Offset(1 << 24) }]);
    second.frame(synced, &[appended(COMPACTED.0, &j, true)]);
    second.frame(synced, &[Change::Trimmed { topic: ORDERS.0, log_start_offset: Offset(1) }]);
    second.frame(synced, &[appended(ORDERS.0, &g, true)]);
    // A write that the power cut has torn: its first sector arrived.
    let end = second.bytes.len();
    let torn = dense(ORDERS.1, 9, TIME + 60, Codec::None, &[Record::new("never acknowledged ".repeat(60))]);
    second.frame(synced, &[appended(ORDERS.0, &torn, false)]);
    second.bytes.truncate(end + 512);
    let mut stale = Journal::new(store, 1, 0, Position(0));
    stale.frame(Position(0), &[Change::TopicDeleted { topic: ORDERS.0 }]);
    second.bytes.extend_from_slice(&stale.bytes[FILE_HEADER_BYTES..]);
    files.insert("checkpoint".into(), checkpoint.encode());
    files.insert("journal/000000.journal".into(), first.finish());
    files.insert("journal/000001.journal".into(), second.finish());
    files.insert("journal/000002.journal".into(), vec![0; JOURNAL_FILE_BYTES]);
    let mut in_orders = records(&[&a, &b, &c, &d, &e, &f, &g]);
    in_orders.remove(0);
    let topics = BTreeMap::from([
        ("orders", in_orders),
        ("orders/by-key", records(&[&h, &i, &j])),
        ("cache", Vec::new()),
        ("late", records(&[&k])),
    ]);
    Golden { name: "killed", files, topics }
}
