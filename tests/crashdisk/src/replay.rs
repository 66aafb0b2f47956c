//! The disk as a power cut leaves it.
//!
//! ```text
//!   log:   W  W  F  W  ack  W  W │ F ...
//!          └─ flushed ┘ └ pending ┘ cut
//! ```
//!
//! Flushed writes are there. What happened to the pending ones is the [`Policy`]'s choice.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::log::{BlockLog, Op};
use crate::rng::Rng;

/// The unit that a disk writes whole or not at all.
const SECTOR_BYTES: usize = 512;

/// What a cut keeps of the writes that were not flushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Policy {
    /// All of them: the cut came just after.
    All,
    /// None: the disk's cache was lost.
    None,
    /// Each write or not, by chance: the disk reordered them.
    Subset,
    /// Most writes, and of half of these each 512-byte sector or not, by chance; but see [`Replay::new`].
    Torn,
}

impl Policy {
    pub(crate) const EVERY: [Self; 4] = [Self::All, Self::None, Self::Subset, Self::Torn];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::All => "all",
            Self::None => "none",
            Self::Subset => "subset",
            Self::Torn => "torn",
        }
    }
}

/// A walk along a log, forwards only.
pub(crate) struct Replay<'a> {
    log: &'a BlockLog,
    position: usize,
    flushed: Image,
    /// The pending writes are between here and the position.
    pending_begin: usize,
    acks: Vec<&'a str>,
    untorn: Range<u64>,
}

impl<'a> Replay<'a> {
    /// A replay from the log's begin. No cut tears the bytes `untorn`: the file system's superblock, if it is
    /// larger than a sector and must be whole before recovery can begin. No program can do anything about that.
    pub(crate) fn new(log: &'a BlockLog, untorn: Range<u64>) -> Self {
        Self {
            log,
            position: 0,
            flushed: Image::new(log.disk_bytes),
            pending_begin: 0,
            acks: Vec::new(),
            untorn,
        }
    }

    /// Goes on to the cut just before operation `position`.
    pub(crate) fn advance(&mut self, position: usize) {
        assert!(self.position <= position, "a replay goes forwards");
        for at in self.position..position {
            match &self.log.ops[at] {
                Op::Flush => {
                    for op in &self.log.ops[self.pending_begin..at] {
                        if let Op::Write { position, bytes } = op {
                            self.flushed.write(*position, bytes);
                        }
                    }
                    self.pending_begin = at + 1;
                }
                Op::Ack(text) => self.acks.push(text),
                Op::Write { .. } | Op::Begin | Op::End => {}
            }
        }
        self.position = position;
    }

    /// What the program had acknowledged, oldest first.
    pub(crate) fn acks(&self) -> &[&'a str] {
        &self.acks
    }

    pub(crate) fn pending(&self) -> impl Iterator<Item = (u64, &'a [u8])> + use<'a> {
        self.log.ops[self.pending_begin..self.position].iter().filter_map(|op| match op {
            Op::Write { position, bytes } => Some((*position, &**bytes)),
            _ => None,
        })
    }

    /// Writes the disk into an empty file.
    pub(crate) fn write_image(&self, file: &File, policy: Policy, seed: u64) -> io::Result<()> {
        self.flushed.write_to(file)?;
        let mut rng = Rng::new(seed);
        for (position, bytes) in self.pending() {
            match policy {
                Policy::None => {}
                Policy::All => file.write_all_at(bytes, position)?,
                Policy::Subset => {
                    if rng.one_in(2) {
                        file.write_all_at(bytes, position)?;
                    }
                }
                Policy::Torn => {
                    if rng.one_in(4) {
                        continue;
                    }
                    let torn = rng.one_in(2);
                    let mut untorn_kept = None;
                    for (sector, at) in bytes.chunks(SECTOR_BYTES).zip((position..).step_by(SECTOR_BYTES)) {
                        let kept = match &mut untorn_kept {
                            _ if !torn => true,
                            kept if self.untorn.contains(&at) => *kept.get_or_insert_with(|| rng.one_in(2)),
                            _ => rng.one_in(2),
                        };
                        if kept {
                            file.write_all_at(sector, at)?;
                        }
                    }
                }
            }
        }
        Ok(())
    }
}

/// The bytes of a disk, and which of its blocks are not all zero. A young file system is mostly zeros, and
/// thousands of images are written: those blocks stay holes.
struct Image {
    bytes: Vec<u8>,
    occupied: Vec<bool>,
}

impl Image {
    const BLOCK_BYTES: usize = 4096;

    fn new(bytes: u64) -> Self {
        let bytes = usize::try_from(bytes).expect("a disk that fits into memory");
        Self { bytes: vec![0; bytes], occupied: vec![false; bytes.div_ceil(Self::BLOCK_BYTES)] }
    }

    fn write(&mut self, position: u64, bytes: &[u8]) {
        let begin = usize::try_from(position).expect("a log's writes are within its disk");
        let end = begin + bytes.len();
        self.bytes[begin..end].copy_from_slice(bytes);
        for block in begin / Self::BLOCK_BYTES..end.div_ceil(Self::BLOCK_BYTES) {
            let from = block * Self::BLOCK_BYTES;
            let to = (from + Self::BLOCK_BYTES).min(self.bytes.len());
            self.occupied[block] = self.bytes[from..to] != [0; Self::BLOCK_BYTES][..to - from];
        }
    }

    fn write_to(&self, file: &File) -> io::Result<()> {
        file.set_len(self.bytes.len() as u64)?;
        let mut block = 0;
        for run in self.occupied.chunk_by(|one, next| one == next) {
            let from = block * Self::BLOCK_BYTES;
            block += run.len();
            if run[0] {
                let to = (block * Self::BLOCK_BYTES).min(self.bytes.len());
                file.write_all_at(&self.bytes[from..to], from as u64)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    const DISK_BYTES: usize = 16384 + 512;

    fn write(sector: u64, fill: u8, sectors: usize) -> Op {
        Op::Write { position: sector * 512, bytes: vec![fill; sectors * 512].into() }
    }

    fn log() -> BlockLog {
        let ops = vec![
            write(0, 1, 1),
            write(8, 2, 8),
            Op::Ack("early".into()),
            Op::Flush,
            write(8, 3, 8),
            Op::Ack("late".into()),
            write(32, 4, 1),
        ];
        BlockLog { disk_bytes: DISK_BYTES as u64, ops }
    }

    fn image(replay: &Replay<'_>, policy: Policy, seed: u64) -> Vec<u8> {
        let file = tempfile::NamedTempFile::new().unwrap();
        replay.write_image(file.as_file(), policy, seed).unwrap();
        let mut bytes = Vec::new();
        file.reopen().unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes.len(), DISK_BYTES);
        bytes
    }

    /// The first byte of each sector that matters.
    fn sectors(image: &[u8]) -> [u8; 3] {
        [image[0], image[8 * 512], image[32 * 512]]
    }

    #[test]
    fn what_was_flushed_is_there_whatever_the_policy() {
        let log = log();
        let mut replay = Replay::new(&log, 0..0);
        replay.advance(3);
        assert_eq!(sectors(&image(&replay, Policy::None, 1)), [0, 0, 0]);
        replay.advance(4);
        for policy in Policy::EVERY {
            assert_eq!(sectors(&image(&replay, policy, 1)), [1, 2, 0]);
        }
        assert_eq!(replay.acks(), ["early"]);
    }

    #[test]
    fn a_policy_decides_about_what_was_not_flushed() {
        let log = log();
        let mut replay = Replay::new(&log, 0..0);
        replay.advance(7);
        assert_eq!(replay.acks(), ["early", "late"]);
        assert_eq!(sectors(&image(&replay, Policy::All, 1)), [1, 3, 4]);
        assert_eq!(sectors(&image(&replay, Policy::None, 1)), [1, 2, 0]);
        let subsets: std::collections::BTreeSet<_> =
            (0..50).map(|seed| sectors(&image(&replay, Policy::Subset, seed))).collect();
        assert_eq!(subsets, [[1, 2, 0], [1, 2, 4], [1, 3, 0], [1, 3, 4]].into());
    }

    #[test]
    fn a_torn_write_is_old_or_new_in_each_sector_and_the_same_for_the_same_seed() {
        let log = log();
        let mut replay = Replay::new(&log, 0..0);
        replay.advance(7);
        let mut torn = 0;
        for seed in 0..20 {
            let image = image(&replay, Policy::Torn, seed);
            assert_eq!(image, self::image(&replay, Policy::Torn, seed));
            let written = &image[8 * 512..16 * 512];
            assert!(written.chunks(512).all(|sector| sector == [2; 512] || sector == [3; 512]));
            torn += usize::from(written.contains(&2) && written.contains(&3));
        }
        assert!(torn > 0);
    }

    #[test]
    fn a_superblock_is_never_torn_and_what_lies_around_it_is() {
        let log = BlockLog { disk_bytes: DISK_BYTES as u64, ops: vec![write(0, 9, 8)] };
        let mut replay = Replay::new(&log, 1024..2048);
        replay.advance(1);
        let states: std::collections::BTreeSet<[u8; 3]> = (0..100)
            .map(|seed| image(&replay, Policy::Torn, seed))
            .map(|image| [image[512], image[1024], image[1536]])
            .collect();
        assert!(states.iter().all(|[_, first, second]| first == second));
        assert_eq!(states.len(), 4);
    }

    #[test]
    fn a_block_that_becomes_zero_again_is_zero_in_the_image() {
        let log = BlockLog {
            disk_bytes: DISK_BYTES as u64,
            ops: vec![write(8, 7, 8), Op::Flush, write(8, 0, 8), Op::Flush],
        };
        let mut replay = Replay::new(&log, 0..0);
        replay.advance(4);
        assert_eq!(image(&replay, Policy::None, 1), vec![0; DISK_BYTES]);
    }
}
