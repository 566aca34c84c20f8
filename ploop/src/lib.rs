//! Ploop images from Rust: all of libploop, with an API that rules out the known ways to misuse it.
//!
//! Ploop is the loopback block device of OpenVZ and Virtuozzo: a disk in a file, or in a stack of files,
//! with thin provisioning, resize both ways, instant snapshots, merges and live copy. The kernel's
//! ploop driver makes a block device of such an image. libploop is the C library that manages them.
//! The module `image` reads and writes images without either.
//!
#![cfg_attr(feature = "libploop", doc = include_str!("manual/front.md"))]
#![cfg_attr(
    all(feature = "image", not(feature = "libploop")),
    doc = "This is the documentation without the C library: what is left is [`image`], and what it needs."
)]
//!
//! # Features
//!
//! | feature | default | what |
//! |---|---|---|
//! | `libploop` | yes | the C library, through `ploop-sys`, and everything that needs it. A program that links libploop 1.15 links code under GPL-2.0-or-later |
//! | `static` | | links `libploop.a` instead of `libploop.so` |
//! | `image` | yes | the module `image`, in pure Rust. `--no-default-features --features image` links no C library |
//! | `image-write` | | `image` also writes, as the driver and libploop would |
//! | `log` | yes | what libploop and its tools say goes to the log facade |
//! | `serde` | yes | `Serialize` and `Deserialize` for plain data and parameters |

#![deny(unsafe_code)]
#![cfg_attr(docsrs, feature(doc_cfg))]

#[cfg(feature = "libploop")]
mod canonical;
#[cfg(feature = "libploop")]
mod capabilities;
#[cfg(feature = "libploop")]
mod change;
#[cfg(feature = "libploop")]
mod clone;
mod code;
mod component;
#[cfg(feature = "libploop")]
mod convert;
#[cfg(feature = "libploop")]
pub mod copy;
#[cfg(feature = "libploop")]
mod create;
#[cfg(feature = "libploop")]
pub mod device;
#[cfg(feature = "libploop")]
mod discard;
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub mod durability;
#[cfg(feature = "libploop")]
mod encryption;
mod error;
mod error_kind;
#[cfg(feature = "libploop")]
mod ffi;
#[cfg(any(feature = "libploop", feature = "image-write"))]
mod file_mount;
mod format;
mod guid;
#[cfg(feature = "libploop")]
mod handle;
#[cfg(feature = "image")]
mod identity;
#[cfg(feature = "image")]
pub mod image;
#[cfg(feature = "libploop")]
mod info;
#[cfg(feature = "libploop")]
mod init;
#[cfg(feature = "libploop")]
pub mod kernel;
#[cfg(feature = "libploop")]
mod leftovers;
#[cfg(any(feature = "libploop", feature = "image-write"))]
#[cfg_attr(
    not(feature = "libploop"),
    allow(dead_code, unused_imports, reason = "libploop needs the rest")
)]
pub mod lock;
#[cfg(feature = "libploop")]
pub mod log;
#[cfg(feature = "libploop")]
mod look_ups;
#[cfg(all(doc, feature = "libploop"))]
pub mod manual;
#[cfg(feature = "libploop")]
mod merge;
#[cfg(any(feature = "libploop", feature = "image-write"))]
mod merge_param;
#[cfg(feature = "libploop")]
mod mount;
#[cfg(feature = "libploop")]
mod mount_guard;
#[cfg(feature = "libploop")]
mod mount_table;
#[cfg(feature = "libploop")]
mod parents;
#[cfg(any(feature = "libploop", feature = "image-write"))]
#[cfg_attr(
    not(feature = "libploop"),
    allow(dead_code, unused_imports, reason = "libploop needs the rest")
)]
mod paths;
#[cfg(feature = "libploop")]
mod recovery;
#[cfg(feature = "libploop")]
mod replace;
#[cfg(feature = "libploop")]
mod resize;
#[cfg(feature = "image")]
mod side_files;
mod size;
#[cfg(feature = "libploop")]
mod snapshot;
#[cfg(any(feature = "libploop", feature = "image-write"))]
mod snapshot_param;
#[cfg(feature = "serde")]
mod stored;
#[cfg(any(feature = "libploop", feature = "image-write"))]
#[cfg_attr(
    not(feature = "libploop"),
    allow(dead_code, unused_imports, reason = "libploop needs the rest")
)]
mod sysfs;
#[cfg(feature = "libploop")]
mod temporary_mount;
#[cfg(feature = "libploop")]
mod tools;
#[cfg(feature = "libploop")]
mod tracking;
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub mod trust;
#[cfg(feature = "libploop")]
pub mod volume;

#[cfg(feature = "libploop")]
pub use capabilities::{Capabilities, Driver, Feature, Library, Tool, capabilities};
pub use code::Code;
pub use component::ComponentName;
#[cfg(feature = "libploop")]
pub use create::{CreateFlags, CreateParam};
#[cfg(feature = "libploop")]
pub use discard::{DiscardParam, DiscardStat, StopFlag};
#[cfg(feature = "libploop")]
pub use encryption::EncryptParam;
pub use error::{Error, Result};
pub use error_kind::ErrorKind;
#[cfg(feature = "libploop")]
pub use ffi::sys;
pub use format::{FormatVersion, FsType, ImageMode};
pub use guid::Guid;
#[cfg(feature = "libploop")]
pub use handle::Ploop;
#[cfg(feature = "image")]
pub use image::Descriptor;
#[cfg(feature = "libploop")]
pub use info::{FsInfo, ImageInfo};
#[cfg(feature = "libploop")]
pub use init::{InitParam, init_device};
#[cfg(feature = "libploop")]
pub use kernel::load_kernel_modules;
#[cfg(feature = "libploop")]
pub use look_ups::fs_info;
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub use merge_param::{MergeParam, MergeTarget};
#[cfg(feature = "libploop")]
pub use mount::{FsckFlags, MountFlags, MountParam, Mounted};
#[cfg(feature = "libploop")]
pub use mount_guard::{ErrorWith, MountGuard, OwnedMountGuard};
#[cfg(feature = "libploop")]
pub use replace::{ReplaceFlag, ReplaceParam, ReplaceTarget};
#[cfg(feature = "libploop")]
pub use resize::{ResizeMode, ResizeParam};
pub use size::{ClusterSize, Size};
#[cfg(feature = "libploop")]
pub use snapshot::{TemporarySnapshot, TemporarySnapshotParam};
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub use snapshot_param::{SnapshotParam, SwitchFlag};

/// The README's program compiles.
#[cfg(all(doctest, feature = "libploop"))]
#[doc = include_str!("../README.md")]
struct Readme;
