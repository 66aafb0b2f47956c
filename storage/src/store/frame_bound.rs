//! How long the frame of an append may get. It lies in one journal file, whole.
//!
//! The bounds of an append count its records. The frame has more: a header and an entry for each topic, the revisions of
//! records with keys, which are known late, and the answer that a repeat gets. So it is bounded once more when all of that
//! is there.

use super::prepared::PreparedPart;
use crate::error::{Error, Result};
use crate::format::aligned;
use crate::format::answer::{ANSWER_BYTES_MAX, PRODUCER_NAME_BYTES_MAX};
use crate::format::batch::BATCH_BYTES_LIMIT;
use crate::format::frame::{FILE_HEADER_BYTES, FRAME_BYTES_LIMIT};
use crate::settings::StoreSettings;

/// Room in the journal that appends leave to trims and deletions, by which a full disk becomes free again.
const CHANGES_RESERVE_BYTES: usize = 8 << 10;
/// The frame's header, and what it is padded with.
const HEADER_BYTES_MOST: usize = 64;
/// What the changes of one topic take: its batch, offsets set aside, a fencing token.
const TOPIC_BYTES_MOST: usize = 64;
/// The append's answer, and a producer that is forgotten for it.
const REQUEST_BYTES_MOST: usize = ANSWER_BYTES_MAX + 2 * (PRODUCER_NAME_BYTES_MAX + 64);

/// The room in the journal that an append needs, which an empty journal file has. Its revisions are noted.
///
/// # Errors
/// [`Error::AppendTooLarge`]: it would never have room, or nobody could read it.
pub(super) fn room_for(
    parts: &[PreparedPart],
    is_repeatable: bool,
    settings: &StoreSettings,
) -> Result<usize> {
    let too_large = |what, actual: usize, limit: usize| {
        Err(Error::AppendTooLarge { what, actual: actual as u64, limit: limit as u64 })
    };
    let longest = parts.iter().map(|part| part.batch.len()).max().unwrap_or(0);
    if longest > BATCH_BYTES_LIMIT {
        return too_large("bytes of a batch", longest, BATCH_BYTES_LIMIT);
    }
    let in_journal = |part: &&PreparedPart| !part.topic.is_in_memory();
    let batches: usize = parts.iter().filter(in_journal).map(|part| aligned(part.batch.len())).sum();
    let of_request = if is_repeatable { REQUEST_BYTES_MOST } else { 0 };
    let frame = HEADER_BYTES_MOST + TOPIC_BYTES_MOST * parts.len() + batches + of_request;
    let limit = frame_bytes_max(settings);
    if frame > limit {
        return too_large("bytes in the journal", frame, limit);
    }
    Ok(frame + CHANGES_RESERVE_BYTES)
}

fn frame_bytes_max(settings: &StoreSettings) -> usize {
    let file = usize::try_from(settings.journal_file_bytes).unwrap_or(usize::MAX);
    FRAME_BYTES_LIMIT.min(file - FILE_HEADER_BYTES - CHANGES_RESERVE_BYTES)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::batch;

    /// What is documented of the settings: the refusal is for those who chose small journal files.
    #[test]
    fn with_the_default_settings_whatever_is_within_the_bounds_of_an_append_has_room() {
        let settings = StoreSettings::default();
        let topics = (settings.journal_file_bytes - settings.append_bytes_max) / 256;
        let revisions = 10 * settings.append_records_max;
        // The noted revisions have a tag and a length, and the batch is padded.
        let of_topic = TOPIC_BYTES_MOST + batch::HEADER_BYTES + 16 + 8;
        let most = settings.append_bytes_max + revisions + topics * of_topic as u64;
        assert!(most + ((HEADER_BYTES_MOST + REQUEST_BYTES_MOST) as u64) < frame_bytes_max(&settings) as u64);
    }
}
