//! Snapshots: what the records of a key come to up to a revision, so that not all of them must be read.

use bytes::BytesMut;
use prost::Message;
use quipu_proto::v1;
use quipu_proto::v1::put_snapshot_response::Outcome;
use quipu_proto::v1::snapshot_service_client::SnapshotServiceClient;
use tonic::transport::Channel;

use crate::append::Durability;
use crate::batch::{StoredRecord, stored};
use crate::client::{Client, Repeat};
use crate::error::{Error, Result};
use crate::read::RecordReader;
use crate::record::Record;
use crate::start::Start;

/// A snapshot of a stream.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The last revision that it covers.
    pub revision: u64,
    /// What was put, with two headers of the server more. Its offset is that in the topic of snapshots.
    pub record: StoredRecord,
}

/// What became of a snapshot that was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotPut {
    /// It is there.
    Stored {
        /// Its offset in the topic of snapshots.
        offset: u64,
    },
    /// Nothing was stored: there is a later one.
    Superseded {
        /// The revision of that one.
        revision: u64,
    },
}

impl Client {
    /// Puts a snapshot of a stream: what its records up to `revision` come to. It has the key of the stream and a payload,
    /// and whatever else its readers want to know. One of the same revision is replaced, so it is tried again however a try
    /// ended. Snapshots are records of the topic `TOPIC.snapshots`, which the first one makes.
    ///
    /// ```no_run
    /// # async fn example(client: quipu_client::Client) -> quipu_client::Result<()> {
    /// use quipu_client::Record;
    /// client.put_snapshot("accounts", 41, Record::keyed("anna", r#"{"balance": 7}"#)).await?;
    /// let (snapshot, mut events) = client.read_from_snapshot("accounts", "anna").await?;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::RevisionUnwritten`] if the stream has no such revision; [`Error::Refused`] with the reason
    /// `SNAPSHOTS_REFUSED` if the topic can have none; those of an append.
    pub async fn put_snapshot(
        &self,
        topic: impl Into<String>,
        revision: u64,
        snapshot: impl Into<Record>,
    ) -> Result<SnapshotPut> {
        self.put_snapshot_with(topic, revision, snapshot, Durability::Unspecified).await
    }

    /// The same with another durability.
    ///
    /// # Errors
    /// As [`put_snapshot`](Self::put_snapshot).
    pub async fn put_snapshot_with(
        &self,
        topic: impl Into<String>,
        revision: u64,
        snapshot: impl Into<Record>,
        durability: Durability,
    ) -> Result<SnapshotPut> {
        let request = v1::PutSnapshotRequest {
            topic: topic.into(),
            revision,
            snapshot: Some(to_wire(&snapshot.into())?),
            durability: durability.into(),
        };
        let call = || {
            let (mut service, request) = (self.snapshot_service(), self.request(request.clone()));
            async move { service.put_snapshot(request).await }
        };
        match self.call(Repeat::Declares, call).await?.outcome {
            Some(Outcome::Offset(offset)) => Ok(SnapshotPut::Stored { offset }),
            Some(Outcome::SupersededBy(revision)) => Ok(SnapshotPut::Superseded { revision }),
            None => Err(Error::protocol("an answer without its outcome")),
        }
    }

    /// The latest snapshot of a stream, if there is one.
    ///
    /// # Errors
    /// [`Error::TopicNotFound`]; [`Error::CorruptRange`] if it is damaged: the stream can be read from its start, and the
    /// next snapshot makes up for it; those of the connection.
    pub async fn snapshot(
        &self,
        topic: impl Into<String>,
        key: impl Into<Vec<u8>>,
    ) -> Result<Option<Snapshot>> {
        self.get_snapshot(topic.into(), key.into(), None).await
    }

    /// The latest snapshot of a stream that covers nothing behind `revision`, if there is one: for looking at how it was.
    /// Old ones are pruned.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot).
    pub async fn snapshot_up_to(
        &self,
        topic: impl Into<String>,
        key: impl Into<Vec<u8>>,
        revision: u64,
    ) -> Result<Option<Snapshot>> {
        self.get_snapshot(topic.into(), key.into(), Some(revision)).await
    }

    /// The latest snapshot of a stream, if there is one, and the records behind it; without one, all there are. Records that
    /// were trimmed are not among them: whether the first one is the next revision its
    /// [`revision`](crate::StoredRecord::revision) says. An [aggregate](Self::aggregates) looks by itself.
    ///
    /// # Errors
    /// As [`snapshot`](Self::snapshot), and as [`Read::records`](crate::Read::records).
    pub async fn read_from_snapshot(
        &self,
        topic: impl Into<String>,
        key: impl Into<Vec<u8>>,
    ) -> Result<(Option<Snapshot>, RecordReader)> {
        let (topic, key) = (topic.into(), key.into());
        let snapshot = self.snapshot(&*topic, &*key).await?;
        let start =
            snapshot.as_ref().map_or(Start::Earliest, |snapshot| Start::AfterRevision(snapshot.revision));
        let records = self.read_stream(topic, key).start(start).records().await?;
        Ok((snapshot, records))
    }

    async fn get_snapshot(
        &self,
        topic: String,
        key: Vec<u8>,
        up_to_revision: Option<u64>,
    ) -> Result<Option<Snapshot>> {
        let request = v1::GetSnapshotRequest { topic, key: key.into(), up_to_revision };
        let call = || {
            let (mut service, request) = (self.snapshot_service(), self.request(request.clone()));
            async move { service.get_snapshot(request).await }
        };
        let Some(found) = self.call(Repeat::Harmless, call).await?.snapshot else { return Ok(None) };
        let record = found.record.ok_or_else(|| Error::protocol("a snapshot without its record"))?;
        let record = stored(&record, found.offset, found.append_time_ms, None)?;
        Ok(Some(Snapshot { revision: found.revision, record }))
    }

    fn snapshot_service(&self) -> SnapshotServiceClient<Channel> {
        SnapshotServiceClient::new(self.channel.clone())
            .max_decoding_message_size(self.settings.message_bytes_max)
    }
}

fn to_wire(record: &Record) -> Result<v1::Record> {
    record.check()?;
    let mut batch = BytesMut::new();
    record.encode(None, &mut batch);
    let batch =
        v1::RecordBatch::decode(batch.freeze()).map_err(|error| Error::protocol(error.to_string()))?;
    batch.records.into_iter().next().ok_or_else(|| Error::protocol("no record"))
}
