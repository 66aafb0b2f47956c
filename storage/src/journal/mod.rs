//! The journal: where every change of the store is ordered and made durable.
//!
//! It is a ring of preallocated files, used one generation after the other. A frame is one write into the current
//! file; one sync makes all frames so far durable. What the checkpoint covers is used again.
//!
//! Promises:
//!
//! - J1 A frame is written whole or the append fails and nothing was applied.
//!   Frames that somebody will sync are gathered in memory first, and written in one call for the sync: a write
//!   for each would cost more than the copy. A frame that has to survive a killed process is in the page cache,
//!   with all before it, when [`Journal::write`] returns; it goes through a map where the disk has one.
//! - J2 Files are synced in order: a later file is not reported synced before an earlier one.
//! - J3 A file is used again only when the checkpoint on disk lies at or behind its end.
//!
//! Reading it back is [`recovery`]'s.

pub(crate) mod recovery;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::path::PathBuf;
use std::sync::Arc;

use crate::context::{Context, NamedFile, random};
use crate::disk::{File, OpenMode, Writer};
use crate::error::{Error, Result};
use crate::format::frame::{FILE_HEADER_BYTES, FileHeader, FrameBuilder, Place};
use crate::format::{ALIGNMENT, aligned};
use crate::types::Position;

/// A journal file that can be written: allocated, and open.
#[derive(Debug)]
pub(crate) struct Slot {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn File>,
    writer: Box<dyn Writer>,
    bytes: u64,
}

impl Slot {
    /// Opens an existing file of `bytes`.
    pub(crate) fn open(context: &Context, path: PathBuf, bytes: u64) -> Result<Self> {
        let open = || {
            let file = context.disk.open(&path, OpenMode::Write)?;
            let writer = Arc::clone(&file).writer(bytes)?;
            Ok((file, writer))
        };
        let (file, writer) = open().map_err(|error| Error::io("open journal file", &path, error))?;
        Ok(Self { path, file, writer, bytes })
    }

    /// Creates a file full of zeros: an overwrite of blocks that were written before changes no metadata, so a
    /// sync has only the data to write. It gets its name when all of it is on the disk.
    pub(crate) fn create(context: &Context, number: u64) -> Result<Self> {
        Self::create_with(context, number, context.settings.journal_file_bytes)
    }

    /// The same with `bytes`: on a full disk a small one has to do.
    pub(crate) fn create_with(context: &Context, number: u64, bytes: u64) -> Result<Self> {
        let dir = dir(context);
        let path = dir.join(format!("{number:06}.journal"));
        let aside = dir.join(format!("{number:06}{HALF_MADE}"));
        let fill = || {
            match context.disk.remove(&aside) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            let file = context.disk.open(&aside, OpenMode::Create)?;
            file.allocate(bytes)?;
            let zeros = vec![0; FILL_BYTES];
            let mut position = 0;
            while position < bytes {
                let part = zeros.len().min(usize::try_from(bytes - position).unwrap_or(usize::MAX));
                file.write_at(&[IoSlice::new(&zeros[..part])], position)?;
                position += part as u64;
            }
            Ok(file)
        };
        let discard = |error| {
            // Half a file is of no use, and may be what fills the disk. That it goes is not essential.
            let _ = context.disk.remove(&aside);
            Error::io("create journal file", &path, error)
        };
        let file = fill().map_err(discard)?;
        context.sync_file(&*file, &aside)?;
        context.disk.rename(&aside, &path).map_err(discard)?;
        context.sync_dir(&dir)?;
        let writer =
            Arc::clone(&file).writer(bytes).map_err(|error| Error::io("map journal file", &path, error))?;
        Ok(Self { path, file, writer, bytes })
    }

    fn number(&self) -> u64 {
        number_of(&self.path)
    }
}

/// Zeros are written so many bytes at a time. The kernel keeps what one call writes together, and every later write and
/// sync of a part walks through all blocks of the whole: with 1 MiB a write of 10 KiB takes twice as long, and a sync of
/// one record a tenth more.
const FILL_BYTES: usize = 32 << 10;

/// How the name of a journal file ends that is being made.
pub(crate) const HALF_MADE: &str = ".new";

/// The directory of the journal's files.
pub(crate) fn dir(context: &Context) -> PathBuf {
    context.dir.join("journal")
}

fn number_of(path: &std::path::Path) -> u64 {
    path.file_stem().and_then(|stem| stem.to_str()?.parse().ok()).unwrap_or(0)
}

/// A file of an earlier generation that the checkpoint does not cover yet.
#[derive(Debug)]
struct Retired {
    slot: Slot,
    end: Position,
}

/// The journal, open for writing. The store's writer lock guards it.
#[derive(Debug)]
pub(crate) struct Journal {
    current: Slot,
    header: FileHeader,
    seed: u32,
    /// Where in the current file the next frame goes.
    file_position: u64,
    position: Position,
    retired: VecDeque<Retired>,
    free: Vec<Slot>,
    /// Retired files with frames that no sync has covered yet, oldest first.
    unsynced: Vec<NamedFile>,
    next_number: u64,
    files: u64,
    /// A file was wanted and the disk was too full for it, and none was free since.
    lacks_file: bool,
    /// The last frames, not written into the file yet. They end at `file_position`.
    staged: Vec<u8>,
}

/// How far a frame has to get before the append goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reach {
    /// Into memory; the next sync takes it along.
    Memory,
    /// Into the page cache.
    PageCache,
}

/// Staged frames are written when there are this many bytes of them, whether a sync comes or not.
const STAGED_BYTES_MAX: usize = 256 << 10;

/// A longer frame is not written through the map: each page of it would cost a fault, and a remote flush of the TLB when
/// it is synced, which together are more than one call and a copy in the kernel.
const MAPPED_BYTES_MAX: usize = 4 << 10;

/// What a sync has to do: these files, in order, and then everything below the position is durable.
#[derive(Debug)]
pub(crate) struct SyncWork {
    pub(crate) files: Vec<NamedFile>,
    pub(crate) end: Position,
}

impl Journal {
    /// Begins a new generation in `slot` at `position`.
    pub(crate) fn begin(
        context: &Context,
        slot: Slot,
        generation: u64,
        previous: u64,
        position: Position,
        retired: Vec<(Slot, Position)>,
        free: Vec<Slot>,
    ) -> Result<Self> {
        let next_number = free
            .iter()
            .chain([&slot])
            .chain(retired.iter().map(|(slot, _)| slot))
            .map(Slot::number)
            .max()
            .map_or(0, |number| number + 1);
        let header =
            FileHeader { store: context.store, generation: previous, start: position, previous: 0, salt: 0 };
        let mut journal = Self {
            files: 1 + retired.len() as u64 + free.len() as u64,
            current: slot,
            header,
            seed: 0,
            file_position: 0,
            position,
            retired: retired.into_iter().map(|(slot, end)| Retired { slot, end }).collect(),
            free,
            unsynced: Vec::new(),
            next_number,
            lacks_file: false,
            staged: Vec::new(),
        };
        journal.start_generation(generation)?;
        Ok(journal)
    }

    fn start_generation(&mut self, generation: u64) -> Result<()> {
        let salt = u32::from_le_bytes(random()?);
        self.header = FileHeader {
            generation,
            start: self.position,
            previous: self.header.generation,
            salt,
            ..self.header
        };
        self.seed = self.header.seed();
        self.current
            .file
            .write_at(&[IoSlice::new(&self.header.encode())], 0)
            .map_err(|error| Error::failed("write journal header", &self.current.path, error))?;
        self.file_position = FILE_HEADER_BYTES as u64;
        Ok(())
    }

    /// Where the next frame goes.
    pub(crate) fn position(&self) -> Position {
        self.position
    }

    /// The current generation.
    pub(crate) fn generation(&self) -> u64 {
        self.header.generation
    }

    /// Files: in use, free, and being created.
    pub(crate) fn files(&self) -> u64 {
        self.files
    }

    /// Whether a frame of `bytes` fits without a further file. The last free file is not for frames: the next opening
    /// begins its generation there, also when the disk is full.
    pub(crate) fn has_room(&self, bytes: usize) -> bool {
        self.fits_here(bytes) || (self.free.len() > 1 && self.fits_next(bytes))
    }

    fn fits_here(&self, bytes: usize) -> bool {
        self.file_position + bytes as u64 <= self.current.bytes
    }

    fn fits_next(&self, bytes: usize) -> bool {
        self.free.last().is_some_and(|next| FILE_HEADER_BYTES as u64 + bytes as u64 <= next.bytes)
    }

    /// Whether the next roll would find no file although there may be more.
    pub(crate) fn wants_file(&self, context: &Context) -> bool {
        self.free.len() < 2
            && (self.files + 1) * context.settings.journal_file_bytes <= context.settings.journal_bytes_max
    }

    /// The number for a file to be created, for [`Slot::create`] and then [`add`](Self::add), or
    /// [`give_up`](Self::give_up). The file counts from now on: others may want one meanwhile.
    pub(crate) fn take_number(&mut self) -> u64 {
        self.files += 1;
        self.next_number += 1;
        self.next_number - 1
    }

    /// Adds a file to be used.
    pub(crate) fn add(&mut self, slot: Slot) {
        self.lacks_file = false;
        self.free.push(slot);
    }

    /// The disk was too full for another file. Says whether no checkpoint will free one either, so that to wait for one would
    /// be to wait for ever.
    pub(crate) fn note_disk_full(&mut self) -> bool {
        self.lacks_file = self.retired.is_empty();
        self.lacks_file
    }

    /// Whether there is no file to go on in, and no room on the disk for one.
    pub(crate) fn lacks_file(&self) -> bool {
        self.lacks_file
    }

    /// The file for which a number was taken could not be created.
    pub(crate) fn give_up(&mut self) {
        self.files -= 1;
    }

    /// Writes a frame: what `frame` holds, and behind it `batches`, each padded. There must be room for it: if there is
    /// none, it is an error before anything is written.
    ///
    /// # Errors
    /// The frame counts as not written, but its place in the file may hold anything: the store must fail.
    pub(crate) fn write(
        &mut self,
        frame: &mut FrameBuilder,
        frame_bytes: usize,
        batches: &[&[u8]],
        synced: Position,
        reach: Reach,
    ) -> Result<Position> {
        if !self.fits_here(frame_bytes) {
            if !self.fits_next(frame_bytes) {
                // Behind the end of a file it would be acknowledged, and the journal not be readable.
                let error =
                    std::io::Error::other(format!("no file has room for a frame of {frame_bytes} bytes"));
                return Err(Error::failed("write journal", &self.current.path, error));
            }
            self.roll()?;
        }
        let place =
            Place { seed: self.seed, generation: self.header.generation, position: self.position, synced };
        let prefix = frame.seal(&place);
        if reach == Reach::Memory && self.staged.len() + frame_bytes <= STAGED_BYTES_MAX {
            self.staged.extend_from_slice(prefix);
            for batch in batches {
                self.staged.extend_from_slice(batch);
                self.staged.extend_from_slice(padding(batch.len()));
            }
        } else {
            self.write_staged()?;
            let few;
            let many: Vec<IoSlice<'_>>;
            let parts = match batches {
                [batch] => {
                    few = [IoSlice::new(prefix), IoSlice::new(batch), IoSlice::new(padding(batch.len()))];
                    &few[..]
                }
                batches => {
                    let padded = batches.iter().flat_map(|batch| [*batch, padding(batch.len())]);
                    many = std::iter::once(prefix).chain(padded).map(IoSlice::new).collect();
                    &many[..]
                }
            };
            let through_map = reach == Reach::PageCache && frame_bytes <= MAPPED_BYTES_MAX;
            let outcome = if through_map {
                self.current.writer.write_at(parts, self.file_position)
            } else {
                self.current.file.write_at(parts, self.file_position)
            };
            outcome.map_err(|error| Error::failed("write journal", &self.current.path, error))?;
        }
        self.file_position += frame_bytes as u64;
        self.position = self.position + frame_bytes as u64;
        Ok(self.position)
    }

    /// Writes what is staged into the file. Not through the map: a page that was stored to costs the next sync more
    /// than one that was written.
    pub(crate) fn write_staged(&mut self) -> Result<()> {
        if self.staged.is_empty() {
            return Ok(());
        }
        let start = self.file_position - self.staged.len() as u64;
        self.current
            .file
            .write_at(&[IoSlice::new(&self.staged)], start)
            .map_err(|error| Error::failed("write journal", &self.current.path, error))?;
        self.staged.clear();
        Ok(())
    }

    /// Goes on in the next free file.
    fn roll(&mut self) -> Result<()> {
        self.write_staged()?;
        let next = self.free.pop().expect("the caller has made sure that there is room");
        let full = std::mem::replace(&mut self.current, next);
        self.unsynced.push((Arc::clone(&full.file), full.path.clone()));
        self.retired.push_back(Retired { slot: full, end: self.position });
        self.start_generation(self.header.generation + 1)
    }

    /// What to sync so that everything up to here is durable. The files are handed over: if their sync fails, the
    /// store must fail.
    pub(crate) fn sync_work(&mut self) -> Result<SyncWork> {
        self.write_staged()?;
        let mut files = std::mem::take(&mut self.unsynced);
        files.push((Arc::clone(&self.current.file), self.current.path.clone()));
        Ok(SyncWork { files, end: self.position })
    }

    /// The checkpoint on disk covers everything below `position`: files that end there are free again. Returns the
    /// paths of those that have another size than the settings say now: they are to be removed.
    pub(crate) fn release(&mut self, context: &Context, position: Position) -> Vec<PathBuf> {
        let mut odd = Vec::new();
        while self.retired.front().is_some_and(|retired| retired.end <= position) {
            let Some(Retired { slot, .. }) = self.retired.pop_front() else { break };
            if slot.bytes == context.settings.journal_file_bytes {
                self.lacks_file = false;
                self.free.push(slot);
            } else {
                self.files -= 1;
                odd.push(slot.path);
            }
        }
        odd
    }
}

/// The zeros behind something of `bytes`.
pub(crate) fn padding(bytes: usize) -> &'static [u8] {
    &[0; ALIGNMENT][..aligned(bytes) - bytes]
}
