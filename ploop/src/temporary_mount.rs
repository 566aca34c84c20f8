//! Where libploop mounts an image for itself.

use std::fs;
use std::path::PathBuf;

use crate::{Descriptor, paths};

/// The directory on which libploop mounts an image for itself, and which some failures leave behind.
pub(crate) struct TemporaryMount(Option<PathBuf>);

impl TemporaryMount {
    /// Beside the image that is listed first, unless it was there before.
    pub(crate) fn beside(descriptor: &Descriptor) -> TemporaryMount {
        TemporaryMount(descriptor.images.first().and_then(|image| {
            let path = paths::mount_point(&image.file);
            fs::symlink_metadata(&path).is_err().then_some(path)
        }))
    }

    pub(crate) fn remove(self) {
        if let Some(path) = self.0 {
            // Only if it is empty and nothing is mounted there.
            let _ = fs::remove_dir(path);
        }
    }
}
