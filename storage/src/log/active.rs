//! The segment that is being written.
//!
//! Its file is allocated in full, with room behind the batches for index and footer, so that nothing that is written
//! into it meets a full disk. It is written through [`File::writer`]: a map where the file system overwrites in place.
//!
//! Storing into a page that the file system has not seen yet costs ten times what storing costs, so the file is
//! written with zeros ahead of the batches ([`Fill`]). A thread does that; where it falls behind, the append does it
//! for its own next step. Promises:
//!
//! - Zeros are only written behind `filled`, batches only before it: the two never meet.
//! - What lies behind the last batch reads as zeros, up to the end of the file.

use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::context::Context;
use crate::disk::{File, OpenMode, Writer};
use crate::error::{Error, Result};
use crate::format::batch::{BatchBuilder, BatchHeader};
use crate::format::checkpoint::SealedSegment;
use crate::format::payload::PayloadBatch;
use crate::format::segment::{
    FOOTER_BYTES, HEADER_BYTES, INDEX_ENTRY_BYTES, INDEX_INTERVAL_BYTES, IndexBuilder, SegmentHeader,
};
use crate::segment::Segment;
use crate::types::{Offset, Uid};

/// The name of the file that will be the next segment.
pub(super) const NEXT: &str = "next";
/// Bytes of zeros that are written at once: the kernel keeps them together. The first store faults them all in, so that
/// many are good for appends that are not synced; each sync of a few records walks through all of their blocks, so that few
/// are good for those that are. This costs the former 3 % and the latter nothing that can be seen; 64 KiB cost the former
/// 15 %.
const FILL_BYTES: usize = 256 << 10;
/// How far zeros are written ahead of the batches.
pub(super) const FILL_AHEAD_BYTES: u64 = 8 << 20;

static ZEROS: [u8; FILL_BYTES] = [0; FILL_BYTES];

/// How large the file of a segment is made whose batches take `data_bytes` at most.
pub(super) fn capacity_for(data_bytes: u64) -> u64 {
    let index_bytes = (data_bytes / INDEX_INTERVAL_BYTES + 1) * INDEX_ENTRY_BYTES as u64;
    (data_bytes + index_bytes + FOOTER_BYTES as u64).next_multiple_of(INDEX_INTERVAL_BYTES)
}

/// How many bytes of batches, header included, fit into a file of `capacity`: the inverse of [`capacity_for`].
fn data_bytes_for(capacity: u64) -> u64 {
    let (entry, interval) = (INDEX_ENTRY_BYTES as u64, INDEX_INTERVAL_BYTES);
    let room = capacity.saturating_sub(FOOTER_BYTES as u64 + entry);
    room / (interval + entry) * interval + (room % (interval + entry)).min(interval)
}

/// Writes zeros ahead of the batches of a file. See the [module](self).
#[derive(Debug)]
pub(super) struct Fill {
    file: Arc<dyn File>,
    pub(super) capacity: u64,
    /// Zeros were written up to here; nobody writes a batch behind it. Moves under the lock, so that whoever finds
    /// enough of them waits for nobody.
    filled: AtomicU64,
    filling: Mutex<()>,
}

impl Fill {
    fn new(file: &Arc<dyn File>, writer: &dyn Writer, from: u64, capacity: u64) -> Arc<Self> {
        let filled = if writer.overwrites_in_place() { from } else { capacity };
        Arc::new(Self {
            file: Arc::clone(file),
            capacity,
            filled: AtomicU64::new(filled),
            filling: Mutex::new(()),
        })
    }

    /// Writes the next zeros if there are none up to `wanted`. Returns up to where they are now.
    pub(super) fn step(&self, wanted: u64) -> io::Result<u64> {
        let wanted = wanted.min(self.capacity);
        if self.has_filled() < wanted {
            let _filling = self.filling.lock().expect("no panic under this lock");
            let filled = self.has_filled();
            if filled < wanted {
                let end = (filled + FILL_BYTES as u64).min(self.capacity);
                let part = usize::try_from(end - filled).expect("at most FILL_BYTES");
                self.file.write_at(&[IoSlice::new(&ZEROS[..part])], filled)?;
                self.filled.store(end, Ordering::Release);
            }
        }
        Ok(self.has_filled())
    }

    /// No zeros from now on: what lies behind the batches is somebody else's.
    fn stop(&self) {
        let _filling = self.filling.lock().expect("no panic under this lock");
        self.filled.store(self.capacity, Ordering::Release);
    }

    fn has_filled(&self) -> u64 {
        self.filled.load(Ordering::Acquire)
    }
}

/// A file that is ready to become a segment.
#[derive(Debug)]
pub(super) struct Prepared {
    path: PathBuf,
    file: Arc<dyn File>,
    writer: Box<dyn Writer>,
    pub(super) fill: Arc<Fill>,
    capacity: u64,
}

impl Prepared {
    /// Creates and allocates the file. What is half made on a full disk is removed again.
    pub(super) fn create(context: &Context, capacity: u64) -> Result<Self> {
        let (path, disk) = (context.dir.join(NEXT), &context.disk);
        let create = || {
            let file = match disk.open(&path, OpenMode::Create) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    disk.remove(&path)?;
                    disk.open(&path, OpenMode::Create)?
                }
                outcome => outcome?,
            };
            file.allocate(capacity)?;
            let writer = Arc::clone(&file).writer(capacity)?;
            Ok((file, writer))
        };
        let (file, writer) = create().map_err(|error| {
            let _ = disk.remove(&path);
            Error::io("allocate", &path, error)
        })?;
        let fill = Fill::new(&file, &*writer, 0, capacity);
        Ok(Self { path, file, writer, fill, capacity })
    }

    pub(super) fn has_room(&self, bytes: u64) -> bool {
        bytes <= data_bytes_for(self.capacity)
    }
}

/// See the [module](self).
#[derive(Debug)]
pub(super) struct Active {
    pub(super) segment: Arc<Segment>,
    pub(super) file: Arc<dyn File>,
    pub(super) fill: Arc<Fill>,
    writer: Box<dyn Writer>,
    index: IndexBuilder,
    /// Batches end here at the latest.
    limit: u64,
    filled: u64,
    /// A write that a full disk refused may have left bytes up to here.
    stale_to: u64,
}

impl Active {
    /// Makes a prepared file the segment that starts at `base_offset`. Nothing has to be undone if this fails.
    /// `syncs`: its header is on the disk before it has its name, because it is known that there is a segment.
    pub(super) fn begin(
        context: &Context,
        prepared: Prepared,
        base_offset: Offset,
        data_bytes_max: u64,
        syncs: bool,
        new_segment: impl FnOnce(&SealedSegment, u64) -> Arc<Segment>,
    ) -> Result<Self> {
        let Prepared { path, file, mut writer, fill, capacity } = prepared;
        let fresh = SealedSegment {
            base_offset,
            rewrites: 0,
            next_offset: base_offset,
            bytes: HEADER_BYTES as u64,
            record_count: 0,
            first_time: crate::Timestamp::ZERO,
            last_time: crate::Timestamp::ZERO,
        };
        let segment = new_segment(&fresh, capacity);
        segment.begin_index();
        let io = |error| Error::io("begin segment", segment.path(), error);
        let filled = fill.step(HEADER_BYTES as u64).map_err(io)?;
        let header = SegmentHeader { store: context.store, topic: context.store, base_offset }.encode();
        writer.write_at(&[IoSlice::new(&header)], 0).map_err(io)?;
        if syncs {
            context.sync_file(&*file, &path)?;
        }
        context.disk.rename(&path, segment.path()).map_err(io)?;
        context.counters.segments_created.add(1);
        Ok(Self {
            segment,
            file,
            fill,
            writer,
            index: IndexBuilder::new(base_offset),
            limit: data_bytes_for(capacity).min(data_bytes_max.max(HEADER_BYTES as u64)),
            filled,
            stale_to: 0,
        })
    }

    /// Goes on in a segment that recovery has looked at: `index` is of all its batches, behind them are zeros.
    pub(super) fn resume(
        segment: Arc<Segment>,
        file: Arc<dyn File>,
        index: IndexBuilder,
        capacity: u64,
        data_bytes_max: u64,
    ) -> io::Result<Self> {
        let writer = Arc::clone(&file).writer(capacity)?;
        let fill = Fill::new(&file, &*writer, index.position(), capacity);
        segment.continue_index(index.clone());
        Ok(Self {
            segment,
            file,
            filled: fill.has_filled(),
            fill,
            writer,
            index,
            limit: data_bytes_for(capacity).min(data_bytes_max),
            stale_to: 0,
        })
    }

    /// Where the next batch goes.
    #[inline]
    pub(super) fn position(&self) -> u64 {
        self.index.position()
    }

    /// Whether another `bytes` do not fit. A segment without a batch takes one of any size that its file has room
    /// for.
    #[inline]
    pub(super) fn is_full(&self, bytes: u64) -> bool {
        self.position() + bytes > self.limit
            && (self.position() > HEADER_BYTES as u64
                || self.position() + bytes > data_bytes_for(self.fill.capacity))
    }

    /// Writes a sealed batch, and lets readers of the unsynced end see it. `is_for_sync`: a sync follows at once. Then it
    /// does not go through the map: storing into a page marks all blocks dirty that the kernel keeps together with it, up
    /// to [`FILL_BYTES`], and the sync would write them all.
    #[inline]
    pub(super) fn write(&mut self, batch: &mut BatchBuilder, is_for_sync: bool) -> io::Result<()> {
        let header = *batch.header();
        let bytes = batch.stored_bytes();
        let position = self.index.position();
        let end = position + bytes.len() as u64;
        if end > self.filled || self.stale_to != 0 {
            self.make_ready(position, end)?;
        }
        let parts = [IoSlice::new(bytes)];
        let outcome = if is_for_sync {
            self.file.write_at(&parts, position)
        } else {
            self.writer.write_at(&parts, position)
        };
        if let Err(error) = outcome {
            self.stale_to = end;
            return Err(error);
        }
        let header_crc = bytes[..4].try_into().expect("a header has four bytes");
        self.publish(position, end, &header, header_crc);
        Ok(())
    }

    /// Up to here a batch takes no more than storing it.
    pub(super) fn ready_to(&self) -> u64 {
        if self.stale_to == 0 { self.filled.min(self.limit) } else { 0 }
    }

    /// The same for a batch that is sealed by `seal` here, which ends before [`ready_to`](Self::ready_to). `false`: the
    /// writer has no place for it, nothing was done.
    #[inline]
    pub(super) fn write_payload(
        &mut self,
        batch: &mut PayloadBatch<'_>,
        seal: impl FnOnce(&mut PayloadBatch<'_>),
    ) -> bool {
        let position = self.index.position();
        let end = position + batch.header().stored_bytes() as u64;
        debug_assert!(end <= self.ready_to(), "the caller looked");
        let Some(place) = self.writer.place(position..end) else { return false };
        seal(batch);
        batch.store(place);
        self.publish(position, end, batch.header(), batch.header_crc());
        true
    }

    #[inline]
    fn publish(&mut self, position: u64, end: u64, header: &BatchHeader, header_crc: [u8; 4]) {
        if self.index.push_and_tell(header, &header_crc) {
            self.segment.index_batch(position, header, &header_crc);
        }
        self.segment.publish_end(end, header.next_offset());
    }

    /// Writes index and footer behind the batches, all of them synced, and cuts the file there: the next opening need not
    /// look at any. It takes them away again if there is room for more. Without a batch the file is only cut, so that nobody
    /// has to look through its zeros.
    pub(super) fn finish(&self, context: &Context, seed: u32) -> Result<()> {
        if self.stale_to != 0 {
            return Ok(());
        }
        self.fill.stop();
        if self.position() == HEADER_BYTES as u64 {
            let cut = self.file.set_len(HEADER_BYTES as u64);
            cut.map_err(|error| context.fail(Error::failed("cut segment", self.segment.path(), error)))?;
            return context.sync_file(&*self.file, self.segment.path());
        }
        let sealed = seal(&*self.file, self.segment.path(), &self.index, context.store, seed);
        self.segment.seal(sealed.map_err(|error| context.fail(error))?);
        context.sync_file(&*self.file, self.segment.path())
    }

    /// Nothing is written any more: whoever opens the log next has the only writer of the file.
    pub(super) fn close(&mut self) {
        self.fill.stop();
        self.writer = Box::new(Closed);
    }

    /// Zeros up to `end`, and over what a refused write has left.
    #[cold]
    fn make_ready(&mut self, position: u64, end: u64) -> io::Result<()> {
        if self.stale_to > position {
            let bytes = usize::try_from(self.stale_to - position).map_err(|_| io::ErrorKind::InvalidInput)?;
            self.writer.write_at(&[IoSlice::new(&vec![0; bytes])], position)?;
        }
        self.stale_to = 0;
        while self.filled < end {
            self.filled = self.fill.step(end)?;
        }
        Ok(())
    }

    /// Writes index and footer behind the batches and cuts the file there: the segment never changes again. Returns
    /// the writer, whose end may take a while.
    pub(super) fn seal(self, uid: Uid, seed: u32) -> Result<Retired> {
        self.fill.stop();
        seal(&*self.file, self.segment.path(), &self.index, uid, seed).map(|sealed| {
            self.segment.seal(sealed);
            (self.file, self.segment, self.writer)
        })
    }
}

/// What is left of an active segment that was sealed.
type Retired = (Arc<dyn File>, Arc<Segment>, Box<dyn Writer>);

/// In place of a writer, after the end.
#[derive(Debug)]
struct Closed;

impl Writer for Closed {
    fn write_at(&mut self, _: &[IoSlice<'_>], _: u64) -> io::Result<()> {
        Err(io::Error::other("the log was closed"))
    }
}

/// Writes the index and the footer that belong to `index`. A failure is final: nobody knows what was written.
pub(super) fn seal(
    file: &dyn File,
    path: &Path,
    index: &IndexBuilder,
    uid: Uid,
    seed: u32,
) -> Result<SealedSegment> {
    let footer = index.footer(uid, index.next_offset());
    let encoded = footer.encode(seed);
    let bytes = footer.data_bytes + (index.entries().len() + encoded.len()) as u64;
    file.write_at(&[IoSlice::new(index.entries()), IoSlice::new(&encoded)], footer.data_bytes)
        .and_then(|()| file.set_len(bytes))
        .map_err(|error| Error::failed("seal segment", path, error))?;
    Ok(SealedSegment {
        base_offset: footer.base_offset,
        rewrites: 0,
        next_offset: footer.next_offset,
        bytes,
        record_count: footer.record_count,
        first_time: footer.first_time,
        last_time: footer.last_time,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_room_for_its_batches_their_index_and_the_footer() {
        for data_bytes in (4000..20_000).chain([1 << 20, 64 << 20, 4 << 30]) {
            let capacity = capacity_for(data_bytes);
            assert!(data_bytes_for(capacity) >= data_bytes, "{data_bytes}");
            let index_bytes = data_bytes.div_ceil(INDEX_INTERVAL_BYTES) * INDEX_ENTRY_BYTES as u64;
            assert!(data_bytes + index_bytes + FOOTER_BYTES as u64 <= capacity, "{data_bytes}");
            let fits = data_bytes_for(capacity);
            let index_bytes = fits.div_ceil(INDEX_INTERVAL_BYTES) * INDEX_ENTRY_BYTES as u64;
            assert!(fits + index_bytes + FOOTER_BYTES as u64 <= capacity, "{fits} of {capacity}");
        }
    }
}
