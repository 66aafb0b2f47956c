//! Telling readers in other processes how far the writer is. The file and what it means: [`crate::format::live`].
//!
//! The writer tells it after every sync of the journal and after every checkpoint, by one store into a map. That waits
//! for nothing, and if it fails readers only learn later what they may show: from the marks in the journal's frames.
//! Neither the file nor its name is ever synced. It is of use only while the machine runs that wrote it; after a power
//! cut it is made anew if it is gone, and what it says of an earlier boot is not believed.
//!
//! Promises:
//!
//! - L1 The synced position is told after the sync that covers it.
//! - L2 Before an opened store takes its first append the file says where that store begins, or there is no file.

use std::io::{self, IoSlice};
use std::path::Path;

use crate::context::Context;
use crate::disk::{Disk, OpenMode, Writer};
use crate::error::{Error, Result};
use crate::format::live::{FILE_BYTES, Live, SLOTS_BYTES};
use crate::types::Position;

/// The file.
pub(crate) const LIVE: &str = "live";

/// The writer's side.
#[derive(Debug)]
pub(crate) struct Teller {
    state: Live,
    /// `None` if the file could not be made: readers do without.
    writer: Option<Box<dyn Writer>>,
}

impl Teller {
    /// Says that the store is open, its journal synced up to `synced` (L2).
    pub(crate) fn open(
        context: &Context,
        generation: u64,
        synced: Position,
        checkpoint: Position,
    ) -> Result<Self> {
        let path = context.dir.join(LIVE);
        let before = read(&*context.disk, &context.dir).map_or(0, |live| live.sequence);
        let state =
            Live { store: context.store, boot: boot(), sequence: before, generation, synced, checkpoint };
        let mut teller = Self { state, writer: None };
        let prepared = match prepare(context, &path) {
            Ok(writer) => {
                teller.writer = Some(writer);
                // Both slots: nothing of an earlier run is left to go by.
                teller.write().and_then(|()| teller.write())
            }
            Err(error) => Err(error),
        };
        if prepared.is_err() {
            teller.writer = None;
            match context.disk.remove(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    // What it says is of an earlier run, and readers would believe it.
                    return Err(Error::io("remove", path, error));
                }
                _ => {}
            }
        }
        Ok(teller)
    }

    /// Everything below `position` is synced; the journal is in `generation`.
    pub(crate) fn synced(&mut self, position: Position, generation: u64) {
        self.state.synced = self.state.synced.max(position);
        self.state.generation = self.state.generation.max(generation);
        // Readers learn it from the next frame.
        let _ = self.write();
    }

    /// There is a new checkpoint.
    pub(crate) fn checkpointed(&mut self, position: Position) {
        self.state.checkpoint = position;
        let _ = self.write();
    }

    fn write(&mut self) -> io::Result<()> {
        let Some(writer) = &mut self.writer else { return Ok(()) };
        self.state.sequence += 1;
        let (at, slot) = self.state.encode();
        writer.write_at(&[IoSlice::new(&slot)], at)
    }
}

/// Opens the file, or makes it.
fn prepare(context: &Context, path: &Path) -> io::Result<Box<dyn Writer>> {
    let disk = &context.disk;
    let file = match disk.open(path, OpenMode::Write) {
        Ok(file) if file.len()? == FILE_BYTES as u64 => file,
        found => {
            match found {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Err(_) => {}
                Ok(_) => disk.remove(path)?,
            }
            let file = disk.open(path, OpenMode::Create)?;
            file.write_at(&[IoSlice::new(&[0; FILE_BYTES])], 0)?;
            file
        }
    };
    // Also when it was there before: a power cut may have come before its blocks were.
    file.allocate(FILE_BYTES as u64)?;
    file.writer(FILE_BYTES as u64)
}

/// What the writer has told last. `None` if there is no file or nothing intact in it: then nothing is known.
pub(crate) fn read(disk: &dyn Disk, dir: &Path) -> Option<Live> {
    let file = disk.open(&dir.join(LIVE), OpenMode::Read).ok()?;
    let mut slots = [0; SLOTS_BYTES];
    let bytes = file.read_at(&mut slots, 0).ok()?;
    Live::decode(&slots[..bytes])
}

/// Names this run of the machine; zeros if the system does not say.
pub(crate) fn boot() -> [u8; 16] {
    let Ok(text) = std::fs::read_to_string("/proc/sys/kernel/random/boot_id") else { return [0; 16] };
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    u128::from_str_radix(&digits, 16).map_or([0; 16], u128::to_be_bytes)
}
