//! A golden store or log with one of its files damaged.
//!
//! Input: which store, which file, how (see [`Damage`]), where (2 bytes), and the bytes.

use std::path::Path;

use quipu_storage::disk::Disk;
use quipu_tests::golden::Golden;
use quipu_tests::sim::SimDisk;

/// What is done to the file.
pub enum Damage<'a> {
    /// The bytes stand at that place.
    Overwrite(u64, &'a [u8]),
    /// The bytes are the file.
    Replace(&'a [u8]),
    /// The file ends there.
    Cut(u64),
    /// The file is gone.
    Lose,
}

/// Which of the stores, which file, and what is done to it.
pub fn of_input(input: &[u8]) -> Option<(usize, u8, Damage<'_>)> {
    let [store, file, how, low, high, bytes @ ..] = input else { return None };
    let place = u64::from(u16::from_le_bytes([*low, *high]));
    let damage = match how % 8 {
        0..5 => Damage::Overwrite(place, bytes),
        5 => Damage::Replace(bytes),
        6 => Damage::Cut(place),
        _ => Damage::Lose,
    };
    Some((usize::from(store % 2), *file, damage))
}

/// A disk with the store below `root`.
pub fn planted(root: &Path, golden: &Golden, file: u8, damage: &Damage<'_>) -> SimDisk {
    let disk = SimDisk::new();
    disk.create_dir(root).expect("the disk is empty");
    for path in golden.files.keys() {
        let mut dir = root.to_path_buf();
        for part in Path::new(path).parent().into_iter().flat_map(Path::components) {
            dir.push(part);
            disk.create_dir(&dir).expect("it is there or can be made");
        }
    }
    let chosen = usize::from(file) % golden.files.len();
    for (number, (path, bytes)) in golden.files.iter().enumerate() {
        let mut bytes = bytes.clone();
        let path = root.join(path);
        if number == chosen {
            match *damage {
                Damage::Overwrite(at, with) => {
                    let at = usize::try_from(at).expect("two bytes") % bytes.len();
                    let end = (at + with.len()).min(bytes.len());
                    bytes[at..end].copy_from_slice(&with[..end - at]);
                }
                Damage::Replace(with) => bytes = with.to_vec(),
                Damage::Cut(at) => bytes.truncate(usize::try_from(at).expect("two bytes")),
                Damage::Lose => continue,
            }
        }
        disk.plant_file(path, &bytes).expect("its directory was made");
    }
    disk
}
