//! Reading the journal back: what was acknowledged, and where it ends.
//!
//! | Found | Decision |
//! |---|---|
//! | frames up to a place with nothing of this generation behind it | the journal ends cleanly there |
//! | a bad frame, and no later frame says that it was synced | a torn write, never acknowledged: keep a copy, cut |
//! | a bad frame, and a later frame says that it was synced | rot of something acknowledged: refuse |
//! | the chain of files ends, and a frame of a later generation says that what is behind was synced | a file in its middle is missing: the same |
//! | frames of an earlier generation | not looked at: their position and generation are another |
//! | a file header that is neither blank nor intact | rot: refuse; if the store was closed cleanly, blank it |
//! | a used file of a length that none can have | it was cut after it had been synced: the same |
//! | a file of another store | refuse |
//!
//! That a later frame exists is not enough to tell rot from a torn write: after a power cut a later unsynced write
//! may be there and an earlier one not. Each frame therefore says up to where the journal was synced when it was
//! written. What is intact but above every such mark is in doubt: it may be in the page cache only, left there by a
//! sync that failed. It was perhaps acknowledged, so it is kept; and it is written and synced once more before
//! anybody is told of it.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use memmap2::{Advice, MmapMut};

use super::dir;
use crate::context::Context;
use crate::disk::{EntryKind, File, OpenMode};
use crate::error::{Error, Result};
use crate::format::frame::{
    CHANGE_NUMBER_MAX, Change, FILE_HEADER_BYTES, FRAME_HEADER_BYTES, FileHeader, FrameHeader, FrameProblem,
};
use crate::format::{ALIGNMENT, FORMAT_VERSION, HeaderProblem, Invalid};
use crate::types::Position;

/// What is said of a file that lost its end.
pub(crate) const CUT_SHORT: &str = "the journal file was cut short";

/// A file of the journal, as found.
#[derive(Debug)]
pub(crate) struct FoundFile {
    pub(crate) path: PathBuf,
    pub(crate) file: Arc<dyn File>,
    pub(crate) bytes: u64,
    /// `None` if it was never used, or its header is damaged and does not matter.
    pub(crate) header: Option<FileHeader>,
}

/// How the journal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum JournalEnd {
    /// With its last frame.
    Clean,
    /// With a write that had not been acknowledged; it was cut.
    Torn {
        /// Bytes of it that were found.
        bytes: u64,
    },
}

/// What the journal holds behind the checkpoint.
#[derive(Debug)]
pub(crate) struct Recovered {
    start: Position,
    pub(crate) end: Position,
    pub(crate) how: JournalEnd,
    /// The highest generation seen anywhere.
    pub(crate) generation: u64,
    /// The generation that the next one follows.
    pub(crate) last_generation: u64,
    /// Where frames are that may not be durable, by file: bytes and where they start in it.
    pub(crate) in_doubt: Vec<(usize, u64, Bytes)>,
    /// For each file that the checkpoint does not cover, its number in the list of files and where it ends.
    pub(crate) needed: Vec<(usize, Position)>,
    /// What was cut.
    pub(crate) torn: Bytes,
}

impl Recovered {
    /// Files that end here or before are not needed.
    pub(crate) fn needed_from(&self) -> Position {
        self.start
    }
}

/// Finds the journal's files and reads their headers.
pub(crate) fn find(context: &Context, is_clean: bool, damaged: &mut Vec<PathBuf>) -> Result<Vec<FoundFile>> {
    let dir = dir(context);
    let entries = context.disk.list(&dir).map_err(|error| match error.kind() {
        // It was made before the checkpoint.
        std::io::ErrorKind::NotFound => {
            let detail = "the journal's directory is missing".into();
            Error::CorruptFile { path: dir.clone(), position: Position::ZERO, detail }
        }
        _ => Error::io("list", &dir, error),
    })?;
    if !context.is_read_only {
        for entry in entries.iter().filter(|entry| entry.name.ends_with(super::HALF_MADE)) {
            let path = dir.join(&entry.name);
            context.disk.remove(&path).map_err(|error| Error::io("remove", path, error))?;
        }
    }
    let mut names: Vec<_> = entries
        .into_iter()
        .filter(|entry| entry.kind == EntryKind::File && entry.name.ends_with(".journal"))
        .map(|entry| entry.name)
        .collect();
    names.sort();
    let mut files = Vec::new();
    for name in names {
        let path = dir.join(name);
        let mode = if context.is_read_only { OpenMode::Read } else { OpenMode::Write };
        let mut start = [0; FILE_HEADER_BYTES];
        let mut read = || {
            let file = context.disk.open(&path, mode)?;
            let bytes = file.len()?;
            file.read_at(&mut start, 0)?;
            Ok((file, bytes))
        };
        let (file, bytes) = read().map_err(|error| Error::io("read journal header", &path, error))?;
        let header = match FileHeader::decode(&start).and_then(|header| check_length(bytes).map(|()| header))
        {
            Ok(header) if header.store == context.store => Some(header),
            Ok(_) => {
                return Err(Error::NotAStore { path, detail: "the journal file is of another store".into() });
            }
            Err(HeaderProblem::Blank) => None,
            Err(HeaderProblem::Newer(found)) => {
                return Err(Error::NewerFormat { path, found, supported: u32::from(FORMAT_VERSION) });
            }
            Err(HeaderProblem::Invalid(_)) if is_clean => {
                if !context.is_read_only {
                    make_blank(context, &*file, &path, bytes)?;
                }
                damaged.push(path.clone());
                None
            }
            Err(HeaderProblem::Invalid(invalid)) => {
                return Err(Error::CorruptFile {
                    path,
                    position: Position::ZERO,
                    detail: invalid.detail.into(),
                });
            }
        };
        files.push(FoundFile { path, file, bytes, header });
    }
    Ok(files)
}

/// Takes away a damaged header that does not matter: after a crash, before the file is used again, it would.
fn make_blank(context: &Context, file: &dyn File, path: &Path, bytes: u64) -> Result<()> {
    let zeros = [0; FILE_HEADER_BYTES];
    let there = &zeros[..index(bytes.min(FILE_HEADER_BYTES as u64))];
    file.write_at(&[IoSlice::new(there)], 0)
        .map_err(|error| Error::io("write journal header", path, error))?;
    context.sync_file(file, path)
}

/// Whether a file of the journal can have this many bytes: it has its full length before it gets its name. One that was
/// cut at a multiple of 4096 ends with half a frame, nearly always.
pub(crate) fn check_length(bytes: u64) -> std::result::Result<(), HeaderProblem> {
    if bytes <= FILE_HEADER_BYTES as u64 || !bytes.is_multiple_of(FILE_HEADER_BYTES as u64) {
        return Err(HeaderProblem::Invalid(Invalid::new(CUT_SHORT, 0)));
    }
    Ok(())
}

/// Reads the journal from `start` (in `generation`, or the one after it) to its end, handing over the changes of each frame. `apply` verifies
/// the batches of a frame and answers `Ok(false)` if one is bad; then nothing of the frame may have been applied.
pub(crate) fn replay(
    files: &[FoundFile],
    start: Position,
    generation: u64,
    is_clean: bool,
    mut apply: impl FnMut(Vec<Change>) -> Result<bool>,
) -> Result<Recovered> {
    let highest = files.iter().filter_map(|file| file.header).map(|header| header.generation).max();
    let mut recovered = Recovered {
        start,
        end: start,
        how: JournalEnd::Clean,
        generation: highest.unwrap_or(0).max(generation),
        last_generation: generation,
        in_doubt: Vec::new(),
        needed: Vec::new(),
        torn: Bytes::new(),
    };
    if is_clean && highest.is_none_or(|highest| highest <= generation) {
        // The store says itself that it ends here, and no later use of a file speaks against it: what stands behind is of
        // an earlier one, and need not be read.
        return Ok(recovered);
    }
    let chain = chain(files, start, generation);
    if chain.is_empty() {
        // Generation 0 is that of a new store, which has no journal yet.
        if is_clean || generation == 0 && highest.is_none() {
            return Ok(recovered);
        }
        let path = files.first().map_or_else(PathBuf::new, |file| file.path.clone());
        let detail = format!(
            "the journal file of generation {generation} is missing: the checkpoint needs it from position {start} on"
        );
        return Err(Error::CorruptFile { path, position: Position::ZERO, detail });
    }
    let mut synced = start;
    let mut contents: Vec<(usize, FileHeader, Bytes)> = Vec::new();
    for (link, &(number, header)) in chain.iter().enumerate() {
        let file = &files[number];
        // Where the next generation starts, this one ends, whatever stands behind.
        let limit = chain.get(link + 1).map(|(_, next)| next.start);
        let from = recovered.end.max(header.start);
        if file.bytes < file_position(&header, from) && !is_clean {
            let position = Position(file.bytes);
            return Err(Error::CorruptFile { path: file.path.clone(), position, detail: CUT_SHORT.into() });
        }
        let bytes = read_from(file, file_position(&header, from))?;
        contents.push((number, header, bytes.clone()));
        let begin = from;
        while limit.is_none_or(|limit| recovered.end < limit) {
            let rest = bytes.slice(index(recovered.end - begin)..);
            match frame(&rest, &header, recovered.end, &mut apply) {
                Ok(Some((frame_bytes, mark))) => {
                    synced = synced.max(mark);
                    recovered.end = recovered.end + frame_bytes as u64;
                }
                Ok(None) => break,
                Err(FrameError::Problem(FrameProblem::UnknownChange(found))) => {
                    return Err(Error::NewerFormat {
                        path: file.path.clone(),
                        found,
                        supported: CHANGE_NUMBER_MAX,
                    });
                }
                Err(FrameError::Problem(FrameProblem::Invalid(_))) => break,
                Err(FrameError::Other(error)) => return Err(error),
            }
        }
        recovered.needed.push((number, recovered.end));
        if recovered.end > begin {
            // Nothing may follow a generation without a frame behind the checkpoint: its header may not be on the
            // disk, and its file may be used again before the next checkpoint.
            recovered.last_generation = header.generation;
        }
        if limit != Some(recovered.end) {
            // Either this is the last file, or the next one starts behind a bad frame.
            let is_last = link + 1 == chain.len();
            judge_end(files, is_last, &bytes, begin, &header, &mut recovered)?;
            if is_clean {
                // The store says itself that it ends here: what stands behind is of an earlier use.
                recovered.how = JournalEnd::Clean;
                recovered.torn = Bytes::new();
            }
            break;
        }
    }
    for (number, header, bytes) in contents {
        let begin = header.start.max(start);
        let end = (begin + bytes.len() as u64).min(recovered.end);
        let from = begin.max(synced);
        if from < end {
            let part = bytes.slice(index(from - begin)..index(end - begin));
            recovered.in_doubt.push((number, file_position(&header, from), part));
        }
        if header.start >= synced && header.start < end {
            // Then the header is in doubt as well.
            recovered.in_doubt.push((number, 0, header.encode().to_vec().into()));
        }
    }
    Ok(recovered)
}

/// The files that hold the journal from `start` on, in order. Each follows the one before; of two that follow the
/// same one, the higher generation was begun when the other had been found torn.
pub(crate) fn chain(files: &[FoundFile], start: Position, generation: u64) -> Vec<(usize, FileHeader)> {
    let headers = || files.iter().enumerate().filter_map(|(number, file)| Some((number, file.header?)));
    let next = |generation: u64| {
        headers()
            .filter(|(_, header)| header.previous == generation && header.generation > generation)
            .max_by_key(|(_, header)| header.generation)
    };
    let mut link = headers().find(|(_, header)| header.generation == generation && header.start <= start);
    // Of files that end at or before `start` nothing is needed, and they may be gone.
    while let Some(found) = next(link.map_or(generation, |(_, header)| header.generation)) {
        if found.1.start > start {
            break;
        }
        link = Some(found);
    }
    let mut chain = Vec::new();
    while let Some(found) = link {
        chain.push(found);
        link = next(found.1.generation).filter(|(_, header)| header.start >= found.1.start);
    }
    chain
}

enum FrameError {
    Problem(FrameProblem),
    Other(Error),
}

/// Applies the frame at the start of `bytes`; answers its length and its mark, or `None` if one of its batches is bad.
fn frame(
    bytes: &Bytes,
    header: &FileHeader,
    position: Position,
    apply: &mut impl FnMut(Vec<Change>) -> Result<bool>,
) -> std::result::Result<Option<(usize, Position)>, FrameError> {
    let problem = |invalid| FrameError::Problem(FrameProblem::Invalid(invalid));
    let frame = FrameHeader::decode(bytes, header.seed(), header.generation, position).map_err(problem)?;
    let changes = frame.changes(bytes).map_err(FrameError::Problem)?;
    let applied = apply(changes).map_err(FrameError::Other)?;
    Ok(applied.then_some((frame.frame_bytes, frame.synced)))
}

/// Nothing intact stands at `recovered.end`: a torn write, or rot?
fn judge_end(
    files: &[FoundFile],
    is_last: bool,
    bytes: &Bytes,
    begin: Position,
    header: &FileHeader,
    recovered: &mut Recovered,
) -> Result<()> {
    let end = recovered.end;
    let at = index(end - begin);
    let mut last_seen = 0;
    let mut is_rot = false;
    if claims_partly(&bytes[at..], header, end) {
        last_seen = ALIGNMENT;
    }
    for offset in (at..bytes.len()).step_by(ALIGNMENT) {
        let position = begin + offset as u64;
        if !claims(&bytes[offset..], header, position) {
            continue;
        }
        last_seen = offset - at + ALIGNMENT;
        if let Ok(frame) = FrameHeader::decode(&bytes[offset..], header.seed(), header.generation, position) {
            is_rot |= frame.synced > end;
            last_seen = (offset - at + frame.frame_bytes).min(bytes.len() - at);
        }
    }
    is_rot |= later_mark(files, header.generation)? > end;
    if is_rot && !crate::planted::truncates_on_rot() {
        let number = recovered.needed.last().map_or(0, |(number, _)| *number);
        return Err(Error::CorruptFile {
            path: files[number].path.clone(),
            position: Position(file_position(header, end)),
            detail: format!(
                "the frame at journal position {end} is damaged, or its file is missing, and a later one says that it \
                 was synced"
            ),
        });
    }
    if last_seen > 0 || !is_last {
        recovered.how = JournalEnd::Torn { bytes: last_seen as u64 };
        recovered.torn = bytes.slice(at..at + last_seen);
    }
    Ok(())
}

/// Every place of `bytes`, which begin at `position`, where an intact frame of this generation stands, and its mark.
pub(crate) fn frames(
    bytes: &Bytes,
    header: &FileHeader,
    position: Position,
) -> impl Iterator<Item = (Position, Position)> {
    (0..bytes.len()).step_by(ALIGNMENT).filter_map(move |offset| {
        let at = position + offset as u64;
        let rest = &bytes[offset..];
        if !claims(rest, header, at) {
            return None;
        }
        let frame = FrameHeader::decode(rest, header.seed(), header.generation, at).ok()?;
        Some((at, frame.synced))
    })
}

/// Up to where the frames of generations behind this one say that the journal was synced. The chain need not lead to them:
/// a file before theirs may be missing. After a power cut there are such too, when a later file got its header and an
/// earlier one did not; but then none of their frames speaks of more than what was synced, which is there.
pub(crate) fn later_mark(files: &[FoundFile], generation: u64) -> Result<Position> {
    let mut mark = Position::ZERO;
    for file in files {
        if let Some(header) = file.header.filter(|header| header.generation > generation) {
            let bytes = read_from(file, FILE_HEADER_BYTES as u64)?;
            mark = frames(&bytes, &header, header.start).map(|(_, synced)| synced).fold(mark, Position::max);
        }
    }
    Ok(mark)
}

/// Whether a frame header at `position` could start here; cheap, and all that most places need.
pub(crate) fn claims(bytes: &[u8], header: &FileHeader, position: Position) -> bool {
    bytes.len() >= crate::format::frame::FRAME_HEADER_BYTES
        && crate::format::u64_at(bytes, 8) == position.0
        && crate::format::u64_at(bytes, 24) == header.generation
}

/// Whether one of the two fields that [`claims`] looks at is what it would be, and the other perhaps damaged. In what an
/// earlier use of the file left the generation is another, and the position nearly always: where it is not, stale bytes
/// are reported as a torn write, which costs nothing; the other way round a damaged frame would go without a word.
fn claims_partly(bytes: &[u8], header: &FileHeader, position: Position) -> bool {
    // Zeros are no frame, although the first position of all is 0.
    bytes.get(..FRAME_HEADER_BYTES).is_some_and(|start| start.iter().any(|&byte| byte != 0))
        && (crate::format::u64_at(bytes, 8) == position.0
            || crate::format::u64_at(bytes, 24) == header.generation)
}

/// Writes what is in doubt once more and syncs it. The same bytes at the same place: a crash on the way changes nothing.
pub(crate) fn settle(context: &Context, files: &[FoundFile], recovered: &Recovered) -> Result<()> {
    for (number, position, bytes) in &recovered.in_doubt {
        let file = &files[*number];
        file.file
            .write_at(&[IoSlice::new(bytes)], *position)
            .map_err(|error| Error::io("write journal", &file.path, error))?;
        context.sync_file(&*file.file, &file.path)?;
    }
    Ok(())
}

/// Keeps what is cut off: at most 1 MiB, and one such file.
pub(crate) fn keep_torn(context: &Context, recovered: &Recovered) -> Option<PathBuf> {
    if recovered.torn.is_empty() {
        return None;
    }
    let path = dir(context).join("torn-tail");
    let _ = context.disk.remove(&path);
    let part = &recovered.torn[..recovered.torn.len().min(1 << 20)];
    let kept =
        context.disk.open(&path, OpenMode::Create).and_then(|file| file.write_at(&[IoSlice::new(part)], 0));
    // It is for a curious person only: that it cannot be kept must not keep the store from opening.
    kept.ok().map(|()| path)
}

pub(crate) fn read_from(file: &FoundFile, position: u64) -> Result<Bytes> {
    let length = index(file.bytes.saturating_sub(position));
    if length == 0 {
        return Ok(Bytes::new());
    }
    // In large pages, where the system has them: to fault this much memory in by small ones takes longer than to
    // read and check it.
    let io = |error| Error::io("read journal", &file.path, error);
    let mut memory = MmapMut::map_anon(length).map_err(io)?;
    let _ = memory.advise(Advice::HugePage);
    let read = file.file.read_at(&mut memory, position).map_err(io)?;
    Ok(Bytes::from_owner(memory).slice(..read))
}

pub(crate) fn file_position(header: &FileHeader, position: Position) -> u64 {
    FILE_HEADER_BYTES as u64 + (position - header.start)
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a file of the journal fits into memory")
}
