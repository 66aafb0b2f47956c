//! The log service: takes requests apart, calls what answers them, and puts the answers together.

use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use prost::Message;
use quipu_proto::v1 as pb;
use quipu_storage::Offset;
use tonic::{Request, Response, Status, Streaming};

use crate::append;
use crate::edge::translated;
use crate::error::{Problem, Violations, status};
use crate::read::{Read, ReadEvent};
use crate::session::{Session, SessionRequest};
use crate::shared::Shared;
use crate::subscribe::{SubscribeEvent, Subscription};

type Responses<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Log {
    pub(crate) shared: Arc<Shared>,
}

impl Log {
    fn topic(&self, name: &str) -> Result<quipu_storage::Topic, Status> {
        let mut violations = Violations::default();
        violations.topic_name("topic", name);
        violations.finish()?;
        self.shared.topic(name)
    }
}

#[tonic::async_trait]
impl pb::log_service_server::LogService for Log {
    async fn append(
        &self,
        request: Request<pb::AppendRequest>,
    ) -> Result<Response<pb::AppendResponse>, Status> {
        append::unary(&self.shared, request.into_inner().into()).await.map(Response::new)
    }

    type AppendSessionStream = Responses<pb::AppendSessionResponse>;

    async fn append_session(
        &self,
        request: Request<Streaming<pb::AppendSessionRequest>>,
    ) -> Result<Response<Self::AppendSessionStream>, Status> {
        let limit = self.shared.message_bytes_max();
        let requests = request.into_inner().map(move |request| match request {
            Ok(pb::AppendSessionRequest { append, opening: Some(opening) }) => {
                Ok(SessionRequest::Opening { opening, has_append: append.is_some() })
            }
            Ok(request) => Ok(SessionRequest::Append(request.append.unwrap_or_default().into())),
            Err(status) => Err(translated(&status, limit).unwrap_or(status)),
        });
        let session = Session::begin(&self.shared, requests)?;
        let responses = futures_util::stream::unfold(session, |mut session| async move {
            let next = session.next().await?;
            Some((next, session))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    type ReadStream = Responses<pb::ReadResponse>;

    async fn read(&self, request: Request<pb::ReadRequest>) -> Result<Response<Self::ReadStream>, Status> {
        let read = Read::begin(&self.shared, request.into_inner()).await?;
        let responses = futures_util::stream::unfold(read, |mut read| async move {
            let next = read.next().await?;
            Some((next.and_then(read_response), read))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    type SubscribeStream = Responses<pb::SubscribeResponse>;

    async fn subscribe(
        &self,
        request: Request<pb::SubscribeRequest>,
    ) -> Result<Response<Self::SubscribeStream>, Status> {
        let subscription = Subscription::begin(&self.shared, request.into_inner()).await?;
        let responses = futures_util::stream::unfold(subscription, |mut subscription| async move {
            let next = subscription.next().await?;
            Some((next.and_then(subscribe_response), subscription))
        });
        Ok(Response::new(Box::pin(responses)))
    }

    async fn get_record(
        &self,
        request: Request<pb::GetRecordRequest>,
    ) -> Result<Response<pb::GetRecordResponse>, Status> {
        let request = request.into_inner();
        let topic = self.topic(&request.topic)?;
        let found = self.shared.read(move || topic.get(Offset(request.offset))).await?.map_err(status)?;
        let response = match found {
            None => pb::GetRecordResponse::default(),
            Some(stored) => pb::GetRecordResponse {
                record: Some(pb::Record::decode(stored.as_bytes().clone()).map_err(undecodable)?),
                append_time_ms: stored.append_time().value(),
            },
        };
        Ok(Response::new(response))
    }

    async fn get_bounds(
        &self,
        request: Request<pb::GetBoundsRequest>,
    ) -> Result<Response<pb::GetBoundsResponse>, Status> {
        let stats = self.topic(&request.into_inner().topic)?.stats();
        Ok(Response::new(pb::GetBoundsResponse {
            log_start_offset: stats.log_start_offset.value(),
            high_watermark: stats.high_watermark.value(),
            log_end_offset: stats.log_end_offset.value(),
            last_append_time_ms: stats.last_append_time.value(),
        }))
    }
}

fn read_response(event: ReadEvent) -> Result<pb::ReadResponse, Status> {
    use pb::read_response::Event;
    let event = match event {
        ReadEvent::Batches(batches) => Event::Batches(decoded(batches)?),
        ReadEvent::Gap(gap) => Event::Gap(gap),
        ReadEvent::End(end) => Event::End(end),
    };
    Ok(pb::ReadResponse { event: Some(event) })
}

fn subscribe_response(event: SubscribeEvent) -> Result<pb::SubscribeResponse, Status> {
    use pb::subscribe_response::Event;
    let event = match event {
        SubscribeEvent::Batches(batches) => Event::Batches(decoded(batches)?),
        SubscribeEvent::Other(event) => event,
    };
    Ok(pb::SubscribeResponse { event: Some(event) })
}

fn decoded(batches: Vec<crate::batch::WireBatch>) -> Result<pb::RecordBatches, Status> {
    let decode = |batch: crate::batch::WireBatch| {
        let records = pb::RecordBatch::decode(batch.body).map_err(undecodable)?.records;
        Ok(pb::RecordBatch {
            records,
            first_offset: batch.first_offset,
            offsets: batch.offsets,
            append_time_ms: batch.append_time_ms,
            next_offset: batch.next_offset,
            records_crc: Some(batch.records_crc),
            revisions: Vec::new(),
        })
    };
    let batches = batches.into_iter().map(decode).collect::<Result<_, Status>>()?;
    Ok(pb::RecordBatches { batches })
}

/// It was checked when it was appended: a bug of ours.
fn undecodable(error: prost::DecodeError) -> Status {
    Problem::internal(format!("a stored record cannot be decoded: {error}")).into()
}

impl From<pb::AppendRequest> for append::WireAppend {
    fn from(request: pb::AppendRequest) -> Self {
        let bytes = request.encoded_len();
        let parts = request.appends.into_iter().map(|part| append::WirePart {
            records: pb::RecordBatch { records: part.records, ..Default::default() }.encode_to_vec().into(),
            topic: part.topic,
            records_crc: part.records_crc,
        });
        Self {
            parts: parts.collect(),
            durability: request.durability,
            has_conditions: !request.conditions.is_empty(),
            has_producer: request.producer.is_some(),
            has_request_id: !request.request_id.is_empty(),
            validate_only: request.validate_only,
            bytes,
        }
    }
}
