//! The directory on which libploop mounts an image for itself (`root.hds.mnt`).

use std::fs;
use std::path::PathBuf;

use crate::{Descriptor, paths};

/// The directory that libploop makes, mounts on and removes, but for some failures that leave it behind. `None` where
/// it was there before.
pub(crate) struct TemporaryMount(Option<PathBuf>);

impl TemporaryMount {
    /// It is beside the delta that the descriptor lists first.
    pub(crate) fn beside(descriptor: &Descriptor) -> TemporaryMount {
        TemporaryMount(descriptor.images.first().and_then(|image| {
            let path = paths::mount_point(&image.file);
            fs::symlink_metadata(&path).is_err().then_some(path)
        }))
    }

    pub(crate) fn remove(self) {
        if let Some(path) = self.0 {
            // Fails if it is not empty, or something is mounted there.
            let _ = fs::remove_dir(path);
        }
    }
}
