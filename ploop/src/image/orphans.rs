//! Orphans: files beside an image that have names like its deltas, and are in no descriptor.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::descriptor::Descriptor;
use super::named_files::{MAX_DESCRIPTORS, NamedFiles, may_be_descriptor};
use crate::{Error, Guid, Result, side_files};

const OPERATION: &str = "look for orphaned deltas of";

/// The files in the directories of an image that have names like its deltas, or like the files that libploop makes
/// while it converts one, and that are in none of the descriptors there, whatever these are called, nor may be in a damaged
/// one. `path` is that of the descriptor.
///
/// None of a volume of libploop 7: other images, in directories that this one does not know, have deltas among its own.
pub(crate) fn orphans(descriptor: &Descriptor, path: &Path) -> Result<Orphans> {
    if descriptor.volume.is_some() {
        return Ok(Orphans::default());
    }
    let stems = stems(descriptor);
    // The directory of a missing delta may be missing, too.
    let images = descriptor.all_images();
    let directories = images.filter_map(|image| image.file.parent()?.canonicalize().ok());
    let mut directories: BTreeSet<PathBuf> = directories.collect();
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    directories.extend(path.parent().map(Path::to_owned));

    let mut found = Vec::new();
    let mut others = Vec::new();
    for directory in &directories {
        let failed = |error| {
            Error::io(OPERATION, "the directory cannot be read", error)
                .with_path(directory.as_path())
        };
        for entry in fs::read_dir(directory).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let file = entry.path();
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if belongs(entry.file_name().as_bytes(), &stems) && file.is_file() && !is_link {
                found.push(file);
            } else {
                others.push(file);
            }
        }
    }
    let own = NamedFiles::listed(descriptor);
    found.retain(|file| !own.may_include(file));
    if found.is_empty() {
        return Ok(Orphans::default());
    }
    let is_own = |file: &Path| {
        let staged = [side_files::staged(&path), side_files::being_staged(&path)];
        file == path || staged.iter().any(|it| it == file)
    };
    others.retain(|file| !is_own(file) && may_be_descriptor(file));
    let mut hidden_by = others.get(MAX_DESCRIPTORS).cloned();
    for other in others.into_iter().take(MAX_DESCRIPTORS) {
        let named = NamedFiles::of(&other).map_err(|error| not_known(OPERATION, &other, error))?;
        found.retain(|file| !named.may_include(file));
        if matches!(named, NamedFiles::Any(_)) {
            hidden_by = Some(other);
        }
    }
    if hidden_by.is_some() {
        found.clear();
    }
    found.sort();
    Ok(Orphans {
        files: found,
        hidden_by,
    })
}

/// What [`orphans`] finds.
#[derive(Default)]
pub(crate) struct Orphans {
    pub(crate) files: Vec<PathBuf>,
    /// A file that may be a descriptor and name what looks like one, so that none is told.
    pub(crate) hidden_by: Option<PathBuf>,
}

/// Whether a file of this name would be taken for an orphan.
#[cfg(feature = "image-write")]
pub(crate) fn is_called_like_delta(descriptor: &Descriptor, file: &Path) -> bool {
    let name = file.file_name().unwrap_or_default();
    belongs(name.as_bytes(), &stems(descriptor))
}

/// The names of the deltas, without what libploop and Parallels append.
fn stems(descriptor: &Descriptor) -> BTreeSet<Vec<u8>> {
    let names = descriptor.all_images().filter_map(|it| it.file.file_name());
    names.map(|name| stem(name.as_bytes()).to_owned()).collect()
}

/// The error of a file that may be a descriptor, and cannot be read.
pub(crate) fn not_known(
    operation: &'static str,
    file: &Path,
    error: impl Into<io::Error>,
) -> Error {
    let why = "this cannot be read, and may be a descriptor that names what looks left over; move it elsewhere, or make it readable";
    Error::io(operation, why, error).with_path(file)
}

/// Leaves those of these files that no descriptor in this directory names. An error where one cannot be read: it may name any.
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) fn retain_unnamed(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let failed =
        |error| Error::io(OPERATION, "the directory cannot be read", error).with_path(directory);
    let mut descriptors = 0;
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|it| it == "xml") {
            descriptors += 1;
            let named = match descriptors {
                ..=MAX_DESCRIPTORS => NamedFiles::of(&path)?,
                _ => NamedFiles::Any(None),
            };
            files.retain(|file| !named.may_include(file));
        }
    }
    Ok(())
}

/// Whether a file has a name that libploop or Parallels makes from one of `stems`.
fn belongs(name: &[u8], stems: &BTreeSet<Vec<u8>>) -> bool {
    let plain = [&b".tmp"[..], b".idx"]
        .iter()
        .find_map(|suffix| name.strip_suffix(*suffix))
        .unwrap_or(name);
    stems.contains(stem(plain))
}

/// A name without the GUIDs that libploop has appended: `root.hds` of `root.hds.{…}`. Parallels puts the GUID before the
/// extension: `data.hdd.0` of `data.hdd.0.{…}.hds`.
fn stem(mut name: &[u8]) -> &[u8] {
    if let Some(inner) = name.strip_suffix(b".hds").and_then(without_guid) {
        name = inner;
    }
    while let Some(shorter) = without_guid(name) {
        name = shorter;
    }
    name
}

/// A name without the GUID at its end, if there is one behind something else.
fn without_guid(name: &[u8]) -> Option<&[u8]> {
    // A dot and 38 characters.
    let (stem, suffix) = name.split_at_checked(name.len().checked_sub(39)?)?;
    let guid = suffix
        .strip_prefix(b".")
        .filter(|it| it.starts_with(b"{"))?;
    let is_guid = std::str::from_utf8(guid).is_ok_and(|text| text.parse::<Guid>().is_ok());
    (is_guid && !stem.is_empty()).then_some(stem)
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUID: &str = "{0d3ebf62-5322-4a35-a84c-e465aef3807c}";

    #[test]
    fn stems() {
        for (name, expected) in [
            ("root.hds".to_owned(), "root.hds"),
            (format!("root.hds.{GUID}"), "root.hds"),
            (format!("root.hds.{GUID}.{GUID}"), "root.hds"),
            (format!("data.hdd.0.{GUID}.hds"), "data.hdd.0"),
            (format!("{GUID}.hds"), &format!("{GUID}.hds")),
            ("root.hds.hds".to_owned(), "root.hds.hds"),
            (format!(".{GUID}"), &format!(".{GUID}")),
            (format!("a{GUID}"), &format!("a{GUID}")),
            (String::new(), ""),
        ] {
            assert_eq!(stem(name.as_bytes()), expected.as_bytes(), "{name}");
        }
    }

    #[test]
    fn names_of_deltas() {
        let stems = BTreeSet::from([b"root.hds".to_vec(), b"data.hdd.0".to_vec()]);
        for (name, expected) in [
            ("root.hds".to_owned(), true),
            (format!("root.hds.{GUID}"), true),
            ("root.hds.tmp".to_owned(), true),
            (format!("root.hds.{GUID}.idx"), true),
            (format!("data.hdd.0.{GUID}.hds"), true),
            (format!("data.hdd.1.{GUID}.hds"), false),
            ("other.hds".to_owned(), false),
            (format!("other.hds.{GUID}"), false),
            ("root.hds.bak".to_owned(), false),
            ("DiskDescriptor.xml.tmp".to_owned(), false),
        ] {
            assert_eq!(belongs(name.as_bytes(), &stems), expected, "{name}");
        }
    }
}
