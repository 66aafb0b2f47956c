//! A file in memory: the one module here that uses `unsafe`.
//!
//! - P1 Benchmarks map only files in a scratch directory that they made themselves, readable by nobody else.
//! - P2 They map a file after its last write, and neither write nor shorten it while it is mapped.
#![allow(unsafe_code, reason = "a memory map cannot be had without; P1 and P2 are the argument")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::{Mmap, MmapOptions};

/// The bytes of a file, faulted in.
#[derive(Debug)]
pub struct Mapped {
    map: Mmap,
}

impl Mapped {
    /// Maps a finished file of the benchmark's own scratch directory (P1, P2).
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: P1 and P2: nobody changes or cuts the file while the map lives, and any byte is a valid u8.
        let map = unsafe { MmapOptions::new().populate().map(&file)? };
        Ok(Self { map })
    }
}

impl Deref for Mapped {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}
