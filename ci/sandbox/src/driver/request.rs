//! The ioctls of `ploop_if.h`: numbers, and the structures behind their arguments.

use std::fs::File;
use std::os::fd::OwnedFd;

use rustix::io::Errno;

/// An ioctl on its way.
pub(super) struct Ioctl<'a> {
    pub(super) number: u32,
    /// On the partition's node.
    pub(super) partition: bool,
    pub(super) argument: u64,
    pub(super) payload: &'a [u8],
    pub(super) descriptors: Vec<OwnedFd>,
    /// Whether nobody waits for the answer any more.
    pub(super) gone: &'a dyn Fn() -> bool,
}

/// Their numbers within type `P`. The direction and size in the other bits say nothing more.
pub(super) mod number {
    pub(crate) const ADD_DELTA: u32 = 0;
    pub(crate) const CLEAR: u32 = 1;
    pub(crate) const STOP: u32 = 2;
    pub(crate) const START: u32 = 3;
    pub(crate) const SNAPSHOT: u32 = 4;
    pub(crate) const DEL_DELTA: u32 = 5;
    pub(crate) const TRACK_INIT: u32 = 6;
    pub(crate) const TRACK_STOP: u32 = 7;
    pub(crate) const TRACK_ABORT: u32 = 8;
    pub(crate) const TRACK_SETPOS: u32 = 9;
    pub(crate) const TRACK_READ: u32 = 10;
    pub(crate) const SYNC: u32 = 11;
    pub(crate) const MERGE: u32 = 12;
    pub(crate) const REPLACE_DELTA: u32 = 13;
    pub(crate) const TRUNCATE: u32 = 14;
    pub(crate) const UPDATE_INDEX: u32 = 16;
    pub(crate) const GROW: u32 = 17;
    pub(crate) const FBGET: u32 = 18;
    pub(crate) const BALLOON: u32 = 19;
    pub(crate) const FREEBLKS: u32 = 20;
    pub(crate) const RELOCBLKS: u32 = 21;
    pub(crate) const GETDEVICE: u32 = 22;
    pub(crate) const DISCARD_INIT: u32 = 23;
    pub(crate) const DISCARD_FINI: u32 = 24;
    pub(crate) const DISCARD_WAIT: u32 = 25;
    pub(crate) const FBDROP: u32 = 26;
    pub(crate) const FBFILTER: u32 = 27;
    pub(crate) const MAX_DELTA_SIZE: u32 = 28;
}

/// The block layer's request to read the partition table again.
pub(super) const BLKRRPART: u32 = 0x125f;

/// `'P'`, the type of ploop's ioctls.
const TYPE: u32 = 0x50;

impl Ioctl<'_> {
    /// Which of ploop's it is.
    pub(super) fn of_ploop(&self) -> Option<u32> {
        (self.number >> 8 & 0xff == TYPE).then_some(self.number & 0xff)
    }

    pub(super) fn word(&self, at: usize) -> Result<u32, Errno> {
        word(self.payload, at)
    }

    /// `__u64` at the beginning of the argument.
    pub(super) fn long(&self) -> Result<u64, Errno> {
        Ok(u64::from(self.word(0)?) | u64::from(self.word(4)?) << 32)
    }

    /// The file that was sent along.
    pub(super) fn file(&self) -> Result<File, Errno> {
        let descriptor = self.descriptors.first().ok_or(Errno::BADF)?;
        Ok(File::from(
            descriptor.try_clone().map_err(|_| Errno::MFILE)?,
        ))
    }
}

fn word(bytes: &[u8], at: usize) -> Result<u32, Errno> {
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

    /// How the chunk's file is to be read.
    pub(super) fn io_type(ioctl: &Ioctl<'_>) -> Result<u32, Errno> {
        ioctl.word(Control::LEN + 4)
    }

    /// Whether the chunk begins and ends with its file; others there were never.
    pub(super) fn is_whole_file(ioctl: &Ioctl<'_>) -> Result<bool, Errno> {
        // The offset, the start and the length.
        for at in (12..Control::CHUNK_LEN).step_by(4) {
            if ioctl.word(Control::LEN + at)? != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// The name the device gets; one byte of it stays for the end of the text.
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

/// Clusters of the disk and where they are in the top delta's file: `len` of them, from `cluster` and
/// `slot` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) cluster: u32,
    pub(super) slot: u32,
    pub(super) len: u32,
}

impl Extent {
    /// Its numbers one by one.
    pub(super) fn each(self) -> impl Iterator<Item = (u32, u32)> {
        (0..self.len).map(move |n| (self.cluster.wrapping_add(n), self.slot.wrapping_add(n)))
    }
}

/// `struct ploop_freeblks_ctl`: how many extents the caller has, or has room for, and those there are.
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

    /// The structure with other values, and these extents behind it.
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
