//! Whether the files of a topic are those that the store knows of. Looked at once, when the topic is first read,
//! written or trimmed, so that opening a store does not take longer the more it holds.
//!
//! | Found | Decision |
//! |---|---|
//! | all that is known | go on |
//! | a known segment is missing | refuse the topic, name the file |
//! | one is shorter than the checkpoint says | not looked at here: readers report the offsets that are missing, and nothing is written behind them ([`strand`](super::strand)) |
//! | an unknown segment of this topic (begun after the checkpoint, or what compaction or trimming left) | remove it: the journal has what it held, or its records were removed |
//! | an unknown segment of somebody else, or one whose header is damaged | refuse the topic, name the file, remove nothing |
//! | an index of terms of no known segment, or one that was not finished | remove it: it can be made again |
//! | anything else | leave it alone |
//!
//! A topic that is refused is looked at again by everybody who comes to it, and is itself again when its files are right.

use std::path::Path;

use super::TopicInner;
use crate::disk::{EntryKind, OpenMode};
use crate::error::{Error, Result};
use crate::format::segment::{HEADER_BYTES, SegmentHeader};
use crate::format::{FORMAT_VERSION, HeaderProblem};
use crate::segment::parse_file_name;
use crate::terms;

/// Checks and cleans. Called under the topic's flush lock, before anything is written.
pub(crate) fn check(topic: &TopicInner) -> Result<()> {
    let context = &topic.context;
    let known = topic.segments();
    let refuse = |path: &Path, detail: &str| {
        Err(Error::TopicRefused { topic: topic.name.clone(), path: path.into(), detail: detail.into() })
    };
    let entries = match context.disk.list(&topic.dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match known.first() {
            None => return Ok(()),
            Some(segment) => {
                return refuse(segment.path(), "the segment is missing; put it back, or delete the topic");
            }
        },
        Err(error) => return Err(Error::io("list", &topic.dir, error)),
    };
    let mut found: Vec<_> =
        entries.iter().filter_map(|entry| Some((parse_file_name(&entry.name)?, entry))).collect();
    found.sort_by_key(|(key, _)| *key);
    for segment in known.iter() {
        let key = (segment.base_offset, segment.rewrites);
        match found.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(number) if found[number].1.kind == EntryKind::File => {}
            Ok(_) => {
                return refuse(
                    segment.path(),
                    "it has the name of a segment and is not a regular file; put the segment in its place",
                );
            }
            Err(_) => {
                return refuse(segment.path(), "the segment is missing; put it back, or delete the topic");
            }
        }
    }
    if context.is_read_only || context.is_released() {
        return Ok(());
    }
    let mut removed = false;
    for ((base_offset, rewrites), entry) in found {
        if known.iter().any(|segment| (segment.base_offset, segment.rewrites) == (base_offset, rewrites)) {
            continue;
        }
        let path = topic.dir.join(&entry.name);
        if entry.kind != EntryKind::File {
            return refuse(&path, "it has the name of a segment and is not a regular file; move it away");
        }
        check_ours(topic, &path)?;
        context.disk.remove(&path).map_err(|error| Error::io("remove", &path, error))?;
        removed = true;
    }
    for entry in entries.iter().filter(|entry| entry.kind == EntryKind::File) {
        let is_unfinished = entry.name.ends_with(".new") && terms::is_file_name(&entry.name);
        let index_of = terms::sealed::parse_file_name(&entry.name);
        let is_of_none = index_of
            .is_some_and(|key| !known.iter().any(|segment| (segment.base_offset, segment.rewrites) == key));
        if is_unfinished || is_of_none {
            // It does no harm if it stays.
            let _ = context.disk.remove(&topic.dir.join(&entry.name));
        }
    }
    if removed {
        context.sync_dir(&topic.dir)?;
    }
    Ok(())
}

/// Whether an unknown file was begun by this topic: its header says so, or was never written.
pub(super) fn check_ours(topic: &TopicInner, path: &Path) -> Result<()> {
    let mut start = [0; HEADER_BYTES];
    topic
        .context
        .disk
        .open(path, OpenMode::Read)
        .and_then(|file| file.read_at(&mut start, 0))
        .map_err(|error| Error::io("read segment header", path, error))?;
    let detail = match SegmentHeader::decode(&start) {
        Err(HeaderProblem::Blank) => return Ok(()),
        Ok(header) if header.topic == topic.uid && header.store == topic.context.store => return Ok(()),
        Ok(_) => "the segment belongs to another topic or store; move it away".to_owned(),
        Err(HeaderProblem::Newer(found)) => {
            return Err(Error::NewerFormat {
                path: path.into(),
                found,
                supported: u32::from(FORMAT_VERSION),
            });
        }
        Err(HeaderProblem::Invalid(invalid)) => {
            format!("the store does not know this segment, and {}; move it away", invalid.detail)
        }
    };
    Err(Error::TopicRefused { topic: topic.name.clone(), path: path.into(), detail })
}
