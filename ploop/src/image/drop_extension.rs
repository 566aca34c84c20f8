//! Dropping the format extension of a delta: [`drop_extension`].

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::delta::Delta;
use super::extension;
use super::file;
use super::header::Header;
use super::layout::Layout;
use super::table::PAGE;
use crate::{Error, Result};

/// Drops the format extension of a delta that nobody uses: first the header forgets it, then the clusters of it that
/// end the file are cut off. A crash in between leaves lost clusters.
pub(crate) fn drop_extension(operation: &'static str, path: &Path) -> Result<()> {
    let failed = |error: std::io::Error| {
        Error::io(operation, "the format extension cannot be dropped", error).with_path(path)
    };
    let file = File::options()
        .read(true)
        .write(true)
        .open(path)
        .map_err(failed)?;
    let len = file::length(operation, &file).map_err(|error| error.with_path(path))?;
    let header =
        Header::read_from(&file, len).map_err(|error| error.during(operation).with_path(path))?;
    if header.extension_sector == 0 {
        return Ok(());
    }
    // One that is damaged or was not kept up is left behind, as lost clusters.
    let mut own = match header.has_extension() {
        true => extension::clusters(&file, &Layout::from(&header), len).unwrap_or_default(),
        false => Vec::new(),
    };
    let mut bytes = [0; Header::LEN];
    file.read_exact_at(&mut bytes, 0).map_err(failed)?;
    Header::forget_extension(&mut bytes);
    file.write_all_at(&bytes, 0)
        .and_then(|()| file.sync_data())
        .map_err(failed)?;
    if own.is_empty() {
        return Ok(());
    }
    let end = end_of_data(path, &header, &file, len)?;
    own.sort_unstable();
    let cluster = header.cluster.bytes();
    let mut new = len;
    while own.last().is_some_and(|last| last + cluster == new) && new > end {
        own.pop();
        new -= cluster;
    }
    if new < len {
        file.set_len(new)
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
    }
    Ok(())
}

/// Where the last cluster of the disk ends in the file.
fn end_of_data(path: &Path, header: &Header, file: &File, len: u64) -> Result<u64> {
    let copy = file.try_clone().map_err(|error| {
        Error::io("read block table", "the file cannot be read", error).with_path(path)
    })?;
    let delta = Delta::from_file(path, copy, len, false)?;
    let entries = header.entries();
    let mut end = header.data_start();
    for number in 0..entries.div_ceil(PAGE) {
        let page = delta.page(number)?;
        let first = number * PAGE;
        for index in 0..PAGE.min(entries - first) {
            if let Some(offset) = delta.resolve(first + index, page.entry(index))? {
                end = end.max(offset + header.cluster.bytes());
            }
        }
    }
    Ok(end)
}
