//! Preallocation: a delta gets all its clusters.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::io::Errno;

use super::file;
use super::header::Header;
use super::table::{PAGE, Table, entry_offset};
use crate::{Error, FormatVersion, Result};

const OPERATION: &str = "preallocate";

/// Appends the clusters that a delta lacks. They read as zero.
///
/// The space is on the disk before an entry leads there. libploop writes the entries first: after a power cut they lead
/// behind the end of the file, and the next cluster that is allocated there belongs to two. Does nothing where the file
/// system cannot allocate, or entries cannot lead so far; then libploop does it.
pub(crate) fn preallocate(path: &Path) -> Result<()> {
    let failed =
        |error| Error::io(OPERATION, "the space cannot be allocated", error).with_path(path);
    let (_, len) = file::open(OPERATION, path).map_err(|error| error.with_path(path))?;
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed)?;
    let header = Header::read_from(&file, len).map_err(|error| error.with_path(path))?;
    let table = Table::new(header.entries());
    let cluster = header.cluster.bytes();
    let mut slot = len.div_ceil(cluster);
    let pages = header.entries().div_ceil(PAGE);
    let missing = |number: u32| -> Result<Vec<u32>> {
        let first = number * PAGE;
        let count = (header.entries() - first).min(PAGE);
        let page = table.page_uncached(&file, number)?;
        Ok((0..count)
            .filter(|index| page.entry(*index) == 0)
            .map(|index| first + index)
            .collect())
    };
    let mut count = 0;
    for number in 0..pages {
        count += missing(number)?.len() as u64;
    }
    let unit = match header.version {
        FormatVersion::V1 => u64::from(header.cluster.sectors()),
        FormatVersion::V2 => 1,
    };
    if count == 0 || (slot + count) * unit > u64::from(u32::MAX) {
        return Ok(());
    }
    // Asked first, because a failed `fallocate` changes at least the times of the file.
    let free = fstatvfs(&file).map_err(|error| failed(error.into()))?;
    if free.f_bfree.saturating_mul(free.f_frsize) < count * cluster {
        return Err(failed(Errno::NOSPC.into()));
    }
    match fallocate(
        &file,
        FallocateFlags::empty(),
        slot * cluster,
        count * cluster,
    ) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => return Ok(()),
        Err(error) => {
            // It may have allocated a part.
            let _ = file.set_len(len);
            return Err(failed(error.into()));
        }
        Ok(()) => {}
    }
    file.sync_all().map_err(failed)?;
    for number in 0..pages {
        for entry in missing(number)? {
            let value = (slot * unit) as u32;
            file.write_all_at(&value.to_le_bytes(), entry_offset(entry))
                .map_err(failed)?;
            slot += 1;
        }
    }
    file.sync_all().map_err(failed)
}
