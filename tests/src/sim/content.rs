//! What one file holds: now, on the disk, and in between.
//!
//! The current bytes are in blocks, shared with the snapshots that were taken of them. For every 512-byte
//! sector that changed since the last sync, the earlier versions are kept as well; so are earlier lengths, and
//! which blocks were not allocated yet. A power cut puts a file together from these.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};

use super::crash::{Dice, Versions};

pub(super) const BLOCK_BYTES: u64 = 4096;
const SECTOR_BYTES: u64 = 512;
const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES / SECTOR_BYTES;

type Block = [u8; 4096];
type Sector = [u8; 512];

const ZERO_SECTOR: Sector = [0; 512];
static ZERO_BLOCK: LazyLock<Arc<Block>> = LazyLock::new(|| Arc::new([0; 4096]));

#[derive(Clone, Debug, Default)]
pub(super) struct Content {
    bytes: u64,
    /// A block that is missing reads as zeros and takes no space.
    blocks: BTreeMap<u64, Arc<Block>>,
    unsynced_sectors: BTreeMap<u64, Versions<Sector>>,
    /// Blocks allocated since the last sync, and whether a failed sync covered that.
    unsynced_blocks: BTreeMap<u64, bool>,
    unsynced_bytes: Option<Versions<u64>>,
}

impl Content {
    /// A file that was on the disk all along.
    pub(super) fn durable(data: &[u8]) -> Self {
        let mut content = Self::default();
        content.write(data, 0);
        content.sync();
        content
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes
    }

    pub(super) fn block_count(&self) -> u64 {
        self.blocks.len() as u64
    }

    /// How much of `range` has a block, from its start on, if only `room` more blocks can be had.
    pub(super) fn fitting(&self, range: Range<u64>, mut room: u64) -> u64 {
        for block in blocks_of(&range) {
            if self.blocks.contains_key(&block) {
                continue;
            }
            if room == 0 {
                return (block * BLOCK_BYTES).saturating_sub(range.start);
            }
            room -= 1;
        }
        range.end - range.start
    }

    /// How many blocks a write to `range` would have to allocate.
    pub(super) fn missing(&self, range: Range<u64>) -> u64 {
        let blocks = blocks_of(&range);
        let present = self.blocks.range(blocks.clone()).count() as u64;
        (blocks.end - blocks.start) - present
    }

    pub(super) fn read(&self, buf: &mut [u8], position: u64) -> usize {
        let available = to_usize(self.bytes.saturating_sub(position)).min(buf.len());
        let buf = &mut buf[..available];
        for (block, within, part) in pieces(position, available as u64) {
            match self.blocks.get(&block) {
                Some(bytes) => buf[part].copy_from_slice(&bytes[within]),
                None => buf[part].fill(0),
            }
        }
        available
    }

    pub(super) fn write(&mut self, data: &[u8], position: u64) {
        if data.is_empty() {
            return;
        }
        let end = position + data.len() as u64;
        for sector in position / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES) {
            self.keep_version(sector);
        }
        self.patch(data, position);
        if end > self.bytes {
            self.change_len(end);
        }
    }

    pub(super) fn set_len(&mut self, bytes: u64) {
        if bytes < self.bytes {
            self.zero_from(bytes);
        }
        if bytes != self.bytes {
            self.change_len(bytes);
        }
    }

    pub(super) fn allocate(&mut self, bytes: u64) {
        for block in blocks_of(&(0..bytes)) {
            self.blocks.entry(block).or_insert_with(|| {
                self.unsynced_blocks.insert(block, false);
                Arc::clone(&ZERO_BLOCK)
            });
        }
        if bytes > self.bytes {
            self.change_len(bytes);
        }
    }

    /// D1. What a failed sync has covered stays as it is (D5).
    pub(super) fn sync(&mut self) {
        self.unsynced_sectors.retain(|_, versions| versions.is_stuck());
        self.unsynced_blocks.retain(|_, stuck| *stuck);
        self.unsynced_bytes.take_if(|versions| !versions.is_stuck());
    }

    pub(super) fn fail_sync(&mut self) {
        self.unsynced_sectors.values_mut().for_each(Versions::fail_sync);
        self.unsynced_blocks.values_mut().for_each(|stuck| *stuck = true);
        self.unsynced_bytes.iter_mut().for_each(Versions::fail_sync);
    }

    /// What a power cut leaves.
    pub(super) fn crash(&self, dice: &mut Dice<'_>) -> Self {
        let bytes = self.unsynced_bytes.as_ref().and_then(|versions| dice.pick(versions));
        let mut left = Self {
            bytes: bytes.copied().unwrap_or(self.bytes),
            blocks: self.blocks.clone(),
            ..Self::default()
        };
        for (&sector, versions) in &self.unsynced_sectors {
            if let Some(earlier) = dice.pick(versions) {
                left.put_sector(sector, earlier);
            }
        }
        for &block in self.unsynced_blocks.keys() {
            if !dice.keeps() && left.blocks.get(&block).is_some_and(|bytes| **bytes == **ZERO_BLOCK) {
                left.blocks.remove(&block);
            }
        }
        left.blocks.split_off(&left.bytes.div_ceil(BLOCK_BYTES));
        left.zero_tail(left.bytes);
        left
    }

    /// Damages a bit in every version there is.
    pub(super) fn flip_bit(&mut self, bit: u64) {
        let position = bit / 8;
        assert!(position < self.bytes, "bit {bit} lies behind the file's end at {}", self.bytes);
        let mask = 1_u8 << (bit % 8);
        let mut byte = [0];
        self.read(&mut byte, position);
        self.patch(&[byte[0] ^ mask], position);
        if let Some(versions) = self.unsynced_sectors.get_mut(&(position / SECTOR_BYTES)) {
            for sector in versions.earlier_mut() {
                sector[to_usize(position % SECTOR_BYTES)] ^= mask;
            }
        }
    }

    /// Puts bytes into every version there is; a longer file is longer for good.
    pub(super) fn overwrite(&mut self, data: &[u8], position: u64) {
        if data.is_empty() {
            return;
        }
        let end = position + data.len() as u64;
        self.patch(data, position);
        for (&sector, versions) in
            self.unsynced_sectors.range_mut(position / SECTOR_BYTES..end.div_ceil(SECTOR_BYTES))
        {
            let start = sector * SECTOR_BYTES;
            let range = start.max(position)..(start + SECTOR_BYTES).min(end);
            for earlier in versions.earlier_mut() {
                earlier[to_usize(range.start - start)..to_usize(range.end - start)]
                    .copy_from_slice(&data[to_usize(range.start - position)..to_usize(range.end - position)]);
            }
        }
        for block in blocks_of(&(position..end)) {
            self.unsynced_blocks.remove(&block);
        }
        self.bytes = self.bytes.max(end);
        for bytes in self.unsynced_bytes.iter_mut().flat_map(Versions::earlier_mut) {
            *bytes = end.max(*bytes);
        }
    }

    /// Cuts every version there is.
    pub(super) fn truncate(&mut self, bytes: u64) {
        self.zero_from(bytes);
        self.bytes = bytes;
        self.unsynced_bytes = None;
        self.unsynced_sectors.split_off(&bytes.div_ceil(SECTOR_BYTES));
        let within = to_usize(bytes % SECTOR_BYTES);
        if within > 0
            && let Some(versions) = self.unsynced_sectors.get_mut(&(bytes / SECTOR_BYTES))
        {
            versions.earlier_mut().iter_mut().for_each(|sector| sector[within..].fill(0));
        }
    }

    /// Changes the current bytes and nothing else, with blocks where there were none.
    fn patch(&mut self, data: &[u8], position: u64) {
        for (block, within, part) in pieces(position, data.len() as u64) {
            let bytes = self.blocks.entry(block).or_insert_with(|| {
                self.unsynced_blocks.insert(block, false);
                Arc::clone(&ZERO_BLOCK)
            });
            Arc::make_mut(bytes)[within].copy_from_slice(&data[part]);
            if let Some(stuck) = self.unsynced_blocks.get_mut(&block) {
                *stuck = false;
            }
        }
    }

    /// Remembers what the sector is before it changes.
    fn keep_version(&mut self, sector: u64) {
        let current = match self.blocks.get(&(sector / SECTORS_PER_BLOCK)) {
            Some(block) => {
                let start = to_usize(sector % SECTORS_PER_BLOCK * SECTOR_BYTES);
                let mut copy = ZERO_SECTOR;
                copy.copy_from_slice(&block[start..start + ZERO_SECTOR.len()]);
                copy
            }
            None => ZERO_SECTOR,
        };
        self.unsynced_sectors
            .entry(sector)
            .and_modify(|versions| {
                versions.push(current);
            })
            .or_insert_with(|| Versions::new(current));
    }

    fn change_len(&mut self, bytes: u64) {
        match &mut self.unsynced_bytes {
            Some(versions) => {
                versions.push(self.bytes);
            }
            None => self.unsynced_bytes = Some(Versions::new(self.bytes)),
        }
        self.bytes = bytes;
    }

    /// Takes away what is behind `bytes`: to an unsynced reader of sectors, a write of zeros.
    fn zero_from(&mut self, bytes: u64) {
        let cut: Vec<u64> = self.blocks.range(bytes / BLOCK_BYTES..).map(|(&block, _)| block).collect();
        for block in cut {
            let first = (block * SECTORS_PER_BLOCK).max(bytes / SECTOR_BYTES);
            (first..(block + 1) * SECTORS_PER_BLOCK).for_each(|sector| self.keep_version(sector));
        }
        let gone = self.blocks.split_off(&bytes.div_ceil(BLOCK_BYTES));
        for block in gone.keys() {
            self.unsynced_blocks.remove(block);
        }
        self.zero_tail(bytes);
    }

    fn zero_tail(&mut self, bytes: u64) {
        let within = to_usize(bytes % BLOCK_BYTES);
        if within > 0
            && let Some(block) = self.blocks.get_mut(&(bytes / BLOCK_BYTES))
            && block[within..].iter().any(|byte| *byte != 0)
        {
            Arc::make_mut(block)[within..].fill(0);
        }
    }

    fn put_sector(&mut self, sector: u64, bytes: &Sector) {
        let block = sector / SECTORS_PER_BLOCK;
        if *bytes == ZERO_SECTOR && !self.blocks.contains_key(&block) {
            return;
        }
        let start = to_usize(sector % SECTORS_PER_BLOCK * SECTOR_BYTES);
        let target = self.blocks.entry(block).or_insert_with(|| Arc::clone(&ZERO_BLOCK));
        Arc::make_mut(target)[start..start + bytes.len()].copy_from_slice(bytes);
    }
}

/// The numbers of the blocks that `range` touches.
fn blocks_of(range: &Range<u64>) -> Range<u64> {
    if range.is_empty() {
        return 0..0;
    }
    range.start / BLOCK_BYTES..range.end.div_ceil(BLOCK_BYTES)
}

/// Splits `bytes` bytes from `position` on into blocks: the block, the place within it, the place within the
/// bytes.
fn pieces(position: u64, bytes: u64) -> impl Iterator<Item = (u64, Range<usize>, Range<usize>)> {
    let end = position + bytes;
    blocks_of(&(position..end)).map(move |block| {
        let start = block * BLOCK_BYTES;
        let range = start.max(position)..(start + BLOCK_BYTES).min(end);
        let relative = |base: u64| to_usize(range.start - base)..to_usize(range.end - base);
        (block, relative(start), relative(position))
    })
}

/// For numbers that index memory, so that they fit.
fn to_usize(number: u64) -> usize {
    usize::try_from(number).expect("a 64-bit machine")
}
