//! Directories of topics that the store does not know.
//!
//! A topic may be written to before the frame that creates it is synced. If the power goes then, its directory may stay
//! without it, and the next topic is given the same number. No acknowledged record is in such a directory: whatever was
//! acknowledged came behind that frame, so it is looked for only after all frames were read back.
//!
//! | Found below `topics/`, and no topic has its number | Decision |
//! |---|---|
//! | segments of this store, or files whose headers were never written | taken for a deleted topic: the next checkpoint removes them, and the number is not given again |
//! | no segment | the same, if the number was given before; otherwise the topic that gets it uses it |
//! | a segment of another store, or one that cannot be read, or whose header is damaged | left alone |
//! | anything else than a directory with a number for a name | left alone |

use std::path::Path;

use super::open::Recovering;
use crate::context::Context;
use crate::disk::{EntryKind, OpenMode};
use crate::error::{Error, Result};
use crate::format::HeaderProblem;
use crate::format::segment::{HEADER_BYTES, SegmentHeader};
use crate::segment::parse_file_name;
use crate::types::TopicId;

/// Adds such directories to the deleted topics. The whole journal must have been read back.
pub(super) fn find(context: &Context, state: &mut Recovering) -> Result<()> {
    let topics_dir = context.topics_dir();
    let entries = context.disk.list(&topics_dir).map_err(|error| Error::io("list", &topics_dir, error))?;
    for entry in entries {
        let Some(id) = TopicId::of_dir(&entry.name).filter(|_| entry.kind == EntryKind::Dir) else {
            continue;
        };
        // The highest number is never given.
        if state.topics.contains_key(&id) || state.deleted.contains(&id) || id.0 == u32::MAX {
            continue;
        }
        let is_left_over = match content(context, &topics_dir.join(&entry.name)) {
            Content::Ours => true,
            Content::Nothing => id < state.next_topic,
            Content::Unknown => false,
        };
        if is_left_over {
            state.deleted.push(id);
            state.next_topic = state.next_topic.max(TopicId(id.0 + 1));
        }
    }
    Ok(())
}

enum Content {
    /// At least one segment that this store has begun, and none of which it is not known.
    Ours,
    /// No segment, or only such as were never written to.
    Nothing,
    Unknown,
}

fn content(context: &Context, dir: &Path) -> Content {
    let Ok(entries) = context.disk.list(dir) else { return Content::Unknown };
    let mut content = Content::Nothing;
    for entry in entries.iter().filter(|entry| parse_file_name(&entry.name).is_some()) {
        let mut start = [0; HEADER_BYTES];
        let mut open = || context.disk.open(&dir.join(&entry.name), OpenMode::Read)?.read_at(&mut start, 0);
        if entry.kind != EntryKind::File || open().is_err() {
            return Content::Unknown;
        }
        match SegmentHeader::decode(&start) {
            Ok(header) if header.store == context.store => content = Content::Ours,
            Err(HeaderProblem::Blank) => {}
            _ => return Content::Unknown,
        }
    }
    content
}
