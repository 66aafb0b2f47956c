//! What the kernel tells a program whose disk fails, shown by doing it. Run it for each kernel and file system
//! that a promise is to hold on.
//!
//! The storage engine trusts one fact: the *first* sync after a failed write or flush reports it. That one is
//! checked. The rest is shown, as the reason why a later success proves nothing. (Stores into a mapped file meet
//! the same errors as SIGBUS; that needs a program of its own, run by `crashdisk mount`.)

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

use crate::error::{Context, Result};
use crate::live::LiveDisk;
use crate::mount::FileSystem;
use crate::process::Programs;
use crate::work_dir::WorkDir;

/// The settings of `disk-errors`.
#[derive(Debug)]
pub(crate) struct DiskErrors {
    pub(crate) work: PathBuf,
    pub(crate) file_system: FileSystem,
    pub(crate) disk_bytes: usize,
}

type Case = fn(&LiveDisk) -> io::Result<bool>;

const CASES: [(&str, Case); 4] = [
    ("a write fails, then fdatasync", failed_write),
    ("a write fails, and somebody else syncs first", failed_write_found_by_another),
    ("a flush fails once, then fdatasync", failed_flush),
    ("a read fails", failed_read),
];

impl DiskErrors {
    /// Runs each case on a disk of its own. False if an error was kept from us.
    pub(crate) fn run(&self, programs: &Programs) -> Result<bool> {
        let work = WorkDir::open(&self.work)?;
        let mut fine = true;
        for (name, case) in CASES {
            programs.proceed()?;
            println!("{}: {name}", self.file_system.name);
            let live = LiveDisk::new(&work, &self.file_system, self.disk_bytes, false)?;
            let told = case(&live).context(|| format!("set up the case {name:?}"))?;
            if !told {
                println!("FAIL the error was kept from the program");
            }
            fine &= told;
            live.close()?;
        }
        Ok(fine)
    }
}

fn failed_write(live: &LiveDisk) -> io::Result<bool> {
    let file = file_of_a(&live.mount_point)?;
    command(live, "write-eio");
    file.write_all_at(&[b'B'; 4096], 0)?;
    let told = show("fdatasync, the disk failing", file.sync_data());
    command(live, "clear");
    show("fdatasync again, the disk healed", file.sync_data());
    show_content("what a read then returns", &file)?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    show_content("and once the page cache is dropped", &file)?;
    Ok(told)
}

fn failed_write_found_by_another(live: &LiveDisk) -> io::Result<bool> {
    let file = file_of_a(&live.mount_point)?;
    command(live, "write-eio");
    file.write_all_at(&[b'B'; 4096], 0)?;
    show("syncfs by another program", rustix::fs::syncfs(File::open(&live.mount_point)?).map_err(Into::into));
    command(live, "clear");
    let told = show("fdatasync on the descriptor that wrote", file.sync_data());
    Ok(told)
}

fn failed_flush(live: &LiveDisk) -> io::Result<bool> {
    let file = file_of_a(&live.mount_point)?;
    file.write_all_at(&[b'B'; 4096], 0)?;
    command(live, "flush-eio 0 1");
    let told = show("fdatasync, the flush failing", file.sync_data());
    show("fdatasync again", file.sync_data());
    Ok(told)
}

fn failed_read(live: &LiveDisk) -> io::Result<bool> {
    let file = file_of_a(&live.mount_point)?;
    fadvise(&file, 0, None, Advice::DontNeed)?;
    command(live, "read-eio");
    let told = show("pread", file.read_exact_at(&mut [0; 4096], 0));
    Ok(told)
}

/// A durable file full of `A`.
fn file_of_a(directory: &Path) -> io::Result<File> {
    let path = directory.join("file");
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(true).open(path)?;
    file.write_all_at(&[b'A'; 65536], 0)?;
    file.sync_all()?;
    Ok(file)
}

fn command(live: &LiveDisk, command: &str) {
    live.control(command).expect("a command from this file");
}

/// Shows an outcome; true if it is an error.
fn show(what: &str, outcome: io::Result<()>) -> bool {
    match &outcome {
        Ok(()) => println!("    {what}: ok"),
        Err(error) => println!("    {what}: {error}"),
    }
    outcome.is_err()
}

fn show_content(what: &str, file: &File) -> io::Result<()> {
    let mut first = [0; 4];
    file.read_exact_at(&mut first, 0)?;
    println!("    {what}: {}", String::from_utf8_lossy(&first));
    Ok(())
}
