//! How a client connects and what it allows: plain data, each with its default and unit.

use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::client::Client;
use crate::error::{Error, Result, chain};
use crate::retry::{Backoff, Retry};

/// Largest HTTP/2 frame that the server may send. Each takes its sender and us a call of the system at least; with the
/// 16 KiB that HTTP/2 begins with, these calls cost more than the records.
const FRAME_BYTES_MAX: u32 = 256 << 10;

/// Connects to a server; made by [`Client::builder`].
///
/// ```no_run
/// # async fn example() -> quipu_client::Result<()> {
/// use std::time::Duration;
///
/// let client = quipu_client::Client::builder("https://events.example:7878")
///     .connect_timeout(Duration::from_secs(3))
///     .certificate_authority(std::fs::read("ca.pem").unwrap())
///     .connect()
///     .await?;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    url: String,
    pub(crate) settings: Settings,
    connect_timeout: Duration,
    keepalive_interval: Duration,
    keepalive_timeout: Duration,
    stream_window_bytes: u32,
    connection_window_bytes: u32,
    tls: Option<ClientTlsConfig>,
}

/// What outlives the connecting.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) retry: Retry,
    pub(crate) request_timeout: Duration,
    pub(crate) message_bytes_max: usize,
}

impl ClientBuilder {
    pub(crate) fn new(url: String) -> Self {
        Self {
            url,
            settings: Settings {
                retry: Retry::default(),
                request_timeout: Duration::from_secs(30),
                message_bytes_max: 72 << 20,
            },
            connect_timeout: Duration::from_secs(5),
            keepalive_interval: Duration::from_secs(10),
            keepalive_timeout: Duration::from_secs(10),
            stream_window_bytes: 4 << 20,
            connection_window_bytes: 1 << 30,
            tls: None,
        }
    }

    /// How long one attempt to connect may take. 5 s.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// How long a unary call may take, each try of it. 30 s. Streams are watched by their heartbeats instead.
    #[must_use]
    pub fn request_timeout(mut self, timeout: Duration) -> Self {
        self.settings.request_timeout = timeout;
        self
    }

    /// When and for how long to try again.
    #[must_use]
    pub fn retry(mut self, retry: Retry) -> Self {
        self.settings.retry = retry;
        self
    }

    /// HTTP/2 pings go out so often, also while nothing else does. 10 s. A connection that does not answer one within
    /// `timeout` is given up. 10 s.
    #[must_use]
    pub fn keepalive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.keepalive_interval = interval;
        self.keepalive_timeout = timeout;
        self
    }

    /// How many bytes the server may send ahead of what the caller has taken: on one stream (4 MiB) and on all streams
    /// together (1 GiB). What a stream has sent ahead waits in memory. A subscription that nobody reads keeps as much of
    /// the second as the first allows, so the second bounds how many such there can be before the others stop, too.
    #[must_use]
    pub fn windows(mut self, stream_bytes: u32, connection_bytes: u32) -> Self {
        self.stream_window_bytes = stream_bytes;
        self.connection_window_bytes = connection_bytes;
        self
    }

    /// Largest message that is accepted from the server. 72 MiB, which is beyond the largest append that a server can be
    /// set to take.
    #[must_use]
    pub fn message_bytes_max(mut self, bytes: usize) -> Self {
        self.settings.message_bytes_max = bytes;
        self
    }

    /// Trusts the servers that this authority vouches for: certificates in PEM. Needed for `https` URLs.
    #[must_use]
    pub fn certificate_authority(mut self, pem: impl AsRef<[u8]>) -> Self {
        let tls = self.tls.unwrap_or_default();
        self.tls = Some(tls.ca_certificate(Certificate::from_pem(pem)));
        self
    }

    /// Shows this certificate to the server: certificate and key in PEM.
    #[must_use]
    pub fn identity(mut self, certificate_pem: impl AsRef<[u8]>, key_pem: impl AsRef<[u8]>) -> Self {
        let tls = self.tls.unwrap_or_default();
        self.tls = Some(tls.identity(Identity::from_pem(certificate_pem, key_pem)));
        self
    }

    /// The name that the server's certificate must bear, if it is not the host of the URL.
    #[must_use]
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        let tls = self.tls.unwrap_or_default();
        self.tls = Some(tls.domain_name(name));
        self
    }

    /// Connects, with as many tries as [`retry`](Self::retry) allows.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL or certificates that cannot be used, [`Error::Connect`] if nobody answers.
    pub async fn connect(self) -> Result<Client> {
        let endpoint = self.endpoint()?;
        let mut backoff = Backoff::new(self.settings.retry);
        loop {
            match endpoint.connect().await {
                Ok(channel) => return Ok(self.client(channel)),
                Err(error) => backoff.wait(Error::Connect { message: chain(&error) }).await?,
            }
        }
    }

    /// A client that connects when it is first used. To be called within a tokio runtime.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a URL or certificates that cannot be used.
    pub fn connect_lazy(self) -> Result<Client> {
        let channel = self.endpoint()?.connect_lazy();
        Ok(self.client(channel))
    }

    fn client(self, channel: Channel) -> Client {
        Client::new(channel, self.settings)
    }

    fn endpoint(&self) -> Result<Endpoint> {
        let invalid = |error: tonic::transport::Error| Error::Invalid {
            message: format!("cannot use {}: {}", self.url, chain(&error)),
            violations: Vec::new(),
        };
        // Without a scheme the authority would be taken for one.
        let url = if self.url.contains("://") { self.url.clone() } else { format!("http://{}", self.url) };
        let endpoint = Endpoint::from_shared(url)
            .map_err(invalid)?
            .connect_timeout(self.connect_timeout)
            .http2_keep_alive_interval(self.keepalive_interval)
            .keep_alive_timeout(self.keepalive_timeout)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(self.stream_window_bytes)
            .initial_connection_window_size(self.connection_window_bytes)
            .max_frame_size(FRAME_BYTES_MAX)
            .tcp_nodelay(true);
        match (&self.tls, endpoint.uri().scheme_str()) {
            (Some(tls), _) => endpoint.tls_config(tls.clone()).map_err(invalid),
            (None, Some("https")) => endpoint.tls_config(ClientTlsConfig::new()).map_err(invalid),
            (None, _) => Ok(endpoint),
        }
    }
}
