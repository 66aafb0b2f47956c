//! The cases of a store's recovery, by the rows of the table in `ARCHITECTURE.md`, one test each.
//!
//! The row of a newer format is in `format.rs`, more of what is left over in `left_over.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu_storage::format::batch::{BatchHeader, seed};
use quipu_storage::format::frame::{FILE_HEADER_BYTES, FileHeader, FrameHeader};
use quipu_storage::format::segment::HEADER_BYTES;
use quipu_storage::verify::{VerifyOptions, verify};
use quipu_storage::{
    Durability, Error, JournalEnd, Offset, Position, Record, Start, Store, Topic, TopicSettings,
};
use quipu_tests::model::run::{STORE, settings};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

fn try_open(disk: &SimDisk) -> quipu_storage::Result<Store> {
    Store::builder().settings(settings()).disk(Arc::new(disk.clone())).open(STORE)
}

fn open(disk: &SimDisk) -> Store {
    try_open(disk).unwrap()
}

fn text(n: u64) -> String {
    format!("record {n} {}", "z".repeat(300))
}

/// Appends up to `end`, without a sync.
fn append(topic: &Topic, end: u64) {
    for n in topic.log_end_offset().0..end {
        topic.append_with(&[Record::new(text(n))], Durability::Written).unwrap();
    }
}

/// A store with two topics of small segments.
fn two_topics(disk: &SimDisk) -> (Store, Topic, Topic) {
    let store = open(disk);
    let small = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", small.clone()).unwrap();
    let other = store.create_topic("other", small).unwrap();
    other.append(&[Record::new(text(0))]).unwrap();
    (store, topic, other)
}

/// The disk of a process that was killed when `t` had `end` records, of which `synced` were synced, and of which
/// `checkpointed` were in segments by then.
fn killed(checkpointed: u64, synced: u64, end: u64) -> SimDisk {
    let disk = SimDisk::new();
    let (store, topic, _) = two_topics(&disk);
    append(&topic, checkpointed);
    store.checkpoint().unwrap();
    append(&topic, synced);
    store.sync().unwrap();
    append(&topic, end);
    disk.after_kill()
}

/// The store holds exactly these records, and no damage.
fn check(store: &Store, end: u64) {
    check_records(store, end);
    assert_eq!(store.stats().damage_found, 0);
}

fn check_records(store: &Store, end: u64) {
    let topic = store.topic("t").unwrap();
    let records = topic.read(Start::Earliest).unwrap().map(|record| {
        let record = record.unwrap();
        assert_eq!(record.payload(), Some(text(record.offset().0).as_bytes()), "{}", record.offset());
        record.offset().0
    });
    assert_eq!(records.collect::<Vec<_>>(), (0..end).collect::<Vec<_>>());
    assert_eq!(topic.log_end_offset(), Offset(end));
    check_other(store);
}

fn check_other(store: &Store) {
    let other = store.topic("other").unwrap().get(Offset(0)).unwrap().unwrap();
    assert_eq!(other.payload(), Some(text(0).as_bytes()));
}

/// Checks, appends and puts everything into segments; then the power goes, and all of it is still there.
fn check_and_go_on(disk: &SimDisk, store: &Store, end: u64) {
    check(store, end);
    append(&store.topic("t").unwrap(), end + 20);
    store.checkpoint().unwrap();
    check(store, end + 20);
    let left = disk.crash_with(CrashMode::LoseAll, &mut Rng::new(end));
    check(&open(&left), end + 20);
    let report = verify(Path::new(STORE), Arc::new(left), VerifyOptions::default()).unwrap();
    assert_eq!(report.findings, []);
}

/// A frame of the journal.
#[derive(Clone, Debug)]
struct Frame {
    path: PathBuf,
    /// In its file.
    at: u64,
    bytes: u64,
    position: Position,
    synced: Position,
}

fn journal_files(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files().into_keys().filter(|path| path.extension().is_some_and(|e| e == "journal")).collect()
}

/// The frames of the journal, in their order.
fn frames(disk: &SimDisk) -> Vec<Frame> {
    let mut frames = Vec::new();
    for path in journal_files(disk) {
        let file = disk.read_file(&path).unwrap();
        let Ok(header) = FileHeader::decode(&file) else { continue };
        let mut at = FILE_HEADER_BYTES;
        loop {
            let position = header.start + (at - FILE_HEADER_BYTES) as u64;
            let frame = FrameHeader::decode(&file[at..], header.seed(), header.generation, position);
            let Ok(frame) = frame else { break };
            let (bytes, synced) = (frame.frame_bytes as u64, frame.synced);
            frames.push(Frame { path: path.clone(), at: at as u64, bytes, position, synced });
            at += frame.frame_bytes;
        }
    }
    frames.sort_by_key(|frame| frame.position);
    frames
}

/// The frame that is `from_end` before the last, 0 being the last.
fn frame(disk: &SimDisk, from_end: usize) -> Frame {
    let frames = frames(disk);
    frames[frames.len() - 1 - from_end].clone()
}

/// Damages a batch in the frame.
fn damage(disk: &SimDisk, frame: &Frame) {
    disk.flip_bit(&frame.path, (frame.at + frame.bytes - 100) * 8).unwrap();
}

/// The segments of a topic, by its number.
fn segments(disk: &SimDisk, number: u32) -> Vec<PathBuf> {
    let dir = format!("{STORE}/topics/{number:08x}");
    disk.files().into_keys().filter(|path| path.starts_with(&dir)).collect()
}

/// Refused as damaged: file and position, and nothing was changed.
fn refused_at(disk: &SimDisk) -> (PathBuf, u64) {
    let before: Vec<_> = journal_files(disk).iter().map(|path| disk.read_file(path).unwrap()).collect();
    match try_open(disk) {
        Err(Error::CorruptFile { path, position, .. }) => {
            let after: Vec<_> =
                journal_files(disk).iter().map(|path| disk.read_file(path).unwrap()).collect();
            assert!(before == after, "the journal of a refused store is left as it is");
            (path, position.0)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_journal_ends_with_a_frame_it_opens() {
    let disk = killed(3, 8, 8);
    let store = open(&disk);
    assert_eq!(store.recovery().journal_end, JournalEnd::Clean);
    assert!(!store.recovery().was_clean);
    assert_eq!(store.recovery().records, 5);
    check_and_go_on(&disk, &store, 8);
}

#[test]
fn a_bad_frame_that_no_later_one_vouches_for_is_torn_it_is_cut_and_a_copy_is_kept() {
    // The last, one before others that were not synced either, and the first behind the sync.
    for from_end in 0..4 {
        let disk = killed(3, 6, 10);
        let torn = frame(&disk, from_end);
        damage(&disk, &torn);
        let last = frame(&disk, 0);
        let cut = if from_end == 0 { torn.clone() } else { last };
        let lost = disk.read_file(&torn.path).unwrap();
        let store = open(&disk);
        let (from, to) = (torn.at as usize, (cut.at + cut.bytes) as usize);
        let JournalEnd::Torn { bytes } = store.recovery().journal_end else {
            panic!("{:?}", store.recovery());
        };
        // What is kept is what is taken away, byte for byte.
        let kept = store.recovery().torn_kept.clone().expect("a copy");
        assert_eq!(kept, Path::new(STORE).join("journal/torn-tail"));
        assert_eq!(bytes, (to - from) as u64);
        assert!(disk.read_file(&kept).unwrap() == lost[from..to]);
        check_and_go_on(&disk, &store, 9 - from_end as u64);
        // It is gone for good, and its copy stays for whoever is curious.
        drop(store);
        let store = open(&disk.after_kill());
        assert_eq!(store.recovery().journal_end, JournalEnd::Clean);
        assert_eq!(store.recovery().torn_kept, None);
        assert!(disk.read_file(&kept).is_ok());
    }
}

#[test]
fn of_two_torn_ends_the_later_one_is_kept() {
    let disk = killed(0, 2, 5);
    damage(&disk, &frame(&disk, 0));
    let store = open(&disk);
    append(&store.topic("t").unwrap(), 6);
    let disk = disk.after_kill();
    let torn = frame(&disk, 0);
    damage(&disk, &torn);
    let lost = disk.read_file(&torn.path).unwrap();
    let store = open(&disk);
    let kept = disk.read_file(store.recovery().torn_kept.as_ref().expect("a copy")).unwrap();
    assert!(kept == lost[torn.at as usize..(torn.at + torn.bytes) as usize]);
}

#[test]
fn a_bad_frame_that_a_later_one_says_was_synced_is_rot_and_refused_by_file_and_position() {
    for from_end in 4..8 {
        let disk = killed(3, 8, 12);
        let rotten = frame(&disk, from_end);
        assert!(frame(&disk, 3).synced > rotten.position);
        damage(&disk, &rotten);
        assert_eq!(refused_at(&disk), (rotten.path, rotten.at));
    }
}

#[test]
fn intact_frames_above_every_synced_mark_are_made_durable_before_they_are_shown() {
    let disk = killed(3, 5, 9);
    let in_doubt: u64 = (0..4).map(|from_end| frame(&disk, from_end).bytes).sum();
    let store = open(&disk);
    assert!(store.recovery().in_doubt_bytes >= in_doubt, "{:?}", store.recovery());
    assert_eq!(store.topic("t").unwrap().high_watermark(), Offset(9));
    // The power goes at once.
    check(&open(&disk.crash_with(CrashMode::LoseAll, &mut Rng::new(1))), 9);
    check_and_go_on(&disk, &store, 9);
}

#[test]
fn frames_of_an_earlier_use_of_a_file_are_ignored() {
    let disk = SimDisk::new();
    let (store, topic, _) = two_topics(&disk);
    let mut end = 0;
    // Until a file is used again, and so little of it that old frames stand behind its last.
    let reused = loop {
        end += 40;
        append(&topic, end);
        store.checkpoint().unwrap();
        let left = disk.after_kill();
        let last = frame(&left, 0);
        let file = left.read_file(&last.path).unwrap();
        let header = FileHeader::decode(&file).unwrap();
        let behind = (last.at + last.bytes) as usize;
        let generations =
            file[behind..].chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        // A frame's generation stands in its fourth word, behind its position and its mark.
        if header.generation > 2 && generations.skip(3).any(|word| (1..header.generation).contains(&word)) {
            break left;
        }
        assert!(end < 4000, "no file was used again");
    };
    let store = open(&reused);
    assert_eq!(store.recovery().journal_end, JournalEnd::Clean, "{:?}", store.recovery());
    check_and_go_on(&reused, &store, end);
}

#[test]
fn a_damaged_journal_header_is_refused_and_named() {
    let disk = killed(3, 8, 8);
    let path = frame(&disk, 0).path;
    disk.flip_bit(&path, 20 * 8).unwrap();
    assert_eq!(refused_at(&disk), (path, 0));
}

#[test]
fn a_journal_file_that_was_cut_short_is_refused_and_named() {
    let disk = killed(3, 8, 8);
    let last = frame(&disk, 0);
    disk.truncate(&last.path, last.at + last.bytes / 2).unwrap();
    assert_eq!(refused_at(&disk).0, last.path);
}

/// The damaged header stayed where it was until the file was used again: a store that had opened in spite of it was
/// refused after the next crash.
#[test]
fn after_a_clean_close_a_damaged_journal_header_is_reported_and_its_file_is_free() {
    let disk = killed(3, 8, 8);
    open(&disk).close().unwrap();
    let damaged = journal_files(&disk);
    for path in &damaged {
        disk.flip_bit(path, 20 * 8).unwrap();
    }
    let store = open(&disk);
    assert_eq!(store.recovery().damaged, damaged);
    check(&open(&disk.crash_with(CrashMode::LoseAll, &mut Rng::new(1))), 8);
    check_and_go_on(&disk, &store, 8);
}

/// What a segment comes to when everything that the journal holds is in it.
fn flushed(disk: &SimDisk, path: &Path) -> Vec<u8> {
    let copy = disk.after_kill();
    open(&copy).checkpoint().unwrap();
    copy.read_file(path).unwrap()
}

#[test]
fn segment_bytes_behind_the_checkpoint_are_cut_and_written_again_from_the_journal() {
    let disk = killed(3, 6, 6);
    let path = segments(&disk, 1).pop().unwrap();
    let mut bytes = disk.read_file(&path).unwrap();
    let whole = flushed(&disk, &path);
    assert!(whole.len() > bytes.len() && whole.starts_with(&bytes));
    bytes.extend_from_slice(&[0xee; 3000]);
    disk.plant_file(&path, &bytes).unwrap();
    let store = open(&disk);
    store.checkpoint().unwrap();
    assert!(disk.read_file(&path).unwrap() == whole, "the same bytes in the same places, and nothing behind");
    check_and_go_on(&disk, &store, 6);
}

#[test]
fn a_bad_batch_at_or_above_the_checkpoint_is_redone_from_the_journal() {
    for bad in 3..6 {
        let disk = killed(3, 6, 6);
        let path = segments(&disk, 1).pop().unwrap();
        let whole = flushed(&disk, &path);
        let mut bytes = whole.clone();
        let (at, length) = batch(&bytes, &open(&disk.after_kill()), bad);
        bytes[at + length / 2] ^= 1;
        disk.plant_file(&path, &bytes).unwrap();
        let store = open(&disk);
        check(&store, 6);
        store.checkpoint().unwrap();
        assert!(disk.read_file(&path).unwrap() == whole);
        check_and_go_on(&disk, &store, 6);
    }
}

/// Where the batch with this offset is in its segment, and how long.
fn batch(segment: &[u8], store: &Store, offset: u64) -> (usize, usize) {
    let seed = seed(store.topic("t").unwrap().uid());
    let mut at = HEADER_BYTES;
    loop {
        let header = BatchHeader::decode(&segment[at..], seed).unwrap();
        if header.base_offset == Offset(offset) {
            return (at, header.batch_bytes());
        }
        at += header.stored_bytes();
    }
}

/// What reading from the beginning gives: records, and ranges that are reported as damaged.
fn read_around(store: &Store) -> (Vec<u64>, Vec<std::ops::Range<u64>>) {
    let (mut records, mut damaged) = (Vec::new(), Vec::new());
    for record in store.topic("t").unwrap().read(Start::Earliest).unwrap() {
        match record {
            Ok(record) => {
                assert_eq!(record.payload(), Some(text(record.offset().0).as_bytes()));
                records.push(record.offset().0);
            }
            Err(Error::Corrupt { offsets, .. }) => damaged.push(offsets.start.0..offsets.end.0),
            Err(error) => panic!("{error}"),
        }
    }
    (records, damaged)
}

#[test]
fn a_bad_batch_below_the_checkpoint_costs_its_own_records_and_nothing_else() {
    let disk = killed(30, 33, 33);
    let path = segments(&disk, 1)[1].clone();
    let bytes = disk.read_file(&path).unwrap();
    let first: u64 = path.file_stem().unwrap().to_str().unwrap()[..20].parse().unwrap();
    let (at, length) = batch(&bytes, &open(&disk.after_kill()), first + 2);
    disk.flip_bit(&path, (at + length / 2) as u64 * 8).unwrap();
    let store = open(&disk);
    let bad = first + 2;
    let (records, damaged) = read_around(&store);
    assert_eq!(records, (0..33).filter(|n| *n != bad).collect::<Vec<_>>());
    assert_eq!((damaged.len(), damaged[0].clone()), (1, bad..bad + 1));
    check_other(&store);
    store.topic("t").unwrap().append(&[Record::new(text(33))]).unwrap();
    store.checkpoint().unwrap();
    assert_eq!(read_around(&store).0.last(), Some(&33));
}

#[test]
fn a_known_segment_that_is_missing_refuses_its_topic_by_name_and_the_rest_opens() {
    for lost in 0..3 {
        let disk = killed(30, 33, 33);
        let path = segments(&disk, 1)[lost].clone();
        disk.lose_file(&path).unwrap();
        let others = segments(&disk, 1);
        let store = open(&disk);
        let refused = store.topic("t").unwrap().get(Offset(1)).unwrap_err();
        assert!(
            matches!(&refused, Error::TopicRefused { topic, path: named, .. } if topic.as_str() == "t" && *named == path),
            "{refused}"
        );
        check_other(&store);
        store.topic("other").unwrap().append(&[Record::new("goes on")]).unwrap();
        assert_eq!(segments(&disk, 1), others, "nothing is removed");
    }
}

#[test]
fn a_known_segment_that_is_short_costs_what_is_missing_and_takes_no_more() {
    // A sealed one, and the one that was being written.
    for is_active in [false, true] {
        let disk = killed(30, 30, 30);
        let files = segments(&disk, 1);
        let path = if is_active { files.last().unwrap() } else { &files[1] };
        let first: u64 = path.file_stem().unwrap().to_str().unwrap()[..20].parse().unwrap();
        let bytes = disk.read_file(path).unwrap();
        let (at, _) = batch(&bytes, &open(&disk.after_kill()), first + 1);
        disk.truncate(path, at as u64 + 8).unwrap();
        let end = files.iter().position(|file| file == path).and_then(|number| files.get(number + 1));
        let end = end.map_or(30, |next| next.file_stem().unwrap().to_str().unwrap()[..20].parse().unwrap());
        let store = open(&disk);
        let (records, damaged) = read_around(&store);
        assert_eq!(records, (0..=first).chain(end..30).collect::<Vec<_>>());
        assert_eq!((damaged.first().unwrap().start, damaged.last().unwrap().end), (first + 1, end));
        check_other(&store);
        let appended = store.topic("t").unwrap().append(&[Record::new(text(30))]);
        assert_eq!(appended.unwrap().first_offset, Offset(30), "the journal takes it");
        let flushed = store.checkpoint();
        if is_active {
            let named = matches!(&flushed, Err(Error::TopicRefused { path: named, .. }) if named == path);
            assert!(named || flushed.is_ok(), "{flushed:?}");
            assert_eq!(disk.files()[path], at as u64 + 8, "nothing is written behind the gap");
        } else {
            flushed.unwrap();
        }
        assert_eq!(read_around(&store).0.last(), Some(&30));
    }
}

#[test]
fn an_unknown_segment_of_the_topic_is_removed_also_if_it_overlaps_one_that_is_known() {
    let disk = killed(30, 33, 33);
    let known = segments(&disk, 1);
    let bytes = disk.read_file(&known[1]).unwrap();
    for unknown in ["00000000000000000002-0.segment", "00000000000000000000-1.segment"] {
        disk.plant_file(known[0].with_file_name(unknown), &bytes).unwrap();
    }
    let store = open(&disk);
    check(&store, 33);
    assert_eq!(segments(&disk, 1), known);
    check_and_go_on(&disk, &store, 33);
}

#[test]
fn an_unknown_segment_of_somebody_else_refuses_the_topic_and_is_not_touched() {
    let disk = killed(30, 33, 33);
    let foreign = segments(&disk, 1)[0].with_file_name("00000000000000000099-0.segment");
    let theirs = {
        let other = killed(30, 33, 33);
        other.read_file(&segments(&other, 1)[0]).unwrap()
    };
    disk.plant_file(&foreign, &theirs).unwrap();
    let store = open(&disk);
    let refused = store.topic("t").unwrap().get(Offset(1)).unwrap_err();
    assert!(matches!(&refused, Error::TopicRefused { path, .. } if *path == foreign), "{refused}");
    check_other(&store);
    assert!(disk.read_file(&foreign).unwrap() == theirs);
}

#[test]
fn after_a_crash_segments_of_ours_without_a_topic_go_at_the_next_checkpoint_and_others_stay() {
    let disk = killed(3, 6, 6);
    let other = killed(3, 6, 6);
    let plant = |number: u32, bytes: &[u8]| {
        use quipu_storage::disk::Disk as _;
        let dir = format!("{STORE}/topics/{number:08x}");
        disk.create_dir(Path::new(&dir)).unwrap();
        disk.sync_dir(&Path::new(STORE).join("topics")).unwrap();
        disk.plant_file(Path::new(&dir).join("00000000000000000000-0.segment"), bytes).unwrap();
    };
    plant(7, &disk.read_file(&segments(&disk, 1)[0]).unwrap());
    plant(8, &other.read_file(&segments(&other, 1)[0]).unwrap());
    let store = open(&disk);
    store.checkpoint().unwrap();
    assert_eq!((segments(&disk, 7).len(), segments(&disk, 8).len()), (0, 1));
    check(&store, 6);
}

#[test]
fn a_damaged_index_or_footer_is_rebuilt_from_the_batches() {
    let disk = killed(30, 33, 33);
    let path = segments(&disk, 1)[1].clone();
    let bytes = disk.files()[&path];
    for from_end in [20, 90, 100] {
        let disk = disk.after_kill();
        disk.flip_bit(&path, (bytes - from_end) * 8).unwrap();
        let store = open(&disk);
        check_records(&store, 33);
        assert!(store.stats().damage_found > 0, "and it is reported");
        // Also by time and by offset, which look at the index first.
        let topic = store.topic("t").unwrap();
        for n in 0..33 {
            let record = topic.get(Offset(n)).unwrap().unwrap();
            assert_eq!(record.payload(), Some(text(n).as_bytes()));
        }
        let start = topic.read(Start::Time(quipu_storage::Timestamp::ZERO)).unwrap().next().unwrap();
        assert_eq!(start.unwrap().offset(), Offset(0));
    }
}

#[test]
fn of_a_checkpoint_with_one_damaged_copy_the_other_is_used_and_that_is_reported() {
    let path = Path::new(STORE).join("checkpoint");
    let disk = killed(3, 6, 6);
    let bytes = disk.files()[&path];
    for at in [40, bytes / 2 + 40] {
        let disk = disk.after_kill();
        disk.flip_bit(&path, at * 8).unwrap();
        let store = open(&disk);
        assert_eq!(store.recovery().damaged, [path.as_path()]);
        check_and_go_on(&disk, &store, 6);
    }
    for at in [40, bytes / 2 + 40] {
        disk.flip_bit(&path, at * 8).unwrap();
    }
    assert_eq!(refused_at(&disk).0, path);
}
