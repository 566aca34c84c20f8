//! Preallocation: a delta gets all its clusters.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FallocateFlags, fallocate, fstatvfs};
use rustix::io::Errno;

use super::file;
use super::header::{Header, HeaderFlags};
use super::table::{PAGE, Table, entry_offset};
use crate::{Error, ErrorKind, FormatVersion, Result};

const OPERATION: &str = "preallocate";

/// Appends the clusters that a delta lacks. They read as zero.
///
/// The space is on the disk before an entry leads there. libploop writes the entries first: after a power cut they lead
/// behind the end of the file, and the next cluster that is allocated there belongs to two. Where the file system cannot
/// allocate, zeros are written, or with `alone` false nothing is done, because libploop does it then; so too where entries
/// cannot lead so far.
pub(crate) fn preallocate(path: &Path, alone: bool) -> Result<()> {
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
    if count == 0 {
        return Ok(());
    }
    if (slot + count) * unit > u64::from(u32::MAX) {
        return match alone {
            false => Ok(()),
            true => {
                let why = "not all clusters of the disk fit into the file: an entry of the table cannot lead so far";
                Err(Error::new(ErrorKind::InvalidInput, OPERATION, why).with_path(path))
            }
        };
    }
    // Asked first, because a failed `fallocate` changes at least the times of the file.
    let free = fstatvfs(&file).map_err(|error| failed(error.into()))?;
    if free.f_bfree.saturating_mul(free.f_frsize) < count * cluster {
        return Err(failed(Errno::NOSPC.into()));
    }
    let (start, more) = (slot * cluster, count * cluster);
    let allocated = match fallocate(&file, FallocateFlags::empty(), start, more) {
        Err(Errno::OPNOTSUPP | Errno::NOSYS) if !alone => return Ok(()),
        Err(Errno::OPNOTSUPP | Errno::NOSYS) => write_zeros(&file, start, more),
        allocated => allocated.map_err(io::Error::from),
    };
    if let Err(error) = allocated {
        // A part may have been allocated.
        let _ = file.set_len(len);
        return Err(failed(error));
    }
    file.sync_all().map_err(failed)?;
    if header.flags.contains(HeaderFlags::EMPTY) && alone {
        let mut header = header.clone();
        header.flags.remove(HeaderFlags::EMPTY);
        file.write_all_at(&header.to_bytes(), 0).map_err(failed)?;
    }
    for number in 0..pages {
        let missing = missing(number)?;
        // Neighbours are written together.
        for run in missing.chunk_by(|a, b| a + 1 == *b) {
            let entries = (slot..).zip(run);
            let bytes = entries.flat_map(|(slot, _)| ((slot * unit) as u32).to_le_bytes());
            let bytes: Vec<u8> = bytes.collect();
            file.write_all_at(&bytes, entry_offset(run[0]))
                .map_err(failed)?;
            slot += run.len() as u64;
        }
    }
    file.sync_all().map_err(failed)
}

/// Where the file system cannot allocate space that reads as zero.
fn write_zeros(file: &File, start: u64, len: u64) -> io::Result<()> {
    let zeros = vec![0; len.min(1 << 20) as usize];
    let mut done = 0;
    while done < len {
        let part = (len - done).min(zeros.len() as u64) as usize;
        file.write_all_at(&zeros[..part], start + done)?;
        done += part as u64;
    }
    Ok(())
}
