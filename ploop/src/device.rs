//! Devices: which image is attached to which, and where it is mounted.
//!
//! The look-ups read sysfs and the mount table, for which nobody needs to be root. Without the driver, those by an image
//! find nothing, which is no error.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::ffi::{self, CPath, CText, LockedImage, descriptor_form};
use crate::identity::Identity;
use crate::sysfs::{self, Device, FoundDevice};
use crate::{
    Code, ComponentName, Descriptor, Error, ErrorKind, Feature, FsInfo, Ploop, Result, image,
    kernel, lock, mount_table, paths,
};

impl Ploop {
    /// The running device of this image under the handle's [component](Ploop::component). As `ploop_get_dev`, it
    /// compares the path of the base.
    ///
    /// # Errors
    ///
    /// As [`Ploop::is_mounted`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let image = ploop::Ploop::create(&param.fs(None))?;
    /// assert_eq!(image.device()?, None);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn device(&self) -> Result<Option<PathBuf>> {
        let locked = self.image.lock(&LockedImage::DEVICE)?;
        let device = running_device(&locked, &descriptor(&locked)?)?;
        Ok(device.map(|device| device.path()))
    }

    /// All devices of this image, whatever their component (what `ploop_get_devs` answers). Without the driver there are
    /// none. Waits for the image's lock.
    ///
    /// # Errors
    ///
    /// As [`Ploop::descriptor`].
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let image = ploop::Ploop::create(&param.fs(None))?;
    /// assert!(image.devices()?.is_empty());
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn devices(&self) -> Result<Vec<PathBuf>> {
        let locked = self.image.lock(&LockedImage::DEVICES)?;
        let descriptor = descriptor(&locked)?;
        let mut found = devices_with_base(&locked, &descriptor)?;
        if shares_base(&descriptor) {
            // Others have the same base.
            let own: Vec<Identity> = (descriptor.images.iter())
                .filter_map(|image| Identity::of(&image.file).ok())
                .collect();
            found.retain(|device| device.top().is_some_and(|top| own.contains(&top)));
        }
        Ok(found.iter().map(FoundDevice::path).collect())
    }
}

/// The descriptor, for a look-up that has libploop's code where there is none to be read.
pub(crate) fn descriptor(locked: &LockedImage<'_>) -> Result<Descriptor> {
    let code = match locked.has_descriptor_lock() {
        true => Code::LOCK.get(),
        false => FAILED_CODE,
    };
    locked.descriptor().map_err(|error| error.with_code(code))
}

/// libploop's code for a failure without a number of its own.
const FAILED_CODE: i32 = -1;

/// The running device that libploop would find, by the name that the operation looks for.
///
/// A device that is being attached or detached does not run for a moment. So where one does not run, this waits for the
/// lock of whoever attaches, and looks again.
pub(crate) fn running_device(
    locked: &LockedImage<'_>,
    descriptor: &Descriptor,
) -> Result<Option<FoundDevice>> {
    let find = || -> Result<Option<FoundDevice>> {
        let mut found = devices_with_base(locked, descriptor)?.into_iter();
        let top = shares_base(descriptor).then(|| top_of(descriptor));
        Ok(found.find(|device| {
            device.component == locked.component() && top.is_none_or(|top| device.top() == top)
        }))
    };
    match find()? {
        Some(device) if !device.runs => {}
        found => return Ok(found),
    }
    lock::wait_for_devices(locked.operation(), locked.path(), locked.timeout())?;
    match find()? {
        Some(device) if !device.runs => Err(Error::new(
            ErrorKind::Busy,
            locked.operation(),
            format!(
                "this is the image of a stopped ploop device, {}: a program was killed and left the device attached; unmount the image to free it",
                device.path().display()
            ),
        )
        .with_path(locked.path())
        .with_code(FAILED_CODE)),
        found => Ok(found),
    }
}

/// [`running_device`], where all devices are known already.
pub(crate) fn running_device_among(
    devices: &[Device],
    locked: &LockedImage<'_>,
    descriptor: &Descriptor,
) -> Result<Option<PathBuf>> {
    let base = base_file(locked, descriptor)?;
    let base = base.and_then(|base| fs::canonicalize(base).ok());
    let is_found = |device: &&Device| {
        let base = base.as_deref();
        device.runs
            && base.is_some_and(|base| device.is_found_by(base, locked.component()))
            && is_top_of(device, descriptor)
    };
    match devices.iter().find(is_found) {
        Some(device) => Ok(Some(device.path())),
        // One may be on its way.
        _ => Ok(running_device(locked, descriptor)?.map(|device| device.path())),
    }
}

fn devices_with_base(
    locked: &LockedImage<'_>,
    descriptor: &Descriptor,
) -> Result<Vec<FoundDevice>> {
    match base_file(locked, descriptor)? {
        Some(base) => devices_with_base_file(locked.operation(), &base),
        None => Ok(Vec::new()),
    }
}

/// The base of all deltas: of a volume, that of the lowest image upon which it stands.
fn base_file(locked: &LockedImage<'_>, descriptor: &Descriptor) -> Result<Option<PathBuf>> {
    match (locked.parents(), descriptor.stands_upon()) {
        (Some(parents), _) => Ok(parents.base().map(Path::to_owned)),
        (None, Some(_)) => image::base_file(descriptor, locked.path())
            .map(Some)
            .map_err(|error| error.during(locked.operation()).with_code(FAILED_CODE)),
        (None, None) => Ok(descriptor.base().map(|base| base.file.clone())),
    }
}

/// Whether other images may have the same base, so that libploop compares the top, too.
fn shares_base(descriptor: &Descriptor) -> bool {
    descriptor_form().has_key_and_volume && descriptor.volume.is_some()
}

/// The device of a snapshot of a volume, which libploop does not find, by the name that the operation looks for: it
/// compares the top of the image (A79).
pub(crate) fn device_of_snapshot<'d>(
    devices: &'d [Device],
    component: &[u8],
    descriptor: &Descriptor,
) -> Option<&'d Device> {
    let snapshots = descriptor
        .images
        .iter()
        .filter(|image| image.guid != descriptor.top);
    let snapshots: Vec<Identity> = snapshots
        .filter_map(|image| Identity::of(&image.file).ok())
        .collect();
    let is_of_snapshot = |device: &&Device| {
        let top = device.top().and_then(|top| top.identity);
        device.component == component && top.is_some_and(|top| snapshots.contains(&top))
    };
    devices
        .iter()
        .filter(|_| shares_base(descriptor))
        .find(is_of_snapshot)
}

fn top_of(descriptor: &Descriptor) -> Option<Identity> {
    Identity::of(&descriptor.top_image()?.file).ok()
}

/// Whether a device that has the base of the image has its top, where libploop compares that, too.
pub(crate) fn is_top_of(device: &Device, descriptor: &Descriptor) -> bool {
    let top = || device.top().and_then(|top| top.identity);
    !shares_base(descriptor) || top_of(descriptor).is_some_and(|it| top() == Some(it))
}

fn devices_with_base_file(operation: &'static str, base: &Path) -> Result<Vec<FoundDevice>> {
    match fs::canonicalize(base) {
        Ok(base) => sysfs::find_by_base(operation, &base),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io(operation, "the base cannot be found", error)
            .with_path(base)
            .with_code(FAILED_CODE)),
    }
}

/// Unmounts what is on a device, and detaches it (`ploop_umount`). A device that is stopped already
/// is no error.
///
/// Prefer [`Ploop::umount`]: this function does not lock the image, does not finish an interrupted merge, and does
/// not store the size of the file system for [`fs_info`](crate::fs_info). Needs the driver and root.
///
/// # Errors
///
/// [`InvalidInput`](ErrorKind::InvalidInput) for a device not named like `/dev/ploop12345`,
/// [`NoDriver`](ErrorKind::NoDriver) for a device that does not exist, [`Busy`](ErrorKind::Busy) also where something
/// else is mounted on top of its file system. After an error the device is still attached, and its file system may be
/// unmounted: the same call goes on from there.
///
/// ```no_run
/// ploop::device::umount("/dev/ploop12345")?;
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn umount(device: impl AsRef<Path>) -> Result<()> {
    const OPERATION: &str = "unmount device";
    let device = device.as_ref();
    let name = device_name(OPERATION, device)?;
    ffi::require_line(OPERATION)?;
    if let Err(error) = sysfs::numbers(device.file_name().unwrap_or_default()) {
        if error.kind() != io::ErrorKind::NotFound {
            let what = "the device's numbers cannot be read";
            return Err(Error::io(OPERATION, what, error).with_path(device));
        }
        // libploop 7 gives no reason.
        let error = kernel::require_driver(OPERATION, device).err();
        let error = error.unwrap_or_else(|| {
            Error::new(ErrorKind::NoDriver, OPERATION, "there is no such device").with_path(device)
        });
        return Err(error.with_code(Code::DEVICE.get()));
    }
    lock::with_lock_of(OPERATION, device, || {
        require_harmless_mount_point(OPERATION, device)?;
        if is_free(OPERATION, device)? {
            return ffi::clear_device(device).map_err(|error| {
                Error::io(OPERATION, "the device cannot be cleared", error).with_path(device)
            });
        }
        ffi::umount_device(device, &name)
    })
}

/// Whether a device has no deltas, and does not run.
fn is_free(operation: &'static str, device: &Path) -> Result<bool> {
    let found = sysfs::devices(operation)?.into_iter();
    let mut found = found.filter(|other| other.path() == device);
    Ok(found.any(|device| device.deltas.is_empty() && !device.runs))
}

/// The device that has `base` as its base delta, under a component name or without: what
/// `ploop_find_dev` answers.
///
/// # Errors
///
/// [`InvalidInput`](ErrorKind::InvalidInput) for a path that C does not take (see [`Ploop::open`]), and where it
/// cannot be resolved.
///
/// ```
/// # let dir = tempfile::tempdir().unwrap();
/// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
/// # let image = ploop::Ploop::create(&param.fs(None))?;
/// use ploop::device;
///
/// let base = image.base_delta_file()?;
/// assert_eq!(device::find(&base, None)?, None);
/// assert_eq!(device::find(&base, Some(&"backup".parse()?))?, None);
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn find(base: impl AsRef<Path>, component: Option<&ComponentName>) -> Result<Option<PathBuf>> {
    const OPERATION: &str = "find device";
    let base = base.as_ref();
    paths::require_c_path(OPERATION, base)?;
    let component = component.map_or("", ComponentName::as_str).as_bytes();
    let mut found = devices_with_base_file(OPERATION, base)?.into_iter();
    let device = found.find(|device| device.component == component);
    Ok(device.map(|device| device.path()))
}

/// The device whose file system is mounted here (`ploop_get_dev_by_mnt`). `None` also for a path that is not there, and
/// without the driver.
///
/// # Errors
///
/// Where the mount table cannot be read.
///
/// ```
/// // What is mounted here is no ploop device.
/// assert_eq!(ploop::device::by_mount_point("/proc")?, None);
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn by_mount_point(target: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    let target = target.as_ref();
    let path = CPath::new("find device of mount point", target)?;
    if !may_be_there(target) {
        return Ok(None);
    }
    ffi::device_by_mount(target, &path)
}

/// False for a path that names nothing, about which libploop 7 cannot be asked.
fn may_be_there(target: &Path) -> bool {
    !fs::metadata(target).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// The partition that is mounted here, as `/dev/ploop12345p1` (`ploop_get_partition_by_mnt`). `None` as in
/// [`by_mount_point`].
///
/// # Errors
///
/// Where the mount table cannot be read.
///
/// ```
/// assert_eq!(ploop::device::partition_by_mount_point("/proc")?, None);
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn partition_by_mount_point(target: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    let target = target.as_ref();
    let path = CPath::new("find partition of mount point", target)?;
    if !may_be_there(target) {
        return Ok(None);
    }
    ffi::partition_by_mount(target, &path)
}

/// Where the file system of a device is mounted: what `ploop_get_mnt_by_dev` answers.
///
/// # Errors
///
/// [`InvalidInput`](ErrorKind::InvalidInput) for a device not named like `/dev/ploop12345`;
/// [`NotFound`](ErrorKind::NotFound) for one that does not exist, also without the driver.
///
/// ```no_run
/// if let Some(target) = ploop::device::mount_point("/dev/ploop12345")? {
///     println!("mounted on {}", target.display());
/// }
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn mount_point(device: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    const OPERATION: &str = "find the mount point of";
    let device = device.as_ref();
    device_name(OPERATION, device)?;
    let (table, numbers) = mount_table_and_numbers(OPERATION, device)?;
    Ok(mount_table::mount_point(&table, numbers))
}

/// The partition of a device that has the file system (`ploop_get_part`, with libploop 7): `/dev/ploop12345p1`, or the
/// device itself where it has none. In an encrypted image, the one that is decrypted.
///
/// Needs the driver, and with libploop 7 root.
///
/// # Errors
///
/// As [`mount_point`]. With libploop 7, also where the device cannot be read.
///
/// ```no_run
/// println!("{}", ploop::device::partition("/dev/ploop12345")?.display());
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn partition(device: impl AsRef<Path>) -> Result<PathBuf> {
    const OPERATION: &str = "find the partition of";
    let device = device.as_ref();
    let name = device_name(OPERATION, device)?;
    mount_table_and_numbers(OPERATION, device)?;
    if let Some(found) = ffi::partition_of_device(device, &name) {
        return found;
    }
    let mut partition = device.as_os_str().to_owned();
    partition.push("p1");
    let partition = PathBuf::from(partition);
    match sysfs::is_partition_of(&partition, device) {
        true => Ok(partition),
        false => Ok(device.to_owned()),
    }
}

/// The file system that is mounted from a device or its partition, as it is now: what `ploop_get_fs_info` of libploop 7
/// answers of a running image. [`crate::fs_info`] asks by the descriptor, also of images that are not mounted.
///
/// Asked of the file system by this crate, with every line of libploop. Needs the driver.
///
/// # Errors
///
/// [`NotMounted`](ErrorKind::NotMounted) where nothing is mounted from it; otherwise as [`mount_point`].
///
/// ```no_run
/// let info = ploop::device::fs_info("/dev/ploop12345")?;
/// println!("{} of {} are free", info.free(), info.size());
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn fs_info(device: impl AsRef<Path>) -> Result<FsInfo> {
    const OPERATION: &str = "get file system info of";
    let device = device.as_ref();
    let target = mount_point(device).map_err(|error| error.during(OPERATION))?;
    let Some(target) = target else {
        let why = "no file system is mounted from this device; mount it with a target";
        return Err(Error::new(ErrorKind::NotMounted, OPERATION, why).with_path(device));
    };
    FsInfo::of_mounted(&target).map_err(|error| {
        let what = "the file system does not answer";
        Error::io(OPERATION, what, error).with_path(&target)
    })
}

/// Freezes what is on a device, as before a backup of its files (`ploop_suspend_device`, since 7.0.226): the file system
/// is synced, and writes wait until [`resume`]. A device that is frozen already is no error; one [`resume`] is enough.
///
/// The device stays frozen if the program is killed. Call [`resume`] before any other operation on the image: most of
/// them would wait for it. Needs the driver of Virtuozzo 7 and root; takes as long as the sync.
///
/// # Errors
///
/// [`Unsupported`](ErrorKind::Unsupported) with another libploop; as [`mount_point`]; and
/// [`NoDriver`](ErrorKind::NoDriver) with a driver that cannot freeze devices.
///
/// ```no_run
/// use ploop::device;
///
/// device::suspend("/dev/ploop12345")?;
/// // … copy the deltas …
/// device::resume("/dev/ploop12345")?;
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn suspend(device: impl AsRef<Path>) -> Result<()> {
    set_suspended("suspend device", device.as_ref(), true)
}

/// Thaws what [`suspend`] has frozen (`ploop_resume_device`, since 7.0.226).
///
/// # Errors
///
/// As [`suspend`]. A device that is not frozen is no error.
pub fn resume(device: impl AsRef<Path>) -> Result<()> {
    set_suspended("resume device", device.as_ref(), false)
}

fn set_suspended(operation: &'static str, device: &Path, suspends: bool) -> Result<()> {
    device_name(operation, device)?;
    Feature::Suspend.require(operation, device)?;
    let partition = partition(device).map_err(|error| error.during(operation))?;
    let text = partition.to_str().unwrap_or_default();
    let name = CText::new(operation, "partition", text)?;
    ffi::suspend_device(&partition, &name, suspends)
}

fn mount_table_and_numbers(
    operation: &'static str,
    device: &Path,
) -> Result<(Vec<u8>, (u32, u32))> {
    let numbers = numbers_of(operation, device)?;
    let table = mount_table::read().map_err(|error| {
        Error::io(operation, "the mount table cannot be read", error).with_path(device)
    })?;
    Ok((table, numbers))
}

fn numbers_of(operation: &'static str, device: &Path) -> Result<(u32, u32)> {
    sysfs::numbers(device.file_name().unwrap_or_default())
        .map_err(|error| Error::io(operation, "there is no such device", error).with_path(device))
}

/// The delta that a device writes to.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct TopDelta {
    /// Its file, as the driver has it.
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    pub file: PathBuf,
    /// The driver's name of its format: `ploop1`, or `raw`.
    pub format: String,
}

/// The top delta of a device (`ploop_find_top_delta_name_and_format`).
///
/// # Errors
///
/// As [`mount_point`]; [`NoDriver`](ErrorKind::NoDriver) without the driver.
///
/// ```no_run
/// let top = ploop::device::top_delta("/dev/ploop12345")?;
/// println!("{} ({})", top.file.display(), top.format);
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn top_delta(device: impl AsRef<Path>) -> Result<TopDelta> {
    let device = device.as_ref();
    const OPERATION: &str = "find the top delta of";
    let name = device_name(OPERATION, device)?;
    match ffi::top_delta_of_device(device, &name) {
        Ok((file, format)) => Ok(TopDelta { file, format }),
        // libploop's code is that of a missing driver.
        Err(error) => match numbers_of(OPERATION, device) {
            Err(missing) if kernel::is_driver_present() => Err(missing),
            _ => Err(error),
        },
    }
}

/// Detaches devices without an image that have this component name. A failed mount leaves the name on the device, and
/// the next image on the device would have it, and not be found (A19).
///
/// Such a device may be one to which another program is attaching an image: that program has reserved it. So only those
/// are detached that could be reserved here.
pub(crate) fn clear_component_name(component: &ComponentName) {
    let Ok(mut free) = sysfs::devices("clear component name") else {
        return;
    };
    free.retain(|device| device.deltas.is_empty());
    let mut named: Vec<PathBuf> = free
        .iter()
        .filter(|device| device.component == component.as_str().as_bytes())
        .map(Device::path)
        .collect();
    // The driver gives out its free devices in order, and makes a new one where none is left.
    let mut reserved = Vec::new();
    while !named.is_empty() && reserved.len() < free.len() {
        let Ok((device, reservation)) = sysfs::reserve_device() else {
            return;
        };
        if let Some(at) = named.iter().position(|path| *path == device) {
            // Should it fail, the device is no worse than before.
            let _ = umount(named.swap_remove(at));
        }
        reserved.push(reservation);
    }
}

/// Whether an open file is on the file system of a device.
pub(crate) fn has_file(device: &Path, file: &fs::File) -> io::Result<bool> {
    let (major, minor) = sysfs::numbers(device.file_name().unwrap_or_default())?;
    let found = file.metadata()?.dev();
    let is_found = |minor| rustix::fs::makedev(major, minor) == found;
    Ok(is_found(minor) || is_found(minor + 1))
}

/// `/dev/ploop` and a number: shorter names are over-read (13), longer ones cut (14), others are none
/// of ours.
pub(crate) fn device_name(operation: &'static str, device: &Path) -> Result<CText> {
    let text = device.to_str().unwrap_or_default();
    let number = text.strip_prefix("/dev/ploop").unwrap_or_default();
    if number.is_empty() || number.len() > 9 || !number.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Error::new(
            ErrorKind::InvalidInput,
            operation,
            "a ploop device is named /dev/ploop and a number",
        )
        .with_path(device));
    }
    CText::new(operation, "device", text)
}

/// libploop unmounts whatever is topmost at the mount point of a device (A58), and asks `lsof` through a shell who is to
/// blame where that is busy (23).
pub(crate) fn require_harmless_mount_point(operation: &'static str, device: &Path) -> Result<()> {
    let Ok((table, numbers)) = mount_table_and_numbers(operation, device) else {
        return Ok(());
    };
    let Some(target) = mount_table::mount_point(&table, numbers) else {
        return Ok(());
    };
    if let Some((fs_type, source)) = mount_table::mounted_on_top(&table, numbers) {
        return Err(Error::new(
            ErrorKind::Busy,
            operation,
            format!(
                "a file system of type {fs_type} ({source}) is mounted on top of that of {}, and libploop would unmount it instead; unmount it first",
                device.display()
            ),
        )
        .with_path(&target));
    }
    paths::require_harmless_to_shell(operation, &target)
        .map_err(|error| error.with_advice("unmount the file system with umount(8) first"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_numbers() {
        for good in ["/dev/ploop0", "/dev/ploop12345"] {
            assert!(device_name("test", Path::new(good)).is_ok());
        }
        for bad in [
            "",
            "/",
            "ploop1",
            "/dev/ploop",
            "/dev/ploop1p1",
            "/dev/ploop1234567890",
            "/dev/sda",
            "/dev/ploop1\0",
        ] {
            let error = device_name("test", Path::new(bad)).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::InvalidInput, "{bad}");
        }
    }
}
