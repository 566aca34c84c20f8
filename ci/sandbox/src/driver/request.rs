//! An ioctl request to the driver, and the structures of `ploop_if.h` behind its argument.

use std::fs::File;
use std::os::fd::OwnedFd;

use ploop_sandbox_wire as wire;
use rustix::io::Errno;

/// An ioctl request.
pub(super) struct Ioctl<'a> {
    pub(super) number: u32,
    /// Whether it was called on the node of the partition.
    pub(super) partition: bool,
    pub(super) argument: u64,
    /// The bytes that the argument points to.
    pub(super) payload: &'a [u8],
    pub(super) descriptors: Vec<OwnedFd>,
    /// Whether the caller has died or was interrupted.
    pub(super) caller_gone: &'a dyn Fn() -> bool,
}

impl Ioctl<'_> {
    /// Its number among the driver's ioctls ([`wire::number`]), if it is one.
    pub(super) fn of_ploop(&self) -> Option<u32> {
        (self.number >> 8 & 0xff == wire::TYPE).then_some(self.number & 0xff)
    }

    /// Its number among the block layer's ioctls for changed blocks ([`wire::cbt`]), if it is one.
    pub(super) fn of_changed_blocks(&self) -> Option<u32> {
        let number = self.number & 0xff;
        let is_one = self.number >> 8 & 0xff == wire::BLOCK_TYPE
            && (wire::cbt::START..=wire::cbt::CLR).contains(&number);
        is_one.then_some(number)
    }

    /// `__u32` at an offset of the argument.
    pub(super) fn word(&self, at: usize) -> Result<u32, Errno> {
        word(self.payload, at)
    }

    /// `__u64` at the beginning of the argument.
    pub(super) fn long(&self) -> Result<u64, Errno> {
        long(self.payload, 0)
    }

    /// The file that was sent along.
    pub(super) fn file(&self) -> Result<File, Errno> {
        let descriptor = self.descriptors.first().ok_or(Errno::BADF)?;
        Ok(File::from(
            descriptor.try_clone().map_err(|_| Errno::MFILE)?,
        ))
    }
}

/// `__u64` at an offset.
pub(super) fn long(bytes: &[u8], at: usize) -> Result<u64, Errno> {
    Ok(u64::from(word(bytes, at)?) | u64::from(word(bytes, at + 4)?) << 32)
}

/// `__u32` at an offset.
pub(super) fn word(bytes: &[u8], at: usize) -> Result<u32, Errno> {
    let bytes = bytes.get(at..at + 4).ok_or(Errno::FAULT)?;
    bytes
        .try_into()
        .map(u32::from_le_bytes)
        .map_err(|_| Errno::FAULT)
}

/// `struct ploop_ctl`, with its first chunk where there is one.
pub(super) struct Control {
    pub(super) format: u32,
    pub(super) flags: u32,
    pub(super) cluster_log: u32,
    pub(super) size: u32,
    pub(super) chunks: u16,
    pub(super) level: u8,
}

impl Control {
    /// Of `struct ploop_ctl`.
    const LEN: usize = 24;
    /// Of `struct ploop_ctl_chunk`.
    const CHUNK_LEN: usize = 32;
    const COOKIE_LEN: usize = 64;

    pub(super) const READ_ONLY: u32 = 1;
    pub(super) const COOKIE: u32 = 4;
    pub(super) const IN_CLUSTERS: u32 = 8;
    pub(super) const SYNC_FILE_SYSTEM: u32 = 0x1000_0000;

    pub(super) fn parse(ioctl: &Ioctl<'_>) -> Result<Control, Errno> {
        let word = |at| ioctl.word(at);
        let last = word(16)?;
        Ok(Control {
            format: word(0)?,
            flags: word(4)?,
            cluster_log: word(8)?,
            size: word(12)?,
            chunks: last as u16,
            level: (last >> 16) as u8,
        })
    }

    /// `PLOOP_IO_*` of the chunk.
    pub(super) fn io_type(ioctl: &Ioctl<'_>) -> Result<u32, Errno> {
        ioctl.word(Control::LEN + 4)
    }

    /// Whether the chunk is the whole file. The driver takes no other.
    pub(super) fn is_whole_file(ioctl: &Ioctl<'_>) -> Result<bool, Errno> {
        // The offset, the start and the length.
        for at in (12..Control::CHUNK_LEN).step_by(4) {
            if ioctl.word(Control::LEN + at)? != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The cookie (component name) of the device: text that ends with a zero.
    pub(super) fn cookie(ioctl: &Ioctl<'_>) -> Result<Vec<u8>, Errno> {
        let start = Control::LEN + Control::CHUNK_LEN;
        let cookie = ioctl
            .payload
            .get(start..start + Control::COOKIE_LEN - 1)
            .ok_or(Errno::FAULT)?;
        Ok(cookie
            .split(|byte| *byte == 0)
            .next()
            .unwrap_or(&[])
            .to_vec())
    }
}

/// A run of `len` clusters of the disk from `cluster` on, which lie in the top delta's file from `slot` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) cluster: u32,
    pub(super) slot: u32,
    pub(super) len: u32,
}

impl Extent {
    /// Each cluster with its slot.
    pub(super) fn each(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.len).map(move |n| (self.cluster.wrapping_add(n), self.slot.wrapping_add(n)))
    }
}

/// `struct ploop_freeblks_ctl`: the number of extents that the caller has, or has room for, and the extents.
pub(super) struct FreeBlocks {
    pub(super) count: u32,
    pub(super) level: u8,
    pub(super) extents: Vec<Extent>,
}

impl FreeBlocks {
    const HEAD: usize = 16;
    /// 12 bytes, aligned to 8.
    const EXTENT_LEN: usize = 16;

    pub(super) fn parse(ioctl: &Ioctl<'_>) -> Result<FreeBlocks, Errno> {
        let extents = ioctl.payload.get(FreeBlocks::HEAD..).unwrap_or(&[]);
        let extents = extents
            .chunks_exact(FreeBlocks::EXTENT_LEN)
            .map(|bytes| {
                Ok(Extent {
                    cluster: word(bytes, 0)?,
                    slot: word(bytes, 4)?,
                    len: word(bytes, 8)?,
                })
            })
            .collect::<Result<_, Errno>>()?;
        Ok(FreeBlocks {
            count: ioctl.word(0)?,
            level: ioctl.word(8)? as u8,
            extents,
        })
    }

    /// The structure to reply with.
    pub(super) fn reply(
        ioctl: &Ioctl<'_>,
        count: u32,
        allocation_head: u32,
        extents: &[Extent],
    ) -> Vec<u8> {
        let mut bytes = ioctl
            .payload
            .get(..FreeBlocks::HEAD)
            .unwrap_or(&[0; 16])
            .to_vec();
        bytes[0..4].copy_from_slice(&count.to_le_bytes());
        bytes[4..8].copy_from_slice(&allocation_head.to_le_bytes());
        for extent in extents {
            for number in [extent.cluster, extent.slot, extent.len, 0] {
                bytes.extend_from_slice(&number.to_le_bytes());
            }
        }
        bytes
    }
}
