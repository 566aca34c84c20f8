//! Which parts of a disk its ext2, ext3 and ext4 file systems do not use, by their block bitmaps.
//!
//! Whoever frees such a part relies on the bitmaps, so what is not sure to be as the kernel would leave it is not used: a
//! file system that was not unmounted, whose journal is not replayed, which has errors or wrong checksums, or features that
//! nobody knows here. What the space between partitions is for, nobody can tell; it is not free.

use std::ops::Range;

use fs_ext4::Filesystem;
use fs_ext4::bgd::{BgdFlags, BlockGroupDescriptor};
use fs_ext4::error::Error as Ext4Error;
use fs_ext4::features::{Incompat, RoCompat, SUPPORTED_RO_COMPAT};
use fs_ext4::jbd2;
use ploop::Size;
use ploop::image::{Disk, FreeParts, Partition};
use serde::Serialize;

use crate::file_system::{FileSystem, guarded};
use crate::output::Failure;

/// An ext2, ext3 or ext4 file system of a disk, and what it has free.
#[derive(Debug, Serialize)]
pub(crate) struct FileSystemSpace {
    /// The number of its partition; null for that of the whole disk.
    pub(crate) partition: Option<u32>,
    /// How much of it is free, in bytes; null where that is not known for certain.
    pub(crate) free: Option<u64>,
    /// Why it is not known.
    pub(crate) problem: Option<String>,
}

/// Adds what the file systems of a disk do not use to `free`, all of a file system or nothing. Partitions with other
/// contents are left out.
pub(crate) fn find(disk: &Disk, free: &mut FreeParts) -> ploop::Result<Vec<FileSystemSpace>> {
    let table = disk.partition_table()?;
    if let Some(fault) = table.faults.first() {
        // What is where is not known then.
        return Ok(vec![FileSystemSpace {
            partition: None,
            free: None,
            problem: Some(format!("the partition table is damaged: {fault}")),
        }]);
    }
    let whole = (None, 0, disk.size());
    let places = match table.partitions.is_empty() {
        true => vec![whole],
        false => {
            let place = |it: &Partition| (Some(it.number), it.offset, it.size);
            table.partitions.iter().map(place).collect()
        }
    };
    let mut found = Vec::new();
    for (partition, offset, size) in places {
        let space = guarded(|| {
            let Some(file_system) = open(disk, (offset, size))? else {
                return Ok(None);
            };
            require_alone(disk, &table.partitions, partition, (offset, size))?;
            let groups = Groups::of(&file_system)?;
            // Twice, because nothing is free where the last group is damaged.
            let blocks = groups.each_free(|_| {})?;
            groups.each_free(|bytes| free.add(offset + bytes.start..offset + bytes.end))?;
            Ok(Some(blocks))
        });
        let (free, problem) = match space {
            Ok(None) => continue,
            Ok(Some(free)) => (Some(free), None),
            Err(failure) => (None, Some(failure.to_string())),
        };
        found.push(FileSystemSpace {
            partition,
            free,
            problem,
        });
    }
    Ok(found)
}

type Result<T> = crate::output::Result<T>;

fn refused<T>(why: impl Into<String>) -> Result<T> {
    Err(Failure::Request(why.into()))
}

/// `None` where there is no such file system.
fn open(disk: &Disk, part: (u64, Size)) -> Result<Option<FileSystem>> {
    match FileSystem::open_part(disk, part) {
        Ok(file_system) => Ok(Some(file_system)),
        Err(Ext4Error::BadMagic { .. } | Ext4Error::OutOfBounds) => Ok(None),
        Err(error) => refused(format!("it cannot be read: {error}")),
    }
}

/// Requires that nothing else lies where the file system does. The superblock of one that was there earlier may be left.
fn require_alone(
    disk: &Disk,
    partitions: &[Partition],
    number: Option<u32>,
    (offset, size): (u64, Size),
) -> Result<()> {
    let end = |offset: u64, size: Size| offset.saturating_add(size.bytes());
    for other in partitions {
        let overlaps = other.offset < end(offset, size) && offset < end(other.offset, other.size);
        if Some(other.number) != number && overlaps {
            return refused(format!("partition {} overlaps it", other.number));
        }
    }
    let mut start = vec![0; 68 << 10];
    disk.read_at(&mut start, offset)?;
    const OTHERS: [(usize, &[u8], &str); 9] = [
        (0, b"XFSB", "XFS"),
        (0, b"LUKS\xba\xbe", "LUKS"),
        (0, b"LABELONE", "LVM"),
        (512, b"LABELONE", "LVM"),
        (0, b"\xfc\x4e\x2b\xa9", "RAID"),
        (4096, b"\xfc\x4e\x2b\xa9", "RAID"),
        (4086, b"SWAPSPACE2", "swap"),
        (4086, b"SWAP-SPACE", "swap"),
        (0x10040, b"_BHRfS_M", "Btrfs"),
    ];
    match OTHERS
        .iter()
        .find(|(at, signature, _)| start[*at..].starts_with(signature))
    {
        None => Ok(()),
        Some((_, _, name)) => refused(format!("it has a signature of {name}, too")),
    }
}

/// The block groups of a file system whose bitmaps can be relied upon.
struct Groups<'a> {
    file_system: &'a Filesystem,
    /// Blocks for each bit of a bitmap: more than one with `bigalloc`.
    ratio: u64,
    /// The superblocks, descriptors, bitmaps and tables of inodes of all groups, in blocks and in order. The bitmap of a
    /// group has to have them.
    metadata: Vec<Range<u64>>,
}

impl<'a> Groups<'a> {
    fn of(file_system: &'a FileSystem) -> Result<Groups<'a>> {
        /// `s_state`: unmounted cleanly, and with errors.
        const VALID: u16 = 1;
        const ERROR: u16 = 2;
        let file_system = &file_system.library;
        let superblock = &file_system.sb;
        let is_clean = match jbd2::read_superblock(file_system) {
            Ok(journal) => journal.is_none_or(|it| it.is_clean()),
            Err(error) => return refused(format!("the journal cannot be read: {error}")),
        };
        if !is_clean || superblock.feature_incompat & Incompat::RECOVER.bits() != 0 {
            return refused("its journal has to be replayed first; mount it once, or run e2fsck");
        }
        if superblock.state & VALID == 0 {
            return refused("it was not unmounted cleanly; run e2fsck");
        }
        if superblock.state & ERROR != 0 {
            return refused("it is marked as having errors; run e2fsck");
        }
        let known = SUPPORTED_RO_COMPAT | RoCompat::VERITY.bits();
        let unknown = superblock.feature_ro_compat & !known;
        if unknown != 0 {
            return refused(format!("it has features that are not known: {unknown:#x}"));
        }
        let is_bigalloc = superblock.feature_ro_compat & RoCompat::BIGALLOC.bits() != 0;
        let mut ratio = 1;
        if is_bigalloc {
            let log_cluster = superblock.raw[0x1c..0x20]
                .try_into()
                .map(u32::from_le_bytes);
            let log = log_cluster.map_or(0, |log| log.saturating_sub(superblock.log_block_size));
            ratio = 1 << log.min(20);
            if superblock.first_data_block != 0 {
                return refused("its clusters do not begin at the first block");
            }
        }
        let mut groups = Groups {
            file_system,
            ratio,
            metadata: Vec::new(),
        };
        groups.metadata = groups.find_metadata();
        Ok(groups)
    }

    fn find_metadata(&self) -> Vec<Range<u64>> {
        let superblock = &self.file_system.sb;
        let table = u64::from(superblock.inodes_per_group) * u64::from(superblock.inode_size);
        let table = table.div_ceil(superblock.block_size().into());
        let groups = self.file_system.groups.iter().enumerate();
        let mut all: Vec<Range<u64>> = groups
            .flat_map(|(number, group)| {
                let start = self.blocks(number).start;
                let head = superblock.group_head_metadata_blocks(number as u64);
                [
                    start..start.saturating_add(head),
                    group.block_bitmap..group.block_bitmap.saturating_add(1),
                    group.inode_bitmap..group.inode_bitmap.saturating_add(1),
                    group.inode_table..group.inode_table.saturating_add(table),
                ]
            })
            .filter(|blocks| !blocks.is_empty())
            .collect();
        all.sort_by_key(|blocks| blocks.start);
        all.dedup_by(|next, last| {
            let touches = next.start <= last.end;
            if touches {
                last.end = last.end.max(next.end);
            }
            touches
        });
        all
    }

    /// The blocks of a group. The last one may have fewer.
    fn blocks(&self, number: usize) -> Range<u64> {
        let superblock = &self.file_system.sb;
        let per_group = u64::from(superblock.blocks_per_group);
        let start = u64::from(superblock.first_data_block) + number as u64 * per_group;
        let end = (start + per_group).min(superblock.blocks_count);
        start.min(end)..end
    }

    /// Calls `free` with all free parts, in bytes and in order, and returns how much they are together.
    fn each_free(&self, mut free: impl FnMut(Range<u64>)) -> Result<u64> {
        let superblock = &self.file_system.sb;
        let block = u64::from(superblock.block_size());
        let mut total = 0;
        for (number, group) in self.file_system.groups.iter().enumerate() {
            let blocks = self.blocks(number);
            let bits = (blocks.end - blocks.start).div_ceil(self.ratio);
            let bitmap = self.bitmap(number, group, bits)?;
            let is_free = |bit: u64| bitmap[(bit / 8) as usize] & 1 << (bit % 8) == 0;
            let count = (0..bits).filter(|bit| is_free(*bit)).count() as u64;
            if count != u64::from(group.free_blocks_count) {
                return refused(format!(
                    "block group {number} has {count} free blocks by its bitmap, and {} by its descriptor; run e2fsck",
                    group.free_blocks_count
                ));
            }
            let mut bit = 0;
            while bit < bits {
                if !is_free(bit) {
                    bit += 1;
                    continue;
                }
                let end = (bit..bits).find(|bit| !is_free(*bit)).unwrap_or(bits);
                let of_bit = |bit: u64| (blocks.start + bit * self.ratio).min(blocks.end) * block;
                let bytes = of_bit(bit)..of_bit(end);
                total += bytes.end - bytes.start;
                free(bytes);
                bit = end;
            }
        }
        Ok(total)
    }

    /// The bitmap of a group, from the disk, or made as the kernel makes it where the group was never used.
    fn bitmap(&self, number: usize, group: &BlockGroupDescriptor, bits: u64) -> Result<Vec<u8>> {
        let superblock = &self.file_system.sb;
        let has_flags = RoCompat::GDT_CSUM | RoCompat::METADATA_CSUM;
        let is_unused = superblock.feature_ro_compat & has_flags.bits() != 0
            && group.flags().contains(BgdFlags::BLOCK_UNINIT);
        let mut bitmap = match is_unused {
            true => vec![0; superblock.block_size() as usize],
            false => self.read_bitmap(number, group)?,
        };
        if bits > bitmap.len() as u64 * 8 {
            return refused(format!("block group {number} has no room for its bitmap"));
        }
        let blocks = self.blocks(number);
        let first = self.metadata.partition_point(|it| it.end <= blocks.start);
        let metadata = self.metadata[first..].iter();
        for part in metadata.take_while(|it| it.start < blocks.end) {
            let start = part.start.max(blocks.start) - blocks.start;
            let end = part.end.min(blocks.end) - blocks.start;
            for bit in start / self.ratio..end.div_ceil(self.ratio) {
                let (byte, bit) = (&mut bitmap[(bit / 8) as usize], 1 << (bit % 8));
                if !is_unused && *byte & bit == 0 {
                    return refused(format!(
                        "the bitmap of block group {number} has the file system's own blocks as free; run e2fsck"
                    ));
                }
                *byte |= bit;
            }
        }
        Ok(bitmap)
    }

    fn read_bitmap(&self, number: usize, group: &BlockGroupDescriptor) -> Result<Vec<u8>> {
        let superblock = &self.file_system.sb;
        let bitmap = match self.file_system.read_block(group.block_bitmap) {
            Ok(bitmap) => bitmap,
            Err(error) => {
                return refused(format!(
                    "the bitmap of block group {number} cannot be read: {error}"
                ));
            }
        };
        let checksums = &self.file_system.csum;
        let len = u64::from(superblock.blocks_per_group) / self.ratio / 8;
        let Some(covered) = bitmap.get(..len as usize) else {
            return refused(format!("block group {number} has no room for its bitmap"));
        };
        // Descriptors of 32 bytes have half of the checksum.
        let half = match superblock.desc_size {
            ..64 => u32::from(u16::MAX),
            _ => u32::MAX,
        };
        if checksums.enabled && (checksums.crc(covered) ^ group.block_bitmap_csum) & half != 0 {
            return refused(format!(
                "the bitmap of block group {number} has a wrong checksum; run e2fsck"
            ));
        }
        Ok(bitmap)
    }
}
