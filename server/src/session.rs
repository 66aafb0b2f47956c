//! `AppendSession`: appends in a row, sent without waiting for answers, answered in order.
//!
//! Bounded by the bytes that it grants: when as many are unanswered, it reads no further, and HTTP/2 holds the client off.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;

use futures_util::{Stream, StreamExt};
use quipu_proto::v1 as pb;
use tonic::Status;

use crate::append::{self, Pending, WireAppend};
use crate::error::{Problem, Violations};
use crate::fence::Member;
use crate::shared::{Counted, Drain, Shared};

/// Most appends that are unanswered, however small.
const UNANSWERED_MAX: usize = 4096;

/// What a client sends.
#[derive(Debug)]
pub(crate) enum SessionRequest {
    Append(WireAppend),
    Opening { opening: pb::SessionOpening, has_append: bool },
}

/// See the [module](self).
pub(crate) struct Session<S> {
    shared: Arc<Shared>,
    requests: S,
    /// In the order in which they came, with their bytes.
    unanswered: VecDeque<(Pending, usize)>,
    bytes: usize,
    is_greeted: bool,
    /// A request has come.
    has_begun: bool,
    /// If it has a name.
    member: Option<Member>,
    /// Nothing more is read; when all is answered it ends so.
    ending: Option<Option<Status>>,
    has_ended: bool,
    drain: Drain,
    _counted: Counted,
}

enum Happened {
    Answered(Result<pb::AppendResponse, Status>),
    Requested(Option<Result<SessionRequest, Status>>),
    Draining,
}

impl<S: Stream<Item = Result<SessionRequest, Status>> + Unpin + Send> Session<S> {
    pub(crate) fn begin(shared: &Arc<Shared>, requests: S) -> Result<Self, Status> {
        shared.check_not_draining()?;
        Ok(Self {
            shared: Arc::clone(shared),
            requests,
            unanswered: VecDeque::new(),
            bytes: 0,
            is_greeted: false,
            has_begun: false,
            member: None,
            ending: None,
            has_ended: false,
            drain: shared.drain(),
            _counted: Counted::new(shared, 1, |counters| &counters.append_sessions),
        })
    }

    /// What to send next; `None` when the client has closed its side and everything is answered.
    pub(crate) async fn next(&mut self) -> Option<Result<pb::AppendSessionResponse, Status>> {
        if !self.is_greeted {
            self.is_greeted = true;
            let granted_bytes = self.shared.config.session_bytes_max as u64;
            let greeting = pb::AppendSessionResponse { granted_bytes, ..Default::default() };
            return Some(Ok(greeting));
        }
        loop {
            if self.has_ended {
                return None;
            }
            if self.unanswered.is_empty()
                && let Some(ending) = self.ending.take()
            {
                self.has_ended = true;
                return ending.map(Err);
            }
            let may_read = self.ending.is_none()
                && self.bytes < self.shared.config.session_bytes_max
                && self.unanswered.len() < UNANSWERED_MAX
                // What comes after one that waits for room must not overtake it.
                && self.unanswered.back().is_none_or(|(pending, _)| pending.is_in_order());
            let is_open = self.ending.is_none();
            let front = self.unanswered.front_mut();
            let answered = async move {
                match front {
                    Some((pending, _)) => pending.await,
                    None => pending().await,
                }
            };
            let happened = tokio::select! {
                biased;
                answer = answered => Happened::Answered(answer),
                () = self.drain.begun(), if is_open => Happened::Draining,
                request = self.requests.next(), if may_read => Happened::Requested(request),
            };
            match happened {
                Happened::Answered(answer) => {
                    let (_, bytes) = self.unanswered.pop_front().expect("it was answered");
                    self.bytes -= bytes;
                    match answer {
                        Ok(response) => {
                            let response = Some(response);
                            return Some(Ok(pb::AppendSessionResponse { response, ..Default::default() }));
                        }
                        // What was sent behind it may have been applied already, if it is the disk that failed.
                        Err(status) => {
                            self.has_ended = true;
                            return Some(Err(status));
                        }
                    }
                }
                Happened::Draining => self.ending = Some(Some(Problem::draining().into())),
                Happened::Requested(None) => self.ending = Some(None),
                Happened::Requested(Some(Err(status))) => self.ending = Some(Some(status)),
                Happened::Requested(Some(Ok(SessionRequest::Opening { opening, has_append }))) => {
                    let is_first = !std::mem::replace(&mut self.has_begun, true);
                    match self.open(&opening, is_first && !has_append).await {
                        Ok(()) => {
                            return Some(Ok(pb::AppendSessionResponse {
                                opened: true,
                                ..Default::default()
                            }));
                        }
                        Err(status) => self.ending = Some(Some(status)),
                    }
                }
                Happened::Requested(Some(Ok(SessionRequest::Append(request)))) => {
                    self.has_begun = true;
                    let bytes = request.bytes;
                    match append::begin(&self.shared, request, self.member.as_ref()) {
                        Ok(pending) => {
                            self.bytes += bytes;
                            self.unanswered.push_back((pending, bytes));
                        }
                        // Those before it are answered first.
                        Err(status) => self.ending = Some(Some(status)),
                    }
                }
            }
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
