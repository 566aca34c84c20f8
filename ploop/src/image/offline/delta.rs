//! New deltas of an image, which get their names when they are complete.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};

use super::change::OfflineChange;
use crate::durability;
use crate::image::atomic_file::AtomicFile;
use crate::image::header::Header;
use crate::image::other_image::require_no_other_image_beside;
use crate::image::write::WritableDelta;
use crate::{Error, FormatVersion, Guid, Result, Size, side_files, sysfs};

impl OfflineChange<'_> {
    /// The path of the delta of a new top, as libploop makes it up from the first image of the descriptor.
    pub(super) fn new_delta_path(&self, directory: Option<&Path>) -> Result<PathBuf> {
        let Some(first) = self.descriptor.images.first() else {
            return self.image(self.descriptor.top).map(|it| it.file.clone());
        };
        let mut name = match directory {
            Some(directory) => directory.join(first.file.file_name().unwrap_or_default()),
            None => {
                require_no_other_image_beside(self.operation(), self.path(), &first.file)?;
                first.file.clone()
            }
        }
        .into_os_string();
        name.push(format!(".{}", Guid::generate()));
        Ok(name.into())
    }

    /// The header of a new top upon a delta.
    pub(super) fn header_upon(&self, guid: Guid) -> Result<Header> {
        let size = self.size_of(self.image(guid)?)?;
        Header::new(self.version(size)?, self.descriptor.cluster, size)
            .map_err(|error| error.during(self.operation()).with_path(self.path()))
    }

    /// The format version of the deltas. Where there are none, that which libploop would choose: the newest that the
    /// driver knows, and without a driver the one that all drivers know.
    pub(super) fn version(&self, size: Size) -> Result<FormatVersion> {
        for image in self.descriptor.images.iter().rev() {
            if !self.is_raw_base(image) {
                let header = Header::read(&image.file);
                return Ok(header
                    .map_err(|error| error.during(self.operation()))?
                    .version);
            }
        }
        let fits = u32::try_from(size.sectors()).is_ok();
        Ok(match fits && !sysfs::is_large_disk_supported() {
            true => FormatVersion::V1,
            false => FormatVersion::V2,
        })
    }

    /// A new, empty delta, which has no name yet.
    pub(super) fn make_delta(&self, path: &Path, header: &Header) -> Result<NewDelta> {
        let new = NewDelta::begin(self.operation(), path, self.owner_of_base())?;
        let delta = new.delta(header)?;
        drop(delta);
        Ok(new)
    }

    /// User and group of the base.
    pub(super) fn owner_of_base(&self) -> Option<(u32, u32)> {
        let base = self.descriptor.base()?;
        let metadata = fs::metadata(&base.file).ok()?;
        Some((metadata.uid(), metadata.gid()))
    }
}

/// A file of an image that is being made. It is gone if it is dropped without [`NewDelta::publish`].
pub(super) struct NewDelta {
    operation: &'static str,
    path: PathBuf,
    staged: AtomicFile,
}

impl NewDelta {
    /// An empty file, of the owner of the others where this program may give it to them.
    pub(super) fn begin(
        operation: &'static str,
        path: &Path,
        owner: Option<(u32, u32)>,
    ) -> Result<NewDelta> {
        let staged = AtomicFile::create(operation, path)?;
        if let (Some((user, group)), Ok(own)) = (owner, staged.file().metadata()) {
            if (own.uid(), own.gid()) != (user, group) {
                let _ = fchown(staged.file(), Some(user), Some(group));
            }
        }
        Ok(NewDelta {
            operation,
            path: path.to_owned(),
            staged,
        })
    }

    pub(super) fn file(&self) -> &File {
        self.staged.file()
    }

    /// The file as an empty delta.
    pub(super) fn delta(&self, header: &Header) -> Result<WritableDelta> {
        let file = self.file().try_clone().map_err(|error| {
            Error::io(self.operation, "the file cannot be opened again", error)
                .with_path(&self.path)
        })?;
        WritableDelta::create_in(file, &self.path, header)
            .map_err(|error| error.during(self.operation))
    }

    /// Syncs the file, and gives it its name. With `replace`, another file of that name goes.
    pub(super) fn publish(self, replace: bool) -> Result<()> {
        self.file().sync_all().map_err(|error| {
            let what = "the new file cannot be brought to the disk";
            Error::io(self.operation, what, error).with_path(&self.path)
        })?;
        self.staged.publish(replace)?;
        // On some file systems the first brings the name to the disk, on others the second.
        let directory = side_files::directory_of(&self.path);
        durability::sync_files(self.operation, [&*self.path])?;
        durability::sync_directories(self.operation, [directory])
    }
}
