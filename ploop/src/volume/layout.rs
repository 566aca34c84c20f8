//! The files of a volume: its directory, `children` in it, and the links there.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, symlink};
use std::path::{Path, PathBuf};

use crate::image::descriptor::{UnknownFields, write};
use crate::image::other_image::{CHILDREN, MOVES, links_to_volumes};
use crate::image::recovery::files;
use crate::image::{Descriptor, Header};
use crate::{Error, ErrorKind, Guid, Result, durability, ffi, paths, side_files, trust};

/// A volume that is registered in the directory of another one.
pub(super) struct Child {
    pub(super) link: PathBuf,
    /// Where the link leads. It may not be there.
    pub(super) directory: PathBuf,
    /// Whether it is no volume upon that one, but [one that a move is from or to](register_move).
    pub(super) is_move: bool,
}

/// The volumes that are registered as upon the one in this directory, and those that a move is from or to.
pub(super) fn children(operation: &'static str, directory: &Path) -> Result<Vec<Child>> {
    let mut found = Vec::new();
    for (name, is_move) in [(CHILDREN, false), (MOVES, true)] {
        let links = directory.join(name);
        require_no_link(operation, &links)?;
        for link in links_to_volumes(operation, &links)? {
            let Ok(target) = fs::read_link(&link) else {
                continue;
            };
            let directory = fs::canonicalize(&link).unwrap_or_else(|_| links.join(target));
            found.push(Child {
                link,
                directory,
                is_move,
            });
        }
    }
    Ok(found)
}

/// Links would be made and removed where this one leads.
fn require_no_link(operation: &'static str, children: &Path) -> Result<()> {
    if !fs::symlink_metadata(children).is_ok_and(|it| it.is_symlink()) {
        return Ok(());
    }
    let why =
        "volumes are registered in a directory of this name, and this is a link to another one";
    Err(Error::new(ErrorKind::Unsupported, operation, why).with_path(children))
}

/// Requires that a volume of this name can be registered.
pub(super) fn require_name_free(
    operation: &'static str,
    directory: &Path,
    child: &Path,
) -> Result<()> {
    let link = link_of(directory, child);
    match fs::canonicalize(&link) {
        Ok(other) if other == child => Ok(()),
        Err(_) if fs::symlink_metadata(&link).is_err() => Ok(()),
        _ => {
            let why = "a volume is registered under the name of its directory, and another one of that name is already; choose another name";
            Err(Error::new(ErrorKind::AlreadyExists, operation, why).with_path(link))
        }
    }
}

/// Registers a volume as upon the one in `directory`.
pub(super) fn register(operation: &'static str, directory: &Path, child: &Path) -> Result<()> {
    require_name_free(operation, directory, child)?;
    make_link(operation, directory, child, &link_of(directory, child))
}

/// Registers that the volume in `directory` is about to stand upon `other`, or not to any more. It stands upon one at any time;
/// and it is registered in others before and after, which is taken back by [`finish`](super::Volume::finish) after a kill.
pub(super) fn register_move(operation: &'static str, directory: &Path, other: &Path) -> Result<()> {
    let known = children(operation, directory)?;
    if known.iter().any(|it| it.is_move && it.directory == other) {
        return Ok(());
    }
    let link = directory.join(MOVES).join(Guid::generate().to_string());
    make_link(operation, directory, other, &link)
}

fn make_link(operation: &'static str, directory: &Path, child: &Path, link: &Path) -> Result<()> {
    let children = paths::directory_of(link);
    require_no_link(operation, children)?;
    let made = match symlink(child, link) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_directory(children)
            .and_then(|()| durability::sync_directory(directory))
            .and_then(|()| symlink(child, link)),
        // It was there: that was looked at.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    };
    made.and_then(|()| durability::sync_directory(children))
        .map_err(|error| {
            Error::io(operation, "the volume cannot be registered", error).with_path(link)
        })
}

/// Removes each link to a volume.
pub(super) fn unregister(operation: &'static str, directory: &Path, child: &Path) -> Result<()> {
    let links = children(operation, directory)?;
    for Child { link, .. } in links.iter().filter(|it| it.directory == child) {
        let removed = fs::remove_file(link);
        if let Err(error) = removed.or_else(ignore_missing) {
            let why = "the link to the volume cannot be removed";
            return Err(Error::io(operation, why, error).with_path(link));
        }
    }
    for links in [CHILDREN, MOVES].map(|name| directory.join(name)) {
        if links.is_dir() {
            durability::sync_directories(operation, [&*links])?;
        }
    }
    // Only if it is empty.
    let _ = fs::remove_dir(directory.join(MOVES));
    Ok(())
}

fn link_of(directory: &Path, child: &Path) -> PathBuf {
    let name = child.file_name().unwrap_or_default();
    directory.join(CHILDREN).join(name)
}

/// The absolute path of the directory of a new volume: one that is not there, or has nothing in it but an empty `children` and a
/// [mark](mark). What an operation that was cut short has left there is removed, and where it is registered.
pub(super) fn new_directory(operation: &'static str, directory: &Path) -> Result<PathBuf> {
    let directory = paths::of_new_file(operation, directory)?;
    if directory.to_str().is_none() {
        let why = "the descriptors of volumes name the one upon which they stand, and hold no name that is not UTF-8; choose another directory";
        return Err(Error::new(ErrorKind::InvalidInput, operation, why).with_path(directory));
    }
    let is_children = |it: &Path| {
        let names = [CHILDREN, MOVES].map(|name| Some(OsStr::new(name)));
        names.contains(&it.file_name())
            && paths::directory_of(it)
                .join(paths::DESCRIPTOR_NAME)
                .exists()
    };
    if directory.ancestors().skip(1).any(is_children) {
        let why =
            "the volumes upon another one are registered here, by links; choose another directory";
        return Err(Error::new(ErrorKind::InvalidInput, operation, why).with_path(directory));
    }
    paths::require_harmless_to_shell(operation, &directory.join(paths::DESCRIPTOR_NAME))?;
    if fs::symlink_metadata(&directory).is_err() {
        return Ok(directory);
    }
    let mark = mark_in(&directory);
    if is_unfinished(&directory) {
        trust::require_own_directory(operation, &directory)?;
        remove_unfinished(operation, &directory, None)?;
        if fs::symlink_metadata(&directory).is_err() {
            return Ok(directory);
        }
    }
    let is_free = || -> io::Result<bool> {
        if !fs::symlink_metadata(&directory)?.is_dir() {
            return Ok(false);
        }
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            if entry.path() == mark && entry.file_type()?.is_file() {
                continue;
            }
            let is_known = [CHILDREN, MOVES]
                .iter()
                .any(|name| entry.file_name() == *name);
            let is_known = is_known && entry.file_type()?.is_dir();
            if !is_known || fs::read_dir(entry.path())?.next().is_some() {
                return Ok(false);
            }
        }
        Ok(true)
    };
    if is_free().unwrap_or(false) {
        trust::require_own_directory(operation, &directory)?;
        return Ok(directory);
    }
    let why = "this is to be the directory of the new volume, and something is there";
    Err(Error::new(ErrorKind::AlreadyExists, operation, why).with_path(directory))
}

/// The directory for a new delta.
pub(super) fn directory_for_delta(operation: &'static str, directory: &Path) -> Result<PathBuf> {
    let directory =
        paths::existing_directory(operation, directory, "the directory for the new delta")?;
    trust::require_own_directory(operation, &directory)?;
    Ok(directory)
}

/// Makes the directory of a volume, and `children` in it.
pub(super) fn make(operation: &'static str, directory: &Path) -> Result<()> {
    make_directory(directory)
        .and_then(|()| make_directory(&directory.join(CHILDREN)))
        .and_then(|()| durability::sync_directory(directory))
        .and_then(|()| durability::sync_directory(paths::directory_of(directory)))
        .map_err(|error| {
            let why = "the directory of the new volume cannot be made";
            Error::io(operation, why, error).with_path(directory)
        })
}

/// Marks the directory of a volume that has no descriptor yet, or is about to lose it. One without a descriptor and without
/// this has lost it otherwise, and others may need it. The deltas are of no use without the descriptor.
pub(super) fn mark<'a>(
    operation: &'static str,
    directory: &Path,
    deltas: impl IntoIterator<Item = &'a Path>,
) -> Result<()> {
    files::record(operation, &directory.join(paths::DESCRIPTOR_NAME), deltas)?;
    durability::sync_directories(operation, [directory])
}

/// Whether it is marked, and has no descriptor.
pub(super) fn is_unfinished(directory: &Path) -> bool {
    !directory.join(paths::DESCRIPTOR_NAME).exists()
        && side_files::is_regular_file(&mark_in(directory))
}

fn mark_in(directory: &Path) -> PathBuf {
    side_files::file_record(&directory.join(paths::DESCRIPTOR_NAME))
}

fn make_directory(directory: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => Ok(()),
        made => made,
    }
}

/// Makes an empty delta that can stand upon the one with this header.
pub(super) fn make_delta(operation: &'static str, file: &Path, below: &Header) -> Result<()> {
    let header = Header::new(below.version, below.cluster, below.size)
        .map_err(|error| error.during(operation))?;
    let make = || -> io::Result<()> {
        let delta = File::options()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(file)?;
        delta.write_all_at(&header.to_bytes(), 0)?;
        delta.set_len(header.data_start())?;
        delta.sync_all()?;
        durability::sync_directory(paths::directory_of(file))
    };
    make().map_err(|error| {
        Error::io(operation, "the new delta cannot be made", error).with_path(file)
    })
}

/// Writes the descriptor of a new volume. It is there when it is complete; then the [mark](mark) goes.
pub(super) fn write_descriptor(
    operation: &'static str,
    directory: &Path,
    descriptor: &Descriptor,
    like: &Path,
) -> Result<()> {
    let path = directory.join(paths::DESCRIPTOR_NAME);
    let fields = UnknownFields::of_volume(ffi::descriptor_form(), descriptor.volume.clone());
    let text = descriptor
        .to_xml_with(&fields, directory)
        .map_err(|error| error.during(operation).with_path(&path))?;
    let new = side_files::rewritten(&path);
    fs::metadata(like)
        .and_then(|like| write(&new, text.as_bytes(), Some(&like)))
        .and_then(|()| fs::rename(&new, &path))
        .and_then(|()| durability::sync_directory(directory))
        .map_err(|error| {
            let why = "the descriptor of the new volume cannot be written";
            Error::io(operation, why, error).with_path(path)
        })?;
    // Should it stay, the next change removes it.
    let _ = fs::remove_file(mark_in(directory));
    Ok(())
}

/// [`remove`] of one that was cut short, where its links say where it is registered; in `last` it is registered, too.
pub(super) fn remove_unfinished(
    operation: &'static str,
    directory: &Path,
    last: Option<&Path>,
) -> Result<()> {
    // Where a deletion was cut short, these are the heir and the volume above.
    let others: Vec<PathBuf> = (children(operation, directory)?.into_iter())
        .map(|it| it.directory)
        .filter(|it| Some(&**it) != last && it.is_dir())
        .collect();
    let registered_in: Vec<&Path> = others.iter().map(PathBuf::as_path).chain(last).collect();
    remove(operation, directory, &registered_in)
}

/// Removes the directory of a volume that has no descriptor any more, or none yet, and is [marked](mark): what this crate and
/// libploop make in one, by its name. Other files stay, and the directory with them.
///
/// After a kill, the next operation on any of those in which the volume is registered does all of this again.
pub(super) fn remove(
    operation: &'static str,
    directory: &Path,
    registered_in: &[&Path],
) -> Result<()> {
    let path = directory.join(paths::DESCRIPTOR_NAME);
    for file in files::recorded(&path) {
        // A new one may not have its header yet, or not its length.
        let is_empty = || fs::metadata(&file).is_ok_and(|it| it.len() == 0);
        if File::open(&file).is_ok_and(|it| Header::is_in(&it)) || is_empty() {
            remove_file(operation, &file)?;
        }
    }
    let (last, others) = match registered_in.split_last() {
        Some((last, others)) => (Some(last), others),
        None => (None, registered_in),
    };
    for other in others {
        unregister(operation, other, directory)?;
    }
    // Only then: by these links the others are found.
    for Child { link, .. } in children(operation, directory)? {
        let _ = fs::remove_file(link);
    }
    if let Some(last) = last {
        unregister(operation, last, directory)?;
    }
    for name in [CHILDREN, MOVES] {
        let _ = fs::remove_dir(directory.join(name));
    }
    for file in side_files::of_descriptor(&path) {
        if file != path && side_files::is_regular_file(&file) {
            let _ = fs::remove_file(file);
        }
    }
    let _ = fs::remove_file(directory.join(side_files::STATFS_NAME));
    // Another volume may have its deltas here.
    let _ = fs::remove_dir(directory);
    durability::sync_directories(operation, [paths::directory_of(directory)])
}

fn ignore_missing(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    }
}

/// [`fs::remove_file`] of one that may be gone.
pub(super) fn remove_file(operation: &'static str, file: &Path) -> Result<()> {
    fs::remove_file(file)
        .or_else(ignore_missing)
        .map_err(|error| Error::io(operation, "the file cannot be removed", error).with_path(file))
}
