//! The canonical descriptor: libploop reads only a `DiskDescriptor.xml` that this crate has written.
//!
//! libploop reads descriptors with libxml2, which takes other encodings and forms than the reader of this crate. A
//! text that two readers understand differently is a way around every check. So C reads only what
//! [`Descriptor::to_xml`] has written, which is what the linked line of libploop would write ([`DescriptorForm`]). A
//! change puts the canonical text in place first; a look-up leaves the file alone and gives C a copy.
//!
//! libploop drops the fields that it does not know (`UID`, `Name` and `Miscellaneous` of Parallels Desktop, the version
//! attribute, another name of the root) when it writes. They are restored after the call. During the call they are in a
//! file of their own (`.ploop-kept`), from which the next change restores them if this process is killed.

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::image::Image;
use crate::image::descriptor::{DescriptorFile, DescriptorForm, UnknownFields, replace, write};
use crate::{Descriptor, Error, Guid, Result, paths};

/// The canonical descriptor of an image that is about to be changed.
pub(crate) struct CanonicalDescriptor {
    path: PathBuf,
    unknown: UnknownFields,
    xml: String,
    /// Whether the file has this text already.
    in_place: bool,
    /// Whether a change was killed before it restored the unknown fields.
    was_killed: bool,
}

impl CanonicalDescriptor {
    /// The canonical form of a descriptor, and what it says. Both are read under the image's lock.
    pub(crate) fn of(
        operation: &'static str,
        path: &Path,
        file: DescriptorFile,
    ) -> Result<(CanonicalDescriptor, Descriptor)> {
        let failed = |error: Error| error.during(operation).with_path(path);
        let DescriptorFile {
            text,
            mut descriptor,
            mut unknown,
        } = file;
        // libploop leaves the size as it is where another delta becomes the top (A63). That of a raw base is no evidence:
        // a file of another length may be anything.
        let top = descriptor.top_image().cloned();
        if let Some(top) = top.filter(|top| !descriptor.is_raw_base(top.guid)) {
            descriptor.size = descriptor
                .size_of(operation, &top)
                .unwrap_or(descriptor.size);
        }
        let backup = paths::saved_unknown_fields(path);
        let saved = paths::is_regular_file(&backup)
            .then(|| DescriptorFile::read_as(&backup, unknown.form()).ok())
            .flatten();
        let was_killed = saved.is_some();
        if let Some(saved) = saved.filter(|_| !unknown.is_dropped()) {
            unknown = saved.unknown.with_those_written(&unknown);
        }
        let dir = paths::directory_of(path);
        let xml = descriptor.to_xml_with(&unknown, dir).map_err(failed)?;
        let in_place = xml.as_bytes() == text;
        let descriptor = match in_place {
            true => descriptor,
            false => Descriptor::parse_as(xml.as_bytes(), dir, unknown.form()).map_err(failed)?,
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

    /// Whether the file has the canonical text already, and nothing that was cut short is to be restored.
    pub(crate) fn is_in_place(&self) -> bool {
        self.in_place && !self.was_killed
    }

    /// Replaces the file by the canonical text. The lock is still held. `always` does so although it has this text, where
    /// it would be too late to find out afterwards that it cannot be replaced.
    pub(crate) fn put_in_place(&self, operation: &'static str, always: bool) -> Result<()> {
        if always || !self.in_place {
            let why = match self.in_place {
                true => "the descriptor cannot be rewritten",
                false => {
                    "the descriptor is not in the form that libploop writes, and cannot be rewritten"
                }
            };
            replace(&self.path, &self.xml)
                .map_err(|error| Error::io(operation, why, error).with_path(&self.path))?;
        }
        if self.was_killed {
            // Its fields are in the descriptor again.
            let _ = fs::remove_file(paths::saved_unknown_fields(&self.path));
        }
        Ok(())
    }

    /// Replaces the file by another descriptor, without libploop. The lock is still held.
    pub(crate) fn replace_by(&self, operation: &'static str, new: &Descriptor) -> Result<()> {
        let unknown = self.unknown.with_volume(new.volume.clone());
        let xml = new
            .to_xml_with(&unknown, paths::directory_of(&self.path))
            .map_err(|error| error.during(operation).with_path(&self.path))?;
        replace(&self.path, &xml).map_err(|error| {
            let why = "the new descriptor cannot be put in place";
            Error::io(operation, why, error).with_path(&self.path)
        })
    }

    /// Whether the descriptor has fields that libploop does not know.
    pub(crate) fn has_unknown_fields(&self) -> bool {
        self.unknown.is_dropped()
    }

    /// Saves the unknown fields before C writes the descriptor, in case the process is killed.
    pub(crate) fn save_unknown_fields(&self, operation: &'static str) -> Result<()> {
        if !self.has_unknown_fields() {
            return Ok(());
        }
        let backup = paths::saved_unknown_fields(&self.path);
        File::open(&self.path)
            .and_then(|file| write(&backup, self.xml.as_bytes(), Some(&file.metadata()?)))
            .map_err(|error| {
                let why =
                    "the fields of the descriptor that libploop does not know cannot be saved";
                Error::io(operation, why, error).with_path(backup)
            })
    }

    /// Completes what C has written, under the image's lock: restores the unknown fields, and where another delta than
    /// `top` is the top now, puts its size in. If that fails, the next change does it.
    pub(crate) fn complete(&self, operation: &'static str, top: Option<&Image>) {
        let Ok(mut now) = DescriptorFile::read_as(&self.path, self.unknown.form()) else {
            return;
        };
        let unknown = self.unknown.with_those_written(&now.unknown);
        let new_top = now.descriptor.top_image().filter(|it| Some(*it) != top);
        let size = new_top.and_then(|it| now.descriptor.size_of(operation, it).ok());
        let size = size.unwrap_or(now.descriptor.size);
        if now.unknown != unknown || now.descriptor.size != size {
            now.descriptor.size = size;
            let dir = paths::directory_of(&self.path);
            let xml = now.descriptor.to_xml_with(&unknown, dir);
            if !xml.is_ok_and(|xml| replace(&self.path, &xml).is_ok()) {
                return;
            }
        }
        if self.has_unknown_fields() {
            let _ = fs::remove_file(paths::saved_unknown_fields(&self.path));
        }
    }
}

/// A canonical copy of a descriptor, for look-ups.
pub(crate) struct DescriptorCopy {
    directory: PathBuf,
    path: PathBuf,
}

impl DescriptorCopy {
    /// `None` where the descriptor is canonical: C reads it in place.
    pub(crate) fn unless_canonical(
        operation: &'static str,
        path: &Path,
        form: &DescriptorForm,
    ) -> Result<Option<DescriptorCopy>> {
        let failed = |error: Error| error.during(operation).with_path(path);
        let file = DescriptorFile::read_as(path, form).map_err(failed)?;
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
        // What stays is in the directory for temporary files.
        let _ = fs::remove_dir_all(&self.directory);
    }
}
