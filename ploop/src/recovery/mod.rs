//! What must be true of an image after an operation, however that ended.
//!
//! * [`attached`]: an operation that was killed, or cut short by a power failure, is finished or
//!   taken back by the next one.
//! * [`detached`]: the same, where no device is left to say what it has done.
//! * [`merge`]: nobody goes back to a snapshot of which a merge has left an unknown part.
//! * [`creation`]: a creation that was cut short is not in the way of the next.
//! * [`removal`]: a delta that the kernel kept is named by the descriptor again.
//! * [`sync`]: what succeeded survives a power cut.

mod attached;
pub(crate) mod creation;
mod detached;
mod merge;
mod removal;
mod sync;

pub(crate) use merge::MergeRecord;
pub(crate) use removal::Removal;
pub(crate) use sync::{Unsynced, sync_directories, sync_files};

use std::fs;
use std::path::Path;

use crate::ffi::LockedImage;
use crate::image::descriptor::DescriptorFile;
use crate::sysfs::Device;
use crate::{Descriptor, Result};

/// Does the same for an operation that libploop has not done to its end (A9): a merge leaves its mark.
/// The lock is held. What cannot be mended now, the next operation tries again, and reports.
pub(crate) fn after_failure(operation: &'static str, path: &Path) -> Result<()> {
    let descriptor = Descriptor::open(path)?;
    attached::finish(operation, path, &descriptor).map(drop)
}

/// Finishes or takes back what an earlier operation on the image left half done. The first thing of
/// every change, a mount and an unmount included. Takes the descriptor as it is, and returns what it is
/// then, and all devices.
pub(crate) fn finish(
    locked: &LockedImage<'_>,
    file: DescriptorFile,
) -> Result<(DescriptorFile, Vec<Device>)> {
    let found = attached::finish(locked.operation(), locked.path(), &file.descriptor)?;
    if !found.changed {
        return Ok((file, found.devices));
    }
    Ok((locked.descriptor_file()?, found.devices))
}

/// A staged descriptor, if it is complete.
fn read(path: &Path) -> Option<Descriptor> {
    let is_file = fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    is_file.then(|| Descriptor::open(path).ok()).flatten()
}
