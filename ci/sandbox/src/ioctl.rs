//! The ioctls of loop devices (`LOOP_*`), block devices (`BLKPG`) and file systems (`FIFREEZE`, `FITHAW`,
//! `FS_IOC_FIEMAP`). The only file with `unsafe`.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use linux_raw_sys::ioctl::{BLKPG, BLKROSET, FIFREEZE, FITHAW, FS_IOC_FIEMAP};
use linux_raw_sys::loop_device::{
    LO_FLAGS_AUTOCLEAR, LO_FLAGS_DIRECT_IO, LOOP_CLR_FD, LOOP_CONFIGURE, LOOP_CTL_ADD,
    LOOP_CTL_REMOVE, LOOP_GET_STATUS64, LOOP_SET_CAPACITY, LOOP_SET_STATUS64, loop_config,
    loop_info64,
};
use rustix::ioctl::{IntegerSetter, NoArg, Setter, Updater, ioctl};

const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 1;

/// `struct blkpg_ioctl_arg`.
#[repr(C)]
struct BlkpgArgument {
    operation: c_int,
    flags: c_int,
    len: c_int,
    data: *mut c_void,
}

/// `struct blkpg_partition`.
#[repr(C)]
struct BlkpgPartition {
    start: i64,
    length: i64,
    number: c_int,
    device_name: [u8; 64],
    volume_name: [u8; 64],
}

/// What BLKPG does with a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartitionChange {
    Add,
    Delete,
    Resize,
}

/// Makes the loop device of this number; EEXIST if it is there.
pub(crate) fn loop_add(control: impl AsFd, index: u32) -> io::Result<()> {
    // SAFETY: this ioctl of /dev/loop-control takes the number itself as its argument.
    let call = unsafe { IntegerSetter::<LOOP_CTL_ADD>::new_usize(index as usize) };
    // SAFETY: as above; no memory is passed.
    Ok(unsafe { ioctl(control, call) }?)
}

/// Removes a loop device that nothing uses; EBUSY if something does, ENODEV if it is not there.
pub(crate) fn loop_remove(control: impl AsFd, index: u32) -> io::Result<()> {
    // SAFETY: this ioctl of /dev/loop-control takes the number itself as its argument.
    let call = unsafe { IntegerSetter::<LOOP_CTL_REMOVE>::new_usize(index as usize) };
    // SAFETY: as above; no memory is passed.
    Ok(unsafe { ioctl(control, call) }?)
}

/// Binds a loop device to a file, from `offset` on, with direct I/O and without a scan for partitions.
pub(crate) fn loop_configure(
    device: impl AsFd,
    file: BorrowedFd<'_>,
    name: &[u8],
    offset: u64,
) -> io::Result<()> {
    // SAFETY: numbers alone, all of which may be 0.
    let mut config: loop_config = unsafe { std::mem::zeroed() };
    // A descriptor that is open is not negative.
    config.fd = file.as_raw_fd() as u32;
    config.info.lo_offset = offset;
    config.info.lo_flags = LO_FLAGS_DIRECT_IO as u32;
    // The name ends with a 0.
    let len = name.len().min(config.info.lo_file_name.len() - 1);
    config.info.lo_file_name[..len].copy_from_slice(&name[..len]);
    // SAFETY: the kernel reads a `struct loop_config`.
    let call = unsafe { Setter::<LOOP_CONFIGURE, loop_config>::new(config) };
    // SAFETY: as above; the descriptor in it is borrowed for the time of the call.
    Ok(unsafe { ioctl(device, call) }?)
}

/// Unbinds a loop device: at once or, where others have it open, when the last of them closes it.
pub(crate) fn loop_clear(device: impl AsFd) -> io::Result<()> {
    // SAFETY: this ioctl has no argument.
    let call = unsafe { NoArg::<LOOP_CLR_FD>::new() };
    // SAFETY: as above.
    Ok(unsafe { ioctl(device, call) }?)
}

/// How a loop device is bound; ENXIO if it is not.
pub(crate) fn loop_status(device: impl AsFd) -> io::Result<loop_info64> {
    // SAFETY: numbers alone, all of which may be 0.
    let mut info: loop_info64 = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel writes a `struct loop_info64`.
    let call = unsafe { Updater::<LOOP_GET_STATUS64, loop_info64>::new(&mut info) };
    // SAFETY: as above; every bit pattern is a valid one.
    unsafe { ioctl(device, call) }?;
    Ok(info)
}

/// Changes how a loop device is bound.
pub(crate) fn loop_set_status(device: impl AsFd, info: loop_info64) -> io::Result<()> {
    // SAFETY: the kernel reads a `struct loop_info64`.
    let call = unsafe { Setter::<LOOP_SET_STATUS64, loop_info64>::new(info) };
    // SAFETY: as above.
    Ok(unsafe { ioctl(device, call) }?)
}

/// Has a loop device begin at another place of its file, with what it has in the page cache dropped.
pub(crate) fn loop_set_offset(
    device: impl AsFd,
    mut info: loop_info64,
    offset: u64,
) -> io::Result<()> {
    info.lo_offset = offset;
    loop_set_status(device, info)
}

/// Has the kernel refuse writes to a block device and its partitions, or take them again.
pub(crate) fn set_read_only(device: impl AsFd, read_only: bool) -> io::Result<()> {
    // SAFETY: the kernel reads an `int`.
    let call = unsafe { Setter::<BLKROSET, c_int>::new(read_only.into()) };
    // SAFETY: as above.
    Ok(unsafe { ioctl(device, call) }?)
}

/// Has a loop device stay bound when the last opener leaves.
pub(crate) fn loop_stay_bound(device: impl AsFd, mut info: loop_info64) -> io::Result<()> {
    info.lo_flags &= !(LO_FLAGS_AUTOCLEAR as u32);
    loop_set_status(device, info)
}

/// Has a loop device take the current size of its file.
pub(crate) fn loop_set_capacity(device: impl AsFd) -> io::Result<()> {
    // SAFETY: this ioctl has no argument.
    let call = unsafe { NoArg::<LOOP_SET_CAPACITY>::new() };
    // SAFETY: as above.
    Ok(unsafe { ioctl(device, call) }?)
}

/// Tells the kernel of a partition (`BLKPG`); `start` and `length` are in bytes.
pub(crate) fn change_partition(
    device: impl AsFd,
    change: PartitionChange,
    number: u32,
    start: u64,
    length: u64,
) -> io::Result<()> {
    let overflow = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut partition = BlkpgPartition {
        start: start.try_into().map_err(overflow)?,
        length: length.try_into().map_err(overflow)?,
        number: number.try_into().map_err(overflow)?,
        device_name: [0; 64],
        volume_name: [0; 64],
    };
    let argument = BlkpgArgument {
        operation: match change {
            PartitionChange::Add => 1,
            PartitionChange::Delete => 2,
            PartitionChange::Resize => 3,
        },
        flags: 0,
        len: size_of::<BlkpgPartition>() as c_int,
        data: (&raw mut partition).cast(),
    };
    // SAFETY: the kernel reads a `struct blkpg_ioctl_arg`, whose layout `BlkpgArgument` has.
    let call = unsafe { Setter::<BLKPG, BlkpgArgument>::new(argument) };
    // SAFETY: as above; what it points to is a `struct blkpg_partition` that outlives the call.
    Ok(unsafe { ioctl(device, call) }?)
}

/// Freezes a file system: writes it out, and blocks all writes until it is thawed.
pub(crate) fn freeze(directory: impl AsFd) -> io::Result<()> {
    // SAFETY: this ioctl ignores its argument.
    let call = unsafe { NoArg::<FIFREEZE>::new() };
    // SAFETY: as above.
    Ok(unsafe { ioctl(directory, call) }?)
}

/// Ends [`freeze`].
pub(crate) fn thaw(directory: impl AsFd) -> io::Result<()> {
    // SAFETY: this ioctl ignores its argument.
    let call = unsafe { NoArg::<FITHAW>::new() };
    // SAFETY: as above.
    Ok(unsafe { ioctl(directory, call) }?)
}

/// `struct fiemap` without its extents.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapHead {
    start: u64,
    len: u64,
    flags: u32,
    mapped: u32,
    capacity: u32,
    reserved: u32,
}

/// `struct fiemap_extent`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    len: u64,
    reserved_long: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `struct fiemap`.
#[repr(C)]
struct Fiemap {
    head: FiemapHead,
    extents: [FiemapExtent; 128],
}

/// The ranges of a file of `len` bytes for which no space is allocated (`FS_IOC_FIEMAP`). Space that was allocated and
/// never written is no hole. Fails where the file system does not tell.
pub(crate) fn holes(file: impl AsFd, len: u64) -> io::Result<Vec<Range<u64>>> {
    let mut holes = Vec::new();
    let mut at = 0;
    while at < len {
        let mut map = Fiemap {
            head: FiemapHead {
                start: at,
                len: len - at,
                flags: FIEMAP_FLAG_SYNC,
                capacity: 128,
                ..FiemapHead::default()
            },
            extents: [FiemapExtent::default(); 128],
        };
        // SAFETY: the kernel writes a `struct fiemap`, whose layout `Fiemap` has, and no more extents than its
        // `fm_extent_count` says, which is `capacity`.
        let call = unsafe { Updater::<FS_IOC_FIEMAP, Fiemap>::new(&mut map) };
        // SAFETY: as above; every bit pattern is a valid `Fiemap`.
        unsafe { ioctl(file.as_fd(), call) }?;
        let mapped = map.head.mapped as usize;
        let extents = map.extents.get(..mapped).unwrap_or_default();
        for extent in extents {
            if extent.logical > at {
                holes.push(at..extent.logical.min(len));
            }
            at = at.max(extent.logical.saturating_add(extent.len));
        }
        match extents.last() {
            Some(last) if last.flags & FIEMAP_EXTENT_LAST == 0 => {}
            _ => break,
        }
    }
    if at < len {
        holes.push(at..len);
    }
    Ok(holes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_kernel() {
        assert_eq!(size_of::<BlkpgPartition>(), 152);
        assert_eq!(size_of::<FiemapExtent>(), 56);
    }
}
