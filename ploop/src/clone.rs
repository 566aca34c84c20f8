//! A second descriptor of an image, for readers of one of its snapshots.

use std::fs;
use std::path::Path;

use crate::change::no_snapshot;
use crate::durability::{sync_directories, sync_files};
use crate::ffi::{self, LockedImage};
use crate::image::staging_directory::{Destination, StagingDirectory};
use crate::side_files::DESCRIPTOR_NAME;
use crate::{Descriptor, Error, ErrorKind, Guid, Ploop, Result, lock, paths, trust};

impl Ploop {
    /// Makes a `DiskDescriptor.xml` in another directory whose top is a snapshot of this image, and opens it: what
    /// `ploop_clone_dd` is for. No data is copied; the new descriptor names the deltas of this image, from the base to
    /// that of the snapshot.
    ///
    /// It is for readers, such as a backup: read it with [`Disk`](crate::image::Disk), or [mount](Ploop::mount) it
    /// [read-only](crate::MountParam::read_only). What would write to the deltas is refused through it. **Remove it
    /// before the snapshot is [merged](Ploop::merge) or [deleted](Ploop::delete_snapshot)**: its deltas hold other data
    /// then, and nothing says so.
    ///
    /// Written by this crate, with every line of libploop: that function, which libploop 7 has since 7.0.114, takes no
    /// lock, replaces a descriptor that is there, and also names the deltas above the snapshot. Needs no driver; takes a
    /// moment, also while the image is mounted.
    ///
    /// # Errors
    ///
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) for a GUID the image does not have, [`InvalidInput`](ErrorKind::InvalidInput)
    /// for the top, whose delta is written to, and for the directory of this image;
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where a descriptor is in the directory,
    /// [`NotFound`](ErrorKind::NotFound) for a missing directory, [`Unsupported`](ErrorKind::Unsupported) for an image
    /// whose lower deltas belong to another one. After an error there is no new descriptor, or a whole one that could
    /// not be synced.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// # let backup = tempfile::tempdir().unwrap();
    /// let snapshot = image.snapshot()?;
    /// let clone = image.clone_descriptor(snapshot, backup.path())?;
    /// let disk = ploop::image::Disk::open(clone.path())?;
    /// # assert_eq!(disk.size(), ploop::Size::from_mib(64));
    /// // … read it …
    /// std::fs::remove_file(clone.path()).unwrap();
    /// image.delete_snapshot(snapshot)?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn clone_descriptor(&self, guid: Guid, directory: impl AsRef<Path>) -> Result<Ploop> {
        let call = &LockedImage::CLONE;
        let descriptor = directory.as_ref().join(DESCRIPTOR_NAME);
        let destination = Destination::of(call.name, paths::of_new_file(call.name, &descriptor)?);
        let locked = self.image.lock(call)?;
        let mut file = locked.descriptor_file()?;
        let refuse = |kind, why: &str, path: &Path| {
            Err(Error::new(kind, call.name, why.to_owned()).with_path(path))
        };
        if file.descriptor.stands_upon().is_some() {
            let why = "the image is a volume whose lower deltas belong to another one; clone it with Volume::clone_to";
            return refuse(ErrorKind::Unsupported, why, locked.path());
        }
        if guid == file.descriptor.top {
            let why = "the top is written to, and readers of it would find half of a change; make a snapshot";
            return refuse(ErrorKind::InvalidInput, why, locked.path());
        }
        if destination.directory == paths::directory_of(locked.path()) {
            let why = "this is the directory of the image; choose another one";
            return refuse(ErrorKind::InvalidInput, why, &destination.directory);
        }
        let Some(clone) = as_of(&file.descriptor, guid) else {
            return Err(no_snapshot(call.name, locked.path(), guid));
        };
        let deltas = clone.images.iter().map(|image| image.file.as_path());
        trust::require_no_other_writers(call.name, [locked.path()].into_iter().chain(deltas))?;
        for image in &clone.images {
            paths::require_delta_path(call.name, &image.file, &destination.directory)?;
        }
        // Nothing stands on the clone.
        file.unknown.volume = None;
        let xml = clone.to_xml_with(&file.unknown, &destination.directory)?;
        let _write_signals = ffi::WriteSignalsBlocked::begin();
        lock::with_lock_of(call.name, &destination.descriptor, || {
            destination.require_free()?;
            let staging = StagingDirectory::open(&destination)?;
            fs::write(&staging.descriptor, xml)
                .map_err(|error| Error::io(call.name, "it cannot be written", error))?;
            destination.move_new(&staging.descriptor, &destination.descriptor)?;
            sync_files(call.name, [&*destination.descriptor])?;
            sync_directories(call.name, [&*destination.directory])
        })?;
        Ploop::open(&destination.descriptor)
    }
}

/// The image as of a snapshot, with that as its top.
fn as_of(descriptor: &Descriptor, guid: Guid) -> Option<Descriptor> {
    descriptor.snapshot(guid)?;
    let chain = descriptor.chain(guid);
    let is_in_chain = |guid: Guid| chain.iter().any(|image| image.guid == guid);
    let mut clone = descriptor.clone();
    clone.volume = None;
    clone.top = guid;
    clone.images.retain(|image| is_in_chain(image.guid));
    clone.snapshots.retain(|shot| is_in_chain(shot.guid));
    for shot in &mut clone.snapshots {
        shot.temporary = false;
    }
    Some(clone)
}
