//! Durability: whether changes are synced (`fsync`), so that they survive a power cut.
//!
//! libploop syncs a new delta and a new descriptor, but not the rename that puts the descriptor in place: a power cut
//! some seconds later may undo a snapshot, a switch or a deletion that had succeeded. So each change ends with an `fsync` of what it has
//! changed: deltas, descriptor, and their directories. What has returned `Ok` survives a power cut. What had not
//! returned is either as before or done; the next change, mount or unmount finishes it or takes it back.
//!
//! That costs two to four `fsync`s a change: some milliseconds on a disk with a volatile write cache, a few hundred
//! microseconds on one with a protected cache. A program that makes many changes at once may [leave them
//! out](set_sync), and call `syncfs` or `sync` itself at the end. A merge needs two more, which stay: they keep the
//! image whole.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Result};

static SYNC: AtomicBool = AtomicBool::new(true);

/// Whether changes are synced before they return (default: yes).
#[must_use]
pub fn is_synced() -> bool {
    SYNC.load(Ordering::Relaxed)
}

/// Sets whether changes are synced before they return, for the whole process.
///
/// If not, a power cut may undo what succeeded some seconds ago. Images stay whole in either case.
///
/// ```
/// ploop::durability::set_sync(false);
/// // … a hundred changes …
/// ploop::durability::set_sync(true);
/// # assert!(ploop::durability::is_synced());
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn set_sync(sync: bool) {
    SYNC.store(sync, Ordering::Relaxed);
}

/// Syncs a directory, and so the names in it. Not every file system can.
pub(crate) fn sync_directory(directory: &Path) -> io::Result<()> {
    match File::open(directory)?.sync_all() {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

/// Syncs files.
pub(crate) fn sync_files<'a>(
    operation: &'static str,
    files: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    if !is_synced() {
        return Ok(());
    }
    for file in files {
        File::open(file)
            .and_then(|file| file.sync_all())
            .map_err(|error| not_synced(operation, file, error))?;
    }
    Ok(())
}

/// Syncs directories, and so the names in them.
pub(crate) fn sync_directories<'a>(
    operation: &'static str,
    directories: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    if !is_synced() {
        return Ok(());
    }
    for directory in directories {
        match sync_directory(directory) {
            // The directory may have been removed after its last file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(|error| not_synced(operation, directory, error))?,
        }
    }
    Ok(())
}

fn not_synced(operation: &'static str, path: &Path, error: io::Error) -> Error {
    Error::io(
        operation,
        "the operation is done, but could not be synced to the disk, and a power cut may undo it",
        error,
    )
    .with_path(path)
}
