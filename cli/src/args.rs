//! The command line.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand, ValueEnum as _};
use quipu_client::{Client, Retry};

use crate::backend::{Backend, Embedded, Remote};
use crate::commands;
use crate::config;
use crate::exit::{Failure, Result};
use crate::output::Colour;
use crate::units::Span;

/// The server that commands go to if nothing else is said.
pub(crate) const SERVER_DEFAULT: &str = "http://127.0.0.1:7878";

/// Publish, replay and follow events.
#[derive(Debug, Parser)]
#[command(
    name = "quipu",
    version,
    about,
    long_about = "Publish, replay and follow events.\n\nCommands go to a server (--server, http://127.0.0.1:7878), or \
                  work on a store's directory without one (--data DIR).",
    after_long_help = crate::exit::help_table(),
    after_help = "Begin with: quipu demo",
    infer_subcommands = false,
    arg_required_else_help = true,
    max_term_width = 110
)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command line's definition: for reading it, for `--help`, completions and man pages.
pub(crate) fn command() -> clap::Command {
    Cli::command().mut_subcommands(|command| match command.get_name() {
        "serve" => config::explain_settings(command),
        _ => command,
    })
}

impl Cli {
    /// Reads the command line of this process.
    pub(crate) fn read() -> Result<Self, clap::Error> {
        let colour = colour_of(std::env::args_os().skip(1));
        Self::from_arg_matches(&command().color(colour.into()).try_get_matches()?)
    }
}

/// The colour that the command line asks for, also where it is wrong and there is an error to colour.
fn colour_of(words: impl Iterator<Item = OsString>) -> Colour {
    let words: Vec<_> =
        words.take_while(|word| word != "--").map(|word| word.to_string_lossy().into_owned()).collect();
    let together = words.iter().filter_map(|word| word.strip_prefix("--color="));
    let apart = words.windows(2).filter(|pair| pair[0] == "--color").map(|pair| pair[1].as_str());
    together.chain(apart).find_map(|when| Colour::from_str(when, false).ok()).unwrap_or_default()
}

/// What every command takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Everywhere")]
pub(crate) struct Global {
    /// Works on the store in this directory, without a server. What only reads works beside a server too.
    #[arg(long, global = true, value_name = "DIR", conflicts_with = "server")]
    pub(crate) data: Option<PathBuf>,
    /// The master key of the store, a file elsewhere: with it sealed payloads are appended, read and erased. Takes the
    /// store's lock.
    #[arg(long, global = true, value_name = "FILE", conflicts_with = "server")]
    pub(crate) master_key: Option<PathBuf>,
    /// Make the master key if there is none and the store has none.
    #[arg(long, global = true)]
    pub(crate) create_master_key: bool,
    /// The server [env: QUIPU_SERVER] [default: http://127.0.0.1:7878]
    #[arg(long, global = true, value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Certificates of the authority that the server is vouched for by (PEM).
    #[arg(long, global = true, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
    /// Our own certificate, for a server that asks for one (PEM).
    #[arg(long, global = true, value_name = "FILE", requires = "client_key")]
    client_cert: Option<PathBuf>,
    /// Its private key (PEM).
    #[arg(long, global = true, value_name = "FILE", requires = "client_cert")]
    client_key: Option<PathBuf>,
    /// How long to wait for a server that went away.
    #[arg(long, global = true, value_name = "DURATION", default_value = "1m")]
    retry_for: Span,
    /// Output, and errors, for machines: a line of JSON for each thing.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// No notes and no progress on standard error, only errors.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
    /// When to colour the output.
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto", hide_possible_values = true)]
    pub(crate) color: Colour,
}

impl Global {
    /// The store or the server that the command is for.
    pub(crate) fn backend(&self) -> Result<Box<dyn Backend>> {
        match &self.data {
            Some(dir) => Ok(Box::new(self.embedded(dir))),
            None if self.master_key.is_some() => {
                Err(Failure::usage("--master-key goes with --data; a server has its own"))
            }
            None => Ok(Box::new(self.remote()?)),
        }
    }

    /// The store in that directory.
    pub(crate) fn embedded(&self, dir: &Path) -> Embedded {
        let master_key = self.master_key.clone().map(|path| (path, self.create_master_key));
        Embedded::new(dir).with_master_key(master_key)
    }

    /// The server that the command is for.
    pub(crate) fn remote(&self) -> Result<Remote> {
        let from_environment = || std::env::var("QUIPU_SERVER").ok().filter(|url| !url.is_empty());
        let url = self.server.clone().or_else(from_environment).unwrap_or_else(|| SERVER_DEFAULT.into());
        let retry = Retry { time_max: self.retry_for.0, ..Retry::default() };
        let mut builder = Client::builder(&url).retry(retry);
        let read = |path: &PathBuf| {
            std::fs::read(path).map_err(|error| Failure::file("read", path.display(), &error))
        };
        // Taken as it is, a file without one would make every server an unknown one.
        let read_certificates = |path: &PathBuf| {
            let pem = read(path)?;
            let begin = b"-----BEGIN CERTIFICATE-----";
            match pem.windows(begin.len()).any(|window| window == begin) {
                true => Ok(pem),
                false => Err(Failure::usage(format!(
                    "{} holds no certificate: it must be a PEM file",
                    path.display()
                ))),
            }
        };
        if let Some(path) = &self.ca_cert {
            builder = builder.certificate_authority(read_certificates(path)?);
        }
        if let (Some(certificate), Some(key)) = (&self.client_cert, &self.client_key) {
            builder = builder.identity(read_certificates(certificate)?, read(key)?);
        }
        Remote::connect(builder, &url)
    }

    /// The directory, for commands that need one.
    pub(crate) fn data_dir(&self) -> Result<&PathBuf> {
        self.data
            .as_ref()
            .ok_or_else(|| Failure::usage("this command works on a directory: name it with --data DIR"))
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve a store over gRPC.
    Serve(Box<commands::serve::ServeArgs>),
    /// Publish records: lines, NDJSON, CSV or length-prefixed binary, from files or standard input.
    #[command(visible_alias = "append")]
    Publish(Box<commands::publish::PublishArgs>),
    /// Read a topic as it is now, forwards or backwards, and end.
    #[command(visible_alias = "replay")]
    Read(commands::read::ReadArgs),
    /// Show the last records of a topic, and with -f each new one.
    Tail(commands::tail::TailArgs),
    /// Create, list, describe, alter, delete, trim, compact and verify topics.
    #[command(visible_alias = "topic")]
    Topics(commands::topics::TopicsArgs),
    /// List the keys of a topic, each with its last revision and how many records it has.
    Streams(commands::streams::StreamsArgs),
    /// List and forget the names under which is published exactly once.
    Producers(commands::producers::ProducersArgs),
    /// Keep what a stream comes to up to a revision, and find it again.
    #[command(visible_alias = "snapshots")]
    Snapshot(commands::snapshot::SnapshotArgs),
    /// Destroy erasure keys, and so every payload that was sealed with them, in every copy and for good.
    Erase(commands::erase::EraseArgs),
    /// Say whether conditions of an append would hold now, and which records stand against them.
    Explain(commands::explain::ExplainArgs),
    /// Show how the server and its store are; ends with 0 only if it takes appends.
    Status(commands::status::StatusArgs),
    /// Write a whole topic to a file.
    Export(commands::transfer::ExportArgs),
    /// Make a topic from such a file.
    Import(commands::transfer::ImportArgs),
    /// Look at every checksum, offset and file of a store that nobody holds (--data).
    Verify(commands::offline::VerifyArgs),
    /// Print files of a store as text (--data).
    Dump(commands::offline::DumpArgs),
    /// Draw a store's segments: sizes, time spans, compaction, retention (--data).
    Inspect(commands::inspect::InspectArgs),
    /// Measure a running server: appends, replay, latency.
    Bench(commands::bench::BenchArgs),
    /// Show the main job in a temporary directory: publish, replay, follow, kill the server, find everything again.
    Demo(commands::demo::DemoArgs),
    /// Print a completion script for a shell.
    Completions(commands::manual::CompletionsArgs),
    /// Write man pages into a directory.
    Man(commands::manual::ManArgs),
}
