//! Which file an export may make or replace: none of any image, and no undo file.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::chain::Level;
use super::descriptor::damaged::DamagedText;
use super::disk::Disk;
use super::header::Header;
use super::named_files::{MAX_DESCRIPTORS, NamedFiles, may_be_descriptor, resolved};
use crate::identity::{DirectoryEntry, Identity};
use crate::{Error, ErrorKind, Result, side_files};

/// Refuses targets that must not be replaced, and names under which libploop would write over the new file.
pub(super) fn require_replaceable(
    operation: &'static str,
    disk: &Disk,
    path: &Path,
    overwrite: bool,
) -> Result<()> {
    let refused = |kind, message: &str| Err(Error::new(kind, operation, message).with_path(path));
    let image = disk.image_files();
    let beside_descriptor = image.descriptors.iter().flat_map(|descriptor| {
        // If the descriptor is a link, libploop's files are beside the file to which it leads.
        let file = descriptor.canonicalize();
        let file = file.unwrap_or_else(|_| descriptor.clone());
        [descriptor.clone()]
            .into_iter()
            .chain(side_files::of_descriptor(&file))
    });
    let beside_deltas = image.deltas.iter().flat_map(|delta| {
        [delta.clone()]
            .into_iter()
            .chain(side_files::of_delta(delta))
    });
    let files: Vec<PathBuf> = beside_descriptor.chain(beside_deltas).collect();
    let target = DirectoryEntry::of(path);
    if target.is_some() && files.iter().any(|file| DirectoryEntry::of(file) == target) {
        return refused(
            ErrorKind::InvalidInput,
            "this is the name of a file of the image that is to be exported, or of one that libploop makes beside it",
        );
    }
    let Ok(found) = path.symlink_metadata() else {
        return Ok(());
    };
    if !overwrite {
        return refused(
            ErrorKind::AlreadyExists,
            "a file of that name is there already",
        );
    }
    if !found.is_file() {
        return refused(
            ErrorKind::InvalidInput,
            "what has that name is not a regular file",
        );
    }
    let found = Identity::from(&found);
    let is_open = |level: &Level| {
        let metadata = level.file().metadata();
        metadata.is_ok_and(|metadata| Identity::from(&metadata) == found)
    };
    if disk.storages().levels().any(is_open)
        || files
            .iter()
            .any(|file| Identity::of(file).is_ok_and(|file| file == found))
    {
        return refused(
            ErrorKind::InvalidInput,
            "this is a file of the image that is to be exported, by another name",
        );
    }
    require_of_no_image(operation, disk, path)
}

/// Whether a file begins as the undo file of a repair does.
fn is_undo_file(path: &Path) -> bool {
    const START: &[u8] = b"ploopundo\r\n";
    let mut start = [0; START.len()];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut start, 0));
    read.is_ok() && start == START
}

/// Refuses a target that a descriptor beside it names, or one beside the deltas of a disk that was opened without its
/// descriptor; and such a descriptor.
fn require_of_no_image(operation: &'static str, disk: &Disk, path: &Path) -> Result<()> {
    let image = disk.image_files();
    let deltas = match image.descriptors.is_empty() {
        true => &image.deltas[..],
        false => &[],
    };
    let files = [path].into_iter().chain(deltas.iter().map(|it| &**it));
    let directories: BTreeSet<PathBuf> = files
        .flat_map(|file| [resolved(file), file.canonicalize().unwrap_or_default()])
        .filter_map(|file| Some(file.parent()?.to_owned()))
        .collect();
    let target = resolved(path);
    let entry = DirectoryEntry::of(path);
    let refused = |what: String| {
        let why = format!("{what}; choose another name");
        Err(Error::new(ErrorKind::InvalidInput, operation, why).with_path(path))
    };
    if Header::read(path).is_ok() {
        return refused("this is a delta, of this or another image".to_owned());
    }
    if is_undo_file(path) {
        return refused("this is the undo file of a repair".to_owned());
    }
    for directory in directories {
        // Whoever may not list it names a file by itself.
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let descriptors = entries
            .map(|it| it.path())
            .filter(|it| may_be_descriptor(it));
        for descriptor in descriptors.take(MAX_DESCRIPTORS) {
            let named = NamedFiles::of(&descriptor).unwrap_or(NamedFiles::Nothing);
            // Where nothing is left to tell, it is one that is called like the descriptor of every image.
            let name = descriptor.file_name().unwrap_or_default();
            let is_usual = name == "DiskDescriptor.xml";
            let is_descriptor = match &named {
                NamedFiles::Listed(..) => true,
                NamedFiles::Mentioned(text) => text.is_of_descriptor(),
                NamedFiles::Any(text) => {
                    is_usual || text.as_ref().is_some_and(DamagedText::is_of_descriptor)
                }
                NamedFiles::Nothing => false,
            };
            if !is_descriptor {
                continue;
            }
            let image = descriptor.display();
            if DirectoryEntry::of(&descriptor) == entry {
                return refused("this is a descriptor, or what is left of one".to_owned());
            }
            if side_files::of_descriptor(&descriptor).contains(&target) {
                return refused(format!("libploop makes a file of this name beside {image}"));
            }
            let may_include = match &named {
                NamedFiles::Any(Some(text)) if !is_usual => text.mentions(&target),
                named => named.may_include(&target),
            };
            if may_include {
                return refused(format!("this is, or may be, a delta of the image {image}"));
            }
        }
    }
    Ok(())
}
