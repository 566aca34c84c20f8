//! The deltas of a device as one disk.

use ploop::image::{Disk, DiskWriter};

/// The deltas as one disk.
pub(super) enum Stack {
    /// There are none, or none was started yet.
    None,
    Writable(Box<DiskWriter>),
    ReadOnly(Box<Disk>),
}
