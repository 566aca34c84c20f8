//! `fsync` after a change: what it has written is on the disk before it is reported as done.
//!
//! libploop syncs a new delta, and the new descriptor before it renames it. It syncs nothing after the rename, which a
//! power cut undoes until the file system commits it by itself. On ext4 of old kernels, a rename is committed by
//! syncing the renamed file, and not the directory; elsewhere it is the other way round. So both are synced.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::durability::{self, sync_directories, sync_files};
use crate::identity::Identity;
use crate::image::Image;
use crate::{Descriptor, Guid, ImageMode, Result, Size};

/// The descriptor and the deltas before a change. Compared with those after it, they show what must be synced.
pub(crate) struct SyncBaseline {
    path: PathBuf,
    /// The file of the descriptor, with its change time: a new file may have the inode number of the old one.
    descriptor: Option<(Identity, (i64, i64))>,
    images: Vec<(Guid, PathBuf, Option<Identity>)>,
    size: Size,
    mode: ImageMode,
}

impl SyncBaseline {
    /// Before the change. `None` where the user wants no syncing: see [`durability`].
    pub(crate) fn before(path: &Path, descriptor: &Descriptor) -> Option<SyncBaseline> {
        durability::is_synced().then(|| SyncBaseline {
            path: path.to_owned(),
            descriptor: version(path),
            images: descriptor.images.iter().map(state).collect(),
            size: descriptor.size,
            mode: descriptor.mode,
        })
    }

    /// After the change: syncs each delta that is new, was merged to, or has become a snapshot or the
    /// top, the descriptor if there is another one, and the directories of all of them.
    pub(crate) fn sync_changes(self, operation: &'static str) -> Result<()> {
        let now = super::read_descriptor(&self.path).map_err(|error| error.during(operation))?;
        let mut files: BTreeSet<&Path> = BTreeSet::new();
        let mut directories: BTreeSet<&Path> = self.path.parent().into_iter().collect();
        let images: Vec<_> = now.images.iter().map(state).collect();
        // Also compares identities: a delta may be another file under the old name.
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
        // After the deltas that it names.
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
