//! The FUSE file system that shows the device as a file: `disk`, and `ctl` that takes commands and, when read,
//! says how many operations failed by command.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BackgroundSession, BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty,
    ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow, WriteFlags,
};

use crate::disk::{Disk, Refusal};

/// The name of the device's file.
pub(crate) const DISK: &str = "disk";
/// The name of the file that takes commands.
pub(crate) const CTL: &str = "ctl";

const ROOT_INODE: u64 = 1;
const DISK_INODE: u64 = 2;
const CTL_INODE: u64 = 3;

/// Nothing here ever changes its name or size.
const ATTRIBUTES_VALID: Duration = Duration::from_secs(3600);

/// Shows `disk` in the directory `at` until the session is unmounted.
///
/// One thread serves it: what the kernel is told to be done is then logged in just that order.
pub(crate) fn serve(disk: Disk, at: &Path) -> io::Result<BackgroundSession> {
    let mut config = Config::default();
    config.mount_options = vec![MountOption::FSName("crashdisk".into()), MountOption::RW];
    fuser::spawn_mount(DiskFs { disk }, at, &config)
}

struct DiskFs {
    disk: Disk,
}

impl DiskFs {
    fn attributes(&self, inode: INodeNo) -> FileAttr {
        let size = if u64::from(inode) == DISK_INODE { self.disk.len() } else { 0 };
        let is_root = u64::from(inode) == ROOT_INODE;
        FileAttr {
            ino: inode,
            size,
            blocks: size / 512,
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_root { FileType::Directory } else { FileType::RegularFile },
            perm: if is_root { 0o700 } else { 0o600 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }

    fn write_to(&self, inode: INodeNo, position: u64, bytes: &[u8]) -> Result<(), Refusal> {
        match u64::from(inode) {
            DISK_INODE => self.disk.write(position, bytes),
            CTL_INODE => std::str::from_utf8(bytes)
                .map_err(|_| Refusal::BadCommand)
                .and_then(|text| self.disk.control(text)),
            _ => Err(Refusal::BadCommand),
        }
    }

    fn read_from(&self, inode: INodeNo, position: u64, length: u32) -> Result<Vec<u8>, Refusal> {
        match u64::from(inode) {
            DISK_INODE => self.disk.read(position, length),
            CTL_INODE if position == 0 => Ok(format!("hits {}\n", self.disk.hits()).into_bytes()),
            _ => Ok(Vec::new()),
        }
    }
}

fn errno(refusal: Refusal) -> Errno {
    match refusal {
        Refusal::Fault => Errno::EIO,
        Refusal::BeyondEnd => Errno::ENOSPC,
        Refusal::BadCommand => Errno::EINVAL,
    }
}

impl Filesystem for DiskFs {
    fn lookup(&self, _request: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let inode = match name.to_str() {
            Some(DISK) => DISK_INODE,
            Some(CTL) => CTL_INODE,
            _ => return reply.error(Errno::ENOENT),
        };
        reply.entry(&ATTRIBUTES_VALID, &self.attributes(INodeNo(inode)), Generation(0));
    }

    fn getattr(&self, _request: &Request, inode: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&ATTRIBUTES_VALID, &self.attributes(inode));
    }

    /// `echo clear > ctl` truncates first; that is fine, and changes nothing.
    fn setattr(
        &self,
        _request: &Request,
        inode: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        _size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        reply.attr(&ATTRIBUTES_VALID, &self.attributes(inode));
    }

    /// Direct I/O: a page cache between the device and us would reorder what we must see in order.
    fn open(&self, _request: &Request, _inode: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn readdir(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (ROOT_INODE, FileType::Directory, "."),
            (ROOT_INODE, FileType::Directory, ".."),
            (DISK_INODE, FileType::RegularFile, DISK),
            (CTL_INODE, FileType::RegularFile, CTL),
        ];
        for ((inode, kind, name), next) in entries.into_iter().zip(1..).filter(|(_, next)| *next > offset) {
            if reply.add(INodeNo(inode), next, kind, name) {
                break;
            }
        }
        reply.ok();
    }

    fn read(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        match self.read_from(inode, offset, size) {
            Ok(bytes) => reply.data(&bytes),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    fn write(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.write_to(inode, offset, data) {
            Ok(()) => {
                reply.written(u32::try_from(data.len()).expect("FUSE writes are a few megabytes at most"))
            }
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    /// The loop device turns each flush of the block layer into an fsync of its file.
    fn fsync(
        &self,
        _request: &Request,
        inode: INodeNo,
        _handle: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        let done = if u64::from(inode) == DISK_INODE { self.disk.flush() } else { Ok(()) };
        match done {
            Ok(()) => reply.ok(),
            Err(refusal) => reply.error(errno(refusal)),
        }
    }

    /// No discard: the loop device then writes real zeros, which the log can hold.
    fn fallocate(
        &self,
        _request: &Request,
        _inode: INodeNo,
        _handle: FileHandle,
        _offset: u64,
        _length: u64,
        _mode: i32,
        reply: ReplyEmpty,
    ) {
        reply.error(Errno::EOPNOTSUPP);
    }
}
