//! Opening the files of an image, for reading: regular files and block devices only, and on request only those beneath
//! a directory.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::{Error, ErrorKind, Result};

/// Opens a regular file or block device; returns it with its length.
pub(super) fn open(operation: &'static str, path: &Path) -> Result<(File, u64)> {
    // Without NONBLOCK, opening a pipe waits for a writer.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NONBLOCK | OFlags::NOCTTY).bits() as i32)
        .open(path)
        .map_err(|error| Error::io(operation, "the file cannot be opened", error))?;
    let len = length(operation, &file)?;
    Ok((file, len))
}

/// [`open`] for a file in `directory` or below. `path` may lead there through links. If somebody changes these
/// meanwhile, no file outside is opened.
pub(super) fn open_beneath(
    operation: &'static str,
    directory: &Path,
    path: &Path,
) -> Result<(File, u64)> {
    let failed = |what, error: Errno| Error::io(operation, what, error).with_path(path);
    let found = |path: &Path| {
        path.canonicalize().map_err(|error| {
            Error::io(operation, "the file cannot be found", error).with_path(path)
        })
    };
    let outside = || {
        let message = format!("the file lies outside of {}", directory.display());
        Error::new(ErrorKind::PermissionDenied, operation, message).with_path(path)
    };
    let found = (found(directory)?, found(path)?);
    let beneath = found.1.strip_prefix(&found.0).map_err(|_| outside())?;
    // The resolved path has no links, so each component is opened without following one. Since Linux 5.6 `openat2` does
    // that in one call.
    let directory = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
    let mut at = rustix::fs::open(&found.0, directory, Mode::empty())
        .map_err(|error| failed("the directory cannot be opened", error))?;
    let mut steps = beneath.components().peekable();
    while let Some(step) = steps.next() {
        let flags = match steps.peek() {
            Some(_) => directory,
            None => OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC,
        };
        let flags = flags | OFlags::NOFOLLOW;
        at = match rustix::fs::openat(&at, step.as_os_str(), flags, Mode::empty()) {
            Ok(next) => next,
            // Somebody has replaced it by a link.
            Err(Errno::LOOP | Errno::NOTDIR) => return Err(outside()),
            Err(error) => return Err(failed("the file cannot be opened", error)),
        };
    }
    let file = File::from(at);
    let len = length(operation, &file)?;
    Ok((file, len))
}

/// The length of a file, which is refused where it is neither a regular one nor a block device.
pub(super) fn length(operation: &'static str, mut file: &File) -> Result<u64> {
    let metadata = file
        .metadata()
        .map_err(|error| Error::io(operation, "the file cannot be examined", error))?;
    let kind = metadata.file_type();
    let refused = |message| Err(Error::new(ErrorKind::InvalidInput, operation, message));
    if kind.is_dir() {
        return refused("this is a directory, not a file");
    }
    if kind.is_file() {
        Ok(metadata.len())
    } else if kind.is_block_device() {
        file.seek(SeekFrom::End(0))
            .map_err(|error| Error::io(operation, "the size cannot be found", error))
    } else {
        refused("this is neither a regular file nor a block device")
    }
}
