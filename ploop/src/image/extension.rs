//! The format extension of a delta: clusters with dirty bitmaps, which backup programs append. No entry of the table
//! leads to them. libploop and the driver do not know them.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::header::Header;
use crate::{Error, ErrorKind, Result};

const OPERATION: &str = "read format extension";

const MAGIC: u64 = 0xab23_4cef_23dc_ea87;
/// The features follow the magic number and a checksum.
const FIRST_FEATURE: usize = 24;
const DIRTY_BITMAP: u64 = 0x2038_5fae_252c_b34a;

/// The offsets of the clusters of the extension; the first is that with the list of features.
pub(super) fn clusters(file: &File, header: &Header, len: u64) -> Result<Vec<u64>> {
    let cluster = header.cluster.bytes();
    let is_cluster = |offset: u64| {
        offset % cluster == 0
            && offset >= header.data_start()
            && offset.checked_add(cluster).is_some_and(|end| end <= len)
    };
    let start = header.extension_sector.checked_mul(512);
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
    let number = |at: usize, len: usize| -> Option<u64> {
        let mut number = [0; 8];
        number[..len].copy_from_slice(bytes.get(at..at.checked_add(len)?)?);
        Some(u64::from_le_bytes(number))
    };
    let fault = |what: &str, at: usize| damaged(what.to_owned(), start + at as u64);
    if number(0, 8) != Some(MAGIC) {
        return Err(fault("it begins with another number than it should", 0));
    }
    let mut found = vec![start];
    let mut at = FIRST_FEATURE;
    loop {
        let (Some(magic), Some(size)) = (number(at, 8), number(at + 16, 4)) else {
            return Err(fault("its features lead out of it", at));
        };
        if magic == 0 {
            return Ok(found);
        }
        let data = at + 24;
        if magic == DIRTY_BITMAP {
            // After size, GUID and granularity.
            let entries = number(data + 28, 4).unwrap_or(0) as usize;
            if entries > size as usize / 8 {
                return Err(fault("a bitmap's table is larger than its data", data));
            }
            for entry in 0..entries {
                let place = data + 32 + 8 * entry;
                match number(place, 8) {
                    None => return Err(fault("a bitmap's table leads out of it", place)),
                    // 0 and 1 mean that all is clean, or dirty.
                    Some(0 | 1) => {}
                    Some(sector) => match sector.checked_mul(512).filter(|it| is_cluster(*it)) {
                        Some(offset) => found.push(offset),
                        None => return Err(fault("a part of a bitmap is no cluster", place)),
                    },
                }
            }
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
