//! The partition of a device. The kernel may know no partition tables, so the table is read here.

use std::io;

/// A partition as sysfs shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Partition {
    /// In sectors of 512 bytes.
    pub(crate) start: u64,
    /// In sectors.
    pub(crate) size: u64,
}

const SECTOR: u64 = 512;

/// The first partition of a disk of `size` bytes, if there is one.
pub(crate) fn first(
    size: u64,
    read: impl Fn(&mut [u8], u64) -> io::Result<()>,
) -> io::Result<Option<Partition>> {
    if size < 3 * SECTOR {
        return Ok(None);
    }
    let mut start = [0; 2 * SECTOR as usize];
    read(&mut start, 0)?;
    let u32_at = |bytes: &[u8], at: usize| {
        u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
    };
    let u64_at = |bytes: &[u8], at: usize| {
        u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
    };
    let (boot, header) = start.split_at(SECTOR as usize);
    let found = if header.starts_with(b"EFI PART") {
        let table = u64_at(header, 72).saturating_mul(SECTOR);
        let mut entry = [0; 128];
        if table.saturating_add(128) > size {
            return Ok(None);
        }
        read(&mut entry, table)?;
        let (first, last) = (u64_at(&entry, 32), u64_at(&entry, 40));
        let is_used = entry[..16].iter().any(|byte| *byte != 0) && last >= first;
        is_used.then(|| Partition {
            start: first,
            size: (last - first).saturating_add(1),
        })
    } else {
        let entry = &boot[446..462];
        let is_used = boot[510..] == [0x55, 0xaa]
            && boot[446..510].chunks(16).all(|entry| entry[0] & 0x7f == 0)
            && !matches!(entry[4], 0 | 0x05 | 0x0f | 0x85 | 0xee);
        is_used.then(|| Partition {
            start: u64::from(u32_at(entry, 8)),
            size: u64::from(u32_at(entry, 12)),
        })
    };
    Ok(found.filter(|partition| {
        partition.size != 0
            && partition
                .start
                .saturating_add(partition.size)
                .saturating_mul(SECTOR)
                <= size
    }))
}
