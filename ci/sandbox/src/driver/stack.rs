//! The stack of deltas of a device as one disk.

use ploop::image::{Disk, DiskWriter};

/// The stack of deltas as one disk.
pub(super) enum Stack {
    /// The device has no deltas.
    None,
    Writable(Box<DiskWriter>),
    ReadOnly(Box<Disk>),
}
