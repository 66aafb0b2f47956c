//! Damage on the disk: every bit of a small store flipped in turn.
//!
//! After each flip the store is opened and read in full, and:
//!
//! - never is a wrong record delivered, and never a panic;
//! - no intact record is lost: what cannot be read is a range that an error names, and what lies outside of it is
//!   there. The one exception is the journal's last group of a store that was not closed: whether its bytes were damaged
//!   or never got to the disk cannot be told, so it is cut off, and the opening reports a torn end;
//! - damage is reported: by an error of the opening or of a reader, in [`RecoveryReport::damaged`], or by the count of
//!   damage that readers met. Only bytes that nothing uses may be damaged without a word, see [`Use`].
//!
//! [`RecoveryReport::damaged`]: quipu_storage::RecoveryReport::damaged

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu_storage::{
    Codec, Durability, Error, ErrorKind, JournalEnd, Record, Start, Store, StoreSettings, TopicSettings,
    Visibility,
};

use crate::ensure;
use crate::model::run::STORE;
use crate::model::{Check, TestClock};
use crate::sim::SimDisk;

/// How much a byte of a store matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// Damage to it is reported.
    Used,
    /// Nothing reads it: padding of headers, batches, frames and checkpoint copies; in the journal what the checkpoint
    /// covers and what is behind the last frame; the lock, the reserve, and `live`, which only those look at who read beside
    /// the writer.
    Unused,
    /// In the journal's last group: damage may be taken for a torn write.
    Last,
    /// The file `clean`: without it the store is opened as after a crash, which the report says.
    Clean,
}

/// A small store, and what it holds.
#[derive(Debug)]
pub struct Sample {
    /// The disk.
    pub disk: SimDisk,
    /// Payloads of each topic's records, in order of offsets.
    pub records: BTreeMap<String, Vec<Vec<u8>>>,
    /// How many records of each topic are covered by a later frame's mark or by the checkpoint.
    pub marked: BTreeMap<String, usize>,
    is_closed: bool,
}

/// The smallest settings.
pub fn settings() -> StoreSettings {
    StoreSettings { reserve_bytes: 0, ..crate::model::run::settings() }
}

/// Opens a sample.
///
/// # Errors
/// Those of the engine.
pub fn open(disk: &SimDisk) -> quipu_storage::Result<Store> {
    let clock = TestClock::at(1_000_000);
    Store::builder().settings(settings()).disk(Arc::new(disk.clone())).clock(clock).open(STORE)
}

/// Makes a sample: sealed and active segments, plain and compressed, and a journal with something in it unless the store
/// is closed.
pub fn sample(is_closed: bool) -> Check<Sample> {
    let complain = |error: Error| error.to_string();
    let disk = SimDisk::new();
    let store = open(&disk).map_err(complain)?;
    let mut records: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for (name, codec) in [("plain", Codec::None), ("packed", Codec::Lz4)] {
        let settings = TopicSettings { segment_bytes_max: 4096, codec, ..TopicSettings::default() };
        store.create_topic(name, settings).map_err(complain)?;
    }
    let mut append = |name: &str, bytes: usize, durability| -> Check {
        let sent = records.entry(name.to_owned()).or_default();
        let mut payload = format!("{name} {} ", sent.len()).into_bytes();
        payload.resize(payload.len() + bytes, b'x');
        let topic = store.topic(name).map_err(complain)?;
        topic.append_with(&[Record::new(payload.clone())], durability).map_err(complain)?;
        sent.push(payload);
        Ok(())
    };
    for number in 0..7 {
        append("plain", 650, Durability::Synced)?;
        append("packed", if number == 3 { 2000 } else { 100 }, Durability::Synced)?;
    }
    store.checkpoint().map_err(complain)?;
    let mut marked = BTreeMap::new();
    if !is_closed {
        for _ in 0..3 {
            append("plain", 60, Durability::Synced)?;
            append("packed", 60, Durability::Synced)?;
        }
        append("plain", 40, Durability::Written)?;
        append("packed", 40, Durability::Written)?;
        // The last frames that a later one's mark covers are those before the last synced append.
        marked.insert("plain".to_owned(), 10);
        marked.insert("packed".to_owned(), 9);
    }
    let disk = if is_closed {
        store.close().map_err(complain)?;
        drop(store);
        disk
    } else {
        let left = disk.after_kill();
        drop(store);
        left
    };
    if is_closed {
        marked = records.iter().map(|(name, records)| (name.clone(), records.len())).collect();
    }
    Ok(Sample { disk, records, marked, is_closed })
}

/// What became of a damaged sample.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    /// An error, a damaged file, or a reader that met damage.
    pub is_reported: bool,
    /// The opening cut off a torn end.
    pub is_torn: bool,
    /// The store had been closed properly, and that could be seen.
    pub was_clean: bool,
}

impl Sample {
    /// Opens and reads a damaged copy. Complains about a wrong record, and about one that is missing without a word.
    ///
    /// # Errors
    /// The complaint.
    pub fn look(&self, disk: &SimDisk) -> Check<Seen> {
        let store = match open(disk) {
            Ok(store) => store,
            Err(error) => {
                ensure!(is_typed(&error), "open answers {error:?}");
                return Ok(Seen { is_reported: true, ..Seen::default() });
            }
        };
        let report = store.recovery().clone();
        let mut seen = Seen {
            is_reported: !report.damaged.is_empty(),
            is_torn: report.journal_end != JournalEnd::Clean,
            was_clean: report.was_clean,
        };
        for (name, records) in &self.records {
            let topic = match store.topic(name) {
                Ok(topic) => topic,
                Err(error) => return Err(format!("{name}: {error}")),
            };
            let mut delivered = vec![false; records.len()];
            let mut excused = vec![false; records.len()];
            let mut excuse = |from: usize, to: usize| {
                let to = to.min(excused.len());
                excused[from.min(to)..to].fill(true);
            };
            let end = usize::try_from(topic.log_end_offset().0).map_err(|error| error.to_string())?;
            ensure!(end <= records.len(), "{name}: {end} records of {}", records.len());
            if end < records.len() {
                ensure!(seen.is_torn, "{name}: only {end} records, and nothing is torn");
                ensure!(
                    end >= self.marked[name],
                    "{name}: only {end} records, {} are marked",
                    self.marked[name]
                );
                excuse(end, records.len());
            }
            // Forwards; an error is told, and the next call goes on behind it.
            for outcome in topic.read(Start::Earliest).map_err(|error| error.to_string())? {
                match outcome {
                    Ok(record) => {
                        let offset = usize::try_from(record.offset().0).map_err(|error| error.to_string())?;
                        let right = records.get(offset).is_some_and(|sent| record.payload() == Some(sent));
                        ensure!(right, "{name}: a wrong record at {offset}");
                        ensure!(!delivered[offset], "{name}: record {offset} twice");
                        delivered[offset] = true;
                    }
                    Err(Error::Corrupt { offsets, .. }) => {
                        seen.is_reported = true;
                        excuse(offsets.start.0 as usize, offsets.end.0 as usize);
                    }
                    Err(error) => {
                        ensure!(is_typed(&error), "{name}: reading answers {error:?}");
                        seen.is_reported = true;
                        excuse(0, records.len());
                    }
                }
            }
            for (offset, is_there) in delivered.iter().enumerate() {
                ensure!(*is_there || excused[offset], "{name}: record {offset} is missing without a word");
            }
            // Backwards: nothing wrong either.
            let mut backwards = topic.batches_backwards(crate::model::END, Visibility::Synced);
            while let Ok(Some(batch)) = backwards.previous_batch() {
                for record in batch.owned() {
                    let record = record.map_err(|error| error.to_string())?;
                    let offset = usize::try_from(record.offset().0).map_err(|error| error.to_string())?;
                    let right = records.get(offset).is_some_and(|sent| record.payload() == Some(sent));
                    ensure!(right, "{name}: a wrong record at {offset}, backwards");
                }
            }
        }
        seen.is_reported |= store.stats().damage_found > 0;
        Ok(seen)
    }

    /// The files, each with its bytes and how many of them there are to look at.
    ///
    /// # Errors
    /// Those of the disk.
    pub fn files(&self) -> Check<Vec<(PathBuf, Vec<u8>)>> {
        self.disk
            .files()
            .into_keys()
            .filter(|path| {
                !matches!(path.file_name().and_then(|name| name.to_str()), Some("lock" | "live" | "reserve"))
            })
            .map(|path| {
                let bytes = self.disk.read_file(&path).map_err(|error| error.to_string())?;
                Ok((path, bytes))
            })
            .collect()
    }

    /// How much each byte of a file matters.
    fn uses(&self, path: &Path, bytes: &[u8]) -> Vec<Use> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match name {
            "clean" => vec![Use::Clean; bytes.len()],
            "checkpoint" => checkpoint_uses(bytes),
            _ if name.ends_with(".journal") => self.journal_uses(bytes),
            _ if name.ends_with(".segment") => segment_uses(bytes),
            _ => panic!("what is {}?", path.display()),
        }
    }

    fn journal_uses(&self, bytes: &[u8]) -> Vec<Use> {
        let mut uses = vec![Use::Unused; bytes.len()];
        if bytes[..8] == [0; 8] {
            // Never used: but what is not blank must be a header.
            uses[..72].fill(Use::Used);
            return uses;
        }
        uses[..72].fill(Use::Used);
        if self.is_closed {
            return uses;
        }
        let covered = self.checkpoint_position();
        let generation = u64_at(bytes, 32);
        let start = u64_at(bytes, 40);
        let mut at = 4096;
        let mut frames = Vec::new();
        while at + 40 <= bytes.len()
            && u64_at(bytes, at + 8) == start + (at - 4096) as u64
            && u64_at(bytes, at + 24) == generation
        {
            let length = u32_at(bytes, at + 4) as usize;
            frames.push((at, length, u64_at(bytes, at + 16)));
            at += length;
        }
        let mark = frames.iter().map(|(_, _, mark)| *mark).max().unwrap_or(0);
        for (at, length, _) in frames {
            let position = start + (at - 4096) as u64;
            if position < covered {
                continue;
            }
            let used = if position < mark { Use::Used } else { Use::Last };
            let meta = 40 + u32_at(bytes, at + 32) as usize;
            uses[at..at + meta].fill(used);
            // Four bytes of the header are not used, but summed.
            let mut batch = at + meta.next_multiple_of(8);
            while batch < at + length {
                let batch_bytes = u32_at(bytes, batch + 4) as usize;
                uses[batch..batch + batch_bytes].fill(used);
                batch += batch_bytes.next_multiple_of(8);
            }
        }
        uses
    }

    fn checkpoint_position(&self) -> u64 {
        // Field 2 of the content, behind the store's uid.
        let bytes = self.disk.read_file(format!("{STORE}/checkpoint")).unwrap_or_default();
        let mut at = 32 + 18 + 1;
        let mut value = 0;
        let mut shift = 0;
        while let Some(byte) = bytes.get(at) {
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        value
    }
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

/// Header, batches, index and footer; not the padding of batches.
fn segment_uses(bytes: &[u8]) -> Vec<Use> {
    let mut uses = vec![Use::Used; bytes.len()];
    let footer = bytes.len().saturating_sub(96);
    let is_sealed = bytes[footer..].starts_with(b"QUIPUEND");
    let end = if is_sealed { u64_at(bytes, footer + 64) as usize } else { bytes.len() };
    let mut at = 64;
    while at + 48 <= end {
        let batch = u32_at(bytes, at + 4) as usize;
        assert!(batch >= 48, "an intact segment");
        let next = at + batch.next_multiple_of(8);
        uses[at + batch..next.min(end)].fill(Use::Unused);
        at = next;
    }
    uses
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// What damage may be answered with.
fn is_typed(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Damaged | ErrorKind::Unsupported)
        || matches!(error, Error::NotAStore { .. })
}

/// What was flipped.
#[derive(Clone, Copy, Debug, Default)]
pub struct Flipped {
    /// Bits flipped.
    pub bits: u64,
    /// Those whose damage was reported.
    pub reported: u64,
    /// Those that were taken for a torn write.
    pub torn: u64,
}

/// Flips every bit of a closed and of a killed store, one at a time; the bytes whose number modulo `shards` is `shard`.
/// Of bytes that nothing uses only some are tried.
pub fn run((shard, shards): (usize, usize)) -> Check<Flipped> {
    let mut flipped = Flipped::default();
    for is_closed in [true, false] {
        let sample = sample(is_closed)?;
        let seen = sample.look(&sample.disk.after_kill())?;
        ensure!(
            !seen.is_reported && !seen.is_torn && seen.was_clean == is_closed,
            "an intact store: {seen:?}"
        );
        for (path, bytes) in sample.files()? {
            let uses = sample.uses(&path, &bytes);
            for (byte, used) in uses.iter().enumerate().filter(|(byte, _)| byte % shards == shard) {
                if *used == Use::Unused && byte % 509 != 0 {
                    continue;
                }
                for bit in 0..8 {
                    let disk = sample.disk.after_kill();
                    let bit = byte as u64 * 8 + bit;
                    disk.flip_bit(&path, bit).map_err(|error| error.to_string())?;
                    let at = || {
                        format!("closed: {is_closed}, {} bit {bit} (byte {byte}, {used:?})", path.display())
                    };
                    let seen = std::panic::catch_unwind(|| sample.look(&disk))
                        .unwrap_or_else(|_| Err("panic".to_owned()))
                        .map_err(|complaint| format!("{}: {complaint}", at()))?;
                    let is_noticed = match used {
                        Use::Used => seen.is_reported,
                        Use::Last => seen.is_reported || seen.is_torn,
                        Use::Clean => !seen.was_clean,
                        Use::Unused => true,
                    };
                    ensure!(is_noticed, "{}: nobody noticed: {seen:?}", at());
                    flipped.bits += 1;
                    flipped.reported += u64::from(seen.is_reported);
                    flipped.torn += u64::from(seen.is_torn);
                }
            }
        }
    }
    Ok(flipped)
}
