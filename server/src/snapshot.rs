//! The snapshot service: putting and getting snapshots of streams.
//!
//! A snapshot is an append: its record stays encoded until it was checked, and its bytes count among those in flight. Because
//! indexes are looked into, all of it happens on a thread that may block: it is decoded there, and waits for the disk. Such
//! threads have places of their own: appends and reads find theirs, however many snapshots there are.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use prost::Message;
use quipu_proto::v1 as pb;
use quipu_storage::{Durability, Error, Record, RecordView, Revision, Snapshot, SnapshotPut, Topic};
use tonic::body::Body;
use tonic::server::{Grpc, NamedService, UnaryService};
use tonic::{Request, Response, Status};

use crate::error::{Problem, Violations, status};
use crate::request;
use crate::shared::Shared;
use crate::wire::Wire;

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Snapshots {
    pub(crate) shared: Arc<Shared>,
}

/// A snapshot to put, as it came: its record still encoded.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct WirePut {
    pub(crate) topic: String,
    pub(crate) revision: u64,
    pub(crate) record: Option<Bytes>,
    pub(crate) durability: i32,
    /// How long the message was.
    pub(crate) bytes: usize,
}

impl NamedService for Snapshots {
    const NAME: &'static str = "quipu.v1.SnapshotService";
}

impl tower::Service<http::Request<Body>> for Snapshots {
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _task: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let shared = Arc::clone(&self.shared);
        Box::pin(async move {
            let path = request.uri().path();
            let limit = shared.request_bytes_max(path);
            Ok(match path.rsplit('/').next() {
                Some("PutSnapshot") => {
                    let grpc = Grpc::new(Wire::default());
                    let mut grpc = grpc.apply_max_message_size_config(Some(limit), Some(usize::MAX));
                    grpc.unary(PutSnapshot(shared), request).await
                }
                Some("GetSnapshot") => {
                    let grpc = Grpc::new(Wire::default());
                    let mut grpc = grpc.apply_max_message_size_config(Some(limit), Some(usize::MAX));
                    grpc.unary(GetSnapshot(shared), request).await
                }
                _ => Status::from(Problem::unsupported("the method")).into_http(),
            })
        })
    }
}

/// A put that passed every check that needs no look at the store.
struct Checked {
    topic: Topic,
    revision: Revision,
    record: Record,
    durability: Durability,
}

fn check(shared: &Shared, wire: &WirePut) -> Result<Checked, Status> {
    shared.check_not_draining()?;
    let mut violations = Violations::default();
    violations.topic_name("topic", &wire.topic);
    let durability = request::durability(wire.durability, &mut violations);
    let view = RecordView::decode(wire.record.as_deref().unwrap_or_default()).map_err(|invalid| {
        let invalid = Error::InvalidEncoding { detail: invalid.detail, position: invalid.position };
        Status::from(Problem::from(invalid).with("topic", &wire.topic))
    })?;
    violations.require(view.key.is_some(), "snapshot.key", "must be the key of the stream");
    violations.require(view.payload.is_some(), "snapshot.payload", "must be given, and may be empty");
    violations.finish()?;
    view.check().map_err(|(what, actual, limit)| {
        let too_large = Error::RecordTooLarge { index: 0, what, actual, limit };
        Status::from(Problem::from(too_large).with("topic", &wire.topic))
    })?;
    let topic = shared.topic(&wire.topic)?;
    Ok(Checked { topic, revision: Revision(wire.revision), record: view.to_record(), durability })
}

struct PutSnapshot(Arc<Shared>);

impl UnaryService<WirePut> for PutSnapshot {
    type Response = pb::PutSnapshotResponse;
    type Future = Answer<pb::PutSnapshotResponse>;

    fn call(&mut self, request: Request<WirePut>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let wire = request.into_inner();
            let Some(room) = shared.budget.try_take(wire.bytes) else {
                shared.counters.appends_overloaded.fetch_add(1, Ordering::Relaxed);
                let limit = shared.config.append_bytes_in_flight_max;
                return Err(Problem::overloaded("the bytes of appends in flight", limit).into());
            };
            let on_thread = Arc::clone(&shared);
            let put = move || {
                let _room = room;
                let Checked { topic, revision, record, durability } = check(&on_thread, &wire)?;
                on_thread.counters.count_append(record.encoded_bytes() as u64);
                topic.put_snapshot(revision, &record, durability).map_err(status)
            };
            let outcome = match shared.put_snapshot(put).await?? {
                SnapshotPut::Stored(offset) => pb::put_snapshot_response::Outcome::Offset(offset.value()),
                SnapshotPut::Superseded(revision) => {
                    pb::put_snapshot_response::Outcome::SupersededBy(revision.value())
                }
            };
            Ok(Response::new(pb::PutSnapshotResponse { outcome: Some(outcome) }))
        })
    }
}

struct GetSnapshot(Arc<Shared>);

impl UnaryService<pb::GetSnapshotRequest> for GetSnapshot {
    type Response = pb::GetSnapshotResponse;
    type Future = Answer<pb::GetSnapshotResponse>;

    fn call(&mut self, request: Request<pb::GetSnapshotRequest>) -> Self::Future {
        let shared = Arc::clone(&self.0);
        Box::pin(async move {
            let request = request.into_inner();
            let mut violations = Violations::default();
            violations.topic_name("topic", &request.topic);
            violations.finish()?;
            let topic = shared.topic(&request.topic)?;
            let up_to = request.up_to_revision.map(Revision);
            let get = move || {
                let found = topic.snapshot(request.key, up_to).map_err(status)?;
                found.map(|snapshot| to_wire(&snapshot)).transpose()
            };
            let snapshot = shared.read(get).await??;
            Ok(Response::new(pb::GetSnapshotResponse { snapshot }))
        })
    }
}

fn to_wire(snapshot: &Snapshot) -> Result<pb::Snapshot, Status> {
    let record = pb::Record::decode(snapshot.record.as_bytes().clone());
    // It was checked when it was appended: a bug of ours.
    let record = record.map_err(|error| Problem::internal(format!("a stored record: {error}")))?;
    Ok(pb::Snapshot {
        revision: snapshot.revision.value(),
        record: Some(record),
        append_time_ms: snapshot.record.append_time().value(),
        offset: snapshot.record.offset().value(),
    })
}
