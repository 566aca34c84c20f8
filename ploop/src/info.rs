//! Answers to what is asked of an image, in libploop's units.

use crate::Size;

/// The file system in an image, in the numbers of `statfs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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

/// The virtual disk, in libploop's units.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
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
