//! The task of a session: one stream at a time, from the opening to the loss of it, and again.
//!
//! Each batch gets the next sequence of the session's producer when it is first sent, and keeps it.

use std::collections::VecDeque;
use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message;
use quipu_proto::v1;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::batch::Batch;
use super::{ProducerName, Shared};
use crate::append::{Appended, Durability, appended, in_session, options, request};
use crate::client::{Client, in_time, path};
use crate::codec::Encoded;
use crate::error::{Error, Outcome, Result};
use crate::retry::Backoff;

/// Most batches that are sent and not answered, however small: of so many a server keeps the answers.
const UNANSWERED_MAX: usize = 64;
/// How long a session that ends waits for the server to forget its producer. Nothing depends on it.
const FORGET_TIME_MAX: Duration = Duration::from_secs(1);

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Driver {
    client: Client,
    shared: Arc<Shared>,
    producer: ProducerName,
    epoch: u64,
    next_sequence: u64,
    /// A stream with batches on it was lost: the server may still have some of them on their way.
    has_lost: bool,
    stream: Option<Stream>,
    /// Sent on `stream` and not answered, in order.
    sent: VecDeque<(Batch, usize)>,
    /// To be sent before anything that is queued: what a lost stream had not answered.
    backlog: VecDeque<Batch>,
    backoff: Backoff,
}

/// A session's stream that is open.
#[derive(Debug)]
struct Stream {
    requests: mpsc::Sender<Encoded>,
    responses: Streaming<Bytes>,
    granted_bytes: usize,
}

/// The server takes nothing more on a stream.
struct Closed;

/// Why the work on a stream came to its end.
enum End {
    /// Everything is answered, and nothing more will come.
    Done,
    /// It broke.
    Lost(Error),
}

impl Driver {
    /// Opens the first stream.
    pub(super) async fn start(client: Client, shared: Arc<Shared>) -> Result<Self> {
        let backoff = Backoff::new(client.settings.retry);
        let producer = shared.settings.producer.clone();
        let (epoch, next_sequence) = match producer {
            ProducerName::Temporary(_) => (0, 0),
            ProducerName::Named { epoch, next_sequence, .. } => (epoch, next_sequence),
        };
        let mut driver = Self {
            client,
            shared,
            producer,
            epoch,
            next_sequence,
            has_lost: false,
            stream: None,
            sent: VecDeque::new(),
            backlog: VecDeque::new(),
            backoff,
        };
        loop {
            match driver.connect().await {
                Ok(()) => return Ok(driver),
                Err(error) => driver.backoff.wait(error).await?,
            }
        }
    }

    /// Works until the session is closed or fails.
    pub(super) async fn run(mut self) {
        loop {
            let error = match self.work().await {
                End::Done => return self.forget().await,
                End::Lost(error) => error,
            };
            self.has_lost |= !self.sent.is_empty();
            // A refusal is the answer to the first that is not answered, and nothing behind it was applied.
            let is_refused = !error.is_transient() && error.outcome() == Outcome::NotApplied;
            // In front of what was about to be sent.
            for (mut batch, _) in std::mem::take(&mut self.sent).into_iter().rev() {
                batch.is_in_doubt |= !is_refused;
                self.backlog.push_front(batch);
            }
            let recovered = match error {
                Error::SequenceGap { expected, .. } if self.may_begin_anew(expected) => {
                    self.begin_anew();
                    self.connect_again(None).await.map(|()| true)
                }
                error => self.recover(error).await,
            };
            match recovered {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.fail(&error),
            }
        }
    }

    /// Whether a gap means that nothing of what is not answered was applied, and may be appended under a new epoch.
    ///
    /// Either the server has forgotten the producer, which it may if that is temporary; or what was answered, and not
    /// to be synced, went with a power cut: then so did all behind it.
    fn may_begin_anew(&self, expected: u64) -> bool {
        let is_forgotten = expected == 0;
        let may_be_cut = self.shared.settings.durability != Durability::Synced && !is_forgotten;
        let is_in_doubt = self.backlog.iter().any(|batch| batch.is_in_doubt);
        matches!(self.producer, ProducerName::Temporary(_)) && (may_be_cut || !is_in_doubt)
    }

    /// Numbers what is not answered from 0 again.
    fn begin_anew(&mut self) {
        self.epoch += 1;
        self.next_sequence = 0;
        for batch in self.backlog.iter_mut() {
            batch.is_in_doubt = false;
            if batch.sequence.is_some() {
                batch.sequence = Some(self.next_sequence);
                self.next_sequence += 1;
            }
        }
    }

    /// Lets the server forget a producer that nobody else uses.
    async fn forget(self) {
        // Requests of a lost stream may come to the server yet: they are repeats only as long as it knows the producer.
        if self.has_lost || self.next_sequence == 0 {
            return;
        }
        if let ProducerName::Temporary(name) = &self.producer {
            let forgetting = self.client.forget_producer_once(name);
            if !matches!(tokio::time::timeout(FORGET_TIME_MAX, forgetting).await, Ok(Ok(()))) {
                tracing::debug!(producer = name, "the server did not say that it has forgotten the producer");
            }
        }
    }

    /// Waits and connects until there is a stream again; hands back an error that will not pass. `false`: there is nothing
    /// left to do.
    async fn recover(&mut self, error: Error) -> Result<bool> {
        tracing::debug!(topic = self.shared.settings.topic, %error, "append session interrupted");
        if error.is_transient() && self.backlog.is_empty() {
            // A session that has nothing to send survives an outage of any length.
            if !self.has_work().await {
                return Ok(false);
            }
            self.backoff.succeeded();
        }
        self.connect_again(Some(error)).await.map(|()| true)
    }

    /// Connects until there is a stream again, after a wait if there was an error.
    async fn connect_again(&mut self, mut error: Option<Error>) -> Result<()> {
        loop {
            if let Some(error) = error.take() {
                self.backoff.wait(error).await?;
            }
            match self.connect().await {
                Ok(()) => return Ok(()),
                Err(again) => error = Some(again),
            }
        }
    }

    /// Waits until there is something to send, `true`, or the session is closed without that.
    async fn has_work(&self) -> bool {
        loop {
            {
                let state = self.shared.state();
                if state.open.count() > 0 || !state.queued.is_empty() {
                    return true;
                }
                if state.is_closing {
                    return false;
                }
            }
            self.shared.work.notified().await;
        }
    }

    /// Opens a stream and waits for the server's grant.
    async fn connect(&mut self) -> Result<()> {
        let (requests, outgoing) = mpsc::channel(UNANSWERED_MAX + 1);
        let open = self.client.both_streams(path::APPEND_SESSION, ReceiverStream::new(outgoing));
        let mut stream = Stream { requests, responses: open.await?, granted_bytes: 0 };
        let greeting = stream.response();
        in_time(self.client.settings.request_timeout, "to the opening of a session", greeting).await?;
        if self.backlog.is_empty() {
            self.backoff.succeeded();
        }
        self.stream = Some(stream);
        Ok(())
    }

    /// Sends and takes answers until the stream is lost or nothing is left to do.
    async fn work(&mut self) -> End {
        let mut stream = self.stream.take().expect("it was connected");
        loop {
            let (is_done, linger_until) = match self.send(&stream) {
                Ok(state) => state,
                // The stream's last answer says why nothing more can be sent.
                Err(Closed) => loop {
                    let taken = stream.response().await.and_then(|response| self.take(&response));
                    if let Err(error) = taken {
                        return End::Lost(error);
                    }
                },
            };
            if is_done {
                return End::Done;
            }
            let linger = async {
                match linger_until {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => pending().await,
                }
            };
            tokio::select! {
                biased;
                response = stream.response() => {
                    let taken = response.and_then(|response| self.take(&response));
                    if let Err(error) = taken {
                        return End::Lost(error);
                    }
                }
                () = self.shared.work.notified() => {}
                () = linger => {}
            }
        }
    }

    /// Sends what may be sent. Says whether the session is over, or until when the open batch may wait.
    fn send(&mut self, stream: &Stream) -> Result<(bool, Option<tokio::time::Instant>), Closed> {
        let mut bytes: usize = self.sent.iter().map(|(_, bytes)| bytes).sum();
        loop {
            let next = match self.backlog.pop_front() {
                Some(batch) => Some(batch),
                None => {
                    let mut state = self.shared.state();
                    let is_idle = self.sent.is_empty() && state.queued.is_empty();
                    let linger_until = state.open.since().map(|since| since + self.shared.settings.linger);
                    let is_due = linger_until.is_some_and(|at| at <= tokio::time::Instant::now());
                    if is_idle || is_due || state.is_flushing || state.is_closing {
                        state.seal();
                    }
                    let next = state.queued.pop_front();
                    if next.is_none() {
                        let is_done = state.is_closing && self.sent.is_empty();
                        let linger_until =
                            state.open.since().map(|since| since + self.shared.settings.linger);
                        return Ok((is_done, linger_until));
                    }
                    next
                }
            };
            let Some(mut batch) = next else { continue };
            let message = self.request(&mut batch);
            let length = message.len();
            let has_room = self.sent.is_empty()
                || (bytes + length <= stream.granted_bytes && self.sent.len() < UNANSWERED_MAX);
            if !has_room {
                self.backlog.push_front(batch);
                // An answer makes room.
                return Ok((false, None));
            }
            // Before it is given away: from now on it may be applied.
            self.sent.push_back((batch, length));
            bytes += length;
            if stream.requests.try_send(message).is_err() {
                return Err(Closed);
            }
        }
    }

    /// The request that appends a batch.
    fn request(&mut self, batch: &mut Batch) -> Encoded {
        let sequence = *batch.sequence.get_or_insert_with(|| {
            let next = self.next_sequence;
            self.next_sequence += 1;
            next
        });
        let settings = &self.shared.settings;
        let producer = v1::Producer { name: self.producer.name().to_owned(), epoch: self.epoch, sequence };
        let options = v1::AppendRequest { producer: Some(producer), ..options(settings.durability, false) };
        in_session(request(&settings.topic, batch.records.clone(), None, &options))
    }

    fn take(&mut self, response: &v1::AppendSessionResponse) -> Result<()> {
        let Some(answer) = &response.response else { return Ok(()) };
        let (mut batch, _) =
            self.sent.pop_front().ok_or_else(|| Error::protocol("an answer to nothing that was asked"))?;
        let appended = match answer.appended.first() {
            Some(answer) => {
                let appended = appended(answer);
                match appended.next_offset.checked_sub(appended.first_offset) == Some(batch.count) {
                    true => Ok(Some(appended)),
                    false => Err(Error::protocol("an answer for another number of records")),
                }
            }
            None if answer.duplicate => Ok(None),
            None => Err(Error::protocol("an answer without its topic")),
        };
        match appended {
            Ok(appended) => {
                self.backoff.succeeded();
                resolve(&self.shared, batch, appended);
                Ok(())
            }
            Err(error) => {
                // It was sent, and whatever this is says nothing of what became of it.
                batch.is_in_doubt = true;
                batch.failed(&error);
                Err(error)
            }
        }
    }

    /// Ends the session: everything that is not answered gets the error.
    fn fail(self, error: &Error) {
        tracing::debug!(topic = self.shared.settings.topic, %error, "append session ended");
        let mut state = self.shared.state();
        state.seal();
        state.failed = Some(error.clone());
        state.buffered_bytes = 0;
        let queued = std::mem::take(&mut state.queued);
        drop(state);
        for batch in self.backlog.into_iter().chain(queued) {
            batch.failed(error);
        }
        self.shared.room.notify_waiters();
    }
}

impl Stream {
    /// The next response; its grant is noted.
    async fn response(&mut self) -> Result<v1::AppendSessionResponse> {
        let message =
            self.responses.message().await?.ok_or_else(|| Error::Disconnected {
                message: "the session ended without a status".into(),
            })?;
        let response =
            v1::AppendSessionResponse::decode(message).map_err(|error| Error::protocol(error.to_string()))?;
        if response.granted_bytes > 0 {
            self.granted_bytes = usize::try_from(response.granted_bytes).unwrap_or(usize::MAX);
        }
        Ok(response)
    }
}

/// Hands an answer to the tickets of a batch, and its room to others. `None`: it was appended before, nobody knows where.
fn resolve(shared: &Shared, batch: Batch, appended: Option<Appended>) {
    shared.state().buffered_bytes -= batch.records.len();
    match appended {
        Some(appended) => batch.applied(appended),
        None => batch.applied_somewhere(),
    }
    shared.room.notify_waiters();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Record;

    /// A batch whose answer made no sense was reported as not sent, so that whoever appended it anew had it twice.
    #[tokio::test]
    async fn of_a_batch_with_an_answer_that_makes_no_sense_nobody_knows_whether_it_is_there() {
        let client = Client::builder("http://127.0.0.1:1").connect_lazy().unwrap();
        let of_two = v1::TopicAppended { first_offset: 7, next_offset: 9, ..Default::default() };
        for appended in [vec![], vec![of_two]] {
            let settings = client.append_session("t").settings;
            let shared = Arc::new(Shared::new(settings, 1 << 20, 100));
            let outcomes = {
                let mut state = shared.state();
                state.open.begin(tokio::time::Instant::now());
                state.open.push(&Record::new("x"), None);
                state.open.outcomes()
            };
            let batch = shared.state().open.seal().unwrap();
            let mut driver = Driver {
                backoff: Backoff::new(client.settings.retry),
                client: client.clone(),
                producer: shared.settings.producer.clone(),
                shared,
                epoch: 0,
                next_sequence: 1,
                has_lost: false,
                stream: None,
                sent: VecDeque::from([(batch, 1)]),
                backlog: VecDeque::new(),
            };
            let response = Some(v1::AppendResponse { appended, duplicate: false });
            let error =
                driver.take(&v1::AppendSessionResponse { response, ..Default::default() }).unwrap_err();
            assert!(matches!(error, Error::Protocol { .. }), "{error:?}");
            let outcome = outcomes.borrow().clone().unwrap().unwrap_err();
            assert!(matches!(outcome, Error::Unknown { .. }), "{outcome:?}");
            assert_eq!(outcome.outcome(), Outcome::Unknown);
        }
    }
}
