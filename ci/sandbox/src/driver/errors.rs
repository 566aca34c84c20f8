//! Errors of images and of the host as `errno`s of the driver.

use std::io;

use ploop::ErrorKind;
use rustix::io::Errno;

/// The `errno` of an ioctl for an error of an image.
pub(super) fn image_errno(error: &ploop::Error) -> Errno {
    match error.kind() {
        ErrorKind::NoSpace => Errno::NOSPC,
        ErrorKind::Busy => Errno::BUSY,
        ErrorKind::InvalidInput | ErrorKind::Corrupt | ErrorKind::Unsupported => Errno::INVAL,
        ErrorKind::PermissionDenied => Errno::ACCESS,
        _ => Errno::IO,
    }
}

/// The error of a read or a write: ENOSPC, or EIO after a line on standard error.
pub(super) fn into_io(error: ploop::Error) -> io::Error {
    let errno = match error.kind() {
        ErrorKind::NoSpace => Errno::NOSPC,
        _ => {
            eprintln!("ploop-sandbox: {error}");
            Errno::IO
        }
    };
    io::Error::from_raw_os_error(errno.raw_os_error())
}

/// The `errno` of an error of the host.
pub(super) fn host_errno(error: &io::Error) -> Errno {
    Errno::from_io_error(error).unwrap_or(Errno::IO)
}
