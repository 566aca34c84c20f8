//! Live copy of a running image, as for migration.
//!
//! [`send`] writes the device's data to a stream, then repeatedly what has changed meanwhile, and freezes the file
//! system for the rest. [`receive`] writes the stream to a file. The stream is that of libploop 1.15, which 7 and
//! later do not read: 16 bytes in the sender's byte order (a marker, a size, a position), and the data. It has no
//! checksums and no encryption: use it between hosts that trust each other.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use crate::device::device_name;
use crate::durability::{sync_directories, sync_files};
use crate::ffi::{self, CPath};
use crate::{Error, Result, paths};

/// Sends the data of an attached device (`ploop_copy_send`).
///
/// `output` is a file, pipe or socket. `feedback` is a pipe or socket on which the receiver answers; without one
/// libploop waits 5 seconds in the place of an answer. libploop's flush command is not offered, because libploop runs
/// it by a shell. If the data should be consistent beyond the file system, stop what writes to it beforehand.
///
/// Needs the driver and root; takes as long as the data.
///
/// # Errors
///
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a device not named like `/dev/ploop12345`, and where the
/// stream broke. libploop does not check that the last block was written and synced: compare checksums before you
/// give up the source.
///
/// ```no_run
/// use std::net::TcpStream;
/// use std::os::fd::AsFd;
///
/// let receiver = TcpStream::connect("203.0.113.7:4444")?;
/// ploop::copy::send("/dev/ploop12345", &receiver, Some(receiver.as_fd()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn send(
    device: impl AsRef<Path>,
    output: impl AsFd,
    feedback: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let device = device.as_ref();
    let name = device_name("send copy", device)?;
    ffi::copy_send(device, &name, output.as_fd(), feedback)
}

/// Writes what [`send`] sent to a new file (`ploop_copy_receive`).
///
/// `input` and `feedback` are pipes or sockets. Needs no driver. Takes as long as the sender does.
///
/// # Errors
///
/// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) where `file` is there,
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for file descriptors of another kind,
/// [`Corrupt`](crate::ErrorKind::Corrupt) for a stream that `send` has not written, [`Io`](crate::ErrorKind::Io) for
/// one that ends early. The file is removed after an error.
///
/// ```no_run
/// use std::net::TcpListener;
/// use std::os::fd::AsFd;
///
/// let (sender, _) = TcpListener::bind("203.0.113.7:4444")?.accept()?;
/// ploop::copy::receive("/vz/private/101/root.hdd/root.hds", &sender, Some(sender.as_fd()))?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn receive(
    file: impl AsRef<Path>,
    input: impl AsFd,
    feedback: Option<BorrowedFd<'_>>,
) -> Result<()> {
    const OPERATION: &str = "receive copy";
    let file = file.as_ref();
    let c_file = CPath::new(OPERATION, file)?;
    if std::fs::symlink_metadata(file).is_ok() {
        return Err(Error::new(
            crate::ErrorKind::AlreadyExists,
            OPERATION,
            "this file exists and was left as it is",
        )
        .with_path(file));
    }
    let resolved = paths::of_new_file(OPERATION, file)?;
    ffi::copy_receive(file, &c_file, input.as_fd(), feedback)?;
    sync_files(OPERATION, [file])?;
    sync_directories(OPERATION, [paths::directory_of(&resolved)])
}
