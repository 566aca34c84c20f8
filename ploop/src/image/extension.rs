//! The format extension of a delta: clusters with dirty bitmaps, which libploop 7 and backup programs append. No entry
//! of the table leads to them. libploop 1 and the driver do not know them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use uuid::Uuid;

use super::layout::Layout;
use crate::{Error, ErrorKind, Guid, Result};

const OPERATION: &str = "read the format extension of";

const MAGIC: u64 = 0xab23_4cef_23dc_ea87;
/// An MD5 checksum of all that follows it comes after the magic number.
const CHECKSUM: usize = 8;
const FIRST_FEATURE: usize = 24;
const DIRTY_BITMAP: u64 = 0x2038_5fae_252c_b34a;

/// A dirty bitmap, as the extension describes it.
pub(super) struct DirtyBitmap {
    /// The size of the disk.
    pub(super) sectors: u64,
    pub(super) id: Guid,
    /// How many sectors a bit stands for.
    pub(super) granularity: u32,
    /// The sector of each cluster of bits; 0 and 1 where all is clean, or dirty.
    pub(super) table: Vec<u64>,
}

/// The offsets of the clusters of the extension; the first is that with the list of features.
pub(super) fn clusters(file: &File, layout: &Layout, len: u64) -> Result<Vec<u64>> {
    let (start, _, bitmaps) = read(file, layout, len)?;
    let parts = bitmaps.iter().flat_map(|bitmap| &bitmap.table);
    let places = parts.filter(|sector| **sector > 1);
    Ok([start]
        .into_iter()
        .chain(places.map(|sector| sector * 512))
        .collect())
}

/// The dirty bitmaps of the extension, whose checksum is right.
pub(super) fn dirty_bitmaps(file: &File, layout: &Layout, len: u64) -> Result<Vec<DirtyBitmap>> {
    let (start, bytes, bitmaps) = read(file, layout, len)?;
    if bytes[CHECKSUM..FIRST_FEATURE] != md5::compute(&bytes[FIRST_FEATURE..]).0 {
        return Err(damaged(
            "its checksum is wrong".to_owned(),
            start + CHECKSUM as u64,
        ));
    }
    Ok(bitmaps)
}

/// The offset and the bytes of the first cluster of the extension, and its bitmaps.
fn read(file: &File, layout: &Layout, len: u64) -> Result<(u64, Vec<u8>, Vec<DirtyBitmap>)> {
    let cluster = layout.cluster.bytes();
    let is_cluster = |offset: u64| {
        layout.is_aligned(offset)
            && offset >= layout.data_start
            && offset.checked_add(cluster).is_some_and(|end| end <= len)
    };
    let start = layout.extension_sector.checked_mul(512);
    let Some(start) = start.filter(|start| is_cluster(*start)) else {
        return Err(damaged(
            "it does not begin a cluster of the file".to_owned(),
            56,
        ));
    };
    let mut bytes = vec![0; cluster as usize];
    file.read_exact_at(&mut bytes, start).map_err(|error| {
        Error::io(OPERATION, "the file cannot be read", error).with_offset(start)
    })?;
    let bitmaps = parse(&bytes, is_cluster)
        .map_err(|(what, at)| damaged(what.to_owned(), start + at as u64))?;
    Ok((start, bytes, bitmaps))
}

/// The bitmaps in the first cluster of an extension; or what is wrong, and where.
fn parse(
    bytes: &[u8],
    is_cluster: impl Fn(u64) -> bool,
) -> Result<Vec<DirtyBitmap>, (&'static str, usize)> {
    let number = |at: usize, len: usize| -> Option<u64> {
        let mut number = [0; 8];
        number[..len].copy_from_slice(bytes.get(at..at.checked_add(len)?)?);
        Some(u64::from_le_bytes(number))
    };
    if number(0, 8) != Some(MAGIC) {
        return Err(("it begins with another number than it should", 0));
    }
    let mut bitmaps = Vec::new();
    let mut at = FIRST_FEATURE;
    loop {
        let (Some(magic), Some(size)) = (number(at, 8), number(at + 16, 4)) else {
            return Err(("its features lead out of it", at));
        };
        if magic == 0 {
            return Ok(bitmaps);
        }
        let data = at + 24;
        if magic == DIRTY_BITMAP {
            let id = bytes
                .get(data + 8..data + 24)
                .and_then(|id| id.try_into().ok());
            let fields = (
                number(data, 8),
                id,
                number(data + 24, 4),
                number(data + 28, 4),
            );
            let (Some(sectors), Some(id), Some(granularity), Some(entries)) = fields else {
                return Err(("a bitmap leads out of it", data));
            };
            let entries = entries as usize;
            if entries > size as usize / 8 {
                return Err(("a bitmap's table is larger than its data", data));
            }
            let mut table = Vec::new();
            for entry in 0..entries {
                let place = data + 32 + 8 * entry;
                match number(place, 8) {
                    None => return Err(("a bitmap's table leads out of it", place)),
                    Some(sector @ (0 | 1)) => table.push(sector),
                    Some(sector) if sector.checked_mul(512).is_some_and(&is_cluster) => {
                        table.push(sector);
                    }
                    Some(_) => return Err(("a part of a bitmap is no cluster", place)),
                }
            }
            bitmaps.push(DirtyBitmap {
                sectors,
                id: Guid::from(Uuid::from_bytes(id)),
                granularity: granularity as u32,
                table,
            });
        }
        at = data + (size as usize).next_multiple_of(8);
    }
}

fn damaged(what: String, offset: u64) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        OPERATION,
        format!("the image has a format extension that is damaged: {what}"),
    )
    .with_offset(offset)
}
