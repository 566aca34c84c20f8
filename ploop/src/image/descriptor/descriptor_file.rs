//! Descriptor files: read with all that is in them, and replaced atomically.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, fchown};
use std::path::Path;

use rustix::fs::OFlags;

use super::form::DescriptorForm;
use super::write::UnknownFields;
use super::{Descriptor, MERGING, OPERATION, directory, text};
use crate::image::xml::{self, Element};
use crate::{Error, ErrorKind, Result, durability, side_files};

/// A descriptor file: its text, and what it says.
pub(crate) struct DescriptorFile {
    #[cfg(feature = "libploop")]
    pub(crate) text: Vec<u8>,
    pub(crate) descriptor: Descriptor,
    /// The fields that libploop does not know.
    pub(crate) unknown: UnknownFields,
}

impl DescriptorFile {
    /// `real` has no links.
    pub(crate) fn read_as(real: &Path, form: &DescriptorForm) -> Result<DescriptorFile> {
        DescriptorFile::parse(text(real)?, directory(real), form)
    }

    pub(super) fn parse(
        text: Vec<u8>,
        dir: &Path,
        form: &DescriptorForm,
    ) -> Result<DescriptorFile> {
        let decoded = xml::decode(&text)?;
        let document = xml::parse(&decoded)?;
        let root = Element::root(&document);
        let descriptor = Descriptor::of(root, dir, form)?;
        descriptor.require_for_changes(form)?;
        // Whoever writes the descriptor anew would drop these marks, and libploop 9 needs them.
        let is_merged =
            |shot: Element<'_, '_>| MERGING.iter().any(|it| shot.optional(it).is_some());
        if root.required("Snapshots")?.children("Shot").any(is_merged) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                OPERATION,
                "an online merge by libploop 9 was interrupted; it finishes that when it merges again",
            ));
        }
        Ok(DescriptorFile {
            descriptor,
            unknown: UnknownFields::of(root, dir, form)?,
            #[cfg(feature = "libploop")]
            text,
        })
    }
}

/// Replaces a descriptor atomically, with mode and owner kept.
pub(crate) fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = side_files::rewritten(path);
    write(&new, text.as_bytes(), Some(&fs::metadata(path)?))?;
    if let Err(error) = fs::rename(&new, path) {
        let _ = fs::remove_file(&new);
        return Err(error);
    }
    // Both are needed: see `durability`.
    File::open(path)?.sync_all()?;
    durability::sync_directory(directory(path))
}

/// Writes and syncs a file of this crate's own, with owner and mode of the descriptor, or else for the caller alone.
pub(crate) fn write(path: &Path, text: &[u8], like: Option<&fs::Metadata>) -> io::Result<()> {
    // One that a killed process left, or a link as a trap, which is removed and not followed.
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
            let Some(like) = like else {
                return Ok(());
            };
            let own = file.metadata()?;
            if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
                fchown(&file, Some(like.uid()), Some(like.gid()))?;
            }
            file.set_permissions(like.permissions())
        })
        .and_then(|()| file.sync_all());
    if written.is_err() {
        let _ = fs::remove_file(path);
    }
    written
}
