//! The temporary file of libploop's descriptors, which is made for it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::DescriptorWrite;
use crate::{Error, Result, paths};

/// How much one operation adds to a descriptor, at most: an image and a snapshot, with long file names.
const GROWTH: u64 = 8192;

/// The temporary file to which libploop writes a new descriptor (`.tmp`, `.tmp.tmp`), made before libploop needs it.
///
/// Where libploop cannot create it, it goes on as if it had written it: it reports success for what it did not do, or
/// deletes a delta that the descriptor on disk still names (25). So the file is created before; libploop overwrites
/// and renames it.
pub(super) struct StagingFile {
    /// The files that were not there before.
    made: Vec<PathBuf>,
}

impl StagingFile {
    pub(super) fn make(
        operation: &'static str,
        descriptor: &Path,
        write: DescriptorWrite<'_>,
    ) -> Result<StagingFile> {
        let mut staging = StagingFile { made: Vec::new() };
        let needed = match write {
            DescriptorWrite::Maybe => return Ok(staging),
            DescriptorWrite::Direct => paths::staged(descriptor),
            DescriptorWrite::Staged
            | DescriptorWrite::Merge(_)
            | DescriptorWrite::MergeToNewFile(_) => {
                // Some failures leave it behind.
                let staged = paths::staged(descriptor);
                if fs::symlink_metadata(&staged).is_err() {
                    staging.made.push(staged);
                }
                paths::being_staged(descriptor)
            }
        };
        let create = |options: &mut OpenOptions| -> io::Result<File> {
            options
                .write(true)
                .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
                .open(&needed)
        };
        let refused = |error: io::Error| {
            Error::io(
                operation,
                "libploop could not write a new descriptor, and would not say so: its temporary file cannot be made",
                error,
            )
            .with_path(&needed)
        };
        match create(OpenOptions::new().create_new(true)) {
            Ok(mut file) => {
                staging.made.push(needed.clone());
                // On a full disk libploop would fail later, and not say why.
                let len = fs::metadata(descriptor).map_or(0, |metadata| metadata.len()) + GROWTH;
                if let Err(error) = io::copy(&mut io::repeat(0).take(len), &mut file) {
                    staging.clear();
                    return Err(refused(error));
                }
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // An operation that was killed has left it. It is a regular file: that was checked.
                create(&mut OpenOptions::new()).map_err(refused)?;
            }
            Err(error) => return Err(refused(error)),
        }
        Ok(staging)
    }

    pub(super) fn clear(&self) {
        for file in &self.made {
            // libploop may have removed it.
            let _ = fs::remove_file(file);
        }
    }
}
