//! What commands work on: a store's directory, through the embedded engine, or a server, through the client.
//!
//! Both speak the types of the wire contract. Everything streams: a reader hands out bounded batches, a publisher has a
//! bounded number of bytes in flight.

mod convert;
mod embedded;
mod filter;
mod publish;
mod read;
mod remote;

use quipu_client::SnapshotPut;
use quipu_proto::v1 as pb;

use crate::exit::{Failure, Result};
use crate::position::Position;
use crate::requirement::{Requirement, Unmet};
pub(crate) use embedded::Embedded;
pub(crate) use remote::Remote;

/// A record with what its topic knows about it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Item {
    pub(crate) offset: u64,
    pub(crate) append_time_ms: u64,
    /// Its place among the records of its key.
    pub(crate) revision: Option<u64>,
    pub(crate) record: pb::Record,
}

impl Item {
    /// The id that the record was given, as a UUID is written; empty if it was given none.
    pub(crate) fn id_text(&self) -> String {
        let mut text = String::with_capacity(36);
        for (place, byte) in self.record.id.iter().flatten().enumerate() {
            if matches!(place, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }
}

/// What to read.
#[derive(Clone, Debug)]
pub(crate) struct ReadSpec {
    pub(crate) topic: String,
    /// Forwards: the first record wanted. Backwards: the last one.
    pub(crate) start: Position,
    /// Forwards: exclusive. Backwards: the lowest offset wanted.
    pub(crate) until: Option<Position>,
    /// 0: no limit.
    pub(crate) records_max: u64,
    pub(crate) filter: pb::Filter,
    /// Whether records that are not synced yet are shown as well.
    pub(crate) sees_written: bool,
    pub(crate) direction: Direction,
}

impl ReadSpec {
    /// The key whose stream is read, for an option that needs one.
    pub(crate) fn stream_key(&self, option: &str) -> Result<&[u8]> {
        match (&self.filter.keys[..], &self.filter.key_prefixes[..]) {
            ([key], []) => Ok(key),
            _ => Err(Failure::usage(format!(
                "{option} is for the records of one key: give one --key, and no --key-prefix"
            ))),
        }
    }
}

/// Which way, and whether to wait for more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From the start to the end that there is now.
    Forwards,
    /// From the end to the start.
    Backwards,
    /// From the start, and then each record as it comes.
    Follow,
}

/// What a reader comes across.
#[derive(Debug)]
pub(crate) enum Step {
    /// Records, in order.
    Records(Vec<Item>),
    /// These offsets are gone, `to` excluded.
    Gap { from: u64, to: u64, reason: &'static str },
    /// Some records cannot be read; reading goes on behind them.
    Damaged(Damage),
    /// There may be records behind the last one that can be seen: nobody can tell, for this reason.
    DamagedEnd { message: String },
    /// The connection was lost and is there again: nothing is missing, nothing comes twice.
    Resumed { next_offset: u64 },
    /// There is nothing more right now: whoever asks again waits.
    Idle,
    /// There is nothing more.
    End,
}

/// Records that cannot be read.
#[derive(Debug)]
pub(crate) struct Damage {
    /// The first of them.
    pub(crate) from: u64,
    /// One past the last of them.
    pub(crate) to: u64,
    /// Names topic, offsets, file and position.
    pub(crate) message: String,
}

/// Reads a topic step by step.
pub(crate) trait Reader {
    /// The next step.
    fn next(&mut self) -> Result<Step>;
}

/// What was acknowledged so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Acknowledged {
    pub(crate) records: u64,
    /// Offset of the first one.
    pub(crate) first_offset: Option<u64>,
    /// One past the offset of the last one.
    pub(crate) next_offset: u64,
}

/// Where a named producer goes on: each batch is one append of it.
#[derive(Clone, Debug)]
pub(crate) struct ProducerAt {
    pub(crate) name: String,
    pub(crate) epoch: u64,
    pub(crate) next_sequence: u64,
}

/// Appends batches to a topic, in order. Each is atomic.
pub(crate) trait Publisher {
    /// The next batch is appended only if these hold right before it.
    fn require(&mut self, requirements: Vec<Requirement>);
    /// Each batch is appended only if the topic has no higher fencing token, and raises the topic's to this.
    fn fence(&mut self, token: u64);
    /// Hands over a batch; waits while too much is unacknowledged.
    fn submit(&mut self, records: Vec<pb::Record>) -> Result<()>;
    /// Waits until everything is acknowledged.
    fn finish(&mut self) -> Result<()>;
    /// What has been acknowledged: a prefix of what was handed over, also after an error.
    fn acknowledged(&self) -> Acknowledged;
}

/// A store or a server.
pub(crate) trait Backend {
    /// Makes a topic.
    fn create_topic(&self, name: &str, settings: pb::TopicSettings) -> Result<pb::Topic>;
    /// A topic's settings and bounds.
    fn topic(&self, name: &str) -> Result<pb::Topic>;
    /// Hands all topics whose names begin so to `each`, in order of their names.
    fn topics(&self, prefix: &str, each: &mut dyn FnMut(pb::Topic) -> Result<()>) -> Result<()>;
    /// Changes the settings that `paths` name to what they are in `settings`, which has all of them.
    fn update_topic(&self, name: &str, settings: pb::TopicSettings, paths: &[&str]) -> Result<pb::Topic>;
    /// Deletes a topic.
    fn delete_topic(&self, name: &str) -> Result<()>;
    /// Removes records below an offset; says where the log starts now.
    fn trim_topic(&self, name: &str, before_offset: u64) -> Result<u64>;
    /// Compacts a topic.
    fn compact_topic(
        &self,
        request: pb::CompactTopicRequest,
        progress: &mut dyn FnMut(pb::CompactionProgress),
    ) -> Result<pb::CompactionReport>;
    /// Verifies a topic.
    fn verify_topic(
        &self,
        name: &str,
        progress: &mut dyn FnMut(pb::VerifyProgress),
    ) -> Result<pb::VerifyReport>;
    /// What a topic holds and does.
    fn topic_status(&self, name: &str) -> Result<pb::GetTopicStatusResponse>;
    /// The offset that a position stands for.
    fn offset_of(&self, topic: &str, position: Position) -> Result<u64>;
    /// Hands the streams of a topic whose keys begin so to `each`, in the order of their keys.
    fn streams(
        &self,
        topic: &str,
        prefix: &[u8],
        each: &mut dyn FnMut(pb::Stream) -> Result<()>,
    ) -> Result<()>;
    /// What is known of the stream of a key, if a record ever had it.
    fn stream(&self, topic: &str, key: &[u8]) -> Result<Option<pb::Stream>>;
    /// Which of these do not hold now; appends nothing.
    fn unmet(&self, topic: &str, requirements: &[Requirement]) -> Result<Vec<Unmet>>;
    /// How far a producer is; `None` if there is none of that name.
    fn producer(&self, name: &str) -> Result<Option<pb::ProducerState>>;
    /// All producers, in the order of their names.
    fn producers(&self) -> Result<Vec<pb::ProducerState>>;
    /// Forgets a producer.
    fn forget_producer(&self, name: &str) -> Result<()>;
    /// Keeps a snapshot of the stream whose key it has, up to a revision.
    fn put_snapshot(
        &self,
        topic: &str,
        revision: u64,
        snapshot: pb::Record,
        durability: pb::Durability,
    ) -> Result<SnapshotPut>;
    /// The latest snapshot of a stream that covers nothing behind `up_to`: with the last revision that it covers as its
    /// revision, and its offset in the topic of snapshots.
    fn snapshot(&self, topic: &str, key: &[u8], up_to: Option<u64>) -> Result<Option<Item>>;
    /// To append to a topic, as a producer or without a name of one's own.
    fn publisher(
        &self,
        topic: &str,
        durability: pb::Durability,
        producer: Option<ProducerAt>,
    ) -> Result<Box<dyn Publisher + '_>>;
    /// Destroys erasure keys.
    fn erase_keys(&self, erasure_keys: &[String]) -> Result<pb::EraseKeysResponse>;
    /// To read a topic.
    fn reader(&self, spec: ReadSpec) -> Result<Box<dyn Reader + '_>>;
    /// To be called when all is done: what was done is safe in any case.
    fn close(&self) -> Result<()>;
}
