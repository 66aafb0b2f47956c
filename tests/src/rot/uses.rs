//! Which bytes of a sample matter, and which records are lost with them.

use std::ops::Range;
use std::path::Path;

use super::sample::Sample;
use crate::model::Check;
use crate::model::run::STORE;

const JOURNAL_HEADER_BYTES: usize = 72;
const FIRST_FRAME_AT: usize = 4096;
const FRAME_HEADER_BYTES: usize = 40;
const SEGMENT_HEADER_BYTES: usize = 64;
const FOOTER_BYTES: usize = 96;

/// How much a byte of a store matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Damage to it is reported.
    Used,
    /// Nothing reads it: padding of headers, batches, frames and checkpoint copies; in the journal what the checkpoint
    /// covers and what is behind the last frame; indexes of terms.
    Unused,
    /// In the journal's last group: damage may be taken for a torn write.
    Last,
    /// The file `clean`: without it the store is opened as after a crash, which the report says.
    Clean,
}

/// The records that a byte's damage may cost: the topic, and offsets.
pub type Lost = Option<(String, Range<u64>)>;

impl Sample {
    /// How much each byte of a file matters.
    pub(super) fn uses(&self, path: &Path, bytes: &[u8]) -> Vec<(Use, Lost)> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name {
            "clean" => without_records(vec![Use::Clean; bytes.len()]),
            "checkpoint" => without_records(checkpoint_uses(bytes)),
            _ if name.ends_with(".journal") => without_records(self.journal_uses(bytes)),
            _ if name.ends_with(".segment") => self.segment_uses(path, bytes),
            // What reads records does without it; what reads streams makes it anew: see the tests of streams.
            _ if name.ends_with(".terms") => without_records(vec![Use::Unused; bytes.len()]),
            _ => panic!("what is {}?", path.display()),
        }
    }

    /// Up to where later frames say that the journal was synced.
    ///
    /// # Errors
    /// Those of the disk.
    pub(super) fn journal_mark(&self) -> Check<u64> {
        let files = self.files()?;
        let journals = files.iter().filter(|(path, _)| path.extension().is_some_and(|end| end == "journal"));
        let frames = journals.flat_map(|(_, bytes)| frames(bytes));
        Ok(frames.map(|frame| frame.mark).max().unwrap_or(0).max(self.checkpoint_position()))
    }

    fn journal_uses(&self, bytes: &[u8]) -> Vec<Use> {
        let mut uses = vec![Use::Unused; bytes.len()];
        // A file that was never used is blank, and what is not blank must be a header.
        uses[..JOURNAL_HEADER_BYTES].fill(Use::Used);
        if self.is_closed {
            return uses;
        }
        let covered = self.checkpoint_position();
        let mark = self.journal_mark().expect("it was read before");
        for Frame { at, length, position, .. } in frames(bytes).filter(|frame| frame.position >= covered) {
            let used = if position < mark { Use::Used } else { Use::Last };
            let meta = FRAME_HEADER_BYTES + u32_at(bytes, at + 32) as usize;
            uses[at..at + meta].fill(used);
            let mut batch = at + meta.next_multiple_of(8);
            while batch < at + length {
                let batch_bytes = u32_at(bytes, batch + 4) as usize;
                assert!(batch_bytes > 0, "an intact frame");
                uses[batch..batch + batch_bytes].fill(used);
                batch += batch_bytes.next_multiple_of(8);
            }
        }
        uses
    }

    fn checkpoint_position(&self) -> u64 {
        // Field 2 of the content, behind the store's uid.
        let bytes = self.disk.read_file(format!("{STORE}/checkpoint")).unwrap_or_default();
        let varint = bytes.iter().skip(32 + 18 + 1);
        let mut value = 0;
        for (number, byte) in varint.enumerate() {
            value |= u64::from(byte & 0x7f) << (7 * number);
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }

    /// Header, batches, index and footer; not the padding of batches.
    fn segment_uses(&self, path: &Path, bytes: &[u8]) -> Vec<(Use, Lost)> {
        let id = path.parent().and_then(|dir| dir.file_name()?.to_str()?.parse::<usize>().ok());
        let topic = &self.topics[id.expect("a directory with the topic's id") - 1];
        let mut uses = vec![(Use::Used, None); bytes.len()];
        let footer = bytes.len().saturating_sub(FOOTER_BYTES);
        let is_sealed = bytes[footer..].starts_with(b"QUIPUEND");
        let end = if is_sealed { u64_at(bytes, footer + 64) as usize } else { bytes.len() };
        let mut at = SEGMENT_HEADER_BYTES;
        while at + 48 <= end {
            let batch_bytes = u32_at(bytes, at + 4) as usize;
            assert!(batch_bytes >= 48, "an intact segment");
            let base_offset = u64_at(bytes, at + 8);
            let offsets = base_offset..base_offset + u64::from(u32_at(bytes, at + 16));
            let next = at + batch_bytes.next_multiple_of(8);
            uses[at..at + batch_bytes].fill((Use::Used, Some((topic.clone(), offsets))));
            uses[at + batch_bytes..next.min(end)].fill((Use::Unused, None));
            at = next;
        }
        uses
    }
}

fn without_records(uses: Vec<Use>) -> Vec<(Use, Lost)> {
    uses.into_iter().map(|used| (used, None)).collect()
}

/// A frame of the journal.
struct Frame {
    at: usize,
    length: usize,
    position: u64,
    mark: u64,
}

/// The frames of a journal file's present use.
fn frames(bytes: &[u8]) -> impl Iterator<Item = Frame> + '_ {
    let is_used = bytes[..8] != [0; 8];
    let (generation, start) = (u64_at(bytes, 32), u64_at(bytes, 40));
    let mut at = FIRST_FRAME_AT;
    std::iter::from_fn(move || {
        let position = start + (at - FIRST_FRAME_AT) as u64;
        let is_frame = is_used
            && at + FRAME_HEADER_BYTES <= bytes.len()
            && u64_at(bytes, at + 8) == position
            && u64_at(bytes, at + 24) == generation;
        let frame = is_frame.then(|| Frame {
            at,
            length: u32_at(bytes, at + 4) as usize,
            position,
            mark: u64_at(bytes, at + 16),
        })?;
        assert!(frame.length >= FRAME_HEADER_BYTES, "an intact journal");
        at += frame.length;
        Some(frame)
    })
}

/// Both copies: 28 bytes of header and the content.
fn checkpoint_uses(bytes: &[u8]) -> Vec<Use> {
    let mut uses = vec![Use::Unused; bytes.len()];
    let copy = bytes.len() / 2;
    for start in [0, copy] {
        let content = u64_at(bytes, start + 16) as usize;
        uses[start..start + 28].fill(Use::Used);
        uses[start + 32..start + 32 + content].fill(Use::Used);
    }
    uses
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
