//! Trims that meet others who are at the same topic: each step of the one is held at a call of the disk until the other has
//! done its own.
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::path::Path;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;
use std::{fmt, io};

use quipu_storage::disk::{DirLock, Disk, Entry, File, OpenMode, OsDisk};
use quipu_storage::{Compaction, Offset, Record, Revision, Store, StoreSettings, Topic, TopicSettings};

const AT_ONCE: Compaction = Compaction {
    records_per_key: 1,
    lag_min: Duration::ZERO,
    tombstone_age_max: Duration::ZERO,
    bytes_per_second_max: 0,
};

/// What is about to be done.
enum Step {
    Create,
    Rename,
    SyncDir,
}

type Hook = Box<dyn Fn(Step, &Path) + Send + Sync>;

/// The real disk, and somebody who is told before something changes.
#[derive(Clone, Default)]
struct Told(Arc<OnceLock<Hook>>);

impl Told {
    fn tell(&self, step: Step, path: &Path) {
        if let Some(hook) = self.0.get() {
            hook(step, path);
        }
    }

    fn set(&self, hook: impl Fn(Step, &Path) + Send + Sync + 'static) {
        assert!(self.0.set(Box::new(hook)).is_ok());
    }
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Told")
    }
}

impl Disk for Told {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.create_dir(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        OsDisk.list(path)
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        if matches!(mode, OpenMode::Create) {
            self.tell(Step::Create, path);
        }
        OsDisk.open(path, mode)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.tell(Step::Rename, to);
        OsDisk.rename(from, to)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        OsDisk.remove_dir(path)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.tell(Step::SyncDir, path);
        OsDisk.sync_dir(path)
    }

    fn free_bytes(&self, path: &Path) -> io::Result<u64> {
        OsDisk.free_bytes(path)
    }

    fn lock(&self, path: &Path, holder: &str) -> io::Result<Box<dyn DirLock>> {
        OsDisk.lock(path, holder)
    }
}

fn open(dir: &Path, disk: &Told) -> Store {
    let settings = StoreSettings { background: false, maps_max: 8, ..StoreSettings::default() };
    Store::builder().settings(settings).disk(Arc::new(disk.clone())).open(dir).unwrap()
}

fn small_segments() -> TopicSettings {
    TopicSettings { segment_bytes_max: 4096, compaction: Some(AT_ONCE), ..TopicSettings::default() }
}

/// Records of 600 bytes, of which six fill a segment.
fn fill(topic: &Topic, keys: &[&str]) {
    for key in keys {
        topic.append(&[Record::keyed(*key, "x".repeat(550))]).unwrap();
    }
}

fn is_past(path: &Path) -> bool {
    path.extension().is_some_and(|one| one == "past")
}

/// Whoever came to the topic first removed what the trim had not finished yet, and the trim failed.
#[test]
fn a_trim_is_not_disturbed_by_who_looks_at_the_files_of_its_topic_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path(), &Told::default());
    fill(&store.create_topic("t", small_segments()).unwrap(), &["k"; 20]);
    store.close().unwrap();
    let disk = Told::default();
    let store = open(dir.path(), &disk);
    let topic = store.topic("t").unwrap();
    let end = topic.log_end_offset();
    let other = Mutex::new(Some(topic.clone()));
    disk.set(move |step, path| {
        if matches!(step, Step::Rename)
            && is_past(path)
            && let Some(topic) = other.lock().unwrap().take()
        {
            topic.get(Offset(end.0 - 1)).unwrap();
        }
    });
    topic.trim(Offset(10)).unwrap();
}

/// A trim passed over a segment that compaction had replaced meanwhile, as if whoever removes a segment had kept its past:
/// but compaction keeps only that of the keys which it removes, and the new segment went with the trim.
#[test]
fn a_trim_keeps_the_past_of_segments_that_are_replaced_meanwhile() {
    let dir = tempfile::tempdir().unwrap();
    let disk = Told::default();
    let store = open(dir.path(), &disk);
    let topic = store.create_topic("t", small_segments()).unwrap();
    let keys: Vec<_> = (0..30).map(|number| format!("key-{number}")).collect();
    let keys: Vec<_> = keys.iter().map(String::as_str).collect();
    // The second segment is all of `k`, and is rewritten; those around it stay.
    fill(&topic, &keys[..6]);
    fill(&topic, &["k"; 6]);
    fill(&topic, &keys[6..20]);
    let other = store.create_topic("other", small_segments()).unwrap();
    fill(&other, &["o"; 80]);
    store.checkpoint().unwrap();
    let topic_dir = dir.path().join("topics/00000001");

    let (pausing, paused) = channel();
    let (release, released) = channel::<()>();
    let (compacting, compacted) = channel::<()>();
    let pauses = Mutex::new((Some((pausing, released)), Some((release, compacted)), false));
    disk.set(move |step, path| {
        let mut pauses = pauses.lock().unwrap();
        match step {
            Step::Create if path.to_string_lossy().ends_with("-1.segment") => pauses.2 = true,
            // The new segment is written, and is to be put in its place.
            Step::SyncDir if pauses.2 && path == topic_dir => {
                if let Some((pausing, released)) = pauses.0.take() {
                    drop(pauses);
                    pausing.send(()).unwrap();
                    released.recv().unwrap();
                }
            }
            // The trim knows which segments it is about.
            Step::Rename if is_past(path) => {
                if let Some((release, compacted)) = pauses.1.take() {
                    drop(pauses);
                    release.send(()).unwrap();
                    compacted.recv().unwrap();
                }
            }
            _ => {}
        }
    });
    std::thread::scope(|scope| {
        let compaction = scope.spawn(|| {
            let report = topic.compact();
            // No map of the old segment is left.
            let read = other.read(Offset(0)).unwrap().count();
            compacting.send(()).unwrap();
            (report, read)
        });
        paused.recv().unwrap();
        let trimmed = topic.trim(Offset(18));
        let (report, read) = compaction.join().unwrap();
        assert_eq!((report.unwrap().segments_replaced, read), (1, 80));
        trimmed.unwrap();
    });
    assert_eq!(topic.log_start_offset(), Offset(18));
    drop((topic, other));
    store.close().unwrap();
    let topic = open(dir.path(), &Told::default()).topic("t").unwrap();
    let appended = topic.append(&[Record::keyed("k", "again")]).unwrap();
    assert_eq!(appended.revisions, [Revision(6)]);
}
