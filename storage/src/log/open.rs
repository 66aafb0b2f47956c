//! Creating, opening and closing a log.
//!
//! 1. Lock the directory.
//! 2. Read the identity file, or make one, and make sure that its name and that of the directory stay: with it the log
//!    exists.
//! 3. Recover; what is found is on the disk after that.
//! 4. Begin a segment if there is none to go on in; sync it and the directory.
//! 5. Note in the identity file that everything up to here is synced.
//! 6. Start the threads.

use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::Waker;
use std::time::Instant;

use arc_swap::ArcSwap;
use spin::mutex::SpinMutex;

use super::active::{self, Active, Prepared};
use super::ahead::Ahead;
use super::append::Tail;
use super::identity::{Identity, IdentityFile, NAME_ASIDE};
use super::recovery::{Recovered, recover};
use super::settings::LogSettings;
use super::{Handle, Log, LogInner};
use crate::clock::{Clock, SystemClock};
use crate::commit::Commit;
use crate::context::{Context, random};
use crate::disk::{Disk, OsDisk};
use crate::error::{Error, Result};
use crate::format::batch;

use crate::settings::StoreSettings;
use crate::store::open::LOCK;
use crate::types::{Offset, TopicName, Uid};
use crate::watch::Watch;

/// How to open a log.
#[derive(Clone, Debug)]
pub struct LogBuilder {
    settings: LogSettings,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    create: bool,
}

impl Default for LogBuilder {
    fn default() -> Self {
        Self {
            settings: LogSettings::default(),
            disk: Arc::new(OsDisk),
            clock: Arc::new(SystemClock),
            create: true,
        }
    }
}

impl LogBuilder {
    /// Uses these settings.
    #[must_use]
    pub fn settings(mut self, settings: LogSettings) -> Self {
        self.settings = settings;
        self
    }

    /// Uses this disk.
    #[must_use]
    pub fn disk(mut self, disk: Arc<dyn Disk>) -> Self {
        self.disk = disk;
        self
    }

    /// Uses this clock.
    #[must_use]
    pub fn clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = clock;
        self
    }

    /// Whether to create the log if there is none. `true`.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Opens the log in directory `path`.
    ///
    /// # Errors
    /// As [`Log::open`]; and [`Error::InvalidSetting`], and [`Error::NoStore`] if it may not be created.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Log> {
        self.settings.check()?;
        let dir = path.as_ref();
        let disk = &*self.disk;
        if self.create {
            disk.create_dir(dir).map_err(|error| Error::io("create directory", dir, error))?;
        }
        let lock_path = dir.join(LOCK);
        let holder = format!("process {}", std::process::id());
        let lock = disk.lock(&lock_path, &holder).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => Error::Locked { path: dir.into(), holder: error.to_string() },
            io::ErrorKind::NotFound => Error::NoStore { path: dir.into() },
            _ => Error::io("lock", &lock_path, error),
        })?;
        let mut identity_file = match IdentityFile::open(disk, dir)? {
            // Never opened to the end before: a sync of its name may have failed, which no later one makes up for.
            Some(file) if file.identity().synced.1 == 0 => {
                IdentityFile::create(disk, dir, file.identity().uid)?
            }
            Some(file) => file,
            None => create(disk, dir, self.create)?,
        };
        let identity = identity_file.identity();
        let settings = self.settings;
        let shared = StoreSettings { maps_max: settings.maps_max, ..StoreSettings::default() };
        let context = Arc::new(Context::new(dir.into(), self.disk, self.clock, shared, identity.uid, false));
        if identity.synced.1 == 0 {
            context.sync_dir(dir)?;
            if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                context.sync_dir(parent)?;
            }
        }
        let seed = batch::seed(identity.uid);
        let capacity = active::capacity_for(settings.segment_bytes_max);
        let recovered = recover(&context, &identity, seed, settings.segment_bytes_max)?;
        let Recovered { sealed, tail, last_time, next_offset, report } = recovered;
        let name = TopicName::new("log").expect("a name within the rules");
        let mut segments: Vec<_> = sealed
            .iter()
            .map(|sealed| LogInner::new_segment(&context, &name, seed, sealed, sealed.bytes, true))
            .collect();
        let limit = settings.segment_bytes_max;
        let active = match tail {
            Some(tail) => {
                let found = crate::format::checkpoint::SealedSegment {
                    base_offset: tail.base_offset,
                    rewrites: 0,
                    next_offset: tail.index.next_offset(),
                    bytes: tail.index.position(),
                    record_count: tail.index.record_count(),
                    first_time: tail.index.times().0,
                    last_time: tail.index.times().1,
                };
                let segment = LogInner::new_segment(&context, &name, seed, &found, tail.capacity, false);
                let path = segment.path.clone();
                Active::resume(segment, tail.file, tail.index, tail.capacity, limit)
                    .map_err(|error| Error::io("write", path, error))?
            }
            None => {
                let prepared = Prepared::create(&context, capacity)?;
                let new_segment = |fresh: &_, capacity| {
                    LogInner::new_segment(&context, &name, seed, fresh, capacity, false)
                };
                Active::begin(&context, prepared, next_offset, limit, true, new_segment)?
            }
        };
        segments.push(Arc::clone(&active.segment));
        context.sync_dir(&context.dir)?;
        let synced = (active.segment.base_offset, active.position());
        write_identity(&context, &mut identity_file, Identity { synced, ..identity })?;
        let commit = Commit::default();
        commit.start_at(next_offset.0);
        let ahead = Arc::new(Ahead::new(capacity));
        let inner = Arc::new(LogInner {
            name,
            seed,
            log_start: AtomicU64::new(identity.log_start_offset.max(segments[0].base_offset).0),
            high_watermark: AtomicU64::new(next_offset.0),
            log_end: AtomicU64::new(next_offset.0),
            tail: SpinMutex::new(Tail::new(active, next_offset, last_time)),
            segments: ArcSwap::from_pointee(segments),
            commit,
            ahead,
            synced: Watch::default(),
            written: Watch::default(),
            wake: Watch::default(),
            unsynced_segments: AtomicUsize::new(0),
            identity: Mutex::new(identity_file),
            recovery: report,
            settings,
            context,
        });
        let of_alarm = Arc::downgrade(&inner);
        inner.context.on_failure(move |failure| {
            if let Some(log) = of_alarm.upgrade() {
                log.tell_failure(failure);
            }
        });
        let handle = Handle {
            inner: Arc::clone(&inner),
            threads: Mutex::default(),
            lock: Mutex::new(Some(lock)),
            closed: Mutex::new(None),
        };
        if inner.settings.background {
            let mut threads = handle.threads.lock().expect("no panic under this lock");
            threads.push(inner.ahead.start(&inner.context)?);
            let weak = Arc::downgrade(&inner);
            let syncer = std::thread::Builder::new().name("quipu-log-sync".into());
            let started = syncer.spawn(move || sync_now_and_then(&weak));
            threads.push(started.map_err(|error| Error::io("start a thread for", dir, error))?);
            drop(threads);
            let tail = inner.tail();
            inner.ahead.advance(&tail.active.fill, tail.active.position(), false);
        }
        Ok(Log { handle: Arc::new(handle) })
    }
}

/// Makes a log in an empty directory.
fn create(disk: &dyn Disk, dir: &Path, may_create: bool) -> Result<IdentityFile> {
    let entries = disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let half_made = [LOCK, NAME_ASIDE];
    if let Some(entry) = entries.iter().find(|entry| !half_made.contains(&entry.name.as_str())) {
        let detail = format!("it holds {:?} and no file called {:?}", entry.name, super::identity::NAME);
        return Err(Error::NotAStore { path: dir.into(), detail });
    }
    if !may_create {
        return Err(Error::NoStore { path: dir.into() });
    }
    IdentityFile::create(disk, dir, Uid(random()?))
}

/// Replaces what the identity file says. A failed sync of it fails the log.
pub(super) fn write_identity(context: &Context, file: &mut IdentityFile, identity: Identity) -> Result<()> {
    file.write(identity, |file, path| context.sync_file(file, path))
}

/// Syncs what nobody waits for.
fn sync_now_and_then(log: &Weak<LogInner>) {
    loop {
        let Some(log) = log.upgrade() else { return };
        let deadline = Instant::now() + log.settings.sync_interval;
        log.wake.wait_until(Some(deadline), || {
            log.context.check_writable().is_err()
                || log.unsynced_segments.load(Ordering::Acquire) >= super::append::UNSYNCED_SEGMENTS_MAX
        });
        if log.context.check_writable().is_err() {
            return;
        }
        // Whoever appends next learns of a failure.
        let _ = log.sync();
    }
}

impl Log {
    /// Closes the log: no appends from now on, everything synced. Readers may go on. Whoever closes it again, or at the
    /// same time, gets the same answer, and not before it is closed; so not from within a waker.
    ///
    /// # Errors
    /// What kept it from being synced. It is closed nevertheless; the next opening recovers.
    pub fn close(&self) -> Result<()> {
        self.handle.close()
    }
}

impl Handle {
    fn close(&self) -> Result<()> {
        let mut closed = self.closed.lock().expect("no panic under this lock");
        if let Some(outcome) = &*closed {
            return outcome.clone();
        }
        let inner = &*self.inner;
        let context = &inner.context;
        context.close();
        inner.tail().interrupt();
        inner.wake.notify();
        inner.ahead.stop();
        let threads = std::mem::take(&mut *self.threads.lock().expect("no panic under this lock"));
        // The last user may go in a waker, which a thread of the log runs: it ends by itself.
        let own = std::thread::current().id();
        let others = threads.into_iter().filter(|thread| thread.thread().id() != own);
        let panicked = others.filter_map(|thread| thread.join().err()).count();
        assert_eq!(panicked, 0, "a thread of the log panicked");
        let outcome = match context.failure() {
            Some(failure) => Err(failure.clone()),
            None => inner.sync().and_then(|()| inner.finish()),
        };
        inner.tail().active.close();
        inner.ahead.discard(context);
        // Those who wait are told what failed the log, also when the thread that tells it has not come to it yet.
        let told = context.failure().cloned().unwrap_or(Error::Closed);
        let wakers = inner.commit.fail_and_wake_later(told);
        context.wait_for_alarm();
        *self.lock.lock().expect("no panic under this lock") = None;
        *closed = Some(outcome.clone());
        drop(closed);
        // What is woken may close the log itself.
        wakers.into_iter().for_each(Waker::wake);
        inner.synced.notify();
        inner.written.notify();
        outcome
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // Whoever wants to know calls `close`. What is acknowledged is safe either way. If closing panicked, there is no
        // more to be done.
        if !self.closed.is_poisoned() {
            let _ = self.close();
        }
    }
}

impl LogInner {
    /// Wakes all who wait for what a log that has failed does not do any more. They find out what failed it.
    fn tell_failure(&self, failure: &Error) {
        self.commit.fail(failure.clone());
        self.wake.notify();
        self.synced.notify();
        self.written.notify();
    }

    /// Finishes the active segment and notes where the log ends, all of it synced: so what is damaged there later is known
    /// to be no torn write.
    fn finish(&self) -> Result<()> {
        let synced = {
            let tail = self.tail();
            if self.high_watermark.load(Ordering::Acquire) < tail.next_offset.0 {
                return Ok(());
            }
            // Nobody else wants the lock any more: appends are refused before it, and the threads have ended.
            tail.active.finish(&self.context, self.seed)?;
            (tail.active.segment.base_offset, tail.active.position())
        };
        self.note_synced(synced.0, synced.1)
    }

    /// Notes that the segment that starts at `base_offset`, and all before it, are synced up to `position`.
    pub(super) fn note_synced(&self, base_offset: Offset, position: u64) -> Result<()> {
        let mut file = self.identity();
        let identity = file.identity();
        let synced = (base_offset, position);
        if identity.synced >= synced {
            return Ok(());
        }
        match write_identity(&self.context, &mut file, Identity { synced, ..identity }) {
            // What is not noted is found out at the next opening.
            Err(Error::Io { .. } | Error::DiskFull { .. }) => Ok(()),
            outcome => outcome,
        }
    }
}
