//! What can go wrong with the tool itself, and the exit code that says so.
//!
//! A checker that refuses an image is not an error but the tool's finding: [`EXIT_FAILURES`].

use std::io;
use std::path::PathBuf;

/// The tool worked and found something: an image was refused, a program failed, or too little happened to judge.
pub const EXIT_FAILURES: u8 = 1;
/// The tool could not do its work; nothing is known about the program under test.
pub const EXIT_TROUBLE: u8 = 2;
/// The command line makes no sense.
pub const EXIT_USAGE: u8 = 64;
/// This machine cannot run it: not root, no FUSE, no loop devices, no such file system. A CI job says "skipped".
pub const EXIT_UNSUPPORTED: u8 = 77;
/// A signal asked it to stop; everything is unmounted.
pub const EXIT_INTERRUPTED: u8 = 130;

pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Usage(String),
    #[error("not possible on this machine: {0}")]
    Unsupported(String),
    #[error("interrupted")]
    Interrupted,
    #[error("cannot {what}: {source}")]
    Io { what: String, source: io::Error },
    /// The file system on a disk image is not mountable: for a sweep a finding, elsewhere trouble.
    #[error("cannot mount {file_system} from {image}: {source}")]
    Mount { file_system: String, image: PathBuf, source: io::Error },
    #[error("the log {path} is damaged at byte {position}: {why}")]
    DamagedLog { path: PathBuf, position: usize, why: &'static str },
    #[error("{0}")]
    Trouble(String),
}

impl Error {
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => EXIT_USAGE,
            Self::Unsupported(_) => EXIT_UNSUPPORTED,
            Self::Interrupted => EXIT_INTERRUPTED,
            Self::Io { .. } | Self::Mount { .. } | Self::DamagedLog { .. } | Self::Trouble(_) => EXIT_TROUBLE,
        }
    }
}

/// Says what was being done when the operating system refused.
pub(crate) trait Context<T> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<io::Error>> Context<T> for std::result::Result<T, E> {
    fn context(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::Io { what: what(), source: error.into() })
    }
}
