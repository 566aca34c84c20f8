//! Devices: which image is where.
//!
//! All of these look into `/sys/block` and `/proc/mounts`. Without the driver there is nothing to
//! find, which is an answer and no error.

use std::path::{Path, PathBuf};

use crate::ffi::{self, CPath, CText, Turn};
use crate::{ComponentName, Error, ErrorKind, Ploop, Result, lock, paths, sysfs};

impl Ploop {
    /// The running device of this image under the handle's [component](Ploop::component)
    /// (`ploop_get_dev`). Needs root.
    ///
    /// # Errors
    ///
    /// As [`Ploop::is_mounted`].
    pub fn device(&mut self) -> Result<Option<PathBuf>> {
        self.image.turn(&Turn::DEVICE)?.device()
    }

    /// All devices of this image, whatever their component (`ploop_get_devs`). Needs root.
    ///
    /// # Errors
    ///
    /// As [`Ploop::is_mounted`].
    pub fn devices(&mut self) -> Result<Vec<PathBuf>> {
        self.image.turn(&Turn::DEVICES)?.devices()
    }
}

/// Unmounts what is on a device, and detaches it (`ploop_umount`). A device that is stopped already
/// is no error.
///
/// [`Ploop::umount`] is to be preferred: this one takes no image's lock, completes no interrupted
/// merge, and leaves no note of the file system's size for [`fs_info`](crate::fs_info). Needs the
/// driver and root.
///
/// # Errors
///
/// [`InvalidInput`](ErrorKind::InvalidInput) for what is not of the form `/dev/ploop12345`,
/// [`NoDriver`](ErrorKind::NoDriver) for a device that does not exist, [`Busy`](ErrorKind::Busy).
pub fn umount(device: impl AsRef<Path>) -> Result<()> {
    const OPERATION: &str = "unmount device";
    let device = device.as_ref();
    let name = device_name(OPERATION, device)?;
    lock::alone_at(OPERATION, device, || {
        harmless_mount_of(OPERATION, device)?;
        ffi::umount_device(device, &name)
    })
}

/// The device that has `base` as its base delta, under a component name or without
/// (`ploop_find_dev`). Needs root.
///
/// # Errors
///
/// [`PermissionDenied`](ErrorKind::PermissionDenied) without root.
pub fn find(base: impl AsRef<Path>, component: Option<&ComponentName>) -> Result<Option<PathBuf>> {
    let base = base.as_ref();
    let c_base = CPath::new("find device", base)?;
    ffi::find_device(component.map(ComponentName::to_c).as_ref(), base, &c_base)
}

/// The device whose file system is mounted here (`ploop_get_dev_by_mnt`).
///
/// # Errors
///
/// Where the mount table cannot be read.
pub fn by_mount_point(target: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    let target = target.as_ref();
    ffi::device_by_mount(target, &CPath::new("find device of mount point", target)?)
}

/// The partition that is mounted here, as `/dev/ploop12345p1` (`ploop_get_partition_by_mnt`).
///
/// # Errors
///
/// Where the mount table cannot be read.
pub fn partition_by_mount_point(target: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    let target = target.as_ref();
    ffi::partition_by_mount(
        target,
        &CPath::new("find partition of mount point", target)?,
    )
}

/// Where the file system of a device is mounted (`ploop_get_mnt_by_dev`).
///
/// # Errors
///
/// [`InvalidInput`](ErrorKind::InvalidInput) for what is not of the form `/dev/ploop12345`; otherwise
/// for a device that does not exist.
pub fn mount_point(device: impl AsRef<Path>) -> Result<Option<PathBuf>> {
    let device = device.as_ref();
    let name = device_name("find mount point of device", device)?;
    ffi::mount_of_device(device, &name)
}

/// The file of a device's top delta, and the name of its format: `ploop1` or `raw`
/// (`ploop_find_top_delta_name_and_format`).
///
/// # Errors
///
/// As [`mount_point`].
pub fn top_delta(device: impl AsRef<Path>) -> Result<(PathBuf, String)> {
    let device = device.as_ref();
    let name = device_name("find top delta of device", device)?;
    ffi::top_delta_of_device(device, &name)
}

/// A device to which nothing could be attached keeps the name it was given, and so does the next image
/// on it, which is then found by nobody (A19). Clears such devices.
pub(crate) fn forget_name(component: &ComponentName) {
    for device in sysfs::devices() {
        if device.deltas.is_empty() && device.component == component.as_str().as_bytes() {
            // Should it fail, the device is no worse than before.
            let _ = umount(device.path());
        }
    }
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

/// libploop asks `lsof` through a shell who is to blame for a busy mount point (23).
pub(crate) fn harmless_mount_of(operation: &'static str, device: &Path) -> Result<()> {
    let Ok(Some(target)) =
        device_name(operation, device).and_then(|name| ffi::mount_of_device(device, &name))
    else {
        return Ok(());
    };
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
