//! Following the journal of a writer in another process.
//!
//! One look ([`Shared::refresh`]) is:
//!
//! 1. Take the frames that are there, into the topics' tails.
//! 2. Ask how far the writer is ([`crate::live`]), in this order: what it says then holds for these frames. Let readers
//!    see what is synced.
//! 3. If there is a new checkpoint, take its segments and drop from the tails what is in them.
//! 4. If the journal goes on in another file, go there.
//!
//! | Race | What comes of it |
//! |---|---|
//! | a frame is being written | its checksums do not match yet: it is read again at the next look |
//! | the file is used again while it is read | header, frame or batch is of another generation, position or offset: the headers are read again |
//! | the next file's header is being written | it is not found yet |
//! | the reader is so slow that its place in the journal is gone | the checkpoint on the disk lies behind it (J3 of the journal): start again there; what is in between is in segments |
//! | the checkpoint is replaced, or files are used again, between reading the one and the others | the journal does not go on from it: start again |
//! | a segment is removed between learning of it and opening it | the frame that says so was there before: look, and try again |
//! | the writer was killed and opened again | its new generation begins where intact frames end, and follows the last one that has any |
//! | what a failed disk took back was shown to those who see unsynced records | the new generation begins before our place: start again |
//!
//! To start again is always right: the topics are set to what the checkpoint says, and the frames behind it are taken.
//!
//! What is called damage is what keeps the store from being opened for writing: something that was synced is not where it
//! should be. That it was synced is known
//!
//! - from the writer ([`crate::live`]), if it told so since the machine was started: then nothing else counts;
//! - else, as in recovery, from the marks of later frames, of whatever file; and from what the checkpoint needs.
//!
//! Beside a writer each of the races above could look like it for a moment. So once there is such evidence, everything is
//! looked at once more; and if it is as before, the checkpoint is read last. While it lies at or before our place no file
//! that holds what comes behind may be used again (J3 of the journal), and what was not found there is not there.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};

use arc_swap::ArcSwapOption;
use bytes::Bytes;

use super::ReadOnlyStats;
use crate::clock::Clock;
use crate::context::Context;
use crate::disk::{Disk, File};
use crate::error::{Error, Result};
use crate::format::checkpoint::{Checkpoint, SealedSegment};
use crate::format::frame::{
    CHANGE_NUMBER_MAX, Change, FRAME_BYTES_LIMIT, FileHeader, FrameHeader, FrameProblem,
};
use crate::format::live::Live;
use crate::format::u32_at;
use crate::journal;
use crate::journal::recovery::{self, FoundFile, claims, file_position};
use crate::live;
use crate::producers::{ProducerInfo, Producers};
use crate::settings::StoreSettings;
use crate::store::open::{Recovering, is_closed_properly, read_checkpoint};
use crate::topic::TopicInner;
use crate::types::{Offset, Position, TopicId, TopicName};
use crate::watch::Watch;

/// Read at first, for a frame or two; most looks find no more.
const FIRST_READ_BYTES: usize = 4 << 10;
/// Read at once when there is more.
const READ_BYTES: usize = 256 << 10;
/// Taken before readers are told, when there is much to catch up with.
const ROUND_BYTES: usize = 4 << 20;
/// How often one look starts again from the same checkpoint, and from whatever checkpoint, without getting further.
const RESTARTS_MAX: [u32; 2] = [2, 100];
/// How often the journal's files are listed if one goes away meanwhile.
const LISTINGS_MAX: u32 = 5;

/// What the reader's threads share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) context: Arc<Context>,
    /// For the thread that waits for its next look.
    pub(super) closing: Watch,
    version: AtomicU64,
    topics: RwLock<HashMap<TopicName, Arc<TopicInner>>>,
    /// What keeps the journal from being read on. What is before it can be read.
    damage: ArcSwapOption<Error>,
    follower: Mutex<Follower>,
}

#[derive(Debug)]
struct Follower {
    state: Recovering,
    /// The journal file that is read; `None` before there is any.
    current: Option<Current>,
    generation: u64,
    /// Everything below was taken.
    position: Position,
    checkpoint: Position,
    synced: Position,
    /// Frames that readers of synced records do not see yet: where each ends, and what it brought.
    unsynced: VecDeque<(Position, Arc<TopicInner>, Offset)>,
    /// Segments that compaction made behind the last checkpoint, and where the journal says so.
    replaced: Vec<(Position, TopicId, SealedSegment)>,
    /// Something did not fit: only starting again helps.
    strange: Option<Error>,
    window: Window,
    /// Where the journal is damaged, and when that was found.
    damage: Option<Damage>,
    /// The place, and all headers, for which no mark of a frame speaks of more.
    without_mark: Option<(Position, Vec<FileHeader>)>,
    boot: [u8; 16],
}

/// As long as nothing of this changes there is nothing else to be found.
#[derive(Debug)]
struct Damage {
    position: Position,
    checkpoint: Position,
    headers: Vec<FileHeader>,
    told: Option<Live>,
}

#[derive(Debug)]
struct Current {
    path: PathBuf,
    file: Arc<dyn File>,
    header: FileHeader,
    /// Where the next generation begins, if it was known when we came here: what is behind does not count.
    limit: Option<Position>,
}

/// Counts what has led nowhere.
#[derive(Debug, Default)]
struct Restarts {
    furthest: Position,
    from_same: u32,
    from_any: u32,
    /// Where there is evidence of damage; it is looked at twice.
    suspected: Option<Position>,
}

/// A part of the current journal file, as it was read.
#[derive(Debug, Default)]
struct Window {
    bytes: Vec<u8>,
    at: u64,
}

impl Window {
    fn rest(&self, position: u64) -> &[u8] {
        let start = position.checked_sub(self.at).and_then(|start| usize::try_from(start).ok());
        start.and_then(|start| self.bytes.get(start..)).unwrap_or_default()
    }

    fn read(&mut self, file: &dyn File, position: u64, bytes: usize) -> std::io::Result<()> {
        self.at = position;
        self.bytes.resize(bytes, 0);
        let read = file.read_at(&mut self.bytes, position)?;
        self.bytes.truncate(read);
        Ok(())
    }

    fn clear(&mut self) {
        self.bytes.clear();
        // A large frame made it large; most are not.
        self.bytes.shrink_to(READ_BYTES);
    }
}

/// What came of a frame.
enum Taken {
    Whole,
    /// It is not (yet) what it should be, and nothing of it was applied.
    Bad,
    /// It does not follow from what was taken before: of another use of the file, or our state is not right.
    Strange(Error),
}

impl Shared {
    pub(super) fn open(
        dir: &Path,
        disk: Arc<dyn Disk>,
        clock: Arc<dyn Clock>,
        settings: StoreSettings,
    ) -> Result<Self> {
        let checkpoint = checkpoint(&*disk, dir)?;
        let context = Arc::new(Context::new(dir.into(), disk, clock, settings, checkpoint.store, true));
        let nothing = Checkpoint { topics: Vec::new(), ..checkpoint };
        let follower = Follower {
            state: Recovering::new(&context, &nothing),
            current: None,
            generation: 0,
            position: Position::ZERO,
            checkpoint: Position::ZERO,
            synced: Position::ZERO,
            unsynced: VecDeque::new(),
            replaced: Vec::new(),
            strange: None,
            window: Window::default(),
            damage: None,
            without_mark: None,
            boot: live::boot(),
        };
        let shared = Self {
            context,
            closing: Watch::default(),
            version: AtomicU64::new(0),
            topics: RwLock::new(HashMap::new()),
            damage: ArcSwapOption::empty(),
            follower: Mutex::new(follower),
        };
        shared.follower().restart(&shared)?;
        shared.refresh(true)?;
        Ok(shared)
    }

    /// Changes whenever a look has found something.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    fn note_change(&self) {
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    fn follower(&self) -> MutexGuard<'_, Follower> {
        self.follower.lock().expect("no panic under this lock")
    }

    pub(super) fn topic(&self, name: &str) -> Option<Arc<TopicInner>> {
        self.topics.read().expect("no panic under this lock").get(name).cloned()
    }

    pub(super) fn all_topics(&self) -> Vec<Arc<TopicInner>> {
        self.topics.read().expect("no panic under this lock").values().cloned().collect()
    }

    pub(super) fn stats(&self) -> ReadOnlyStats {
        let follower = self.follower();
        ReadOnlyStats {
            journal_position: follower.position,
            synced_position: follower.synced,
            checkpoint_position: follower.checkpoint,
            tail_bytes: self.context.counters.tail_bytes.value(),
            topics: follower.state.topics.len() as u64,
            damage: self.damage(),
        }
    }

    pub(super) fn producers(&self) -> Vec<ProducerInfo> {
        self.follower().state.producers.page(None, usize::MAX)
    }

    /// What keeps the journal from being read on, if anything does.
    pub(super) fn damage(&self) -> Option<Error> {
        self.damage.load().as_deref().cloned()
    }

    /// Tells it to all who wait for what comes behind.
    fn set_damage(&self, error: Error) {
        self.damage.store(Some(Arc::new(error)));
        self.note_change();
        for topic in self.all_topics() {
            topic.watch.notify();
        }
    }

    /// Takes in what is new. A thorough look also asks for the next journal file when nothing hints at one.
    pub(super) fn refresh(&self, is_thorough: bool) -> Result<()> {
        self.follower().refresh(self, is_thorough)
    }

    fn list(&self, topic: &Arc<TopicInner>) {
        self.topics.write().expect("no panic under this lock").insert(topic.name.clone(), Arc::clone(topic));
    }

    /// The topic is gone: those who read it learn so.
    fn delete(&self, topic: &Arc<TopicInner>) {
        let mut topics = self.topics.write().expect("no panic under this lock");
        if topics.get(&topic.name).is_some_and(|listed| Arc::ptr_eq(listed, topic)) {
            topics.remove(&topic.name);
        }
        drop(topics);
        topic.is_deleted.store(true, Ordering::Release);
        let (waiting, _) = topic.tail().drop_below(Offset::MAX);
        self.context.counters.tail_bytes.sub(waiting);
        topic.watch.notify();
    }
}

impl Follower {
    fn refresh(&mut self, shared: &Shared, is_thorough: bool) -> Result<()> {
        let mut restarts = Restarts { furthest: self.position, ..Restarts::default() };
        loop {
            if shared.context.is_closed() {
                return Err(Error::Closed);
            }
            let has_taken = self.take_frames(shared)?;
            let live = live::read(&*shared.context.disk, &shared.context.dir)
                .filter(|live| live.store == shared.context.store);
            self.show_synced(shared, live.as_ref());
            let may_have_checkpoint = match live {
                Some(live) => live.checkpoint > self.checkpoint && live.checkpoint <= self.position,
                None => is_thorough && !has_taken,
            };
            if may_have_checkpoint {
                self.take_checkpoint(shared)?;
            }
            if has_taken {
                if self.position > restarts.furthest {
                    restarts = Restarts { furthest: self.position, ..Restarts::default() };
                }
                continue;
            }
            let is_behind = live.is_some_and(|live| {
                live.generation > self.generation
                    || live.synced > self.position
                    || live.checkpoint > self.checkpoint
            });
            let is_known = self.damage.as_ref().is_some_and(|known| live.is_some() && known.told == live);
            let is_due = is_behind || is_thorough || self.strange.is_some() || restarts.suspected.is_some();
            if is_known || !is_due {
                return Ok(());
            }
            if !self.go_on(shared, live, &mut restarts)? {
                return Ok(());
            }
        }
    }

    /// Step 1: takes frames until there is none, or enough of them; says whether there was any.
    fn take_frames(&mut self, shared: &Shared) -> Result<bool> {
        self.window.clear();
        let begun = self.position;
        while self.strange.is_none() && self.position - begun < ROUND_BYTES as u64 {
            let Some((header, bytes)) = self.next_frame()? else { break };
            match self.apply(shared, &header, &bytes)? {
                Taken::Whole => {}
                Taken::Bad => break,
                Taken::Strange(error) => {
                    self.strange = Some(error);
                    break;
                }
            }
            self.position = self.position + header.frame_bytes as u64;
            self.synced = self.synced.max(header.synced);
        }
        let has_taken = self.position != begun;
        if has_taken {
            self.leave_damage(shared);
            shared.note_change();
        }
        Ok(has_taken)
    }

    /// Damage is none any more when we are behind it.
    fn leave_damage(&mut self, shared: &Shared) {
        if self.damage.take_if(|damage| self.position > damage.position).is_some() {
            shared.damage.store(None);
        }
    }

    /// The frame at our position, in memory of its own.
    fn next_frame(&mut self) -> Result<Option<(FrameHeader, Bytes)>> {
        let Some(Current { path, file, header, limit }) = &self.current else { return Ok(None) };
        if limit.is_some_and(|limit| self.position >= limit) {
            return Ok(None);
        }
        let at = file_position(header, self.position);
        let mut is_fresh = false;
        for _ in 0..3 {
            let rest = self.window.rest(at);
            let mut wanted = if self.window.bytes.is_empty() { FIRST_READ_BYTES } else { READ_BYTES };
            if claims(rest, header, self.position) {
                let whole = u32_at(rest, 4) as usize;
                if let Some(bytes) = rest.get(..whole) {
                    let decoded = FrameHeader::decode(bytes, header.seed(), header.generation, self.position);
                    if let Ok(frame) = decoded {
                        return Ok(Some((frame, Bytes::copy_from_slice(bytes))));
                    }
                }
                if is_fresh && (rest.len() >= whole || whole > FRAME_BYTES_LIMIT) {
                    return Ok(None);
                }
                wanted = wanted.max(whole.min(FRAME_BYTES_LIMIT));
            } else if is_fresh {
                return Ok(None);
            }
            self.window.read(&**file, at, wanted).map_err(|error| Error::io("read journal", path, error))?;
            is_fresh = true;
        }
        Ok(None)
    }

    fn apply(&mut self, shared: &Shared, header: &FrameHeader, bytes: &Bytes) -> Result<Taken> {
        let changes = match header.changes(bytes) {
            Ok(changes) => changes,
            Err(FrameProblem::UnknownChange(found)) => {
                return Err(Error::NewerFormat {
                    path: journal::dir(&shared.context),
                    found,
                    supported: CHANGE_NUMBER_MAX,
                });
            }
            Err(FrameProblem::Invalid(_)) => return Ok(Taken::Bad),
        };
        let mut touched = Vec::with_capacity(changes.len());
        let mut created = Vec::new();
        let mut deleted = Vec::new();
        let mut replaced = Vec::new();
        for change in &changes {
            match change {
                Change::Batch { topic, .. } | Change::OffsetsReserved { topic, .. } => touched.push(*topic),
                Change::TopicCreated { topic, .. } => created.push(*topic),
                Change::TopicDeleted { topic } => deleted.extend(self.state.topics.get(topic).cloned()),
                Change::SegmentsReplaced { topic, segment } => {
                    replaced.push((self.position, *topic, *segment));
                }
                Change::TopicAltered { .. }
                | Change::Trimmed { .. }
                | Change::Answered(_)
                | Change::Fenced { .. }
                | Change::ProducerForgotten { .. }
                | Change::MasterKey(_) => {}
            }
        }
        match self.state.apply(changes) {
            Ok(true) => {}
            Ok(false) => return Ok(Taken::Bad),
            Err(error @ Error::CorruptFile { .. }) => return Ok(Taken::Strange(error)),
            Err(error) => return Err(error),
        }
        self.state.deleted.clear();
        self.replaced.append(&mut replaced);
        let end = self.position + header.frame_bytes as u64;
        created.iter().filter_map(|topic| self.state.topics.get(topic)).for_each(|topic| shared.list(topic));
        for topic in touched.iter().filter_map(|topic| self.state.topics.get(topic)) {
            self.unsynced.push_back((end, Arc::clone(topic), topic.log_end()));
            topic.watch.notify();
        }
        deleted.iter().for_each(|topic| shared.delete(topic));
        Ok(Taken::Whole)
    }

    /// Step 2.
    fn show_synced(&mut self, shared: &Shared, live: Option<&Live>) {
        let told = match live {
            None => Position::ZERO,
            // Since the machine was started nobody has written: what could be read of the journal is on the disk.
            Some(live) if !self.is_of_this_boot(live) => self.position,
            Some(live) => live.synced,
        };
        self.see_synced(shared, told);
    }

    /// Perhaps, if the system does not say which boot it is.
    fn is_of_this_boot(&self, live: &Live) -> bool {
        live.boot == self.boot || live.boot == [0; 16] || self.boot == [0; 16]
    }

    /// Everything below `position` is synced: readers see what we have of it.
    fn see_synced(&mut self, shared: &Shared, position: Position) {
        self.synced = self.synced.max(position);
        let visible = self.unsynced.partition_point(|(end, ..)| *end <= self.synced);
        for (_, topic, next_offset) in self.unsynced.drain(..visible) {
            topic.move_high_watermark(next_offset);
        }
        if visible > 0 {
            shared.note_change();
        }
    }

    /// Step 3, if the checkpoint lies where we have been. If it lies ahead, [`go_on`](Self::go_on) decides.
    fn take_checkpoint(&mut self, shared: &Shared) -> Result<()> {
        let context = &shared.context;
        let checkpoint = checkpoint(&*context.disk, &context.dir)?;
        if checkpoint.position <= self.checkpoint || checkpoint.position > self.position {
            return Ok(());
        }
        self.replaced.retain(|(position, ..)| *position >= checkpoint.position);
        for state in &checkpoint.topics {
            // If it is not here it was deleted since.
            if let Some(topic) = self.state.topics.get(&state.id) {
                let replaced = self.replaced.iter().filter(|(_, id, _)| *id == state.id);
                topic.adopt(state, replaced.map(|(.., segment)| segment));
            }
        }
        self.checkpoint = checkpoint.position;
        shared.note_change();
        Ok(())
    }

    /// Step 4: the current file has no frame for us. Finds where the journal goes on; says whether to look again.
    fn go_on(&mut self, shared: &Shared, live: Option<Live>, restarts: &mut Restarts) -> Result<bool> {
        let context = &shared.context;
        let checkpoint_position = match live {
            Some(live) => live.checkpoint,
            None => checkpoint(&*context.disk, &context.dir)?.position,
        };
        let found = Files::list(context)?;
        // If the writer was opened and killed before its first frame, the next opening may pass that generation over.
        let instead_of_empty = || {
            let empty = self.current.as_ref().filter(|current| current.header.start == self.position)?.header;
            found
                .headers()
                .filter(|(_, header)| header.previous == empty.previous && header.start == empty.start)
                .filter(|(_, header)| header.generation > empty.generation)
                .max_by_key(|(_, header)| header.generation)
        };
        let next = found.follower_of(self.generation).or_else(instead_of_empty);
        if self.strange.is_none()
            && let Some((file, header)) = next
            && header.start == self.position
        {
            let limit = found.follower_of(header.generation).map(|(_, header)| header.start);
            self.current = Some(Current::new(file, header, limit));
            self.generation = header.generation;
            shared.note_change();
            return Ok(true);
        }
        // Frames may have come between the look at them and the look at the headers. What a header or a checkpoint
        // lies behind was there before it.
        if self.take_frames(shared)? {
            return Ok(true);
        }
        let lies_ahead = checkpoint_position > self.position;
        if let Some(damage) = &mut self.damage
            && damage.position == self.position
            && damage.checkpoint == self.checkpoint
            && damage.headers == found.all_headers()
            && !lies_ahead
        {
            damage.told = live;
            return Ok(false);
        }
        let is_gone = match &self.current {
            Some(current) => !found.headers().any(|(_, header)| header == current.header),
            None => self.lacks_first(&found) && !self.is_closed(shared)?,
        };
        let is_taken_back = next.is_some_and(|(_, header)| header.start < self.position);
        let is_beside = next.is_none() && found.highest_generation() > self.generation;
        let must_restart = self.strange.is_some()
            || is_gone
            || is_taken_back
            || lies_ahead
            || is_beside && !self.is_on_the_way(shared, &found)?;
        if must_restart && restarts.from_same < RESTARTS_MAX[0] {
            return self.try_restart(shared, restarts);
        }
        let Some(error) = self.evidence(shared, live.as_ref(), &found)? else { return Ok(false) };
        if restarts.suspected != Some(self.position) {
            restarts.suspected = Some(self.position);
            return Ok(true);
        }
        if checkpoint(&*context.disk, &context.dir)?.position > self.position {
            return self.try_restart(shared, restarts);
        }
        self.damage = Some(Damage {
            position: self.position,
            checkpoint: self.checkpoint,
            headers: found.all_headers(),
            told: live,
        });
        shared.set_damage(error);
        Ok(false)
    }

    /// If the writer is so fast that we get nowhere, the next look tries again.
    fn try_restart(&mut self, shared: &Shared, restarts: &mut Restarts) -> Result<bool> {
        let before = self.checkpoint;
        self.restart(shared)?;
        restarts.suspected = None;
        restarts.from_any += 1;
        restarts.from_same = if self.checkpoint == before { restarts.from_same + 1 } else { 0 };
        Ok(restarts.from_any < RESTARTS_MAX[1])
    }

    /// Whether the way from the checkpoint leads through our file: then to start again would lead here again.
    fn is_on_the_way(&self, shared: &Shared, found: &Files) -> Result<bool> {
        let Some(current) = &self.current else { return Ok(false) };
        let checkpoint = checkpoint(&*shared.context.disk, &shared.context.dir)?;
        let chain = recovery::chain(&found.files, checkpoint.position, checkpoint.generation);
        Ok(chain.iter().any(|(_, header)| *header == current.header))
    }

    /// What says that something which was synced is not where it should be, if anything does.
    fn evidence(&mut self, shared: &Shared, live: Option<&Live>, found: &Files) -> Result<Option<Error>> {
        if self.is_closed(shared)? {
            return Ok(None);
        }
        if let Some(error) = &self.strange {
            return Ok(Some(error.clone()));
        }
        let damaged = || Some(self.damaged(shared, found));
        if let Some(live) = live.filter(|live| self.is_of_this_boot(live)) {
            return Ok(if self.lacks_first(found) || live.synced > self.position { damaged() } else { None });
        }
        let Some(current) = &self.current else {
            return Ok(if self.lacks_first(found) || !found.damaged.is_empty() { damaged() } else { None });
        };
        let file = found.files.iter().find(|file| file.header == Some(current.header));
        let at = file_position(&current.header, self.position);
        let is_odd = !found.damaged.is_empty() || file.is_some_and(|file| file.bytes < at);
        let seen = (self.position, found.all_headers());
        if !is_odd && self.without_mark.as_ref() == Some(&seen) {
            return Ok(None);
        }
        let mut mark = recovery::later_mark(&found.files, self.generation)?;
        if let Some(file) = file {
            let bytes = recovery::read_from(file, at)?;
            let marks = recovery::frames(&bytes, &current.header, self.position).map(|(_, synced)| synced);
            mark = marks.fold(mark, Position::max);
        }
        if mark <= self.position && !is_odd {
            self.without_mark = Some(seen);
            return Ok(None);
        }
        let error = self.damaged(shared, found);
        // What we have below it is synced too.
        self.see_synced(shared, mark);
        Ok(Some(error))
    }

    /// Whether the file that the checkpoint needs is not there. Generation 0 is that of a new store, which may have none.
    fn lacks_first(&self, found: &Files) -> bool {
        self.current.is_none() && (self.generation > 0 || found.highest_generation() > 0)
    }

    fn is_closed(&self, shared: &Shared) -> Result<bool> {
        is_closed_properly(&*shared.context.disk, &shared.context.dir, self.position)
    }

    fn damaged(&self, shared: &Shared, found: &Files) -> Error {
        let position = self.position;
        if let Some(path) = found.damaged.first() {
            let detail = format!(
                "the header of the journal file is damaged, or it was cut short; the journal can be read up to \
                 position {position}, and what was synced behind it is missing"
            );
            return Error::CorruptFile { path: path.clone(), position: Position::ZERO, detail };
        }
        match &self.current {
            Some(current) => Error::CorruptFile {
                path: current.path.clone(),
                position: Position(file_position(&current.header, position)),
                detail: format!(
                    "there is no intact frame at journal position {position}, which had been synced: it is damaged, or \
                     its file is missing"
                ),
            },
            None => Error::CorruptFile {
                path: journal::dir(&shared.context),
                position: Position::ZERO,
                detail: format!(
                    "the journal file of generation {} is missing: the checkpoint needs it from position {position} on",
                    self.generation
                ),
            },
        }
    }

    /// Sets everything to what the checkpoint says.
    fn restart(&mut self, shared: &Shared) -> Result<()> {
        let context = &shared.context;
        let checkpoint = checkpoint(&*context.disk, &context.dir)?;
        if checkpoint.store != context.store {
            let detail = "another store has taken its place".into();
            return Err(Error::NotAStore { path: context.dir.clone(), detail });
        }
        let Files { files, .. } = Files::list(context)?;
        let chain = recovery::chain(&files, checkpoint.position, checkpoint.generation);
        let limit = chain.get(1).map(|(_, header)| header.start);
        self.current = chain.first().map(|&(number, header)| Current::new(&files[number], header, limit));
        self.generation =
            self.current.as_ref().map_or(checkpoint.generation, |current| current.header.generation);
        self.position = checkpoint.position;
        self.checkpoint = checkpoint.position;
        self.synced = checkpoint.position;
        self.unsynced.clear();
        self.replaced.clear();
        self.strange = None;
        self.leave_damage(shared);
        self.state.producers = Producers::list_of(&checkpoint);
        let mut before = std::mem::take(&mut self.state.topics);
        let mut topics = BTreeMap::new();
        for state in &checkpoint.topics {
            let topic = match before.remove(&state.id) {
                Some(topic) => {
                    topic.restart_at(state);
                    topic
                }
                None => {
                    let topic = Arc::new(TopicInner::new(context, state));
                    shared.list(&topic);
                    topic
                }
            };
            topics.insert(state.id, topic);
        }
        self.state.topics = topics;
        before.values().for_each(|topic| shared.delete(topic));
        shared.note_change();
        Ok(())
    }
}

impl Current {
    fn new(file: &FoundFile, header: FileHeader, limit: Option<Position>) -> Self {
        Self { path: file.path.clone(), file: Arc::clone(&file.file), header, limit }
    }
}

/// The journal's files as they are found at one time.
struct Files {
    files: Vec<FoundFile>,
    /// Those whose headers are damaged, or that were cut short.
    damaged: Vec<PathBuf>,
}

impl Files {
    /// One of them may be removed while they are listed.
    fn list(context: &Context) -> Result<Self> {
        let mut listings = 0;
        loop {
            listings += 1;
            let mut damaged = Vec::new();
            match recovery::find(context, true, &mut damaged) {
                Err(Error::Io { .. }) if listings < LISTINGS_MAX => {}
                outcome => return Ok(Self { files: outcome?, damaged }),
            }
        }
    }

    fn headers(&self) -> impl Iterator<Item = (&FoundFile, FileHeader)> {
        self.files.iter().filter_map(|file| Some((file, file.header?)))
    }

    fn all_headers(&self) -> Vec<FileHeader> {
        self.headers().map(|(_, header)| header).collect()
    }

    fn highest_generation(&self) -> u64 {
        self.headers().map(|(_, header)| header.generation).max().unwrap_or(0)
    }

    fn follower_of(&self, generation: u64) -> Option<(&FoundFile, FileHeader)> {
        self.headers()
            .filter(|(_, header)| header.previous == generation && header.generation > generation)
            .max_by_key(|(_, header)| header.generation)
    }
}

/// The checkpoint, whichever of its copies is intact.
fn checkpoint(disk: &dyn Disk, dir: &Path) -> Result<Checkpoint> {
    match read_checkpoint(disk, dir)? {
        Some(decoded) => Ok(decoded.checkpoint),
        None => Err(Error::NoStore { path: dir.into() }),
    }
}
