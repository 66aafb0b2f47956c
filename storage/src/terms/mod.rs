//! Terms: which records of a topic have a key, a type or a tag, found without reading the others. And streams, which are
//! the records of a key, numbered by revisions.
//!
//! ```text
//!  past keys │ sealed │ sealed │ sealed │ active │ tail
//!   *.past   │ *.terms│ *.terms│      recent, in memory      ──> offsets
//! ```
//!
//! | Module | What it does |
//! |---|---|
//! | [`batch_terms`] | the terms of an append, found before its locks are taken |
//! | [`quick_hash`] | the hash of a term in memory |
//! | [`map`] | the terms of one segment, in memory |
//! | [`recent`] | the maps of the segments that are being filled |
//! | [`file`] | an index on the disk |
//! | [`sealed`] | the index of a sealed segment: opened, made anew, written |
//! | [`past`] | last revisions of keys whose records are gone |
//! | [`settled`] | last revisions of keys whose segments were sealed lately |
//! | [`lookup`] | a term over all of a topic |
//! | [`revisions`] | the revisions of an append's records |
//!
//! Promises:
//!
//! - T1 What the terms say is what the records say. An index that is missing, has changed since it was written or is of
//!   another content is made anew; none is ever needed to open a store, and none is read when it opens.
//! - T2 The revisions of a key rise by one with each record of it, from 0, in the order of offsets. They stand in the batch,
//!   under its checksum. They never go back, whatever retention, trimming and compaction remove.
//! - T3 No file is touched under the store's writer lock.
//! - T4 A term that no record has costs a look at a filter in memory for each segment, and for about one segment in a
//!   hundred a block of 4 KiB.
//! - T5 Memory: the maps of segments that are being filled, each bounded; and filters and the tables of settled keys, each
//!   bounded over all segments. In a topic in memory a key whose records are all gone begins anew, as after a restart.
//! - T6 What an index that is made anew lacks, because batches are damaged, it knows by its offsets. Readers meet the damage
//!   there as any reader does. An append gives a key that it cannot tell the last revision of one that it surely never had:
//!   the offset behind the damage, since no record has a revision above its offset. A condition that rests on it is refused.
//!   With a trim (or retention) over them these records are given up: a key that only they had begins anew.
//!
//! Locks: gathering or writing of the past, a map that grows no more, slot of a segment, writing of indexes, recent, a map.
//! Recent is taken under the store's writer lock, and a map; the others never are.

pub(crate) mod batch_terms;
pub(crate) mod file;
pub(crate) mod lookup;
pub(crate) mod map;
pub(crate) mod past;
pub(crate) mod quick_hash;
pub(crate) mod recent;
pub(crate) mod revisions;
pub(crate) mod sealed;
pub(crate) mod settled;

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard};

use crate::segment::Segment;
use crate::topic::TopicInner;
use past::Past;
use recent::Recent;

/// What a topic knows of its terms. See the [module](self).
#[derive(Debug, Default)]
pub(crate) struct TopicTerms {
    pub(crate) recent: Recent,
    pub(crate) past: Past,
    /// Whether a segment was sealed whose terms are still in memory.
    pub(crate) is_due: AtomicBool,
    gathering: Mutex<()>,
    writing: Mutex<()>,
}

impl TopicTerms {
    pub(crate) fn new(recent: Recent) -> Self {
        Self { recent, ..Self::default() }
    }

    /// While this is held no index is written.
    pub(crate) fn lock_writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().expect("no panic under this lock")
    }
}

/// Whether a name in a topic's directory is one of ours here, finished or not.
pub(crate) fn is_file_name(name: &str) -> bool {
    let name = name.strip_suffix(".new").unwrap_or(name);
    past::parse_file_name(name).is_some() || sealed::parse_file_name(name).is_some()
}

fn is_listed(topic: &TopicInner, segment: &Arc<Segment>) -> bool {
    topic.segments().iter().any(|listed| Arc::ptr_eq(listed, segment))
}
