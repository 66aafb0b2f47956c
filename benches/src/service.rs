//! A served store: the real server in a process of its own, as it is set up by default, and the real client.

use std::path::Path;
use std::process::Command;
use std::rc::Rc;

use anyhow::{Context, Result, bail, ensure};
use quipu_client::{Client, Event, Start};
use tokio::runtime::Runtime;

use crate::child::Child;
use crate::payload::Payloads;
use crate::program;

/// Where everything async of this process runs; as many threads as there are cores.
pub fn runtime() -> Result<Rc<Runtime>> {
    Ok(Rc::new(tokio::runtime::Builder::new_multi_thread().enable_all().build()?))
}

/// `quipu serve` on a directory, on a free port.
pub fn serve(dir: &Path) -> Result<Command> {
    let mut command = program::command()?;
    command.args(["serve", "--listen", "127.0.0.1:0", "--log-filter", "error", "--data"]).arg(dir);
    Ok(command)
}

/// Waits until a server says where it listens.
pub fn listening(server: &mut Child) -> Result<String> {
    let line = server.line()?;
    Ok(line.strip_prefix("listening on ").with_context(|| format!("the server said {line:?}"))?.to_owned())
}

/// A server, and a connection to it.
pub struct Served {
    runtime: Rc<Runtime>,
    client: Client,
    url: String,
    _server: Child,
}

impl Served {
    /// Serves what is in `dir`, or a new store, and connects.
    pub fn start(runtime: &Rc<Runtime>, dir: &Path) -> Result<Self> {
        let mut server = Child::spawn(serve(dir)?)?;
        let url = listening(&mut server)?;
        let client = runtime.block_on(Client::connect(&*url))?;
        Ok(Self { runtime: Rc::clone(runtime), client, url, _server: server })
    }

    /// The same with an empty topic.
    pub fn with_topic(runtime: &Rc<Runtime>, dir: &Path, topic: &str) -> Result<Self> {
        let served = Self::start(runtime, dir)?;
        runtime.block_on(served.client.create_topic(topic))?;
        Ok(served)
    }

    /// The connection; a clone is the same connection. A method, so that a closure takes the whole along.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Where it listens.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Runs what is async.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Waits until everything of a topic before `to` is synced, and compares every byte from `from` on: `wanted` says
    /// what is at each offset. What was read is then trimmed.
    pub fn check_and_trim<'a>(
        &self,
        topic: &str,
        from: u64,
        to: u64,
        wanted: impl Fn(u64) -> &'a [u8],
    ) -> Result<()> {
        self.runtime.block_on(async {
            check(&self.client, topic, from, to, wanted).await?;
            self.client.trim_topic(topic, to).await?;
            Ok(())
        })
    }
}

/// Waits until everything of a topic before `to` is synced, and compares every byte from `from` on.
pub async fn check<'a>(
    client: &Client,
    topic: &str,
    from: u64,
    to: u64,
    wanted: impl Fn(u64) -> &'a [u8],
) -> Result<()> {
    let mut subscription = client.subscribe(topic).start(Start::Offset(from)).send().await?;
    let mut next = from;
    while next < to {
        let batch = match subscription.next().await.context("the subscription ended")?? {
            Event::Records(batch) => batch,
            Event::Gap(gap) => bail!("a gap from {} to {}", gap.from, gap.to),
            _ => continue,
        };
        for record in &batch {
            let record = record?;
            ensure!(record.offset() == next, "offset {} where {next} was expected", record.offset());
            ensure!(
                record.payload() == Some(wanted(next)),
                "the record at offset {next} reads back different"
            );
            next += 1;
        }
    }
    Ok(())
}

/// Records of the payloads that all rows use, made once; a clone copies no payload.
pub struct ClientRecords {
    /// What they hold.
    pub payloads: Payloads,
    records: Vec<quipu_client::Record>,
}

impl ClientRecords {
    /// Records with payloads of that size.
    pub fn new(record_bytes: usize) -> Self {
        let payloads = Payloads::new(record_bytes);
        let record = |number| quipu_client::Record::new(payloads.of(number).to_vec());
        let records = (0..1024).map(record).collect();
        Self { payloads, records }
    }

    /// Record `number`.
    pub fn of(&self, number: u64) -> quipu_client::Record {
        self.records[usize::try_from(number % 1024).expect("below 1024")].clone()
    }
}
