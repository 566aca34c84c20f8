//! Interrupted changes of the format version (`ploop_change_fmt_version`): taken back by the copies of the tables, or
//! finished where the base has the new version already.
//!
//! While the version of an image is changed, each delta is marked as in use and flagged (`CIF_FmtVersionConvert`), the
//! base first, and has a copy of its header and its table beside it (`.idx`). When all tables are converted, the base is
//! the first to get its new header. So as long as the base is flagged, nothing is done, and all is taken back. That is
//! libploop's way, too: it takes back what this crate has begun.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::image::descriptor::Image;
use crate::image::file;
use crate::image::header::{Header, HeaderFlags};
use crate::image::holes;
use crate::{Descriptor, Error, ErrorKind, FormatVersion, ImageMode, Result, side_files};

/// How much is copied at a time.
const BUFFER: u64 = 1 << 20;

/// A delta whose version is changed.
pub(crate) struct ConvertedDelta<'d> {
    path: &'d Path,
    header: Header,
}

impl ConvertedDelta<'_> {
    fn is_flagged(&self) -> bool {
        self.header.flags.contains(HeaderFlags::CONVERTING)
    }
}

/// The deltas of an image with a header, the base first.
fn deltas(descriptor: &Descriptor) -> Vec<ConvertedDelta<'_>> {
    let is_base = |image: &&Image| descriptor.parent(image.guid).is_none();
    let (base, others): (Vec<&Image>, Vec<&Image>) = descriptor.images.iter().partition(is_base);
    let raw = descriptor.mode == ImageMode::Raw;
    let base = base.into_iter().filter(|_| !raw);
    base.chain(others)
        .filter_map(|image| {
            // One that cannot be read is an error of what follows.
            let header = Header::read(&image.file).ok()?;
            Some(ConvertedDelta {
                path: &image.file,
                header,
            })
        })
        .collect()
}

/// Finishes or takes back a change of the format version.
pub(super) fn finish(operation: &'static str, descriptor: &Descriptor) -> Result<()> {
    let deltas = deltas(descriptor);
    if !deltas.iter().any(ConvertedDelta::is_flagged) {
        return Ok(());
    }
    let Some(first) = deltas.first() else {
        return Ok(());
    };
    if !first.is_flagged() && first.header.version == FormatVersion::V2 {
        for delta in deltas.iter().filter(|delta| delta.is_flagged()) {
            let mut header = delta.header.clone();
            header.version = FormatVersion::V2;
            set_header(operation, delta.path, header, false)?;
        }
        remove_copies(&deltas);
        return Ok(());
    }
    // The base last: until then, it says what is to be done.
    for delta in deltas.iter().rev() {
        let copy = side_files::table_copy(delta.path);
        let is_changed = || {
            let saved = Header::read(&copy);
            saved.is_ok_and(|saved| saved.version != delta.header.version)
        };
        if delta.is_flagged() || is_changed() {
            restore(operation, delta, &copy)?;
        }
    }
    remove_copies(&deltas);
    Ok(())
}

fn remove_copies(deltas: &[ConvertedDelta<'_>]) {
    for delta in deltas {
        // One that stays is replaced by the next change of the version.
        let _ = fs::remove_file(side_files::table_copy(delta.path));
    }
}

/// Writes a header, with or without the marks of a change of the format version, and syncs it.
pub(crate) fn set_header(
    operation: &'static str,
    path: &Path,
    mut header: Header,
    converting: bool,
) -> Result<()> {
    header.in_use = converting;
    header.flags.set(HeaderFlags::CONVERTING, converting);
    File::options()
        .write(true)
        .open(path)
        .and_then(|file| {
            file.write_all_at(&header.to_bytes(), 0)?;
            file.sync_data()
        })
        .map_err(|error| {
            let what = "the header cannot be written";
            Error::io(operation, what, error).with_path(path)
        })
}

/// Writes the table and the header of the copy back.
fn restore(operation: &'static str, delta: &ConvertedDelta<'_>, copy: &Path) -> Result<()> {
    let failed = |error: Error| error.during(operation).with_path(copy);
    let (saved, len) = file::open(operation, copy).map_err(|error| {
        let why = format!(
            "a change of the format version was interrupted, and the copy of the table {} cannot be opened: {}",
            copy.display(),
            error.message()
        );
        Error::new(ErrorKind::Corrupt, operation, why).with_path(delta.path)
    })?;
    let header = Header::read_from(&saved, len).map_err(failed)?;
    let now = &delta.header;
    if (header.size, header.cluster, header.data_start())
        != (now.size, now.cluster, now.data_start())
    {
        let why = "a change of the format version was interrupted, and the copy of the table is that of another delta";
        return Err(Error::new(ErrorKind::Corrupt, operation, why).with_path(copy));
    }
    let file = File::options().write(true).open(delta.path);
    file.and_then(|file| {
        copy_data(&saved, &file, Header::LEN as u64, header.data_start())?;
        file.sync_data()
    })
    .map_err(|error| {
        let what = "the table cannot be written";
        Error::io(operation, what, error).with_path(delta.path)
    })?;
    set_header(operation, delta.path, header, false)
}

/// Copies a part of a file to the same place in another one, but for holes.
pub(crate) fn copy_data(from: &File, to: &File, start: u64, end: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; BUFFER as usize];
    for (start, len) in holes::data(from, start, end - start) {
        let mut done = 0;
        while done < len {
            let part = (len - done).min(BUFFER) as usize;
            from.read_exact_at(&mut buffer[..part], start + done)?;
            to.write_all_at(&buffer[..part], start + done)?;
            done += part as u64;
        }
    }
    Ok(())
}
