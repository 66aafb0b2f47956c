//! How a server runs: plain data, each value with its default, unit and bounds.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;

/// Settings of a server.
///
/// They bound the memory that clients can make it use. Of one connection that is at most:
///
/// | What | Bytes |
/// |---|---|
/// | requests that the server has not taken yet | `connection_window_bytes` |
/// | requests that have come in part | `connection_request_bytes_max` |
/// | each subscription or read that is not read by its client | about 2 responses (`response_bytes`, or one record that is larger) and 400 KiB |
/// | each append session | one message, and about 1 MiB if its client takes no answers; what it has sent is in the store's memory, which is bounded there |
///
/// All appends together have `append_bytes_in_flight_max` on their way, beside the one message of each session that waits
/// for room.
///
/// A response that comes from the disk lies in the page cache until it is put on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Most open connections. 1,024. Those beyond are told so and closed.
    pub connections_max: usize,
    /// Most open streams of one connection, calls included. 256.
    pub streams_max: usize,
    /// Most subscriptions of one topic. 10,000.
    pub subscriptions_max: usize,
    /// Bytes of appends that may be on their way at a time, over all calls and sessions. A unary call beyond is refused
    /// as OVERLOADED; a session waits for its turn. Sessions together get three quarters of it. 64 MiB. At least as much
    /// as one append may have.
    pub append_bytes_in_flight_max: usize,
    /// Bytes of requests of one connection that have come in part only; a stream beyond is refused as OVERLOADED. 64 MiB.
    /// At least as much as one message may have.
    pub connection_request_bytes_max: usize,
    /// Bytes that an append session is granted to have unanswered. 8 MiB.
    pub session_bytes_max: usize,
    /// About how many bytes of records go into one response. 256 KiB; 4 KiB to 2 MiB.
    pub response_bytes: usize,
    /// Reads of the disk that run at a time; others wait. 16.
    pub reads_max: usize,
    /// How much a client may send ahead on one stream before the server has taken it (HTTP/2 window). 4 MiB.
    pub stream_window_bytes: usize,
    /// The same for all streams of a connection together. 8 MiB.
    pub connection_window_bytes: usize,
    /// How often a silent connection is pinged. 20 s.
    pub keepalive_interval: Duration,
    /// How long the answer to that may take before the connection is closed. 20 s.
    pub keepalive_timeout: Duration,
    /// Within which time a client has to begin: to end the handshake of TLS, to send the settings of HTTP/2, or to send a
    /// request. 10 s.
    pub handshake_time_max: Duration,
    /// How long a client may stop in the middle of a request before the call is ended. 30 s.
    pub request_stall_time_max: Duration,
    /// How long a connection may be without calls before it is closed. 10 min.
    pub connection_idle_max: Duration,
    /// How long a shutdown waits for calls to end, before it closes their connections, and then for the store to close.
    /// 10 s. At least 10 ms.
    pub drain_time_max: Duration,
    /// Certificates. None: plain text.
    pub tls: Option<Tls>,
    /// Origins whose pages may use gRPC-web, such as `https://console.example.com`, or `*` for all. None: pages that
    /// come from elsewhere cannot read answers.
    pub web_origins: Vec<String>,
    /// Whether the services describe themselves (gRPC reflection). `true`.
    pub reflection: bool,
    /// Topics that have metrics of their own; the others are counted together. 1,000.
    pub metrics_topics_max: usize,
}

/// Certificates, in PEM files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The server's certificate, and those that lead from it to a root.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// Who signs the certificates of clients. If given, a client without one is refused.
    pub client_ca: Option<PathBuf>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            streams_max: 256,
            subscriptions_max: 10_000,
            append_bytes_in_flight_max: 64 * MIB,
            connection_request_bytes_max: 64 * MIB,
            session_bytes_max: 8 * MIB,
            response_bytes: 256 * KIB,
            reads_max: 16,
            stream_window_bytes: 4 * MIB,
            connection_window_bytes: 8 * MIB,
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(20),
            handshake_time_max: Duration::from_secs(10),
            request_stall_time_max: Duration::from_secs(30),
            connection_idle_max: Duration::from_secs(600),
            drain_time_max: Duration::from_secs(10),
            tls: None,
            web_origins: Vec::new(),
            reflection: true,
            metrics_topics_max: 1000,
        }
    }
}

/// A setting that is out of its bounds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidConfig {
    /// The setting.
    pub setting: &'static str,
    /// What it must be.
    pub rule: &'static str,
}

impl std::fmt::Display for InvalidConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} must be {}", self.setting, self.rule)
    }
}

impl std::error::Error for InvalidConfig {}

impl Config {
    /// Checks every bound.
    ///
    /// # Errors
    /// The first setting that is out of its bounds.
    pub fn check(&self) -> Result<(), InvalidConfig> {
        let within = |setting, value: usize, min: usize, max: usize, rule| {
            if (min..=max).contains(&value) { Ok(()) } else { Err(InvalidConfig { setting, rule }) }
        };
        let million = 1_000_000;
        within("connections_max", self.connections_max, 1, million, "1 to 1,000,000")?;
        within("streams_max", self.streams_max, 1, million, "1 to 1,000,000")?;
        within("subscriptions_max", self.subscriptions_max, 1, million, "1 to 1,000,000")?;
        let (most, rule) = (1 << 30, "64 KiB to 1 GiB");
        within("append_bytes_in_flight_max", self.append_bytes_in_flight_max, 64 * KIB, most, rule)?;
        within("connection_request_bytes_max", self.connection_request_bytes_max, 64 * KIB, most, rule)?;
        within("session_bytes_max", self.session_bytes_max, 64 * KIB, most, rule)?;
        within("stream_window_bytes", self.stream_window_bytes, 64 * KIB, most, rule)?;
        within("connection_window_bytes", self.connection_window_bytes, 64 * KIB, most, rule)?;
        within("response_bytes", self.response_bytes, 4 * KIB, 2 * MIB, "4 KiB to 2 MiB")?;
        within("reads_max", self.reads_max, 1, 256, "1 to 256")?;
        for (setting, value) in [
            ("keepalive_interval", self.keepalive_interval),
            ("keepalive_timeout", self.keepalive_timeout),
            ("handshake_time_max", self.handshake_time_max),
            ("request_stall_time_max", self.request_stall_time_max),
            ("connection_idle_max", self.connection_idle_max),
            // The store is closed within it as well: with no time at all it never would be in order.
            ("drain_time_max", self.drain_time_max),
        ] {
            let (least, most) = (Duration::from_millis(10), Duration::from_secs(24 * 3600));
            if !(least..=most).contains(&value) {
                return Err(InvalidConfig { setting, rule: "10 ms to 24 h" });
            }
        }
        within("metrics_topics_max", self.metrics_topics_max, 0, 100_000, "0 to 100,000")
    }
}

/// Whether a server may listen on `address`: on this machine always; elsewhere only with certificates, or if the operator
/// says that he wants it without (`is_insecure`).
///
/// # Errors
/// What to do about it.
pub fn check_listen_address(
    address: IpAddr,
    has_tls: bool,
    is_insecure: bool,
) -> Result<(), ListenAddressRefused> {
    if address.to_canonical().is_loopback() || has_tls || is_insecure {
        Ok(())
    } else {
        Err(ListenAddressRefused { address })
    }
}

/// Others could reach the address, and nothing protects the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenAddressRefused {
    /// The address.
    pub address: IpAddr,
}

impl std::fmt::Display for ListenAddressRefused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} can be reached from other machines, and without TLS everybody there can read and write: give a \
             certificate and a key, or say --insecure",
            self.address
        )
    }
}

impl std::error::Error for ListenAddressRefused {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_others_can_reach_needs_certificates_or_the_operators_word() {
        for (address, has_tls, is_insecure, is_fine) in [
            ("127.0.0.1", false, false, true),
            ("::1", false, false, true),
            ("::ffff:127.0.0.1", false, false, true),
            ("0.0.0.0", false, false, false),
            ("::", false, false, false),
            ("192.168.1.7", false, false, false),
            ("0.0.0.0", true, false, true),
            ("0.0.0.0", false, true, true),
        ] {
            let parsed = address.parse().expect("an address");
            assert_eq!(check_listen_address(parsed, has_tls, is_insecure).is_ok(), is_fine, "{address}");
        }
    }

    #[test]
    fn the_defaults_are_within_their_bounds_and_others_are_named() {
        assert_eq!(Config::default().check(), Ok(()));
        // It was taken, and whoever said so got a store that was never closed in order.
        let config = Config { drain_time_max: Duration::ZERO, ..Config::default() };
        assert_eq!(config.check().map_err(|invalid| invalid.setting), Err("drain_time_max"));
        let config = Config { reads_max: 0, ..Config::default() };
        assert_eq!(config.check().map_err(|invalid| invalid.setting), Err("reads_max"));
    }
}
