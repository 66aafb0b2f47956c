//! Named append sessions: of those with one id, only the one that was opened last appends.
//!
//! They are for clients that do not name a producer. One that does (the client in Rust) needs none of this: what it sends again is
//! recognised.
//!
//! A client that lost its connection must know that nothing it sent earlier will still be applied, before it looks for what
//! was. Requests of the earlier connection may be anywhere: in a buffer of the kernel, decoded, on their way to the engine.
//! Each passes its [`Member::run`] as the last thing before the engine gets it. [`Fences::open`] returns when the one that
//! is passing has been through; all later ones find that the epoch has moved on.
//!
//! What is remembered lives as long as a session, or an append of it on another thread, does. A session that begins later
//! with an old epoch appends nothing that its client counts on: clients send nothing before their opening is answered.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use tonic::{Code, Status};

use crate::error::Problem;

/// Ids that are remembered before those of ended sessions are looked for.
const REMEMBERED_MIN: usize = 1024;

/// The named sessions of a server.
#[derive(Debug, Default)]
pub(crate) struct Fences {
    by_id: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    fences: HashMap<[u8; 16], Weak<Fence>>,
    /// At so many, those of ended sessions are forgotten.
    clean_at: usize,
}

#[derive(Debug, Default)]
struct Fence {
    /// Of the session that was opened last.
    epoch: AtomicU64,
    /// Held by an append on its way into the engine, and by an opening that waits for it.
    gate: tokio::sync::Mutex<()>,
}

/// A session's right to append.
#[derive(Clone, Debug)]
pub(crate) struct Member {
    fence: Arc<Fence>,
    epoch: u64,
}

impl Fences {
    /// Opens a session; when this returns, earlier sessions of that id append nothing any more.
    pub(crate) async fn open(&self, id: [u8; 16], epoch: u64) -> Result<Member, Status> {
        let fence = self.fence(id);
        // Epochs begin at 1, so that the first opening is higher than none.
        if fence.epoch.fetch_max(epoch, Ordering::SeqCst) >= epoch {
            return Err(fenced(fence.epoch.load(Ordering::SeqCst)));
        }
        drop(fence.gate.lock().await);
        Ok(Member { fence, epoch })
    }

    fn fence(&self, id: [u8; 16]) -> Arc<Fence> {
        let mut known = self.by_id.lock().expect("no panic under this lock");
        if let Some(fence) = known.fences.get(&id).and_then(Weak::upgrade) {
            return fence;
        }
        if known.fences.len() >= known.clean_at.max(REMEMBERED_MIN) {
            known.fences.retain(|_, fence| fence.strong_count() > 0);
            known.clean_at = 2 * known.fences.len();
        }
        let fence = Arc::new(Fence::default());
        known.fences.insert(id, Arc::downgrade(&fence));
        fence
    }
}

impl Member {
    /// Appends, unless the session was taken up elsewhere.
    pub(crate) fn run<T>(&self, append: impl FnOnce() -> Result<T, Status>) -> Result<T, Status> {
        let epoch = || self.fence.epoch.load(Ordering::SeqCst);
        // Appends of one session pass one after the other: whoever else holds the gate has opened it anew.
        let _passing = self.fence.gate.try_lock().map_err(|_| fenced(epoch()))?;
        if epoch() != self.epoch { Err(fenced(epoch())) } else { append() }
    }
}

fn fenced(epoch: u64) -> Status {
    let message = format!("the session was opened anew, with epoch {epoch}");
    Problem::new(Code::FailedPrecondition, "FENCED", message).with("epoch", epoch).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_earlier_session_appends_nothing_once_a_later_one_is_open() {
        let fences = Fences::default();
        let first = fences.open([1; 16], 1).await.unwrap();
        let other = fences.open([2; 16], 1).await.unwrap();
        assert_eq!(first.run(|| Ok(7)).unwrap(), 7);
        let second = fences.open([1; 16], 2).await.unwrap();
        assert_eq!(first.run(|| Ok(7)).unwrap_err().code(), Code::FailedPrecondition);
        assert_eq!((second.run(|| Ok(8)).unwrap(), other.run(|| Ok(9)).unwrap()), (8, 9));
        for epoch in [0, 1, 2] {
            assert!(fences.open([1; 16], epoch).await.is_err(), "{epoch}");
        }
        assert_eq!(second.run(|| Ok(8)).unwrap(), 8);
    }

    #[tokio::test]
    async fn an_opening_waits_for_the_append_that_is_passing() {
        let fences = Arc::new(Fences::default());
        let first = fences.open([1; 16], 1).await.unwrap();
        let (passing, has_begun) = std::sync::mpsc::channel();
        let (go_on, may_end) = std::sync::mpsc::channel::<()>();
        let append = std::thread::spawn(move || {
            first.run(|| {
                passing.send(()).unwrap();
                may_end.recv().unwrap();
                Ok(())
            })
        });
        has_begun.recv().unwrap();
        let opening = fences.open([1; 16], 2);
        tokio::pin!(opening);
        assert!(futures_util::poll!(&mut opening).is_pending());
        go_on.send(()).unwrap();
        append.join().unwrap().unwrap();
        assert!(opening.await.is_ok());
    }

    #[tokio::test]
    async fn ended_sessions_are_forgotten() {
        let fences = Fences::default();
        for number in 0..10_000_u128 {
            drop(fences.open(number.to_be_bytes(), 1).await.unwrap());
        }
        assert!(fences.by_id.lock().unwrap().fences.len() <= REMEMBERED_MIN);
    }
}
