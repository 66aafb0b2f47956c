//! Cases on a disk that is small or fails: each is one process, run by `tests/real_disk.rs` on a disk of its own.
//!
//! ```text
//!   disk_cases full DIR           the disk fills up: refused cleanly, reads go on, a trim frees it
//!   disk_cases sync DIR CTL       a failed flush is final; reopening after it is healed works
//!   disk_cases write DIR CTL      the same for failed writes
//!   disk_cases read DIR CTL       a sector under a map that cannot be read: an error, and only for its records
//!   disk_cases files DIR          no file handles left: typed errors, nothing lost
//! ```
//!
//! CTL is the control file of `crashdisk mount`. Exit 0: as it must be; 101 (a panic): not.

#![expect(clippy::print_stdout, reason = "what it says is what it is for")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::Path;
use std::process::ExitCode;

use quipu_storage::{
    Durability, Error, ErrorKind, Offset, Record, Start, Store, StoreSettings, Topic, TopicSettings,
};
use quipu_tests::workload::store_settings;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["full", dir] => full(Path::new(dir)),
        ["sync", dir, ctl] => failing(Path::new(dir), Path::new(ctl), "flush-eio"),
        ["write", dir, ctl] => failing(Path::new(dir), Path::new(ctl), "write-eio"),
        ["read", dir, ctl] => unreadable(Path::new(dir), Path::new(ctl)),
        ["files", dir] => few_files(Path::new(dir)),
        _ => {
            eprintln!("disk_cases: no such case");
            return ExitCode::from(64);
        }
    }
    println!("as it must be");
    ExitCode::SUCCESS
}

/// Records of one topic: number `n` has this content.
fn content(n: u64) -> String {
    format!("{n} {}", "x".repeat(900))
}

fn append(topic: &Topic, n: u64) -> quipu_storage::Result<()> {
    let appended = topic.append_with(&[Record::new(content(n))], Durability::Synced)?;
    assert_eq!(appended.first_offset, Offset(n));
    Ok(())
}

/// Reads the whole topic: these records, and no others.
fn expect(topic: &Topic, from: u64, to: u64) {
    let mut next = from;
    for record in topic.read(Start::Earliest).unwrap() {
        let record = record.unwrap();
        assert_eq!(record.offset(), Offset(next));
        assert!(record.payload() == Some(content(next).as_bytes()), "offset {next} was changed");
        next += 1;
    }
    assert_eq!(next, to);
}

fn open(dir: &Path, settings: StoreSettings) -> Store {
    Store::builder().settings(settings).open(dir).unwrap()
}

fn topic(store: &Store, name: &str) -> Topic {
    let settings = TopicSettings { segment_bytes_max: 64 << 10, ..TopicSettings::default() };
    match store.create_topic(name, settings) {
        Err(Error::TopicExists { .. }) => store.topic(name),
        outcome => outcome,
    }
    .unwrap()
}

/// Appends until it is refused; what was refused was not applied. A disk that was full a moment ago may be said to be
/// so for a moment longer.
fn append_until_refused(topic: &Topic, next: &mut u64) -> Error {
    let mut refused_since = None;
    loop {
        match append(topic, *next) {
            Ok(()) => (*next, refused_since) = (*next + 1, None),
            Err(error) if error.kind() == ErrorKind::DiskFull => {
                let since = refused_since.get_or_insert_with(std::time::Instant::now);
                if since.elapsed().as_millis() > 2000 {
                    return error;
                }
                std::thread::yield_now();
            }
            Err(error) => return error,
        }
        assert!(*next < 1_000_000, "the disk never gets full");
    }
}

/// Something else that takes room on the disk.
fn ballast(dir: &Path) -> std::path::PathBuf {
    dir.with_file_name("ballast")
}

fn full(dir: &Path) {
    fs::write(ballast(dir), vec![1; 256 << 10]).unwrap();
    let store = open(dir, store_settings());
    let (filler, other) = (topic(&store, "filler"), topic(&store, "other"));
    append(&other, 0).unwrap();
    let mut next = 0;
    for round in 0..5 {
        let error = append_until_refused(&filler, &mut next);
        assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
        let start = filler.log_start_offset().0;
        println!("round {round}: {error}; {} records are there", next - start);
        assert!(next - start > 1000, "it is full with {} records", next - start);
        // Reading goes on, and so does trimming, which makes room.
        expect(&filler, start, next);
        expect(&other, 0, 1 + round);
        let kept = next - 500;
        filler.trim(Offset(kept)).unwrap();
        expect(&filler, kept, next);
        goes_on(&filler, &mut next);
        goes_on(&other, &mut (1 + round));
        if round == 2 {
            // Full again, and closed like that: it opens, and is as it was.
            append_until_refused(&filler, &mut next);
            let closed = store.close();
            assert!(
                closed.is_ok() || closed.as_ref().unwrap_err().kind() == ErrorKind::DiskFull,
                "{closed:?}"
            );
            drop((filler, other, store));
            return full_again(dir, kept, next, 2 + round);
        }
    }
}

fn full_again(dir: &Path, kept: u64, mut next: u64, others: u64) {
    let settings = StoreSettings { background: false, ..store_settings() };
    let store = match Store::builder().settings(settings.clone()).open(dir) {
        Ok(store) => store,
        Err(error) => {
            // No room is left for the next file of the journal: it says so, and needs room from elsewhere.
            assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
            println!("{error}");
            fs::remove_file(ballast(dir)).unwrap();
            open(dir, settings)
        }
    };
    let (filler, other) = (store.topic("filler").unwrap(), store.topic("other").unwrap());
    expect(&filler, kept, next);
    expect(&other, 0, others);
    filler.trim(Offset(next - 10)).unwrap();
    goes_on(&filler, &mut next);
    expect(&filler, next - 11, next);
    store.close().unwrap();
}

/// Space was freed: an append is taken, at once or when the store has noticed.
fn goes_on(topic: &Topic, next: &mut u64) {
    let begun = std::time::Instant::now();
    loop {
        match append(topic, *next) {
            Ok(()) => break,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::DiskFull, "{error}");
                assert!(begun.elapsed().as_secs() < 10, "space was freed, and it still says: {error}");
                std::thread::yield_now();
            }
        }
    }
    *next += 1;
}

fn control(ctl: &Path, command: &str) {
    fs::write(ctl, command).unwrap();
}

/// How many operations the disk has failed.
fn hits(ctl: &Path) -> u64 {
    fs::read_to_string(ctl).unwrap().split_whitespace().last().unwrap().parse().unwrap()
}

/// A failure of what makes records durable is final: not one append is taken after it, though the disk has healed.
///
/// The store has no threads of its own, and the disk is mounted such that its file system writes by itself only what
/// it is asked for: so the operation that fails is one of a sync of the store's journal, and never one of the file
/// system's journal. That would turn the file system read-only until it is mounted anew.
fn failing(dir: &Path, ctl: &Path, fault: &str) {
    let settings = StoreSettings { background: false, ..store_settings() };
    let mut next = 0;
    for round in 0..3 {
        let store = open(dir, settings.clone());
        let log = topic(&store, "log");
        let end = log.log_end_offset().0;
        // Of the one whose append failed is known only now whether it survived.
        assert!(
            end == next || round > 0 && end == next + 1,
            "{end} records are there, {next} were acknowledged"
        );
        next = end;
        expect(&log, 0, next);
        for _ in 0..20 {
            append(&log, next).unwrap();
            next += 1;
        }
        // Once only: whoever tries again would be told that all is well.
        let range = if fault == "write-eio" { " 0 999999999" } else { "" };
        let before = hits(ctl);
        control(ctl, &format!("{fault}{range} {} 1\n", 2 * round));
        let error = loop {
            match append(&log, next) {
                Ok(()) => next += 1,
                Err(error) => break error,
            }
            assert_eq!(hits(ctl), before, "acknowledged although the disk has failed");
        };
        assert_eq!(hits(ctl), before + 1, "refused without a fault: {error}");
        assert_eq!(error.kind(), ErrorKind::Reopen, "{error}");
        println!("round {round}: {error}");
        control(ctl, "clear\n");
        for _ in 0..3 {
            assert_eq!(append(&log, next).unwrap_err().kind(), ErrorKind::Reopen);
            assert_eq!(store.sync().unwrap_err().kind(), ErrorKind::Reopen);
            assert_eq!(store.checkpoint().unwrap_err().kind(), ErrorKind::Reopen);
        }
        // What readers may see is what is durable: they go on.
        assert_eq!(log.high_watermark(), Offset(next));
        expect(&log, 0, next);
        assert!(store.close().is_err());
    }
    let store = open(dir, settings);
    let log = topic(&store, "log");
    let end = log.log_end_offset().0;
    assert!((next..=next + 1).contains(&end), "{end} records are there, {next} were acknowledged");
    expect(&log, 0, end);
    append(&log, end).unwrap();
    store.close().unwrap();
}

fn unreadable(dir: &Path, ctl: &Path) {
    const RECORDS: u64 = 400;
    let store = open(dir, store_settings());
    for name in ["hurt", "whole"] {
        let topic = topic(&store, name);
        for n in 0..RECORDS {
            append(&topic, n).unwrap();
        }
    }
    store.close().unwrap();
    drop(store);

    let store = open(dir, store_settings());
    let (hurt, whole) = (topic(&store, "hurt"), topic(&store, "whole"));
    // Everything is read once, and so are the tables of the file system. Then one segment leaves the page cache.
    expect(&hurt, 0, RECORDS);
    expect(&whole, 0, RECORDS);
    drop((hurt, whole));
    store.close().unwrap();
    drop(store);
    let victim = second_segment(dir);
    let bytes = fs::metadata(&victim).unwrap().len();
    control(ctl, "clear\n");
    let store = open(dir, store_settings());
    let (hurt, whole) = (topic(&store, "hurt"), topic(&store, "whole"));
    let file = fs::File::open(&victim).unwrap();
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, std::num::NonZeroU64::new(bytes), rustix::fs::Advice::DontNeed).unwrap();
    control(ctl, "read-eio\n");
    let mut cursor = hurt.cursor(Start::Earliest, quipu_storage::Visibility::Synced).unwrap();
    let (mut read, mut damaged) = (0, 0);
    loop {
        match cursor.next_batch() {
            Ok(Some(batch)) => read += batch.records().count() as u64,
            Ok(None) => break,
            Err(Error::Corrupt { topic, offsets, path, .. }) => {
                assert_eq!((topic.as_str(), &path), ("hurt", &victim));
                damaged += offsets.end - offsets.start;
                cursor.seek(offsets.end);
            }
            Err(error) => panic!("{:?}: {error}", error.kind()),
        }
    }
    println!("{read} records were read, {damaged} cannot be");
    assert!(hits(ctl) > 0, "the disk was never asked");
    assert!(damaged > 0);
    assert_eq!(read + damaged, RECORDS);
    let point = hurt.get(Offset(RECORDS / 2));
    assert!(point.is_ok() || point.as_ref().unwrap_err().kind() == ErrorKind::Damaged, "{point:?}");
    expect(&whole, 0, RECORDS);
    append(&whole, RECORDS).unwrap();
    append(&hurt, RECORDS).unwrap();
    // A sector that can be read again is read again.
    control(ctl, "clear\n");
    expect(&hurt, 0, RECORDS + 1);
    store.close().unwrap();
}

fn second_segment(dir: &Path) -> std::path::PathBuf {
    let topics = fs::read_dir(dir.join("topics")).unwrap();
    let first = topics.map(|entry| entry.unwrap().path()).min().unwrap();
    let mut segments: Vec<_> = fs::read_dir(first).unwrap().map(|entry| entry.unwrap().path()).collect();
    segments.retain(|path| path.extension().is_some_and(|extension| extension == "segment"));
    segments.sort();
    segments[1].clone()
}

/// Under a limit of open files that is too small for all the topics.
///
/// As many topics as may be written to between two checkpoints under the limit: each one holds a handle until then.
fn few_files(dir: &Path) {
    let settings = StoreSettings { open_files_max: 8, maps_max: 8, ..store_settings() };
    let mut ends = std::collections::BTreeMap::<String, u64>::new();
    let (mut refused, mut reads_refused) = (0, 0);
    for round in 0..3 {
        let store = open(dir, settings.clone());
        for number in 0..20 {
            let name = format!("t{number}");
            let next = ends.entry(name.clone()).or_default();
            let topic = topic(&store, &name);
            assert_eq!(topic.log_end_offset(), Offset(*next), "{name} in round {round}");
            for _ in 0..10 {
                match append(&topic, *next) {
                    Ok(()) => *next += 1,
                    Err(error) => {
                        assert!(matches!(error.kind(), ErrorKind::Retry), "{:?}: {error}", error.kind());
                        refused += 1;
                    }
                }
            }
        }
        // Hold every handle there is: nothing may be lost, and nobody may die.
        let mut held = Vec::new();
        while let Ok(file) = fs::File::open("/dev/null") {
            held.push(file);
        }
        for (name, next) in &mut ends {
            let topic = store.topic(name).unwrap();
            match append(&topic, *next) {
                Ok(()) => *next += 1,
                Err(error) => {
                    assert!(matches!(error.kind(), ErrorKind::Retry), "{:?}: {error}", error.kind());
                    refused += 1;
                }
            }
            let error = topic.read(Start::Earliest).and_then(|mut records| records.next().transpose()).err();
            if let Some(error) = error {
                assert!(matches!(error.kind(), ErrorKind::Retry), "{:?}: {error}", error.kind());
                reads_refused += 1;
            }
        }
        let checkpoint = store.checkpoint();
        assert!(
            checkpoint.is_ok() || checkpoint.as_ref().unwrap_err().kind() == ErrorKind::Retry,
            "{checkpoint:?}"
        );
        drop(held);
        for (name, next) in &ends {
            expect(&store.topic(name).unwrap(), 0, *next);
        }
        store.close().unwrap();
    }
    println!("{refused} appends and {reads_refused} reads were refused");
    assert!(refused + reads_refused > 0, "there were always enough");
    let store = open(dir, settings);
    for (name, next) in &ends {
        expect(&store.topic(name).unwrap(), 0, *next);
    }
}
