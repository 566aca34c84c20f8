//! Making snapshots, switching between them, and deleting them: what `ploop_create_snapshot`,
//! `ploop_switch_snapshot_ex`, `ploop_delete_snapshot` and `ploop_delete_top_delta` do.

use std::fs;
use std::path::Path;

use super::OfflineImage;
use super::change::OfflineChange;
use crate::image::Progress;
use crate::image::descriptor::Descriptor;
use crate::image::recovery::files::FileRecord;
use crate::image::sound::{require_files, require_no_child_of_top, require_no_other_child};
use crate::snapshot_param::MAX_SNAPSHOTS;
use crate::{
    ErrorKind, Guid, MergeTarget, Result, SnapshotParam, SwitchFlag, paths, side_files, trust,
};

impl OfflineImage {
    /// Makes a snapshot with a random GUID, as [`snapshot_with`](OfflineImage::snapshot_with) does.
    ///
    /// # Errors
    ///
    /// As [`snapshot_with`](OfflineImage::snapshot_with).
    pub fn snapshot(&mut self) -> Result<Guid> {
        self.snapshot_with(&SnapshotParam::new())
    }

    /// Makes a snapshot and returns its GUID, as `Ploop::snapshot_with` does (`ploop_create_snapshot`).
    ///
    /// The top delta becomes the snapshot, and an empty one is the new top. Takes a moment, but first merges temporary
    /// snapshots with one child, and removes those without any.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let mut image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// use ploop::{Guid, SnapshotParam};
    ///
    /// let guid = Guid::generate();
    /// image.snapshot_with(&SnapshotParam::new().guid(guid))?;
    /// assert!(image.descriptor()?.snapshot(guid).is_some());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`InvalidInput`](ErrorKind::InvalidInput) for the GUID of all zeroes, and for a directory that is none;
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where the image has a snapshot of this GUID;
    /// [`Unsupported`](ErrorKind::Unsupported) where the chain has 126 snapshots, and with
    /// [`tracking`](SnapshotParam::tracking); [`Corrupt`](ErrorKind::Corrupt)
    /// where the top is damaged; and those that [all operations](OfflineImage#what-is-refused) have. After an error the
    /// image is as it was, possibly without temporary snapshots.
    pub fn snapshot_with(&mut self, param: &SnapshotParam) -> Result<Guid> {
        let mut change = OfflineChange::begin(self, "create a snapshot of")?;
        let guid = param.guid.unwrap_or_else(Guid::generate);
        if guid == Guid::NONE {
            return change.refuse(
                ErrorKind::InvalidInput,
                "the GUID of all zeroes means \"no snapshot\"",
            );
        }
        if change.descriptor.snapshot(guid).is_some() {
            return change.refuse(
                ErrorKind::AlreadyExists,
                format!("the image has a snapshot {guid} already"),
            );
        }
        let directory = match &param.directory {
            None => None,
            Some(directory) => {
                let what = "the directory for the new delta";
                let found = paths::existing_directory(change.operation(), directory, what)?;
                trust::require_own_directory(change.operation(), &found)?;
                Some(found)
            }
        };
        if param.tracking.is_some() {
            return change.refuse(
                ErrorKind::Unsupported,
                "what is written is tracked by the driver; only libploop 7 and later can begin that",
            );
        }
        require_files(
            change.operation(),
            change.descriptor.chain(change.descriptor.top),
        )?;
        change.merge_temporary_snapshots(&mut |_| {})?;
        let top = change.descriptor.top;
        change.require_room_upon(top)?;
        change.require_sound([change.image(top)?])?;
        let file = change.new_delta_path(directory.as_deref())?;
        let new = change.descriptor.with_snapshot(guid, file.clone());
        change.put_with_new_top(new, top, &file, None)?;
        Ok(guid)
    }

    /// Goes back to a snapshot: a new top upon it replaces the old one, which is deleted with all that was written
    /// since the last snapshot.
    ///
    /// # Errors
    ///
    /// As [`switch_snapshot_with`](OfflineImage::switch_snapshot_with).
    pub fn switch_snapshot(&mut self, guid: Guid) -> Result<()> {
        self.switch_snapshot_with(guid, SwitchFlag::empty())
            .map(|_| ())
    }

    /// Goes back to a snapshot, as `Ploop::switch_snapshot_with` does (`ploop_switch_snapshot_ex`). With
    /// [`SKIP_DESTROY`](SwitchFlag::SKIP_DESTROY) the old top delta is kept, and its new GUID is returned. Takes a
    /// moment.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let mut image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// use ploop::SwitchFlag;
    ///
    /// let before = image.snapshot()?;
    /// let kept = image.switch_snapshot_with(before, SwitchFlag::SKIP_DESTROY)?;
    /// println!("what was written since is in snapshot {}", kept.unwrap());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) for a GUID the image does not have; [`InvalidInput`](ErrorKind::InvalidInput)
    /// for the top itself, a temporary snapshot, a snapshot with other children than the top under
    /// [`SKIP_CREATE`](SwitchFlag::SKIP_CREATE), an old top that has children and is not kept, and both flags at once,
    /// which contradict each other; [`Unsupported`](ErrorKind::Unsupported) for other flags;
    /// [`PermissionDenied`](ErrorKind::PermissionDenied) where the old top cannot be removed; and those that [all
    /// operations](OfflineImage#what-is-refused) have. After an error the image is as it was.
    pub fn switch_snapshot_with(&mut self, guid: Guid, flags: SwitchFlag) -> Result<Option<Guid>> {
        let mut change = OfflineChange::begin(self, "switch to a snapshot of")?;
        let unknown = flags.bits() & !SwitchFlag::KNOWN.bits();
        if unknown != 0 {
            return change.refuse(
                ErrorKind::Unsupported,
                format!("the flags {unknown:#x} are not known"),
            );
        }
        let skip_create = flags.contains(SwitchFlag::SKIP_CREATE);
        let skip_destroy = flags.contains(SwitchFlag::SKIP_DESTROY);
        if skip_create && skip_destroy {
            return change.refuse(
                ErrorKind::InvalidInput,
                "SKIP_CREATE makes the snapshot the top and SKIP_DESTROY keeps the old top; there can be one top alone",
            );
        }
        let top = change.descriptor.top;
        if guid == top {
            return change.refuse(
                ErrorKind::InvalidInput,
                "the image is on its top delta already; name a snapshot",
            );
        }
        if change.snapshot(guid)?.temporary {
            return change.refuse(
                ErrorKind::InvalidInput,
                format!(
                    "{guid} is a temporary snapshot, which the next snapshot or deletion removes"
                ),
            );
        }
        if !skip_destroy {
            change.require_no_child_of_top(&[top])?;
            change.require_of_no_other_image([&*change.image(top)?.file])?;
        }
        change.require_sound([change.image(guid)?])?;
        let old = change.image(top)?.file.clone();
        if skip_create {
            change.require_no_other_child(guid)?;
            // It is written to from then on.
            change.require_of_no_other_image([&*change.image(guid)?.file])?;
            let mut new = change.descriptor.with_top(guid);
            new.size = change.size_of(change.image(guid)?)?;
            let record = change.record([&*old])?;
            change.put_and_remove(new, &[old])?;
            drop(record);
            change.forget_statistics();
            return Ok(None);
        }
        change.require_room_upon(guid)?;
        require_files(change.operation(), change.descriptor.chain(guid))?;
        let kept = skip_destroy.then(Guid::generate);
        let file = change.new_delta_path(None)?;
        let new = change.descriptor.switched_to(guid, file.clone(), kept);
        let old = (!skip_destroy).then_some(&*old);
        change.put_with_new_top(new, guid, &file, old)?;
        change.forget_statistics();
        Ok(kept)
    }

    /// Deletes a snapshot, as `Ploop::delete_snapshot` does (`ploop_delete_snapshot`).
    ///
    /// * A snapshot with one child: the child is merged down into it, which copies the child's data. See
    ///   [`merge`](OfflineImage::merge) for what a failure leaves.
    /// * One without children: its delta file is removed.
    /// * One with two or more: it is marked temporary, and removed once it has one child. The call succeeds all the
    ///   same.
    ///
    /// Temporary snapshots with one child are merged, and those without any removed.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let mut image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// let before = image.snapshot()?;
    /// image.delete_snapshot(before, |progress| println!("{} copied", progress.copied))?;
    /// assert_eq!(image.descriptor()?.images.len(), 1);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) for a GUID the image does not have;
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a base without children, a top with one, and a top that is upon a
    /// temporary snapshot or one with other children; [`Busy`](ErrorKind::Busy) for one that is marked already and still
    /// has several children; [`PermissionDenied`](ErrorKind::PermissionDenied) where the delta of a snapshot without
    /// children cannot be removed, and the image is as it was then; otherwise as [`merge`](OfflineImage::merge).
    pub fn delete_snapshot(
        &mut self,
        guid: Guid,
        mut progress: impl FnMut(Progress),
    ) -> Result<()> {
        let mut change = OfflineChange::begin(self, "delete a snapshot of")?;
        change.delete(guid, &mut progress)?;
        change.merge_temporary_snapshots(&mut progress)
    }

    /// Deletes the top delta, with all that was written since the last snapshot; the snapshot below becomes the top and
    /// loses its GUID (`ploop_delete_top_delta`).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let options = ploop::image::CreateOptions::new();
    /// # let size = ploop::Size::from_mib(64);
    /// # let mut image = ploop::image::create(dir.path().join("root.hds"), size, &options)?;
    /// image.snapshot()?;
    /// image.delete_top_delta()?;
    /// assert_eq!(image.descriptor()?.images.len(), 1);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// As [`delete_snapshot`](OfflineImage::delete_snapshot).
    pub fn delete_top_delta(&mut self) -> Result<()> {
        let mut change = OfflineChange::begin(self, "delete the top delta of")?;
        let top = change.descriptor.top;
        change.delete(top, &mut |_| {})?;
        change.merge_temporary_snapshots(&mut |_| {})
    }
}

impl OfflineChange<'_> {
    /// Puts a descriptor in place whose top is the new file `file`, upon `parent`; afterwards, `old` is not needed.
    fn put_with_new_top(
        &mut self,
        mut new: Descriptor,
        parent: Guid,
        file: &Path,
        old: Option<&Path>,
    ) -> Result<()> {
        let header = self.header_upon(parent)?;
        new.size = header.size;
        self.text(&new)?;
        let made = self.make_delta(file, &header)?;
        let _record = self.record([file].into_iter().chain(old))?;
        made.publish(false)?;
        let old: Vec<_> = old.map(Path::to_owned).into_iter().collect();
        let put = self.put_and_remove(new, &old);
        if put.is_err() && !self.descriptor.images.iter().any(|it| it.file == file) {
            let _ = fs::remove_file(file);
        }
        put
    }

    /// Records the files that this change makes or removes.
    pub(super) fn record<'f>(
        &self,
        files: impl IntoIterator<Item = &'f Path>,
    ) -> Result<FileRecord> {
        FileRecord::make(self.operation(), self.path(), files)
    }

    /// Requires that the top, if it is one of the deltas to be removed, has no child: the descriptor would have a top
    /// that is not listed.
    pub(super) fn require_no_child_of_top(&self, removed: &[Guid]) -> Result<()> {
        require_no_child_of_top(self.operation(), &self.descriptor, removed)
            .map_err(|error| error.with_path(self.path()))
    }

    /// Requires that a snapshot that becomes the top has no child but the top.
    fn require_no_other_child(&self, guid: Guid) -> Result<()> {
        require_no_other_child(self.operation(), &self.descriptor, guid)
            .map_err(|error| error.with_path(self.path()))
    }

    /// Requires that the chain may have one more delta.
    fn require_room_upon(&self, guid: Guid) -> Result<()> {
        let depth = self.descriptor.chain(guid).len();
        if depth <= MAX_SNAPSHOTS {
            return Ok(());
        }
        self.refuse(
            ErrorKind::Unsupported,
            format!(
                "the chain has {} snapshots, and {MAX_SNAPSHOTS} are the most there can be; delete or merge some",
                depth - 1
            ),
        )
    }

    fn delete(&mut self, guid: Guid, progress: &mut dyn FnMut(Progress)) -> Result<()> {
        let temporary = self.snapshot(guid)?.temporary;
        self.require_no_child_of_top(&[guid])?;
        let children: Vec<Guid> = self.descriptor.children(guid).collect();
        match (children.as_slice(), self.descriptor.parent(guid)) {
            ([], None) => self.refuse(
                ErrorKind::InvalidInput,
                format!("{guid} is the base, and without it there is no image"),
            ),
            ([], Some(parent)) => {
                let file = self.image(guid)?.file.clone();
                self.require_of_no_other_image([&*file])?;
                let new = if guid == self.descriptor.top {
                    if self.snapshot(parent)?.temporary {
                        return self.refuse(
                            ErrorKind::InvalidInput,
                            format!(
                                "the top is upon {parent}, which is temporary and cannot be the top"
                            ),
                        );
                    }
                    self.require_no_other_child(parent)?;
                    // It is written to from then on.
                    self.require_of_no_other_image([&*self.image(parent)?.file])?;
                    self.require_sound([self.image(parent)?])?;
                    let mut new = self.descriptor.with_top(parent);
                    new.size = self.size_of(self.image(parent)?)?;
                    new
                } else {
                    self.descriptor.without(guid)
                };
                let was_top = guid == self.descriptor.top;
                let _record = self.record([&*file])?;
                self.put_and_remove(new, &[file])?;
                if was_top {
                    self.forget_statistics();
                }
                Ok(())
            }
            ([child], _) => self.merge_in_place(MergeTarget::Snapshot(*child), progress),
            _ if temporary => self.refuse(
                ErrorKind::Busy,
                format!(
                    "{guid} is marked for removal and still has {} children; delete these first",
                    children.len()
                ),
            ),
            _ => {
                let marked = self.descriptor.with_temporary(&[guid]);
                self.put(marked)
            }
        }
    }

    pub(super) fn temporary_snapshots(&self) -> impl Iterator<Item = Guid> {
        let snapshots = self.descriptor.snapshots.iter();
        snapshots
            .filter(|shot| shot.temporary)
            .map(|shot| shot.guid)
    }

    /// Removes temporary snapshots without children, and merges the child of those with one. Such are what a merge that was
    /// killed has left.
    pub(super) fn merge_temporary_snapshots(
        &mut self,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<()> {
        loop {
            let next = self.descriptor.snapshots.iter().find(|shot| {
                shot.temporary && self.descriptor.children(shot.guid).nth(1).is_none()
            });
            let Some(next) = next.map(|shot| shot.guid) else {
                return Ok(());
            };
            self.delete(next, progress)?;
        }
    }

    /// Removes libploop's statistics of the file system, which are those of another state now.
    pub(super) fn forget_statistics(&self) {
        if let Some(base) = self.descriptor.base() {
            side_files::remove_statistics(&base.file);
        }
    }
}
