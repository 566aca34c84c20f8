//! Recovery of images that no device has: operations that were interrupted by a kill or a power cut are finished or
//! undone, by the files alone.
//!
//! * [`detached`]: the deltas show which of two descriptors is right.
//! * [`merge`]: nobody can go back to a snapshot that an interrupted merge has partly overwritten.
//! * [`creation`]: an interrupted creation of an image.
//! * [`removal`]: a delta that the kernel refused to remove gets back into the descriptor.

pub(crate) mod creation;
pub(crate) mod detached;
pub(crate) mod merge;
pub(crate) mod removal;

use std::path::Path;

use crate::image::descriptor::DescriptorForm;
use crate::{Descriptor, side_files};

/// The staged descriptor at this path, if it is complete.
pub(crate) fn staged_descriptor(path: &Path, form: &DescriptorForm) -> Option<Descriptor> {
    side_files::is_regular_file(path)
        .then(|| Descriptor::open_as(path, form).ok())
        .flatten()
}
