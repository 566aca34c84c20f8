//! `FsInfo` and `ImageInfo`: what libploop tells of an image, in its own units.

#[cfg(feature = "libploop")]
use std::io;
#[cfg(feature = "libploop")]
use std::path::Path;

use crate::Size;

/// The file system in an image, in the numbers of `statfs`. Programs match all its fields, which
/// are goploop's and C's, so it gets no others.
///
/// ```
/// use ploop::{FsInfo, Size};
///
/// let info = FsInfo { block_size: 4096, blocks: 1024, blocks_free: 256, ..FsInfo::default() };
/// assert_eq!(info.size(), Size::from_mib(4));
/// assert_eq!(info.free(), Size::from_mib(1));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct FsInfo {
    /// Bytes per block.
    pub block_size: u64,
    /// Blocks in all.
    pub blocks: u64,
    /// Blocks that are free.
    pub blocks_free: u64,
    /// Inodes in all.
    pub inodes: u64,
    /// Inodes that are free.
    pub inodes_free: u64,
}

impl FsInfo {
    /// Of what is mounted on a directory.
    #[cfg(feature = "libploop")]
    pub(crate) fn of_mounted(target: &Path) -> io::Result<FsInfo> {
        let numbers = rustix::fs::statfs(target)?;
        Ok(FsInfo {
            block_size: u64::try_from(numbers.f_bsize).map_err(io::Error::other)?,
            blocks: numbers.f_blocks,
            blocks_free: numbers.f_bfree,
            inodes: numbers.f_files,
            inodes_free: numbers.f_ffree,
        })
    }

    /// The size of the file system.
    #[must_use]
    pub fn size(&self) -> Size {
        Size::from_bytes(self.blocks.saturating_mul(self.block_size))
    }

    /// The free part of it.
    #[must_use]
    pub fn free(&self) -> Size {
        Size::from_bytes(self.blocks_free.saturating_mul(self.block_size))
    }
}

/// The virtual disk, in libploop's units. It has goploop's fields, and gets no others.
///
/// ```
/// use ploop::{ImageInfo, Size};
///
/// let info = ImageInfo { blocks: 20480, block_size: 2048, version: 2 };
/// assert_eq!(info.size(), Size::from_mib(10));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct ImageInfo {
    /// The size of the disk in sectors of 512 bytes.
    pub blocks: u64,
    /// The size of a cluster in sectors of 512 bytes.
    pub block_size: u32,
    /// The version of the format: 1, 2, or 0 for a raw base without deltas.
    pub version: u32,
}

impl ImageInfo {
    /// The size of the disk.
    #[must_use]
    pub fn size(&self) -> Size {
        Size::from_sectors(self.blocks)
    }
}
