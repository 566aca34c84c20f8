//! Restoring a descriptor that was lost, from the deltas: what `ploop restore-descriptor` does for one of them.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::OfflineImage;
use crate::image::descriptor::{Descriptor, Image, ImageKind};
use crate::image::header::{Header, HeaderFlags};
use crate::side_files::directory_of;
use crate::{Error, ErrorKind, FormatVersion, Guid, Result, durability, paths, side_files, trust};

/// Makes the descriptor of a chain of deltas, of which the base is the first and the top the last, and opens the image.
/// `descriptor` is a new file. Sizes and clusters are those of the headers. The snapshots get new GUIDs: the deltas do
/// not have them. Nor do they say how they stand upon each other; their names and times may help to find out, and a disk
/// is never larger in a delta than in those above. Needs the feature `image-write`.
///
/// The deltas are only read. A base without a header is not taken for a raw disk.
///
/// ```no_run
/// let image = ploop::image::restore_descriptor(
///     "/vz/private/101/root.hdd/DiskDescriptor.xml",
///     &["/vz/private/101/root.hdd/root.hds"],
/// )?;
/// # Ok::<(), ploop::Error>(())
/// ```
///
/// # Errors
///
/// [`AlreadyExists`](ErrorKind::AlreadyExists) where the descriptor is there; [`InvalidInput`](ErrorKind::InvalidInput)
/// where there are no deltas, they do not fit together or one is named twice; [`NotFound`](ErrorKind::NotFound) and
/// [`Corrupt`](ErrorKind::Corrupt) for a delta that is missing or has no header, or of which a change of the format version was
/// interrupted and the copy of the table is missing.
pub fn restore_descriptor(
    descriptor: impl AsRef<Path>,
    deltas: &[impl AsRef<Path>],
) -> Result<OfflineImage> {
    const OPERATION: &str = "restore descriptor";
    let path = paths::of_new_file(OPERATION, descriptor.as_ref())?;
    let refused = |kind, why: &str, file: &Path| {
        Err(Error::new(kind, OPERATION, why.to_owned()).with_path(file))
    };
    let mut below: Option<Header> = None;
    // What is interrupted after that is finished without the copies.
    let mut is_base_converted = false;
    let mut files: Vec<PathBuf> = Vec::new();
    let mut restored: Option<Descriptor> = None;
    for delta in deltas {
        let delta = delta.as_ref();
        let file = fs::canonicalize(delta).map_err(|error| {
            Error::io(OPERATION, "the delta cannot be found", error).with_path(delta)
        })?;
        let header = Header::read(&file).map_err(|error| error.during(OPERATION))?;
        let is_converting = header.flags.contains(HeaderFlags::CONVERTING);
        if files.is_empty() {
            is_base_converted = !is_converting && header.version == FormatVersion::V2;
        }
        if is_converting && !is_base_converted && !side_files::table_copy(&file).is_file() {
            let why = "a change of the format version of this delta was interrupted, and the copy of its table (.idx beside it), with which it is taken back, is missing";
            return refused(ErrorKind::Corrupt, why, delta);
        }
        if files.contains(&file) {
            return refused(ErrorKind::InvalidInput, "this delta is named twice", delta);
        }
        if let Some(below) = &below {
            if (below.cluster, below.version) != (header.cluster, header.version) {
                let why = "this delta has other clusters or another format than the one below";
                return refused(ErrorKind::InvalidInput, why, delta);
            }
            if below.size > header.size {
                let why = "the disk is smaller in this delta than in the one below, so it does not stand upon it";
                return refused(ErrorKind::InvalidInput, why, delta);
            }
        }
        let mut next = match restored {
            None => {
                let image = Image::new(Guid::TOP, &file, ImageKind::Compressed);
                let mut first = Descriptor::new(header.size, image);
                first.cluster = header.cluster;
                first
            }
            Some(restored) => restored.with_snapshot(Guid::generate(), file.clone()),
        };
        next.size = header.size;
        restored = Some(next);
        below = Some(header);
        files.push(file);
    }
    let Some(restored) = restored else {
        return refused(ErrorKind::InvalidInput, "no deltas are named", &path);
    };
    let own = files.iter().map(PathBuf::as_path);
    trust::require_no_other_writers(OPERATION, own.clone())?;
    paths::require_own_side_files(OPERATION, &path, own)?;
    let directory = directory_of(&path);
    let text = restored
        .to_xml(directory)
        .map_err(|error| error.during(OPERATION))?;
    let written = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&path)
        .and_then(|mut file| {
            let written = file
                .write_all(text.as_bytes())
                .and_then(|()| file.sync_all());
            if written.is_err() {
                let _ = fs::remove_file(&path);
            }
            written
        });
    written.map_err(|error| {
        Error::io(OPERATION, "the descriptor cannot be written", error).with_path(&path)
    })?;
    durability::sync_directories(OPERATION, [directory])?;
    OfflineImage::open(&path)
}
