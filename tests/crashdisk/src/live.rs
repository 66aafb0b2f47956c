//! The device in use: FUSE file, loop device and a file system mounted on it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use fuser::BackgroundSession;
use rustix::fs::syncfs;

use crate::disk::Disk;
use crate::error::{Context, Error, Result};
use crate::fuse;
use crate::loop_device::{self, LoopDevice};
use crate::mount::{FileSystem, Mount};
use crate::work_dir::WorkDir;

const DETACH_PATIENCE: Duration = Duration::from_secs(10);

/// A mounted device. Dropping it heals the disk and takes everything down, top first.
pub(crate) struct LiveDisk {
    pub(crate) disk: Disk,
    pub(crate) mount_point: PathBuf,
    fuse_point: PathBuf,
    mount: Option<Mount>,
    session: Option<BackgroundSession>,
}

impl LiveDisk {
    /// Makes a file system on a new device and mounts it. When this returns, nothing is left to be written.
    pub(crate) fn new(work: &WorkDir, file_system: &FileSystem, bytes: usize, logged: bool) -> Result<Self> {
        let disk = Disk::new(bytes, logged);
        let fuse_point = work.fresh_dir("fuse")?;
        let mount_point = work.fresh_dir("mnt")?;
        let session =
            fuse::serve(disk.clone(), &fuse_point).context(|| "mount the FUSE file system".into())?;
        let mut live = Self { disk, mount_point, fuse_point, mount: None, session: Some(session) };

        let image = live.fuse_point.join(fuse::DISK);
        file_system.make(&LoopDevice::attach(&image, false)?.path)?;
        // Direct I/O keeps a second page cache, which would delay and merge writes, out of the way.
        live.mount = Some(Mount::new(&image, &live.mount_point, file_system, true)?);
        let root = File::open(&live.mount_point).context(|| "open the new file system".into())?;
        syncfs(&root).context(|| "sync the new file system".into())?;
        Ok(live)
    }

    /// The file that takes commands.
    pub(crate) fn ctl(&self) -> PathBuf {
        self.fuse_point.join(fuse::CTL)
    }

    /// Obeys fault commands, one a line.
    pub(crate) fn control(&self, commands: &str) -> Result<()> {
        self.disk.control(commands).map_err(|_| Error::Usage(format!("no such fault: {commands}")))
    }

    /// `arguments` with `{mnt}` and `{ctl}` filled in.
    pub(crate) fn fill_in(&self, arguments: &[String]) -> Vec<String> {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let (mount_point, ctl) = (text(&self.mount_point), text(&self.ctl()));
        arguments.iter().map(|word| word.replace("{mnt}", &mount_point).replace("{ctl}", &ctl)).collect()
    }

    /// Takes everything down and tells whether that worked.
    pub(crate) fn close(mut self) -> Result<()> {
        self.take_down()
    }

    fn take_down(&mut self) -> Result<()> {
        // A disk that still fails would fail the unmount as well.
        let _ = self.disk.control("clear");
        let unmounted = self.mount.take().map_or(Ok(()), Mount::unmount);
        let Some(session) = self.session.take() else { return unmounted };
        let detached = loop_device::wait_until_detached(&self.fuse_point, DETACH_PATIENCE);
        let served = session.umount_and_join().context(|| "unmount the FUSE file system".into());
        unmounted.and(detached).and(served)
    }
}

impl Drop for LiveDisk {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("crashdisk: {error}");
        }
    }
}
