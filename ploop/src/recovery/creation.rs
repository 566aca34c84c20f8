//! Creations that were cut short.
//!
//! An image is made in a hidden directory beside its place, which is locked for as long as somebody
//! works in it. The base gets its name in the image's directory first, as a second link, and the
//! descriptor is moved then. Where that did not come about, the second link tells that the base is the
//! creation's own, and no file of somebody's.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::identity::Identity;

/// How the name of such a directory begins.
pub(crate) const DIRECTORY_PREFIX: &str = ".ploop-create-";

/// The lock of such a directory, until it is dropped. None where somebody has it, or the file system has
/// no locks.
pub(crate) fn lock(directory: &Path) -> Option<File> {
    let file = File::open(directory).ok()?;
    let locked = flock(&file, FlockOperation::NonBlockingLockExclusive);
    locked.is_ok().then_some(file)
}

/// Whether this is such a directory, and nobody works in it any more.
pub(crate) fn is_abandoned(directory: &Path) -> bool {
    let name = directory.file_name().map(OsStr::as_encoded_bytes);
    name.is_some_and(|name| name.starts_with(DIRECTORY_PREFIX.as_bytes()))
        && fs::symlink_metadata(directory).is_ok_and(|metadata| metadata.is_dir())
        && lock(directory).is_some()
}

/// Removes a base whose creation has not come to its descriptor.
pub(crate) fn remove_unfinished(base: &Path, descriptor: &Path) {
    if fs::symlink_metadata(descriptor).is_ok() {
        return;
    }
    if let Some(made) = abandoned_directory_of(base) {
        // What cannot be removed is in the way, and the creation says so.
        let _ = fs::remove_file(base);
        let _ = fs::remove_dir_all(made);
    }
}

/// Removes the second link of a base whose creation was cut short after the descriptor was in place.
pub(crate) fn remove_second_link(base: &Path) {
    if let Some(made) = abandoned_directory_of(base) {
        // What cannot be removed is told by the link count.
        let _ = fs::remove_dir_all(made);
    }
}

/// The abandoned directory beside a base in which it was made, and where its second link is.
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
