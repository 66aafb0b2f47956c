//! Verifying: intact stores have no findings, and each kind of damage is named with topic, offsets, file and position.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::ops::{ControlFlow, Range};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu_storage::disk::OsDisk;
use quipu_storage::dump::{DumpOptions, dump, dump_store};
use quipu_storage::format::segment::{FOOTER_BYTES, HEADER_BYTES};
use quipu_storage::verify::{Finding, Severity, VerifyOptions, VerifyReport, verify};
use quipu_storage::{
    Codec, Durability, Error, JournalEnd, Offset, Record, Store, StoreSettings, Topic, TopicName,
    TopicSettings,
};

/// Records of 1 KiB in segments of 4 KiB: three batches of one record make a segment.
const RECORDS_PER_SEGMENT: u64 = 3;

fn settings() -> StoreSettings {
    StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 512 << 10,
        append_bytes_max: 16 << 10,
        background: false,
        ..StoreSettings::default()
    }
}

fn open(dir: &Path) -> Store {
    Store::builder().settings(settings()).open(dir).unwrap()
}

fn append(topic: &Topic, count: u64) {
    for n in 0..count {
        let payload = format!("{n} {}", "x".repeat(1002));
        topic.append_with(&[Record::new(payload)], Durability::Written).unwrap();
    }
}

/// Ten records in each of two topics, in the segments 0, 3, 6 and 9, the last one active.
fn filled(dir: &Path) -> Store {
    let store = open(dir);
    let small = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    for name in ["a", "b/c"] {
        append(&store.create_topic(name, small.clone()).unwrap(), 10);
    }
    store
}

fn closed() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path()).close().unwrap();
    dir
}

/// What is there when the process is killed: the files as they are while the store is open.
fn killed(store: &Store) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    copy(store.path(), dir.path());
    dir
}

fn copy(from: &Path, to: &Path) {
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn look(dir: &Path) -> VerifyReport {
    verify(dir, Arc::new(OsDisk), VerifyOptions::default()).unwrap()
}

fn segment(dir: &Path, topic: u32, base_offset: u64) -> PathBuf {
    dir.join(format!("topics/{topic:08x}/{base_offset:020}-0.segment"))
}

fn flip(path: &Path, position: u64) {
    let file = fs::File::options().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, position).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], position).unwrap();
}

/// Bytes of one batch in `path`: the first says so.
fn batch_bytes(path: &Path) -> u64 {
    let mut length = [0; 4];
    fs::File::open(path).unwrap().read_exact_at(&mut length, HEADER_BYTES as u64 + 4).unwrap();
    u64::from(u32::from_le_bytes(length)).next_multiple_of(8)
}

/// The only finding.
fn only(report: &VerifyReport) -> &Finding {
    assert_eq!(report.findings.len(), 1, "{report:#?}");
    &report.findings[0]
}

#[track_caller]
fn assert_lost(finding: &Finding, topic: &str, offsets: Range<u64>, path: &Path, position: u64) {
    assert_eq!(finding.severity, Severity::Unreadable, "{finding}");
    assert_eq!(finding.topic.as_ref().map(TopicName::as_str), Some(topic), "{finding}");
    assert_eq!(finding.offsets, Some(Offset(offsets.start)..Offset(offsets.end)), "{finding}");
    assert_eq!((&*finding.path, finding.position.0), (path, position), "{finding}");
}

#[track_caller]
fn assert_harmless(report: &VerifyReport, path: &Path, position: u64) {
    let finding = only(report);
    assert_eq!(finding.severity, Severity::Redundant, "{finding}");
    assert_eq!((&*finding.path, finding.position.0), (path, position), "{finding}");
    assert!(!report.is_intact() && report.is_readable());
}

#[test]
fn a_store_that_was_closed_verifies_without_findings() {
    let dir = closed();
    let report = look(dir.path());
    assert_eq!(report.findings, []);
    assert!(report.is_intact() && report.was_clean);
    let checked = report.checked;
    assert_eq!((checked.checkpoint_copies, checked.topics, checked.segments), (2, 2, 8));
    assert_eq!((checked.batches, checked.records), (20, 20));
    assert!(checked.journal_files >= 1, "{checked:?}");
}

#[test]
fn a_killed_store_verifies_without_findings_wherever_its_records_are() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    let report = look(killed(&store).path());
    assert_eq!(report.findings, []);
    assert!(!report.was_clean);
    assert_eq!((report.checked.frames, report.checked.journal_batches, report.checked.segments), (22, 20, 0));
    store.checkpoint().unwrap();
    append(&store.topic("a").unwrap(), 5);
    store.delete_topic("b/c").unwrap();
    let report = look(killed(&store).path());
    assert_eq!(report.findings, []);
    assert_eq!((report.checked.journal_batches, report.checked.segments, report.checked.records), (5, 4, 15));
}

#[test]
fn a_store_in_use_verifies_without_findings_beside_its_writers() {
    let dir = tempfile::tempdir().unwrap();
    let store =
        Store::builder().settings(StoreSettings { background: true, ..settings() }).open(&dir).unwrap();
    let small = TopicSettings { segment_bytes_max: 4096, ..TopicSettings::default() };
    let topic = store.create_topic("t", small).unwrap();
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for round in 1..=10 {
                append(&topic, 100);
                store.sync().unwrap();
                topic.trim(Offset(round * 30)).unwrap();
            }
        });
        let mut rounds = 0;
        while !writer.is_finished() || rounds < 3 {
            assert_eq!(store.verify(VerifyOptions::default()).unwrap().findings, []);
            assert_eq!(topic.verify(VerifyOptions::default()).unwrap().findings, []);
            rounds += 1;
        }
    });
    store.checkpoint().unwrap();
    let report = store.verify(VerifyOptions::default()).unwrap();
    assert!(report.is_intact() && report.checked.batches > 500, "{report:?}");
}

#[test]
fn a_store_in_use_cannot_be_verified_from_outside_and_says_who_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let _store = filled(dir.path());
    let error = verify(dir.path(), Arc::new(OsDisk), VerifyOptions::default()).unwrap_err();
    assert!(
        matches!(&error, Error::Locked { holder, .. } if holder.contains(&std::process::id().to_string())),
        "{error}"
    );
}

#[test]
fn what_is_no_store_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path().to_path_buf(), dir.path().join("absent")] {
        let error = verify(path, Arc::new(OsDisk), VerifyOptions::default()).unwrap_err();
        assert!(matches!(error, Error::NoStore { .. }), "{error}");
    }
}

#[test]
fn a_damaged_body_takes_the_offsets_of_its_batch() {
    let dir = closed();
    let path = segment(dir.path(), 1, 3);
    let at = HEADER_BYTES as u64 + batch_bytes(&path);
    flip(&path, at + 100);
    assert_lost(only(&look(dir.path())), "a", 4..5, &path, at);
}

#[test]
fn a_damaged_header_takes_the_offsets_up_to_the_next_intact_batch() {
    let dir = closed();
    let path = segment(dir.path(), 2, 0);
    let at = HEADER_BYTES as u64;
    flip(&path, at + 9);
    flip(&path, at + batch_bytes(&path) + 9);
    assert_lost(only(&look(dir.path())), "b/c", 0..2, &path, at);
    // The last one of a segment: its offsets end where the segment's do.
    let path = segment(dir.path(), 2, 9);
    flip(&path, at + 9);
    assert_lost(&look(dir.path()).findings[1], "b/c", 9..10, &path, at);
}

#[test]
fn damage_is_named_also_in_a_store_that_is_open() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    store.checkpoint().unwrap();
    let path = segment(dir.path(), 1, 9);
    flip(&path, HEADER_BYTES as u64 + 100);
    for report in [
        store.verify(VerifyOptions::default()).unwrap(),
        store.topic("a").unwrap().verify(VerifyOptions::default()).unwrap(),
    ] {
        assert_lost(only(&report), "a", 9..10, &path, HEADER_BYTES as u64);
    }
    assert!(store.topic("b/c").unwrap().verify(VerifyOptions::default()).unwrap().is_intact());
}

#[test]
fn a_segment_that_is_missing_or_cut_takes_what_it_held() {
    let dir = closed();
    let (missing, cut) = (segment(dir.path(), 1, 6), segment(dir.path(), 2, 9));
    fs::remove_file(&missing).unwrap();
    fs::File::options().write(true).open(&cut).unwrap().set_len(200).unwrap();
    let report = look(dir.path());
    assert_lost(&report.findings[0], "a", 6..6 + RECORDS_PER_SEGMENT, &missing, 0);
    assert_lost(&report.findings[1], "b/c", 9..10, &cut, 200);
}

#[test]
fn a_batch_that_is_missing_between_intact_ones_is_noticed() {
    let dir = closed();
    let path = segment(dir.path(), 1, 0);
    let bytes = fs::read(&path).unwrap();
    let length = usize::try_from(batch_bytes(&path)).unwrap();
    // The third in the place of the second.
    let mut damaged = bytes.clone();
    damaged.copy_within(HEADER_BYTES + 2 * length..HEADER_BYTES + 3 * length, HEADER_BYTES + length);
    fs::write(&path, damaged).unwrap();
    let report = look(dir.path());
    let at = (HEADER_BYTES + length) as u64;
    assert_lost(&report.findings[0], "a", 1..2, &path, at);
    // And there it is again.
    assert_lost(&report.findings[1], "a", 2..3, &path, at + length as u64);
}

#[test]
fn header_index_footer_and_padding_are_checked_although_readers_do_without() {
    let dir = closed();
    let path = segment(dir.path(), 1, 0);
    let intact = fs::read(&path).unwrap();
    let length = intact.len() as u64;
    let footer = length - FOOTER_BYTES as u64;
    let index = footer - 24;
    for (position, reported) in [(50, 0), (index + 3, index), (footer + 3, footer), (footer + 90, footer)] {
        flip(&path, position);
        assert_harmless(&look(dir.path()), &path, reported);
        fs::write(&path, &intact).unwrap();
    }
    let batch = u64::from(u32::from_le_bytes(intact[HEADER_BYTES + 4..HEADER_BYTES + 8].try_into().unwrap()));
    assert_ne!(batch % 8, 0);
    flip(&path, HEADER_BYTES as u64 + batch);
    assert_harmless(&look(dir.path()), &path, HEADER_BYTES as u64 + batch);
}

#[test]
fn one_damaged_copy_of_the_checkpoint_costs_nothing_and_two_cost_the_store() {
    let dir = closed();
    let path = dir.path().join("checkpoint");
    let middle = fs::metadata(&path).unwrap().len() / 2;
    flip(&path, middle + 40);
    let report = look(dir.path());
    assert_harmless(&report, &path, middle + 24);
    assert_eq!(report.checked.checkpoint_copies, 1);
    flip(&path, 40);
    let damaged = segment(dir.path(), 2, 3);
    flip(&damaged, HEADER_BYTES as u64 + 100);
    let report = look(dir.path());
    assert_eq!((report.findings[0].severity, &report.findings[0].path), (Severity::Unreadable, &path));
    // The segments are looked at all the same.
    assert_eq!(
        (report.findings[1].offsets.clone(), &report.findings[1].path),
        (Some(Offset(3)..Offset(4)), &damaged)
    );
    assert_eq!((report.findings.len(), report.checked.segments), (2, 8));
}

#[test]
fn a_missing_checkpoint_or_journal_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    store.checkpoint().unwrap();
    let dir = killed(&store);
    let journal = dir.path().join("journal");
    for entry in fs::read_dir(&journal).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    let report = look(dir.path());
    assert_eq!((only(&report).severity, &only(&report).path), (Severity::Unreadable, &journal));
    let dir = killed(&store);
    fs::remove_file(dir.path().join("checkpoint")).unwrap();
    let report = look(dir.path());
    assert_eq!(
        (only(&report).severity, &only(&report).path),
        (Severity::Unreadable, &dir.path().join("checkpoint"))
    );
}

#[test]
fn a_damaged_or_foreign_clean_file_only_costs_the_shortcut() {
    let dir = closed();
    let path = dir.path().join("clean");
    flip(&path, 20);
    let report = look(dir.path());
    assert_harmless(&report, &path, 0);
    assert!(!report.was_clean);
    // Half made by a crash: nobody relies on it.
    fs::write(&path, [0; 10]).unwrap();
    assert!(look(dir.path()).is_intact());
}

/// The journal file with frames, and where each of them starts.
fn frames(dir: &Path) -> (PathBuf, Vec<u64>) {
    let path = dir.join("journal/000000.journal");
    let bytes = fs::read(&path).unwrap();
    let mut at = 4096;
    let mut frames = Vec::new();
    loop {
        let length = u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap());
        if length == 0 {
            return (path, frames);
        }
        frames.push(at as u64);
        at += length as usize;
    }
}

#[test]
fn the_torn_end_of_a_journal_is_no_damage() {
    let store_dir = tempfile::tempdir().unwrap();
    let store = filled(store_dir.path());
    let dir = killed(&store);
    let (path, frames) = frames(dir.path());
    // The last record of topic `b/c`, and of all nothing was synced since topic `b/c` was created.
    flip(&path, frames[frames.len() - 1] + 200);
    let report = look(dir.path());
    assert_eq!(report.findings, []);
    assert!(matches!(report.journal_end, JournalEnd::Torn { .. }), "{report:?}");
    assert_eq!(report.checked.frames, 21);
}

#[test]
fn a_synced_frame_that_is_damaged_is_named_with_its_records() {
    let store_dir = tempfile::tempdir().unwrap();
    let store = filled(store_dir.path());
    store.sync().unwrap();
    append(&store.topic("a").unwrap(), 2);
    let dir = killed(&store);
    let (path, frames) = frames(dir.path());
    // Created, ten records of `a`, created, ten records of `b/c`, two of `a`.
    assert_eq!(frames.len(), 24);
    let intact = fs::read(&path).unwrap();
    // A body: frame and batch header say what it was.
    flip(&path, frames[5] + 300);
    let report = look(dir.path());
    assert_lost(only(&report), "a", 4..5, &path, frames[5]);
    assert_eq!(report.checked.frames, 23);
    // A frame's header: what comes behind says what is missing.
    fs::write(&path, &intact).unwrap();
    flip(&path, frames[14] + 9);
    flip(&path, frames[15] + 9);
    let report = look(dir.path());
    assert_eq!(report.findings.len(), 2, "{report:#?}");
    assert_eq!((report.findings[0].position.0, report.findings[0].topic.clone()), (frames[14], None));
    assert_lost(&report.findings[1], "b/c", 2..4, &path, frames[16]);
    // The engine refuses in both cases.
    assert!(matches!(Store::open(dir.path()).unwrap_err(), Error::CorruptFile { .. }));
}

#[test]
fn a_damaged_header_of_a_journal_file_is_named() {
    let store_dir = tempfile::tempdir().unwrap();
    let store = filled(store_dir.path());
    let dir = killed(&store);
    let path = dir.path().join("journal/000000.journal");
    flip(&path, 33);
    let report = look(dir.path());
    assert!(report.findings.iter().all(|finding| finding.severity == Severity::Unreadable), "{report:#?}");
    assert_eq!((&report.findings[0].path, report.findings[0].position.0), (&path, 0));
    // After a proper close nobody needs it.
    store.close().unwrap();
    let path = store_dir.path().join("journal/000000.journal");
    flip(&path, 33);
    assert_harmless(&look(store_dir.path()), &path, 0);
}

#[test]
fn foreign_files_are_named_and_only_those_that_stop_a_topic_count() {
    let dir = closed();
    let other = closed();
    for name in ["notes.txt", "journal/x", "topics/00000009", "topics/00000001/readme"] {
        fs::write(dir.path().join(name), "mine").unwrap();
    }
    let report = look(dir.path());
    assert!(report.is_intact());
    assert_eq!(report.findings.len(), 4, "{report:#?}");
    assert!(report.findings.iter().all(|finding| finding.severity == Severity::Foreign));
    let foreign = segment(dir.path(), 1, 77);
    fs::copy(segment(other.path(), 1, 0), &foreign).unwrap();
    let report = look(dir.path());
    let finding = report.findings.iter().find(|finding| finding.severity == Severity::Unreadable).unwrap();
    assert_eq!((&finding.path, finding.topic.as_ref().map(TopicName::as_str)), (&foreign, Some("a")));
    assert!(!report.is_intact());
    let error = open(dir.path()).topic("a").unwrap().get(Offset(0)).unwrap_err();
    assert!(matches!(error, Error::TopicRefused { .. }), "{error}");
}

#[test]
fn damage_below_the_start_of_the_log_costs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    store.checkpoint().unwrap();
    store.topic("a").unwrap().trim(Offset(5)).unwrap();
    store.close().unwrap();
    let path = segment(dir.path(), 1, 3);
    flip(&path, HEADER_BYTES as u64 + 100);
    assert_harmless(&look(dir.path()), &path, HEADER_BYTES as u64);
}

#[test]
fn compressed_batches_are_decompressed_and_compared() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let settings = TopicSettings { codec: Codec::Lz4, ..TopicSettings::default() };
    append(&store.create_topic("z", settings).unwrap(), 4);
    store.close().unwrap();
    let report = look(dir.path());
    assert!(report.is_intact() && report.checked.records == 4, "{report:?}");
    let path = segment(dir.path(), 1, 0);
    flip(&path, HEADER_BYTES as u64 + 50);
    assert_lost(only(&look(dir.path())), "z", 0..1, &path, HEADER_BYTES as u64);
}

#[test]
fn the_caller_sees_progress_and_can_cancel() {
    let dir = closed();
    let mut seen = Vec::new();
    let mut progress = |progress: quipu_storage::verify::Progress| {
        seen.push(progress);
        ControlFlow::Continue(())
    };
    let options = VerifyOptions { progress: Some(&mut progress), ..VerifyOptions::default() };
    let report = verify(dir.path(), Arc::new(OsDisk), options).unwrap();
    assert!(seen.is_sorted_by_key(|progress| progress.bytes_done));
    assert_eq!(seen.last().map(|progress| progress.bytes_done), Some(report.checked.bytes));
    let mut cancel = |_| ControlFlow::Break(());
    let options = VerifyOptions { progress: Some(&mut cancel), ..VerifyOptions::default() };
    let error = verify(dir.path(), Arc::new(OsDisk), options).unwrap_err();
    assert!(matches!(error, Error::Cancelled { .. }), "{error}");
}

#[test]
fn findings_beyond_the_bound_are_counted() {
    let dir = closed();
    for base_offset in [0, 3, 6, 9] {
        flip(&segment(dir.path(), 1, base_offset), HEADER_BYTES as u64 + 100);
    }
    let options = VerifyOptions { findings_max: 1, ..VerifyOptions::default() };
    let report = verify(dir.path(), Arc::new(OsDisk), options).unwrap();
    assert_eq!((report.findings.len(), report.findings_left_out), (1, 3));
    assert!(!report.is_intact());
}

#[test]
fn a_newer_format_is_refused() {
    let dir = closed();
    let path = dir.path().join("checkpoint");
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    for copy in [0, middle] {
        bytes[copy + 8] = 2;
        let content = u64::from_le_bytes(bytes[copy + 16..copy + 24].try_into().unwrap());
        let end = copy + 32 + usize::try_from(content).unwrap();
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&bytes[copy..copy + 24]);
        hasher.update(&bytes[copy + 32..end]);
        bytes[copy + 24..copy + 28].copy_from_slice(&hasher.finalize().to_le_bytes());
    }
    fs::write(&path, bytes).unwrap();
    let error = verify(dir.path(), Arc::new(OsDisk), VerifyOptions::default()).unwrap_err();
    assert!(matches!(error, Error::NewerFormat { found: 2, .. }), "{error}");
}

fn text(path: &Path) -> String {
    let mut out = Vec::new();
    dump(path, &OsDisk, DumpOptions { value_bytes_max: 8, ..DumpOptions::default() }, &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_dump_shows_every_file_of_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    let topic = store.topic("a").unwrap();
    let record =
        Record::keyed("the\nkey", "\u{7f}bytes").with_type("t").with_tag("red").with_header("h", "v");
    topic.append(&[record, Record::tombstone("k")]).unwrap();
    let killed = killed(&store);
    store.close().unwrap();
    let checkpoint = text(&dir.path().join("checkpoint"));
    assert!(checkpoint.contains("topic b/c, number 00000002"), "{checkpoint}");
    assert!(
        checkpoint.contains("segment 00000000000000000003-0.segment, offsets 3 to 6 (exclusive), 3 records")
    );
    assert!(text(&dir.path().join("clean")).starts_with("0: closed properly"));
    let active = text(&segment(dir.path(), 1, 9));
    assert!(
        active.contains("  10: key=\"the\\nkey\" type=t tag=red h=\"v\" payload=\"\\x7fbytes\""),
        "{active}"
    );
    assert!(active.contains("  11: key=\"k\" tombstone") && active.contains("end, not sealed"), "{active}");
    let sealed = text(&segment(dir.path(), 1, 0));
    assert_eq!(sealed.matches("batch, offsets").count(), 3);
    assert!(sealed.contains("payload=\"0 xxxxxx\"... (1004 bytes)"), "{sealed}");
    assert!(
        sealed.contains("index entry, offset 0,") && sealed.contains("footer, offsets 0 to 3"),
        "{sealed}"
    );
    let journal = text(&killed.path().join("journal/000000.journal"));
    assert!(journal.contains("topic b/c created, number 00000002"), "{journal}");
    assert_eq!(journal.matches("batch of topic").count(), 21);
    assert!(!journal.contains('!'), "{journal}");
    let mut whole = Vec::new();
    dump_store(dir.path(), &OsDisk, DumpOptions::default(), &mut whole).unwrap();
    let whole = String::from_utf8(whole).unwrap();
    assert_eq!(whole.matches(".segment\n").count(), 8, "{whole}");
}

#[test]
fn a_dump_names_damage_and_goes_on_behind_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = filled(dir.path());
    let killed = killed(&store);
    store.close().unwrap();
    let path = segment(dir.path(), 1, 0);
    let length = batch_bytes(&path);
    flip(&path, HEADER_BYTES as u64 + 9);
    flip(&path, HEADER_BYTES as u64 + length + 100);
    flip(&path, 20);
    let damaged = text(&path);
    assert_eq!(damaged.lines().filter(|line| line.starts_with('!')).count(), 3, "{damaged}");
    assert!(
        damaged.contains("batch, offsets 2 to 3") && damaged.contains("footer, offsets 0 to 3"),
        "{damaged}"
    );
    let (path, frames) = frames(killed.path());
    flip(&path, frames[3] + 9);
    let damaged = text(&path);
    assert_eq!(damaged.matches("batch of topic").count(), 19, "{damaged}");
    assert!(damaged.contains(&format!("\n! {}: ", frames[3])), "{damaged}");
}
