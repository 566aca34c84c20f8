//! Deltas of another image: a copy of a descriptor with absolute names, or with `..` in them, names the deltas of the
//! image that it was copied from, and does not share its lock.
//!
//! A change that writes to such a delta or removes it would destroy the other image. So where a delta lies in another
//! directory than the descriptor through which it is changed, no descriptor there may name it.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::descriptor::{Descriptor, Image};
use super::header::{Header, HeaderFlags};
use super::named_files::{MAX_DESCRIPTORS, NamedFiles};
use crate::file_mount::is_mounted_on;
use crate::identity::{DirectoryEntry, Identity};
use crate::side_files::{self, DESCRIPTOR_NAME, directory_of};
use crate::{Error, ErrorKind, Guid, ImageMode, Result};

/// Requires that a delta, which is to be written to or removed, is named by no descriptor in its own directory, if that
/// is another one than that of `descriptor`.
pub(crate) fn require_of_no_other_image(
    operation: &'static str,
    descriptor: &Path,
    delta: &Path,
) -> Result<()> {
    require_no_volume_upon(operation, descriptor, delta)?;
    if is_mounted_on(delta) {
        let why = "another file is mounted here, which may be a delta of another image; unmount it, and put the delta in its place";
        return Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(delta));
    }
    let Some(other) = other_descriptor(operation, descriptor, delta)? else {
        return Ok(());
    };
    let why = format!(
        "it is a delta of the image {}, which would be damaged; change the image through that descriptor, or remove that one if it is not needed",
        other.display()
    );
    Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(delta))
}

/// Requires that a new delta, which is made beside the base unless a directory is named, does not lie there among the
/// files of another image, which would take it for a leftover.
pub(crate) fn require_no_other_image_beside(
    operation: &'static str,
    descriptor: &Path,
    base: &Path,
) -> Result<()> {
    let Some(other) = other_descriptor(operation, descriptor, base)? else {
        return Ok(());
    };
    let why = format!(
        "the new delta would lie beside this base, which is one of the image {}, and be removed as a leftover of that one; make the snapshot of that image, or one with a directory for its delta",
        other.display()
    );
    Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(base))
}

/// Requires that no second name (hard link) of the descriptor goes on as it is, while a change puts a new file in place of
/// this one: it would name deltas that are gone, or have others written to. A descriptor is changed by the name that is
/// beside its deltas, if that is the only one there.
pub(crate) fn require_no_second_name(
    operation: &'static str,
    path: &Path,
    descriptor: &Descriptor,
) -> Result<()> {
    // What cannot be examined is an error of whoever reads it.
    let Ok(metadata) = fs::metadata(path) else {
        return Ok(());
    };
    if metadata.nlink() < 2 {
        return Ok(());
    }
    let refused =
        |why: String| Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(path));
    let home = directory_of(path);
    let entries = fs::read_dir(home).map_err(|error| {
        let why = "the descriptor has several names (hard links), and the directory cannot be read";
        Error::io(operation, why, error).with_path(home)
    })?;
    let own = Identity::from(&metadata);
    let is_name = |it: &Path| fs::symlink_metadata(it).is_ok_and(|it| Identity::from(&it) == own);
    // A change that was interrupted has left some.
    let side_files = side_files::of_descriptor(path);
    let names = side_files.iter().filter(|it| is_name(it)).count() as u64;
    if names == metadata.nlink() {
        return Ok(());
    }
    let mut others = entries.flatten().map(|entry| entry.path());
    let is_second = |other: &PathBuf| !side_files.contains(other) && is_name(other);
    if let Some(other) = others.find(is_second) {
        return refused(format!(
            "the descriptor has a second name here, {}, which would keep the old contents; remove one of the two",
            other.display()
        ));
    }
    let is_elsewhere = |image: &&Image| {
        fs::canonicalize(directory_of(&image.file)).is_ok_and(|directory| directory != home)
    };
    match descriptor.images.iter().find(is_elsewhere) {
        Some(image) => refused(format!(
            "the descriptor has {} names (hard links), the others would keep the old contents, and its delta {} is not beside this one; remove the names that are not needed",
            metadata.nlink() - names + 1,
            image.file.display()
        )),
        None => Ok(()),
    }
}

/// [`require_of_no_other_image`] of the deltas to which a recovery of this image writes: it clears their marks, finishes
/// a change of their version, or cuts a raw base that did not grow.
pub(crate) fn require_recoverable(
    operation: &'static str,
    path: &Path,
    descriptor: &Descriptor,
) -> Result<()> {
    let is_staged = side_files::is_regular_file(&side_files::staged(path));
    for image in &descriptor.images {
        if directories(&image.file)
            .iter()
            .all(|it| it == directory_of(path))
        {
            continue;
        }
        let is_top = image.guid == descriptor.top;
        let is_written = match Header::read(&image.file) {
            Ok(header) => {
                header.in_use && !is_top || header.flags.contains(HeaderFlags::CONVERTING)
            }
            Err(_) => is_staged && is_top && descriptor.mode == ImageMode::Raw,
        };
        if is_written {
            require_of_no_other_image(operation, path, &image.file)?;
        }
    }
    Ok(())
}

/// Where the volumes that stand upon an image are registered: by links, in its directory.
pub(crate) const CHILDREN: &str = "children";

/// Where a volume has links to those upon which it stood, or is to stand. libploop would take these for volumes upon it.
pub(crate) const MOVES: &str = "children.ploop-moves";

/// What is registered in the `children` of a volume, or was. libploop takes links alone, whatever else is there.
pub(crate) fn links_to_volumes(operation: &'static str, children: &Path) -> Result<Vec<PathBuf>> {
    let list = || -> io::Result<Vec<PathBuf>> {
        let mut links = Vec::new();
        for entry in fs::read_dir(children)? {
            let entry = entry?;
            if entry.file_type()?.is_symlink() {
                links.push(entry.path());
            }
        }
        Ok(links)
    };
    match list() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        links => links.map_err(|error| {
            let why =
                "the volumes that stand upon the image are registered here, and cannot be listed";
            Error::io(operation, why, error).with_path(children)
        }),
    }
}

/// Requires that no volume in another directory stands upon a delta of this image (A76).
fn require_no_volume_upon(operation: &'static str, descriptor: &Path, delta: &Path) -> Result<()> {
    let home = directory_of(descriptor);
    if ![CHILDREN, MOVES]
        .iter()
        .any(|links| home.join(links).is_dir())
    {
        return Ok(());
    }
    let own = Descriptor::open(descriptor).map_err(|error| error.during(operation))?;
    if own.volume.is_none() {
        // Whatever else has that name.
        return Ok(());
    }
    let delta = Identity::of(delta).ok();
    let guids: Vec<Guid> = (own.images.iter())
        .filter(|image| delta.is_some() && Identity::of(&image.file).ok() == delta)
        .map(|image| image.guid)
        .collect();
    let refused = |why: String, path: &Path| {
        Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(path))
    };
    let own_entry = entry(descriptor);
    let mut left = vec![home.to_owned()];
    let mut seen = BTreeSet::new();
    while let Some(directory) = left.pop() {
        let moves = links_to_volumes(operation, &directory.join(MOVES))?;
        let children = links_to_volumes(operation, &directory.join(CHILDREN))?;
        let children = children.into_iter().map(|link| (link, false));
        for (link, is_move) in children.chain(moves.into_iter().map(|link| (link, true))) {
            let path = link.join(DESCRIPTOR_NAME);
            let is_own = || own_entry.is_some() && entry(&path) == own_entry;
            if is_own() || is_move && !link.exists() {
                continue;
            }
            let volume = match Descriptor::open(&path) {
                Ok(volume) => volume,
                Err(error) => {
                    let why = format!(
                        "a volume that stands upon the image is registered here, and it cannot be told upon which of its deltas: {error}; remove this link, if that volume is gone"
                    );
                    return refused(why, &link);
                }
            };
            // Or has it by now: a snapshot of the volume was cut short.
            let has = || {
                let mut images = volume.images.iter();
                images.any(|image| Identity::of(&image.file).ok() == delta)
            };
            let stands_upon = |guid: &&Guid| {
                let mut shots = volume.snapshots.iter();
                shots.any(|shot| shot.parent == **guid) || has()
            };
            if let Some(guid) = guids.iter().find(stands_upon) {
                let why = format!(
                    "the volume {} stands upon the snapshot {guid}, and would be damaged",
                    path.canonicalize().unwrap_or(path).display()
                );
                return refused(why, descriptor);
            }
            // Those upon it may stand upon this image, too.
            if let Some(directory) = fs::canonicalize(&link)
                .ok()
                .filter(|it| seen.insert(it.clone()))
            {
                if seen.len() > MAX_DESCRIPTORS {
                    return refused("too many volumes stand upon the image".into(), descriptor);
                }
                left.push(directory);
            }
        }
    }
    Ok(())
}

/// A descriptor that names this delta, beside the delta or beside the file to which that leads. One that cannot be read
/// is an error: it may name it.
fn other_descriptor(
    operation: &'static str,
    descriptor: &Path,
    delta: &Path,
) -> Result<Option<PathBuf>> {
    let home = directory_of(descriptor);
    let mut elsewhere = directories(delta);
    elsewhere.retain(|directory| directory != home);
    let Ok(file) = Identity::of(delta) else {
        return Ok(None);
    };
    let own = entry(descriptor);
    for directory in elsewhere {
        for other in possible_descriptors(operation, &directory)? {
            if names(&other, own.as_ref(), delta, file).map_err(|error| error.during(operation))? {
                return Ok(Some(other));
            }
        }
    }
    Ok(None)
}

/// The name of the file to which a path leads. Where a file has two names, the descriptor that a change puts in place of it
/// gets one of them, and who uses the other name has the old one.
fn entry(path: &Path) -> Option<DirectoryEntry> {
    DirectoryEntry::of(&fs::canonicalize(path).ok()?)
}

/// What may be a descriptor in a directory, by its name.
fn possible_descriptors(operation: &'static str, directory: &Path) -> Result<Vec<PathBuf>> {
    // First, and where the directory may not be read.
    let mut found = vec![directory.join(DESCRIPTOR_NAME)];
    let mut list = || -> io::Result<()> {
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            if path
                .extension()
                .is_some_and(|it| it.eq_ignore_ascii_case("xml"))
            {
                found.push(path);
            }
            if found.len() > MAX_DESCRIPTORS {
                return Err(io::Error::other("there are too many"));
            }
        }
        Ok(())
    };
    match list() {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        listed => listed.map_err(|error| {
            let why = "the delta lies here, and the descriptors beside it cannot be listed";
            Error::io(operation, why, error).with_path(directory)
        })?,
    }
    Ok(found)
}

/// Whether a descriptor, or one upon which it stands, has this delta. `own` is none of them.
fn names(other: &Path, own: Option<&DirectoryEntry>, delta: &Path, file: Identity) -> Result<bool> {
    let mut other = other.to_owned();
    for _ in 0..MAX_DESCRIPTORS {
        if own.is_some() && entry(&other).as_ref() == own {
            return Ok(false);
        }
        let descriptor = match Descriptor::open(&other) {
            Ok(descriptor) => descriptor,
            Err(error) => {
                return Ok(NamedFiles::of_damaged(&other, error)?.may_include(delta));
            }
        };
        let is_it = |image: &Image| Identity::of(&image.file).is_ok_and(|it| it == file);
        if descriptor.all_images().any(is_it) {
            return Ok(true);
        }
        // A volume there has deltas of the one upon which it stands, too.
        match descriptor.volume.and_then(|volume| volume.parent) {
            Some(above) => other = above.join(DESCRIPTOR_NAME),
            None => break,
        }
    }
    Ok(false)
}

/// The directory in which a file has its name, and that of the file to which a link of this name leads.
fn directories(file: &Path) -> BTreeSet<PathBuf> {
    let named = fs::canonicalize(directory_of(file)).ok();
    let target = fs::canonicalize(file).ok();
    let target = target.as_deref().map(directory_of).map(Path::to_owned);
    named.into_iter().chain(target).collect()
}
