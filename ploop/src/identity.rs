//! The identity of a file, whatever its path: device and inode number. That of a name: its directory's, and itself.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Equal for two paths of one file (hard and symbolic links, bind mounts).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    /// The identity of the file to which a path leads.
    pub(crate) fn of(path: &Path) -> io::Result<Identity> {
        Ok(Identity::from(&fs::metadata(path)?))
    }
}

impl From<&Metadata> for Identity {
    fn from(metadata: &Metadata) -> Identity {
        Identity {
            device: metadata.dev(),
            inode: metadata.ino(),
        }
    }
}

/// A name in a directory: equal for two paths to it.
#[derive(PartialEq, Eq)]
pub(crate) struct DirectoryEntry(Identity, OsString);

impl DirectoryEntry {
    pub(crate) fn of(path: &Path) -> Option<DirectoryEntry> {
        let directory = match path.parent() {
            Some(directory) if directory != Path::new("") => directory,
            _ => Path::new("."),
        };
        Some(DirectoryEntry(
            Identity::of(directory).ok()?,
            path.file_name()?.to_owned(),
        ))
    }
}
