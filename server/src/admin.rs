//! The admin service: how the server and its store are.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use quipu_proto::v1 as pb;
use tonic::{Request, Response, Status};

use crate::shared::{Shared, now_ms, to_ms};

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Admin {
    pub(crate) shared: Arc<Shared>,
}

#[tonic::async_trait]
impl pb::admin_service_server::AdminService for Admin {
    async fn get_server_status(
        &self,
        _request: Request<pb::GetServerStatusRequest>,
    ) -> Result<Response<pb::GetServerStatusResponse>, Status> {
        let shared = &self.shared;
        let store = shared.store.clone();
        // Asks the disk how much is free.
        let stats = shared.read(move || store.stats()).await?;
        let state = match (&stats.failure, shared.is_draining()) {
            (_, true) => pb::get_server_status_response::State::Draining,
            (Some(_), false) => pb::get_server_status_response::State::Failed,
            (None, false) => pb::get_server_status_response::State::Serving,
        };
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &shared.counters;
        Ok(Response::new(pb::GetServerStatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            store_uid: shared.store.uid().0.to_vec().into(),
            start_time_ms: to_ms(shared.started),
            time_ms: now_ms(),
            state: state.into(),
            failure: stats.failure.map(|failure| failure.to_string()).unwrap_or_default(),
            disk_full: stats.is_disk_full,
            disk_free_bytes: stats.disk_free_bytes,
            topics: stats.topics,
            segment_bytes: stats.segment_bytes,
            journal_bytes: stats.journal_bytes,
            journal_position: stats.journal_position.value(),
            synced_position: stats.synced_position.value(),
            checkpoint_position: stats.checkpoint_position.value(),
            connections: value(&counters.connections),
            subscribers: value(&counters.subscriptions),
            append_sessions: value(&counters.append_sessions),
            appends: stats.appends,
            records_appended: stats.records_appended,
            damage_found: stats.damage_found,
            limits: Some(shared.limits()),
        }))
    }
}
