//! A server on a socket of its own, over a store in a directory of its own, and clients made from the proto files.

use std::net::SocketAddr;
use std::time::Duration;

use quipu_proto::v1 as pb;
use quipu_proto::v1::log_service_client::LogServiceClient;
use quipu_proto::v1::topic_service_client::TopicServiceClient;
use quipu_server::{Config, Listeners, ServeError, serve};
use quipu_storage::{Store, StoreBuilder, StoreSettings};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Longer than anything here takes, however busy the machine is: a test that hangs fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    /// Where the metrics are.
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) store: Store,
    pub(crate) dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Config::default(), Store::builder()).await
    }

    pub(crate) async fn with_settings(settings: StoreSettings) -> Self {
        Self::with(Config::default(), Store::builder().settings(settings)).await
    }

    pub(crate) async fn start_with_metrics() -> Self {
        Self::with_metrics(Config::default()).await
    }

    pub(crate) async fn with_metrics(config: Config) -> Self {
        Self::with_metrics_and(config, Store::builder()).await
    }

    pub(crate) async fn with_metrics_and(config: Config, store: StoreBuilder) -> Self {
        let metrics = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self::build(config, store, Some(metrics)).await
    }

    pub(crate) async fn with(config: Config, store: StoreBuilder) -> Self {
        Self::build(config, store, None).await
    }

    async fn build(config: Config, store: StoreBuilder, metrics: Option<TcpListener>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = store.open(dir.path().join("data")).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async move {
            let _ = stopped.await;
        };
        let metrics_address = metrics.as_ref().map(|listener| listener.local_addr().unwrap());
        let listeners = Listeners { grpc: listener, metrics };
        let task = tokio::spawn(serve(listeners, store.clone(), config, shutdown));
        Self { address, metrics: metrics_address, store, dir, stop: Some(stop), task }
    }

    pub(crate) async fn channel(&self) -> Channel {
        endpoint(self.address).connect().await.unwrap()
    }

    pub(crate) async fn log(&self) -> LogServiceClient<Channel> {
        LogServiceClient::new(self.channel().await).max_decoding_message_size(64 << 20)
    }

    pub(crate) async fn topics(&self) -> TopicServiceClient<Channel> {
        TopicServiceClient::new(self.channel().await)
    }

    /// A topic with default settings.
    pub(crate) async fn create(&self, name: &str) -> pb::Topic {
        self.create_with(name, pb::TopicSettings::default()).await
    }

    pub(crate) async fn create_with(&self, name: &str, settings: pb::TopicSettings) -> pb::Topic {
        let request = pb::CreateTopicRequest { name: name.into(), settings: Some(settings) };
        self.topics().await.create_topic(request).await.unwrap().into_inner().topic.unwrap()
    }

    /// The value of a metric without labels.
    pub(crate) async fn metric(&self, name: &str) -> u64 {
        let text = http_get(self.metrics.unwrap(), "/metrics").await;
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
    }

    /// Lets the server begin to go down.
    pub(crate) fn begin_stop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
    }

    /// Waits until the server is down.
    pub(crate) async fn stop(mut self) -> Result<tempfile::TempDir, ServeError> {
        self.begin_stop();
        tokio::time::timeout(PATIENCE, self.task).await.expect("it stops").expect("no panic")?;
        Ok(self.dir)
    }
}

/// What plain HTTP answers there, its head included.
pub(crate) async fn http_get(address: SocketAddr, path: &str) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut text = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    text
}

pub(crate) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .initial_stream_window_size(4 << 20)
        .initial_connection_window_size(8 << 20)
}

/// A record with a payload only.
pub(crate) fn record(payload: impl Into<Vec<u8>>) -> pb::Record {
    pb::Record { payload: Some(payload.into().into()), ..Default::default() }
}

/// A record of a key.
pub(crate) fn keyed(key: &str, payload: &str) -> pb::Record {
    pb::Record { key: Some(key.as_bytes().to_vec().into()), ..record(payload) }
}

/// An append to one topic.
pub(crate) fn append(topic: &str, records: Vec<pb::Record>) -> pb::AppendRequest {
    let part = pb::TopicAppend { topic: topic.into(), records, records_crc: None, fencing_token: None };
    pb::AppendRequest { appends: vec![part], ..Default::default() }
}

/// Where to start.
pub(crate) fn at(position: pb::start_position::Position) -> Option<pb::StartPosition> {
    Some(pb::StartPosition { position: Some(position) })
}

/// Offset and payload of each record, after a look at the checksum.
pub(crate) fn contents(batch: &pb::RecordBatch) -> Vec<(u64, String)> {
    use prost::Message;
    let encoded = pb::RecordBatch { records: batch.records.clone(), ..Default::default() }.encode_to_vec();
    assert_eq!(batch.records_crc, Some(crc32fast::hash(&encoded)), "the checksum of the records");
    assert!(!batch.records.is_empty(), "a batch is never empty");
    let offset = |index: usize| match batch.offsets.get(index) {
        Some(offset) => *offset,
        None => batch.first_offset + index as u64,
    };
    let text =
        |record: &pb::Record| String::from_utf8(record.payload.clone().unwrap_or_default().into()).unwrap();
    batch.records.iter().enumerate().map(|(index, record)| (offset(index), text(record))).collect()
}

/// All that a read brings: records, gaps, and the end.
pub(crate) async fn read_all(
    log: &mut LogServiceClient<Channel>,
    request: pb::ReadRequest,
) -> Result<(Vec<(u64, String)>, Vec<pb::Gap>, pb::ReadEnd), Status> {
    use pb::read_response::Event;
    let mut stream = log.read(request).await?.into_inner();
    let (mut records, mut gaps, mut end) = (Vec::new(), Vec::new(), None);
    while let Some(response) = stream.message().await? {
        assert!(end.is_none(), "nothing comes behind the end");
        match response.event.unwrap() {
            Event::Batches(batches) => {
                batches.batches.iter().for_each(|batch| records.extend(contents(batch)))
            }
            Event::Gap(gap) => gaps.push(gap),
            Event::End(read_end) => end = Some(read_end),
        }
    }
    Ok((records, gaps, end.expect("a read ends with its end")))
}

/// Code, reason and outcome of an error.
pub(crate) fn reason(status: &Status) -> (Code, String, String) {
    let info = status.get_details_error_info().unwrap_or_else(|| panic!("no ErrorInfo: {status:?}"));
    assert_eq!(info.domain, "quipu");
    (status.code(), info.reason, info.metadata["outcome"].clone())
}

#[track_caller]
pub(crate) fn assert_reason(status: &Status, code: Code, reason_wanted: &str, outcome: &str) {
    assert_eq!(reason(status), (code, reason_wanted.to_owned(), outcome.to_owned()), "{status:?}");
}

/// A value of an error's metadata.
pub(crate) fn metadata(status: &Status, name: &str) -> String {
    status.get_details_error_info().unwrap().metadata.get(name).cloned().unwrap_or_default()
}

/// The fields that a request got wrong.
pub(crate) fn fields(status: &Status) -> Vec<String> {
    let details = status.get_details_bad_request().map(|bad| bad.field_violations).unwrap_or_default();
    details.into_iter().map(|violation| violation.field).collect()
}
