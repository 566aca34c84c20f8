//! Making partition and file system in an image, or on a device, that is empty.

use std::fs;
use std::io::{Seek, SeekFrom};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

use crate::change::{Change, DescriptorWrite};
use crate::create::{CreateFlags, CreateParam, explained};
use crate::device::{clear_component_name, device_name};
use crate::encryption::require_stored;
use crate::ffi::{self, CPath, LockedImage};
use crate::image;
use crate::temporary_mount::TemporaryMount;
use crate::tools::{require_crypt_helper, require_tools_for_fs};
use crate::{
    ClusterSize, ComponentName, Error, ErrorKind, Feature, FormatVersion, FsType, ImageMode, Ploop,
    Result, Size, kernel, lock, sysfs,
};

/// Which file system [`Ploop::init`] and [`init_device`] make. What is not set is as in [`CreateParam`].
///
/// ```
/// use ploop::{CreateFlags, InitParam};
///
/// let param = InitParam::new()
///     .fs_label("data")
///     .flags(CreateFlags::NO_LAZY);
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[must_use]
pub struct InitParam {
    #[cfg_attr(feature = "serde", serde(default))]
    fs: FsType,
    #[cfg_attr(feature = "serde", serde(default))]
    flags: CreateFlags,
    fs_block_size: Option<u32>,
    #[cfg_attr(feature = "serde", serde(default))]
    without_partition: bool,
    fs_label: Option<String>,
    encryption_key: Option<String>,
}

impl InitParam {
    /// An ext4 file system in a GPT partition.
    pub fn new() -> InitParam {
        InitParam::default()
    }

    /// The file system to make.
    pub fn fs(mut self, fs: FsType) -> InitParam {
        self.fs = fs;
        self
    }

    /// How the file system is made: [`NO_LAZY`](CreateFlags::NO_LAZY).
    pub fn flags(mut self, flags: CreateFlags) -> InitParam {
        self.flags = flags;
        self
    }

    /// The block size of the file system in bytes: 1024, 2048 or 4096, which is the default.
    pub fn fs_block_size(mut self, bytes: u32) -> InitParam {
        self.fs_block_size = Some(bytes);
        self
    }

    /// Whether the file system fills the disk without a partition table.
    pub fn without_partition(mut self, without: bool) -> InitParam {
        self.without_partition = without;
        self
    }

    /// The label of the file system, at most 16 bytes.
    pub fn fs_label(mut self, label: &str) -> InitParam {
        self.fs_label = Some(label.to_owned());
        self
    }

    /// Encrypt the image, with the key of this name: [`CreateParam::encryption_key`]. Not for [`init_device`].
    pub fn encryption_key(mut self, key: &str) -> InitParam {
        self.encryption_key = Some(key.to_owned());
        self
    }

    /// What would make a new image with this file system.
    fn creation(&self, file: &Path, size: Size, cluster: ClusterSize) -> CreateParam {
        let mut param = CreateParam::new(file, size)
            .cluster(cluster)
            .fs(Some(self.fs))
            .flags(self.flags)
            .without_partition(self.without_partition);
        if let Some(bytes) = self.fs_block_size {
            param = param.fs_block_size(bytes);
        }
        if let Some(label) = &self.fs_label {
            param = param.fs_label(label);
        }
        if let Some(key) = &self.encryption_key {
            param = param.encryption_key(key);
        }
        param
    }
}

/// The checks of a creation that this one needs. The format of the image, which is there, is none of its business.
fn check(operation: &'static str, param: &CreateParam) -> Result<()> {
    param.checked(operation)?;
    param.require_room_for_fs(operation)?;
    kernel::require_tools_or_driver(|| require_tools_for_fs(operation))
}

impl Ploop {
    /// Makes a partition, a file system and the balloon in an image that was [created](CreateParam::fs) without, or whose
    /// disk is empty again (`ploop_init_image`).
    ///
    /// The image may not be attached. libploop attaches and detaches it. Since libploop 7.0.106. Needs the driver, root,
    /// and the tools `sgdisk`, `partprobe`, `mkfs.ext4` and `tune2fs`, and takes as long as they do.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where the first or the last MiB of the disk is not zero: libploop would
    /// make the file system over what is there; [`InvalidInput`](ErrorKind::InvalidInput) for a disk that is [too
    /// small](CreateParam::fs); [`Unsupported`](ErrorKind::Unsupported) for an image that is encrypted already, and with
    /// another libploop; [`Busy`](ErrorKind::Busy) while attached, [`Tool`](ErrorKind::Tool) where a tool is missing,
    /// [`NoSpace`](ErrorKind::NoSpace). After an error of a tool the image is detached, and the disk may have a partition
    /// table and a part of a file system. After a kill it may stay attached: [`umount`](Ploop::umount) detaches it.
    ///
    /// ```no_run
    /// use ploop::{InitParam, Ploop};
    ///
    /// let mut image = Ploop::open("/vz/private/101/data.hdd/DiskDescriptor.xml")?;
    /// image.init(&InitParam::new().fs_label("data"))?;
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn init(&mut self, param: &InitParam) -> Result<()> {
        let mut handle = self.image.another();
        // Under a name libploop does not rewrite an image of format v1.
        let component = ComponentName::for_one_call();
        if ffi::upgrades_v1_at_mount() {
            handle.set_component(Some(component.clone()));
        }
        let change = Change::begin(&handle, &LockedImage::INIT)?;
        let operation = change.operation();
        Feature::Init.require(operation, change.path())?;
        let descriptor = &change.descriptor;
        let creation = param.creation(change.path(), descriptor.size, descriptor.cluster);
        check(operation, &creation)?;
        if descriptor.encryption.is_some() {
            return change.refuse(
                ErrorKind::Unsupported,
                "the image is encrypted, and libploop would write to it in clear text; decrypt it, or make a new one",
            );
        }
        let key = param.encryption_key.as_deref();
        if key.is_some() {
            require_crypt_helper(operation, change.path())?;
        }
        if let Some(device) = change.any_device() {
            return change.refuse_attached(device, "libploop is to attach it");
        }
        let top = descriptor.top;
        change.require_attachable(top)?;
        change.require_of_no_other_image(&[top])?;
        let disk = image::OpenOptions::new()
            .open_descriptor(descriptor, top)
            .map_err(|error| error.during(operation).with_path(change.path()))?;
        require_empty(
            operation,
            change.path(),
            disk.size().bytes(),
            |buffer, offset| disk.read_at(buffer, offset).map(drop),
        )?;
        drop(disk);
        kernel::require_driver(operation, change.path())?;
        let path = CPath::new(operation, change.path())?;
        let texts = creation.texts(operation)?;
        // C takes mode, size and format from the image.
        let args = creation.args(&path, &texts, descriptor.mode, FormatVersion::V1);
        let leftover = TemporaryMount::beside(descriptor);
        let result = change.run(DescriptorWrite::Maybe, |locked| {
            let locked = locked.init(&args)?;
            require_stored(&locked, &locked.descriptor()?, key)
        });
        if result.is_err() {
            leftover.remove();
            clear_component_name(&component);
        }
        result.map_err(explained)
    }
}

/// Makes a partition and a file system on a device that runs, without a balloon (`ploop_init_device`).
///
/// The device belongs to an image that was mounted without a target. The program mounts the file system by itself:
/// libploop 7 mounts none that has no balloon. With libploop 7, since 7.0.106. Needs the driver, root, and the tools of
/// [`Ploop::init`], and takes as long as they do.
///
/// # Errors
///
/// As [`Ploop::init`]; [`Busy`](ErrorKind::Busy) for a device that is mounted or otherwise in use,
/// [`InvalidInput`](ErrorKind::InvalidInput) for one not named like `/dev/ploop12345`, and with a key. After an error of a
/// tool the disk may have a partition table and a part of a file system.
///
/// ```no_run
/// use ploop::{InitParam, MountParam, Ploop, device, init_device};
///
/// let mut image = Ploop::open("/vz/private/101/data.hdd/DiskDescriptor.xml")?;
/// let mounted = image.mount(&MountParam::new())?;
/// init_device(&mounted.device, &InitParam::new())?;
/// println!("mount {}", device::partition(&mounted.device)?.display());
/// # Ok::<(), ploop::Error>(())
/// ```
pub fn init_device(device: impl AsRef<Path>, param: &InitParam) -> Result<()> {
    const OPERATION: &str = "make a file system on";
    let device = device.as_ref();
    let name = device_name(OPERATION, device)?;
    let refuse = |kind, why: &str| Err(Error::new(kind, OPERATION, why).with_path(device));
    Feature::Init.require(OPERATION, device)?;
    if param.encryption_key.is_some() {
        let why = "a device cannot be encrypted; detach the image and use Ploop::init";
        return refuse(ErrorKind::InvalidInput, why);
    }
    let failed = |error| Error::io(OPERATION, "it cannot be read", error).with_path(device);
    lock::with_lock_of(OPERATION, device, || {
        // Fails where it is mounted.
        let opened = fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::EXCL.bits() as i32)
            .open(device)
            .map_err(failed)?;
        let size = (&opened).seek(SeekFrom::End(0)).map_err(failed)?;
        if size == 0 {
            return refuse(ErrorKind::NotMounted, "no image is attached to this device");
        }
        let top = sysfs::top_delta(device.file_name().unwrap_or_default()).map_err(failed)?;
        let cluster = ClusterSize::from_bytes(top.cluster)?;
        let creation = param.creation(device, Size::from_bytes(size), cluster);
        check(OPERATION, &creation)?;
        require_empty(OPERATION, device, size, |buffer, offset| {
            opened.read_exact_at(buffer, offset).map_err(failed)
        })?;
        drop(opened);
        let path = CPath::new(OPERATION, device)?;
        let texts = creation.texts(OPERATION)?;
        let args = creation.args(&path, &texts, ImageMode::Expanded, FormatVersion::V1);
        ffi::init_device(device, &name, &args).map_err(explained)
    })
}

/// How much is looked at on either end: partition tables and the superblocks of file systems are there.
const LOOKED_AT: u64 = 1 << 20;

/// Requires that the disk begins and ends with zeros.
fn require_empty(
    operation: &'static str,
    path: &Path,
    size: u64,
    read: impl Fn(&mut [u8], u64) -> Result<()>,
) -> Result<()> {
    let len = size.min(LOOKED_AT);
    let mut buffer = vec![0; len as usize];
    for offset in [0, size - len] {
        read(&mut buffer, offset).map_err(|error| error.during(operation).with_path(path))?;
        if let Some(at) = buffer.iter().position(|byte| *byte != 0) {
            let why = format!(
                "the disk is not empty: there is data at offset {}, which would be lost; discard or overwrite what is on it",
                offset + at as u64
            );
            return Err(Error::new(ErrorKind::AlreadyExists, operation, why).with_path(path));
        }
    }
    Ok(())
}
