//! What every disk must do, run on each of them. How a disk loses power is tested beside the simulated one.
#![forbid(unsafe_code)]
#![expect(clippy::unwrap_used, reason = "a test may, but helpers of integration tests are not seen as tests")]

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use quipu_storage::disk::{Disk, EntryKind, File, OpenMode, OsDisk, Writer};
use quipu_tests::faulty::FaultyDisk;
use quipu_tests::rng::Rng;
use quipu_tests::sim::SimDisk;

/// A disk and an empty directory on it.
struct Rig {
    disk: Arc<dyn Disk>,
    root: PathBuf,
    /// Where power can be cut.
    sim: Option<SimDisk>,
    _temp: Option<tempfile::TempDir>,
}

impl Rig {
    fn os() -> Self {
        Self::in_directory(tempfile::tempdir().unwrap())
    }

    /// The real disk on tmpfs, which is not the file system of the temporary directory everywhere.
    fn os_in_memory() -> Self {
        let shm = Path::new("/dev/shm");
        if shm.is_dir() { Self::in_directory(tempfile::tempdir_in(shm).unwrap()) } else { Self::os() }
    }

    fn in_directory(temp: tempfile::TempDir) -> Self {
        Self { disk: Arc::new(OsDisk), root: temp.path().to_owned(), sim: None, _temp: Some(temp) }
    }

    fn sim() -> Self {
        let sim = SimDisk::new();
        sim.create_dir(Path::new("/store")).unwrap();
        sim.sync_dir(Path::new("/")).unwrap();
        Self::with_sim(sim)
    }

    fn with_sim(sim: SimDisk) -> Self {
        Self { disk: Arc::new(sim.clone()), root: "/store".into(), sim: Some(sim), _temp: None }
    }

    fn faulty_os() -> Self {
        let rig = Self::os();
        Self { disk: Arc::new(FaultyDisk::new(Arc::clone(&rig.disk))), ..rig }
    }

    fn faulty_sim() -> Self {
        let rig = Self::sim();
        let sim = rig.sim.clone().unwrap();
        Self { disk: Arc::new(FaultyDisk::over_sim(sim)), ..rig }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn create(&self, name: &str) -> Arc<dyn File> {
        self.disk.open(&self.path(name), OpenMode::Create).unwrap()
    }

    fn create_with(&self, name: &str, content: &[u8]) -> Arc<dyn File> {
        let file = self.create(name);
        write(&*file, content, 0).unwrap();
        file
    }

    fn open(&self, name: &str, mode: OpenMode) -> io::Result<Arc<dyn File>> {
        self.disk.open(&self.path(name), mode)
    }

    fn read(&self, name: &str) -> Vec<u8> {
        read(&*self.open(name, OpenMode::Read).unwrap())
    }

    fn create_dir(&self, name: &str) {
        self.disk.create_dir(&self.path(name)).unwrap();
    }

    /// Something that is neither file nor directory.
    fn create_other(&self, name: &str) {
        match &self.sim {
            Some(sim) => sim.plant_other(self.path(name)).unwrap(),
            None => std::os::unix::fs::symlink("no such file", self.path(name)).unwrap(),
        }
    }

    fn names(&self) -> BTreeSet<String> {
        self.disk.list(&self.root).unwrap().into_iter().map(|entry| entry.name).collect()
    }
}

fn write(file: &dyn File, data: &[u8], position: u64) -> io::Result<()> {
    file.write_at(&[IoSlice::new(data)], position)
}

fn store(writer: &mut dyn Writer, data: &[u8], position: u64) -> io::Result<()> {
    writer.write_at(&[IoSlice::new(data)], position)
}

fn read(file: &dyn File) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(file.len().unwrap()).unwrap()];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

#[track_caller]
fn assert_kind<T: Debug>(outcome: io::Result<T>, kind: io::ErrorKind) {
    let error = outcome.expect_err("this must fail");
    assert_eq!(error.kind(), kind, "{error}");
}

// Directories and names.

fn a_new_directory_is_empty_and_may_be_created_again(rig: &Rig) {
    rig.create_dir("d");
    assert!(rig.disk.list(&rig.path("d")).unwrap().is_empty());
    rig.create("d/f");
    rig.create_dir("d");
    assert_eq!(rig.disk.list(&rig.path("d")).unwrap().len(), 1);
}

fn a_directory_is_not_created_without_its_parent_or_over_a_file(rig: &Rig) {
    assert_kind(rig.disk.create_dir(&rig.path("d/e")), io::ErrorKind::NotFound);
    rig.create("f");
    assert_kind(rig.disk.create_dir(&rig.path("f")), io::ErrorKind::AlreadyExists);
    assert_kind(rig.disk.create_dir(&rig.path("f/d")), io::ErrorKind::NotADirectory);
}

fn a_listing_tells_files_directories_and_others_apart(rig: &Rig) {
    rig.create("file");
    rig.create_dir("dir");
    rig.create("dir/hidden from the listing above");
    rig.create_other("other");
    let listed: BTreeSet<_> = rig
        .disk
        .list(&rig.root)
        .unwrap()
        .into_iter()
        .map(|entry| (entry.name, format!("{:?}", entry.kind)))
        .collect();
    let expected = [("dir", EntryKind::Dir), ("file", EntryKind::File), ("other", EntryKind::Other)]
        .map(|(name, kind)| (name.to_owned(), format!("{kind:?}")));
    assert_eq!(listed, BTreeSet::from(expected));
}

fn only_a_directory_that_exists_is_listed_or_synced(rig: &Rig) {
    assert_kind(rig.disk.list(&rig.path("d")), io::ErrorKind::NotFound);
    assert_kind(rig.disk.sync_dir(&rig.path("d")), io::ErrorKind::NotFound);
    rig.create("f");
    assert_kind(rig.disk.list(&rig.path("f")), io::ErrorKind::NotADirectory);
    rig.disk.sync_dir(&rig.root).unwrap();
}

fn only_an_empty_directory_is_removed(rig: &Rig) {
    rig.create_dir("d");
    rig.create("d/f");
    assert_kind(rig.disk.remove_dir(&rig.path("d")), io::ErrorKind::DirectoryNotEmpty);
    rig.disk.remove(&rig.path("d/f")).unwrap();
    rig.disk.remove_dir(&rig.path("d")).unwrap();
    assert_kind(rig.disk.remove_dir(&rig.path("d")), io::ErrorKind::NotFound);
    rig.create("f");
    assert_kind(rig.disk.remove_dir(&rig.path("f")), io::ErrorKind::NotADirectory);
    assert_eq!(rig.names(), BTreeSet::from(["f".to_owned()]));
}

fn free_bytes_are_told_of_existing_paths(rig: &Rig) {
    assert!(rig.disk.free_bytes(&rig.root).unwrap() > 0);
    assert_kind(rig.disk.free_bytes(&rig.path("d")), io::ErrorKind::NotFound);
}

// Opening.

fn a_new_file_never_takes_a_name_that_is_there(rig: &Rig) {
    rig.create_with("f", b"data");
    rig.create_dir("d");
    rig.create_other("o");
    for name in ["f", "d", "o"] {
        assert_kind(rig.open(name, OpenMode::Create), io::ErrorKind::AlreadyExists);
    }
    assert_eq!(rig.read("f"), b"data");
}

fn a_missing_file_is_not_opened_and_not_created(rig: &Rig) {
    assert_kind(rig.open("f", OpenMode::Read), io::ErrorKind::NotFound);
    assert_kind(rig.open("f", OpenMode::Write), io::ErrorKind::NotFound);
    assert_kind(rig.open("d/f", OpenMode::Create), io::ErrorKind::NotFound);
    assert!(rig.names().is_empty());
}

fn only_regular_files_are_opened(rig: &Rig) {
    rig.create_dir("d");
    rig.create_other("o");
    for name in ["d", "o"] {
        for mode in [OpenMode::Read, OpenMode::Write] {
            rig.open(name, mode).expect_err("not a regular file");
        }
    }
}

fn a_file_opened_for_reading_refuses_every_change(rig: &Rig) {
    rig.create_with("f", b"data").allocate(4096).unwrap();
    let before = rig.read("f");
    let file = rig.open("f", OpenMode::Read).unwrap();
    write(&*file, b"x", 0).unwrap_err();
    file.set_len(0).unwrap_err();
    file.allocate(8192).unwrap_err();
    Arc::clone(&file).writer(4096).unwrap_err();
    assert_eq!(rig.read("f"), before);
    // Syncing is not a change.
    file.sync().unwrap();
}

// Reading and writing.

fn a_write_is_seen_at_once_by_every_handle_and_map(rig: &Rig) {
    let file = rig.create("f");
    file.allocate(8192).unwrap();
    let reader = rig.open("f", OpenMode::Read).unwrap();
    let other = rig.open("f", OpenMode::Write).unwrap();
    let map = reader.map(8192).unwrap();
    let mut writer = Arc::clone(&file).writer(8192).unwrap();
    let see = |expected: &[u8], position: u64| {
        let end = position + expected.len() as u64;
        assert_eq!(map.bytes(position..end).unwrap(), expected);
        assert_eq!(file.map(8192).unwrap().bytes(position..end).unwrap(), expected);
        for handle in [&file, &reader, &other] {
            let mut bytes = vec![0; expected.len()];
            assert_eq!(handle.read_at(&mut bytes, position).unwrap(), bytes.len());
            assert_eq!(bytes, expected);
        }
    };
    write(&*file, b"through the file", 10).unwrap();
    see(b"through the file", 10);
    store(&mut *writer, b"through the writer", 4090).unwrap();
    see(b"through the writer", 4090);
    write(&*other, b"through another", 4095).unwrap();
    see(b"throuthrough another", 4090);
    store(&mut *writer, b"again", 8187).unwrap();
    see(b"again", 8187);
}

fn parts_are_written_one_after_the_other(rig: &Rig) {
    let file = rig.create("f");
    let numbers: Vec<[u8; 4]> = (0..3000_u32).map(u32::to_be_bytes).collect();
    let mut parts: Vec<IoSlice<'_>> = numbers.iter().map(|number| IoSlice::new(number)).collect();
    // Empty parts at both ends and in between change nothing.
    for index in [3000, 1500, 1024, 1023, 0, 0] {
        parts.insert(index, IoSlice::new(&[]));
    }
    file.write_at(&parts, 5).unwrap();
    let mut expected = vec![0; 5];
    expected.extend(numbers.concat());
    assert_eq!(rig.read("f"), expected);
    let capacity = expected.len() as u64;
    file.allocate(capacity).unwrap();
    let mut writer = Arc::clone(&file).writer(capacity).unwrap();
    writer.write_at(&parts, 4).unwrap();
    expected.remove(0);
    assert_eq!(rig.read("f")[..expected.len()], expected);
}

fn a_write_behind_the_end_leaves_zeros_before_it(rig: &Rig) {
    let file = rig.create_with("f", b"ab");
    write(&*file, b"yz", 10_000).unwrap();
    let bytes = rig.read("f");
    assert_eq!(bytes.len(), 10_002);
    assert_eq!(bytes[..2], *b"ab");
    assert_eq!(bytes[2..10_000], [0; 9998]);
    assert_eq!(bytes[10_000..], *b"yz");
}

fn an_empty_write_changes_nothing(rig: &Rig) {
    let file = rig.create_with("f", b"ab");
    file.write_at(&[], 1).unwrap();
    file.write_at(&[], 100).unwrap();
    write(&*file, b"", 100).unwrap();
    file.write_at(&[IoSlice::new(b""), IoSlice::new(b"")], 100).unwrap();
    assert_eq!(rig.read("f"), b"ab");
}

fn a_read_stops_at_the_end_of_the_file(rig: &Rig) {
    let file = rig.create_with("f", b"abcdef");
    let mut bytes = [9; 8];
    assert_eq!(file.read_at(&mut bytes, 4).unwrap(), 2);
    assert_eq!(bytes, *b"ef\x09\x09\x09\x09\x09\x09");
    assert_eq!(file.read_at(&mut bytes, 6).unwrap(), 0);
    assert_eq!(file.read_at(&mut bytes, 1 << 40).unwrap(), 0);
    assert_eq!(file.read_at(&mut [], 0).unwrap(), 0);
}

fn a_write_that_cannot_have_a_position_is_refused(rig: &Rig) {
    let file = rig.create_with("f", b"ab");
    write(&*file, b"x", u64::MAX).unwrap_err();
    write(&*file, b"x", i64::MAX.unsigned_abs()).unwrap_err();
    file.set_len(u64::MAX).unwrap_err();
    file.allocate(u64::MAX).unwrap_err();
    assert_eq!(rig.read("f"), b"ab");
}

fn a_file_is_empty_until_it_has_a_length(rig: &Rig) {
    let file = rig.create("f");
    assert!(file.is_empty().unwrap());
    file.set_len(1).unwrap();
    assert!(!file.is_empty().unwrap());
    assert_eq!(file.len().unwrap(), 1);
}

fn a_cut_file_reads_as_zeros_where_it_grows_again(rig: &Rig) {
    let file = rig.create_with("f", &[7; 10_000]);
    file.set_len(5000).unwrap();
    assert_eq!(file.len().unwrap(), 5000);
    file.set_len(9000).unwrap();
    let bytes = rig.read("f");
    assert_eq!(bytes[..5000], [7; 5000]);
    assert_eq!(bytes[5000..], [0; 4000]);
}

fn allocation_makes_a_file_longer_and_never_shorter(rig: &Rig) {
    let file = rig.create_with("f", b"data");
    assert_kind(file.allocate(0), io::ErrorKind::InvalidInput);
    file.allocate(2).unwrap();
    assert_eq!(rig.read("f"), b"data");
    file.allocate(10_000).unwrap();
    let bytes = rig.read("f");
    assert_eq!(bytes.len(), 10_000);
    assert_eq!(bytes[..4], *b"data");
    assert_eq!(bytes[4..], [0; 9996]);
}

fn random_writes_match_a_vector_of_bytes(rig: &Rig) {
    const CAPACITY: u64 = 20_000;
    for seed in 0..10 {
        let mut rng = Rng::new(seed);
        let name = format!("f{seed}");
        let file = rig.create(&name);
        file.allocate(CAPACITY).unwrap();
        let map = file.map(CAPACITY).unwrap();
        let mut writer = Arc::clone(&file).writer(CAPACITY).unwrap();
        let mut expected = vec![0; usize::try_from(CAPACITY).unwrap()];
        for _ in 0..60 {
            let start = rng.index(expected.len());
            let count = rng.index((expected.len() - start).min(6000) + 1);
            let data = rng.bytes(count);
            expected[start..start + count].copy_from_slice(&data);
            match rng.below(2) {
                0 => write(&*file, &data, start as u64).unwrap(),
                _ => store(&mut *writer, &data, start as u64).unwrap(),
            }
            let start = rng.index(expected.len());
            let mut seen = vec![0; rng.index(expected.len() - start + 1)];
            assert_eq!(file.read_at(&mut seen, start as u64).unwrap(), seen.len());
            assert_eq!(seen, expected[start..start + seen.len()], "seed {seed}");
            let range = start as u64..(start + seen.len()) as u64;
            assert_eq!(map.bytes(range).unwrap(), seen, "seed {seed}");
            if rng.chance(10) {
                file.sync().unwrap();
            }
        }
        assert_eq!(rig.read(&name), expected, "seed {seed}");
    }
}

fn threads_write_and_read_side_by_side(rig: &Rig) {
    const PART: usize = 3000;
    let file = rig.create("f");
    file.set_len(4 * PART as u64).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let file = &file;
            scope.spawn(move || {
                let position = u64::from(thread) * PART as u64;
                for round in 0..20 {
                    let data = [thread * 20 + round; PART];
                    write(&**file, &data, position).unwrap();
                    let mut seen = [0; PART];
                    file.read_at(&mut seen, position).unwrap();
                    assert_eq!(seen, data);
                    file.sync().unwrap();
                }
            });
        }
    });
}

// Names of files.

fn a_rename_replaces_what_has_the_name(rig: &Rig) {
    rig.create_with("new", b"new");
    let replaced = rig.create_with("f", b"old");
    let map = replaced.map(3).unwrap();
    rig.disk.rename(&rig.path("new"), &rig.path("f")).unwrap();
    assert_eq!(rig.read("f"), b"new");
    assert_eq!(rig.names(), BTreeSet::from(["f".to_owned()]));
    assert_eq!(read(&*replaced), b"old");
    assert_eq!(map.bytes(0..3).unwrap()[..], *b"old");
}

fn a_renamed_file_keeps_its_handles(rig: &Rig) {
    let file = rig.create_with("f", b"data");
    rig.disk.rename(&rig.path("f"), &rig.path("g")).unwrap();
    write(&*file, b"more", 4).unwrap();
    file.sync().unwrap();
    assert_eq!(rig.read("g"), b"datamore");
    assert_kind(rig.open("f", OpenMode::Read), io::ErrorKind::NotFound);
}

fn a_rename_needs_its_source_and_may_lead_nowhere_else(rig: &Rig) {
    rig.create_with("f", b"data");
    assert_kind(rig.disk.rename(&rig.path("g"), &rig.path("f")), io::ErrorKind::NotFound);
    rig.disk.rename(&rig.path("f"), &rig.path("f")).unwrap();
    assert_eq!(rig.read("f"), b"data");
    rig.create_dir("d");
    assert_kind(rig.disk.rename(&rig.path("f"), &rig.path("d")), io::ErrorKind::IsADirectory);
}

fn a_removed_file_stays_open_and_mapped(rig: &Rig) {
    let file = rig.create_with("f", &[5; 10_000]);
    let map = file.map(10_000).unwrap();
    let handed_out = map.bytes(4000..4100).unwrap();
    rig.disk.remove(&rig.path("f")).unwrap();
    assert!(rig.names().is_empty());
    assert_kind(rig.open("f", OpenMode::Read), io::ErrorKind::NotFound);
    write(&*file, b"still here", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(map.bytes(0..10).unwrap()[..], *b"still here");
    // The name is free again, for another file.
    rig.create_with("f", b"other");
    assert_eq!(read(&*file).len(), 10_000);
    drop((file, map));
    assert_eq!(handed_out[..], [5; 100]);
}

fn only_a_file_that_exists_is_removed(rig: &Rig) {
    assert_kind(rig.disk.remove(&rig.path("f")), io::ErrorKind::NotFound);
    rig.create_dir("d");
    rig.disk.remove(&rig.path("d")).unwrap_err();
    assert_eq!(rig.names(), BTreeSet::from(["d".to_owned()]));
}

// Maps and writers.

fn a_map_shows_what_the_file_grows_by(rig: &Rig) {
    let file = rig.create_with("f", b"short");
    let map = file.map(1 << 20).unwrap();
    assert_eq!(map.bytes(0..5).unwrap()[..], *b"short");
    let far = vec![3; 100_000];
    write(&*file, &far, 200_000).unwrap();
    assert_eq!(map.bytes(200_000..300_000).unwrap(), far);
    assert_eq!(map.bytes(0..5).unwrap()[..], *b"short");
}

fn a_map_refuses_what_it_cannot_show(rig: &Rig) {
    let file = rig.create_with("f", b"short");
    let map = file.map(1 << 20).unwrap();
    assert_kind(map.bytes(0..(1 << 20) + 1), io::ErrorKind::InvalidInput);
    assert_kind(map.bytes(u64::MAX - 1..u64::MAX), io::ErrorKind::InvalidInput);
    #[expect(clippy::reversed_empty_ranges, reason = "that is what is refused")]
    let reversed = map.bytes(5..4);
    assert_kind(reversed, io::ErrorKind::InvalidInput);
    assert!(map.bytes(3..3).unwrap().is_empty());
    // Behind the end of the file there is nothing to show, and asking is not deadly.
    map.bytes(100_000..100_001).unwrap_err();
    map.bytes(0..100_000).unwrap_err();
    assert_eq!(map.bytes(0..5).unwrap()[..], *b"short");
}

fn a_writer_stays_within_its_capacity(rig: &Rig) {
    let file = rig.create("f");
    file.allocate(8192).unwrap();
    let mut writer = Arc::clone(&file).writer(5000).unwrap();
    assert_kind(store(&mut *writer, b"ab", 4999), io::ErrorKind::InvalidInput);
    assert_kind(store(&mut *writer, b"a", 5000), io::ErrorKind::InvalidInput);
    assert_kind(store(&mut *writer, b"a", u64::MAX), io::ErrorKind::InvalidInput);
    assert_eq!(rig.read("f"), [0; 8192], "a refused write changes nothing");
    store(&mut *writer, b"ab", 4998).unwrap();
    store(&mut *writer, b"", 5000).unwrap();
    assert_eq!(rig.read("f")[4998..5002], *b"ab\0\0");
    assert_eq!(file.len().unwrap(), 8192);
}

fn a_file_has_at_most_one_writer(rig: &Rig) {
    let file = rig.create("f");
    file.allocate(4096).unwrap();
    let writer = Arc::clone(&file).writer(4096).unwrap();
    assert_kind(Arc::clone(&file).writer(4096), io::ErrorKind::ResourceBusy);
    drop(writer);
}

fn a_writer_outlives_its_file_handle_and_name(rig: &Rig) {
    let file = rig.create("f");
    file.allocate(4096).unwrap();
    let map = file.map(4096).unwrap();
    let mut writer = file.writer(4096).unwrap();
    rig.disk.remove(&rig.path("f")).unwrap();
    store(&mut *writer, b"data", 100).unwrap();
    assert_eq!(map.bytes(100..104).unwrap()[..], *b"data");
}

// Locks.

fn a_held_lock_tells_who_holds_it(rig: &Rig) {
    let lock = rig.disk.lock(&rig.path("lock"), "the first holder, process 1234").unwrap();
    for _ in 0..2 {
        let error = rig.disk.lock(&rig.path("lock"), "somebody else").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert_eq!(error.to_string(), "the first holder, process 1234");
    }
    let other = rig.disk.lock(&rig.path("other lock"), "somebody else").unwrap();
    drop(lock);
    let _lock = rig.disk.lock(&rig.path("lock"), "the second").unwrap();
    assert_eq!(rig.read("lock"), b"the second");
    drop(other);
    assert_eq!(rig.names(), BTreeSet::from(["lock".to_owned(), "other lock".to_owned()]));
}

fn a_shared_lock_excludes_a_lock_and_nothing_else(rig: &Rig) {
    assert_kind(rig.disk.lock_shared(&rig.path("lock")), io::ErrorKind::NotFound);
    let lock = rig.disk.lock(&rig.path("lock"), "the holder").unwrap();
    let error = rig.disk.lock_shared(&rig.path("lock")).unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (io::ErrorKind::WouldBlock, "the holder".to_owned()));
    drop(lock);
    let one = rig.disk.lock_shared(&rig.path("lock")).unwrap();
    let two = rig.disk.lock_shared(&rig.path("lock")).unwrap();
    assert_eq!(rig.read("lock"), b"the holder");
    for shared in [one, two] {
        assert_kind(rig.disk.lock(&rig.path("lock"), "another"), io::ErrorKind::WouldBlock);
        drop(shared);
    }
    rig.disk.lock(&rig.path("lock"), "another").unwrap();
}

fn a_lock_needs_a_directory_and_a_regular_file(rig: &Rig) {
    assert_kind(rig.disk.lock(&rig.path("d/lock"), "me"), io::ErrorKind::NotFound);
    rig.create_dir("d");
    rig.create_other("o");
    rig.disk.lock(&rig.path("d"), "me").unwrap_err();
    rig.disk.lock(&rig.path("o"), "me").unwrap_err();
    assert_eq!(rig.names(), BTreeSet::from(["d".to_owned(), "o".to_owned()]));
}

// Power cuts, where there can be any.

fn what_was_synced_survives_every_power_cut(rig: &Rig) {
    rig.create_dir("d");
    let file = rig.create("d/tmp");
    file.allocate(8192).unwrap();
    write(&*file, &[1; 5000], 100).unwrap();
    let mut writer = Arc::clone(&file).writer(8192).unwrap();
    store(&mut *writer, &[2; 600], 1000).unwrap();
    file.set_len(7000).unwrap();
    file.sync().unwrap();
    rig.disk.rename(&rig.path("d/tmp"), &rig.path("d/f")).unwrap();
    rig.disk.sync_dir(&rig.path("d")).unwrap();
    rig.disk.sync_dir(&rig.root).unwrap();
    let expected = rig.read("d/f");
    // What is not synced comes after it, and must not harm it.
    rig.create_with("d/other", &[3; 3000]);
    write(&*file, &[4; 600], 6000).unwrap();
    let Some(sim) = &rig.sim else { return };
    for seed in 0..100 {
        let left = Rig::with_sim(sim.crash(&mut Rng::new(seed)));
        let bytes = left.read("d/f");
        assert_eq!(bytes.len(), 7000, "seed {seed}");
        // The unsynced write begins in the sector at 5632.
        assert_eq!(bytes[..5632], expected[..5632], "seed {seed}");
        assert_kind(left.open("d/tmp", OpenMode::Read), io::ErrorKind::NotFound);
    }
}

/// Every test above, on every disk. One that is missing here is dead code, and does not compile.
macro_rules! suite {
    ($($test:ident)*) => {
        suite!(@disk os $($test)*);
        suite!(@disk os_in_memory $($test)*);
        suite!(@disk sim $($test)*);
        suite!(@disk faulty_os $($test)*);
        suite!(@disk faulty_sim $($test)*);
    };
    (@disk $disk:ident $($test:ident)*) => {
        mod $disk {
            $(#[test] fn $test() { super::$test(&super::Rig::$disk()); })*
        }
    };
}

suite! {
    a_new_directory_is_empty_and_may_be_created_again
    a_directory_is_not_created_without_its_parent_or_over_a_file
    a_listing_tells_files_directories_and_others_apart
    only_a_directory_that_exists_is_listed_or_synced
    only_an_empty_directory_is_removed
    free_bytes_are_told_of_existing_paths
    a_new_file_never_takes_a_name_that_is_there
    a_missing_file_is_not_opened_and_not_created
    only_regular_files_are_opened
    a_file_opened_for_reading_refuses_every_change
    a_write_is_seen_at_once_by_every_handle_and_map
    parts_are_written_one_after_the_other
    a_write_behind_the_end_leaves_zeros_before_it
    an_empty_write_changes_nothing
    a_read_stops_at_the_end_of_the_file
    a_write_that_cannot_have_a_position_is_refused
    a_file_is_empty_until_it_has_a_length
    a_cut_file_reads_as_zeros_where_it_grows_again
    allocation_makes_a_file_longer_and_never_shorter
    random_writes_match_a_vector_of_bytes
    threads_write_and_read_side_by_side
    a_rename_replaces_what_has_the_name
    a_renamed_file_keeps_its_handles
    a_rename_needs_its_source_and_may_lead_nowhere_else
    a_removed_file_stays_open_and_mapped
    only_a_file_that_exists_is_removed
    a_map_shows_what_the_file_grows_by
    a_map_refuses_what_it_cannot_show
    a_writer_stays_within_its_capacity
    a_file_has_at_most_one_writer
    a_writer_outlives_its_file_handle_and_name
    a_held_lock_tells_who_holds_it
    a_shared_lock_excludes_a_lock_and_nothing_else
    a_lock_needs_a_directory_and_a_regular_file
    what_was_synced_survives_every_power_cut
}
