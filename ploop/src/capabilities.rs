//! What can be done here: the version and line of libploop, the driver, the tools; and the features that not every
//! version of libploop has.

use std::ffi::CStr;
use std::fmt;
use std::path::{Path, PathBuf};

use crate::ffi::{self, LINE};
use crate::{Error, ErrorKind, FormatVersion, Result, kernel, tools};

/// What can be done here: see [`capabilities`].
///
/// ```
/// use ploop::Feature;
///
/// let here = ploop::capabilities();
/// println!("libploop {} (line {})", here.library.version, here.library.line);
/// if !here.driver.present {
///     println!("bare images only");
/// }
/// assert_eq!(here.has(Feature::Tracking), here.features.contains(&Feature::Tracking));
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Capabilities {
    /// The C library.
    pub library: Library,
    /// The kernel driver.
    pub driver: Driver,
    /// The formats in which new images and deltas can be made.
    pub formats: Vec<FormatVersion>,
    /// What this version of libploop has beyond what all have.
    pub features: Vec<Feature>,
    /// The programs that libploop starts, and where they are.
    pub tools: Vec<Tool>,
}

impl Capabilities {
    /// Whether this version of libploop has a feature.
    #[must_use]
    pub fn has(&self, feature: Feature) -> bool {
        self.features.contains(&feature)
    }
}

/// The libploop of this program.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Library {
    /// The version with which the program was built, such as `7.0.280`; at least this one, where only the library told it, and
    /// no .pc file. The one that is loaded may be another of the same
    /// line.
    pub version: String,
    /// The soname, such as `libploop.so.7`.
    pub soname: String,
    /// The line: 1 for 1.12 to 1.15, 7 for 7.0.
    pub line: u32,
    /// The file that is loaded, under the name by which the dynamic linker found it; a statically linked program's own.
    #[cfg_attr(feature = "serde", serde(default, with = "crate::stored::paths"))]
    pub file: Option<PathBuf>,
}

/// The kernel driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Driver {
    /// Whether it is loaded: [`is_driver_present`](kernel::is_driver_present).
    pub present: bool,
    /// Whether it knows format version 2: [`is_large_disk_supported`](kernel::is_large_disk_supported).
    pub large_disks: bool,
}

/// A program that libploop starts.
#[derive(Debug, Clone, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct Tool {
    /// Its name, such as `mkfs.ext4`.
    pub name: String,
    /// Where libploop finds it; `None` where it is not installed, or not in a directory in which libploop looks.
    #[cfg_attr(feature = "serde", serde(default, with = "crate::stored::paths"))]
    pub path: Option<PathBuf>,
}

/// What some versions of libploop have, and others do not. Where it is missing, the calls in question fail with
/// [`Unsupported`](ErrorKind::Unsupported).
///
/// Versions of one line are told apart by the functions that they export. What came without a new function counts as
/// there from the next version on that has one.
///
/// | feature | since | counts as there from |
/// |---|---|---|
/// | [`UmountTimeout`](Feature::UmountTimeout) | 7.0.92 | 7.0.95, the first that this crate takes |
/// | [`Tracking`](Feature::Tracking) | 7.0.32 | 7.0.95 |
/// | [`Encryption`](Feature::Encryption), [`FsLabel`](Feature::FsLabel) | 7.0.58, 7.0.88 | 7.0.95 |
/// | [`SparseRaw`](Feature::SparseRaw) | 7.0.121 | 7.0.138 |
/// | [`FsckFlags`](Feature::FsckFlags) | 7.0.158 | 7.0.163.2 |
/// | [`Volumes`](Feature::Volumes): 7.0.95 and 7.0.96 have the functions, and drop `Volume` from descriptors | 7.0.97 | 7.0.104 |
/// | [`ReadOnlyFsck`](Feature::ReadOnlyFsck), [`NoProbe`](Feature::NoProbe) | 7.0.265, 7.0.274 | 7.0.277.1 |
///
/// [`Suspend`](Feature::Suspend) is there from 7.0.226 on, and [`Init`](Feature::Init) from 7.0.106 on, in which their
/// functions are new.
///
/// With `serde`, a feature that this version of the crate does not know cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Feature {
    /// [`Ploop::set_umount_timeout`](crate::Ploop::set_umount_timeout).
    UmountTimeout,
    /// [`SnapshotParam::tracking`](crate::SnapshotParam::tracking), and
    /// [`Ploop::drop_tracking`](crate::Ploop::drop_tracking) on a running image.
    Tracking,
    /// [`FsckFlags::FORCE`](crate::FsckFlags::FORCE) and [`FORCE_REPAIR`](crate::FsckFlags::FORCE_REPAIR).
    FsckFlags,
    /// [`FsckFlags::RO`](crate::FsckFlags::RO).
    ReadOnlyFsck,
    /// [`MountParam::no_probe`](crate::MountParam::no_probe).
    NoProbe,
    /// [`Ploop::encrypt`](crate::Ploop::encrypt), [`Ploop::set_encryption_key`](crate::Ploop::set_encryption_key),
    /// [`CreateParam::encryption_key`](crate::CreateParam::encryption_key), and mounts of encrypted images.
    Encryption,
    /// [`CreateParam::fs_label`](crate::CreateParam::fs_label).
    FsLabel,
    /// [`CreateFlags::SPARSE`](crate::CreateFlags::SPARSE).
    SparseRaw,
    /// [`device::suspend`](crate::device::suspend) and [`device::resume`](crate::device::resume).
    Suspend,
    /// [`Ploop::init`](crate::Ploop::init) and [`init_device`](crate::init_device).
    Init,
    /// [`volume`](crate::volume). Images that libploop has made stand upon each other are handled by all versions of line 7.
    Volumes,
}

/// Since which version a feature is there.
struct Since {
    /// What the library does, for the error where it does not: "cannot track changes".
    what: &'static str,
    version: &'static str,
    /// A function that the library has since then, or since a later version where it has got none at that time. `None`
    /// where each version of the line has the feature.
    function: Option<&'static CStr>,
}

impl Feature {
    /// Every feature.
    pub const ALL: &'static [Feature] = &[
        Feature::UmountTimeout,
        Feature::Tracking,
        Feature::FsckFlags,
        Feature::ReadOnlyFsck,
        Feature::NoProbe,
        Feature::Encryption,
        Feature::FsLabel,
        Feature::SparseRaw,
        Feature::Suspend,
        Feature::Init,
        Feature::Volumes,
    ];

    fn since(self) -> Since {
        // The first function that is newer than what has none of its own.
        let (defrag, statfs) = (c"ploop_image_defrag", c"ploop_store_statfs_info");
        let (what, version, function) = match self {
            Feature::UmountTimeout => ("set the time for an unmount", "7.0.95", None),
            Feature::Tracking => ("track changes", "7.0.95", None),
            Feature::Encryption => ("encrypt images", "7.0.95", None),
            Feature::FsLabel => ("label a file system", "7.0.95", None),
            Feature::SparseRaw => (
                "make sparse raw images",
                "7.0.138",
                Some(c"ploop_get_fs_info"),
            ),
            Feature::FsckFlags => (
                "be told how to check file systems",
                "7.0.163.2",
                Some(defrag),
            ),
            Feature::ReadOnlyFsck => ("check file systems read-only", "7.0.277.1", Some(statfs)),
            Feature::NoProbe => ("leave partition tables unread", "7.0.277.1", Some(statfs)),
            Feature::Suspend => ("suspend devices", "7.0.226", Some(c"ploop_suspend_device")),
            Feature::Init => (
                "make a file system in an image that is there",
                "7.0.106",
                Some(c"ploop_init_image"),
            ),
            Feature::Volumes => ("keep volumes", "7.0.104", Some(c"ploop_volume_get_tree")),
        };
        Since {
            what,
            version,
            function,
        }
    }

    fn is_there(self) -> bool {
        LINE.number >= 7 && self.since().function.is_none_or(ffi::exports)
    }

    /// Requires that the library has it.
    pub(crate) fn require(self, operation: &'static str, path: &Path) -> Result<()> {
        if self.is_there() {
            return Ok(());
        }
        let Since { what, version, .. } = self.since();
        let this = match LINE.number {
            ..7 => format!("libploop {}", ffi::VERSION),
            _ => "the libploop that is loaded".to_owned(),
        };
        Err(Error::new(
            ErrorKind::Unsupported,
            operation,
            format!("{this} cannot {what}; libploop {version} and later can"),
        )
        .with_path(path))
    }
}

impl fmt::Display for Feature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.since().what)
    }
}

/// What can be done here, at this moment: with the libploop that is loaded, the kernel's driver, and the tools that are
/// installed. Asks the kernel a few questions, and calls no C.
///
/// ```
/// for tool in ploop::capabilities().tools {
///     match tool.path {
///         Some(path) => println!("{}: {}", tool.name, path.display()),
///         None => println!("{}: not installed", tool.name),
///     }
/// }
/// ```
#[must_use]
pub fn capabilities() -> Capabilities {
    let large_disks = kernel::is_large_disk_supported();
    let mut formats = vec![FormatVersion::V1];
    if large_disks {
        formats.push(FormatVersion::V2);
    }
    let tool = |name: &str| Tool {
        name: name.to_owned(),
        path: tools::path_of(name),
    };
    Capabilities {
        library: Library {
            version: ffi::VERSION.to_owned(),
            soname: ffi::sys::SONAME.to_owned(),
            line: LINE.number,
            file: ffi::loaded_file(),
        },
        driver: Driver {
            present: kernel::is_driver_present(),
            large_disks,
        },
        formats,
        features: (Feature::ALL.iter().copied())
            .filter(|feature| feature.is_there())
            .collect(),
        tools: tools::of_this_line().map(tool).collect(),
    }
}
