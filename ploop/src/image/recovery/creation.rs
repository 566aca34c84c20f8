//! Interrupted creations of an image.
//!
//! An image is made in a hidden directory (`.ploop-create-…`) inside the directory in which it is to be. The hidden
//! directory is locked while a process works in it. The base is linked to its final name first, and then the
//! descriptor is moved. If the creation was interrupted in between, the second link shows that the base was made by the
//! creation, and is no file of somebody else.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::identity::Identity;

/// How the name of the hidden directory begins.
pub(crate) const DIRECTORY_PREFIX: &str = ".ploop-create-";

/// The lock of a hidden directory, held until this is dropped.
pub(crate) struct CreationLock(File);

impl Drop for CreationLock {
    fn drop(&mut self) {
        // Not by closing the file: for a moment, a process that another thread starts has a copy of its descriptor.
        let _ = flock(&self.0, FlockOperation::Unlock);
    }
}

/// `None` where another process holds the lock of a hidden directory, or the file system has no locks.
pub(crate) fn lock(directory: &Path) -> Option<CreationLock> {
    let file = File::open(directory).ok()?;
    let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    locked.is_ok().then_some(CreationLock(file))
}

/// The lock of a hidden directory that was just made. An error where it was taken for abandoned before it was locked,
/// and is removed.
pub(crate) fn lock_new(directory: &Path) -> io::Result<Option<CreationLock>> {
    let is_removed = [io::ErrorKind::NotFound, io::ErrorKind::WouldBlock];
    let locked = File::open(directory).and_then(|file| {
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        let locked = CreationLock(file);
        fs::symlink_metadata(directory).map(|_| locked)
    });
    match locked {
        Err(error) if is_removed.contains(&error.kind()) => Err(error),
        locked => Ok(locked.ok()),
    }
}

/// Whether this is the hidden directory of a creation, and no process works in it.
pub(crate) fn is_abandoned(directory: &Path) -> bool {
    let name = directory.file_name().map(OsStr::as_encoded_bytes);
    name.is_some_and(|name| name.starts_with(DIRECTORY_PREFIX.as_bytes()))
        && fs::symlink_metadata(directory).is_ok_and(|metadata| metadata.is_dir())
        && lock(directory).is_some()
}

/// Removes a base whose creation was interrupted before the descriptor was in place.
pub(crate) fn remove_unfinished(base: &Path, descriptor: &Path) {
    if fs::symlink_metadata(descriptor).is_ok() {
        return;
    }
    if let Some(made) = abandoned_directory_of(base) {
        // If it cannot be removed, the new creation finds a file of that name, and says so.
        let _ = fs::remove_file(base);
        let _ = fs::remove_dir_all(made);
    }
}

/// Removes the second link of a base whose creation was interrupted after the descriptor was in place.
pub(crate) fn remove_second_link(base: &Path) {
    if let Some(made) = abandoned_directory_of(base) {
        // If it cannot be removed, the caller sees the link count.
        let _ = fs::remove_dir_all(made);
    }
}

/// The hidden directory in which a base was made and still has its second link, if no process works there.
fn abandoned_directory_of(base: &Path) -> Option<PathBuf> {
    let (directory, name) = (base.parent()?, base.file_name()?);
    let identity = Identity::of(base).ok()?;
    let is_its = |made: &Path| Identity::of(&made.join(name)).is_ok_and(|it| it == identity);
    fs::read_dir(directory)
        .ok()?
        .flatten()
        .map(|entry| entry.path())
        .find(|made| is_abandoned(made) && is_its(made))
}
