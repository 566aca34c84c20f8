//! Snapshots: making, switching, deleting.

use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::change::{Change, DescriptorWrite, no_snapshot, not_written, require_known_flags};
use crate::ffi::{CPath, CText, LockedImage};
use crate::image::Snapshot;
use crate::image::sound::{require_files, require_no_other_child};
use crate::recovery::Removal;
use crate::snapshot_param::MAX_SNAPSHOTS;
use crate::tracking::check_new_tracking;
use crate::{
    ComponentName, Descriptor, Error, ErrorKind, Guid, Ploop, Result, SnapshotParam, SwitchFlag,
    paths, side_files, trust,
};

/// What [`Ploop::temporary_snapshot`] makes.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[must_use]
pub struct TemporarySnapshotParam {
    component: ComponentName,
    guid: Option<Guid>,
    #[cfg_attr(feature = "serde", serde(default, with = "crate::stored::paths"))]
    directory: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default, with = "crate::stored::paths"))]
    target: Option<PathBuf>,
    #[cfg_attr(feature = "serde", serde(default = "default_hold"))]
    hold: bool,
    tracking: Option<Guid>,
}

fn default_hold() -> bool {
    true
}

impl TemporarySnapshotParam {
    /// A temporary snapshot, attached read-only under this name, with a random GUID, and held.
    pub fn new(component: ComponentName) -> TemporarySnapshotParam {
        TemporarySnapshotParam {
            component,
            guid: None,
            directory: None,
            target: None,
            hold: default_hold(),
            tracking: None,
        }
    }

    /// The GUID of the snapshot.
    pub fn guid(mut self, guid: Guid) -> TemporarySnapshotParam {
        self.guid = Some(guid);
        self
    }

    /// The directory for the new delta.
    pub fn directory(mut self, directory: impl AsRef<Path>) -> TemporarySnapshotParam {
        self.directory = Some(directory.as_ref().to_owned());
        self
    }

    /// Mount its file system here, read-only.
    pub fn target(mut self, target: impl AsRef<Path>) -> TemporarySnapshotParam {
        self.target = Some(target.as_ref().to_owned());
        self
    }

    /// Track what is written from this snapshot on: as [`SnapshotParam::tracking`].
    pub fn tracking(mut self, id: Guid) -> TemporarySnapshotParam {
        self.tracking = Some(id);
        self
    }

    /// Whether the snapshot lives as long as [`TemporarySnapshot::holder`] (default: yes). Without a holder it lives
    /// as long as it is attached, and libploop puts a `~` before its component name. On line 7 of libploop the next mount
    /// or change of the image also detaches it, unless its device is in use.
    pub fn hold(mut self, hold: bool) -> TemporarySnapshotParam {
        self.hold = hold;
        self
    }
}

/// A temporary snapshot, attached.
#[derive(Debug)]
#[non_exhaustive]
pub struct TemporarySnapshot {
    /// Its GUID, for [`Ploop::delete_snapshot`].
    pub guid: Guid,
    /// The device it is attached to.
    pub device: PathBuf,
    /// Keeps the snapshot. Once this is dropped, the next mount or change of the image unmounts, detaches and merges
    /// the snapshot.
    pub holder: Option<OwnedFd>,
}

impl Ploop {
    /// The snapshots of the image, in the order of its descriptor: the states that
    /// [`switch_snapshot`](Ploop::switch_snapshot) goes back to, unless they are marked temporary. [`descriptor`](Ploop::descriptor) has the top,
    /// too, and walks the tree. Needs no driver.
    ///
    /// # Errors
    ///
    /// As [`Ploop::descriptor`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// let guid = image.snapshot()?;
    /// for snapshot in image.snapshots()? {
    ///     println!("{} on {}", snapshot.guid, snapshot.parent);
    /// }
    /// assert_eq!(image.snapshots()?[0].guid, guid);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn snapshots(&self) -> Result<Vec<Snapshot>> {
        let descriptor = self.descriptor()?;
        let mut snapshots = descriptor.snapshots;
        snapshots.retain(|snapshot| snapshot.guid != descriptor.top);
        Ok(snapshots)
    }

    /// Makes a snapshot with a random GUID (`ploop_create_snapshot`). See
    /// [`snapshot_with`](Ploop::snapshot_with).
    ///
    /// # Errors
    ///
    /// As [`snapshot_with`](Ploop::snapshot_with).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// let before = image.snapshot()?;
    /// // … the image is used …
    /// image.switch_snapshot(before)?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn snapshot(&mut self) -> Result<Guid> {
        self.snapshot_with(&SnapshotParam::new())
    }

    /// Makes a snapshot and returns its GUID (`ploop_create_snapshot`).
    ///
    /// The top delta becomes the snapshot, and an empty one is the new top. Works on a running image, whose file
    /// system is synced, and on one that is not. Needs root, and the driver only where the image runs or is of format
    /// v2. Takes a moment, but first merges temporary snapshots that are no longer in use, which copies their data, and
    /// checks and mends the top delta of an image that was not detached cleanly.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) for a GUID the image has,
    /// [`NotFound`](ErrorKind::NotFound) for a missing directory,
    /// [`Unsupported`](ErrorKind::Unsupported) for the 127th snapshot of a chain, and for an image of
    /// format v2 without a driver that supports large disks,
    /// [`Busy`](ErrorKind::Busy) while a temporary snapshot with several children is in the way,
    /// [`Corrupt`](ErrorKind::Corrupt) where the top delta is damaged. After an error the image is as
    /// it was, save for temporary snapshots merged already.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// use ploop::{Guid, SnapshotParam};
    ///
    /// let guid = Guid::generate();
    /// assert_eq!(image.snapshot_with(&SnapshotParam::new().guid(guid))?, guid);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn snapshot_with(&mut self, param: &SnapshotParam) -> Result<Guid> {
        let change = Change::begin(&self.image, &LockedImage::SNAPSHOT)?;
        let guid = param.guid.unwrap_or_else(Guid::generate);
        let directory = check_new_snapshot(&change, guid, param.directory.as_deref())
            .map_err(|error| error.of_image(self.path()))?;
        let tracking = param
            .tracking
            .map(|id| check_new_tracking(&change, id))
            .transpose()?;
        let c_guid = CText::guid(guid);
        let is_made = |now: &Descriptor| now.snapshot(guid).is_some();
        change.run_until(DescriptorWrite::Staged, is_made, |locked| {
            locked.create_snapshot(&c_guid, directory.as_ref(), tracking.as_ref())
        })?;
        Ok(guid)
    }

    /// Makes a snapshot for a while, to back up a running image: it is attached read-only at once,
    /// and libploop merges it when it is no longer used (`ploop_create_temporary_snapshot`).
    ///
    /// Needs the driver and root; takes as long as [`snapshot_with`](Ploop::snapshot_with).
    ///
    /// # Errors
    ///
    /// As [`snapshot_with`](Ploop::snapshot_with) and [`mount`](Ploop::mount). The snapshot is merged
    /// again when it cannot be attached.
    ///
    /// ```no_run
    /// # let mut image = ploop::Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// use ploop::TemporarySnapshotParam;
    ///
    /// let param = TemporarySnapshotParam::new("backup".parse()?).target("/vz/backup/101");
    /// let snapshot = image.temporary_snapshot(&param)?;
    /// // … the files below /vz/backup/101 are copied …
    /// drop(snapshot.holder);
    /// image.delete_snapshot(snapshot.guid)?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn temporary_snapshot(
        &mut self,
        param: &TemporarySnapshotParam,
    ) -> Result<TemporarySnapshot> {
        let change = Change::begin(&self.image, &LockedImage::TEMPORARY_SNAPSHOT)?;
        let operation = change.operation();
        if !param.hold && param.component.as_str().len() == ComponentName::MAX_LEN {
            return change.refuse(
                ErrorKind::InvalidInput,
                "libploop puts a '~' before the name of a snapshot without holder, and this one has no room for it",
            );
        }
        let guid = param.guid.unwrap_or_else(Guid::generate);
        let directory = check_new_snapshot(&change, guid, param.directory.as_deref())?;
        change.require_attachable(change.descriptor.top)?;
        crate::kernel::require_tools_to_attach(operation, &[])?;
        let target = param
            .target
            .as_deref()
            .map(|target| crate::mount::mount_point(&change, target))
            .transpose()?;
        let tracking = param
            .tracking
            .map(|id| check_new_tracking(&change, id))
            .transpose()?;
        crate::kernel::require_driver(operation, change.path())?;
        let component = CText::component(&param.component);
        let c_guid = CText::guid(guid);
        let is_made = |now: &Descriptor| now.snapshot(guid).is_some();
        let (device, holder) = change.run_until(DescriptorWrite::Staged, is_made, |locked| {
            locked.create_temporary_snapshot(
                &c_guid,
                &component,
                target.as_ref(),
                directory.as_ref(),
                tracking.as_ref(),
                param.hold,
            )
        })?;
        Ok(TemporarySnapshot {
            guid,
            device,
            holder,
        })
    }

    /// Goes back to a snapshot (`ploop_switch_snapshot`): a new, empty top delta is put on it, and the
    /// old one is deleted with all that was written since the last snapshot.
    ///
    /// # Errors
    ///
    /// As [`switch_snapshot_with`](Ploop::switch_snapshot_with).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// let first = image.snapshot()?;
    /// image.snapshot()?;
    /// image.switch_snapshot(first)?;
    /// let descriptor = image.descriptor()?;
    /// assert_eq!(descriptor.parent(descriptor.top), Some(first));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn switch_snapshot(&mut self, guid: Guid) -> Result<()> {
        self.switch_snapshot_with(guid, SwitchFlag::empty())
            .map(|_| ())
    }

    /// Goes back to a snapshot (`ploop_switch_snapshot_ex`). With
    /// [`SKIP_DESTROY`](SwitchFlag::SKIP_DESTROY) the old top delta is kept, and its new GUID is
    /// returned.
    ///
    /// The image may not be attached. Needs root, and the driver only for a new top delta of format v2; takes a moment.
    ///
    /// # Errors
    ///
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) for a GUID the image does not have,
    /// [`InvalidInput`](ErrorKind::InvalidInput) for the top itself, a temporary snapshot, a snapshot with other
    /// children than the top under [`SKIP_CREATE`](SwitchFlag::SKIP_CREATE), an old top that has children and is not kept, and both flags at
    /// once, which contradict each other;
    /// [`Busy`](ErrorKind::Busy) while attached; [`PermissionDenied`](ErrorKind::PermissionDenied) where the kernel
    /// does not remove the old top delta, because it is immutable, or attached where this process does not see it;
    /// [`Unsupported`](ErrorKind::Unsupported) for flags that libploop does not know, and for a new top delta of format
    /// v2 without a driver that supports large disks. After an error the image is as it was.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// use ploop::SwitchFlag;
    ///
    /// let first = image.snapshot()?;
    /// let kept = image.switch_snapshot_with(first, SwitchFlag::SKIP_DESTROY)?.unwrap();
    /// // And back to what was the top.
    /// image.switch_snapshot(kept)?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn switch_snapshot_with(&mut self, guid: Guid, flags: SwitchFlag) -> Result<Option<Guid>> {
        let change = Change::begin(&self.image, &LockedImage::SWITCH)?;
        let skip_create = flags.contains(SwitchFlag::SKIP_CREATE);
        let skip_destroy = flags.contains(SwitchFlag::SKIP_DESTROY);
        require_known_flags(change.operation(), change.path(), flags, SwitchFlag::KNOWN)?;
        if skip_create && skip_destroy {
            // libploop would destroy.
            return change.refuse(
                ErrorKind::InvalidInput,
                "SKIP_CREATE makes the snapshot the top and SKIP_DESTROY keeps the old top; there can be one top alone",
            );
        }
        let descriptor = &change.descriptor;
        if guid == descriptor.top {
            return change.refuse(
                ErrorKind::InvalidInput,
                "the image is on its top delta already; name a snapshot",
            );
        }
        let Some(snapshot) = descriptor.snapshot(guid) else {
            return Err(no_snapshot(change.operation(), change.path(), guid));
        };
        if snapshot.temporary {
            return change.refuse(
                ErrorKind::InvalidInput,
                format!("{guid} is a temporary snapshot, which libploop removes by itself"),
            );
        }
        if skip_create {
            // libploop takes it all the same (A11).
            require_no_other_child(change.operation(), descriptor, guid)
                .map_err(|error| change.refused(error))?;
            // It is written to from then on.
            change.require_of_no_other_image(&[guid])?;
        } else {
            change.require_place_beside_base()?;
        }
        change.require_top_guid_free()?;
        match skip_create {
            true => drop(change.require_sound(descriptor.image(guid))?),
            false => change.require_sound_and_whole(descriptor.image(guid))?,
        }
        require_files(change.operation(), descriptor.chain(guid))?;
        if !skip_destroy {
            change.require_no_child_of_top(&[descriptor.top])?;
            change.require_of_no_other_image(&[descriptor.top])?;
            // The old top is about to be unlinked.
            change.require_delta_header(descriptor.top_image())?;
        }
        // libploop looks only where it both deletes and creates (28).
        let top = descriptor.top;
        let written_to = if skip_create {
            vec![top, guid]
        } else {
            vec![top]
        };
        if let Some(device) = change.devices_with(&written_to).next() {
            return change.refuse_attached(device, "it writes to the top delta");
        }
        // 27: without a name for it, two deltas would be the top.
        let kept = skip_destroy.then(Guid::generate);
        let c_kept = kept.map(CText::guid);
        let c_guid = CText::guid(guid);
        let before = change.descriptor.clone();
        let is_done = |now: &Descriptor| match skip_create {
            true => now.snapshot(guid).is_none(),
            false => {
                let is_kept = kept.is_none_or(|kept| now.snapshot(kept).is_some());
                is_kept
                    && now.parent(now.top) == Some(guid)
                    && now.top_image() != before.top_image()
            }
        };
        change.run_until(DescriptorWrite::Staged, is_done, |locked| {
            let removal = match before.top_image().filter(|_| !skip_destroy) {
                Some(image) => Some(Removal::begin(&locked, &before, image)?),
                None => None,
            };
            let (locked, result) =
                locked.switch_snapshot(&c_guid, c_kept.as_ref(), flags.bits() as i32);
            match removal {
                Some(removal) => removal.finish(&locked, result),
                None => result,
            }
        })?;
        Ok(kept)
    }

    /// Deletes a snapshot (`ploop_delete_snapshot`).
    ///
    /// * A snapshot with one child: the child is merged down into it, which copies the child's data;
    ///   on a running image too.
    /// * One without children: its delta file is removed.
    /// * One with two or more: it is marked temporary, and removed once it has one child. The call
    ///   succeeds all the same; [`Ploop::descriptor`] shows the mark.
    ///
    /// Temporary snapshots that are no longer in use are merged as well. Needs root, and the driver only where the image
    /// is attached. Takes as long as the copying.
    ///
    /// # Errors
    ///
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) for a GUID the image does not have,
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a base without children, a top with one, and a top that is upon a
    /// temporary snapshot or one with other children;
    /// [`Busy`](ErrorKind::Busy) for the top
    /// of an attached image, a mounted snapshot, and one that is marked already and still has several children,
    /// [`Corrupt`](ErrorKind::Corrupt) where a delta in question is damaged or no delta at all,
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) where the kernel does not remove the delta of a snapshot
    /// without children, because it is immutable, or attached where this process does not see it; the image is then
    /// as it was. A merge that failed or was cut short after it had begun to write leaves the snapshot marked
    /// temporary: its own state is gone, since its delta already holds part of the child's data. The child reads as
    /// before. The next change or mount finishes the merge.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// let guid = image.snapshot()?;
    /// image.delete_snapshot(guid)?;
    /// assert!(image.snapshots()?.is_empty());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn delete_snapshot(&mut self, guid: Guid) -> Result<()> {
        let change = Change::begin(&self.image, &LockedImage::DELETE)?;
        delete(change, guid)
    }

    /// Deletes the top delta, with all that was written since the last snapshot; the snapshot below
    /// becomes the top and loses its GUID (`ploop_delete_top_delta`).
    ///
    /// # Errors
    ///
    /// As [`delete_snapshot`](Ploop::delete_snapshot).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// image.snapshot()?;
    /// image.delete_top_delta()?;
    /// assert_eq!(image.descriptor()?.images.len(), 1);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn delete_top_delta(&mut self) -> Result<()> {
        // C's own function looks for the top before it reads the descriptor.
        let change = Change::begin(&self.image, &LockedImage::DELETE)?;
        let top = change.descriptor.top;
        delete(change, top)
    }
}

/// The checks of a new snapshot.
fn check_new_snapshot(
    change: &Change<'_>,
    guid: Guid,
    directory: Option<&Path>,
) -> Result<Option<CPath>> {
    let operation = change.operation();
    let descriptor = &change.descriptor;
    if guid == Guid::NONE {
        return change.refuse(
            ErrorKind::InvalidInput,
            "the GUID of all zeroes means \"no snapshot\"",
        );
    }
    if descriptor.snapshot(guid).is_some() {
        return change.refuse(
            ErrorKind::AlreadyExists,
            format!("the image has a snapshot {guid} already"),
        );
    }
    if change.parents().is_some_and(|parents| parents.has(guid)) {
        return change.refuse(
            ErrorKind::AlreadyExists,
            format!("an image upon which this one stands has a snapshot {guid}"),
        );
    }
    // Where a device runs, libploop leaves it for later; elsewhere it fails, and does not say why.
    let blocking = descriptor
        .snapshots
        .iter()
        .find(|snapshot| snapshot.temporary && descriptor.children(snapshot.guid).count() > 1);
    if let (Some(blocking), None) = (blocking, change.found_device()) {
        return change.refuse(
            ErrorKind::Busy,
            format!(
                "the temporary snapshot {} is in the way: it has {} children, and is removed once one is left; delete the others first",
                blocking.guid,
                descriptor.children(blocking.guid).count(),
            ),
        );
    }
    let depth = change.chain_len(descriptor.top);
    if depth > MAX_SNAPSHOTS {
        return change.refuse(
            ErrorKind::Unsupported,
            format!(
                "the chain has {} snapshots, and {MAX_SNAPSHOTS} are the most there can be; delete or merge some",
                depth - 1
            ),
        );
    }
    require_files(operation, descriptor.chain(descriptor.top))?;
    change.require_sound_and_whole(descriptor.top_image())?;
    let Some(directory) = directory else {
        change.require_place_beside_base()?;
        return Ok(None);
    };
    let resolved =
        paths::existing_directory(operation, directory, "the directory for the new delta")?;
    trust::require_own_directory(operation, &resolved)?;
    change.require_new_delta_path(&resolved.join("root"))?;
    CPath::new(operation, &resolved).map(Some)
}

fn delete(change: Change<'_>, guid: Guid) -> Result<()> {
    let base = change.descriptor.base().map(|base| base.file.clone());
    let was_top = guid == change.descriptor.top;
    delete_delta(change, guid)?;
    // libploop keeps those of the state that is gone.
    if let Some(base) = base.filter(|_| was_top) {
        side_files::remove_statistics(&base);
    }
    Ok(())
}

fn delete_delta(change: Change<'_>, guid: Guid) -> Result<()> {
    change.require_snapshot(guid)?;
    change.require_no_child_of_top(&[guid])?;
    let descriptor = change.descriptor.clone();
    let is_base = descriptor.base().is_some_and(|base| base.guid == guid);
    let children: Vec<Guid> = descriptor.children(guid).collect();
    let temporary = descriptor.snapshot(guid).is_some_and(|s| s.temporary);
    if guid == descriptor.top {
        if let Some(device) = change.devices_with(&[guid]).next() {
            return change.refuse_attached(device, "it writes to the top delta");
        }
    }
    let c_guid = CText::guid(guid);
    match children.as_slice() {
        [] if is_base => change.refuse(
            ErrorKind::InvalidInput,
            format!("{guid} is the base, and without it there is no image"),
        ),
        [] => {
            if let Some(parent) = descriptor.parent(guid).filter(|_| guid == descriptor.top) {
                if guid != Guid::TOP {
                    // A77
                    return change.refuse(
                        ErrorKind::Unsupported,
                        "the image is a volume whose top has a GUID of its own, and libploop would leave a descriptor that names a top that is gone; a switch to the snapshot below drops the top, too, unless an image below has a top with the constant GUID",
                    );
                }
                require_usable_as_top(&change, parent)?;
                // It is written to from then on.
                change.require_of_no_other_image(&[parent])?;
            }
            change.require_of_no_other_image(&[guid])?;
            change.require_unattached(&[guid])?;
            change.require_delta_header(descriptor.image(guid))?;
            let Some(image) = descriptor.image(guid) else {
                return change.refuse(ErrorKind::Corrupt, format!("{guid} has no delta"));
            };
            // libploop removes the file even where it could not write the descriptor (25). Room was
            // made for that; should it fail all the same, the data is still here.
            let kept = File::open(&image.file).map_err(|error| {
                Error::io(change.operation(), "the delta cannot be opened", error)
                    .with_path(&image.file)
            })?;
            change.run(DescriptorWrite::Direct, |locked| {
                let removal = Removal::begin(&locked, &descriptor, image)?;
                let (locked, result) = locked.delete_snapshot(&c_guid);
                removal.finish(&locked, result)?;
                let now = locked.descriptor()?;
                if now.images.iter().any(|other| other.file == image.file) {
                    let restored = restore(kept, &image.file);
                    return Err(not_written(locked.operation(), locked.path(), restored));
                }
                Ok(())
            })
        }
        [child] => {
            change.require_of_no_other_image(&[guid, *child])?;
            change.require_unattached(&[guid, *child])?;
            change.require_no_hard_links(guid)?;
            let both = [guid, *child];
            let both = both.iter().filter_map(|guid| descriptor.image(*guid));
            change.require_mergeable(&both.collect::<Vec<_>>())?;
            let is_gone = |now: &Descriptor| now.snapshot(guid).is_none();
            change.run_until(DescriptorWrite::Merge(&[guid]), is_gone, |locked| {
                locked.delete_snapshot(&c_guid).1
            })
        }
        _ if temporary => change.refuse(
            ErrorKind::Busy,
            format!(
                "{guid} is marked for removal and still has {} children; delete these first",
                children.len()
            ),
        ),
        _ => change.run(DescriptorWrite::Direct, |locked| {
            let (locked, result) = locked.delete_snapshot(&c_guid);
            result?;
            match locked.descriptor()?.snapshot(guid) {
                Some(snapshot) if !snapshot.temporary => {
                    Err(not_written(locked.operation(), locked.path(), Ok(())))
                }
                _ => Ok(()),
            }
        }),
    }
}

/// Requires that the snapshot below the top can take its place, and be written to.
fn require_usable_as_top(change: &Change<'_>, guid: Guid) -> Result<()> {
    let descriptor = &change.descriptor;
    if descriptor.snapshot(guid).is_some_and(|it| it.temporary) {
        return change.refuse(
            ErrorKind::InvalidInput,
            format!("the top is upon {guid}, which is temporary and cannot be the top"),
        );
    }
    // libploop takes it all the same (A11).
    require_no_other_child(change.operation(), descriptor, guid)
        .map_err(|error| change.refused(error))
}

/// Writes a file that was unlinked anew, holes and all.
fn restore(mut from: File, to: &Path) -> io::Result<()> {
    if fs::symlink_metadata(to).is_ok() {
        return Ok(());
    }
    let copy = File::create_new(to)?;
    let len = from.metadata()?.len();
    from.seek(SeekFrom::Start(0))?;
    io::copy(&mut from, &mut &copy)?;
    copy.set_len(len)?;
    copy.set_permissions(from.metadata()?.permissions())?;
    copy.sync_all()
}
