//! The names of files that libploop and this crate make beside a descriptor or a delta.

use std::ffi::OsString;
#[cfg(any(feature = "libploop", feature = "image-write"))]
use std::fs;
use std::path::{Path, PathBuf};

#[cfg(any(feature = "libploop", feature = "image-write"))]
use crate::durability;

/// The name of the descriptor of a new image.
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) const DESCRIPTOR_NAME: &str = "DiskDescriptor.xml";

/// libploop's statistics of the file system as of its last unmount, beside the base.
pub(crate) const STATFS_NAME: &str = ".statfs";

/// The suffix of [`mount_point`].
pub(crate) const MOUNT_POINT: &str = ".mnt";

/// libploop's lock file of a descriptor.
pub(crate) fn lock_file(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".lck")
}

/// This crate's own: the lock file that is held through a whole change.
pub(crate) fn operation_lock_file(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".op.lck")
}

/// The new descriptor, complete and not yet in place; of a delta: the new base of a conversion to raw.
pub(crate) fn staged(file: &Path) -> PathBuf {
    with_suffix(file, ".tmp")
}

/// The new descriptor while libploop writes it. Then it becomes the [`staged`] one.
pub(crate) fn being_staged(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".tmp.tmp")
}

/// This crate's own: the descriptor in its canonical form, before it is put in place.
pub(crate) fn rewritten(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".ploop-new")
}

/// This crate's own: the descriptor with the fields that libploop does not know.
pub(crate) fn saved_unknown_fields(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".ploop-kept")
}

/// This crate's own: the descriptor before libploop removes a delta.
pub(crate) fn before_removal(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".ploop-before")
}

/// This crate's own: the record of a merge, which is there while libploop merges.
pub(crate) fn merge_record(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".ploop-merge")
}

/// This crate's own: the record of the files that a change without libploop makes or removes.
pub(crate) fn file_record(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".ploop-files")
}

/// The directory on which libploop mounts an image for itself.
pub(crate) fn mount_point(base: &Path) -> PathBuf {
    with_suffix(base, MOUNT_POINT)
}

/// libploop's copy of a delta's block allocation table, during a change of the format version.
pub(crate) fn table_copy(delta: &Path) -> PathBuf {
    with_suffix(delta, ".idx")
}

/// A descriptor, and all files that are made beside it.
pub(crate) fn of_descriptor(descriptor: &Path) -> [PathBuf; 10] {
    [
        descriptor.to_owned(),
        lock_file(descriptor),
        operation_lock_file(descriptor),
        staged(descriptor),
        being_staged(descriptor),
        rewritten(descriptor),
        saved_unknown_fields(descriptor),
        before_removal(descriptor),
        merge_record(descriptor),
        file_record(descriptor),
    ]
}

/// All files that are made beside a delta.
pub(crate) fn of_delta(delta: &Path) -> [PathBuf; 4] {
    [
        staged(delta),
        mount_point(delta),
        table_copy(delta),
        delta.with_file_name(STATFS_NAME),
    ]
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// The directory in which an absolute path lies.
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) fn directory_of(path: &Path) -> &Path {
    path.parent().unwrap_or(Path::new("/"))
}

/// Whether a path is that of a regular file, and not of a link to one.
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) fn is_regular_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file())
}

/// Removes libploop's statistics of the file system, where the image has gone to another state.
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) fn remove_statistics(base: &Path) {
    let file = base.with_file_name(STATFS_NAME);
    if is_regular_file(&file) && fs::remove_file(&file).is_ok() {
        // A cache: should this fail, it is old.
        let _ = durability::sync_directory(directory_of(&file));
    }
}
