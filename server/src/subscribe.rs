//! `Subscribe`: what is there, then what comes. Never silent for longer than a heartbeat, and always ended by a status.
//!
//! A subscription that its client does not read is not polled: it holds a cursor, and the one response that is on its way.
//! It costs nobody else anything; what it has not seen it reads from the disk later.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use quipu_proto::v1 as pb;
use quipu_storage::Topic;
use tokio::time::{Instant, Sleep};
use tonic::Status;

use crate::batch::WireBatch;
use crate::error::{Problem, Violations, status};
use crate::filter;
use crate::read::{count_sent, gap};
use crate::request;
use crate::scan::{self, Chunk, Puller, Scan, Then};
use crate::shared::{Drain, Shared, Subscribed, now_ms};

const PROGRESS_RECORDS_DEFAULT: u64 = 10_000;
const PROGRESS_RECORDS_MAX: u64 = 10_000_000;
const HEARTBEAT_DEFAULT: Duration = Duration::from_secs(5);
const HEARTBEAT_MS: std::ops::RangeInclusive<u64> = 100..=300_000;

/// What a subscription sends.
#[derive(Debug)]
pub(crate) enum SubscribeEvent {
    Batches(Vec<WireBatch>),
    Other(pb::subscribe_response::Event),
}

/// See the [module](self).
pub(crate) struct Subscription {
    shared: Arc<Shared>,
    topic: Topic,
    puller: Puller,
    /// The next offset as far as was sent or left out.
    next: u64,
    is_caught_up: bool,
    /// Nothing more is visible: wait.
    is_waiting: bool,
    /// Records that the filter left out since the client was last told where it is.
    left_out: u64,
    progress_records: u64,
    heartbeat: Duration,
    last_sent: Instant,
    timer: Pin<Box<Sleep>>,
    queued: VecDeque<SubscribeEvent>,
    ending: Option<Status>,
    has_ended: bool,
    drain: Drain,
    subscribed: Subscribed,
}

impl Subscription {
    pub(crate) async fn begin(shared: &Arc<Shared>, wire: pb::SubscribeRequest) -> Result<Self, Status> {
        shared.check_not_draining()?;
        let mut violations = Violations::default();
        violations.topic_name("topic", &wire.topic);
        let filter = filter::from_wire(wire.filter, "filter", &mut violations);
        let start = request::start(wire.start, filter.as_ref(), &mut violations);
        let visibility = request::visibility(wire.visibility, &mut violations);
        let progress_records = match wire.progress_records {
            0 => PROGRESS_RECORDS_DEFAULT,
            records => records,
        };
        violations.require(
            progress_records <= PROGRESS_RECORDS_MAX,
            "progress_records",
            "must be 1 to 10,000,000, or 0 for 10,000",
        );
        let heartbeat = match wire.heartbeat_ms {
            0 => HEARTBEAT_DEFAULT,
            ms => {
                violations.require(
                    HEARTBEAT_MS.contains(&ms),
                    "heartbeat_ms",
                    "must be 100 to 300,000, or 0 for 5,000",
                );
                Duration::from_millis(ms)
            }
        };
        violations.finish()?;
        let topic = shared.topic(&wire.topic)?;
        let subscribed = shared.subscribe(topic.uid())?;
        let cursor = scan::open(shared, &topic, start, filter.as_ref(), visibility).await?;
        let next = cursor.next_offset().value();
        subscribed.note(next);
        let scan = Scan::new(cursor, filter, shared.config.response_bytes);
        let last_sent = Instant::now();
        Ok(Self {
            shared: Arc::clone(shared),
            topic,
            puller: Puller::new(shared, scan),
            next,
            is_caught_up: false,
            is_waiting: false,
            left_out: 0,
            progress_records,
            heartbeat,
            last_sent,
            timer: Box::pin(tokio::time::sleep_until(last_sent + heartbeat)),
            queued: VecDeque::new(),
            ending: None,
            has_ended: false,
            drain: shared.drain(),
            subscribed,
        })
    }

    /// What to send next; `None` after the status that ended it.
    pub(crate) async fn next(&mut self) -> Option<Result<SubscribeEvent, Status>> {
        loop {
            if let Some(event) = self.queued.pop_front() {
                self.last_sent = Instant::now();
                self.subscribed.note(self.next);
                return Some(Ok(event));
            }
            if self.has_ended {
                return None;
            }
            if let Some(status) = self.ending.take() {
                self.has_ended = true;
                return Some(Err(status));
            }
            let happened = tokio::select! {
                biased;
                () = self.drain.begun() => Happened::Draining,
                // Before what may be ready for a long time, such as a filter that leaves out everything.
                () = &mut self.timer => Happened::Time,
                happened = advance(&mut self.puller, self.is_waiting, self.progress_records) => happened,
            };
            match happened {
                Happened::Draining => {
                    let draining = pb::Draining { next_offset: self.next };
                    self.queue(pb::subscribe_response::Event::Draining(draining));
                    self.ending = Some(Problem::draining().into());
                }
                Happened::Time => self.tick(),
                Happened::Ready(Ok(())) => self.is_waiting = false,
                Happened::Ready(Err(error)) => self.ending = Some(status(error)),
                Happened::Chunk(Ok(chunk)) => self.take(chunk),
                Happened::Chunk(Err(status)) => self.ending = Some(status),
            }
        }
    }

    fn queue(&mut self, event: pb::subscribe_response::Event) {
        self.queued.push_back(SubscribeEvent::Other(event));
    }

    /// The timer is not set anew for each message: only when it rings it is asked how long ago the last one was.
    fn tick(&mut self) {
        let due = self.last_sent + self.heartbeat;
        if due > Instant::now() {
            self.timer.as_mut().reset(due);
            return;
        }
        self.timer.as_mut().reset(Instant::now() + self.heartbeat);
        if self.left_out > 0 {
            self.progress();
        } else {
            let heartbeat = pb::Heartbeat { next_offset: self.next, time_ms: now_ms() };
            self.queue(pb::subscribe_response::Event::Heartbeat(heartbeat));
        }
    }

    fn progress(&mut self) {
        self.left_out = 0;
        let high_watermark = self.high_watermark();
        let progress = pb::Progress { next_offset: self.next, high_watermark };
        self.queue(pb::subscribe_response::Event::Progress(progress));
    }

    fn high_watermark(&mut self) -> u64 {
        let next = self.next;
        self.puller.scan().map_or(next, |scan| scan.visible_end().value())
    }

    fn take(&mut self, chunk: Chunk) {
        let Chunk { batches, left_out, then, is_from_disk } = chunk;
        let before = self.next;
        if let Some(scan) = self.puller.scan() {
            self.next = scan.next_offset().value();
        }
        // One response from the disk is a look behind the tail, which moves on by itself; more is to be behind.
        if self.is_caught_up && is_from_disk && matches!(then, Then::More) {
            self.is_caught_up = false;
            let fell_behind = pb::FellBehind { next_offset: before, high_watermark: self.high_watermark() };
            self.queue(pb::subscribe_response::Event::FellBehind(fell_behind));
        }
        if batches.is_empty() {
            self.left_out += left_out;
        } else {
            self.left_out = 0;
            count_sent(&self.shared, &batches);
            self.queued.push_back(SubscribeEvent::Batches(batches));
        }
        if self.left_out >= self.progress_records {
            self.progress();
        }
        match then {
            Then::More | Then::Disk | Then::Done => {}
            Then::CaughtUp => {
                self.is_waiting = true;
                if !self.is_caught_up {
                    self.is_caught_up = true;
                    self.left_out = 0;
                    let caught_up = pb::CaughtUp { next_offset: self.next };
                    self.queue(pb::subscribe_response::Event::CaughtUp(caught_up));
                }
            }
            Then::Gap(gone) => {
                self.next = gone.end.value();
                if let Some(scan) = self.puller.scan() {
                    scan.seek(gone.end);
                }
                self.queue(pb::subscribe_response::Event::Gap(gap(&self.topic, gone.start, gone.end)));
            }
            Then::Failed(error) => self.ending = Some(status(error)),
        }
    }
}

enum Happened {
    Draining,
    Time,
    Ready(Result<(), quipu_storage::Error>),
    Chunk(Result<Chunk, Status>),
}

/// Waits for more, or reads what is there. May be dropped and called again.
async fn advance(puller: &mut Puller, is_waiting: bool, progress_records: u64) -> Happened {
    if is_waiting && let Some(scan) = puller.scan() {
        return Happened::Ready(poll_fn(|task| scan.poll_ready(task)).await);
    }
    Happened::Chunk(puller.pull(progress_records).await)
}
