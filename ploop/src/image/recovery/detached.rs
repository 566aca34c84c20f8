//! Interrupted operations on an image that no device has any more, after a power cut, or a kill and an unmount: the
//! deltas show which descriptor is right.
//!
//! As a rule it is the one in place. Until libploop renames the new one, the image reads right by the old one:
//!
//! * A merge copies data to the lower delta, and the upper one still hides it. Where the driver merges the top of a
//!   running image, it removes each cluster from the upper delta once it is copied, so what the upper delta still has
//!   is the newest. The lower delta is marked as in use, and so can be neither attached nor merged (A14). The mark is
//!   cleared if the table is sound.
//! * A snapshot leaves the old top, marked or not.
//!
//! In four cases the new descriptor is right. It is complete then, and the deltas prove it:
//!
//! * A snapshot that the driver has made of a running image: what was written and synced since then is in the new top
//!   (A13). The new top is marked, because it was never detached, and has clusters. The old top is not marked, and was
//!   neither written to nor unmounted since.
//! * A conversion to raw whose base has no header any more, or one from raw whose base has one.
//! * A raw base that has become as long as the new descriptor says. If it has become longer, but not so long, it is cut
//!   again.
//! * A merge to a new file that has removed an old one: libploop does that before the new descriptor is in place.

use std::fs;
use std::io;
use std::path::Path;

use super::files;
use crate::durability::{sync_directories, sync_files};
use crate::image::descriptor::DescriptorForm;
use crate::image::{Header, Image, Severity, check_image};
use crate::sysfs::{self, Device};
use crate::{Descriptor, Error, ErrorKind, ImageMode, Result, side_files};

/// Finishes or undoes what was interrupted, and returns whether there was anything. Changes nothing while a device has
/// one of the image's deltas, or may have.
pub(crate) fn finish(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
    form: &DescriptorForm,
) -> Result<bool> {
    let Some(settled) = settle(devices, operation, path, old, form)? else {
        return Ok(false);
    };
    let done = settled.is_some();
    let descriptor = settled.as_ref().unwrap_or(old);
    let mut unmarked = false;
    for image in &descriptor.images {
        if image.guid != descriptor.top {
            unmarked |= clear_unused_mark(operation, descriptor, image)?;
        }
    }
    if unmarked && !done {
        // It is that of the merge, which was undone.
        let _ = fs::remove_file(side_files::staged(path));
    }
    Ok(done || unmarked)
}

/// [`finish`], but for the marks of deltas, which stay.
#[cfg(feature = "image-write")]
pub(super) fn finish_but_marks(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
    form: &DescriptorForm,
) -> Result<bool> {
    let Some(settled) = settle(devices, operation, path, old, form)? else {
        return Ok(false);
    };
    let done = settled.is_some();
    let is_marked = |image: &Image| {
        image.guid != old.top && Header::read(&image.file).is_ok_and(|header| header.in_use)
    };
    if !done && old.images.iter().any(is_marked) {
        // It is that of the merge that has left the mark, and was undone.
        let _ = fs::remove_file(side_files::staged(path));
    }
    Ok(done)
}

/// What [`finish`] and [`finish_but_marks`] do first. Returns the new descriptor, if that was put in place. `None` while
/// a device has one of the image's deltas, or may have.
fn settle(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
    form: &DescriptorForm,
) -> Result<Option<Option<Descriptor>>> {
    let staged = side_files::staged(path);
    let candidate = super::staged_descriptor(&staged, form);
    let all = old.images.iter();
    if may_be_attached(
        devices,
        all.chain(candidate.iter().flat_map(|new| &new.images)),
    ) {
        return Ok(None);
    }
    let is_right = candidate.as_ref().is_some_and(|new| {
        is_converted_to_raw(old, new)
            || is_converted_from_raw(old, new)
            || is_grown_raw(old, new)
            || has_written_snapshot(old, new, &staged)
            || is_merged_to_new_file(old, new)
    });
    if is_right {
        put_in_place(operation, &staged, path)?;
    } else if let Some(candidate) = &candidate {
        take_back_growth(old, candidate, &staged);
    }
    let new = candidate.filter(|_| is_right);
    files::finish(devices, path, new.as_ref().unwrap_or(old));
    Ok(Some(new))
}

/// Whether a device has one of these deltas, or may have: it has a file that cannot be identified.
pub(super) fn may_be_attached<'a>(
    devices: &[Device],
    images: impl IntoIterator<Item = &'a Image>,
) -> bool {
    let files = images.into_iter().map(|image| image.file.as_path());
    sysfs::device_with(devices, files).is_some()
}

/// Whether the new descriptor is that of a conversion to raw, and the base is raw already.
fn is_converted_to_raw(old: &Descriptor, new: &Descriptor) -> bool {
    if old.mode == ImageMode::Raw || new.mode != ImageMode::Raw || !have_same_files(old, new) {
        return false;
    }
    let Some(base) = old.base() else {
        return false;
    };
    let size = old.size.bytes();
    // Deltas upon it may have made the disk larger.
    let fits = |len| len == size || old.images.len() > 1 && len > 0 && len < size && len % 512 == 0;
    let len = fs::metadata(&base.file).map(|metadata| metadata.len());
    let no_header = |error: Error| error.kind() == ErrorKind::Corrupt && error.offset() == Some(0);
    len.is_ok_and(fits) && Header::read(&base.file).is_err_and(no_header)
}

/// Whether the new descriptor is that of a conversion from raw, and the base is a delta already.
fn is_converted_from_raw(old: &Descriptor, new: &Descriptor) -> bool {
    if old.mode != ImageMode::Raw || new.mode == ImageMode::Raw || !have_same_files(old, new) {
        return false;
    }
    old.base().is_some_and(|base| {
        Header::read(&base.file).is_ok_and(|header| header.cluster == new.cluster)
            && check_image(&base.file).is_sound()
    })
}

/// The raw base of a disk that is to be made larger, and its length, if that is all that differs.
fn growing_raw_base<'d>(old: &'d Descriptor, new: &Descriptor) -> Option<(&'d Image, u64)> {
    let same = Descriptor {
        size: old.size,
        ..new.clone()
    };
    let base = old.base().filter(|base| base.guid == old.top)?;
    let is_raw_growth = old.mode == ImageMode::Raw && new.size > old.size && same == *old;
    let len = fs::metadata(&base.file).ok()?.len();
    is_raw_growth.then_some((base, len))
}

/// Whether the new descriptor is that of a raw disk that was made larger, and its file is as long already.
fn is_grown_raw(old: &Descriptor, new: &Descriptor) -> bool {
    growing_raw_base(old, new).is_some_and(|(_, len)| len == new.size.bytes())
}

/// Cuts a raw base that has become longer, and not so long as it was to be.
fn take_back_growth(old: &Descriptor, new: &Descriptor, staged: &Path) {
    let Some((base, len)) = growing_raw_base(old, new) else {
        return;
    };
    let old = old.size.bytes();
    if len > old && len < new.size.bytes() {
        let file = fs::OpenOptions::new().write(true).open(&base.file);
        // If it stays as it is, the operations that follow report its length.
        let _ = file.and_then(|file| file.set_len(old));
    }
    let _ = fs::remove_file(staged);
}

fn have_same_files(old: &Descriptor, new: &Descriptor) -> bool {
    let (old, new) = (old.images.iter(), new.images.iter());
    old.map(|image| &image.file)
        .eq(new.map(|image| &image.file))
}

/// Whether the new descriptor is that of a merge to a new file, an old file is gone, and all new ones are there.
fn is_merged_to_new_file(old: &Descriptor, new: &Descriptor) -> bool {
    let is_there = |image: &Image| image.file.exists();
    let is_added = |image: &&Image| old.images.iter().all(|other| other.file != image.file);
    let mut added = new.images.iter().filter(is_added);
    let (Some(merged), None) = (added.next(), added.next()) else {
        return false;
    };
    new.images.len() < old.images.len()
        && old.image(merged.guid).is_some()
        && !old.images.iter().all(is_there)
        && new.images.iter().all(is_there)
        && Header::read(&merged.file).is_ok_and(|header| !header.in_use)
        && check_image(&merged.file).is_sound()
}

/// Whether the new descriptor is that of a snapshot, a device has written to the new top, and nothing was written to
/// the old top since.
fn has_written_snapshot(old: &Descriptor, new: &Descriptor, staged: &Path) -> bool {
    let (Some(old_top), Some(new_top)) = (old.top_image(), new.top_image()) else {
        return false;
    };
    let below: Vec<&Path> = new
        .chain(new.top)
        .iter()
        .map(|image| &*image.file)
        .collect();
    let chain: Vec<&Path> = old
        .chain(old.top)
        .iter()
        .map(|image| &*image.file)
        .collect();
    let is_added = |file: &Path| old.images.iter().all(|image| image.file != file);
    let added = new.images.iter().filter(|image| is_added(&image.file));
    if new.images.len() != old.images.len() + 1
        || added.count() != 1
        || !is_added(&new_top.file)
        || below.split_last().map(|(_, below)| below) != Some(&chain)
    {
        return false;
    }
    let is_marked = |file: &Path| Header::read(file).map(|header| header.in_use);
    if !is_marked(&new_top.file).is_ok_and(|marked| marked)
        || !is_marked(&old_top.file).is_ok_and(|marked| !marked)
    {
        return false;
    }
    let report = check_image(&new_top.file);
    let has_data = report.deltas.iter().any(|delta| !delta.allocated.is_zero());
    // An unmount leaves `.statfs` beside the base, until the next mount.
    let base = old.base().map(|base| side_files::directory_of(&base.file));
    let unmounted = base.map(|directory| directory.join(side_files::STATFS_NAME));
    let written = |file: &Path| fs::metadata(file).and_then(|metadata| metadata.modified());
    let newer = |file: &Path, than: &Path| match (written(file), written(than)) {
        (Ok(file), Ok(than)) => file > than,
        _ => false,
    };
    report.is_sound()
        && has_data
        && !newer(&old_top.file, &new_top.file)
        && !unmounted.is_some_and(|unmounted| newer(&unmounted, staged))
}

/// Renames the staged descriptor to the descriptor, and syncs it.
pub(crate) fn put_in_place(operation: &'static str, staged: &Path, path: &Path) -> Result<()> {
    fs::rename(staged, path).map_err(|error| {
        Error::io(
            operation,
            "an earlier operation was interrupted, and its new descriptor cannot be put in place",
            error,
        )
        .with_path(staged)
    })?;
    sync_files(operation, [path])?;
    sync_directories(operation, [side_files::directory_of(path)])
}

/// Clears the in-use mark of a delta that is not the top and that no device has, if its table is sound. Returns whether
/// it was marked.
pub(crate) fn clear_unused_mark(
    operation: &'static str,
    descriptor: &Descriptor,
    image: &Image,
) -> Result<bool> {
    // Operations that need a header report one that cannot be read.
    if !Header::read(&image.file).is_ok_and(|header| header.in_use) {
        return Ok(false);
    }
    let report = check_image(&image.file);
    let damage = report
        .findings
        .iter()
        .find(|finding| finding.severity == Severity::Error);
    if let Some(damage) = damage {
        let chain = descriptor.chain(descriptor.top);
        if !chain.iter().any(|other| other.guid == image.guid) {
            return Ok(false);
        }
        return Err(Error::new(
            ErrorKind::Corrupt,
            operation,
            format!(
                "an operation on this delta was interrupted and left it marked as in use, and its table is damaged: {}; the image can be read and exported, and image::check lists the damage",
                damage.message
            ),
        )
        .with_path(&image.file));
    }
    let failed = |error: io::Error| {
        Error::io(
            operation,
            "an operation on this delta was interrupted, and the in-use mark that it left cannot be cleared",
            error,
        )
        .with_path(&image.file)
    };
    Header::clear_in_use(&image.file).map_err(failed)?;
    Ok(true)
}
