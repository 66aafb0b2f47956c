//! The topic service: making topics, changing them, looking after them.

use std::sync::Arc;

use quipu_proto::v1 as pb;
use quipu_storage::{Error, Offset, RetentionReason, Topic};
use tonic::{Request, Response, Status};

use crate::error::{Violations, status};
use crate::settings;
use crate::shared::Shared;
use crate::upkeep::{self, CompactStream, VerifyStream};

/// Topics of a page if the request does not say.
const PAGE_DEFAULT: usize = 100;
/// Topics of a page at most.
const PAGE_MAX: usize = 1000;
/// What a page token begins with: its format.
const TOKEN_PREFIX: &str = "after:";

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Topics {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) fn to_wire(topic: &Topic) -> pb::Topic {
    // In this order: each is at least as far as the one before when it is looked at.
    let log_start_offset = topic.log_start_offset().value();
    let high_watermark = topic.high_watermark().value();
    pb::Topic {
        name: topic.name().to_string(),
        uid: topic.uid().0.to_vec().into(),
        settings: Some(settings::to_wire(&topic.settings())),
        log_start_offset: log_start_offset.min(high_watermark),
        high_watermark,
        log_end_offset: topic.log_end_offset().value().max(high_watermark),
        fencing_token: topic.fencing_token(),
    }
}

fn check_name(name: &str) -> Result<(), Status> {
    let mut violations = Violations::default();
    violations.topic_name("name", name);
    violations.finish()
}

impl Topics {
    fn topic(&self, name: &str) -> Result<Topic, Status> {
        check_name(name)?;
        self.shared.topic(name)
    }

    /// Runs what changes a topic.
    async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Status> {
        self.shared.check_not_draining()?;
        self.shared.change(change).await?.map_err(status)
    }
}

#[tonic::async_trait]
impl pb::topic_service_server::TopicService for Topics {
    async fn create_topic(
        &self,
        request: Request<pb::CreateTopicRequest>,
    ) -> Result<Response<pb::CreateTopicResponse>, Status> {
        let request = request.into_inner();
        let mut violations = Violations::default();
        violations.topic_name("name", &request.name);
        let settings = match settings::from_wire(&request.settings.unwrap_or_default()) {
            Ok(settings) => Some(settings),
            Err(found) => {
                violations.append(found);
                None
            }
        };
        violations.finish()?;
        let settings = settings.expect("without it there was a violation");
        let store = self.shared.store.clone();
        let topic = self.change(move || store.create_topic(&request.name, settings)).await?;
        tracing::info!(topic = %topic.name(), "topic created");
        Ok(Response::new(pb::CreateTopicResponse { topic: Some(to_wire(&topic)) }))
    }

    async fn get_topic(
        &self,
        request: Request<pb::GetTopicRequest>,
    ) -> Result<Response<pb::GetTopicResponse>, Status> {
        let topic = self.topic(&request.into_inner().name)?;
        Ok(Response::new(pb::GetTopicResponse { topic: Some(to_wire(&topic)) }))
    }

    async fn list_topics(
        &self,
        request: Request<pb::ListTopicsRequest>,
    ) -> Result<Response<pb::ListTopicsResponse>, Status> {
        let pb::ListTopicsRequest { prefix, page_size, page_token } = request.into_inner();
        let after = page_token.strip_prefix(TOKEN_PREFIX).map(str::to_owned);
        let mut violations = Violations::default();
        let is_ours = page_token.is_empty() || after.as_ref().is_some_and(|name| name.starts_with(&prefix));
        violations.require(is_ours, "page_token", "must be of the page before, with the same prefix");
        violations.finish()?;
        let size = match page_size as usize {
            0 => PAGE_DEFAULT,
            size => size.min(PAGE_MAX),
        };
        let store = self.shared.store.clone();
        // Not for the disk's sake: a hundred thousand topics take a while to sort.
        let response = self.shared.read(move || {
            let after = after.unwrap_or_default();
            let all = store.topics();
            let mut wanted = all
                .iter()
                .filter(|topic| topic.name().as_str() > after.as_str())
                .filter(|topic| topic.name().as_str().starts_with(&prefix));
            let topics: Vec<_> = wanted.by_ref().take(size).map(to_wire).collect();
            let next_page_token = match (wanted.next(), topics.last()) {
                (Some(_), Some(last)) => format!("{TOKEN_PREFIX}{}", last.name),
                _ => String::new(),
            };
            pb::ListTopicsResponse { topics, next_page_token }
        });
        Ok(Response::new(response.await?))
    }

    async fn update_topic(
        &self,
        request: Request<pb::UpdateTopicRequest>,
    ) -> Result<Response<pb::UpdateTopicResponse>, Status> {
        let request = request.into_inner();
        let topic = self.topic(&request.name)?;
        let mask = request.update_mask.unwrap_or_default().paths;
        let wire = request.settings.unwrap_or_default();
        let settings = settings::update(&topic.settings(), &wire, &mask).map_err(Violations::into_problem)?;
        let changed = topic.clone();
        self.change(move || changed.alter(&settings)).await?;
        tracing::info!(topic = %topic.name(), "topic updated");
        Ok(Response::new(pb::UpdateTopicResponse { topic: Some(to_wire(&topic)) }))
    }

    async fn delete_topic(
        &self,
        request: Request<pb::DeleteTopicRequest>,
    ) -> Result<Response<pb::DeleteTopicResponse>, Status> {
        let name = request.into_inner().name;
        check_name(&name)?;
        let store = self.shared.store.clone();
        let deleted = name.clone();
        self.change(move || store.delete_topic(&deleted)).await?;
        tracing::info!(topic = name, "topic deleted");
        Ok(Response::new(pb::DeleteTopicResponse {}))
    }

    async fn trim_topic(
        &self,
        request: Request<pb::TrimTopicRequest>,
    ) -> Result<Response<pb::TrimTopicResponse>, Status> {
        let request = request.into_inner();
        let topic = self.topic(&request.name)?;
        let trimmed = topic.clone();
        self.change(move || trimmed.trim(Offset(request.before_offset))).await?;
        let log_start_offset = topic.log_start_offset().value();
        tracing::info!(topic = %topic.name(), log_start_offset, "topic trimmed");
        Ok(Response::new(pb::TrimTopicResponse { log_start_offset }))
    }

    async fn fence_topic(
        &self,
        request: Request<pb::FenceTopicRequest>,
    ) -> Result<Response<pb::FenceTopicResponse>, Status> {
        let pb::FenceTopicRequest { name, fencing_token } = request.into_inner();
        let topic = self.topic(&name)?;
        let fenced = topic.clone();
        self.change(move || fenced.fence(fencing_token)).await?;
        tracing::info!(topic = %topic.name(), fencing_token, "topic fenced");
        Ok(Response::new(pb::FenceTopicResponse { topic: Some(to_wire(&topic)) }))
    }

    type CompactTopicStream = CompactStream;

    async fn compact_topic(
        &self,
        request: Request<pb::CompactTopicRequest>,
    ) -> Result<Response<CompactStream>, Status> {
        let request = request.into_inner();
        let topic = self.topic(&request.name)?;
        self.shared.check_not_draining()?;
        Ok(Response::new(upkeep::compact(&self.shared, topic, &request)?))
    }

    type VerifyTopicStream = VerifyStream;

    async fn verify_topic(
        &self,
        request: Request<pb::VerifyTopicRequest>,
    ) -> Result<Response<VerifyStream>, Status> {
        let topic = self.topic(&request.into_inner().name)?;
        self.shared.check_not_draining()?;
        Ok(Response::new(upkeep::verify(&self.shared, topic)?))
    }

    async fn get_topic_status(
        &self,
        request: Request<pb::GetTopicStatusRequest>,
    ) -> Result<Response<pb::GetTopicStatusResponse>, Status> {
        let topic = self.topic(&request.into_inner().name)?;
        let stats = topic.stats();
        Ok(Response::new(pb::GetTopicStatusResponse {
            last_append_time_ms: stats.last_append_time.value(),
            segments: stats.segments,
            segment_bytes: stats.segment_bytes,
            tail_bytes: stats.tail_bytes,
            records_appended: stats.records_appended,
            bytes_appended: stats.bytes_appended,
            subscribers: self.shared.subscriptions_of(topic.uid()),
            last_retention: stats.last_retention.map(|report| pb::RetentionReport {
                time_ms: report.time.value(),
                from: report.from.value(),
                to: report.to.value(),
                reason: match report.reason {
                    RetentionReason::Age => "age",
                    RetentionReason::Bytes => "bytes",
                    RetentionReason::Records => "records",
                }
                .into(),
            }),
            last_compaction: stats.last_compaction.map(|report| upkeep::report(&report)),
            topic: Some(to_wire(&topic)),
        }))
    }
}
