//! Look-ups: size and format of an image, its files, its file system; and the limit of its deltas.

use std::fs::{self, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::change::{Change, DescriptorWrite};
use crate::ffi::{self, Call, LockedImage};
use crate::image::{Header, Image};
use crate::sysfs::{self, FoundDevice};
use crate::temporary_mount::TemporaryMount;
use crate::{
    Code, Descriptor, Error, ErrorKind, FsInfo, ImageInfo, Ploop, Result, Size, device, kernel,
    paths,
};

impl Ploop {
    /// The size, cluster size and format of the image, as `ploop_get_spec`: of the running device, or of the top
    /// delta. Needs no driver.
    ///
    /// # Errors
    ///
    /// [`Busy`](ErrorKind::Busy) for an image that a crash has left marked as in use (a mount takes the mark off),
    /// and as [`Ploop::descriptor`] and [`Header::read`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let image = ploop::Ploop::create(&param.fs(None))?;
    /// let info = image.image_info()?;
    /// assert_eq!(info.size(), ploop::Size::from_mib(64));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn image_info(&self) -> Result<ImageInfo> {
        let locked = self.image.lock(&LockedImage::IMAGE_INFO)?;
        let descriptor = device::descriptor(&locked)?;
        match device::running_device(&locked, &descriptor)? {
            Some(device) => info_of_device(&device).ok_or_else(|| {
                let message = format!("{} does not tell", device.path().display());
                Error::new(ErrorKind::NoDriver, locked.operation(), message)
                    .with_path(locked.path())
                    .with_code(Code::SYSFS.get())
            }),
            None => info_of_top(locked.operation(), &descriptor),
        }
    }

    /// The file of the top delta, the one that is written to (`ploop_get_top_delta_fname`): an
    /// absolute path. Needs no driver.
    ///
    /// # Errors
    ///
    /// As [`Ploop::descriptor`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// image.snapshot()?;
    /// assert_ne!(image.top_delta_file()?, image.base_delta_file()?);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn top_delta_file(&self) -> Result<PathBuf> {
        self.delta_file(&LockedImage::TOP_DELTA_FILE, Descriptor::top_image)
    }

    /// From the descriptor, as libploop does it.
    fn delta_file(
        &self,
        call: &'static Call,
        which: fn(&Descriptor) -> Option<&Image>,
    ) -> Result<PathBuf> {
        let locked = self.image.lock(call)?;
        let descriptor = locked.descriptor()?;
        match which(&descriptor) {
            Some(image) => Ok(image.file.clone()),
            None => Err(Error::new(
                ErrorKind::Corrupt,
                call.name,
                "the descriptor has no such delta",
            )
            .with_path(locked.path())),
        }
    }

    /// The file of the base delta (`ploop_get_base_delta_fname`): an absolute path. Needs no driver.
    ///
    /// # Errors
    ///
    /// As [`Ploop::descriptor`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let image = ploop::Ploop::create(&param.fs(None))?;
    /// assert!(image.base_delta_file()?.ends_with("root.hds"));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn base_delta_file(&self) -> Result<PathBuf> {
        self.delta_file(&LockedImage::BASE_DELTA_FILE, Descriptor::base)
    }

    /// Limits the size of deltas (`ploop_set_max_delta_size`); `None` and zero are no limit.
    ///
    /// The driver fails a write that would make the top delta longer, and the file system goes read-only
    /// then. It counts whole clusters. The limit is rounded up to whole sectors, stored in the descriptor,
    /// and passed to a driver that has the image. The driver forgets it with the next snapshot,
    /// and the next mount tells it again.
    ///
    /// Needs root and no driver; takes a moment.
    ///
    /// # Errors
    ///
    /// [`Busy`](ErrorKind::Busy) for no limit while the image is attached (libploop would set a limit of zero
    /// bytes: use [`Size::MAX`]), and as [`Ploop::snapshot_with`]. After an error the descriptor is as it was.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// use ploop::Size;
    ///
    /// image.set_max_delta_size(Size::from_gib(20))?;
    /// image.set_max_delta_size(None)?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn set_max_delta_size(&mut self, limit: impl Into<Option<Size>>) -> Result<()> {
        let sectors = limit.into().map_or(0, Size::sectors);
        let change = Change::begin(&self.image, &LockedImage::MAX_DELTA_SIZE)?;
        if sectors == 0 {
            // A18: the driver takes the number for what it is, and fails every write to a new cluster.
            let top = change.descriptor.top;
            if let Some(device) = change.devices_with_top(top).next() {
                return change.refuse_while_attached(
                    device,
                    "0 would be a limit of zero bytes there, and every write would fail; use Size::MAX for no limit, or unmount it",
                );
            }
        }
        change.run(DescriptorWrite::Direct, |locked| {
            let locked = locked.set_max_delta_size(sectors)?;
            // 25: success is also reported where the descriptor could not be written.
            let stored = locked.descriptor()?.max_delta_size;
            if stored.map_or(0, Size::sectors) == sectors {
                return Ok(());
            }
            Err(Error::new(
                ErrorKind::Io,
                locked.operation(),
                "libploop could not write the descriptor and did not say so; nothing was changed",
            )
            .with_path(locked.path()))
        })
    }
}

fn info_of_device(device: &FoundDevice) -> Option<ImageInfo> {
    Some(ImageInfo {
        blocks: device.size()?,
        block_size: device.cluster()?.try_into().ok()?,
        version: device.format_version()?.try_into().ok()?,
    })
}

fn info_of_top(operation: &'static str, descriptor: &Descriptor) -> Result<ImageInfo> {
    let cluster = descriptor.cluster.sectors();
    let Some(top) = descriptor.top_image() else {
        let error = Error::new(ErrorKind::Corrupt, operation, "there is no top delta");
        return Err(error.with_code(Code::PARAM.get()));
    };
    if descriptor.is_raw_base(top.guid) {
        let metadata = fs::metadata(&top.file).map_err(|error| {
            Error::io(operation, "the raw base cannot be examined", error)
                .with_path(&top.file)
                .with_code(Code::FSTAT.get())
        })?;
        return Ok(ImageInfo {
            blocks: metadata.len() / 512,
            block_size: cluster,
            version: 0,
        });
    }
    let failed = |error: Error| error.during(operation).with_code(Code::OPEN.get());
    let header = Header::read(&top.file).map_err(failed)?;
    if header.in_use {
        let message = "the image is marked as in use, and no device has it: it was not unmounted before the system went down; mount it, which mends that";
        return Err(failed(
            Error::new(ErrorKind::Busy, operation, message).with_path(&top.file),
        ));
    }
    let cluster = header.cluster.sectors();
    Ok(ImageInfo {
        // Whole clusters, as libploop counts them.
        blocks: header.size.sectors() / u64::from(cluster) * u64::from(cluster),
        block_size: cluster,
        version: header.version.number(),
    })
}

/// The file system in an image (what `ploop_get_info_by_descr` answers).
///
/// * Of a mounted image: as it is now.
/// * Of one that is not attached, but was unmounted at least once since the last switch or deletion of its top: as it was
///   when it was unmounted. libploop keeps these numbers in `.statfs` beside the image. This needs no driver.
/// * Of any other: it is **mounted and unmounted once**, beside its base, which needs the driver and
///   root, takes as long as both, and writes `.statfs`.
///
/// # Errors
///
/// [`NotMounted`](ErrorKind::NotMounted) where the image is attached without its file system being
/// mounted, and as [`Ploop::mount`]. After an error nothing is mounted that was not before.
///
/// ```no_run
/// let info = ploop::fs_info("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
/// println!("{} of {} are free", info.free(), info.size());
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn fs_info(descriptor: impl AsRef<Path>) -> Result<FsInfo> {
    let call = &LockedImage::FS_INFO;
    let descriptor = descriptor.as_ref();
    paths::require_c_path(call.name, descriptor)?;
    let noted = read_statfs_file(call.name, descriptor)?;
    if let Some(noted) = noted {
        if sysfs::devices(call.name)?.is_empty() {
            return Ok(noted);
        }
    }
    let opened = ffi::ImageHandle::open(call.name, descriptor);
    if let (Some(noted), Err(_)) = (noted, &opened) {
        // As libploop, also where the image is gone.
        return Ok(noted);
    }
    let image = opened?;
    let device = running_device(&image.lock(call)?);
    match (device, noted) {
        (Some(device), _) => {
            if let Some(mounted) = info_of_mounted(&device) {
                return Ok(mounted);
            }
        }
        // Of an image that a device has, it may be old.
        (None, Some(noted)) => return Ok(noted),
        (None, None) => {}
    }
    let change = Change::begin(&image, call)?;
    if let Some(device) = change.found_device() {
        // Of this, libploop 7 gives no reason.
        if device::mount_point(device.path())?.is_none() {
            let why = "the image is attached without its file system; mount it with a target";
            let error = Error::new(ErrorKind::NotMounted, change.operation(), why);
            return Err(error.with_path(change.path()).with_code(Code::CREAT.get()));
        }
    }
    change.require_attachable(change.descriptor.top)?;
    if change.found_device().is_none() {
        kernel::require_tools_to_attach(change.operation(), &[])?;
    }
    let leftover = TemporaryMount::beside(&change.descriptor);
    let mut attach = change.attach_first(None);
    if let Some(attach) = &mut attach {
        attach.target = Some(leftover.make(call.name)?);
    }
    let result = change.run(DescriptorWrite::Maybe, |locked| {
        locked.fs_info(attach.as_ref())
    });
    if result.is_err() {
        leftover.remove();
    }
    result
}

fn running_device(locked: &LockedImage<'_>) -> Option<PathBuf> {
    let device = device::running_device(locked, &locked.descriptor().ok()?).ok()??;
    Some(device.path())
}

/// As the mounted file system has it. Where that cannot be asked, libploop says why.
fn info_of_mounted(device: &Path) -> Option<FsInfo> {
    let target = device::mount_point(device).ok()??;
    FsInfo::of_mounted(&target).ok()
}

/// Reads `.statfs`, libploop's numbers of the file system in an image that is not mounted: five, in the machine's
/// byte order. libploop trusts the file before it looks at anything else, and so does this.
fn read_statfs_file(operation: &'static str, descriptor: &Path) -> Result<Option<FsInfo>> {
    let Some(directory) = descriptor.parent() else {
        return Ok(None);
    };
    let path = directory.join(paths::STATFS_NAME);
    let failed = |error| {
        let what = "libploop's statistics of the file system cannot be read";
        Error::io(operation, what, error).with_path(&path)
    };
    paths::require_own_side_file(operation, &path)?;
    let mut file = match OpenOptions::new()
        .read(true)
        .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
        .open(&path)
    {
        Ok(file) => file,
        // The directory may be missing as well, which opening the descriptor will tell.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
            ) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = [0; 40];
    match file.read_exact(&mut bytes) {
        Ok(()) => {}
        // One that is cut off is written anew, by libploop itself.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(failed(error)),
    }
    let number = |at: usize| {
        let mut number = [0; 8];
        number.copy_from_slice(&bytes[at * 8..][..8]);
        u64::from_ne_bytes(number)
    };
    Ok(Some(FsInfo {
        block_size: number(0),
        blocks: number(1),
        blocks_free: number(2),
        inodes: number(3),
        inodes_free: number(4),
    }))
}
