//! Reading a log's files back: what was acknowledged, and where it ends.
//!
//! Segments are looked at from the last one backwards, batch by batch, until one tells that it was synced; those before
//! it were synced too, and only their footers are read.
//!
//! | Case | Found | Decision |
//! |---|---|---|
//! | `closed` | the last segment has a footer, and the identity file says that all before it was synced | its batches need no look; take index and footer away and go on behind the last one, or with a new segment if this one is more than half full |
//! | `clean` | batches, and zeros to the end of the file | go on behind the last one |
//! | `torn` | a bad batch, and nothing says that it was synced | never acknowledged as synced: zero it and what is behind it |
//! | `rot` | a bad batch, and a later one or the identity file says that it was synced | refuse, name file and position |
//! | `unsealed` | batches up to where the next segment starts, but no footer | write index and footer |
//! | `hollow` | a footer, and before it a bad batch that nothing says was synced | as `torn`; the segment is the active one again |
//! | `stranded` | a segment that does not start where the one before it ends, and nothing says that it was synced | never acknowledged as synced: remove it and all behind it |
//! | `missing` | a gap before a segment that was synced, or a segment that the identity file knows is gone | refuse, name the first offset that is missing |
//! | `half made` | no header, or a damaged one, and nothing says that it was synced | write the header; of its batches as above |
//! | `foreign` | a segment of another log | refuse, name the file, touch nothing |
//! | `trimmed` | a segment that ends at or before the log's start | remove it |
//! | `spare` | the file of a segment to come | remove it |
//! | `damaged` | a segment that was synced and whose footer is bad | go on: readers find its batches without it, and report what they cannot read |
//!
//! That a later batch is intact is not enough to tell rot from a torn write: after a power cut a later unsynced write may
//! be there and an earlier one not. The first batch after each sync therefore says up to where its segment was synced
//! before it was written, which means that all segments before were synced as well.
//!
//! What is intact and not known to be synced is kept, for it was perhaps acknowledged; and since it may be in the page
//! cache only, left there by a sync that failed, it is written again to the same place and synced before anybody sees it.
//! A crash on the way changes nothing: the same is found again.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::active::{self, NEXT};
use super::identity::{Identity, NAME_ASIDE};
use super::scan::{self, Scan};
use crate::context::Context;
use crate::disk::{EntryKind, File, OpenMode};
use crate::error::{Error, Result};
use crate::format::checkpoint::SealedSegment;
use crate::format::segment::{FOOTER_BYTES, Footer, HEADER_BYTES, IndexBuilder, SegmentHeader};
use crate::format::{ALIGNMENT, FORMAT_VERSION, HeaderProblem};
use crate::segment::{file_name, parse_file_name};
use crate::types::{Offset, Position, Timestamp};

/// Behind the name of a segment that is being named again.
const ASIDE: &str = ".aside";

/// What opening a log found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogRecovery {
    /// Records whose batches were looked at.
    pub records_checked: u64,
    /// Bytes that were intact but perhaps not on the disk, and were written and synced once more.
    pub in_doubt_bytes: u64,
    /// Bytes of a torn write, never acknowledged as synced, that were taken away.
    pub torn_bytes: u64,
    /// Segments that were never acknowledged as synced and do not follow on what is there; they were removed.
    pub stranded: Vec<PathBuf>,
    /// Files with damage that costs nothing by itself; their readers report what it does cost.
    pub damaged: Vec<PathBuf>,
}

/// What the files hold.
#[derive(Debug)]
pub(super) struct Recovered {
    /// In order.
    pub(super) sealed: Vec<SealedSegment>,
    /// The segment to go on in.
    pub(super) tail: Option<TailFile>,
    pub(super) last_time: Timestamp,
    pub(super) next_offset: Offset,
    pub(super) report: LogRecovery,
}

/// A segment to go on in: settled, with zeros behind its batches.
#[derive(Debug)]
pub(super) struct TailFile {
    pub(super) file: Arc<dyn File>,
    pub(super) index: IndexBuilder,
    pub(super) base_offset: Offset,
    pub(super) capacity: u64,
}

#[derive(Debug)]
struct Found {
    base_offset: Offset,
    path: PathBuf,
}

/// Recovers the log. When it returns, everything it returns is on the disk.
pub(super) fn recover(
    context: &Context,
    identity: &Identity,
    seed: u32,
    segment_bytes_max: u64,
) -> Result<Recovered> {
    let capacity = active::capacity_for(segment_bytes_max);
    let found = list(context, identity)?;
    check_known(context, identity, &found)?;
    let mut report = LogRecovery::default();
    // Backwards, until one tells that it was synced.
    let mut scans: Vec<Scanned> = Vec::new();
    let mut scanned_from = found.len();
    while scanned_from > 0 {
        let segment = &found[scanned_from - 1];
        if identity.synced.0 > segment.base_offset {
            break;
        }
        let proven = if identity.synced.0 == segment.base_offset { identity.synced.1 } else { 0 };
        let scanned = look(context, segment, seed, proven)?;
        let is_proof = scanned.proven > 0 || scanned.scan.has_mark;
        scans.push(scanned);
        scanned_from -= 1;
        if is_proof {
            break;
        }
    }
    scans.reverse();
    let mut sealed = Vec::new();
    for (number, segment) in found[..scanned_from].iter().enumerate() {
        let next = found.get(number + 1).map_or(identity.synced.0, |next| next.base_offset);
        sealed.push(by_footer(context, segment, next, seed, &mut report)?);
    }
    let mut next_offset = sealed.last().map_or(identity.log_start_offset, |segment| segment.next_offset);
    // What follows on what, up to the first that is not whole.
    let mut kept = 0;
    for scanned in &scans {
        let follows = scanned.base_offset == next_offset || sealed.is_empty() && kept == 0;
        if !follows {
            break;
        }
        kept += 1;
        next_offset = scanned.scan.index.next_offset();
    }
    if next_offset < identity.log_start_offset {
        // Only what was synced can have been trimmed.
        return missing(context, next_offset);
    }
    for scanned in scans.drain(kept..) {
        report.stranded.push(scanned.path);
    }
    if !report.stranded.is_empty() {
        for path in &report.stranded {
            context.disk.remove(path).map_err(|error| Error::io("remove", path, error))?;
        }
        context.sync_dir(&context.dir)?;
    }
    let is_known = |base_offset| identity.synced.1 > 0 && base_offset <= identity.synced.0;
    for scanned in scans.iter().filter(|scanned| !is_known(scanned.base_offset)) {
        name_again(context, &scanned.path)?;
    }
    let count = scans.len();
    let mut tail = None;
    let mut last_time = sealed.last().map_or(Timestamp::ZERO, |segment| segment.last_time);
    if last_time == Timestamp::MAX {
        last_time = Timestamp::ZERO;
    }
    for (number, scanned) in scans.into_iter().enumerate() {
        last_time = last_time.max(scanned.scan.index.times().1);
        if scanned.scan.is_checked {
            report.records_checked += scanned.scan.index.record_count();
        }
        let is_last = number + 1 == count;
        let goes_on = is_last && !scanned.scan.is_checked && scanned.bytes <= segment_bytes_max / 2;
        if (scanned.scan.footer.is_some() && !goes_on) || !is_last {
            sealed.push(settle_sealed(context, scanned, seed, &mut report)?);
        } else {
            tail = Some(settle_tail(context, scanned, capacity, &mut report)?);
        }
    }
    Ok(Recovered { sealed, tail, last_time, next_offset, report })
}

/// The segments, in order; those below the log's start and the spare file are removed.
fn list(context: &Context, identity: &Identity) -> Result<Vec<Found>> {
    let dir = &context.dir;
    let entries = context.disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
    let mut found = Vec::new();
    let mut gone = Vec::new();
    let mut aside = Vec::new();
    for entry in entries.into_iter().filter(|entry| entry.kind == EntryKind::File) {
        let path = dir.join(&entry.name);
        match parse_file_name(&entry.name) {
            Some((base_offset, 0)) => found.push(Found { base_offset, path }),
            _ if entry.name == NEXT || entry.name == NAME_ASIDE => gone.push(path),
            _ if entry.name.strip_suffix(ASIDE).is_some_and(|name| parse_file_name(name).is_some()) => {
                aside.push(path);
            }
            // Not ours to touch.
            _ => {}
        }
    }
    for path in aside {
        let place = path.with_extension("");
        match found.iter().any(|found| found.path == place) {
            true => gone.push(path),
            false => {
                context.disk.rename(&path, &place).map_err(|error| Error::io("rename", &path, error))?;
                let name = place.file_name().and_then(|name| parse_file_name(name.to_str()?));
                let (base_offset, _) = name.expect("it was just looked at");
                found.push(Found { base_offset, path: place });
            }
        }
    }
    found.sort_by_key(|found| found.base_offset);
    // What comes before the segment with the log's first offset.
    let trimmed =
        found.partition_point(|found| found.base_offset <= identity.log_start_offset).saturating_sub(1);
    gone.extend(found.drain(..trimmed).map(|found| found.path));
    for path in &gone {
        context.disk.remove(path).map_err(|error| Error::io("remove", path, error))?;
    }
    if !gone.is_empty() {
        context.sync_dir(dir)?;
    }
    Ok(found)
}

/// The sync of a name may have failed, which no later one makes up for: the name is given once more. A crash may cost a
/// segment that nobody was told of as synced; the death of the process costs nothing.
fn name_again(context: &Context, path: &Path) -> Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(ASIDE);
    let aside = PathBuf::from(aside);
    let (disk, io) = (&context.disk, |error| Error::io("rename", path, error));
    disk.rename(path, &aside).and_then(|()| disk.rename(&aside, path)).map_err(io)
}

/// The segments that the identity file knows of are there.
fn check_known(context: &Context, identity: &Identity, found: &[Found]) -> Result<()> {
    let missing = |offset| missing(context, offset);
    let (synced_base, synced_bytes) = identity.synced;
    match found.first() {
        Some(first) if first.base_offset > identity.log_start_offset => missing(identity.log_start_offset),
        None if synced_bytes > 0 || identity.log_start_offset > Offset::ZERO => {
            missing(identity.log_start_offset)
        }
        Some(first)
            if synced_bytes > 0
                && first.base_offset <= synced_base
                && !found.iter().any(|found| found.base_offset == synced_base) =>
        {
            missing(synced_base)
        }
        _ => Ok(()),
    }
}

fn missing<T>(context: &Context, offset: Offset) -> Result<T> {
    Err(Error::CorruptFile {
        path: context.dir.join(file_name(offset, 0)),
        position: Position::ZERO,
        detail: format!("the segment with offset {offset} is missing"),
    })
}

/// A segment that was looked at batch by batch.
#[derive(Debug)]
struct Scanned {
    base_offset: Offset,
    path: PathBuf,
    file: Arc<dyn File>,
    bytes: u64,
    /// Bytes that are known to be synced.
    proven: u64,
    scan: Scan,
}

fn look(context: &Context, found: &Found, seed: u32, proven: u64) -> Result<Scanned> {
    let path = &found.path;
    let io = |error| Error::io("read segment", path, error);
    let file = context.disk.open(path, OpenMode::Write).map_err(io)?;
    let bytes = file.len().map_err(io)?;
    let mut header = [0; HEADER_BYTES];
    let read = file.read_at(&mut header, 0).map_err(io)?;
    let header_problem = match SegmentHeader::decode(&header[..read]) {
        Ok(header) if header.topic == context.store && header.base_offset == found.base_offset => None,
        Ok(_) => {
            let detail = "the segment is of another log".into();
            return Err(Error::NotAStore { path: path.clone(), detail });
        }
        Err(HeaderProblem::Newer(found)) => return Err(newer(path, found)),
        Err(HeaderProblem::Blank) => Some("the segment header is blank"),
        Err(HeaderProblem::Invalid(invalid)) => Some(invalid.detail),
    };
    let footer = footer(&*file, path, bytes, found.base_offset, seed)?;
    let closed = footer.as_ref().filter(|footer| header_problem.is_none() && proven == footer.data_bytes);
    let closed = closed.map(|footer| scan::by_footer(&*file, footer)).transpose().map_err(io)?.flatten();
    let mut scan = match closed {
        Some(closed) => closed,
        None => scan::scan(&*file, bytes, seed, found.base_offset, footer).map_err(io)?,
    };
    let corrupt = |position: u64, detail: String| {
        Err(Error::CorruptFile { path: path.clone(), position: Position(position), detail })
    };
    if let Some(detail) = header_problem {
        if proven > 0 || scan.has_mark {
            return corrupt(0, detail.into());
        }
        // Half made, or torn: without a header nothing of it was ever synced.
        scan.footer = None;
    }
    let end = scan.index.position();
    let proven = proven.max(scan.synced);
    if end < proven && !crate::planted::truncates_on_rot() {
        return corrupt(
            end,
            format!("the batch there is damaged, and was synced: so was all up to {proven}"),
        );
    }
    Ok(Scanned {
        base_offset: found.base_offset,
        path: path.clone(),
        file,
        bytes,
        proven: proven.min(end),
        scan,
    })
}

/// The footer, if it is intact and of this segment.
fn footer(
    file: &dyn File,
    path: &Path,
    bytes: u64,
    base_offset: Offset,
    seed: u32,
) -> Result<Option<Footer>> {
    let Some(at) = bytes.checked_sub(FOOTER_BYTES as u64) else { return Ok(None) };
    let mut tail = [0; FOOTER_BYTES];
    file.read_at(&mut tail, at).map_err(|error| Error::io("read the footer of", path, error))?;
    match Footer::decode(&tail, seed, bytes) {
        Ok(footer) if footer.base_offset == base_offset => Ok(Some(footer)),
        Err(HeaderProblem::Newer(found)) => Err(newer(path, found)),
        _ => Ok(None),
    }
}

fn newer(path: &Path, found: u32) -> Error {
    Error::NewerFormat { path: path.into(), found, supported: u32::from(FORMAT_VERSION) }
}

/// A segment that was synced when a later one was written: what its footer says.
fn by_footer(
    context: &Context,
    found: &Found,
    next_offset: Offset,
    seed: u32,
    report: &mut LogRecovery,
) -> Result<SealedSegment> {
    let io = |error| Error::io("read segment", &found.path, error);
    let file = context.disk.open(&found.path, OpenMode::Read).map_err(io)?;
    let bytes = file.len().map_err(io)?;
    let base_offset = found.base_offset;
    let sealed = match footer(&*file, &found.path, bytes, base_offset, seed)? {
        Some(footer) if footer.next_offset != next_offset => {
            return missing(context, footer.next_offset);
        }
        Some(footer) => SealedSegment {
            base_offset,
            rewrites: 0,
            next_offset,
            bytes,
            record_count: footer.record_count,
            first_time: footer.first_time,
            last_time: footer.last_time,
        },
        None => {
            report.damaged.push(found.path.clone());
            SealedSegment {
                base_offset,
                rewrites: 0,
                next_offset,
                bytes,
                record_count: next_offset - base_offset,
                first_time: Timestamp::ZERO,
                // Not known: nobody may step over it who looks for a time.
                last_time: Timestamp::MAX,
            }
        }
    };
    Ok(sealed)
}

/// A whole segment that is perhaps in the page cache only, and perhaps without a footer.
fn settle_sealed(
    context: &Context,
    scanned: Scanned,
    seed: u32,
    report: &mut LogRecovery,
) -> Result<SealedSegment> {
    let Scanned { path, file, scan, proven, bytes, base_offset } = scanned;
    let end = scan.index.position();
    write_again(context, &*file, &path, base_offset, proven..end, report)?;
    let sealed = match &scan.footer {
        Some(footer) => {
            // A length whose sync has failed must be given once more, like everything else.
            copy(&*file, end..bytes)
                .and_then(|()| file.set_len(bytes + ALIGNMENT as u64))
                .and_then(|()| file.set_len(bytes))
                .map_err(|error| Error::io("write segment", &path, error))?;
            SealedSegment {
                base_offset,
                rewrites: 0,
                next_offset: footer.next_offset,
                bytes,
                record_count: footer.record_count,
                first_time: footer.first_time,
                last_time: footer.last_time,
            }
        }
        None => active::seal(&*file, &path, &scan.index, context.store, seed)?,
    };
    context.sync_file(&*file, &path)?;
    Ok(sealed)
}

/// The last segment: what is intact of it once more, zeros behind, and room for what comes.
fn settle_tail(
    context: &Context,
    scanned: Scanned,
    capacity: u64,
    report: &mut LogRecovery,
) -> Result<TailFile> {
    let Scanned { path, file, scan, proven, bytes, base_offset } = scanned;
    let end = scan.index.position();
    let io = |error| Error::io("write segment", &path, error);
    let capacity = capacity.max(bytes);
    report.torn_bytes += scan.used_to.saturating_sub(end);
    let was_closed = scan.footer.is_some();
    if proven < end || proven == 0 || end < scan.used_to || was_closed {
        // What is read behind a cut is zeros; and a length whose sync has failed must be given once more.
        file.set_len(end).map_err(io)?;
    }
    file.allocate(capacity).map_err(io)?;
    write_again(context, &*file, &path, base_offset, proven..end, report)?;
    context.sync_file(&*file, &path)?;
    Ok(TailFile { file, index: scan.index, base_offset, capacity })
}

/// Writes the header and `range` once more, as they are.
fn write_again(
    context: &Context,
    file: &dyn File,
    path: &Path,
    base_offset: Offset,
    range: std::ops::Range<u64>,
    report: &mut LogRecovery,
) -> Result<()> {
    let header = SegmentHeader { store: context.store, topic: context.store, base_offset }.encode();
    let from = range.start.max(HEADER_BYTES as u64);
    report.in_doubt_bytes += range.end.saturating_sub(from);
    file.write_at(&[IoSlice::new(&header)], 0)
        .and_then(|()| copy(file, from..range.end))
        .map_err(|error| Error::io("write segment", path, error))
}

/// Writes what is there to where it is.
fn copy(file: &dyn File, range: std::ops::Range<u64>) -> std::io::Result<()> {
    let mut buffer = vec![0; 1 << 20];
    let mut at = range.start;
    while at < range.end {
        let part = usize::try_from(range.end - at).unwrap_or(usize::MAX).min(buffer.len());
        let read = file.read_at(&mut buffer[..part], at)?;
        if read < part {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        file.write_at(&[IoSlice::new(&buffer[..part])], at)?;
        at += part as u64;
    }
    Ok(())
}
