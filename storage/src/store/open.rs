//! Opening a store: create it, or recover what it held.
//!
//! 1. Take the lock.
//! 2. Read the checkpoint; without one, and in an empty directory, create the store.
//! 3. Read the journal from there on and apply every frame to the topics, in memory.
//! 4. Write once more and sync what is intact but perhaps not on the disk, the checkpoint too; keep a copy of a torn end.
//! 5. Begin a new generation of the journal behind that, so that nothing stale can ever be taken for new; sync it,
//!    because later files and checkpoints refer to it.
//! 6. Tell readers in other processes where the store begins.
//!
//! On a full disk the reserve file is given up for whatever of it needs room.
//!
//! Segments are not touched: the recovered records are in the tails, from where they are flushed as ever.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::Instant;

use super::background::{Background, Wake};
use super::checkpoint::RESERVE;
use super::{Deleted, Handle, RecoveryReport, Store, StoreInner, Writer, left_over};
use crate::clock::{Clock, SystemClock};
use crate::commit::Commit;
use crate::context::{Context, random};
use crate::disk::{Disk, OpenMode, OsDisk};
use crate::error::{Error, Result};
use crate::format::batch::BatchHeader;
use crate::format::checkpoint::{self, CLEAN_BYTES, Checkpoint, Decoded, MasterKeyState, TopicState};
use crate::format::frame::{Change, FrameBuilder};
use crate::format::{FORMAT_VERSION, HeaderProblem, crc};
use crate::journal::recovery::{self, FoundFile, Recovered};
use crate::journal::{self, Journal, Slot};
use crate::live::Teller;
use crate::producers::Producers;
use crate::settings::StoreSettings;
use crate::topic::TopicInner;
use crate::types::{Offset, Position, Timestamp, TopicId, Uid};
use crate::watch::Watch;

/// The file with the checkpoint.
pub(crate) const CHECKPOINT: &str = "checkpoint";
/// The file that is there while the store is closed properly.
pub(crate) const CLEAN: &str = "clean";
/// The file that is locked, and says who has locked it.
pub(crate) const LOCK: &str = "lock";

/// How to open a store.
#[derive(Clone, Debug)]
pub struct StoreBuilder {
    settings: StoreSettings,
    disk: Arc<dyn Disk>,
    clock: Arc<dyn Clock>,
    create: bool,
    master_key: Option<PathBuf>,
    create_master_key: bool,
}

impl Default for StoreBuilder {
    fn default() -> Self {
        Self {
            settings: StoreSettings::default(),
            disk: Arc::new(OsDisk),
            clock: Arc::new(SystemClock),
            create: true,
            master_key: None,
            create_master_key: false,
        }
    }
}

impl StoreBuilder {
    /// Uses these settings.
    #[must_use]
    pub fn settings(mut self, settings: StoreSettings) -> Self {
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

    /// Whether to create the store if there is none. `true`.
    #[must_use]
    pub fn create(mut self, create: bool) -> Self {
        self.create = create;
        self
    }

    /// Opens the store with this master key, a file outside of its directory: with it, records may name an
    /// [erasure key](crate::Record::erasure_key) and are read as they were appended. Without it, records that have one are
    /// [locked](crate::Redaction::Locked), none can be appended, and everything else is as ever.
    ///
    /// A store has one master key from the first time on that it is opened with one, and a master key one store. Whoever
    /// has a backup of the store and a copy of the master key from before a key was destroyed can read what was sealed
    /// with it: keep it out of backups of the store, and keep no more old copies of it than you must.
    ///
    /// [`open_read_only`](Self::open_read_only) does not use it: there they are locked.
    #[must_use]
    pub fn master_key(mut self, path: impl Into<PathBuf>) -> Self {
        self.master_key = Some(path.into());
        self
    }

    /// Whether to make the master key if there is no such file and the store has none. `false`.
    #[must_use]
    pub fn create_master_key(mut self, create: bool) -> Self {
        self.create_master_key = create;
        self
    }

    pub(crate) fn into_parts(self) -> (StoreSettings, Arc<dyn Disk>, Arc<dyn Clock>) {
        (self.settings, self.disk, self.clock)
    }

    /// Opens the store in directory `path` for reading and writing.
    ///
    /// # Errors
    /// As [`Store::open`]; and [`Error::InvalidSetting`], and [`Error::NoStore`] if it may not be created.
    pub fn open(self, path: impl AsRef<Path>) -> Result<Store> {
        self.settings.check()?;
        let begun = Instant::now();
        let dir = path.as_ref();
        let disk = &*self.disk;
        if self.create {
            disk.create_dir(dir).map_err(|error| Error::io("create directory", dir, error))?;
        }
        let lock_path = dir.join(LOCK);
        let holder = format!("process {}", std::process::id());
        let take_lock = || {
            disk.lock(&lock_path, &holder).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => Error::Locked { path: dir.into(), holder: error.to_string() },
                io::ErrorKind::NotFound => Error::NoStore { path: dir.into() },
                _ => Error::io("lock", &lock_path, error),
            })
        };
        let lock = with_room(disk, dir, take_lock)?;
        let decoded = match read_checkpoint(disk, dir)? {
            Some(decoded) => decoded,
            None => Decoded { checkpoint: create(disk, dir, self.create)?, damaged_copy: None },
        };
        let checkpoint = decoded.checkpoint;
        let context =
            Arc::new(Context::new(dir.into(), self.disk, self.clock, self.settings, checkpoint.store, false));
        let mut damaged = Vec::new();
        damaged.extend(decoded.damaged_copy.map(|_| dir.join(CHECKPOINT)));
        let is_clean = is_closed_properly(&*context.disk, &context.dir, checkpoint.position)?;
        let files = recovery::find(&context, is_clean, &mut damaged)?;
        take_clean(&context)?;
        let mut state = Recovering::new(&context, &checkpoint);
        let recovered =
            recovery::replay(&files, checkpoint.position, checkpoint.generation, is_clean, |changes| {
                state.apply(changes)
            })?;
        if let Some(path) = &self.master_key {
            super::erase::open_master_key(&context, path, self.create_master_key, state.master_key)?;
        }
        with_room(&*context.disk, dir, || recovery::settle(&context, &files, &recovered))?;
        if !is_clean || !damaged.is_empty() {
            settle_checkpoint(&context, &checkpoint)?;
        }
        if !is_clean {
            left_over::find(&context, &mut state)?;
        }
        let torn_kept = recovery::keep_torn(&context, &recovered);
        let report = RecoveryReport {
            was_clean: is_clean,
            journal_end: recovered.how,
            frames: state.frames,
            records: state.records,
            in_doubt_bytes: recovered.in_doubt.iter().map(|(_, _, bytes)| bytes.len() as u64).sum(),
            torn_kept,
            damaged,
            duration: begun.elapsed(),
        };
        let journal = begin_journal(&context, files, &recovered)?;
        let live = Teller::open(&context, journal.generation(), recovered.end, checkpoint.position)?;
        for topic in state.topics.values() {
            topic.move_high_watermark(topic.log_end());
        }
        let commit = Commit::default();
        commit.start_at(recovered.end.0);
        let inner = Arc::new(StoreInner {
            commit,
            topics: RwLock::new(
                state
                    .topics
                    .values()
                    .map(|topic| (topic.name.clone(), Arc::clone(topic)))
                    .collect::<HashMap<_, _>>(),
            ),
            writer: Mutex::new(Writer {
                journal,
                frame: FrameBuilder::default(),
                topics: state.topics,
                next_topic: state.next_topic,
                deleted: state.deleted.into_iter().map(|topic| Deleted { topic, may_go: true }).collect(),
                producers: state.producers,
                master_key: state.master_key,
                unsynced: Vec::new(),
            }),
            checkpointing: Mutex::new(()),
            working: RwLock::new(()),
            checkpointed: AtomicU64::new(checkpoint.position.0),
            checkpoint_error: Mutex::new(None),
            room: Watch::default(),
            wake: Wake::default(),
            live: Mutex::new(live),
            recovery: RecoveryReport { duration: begun.elapsed(), ..report },
            context,
        });
        let of_alarm = Arc::downgrade(&inner);
        inner.context.on_failure(move |failure| {
            if let Some(store) = of_alarm.upgrade() {
                store.tell_failure(failure);
            }
        });
        let background = inner.context.settings.background.then(|| Background::start(&inner)).transpose()?;
        let store = Store {
            handle: Arc::new(Handle {
                inner,
                background: Mutex::new(background),
                lock: Mutex::new(Some(lock)),
                closed: Mutex::new(None),
            }),
        };
        store.handle.inner.settle_master_key()?;
        Ok(store)
    }
}

/// A step of the opening, taken again without the reserve if the disk is full. The next checkpoint sets one aside again.
fn with_room<T>(disk: &dyn Disk, dir: &Path, step: impl Fn() -> Result<T>) -> Result<T> {
    match step() {
        Err(Error::DiskFull { .. }) if disk.remove(&dir.join(RESERVE)).is_ok() => step(),
        outcome => outcome,
    }
}

/// The checkpoint, if there is one.
pub(crate) fn read_checkpoint(disk: &dyn Disk, dir: &Path) -> Result<Option<Decoded>> {
    let path = dir.join(CHECKPOINT);
    let read = || {
        let file = disk.open(&path, OpenMode::Read)?;
        let length =
            usize::try_from(file.len()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut bytes = vec![0; length];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(error) if io::Error::kind(&error) == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io("read checkpoint", path, error)),
    };
    match Checkpoint::decode(&bytes) {
        Ok(decoded) => Ok(Some(decoded)),
        Err(HeaderProblem::Newer(found)) => {
            Err(Error::NewerFormat { path, found, supported: u32::from(FORMAT_VERSION) })
        }
        Err(HeaderProblem::Blank) => Err(Error::CorruptFile {
            path,
            position: Position::ZERO,
            detail: "the checkpoint is blank".into(),
        }),
        Err(HeaderProblem::Invalid(invalid)) => Err(Error::CorruptFile {
            path,
            position: Position(invalid.position as u64),
            detail: invalid.detail.into(),
        }),
    }
}

/// From now on the store is not closed properly: that must be on the disk before anything new is.
fn take_clean(context: &Context) -> Result<()> {
    let path = context.dir.join(CLEAN);
    match context.disk.remove(&path) {
        Ok(()) => context.sync_dir(&context.dir),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(Error::io("remove", path, error)),
    }
}

/// Whether the store was closed properly, its journal ending at `position`.
pub(crate) fn is_closed_properly(disk: &dyn Disk, dir: &Path, position: Position) -> Result<bool> {
    let path = dir.join(CLEAN);
    let mut bytes = [0; CLEAN_BYTES + 1];
    match disk.open(&path, OpenMode::Read).and_then(|file| file.read_at(&mut bytes, 0)) {
        Ok(length) => Ok(checkpoint::is_clean(&bytes[..length], position)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io("read", path, error)),
    }
}

/// Notes that the store is closed properly. That it cannot be noted costs the next opening some time, no more.
pub(crate) fn put_clean(context: &Context, position: Position) -> Result<()> {
    let path = context.dir.join(CLEAN);
    let write = || {
        let file = context.disk.open(&path, OpenMode::Create)?;
        file.write_at(&[IoSlice::new(&checkpoint::encode_clean(position))], 0)?;
        file.sync()
    };
    write().map_err(|error| Error::io("write", &path, error))?;
    context.sync_dir(&context.dir)
}

/// Makes a store in an empty directory. The checkpoint comes last: with it the store exists.
fn create(disk: &dyn Disk, dir: &Path, may_create: bool) -> Result<Checkpoint> {
    let entries = disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let half_made = [LOCK, "journal", "topics", "checkpoint.new"];
    if let Some(entry) = entries.iter().find(|entry| !half_made.contains(&entry.name.as_str())) {
        let detail = format!("it holds {:?} and no checkpoint", entry.name);
        return Err(Error::NotAStore { path: dir.into(), detail });
    }
    for name in ["journal", "topics"] {
        let path = dir.join(name);
        match disk.list(&path) {
            Ok(entries) if !entries.is_empty() => {
                let detail =
                    format!("it has a {name} but no checkpoint: if this was a store, restore that file");
                return Err(Error::NotAStore { path: dir.into(), detail });
            }
            // Somebody was stopped here, perhaps by a failed sync: only what is made anew is synced by the next one.
            Ok(_) if may_create => {
                disk.remove_dir(&path).map_err(|error| Error::io("remove directory", &path, error))?;
            }
            _ => {}
        }
        if may_create {
            disk.create_dir(&path).map_err(|error| Error::io("create directory", &path, error))?;
        }
    }
    if !may_create {
        return Err(Error::NoStore { path: dir.into() });
    }
    let sync = |path: &Path| disk.sync_dir(path).map_err(|error| Error::io("sync directory", path, error));
    sync(dir)?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        sync(parent)?;
    }
    let checkpoint = Checkpoint {
        store: Uid(random()?),
        position: Position::ZERO,
        generation: 0,
        next_topic: TopicId(1),
        topics: Vec::new(),
        deleted: Vec::new(),
        producers: Vec::new(),
        request_ids: Vec::new(),
        master_key: None,
    };
    write_checkpoint(disk, dir, &checkpoint)?;
    Ok(checkpoint)
}

/// Puts the checkpoint in place once more. Whoever put it there may have been stopped before it was durable, and an
/// earlier one needs journal files that may be used again from now on.
fn settle_checkpoint(context: &Context, checkpoint: &Checkpoint) -> Result<()> {
    match write_checkpoint(&*context.disk, &context.dir, checkpoint) {
        // There is one in place, and no more can be done.
        Err(Error::DiskFull { .. }) => {
            let _ = context.disk.remove(&context.dir.join("checkpoint.new"));
            context.sync_dir(&context.dir)
        }
        outcome => outcome,
    }
}

/// Writes a checkpoint aside, syncs it, and puts it in place.
pub(crate) fn write_checkpoint(disk: &dyn Disk, dir: &Path, checkpoint: &Checkpoint) -> Result<()> {
    let (aside, place) = (dir.join("checkpoint.new"), dir.join(CHECKPOINT));
    let write = || {
        match disk.remove(&aside) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = disk.open(&aside, OpenMode::Create)?;
        file.write_at(&[IoSlice::new(&checkpoint.encode())], 0)?;
        Ok(file)
    };
    let file = write().map_err(|error| Error::io("write checkpoint", &aside, error))?;
    // Nothing depends on this file yet: a failed sync of it costs only this checkpoint.
    match file.sync() {
        Err(error) if !crate::planted::ignores_sync_errors() => {
            return Err(Error::failed("sync checkpoint", &aside, error));
        }
        _ => {}
    }
    disk.rename(&aside, &place).map_err(|error| Error::failed("rename checkpoint", &place, error))?;
    if crate::planted::skips_directory_sync() {
        return Ok(());
    }
    match disk.sync_dir(dir) {
        Err(error) if !crate::planted::ignores_sync_errors() => {
            Err(Error::failed("sync directory", dir, error))
        }
        _ => Ok(()),
    }
}

/// What the journal goes on in when the disk is too full for a file of the size that the settings say: so small that the
/// reserve is good for some more, since each opening before the next checkpoint takes one.
const SMALL_JOURNAL_FILE_BYTES: u64 = 64 << 10;

/// Begins a new generation in a file that nothing needs.
fn begin_journal(context: &Context, files: Vec<FoundFile>, recovered: &Recovered) -> Result<Journal> {
    // The name of a file that was never used may not be on the disk: its process was killed before it had synced the
    // name, or that sync failed, and then a later one does not make up for it. So it is named again.
    for file in files.iter().filter(|file| file.header.is_none()) {
        let aside = file.path.with_extension(&journal::HALF_MADE[1..]);
        let rename = |from: &Path, to: &Path| {
            context.disk.rename(from, to).map_err(|error| Error::io("rename journal file", from, error))
        };
        rename(&file.path, &aside)?;
        rename(&aside, &file.path)?;
    }
    context.sync_dir(&journal::dir(context))?;
    let mut needed = Vec::new();
    let mut free = Vec::new();
    // Of another size than the settings say now, or half made.
    let mut odd = Vec::new();
    let mut highest = 0;
    for (number, file) in files.into_iter().enumerate() {
        let slot_number = file.path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        highest = highest.max(slot_number.map_or(0, |number| number + 1));
        let end = recovered.needed.iter().find(|(needed, _)| *needed == number).map(|(_, end)| *end);
        let covered = end.is_none() || end <= Some(recovered.needed_from());
        drop(file.file);
        if !covered {
            needed.push((Slot::open(context, file.path, file.bytes)?, end.unwrap_or_default()));
        } else if file.bytes == context.settings.journal_file_bytes {
            free.push(Slot::open(context, file.path, file.bytes)?);
        } else {
            odd.push((file.path, file.bytes));
        }
    }
    odd.sort_by_key(|(_, bytes)| *bytes);
    needed.sort_by_key(|(_, end)| *end);
    let slot = match free.pop() {
        Some(slot) => slot,
        None => match with_room(&*context.disk, &context.dir, || Slot::create(context, highest)) {
            // Any will do for what makes a full disk free again: a trim, a deletion.
            Err(error @ Error::DiskFull { .. }) => match odd.pop() {
                Some((path, bytes)) => Slot::open(context, path, bytes)?,
                None => {
                    let bytes = SMALL_JOURNAL_FILE_BYTES.min(context.settings.journal_file_bytes);
                    Slot::create_with(context, highest, bytes).map_err(|_| error)?
                }
            },
            outcome => outcome?,
        },
    };
    let generation = recovered.generation + 1;
    let mut journal =
        Journal::begin(context, slot, generation, recovered.last_generation, recovered.end, needed, free)?;
    // The files that are free now may be where the checkpoint's position lies: before one of them is used again or
    // removed there must be another place that says so. And the next checkpoint names this generation.
    for (file, path) in journal.sync_work()?.files {
        context.sync_file(&*file, &path)?;
    }
    for (path, _) in odd {
        context.disk.remove(&path).map_err(|error| Error::io("remove", &path, error))?;
    }
    Ok(journal)
}

/// The topics while the journal is read back.
#[derive(Debug)]
pub(crate) struct Recovering {
    context: Arc<Context>,
    pub(crate) topics: BTreeMap<TopicId, Arc<TopicInner>>,
    pub(crate) next_topic: TopicId,
    pub(crate) deleted: Vec<TopicId>,
    /// A mere list in a store that is open for reading only.
    pub(crate) producers: Producers,
    pub(crate) master_key: Option<MasterKeyState>,
    pub(crate) frames: u64,
    pub(crate) records: u64,
}

impl Recovering {
    pub(crate) fn new(context: &Arc<Context>, checkpoint: &Checkpoint) -> Self {
        Self {
            context: Arc::clone(context),
            topics: checkpoint
                .topics
                .iter()
                .map(|state| (state.id, Arc::new(TopicInner::new(context, state))))
                .collect(),
            next_topic: checkpoint.next_topic,
            deleted: checkpoint.deleted.clone(),
            master_key: checkpoint.master_key,
            producers: match context.is_read_only {
                true => Producers::list_of(checkpoint),
                false => Producers::new(checkpoint),
            },
            frames: 0,
            records: 0,
        }
    }

    /// Applies the changes of a frame; `Ok(false)` if one of its batches is damaged, and then none.
    pub(crate) fn apply(&mut self, changes: Vec<Change>) -> Result<bool> {
        let mut headers = Vec::with_capacity(1);
        for change in &changes {
            if let Change::Batch { topic, bytes, .. } = change {
                let Some(topic) = self.topics.get(topic) else { return Ok(false) };
                let Ok(header) = BatchHeader::decode(bytes, topic.seed) else { return Ok(false) };
                let is_whole = header.batch_bytes() == bytes.len();
                if !is_whole
                    || crc(0, &bytes[header.body_at()..]) != header.body_crc
                        && !crate::planted::skips_checksums()
                {
                    return Ok(false);
                }
                headers.push(header);
            }
        }
        let mut headers = headers.into_iter();
        self.frames += 1;
        for change in changes {
            match change {
                Change::Batch { topic, bytes, rolls } => {
                    let (Some(topic), Some(header)) = (self.topics.get(&topic), headers.next()) else {
                        continue;
                    };
                    if header.base_offset != topic.log_end() {
                        return Err(Error::CorruptFile {
                            path: journal::dir(&self.context),
                            position: Position::ZERO,
                            detail: format!(
                                "a batch of topic {} starts at offset {}, but the next one is {}",
                                topic.name,
                                header.base_offset,
                                topic.log_end()
                            ),
                        });
                    }
                    self.records += u64::from(header.record_count);
                    topic.push(bytes, header.next_offset(), header.append_time, rolls);
                }
                Change::TopicCreated { topic: id, uid, name, settings } => {
                    let state = TopicState {
                        id,
                        uid,
                        name,
                        settings,
                        log_start_offset: Offset::ZERO,
                        next_offset: Offset::ZERO,
                        last_time: Timestamp::ZERO,
                        active: None,
                        sealed: Vec::new(),
                        fencing_token: 0,
                    };
                    self.topics.insert(id, Arc::new(TopicInner::new(&self.context, &state)));
                    self.next_topic = self.next_topic.max(TopicId(id.0 + 1));
                }
                Change::TopicAltered { topic, settings } => {
                    if let Some(topic) = self.topics.get(&topic) {
                        topic.settings.store(Arc::new(settings));
                    }
                }
                Change::TopicDeleted { topic } => {
                    if let Some(topic) = self.topics.remove(&topic) {
                        topic.drop_tail();
                    }
                    self.deleted.push(topic);
                }
                Change::Trimmed { topic, log_start_offset } => {
                    if let Some(topic) = self.topics.get(&topic) {
                        topic.move_log_start(log_start_offset);
                        topic.forget_trimmed(topic.log_start());
                    }
                }
                Change::OffsetsReserved { topic, next_offset } => {
                    if let Some(topic) = self.topics.get(&topic) {
                        topic.skip_to(next_offset);
                    }
                }
                Change::SegmentsReplaced { topic, segment } => {
                    if let Some(topic) = self.topics.get(&topic) {
                        let new = topic.new_segment(&segment, true);
                        topic.replace_segments(&new, segment.next_offset);
                    }
                }
                Change::Answered(answered) => self.producers.take(answered),
                Change::Fenced { topic, token } => {
                    if let Some(topic) = self.topics.get(&topic) {
                        topic.fencing_token.fetch_max(token, Ordering::Relaxed);
                    }
                }
                Change::ProducerForgotten { name } => self.producers.forget(&name),
                Change::MasterKey(state) => {
                    let before = self.master_key.filter(|before| before.uid == state.uid);
                    let destroyed = before.map_or(0, |before| before.destroyed).max(state.destroyed);
                    self.master_key = Some(MasterKeyState { destroyed, ..state });
                }
            }
        }
        Ok(true)
    }
}
