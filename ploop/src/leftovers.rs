//! What operations that were cut short have left beside an image.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::ffi::Call;
use crate::identity::Identity;
use crate::image;
use crate::preflight::Change;
use crate::recovery::{creation, sync_directories};
use crate::{Descriptor, Error, Ploop, Result, paths, sysfs};

const LOOK: Call = Call::new("look for leftovers").looks();
const REMOVE: Call = Call::new("remove leftovers").changes();

impl Ploop {
    /// What an operation that was killed or cut short by a power failure has left beside the image, and
    /// nothing names or uses:
    ///
    /// * delta files of the image's family that no descriptor in their directory names, such as the new
    ///   delta of a snapshot that did not come to its end, or one that was merged and not removed yet;
    /// * temporary copies of the descriptor, of libploop and of this crate;
    /// * directories `.ploop-create-…` of creations that are not under way any more.
    ///
    /// None of it is needed to use the image, but a delta may hold data that somebody wants to look at
    /// ([`image::check_image`](crate::image::check_image)). Files that a device has, by whatever path,
    /// are not among them. Read under the image's lock; changes nothing, needs no driver.
    ///
    /// # Errors
    ///
    /// As [`Ploop::descriptor`], and where a directory of the image cannot be read.
    pub fn leftovers(&mut self) -> Result<Vec<PathBuf>> {
        let turn = self.image.turn(&LOOK)?;
        find(LOOK.name, turn.path(), &turn.descriptor()?)
    }

    /// Removes what [`leftovers`](Ploop::leftovers) finds, under the image's lock, and returns it. First
    /// finishes or takes back what was interrupted, as every change does, so that nothing is removed that
    /// it takes.
    ///
    /// # Errors
    ///
    /// As [`leftovers`](Ploop::leftovers), and where a file cannot be removed; those before it are gone.
    pub fn remove_leftovers(&mut self) -> Result<Vec<PathBuf>> {
        let change = Change::begin(&mut self.image, &REMOVE)?;
        let found = find(REMOVE.name, change.path(), &change.descriptor)?;
        for path in &found {
            let removed = if path.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            };
            match removed {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(
                        Error::io(REMOVE.name, "this cannot be removed", error).with_path(path)
                    );
                }
                _ => {}
            }
        }
        let directories: HashSet<&Path> =
            found.iter().map(|path| paths::directory_of(path)).collect();
        sync_directories(REMOVE.name, directories)?;
        Ok(found)
    }
}

/// The image's lock is held.
fn find(operation: &'static str, path: &Path, descriptor: &Descriptor) -> Result<Vec<PathBuf>> {
    let mut found = image::orphans(descriptor, path).map_err(|error| error.during(operation))?;
    let used = used_files(path, descriptor, &found);
    let devices = sysfs::devices();
    // One of whose deltas nobody can tell which file it is may have any.
    let unknown = devices.iter().any(sysfs::Device::is_unknown);
    found.retain(|file| {
        Identity::of(file).is_ok_and(|file| {
            !unknown && !used.contains(&file) && !devices.iter().any(|device| device.has(file))
        })
    });
    let temporary = [
        paths::staged(path),
        paths::being_staged(path),
        paths::rewritten(path),
        paths::kept_fields(path),
        paths::before_removal(path),
    ];
    let is_file = |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|it| it.is_file());
    found.extend(temporary.into_iter().filter(is_file));
    let entries = fs::read_dir(paths::directory_of(path)).map_err(|error| {
        Error::io(operation, "the directory cannot be read", error).with_path(path)
    })?;
    for entry in entries.flatten() {
        if creation::is_abandoned(&entry.path()) {
            found.push(entry.path());
        }
    }
    found.sort();
    found.dedup();
    Ok(found)
}

/// The files that descriptors name, this one and whatever is one beside it or beside what was found: a
/// backup under another name, say.
fn used_files(path: &Path, descriptor: &Descriptor, found: &[PathBuf]) -> HashSet<Identity> {
    let mut used = HashSet::new();
    let mut add = |descriptor: &Descriptor| {
        let files = descriptor.images.iter().map(|image| &image.file);
        used.extend(files.filter_map(|file| Identity::of(file).ok()));
    };
    add(descriptor);
    let own = [
        paths::staged(path),
        paths::being_staged(path),
        paths::before_removal(path),
    ];
    let directories: HashSet<&Path> = [path]
        .into_iter()
        .chain(found.iter().map(PathBuf::as_path))
        .map(paths::directory_of)
        .collect();
    for directory in directories {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let file = entry.path();
            let name = entry.file_name();
            let may_be_one = name.to_string_lossy().contains(".xml") && !own.contains(&file);
            if may_be_one && entry.file_type().is_ok_and(|kind| kind.is_file()) {
                if let Ok(other) = Descriptor::open(&file) {
                    add(&other);
                }
            }
        }
    }
    used
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateParam, Size};

    #[test]
    fn what_nobody_names_is_reported_and_removed() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        let param = CreateParam::new(at("root.hds"), Size::from_mib(10)).fs(None);
        let mut image = Ploop::create(&param).unwrap();
        image.snapshot().unwrap();
        assert_eq!(image.leftovers().unwrap(), [] as [PathBuf; 0]);

        let orphan = at("root.hds.{0d3ebf62-5322-4a35-a84c-e465aef3807c}");
        fs::copy(at("root.hds"), &orphan).unwrap();
        let kept = at("root.hds.{0d3ebf62-5322-4a35-a84c-e465aef3807d}");
        fs::copy(at("root.hds"), &kept).unwrap();
        let second_name = at("root.hds.{0d3ebf62-5322-4a35-a84c-e465aef3807e}");
        fs::hard_link(at("root.hds"), &second_name).unwrap();
        // A backup names one of them.
        let text = fs::read_to_string(image.path()).unwrap();
        let name = kept.file_name().unwrap().to_str().unwrap();
        let text = text.replace("<File>root.hds</File>", &format!("<File>{name}</File>"));
        fs::write(at("DiskDescriptor.xml.backup"), text).unwrap();
        fs::write(at("DiskDescriptor.xml.tmp"), "torn").unwrap();
        fs::write(at("notes"), "of somebody").unwrap();
        let (dead, alive) = (at(".ploop-create-dead"), at(".ploop-create-alive"));
        for directory in [&dead, &alive] {
            fs::create_dir(directory).unwrap();
            fs::write(directory.join("root.hds"), "half").unwrap();
        }
        let making = creation::lock(&alive).unwrap();

        let mut expected = vec![orphan, at("DiskDescriptor.xml.tmp"), dead];
        expected.sort();
        assert_eq!(image.leftovers().unwrap(), expected);
        assert!(expected.iter().all(|path| path.exists()));
        assert_eq!(image.remove_leftovers().unwrap(), expected);
        assert!(!expected.iter().any(|path| path.exists()));
        assert_eq!(image.leftovers().unwrap(), [] as [PathBuf; 0]);
        for path in [&kept, &second_name, &alive, &at("notes"), &at("root.hds")] {
            assert!(path.exists(), "{path:?}");
        }
        drop(making);
        assert_eq!(image.remove_leftovers().unwrap(), [alive]);
    }

    #[test]
    fn a_creation_that_was_cut_short_is_not_in_the_way_of_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        let param = CreateParam::new(at("root.hds"), Size::from_mib(10)).fs(None);
        let image = Ploop::create(&param).unwrap();
        // Before the descriptor came.
        let made = at(".ploop-create-dead");
        fs::create_dir(&made).unwrap();
        fs::rename(image.path(), made.join("DiskDescriptor.xml")).unwrap();
        // A file of somebody's stays.
        let error = Ploop::create(&param).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::AlreadyExists);
        fs::hard_link(at("root.hds"), made.join("root.hds")).unwrap();
        // One that is under way, too.
        let making = creation::lock(&made).unwrap();
        let error = Ploop::create(&param).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::AlreadyExists);
        drop(making);
        let mut image = Ploop::create(&param).unwrap();
        assert!(!made.exists());
        assert_eq!(image.leftovers().unwrap(), [] as [PathBuf; 0]);
    }
}
