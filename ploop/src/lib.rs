//! Ploop images from Rust: all of libploop, safely.
//!
//! Ploop is the loopback block device of OpenVZ and Virtuozzo: a disk in a file, or in a stack of
//! *delta* files. Space is allocated in *clusters* as it is written; a *block allocation table*
//! (BAT) at the head of each delta says where a cluster is. Writes go to the *top delta*; the ones
//! below are *snapshots*, down to the *base*. The *descriptor*, a `DiskDescriptor.xml` beside them,
//! names the deltas and the tree they form. An image is attached to a device by the kernel *driver*
//! and mounted from there; a *balloon* file in its file system holds space back to shrink it.
//!
//! ```
//! # #[cfg(not(feature = "libploop"))]
//! # fn main() {}
//! # #[cfg(feature = "libploop")]
//! # fn main() -> ploop::Result<()> {
//! use ploop::{CreateParam, Ploop, Size};
//!
//! # let dir = tempfile::tempdir().unwrap();
//! # let dir = dir.path();
//! // A bare image; with a file system, which takes the driver, leave out `.fs(None)`.
//! let param = CreateParam::new(dir.join("root.hds"), Size::from_gib(10)).fs(None);
//! let mut image = Ploop::create(&param)?;
//! let snapshot = image.snapshot()?;
//! println!("{} is kept in {}", snapshot, image.base_delta_file()?.display());
//! image.switch_snapshot(snapshot)?; // back to it
//! image.delete_snapshot(snapshot)?; // what is above is merged into it
//! # Ok(())
//! # }
//! ```
//!
//! # What is where
//!
//! | subject | see |
//! |---|---|
//! | an image: open, operate, close | [`Ploop`] |
//! | make one | [`Ploop::create`], [`CreateParam`] |
//! | attach and mount | [`Ploop::mount`], [`Ploop::mount_guard`], [`MountParam`] |
//! | snapshots | [`Ploop::snapshot`], [`Ploop::switch_snapshot`], [`Ploop::delete_snapshot`], [`Ploop::merge`], [`Ploop::temporary_snapshot`] |
//! | size | [`Ploop::resize`], [`Ploop::discard`], [`Ploop::set_max_delta_size`] |
//! | exchange and convert files | [`Ploop::replace`], [`Ploop::convert`] |
//! | look | [`Ploop::descriptor`], [`Ploop::image_info`], [`fs_info`], [`device`] |
//! | live copy | [`copy`] |
//! | the library and the driver | [`kernel`], [`lock`], [`log`], [`trust`] |
//! | power cuts, and what they leave | [`durability`], [`Ploop::leftovers`], [`Ploop::remove_leftovers`] |
//! | without C, driver or root | [`image`]: read, check, export |
//!
//! # What needs the driver
//!
//! The driver is part of OpenVZ and Virtuozzo kernels; [`load_kernel_modules`] loads it, and nothing
//! here does so unasked. Without it work: creating images without a file system, snapshots, switching,
//! deleting, merging, replacing, converting, everything that looks, and all of [`image`]. Mounting,
//! resizing, discarding, sending copies and making file systems end in [`ErrorKind::NoDriver`].
//!
//! For development and tests, the repository of this crate has a sandbox: `cargo xtask sandbox -- CMD`
//! runs a program on a stand-in for the driver in user space, in which all of it works.
//!
//! libploop looks for a running device in most operations, under a lock in `/var/lock/ploop` that
//! belongs to root. So most operations need root, with the driver or without.
//!
//! # Trust
//!
//! What is inside an image belongs to a stranger: it can make an operation fail, and nothing else.
//! Descriptors and headers may be hostile: reading them is safe, and an operation touches no file that
//! is not a delta of that image. Whoever can write to the *directory* of an image while an operation
//! runs has to be trusted. So a program of root's changes no image that others can write to, unless it
//! says that it may: see [`trust`]. Other programs that use libploop are taken for what they are: they
//! hold libploop's locks when they should.
//!
//! # Kernels
//!
//! The crate makes do with what the kernels of OpenVZ 7 (3.10) and OpenVZ 6 (2.6.32) have. There are three
//! differences. Without system call filters, a discard runs in a process with a PID namespace of its own
//! ([`Ploop::discard`]). Without files that have no name (before 3.11), a killed export leaves a hidden
//! file that ends in `.partial`. Where the kernel cannot say where a file has holes (before 3.1), those of
//! a raw base count as data, and reading takes as long as the file.
//!
//! # Errors
//!
//! An [`Error`] says what was tried, on which path, why it failed, in libploop's words if it was
//! libploop, and of which [kind](ErrorKind) it is. [`Error::code`] is libploop's number.
//!
//! # Threads and processes
//!
//! A handle moves between threads, and is used by one at a time. One image has one operation at a
//! time, in this process and among all that use libploop; others wait, up to
//! [a limit](lock::set_timeout), and get [`ErrorKind::Locked`]. Different images are independent: a
//! long merge of one does not hold up another, with the exceptions that [`Ploop::discard`] is one at
//! a time, and libploop's search for devices is one at a time on the whole system.
//!
//! The lock is the descriptor's, and one descriptor is all of an image. A copy of it that names the same
//! deltas is another image to libploop, and to this crate: what is changed through one is not known to the
//! other, and may make it unreadable. A device that runs is found through both.
//!
//! Operations block, some of them for as long as copying a disk takes; none can be cancelled but
//! [`Ploop::discard`]. In async programs they belong on threads for blocking work.
//!
//! libploop runs in a process of its own: one for each call, which shares the memory of the program,
//! and is not a child that the program can wait for. The program's file descriptors, children, signal
//! handlers and timers are out of its reach, and it out of theirs; it and its tools read nothing from
//! standard input, and what they print goes [where it was asked for](log). Where the program is killed,
//! that process is, and the other way round. A fork of libploop's own runs the exit handlers of the
//! program ([`Ploop::discard`]).
//!
//! # Paths
//!
//! Paths are bytes, as the system has them. libploop hands some of them to a shell without quotes,
//! and writes image names into XML without checking them. Where it could come to that, paths with
//! white space, control characters or one of ``;&|<>$`\"'()*?[]#~!``, with a list or range in braces,
//! and image names that are not UTF-8, are refused with [`ErrorKind::InvalidInput`], as is anything of
//! 4000 bytes and more. Looking at images under such names works.
//!
//! # Units
//!
//! [`Size`] is bytes inside, whatever it was made from; libploop's own sectors appear in [`ImageInfo`]
//! alone, which has goploop's fields.
//!
//! # From goploop
//!
//! | goploop | here |
//! |---|---|
//! | `Open(file)`, `d.Close()` | [`Ploop::open`], [`Ploop::close`] or drop |
//! | `Create(&CreateParam{Size, Mode, File, CLog, Flags})` | [`Ploop::create`]; `Size` in KiB is [`Size::from_kib`], `CLog` is [`ClusterSize::from_log2_sectors`] |
//! | `d.Mount(&MountParam{UUID, Target, Flags, Data, Readonly, Fsck, Quota})` | [`Ploop::mount`]; the device is in [`Mounted`] |
//! | `d.Umount()`, `UmountByDevice(dev)` | [`Ploop::umount`], [`device::umount`] |
//! | `d.IsMounted()` | [`Ploop::is_mounted`], which reads the descriptor anew |
//! | `d.Resize(size, offline)` | [`Ploop::resize`] with [`ResizeMode`]; a size of 0 is [`ResizeParam::to_minimum`] |
//! | `d.Snapshot()` | [`Ploop::snapshot`], [`Ploop::snapshot_with`] |
//! | `d.SwitchSnapshot(uuid)` | [`Ploop::switch_snapshot`] |
//! | `d.SwitchSnapshotExtended(uuid, flags)` | [`Ploop::switch_snapshot_with`], which returns the kept GUID (goploop loses it) |
//! | `d.DeleteSnapshot(uuid)` | [`Ploop::delete_snapshot`] |
//! | `d.Replace(&ReplaceParam{File, UUID, CurFile, Level, Flags})` | [`Ploop::replace`] with [`ReplaceTarget`] |
//! | `FSInfo(file)`, `d.ImageInfo()`, `d.TopDeltaFile()` | [`fs_info`], [`Ploop::image_info`], [`Ploop::top_delta_file`] |
//! | `UUID()` | [`Guid::generate`] |
//! | `SetVerboseLevel`, `SetLogFile`, `SetLogLevel` | [`log`] |
//! | `IsNotMounted(err)`, `IsError(err, E_…)` | [`Error::is_not_mounted`], [`Error::kind`], [`Error::code`] with [`Code`] |
//! | `modprobe` at the first use | [`load_kernel_modules`], when asked |
//!
//! # Features
//!
//! * `libploop` (default): the C library, through `ploop-sys`, and everything that needs it. A program
//!   that links libploop 1.15 links code under GPL-2.0-or-later.
//! * `static`: links `libploop.a` in the place of `libploop.so`.
//! * `image` (default): [`image`], in pure Rust. `--no-default-features --features image` links no C
//!   library.
//! * `image-write`: [`image`] can also write, as the driver would.
//! * `log` (default): what libploop and its tools say goes to the log facade; see [`log`](mod@log).
//! * `serde` (default): `Serialize` and `Deserialize` for plain data and parameters.
//!
#![doc = include_str!("hazards.md")]
#![deny(unsafe_code)]
#![cfg_attr(not(feature = "libploop"), allow(rustdoc::broken_intra_doc_links))]

#[cfg(feature = "libploop")]
mod attached;
#[cfg(feature = "libploop")]
mod canonical;
#[cfg(feature = "libploop")]
mod change;
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
#[cfg(feature = "libploop")]
pub mod durability;
mod error;
#[cfg(feature = "libploop")]
mod ffi;
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
pub mod kernel;
#[cfg(feature = "libploop")]
mod leftovers;
#[cfg(feature = "libploop")]
pub mod lock;
#[cfg(feature = "libploop")]
pub mod log;
#[cfg(feature = "libploop")]
mod look_ups;
#[cfg(feature = "libploop")]
mod merge;
#[cfg(feature = "libploop")]
mod mount;
#[cfg(feature = "libploop")]
mod mount_table;
#[cfg(feature = "libploop")]
mod paths;
#[cfg(feature = "libploop")]
mod recovery;
#[cfg(feature = "libploop")]
mod replace;
#[cfg(feature = "libploop")]
mod resize;
mod size;
#[cfg(feature = "libploop")]
mod snapshot;
#[cfg(feature = "libploop")]
mod sysfs;
#[cfg(feature = "libploop")]
mod temporary_mount;
#[cfg(feature = "libploop")]
pub mod trust;

pub use component::ComponentName;
#[cfg(feature = "libploop")]
pub use create::{CreateFlags, CreateParam};
#[cfg(feature = "libploop")]
pub use discard::{DiscardParam, DiscardStat, StopFlag};
pub use error::{Code, Error, ErrorKind, Result};
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
pub use kernel::load_kernel_modules;
#[cfg(feature = "libploop")]
pub use look_ups::fs_info;
#[cfg(feature = "libploop")]
pub use merge::{MergeParam, MergeTarget};
#[cfg(feature = "libploop")]
pub use mount::{MountFlags, MountGuard, MountParam, Mounted};
#[cfg(feature = "libploop")]
pub use replace::{ReplaceFlag, ReplaceParam, ReplaceTarget};
#[cfg(feature = "libploop")]
pub use resize::{ResizeMode, ResizeParam};
pub use size::{ClusterSize, Size};
#[cfg(feature = "libploop")]
pub use snapshot::{SnapshotParam, SwitchFlag, TemporarySnapshot, TemporarySnapshotParam};

/// The README's program compiles.
#[cfg(all(doctest, feature = "libploop"))]
#[doc = include_str!("../README.md")]
struct Readme;
