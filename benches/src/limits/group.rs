//! Many threads that each wait for the disk, with nothing but what that takes: what the disk and the scheduler leave to
//! a group commit.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::thread::futex;

use super::{SYNC_FILE_BYTES, SyncTo, last_of, sync_file};
use crate::payload::Payloads;
use crate::row::{Contender, Sample};
use crate::writers;

/// Threads that frame a record each into a common buffer; whoever finds no sync running writes the buffer and syncs it,
/// the others sleep until that is over.
pub struct SyncGroup {
    file: File,
    payloads: Payloads,
    writers: usize,
    time: Duration,
    buffer: Mutex<Buffer>,
    synced: AtomicU64,
    is_running: AtomicBool,
    round: AtomicU32,
}

#[derive(Default)]
struct Buffer {
    frames: Vec<u8>,
    records: u64,
}

impl SyncGroup {
    /// Frames of `record_bytes`, into a new file in `dir` that is filled with zeros.
    pub fn new(dir: &Path, record_bytes: usize, writers: usize, time: Duration) -> Result<Self> {
        Ok(Self {
            file: sync_file(&dir.join("sync-group"), SyncTo::ZeroFilled)?,
            payloads: Payloads::new(record_bytes),
            writers,
            time,
            buffer: Mutex::default(),
            synced: AtomicU64::new(0),
            is_running: AtomicBool::new(false),
            round: AtomicU32::new(0),
        })
    }

    fn buffer(&self) -> MutexGuard<'_, Buffer> {
        self.buffer.lock().expect("no writer panicked")
    }

    /// How many frames the file holds before it is begun anew.
    fn slots(&self) -> u64 {
        SYNC_FILE_BYTES / self.payloads.frame_bytes() as u64
    }

    fn append(&self, frame: &mut [u8]) -> Result<()> {
        let number = {
            let mut buffer = self.buffer();
            self.payloads.frame(buffer.records, frame);
            buffer.frames.extend_from_slice(frame);
            buffer.records += 1;
            buffer.records
        };
        while self.synced.load(Ordering::Acquire) < number {
            let round = self.round.load(Ordering::Acquire);
            if self.synced.load(Ordering::Acquire) >= number {
                break;
            }
            if self.is_running.swap(true, Ordering::AcqRel) {
                let _ = futex::wait(&self.round, futex::Flags::PRIVATE, round, None);
            } else {
                let outcome = self.sync();
                self.is_running.store(false, Ordering::Release);
                self.round.fetch_add(1, Ordering::AcqRel);
                let _ = futex::wake(&self.round, futex::Flags::PRIVATE, i32::MAX as u32);
                outcome?;
            }
        }
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        let (frames, end) = {
            let mut buffer = self.buffer();
            (std::mem::take(&mut buffer.frames), buffer.records)
        };
        let frame_bytes = self.payloads.frame_bytes() as u64;
        let first = end - frames.len() as u64 / frame_bytes;
        // In two parts where the file ends within.
        let until_end = (self.slots() - first % self.slots()) * frame_bytes;
        let (part, rest) = frames.split_at(usize::try_from(until_end)?.min(frames.len()));
        self.file.write_all_at(part, first % self.slots() * frame_bytes).context("write a group")?;
        self.file.write_all_at(rest, 0).context("write a group")?;
        self.file.sync_data().context("sync a group")?;
        self.synced.store(end, Ordering::Release);
        Ok(())
    }
}

impl Contender for SyncGroup {
    fn round(&mut self) -> Result<Sample> {
        let this = &*self;
        let load = writers::run(this.writers, this.time, |_| {
            let mut frame = vec![0; this.payloads.frame_bytes()];
            Ok(move |_| this.append(&mut frame))
        })?;
        let mut frame = vec![0; this.payloads.frame_bytes()];
        for number in last_of(this.buffer().records, usize::try_from(this.slots())?) {
            this.file
                .read_exact_at(&mut frame, number % this.slots() * this.payloads.frame_bytes() as u64)?;
            this.payloads.check_frame(number, &frame)?;
        }
        Ok(load.sample(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_goes_round_in_its_file_and_checks() {
        let dir = tempfile::tempdir().unwrap();
        let mut group = SyncGroup::new(dir.path(), 100, 8, Duration::from_millis(20)).unwrap();
        // The next group reaches over the end of the file.
        let slots = group.slots();
        group.synced.store(slots - 3, Ordering::Release);
        group.buffer().records = slots - 3;
        for number in 0..slots - 3 {
            let mut frame = vec![0; group.payloads.frame_bytes()];
            group.payloads.frame(number, &mut frame);
            group.file.write_all_at(&frame, number * frame.len() as u64).unwrap();
        }
        let sample = group.round().unwrap();
        assert!(sample.latency.unwrap().count() > 3);
    }
}
