//! Orphans: files beside an image that have names like its deltas, and are in no descriptor.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::descriptor::{Descriptor, damaged};
use crate::identity::Identity;
use crate::{Error, ErrorKind, Guid, Result};

const OPERATION: &str = "look for orphaned deltas of";

/// How many descriptors of one directory are read, for the files they have.
pub(super) const MAX_DESCRIPTORS: usize = 1000;

/// The files in the directories of an image that have names like its deltas, or like the files that libploop makes
/// while it converts one, and that are in none of the descriptors there, nor may be in a damaged one. `path` is that of the
/// descriptor.
///
/// None of a volume of libploop 7: other images, in directories that this one does not know, have deltas among its own.
pub(crate) fn orphans(descriptor: &Descriptor, path: &Path) -> Result<Vec<PathBuf>> {
    if descriptor.volume.is_some() {
        return Ok(Vec::new());
    }
    let mut dirs = BTreeSet::new();
    let mut stems = BTreeSet::new();
    for image in descriptor.all_images() {
        if let (Some(dir), Some(name)) = (image.file.parent(), image.file.file_name()) {
            // The directory of a missing delta may be missing, too.
            if let Ok(dir) = dir.canonicalize() {
                dirs.insert(dir);
            }
            stems.insert(stem(name.as_bytes()).to_owned());
        }
    }
    let home = path.canonicalize().ok();
    dirs.extend(home.as_deref().and_then(Path::parent).map(Path::to_owned));

    let mut named = names(descriptor);
    // A name may lead to the same file by another path, such as a bind mount.
    let mut files: BTreeSet<Identity> = identities(descriptor);
    let mut damaged = Vec::new();
    let mut found = Vec::new();
    for dir in &dirs {
        let failed = |error| {
            Error::io(OPERATION, "the directory cannot be read", error).with_path(dir.as_path())
        };
        let mut descriptors = 0;
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            let is_xml = path.extension() == Some(OsStr::new("xml"));
            // A link to a descriptor names what that does.
            let is_link = entry.file_type().is_ok_and(|kind| kind.is_symlink());
            if !path.is_file() || is_link && !is_xml {
                continue;
            }
            if is_xml {
                descriptors += 1;
                if descriptors > MAX_DESCRIPTORS {
                    // Any may be named in the rest.
                    return Ok(Vec::new());
                }
                match Descriptor::open(&path) {
                    Ok(other) => {
                        named.extend(names(&other));
                        files.extend(identities(&other));
                    }
                    Err(error) if error.kind() == ErrorKind::NotFound => {}
                    Err(_) => damaged.push(path),
                }
            } else if belongs(entry.file_name().as_bytes(), &stems) {
                found.push(path);
            }
        }
    }
    found.retain(|path| {
        !named.contains(path) && Identity::of(path).is_ok_and(|file| !files.contains(&file))
    });
    for path in damaged {
        match damaged::text(&path) {
            Ok(Some(text)) if damaged::is_cut_off(&text) => return Ok(Vec::new()),
            Ok(Some(text)) => found.retain(|path| !damaged::mentions(&text, path)),
            // It may name any.
            Ok(None) | Err(_) => return Ok(Vec::new()),
        }
    }
    found.sort();
    Ok(found)
}

/// The files that the descriptors of a directory name. A descriptor that cannot be read is an error: it may name any.
#[cfg(any(feature = "libploop", feature = "image-write"))]
pub(crate) fn named_in(directory: &Path) -> Result<BTreeSet<PathBuf>> {
    let failed =
        |error| Error::io(OPERATION, "the directory cannot be read", error).with_path(directory);
    let mut descriptors = Vec::new();
    for entry in fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension() == Some(OsStr::new("xml")) && descriptors.len() < MAX_DESCRIPTORS {
            descriptors.push(path);
        }
    }
    let mut named = BTreeSet::new();
    for path in descriptors {
        match Descriptor::open(path) {
            Ok(descriptor) => named.extend(names(&descriptor)),
            Err(error) => {
                use crate::ErrorKind::{Corrupt, InvalidInput, NotFound, Unsupported};
                let is_none = [NotFound, InvalidInput, Corrupt, Unsupported];
                if !is_none.contains(&error.kind()) {
                    return Err(error);
                }
            }
        }
    }
    Ok(named)
}

fn identities(descriptor: &Descriptor) -> BTreeSet<Identity> {
    let images = descriptor.all_images();
    images
        .filter_map(|image| Identity::of(&image.file).ok())
        .collect()
}

/// The files of a descriptor, with their directories resolved.
fn names(descriptor: &Descriptor) -> BTreeSet<PathBuf> {
    descriptor
        .all_images()
        .map(|image| {
            let dir = image.file.parent().and_then(|dir| dir.canonicalize().ok());
            match (dir, image.file.file_name()) {
                (Some(dir), Some(name)) => dir.join(name),
                _ => image.file.clone(),
            }
        })
        .collect()
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
