//! Every setting of a server: name, type, default and meaning. Bounds are checked by those who use them.

use std::net::SocketAddr;
use std::path::PathBuf;

use quipu_server::{Config, Tls};
use quipu_storage::StoreSettings;

use super::Values;
use super::origins::Origins;
use crate::exit::Result;
use crate::units::{OrNone, Size, Span};

/// How logs are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    /// For a person.
    Human,
    /// A line of JSON for each event.
    Json,
}

impl std::str::FromStr for LogFormat {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            _ => Err("it must be human or json"),
        }
    }
}

/// A directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Dir(pub(crate) PathBuf);

impl std::str::FromStr for Dir {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, &'static str> {
        if text.is_empty() { Err("it must name a directory") } else { Ok(Self(text.into())) }
    }
}

macro_rules! settings {
    ($($doc:literal [$($arg:tt)*] $name:ident: $type:ty = $default:literal;)*) => {
        /// The settings that were given as flags.
        #[derive(Clone, Debug, Default, clap::Args)]
        #[command(next_help_heading = "Settings, also in the file")]
        pub(crate) struct Flags {
            $(
                #[doc = $doc]
                #[arg($($arg)*)]
                pub(crate) $name: Option<String>,
            )*
        }

        impl Flags {
            /// Names and values of those that were given.
            pub(super) fn given(&self) -> impl Iterator<Item = (&'static str, &str)> {
                [$((stringify!($name), self.$name.as_deref())),*]
                    .into_iter()
                    .filter_map(|(name, value)| Some((name, value?)))
            }
        }

        /// The settings in effect.
        #[derive(Clone, Debug)]
        pub(crate) struct Settings {
            $(pub(crate) $name: $type,)*
        }

        impl Settings {
            pub(super) fn from_values(values: &Values) -> Result<Self> {
                Ok(Self { $($name: values.parse(stringify!($name))?,)* })
            }
        }

        /// Name and default of each setting.
        pub(super) const NAMES: &[(&str, &str)] = &[$((stringify!($name), $default)),*];

        /// What `--help` says of each.
        pub(super) const HELP: &[(&str, &str)] = &[$((stringify!($name), $doc)),*];
    };
}

settings! {
    "The directory of the store; made if there is none" [skip]
    data: Dir = "quipu-data";
    "The master key that payloads are sealed with, a file outside of the store; none: nothing is sealed" [skip]
    master_key: OrNone<PathBuf> = "none";
    "Make the master key if there is none and the store has none" [skip]
    create_master_key: bool = "false";
    "Address and port for clients" [long, value_name = "ADDRESS"]
    listen: SocketAddr = "127.0.0.1:7878";
    "Address and port for Prometheus, over plain HTTP; none: no metrics" [long, value_name = "ADDRESS"]
    metrics_listen: OrNone<SocketAddr> = "none";
    "Listen on other addresses than this machine's own without TLS" [long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true"]
    insecure: bool = "false";
    "The server's certificate, and those that lead from it to a root (PEM)" [long, value_name = "FILE"]
    tls_certificate: OrNone<PathBuf> = "none";
    "Its private key (PEM)" [long, value_name = "FILE"]
    tls_key: OrNone<PathBuf> = "none";
    "Who signs clients' certificates (PEM); a client without one is refused" [long, value_name = "FILE"]
    tls_client_ca: OrNone<PathBuf> = "none";
    "human or json" [long, value_name = "FORMAT"]
    log_format: LogFormat = "human";
    "Which events are logged: a level, or module=level,..." [long, value_name = "FILTER"]
    log_filter: String = "info";
    "Most open connections" [long, value_name = "N"]
    connections_max: usize = "1024";
    "Most open streams of a connection, calls included" [long, value_name = "N"]
    streams_max: usize = "256";
    "Most subscriptions of a topic" [long, value_name = "N"]
    subscriptions_max: usize = "10000";
    "Bytes of appends that may be on their way at a time; three quarters are for sessions" [long, value_name = "SIZE"]
    append_bytes_in_flight_max: Size = "64MiB";
    "Bytes of a connection's requests that have come in part only" [long, value_name = "SIZE"]
    connection_request_bytes_max: Size = "64MiB";
    "Bytes that an append session may have unanswered" [long, value_name = "SIZE"]
    session_bytes_max: Size = "8MiB";
    "About how many bytes of records go into one response" [long, value_name = "SIZE"]
    response_bytes: Size = "256KiB";
    "Reads of the disk that run at a time" [long, value_name = "N"]
    reads_max: usize = "16";
    "HTTP/2 window of a stream" [long, value_name = "SIZE"]
    stream_window_bytes: Size = "4MiB";
    "HTTP/2 window of a connection" [long, value_name = "SIZE"]
    connection_window_bytes: Size = "8MiB";
    "How often a silent connection is pinged" [long, value_name = "DURATION"]
    keepalive_interval: Span = "20s";
    "How long the answer to that may take" [long, value_name = "DURATION"]
    keepalive_timeout: Span = "20s";
    "Within which time a client has to begin to speak on its connection" [long, value_name = "DURATION"]
    handshake_time_max: Span = "10s";
    "How long a client may stop in the middle of a request" [long, value_name = "DURATION"]
    request_stall_time_max: Span = "30s";
    "How long a connection may be without calls" [long, value_name = "DURATION"]
    connection_idle_max: Span = "10m";
    "How long a shutdown waits for calls to end, and then for the store to close; at least 10ms" [long, value_name = "DURATION"]
    drain_time_max: Span = "10s";
    "Origins whose pages may use gRPC-web, with commas between them, or *; none: no other page" [long, value_name = "ORIGINS"]
    web_origins: OrNone<Origins> = "none";
    "Whether the services describe themselves (gRPC reflection)" [long, value_name = "BOOL"]
    reflection: bool = "true";
    "Topics that have metrics of their own" [long, value_name = "N"]
    metrics_topics_max: usize = "1000";
    "Size of a journal file; bounds an append" [long, value_name = "SIZE"]
    journal_file_bytes: Size = "16MiB";
    "Most bytes of all journal files; bounds the time to open after a crash" [long, value_name = "SIZE"]
    journal_bytes_max: Size = "256MiB";
    "How long a written append may stay unsynced" [long, value_name = "DURATION"]
    sync_interval: Span = "100ms";
    "How often a checkpoint is made" [long, value_name = "DURATION"]
    checkpoint_interval: Span = "30s";
    "How often retention looks for what may go" [long, value_name = "DURATION"]
    retention_interval: Span = "10s";
    "Most bytes of recent records in memory" [long, value_name = "SIZE"]
    tail_bytes_max: Size = "64MiB";
    "Most bytes of an append" [long, value_name = "SIZE"]
    append_bytes_max: Size = "8MiB";
    "Most records of an append" [long, value_name = "N"]
    append_records_max: u64 = "100000";
    "Most topics" [long, value_name = "N"]
    topics_max: u64 = "100000";
    "Most named producers, which are known until they are forgotten" [long, value_name = "N"]
    producers_max: u64 = "10000";
    "Most segments that are kept mapped for reading" [long, value_name = "N"]
    maps_max: u64 = "4096";
    "Most segment files that are kept open for writing" [long, value_name = "N"]
    open_files_max: u64 = "128";
    "Retention also runs when less is free on the disk" [long, value_name = "SIZE"]
    free_bytes_min: Size = "256MiB";
    "Size of a file that is given up on a full disk" [long, value_name = "SIZE"]
    reserve_bytes: Size = "1MiB";
}

fn bytes(size: Size) -> usize {
    usize::try_from(size.0).unwrap_or(usize::MAX)
}

impl Settings {
    /// How the store is opened.
    pub(crate) fn store(&self) -> StoreSettings {
        StoreSettings {
            journal_file_bytes: self.journal_file_bytes.0,
            journal_bytes_max: self.journal_bytes_max.0,
            sync_interval: self.sync_interval.0,
            checkpoint_interval: self.checkpoint_interval.0,
            retention_interval: self.retention_interval.0,
            tail_bytes_max: self.tail_bytes_max.0,
            append_bytes_max: self.append_bytes_max.0,
            append_records_max: self.append_records_max,
            topics_max: self.topics_max,
            producers_max: self.producers_max,
            maps_max: self.maps_max,
            open_files_max: self.open_files_max,
            free_bytes_min: self.free_bytes_min.0,
            reserve_bytes: self.reserve_bytes.0,
            background: true,
        }
    }

    /// How the server runs.
    ///
    /// # Errors
    /// A certificate without a key, or the other way round.
    pub(crate) fn server(&self, values: &Values) -> Result<Config> {
        let client_ca = self.tls_client_ca.clone().value();
        let tls = match (self.tls_certificate.clone().value(), self.tls_key.clone().value()) {
            (Some(certificate), Some(key)) => Some(Tls { certificate, key, client_ca }),
            (None, None) if client_ca.is_none() => None,
            (certificate, key) => {
                let given = match (certificate, key) {
                    (Some(_), _) => "tls_certificate",
                    (_, Some(_)) => "tls_key",
                    (None, None) => "tls_client_ca",
                };
                return Err(values.refuse(given, "TLS needs both tls_certificate and tls_key"));
            }
        };
        Ok(Config {
            connections_max: self.connections_max,
            streams_max: self.streams_max,
            subscriptions_max: self.subscriptions_max,
            append_bytes_in_flight_max: bytes(self.append_bytes_in_flight_max),
            connection_request_bytes_max: bytes(self.connection_request_bytes_max),
            session_bytes_max: bytes(self.session_bytes_max),
            response_bytes: bytes(self.response_bytes),
            reads_max: self.reads_max,
            stream_window_bytes: bytes(self.stream_window_bytes),
            connection_window_bytes: bytes(self.connection_window_bytes),
            keepalive_interval: self.keepalive_interval.0,
            keepalive_timeout: self.keepalive_timeout.0,
            handshake_time_max: self.handshake_time_max.0,
            request_stall_time_max: self.request_stall_time_max.0,
            connection_idle_max: self.connection_idle_max.0,
            drain_time_max: self.drain_time_max.0,
            tls,
            web_origins: self.web_origins.clone().value().map_or_else(Vec::new, |Origins(origins)| origins),
            reflection: self.reflection,
            metrics_topics_max: self.metrics_topics_max,
        })
    }
}
