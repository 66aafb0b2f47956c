//! One segment, byte by byte.
//!
//! 1. The file is there, and as long as it must be.
//! 2. Its header names this store, this topic and this base offset.
//! 3. Footer and index, if it is sealed; without them the batches say themselves where they end.
//! 4. Each batch: both checksums, its place among the offsets, its records; zeros behind it.
//! 5. The batches lead up to the segment's last offset, and give the index and the footer that are there.
//! 6. They give the index of its terms, if there is one.

use std::ops::Range;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::report::Severity;
use super::run::Run;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::format::batch::{self, Batch, BatchHeader, BodyProblem, seed};
use crate::format::checkpoint::SealedSegment;
use crate::format::segment::{
    FOOTER_BYTES, Footer, HEADER_BYTES, INDEX_ENTRY_BYTES, IndexBuilder, SegmentHeader, index_crc,
};
use crate::format::terms::{Content, TermsHeader};
use crate::format::{ALIGNMENT, FORMAT_VERSION, HeaderProblem, Invalid};
use crate::paged::PagedFile;
use crate::terms::map::TermMap;
use crate::types::{Offset, Timestamp, TopicName, Uid};

/// What is known of a segment from elsewhere.
pub(super) struct Subject<'a> {
    pub(super) path: PathBuf,
    pub(super) topic: Option<&'a TopicName>,
    /// Store and topic; `None` if only the header can say.
    pub(super) owner: Option<(Uid, Uid)>,
    pub(super) base_offset: Offset,
    /// One past the last offset that it must hold; `None` if it is not known.
    pub(super) next_offset: Option<Offset>,
    pub(super) rewrites: u32,
    /// What lies below was removed: its damage costs nothing.
    pub(super) log_start: Offset,
    /// What the checkpoint says, of a sealed one.
    pub(super) sealed: Option<SealedSegment>,
    /// Where the batches of an active one end.
    pub(super) data_bytes: Option<u64>,
    /// Whether the store still knows it: of an open one it may go at any time.
    pub(super) is_listed: &'a dyn Fn() -> bool,
}

/// What stands at a place where a batch should be.
pub(crate) enum Spot {
    /// An intact batch.
    Batch(Batch),
    /// An intact header, and a body that is not or that cannot be decompressed here.
    Header(BatchHeader, BodyProblem),
    /// Neither.
    Bad(Invalid),
}

/// Looks at the batch that starts at `position` of a file whose batches end at `end`.
pub(crate) fn spot(file: &mut PagedFile, seed: u32, position: u64, end: u64) -> Spot {
    let header = match header(file, seed, position, end) {
        Ok(header) => header,
        Err(invalid) => return Spot::Bad(invalid),
    };
    let bytes = file.bytes(position, header.batch_bytes() as u64);
    match Batch::decode(&bytes, seed) {
        Ok(batch) => Spot::Batch(batch),
        Err(problem) => Spot::Header(header, problem),
    }
}

/// The intact header at `position`, of a batch that ends at or before `end`.
fn header(file: &mut PagedFile, seed: u32, position: u64, end: u64) -> Result<BatchHeader, Invalid> {
    let left = end.saturating_sub(position);
    let start = file.bytes(position, left.min(batch::HEADER_BYTES as u64));
    let claimed = BatchHeader::decode_unverified(&start)?;
    if claimed.batch_bytes() as u64 > left {
        return Err(Invalid::new("a batch reaches beyond its segment", 0));
    }
    BatchHeader::decode(&file.bytes(position, claimed.body_at() as u64), seed)
}

/// The next intact header at `position` or behind it that can follow `expected`, and where it is.
pub(crate) fn next_header(
    file: &mut PagedFile,
    seed: u32,
    mut position: u64,
    end: u64,
    expected: Offset,
) -> Option<(u64, BatchHeader)> {
    while position + batch::HEADER_BYTES as u64 <= end {
        if let Ok(header) = header(file, seed, position, end)
            && header.base_offset >= expected
        {
            return Some((position, header));
        }
        position += ALIGNMENT as u64;
    }
    None
}

/// What is wrong with the records of a batch whose checksums hold.
pub(super) fn check_records(batch: &Batch) -> Result<(), Invalid> {
    let mut body_bytes = 0;
    let mut records = batch.records();
    while let Some(next) = records.next_encoded() {
        let (_, bytes) = next?;
        crate::format::record::RecordView::decode(bytes)?;
        body_bytes = bytes.as_ptr() as usize + bytes.len() - batch.body().as_ptr() as usize;
    }
    if body_bytes != batch.body().len() {
        return Err(Invalid::new("a batch holds more than its records", body_bytes));
    }
    Ok(())
}

/// Checks a segment; see the [module](self).
pub(super) fn check(run: &mut Run<'_>, disk: &dyn Disk, subject: &Subject<'_>) -> Result<()> {
    // 1.
    let mut file = match PagedFile::open(disk, &subject.path) {
        Ok(file) => file,
        Err(_) if !(subject.is_listed)() => return Ok(()),
        Err(error) => {
            let detail = match error.kind() {
                std::io::ErrorKind::NotFound => "the segment is missing".to_owned(),
                _ => format!("the segment cannot be opened: {error}"),
            };
            let end = subject.next_offset.unwrap_or(Offset::MAX);
            run.find_in_topic(
                Severity::Unreadable,
                subject.topic,
                Some(subject.base_offset..end),
                (&subject.path, 0),
                detail,
            );
            return Ok(());
        }
    };
    run.report.checked.segments += 1;
    // 2.
    let header = check_header(run, subject, &mut file);
    let known = subject.owner.map(|(_, topic)| topic).or(header.map(|header| header.topic));
    let Some(topic) = known.or_else(|| topic_by_footer(&mut file)) else {
        return Ok(());
    };
    let mut walk = Walk {
        seed: seed(topic),
        topic_uid: topic,
        expected: subject.base_offset,
        last_time: Timestamp::ZERO,
        builder: IndexBuilder::new(subject.base_offset),
        terms: TermMap::default(),
        are_terms_known: true,
        is_whole: true,
        subject,
    };
    // 3.
    let is_sealed = subject.data_bytes.is_none();
    let footer = if is_sealed { walk.check_footer(run, &mut file)? } else { None };
    let end = match (subject.data_bytes, &footer) {
        (Some(data_bytes), _) => data_bytes,
        (None, Some(footer)) => footer.data_bytes,
        (None, None) => file.len(),
    };
    if file.len() < end {
        let detail =
            format!("the segment has {} bytes, but {end} were synced: the topic is refused", file.len());
        walk.damage(run, subject.base_offset..subject.next_offset.unwrap_or(Offset::MAX), file.len(), detail);
    }
    // 4.
    walk.batches(run, &mut file, end, is_sealed && footer.is_none())?;
    // 5.
    if let Some(footer) = &footer {
        walk.compare(run, &mut file, footer);
        // 6.
        walk.compare_terms(run, disk, footer)?;
    }
    run.pace(file.take_read())
}

fn check_header(run: &mut Run<'_>, subject: &Subject<'_>, file: &mut PagedFile) -> Option<SegmentHeader> {
    let bytes = file.bytes(0, HEADER_BYTES as u64);
    // Readers do without it: every batch carries what ties it to its topic.
    let mut note = |severity, detail: String| {
        run.find_in_topic(severity, subject.topic, None, (&subject.path, 0), detail);
    };
    match SegmentHeader::decode(&bytes) {
        Ok(header) => {
            let is_owners =
                subject.owner.is_none_or(|(store, topic)| header.store == store && header.topic == topic);
            if !is_owners {
                note(Severity::Redundant, "the header names another store or topic".into());
            } else if header.base_offset != subject.base_offset {
                let found = header.base_offset;
                note(Severity::Redundant, format!("the header names base offset {found}, not the file's"));
            }
            Some(header)
        }
        Err(HeaderProblem::Newer(found)) => {
            let detail = format!("the segment has format version {found}, this build reads {FORMAT_VERSION}");
            note(Severity::Unreadable, detail);
            None
        }
        Err(HeaderProblem::Blank) => {
            note(Severity::Redundant, "the segment header is blank".into());
            None
        }
        Err(HeaderProblem::Invalid(invalid)) => {
            note(Severity::Redundant, invalid.detail.into());
            None
        }
    }
}

/// The way through the batches.
struct Walk<'a, 's> {
    subject: &'s Subject<'a>,
    topic_uid: Uid,
    seed: u32,
    /// The offset that the next batch must have, or one behind it where compaction took records out.
    expected: Offset,
    last_time: Timestamp,
    builder: IndexBuilder,
    terms: TermMap,
    /// Whether the records of every batch could be read.
    are_terms_known: bool,
    /// Whether the header of every batch was intact, so that index and footer can be compared.
    is_whole: bool,
}

impl Walk<'_, '_> {
    /// Damage that takes `offsets`, as far as they were not trimmed.
    fn damage(&self, run: &mut Run<'_>, offsets: Range<Offset>, position: u64, detail: impl Into<String>) {
        let offsets = offsets.start.max(self.subject.log_start)..offsets.end;
        let is_lost = offsets.start < offsets.end;
        run.find_in_topic(
            if is_lost { Severity::Unreadable } else { Severity::Redundant },
            self.subject.topic,
            is_lost.then_some(offsets),
            (&self.subject.path, position),
            detail,
        );
    }

    /// Damage that readers do without.
    fn note(&self, run: &mut Run<'_>, position: u64, detail: impl Into<String>) {
        run.find_in_topic(
            Severity::Redundant,
            self.subject.topic,
            None,
            (&self.subject.path, position),
            detail,
        );
    }

    fn check_footer(&self, run: &mut Run<'_>, file: &mut PagedFile) -> Result<Option<Footer>> {
        let file_bytes = file.len();
        let at = file_bytes.saturating_sub(FOOTER_BYTES as u64);
        let bytes = file.bytes(at, FOOTER_BYTES as u64);
        let detail = match Footer::decode(&bytes, self.seed, file_bytes) {
            Ok(footer) => {
                let subject = self.subject;
                let is_same = footer.base_offset == subject.base_offset
                    && footer.topic == self.topic_uid
                    && subject.next_offset.is_none_or(|next| next == footer.next_offset);
                if is_same {
                    self.check_against_checkpoint(run, &footer, at, file_bytes);
                    return Ok(Some(footer));
                }
                "the footer is of another segment"
            }
            Err(HeaderProblem::Newer(found)) => {
                let supported = u32::from(FORMAT_VERSION);
                return Err(Error::NewerFormat { path: self.subject.path.clone(), found, supported });
            }
            Err(HeaderProblem::Blank) => "the footer is blank",
            Err(HeaderProblem::Invalid(invalid)) => invalid.detail,
        };
        // Where nothing but the file is known, it may be one that was not sealed.
        if self.subject.sealed.is_some() {
            self.note(run, at, detail);
        }
        Ok(None)
    }

    fn check_against_checkpoint(&self, run: &mut Run<'_>, footer: &Footer, at: u64, file_bytes: u64) {
        let Some(sealed) = self.subject.sealed else { return };
        let is_same = (sealed.bytes, sealed.record_count, sealed.first_time, sealed.last_time)
            == (file_bytes, footer.record_count, footer.first_time, footer.last_time);
        if !is_same {
            self.note(run, at, "the footer says something else than the checkpoint");
        }
    }

    /// Step 4. `is_end_unknown`: somewhere before `end` the batches end and the index begins.
    fn batches(
        &mut self,
        run: &mut Run<'_>,
        file: &mut PagedFile,
        end: u64,
        is_end_unknown: bool,
    ) -> Result<()> {
        let mut position = HEADER_BYTES as u64;
        while position < end {
            run.pace(file.take_read())?;
            match spot(file, self.seed, position, end) {
                Spot::Batch(batch) => {
                    run.report.checked.batches += 1;
                    run.report.checked.records += u64::from(batch.header().record_count);
                    if let Err(invalid) = check_records(&batch) {
                        self.damage(run, batch.base_offset()..batch.next_offset(), position, invalid.detail);
                    }
                    self.terms.push_batch(&batch);
                    self.take(run, file, position, batch.header());
                    position += batch.header().stored_bytes() as u64;
                }
                Spot::Header(header, problem) => {
                    run.report.checked.batches += 1;
                    self.are_terms_known = false;
                    match problem {
                        BodyProblem::CodecUnavailable(_) => run.report.checked.batches_not_decoded += 1,
                        BodyProblem::Invalid(invalid) => {
                            let range = position..position + header.batch_bytes() as u64;
                            let detail = self.reason(file, range, invalid.detail);
                            self.damage(run, header.base_offset..header.next_offset(), position, detail);
                        }
                    }
                    self.take(run, file, position, &header);
                    position += header.stored_bytes() as u64;
                }
                Spot::Bad(_) if is_end_unknown && self.can_end_here(position, end) => break,
                Spot::Bad(invalid) => {
                    self.is_whole = false;
                    let detail =
                        self.reason(file, position..position + batch::HEADER_BYTES as u64, invalid.detail);
                    let Some((found, header)) =
                        next_header(file, self.seed, position + ALIGNMENT as u64, end, self.expected)
                    else {
                        let limit = self.subject.next_offset.unwrap_or(self.expected).max(self.expected);
                        self.damage(run, self.expected..limit, position, detail);
                        self.expected = limit;
                        break;
                    };
                    self.damage(run, self.expected..header.base_offset, position, detail);
                    self.expected = header.base_offset;
                    position = found;
                }
            }
        }
        let Some(limit) = self.subject.next_offset else { return Ok(()) };
        // Of a rewritten segment the last records may have been taken out; without a footer the checkpoint says how many stayed.
        let is_short = |sealed: SealedSegment| self.builder.record_count() < sealed.record_count;
        let is_missing =
            self.subject.rewrites == 0 || is_end_unknown && self.subject.sealed.is_some_and(is_short);
        if self.expected < limit && is_missing {
            self.damage(run, self.expected..limit, position.min(end), "the segment ends too early");
        }
        Ok(())
    }

    /// Whether the batches may end at `position` of a file whose footer does not say: index and footer would just
    /// fill the rest.
    fn can_end_here(&self, position: u64, file_bytes: u64) -> bool {
        let is_complete = match self.subject.next_offset {
            Some(next_offset) => self.expected == next_offset,
            // Nothing but the file is known.
            None => true,
        };
        is_complete || position + (self.builder.entries().len() + FOOTER_BYTES) as u64 == file_bytes
    }

    fn reason(&self, file: &PagedFile, range: Range<u64>, detail: &'static str) -> &'static str {
        if file.is_unreadable(range) { "the disk cannot read it" } else { detail }
    }

    /// Takes a batch with an intact header into the sums.
    fn take(&mut self, run: &mut Run<'_>, file: &mut PagedFile, position: u64, header: &BatchHeader) {
        let (found, expected) = (header.base_offset, self.expected);
        if found < expected {
            self.damage(
                run,
                found..header.next_offset(),
                position,
                format!("a batch starts at offset {found} although the one before ends at {expected}"),
            );
        } else if found > expected && self.subject.rewrites == 0 {
            self.damage(run, expected..found, position, "batches are missing before this one");
        }
        if self.subject.next_offset.is_some_and(|limit| header.next_offset() > limit)
            && self.subject.sealed.is_some()
        {
            self.note(run, position, "a batch reaches beyond the offsets of its segment");
        }
        if header.append_time < self.last_time {
            self.note(run, position, "a batch is older than the one before it");
        }
        let padding_at = position + header.batch_bytes() as u64;
        let padding = file.bytes(padding_at, (header.stored_bytes() - header.batch_bytes()) as u64);
        if padding.iter().any(|&byte| byte != 0) {
            self.note(run, padding_at, "the padding of a batch is not zeros");
        }
        let start: Bytes = file.bytes(position, 4);
        self.builder.push_at(position, header, &start);
        self.last_time = self.last_time.max(header.append_time);
        self.expected = expected.max(header.next_offset());
    }

    /// Step 6: the index of its terms. One of another content is as good as none.
    fn compare_terms(&self, run: &mut Run<'_>, disk: &dyn Disk, footer: &Footer) -> Result<()> {
        let path = self.subject.path.with_extension("terms");
        if !self.is_whole || !self.are_terms_known || !self.terms.is_whole() {
            return Ok(());
        }
        let Ok(mut file) = PagedFile::open(disk, &path) else { return Ok(()) };
        let header = TermsHeader {
            content: Content::Segment,
            topic: self.topic_uid,
            base_offset: footer.base_offset,
            next_offset: footer.next_offset,
            batch_hash: footer.batch_hash,
        };
        let bytes = file.bytes(0, file.len());
        // A later version's is its own to check.
        let is_others = match TermsHeader::decode(&bytes) {
            Ok(found) => found != header,
            Err(problem) => matches!(problem, HeaderProblem::Newer(_)),
        };
        if is_others {
            run.report.checked.leftover_files += 1;
        } else if self.terms.encode(header) != bytes {
            let detail = "the index of the segment's terms is not the one that its batches give";
            run.find_in_topic(Severity::Redundant, self.subject.topic, None, (&path, 0), detail);
        }
        run.pace(file.take_read())
    }

    /// Step 5: index and footer against what the batches give.
    fn compare(&self, run: &mut Run<'_>, file: &mut PagedFile, footer: &Footer) {
        let index_bytes = u64::from(footer.index_count) * INDEX_ENTRY_BYTES as u64;
        let index = file.bytes(footer.data_bytes, index_bytes);
        if index_crc(footer.base_offset, &index) != footer.index_crc {
            self.note(run, footer.data_bytes, "the checksum of the index does not match");
        } else if self.is_whole && index != self.builder.entries() {
            self.note(run, footer.data_bytes, "the index does not lead to the batches");
        }
        let footer_at = footer.data_bytes + index_bytes;
        let given = self.builder.footer(self.topic_uid, footer.next_offset);
        let parts = [
            ("hash of batches", given.batch_hash == footer.batch_hash),
            ("count of records", given.record_count == footer.record_count),
            ("first time", given.first_time == footer.first_time),
            ("last time", given.last_time == footer.last_time),
            ("length of the batches", given.data_bytes == footer.data_bytes),
        ];
        for (what, is_same) in parts {
            if self.is_whole && !is_same {
                self.note(run, footer_at, format!("the {what} in the footer is not that of the batches"));
            }
        }
    }
}

/// The topic of a segment whose header does not say: what its footer does.
pub(crate) fn topic_by_footer(file: &mut PagedFile) -> Option<Uid> {
    let at = file.len().checked_sub(FOOTER_BYTES as u64)?;
    let bytes = file.bytes(at, FOOTER_BYTES as u64);
    // The footer's checksum begins with the seed that its uid gives: nothing else would verify.
    let uid = Uid(bytes.get(16..32)?.try_into().ok()?);
    Footer::decode(&bytes, seed(uid), file.len()).ok().map(|footer| footer.topic)
}

/// A path of a file, for those who only have one.
pub(super) fn name_of(path: &Path) -> Option<(Offset, u32)> {
    crate::segment::parse_file_name(path.file_name()?.to_str()?)
}
