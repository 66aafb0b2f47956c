//! Looking at one segment batch by batch: where it ends, and what is known to have been synced.

use std::io;

use crate::disk::File;
use crate::format::batch::{self, BATCH_BYTES_LIMIT, BatchHeader, synced_position};
use crate::format::segment::{Footer, HEADER_BYTES, INDEX_ENTRY_BYTES, IndexBuilder, index_crc};
use crate::format::{ALIGNMENT, crc};
use crate::types::Offset;

/// Bytes that are read at once.
const WINDOW_BYTES: usize = 1 << 20;

/// What a segment holds.
#[derive(Debug)]
pub(super) struct Scan {
    /// Of its intact batches, from the first one on, without a gap.
    pub(super) index: IndexBuilder,
    /// Some batch says that the segment was synced up to here.
    pub(super) synced: u64,
    /// Whether any batch says anything of that kind: then all segments before this one were synced.
    pub(super) has_mark: bool,
    /// Its footer, if the batches reach it.
    pub(super) footer: Option<Footer>,
    /// Behind this the file has nothing but zeros.
    pub(super) used_to: u64,
    /// Whether the batches were looked at.
    pub(super) is_checked: bool,
}

/// What a segment holds that is known to be on the disk as far as its footer: as the footer and the index say, if they
/// are intact.
pub(super) fn by_footer(file: &dyn File, footer: &Footer) -> io::Result<Option<Scan>> {
    let mut entries = vec![0; footer.index_count as usize * INDEX_ENTRY_BYTES];
    let read = file.read_at(&mut entries, footer.data_bytes)?;
    if read < entries.len() || index_crc(footer.base_offset, &entries) != footer.index_crc {
        return Ok(None);
    }
    Ok(Some(Scan {
        index: IndexBuilder::of_footer(footer, entries),
        synced: footer.data_bytes,
        has_mark: true,
        footer: Some(*footer),
        used_to: footer.data_bytes,
        is_checked: false,
    }))
}

/// Looks at the segment in `file`, which has `bytes` and perhaps a footer.
pub(super) fn scan(
    file: &dyn File,
    bytes: u64,
    seed: u32,
    base_offset: Offset,
    footer: Option<Footer>,
) -> io::Result<Scan> {
    let mut window = Window { file, bytes, buffer: Vec::new(), at: 0 };
    let data_bytes = footer.map_or(bytes, |footer| footer.data_bytes);
    let mut scan = Scan {
        index: IndexBuilder::new(base_offset),
        synced: 0,
        has_mark: false,
        footer: None,
        used_to: 0,
        is_checked: true,
    };
    while let Some((header, crc, mark)) = window.batch(&scan, data_bytes, seed)? {
        scan.note(mark);
        scan.index.push(&header, &crc);
    }
    let end = scan.index.position();
    scan.footer =
        footer.filter(|footer| footer.data_bytes == end && footer.next_offset == scan.index.next_offset());
    scan.used_to = end;
    if scan.footer.is_none() {
        search(&mut window, &mut scan, seed)?;
    }
    Ok(scan)
}

impl Scan {
    fn note(&mut self, mark: Option<u64>) {
        if let Some(position) = mark {
            self.has_mark = true;
            self.synced = self.synced.max(position);
        }
    }
}

/// Looks behind the last intact batch for later ones that say something was synced, and for the last byte.
fn search(window: &mut Window<'_>, scan: &mut Scan, seed: u32) -> io::Result<()> {
    let expected = scan.index.next_offset();
    let mut at = scan.index.position();
    while at < window.bytes {
        let part = window.get(at, WINDOW_BYTES)?;
        // Most of what is looked at here was never written.
        let Some(used) = part.iter().rposition(|&byte| byte != 0) else {
            at += part.len().max(1) as u64;
            continue;
        };
        scan.used_to = at + used as u64 + 1;
        let steps = part.len().div_ceil(ALIGNMENT);
        for step in 0..steps {
            let position = at + (step * ALIGNMENT) as u64;
            // A header may reach over the window's end.
            let bytes = window.get(position, batch::HEADER_BYTES + 64)?;
            if bytes.len() < batch::HEADER_BYTES || bytes[..8] == [0; 8] {
                continue;
            }
            if let Ok(header) = BatchHeader::decode(bytes, seed)
                && header.base_offset >= expected
            {
                let mark = synced_position(&bytes[batch::HEADER_BYTES..header.body_at()]);
                scan.note(mark);
            }
        }
        at += (steps * ALIGNMENT) as u64;
    }
    Ok(())
}

/// A part of the file, read in large pieces.
struct Window<'a> {
    file: &'a dyn File,
    bytes: u64,
    buffer: Vec<u8>,
    at: u64,
}

/// Header, header CRC and synced position of a batch.
type Intact = (BatchHeader, [u8; 4], Option<u64>);

impl Window<'_> {
    /// Up to `count` bytes at `position`; fewer at the end of the file.
    fn get(&mut self, position: u64, count: usize) -> io::Result<&[u8]> {
        let wanted = usize::try_from(self.bytes.saturating_sub(position)).unwrap_or(usize::MAX).min(count);
        let within = |window: &Self| {
            let start = usize::try_from(position.checked_sub(window.at)?).ok()?;
            (start.checked_add(wanted)? <= window.buffer.len()).then_some(start)
        };
        let start = match within(self) {
            Some(start) => start,
            None => {
                self.buffer.resize(wanted.max(WINDOW_BYTES), 0);
                let read = self.file.read_at(&mut self.buffer, position)?;
                self.buffer.truncate(read);
                self.at = position;
                0
            }
        };
        let end = (start + wanted).min(self.buffer.len());
        Ok(&self.buffer[start..end])
    }

    /// The next batch, if it is intact: its header, its header CRC, and what it says was synced.
    fn batch(&mut self, scan: &Scan, data_bytes: u64, seed: u32) -> io::Result<Option<Intact>> {
        let position = scan.index.position();
        let room = usize::try_from(data_bytes.saturating_sub(position)).unwrap_or(usize::MAX);
        let head = self.get(position, room.min(4096))?;
        let Ok(header) = BatchHeader::decode(head, seed) else { return Ok(None) };
        let whole = header.batch_bytes();
        if header.base_offset != scan.index.next_offset()
            || header.stored_bytes() > room
            || whole > BATCH_BYTES_LIMIT
        {
            return Ok(None);
        }
        let bytes = self.get(position, whole)?;
        let body = bytes.get(header.body_at()..whole);
        let is_intact = body.is_some_and(|body| crc(0, body) == header.body_crc);
        if !is_intact && !crate::planted::skips_checksums() || bytes.len() < whole {
            return Ok(None);
        }
        let crc = bytes[..4].try_into().expect("a header has four bytes");
        let mark = synced_position(&bytes[batch::HEADER_BYTES..header.body_at()]);
        Ok(Some((header, crc, mark)))
    }
}

const _: () = assert!(HEADER_BYTES.is_multiple_of(ALIGNMENT));
