//! How files that may be anything are opened: for reading, and only if they can hold an image.

use std::fs::{File, OpenOptions};
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

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
