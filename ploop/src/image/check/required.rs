//! What a delta must be before it is changed ([`require_sound_delta`]).

use std::fs::File;
use std::path::Path;

use super::findings::Findings;
use super::table::TableCheck;
use super::{OPERATION, check_entry_count, check_layout};
use crate::image::file;
use crate::image::header::Header;
use crate::image::layout::Layout;
use crate::image::report::{Issue, Severity};
use crate::{Error, ErrorKind, Result};

/// Requires that the caller accepts the header of a delta, and that its table is sound: each entry leads to a cluster
/// of its own, inside the file and behind the table. Reads the whole table, four bytes for each cluster of the disk,
/// but not its holes. Returns the header and the open file.
pub(in crate::image) fn require_sound_delta(
    operation: &'static str,
    path: &Path,
    accept: impl FnOnce(&Header) -> Result<()>,
) -> Result<(Header, File)> {
    let failed = |error: Error| error.during(operation).with_path(path);
    let (file, len) = file::open(OPERATION, path).map_err(failed)?;
    let header = Header::read_from(&file, len).map_err(failed)?;
    accept(&header)?;
    let mut findings = Findings::default();
    let layout = Layout::from(&header);
    check_layout(&layout, path, &mut findings);
    check_entry_count(&header, path, &mut findings);
    let check = TableCheck {
        path,
        file: &file,
        layout: &layout,
        len,
    };
    check.entries(&mut findings);
    let damage = findings
        .list
        .into_iter()
        .find(|finding| finding.severity == Severity::Error);
    let Some(damage) = damage else {
        return Ok((header, file));
    };
    let kind = match damage.issue {
        Issue::Unsupported => ErrorKind::Unsupported,
        Issue::Unreadable => ErrorKind::Io,
        _ => ErrorKind::Corrupt,
    };
    let error = Error::new(kind, operation, damage.message).with_path(path);
    Err(match damage.offset {
        Some(offset) => error.with_offset(offset),
        None => error,
    })
}
