//! What a change has written is on the disk before the change is a success (`fsync`).
//!
//! libploop syncs a new delta, and the new descriptor under its temporary name, before it renames the
//! descriptor, and nothing after that. Until the file system commits the renaming by itself, a power cut
//! undoes it. On ext4 of old kernels syncing a directory commits nothing; syncing the file that was
//! renamed there does, and elsewhere it takes the directory. So both are synced.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::identity::Identity;
use crate::image::Image;
use crate::{Descriptor, Error, Guid, ImageMode, Result, Size, durability};

/// What the descriptor and its deltas are before a change, so that afterwards is known what must be
/// brought to the disk.
pub(crate) struct Unsynced {
    path: PathBuf,
    /// The file that the descriptor was, and since when; a number may come back.
    descriptor: Option<(Identity, (i64, i64))>,
    images: Vec<(Guid, PathBuf, Option<Identity>)>,
    size: Size,
    mode: ImageMode,
}

impl Unsynced {
    /// Before the change. `None` where it need not be synced.
    pub(crate) fn before(path: &Path, descriptor: &Descriptor) -> Option<Unsynced> {
        durability::sync().then(|| Unsynced {
            path: path.to_owned(),
            descriptor: version(path),
            images: descriptor.images.iter().map(state).collect(),
            size: descriptor.size,
            mode: descriptor.mode,
        })
    }

    /// After the change: syncs each delta that is new, was merged to, or has become a snapshot or the
    /// top, the descriptor if there is another one, and the directories of all of them.
    pub(crate) fn sync(self, operation: &'static str) -> Result<()> {
        let now = Descriptor::open(&self.path).map_err(|error| error.during(operation))?;
        let mut files: BTreeSet<&Path> = BTreeSet::new();
        let mut directories: BTreeSet<&Path> = self.path.parent().into_iter().collect();
        let images: Vec<_> = now.images.iter().map(state).collect();
        // A delta may be another file under the old name, and the descriptor the same.
        if version(&self.path) == self.descriptor && images == self.images {
            return Ok(());
        }
        for image in images.iter().filter(|image| !self.images.contains(image)) {
            files.insert(&image.1);
        }
        if (now.size, now.mode) != (self.size, self.mode) {
            let written = [now.base(), now.top_image()];
            files.extend(written.into_iter().flatten().map(|image| &*image.file));
        }
        let removed = self.images.iter().filter(|image| !images.contains(image));
        let changed = removed.map(|image| &*image.1).chain(files.iter().copied());
        directories.extend(changed.filter_map(Path::parent));
        sync_files(operation, files)?;
        // Behind the deltas that it names.
        sync_files(operation, [&*self.path])?;
        sync_directories(operation, directories)
    }
}

fn version(file: &Path) -> Option<(Identity, (i64, i64))> {
    let metadata = fs::metadata(file).ok()?;
    let since = (metadata.ctime(), metadata.ctime_nsec());
    Some((Identity::from(&metadata), since))
}

fn state(image: &Image) -> (Guid, PathBuf, Option<Identity>) {
    (
        image.guid,
        image.file.clone(),
        Identity::of(&image.file).ok(),
    )
}

/// Brings files to the disk.
pub(crate) fn sync_files<'a>(
    operation: &'static str,
    files: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    if !durability::sync() {
        return Ok(());
    }
    for file in files {
        File::open(file)
            .and_then(|file| file.sync_all())
            .map_err(|error| not_synced(operation, file, error))?;
    }
    Ok(())
}

/// Brings the names in directories to the disk.
pub(crate) fn sync_directories<'a>(
    operation: &'static str,
    directories: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    if !durability::sync() {
        return Ok(());
    }
    for directory in directories {
        match File::open(directory).and_then(|directory| directory.sync_all()) {
            // Not every file system syncs directories, and then it has to do without.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {}
            // Its last file is gone, and it may be, too.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result.map_err(|error| not_synced(operation, directory, error))?,
        }
    }
    Ok(())
}

fn not_synced(operation: &'static str, path: &Path, error: io::Error) -> Error {
    Error::io(
        operation,
        "this is done, but could not be brought to the disk; a power cut may undo it",
        error,
    )
    .with_path(path)
}
