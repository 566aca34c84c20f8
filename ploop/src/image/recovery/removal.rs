//! Removals of a delta that were interrupted: where a device has the delta, the descriptor that names it is put back.
//!
//! What is about a program that is still there is in `crate::recovery::removal`.

use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::detached::may_be_attached;
use crate::image::Image;
use crate::image::descriptor::DescriptorForm;
use crate::sysfs::Device;
use crate::{Descriptor, Error, Result, side_files};

/// The delta that is in `before` only, and the one that is in `now` only, if they differ as by a removal.
pub(crate) fn difference<'d>(
    before: &'d Descriptor,
    now: &'d Descriptor,
) -> Option<(&'d Image, Option<&'d Image>)> {
    let lacks = |descriptor: &Descriptor, image: &Image| {
        let mut files = descriptor.images.iter().map(|other| &other.file);
        files.all(|file| *file != image.file)
    };
    let mut lost = before.images.iter().filter(|image| lacks(now, image));
    let mut new = now.images.iter().filter(|image| lacks(before, image));
    let found = (lost.next()?, new.next());
    (lost.next().is_none() && new.next().is_none()).then_some(found)
}

/// Puts a saved descriptor back: a program was killed in a removal, and a device has the delta. Returns whether that
/// was done.
pub(crate) fn finish(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    now: &Descriptor,
    form: &DescriptorForm,
) -> Result<bool> {
    let saved = side_files::before_removal(path);
    if !side_files::is_regular_file(&saved) {
        return Ok(false);
    }
    if let Ok(before) = Descriptor::open_as(&saved, form) {
        let lost = difference(&before, now).map(|(lost, _)| lost);
        let is_there = |image: &&Image| fs::symlink_metadata(&image.file).is_ok();
        if lost
            .filter(is_there)
            .is_some_and(|lost| may_be_attached(devices, [lost]))
        {
            restore(&saved, path).map_err(|error| {
                let what = "an earlier operation was interrupted when it removed a delta that a device has, and the old descriptor cannot be put back";
                Error::io(operation, what, error).with_path(path)
            })?;
            return Ok(true);
        }
    }
    // No device has the delta. If its file is still there, it is an orphan.
    let _ = fs::remove_file(&saved);
    Ok(false)
}

pub(crate) fn restore(saved: &Path, path: &Path) -> io::Result<()> {
    let file = File::open(saved)?;
    file.sync_all()?;
    fs::rename(saved, path)?;
    // Syncs the name. Errors do not matter: the descriptor is right, on the disk or not.
    let _ = file.sync_all();
    let _ = File::open(side_files::directory_of(path)).and_then(|directory| directory.sync_all());
    Ok(())
}
