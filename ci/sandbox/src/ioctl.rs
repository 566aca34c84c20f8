//! The ioctls of loop devices (`LOOP_*`), block devices (`BLKPG`) and file systems (`FIFREEZE`, `FITHAW`, `FS_IOC_FIEMAP`). The
//! only file with `unsafe`.

#![allow(unsafe_code)]

use std::ffi::{c_int, c_void};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use rustix::ioctl::{IntegerSetter, NoArg, Opcode, Setter, Updater, ioctl, opcode};

const LOOP_CLR_FD: Opcode = 0x4c01;
const LOOP_SET_STATUS64: Opcode = 0x4c04;
const LOOP_GET_STATUS64: Opcode = 0x4c05;
const LOOP_SET_CAPACITY: Opcode = 0x4c07;
const LOOP_CONFIGURE: Opcode = 0x4c0a;
const LOOP_CTL_ADD: Opcode = 0x4c80;
const LOOP_CTL_REMOVE: Opcode = 0x4c81;
const BLKPG: Opcode = opcode::none(0x12, 105);
const FIFREEZE: Opcode = opcode::read_write::<c_int>(b'X', 119);
const FIEMAP: Opcode = opcode::read_write::<FiemapHead>(b'f', 11);
const FITHAW: Opcode = opcode::read_write::<c_int>(b'X', 120);

const FIEMAP_FLAG_SYNC: u32 = 1;
const FIEMAP_EXTENT_LAST: u32 = 1;

const LO_FLAGS_READ_ONLY: u32 = 1;
const LO_FLAGS_AUTOCLEAR: u32 = 4;
const LO_FLAGS_DIRECT_IO: u32 = 16;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct LoopInfo {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

impl LoopInfo {
    fn new(read_only: bool, name: &[u8]) -> LoopInfo {
        let mut file_name = [0; 64];
        let len = name.len().min(file_name.len() - 1);
        file_name[..len].copy_from_slice(&name[..len]);
        LoopInfo {
            device: 0,
            inode: 0,
            rdevice: 0,
            offset: 0,
            size_limit: 0,
            number: 0,
            encrypt_type: 0,
            encrypt_key_size: 0,
            flags: LO_FLAGS_DIRECT_IO | if read_only { LO_FLAGS_READ_ONLY } else { 0 },
            file_name,
            crypt_name: [0; 64],
            encrypt_key: [0; 32],
            init: [0; 2],
        }
    }

    /// The same without autoclear: the device stays bound when its last opener closes it.
    pub(crate) fn without_autoclear(mut self) -> LoopInfo {
        self.flags &= !LO_FLAGS_AUTOCLEAR;
        self
    }
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo,
    reserved: [u64; 8],
}

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

/// Binds a loop device to a file, with direct I/O and without a scan for partitions.
pub(crate) fn loop_configure(
    device: impl AsFd,
    file: BorrowedFd<'_>,
    name: &[u8],
    read_only: bool,
) -> io::Result<()> {
    let config = LoopConfig {
        // A descriptor that is open is not negative.
        fd: file.as_raw_fd() as u32,
        block_size: 0,
        info: LoopInfo::new(read_only, name),
        reserved: [0; 8],
    };
    // SAFETY: the kernel reads a `struct loop_config`, whose layout `LoopConfig` has.
    let call = unsafe { Setter::<LOOP_CONFIGURE, LoopConfig>::new(config) };
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
pub(crate) fn loop_status(device: impl AsFd) -> io::Result<LoopInfo> {
    let mut info = LoopInfo::new(false, b"");
    // SAFETY: the kernel writes a `struct loop_info64`, whose layout `LoopInfo` has.
    let call = unsafe { Updater::<LOOP_GET_STATUS64, LoopInfo>::new(&mut info) };
    // SAFETY: as above; every bit pattern is a valid `LoopInfo`.
    unsafe { ioctl(device, call) }?;
    Ok(info)
}

/// Changes how a loop device is bound.
pub(crate) fn loop_set_status(device: impl AsFd, info: LoopInfo) -> io::Result<()> {
    // SAFETY: the kernel reads a `struct loop_info64`, whose layout `LoopInfo` has.
    let call = unsafe { Setter::<LOOP_SET_STATUS64, LoopInfo>::new(info) };
    // SAFETY: as above.
    Ok(unsafe { ioctl(device, call) }?)
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

/// The ranges of a file of `len` bytes for which no space is allocated (`FS_IOC_FIEMAP`). Space that was allocated and never
/// written is no hole. Fails where the file system does not tell.
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
        let call = unsafe { Updater::<FIEMAP, Fiemap>::new(&mut map) };
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
        assert_eq!(size_of::<LoopInfo>(), 232);
        assert_eq!(size_of::<LoopConfig>(), 304);
        assert_eq!(size_of::<BlkpgPartition>(), 152);
        assert_eq!(BLKPG, 0x1269);
        assert_eq!(FIFREEZE, 0xc004_5877);
        assert_eq!(FIEMAP, 0xc020_660b);
        assert_eq!(size_of::<FiemapExtent>(), 56);
    }
}
