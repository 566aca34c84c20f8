//! Finds the partition of a device in its partition table, because the kernel may not know partition tables.

use std::io;

use ploop::Size;
use ploop::image::partitions_of;

/// A partition as sysfs shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partition {
    /// In sectors of 512 bytes.
    pub(crate) start: u64,
    /// In sectors of 512 bytes.
    pub(crate) size: u64,
}

/// The partition of this number on a disk of `size` bytes, if there is one. A damaged table has no partitions, as for
/// the kernel.
pub(crate) fn find(
    number: u32,
    size: u64,
    read: impl FnMut(&mut [u8], u64) -> io::Result<()>,
) -> Option<Partition> {
    let partitions = partitions_of(Size::from_bytes(size), read).unwrap_or_default();
    let partition = partitions
        .into_iter()
        .find(|partition| partition.number == number)?;
    Some(Partition {
        start: partition.offset / 512,
        size: partition.size.bytes() / 512,
    })
}
