//! What the loom tests share, and how a segment publishes records.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p quipu-storage --lib loom --release` tries every interleaving, and every value
//! that the memory model lets a load see. A lost wake-up is a deadlock, which loom reports.

use std::path::PathBuf;
use std::sync::Arc;
use std::task::{Wake, Waker};

use crate::format::checkpoint::SealedSegment;
use crate::format::segment::HEADER_BYTES;
use crate::segment::Segment;
use crate::sync::{AtomicU64, Condvar, Mutex, Ordering};
use crate::types::{Offset, Timestamp, TopicName};

/// A task that sleeps until it is woken.
#[derive(Debug, Default)]
pub(crate) struct Sleeper {
    is_woken: Mutex<bool>,
    woken: Condvar,
}

impl Sleeper {
    /// A sleeper and what wakes it.
    pub(crate) fn new() -> (Arc<Self>, Waker) {
        let sleeper = Arc::new(Self::default());
        (Arc::clone(&sleeper), sleeper.into())
    }

    pub(crate) fn sleep(&self) {
        let mut is_woken = crate::sync::lock(&self.is_woken);
        while !*is_woken {
            is_woken = crate::sync::wait(&self.woken, is_woken);
        }
        *is_woken = false;
    }
}

impl Wake for Sleeper {
    fn wake(self: Arc<Self>) {
        *crate::sync::lock(&self.is_woken) = true;
        self.woken.notify_all();
    }
}

/// Runs a model; the bound on preemptions keeps three threads within seconds.
pub(crate) fn model(body: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(body);
}

/// Bytes of each batch of the segment below.
const BATCH_BYTES: u64 = 64;

fn segment() -> Segment {
    let empty = SealedSegment {
        base_offset: Offset(0),
        rewrites: 0,
        next_offset: Offset(0),
        bytes: HEADER_BYTES as u64,
        record_count: 0,
        first_time: Timestamp(0),
        last_time: Timestamp(0),
    };
    Segment::new(PathBuf::new(), TopicName::new("t").unwrap(), 0, 1 << 20, &empty, false)
}

#[test]
fn a_reader_that_sees_an_offset_sees_its_bytes() {
    model(|| {
        // The file's bytes have no order of their own: what a reader sees of them comes from what is published.
        let file = Arc::new([AtomicU64::new(0), AtomicU64::new(0)]);
        let segment = Arc::new(segment());
        let (writer_file, writer_segment) = (Arc::clone(&file), Arc::clone(&segment));
        let writer = loom::thread::spawn(move || {
            for (number, batch) in (1..).zip(&*writer_file) {
                batch.store(number * 11, Ordering::Relaxed);
                let end = HEADER_BYTES as u64 + number * BATCH_BYTES;
                writer_segment.publish(&[], end, Offset(number));
            }
        });
        let next_offset = segment.next_offset().0;
        let batches = (segment.file_bytes() - HEADER_BYTES as u64) / BATCH_BYTES;
        assert!(batches >= next_offset, "an offset is visible before its bytes");
        for (number, batch) in (1..=batches).zip(&*file) {
            assert_eq!(batch.load(Ordering::Relaxed), number * 11);
        }
        writer.join().unwrap();
    });
}
