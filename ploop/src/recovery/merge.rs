//! Merges that were cut short after they had written to the lowest delta.
//!
//! libploop stages the new descriptor, copies the data of the upper deltas to the lowest one, and renames
//! the descriptor then. Through the upper deltas everything reads as before. But the lowest one is that of
//! a snapshot, and nobody can say how much is left of the state it had. So that nobody goes back to it, it
//! is marked temporary: libploop's own word for a snapshot whose removal has to wait, and which it merges
//! in the next change or mount that can.
//!
//! Going back to a snapshot that loses its GUID has the same new descriptor, and leaves the delta alone. A
//! merge marks the delta first, unless it is a plain one, and takes the mark off before it renames; and
//! what it has written may be on the disk after a power cut, and the time of that not. So this crate
//! makes a record of each merge.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use crate::canonical;
use crate::identity::Identity;
use crate::image::descriptor::DescriptorFile;
use crate::image::{Header, Image};
use crate::sysfs::Device;
use crate::{Descriptor, Error, Guid, Result, paths};

/// A file that is there while libploop merges deltas, and stays where the program is killed.
pub(crate) struct MergeRecord(PathBuf);

impl MergeRecord {
    /// Before C. libploop syncs the new descriptor before it merges, and with it this file's name.
    pub(crate) fn make(operation: &'static str, path: &Path) -> Result<MergeRecord> {
        let record = paths::merge_record(path);
        OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits() as i32)
            .open(&record)
            .map_err(|error| {
                let why = "the record of a merge, which says that there was one if it is cut short, cannot be made";
                Error::io(operation, why, error).with_path(&record)
            })?;
        Ok(MergeRecord(record))
    }
}

impl Drop for MergeRecord {
    fn drop(&mut self) {
        // What stays is looked at by the next operation.
        let _ = fs::remove_file(&self.0);
    }
}

/// Marks the snapshot that was being merged into. The image's lock is held; `old` is what the descriptor
/// says. Whether there was one.
pub(super) fn give_up(
    devices: &[Device],
    operation: &'static str,
    path: &Path,
    old: &Descriptor,
) -> Result<bool> {
    let record = paths::merge_record(path);
    let recorded = fs::symlink_metadata(&record).is_ok_and(|metadata| metadata.is_file());
    let staged = paths::staged(path);
    let new = super::read(&staged);
    let lowest = new.as_ref().and_then(|new| merged_into(old, new));
    let lowest = lowest.filter(|lowest| recorded || was_written(lowest, &staged));
    if let Some(lowest) = lowest {
        // Somebody is there, and would be detached.
        let file = Identity::of(&lowest.file).ok();
        let is_top = |device: &Device| device.top().is_some_and(|top| top.identity == file);
        if devices.iter().any(is_top) {
            return Ok(false);
        }
        mark_temporary(operation, path, lowest.guid)?;
        // What it says is not so.
        let _ = fs::remove_file(&staged);
    }
    if recorded {
        let _ = fs::remove_file(&record);
    }
    Ok(lowest.is_some())
}

fn mark_temporary(operation: &'static str, path: &Path, guid: Guid) -> Result<()> {
    let failed = |error: Error| error.during(operation).with_path(path);
    let mut file = DescriptorFile::read(path).map_err(failed)?;
    for snapshot in &mut file.descriptor.snapshots {
        snapshot.temporary |= snapshot.guid == guid;
    }
    let directory = paths::directory_of(path);
    let text = file.descriptor.to_xml_with(&file.kept, directory);
    canonical::replace(path, &text.map_err(failed)?).map_err(|error| {
        let why = "a merge was cut short, and the snapshot that it was merging into cannot be marked temporary";
        Error::io(operation, why, error).with_path(path)
    })
}

/// The delta that one of those above it is merged into: its file, under the other's GUID, is what the new
/// descriptor has in the place of both.
fn merged_into<'a>(old: &'a Descriptor, new: &Descriptor) -> Option<&'a Image> {
    old.images.iter().find(|lowest| {
        let upper = new.images.iter().find(|image| image.file == lowest.file);
        upper.is_some_and(|upper| {
            let chain = old.chain(upper.guid);
            upper.guid != lowest.guid
                && new.image(lowest.guid).is_none()
                && chain.iter().any(|image| image.guid == lowest.guid)
        })
    })
}

/// Of a merge without a record: that of a program that uses libploop alone, or one that has failed.
fn was_written(delta: &Image, staged: &Path) -> bool {
    let written = |file: &Path| fs::metadata(file).and_then(|metadata| metadata.modified());
    let since = match (written(&delta.file), written(staged)) {
        (Ok(delta), Ok(staged)) => delta > staged,
        _ => false,
    };
    since || Header::read(&delta.file).is_ok_and(|header| header.in_use)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::unix::fs::FileExt;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::{CreateParam, Ploop, Size, SwitchFlag};

    /// An image with a snapshot, and the descriptor that an operation on it would have put in place.
    fn cut_before_rename(change: impl Fn(&mut Ploop, Guid)) -> (tempfile::TempDir, Descriptor) {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("root.hds");
        let mut image =
            Ploop::create(&CreateParam::new(&base, Size::from_mib(10)).fs(None)).unwrap();
        let guid = image.snapshot().unwrap();
        let before = image.descriptor().unwrap();
        let files: Vec<_> = before.images.iter().map(|image| &image.file).collect();
        let kept: Vec<_> = files.iter().map(|file| fs::read(file).unwrap()).collect();
        let text = fs::read(image.path()).unwrap();
        change(&mut image, guid);
        fs::rename(image.path(), paths::staged(image.path())).unwrap();
        fs::write(image.path(), text).unwrap();
        for (file, bytes) in files.iter().zip(kept) {
            fs::write(file, bytes).unwrap();
        }
        set_times(&base, SystemTime::now() - Duration::from_secs(10));
        (directory, before)
    }

    fn set_times(file: &Path, time: SystemTime) {
        let file = File::options().write(true).open(file).unwrap();
        file.set_modified(time).unwrap();
    }

    fn give_up_in(directory: &Path, before: &Descriptor) -> (bool, Descriptor) {
        let path = directory.join("DiskDescriptor.xml");
        let given_up = give_up(&[], "test", &path, before).unwrap();
        assert_eq!(paths::staged(&path).exists(), !given_up);
        assert!(!paths::merge_record(&path).exists());
        (given_up, Descriptor::open(&path).unwrap())
    }

    #[test]
    fn a_snapshot_that_was_merged_into_is_temporary() {
        for evidence in ["record", "mark", "time"] {
            let (directory, before) = cut_before_rename(|image, guid| {
                image.delete_snapshot(guid).unwrap();
            });
            let base = &before.base().unwrap().file;
            // Before anything was written, it is as it was.
            assert_eq!(
                give_up_in(directory.path(), &before),
                (false, before.clone())
            );
            match evidence {
                "record" => {
                    let path = directory.path().join("DiskDescriptor.xml");
                    std::mem::forget(MergeRecord::make("test", &path).unwrap());
                }
                "mark" => {
                    let file = File::options().write(true).open(base).unwrap();
                    let mark = 0x746F_6E59u32.to_le_bytes();
                    file.write_all_at(&mark, 44).unwrap();
                    set_times(base, SystemTime::now() - Duration::from_secs(10));
                }
                _ => set_times(base, SystemTime::now() + Duration::from_secs(10)),
            }
            let (given_up, now) = give_up_in(directory.path(), &before);
            let mut expected = before.clone();
            expected.snapshots[0].temporary = true;
            assert!(given_up);
            assert_eq!(now, expected);
        }
    }

    #[test]
    fn going_back_to_a_snapshot_is_no_merge() {
        let (directory, before) = cut_before_rename(|image, guid| {
            let flags = SwitchFlag::SKIP_CREATE;
            image.switch_snapshot_with(guid, flags).unwrap();
        });
        let new = paths::staged(&directory.path().join("DiskDescriptor.xml"));
        let new = Descriptor::open(new).unwrap();
        assert_eq!(merged_into(&before, &new), before.base());
        assert_eq!(give_up_in(directory.path(), &before), (false, before));
    }
}
