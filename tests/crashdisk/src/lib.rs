//! A block device in user space that remembers everything, and the power cuts replayed from its memory.
//!
//! ```text
//!   record                                        sweep, for each cut
//!   program ── ack lines ──┐                      log ── replay ── image file
//!     ext4                 │                                          │ loop device
//!     loop device          ├─► log: write, flush, ack               ext4 (journal replay by the real kernel)
//!     FUSE file "disk" ────┘        in the order they happened        └─► checker, with what was acknowledged
//! ```
//!
//! A process that is killed loses nothing: the page cache survives it. Only what a *disk* was told to keep
//! survives a power cut, so the tests of durability have to stand below the file system. The kernel's own file
//! system runs unchanged on top; below it every write and every flush is seen.
//!
//! What it assumes of a disk: a flush makes every earlier write durable; a write that is not yet flushed may be
//! kept or lost, whatever was written before or after it, and may be torn between 512-byte sectors. A sector
//! is never torn within itself, and a superblock not at all (see `mount`).
//!
//! Everything happens in a mount namespace of our own. So nobody else sees the mounts or can keep them busy, and
//! the kernel takes them down when the last of our processes is gone, however it ends.
//!
//! | module | noun |
//! |---|---|
//! | `log` | the recorded writes, flushes and acknowledgements, in memory and in a file |
//! | `disk` | the device: its bytes, its log and its faults |
//! | `faults` | how it fails, delays or lies on command |
//! | `fuse` | the FUSE file system that shows it as a file |
//! | `live` | the device with a file system mounted on it |
//! | `record`, `sweep`, `disk_errors` | the commands |
//! | `replay` | the disk as a power cut at some position of a log leaves it |
//! | `plan` | which cuts a sweep tries |
//! | `mount`, `loop_device`, `work_dir`, `process`, `sys` | what they need of the kernel |

#![expect(clippy::print_stdout, reason = "what a command found is its output")]

mod cli;
mod disk;
mod disk_errors;
mod error;
mod faults;
mod fuse;
mod live;
mod log;
mod loop_device;
mod mount;
mod plan;
mod process;
mod record;
mod replay;
mod rng;
mod sweep;
mod sys;
mod work_dir;

pub use cli::run;
pub use error::{EXIT_FAILURES, EXIT_INTERRUPTED, EXIT_TROUBLE, EXIT_UNSUPPORTED, EXIT_USAGE};
