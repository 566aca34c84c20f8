//! Live copy of a running image, as for migration.
//!
//! [`send`] writes the file of a device's top delta to a stream, then repeatedly what has changed meanwhile, and freezes
//! the file system for the rest. [`receive`] writes the stream to a file.
//!
//! # Two kinds of streams
//!
//! The stream is that of `ploop_copy_send` of libploop 1.15, on all lines: hosts with libploop 1.x and 7 copy to each
//! other, and a program that uses the C functions of 1.x can be at the other end. libploop 7 has those functions in
//! name only from 7.0.235 on; there this crate does the work. Each block begins with 16 bytes in the sender's byte
//! order (a marker, a length, a position), and has no checksum.
//!
//! The command `ploop copy` of libploop 7 writes another kind of stream. [`receive`] recognizes it, and refuses it with
//! [`Unsupported`](crate::ErrorKind::Unsupported).
//!
//! Neither kind is encrypted: use them between hosts that trust each other.
//!
//! # What else works on the image
//!
//! Other operations on it (a snapshot, a merge, a resize, an unmount) end the copy with an error, as libploop has it.
//! They themselves succeed; an unmount may find the file system busy. Only one copy of a device is sent at a time:
//! another one waits for at most [the lock timeout](crate::lock::timeout).

mod descriptors;
mod receive;
mod send;
mod stream;
#[cfg(test)]
mod stream_tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_getfl};

use crate::device::device_name;
use crate::durability::{sync_directories, sync_files};
use crate::ffi::{self, CPath, LINE};
use crate::identity::Identity;
use crate::lock::CopyLock;
use crate::{Code, Error, ErrorKind, Result, paths, sysfs};
use descriptors::FileKind;

const SEND: &str = "send copy";
const RECEIVE: &str = "receive copy";

/// Sends the data of an attached device (`ploop_copy_send`; without it on libploop 7, see [`send_in_rust`]).
///
/// `output` is a file, pipe or socket. `feedback` is a pipe or socket on which the receiver answers; without one,
/// 5 seconds take the place of its answer. libploop's flush command is not offered, because libploop runs
/// it by a shell. If the data should be consistent beyond the file system, stop what writes to it beforehand.
///
/// Needs the driver and root; takes as long as the data. The file system is frozen for the last part of that.
///
/// # Errors
///
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for a device not named like `/dev/ploop12345`, for an output that
/// is none of the three, and for a file that is opened to be appended to; [`Busy`](crate::ErrorKind::Busy) for the file
/// of a delta that a device has. Where the stream broke, [`Io`](crate::ErrorKind::Io) or what the system said.
///
/// libploop 1.x does not check that the last block was written and synced: there, compare checksums before you
/// give up the source, or use [`send_in_rust`] with feedback.
///
/// # If the program is killed
///
/// On libploop 1.x, a file system that is frozen at that moment stays so, until it is thawed (`fsfreeze -u`), and the
/// driver goes on noting changes until the next operation on the image. On 7, see [`send_in_rust`].
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
    if !LINE.copies {
        return send_in_rust(device, output, feedback);
    }
    let name = device_name(SEND, device)?;
    require_output(device, output.as_fd())?;
    let _lock = match CopyLock::acquire(SEND, device) {
        Err(error) if error.kind() == ErrorKind::Locked => return Err(error),
        // libploop says what is wrong.
        lock => lock.ok(),
    };
    ffi::copy_send(device, &name, output.as_fd(), feedback)
}

/// Sends the data of an attached device without libploop, on all lines. The stream is that of [`send`].
///
/// Against `ploop_copy_send`,
///
/// * with feedback, or into a file, success means that everything is on the receiver's disk;
/// * a receiver that takes nothing for a minute while the file system is frozen ends the copy;
/// * if this process is killed (SIGKILL, too), another one thaws the file system and ends the tracking of changes in the
///   driver. It is a child of this process, has the device and the mount point open while the copy runs, and is gone
///   when this function returns. If both are killed, the file system stays frozen until it is thawed (`fsfreeze -u`),
///   and the next operation on the image ends the tracking.
///
/// Needs the driver and root; takes as long as the data. Uses a second thread.
///
/// # Errors
///
/// As [`send`]. [`Busy`](crate::ErrorKind::Busy) also where the driver is in another operation on the device, or
/// another operation on the image has ended the tracking of changes; [`Locked`](crate::ErrorKind::Locked) where another
/// copy of the device took longer than [the lock timeout](crate::lock::timeout). After an error the file system is thawed
/// and nothing is tracked.
pub fn send_in_rust(
    device: impl AsRef<Path>,
    output: impl AsFd,
    feedback: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let device = device.as_ref();
    device_name(SEND, device)?;
    require_output(device, output.as_fd())?;
    send::send(device, output.as_fd(), feedback)
}

/// Writes what [`send`] sent to a new file (`ploop_copy_receive`; without it on libploop 7, see [`receive_in_rust`]).
///
/// `input` and `feedback` are pipes or sockets. Needs no driver. Takes as long as the sender does.
///
/// # Errors
///
/// [`AlreadyExists`](crate::ErrorKind::AlreadyExists) where `file` is there,
/// [`InvalidInput`](crate::ErrorKind::InvalidInput) for file descriptors of another kind,
/// [`Corrupt`](crate::ErrorKind::Corrupt) for a stream that `send` has not written,
/// [`Unsupported`](crate::ErrorKind::Unsupported) for one of the other kind, [`Io`](crate::ErrorKind::Io) for
/// one that ends early. A file that is not complete is removed.
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
    let file = file.as_ref();
    if !LINE.copies {
        return receive_in_rust(file, input, feedback);
    }
    receive_new(file, |c_file| {
        // C would call a stream of the other kind damaged.
        let is_answerable = |fd| FileKind::of(fd).is_some_and(FileKind::is_stream);
        let first_bytes = match feedback.is_none_or(is_answerable) {
            true => descriptors::peek(input.as_fd()),
            false => None,
        };
        let other = first_bytes.and_then(stream::OtherStream::of);
        if let Some(error) = other.and_then(receive::other_stream) {
            return Err(error.with_path(file));
        }
        ffi::copy_receive(file, c_file, input.as_fd(), feedback)
    })
}

/// Writes what [`send`] sent to a new file without libploop, on all lines.
///
/// Against `ploop_copy_receive`, it needs 1 MiB of memory whatever the stream says, and works also with file
/// descriptors that do not block.
///
/// # Errors
///
/// As [`receive`].
pub fn receive_in_rust(
    file: impl AsRef<Path>,
    input: impl AsFd,
    feedback: Option<BorrowedFd<'_>>,
) -> Result<()> {
    let file = file.as_ref();
    receive_new(file, |_| receive::receive(file, input.as_fd(), feedback))
}

/// Receives a file that does not exist, and syncs it.
fn receive_new(file: &Path, receive: impl FnOnce(&CPath) -> Result<()>) -> Result<()> {
    let c_file = CPath::new(RECEIVE, file)?;
    if std::fs::symlink_metadata(file).is_ok() {
        return Err(Error::new(
            ErrorKind::AlreadyExists,
            RECEIVE,
            "this file exists and was left as it is",
        )
        .with_path(file));
    }
    let resolved = paths::of_new_file(RECEIVE, file)?;
    receive(&c_file)?;
    sync_files(RECEIVE, [file])?;
    sync_directories(RECEIVE, [paths::directory_of(&resolved)])
}

/// Requires that a file to write to takes data at any position, and is not part of a running image.
fn require_output(device: &Path, output: BorrowedFd<'_>) -> Result<()> {
    if FileKind::of(output) != Some(FileKind::Regular) {
        return Ok(());
    }
    let refused = |kind, message: String| {
        let error = Error::new(kind, SEND, message).with_path(device);
        Err(error.with_code(Code::PARAM.get()))
    };
    if fcntl_getfl(output).is_ok_and(|flags| flags.contains(OFlags::APPEND)) {
        let message = "the output is opened to be appended to, and a copy is written to positions; open it for writing";
        return refused(ErrorKind::InvalidInput, message.to_owned());
    }
    let identity = |output: BorrowedFd<'_>| {
        let file = std::fs::File::from(output.try_clone_to_owned()?);
        io::Result::Ok(Identity::from(&file.metadata()?))
    };
    let Ok(identity) = identity(output) else {
        return Ok(());
    };
    let attached: Option<PathBuf> = sysfs::devices(SEND)?
        .iter()
        .find(|device| device.has(identity))
        .map(sysfs::Device::path);
    match attached {
        None => Ok(()),
        Some(attached) => refused(
            ErrorKind::Busy,
            format!(
                "the output is a delta of {}, which the copy would destroy; write to another file",
                attached.display()
            ),
        ),
    }
}

/// The error for a file descriptor that is neither a pipe nor a socket. `what` is its role.
fn not_a_stream(operation: &'static str, what: &str) -> Error {
    let message = format!("the {what} is no pipe or socket");
    Error::new(ErrorKind::InvalidInput, operation, message).with_code(Code::PARAM.get())
}
