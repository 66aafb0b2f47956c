//! Files of a store as text, for a person.
//!
//! One line for each thing: where it is, what it says. What is damaged is named on a line that begins with `!`, and the
//! text goes on with the next intact batch or frame. Nothing here decides anything; [`crate::verify`] does.

use std::collections::HashMap;
use std::fmt::{self, Display};
use std::io::{self, Write};
use std::path::Path;

use bytes::Bytes;

use crate::disk::{Disk, OpenMode};
use crate::error::{Error, Result};
use crate::format::answer::Answered;
use crate::format::batch::{self, Batch, BatchHeader, BodyProblem};
use crate::format::checkpoint::{
    Checkpoint, MasterKeyState, ProducerState, RequestState, TopicState, is_clean,
};
use crate::format::frame::{Change, FILE_HEADER_BYTES, FileHeader, FrameHeader, FrameProblem};
use crate::format::record::RecordView;
use crate::format::segment::{
    FOOTER_BYTES, Footer, HEADER_BYTES, INDEX_ENTRY_BYTES, IndexEntry, SegmentHeader, index_crc,
};
use crate::format::{ALIGNMENT, HeaderProblem, u64_at};
use crate::journal::recovery::claims;
use crate::paged::PagedFile;
use crate::types::{Offset, Position, TopicId, Uid};
use crate::verify::segment::{Spot, next_header, spot, topic_by_footer};

/// What to print.
#[derive(Clone, Copy, Debug)]
pub struct DumpOptions {
    /// Whether to print the records of each batch. `true`.
    pub records: bool,
    /// How many bytes of a key, a header's value or a payload are shown. 64.
    pub value_bytes_max: usize,
}

impl Default for DumpOptions {
    fn default() -> Self {
        Self { records: true, value_bytes_max: 64 }
    }
}

/// A line of a dump. As text it is what [`dump`] prints.
#[derive(Clone, Copy, Debug)]
pub enum Line<'a> {
    /// Of [`dump_store`]: a file begins.
    File(&'a Path),
    /// What stands at a position of the file.
    At {
        /// Counted from the beginning of the file.
        position: u64,
        /// What it is.
        text: &'a str,
    },
    /// A record of the batch before it.
    Record {
        /// Its offset.
        offset: Offset,
        /// What is in it.
        text: &'a str,
    },
    /// More about what the last position was named for.
    Detail(&'a str),
    /// What stands at a position is damaged.
    Damaged {
        /// Counted from the beginning of the file.
        position: u64,
        /// What is wrong.
        text: &'a str,
    },
}

impl Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::At { position, text } => write!(f, "{position}: {text}"),
            Self::Record { offset, text } => write!(f, "  {offset}: {text}"),
            Self::Detail(text) => write!(f, "  {text}"),
            Self::Damaged { position, text } => write!(f, "! {position}: {text}"),
        }
    }
}

/// Prints the file at `path`: a segment, a journal file, a checkpoint or a file `clean`, whichever it begins like. A
/// file that begins like none of them is taken for what its name says.
///
/// # Errors
/// [`Error::Io`] if the file or `out` fails, [`Error::NotAStore`] if it is none of these.
pub fn dump(
    path: impl AsRef<Path>,
    disk: &dyn Disk,
    options: DumpOptions,
    out: &mut dyn Write,
) -> Result<()> {
    dump_lines(path, disk, options, &mut |line| writeln!(out, "{line}"))
}

/// As [`dump`], line by line.
///
/// # Errors
/// As [`dump`].
pub fn dump_lines(
    path: impl AsRef<Path>,
    disk: &dyn Disk,
    options: DumpOptions,
    out: &mut dyn FnMut(Line<'_>) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let mut file = PagedFile::open(disk, path).map_err(|error| Error::io("open", path, error))?;
    let start = file.bytes(0, 8);
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    let mut dump = Dump { out, options, topics: HashMap::new() };
    let written = match (&start[..], extension) {
        (b"QUIPUSEG", _) => dump.segment(&mut file),
        (b"QUIPUJNL", _) => dump.journal(&mut file, disk, path),
        (b"QUIPUCKP", _) => dump.checkpoint(&file.bytes(0, file.len())),
        (b"QUIPUCLN", _) => dump.clean(&file.bytes(0, file.len())),
        (_, "segment") => dump.segment(&mut file),
        (_, "journal") => dump.journal(&mut file, disk, path),
        _ if path.file_name().is_some_and(|name| name == "checkpoint") => {
            dump.checkpoint(&file.bytes(0, file.len()))
        }
        _ => {
            let detail = "the file is no segment, journal file, checkpoint or clean file".to_owned();
            return Err(Error::NotAStore { path: path.into(), detail });
        }
    };
    written.map_err(|error| Error::io("print", path, error))
}

struct Dump<'a> {
    out: &'a mut dyn FnMut(Line<'_>) -> io::Result<()>,
    options: DumpOptions,
    /// Name and seed of the topics, as far as they are known.
    topics: HashMap<TopicId, (String, u32)>,
}

impl Dump<'_> {
    /// A line about damage.
    fn bad(&mut self, position: u64, detail: impl Display) -> io::Result<()> {
        (self.out)(Line::Damaged { position, text: &detail.to_string() })
    }

    /// A line about what stands at a position.
    fn at(&mut self, position: u64, text: impl Display) -> io::Result<()> {
        (self.out)(Line::At { position, text: &text.to_string() })
    }

    /// A line that belongs to the one before it.
    fn detail(&mut self, text: impl Display) -> io::Result<()> {
        (self.out)(Line::Detail(&text.to_string()))
    }

    fn header_problem(&mut self, what: &str, position: u64, problem: HeaderProblem) -> io::Result<()> {
        match problem {
            HeaderProblem::Blank => self.bad(position, format_args!("the {what} is blank")),
            HeaderProblem::Invalid(invalid) => self.bad(position, invalid.detail),
            HeaderProblem::Newer(found) => {
                self.bad(position, format_args!("the {what} has the newer version or feature {found}"))
            }
        }
    }

    fn segment(&mut self, file: &mut PagedFile) -> io::Result<()> {
        let file_bytes = file.len();
        let header = match SegmentHeader::decode(&file.bytes(0, HEADER_BYTES as u64)) {
            Ok(header) => {
                let SegmentHeader { store, topic, base_offset } = header;
                self.at(0, format_args!("segment, store {store}, topic {topic}, base offset {base_offset}"))?;
                Some(header)
            }
            Err(problem) => {
                self.header_problem("segment header", 0, problem)?;
                None
            }
        };
        let topic = header.map(|header| header.topic).or_else(|| topic_by_footer(file));
        let Some(topic) = topic else {
            return self.bad(
                HEADER_BYTES as u64,
                "neither header nor footer say whose batches these are: they cannot be verified",
            );
        };
        let seed = batch::seed(topic);
        let footer_at = file_bytes.saturating_sub(FOOTER_BYTES as u64);
        let footer = Footer::decode(&file.bytes(footer_at, FOOTER_BYTES as u64), seed, file_bytes);
        let end = footer.as_ref().map_or(file_bytes, |footer| footer.data_bytes);
        let mut position = HEADER_BYTES as u64;
        let mut expected = Offset::ZERO;
        while position < end {
            match spot(file, seed, position, end) {
                Spot::Batch(batch) => {
                    self.batch(position, &batch)?;
                    expected = batch.next_offset();
                    position += batch.header().stored_bytes() as u64;
                }
                Spot::Header(header, problem) => {
                    self.batch_header(position, &header)?;
                    self.body_problem(position + header.body_at() as u64, problem)?;
                    expected = header.next_offset();
                    position += header.stored_bytes() as u64;
                }
                Spot::Bad(invalid) => {
                    let behind = next_header(file, seed, position + ALIGNMENT as u64, end, expected);
                    let next = behind.map_or(end, |(next, _)| next);
                    let bytes = next - position;
                    self.bad(position, format_args!("{} ({bytes} bytes to what follows)", invalid.detail))?;
                    position = next;
                }
            }
        }
        match footer {
            Ok(footer) => self.index_and_footer(file, &footer),
            Err(_) if end == file_bytes && position == file_bytes => self.at(file_bytes, "end, not sealed"),
            Err(problem) => self.header_problem("footer", footer_at, problem),
        }
    }

    fn index_and_footer(&mut self, file: &mut PagedFile, footer: &Footer) -> io::Result<()> {
        let index_bytes = u64::from(footer.index_count) * INDEX_ENTRY_BYTES as u64;
        let index = file.bytes(footer.data_bytes, index_bytes);
        if index_crc(footer.base_offset, &index) != footer.index_crc {
            self.bad(footer.data_bytes, "the checksum of the index does not match")?;
        }
        for number in 0..index.len() / INDEX_ENTRY_BYTES {
            let entry = IndexEntry::at(&index, number);
            let at = footer.data_bytes + (number * INDEX_ENTRY_BYTES) as u64;
            let IndexEntry { base_offset, append_time, position } = entry;
            self.at(
                at,
                format_args!("index entry, offset {base_offset}, time {append_time}, at {position}"),
            )?;
        }
        let Footer { base_offset, next_offset, first_time, last_time, record_count, batch_hash, .. } = footer;
        self.at(
            footer.data_bytes + index_bytes,
            format_args!(
                "footer, offsets {base_offset} to {next_offset} (exclusive), {record_count} records, times \
             {first_time} to {last_time}, hash {batch_hash:08x}"
            ),
        )
    }

    fn batch_header(&mut self, position: u64, header: &BatchHeader) -> io::Result<()> {
        self.at(
            position,
            format_args!(
                "batch, offsets {} to {} (exclusive), {} records, time {}, {} bytes, codec {}",
                header.base_offset,
                header.next_offset(),
                header.record_count,
                header.append_time,
                header.batch_bytes(),
                header.codec.name()
            ),
        )
    }

    fn body_problem(&mut self, position: u64, problem: BodyProblem) -> io::Result<()> {
        match problem {
            BodyProblem::Invalid(invalid) => self.bad(position, invalid.detail),
            BodyProblem::CodecUnavailable(codec) => {
                self.at(position, format_args!("the records need the codec {}", codec.name()))
            }
        }
    }

    fn batch(&mut self, position: u64, batch: &Batch) -> io::Result<()> {
        self.batch_header(position, batch.header())?;
        if let Some(synced) = batch.synced_position() {
            self.detail(format_args!("synced up to {synced}"))?;
        }
        if !self.options.records {
            return Ok(());
        }
        for next in batch.records() {
            match next {
                Ok((offset, record)) => self.record(offset, &record)?,
                Err(invalid) => self.bad(position, invalid)?,
            }
        }
        Ok(())
    }

    fn record(&mut self, offset: Offset, record: &RecordView<'_>) -> io::Result<()> {
        let mut text = Vec::new();
        if let Some(id) = record.id {
            text.push(format!("id={}", Uid(id)));
        }
        if let Some(key) = record.key {
            text.push(format!("key={}", self.shown(key)));
        }
        if !record.record_type.is_empty() {
            text.push(format!("type={}", record.record_type.escape_debug()));
        }
        text.extend(record.tags().map(|tag| format!("tag={}", tag.escape_debug())));
        for (name, value) in record.headers() {
            text.push(format!("{}={}", name.escape_debug(), self.shown(value)));
        }
        if !record.content_type.is_empty() {
            text.push(format!("content-type={}", record.content_type.escape_debug()));
        }
        if let Some(erasure_key) = record.erasure_key {
            text.push(format!("erasure-key={}", erasure_key.escape_debug()));
        }
        text.push(match (record.payload, record.sealed) {
            (Some(payload), _) => format!("payload={}", self.shown(payload)),
            (None, Some([])) => "erased".to_owned(),
            (None, Some(sealed)) => format!("sealed ({} bytes)", sealed.len()),
            (None, None) => "tombstone".to_owned(),
        });
        (self.out)(Line::Record { offset, text: &text.join(" ") })
    }

    /// Bytes as escaped text, cut at the limit.
    fn shown(&self, bytes: &[u8]) -> String {
        let limit = self.options.value_bytes_max;
        match bytes.get(..limit).filter(|part| part.len() < bytes.len()) {
            Some(part) => format!("\"{}\"... ({} bytes)", part.escape_ascii(), bytes.len()),
            None => format!("\"{}\"", bytes.escape_ascii()),
        }
    }

    fn journal(&mut self, file: &mut PagedFile, disk: &dyn Disk, path: &Path) -> io::Result<()> {
        self.learn_topics(disk, path);
        let header = match FileHeader::decode(&file.bytes(0, FILE_HEADER_BYTES as u64)) {
            Ok(header) => header,
            Err(HeaderProblem::Blank) => return self.at(0, "journal file, never used"),
            Err(problem) => {
                // Which frames are of this use of the file, only the header can say.
                return self.header_problem("header of the journal file", 0, problem);
            }
        };
        let FileHeader { store, generation, start, previous, .. } = header;
        self.at(0, format_args!("journal file, store {store}, generation {generation} behind {previous}, from position {start}"))?;
        let bytes = file.bytes(FILE_HEADER_BYTES as u64, file.len());
        let mut at = 0;
        while at < bytes.len() {
            let position = start + at as u64;
            let rest = bytes.slice(at..);
            match FrameHeader::decode(&rest, header.seed(), generation, position) {
                Ok(frame) => {
                    self.frame(FILE_HEADER_BYTES + at, position, &frame, &rest)?;
                    at += frame.frame_bytes;
                }
                Err(invalid) => {
                    let Some(next) = next_frame(&bytes, at, &header) else {
                        let left = &bytes[at..];
                        return if left.iter().all(|&byte| byte == 0) || !claims(left, &header, position) {
                            self.at(
                                (FILE_HEADER_BYTES + at) as u64,
                                format_args!("end at position {position}"),
                            )
                        } else {
                            self.bad(
                                (FILE_HEADER_BYTES + at) as u64,
                                format_args!("{}, and none follows", invalid.detail),
                            )
                        };
                    };
                    let gap = next - at;
                    let detail = format_args!("{} ({gap} bytes to the next frame)", invalid.detail);
                    self.bad((FILE_HEADER_BYTES + at) as u64, detail)?;
                    at = next;
                }
            }
        }
        Ok(())
    }

    /// Names and seeds of the topics, from the checkpoint of the store that the journal file lies in.
    fn learn_topics(&mut self, disk: &dyn Disk, path: &Path) {
        let Some(dir) = path.parent().and_then(Path::parent) else { return };
        if let Ok(Some(decoded)) = crate::store::open::read_checkpoint(disk, dir) {
            for topic in decoded.checkpoint.topics {
                self.topics.insert(topic.id, (topic.name.to_string(), batch::seed(topic.uid)));
            }
        }
    }

    fn frame(&mut self, at: usize, position: Position, frame: &FrameHeader, bytes: &Bytes) -> io::Result<()> {
        let FrameHeader { frame_bytes, synced, .. } = frame;
        self.at(
            at as u64,
            format_args!("frame at position {position}, {frame_bytes} bytes, synced up to {synced}"),
        )?;
        match frame.changes(bytes) {
            Ok(changes) => changes.iter().try_for_each(|change| self.change(at, bytes, change)),
            Err(FrameProblem::Invalid(invalid)) => self.bad((at + invalid.position) as u64, invalid.detail),
            Err(FrameProblem::UnknownChange(number)) => {
                self.bad(at as u64, format_args!("it has a change of the later kind {number}"))
            }
        }
    }

    fn change(&mut self, frame_at: usize, frame: &Bytes, change: &Change) -> io::Result<()> {
        let name = |topics: &HashMap<TopicId, (String, u32)>, topic: &TopicId| {
            topics.get(topic).map_or_else(|| format!("number {topic}"), |(name, _)| name.clone())
        };
        match change {
            Change::Batch { topic, bytes, rolls } => {
                let rolls = if *rolls { ", which starts a segment" } else { "" };
                self.detail(format_args!("batch of topic {}{rolls}", name(&self.topics, topic)))?;
                let position = frame_at + (bytes.as_ptr() as usize - frame.as_ptr() as usize);
                let Some((_, seed)) = self.topics.get(topic) else {
                    return self.bad(position as u64, "without the topic's uid the batch cannot be verified");
                };
                match Batch::decode(bytes, *seed) {
                    Ok(batch) => self.batch(position as u64, &batch),
                    Err(problem) => {
                        if let Ok(header) = BatchHeader::decode(bytes, *seed) {
                            self.batch_header(position as u64, &header)?;
                        }
                        self.body_problem(position as u64, problem)
                    }
                }
            }
            Change::TopicCreated { topic, uid, name, settings } => {
                self.topics.insert(*topic, (name.to_string(), batch::seed(*uid)));
                self.detail(format_args!("topic {name} created, number {topic}, uid {uid}, {settings:?}"))
            }
            Change::TopicAltered { topic, settings } => {
                self.detail(format_args!("topic {} altered, {settings:?}", name(&self.topics, topic)))
            }
            Change::TopicDeleted { topic } => {
                self.detail(format_args!("topic {} deleted", name(&self.topics, topic)))
            }
            Change::Trimmed { topic, log_start_offset } => {
                self.detail(format_args!("topic {} trimmed to {log_start_offset}", name(&self.topics, topic)))
            }
            Change::OffsetsReserved { topic, next_offset } => self.detail(format_args!(
                "offsets of topic {} reserved to {next_offset}",
                name(&self.topics, topic)
            )),
            Change::SegmentsReplaced { topic, segment } => self.detail(format_args!(
                "segments of topic {} replaced by {segment:?}",
                name(&self.topics, topic)
            )),
            Change::Answered(Answered { identity, body_hash, answer }) => {
                self.detail(format_args!("{identity}, hash {body_hash:016x}, answered {answer}"))
            }
            Change::Fenced { topic, token } => self.detail(format_args!(
                "fencing token of topic {} raised to {token}",
                name(&self.topics, topic)
            )),
            Change::ProducerForgotten { name } => self.detail(format_args!("producer {name:?} forgotten")),
            Change::MasterKey(state) => self.master_key(state),
        }
    }

    fn checkpoint(&mut self, bytes: &[u8]) -> io::Result<()> {
        let decoded = match Checkpoint::decode(bytes) {
            Ok(decoded) => decoded,
            Err(problem) => return self.header_problem("checkpoint", 0, problem),
        };
        if let Some(invalid) = decoded.damaged_copy {
            self.bad(
                invalid.position as u64,
                format_args!("one of the copies is damaged: {}", invalid.detail),
            )?;
        }
        let Checkpoint {
            store,
            position,
            generation,
            next_topic,
            topics,
            deleted,
            producers,
            request_ids,
            master_key,
        } = decoded.checkpoint;
        self.at(0, format_args!("checkpoint, store {store}, journal position {position} in generation {generation}, next topic \
             {next_topic}"))?;
        for topic in &topics {
            self.topic(topic)?;
        }
        deleted.iter().try_for_each(|topic| self.detail(format_args!("deleted topic {topic}")))?;
        for producer in &producers {
            let ProducerState { name, epoch, last_sequence, answers } = &**producer;
            self.detail(format_args!("producer {name:?}, epoch {epoch}, last sequence {last_sequence}"))?;
            for (body_hash, answer) in answers {
                self.detail(format_args!("  hash {body_hash:016x}, answered {answer}"))?;
            }
        }
        request_ids.iter().try_for_each(|request| {
            let RequestState { id, body_hash, answer } = &**request;
            let id = id.escape_ascii();
            self.detail(format_args!("request id \"{id}\", hash {body_hash:016x}, answered {answer}"))
        })?;
        master_key.iter().try_for_each(|state| self.master_key(state))
    }

    fn master_key(&mut self, state: &MasterKeyState) -> io::Result<()> {
        let MasterKeyState { uid, destroyed } = state;
        self.detail(format_args!("master key {uid}, {destroyed} keys of it destroyed"))
    }

    fn topic(&mut self, topic: &TopicState) -> io::Result<()> {
        let TopicState { id, uid, name, settings, log_start_offset, next_offset, last_time, .. } = topic;
        let fencing_token = topic.fencing_token;
        self.detail(format_args!("topic {name}, number {id}, uid {uid}, offsets {log_start_offset} to {next_offset} (exclusive), last \
             time {last_time}, fencing token {fencing_token}, {settings:?}"
        ))?;
        for sealed in &topic.sealed {
            self.detail(format_args!(
                "  segment {}, offsets {} to {} (exclusive), {} records, {} bytes, times {} to {}",
                crate::segment::file_name(sealed.base_offset, sealed.rewrites),
                sealed.base_offset,
                sealed.next_offset,
                sealed.record_count,
                sealed.bytes,
                sealed.first_time,
                sealed.last_time
            ))?;
        }
        match &topic.active {
            None => Ok(()),
            Some(active) => self.detail(format_args!(
                "  segment {}, active, {} bytes, first time {}",
                crate::segment::file_name(active.base_offset, 0),
                active.bytes,
                active.first_time
            )),
        }
    }

    fn clean(&mut self, bytes: &[u8]) -> io::Result<()> {
        let position = Position(bytes.get(..24).map_or(0, |bytes| u64_at(bytes, 16)));
        if is_clean(bytes, position) {
            self.at(0, format_args!("closed properly, the journal ends at position {position}"))
        } else {
            self.bad(0, "the file is damaged: the store counts as not closed")
        }
    }
}

/// Where the next intact frame behind `at` starts.
fn next_frame(bytes: &Bytes, at: usize, header: &FileHeader) -> Option<usize> {
    (at + ALIGNMENT..bytes.len()).step_by(ALIGNMENT).find(|&at| {
        let position = header.start + at as u64;
        let rest = &bytes[at..];
        claims(rest, header, position)
            && FrameHeader::decode(rest, header.seed(), header.generation, position).is_ok()
    })
}

/// Every file of the store in directory `path`, in the order checkpoint, clean, journal, segments.
///
/// # Errors
/// As [`dump`]; a file that is no file of ours is passed over.
pub fn dump_store(
    path: impl AsRef<Path>,
    disk: &dyn Disk,
    options: DumpOptions,
    out: &mut dyn Write,
) -> Result<()> {
    dump_store_lines(path, disk, options, &mut |line| writeln!(out, "{line}"))
}

/// As [`dump_store`], line by line; [`Line::File`] goes before those of each file.
///
/// # Errors
/// As [`dump_store`].
pub fn dump_store_lines(
    path: impl AsRef<Path>,
    disk: &dyn Disk,
    options: DumpOptions,
    out: &mut dyn FnMut(Line<'_>) -> io::Result<()>,
) -> Result<()> {
    let dir = path.as_ref();
    let list = |dir: &Path| {
        let mut entries = disk.list(dir).map_err(|error| Error::io("list", dir, error))?;
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok::<_, Error>(entries.into_iter().map(|entry| dir.join(entry.name)).collect::<Vec<_>>())
    };
    let mut files = vec![dir.join(crate::store::open::CHECKPOINT), dir.join(crate::store::open::CLEAN)];
    files.extend(list(&dir.join("journal"))?);
    for topic in list(&dir.join("topics"))? {
        files.extend(list(&topic).unwrap_or_default());
    }
    for path in files {
        if disk.open(&path, OpenMode::Read).is_err() {
            continue;
        }
        out(Line::File(&path)).map_err(|error| Error::io("print", &path, error))?;
        match dump_lines(&path, disk, options, out) {
            Ok(()) | Err(Error::NotAStore { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
