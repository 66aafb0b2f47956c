//! What a power cut may and may not do to a [`SimDisk`].

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use quipu_storage::disk::{Disk, File, OpenMode};

use super::{CrashMode, SimDisk, SimFile};
use crate::rng::Rng;

const SECTOR: usize = 512;

fn path(name: &str) -> &Path {
    Path::new(name)
}

/// A durable file at `/f` with this content, open for writing.
fn disk_with(content: &[u8]) -> (SimDisk, Arc<SimFile>) {
    let disk = SimDisk::new();
    disk.plant_file("/f", content).unwrap();
    let file = disk.open_file(path("/f"), OpenMode::Write).unwrap();
    (disk, file)
}

fn write(file: &dyn File, data: &[u8], position: u64) -> io::Result<()> {
    file.write_at(&[IoSlice::new(data)], position)
}

/// What `/f` holds after each of many power cuts; `None` where it is gone.
fn outcomes(disk: &SimDisk) -> BTreeSet<Option<Vec<u8>>> {
    (0..300).map(|seed| disk.crash(&mut Rng::new(seed)).read_file("/f").ok()).collect()
}

fn kept(disk: &SimDisk) -> Vec<u8> {
    disk.crash_with(CrashMode::KeepAll, &mut Rng::new(0)).read_file("/f").unwrap()
}

fn lost(disk: &SimDisk) -> Vec<u8> {
    disk.crash_with(CrashMode::LoseAll, &mut Rng::new(0)).read_file("/f").unwrap()
}

#[test]
fn a_synced_write_is_never_lost() {
    let (disk, file) = disk_with(&[1; 10_000]);
    write(&*file, &[2; 9000], 700).unwrap();
    file.sync().unwrap();
    let expected = disk.read_file("/f").unwrap();
    assert_eq!(expected[..700], [1; 700]);
    assert_eq!(expected[700..9700], [2; 9000]);
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(expected)]));
}

#[test]
fn an_unsynced_write_is_kept_lost_or_torn_between_sectors_and_nowhere_else() {
    let (disk, file) = disk_with(&[1; 3 * SECTOR]);
    write(&*file, &[2; 3 * SECTOR - 200], 100).unwrap();
    let new = disk.read_file("/f").unwrap();
    let outcomes = outcomes(&disk);
    assert_eq!(outcomes.len(), 8, "every combination of three sectors");
    for outcome in outcomes.iter().flatten() {
        for (sector, bytes) in outcome.chunks(SECTOR).enumerate() {
            assert!(bytes == [1; SECTOR] || bytes == &new[sector * SECTOR..][..SECTOR]);
        }
    }
    assert_eq!(kept(&disk), new);
    assert_eq!(lost(&disk), [1; 3 * SECTOR]);
}

#[test]
fn later_writes_may_be_kept_and_earlier_ones_lost() {
    let (disk, file) = disk_with(&[0; 2 * SECTOR]);
    write(&*file, &[1], 0).unwrap();
    write(&*file, &[2], SECTOR as u64).unwrap();
    assert!(outcomes(&disk).iter().flatten().any(|bytes| bytes[0] == 0 && bytes[SECTOR] == 2));
}

#[test]
fn a_sector_written_often_may_stop_in_between() {
    let (disk, file) = disk_with(&[0; SECTOR]);
    for version in 1..=3 {
        write(&*file, &[version], 0).unwrap();
    }
    let seen: BTreeSet<u8> = outcomes(&disk).into_iter().flatten().map(|bytes| bytes[0]).collect();
    assert_eq!(seen, BTreeSet::from([0, 1, 2, 3]));
}

#[test]
fn a_sector_written_very_often_can_still_lose_everything() {
    let (disk, file) = disk_with(&[0; SECTOR]);
    for version in 1..=100 {
        write(&*file, &[version], 0).unwrap();
    }
    assert_eq!(lost(&disk)[0], 0);
    assert_eq!(kept(&disk)[0], 100);
}

#[test]
fn a_writer_is_no_more_durable_than_plain_writes() {
    let (disk, file) = disk_with(&[0; 4096]);
    let mut writer = Arc::clone(&file).writer(4096).unwrap();
    writer.write_at(&[IoSlice::new(&[7; 4096])], 0).unwrap();
    assert_eq!(disk.read_file("/f").unwrap(), [7; 4096]);
    assert_eq!(lost(&disk), [0; 4096]);
    file.sync().unwrap();
    assert_eq!(lost(&disk), [7; 4096]);
}

#[test]
fn a_writer_needs_its_capacity_allocated_and_the_file_to_itself() {
    let (disk, file) = disk_with(&[]);
    file.set_len(8192).unwrap();
    let refused = |capacity| Arc::clone(&file).writer(capacity).unwrap_err().kind();
    assert_eq!(refused(8192), io::ErrorKind::InvalidInput, "no blocks");
    file.allocate(8192).unwrap();
    assert_eq!(refused(8193), io::ErrorKind::InvalidInput, "behind the end");
    let other = disk.open_file(path("/f"), OpenMode::Write).unwrap();
    let writer = Arc::clone(&other).writer(8192).unwrap();
    assert_eq!(refused(8192), io::ErrorKind::ResourceBusy, "the writer of another handle");
    drop(writer);
    Arc::clone(&file).writer(8192).unwrap();
}

#[test]
fn an_unsynced_length_and_the_bytes_behind_it_are_lost_independently() {
    let (disk, file) = disk_with(&[1; SECTOR]);
    write(&*file, &[2; SECTOR], SECTOR as u64).unwrap();
    let mut zeros_behind = vec![1; SECTOR];
    zeros_behind.resize(2 * SECTOR, 0);
    let mut whole = vec![1; SECTOR];
    whole.resize(2 * SECTOR, 2);
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(vec![1; SECTOR]), Some(zeros_behind), Some(whole)]));
}

#[test]
fn a_lost_length_leaves_no_bytes_behind_the_end() {
    let (disk, file) = disk_with(&[1; 100]);
    write(&*file, &[2; 100], 100).unwrap();
    for seed in 0..300 {
        let left = disk.crash(&mut Rng::new(seed));
        if left.read_file("/f").unwrap().len() == 100 {
            left.open(path("/f"), OpenMode::Write).unwrap().set_len(200).unwrap();
            assert_eq!(left.read_file("/f").unwrap()[100..], [0; 100], "seed {seed}");
        }
    }
}

#[test]
fn an_unsynced_cut_may_be_undone() {
    let (disk, file) = disk_with(&[1; 5000]);
    file.set_len(100).unwrap();
    assert_eq!(kept(&disk), [1; 100]);
    assert_eq!(lost(&disk), [1; 5000]);
    file.sync().unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(vec![1; 100])]));
}

#[test]
fn bytes_cut_off_do_not_come_back_when_the_file_grows_again() {
    let (_, file) = disk_with(&[1; 5000]);
    file.set_len(100).unwrap();
    file.set_len(5000).unwrap();
    let mut bytes = [9; 5000];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), 5000);
    assert_eq!(bytes[..100], [1; 100]);
    assert_eq!(bytes[100..], [0; 4900]);
}

#[test]
fn an_unsynced_allocation_may_be_lost() {
    let (disk, file) = disk_with(&[]);
    file.allocate(16_384).unwrap();
    let used = |disk: &SimDisk| disk.used_bytes();
    let mut rng = Rng::new(0);
    assert_eq!(used(&disk.crash_with(CrashMode::KeepAll, &mut rng)), 16_384);
    assert_eq!(used(&disk.crash_with(CrashMode::LoseAll, &mut rng)), 0);
    file.sync().unwrap();
    assert_eq!(used(&disk.crash_with(CrashMode::LoseAll, &mut rng)), 16_384);
}

#[test]
fn a_synced_file_without_a_synced_entry_is_gone_in_some_power_cut() {
    let disk = SimDisk::new();
    let file = disk.open(path("/f"), OpenMode::Create).unwrap();
    write(&*file, b"data", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([None, Some(b"data".to_vec())]));
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(b"data".to_vec())]));
}

#[test]
fn a_synced_entry_without_a_synced_file_may_be_empty() {
    let disk = SimDisk::new();
    let file = disk.open(path("/f"), OpenMode::Create).unwrap();
    write(&*file, b"data", 0).unwrap();
    disk.sync_dir(path("/")).unwrap();
    let expected = [b"".to_vec(), b"data".to_vec(), vec![0; 4]].map(Some);
    assert_eq!(outcomes(&disk), BTreeSet::from(expected));
}

#[test]
fn an_unsynced_removal_may_be_undone() {
    let (disk, _) = disk_with(b"data");
    disk.remove(path("/f")).unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([None, Some(b"data".to_vec())]));
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([None]));
}

#[test]
fn a_rename_onto_a_name_leaves_the_old_or_the_new_file_there() {
    let (disk, _) = disk_with(b"old");
    disk.plant_file("/tmp", b"new").unwrap();
    disk.rename(path("/tmp"), path("/f")).unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(b"old".to_vec()), Some(b"new".to_vec())]));
    let sources: BTreeSet<bool> =
        (0..100).map(|seed| disk.crash(&mut Rng::new(seed)).read_file("/tmp").is_ok()).collect();
    assert_eq!(sources.len(), 2, "the source name may stay or go");
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(b"new".to_vec())]));
}

#[test]
fn a_file_in_a_lost_directory_is_lost() {
    let disk = SimDisk::new();
    disk.create_dir(path("/d")).unwrap();
    disk.open(path("/d/f"), OpenMode::Create).unwrap().sync().unwrap();
    disk.sync_dir(path("/d")).unwrap();
    let mut rng = Rng::new(0);
    assert!(disk.crash_with(CrashMode::LoseAll, &mut rng).files().is_empty());
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(disk.crash_with(CrashMode::LoseAll, &mut rng).files().len(), 1);
}

#[test]
fn a_directory_whose_removal_was_not_synced_may_come_back_with_its_files() {
    let disk = SimDisk::new();
    disk.create_dir(path("/d")).unwrap();
    disk.plant_file("/d/f", b"data").unwrap();
    disk.sync_dir(path("/")).unwrap();
    disk.remove(path("/d/f")).unwrap();
    disk.remove_dir(path("/d")).unwrap();
    let back = disk.crash_with(CrashMode::LoseAll, &mut Rng::new(0));
    assert_eq!(back.read_file("/d/f").unwrap(), b"data");
    disk.sync_dir(path("/")).unwrap();
    let back = disk.crash_with(CrashMode::LoseAll, &mut Rng::new(0));
    assert!(back.list(path("/")).unwrap().is_empty());
}

#[test]
fn what_a_failed_sync_covered_is_not_durable_after_a_later_sync() {
    let (disk, file) = disk_with(&[0; 2 * SECTOR]);
    write(&*file, &[1; 2 * SECTOR], 0).unwrap();
    disk.fail_next_sync(Some(path("/f")), 5).unwrap();
    assert_eq!(file.sync().unwrap_err().raw_os_error(), Some(5));
    file.sync().unwrap();
    assert_eq!(disk.read_file("/f").unwrap(), [1; 2 * SECTOR], "reads show the new bytes");
    assert_eq!(lost(&disk), [0; 2 * SECTOR]);
    // Written again, it is dirty again.
    write(&*file, &[1; SECTOR], 0).unwrap();
    file.sync().unwrap();
    assert_eq!(lost(&disk)[..SECTOR], [1; SECTOR]);
    assert_eq!(lost(&disk)[SECTOR..], [0; SECTOR]);
}

#[test]
fn what_a_failed_directory_sync_covered_is_not_durable_after_a_later_sync() {
    let disk = SimDisk::new();
    disk.open(path("/f"), OpenMode::Create).unwrap();
    disk.fail_next_sync(Some(path("/")), 5).unwrap();
    assert!(disk.sync_dir(path("/")).is_err());
    disk.sync_dir(path("/")).unwrap();
    assert_eq!(outcomes(&disk).len(), 2);
}

#[test]
fn a_planned_failure_of_any_file_leaves_directories_alone_and_happens_once() {
    let (disk, file) = disk_with(b"data");
    disk.fail_next_sync(None, 5).unwrap();
    disk.sync_dir(path("/")).unwrap();
    assert!(file.sync().is_err());
    file.sync().unwrap();
}

#[test]
fn a_full_disk_refuses_new_blocks_and_takes_overwrites() {
    let (disk, file) = disk_with(&[0; 8192]);
    disk.set_capacity(Some(4 * 4096 + 100));
    assert_eq!(disk.free_bytes(path("/")).unwrap(), 8192);
    let error = write(&*file, &[1; 5 * 4096], 0).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull);
    assert_eq!(disk.read_file("/f").unwrap(), [1; 4 * 4096], "as much as there is room for");
    assert_eq!(disk.free_bytes(path("/")).unwrap(), 0);
    write(&*file, &[2; 4 * 4096], 0).unwrap();
    assert_eq!(file.allocate(4 * 4096 + 1).unwrap_err().kind(), io::ErrorKind::StorageFull);
    file.allocate(4 * 4096).unwrap();
    // A longer file without blocks is allowed, writing into it is not.
    file.set_len(100_000).unwrap();
    assert_eq!(write(&*file, &[1], 50_000).unwrap_err().kind(), io::ErrorKind::StorageFull);
    disk.set_capacity(None);
    write(&*file, &[1], 50_000).unwrap();
}

#[test]
fn a_removed_file_gives_its_space_back_when_the_last_handle_is_gone() {
    let (disk, file) = disk_with(&[1; 8192]);
    disk.set_capacity(Some(8192));
    let map = file.map(8192).unwrap();
    disk.remove(path("/f")).unwrap();
    drop(file);
    assert_eq!(disk.free_bytes(path("/")).unwrap(), 0);
    assert_eq!(map.bytes(0..8192).unwrap()[..], [1; 8192]);
    drop(map);
    assert_eq!(disk.free_bytes(path("/")).unwrap(), 8192);
}

#[test]
fn the_death_of_the_process_loses_nothing_and_syncs_nothing() {
    let (disk, file) = disk_with(b"old");
    let _lock = disk.lock(path("/lock"), "first").unwrap();
    write(&*file, b"new", 0).unwrap();
    let survivor = disk.after_kill();
    assert_eq!(survivor.read_file("/f").unwrap(), b"new");
    assert_eq!(lost(&survivor), b"old");
    survivor.lock(path("/lock"), "second").unwrap();
}

#[test]
fn handles_of_the_old_disk_never_touch_the_new_one() {
    let (disk, file) = disk_with(b"old");
    let crashed = disk.crash(&mut Rng::new(0));
    let killed = disk.after_kill();
    write(&*file, b"new", 0).unwrap();
    file.sync().unwrap();
    assert_eq!(disk.read_file("/f").unwrap(), b"new");
    assert_eq!(crashed.read_file("/f").unwrap(), b"old");
    assert_eq!(killed.read_file("/f").unwrap(), b"old");
}

#[test]
fn a_snapshot_is_of_the_moment_before_its_operation() {
    let (disk, file) = disk_with(b"0");
    disk.crash_at(2);
    disk.crash_at(3);
    for digit in [b"1", b"2", b"3", b"4"] {
        write(&*file, digit, 0).unwrap();
    }
    assert_eq!(disk.ops(), 4);
    let seen: Vec<_> =
        disk.take_snapshots().into_iter().map(|(op, disk)| (op, disk.read_file("/f").unwrap())).collect();
    assert_eq!(seen, [(2, b"1".to_vec()), (3, b"2".to_vec())]);
}

#[test]
fn once_the_power_is_off_everything_fails_and_nothing_changes() {
    let (disk, file) = disk_with(b"0");
    let map = file.map(1).unwrap();
    disk.halt_at(2);
    write(&*file, b"1", 0).unwrap();
    assert_eq!(file.read_at(&mut [0], 0).unwrap(), 1);
    assert_eq!(file.sync().unwrap_err().kind(), io::ErrorKind::Other);
    assert_eq!(write(&*file, b"2", 0).unwrap_err().to_string(), "power is off");
    assert!(file.len().is_err() && file.read_at(&mut [0], 0).is_err() && map.bytes(0..1).is_err());
    assert!(disk.list(path("/")).is_err() && disk.open(path("/f"), OpenMode::Read).is_err());
    assert!(disk.lock(path("/lock"), "").is_err() && disk.free_bytes(path("/")).is_err());
    assert_eq!(disk.ops(), 1);
    assert_eq!(disk.read_file("/f").unwrap(), b"1");
    assert_eq!(lost(&disk), b"0");
    disk.after_kill().list(path("/")).unwrap();
}

#[test]
fn damage_stays_whatever_the_power_cut_chooses() {
    let (disk, file) = disk_with(&[0; 2 * SECTOR]);
    write(&*file, &[1; 2 * SECTOR], 0).unwrap();
    disk.flip_bit("/f", 8 * 3 + 7).unwrap();
    disk.overwrite("/f", 510, b"damage").unwrap();
    for outcome in outcomes(&disk) {
        let bytes = outcome.unwrap();
        assert_eq!(bytes[3] & 0x80, 0x80);
        assert_eq!(&bytes[510..516], b"damage");
    }
    disk.truncate("/f", 5).unwrap();
    assert!(outcomes(&disk).iter().all(|bytes| bytes.as_ref().unwrap().len() == 5));
    disk.truncate("/f", 10).unwrap();
    assert!(outcomes(&disk).iter().all(|bytes| bytes.as_ref().unwrap()[5..] == [0; 5]));
}

#[test]
fn planted_and_lost_files_survive_a_power_cut_as_such() {
    let (disk, _) = disk_with(b"data");
    disk.plant_file("/f", b"other").unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([Some(b"other".to_vec())]));
    disk.lose_file("/f").unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([None]));
}

#[test]
fn the_same_seed_gives_the_same_power_cut() {
    let (disk, file) = disk_with(&[0; 64 * SECTOR]);
    write(&*file, &[1; 64 * SECTOR], 0).unwrap();
    let crash = |seed| disk.crash(&mut Rng::new(seed)).read_file("/f").unwrap();
    assert!((0..50).all(|seed| crash(seed) == crash(seed)));
}

#[test]
fn random_changes_never_make_a_crash_or_a_count_go_wrong() {
    for seed in 0..200 {
        let mut rng = Rng::new(seed);
        let mut disk = SimDisk::new();
        let mut files = Vec::new();
        for _ in 0..100 {
            let name = format!("/{}", rng.below(4));
            let other = format!("/{}", rng.below(4));
            // An operation may well be refused; it must leave everything sound.
            let _refused: io::Result<()> = match rng.below(9) {
                0 | 1 => disk.open(path(&name), OpenMode::Create).map(|file| files.push(file)),
                2 => disk.open(path(&name), OpenMode::Write).map(|file| files.push(file)),
                3 => disk.rename(path(&name), path(&other)),
                4 => disk.remove(path(&name)),
                5 => disk.sync_dir(path("/")),
                6 => {
                    files.clear();
                    disk = if rng.chance(50) { disk.crash(&mut rng) } else { disk.after_kill() };
                    Ok(())
                }
                7 if !files.is_empty() => rng.choose(&files).set_len(rng.below(20_000)),
                _ if !files.is_empty() => {
                    let file = Arc::clone(rng.choose(&files));
                    let data = rng.bytes(600);
                    write(&*file, &data, rng.below(10_000)).and_then(|()| file.sync())
                }
                _ => Ok(()),
            };
        }
        drop(files);
        for name in disk.files().keys() {
            disk.remove(name).unwrap();
        }
        disk.sync_dir(path("/")).unwrap();
        assert_eq!(disk.used_bytes(), 0, "seed {seed}");
        assert_eq!(disk.world().node_count(), 1, "seed {seed}: only the root is left");
    }
}
