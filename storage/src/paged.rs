//! A file read with `pread`, window by window: for those who look at every byte and expect damage.
//!
//! A page that the disk cannot read is answered as zeros, which no format of ours takes for anything, and noted. Maps
//! are not used: what a disk cannot read is an error here and not a signal.

use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use crate::disk::{Disk, File, OpenMode};

/// How much is read in one go.
const WINDOW_BYTES: u64 = 1 << 20;
/// What is given up together when it cannot be read.
const PAGE_BYTES: u64 = 4096;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct PagedFile {
    file: Arc<dyn File>,
    len: u64,
    window: Bytes,
    window_at: u64,
    /// Pages of the window that cannot be read.
    unreadable: Vec<u64>,
    /// Bytes read since [`take_read`](Self::take_read) was asked last.
    read: u64,
}

impl PagedFile {
    pub(crate) fn open(disk: &dyn Disk, path: &Path) -> io::Result<Self> {
        let file = disk.open(path, OpenMode::Read)?;
        let len = file.len()?;
        Ok(Self { file, len, window: Bytes::new(), window_at: 0, unreadable: Vec::new(), read: 0 })
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// The bytes from `position` on: `count` of them, or as many as the file has.
    pub(crate) fn bytes(&mut self, position: u64, count: u64) -> Bytes {
        let end = position.saturating_add(count).min(self.len);
        if position >= end {
            return Bytes::new();
        }
        if position < self.window_at || end > self.window_at + self.window.len() as u64 {
            self.fetch(position, (end - position).max(WINDOW_BYTES).min(self.len - position));
        }
        // The file may have become shorter since it was opened.
        let have = self.window.len();
        let start = index(position - self.window_at).min(have);
        self.window.slice(start..index(end - self.window_at).min(have))
    }

    /// Whether a page of what was last asked for could not be read.
    pub(crate) fn is_unreadable(&self, range: Range<u64>) -> bool {
        self.unreadable.iter().any(|&page| page < range.end && page + PAGE_BYTES > range.start)
    }

    /// How many bytes were read since the last call.
    pub(crate) fn take_read(&mut self) -> u64 {
        std::mem::take(&mut self.read)
    }

    fn fetch(&mut self, position: u64, count: u64) {
        self.unreadable.clear();
        self.window_at = position;
        self.read += count;
        let mut window = vec![0; index(count)];
        match self.file.read_at(&mut window, position) {
            Ok(read) => window.truncate(read),
            Err(_) => self.fetch_pages(&mut window, position),
        }
        self.window = window.into();
    }

    fn fetch_pages(&mut self, window: &mut [u8], position: u64) {
        let end = position + window.len() as u64;
        let mut at = position;
        while at < end {
            let page_end = ((at / PAGE_BYTES + 1) * PAGE_BYTES).min(end);
            let part = &mut window[index(at - position)..index(page_end - position)];
            if self.file.read_at(part, at).is_err() {
                part.fill(0);
                self.unreadable.push(at / PAGE_BYTES * PAGE_BYTES);
            }
            at = page_end;
        }
    }
}

fn index(bytes: u64) -> usize {
    usize::try_from(bytes).expect("a window fits into memory")
}
