//! Orphans: files beside an image that have names like its deltas, and are in no descriptor.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::descriptor::Descriptor;
use crate::{Error, Guid, Result};

const OPERATION: &str = "look for orphaned deltas";

/// How many descriptors of one directory are read, for the files they have.
const MAX_DESCRIPTORS: usize = 1000;

/// The files in the directories of an image that have names like its deltas, or like the files that libploop makes
/// while it converts one, and that are in none of the descriptors there. `path` is that of the descriptor.
pub(crate) fn orphans(descriptor: &Descriptor, path: &Path) -> Result<Vec<PathBuf>> {
    let mut dirs = BTreeSet::new();
    let mut stems = BTreeSet::new();
    for image in &descriptor.images {
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
    let mut found = Vec::new();
    for dir in &dirs {
        let failed = |error| {
            Error::io(OPERATION, "the directory cannot be read", error).with_path(dir.as_path())
        };
        let mut descriptors = 0;
        for entry in fs::read_dir(dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let path = entry.path();
            if !entry.file_type().is_ok_and(|kind| kind.is_file()) {
                continue;
            }
            if path.extension() == Some(OsStr::new("xml")) && descriptors < MAX_DESCRIPTORS {
                descriptors += 1;
                if let Ok(other) = Descriptor::open(&path) {
                    named.extend(names(&other));
                }
            } else if belongs(entry.file_name().as_bytes(), &stems) {
                found.push(path);
            }
        }
    }
    found.retain(|path| !named.contains(path));
    found.sort();
    Ok(found)
}

/// The files of a descriptor, with their directories resolved.
fn names(descriptor: &Descriptor) -> BTreeSet<PathBuf> {
    descriptor
        .images
        .iter()
        .map(|image| {
            let dir = image.file.parent().and_then(|dir| dir.canonicalize().ok());
            match (dir, image.file.file_name()) {
                (Some(dir), Some(name)) => dir.join(name),
                _ => image.file.clone(),
            }
        })
        .collect()
}

/// Whether a file has a name that libploop makes from one of `stems`.
fn belongs(name: &[u8], stems: &BTreeSet<Vec<u8>>) -> bool {
    let plain = [&b".tmp"[..], b".idx"]
        .iter()
        .find_map(|suffix| name.strip_suffix(*suffix))
        .unwrap_or(name);
    stems.contains(stem(plain))
}

/// A name without the GUIDs that libploop has appended: `root.hds` of `root.hds.{…}`.
fn stem(mut name: &[u8]) -> &[u8] {
    // A dot and 38 characters.
    while let Some((stem, suffix)) = name.split_at_checked(name.len().saturating_sub(39)) {
        let guid = suffix
            .strip_prefix(b".{")
            .and_then(|_| std::str::from_utf8(&suffix[1..]).ok())
            .is_some_and(|text| text.parse::<Guid>().is_ok());
        if stem.is_empty() || !guid {
            break;
        }
        name = stem;
    }
    name
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
            (format!(".{GUID}"), &format!(".{GUID}")),
            (format!("a{GUID}"), &format!("a{GUID}")),
            (String::new(), ""),
        ] {
            assert_eq!(stem(name.as_bytes()), expected.as_bytes(), "{name}");
        }
    }

    #[test]
    fn names_of_deltas() {
        let stems = BTreeSet::from([b"root.hds".to_vec()]);
        for (name, expected) in [
            ("root.hds".to_owned(), true),
            (format!("root.hds.{GUID}"), true),
            ("root.hds.tmp".to_owned(), true),
            (format!("root.hds.{GUID}.idx"), true),
            ("other.hds".to_owned(), false),
            (format!("other.hds.{GUID}"), false),
            ("root.hds.bak".to_owned(), false),
            ("DiskDescriptor.xml.tmp".to_owned(), false),
        ] {
            assert_eq!(belongs(name.as_bytes(), &stems), expected, "{name}");
        }
    }
}
