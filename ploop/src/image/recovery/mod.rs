//! Recovery of images that no device has: operations that were interrupted by a kill or a power cut are finished or
//! undone, by the files alone.
//!
//! * [`detached`]: the deltas show which of two descriptors is right.
//! * [`merge`]: nobody can go back to a snapshot that an interrupted merge has partly overwritten.
//! * [`creation`]: an interrupted creation of an image.
//! * [`files`]: what a change without libploop made or was to remove, and nothing names.
//! * [`removal`]: a delta that the kernel refused to remove gets back into the descriptor.
//! * `upgrade`: an interrupted change of the format version.

pub(crate) mod creation;
pub(crate) mod detached;
pub(crate) mod files;
pub(crate) mod merge;
pub(crate) mod removal;
#[cfg(feature = "image-write")]
pub(crate) mod upgrade;

use std::path::Path;

use crate::image::descriptor::DescriptorForm;
use crate::{Descriptor, side_files};
#[cfg(feature = "image-write")]
use crate::{Result, sysfs::Device};

/// Finishes or undoes what was interrupted, and returns whether the descriptor in place may be another one now. The
/// image's lock is held, `old` is the descriptor in place, and no device has any of its files.
#[cfg(feature = "image-write")]
pub(crate) fn finish(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
    form: &DescriptorForm,
) -> Result<bool> {
    finish_with(detached::finish, devices, operation, path, old, form)
}

/// [`finish`], but for the in-use marks of deltas, which a repair clears itself.
#[cfg(feature = "image-write")]
pub(crate) fn finish_but_marks(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
    form: &DescriptorForm,
) -> Result<bool> {
    finish_with(
        detached::finish_but_marks,
        devices,
        operation,
        path,
        old,
        form,
    )
}

#[cfg(feature = "image-write")]
type Finish = fn(&[Device], &'static str, &Path, &Descriptor, &DescriptorForm) -> Result<bool>;

#[cfg(feature = "image-write")]
fn finish_with(
    finish_detached: Finish,
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
    form: &DescriptorForm,
) -> Result<bool> {
    upgrade::finish(operation, old)?;
    // Once a descriptor was put in place, nothing is left to do.
    if removal::finish(devices, operation, path, old, form)? {
        return Ok(true);
    }
    let marked = merge::mark_lost_snapshots(devices, operation, path, old, form)?;
    let finished = finish_detached(devices, operation, path, old, form)?;
    Ok(marked || finished)
}

/// The staged descriptor at this path, if it is complete.
pub(crate) fn staged_descriptor(path: &Path, form: &DescriptorForm) -> Option<Descriptor> {
    side_files::is_regular_file(path)
        .then(|| Descriptor::open_as(path, form).ok())
        .flatten()
}
