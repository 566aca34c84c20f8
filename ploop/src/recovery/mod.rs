//! Recovery: operations that were interrupted by a kill or a power cut are finished or undone, and what succeeded
//! is synced.
//!
//! * [`attached`]: an interrupted operation on an image that a device still has.
//! * [`detached`]: an interrupted operation on an image that no device has any more.
//! * [`merge`]: an interrupted merge: nobody can go back to a snapshot that it has partly overwritten.
//! * [`creation`]: an interrupted creation of an image.
//! * [`removal`]: a delta that the kernel refused to remove gets back into the descriptor.
//! * [`sync`]: what succeeded survives a power cut.

mod attached;
pub(crate) mod creation;
mod detached;
mod merge;
mod removal;
mod sync;

pub(crate) use merge::MergeRecord;
pub(crate) use removal::Removal;
pub(crate) use sync::{SyncBaseline, sync_directories, sync_files};

use std::path::Path;

use crate::ffi::LockedImage;
use crate::image::descriptor::DescriptorFile;
use crate::sysfs::Device;
use crate::{Descriptor, Result, paths};

/// As [`finish`], after a call of libploop that failed (A9: a merge leaves its mark). The lock is held. If the recovery
/// fails, the next operation tries it again, and reports that.
pub(crate) fn after_failure(operation: &'static str, path: &Path) -> Result<()> {
    let descriptor = Descriptor::open(path)?;
    attached::finish(operation, path, &descriptor).map(drop)
}

/// Finishes or undoes an earlier operation that was interrupted. Every change begins with this, mounts and unmounts
/// included. Takes the descriptor as it is; returns the one that is there then, and all devices.
pub(crate) fn finish(
    locked: &LockedImage<'_>,
    file: DescriptorFile,
) -> Result<(DescriptorFile, Vec<Device>)> {
    let outcome = attached::finish(locked.operation(), locked.path(), &file.descriptor)?;
    if !outcome.changed {
        return Ok((file, outcome.devices));
    }
    Ok((locked.descriptor_file()?, outcome.devices))
}

/// The staged descriptor at this path, if it is complete.
fn staged_descriptor(path: &Path) -> Option<Descriptor> {
    paths::is_regular_file(path)
        .then(|| Descriptor::open(path).ok())
        .flatten()
}
