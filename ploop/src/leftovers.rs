//! Leftovers: files beside an image that interrupted operations have left, and that nothing uses.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::change::Change;
use crate::ffi::Call;
use crate::identity::{DirectoryEntry, Identity};
use crate::image::descriptor::damaged::LARGEST_DESCRIPTOR;
use crate::image::named_files::NamedFiles;
use crate::image::not_known;
use crate::image::recovery::creation;
use crate::image::{self, Header};
use crate::lock::NewFileLock;
use crate::{Descriptor, Error, Ploop, Result, durability, paths, side_files, sysfs};

const LOOK: Call = Call::new("look for leftovers of").looks();
const REMOVE: Call = Call::new("remove leftovers of").changes();

impl Ploop {
    /// The files beside the descriptor that an operation has left which was killed or cut short by a power failure,
    /// and that nothing there names or uses:
    ///
    /// * files that are named like deltas of the image and that no other file in the directory names, such as the new
    ///   delta of a snapshot that did not come to its end, or one that was merged and not removed yet;
    /// * the new file of a merge that was killed, whatever it is called, if it is not complete: it is marked as in
    ///   use, and its lock file `….op.lck`, which is reported as well, is beside it. A complete one cannot be told from
    ///   a copy, and is not reported;
    /// * temporary copies of the descriptor, of libploop and of this crate;
    /// * directories `.ploop-create-…` of creations that are not under way any more.
    ///
    /// Of a [volume](crate::volume), no deltas are reported: those of other volumes lie among its own. Nor are deltas in other
    /// directories, because another image may have them; [`image::check`](crate::image::check) names them. For the same reason, look before you remove anything where a
    /// descriptor elsewhere names deltas in this directory.
    ///
    /// While a descriptor that was cut off or overwritten lies in the directory, any delta may be one that it names, and none is
    /// reported.
    ///
    /// None of it is needed to use the image, but a delta may hold data that somebody wants to look at
    /// ([`image::check_image`](crate::image::check_image)). Files that a device has, by whatever path,
    /// are not among them. Read under the image's lock; changes nothing, needs no driver.
    ///
    /// # Errors
    ///
    /// As [`Ploop::descriptor`], and where a directory of the image cannot be read, or a small file beside it: that may be a
    /// descriptor which names what looks left over.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let image = ploop::Ploop::create(&param.fs(None))?;
    /// for file in image.leftovers()? {
    ///     println!("{} could be removed", file.display());
    /// }
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn leftovers(&self) -> Result<Vec<PathBuf>> {
        let locked = self.image.lock(&LOOK)?;
        find(LOOK.name, locked.path(), &locked.descriptor()?)
    }

    /// Removes what [`leftovers`](Ploop::leftovers) finds, under the image's lock, and returns it. First finishes or
    /// takes back what was interrupted, as every change does, so that nothing is removed that is needed for that.
    ///
    /// # Errors
    ///
    /// As [`leftovers`](Ploop::leftovers), [`Locked`](crate::ErrorKind::Locked) while another image in the
    /// same directory is being changed, and where a file cannot be removed; those before it are gone.
    ///
    /// ```
    /// # let dir = tempfile::tempdir().unwrap();
    /// # let param = ploop::CreateParam::new(dir.path().join("root.hds"), ploop::Size::from_mib(64));
    /// # let mut image = ploop::Ploop::create(&param.fs(None))?;
    /// std::fs::write(dir.path().join("DiskDescriptor.xml.tmp"), "torn").unwrap();
    /// assert_eq!(image.remove_leftovers()?.len(), 1);
    /// # Ok::<(), ploop::Error>(())
    /// ```
    pub fn remove_leftovers(&mut self) -> Result<Vec<PathBuf>> {
        let change = Change::begin(&self.image, &REMOVE)?;
        // An operation on another image here may be about to name what this one does not.
        let _others = other_descriptors(change.path(), &change.descriptor)?
            .iter()
            .map(|other| NewFileLock::acquire(REMOVE.name, other, Duration::ZERO))
            .collect::<Result<Vec<_>>>()?;
        let found = find(REMOVE.name, change.path(), &change.descriptor)?;
        for path in &found {
            let removed = if path.is_dir() {
                remove_creation(path)
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
        durability::sync_directories(REMOVE.name, directories)?;
        Ok(found)
    }
}

/// The image's lock is held.
fn find(operation: &'static str, path: &Path, descriptor: &Descriptor) -> Result<Vec<PathBuf>> {
    let orphans = image::orphans(descriptor, path).map_err(|error| error.during(operation))?;
    let mut found = orphans.files;
    found.extend(unfinished_merges(descriptor, path));
    // Elsewhere, deltas of other images may lie, whose descriptors are who knows where.
    let own = fs::canonicalize(paths::directory_of(path)).ok();
    found.retain(|file| own.as_deref() == Some(paths::directory_of(file)));
    // It may be held, and be no longer named.
    let used: HashSet<Identity> = files(descriptor).collect();
    let devices = sysfs::devices(operation)?;
    // A device with a delta that cannot be identified may have any file.
    let any_may_be_used = devices.iter().any(sysfs::Device::is_unknown);
    let is_free = |file: Identity| {
        !any_may_be_used && !used.contains(&file) && !devices.iter().any(|device| device.has(file))
    };
    found.retain(|file| Identity::of(file).is_ok_and(is_free) && is_delta(file));
    if !found.is_empty() {
        for file in small_files_beside(operation, path, &found)? {
            let named =
                NamedFiles::of(&file).map_err(|error| not_known(operation, &file, error))?;
            found.retain(|file| !named.may_include(file));
        }
    }
    let locks = found
        .iter()
        .map(|file| side_files::operation_lock_file(file));
    let locks: Vec<PathBuf> = locks.filter(|lock| is_unlocked(lock)).collect();
    found.extend(locks);
    let temporary = [
        paths::staged(path),
        paths::being_staged(path),
        paths::rewritten(path),
        paths::saved_unknown_fields(path),
        paths::before_removal(path),
        paths::merge_record(path),
        side_files::file_record(path),
    ];
    let temporary = temporary.into_iter();
    found.extend(temporary.filter(|path| paths::is_regular_file(path)));
    let mut beside = files_of(operation, paths::directory_of(path))?;
    beside.retain(|path| creation::is_abandoned(path));
    found.extend(beside);
    found.sort();
    found.dedup();
    Ok(found)
}

fn files(descriptor: &Descriptor) -> impl Iterator<Item = Identity> {
    let images = descriptor.all_images();
    images.filter_map(|image| Identity::of(&image.file).ok())
}

/// New files of merges that were killed. libploop takes the mark off when they are complete.
fn unfinished_merges(descriptor: &Descriptor, path: &Path) -> Vec<PathBuf> {
    let files = descriptor.images.iter().map(|image| image.file.as_path());
    let directories: HashSet<PathBuf> = [path]
        .into_iter()
        .chain(files)
        .filter_map(|file| fs::canonicalize(paths::directory_of(file)).ok())
        .collect();
    let entries = directories
        .into_iter()
        .flat_map(|directory| fs::read_dir(directory).into_iter().flatten().flatten());
    let unfinished = |lock: PathBuf| {
        let name = lock.file_name()?.as_bytes().strip_suffix(b".op.lck")?;
        let file = lock.with_file_name(OsStr::from_bytes(name));
        let header = Header::read(&file).ok()?;
        let is_its = header.in_use && header.cluster == descriptor.cluster;
        (is_its && is_unlocked(&lock)).then_some(file)
    };
    entries
        .filter_map(|entry| unfinished(entry.path()))
        .collect()
}

/// Whether this is a lock file that nobody has locked.
fn is_unlocked(lock: &Path) -> bool {
    paths::is_regular_file(lock) && creation::lock(lock).is_some()
}

/// Judged by the header, not by the name: an export may be called the same. A delta that was just begun is empty, and
/// what libploop makes of a delta while it converts it has a suffix of its own.
fn is_delta(file: &Path) -> bool {
    let is_made_of_one = file
        .extension()
        .is_some_and(|it| it == "tmp" || it == "idx");
    let is_empty = || fs::metadata(file).is_ok_and(|metadata| metadata.len() == 0);
    is_made_of_one || Header::read(file).is_ok() || is_empty()
}

/// Files beside an image, and beside what was found, that are no deltas: descriptors of other images and
/// copies of this one's among them, whatever they are called. What cannot be looked at is an error: it may be one.
fn small_files_beside(
    operation: &'static str,
    path: &Path,
    found: &[PathBuf],
) -> Result<Vec<PathBuf>> {
    let own = [
        path.to_owned(),
        paths::staged(path),
        paths::being_staged(path),
        paths::rewritten(path),
        paths::saved_unknown_fields(path),
        paths::before_removal(path),
    ];
    let directories: HashSet<&Path> = [path]
        .into_iter()
        .chain(found.iter().map(PathBuf::as_path))
        .map(paths::directory_of)
        .collect();
    let mut small = Vec::new();
    for directory in directories {
        for file in files_of(operation, directory)? {
            // Of a link, what it leads to.
            let is_text = match fs::metadata(&file) {
                Ok(metadata) => metadata.is_file() && metadata.len() <= LARGEST_DESCRIPTOR,
                Err(error) if leads_nowhere(&error) => false,
                Err(error) => return Err(not_known(operation, &file, error)),
            };
            let is_other = is_text && !own.contains(&file) && !found.contains(&file);
            if is_other && Header::read(&file).is_err() {
                small.push(file);
            }
        }
    }
    Ok(small)
}

fn files_of(operation: &'static str, directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).and_then(|entries| {
        let paths = entries.map(|entry| entry.map(|entry| entry.path()));
        paths.collect::<io::Result<_>>()
    });
    entries.map_err(|error| {
        Error::io(operation, "the directory cannot be read", error).with_path(directory)
    })
}

/// A link to nothing, or to itself, and a file that is gone.
fn leads_nowhere(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

/// Descriptors of other images beside this one.
fn other_descriptors(path: &Path, descriptor: &Descriptor) -> Result<Vec<PathBuf>> {
    let deltas: Vec<PathBuf> = descriptor
        .images
        .iter()
        .map(|image| image.file.clone())
        .collect();
    let mut others: Vec<PathBuf> = small_files_beside(REMOVE.name, path, &deltas)?
        .into_iter()
        .filter(|file| Descriptor::open(file).is_ok())
        .filter_map(|file| fs::canonicalize(file).ok())
        .collect();
    others.sort();
    others.dedup();
    // Its own lock file is held, which may lie there by another path.
    let own = DirectoryEntry::of(path);
    others.retain(|other| DirectoryEntry::of(other) != own);
    Ok(others)
}

/// What is in such a directory lies flat in it; nothing is removed where something is mounted.
fn remove_creation(directory: &Path) -> io::Result<()> {
    let Some(_lock) = creation::lock(directory) else {
        // A creation has begun there since.
        return Ok(());
    };
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_dir(directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CreateParam, Size, SnapshotParam};

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
    fn what_cannot_be_read_may_name_anything() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        let param = CreateParam::new(at("root.hds"), Size::from_mib(10)).fs(None);
        let mut image = Ploop::create(&param).unwrap();
        let orphan = at("root.hds.{0d3ebf62-5322-4a35-a84c-e465aef3807c}");
        fs::copy(at("root.hds"), &orphan).unwrap();
        // Links that lead nowhere name nothing.
        let link = |target: &str, name| std::os::unix::fs::symlink(target, at(name)).unwrap();
        link("nowhere", "gone.xml");
        link("circle.xml", "circle.xml");
        assert_eq!(image.leftovers().unwrap(), [&*orphan]);
        // Another descriptor has the delta by the name of a link.
        link(orphan.file_name().unwrap().to_str().unwrap(), "link.hds");
        let text = fs::read_to_string(image.path()).unwrap();
        fs::write(at("other.xml"), text.replace(">root.hds<", ">link.hds<")).unwrap();
        assert_eq!(image.remove_leftovers().unwrap(), [] as [PathBuf; 0]);
        fs::remove_file(at("other.xml")).unwrap();
        // A read of it is an error, for everybody.
        link("/proc/self/mem", "other.xml");
        for result in [image.leftovers(), image.remove_leftovers()] {
            assert_eq!(result.unwrap_err().path(), Some(&*at("other.xml")));
        }
        assert!(orphan.exists());
        fs::remove_file(at("other.xml")).unwrap();
        assert_eq!(image.remove_leftovers().unwrap(), [orphan]);
    }

    #[test]
    fn deltas_in_a_directory_of_several_images_stay() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let mut images = ["101", "102"].map(|name| {
            fs::create_dir(at(name)).unwrap();
            let base = at(name).join("root.hds");
            Ploop::create(&CreateParam::new(base, Size::from_mib(10)).fs(None)).unwrap()
        });
        fs::create_dir(at("pool")).unwrap();
        for image in &mut images {
            let param = SnapshotParam::new().directory(at("pool"));
            image.snapshot_with(&param).unwrap();
        }
        assert_eq!(images[0].remove_leftovers().unwrap(), [] as [PathBuf; 0]);
        let report = image::check(images[0].path());
        assert_eq!(report.orphans, [images[1].top_delta_file().unwrap()]);
        for image in &images {
            assert!(image.top_delta_file().unwrap().exists());
        }
    }

    #[test]
    fn the_new_file_of_a_merge_that_was_killed() {
        use std::os::unix::fs::FileExt;

        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        let param = CreateParam::new(at("root.hds"), Size::from_mib(10)).fs(None);
        let mut image = Ploop::create(&param).unwrap();
        let (new, lock) = (at("merged"), at("merged.op.lck"));
        fs::copy(at("root.hds"), &new).unwrap();
        let mark = |mark: u32| {
            let file = fs::File::options().write(true).open(&new).unwrap();
            file.write_all_at(&mark.to_le_bytes(), 44).unwrap();
        };
        let none = [] as [PathBuf; 0];
        // A copy of a delta, marked or not, and one that is being made.
        assert_eq!(image.leftovers().unwrap(), none);
        mark(0x746F_6E59);
        assert!(Header::read(&new).unwrap().in_use);
        assert_eq!(image.leftovers().unwrap(), none);
        let making = NewFileLock::acquire("test", &new, Duration::ZERO).unwrap();
        assert!(lock.exists());
        assert_eq!(image.leftovers().unwrap(), none);
        drop(making);
        fs::write(&lock, "").unwrap();
        mark(0);
        assert_eq!(image.leftovers().unwrap(), none);
        mark(0x746F_6E59);
        let expected = [new.clone(), lock.clone()];
        assert_eq!(image.leftovers().unwrap(), expected);
        assert_eq!(image.remove_leftovers().unwrap(), expected);
        assert!(!new.exists() && !lock.exists() && at("root.hds").exists());
        assert_eq!(image.leftovers().unwrap(), none);
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
        let image = Ploop::create(&param).unwrap();
        assert!(!made.exists());
        assert_eq!(image.leftovers().unwrap(), [] as [PathBuf; 0]);
    }

    /// Whatever it is called, whoever can read it.
    #[test]
    fn what_another_file_beside_names_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().canonicalize().unwrap().join(name);
        let param = CreateParam::new(at("root.hds"), Size::from_mib(10)).fs(None);
        let mut image = Ploop::create(&param).unwrap();
        let guid = image.snapshot().unwrap();
        let whole = fs::read_to_string(image.path()).unwrap();
        let top = image.top_delta_file().unwrap();
        image.delete_snapshot(guid).unwrap();
        fs::copy(at("root.hds"), &top).unwrap();
        assert_eq!(image.leftovers().unwrap(), std::slice::from_ref(&top));
        let wide =
            |text: &str| -> Vec<u8> { text.encode_utf16().flat_map(u16::to_le_bytes).collect() };
        for (name, text) in [
            ("clone", whole.clone().into_bytes()),
            ("CLONE.XML", whole.clone().into_bytes()),
            (
                "latin.xml",
                whole.replace("UTF-8", "ISO-8859-1").into_bytes(),
            ),
            ("cut.bak", whole.as_bytes()[..whole.len() - 30].to_vec()),
            ("wide.xml", wide(&whole)),
            // Before the first name.
            ("early.xml", whole.as_bytes()[..90].to_vec()),
            ("early-wide.bak", wide(&whole[..90])),
        ] {
            fs::write(at(name), text).unwrap();
            assert_eq!(
                image.remove_leftovers().unwrap(),
                [""; 0].map(PathBuf::from),
                "{name}"
            );
            fs::remove_file(at(name)).unwrap();
        }
        fs::create_dir(at("links")).unwrap();
        fs::write(at("links").join("clone"), &whole).unwrap();
        std::os::unix::fs::symlink(at("links").join("clone"), at("link")).unwrap();
        assert_eq!(
            image.remove_leftovers().unwrap(),
            [""; 0].map(PathBuf::from)
        );
        fs::remove_file(at("link")).unwrap();

        // While a descriptor beside is being changed, nobody knows what it will name.
        fs::write(
            at("other.xml"),
            whole.replace(top.file_name().unwrap().to_str().unwrap(), "a"),
        )
        .unwrap();
        let busy = NewFileLock::acquire("test", &at("other.xml"), Duration::ZERO).unwrap();
        let error = image.remove_leftovers().unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Locked, "{error}");
        drop(busy);
        assert_eq!(image.remove_leftovers().unwrap(), [top]);
    }
}
