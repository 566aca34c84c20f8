//! Making an image.

use std::fs;
use std::path::{Path, PathBuf};

use bitflags::bitflags;

use crate::change::require_known_flags;
use crate::durability::{sync_directories, sync_files};
use crate::encryption::fault_of_key;
use crate::ffi::{self, CPath, CText, CreateArgs, LockedImage};
use crate::image::descriptor::DescriptorFile;
use crate::image::recovery::creation;
use crate::image::staging_directory::{Destination, StagingDirectory};
use crate::lock;
use crate::tools::{require_crypt_helper, require_tools_for_fs};
use crate::{
    ClusterSize, Code, ComponentName, Descriptor, Error, ErrorKind, Feature, FormatVersion, FsType,
    ImageMode, Ploop, Result, Size, kernel, paths,
};

const OPERATION: &str = "create image";

bitflags! {
    /// How [`Ploop::create`] makes the image and its file system.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
    #[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
    pub struct CreateFlags: u32 {
        /// Initialise the inode tables at once, not later in the background.
        const NO_LAZY = ffi::CREATE_NO_LAZY;
        /// Write no zeros to a [raw](ImageMode::Raw) image: its file has no space on the disk of the host where nothing
        /// was written. When libploop mounts the image from ext4, as it does to make a file system, it fills the holes.
        /// Since libploop 7.0.121; see [`Feature::SparseRaw`].
        const SPARSE = ffi::CREATE_SPARSE;

        // Bits that a later libploop may know are kept.
        const _ = !0;
    }
}

impl CreateFlags {
    /// What libploop knows. It ignores others.
    const KNOWN: CreateFlags = CreateFlags::NO_LAZY.union(CreateFlags::SPARSE);
}

/// What [`Ploop::create`] makes.
///
/// ```
/// use ploop::{ClusterSize, CreateParam, ImageMode, Size};
///
/// let bare = CreateParam::new("/vz/private/101/root.hdd/root.hds", Size::from_gib(10))
///     .mode(ImageMode::Preallocated)
///     .cluster(ClusterSize::from_bytes(256 << 10)?)
///     .fs(None);
/// # Ok::<(), ploop::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[must_use]
pub struct CreateParam {
    #[cfg_attr(feature = "serde", serde(with = "crate::stored::paths"))]
    file: PathBuf,
    size: Size,
    #[cfg_attr(feature = "serde", serde(default))]
    mode: ImageMode,
    #[cfg_attr(feature = "serde", serde(default))]
    cluster: ClusterSize,
    #[cfg_attr(feature = "serde", serde(default))]
    flags: CreateFlags,
    #[cfg_attr(feature = "serde", serde(default = "default_fs"))]
    fs: Option<FsType>,
    format: Option<FormatVersion>,
    fs_block_size: Option<u32>,
    #[cfg_attr(feature = "serde", serde(default))]
    without_partition: bool,
    fs_label: Option<String>,
    encryption_key: Option<String>,
}

/// The room for a label in the superblock of ext4.
const MAX_LABEL: usize = 16;

fn default_fs() -> Option<FsType> {
    Some(FsType::default())
}

impl CreateParam {
    /// An image of this size, rounded up to a whole cluster, whose base delta is `file`, in a directory that exists.
    /// The rest is as in goploop: expanded, clusters of 1 MiB, an ext4 file system in a GPT partition, and the newest
    /// format that the driver knows.
    pub fn new(file: impl AsRef<Path>, size: Size) -> CreateParam {
        CreateParam {
            file: file.as_ref().to_owned(),
            size,
            mode: ImageMode::default(),
            cluster: ClusterSize::DEFAULT,
            flags: CreateFlags::empty(),
            fs: default_fs(),
            format: None,
            fs_block_size: None,
            without_partition: false,
            fs_label: None,
            encryption_key: None,
        }
    }

    /// The file of the base delta.
    #[must_use]
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The size of the disk, before it is rounded up.
    #[must_use]
    pub fn size(&self) -> Size {
        self.size
    }

    /// How the base stores its clusters.
    pub fn mode(mut self, mode: ImageMode) -> CreateParam {
        self.mode = mode;
        self
    }

    /// The size of a cluster.
    pub fn cluster(mut self, cluster: ClusterSize) -> CreateParam {
        self.cluster = cluster;
        self
    }

    /// How the file system is made.
    pub fn flags(mut self, flags: CreateFlags) -> CreateParam {
        self.flags = flags;
        self
    }

    /// The file system to make. `None` makes a bare image; only that works without the driver.
    ///
    /// libploop makes each file system with a journal of 128 MiB, and mke2fs lets a journal have no more than
    /// half of the free blocks. So a file system takes 264.02 MiB (with blocks of 2 KiB 261.02, of 1 KiB
    /// 258.04) in whole clusters, and two more are around its partition. [`Ploop::create`] refuses less.
    ///
    /// | clusters of | 32 KiB | 256 KiB | 1 MiB | 4 MiB | 16 MiB | 64 MiB |
    /// |---|---|---|---|---|---|---|
    /// | smallest size in MiB | 264.09375 | 264.75 | 267 | 276 | 304 | 448 |
    pub fn fs(mut self, fs: Option<FsType>) -> CreateParam {
        self.fs = fs;
        self
    }

    /// The version of the format. Unless set, [`V2`](FormatVersion::V2) where the driver supports
    /// large disks, else, and without the driver, [`V1`](FormatVersion::V1).
    pub fn format(mut self, format: FormatVersion) -> CreateParam {
        self.format = Some(format);
        self
    }

    /// The block size of the file system in bytes: 1024, 2048 or 4096, which is the default.
    pub fn fs_block_size(mut self, bytes: u32) -> CreateParam {
        self.fs_block_size = Some(bytes);
        self
    }

    /// Whether the file system fills the disk without a partition table.
    pub fn without_partition(mut self, without: bool) -> CreateParam {
        self.without_partition = without;
        self
    }

    /// The label of the file system, at most 16 bytes.
    ///
    /// Since libploop 7.0.88; see [`Feature::FsLabel`].
    pub fn fs_label(mut self, label: &str) -> CreateParam {
        self.fs_label = Some(label.to_owned());
        self
    }

    /// Encrypt the image, with the key of this name. [`Ploop::encrypt`] encrypts one that is there, and tells what that
    /// takes. Only an image with a file system can be made in this way.
    ///
    /// Since libploop 7.0.43; see [`Feature::Encryption`].
    pub fn encryption_key(mut self, key: &str) -> CreateParam {
        self.encryption_key = Some(key.to_owned());
        self
    }

    /// The format that will be used, and that the sizes are within its limits. libploop checks them
    /// only where it makes a file system, and otherwise makes an image of another size (29, 30).
    pub(crate) fn checked(&self, operation: &'static str) -> Result<FormatVersion> {
        let refuse = |kind, message: String| {
            Err(Error::new(kind, operation, message)
                .with_path(&self.file)
                .with_code(Code::PARAM.get()))
        };
        require_known_flags(operation, &self.file, self.flags, CreateFlags::KNOWN)?;
        if self.flags.contains(CreateFlags::SPARSE) {
            Feature::SparseRaw.require(operation, &self.file)?;
            if self.mode != ImageMode::Raw {
                return refuse(
                    ErrorKind::InvalidInput,
                    format!(
                        "the flag SPARSE is for raw images; one that is {} is given space as it is written to",
                        self.mode
                    ),
                );
            }
        }
        if let Some(label) = &self.fs_label {
            Feature::FsLabel.require(operation, &self.file)?;
            if self.fs.is_none() {
                return refuse(
                    ErrorKind::InvalidInput,
                    "there is no file system to be labelled".into(),
                );
            }
            if label.is_empty() || label.len() > MAX_LABEL || label.chars().any(char::is_control) {
                return refuse(
                    ErrorKind::InvalidInput,
                    format!(
                        "{label:?} is no label of an ext4 file system: it has 1 to {MAX_LABEL} bytes, and no control characters"
                    ),
                );
            }
        }
        if let Some(key) = &self.encryption_key {
            Feature::Encryption.require(operation, &self.file)?;
            if self.fs.is_none() {
                return refuse(
                    ErrorKind::InvalidInput,
                    "libploop encrypts an image when it makes the file system in it, and none is to be made".into(),
                );
            }
            if let Some(fault) = fault_of_key(key) {
                return refuse(ErrorKind::InvalidInput, fault);
            }
        }
        let large = kernel::is_large_disk_supported();
        let format = match self.format {
            None if large => FormatVersion::V2,
            None => FormatVersion::V1,
            Some(FormatVersion::V2) if !large => {
                return refuse(
                    ErrorKind::Unsupported,
                    "format v2 needs a ploop driver with large disk support, which is not loaded; use v1, or see ploop::load_kernel_modules".into(),
                );
            }
            Some(format) => format,
        };
        let max = kernel::max_size_of(format, self.cluster, self.fs);
        if self.size.is_zero() {
            return refuse(ErrorKind::InvalidInput, "the size is zero".into());
        }
        if self.size > max {
            return refuse(
                ErrorKind::InvalidInput,
                format!(
                    "the size {} is above {max}, the maximum for format {format}, clusters of {} and {}",
                    self.size,
                    self.cluster,
                    self.fs
                        .map_or("no file system".to_owned(), |fs| fs.to_string()),
                ),
            );
        }
        if let Some(bytes) = self
            .fs_block_size
            .filter(|bytes| ![1024, 2048, 4096].contains(bytes))
        {
            return refuse(
                ErrorKind::InvalidInput,
                format!("the file system's block size is {bytes}; it must be 1024, 2048 or 4096"),
            );
        }
        Ok(format)
    }

    /// Why no volume can be made of such an image: none could stand upon it.
    pub(crate) fn fault_of_volume(&self) -> Option<&'static str> {
        match (self.mode, &self.encryption_key) {
            (ImageMode::Raw, _) => {
                Some("volumes cannot stand upon a raw image; choose another mode")
            }
            (_, Some(_)) => Some("volumes cannot stand upon an encrypted image"),
            _ => None,
        }
    }

    /// That the journal fits. libploop leaves that to mke2fs, when all else is done.
    pub(crate) fn require_room_for_fs(&self, operation: &'static str) -> Result<()> {
        let Some(fs) = self.fs else {
            return Ok(());
        };
        let smallest = self.smallest_with_fs();
        let cluster = self.cluster.bytes();
        if self.size.bytes().div_ceil(cluster) * cluster >= smallest.bytes() {
            return Ok(());
        }
        Err(Error::new(
            ErrorKind::InvalidInput,
            operation,
            format!(
                "the size {} is too small for {fs} with its journal of 128 MiB: the smallest with clusters of {} is {smallest} ({} bytes)",
                self.size,
                self.cluster,
                smallest.bytes()
            ),
        )
        .with_path(&self.file)
        .with_code(Code::PARAM.get()))
    }

    /// mke2fs gives a journal half of the blocks that are free, at most. By then it has set aside those of
    /// superblocks and group descriptors, and for as many descriptors more as their inode has room for, which is
    /// what libploop asks for. Whatever its configuration adds, it never takes less.
    fn smallest_with_fs(&self) -> Size {
        let block = self.fs_block_size.unwrap_or(4096);
        let blocks = match block {
            // One at the boot block, and 8 of 33 groups have a superblock, 3 blocks of descriptors and 256 reserved.
            1024 => 262_144 + 1 + 8 * (1 + 3 + 256),
            // 5 of 9 groups.
            2048 => 131_072 + 5 * (1 + 1 + 512),
            // 2 of 3 groups.
            _ => 65_536 + 2 * (1 + 1 + 1024),
        };
        let cluster = self.cluster.bytes();
        // The partition begins with the second cluster, and ends before the last.
        let before = match ffi::LINE.aligns_partitions {
            true => (1 << 20) / cluster.min(1 << 20),
            false => 1,
        };
        let around = if self.without_partition {
            0
        } else {
            before + 1
        };
        let clusters = (blocks * u64::from(block)).div_ceil(cluster) + around;
        Size::from_bytes(clusters * cluster)
    }

    pub(crate) fn args<'a>(
        &self,
        image: &'a CPath,
        texts: &'a CreateTexts,
        mode: ImageMode,
        format: FormatVersion,
    ) -> CreateArgs<'a> {
        CreateArgs {
            image,
            size: self.size.sectors(),
            mode,
            fs_type: texts.fs.as_ref(),
            fs_label: texts.fs_label.as_ref(),
            encryption_key: texts.encryption_key.as_ref(),
            without_partition: self.without_partition,
            block_size: self.cluster.sectors(),
            fs_block_size: self.fs_block_size.unwrap_or(0),
            version: format.number(),
            flags: self.flags.bits(),
        }
    }

    pub(crate) fn texts(&self, operation: &'static str) -> Result<CreateTexts> {
        let text = |what, text: Option<&str>| {
            text.map(|text| CText::new(operation, what, text))
                .transpose()
        };
        Ok(CreateTexts {
            fs: text("file system type", self.fs.map(|fs| fs.as_str()))?,
            fs_label: text("label", self.fs_label.as_deref())?,
            encryption_key: text("name of the key", self.encryption_key.as_deref())?,
        })
    }
}

/// The texts of a creation, for C.
pub(crate) struct CreateTexts {
    fs: Option<CText>,
    fs_label: Option<CText>,
    encryption_key: Option<CText>,
}

impl Ploop {
    /// Makes an image and its `DiskDescriptor.xml` in the same directory, and opens it
    /// (`ploop_create_image`).
    ///
    /// Both are made in a hidden directory beside them, and moved to their place when they are complete, the descriptor
    /// last. So nobody sees half an image, and no file is replaced.
    ///
    /// With a file system this needs the driver, root, and the tools `parted`, `mkfs.ext4` and `tune2fs`, and takes
    /// as long as they do. Preallocated and raw images write or allocate their whole size. A raw image is made as an
    /// expanded one and converted, since libploop closes a file descriptor twice when it
    /// makes one itself.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where the image or a descriptor is there,
    /// [`InvalidInput`](ErrorKind::InvalidInput) for a size the format cannot hold or that is [too small for the file
    /// system](CreateParam::fs), and for a name libploop could not use (see [the
    /// manual](crate::manual::_11_trust_and_paths#paths)), [`NotFound`](ErrorKind::NotFound) for a missing directory,
    /// [`NoDriver`](ErrorKind::NoDriver) and [`Tool`](ErrorKind::Tool) with a file system,
    /// [`NoSpace`](ErrorKind::NoSpace). After an error nothing is left; `kill -9` or a power cut may leave a
    /// directory `.ploop-create-…`, which does not hinder another try, and which [`Ploop::remove_leftovers`] removes.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// use ploop::{CreateParam, Ploop, Size};
    ///
    /// let param = CreateParam::new(dir.path().join("root.hds"), Size::from_gib(10));
    /// // With a file system, which takes the driver and root, leave this out.
    /// let image = Ploop::create(&param.fs(None))?;
    /// assert_eq!(image.descriptor()?.size, Size::from_gib(10));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn create(param: &CreateParam) -> Result<Ploop> {
        let destination = destination_of(OPERATION, &param.file)?;
        let format = param.checked(OPERATION)?;
        param.require_room_for_fs(OPERATION)?;
        if param.encryption_key.is_some() {
            require_crypt_helper(OPERATION, &param.file)?;
        }
        if param.fs.is_some() {
            kernel::require_tools_or_driver(|| require_tools_for_fs(OPERATION))?;
        }
        let _write_signals = ffi::WriteSignalsBlocked::begin();
        lock::with_lock_of(OPERATION, &destination.descriptor, || {
            creation::remove_unfinished(&destination.image, &destination.descriptor);
            destination.require_free()?;
            let staging = StagingDirectory::open(&destination)?;
            make_in(&staging, param, format)?;
            staging.deliver(&destination)
        })?;
        Ploop::open(&destination.descriptor)
    }

    /// Writes a descriptor for a base delta, and opens it (`ploop_create_dd`). The delta is not touched, and need not
    /// be there yet. Size, mode, cluster and format of `param` must be those of the delta.
    ///
    /// `descriptor` may have any name. Needs no driver.
    ///
    /// # Errors
    ///
    /// [`AlreadyExists`](ErrorKind::AlreadyExists) where `descriptor` is there; otherwise as
    /// [`Ploop::create`]. After an error there is no new descriptor, or a whole one that could not be synced.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # ploop::Ploop::create(&param.fs(None))?;
    /// use ploop::{CreateParam, Ploop, Size};
    ///
    /// // A descriptor was lost: the delta is still there.
    /// std::fs::remove_file(dir.path().join("DiskDescriptor.xml")).unwrap();
    /// let param = CreateParam::new(dir.path().join("root.hds"), Size::from_mib(64)).fs(None);
    /// let image = Ploop::create_descriptor(dir.path().join("DiskDescriptor.xml"), &param)?;
    /// assert_eq!(image.image_info()?.size(), Size::from_mib(64));
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn create_descriptor(descriptor: impl AsRef<Path>, param: &CreateParam) -> Result<Ploop> {
        let descriptor = descriptor.as_ref();
        create_descriptor(descriptor, param)
            .map_err(|error| error.with_paths(descriptor, &param.file))?;
        Ploop::open(descriptor)
    }
}

fn create_descriptor(descriptor: &Path, param: &CreateParam) -> Result<()> {
    const OPERATION: &str = "create descriptor";
    let destination = destination_of(OPERATION, descriptor)?;
    let image = destination_of(OPERATION, &param.file)?.image;
    paths::require_new_delta_path(OPERATION, &image, &destination.directory)?;
    paths::require_own_side_files(OPERATION, &destination.image, [image.as_path()])?;
    let format = param.checked(OPERATION)?;
    if param.encryption_key.is_some() {
        return Err(Error::new(
            ErrorKind::Unsupported,
            OPERATION,
            "libploop does not write the name of a key to a new descriptor; make it without, and use Ploop::set_encryption_key",
        )
        .with_path(descriptor));
    }
    let _write_signals = ffi::WriteSignalsBlocked::begin();
    lock::with_lock_of(OPERATION, &destination.image, || {
        if fs::symlink_metadata(&destination.image).is_ok() {
            return Err(destination.exists(&destination.image));
        }
        let staging = StagingDirectory::open(&destination)?;
        let made = &staging.descriptor;
        // A name that begins with the descriptor's directory is stored without it.
        let made_image = match image.strip_prefix(&destination.directory) {
            Ok(inside) => staging.directory.join(inside),
            Err(_) => image.clone(),
        };
        let c_descriptor = CPath::new(OPERATION, made)?;
        let c_image = CPath::new(OPERATION, &made_image)?;
        let texts = param.texts(OPERATION)?;
        let args = param.args(&c_image, &texts, param.mode, format);
        ffi::create_descriptor(&destination.image, &c_descriptor, &args)?;
        // libploop also reports success where it could not write it (25).
        let mut file = DescriptorFile::read_as(made, ffi::descriptor_form())?;
        // Some lines store a name that is relative to where the descriptor was made.
        for base in &mut file.descriptor.images {
            base.file = image.clone();
        }
        let directory = &destination.directory;
        let xml = file.descriptor.to_xml_with(&file.unknown, directory)?;
        if xml.as_bytes() != file.text {
            fs::write(made, xml)
                .map_err(|error| Error::io(OPERATION, "it cannot be written", error))?;
        }
        destination.move_new(made, &destination.image)?;
        sync_files(OPERATION, [&*destination.image])?;
        sync_directories(OPERATION, [&*destination.directory])
    })
    .map_err(|error| error.during(OPERATION))
}

/// Where an image is to be made, so that libploop can use the paths.
fn destination_of(operation: &'static str, file: &Path) -> Result<Destination> {
    let image = paths::of_new_file(operation, file)?;
    let destination = Destination::of(operation, image);
    let directory = &destination.directory;
    paths::require_new_delta_path(operation, &destination.image, directory)?;
    // What is made beside it and of it must fit as well.
    let name = destination.image.file_name().unwrap_or_default();
    let longest = directory.join(StagingDirectory::NAME_OF_MAX_LEN).join(name);
    paths::require_c_path(operation, &longest)?;
    if operation == OPERATION {
        destination.require_other_name_than_descriptor()?;
    }
    Ok(destination)
}

/// Adds advice to the error of an mke2fs that needs more room for the journal than others.
pub(crate) fn explained(error: Error) -> Error {
    let output = error.output().unwrap_or_default();
    if output.contains("ournal size too big") {
        return error.with_advice(
            "libploop wants a journal of 128 MiB, for which the mke2fs of this system finds no room; make the image larger",
        );
    }
    error
}

/// Makes an image of format v1 with a file system, where libploop rewrites such an image to v2 when it attaches it. It
/// does not do so under a component name.
fn make_v1_in(
    staging: &StagingDirectory,
    param: &CreateParam,
    args: &CreateArgs<'_>,
) -> Result<()> {
    let bare = CreateArgs {
        fs_type: None,
        ..*args
    };
    ffi::create_image(OPERATION, &param.file, &bare)?;
    let component = ComponentName::for_one_call();
    let mut image = ffi::ImageHandle::open(OPERATION, &staging.descriptor)?;
    image.set_component(Some(component.clone()));
    let made = image
        .lock(&LockedImage::INIT_NEW)
        .and_then(|locked| locked.init(args).map(drop));
    if made.is_err() {
        crate::device::clear_component_name(&component);
    }
    made.map_err(|error| explained(error.with_path(&param.file)))
}

fn make_in(staging: &StagingDirectory, param: &CreateParam, format: FormatVersion) -> Result<()> {
    let converts = param.mode == ImageMode::Raw && !param.flags.contains(CreateFlags::SPARSE);
    // 19: raw creation closes a descriptor twice, and in a threaded program perhaps another's. So does that of a sparse
    // image, which there is no other way to make; the process of C has no other threads.
    let mode = match converts {
        true => ImageMode::Expanded,
        false => param.mode,
    };
    let c_image = CPath::new(OPERATION, &staging.image)?;
    let texts = param.texts(OPERATION)?;
    let args = param.args(&c_image, &texts, mode, format);
    if param.fs.is_some() && format == FormatVersion::V1 && ffi::upgrades_v1_at_mount() {
        make_v1_in(staging, param, &args)?;
    } else {
        ffi::create_image(OPERATION, &param.file, &args).map_err(explained)?;
    }
    // libploop also reports success where it could not write the descriptor (25).
    let made = Descriptor::open(&staging.descriptor).map_err(|error| error.during(OPERATION))?;
    if made.encryption != param.encryption_key {
        return Err(Error::new(
            ErrorKind::Io,
            OPERATION,
            "libploop did not write the name of the key to the descriptor, and did not say so",
        )
        .with_path(&param.file));
    }
    if converts {
        let image = ffi::ImageHandle::open(OPERATION, &staging.descriptor)?;
        crate::convert::convert(&image, &LockedImage::CONVERT_NEW, ImageMode::Raw)
            .map_err(|error| error.during(OPERATION).with_path(&param.file))?;
    }
    Ok(())
}
