//! Images in pure Rust: nothing here needs libploop, a kernel driver or root.
//!
//! * [`Descriptor`] is a `DiskDescriptor.xml`: which deltas there are and how they stand upon each
//!   other.
//! * [`Disk`] reads the virtual disk through a chain of deltas, as of any snapshot: at any offset,
//!   from many threads, or [exported](Disk::export) as a whole.
//! * [`check()`] says what is wrong with an image, and changes nothing.
//! * With the feature `image-write`, `DiskWriter` does to the files what the driver does, and `OfflineImage` what libploop
//!   does to an image that is not attached.
//!
//! Descriptors and images may come from anyone. Whatever is in them, the worst they can do is to
//! cause an [`Error`](crate::Error), with the file and offset that are to blame: no panic, no
//! endless loop, and no more memory than the tables of the clusters that are really there. All but
//! `DiskWriter` and `OfflineImage` opens files for reading only.
//!
//! ```no_run
//! use ploop::image::{Disk, ExportOptions};
//!
//! let disk = Disk::open("/vz/private/101/root.hdd/DiskDescriptor.xml")?;
//! println!("{} in {} partitions", disk.size(), disk.partitions()?.len());
//! disk.export("/backup/101.raw", &ExportOptions::new(), |progress| {
//!     println!("{:.1} of {:.1}", progress.copied, progress.total);
//! })?;
//! # Ok::<(), ploop::Error>(())
//! ```

#![forbid(unsafe_code)]

mod aligned_buffer;
mod atomic_file;
mod bitmap;
mod chain;
mod changes;
mod check;
mod clusters;
mod delta;
mod describing;
pub(crate) mod descriptor;
mod disk;
#[cfg(feature = "libploop")]
mod drop_extension;
mod export;
mod export_file;
mod extension;
mod extents;
mod file;
mod header;
mod holes;
mod layout;
pub(crate) mod named_files;
#[cfg(feature = "image-write")]
mod offline;
mod orphans;
mod other_formats;
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) mod other_image;
mod partition;
#[cfg(any(feature = "libploop", feature = "image-write"))]
mod preallocate;
mod progress;
#[cfg(any(feature = "libploop", feature = "image-write"))]
#[cfg_attr(
    not(feature = "libploop"),
    allow(dead_code, unused_imports, reason = "libploop needs the rest")
)]
pub(crate) mod recovery;
mod report;
mod salvage;
#[cfg(any(feature = "libploop", feature = "image-write"))]
#[cfg_attr(
    not(feature = "libploop"),
    allow(dead_code, unused_imports, reason = "libploop needs the rest")
)]
pub(crate) mod sound;
#[cfg(any(feature = "libploop", feature = "image-write"))]
#[cfg_attr(
    not(feature = "libploop"),
    allow(dead_code, reason = "libploop needs the rest")
)]
pub(crate) mod staging_directory;
mod state;
mod storages;
mod table;
#[cfg(feature = "image-write")]
mod write;
mod xml;

pub use bitmap::{TrackingBitmap, UsedBitmap, tracking_bitmaps, used_bitmap};
pub use changes::Changes;
pub use check::{check, check_image};
pub use descriptor::{Descriptor, Geometry, Image, ImageKind, Snapshot, Storage, Volume};
pub use disk::{Disk, OpenOptions};
#[cfg(feature = "libploop")]
pub(crate) use drop_extension::drop_extension;
pub use export::{ExportOptions, ExportTarget};
pub use extents::{Extent, Extents, Mapping, Mappings};
pub use header::{Header, HeaderFlags};
pub use layout::Layout;
#[cfg(feature = "image-write")]
pub use offline::{
    CompactOptions, CompactReport, CompactedDelta, CreateOptions, FreeParts, OfflineImage,
    RepairChoice, RepairGeometry, RepairItem, RepairOptions, RepairOutcome, RepairReport, create,
    import, import_disk, restore_descriptor,
};
#[cfg(feature = "libploop")]
pub(crate) use orphans::not_known;
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) use orphans::orphans;
#[cfg(feature = "image-write")]
pub use partition::partitions_of;
pub use partition::{Partition, PartitionKind, PartitionTable};
#[cfg(feature = "libploop")]
pub(crate) use preallocate::preallocate;
pub use progress::Progress;
pub use report::{DeltaReport, Finding, Issue, Report, Severity, SnapshotReport};
pub use salvage::{LossReason, LostExtent};
#[cfg(feature = "libploop")]
pub(crate) use state::base_file;
#[cfg(feature = "image-write")]
pub use write::{ChainOptions, DeltaFile, DiskWriter, ReadPlan, create_delta, header_of};
