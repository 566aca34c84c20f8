//! [`FileRecord`]: the files that a change without libploop makes or removes.
//!
//! Such a change makes its new files first, then replaces the descriptor, and then removes the old files. Whatever it
//! is cut short at, the descriptor in place says which of them are needed. So the change records all of them before
//! (`.ploop-files`), and the next one removes those that the descriptor does not name.
//!
//! A record may come from anyone, as everything beside a descriptor. So only files are removed that lie in the directory
//! of the descriptor, are named by no descriptor there, and are deltas with clusters of the image's size, or have the name
//! of a file that is made beside a delta.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;

use crate::identity::Identity;
use crate::image::descriptor;
use crate::image::{Header, orphans};
use crate::sysfs::Device;
use crate::{Descriptor, side_files};
use crate::{Error, Result};

/// The record of a change, which is removed when this is dropped.
pub(crate) struct FileRecord(PathBuf);

impl FileRecord {
    /// Records files, in the directory of the descriptor or elsewhere. Those elsewhere are left alone by the recovery.
    pub(crate) fn make<'a>(
        operation: &'static str,
        path: &Path,
        files: impl IntoIterator<Item = &'a Path>,
    ) -> Result<FileRecord> {
        record(operation, path, files)?;
        Ok(FileRecord(side_files::file_record(path)))
    }
}

/// Makes a record that stays.
pub(crate) fn record<'a>(
    operation: &'static str,
    path: &Path,
    files: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    let directory = side_files::directory_of(path);
    let mut text = Vec::new();
    for file in files {
        if let (true, Some(name)) = (is_in(file, directory), file.file_name()) {
            text.extend_from_slice(name.as_bytes());
            text.push(b'\n');
        }
    }
    let record = side_files::file_record(path);
    descriptor::write(&record, &text, None).map_err(|error| {
        let why =
            "the record that shows after an interruption which files are not needed cannot be made";
        Error::io(operation, why, error).with_path(&record)
    })
}

/// The files of a record that are there.
pub(crate) fn recorded(path: &Path) -> Vec<PathBuf> {
    let record = side_files::file_record(path);
    let text = match side_files::is_regular_file(&record) {
        true => fs::read(&record).unwrap_or_default(),
        false => Vec::new(),
    };
    let directory = side_files::directory_of(path);
    // A line that is not complete has no end.
    text.split_inclusive(|byte| *byte == b'\n')
        .filter_map(|name| name.strip_suffix(b"\n"))
        .map(|name| directory.join(OsStr::from_bytes(name)))
        .filter(|file| file.parent() == Some(directory) && side_files::is_regular_file(file))
        .collect()
}

fn is_in(file: &Path, directory: &Path) -> bool {
    let parent = file
        .parent()
        .and_then(|parent| fs::canonicalize(parent).ok());
    parent.is_some_and(|parent| parent == directory)
}

impl Drop for FileRecord {
    fn drop(&mut self) {
        // If it stays, the next change finds nothing to remove.
        let _ = fs::remove_file(&self.0);
    }
}

/// Removes the files of a record that `now`, the descriptor in place, does not name.
pub(super) fn finish(devices: &[Device], path: &Path, now: &Descriptor) {
    let record = side_files::file_record(path);
    if !side_files::is_regular_file(&record) {
        return;
    }
    let mut left = recorded(path);
    if orphans::retain_unnamed(side_files::directory_of(path), &mut left).is_err() {
        // The next operation may see what others have.
        return;
    }
    // Whatever cannot be removed is reported by the check, as an orphan.
    let used: HashSet<Identity> = now
        .images
        .iter()
        .filter_map(|image| Identity::of(&image.file).ok())
        .collect();
    for file in left {
        let is_free = || {
            let identity = Identity::of(&file).ok()?;
            // The new base of a conversion, and the copy of a table.
            let is_side_file = now
                .images
                .iter()
                .flat_map(|image| {
                    let file = &image.file;
                    [side_files::staged(file), side_files::table_copy(file)]
                })
                .any(|own| own == file);
            let is_delta = || Header::read(&file).is_ok_and(|header| header.cluster == now.cluster);
            let is_used =
                used.contains(&identity) || devices.iter().any(|device| device.has(identity));
            Some(!is_used && (is_side_file || is_delta()))
        };
        if is_free() == Some(true) {
            let _ = fs::remove_file(&file);
        }
    }
    let _ = fs::remove_file(&record);
}
