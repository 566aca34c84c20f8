//! The directory on which libploop mounts an image for itself (`root.hds.mnt`).

use std::fs;
use std::path::PathBuf;

use crate::ffi::CPath;
use crate::{Descriptor, Error, Result, paths};

/// The directory that libploop makes, mounts on and removes, but for some failures that leave it behind.
pub(crate) struct TemporaryMount {
    mount_point: PathBuf,
    was_there: bool,
}

impl TemporaryMount {
    /// It is beside the delta that the descriptor lists first.
    pub(crate) fn beside(descriptor: &Descriptor) -> TemporaryMount {
        let first = descriptor.images.first();
        let mount_point = first.map(|image| paths::mount_point(&image.file));
        let mount_point = mount_point.unwrap_or_default();
        TemporaryMount {
            was_there: fs::symlink_metadata(&mount_point).is_ok(),
            mount_point,
        }
    }

    /// Makes the directory, for what libploop would mount there.
    pub(crate) fn make(&self, operation: &'static str) -> Result<CPath> {
        let made = match self.was_there {
            true => Ok(()),
            false => fs::create_dir(&self.mount_point),
        };
        made.map_err(|error| {
            let what = "the directory on which the image is mounted meanwhile cannot be made";
            Error::io(operation, what, error).with_path(&self.mount_point)
        })?;
        CPath::new(operation, &self.mount_point)
    }

    pub(crate) fn remove(self) {
        if !self.was_there {
            // Fails if it is not empty, or something is mounted there.
            let _ = fs::remove_dir(self.mount_point);
        }
    }
}
