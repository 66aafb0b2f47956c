//! Loop devices: a file as a block device.

use std::fs::{self, File, OpenOptions};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

use crate::error::{Context, Error, Result};
use crate::sys;

/// The device that hands out loop devices.
pub(crate) const CONTROL: &str = "/dev/loop-control";

/// Another process may take the device that we were just told is free.
const ATTEMPTS_MAX: u32 = 50;

/// An attached loop device. Dropping it detaches the device, unless a mount uses it: then the unmount does.
#[derive(Debug)]
pub(crate) struct LoopDevice {
    pub(crate) path: PathBuf,
    _open: File,
}

impl LoopDevice {
    pub(crate) fn attach(file: &Path, direct_io: bool) -> Result<Self> {
        let attaching = || format!("attach a loop device to {}", file.display());
        let backing = open(file).context(attaching)?;
        let control = open(Path::new(CONTROL)).context(attaching)?;
        for _ in 0..ATTEMPTS_MAX {
            let path =
                PathBuf::from(format!("/dev/loop{}", sys::free_loop_device(&control).context(attaching)?));
            let device = open(&path).context(attaching)?;
            match sys::configure_loop_device(&device, backing.as_fd(), direct_io) {
                Ok(()) => return Ok(Self { path, _open: device }),
                Err(Errno::BUSY) => {}
                Err(error) => return Err(error).context(attaching),
            }
        }
        Err(Error::Trouble(format!("no loop device stays free for {}", file.display())))
    }
}

/// The loop devices whose file is below `directory`.
pub(crate) fn attached_below(directory: &Path) -> Vec<PathBuf> {
    let Ok(devices) = fs::read_dir("/sys/block") else { return Vec::new() };
    devices
        .flatten()
        .filter(|device| {
            fs::read(device.path().join("loop/backing_file")).is_ok_and(|file| {
                Path::new(std::ffi::OsStr::from_bytes(file.trim_ascii_end())).starts_with(directory)
            })
        })
        .map(|device| Path::new("/dev").join(device.file_name()))
        .collect()
}

/// Detaches a device that an earlier run left behind.
pub(crate) fn detach(device: &Path) -> Result<()> {
    let detaching = || format!("detach {}", device.display());
    let open = open(device).context(detaching)?;
    match sys::clear_loop_device(&open) {
        Err(Errno::NXIO) | Ok(()) => Ok(()), // it detached itself meanwhile
        Err(error) => Err(error).context(detaching),
    }
}

/// Waits until no loop device has a file below `directory`: the kernel may detach a moment after the unmount.
pub(crate) fn wait_until_detached(directory: &Path, patience: Duration) -> Result<()> {
    let begin = Instant::now();
    loop {
        let left = attached_below(directory);
        if left.is_empty() {
            return Ok(());
        }
        if begin.elapsed() > patience {
            return Err(Error::Trouble(format!("still attached: {left:?}")));
        }
        thread::sleep(Duration::from_millis(2));
    }
}

fn open(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}
