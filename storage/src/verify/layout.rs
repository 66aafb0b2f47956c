//! The directory of a store: what must be there, what may, and what is somebody else's.

use std::io;
use std::path::Path;

use super::checkpoint_path;
use super::report::Severity;
use super::run::Run;
use super::segment::{self, Subject};
use crate::context::Context;
use crate::disk::{Disk, EntryKind, OpenMode};
use crate::error::{Error, Result};
use crate::format::checkpoint::{CLEAN_BYTES, Checkpoint, is_clean};
use crate::format::segment::{HEADER_BYTES, SegmentHeader};
use crate::format::{FORMAT_VERSION, HeaderProblem};
use crate::live::LIVE;
use crate::segment::parse_file_name;
use crate::store::open::{CHECKPOINT, CLEAN, LOCK, Recovering};
use crate::topic::TopicInner;
use crate::types::{Offset, Position, TopicId};

/// Whether there is something that is or was a store.
pub(super) fn is_store(disk: &dyn Disk, dir: &Path) -> Result<bool> {
    let entries = match disk.list(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::io("list", dir, error)),
    };
    let has = |name: &str| entries.iter().any(|entry| entry.name == name);
    Ok(has(CHECKPOINT) || has("journal") && has("topics"))
}

/// Reads and checks both copies of the checkpoint.
pub(super) fn checkpoint(run: &mut Run<'_>, disk: &dyn Disk, dir: &Path) -> Result<Option<Checkpoint>> {
    let path = checkpoint_path(dir);
    let read = || {
        let file = disk.open(&path, OpenMode::Read)?;
        let length =
            usize::try_from(file.len()?).map_err(|_| io::Error::from(io::ErrorKind::FileTooLarge))?;
        let mut bytes = vec![0; length];
        let read = file.read_at(&mut bytes, 0)?;
        bytes.truncate(read);
        Ok::<_, io::Error>(bytes)
    };
    let bytes = match read() {
        Ok(bytes) => bytes,
        Err(error) => {
            let detail = match error.kind() {
                io::ErrorKind::NotFound => "the checkpoint is missing: the store is refused".into(),
                _ => format!("the checkpoint cannot be read: {error}"),
            };
            run.find_in_file(Severity::Unreadable, &path, 0, detail);
            return Ok(None);
        }
    };
    run.pace(bytes.len() as u64)?;
    let (position, detail) = match Checkpoint::decode(&bytes) {
        Ok(decoded) => {
            run.report.checked.checkpoint_copies = 2 - u64::from(decoded.damaged_copy.is_some());
            if let Some(invalid) = decoded.damaged_copy {
                let detail =
                    format!("one of the two copies of the checkpoint is damaged: {}", invalid.detail);
                run.find_in_file(Severity::Redundant, &path, invalid.position as u64, detail);
            }
            return Ok(Some(decoded.checkpoint));
        }
        Err(HeaderProblem::Newer(found)) => {
            return Err(Error::NewerFormat { path, found, supported: u32::from(FORMAT_VERSION) });
        }
        Err(HeaderProblem::Blank) => (0, "the checkpoint is blank".to_owned()),
        Err(HeaderProblem::Invalid(invalid)) => {
            (invalid.position, format!("both copies of the checkpoint are damaged: {}", invalid.detail))
        }
    };
    run.find_in_file(Severity::Unreadable, &path, position as u64, detail);
    Ok(None)
}

/// About how many bytes there are to read.
pub(super) fn bytes_known(disk: &dyn Disk, dir: &Path, checkpoint: &Checkpoint) -> u64 {
    let segments: u64 = checkpoint
        .topics
        .iter()
        .map(|topic| {
            let sealed: u64 = topic.sealed.iter().map(|sealed| sealed.bytes).sum();
            sealed.saturating_add(topic.active.map_or(0, |active| active.bytes))
        })
        .sum();
    let journal = dir.join("journal");
    let files = disk.list(&journal).unwrap_or_default();
    let journal_bytes: u64 = files
        .iter()
        .filter_map(|entry| disk.open(&journal.join(&entry.name), OpenMode::Read).ok()?.len().ok())
        .sum();
    segments.saturating_add(journal_bytes)
}

/// Names in the store's directory.
pub(super) fn check_root(run: &mut Run<'_>, disk: &dyn Disk, dir: &Path) {
    const FILES: [&str; 6] = [CHECKPOINT, "checkpoint.new", CLEAN, LOCK, LIVE, "reserve"];
    const DIRS: [&str; 2] = ["journal", "topics"];
    for entry in disk.list(dir).unwrap_or_default() {
        let is_ours = match entry.kind {
            EntryKind::File => FILES.contains(&entry.name.as_str()),
            EntryKind::Dir => DIRS.contains(&entry.name.as_str()),
            EntryKind::Other => false,
        };
        if !is_ours {
            run.find_in_file(Severity::Foreign, &dir.join(&entry.name), 0, "the store does not know it");
        }
    }
}

/// The file `clean`: right, absent, or half made by a crash.
pub(super) fn check_clean(run: &mut Run<'_>, disk: &dyn Disk, dir: &Path, position: Position) {
    let path = dir.join(CLEAN);
    let mut bytes = [0; CLEAN_BYTES + 1];
    let detail = match disk.open(&path, OpenMode::Read).and_then(|file| file.read_at(&mut bytes, 0)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return,
        Err(error) => format!("the file cannot be read: {error}"),
        Ok(length) if is_clean(&bytes[..length], position) => return,
        Ok(length) if bytes[..length].iter().all(|&byte| byte == 0) => return,
        Ok(_) => "the file is damaged or names another position: the store counts as not closed".into(),
    };
    run.find_in_file(Severity::Redundant, &path, 0, detail);
}

/// Files in the directory of a topic that the store does not know.
pub(super) fn check_topic_files(run: &mut Run<'_>, topic: &TopicInner) -> Result<()> {
    let disk = &*topic.context.disk;
    let known = topic.segments();
    let entries = match disk.list(&topic.dir) {
        Ok(entries) => entries,
        // That a segment is missing is found out with the segment.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => {
            let detail = format!("the topic's directory cannot be listed: {error}");
            run.find_in_topic(Severity::Unreadable, Some(&topic.name), None, (&topic.dir, 0), detail);
            return Ok(());
        }
    };
    for entry in entries {
        let path = topic.dir.join(&entry.name);
        let Some(name) = parse_file_name(&entry.name) else {
            if entry.kind == EntryKind::File && crate::terms::is_file_name(&entry.name) {
                continue;
            }
            let detail = "the topic does not know this file";
            run.find_in_topic(Severity::Foreign, Some(&topic.name), None, (&path, 0), detail);
            continue;
        };
        if known.iter().any(|segment| (segment.base_offset, segment.rewrites) == name) {
            continue;
        }
        match check_unknown(topic, &path, entry.kind) {
            Ok(()) => run.report.checked.leftover_files += 1,
            Err(detail) => {
                let detail = format!("{detail}: the topic is refused while the file is there");
                run.find_in_topic(Severity::Unreadable, Some(&topic.name), None, (&path, 0), detail);
            }
        }
    }
    Ok(())
}

/// Whether an unknown segment is one that the engine may remove; what keeps it from it otherwise.
fn check_unknown(topic: &TopicInner, path: &Path, kind: EntryKind) -> Result<(), String> {
    if kind != EntryKind::File {
        return Err("it has the name of a segment and is not a regular file".into());
    }
    let mut start = [0; HEADER_BYTES];
    topic
        .context
        .disk
        .open(path, OpenMode::Read)
        .and_then(|file| file.read_at(&mut start, 0))
        .map_err(|error| format!("it cannot be read: {error}"))?;
    match SegmentHeader::decode(&start) {
        Err(HeaderProblem::Blank) => Ok(()),
        Ok(header) if header.topic == topic.uid && header.store == topic.context.store => Ok(()),
        Ok(_) => Err("the segment belongs to another topic or store".into()),
        Err(HeaderProblem::Newer(found)) => Err(format!("the segment has format version {found}")),
        Err(HeaderProblem::Invalid(invalid)) => {
            Err(format!("the store does not know this segment, and {}", invalid.detail))
        }
    }
}

/// Names in the directory of all topics.
pub(super) fn check_topic_dirs(run: &mut Run<'_>, context: &Context, state: &Recovering) {
    let dir = context.topics_dir();
    let entries = match context.disk.list(&dir) {
        Ok(entries) => entries,
        Err(error) => {
            let detail = format!("the directory of all topics cannot be listed: {error}");
            run.find_in_file(Severity::Unreadable, &dir, 0, detail);
            return;
        }
    };
    for entry in entries {
        let id = TopicId::of_dir(&entry.name).filter(|_| entry.kind == EntryKind::Dir);
        let is_ours = id.is_some_and(|id| state.topics.contains_key(&id) || state.deleted.contains(&id));
        if !is_ours {
            let detail = "the store has no topic of this number";
            run.find_in_file(Severity::Foreign, &dir.join(&entry.name), 0, detail);
        }
    }
}

/// Without a checkpoint nobody knows what belongs where: each segment for itself.
pub(super) fn segments_alone(run: &mut Run<'_>, disk: &dyn Disk, dir: &Path) -> Result<()> {
    let topics_dir = dir.join("topics");
    for topic_dir in disk.list(&topics_dir).unwrap_or_default() {
        let topic_dir = topics_dir.join(&topic_dir.name);
        let mut names: Vec<_> =
            disk.list(&topic_dir).unwrap_or_default().into_iter().map(|entry| entry.name).collect();
        names.sort();
        for name in names {
            let path = topic_dir.join(name);
            let Some((base_offset, rewrites)) = segment::name_of(&path) else { continue };
            let subject = Subject {
                path,
                topic: None,
                owner: None,
                base_offset,
                next_offset: None,
                rewrites,
                log_start: Offset::ZERO,
                sealed: None,
                data_bytes: None,
                is_listed: &|| true,
            };
            segment::check(run, disk, &subject)?;
        }
    }
    Ok(())
}
