//! Directories of topics that are no more, or never came to be: a crash leaves none behind for good.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};

use quipu_storage::disk::{Disk as _, OpenMode};
use quipu_storage::{Record, Start, Store, StoreSettings, TopicSettings, Visibility};
use quipu_tests::rng::Rng;
use quipu_tests::sim::{CrashMode, SimDisk};

fn disk() -> SimDisk {
    let sim = SimDisk::new();
    sim.create_dir(Path::new("/store")).unwrap();
    sim.sync_dir(Path::new("/")).unwrap();
    sim
}

fn open(disk: &SimDisk) -> Store {
    let settings = StoreSettings { background: false, ..StoreSettings::default() };
    Store::builder().settings(settings).disk(Arc::new(disk.clone())).open("/store").unwrap()
}

/// A store with topics of these names and a record in each, in their segments.
fn filled(disk: &SimDisk, names: &[&str]) -> Store {
    let store = open(disk);
    for name in names {
        let topic = store.create_topic(name, TopicSettings::default()).unwrap();
        topic.append(&[Record::new(*name)]).unwrap();
    }
    store.checkpoint().unwrap();
    store
}

fn files(disk: &SimDisk) -> Vec<PathBuf> {
    disk.files().into_keys().filter(|path| path.starts_with("/store/topics")).collect()
}

/// Puts the files there that `from` has in the directory of the topic with this number.
fn plant(from: &SimDisk, number: u32, disk: &SimDisk) {
    let dir = format!("/store/topics/{number:08x}");
    disk.create_dir(Path::new(&dir)).unwrap();
    let planted: Vec<_> = files(from).into_iter().filter(|path| path.starts_with(&dir)).collect();
    assert!(!planted.is_empty());
    for path in planted {
        let file = disk.open(&path, OpenMode::Create).unwrap();
        file.write_at(&[IoSlice::new(&from.read_file(&path).unwrap())], 0).unwrap();
    }
}

/// Runs something in another thread when it is woken, and waits for it.
struct InBetween(Mutex<Option<Box<dyn FnOnce() + Send>>>);

impl Wake for InBetween {
    fn wake(self: Arc<Self>) {
        if let Some(run) = self.0.lock().unwrap().take() {
            std::thread::spawn(run).join().unwrap();
        }
    }
}

/// The topic was noted as deleted only when nobody wrote its files any more. A checkpoint that came between that and the
/// frame named the topic neither as there nor as deleted, and after a crash nobody knew whose directory it was.
#[test]
fn a_checkpoint_in_the_middle_of_a_deletion_still_knows_the_topic() {
    let disk = disk();
    let store = filled(&disk, &["stays", "goes"]);
    let goes = store.topic("goes").unwrap();
    let left = Arc::new(Mutex::new(None));
    let in_between = {
        let (store, disk, left) = (store.clone(), disk.clone(), Arc::clone(&left));
        move || {
            store.checkpoint().unwrap();
            *left.lock().unwrap() = Some(disk.crash_with(CrashMode::LoseAll, &mut Rng::new(1)));
        }
    };
    let waker = Waker::from(Arc::new(InBetween(Mutex::new(Some(Box::new(in_between))))));
    let mut cursor = goes.cursor(Start::Latest, Visibility::Synced).unwrap();
    assert!(cursor.poll_ready(&mut Context::from_waker(&waker)).is_pending());
    store.delete_topic("goes").unwrap();

    let left = left.lock().unwrap().take().expect("the follower was woken in the middle of the deletion");
    assert_eq!(files(&left).len(), 2, "the files are still there when the power goes");
    let store = open(&left);
    assert!(store.topic("goes").is_err());
    store.checkpoint().unwrap();
    assert_eq!(files(&left), [Path::new("/store/topics/00000001/00000000000000000000-0.segment")]);
    assert_eq!(left.list(Path::new("/store/topics")).unwrap().len(), 1);
}

/// The directory was on the disk and the frame that creates its topic was not. The next topic got the same number, and was
/// refused for the segment that it found there.
#[test]
fn what_a_topic_left_that_was_never_created_for_good_is_removed_and_is_in_nobodys_way() {
    let disk = disk();
    let store = filled(&disk, &["a"]);
    let before = disk.after_kill();
    let lost = store.create_topic("lost", TopicSettings::default()).unwrap();
    lost.append(&[Record::new("never acknowledged")]).unwrap();
    store.checkpoint().unwrap();
    plant(&disk, 2, &before);

    let store = open(&before);
    let new = store.create_topic("new", TopicSettings::default()).unwrap();
    new.append(&[Record::new("new")]).unwrap();
    store.checkpoint().unwrap();
    let left = before.crash_with(CrashMode::LoseAll, &mut Rng::new(1));
    assert_eq!(left.list(Path::new("/store/topics")).unwrap().len(), 2);
    assert!(files(&left).iter().all(|path| !path.starts_with("/store/topics/00000002")));
    let store = open(&left);
    let payloads = |name: &str| -> Vec<Vec<u8>> {
        let records = store.topic(name).unwrap().read(Start::Earliest).unwrap();
        records.map(|record| record.unwrap().payload().unwrap().to_vec()).collect()
    };
    assert_eq!(payloads("a"), [b"a"]);
    assert_eq!(payloads("new"), [b"new"]);
}

#[test]
fn what_is_not_this_stores_is_left_alone() {
    let (disk, other) = (disk(), self::disk());
    let _store = filled(&disk, &["a"]);
    drop(filled(&other, &["b", "c", "d"]));
    let disk = disk.after_kill();
    plant(&other, 3, &disk);
    for name in ["00000007", "notes", "7", "000000AB"] {
        disk.create_dir(&Path::new("/store/topics").join(name)).unwrap();
    }
    // Ours, and something else beside it.
    let ours = disk.read_file("/store/topics/00000001/00000000000000000000-0.segment").unwrap();
    disk.plant_file("/store/topics/00000007/00000000000000000000-0.segment", &ours).unwrap();
    for path in ["00000007/readme", "notes/readme", "notes/00000000000000000000-0.segment", "readme"] {
        disk.plant_file(Path::new("/store/topics").join(path), b"somebody else's").unwrap();
    }
    let store = open(&disk);
    store.checkpoint().unwrap();
    drop(store);
    let names: Vec<_> = files(&disk)
        .into_iter()
        .map(|path| path.strip_prefix("/store/topics").unwrap().to_str().unwrap().to_owned())
        .collect();
    assert_eq!(
        names,
        [
            "00000001/00000000000000000000-0.segment",
            "00000003/00000000000000000000-0.segment",
            "00000007/readme",
            "notes/00000000000000000000-0.segment",
            "notes/readme",
            "readme",
        ]
    );
}
