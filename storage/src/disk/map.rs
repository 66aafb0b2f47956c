//! Memory maps: the one module that uses `unsafe`.
//!
//! What holds, and what each SAFETY note cites:
//!
//! - M1 The directory lock makes this the only process that writes the store's files; every writer of a file
//!   in this process goes through one [`File`](super::File).
//! - M2 No page that a slice touches ever goes away: a file is only ever cut behind the last byte that was
//!   handed out, and unlinked instead of shrunk.
//! - M3 Bytes that were handed out never change: the log is append-only, and callers ask only for ranges
//!   below what has been published with Release and read with Acquire.
//! - M4 A slice handed out lies within the capacity of its map and keeps the map alive.
//! - M5 Before a slice is handed out its pages are faulted in with `MADV_POPULATE_READ`, so that a disk that
//!   cannot read them answers an error here and not a SIGBUS later. A window of the map is faulted in once: the
//!   call takes longer than a small read. What is left is a page that was read once, was evicted since, and whose
//!   sector has gone bad meanwhile: that is a SIGBUS, as after any memory that fails.
//! - M6 There is at most one [`WriteMap`] of a file, and storing needs `&mut` of it.
#![allow(unsafe_code, reason = "memory maps cannot be had without; M1 to M6 are the argument")]

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::{Advice, madvise};

/// Maps are made and faulted in by pages of this many bytes; a larger page of the machine is a multiple of it.
const PAGE_BYTES: usize = 4096;

/// A read-only map of the first `capacity` bytes of a file, which may be shorter and grow.
#[derive(Debug)]
pub(super) struct ReadMap {
    raw: Arc<MmapRaw>,
    /// One bit for each window of the map that was faulted in (M5).
    populated: Box<[AtomicU64]>,
}

/// What is faulted in at once, and remembered.
const WINDOW_BYTES: usize = 64 << 10;

impl ReadMap {
    pub(super) fn new(file: &File, capacity: usize) -> io::Result<Self> {
        let raw = MmapOptions::new().len(capacity.max(1)).map_raw_read_only(file)?;
        let windows = raw.len().div_ceil(WINDOW_BYTES);
        let populated = (0..windows.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Ok(Self { raw: Arc::new(raw), populated })
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> io::Result<Bytes> {
        if range.start > range.end || range.end > self.raw.len() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "range beyond the map"));
        }
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        self.fault_in(range.clone())?;
        Ok(Bytes::from_owner(Window { raw: Arc::clone(&self.raw), range }))
    }
}

impl ReadMap {
    /// Faults the windows of `range` in, those that were not yet (M5).
    fn fault_in(&self, range: Range<usize>) -> io::Result<()> {
        let bit = |window: usize| (&self.populated[window / 64], 1 << (window % 64));
        for window in range.start / WINDOW_BYTES..range.end.div_ceil(WINDOW_BYTES) {
            let (word, mask) = bit(window);
            if word.load(Ordering::Relaxed) & mask != 0 {
                continue;
            }
            let whole = window * WINDOW_BYTES..((window + 1) * WINDOW_BYTES).min(self.raw.len());
            // A window that reaches beyond the file's end, or has a bad sector elsewhere, is not faulted in as a
            // whole: then only what is wanted of it counts, each time.
            if populate(&self.raw, whole.clone()).is_ok() {
                word.fetch_or(mask, Ordering::Relaxed);
            } else {
                populate(&self.raw, whole.start.max(range.start)..whole.end.min(range.end))?;
            }
        }
        Ok(())
    }
}

impl super::Map for ReadMap {
    fn bytes(&self, range: Range<u64>) -> io::Result<Bytes> {
        let index = |n| usize::try_from(n).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput));
        Self::bytes(self, index(range.start)?..index(range.end)?)
    }
}

/// Faults the pages of `range` in, without a signal if the disk cannot read them (M5).
fn populate(raw: &MmapRaw, range: Range<usize>) -> io::Result<()> {
    let start = range.start / PAGE_BYTES * PAGE_BYTES;
    // SAFETY: M4: `start..range.end` lies within the map. Populating changes no byte.
    let outcome =
        unsafe { madvise(raw.as_mut_ptr().add(start).cast(), range.end - start, Advice::LinuxPopulateRead) };
    match outcome {
        Ok(()) => Ok(()),
        // Kernels before 5.14 do not know the advice: there, M5 is not kept.
        Err(rustix::io::Errno::INVAL) => Ok(()),
        // What the kernel answers for a page that cannot be read.
        Err(rustix::io::Errno::FAULT | rustix::io::Errno::HWPOISON) => Err(rustix::io::Errno::IO.into()),
        Err(error) => Err(error.into()),
    }
}

/// A part of a map as an owner of bytes.
struct Window {
    raw: Arc<MmapRaw>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Window {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: M4: the range was checked against the map's length and `raw` is kept alive by `self`.
        // M1, M2 and M3: the pages exist and the bytes no longer change.
        unsafe { std::slice::from_raw_parts(self.raw.as_ptr().add(self.range.start), self.range.len()) }
    }
}

/// A map for storing into the first `capacity` bytes of an allocated file.
#[derive(Debug)]
pub(super) struct WriteMap {
    raw: MmapRaw,
    /// Up to here the processor was told of the stores to come.
    fetched: usize,
}

impl WriteMap {
    /// The caller keeps M6, and has allocated every block of the file, so that no store meets a full disk.
    pub(super) fn new(file: &File, capacity: usize) -> io::Result<Self> {
        let raw = MmapOptions::new().len(capacity).map_raw(file)?;
        Ok(Self { raw, fetched: 0 })
    }

    /// Lets the processor get the lines behind `end` for storing, as far as the next write of this size will go: it
    /// guesses that reads go on, not that stores do, and a lock that is released has to wait for the stores before it.
    #[inline]
    fn fetch_ahead(&mut self, end: usize, bytes: usize) {
        const LINE_BYTES: usize = 64;
        const BYTES_MAX: usize = 4096;
        let until = end + (bytes + 2 * LINE_BYTES).min(BYTES_MAX);
        // Neither what is behind nor more than the next write.
        self.fetched = self.fetched.clamp(end, until);
        while self.fetched < until {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a hint that changes nothing and faults nowhere, whatever the address. Processors without the
            // instruction take it for one that does nothing.
            unsafe {
                std::arch::asm!(
                    "prefetchw [{0}]",
                    in(reg) self.raw.as_mut_ptr().wrapping_add(self.fetched),
                    options(nostack, preserves_flags, readonly),
                );
            }
            self.fetched += LINE_BYTES;
        }
    }
}

impl super::Writer for WriteMap {
    fn write_at(&mut self, parts: &[io::IoSlice<'_>], position: u64) -> io::Result<()> {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        let start = usize::try_from(position).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        if start.checked_add(bytes).is_none_or(|end| end > self.raw.len()) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "write beyond the map"));
        }
        let mut at = start;
        for part in parts {
            // SAFETY: the range was just checked against the map's length. M6: nobody else stores into this
            // map, and nobody holds a reference into it; readers have maps of their own (M3).
            unsafe {
                std::ptr::copy_nonoverlapping(part.as_ptr(), self.raw.as_mut_ptr().add(at), part.len())
            };
            at += part.len();
        }
        Ok(())
    }

    fn place(&mut self, range: Range<u64>) -> Option<&mut [u8]> {
        let (start, end) = (usize::try_from(range.start).ok()?, usize::try_from(range.end).ok()?);
        if start > end || end > self.raw.len() {
            return None;
        }
        self.fetch_ahead(end, end - start);
        // SAFETY: M4: the range was just checked against the map's length; the slice borrows `self`, which keeps the
        // map. M6: nobody else stores into this map. M2 and M3: the pages exist, and what readers were handed, from maps
        // of their own, is not written again.
        Some(unsafe { std::slice::from_raw_parts_mut(self.raw.as_mut_ptr().add(start), end - start) })
    }
}
