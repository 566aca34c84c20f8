//! Whether a delta is sound enough to be changed: [`require_sound`].

use std::fs::{self, File};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

use super::check::require_sound_delta;
use super::descriptor::{Descriptor, Image, ImageKind};
use super::header::{Header, at};
use crate::{Error, ErrorKind, FormatVersion, Guid, ImageMode, Result, Size};

/// A delta whose header and table were read, and found to be sound.
pub(crate) struct SoundDelta<'i> {
    pub(crate) image: &'i Image,
    /// The size of the disk, in bytes.
    pub(crate) size: u64,
    /// `None` for a raw base.
    pub(crate) version: Option<FormatVersion>,
    pub(crate) is_marked_closed: bool,
    /// It keeps dirty bitmaps.
    pub(crate) has_extension: bool,
}

/// Requires that a delta has no format extension, of which `fate` says what would become of it and how it can be dropped.
pub(crate) fn require_no_extension(
    operation: &'static str,
    delta: &SoundDelta<'_>,
    fate: &str,
) -> Result<()> {
    if !delta.has_extension {
        return Ok(());
    }
    let why = format!(
        "this delta has a format extension with dirty bitmaps of a backup program, which {fate}, or export the disk to a new image"
    );
    let error = Error::new(ErrorKind::Unsupported, operation, why);
    Err(error
        .with_path(&delta.image.file)
        .with_offset(at::EXTENSION as u64))
}

/// Requires that a delta of the image can be worked on: its header fits the descriptor, and its table is sound; of a raw
/// base, that it can be one.
pub(crate) fn require_sound<'i>(
    operation: &'static str,
    image: &'i Image,
    descriptor: &Descriptor,
) -> Result<SoundDelta<'i>> {
    let raw = image.kind == ImageKind::Plain || descriptor.mode == ImageMode::Raw;
    if raw
        && descriptor
            .base()
            .is_some_and(|base| base.guid == image.guid)
    {
        return Ok(SoundDelta {
            image,
            size: require_raw(operation, &image.file, descriptor)?,
            version: None,
            is_marked_closed: false,
            has_extension: false,
        });
    }
    let accept = |header: &Header| require_header_of(operation, image, descriptor, header);
    let (header, _) = require_sound_delta(operation, &image.file, accept)?;
    Ok(SoundDelta {
        image,
        size: header.size.bytes(),
        version: Some(header.version),
        is_marked_closed: header.marked_closed,
        has_extension: header.has_extension(),
    })
}

/// Requires that the top, if it is one of the deltas to be removed, has no child: the descriptor would have a top that
/// is not listed.
pub(crate) fn require_no_child_of_top(
    operation: &'static str,
    descriptor: &Descriptor,
    removed: &[Guid],
) -> Result<()> {
    let top = descriptor.top;
    match descriptor.children(top).next() {
        Some(child) if removed.contains(&top) => Err(Error::new(
            ErrorKind::InvalidInput,
            operation,
            format!(
                "this would remove the top, which is the parent of the snapshot {child}; make a snapshot first, and the image has a new top"
            ),
        )),
        _ => Ok(()),
    }
}

/// Requires that a snapshot that becomes the top, and is written to from then on, has no child but the top.
pub(crate) fn require_no_other_child(
    operation: &'static str,
    descriptor: &Descriptor,
    guid: Guid,
) -> Result<()> {
    let top = descriptor.top;
    match descriptor.children(guid).find(|child| *child != top) {
        Some(child) => Err(Error::new(
            ErrorKind::InvalidInput,
            operation,
            format!(
                "{guid} is also the parent of {child}, which would change with each write to {guid} as the top; switch to {guid} instead"
            ),
        )),
        None => Ok(()),
    }
}

/// Requires that deltas upon which another one is made can be read at all: a pipe, say, is none.
pub(crate) fn require_files<'i>(
    operation: &'static str,
    images: impl IntoIterator<Item = &'i Image>,
) -> Result<()> {
    for image in images {
        // One that is missing is reported by what reads it.
        let kind = fs::metadata(&image.file).map(|metadata| metadata.file_type());
        if kind.is_ok_and(|kind| !kind.is_file() && !kind.is_block_device()) {
            let why = "the descriptor names this as a delta, and it is neither a regular file nor a block device";
            return Err(Error::new(ErrorKind::InvalidInput, operation, why).with_path(&image.file));
        }
    }
    Ok(())
}

/// Requires that a delta does not end within a cluster, if the disk does not: the driver refuses it.
pub(crate) fn require_whole_size(
    operation: &'static str,
    file: &Path,
    header: &Header,
    descriptor: &Descriptor,
) -> Result<()> {
    let is_whole = |size: Size| size.bytes() % header.cluster.bytes() == 0;
    if is_whole(header.size) || !is_whole(descriptor.size) {
        return Ok(());
    }
    let why = format!(
        "the disk has {} sectors in this delta, no whole number of clusters; the descriptor has {}; repair the image first (ploop-image repair)",
        header.size.sectors(),
        descriptor.size.sectors()
    );
    let error = Error::new(ErrorKind::Corrupt, operation, why).with_path(file);
    Err(error.with_offset(at::SIZE as u64))
}

/// Requires that the header fits the descriptor.
pub(crate) fn require_header_of(
    operation: &'static str,
    image: &Image,
    descriptor: &Descriptor,
    header: &Header,
) -> Result<()> {
    require_whole_size(operation, &image.file, header, descriptor)?;
    if header.cluster == descriptor.cluster {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Corrupt,
        operation,
        format!(
            "this delta has clusters of {}, the descriptor says {}",
            header.cluster, descriptor.cluster
        ),
    )
    .with_path(&image.file))
}

/// Requires that a raw base has the size of the disk, or less where deltas upon it may have made the disk larger: it
/// has no header to tell it from any other file. A merge would write over one. Returns its length.
fn require_raw(operation: &'static str, file: &Path, descriptor: &Descriptor) -> Result<u64> {
    let metadata = fs::metadata(file).map_err(|error| {
        Error::io(operation, "the raw base cannot be examined", error).with_path(file)
    })?;
    let (len, size) = (metadata.len(), descriptor.size.bytes());
    let why = if !metadata.is_file() {
        "it is not a regular file".to_owned()
    } else if File::open(file).is_ok_and(|file| Header::is_in(&file)) {
        "it begins with the header of a delta; put the type Compressed into the descriptor"
            .to_owned()
    } else if len == 0 || len % 512 != 0 {
        format!("it has {len} bytes, not one or more whole sectors")
    } else if len > size || len < size && descriptor.images.len() == 1 {
        format!(
            "it has {len} bytes, and the disk {size}; if it is the base all the same, put the right size into the descriptor"
        )
    } else {
        return Ok(len);
    };
    Err(Error::new(
        ErrorKind::Corrupt,
        operation,
        format!("this is not the raw base of the image: {why}"),
    )
    .with_path(file))
}
