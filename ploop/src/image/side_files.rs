//! The names of the files that libploop has beside an image, and those of this crate.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

/// The size of the file system as it was when it was unmounted. libploop writes it beside the base.
pub(crate) const STATFS_NAME: &str = ".statfs";

pub(crate) const MOUNT_POINT: &str = ".mnt";

/// The lock file of a descriptor.
pub(crate) fn lock_file(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".lck")
}

/// The lock of a change, of this crate's own.
pub(crate) fn operation_lock_file(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".op.lck")
}

/// The new descriptor, complete and not yet in place. A conversion to raw writes the new base under
/// the same suffix.
pub(crate) fn staged(file: &Path) -> PathBuf {
    with_suffix(file, ".tmp")
}

/// Where libploop writes a descriptor that becomes the [`staged`] one.
pub(crate) fn being_staged(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".tmp.tmp")
}

/// This crate's own: the descriptor in its canonical form, before it is put in place.
pub(crate) fn rewritten(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".ploop-new")
}

/// This crate's own: the descriptor before libploop drops what it does not know.
pub(crate) fn saved_unknown_fields(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".ploop-kept")
}

/// This crate's own: the descriptor before libploop removes a delta.
pub(crate) fn before_removal(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".ploop-before")
}

/// This crate's own: there while libploop merges deltas.
pub(crate) fn merge_record(descriptor: &Path) -> PathBuf {
    with_suffix(descriptor, ".ploop-merge")
}

/// The directory on which libploop mounts an image for itself, beside its base.
pub(crate) fn mount_point(base: &Path) -> PathBuf {
    with_suffix(base, MOUNT_POINT)
}

/// libploop's copy of a delta's block allocation table, while it changes the version of the format.
fn table_copy(delta: &Path) -> PathBuf {
    with_suffix(delta, ".idx")
}

/// The descriptor, and the files beside it.
pub(crate) fn of_descriptor(descriptor: &Path) -> [PathBuf; 9] {
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
    ]
}

/// The files beside a delta.
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
