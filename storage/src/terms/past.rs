//! The last revisions of keys whose records are gone.
//!
//! A revision never goes back, also when retention, trimming or compaction has removed every record of a key. So before
//! segments go, the last revisions of their keys are written into files of the past, and synced: a later append of such a
//! key counts on from there.
//!
//! There are few files: a new one is merged with the one before as long as that is not twice as large. What several say of
//! a key, the highest holds; so it does no harm if a crash leaves the files that were merged beside the new one, or a past
//! of segments that did not go.
//!
//! Other than the indexes of segments these files cannot be made again. One that is damaged is an error for whoever needs
//! it: to guess would be to let a revision go back.

use std::collections::{BTreeMap, VecDeque};
use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use super::file::{KeyOf, TermsFile, Unusable};
use super::lookup::Parts;
use super::recent;
use super::sealed::SealedTerms;
use crate::disk::{EntryKind, OpenMode};
use crate::error::{Error, Result};
use crate::format::terms::build::TermsBuilder;
use crate::format::terms::{Content, TermsHeader, hash::hash};
use crate::segment::Segment;
use crate::topic::TopicInner;
use crate::types::{Offset, Position, Revision};

/// How often the files are listed again because others removed one meanwhile.
const LOOKS_MAX: u32 = 8;
/// How much of a file is written at once.
const WRITE_BYTES: usize = 1 << 20;

/// The name of a file of the past.
fn file_name(number: u64) -> String {
    format!("{number:020}.past")
}

/// Its number, if `name` is the name of one.
pub(crate) fn parse_file_name(name: &str) -> Option<u64> {
    let number = name.strip_suffix(".past")?.parse().ok()?;
    (file_name(number) == name).then_some(number)
}

/// Files with their numbers.
type PastFiles = Vec<(u64, Arc<TermsFile>)>;

/// See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct Past {
    /// In order of their numbers; `None` before they were looked for.
    files: Mutex<Option<PastFiles>>,
    writing: Mutex<()>,
}

impl TopicInner {
    /// The last revision of a key in the past.
    pub(crate) fn past_revision(&self, hash: u64, term: &[u8]) -> Result<Option<Revision>> {
        let mut looks = 0;
        'again: loop {
            looks += 1;
            let mut last = None;
            for (_, file) in self.past_files()? {
                match file.find(hash, term) {
                    Ok(found) => last = last.max(found.and_then(|found| Some(found.entry.revisions?.1))),
                    // It was merged meanwhile.
                    Err(Unusable::Absent) if !self.is_past_listed(&file) && looks < LOOKS_MAX => {
                        continue 'again;
                    }
                    Err(unusable) => return Err(damaged(&file.path, unusable)),
                }
            }
            return Ok(last);
        }
    }

    /// Whether it was found before that no key has a past.
    pub(crate) fn is_past_known_empty(&self) -> bool {
        // Whoever holds it may be looking at the disk.
        let files = self.terms.past.files.try_lock();
        files.is_ok_and(|files| files.as_ref().is_some_and(Vec::is_empty))
    }

    fn is_past_listed(&self, file: &Arc<TermsFile>) -> bool {
        let files = self.terms.past.files.lock().expect("no panic under this lock");
        files.iter().flatten().any(|(_, listed)| Arc::ptr_eq(listed, file))
    }

    fn past_files(&self) -> Result<PastFiles> {
        let mut files = self.terms.past.files.lock().expect("no panic under this lock");
        if let Some(files) = files.as_ref().filter(|_| !self.context.is_read_only) {
            return Ok(files.clone());
        }
        // What another process does to them nobody says: whoever only reads lists them each time.
        let mut looks = 0;
        let found = loop {
            looks += 1;
            match self.list_past() {
                Ok(found) => break found,
                Err(Unusable::Absent) if self.context.is_read_only && looks < LOOKS_MAX => {}
                Err(unusable) => return Err(damaged(&self.dir, unusable)),
            }
        };
        Ok(if self.context.is_read_only { found } else { files.insert(found).clone() })
    }

    fn list_past(&self) -> Result<PastFiles, Unusable> {
        let entries = match self.context.disk.list(&self.dir) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            entries => entries.map_err(|error| Unusable::Io(Error::io("list", &self.dir, error)))?,
        };
        let mut found = Vec::new();
        for entry in entries.iter().filter(|entry| entry.kind == EntryKind::File) {
            if let Some(number) = parse_file_name(&entry.name) {
                found.push((number, self.open_past(&self.dir.join(&entry.name))?));
            }
        }
        found.sort_by_key(|(number, _)| *number);
        Ok(found)
    }

    fn open_past(&self, path: &Path) -> Result<Arc<TermsFile>, Unusable> {
        let is_wanted = |header: &TermsHeader| header.content == Content::Past && header.topic == self.uid;
        match TermsFile::open(&self.context.disk, path, is_wanted).map(Arc::new) {
            Err(Unusable::Absent) if self.context.is_read_only => Err(Unusable::Absent),
            opened => opened.map_err(|unusable| Unusable::Io(damaged(path, unusable))),
        }
    }

    /// Keeps the last revisions of all keys in segments that go when the log starts at `offset`. Durable when this returns.
    pub(crate) fn keep_past(self: &Arc<Self>, offset: Offset) -> Result<()> {
        // Whoever comes to the topic first removes what he finds unfinished.
        self.check_files()?;
        let _writing = self.terms.past.writing.lock().expect("no panic under this lock");
        let mut kept = Vec::new();
        while !self.try_keep_past(offset, &mut kept)? {}
        Ok(())
    }

    /// The same without the segments that are kept. `false`: one of the others went meanwhile, and it must be looked again. If
    /// compaction replaced it, its records are in another one now, of which it kept only those that it took out.
    fn try_keep_past(self: &Arc<Self>, offset: Offset, kept: &mut Vec<Arc<Segment>>) -> Result<bool> {
        let head = self.head();
        let active = head.active.map(|active| active.base_offset);
        // What is only in memory is asked for if some of it goes.
        let segments = self.segments();
        let sealed_end =
            segments.iter().filter(|segment| segment.sealed().is_some()).map(|segment| segment.next_offset());
        let parts = if self.terms.recent.is_known() || sealed_end.max() < Some(offset) {
            self.parts()?
        } else {
            Parts { sealed: Vec::clone(&segments), recent: Vec::new(), stamp: (0, 0) }
        };
        for segment in parts.sealed.iter().filter(|segment| segment.next_offset() <= offset) {
            if kept.iter().any(|one| Arc::ptr_eq(one, segment)) {
                continue;
            }
            let keys = match self.may_have_revisions(segment) {
                Ok(true) => self.ask(segment, keys_of),
                Ok(false) => continue,
                Err(error) => Err(error),
            };
            match keys {
                Err(Error::Io { .. }) if !super::is_listed(self, segment) => return Ok(false),
                keys => self.add_past(offset, keys?)?,
            }
            kept.push(Arc::clone(segment));
        }
        for (base, map) in &parts.recent {
            let end = self.tail().segment_end(*base);
            let end = end.or_else(|| self.listed_end(*base)).unwrap_or(head.next_offset);
            let goes = end <= offset && (active != Some(*base) || offset == head.next_offset);
            if goes {
                let map = recent::read(map);
                let key = |(term, entry): (&[u8], &super::map::MapEntry)| KeyOf {
                    term: term.to_vec(),
                    last: entry.last().revision,
                    count: entry.offsets().len() as u64,
                };
                let keys = map.sorted().into_iter().filter(|(term, _)| super::batch_terms::is_key(term));
                self.add_past(offset, keys.map(key).collect())?;
            }
        }
        Ok(true)
    }

    fn listed_end(&self, base_offset: Offset) -> Option<Offset> {
        let segments = self.segments();
        let segment = segments.iter().find(|segment| segment.base_offset == base_offset);
        segment.map(|segment| segment.next_offset())
    }

    /// Keeps the revisions of records that compaction removes.
    pub(crate) fn keep_removed(
        &self,
        next_offset: Offset,
        removed: BTreeMap<Vec<u8>, Revision>,
    ) -> Result<()> {
        let _writing = self.terms.past.writing.lock().expect("no panic under this lock");
        let key = |(term, last)| KeyOf { term, last: Some(last), count: 0 };
        self.add_past(next_offset, removed.into_iter().map(key).collect())
    }

    /// Writes a new file of the past, and merges it with those before as long as they are small.
    fn add_past(&self, next_offset: Offset, mut keys: Vec<KeyOf>) -> Result<()> {
        for key in &mut keys {
            if key.last.is_none() {
                // From before there were revisions: counted on from what came before.
                let before = self.past_revision(hash(self.uid, &key.term), &key.term)?;
                let count = before.map_or(0, |before| before.0.saturating_add(1)).saturating_add(key.count);
                key.last = Some(Revision(count.saturating_sub(1)));
            }
        }
        if keys.is_empty() {
            return Ok(());
        }
        let count = keys.len() as u64;
        let mut keys = keys.into_iter();
        let mut next = || Ok(keys.next().and_then(|key| Some((key.term, key.last?))));
        self.write_past(next_offset, count, &mut next, 0)?;
        loop {
            let files = self.past_files()?;
            let [.., (_, a), (_, b)] = &files[..] else { return Ok(()) };
            if a.term_count > b.term_count.saturating_mul(2) {
                return Ok(());
            }
            let (mut first, mut second) = (Keys::new(a), Keys::new(b));
            let mut next = || merge(&mut first, &mut second);
            self.write_past(next_offset, a.term_count + b.term_count, &mut next, 2)?;
        }
    }

    /// Writes a file of the past in the place of the last so many.
    fn write_past(
        &self,
        next_offset: Offset,
        keys_max: u64,
        next: &mut dyn FnMut() -> Result<Option<(Vec<u8>, Revision)>>,
        replaces: usize,
    ) -> Result<()> {
        let context = &*self.context;
        let files = self.past_files()?;
        let number = files.last().map_or(0, |(number, _)| number + 1);
        let path = self.dir.join(file_name(number));
        let aside = path.with_extension("past.new");
        let header = TermsHeader {
            content: Content::Past,
            topic: self.uid,
            base_offset: Offset::ZERO,
            next_offset,
            batch_hash: 0,
        };
        let failed = |error| Error::io("write", &aside, error);
        context
            .disk
            .create_dir(&self.dir)
            .map_err(|error| Error::io("create directory", &self.dir, error))?;
        let mut write = || {
            let mut builder = TermsBuilder::new(header, keys_max);
            match context.disk.remove(&aside) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
            let file = context.disk.open(&aside, OpenMode::Create).map_err(failed)?;
            let mut written = 0;
            let mut put = |bytes: Vec<u8>| {
                file.write_at(&[IoSlice::new(&bytes)], written).map_err(failed)?;
                written += bytes.len() as u64;
                Ok::<_, Error>(())
            };
            while let Some((term, last)) = next()? {
                builder.add_past(&term, last);
                if builder.ready_bytes() >= WRITE_BYTES {
                    put(builder.take())?;
                }
            }
            put(builder.finish())?;
            // Nothing depends on this file yet: a failed sync of it costs only the file.
            file.sync().map_err(failed)
        };
        if let Err(error) = write() {
            let _ = context.disk.remove(&aside);
            return Err(error);
        }
        context.disk.rename(&aside, &path).map_err(|error| Error::io("rename", &path, error))?;
        context.sync_dir(&self.dir)?;
        context.sync_dir(&context.topics_dir())?;
        let file = self.open_past(&path).map_err(|unusable| damaged(&path, unusable))?;
        let replaced: Vec<PathBuf> = {
            let mut listed = self.terms.past.files.lock().expect("no panic under this lock");
            let listed = listed.get_or_insert_default();
            let from = listed.len() - replaces;
            let replaced = listed.drain(from..).map(|(_, file)| file.path.clone()).collect();
            listed.push((number, file));
            replaced
        };
        for path in replaced {
            // If it stays, it says nothing that the new one does not.
            let _ = context.disk.remove(&path);
        }
        Ok(())
    }
}

fn keys_of(terms: &SealedTerms) -> Result<Vec<KeyOf>, Unusable> {
    match terms {
        SealedTerms::File(file) => {
            let mut keys = Vec::new();
            let mut number = 0;
            while let Some(more) = file.block_of_keys(number)? {
                keys.extend(more);
                number += 1;
            }
            Ok(keys)
        }
        SealedTerms::Map(map) => {
            let keys = map.sorted().into_iter().filter(|(term, _)| super::batch_terms::is_key(term));
            let key = |(term, entry): (&[u8], &super::map::MapEntry)| KeyOf {
                term: term.to_vec(),
                last: entry.last().revision,
                count: entry.offsets().len() as u64,
            };
            Ok(keys.map(key).collect())
        }
    }
}

/// It cannot be made again.
fn damaged(path: &Path, unusable: Unusable) -> Error {
    match unusable {
        Unusable::Io(error) | Unusable::Unreadable(error) => error,
        Unusable::Absent | Unusable::Damaged => Error::CorruptFile {
            path: path.into(),
            position: Position::ZERO,
            detail:
                "the last revisions of keys that have no records any more cannot be read; restore the file"
                    .into(),
        },
    }
}

/// The keys of a file of the past, one after the other.
struct Keys<'a> {
    file: &'a TermsFile,
    block: usize,
    ready: VecDeque<KeyOf>,
}

impl<'a> Keys<'a> {
    fn new(file: &'a TermsFile) -> Self {
        Self { file, block: 0, ready: VecDeque::new() }
    }

    fn peek(&mut self) -> Result<Option<&KeyOf>> {
        while self.ready.is_empty() {
            let keys =
                self.file.block_of_keys(self.block).map_err(|error| damaged(&self.file.path, error))?;
            let Some(keys) = keys else { return Ok(None) };
            self.ready.extend(keys);
            self.block += 1;
        }
        Ok(self.ready.front())
    }

    fn next(&mut self) -> Option<(Vec<u8>, Revision)> {
        let key = self.ready.pop_front()?;
        Some((key.term, key.last.unwrap_or(Revision::ZERO)))
    }
}

/// The next key of two files, with the higher revision where both have it.
fn merge(a: &mut Keys<'_>, b: &mut Keys<'_>) -> Result<Option<(Vec<u8>, Revision)>> {
    use std::cmp::Ordering;
    let order = match (a.peek()?, b.peek()?) {
        (None, None) => return Ok(None),
        (Some(_), None) => Ordering::Less,
        (None, Some(_)) => Ordering::Greater,
        (Some(a), Some(b)) => a.term.cmp(&b.term),
    };
    Ok(match order {
        Ordering::Less => a.next(),
        Ordering::Greater => b.next(),
        Ordering::Equal => {
            let other = a.next();
            b.next().zip(other).map(|((term, one), (_, other))| (term, one.max(other)))
        }
    })
}
