//! Changed-block tracking (CBT), and the bitmaps that a backup asks for: what a delta has, and what was written since
//! a snapshot.

use crate::change::{Change, DescriptorWrite, no_snapshot};
use crate::ffi::{CText, LockedImage};
use crate::image::{TrackingBitmap, UsedBitmap, drop_extension, tracking_bitmaps, used_bitmap};
use crate::{Code, Descriptor, Error, ErrorKind, Feature, Guid, Ploop, Result};

impl Ploop {
    /// Which clusters the delta of a snapshot, or of the top, has itself: what
    /// `ploop_get_used_bitmap_from_image` is for.
    ///
    /// Read by this crate, with every line of libploop: that function of libploop 7 leaves out all but the first 496
    /// clusters of the disk, and writes beyond its buffer for an image of fewer than 64.
    ///
    /// Needs no driver; takes as long as reading the block allocation table. Of the top of a running image, as its table
    /// is on the disk at this moment.
    ///
    /// # Errors
    ///
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) for a GUID the image does not have,
    /// [`Unsupported`](ErrorKind::Unsupported) for a raw base, and as [`used_bitmap`](crate::image::used_bitmap).
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// let before = image.snapshot()?;
    /// // … the image is used …
    /// for extent in image.used_bitmap(ploop::Guid::TOP)?.extents() {
    ///     println!("{} bytes at {} changed since {before}", extent.len, extent.offset);
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn used_bitmap(&self, guid: Guid) -> Result<UsedBitmap> {
        let locked = self.image.lock(&LockedImage::USED_BITMAP)?;
        let descriptor = locked.descriptor()?;
        let delta = delta_of(&locked, &descriptor, guid)?;
        used_bitmap(delta).map_err(|error| error.during(locked.operation()))
    }

    /// What was written while changes were tracked, as the delta of a snapshot, or of the top, keeps it: what
    /// `ploop_get_tracking_bitmap_from_image` is for. Of several bitmaps in one delta, the last, as libploop does it;
    /// [`tracking_bitmaps`](crate::image::tracking_bitmaps) reads all.
    ///
    /// [`SnapshotParam::tracking`](crate::SnapshotParam::tracking) begins to track. The bitmap of what is written from
    /// then on is stored in the delta of the *next* such snapshot, under the name of the first; or in the top, when the
    /// image is unmounted.
    ///
    /// Read by this crate, with every line of libploop: that function of libploop 7 writes beyond its buffer for a disk
    /// of less than 1 GiB in clusters of 1 MiB. Needs no driver.
    ///
    /// # Errors
    ///
    /// [`NotTracked`](ErrorKind::NotTracked), with code [`NOCBT`](Code::NOCBT), where the delta keeps no bitmap;
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) for a GUID the image does not have,
    /// [`Unsupported`](ErrorKind::Unsupported) for a raw base; otherwise as
    /// [`tracking_bitmaps`](crate::image::tracking_bitmaps), with [`Busy`](ErrorKind::Busy) for the top of a running
    /// image, whose bitmap the driver has.
    ///
    /// ```no_run
    /// # let mut image = ploop::Ploop::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
    /// use ploop::{Guid, SnapshotParam};
    ///
    /// // At the first backup, which is of everything.
    /// let monday = Guid::generate();
    /// image.snapshot_with(&SnapshotParam::new().tracking(monday))?;
    /// // At the next one.
    /// let tuesday = Guid::generate();
    /// let snapshot = image.snapshot_with(&SnapshotParam::new().tracking(tuesday))?;
    /// let changes = image.tracking_bitmap(snapshot)?;
    /// assert_eq!(changes.id, monday);
    /// for extent in changes.extents() {
    ///     println!("{} bytes at {}", extent.len, extent.offset);
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn tracking_bitmap(&self, guid: Guid) -> Result<TrackingBitmap> {
        let locked = self.image.lock(&LockedImage::TRACKING_BITMAP)?;
        let descriptor = locked.descriptor()?;
        let delta = delta_of(&locked, &descriptor, guid)?;
        let bitmaps = tracking_bitmaps(delta).map_err(|error| error.during(locked.operation()))?;
        bitmaps.into_iter().next_back().ok_or_else(|| {
            Error::new(
                ErrorKind::NotTracked,
                locked.operation(),
                "this delta keeps no bitmap of changes: they were not tracked, or it was written to by a program that does not know of bitmaps",
            )
            .with_path(delta)
            .with_code(Code::NOCBT.get())
        })
    }

    /// Ends tracking for the top, of a running image too, or drops the bitmap that the delta of a snapshot keeps
    /// (`ploop_drop_cbt`). Where nothing is tracked, it does nothing.
    ///
    /// Needs no driver for an image that is not attached; takes as long as reading the block allocation table.
    ///
    /// For an image that is not attached this crate does it, with every line of libploop: libploop 7 leaves the header of
    /// the delta as it was, and can then neither make a snapshot nor read the bitmaps of a later time. So with libploop
    /// 1, which refuses deltas with bitmaps, an image of Parallels Desktop can be made one that it takes.
    ///
    /// # Errors
    ///
    /// [`NoSnapshot`](ErrorKind::NoSnapshot) for a GUID the image does not have, [`Busy`](ErrorKind::Busy) for a snapshot
    /// of an attached image, [`Unsupported`](ErrorKind::Unsupported) for a running image with libploop 1.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// image.drop_tracking(ploop::Guid::TOP)?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn drop_tracking(&mut self, guid: Guid) -> Result<()> {
        let change = Change::begin(&self.image, &LockedImage::DROP_TRACKING)?;
        change.require_snapshot(guid)?;
        change.require_of_no_other_image(&[guid])?;
        let device = change.devices_with(&[guid]).next().cloned();
        if let Some(device) = device {
            if guid != change.descriptor.top {
                return change.refuse_attached(&device, "it has the delta that would be changed");
            }
            Feature::Tracking.require(change.operation(), change.path())?;
            return change.run(DescriptorWrite::Maybe, LockedImage::drop_tracking);
        }
        let Some(image) = change.descriptor.image(guid).cloned() else {
            return change.refuse(ErrorKind::Corrupt, format!("{guid} has no delta"));
        };
        if change.descriptor.is_raw_base(guid) {
            return Ok(());
        }
        change.require_delta_header(Some(&image))?;
        change.run(DescriptorWrite::Maybe, |locked| {
            drop_extension(locked.operation(), &image.file)
        })
    }
}

/// The file of a snapshot's delta, or of the top's, which has a header.
fn delta_of<'a>(
    locked: &LockedImage<'_>,
    descriptor: &'a Descriptor,
    guid: Guid,
) -> Result<&'a std::path::Path> {
    let Some(image) = descriptor.image(guid) else {
        return Err(no_snapshot(locked.operation(), locked.path(), guid));
    };
    if descriptor.is_raw_base(guid) {
        return Err(Error::new(
            ErrorKind::Unsupported,
            locked.operation(),
            "a raw base has neither a block allocation table nor bitmaps; Disk::extents has its data",
        )
        .with_path(&image.file));
    }
    Ok(&image.file)
}

/// The checks of a snapshot with which tracking begins, and the name as C takes it: without braces.
pub(crate) fn check_new_tracking(change: &Change<'_>, id: Guid) -> Result<CText> {
    let operation = change.operation();
    Feature::Tracking.require(operation, change.path())?;
    if id == Guid::NONE {
        return change.refuse(
            ErrorKind::InvalidInput,
            "the GUID of all zeroes is no name for the changes that are to be tracked",
        );
    }
    if change.descriptor.is_raw_base(change.descriptor.top) && change.any_device().is_none() {
        // libploop fails when the new delta is made, and leaves it behind.
        return change.refuse(
            ErrorKind::Unsupported,
            "libploop cannot begin to track changes on a raw base that is not mounted; mount the image, or make a snapshot without tracking first",
        );
    }
    CText::new(operation, "name of the changes", &id.as_uuid().to_string())
}
