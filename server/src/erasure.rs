//! The erasure service: destroying the keys that payloads are sealed with.

use std::sync::Arc;

use quipu_proto::v1 as pb;
use quipu_storage::{Error, ErrorKind};
use tonic::{Request, Response, Status};

use crate::error::{Problem, Violations, status};
use crate::shared::Shared;

/// Most keys of one call.
const KEYS_MAX: usize = 500;

/// See the [module](self).
#[derive(Clone, Debug)]
pub(crate) struct Erasure {
    pub(crate) shared: Arc<Shared>,
}

fn check(violations: &mut Violations, field: impl Into<String>, erasure_key: &str) {
    violations.require((1..=255).contains(&erasure_key.len()), field, "must have 1 to 255 bytes");
}

#[tonic::async_trait]
impl pb::erasure_service_server::ErasureService for Erasure {
    async fn erase_keys(
        &self,
        request: Request<pb::EraseKeysRequest>,
    ) -> Result<Response<pb::EraseKeysResponse>, Status> {
        let erasure_keys = request.into_inner().erasure_keys;
        let mut violations = Violations::default();
        violations.require(
            (1..=KEYS_MAX).contains(&erasure_keys.len()),
            "erasure_keys",
            format!("must be 1 to {KEYS_MAX} keys"),
        );
        for (number, erasure_key) in erasure_keys.iter().enumerate() {
            check(&mut violations, format!("erasure_keys[{number}]"), erasure_key);
        }
        violations.finish()?;
        let shared = &self.shared;
        shared.check_not_draining()?;
        let store = shared.store.clone();
        let erase = move || store.erase(&erasure_keys.iter().map(String::as_str).collect::<Vec<_>>());
        let report = shared.erase(erase).await?.map_err(|error| Status::from(refused(error)))?;
        tracing::info!(report.destroyed, report.destroyed_before, "erasure keys destroyed");
        Ok(Response::new(pb::EraseKeysResponse {
            destroyed: report.destroyed,
            destroyed_before: report.destroyed_before,
            old_file_overwritten: report.is_old_file_overwritten,
        }))
    }

    async fn get_erasure_key(
        &self,
        request: Request<pb::GetErasureKeyRequest>,
    ) -> Result<Response<pb::GetErasureKeyResponse>, Status> {
        let erasure_key = request.into_inner().erasure_key;
        let mut violations = Violations::default();
        check(&mut violations, "erasure_key", &erasure_key);
        violations.finish()?;
        let destroyed = self.shared.store.is_erased(&erasure_key).map_err(status)?;
        Ok(Response::new(pb::GetErasureKeyResponse { destroyed }))
    }
}

/// Of an error of the disk nobody knows on which side of the destruction it came.
fn refused(error: Error) -> Problem {
    let is_before = !matches!(error.kind(), ErrorKind::Retry | ErrorKind::DiskFull | ErrorKind::Reopen);
    let problem = Problem::from(error);
    if is_before { problem } else { problem.unknown() }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::PathBuf;
    use std::sync::Arc;

    use super::*;

    /// Keys that were gone for good were reported as not destroyed.
    #[test]
    fn after_an_error_of_the_disk_the_outcome_of_a_destruction_is_unknown() {
        let path = PathBuf::from("/keys/master.key");
        let io = Error::Io {
            action: "sync directory",
            path: path.clone(),
            source: Arc::new(io::Error::other("x")),
        };
        for error in [io, Error::DiskFull { action: "write", path }] {
            assert!(refused(error).is_unknown());
        }
        assert!(!refused(Error::MasterKeyMissing).is_unknown());
    }
}
