//! The golden files: what version 1 has written is read for ever, and its bytes do not change unnoticed.

#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu_storage::disk::OsDisk;
use quipu_storage::format::answer::Identity;
use quipu_storage::format::live::Live;
use quipu_storage::format::master_key::MasterKeyFile;
use quipu_storage::format::terms::block::{Block, BlockIndex, Entry, Place};
use quipu_storage::format::terms::filter::Filter;
use quipu_storage::format::terms::hash::hash;
use quipu_storage::format::terms::postings::{Posting, heads, list};
use quipu_storage::format::terms::{FOOTER_BYTES, Kind, TermsFooter, TermsHeader, crc_at, term};
use quipu_storage::verify::{VerifyOptions, verify};
use quipu_storage::{
    Append, Codec, Error, JournalEnd, Log, LogRecovery, LogSettings, Offset, Record, Redaction, Revision,
    Start, Store, StoreSettings, Topic,
};
use quipu_tests::golden::log::identity;
use quipu_tests::golden::{
    Expected, Golden, all, crc, live, logs, producers, sealed, stores, terms, zstandard,
};

/// The directory of the golden files of version 1.
fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("format/v1")
}

fn files_below(dir: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
    for entry in fs::read_dir(dir).unwrap() {
        let entry = entry.unwrap();
        let name = format!("{prefix}{}", entry.file_name().into_string().unwrap());
        if entry.file_type().unwrap().is_dir() {
            files_below(&entry.path(), &format!("{name}/"), files);
        } else {
            files.insert(name, fs::read(entry.path()).unwrap());
        }
    }
}

/// A copy of the golden store to work on.
fn copied(name: &str) -> tempfile::TempDir {
    let mut files = BTreeMap::new();
    files_below(&golden_dir().join(name), "", &mut files);
    let dir = tempfile::tempdir().unwrap();
    for (path, bytes) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn open(dir: &Path) -> quipu_storage::Result<Store> {
    let settings = StoreSettings {
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 512 << 10,
        append_bytes_max: 16 << 10,
        background: false,
        ..StoreSettings::default()
    };
    Store::builder().settings(settings).create(false).open(dir)
}

fn read(topic: &Topic) -> Expected {
    let records = topic.read(Start::Earliest).unwrap().map(Result::unwrap);
    records.map(|record| (record.offset().0, record.append_time().0, record.view().to_record())).collect()
}

fn check(store: &Store, golden: &Golden) {
    let names: Vec<_> = store.topics().iter().map(|topic| topic.name().to_string()).collect();
    assert_eq!(names, golden.topics.keys().copied().collect::<Vec<_>>());
    for (name, expected) in &golden.topics {
        assert_eq!(read(&store.topic(name).unwrap()), *expected, "{} {name}", golden.name);
    }
    let cache = store.topic("cache").unwrap();
    assert_eq!((cache.log_start_offset(), cache.log_end_offset()), (Offset(1 << 24), Offset(1 << 24)));
}

#[test]
fn the_stores_of_version_1_open_and_read_as_they_were_written() {
    for golden in stores() {
        let dir = copied(golden.name);
        for run in 0..2 {
            let store = open(dir.path()).unwrap();
            let is_clean = run > 0 || golden.name == "closed";
            assert_eq!(store.recovery().was_clean, is_clean, "{}", golden.name);
            assert_eq!(matches!(store.recovery().journal_end, JournalEnd::Torn { .. }), !is_clean);
            check(&store, &golden);
            // And once more from segments, where a checkpoint has put everything.
            store.checkpoint().unwrap();
            check(&store, &golden);
            store.close().unwrap();
        }
    }
}

/// Whatever changes in how keys are derived or payloads are sealed, what was sealed must open.
#[test]
fn the_sealed_payloads_of_a_golden_store_open_until_they_are_erased() {
    for master_key in [sealed::master_key(), sealed::named_master_key()] {
        the_sealed_payloads_open_until_they_are_erased(&master_key);
    }
}

fn the_sealed_payloads_open_until_they_are_erased(master_key: &Golden) {
    let golden = sealed::golden();
    let (dir, keys) = (copied(golden.name), copied(master_key.name));
    let builder = || {
        let settings = StoreSettings { background: false, ..StoreSettings::default() };
        Store::builder().settings(settings).create(false).master_key(keys.path().join("master.key"))
    };
    let redacted = |store: &Store| -> Vec<_> {
        let topic = store.topic("customers").unwrap();
        topic.read(Start::Earliest).unwrap().map(|record| record.unwrap().redacted()).collect()
    };
    let [erased, locked] = [Some(Redaction::Erased), Some(Redaction::Locked)];
    for _ in 0..2 {
        let store = builder().open(dir.path()).unwrap();
        assert_eq!(read(&store.topic("customers").unwrap()), golden.topics["customers"]);
        assert_eq!(redacted(&store), [None, None, None, erased, None]);
        store.close().unwrap();
    }
    let store = Store::open(dir.path()).unwrap();
    assert_eq!(redacted(&store), [locked, None, locked, erased, None]);
    store.close().unwrap();
    let store = builder().open(dir.path()).unwrap();
    store.erase(&[sealed::ERASURE_KEY]).unwrap();
    assert_eq!(redacted(&store), [erased, None, erased, erased, None]);
    let written = MasterKeyFile::decode(&fs::read(keys.path().join("master.key")).unwrap()).unwrap();
    assert_eq!(written.store, Some(store.uid()), "it says whose it is from its next writing on");
}

/// From the checkpoint, from the journal behind it, and from the next checkpoint.
#[test]
fn the_appends_of_a_golden_store_can_be_repeated() {
    let golden = producers::golden();
    let dir = copied(golden.name);
    for run in 0..3 {
        let store = open(dir.path()).unwrap();
        let topic = store.topic("payments").unwrap();
        assert_eq!(read(&topic), golden.topics["payments"]);
        let known: Vec<_> = store.producers(None, 9).into_iter().map(|known| known.name).collect();
        assert_eq!(known, ["g\u{e9}rant", "new", "writer"]);
        assert_eq!(store.stats().request_ids, 2);
        for one in producers::repeatable() {
            let append = Append::new().records(&topic, [&one.record]).unwrap();
            let append = match one.identity {
                Identity::Producer(producer) => append.producer(producer),
                Identity::RequestId(id) => append.request_id(id),
            };
            let ticket = store.submit(append).unwrap();
            assert!(ticket.is_duplicate(), "{run}: {}", one.offset);
            let [appended] = &ticket.wait().unwrap()[..] else { panic!("one answer for one topic") };
            assert_eq!(appended.first_offset, Offset(one.offset));
            assert_eq!(appended.next_offset, Offset(one.offset + 1));
            assert_eq!(appended.revisions, one.revision.map(Revision).into_iter().collect::<Vec<_>>());
        }
        let fenced =
            |token| Append::new().records(&topic, &[Record::new("x")]).unwrap().fencing_token(&topic, token);
        let error = store.append(fenced(producers::FENCING_TOKEN - 1)).unwrap_err();
        assert!(matches!(error, Error::TopicFenced { current: producers::FENCING_TOKEN, .. }), "{error}");
        store.close().unwrap();
        let report = verify(dir.path(), Arc::new(OsDisk), VerifyOptions::default()).unwrap();
        assert!(report.findings.is_empty(), "{report:?}");
    }
}

/// The stores of version 1 were written before there were revisions.
#[test]
fn records_from_before_there_were_revisions_are_counted_in_their_streams() {
    for golden in stores() {
        let dir = copied(golden.name);
        let mut streams: BTreeMap<(&str, Vec<u8>), Vec<u64>> = BTreeMap::new();
        for (name, records) in &golden.topics {
            for (offset, _, record) in records {
                if let Some(key) = &record.key {
                    streams.entry((name, key.clone())).or_default().push(*offset);
                }
            }
        }
        assert!(streams.values().any(|offsets| offsets.len() > 1), "{}", golden.name);
        for run in 0..3 {
            let store = open(dir.path()).unwrap();
            for ((name, key), offsets) in &mut streams {
                let topic = store.topic(name).unwrap();
                let read: Vec<_> = topic.read_stream(key, Revision(0)).unwrap().map(Result::unwrap).collect();
                let found: Vec<_> = read.iter().map(|record| record.offset().0).collect();
                assert_eq!(found, *offsets, "{} {name}", golden.name);
                let revisions: Vec<_> = read.iter().map(|record| record.revision().unwrap().0).collect();
                // Of the other store the first record was trimmed, and is in its segment still.
                let first = u64::from(golden.name == "killed" && *name == "orders" && key == b"order-1");
                assert_eq!(revisions, (first..first + offsets.len() as u64).collect::<Vec<_>>(), "{name}");
                if run > 0 {
                    let appended = topic.append(&[Record::keyed(key.clone(), "new")]).unwrap();
                    assert_eq!(appended.revisions, [Revision(first + offsets.len() as u64)]);
                    offsets.push(appended.first_offset.0);
                }
            }
            store.close().unwrap();
        }
    }
}

#[test]
fn the_stores_of_version_1_verify_without_findings() {
    for golden in stores() {
        let dir = copied(golden.name);
        for run in 0..2 {
            let report = verify(dir.path(), Arc::new(OsDisk), VerifyOptions::default()).unwrap();
            assert_eq!(report.findings, [], "{} {run}", golden.name);
            open(dir.path()).unwrap().close().unwrap();
        }
    }
}

#[test]
fn the_codecs_of_today_give_the_bytes_of_version_1() {
    for golden in all() {
        let mut files = BTreeMap::new();
        files_below(&golden_dir().join(golden.name), "", &mut files);
        assert_eq!(
            files.keys().collect::<Vec<_>>(),
            golden.files.keys().collect::<Vec<_>>(),
            "{}",
            golden.name
        );
        for (path, bytes) in &golden.files {
            let differs = files[path].iter().zip(bytes).position(|(old, new)| old != new);
            assert_eq!(differs, None, "{}/{path}: bytes changed without a new version", golden.name);
            assert_eq!(files[path].len(), bytes.len(), "{}/{path}", golden.name);
        }
    }
}

#[test]
fn every_term_of_the_indexes_of_version_1_is_found_where_it_was_written() {
    let dir = golden_dir().join("terms");
    let file = fs::read(dir.join(format!("{:020}-0.terms", terms::BASE))).unwrap();
    let header = TermsHeader::decode(&file).unwrap();
    assert_eq!(header, terms::header());
    for (term, offsets, revisions) in terms::terms() {
        let (block, entry) = find_term(&file, &term).unwrap();
        let revision = |number: usize| revisions.get(number).copied();
        let posting = |number: usize| Posting { offset: offsets[number], revision: revision(number) };
        let found = match entry.postings {
            Place::Ends if entry.count == 1 => vec![posting(0)],
            Place::Ends => vec![posting(0), posting(1)],
            Place::Inline(range) => list(&block[range], posting(0), entry.numbering).unwrap(),
            Place::Run { position, heads_bytes, crc } => {
                let bytes = |at: u64, bytes: u64| {
                    let at = usize::try_from(at).unwrap();
                    &file[at..at + usize::try_from(bytes).unwrap()]
                };
                let seed = header.seed();
                let first = entry.revisions.map(|(first, _)| first);
                heads(seed, (position, crc), bytes(position, heads_bytes), entry.numbering, first)
                    .unwrap()
                    .iter()
                    .flat_map(|chunk| {
                        let bytes = bytes(chunk.position, chunk.bytes.into());
                        chunk.postings(seed, bytes, entry.numbering).unwrap()
                    })
                    .collect()
            }
        };
        assert_eq!(found, (0..offsets.len()).map(posting).collect::<Vec<_>>(), "{term:?}");
        assert_eq!((entry.first, entry.last), (offsets[0], offsets[offsets.len() - 1]));
        assert_eq!(entry.revisions.map(|(_, last)| last), revisions.last().copied());
    }
    assert!(find_term(&file, &term(Kind::Key, b"stream-0500")).is_none());
    let past = fs::read(dir.join("00000000000000000000.past")).unwrap();
    for (key, revision) in terms::past() {
        let (_, entry) = find_term(&past, &key).unwrap();
        assert_eq!((entry.count, entry.revisions), (0, Some((revision, revision))));
    }
}

/// The block that a term would be in, and its entry if it is there.
fn find_term(file: &[u8], term: &[u8]) -> Option<(Vec<u8>, Entry)> {
    let header = TermsHeader::decode(file).unwrap();
    let seed = header.seed();
    let footer = TermsFooter::decode(&file[file.len() - FOOTER_BYTES..], seed, file.len() as u64).unwrap();
    let index_at = usize::try_from(footer.index_position).unwrap();
    let filter_at = index_at + usize::try_from(footer.index_bytes).unwrap();
    let (index, filter) = (&file[index_at..filter_at], &file[filter_at..file.len() - FOOTER_BYTES]);
    assert_eq!(crc_at(seed, index_at as u64, index), footer.index_crc);
    assert_eq!(crc_at(seed, filter_at as u64, filter), footer.filter_crc);
    let filter = Filter::new(filter.to_vec().into()).unwrap();
    let index = BlockIndex::decode(index, footer.block_count, footer.index_position).unwrap();
    let place = index.blocks()[index.find(term)?];
    let at = usize::try_from(place.position).unwrap();
    let bytes = file[at..at + place.bytes as usize].to_vec();
    let entry = Block::new(seed, place.position, &bytes, header.base_offset).unwrap().find(term).unwrap();
    assert!(entry.is_none() || filter.may_have(hash(header.topic, term)));
    Some((bytes, entry?))
}

fn open_log(dir: &Path) -> quipu_storage::Result<Log> {
    let settings = LogSettings { segment_bytes_max: 6000, background: false, ..LogSettings::default() };
    Log::builder().settings(settings).create(false).open(dir)
}

fn read_log(log: &Log) -> Expected {
    let records = log.read(Start::Earliest).unwrap().map(Result::unwrap);
    records.map(|record| (record.offset().0, record.append_time().0, record.view().to_record())).collect()
}

#[test]
fn the_logs_of_version_1_open_and_read_as_they_were_written() {
    for golden in logs() {
        let dir = copied(golden.name);
        let log = open_log(dir.path()).unwrap();
        if golden.name == "log-closed" {
            assert_eq!(log.recovery(), &LogRecovery::default());
        } else {
            // From the last batch that was synced on; the torn one has 512 bytes.
            assert!(log.recovery().in_doubt_bytes > 0, "{:?}", log.recovery());
            assert_eq!(log.recovery().torn_bytes, 512);
        }
        assert_eq!(log.log_start_offset(), Offset(1));
        let mut expected = golden.topics["log"].clone();
        assert_eq!(read_log(&log), expected, "{}", golden.name);
        // It goes on, and is found closed.
        let record = Record::new("appended by a later version");
        let appended = log.append(std::slice::from_ref(&record)).unwrap();
        expected.push((appended.first_offset.0, appended.append_time.0, record));
        log.close().unwrap();
        drop(log);
        let log = open_log(dir.path()).unwrap();
        assert_eq!(read_log(&log), expected, "{}", golden.name);
    }
}

#[test]
fn the_logs_of_today_write_their_identity_as_version_1_did() {
    let dir = copied("log-closed");
    let old = fs::read(dir.path().join("log")).unwrap();
    let log = open_log(dir.path()).unwrap();
    // Beyond the first segment, so that nothing else has to be noted.
    log.trim(Offset(3)).unwrap();
    let new = fs::read(dir.path().join("log")).unwrap();
    let number = |at: usize| u64::from_le_bytes(new[at..at + 8].try_into().unwrap());
    assert_ne!(old, new);
    assert_eq!(new, identity(3, number(40), number(48)), "bytes changed without a new version");
    assert_eq!(number(40), 4);
}

#[test]
fn the_logs_of_today_are_closed_as_version_1_was() {
    let golden = &logs()[0];
    let dir = copied(golden.name);
    open_log(dir.path()).unwrap().close().unwrap();
    let mut files = BTreeMap::new();
    files_below(dir.path(), "", &mut files);
    for (path, bytes) in &golden.files {
        assert_eq!(files[path], *bytes, "{path}");
    }
}

#[test]
fn a_newer_log_is_refused() {
    for (change, found) in NEWER {
        let dir = copied("log-closed");
        let path = dir.path().join("log");
        let mut bytes = fs::read(&path).unwrap();
        for copy in [0, 4096] {
            patch(&mut bytes[copy..], 0, 60, change);
        }
        fs::write(&path, &bytes).unwrap();
        assert_newer(open_log(dir.path()), &path, found);
    }
}

#[test]
fn the_file_live_of_version_1_says_what_it_said() {
    let (said, _) = live();
    let mut bytes = fs::read(golden_dir().join("reader/live")).unwrap();
    assert_eq!(Live::decode(&bytes), Some(said));
    // Without the later slot the earlier one counts.
    bytes[512 + 80] ^= 1;
    assert_eq!(Live::decode(&bytes).map(|live| live.sequence), Some(40));
}

#[test]
fn a_batch_of_version_1_that_is_compressed_with_zstandard_is_read_or_named() {
    let golden = zstandard();
    let dir = copied(golden.name);
    let store = open(dir.path()).unwrap();
    let topic = store.topic("packed").unwrap();
    let expected = &golden.topics["packed"];
    if Codec::Zstd.is_available() {
        assert_eq!(read(&topic), *expected);
    } else {
        let refused = topic.get(Offset(1)).unwrap_err();
        assert!(matches!(refused, Error::CodecUnavailable { codec: "zstd" }), "{refused}");
        // It is not damaged, and its neighbours are there.
        assert_eq!(topic.get(Offset(2)).unwrap().unwrap().view().to_record(), expected[2].2);
        assert_eq!(store.stats().damage_found, 0);
    }
}

#[test]
fn golden_files_stay_small() {
    let mut files = BTreeMap::new();
    files_below(&golden_dir(), "", &mut files);
    let bytes: usize = files.values().map(Vec::len).sum();
    assert!(bytes > 0 && bytes < 300 << 10, "{bytes}");
}

/// Patches the preamble of a header whose checksum follows its first `covered` bytes.
fn patch(bytes: &mut [u8], seed: u32, covered: usize, (at, value): (usize, u8)) {
    bytes[at] = value;
    let sum = crc(seed, &bytes[..covered]);
    bytes[covered..covered + 4].copy_from_slice(&sum.to_le_bytes());
}

#[track_caller]
fn assert_newer<T: std::fmt::Debug>(outcome: quipu_storage::Result<T>, path: &Path, version: u32) {
    match outcome.unwrap_err() {
        Error::NewerFormat { path: named, found, .. } => assert_eq!((&*named, found), (path, version)),
        error => panic!("{error}"),
    }
}

/// A newer version, and a feature that must be understood and is not.
const NEWER: [((usize, u8), u32); 2] = [((8, 2), 2), ((13, 1), 256)];

#[test]
fn a_newer_checkpoint_is_refused() {
    for (change, found) in NEWER {
        let dir = copied("closed");
        let path = dir.path().join("checkpoint");
        let mut bytes = fs::read(&path).unwrap();
        let middle = bytes.len() / 2;
        for copy in [0, middle] {
            let copy = &mut bytes[copy..copy + middle];
            copy[change.0] = change.1;
            let content = usize::try_from(u64::from_le_bytes(copy[16..24].try_into().unwrap())).unwrap();
            let sum = crc(crc(0, &copy[..24]), &copy[32..32 + content]);
            copy[24..28].copy_from_slice(&sum.to_le_bytes());
        }
        fs::write(&path, bytes).unwrap();
        assert_newer(open(dir.path()), &path, found);
    }
}

#[test]
fn a_newer_journal_file_is_refused() {
    for (change, found) in NEWER {
        let dir = copied("killed");
        let path = dir.path().join("journal/000001.journal");
        let mut bytes = fs::read(&path).unwrap();
        patch(&mut bytes, 0, 68, change);
        fs::write(&path, bytes).unwrap();
        assert_newer(open(dir.path()), &path, found);
    }
}

#[test]
fn a_newer_segment_is_refused_with_its_topic_only() {
    for (change, found) in NEWER {
        let dir = copied("closed");
        // By its footer, which readers look at first.
        let path = dir.path().join("topics/00000001/00000000000000000000-0.segment");
        let mut bytes = fs::read(&path).unwrap();
        let footer = bytes.len() - 96;
        patch(&mut bytes[footer..], crc(0, &[0x11; 16]), 92, change);
        fs::write(&path, bytes).unwrap();
        let store = open(dir.path()).unwrap();
        let mut records = store.topic("orders").unwrap().read(Start::Earliest).unwrap();
        assert_newer(records.next().unwrap(), &path, found);
        // By its header, where the store does not know it.
        let path = dir.path().join("topics/00000002/00000000000000000099-0.segment");
        let mut bytes = fs::read(dir.path().join("topics/00000002/00000000000000000000-1.segment")).unwrap();
        patch(&mut bytes, 0, 60, change);
        fs::write(&path, bytes).unwrap();
        let topic = store.topic("orders/by-key").unwrap();
        assert_newer(topic.get(Offset(1)), &path, found);
        assert!(path.exists(), "what a newer version wrote is not removed");
    }
}

#[test]
fn a_change_of_a_newer_version_is_refused() {
    let dir = copied("killed");
    let path = dir.path().join("journal/000001.journal");
    let mut bytes = fs::read(&path).unwrap();
    // The first frame deletes a topic, change 4: let it be change 12, which is reserved.
    let (generation, salt) = (&bytes[32..40].to_vec(), &bytes[64..68].to_vec());
    let seed = crc(crc(0, generation), salt);
    let frame = &mut bytes[4096..];
    assert_eq!(frame[40], 4 << 3 | 2);
    frame[40] = 12 << 3 | 2;
    let meta_bytes = usize::try_from(u32::from_le_bytes(frame[32..36].try_into().unwrap())).unwrap();
    let sum = crc(seed, &frame[4..40 + meta_bytes]);
    frame[..4].copy_from_slice(&sum.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    assert_newer(open(dir.path()), &path, 12);
}

#[test]
fn a_rewritten_segment_without_its_footer_still_gives_all_its_records() {
    // Compaction had taken out the last two offsets of the segment. When its footer was damaged, readers took its index
    // for a damaged batch and reported these offsets as lost.
    let golden = &stores()[0];
    let dir = copied(golden.name);
    let path = dir.path().join("topics/00000002/00000000000000000000-1.segment");
    let mut bytes = fs::read(&path).unwrap();
    let footer = bytes.len() - 96;
    bytes[footer + 3] ^= 1;
    fs::write(&path, bytes).unwrap();
    let store = open(dir.path()).unwrap();
    assert_eq!(read(&store.topic("orders/by-key").unwrap()), golden.topics["orders/by-key"]);
}
