//! The producer service: how far named writers are.

use std::sync::Arc;

use quipu_proto::v1 as pb;
use quipu_storage::ProducerInfo;
use tonic::{Request, Response, Status};

use crate::error::{Violations, status};
use crate::shared::Shared;

/// Producers of a page if the request does not say.
const PAGE_DEFAULT: usize = 100;
/// Producers of a page at most.
const PAGE_MAX: usize = 1000;
/// What a page token begins with: its format.
const TOKEN_PREFIX: &str = "after:";
/// The longest name of a producer.
const NAME_BYTES_MAX: usize = 255;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Producers {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) fn check_name(field: &str, name: &str, violations: &mut Violations) {
    violations.require((1..=NAME_BYTES_MAX).contains(&name.len()), field, "must have 1 to 255 bytes");
}

fn to_wire(producer: ProducerInfo) -> pb::ProducerState {
    let ProducerInfo { name, epoch, last_sequence } = producer;
    pb::ProducerState { name, epoch, last_sequence }
}

#[tonic::async_trait]
impl pb::producer_service_server::ProducerService for Producers {
    async fn get_producer(
        &self,
        request: Request<pb::GetProducerRequest>,
    ) -> Result<Response<pb::GetProducerResponse>, Status> {
        let name = request.into_inner().name;
        let mut violations = Violations::default();
        check_name("name", &name, &mut violations);
        violations.finish()?;
        let store = self.shared.store.clone();
        let found = self.shared.ask_synced(move || {
            let found = store.producer(&name);
            // Whoever goes on from there must not do so from what a power cut takes back.
            store.sync().map(|()| found)
        });
        let producer = found.await?.map_err(status)?.map(to_wire);
        Ok(Response::new(pb::GetProducerResponse { producer }))
    }

    async fn list_producers(
        &self,
        request: Request<pb::ListProducersRequest>,
    ) -> Result<Response<pb::ListProducersResponse>, Status> {
        let pb::ListProducersRequest { page_size, page_token } = request.into_inner();
        let after = page_token.strip_prefix(TOKEN_PREFIX);
        let mut violations = Violations::default();
        violations.require(
            page_token.is_empty() || after.is_some(),
            "page_token",
            "must be of the page before",
        );
        violations.finish()?;
        let size = match page_size as usize {
            0 => PAGE_DEFAULT,
            size => size.min(PAGE_MAX),
        };
        let mut found = self.shared.store.producers(after, size + 1);
        let has_more = found.len() > size;
        found.truncate(size);
        let next_page_token = match found.last() {
            Some(last) if has_more => format!("{TOKEN_PREFIX}{}", last.name),
            _ => String::new(),
        };
        let producers = found.into_iter().map(to_wire).collect();
        Ok(Response::new(pb::ListProducersResponse { producers, next_page_token }))
    }

    async fn forget_producer(
        &self,
        request: Request<pb::ForgetProducerRequest>,
    ) -> Result<Response<pb::ForgetProducerResponse>, Status> {
        let name = request.into_inner().name;
        let mut violations = Violations::default();
        check_name("name", &name, &mut violations);
        violations.finish()?;
        self.shared.check_not_draining()?;
        let store = self.shared.store.clone();
        let forgotten = name.clone();
        self.shared.change(move || store.forget_producer(&forgotten)).await?.map_err(status)?;
        tracing::info!(producer = name, "producer forgotten");
        Ok(Response::new(pb::ForgetProducerResponse {}))
    }
}
