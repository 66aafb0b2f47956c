//! What no crate offers a safe function for: three ioctls of loop devices, `unshare`, and a call between fork and
//! exec.
//!
//! The one module of this package with unsafe code. What holds:
//!
//! - S1 The opcodes and the layout of [`LoopConfig`] are those of `linux/loop.h`, which the kernel never changes.
//! - S2 Each ioctl goes to a loop device or to `/dev/loop-control`, where these opcodes have that meaning: the
//!   callers in [`loop_device`](crate::loop_device) open nothing else.
//! - S3 None of them writes into our memory; `LOOP_CONFIGURE` reads one `LoopConfig`, the others take no pointer.
#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs::File;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::ptr;

use rustix::io::Result;
use rustix::ioctl::{Ioctl, IoctlOutput, NoArg, Opcode, Setter, ioctl};
use rustix::process::{Signal, set_parent_process_death_signal};
use rustix::thread::{UnshareFlags, unshare_unsafe};

const LOOP_CONFIGURE: Opcode = 0x4C0A;
const LOOP_CLR_FD: Opcode = 0x4C01;
const LOOP_CTL_GET_FREE: Opcode = 0x4C82;

const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_config` with its `struct loop_info64` spelled out.
#[repr(C)]
#[derive(Debug)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopConfig>() == 304);

/// The number of a loop device that was free a moment ago.
pub(crate) fn free_loop_device(control: &File) -> Result<u32> {
    // SAFETY: S1, S2, S3.
    unsafe { ioctl(control, GetFree) }
}

/// Puts `file` under the loop device. It detaches itself when its last user (a mount, a descriptor) is gone.
pub(crate) fn configure_loop_device(device: &File, file: BorrowedFd<'_>, direct_io: bool) -> Result<()> {
    let config = LoopConfig {
        fd: file.as_raw_fd().cast_unsigned(),
        block_size: 512,
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_AUTOCLEAR | if direct_io { LO_FLAGS_DIRECT_IO } else { 0 },
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
        reserved: [0; 8],
    };
    // SAFETY: S1, S2, S3.
    unsafe { ioctl(device, Setter::<LOOP_CONFIGURE, LoopConfig>::new(config)) }
}

/// Takes the file away from a loop device, at once or when its last user is gone.
pub(crate) fn clear_loop_device(device: &File) -> Result<()> {
    // SAFETY: S1, S2, S3.
    unsafe { ioctl(device, NoArg::<LOOP_CLR_FD>::new()) }
}

/// Gives this thread, and the threads and processes it starts from now on, a mount namespace of its own.
pub(crate) fn own_mount_namespace() -> Result<()> {
    // SAFETY: the function is unsafe for the sake of `UnshareFlags::FILES`, which is not among our flags.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }
}

/// Lets the program die with the thread that starts it, should we be killed without a chance to do it.
pub(crate) fn die_with_us(command: &mut Command) -> &mut Command {
    // SAFETY: between fork and exec only this one system call is made; it takes no lock and no memory.
    unsafe { command.pre_exec(|| Ok(set_parent_process_death_signal(Some(Signal::KILL))?)) }
}

/// `LOOP_CTL_GET_FREE` answers in its return value, a pattern that rustix lacks.
struct GetFree;

// SAFETY: S1, S2, S3; the output is made from the return value alone.
unsafe impl Ioctl for GetFree {
    type Output = u32;

    const IS_MUTATING: bool = false;

    fn opcode(&self) -> Opcode {
        LOOP_CTL_GET_FREE
    }

    fn as_ptr(&mut self) -> *mut c_void {
        ptr::null_mut()
    }

    unsafe fn output_from_ptr(output: IoctlOutput, _pointer: *mut c_void) -> Result<u32> {
        Ok(output.cast_unsigned())
    }
}
