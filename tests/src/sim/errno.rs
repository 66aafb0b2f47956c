//! Errors as the operating system reports them.

use std::io;

pub(super) fn no_space() -> io::Error {
    io::Error::from_raw_os_error(28)
}

/// Writing through a handle that was opened for reading.
pub(super) fn bad_descriptor() -> io::Error {
    io::Error::from_raw_os_error(9)
}
