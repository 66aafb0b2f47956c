//! `AppendSession`: appends in a row, sent without waiting for answers, answered in order.
//!
//! Bounded by the bytes that it grants: when as many are unanswered, it reads no further, and HTTP/2 holds the client off.
//! The same when all sessions together have too much on their way; see `budget.rs`.
//!
//! A session works on a task of its own and leaves its answers in a queue: what it holds of what all share it gives back
//! when the engine has answered, whether or not its client takes the answers.

use std::collections::VecDeque;
use std::future::{Future, pending, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;

use futures_util::{Stream, StreamExt};
use quipu_proto::v1 as pb;
use tokio::sync::mpsc::{self, OwnedPermit};
use tokio::task::JoinSet;
use tonic::Status;

use crate::append::{self, Pending, WireAppend};
use crate::budget::Room;
use crate::error::{Problem, Violations};
use crate::fence::Member;
use crate::shared::{Counted, Drain, Shared};

/// Most appends that are unanswered, or whose answers the client has not taken, however small.
const UNANSWERED_MAX: usize = 4096;

/// What a client sends.
#[derive(Debug)]
pub(crate) enum SessionRequest {
    Append(WireAppend),
    Opening { opening: pb::SessionOpening, has_append: bool },
}

type Answer = Result<pb::AppendSessionResponse, Status>;

/// The answers of a session; it ends when they are dropped.
pub(crate) struct Answers {
    queue: mpsc::Receiver<Answer>,
    task: JoinSet<()>,
}

impl Answers {
    /// What to send next; `None` when the client has closed its side and everything is answered.
    pub(crate) async fn next(&mut self) -> Option<Answer> {
        if let Some(answer) = self.queue.recv().await {
            return Some(answer);
        }
        match self.task.join_next().await {
            Some(Err(error)) => Some(Err(Problem::internal(error.to_string()).into())),
            Some(Ok(())) | None => None,
        }
    }
}

/// Begins a session.
pub(crate) fn begin<S>(shared: &Arc<Shared>, requests: S) -> Result<Answers, Status>
where
    S: Stream<Item = Result<SessionRequest, Status>> + Unpin + Send + 'static,
{
    shared.check_not_draining()?;
    let (answers, queue) = mpsc::channel(UNANSWERED_MAX);
    let session = Session {
        shared: Arc::clone(shared),
        requests,
        answers,
        place: None,
        unanswered: VecDeque::new(),
        bytes: 0,
        waiting: None,
        has_begun: false,
        member: None,
        ending: None,
        drain: shared.drain(),
        _counted: Counted::new(shared, 1, |counters| &counters.append_sessions),
    };
    let mut task = JoinSet::new();
    task.spawn(session.run());
    Ok(Answers { queue, task })
}

/// See the [module](self).
struct Session<S> {
    shared: Arc<Shared>,
    requests: S,
    answers: mpsc::Sender<Answer>,
    /// For the answer to the next request: nothing is read without one.
    place: Option<OwnedPermit<Answer>>,
    /// In the order in which they came.
    unanswered: VecDeque<Unanswered>,
    /// Of those.
    bytes: usize,
    /// A request for which there is no room yet.
    waiting: Option<Waiting>,
    /// A request has come.
    has_begun: bool,
    /// If it has a name.
    member: Option<Member>,
    /// Nothing more is read; when all is answered it ends so.
    ending: Option<Option<Status>>,
    drain: Drain,
    _counted: Counted,
}

struct Unanswered {
    pending: Pending,
    bytes: usize,
    place: OwnedPermit<Answer>,
    _room: Room,
}

struct Waiting {
    request: WireAppend,
    place: OwnedPermit<Answer>,
    room: Pin<Box<dyn Future<Output = Room> + Send>>,
}

enum Happened {
    Answered(Result<pb::AppendResponse, Status>),
    Placed(Option<OwnedPermit<Answer>>),
    Requested(Option<Result<SessionRequest, Status>>),
    HasRoom(Room),
    /// The last one has its place: the next may follow.
    InOrder,
    Draining,
}

impl<S: Stream<Item = Result<SessionRequest, Status>> + Unpin + Send> Session<S> {
    async fn run(mut self) {
        let granted_bytes = self.shared.config.session_bytes_max as u64;
        let greeting = pb::AppendSessionResponse { granted_bytes, ..Default::default() };
        // Without a receiver nobody is there: then this task is about to end.
        let _ = self.answers.send(Ok(greeting)).await;
        loop {
            // A client that sends as fast as we take would otherwise keep the thread.
            tokio::task::coop::consume_budget().await;
            if self.unanswered.is_empty()
                && let Some(ending) = self.ending.take()
            {
                if let Some(status) = ending {
                    let _ = self.answers.send(Err(status)).await;
                }
                return;
            }
            match self.happened().await {
                Happened::Answered(answer) => {
                    let Unanswered { bytes, place, .. } =
                        self.unanswered.pop_front().expect("it was answered");
                    self.bytes -= bytes;
                    let is_error = answer.is_err();
                    place.send(answer.map(|response| pb::AppendSessionResponse {
                        response: Some(response),
                        ..Default::default()
                    }));
                    // What was sent behind it may have been applied already only if it is the disk that failed.
                    if is_error {
                        return;
                    }
                }
                Happened::InOrder => self.end_if_refused(),
                Happened::Draining => self.end(Some(Problem::draining().into())),
                Happened::Placed(Some(place)) => self.place = Some(place),
                Happened::Placed(None) => return,
                Happened::Requested(None) => self.end(None),
                Happened::Requested(Some(Err(status))) => self.end(Some(status)),
                Happened::Requested(Some(Ok(request))) => self.take(request).await,
                Happened::HasRoom(room) => {
                    if let Some(Waiting { request, place, .. }) = self.waiting.take() {
                        self.append(request, place, room);
                    }
                }
            }
        }
    }

    async fn happened(&mut self) -> Happened {
        let is_open = self.ending.is_none();
        let may_read = is_open
            && self.waiting.is_none()
            && self.bytes < self.shared.config.session_bytes_max
            // What comes after one that a thread works on must not overtake it.
            && self.unanswered.back().is_none_or(|unanswered| unanswered.pending.is_in_order());
        if may_read && self.place.is_none() {
            self.place = self.answers.clone().try_reserve_owned().ok();
        }
        let has_place = self.place.is_some();
        let (unanswered, waiting) = (&mut self.unanswered, self.waiting.as_mut());
        let goes_on = poll_fn(|task| {
            if let Some(Unanswered { pending: last, .. }) = unanswered.back_mut()
                && !last.is_in_order()
                && last.poll_in_order(task).is_ready()
            {
                return Poll::Ready(Happened::InOrder);
            }
            match unanswered.front_mut() {
                Some(Unanswered { pending: first, .. }) if first.is_in_order() => {
                    Pin::new(first).poll(task).map(Happened::Answered)
                }
                _ => Poll::Pending,
            }
        });
        let room = async move {
            match waiting {
                Some(waiting) => waiting.room.as_mut().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            happened = goes_on => happened,
            () = self.drain.begun(), if is_open => Happened::Draining,
            room = room => Happened::HasRoom(room),
            place = self.answers.clone().reserve_owned(), if may_read && !has_place => {
                Happened::Placed(place.ok())
            }
            request = self.requests.next(), if may_read && has_place => Happened::Requested(request),
        }
    }

    /// Those that were taken are answered first.
    fn end(&mut self, ending: Option<Status>) {
        self.waiting = None;
        self.ending = Some(ending);
    }

    /// Behind one that was not applied nothing is, although its answer, which ends the session, may still have to wait.
    fn end_if_refused(&mut self) {
        if self.unanswered.back().is_some_and(|last| last.pending.is_refused()) {
            self.ending.get_or_insert_default();
        }
    }

    async fn take(&mut self, request: SessionRequest) {
        let Some(place) = self.place.take() else { return };
        let is_first = !std::mem::replace(&mut self.has_begun, true);
        match request {
            SessionRequest::Opening { opening, has_append } => {
                match self.open(&opening, is_first && !has_append).await {
                    Ok(()) => {
                        place.send(Ok(pb::AppendSessionResponse { opened: true, ..Default::default() }));
                    }
                    Err(status) => self.end(Some(status)),
                }
            }
            SessionRequest::Append(request) => {
                let bytes = request.bytes;
                if let Some(room) = self.shared.budget.try_take_for_session(bytes) {
                    return self.append(request, place, room);
                }
                let shared = Arc::clone(&self.shared);
                let room = Box::pin(async move { shared.budget.take_for_session(bytes).await });
                self.waiting = Some(Waiting { request, place, room });
            }
        }
    }

    fn append(&mut self, request: WireAppend, place: OwnedPermit<Answer>, room: Room) {
        let bytes = request.bytes;
        match append::begin(&self.shared, request, self.member.as_ref()) {
            Ok(pending) => {
                self.bytes += bytes;
                self.unanswered.push_back(Unanswered { pending, bytes, place, _room: room });
                self.end_if_refused();
            }
            Err(status) => self.end(Some(status)),
        }
    }

    /// Gives the session its name, and ends earlier ones of that name.
    async fn open(&mut self, opening: &pb::SessionOpening, is_in_its_place: bool) -> Result<(), Status> {
        let mut violations = Violations::default();
        violations.require(is_in_its_place, "opening", "must come first, and without `append`");
        let id = <[u8; 16]>::try_from(&opening.session_id[..]);
        violations.require(id.is_ok(), "opening.session_id", "must have 16 bytes");
        violations.require(opening.epoch > 0, "opening.epoch", "must be at least 1");
        violations.finish()?;
        self.member = Some(self.shared.fences.open(id.unwrap_or_default(), opening.epoch).await?);
        Ok(())
    }
}
