//! seglog: one segment with a user-space write buffer and commit markers. Rolling, and an index of the positions,
//! are the caller's: both are here.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use seglog::read::{ReadHint, Reader};
use seglog::write::Writer;

use crate::peer::{Log, Mode, Peer};
use crate::workload::Workload;

const SEGMENT_BYTES: usize = 256 << 20;

/// Bytes around a record, and of the marker that a commit appends.
const RECORD_HEAD_BYTES: usize = 8;
const COMMIT_BYTES: usize = 17;

pub struct SegLog;

impl Peer for SegLog {
    fn name(&self) -> &'static str {
        "seglog"
    }

    fn can(&self, workload: Workload) -> bool {
        workload != Workload::E2
    }

    fn load_mode(&self) -> Mode {
        // A kill takes what is in the user-space buffer.
        Mode::Durable
    }

    fn open(&self, dir: &Path, mode: Mode) -> Result<Box<dyn Log>> {
        let segments = fs::read_dir(dir)?.count();
        let writer = match segments {
            0 => Writer::<0>::create(segment(dir, 0), SEGMENT_BYTES, 0)?,
            count => Writer::<0>::open(segment(dir, count - 1), SEGMENT_BYTES, 0)?,
        };
        Ok(Box::new(Open {
            dir: dir.to_owned(),
            mode,
            writer,
            segments: segments.max(1),
            appended: 0,
            readers: Vec::new(),
            positions: Vec::new(),
        }))
    }
}

fn segment(dir: &Path, index: usize) -> PathBuf {
    dir.join(format!("{index:06}.seg"))
}

struct Open {
    dir: PathBuf,
    mode: Mode,
    writer: Writer<0>,
    segments: usize,
    appended: u64,
    readers: Vec<Reader<0>>,
    /// Segment and byte position of each record.
    positions: Vec<(u32, u64)>,
}

impl Log for Open {
    fn append(&mut self, records: &[&[u8]]) -> Result<()> {
        let bytes: usize = records.iter().map(|record| RECORD_HEAD_BYTES + record.len()).sum();
        if self.writer.remaining_bytes() < (bytes + 2 * COMMIT_BYTES) as u64 {
            self.writer.commit(self.appended)?;
            self.writer = Writer::create(segment(&self.dir, self.segments), SEGMENT_BYTES, 0)?;
            self.segments += 1;
        }
        for record in records {
            self.writer.append_data(record)?;
        }
        self.appended += records.len() as u64;
        if self.mode == Mode::Durable {
            // Without the marker the next open would roll the records back.
            self.writer.commit(self.appended)?;
        }
        Ok(())
    }

    fn replay(&mut self, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        for index in 0..self.segments {
            let mut reader = Reader::<0>::open_read_only(segment(&self.dir, index), None)?;
            let mut records = reader.iter(0);
            while let Some(record) = records.next_record()? {
                visit(&record.data)?;
            }
        }
        Ok(())
    }

    fn prepare_reads(&mut self) -> Result<()> {
        for index in 0..self.segments {
            let mut reader = Reader::<0>::open_read_only(segment(&self.dir, index), None)?;
            let mut records = reader.iter(0);
            while let Some(record) = records.next_record()? {
                self.positions.push((u32::try_from(index)?, record.offset));
            }
            self.readers.push(reader);
        }
        Ok(())
    }

    fn read(&mut self, number: u64, visit: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let (index, position) = *self.positions.get(usize::try_from(number)?).context("no such record")?;
        visit(&self.readers[index as usize].read_record(position, ReadHint::Random)?.data)
    }

    fn close(mut self: Box<Self>) -> Result<()> {
        if self.appended > 0 {
            self.writer.commit(self.appended)?;
        }
        Ok(self.writer.close()?)
    }
}
