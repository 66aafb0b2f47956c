//! Puts the services together, serves them, and goes down in order:
//!
//! 1. The health service says NOT_SERVING; nothing new is accepted.
//! 2. Subscriptions get `draining` and end; sessions answer what they have accepted and end.
//! 3. After [`Config::drain_time_max`] what is left is closed.
//! 4. The store is closed: everything synced, a checkpoint made.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use quipu_proto::v1::admin_service_server::AdminServiceServer;
use quipu_proto::v1::erasure_service_server::ErasureServiceServer;
use quipu_proto::v1::producer_service_server::ProducerServiceServer;
use quipu_proto::v1::topic_service_server::TopicServiceServer;
use quipu_storage::Store;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};

use crate::admin::Admin;
use crate::config::{Config, InvalidConfig, Tls};
use crate::connection::Connections;
use crate::cors::CorsLayer;
use crate::edge::EdgeLayer;
use crate::erasure::Erasure;
use crate::log::Log;
use crate::producer::Producers;
use crate::shared::{REQUEST_BYTES_MAX, Shared};
use crate::snapshot::Snapshots;
use crate::topics::Topics;

/// HTTP/2 streams that a client may open beyond our own limit, so that it gets our error instead of waiting.
const STREAMS_BEYOND: usize = 64;
/// Largest HTTP/2 frame that a client may send. Each takes its sender and us a call of the system at least; with the
/// 16 KiB that HTTP/2 begins with, these calls cost more than the records. So much of a frame may wait in memory, for
/// each connection, before it counts as part of a request.
const FRAME_BYTES_MAX: u32 = 256 << 10;
/// How long calls have to notice that their connections are closed.
const CLOSING_FOR: Duration = Duration::from_secs(1);

/// Where a server listens.
#[derive(Debug)]
pub struct Listeners {
    /// gRPC and gRPC-web.
    pub grpc: TcpListener,
    /// Metrics and health over plain HTTP.
    pub metrics: Option<TcpListener>,
}

impl From<TcpListener> for Listeners {
    fn from(grpc: TcpListener) -> Self {
        Self { grpc, metrics: None }
    }
}

/// Why a server did not start, or did not end well.
#[derive(Debug)]
#[non_exhaustive]
pub enum ServeError {
    /// A setting is out of its bounds.
    Config(InvalidConfig),
    /// A certificate or key cannot be read.
    Certificate {
        /// The file.
        path: std::path::PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file that should hold certificates holds none.
    NoCertificate {
        /// The file.
        path: std::path::PathBuf,
    },
    /// The certificate, its key and the authority of clients are not what they should be, or do not fit together.
    Tls {
        /// The file of the certificate.
        certificate: std::path::PathBuf,
        /// The file of its key.
        key: std::path::PathBuf,
        /// What is wrong.
        source: tonic::transport::Error,
    },
    /// The transport failed.
    Transport(tonic::transport::Error),
    /// The services cannot describe themselves.
    Reflection(String),
    /// The store could not be closed in order. What was acknowledged is safe; the next opening recovers.
    Close(quipu_storage::Error),
    /// The store did not close within the time: the disk does not answer.
    CloseTimedOut,
}

impl std::fmt::Display for ServeError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(invalid) => invalid.fmt(f),
            Self::Certificate { path, .. } => write!(f, "cannot read {}", path.display()),
            Self::NoCertificate { path } => {
                write!(f, "{} holds no certificate: it must be a PEM file", path.display())
            }
            Self::Tls { certificate, key, .. } => {
                write!(f, "cannot use certificate {} with key {}", certificate.display(), key.display())
            }
            Self::Transport(_) => f.write_str("the transport failed"),
            Self::Reflection(detail) => write!(f, "the services cannot describe themselves: {detail}"),
            Self::Close(_) => f.write_str("the store was not closed in order"),
            Self::CloseTimedOut => f.write_str("the store did not close in time: the disk does not answer"),
        }
    }
}

impl std::error::Error for ServeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Config(invalid) => Some(invalid),
            Self::Certificate { source, .. } => Some(source),
            Self::Tls { source, .. } | Self::Transport(source) => Some(source),
            Self::Close(source) => Some(source),
            Self::NoCertificate { .. } | Self::Reflection(_) | Self::CloseTimedOut => None,
        }
    }
}

/// Reads certificates and keys, if the configuration has some, and refuses what [`serve`] would refuse: for whoever wants
/// to know before opening a store.
///
/// # Errors
/// [`ServeError::Certificate`], [`ServeError::NoCertificate`] and [`ServeError::Tls`].
pub async fn check_certificates(config: &Config) -> Result<(), ServeError> {
    match config.tls.clone() {
        Some(tls) => with_tls(Server::builder(), tls).await.map(drop),
        None => Ok(()),
    }
}

/// Serves `store` until `shutdown` resolves, and closes it. Takes at most twice [`Config::drain_time_max`] and a second from
/// there, also if the disk does not answer.
///
/// # Errors
/// See [`ServeError`]. The store is closed in any case, unless the configuration was refused.
pub async fn serve(
    listeners: impl Into<Listeners>,
    store: Store,
    config: Config,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    config.check().map_err(ServeError::Config)?;
    let listeners = listeners.into();
    let drain_time_max = config.drain_time_max;
    let shared = Shared::new(store, config);
    // Until the end, so that it can be seen that the server is going down.
    let metrics =
        listeners.metrics.map(|listener| tokio::spawn(crate::http::serve(listener, Arc::clone(&shared))));
    let served = run(listeners.grpc, &shared, shutdown).await;
    let store = shared.store.clone();
    let closing = tokio::task::spawn_blocking(move || store.close());
    let closed = match tokio::time::timeout(drain_time_max, closing).await {
        Ok(Ok(closed)) => closed.map_err(ServeError::Close),
        Ok(Err(_)) | Err(_) => Err(ServeError::CloseTimedOut),
    };
    match &closed {
        Ok(()) => tracing::info!("store closed"),
        Err(error) => tracing::error!(%error, "store not closed"),
    }
    if let Some(metrics) = metrics {
        metrics.abort();
    }
    served.and(closed)
}

async fn run(
    listener: TcpListener,
    shared: &Arc<Shared>,
    shutdown: impl Future<Output = ()>,
) -> Result<(), ServeError> {
    let config = &shared.config;
    let window = |bytes: usize| u32::try_from(bytes).unwrap_or(u32::MAX);
    let streams = u32::try_from(config.streams_max.saturating_add(STREAMS_BEYOND)).unwrap_or(u32::MAX);
    let mut server = Server::builder()
        .accept_http1(true)
        .initial_stream_window_size(window(config.stream_window_bytes))
        .initial_connection_window_size(window(config.connection_window_bytes))
        .max_frame_size(FRAME_BYTES_MAX)
        .max_concurrent_streams(streams)
        .http2_keepalive_interval(Some(config.keepalive_interval))
        .http2_keepalive_timeout(Some(config.keepalive_timeout));
    if let Some(tls) = config.tls.clone() {
        server = with_tls(server, tls).await?;
    }
    let (health, health_service) = tonic_health::server::health_reporter();
    let log = Log { shared: Arc::clone(shared) };
    let topics = TopicServiceServer::new(Topics { shared: Arc::clone(shared) })
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let producers = ProducerServiceServer::new(Producers { shared: Arc::clone(shared) })
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let snapshots = Snapshots { shared: Arc::clone(shared) };
    let admin = AdminServiceServer::new(Admin { shared: Arc::clone(shared) })
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let erasure = ErasureServiceServer::new(Erasure { shared: Arc::clone(shared) })
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let reflection = if config.reflection { Some(reflection()?) } else { None };
    let router = server
        .layer(CorsLayer { origins: config.web_origins.clone().into() })
        .layer(tonic_web::GrpcWebLayer::new())
        .layer(EdgeLayer { shared: Arc::clone(shared) })
        .add_service(log)
        .add_service(topics)
        .add_service(producers)
        .add_service(snapshots)
        .add_service(admin)
        .add_service(erasure)
        .add_service(health_service)
        .add_optional_service(reflection);

    set_health(&health, ServingStatus::Serving).await;
    if let Ok(address) = listener.local_addr() {
        tracing::info!(%address, tls = config.tls.is_some(), "serving");
    }
    let connections = Connections::new(shared);
    let (stop, stopped) = oneshot::channel::<()>();
    let stopped = async move {
        let _ = stopped.await;
    };
    let serving = router.serve_with_incoming_shutdown(connections.incoming(listener), stopped);
    let mut serving = std::pin::pin!(serving);
    tokio::select! {
        outcome = &mut serving => return outcome.map_err(ServeError::Transport),
        () = shutdown => {}
    }

    tracing::info!("draining");
    set_health(&health, ServingStatus::NotServing).await;
    shared.start_draining();
    // The other end is gone only if serving has ended.
    let _ = stop.send(());
    if let Ok(outcome) = tokio::time::timeout(config.drain_time_max, &mut serving).await {
        return outcome.map_err(ServeError::Transport);
    }
    let closed = connections.close_all();
    tracing::warn!(connections = closed, "closed connections whose calls did not end in time");
    // They end by themselves now; if one hangs, it hangs without us.
    let _ = tokio::time::timeout(CLOSING_FOR, serving).await;
    Ok(())
}

async fn set_health(health: &HealthReporter, status: ServingStatus) {
    for service in [
        "",
        "quipu.v1.LogService",
        "quipu.v1.TopicService",
        "quipu.v1.ProducerService",
        "quipu.v1.ErasureService",
        "quipu.v1.SnapshotService",
        "quipu.v1.AdminService",
    ] {
        health.set_service_status(service, status).await;
    }
}

fn reflection() -> Result<ServerReflectionServer<impl ServerReflection>, ServeError> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(quipu_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .map_err(|error| ServeError::Reflection(error.to_string()))
}

async fn with_tls(server: Server, tls: Tls) -> Result<Server, ServeError> {
    let (certificate, key) = (tls.certificate.clone(), tls.key.clone());
    let config = certificates(tls).await?;
    server.tls_config(config).map_err(|source| ServeError::Tls { certificate, key, source })
}

async fn certificates(tls: Tls) -> Result<ServerTlsConfig, ServeError> {
    let read = |path: std::path::PathBuf| async move {
        match tokio::task::spawn_blocking(move || std::fs::read(&path).map_err(|source| (path, source))).await
        {
            Ok(Ok(bytes)) => Ok(bytes),
            Ok(Err((path, source))) => Err(ServeError::Certificate { path, source }),
            Err(error) => {
                Err(ServeError::Certificate { path: "?".into(), source: io::Error::other(error.to_string()) })
            }
        }
    };
    // The library takes such a file for one with no certificates in it, and says something about another.
    let read_certificates = |path: std::path::PathBuf| async move {
        let pem = read(path.clone()).await?;
        let begin = b"-----BEGIN CERTIFICATE-----";
        let has_one = pem.windows(begin.len()).any(|window| window == begin);
        if has_one { Ok(pem) } else { Err(ServeError::NoCertificate { path }) }
    };
    let identity = Identity::from_pem(read_certificates(tls.certificate).await?, read(tls.key).await?);
    let mut config = ServerTlsConfig::new().identity(identity);
    if let Some(client_ca) = tls.client_ca {
        config = config.client_ca_root(Certificate::from_pem(read_certificates(client_ca).await?));
    }
    Ok(config)
}
