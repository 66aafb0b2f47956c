//! A store whose appends can be repeated: killed, so that producers, request ids and fencing tokens are in the checkpoint and
//! in the journal behind it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use quipu_storage::format::answer::{Answer, Answered, Identity};
use quipu_storage::format::checkpoint::{
    ActiveSegment, Checkpoint, ProducerState, RequestState, SealedSegment,
};
use quipu_storage::format::frame::Change;
use quipu_storage::{
    Codec, Offset, Position, Producer, Record, Revision, Timestamp, TopicId, TopicSettings, Uid,
};

use super::{
    Golden, JOURNAL_FILE_BYTES, Journal, Made, TIME, appended, dense, records, segment, segment_path, topic,
};

const PAYMENTS: (TopicId, Uid) = (TopicId(1), Uid([0x71; 16]));
const STORE: Uid = Uid([0xf1; 16]);

/// An append of the store, as it can be repeated.
#[derive(Clone, Debug)]
pub struct Repeatable {
    /// What it is known by.
    pub identity: Identity,
    /// Its only record.
    pub record: Record,
    /// The record's offset.
    pub offset: u64,
    /// Its revision, if it has a key.
    pub revision: Option<u64>,
}

impl Repeatable {
    fn answered(&self) -> Answered {
        let revisions: Vec<_> = self.revision.map(Revision).into_iter().collect();
        let time = Timestamp(TIME + self.offset);
        let answer = Answer::new([(PAYMENTS.0, Offset(self.offset), 1, time, &revisions[..])]);
        Answered { identity: self.identity.clone(), body_hash: self.body_hash(), answer }
    }

    /// SipHash-2-4 under the store's uid of the topic's uid, the length of the records and their hash.
    fn body_hash(&self) -> u64 {
        let mut body = Vec::new();
        quipu_storage::format::record::put_record(&mut body, &self.record);
        let hash = quipu_storage::format::terms::hash::hash;
        let mut of_topic = PAYMENTS.1.0.to_vec();
        of_topic.extend_from_slice(&(body.len() as u64).to_le_bytes());
        of_topic.extend_from_slice(&hash(STORE, &body).to_le_bytes());
        hash(STORE, &of_topic)
    }

    fn batch(&self) -> Made {
        dense(PAYMENTS.1, self.offset, TIME + self.offset, Codec::None, std::slice::from_ref(&self.record))
    }

    fn changes(&self, batch: &Made) -> Vec<Change> {
        vec![appended(PAYMENTS.0, batch, false), Change::Answered(self.answered())]
    }
}

fn of_producer(name: &str, epoch: u64, sequence: u64, offset: u64) -> Repeatable {
    let identity = Identity::Producer(Producer { name: name.into(), epoch, sequence });
    let record = Record::keyed(name, format!("{epoch}/{sequence}"));
    Repeatable { identity, record, offset, revision: Some(sequence) }
}

fn of_request(id: &[u8], offset: u64) -> Repeatable {
    let record = Record::new(format!("request {offset}"));
    Repeatable { identity: Identity::RequestId(id.to_vec()), record, offset, revision: None }
}

/// What can be repeated, in the order of offsets: the first four are in the checkpoint.
pub fn repeatable() -> Vec<Repeatable> {
    vec![
        of_producer("writer", 3, 0, 0),
        of_producer("writer", 3, 1, 1),
        of_request(&[0, 255], 2),
        of_producer("g\u{e9}rant", 0, 0, 3),
        of_producer("writer", 3, 2, 4),
        of_request(b"later", 5),
        of_producer("new", u64::MAX, 0, 6),
    ]
}

/// The fencing token of its topic.
pub const FENCING_TOKEN: u64 = 1 << 40;

/// See the [module](self).
pub fn golden() -> Golden {
    let repeatable = repeatable();
    let batches: Vec<_> = repeatable.iter().map(Repeatable::batch).collect();
    let in_segment: Vec<_> = batches[..4].iter().collect();
    let (bytes, SealedSegment { bytes: length, .. }) = segment(STORE, PAYMENTS.1, 0, &in_segment, None, 0);
    let mut payments = topic(PAYMENTS, "payments", TopicSettings::default(), 4, TIME + 3);
    payments.active =
        Some(ActiveSegment { base_offset: Offset(0), bytes: length, first_time: Timestamp(TIME) });
    payments.fencing_token = 7;
    let state = |name: &str, epoch, answered: &[&Repeatable]| {
        let answers = answered.iter().map(|one| (one.body_hash(), one.answered().answer));
        let last_sequence = answered.len() as u64 - 1;
        let answers: VecDeque<_> = answers.collect();
        Arc::new(ProducerState { name: name.into(), epoch, last_sequence, answers })
    };
    let Answered { body_hash, answer, .. } = repeatable[2].answered();
    let mut journal = Journal::new(STORE, 1, 0, Position(0));
    journal.frame(Position(0), &[Change::TopicDeleted { topic: TopicId(9) }]);
    let position = journal.position();
    let checkpoint = Checkpoint {
        store: STORE,
        position,
        generation: 1,
        next_topic: TopicId(10),
        topics: vec![payments],
        deleted: Vec::new(),
        producers: vec![
            state("forgotten", 1, &[&repeatable[0]]),
            state("g\u{e9}rant", 0, &[&repeatable[3]]),
            state("writer", 3, &[&repeatable[0], &repeatable[1]]),
        ],
        request_ids: vec![Arc::new(RequestState { id: vec![0, 255], body_hash, answer })],
        master_key: None,
    };
    for (one, batch) in repeatable.iter().zip(&batches).skip(4) {
        journal.frame(position, &one.changes(batch));
    }
    journal.frame(position, &[Change::Fenced { topic: PAYMENTS.0, token: FENCING_TOKEN }]);
    journal.frame(position, &[Change::ProducerForgotten { name: "forgotten".into() }]);
    let files = BTreeMap::from([
        (segment_path(PAYMENTS.0, 0, 0), bytes),
        ("checkpoint".into(), checkpoint.encode()),
        ("journal/000000.journal".into(), journal.finish()),
        ("journal/000001.journal".into(), vec![0; JOURNAL_FILE_BYTES]),
    ]);
    let topics = BTreeMap::from([("payments", records(&batches.iter().collect::<Vec<_>>()))]);
    Golden { name: "producers", files, topics }
}
