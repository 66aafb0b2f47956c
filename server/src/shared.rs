//! What all calls share: the store, the limits, the counters, and the word that the server is going down.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use quipu_proto::v1 as pb;
use quipu_storage::{Store, Topic, Uid};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tonic::Status;

use crate::append::APPEND_TOPICS_MAX;
use crate::budget::Budget;
use crate::config::Config;
use crate::error::{Problem, status};
use crate::fence::Fences;

/// Bytes that a message may have beyond the records of the largest append: names, lengths, sums.
const MESSAGE_OVERHEAD_BYTES: u64 = 1 << 20;
/// Most bytes of a request that brings no records. Decoded, a message of many small values takes many times its size.
pub(crate) const REQUEST_BYTES_MAX: usize = 128 << 10;
/// Long upkeep (compaction, verification) that runs at a time.
const UPKEEP_MAX: usize = 4;
/// Appends that run on threads of their own at a time; see `append.rs`.
const APPENDS_MAX: usize = 32;
/// Changes of topics that run at a time. Apart from the appends: a trim makes room for those that wait for it.
const CHANGES_MAX: usize = 16;
/// Snapshots that are put at a time. They wait for syncs on their threads; so they get none of those that appends need.
const SNAPSHOTS_MAX: usize = 16;
/// Questions at a time whose answers wait for a sync. The same.
const QUESTIONS_MAX: usize = 16;
/// Destructions of erasure keys at a time. The engine makes one after the other, and each writes the whole master key, which
/// may be 170 MB: among the changes they would hold off trims.
const ERASURES_MAX: usize = 1;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) store: Store,
    pub(crate) config: Config,
    pub(crate) counters: Counters,
    pub(crate) started: SystemTime,
    /// `true`: streams end, nothing new begins.
    drain: watch::Sender<bool>,
    reads: Arc<Semaphore>,
    appends: Arc<Semaphore>,
    changes: Arc<Semaphore>,
    snapshots: Arc<Semaphore>,
    questions: Arc<Semaphore>,
    erasures: Arc<Semaphore>,
    upkeep: Arc<Semaphore>,
    /// Where the open subscriptions of each topic are.
    subscriptions: Mutex<HashMap<Uid, Positions>>,
    next_subscription: AtomicU64,
    /// Bytes of appends on their way.
    pub(crate) budget: Budget,
    /// Append sessions that have names.
    pub(crate) fences: Fences,
}

/// Next offsets by the number of the subscription.
type Positions = HashMap<u64, Arc<AtomicU64>>;

/// What the server counts beside the engine.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) connections: AtomicU64,
    pub(crate) connections_total: AtomicU64,
    pub(crate) connections_refused: AtomicU64,
    pub(crate) connections_overdue: AtomicU64,
    pub(crate) append_sessions: AtomicU64,
    pub(crate) appends_overloaded: AtomicU64,
    pub(crate) subscriptions: AtomicU64,
    pub(crate) reads: AtomicU64,
    pub(crate) records_sent: AtomicU64,
    pub(crate) bytes_sent: AtomicU64,
    pub(crate) requests: AtomicU64,
    pub(crate) requests_refused: AtomicU64,
    /// Appends by the bytes of their records: up to each of [`APPEND_BYTES`], and larger ones.
    pub(crate) append_sizes: [AtomicU64; APPEND_BYTES.len() + 1],
    pub(crate) append_sizes_sum: AtomicU64,
}

/// Bounds by which the sizes of appends are counted.
pub(crate) const APPEND_BYTES: [u64; 9] =
    [256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20, 16 << 20];

impl Counters {
    pub(crate) fn count_append(&self, bytes: u64) {
        let size = APPEND_BYTES.partition_point(|bound| *bound < bytes);
        self.append_sizes[size].fetch_add(1, Ordering::Relaxed);
        self.append_sizes_sum.fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Shared {
    pub(crate) fn new(store: Store, config: Config) -> Arc<Self> {
        Arc::new(Self {
            budget: Budget::new(config.append_bytes_in_flight_max),
            reads: Arc::new(Semaphore::new(config.reads_max)),
            appends: Arc::new(Semaphore::new(APPENDS_MAX)),
            changes: Arc::new(Semaphore::new(CHANGES_MAX)),
            snapshots: Arc::new(Semaphore::new(SNAPSHOTS_MAX)),
            questions: Arc::new(Semaphore::new(QUESTIONS_MAX)),
            erasures: Arc::new(Semaphore::new(ERASURES_MAX)),
            upkeep: Arc::new(Semaphore::new(UPKEEP_MAX)),
            store,
            config,
            counters: Counters::default(),
            started: SystemTime::now(),
            drain: watch::Sender::new(false),
            subscriptions: Mutex::default(),
            next_subscription: AtomicU64::new(0),
            fences: Fences::default(),
        })
    }

    /// The topic of that name.
    pub(crate) fn topic(&self, name: &str) -> Result<Topic, Status> {
        self.store.topic(name).map_err(status)
    }

    pub(crate) fn start_draining(&self) {
        self.drain.send_replace(true);
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.drain.borrow()
    }

    pub(crate) fn check_not_draining(&self) -> Result<(), Status> {
        if self.is_draining() { Err(Problem::draining().into()) } else { Ok(()) }
    }

    /// To learn of the shutdown.
    pub(crate) fn drain(&self) -> Drain {
        Drain(self.drain.subscribe())
    }

    /// Most bytes of a request that brings records.
    pub(crate) fn message_bytes_max(&self) -> usize {
        let bytes = self.store.settings().append_bytes_max + MESSAGE_OVERHEAD_BYTES;
        usize::try_from(bytes).unwrap_or(usize::MAX)
    }

    /// Most bytes of a request to the method with this path.
    pub(crate) fn request_bytes_max(&self, path: &str) -> usize {
        match path {
            "/quipu.v1.LogService/Append"
            | "/quipu.v1.LogService/AppendSession"
            | "/quipu.v1.SnapshotService/PutSnapshot" => self.message_bytes_max(),
            _ => REQUEST_BYTES_MAX,
        }
    }

    pub(crate) fn limits(&self) -> pb::Limits {
        let settings = self.store.settings();
        pb::Limits {
            append_bytes_max: settings.append_bytes_max,
            append_records_max: settings.append_records_max,
            append_topics_max: APPEND_TOPICS_MAX as u32,
            message_bytes_max: self.message_bytes_max() as u64,
            streams_max: u32::try_from(self.config.streams_max).unwrap_or(u32::MAX),
            connections_max: u32::try_from(self.config.connections_max).unwrap_or(u32::MAX),
        }
    }

    /// Runs what reads the disk on a thread that may block. So many at a time: a disk that stalls costs threads up to
    /// this bound, and nobody else anything.
    pub(crate) async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        blocking(&self.reads, read).await
    }

    /// The same for an append that may wait.
    pub(crate) async fn append<T: Send + 'static>(
        &self,
        append: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        blocking(&self.appends, append).await
    }

    /// The same for what changes a topic.
    pub(crate) async fn change<T: Send + 'static>(
        &self,
        change: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        blocking(&self.changes, change).await
    }

    /// The same for a snapshot that is put.
    pub(crate) async fn put_snapshot<T: Send + 'static>(
        &self,
        put: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        blocking(&self.snapshots, put).await
    }

    /// The same for what is asked of the memory, and is to be synced before it is answered.
    pub(crate) async fn ask_synced<T: Send + 'static>(
        &self,
        ask: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        blocking(&self.questions, ask).await
    }

    /// The same for what destroys erasure keys.
    pub(crate) async fn erase<T: Send + 'static>(
        &self,
        erase: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, Status> {
        blocking(&self.erasures, erase).await
    }

    /// A permit for long upkeep, which does not wait for a place.
    pub(crate) fn upkeep(&self) -> Result<OwnedSemaphorePermit, Status> {
        Arc::clone(&self.upkeep)
            .try_acquire_owned()
            .map_err(|_| Problem::overloaded("compactions and verifications at a time", UPKEEP_MAX).into())
    }

    /// Counts a subscription of a topic in for as long as the answer is held.
    pub(crate) fn subscribe(self: &Arc<Self>, topic: Uid) -> Result<Subscribed, Status> {
        let mut subscriptions = self.subscriptions();
        let open = subscriptions.entry(topic).or_default();
        if open.len() >= self.config.subscriptions_max {
            let limit = self.config.subscriptions_max;
            let message = format!("the topic has {limit} subscriptions, which is the limit");
            let problem = Problem::new(tonic::Code::ResourceExhausted, "TOO_MANY_SUBSCRIPTIONS", message);
            return Err(problem.with("limit", limit).retry_after(std::time::Duration::from_secs(1)).into());
        }
        let id = self.next_subscription.fetch_add(1, Ordering::Relaxed);
        let position = Arc::new(AtomicU64::new(u64::MAX));
        open.insert(id, Arc::clone(&position));
        self.counters.subscriptions.fetch_add(1, Ordering::Relaxed);
        Ok(Subscribed { shared: Arc::clone(self), topic, id, position })
    }

    /// Subscriptions of a topic that are open now.
    pub(crate) fn subscriptions_of(&self, topic: Uid) -> u64 {
        self.subscriptions().get(&topic).map_or(0, |open| open.len() as u64)
    }

    /// The next offset of the subscription that is furthest behind, if there is any.
    pub(crate) fn slowest_of(&self, topic: Uid) -> Option<u64> {
        let subscriptions = self.subscriptions();
        subscriptions.get(&topic)?.values().map(|position| position.load(Ordering::Relaxed)).min()
    }

    fn subscriptions(&self) -> std::sync::MutexGuard<'_, HashMap<Uid, Positions>> {
        self.subscriptions.lock().expect("no panic under this lock")
    }
}

/// A permit is taken first, and held until the work is done: also if nobody waits for it any more.
async fn blocking<T: Send + 'static>(
    places: &Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let permit = match Arc::clone(places).try_acquire_owned() {
        Ok(permit) => permit,
        // On a task of its own: a permit that is handed to a call which is not polled, because its client reads nothing,
        // would be lost to all others meanwhile. When the call goes, the task goes.
        Err(_) => {
            let mut waiting = JoinSet::new();
            waiting.spawn(with_permit(Arc::clone(places), work));
            return match waiting.join_next().await {
                Some(Ok(outcome)) => outcome,
                Some(Err(error)) => Err(Problem::internal(error.to_string()).into()),
                None => Err(Problem::internal("there was no work").into()),
            };
        }
    };
    on_thread(permit, work).await
}

async fn with_permit<T: Send + 'static>(
    places: Arc<Semaphore>,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    let permit = places.acquire_owned().await.map_err(|_| Problem::draining())?;
    on_thread(permit, work).await
}

async fn on_thread<T: Send + 'static>(
    permit: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Status> {
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        work()
    })
    .await
    .map_err(|error| Problem::internal(error.to_string()).into())
}

/// A subscription that is open.
#[derive(Debug)]
pub(crate) struct Subscribed {
    shared: Arc<Shared>,
    topic: Uid,
    id: u64,
    position: Arc<AtomicU64>,
}

impl Subscribed {
    /// It is there now.
    pub(crate) fn note(&self, next_offset: u64) {
        self.position.store(next_offset, Ordering::Relaxed);
    }
}

impl Drop for Subscribed {
    fn drop(&mut self) {
        self.shared.counters.subscriptions.fetch_sub(1, Ordering::Relaxed);
        let mut subscriptions = self.shared.subscriptions();
        if let Some(open) = subscriptions.get_mut(&self.topic) {
            open.remove(&self.id);
            if open.is_empty() {
                subscriptions.remove(&self.topic);
            }
        }
    }
}

/// Counts one in for as long as it is held.
#[derive(Debug)]
pub(crate) struct Counted {
    shared: Arc<Shared>,
    which: fn(&Counters) -> &AtomicU64,
    count: u64,
}

impl Counted {
    pub(crate) fn new(shared: &Arc<Shared>, count: u64, which: fn(&Counters) -> &AtomicU64) -> Self {
        which(&shared.counters).fetch_add(count, Ordering::Relaxed);
        Self { shared: Arc::clone(shared), which, count }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        (self.which)(&self.shared.counters).fetch_sub(self.count, Ordering::Relaxed);
    }
}

/// Says when the server goes down.
#[derive(Debug)]
pub(crate) struct Drain(watch::Receiver<bool>);

impl Drain {
    /// Returns when the server is going down. May be dropped and called again.
    pub(crate) async fn begun(&mut self) {
        // The sender lives in what every call holds: without it there is no call left.
        let _ = self.0.wait_for(|is_draining| *is_draining).await;
    }
}

/// The server's time, in milliseconds since the Unix epoch.
pub(crate) fn now_ms() -> u64 {
    to_ms(SystemTime::now())
}

pub(crate) fn to_ms(time: SystemTime) -> u64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    /// A client that lets its window go to nothing stops its call from being polled. The place that such a call waited
    /// for was handed to it and lost to all others.
    #[tokio::test]
    async fn a_call_that_nobody_polls_keeps_no_place_from_others() {
        let places = Arc::new(Semaphore::new(1));
        let (go_on, may_end) = std::sync::mpsc::channel::<()>();
        let mut first = Box::pin(blocking(&places, move || may_end.recv().is_ok()));
        assert!(poll!(&mut first).is_pending());
        let mut unpolled = Box::pin(blocking(&places, || ()));
        assert!(poll!(&mut unpolled).is_pending());
        let mut last = Box::pin(blocking(&places, || ()));
        assert!(poll!(&mut last).is_pending());
        go_on.send(()).unwrap();
        assert!(first.await.unwrap());
        let patience = std::time::Duration::from_secs(60);
        tokio::time::timeout(patience, last).await.expect("it gets its turn").unwrap();
    }
}
