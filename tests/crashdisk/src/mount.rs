//! File systems: made on an image, mounted through a loop device, and unmounted again.

use std::ffi::CString;
use std::fs;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};

use crate::error::{Context, Error, Result};
use crate::loop_device::LoopDevice;
use crate::sys;

/// How long something may keep a mount busy before we say so. A process that we killed needs a moment to die.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);

/// Leaves the mount namespace that everybody else sees.
pub(crate) fn enter_own_namespace() -> Result<()> {
    let unsupported = |what: &str, error: Errno| Error::Unsupported(format!("{what}: {error}"));
    sys::own_mount_namespace().map_err(|error| unsupported("a mount namespace of our own", error))?;
    mount_change("/", MountPropagationFlags::REC | MountPropagationFlags::PRIVATE)
        .map_err(|error| unsupported("keeping mounts to ourselves", error))
}

/// What is mounted at or below `directory`, deepest last.
pub(crate) fn mounted_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let table = fs::read_to_string("/proc/self/mountinfo").context(|| "read the mount table".into())?;
    Ok(table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| PathBuf::from(unescape(point)))
        .filter(|point| point.starts_with(directory))
        .collect())
}

/// The mount table writes blanks, tabs, line ends and backslashes as `\` and three octal digits.
fn unescape(point: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(point.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

/// A kind of file system, with its mount options.
#[derive(Clone, Debug)]
pub(crate) struct FileSystem {
    pub(crate) name: String,
    pub(crate) options: String,
}

impl FileSystem {
    /// Makes one on a block device.
    pub(crate) fn make(&self, device: &Path) -> Result<()> {
        let tool = format!("mkfs.{}", self.name);
        let mut command = Command::new(&tool);
        match self.name.as_str() {
            // What is initialised later would be written into the middle of a recording.
            "ext4" => command.args(["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0"]),
            _ => command.args(["-q", "-f"]),
        };
        let made = command.arg(device).stdin(Stdio::null()).output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => Error::Unsupported(format!("{tool} is not installed")),
            _ => Error::Io { what: format!("run {tool}"), source: error },
        })?;
        if made.status.success() {
            return Ok(());
        }
        let why = String::from_utf8_lossy(&made.stderr).trim().to_owned();
        Err(Error::Trouble(format!("{tool} failed: {why}")))
    }

    /// Where its first superblock is. ext4 and btrfs overwrite theirs in place under a checksum, and need it to find
    /// their journal or trees: they count on the disk to write it whole.
    pub(crate) fn superblock(&self) -> Range<u64> {
        match self.name.as_str() {
            "ext4" => 1024..2048,
            "btrfs" => 65536..69632,
            _ => 0..512,
        }
    }

    fn flags_and_data(&self) -> (MountFlags, CString) {
        let mut flags = MountFlags::empty();
        let mut data = Vec::new();
        for option in self.options.split(',').filter(|option| !option.is_empty()) {
            match option {
                "noatime" => flags |= MountFlags::NOATIME,
                "ro" => flags |= MountFlags::RDONLY,
                "sync" => flags |= MountFlags::SYNCHRONOUS,
                other => data.push(other),
            }
        }
        (flags, CString::new(data.join(",")).expect("an argument of a program has no NUL"))
    }
}

/// A mounted file system. Dropping it unmounts; [`unmount`](Self::unmount) also tells whether that worked.
#[derive(Debug)]
pub(crate) struct Mount {
    point: PathBuf,
    mounted: bool,
}

impl Mount {
    /// Mounts the file system in the file `image` at `point`.
    pub(crate) fn new(image: &Path, point: &Path, file_system: &FileSystem, direct_io: bool) -> Result<Self> {
        let device = LoopDevice::attach(image, direct_io)?;
        let (flags, data) = file_system.flags_and_data();
        match mount(&device.path, point, &*file_system.name, flags, data.as_c_str()) {
            Ok(()) => Ok(Self { point: point.to_owned(), mounted: true }),
            Err(Errno::NODEV) => Err(Error::Unsupported(format!("this kernel has no {}", file_system.name))),
            Err(Errno::PERM) => {
                Err(Error::Unsupported(format!("mounting {} is not permitted", file_system.name)))
            }
            Err(error) => Err(Error::Mount {
                file_system: file_system.name.clone(),
                image: image.to_owned(),
                source: error.into(),
            }),
        }
    }

    pub(crate) fn unmount(mut self) -> Result<()> {
        self.unmount_once()
    }

    fn unmount_once(&mut self) -> Result<()> {
        if !std::mem::take(&mut self.mounted) {
            return Ok(());
        }
        let begin = Instant::now();
        loop {
            match unmount(&self.point, UnmountFlags::empty()) {
                Ok(()) => return Ok(()),
                Err(Errno::BUSY) if begin.elapsed() < UNMOUNT_PATIENCE => {
                    thread::sleep(Duration::from_millis(5))
                }
                Err(error) => {
                    // Out of sight at least, and gone with its last user.
                    let _ = unmount(&self.point, UnmountFlags::DETACH);
                    return Err(error).context(|| format!("unmount {}", self.point.display()));
                }
            }
        }
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if let Err(error) = self.unmount_once() {
            eprintln!("crashdisk: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_with_blanks_are_read_as_they_are() {
        assert_eq!(unescape("/a\\040b\\134c"), "/a b\\c");
    }

    #[test]
    fn mount_options_are_split_into_flags_and_data() {
        let file_system =
            FileSystem { name: "ext4".into(), options: "noatime,data=journal,ro,commit=1".into() };
        let (flags, data) = file_system.flags_and_data();
        assert_eq!(flags, MountFlags::NOATIME | MountFlags::RDONLY);
        assert_eq!(data.to_str().unwrap(), "data=journal,commit=1");
    }
}
