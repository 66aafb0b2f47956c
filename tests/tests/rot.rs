//! Damaged files: a flipped bit, wherever it is; and files that are cut short, missing, swapped or another's.
#![allow(clippy::unwrap_used, reason = "a test")]

use std::path::Path;

use quipu_storage::{Error, ErrorKind, JournalEnd, Start, Store};
use quipu_tests::rot::run_on;
use quipu_tests::rot::sample::{Sample, open, sample};

#[test]
fn every_flipped_bit_is_noticed_and_costs_no_intact_record() {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let flipped = run_on(threads).unwrap_or_else(|complaint| panic!("{complaint}"));
    eprintln!("{flipped:?}");
    assert!(flipped.bits > 100_000 && flipped.reported > flipped.bits / 2, "{flipped:?}");
    assert!(flipped.torn > 1000 && flipped.lossy > 10_000, "{flipped:?}");
}

fn each_sample(check: impl Fn(bool, &Sample)) {
    for is_closed in [true, false] {
        check(is_closed, &sample(is_closed).unwrap());
    }
}

fn is_segment(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "segment")
}

fn is_journal(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "journal")
}

#[test]
fn a_file_that_is_cut_short_is_noticed_and_costs_only_what_is_missing() {
    each_sample(|is_closed, sample| {
        for (path, bytes) in sample.files().unwrap() {
            for length in (1..bytes.len()).filter(|length| length % 8 == 0 || length % 101 == 0) {
                let disk = sample.disk.after_kill();
                disk.truncate(&path, length as u64).unwrap();
                let at = format!("closed: {is_closed}, {} cut to {length}", path.display());
                if is_journal(&path) && open(&disk).is_ok_and(|store| is_torn(&store)) {
                    // What would say that more was synced is gone with the rest.
                    continue;
                }
                let disk = sample.disk.after_kill();
                disk.truncate(&path, length as u64).unwrap();
                let seen =
                    sample.open_and_look(&disk).unwrap_or_else(|complaint| panic!("{at}: {complaint}"));
                if is_segment(&path) || path.ends_with("checkpoint") {
                    assert!(seen.is_reported, "{at}: nobody noticed");
                }
            }
        }
    });
}

fn is_torn(store: &Store) -> bool {
    store.recovery().journal_end != JournalEnd::Clean
}

/// All but the last file of the journal: nothing else names that one, so a store without it is one that was killed before
/// it was begun.
#[test]
fn a_file_that_is_missing_is_noticed() {
    each_sample(|is_closed, sample| {
        for (path, _) in sample.files().unwrap() {
            let disk = sample.disk.after_kill();
            disk.lose_file(&path).unwrap();
            let at = format!("closed: {is_closed}, without {}", path.display());
            if is_journal(&path) && !is_closed {
                let is_first = path.ends_with("000000.journal");
                assert!(
                    open(&disk).is_err_and(|error| error.kind() == ErrorKind::Damaged) || !is_first,
                    "{at}"
                );
                continue;
            }
            let seen = sample.open_and_look(&disk).unwrap_or_else(|complaint| panic!("{at}: {complaint}"));
            // Of a store that was closed the journal is not needed. Without its checkpoint a store is no store, and is
            // not made anew either.
            let is_needed = is_segment(&path) || path.ends_with("checkpoint");
            assert!(seen.is_reported || !is_needed, "{at}: nobody noticed");
        }
    });
}

#[test]
fn segments_in_each_others_place_are_noticed_and_deliver_nothing_wrong() {
    each_sample(|is_closed, sample| {
        let files: Vec<_> =
            sample.files().unwrap().into_iter().filter(|(path, _)| is_segment(path)).collect();
        assert!(files.len() >= 5);
        for (place, _) in &files {
            for (other, bytes) in &files {
                if place == other {
                    continue;
                }
                let disk = sample.disk.after_kill();
                disk.plant_file(place, bytes).unwrap();
                let at = format!("closed: {is_closed}, {} in place of {}", other.display(), place.display());
                let seen =
                    sample.open_and_look(&disk).unwrap_or_else(|complaint| panic!("{at}: {complaint}"));
                assert!(seen.is_reported, "{at}: nobody noticed");
            }
        }
    });
}

#[test]
fn segments_of_another_store_are_noticed_and_deliver_nothing_wrong() {
    each_sample(|is_closed, sample| {
        let twin = self::sample(is_closed).unwrap();
        for (path, bytes) in twin.files().unwrap() {
            let disk = sample.disk.after_kill();
            disk.plant_file(&path, &bytes).unwrap();
            let at = format!("closed: {is_closed}, another store's {}", path.display());
            let seen = sample.open_and_look(&disk).unwrap_or_else(|complaint| panic!("{at}: {complaint}"));
            // The file `clean` says only where the journal ended, and an index of terms is asked by none of these readers.
            let is_quiet = path.ends_with("clean") || path.extension().is_some_and(|end| end == "terms");
            assert!(seen.is_reported || is_quiet, "{at}: nobody noticed");
        }
    });
}

#[test]
fn a_file_of_a_newer_version_is_refused_and_not_taken_for_damage() {
    each_sample(|is_closed, sample| {
        for (path, mut bytes) in sample.files().unwrap() {
            if path.ends_with("clean") || path.extension().is_some_and(|end| end == "terms") {
                // Of a newer version it counts as not there: the checkpoint says the rest, or the segment.
                continue;
            }
            let name = path.file_name().unwrap().to_str().unwrap();
            if bytes[..8] == [0; 8] {
                continue;
            }
            let middle = bytes.len() / 2;
            // Where each header begins, and where in it the checksum of what is before it.
            let headers: &[(usize, usize)] = match name {
                "checkpoint" => &[(0, 24), (middle, 24)],
                _ if name.ends_with(".journal") => &[(0, 68)],
                _ => &[(0, 60)],
            };
            for &(start, sum_at) in headers {
                bytes[start + 8] = 2;
                let mut sum = crc32fast::Hasher::new();
                sum.update(&bytes[start..start + sum_at]);
                if name == "checkpoint" {
                    let content =
                        u64::from_le_bytes(bytes[start + 16..start + 24].try_into().unwrap()) as usize;
                    sum.update(&bytes[start + 32..start + 32 + content]);
                }
                bytes[start + sum_at..start + sum_at + 4].copy_from_slice(&sum.finalize().to_le_bytes());
            }
            let disk = sample.disk.after_kill();
            disk.overwrite(&path, 0, &bytes).unwrap();
            let at = format!("closed: {is_closed}, {}", path.display());
            let refusal = match open(&disk) {
                Err(error) => Some(error),
                Ok(store) => store
                    .topics()
                    .iter()
                    .find_map(|topic| topic.read(Start::Earliest).unwrap().find_map(|outcome| outcome.err())),
            };
            assert!(matches!(refusal, Some(Error::NewerFormat { found: 2, .. })), "{at}: {refusal:?}");
        }
    });
}
