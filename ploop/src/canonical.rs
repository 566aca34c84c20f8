//! The descriptor as libploop is given it: only in the one form that this crate writes.
//!
//! libploop reads descriptors with libxml2, which takes other encodings and forms than the reader of this
//! crate. What two readers take for different things is a way around every check. So C reads only bytes
//! that [`Descriptor::to_xml`] has written, which are the ones that libploop writes itself. Before a
//! change the canonical text takes the place of any other; a look-up leaves the file alone and lets C
//! read a copy.
//!
//! What libploop does not know (`UID`, `Name`, `Miscellaneous` of Parallels Desktop, the version
//! attribute) it drops when it writes. It is put back afterwards. While libploop works, it is in a
//! file of its own, so that the next change puts it back should this process be killed.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::image::descriptor::{DescriptorFile, UnknownFields};
use crate::{Descriptor, Error, Guid, Result, paths};

/// The canonical descriptor of an image that is about to be changed.
pub(crate) struct CanonicalDescriptor {
    path: PathBuf,
    unknown: UnknownFields,
    xml: String,
    /// Whether the file says it in these words.
    in_place: bool,
    /// Whether a change was killed before it put back what libploop does not know.
    was_killed: bool,
}

impl CanonicalDescriptor {
    /// Of a descriptor that was read while the image's lock is held, with what the text says.
    pub(crate) fn of(
        operation: &'static str,
        path: &Path,
        file: DescriptorFile,
    ) -> Result<(CanonicalDescriptor, Descriptor)> {
        let failed = |error: Error| error.during(operation).with_path(path);
        let DescriptorFile {
            text,
            descriptor,
            mut unknown,
        } = file;
        let backup = paths::saved_unknown_fields(path);
        let lost = match fs::symlink_metadata(&backup) {
            Ok(found) if found.is_file() => DescriptorFile::read(&backup).ok(),
            _ => None,
        };
        let was_killed = lost.is_some();
        if let Some(lost) = lost.filter(|_| unknown.is_empty()) {
            unknown = lost.unknown;
        }
        let dir = paths::directory_of(path);
        let xml = descriptor.to_xml_with(&unknown, dir).map_err(failed)?;
        let in_place = xml.as_bytes() == text;
        let descriptor = match in_place {
            true => descriptor,
            false => Descriptor::parse(&xml, dir).map_err(failed)?,
        };
        let canonical = CanonicalDescriptor {
            path: path.to_owned(),
            unknown,
            in_place,
            xml,
            was_killed,
        };
        Ok((canonical, descriptor))
    }

    /// Puts the canonical text in the place of any other. The lock is still held.
    pub(crate) fn put_in_place(&self, operation: &'static str) -> Result<()> {
        if !self.in_place {
            replace(&self.path, &self.xml).map_err(|error| {
                Error::io(
                    operation,
                    "the descriptor is not in the form that libploop writes, and cannot be rewritten",
                    error,
                )
                .with_path(&self.path)
            })?;
        }
        if self.was_killed {
            // The descriptor has it all.
            let _ = fs::remove_file(paths::saved_unknown_fields(&self.path));
        }
        Ok(())
    }

    /// Whether there is anything that libploop does not know.
    pub(crate) fn has_unknown_fields(&self) -> bool {
        !self.unknown.is_empty()
    }

    /// Before C writes the descriptor: keeps what would be lost if the process were killed meanwhile.
    pub(crate) fn save_unknown_fields(&self, operation: &'static str) -> Result<()> {
        if !self.has_unknown_fields() {
            return Ok(());
        }
        let backup = paths::saved_unknown_fields(&self.path);
        File::open(&self.path)
            .and_then(|file| write(&backup, self.xml.as_bytes(), &file.metadata()?))
            .map_err(|error| {
                let why = "what libploop does not know of the descriptor cannot be kept";
                Error::io(operation, why, error).with_path(backup)
            })
    }

    /// After C: puts back what it has dropped. The image's lock is held. What does not succeed is left to
    /// the next change.
    pub(crate) fn restore_unknown_fields(&self) {
        let Ok(now) = DescriptorFile::read(&self.path) else {
            return;
        };
        if now.unknown != self.unknown {
            let dir = paths::directory_of(&self.path);
            let xml = now.descriptor.to_xml_with(&self.unknown, dir);
            if !xml.is_ok_and(|xml| replace(&self.path, &xml).is_ok()) {
                return;
            }
        }
        let _ = fs::remove_file(paths::saved_unknown_fields(&self.path));
    }
}

/// Puts a text in the place of a descriptor, with mode and owner kept, at once or not at all.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = paths::rewritten(path);
    write(&new, text.as_bytes(), &fs::metadata(path)?)?;
    if let Err(error) = fs::rename(&new, path) {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    // On old kernels syncing the renamed file is what commits the renaming, elsewhere the directory.
    File::open(path)?.sync_all()?;
    match File::open(paths::directory_of(path)).and_then(|directory| directory.sync_all()) {
        // Not every file system syncs directories.
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => Ok(()),
        result => result,
    }
}

/// Writes a file of this crate's own, like the descriptor in owner and mode.
fn write(path: &Path, text: &[u8], like: &fs::Metadata) -> io::Result<()> {
    // Of a process that was killed, or a trap: a link is removed, not followed.
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .custom_flags(OFlags::NOFOLLOW.bits() as i32)
        .open(path)?;
    let written = file
        .write_all(text)
        .and_then(|()| {
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
                fchown(&file, Some(like.uid()), Some(like.gid()))?;
            }
            file.set_permissions(like.permissions())
        })
        .and_then(|()| file.sync_all());
    if written.is_err() {
        // It is this function's own.
        let _ = fs::remove_file(path);
    }
    written
}

/// A canonical copy of a descriptor, for calls that only look.
pub(crate) struct DescriptorCopy {
    directory: PathBuf,
    path: PathBuf,
}

impl DescriptorCopy {
    /// `None` where C can read the descriptor itself.
    pub(crate) fn unless_canonical(
        operation: &'static str,
        path: &Path,
    ) -> Result<Option<DescriptorCopy>> {
        let failed = |error: Error| error.during(operation).with_path(path);
        let file = DescriptorFile::read(path).map_err(failed)?;
        let to_xml = |dir: &Path| {
            file.descriptor
                .to_xml_with(&file.unknown, dir)
                .map_err(failed)
        };
        if to_xml(paths::directory_of(path))?.as_bytes() == file.text {
            return Ok(None);
        }
        let directory = std::env::temp_dir().join(format!(
            ".ploop-look-{}",
            Guid::generate().as_uuid().simple()
        ));
        let copy = DescriptorCopy {
            path: directory.join(paths::DESCRIPTOR_NAME),
            directory,
        };
        let xml = to_xml(&copy.directory)?;
        let written = DirBuilder::new()
            .mode(0o700)
            .create(&copy.directory)
            .and_then(|()| fs::write(&copy.path, xml));
        match written {
            Ok(()) => Ok(Some(copy)),
            Err(error) => {
                let why = "the descriptor is not in the form that libploop writes, and no copy that is can be made";
                Err(Error::io(operation, why, error).with_path(&copy.directory))
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for DescriptorCopy {
    fn drop(&mut self) {
        // It is in the directory for temporary files, and of no use to anybody.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
