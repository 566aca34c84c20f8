//! Images in pure Rust: nothing here needs libploop, a kernel driver or root.

#![forbid(unsafe_code)]

mod chain;
mod check;
mod clusters;
mod delta;
pub(crate) mod descriptor;
mod disk;
mod export;
mod extents;
mod family;
mod file;
mod header;
mod holes;
mod partition;
mod report;
mod staged;
mod table;
#[cfg(feature = "image-write")]
mod write;
mod xml;

pub use check::{check, check_image};
pub use descriptor::{Descriptor, Geometry, Image, ImageKind, Snapshot};
pub use disk::{Disk, OpenOptions};
pub use export::{ExportOptions, Progress};
pub use extents::{Extent, Extents, Mapping, Mappings};
pub use header::{Header, HeaderFlags};
pub use partition::{Partition, PartitionKind};
pub use report::{DeltaReport, Finding, Issue, Report, Severity, SnapshotReport};
#[cfg(feature = "image-write")]
pub use write::{DiskWriter, create_delta};
