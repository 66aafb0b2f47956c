//! `quipu serve`: opens a store and serves it until a signal comes.
//!
//! The first SIGTERM or SIGINT lets calls end, commits what was accepted and closes the store; the second ends the process
//! at once, which loses nothing that was acknowledged as synced. Every step has its bound, also if the disk never answers:
//!
//! | Step | At most |
//! |---|---|
//! | calls end | `drain_time_max` |
//! | the connections of those that do not are closed | 1 s |
//! | the store is closed | `drain_time_max` |
//! | what still hangs is left behind | [`HANGING_TIME_MAX`] |

use std::io::{self, IsTerminal};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use quipu_server::{Config, Listeners, ServeError, check_certificates, check_listen_address, serve};
use quipu_storage::{Error as StorageError, Store};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

use super::signals::Signals;
use crate::args::Global;
use crate::config::{self, Flags, LogFormat, Settings, Values};
use crate::exit::{Exit, Failure, Result};
use crate::output::Output;

/// How long the end waits for blocking calls that nobody waits for any more.
const HANGING_TIME_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Args)]
#[command(
    after_help = "--data DIR is the store's directory, which is made if there is none [default: quipu-data] [env: QUIPU_DATA].
--master-key FILE is what payloads are sealed with, a file outside of the store [default: none] [env: QUIPU_MASTER_KEY].
--create-master-key makes it if there is none and the store has none [default: false] [env: QUIPU_CREATE_MASTER_KEY].

A setting is taken from its flag, else from the environment, else from the file, else it has its default.
In the file it is called like its flag, with _ for -.
  SIZE      bytes, or with KiB, MiB, GiB (KB, MB, GB: thousands): 65536, 64KiB, 1.5GiB
  DURATION  with ms, s, m, h, d, w: 250ms, 30s, 1h30m
  BOOL      true or false

Examples:
  quipu serve
  quipu serve --data /var/lib/quipu --metrics-listen 127.0.0.1:9464
  quipu serve --config quipu.toml --print-config
  quipu serve --listen 0.0.0.0:7878 --tls-certificate server.pem --tls-key server.key"
)]
pub(crate) struct ServeArgs {
    /// Reads settings from this TOML file [env: QUIPU_CONFIG]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the settings in effect, each with its source, and end.
    #[arg(long)]
    print_config: bool,
    #[command(flatten)]
    flags: Flags,
}

pub(crate) fn run(global: &Global, mut args: ServeArgs, out: &mut Output) -> Result<()> {
    if global.server.is_some() {
        return Err(Failure::usage("--server is for clients; name the address with --listen"));
    }
    args.flags.data = match &global.data {
        None => None,
        Some(dir) => Some(dir.to_str().ok_or_else(|| Failure::usage("--data must be UTF-8"))?.to_owned()),
    };
    if let Some(path) = &global.master_key {
        let path = path.to_str().ok_or_else(|| Failure::usage("--master-key must be UTF-8"))?;
        args.flags.master_key = Some(path.to_owned());
    }
    args.flags.create_master_key = global.create_master_key.then(|| "true".to_owned());
    let file = args.config.or_else(|| std::env::var_os("QUIPU_CONFIG").map(PathBuf::from));
    // What is not UTF-8 is nothing that we could take.
    let variables = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let (settings, values) = config::load(file.as_deref(), variables, &args.flags, out)?;
    let server = check(&settings, &values)?;
    if args.print_config {
        return config::print(&values, out);
    }
    start_log(&settings)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Failure::new(Exit::Failure, "IO", format!("cannot start a runtime: {error}")))?;
    run_to_end(runtime, async {
        let mut signals = Signals::catch()?;
        let (listeners, store) = tokio::select! {
            started = start(&settings, &server) => started?,
            // Nothing was served. Recovery goes on where it was when the store is opened the next time.
            name = signals.next() => {
                tracing::info!(signal = name, "ending before the start is complete");
                return Ok(());
            }
        };
        announce(&settings, server.tls.is_some(), &listeners, &store, out)?;
        serve(listeners, store, server, shutdown(signals)).await.map_err(failure)
    })
}

/// Looks at everything that can be told of the settings alone; says how the server runs.
///
/// # Errors
/// The first one that cannot be, with its source.
fn check(settings: &Settings, values: &Values) -> Result<Config> {
    let server = settings.server(values)?;
    server.check().map_err(|invalid| values.refuse(invalid.setting, &invalid))?;
    settings.store().check().map_err(|error| match &error {
        StorageError::InvalidSetting { setting, .. } => values.refuse(setting, &error),
        _ => error.into(),
    })?;
    check_listen_address(settings.listen.ip(), server.tls.is_some(), settings.insecure)
        .map_err(|refused| values.refuse("listen", refused))?;
    if let Some(address) = settings.metrics_listen.value() {
        // Certificates do not count: it is plain HTTP.
        check_listen_address(address.ip(), false, settings.insecure).map_err(|refused| {
            let why = format!(
                "{} can be reached from other machines, and everybody there can read the metrics: say --insecure",
                refused.address
            );
            values.refuse("metrics_listen", why)
        })?;
    }
    if settings.create_master_key && settings.master_key.clone().value().is_none() {
        let why = "create_master_key makes the file that master_key names, and none is named";
        return Err(values.refuse("create_master_key", why));
    }
    log_filter(settings).map_err(|error| {
        values.refuse("log_filter", format_args!("log_filter is {:?}: {error}", settings.log_filter))
    })?;
    Ok(server)
}

fn log_filter(settings: &Settings) -> Result<EnvFilter, ParseError> {
    EnvFilter::try_new(&settings.log_filter)
}

/// Runs `work` and ends the runtime. Dropping a runtime waits for every blocking call, also for one whose disk never
/// answers: this does not.
fn run_to_end<T>(runtime: Runtime, work: impl Future<Output = T>) -> T {
    let outcome = runtime.block_on(work);
    runtime.shutdown_timeout(HANGING_TIME_MAX);
    outcome
}

/// Everything that can be refused, before anybody is told that the server is ready; what is quickly refused first.
async fn start(settings: &Settings, server: &Config) -> Result<(Listeners, Store)> {
    check_certificates(server).await.map_err(failure)?;
    let listeners = Listeners {
        grpc: bind("listen", settings.listen).await?,
        metrics: match settings.metrics_listen.value() {
            Some(address) => Some(bind("metrics_listen", address).await?),
            None => None,
        },
    };
    let (data, store_settings) = (settings.data.0.clone(), settings.store());
    let mut builder = Store::builder().settings(store_settings);
    if let Some(path) = settings.master_key.clone().value() {
        builder = builder.master_key(path).create_master_key(settings.create_master_key);
    }
    let open = move || builder.open(data);
    let store = tokio::task::spawn_blocking(open).await.map_err(|error| {
        Failure::new(Exit::Failure, "INTERNAL", format!("cannot open the store: {error}"))
    })??;
    Ok((listeners, store))
}

async fn bind(setting: &str, address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        let message = format!("cannot listen on {address} ({setting}): {error}");
        let (exit, reason) = match error.kind() {
            io::ErrorKind::AddrInUse => (Exit::Busy, "LISTEN"),
            _ => (Exit::Failure, "IO"),
        };
        Failure::new(exit, reason, message).hint("name another address, or port 0 for any that is free")
    })
}

/// On standard output, so that whoever started the server learns the port.
fn announce(
    settings: &Settings,
    has_tls: bool,
    listeners: &Listeners,
    store: &Store,
    out: &mut Output,
) -> Result<()> {
    let scheme = if has_tls { "https" } else { "http" };
    let local = |listener: &TcpListener| listener.local_addr().unwrap_or(settings.listen);
    let url = format!("{scheme}://{}", local(&listeners.grpc));
    let metrics = listeners.metrics.as_ref().map(|listener| format!("http://{}/metrics", local(listener)));
    let recovery = store.recovery();
    tracing::info!(
        data = %settings.data.0.display(),
        clean = recovery.was_clean,
        frames = recovery.frames,
        records = recovery.records,
        milliseconds = u64::try_from(recovery.duration.as_millis()).unwrap_or(u64::MAX),
        "store open"
    );
    if let Some(path) = &recovery.torn_kept {
        tracing::warn!(path = %path.display(), "the journal's torn end, never acknowledged as synced, was cut off");
    }
    for path in &recovery.damaged {
        tracing::warn!(path = %path.display(), "a damaged file cost nothing");
    }
    if out.is_json {
        out.json(&serde_json::json!({"url": url, "metrics": metrics, "data": settings.data.0}))?;
    } else {
        out.line(format_args!("listening on {url}"))?;
        if let Some(metrics) = metrics {
            out.line(format_args!("metrics on {metrics}"))?;
        }
    }
    match out.flush() {
        // Who started it does not listen any more: a server goes on.
        Err(failure) if failure.is_silent() => Ok(()),
        outcome => outcome,
    }
}

fn start_log(settings: &Settings) -> Result<()> {
    let filter = log_filter(settings).map_err(|error| Failure::usage(error.to_string()))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match settings.log_format {
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
        LogFormat::Human => {
            let is_coloured = io::stderr().is_terminal()
                && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
            builder.with_ansi(is_coloured).with_target(false).try_init()
        }
    };
    started.map_err(|error| Failure::new(Exit::Failure, "INTERNAL", format!("cannot start the log: {error}")))
}

/// Resolves with the first signal; the second ends the process.
async fn shutdown(mut signals: Signals) {
    let name = signals.next().await;
    tracing::info!(signal = name, "shutting down; a second signal ends at once");
    tokio::spawn(async move {
        let name = signals.next().await;
        tracing::warn!(signal = name, "ending at once");
        std::process::exit(i32::from(Exit::Interrupted.code()));
    });
}

fn failure(error: ServeError) -> Failure {
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    match error {
        ServeError::Config(_) => Failure::usage(message),
        ServeError::Certificate { path, source } => Failure::file("read", path.display(), &source),
        ServeError::Tls { .. } | ServeError::NoCertificate { .. } => Failure::usage(message),
        ServeError::Close(error) => Failure::from(error).while_doing("close the store"),
        ServeError::CloseTimedOut => Failure::new(Exit::StorageFailed, "STORAGE_FAILED", message),
        _ => Failure::new(Exit::Failure, "INTERNAL", message),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    // The runtime was dropped, which waits for every blocking call: a read that hung in the disk kept a server whose
    // store was closed long ago from ending.
    #[test]
    fn a_blocking_call_that_hangs_keeps_nobody_from_ending() {
        let (release, released) = mpsc::channel::<()>();
        let (hangs, is_hanging) = tokio::sync::oneshot::channel();
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        let (ended, outcome) = mpsc::channel();
        std::thread::spawn(move || {
            let code = run_to_end(runtime, async {
                tokio::task::spawn_blocking(move || {
                    let _ = hangs.send(());
                    let _ = released.recv();
                });
                is_hanging.await.unwrap();
                7
            });
            ended.send(code).unwrap();
        });
        // Far longer than it takes: only one that hangs is not there by then.
        assert_eq!(outcome.recv_timeout(Duration::from_secs(120)), Ok(7));
        drop(release);
    }
}
