//! A term index on the disk, opened: its filter and its block index in memory, everything else read when it is asked for.
//!
//! The file is opened for each look and closed again, so that any number of indexes needs no handle. Whatever it says is
//! verified; what does not hold is answered as [`Unusable::Damaged`], and then the index is made anew from the segment.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::batch_terms::is_key;
use crate::disk::{Disk, File, OpenMode};
use crate::error::Error;
use crate::format::terms::block::{Block, BlockIndex, Entry, Place};
use crate::format::terms::filter::Filter;
use crate::format::terms::postings::{Posting, heads, list};
use crate::format::terms::{FOOTER_BYTES, HEADER_BYTES, TermsFooter, TermsHeader, crc_at};
use crate::format::{HeaderProblem, Invalid};
use crate::segment::is_bad_sector;
use crate::types::{Offset, Revision};

/// Why an index says nothing.
#[derive(Debug)]
pub(crate) enum Unusable {
    /// It is not there, of another content, or of a later version.
    Absent,
    /// It has changed since it was written: it was synced before it got its name.
    Damaged,
    /// The disk cannot read what is there. As good as damaged where it can be made anew.
    Unreadable(Error),
    /// The disk could not be asked, or the answer is an error.
    Io(Error),
}

impl From<Invalid> for Unusable {
    fn from(_: Invalid) -> Self {
        Self::Damaged
    }
}

impl From<HeaderProblem> for Unusable {
    fn from(problem: HeaderProblem) -> Self {
        match problem {
            HeaderProblem::Newer(_) => Self::Absent,
            HeaderProblem::Blank | HeaderProblem::Invalid(_) => Self::Damaged,
        }
    }
}

type Result<T, E = Unusable> = std::result::Result<T, E>;

/// See the [module](self).
#[derive(Debug)]
pub(crate) struct TermsFile {
    pub(crate) path: PathBuf,
    disk: Arc<dyn Disk>,
    header: TermsHeader,
    seed: u32,
    index: BlockIndex,
    filter: Filter,
    pub(crate) term_count: u64,
}

/// A key that an index has.
#[derive(Clone, Debug)]
pub(crate) struct KeyOf {
    pub(crate) term: Vec<u8>,
    pub(crate) last: Option<Revision>,
    pub(crate) count: u64,
}

/// A term that an index has.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) entry: Entry,
    block: Vec<u8>,
}

impl TermsFile {
    /// Opens the index at `path`, if it is what `is_wanted` says.
    pub(crate) fn open(
        disk: &Arc<dyn Disk>,
        path: &Path,
        is_wanted: impl FnOnce(&TermsHeader) -> bool,
    ) -> Result<Self> {
        let file = open(&**disk, path)?;
        let file_bytes = file.len().map_err(|error| failed(path, error))?;
        let read = |position: u64, bytes: u64| read(&*file, path, position, bytes);
        let header = TermsHeader::decode(&read(0, HEADER_BYTES as u64)?)?;
        if !is_wanted(&header) {
            return Err(Unusable::Absent);
        }
        let seed = header.seed();
        let end = file_bytes.saturating_sub(FOOTER_BYTES as u64);
        let footer = read(end, FOOTER_BYTES as u64)?;
        let footer = TermsFooter::decode(&footer, seed, file_bytes)?;
        let index = read(footer.index_position, footer.index_bytes)?;
        let filter_at = footer.index_position + footer.index_bytes;
        let filter = read(filter_at, footer.filter_bytes)?;
        if crc_at(seed, footer.index_position, &index) != footer.index_crc
            || crc_at(seed, filter_at, &filter) != footer.filter_crc
        {
            return Err(Unusable::Damaged);
        }
        Ok(Self {
            path: path.into(),
            disk: Arc::clone(disk),
            header,
            seed,
            index: BlockIndex::decode(&index, footer.block_count, footer.index_position)?,
            filter: Filter::new(filter.into())?,
            term_count: footer.term_count,
        })
    }

    /// Bytes it takes in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.filter.len() + self.index.memory_bytes()
    }

    /// Whether it may have a term of this hash: asks only the memory.
    pub(crate) fn may_have(&self, hash: u64) -> bool {
        self.filter.may_have(hash)
    }

    /// Looks a term up.
    pub(crate) fn find(&self, hash: u64, term: &[u8]) -> Result<Option<Found>> {
        let Some(number) = self.index.find(term).filter(|_| self.may_have(hash)) else { return Ok(None) };
        let bytes = self.read_block(&*open(&*self.disk, &self.path)?, number)?;
        let entry = self.block(number, &bytes)?.find(term)?;
        Ok(entry.map(|entry| Found { entry, block: bytes }))
    }

    /// Hands over all terms from `from` on, in order, until `each` has enough.
    pub(crate) fn scan(&self, from: &[u8], mut each: impl FnMut(&[u8], &Entry) -> bool) -> Result<()> {
        let file = open(&*self.disk, &self.path)?;
        for number in self.index.find(from).unwrap_or(0)..self.index.blocks().len() {
            let bytes = self.read_block(&*file, number)?;
            let mut block = self.block(number, &bytes)?;
            while let Some(entry) = block.step()? {
                if block.term() >= from && !each(block.term(), &entry) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// The keys of a block with their last revisions and record counts, in order; `None` behind the last block.
    pub(crate) fn block_of_keys(&self, number: usize) -> Result<Option<Vec<KeyOf>>> {
        if number >= self.index.blocks().len() {
            return Ok(None);
        }
        let bytes = self.read_block(&*open(&*self.disk, &self.path)?, number)?;
        let mut block = self.block(number, &bytes)?;
        let mut keys = Vec::new();
        while let Some(entry) = block.step()? {
            if is_key(block.term()) {
                let last = entry.revisions.map(|(_, last)| last);
                keys.push(KeyOf { term: block.term().to_vec(), last, count: entry.count });
            }
        }
        Ok(Some(keys))
    }

    /// The postings of a term that was found from `from` on, in order: so many, or all.
    pub(crate) fn postings(&self, found: &Found, from: Offset, limit: usize) -> Result<Vec<Posting>> {
        let mut postings = Vec::new();
        if found.entry.last < from {
            return Ok(postings);
        }
        self.each_chunk(
            found,
            |chunks| chunks.partition_point(|first| *first <= from).saturating_sub(1),
            |chunk| {
                postings.extend(chunk.into_iter().filter(|posting| posting.offset >= from));
                (postings.len() < limit).then_some(1)
            },
        )?;
        postings.truncate(limit);
        Ok(postings)
    }

    /// Those below `before`, the last one first.
    pub(crate) fn postings_before(
        &self,
        found: &Found,
        before: Offset,
        limit: usize,
    ) -> Result<Vec<Posting>> {
        let mut postings = Vec::new();
        if found.entry.first >= before {
            return Ok(postings);
        }
        self.each_chunk(
            found,
            |chunks| chunks.partition_point(|first| *first < before).saturating_sub(1),
            |chunk| {
                postings.extend(chunk.into_iter().rev().filter(|posting| posting.offset < before));
                (postings.len() < limit).then_some(-1)
            },
        )?;
        postings.truncate(limit);
        Ok(postings)
    }

    /// Reads chunks of postings, beginning where `begin` says of their first offsets, and going on by as many as `each`
    /// answers.
    fn each_chunk(
        &self,
        found: &Found,
        begin: impl FnOnce(&[Offset]) -> usize,
        mut each: impl FnMut(Vec<Posting>) -> Option<isize>,
    ) -> Result<()> {
        let entry = &found.entry;
        let first = Posting { offset: entry.first, revision: entry.revisions.map(|(first, _)| first) };
        let last = Posting { offset: entry.last, revision: entry.revisions.map(|(_, last)| last) };
        let (position, heads_bytes, crc) = match &entry.postings {
            Place::Ends if entry.count < 2 => {
                each(vec![first]);
                return Ok(());
            }
            Place::Ends => {
                each(vec![first, last]);
                return Ok(());
            }
            Place::Inline(range) => {
                let bytes = found.block.get(range.clone()).ok_or(Unusable::Damaged)?;
                each(list(bytes, first, entry.numbering)?);
                return Ok(());
            }
            Place::Run { position, heads_bytes, crc } => (*position, *heads_bytes, *crc),
        };
        let file = open(&*self.disk, &self.path)?;
        // A run is no longer than what it is a part of.
        if heads_bytes > file.len().map_err(|error| failed(&self.path, error))? {
            return Err(Unusable::Damaged);
        }
        let bytes = read(&*file, &self.path, position, heads_bytes)?;
        let chunks = heads(self.seed, (position, crc), &bytes, entry.numbering, first.revision)?;
        let firsts: Vec<_> = chunks.iter().map(|chunk| chunk.first.offset).collect();
        let mut number = Some(begin(&firsts));
        while let Some(chunk) = number.and_then(|number| chunks.get(number)) {
            let bytes = read(&*file, &self.path, chunk.position, chunk.bytes.into())?;
            let step = each(chunk.postings(self.seed, &bytes, entry.numbering)?);
            number = number.zip(step).and_then(|(number, step)| number.checked_add_signed(step));
        }
        Ok(())
    }

    fn read_block(&self, file: &dyn File, number: usize) -> Result<Vec<u8>> {
        let place = self.index.blocks()[number];
        read(file, &self.path, place.position, place.bytes.into())
    }

    fn block<'a>(&self, number: usize, bytes: &'a [u8]) -> Result<Block<'a>> {
        let position = self.index.blocks()[number].position;
        Ok(Block::new(self.seed, position, bytes, self.header.base_offset)?)
    }
}

fn open(disk: &dyn Disk, path: &Path) -> Result<Arc<dyn File>> {
    disk.open(path, OpenMode::Read).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unusable::Absent,
        _ => failed(path, error),
    })
}

fn failed(path: &Path, error: io::Error) -> Unusable {
    Unusable::Io(Error::io("read", path, error))
}

/// Reads all of so many bytes.
fn read(file: &dyn File, path: &Path, position: u64, bytes: u64) -> Result<Vec<u8>> {
    let length = usize::try_from(bytes).map_err(|_| Unusable::Damaged)?;
    let mut buffer = vec![0; length];
    match file.read_at(&mut buffer, position) {
        Ok(read) if read == length => Ok(buffer),
        Ok(_) => Err(Unusable::Damaged),
        Err(error) if is_bad_sector(&error) => Err(Unusable::Unreadable(Error::io("read", path, error))),
        Err(error) => Err(failed(path, error)),
    }
}
