//! What is done before it is needed, so that an append does not have to wait for it: zeros ahead of the batches, the file
//! of the next segment, and the end of maps that are done with.
//!
//! Without the thread everything works the same; an append then does it for itself when it gets there.

use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;

use super::active::{FILL_AHEAD_BYTES, Fill, Prepared};
use crate::context::Context;
use crate::disk::Writer;
use crate::error::{Error, Result};

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Ahead {
    state: Mutex<State>,
    changed: Condvar,
    capacity: u64,
}

#[derive(Debug, Default)]
struct State {
    /// Whether a thread does what is asked for here.
    has_thread: bool,
    /// Zeros are wanted in this file up to there.
    fill: Option<(Arc<Fill>, u64)>,
    next: Option<Prepared>,
    wants_next: bool,
    is_preparing: bool,
    done_with: Vec<Box<dyn Writer>>,
    stops: bool,
}

impl Ahead {
    /// Files are prepared with this capacity.
    pub(super) fn new(capacity: u64) -> Self {
        Self { state: Mutex::default(), changed: Condvar::new(), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic under this lock")
    }

    /// Starts the thread.
    pub(super) fn start(self: &Arc<Self>, context: &Arc<Context>) -> Result<JoinHandle<()>> {
        let (ahead, context) = (Arc::clone(self), Arc::clone(context));
        let thread_of = context.dir.clone();
        self.lock().has_thread = true;
        std::thread::Builder::new()
            .name("quipu-log-ahead".into())
            .spawn(move || ahead.run(&context))
            .map_err(|error| Error::io("start a thread for", &thread_of, error))
    }

    /// The thread ends soon.
    pub(super) fn stop(&self) {
        self.lock().stops = true;
        self.changed.notify_all();
    }

    /// The batches have come this far: zeros are wanted ahead of them, and the next file when the end is near.
    pub(super) fn advance(&self, fill: &Arc<Fill>, position: u64, wants_next: bool) {
        let mut state = self.lock();
        if !state.has_thread {
            return;
        }
        state.fill = Some((Arc::clone(fill), position + FILL_AHEAD_BYTES));
        state.wants_next |= wants_next;
        drop(state);
        self.changed.notify_all();
    }

    /// The prepared file if there is one with room for `bytes`, or one made now.
    pub(super) fn take(&self, context: &Context, bytes: u64) -> Result<Prepared> {
        let mut state = self.lock();
        while state.is_preparing {
            state = self.changed.wait(state).expect("no panic under this lock");
        }
        state.wants_next = false;
        match state.next.take() {
            Some(next) if next.has_room(bytes) => Ok(next),
            // Under the lock, so that the thread does not make the same file.
            _ => Prepared::create(context, self.capacity.max(super::active::capacity_for(bytes))),
        }
    }

    /// A sealed segment's writer: to end a map of many pages takes a while.
    pub(super) fn end(&self, writer: Box<dyn Writer>) {
        let mut state = self.lock();
        if state.has_thread {
            state.done_with.push(writer);
        }
    }

    /// Removes the prepared file, when the log is closed.
    pub(super) fn discard(&self, context: &Context) {
        if self.lock().next.take().is_some() {
            // The next opening removes it if this does not.
            let _ = context.disk.remove(&context.dir.join(super::active::NEXT));
        }
    }

    fn run(&self, context: &Context) {
        let mut state = self.lock();
        while !state.stops {
            if !state.done_with.is_empty() {
                let done_with = std::mem::take(&mut state.done_with);
                drop(state);
                drop(done_with);
                state = self.lock();
            } else if let Some((fill, wanted)) = state.fill.take() {
                drop(state);
                // If it fails, the append that gets there meets the same failure and reports it.
                let goes_on = fill.step(wanted).is_ok_and(|filled| filled < wanted.min(fill.capacity));
                state = self.lock();
                if goes_on && state.fill.is_none() {
                    state.fill = Some((fill, wanted));
                }
            } else if state.wants_next && state.next.is_none() {
                state.wants_next = false;
                state.is_preparing = true;
                drop(state);
                let prepared = Prepared::create(context, self.capacity);
                state = self.lock();
                state.is_preparing = false;
                if let Ok(prepared) = prepared {
                    state.fill.get_or_insert_with(|| (Arc::clone(&prepared.fill), FILL_AHEAD_BYTES));
                    state.next = Some(prepared);
                }
                self.changed.notify_all();
            } else {
                state = self.changed.wait(state).expect("no panic under this lock");
            }
        }
    }
}
