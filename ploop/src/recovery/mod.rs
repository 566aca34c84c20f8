//! Recovery: operations that were interrupted by a kill or a power cut are finished or undone, and what succeeded
//! is synced.
//!
//! * [`attached`]: an interrupted operation on an image that a device still has. Images that no device has are those
//!   of [`crate::image::recovery`].
//! * [`removal`]: a delta that the kernel refused to remove gets back into the descriptor.
//! * [`sync`]: what succeeded survives a power cut.

mod attached;
mod removal;
mod sync;
#[cfg(test)]
mod tests;

pub(crate) use removal::Removal;
pub(crate) use sync::SyncBaseline;

use std::path::Path;

use crate::ffi::{LockedImage, descriptor_form};
use crate::image::descriptor::DescriptorFile;
use crate::sysfs::Device;
use crate::{Descriptor, Result};

/// As [`finish`], after a call of libploop that failed (A9: a merge leaves its mark). The lock is held. If the recovery
/// fails, the next operation tries it again, and reports that.
pub(crate) fn after_failure(operation: &'static str, path: &Path) -> Result<()> {
    let descriptor = read_descriptor(path)?;
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

/// The descriptor at this path, with file names as libploop reads them.
fn read_descriptor(path: &Path) -> Result<Descriptor> {
    Descriptor::open_as(path, descriptor_form())
}
