//! A topic as segments, the files that a store keeps (`docs/format.md`), in a directory of its own:
//!
//! ```text
//! dir/ 00000000000000000000.segment   sealed; its name is its first offset
//!      00000000000000070000.segment
//!      export.ndjson                  the list of them, written last: without it the export is not complete
//! ```
//!
//! Between the first line of the list and its last one ([`super`]) a segment stands on each:
//!
//! ```json
//! {"segment":"00000000000000000000.segment","bytes":4096,"records":3,"next_offset":3,"crc32":"89abcdef"}
//! ```
//!
//! `crc32` is that of the whole file. Segments are small enough to be held in memory.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message as _;
use quipu_proto::v1 as pb;
use quipu_storage::format::batch::{Batch, BatchBuilder, BodyProblem, seed};
use quipu_storage::format::segment::{FOOTER_BYTES, Footer, HEADER_BYTES, IndexBuilder, SegmentHeader};
use quipu_storage::{Codec, Offset, Timestamp, Uid};
use serde::{Deserialize, Serialize};

use super::{Checked, Entry, Lines, Source};
use crate::backend::Item;
use crate::exit::{Exit, Failure, Result};
use crate::input::Feed;

/// The list of segments.
const LIST: &str = "export.ndjson";
/// A segment is ended when it has so many bytes.
const SEGMENT_BYTES: u64 = 64 << 20;
/// No segment has more: one batch more than that.
const SEGMENT_BYTES_MAX: u64 = 256 << 20;
/// A batch has about so many bytes and records.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_RECORDS: usize = 10_000;

/// A line of the list.
#[derive(Debug, Serialize, Deserialize)]
struct Listed {
    segment: String,
    bytes: u64,
    records: u64,
    next_offset: u64,
    crc32: String,
}

/// Writes an archive.
pub(crate) struct Writer {
    dir: PathBuf,
    topic: Uid,
    codec: Codec,
    /// Records of the next batch: one behind the other, with one append time.
    batch: Vec<Item>,
    batch_bytes: usize,
    segment: Option<SegmentWriter>,
    /// The list, which becomes a file at the end.
    list: Lines<Vec<u8>>,
}

impl Writer {
    /// Makes the directory, which must not exist.
    pub(crate) fn begin(dir: &Path, topic: &pb::Topic) -> Result<Self> {
        fs::create_dir(dir).map_err(|error| Failure::file("create", dir.display(), &error))?;
        let codec = match topic.settings.as_ref().map(pb::TopicSettings::codec) {
            Some(pb::Codec::Lz4) => Codec::Lz4,
            Some(pb::Codec::Zstd) => Codec::Zstd,
            _ => Codec::None,
        };
        Ok(Self {
            dir: dir.into(),
            topic: Uid(<[u8; 16]>::try_from(&topic.uid[..]).unwrap_or_default()),
            codec,
            batch: Vec::new(),
            batch_bytes: 0,
            segment: None,
            list: Lines::begin(Vec::new(), topic)?,
        })
    }

    pub(crate) fn push(&mut self, items: Vec<Item>) -> Result<()> {
        for item in items {
            let bytes = item.record.encoded_len() + 16;
            let goes_on = self.batch.last().is_none_or(|last| {
                last.offset.checked_add(1) == Some(item.offset) && last.append_time_ms == item.append_time_ms
            });
            if !goes_on || self.batch.len() >= BATCH_RECORDS || self.batch_bytes + bytes > BATCH_BYTES {
                self.write_batch()?;
            }
            self.batch_bytes += bytes;
            self.batch.push(item);
        }
        Ok(())
    }

    fn write_batch(&mut self) -> Result<()> {
        let Some(first) = self.batch.first() else { return Ok(()) };
        let (offset, time) = (Offset(first.offset), Timestamp(first.append_time_ms));
        if self.segment.as_ref().is_some_and(|segment| segment.index.position() >= SEGMENT_BYTES) {
            self.end_segment()?;
        }
        let segment = match &mut self.segment {
            Some(segment) => segment,
            None => self.segment.insert(SegmentWriter::begin(&self.dir, self.topic, offset)?),
        };
        let count = u32::try_from(self.batch.len()).unwrap_or(u32::MAX);
        let mut batch = BatchBuilder::new(count, self.codec, self.batch_bytes, |body| {
            for item in &self.batch {
                prost::encoding::message::encode(1, &item.record, body);
            }
        });
        batch.seal(seed(self.topic), offset, time);
        segment.write(&mut batch)?;
        self.batch.clear();
        self.batch_bytes = 0;
        Ok(())
    }

    fn end_segment(&mut self) -> Result<()> {
        let Some(segment) = self.segment.take() else { return Ok(()) };
        let listed = segment.end(self.topic)?;
        serde_json::to_writer(&mut self.list, &listed).map_err(io::Error::from)?;
        self.list.write_all(b"\n")?;
        self.list.count(listed.records, listed.next_offset);
        Ok(())
    }

    /// Writes the list; says how many records there are.
    pub(crate) fn end(mut self) -> Result<u64> {
        self.write_batch()?;
        self.end_segment()?;
        let (list, records) = self.list.end()?;
        // What the list names is on the disk before the list is.
        sync_dir(&self.dir)?;
        let path = self.dir.join(LIST);
        let write = || {
            let mut file = OpenOptions::new().write(true).create_new(true).open(&path)?;
            file.write_all(&list)?;
            file.sync_all()
        };
        write().map_err(|error| Failure::file("write", path.display(), &error))?;
        sync_dir(&self.dir)?;
        Ok(records)
    }
}

fn sync_dir(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| Failure::file("sync", dir.display(), &error))
}

struct SegmentWriter {
    path: PathBuf,
    out: BufWriter<File>,
    sum: crc32fast::Hasher,
    bytes: u64,
    index: IndexBuilder,
}

impl SegmentWriter {
    fn begin(dir: &Path, topic: Uid, base_offset: Offset) -> Result<Self> {
        let path = dir.join(format!("{:020}.segment", base_offset.0));
        let file = OpenOptions::new().write(true).create_new(true).open(&path);
        let file = file.map_err(|error| Failure::file("create", path.display(), &error))?;
        let out = BufWriter::with_capacity(1 << 20, file);
        let sum = crc32fast::Hasher::new();
        let mut segment = Self { path, out, sum, bytes: 0, index: IndexBuilder::new(base_offset) };
        // It belongs to no store.
        segment.put(&SegmentHeader { store: Uid([0; 16]), topic, base_offset }.encode())?;
        Ok(segment)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.sum.update(bytes);
        self.bytes += bytes.len() as u64;
        self.out.write_all(bytes).map_err(|error| Failure::file("write", self.path.display(), &error))
    }

    fn write(&mut self, batch: &mut BatchBuilder) -> Result<()> {
        let header = *batch.header();
        let bytes = batch.stored_bytes();
        self.index.push(&header, bytes);
        self.put(bytes)
    }

    fn end(mut self, topic: Uid) -> Result<Listed> {
        let next_offset = self.index.next_offset();
        let footer = self.index.footer(topic, next_offset);
        let entries = self.index.entries().to_vec();
        self.put(&entries)?;
        self.put(&footer.encode(seed(topic)))?;
        let failed = |error: &io::Error| Failure::file("write", self.path.display(), error);
        self.out.flush().map_err(|error| failed(&error))?;
        self.out.get_ref().sync_all().map_err(|error| failed(&error))?;
        Ok(Listed {
            segment: self.path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            bytes: self.bytes,
            records: footer.record_count,
            next_offset: next_offset.0,
            crc32: format!("{:08x}", self.sum.finalize()),
        })
    }
}

/// Reads an archive.
pub(crate) struct Archive {
    dir: PathBuf,
    settings: Option<pb::TopicSettings>,
    log_start_offset: Option<u64>,
    listed: std::vec::IntoIter<Listed>,
    /// The file that is read.
    path: PathBuf,
    entries: std::vec::IntoIter<Entry>,
    batches: Option<Batches>,
    bytes_read: u64,
}

/// What of a segment is not handed out yet.
struct Batches {
    bytes: Bytes,
    seed: u32,
    position: usize,
    end: usize,
}

impl Archive {
    /// Looks at every byte of it first.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        let path = dir.join(LIST);
        let name = path.display().to_string();
        let file = File::open(&path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Failure::input(format!(
                "{} is no complete export: {LIST}, which is written last, is missing",
                dir.display()
            )),
            _ => Failure::file("open", &name, &error),
        })?;
        let mut lines = Checked::open(Feed::new(file, Box::new(|| Ok(()))), &name, true)?;
        let mut listed = Vec::new();
        let (mut records, mut next_offset) = (0_u64, None);
        while let Some(line) = lines.next()? {
            let segment: Listed =
                serde_json::from_slice(&line).map_err(|error| lines.invalid(&error.to_string()))?;
            let is_ours = segment.segment.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'.');
            if !is_ours || segment.segment.starts_with('.') {
                return Err(lines.invalid(&format!("{:?} is no name of a segment", segment.segment)));
            }
            records = records.saturating_add(segment.records);
            next_offset = Some(segment.next_offset);
            listed.push(segment);
        }
        lines.compare(records, next_offset)?;
        for segment in &listed {
            Batches::open(dir, segment)?;
        }
        let (settings, log_start_offset) = (lines.settings, lines.log_start_offset);
        Ok(Self {
            dir: dir.into(),
            settings,
            log_start_offset,
            listed: listed.into_iter(),
            path: dir.into(),
            entries: Vec::new().into_iter(),
            batches: None,
            bytes_read: 0,
        })
    }

    /// Bytes of all segments.
    pub(crate) fn bytes(&self) -> u64 {
        self.listed.as_slice().iter().fold(0, |sum, segment| sum.saturating_add(segment.bytes))
    }
}

impl Batches {
    /// Reads a segment and holds it against what the list says.
    fn open(dir: &Path, listed: &Listed) -> Result<Self> {
        let path = dir.join(&listed.segment);
        let refuse = |message: &str| damaged(&path, message);
        let failed = |error: io::Error| match error.kind() {
            io::ErrorKind::NotFound => refuse("it is missing"),
            _ => Failure::file("read", path.display(), &error),
        };
        let found = fs::metadata(&path).map_err(failed)?.len();
        if found != listed.bytes || found > SEGMENT_BYTES_MAX {
            return Err(refuse(&format!("it has {found} bytes, not {}", listed.bytes)));
        }
        let bytes = Bytes::from(fs::read(&path).map_err(failed)?);
        let sum = format!("{:08x}", crc32fast::hash(&bytes));
        if sum != listed.crc32 {
            return Err(refuse(&format!("it was changed: it has checksum {sum}, not {}", listed.crc32)));
        }
        let header = SegmentHeader::decode(&bytes).map_err(|_| refuse("it has no header"))?;
        let seed = seed(header.topic);
        let footer_at = bytes.len().saturating_sub(FOOTER_BYTES);
        let footer = Footer::decode(&bytes[footer_at..], seed, bytes.len() as u64);
        let footer = footer.map_err(|_| refuse("it has no footer"))?;
        if footer.record_count != listed.records || footer.next_offset.0 != listed.next_offset {
            return Err(refuse("it has not the records that the list says"));
        }
        let end = usize::try_from(footer.data_bytes).unwrap_or(0).min(footer_at);
        Ok(Self { bytes, seed, position: HEADER_BYTES, end })
    }

    /// The records of the next batch.
    fn next(&mut self, path: &Path) -> Result<Option<Vec<Entry>>> {
        if self.position >= self.end {
            return Ok(None);
        }
        let refuse = |message: &str| damaged(path, &format!("at position {}: {message}", self.position));
        let batch = match Batch::decode(&self.bytes.slice(self.position..self.end), self.seed) {
            Ok(batch) => batch,
            Err(BodyProblem::CodecUnavailable(codec)) => {
                let message = format!("{}: this build lacks the codec {}", path.display(), codec.name());
                return Err(Failure::new(Exit::Unsupported, "CODEC_UNAVAILABLE", message));
            }
            Err(BodyProblem::Invalid(invalid)) => return Err(refuse(invalid.detail)),
        };
        let mut entries = Vec::with_capacity(batch.header().record_count as usize);
        let mut records = batch.records();
        while let Some(next) = records.next_encoded() {
            let (offset, bytes) = next.map_err(|invalid| refuse(invalid.detail))?;
            let record = pb::Record::decode(bytes).map_err(|error| refuse(&error.to_string()))?;
            let append_time_ms = Some(batch.append_time().0);
            entries.push(Entry { offset: Some(offset.0), append_time_ms, record });
        }
        self.position += batch.header().stored_bytes();
        Ok(Some(entries))
    }
}

fn damaged(path: &Path, message: &str) -> Failure {
    Failure::input(format!("{} is no segment of a complete export: {message}", path.display()))
}

impl Source for Archive {
    fn settings(&self) -> Option<pb::TopicSettings> {
        self.settings
    }

    fn log_start_offset(&self) -> Option<u64> {
        self.log_start_offset
    }

    fn next(&mut self) -> Result<Option<Entry>> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Ok(Some(entry));
            }
            if let Some(batches) = &mut self.batches
                && let Some(entries) = batches.next(&self.path)?
            {
                self.entries = entries.into_iter();
                continue;
            }
            let Some(listed) = self.listed.next() else { return Ok(None) };
            self.path = self.dir.join(&listed.segment);
            self.batches = Some(Batches::open(&self.dir, &listed)?);
            self.bytes_read = self.bytes_read.saturating_add(listed.bytes);
        }
    }

    fn invalid(&self, message: &str) -> Failure {
        Failure::input(format!("{}: {message}", self.path.display()))
    }

    fn bytes_read(&self) -> u64 {
        self.bytes_read
    }
}
