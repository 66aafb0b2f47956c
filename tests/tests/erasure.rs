//! Destroying keys on disks that lose power, whose operations fail, and whose process is killed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::path::Path;
use std::sync::Arc;

use quipu_storage::disk::{Disk, OpenMode};
use quipu_storage::{Error, ErrorKind, Record, Redaction, Start, Store, StoreSettings};
use quipu_tests::faulty::{EIO, ENOSPC, Fault, FaultyDisk, OpKind};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

const KEY: &str = "/keys/master.key";
const MODES: [Option<CrashMode>; 6] = [
    None,
    Some(CrashMode::LoseAll),
    Some(CrashMode::KeepAll),
    Some(CrashMode::Random),
    Some(CrashMode::Random),
    Some(CrashMode::Random),
];

fn disk() -> SimDisk {
    let sim = SimDisk::new();
    for dir in ["/store", "/keys"] {
        sim.create_dir(Path::new(dir)).unwrap();
    }
    sim.sync_dir(Path::new("/")).unwrap();
    sim
}

fn open(disk: Arc<dyn Disk>) -> Result<Store, Error> {
    let settings = StoreSettings {
        background: false,
        journal_file_bytes: 64 << 10,
        journal_bytes_max: 256 << 10,
        append_bytes_max: 16 << 10,
        reserve_bytes: 0,
        ..StoreSettings::default()
    };
    Store::builder().settings(settings).disk(disk).master_key(KEY).create_master_key(true).open("/store")
}

fn sealed(erasure_key: &str) -> Record {
    Record::new(format!("of {erasure_key}")).with_erasure_key(erasure_key)
}

/// A store with a record of each of three subjects, the third of which is erased.
fn filled(disk: Arc<dyn Disk>) -> Store {
    let store = open(disk).unwrap();
    let topic = store.topic_or_create("t").unwrap();
    topic.append(&[sealed("a"), sealed("b"), sealed("c")]).unwrap();
    store.erase(&["c"]).unwrap();
    store
}

/// Which of the three are erased; the others have what was appended.
fn erased(store: &Store) -> [bool; 3] {
    let records: Vec<_> =
        store.topic("t").unwrap().read(Start::Earliest).unwrap().map(Result::unwrap).collect();
    assert_eq!(records.len(), 3);
    ["a", "b", "c"].map(|name| {
        let record = records.iter().find(|record| record.view().erasure_key == Some(name)).unwrap();
        let is_erased = store.is_erased(name).unwrap();
        match record.redacted() {
            None => assert_eq!(record.payload(), Some(format!("of {name}").as_bytes())),
            Some(redaction) => assert_eq!((redaction, record.payload()), (Redaction::Erased, None)),
        }
        assert_eq!(record.redacted().is_some(), is_erased);
        is_erased
    })
}

fn lost(disk: &SimDisk, mode: Option<CrashMode>, rng: &mut Rng) -> SimDisk {
    match mode {
        None => disk.after_kill(),
        Some(mode) => disk.crash_with(mode, rng),
    }
}

#[test]
fn a_crash_at_every_operation_of_a_destruction_leaves_both_keys_or_none() {
    let operations = {
        let sim = disk();
        let store = filled(Arc::new(sim.clone()));
        let before = sim.ops();
        store.erase(&["a", "b"]).unwrap();
        sim.ops() - before
    };
    assert!(operations > 5, "{operations}");
    let sim = disk();
    let store = filled(Arc::new(sim.clone()));
    let before = sim.ops();
    (1..=operations).for_each(|number| sim.crash_at(before + number));
    store.erase(&["a", "b"]).unwrap();
    let mut copies = sim.take_snapshots();
    assert_eq!(copies.len() as u64, operations);
    copies.push((u64::MAX, sim.after_kill()));
    let mut rng = Rng::new(7);
    let mut outcomes = [0, 0];
    for (number, copy) in copies {
        for mode in MODES {
            let disk = lost(&copy, mode, &mut rng);
            let store = open(Arc::new(disk.clone())).unwrap();
            let [a, b, c] = erased(&store);
            assert!(a == b && c, "half a destruction: before operation {number}, {mode:?}");
            assert!(a || number < u64::MAX, "a destruction that had returned was lost: {mode:?}");
            outcomes[usize::from(a)] += 1;
            // What was seen as erased does not come back.
            let again = open(Arc::new(disk.crash_with(CrashMode::LoseAll, &mut rng))).unwrap();
            assert!(erased(&again)[0] >= a, "before operation {number}, {mode:?}");
            again.erase(&["a", "b"]).unwrap();
            assert_eq!(erased(&again), [true; 3]);
        }
    }
    assert!(outcomes[0] > 0 && outcomes[1] > 0, "{outcomes:?}");
}

/// A disk that tears a rename apart leaves one file under both names, as one without a journal may: what was taken for the rest
/// of a destruction was the master key itself, and was overwritten.
#[test]
fn a_master_key_that_a_power_cut_has_left_under_two_names_is_not_overwritten() {
    let new = Path::new("/keys/master.key.new");
    let sim = disk();
    let store = filled(Arc::new(sim.clone()));
    let before = sim.ops();
    (1..=12).for_each(|number| sim.crash_at(before + number));
    store.erase(&["a", "b"]).unwrap();
    let copies = sim.take_snapshots();
    let mut twice = 0;
    for seed in 0..100 {
        for (number, copy) in &copies {
            let disk = copy.crash_with(CrashMode::Random, &mut Rng::new(seed));
            let has_both = disk.files().contains_key(new);
            if !has_both || disk.read_file(new).unwrap() != disk.read_file(KEY).unwrap() {
                continue;
            }
            twice += 1;
            let store = open(Arc::new(disk.clone()));
            let store = store.unwrap_or_else(|error| panic!("seed {seed}, operation {number}: {error}"));
            assert!(!disk.files().contains_key(new));
            let [a, b, c] = erased(&store);
            assert!(a == b && c);
        }
    }
    assert!(twice > 0, "no power cut has left both names");
}

#[test]
fn a_crash_at_every_operation_of_the_first_opening_leaves_a_store_that_opens() {
    let run = |sim: &SimDisk| {
        let store = open(Arc::new(sim.clone())).unwrap();
        store.topic_or_create("t").unwrap().append(&[sealed("a"), sealed("b"), sealed("c")]).unwrap();
    };
    let sim = disk();
    run(&sim);
    let operations = sim.ops();
    let sim = disk();
    (1..=operations).for_each(|number| sim.crash_at(number));
    run(&sim);
    let mut rng = Rng::new(11);
    for (number, copy) in sim.take_snapshots() {
        for mode in MODES {
            let disk = lost(&copy, mode, &mut rng);
            if !disk.files().keys().any(|path| path.starts_with("/store")) {
                let _ = disk.create_dir(Path::new("/store"));
                let _ = disk.create_dir(Path::new("/keys"));
            }
            let store =
                open(Arc::new(disk)).unwrap_or_else(|error| panic!("operation {number}, {mode:?}: {error}"));
            let topic = store.topic_or_create("t").unwrap();
            if topic.log_end_offset().value() == 0 {
                topic.append(&[sealed("a"), sealed("b"), sealed("c")]).unwrap();
            }
            assert_eq!(erased(&store), [false; 3], "operation {number}, {mode:?}");
        }
    }
}

#[test]
fn whatever_fails_in_a_destruction_it_can_be_made_again_and_then_is_durable() {
    let operations = {
        let faulty = FaultyDisk::over_sim(disk());
        let store = filled(Arc::new(faulty.clone()));
        faulty.forget_ops();
        store.erase(&["a", "b"]).unwrap();
        faulty.op_count()
    };
    assert!(operations > 5, "{operations}");
    let mut failed = 0;
    for (number, error) in (1..=operations).flat_map(|number| [(number, EIO), (number, ENOSPC)]) {
        let sim = disk();
        let faulty = FaultyDisk::over_sim(sim.clone());
        let store = filled(Arc::new(faulty.clone()));
        faulty.forget_ops();
        faulty.fail(Fault::any(number, error));
        let outcome = store.erase(&["a", "b"]);
        faulty.heal();
        let [a, b, c] = erased(&store);
        assert!(a == b && c, "half a destruction: operation {number}");
        let store = match outcome {
            Ok(_) => store,
            Err(error) => {
                failed += 1;
                let store = if error.kind() == ErrorKind::Reopen {
                    drop(store);
                    open(Arc::new(sim.clone())).unwrap()
                } else {
                    store
                };
                store.topic("t").unwrap().append(&[sealed("d")]).unwrap();
                store.topic("t").unwrap().trim(quipu_storage::Offset(0)).unwrap();
                store.erase(&["a", "b"]).unwrap();
                store
            }
        };
        let cut = sim.crash_with(CrashMode::LoseAll, &mut Rng::new(number));
        drop(store);
        let store = open(Arc::new(cut)).unwrap();
        assert!(store.is_erased("a").unwrap() && store.is_erased("b").unwrap(), "operation {number}");
        assert!(!store.is_erased("d").unwrap());
    }
    assert!(failed > 5, "{failed}");
}

#[test]
fn whatever_fails_when_a_master_key_is_opened_it_is_not_changed() {
    let sim = disk();
    filled(Arc::new(sim.clone())).close().unwrap();
    let content = sim.read_file(KEY).unwrap();
    let operations = {
        let faulty = FaultyDisk::over_sim(sim.after_kill());
        open(Arc::new(faulty.clone())).unwrap();
        faulty.op_count()
    };
    for number in 1..=operations {
        let copy = sim.after_kill();
        let faulty = FaultyDisk::over_sim(copy.clone());
        faulty.fail(Fault::any(number, EIO));
        let outcome = open(Arc::new(faulty.clone()));
        faulty.heal();
        drop(outcome);
        assert_eq!(copy.read_file(KEY).unwrap(), content, "operation {number}");
        assert_eq!(erased(&open(Arc::new(copy)).unwrap()), [false, false, true], "operation {number}");
    }
}

#[test]
fn the_replaced_file_is_overwritten_and_its_root_is_in_no_file() {
    let sim = disk();
    let store = open(Arc::new(sim.clone())).unwrap();
    let before = sim.read_file(KEY).unwrap();
    let root = &before[before.len() - 16..];
    let old = sim.open(Path::new(KEY), OpenMode::Read).unwrap();
    let report = store.erase(&["a"]).unwrap();
    assert!(report.is_old_file_overwritten);
    let mut bytes = vec![1; before.len()];
    assert_eq!(old.read_at(&mut bytes, 0).unwrap(), before.len());
    assert!(bytes.iter().all(|byte| *byte == 0));
    for path in sim.files().into_keys() {
        let content = sim.read_file(&path).unwrap();
        assert!(!content.windows(16).any(|part| part == root), "{}", path.display());
    }
    assert!(!sim.files().contains_key(Path::new("/keys/master.key.new")));
}

#[test]
fn an_old_master_key_that_cannot_be_overwritten_is_told_and_overwritten_by_a_later_call() {
    for kind in [OpKind::Write, OpKind::Sync] {
        let sim = disk();
        let faulty = FaultyDisk::over_sim(sim.clone());
        let store = open(Arc::new(faulty.clone())).unwrap();
        let old = sim.open(Path::new(KEY), OpenMode::Read).unwrap();
        let before = sim.read_file(KEY).unwrap();
        // The first one makes the new file.
        faulty.fail(Fault::of(kind, 2, EIO).below("/keys"));
        let report = store.erase(&["a"]).unwrap();
        assert_eq!((report.destroyed, report.is_old_file_overwritten), (1, false), "{kind:?}");
        faulty.heal();
        assert!(store.is_erased("a").unwrap());
        let report = store.erase(&["a"]).unwrap();
        assert_eq!((report.destroyed, report.is_old_file_overwritten), (0, true), "{kind:?}");
        let mut bytes = vec![1; before.len()];
        old.read_at(&mut bytes, 0).unwrap();
        assert!(bytes.iter().all(|byte| *byte == 0), "{kind:?}");
    }
}

/// A store whose journal is ahead of the file of its master key would not open, and a call that has returned must not be
/// undone by one that has not.
#[test]
fn keys_that_are_destroyed_at_the_same_time_stay_so_after_a_power_cut_at_every_operation() {
    const THREADS: usize = 4;
    const EACH: usize = 6;
    let sim = disk();
    let store = open(Arc::new(sim.clone())).unwrap();
    let before = sim.ops();
    (1..=2000).for_each(|number| sim.crash_at(before + number));
    let name = |thread: usize, number: usize| format!("{thread}/{number}");
    let (done, destroyed): (Vec<_>, Vec<_>) = std::thread::scope(|scope| {
        let destroy = |thread| {
            let (store, sim) = (&store, &sim);
            scope.spawn(move || {
                let of_one = |number| {
                    let mine = name(thread, number);
                    let report = store.erase(&[&mine, "of all"]).unwrap();
                    ((mine, sim.ops()), report.destroyed)
                };
                (0..EACH).map(of_one).collect::<Vec<_>>()
            })
        };
        let threads: Vec<_> = (0..THREADS).map(destroy).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).unzip()
    });
    let all = (THREADS * EACH) as u64 + 1;
    assert_eq!(destroyed.iter().sum::<u64>(), all);
    assert_eq!(store.stats().erasure_keys_destroyed, Some(all));
    let copies = sim.take_snapshots();
    assert!(copies.len() as u64 > 5 * all, "{}", copies.len());
    let mut rng = Rng::new(3);
    for (number, copy) in copies {
        for mode in [CrashMode::LoseAll, CrashMode::Random] {
            let store = open(Arc::new(copy.crash_with(mode, &mut rng)));
            let store = store.unwrap_or_else(|error| panic!("operation {number}, {mode:?}: {error}"));
            for (name, _) in done.iter().filter(|(_, returned)| *returned < number) {
                assert!(store.is_erased(name).unwrap(), "{name} at operation {number}, {mode:?}");
            }
        }
    }
}
