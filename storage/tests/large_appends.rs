//! Appends about as large as they may be, through the public interface.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use quipu_storage::{
    Append, Appended, Durability, Error, Offset, Producer, Record, Result, Revision, Start, Storage, Store,
    StoreSettings, TopicSettings,
};

/// An append may take half a journal file.
fn small() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 512 << 10,
        append_bytes_max: 32 << 10,
        background: false,
        ..StoreSettings::default()
    }
}

fn open(dir: &Path) -> Store {
    Store::builder().settings(small()).open(dir).unwrap()
}

/// Records of one key that are as short as can be: 4 bytes each.
fn shortest(count: usize) -> Vec<Record> {
    let mut record = Record::keyed("", "");
    record.payload = None;
    vec![record; count]
}

/// Opens a copy of what is on the disk now: what a killed process leaves.
fn killed(dir: &Path) -> (tempfile::TempDir, Store) {
    let copy = tempfile::tempdir().unwrap();
    copy_all(dir, copy.path());
    let store = open(copy.path());
    assert!(!store.recovery().was_clean);
    (copy, store)
}

fn copy_all(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(std::result::Result::unwrap) {
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type().unwrap().is_dir() {
            copy_all(&from, &to);
        } else {
            std::fs::copy(from, to).unwrap();
        }
    }
}

/// The bounds of an append counted its records, not the revisions that its batch notes of them: with revisions of four
/// bytes a frame was longer than a journal file. It was acknowledged, and after a kill the store did not open.
#[test]
fn an_append_whose_revisions_make_it_longer_than_a_journal_file_is_refused_and_the_store_opens_after_a_kill()
{
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    let records = shortest(8192);
    let append = |records: &[Record]| {
        store.append(Append::new().durability(Durability::Written).records(&topic, records)?)
    };
    let (mut next, mut refused) = (Offset(0), 0);
    // A revision takes 3 bytes from 2^14 on, 4 from 2^21 on.
    while next < Offset((1 << 21) + 3 * 8192) {
        let appended = match append(&records) {
            Err(Error::AppendTooLarge { what, actual, limit }) => {
                assert_eq!(what, "bytes in the journal");
                assert!(actual > limit, "{actual} {limit}");
                assert_eq!(topic.log_end_offset(), next);
                refused += 1;
                append(&records[..5000]).unwrap()
            }
            outcome => outcome.unwrap(),
        };
        assert_eq!((appended[0].first_offset, appended[0].revisions[0]), (next, Revision(next.0)));
        next = appended[0].next_offset;
    }
    assert!(refused > 0);
    let (_copy, store) = killed(dir.path());
    assert_eq!(store.topic("t").unwrap().log_end_offset(), next);
}

/// Whether an append fits depends on the revisions that it would get now; those of a repeat are given already.
#[test]
fn a_repeat_that_would_be_too_large_by_now_gets_the_first_answer_and_one_that_was_refused_uses_no_sequence_up()
 {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let topic = store.topic_or_create("t").unwrap();
    let records = shortest(7500);
    let produce = |count: usize, sequence| -> Result<(Vec<Appended>, bool)> {
        let producer = Producer { name: "p".into(), epoch: 1, sequence };
        let ticket =
            store.submit(Append::new().records(&topic, &records[..count]).unwrap().producer(producer))?;
        let is_duplicate = ticket.is_duplicate();
        Ok((ticket.wait()?, is_duplicate))
    };
    let (first, _) = produce(7500, 0).unwrap();
    let (second, _) = produce(7500, 1).unwrap();
    let too_large = produce(7500, 2);
    assert!(matches!(too_large, Err(Error::AppendTooLarge { .. })), "{too_large:?}");
    assert_eq!(topic.log_end_offset(), Offset(15_000));
    assert_eq!(produce(7500, 0).unwrap(), (first, true));
    assert_eq!(produce(7500, 1).unwrap(), (second, true));
    let (third, is_duplicate) = produce(5000, 2).unwrap();
    assert_eq!((third[0].first_offset, is_duplicate), (Offset(15_000), false));
}

/// An append of as many bytes as any may have made a batch that was longer than any may be, by its header. It was
/// acknowledged, and could not be read.
#[test]
fn an_append_that_makes_a_longer_batch_than_any_may_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let settings = StoreSettings {
        journal_file_bytes: 128 << 20,
        journal_bytes_max: 384 << 20,
        append_bytes_max: 64 << 20,
        ..small()
    };
    let store = Store::builder().settings(settings).open(dir.path()).unwrap();
    let settings =
        TopicSettings { storage: Storage::Memory { bytes_max: 256 << 20 }, ..TopicSettings::default() };
    let topic = store.create_topic("t", settings).unwrap();
    // The body of 64 records with a payload each is 64 MiB.
    let record = Record::new(vec![0; (1 << 20) - 8]);
    let records = vec![record; 64];
    let outcome = topic.append_with(&records, Durability::Written);
    assert!(matches!(outcome, Err(Error::AppendTooLarge { what: "bytes of a batch", .. })), "{outcome:?}");
    topic.append_with(&records[..63], Durability::Written).unwrap();
    let read = topic.read(Start::Earliest).unwrap();
    assert!(read.map(Result::unwrap).map(|record| record.offset()).eq((0..63).map(Offset)));
}
