//! The manual: a page for each subject, each with a program. The [pages](#modules) are listed at the end of this one.
//!
//! # Words
//!
//! | word | meaning |
//! |---|---|
//! | image | a virtual disk: one or more deltas, and a descriptor |
//! | delta | a file that holds the data of a disk, or what has changed since the delta below it |
//! | base, top delta | the lowest delta; the highest one, to which all writes go |
//! | snapshot | a state of the disk that can be gone back to: a delta that is no longer written to, with all deltas below it |
//! | descriptor | `DiskDescriptor.xml`: names the deltas and says which stands on which |
//! | change, look-up | an operation that writes to an image, mounts included; one that does not |
//! | merge | to put the data of deltas into the one below them, or into a new file |
//! | cluster | the unit in which space is allocated, 1 MiB by default |
//! | BAT | block allocation table, at the head of each delta: says where each cluster is in the file |
//! | driver, device | the kernel module `ploop`; what it attaches an image to, such as `/dev/ploop12345` |
//! | attached, running | a device has the image, and the device has been started |
//! | mounted | the file system of a running image is visible in a directory |
//! | in use | a delta is marked so by the driver while it may be written to; the mark stays when the host goes down |
//! | component | the name of one attachment of an image, where there are several |
//! | balloon | a hidden file in the file system of an image, which takes space away from it when the image shrinks |
//! | line | the versions of libploop with one interface: 1, 7, 8, 9 |
//! | volume | with libploop 7, an image that stands upon others, or upon which others stand |
//!
//! # Layers
//!
//! Each operation goes through these, from a caller to the driver.
//!
//! ```text
//!  your program
//!       │
//!       ▼
//!  typed parameters   CreateParam, MountParam, Size, Guid: no number without its unit
//!       │
//!       ▼
//!  change             takes the image's locks; looks who else can write to its files;
//!       │             finishes what was cut short; checks descriptor, deltas and
//!       │             tables; puts the descriptor in place as this crate writes it
//!       ▼
//!  ffi                the only module that knows C: its strings, buffers, error text
//!       │
//!       ▼
//!  process of C       libploop and the tools that it starts, for this one call:
//!       │             shares the program's memory, and nothing else
//!       ▼
//!  driver             in the kernel; or the sandbox in its place
//! ```
//!
//! What was changed is brought to the disk before the operation returns. Descriptors, headers and tables are read by the
//! module [`image`](crate::image), in pure Rust. Look-ups need nothing else, except for sysfs and the image's lock.

#[doc = include_str!("first_image.md")]
pub mod _01_first_image {}
#[doc = include_str!("snapshots.md")]
pub mod _02_snapshots {}
/// Mounting an image, finding its device, unmounting.
///
/// [`Ploop::mount`](crate::Ploop::mount) attaches the image to a device and mounts the file system from there. The
/// mount stays when the handle is dropped, and when the program ends. A *guard* unmounts when it is dropped.
///
/// This is the example `mount`: it takes root and the driver, or [the sandbox](_09_driver_and_sandbox#the-sandbox).
///
/// ```no_run
#[doc = include_str!("../../examples/mount.rs")]
/// ```
#[doc = include_str!("mounts.md")]
pub mod _03_mounts {}
/// Growing and shrinking a disk, giving space back to the host, limiting it.
///
/// An image has three sizes. That of the *disk* is what the device shows. That of the *file system* on it is smaller:
/// partition table, journal and inodes take some, and so does the balloon. That of the *deltas* is what the image takes
/// on the host: clusters are allocated when they are first written to.
///
/// This is the example `sizes`: it takes root and the driver, or [the sandbox](_09_driver_and_sandbox#the-sandbox).
///
/// ```no_run
#[doc = include_str!("../../examples/sizes.rs")]
/// ```
#[doc = include_str!("sizes.md")]
pub mod _04_sizes {}
/// Backing up a running image, and moving it to another host.
///
/// For a backup, a *temporary snapshot* holds the state of the disk. It is attached read-only to a device of its own and
/// read from there, while the image is written to. It is merged away when it is no longer used.
///
/// This is the example `live_copy`: it takes root and the driver, or [the sandbox](_09_driver_and_sandbox#the-sandbox).
///
/// ```no_run
#[doc = include_str!("../../examples/live_copy.rs")]
/// ```
#[doc = include_str!("live_copies.md")]
pub mod _05_live_copies {}
#[doc = include_str!("images_without_c.md")]
pub mod _06_images_without_c {}
#[doc = include_str!("errors.md")]
pub mod _07_errors {}
#[doc = include_str!("threads_and_async.md")]
pub mod _08_threads_and_async {}
#[doc = include_str!("driver_and_sandbox.md")]
pub mod _09_driver_and_sandbox {}
#[doc = include_str!("power_cuts.md")]
pub mod _10_power_cuts {}
#[doc = include_str!("trust_and_paths.md")]
pub mod _11_trust_and_paths {}
#[doc = include_str!("from_goploop.md")]
pub mod _12_from_goploop {}
#[doc = include_str!("libploop_lines.md")]
pub mod _13_libploop_lines {}
/// What libploop does to programs that use it, line by line, and what this crate does about it.
///
#[doc = include_str!("../hazards.md")]
pub mod _14_hazards {}
