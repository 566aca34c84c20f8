//! [`StagingDirectory`]: a hidden directory in which an image is made. See [`creation`] for what an interruption leaves.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

use super::recovery::creation::{self, CreationLock};
use crate::durability::{sync_directories, sync_files};
use crate::side_files::{DESCRIPTOR_NAME, STATFS_NAME, directory_of};
use crate::{Code, Error, ErrorKind, Guid, Result};

/// The paths of an image that is to be made.
pub(crate) struct Destination {
    operation: &'static str,
    pub(crate) directory: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) descriptor: PathBuf,
}

impl Destination {
    /// `image` is the path of the base, absolute and without links.
    pub(crate) fn of(operation: &'static str, image: PathBuf) -> Destination {
        let directory = directory_of(&image).to_owned();
        Destination {
            operation,
            descriptor: directory.join(DESCRIPTOR_NAME),
            directory,
            image,
        }
    }

    pub(crate) fn require_other_name_than_descriptor(&self) -> Result<()> {
        if self.image != self.descriptor {
            return Ok(());
        }
        let why = "this is the name of the descriptor, which is made beside the image";
        let error = Error::new(ErrorKind::InvalidInput, self.operation, why);
        Err(error.with_path(&self.image))
    }

    pub(crate) fn require_free(&self) -> Result<()> {
        for path in [&self.image, &self.descriptor] {
            if fs::symlink_metadata(path).is_ok() {
                return Err(self.exists(path));
            }
        }
        Ok(())
    }

    /// The error of a file that is there.
    pub(crate) fn exists(&self, path: &Path) -> Error {
        Error::new(
            ErrorKind::AlreadyExists,
            self.operation,
            "this file exists and was left as it is; remove it or choose another place",
        )
        .with_path(path)
        .with_code(Code::PARAM.get())
    }

    /// Renames a file to a name that nothing may have.
    pub(crate) fn move_new(&self, from: &Path, to: &Path) -> Result<()> {
        let moved = match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // NFS and others: a link does not replace anything either, and is removed with the staging directory.
            Err(Errno::INVAL | Errno::NOSYS) => fs::hard_link(from, to),
            other => other.map_err(io::Error::from),
        };
        moved.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.exists(to),
            _ => {
                let what = "the finished file cannot be moved here";
                Error::io(self.operation, what, error).with_path(to)
            }
        })
    }
}

/// A hidden directory in which the image is made: libploop removes files when it fails (24), and here it finds no
/// others.
pub(crate) struct StagingDirectory {
    pub(crate) directory: PathBuf,
    pub(crate) image: PathBuf,
    pub(crate) descriptor: PathBuf,
    /// Held while the directory is in use.
    _lock: Option<CreationLock>,
}

impl StagingDirectory {
    pub(crate) const NAME_OF_MAX_LEN: &str = ".ploop-create-0123456789abcdef0123456789abcdef";

    pub(crate) fn open(destination: &Destination) -> Result<StagingDirectory> {
        let (directory, lock) = loop {
            let id = Guid::generate();
            let name = format!("{}{}", creation::DIRECTORY_PREFIX, id.as_uuid().simple());
            let directory = destination.directory.join(name);
            DirBuilder::new()
                .mode(0o700)
                .create(&directory)
                .map_err(|error| {
                    let what = "no file can be made in this directory";
                    Error::io(destination.operation, what, error).with_path(&destination.directory)
                })?;
            // Until it is locked, it looks abandoned, and may be removed as a leftover.
            if let Ok(lock) = creation::lock_new(&directory) {
                break (directory, lock);
            }
        };
        let name = destination.image.file_name().unwrap_or(OsStr::new("image"));
        Ok(StagingDirectory {
            image: directory.join(name),
            descriptor: directory.join(DESCRIPTOR_NAME),
            _lock: lock,
            directory,
        })
    }

    /// Moves what was made to its destination, where nothing may be.
    pub(crate) fn deliver(&self, destination: &Destination) -> Result<()> {
        let operation = destination.operation;
        sync_files(operation, [&*self.image])?;
        // The link in the staging directory says whose the image is, until the descriptor is there.
        match fs::hard_link(&self.image, &destination.image) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(destination.exists(&destination.image));
            }
            // Where there are no links, it is moved.
            Err(_) => destination.move_new(&self.image, &destination.image)?,
            Ok(()) => {}
        }
        if let Err(error) = destination.move_new(&self.descriptor, &destination.descriptor) {
            // Moved there above, so nobody else's.
            let _ = fs::remove_file(&destination.image);
            return Err(error);
        }
        // libploop's statistics of the file system: a cache.
        let _ = fs::rename(
            self.directory.join(STATFS_NAME),
            destination.directory.join(STATFS_NAME),
        );
        sync_files(operation, [&*destination.descriptor])?;
        sync_directories(operation, [&*destination.directory])
    }
}

impl Drop for StagingDirectory {
    fn drop(&mut self) {
        // What stays does not make the creation fail; `remove_leftovers` removes it.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
